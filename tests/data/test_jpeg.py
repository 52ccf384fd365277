import io
import struct

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import jpeg
from cvpipe.data.images import DecodeRule, UnreadableImageError, decode_image
from cvpipe.data.jpeg import REDUCTIONS, choose_reduction, has_metadata, open_photo, reduce_box

RULE = DecodeRule()
PHOTO = Image.fromarray(skimage.data.chelsea()).resize((133, 97))


def save(image=PHOTO, kind="JPEG", orientation=0, **options):
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
        options["exif"] = exif
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(133, 97), (64, 64), (17, 9), (1, 1)])
def test_pixels_are_those_of_the_rule(mode, subsampling, progressive, size, monkeypatch):
    image = PHOTO.resize(size).convert(mode)
    data = save(image, quality=80, subsampling=subsampling, progressive=progressive)
    opened = open_photo(data, RULE)
    expected = decode_image(data, RULE)
    monkeypatch.delattr(jpeg, "decode_image")  # the fast way, not the fallback
    np.testing.assert_array_equal(opened.decode(1), expected)
    assert opened.size == expected.shape[:2]


def test_rare_subsampling_is_left_to_the_rule():
    data = bytearray(save(PHOTO.resize((64, 64)), subsampling=2))
    start = data.index(b"\xff\xc0") + 11  # of the luminance: 1 x 4 instead of 2 x 2
    assert data[start] == 0x22
    data[start] = 0x14
    opened = open_photo(bytes(data), RULE)
    np.testing.assert_array_equal(opened.decode(1), decode_image(bytes(data), RULE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(orientation):
    data = save(orientation=orientation)
    opened = open_photo(data, RULE)
    expected = decode_image(data, RULE)
    np.testing.assert_array_equal(opened.decode(1), expected)
    assert opened.size == expected.shape[:2]
    small = opened.decode(4)
    assert small.shape[:2] == tuple(-(-side // 4) for side in opened.size)


def test_orientation_may_stand_in_xmp():
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    data = save(xmp=xmp)
    np.testing.assert_array_equal(open_photo(data, RULE).decode(1), decode_image(data, RULE))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [(133, 97), (640, 480), (9, 17)])
def test_a_reduced_photo_is_a_small_copy(reduction, size):
    image = PHOTO.resize(size)
    small = open_photo(save(image, quality=95), RULE).decode(reduction)
    assert small.shape[:2] == (-(-size[1] // reduction), -(-size[0] // reduction))
    if size == (640, 480):  # divisible, so both show exactly the same
        resized = np.asarray(image.resize((small.shape[1], small.shape[0]), Image.Resampling.BOX))
        assert np.abs(small.astype(int) - resized).mean() < 4


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("TIFF", "I;16"),
        ("BMP", "P"),
        ("GIF", "P"),
    ],
)
def test_all_else_is_decoded_by_the_rule(kind, mode):
    image = PHOTO.convert("I").convert("I;16") if mode == "I;16" else PHOTO.convert(mode)
    data = save(image, kind)
    opened = open_photo(data, RULE)
    for reduction in (1, 2):
        np.testing.assert_array_equal(opened.decode(reduction), decode_image(data, RULE))
    assert opened.size == (97, 133)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (save()[:2000], "truncated"),
        (b"", "empty_file"),
        (b"no image", "not_an_image"),
        (save()[:30], "truncated"),
        (b"\xff\xd8\xff", "truncated"),
    ],
)
def test_damage_is_named_as_the_audit_names_it(data, finding):
    with pytest.raises(UnreadableImageError) as info:
        open_photo(data, RULE).decode(1)
    assert info.value.finding == finding
    with pytest.raises(UnreadableImageError) as expected:
        decode_image(data, RULE)
    assert str(info.value) == str(expected.value)


def test_what_pillow_tolerates_is_tolerated():
    data = bytearray(save())
    middle = len(data) // 2
    data[middle : middle + 4] = b"\x12\x34\x56\x78"
    opened = open_photo(bytes(data), RULE)
    np.testing.assert_array_equal(opened.decode(1), decode_image(bytes(data), RULE))


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.delattr(jpeg.simplejpeg, "decode_jpeg")
    with pytest.raises(UnreadableImageError, match=r"more than data\.max_pixels = 100") as info:
        open_photo(save(), DecodeRule(max_pixels=100))
    assert info.value.finding == "too_many_pixels"


def segment(marker, content=b""):
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([segment(0xE0, b"JFIF"), segment(0xDB, b"x" * 65), segment(0xDA)], False),
        ([segment(0xE0, b"JFIF"), segment(0xE1, b"Exif"), segment(0xDA)], True),
        ([segment(0xE2, b"ICC" * 9000), segment(0xE1), segment(0xDA)], True),
        # One behind the start of the pixels is none.
        ([segment(0xDA), segment(0xE1, b"Exif")], False),
        ([segment(0xE0, b"\xff\xe1"), segment(0xDA)], False),
        ([], True),
        ([b"garbage"], True),
        ([segment(0xE0, b"cut off")[:6]], True),
    ],
)
def test_metadata_are_found_in_the_header(segments, expected):
    assert has_metadata(b"\xff\xd8" + b"".join(segments)) == expected


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_a_reduction_leaves_enough_pixels(height, width, image_size):
    reduction = choose_reduction((5, 6, height, width), image_size)
    if reduction > 1:
        assert height // reduction >= image_size[0]
        assert width // reduction >= image_size[1]
    larger = [r for r in REDUCTIONS if r > reduction]
    assert all(height // r < image_size[0] or width // r < image_size[1] for r in larger)


@given(st.data())
def test_a_reduced_crop_shows_the_same_part(data):
    size = tuple(data.draw(st.integers(8, 500)) for _ in range(2))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    reduced = tuple(-(-side // reduction) for side in size)
    lengths = [data.draw(st.integers(1, side)) for side in size]
    starts = [data.draw(st.integers(0, s - n)) for s, n in zip(size, lengths, strict=True)]
    box = reduce_box((*starts, *lengths), size, reduced)
    for axis in (0, 1):
        start, length = box[axis], box[axis + 2]
        assert 0 <= start < start + length <= reduced[axis]
        assert abs(start - starts[axis] * reduced[axis] / size[axis]) <= 1
        # At the lower and right border a pixel more can be lost than rounding takes.
        assert abs(length - lengths[axis] * reduced[axis] / size[axis]) <= 1.5
    if reduction == 1:
        assert box == (*starts, *lengths)
