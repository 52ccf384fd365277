"""Fit classifiers, with hyperparameters from grouped cross-validation inside train."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.classifiers.parameters import (
    Setting,
    Value,
    edge_warnings,
    first_grid,
    second_grid,
    simplest_first,
)
from cvpipe.classifiers.table import (
    CLASS_WEIGHTS,
    CLASSIFIERS,
    MAX_PAIR_BYTES,
    SEARCHES,
    Classifier,
)
from cvpipe.errors import TooLittleToLearnError, check_name
from cvpipe.numerics import one_thread

# Columns of a search after those of the hyperparameters.
SCORE_COLUMNS = ["mean", "std", "folds"]
# Scores that differ by less are equal: a mean over folds is rounded.
TIE = 1e-9

Fold = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier that has seen the train images.

    Attributes:
        estimator: Fitted scikit-learn estimator with `predict_proba`.
        chosen: Value of each hyperparameter; empty when there is none.
        search: What was tried, the simplest first: a column for each hyperparameter, then `mean`
            and `std` of the score over the folds, and the number of `folds`.
        warnings: What a reader should know, in plain words.
    """

    estimator: Any
    chosen: Setting
    search: pd.DataFrame
    warnings: list[str] = field(default_factory=list)


def group_folds(
    targets: np.ndarray, groups: Sequence[str], num_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide train rows into stratified folds that never cut a group.

    Every class appears in every training part; where a class has too few groups for
    that, fewer folds are made. A held-out part may lack a class.

    Args:
        targets: `int` array of shape `(n,)`.
        groups: Group of each row.
        num_folds: Wanted number of folds, at least 2.
        seed: Of the division.

    Returns:
        For each fold, the positions of its training rows and of its held-out rows.

    Raises:
        TooLittleToLearnError: The groups of a class are too few to be divided.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    table = pd.DataFrame({"target": targets, "group": list(groups)})
    groups_per_class = table.groupby("target")["group"].nunique()
    fewest = int(groups_per_class.min())
    folds = []
    if fewest >= 2:
        splitter = StratifiedGroupKFold(min(num_folds, fewest), shuffle=True, random_state=seed)
        folds = list(splitter.split(table, table["target"], table["group"]))
    # Where groups mix classes, all groups of a rare class can land in one fold.
    if not folds or min(len(np.unique(targets[rows])) for rows, _ in folds) < len(groups_per_class):
        raise TooLittleToLearnError(
            "cross-validation inside train needs every class in every training part, but the "
            f"rarest class has only {fewest} group(s); add images or lower split.val_fraction and "
            "split.test_fraction."
        )
    return folds


def fit_classifier(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str],
    search: str,
    seed: int,
    threads: int,
    class_weights: str = "none",
) -> FittedClassifier:
    """Search the hyperparameters by grouped cross-validation, then fit on all rows.

    A coarse search tries a grid over several decades. A fine one goes on to half steps around the
    best of it. All settings are scored on the same folds; among equal scores the simplest is
    taken: of a `C` the most regularised, of a number of neighbours the smallest.

    Args:
        name: One of `CLASSIFIERS`.
        features: Array of shape `(n, num_features)`: train rows only.
        targets: `int` array of shape `(n,)`; every class appears.
        groups: Group of each row.
        search: One of `SEARCHES`.
        seed: Of the folds.
        threads: Number of fits at a time; the result does not depend on it.
        class_weights: `"none"`: every row counts the same. `"balanced"`: every class does, in
            the fit, in its probabilities and in the score of the search.
    """
    classifier = CLASSIFIERS[name]
    chosen: Setting = {}
    table = pd.DataFrame(columns=SCORE_COLUMNS)
    told: list[str] = []
    if classifier.parameters:
        folds = group_folds(targets, groups, SEARCHES[search], seed)
        weights = row_weights(targets, class_weights)
        # Not kept by a name: what it holds is let go before the last fit.
        chosen, table, told = search_settings(
            _Scorer(classifier, features, targets, weights, folds, threads), search == "fine"
        )
    estimator = fit_at(
        name, chosen, features, targets, groups, search, seed, threads, class_weights
    )
    return FittedClassifier(estimator, chosen, table, told)


def fit_at(
    name: str,
    chosen: Mapping[str, Value],
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str],
    search: str,
    seed: int,
    threads: int,
    class_weights: str = "none",
) -> Any:
    """Fit a classifier with hyperparameters that are known already.

    Args:
        name: One of `CLASSIFIERS`.
        chosen: `FittedClassifier.chosen`: the hyperparameters by their names.
        features: As in `fit_classifier`.
        targets: As in `fit_classifier`.
        groups: As in `fit_classifier`; the folds for the calibration keep them together.
        search: Says how many folds.
        seed: Of the folds.
        threads: Number of fits at a time; the result does not depend on it.
        class_weights: As in `fit_classifier`.

    Returns:
        Fitted scikit-learn estimator with `predict_proba`.
    """
    from sklearn.calibration import CalibratedClassifierCV

    classifier = CLASSIFIERS[name]
    weights = row_weights(targets, class_weights)
    estimator = classifier.build(**chosen)
    if classifier.calibrate:
        folds = group_folds(targets, groups, SEARCHES[search], seed)
        estimator = CalibratedClassifierCV(estimator, method="sigmoid", cv=folds, ensemble=False)
    with _fits_at_a_time(_affordable(classifier, len(targets), threads)):
        return _fit(estimator, features, targets, weights if classifier.takes_weights else None)


