"""Fitted classifiers as arrays, applied by NumPy alone.

What an app needs of a fitted scikit-learn estimator is little: a few arrays, and what is done with
them one step after the other. Rows of features go in, probabilities come out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cvpipe.classifiers.kernel_svm import KERNELS
from cvpipe.classifiers.nearest_mean import nearness
from cvpipe.classifiers.neighbours import (
    METRICS,
    PIECE_ROWS,
    VOTES,
    exact_distances,
    prepare_rows,
    share_votes,
)
from cvpipe.errors import check_name
from cvpipe.numerics import softmax


class Step(NamedTuple):
    """One step of a classifier.

    Attributes:
        name: A key of `STEPS`.
        values: Arrays, numbers and words by name: the arguments of its function.
    """

    name: str
    values: Mapping[str, Any]


def apply_steps(steps: Sequence[Step], rows: np.ndarray) -> np.ndarray:
    """Classify rows of features.

    Args:
        steps: See `cvpipe.classifiers.to_steps.steps_of`.
        rows: Array of shape `(n, num_features)`, without NaN.

    Returns:
        Probabilities, shape `(n, num_classes)`.
    """
    for step in steps:
        rows = STEPS[step.name](rows, **step.values)
    return rows


def _scale(rows: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    # scikit-learn computes in the precision of the rows.
    return (rows - mean.astype(rows.dtype)) / scale.astype(rows.dtype)


def _linear(rows: np.ndarray, weights: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    return rows @ weights + intercepts


def _rectify(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0.0)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Turn scores into probabilities; of two classes, that of the second is enough."""
    if scores.shape[1] > 1:
        return softmax(scores)
    second = _sigmoid(scores)
    return np.hstack([1.0 - second, second])


def _platt(scores: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Turn each class's scores into probabilities, and these into some that sum to 1."""
    probabilities = _sigmoid(-(slopes * scores + offsets))
    if scores.shape[1] == 1:
        return np.hstack([1.0 - probabilities, probabilities])
    sums = probabilities.sum(axis=1, keepdims=True)
    uniform = np.full_like(probabilities, 1.0 / scores.shape[1])
    return np.divide(probabilities, sums, out=uniform, where=sums != 0)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # the exponential of 1,000 is infinite, and 0 is right
        return 1.0 / (1.0 + np.exp(-scores))


def _nearest_mean(rows: np.ndarray, metric: str, means: np.ndarray) -> np.ndarray:
    return as_columns(nearness(metric, rows.astype(np.float64), means.astype(np.float64)))


def _neighbours(
    rows: np.ndarray,
    metric: str,
    num_neighbours: int,
    vote: str,
    train: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """See `cvpipe.classifiers.neighbours.NearestNeighbours`, of which only the search differs."""
    check_name("metric", metric, METRICS)
    check_name("vote", vote, VOTES)
    if num_classes > len(codes):
        raise ValueError(f"{len(codes)} train rows cannot be of {num_classes} classes")
    asked = prepare_rows(metric, rows)
    apart = np.empty((len(rows), len(train)))
    for start in range(0, len(train), PIECE_ROWS):
        piece = prepare_rows(metric, train[start : start + PIECE_ROWS])
        for number, row in enumerate(asked):
            apart[number, start : start + PIECE_ROWS] = exact_distances(metric, row, piece)
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :num_neighbours]
    distances = np.take_along_axis(apart, nearest, axis=1)
    return share_votes(vote, distances, codes[nearest], weights[nearest], num_classes)


def _kernel_machine(
    rows: np.ndarray,
    kernel: str,
    gamma: float,
    vectors: np.ndarray,
    coefficients: np.ndarray,
    intercepts: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Score rows by a support vector machine; two classes have one score.

    Each pair of classes has a machine of its own. A class's score is the number of duels that it
    wins, plus a third at most for how clearly, as in scikit-learn's `SVC`.

    Args:
        rows: Of features.
        kernel: A key of `KERNELS`.
        gamma: See `Kernel`.
        vectors: Support vectors, class by class.
        coefficients: `(num_classes - 1, num_vectors)`: of a vector of class i, at j what it counts
            against class j, or j + 1 from i on.
        intercepts: One for each pair of classes.
        counts: How many vectors each class has.
    """
    kind = KERNELS[kernel]
    pairs = kind.compare(rows.astype(np.float64), vectors.astype(np.float64))
    products = kind.shape(pairs, gamma)
    if len(counts) == 2:
        return products @ coefficients.T + intercepts
    ends = np.cumsum(counts)
    own = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    sums, votes = np.zeros((2, len(rows), len(counts)))
    duels = [(i, j) for i in range(len(counts)) for j in range(i + 1, len(counts))]
    for (i, j), intercept in zip(duels, intercepts, strict=True):
        for_first = products[:, own[i]] @ coefficients[j - 1, own[i]]
        for_first += products[:, own[j]] @ coefficients[i, own[j]] + intercept
        sums[:, i] += for_first
        sums[:, j] -= for_first
        votes[:, i] += for_first >= 0
        votes[:, j] += for_first < 0
    return votes + sums / (3.0 * (np.abs(sums) + 1.0))


def _trees(
    rows: np.ndarray,
    baseline: np.ndarray,
    roots: np.ndarray,
    columns: np.ndarray,
    thresholds: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    values: np.ndarray,
    depth: int,
) -> np.ndarray:
    """Add up the leaves that rows fall into; a leaf is its own child.

    Args:
        rows: Of features.
        baseline: Scores to begin with, one for each class, or one for two.
        roots: Node of each tree: `(num_rounds, num_scores)`.
        columns: Of each node, the column that it looks at.
        thresholds: What goes to the left: this and less.
        left: Child of each node.
        right: The other child.
        values: Of each node.
        depth: How many steps lead to every leaf.
    """
    numbers = np.arange(len(rows))[:, None]
    nodes = np.broadcast_to(roots.ravel(), (len(rows), roots.size))
    for _ in range(min(depth, len(columns))):
        goes_left = rows[numbers, columns[nodes]] <= thresholds[nodes]
        nodes = np.where(goes_left, left[nodes], right[nodes])
    return baseline + values[nodes].reshape(len(rows), *roots.shape).sum(axis=1)


def as_columns(scores: np.ndarray) -> np.ndarray:
    """Give the single score of two classes a column of its own."""
    return scores[:, None] if scores.ndim == 1 else scores


STEPS: Mapping[str, Callable[..., np.ndarray]] = {
    "scale": _scale,
    "linear": _linear,
    "rectify": _rectify,
    "softmax": _softmax,
    "platt": _platt,
    "nearest_mean": _nearest_mean,
    "neighbours": _neighbours,
    "kernel_machine": _kernel_machine,
    "trees": _trees,
}
