"""Classification by the nearest class mean: the simplest thing that learns."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from cvpipe.classifiers.neighbours import METRICS, prepare_rows
from cvpipe.errors import InputError, check_name


class NearestMean(ClassifierMixin, BaseEstimator):
    """A row belongs to the class whose mean is nearest.

    scikit-learn's `NearestCentroid` has the same idea, but its probabilities come from another
    model than its answers, and it refuses rows that do not differ.

    Args:
        metric: `"l2"`, `"l1"`, or `"cosine"`: Euclidean between rows of length one and their
            means.

    Attributes:
        classes_: Targets, sorted.
        means_: `float64` array of shape `(num_classes, num_features)`; for the cosine with the
            extra column of `prepare_rows`.

    References:
        Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 2nd edition,
        2009, section 18.2 (the nearest centroid, there after standardisation).
    """

    def __init__(self, metric: str = "l2") -> None:
        self.metric = metric

    def fit(
        self, features: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "NearestMean":
        """Average the rows of each class.

        Args:
            features: Train rows of shape `(n, num_features)`.
            y: Their classes, shape `(n,)`.
            sample_weight: Of each row in the mean of its class. Weights of classes change
                nothing.

        Raises:
            InputError: There is no such metric, or there is only one class.
        """
        check_name("metric", self.metric, METRICS)
        rows, y = validate_data(self, features, y, dtype=np.float64)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        rows, y, weights = rows[weights > 0], y[weights > 0], weights[weights > 0]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                "the nearest class mean needs at least two classes, but got one class."
            )
        prepared = prepare_rows(self.metric, rows)
        members = [codes == code for code in range(len(self.classes_))]
        self.means_ = np.stack(
            [np.average(prepared[own], axis=0, weights=weights[own]) for own in members]
        )
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Compute how much nearer the mean of each class is than the nearest other one.

        Returns:
            Array of shape `(n,)` for two classes (positive: the second one), otherwise of shape
            `(n, num_classes)`.
        """
        check_is_fitted(self)
        rows = validate_data(self, features, reset=False, dtype=np.float64)
        return nearness(self.metric, rows, self.means_)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Name the class with the nearest mean; of several, the first."""
        scores = self.decision_function(features)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[scores.argmax(axis=1)]


def nearness(metric: str, rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Compute how much nearer each mean is than the nearest other one.

    Args:
        metric: One of `METRICS`.
        rows: `float64` array of shape `(n, num_features)`.
        means: `NearestMean.means_`.

    Returns:
        See `NearestMean.decision_function`.
    """
    prepared = prepare_rows(metric, rows)
    length = _sum_of_differences if metric == "l1" else _euclidean_length
    distances = np.stack([length(prepared - mean) for mean in means], axis=1)
    if len(means) == 2:
        return distances[:, 0] - distances[:, 1]
    nearest = np.sort(distances, axis=1)
    is_nearest = distances.argmin(axis=1)[:, None] == np.arange(len(means))
    return np.where(is_nearest, nearest[:, 1:2], nearest[:, :1]) - distances


def _sum_of_differences(apart: np.ndarray) -> np.ndarray:
    return np.abs(apart).sum(axis=1)


def _euclidean_length(apart: np.ndarray) -> np.ndarray:
    return np.sqrt(np.vecdot(apart, apart))
