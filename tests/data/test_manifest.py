import os
import re
from pathlib import Path

import pandas as pd
import pytest

from cvpipe.data.manifest import (
    check_columns,
    is_dicom_file,
    is_image_name,
    other_files,
    scan_folders,
    scan_images,
    scan_table,
    stray_images,
)
from cvpipe.errors import InputError


def make(root: Path, *names: str) -> Path:
    """Make empty files: whether they are images is not asked here."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write_table(root: Path, content: str | bytes, name: str = "labels.csv") -> Path:
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows_of(table: pd.DataFrame) -> list[tuple]:
    return list(table.itertuples(index=False, name=None))


# Folders.


def test_class_folders(tmp_path):
    make(
        tmp_path, "NA/1.png", "0/b.JPG", "0/a.jpeg", "poppy/1.png", "Blüte rot/tief/er/größe 1.TIF"
    )
    table = scan_images(tmp_path, "folders")
    assert list(table) == ["image_id", "label", "group"]
    assert table["image_id"].tolist() == table["group"].tolist()
    assert rows_of(table[["image_id", "label"]]) == [
        ("0/a.jpeg", "0"),
        ("0/b.JPG", "0"),
        ("Blüte rot/tief/er/größe 1.TIF", "Blüte rot"),
        ("NA/1.png", "NA"),
        ("poppy/1.png", "poppy"),
    ]


def test_sorted_as_text_and_not_by_folder(tmp_path):
    make(tmp_path, "a/b.png", "a-b/c.png", "a/b/c.png")
    # "-" and "." come before "/".
    assert scan_folders(tmp_path)["image_id"].tolist() == ["a-b/c.png", "a/b.png", "a/b/c.png"]
    assert scan_images(tmp_path, "folders")["image_id"].is_monotonic_increasing


def test_what_is_not_an_image_of_a_class(tmp_path):
    make(
        tmp_path,
        "cat/1.png",
        "cat/notes.txt",
        "cat/deep/Thumbs.db",
        "cat/noending",
        "cat/._1.png",
        "cat/.DS_Store",
        "cat/.hidden/2.png",
        ".git/3.png",
        "stray.png",
        "readme.txt",
        ".hidden.png",
    )
    assert scan_folders(tmp_path)["image_id"].tolist() == ["cat/1.png"]
    assert other_files(tmp_path) == ["cat/deep/Thumbs.db", "cat/noending", "cat/notes.txt"]
    assert stray_images(tmp_path) == ["stray.png"]


def test_a_folder_named_like_an_image_is_no_stray_image(tmp_path):
    make(tmp_path, "b.png", "a.jpg", "c.png", "folder.png/1.png")
    assert stray_images(tmp_path) == ["a.jpg", "b.png", "c.png"]
    assert rows_of(scan_folders(tmp_path)) == [("folder.png/1.png", "folder.png")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[
            (f"a.{s}", True)
            for s in ("jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff", "dcm", "dicom")
        ],
        ("A.JPG", True),
        ("a.b.png", True),
        ("a.png.txt", False),
        ("png", False),
        (".png", False),
        (".a.png", False),
        ("a.svg", False),
    ],
)
def test_is_image_name(name, expected):
    assert is_image_name(name) is expected


def test_links_to_files_and_class_folders_are_followed(tmp_path):
    outside = make(tmp_path / "outside", "far.png", "deep/2.png")
    root = make(tmp_path / "root", "cat/1.png")
    (root / "cat" / "link.png").symlink_to(outside / "far.png")
    (root / "dog").symlink_to(outside)
    assert rows_of(scan_folders(root)) == [
        ("cat/1.png", "cat"),
        ("cat/link.png", "cat"),
        ("dog/deep/2.png", "dog"),
        ("dog/far.png", "dog"),
    ]


def test_circles_of_links_end_and_deeper_links_are_told(tmp_path):
    root = make(tmp_path / "root", "cat/1.png", "dog/2.png")
    (root / "cat" / "dogs").symlink_to(root / "dog")
    (root / "dog" / "cats").symlink_to(root / "cat")
    (root / "all").symlink_to(root)
    found = scan_folders(root)["image_id"].tolist()
    assert found == ["all/cat/1.png", "all/dog/2.png", "cat/1.png", "dog/2.png"]
    assert other_files(root) == ["all/all", "all/cat/dogs", "all/dog/cats", "cat/dogs", "dog/cats"]


def test_links_to_class_folders_of_a_split_are_followed(tmp_path):
    outside = make(tmp_path / "outside", "1.png", "deep/2.png")
    root = make(tmp_path / "root", "train/cat/1.png", "test/cat/2.png", "notes/read.txt")
    (root / "train" / "dog").symlink_to(outside)
    (root / "test" / "dog").symlink_to(outside / "deep")
    (root / "test" / "cat" / "more").symlink_to(outside)
    (root / "train" / "all").symlink_to(root)
    assert rows_of(scan_folders(root)[["image_id", "label"]]) == [
        ("test/cat/2.png", "cat"),
        ("test/dog/2.png", "dog"),
        ("train/all/test/cat/2.png", "all"),
        ("train/all/train/cat/1.png", "all"),
        ("train/cat/1.png", "cat"),
        ("train/dog/1.png", "dog"),
        ("train/dog/deep/2.png", "dog"),
    ]
    assert "test/cat/more" in other_files(root)


def test_a_class_that_bears_the_name_of_a_split(tmp_path):
    root = make(tmp_path, "test/1.png", "other/2.png")
    (root / "test" / "back").symlink_to(root)
    ids = scan_folders(root)["image_id"].tolist()  # the circle ends
    assert ids == ["other/2.png", "test/1.png", "test/back/other/2.png", "test/back/test/1.png"]


def test_dicom_by_content(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM...")
    (tmp_path / "text").write_bytes(bytes(128) + b"TEXT")
    (tmp_path / "short").write_bytes(b"DICM")
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    names = ("IM0001", "text", "short", "gone", ".", "pipe")
    assert [name for name in names if is_dicom_file(tmp_path / name)] == ["IM0001"]


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder '.*nowhere'; give the folder of the"):
        scan_images(tmp_path / "nowhere", "folders")
    make(tmp_path, "file.png")
    with pytest.raises(InputError, match=r"there is no folder '.*file\.png'"):
        scan_images(tmp_path / "file.png", "folders")


@pytest.mark.parametrize("names", [[], ["1.png", "2.png"], ["cat/readme.txt"], ["cat/.1.png"]])
def test_no_image(tmp_path, names):
    make(tmp_path, *names)
    expected = (
        f"no image was found in the class folders of {str(tmp_path)!r}; expected "
        "<folder>/<class>/<image> with one of the suffixes ['.bmp', '.dcm', '.dicom', '.gif'"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        scan_images(tmp_path, "folders")


def test_no_image_but_dicom_without_a_suffix(tmp_path):
    make(tmp_path, "cat/IM0001")
    with pytest.raises(InputError, match=r"'\.webp'\]\.$"):
        scan_images(tmp_path, "folders")
    (tmp_path / "cat" / "IM0002").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(
        InputError, match=r"\]\. 'cat/IM0002' is DICOM: let its name end in \.dcm\.$"
    ):
        scan_images(tmp_path, "folders")


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    make(tmp_path, "cat/1.png", "dog/1.png")
    list_folder = Path.iterdir

    def refuse(path):
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"cannot list the folder '.*dog': Permission denied\.$"):
        scan_folders(tmp_path)


def test_a_name_that_is_not_text(tmp_path):
    make(tmp_path, "cat/1.png")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/cat/gr\xfcn.png")).touch()
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    with pytest.raises(InputError, match=r"the name '.*gr\\udcfcn\.png' is not valid Unicode; ren"):
        scan_folders(tmp_path)


# Tables.


def test_table_keeps_every_value_as_text(tmp_path):
    write_table(
        tmp_path,
        "age,label,path,group,patient name\n"
        '007,NA,b/1.png,p1,"Müller, J."\n'
        "1.50,0,a.png,,\n"
        "NaN,poppy,b/2.png,p1,null\n",
    )
    table = scan_images(tmp_path, "labels.csv")
    assert list(table) == ["age", "label", "image_id", "group", "patient name"]
    assert rows_of(table[["image_id", "label", "group", "age", "patient name"]]) == [
        ("a.png", "0", "a.png", "1.50", ""),
        ("b/1.png", "NA", "p1", "007", "Müller, J."),
        ("b/2.png", "poppy", "p1", "NaN", "null"),
    ]
    assert list(check_columns(table)) == ["image_id", "label", "group", "age", "patient name"]


def test_labels_that_are_all_numbers_stay_text(tmp_path):
    path = write_table(tmp_path, "path,label,age\n1.png,0,1.50\n2.png,00,2.0\n3.png,1,3\n")
    assert rows_of(scan_table(tmp_path, path)) == [
        ("1.png", "0", "1.50"),
        ("2.png", "00", "2.0"),
        ("3.png", "1", "3"),
    ]


def test_tables_of_other_programs(tmp_path):
    expected = [("ä.png", "x y"), ("b.png", "z")]
    for name, content in {
        "excel.csv": b"\xef\xbb\xbfpath,label\r\n\xc3\xa4.png,x y\r\nb.png,z\r\n",
        "quoted.csv": b'\xef\xbb\xbf"path","label"\n"\xc3\xa4.png","x y"\n"b.png","z"',
        "tabs.tsv": b"path\tlabel\n\xc3\xa4.png\tx y\n\nb.png\tz\n",
        "TABS.TSV": b"path\tlabel\n\xc3\xa4.png\tx y\nb.png\tz\n",
    }.items():
        table = scan_table(tmp_path, write_table(tmp_path, content, name))
        assert list(table) == ["image_id", "label"], name
        assert rows_of(table) == expected, name


def test_a_missing_label_stays_empty(tmp_path):
    table = scan_table(tmp_path, write_table(tmp_path, "path,label\na.png,\nb.png\n"))
    assert rows_of(table) == [("a.png", ""), ("b.png", "")]


def test_a_table_keeps_rows_that_the_audit_will_judge(tmp_path):
    write_table(tmp_path, "path,label\nmissing.png,a\n./missing.png,b\n")
    assert rows_of(scan_images(tmp_path, "labels.csv")) == [
        ("missing.png", "a", "missing.png"),
        ("missing.png", "b", "missing.png"),
    ]


@pytest.mark.parametrize(
    ("text", "image_id"),
    [
        (r"cat\deep\1.png", "cat/deep/1.png"),
        ("./cat//1.png", "cat/1.png"),
        ("cat/../dog/1.png", "dog/1.png"),
        ("..cat/..1.png", "..cat/..1.png"),
        ("12:30.png", "12:30.png"),
        ("größe 1.png", "größe 1.png"),
    ],
)
def test_paths_are_normalised(tmp_path, text, image_id):
    table = scan_table(tmp_path, write_table(tmp_path, f"path,label\n{text},a\n"))
    assert table["image_id"].tolist() == [image_id]


@pytest.mark.parametrize(
    "text",
    [
        "../a.png",
        r"..\a.png",
        "cat/../../a.png",
        "..",
        ".",
        "cat/..",
        '""',
        "/etc/a.png",
        "//server/share/a.png",
        r"\\server\share\a.png",
        r"C:\images\a.png",
        "c:/a.png",
        "C:a.png",
        r"\a.png",
    ],
)
def test_paths_stay_inside_the_root(tmp_path, text):
    path = write_table(tmp_path, f"path,label\nok.png,a\n{text},a\n")
    given = "" if text == '""' else text
    expected = (
        f"{str(path)!r} names the image {given!r}; paths must be relative to {str(tmp_path)!r} "
        "and stay inside it."
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        scan_table(tmp_path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "path,class\na.png,x\n",
            "lacks the column(s) ['label']; it has ['path', 'class']. A table of images needs the "
            "columns 'path' and 'label', parted by commas in a .csv file and by tabs in a .tsv "
            "file. Instead of 'label', choose one of ['class', 'path'].",
        ),
        (
            "labels,path\nx,a.png\n",
            "file. Instead of 'label', did you mean 'labels'?",
        ),
        ("Path,label\na.png,x\n", "file. Instead of 'path', did you mean 'Path'?"),
        (
            "path;label\na.png;x\n",
            "lacks the column(s) ['path', 'label']; it has ['path;label']. A table of images",
        ),
        ("path;label\na.png;x, y\n", "it has ['path;label']."),
        ("path,label\n", "has no rows; list at least one image."),
        ("", "No columns to parse from file; save it as CSV in UTF-8."),
        ("path,label\na.png,x\nb.png,y,z\n", "Expected 2 fields in line 3, saw 3; save it as"),
        (b"path,label\ngr\xfcn.png,x\n", "can't decode byte 0xfc in position"),
        (
            "path,label\na.png,x,1\nb.png,y,2\n",
            "have more values than its header has columns (['path', 'label']); give every",
        ),
        (
            "path,label,fold\na.png,x,1\n",
            "has a column 'fold', where cvpipe itself fills in the part of cross-validation (folds "
            "of your own are not supported yet); rename the column.",
        ),
        (
            "path,label,fold_r12\na.png,x,1\n",
            "has a column 'fold_r12', where cvpipe itself fills in the part of cross-validation",
        ),
        (
            "path,label,careless\na.png,x,1\n",
            "has a column 'careless', where cvpipe itself fills in the split of the careless "
            "protocol; rename the column.",
        ),
        (
            "path,label,sha256\na.png,x,0\n",
            "has a column 'sha256', where cvpipe itself fills in the checksum of each file; rename",
        ),
        (
            "path,label,image_id\na.png,x,0\n",
            "has a column 'image_id', where cvpipe itself fills in the key of each image (give its "
            "file in 'path'); rename the column.",
        ),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    path = write_table(tmp_path, content)
    with pytest.raises(InputError) as caught:
        scan_table(tmp_path, path)
    assert message in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_only_resemble_ours_are_kept(tmp_path):
    path = write_table(tmp_path, "path,label,fold_r,fold_r1x,my_fold_r1\na.png,x,1,2,3\n")
    assert list(scan_table(tmp_path, path))[2:] == ["fold_r", "fold_r1x", "my_fold_r1"]


def test_no_table(tmp_path):
    with pytest.raises(InputError, match=r"there is no table '.*labels\.csv'; give it in data\.la"):
        scan_images(tmp_path, "labels.csv")
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot read the table '.*labels\.csv': Is a directory"):
        scan_images(tmp_path, "labels.csv")


# Another column as the label.


@pytest.mark.parametrize(
    ("header", "label_column", "expected"),
    [
        ("path,label,age", "label", {"label": "x", "age": "7"}),
        ("path,label,label_given", "label", {"label": "x", "label_given": "7"}),
        ("path,label,age", "age", {"label_given": "x", "label": "7"}),
        ("path,finding,age", "age", {"finding": "x", "label": "7"}),
        ("path,label_given,age", "age", {"label_given": "x", "label": "7"}),
        ("path,label,label_given", "label_given", {"label_given": "x", "label": "7"}),
        ("path,label,group", "group", {"label_given": "x", "label": "7"}),
    ],
)
def test_label_column(tmp_path, header, label_column, expected):
    write_table(tmp_path, f"{header}\na.png,x, 7\n")
    table = scan_images(tmp_path, "labels.csv", label_column)
    [row] = table.to_dict("records")
    assert {name: value.strip() for name, value in row.items()} == {
        "image_id": "a.png",
        "group": "a.png",
        **expected,
    }
    assert row["label"] == row["label"].strip()


def test_label_column_keeps_rows_together(tmp_path):
    write_table(tmp_path, "path,label,type\nb.png,x,1\na.png,y,0\nc.png,,\n")
    table = scan_images(tmp_path, "labels.csv", "type")
    assert rows_of(table[["image_id", "label", "label_given"]]) == [
        ("a.png", "0", "y"),
        ("b.png", "1", "x"),
        ("c.png", "", ""),
    ]


@pytest.mark.parametrize(
    ("header", "label_column", "message"),
    [
        (
            "path,label,tipe",
            "type",
            "lacks the column(s) ['type']; it has ['path', 'label', 'tipe']. A table of images "
            "needs the columns 'path' and 'type', parted by commas in a .csv file and by tabs in "
            "a .tsv file. Instead of 'type', did you mean 'tipe'?",
        ),
        (
            "path,label,age",
            "path",
            "the label column is 'path', which names the files of the images; choose another",
        ),
        (
            "path,label,label_given,age",
            "age",
            "has the columns 'label' and 'label_given'; while 'age' is the label column, cvpipe "
            "keeps the former under the name of the latter: rename 'label_given'.",
        ),
        ("path,label,fold", "fold", "has a column 'fold', where cvpipe itself fills in the part"),
    ],
)
def test_label_columns_that_are_refused(tmp_path, header, label_column, message):
    path = write_table(tmp_path, f"{header}\na.png{',x' * header.count(',')}\n")
    with pytest.raises(InputError) as caught:
        scan_images(tmp_path, "labels.csv", label_column)
    assert message in str(caught.value)
    assert repr(str(path)) in str(caught.value)


def test_class_folders_have_no_columns(tmp_path):
    make(tmp_path, "cat/1.png")
    expected = (
        "the label column is 'type', but class folders have no columns: the folder is the label. "
        "Leave it at 'label', or give in data.labels the table with that column."
    )
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        scan_images(tmp_path, "folders", "type")
    assert len(scan_images(tmp_path, "folders", "label")) == 1


# Manifests.


def test_check_columns_puts_the_keys_first_and_refuses_repeated_images():
    rows = pd.DataFrame({"age": ["7"], "group": ["g"], "label": ["a"], "image_id": ["x.png"]})
    assert list(check_columns(rows)) == ["image_id", "label", "group", "age"]
    with pytest.raises(InputError, match=r"'x\.png' appears more than once"):
        check_columns(pd.concat([rows, rows]))
