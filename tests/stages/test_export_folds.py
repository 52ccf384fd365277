"""Files in 8 bits that are judged over the folds, where test has too few images."""

import shutil

import numpy as np
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.errors import GateError
from cvpipe.files import write_table
from cvpipe.report import content
from cvpipe.report.content import NO_WORSE_MARGINS
from cvpipe.runs import Run
from cvpipe.stages import export, export_folds
from cvpipe.stages.contenders import load_network
from cvpipe.stages.export import export_contender
from cvpipe.stages.export_folds import (
    can_ask_folds,
    could_be_seen,
    network_of_fold,
    predict_as_file,
)
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import exported_file
from cvpipe.stages.verify import describe_check, loses_too_much, verify_bundle

PIPELINE = """
name = "a"
threads = 2
[data]
root = "photos"
[split]
protocol = "kfold"
num_folds = 3
careless = false
[evaluate]
resamples = 100
learning_curve = false
views = ["single", "flip"]
[[feature]]
name = "deep"
kind = "efficientnet_lite0"
image_size = [32, 32]
[[contender]]
name = "trained"
backbone = "lenet5"
recipe = "from_scratch"
image_size = [28, 35]
training = {epochs = 4, batch_size = 16, warmup_epochs = 0.25, early_stopping = false}
[[contender]]
name = "probe"
backbone = "efficientnet_lite0"
recipe = "linear_probe"
image_size = [32, 32]
[[contender]]
name = "machine"
features = ["deep"]
classifier = "rbf_svm"
search = "coarse"
[[contender]]
name = "mean"
members = ["trained", "probe"]
"""
SINGLE = ["trained", "probe", "machine"]
LABEL = "litert-dynamic"


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("folds")
    (folder / "photos").symlink_to(photos)
    (folder / "a.toml").write_text(PIPELINE)
    return cvpipe.run(folder / "a.toml", runs_path=folder / "runs", watcher=Nobody())


def be_lenient(patch):
    """So few photos show nothing by the margins that count."""
    patch.setitem(content.NO_WORSE_MARGINS, "holdout", 0.2)
    patch.setitem(content.NO_WORSE_MARGINS, "kfold", 0.5)


@pytest.fixture
def lenient(monkeypatch):
    be_lenient(monkeypatch)


@pytest.fixture(scope="module")
def exported(finished, photos) -> dict[str, dict]:
    """What was found of each contender's file, where a loss of half the images is no harm."""
    with pytest.MonkeyPatch.context() as patch:
        be_lenient(patch)
        return {name: export_contender(finished, name, LABEL, photos)[1] for name in SINGLE}


@pytest.fixture
def copy(finished, exported, tmp_path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / finished.path.name))


def of_8_bits(accuracy):
    """What was found of a file whose rows are probabilities."""
    splits = {split: {"are_probabilities": True} for split in ("val", "test")}
    return {"splits": splits, "accuracy": accuracy}


def contender_of(run, name):
    return run.config().contender_called(name)


@pytest.mark.parametrize("name", SINGLE)
def test_the_folds_show_what_test_cannot(name, finished, exported):
    found, num_images = exported[name], len(finished.manifest())
    assert found["passed"], found
    assert found["accuracy"]["no_worse"] == "not shown"
    assert found["folds"]["no_worse"] == "shown"
    assert (found["folds"]["margin"], found["folds"]["n"]) == (0.5, num_images)
    assert found["note"] in "\n".join(describe_check(LABEL, found))
    assert exported_file(LABEL, found).note == found["note"]
    assert "test images it is not shown that at most 20 points" in found["note"]
    assert f"{num_images} images of folds it is shown that at most 50 points" in found["note"]


@pytest.mark.parametrize("name", SINGLE)
def test_what_is_rounded_is_what_was_measured(name, finished, exported, photos):
    """The networks that were fitted again say of their folds what stands in the tables."""
    job = Job(finished.config(), photos, finished, Nobody())
    contender, manifest = contender_of(finished, name), finished.manifest()
    for fold in sorted(manifest["fold"].unique()):
        part = finished.part_path(name, f"r0-f{fold}")
        rounded = frames.read_predictions(finished.rounded_fold_path(name, part.name, LABEL))
        measured = frames.read_predictions(finished.fold_predictions_path(name, part.name))
        rows = manifest[manifest["fold"] == fold]
        assert rounded["image_id"].tolist() == measured["image_id"].tolist()
        assert sorted(rounded["image_id"]) == sorted(rows["image_id"])
        exact = frames.probabilities_of(measured)
        # Rounding moves them, and not out of all proportion.
        assert 1e-6 < np.abs(frames.probabilities_of(rounded) - exact).max() < 0.5
    # Is there, so nothing is fitted.
    network = network_of_fold(job, contender, manifest, rows, part.name)
    whole = predict_as_file(job, contender, network, "litert", manifest, rows)
    np.testing.assert_allclose(frames.probabilities_of(whole), exact, rtol=0, atol=1e-4)
    assert "flip" in {finished.view(name) for name in SINGLE}


def test_where_the_folds_show_it_neither_it_is_refused(copy, photos):
    bundle = copy.export_path / "machine"
    found = verify_bundle(bundle, photos)["formats"][LABEL]
    assert not found["passed"]
    assert "test images it is not shown that at most 2 points" in found["reason"]
    assert "images of folds it is not shown that at most 1 points" in found["reason"]


