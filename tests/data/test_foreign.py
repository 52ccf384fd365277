import gzip
import io
import zipfile

import numpy as np
import pytest

from cvpipe.data.foreign import BRANDS, SIGNATURES, foreign_kind
from cvpipe.data.images import FORMATS, UnreadableImageError, decode_image


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as content:
        content.writestr("a.txt", "a")
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (archive(), "a ZIP archive or an Office document"),
        (gzip.compress(b"a", mtime=0), "a gzip archive"),
        (array(), "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\n", SIGNATURES[b"version https://git-lfs"]),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "AVIF"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00", "MP4 or a relative of it"),
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML>\n<p>404", "HTML"),
        (b"<html><body>", "HTML"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b'<?xml version="1.0"?>\n<svg>', "SVG"),
        (b'<?xml version="1.0"?>\n<note>', "text"),
        ("Müller, Jürgen\r\n\t1970".encode(), "text"),
        (b"a" * 512 + b"\0", "text"),  # only the head is looked at
        (b"a" * 511 + b"\0", ""),
        (b"MZ\x90\x00\x03", ""),
        (b"", ""),
    ],
)
def test_kinds(data, kind):
    assert foreign_kind(data) == kind


def test_every_kind_can_be_named():
    for signature, kind in SIGNATURES.items():
        assert foreign_kind(signature + b"\0\1") == kind
    for brand, kind in BRANDS.items():
        assert foreign_kind(b"\0\0\0\x20ftyp" + brand) == kind


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (b"Erika Mustermann, 1970-01-01", "; it looks like text"),
        (b"%PDF-1.7 Erika", "; it looks like PDF"),
        (b"Erika Mustermann\0\1\2", ""),
    ],
)
def test_the_content_of_a_foreign_file_is_not_told(data, end):
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(data)
    assert caught.value.reason == f"its content is none of {', '.join(FORMATS)}{end}"
    assert caught.value.finding == "not_an_image"
