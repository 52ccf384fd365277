"""Read an image file as `uint8` RGB, and bring it to the size that a contender sees.

One rule for every file, everywhere (training, evaluation, prediction of new files). What of it
can be chosen is a `DecodeRule`; it is stored in the run and in every bundle.

1. Nothing is decoded that has more pixels than `DecodeRule.max_pixels`; the header says so.
2. Decoded completely: a file that ends early is unreadable, never half grey. Damage inside a
   file is noticed where the format has checksums, such as PNG; JPEG has none.
3. The first frame or page, where there are more.
4. Turned upright as its EXIF orientation says, if that can be read.
5. 16-bit grey values: `DecodeRule.white_level` becomes 255, in proportion, rounded, and what is
   above it is 255 as well. A TIFF whose zero is white is turned. Of 16-bit colour values, and of
   16-bit grey with an alpha channel, Pillow keeps the upper byte, whatever the white level.
   Floating-point values are refused, because they have no agreed white.
6. Transparency (an alpha channel, or a transparent grey, colour or palette entry) is laid over
   white.
7. Grey becomes three equal channels, a palette its colours, and CMYK and other colour modes RGB
   by Pillow's plain arithmetic. ICC profiles are *not* applied: the result would depend on the
   colour library and its version, and most programs that will call an exported model ignore
   profiles, so the same file has the same pixels everywhere.
8. DICOM: rescaled and windowed to 0 to 255, `MONOCHROME1` inverted; see `cvpipe.data.dicom`.
9. Resized with an antialiased bilinear filter (Pillow's), along rows and then along columns, after
   `stretch`, `pad` or `crop`.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from cvpipe.data.foreign import foreign_kind
from cvpipe.data.truncation import ends_early
from cvpipe.errors import InputError
from cvpipe.files import open_regular
from cvpipe.formats import (
    DAMAGE,
    FORMAT_ALIASES,
    FORMATS,
    START_BYTES,
    find_format,
    open_image,
)
from cvpipe.sections import DataSection, ImagesSection

Fit = Literal["stretch", "pad", "crop"]
FITS = get_args(Fit)
DECODE_RULE = "rgb-3"  # part of every cache key; a change of the rule above needs a new name

SUFFIX_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".dcm": "DICOM",
    ".dicom": "DICOM",
}
# What is said of each format where formats are listed.
FORMAT_NOTES = {
    "GIF": "the first frame",
    "WEBP": "the first frame",
    "TIFF": "the first page; 8 or 16 bits",
    "PNG": "8 or 16 bits",
    "DICOM": "the first frame; needs the extra: pip install 'cvpipe[dicom]'",
}

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


@dataclass(frozen=True)
class DecodeRule:
    """What can be chosen about how a file becomes pixels.

    Attributes:
        fit: How an image is brought to a size; see `cvpipe.sections.ImagesSection`.
        white_level: The value of 16-bit grey images that becomes 255.
        dicom_window: Centre and width of the grey values of DICOM images that are shown;
            empty: the first window of each file.
        max_pixels: Images of more pixels are not decoded.
    """

    fit: Fit = "stretch"
    white_level: int = 65_535
    dicom_window: tuple[float, ...] = ()
    max_pixels: int = 200_000_000


DEFAULT_RULE = DecodeRule()


def decode_rule(images: ImagesSection, data: DataSection) -> DecodeRule:
    """Collect what a config says about how a file becomes pixels."""
    return DecodeRule(images.fit, images.white_level, images.dicom_window, data.max_pixels)


def bundle_rule(bundle: Mapping[str, Any]) -> DecodeRule:
    """Read from a `bundle.json` how a file becomes pixels.

    What a bundle of an older version does not say is the default, which was the rule then.

    Args:
        bundle: The content of the file.

    Raises:
        InputError: The rule is none that this version of cvpipe has.
    """
    stated = bundle["input"]
    named = stated.get("decode_rule", DECODE_RULE)
    if named != DECODE_RULE:
        raise InputError(
            f"the bundle was made for images decoded by the rule {named!r}, but this version of "
            f"cvpipe has the rule {DECODE_RULE!r}; export it again with this version, or use the "
            "version that exported it."
        )
    fit = stated.get("fit", DEFAULT_RULE.fit)
    if fit not in FITS:
        raise InputError(
            f"the bundle says that images are brought to their size by {fit!r}, which is none of "
            f"{list(FITS)}; export it again."
        )
    known = [part.name for part in fields(DecodeRule) if part.name in stated]
    values = {name: stated[name] for name in known}
    return DecodeRule(**{**values, "dicom_window": tuple(stated.get("dicom_window", ()))})


class UnreadableImageError(InputError):
    """A file is not an image that can be decoded completely.

    Attributes:
        finding: `"empty_file"`, `"not_an_image"`, `"truncated"`, `"unreadable"` or
            `"too_many_pixels"`; see `cvpipe.data.findings`.
        reason: Why, without the file's name.
    """

    def __init__(self, finding: str, reason: str) -> None:
        super().__init__(reason)
        self.finding = finding
        self.reason = reason


@dataclass(frozen=True)
class Reading:
    """How a file was read.

    Attributes:
        format: Format by content, as Pillow names it, or `"DICOM"`; MPO counts as JPEG.
        mode: Colour mode as stored, as Pillow names it; of DICOM the photometric
            interpretation.
        num_pages: Number of frames or pages, of which the first was read; 1 where damage
            behind the first hides how many there are.
        turned: Whether it was turned as the EXIF orientation says.
        transparent: Whether some pixel is really see-through.
        largest_value: Largest stored value of a 16-bit grey image; 0 for all others, for
            which `white_level` means nothing.
        range_used: Share of the range of values from black to white that lies between the
            smallest and the largest one of a DICOM file of more than 8 bits without a window;
            1 for all others, which lose nothing.
        low: Smallest rescaled grey value of such a DICOM file; 0 for all others.
        high: Largest one.
        patient: Pseudonym of the patient of a DICOM file, `""` for others; see
            `cvpipe.data.dicom`.
    """

    format: str
    mode: str
    num_pages: int = 1
    turned: bool = False
    transparent: bool = False
    largest_value: int = 0
    range_used: float = 1.0
    low: float = 0.0
    high: float = 0.0
    patient: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageFacts(Reading):
    """What a file says about itself, besides how it was read.

    Attributes:
        sha256: Hash of the file's bytes.
        width: Width in pixels after turning upright.
        height: Height in pixels after turning upright.
        file_bytes: Size of the file.
    """

    sha256: str
    width: int
    height: int
    file_bytes: int


class Picture(NamedTuple):
    """Decoded pixels, `uint8` of shape `(height, width, 3)`, and how they were read."""

    pixels: np.ndarray
    reading: Reading


def list_formats() -> dict[str, str]:
    """Say of each suffix which format it stands for, and what is read of it.

    Example:
        >>> list_formats()[".tif"]
        'TIFF (the first page; 8 or 16 bits)'
    """
    notes = {name: f" ({note})" for name, note in FORMAT_NOTES.items()}
    return {suffix: name + notes.get(name, "") for suffix, name in SUFFIX_FORMATS.items()}


def decode_image(data: bytes, rule: DecodeRule = DEFAULT_RULE) -> np.ndarray:
    """Decode an image file's bytes by the rule of this module.

    Args:
        data: Content of the file.
        rule: What of it is chosen.

    Returns:
        `uint8` array of shape `(height, width, 3)`, RGB.

    Raises:
        UnreadableImageError: The bytes are not a complete image, or one of too many pixels.
    """
    return _decode(data, rule).pixels


def inspect_image(data: bytes, rule: DecodeRule = DEFAULT_RULE) -> tuple[np.ndarray, ImageFacts]:
    """Decode an image file's bytes and state their facts.

    Raises:
        UnreadableImageError: See `decode_image`.
    """
    pixels, reading = _decode(data, rule)
    height, width = pixels.shape[:2]
    facts = ImageFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        width=width,
        height=height,
        file_bytes=len(data),
        **vars(reading),
    )
    return pixels, facts


def hash_pixels(pixels: np.ndarray) -> str:
    """Hash an image's pixels and shape without copying them."""
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def read_image(path: Path, rule: DecodeRule = DEFAULT_RULE) -> np.ndarray:
    """Read and decode an image file.

    Raises:
        InputError: The file is missing or is not a complete image; the message names it.
    """
    try:
        with open_regular(path) as file:
            return decode_image(file.read(), rule)
    except UnreadableImageError as error:
        raise InputError(f"cannot read the image {str(path)!r}: {error.reason}.") from None
    except OSError as error:
        raise InputError(f"cannot read the image {str(path)!r}: {error.strerror}.") from None


