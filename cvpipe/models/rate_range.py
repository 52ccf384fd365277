"""The learning-rate range test: raise the rate at every step until the loss explodes.

Here is what needs no network: which rates to try, when to stop, and which rate to suggest.
"""

import math
from collections.abc import Sequence

import numpy as np

from cvpipe.errors import InputError

# The test is over when the smoothed loss is so many times the first one, or the lowest.
EXPLODED_FROM_FIRST, EXPLODED_FROM_BEST = 3.0, 4.0


def rates_to_try(low: float = 1e-6, high: float = 10.0, steps: int = 100) -> np.ndarray:
    """Choose the learning rates of the test, one for each step.

    Each is the one before times a constant, since a rate is searched for by its order of
    magnitude. (The source raises it by equal differences.)

    Args:
        low: First rate, above 0.
        high: Last rate, above `low`.
        steps: How many, at least 2.

    Returns:
        `float64` array of shape `(steps,)`, rising.

    Raises:
        InputError: The limits are not in this order, or there are too few steps.

    Example:
        >>> rates_to_try(0.001, 1.0, 4).round(6).tolist()
        [0.001, 0.01, 0.1, 1.0]

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
    """
    if not 0 < low < high < math.inf:
        raise InputError(
            f"learning rates cannot rise from {low} to {high}; give a low one above 0 and a "
            "higher one."
        )
    if steps < 2:
        raise InputError(f"steps must be at least 2, not {steps}; 100 is usual.")
    return np.geomspace(low, high, steps)


def smooth_losses(losses: Sequence[float] | np.ndarray, beta: float = 0.98) -> np.ndarray:
    """Average each loss with those before it, the older ones less.

    Each weighs `beta` times what its successor weighs, and the weights sum to 1 from the first
    loss on. The average lags behind: of a long row it is about `1 / (1 - beta)` losses old.

    Args:
        losses: One per step.
        beta: At least 0, for the losses as they are, and below 1.

    Returns:
        `float64` array of as many losses. Behind one that is not finite none is.

    Raises:
        InputError: `beta` is out of range.

    Example:
        >>> smooth_losses([3.0, 0.0], beta=0.5).tolist()
        [3.0, 1.0]

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 3.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta must be at least 0 and below 1, not {beta}; 0.98 is usual.")
    smoothed, mean, total = np.empty(len(losses)), 0.0, 0.0
    for position, loss in enumerate(losses):
        total = beta * total + 1
        # As a correction of the mean, so that rounding does not make equal losses fall.
        mean += (float(loss) - mean) / total
        smoothed[position] = mean
    return smoothed


def diverged(losses: Sequence[float] | np.ndarray) -> bool:
    """Tell whether the loss has exploded, so that higher rates need not be tried.

    It has when the last smoothed loss is above three times the first or four times the lowest
    one, or when any loss is not a finite number.

    Args:
        losses: Of the steps so far, not smoothed; may be empty.

    References:
        CS231n 2017, lecture 6: a cost above three times the first is an explosion. The bound on
        the lowest is ours, for losses that had fallen far.
    """
    if not len(losses):
        return False
    smoothed = smooth_losses(losses)
    limit = min(EXPLODED_FROM_FIRST * smoothed[0], EXPLODED_FROM_BEST * smoothed.min())
    return not smoothed[-1] <= limit < math.inf  # also when one of them is no number


def suggest_rate(rates: np.ndarray, losses: Sequence[float] | np.ndarray) -> float:
    """Suggest the rate at which the loss falls most steeply.

    The slope is that of the smoothed loss against the logarithm of the rate. It is searched in
    the longest stretch in which the smoothed loss falls from step to step, up to where it is
    lowest; of equally long stretches in the first, which has the lower rates. The step with the
    rate there is what made the next loss lower. It is suggested as it is, not divided by
    anything. That smoothing lags makes it too high rather than too low.

    Args:
        rates: Learning rate of each step, rising.
        losses: Loss of each batch before its step was taken, not smoothed, as many as rates.
            From the first that is not finite on, they are left out.

    Returns:
        One of the `rates`.

    Raises:
        InputError: There are not as many losses as rates, the rates do not rise from above 0, or
            the smoothed loss never falls below the first.

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3,
        reads rates off the figure of the test; that the steepest fall decides is our rule.
    """
    _check_rates(rates, losses)
    smoothed = smooth_losses(losses)
    smoothed = smoothed[np.isfinite(smoothed)]  # a loss that is not finite spoils all behind it
    lowest = int(smoothed.argmin()) if len(smoothed) else 0
    if lowest == 0:
        raise InputError(
            f"the loss never fell below its first value at learning rates from {rates[0]:g} to "
            f"{rates[-1]:g}, so none can be suggested; try other rates, or check that the network "
            "can learn a few images by heart."
        )
    slopes = np.diff(smoothed[: lowest + 1]) / np.diff(np.log(rates[: lowest + 1]))
    start, end = _longest_run(slopes < 0)
    return float(rates[start + slopes[start:end].argmin()])


def _longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Find the longest run of true flags, the first of equals: its start and its end (excluded)."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    longest = (ends - starts).argmax()
    return int(starts[longest]), int(ends[longest])


def _check_rates(rates: np.ndarray, losses: Sequence[float] | np.ndarray) -> None:
    if len(rates) != len(losses):
        raise InputError(
            f"there are {len(losses)} losses of {len(rates)} learning rates; when the test ended "
            "early, pass only the rates that were tried."
        )
    if not len(rates) or not rates[0] > 0 or not (np.diff(rates) > 0).all():
        raise InputError(
            f"learning rates must rise from above 0, but are {np.asarray(rates).tolist()}; make "
            "them with rates_to_try."
        )
