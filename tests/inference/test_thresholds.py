import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from sklearn.metrics import roc_curve

from cvpipe.errors import InputError
from cvpipe.inference.thresholds import (
    EVERYTHING,
    NOTHING,
    RESOLUTION,
    count_reaching,
    decide_by_cost,
    possible_thresholds,
    threshold_for_sensitivity,
    threshold_for_specificity,
    threshold_for_youden,
)

# Ten positive and ten other images; the first threshold below all is 0.
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95] * 2)
POSITIVE = np.repeat([True, False], 10)
SCORES[10:] -= 0.05


def rates(scores, is_positive, threshold):
    called = scores >= threshold
    return called[is_positive].mean(), (~called)[~is_positive].mean()


@pytest.mark.parametrize(
    ("at_least", "threshold"),
    [(1.0, 0.075), (0.95, 0.075), (0.9, 0.175), (0.8, 0.275), (0.11, 0.875), (0.1, 0.925)],
)
def test_sensitivity_by_hand(at_least, threshold):
    found = threshold_for_sensitivity(SCORES, POSITIVE, at_least)
    assert found == pytest.approx(threshold)
    assert rates(SCORES, POSITIVE, found)[0] >= at_least


@pytest.mark.parametrize(
    ("at_least", "threshold"),
    [(1.0, 0.925), (0.95, 0.925), (0.9, 0.875), (0.1, 0.075), (0.05, 0.075)],
)
def test_specificity_by_hand(at_least, threshold):
    found = threshold_for_specificity(SCORES, POSITIVE, at_least)
    assert found == pytest.approx(threshold)
    assert rates(SCORES, POSITIVE, found)[1] >= at_least


def test_youden_by_hand():
    # Sensitivity + specificity: 1 + 0, 1 + 1/2, 1/2 + 1/2, 1/2 + 1, 0 + 1: two are equally good.
    scores = np.array([0.2, 0.4, 0.6, 0.8])
    assert threshold_for_youden(scores, np.array([False, True, False, True])) == pytest.approx(0.3)
    # Of equal indices the lowest threshold.
    assert threshold_for_youden(np.full(4, 0.5), np.array([True, False] * 2)) == EVERYTHING
    # Worse than chance: calling everything is as good as it gets.
    assert threshold_for_youden(scores, np.array([True, True, False, False])) == EVERYTHING


def test_a_goal_that_no_score_parts_calls_everything_or_nothing():
    scores, positive = np.array([0.25, 0.75, 1.0]), np.array([True, False, False])
    assert threshold_for_sensitivity(scores, positive, 0.5) == pytest.approx(EVERYTHING)
    assert threshold_for_specificity(scores, positive, 1.0) == NOTHING
    assert not (scores >= NOTHING).any()
    assert (np.array([0.0, 1e-300]) >= EVERYTHING).all()


@pytest.mark.parametrize(("hits", "n"), [(11, 20), (7, 25), (29, 50), (57, 100)])
def test_a_share_that_is_reached_exactly_is_reached(hits, n):
    # hits / n as a decimal number; 0.55 * 20 is a hair above 11, and 0.28 * 25 above 7.
    scores = np.append((np.arange(n) + 1) / (n + 1), 0.0)
    positive = np.append(np.full(n, True), False)
    found = threshold_for_sensitivity(scores, positive, round(hits / n, 2))
    assert (scores[positive] >= found).sum() == hits
    lowered = threshold_for_specificity(1 - scores, ~positive, round(hits / n, 2))
    assert (1 - scores[positive] < lowered).sum() == hits


def test_thresholds_lie_halfway_and_rounding_flips_no_image():
    near = 0.5 + RESOLUTION / 2
    scores = np.array([0.25, 0.5, near, 0.75, 0.75])
    thresholds = possible_thresholds(scores)
    np.testing.assert_array_equal(thresholds, [0.0, 0.375, (near + 0.75) / 2, 2.0])
    for shift in (-1e-6, 1e-6):
        np.testing.assert_array_equal(
            count_reaching(scores + shift, thresholds), count_reaching(scores, thresholds)
        )


