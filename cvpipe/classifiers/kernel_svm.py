"""Support vector machines whose kernel is computed as a matrix, not pair by pair.

scikit-learn's `SVC` does the fitting. Left to itself it computes a Gaussian kernel one pair of
rows at a time; on rows of a thousand numbers that is nearly all its time, and one product of
matrices is many times faster. The kernels for histograms, chi-squared and intersection, it does
not have at all.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.svm import SVC
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data

from cvpipe.classifiers.parameters import Setting
from cvpipe.errors import InputError, check_name

# Rows predicted at a time: the kernel with 100,000 train rows then takes 200 MB.
BLOCK_ROWS = 256
# Numbers that the sums over columns work on at a time: two buffers of 128 kB, near the core.
TILE_NUMBERS = 2**15


@dataclass(frozen=True)
class Kernel:
    """How a kernel comes from what is computed of each pair of rows.

    Attributes:
        compare: Computes a number of each pair: from rows of shape `(n, num_features)` and
            `(m, num_features)` to `(n, m)`, for instance squared distances.
        unit: What these numbers are measured in, from the train rows and their pairs.
        shape: Makes the kernel from the numbers in that unit, times `gamma_factor`.
    """

    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unit: Callable[[np.ndarray, np.ndarray], float]
    shape: Callable[[np.ndarray, float], np.ndarray]


class KernelSVM(ClassifierMixin, BaseEstimator):
    """A support vector machine with the kernel matrix computed at once.

    - `"rbf"`: `exp(-gamma * sum((x - y)^2))`; `gamma` is `gamma_factor` times scikit-learn's
      "scale", `1 / (number of columns * variance of all numbers)`. At the factor 1 this is
      `SVC(C, kernel="rbf", gamma="scale")`.
    - `"chi2"`: `exp(-gamma * sum((x - y)^2 / (x + y)))`; `gamma` is `gamma_factor` divided by the
      mean of the sum over all pairs of train rows.
    - `"intersection"`: `gamma * sum(min(x, y))`; `gamma` is 1 divided by the mean of `sum(x)`, so
      that `C` means the same whatever unit the histograms have. There is no factor.

    The last two are for histograms: their numbers must not be negative. They are summed up in
    `float32`, which is right to about 1e-6 of the sum, and skip what is zero in a row.

    Fitting holds two numbers of 8 bytes for each pair of rows: 58 MB for 1,900 rows, 1.6 GB for
    10,000. All pairs of 2,500 rows of 5,000 numbers, a third of them not zero, take about 7 seconds
    of one core for chi-squared and 5 for the intersection.

    Args:
        C: Weight of the mistakes on train rows; smaller is more regularised.
        kernel: One of `KERNELS`.
        gamma_factor: How much narrower the kernel is than usual; smaller is smoother.

    Attributes:
        classes_: Targets, sorted.
        gamma_: The factor in front of the sum; 1 when the train rows do not differ.
        support_: Positions of the support vectors among the train rows.
        support_vectors_: `float64` array of shape `(num_vectors, num_features)`.

    References:
        Cortes and Vapnik, "Support-Vector Networks", Machine Learning 20, 1995. Chang and Lin,
        "LIBSVM", ACM Transactions on Intelligent Systems and Technology 2, 2011. Zhang,
        Marszalek, Lazebnik and Schmid, "Local Features and Kernels for Classification of Texture
        and Object Categories", International Journal of Computer Vision 73, 2007 (chi-squared
        with the mean distance). Swain and Ballard, "Color Indexing", International Journal of
        Computer Vision 7, 1991, and Maji, Berg and Malik, "Classification Using Intersection
        Kernel Support Vector Machines Is Efficient", CVPR 2008 (intersection).
    """

    def __init__(
        self,
        C: float = 1.0,  # noqa: N803 (scikit-learn's name)
        kernel: str = "rbf",
        gamma_factor: float = 1.0,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma_factor = gamma_factor

    def fit(
        self, features: np.ndarray, y: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> "KernelSVM":
        """Fit on rows of shape `(n, num_features)` with classes `y` of shape `(n,)`.

        Args:
            features: Train rows.
            y: Their classes.
            sample_weight: Factor on `C` for each row.

        Raises:
            InputError: There is no such kernel, or it cannot take negative numbers.
        """
        kernel = KERNELS[check_name("kernel", self.kernel, KERNELS)]
        rows, y = validate_data(self, features, y, dtype=np.float64)
        check_sign(self.kernel, rows)
        pairs = kernel.compare(rows, rows)
        self.gamma_ = self.gamma_factor / kernel.unit(rows, pairs)
        self.svm_ = SVC(C=self.C, kernel="precomputed")
        self.svm_.fit(kernel.shape(pairs, self.gamma_), y, sample_weight)
        self.classes_ = self.svm_.classes_
        self.support_ = self.svm_.support_
        self.support_vectors_ = rows[self.support_]
        self.num_rows_ = len(rows)
        return self

    def decision_function(self, features: np.ndarray) -> np.ndarray:
        """Score rows; shape `(n,)` for two classes, otherwise `(n, num_classes)`."""
        check_is_fitted(self)
        return self._in_blocks(self.svm_.decision_function, features)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Name targets; of several classes the one that wins most duels, as in `SVC`."""
        check_is_fitted(self)
        return self._in_blocks(self.svm_.predict, features)

    def _in_blocks(
        self, function: Callable[[np.ndarray], np.ndarray], features: np.ndarray
    ) -> np.ndarray:
        rows = validate_data(self, features, reset=False, dtype=np.float64)
        check_sign(self.kernel, rows)
        starts = range(0, len(rows), BLOCK_ROWS)
        blocks = [self._kernel(rows[start : start + BLOCK_ROWS]) for start in starts]
        return np.concatenate([function(block) for block in blocks])

    def _kernel(self, rows: np.ndarray) -> np.ndarray:
        """Compute the kernel with all train rows, of which only the support vectors count."""
        kernel = KERNELS[self.kernel]
        values = np.zeros((len(rows), self.num_rows_))
        pairs = kernel.compare(rows, self.support_vectors_)
        values[:, self.support_] = kernel.shape(pairs, self.gamma_)
        return values

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = self.kernel != "rbf"
        return tags


