import hashlib
import io
import os
import re
import struct
import sys
import warnings
import zlib
from collections import Counter

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageCms, ImageOps

from cvpipe.data.images import (
    DEFAULT_RULE,
    FORMATS,
    SUFFIX_FORMATS,
    DecodeRule,
    ImageFacts,
    UnreadableImageError,
    decode_image,
    decode_rule,
    hash_pixels,
    inspect_image,
    list_formats,
    read_image,
    resize_image,
)
from cvpipe.data.truncation import ends_early
from cvpipe.errors import InputError
from cvpipe.features.file_facts import read_file_facts
from cvpipe.formats import is_dicom
from cvpipe.sections import DataSection, ImagesSection

# Pillow warns of damaged metadata, which some of these files have on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encode(image: Image.Image, file_format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def png(width, depth, colour_type, row, *chunks, high=1):
    """Write a PNG of one row byte by byte, so that no library's reading of modes is trusted.

    It claims to be `high` pixels high.
    """

    def chunk(name, content):
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, high, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(row, bits, *, zero_is_black=1, sample_format=1, byte_order="<"):
    """Write an uncompressed grey TIFF of one row; `sample_format` 1: unsigned, 2: signed."""
    letter = {(1, 8): "B", (1, 16): "H", (2, 16): "h", (1, 32): "I"}[sample_format, bits]
    data = struct.pack(f"{byte_order}{len(row)}{letter}", *row)
    tags = {256: len(row), 257: 1, 258: bits, 259: 1, 262: zero_is_black, 273: 0, 277: 1}
    tags |= {278: 1, 279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack(f"{byte_order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items()
    )
    start = {"<": b"II", ">": b"MM"}[byte_order] + struct.pack(f"{byte_order}HI", 42, 8)
    return start + struct.pack(f"{byte_order}H", len(tags)) + entries + bytes(4) + data


def row_of(data: bytes) -> list:
    """Decode an image of one row; grey pixels as numbers, others as triples."""
    [row] = decode_image(data)
    return [int(p[0]) if len(set(p.tolist())) == 1 else tuple(p.tolist()) for p in row]


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(skimage.data.chelsea()).resize((70, 90))


# What each colour mode becomes, worked out by hand.


def test_grey():
    assert row_of(png(3, 8, 0, bytes([0, 100, 255]))) == [0, 100, 255]
    assert row_of(png(4, 2, 0, bytes([0b00_01_10_11]))) == [0, 85, 170, 255]
    assert row_of(png(8, 1, 0, bytes([0b1010_0001]))) == [255, 0, 255, 0, 0, 0, 0, 255]


def test_rgb():
    assert row_of(png(2, 8, 2, bytes([1, 2, 3, 250, 0, 5]))) == [(1, 2, 3), (250, 0, 5)]


def test_alpha_is_laid_over_white():
    # alpha 51 is one fifth: 51/255 * value + 204/255 * 255
    rgba = bytes([100, 0, 255, 51, 9, 8, 7, 0, 9, 8, 7, 255])
    assert row_of(png(3, 8, 6, rgba)) == [(224, 204, 255), 255, (9, 8, 7)]
    assert row_of(png(3, 8, 4, bytes([100, 51, 9, 0, 9, 255]))) == [224, 255, 9]


def test_a_transparent_grey_or_colour_becomes_white():
    assert row_of(png(3, 8, 0, bytes([5, 6, 7]), (b"tRNS", b"\0\x06"))) == [5, 255, 7]
    assert row_of(png(8, 1, 0, b"\xaa", (b"tRNS", b"\0\0"))) == [255] * 8
    transparent = (b"tRNS", bytes([0, 1, 0, 2, 0, 3]))
    assert row_of(png(2, 8, 2, bytes([1, 2, 3, 3, 2, 1]), transparent)) == [255, (3, 2, 1)]


def test_a_transparent_grey_of_sixteen_bits_becomes_white():
    row = struct.pack(">4H", 0, 257, 4095, 65_535)
    assert row_of(png(4, 16, 0, row, (b"tRNS", b"\0\0"))) == [255, 1, 16, 255]
    assert row_of(png(4, 16, 0, row, (b"tRNS", b"\xff\xff"))) == [0, 1, 16, 255]
    # Neither a neighbouring value nor one with the same upper byte is transparent.
    assert row_of(png(4, 16, 0, row, (b"tRNS", b"\x01\0"))) == [0, 1, 16, 255]


def test_sixteen_bit_grey_with_alpha_is_treated_as_colour():
    data = png(2, 16, 4, struct.pack(">4H", 4095, 65_535, 0x8000, 0))
    assert row_of(data) == [15, 255]  # the upper byte of 4095 is 15; 65,535 * 15 / 255 is 16.06
    level = DecodeRule(white_level=4095)
    np.testing.assert_array_equal(decode_image(data, level), decode_image(data))


def test_palette():
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60, 100, 0, 255]))
    indices = bytes([0, 1, 2])
    assert row_of(png(3, 8, 3, indices, palette)) == [(10, 20, 30), (40, 50, 60), (100, 0, 255)]
    # One alpha per palette entry: opaque, transparent, one fifth.
    shown = row_of(png(3, 8, 3, indices, palette, (b"tRNS", bytes([255, 0, 51]))))
    assert shown == [(10, 20, 30), 255, (224, 204, 255)]


