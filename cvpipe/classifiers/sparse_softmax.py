"""Softmax regression with an L1 or elastic-net penalty, by an accelerated proximal gradient."""

import warnings

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from cvpipe.classifiers.losses import softmax_loss
from cvpipe.numerics import softmax


class SparseSoftmax(ClassifierMixin, BaseEstimator):
    """scikit-learn's `LogisticRegression(C, l1_ratio, solver="saga")`, solved in less time.

    It minimises `C * sum(loss) + l1_ratio * sum(|w|) + (1 - l1_ratio) / 2 * sum(w^2)`, where the
    loss is the cross-entropy of the softmax and the intercepts bear no penalty. Each step uses
    all rows, in two products of matrices; scikit-learn's solver takes them one at a time. Two
    classes have two columns of weights, not one.

    Args:
        C: Weight of the loss; smaller is more regularised.
        l1_ratio: Share of L1 in the penalty, from 0 to 1. With 1, many weights are zero.
        tol: A step stops the search for the minimum when, divided by its length, it is nowhere
            larger; or than a tenth of the penalty's weight, if that is less.
        max_iter: Largest number of steps.

    Attributes:
        classes_: Targets, sorted.
        coef_: `float64` array of shape `(num_classes, num_features)`.
        intercept_: `float64` array of shape `(num_classes,)`.
        n_iter_: Number of steps.

    References:
        Beck and Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse
        Problems", SIAM Journal on Imaging Sciences 2, 2009. O'Donoghue and Candes, "Adaptive
        Restart for Accelerated Gradient Schemes", Foundations of Computational Mathematics 15,
        2015. Zou and Hastie, "Regularization and Variable Selection via the Elastic Net",
        Journal of the Royal Statistical Society B 67, 2005.
    """

    def __init__(
        self,
        C: float = 1.0,  # noqa: N803 (scikit-learn's name)
        l1_ratio: float = 1.0,
        tol: float = 1e-4,
        max_iter: int = 2_000,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.max_iter = max_iter

    def fit(
        self, features: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "SparseSoftmax":
        """Fit on rows of shape `(n, num_features)` with classes `y` of shape `(n,)`.

        Args:
            features: Train rows.
            y: Their classes.
            sample_weight: Factor on the loss of each row.
        """
        rows, y = validate_data(self, features, y, dtype=np.float64)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, rows, dtype=np.float64)
        self.classes_, codes = np.unique(y, return_inverse=True)
        problem = _Problem(rows, codes, weights, self.C, self.l1_ratio)
        table, self.n_iter_ = problem.minimise(self.tol, self.max_iter)
        if self.n_iter_ == self.max_iter:
            warnings.warn(
                f"the minimum was not reached in {self.max_iter} steps", ConvergenceWarning,
                stacklevel=2,
            )  # fmt: skip
        self.coef_, self.intercept_ = np.ascontiguousarray(table[:-1].T), table[-1].copy()
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Score rows: the logarithms of the probabilities but for a constant in each row.

        Returns:
            Array of shape `(n,)` for two classes, otherwise `(n, num_classes)`.
        """
        scores = self._scores(features)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Compute probabilities; shape `(n, num_classes)`."""
        return softmax(self._scores(features))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Name the most probable class; shape `(n,)`."""
        best = self._scores(features).argmax(axis=1)
        return self.classes_[best]

    def _scores(self, features: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        rows = validate_data(self, features, reset=False, dtype=np.float64)
        return rows @ self.coef_.T + self.intercept_


class _Problem:
    """The function to be minimised; a table of weights has the intercepts in its last row."""

    def __init__(
        self, rows: np.ndarray, codes: np.ndarray, weights: np.ndarray, c: float, l1_ratio: float
    ) -> None:
        self.rows, self.codes = rows, codes
        self.shares = weights / weights.sum()
        self.one_hot = np.eye(codes.max() + 1)[codes]
        penalty = 1.0 / (c * weights.sum())
        self.l1, self.l2 = l1_ratio * penalty, (1.0 - l1_ratio) * penalty

    def scores(self, table: np.ndarray) -> np.ndarray:
        return self.rows @ table[:-1] + table[-1]

    def smooth_part(self, table: np.ndarray, scores: np.ndarray) -> float:
        loss = self.shares @ softmax_loss(scores, self.codes)
        return float(loss + self.l2 / 2 * (table[:-1] ** 2).sum())

    def gradient(self, table: np.ndarray, scores: np.ndarray) -> np.ndarray:
        errors = self.shares[:, None] * (softmax(scores) - self.one_hot)
        slopes = np.empty_like(table)
        slopes[:-1] = self.rows.T @ errors + self.l2 * table[:-1]
        slopes[-1] = errors.sum(axis=0)
        return slopes

    def shrink(self, table: np.ndarray, length: float) -> np.ndarray:
        """Move all weights towards zero, not the intercepts: the proximal step of L1."""
        shrunken = table.copy()
        sizes = np.maximum(np.abs(table[:-1]) - self.l1 * length, 0.0)
        shrunken[:-1] = np.sign(table[:-1]) * sizes
        return shrunken

    def minimise(self, tol: float, max_iter: int) -> tuple[np.ndarray, int]:
        """Find the best table, from zero; also count the steps."""
        table = ahead = np.zeros((self.rows.shape[1] + 1, self.one_hot.shape[1]))
        scores = ahead_scores = self.scores(table)
        enough = min(tol, 0.1 * (self.l1 + self.l2))
        momentum, length = 1.0, 1.0
        for number in range(1, max_iter + 1):
            new, new_scores, length = self._step(ahead, ahead_scores, length)
            if np.abs(new - ahead).max() <= enough * length:
                return new, number
            if ((ahead - new) * (new - table)).sum() > 0:  # it went past the minimum
                momentum = 1.0
            faster = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            push = (momentum - 1.0) / faster
            # Scores are linear in the table, so these need no product of matrices.
            ahead = new + push * (new - table)
            ahead_scores = new_scores + push * (new_scores - scores)
            table, scores, momentum = new, new_scores, faster
            length *= 1.1  # the curvature may be less from here on
        return table, max_iter

    def _step(
        self, table: np.ndarray, scores: np.ndarray, length: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Go downhill by the longest step that is sure to gain; also tell its length."""
        slopes, height = self.gradient(table, scores), self.smooth_part(table, scores)
        while True:
            new = self.shrink(table - length * slopes, length)
            new_scores = self.scores(new)
            way = new - table
            expected = height + (slopes * way).sum() + (way**2).sum() / (2.0 * length)
            if self.smooth_part(new, new_scores) <= expected + 1e-12 * abs(height):
                return new, new_scores, length
            length /= 2.0
