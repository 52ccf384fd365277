"""Calibration in a run: on which rows it is fitted, and that everything delivered has it."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe import frames
from cvpipe.config import validate_config
from cvpipe.data.splits import first_half
from cvpipe.errors import InputError
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_table
from cvpipe.inference.calibration import Scaling, calibration_from_dict, fit_calibration
from cvpipe.runs import Run
from cvpipe.stages.calibration import calibrate, store_calibrated, table_for_choosing
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import rebuild_report

CLASSES = ["0", "NA", "poppy"]
BASE = {"name": "a", "data": {"root": "images"}, "threads": 2}
CLASSIC = {"name": "knn", "features": ["raw_pixels"], "classifier": "nearest_neighbours"}


def make_val(n):
    """Rows of val with predictions that are three times too sure."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, 3))
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (honest.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    names = [f"{i:04}.png" for i in range(n)]
    val = pd.DataFrame({"image_id": names, "label": [CLASSES[t] for t in targets]})
    val["group"] = val["image_id"]
    sure = honest**3 / (honest**3).sum(axis=1, keepdims=True)
    return val, frames.make_predictions(names, val["label"].tolist(), sure, CLASSES)


def calibrate_val(path, val, raw, method="temperature"):
    config = validate_config({**BASE, "contender": [CLASSIC], "evaluate": {"calibration": method}})
    job = Job(config, path, Run(path), Nobody())
    write_table(job.run.uncalibrated_path("knn", "val"), raw)
    calibrate(job, "knn", val)
    store_calibrated(job, "knn", "val")
    return job


def fitted(job):
    return calibration_from_dict(read_json(job.run.fitted_calibration_path("knn")))


def fit_on(raw, method="temperature"):
    targets = frames.targets_of(raw["label"], CLASSES)
    return fit_calibration(method, frames.probabilities_of(raw), targets)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_it_is_fitted_on_half_b_and_the_choice_sees_half_a(tmp_path, method):
    val, raw = make_val(400)
    first = first_half(val["group"].tolist())
    job = calibrate_val(tmp_path, val, raw, method)
    assert fitted(job) == fit_on(raw[~first], method)
    seen = table_for_choosing(job, "knn", val)
    assert seen["image_id"].tolist() == val["image_id"][first].tolist()
    np.testing.assert_allclose(
        frames.probabilities_of(seen), fitted(job).apply(frames.probabilities_of(raw[first]))
    )


def poison(raw, rows):
    """Turn the answers of some rows around."""
    columns = frames.probability_columns(raw)
    poisoned = raw.copy()
    poisoned.loc[rows, columns] = raw.loc[rows, columns[::-1]].to_numpy()
    return poisoned


def test_a_poisoned_half_a_leaves_every_byte_of_the_calibration_equal(tmp_path):
    val, raw = make_val(400)
    first = first_half(val["group"].tolist())
    stored = []
    for name, table in (
        ("clean", raw), ("in a", poison(raw, first)), ("in b", poison(raw, ~first))
    ):  # fmt: skip
        job = calibrate_val(tmp_path / name, val, table)
        stored.append(job.run.fitted_calibration_path("knn").read_bytes())
    assert stored[0] == stored[1]
    assert stored[0] != stored[2]


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_the_halves_of_a_small_val_calibrate_one_another(tmp_path, method):
    val, raw = make_val(150)
    first = first_half(val["group"].tolist())
    job = calibrate_val(tmp_path, val, raw, method)
    one, other = fit_on(raw[first]), fit_on(raw[~first])
    assert one.slopes[0] != other.slopes[0]
    assert fitted(job).slopes[0] == pytest.approx(np.sqrt(one.slopes[0] * other.slopes[0]))
    assert read_json(job.run.fitted_calibration_path("knn"))["method"] == "temperature"
    seen = frames.probabilities_of(table_for_choosing(job, "knn", val))
    before = frames.probabilities_of(raw)
    np.testing.assert_allclose(seen[first], other.apply(before[first]))
    np.testing.assert_allclose(seen[~first], one.apply(before[~first]))


def test_a_val_of_one_group_has_no_halves(tmp_path):
    val, raw = make_val(30)
    val["group"] = "one"
    job = calibrate_val(tmp_path, val, raw)
    assert fitted(job).slopes == pytest.approx(fit_on(raw).slopes)
    pd.testing.assert_frame_equal(
        table_for_choosing(job, "knn", val), job.run.predictions("val", "knn")
    )


def test_without_calibration_nothing_is_changed(tmp_path):
    val, raw = make_val(400)
    job = calibrate_val(tmp_path, val, raw, "none")
    assert fitted(job) == Scaling((1.0,) * 3, (0.0,) * 3)
    paths = [job.run.predictions_path("knn", "val"), job.run.uncalibrated_path("knn", "val")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_curves_cannot_be_exported_in_a_network():
    network = {"name": "probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"}
    raw = {**BASE, "contender": [network], "evaluate": {"calibration": "isotonic"}}
    with pytest.raises(InputError, match=r"curves cannot be built into .* network \('probe'\)"):
        validate_config(raw)
    assert validate_config({**raw, "contender": [CLASSIC]}).evaluate.calibration == "isotonic"


PIPELINE = """
threads = 2
[data]
root = "images"
[split]
protocol = "given"
[[contender]]
name = "majority"
classifier = "majority"
[[contender]]
name = "pixels_knn"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "colour_softmax"
features = ["colour_histogram"]
classifier = "softmax"
search = "coarse"
[evaluate]
resamples = 200
"""


def write_images(root, poisoned=""):
    """Noise whose brightness tells the class, but not surely; one split may be spoilt."""
    rng = np.random.default_rng(0)
    for split, number in {"train": 30, "val": 15, "test": 15}.items():
        for brightness, label in enumerate(CLASSES):
            folder = root / "images" / split / label
            folder.mkdir(parents=True)
            for count in range(number):
                level = 100 + 25 * brightness + 25 * rng.normal()
                pixels = np.clip(level + rng.normal(0, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
                spoilt = 255 - pixels if split == poisoned and count == 3 else pixels
                Image.fromarray(spoilt).save(folder / f"{count:02}.png")
    (root / "pipeline.toml").write_text(PIPELINE)
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run three times: clean, and with spoilt images of val or test."""
    finished = {}
    for name in ("", "val", "test"):
        folder = write_images(tmp_path_factory.mktemp(f"poison{name}"), name)
        finished[name] = cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs")
    return finished


def bytes_of(run, *patterns):
    """Read files; of a stored model its arrays, because a zip file knows the time of day."""
    paths = [path for pattern in patterns for path in run.path.glob(pattern)]
    return {
        str(path.relative_to(run.path)): (
            arrays_of(path) if path.suffix == ".skops" else path.read_bytes()
        )
        for path in paths
    }


def arrays_of(path):
    with zipfile.ZipFile(path) as file:
        return sorted(file.read(name) for name in file.namelist() if name.endswith(".npy"))


FITTED_ON_TRAIN = ["contenders/*/holdout/search.csv", "contenders/*/holdout/model.skops"]
FITTED_ON_VAL = ["contenders/*/holdout/calibration.json", "choice.json"]


def test_a_poisoned_test_row_leaves_every_byte_equal_that_is_fitted_before_test_is_opened(runs):
    patterns = [*FITTED_ON_TRAIN, *FITTED_ON_VAL, "contenders/*/predictions/holdout-val*.csv"]
    clean = bytes_of(runs[""], *patterns)
    assert len(clean) == 3 + 3 + 3 + 1 + 6
    assert bytes_of(runs["test"], *patterns) == clean
    tested = "contenders/*/predictions/holdout-test.csv"
    assert bytes_of(runs["test"], tested) != bytes_of(runs[""], tested)


def test_a_poisoned_val_row_leaves_every_byte_equal_that_is_fitted_on_train(runs):
    patterns = [*FITTED_ON_TRAIN, "contenders/*/predictions/holdout-test-uncalibrated.csv"]
    clean = bytes_of(runs[""], *patterns)
    assert len(clean) == 3 + 3 + 3
    assert bytes_of(runs["val"], *patterns) == clean
    assert bytes_of(runs["val"], *FITTED_ON_VAL) != bytes_of(runs[""], *FITTED_ON_VAL)


def test_everything_delivered_is_calibrated(runs):
    run = runs[""]
    for name in ("pixels_knn", "colour_softmax"):
        calibration = calibration_from_dict(read_json(run.fitted_calibration_path(name)))
        assert not calibration.changes_nothing
        raw = frames.read_predictions(run.uncalibrated_path(name, "test"))
        calibrated = run.predictions("test", name)
        np.testing.assert_allclose(
            frames.probabilities_of(calibrated), calibration.apply(frames.probabilities_of(raw))
        )
        images = [run.path.parent.parent / "images" / i for i in calibrated["image_id"]]
        predicted = cvpipe.load(run.path, name).predict_proba(images)
        np.testing.assert_allclose(
            frames.probabilities_of(predicted), frames.probabilities_of(calibrated), atol=1e-7
        )
        # A temperature never changes which class is named.
        assert (frames.predicted_labels(raw) == frames.predicted_labels(calibrated)).all()
    assert calibration_from_dict(read_json(run.fitted_calibration_path("majority"))).changes_nothing


def test_figures_before_and_after_stand_in_one_table(runs):
    run = runs[""]
    table = run.calibration()
    assert table["contender"].unique().tolist() == ["pixels_knn", "colour_softmax"]
    groups = run.manifest().set_index("image_id")["group"]
    metrics = run.metrics().query("split == 'test' and label == '' and protocol == 'holdout'")
    for row in table.itertuples():
        raw = frames.read_predictions(run.uncalibrated_path(row.contender, "test"))
        scored = score_predictions(raw, groups, 0, 200).query("label == ''").set_index("metric")
        before = scored.loc[row.metric]
        assert (row.before, row.before_low, row.before_high) == (
            before["value"], before["low"], before["high"]
        )  # fmt: skip
        after = metrics[metrics["contender"] == row.contender].set_index("metric")
        assert row.after == after.loc[row.metric, "value"]
        assert (row.verdict != "") == (row.metric == "log_loss")
        assert row.n == 45


def test_the_report_tells_it_and_a_run_from_before_still_has_a_report(runs, tmp_path):
    run = runs[""]
    page = run.report_path.read_text("utf-8")
    chosen = read_json(run.choice_path)["chosen"]
    assert "How far its probabilities can be trusted" in page
    assert f"{chosen} was" in page
    assert f"Accuracy of {chosen} at each confidence" in page
    run.calibration_path.rename(tmp_path / "calibration.csv")
    rebuild_report(run, run.path.parent.parent / "images")
    assert "How far its probabilities can be trusted" not in run.report_path.read_text("utf-8")
    (tmp_path / "calibration.csv").rename(run.calibration_path)
    rebuild_report(run, run.path.parent.parent / "images")
    assert run.report_path.read_text("utf-8") == page


def test_what_is_stored_is_plain_json(runs):
    facts = json.loads(runs[""].fitted_calibration_path("pixels_knn").read_text("utf-8"))
    assert facts["num_images"] == 45
    assert len(facts["halves"]) == 2
    assert set(facts) == {"method", "num_images", "slopes", "offsets", "floor", "halves", "asked"}