SIXTEEN_BITS = {0: 0, 128: 0, 129: 1, 257: 1, 385: 1, 386: 2, 32_896: 128, 65_406: 254, 65_535: 255}


def test_sixteen_bit_grey_is_divided_by_257_and_rounded():
    values, expected = list(SIXTEEN_BITS), list(SIXTEEN_BITS.values())
    assert expected == [round(value / 257) for value in values]
    big_endian = struct.pack(f">{len(values)}H", *values)
    assert row_of(png(len(values), 16, 0, big_endian)) == expected
    assert row_of(tiff(values, 16)) == expected
    assert row_of(tiff(values, 16, byte_order=">")) == expected
    assert row_of(tiff(values, 32)) == expected


@pytest.mark.parametrize(
    ("row", "bits", "expected"),
    [([0, 100, 255], 8, [255, 155, 0]), ([0, 128, 257, 65_535], 16, [255, 255, 254, 0])],
)
def test_a_tiff_whose_zero_is_white_is_turned(row, bits, expected):
    assert row_of(tiff(row, bits, zero_is_black=0)) == expected


def test_sixteen_bit_colour_keeps_the_upper_byte():
    row = struct.pack(">4H", 255, 256, 65_535, 65_535)
    assert row_of(png(1, 16, 6, row)) == [(0, 1, 255)]


def test_cmyk():
    # Cyan takes red away, black takes all: pure arithmetic in a lossless file.
    cmyk = np.array([[[255, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0], [0, 51, 0, 0]]], np.uint8)
    data = encode(Image.fromarray(cmyk, "CMYK"), "TIFF")
    assert inspect_image(data)[1].mode == "CMYK"
    assert row_of(data) == [(0, 255, 255), 0, 255, (255, 204, 255)]


