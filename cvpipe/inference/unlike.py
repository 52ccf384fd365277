"""Scores that say how unlike the training images an image is; NumPy alone.

A classifier names every image with one of its classes, a photo of a cat as well. Each score here
is higher the less an image is like the training images:

- `probability`: 1 minus the largest probability;
- `energy`: minus the log of the summed exponentials of the logits, where a linear head is known;
- `distance`: how far the nearest training images are among the features of a backbone.

An image is called unlike the training images when a score is above its *bound*, which all but
`FLAGGED_FRACTION` of images like them do not exceed. What a score needs are plain arrays by name
(`parts`), so that they can be stored without code.
"""

import math
from collections.abc import Mapping

import numpy as np

from cvpipe.errors import InputError

SCORES = ("probability", "energy", "distance")
# The one that is asked where one must do; `docs/unlike.md` has the figures behind it.
DEFAULT_SCORE = "distance"
FLAGGED_FRACTION = 0.05
NUM_NEIGHBOURS = 5
# Similarities held at a time: 16 MB as float32.
BLOCK_VALUES = 4_000_000


def improbability(probabilities: np.ndarray) -> np.ndarray:
    """Score images by 1 minus their largest probability.

    Args:
        probabilities: Array of shape `(n, num_classes)`; rows sum to 1.

    Returns:
        Array of shape `(n,)` in [0, 1).

    References:
        Hendrycks and Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
        Examples in Neural Networks", ICLR 2017, section 2.
    """
    return 1.0 - probabilities.max(axis=1)


def energy(logits: np.ndarray) -> np.ndarray:
    """Score images by the energy of their logits, at temperature 1.

    Adding a number to all logits of an image leaves its probabilities as they are and changes its
    energy, so it is only meaningful for logits as they were fitted: of two classes cvpipe's
    heads have the first logit 0.

    Args:
        logits: Array of shape `(n, num_classes)`.

    Returns:
        `float64` array of shape `(n,)`: minus the log of the summed exponentials.

    References:
        Liu, Wang, Owens and Li, "Energy-based Out-of-distribution Detection", NeurIPS 2020,
        section 3.1, equation 4.
    """
    logits = np.asarray(logits, dtype=np.float64)
    largest = logits.max(axis=1, keepdims=True)  # no exponential overflows
    return -(largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1)))


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Scale each row to length 1; a row of zeros stays.

    Args:
        features: Array of shape `(n, num_features)`.

    Returns:
        `float32` array of the same shape.
    """
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


def neighbour_distance(
    features: np.ndarray, train_rows: np.ndarray, num_neighbours: int = NUM_NEIGHBOURS
) -> np.ndarray:
    """Score images by the distance of their features to those of the training images.

    The distance is 1 minus the cosine of the angle to the neighbour of the given rank. The paper
    takes the Euclidean distance of the rows of length 1, which orders images in the same way; this
    one does not lose the digits of small distances to a square root.

    Args:
        features: Array of shape `(n, num_features)`.
        train_rows: `unit_rows` of the training images, `(num_train, num_features)`.
        num_neighbours: Rank of the neighbour; of fewer training images, the farthest.

    Returns:
        `float64` array of shape `(n,)` in [0, 2], so that a table keeps every bit of it; the
        sums are those of `float32`.

    Raises:
        InputError: The rows have another length than those of training, there is no training
            image, or the rank is not positive.

    References:
        Sun, Ming, Zhu and Li, "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML
        2022, section 3.
    """
    if not len(train_rows) or features.shape[1:] != train_rows.shape[1:] or num_neighbours < 1:
        raise InputError(
            f"cannot rank {num_neighbours} neighbours of features of shape {features.shape} among "
            f"training rows of shape {train_rows.shape}; pass rows of one length and a rank of at "
            "least 1."
        )
    rank = min(num_neighbours, len(train_rows))
    rows = unit_rows(features)
    distances = np.empty(len(rows))
    size = max(1, BLOCK_VALUES // len(train_rows))
    for start in range(0, len(rows), size):
        similarities = rows[start : start + size] @ train_rows.T
        nearest = np.partition(similarities, -rank, axis=1)[:, -rank]
        distances[start : start + size] = 1.0 - nearest
    return np.clip(distances, 0.0, 2.0)


def score_images(
    parts: Mapping[str, np.ndarray], probabilities: np.ndarray, features: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute every score that the parts of a contender allow.

    Args:
        parts: `kernel` `(num_features, num_classes)` and `bias` `(num_classes,)` of a linear head,
            for the energy; `train_rows`, see `neighbour_distance`, for the distance. Either or
            both may be missing.
        probabilities: Array of shape `(n, num_classes)`.
        features: Array of shape `(n, num_features)`, what the head and the rows are of.

    Returns:
        Some of `SCORES`, in their order, to arrays of shape `(n,)`.
    """
    scores = {"probability": improbability(probabilities)}
    if "kernel" in parts:
        scores["energy"] = energy(features @ parts["kernel"] + parts["bias"])
    if "train_rows" in parts:
        scores["distance"] = neighbour_distance(features, parts["train_rows"])
    return scores


def bound_of(scores: np.ndarray, flagged_fraction: float = FLAGGED_FRACTION) -> float:
    """Choose the bound that a given share of images like these exceed at most.

    The bound is one of the scores, so that a further image, if it comes about like these, is above
    it with at most that probability, averaged over such samples. Of too few scores for that
    (fewer than 19 for 5 %) the largest is taken, which promises less.

    Every image counts once, also where several are of one group: the share that is promised is one
    of images.

    Args:
        scores: Scores of images that the classifier was not fitted to, `(n,)`.
        flagged_fraction: The share, in (0, 1).

    Raises:
        InputError: There is no score, one is not a number, or the share is not within (0, 1).

    Example:
        >>> bound_of(np.arange(1.0, 100.0))  # of 99: the 95th
        95.0

    References:
        Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section 4.2
        (the rank of a further score among exchangeable ones).
    """
    if not 0 < flagged_fraction < 1:
        raise InputError(f"flagged fraction {flagged_fraction} is not between 0 and 1; pass 0.05.")
    if not len(scores) or not np.isfinite(scores).all():
        raise InputError(
            f"a bound needs finite scores, but got {len(scores)}, of which "
            f"{int(np.isfinite(scores).sum())} are finite; score at least one image."
        )
    # Rounded, because (1 - 0.05) * 100 is a little less or more than 95.
    rank = math.ceil(round((1 - flagged_fraction) * (len(scores) + 1), 9))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])
