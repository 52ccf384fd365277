"""What is shared by decoding and by reading headers, which are tested by themselves."""

import io
import zlib
from importlib import metadata

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from cvpipe import formats
from cvpipe.data.images import SUFFIX_FORMATS
from cvpipe.formats import (
    FORMATS,
    PILLOW_FORMATS,
    START_BYTES,
    find_format,
    inflate_dicom,
    open_image,
    reader_versions,
)
from tests.data.odd_files import dicom_of, encode

VALUES = np.arange(6, dtype=np.uint8).reshape(2, 3)


def test_every_format_has_a_suffix():
    assert sorted(set(SUFFIX_FORMATS.values())) == list(FORMATS)


@pytest.mark.parametrize("name", PILLOW_FORMATS)
def test_pillows_formats_are_told_and_opened(name, monkeypatch):
    data = encode(Image.new("RGB", (70, 50)), name)
    assert find_format(data[:START_BYTES]) == name
    # Pillow's limit of pixels does not apply to a header.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70 * 50 - 1)
    with open_image(io.BytesIO(data), name) as image:
        assert image.size == (70, 50)


def test_other_content_is_no_format():
    assert find_format(dicom_of(VALUES)[:START_BYTES]) == "DICOM"
    others = [encode(Image.new("RGB", (7, 5)), name) for name in ("PPM", "TGA", "EPS", "ICO")]
    assert {find_format(data[:START_BYTES]) for data in [*others, b"", b"text"]} == {""}


def test_inflating():
    plain = dicom_of(VALUES)
    assert inflate_dicom(plain, 1) == (plain, True)
    deflated = dicom_of(VALUES, TransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    # The same elements as in the plain file, which has nothing else behind its group 2.
    inflated, complete = inflate_dicom(deflated, 10_000)
    assert complete
    assert plain.endswith(inflated)
    assert inflated.endswith(VALUES.tobytes())
    assert inflate_dicom(deflated, len(inflated) - 1) == (inflated[:-1], False)
    assert inflate_dicom(deflated[:-8], 10_000)[1] is False
    # Without a preamble, too.
    assert inflate_dicom(deflated[132:], 10_000) == (inflated, True)
    start = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = start.compress(inflated) + start.flush()
    assert body[:8] in deflated
    damaged = deflated.replace(body[:8], b"\xff" * 8)
    with pytest.raises(zlib.error):
        inflate_dicom(damaged, 10_000)


def test_versions_of_what_is_installed(monkeypatch):
    assert set(reader_versions()) >= {"pillow", "pydicom"}
    installed = {"pillow": "12", "python-gdcm": "3", "unrelated": "1"}

    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(formats.metadata, "version", version)
    assert reader_versions() == {"pillow": "12", "python-gdcm": "3"}