def check_num_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image that could fill the memory, before a pixel of it is decoded.

    Raises:
        UnreadableImageError: It has more than `max_pixels`.
    """
    if width * height > max_pixels:
        reason = (
            f"it has {width} x {height} = {width * height:,} pixels, more than "
            f"data.max_pixels = {max_pixels:,}"
        )
        raise UnreadableImageError("too_many_pixels", reason)


def _decode(data: bytes, rule: DecodeRule) -> Picture:
    if not data:
        raise UnreadableImageError("empty_file", "the file is empty")
    name = find_format(data[:START_BYTES])
    if name == "DICOM":
        return _decode_dicom(data, rule)
    if not name:
        kind = foreign_kind(data)
        like = f"; it looks like {kind}" if kind else ""
        reason = f"its content is none of {', '.join(FORMATS)}{like}"
        raise UnreadableImageError("not_an_image", reason)
    try:
        with open_image(io.BytesIO(data), name) as image:
            check_num_pixels(*image.size, rule.max_pixels)
            mode, turned = image.mode, False
            if isinstance(image, TiffImageFile):
                turned = _orientation(image) in TURNS  # loading turns it and forgets the mark
                # Where there is memory for the pixels already, the limit is not asked again.
                image.im = Image.core.new(mode, getattr(image, "_tile_size", image.size))
            image.load()
            return _to_picture(image, mode, turned, rule)
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError as error:
        # Some GIF and WebP ask for Pillow's limit by themselves, from 358 million pixels on.
        reason = f"{str(error).rstrip('.')}; that is Pillow's own limit, not data.max_pixels"
        raise UnreadableImageError("too_many_pixels", reason) from None
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        if ends_early(data, name):
            raise UnreadableImageError("truncated", f"the file ends early: {reason}") from None
        raise UnreadableImageError("unreadable", f"decoding fails: {reason}") from None


def _decode_dicom(data: bytes, rule: DecodeRule) -> Picture:
    try:
        from cvpipe.data.dicom import decode_dicom  # needs pydicom, which is an extra
    except ModuleNotFoundError:
        reason = "reading DICOM needs the extra: pip install 'cvpipe[dicom]'"
        raise UnreadableImageError("unreadable", reason) from None
    return decode_dicom(data, rule)


def _to_picture(image: Image.Image, mode: str, turned: bool, rule: DecodeRule) -> Picture:
    turn = TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    largest_value, transparent = 0, False
    if upright.mode.startswith("I"):
        values = _check_sixteen_bits(np.asarray(upright))
        see_through = values == image.info.get("transparency", -1)  # one value of a PNG
        transparent = bool(see_through.any())
        largest_value = int(values.max(initial=0, where=~see_through))
        pixels = _from_sixteen_bits(values, rule.white_level, _zero_is_white(image))
        pixels[see_through] = 255
    elif upright.mode == "F":
        reason = "images of floating-point numbers have no agreed white; store 8 or 16 bits"
        raise UnreadableImageError("unreadable", reason)
    else:
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            transparent = bool(np.asarray(rgba.getchannel("A")).min() < 255)
            background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(background, rgba)
        pixels = np.asarray(upright.convert("RGB"))
    name = str(image.format)
    return Picture(
        pixels,
        Reading(
            format=FORMAT_ALIASES.get(name, name),
            mode=mode,
            num_pages=_num_pages(image),
            turned=turned or turn is not None,
            transparent=transparent,
            largest_value=largest_value,
        ),
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1  # damaged metadata say nothing, but the pixels are sound


def orientation_of(data: bytes) -> int:
    """Read from an image file how it has to be turned; a key of `TURNS`, or none of them."""
    try:
        with open_image(io.BytesIO(data), find_format(data[:START_BYTES])) as image:
            return _orientation(image)
    except DAMAGE:
        return 1  # damaged metadata say nothing


def _num_pages(image: Image.Image) -> int:
    """Count frames or pages; called last, because counting them moves to the last one."""
    try:
        return int(getattr(image, "n_frames", 1))
    except (*DAMAGE, Image.DecompressionBombError):
        return 1  # damage behind the first page, whose pixels are sound


def _zero_is_white(image: Image.Image) -> bool:
    """Whether a TIFF counts from white to black; Pillow turns that for 8 bits, not for 16."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0


