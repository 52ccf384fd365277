"""The classifiers by name, fitted with hyperparameters from cross-validation inside train.

Plain data; scikit-learn is imported when something is fitted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.errors import InputError

# (number of values on the log scale, number of folds)
SEARCHES = {"coarse": (3, 3), "fine": (5, 5)}
SEARCH_COLUMNS = ["value", "mean", "std", "folds"]


@dataclass(frozen=True)
class Classifier:
    """A classifier and the one hyperparameter that is searched.

    Attributes:
        title: What people call it.
        build: Makes the unfitted estimator for a value of the hyperparameter.
        parameter: Name of the hyperparameter; `""` when there is none.
        exponents: Smallest and largest power of ten that is tried.
        scoring: scikit-learn's name of the score that picks the value.
        calibrate: Whether scores become probabilities by Platt's sigmoid, fitted on
            out-of-fold scores inside train, because the classifier has none of its own.
    """

    title: str
    build: Callable[[float], Any]
    parameter: str = ""
    exponents: tuple[float, float] = (0.0, 0.0)
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


CLASSIFIERS = {
    "majority": Classifier("class frequencies of train, whatever the image shows", _majority),
    "linear_svm": Classifier(
        "linear support vector machine (squared hinge loss)",
        _linear_svm,
        parameter="C",
        exponents=(-2.0, 2.0),
        calibrate=True,
    ),
    "softmax": Classifier(
        "softmax regression with L2 penalty on standardised features",
        _softmax,
        parameter="C",
        exponents=(-4.0, 0.0),
        # The probabilities themselves are what a network head hands on.
        scoring="neg_log_loss",
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

    Among values with equal scores the smallest, that is the most regularised, is taken.

    Args:
        name: One of `CLASSIFIERS`.
        features: Array of shape `(n, num_features)`: train rows only.
        targets: `int` array of shape `(n,)`; every class appears.
        groups: Group of each row.
        search: One of `SEARCHES`.
        seed: Of the folds.
        threads: Number of fits at a time; the result does not depend on it.
    """
    import joblib
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import cross_val_score
    from threadpoolctl import threadpool_limits

    classifier = CLASSIFIERS[name]
    if not classifier.parameter:
        estimator = classifier.build(1.0).fit(features, targets)
        return FittedClassifier(estimator, {}, pd.DataFrame(columns=SEARCH_COLUMNS))
    num_values, num_folds = SEARCHES[search]
    folds = group_folds(targets, groups, num_folds, seed)
    values = np.logspace(*classifier.exponents, num_values)
    rows = []
    # liblinear and BLAS release the interpreter lock, so threads are enough; one BLAS thread
    # for each of them, because two pools on the same cores make each other slower.
    with joblib.parallel_config(backend="threading", n_jobs=threads), threadpool_limits(1):
        for value in values:
            scores = cross_val_score(
                classifier.build(value),
                features,
                targets,
                cv=folds,
                scoring=_scorer(classifier.scoring, targets),
                error_score="raise",
            )
            rows.append((value, scores.mean(), scores.std(ddof=1), len(folds)))
        table = pd.DataFrame(rows, columns=SEARCH_COLUMNS)
        best = int(table["mean"].argmax())
        estimator = classifier.build(values[best])
        if classifier.calibrate:
            estimator = CalibratedClassifierCV(
                estimator, method="sigmoid", cv=folds, ensemble=False
            )
        estimator.fit(features, targets)
    warnings = []
    if best in (0, len(values) - 1):
        side = "smallest" if best == 0 else "largest"
        warnings.append(
            f"the best {classifier.parameter} is the {side} that was tried ({values[best]:g}); "
            "a better one may lie outside the range"
        )
    return FittedClassifier(estimator, {classifier.parameter: float(values[best])}, table, warnings)


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
