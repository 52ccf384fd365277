"""A share or a mean over images, with its interval."""

import math

import numpy as np

from cvpipe.evaluation.intervals import ROUNDING, bootstrap, percentile_interval, wilson_interval


def mean_with_interval(
    values: np.ndarray,
    groups: np.ndarray,
    seed: int,
    num_resamples: int,
    largest: float = 1.0,
) -> tuple[float, float, float]:
    """Average one value per image and give the mean its 95 % interval.

    A share (values of 0 and `largest` alone) of images from different groups has Wilson's
    interval. Everything else has that of the clustered bootstrap; where this shows no spread,
    Wilson's takes over, with the number of groups for n, as in `score_predictions`.

    Args:
        values: From 0 to `largest`, `(n,)`; `bool` for a share.
        groups: The group of each image, `(n,)`.
        seed: Seed of the resamples.
        num_resamples: Number of bootstrap resamples.
        largest: The largest value that an image could have, above 0.

    Returns:
        `(mean, low, high)`; all NaN without images.

    Example:
        >>> right = np.array([True] * 9 + [False])
        >>> [round(end, 3) for end in mean_with_interval(right, np.arange(10), 0, 1000)]
        [0.9, 0.596, 0.982]
    """
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    num_groups = len(np.unique(groups))
    low = high = math.nan
    if num_groups < len(values) or not np.isin(values, (0, largest)).all():
        resampled = bootstrap(
            lambda weights: (weights @ values / weights.sum(axis=1))[:, None],
            groups,
            num_resamples,
            np.random.default_rng(seed),
        )
        low, high = percentile_interval(resampled[:, 0])
    # `not (a > b)` instead of `a <= b`, so that a NaN counts as no spread.
    if not high - low > ROUNDING:
        share = min(mean / largest, 1.0)  # but for rounding
        low, high = (largest * end for end in wilson_interval(share * num_groups, num_groups))
    return mean, min(low, mean), max(high, mean)
