import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from cvpipe.errors import InputError
from cvpipe.evaluation import intervals
from cvpipe.evaluation.intervals import (
    absolute_sum_interval,
    block_sizes,
    bootstrap,
    bootstrap_weights,
    difference_interval,
    percentile_interval,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 9), (3, 10), (50, 50), (999, 1000)]
)
def test_wilson_agrees_with_statsmodels(successes, n, confidence):
    expected = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    assert wilson_interval(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_by_hand():
    # None of n: the upper end is z² / (n + z²), z = 1.959964.
    assert wilson_interval(0, 10) == (0.0, pytest.approx(3.841459 / 13.841459, abs=1e-6))
    assert wilson_interval(10, 10)[1] == 1.0
    assert all(math.isnan(end) for end in wilson_interval(0, 0))
    # Exactly, whatever the rounding.
    cases = [(n, confidence / 100) for n in range(1, 50) for confidence in range(50, 100)]
    assert {wilson_interval(0, *case)[0] for case in cases} == {0.0}
    assert {wilson_interval(case[0], *case)[1] for case in cases} == {1.0}


def test_bootstrap_weights_draw_whole_groups():
    groups = np.array(["b", "a", "b", "c", "NA"])
    weights = bootstrap_weights(groups, 500, np.random.default_rng(0))
    assert weights.shape == (500, 5)
    assert np.issubdtype(weights.dtype, np.integer)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()  # as many draws as groups
    # Each of 4 groups is missed by 4 draws with probability (3/4)^4 and drawn once on average.
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
    assert (weights == 0).mean(axis=0) == pytest.approx(0.75**4, abs=0.08)
    # The resamples are not copies of each other.
    assert len(np.unique(weights, axis=0)) > 20


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 7))
def test_bootstrap_weights_keep_the_number_of_draws(groups, num_resamples):
    weights = bootstrap_weights(np.array(groups), num_resamples, np.random.default_rng(1))
    names, first = np.unique(groups, return_index=True)
    assert (weights[:, first].sum(axis=1) == len(names)).all()


def test_blocks_do_not_change_the_resamples(monkeypatch):
    values = np.arange(7.0)

    def means(weights):
        return (weights @ values / weights.sum(axis=1))[:, None]

    whole = bootstrap(means, np.arange(7), 50, np.random.default_rng(2))
    monkeypatch.setattr(intervals, "BLOCK_VALUES", 20)
    assert block_sizes(7, 7) == [2, 2, 2, 1]
    assert block_sizes(2, 1000) == [1, 1]
    in_blocks = bootstrap(means, np.arange(7), 50, np.random.default_rng(2))
    assert whole.shape == (50, 1)
    np.testing.assert_array_equal(whole, in_blocks)


def test_bootstrap_spread_agrees_with_theory():
    rng = np.random.default_rng(3)
    values = rng.normal(size=400)
    means = bootstrap(lambda weights: weights @ values[:, None] / 400, np.arange(400), 2000, rng)
    assert means.std() == pytest.approx(values.std() / 20, rel=0.06)
    # Pairs of equal values are worth half as many: the spread grows by the square root of 2.
    pairs = np.repeat(values, 2)
    groups = np.repeat(np.arange(400), 2)
    clustered = bootstrap(lambda weights: weights @ pairs[:, None] / 800, groups, 2000, rng)
    ordinary = bootstrap(lambda weights: weights @ pairs[:, None] / 800, np.arange(800), 2000, rng)
    assert clustered.std() / ordinary.std() == pytest.approx(math.sqrt(2), rel=0.08)


def test_percentile_interval_by_hand():
    assert percentile_interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert percentile_interval(np.array([np.nan, 2, np.nan])) == (2, 2)
    assert all(math.isnan(end) for end in percentile_interval(np.array([np.nan])))


def test_absolute_sum_interval_by_hand():
    vector = np.array([0.1, -0.2])
    resampled = np.array([[0.1, -0.2], [0.2, -0.2], [0.1, -0.4], [0.0, -0.1], [0.1, -0.2]])
    # Sums .3, .4, .5, .1, .3; absolute errors 0, .1, .2, .2, 0.
    low, high = absolute_sum_interval(vector, resampled, confidence=0.5)
    assert low == pytest.approx(0.3 - 0.1)  # the median of the errors
    assert high == pytest.approx(0.6 - 0.3)  # the first quartile of the sums
    # Where even the lower percentile is above the value, the value itself is the upper end.
    assert absolute_sum_interval(np.array([0.1]), np.array([[0.5], [0.6]])) == (0.0, 0.1)


def proportion(successes, n):
    """A proportion and the ends of its interval."""
    return successes / n, *wilson_interval(successes, n)


def test_difference_interval_by_hand():
    # Margins 3 and 4 make 5; 5 and 12 make 13. Low: down from one, up from the other.
    assert difference_interval((50, 47, 62), (20, 15, 24)) == pytest.approx((25, 43))
    # A value without a margin leaves the other's.
    assert difference_interval((0.9, 0.9, 0.9), (0.8, 0.7, 0.85)) == pytest.approx((0.05, 0.2))
    assert difference_interval((0.9, 0.8, 0.95), (0.8, 0.8, 0.8)) == pytest.approx((0.0, 0.15))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        # Newcombe 1998, table II, method 10.
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
)
def test_difference_interval_of_proportions(one, other, expected):
    interval = difference_interval(proportion(*one), proportion(*other))
    assert interval == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(("one", "other"), [((56, 70), (48, 80)), ((3, 9), (30, 31))])
def test_difference_interval_agrees_with_statsmodels(one, other):
    expected = confint_proportions_2indep(*one, *other, method="newcomb", compare="diff")
    interval = difference_interval(proportion(*one), proportion(*other))
    assert interval == pytest.approx(expected, abs=1e-12)


counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, counts)
def test_difference_interval_is_turned_by_swapping(one, other):
    one, other = proportion(*one), proportion(*other)
    low, high = difference_interval(one, other)
    assert difference_interval(other, one) == (-high, -low)
    assert -1 - 1e-12 <= low <= one[0] - other[0] <= high <= 1 + 1e-12


def test_difference_interval_of_what_has_none():
    nothing = (math.nan, math.nan, math.nan)
    assert all(math.isnan(end) for end in difference_interval((0.9, 0.8, 1.0), nothing))


def test_error_messages():
    with pytest.raises(InputError, match="11 successes out of 10 trials; pass from 0 to 10"):
        wilson_interval(11, 10)
    with pytest.raises(InputError, match="-1 successes"):
        wilson_interval(-1, 10)
    with pytest.raises(InputError, match="nan successes"):
        wilson_interval(math.nan, 10)
    for function in (
        lambda: wilson_interval(1, 2, confidence=95),
        lambda: percentile_interval(np.ones(3), confidence=95),
        lambda: absolute_sum_interval(np.ones(1), np.ones((3, 1)), confidence=95),
    ):
        with pytest.raises(InputError, match=r"confidence 95 is not between 0 and 1; pass 0\.95"):
            function()
    with pytest.raises(InputError, match="0 resamples; pass at least 1"):
        bootstrap(lambda weights: weights, np.arange(3), 0, np.random.default_rng(0))
