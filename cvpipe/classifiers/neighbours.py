"""Classification by the vote of the nearest train rows, with a rule for every tie."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from cvpipe.classifiers.parameters import Setting
from cvpipe.errors import InputError, check_name

METRICS = ("l2", "l1", "cosine")
VOTES = ("majority", "distance")
# Distances held at a time: 32 MB, and a few copies of them.
BLOCK_NUMBERS = 2**22
# Train rows turned to float64 at a time: 32 MB at a thousand columns.
PIECE_ROWS = 4096
# Votes that differ by less count as equal: sums of weights are rounded.
TIE = 1e-9


class NearestNeighbours(ClassifierMixin, BaseEstimator):
    """The classes of the nearest train rows vote; the shares of the votes are the probabilities.

    - Of train rows at equal distance the earlier one counts as nearer.
    - Of classes with equally many votes the one with the nearest voter wins. Its share is larger
      by a billionth, so that the largest probability follows the rule.
    - Weighted by distance, a vote counts `1 / distance`; where some neighbours are at distance
      zero, only they vote.

    A matrix product rules out the rows that are far away; the distances of the rest, which decide,
    are computed pair by pair. So neither the other rows nor the number of threads changes a bit.

    Args:
        metric: `"l2"`: Euclidean. `"l1"`: sum of absolute differences. `"cosine"`: one minus the
            cosine of the angle; a row of zeros has distance 0 to its like and 1 to all others.
        num_neighbours: How many vote; all train rows if they are fewer.
        vote: `"majority"` or `"distance"`.

    Attributes:
        classes_: Targets, sorted.
        rows_: The train rows, `float32` or `float64`, shape `(n, num_features)`.
        codes_: Position of each train row's class, `int64`, shape `(n,)`.
        weights_: What the vote of each train row counts, shape `(n,)`.

    References:
        Lecture 2 (k-nearest neighbours; the rule for ties is ours). Dudani, "The
        Distance-Weighted k-Nearest-Neighbor Rule", IEEE Transactions on Systems, Man, and
        Cybernetics 6, 1976 (whose weights fall linearly with the distance).
    """

    def __init__(self, metric: str = "l2", num_neighbours: int = 1, vote: str = "majority") -> None:
        self.metric = metric
        self.num_neighbours = num_neighbours
        self.vote = vote

    def fit(
        self, features: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "NearestNeighbours":
        """Keep rows of shape `(n, num_features)` with classes `y` of shape `(n,)`.

        Args:
            features: Train rows.
            y: Their classes.
            sample_weight: What the vote of each train row counts, 1 if nothing is given; a row
                without weight is left out.

        Raises:
            InputError: A setting is not possible.
        """
        check_name("metric", self.metric, METRICS)
        check_name("vote", self.vote, VOTES)
        if self.num_neighbours < 1:
            raise InputError(f"num_neighbours is {self.num_neighbours}, but must be at least 1.")
        rows, y = validate_data(self, features, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        self.classes_, codes = np.unique(y, return_inverse=True)
        voters = weights > 0
        self.rows_, self.codes_, self.weights_ = rows[voters], codes[voters], weights[voters]
        return self

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Compute the share of each class in the votes; shape `(n, num_classes)`."""
        check_is_fitted(self)
        rows = validate_data(self, features, reset=False, dtype=[np.float32, np.float64])
        distances, nearest = find_neighbours(self.metric, self.rows_, rows, self.num_neighbours)
        return share_votes(
            self.vote, distances, self.codes_[nearest], self.weights_[nearest], len(self.classes_)
        )

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Name the class with the most votes; shape `(n,)`."""
        most = self.predict_proba(features).argmax(axis=1)
        return self.classes_[most]


def find_neighbours(
    metric: str, train: np.ndarray, rows: np.ndarray, num_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest train rows of each row, the nearest first.

    Args:
        metric: One of `METRICS`.
        train: Array of shape `(n, num_features)`.
        rows: Array of shape `(m, num_features)`.
        num_neighbours: How many; all train rows if they are fewer.

    Returns:
        Distances, `float64`, and positions among the train rows, both of shape `(m, k)`.
    """
    k = min(num_neighbours, len(train))
    distances, nearest = np.empty((len(rows), k)), np.empty((len(rows), k), dtype=np.int64)
    block_rows = max(1, BLOCK_NUMBERS // len(train))
    for start in range(0, len(rows), block_rows):
        block = prepare_rows(metric, rows[start : start + block_rows])
        roughly, slack = _rough_distances(metric, train, block)
        # Whatever may be among the nearest k in truth.
        bound = np.partition(roughly, k - 1, axis=1)[:, k - 1] + slack
        for number, row in enumerate(block):
            near = np.flatnonzero(roughly[number] <= bound[number])
            exact = exact_distances(metric, row, prepare_rows(metric, train[near]))
            first = np.argsort(exact, kind="stable")[:k]
            distances[start + number], nearest[start + number] = exact[first], near[first]
    return distances, nearest


def prepare_rows(metric: str, rows: np.ndarray) -> np.ndarray:
    """Turn rows to `float64`; for the cosine, scale them to length one.

    Then half the squared Euclidean distance is one minus the cosine. An extra column is 1 for
    rows of zeros, so that they lie at a right angle to all others.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float64)  # the layout orders the sums below
    if metric != "cosine":
        return rows
    largest = np.abs(rows).max(axis=1, keepdims=True)  # against overflow of the squares
    is_zero = largest == 0
    scaled = rows / np.where(is_zero, 1.0, largest)
    lengths = np.sqrt((scaled**2).sum(axis=1, keepdims=True))
    return np.hstack([scaled / np.where(is_zero, 1.0, lengths), is_zero])


def _rough_distances(
    metric: str, train: np.ndarray, block: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute distances to all train rows, squared but for L1, and how wrong a bound may be."""
    roughly = np.empty((len(block), len(train)))
    own = (block**2).sum(axis=1)
    longest = 0.0
    for start in range(0, len(train), PIECE_ROWS):
        piece = prepare_rows(metric, train[start : start + PIECE_ROWS])
        part = roughly[:, start : start + PIECE_ROWS]
        if metric == "l1":
            part[:] = cdist(block, piece, "cityblock")
        else:
            squares = (piece**2).sum(axis=1)
            longest = max(longest, float(squares.max()))
            part[:] = own[:, None] + squares - 2.0 * (block @ piece.T)
    # A sum of p rounded products is wrong by p units in the last place of |x| |y| at most
    # (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1).
    unit = np.finfo(np.float64).eps * (block.shape[1] + 4)
    if metric == "l1":  # of p differences, all positive: of what they sum to
        return roughly, 2.0 * unit * roughly.max(axis=1)
    return roughly, 4.0 * unit * (np.sqrt(own) + np.sqrt(longest)) ** 2


def exact_distances(metric: str, row: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Compute the distances of one row to train rows, pair by pair.

    Args:
        metric: One of `METRICS`.
        row: Of `prepare_rows`, shape `(num_columns,)`.
        train: Of `prepare_rows`, shape `(n, num_columns)`.

    Returns:
        `float64` array of shape `(n,)`. Which of two train rows is nearer may hang on the last
        bit, so whoever decides by distances has to compute them here.
    """
    apart = train - row
    if metric == "l1":
        return np.abs(apart).sum(axis=1)
    squares = np.vecdot(apart, apart)
    if metric == "l2":
        return np.sqrt(squares)
    # The last column says which rows are zero; lengths of one are rounded.
    return np.where(apart[:, -1] == 0, squares / 2, 1.0)


def share_votes(
    vote: str, distances: np.ndarray, codes: np.ndarray, weights: np.ndarray, num_classes: int
) -> np.ndarray:
    """Turn the neighbours of rows into shares of votes.

    Args:
        vote: One of `VOTES`.
        distances: Of the neighbours, rising; shape `(m, k)`.
        codes: Their classes, as `int`; shape `(m, k)`.
        weights: What their votes count; shape `(m, k)`.
        num_classes: Number of classes.

    Returns:
        `float64` array of shape `(m, num_classes)`; rows sum to 1.
    """
    if vote == "distance":
        # Relative to the nearest, so that no vote overflows; the shares are the same. At distance
        # zero a vote counts 1, and beside it all others 0.
        is_apart = distances > 0
        closeness = np.ones_like(distances)
        np.divide(distances[:, :1], distances, out=closeness, where=is_apart)
        weights = weights * closeness
    rows = np.arange(len(codes))
    cells = (rows[:, None] * num_classes + codes).ravel()
    size = len(codes) * num_classes
    votes = np.bincount(cells, weights.ravel(), size).reshape(-1, num_classes)
    most = votes.max(axis=1, keepdims=True)
    leads = votes >= most * (1.0 - TIE)
    tied = leads.sum(axis=1) > 1
    first_voter = leads[rows[:, None], codes].argmax(axis=1)
    votes[rows[tied], codes[rows, first_voter][tied]] = (most[tied] * (1.0 + TIE))[:, 0]
    return votes / votes.sum(axis=1, keepdims=True)


def sweep_neighbours(metric: str, features: np.ndarray) -> Any:
    """Make what predicts held-out rows at many settings, their neighbours found once.

    Args:
        metric: One of `METRICS`.
        features: All rows of a search, shape `(n, num_features)`.

    Returns:
        See `cvpipe.classifiers.table.Classifier.sweep`; settings have `k` and `vote`.
    """

    def predict(
        settings: Sequence[Setting],
        train: np.ndarray,
        held_out: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray | None,
    ) -> Iterator[np.ndarray]:
        most = max(int(setting["k"]) for setting in settings)
        distances, nearest = find_neighbours(metric, features[train], features[held_out], most)
        classes, codes = np.unique(targets[train], return_inverse=True)
        own_weights = np.ones(len(train)) if weights is None else weights[train]
        codes, own_weights = codes[nearest], own_weights[nearest]
        for setting in settings:
            k, vote = int(setting["k"]), str(setting["vote"])
            voters = distances[:, :k], codes[:, :k], own_weights[:, :k]
            yield classes[share_votes(vote, *voters, len(classes)).argmax(axis=1)]

    return predict
