"""DICOM: against pydicom's own functions, by hand, and on every file that pydicom ships."""

import contextlib
import hashlib
import io
import re
import tracemalloc

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from cvpipe.data.dicom import apply_window, pseudonym
from cvpipe.data.images import DecodeRule, UnreadableImageError, decode_image, inspect_image
from tests.data.odd_files import PYDICOM, dicom_of, encode, with_syntax

# pydicom warns of what is odd in the files that it ships, and of our short ones.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RAMP = np.array([[0, 100, 200], [300, 400, 4095]], dtype=np.uint16)


def grey_of(data, rule=None):
    """Decode an image of grey pixels, as rows of numbers."""
    pixels = decode_image(data, rule or DecodeRule())
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0].tolist()


def lut(values, first, bits):
    """Make a table for a modality or VOI LUT sequence."""
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new("LUTData", "US", values)
    return Sequence([item])


# By hand.


def test_without_a_window_the_whole_range_of_the_stored_bits_is_shown():
    # Twelve bits: 4095 is white. 100 * 255 / 4095 is 6.2, and so on.
    data = dicom_of(RAMP, BitsStored=12, HighBit=11)
    assert grey_of(data) == [[0, 6, 12], [19, 25, 255]]
    # Sixteen bits: 65,535 is white.
    assert grey_of(dicom_of(RAMP)) == [[0, 0, 1], [1, 2, 16]]
    # Eight bits stay as they are.
    eight = np.array([[0, 1, 100], [200, 254, 255]], np.uint8)
    assert grey_of(dicom_of(eight)) == eight.tolist()


def test_signed_values_begin_at_the_lowest():
    data = dicom_of(np.array([[-32_768, 0, 32_767]], np.int16))
    assert grey_of(data) == [[0, 128, 255]]


def test_the_range_is_rescaled_with_the_values():
    rescaled = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": -1000}
    assert grey_of(dicom_of(RAMP, RescaleSlope=2, **rescaled)) == [[0, 6, 12], [19, 25, 255]]
    # A falling slope turns white into black, for the range ends at the largest rescaled value.
    falling = grey_of(dicom_of(RAMP, RescaleSlope=-2, **rescaled))
    assert falling == [[255, 249, 243], [236, 230, 0]]


def test_monochrome1_is_inverted():
    for elements in ({}, {"WindowCenter": 200, "WindowWidth": 401}):
        plain = np.array(grey_of(dicom_of(RAMP, **elements)))
        inverted = dicom_of(RAMP, PhotometricInterpretation="MONOCHROME1", **elements)
        assert grey_of(inverted) == (255 - plain).tolist()


def test_values_that_fill_little_of_their_range_are_told():
    def used(values, rule=None, **elements):
        facts = inspect_image(dicom_of(values, **elements), rule or DecodeRule())[1]
        return (facts.range_used, facts.low, facts.high)

    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    assert used(RAMP, **rescaled) == (pytest.approx(4095 / 65_535), -1000, 7190)
    assert used(RAMP, BitsStored=12, HighBit=11) == (1, 0, 4095)
    # With a window, with eight bits and in colour nothing is lost, and nothing is said.
    nothing = (1, 0, 0)
    assert used(RAMP, WindowCenter=200, WindowWidth=201) == nothing
    assert used(RAMP, VOILUTSequence=lut([0] * 5000, 0, 16)) == nothing
    assert used(RAMP, DecodeRule(dicom_window=(200.0, 201.0))) == nothing
    assert used(np.array([[0, 9]], np.uint8)) == nothing
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    assert used(RAMP, Rows=1, Columns=2, **colour) == nothing


def test_a_window_by_hand():
    # Centre 200 and width 201: from 99.5 to 299.5 in 200 steps, by C.11.2.1.2.
    # (100 - 199.5) / 200 + 0.5 = 0.0025; (200 - 199.5) / 200 + 0.5 = 0.5025.
    data = dicom_of(RAMP, WindowCenter=200, WindowWidth=201)
    assert grey_of(data) == [[0, 1, 128], [255, 255, 255]]
    # Of several windows the first.
    several = dicom_of(RAMP, WindowCenter=[200, 9], WindowWidth=[201, 9])
    assert grey_of(several) == grey_of(data)
    # Half a window is none.
    assert grey_of(dicom_of(RAMP, WindowCenter=200)) == grey_of(dicom_of(RAMP))


