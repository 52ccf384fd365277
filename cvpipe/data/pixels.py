"""Decode images once, and keep their pixels where there is room for them.

Training reads every image once per epoch, and decoding costs far more than reading. So paths of
images go in and a sequence comes out whose items are `uint8` pixels of one size:

- `"memory"`: decoded once into the cache and copied into one array,
- `"mapped"`: decoded once into the cache and mapped from there,
- `"files"`: there is no room, so every image is decoded whenever it is read.

Where pixels are kept never changes one of them.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from cvpipe.cache import MappedRows, Track, mapped_rows, max_bytes
from cvpipe.data.augment import stored_size
from cvpipe.data.images import DECODE_RULE, DecodeRule
from cvpipe.data.jpeg import OpenedImage, open_photo
from cvpipe.data.threads import load_batches
from cvpipe.files import open_regular
from cvpipe.formats import reader_versions
from cvpipe.sections import AugmentSection

Storage = Literal["memory", "mapped", "files"]

BATCH_SIZE = 16  # images that a thread decodes at once
MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def image_space(image_size: tuple[int, int], rule: DecodeRule) -> dict[str, Any]:
    """State all that decides the pixels of a file, for the key of a cache."""
    return {
        "image_size": image_size,
        "decode": DECODE_RULE,
        "fit": rule.fit,
        "white_level": rule.white_level,
        "dicom_window": rule.dicom_window,
        **reader_versions(),
    }


def num_pixel_bytes(num_images: int, image_size: tuple[int, int]) -> int:
    """Count the bytes of decoded images of `image_size` = `(height, width)`."""
    height, width = image_size
    return num_images * height * width * 3


def choose_storage(
    num_images: int, image_size: tuple[int, int], budget_bytes: int, available_bytes: int
) -> Storage:
    """Choose where decoded pixels are kept.

    They may fill half of the cache, whose other half is left to features, and a quarter of the
    free memory, of which a network that is trained needs the most.

    Args:
        num_images: How many images.
        image_size: `(height, width)` in pixels at which they are kept.
        budget_bytes: Bound on the size of the cache; see `cvpipe.cache.max_bytes`.
        available_bytes: Free memory; see `free_memory_bytes`.

    Example:
        >>> choose_storage(1_000, (100, 100), budget_bytes=60_000_000, available_bytes=120_000_000)
        'memory'
        >>> choose_storage(1_000, (100, 100), budget_bytes=60_000_000, available_bytes=119_999_999)
        'mapped'
        >>> choose_storage(1_000, (100, 100), budget_bytes=59_999_999, available_bytes=120_000_000)
        'files'
    """
    needed = num_pixel_bytes(num_images, image_size)
    if 2 * needed > budget_bytes:
        return "files"
    return "memory" if 4 * needed <= available_bytes else "mapped"


def describe_storage(storage: Storage, num_images: int, image_size: tuple[int, int]) -> str:
    """Say where decoded pixels are kept.

    Example:
        >>> describe_storage("memory", 3_000, (256, 256))
        '3,000 images decoded once at 256x256 pixels, in memory (590 MB)'
    """
    height, width = image_size
    images = f"{num_images:,} image{'' if num_images == 1 else 's'}"
    size = f"{num_pixel_bytes(num_images, image_size) / 1e6:,.0f} MB"
    if storage == "files":
        return (
            f"{images} decoded anew whenever they are read; at {height}x{width} pixels ({size}) "
            "they would fill more than half of the cache"
        )
    place = "in memory" if storage == "memory" else "mapped from the cache on disk"
    return f"{images} decoded once at {height}x{width} pixels, {place} ({size})"


def free_memory_bytes(meminfo: Path = MEMINFO, container: Path = CONTAINER) -> int:
    """Estimate how much memory can be filled without pushing out what is in use.

    On Linux what the kernel calls available, and in a container with a limit (version 2 of its
    control groups) at most what the limit leaves. On macOS half of all memory, because nothing
    tells how much is free. Where nothing is known, as on Windows, 0.

    Args:
        meminfo: The kernel's figures.
        container: The folder of the container's limit.
    """
    return min(_machine_bytes(meminfo), _container_bytes(container))


def _machine_bytes(meminfo: Path) -> int:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 0


def _container_bytes(container: Path) -> int:
    try:
        limit = (container / "memory.max").read_text().strip()
        used = int((container / "memory.current").read_text())
    except OSError:
        return sys.maxsize
    # Without a limit the file says "max".
    return max(0, int(limit) - used) if limit.isdecimal() else sys.maxsize


def decoded_pixels(
    paths: Sequence[Path],
    sha256s: Sequence[str],
    image_size: tuple[int, int],
    rule: DecodeRule,
    threads: int,
    root: Path,
    track: Track = lambda items, _: items,
) -> MappedRows:
    """Decode the images that the cache does not hold yet, and map the pixels of all.

    What was decoded before an error or a kill stays in the cache. For the storage `"memory"` call
    `to_memory` of the result.

    Args:
        paths: Image files.
        sha256s: Hash of each file's bytes; equal files are decoded once.
        image_size: `(height, width)` in pixels.
        rule: How a file becomes pixels.
        threads: Number of threads that decode; the result does not depend on it.
        root: Folder of the cache.
        track: Shows the progress; see `cvpipe.cache.cached_rows`.

    Returns:
        One `uint8` array of shape `(*image_size, 3)` per path.

    Raises:
        InputError: An image cannot be read, and the message names it; or the cache cannot be
            written.
    """

    def decode(positions: list[int]) -> np.ndarray:
        chosen = [paths[position] for position in positions]
        return np.concatenate(list(load_batches(chosen, image_size, rule, BATCH_SIZE, threads)))

    space = {"pixels": "uint8", **image_space(image_size, rule)}
    shape = (*image_size, 3)
    return mapped_rows(space, sha256s, decode, shape, np.dtype(np.uint8), root, track)


class ImageSource(Protocol):
    """Images by position, opened on demand."""

    def open(self, position: int) -> OpenedImage:
        """Read the header of an image; see `cvpipe.data.jpeg.open_photo`."""


class ImageFiles:
    """Image files, read anew whenever they are asked for."""

    def __init__(self, paths: Sequence[Path], rule: DecodeRule) -> None:
        self.paths = paths
        self.rule = rule

    def open(self, position: int) -> OpenedImage:
        """Read the header of a file."""
        with open_regular(self.paths[position]) as file:
            return open_photo(file.read(), self.rule)


class DecodedImages:
    """Images that are decoded already: an array, or rows of a memory-mapped cache."""

    def __init__(self, rows: MappedRows | np.ndarray) -> None:
        self.rows = rows

    def open(self, position: int) -> OpenedImage:
        """Look at a row."""
        pixels = self.rows[position]
        return OpenedImage((pixels.shape[0], pixels.shape[1]), lambda _: pixels)


def choose_source(
    paths: Sequence[Path],
    sha256s: Sequence[str],
    image_size: tuple[int, int],
    augment: AugmentSection,
    rule: DecodeRule,
    threads: int,
    root: Path,
    track: Track = lambda items, _: items,
) -> tuple[ImageSource, str]:
    """Decide where training images are kept, and prepare that.

    Decoded once into memory or the cache where they fit, read as files otherwise. Between memory
    and cache no pixel differs; a file has more pixels than what is kept of it, so its crops are
    sharper. Crops of images that evaluation pads or cuts are always made from files.

    Args:
        paths: Image files.
        sha256s: Hash of each file's bytes.
        image_size: `(height, width)` of what is trained on.
        augment: What crops need decides the size that is kept.
        rule: How a file becomes pixels.
        threads: Threads that decode.
        root: Folder of the cache.
        track: As in `cvpipe.cache.mapped_rows`.

    Returns:
        The source, and a sentence about it for people.
    """
    if augment.crop == "resized" and rule.fit != "stretch":
        # A decoded picture has bars, or has lost its ends, before a part of it is cut.
        said = f"every image is read anew in each epoch, because its fit is {rule.fit!r}"
        return ImageFiles(paths, rule), said
    size = stored_size(augment, image_size)
    storage = choose_storage(len(paths), size, max_bytes(), free_memory_bytes())
    said = describe_storage(storage, len(paths), size)
    if storage == "files":
        return ImageFiles(paths, rule), said
    rows = decoded_pixels(paths, sha256s, size, rule, threads, root, track)
    return DecodedImages(rows.to_memory() if storage == "memory" else rows), said
