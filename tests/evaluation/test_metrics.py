import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from cvpipe.errors import InputError
from cvpipe.evaluation.costs import check_costs, cost_matrix
from cvpipe.evaluation.metrics import (
    CLASS_METRICS,
    METRICS,
    PROBABILITY_FLOOR,
    accuracy,
    balanced_accuracy,
    brier,
    calibration_gaps,
    class_terms,
    cost,
    ece,
    f1,
    image_log_losses,
    kappa,
    log_loss,
    macro_f1,
    matthews,
    metrics_for,
    pr_auc,
    precision,
    recall,
    roc_auc,
    specificity,
    top_k,
)


def all_metrics(num_classes):
    costs = np.arange(num_classes**2, dtype=float).reshape(num_classes, num_classes) / 2
    np.fill_diagonal(costs, 0)
    return metrics_for(num_classes, costs) | CLASS_METRICS


ALL = all_metrics(3)

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
    # 4 of 5 right; 2, 2, 1 images of each class, and 3, 1, 1 given it.
    assert matthews(TARGETS, PROBABILITIES) == pytest.approx((4 * 5 - 9) / math.sqrt(16 * 14))
    assert kappa(TARGETS, PROBABILITIES) == pytest.approx((4 / 5 - 9 / 25) / (1 - 9 / 25))
    # Of the three images that are not of class 0, one is given it.
    assert specificity(TARGETS, PROBABILITIES) == pytest.approx([2 / 3, 1, 1])
    # Class 0 by falling score: + - + - -. Class 1: +, then + and - at once. Class 2: + first.
    class_0, class_1 = (1 + 2 / 3) / 2, (1 + 2 / 3) / 2
    assert pr_auc(TARGETS, PROBABILITIES) == pytest.approx((class_0 + class_1 + 1) / 3)
    costs = np.array([[0, 1, 1], [7, 0, 1], [3, 1, 0]])
    assert cost(TARGETS, PROBABILITIES, costs=costs) == pytest.approx(7 / 5)
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
        "matthews": reference.matthews_corrcoef(targets, predicted),
        "kappa": reference.cohen_kappa_score(targets, predicted),
        "pr_auc": np.mean(
            [
                reference.average_precision_score(targets == index, probabilities[:, index])
                for index in range(num_classes)
            ]
        ),
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
        for k in (k for k in (3, 5) if num_classes > k):  # it breaks ties the other way round
            expected[f"top_{k}"] = reference.top_k_accuracy_score(targets, probabilities, k=k)
    metrics = metrics_for(num_classes)
    for name, value in expected.items():
        assert metrics[name].function(targets, probabilities) == pytest.approx(value), name
    assert set(metrics) - set(expected) <= {"log_loss", "ece", "top_3", "top_5"}
    by_class = reference.precision_recall_fscore_support(targets, predicted, zero_division=np.nan)
    others = [
        reference.recall_score(targets != index, predicted != index) for index in range(num_classes)
    ]
    for name, values in zip(CLASS_METRICS, [*by_class[:3], others], strict=True):
        assert CLASS_METRICS[name].function(targets, probabilities) == pytest.approx(
            values, nan_ok=True
        )


@pytest.mark.parametrize("decimals", [None, 1])
def test_fractional_weights_agree_with_scikit_learn(decimals):
    targets, probabilities = random_case(8, n=80, num_classes=3, decimals=decimals)
    predicted = probabilities.argmax(axis=1)
    weights = np.random.default_rng(8).exponential(size=80)
    weights[::7] = 0
    expected = {
        "matthews": reference.matthews_corrcoef(targets, predicted, sample_weight=weights),
        "kappa": reference.cohen_kappa_score(targets, predicted, sample_weight=weights),
    }
    for name, score in [
        ("pr_auc", reference.average_precision_score),
        ("roc_auc", reference.roc_auc_score),
    ]:
        areas = [
            score(targets == index, probabilities[:, index], sample_weight=weights)
            for index in range(3)
        ]
        expected[name] = np.mean(areas)
    for name, value in expected.items():
        found = METRICS[name].function(targets, probabilities, weights)
        assert found == pytest.approx(value), name


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
    for name, metric in all_metrics(num_classes).items():
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
        assert np.all(np.isnan(value) | ((value >= metric.lower) & (value <= metric.upper)))
        shuffled = metric.function(targets[order], probabilities[order])
        np.testing.assert_allclose(value, shuffled, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 30))
