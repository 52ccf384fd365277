"""Find labelled images: a folder of class folders, or a table in a CSV or TSV file.

What flows out is a list of rows, not yet a manifest: whether the files exist and can be
read is the audit's business.
"""

import os
from pathlib import Path, PurePosixPath

import pandas as pd

from cvpipe import frames
from cvpipe.config import FOLDERS
from cvpipe.data.images import SUFFIX_FORMATS
from cvpipe.errors import InputError

RESERVED_COLUMNS = ("image_id", "split", "sha256")


def scan_images(root: Path, labels: str) -> pd.DataFrame:
    """List the labelled images of a data root.

    Args:
        root: Folder of the images.
        labels: `"folders"`, or the name of a table in `root`.

    Returns:
        Table with `image_id`, `label`, `group` and any further columns, sorted by
        `image_id`. `group` is the `image_id` where the data give none. Rows are as
        given: an `image_id` may appear twice and its file may be missing.

    Raises:
        InputError: The folder or the table is missing, has no image or lacks a column.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; give the folder of the images.")
    rows = scan_folders(root) if labels == FOLDERS else scan_table(root, root / labels)
    if "group" not in rows:
        rows["group"] = rows["image_id"]
    # A row without a group is a group of its own, not one of all such rows.
    rows["group"] = rows["group"].where(rows["group"] != "", rows["image_id"])
    return rows.sort_values("image_id", kind="stable").reset_index(drop=True)


def scan_folders(root: Path) -> pd.DataFrame:
    """List the images in class folders: the folder directly below `root` is the label.

    Files and folders whose name starts with a dot are not looked at.

    Raises:
        InputError: No image lies in a class folder.
    """
    rows = []
    for folder, folder_names, file_names in os.walk(root):
        folder_names[:] = sorted(n for n in folder_names if not n.startswith("."))
        for name in sorted(file_names):
            path = PurePosixPath(Path(folder, name).relative_to(root).as_posix())
            if is_image_name(name) and len(path.parts) > 1:
                rows.append((str(path), path.parts[0]))
    if not rows:
        raise InputError(
            f"no image was found in the class folders of {str(root)!r}; expected "
            f"<folder>/<class>/<image> with one of the suffixes {sorted(SUFFIX_FORMATS)}."
        )
    return pd.DataFrame(rows, columns=["image_id", "label"], dtype=str)


def other_files(root: Path) -> list[str]:
    """List the files in class folders that are not images by name, as POSIX paths."""
    found = []
    for folder, folder_names, file_names in os.walk(root):
        folder_names[:] = [n for n in folder_names if not n.startswith(".")]
        for name in file_names:
            path = Path(folder, name).relative_to(root)
            if not name.startswith(".") and not is_image_name(name) and len(path.parts) > 1:
                found.append(path.as_posix())
    return sorted(found)


def stray_images(root: Path) -> list[str]:
    """List the images that lie directly in `root`, where no folder gives them a label."""
    return sorted(p.name for p in root.iterdir() if p.is_file() and is_image_name(p.name))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIX_FORMATS


def scan_table(root: Path, table_path: Path) -> pd.DataFrame:
    """List the images of a CSV or TSV table with the columns `path` and `label`.

    Raises:
        InputError: The table is missing, cannot be parsed, is empty, lacks a column, or a
            path leads out of `root`.
    """
    separator = "\t" if table_path.suffix.lower() == ".tsv" else ","
    try:
        table = pd.read_csv(table_path, dtype=str, keep_default_na=False, sep=separator)
    except FileNotFoundError:
        raise InputError(
            f"there is no table {str(table_path)!r}; give it in data.labels."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the table {str(table_path)!r}: {error}.") from None
    missing = [name for name in ("path", "label") if name not in table]
    if missing:
        raise InputError(
            f"{str(table_path)!r} lacks the column(s) {missing}; it has {list(table)}. "
            "A table of images needs the columns 'path' and 'label'."
        )
    taken = [name for name in RESERVED_COLUMNS if name in table]
    if taken:
        raise InputError(
            f"{str(table_path)!r} has a column {taken[0]!r}, a name that cvpipe fills in "
            "itself; rename it (a split of your own is not supported yet)."
        )
    if table.empty:
        raise InputError(f"{str(table_path)!r} has no rows; list at least one image.")
    table["path"] = [_inside(root, text, table_path) for text in table["path"]]
    return table.rename(columns={"path": "image_id"})


def _inside(root: Path, text: str, table_path: Path) -> str:
    """Normalise a path from a table; it must stay inside the data root."""
    normal = os.path.normpath(text.replace("\\", "/")) if text else ""
    leaves_root = normal.startswith("..") or Path(normal).is_absolute()
    if normal in ("", ".") or leaves_root:
        raise InputError(
            f"{str(table_path)!r} names the image {text!r}; paths must be relative to "
            f"{str(root)!r} and stay inside it."
        )
    return PurePosixPath(normal).as_posix()


def check_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """Return scanned rows as a manifest.

    Raises:
        InputError: See `frames.check_manifest`.
    """
    first = ["image_id", "label", "group"]
    return frames.check_manifest(rows[first + [name for name in rows if name not in first]])
