import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.inference.conformal import (
    fit_class_thresholds,
    fit_set_threshold,
    images_needed,
    prediction_sets,
)


def test_threshold_by_hand():
    # Nine images at level 0.9: ceil(10 * 0.9) = 9, the ninth largest, which is the smallest.
    values = np.array([0.31, 0.92, 0.55, 0.11, 0.84, 0.73, 0.62, 0.47, 0.25])
    assert fit_set_threshold(values, 0.9) == 0.11
    assert fit_set_threshold(values, 0.8) == 0.25
    assert fit_set_threshold(values, 0.79) == 0.25  # ceil(7.9) = 8
    assert fit_set_threshold(values, 0.1) == 0.92
    assert fit_set_threshold(values, 0.91) == 0.0  # ceil(9.1) = 10 of 9
    assert fit_set_threshold(values[:8], 0.9) == 0.0
    assert fit_set_threshold(np.array([]), 0.5) == 0.0


@pytest.mark.parametrize(("n", "level", "rank"), [(99, 0.55, 55), (99, 0.57, 57), (19, 0.95, 19)])
def test_a_whole_rank_is_not_lifted_by_rounding(n, level, rank):
    values = np.arange(1, n + 1) / (n + 1)
    assert fit_set_threshold(values, level) == values[n - rank]


@given(st.integers(0, 300), st.integers(1, 99))
def test_exactly_enough_images(n, percent):
    level = percent / 100
    enough = fit_set_threshold(np.full(n, 0.5), level) == 0.5
    assert enough == (n >= images_needed(level))
    assert enough == ((n + 1) * percent <= 100 * n)  # in whole numbers


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.5, 0.8, 0.9]))
def test_leaving_one_out_of_n_plus_one_covers_the_level(seed, n, level):
    """The finite-sample argument itself: of n + 1 images each is left out once."""
    values = np.random.default_rng(seed).random(n + 1)
    kept = [fit_set_threshold(np.delete(values, i), level) <= values[i] for i in range(n + 1)]
    assert np.mean(kept) >= level - 1e-12
    if n >= images_needed(level):
        assert np.mean(kept) <= level + 1 / (n + 1) + 1e-12


def test_thresholds_by_class_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.45, 0.55]])
    targets = np.array([0, 0, 0, 1, 1])
    # Three images of the first class: ceil(4 * 0.5) = 2, of (0.9, 0.6, 0.3) the second largest.
    assert fit_class_thresholds(probabilities, targets, 0.5).tolist() == [0.6, 0.55]
    assert fit_class_thresholds(probabilities, targets, 0.7).tolist() == [0.3, 0.0]


def test_sets_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.36, 0.33, 0.31]])
    one = [[True, True, False], [False, False, True], [True, True, True]]
    assert prediction_sets(probabilities, 0.3).tolist() == one
    own = [[True, False, True], [False, False, True], [True, False, True]]
    assert prediction_sets(probabilities, np.array([0.4, 0.4, 0.2])).tolist() == own
    # The first class of the last image is in its set as the most probable one.
    assert prediction_sets(probabilities, 0.0).all()
    assert prediction_sets(probabilities, 0.99).sum(axis=1).tolist() == [1, 1, 1]
    assert prediction_sets(np.empty((0, 3)), 0.5).shape == (0, 3)


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, float("nan")])
def test_levels_out_of_range(level):
    for call in (lambda: fit_set_threshold(np.array([0.5]), level), lambda: images_needed(level)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == (f"level {level} is not between 0 and 1; pass 0.9 for 90 %.")


@pytest.mark.slow
def test_sets_cover_at_their_level():
    """2,000 draws of calibration and new images from a world with classes of unequal difficulty.

    Of the classifier nothing is assumed: its probabilities are off on purpose.
    """
    rng = np.random.default_rng(0)
    draws, n, new, level = 2000, 120, 50, 0.9
    frequencies = np.array([0.5, 0.3, 0.2])
    spread = np.array([0.7, 1.2, 2.0])  # of the logits: the last class is the most difficult
    covered, covered_by_class, sizes = [], [[], [], []], []
    for _ in range(draws):
        targets = rng.choice(3, n + new, p=frequencies)
        logits = 1.1 * np.eye(3)[targets] + rng.normal(size=(n + new, 3)) * spread[targets, None]
        probabilities = np.exp(1.3 * logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        fit, truth, rows = probabilities[:n], targets[n:], np.arange(new)
        marginal = fit_set_threshold(fit[np.arange(n), targets[:n]], level)
        assert marginal < 1 / 3  # no set would be empty, so the upper bound holds as well
        sets = prediction_sets(probabilities[n:], marginal)
        covered.append(sets[rows, truth].mean())
        by_class = fit_class_thresholds(fit, targets[:n], level)
        sets = prediction_sets(probabilities[n:], by_class)
        sizes.append(sets.sum(axis=1).mean())
        for target in range(3):
            if (truth == target).any():
                covered_by_class[target].append(sets[rows, truth][truth == target].mean())
    error = 3 * np.std(covered) / np.sqrt(draws)
    assert error < 0.004
    assert level - error <= np.mean(covered) <= level + 1 / (n + 1) + error
    for means in covered_by_class:
        error = 3 * np.std(means) / np.sqrt(len(means))
        assert error < 0.008
        assert level - error <= np.mean(means)
    assert np.mean(sizes) < 2.9  # not by taking everything in
