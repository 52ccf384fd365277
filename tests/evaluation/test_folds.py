"""The corrected resampled t-test against a published example, SciPy and a simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student
from scipy.stats import ttest_1samp
from sklearn.datasets import make_moons
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.svm import SVC
from statsmodels.stats.multitest import multipletests

from cvpipe.errors import InputError
from cvpipe.evaluation.folds import COLUMNS, compare_folds, corrected_mean
from cvpipe.evaluation.metrics import METRICS
from cvpipe.frames import make_predictions, probabilities_of, targets_of

CLASSES = ["0", "NA"]


def fold_table(ids, right, sure=0.8):
    """All images have class NA; where `right`, that is what they are called."""
    second = np.where(right, sure, 1 - sure)
    return make_predictions(ids, ["NA"] * len(ids), np.column_stack([1 - second, second]), CLASSES)


def folds_of(num_wrong, size=20, sure=0.8):
    """One table per fold, the first images of each named wrongly."""
    return [
        fold_table([f"{fold}-{i}" for i in range(size)], np.arange(size) >= wrong, sure)
        for fold, wrong in enumerate(num_wrong)
    ]


def row(table, contender, metric="accuracy"):
    found = table[(table["contender"] == contender) & (table["metric"] == metric)]
    assert len(found) == 1
    return found.iloc[0]


def test_published_example():
    """scikit-learn's "Statistical comparison of models using grid search": t .750, p .227."""
    images, targets = make_moons(noise=0.352, random_state=1, n_samples=100)
    folds = RepeatedStratifiedKFold(n_splits=10, n_repeats=10, random_state=0)
    rbf, linear = (
        cross_val_score(SVC(kernel=kernel), images, targets, cv=folds, scoring="roc_auc")
        for kernel in ("rbf", "linear")
    )
    found = corrected_mean(rbf - linear, 10 / 90)
    assert found.p_value / 2 == pytest.approx(0.227, abs=5e-4)  # theirs is one-sided
    error = (found.high - found.mean) / student.ppf(0.975, 99)
    assert found.mean / error == pytest.approx(0.750, abs=5e-4)


def test_by_hand():
    # Mean .04, s^2 = .00025, variance (1/5 + 1/4) s^2; t = .04 / .010607 = 3.7712 with 4.
    found = corrected_mean([0.02, 0.05, 0.03, 0.06, 0.04], 0.25)
    error = math.sqrt(0.45 * 0.00025)
    assert found.mean == pytest.approx(0.04)
    assert found.high - found.mean == pytest.approx(2.7764451 * error)
    assert found.mean - found.low == pytest.approx(2.7764451 * error)
    assert found.p_value == pytest.approx(2 * student.sf(0.04 / error, 4))


