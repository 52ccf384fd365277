"""A support vector machine with a Gaussian kernel, computed as matrix products.

scikit-learn's `SVC` does the fitting. Left to itself it computes the kernel one pair of rows at
a time; on rows of a thousand numbers that is nearly all its time, and one product of matrices
is many times faster. A module of its own, because a stored classifier is found again by it.
"""

from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC

# Rows predicted at a time: the kernel with 100,000 train rows then takes 200 MB.
BLOCK_ROWS = 256


class GaussianSVM(ClassifierMixin, BaseEstimator):
    """`SVC(C, kernel="rbf", gamma="scale")` with the kernel matrix computed at once.

    Fitting holds one number of 8 bytes for each pair of rows: 29 MB for 1,900 rows, 800 MB for
    10,000.

    Args:
        C: Weight of the mistakes on train rows; smaller is more regularised.

    Attributes:
        classes_: Targets, sorted.
        gamma_: `1 / (number of columns * variance of all numbers)`; 1 when that is not finite.
        support_: Positions of the support vectors among the train rows.
        support_vectors_: `float64` array of shape `(num_vectors, num_features)`.

    References:
        Cortes and Vapnik, "Support-Vector Networks", Machine Learning 20, 1995. Chang and Lin,
        "LIBSVM", ACM Transactions on Intelligent Systems and Technology 2, 2011.
    """

    def __init__(self, C: float = 1.0) -> None:  # noqa: N803 (scikit-learn's name)
        self.C = C

    def fit(self, features: np.ndarray, targets: np.ndarray) -> "GaussianSVM":
        """Fit on rows of shape `(n, num_features)` with `int` targets of shape `(n,)`."""
        rows = np.asarray(features, dtype=np.float64)
        variance = rows.shape[1] * rows.var()
        self.gamma_ = float(1.0 / variance) if variance else 1.0
        kernel = rbf_kernel(rows, gamma=self.gamma_)
        self.svm_ = SVC(C=self.C, kernel="precomputed").fit(kernel, targets)
        self.classes_ = self.svm_.classes_
        self.support_ = self.svm_.support_
        self.support_vectors_ = rows[self.support_]
        self.num_rows_ = len(rows)
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Score rows; shape `(n,)` for two classes, otherwise `(n, num_classes)`."""
        return self._in_blocks(self.svm_.decision_function, features)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Name targets; of several classes the one that wins most duels, as in `SVC`."""
        return self._in_blocks(self.svm_.predict, features)

    def _in_blocks(
        self, function: Callable[[np.ndarray], np.ndarray], features: np.ndarray
    ) -> np.ndarray:
        rows = np.asarray(features, dtype=np.float64)
        starts = range(0, max(len(rows), 1), BLOCK_ROWS)
        blocks = [self._kernel(rows[start : start + BLOCK_ROWS]) for start in starts]
        return np.concatenate([function(block) for block in blocks])

    def _kernel(self, rows: np.ndarray) -> np.ndarray:
        """Compute the kernel with all train rows, of which only the support vectors count."""
        kernel = np.zeros((len(rows), self.num_rows_))
        kernel[:, self.support_] = rbf_kernel(rows, self.support_vectors_, gamma=self.gamma_)
        return kernel
