"""Thresholds are fitted on half B of val, frozen before test is opened, and scored on test."""

import json
import shutil
import unicodedata

import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe.config import validate_config
from cvpipe.data.splits import first_half
from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import wilson_interval
from cvpipe.evaluation.means import mean_with_interval
from cvpipe.export.bundle import BUNDLE_VERSION
from cvpipe.files import read_json, write_json, write_table
from cvpipe.frames import make_predictions, probabilities_of, targets_of
from cvpipe.inference.calibration import fit_calibration
from cvpipe.runs import Run, read_ledger
from cvpipe.stages import evaluate
from cvpipe.stages.bundle_facts import decisions_of
from cvpipe.stages.calibration import calibrate, table_for_fitting
from cvpipe.stages.decide import (
    ANSWERED_SHARES,
    collect_decisions,
    deciders,
    fix_decisions,
    goal_met,
    positive_class,
    run_decide,
)
from cvpipe.stages.decide import decide as apply_point
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import rebuild_report
from cvpipe.stages.split import rows_of_split
from tests.stages.test_costs import write_images

CLASSES = ["0", "NA", "poppy"]
CONTENDERS = [
    {"name": "majority", "classifier": "majority"},
    {"name": "pixels", "features": ["raw_pixels"], "classifier": "softmax"},
    {"name": "colour", "features": ["colour_histogram"], "classifier": "softmax"},
]
SENSITIVITY = {"goal": "sensitivity", "positive": "NA", "at_least": 0.8}
COSTS = {"goal": "cost", "costs": {"NA": {"0": 20}}}


def make_job(folder, num_val=400, num_test=90, images_per_group=1, **section):
    """Lay out a run whose contenders have predicted, without any image."""
    rng = np.random.default_rng(num_val)
    raw = {"name": "a", "data": {"root": "x"}, "contender": CONTENDERS}
    run = Run(folder / "runs" / "a-1")
    numbers = np.arange(num_val + num_test)
    manifest = pd.DataFrame(
        {
            "image_id": [f"{number:04}.png" for number in numbers],
            "label": rng.choice(CLASSES, len(numbers)),
            "group": [f"g{number // images_per_group}" for number in numbers],
            "sha256": [f"{number:x}" for number in numbers],
            "split": np.where(numbers < num_val, "val", "test"),
        }
    )
    write_table(run.manifest_path, manifest)
    write_json(run.classes_path, CLASSES)
    config = validate_config({**raw, "evaluate": {"resamples": 200, **section}})
    write_json(run.config_path, config.model_dump(mode="json"))
    job = Job(config, folder, run, Nobody())
    for contender in CONTENDERS:
        write_json(run.fitted_calibration_path(contender["name"]), {"method": "none"})
        for split, rows in manifest.groupby("split"):
            targets = rows["label"].map(CLASSES.index).to_numpy()
            weights = np.exp(np.eye(3)[targets] + rng.normal(size=(len(rows), 3)))
            probabilities = weights / weights.sum(axis=1, keepdims=True)
            table = make_predictions(rows["image_id"], rows["label"], probabilities, CLASSES)
            # Other orders than the manifest's must make no difference.
            table = table.sample(frac=1, random_state=1)
            write_table(run.predictions_path(contender["name"], split), table)
    return job


def groups_of_job(job):
    return job.run.manifest().set_index("image_id")["group"]


def decide(job):
    fix_decisions(job)
    run_decide(job, groups_of_job(job))


def poison(job, split, image_ids):
    """Turn what was predicted for some images around."""
    for contender in CONTENDERS:
        table = job.run.predictions(split, contender["name"])
        rows = table["image_id"].isin(image_ids)
        columns = [f"p_{name}" for name in CLASSES]
        table.loc[rows, columns] = table.loc[rows, columns[::-1]].to_numpy()
        write_table(job.run.predictions_path(contender["name"], split), table)


def frozen_bytes(job):
    return {name: job.run.decisions_path(name).read_bytes() for name in deciders(job.config)}


