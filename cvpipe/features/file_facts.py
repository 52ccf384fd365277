"""What image files say about themselves, as numbers: the shortcut baseline.

Classes are often collected in different places, and then differ in size, format or
compression. A classifier that sees nothing else shows how far such a shortcut leads; one
that sees the pixels proves little before it does better.
"""

import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from cvpipe.errors import InputError
from cvpipe.files import open_regular
from cvpipe.formats import (
    FORMAT_ALIASES,
    FORMATS,
    START_BYTES,
    dicom_damage,
    find_format,
    inflate_dicom,
    open_image,
)

# In the order of the columns, which is part of the feature's identity.
COLUMN_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "DICOM")
# What of a deflated DICOM file is inflated: its header lies before its pixels.
DICOM_HEAD_BYTES = 2**24
DICOM_SIZES = ["Columns", "Rows", "SamplesPerPixel"]
FILE_FACTS_COLUMNS = (
    "width",
    "height",
    "channels",
    "file_bytes",
    *(f"format_{name.lower()}" for name in COLUMN_FORMATS),
)


@dataclass(frozen=True)
class FileFacts:
    """What a file says about itself before a pixel is decoded.

    Attributes:
        width: Width in pixels as stored, before EXIF turns the image.
        height: Height in pixels as stored.
        channels: Number of channels as stored; 1 for grey and for a palette.
        format: Format by content, as Pillow names it, or `"DICOM"`; MPO counts as JPEG.
        file_bytes: Size of the file.
    """

    width: int
    height: int
    channels: int
    format: str
    file_bytes: int


def read_file_facts(path: Path) -> FileFacts:
    """Read the header of an image file.

    No limit of pixels applies, because none is decoded.

    Raises:
        InputError: The file is missing or does not begin as an image of a known format; the
            message names it. Damage behind the header is not noticed.
    """
    try:
        with open_regular(path) as file:
            name = find_format(file.read(START_BYTES))
            file.seek(0)
            if not name:
                raise ValueError(f"its content is none of {', '.join(FORMATS)}")
            read = _read_dicom if name == "DICOM" else functools.partial(_read_with_pillow, name)
            return read(file, path.stat().st_size)
    except OSError as error:
        reason = error.strerror or str(error)
    # A `SyntaxError` is Pillow's word for a damaged header; and some GIF and WebP apply Pillow's
    # limit of pixels by themselves.
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".")
    raise InputError(f"cannot read the image {str(path)!r}: {reason}; repair or remove the file.")


def _read_with_pillow(name: str, file: BinaryIO, file_bytes: int) -> FileFacts:
    with open_image(file, name) as image:
        format_name = str(image.format)
        return FileFacts(
            width=image.width,
            height=image.height,
            channels=len(image.getbands()),
            format=FORMAT_ALIASES.get(format_name, format_name),
            file_bytes=file_bytes,
        )


def _read_dicom(file: BinaryIO, file_bytes: int) -> FileFacts:
    try:
        from pydicom import dcmread  # an extra
    except ModuleNotFoundError:
        raise ValueError("reading DICOM needs the extra: pip install 'cvpipe[dicom]'") from None
    try:
        head, _ = inflate_dicom(file.read(), DICOM_HEAD_BYTES)
        header = dcmread(
            io.BytesIO(head), force=True, stop_before_pixels=True, specific_tags=DICOM_SIZES
        )
        sizes = [int(header.get(keyword) or 0) for keyword in DICOM_SIZES]
    except dicom_damage():
        raise ValueError("its DICOM header is damaged") from None
    if not all(sizes):
        raise ValueError("this DICOM file has no picture")
    width, height, channels = sizes
    return FileFacts(width, height, channels, "DICOM", file_bytes)


def encode_file_facts(facts: Sequence[FileFacts]) -> np.ndarray:
    """Turn the facts of files into numbers.

    Args:
        facts: One entry per file.

    Returns:
        `float32` array of shape `(n, len(FILE_FACTS_COLUMNS))`. The columns of formats are 0
        or 1, all 0 for a format without a column. A size up to 16 MiB is exact; above, it is
        rounded by at most one part in 16 million.

    Example:
        >>> encode_file_facts([FileFacts(640, 480, 3, "PNG", 70_000)]).astype(int).tolist()
        [[640, 480, 3, 70000, 0, 1, 0, 0, 0, 0, 0]]
    """
    rows = [
        [fact.width, fact.height, fact.channels, fact.file_bytes]
        + [fact.format == name for name in COLUMN_FORMATS]
        for fact in facts
    ]
    return np.array(rows, dtype=np.float32).reshape(len(facts), len(FILE_FACTS_COLUMNS))


def describe_files(paths: Sequence[Path]) -> np.ndarray:
    """Describe image files by their facts.

    Args:
        paths: The files.

    Returns:
        `float32` array of shape `(n, len(FILE_FACTS_COLUMNS))`; see `encode_file_facts`.

    Raises:
        InputError: See `read_file_facts`.
    """
    return encode_file_facts([read_file_facts(path) for path in paths])
