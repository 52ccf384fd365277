"""Broken and odd image files, each with the one finding that the audit must make of it."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom.data
import skimage.data
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, SecondaryCaptureImageStorage

PHOTOS = ("chelsea", "coffee", "astronaut", "rocket", "immunohistochemistry")
SKIMAGE = Path(skimage.data.__file__).parent
PYDICOM = Path(pydicom.data.__file__).parent / "test_files"
SIZE = (72, 56)  # width, height


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Write an image into bytes."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def photos() -> Iterator[Image.Image]:
    """Yield small colour photos, no two of which look alike."""
    rng = np.random.default_rng(4)
    while True:
        for name in PHOTOS:
            whole = Image.fromarray(getattr(skimage.data, name)())
            left, top = rng.integers(0, whole.width - 150), rng.integers(0, whole.height - 120)
            yield (
                whole.crop((left, top, left + 144, top + 112))
                .resize(SIZE)
                .rotate(int(rng.integers(4)) * 90)
                .resize(SIZE)
            )


def png_chunk(name: bytes, content: bytes) -> bytes:
    """Write a chunk of a PNG, with its checksum."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png_header(width: int, height: int) -> bytes:
    """Write a PNG of grey pixels that claims to have a size, and holds nearly nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def dicom_of(values: np.ndarray, **elements: object) -> bytes:
    """Write a DICOM file of grey values, `uint8` or `uint16` of shape `([n,] height, width)`.

    Args:
        values: The stored values.
        elements: Further elements by keyword; `None` leaves one out. The `TransferSyntaxUID`
            of an uncompressed or deflated file can be chosen.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("TransferSyntaxUID", ExplicitVRLittleEndian)
    bits = 8 * values.dtype.itemsize
    signed = values.dtype.kind == "i"
    described = {
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": "1.2.3",
        "PatientID": "somebody",
        "Rows": values.shape[-2],
        "Columns": values.shape[-1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "NumberOfFrames": len(values) if values.ndim == 3 else None,
        "PixelData": values.tobytes(),
        **elements,
    }
    for keyword, value in described.items():
        if value is not None:
            setattr(dataset, keyword, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def with_syntax(data: bytes, uid: str, frame: bytes = b"") -> bytes:
    """Declare the pixels of a DICOM file to be compressed in another way.

    Args:
        data: Content of the file.
        uid: The transfer syntax.
        frame: The compressed frame; what the file holds, if there is none.
    """
    dataset = pydicom.dcmread(io.BytesIO(data))
    pixels = pydicom.encaps.encapsulate([frame or dataset.PixelData])
    dataset.file_meta.TransferSyntaxUID = uid
    dataset["PixelData"].is_undefined_length = True
    dataset.PixelData = pixels
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def broken_files(photo: Iterator[Image.Image]) -> dict[str, tuple[bytes, str]]:
    """Make files that are errors."""
    cut = {
        "cut.jpg": ("JPEG", {}),
        "cut progressive.jpg": ("JPEG", {"progressive": True}),
        "cut.png": ("PNG", {}),
        "cut.gif": ("GIF", {}),
        "cut.webp": ("WEBP", {}),
        "cut.tif": ("TIFF", {}),
        "cut packed.tif": ("TIFF", {"compression": "tiff_lzw"}),
        "cut.bmp": ("BMP", {}),
    }
    files: dict[str, tuple[bytes, str]] = {"empty.jpg": (b"", "empty_file")}
    for name, (file_format, options) in cut.items():
        data = encode(next(photo), file_format, **options)
        files[name] = (data[: len(data) * 2 // 3], "truncated")
    header_only = encode(next(photo), "JPEG")
    files["cut in the header.jpg"] = (header_only[:100], "truncated")
    grey = np.asarray(next(photo).convert("L"))
    files["cut.dcm"] = (dicom_of(grey)[:-500], "truncated")
    files["cut header.dcm"] = (dicom_of(grey)[: -grey.size - 50], "truncated")
    checksum = bytearray(encode(next(photo), "PNG"))
    checksum[len(checksum) // 2] ^= 255
    files["damaged.png"] = (bytes(checksum), "unreadable")
    others = {
        "text.jpg": b"not an image, but a note about one\n" * 9,
        "page.jpg": b"<!DOCTYPE html>\n<html><body>404 not found</body></html>\n",
        "drawing.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "document.jpg": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
        "postscript.jpg": encode(next(photo), "EPS"),
        "phone.jpg": struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(200),
        "web.jpg": struct.pack(">I", 24) + b"ftypavif" + bytes(4) + b"mif1avif" + bytes(200),
        "archive.png": b"PK\x03\x04" + bytes(100),
        "zeros.jpg": bytes(5000),
        "text.dcm": b"a note in a file that is called DICOM\n" * 9,
    }
    files |= {name: (data, "not_an_image") for name, data in others.items()}
    files["bomb.png"] = (png_header(50_000, 50_000), "too_many_pixels")
    floats = Image.fromarray(np.asarray(next(photo).convert("L"), dtype=np.float32) / 255)
    files["floats.tif"] = (encode(floats, "TIFF"), "unreadable")
    large = Image.fromarray(np.asarray(next(photo).convert("L")).astype(np.int32) * 1000)
    files["32 bits.tif"] = (encode(large, "TIFF"), "unreadable")
    files["packed unknown.dcm"] = (with_syntax(dicom_of(grey), JPEGLSLossless), "unreadable")
    for name in ("MR_small_jpeg_ls_lossless", "JPGExtended", "badVR", "waveform_ecg", "rtplan"):
        files[f"{name}.dcm"] = ((PYDICOM / f"{name}.dcm").read_bytes(), "unreadable")
    files["MR_truncated.dcm"] = ((PYDICOM / "MR_truncated.dcm").read_bytes(), "truncated")
    return files


def odd_files(photo: Iterator[Image.Image]) -> dict[str, tuple[bytes, str]]:
    """Make files that can be read, and of which something is to be said."""

    def grey() -> np.ndarray:
        return np.asarray(next(photo).convert("L"))

    def twelve_bits() -> np.ndarray:
        return grey().astype(np.uint16) * 16

    def save_moving(file_format: str) -> bytes:
        first, *others = next(photo), next(photo), next(photo)
        return encode(first, file_format, save_all=True, append_images=others)

    turned = Image.Exif()
    turned[274] = 6
    see_through, opaque = next(photo).convert("RGBA"), next(photo).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(SIZE))
    palette = next(photo).quantize(64)
    grey_alpha = next(photo).convert("LA")
    grey_alpha.putalpha(Image.linear_gradient("L").resize(SIZE))
    full_range = grey().astype(np.uint16) * 257
    full_range[0, 0] = 65_535
    return {
        "one pixel.png": (encode(Image.new("RGB", (1, 1), (9, 99, 200)), "PNG"), "tiny_image"),
        "line.png": (encode(next(photo).resize((1, 4000)), "PNG"), "tiny_image"),
        "strip.png": (encode(next(photo).resize((20, 400)), "PNG"), "extreme_aspect"),
        "constant.png": (encode(Image.new("RGB", SIZE, (30, 140, 60)), "PNG"), "constant_image"),
        "png called.jpg": (encode(next(photo), "PNG"), "wrong_suffix"),
        "dicom called.png": (dicom_of(grey()), "wrong_suffix"),
        "jpeg called.dcm": (encode(next(photo), "JPEG"), "wrong_suffix"),
        # What stands first in the order of precedence wins.
        "moving called.png": (save_moving("GIF"), "wrong_suffix"),
        "12 bits.png": (encode(Image.fromarray(twelve_bits()), "PNG"), "sixteen_bit"),
        "12 bits.tif": (encode(Image.fromarray(twelve_bits()), "TIFF"), "sixteen_bit"),
        "full range.png": (encode(Image.fromarray(full_range), "PNG"), "sixteen_bit"),
        "32 bits small.tif": (
            encode(Image.fromarray(grey().astype(np.int32) * 250), "TIFF"),
            "sixteen_bit",
        ),
        "pages.tif": (save_moving("TIFF"), "first_page"),
        "moving.gif": (save_moving("GIF"), "first_page"),
        "moving.webp": (save_moving("WEBP"), "first_page"),
        "moving.png": (save_moving("PNG"), "first_page"),
        "phone.jpeg": (save_moving("MPO"), "first_page"),
        "frames.dcm": (dicom_of(np.stack([grey(), grey()])), "first_page"),
        "half.png": (encode(see_through, "PNG"), "transparency"),
        "half.webp": (encode(see_through.rotate(180), "WEBP"), "transparency"),
        "grey half.png": (encode(grey_alpha, "PNG"), "transparency"),
        "palette half.png": (
            encode(palette, "PNG", transparency=int(palette.getpixel((5, 5)))),
            "transparency",
        ),
        "opaque.png": (encode(opaque, "PNG"), "converted"),
        "four inks.jpg": (encode(next(photo).convert("CMYK"), "JPEG"), "converted"),
        "turned.jpg": (encode(next(photo), "JPEG", exif=turned), "turned_upright"),
        "turned half.png": (encode(see_through.transpose(0), "PNG", exif=turned), "turned_upright"),
        "broken exif.jpg": (encode(next(photo), "JPEG", exif=b"Exif\0\0II*\0\x08"), ""),
        "progressive.jpg": (encode(next(photo), "JPEG", progressive=True), ""),
        "profile.jpg": (
            encode(next(photo), "JPEG", icc_profile=(PYDICOM / "crayons.icc").read_bytes()),
            "",
        ),
        "negative.dcm": (dicom_of(grey(), PhotometricInterpretation="MONOCHROME1"), "converted"),
        "GRÖSSE 1 (Kopie).JPG": (encode(next(photo), "JPEG"), ""),
        "small CT.dcm": (dicom_of(grey().astype(np.uint16) * 200), ""),
    }  # fmt: skip


SHIPPED = {
    SKIMAGE / "multipage.tif": "tiny_image",
    SKIMAGE / "horse.png": "transparency",
    SKIMAGE / "no_time_for_that_tiny.gif": "tiny_image",
    SKIMAGE / "multipage_rgb.tif": "unreadable",
    PYDICOM / "examples_ybr_color.dcm": "first_page",
    PYDICOM / "SC_rgb_small_odd.dcm": "tiny_image",
    PYDICOM / "examples_palette.dcm": "converted",
}


def write_odd_files(folder: Path) -> dict[str, str]:
    """Write broken and odd files.

    Args:
        folder: Where to; made if it is missing.

    Returns:
        By file name the only finding that the audit must make of the file by itself; `""`
        for a sound file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photo = photos()
    expected = {}
    for name, (data, finding) in {**broken_files(photo), **odd_files(photo)}.items():
        (folder / name).write_bytes(data)
        expected[name] = finding
    for path, finding in SHIPPED.items():
        shutil.copyfile(path, folder / path.name)
        expected[path.name] = finding
    (folder / "suffixless").write_bytes(encode(next(photo), "PNG"))
    expected["suffixless"] = "other_file"
    (folder / "folder.jpg").mkdir()  # holds nothing, so nothing is to be said
    expected["folder.jpg"] = ""
    (folder / "nowhere.jpg").symlink_to("no such file.jpg")
    expected["nowhere.jpg"] = "missing_file"
    if os.geteuid() != 0:  # root may read everything
        (folder / "secret.png").write_bytes(encode(next(photo), "PNG"))
        (folder / "secret.png").chmod(0)
        expected["secret.png"] = "unreadable"
    return expected