def test_a_large_val_is_fitted_on_its_second_half_alone(tmp_path):
    job = make_job(tmp_path / "a", **SENSITIVITY)
    fix_decisions(job)
    val = job.run.manifest().query("split == 'val'")
    in_first = first_half(val["group"].tolist())
    frozen = read_json(job.run.decisions_path("pixels"))
    assert frozen["fitted_on"] == {
        "num_images": int((~in_first).sum()),
        "also_made_the_choice": False,
    }
    # A poisoned half A, a poisoned test: not a byte moves. A poisoned half B does move them.
    for name, split, image_ids, same in (
        ("b", "val", val["image_id"][in_first], True),
        ("c", "test", job.run.manifest()["image_id"], True),
        ("d", "val", val["image_id"][~in_first], False),
    ):
        other = make_job(tmp_path / name, **SENSITIVITY)
        poison(other, split, set(image_ids))
        fix_decisions(other)
        assert (frozen_bytes(other) == frozen_bytes(job)) is same


def test_what_is_frozen_by_hand(tmp_path):
    job = make_job(tmp_path, num_val=60, **SENSITIVITY, conformal_level=0.8)
    fix_decisions(job)
    val = job.run.predictions("val", "colour")
    frozen = read_json(job.run.decisions_path("colour"))
    # A small val is used whole, and then it also made the choice.
    assert frozen["fitted_on"] == {"num_images": 60, "also_made_the_choice": True}
    point = frozen["operating_point"]
    assert {name: point[name] for name in SENSITIVITY} == SENSITIVITY
    is_positive = val["label"] == "NA"
    found = np.sort(val["p_NA"][is_positive])[::-1]
    needed = int(np.ceil(0.8 * len(found)))
    assert point["threshold"] < found[needed - 1]
    below = val["p_NA"][val["p_NA"] < found[needed - 1]].max()
    assert point["threshold"] == pytest.approx((below + found[needed - 1]) / 2)
    sure = np.sort(val[[f"p_{name}" for name in CLASSES]].max(axis=1))[::-1]
    assert [row["asked_share"] for row in frozen["abstention"]] == list(ANSWERED_SHARES)
    for row in frozen["abstention"]:
        assert (sure >= row["threshold"]).sum() == round(60 * row["asked_share"])
    of_truth = np.sort([row[f"p_{row['label']}"] for row in val.to_dict("records")])[::-1]
    sets = frozen["prediction_sets"]
    assert sets["marginal"] == of_truth[int(np.ceil(61 * 0.8)) - 1]
    assert sets["num_images"] == val["label"].value_counts()[CLASSES].to_dict()
    assert (sets["level"], sets["images_needed"]) == (0.8, 4)
    of_class = np.sort(val["p_NA"][is_positive])[::-1]
    assert sets["by_class"]["NA"] == of_class[int(np.ceil((len(of_class) + 1) * 0.8)) - 1]


def test_thresholds_are_frozen_before_test_is_opened(tmp_path, monkeypatch):
    job = make_job(tmp_path, **SENSITIVITY)
    seen = []

    def open_test(opened):
        assert deciders(job.config) == ["pixels", "colour"]
        seen.extend(opened.run.decisions_path(name).exists() for name in deciders(job.config))
        seen.append(read_ledger(opened.run.path.parent))
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "open_test", open_test)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run_evaluation(job)
    assert seen == [True, True, []]
    assert job.run.choice_path.exists()
    assert not job.run.abstention_path.exists()


def test_what_is_frozen_stands(tmp_path):
    job = make_job(tmp_path)
    decide(job)
    paths = [job.run.abstention_path, job.run.conformal_path]
    before = [frozen_bytes(job), *(path.read_bytes() for path in paths)]
    for split in ("val", "test"):
        poison(job, split, set(job.run.manifest()["image_id"]))
    decide(job)
    assert [frozen_bytes(job), *(path.read_bytes() for path in paths)] == before
    # Without a goal there is no operating point, and baselines decide nothing.
    assert not job.run.operating_points_path.exists()
    assert job.run.operating_points().empty
    assert read_json(job.run.decisions_path("pixels"))["operating_point"] == {}
    assert not job.run.decisions_path("majority").exists()
    assert set(job.run.conformal()["contender"]) == {"pixels", "colour"}


def share(hits, images):
    hits, n = sum(hit for hit, image in zip(hits, images, strict=True) if image), sum(images)
    return (hits / n, *wilson_interval(hits, n), n)