def _check_sixteen_bits(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65_535:
        reason = "its values are outside the 16-bit range 0 to 65535"
        raise UnreadableImageError("unreadable", reason)
    return values


def _from_sixteen_bits(values: np.ndarray, white_level: int, zero_is_white: bool) -> np.ndarray:
    values = np.minimum(values.astype(np.uint32), white_level)
    if zero_is_white:
        values = white_level - values
    # Half a step is added before dividing, which rounds; 510 * 65,535 fits into 32 bits.
    grey = ((values * 510 + white_level) // (2 * white_level)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def resize_image(image: np.ndarray, image_size: tuple[int, int], fit: Fit) -> np.ndarray:
    """Bring an image to a size.

    Args:
        image: `uint8` array of shape `(height, width, 3)`.
        image_size: Wanted `(height, width)` in pixels.
        fit: See `cvpipe.sections.ImagesSection`. Where a border or a cut cannot be the same on
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
    if fit == "pad":
        scale = min(width / picture.width, height / picture.height)
        # Pillow's own `pad` rounds the short side of a very long image to zero pixels.
        inner_width = max(1, round(picture.width * scale))
        inner_height = max(1, round(picture.height * scale))
        resized = Image.new("RGB", (width, height))
        resized.paste(
            _resample(picture, inner_width, inner_height),
            ((width - inner_width) // 2, (height - inner_height) // 2),
        )
    elif fit == "crop":
        scale = max(width / picture.width, height / picture.height)
        left = max(0.0, (picture.width - width / scale) / 2)
        top = max(0.0, (picture.height - height / scale) / 2)
        resized = _resample(picture, width, height, left, top)
    else:
        resized = _resample(picture, width, height)
    return np.asarray(resized)


def _resample(
    picture: Image.Image, width: int, height: int, left: float = 0.0, top: float = 0.0
) -> Image.Image:
    """Resize by the bilinear filter: first along rows, then along columns.

    In one call, Pillow 13 takes columns first where an image is tall. That moves some values by one
    grey level, and a model would see other pixels with another version of Pillow.

    Args:
        picture: What is resized.
        width: Of the result.
        height: Of the result.
        left: How much is cut off at the left and at the right before, in pixels.
        top: The same at the top and at the bottom.
    """
    bilinear = Image.Resampling.BILINEAR
    right, bottom = picture.width - left, picture.height - top
    wide = picture.resize((width, picture.height), bilinear, (left, 0, right, picture.height))
    return wide.resize((width, height), bilinear, (0, top, width, bottom))
