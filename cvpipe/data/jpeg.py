"""Decode plain JPEG files faster than Pillow does, to the same pixels, and in halves.

Pillow stays the rule (`cvpipe.data.images`). What libjpeg-turbo finds anything to say about, be it
damage or a colour space of print, is handed to that rule, so no file is read in a way of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from cvpipe.data.images import TURNS, DecodeRule, check_num_pixels, decode_image, orientation_of

PLAIN = ("Gray", "YCbCr")
# The sizes that libjpeg-turbo decodes to faster than to the full one; 5/8 and its like are slower.
REDUCTIONS = (1, 2, 4, 8)
START, APP1, START_OF_SCAN = b"\xff\xd8", 0xE1, 0xDA


class OpenedImage(NamedTuple):
    """An image whose header is known and whose pixels are decoded on demand.

    Attributes:
        size: `(height, width)` in pixels, upright.
        decode: Returns the `uint8` pixels, of shape `(height, width, 3)`, given one of
            `REDUCTIONS`: sides are divided by it, rounded up, where the file can do so;
            otherwise they come in full.
    """

    size: tuple[int, int]
    decode: Callable[[int], np.ndarray]


def open_photo(data: bytes, rule: DecodeRule) -> OpenedImage:
    """Read the header of an image file.

    Args:
        data: Content of the file.
        rule: How it becomes pixels.

    Raises:
        UnreadableImageError: The file cannot be decoded; of a plain JPEG only `decode` says so.
    """
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    # Not a JPEG, or one of 12 bits, or damaged; of rare subsampling KeyError.
    except (ValueError, KeyError):
        colour = ""
    if colour not in PLAIN:
        pixels = decode_image(data, rule)
        return OpenedImage((pixels.shape[0], pixels.shape[1]), lambda _: pixels)
    check_num_pixels(width, height, rule.max_pixels)
    turn = TURNS.get(orientation_of(data)) if has_metadata(data) else None
    lying = turn in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
    )

    def decode(reduction: int) -> np.ndarray:
        try:
            pixels = simplejpeg.decode_jpeg(
                data, min_height=-(-height // reduction), min_width=-(-width // reduction)
            )
        except ValueError:
            return decode_image(data, rule)
        return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))

    return OpenedImage((width, height) if lying else (height, width), decode)


def has_metadata(data: bytes) -> bool:
    """Whether a JPEG has a segment in which its orientation could stand (Exif or XMP)."""
    position = len(START)
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data):
        marker = data[position + 1]
        if marker == APP1:
            return True
        if marker == START_OF_SCAN:
            return False
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return True  # not as expected: let Pillow look


def choose_reduction(box: tuple[int, ...], image_size: tuple[int, int]) -> int:
    """Choose the largest reduction that leaves a crop at least as many pixels as are wanted.

    Args:
        box: Top, left, height and width of the crop in pixels of the full image; empty where
            the whole image is shown as evaluation shows it, which is decoded in full.
        image_size: `(height, width)` to which it is brought.

    Example:
        >>> choose_reduction((0, 0, 1500, 2000), (224, 224))
        4
        >>> choose_reduction((0, 0, 375, 500), (224, 224)), choose_reduction((), (224, 224))
        (1, 1)
    """
    if not box:
        return 1
    spare = min(box[2] // image_size[0], box[3] // image_size[1])
    return max((reduction for reduction in REDUCTIONS if reduction <= spare), default=1)


def reduce_box(
    box: tuple[int, ...], size: tuple[int, int], reduced: tuple[int, ...]
) -> tuple[int, ...]:
    """Find a crop of an image in a smaller copy of it.

    Args:
        box: As in `choose_reduction`.
        size: `(height, width)` of the image.
        reduced: The same of the copy; further numbers are ignored.
    """
    if not box or size == reduced[:2]:
        return box
    starts, lengths = [], []
    for start, length, side, reduced_side in zip(box[:2], box[2:], size, reduced, strict=False):
        scale = reduced_side / side
        first = min(round(start * scale), reduced_side - 1)
        starts.append(first)
        lengths.append(max(1, min(round(length * scale), reduced_side - first)))
    return (*starts, *lengths)