def test_operating_points_by_a_plain_loop(tmp_path):
    job = make_job(tmp_path, **SENSITIVITY)
    decide(job)
    table = job.run.operating_points()
    assert len(table) == 2 * 5
    for name in ("pixels", "colour"):
        threshold = read_json(job.run.decisions_path(name))["operating_point"]["threshold"]
        test = job.run.predictions("test", name)
        called = [p >= threshold for p in test["p_NA"]]
        positive = [label == "NA" for label in test["label"]]
        right = [c == p for c, p in zip(called, positive, strict=True)]
        counted = {
            "sensitivity": positive,
            "specificity": [not p for p in positive],
            "precision": called,
            "npv": [not c for c in called],
            "accuracy": [True] * len(test),
        }
        rows = table[table["contender"] == name].set_index("figure")
        assert list(rows.index) == list(counted)
        for figure, images in counted.items():
            row = rows.loc[figure]
            found = row[["value", "low", "high", "n"]].astype(float)
            np.testing.assert_allclose(found, share(right, images))
            assert (row["goal"], row["positive"], row["threshold"]) == (
                "sensitivity",
                "NA",
                threshold,
            )
            assert bool(row["goal_met"]) == (figure == "sensitivity")
        row = rows.loc["sensitivity"]
        assert row["goal_met"] == goal_met(row["low"], row["high"], 0.8)


@pytest.mark.parametrize(
    ("low", "high", "at_least", "met"),
    [
        (0.9, 0.95, 0.9, "shown"),
        (0.89, 0.95, 0.9, "not shown"),
        (0.8, 0.9, 0.9, "not shown"),
        (0.8, 0.899, 0.9, "missed"),
        (0.8, 0.9, np.nan, ""),
    ],
)
def test_a_goal_is_met_by_the_interval(low, high, at_least, met):
    assert goal_met(low, high, at_least) == met


@pytest.mark.parametrize(
    ("section", "figures"),
    [
        ({"goal": "specificity", "positive": "0", "at_least": 0.9}, "specificity"),
        ({"goal": "youden", "positive": "poppy"}, ""),
    ],
)
def test_other_goals(tmp_path, section, figures):
    job = make_job(tmp_path, **section)
    decide(job)
    table = job.run.operating_points()
    assert set(table["goal"]) == {section["goal"]}
    assert set(table["positive"]) == {section["positive"]}
    assert set(table["figure"][table["goal_met"] != ""]) == ({figures} if figures else set())


def test_deciding_by_cost(tmp_path):
    job = make_job(tmp_path, **COSTS)
    decide(job)
    rows = job.run.operating_points().query("contender == 'colour'").set_index("figure")
    assert list(rows.index) == ["accuracy", "cost"]
    assert rows["threshold"].isna().all()
    test = job.run.predictions("test", "colour")
    costs, right = [], []
    for row in test.to_dict("records"):
        chance = {name: row[f"p_{name}"] for name in CLASSES}
        expected = {
            "0": 20 * chance["NA"] + chance["poppy"],
            "NA": chance["0"] + chance["poppy"],
            "poppy": chance["0"] + chance["NA"],
        }
        decided = min(CLASSES, key=lambda name: expected[name])
        right.append(decided == row["label"])
        costs.append({("NA", "0"): 20}.get((row["label"], decided), int(not right[-1])))
    assert rows.loc["cost", "value"] == pytest.approx(np.mean(costs))
    assert rows.loc["accuracy", "value"] == pytest.approx(np.mean(right))
    assert rows.loc["cost", "low"] < rows.loc["cost", "value"] < rows.loc["cost", "high"]


def test_abstention_by_a_plain_loop(tmp_path):
    job = make_job(tmp_path)
    decide(job)
    table = job.run.abstention()
    assert len(table) == 2 * len(ANSWERED_SHARES)
    test = job.run.predictions("test", "pixels")
    sure = test[[f"p_{name}" for name in CLASSES]].max(axis=1)
    right = test[[f"p_{name}" for name in CLASSES]].idxmax(axis=1) == "p_" + test["label"]
    for row in table[table["contender"] == "pixels"].to_dict("records"):
        answered = sure >= row["threshold"]
        answer = (row["answered_share"], row["answered_low"], row["answered_high"], row["n"])
        np.testing.assert_allclose(answer, share(answered, [True] * len(test)))
        ends = (row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["num_answered"])
        np.testing.assert_allclose(ends, share(right, answered))
    assert table["accuracy"].nunique() > 5


