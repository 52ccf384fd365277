"""What a model file on disk is: its size and its hash, be it one file or a folder of some.

A file that has others beside it, such as OpenVINO's `.xml`, lies in a folder of its own.
"""

import hashlib
from pathlib import Path


def bytes_of(path: Path) -> int:
    """Add up the bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in _parts(_whole(path)))


def hash_of(path: Path) -> str:
    """Hash a file's bytes, or the names and bytes of all files in a folder.

    Args:
        path: The file, one of OpenVINO, or the folder.

    Returns:
        A SHA-256 as hexadecimal digits. That of a file is the one that `sha256sum` prints.
    """
    whole = _whole(path)
    if whole.is_file():
        return hashlib.sha256(whole.read_bytes()).hexdigest()
    lines = [
        f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.relative_to(whole).as_posix()}\n"
        for part in _parts(whole)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _whole(path: Path) -> Path:
    return path.parent if path.suffix == ".xml" else path


def _parts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(part for part in path.rglob("*") if part.is_file())
