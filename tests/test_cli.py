"""What a person types, and what comes back: text and exit code."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cvpipe.cli import main
from cvpipe.config import load_config
from cvpipe.data.sources import DATASETS
from tests.conftest import write_photos


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def write_image(path, seed, size=(40, 30)):
    """Write noise: no two seeds look alike, and no picture stands out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes of six different images."""
    for label in ("cat", "dog"):
        for number in range(6):
            seed = number + (100 if label == "cat" else 0)
            write_image(tmp_path / "pets" / label / f"{number}.jpg", seed)
    return tmp_path / "pets"


def test_help_names_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    commands = "run init fetch audit predict evaluate unlike report export verify doctor list"
    for name in commands.split():
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
        (["unlike", "nowhere", "."], ["nowhere", "not a run folder"]),
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
        ('backbone = "efficientnet_lit0"\nrecipe = "linear_probe"', "'efficientnet_lite0'"),
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
    (truncate, ["truncated", "error: truncated (1): ", "cat/0.jpg: "]),
    (empty, ["empty_file", "error: empty_file (1): ", "cat/1.jpg: the file is empty"]),
    (replace_by_text, ["not_an_image", "cat/2.jpg: its content is none of BMP"]),
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
    assert "error: missing_file (1): a table names a file that does not exist\n" in out
    assert "\n    cat/lost.jpg: there is no such file\n" in out


def test_audit_of_sound_data_ends_with_0(capsys, folder):
    code, out, _ = call(capsys, "audit", folder)
    assert (code, out.splitlines()[0]) == (
        0,
        "12 images (cat 6, dog 6): 0 error(s), 0 warning(s), 0 info(s)",
    )
    code, out, _ = call(capsys, "audit", folder, "--json")
    assert json.loads(out) == {"images": 12, "findings": []}


def test_audit_takes_settings(capsys, folder):
    """Each changes what is found."""
    empty(folder)
    assert call(capsys, "audit", folder)[0] == 1
    code, out, _ = call(capsys, "audit", folder, "--set", 'data.exclude=["cat/1.jpg"]')
    assert (code, out.splitlines()[0]) == (
        0,
        "11 images (dog 6, cat 5): 0 error(s), 0 warning(s), 1 info(s)",
    )
    assert "info: excluded (1): " in out
    code, out, _ = call(capsys, "audit", folder, "--drop-unreadable")
    assert code == 0
    assert "warning: empty_file (1): " in out
    assert "\n    cat/1.jpg: " in out
    assert call(capsys, "audit", folder, "--drop-unreadable", "--set", "data.max_pixels=9")[0] == 1
    code, _, err = call(capsys, "audit", folder, "--set", "data.exlude=[]")
    assert code == 2
    assert "did you mean 'exclude'?" in err


def test_audit_of_a_table_that_a_setting_names(capsys, folder):
    rows = [f"{p.relative_to(folder).as_posix()},{p.parent.name}" for p in folder.rglob("*.jpg")]
    splits = ["train", "test"] * 6
    lines = [f"{row},{split}" for row, split in zip(sorted(rows), splits, strict=True)]
    (folder / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    shutil.copy(folder / "cat" / "0.jpg", folder / "cat" / "1.jpg")  # train and test
    arguments = ("audit", folder, "--set", "data.labels=t.csv")
    code, out, _ = call(capsys, *arguments)
    assert code == 1
    assert "error: split_leak (1): " in out
    code, out, _ = call(capsys, *arguments, "--allow-leak")
    assert code == 0
    assert "warning: split_leak (1): " in out
    code, out, _ = call(capsys, *arguments, "--set", "split.protocol=holdout")
    assert code == 0
    assert "split_leak" not in out


def test_audit_looks_for_wrong_labels_when_asked_to(capsys, tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / "0" / "planted.png").write_bytes(
        write_photos(tmp_path / "more", seed=1).joinpath("NA/größe eins/photo 04.png").read_bytes()
    )
    code, out, _ = call(capsys, "audit", photos)
    assert code == 0
    assert "label_suspect" not in out
    code, out, _ = call(capsys, "audit", photos, "--labels", "--json")
    assert code == 0
    found = [f for f in json.loads(out)["findings"] if f["finding"] == "label_suspect"]
    assert "0/planted.png" in [finding["image_id"] for finding in found]
    assert found[0]["reason"].startswith("labelled '0', but images of other groups suggest 'NA'")
    assert {finding["severity"] for finding in found} == {"info"}


def test_audit_looks_for_wrong_labels_among_what_can_be_read(capsys, folder):
    truncate(folder)
    code, out, _ = call(capsys, "audit", folder, "--labels")
    assert code == 1
    assert "error: truncated (1): " in out
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"")
    code, out, _ = call(capsys, "audit", folder, "--labels")
    assert code == 1
    assert "error: empty_file (12): " in out


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("cat/0.jpg", "the page is to be called '{}'; its name must end with .html or .htm."),
        ("cat", "the page is to be called '{}'; its name must end with .html or .htm."),
        ("a.html", "'{}' is a folder; give the name of a file with --page."),
    ],
)
def test_a_page_overwrites_no_image_and_no_folder(capsys, folder, monkeypatch, page, words):
    (folder / "a.html").mkdir()
    before = (folder / "cat" / "0.jpg").read_bytes()
    monkeypatch.setattr("cvpipe.stages.audit.scan_and_hash", None)  # it is said before
    code, out, err = call(capsys, "audit", folder, "--page", folder / page)
    assert (code, out) == (2, "")
    assert err == f"error: {words.format(folder / page)}\n"
    assert (folder / "cat" / "0.jpg").read_bytes() == before


def test_audit_of_classes_of_one_image_each_ends_with_1(capsys, tmp_path):
    for number, label in enumerate("abcde"):
        write_image(tmp_path / label / "x.png", number, (40, 30 + number))
    code, out, _ = call(capsys, "audit", tmp_path)
    assert code == 1
    assert "error: tiny_class (5): " in out


def test_audit_writes_a_page_with_the_pictures(capsys, folder, tmp_path):
    truncate(folder)
    page = tmp_path / "a page.html"
    code, out, _ = call(capsys, "audit", folder, "--labels", "--page", page)
    assert code == 1  # and the page is there
    assert out.splitlines()[-1] == f"page: {page}"
    text = page.read_text(encoding="utf-8")
    assert "cat/0.jpg" in text
    assert "truncated" in text
    assert "http://" not in text.replace("http://www.w3.org/", "")
    code, out, _ = call(capsys, "audit", folder, "--page", page, "--json")
    assert code == 1
    assert json.loads(out)["images"] == 12  # nothing but JSON


def test_init_writes_a_pipeline_file_that_runs(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "init", "pets", "--no-network")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("images: 12 in 2 classes: 'cat' 6, 'dog' 6;")
    assert lines[-1] == "pipeline: pets.toml"
    assert "audit: decoding 12 images" in err
    assert "# " in (tmp_path / "pets.toml").read_text(encoding="utf-8")
    assert load_config(tmp_path / "pets.toml").data.root == "pets"
    code, out, _ = call(capsys, "audit", "pets.toml")
    assert code == 0
    # A second time it is in the way.
    code, _, err = call(capsys, "init", "pets", "--no-network")
    assert code == 2
    assert "there is a file 'pets.toml' already" in err
    code, out, err = call(capsys, "init", "pets", "--no-network", "--force", "--quiet")
    assert (code, out, err) == (0, "pipeline: pets.toml\n", "")
    code, out, _ = call(capsys, "init", "pets", "--no-network", "--out", "b.toml", "--json")
    told = json.loads(out)
    assert (code, told["pipeline"], told["errors"]) == (0, "b.toml", 0)
    assert told["fingerprint"]["class_images"] == {"cat": 6, "dog": 6}
    assert told["fingerprint"]["similarity"] is None


def test_init_compares_with_imagenet_unless_told_not_to(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(
        "cvpipe.stages.init.measure_similarity", lambda images, _: asked.append(images.shape)
    )
    assert call(capsys, "init", "pets", "--no-network")[0] == 0
    assert asked == []
    assert call(capsys, "init", "pets", "--force")[0] == 0
    assert asked == [(12, 224, 224, 3)]


def test_init_writes_the_file_in_spite_of_errors_and_ends_with_1(
    capsys, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    empty(folder)
    code, out, err = call(capsys, "init", "pets", "--no-network")
    assert code == 1
    assert "the audit found errors, which stop a run:\n  error: empty_file (1): " in err
    assert "\n    cat/1.jpg: the file is empty" in err
    assert out.splitlines()[-1] == "pipeline: pets.toml"
    text = " ".join((tmp_path / "pets.toml").read_text().replace("\n#", "").split())
    assert "The audit found errors, which stop a run: 'empty_file' 1." in text


def test_unreadable_images_can_be_left_out(capsys, folder, tmp_path, monkeypatch):
    """Two of eight cats are damaged; the run goes on with six and says so."""
    monkeypatch.chdir(tmp_path)
    for number in (6, 7):
        write_image(folder / "cat" / f"{number}.jpg", 100 + number)
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
        ("backbones", "efficientnet_lite2: "),
        ("runtimes", "tensorflow: "),
        ("features", "hog: "),
        ("classifiers", "linear_svm: "),
        ("formats", ".tif: TIFF (the first page; 8 or 16 bits)\n"),
        ("formats", ".dcm: DICOM (the first frame; needs the extra: "),
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
    assert "error: empty_class (1): a class without any usable image\n" in out
    assert "\n    class 'bird' has no image that can be used\n" in out
    assert "warning: other_file (1): " in out
    assert "\n    bird/0.heic: " in out


def test_leaving_unreadable_images_out_cannot_make_a_class_vanish(
    capsys, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_image(folder / "bird" / f"{number}.png", 200 + number)
        (folder / "dog" / f"{number}.jpg").write_bytes(b"")
    code, _, err = call(capsys, "run", folder, "--drop-unreadable")
    assert code == 1
    assert "error: empty_class (1): " in err
    assert "\n    class 'dog' has no image that can be used\n" in err


def test_warnings_are_told_in_passing(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "cat" / "0.jpg").rename(folder / "cat" / "0.png")
    (folder / "cat" / "notes.txt").write_text("x")
    pipeline = tmp_path / "pets.toml"
    pipeline.write_text('[data]\nroot="pets"\n[[contender]]\nname="m"\nclassifier="majority"\n')
    code, _, err = call(capsys, "run", pipeline)
    assert code == 0
    assert "warnings: 1 other_file, 1 wrong_suffix (" in err
    assert "identical_images" not in err
    assert "audit.csv)" in err


def test_folders_of_a_split_are_not_classes(capsys, tmp_path):
    for part in ("train", "Test"):
        for label in ("cat", "dog"):
            write_image(tmp_path / "kaggle" / part / label / "0.jpg", 1)
    code, out, _ = call(capsys, "audit", tmp_path / "kaggle")
    assert code == 1  # one picture in every folder
    assert "4 images (cat 2, dog 2)" in out
    assert "error: split_leak (2): " in out
    assert "\n    Test/cat/0.jpg: in test, but it belongs together with 'train/cat/0.jpg'" in out


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