def row_weights(targets: np.ndarray, class_weights: str) -> np.ndarray | None:
    """Weight rows so that every class has the same total; their mean is 1.

    They go through `sample_weight`, which is what scikit-learn makes of `class_weight`. So the
    sigmoid of a calibration has them too; without, it would bring the frequencies back.

    Args:
        targets: `int` array of shape `(n,)`.
        class_weights: One of `CLASS_WEIGHTS`; `"none"` gives `None`.

    Raises:
        InputError: It is none of them.
    """
    if check_name("class_weights", class_weights, CLASS_WEIGHTS) == "none":
        return None
    _, codes, counts = np.unique(targets, return_inverse=True, return_counts=True)
    return len(targets) / (len(counts) * counts[codes])


def predictor_of(estimator: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Make a fitted estimator a function from features to probabilities.

    It computes in one thread. With more, the last digits of a sum may change, and trees take
    longer to share out than to walk.
    """

    def predict_proba(features: np.ndarray) -> np.ndarray:
        with one_thread():
            return np.asarray(estimator.predict_proba(features))

    return predict_proba


def search_settings(scorer: "_Scorer", fine: bool) -> tuple[Setting, pd.DataFrame, list[str]]:
    """Find the setting with the best mean score over the folds.

    Args:
        scorer: Scores settings.
        fine: Whether to look around the best of the first grid.

    Returns:
        The setting, the table of all that were tried, and warnings.
    """
    parameters = scorer.classifier.parameters
    num_rows = min(len(train) for train, _ in scorer.folds)
    settings = first_grid(parameters, fine, num_rows)
    scores = scorer.score(settings)
    if fine:
        around = second_grid(parameters, settings[_best_of(scores)])
        if around:
            settings, scores = settings + around, np.vstack([scores, scorer.score(around)])
    order = sorted(
        range(len(settings)), key=lambda number: simplest_first(parameters, settings[number])
    )
    settings, scores = [settings[number] for number in order], scores[order]
    chosen = settings[_best_of(scores)]
    table = pd.DataFrame(settings).assign(
        mean=scores.mean(axis=1), std=scores.std(axis=1, ddof=1), folds=len(scorer.folds)
    )
    return chosen, table, edge_warnings(parameters, settings, chosen, num_rows)


def _best_of(scores: np.ndarray) -> int:
    means = scores.mean(axis=1)
    return int((means >= means.max() - TIE).argmax())


@dataclass(frozen=True)
class _Scorer:
    """Scores settings of a classifier on the held-out rows of the folds."""

    classifier: Classifier
    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None
    folds: Sequence[Fold]
    threads: int

    def score(self, settings: Sequence[Setting]) -> np.ndarray:
        """Score settings; shape `(num_settings, num_folds)`."""
        import joblib

        def score_together(numbers: Sequence[int], fold: Fold) -> list[float]:
            # OpenMP counts threads for each thread anew, so the limit around all does not hold.
            with one_thread():
                together = [settings[number] for number in numbers]
                answers = self._predict(together, *fold, self.targets, self.weights)
                return [self._score(answer, fold[1]) for answer in answers]

        bundles = self._bundles(settings)
        threads = _affordable(self.classifier, len(self.targets), self.threads)
        with _fits_at_a_time(threads):
            _ = self._predict  # made by one thread, before others ask for it
            parts = joblib.Parallel()(
                joblib.delayed(score_together)(numbers, fold)
                for numbers in bundles
                for fold in self.folds
            )
        scores = np.empty((len(settings), len(self.folds)))
        for position, part in enumerate(parts):
            number, fold = divmod(position, len(self.folds))
            scores[bundles[number], fold] = part
        return scores

    @cached_property
    def _predict(self) -> Callable[..., Iterator[np.ndarray]]:
        """Predict held-out rows at several settings; see `Classifier.sweep`."""
        return (self.classifier.sweep or self._each_on_its_own)(self.features)

    def _bundles(self, settings: Sequence[Setting]) -> list[list[int]]:
        """Put together the settings that differ in swept parameters only."""
        bundles: dict[tuple[Value, ...], list[int]] = {}
        for number, setting in enumerate(settings):
            alone = [v for name, v in setting.items() if name not in self.classifier.swept]
            bundles.setdefault(tuple(alone), []).append(number)
        return list(bundles.values())

    def _each_on_its_own(self, features: np.ndarray) -> Callable[..., Iterator[np.ndarray]]:
        rows = shorten_rows(features) if self.classifier.by_dot_products else features

        def predict(
            settings: Sequence[Setting],
            train: np.ndarray,
            held_out: np.ndarray,
            targets: np.ndarray,
            weights: np.ndarray | None,
        ) -> Iterator[np.ndarray]:
            own_weights = None if weights is None else weights[train]
            for setting in settings:
                estimator = self.classifier.build(**setting)
                _fit(estimator, rows[train], targets[train], own_weights)
                if self.classifier.scoring == "accuracy":
                    yield estimator.predict(rows[held_out])
                else:
                    yield estimator.predict_proba(rows[held_out])

        return predict

    def _score(self, answer: np.ndarray, held_out: np.ndarray) -> float:
        """Score predicted targets by accuracy, probabilities by their mean log likelihood."""
        targets = self.targets[held_out]
        if self.classifier.scoring == "accuracy":
            scores = (answer == targets).astype(float)
        else:
            # Every class is in every training part, even if it is missing here.
            codes = np.searchsorted(np.unique(self.targets), targets)
            own = answer[np.arange(len(answer)), codes]
            scores = np.log(np.maximum(own, np.finfo(answer.dtype).eps))
        weights = None if self.weights is None else self.weights[held_out]
        return float(np.average(scores, weights=weights))


def shorten_rows(features: np.ndarray) -> np.ndarray:
    """Rotate long rows into as many columns as there are rows, where that leaves less to read.

    The rows span no more directions than there are rows. What is fitted to their dot products
    alone is the same afterwards, but for rounding, and reads only a triangle.

    Args:
        features: `float` array of shape `(n, num_features)`.

    Returns:
        `float64` array of shape `(n, n)`, the lower triangle of a QR decomposition, with the same
        dot products; the rows as they are where less than `n ** 2` of their numbers are not zero.

    Example:
        >>> rows = np.array([[3.0, 0, 4, 0], [0, 1, 0, 1]])
        >>> short = shorten_rows(rows)
        >>> short.shape, np.allclose(short @ short.T, rows @ rows.T)
        ((2, 2), True)
    """
    from scipy.linalg import qr

    num_rows, num_columns = features.shape
    # In a triangle half as many are left: that has to pay for the decomposition.
    if num_columns < num_rows or np.count_nonzero(features) < num_rows**2:
        return features
    _, upper = qr(features.T.astype(np.float64), mode="raw", overwrite_a=True)
    return np.ascontiguousarray(upper.T)


def _fit(
    estimator: Any, features: np.ndarray, targets: np.ndarray, weights: np.ndarray | None
) -> Any:
    """Fit with weights of rows; of a pipeline its last step has them."""
    steps = getattr(estimator, "steps", [])
    prefix = f"{steps[-1][0]}__" if steps else ""
    return estimator.fit(features, targets, **{f"{prefix}sample_weight": weights})


def _affordable(classifier: Classifier, num_rows: int, threads: int) -> int:
    """Bound the number of fits at a time by the memory that they hold together."""
    if classifier.alone:
        return 1
    if not classifier.holds_pairs:
        return threads
    bytes_per_fit = 16 * num_rows**2  # the kernel, and what it is made from
    return max(1, min(threads, MAX_PAIR_BYTES // max(bytes_per_fit, 1)))


@contextmanager
def _fits_at_a_time(threads: int) -> Iterator[None]:
    """Let joblib fit in threads, each with one thread of the numerical libraries.

    They release the interpreter lock, so threads are enough; and two pools on the same cores
    make each other slower. One thread also fixes the order of every sum.
    """
    import joblib
    from sklearn.exceptions import ConvergenceWarning

    with (
        joblib.parallel_config(backend="threading", n_jobs=threads),
        one_thread(),
        warnings.catch_warnings(),
    ):
        # A net is trained for so many epochs, a hinge solved in so many passes: what came out is
        # what the search scores.
        solvers = r"sklearn\.(neural_network|svm)"
        warnings.filterwarnings("ignore", category=ConvergenceWarning, module=solvers)
        yield


def linear_head(estimator: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Write a fitted `softmax` classifier as one matrix and one vector.

    The standardisation is folded in: `(x - mean) / scale @ W + b` equals
    `x @ (W / scale) + (b - mean / scale @ W)`.

    Args:
        estimator: Fitted estimator of the classifier `softmax`.
        num_classes: Number of classes.

    Returns:
        `kernel` of shape `(num_features, num_classes)` and `bias` of shape
        `(num_classes,)`, `float32`, such that `softmax(x @ kernel + bias)` are the
        estimator's probabilities.
    """
    scaler, regression = estimator[0], estimator[1]
    weights, intercept = regression.coef_.T, regression.intercept_
    if num_classes == 2:
        # scikit-learn keeps one column for two classes; the other's score is zero.
        weights = np.hstack([np.zeros_like(weights), weights])
        intercept = np.array([0.0, intercept[0]])
    kernel = weights / scaler.scale_[:, None]
    bias = intercept - scaler.mean_ @ kernel
    return kernel.astype(np.float32), bias.astype(np.float32)
