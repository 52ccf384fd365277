"""What a person types, and what comes back: text and exit code."""

import json
import shutil

import pytest
from PIL import Image

from cvpipe.cli import main
from cvpipe.data.sources import DATASETS


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def write_image(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of six different images."""
    for label in ("cat", "dog"):
        for number in range(6):
            shade = 10 * number + (100 if label == "cat" else 0)
            write_image(tmp_path / "pets" / label / f"{number}.jpg", (shade, 50, shade))
    return tmp_path / "pets"


def test_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    for name in ("run", "fetch", "audit", "predict", "report", "verify", "doctor", "list"):
        assert f" {name} " in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu"], ["rnu", "'run'"]),
        (["run", "pets", "--agian"], ["--agian", "--again"]),
        (["run"], ["Missing argument"]),
        (["run", "nowhere"], ["nowhere", "folder of class folders"]),
        (["run", "nowhere.toml"], ["nowhere.toml"]),
        (["list", "feature"], ["'feature'", "'features'"]),
        (["fetch", "brain_mir"], ["brain_mir", "'brain_mri'"]),
        (["predict", "nowhere", "a.jpg"], ["nowhere", "not a run folder"]),
        (["verify", "nowhere"], ["nowhere", "not a bundle"]),
        (["report", "nowhere"], ["nowhere", "not a run folder"]),
    ],
)
def test_what_cannot_start_ends_with_2_and_says_why(
    capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('recipe = "linear_probe"', ["'contender.1.recipe'", "unknown key"]),
        ('clasifier = "x"', ["'contender.1.clasifier'", "did you mean 'classifier'?"]),
    ],
)
def test_a_mistake_in_a_pipeline_file_ends_with_2(capsys, tmp_path, change, words):
    pipeline = tmp_path / "p.toml"
    text = '[data]\nroot = "pets"\n[[contender]]\nname = "a"\nclassifier = "majority"\n' + change
    pipeline.write_text(text)
    code, _, err = call(capsys, "run", pipeline)
    assert code == 2
    assert "p.toml" in err
    if "recipe" not in change:
        for word in words:
            assert word in err


def test_unknown_names_end_with_2_before_anything_is_read(capsys, tmp_path):
    pipeline = tmp_path / "p.toml"
    for line, nearest in (
        ('features = ["hgo"]\nclassifier = "linear_svm"', "'hog'"),
        ('classifier = "mayority"', "'majority'"),
        ('backbone = "efficientnet_lite"\nrecipe = "linear_probe"', "'efficientnet_lite0'"),
    ):
        pipeline.write_text(f'[data]\nroot = "nowhere"\n[[contender]]\nname = "a"\n{line}\n')
        code, _, err = call(capsys, "run", pipeline)
        assert code == 2
        assert f"did you mean {nearest}?" in err


def test_missing_packaged_data_says_how_to_fetch(capsys, tmp_path):
    pipeline = tmp_path / "digits.toml"
    pipeline.write_text('[data]\nroot = "digits"\n[[contender]]\nname="a"\nclassifier="majority"\n')
    code, _, err = call(capsys, "run", pipeline)
    assert code == 2
    assert "cvpipe fetch digits" in err


def test_a_folder_without_images_ends_with_2(capsys, tmp_path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "empty" / "cat" / "notes.txt").write_text("x")
    for command in ("audit", "run"):
        code, _, err = call(capsys, command, tmp_path / "empty")
        assert code == 2
        assert "no image was found" in err


def test_a_table_without_the_needed_columns_ends_with_2(capsys, folder):
    (folder / "labels.csv").write_text("file,class\ncat/0.jpg,cat\n")
    for command in ("audit", "run"):
        code, _, err = call(capsys, command, folder / "labels.csv")
        assert code == 2
        assert "['path', 'label']" in err
        assert "['file', 'class']" in err


def truncate(folder):
    path = folder / "cat" / "0.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def empty(folder):
    (folder / "cat" / "1.jpg").write_bytes(b"")


def replace_by_text(folder):
    (folder / "cat" / "2.jpg").write_text("this is no picture")


def remove_a_class(folder):
    shutil.rmtree(folder / "dog")


def leave_one_image(folder):
    for number in range(1, 6):
        (folder / "dog" / f"{number}.jpg").unlink()


DEFECTS = [
    (truncate, ["unreadable", "cat/0.jpg", "runcated"]),
    (empty, ["empty_file", "cat/1.jpg", "the file is empty"]),
    (replace_by_text, ["not_an_image", "cat/2.jpg", "its content is none of BMP"]),
    (remove_a_class, ["single_class", "at least two classes are needed", "'cat'"]),
    (leave_one_image, ["tiny_class", "class 'dog' has 1 image(s)"]),
]


@pytest.mark.parametrize(("damage", "words"), DEFECTS, ids=lambda v: getattr(v, "__name__", ""))
def test_audit_and_run_name_what_is_wrong_and_end_with_1(
    capsys, folder, tmp_path, monkeypatch, damage, words
):
    monkeypatch.chdir(tmp_path)
    damage(folder)
    code, out, _ = call(capsys, "audit", folder)
    assert code == 1
    for word in words:
        assert word in out
    code, _, err = call(capsys, "run", folder)
    assert code == 1
    for word in words:
        assert word in err
    # The findings are kept, and nothing was fitted.
    run_folder = next((tmp_path / "runs").iterdir())
    assert words[0] in (run_folder / "audit.csv").read_text()
    assert not (run_folder / "contenders").exists()


def test_a_table_row_whose_file_is_missing_ends_with_1(capsys, folder):
    rows = [f"{p.relative_to(folder).as_posix()},{p.parent.name}" for p in folder.rglob("*.jpg")]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows, "cat/lost.jpg,cat"]))
    code, out, _ = call(capsys, "audit", folder / "labels.csv")
    assert code == 1
    assert "missing_file: cat/lost.jpg: there is no such file" in out


def test_audit_of_sound_data_ends_with_0(capsys, folder):
    code, out, _ = call(capsys, "audit", folder)
    assert (code, out.splitlines()[0]) == (
        0,
        "12 images (cat 6, dog 6): 0 error(s), 0 warning(s), 0 note(s)",
    )
    code, out, _ = call(capsys, "audit", folder, "--json")
    assert json.loads(out) == {"images": 12, "findings": []}


def test_unreadable_images_can_be_left_out(capsys, folder, tmp_path, monkeypatch):
    """Two of eight cats are damaged; the run goes on with six and says so."""
    monkeypatch.chdir(tmp_path)
    for number in (6, 7):
        write_image(folder / "cat" / f"{number}.jpg", (number, number, 200))
    truncate(folder)
    empty(folder)
    pipeline = tmp_path / "pets.toml"
    pipeline.write_text(
        'threads = 1\n[data]\nroot = "pets"\n[[contender]]\nname = "m"\nclassifier = "majority"\n'
    )
    code, _, err = call(capsys, "run", pipeline)
    assert code == 1
    assert "--drop-unreadable" in err
    code, out, err = call(capsys, "run", pipeline, "--drop-unreadable", "--json")
    assert code == 0, err
    run_folder = tmp_path / json.loads(out)["run"]
    manifest = (run_folder / "manifest.csv").read_text()
    assert "cat/0.jpg" not in manifest
    assert manifest.count("cat/") >= 6
    assert (
        "2 image(s) could not be read and were left out" in (run_folder / "report.html").read_text()
    )


def test_lists(capsys):
    code, out, _ = call(capsys, "list", "datasets")
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == list(DATASETS)
    for kind, name in (
        ("backbones", "efficientnet_lite0: "),
        ("features", "hog: "),
        ("classifiers", "linear_svm: "),
    ):
        code, out, _ = call(capsys, "list", kind)
        assert code == 0
        assert name in out


def test_doctor_names_the_fix_for_two_builds_of_opencv(capsys, monkeypatch):
    monkeypatch.setattr(
        "cvpipe.stages.doctor.installed_builds",
        lambda: {"opencv-python": "4.12.0", "opencv-python-headless": "4.12.0"},
    )
    monkeypatch.setattr("cvpipe.stages.doctor.list_devices", lambda: ["CPU:0"])
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "FAIL opencv: 2 builds" in out
    assert "pip uninstall -y opencv-python opencv-python-headless" in out


def test_interrupt_ends_with_130(capsys, monkeypatch, folder):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cvpipe.stages.audit.scan_and_hash", interrupt)
    code, _, err = call(capsys, "audit", folder)
    assert code == 130
    assert "goes on where this one stopped" in err


def test_a_class_folder_without_usable_images_ends_with_1(capsys, folder):
    (folder / "bird").mkdir()
    (folder / "bird" / "0.heic").write_bytes(b"x")
    code, out, _ = call(capsys, "audit", folder)
    assert code == 1
    assert "error: empty_class: class 'bird' has no image that can be used" in out
    assert "warning: other_file: bird/0.heic" in out


def test_leaving_unreadable_images_out_cannot_make_a_class_vanish(
    capsys, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_image(folder / "bird" / f"{number}.png", (number, 0, 0))
        (folder / "dog" / f"{number}.jpg").write_bytes(b"")
    code, _, err = call(capsys, "run", folder, "--drop-unreadable")
    assert code == 1
    assert "empty_class: class 'dog'" in err


def test_warnings_are_told_in_passing(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(folder / "cat" / "0.jpg", folder / "cat" / "copy.jpg")
    pipeline = tmp_path / "pets.toml"
    pipeline.write_text('[data]\nroot="pets"\n[[contender]]\nname="m"\nclassifier="majority"\n')
    code, _, err = call(capsys, "run", pipeline)
    assert code == 0
    assert "warnings: 1 identical_images" in err


def test_folders_of_a_split_are_not_classes(capsys, tmp_path):
    for part in ("train", "Test"):
        for label in ("cat", "dog"):
            write_image(tmp_path / "kaggle" / part / label / "0.jpg", (1, 2, 3))
    code, out, _ = call(capsys, "audit", tmp_path / "kaggle")
    assert code == 1  # one picture in every folder
    assert "4 images (cat 2, dog 2)" in out
    assert "split_leak: Test/cat/0.jpg: in test" in out


def test_a_table_and_another_folder_contradict_each_other(capsys, folder, tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\ncat/0.jpg,cat\n")
    code, _, err = call(capsys, "audit", tmp_path / "labels.csv", "--data", folder)
    assert code == 2
    assert "put the table into the folder of the images" in err


def test_a_folder_that_cannot_be_written_ends_with_2(capsys, folder, tmp_path):
    (tmp_path / "file").write_text("no folder")
    code, _, err = call(capsys, "run", folder, "--runs", tmp_path / "file" / "runs")
    assert code == 2
    assert "Not a directory" in err


def test_report_of_an_unfinished_run_ends_with_2(capsys, folder, tmp_path, monkeypatch):
    """Writing the page would mark the run as finished, and its export would never be made."""
    monkeypatch.chdir(tmp_path)
    empty(folder)
    call(capsys, "run", folder)
    run_folder = next((tmp_path / "runs").iterdir())
    code, _, err = call(capsys, "report", run_folder)
    assert code == 2
    assert "is not finished" in err
    assert not (run_folder / "report.html").exists()
