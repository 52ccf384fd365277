import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.models.rate_range import diverged, rates_to_try, smooth_losses, suggest_rate


def losses_with_smoothed(smoothed, beta=0.98):
    """Undo the smoothing, so that a test can say how the smoothed losses run."""
    weights = 1 - beta ** np.arange(1, len(smoothed) + 1)
    totals = np.asarray(smoothed) * weights
    return (totals - beta * np.concatenate([[0], totals[:-1]])) / (1 - beta)


def test_rates_rise_by_a_constant_factor():
    rates = rates_to_try()
    assert (len(rates), rates[0], rates[-1]) == (100, 1e-6, 10.0)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10 ** (7 / 99))
    np.testing.assert_allclose(rates_to_try(0.5, 8, 5), [0.5, 1, 2, 4, 8])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (1, 1), (2, 1), (1, math.inf)])
def test_limits_that_do_not_rise(low, high):
    with pytest.raises(InputError, match=f"cannot rise from {low} to {high}; give a low one"):
        rates_to_try(low, high)


def test_too_few_steps():
    with pytest.raises(InputError, match="steps must be at least 2, not 1"):
        rates_to_try(steps=1)


def test_smoothing_by_hand():
    # Weights 4, 2, 1 of the last three, over 7.
    found = smooth_losses([7.0, 14.0, 28.0], beta=0.5)
    np.testing.assert_allclose(found, [7, (14 * 2 + 7) / 3, (28 * 4 + 14 * 2 + 7) / 7])


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0.01, 0.99))
def test_smoothing_equals_the_weighted_mean_of_pandas(losses, beta):
    expected = pd.Series(losses, dtype=float).ewm(alpha=1 - beta).mean()
    np.testing.assert_allclose(smooth_losses(losses, beta), expected, rtol=1e-9, atol=1e-9)


def test_smoothing_with_its_usual_beta_keeps_constants():
    assert set(smooth_losses([math.log(10)] * 200)) == {math.log(10)}  # to the last bit
    expected = pd.Series([1.0, 5, 2, 8]).ewm(alpha=0.02).mean()
    np.testing.assert_allclose(smooth_losses([1.0, 5, 2, 8]), expected)
    assert smooth_losses([3.0, 1.0, 2.0], beta=0).tolist() == [3, 1, 2]


def test_behind_a_loss_that_is_no_number_none_is():
    for bad in (math.nan, math.inf):
        found = np.isfinite(smooth_losses([1.0, bad, 1.0, 1.0]))
        assert found.tolist() == [True, False, False, False]


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_beta_out_of_range(beta):
    with pytest.raises(InputError, match=f"beta must be at least 0 and below 1, not {beta}"):
        smooth_losses([1.0], beta)


@pytest.mark.parametrize(
    ("smoothed", "expected"),
    [
        ([], False),
        ([2.0], False),
        ([2.0, 5.9], False),
        ([2.0, 6.1], True),  # above three times the first
        ([2.0, 0.5, 1.9], False),
        ([2.0, 0.5, 2.1], True),  # above four times the lowest
        ([2.0, 6.1, 5.9], False),  # the last one decides
        ([2.0, math.nan], True),
        ([2.0, math.inf], True),
        ([math.inf], True),
        ([math.nan, 1.0], True),
    ],
)
def test_when_the_loss_has_exploded(smoothed, expected):
    assert diverged(losses_with_smoothed(smoothed)) is expected


def test_one_outlier_is_no_explosion():
    assert not diverged([2.0] * 50 + [20.0])
    assert diverged([2.0, 20.0])


RATES = rates_to_try(1e-4, 1.0, 9)


def test_the_rate_at_the_start_of_the_steepest_fall():
    smoothed = [2.0, 2.0, 1.9, 1.7, 1.2, 1.1, 1.1, 1.5, 4.0]
    assert suggest_rate(RATES, losses_with_smoothed(smoothed)) == RATES[3]