def test_prediction_sets_by_a_plain_loop(tmp_path):
    job = make_job(tmp_path, conformal_level=0.7)
    decide(job)
    table = job.run.conformal()
    assert len(table) == 2 * 2 * 4
    test = job.run.predictions("test", "colour").to_dict("records")
    frozen = read_json(job.run.decisions_path("colour"))["prediction_sets"]
    for row in table[table["contender"] == "colour"].to_dict("records"):
        holds, sizes = [], []
        for image in test:
            if row["label"] not in ("", image["label"]):
                continue
            best = max(CLASSES, key=lambda name: image[f"p_{name}"])
            limits = frozen["by_class"]
            if row["method"] == "marginal":
                limits = dict.fromkeys(CLASSES, frozen["marginal"])
            members = {n for n in CLASSES if n == best or image[f"p_{n}"] >= limits[n]}
            holds.append(image["label"] in members)
            sizes.append(len(members))
        coverage = (row["coverage"], row["low"], row["high"], row["n"])
        np.testing.assert_allclose(coverage, share(holds, [True] * len(holds)))
        assert row["mean_set_size"] == pytest.approx(np.mean(sizes))
        assert row["single_share"] == pytest.approx(np.mean([size == 1 for size in sizes]))
        assert row["level"] == 0.7


def test_images_of_one_group_are_no_independent_evidence(tmp_path):
    job = make_job(tmp_path, images_per_group=6)
    decide(job)
    rows = job.run.abstention().query("contender == 'colour'")
    test = job.run.predictions("test", "colour").sort_values("image_id")
    sure = test[[f"p_{name}" for name in CLASSES]].max(axis=1).to_numpy()
    groups = groups_of_job(job)[test["image_id"]].to_numpy()
    for row in rows.to_dict("records"):
        share_of_groups = mean_with_interval(
            sure >= row["threshold"], pd.factorize(groups)[0], job.config.seed, 200
        )
        found = (row["answered_share"], row["answered_low"], row["answered_high"])
        np.testing.assert_allclose(found, share_of_groups)
        independent = wilson_interval(row["answered_share"] * 90, 90)
        assert not np.allclose(found[1:], independent, atol=1e-4)


def test_the_positive_class_may_be_typed_in_another_way():
    section = validate_config(
        {
            "name": "a",
            "data": {"root": "x"},
            "contender": CONTENDERS,
            "evaluate": {"goal": "youden", "positive": unicodedata.normalize("NFD", "größe")},
        }
    ).evaluate
    assert positive_class(section, ["a", "größe"]) == "größe"
    with pytest.raises(InputError) as caught:
        positive_class(section, ["a", "grosse"])
    assert str(caught.value) == (
        f"evaluate.positive is {section.positive!r}, but the images have the classes "
        "['a', 'grosse']; did you mean 'grosse'?"
    )
    without = section.model_copy(update={"goal": "", "positive": ""})
    assert positive_class(without, ["", "b"]) == ""


def test_a_bundle_has_the_thresholds_of_its_contender(tmp_path):
    job = make_job(tmp_path)
    assert decisions_of(job, "colour") == {}
    fix_decisions(job)
    stored = read_json(job.run.decisions_path("colour"))
    assert decisions_of(job, "colour") == {"decisions": stored}


def test_what_the_report_is_given(tmp_path):
    job = make_job(tmp_path, **SENSITIVITY)
    assert collect_decisions(job.run, "colour") is None
    decide(job)
    assert collect_decisions(job.run, "majority") is None
    decisions = collect_decisions(job.run, "colour")
    for table in (decisions.operating_points, decisions.abstention, decisions.conformal):
        assert set(table["contender"]) == {"colour"}
    # The frozen points lie on the curve.
    for row in decisions.abstention.to_dict("records"):
        at = np.argmin(np.abs(decisions.coverage - row["answered_share"]))
        assert decisions.risk[at] == pytest.approx(1 - row["accuracy"])
    assert decisions.area == pytest.approx(decisions.risk.mean())  # no confidence occurs twice


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """A whole run without a network, in this process."""
    folder = write_images(tmp_path_factory.mktemp("decided"))
    settings = [
        *("split.protocol=holdout", "split.careless=false", "evaluate.goal=sensitivity"),
        *("evaluate.positive='NA'", "evaluate.at_least=0.8"),
    ]
    return cvpipe.run(folder / "pipeline.toml", settings, runs_path=folder / "runs")


