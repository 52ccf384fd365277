"""Images that come with a split: used as it is, completed, or refused because it leaks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe.errors import GateError, InputError
from cvpipe.stages.plan import make_plan
from cvpipe.stages.risks import find_risks, find_warnings
from tests.conftest import run_cvpipe
from tests.data.odd_files import dicom_of

PIPELINE = """
threads = 2
[data]
root = "images"
labels = "{labels}"
[split]
protocol = "{protocol}"
[[contender]]
name = "majority"
classifier = "majority"
[[contender]]
name = "pixels_knn"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[evaluate]
resamples = 100
"""


def write_images(root: Path, splits: dict[str, int], seed: int = 0) -> Path:
    """Write noise into `<split>/<class>/`, as many images of each class as asked for."""
    rng = np.random.default_rng(seed)
    for split, number in splits.items():
        for label in ("0", "NA"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for count in range(number):
                pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{count}.png")
    return root


def run_given(folder: Path, protocol="given", labels="folders", settings=(), pipeline=PIPELINE):
    (folder / "p.toml").write_text(pipeline.format(protocol=protocol, labels=labels))
    return cvpipe.run(folder / "p.toml", settings, runs_path=folder / "runs")


def test_folders_of_a_split_are_used_as_they_are(tmp_path):
    write_images(tmp_path / "images", {"Training": 12, "valid": 5, "TEST": 6})
    run = run_given(tmp_path)
    manifest = run.manifest()
    names = {"Training": "train", "valid": "val", "TEST": "test"}
    folders = manifest["image_id"].str.split("/", expand=True)
    assert manifest["split"].tolist() == folders[0].map(names).tolist()
    assert "The split is the one that the images came with." in find_warnings(run)
    assert "They were divided as they came." in run.report_path.read_text(encoding="utf-8")
    assert manifest["label"].tolist() == folders[1].tolist()
    assert run.predictions("test", "pixels_knn")["image_id"].tolist() == (
        manifest.loc[manifest["split"] == "test", "image_id"].tolist()
    )
    assert find_risks(run)[0].headline == "The chosen contender is not shown to use the pictures."
    # The careless split has the same shares.
    assert manifest["careless"].value_counts().to_dict() == {"train": 24, "val": 10, "test": 12}


def test_a_column_split_does_the_same(tmp_path):
    root = write_images(tmp_path / "images", {"a": 20})
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    words = ["train", " Test ", "validation", "train", "training"]
    rows = [(path, path.split("/")[1], words[i % 5]) for i, path in enumerate(paths)]
    pd.DataFrame(rows, columns=["path", "label", "split"]).to_csv(root / "t.csv", index=False)
    manifest = run_given(tmp_path, labels="t.csv").manifest()
    expected = ["train", "test", "val", "train", "train"] * 8
    assert manifest["split"].tolist() == expected
    assert make_plan(root / "t.csv").config.split.protocol == "given"


def test_a_missing_val_is_taken_from_train_by_group(tmp_path):
    root = write_images(tmp_path / "images", {"train": 20, "test": 6})
    rows = []
    for path in sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png")):
        split, label, name = path.split("/")
        rows.append((path, label, split, f"{split} {label} {int(name[:-4]) // 2}"))
    columns = ["path", "label", "split", "group"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "t.csv", index=False)
    run = run_given(tmp_path, labels="t.csv")
    manifest = run.manifest()
    told = "The split is the one that the images came with; it had no val, which was taken from "
    assert told + "its train." in find_warnings(run)
    page = run.report_path.read_text(encoding="utf-8")
    assert "They were divided as they came, val taken from train at random by class, with" in page
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    counts = manifest.groupby(["split", "label"]).size()
    assert counts.to_dict() == {
        **{("test", label): 6 for label in ("0", "NA")},
        **{("train", label): 16 for label in ("0", "NA")},
        **{("val", label): 4 for label in ("0", "NA")},
    }
    given = manifest["image_id"].str.split("/").str[0]
    assert (manifest["split"].eq("test") == given.eq("test")).all()


@pytest.fixture
def leaking(tmp_path):
    """A copy of a train image stands in test, saved anew as a JPEG."""
    root = write_images(tmp_path / "images", {"train": 12, "val": 5, "test": 6})
    photo = np.asarray(Image.open(root / "train" / "0" / "3.png").resize((96, 72)))
    Image.fromarray(photo).save(root / "train" / "0" / "3.png")
    Image.fromarray(photo).save(root / "test" / "0" / "copy.jpg", quality=90)
    return tmp_path


def test_a_split_that_leaks_is_refused_with_the_names_of_the_files(leaking):
    with pytest.raises(GateError) as caught:
        run_given(leaking)
    told = " ".join(str(caught.value).split())  # lines are wrapped
    assert "error: split_leak (1): a given split parts a group, a value of split.by, " in told
    assert "test/0/copy.jpg: in test, but it belongs together with 'train/0/3.png' in train" in told
    assert "or give --allow-leak" in told
    answer = run_cvpipe("audit", leaking / "images", cwd=leaking)
    assert answer.returncode == 1
    assert "error: split_leak (1): " in answer.stdout
    assert "    test/0/copy.jpg: in test, but it belongs" in answer.stdout
    answer = run_cvpipe("audit", leaking / "images", "--allow-leak", cwd=leaking)
    assert answer.returncode == 0
    assert "warning: split_leak (1): " in answer.stdout


def test_a_leak_that_is_allowed_is_the_biggest_risk(leaking):
    run = run_given(leaking, settings=["split.allow_leak=true"])
    risk = find_risks(run)[0]
    assert risk.headline == "The given split leaks."
    assert risk.text.startswith("2 images, 1 of them test images, belong together with images on")
    assert "The given split leaks." in run.report_path.read_text(encoding="utf-8")


def test_a_patient_in_two_parts_of_a_given_split_stops_a_run(tmp_path):
    rng = np.random.default_rng(0)
    for split, number in {"train": 8, "val": 5, "test": 6}.items():
        for label in ("0", "1"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for count in range(number):
                values = rng.integers(0, 256, (24, 32), dtype=np.uint8)
                patient = f"{split} {label} {count}"
                (folder / f"{count}.dcm").write_bytes(dicom_of(values, PatientID=patient))
    leaked = dicom_of(values[::-1], PatientID="train 0 3")  # another picture
    (tmp_path / "images" / "test" / "0" / "other day.dcm").write_bytes(leaked)
    pipeline = PIPELINE.format(protocol="given", labels="folders")
    (tmp_path / "p.toml").write_text(pipeline)
    answer = run_cvpipe("run", "p.toml", cwd=tmp_path)
    assert answer.returncode == 1
    told = " ".join((answer.stdout + answer.stderr).split())
    assert "test/0/other day.dcm: in test, but it belongs together with 'train/0/3.dcm'" in told
    # Other images of one patient are no leak where they are not to be kept together.
    run = run_given(tmp_path, settings=["data.patient_groups=false"])
    assert run.manifest()["split"].value_counts().to_dict() == {"train": 16, "test": 13, "val": 10}


def test_a_leak_between_train_and_val_is_a_leak(tmp_path):
    root = write_images(tmp_path / "images", {"train": 12, "val": 5, "test": 6})
    shutil.copy(root / "train" / "0" / "3.png", root / "val" / "0" / "copy.png")
    with pytest.raises(GateError, match=r"error: split_leak \(1\): [^:]*\n    val/0/copy\.png: in"):
        run_given(tmp_path)
    run = run_given(tmp_path, settings=["split.allow_leak=true"])
    assert find_risks(run)[0].text.startswith("2 images, 0 of them test images, belong")


def test_a_given_split_that_is_not_used_is_told(tmp_path):
    write_images(tmp_path / "images", {"train": 14, "test": 6})
    run = run_given(tmp_path, protocol="holdout")
    manifest = run.manifest()
    assert set(manifest["split_given"]) == {"train", "test"}
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert (manifest["split"] != manifest["split_given"]).any()
    told = "The images came with a split of their own, which was not used."
    assert told in find_warnings(run)


def test_a_folder_with_a_split_needs_no_pipeline_file(tmp_path):
    write_images(tmp_path / "images", {"train": 3, "test": 3})
    assert make_plan(tmp_path / "images").config.split.protocol == "given"
    again = make_plan(tmp_path / "images", ["split.protocol=holdout"])
    assert again.config.split.protocol == "holdout"
    (tmp_path / "images" / "test").rename(tmp_path / "images" / "plane")
    # A class may well be called train.
    assert make_plan(tmp_path / "images").config.split.protocol == "holdout"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": 6, "val": 6}, "but the images come with the splits ['train', 'val'] only;"),
        ({"cats": 6, "dogs": 6}, "but the images come with no split; expected folders train/"),
    ],
)
def test_a_split_that_is_not_there(tmp_path, splits, message):
    write_images(tmp_path / "images", splits)
    with pytest.raises(InputError) as caught:
        run_given(tmp_path)
    assert message in str(caught.value)


def test_an_image_between_split_and_class(tmp_path):
    root = write_images(tmp_path / "images", {"train": 6, "test": 6})
    shutil.copy(root / "train" / "0" / "0.png", root / "train" / "lost.png")
    with pytest.raises(InputError) as caught:
        run_given(tmp_path)
    assert "'train/lost.png' lies in no class folder; expected <split>/<class>/<image>." in str(
        caught.value
    )


def test_classes_beside_parts_of_a_split(tmp_path):
    write_images(tmp_path / "images", {"train": 6, "test": 6, "sample": 6})
    with pytest.raises(InputError) as caught:
        run_given(tmp_path, protocol="holdout")
    assert "the folders ['test', 'train'] in" in str(caught.value)
    assert "look like parts of a split, but beside them lie ['sample'];" in str(caught.value)


def test_a_folder_without_images_beside_a_split_is_no_class(tmp_path):
    root = write_images(tmp_path / "images", {"train": 12, "dev": 5, "test": 6})
    (root / "__MACOSX").mkdir()
    assert make_plan(root).config.split.protocol == "given"
    run = run_given(tmp_path)
    assert run.class_names() == ["0", "NA"]
    assert run.is_finished


def test_groups_that_differ_in_blanks_alone_are_one(tmp_path):
    root = write_images(tmp_path / "images", {"train": 8, "val": 8, "test": 8})
    rows = []
    for path in sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png")):
        split, label, name = path.split("/")
        blank = " " if split == "test" else ""
        rows.append((path, label, split, f"{label} {name}{blank}"))
    columns = ["path", "label", "split", "group"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "t.csv", index=False)
    with pytest.raises(GateError, match=r"error: split_leak \(32\): [^:]*\n    test/0/0\.png: in"):
        run_given(tmp_path, labels="t.csv")


@pytest.mark.parametrize("name", ["Split", "GROUP", " split"])
def test_a_column_that_is_nearly_one_of_ours(tmp_path, name):
    root = write_images(tmp_path / "images", {"a": 2})
    (root / "t.csv").write_text(f"path,label,{name}\na/0/1.png,0,x\n")
    with pytest.raises(InputError) as caught:
        run_given(tmp_path, protocol="holdout", labels="t.csv")
    assert f"has a column {name!r}, which would not be used; call it" in str(caught.value)


def test_the_split_is_no_subgroup(tmp_path):
    write_images(tmp_path / "images", {"train": 6, "test": 6})
    with pytest.raises(InputError) as caught:
        run_given(tmp_path, settings=['evaluate.subgroups=["split"]'])
    assert "evaluate.subgroups names the column 'split', but the table" in str(caught.value)


def test_audit_of_a_pipeline_refuses_what_the_run_refuses(tmp_path):
    write_images(tmp_path / "images", {"train": 6, "val": 6})
    (tmp_path / "p.toml").write_text(PIPELINE.format(protocol="given", labels="folders"))
    answer = run_cvpipe("audit", "p.toml", cwd=tmp_path)
    assert answer.returncode == 2
    assert "come with the splits ['train', 'val'] only" in answer.stderr


def test_a_word_that_is_no_split(tmp_path):
    root = write_images(tmp_path / "images", {"a": 6})
    (root / "t.csv").write_text("path,label,split\na/0/1.png,0,tset\n")
    with pytest.raises(InputError) as caught:
        run_given(tmp_path, labels="t.csv")
    assert "has 'tset' in the column 'split'; expected one of ['dev', 'test'" in str(caught.value)


def test_a_class_that_test_lacks(tmp_path):
    root = write_images(tmp_path / "images", {"train": 12, "val": 5, "test": 6})
    shutil.rmtree(root / "test" / "NA")
    with pytest.raises(GateError) as caught:
        run_given(tmp_path)
    assert "class 'NA' has no image in test (12 in train, 5 in val, 0 in test)" in str(caught.value)
    assert "What to do: put images of the class there, or use" in str(caught.value)
    answer = run_cvpipe("run", "p.toml", cwd=tmp_path)
    assert answer.returncode == 1
    assert "stopped: the audit of 'images' found 1 error(s)" in answer.stderr


def test_a_finished_run_knows_its_config(tmp_path):
    write_images(tmp_path / "images", {"train": 12, "val": 5, "test": 6})
    run = run_given(tmp_path)
    assert json.loads(run.config_path.read_text())["split"]["protocol"] == "given"
