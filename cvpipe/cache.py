"""Content-addressed rows on disk: features of images, and their decoded pixels.

A row is an array that depends on nothing but a space and an image: what a frozen network or a fixed
feature gives, or the pixels themselves. Small rows are handed over in one array (`cached_rows`),
large ones stay on disk and are mapped (`mapped_rows`).

A *space* is everything but the image that decides a row: decode and resize rule, weights,
layer, runtime, versions. It is a JSON-able dict; its hash names a folder. In it lie
chunks: `<name>.npy` with rows and `<name>-index.json` with the image hash of each row,
the latter written last, so a chunk counts only when it is whole. Chunks are never changed,
only added or removed, so any number of processes may use a space at the same time. A chunk
that cannot be read, because another process has just removed it or the disk has failed,
counts as not there: its rows are computed again.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.files import atomic_path, read_json, write_json, write_text

VERSION = 1  # raise it when the meaning of stored rows changes
CHUNK_ROWS = 256  # some seconds of work: what a kill can lose
# A mapping holds a file descriptor, and some systems allow a process no more than 256 of them.
MAX_MAPPED_CHUNKS = 128
MAPPED_BYTES = 32_000_000  # so small rows come in larger chunks, which together map 4 GB
MAX_CHUNK_BYTES = 64_000_000  # and large rows in smaller ones, some of which are in memory at once
DEFAULT_MAX_BYTES = 5_000_000_000
NAME_LENGTH = 32  # hexadecimal digits in the name of a space's folder
UNREADABLE = (OSError, ValueError, EOFError)  # what a chunk that is gone or damaged raises

Compute = Callable[[list[int]], np.ndarray]
Track = Callable[[Iterable[int], int], Iterable[int]]


class _Chunk(NamedTuple):
    """Rows of one file, and which of them belong to which wanted key."""

    path: Path
    rows: np.ndarray
    numbers: dict[str, int]


class MappedRows:
    """Rows that stay on disk, as a sequence: `rows[position]` is a read-only view.

    Any number of threads may read at the same time. Another process may trim the cache
    meanwhile: what is mapped stays valid (POSIX), and a row whose chunk is gone is computed
    whenever it is asked for, so it is slower but the same. Of many chunks only the last ones used
    are kept mapped, at most `MAX_MAPPED_CHUNKS` in a process.
    """

    def __init__(
        self,
        places: Sequence[tuple[Path, int]],
        compute: Compute,
        row_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        self._places = places
        self._compute = compute
        self._row_shape = row_shape
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, position: int) -> np.ndarray:
        path, number = self._places[position]
        try:
            return _map_chunk(path)[number]
        except UNREADABLE:
            row = self._compute([range(len(self))[position]])[0]
            row.flags.writeable = False
            return row

    def to_memory(self) -> np.ndarray:
        """Copy all rows into one array of shape `(len(self), *row_shape)`."""
        rows = np.empty((len(self), *self._row_shape), dtype=self._dtype)
        for position in range(len(self)):
            rows[position] = self[position]
        return rows


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
    compute: Compute,
    row_size: int,
    root: Path,
    track: Track = lambda items, _: items,
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

    Raises:
        InputError: The cache cannot be written.
    """
    rows = np.empty((len(keys), row_size), dtype=np.float32)
    positions: dict[str, list[int]] = {}
    for position, key in enumerate(keys):
        positions.setdefault(key, []).append(position)
    chunks = _chunks(
        space, keys, compute, (row_size,), rows.dtype, root, track, CHUNK_ROWS, mmap_mode=None
    )
    for chunk in chunks:
        for key, number in chunk.numbers.items():
            rows[positions[key]] = chunk.rows[number]
    return rows


