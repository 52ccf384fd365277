"""Read a DICOM file as `uint8` RGB. Needs the extra `dicom` (pydicom).

The rule, for the first frame:

1. Colour (`RGB`, `YBR_*`, `PALETTE COLOR`) becomes RGB as pydicom does it; more than 8 bits per
   value are scaled to 8.
2. Grey values pass the file's modality table, or its rescale slope and intercept.
3. The window of the `DecodeRule`, if it has one; else the file's first table of values of
   interest (VOI LUT), else its first window, else the whole range that the stored bits can
   express. Its lower end becomes 0, its upper end 255, and what lies outside is cut. Values
   that fill little of the whole range lose most of their levels; `Reading.range_used` says so.
4. `MONOCHROME1`, whose small values are bright, is inverted at the end.

Overlays, private data and everything else that is not the picture are left out. Of a
patient nothing is kept but a pseudonym: run folders are shared.

References:
    DICOM Standard, Part 3, C.7.6.3.1.2 (photometric interpretation), C.11.1 (modality LUT),
    C.11.2 (VOI LUT; C.11.2.1.2 has the formula of the window).
"""

import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Jpeg2KImagePlugin, JpegImagePlugin
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.pixels.processing import apply_voi
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from cvpipe.data.images import (
    DecodeRule,
    Picture,
    Reading,
    UnreadableImageError,
    check_num_pixels,
)
from cvpipe.formats import dicom_damage, inflate_dicom

DICOM_DAMAGE = dicom_damage()
# What a deflated file may hold besides its pixels.
MAX_HEAD_BYTES = 2**24
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PSEUDONYM_DIGITS = 16


class Used(NamedTuple):
    """What part of its range a file uses; see `Reading`."""

    range_used: float = 1.0
    low: float = 0.0
    high: float = 0.0


def decode_dicom(data: bytes, rule: DecodeRule) -> Picture:
    """Decode a DICOM file's bytes by the rule of this module.

    Raises:
        UnreadableImageError: The bytes are not a complete DICOM image, one of too many
            pixels, or compressed in a way that pydicom cannot decode here.
    """
    try:
        dataset = dcmread(io.BytesIO(_inflate(data, rule.max_pixels)), force=True)
        _check_has_pixels(dataset)
        check_num_pixels(int(dataset.Columns), int(dataset.Rows), rule.max_pixels)
        values = _first_frame(dataset, rule.max_pixels)
        pixels, used = _to_rgb(values, dataset, rule)
        return Picture(
            pixels,
            Reading(
                format="DICOM",
                mode=str(dataset.PhotometricInterpretation),
                num_pages=_num_frames(dataset),
                **used._asdict(),
                patient=pseudonym(dataset),
            ),
        )
    except UnreadableImageError:
        raise
    except DICOM_DAMAGE as error:
        # Of several decoders pydicom writes one line each.
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise UnreadableImageError("unreadable", f"decoding fails: {reason}") from None


def pseudonym(dataset: Dataset) -> str:
    """Name the patient of a file without telling who it is.

    Returns:
        16 hexadecimal digits of the hash of the patient's id; of the study's id where there
        is none; `""` where there is neither. It is no anonymisation: the hash has no salt,
        since the same files must give the same run, so who knows an id finds it again, and
        short ids can be guessed by trying all.
    """
    for keyword in ("PatientID", "StudyInstanceUID"):
        identity = str(dataset.get(keyword) or "").strip()
        if identity:
            return hashlib.sha256(identity.encode()).hexdigest()[:PSEUDONYM_DIGITS]
    return ""


def apply_window(
    values: np.ndarray, centre: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Map a window of grey values to shares of white.

    Args:
        values: Grey values in the unit of the window.
        centre: Middle of the window.
        width: Its width.
        function: `"LINEAR"`, `"LINEAR_EXACT"` or `"SIGMOID"`.

    Returns:
        `float64` array in [0, 1].

    Raises:
        ValueError: The width or the function is none that the standard has.

    Example:
        >>> apply_window(np.array([-9, 10, 11, 12, 99]), centre=11.5, width=3).tolist()
        [0.0, 0.0, 0.5, 1.0, 1.0]

    References:
        DICOM Standard, Part 3, C.11.2.1.2 and C.11.2.1.3.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"a window of the unknown function {function!r}")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"a window of width {width:g}")
    distance = np.asarray(values, dtype=np.float64) - centre
    if function == "SIGMOID":
        # Far outside the window, where the exponential overflows, the share is 0 all the same.
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * distance / width, -700.0, 700.0)))
    if function == "LINEAR":
        distance, width = distance + 0.5, width - 1
        if width == 0:
            return (distance > 0).astype(np.float64)
    return np.clip(distance / width + 0.5, 0.0, 1.0)