def test_cmyk_jpeg_is_not_inverted(photo):
    # JPEGs of four colours are stored inverted; a reader that forgets it shows a negative.
    decoded = decode_image(encode(photo.convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert np.abs(decoded - np.asarray(photo)).mean() < 10


def test_lossy_formats_stay_close_and_lossless_ones_exact(photo):
    pixels = np.asarray(photo)
    for file_format in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode_image(encode(photo, file_format)), pixels)
    np.testing.assert_array_equal(decode_image(encode(photo, "WEBP", lossless=True)), pixels)
    for file_format in ("JPEG", "WEBP"):
        decoded = decode_image(encode(photo, file_format, quality=95)).astype(int)
        assert 0 < np.abs(decoded - pixels).mean() < 5


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_the_first_frame_is_taken(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    decoded = decode_image(data).astype(int)
    assert np.abs(decoded - [255, 0, 0]).max() <= 2


def test_mpo_counts_as_jpeg(photo):
    data = encode(photo, "MPO", save_all=True, append_images=[photo])
    assert inspect_image(data)[1].format == "JPEG"


# Where the pixels of a 3 x 2 image, numbered row by row, lie after turning upright.
UPRIGHT = {
    1: [[0, 1], [2, 3], [4, 5]],
    2: [[1, 0], [3, 2], [5, 4]],
    3: [[5, 4], [3, 2], [1, 0]],
    4: [[4, 5], [2, 3], [0, 1]],
    5: [[0, 2, 4], [1, 3, 5]],
    6: [[4, 2, 0], [5, 3, 1]],
    7: [[5, 3, 1], [4, 2, 0]],
    8: [[1, 3, 5], [0, 2, 4]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation(orientation, dtype):
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.arange(6, dtype=dtype).reshape(3, 2) * dtype(257 if dtype is np.uint16 else 1)
    pixels, facts = inspect_image(encode(Image.fromarray(stored), "PNG", exif=exif))
    assert pixels[:, :, 1].tolist() == UPRIGHT[orientation]
    assert (facts.height, facts.width) == pixels.shape[:2]


def exif_of(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Write EXIF data from entries of tag, type, count and four bytes of value."""
    written = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + written + bytes(4)


def test_odd_metadata_do_not_hinder():
    # The width as text: nobody could write that back, but only the orientation matters here.
    exif = exif_of((256, 2, 4, b"abc\0"), (274, 3, 1, b"\x06\0\0\0"))
    data = encode(Image.new("L", (2, 3)), "JPEG", exif=exif)
    assert decode_image(data).shape == (2, 3, 3)


@pytest.mark.parametrize("exif", [b"II*\0", b"II*\0\x08", b"II+\0\x08\0\0\0", b"nonsense"])
@pytest.mark.parametrize("dpi", [(72, 72), (0, 0)])
def test_damaged_metadata_do_not_hinder(exif, dpi):
    # Without a resolution in its header, Pillow looks for one in the metadata early on.
    data = encode(Image.new("L", (2, 3), 100), "JPEG", exif=b"Exif\0\0" + exif, dpi=dpi)
    assert decode_image(data).tolist() == [[[100] * 3] * 2] * 3


# What is refused, and that nothing else comes out of it.


@pytest.mark.parametrize(
    ("data", "finding", "reason"),
    [
        (b"", "empty_file", "the file is empty"),
        (
            b"not an image, but text",
            "not_an_image",
            "its content is none of BMP, DICOM, GIF, JPEG, PNG, TIFF, WEBP; it looks like text",
        ),
        (
            encode(Image.new("F", (2, 2)), "TIFF"),
            "unreadable",
            "images of floating-point numbers have no agreed white; store 8 or 16 bits",
        ),
        (png(1, 8, 3, b"\0"), "unreadable", "decoding fails: AssertionError"),
        (
            tiff([0, 65_536], 32),
            "unreadable",
            "its values are outside the 16-bit range 0 to 65535",
        ),
        (
            tiff([0, -1], 16, sample_format=2),
            "unreadable",
            "its values are outside the 16-bit range 0 to 65535",
        ),
    ],
    ids=["empty", "text", "float", "no palette", "32 bits", "negative"],
)
def test_refused(data, finding, reason):
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(data)
    assert (caught.value.finding, caught.value.reason) == (finding, reason)
    assert str(caught.value) == reason


@pytest.mark.parametrize("big_tiff", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_sound_files_that_are_refused_are_not_said_to_be_cut(dtype, big_tiff):
    values = np.full((50, 50), 70_000, dtype)
    whole = encode(Image.fromarray(values), "TIFF", big_tiff=big_tiff)
    # Even if its end looks as if it had been lost.
    shorter = whole.replace(struct.pack("<HHI", 279, 4, 1), struct.pack("<HHI", 279, 4, 9**9))
    for data in (whole, shorter):
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(data)
        assert caught.value.finding == "unreadable"
        assert caught.value.reason.startswith(("images of floating", "its values are outside"))


def test_big_tiff_is_read_and_its_damage_is_no_cut(photo):
    data = encode(photo, "TIFF", big_tiff=True)
    np.testing.assert_array_equal(decode_image(data), np.asarray(photo))
    assert not ends_early(data, "TIFF")
    assert ends_early(encode(photo, "TIFF")[:-50], "TIFF")


def test_formats_that_are_not_listed_are_not_tried(photo):
    # Decoding EPS would hand the file's content to an interpreter of programs.
    for file_format in ("EPS", "PPM", "TGA"):
        with pytest.raises(UnreadableImageError, match="its content is none of BMP"):
            decode_image(encode(photo.resize((4, 4)), file_format))


def bmp_header(width, height):
    """Write a BMP up to where its pixels would begin."""
    return b"BM" + struct.pack(
        "<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0
    )


def test_too_many_pixels_are_refused_by_the_header():
    row = png(9, 8, 0, bytes(9))
    assert decode_image(row, DecodeRule(max_pixels=9)).shape == (1, 9, 3)
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(row, DecodeRule(max_pixels=8))
    assert caught.value.finding == "too_many_pixels"
    assert caught.value.reason == "it has 9 x 1 = 9 pixels, more than data.max_pixels = 8"
    # Files that hold nothing of what they claim: had they been decoded, they would be cut.
    claims = [png(50_000, 8, 0, b"", high=50_000), bmp_header(50_000, 50_000)]
    for data in claims:
        with pytest.raises(UnreadableImageError, match=r"50000 x 50000 = 2,500,000,000 pixels"):
            decode_image(data)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_our_limit_alone_counts(file_format, photo, monkeypatch):
    # Pillow's own limit belongs to the process, and is left as it is.
    data = encode(photo, file_format)
    expected = decode_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 90 // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(data), expected)
    assert Image.MAX_IMAGE_PIXELS == 70 * 90 // 2
    monkeypatch.undo()
    assert Image.MAX_IMAGE_PIXELS == 2**30 // 4 // 3


PILLOWS_LIMIT = (
    r"^Image size \(6300 pixels\) .*k; that is Pillow's own limit, not data\.max_pixels$"
)


def test_where_a_decoder_asks_for_pillows_limit_itself_it_is_said(photo, monkeypatch):
    data = encode(photo, "WEBP")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(UnreadableImageError, match=PILLOWS_LIMIT) as caught:
        decode_image(data)
    assert caught.value.finding == "too_many_pixels"


ENCODINGS = {
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "lzw tiff": ("TIFF", {"compression": "tiff_lzw"}),
}


@pytest.fixture(scope="module", params=ENCODINGS)
def encoded(request, photo):
    file_format, options = ENCODINGS[request.param]
    return encode(photo, file_format, **options)


def test_a_cut_file_is_refused_or_whole(encoded):
    whole = decode_image(encoded)
    last_bytes = range(len(encoded) - 30, len(encoded))
    refused = 0
    kinds = Counter()
    for length in [*range(0, len(encoded), len(encoded) // 80), *last_bytes]:
        try:
            np.testing.assert_array_equal(decode_image(encoded[:length]), whole)
        except UnreadableImageError as error:
            refused += 1
            kinds[error.finding] += 1
    # A mark that says which format it is needs up to 16 bytes; a GIF's end is marked by one byte,
    # which one cut in 256 ends in by chance.
    assert kinds["truncated"] >= refused - 3
    assert set(kinds) <= {"empty_file", "not_an_image", "truncated", "unreadable"}
    assert kinds["unreadable"] <= (2 if encoded.startswith(b"GIF") else 0)
    # Some formats end in bytes that carry no pixels; most cuts take pixels away.
    assert refused > 60


def test_flipped_bytes_are_decoded_or_refused(encoded):
    rng = np.random.default_rng(0)
    outcomes = set()
    for attempt in range(60):
        damaged = bytearray(encoded)
        # Every other time in the header, where damage does most.
        end = len(damaged) if attempt % 2 else 200
        for position in rng.integers(0, end, size=3):
            damaged[position] = rng.integers(256)
        try:
            pixels = decode_image(bytes(damaged))
            outcomes.add((pixels.dtype.name, pixels.shape[2]))
        except UnreadableImageError as error:
            outcomes.add(error.finding)
    assert "unreadable" in outcomes
    refusals = {"not_an_image", "truncated", "too_many_pixels", "unreadable"}
    assert outcomes <= {*refusals, ("uint8", 3)}


def test_damage_in_a_png_is_always_noticed(photo):
    data = encode(photo, "PNG")
    for position in range(40, len(data) - 20, len(data) // 50):
        damaged = bytearray(data)
        damaged[position] ^= 1
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(bytes(damaged))
        assert caught.value.finding == "unreadable"


def test_damage_inside_a_file_does_not_count_as_a_cut(encoded):
    rng = np.random.default_rng(1)
    found = Counter()
    for position in rng.integers(len(encoded) // 4, len(encoded) - 20, size=60):
        damaged = bytearray(encoded)
        damaged[position : position + 4] = bytes(4)
        try:
            decode_image(bytes(damaged))
        except UnreadableImageError as error:
            found[error.finding] += 1
    assert set(found) <= {"unreadable"}


def test_a_cut_tiff_that_begins_with_its_directory(photo):
    # Pillow's JPEG in TIFF has the directory before the pixels, and a cut fails in libtiff.
    data = encode(photo, "TIFF", compression="jpeg")
    for length in range(8, len(data), 199):
        with pytest.raises(UnreadableImageError, match=r"^the file ends early: ") as caught:
            decode_image(data[:length])
        assert caught.value.finding == "truncated"


def test_decoding_leaves_the_filters_of_warnings_alone():
    # They belong to the whole process, and several threads decode at the same time.
    damaged_exif = encode(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\0\0\0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode_image(damaged_exif).shape == (8, 8, 3)
    assert caught


# Facts.


def test_facts():
    data = png(3, 8, 0, bytes([0, 100, 255]))
    pixels, facts = inspect_image(data)
    np.testing.assert_array_equal(pixels, decode_image(data))
    assert facts == ImageFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        width=3,
        height=1,
        format="PNG",
        mode="L",
        file_bytes=len(data),
        num_pages=1,
        turned=False,
        transparent=False,
        largest_value=0,
        patient="",
    )


def reading_of(data):
    facts = inspect_image(data)[1]
    return (facts.num_pages, facts.turned, facts.transparent, facts.largest_value)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_pages_are_counted(file_format, photo):
    frames = [photo, photo.rotate(90), photo.rotate(180)]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    pixels, facts = inspect_image(data)
    assert facts.num_pages == 3
    np.testing.assert_array_equal(pixels, decode_image(encode_first(data)))


def encode_first(data):
    """Store the first frame alone, without loss."""
    with Image.open(io.BytesIO(data)) as image:
        return encode(image.convert("RGB"), "PNG")


def test_damage_behind_the_first_page_does_not_hinder(photo):
    data = encode(photo, "TIFF", save_all=True, append_images=[photo])
    first = encode(photo, "TIFF")
    cut = data[: len(first) + 50]
    pixels, facts = inspect_image(cut)
    np.testing.assert_array_equal(pixels, np.asarray(photo))
    assert facts.num_pages == 1


def test_turned():
    for orientation, turned in {1: False, 6: True, 3: True, 9: False}.items():
        exif = Image.Exif()
        exif[274] = orientation
        for file_format in ("PNG", "JPEG", "TIFF", "WEBP"):
            data = encode(Image.new("RGB", (4, 2)), file_format, exif=exif)
            assert reading_of(data) == (1, turned, False, 0)
            assert decode_image(data).shape == ((4, 2, 3) if orientation == 6 else (2, 4, 3))


def test_transparent_only_where_a_pixel_is():
    assert reading_of(png(2, 8, 6, bytes([1, 2, 3, 255, 4, 5, 6, 255])))[2] is False
    assert reading_of(png(2, 8, 6, bytes([1, 2, 3, 255, 4, 5, 6, 254])))[2] is True
    # A grey value that is declared transparent, and one that no pixel has.
    assert reading_of(png(2, 8, 0, bytes([5, 6]), (b"tRNS", b"\0\x06")))[2] is True
    assert reading_of(png(2, 8, 0, bytes([5, 6]), (b"tRNS", b"\0\x07")))[2] is False
    deep = struct.pack(">2H", 4095, 65_535)
    assert reading_of(png(2, 16, 0, deep, (b"tRNS", b"\x0f\xfe")))[2:] == (False, 65_535)
    # What is not seen does not count as the largest value.
    assert reading_of(png(2, 16, 0, deep, (b"tRNS", b"\xff\xff")))[2:] == (True, 4095)


def test_largest_value_of_sixteen_bits():
    row = struct.pack(">3H", 7, 4095, 300)
    assert reading_of(png(3, 16, 0, row)) == (1, False, False, 4095)
    assert reading_of(tiff([7, 4095, 300], 16, zero_is_black=0))[3] == 4095
    assert reading_of(png(1, 16, 2, struct.pack(">3H", 7, 4095, 300)))[3] == 0


# The level of white.


def test_white_level():
    values = [0, 8, 9, 2048, 4095, 4096, 65_535]
    # 4095 / 255 is 16.06 values per step; the first rounds up from 8.03 on.
    expected = [0, 0, 1, 128, 255, 255, 255]
    rule = DecodeRule(white_level=4095)
    for data in (png(7, 16, 0, struct.pack(">7H", *values)), tiff(values, 16), tiff(values, 32)):
        assert decode_image(data, rule)[0, :, 1].tolist() == expected
    turned = decode_image(tiff(values, 16, zero_is_black=0), rule)[0, :, 1].tolist()
    assert turned == [255, 255, 254, 127, 0, 0, 0]


@pytest.mark.parametrize("level", [255, 256, 1000, 4095, 65_534, 65_535])
def test_every_value_is_rounded_to_the_nearest_step(level):
    values = np.arange(65_536, dtype=np.uint16)
    data = encode(Image.fromarray(values.reshape(256, 256)), "PNG")
    shown = decode_image(data, DecodeRule(white_level=level))[:, :, 0].ravel()
    exact = np.minimum(values, level) * 255.0 / level
    assert np.abs(shown - exact).max() <= 0.5
    assert shown[0] == 0
    assert (shown[level:] == 255).all()


def test_white_level_is_for_sixteen_bits_only(photo):
    rule = DecodeRule(white_level=4095)
    for image in (photo, photo.convert("L"), photo.convert("RGBA")):
        data = encode(image, "PNG")
        np.testing.assert_array_equal(decode_image(data, rule), decode_image(data))
    colour = png(1, 16, 6, struct.pack(">4H", 255, 256, 65_535, 65_535))
    assert decode_image(colour, rule).tolist() == [[[0, 1, 255]]]


def test_colour_profiles_are_not_applied(photo):
    # A profile that swaps red and green would be seen at once.
    swapped = ImageCms.createProfile("LAB")
    profile = ImageCms.ImageCmsProfile(swapped).tobytes()
    data = encode(photo, "PNG", icc_profile=profile)
    np.testing.assert_array_equal(decode_image(data), np.asarray(photo))


def test_the_rule_is_what_the_config_says():
    assert decode_rule(ImagesSection(), DataSection(root="x")) == DecodeRule() == DEFAULT_RULE
    images = ImagesSection(fit="pad", white_level=4095, dicom_window=(40.0, 400.0))
    rule = decode_rule(images, DataSection(root="x", max_pixels=7))
    assert rule == DecodeRule("pad", 4095, (40.0, 400.0), 7)


def test_formats_are_listed():
    listed = list_formats()
    assert list(listed) == list(SUFFIX_FORMATS)
    assert listed[".jpg"] == "JPEG"
    assert listed[".gif"] == "GIF (the first frame)"
    assert listed[".dicom"].startswith("DICOM (the first frame; needs the extra: pip install")


# DICOM; the rest is in test_dicom.py.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(128) + b"DICM", True),
        (bytes(127) + b"DICM", False),
        (b"\x08\0\x05\0", True),
        (b"\x02\0\0\0UL", True),
        (b"\x02\0\0\x01", False),
        (b"\0\x08\0\x05", True),
        (b"\x08\0\x05\x01", False),
        (b"\0\0\0\x18ftypheic", False),
        (b"some text", False),
        (b"", False),
    ],
)
def test_is_dicom(data, expected):
    assert is_dicom(data) is expected


def test_without_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "cvpipe.data.dicom", raising=False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(bytes(128) + b"DICM" + bytes(99))
    assert caught.value.finding == "unreadable"
    assert caught.value.reason == "reading DICOM needs the extra: pip install 'cvpipe[dicom]'"


def test_pixels_hash_sees_pixels_and_shape_only(photo):
    hashes = [hash_pixels(decode_image(encode(photo, f))) for f in ("PNG", "BMP", "TIFF")]
    assert len(set(hashes)) == 1
    wide, high = Image.new("L", (4, 2)), Image.new("L", (2, 4))
    assert hash_pixels(np.asarray(wide.convert("RGB"))) != hash_pixels(
        np.asarray(high.convert("RGB"))
    )


# Files.


@pytest.mark.parametrize("read", [read_image, read_file_facts])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes into it
    with pytest.raises(InputError, match="it is not a regular file"):
        read(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="it is not a regular file"):
        read(tmp_path)


def test_read_image(tmp_path, photo):
    path = tmp_path / "größe 1.png"
    path.write_bytes(encode(photo, "PNG"))
    np.testing.assert_array_equal(read_image(path), np.asarray(photo))


def test_read_image_names_the_file(tmp_path):
    missing, text = tmp_path / "missing.jpg", tmp_path / "text.jpg"
    text.write_text("hello")
    for path, reason in [
        (missing, "No such file or directory."),
        (tmp_path, "it is not a regular file."),
        (text, f"its content is none of {', '.join(FORMATS)}; it looks like text."),
    ]:
        expected = re.escape(f"cannot read the image {str(path)!r}: {reason}")
        with pytest.raises(InputError, match=f"^{expected}$") as caught:
            read_image(path)
        assert not isinstance(caught.value, UnreadableImageError)


# Sizes.


def test_stretch_is_an_antialiased_triangle_filter():
    # Halving: each new pixel weighs 1/8, 3/8, 3/8, 1/8 of four old ones; at the rim 3/7, 3/7, 1/7.
    row = np.array([0, 80, 160, 240, 16, 96], np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=2)
    expected = [
        (3 * 0 + 3 * 80 + 160) / 7,
        (80 + 3 * 160 + 3 * 240 + 16) / 8,
        (240 + 3 * 16 + 3 * 96) / 7,
    ]
    resized = resize_image(image, (1, 3), "stretch")
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized[0, :, 1], expected, atol=0.51)


@pytest.mark.parametrize("name", ["chelsea", "rocket"])
def test_stretch_is_pillows_filter_on_real_photos(name):
    image = getattr(skimage.data, name)()
    expected = Image.fromarray(image).resize((150, 100), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, (100, 150), "stretch"), expected)


def test_pad_and_crop_are_pillows_on_real_photos():
    image = skimage.data.chelsea()[:200, :300]
    picture, bilinear = Image.fromarray(image), Image.Resampling.BILINEAR
    np.testing.assert_array_equal(
        resize_image(image, (60, 60), "pad"), ImageOps.pad(picture, (60, 60), bilinear)
    )
    np.testing.assert_array_equal(
        resize_image(image, (60, 60), "crop"), ImageOps.fit(picture, (60, 60), bilinear)
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_where_a_mark_lands(transposed):
    """A white pixel at row 1, column 4 of a black-bordered 4 x 8 grey image."""

    def placed(image_size, fit):
        image = np.full((4, 8, 3), 100, np.uint8)
        image[1, 4] = 255
        if transposed:
            image, image_size = image.transpose(1, 0, 2), image_size[::-1]
        resized = resize_image(image, image_size, fit)[:, :, 0]
        return resized.T if transposed else resized

    # Same size: nothing moves.
    np.testing.assert_array_equal(np.argwhere(placed((4, 8), "stretch") == 255), [[1, 4]])
    # Two rows above and two below.
    padded = placed((8, 8), "pad")
    np.testing.assert_array_equal(np.argwhere(padded == 255), [[3, 4]])
    np.testing.assert_array_equal((padded == 0).all(axis=1).nonzero()[0], [0, 1, 6, 7])
    # The odd row goes below.
    np.testing.assert_array_equal((placed((7, 8), "pad") == 0).all(axis=1).nonzero()[0], [0, 5, 6])
    # Columns 2 to 5 remain.
    cropped = placed((4, 4), "crop")
    np.testing.assert_array_equal(np.argwhere(cropped == 255), [[1, 2]])
    assert (cropped > 0).all()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (2, 777)])
@pytest.mark.parametrize("image_size", [(1, 1), (4, 6), (7, 3)])
def test_extreme_images_are_not_lost(shape, image_size, fit):
    resized = resize_image(np.full((*shape, 3), 200, np.uint8), image_size, fit)
    assert resized.shape == (*image_size, 3)
    assert set(np.unique(resized)) <= {0, 200}
    # A black picture would mean that the image was rounded away.
    assert (resized == 200).any()
    assert fit == "pad" or (resized == 200).all()


def test_pad_keeps_the_aspect_ratio():
    ring = Image.new("L", (40, 20))
    ring.paste(255, (10, 5, 30, 15))
    image = np.repeat(np.asarray(ring)[:, :, None], 3, axis=2)
    padded = Image.fromarray(resize_image(image, (80, 80), "pad")[:, :, 0] > 127)
    left, top, right, bottom = padded.getbbox()
    assert (right - left, bottom - top) == (40, 20)
    assert (left, top) == (20, 30)


def resample_rows(values, to):
    """Pillow's bilinear filter along rows, in whole numbers, with plain loops over columns."""
    scale = values.shape[1] / to
    reach = max(scale, 1.0)
    columns = []
    for i in range(to):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), int(centre + reach + 0.5)
        near = range(first, min(values.shape[1], last))
        weights = np.array([max(0.0, 1 - abs((j - centre + 0.5) / reach)) for j in near])
        whole = (0.5 + weights / weights.sum() * 2**22).astype(np.int64)
        part = values[:, near.start : near.stop].astype(np.int64)
        columns.append(((part * whole[:, np.newaxis]).sum(axis=1) + 2**21) >> 22)
    return np.stack(columns, axis=1).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "to"),
    [((400, 301), (70, 224)), ((90, 30), (7, 29)), ((20, 9), (6, 3)), ((6, 9), (8, 5))],
)
def test_rows_are_resized_before_columns_whatever_the_version_of_pillow(size, to):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wide = resample_rows(image, to[1])
    expected = resample_rows(wide.transpose(1, 0, 2), to[0]).transpose(1, 0, 2)
    np.testing.assert_array_equal(resize_image(image, to, "stretch"), expected)
    if size == (20, 9):  # where nothing is left at the sides, `pad` is the same
        np.testing.assert_array_equal(resize_image(image, to, "pad"), expected)
