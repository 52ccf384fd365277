"""A run and its exported files, scored on other labelled images."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.cli import main
from cvpipe.errors import GateError, InputError
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_json
from cvpipe.stages.score import SEED, count_seen, describe_scores, run_behind, score
from tests.conftest import CLASS_PHOTOS, write_photos


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Photos that no run has seen."""
    return write_photos(tmp_path_factory.mktemp("others") / "photos", seed=7)


@pytest.fixture(scope="module")
def bundle(run):
    return run.export_path / "linear_probe"


def accuracy_of(scored):
    rows = scored.metrics
    return rows[(rows["metric"] == "accuracy") & (rows["label"] == "")].iloc[0]


@pytest.mark.parametrize("which", ["run", "bundle", "file"])
def test_scores_are_those_of_what_is_predicted(which, run, bundle, others):
    path = {"run": run.path, "bundle": bundle, "file": bundle / "model.keras"}[which]
    contender = "linear_probe" if which == "run" else ""
    scored = score(path, others, contender=contender)
    files = sorted(path for path in others.rglob("*") if path.is_file())
    table = cvpipe.load(path, contender).predict_proba(files)
    ids = [file.relative_to(others).as_posix() for file in files]
    table["image_id"], table["label"] = ids, [name.split("/")[0] for name in ids]
    right = (frames.predicted_labels(table) == table["label"]).mean()
    assert accuracy_of(scored)["value"] == pytest.approx(right)
    assert accuracy_of(scored)["n"] == len(files) == scored.predictions["image_id"].nunique()
    expected = score_predictions(table, pd.Series(ids, index=ids), SEED)
    pd.testing.assert_frame_equal(scored.metrics, expected)
    assert (scored.num_seen, scored.missing_classes) == (0, [])


def test_the_mean_cost_is_there_where_mistakes_have_costs(bundle, others, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    facts = read_json(copy / "bundle.json")
    write_json(copy / "bundle.json", facts | {"costs": {"NA": {"0": 9.0, "poppy": 9.0}}})
    scored = score(copy, others)
    table = scored.predictions
    given, true = frames.predicted_labels(table), table["label"]
    cost = np.where(given == true, 0.0, np.where(true == "NA", 9.0, 1.0)).mean()
    rows = scored.metrics[scored.metrics["metric"] == "cost"]
    assert rows["value"].item() == pytest.approx(cost)
    assert "cost" not in set(score(bundle, others).metrics["metric"])


def test_images_of_a_group_count_as_one_draw(bundle, others, tmp_path):
    folder = shutil.copytree(others, tmp_path / "others")
    rows = [
        {"path": path.relative_to(folder).as_posix(), "kind": path.relative_to(folder).parts[0]}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    for number, row in enumerate(rows):
        row["group"] = f"patient {number // 8}"
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    grouped = accuracy_of(score(bundle, folder, "table.csv", "kind"))
    alone = accuracy_of(score(bundle, others))
    assert grouped["value"] == alone["value"]
    assert grouped["high"] - grouped["low"] > alone["high"] - alone["low"]


def test_images_that_it_was_fitted_to_are_refused_and_on_request_told(run, bundle, photos, others):
    manifest = run.manifest()
    learned = int((manifest["split"] != "test").sum())
    for path in (run.path, bundle):
        with pytest.raises(GateError, match=f"{learned} of the {len(manifest)} images are among"):
            score(path, photos)
    scored = score(bundle, photos, allow_leak=True)
    assert scored.num_seen == learned
    assert "the figures are too good" in describe_scores(scored)[-1]
    test = [photos / name for name in manifest["image_id"][manifest["split"] == "test"]]
    assert count_seen(run, test) == 0
    assert count_seen(None, test) == 0
    for inside in ("model.keras", "openvino/model.xml"):
        assert run_behind(bundle / inside).path.name == run.path.name


def test_a_bundle_elsewhere_knows_no_run(bundle, others, tmp_path):
    moved = shutil.copytree(bundle, tmp_path / "moved")
    (tmp_path / "config.json").write_text("{}")  # of somebody else
    assert run_behind(moved) is None
    assert accuracy_of(score(moved, others))["value"] > 0.5


def test_a_class_without_images_is_told(bundle, others, tmp_path):
    folder = shutil.copytree(others, tmp_path / "others")
    shutil.rmtree(folder / "NA")
    scored = score(bundle, folder)
    assert scored.missing_classes == ["NA"]
    assert "no image has the class(es) ['NA']" in describe_scores(scored)
    assert np.isfinite(accuracy_of(scored)["value"])


def test_labels_and_files_that_cannot_be_scored(bundle, others, tmp_path):
    folder = shutil.copytree(others, tmp_path / "others")
    (folder / "0").rename(folder / "zero")
    with pytest.raises(InputError, match=r"label 'zero' \(of 1 unknown ones\); rename the labels"):
        score(bundle, folder)
    (folder / "zero").rename(folder / "0")
    broken = next(path for path in (folder / "0").rglob("*") if path.is_file())
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(InputError, match=broken.name):
        score(bundle, folder)
    name = broken.relative_to(folder).as_posix()
    (folder / "table.csv").write_text(f"path,label\n{name},0\n{name},NA\n")
    with pytest.raises(InputError, match="is listed twice; list each image once"):
        score(bundle, folder, "table.csv")
    with pytest.raises(InputError, match="there is no folder"):
        score(bundle, tmp_path / "nowhere")


def test_the_command_line(bundle, others, tmp_path, capsys):
    command = ["evaluate", str(bundle), "--data", str(others)]
    assert main([*command, "--out", str(tmp_path / "table.csv")]) == 0
    told = capsys.readouterr().out.splitlines()
    number = 16 * len(CLASS_PHOTOS)
    assert told[0] == f"linear_probe on {number} images"
    assert told[1].split() == ["metric", "value", "95", "%", "interval"]
    assert any(line.startswith("accuracy ") and " to " in line for line in told)
    assert len(frames.read_predictions(tmp_path / "table.csv")) == number
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["metric"] for row in told["metrics"]} >= {"accuracy", "log_loss"}
    assert (told["contender"], told["num_images_seen_before"]) == ("linear_probe", 0)
    assert main([*command, "--out", str(tmp_path / "table.jpg")]) == 2
    assert main(["evaluate", str(bundle), "--data", str(tmp_path)]) == 2