def test_verify_asks_the_tables_that_are_there(copy, photos, lenient, monkeypatch):
    bundle = copy.export_path / "trained"
    monkeypatch.setattr(export, "predict_rounded_folds", None)
    found = verify_bundle(bundle, photos)["formats"][LABEL]
    assert found["passed"]
    assert found["folds"]["no_worse"] == "shown"
    copy.rounded_fold_path("trained", "r0-f0", LABEL).unlink()
    assert not verify_bundle(bundle, photos)["formats"][LABEL]["passed"]


def test_a_network_is_fitted_once_for_all_formats(copy, photos, lenient, monkeypatch):
    monkeypatch.setattr(export_folds, "fit_rows", None)
    _, found = export_contender(copy, "trained", "litert-int8", photos)
    assert found["folds"]["n"] == len(copy.manifest())


def test_what_the_folds_are_not_asked(finished, photos, lenient):
    job = Job(finished.config(), photos, finished, Nobody())
    kept = {"no_worse": "not shown", "difference": -0.1}
    trained = contender_of(finished, "trained")
    assert can_ask_folds(job, trained, "onnx-int8", of_8_bits(kept))
    assert not can_ask_folds(job, contender_of(finished, "mean"), "onnx-int8", of_8_bits(kept))
    for label in ("keras", "native", "onnx", "litert-float16"):  # probabilities are compared
        assert not can_ask_folds(job, trained, label, of_8_bits(kept))
    for other in (
        {"no_worse": "shown"},  # nothing to ask
        {"no_worse": ""},
        {"difference": -0.21},  # the file itself lost too much
        {"difference": float("nan")},
    ):
        assert not can_ask_folds(job, trained, "onnx-int8", of_8_bits(kept | other))
    bad = of_8_bits(kept)
    bad["splits"]["val"]["are_probabilities"] = False
    assert not can_ask_folds(job, trained, "onnx-int8", bad)
    assert not can_ask_folds(job, trained, "onnx-int8", {})


def test_too_few_groups_are_not_asked(finished, photos):
    """Without the leniency of the other tests: 1 point takes 381 groups without any loss."""
    job = Job(finished.config(), photos, finished, Nobody())
    kept = {"no_worse": "not shown", "difference": 0.0}
    trained = contender_of(finished, "trained")
    assert not can_ask_folds(job, trained, "onnx-int8", of_8_bits(kept))
    assert could_be_seen(381)
    assert not could_be_seen(380)


def test_a_run_without_folds_has_none_to_ask(finished, photos, tmp_path, lenient):
    copy = Run(shutil.copytree(finished.path, tmp_path / "run"))
    copy.predictions_path("trained", "test", "kfold").unlink()
    job = Job(copy.config(), photos, copy, Nobody())
    kept = {"no_worse": "not shown", "difference": 0.0}
    assert not can_ask_folds(job, contender_of(copy, "trained"), "onnx-int8", of_8_bits(kept))


def test_only_8_bits_ask_folds(finished, exported):
    """The run itself exported files whose probabilities are compared."""
    assert {path.stem for path in finished.path.glob("contenders/*/r0-*/rounded-*")} == {
        f"rounded-{LABEL}"
    }
    assert len(list(finished.export_path.glob("*/model.keras"))) == 1


def test_a_network_that_is_not_the_measured_one_is_refused(copy, photos, monkeypatch):
    job = Job(copy.config(), photos, copy, Nobody())
    manifest, part = copy.manifest(), copy.part_path("trained", "r0-f0")
    (part / "model.keras").unlink()
    rows, others = manifest[manifest["fold"] == "0"], manifest[manifest["fold"] != "0"]
    fewer = others.iloc[1:].reset_index(drop=True)
    with pytest.raises(GateError, match="fitted again for the part 'r0-f0', differs from what"):
        network_of_fold(job, contender_of(copy, "trained"), fewer, rows, "r0-f0")
    assert not (part / "model.keras").exists()


def test_a_fold_that_lost_much_is_seen(copy, photos, lenient):
    """Whatever the folds together say: the network that is handed on is one network."""
    path = copy.rounded_fold_path("trained", "r0-f0", LABEL)
    table = frames.read_predictions(path)
    columns = frames.probability_columns(table)
    table[columns] = table[columns].to_numpy()[:, ::-1]
    write_table(path, table)
    found = verify_bundle(copy.export_path / "trained", photos)["formats"][LABEL]
    assert not found["passed"]
    assert found["folds"]["worst"] < -0.2
    assert (
        f"the worst fold differs by {100 * found['folds']['worst']:+.1f} points" in found["reason"]
    )


def test_exactly_the_margin_may_be_lost():
    assert NO_WORSE_MARGINS["holdout"] == 0.02
    for right, of in ((49, 50), (98, 100), (46, 50)):
        assert not loses_too_much(right / of - (right + of // 50) / of)
    for difference in (49 / 51 - 50 / 51 - 0.001, -0.0201, float("nan")):
        assert loses_too_much(difference)


def test_a_network_of_the_folds_that_gives_no_probabilities(copy, photos, monkeypatch):
    job = Job(copy.config(), photos, copy, Nobody())
    model = load_network(copy.part_path("trained") / "model.keras")
    rows = copy.manifest().iloc[:3]
    nan = np.full((3, len(copy.class_names())), np.nan)
    monkeypatch.setattr(export_folds, "open_file", lambda *a: lambda images: nan)
    trained = contender_of(copy, "trained")
    with pytest.raises(GateError, match="folds of 'trained', written as 'litert-dynamic', gives"):
        predict_as_file(job, trained, model, "litert-dynamic", rows, rows)
