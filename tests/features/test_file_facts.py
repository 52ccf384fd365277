import re
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cvpipe.errors import InputError
from cvpipe.features.file_facts import (
    FILE_FACTS_COLUMNS,
    FileFacts,
    describe_files,
    encode_file_facts,
    read_file_facts,
)
from cvpipe.formats import PILLOW_FORMATS
from tests.data.odd_files import PYDICOM, dicom_of


def save(path, mode="RGB", size=(30, 20), **options):
    Image.new(mode, size).save(path, **options)
    return path


def test_columns():
    assert FILE_FACTS_COLUMNS == (
        "width",
        "height",
        "channels",
        "file_bytes",
        "format_jpeg",
        "format_png",
        "format_bmp",
        "format_gif",
        "format_webp",
        "format_tiff",
        "format_dicom",
    )


# Reading.


@pytest.mark.parametrize("file_format", PILLOW_FORMATS)
def test_every_format_is_told_by_content(tmp_path, file_format):
    path = save(tmp_path / "Gr\u00f6\u00dfe 1.xyz", "L", format=file_format)
    channels = 3 if file_format == "WEBP" else 1  # WebP has no grey
    expected = FileFacts(30, 20, channels, file_format, file_bytes=len(path.read_bytes()))
    assert read_file_facts(path) == expected


@pytest.mark.parametrize(
    ("mode", "file_format", "channels"),
    [
        ("1", "PNG", 1),
        ("P", "PNG", 1),
        ("I;16", "PNG", 1),
        ("LA", "PNG", 2),
        ("RGB", "PNG", 3),
        ("RGBA", "PNG", 4),
        ("CMYK", "JPEG", 4),
    ],
)
def test_channels_as_stored(tmp_path, mode, file_format, channels):
    path = save(tmp_path / "image", mode, format=file_format)
    assert read_file_facts(path).channels == channels


def test_a_jpeg_with_further_pictures_is_a_jpeg(tmp_path):
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (30, 20)).save(
        path, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))]
    )
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert read_file_facts(path) == FileFacts(30, 20, 3, "JPEG", path.stat().st_size)


def test_the_size_is_the_stored_one(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    path = save(tmp_path / "turned.jpg", exif=exif)
    facts = read_file_facts(path)
    assert (facts.width, facts.height) == (30, 20)


def bmp_header(width: int, height: int) -> bytes:
    """Write a BMP up to where its pixels would begin, so that no library is trusted."""
    return b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )


def test_only_the_header_is_read(tmp_path):
    path = tmp_path / "header.bmp"
    path.write_bytes(bmp_header(700, 500))
    assert read_file_facts(path) == FileFacts(700, 500, 3, "BMP", file_bytes=54)


def check_message(path, reason):
    message = rf"^cannot read the image {re.escape(repr(str(path)))}: {reason}; "
    with pytest.raises(InputError, match=message + r"repair or remove the file\.$"):
        read_file_facts(path)


def test_missing_file(tmp_path):
    check_message(tmp_path / "no such file.png", "No such file or directory")


def test_folder(tmp_path):
    check_message(tmp_path, "it is not a regular file")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_other_content(tmp_path, content):
    path = tmp_path / "notes.jpg"
    path.write_bytes(content)
    check_message(path, "its content is none of BMP, DICOM, GIF, JPEG, PNG, TIFF, WEBP")


def test_a_format_that_is_an_image_but_not_ours(tmp_path):
    path = save(tmp_path / "image.ppm")
    check_message(path, "its content is none of BMP, DICOM, GIF, JPEG, PNG, TIFF, WEBP")


def test_truncated_header(tmp_path):
    path = tmp_path / "cut.bmp"
    path.write_bytes(bmp_header(700, 500)[:30])
    check_message(path, "Truncated File Read")


