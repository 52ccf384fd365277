"""What the page of a run is told of the training of its networks."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe.files import read_json, write_json, write_table
from cvpipe.models.checks import as_dicts, check_gradient, diagnose_curve
from cvpipe.models.rate_range import smooth_losses, suggest_rate
from cvpipe.models.training import EpochFacts
from cvpipe.runs import Run
from cvpipe.stages.report import rebuild_report
from cvpipe.stages.training_report import collect_training

NAN = float("nan")
PIPELINE = """
threads = 2
[data]
root = "images"
[split]
careless = false
[evaluate]
resamples = 100
learning_curve = false
[[contender]]
name = "majority"
classifier = "majority"
[[contender]]
name = "prior"
classifier = "majority"
"""
HISTORY = [
    EpochFacts(1, 0.001, 0.9, 0.6, 0.8, 0.65, 1e-3),
    EpochFacts(2, 0.0005, 0.5, 0.8, 0.1 + 0.2, 0.85, 1e-3),
    EpochFacts(3, 0.0, 0.2, 0.95, 0.6, 0.8, 1e-4),
]
RATES = np.geomspace(1e-5, 1, 40)
CHECKS = [check_gradient(NAN, 3), diagnose_curve([0.9, 0.4, 0.3, 0.25])]
FALLING = 2 - 1.5 / (1 + np.exp(-(np.log10(RATES) + 2.5) * 4))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    for number in range(24):
        path = root / "images" / ("<b>" if number % 2 else "NA") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (root / "p.toml").write_text(PIPELINE)
    return cvpipe.run(root / "p.toml", runs_path=root / "runs"), root / "images"


@pytest.fixture
def copied(made, tmp_path):
    run, images = made
    shutil.copytree(run.path, tmp_path / run.path.name)
    return Run(tmp_path / run.path.name), images


def store(run, name, history=HISTORY, checks=None, rates=None):
    """Store what a trained network leaves behind in its part."""
    part = run.part_path(name)
    write_table(part / "history.csv", pd.DataFrame(history, columns=list(EpochFacts._fields)))
    fit = read_json(part / "fit.json")
    write_json(part / "fit.json", {**fit, "chosen": {"epochs": kept_of(history)}})
    if checks is not None:
        rows = [{"when": "after", **row} for row in as_dicts(checks)]
        write_json(part / "checks.json", rows)
    if rates is not None:
        write_table(part / "rate_test.csv", pd.DataFrame(rates, columns=["learning_rate", "loss"]))
    return part


def kept_of(history):
    """The epoch of the smallest loss on val, or the last one."""
    losses = [row.val_loss for row in history]
    return int(np.nanargmin(losses)) + 1 if np.isfinite(losses).any() else len(losses)


def page_of(run, images):
    rebuild_report(run, images)
    return run.report_path.read_text("utf-8")


def test_a_run_without_networks_has_no_section_and_renders(copied):
    run, images = copied
    assert collect_training(run) == []
    page = page_of(run, images)
    assert 'id="training"' not in page
    assert "#training" not in page


def test_a_history_is_read_bit_by_bit_and_the_best_epoch_is_the_kept_one(copied):
    run, _ = copied
    store(run, "prior")
    (training,) = collect_training(run)
    assert (training.contender, training.kept) == ("prior", 2)
    assert training.history["val_loss"].tolist() == [0.8, 0.1 + 0.2, 0.6]
    assert training.history["epoch"].tolist() == [1, 2, 3]
    assert training.kept == training.history.set_index("epoch")["val_loss"].idxmin()
    assert list(training.checks) == []
    assert training.rate_test is None


def test_contenders_stand_in_the_order_of_the_config(copied):
    run, _ = copied
    store(run, "prior")
    store(run, "majority")
    assert [training.contender for training in collect_training(run)] == ["majority", "prior"]


def test_histories_of_folds_are_not_shown(copied):
    run, _ = copied
    part = store(run, "prior")
    fold = run.part_path("prior", "r0-f1")
    fold.mkdir()
    (part / "history.csv").rename(fold / "history.csv")
    assert collect_training(run) == []


def test_without_validation_images_losses_are_missing_and_the_last_epoch_is_kept(copied):
    run, _ = copied
    store(run, "prior", [row._replace(val_loss=NAN, val_accuracy=NAN) for row in HISTORY])
    (training,) = collect_training(run)
    assert training.kept == 3
    assert training.history["val_loss"].isna().all()


def test_checks_are_read_as_they_were_judged(copied):
    run, _ = copied
    store(run, "prior", checks=CHECKS)
    (training,) = collect_training(run)
    failed, passed = training.checks
    assert (failed.when, failed.name, failed.passed) == ("after", "gradient", False)
    assert np.isnan(failed.value)  # JSON has no NaN
    assert (passed.name, passed.passed) == ("loss_curve", True)
    assert passed.value == pytest.approx(0.25 / 0.9)


def test_a_rate_test_gets_the_suggestion_of_its_losses(copied):
    run, _ = copied
    store(run, "prior", rates=np.c_[RATES, FALLING])
    test = collect_training(run)[0].rate_test
    np.testing.assert_array_equal(test.rates, RATES)
    np.testing.assert_array_equal(test.losses, FALLING)
    np.testing.assert_array_equal(test.smoothed, smooth_losses(FALLING))
    assert test.suggestion == suggest_rate(RATES, FALLING)


@pytest.mark.parametrize("losses", [FALLING[::-1], np.full(40, NAN)])
def test_a_rate_test_that_suggests_nothing_is_no_error(copied, losses):
    run, _ = copied
    store(run, "prior", rates=np.c_[RATES, losses])
    assert np.isnan(collect_training(run)[0].rate_test.suggestion)


def test_the_page_shows_all_that_is_stored(copied):
    run, images = copied
    store(run, "prior", checks=CHECKS, rates=np.c_[RATES, FALLING])
    (section,) = re.findall(
        r'<section id="training">.*?</section>', page_of(run, images), re.DOTALL
    )
    assert section.count(">epoch 2 kept<") == 2
    assert [check.advice in section for check in CHECKS] == [True, False]
    assert f"suggested: {suggest_rate(RATES, FALLING):.2g}<" in section
