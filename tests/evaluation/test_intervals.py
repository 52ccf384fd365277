import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from cvpipe.errors import InputError
from cvpipe.evaluation import intervals
from cvpipe.evaluation.intervals import (
    absolute_sum_interval,
    block_sizes,
    bootstrap,
    bootstrap_weights,
    bounded_interval,
    clustered_wilson_interval,
    difference_interval,
    effective_groups,
    effective_number,
    group_correlation,
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


def in_groups(hits, sizes):
    """Successes and groups of images, from the counts of each group."""
    successes = [image < h for h, size in zip(hits, sizes, strict=True) for image in range(size)]
    return np.array(successes, dtype=bool), np.repeat(np.arange(len(sizes)), sizes)


def slow_correlation(hits, sizes):
    """Posterior mean by a plain loop over SciPy's beta-binomial distribution."""
    proportion = (sum(hits) + 2) / (sum(sizes) + 4)
    weights, total = 0.0, 0.0
    for rho in np.arange(0.01, 1, 0.02):
        alpha, beta = proportion * (1 / rho - 1), (1 - proportion) * (1 / rho - 1)
        likelihood = 1.0
        for h, size in zip(hits, sizes, strict=True):
            likelihood *= stats.betabinom.pmf(h, size, alpha, beta)
        weights, total = weights + likelihood, total + likelihood * rho
    return total / weights


COUNTED = [
    ([3, 0, 2, 5], [3, 4, 2, 6]),
    ([4, 4, 4], [4, 4, 4]),
    ([0, 1, 0, 0, 0, 0, 0, 0], [8, 2, 1, 1, 5, 3, 7, 2]),
    ([25, 26, 24, 25, 27], [50] * 5),
]


@pytest.mark.parametrize(("hits", "sizes"), COUNTED)
def test_group_correlation_agrees_with_a_slow_loop(hits, sizes):
    found = group_correlation(np.array(hits), np.array(sizes))
    assert found == pytest.approx(slow_correlation(hits, sizes), abs=1e-10)


def test_group_correlation_finds_what_was_drawn():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 4000)
    for rho in (0.1, 0.5, 0.9):
        chances = rng.beta(0.8 * (1 / rho - 1), 0.2 * (1 / rho - 1), len(sizes))
        found = group_correlation(rng.binomial(sizes, chances), sizes)
        assert found == pytest.approx(rho, abs=0.03)
    # Groups of one image tell nothing; alike ones of 50 say nearly 0.
    assert group_correlation(np.array([1, 1, 0]), np.ones(3)) == pytest.approx(0.5)
    assert group_correlation(np.array([25] * 20), np.full(20, 50)) < 0.02


def test_effective_number_by_hand():
    # Both groups are all of one kind: 4 images at .5, their scatter 2 · (2 - 1)² · 2 / 1 over
    # 4 · .5 · .5 is 4, which is more than any model of groups of 2 can say. With t of 1 degree
    # of freedom, 12.7062: 4 / 4 · (1.95996 / 12.7062)².
    successes, groups = in_groups([2, 0, 2, 0], [2, 2, 2, 2])
    pair = effective_number(successes[:4], groups[:4])
    assert pair == pytest.approx((1.959964 / 12.706205) ** 2, rel=1e-6)
    # Four groups: scatter 4 · 1 · 4 / 3 over 8 · .25 is 8 / 3; t of 3 is 3.182446.
    expected = 8 / (8 / 3) * (1.959964 / 3.182446) ** 2
    assert effective_number(successes, groups) == pytest.approx(expected, rel=1e-6)
    # Without a mistake the model alone speaks.
    successes, groups = in_groups([4, 4, 4], [4, 4, 4])
    design = 1 + 3 * slow_correlation([4, 4, 4], [4, 4, 4])
    expected = 12 / design * (1.959964 / 4.302653) ** 2
    assert effective_number(successes, groups) == pytest.approx(expected, rel=1e-6)
    # Another confidence has another t: 2.919986 for 90 %, with 1.644854.
    at_90 = effective_number(successes, groups, 0.9)
    assert at_90 == pytest.approx(12 / design * (1.644854 / 2.919986) ** 2, rel=1e-6)


def test_the_size_of_an_images_own_group_counts():
    # Sizes 1 and 5: an image's own group has (1 + 25) / 6 images on average.
    successes, groups = in_groups([1, 5], [1, 5])
    design = 1 + (26 / 6 - 1) * slow_correlation([1, 5], [1, 5])
    expected = 6 / design * (1.959964 / 12.706205) ** 2
    assert effective_number(successes, groups) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=30))
