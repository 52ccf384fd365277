"""Content-addressed rows on disk: what a frozen network or a fixed feature gives for an image.

A *space* is everything but the image that decides a row: decode and resize rule, weights,
layer, runtime, versions. It is a JSON-able dict; its hash names a folder. In it lie
chunks: `<name>.npy` with rows and `<name>.json` with the image hash of each row, the
latter written last, so a chunk counts only when it is whole. Chunks are never changed,
only added or removed, so any number of processes may use a space at the same time.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.files import atomic_path, read_json, write_json, write_text

VERSION = 1  # raise it when the meaning of stored rows changes
CHUNK_ROWS = 256  # some seconds of work: what a kill can lose
DEFAULT_MAX_BYTES = 5_000_000_000


def cache_root() -> Path:
    """Folder of the cache: `CVPIPE_CACHE_DIR`, or `cvpipe` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("CVPIPE_CACHE_DIR") or Path(base) / "cvpipe")


def max_bytes() -> int:
    """Bound on the size of the cache: `CVPIPE_CACHE_BYTES`, or 5 GB.

    Raises:
        InputError: The variable is not a whole number.
    """
    text = os.environ.get("CVPIPE_CACHE_BYTES", str(DEFAULT_MAX_BYTES))
    if not text.isdigit():
        raise InputError(f"CVPIPE_CACHE_BYTES must be a number of bytes, but is {text!r}.")
    return int(text)


def cached_rows(
    space: Mapping[str, Any],
    keys: Sequence[str],
    compute: Callable[[list[int]], np.ndarray],
    row_size: int,
    root: Path,
    track: Callable[[Iterable[int], int], Iterable[int]] = lambda items, _: items,
) -> np.ndarray:
    """Return one row per key, computing only those that are not stored yet.

    Args:
        space: What decides a row besides its key; JSON-able.
        keys: Hash of each image; equal keys share a row.
        compute: Receives positions in `keys` (at most `CHUNK_ROWS`, each key once) and
            returns their rows: `float32`, shape `(len(positions), row_size)`. It must
            give the same bits for an image whatever its company.
        row_size: Length of a row.
        root: Folder of the cache.
        track: Wraps the iterable of chunks to compute, given their number, to show a
            progress bar.

    Returns:
        `float32` array of shape `(len(keys), row_size)`.
    """
    folder = space_folder(space, root)
    rows = np.empty((len(keys), row_size), dtype=np.float32)
    found = _read_chunks(folder, keys, rows)
    first_positions: dict[str, int] = {}
    for position, key in enumerate(keys):
        if key not in found:
            first_positions.setdefault(key, position)
    missing = list(first_positions.values())
    if missing:
        write_json(folder / "space.json", {**space, "version": VERSION})
    starts = range(0, len(missing), CHUNK_ROWS)
    for start in track(starts, len(starts)):
        positions = missing[start : start + CHUNK_ROWS]
        computed = compute(positions)
        if computed.shape != (len(positions), row_size) or computed.dtype != np.float32:
            raise ValueError(
                f"compute must return float32 of shape {(len(positions), row_size)}, "
                f"but returned {computed.dtype} of shape {computed.shape}"
            )
        rows[positions] = computed
        _write_chunk(folder, [keys[p] for p in positions], computed)
    for position, key in enumerate(keys):
        if key in first_positions:
            rows[position] = rows[first_positions[key]]
    return rows


def space_folder(space: Mapping[str, Any], root: Path) -> Path:
    """Name the folder of a space by its content."""
    text = json.dumps({**space, "version": VERSION}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_chunks(folder: Path, keys: Sequence[str], rows: np.ndarray) -> set[str]:
    """Fill `rows` from the chunks of a space and return the keys that were found."""
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    found: set[str] = set()
    for index_path in sorted(folder.glob("*-index.json")):
        index = {key: row for row, key in enumerate(read_json(index_path)) if key in positions}
        if not index:
            continue
        try:
            chunk = np.load(_rows_path(index_path), mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:  # another process has just trimmed the cache
            continue
        for key, row in index.items():
            rows[positions[key]] = chunk[row]
        found.update(index)
        os.utime(index_path)  # the time of last use, for `trim`
    return found


def _rows_path(index_path: Path) -> Path:
    return index_path.with_name(index_path.name.replace("-index.json", ".npy"))


def _write_chunk(folder: Path, keys: list[str], rows: np.ndarray) -> None:
    name = uuid.uuid4().hex
    with atomic_path(folder / f"{name}.npy") as partial:
        np.save(partial, rows, allow_pickle=False)
    write_text(folder / f"{name}-index.json", json.dumps(keys))


def trim(root: Path, limit_bytes: int) -> int:
    """Remove the spaces that were not used for longest until the cache fits its bound.

    Returns:
        Number of bytes that remain.
    """
    folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.exists() else []
    sizes = {f: sum(p.stat().st_size for p in f.iterdir()) for f in folders}
    last_use = {f: max((p.stat().st_mtime for p in f.iterdir()), default=0.0) for f in folders}
    total = sum(sizes.values())
    for folder in sorted(folders, key=lambda f: last_use[f]):
        if total <= limit_bytes:
            break
        shutil.rmtree(folder)
        total -= sizes[folder]
    return total