def test_the_window_of_the_rule_comes_first():
    rule = DecodeRule(dicom_window=(200.0, 201.0))
    for elements in (
        {},
        {"WindowCenter": 9, "WindowWidth": 9},
        {"VOILUTSequence": lut([0] * 5000, 0, 16)},
        # In the unit of rescaled values: stored 100 stands for 100.
        {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 9, "WindowWidth": 9},
    ):
        expected = [[0, 1, 128], [255, 255, 255]]
        if "RescaleSlope" in elements:
            expected = [[0, 1, 255], [255, 255, 255]]
        assert grey_of(dicom_of(RAMP, **elements), rule) == expected


def test_a_table_comes_before_a_window():
    table = lut([0, 64, 128, 255], 100, 8)
    values = np.array([[0, 100, 101, 102, 103, 999]], np.uint16)
    data = dicom_of(values, VOILUTSequence=table, WindowCenter=9, WindowWidth=9)
    assert grey_of(data) == [[0, 0, 64, 128, 255, 255]]


def test_a_modality_table_sets_the_range():
    values = np.array([[0, 1, 2]], np.uint8)
    data = dicom_of(values, ModalityLUTSequence=lut([0, 32_896, 65_535], 0, 16))
    assert grey_of(data) == [[0, 128, 255]]  # 128 * 257 = 32,896


def test_windows_of_the_standard():
    values = np.array([-1e9, 9.0, 10.0, 11.0, 1e9])
    assert apply_window(values, 10, 1).tolist() == [0, 0, 1, 1, 1]
    assert apply_window(values, 10, 2, "LINEAR_EXACT").tolist() == [0, 0, 0.5, 1, 1]
    # By C.11.2.1.2: (x - 9.5) / 2 + 0.5
    assert apply_window(values, 10, 3).tolist() == [0, 0.25, 0.75, 1, 1]
    sigmoid = apply_window(values, 10, 4, "SIGMOID")
    np.testing.assert_allclose(sigmoid, [0, 1 / (1 + np.e), 0.5, 1 / (1 + 1 / np.e), 1], atol=1e-9)


