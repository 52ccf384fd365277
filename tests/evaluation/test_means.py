import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from cvpipe.evaluation.intervals import clustered_wilson_interval
from cvpipe.evaluation.means import mean_with_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 8), (45, 50), (20, 20)])
def test_a_share_of_independent_images_has_wilsons_interval(hits, n):
    values = np.arange(n) < hits
    mean, low, high = mean_with_interval(values, np.arange(n), 0, 10)
    assert mean == hits / n
    expected = proportion_confint(hits, n, method="wilson")
    np.testing.assert_allclose((low, high), expected, atol=1e-9)


def test_a_mean_is_resampled_by_group():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    values = 10 * np.repeat(rng.random(40), 5)
    mean, low, high = mean_with_interval(values, groups, 3, 2000, largest=10.0)
    assert mean == pytest.approx(values.mean())
    # The standard error is that of 40 values, not of 200.
    half_width = 1.96 * values[::5].std() / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert (low + high) / 2 == pytest.approx(mean, abs=0.2 * half_width)
    assert mean_with_interval(values, groups, 3, 2000, largest=10.0) == (mean, low, high)
    assert mean_with_interval(values, groups, 4, 2000, largest=10.0) != (mean, low, high)


def test_costs_of_two_values_are_a_share_of_the_largest():
    values = np.array([0.0, 20.0, 0.0, 0.0])
    mean, low, high = mean_with_interval(values, np.arange(4), 0, 10, largest=20.0)
    expected = proportion_confint(1, 4, method="wilson")
    assert mean == 5.0
    np.testing.assert_allclose((low, high), 20 * np.array(expected), atol=1e-9)


def test_a_share_of_groups_has_the_interval_of_the_accuracy():
    values, groups = np.arange(60) % 7 < 5, np.repeat(np.arange(12), 5)
    mean, *ends = mean_with_interval(values, groups, 0, 50)
    assert (mean, tuple(ends)) == (values.mean(), clustered_wilson_interval(values, groups))
    # Images of one group that agree are worth less than independent ones.
    _, low, high = mean_with_interval(np.arange(60) < 45, np.repeat(np.arange(12), 5), 0, 50)
    alone = proportion_confint(45, 60, method="wilson")
    assert high - low > 1.5 * (alone[1] - alone[0])


def test_without_spread_the_groups_count():
    mean, low, high = mean_with_interval(np.full(4, 0.5), np.arange(4), 0, 50)
    expected = proportion_confint(2, 4, method="wilson")
    np.testing.assert_allclose((mean, low, high), (0.5, *expected), atol=1e-9)


def test_no_images():
    assert all(map(math.isnan, mean_with_interval(np.array([]), np.array([]), 0, 10)))


@given(
    st.lists(st.tuples(st.floats(0, 7), st.integers(0, 5)), min_size=1, max_size=20),
)
def test_the_interval_holds_the_mean_and_stays_in_range(rows):
    values, groups = (np.array(column) for column in zip(*rows, strict=True))
    mean, low, high = mean_with_interval(values, groups, 0, 20, largest=7.0)
    assert -1e-9 <= low <= mean <= high <= 7 + 1e-9