def mapped_rows(
    space: Mapping[str, Any],
    keys: Sequence[str],
    compute: Compute,
    row_shape: tuple[int, ...],
    dtype: np.dtype,
    root: Path,
    track: Track = lambda items, _: items,
) -> MappedRows:
    """Store one row per key, computing only those that are not stored yet, and map them.

    A few chunks of at most 64 MB are in memory at a time, however many rows there are.

    Args:
        space: See `cached_rows`.
        keys: See `cached_rows`.
        compute: As in `cached_rows`, with rows of `row_shape` and `dtype`; it receives more than
            `CHUNK_ROWS` positions where these have less than `MAPPED_BYTES`. It is kept for
            rows whose chunk is gone when they are read, so any thread may call it.
        row_shape: Shape of a row.
        dtype: Type of its values.
        root: Folder of the cache.
        track: See `cached_rows`.

    Raises:
        InputError: The cache cannot be written.
    """
    places: dict[str, tuple[Path, int]] = {}
    row_bytes = math.prod(row_shape) * dtype.itemsize
    usual = min(CHUNK_ROWS, MAX_CHUNK_BYTES // row_bytes)
    chunk_rows = max(1, usual, MAPPED_BYTES // row_bytes)
    chunks = _chunks(space, keys, compute, row_shape, dtype, root, track, chunk_rows, mmap_mode="r")
    for chunk in chunks:
        for key, number in chunk.numbers.items():
            places[key] = (chunk.path, number)
    return MappedRows([places[key] for key in keys], compute, row_shape, dtype)


def space_folder(space: Mapping[str, Any], root: Path) -> Path:
    """Name the folder of a space by its content."""
    text = json.dumps({**space, "version": VERSION}, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:NAME_LENGTH]


def _chunks(
    space: Mapping[str, Any],
    keys: Sequence[str],
    compute: Compute,
    row_shape: tuple[int, ...],
    dtype: np.dtype,
    root: Path,
    track: Track,
    chunk_rows: int,
    mmap_mode: Literal["r"] | None,
) -> Iterator[_Chunk]:
    """Give every key once: in the chunks that are stored, then in those that are computed."""
    if "" in keys:
        raise ValueError("an empty key would give different images the same row")
    folder = space_folder(space, root)
    missing: dict[str, int] = {}
    for position, key in enumerate(keys):
        missing.setdefault(key, position)
    for index_path in sorted(folder.glob("*-index.json")):
        chunk = _read_chunk(index_path, missing, row_shape, dtype, mmap_mode)
        if chunk:
            for key in chunk.numbers:
                del missing[key]
            yield chunk
    if missing:
        with _writing(root):
            write_json(folder / "space.json", {**space, "version": VERSION})
    positions = list(missing.values())
    starts = range(0, len(positions), chunk_rows)
    for start in track(starts, len(starts)):
        some = positions[start : start + chunk_rows]
        rows = compute(some)
        if rows.shape != (len(some), *row_shape) or rows.dtype != dtype:
            raise ValueError(
                f"compute must return {dtype} of shape {(len(some), *row_shape)}, "
                f"but returned {rows.dtype} of shape {rows.shape}"
            )
        numbers = {keys[position]: number for number, position in enumerate(some)}
        path = folder / f"{uuid.uuid4().hex}.npy"
        with _writing(root):
            _write_chunk(path, list(numbers), rows)
        yield _Chunk(path, rows, numbers)


def _read_chunk(
    index_path: Path,
    wanted: Container[str],
    row_shape: tuple[int, ...],
    dtype: np.dtype,
    mmap_mode: Literal["r"] | None,
) -> _Chunk | None:
    """Open a chunk that has wanted keys; None if it has none, is gone or is damaged."""
    path = index_path.with_name(index_path.name.replace("-index.json", ".npy"))
    try:
        keys = read_json(index_path)
        numbers = {key: number for number, key in enumerate(keys) if key in wanted}
        if not numbers:
            return None
        rows = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except UNREADABLE:
        return None
    if rows.shape != (len(keys), *row_shape) or rows.dtype != dtype:
        return None
    with contextlib.suppress(OSError):  # a cache that others own can be read all the same
        os.utime(index_path)  # the time of last use, for `trim`
    return _Chunk(path, rows, numbers)


@functools.lru_cache(maxsize=MAX_MAPPED_CHUNKS)
def _map_chunk(path: Path) -> np.ndarray:
    # Without NumPy's own class for mappings, whose views cost several times as much.
    return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)


def _write_chunk(path: Path, keys: list[str], rows: np.ndarray) -> None:
    with atomic_path(path) as partial:
        np.save(partial, rows, allow_pickle=False)
    write_text(path.with_name(f"{path.stem}-index.json"), json.dumps(keys))


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Go on when another process removes the folder that is being written to.

    The rows are computed and handed on; they are only not kept.

    Raises:
        InputError: The cache cannot be written.
    """
    try:
        yield
    # FileExistsError: the folder went between the two looks that `mkdir` takes at it.
    except (FileNotFoundError, FileExistsError):
        return
    except OSError as error:
        raise InputError(
            f"cannot write the cache {str(root)!r} ({error.strerror or error}); name another "
            "folder in the environment variable CVPIPE_CACHE_DIR."
        ) from None


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