def _inflate(data: bytes, max_pixels: int) -> bytes:
    inflated, complete = inflate_dicom(data, MAX_HEAD_BYTES)
    max_bytes = MAX_HEAD_BYTES
    if not complete and len(inflated) == max_bytes:
        header = dcmread(io.BytesIO(inflated), force=True, stop_before_pixels=True)
        check_num_pixels(int(header.Columns), int(header.Rows), max_pixels)
        max_bytes += min(get_expected_length(header), 3 * max_pixels)
        inflated, complete = inflate_dicom(data, max_bytes)
    if not complete and len(inflated) == max_bytes:
        reason = (
            f"it is deflated and holds more than {max_bytes:,} bytes, more than its pixels need "
            f"or data.max_pixels = {max_pixels:,} allows"
        )
        raise UnreadableImageError("too_many_pixels", reason)
    if not complete:
        raise UnreadableImageError("truncated", "the file ends early, in its deflated part")
    return inflated


def _check_has_pixels(dataset: Dataset) -> None:
    if any(keyword in dataset for keyword in PIXELS):
        return
    kind = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = str(getattr(kind, "name", "") or "")
    if "Rows" in dataset or name.endswith("Image Storage"):
        raise UnreadableImageError("truncated", "the file ends before its pixels")
    if not name:
        reason = "it begins like DICOM, but does not say what it holds"
        raise UnreadableImageError("not_an_image", reason)
    raise UnreadableImageError("unreadable", f"this DICOM file has no pixels; it is a {name!r}")


def _first_frame(dataset: Dataset, max_pixels: int) -> np.ndarray:
    # A file without a preamble does not say how it is encoded, but pydicom has found it out.
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = _encoding(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        if not _can_decode(syntax):
            reason = (
                f"its pixels are compressed as {syntax.name!r}, which cannot be decoded here; "
                "pip install 'pylibjpeg[all]', or store it uncompressed"
            )
            raise UnreadableImageError("unreadable", reason)
        _check_encoded_size(dataset, max_pixels)
    elif "PixelData" in dataset:
        expected, found = get_expected_length(dataset), len(dataset.PixelData)
        if found < expected:
            reason = f"the file ends early: {found:,} of {expected:,} bytes of pixels"
            raise UnreadableImageError("truncated", reason)
    return pixel_array(dataset, index=0)


def _can_decode(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:  # no plug-in is known
        return False


def _check_encoded_size(dataset: Dataset, max_pixels: int) -> None:
    """Refuse a frame that is larger than the file says: its decoder goes by the frame."""
    offsets = [dataset.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths")]
    frame = get_frame(
        dataset.PixelData,
        0,
        number_of_frames=_num_frames(dataset),
        extended_offsets=tuple(offsets) if all(offsets) else None,
    )
    for open_header in (JpegImagePlugin.JpegImageFile, Jpeg2KImagePlugin.Jpeg2KImageFile):
        try:
            with open_header(io.BytesIO(frame)) as image:
                size = image.size
        except DICOM_DAMAGE:
            continue  # another format, or damage, which its decoder will notice
        check_num_pixels(*size, max_pixels)


def _num_frames(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)


def _encoding(dataset: Dataset) -> UID:
    implicit, little_endian = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _to_rgb(values: np.ndarray, dataset: Dataset, rule: DecodeRule) -> tuple[np.ndarray, Used]:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[:, :, :3]
        return _to_bytes(values / np.iinfo(values.dtype).max), Used()
    if values.ndim == 3:
        return _to_bytes(values / (2 ** int(dataset.BitsStored) - 1)), Used()
    shares, used = _window(values, dataset, rule)
    grey = _to_bytes(shares)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[:, :, None], 3, axis=2), used


def _window(values: np.ndarray, dataset: Dataset, rule: DecodeRule) -> tuple[np.ndarray, Used]:
    """Turn stored grey values into shares of white."""
    shown = apply_modality_lut(values, dataset)
    if rule.dicom_window:
        chosen_centre, chosen_width = rule.dicom_window
        return apply_window(shown, chosen_centre, chosen_width), Used()
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        white = 2 ** table.LUTDescriptor[2] - 1
        return apply_voi(shown.astype(np.int64), dataset) / white, Used()
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is not None and width is not None:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        return apply_window(shown, centre, width, function), Used()
    black, white = _whole_range(values, dataset)
    if not black < white:
        raise ValueError("its rescaling makes all values equal")
    shares = (shown - black) / (white - black)
    if int(dataset.BitsStored) <= 8:
        return shares, Used()
    used = float(np.ptp(shares))
    return shares, Used(used, low=float(shown.min()), high=float(shown.max()))


def _first(dataset: Dataset, keyword: str) -> float | None:
    """Read a number, or the first one of several, if there is any."""
    value = dataset.get(keyword)
    numbers = [] if value is None else np.atleast_1d(value).tolist()
    return float(numbers[0]) if numbers else None


def _whole_range(values: np.ndarray, dataset: Dataset) -> tuple[float, float]:
    """Say between which values rescaled pixels can lie."""
    if values.dtype.kind == "f":
        raise ValueError(
            "images of floating-point numbers have no agreed white; set images.dicom_window"
        )
    if dataset.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    bits = int(dataset.BitsStored)
    lowest = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
    ends = apply_modality_lut(np.array([lowest, lowest + 2**bits - 1], dtype=np.int64), dataset)
    return float(ends.min()), float(ends.max())


def _to_bytes(shares: np.ndarray) -> np.ndarray:
    if np.isnan(shares).any():
        raise ValueError("some of its values are no numbers")
    return np.rint(np.clip(shares, 0.0, 1.0) * 255.0).astype(np.uint8)
