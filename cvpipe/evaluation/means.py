"""A share or a mean over images, with its interval."""

import math

import numpy as np

from cvpipe.evaluation.intervals import bootstrap, bounded_interval, clustered_wilson_interval


def mean_with_interval(
    values: np.ndarray,
    groups: np.ndarray,
    seed: int,
    num_resamples: int,
    largest: float = 1.0,
) -> tuple[float, float, float]:
    """Average one value per image and give the mean its 95 % interval.

    A share (values of 0 and `largest` alone) has the interval of `clustered_wilson_interval`,
    everything else that of `bounded_interval`, as in `score_predictions`.

    Args:
        values: From 0 to `largest`, `(n,)`; `bool` for a share.
        groups: The group of each image, `(n,)`.
        seed: Seed of the resamples, which a share does not need.
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
    if np.isin(values, (0, largest)).all():
        low, high = (largest * end for end in clustered_wilson_interval(values > 0, groups))
    else:
        resampled = bootstrap(
            lambda weights: (weights @ values / weights.sum(axis=1))[:, None],
            groups,
            num_resamples,
            np.random.default_rng(seed),
        )
        low, high = bounded_interval(mean, resampled[:, 0], groups, (0.0, largest))
    return mean, min(low, mean), max(high, mean)