def test_without_the_correction_it_is_the_ordinary_test():
    values = np.random.default_rng(0).normal(0.3, 1, 12)
    found = corrected_mean(values, 1e-15)
    ordinary = ttest_1samp(values, 0)
    interval = ordinary.confidence_interval()
    assert found.p_value == pytest.approx(ordinary.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert corrected_mean(values, 0.25).p_value > ordinary.pvalue


def test_values_that_do_not_vary():
    assert corrected_mean([0, 0, 0], 0.5) == (0, 0, 0, 1)
    assert corrected_mean([0.5, 0.5], 1.0) == (0.5, 0.5, 0.5, 0)
    # Not believed: the error is the root of (1/2 + 1) times the least spread.
    found = corrected_mean([0.5, 0.5], 1.0, 0.1)
    assert found.high - 0.5 == pytest.approx(student.ppf(0.975, 1) * math.sqrt(1.5) * 0.1)
    assert found.p_value == pytest.approx(2 * student.sf(5 / math.sqrt(1.5), 1))
    assert corrected_mean([0.1, 0.9], 1.0, 0.1) == corrected_mean([0.1, 0.9], 1.0)


def test_figures_of_the_folds():
    tables = {
        "chosen": folds_of([2, 1, 3, 2, 2]),
        "other": folds_of([6, 8, 6, 9, 6], sure=0.7),
        "near": folds_of([2, 2, 3, 1, 2]),
    }
    table = compare_folds("chosen", tables)
    assert list(table) == COLUMNS
    keys = [(name, metric) for name in tables for metric in ("accuracy", "log_loss")]
    assert list(zip(table["contender"], table["metric"], strict=True)) == keys
    assert (table["num_fits"] == 5).all()
    # Five folds of 20 of 100 images: test to train is 1/4.
    values = {
        (name, metric): np.array(
            [
                float(
                    METRICS[metric].function(
                        targets_of(fold["label"], CLASSES), probabilities_of(fold)
                    )
                )
                for fold in folds
            ]
        )
        for name, folds in tables.items()
        for metric in ("accuracy", "log_loss")
    }
    assert values["other", "accuracy"] == pytest.approx([0.7, 0.6, 0.7, 0.55, 0.7])
    for name, metric in keys:
        found = row(table, name, metric)
        mean = corrected_mean(values[name, metric], 0.25)
        assert (found["mean"], found["low"], found["high"]) == pytest.approx(mean[:3])
        change = corrected_mean(values[name, metric] - values["chosen", metric], 0.25)
        if name != "chosen":
            names = ["difference", "difference_low", "difference_high", "p_value"]
            assert found[names].tolist() == pytest.approx(list(change))
    chosen = table[table["contender"] == "chosen"]
    names = ["difference", "difference_low", "difference_high", "p_value", "p_adjusted"]
    assert chosen[names].isna().all(axis=None)
    assert (chosen["verdict"] == "").all()
    for metric in ("accuracy", "log_loss"):
        others = table[(table["metric"] == metric) & (table["contender"] != "chosen")]
        expected = multipletests(others["p_value"], method="holm")[1]
        assert others["p_adjusted"].to_numpy() == pytest.approx(expected)
        assert row(table, "other", metric)["verdict"] == "worse"
        assert row(table, "near", metric)["verdict"] == "cannot be told apart"


def test_intervals_stay_within_what_is_possible():
    tables = {"a": folds_of([0, 1], sure=0.999), "b": folds_of([20, 1])}
    table = compare_folds("a", tables)
    found = row(table, "b")
    assert (found["low"], found["high"]) == (0, 1)
    assert (found["difference_low"], found["difference_high"]) == (-1, 1)
    assert row(table, "a", "log_loss")["low"] == 0


def test_equal_folds_are_not_taken_for_certainty():
    # One image of 20 in both folds: two discordant images are no evidence.
    tables = {"a": folds_of([2, 2]), "b": folds_of([1, 1])}
    found = row(compare_folds("a", tables), "b")
    error = math.sqrt(0.5 + 1) * 0.05 / math.sqrt(12)
    assert found["p_value"] == pytest.approx(2 * student.sf(0.05 / error, 1))
    assert found["verdict"] == "cannot be told apart"
    # Far worse in all of five folds is evidence.
    tables = {"a": folds_of([0] * 5), "b": folds_of([10] * 5)}
    assert row(compare_folds("a", tables), "b")["verdict"] == "worse"
    assert row(compare_folds("a", tables), "a")["low"] < 1


def test_equal_contenders_and_only_one():
    tables = {"a": folds_of([1, 3, 2]), "b": folds_of([1, 3, 2])}
    found = row(compare_folds("a", tables), "b", "log_loss")
    assert (found["difference"], found["difference_high"], found["p_value"]) == (0, 0, 1)
    alone = compare_folds("a", {"a": tables["a"]})
    assert list(alone) == COLUMNS
    assert alone["verdict"].tolist() == ["", ""]
    assert alone["p_adjusted"].isna().all()


def test_repeats_and_unequal_folds():
    # Two repeats of the folds of 30 and 10 of 40 images: ratios 3 and 1/3, both twice.
    ids = [f"{i}" for i in range(40)]
    rng = np.random.default_rng(1)
    parts = [ids[:30], ids[30:], ids[10:], ids[:10]]
    tables = [fold_table(part, rng.random(len(part)) < 0.7) for part in parts]
    found = row(compare_folds("a", {"a": tables}), "a")
    values = [float((probabilities_of(t)[:, 1] > 0.5).mean()) for t in tables]
    expected = corrected_mean(values, (3 + 1 / 3) / 2)
    assert found["mean"] == pytest.approx(expected.mean)
    assert found["high"] == pytest.approx(min(1, expected.high))
    assert found["num_fits"] == 4
    # The rows of a fold may come in any order.
    shuffled = [table.sample(frac=1, random_state=3) for table in tables]
    both = compare_folds("a", {"a": tables, "b": shuffled})
    assert row(both, "b", "log_loss")["difference"] == pytest.approx(0, abs=1e-12)


def test_the_corrected_test_seldom_fires_on_equal_recipes():
    """Nearest class mean with either of two equally good features, 10 folds."""
    rng = np.random.default_rng(5)
    plain = corrected = 0
    for _ in range(300):
        targets = np.repeat([0, 1], 30)
        features = rng.normal(size=(60, 2)) + 0.8 * targets[:, None]
        folds = rng.permutation(np.arange(60) % 10)
        differences = []
        for fold in range(10):
            train, test = folds != fold, folds == fold
            cuts = [features[train & (targets == c)].mean(axis=0) for c in (0, 1)]
            right = (features[test] > (cuts[0] + cuts[1]) / 2) == (targets[test] == 1)[:, None]
            differences.append(np.subtract(*right.mean(axis=0)))
        corrected += corrected_mean(differences, 1 / 9).p_value <= 0.05
        plain += corrected_mean(differences, 1e-15).p_value <= 0.05
    assert corrected / 300 <= 0.06
    assert corrected < plain


def test_error_messages():
    tables = {"a": folds_of([1, 2]), "b": folds_of([2, 2])}
    with pytest.raises(InputError, match="1 folds show no spread; pass the figures of at least 2"):
        corrected_mean([0.1], 0.5)
    with pytest.raises(InputError, match="test_to_train is 0; pass the number of test images"):
        corrected_mean([0.1, 0.2], 0)
    with pytest.raises(InputError, match="unknown contender 'c'"):
        compare_folds("c", tables)
    with pytest.raises(InputError, match="'b' has predictions of 1 folds, expected 2; let every"):
        compare_folds("a", tables | {"b": tables["b"][:1]})
    with pytest.raises(InputError, match="differ in 40 image"):
        compare_folds("a", tables | {"b": tables["b"][::-1]})
    with pytest.raises(InputError, match=r"folds of 'a' have \[20\] of 20 images; each needs"):
        compare_folds("a", {"a": tables["a"][:1]})
    with pytest.raises(InputError, match=r"folds of 'a' have \[\] of 0 images"):
        compare_folds("a", {"a": []})
    empty = tables["a"][0].iloc[:0]
    with pytest.raises(InputError, match=r"folds of 'a' have \[20, 0\] of 20 images"):
        compare_folds("a", {"a": [tables["a"][0], empty]})
    twice = pd.concat([tables["b"][0]] * 2)
    with pytest.raises(InputError, match="predicted once"):
        compare_folds("a", tables | {"b": [twice, tables["b"][1]]})
