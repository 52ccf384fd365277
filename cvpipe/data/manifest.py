"""Find labelled images: a folder of class folders, or a table in a CSV or TSV file.

Images may come with a split: `train/`, `val/` and `test/` above the class folders, or a column
`split` in the table. It becomes the column `split` of the rows.

What flows out is a list of rows, not yet a manifest: whether the files exist and can be
read is the audit's business.

The folder is the user's own and is only read, so links to files are followed wherever
they lead, and so are links to class folders and to folders above them. Deeper links to folders
are not entered, so that no circle of links can trap the walk; they count as other files.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd

from cvpipe import frames
from cvpipe.data.images import SUFFIX_FORMATS
from cvpipe.errors import InputError, nearest_name
from cvpipe.files import open_regular
from cvpipe.formats import is_dicom
from cvpipe.sections import FOLDERS

# How people write the names of a given split, in any case.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "dev": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# 128 free bytes, and the four that name the format.
DICOM_HEAD_BYTES = 132
LABEL_COLUMN = "label"
# Where a table's own `label` goes when another column is the label.
LABEL_GIVEN = "label_given"
# The columns that cvpipe fills in itself, and with what.
RESERVED_COLUMNS = {
    "image_id": "the key of each image (give its file in 'path')",
    "fold": "the part of cross-validation (folds of your own are not supported yet)",
    "careless": "the split of the careless protocol",
    "split_given": "the split that the images came with",
    "sha256": "the checksum of each file",
}
# How `cvpipe.stages.split` calls the folds of further repeats.
FOLD_OF_REPEAT = re.compile(r"fold_r\d+")


def scan_images(root: Path, labels: str, label_column: str = LABEL_COLUMN) -> pd.DataFrame:
    """List the labelled images of a data root.

    Args:
        root: Folder of the images.
        labels: `"folders"`, or the name of a table in `root`.
        label_column: The column of the table that holds the labels, see `scan_table`.

    Returns:
        Table with `image_id`, `label`, `group` and any further columns, sorted by
        `image_id`. `group` is the `image_id` where the data give none. Rows are as
        given: an `image_id` may appear twice and its file may be missing.

    Raises:
        InputError: The folder or the table is missing, has no image or lacks a column, or
            a column was chosen for class folders.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {str(root)!r}; give the folder of the images.")
    if labels == FOLDERS and label_column != LABEL_COLUMN:
        raise InputError(
            f"the label column is {label_column!r}, but class folders have no columns: the folder "
            f"is the label. Leave it at {LABEL_COLUMN!r}, or give in data.labels the table with "
            "that column."
        )
    rows = (
        scan_folders(root) if labels == FOLDERS else scan_table(root, root / labels, label_column)
    )
    if "group" not in rows:
        rows["group"] = rows["image_id"]
    # A row without a group is a group of its own, not one of all such rows.
    rows["group"] = rows["group"].where(rows["group"] != "", rows["image_id"])
    return rows.sort_values("image_id", kind="stable").reset_index(drop=True)


def scan_folders(root: Path) -> pd.DataFrame:
    """List the images in class folders: the folder directly below `root` is the label.

    Files and folders whose name starts with a dot are not looked at.

    Raises:
        InputError: No image lies in a class folder, a folder cannot be listed, or a name
            is not text.
    """
    files = _class_files(root)
    paths = [path for path in files if is_image_name(path.name)]
    if not paths:
        unnamed = next((str(path) for path in files if is_dicom_file(root / path)), "")
        raise InputError(
            f"no image was found in the class folders of {str(root)!r}; expected "
            f"<folder>/<class>/<image> with one of the suffixes {sorted(SUFFIX_FORMATS)}."
            + (f" {unnamed!r} is DICOM: let its name end in .dcm." if unnamed else "")
        )
    tops = {path.parts[0] for path in paths}
    given = is_split_layout(tops)
    named = sorted(top for top in tops if top.lower() in SPLIT_NAMES)
    if len(named) > 1 and not given:
        raise InputError(
            f"the folders {named} in {str(root)!r} look like parts of a split, but beside them "
            f"lie {sorted(tops - set(named))}; keep either a split or classes there."
        )
    unlabelled = [str(path) for path in paths if given and len(path.parts) < 3]
    if unlabelled:
        raise InputError(
            f"the folders in {str(root)!r} are parts of a split, but {unlabelled[0]!r} lies in no "
            "class folder; expected <split>/<class>/<image>."
        )
    table = pd.DataFrame({"image_id": [str(path) for path in paths]}, dtype=str)
    table["label"] = [path.parts[1 if given else 0] for path in paths]
    if given:
        table["split"] = [SPLIT_NAMES[path.parts[0].lower()] for path in paths]
    return table


