"""The classifiers by name, fitted with hyperparameters from cross-validation inside train.

Plain data; scikit-learn is imported when something is fitted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.errors import InputError

# (step through the five values of a hyperparameter, number of folds)
SEARCHES = {"coarse": (2, 3), "fine": (1, 5)}
# What fits that hold a number for each pair of rows may take together.
MAX_PAIR_BYTES = 4_000_000_000
SEARCH_COLUMNS = ["value", "mean", "std", "folds"]


@dataclass(frozen=True)
class Classifier:
    """A classifier and the one hyperparameter that is searched.

    Attributes:
        title: What people call it.
        build: Makes the unfitted estimator for a value of the hyperparameter.
        parameter: Name of the hyperparameter; `""` when there is none.
        values: What a fine search tries, rising; a coarse one tries every second value.
        any_scale: Whether columns may be on any scale, such as bytes beside pixels: they are
            standardised, or only their order counts.
        holds_pairs: Whether a fit holds a number for each pair of rows.
        counts_rows: Whether the hyperparameter is a number of train rows, hence bounded by it.
        scoring: scikit-learn's name of the score that picks the value.
        calibrate: Whether scores become probabilities by Platt's sigmoid, fitted on
            out-of-fold scores inside train, because the classifier has none of its own.
    """

    title: str
    build: Callable[[float], Any]
    parameter: str = ""
    values: tuple[float, ...] = ()
    counts_rows: bool = False
    any_scale: bool = False
    holds_pairs: bool = False
    scoring: str = "accuracy"
    calibrate: bool = False


@dataclass(frozen=True)
class FittedClassifier:
    """A classifier that has seen the train images.

    Attributes:
        estimator: Fitted scikit-learn estimator with `predict_proba`.
        chosen: The hyperparameter's value; empty when there is none.
        search: Mean and spread of the score for every value tried: columns `value`,
            `mean`, `std`, `folds`.
        warnings: What a reader should know, in plain words.
    """

    estimator: Any
    chosen: dict[str, float]
    search: pd.DataFrame
    warnings: list[str] = field(default_factory=list)


def _majority(_: float) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def _linear_svm(c: float) -> Any:
    from sklearn.svm import LinearSVC

    # The primal solver with LIBLINEAR's own tolerance for it. On HOG of 1,800 images the dual
    # solver, scikit-learn's choice for more features than images, took many times longer.
    return LinearSVC(C=c, dual=False, tol=1e-2)


def _softmax(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5_000))


def _rbf_svm(c: float) -> Any:
    from cvpipe.gaussian_svm import GaussianSVM

    # Not standardised: HOG and pooled network features are on one scale by nature, and on two
    # data sets scaling every column to unit variance cost up to 5 points (it lifts the noise of
    # columns that are nearly always zero).
    return GaussianSVM(C=c)


def _nearest_neighbours(k: float) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=int(k), algorithm="brute")


def _gradient_boosting(_: float) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # Small leaves, because small data; early stopping would set rows aside at random, groups cut.
    return HistGradientBoostingClassifier(min_samples_leaf=5, early_stopping=False, random_state=0)


CLASSIFIERS = {
    "majority": Classifier(
        "class frequencies of train, whatever the image shows", _majority, any_scale=True
    ),
    "linear_svm": Classifier(
        "linear support vector machine (squared hinge loss)",
        _linear_svm,
        parameter="C",
        values=(0.01, 0.1, 1.0, 10.0, 100.0),
        calibrate=True,
    ),
    "rbf_svm": Classifier(
        "support vector machine with a Gaussian (RBF) kernel",
        _rbf_svm,
        parameter="C",
        values=(1.0, 5.0, 25.0, 125.0, 625.0),
        calibrate=True,
        holds_pairs=True,
    ),
    "nearest_neighbours": Classifier(
        "vote of the k nearest train images (Euclidean distance)",
        _nearest_neighbours,
        parameter="k",
        values=(1.0, 3.0, 5.0, 9.0, 17.0),
        counts_rows=True,
    ),
    "gradient_boosting": Classifier(
        "gradient boosting of decision trees", _gradient_boosting, any_scale=True
    ),
    "softmax": Classifier(
        "softmax regression with L2 penalty on standardised features",
        _softmax,
        parameter="C",
        values=(1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        # The probabilities themselves are what a network head hands on.
        scoring="neg_log_loss",
        any_scale=True,
    ),
}


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
        InputError: The groups of a class are too few to be divided.
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
        raise InputError(
            "cross-validation inside train needs every class in every training part, but the "
            f"rarest class has only {fewest} group(s); add images or lower split.val_fraction and "
            "split.test_fraction."
        )
    return folds


def _scorer(scoring: str, targets: np.ndarray) -> Any:
    from sklearn.metrics import get_scorer, log_loss, make_scorer

    if scoring != "neg_log_loss":
        return get_scorer(scoring)
    # A held-out part may lack a class, so the loss has to be told which classes there are.
    return make_scorer(
        log_loss,
        greater_is_better=False,
        response_method="predict_proba",
        labels=np.unique(targets),
    )


def fit_classifier(
    name: str,
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str],
    search: str,
    seed: int,
    threads: int,
) -> FittedClassifier:
    """Search the hyperparameter by grouped cross-validation, then fit on all rows.

    Among values with equal scores the smallest is taken: of a `C` the most regularised.

    Args:
        name: One of `CLASSIFIERS`.
        features: Array of shape `(n, num_features)`: train rows only.
        targets: `int` array of shape `(n,)`; every class appears.
        groups: Group of each row.
        search: One of `SEARCHES`.
        seed: Of the folds.
        threads: Number of fits at a time; the result does not depend on it.
    """
    classifier = CLASSIFIERS[name]
    if not classifier.parameter:
        estimator = fit_at(name, {}, features, targets, groups, search, seed, threads)
        return FittedClassifier(estimator, {}, pd.DataFrame(columns=SEARCH_COLUMNS))
    step, num_folds = SEARCHES[search]
    folds = group_folds(targets, groups, num_folds, seed)
    values = list(classifier.values[::step])
    if classifier.counts_rows:
        values = [value for value in values if value <= min(len(rows) for rows, _ in folds)]
    table = _score_values(classifier, values, features, targets, folds, threads)
    best = int(table["mean"].argmax())
    chosen = {classifier.parameter: values[best]}
    estimator = fit_at(name, chosen, features, targets, groups, search, seed, threads)
    return FittedClassifier(estimator, chosen, table, _edge_warnings(classifier, values, best))


def fit_at(
    name: str,
    chosen: Mapping[str, float],
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[str],
    search: str,
    seed: int,
    threads: int,
) -> Any:
    """Fit a classifier with a hyperparameter that is known already.

    Args:
        name: One of `CLASSIFIERS`.
        chosen: `FittedClassifier.chosen`: the hyperparameter by its name, or nothing.
        features: As in `fit_classifier`.
        targets: As in `fit_classifier`.
        groups: As in `fit_classifier`; the folds for the calibration keep them together.
        search: Says how many folds.
        seed: Of the folds.
        threads: Number of fits at a time; the result does not depend on it.

    Returns:
        Fitted scikit-learn estimator with `predict_proba`.
    """
    from sklearn.calibration import CalibratedClassifierCV

    classifier = CLASSIFIERS[name]
    value = chosen.get(classifier.parameter, 0.0)
    estimator = classifier.build(min(value, len(targets)) if classifier.counts_rows else value)
    if classifier.calibrate:
        folds = group_folds(targets, groups, SEARCHES[search][1], seed)
        estimator = CalibratedClassifierCV(estimator, method="sigmoid", cv=folds, ensemble=False)
    with _fits_at_a_time(_affordable(classifier, len(targets), threads)):
        return estimator.fit(features, targets)


def predictor_of(estimator: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Make a fitted estimator a function from features to probabilities.

    It computes in one thread. With more, neighbours at equal distances come in another order,
    and trees take longer to share out than to walk.
    """
    from threadpoolctl import threadpool_limits

    def predict_proba(features: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):
            return np.asarray(estimator.predict_proba(features))

    return predict_proba