probability = st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0])
images = st.lists(st.tuples(probability, st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


@given(images, st.floats(0.01, 1))
def test_no_threshold_between_two_scores_does_better(rows, at_least):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    all_rates = [rates(scores, positive, t) for t in possible_thresholds(scores)]
    sensitivity, specificity = rates(
        scores, positive, threshold_for_sensitivity(scores, positive, at_least)
    )
    assert sensitivity >= at_least
    assert specificity == max(s for h, s in all_rates if h >= at_least)
    sensitivity, specificity = rates(
        scores, positive, threshold_for_specificity(scores, positive, at_least)
    )
    assert specificity >= at_least
    assert sensitivity == max(h for h, s in all_rates if s >= at_least)
    best = sum(rates(scores, positive, threshold_for_youden(scores, positive)))
    assert best == pytest.approx(max(h + s for h, s in all_rates))


def test_the_operating_points_are_those_of_the_roc_curve():
    rng = np.random.default_rng(1)
    positive = rng.random(300) < 0.3
    scores = np.round(1 / (1 + np.exp(-rng.normal(positive * 1.5, 1))), 2)  # many ties
    false_rate, true_rate, _ = roc_curve(positive, scores, drop_intermediate=False)
    for at_least in (0.5, 0.8, 0.9, 0.99):
        sensitivity, specificity = rates(
            scores, positive, threshold_for_sensitivity(scores, positive, at_least)
        )
        first = np.flatnonzero(true_rate >= at_least)[0]
        assert sensitivity == pytest.approx(true_rate[first])
        assert specificity == pytest.approx(1 - false_rate[first])
        sensitivity, specificity = rates(
            scores, positive, threshold_for_specificity(scores, positive, at_least)
        )
        last = np.flatnonzero(1 - false_rate >= at_least)[-1]
        assert sensitivity == pytest.approx(true_rate[last])
        assert specificity == pytest.approx(1 - false_rate[last])
    best = sum(rates(scores, positive, threshold_for_youden(scores, positive))) - 1
    assert best == pytest.approx((true_rate - false_rate).max())


@pytest.mark.slow
def test_on_other_images_a_goal_is_missed_rather_more_often_than_kept():
    """What `docs/decisions.md` says of it."""
    rng = np.random.default_rng(0)
    for n in (50, 200):
        positive = np.arange(2 * n) < n
        kept = []
        for _ in range(1000):
            scores = ndtr(rng.normal(positive * 1.5, 1))
            threshold = threshold_for_sensitivity(scores, positive, 0.9)
            kept.append(ndtr(1.5 - ndtri(threshold)) >= 0.9)  # the sensitivity that it has
        assert 0.35 < np.mean(kept) < 0.5


@pytest.mark.parametrize(
    "find",
    [
        lambda scores, positive: threshold_for_sensitivity(scores, positive, 0.9),
        lambda scores, positive: threshold_for_specificity(scores, positive, 0.9),
        threshold_for_youden,
    ],
)
@pytest.mark.parametrize("value", [True, False])
def test_one_kind_of_image_is_not_enough(find, value):
    with pytest.raises(InputError) as caught:
        find(np.array([0.2, 0.4]), np.full(2, value))
    assert str(caught.value) == (
        f"{2 * value} of 2 images are of the positive class; a threshold needs images of it and "
        "of other classes."
    )


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
@pytest.mark.parametrize("name", ["sensitivity", "specificity"])
def test_shares_out_of_range(name, share):
    find = {"sensitivity": threshold_for_sensitivity, "specificity": threshold_for_specificity}
    with pytest.raises(InputError) as caught:
        find[name](SCORES, POSITIVE, share)
    assert str(caught.value) == (
        f"the {name} asked for is {share}; pass a share above 0 and at most 1."
    )


def test_smallest_expected_cost_by_hand():
    # A missed tumour costs 9: with two classes the threshold is 1 / (1 + 9) (Elkan, section 2).
    costs = np.array([[0.0, 1.0], [9.0, 0.0]])
    tumour = np.array([0.09, 0.11, 0.5, 0.0])
    decided = decide_by_cost(np.column_stack([1 - tumour, tumour]), costs)
    assert decided.tolist() == [0, 1, 1, 0]
    # Expected costs 0.2 * 1 + 0.3 * 5, 0.5 * 4 + 0.3 * 2, 0.5 * 1 + 0.2 * 6: rows are the truth.
    costs = np.array([[0, 4, 1], [1, 0, 6], [5, 2, 0]], dtype=float)
    assert decide_by_cost(np.array([[0.5, 0.2, 0.3]]), costs).tolist() == [0]
    costs[2, 0] = 5.1
    assert decide_by_cost(np.array([[0.5, 0.2, 0.3]]), costs).tolist() == [2]


@given(st.integers(0, 2**32 - 1))
def test_cost_agrees_with_a_plain_loop_and_equal_costs_with_the_most_probable(seed):
    rng = np.random.default_rng(seed)
    probabilities, costs = rng.dirichlet(np.ones(4), 5), rng.random((4, 4))
    for row, decided in zip(probabilities, decide_by_cost(probabilities, costs), strict=True):
        expected = [sum(row[t] * costs[t, d] for t in range(4)) for d in range(4)]
        assert expected[decided] == pytest.approx(min(expected))
    equal = decide_by_cost(probabilities, 1 - np.eye(4))
    assert equal.tolist() == probabilities.argmax(axis=1).tolist()


def test_costs_of_another_shape():
    with pytest.raises(InputError) as caught:
        decide_by_cost(np.full((3, 2), 0.5), np.zeros((3, 3)))
    assert str(caught.value) == (
        "costs of shape (3, 3) do not fit probabilities of 2 classes; pass one row per true class "
        "and one column per decided class, in class order."
    )
