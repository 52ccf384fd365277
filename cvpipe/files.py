"""Files that appear whole or not at all, and reading that ends.

Everything is written beside its place under a name with `.partial` in it and then moved,
so a file exists if and only if it is complete, whenever the process is killed.
"""

import contextlib
import errno
import json
import shutil
import stat
import uuid
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import pandas as pd


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes `path` only when the block succeeds.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as partial:
        ...     _ = partial.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because some writers choose their format by it. A random name,
    # because process numbers repeat: two containers would meet at one partial file, and a
    # killed one would leave a folder in the way of its successor.
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def open_regular(path: Path) -> BufferedReader:
    """Open a file of someone else's for reading.

    Raises:
        OSError: It cannot be opened, or it is a folder, a pipe, which would be waited for, or a
            device, which may have no end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path.open("rb")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file whole or not at all; floats keep every bit."""
    with atomic_path(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
