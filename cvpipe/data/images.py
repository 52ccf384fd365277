"""Read an image file as `uint8` RGB, and bring it to the size that a contender sees.

One rule for every file, everywhere (training, evaluation, prediction of new files):

1. decoded completely; a file that ends early is unreadable, never half grey (damage inside a
   file is noticed where the format has checksums, such as PNG; JPEG has none);
2. the first frame or page, where there are more;
3. turned upright as its EXIF orientation says, if that can be read;
4. 16-bit grey values are divided by 257 (65,535 becomes 255) and rounded; of 16-bit colour
   values Pillow keeps the upper byte;
5. transparency is laid over white;
6. grey, palette, CMYK and other colour modes become RGB; colour profiles are not applied;
7. resized with an antialiased bilinear filter (Pillow's), after `stretch`, `pad` or `crop`.
"""

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from cvpipe.errors import InputError

Fit = Literal["stretch", "pad", "crop"]
DECODE_RULE = "rgb-1"  # part of every cache key; a change of the rule above needs a new name

SUFFIX_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
# Pillow knows many more formats. Some of them are not pictures of one size, and one (EPS) runs
# a program on the file's content, whatever the file is called; none of them is tried.
FORMATS = sorted(set(SUFFIX_FORMATS.values()))
# MPO is a JPEG with further pictures behind the first, as many phones write it.
FORMAT_ALIASES = {"MPO": "JPEG"}

# What Pillow's own `exif_transpose` does, without its rewriting of the metadata, which fails on
# files whose pixels are sound.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Decoders report damage by any of these, depending on the format; found by damaging files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,
    struct.error,
)


class UnreadableImageError(InputError):
    """A file is not an image that can be decoded completely.

    Attributes:
        finding: `"empty_file"`, `"not_an_image"` or `"unreadable"`.
        reason: Why, without the file's name.
    """

    def __init__(self, finding: str, reason: str) -> None:
        super().__init__(reason)
        self.finding = finding
        self.reason = reason


@dataclass(frozen=True)
class ImageFacts:
    """What a file says about itself.

    Attributes:
        sha256: Hash of the file's bytes.
        pixels_sha256: Hash of the decoded RGB pixels and their shape.
        width: Width in pixels after turning upright.
        height: Height in pixels after turning upright.
        format: Format by content, as Pillow names it.
        mode: Colour mode as stored, as Pillow names it.
        file_bytes: Size of the file.
    """

    sha256: str
    pixels_sha256: str
    width: int
    height: int
    format: str
    mode: str
    file_bytes: int


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file's bytes by the rule of this module.

    Args:
        data: Content of the file.

    Returns:
        `uint8` array of shape `(height, width, 3)`, RGB.

    Raises:
        UnreadableImageError: The bytes are not a complete image.
    """
    return _decode(data)[0]


def inspect_image(data: bytes) -> tuple[np.ndarray, ImageFacts]:
    """Decode an image file's bytes and state their facts.

    Raises:
        UnreadableImageError: The bytes are not a complete image.
    """
    pixels, format_name, mode = _decode(data)
    height, width = pixels.shape[:2]
    facts = ImageFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        pixels_sha256=hash_pixels(pixels),
        width=width,
        height=height,
        format=FORMAT_ALIASES.get(format_name, format_name),
        mode=mode,
        file_bytes=len(data),
    )
    return pixels, facts


def hash_pixels(pixels: np.ndarray) -> str:
    """Hash an image's pixels and shape without copying them."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def read_image(path: Path) -> np.ndarray:
    """Read and decode an image file.

    Raises:
        InputError: The file is missing or is not a complete image; the message names it.
    """
    try:
        return decode_image(path.read_bytes())
    except UnreadableImageError as error:
        raise InputError(f"cannot read the image {str(path)!r}: {error.reason}.") from None
    except OSError as error:
        raise InputError(f"cannot read the image {str(path)!r}: {error.strerror}.") from None


def _decode(data: bytes) -> tuple[np.ndarray, str, str]:
    if not data:
        raise UnreadableImageError("empty_file", "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            format_name, mode = str(image.format), image.mode
            image.load()
            return _to_rgb(image), format_name, mode
    except UnidentifiedImageError:
        reason = f"its content is none of {', '.join(FORMATS)} (it starts with {data[:16]!r})"
        raise UnreadableImageError("not_an_image", reason) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("unreadable", str(error).rstrip(".")) from None
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise UnreadableImageError("unreadable", f"decoding fails: {reason}") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    turn = TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        values = np.asarray(upright)
        return _from_sixteen_bits(65535 - values if _zero_is_white(image) else values)
    if upright.mode == "F":
        raise ValueError(
            "images of floating-point numbers have no agreed white; store 8 or 16 bits"
        )
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(background, rgba)
    return np.asarray(upright.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1  # damaged metadata say nothing, but the pixels are sound


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black; Pillow turns that for 8 bits, not for 16."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _from_sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are outside the 16-bit range 0 to 65535")
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def resize_image(image: np.ndarray, image_size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Bring an image to a size.

    Args:
        image: `uint8` array of shape `(height, width, 3)`.
        image_size: Wanted `(height, width)` in pixels.
        fit: See `cvpipe.config.ImagesSection`. Where a border or a cut cannot be the same on
            both sides, `"pad"` puts the odd pixel to the right or bottom.

    Returns:
        `uint8` array of shape `(*image_size, 3)`.

    Example:
        >>> wide = np.zeros((10, 20, 3), np.uint8)
        >>> [resize_image(wide, (4, 4), fit).shape for fit in ("stretch", "pad", "crop")]
        [(4, 4, 3), (4, 4, 3), (4, 4, 3)]
    """
    height, width = image_size
    picture = Image.fromarray(image)
    bilinear = Image.Resampling.BILINEAR
    if fit == "pad":
        scale = min(width / picture.width, height / picture.height)
        # Pillow's own `pad` rounds the short side of a very long image to zero pixels.
        inner_width = max(1, round(picture.width * scale))
        inner_height = max(1, round(picture.height * scale))
        resized = Image.new("RGB", (width, height))
        resized.paste(
            picture.resize((inner_width, inner_height), bilinear),
            ((width - inner_width) // 2, (height - inner_height) // 2),
        )
    elif fit == "crop":
        resized = ImageOps.fit(picture, (width, height), bilinear)
    else:
        resized = picture.resize((width, height), bilinear)
    return np.asarray(resized)