def test_it_is_searched_in_the_longest_fall():
    # The step from 2.0 to 1.0 is steeper, but it stands alone.
    smoothed = [2.0, 1.0, 1.6, 1.5, 1.2, 1.1, 0.9, 3.0, 9.0]
    assert suggest_rate(RATES, losses_with_smoothed(smoothed)) == RATES[3]


def test_of_equally_long_falls_the_first():
    smoothed = [2.0, 1.9, 1.7, 1.8, 1.5, 1.1, 1.3, 1.4, 1.5]
    assert suggest_rate(RATES, losses_with_smoothed(smoothed)) == RATES[1]


def test_a_fall_behind_the_minimum_does_not_count():
    smoothed = [2.0, 1.9, 0.5, 9.0, 8.0, 6.0, 4.0, 3.0, 1.0]
    assert suggest_rate(RATES, losses_with_smoothed(smoothed)) == RATES[1]


def test_the_slope_is_against_the_logarithm_of_the_rate():
    # Both falls are by 0.5, the first over one decade and the second over a tenth of it.
    rates = np.array([0.01, 0.1, 0.1 * 10**0.1, 1.0])
    assert suggest_rate(rates, losses_with_smoothed([2.0, 1.5, 1.0, 3.0])) == rates[1]
    # The second is twice the first, but over a decade instead of a quarter.
    rates = np.array([1.0, 10**0.25, 10**1.25])
    assert suggest_rate(rates, losses_with_smoothed([2.0, 1.8, 1.4])) == rates[0]


def test_losses_that_are_no_numbers_at_the_end_are_left_out():
    smoothed = losses_with_smoothed([2.0, 2.0, 1.9, 1.7, 1.2, 1.1])
    for bad in (math.nan, math.inf):
        assert suggest_rate(RATES, np.append(smoothed, [bad, 0.0, bad])) == RATES[3]
        # They do not count as the minimum: the fall behind it is longer, and yet ignored.
        rising = losses_with_smoothed([2.0, 1.0, 3.0, 2.8, 2.5, 2.0])
        assert suggest_rate(RATES, np.append(rising, [bad, 0.0, bad])) == RATES[0]


@given(st.lists(st.floats(0.1, 5), min_size=9, max_size=9))
def test_the_loss_does_fall_at_the_suggested_rate(losses):
    smoothed = smooth_losses(losses)
    if smoothed.argmin() == 0:
        with pytest.raises(InputError, match="the loss never fell below its first value"):
            suggest_rate(RATES, losses)
        return
    position = RATES.tolist().index(suggest_rate(RATES, losses))
    assert position < smoothed.argmin()
    assert smoothed[position + 1] < smoothed[position]


def test_a_rate_that_trains_is_found_for_a_quadratic():
    # Steps on w² / 2 shrink w for rates below 2, at best at 1.
    rates, weight, losses = rates_to_try(), 1.0, []
    for rate in rates:
        losses.append(weight**2 / 2)
        weight -= rate * weight
    assert 0.01 < suggest_rate(rates, losses) < 2


@pytest.mark.parametrize("losses", [[math.log(10)] * 9, list(range(1, 10)), [math.nan] * 9])
def test_a_loss_that_never_falls(losses):
    message = "never fell below its first value at learning rates from 0.0001 to 1, .* try other"
    with pytest.raises(InputError, match=message):
        suggest_rate(RATES, losses)


def test_not_as_many_losses_as_rates():
    with pytest.raises(InputError, match="there are 3 losses of 9 learning rates; when the test"):
        suggest_rate(RATES, [3.0, 2.0, 1.0])


@pytest.mark.parametrize("rates", [[], [0.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
def test_rates_that_do_not_rise(rates):
    with pytest.raises(InputError, match=r"learning rates must rise from above 0, but are \["):
        suggest_rate(np.array(rates), np.ones(len(rates)))
