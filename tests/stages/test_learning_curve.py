"""Learning curves of whole runs without a network, in this process."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cvpipe.classifiers.search import fit_at
from cvpipe.config import validate_config
from cvpipe.errors import TooLittleToLearnError
from cvpipe.evaluation.learning_curve import forecast_accuracy
from cvpipe.files import read_json, write_json
from cvpipe.frames import predicted_labels, targets_of
from cvpipe.runs import Run, read_ledger
from cvpipe.stages import contenders, learning_curve
from cvpipe.stages.features import files_of, fixed_describer, setup_of
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.learning_curve import (
    can_be_fitted,
    contenders_of_curve,
    part_of_train,
    run_learning_curve,
)
from cvpipe.stages.recipes import feature_names
from cvpipe.stages.report import collect_content, rebuild_report, stored_curve
from cvpipe.stages.split import rows_of_split
from tests.stages.test_protocols import make_run, stripes

DRAWS = ["0", "1", "2", "mean"]


def hidden_stripes(num_images: int):
    """Hide faint stripes of two directions in coloured tiles, in groups of two images of a class.

    The tiles keep the audit from taking stripes for near-duplicates, and contenders from being
    perfect.
    """
    rng = np.random.default_rng(0)
    images = []
    for number in range(num_images):
        upright = number % 4 < 2
        tiles = rng.integers(0, 256, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        image = 0.9 * tiles + 0.1 * stripes(rng, vertical=upright)
        label, group = "upright" if upright else "NA", f"object {number // 2}"
        images.append((image.astype(np.uint8), {"label": label, "group": group}))
    return images


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("curve"), hidden_stripes(160))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("small"), hidden_stripes(40))


@pytest.fixture
def job(run, tmp_path):
    """A copy of the finished run from which the learning curve is gone."""
    copy = Run(tmp_path / "runs" / run.path.name)
    shutil.copytree(run.path, copy.path)
    forget_curve(copy)
    return Job(run.config(), run.path.parent.parent / "images", copy, Nobody())


def forget_curve(run):
    run.learning_curve_path.unlink()
    run.forecast_path.unlink()
    for path in run.path.glob("contenders/*/curve"):
        shutil.rmtree(path)


def chosen_of(run) -> str:
    return read_json(run.choice_path)["chosen"]


def test_the_curve_of_a_run(run):
    curve, chosen = run.learning_curve(), chosen_of(run)
    assert set(curve["contender"]) == {chosen}  # there is no network to export
    assert curve["draw"].tolist() == [*DRAWS * 3, "0", "mean"]
    shares = [1 / 8] * 4 + [1 / 4] * 4 + [1 / 2] * 4 + [1.0] * 2
    assert curve["share"].tolist() == shares
    train = (run.manifest()["split"] == "train").sum()
    assert (abs(curve["num_train"] - curve["share"] * train) <= 2).all()  # a group has two
    assert set(curve["n"]) == {(run.manifest()["split"] == "test").sum()}
    accuracy = run.metrics().query(
        "split == 'test' and protocol == 'holdout' and metric == 'accuracy' and label == ''"
    )
    figures = ["low", "high"]
    expected = accuracy.set_index("contender").loc[chosen]
    for row in curve[curve["share"] == 1].to_dict("records"):
        assert row["accuracy"] == expected["value"]
        assert [row[name] for name in figures] == expected[figures].tolist()
    assert run.timings()["learning curve"] > 0
    assert len(read_ledger(run.path.parent)) == 1


def test_a_point_is_a_fit_on_its_part_with_the_chosen_hyperparameter(run):
    """Done again by hand: the same right answers."""
    chosen, manifest = chosen_of(run), run.manifest()
    job = Job(run.config(), run.path.parent.parent / "images", run, Nobody())
    train, test = rows_of_split(job, "train"), rows_of_split(job, "test")
    part = part_of_train(job, train, 4, 1)
    assert set(part["image_id"]) < set(train["image_id"])
    contender = next(c for c in run.config().contender if c.name == chosen)
    describer = fixed_describer(feature_names(contender), setup_of(job.config))
    described = [describer.describe(files_of(job.root, rows), Nobody()) for rows in (part, test)]
    targets = targets_of(part["label"], run.class_names())
    values = read_json(run.part_path(chosen) / "fit.json")["chosen"]
    estimator = fit_at(
        contender.classifier, values, described[0], targets, part["group"].tolist(), "coarse", 0, 2
    )
    right = estimator.predict(described[1]) == targets_of(test["label"], run.class_names())
    row = run.learning_curve().query("share == 0.25 and draw == '1'").iloc[0]
    # The argmax of calibrated probabilities is not quite the sign of the score.
    assert row["accuracy"] == pytest.approx(right.mean(), abs=1.5 / len(test))
    assert row["num_train"] == len(part)
    assert manifest.set_index("image_id").loc[part["image_id"], "split"].eq("train").all()


def test_parts_of_a_draw_are_nested_and_draws_differ(run):
    job = Job(run.config(), run.path.parent.parent / "images", run, Nobody())
    train = rows_of_split(job, "train")
    parts = {
        (number, draw): set(part_of_train(job, train, number, draw)["image_id"])
        for number in (8, 4, 2)
        for draw in range(3)
    }
    for draw in range(3):
        assert parts[8, draw] < parts[4, draw] < parts[2, draw]
    assert parts[2, 0] != parts[2, 1] != parts[2, 2] != parts[2, 0]


def test_the_forecast_is_that_of_the_stored_predictions(run):
    chosen, curve = chosen_of(run), run.learning_curve()
    fits = curve[curve["draw"] != "mean"]
    from cvpipe.frames import read_predictions

    folder = run.part_path(chosen, "curve")
    tables = [
        read_predictions(folder / f"1of{number}-d{draw}.csv") for number in (8, 4, 2)
        for draw in range(3)
    ]  # fmt: skip
    tables.append(run.predictions("test", chosen))
    accuracies = [(predicted_labels(t) == t["label"].to_numpy()).mean() for t in tables]
    np.testing.assert_allclose(fits["accuracy"], accuracies)
    groups = run.manifest().set_index("image_id")["group"]
    expected = forecast_accuracy(fits, tables, groups, 0, 200)
    mine = run.forecast()
    assert set(mine.pop("contender")) == {chosen}
    pd.testing.assert_frame_equal(mine, expected, check_dtype=False)


def test_an_interrupted_curve_goes_on_and_ends_with_the_same_bytes(run, job, monkeypatch):
    calls = []
    refit_rows = contenders.refit_rows

    def interrupted(job, contender, rows, chosen):
        calls.append(len(rows))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return refit_rows(job, contender, rows, chosen)

    monkeypatch.setattr(contenders, "refit_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_learning_curve(job)
    assert not job.run.forecast_path.exists()
    run_learning_curve(job)
    assert len(calls) == 9 + 1
    for name in ("learning_curve.csv", "forecast.csv"):
        assert (job.run.path / name).read_bytes() == (run.path / name).read_bytes()
    run_learning_curve(job)
    assert len(calls) == 10


def test_a_size_too_small_to_learn_a_vocabulary_from_is_left_out(job, monkeypatch):
    refit_rows = contenders.refit_rows
    whole = len(rows_of_split(job, "train"))

    def learning(job, contender, rows, chosen):
        if len(rows) < whole / 3:
            raise TooLittleToLearnError("8 visual words cannot be learned from 5 descriptors")
        return refit_rows(job, contender, rows, chosen)

    monkeypatch.setattr(contenders, "refit_rows", learning)
    run_learning_curve(job)
    assert set(job.run.learning_curve()["share"]) == {0.5, 1.0}


def test_it_can_be_switched_off_and_the_page_does_without(run, job):
    off = validate_config(job.config.model_dump(mode="json"), ["evaluate.learning_curve=false"])
    run_learning_curve(replace(job, config=off))
    assert not job.run.learning_curve_path.exists()
    assert stored_curve(job.run) == {}
    rebuild_report(job.run, job.root)
    assert "Would more images help?" not in job.run.report_path.read_text()
    assert "Would more images help?" in run.report_path.read_text()
    assert collect_content(job.run, job.root).forecast.empty


def test_too_few_images_for_a_forecast(small):
    """An eighth and a quarter of 24 images have less than five of a class."""
    curve = small.learning_curve()
    assert curve["share"].unique().tolist() == [0.5, 1.0]
    assert small.forecast().empty
    assert "only 2 numbers of training images could be measured" in small.report_path.read_text()


def test_a_part_without_enough_of_a_class_cannot_be_fitted(run):
    job = Job(run.config(), run.path, run, Nobody())
    contender = run.config().contender[3]

    def possible(*rows):
        table = pd.DataFrame(rows, columns=["label", "group"])
        return can_be_fitted(job, contender, table)

    upright = [("upright", f"u{number}") for number in range(5)]
    flat = [("NA", f"n{number}") for number in range(5)]
    assert possible(*upright, *flat)
    assert not possible(*upright, *flat[1:])
    assert not possible(*upright)
    assert not possible(*upright, *[("NA", "one object")] * 9)
    # Two groups of each class, but the folds would have both of a class in one.
    mixed = [("NA", "a")] * 4 + [("upright", "a")] * 6
    assert not possible(*mixed, *[("NA", "b")] * 3, *[("upright", "c")] * 3)
    assert possible(*mixed, *[("NA", "b")] * 4, *upright, *flat)


def test_a_network_that_is_exported_has_a_curve_and_a_yardstick_has_none(job, monkeypatch):
    def names():
        return [contender.name for contender in contenders_of_curve(job)]

    chosen = chosen_of(job.run)
    monkeypatch.setattr(learning_curve, "contender_to_export", lambda _: "pixels_knn")
    assert names() == [chosen, "pixels_knn"]
    monkeypatch.setattr(learning_curve, "contender_to_export", lambda _: chosen)
    assert names() == [chosen]
    write_json(job.run.choice_path, {"chosen": "majority"})
    monkeypatch.setattr(learning_curve, "contender_to_export", lambda _: "")
    assert names() == []
    run_learning_curve(job)
    assert job.run.learning_curve().empty
    assert job.run.forecast().empty
    write_json(job.run.choice_path, {"chosen": chosen})