def test_the_order_of_the_classes_does_not_matter(seed, n):
    targets, probabilities = random_case(seed, n, 6)
    order = np.random.default_rng(seed).permutation(6)
    moved = order.argsort()[targets]
    costs = np.random.default_rng(seed).uniform(size=(6, 6)) * (1 - np.eye(6))
    names = [name for name in metrics_for(6, costs) if name != "ece"]  # ties of confidence apart
    for name in names:
        value = metrics_for(6, costs)[name].function(targets, probabilities)
        again = metrics_for(6, costs[order][:, order])[name].function(
            moved, probabilities[:, order]
        )
        np.testing.assert_allclose(value, again, atol=1e-12, err_msg=name)
    for name, metric in CLASS_METRICS.items():
        value = metric.function(targets, probabilities)
        again = metric.function(moved, probabilities[:, order])
        np.testing.assert_allclose(value[order], again, atol=1e-12, err_msg=name)


def test_the_areas_of_two_classes():
    targets = np.array([0, 1, 0, 1, 1])
    second = np.array([0.1, 0.2, 0.6, 0.7, 0.9])
    probabilities = np.column_stack([1 - second, second])
    # Of class 1 by falling score: + + - + -. Of class 0: + - + - -.
    areas = (1 + 1 + 3 / 4) / 3, (1 + 2 / 3) / 2
    assert pr_auc(targets, probabilities) == pytest.approx(sum(areas) / 2)


def test_shapes_follow_the_weights():
    for metric in metrics_for(3, 1 - np.eye(3)).values():
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
    # One of the two images that are not of class 1 is not there; of class 2, there are three.
    assert specificity(targets, probabilities) == pytest.approx([1, 1, 2 / 3])
    assert matthews(targets, probabilities) == pytest.approx((2 * 3 - 3) / math.sqrt(4 * 6))
    assert kappa(targets, probabilities) == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    # Class 0: + first. Class 1 by falling score: + - +.
    assert pr_auc(targets, probabilities) == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    # Class 0: .7 beats .1 and .2. Class 1: .8 wins, .1 loses against .2.
    assert roc_auc(targets, probabilities) == pytest.approx((1 + 0.5) / 2)


def test_roc_auc_needs_two_classes_in_the_targets():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert np.isnan(roc_auc(np.array([1, 1]), probabilities))
    assert np.isnan(roc_auc(np.array([0, 0]), probabilities))
    assert roc_auc(np.array([0, 1]), probabilities) == 1
    assert roc_auc(np.array([1, 0]), probabilities) == 0
    assert roc_auc(np.array([1, 0]), np.full((2, 2), 0.5)) == 0.5


def test_pr_auc_needs_two_classes_in_the_targets():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6]])
    assert np.isnan(pr_auc(np.array([1, 1]), probabilities))
    assert np.isnan(pr_auc(np.array([0, 0]), probabilities))
    assert pr_auc(np.array([0, 1]), probabilities) == 1
    assert pr_auc(np.array([1, 0]), probabilities) == 0.5
    # The chance level: a class's share of the images.
    assert pr_auc(np.array([1, 0, 0, 0]), np.full((4, 2), 0.5)) == pytest.approx(
        (1 / 4 + 3 / 4) / 2
    )
    # The heaviest score is left out by its weight.
    weights = np.array([[0, 1, 1], [1, 1, 0]])
    scores = np.array([[0.1, 0.9], [0.4, 0.6], [0.5, 0.5]])
    assert pr_auc(np.array([0, 1, 0]), scores, weights).tolist() == [1, 0.5]


def test_correlation_and_agreement_of_constant_answers():
    first, second = np.tile([0.9, 0.1], (4, 1)), np.tile([0.1, 0.9], (4, 1))
    mixed, alike = np.array([0, 1, 1, 0]), np.zeros(4, int)
    assert matthews(mixed, first) == kappa(mixed, first) == 0
    # All images of one class: there is nothing to tell apart.
    assert np.isnan(matthews(alike, first))
    assert np.isnan(matthews(alike, np.eye(2)[mixed]))
    assert np.isnan(kappa(alike, first))
    assert np.isnan([kappa(alike, second), kappa(alike, np.eye(2)[mixed])]).all()
    # With two classes the opposite of the truth is the smallest value.
    assert matthews(mixed, np.eye(2)[1 - mixed]) == METRICS["matthews"].lower == -1
    assert kappa(mixed, np.eye(2)[1 - mixed]) == METRICS["kappa"].lower == -1
    # Fractions that cannot be written exactly leave nothing of chance either.
    weights = np.full(4, 0.1)
    assert matthews(mixed, first, weights) == 0
    assert np.isnan(kappa(alike, first, weights))


