"""What image files say about themselves, as numbers: the shortcut baseline.

Classes are often collected in different places, and then differ in size, format or
compression. A classifier that sees nothing else shows how far such a shortcut leads; one
that sees the pixels proves little before it does better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cvpipe.errors import InputError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
# MPO is a JPEG with further pictures behind the first, as many phones write it.
FORMAT_ALIASES = {"MPO": "JPEG"}
FILE_FACTS_COLUMNS = (
    "width",
    "height",
    "channels",
    "file_bytes",
    *(f"format_{name.lower()}" for name in FORMATS),
)


@dataclass(frozen=True)
class FileFacts:
    """What a file says about itself before a pixel is decoded.

    Attributes:
        width: Width in pixels as stored, before EXIF turns the image.
        height: Height in pixels as stored.
        channels: Number of channels as stored; 1 for grey and for a palette.
        format: Format by content, as Pillow names it; MPO counts as JPEG.
        file_bytes: Size of the file.
    """

    width: int
    height: int
    channels: int
    format: str
    file_bytes: int


def read_file_facts(path: Path) -> FileFacts:
    """Read the header of an image file.

    Raises:
        InputError: The file is missing or does not begin as an image of a known format; the
            message names it. Damage behind the header is not noticed.
    """
    try:
        file_bytes = path.stat().st_size
        # Only the formats that cvpipe decodes; see `cvpipe.data.images`.
        with Image.open(path, formats=FORMATS) as image:
            format_name = str(image.format)
            return FileFacts(
                width=image.width,
                height=image.height,
                channels=len(image.getbands()),
                format=FORMAT_ALIASES.get(format_name, format_name),
                file_bytes=file_bytes,
            )
    except UnidentifiedImageError:
        reason = f"its content is none of {', '.join(FORMATS)}"
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, Image.DecompressionBombError) as error:
        reason = str(error).rstrip(".")
    raise InputError(f"cannot read the image {str(path)!r}: {reason}; repair or remove the file.")


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
        [[640, 480, 3, 70000, 0, 1, 0, 0, 0, 0]]
    """
    rows = [
        [fact.width, fact.height, fact.channels, fact.file_bytes]
        + [fact.format == name for name in FORMATS]
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
