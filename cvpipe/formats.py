"""The image formats that cvpipe reads: told by how a file begins, opened by their headers.

Both who decodes files (`cvpipe.data`) and who only looks at their headers (`cvpipe.features`)
ask here, so that they agree. Nothing is decoded.
"""

import io
import struct
import zlib
from importlib import metadata
from typing import BinaryIO

# Importing a plug-in is what makes `Image.OPEN` know it.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

# Pillow knows many more formats. Some of them are not pictures of one size, and one (EPS) runs
# a program on the file's content, whatever the file is called; none of them is tried.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")
FORMATS = tuple(sorted((*PILLOW_FORMATS, "DICOM")))
# MPO is a JPEG with further pictures behind the first, as many phones write it.
FORMAT_ALIASES = {"MPO": "JPEG"}
START_BYTES = 132  # that tell every format; of DICOM up to and with the mark `DICM`
# Decoders report damage by any of these, depending on the format; found by damaging files.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    AssertionError,
    struct.error,
)
# What pydicom raises besides, and `cvpipe.formats` cannot name without it: see `dicom_damage`.
PYTHON_DAMAGE = (
    *DAMAGE,
    AttributeError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
)
# Packages whose version can change the pixels of a file; pydicom finds its plug-ins by itself.
READERS = (
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
    "python-gdcm",
)


def find_format(start: bytes) -> str:
    """Name the format of a file by its content.

    Args:
        start: The first `START_BYTES` of the file, or more.

    Returns:
        One of `FORMATS`, or `""`.

    Example:
        >>> find_format(b"GIF89a and so on"), find_format(b"some text")
        ('GIF', '')
    """
    if is_dicom(start):
        return "DICOM"
    for name in PILLOW_FORMATS:
        accepts = Image.OPEN[name][1]
        if accepts is not None and accepts(start[:16]) is True:
            return name
    return ""


def open_image(file: BinaryIO, format_name: str) -> Image.Image:
    """Read the header of a file of one of the `PILLOW_FORMATS`.

    `Image.open` would do the same, but it also applies Pillow's own limit of pixels, which is a
    variable of the whole process: raising it here would raise it for every other user of Pillow,
    and several threads decode at the same time.
    """
    return Image.OPEN[format_name][0](file, "")


def is_dicom(data: bytes) -> bool:
    """Say whether a file begins as DICOM does.

    Most begin with 128 free bytes and `DICM`. Where these are missing, files begin with the
    length of group 2; older ones with the first element of group 8, little or big-endian. These
    four bytes begin no other format and no text.

    Example:
        >>> is_dicom(bytes(128) + b"DICM"), is_dicom(bytes([8, 0, 5, 0])), is_dicom(b"text")
        (True, True, False)
    """
    old = data[:2] == b"\x08\0" and data[3:4] == b"\0"
    return data[128:132] == b"DICM" or data[:4] == b"\x02\0\0\0" or old or data[:3] == b"\0\x08\0"


def dicom_damage() -> tuple[type[Exception], ...]:
    """List what pydicom raises on damaged files; found by damaging files. Needs pydicom."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*PYTHON_DAMAGE, BytesLengthException, InvalidDicomError)


def inflate_dicom(data: bytes, max_bytes: int) -> tuple[bytes, bool]:
    """Undo the deflation of a DICOM file, if it is deflated. Needs pydicom.

    pydicom would do it by itself, but without a limit: a thousandth of what it writes can be
    enough to fill the memory.

    Args:
        data: Content of the file.
        max_bytes: Where to stop.

    Returns:
        The content, of a deflated file that of its data set without a preamble, which pydicom
        reads as well; and whether it is all. A file that ends early is not all either.

    Raises:
        zlib.error: The stream is damaged.
    """
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    file = io.BytesIO(data)
    read_preamble(file, force=True)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, *_: tag >> 16 != 2,
    )
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return data, True
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = stream.decompress(data[file.tell() :], max_bytes)
    return inflated, stream.eof


def reader_versions() -> dict[str, str]:
    """Map each installed package that decides what a file's pixels are to its version."""
    found = {}
    for name in READERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
