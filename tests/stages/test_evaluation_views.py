"""Several views of an image at the test: whole runs of classic contenders and of networks."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe import frames
from cvpipe.config import validate_config
from cvpipe.data.splits import first_half
from cvpipe.errors import InputError
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_json, write_table
from cvpipe.inference.calibration import calibration_from_dict
from cvpipe.inference.crops import VIEWS, num_views, sizes_to_load
from cvpipe.inference.unlike import improbability
from cvpipe.report.content import VIEW_COLUMNS
from cvpipe.runs import Run
from cvpipe.stages import contenders as contenders_module
from cvpipe.stages import protocols
from cvpipe.stages.calibration import calibrate_table, load_calibration
from cvpipe.stages.choosing import can_be_chosen, fix_view
from cvpipe.stages.contenders import (
    describer_in_view,
    fit_rows,
    load_predictor,
    predict_rows,
    predict_split,
    refit_rows,
    stored_describer,
)
from cvpipe.stages.evaluate import run_evaluation
from cvpipe.stages.export import export_contender
from cvpipe.stages.features import files_of
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.plan import check_names, estimate_seconds
from cvpipe.stages.report import rebuild_report
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.summary import accuracy_table
from cvpipe.stages.unlike import score_files
from cvpipe.stages.view_figures import describe_crops

ALL = list(VIEWS)
CLASSIC = """
name = "a"
threads = 2
[data]
root = "images"
[split]
protocol = "kfold"
num_folds = 2
[[feature]]
name = "words"
kind = "kmeans_features"
image_size = [16, 20]
settings = {num_words = 8, num_samples = 2000}
[[contender]]
name = "majority"
classifier = "majority"
[[contender]]
name = "pixels_knn"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "mixed"
features = ["words", "colour_histogram"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "with_facts"
features = ["file_facts", "words"]
classifier = "gradient_boosting"
search = "coarse"
[evaluate]
resamples = 100
learning_curve = false
"""
LOOKING = ["pixels_knn", "mixed", "with_facts"]
NETWORK = """
name = "a"
threads = 2
[data]
root = "images"
[split]
careless = false
[[contender]]
name = "network"
{}
[evaluate]
resamples = 100
learning_curve = false
"""
RECIPES = {
    "from_scratch": """
backbone = "lenet5"
recipe = "from_scratch"
image_size = [28, 35]
training = {epochs = 3, batch_size = 16}
""",
    "linear_probe": """
backbone = "efficientnet_lite0"
recipe = "linear_probe"
image_size = [64, 64]
search = "coarse"
""",
}


def write_images(folder, text, views, seed=0):
    """Noise that is brighter in the middle for one of the classes, but not surely."""
    rng = np.random.default_rng(seed)
    for number in range(80):
        label = ("NA", "poppy")[number % 2]
        pixels = rng.normal(110, 55, (30, 36, 3))
        pixels[8:22, 8:28] += 16 * (number % 2) + rng.normal(0, 6)
        path = folder / "images" / label / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    (folder / "pipeline.toml").write_text(f"{text}\nviews = {json.dumps(views)}\n")
    return folder


class Listening(Nobody):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def heard():
    return Listening()


@pytest.fixture(scope="module")
def viewed(tmp_path_factory, heard):
    """A run of classic contenders with folds, in all views."""
    folder = write_images(tmp_path_factory.mktemp("viewed"), CLASSIC, ALL)
    return cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs", watcher=heard)


@pytest.fixture(
    scope="module", params=["from_scratch", pytest.param("linear_probe", marks=pytest.mark.slow)]
)
def network(request, tmp_path_factory):
    """A run of a network in all views."""
    text = NETWORK.format(RECIPES[request.param])
    folder = write_images(tmp_path_factory.mktemp(request.param), text, ALL)
    return cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs")


def root_of(run):
    return run.path.parent.parent / "images"


def job_on(run):
    return Job(run.config(), root_of(run), run, Nobody())


def copy_of(run, folder):
    copy = Run(folder / "runs" / run.path.name)
    shutil.copytree(run.path, copy.path)
    return copy


def config_of(views, **evaluate):
    contender = {"name": "c", "features": ["raw_pixels"], "classifier": "nearest_neighbours"}
    values = {"name": "a", "data": {"root": "images"}, "contender": [contender], "threads": 2}
    return validate_config({**values, "evaluate": {"views": views, **evaluate}})


# What may be asked for.


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (
            [],
            r"'single' must be among the views, because the others are compared with it, but they",
        ),
        (["flip"], r"'single' must be among the views.* are \['flip'\]"),
        (["single", "flip", "flip"], r"evaluate\.views: 'flip' is named more than once"),
        ("flip", r"evaluate\.views: "),
    ],
)
def test_views_that_make_no_sense(views, message):
    with pytest.raises(InputError, match=message):
        config_of(views)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("ten_crops", "ten_crop"), ("flips", "flip"), ("center", "centre"), ("multiscale", "multi_")],
)
def test_a_wrong_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"unknown view '{name}'; did you mean '{nearest}"):
        check_names(config_of(["single", name]))


def test_one_view_is_what_nobody_asked_for():
    assert config_of(["single"]).evaluate.views == ("single",)
    values = config_of(["single"]).model_dump(mode="json")
    del values["evaluate"]["views"]
    assert validate_config(values).evaluate.views == ("single",)


def test_views_take_their_time():
    seconds = [estimate_seconds(config_of(views), 1000) for views in (["single"], ALL)]
    # 22 passes; the 21 further ones over val and test, two fifths of the images.
    assert seconds[1] - seconds[0] == pytest.approx(1000 * 0.002 * 21 * 0.4)


def test_what_cuts_is_warned_of():
    assert describe_crops(config_of(["single", "flip"])) == ""
    warning = describe_crops(config_of(ALL))
    assert warning.startswith("centre, five_crop, ten_crop and multi_scale look at crops: each ")
    assert "can be cut away" in warning
    assert describe_crops(config_of(["single", "centre"])).startswith("centre looks at crops: ")
    majority = {"name": "m", "classifier": "majority"}
    values = {**config_of(ALL).model_dump(mode="json"), "contender": [majority]}
    assert describe_crops(validate_config(values)) == ""


def test_the_warning_is_said_once_in_a_run(viewed, heard):
    told = [line for line in heard.said if "can be cut away" in line]
    assert told == [f"evaluate.views: {describe_crops(viewed.config())}"]


# Files.

PER_SPLIT = ("holdout-{}-uncalibrated", "holdout-{}")


def test_every_contender_has_a_table_for_each_view(viewed):
    for name in LOOKING:
        stored = {p.name for p in (viewed.path / "contenders" / name / "predictions").iterdir()}
        mains = [kind.format(split) for split in ("val", "test") for kind in PER_SPLIT]
        mains.append("kfold-test-r0")
        expected = [f"{main}{end}.csv" for main in mains for end in ("", *(f"-{v}" for v in ALL))]
        assert stored == {*expected, "careless-test.csv"}
    # It looks at no pixel.
    stored = {p.name for p in (viewed.path / "contenders" / "majority" / "predictions").iterdir()}
    assert stored == {
        *("holdout-val.csv", "holdout-val-uncalibrated.csv", "holdout-test.csv"),
        *("holdout-test-uncalibrated.csv", "kfold-test-r0.csv", "careless-test.csv"),
    }
    assert not viewed.view_path("majority").exists()
    assert viewed.view("majority") == "single"


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("view", ALL)
@pytest.mark.parametrize("name", LOOKING)
def test_every_contender_gives_a_valid_table_in_every_view(viewed, name, view, split):
    check_table(viewed, name, view, split)


def check_table(run, name, view, split):
    """All images once, in order; uncalibrated as the stored model says of plainly cut pixels."""
    rows = rows_of_split(job_on(run), split)
    table = run.predictions(split, name, view=view)
    frames.check_predictions(table)
    assert table["image_id"].tolist() == rows["image_id"].tolist()
    assert table["label"].tolist() == rows["label"].tolist()
    contender = next(c for c in run.config().contender if c.name == name)
    predict = load_predictor(run, contender)
    describer = stored_describer(run, contender, view)
    features = describer.describe(files_of(root_of(run), rows), Nobody())
    views = np.split(features, num_views(view), axis=1)
    expected = sum(predict(np.ascontiguousarray(part)).astype(np.float64) for part in views)
    raw = frames.read_predictions(run.uncalibrated_path(name, split, view))
    np.testing.assert_allclose(frames.probabilities_of(raw), expected / num_views(view), atol=1e-12)
    calibration = calibration_from_dict(read_json(run.fitted_calibration_path(name, view)))
    np.testing.assert_array_equal(
        frames.probabilities_of(table), calibration.apply(frames.probabilities_of(raw))
    )


def test_views_differ_and_the_whole_image_is_the_first_of_several(viewed):
    tables = [
        frames.probabilities_of(viewed.predictions("test", "pixels_knn", view=v)) for v in ALL
    ]
    assert all(not np.array_equal(one, other) for one, other in pairwise(tables))


@pytest.mark.parametrize("name", LOOKING)
def test_the_own_tables_are_those_of_the_chosen_view(viewed, name):
    view = viewed.view(name)
    for split in ("val", "test"):
        for path in (viewed.uncalibrated_path, viewed.predictions_path):
            assert path(name, split).read_bytes() == path(name, split, view=view).read_bytes()
    folds = [viewed.predictions_path(name, "test", "kfold", view=v) for v in ("", view)]
    assert folds[0].read_bytes() == folds[1].read_bytes()
    calibrations = [viewed.fitted_calibration_path(name, v) for v in ("", view)]
    assert calibrations[0].read_bytes() == calibrations[1].read_bytes()


def test_some_contender_has_another_view_than_a_single_one(viewed):
    """Otherwise these tests say little."""
    assert {viewed.view(name) for name in LOOKING} - {"single"}


def test_the_metrics_say_which_view_they_are_of(viewed):
    metrics = viewed.metrics()
    for name in ("majority", *LOOKING):
        assert set(metrics.loc[metrics["contender"] == name, "view"]) == {viewed.view(name)}
    table = accuracy_table(viewed)
    assert table["view"].tolist() == [viewed.view(c.name) for c in viewed.config().contender]


SINGLE_FILES = {
    *("audit.csv", "audit.html", "calibration.csv", "careless.csv", "choice.json", "classes.json"),
    *("comparison.csv", "config.json", "contenders.csv", "abstention.csv", "conformal.csv"),
    *("duplicates.csv", "expectation.json", "images.csv", "manifest.csv", "metrics.csv"),
    *("neighbours.csv", "provenance.json", "report.html", "speeds.json", "subgroups.csv"),
    *("suspects.csv", "timings.json", "unlike.csv"),
}


@pytest.fixture(scope="module")
def single(viewed, tmp_path_factory):
    """The same run with one view and without folds."""
    changes = ['evaluate.views=["single"]', "split.protocol=holdout", "split.careless=false"]
    changes += ['export.formats=["keras"]']  # which none of them can have
    pipeline = viewed.path.parent.parent / "pipeline.toml"
    return cvpipe.run(pipeline, changes, runs_path=tmp_path_factory.mktemp("single"))


def test_a_run_with_one_view_has_no_file_more_than_before(single):
    assert {p.name for p in single.path.iterdir() if p.is_file()} == SINGLE_FILES
    assert not single.export_path.exists()
    for name in LOOKING:
        stored = {p.name for p in single.predictions_path(name, "val").parent.iterdir()}
        mains = [kind.format(split) for split in ("val", "test") for kind in PER_SPLIT]
        assert stored == {f"{main}.csv" for main in mains}
        part = {p.name for p in single.part_path(name).iterdir()}
        assert not {f for f in part if "view" in f or f.startswith("calibration-")}
    assert set(single.metrics()["view"]) == {"single"}
    assert single.views().empty
    assert 'id="test-views"' not in single.report_path.read_text("utf-8")
    assert "view" not in accuracy_table(single)


def test_asking_for_more_changes_nothing_of_a_single_view(viewed, single):
    for name in LOOKING:
        for split in ("val", "test"):
            for path in ("predictions_path", "uncalibrated_path"):
                own = getattr(single, path)(name, split)
                assert (
                    own.read_bytes()
                    == getattr(viewed, path)(name, split, view="single").read_bytes()
                )
    majority = [r.predictions_path("majority", "test").read_bytes() for r in (viewed, single)]
    assert majority[0] == majority[1]


# The choice.


def make_val(folder, views, poisoned=(), **evaluate):
    """A job with 400 rows of val and their predictions in two views; flip is the better one.

    Args:
        poisoned: Marks of `(half, view)`: whose labels are turned around in which table.
    """
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 400)
    names = [f"{i:04}.png" for i in range(400)]
    val = pd.DataFrame({"image_id": names, "group": names, "split": "val", "sha256": names})
    first = first_half(val["group"].tolist())
    labels = targets.copy()
    for half in poisoned:
        rows = first if half == "A" else ~first
        labels[rows] = 1 - labels[rows]
    val["label"] = np.array(["NA", "poppy"])[labels]
    job = Job(config_of(views, **evaluate), folder, Run(folder), Nobody())
    write_json(job.run.config_path, job.config.model_dump(mode="json"))
    write_json(job.run.classes_path, ["NA", "poppy"])
    write_table(job.run.manifest_path, val)
    for view in views:
        strength = {"flip": 3}.get(view, 1)
        logits = strength * (2 * targets - 1) + rng.normal(0, 2, 400)
        right = 1 / (1 + np.exp(-logits))
        table = frames.make_predictions(
            names, val["label"].tolist(), np.stack([1 - right, right], axis=1), ["NA", "poppy"]
        )
        write_table(job.run.uncalibrated_path("c", "val", view), table)
    return job, val


def choose_in(folder, poisoned=(), **evaluate):
    job, val = make_val(folder, ["single", "flip", "centre"], poisoned, **evaluate)
    predict_split(job, job.config.contender[0], val, "val")
    return job.run


@pytest.mark.parametrize(
    "evaluate", [{"calibration": "none"}, {"select_by": "accuracy"}], ids=["log_loss", "accuracy"]
)
def test_the_view_is_chosen_on_half_a_alone(tmp_path, evaluate):
    """What half B decides is the calibration: of it a temperature changes no accuracy."""
    clean, in_a, in_b = (
        choose_in(tmp_path / (half or "clean"), half, **evaluate) for half in ("", "A", "B")
    )
    assert clean.view("c") == "flip"
    assert in_b.view_path("c").read_bytes() == clean.view_path("c").read_bytes()
    assert in_a.view("c") != "flip"


def test_each_view_is_calibrated_on_half_b(tmp_path):
    clean, in_a, in_b = (choose_in(tmp_path / (half or "clean"), half) for half in ("", "A", "B"))
    for view in ("", "single", "flip", "centre"):
        paths = [run.fitted_calibration_path("c", view) for run in (clean, in_a, in_b)]
        if view:
            assert paths[0].read_bytes() == paths[1].read_bytes()
        assert paths[0].read_bytes() != paths[2].read_bytes()
    slopes = {
        view: read_json(clean.fitted_calibration_path("c", view))["slopes"][0]
        for view in ("single", "flip")
    }
    assert slopes["flip"] != slopes["single"]


def test_the_reason_is_stored(tmp_path):
    run = choose_in(tmp_path)
    num_first = int(first_half([f"{i:04}.png" for i in range(400)]).sum())
    assert read_json(run.view_path("c")) == {
        "chosen": "flip",
        "because": f"it has the lowest log loss of 3 views on {num_first} of the 400 validation "
        "images",
        "select_by": "log_loss",
        "num_images": num_first,
    }
    val, table = run.manifest(), run.predictions("val", "c")
    assert table["image_id"].tolist() == val["image_id"].tolist()
    assert run.predictions_path("c", "val").read_bytes() == (
        run.predictions_path("c", "val", view="flip").read_bytes()
    )


def test_the_fewest_passes_are_chosen_of_views_that_are_equally_good(tmp_path):
    views = ["ten_crop", "centre", "flip", "single"]
    job, val = make_val(tmp_path, views)
    same = job.run.uncalibrated_path("c", "val", "flip").read_bytes()
    for view in views:
        job.run.uncalibrated_path("c", "val", view).write_bytes(same)
    predict_split(job, job.config.contender[0], val, "val")
    assert job.run.view("c") == "single"


def test_a_choice_stands_once_it_is_stored(tmp_path):
    run = choose_in(tmp_path)
    write_json(run.view_path("c"), {"chosen": "centre"})
    job = Job(run.config(), tmp_path, run, Nobody())
    predict_split(job, job.config.contender[0], run.manifest(), "val")
    fix_view(job, job.config.contender[0], run.manifest())
    assert run.view("c") == "centre"
    assert run.predictions_path("c", "val").read_bytes() == (
        run.predictions_path("c", "val", view="centre").read_bytes()
    )


def test_several_sizes_are_chosen_for_no_network():
    deep = {"features": ["efficientnet_lite0"], "search": "coarse"}
    contenders = [
        {"name": "net", "backbone": "lenet5", "recipe": "from_scratch"},
        {"name": "as_layers", **deep, "classifier": "rbf_svm"},
        {"name": "neighbours", **deep, "classifier": "nearest_neighbours"},
    ]
    base = config_of(ALL)
    config = validate_config({**base.model_dump(mode="json"), "contender": contenders})
    for contender in config.contender[:2]:
        asked = [view for view in ALL if not can_be_chosen(config, contender, view)]
        assert asked == ["multi_scale"]
    for contender in (config.contender[2], base.contender[0]):
        assert all(can_be_chosen(config, contender, view) for view in ALL)


# Figures.


def test_every_view_is_compared_with_a_single_one(viewed):
    table = viewed.views()
    assert tuple(table.columns) == VIEW_COLUMNS
    keys = [(p, name, v) for p in ("holdout", "kfold") for name in LOOKING for v in ALL]
    assert list(zip(*(table[c] for c in ("protocol", "contender", "view")), strict=True)) == keys
    groups = viewed.manifest().set_index("image_id")["group"]
    speeds = viewed.view_speeds()
    for (protocol, name), rows in table.groupby(["protocol", "contender"]):
        tables = {v: viewed.predictions("test", name, protocol, view=v) for v in ALL}
        compared = compare_predictions("single", tables, groups, 0, 100)
        compared = compared[compared["metric"] == "accuracy"].set_index("contender")
        for row in rows.itertuples():
            assert row.chosen == (row.view == viewed.view(name))
            assert row.passes == num_views(row.view)
            assert row.n == len(tables[row.view])
            assert row.milliseconds_per_image == pytest.approx(1000 / speeds[name][row.view])
            cost = speeds[name]["single"] / speeds[name][row.view]
            assert row.relative_cost == pytest.approx(cost)
            scored = score_predictions(tables[row.view], groups, 0, 100)
            scored = scored[scored["label"] == ""].set_index("metric")
            for metric in ("accuracy", "log_loss"):
                found = [getattr(row, f"{metric}{end}") for end in ("", "_low", "_high")]
                assert found == scored.loc[metric, ["value", "low", "high"]].tolist()
            if row.view == "single":
                assert row.verdict == ""
                assert np.isnan(row.difference)
            else:
                found = compared.loc[row.view]
                assert row.difference == found["difference"]
                assert (row.difference_low, row.difference_high) == (found["low"], found["high"])
                assert (row.p_adjusted, row.verdict) == (found["p_adjusted"], found["verdict"])
    assert all(viewed.speeds()[name] == speeds[name][viewed.view(name)] for name in LOOKING)


def test_the_page_has_a_section_on_views(viewed, tmp_path):
    page = viewed.report_path.read_text("utf-8")
    assert '<section id="test-views">' in page
    chosen = read_json(viewed.choice_path)["chosen"]
    view = viewed.view(chosen)
    assert f"{chosen} sees an image in the view {view}, chosen on the validation" in page
    assert read_json(viewed.view_path(chosen))["because"] in page
    assert describe_crops(viewed.config()) in page
    copy = copy_of(viewed, tmp_path)
    rebuild_report(copy, root_of(viewed))
    assert copy.report_path.read_text("utf-8") == page


# Folds, and going on.


def test_one_fit_of_a_fold_predicts_all_views(viewed, tmp_path, monkeypatch):
    copy = copy_of(viewed, tmp_path)
    for path in [*copy.path.glob("contenders/*/r0-*/*"), *copy.path.glob("contenders/*/*/kfold*")]:
        path.unlink()
    fitted, original = [], contenders_module.fit_rows

    def counting(job, contender, rows, **options):
        fitted.append(contender.name)
        return original(job, contender, rows, **options)

    monkeypatch.setattr(protocols, "fit_rows", counting)
    protocols.run_folds(Job(viewed.config(), root_of(viewed), copy, Nobody()))
    assert fitted == [c.name for c in viewed.config().contender for _ in range(2)]
    for path in viewed.path.glob("contenders/*/predictions/kfold*"):
        assert (copy.path / path.relative_to(viewed.path)).read_bytes() == path.read_bytes()
    for name in LOOKING:
        whole = viewed.manifest()["image_id"].tolist()
        for view in ALL:
            table = viewed.predictions("test", name, "kfold", view=view)
            assert table["image_id"].tolist() == whole


def tables_of(run):
    patterns = ("contenders/*/predictions/*.csv", "contenders/*/holdout/*.json", "*.csv")
    names = [path for pattern in patterns for path in run.path.glob(pattern)]
    # Those tell seconds.
    kept = [path for path in names if path.name not in ("contenders.csv", "fit.json")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in kept}


def kill_before(killed_before, viewed, folder):
    """Copy a run without a file and all that were written after it."""
    copy = copy_of(viewed, folder)
    written = (viewed.path / killed_before).stat().st_mtime_ns
    kept = {"view_speeds.json", "speeds.json"}  # times of another day
    for path in list(copy.path.rglob("*")):
        twin = viewed.path / path.relative_to(copy.path)
        if twin.is_file() and twin.stat().st_mtime_ns >= written and path.name not in kept:
            path.unlink()
    assert not (copy.path / killed_before).exists()
    return copy


@pytest.mark.parametrize(
    "killed_before",
    [
        "predictions/holdout-val-uncalibrated-flip.csv",
        "predictions/holdout-val-ten_crop.csv",
        "holdout/calibration-ten_crop.json",
        "holdout/view.json",
        "holdout/calibration.json",
        "predictions/holdout-val-uncalibrated.csv",
        "predictions/holdout-val.csv",
        "predictions/holdout-test-uncalibrated-centre.csv",
        "predictions/holdout-test-multi_scale.csv",
        "predictions/holdout-test-uncalibrated.csv",
        "predictions/holdout-test.csv",
    ],
)
def test_what_was_killed_between_views_ends_with_the_same_bytes(viewed, tmp_path, killed_before):
    copy = kill_before(f"contenders/mixed/{killed_before}", viewed, tmp_path)
    job = Job(viewed.config(), root_of(viewed), copy, Nobody())
    contender = next(c for c in job.config.contender if c.name == "mixed")
    for split in ("val", "test"):
        if not copy.predictions_path("mixed", split).exists():
            predict_split(job, contender, rows_of_split(job, split), split)
    patterns = ("calibration*.json", "view.json", "../predictions/holdout-*.csv")
    paths = [path for pattern in patterns for path in viewed.part_path("mixed").glob(pattern)]
    assert len(paths) == 7 + 1 + 4 * 7
    for path in paths:
        assert (copy.path / path.relative_to(viewed.path)).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed_before",
    [
        "contenders/mixed/holdout/view.json",
        "contenders/with_facts/predictions/holdout-test-uncalibrated-centre.csv",
        "contenders/mixed/predictions/kfold-test-r0-flip.csv",
    ],
)
def test_a_run_that_was_killed_between_views_ends_with_the_same_bytes(
    viewed, tmp_path, killed_before
):
    copy = kill_before(killed_before, viewed, tmp_path)
    shutil.copytree(root_of(viewed), tmp_path / "images")
    shutil.copyfile(viewed.path.parent.parent / "pipeline.toml", tmp_path / "pipeline.toml")
    again = cvpipe.run(tmp_path / "pipeline.toml", runs_path=tmp_path / "runs")
    assert again.path == copy.path
    assert tables_of(again) == tables_of(viewed)


@pytest.mark.parametrize("name", LOOKING)
def test_new_files_are_predicted_in_the_chosen_view(viewed, name):
    check_new_files(viewed, name)


def check_new_files(run, name, tolerance=1e-7):
    table = run.predictions("test", name)
    paths = [root_of(run) / image_id for image_id in table["image_id"]]
    loaded = cvpipe.load(run.path, name).predict_proba(paths)
    expected = frames.probabilities_of(table)
    np.testing.assert_allclose(frames.probabilities_of(loaded), expected, rtol=0, atol=tolerance)


def test_the_test_split_is_opened_once_for_all_views(viewed):
    lines = (viewed.path.parent / "test_openings.csv").read_text().splitlines()
    assert len(lines) == 1 + 2  # the test split, and all images in folds


def test_figures_are_made_once(viewed, tmp_path):
    copy = copy_of(viewed, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in copy.path.glob("contenders/*/predictions/*.csv")}
    run_evaluation(Job(viewed.config(), root_of(viewed), copy, Nobody()))
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_what_is_unlike_is_asked_of_the_probabilities_of_the_own_view(viewed):
    name = read_json(viewed.choice_path)["chosen"]
    contender = next(c for c in viewed.config().contender if c.name == name)
    table = viewed.predictions("test", name)
    found = score_files(viewed, contender, root_of(viewed), table["image_id"].tolist(), Nobody())
    expected = improbability(frames.probabilities_of(table))
    np.testing.assert_allclose(found["probability"], expected, atol=1e-7)


@pytest.mark.parametrize("name", ["pixels_knn", "mixed"])
def test_the_careless_split_is_seen_in_the_chosen_view(viewed, name):
    job, manifest = job_on(viewed), viewed.manifest()
    alone = manifest.assign(group=manifest["image_id"])
    train, test = (alone[alone["careless"] == s].reset_index(drop=True) for s in ("train", "test"))
    contender = next(c for c in job.config.contender if c.name == name)
    chosen = read_json(viewed.part_path(name) / "fit.json")["chosen"]
    fit = refit_rows(job, contender, train, chosen)
    raw = predict_rows(job, fit, test, viewed.view(name))
    expected = calibrate_table(raw, load_calibration(viewed, name))
    stored = viewed.predictions("test", name, "careless")
    np.testing.assert_array_equal(
        frames.probabilities_of(stored), frames.probabilities_of(expected)
    )


def test_a_fold_is_seen_in_all_views_with_the_words_of_its_own_fit(viewed):
    job, manifest = job_on(viewed), viewed.manifest()
    contender = next(c for c in job.config.contender if c.name == "mixed")
    held_out = manifest["fold"] == "1"
    fit = fit_rows(job, contender, manifest[~held_out].reset_index(drop=True))
    rows = manifest[held_out].reset_index(drop=True)
    words = fit.describer.descriptors[0].learned
    features = {}
    for view in ("single", "flip"):
        describer = describer_in_view(fit, view)
        assert describer.descriptors[0].learned is words
        features[view] = describer.describe(files_of(job.root, rows), Nobody())
    whole, mirrored = np.split(features["flip"], 2, axis=1)
    np.testing.assert_array_equal(whole, features["single"])
    both = [fit.predict(np.ascontiguousarray(part)) for part in (whole, mirrored)]
    pooled = viewed.predictions("test", "mixed", "kfold", view="flip").set_index("image_id")
    stored = pooled.loc[rows["image_id"]].reset_index()
    np.testing.assert_allclose(frames.probabilities_of(stored), np.mean(both, axis=0), atol=1e-12)


# Networks.


@pytest.mark.parametrize("view", ALL)
def test_a_network_gives_a_valid_table_in_every_view(network, view):
    check_table(network, "network", view, "test")


def test_several_sizes_are_reported_for_a_network_and_not_chosen(network):
    facts = read_json(network.view_path("network"))
    assert facts["chosen"] != "multi_scale"
    assert "of 5 views on" in facts["because"]
    assert "'multi_scale' is reported but cannot be chosen for a network" in facts["because"]
    assert network.views()["view"].tolist() == ALL


def test_new_files_are_predicted_by_a_network_in_its_view(network):
    check_new_files(network, "network", tolerance=1e-6)


@pytest.mark.parametrize("view", [view for view in ALL if view != "multi_scale"])
def test_an_exported_network_has_its_view_inside(network, view, tmp_path):
    """The file alone, on images of the size that it asks for, gives what was measured."""
    copy = copy_of(network, tmp_path)
    write_json(copy.view_path("network"), {"chosen": view})
    for split in ("val", "test"):
        contenders_module._adopt_chosen_view(copy, "network", split)
    shutil.rmtree(copy.export_path)
    bundle, found = export_contender(copy, "network", "keras", root_of(network))
    assert found["passed"], found
    facts = read_json(bundle / "bundle.json")
    size = copy.config().contender[0].image_size
    (loaded_size,) = sizes_to_load(view, size)
    assert tuple(facts["input"]["image_size"]) == loaded_size
    if view == "single":
        assert "view" not in facts
    else:
        assert facts["view"] == {
            "kind": view,
            "passes": num_views(view),
            "crop_size": list(size),
            "mean_of": "probabilities",
            "where": "inside the model",
        }
        words = f"It looks at {num_views(view)} view(s) of {size[0]} x {size[1]} pixels (`{view}`)"
        assert words in (bundle / "README.md").read_text("utf-8")
    table = copy.predictions("test", "network", view=view)
    paths = [root_of(network) / image_id for image_id in table["image_id"]]
    predicted = cvpipe.load(bundle).predict_proba(paths)
    expected = frames.probabilities_of(table)
    np.testing.assert_allclose(frames.probabilities_of(predicted), expected, rtol=0, atol=1e-6)


def test_the_run_has_exported_what_it_measured(network):
    """`cvpipe.run` checks the file in a fresh process, and would have failed."""
    facts = read_json(network.export_path / "network" / "bundle.json")
    view = network.view("network")
    assert facts.get("view", {"kind": "single"})["kind"] == view
    assert read_json(network.export_path / "network" / "parity.json")["passed"]