@pytest.mark.parametrize(
    ("width", "function", "message"),
    [
        (0.5, "LINEAR", "a window of width 0.5"),
        (0, "LINEAR_EXACT", "a window of width 0"),
        (-1, "SIGMOID", "a window of width -1"),
        (9, "CUBIC", "a window of the unknown function 'CUBIC'"),
    ],
)
def test_windows_that_are_none(width, function, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        apply_window(np.zeros(1), 0, width, function)
    data = dicom_of(RAMP, WindowCenter=9, WindowWidth=width, VOILUTFunction=function)
    with pytest.raises(UnreadableImageError, match=f"^decoding fails: {message}$"):
        decode_image(data)


def test_colour():
    rgb = np.array([[[10, 20, 30], [40, 50, 60]]], np.uint8)
    colour = {
        "Rows": 1, "Columns": 2, "SamplesPerPixel": 3, "PlanarConfiguration": 0,
        "PhotometricInterpretation": "RGB", "NumberOfFrames": None,
    }  # fmt: skip
    assert decode_image(dicom_of(rgb, **colour)).tolist() == rgb.tolist()
    sixteen = dicom_of(rgb.astype(np.uint16) * 257, **colour)
    assert decode_image(sixteen).tolist() == rgb.tolist()
    ybr = np.array([[[128, 128, 128], [76, 85, 255]]], np.uint8)  # grey, and red
    data = dicom_of(ybr, **{**colour, "PhotometricInterpretation": "YBR_FULL"})
    assert np.abs(decode_image(data) - [[[128, 128, 128], [255.0, 0, 0]]]).max() <= 1


def test_palette():
    def words(*values):
        return np.array(values, np.uint16).tobytes()

    entries = {
        f"{name}PaletteColorLookupTableData": words(*(v * 257 for v in values))
        for name, values in {"Red": (0, 100), "Green": (10, 110), "Blue": (20, 255)}.items()
    }
    entries |= {
        f"{name}PaletteColorLookupTableDescriptor": [2, 0, 16] for name in ("Red", "Green", "Blue")
    }
    data = dicom_of(
        np.array([[0, 1]], np.uint8), PhotometricInterpretation="PALETTE COLOR", **entries
    )
    assert decode_image(data).tolist() == [[[0, 10, 20], [100, 110, 255]]]


def test_the_first_frame_is_taken():
    frames = np.arange(24, dtype=np.uint8).reshape(3, 2, 4) * 10
    pixels, facts = inspect_image(dicom_of(frames))
    assert pixels[:, :, 0].tolist() == frames[0].tolist()
    assert facts.num_pages == 3


def test_overlays_are_left_out():
    overlay = {0x60000010: 2, 0x60000011: 3, 0x60000040: "G", 0x60000050: [1, 1]}
    dataset = pydicom.dcmread(io.BytesIO(dicom_of(RAMP)))
    for tag, value in overlay.items():
        dataset.add_new(tag, pydicom.datadict.dictionary_VR(tag), value)
    dataset.add_new(0x60003000, "OW", b"\xff\xff")
    file = io.BytesIO()
    dataset.save_as(file)
    assert grey_of(file.getvalue()) == grey_of(dicom_of(RAMP))


# Facts.


def test_facts():
    data = dicom_of(RAMP, PatientID=" 007 ")
    _, facts = inspect_image(data)
    assert (facts.format, facts.mode, facts.num_pages) == ("DICOM", "MONOCHROME2", 1)
    assert (facts.height, facts.width, facts.file_bytes) == (2, 3, len(data))
    assert facts.patient == hashlib.sha256(b"007").hexdigest()[:16]
    # The level of white does not apply, so no value is stated for it.
    assert (facts.turned, facts.transparent, facts.largest_value) == (False, False, 0)


def test_pseudonym():
    dataset = Dataset()
    assert pseudonym(dataset) == ""
    dataset.StudyInstanceUID = "1.2.3"
    of_study = hashlib.sha256(b"1.2.3").hexdigest()[:16]
    assert pseudonym(dataset) == of_study
    for empty in ("", "  ", None):
        dataset.PatientID = empty
        assert pseudonym(dataset) == of_study
    dataset.PatientID = "Jürgen"
    assert pseudonym(dataset) == hashlib.sha256("Jürgen".encode()).hexdigest()[:16]


# Refusals.


def check_refused(data, finding, reason, rule=None):
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(data, rule or DecodeRule())
    assert caught.value.finding == finding
    assert re.fullmatch(reason, caught.value.reason), caught.value.reason


def test_refusals():
    data = dicom_of(RAMP)
    check_refused(data[:-1], "truncated", "the file ends early: 11 of 12 bytes of pixels")
    check_refused(data[:-30], "truncated", "the file ends before its pixels")
    six = r"it has 3 x 2 = 6 pixels, more than data\.max_pixels = 5"
    check_refused(data, "too_many_pixels", six, DecodeRule(max_pixels=5))
    large = dicom_of(RAMP, Rows=65_535, Columns=65_535)
    check_refused(large, "too_many_pixels", r"it has 65535 x 65535 = 4,294,836,225 pixels.*")
    nothing = bytes(128) + b"DICM" + bytes(50)
    check_refused(nothing, "not_an_image", "it begins like DICOM, but does not say what it holds")
    check_refused(b"\x08\0\x05\0" + b"text " * 9, "not_an_image", "it begins like DICOM, .*")
    check_refused(
        (PYDICOM / "rtplan.dcm").read_bytes(),
        "unreadable",
        "this DICOM file has no pixels; it is a 'RT Plan Storage'",
    )
    check_refused(
        with_syntax(data, JPEGLSLossless),
        "unreadable",
        "its pixels are compressed as 'JPEG-LS Lossless Image Compression', which cannot be "
        r"decoded here; pip install 'pylibjpeg\[all\]', or store it uncompressed",
    )
    floats = floating(np.ones((2, 3), np.float32))
    no_white = (
        "decoding fails: images of floating-point numbers have no agreed white; set "
        r"images\.dicom_window"
    )
    check_refused(floats, "unreadable", no_white)
    assert grey_of(floats, DecodeRule(dicom_window=(1.0, 2.0))) == [[255] * 3] * 2


def floating(values):
    """Write a DICOM file of floating-point numbers."""
    no_integers = {"PixelData": None, "BitsStored": None, "HighBit": None}
    return dicom_of(values, FloatPixelData=values.tobytes(), **no_integers)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_no_number_is_refused():
    flat = "decoding fails: its rescaling makes all values equal"
    check_refused(dicom_of(RAMP, RescaleSlope=0, RescaleIntercept=5), "unreadable", flat)
    values = np.array([[0, 1, np.inf], [-np.inf, 2, 5]], np.float32)
    rule = DecodeRule(dicom_window=(1.5, 3.0))
    assert grey_of(floating(values), rule) == [[0, 128, 255], [0, 255, 255]]
    values[0, 0] = np.nan
    missing = "decoding fails: some of its values are no numbers"
    check_refused(floating(values), "unreadable", missing, rule)


def test_deflated_files_are_inflated_within_the_limit_only():
    whole = dicom_of(RAMP, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    assert grey_of(whole) == grey_of(dicom_of(RAMP))
    early = "the file ends early, in its deflated part"
    check_refused(whole[:-20], "truncated", early)
    # 64 million bytes behind a claim of 6 pixels.
    zeros = bytes(64_000_000)
    bomb = dicom_of(RAMP, PixelData=zeros, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    assert len(bomb) < 100_000
    rule = DecodeRule(max_pixels=1000)
    large = (
        "it is deflated and holds more than 16,777,228 bytes, more than its pixels need or "
        r"data\.max_pixels = 1,000 allows"
    )
    claim = {"Rows": 4000, "Columns": 8000, "PixelData": zeros}
    honest = dicom_of(RAMP, **claim, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    claimed = "it has 8000 x 4000 = 32,000,000 pixels.*"
    for data, reason, limit in [
        (bomb, large, rule),
        (bomb, ".*16,777,228 bytes.*", DecodeRule()),
        (honest, claimed, rule),
    ]:
        tracemalloc.start()
        check_refused(data, "too_many_pixels", reason, limit)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
        tracemalloc.stop()
    assert decode_image(honest).shape == (4000, 8000, 3)


@pytest.mark.parametrize(
    ("file_format", "syntax"), [("JPEG", JPEGBaseline8Bit), ("JPEG2000", JPEG2000Lossless)]
)
def test_a_frame_larger_than_the_file_says_is_not_decoded(file_format, syntax, monkeypatch):
    small, large = (
        encode(
            Image.new("L", size), file_format, **({"no_jp2": True} if "2" in file_format else {})
        )
        for size in [(3, 2), (300, 200)]
    )
    data = with_syntax(dicom_of(RAMP.astype(np.uint8)), syntax, small)
    assert grey_of(data, DecodeRule(max_pixels=6)) == [[0, 0, 0], [0, 0, 0]]
    data = with_syntax(dicom_of(RAMP.astype(np.uint8)), syntax, large)
    monkeypatch.setattr("cvpipe.data.dicom.pixel_array", None)  # not called
    reason = r"it has 300 x 200 = 60,000 pixels, more than data\.max_pixels = 59,999"
    check_refused(data, "too_many_pixels", reason, DecodeRule(max_pixels=59_999))


def test_damaged_frames_are_not_said_to_need_a_package():
    jpeg = encode(Image.fromarray(RAMP.astype(np.uint8)), "JPEG")
    for frame in (jpeg[: len(jpeg) - 20], b"no picture", b"\xff\xd8\xff" + bytes(99)):
        data = with_syntax(dicom_of(RAMP.astype(np.uint8)), JPEGBaseline8Bit, frame)
        check_refused(data, "unreadable", r"decoding fails: .*[^.]")


# The files that pydicom ships.

SHIPPED = sorted(path for path in PYDICOM.parent.rglob("*") if path.is_file())


def test_no_shipped_file_crashes():
    outcomes = {}
    for path in SHIPPED:
        try:
            pixels, facts = inspect_image(path.read_bytes())
            assert (pixels.dtype, pixels.shape) == (np.uint8, (facts.height, facts.width, 3))
            outcomes[path.name] = facts.mode
        except UnreadableImageError as error:
            outcomes[path.name] = error.finding
    assert sum(name.isupper() for name in outcomes.values()) >= 60
    assert outcomes["MR_truncated.dcm"] == "truncated"
    assert outcomes["hashes.json"] == outcomes["FileInfo.txt"] == "not_an_image"


def test_cut_and_damaged_files_are_decoded_or_refused():
    rng = np.random.default_rng(0)
    names = ("CT_small", "MR_small_RLE", "SC_rgb_dcmtk_+eb+cr", "image_dfl", "examples_palette")
    for name in names:
        data = (PYDICOM / f"{name}.dcm").read_bytes()
        for attempt in range(40):
            cut = data[: rng.integers(132, len(data) - 200)]
            with pytest.raises(UnreadableImageError) as caught:
                decode_image(cut)
            assert caught.value.finding in ("truncated", "not_an_image", "unreadable")
            if len(cut) > 2500:
                assert caught.value.finding == "truncated"
            damaged = bytearray(data)
            for position in rng.integers(128, len(data) if attempt % 2 else 1500, size=4):
                damaged[position] = rng.integers(256)
            with contextlib.suppress(UnreadableImageError):
                assert decode_image(bytes(damaged)).dtype == np.uint8


@pytest.mark.parametrize(
    "name",
    ["MR_small", "MR_small_bigendian", "MR_small_RLE", "MR_small_jp2klossless", "693_J2KI",
     "J2K_pixelrep_mismatch", "examples_overlay"],
)  # fmt: skip
def test_windows_as_pydicom_has_them(name):
    """pydicom maps a window to the range of the stored bits; ours is its share of that range."""
    data = (PYDICOM / f"{name}.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(data))
    values = apply_modality_lut(dataset.pixel_array, dataset)
    shown = apply_voi_lut(values, dataset)
    signed, bits = dataset.PixelRepresentation, dataset.BitsStored
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = apply_modality_lut(ends, dataset)
    expected = (shown - low) / (high - low) * 255
    assert len(np.unique(np.rint(expected))) > 50
    assert np.abs(decode_image(data)[:, :, 0] - expected).max() <= 0.5 + 1e-9


def test_all_ways_of_storing_an_image_give_the_same():
    reference = decode_image((PYDICOM / "MR_small.dcm").read_bytes())
    for name in ("implicit", "bigendian", "expb", "RLE", "jp2klossless", "padded"):
        other = decode_image((PYDICOM / f"MR_small_{name}.dcm").read_bytes())
        np.testing.assert_array_equal(other, reference)


@pytest.mark.parametrize("name", ["examples_rgb_color", "SC_rgb_rle", "ExplVR_BigEnd"])
def test_colour_as_pydicom_has_it(name):
    data = (PYDICOM / f"{name}.dcm").read_bytes()
    expected = pydicom.dcmread(io.BytesIO(data)).pixel_array
    np.testing.assert_array_equal(decode_image(data), expected)


def test_without_the_preamble_but_with_group_2():
    whole = dicom_of(RAMP)
    assert whole[132:136] == b"\x02\0\0\0"
    assert grey_of(whole[132:]) == grey_of(whole)


def test_without_the_preamble():
    whole = dicom_of(RAMP)
    dataset = pydicom.dcmread(io.BytesIO(whole))
    file = io.BytesIO()
    bare = Dataset()
    bare.update({element.tag: element for element in dataset})
    pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True)
    assert file.getvalue()[128:132] != b"DICM"
    with pytest.raises(UnreadableImageError):
        decode_image(b"\0" + file.getvalue())
    assert grey_of(file.getvalue()) == grey_of(whole)
