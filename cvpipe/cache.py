"""Content-addressed rows on disk: what a frozen network or a fixed feature gives for an image.

A *space* is everything but the image that decides a row: decode and resize rule, weights,
layer, runtime, versions. It is a JSON-able dict; its hash names a folder. In it lie
chunks: `<name>.npy` with rows and `<name>-index.json` with the image hash of each row,
the latter written last, so a chunk counts only when it is whole. Chunks are never changed,
only added or removed, so any number of processes may use a space at the same time. A chunk
that cannot be read, because another process has just removed it or the disk has failed,
counts as not there: its rows are computed again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.files import atomic_path, read_json, write_json, write_text

VERSION = 1  # raise it when the meaning of stored rows changes
CHUNK_ROWS = 256  # some seconds of work: what a kill can lose
DEFAULT_MAX_BYTES = 5_000_000_000
NAME_LENGTH = 32  # hexadecimal digits in the name of a space's folder


def cache_root() -> Path:
    """Folder of the cache: `CVPIPE_CACHE_DIR`, or `cvpipe` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("CVPIPE_CACHE_DIR") or Path(base) / "cvpipe")


def max_bytes() -> int:
    """Bound on the size of the cache: `CVPIPE_CACHE_BYTES`, or 5 GB.

    Raises:
        InputError: The variable is not a whole number.
    """
    text = os.environ.get("CVPIPE_CACHE_BYTES") or str(DEFAULT_MAX_BYTES)
    if not text.isdecimal():
        raise InputError(
            f"the environment variable CVPIPE_CACHE_BYTES must be a whole number of bytes, but is "
            f"{text!r}; unset it or write for example {DEFAULT_MAX_BYTES}."
        )
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
    if "" in keys:
        raise ValueError("an empty key would give different images the same row")
    folder = space_folder(space, root)
    rows = np.empty((len(keys), row_size), dtype=np.float32)
    found = _read_chunks(folder, keys, rows)
    first_positions: dict[str, int] = {}
    for position, key in enumerate(keys):
        if key not in found:
            first_positions.setdefault(key, position)
    missing = list(first_positions.values())
    if missing:
        try:
            with _trimmed_meanwhile():
                write_json(folder / "space.json", {**space, "version": VERSION})
        except OSError as error:
            raise InputError(
                f"cannot write the cache {str(root)!r} ({error.strerror}); name another folder in "
                "the environment variable CVPIPE_CACHE_DIR."
            ) from None
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
    return root / hashlib.sha256(text.encode()).hexdigest()[:NAME_LENGTH]


def _read_chunks(folder: Path, keys: Sequence[str], rows: np.ndarray) -> set[str]:
    """Fill `rows` from the chunks of a space and return the keys that were found."""
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    found: set[str] = set()
    for index_path in sorted(folder.glob("*-index.json")):
        chunk = _read_chunk(index_path, positions, rows.shape[1])
        for key, row in chunk.items():
            rows[positions[key]] = row
        found.update(chunk)
    return found


def _read_chunk(index_path: Path, wanted: Container[str], row_size: int) -> dict[str, np.ndarray]:
    """Map the wanted keys of a chunk to their rows; nothing if it is gone or damaged."""
    rows_path = index_path.with_name(index_path.name.replace("-index.json", ".npy"))
    try:
        keys = read_json(index_path)
        numbers = {key: number for number, key in enumerate(keys) if key in wanted}
        if not numbers:
            return {}
        rows = np.load(rows_path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return {}
    if rows.shape != (len(keys), row_size) or rows.dtype != np.float32:
        return {}
    with contextlib.suppress(OSError):  # a cache that others own can be read all the same
        os.utime(index_path)  # the time of last use, for `trim`
    return {key: rows[number] for key, number in numbers.items()}


def _write_chunk(folder: Path, keys: list[str], rows: np.ndarray) -> None:
    name = uuid.uuid4().hex
    with _trimmed_meanwhile():
        with atomic_path(folder / f"{name}.npy") as partial:
            np.save(partial, rows, allow_pickle=False)
        write_text(folder / f"{name}-index.json", json.dumps(keys))


def _trimmed_meanwhile() -> contextlib.AbstractContextManager[None]:
    """Go on when another process removes the folder that is being written to.

    The rows are computed and handed on; they are only not kept.
    """
    # FileExistsError: the folder went between the two looks that `mkdir` takes at it.
    return contextlib.suppress(FileNotFoundError, FileExistsError)


def trim(root: Path, limit_bytes: int) -> int:
    """Remove the spaces that were not used for longest until the cache fits its bound.

    Nothing but spaces is touched, whatever else lies in the folder.

    Returns:
        Number of bytes that remain.
    """
    sizes, last_use = {}, {}
    for folder in root.glob("[0-9a-f]" * NAME_LENGTH):
        try:
            facts = [path.stat() for path in folder.iterdir()]
        except FileNotFoundError:  # another process is at work in it
            continue
        sizes[folder] = sum(fact.st_size for fact in facts)
        last_use[folder] = max((fact.st_mtime for fact in facts), default=0.0)
    total = sum(sizes.values())
    for folder in sorted(sizes, key=lambda f: last_use[f]):
        if total <= limit_bytes:
            break
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]
    return total