def is_split_layout(folders: Iterable[str]) -> bool:
    """Tell whether folders are parts of a split rather than classes: all bear its names."""
    names = {folder.lower() for folder in folders}
    return bool(names) and names <= SPLIT_NAMES.keys()


def has_given_split(root: Path, labels: str) -> bool:
    """Tell whether images come with a split, by the names of folders or columns alone.

    What is not there gives none; that it is missing is for `scan_images` to say.
    """
    if labels == FOLDERS:
        return root.is_dir() and is_split_layout(_folders_with_images(root))
    return (root / labels).is_file() and "split" in _read_table(root / labels, num_rows=0)


def other_files(root: Path) -> list[str]:
    """List the files in class folders that are not images by name, as POSIX paths."""
    return [str(path) for path in _class_files(root) if not is_image_name(path.name)]


def _class_files(root: Path) -> list[PurePosixPath]:
    """List the files in class folders, hidden ones left out, as sorted paths below `root`."""
    paths = (PurePosixPath(path.relative_to(root)) for path in _walk_classes(root))
    return sorted((path for path in paths if len(path.parts) > 1), key=str)


def _walk_classes(root: Path) -> Iterator[Path]:
    """Walk a data root; of linked folders, enter those of classes, in either layout."""
    for top in _entries(root):
        if top.is_dir():
            yield from _walk(top, follow_links=top.name.lower() in SPLIT_NAMES)


def _walk(folder: Path, follow_links: bool) -> Iterator[Path]:
    for entry in _entries(folder):
        if entry.is_dir() and (follow_links or not entry.is_symlink()):
            yield from _walk(entry, follow_links=False)
        else:
            yield entry


def _entries(folder: Path) -> Iterator[Path]:
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot list the folder {str(folder)!r}: {error.strerror}.") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.name.encode(errors="replace").decode() != entry.name:
            raise InputError(f"the name {str(entry)!r} is not valid Unicode; rename the file.")
        yield entry


def class_folders(root: Path) -> list[str]:
    """List the names of the class folders, hidden ones left out."""
    tops = _folders_with_images(root)
    if not is_split_layout(tops):
        return _folders(root)
    return sorted({name for top in tops for name in _folders(root / top)})


def _folders_with_images(root: Path) -> set[str]:
    return {path.parts[0] for path in _class_files(root) if is_image_name(path.name)}


def _folders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def stray_images(root: Path) -> list[str]:
    """List the images that lie directly in `root`, where no folder gives them a label."""
    return sorted(p.name for p in root.iterdir() if p.is_file() and is_image_name(p.name))


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIX_FORMATS


def is_dicom_file(path: Path) -> bool:
    """Whether a file's content is DICOM, whatever its name; false when it cannot be read."""
    try:
        with open_regular(path) as file:
            return is_dicom(file.read(DICOM_HEAD_BYTES))
    except OSError:
        return False