def test_clustering_never_adds_evidence(drawn):
    sizes = [size for size, _ in drawn]
    hits = [round(share * size) for size, share in drawn]
    successes, groups = in_groups(hits, sizes)
    assert 0 < effective_number(successes, groups) <= len(successes)
    low, high = clustered_wilson_interval(successes, groups)
    plain = wilson_interval(successes.sum(), len(successes))
    assert low <= plain[0] + 1e-9
    assert high >= plain[1] - 1e-9
    # Mistakes instead of successes turn it round; the names and the order of groups do not matter.
    turned = clustered_wilson_interval(~successes, groups)
    assert turned == pytest.approx((1 - high, 1 - low), abs=1e-9)
    renamed = np.array([f"g{99 - group}" for group in groups])
    assert clustered_wilson_interval(successes[::-1], renamed[::-1]) == pytest.approx((low, high))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_own_groups_have_wilsons_interval(successes):
    successes = np.array(successes)
    expected = wilson_interval(successes.sum(), len(successes))
    found = clustered_wilson_interval(successes, np.arange(len(successes)))
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_image_has_no_interval():
    found = clustered_wilson_interval(np.array([], dtype=bool), np.array([]))
    assert all(math.isnan(end) for end in found)


def test_one_group_says_next_to_nothing():
    low, high = clustered_wilson_interval(*in_groups([9], [10]))
    assert low < 0.02
    assert high > 0.98


def test_bounded_interval_of_a_mean_is_wilsons_with_t():
    # A share of 30 of 40: resamples vary by .75 · .25 / 40 times 1 (the plug-in variance).
    rng = np.random.default_rng(5)
    exact = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    resampled = 0.75 + exact / exact.std() * math.sqrt(0.75 * 0.25 / 40)
    effective = 40 * 39 / 40 * (1.959964 / 2.022691) ** 2
    effective = max(effective, 40)
    found = bounded_interval(0.75, rng.permutation(resampled), np.arange(40))
    assert found == pytest.approx(wilson_interval(0.75 * effective, effective), abs=1e-9)
    # A quarter of that variance: as 160 images; NaN is left out, bounds are stretched to.
    narrow = np.append(0.75 + (resampled - 0.75) / 2, np.nan)
    effective = 160 * 39 / 40 * (1.959964 / 2.022691) ** 2
    low, high = wilson_interval(0.75 * effective, effective)
    assert bounded_interval(0.75, narrow, np.arange(40)) == pytest.approx((low, high), abs=1e-6)
    stretched = bounded_interval(0.5, 2 * narrow - 1, np.arange(40), (-1.0, 1.0))
    assert stretched == pytest.approx((2 * low - 1, 2 * high - 1), abs=1e-6)


def test_bounded_interval_counts_the_groups_where_nothing_moves():
    for resampled in (np.full(9, 0.9), np.array([np.nan, 0.9]), np.array([np.nan])):
        found = bounded_interval(0.9, resampled, np.arange(10))
        assert found == pytest.approx(wilson_interval(9, 10))
    # Nor is it ever that of fewer.
    found = bounded_interval(0.9, np.array([0.1, 1.0]), np.arange(10))
    assert found == pytest.approx(wilson_interval(9, 10))
    # Unequal groups are worth fewer: 12 images in groups of 6, 3 and three times 1 are 144 / 48.
    groups = np.repeat(np.arange(5), [6, 3, 1, 1, 1])
    assert effective_groups(groups) == 3
    assert bounded_interval(0.9, np.ones(4), groups) == pytest.approx(wilson_interval(2.7, 3))
    assert all(math.isnan(end) for end in bounded_interval(math.nan, np.ones(3), groups))


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=9), st.integers(1, 50))
def test_bounded_interval_holds_the_value_within_the_bounds(share, shares, num_groups):
    value, resampled = 5 * share - 1, 5 * np.array(shares) - 1
    low, high = bounded_interval(value, resampled, np.arange(num_groups), (-1.0, 4.0))
    assert -1 - 1e-9 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 4 + 1e-9


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
        lambda: clustered_wilson_interval(np.ones(2, bool), np.zeros(2), confidence=95),
        lambda: bounded_interval(0.5, np.ones(2), np.arange(2), confidence=95),
        lambda: percentile_interval(np.ones(3), confidence=95),
        lambda: absolute_sum_interval(np.ones(1), np.ones((3, 1)), confidence=95),
    ):
        with pytest.raises(InputError, match=r"confidence 95 is not between 0 and 1; pass 0\.95"):
            function()
    with pytest.raises(InputError, match="0 resamples; pass at least 1"):
        bootstrap(lambda weights: weights, np.arange(3), 0, np.random.default_rng(0))