def check_sign(kernel: str, rows: np.ndarray) -> None:
    """Check that a kernel for histograms gets no negative number.

    Raises:
        InputError: It does.
    """
    if kernel != "rbf" and rows.min() < 0:
        raise InputError(
            f"Negative values in data passed to the {kernel!r} kernel, which is for histograms: "
            f"the smallest is {rows.min():g}; use the classifier 'rbf_svm', or features that count."
        )


def squared_distances_of_pairs(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute `sum((x - y)^2)` of each pair by one product of matrices.

    Args:
        rows: `float64` array of shape `(n, num_features)`.
        others: `float64` array of shape `(m, num_features)`.

    Returns:
        Array of shape `(n, m)`, from 0; 0 for a row and itself.
    """
    lengths = np.vecdot(others, others)
    own = lengths if rows is others else np.vecdot(rows, rows)
    distances = rows @ others.T
    distances *= -2.0
    distances += own[:, None]
    distances += lengths
    np.maximum(distances, 0.0, out=distances)
    if rows is others:
        np.fill_diagonal(distances, 0.0)
    return distances


def chi2_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute `sum((x - y)^2 / (x + y))` of each pair, where 0 / 0 counts as 0.

    It equals `sum(x) + sum(y) - 4 * sum(x * y / (x + y))`, of which the last sum needs only the
    columns where `x` is not zero.

    Args:
        rows: Array of shape `(n, num_features)`, nothing negative.
        others: Array of shape `(m, num_features)`, nothing negative.

    Returns:
        `float32` array of shape `(n, m)`, from 0.
    """

    def half_harmonic(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
        np.add(y, x[:, None], out=out)
        np.divide(y, out, out=out)
        return x @ out

    common = _sum_over_columns(rows, others, half_harmonic)
    totals = rows.sum(axis=1)[:, None] + others.sum(axis=1)
    return np.maximum(totals - 4.0 * common, 0.0, dtype=np.float32)


def intersections(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute `sum(min(x, y))` of each pair.

    Args:
        rows: As in `chi2_distances`.
        others: As in `chi2_distances`.

    Returns:
        `float32` array of shape `(n, m)`.
    """

    def smaller(x: np.ndarray, y: np.ndarray, out: np.ndarray) -> np.ndarray:
        return np.minimum(y, x[:, None], out=out).sum(axis=0)

    return _sum_over_columns(rows, others, smaller)


def _sum_over_columns(
    rows: np.ndarray,
    others: np.ndarray,
    sum_terms: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Sum over columns, of each pair, a term that is zero where `x` is; `float32`.

    The sums of a row do not depend on what other rows there are.
    """
    sums = np.zeros((len(rows), len(others)), dtype=np.float32)
    if rows is others:  # a term does not change when the pair is turned round
        for start in range(0, len(rows), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            part = _sum_over_columns(rows[block], rows[start:], sum_terms)
            sums[block, start:], sums[start:, block] = part, part.T
        return sums
    columns = np.ascontiguousarray(others.T, dtype=np.float32)
    step = max(1, TILE_NUMBERS // len(others))
    for number, row in enumerate(np.asarray(rows, dtype=np.float32)):
        filled = np.flatnonzero(row)
        for start in range(0, len(filled), step):
            tile = filled[start : start + step]
            y = columns[tile]
            sums[number] += sum_terms(row[tile], y, np.empty_like(y))
    return sums


def _scale_of_numbers(rows: np.ndarray, _: np.ndarray) -> float:
    return float(rows.shape[1] * rows.var()) or 1.0


def _mean_of_pairs(_: np.ndarray, pairs: np.ndarray) -> float:
    return float(pairs.mean(dtype=np.float64)) or 1.0


def _mean_of_selves(_: np.ndarray, pairs: np.ndarray) -> float:
    return float(np.diagonal(pairs).mean(dtype=np.float64)) or 1.0


def _bell(pairs: np.ndarray, gamma: float) -> np.ndarray:
    values = pairs * np.float64(-gamma)
    return np.exp(values, out=values)


def _proportional(pairs: np.ndarray, gamma: float) -> np.ndarray:
    return pairs * np.float64(gamma)


KERNELS = {
    "rbf": Kernel(squared_distances_of_pairs, _scale_of_numbers, _bell),
    "chi2": Kernel(chi2_distances, _mean_of_pairs, _bell),
    "intersection": Kernel(intersections, _mean_of_selves, _proportional),
}


def sweep_kernel_svm(name: str, features: np.ndarray) -> Any:
    """Make what predicts held-out rows at many settings, each pair of rows compared once.

    Args:
        name: One of `KERNELS`.
        features: All rows of a search, shape `(n, num_features)`.

    Returns:
        See `cvpipe.classifiers.table.Classifier.sweep`; settings that are given together have
        the same `gamma_factor`, if there is one.
    """
    kernel = KERNELS[name]
    rows = np.asarray(features, dtype=np.float64)
    check_sign(name, rows)
    # Half the memory, and right to seven digits: enough to choose a setting by.
    pairs = kernel.compare(rows, rows).astype(np.float32, copy=False)

    def predict(
        settings: Sequence[Setting],
        train: np.ndarray,
        held_out: np.ndarray,
        targets: np.ndarray,
        weights: np.ndarray | None,
    ) -> Iterator[np.ndarray]:
        own = pairs[np.ix_(train, train)]
        factor = float(settings[0].get("gamma_factor", 1.0))
        gamma = factor / kernel.unit(rows[train], own)
        own = kernel.shape(own, gamma)
        new = kernel.shape(pairs[np.ix_(held_out, train)], gamma)
        own_weights = None if weights is None else weights[train]
        for setting in settings:
            machine = SVC(C=float(setting["C"]), kernel="precomputed")
            yield machine.fit(own, targets[train], own_weights).predict(new)

    return predict