def scan_table(root: Path, table_path: Path, label_column: str = LABEL_COLUMN) -> pd.DataFrame:
    """List the images of a CSV or TSV table with the column `path` and one of labels.

    Args:
        root: Folder that the paths start from; either kind of slash may part them.
        table_path: UTF-8 text, with or without a byte order mark; values are parted by
            tabs if it is called `.tsv`, by commas otherwise.
        label_column: The column of labels, called `label` in the result. If it is another
            one than `label`, the table's own `label` is kept as `label_given`.

    Raises:
        InputError: The table is missing, cannot be parsed, is empty, lacks a column or has
            one that cvpipe needs for itself, the column of labels is `path`, or a path leads
            out of `root`.
    """
    table = _check_header(_read_table(table_path), table_path, label_column)
    if table.empty:
        raise InputError(f"{str(table_path)!r} has no rows; list at least one image.")
    # A key later in the dict wins: with the usual label column nothing is set aside.
    table = table.rename(
        columns={"path": "image_id", LABEL_COLUMN: LABEL_GIVEN, label_column: LABEL_COLUMN}
    )
    if not table.columns.is_unique:
        raise InputError(
            f"{str(table_path)!r} has the columns {LABEL_COLUMN!r} and {LABEL_GIVEN!r}; while "
            f"{label_column!r} is the label column, cvpipe keeps the former under the name of the "
            f"latter: rename {LABEL_GIVEN!r}."
        )
    table["label"] = table["label"].str.strip()  # "cat" and "cat " are one class
    if "group" in table:
        table["group"] = table["group"].str.strip()  # and so are the groups "7" and "7 "
    if "split" in table:
        table["split"] = [_split_name(text, table_path) for text in table["split"]]
    table["image_id"] = [_inside(root, text, table_path) for text in table["image_id"]]
    return table


def _check_header(table: pd.DataFrame, table_path: Path, label_column: str) -> pd.DataFrame:
    """Return a table whose columns are those that are needed, and take no name of ours."""
    if label_column == "path":
        raise InputError(
            "the label column is 'path', which names the files of the images; "
            f"choose another column of {str(table_path)!r}, it has {list(table)}."
        )
    missing = [name for name in ("path", label_column) if name not in table]
    if missing:
        raise InputError(
            f"{str(table_path)!r} lacks the column(s) {missing}; it has {list(table)}. "
            f"A table of images needs the columns 'path' and {label_column!r}, parted by commas "
            f"in a .csv file and by tabs in a .tsv file. Instead of {missing[0]!r}, "
            f"{nearest_name(missing[0], table)}"
        )
    # pandas takes a column without a name for row names, and shifts all others.
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(
            f"the rows of {str(table_path)!r} have more values than its header has columns "
            f"({list(table)}); give every column a name."
        )
    for name in table:
        meant = name.strip().lower()
        if meant in ("group", "split") and name != meant:
            raise InputError(
                f"{str(table_path)!r} has a column {name!r}, which would not be used; call it "
                f"{meant!r}, or something else altogether."
            )
    for name in table:
        filled_in = RESERVED_COLUMNS.get("fold" if FOLD_OF_REPEAT.fullmatch(name) else name)
        if filled_in:
            raise InputError(
                f"{str(table_path)!r} has a column {name!r}, where cvpipe itself fills in "
                f"{filled_in}; rename the column."
            )
    return table


def _split_name(text: str, table_path: Path) -> str:
    name = SPLIT_NAMES.get(text.strip().lower())
    if name is None:
        raise InputError(
            f"{str(table_path)!r} has {text!r} in the column 'split'; expected one of "
            f"{sorted(SPLIT_NAMES)} in every row. Correct it, or rename the column."
        )
    return name


def _read_table(path: Path, num_rows: int | None = None) -> pd.DataFrame:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        return pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            sep=separator,
            encoding="utf-8-sig",
            nrows=num_rows,
        )
    except FileNotFoundError:
        raise InputError(f"there is no table {str(path)!r}; give it in data.labels.") from None
    except OSError as error:
        raise InputError(f"cannot read the table {str(path)!r}: {error.strerror}.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip()
        raise InputError(
            f"cannot read the table {str(path)!r}: {reason}; save it as CSV in UTF-8."
        ) from None


def _inside(root: Path, text: str, table_path: Path) -> str:
    """Normalise a path from a table; it must stay inside the data root."""
    path = PureWindowsPath(text)  # understands both kinds of slash, and drives
    normal = posixpath.normpath(path.as_posix())
    if path.anchor or normal == "." or normal.split("/")[0] == "..":
        raise InputError(
            f"{str(table_path)!r} names the image {text!r}; paths must be relative to "
            f"{str(root)!r} and stay inside it."
        )
    return normal


def check_columns(rows: pd.DataFrame) -> pd.DataFrame:
    """Return scanned rows as a manifest.

    Raises:
        InputError: See `frames.check_manifest`.
    """
    first = ["image_id", "label", "group"]
    return frames.check_manifest(rows[first + [name for name in rows if name not in first]])
