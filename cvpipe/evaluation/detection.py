"""How well a score tells images of elsewhere from test images, with intervals.

Images of elsewhere are called *foreign*. Test images come in groups, which are drawn whole; each
foreign image is a group of its own, because nothing is known of it.
"""

import numpy as np

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import (
    NUM_RESAMPLES,
    block_sizes,
    bootstrap_weights,
    bounded_interval,
    effective_groups,
)
from cvpipe.evaluation.metrics import roc_auc


def area_with_interval(
    test_scores: np.ndarray,
    foreign_scores: np.ndarray,
    test_groups: np.ndarray,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float, float]:
    """Compute the area under the ROC curve of a score, with its 95 % interval.

    The area is the probability that a foreign image has a higher score than a test image, ties
    counting one half: 1 is a perfect score, 0.5 chance, less than that worse than chance.

    Args:
        test_scores: Array of shape `(n,)`.
        foreign_scores: Array of shape `(m,)`.
        test_groups: One group per test image, `(n,)`.
        seed: Seed of the resamples.
        num_resamples: Number of resamples. Both samples are drawn anew each time, each by itself.

    Returns:
        Value, low, high; see `bounded_interval`, for which the groups of the smaller sample
        count.

    Raises:
        InputError: A sample is empty, or there is not one resample.
    """
    if not len(test_scores) or not len(foreign_scores) or num_resamples < 1:
        raise InputError(
            f"an area needs images of both kinds and resamples, but got {len(test_scores)} test "
            f"images, {len(foreign_scores)} foreign ones and {num_resamples} resamples."
        )
    scores = np.concatenate([test_scores, foreign_scores]).astype(np.float64)
    columns = np.column_stack([-scores, scores])
    is_foreign = np.repeat([0, 1], [len(test_scores), len(foreign_scores)])
    rng = np.random.default_rng(seed)
    resampled = []
    for size in block_sizes(num_resamples, len(scores)):
        drawn = bootstrap_weights(test_groups, size, rng)
        foreign = bootstrap_weights(np.arange(len(foreign_scores)), size, rng)
        resampled.append(roc_auc(is_foreign, columns, np.hstack([drawn, foreign])))
    value = float(roc_auc(is_foreign, columns))
    samples = (np.asarray(test_groups), np.arange(len(foreign_scores)))
    smaller = min(samples, key=effective_groups)
    low, high = bounded_interval(value, np.concatenate(resampled), smaller)
    return value, min(low, value), max(high, value)
