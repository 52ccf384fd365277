"""Name the kind of a file that is no image cvpipe reads, so that a person knows what it is.

Only the kind is told, never the content: findings are shared, and the first bytes of a file that
is no image may be the name of a patient.
"""

# By the bytes they begin with; formats that cvpipe reads are not among them.
SIGNATURES = {
    b"%PDF-": "PDF",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\x1f\x8b": "a gzip archive",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"8BPS": "Photoshop",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"version https://git-lfs": "a Git LFS pointer, in place of the file itself",
    b"\x00\x05\x16\x07": "the notes of macOS about a file, not the file itself",
}
# Of the containers that name their kind behind their own length.
BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
HEAD_BYTES = 512
WHITESPACE = b"\t\n\f\r"


def foreign_kind(data: bytes) -> str:
    """Name the kind of a file by its first bytes.

    Args:
        data: Content of a file that is none of the formats that cvpipe reads.

    Returns:
        A kind such as `"PDF"` or `"text"`; `""` when it is none of those known here.

    Example:
        >>> foreign_kind(b"<!DOCTYPE html><title>404</title>")
        'HTML'
    """
    for signature, kind in SIGNATURES.items():
        if data.startswith(signature):
            return kind
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "MP4 or a relative of it")
    head = data[:HEAD_BYTES]
    markup = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if markup.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if markup.startswith(b"<svg") or (markup.startswith(b"<?xml") and b"<svg" in markup):
        return "SVG"
    is_text = head and all(byte >= ord(" ") or byte in WHITESPACE for byte in head)
    return "text" if is_text else ""
