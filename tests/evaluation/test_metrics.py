import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cvpipe.errors import InputError
from cvpipe.evaluation.metrics import (
    CLASS_METRICS,
    METRICS,
    PROBABILITY_FLOOR,
    accuracy,
    balanced_accuracy,
    brier,
    calibration_gaps,
    class_terms,
    ece,
    f1,
    image_log_losses,
    log_loss,
    macro_f1,
    precision,
    recall,
    roc_auc,
)

ALL = METRICS | CLASS_METRICS

# Five images, three classes; predicted 0, 1, 0, 2, 0 (the last one by a tie).
TARGETS = np.array([0, 1, 1, 2, 0])
PROBABILITIES = np.array(
    [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0], [0.4, 0.4, 0.2]]
)


def random_case(seed, n=60, num_classes=4, decimals=None):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), targets] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return targets, probabilities if decimals is None else np.round(probabilities, decimals)


def test_values_by_hand():
    assert accuracy(TARGETS, PROBABILITIES) == pytest.approx(4 / 5)
    assert recall(TARGETS, PROBABILITIES).tolist() == [1, 0.5, 1]
    assert precision(TARGETS, PROBABILITIES) == pytest.approx([2 / 3, 1, 1])
    assert f1(TARGETS, PROBABILITIES) == pytest.approx([4 / 5, 2 / 3, 1])
    assert balanced_accuracy(TARGETS, PROBABILITIES) == pytest.approx(2.5 / 3)
    assert macro_f1(TARGETS, PROBABILITIES) == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)
    assert log_loss(TARGETS, PROBABILITIES) == pytest.approx(
        -(math.log(0.8) + math.log(0.5) + math.log(0.4) + math.log(0.4)) / 5
    )
    # Squares by image: .06, .38, .72, 0, .56.
    assert brier(TARGETS, PROBABILITIES) == pytest.approx(1.72 / 5)
    # Class 0: (.8, .4) against (.2, .6, 0): 5 of 6. Class 1: (.5, .4) against (.1, 0, .4):
    # 5 wins and a tie of 6. Class 2: 1 against all: 4 of 4.
    assert roc_auc(TARGETS, PROBABILITIES) == pytest.approx((5 / 6 + 5.5 / 6 + 1) / 3)


def test_ece_by_hand_with_bin_edges():
    # 3/15 and 9/15 lie on edges: a bin holds its upper edge, so .6 and .59 share the bin
    # (8/15, 9/15] and .61 does not. Right, wrong, right, right.
    confidences = np.array([0.6, 0.59, 0.61, 1.0])
    probabilities = np.column_stack([confidences, 1 - confidences])
    targets = np.array([0, 1, 0, 0])
    expected = (abs(0.6 + 0.59 - 1) + abs(0.61 - 1) + 0) / 4
    assert ece(targets, probabilities) == pytest.approx(expected)
    assert calibration_gaps(targets, probabilities).shape == (15,)
    # Opposite gaps in one bin cancel; in two bins they do not.
    assert calibration_gaps(targets, probabilities)[8] == pytest.approx((0.6 + 0.59 - 1) / 4)


def test_ece_agrees_with_a_plain_loop():
    targets, probabilities = random_case(3, n=200)
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    total = 0.0
    for index in range(15):
        inside = (confidences > index / 15) & (confidences <= (index + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(confidences[inside].mean() - right[inside].mean())
    assert ece(targets, probabilities) == pytest.approx(total)


@pytest.mark.parametrize("num_classes", [2, 3, 7])
@pytest.mark.parametrize("decimals", [None, 1])
def test_agrees_with_scikit_learn(num_classes, decimals):
    targets, probabilities = random_case(num_classes, num_classes=num_classes, decimals=decimals)
    predicted = probabilities.argmax(axis=1)
    expected = {
        "accuracy": reference.accuracy_score(targets, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(targets, predicted),
        "macro_f1": reference.f1_score(targets, predicted, average="macro"),
    }
    areas = [
        reference.roc_auc_score(targets == index, probabilities[:, index])
        for index in range(num_classes)
    ]
    expected["roc_auc"] = areas[1] if num_classes == 2 else np.mean(areas)
    one_hot = np.eye(num_classes)[targets]
    expected["brier"] = sum(
        reference.brier_score_loss(one_hot[:, index], probabilities[:, index], pos_label=1)
        for index in range(num_classes)
    )
    if decimals is None:  # scikit-learn wants rows that sum to 1 for these
        expected["log_loss"] = reference.log_loss(targets, probabilities)
        if num_classes > 2:
            assert expected["roc_auc"] == pytest.approx(
                reference.roc_auc_score(targets, probabilities, multi_class="ovr")
            )
    for name, value in expected.items():
        assert METRICS[name].function(targets, probabilities) == pytest.approx(value), name
    by_class = reference.precision_recall_fscore_support(targets, predicted, zero_division=np.nan)
    for name, values in zip(CLASS_METRICS, by_class, strict=False):
        assert CLASS_METRICS[name].function(targets, probabilities) == pytest.approx(
            values, nan_ok=True
        )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 12),
    num_classes=st.integers(2, 4),
    decimals=st.sampled_from([None, 1]),
)
def test_weights_are_repetitions(seed, n, num_classes, decimals):
    targets, probabilities = random_case(seed, n, num_classes, decimals)
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, n))
    weights[:, 0] += weights.sum(axis=1) == 0  # repeat at least one row
    for name, metric in ALL.items():
        values = metric.function(targets, probabilities, weights)
        for row, value in zip(weights, values, strict=True):
            repeated = np.repeat(np.arange(n), row)
            expected = metric.function(targets[repeated], probabilities[repeated])
            np.testing.assert_allclose(value, expected, atol=1e-12, err_msg=name)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30))