def test_perfect_answers_agree_exactly():
    targets = np.array([1, 5, 1, 5, 4, 6, 0, 5, 0, 4])  # rounding makes it more than 1
    assert kappa(targets, np.eye(7)[targets]) == matthews(targets, np.eye(7)[targets]) == 1


def test_a_class_name_may_be_stored_in_two_ways():
    composed, decomposed = "Bl\u00fcte", "Blu\u0308te"
    matrix = cost_matrix({composed: {"a": 3}}, ["a", decomposed])
    assert matrix.tolist() == [[0, 1], [3, 0]]


def test_top_k_and_its_ties():
    probabilities = np.array([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25], [0.5, 0, 0.2, 0.3]])
    hits = {
        k: [[int(top_k(np.array([t]), row[None], k=k)) for t in range(4)] for row in probabilities]
        for k in (1, 2, 3)
    }
    # The first classes win a tie.
    assert hits[1] == [[0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert hits[2] == [[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 1]]
    assert hits[3] == [[0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 1, 1]]
    targets, probabilities = random_case(5, num_classes=6, decimals=1)
    assert top_k(targets, probabilities, k=1) == accuracy(targets, probabilities)
    assert top_k(targets, probabilities, k=6) == 1


def test_which_metrics_there_are():
    assert list(metrics_for(2)) == list(metrics_for(3)) == list(METRICS)
    assert list(metrics_for(4)) == list(metrics_for(5)) == [*METRICS, "top_3"]
    metrics = metrics_for(6, 4 * (1 - np.eye(6)))
    assert list(metrics) == [*METRICS, "top_3", "top_5", "cost"]
    assert (metrics["cost"].lower, metrics["cost"].upper) == (0, 4)
    targets, probabilities = random_case(6, num_classes=6)
    for k in (3, 5):
        found = metrics[f"top_{k}"].function(targets, probabilities)
        assert found == top_k(targets, probabilities, k=k)
    wrong = 1 - accuracy(targets, probabilities)
    assert metrics["cost"].function(targets, probabilities) == pytest.approx(4 * wrong)


def test_a_cost_matrix_by_hand():
    costs = {"NA": {"0": 20}, "poppy": {"poppy": 0, "NA": 0.5}}
    expected = [[0, 1, 1], [20, 0, 1], [1, 0.5, 0]]
    assert cost_matrix(costs, ["0", "NA", "poppy"]).tolist() == expected
    assert cost_matrix({}, ["a", "b"]).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"popy": {"NA": 2}}, r"names the class 'popy', but the images have the classes "
         r"\['NA', 'poppy'\]; did you mean 'poppy'\?"),
        ({"NA": {"x": 2}}, r"evaluate.costs names the class 'x'.*choose one of \['NA', 'poppy'\]"),
        ({"NA": {"poppy": -2}}, r"not negative.*\[\[0\.0, -2\.0\], \[1\.0, 0\.0\]\]; subtract"),
        ({"NA": {"poppy": math.inf}}, "must be finite"),
        ({"NA": {"poppy": math.nan}}, "must be finite"),
        ({"NA": {"NA": 1}}, "0 for right answers"),
        ({"NA": {"poppy": 0}, "poppy": {"NA": 0}}, "all mistakes are 0.* above 0, or leave"),
    ],
)  # fmt: skip
def test_messages_of_bad_costs(costs, message):
    with pytest.raises(InputError, match=message):
        cost_matrix(costs, ["NA", "poppy"])


def test_costs_fit_the_classes():
    with pytest.raises(InputError, match=r"shape \(2, 2\) do not fit 3 classes; pass one row per"):
        metrics_for(3, 1 - np.eye(2))
    costs = 1 - np.eye(3)
    assert check_costs(costs, 3) is costs


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
        *("accuracy", "balanced_accuracy", "macro_f1", "matthews", "kappa"),
        *("log_loss", "roc_auc", "pr_auc", "brier", "ece"),
    ]
    assert list(CLASS_METRICS) == ["precision", "recall", "f1", "specificity"]
    assert [name for name, metric in all_metrics(6).items() if metric.is_proportion] == [
        *("accuracy", "top_3", "top_5", "precision", "recall", "specificity")
    ]
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