def test_a_whole_run_tells_what_its_contender_may_decide(decided):
    chosen = read_json(decided.choice_path)["chosen"]
    threshold = read_json(decided.decisions_path(chosen))["operating_point"]["threshold"]
    page = decided.report_path.read_text(encoding="utf-8")
    assert '<section id="decisions">' in page
    assert f"Call an image NA when its probability of NA is at least {threshold:.6g}:" in page
    assert "All thresholds were fitted on 24 validation images" in page
    assert len(decided.operating_points()) == 2 * 5


def test_a_run_from_before_decisions_is_still_reported(decided, tmp_path):
    folder = tmp_path / "runs" / decided.path.name
    shutil.copytree(decided.path, folder)
    old = Run(folder)
    for path in (old.operating_points_path, old.abstention_path, old.conformal_path):
        path.unlink()
    for path in folder.glob("contenders/*/holdout/decisions.json"):
        path.unlink()
    raw = read_json(old.config_path)
    for key in ("goal", "positive", "at_least", "conformal_level"):
        del raw["evaluate"][key]
    old.config_path.write_text(json.dumps(raw))
    rebuild_report(old, decided.path.parent.parent / "images")
    page = old.report_path.read_text(encoding="utf-8")
    assert "What it may decide" not in page
    assert '<section id="file">' in page


def test_an_unknown_positive_class_stops_a_run_before_it_begins(decided, tmp_path):
    with pytest.raises(InputError) as caught:
        cvpipe.run(
            decided.path.parent.parent / "pipeline.toml",
            ["evaluate.goal=youden", "evaluate.positive=popy"],
            runs_path=tmp_path,
        )
    assert str(caught.value) == (
        "evaluate.positive is 'popy', but the images have the classes ['0', 'NA', 'poppy']; "
        "did you mean 'poppy'?"
    )
    assert not list(tmp_path.iterdir())


def test_the_exported_bundle_has_what_was_frozen(run):
    (path,) = run.export_path.glob("*/bundle.json")
    facts = read_json(path)
    assert facts["decisions"] == read_json(run.decisions_path(facts["contender"]))
    assert facts["bundle_version"] == BUNDLE_VERSION
    readme = (path.parent / "README.md").read_text(encoding="utf-8")
    assert "fitted on validation images and frozen before the test. To answer only" in readme


def test_decisions_by_hand():
    table = make_predictions(
        ["a", "b", "c"], [""] * 3, [[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.4, 0.4, 0.2]], CLASSES
    )
    point = {"goal": "sensitivity", "positive": "NA", "threshold": 0.4}
    assert apply_point(table, point) == ["not NA", "NA", "NA"]
    # Calling NA "0" costs 20: only where NA is improbable enough is "0" said.
    costs = [[0, 1, 1], [20, 0, 1], [1, 1, 0]]
    assert apply_point(table, {"goal": "cost", "costs": costs}) == ["NA", "NA", "NA"]
    two = make_predictions(["a", "b"], ["", ""], [[0.7, 0.3], [0.8, 0.2]], ["healthy", "sick"])
    point = {"goal": "youden", "positive": "sick", "threshold": 0.3}
    assert apply_point(two, point) == ["sick", "healthy"]


@pytest.mark.parametrize("method", ["vector", "isotonic"])
def test_thresholds_are_fitted_on_rows_that_their_calibration_has_not_seen(tmp_path, method):
    """Curves learn their rows by heart, and sets fitted on these would be too small."""
    job = make_job(tmp_path, calibration=method)
    val = rows_of_split(job, "val")
    half_b = val[~first_half(val["group"].tolist())].reset_index(drop=True)
    raw = job.run.predictions("val", "pixels").set_index("image_id").loc[half_b["image_id"]]
    write_table(job.run.uncalibrated_path("pixels", "val"), job.run.predictions("val", "pixels"))
    calibrate(job, "pixels", val)
    fitted = probabilities_of(table_for_fitting(job, "pixels", val))
    one = first_half(half_b["group"].tolist(), again=True)
    assert 0.3 < one.mean() < 0.7
    before, targets = probabilities_of(raw), targets_of(raw["label"], CLASSES)
    for half in (one, ~one):
        calibration = fit_calibration(method, before[~half], targets[~half])
        np.testing.assert_allclose(fitted[half], calibration.apply(before[half]))