def test_values_stay_in_their_range_and_ignore_the_order(seed, n):
    targets, probabilities = random_case(seed, n, 3)
    order = np.random.default_rng(seed).permutation(n)
    for metric in ALL.values():
        value = metric.function(targets, probabilities)
        assert np.all(np.isnan(value) | ((value >= 0) & (value <= metric.upper)))
        shuffled = metric.function(targets[order], probabilities[order])
        np.testing.assert_allclose(value, shuffled, atol=1e-12)


def test_shapes_follow_the_weights():
    for metric in METRICS.values():
        assert metric.function(TARGETS, PROBABILITIES).shape == ()
        assert metric.function(TARGETS, PROBABILITIES, np.ones((4, 5), int)).shape == (4,)
    assert f1(TARGETS, PROBABILITIES, np.ones((4, 5))).shape == (4, 3)


def test_no_weight_at_all_is_undefined():
    for metric in ALL.values():
        assert np.isnan(metric.function(TARGETS, PROBABILITIES, np.zeros(5))).all()


def test_a_class_missing_from_the_targets():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])
    targets = np.array([0, 1, 1])  # no image of class 2, but one prediction
    assert np.isnan(recall(targets, probabilities)[2])
    assert precision(targets, probabilities).tolist() == [1, 1, 0]
    assert f1(targets, probabilities)[2] == 0
    assert balanced_accuracy(targets, probabilities) == pytest.approx(0.75)
    assert macro_f1(targets, probabilities) == pytest.approx((1 + 2 / 3) / 2)
    # Class 0: .7 beats .1 and .2. Class 1: .8 wins, .1 loses against .2.
    assert roc_auc(targets, probabilities) == pytest.approx((1 + 0.5) / 2)


def test_roc_auc_needs_two_classes_in_the_targets():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert np.isnan(roc_auc(np.array([1, 1]), probabilities))
    assert np.isnan(roc_auc(np.array([0, 0]), probabilities))
    assert roc_auc(np.array([0, 1]), probabilities) == 1
    assert roc_auc(np.array([1, 0]), probabilities) == 0
    assert roc_auc(np.array([1, 0]), np.full((2, 2), 0.5)) == 0.5


def test_a_certain_mistake_costs_a_finite_loss():
    loss = image_log_losses(np.array([0, 1, 1]), np.array([[0, 1], [0, 1], [0.5, 0.5]], np.float32))
    assert loss == pytest.approx([-math.log(PROBABILITY_FLOOR), 0, math.log(2)])
    assert loss[0] == pytest.approx(16.118, abs=1e-3)
    assert loss[0] <= METRICS["log_loss"].upper
    # A float32 row may sum to a little more than 1.
    assert image_log_losses(np.array([0]), np.array([[1.00001, 0]]))[0] == 0


def test_the_worst_and_the_best_brier_score():
    assert brier(np.array([0]), np.array([[0.0, 1.0]])) == 2 == METRICS["brier"].upper
    assert brier(np.array([1]), np.array([[0.0, 1.0]])) == 0


def test_class_terms_by_hand():
    terms = class_terms(TARGETS, PROBABILITIES).sum(axis=0)
    assert terms.tolist() == [[2, 2, 1], [3, 1, 1], [2, 1, 1]]


def test_the_table_says_which_way_is_better():
    assert list(METRICS) == [
        *("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc", "brier", "ece")
    ]
    assert list(CLASS_METRICS) == ["precision", "recall", "f1"]
    perfect, poor = np.eye(3)[TARGETS], np.roll(np.eye(3), 1, axis=0)[TARGETS] * 0.9 + 0.1 / 3
    for metric in ALL.values():
        good = np.mean(metric.function(TARGETS, perfect))
        bad = np.mean(metric.function(TARGETS, poor))
        assert (good > bad) == metric.higher_is_better


def test_the_table_loads_without_heavy_libraries():
    code = (
        "import sys, cvpipe.evaluation.metrics;"
        "print([name for name in ('sklearn', 'scipy', 'pandas') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("metric", ALL.values(), ids=list(ALL))
def test_error_messages(metric):
    with pytest.raises(InputError, match=r"targets of shape \(4,\).*\(5, 3\).*pass \(n,\) and"):
        metric.function(TARGETS[:4], PROBABILITIES)
    with pytest.raises(InputError, match=r"weights of shape \(2, 4\) do not fit 5 images; pass"):
        metric.function(TARGETS, PROBABILITIES, np.ones((2, 4)))
    with pytest.raises(
        InputError, match=r"not be negative or NaN, but the smallest is -1\.0; pass"
    ):
        metric.function(TARGETS, PROBABILITIES, np.array([1, 1, -1.0, 1, 1]))
    with pytest.raises(InputError, match="not be negative or NaN"):
        metric.function(TARGETS, PROBABILITIES, np.array([1, 1, np.nan, 1, 1]))