def test_any_size_is_read_because_no_pixel_is(tmp_path):
    path = tmp_path / "large.bmp"
    path.write_bytes(bmp_header(50_000, 20_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_file_facts(path) == FileFacts(50_000, 20_000, 3, "BMP", file_bytes=54)


def test_where_a_decoder_asks_for_pillows_limit_itself_it_is_said(tmp_path, monkeypatch):
    path = save(tmp_path / "image.webp")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    check_message(path, r"Image size \(600 pixels\) exceeds limit of 8 pixels, .*")


def test_a_damaged_header(tmp_path):
    path = tmp_path / "damaged.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    check_message(path, "broken PNG file .*")


# DICOM.


def test_dicom(tmp_path):
    grey = np.zeros((20, 30), np.uint16)
    path = tmp_path / "image"
    path.write_bytes(dicom_of(grey))
    assert read_file_facts(path) == FileFacts(30, 20, 1, "DICOM", path.stat().st_size)
    colour = pydicom.data.get_testdata_file("SC_rgb_small_odd.dcm", download=False)
    assert read_file_facts(Path(colour)).channels == 3
    # Pixels are not looked at, so it does not matter that they are cut.
    path.write_bytes(dicom_of(grey)[:-100])
    assert read_file_facts(path).height == 20


def test_deflated_dicom_is_not_inflated_whole(tmp_path):
    path = tmp_path / "image"
    bomb = dicom_of(
        np.zeros((8000, 8000), np.uint8), TransferSyntaxUID=DeflatedExplicitVRLittleEndian
    )
    path.write_bytes(bomb)
    assert len(bomb) < 100_000
    tracemalloc.start()
    assert read_file_facts(path) == FileFacts(8000, 8000, 1, "DICOM", len(bomb))
    assert tracemalloc.get_traced_memory()[1] < 45_000_000
    tracemalloc.stop()
    # Nor does it matter where it is cut.
    path.write_bytes(bomb[: len(bomb) // 2])
    assert read_file_facts(path).height == 8000


def test_dicom_without_a_picture(tmp_path):
    path = tmp_path / "plan.dcm"
    path.write_bytes((PYDICOM / "rtplan.dcm").read_bytes())
    check_message(path, "this DICOM file has no picture")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_dicom_is_read_or_refused(tmp_path):
    path = tmp_path / "other.dcm"
    path.write_bytes(b"\x08\0\x05\0" + b"\xff" * 99)
    check_message(path, "this DICOM file has no picture")
    rng = np.random.default_rng(0)
    reasons = set()
    for name in ("image_dfl.dcm", "MR_small.dcm"):
        data = (PYDICOM / name).read_bytes()
        for _ in range(200):
            damaged = bytearray(data)
            for position in rng.integers(128, 1500, size=5):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                read_file_facts(path)
            except InputError as error:
                reasons.add(str(error).split(": ")[1])
    ending = "; repair or remove the file."
    assert f"its DICOM header is damaged{ending}" in reasons


def test_dicom_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    path = tmp_path / "image.dcm"
    path.write_bytes(dicom_of(np.zeros((2, 3), np.uint8)))
    check_message(path, re.escape("reading DICOM needs the extra: pip install 'cvpipe[dicom]'"))


def test_a_path_that_cannot_be(tmp_path):
    check_message(tmp_path / "a\0b.png", "embedded null byte")


# Encoding.


def test_by_hand():
    facts = [
        FileFacts(640, 480, 3, "JPEG", 70_001),
        FileFacts(1, 2, 4, "PNG", 99),
        FileFacts(5, 6, 1, "BMP", 0),
        FileFacts(5, 6, 1, "GIF", 1),
        FileFacts(5, 6, 2, "WEBP", 1),
        FileFacts(5, 6, 1, "TIFF", 1),
        FileFacts(5, 6, 1, "DICOM", 1),
        FileFacts(5, 6, 1, "PPM", 1),
    ]
    rows = encode_file_facts(facts)
    assert rows.dtype == np.float32
    assert rows.tolist() == [
        [640, 480, 3, 70_001, 1, 0, 0, 0, 0, 0, 0],
        [1, 2, 4, 99, 0, 1, 0, 0, 0, 0, 0],
        [5, 6, 1, 0, 0, 0, 1, 0, 0, 0, 0],
        [5, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0],
        [5, 6, 2, 1, 0, 0, 0, 0, 1, 0, 0],
        [5, 6, 1, 1, 0, 0, 0, 0, 0, 1, 0],
        [5, 6, 1, 1, 0, 0, 0, 0, 0, 0, 1],
        [5, 6, 1, 1, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_sizes_up_to_16_mib_are_exact():
    column = FILE_FACTS_COLUMNS.index("file_bytes")
    sizes = [2**24 - 1, 2**24, 12_345_677]
    rows = encode_file_facts([FileFacts(1, 1, 1, "PNG", size) for size in sizes])
    assert rows[:, column].tolist() == sizes
    # Above, neighbours fall together, and larger files still are larger.
    sizes = [2**24 + 1, 2**24 + 3, 5_000_000_001]
    rows = encode_file_facts([FileFacts(1, 1, 1, "PNG", size) for size in sizes])
    np.testing.assert_allclose(rows[:, column], sizes, rtol=2**-24)
    assert rows[0, column] == 2**24


def test_no_files():
    assert describe_files([]).shape == (0, len(FILE_FACTS_COLUMNS))
    assert encode_file_facts([]).dtype == np.float32


def test_files_become_rows_in_their_order(tmp_path):
    wide = save(tmp_path / "z wide.png", "RGBA", (7, 3))
    high = save(tmp_path / "a high.jpg", "L", (3, 7))
    assert describe_files([wide, high]).tolist() == [
        [7, 3, 4, wide.stat().st_size, 0, 1, 0, 0, 0, 0, 0],
        [3, 7, 1, high.stat().st_size, 1, 0, 0, 0, 0, 0, 0],
    ]
    with pytest.raises(InputError, match=r"missing\.png"):
        describe_files([wide, tmp_path / "missing.png"])


def test_equal_bytes_have_equal_rows(tmp_path):
    """Rows are kept by the hash of the bytes, so a name must not matter."""
    one = save(tmp_path / "one.png")
    other = tmp_path / "other.jpg"
    other.write_bytes(one.read_bytes())
    first, second = describe_files([one, other])
    np.testing.assert_array_equal(first, second)