def _score_values(
    classifier: Classifier,
    values: Sequence[float],
    features: np.ndarray,
    targets: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    threads: int,
) -> pd.DataFrame:
    """Fit every value on every fold's training rows and score it on the held-out ones."""
    import joblib
    from threadpoolctl import threadpool_limits

    scorer = _scorer(classifier.scoring, targets)

    def score(value: float, train: np.ndarray, held_out: np.ndarray) -> float:
        # OpenMP counts threads for each thread anew, so the limit around all does not hold here.
        with threadpool_limits(1):
            estimator = classifier.build(value).fit(features[train], targets[train])
            return float(scorer(estimator, features[held_out], targets[held_out]))

    with _fits_at_a_time(_affordable(classifier, len(targets), threads)):
        scores = joblib.Parallel()(
            joblib.delayed(score)(value, *fold) for value in values for fold in folds
        )
    by_value = np.reshape(scores, (len(values), len(folds)))
    return pd.DataFrame(
        {
            "value": values,
            "mean": by_value.mean(axis=1),
            "std": by_value.std(axis=1, ddof=1),
            "folds": len(folds),
        }
    )[SEARCH_COLUMNS]


def _affordable(classifier: Classifier, num_rows: int, threads: int) -> int:
    """Bound the number of fits at a time by the memory that they hold together."""
    if not classifier.holds_pairs:
        return threads
    bytes_per_fit = 16 * num_rows**2  # the kernel, and the distances it is made from
    return max(1, min(threads, MAX_PAIR_BYTES // max(bytes_per_fit, 1)))


@contextmanager
def _fits_at_a_time(threads: int) -> Iterator[None]:
    """Let joblib fit in threads, each with one thread of the numerical libraries.

    They release the interpreter lock, so threads are enough; and two pools on the same cores
    make each other slower. One thread also fixes the order of every sum.
    """
    import joblib
    from threadpoolctl import threadpool_limits

    with joblib.parallel_config(backend="threading", n_jobs=threads), threadpool_limits(1):
        yield


def _edge_warnings(classifier: Classifier, values: Sequence[float], best: int) -> list[str]:
    """Say so when the best value is the outermost that was tried."""
    # One neighbour is the natural end of its range, not a choice of ours.
    if (best == 0 and not classifier.counts_rows) or 0 < best == len(values) - 1:
        side = "smallest" if best == 0 else "largest"
        return [
            f"the best {classifier.parameter} is the {side} that was tried ({values[best]:g}); "
            "a better one may lie outside the range"
        ]
    return []


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
