"""Turn fitted estimators into the steps that `cvpipe.classifiers.steps` applies."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cvpipe.classifiers.steps import Step


def steps_of(estimator: Any) -> list[Step]:
    """Write a fitted classifier as steps.

    Args:
        estimator: What `cvpipe.classifiers.search.fit_classifier` fitted.

    Returns:
        Steps that give the estimator's probabilities but for rounding; for rows without NaN.

    Raises:
        TypeError: There are no steps for an estimator of this kind.
    """
    kind = type(estimator).__name__
    if kind not in WRITERS:
        raise TypeError(f"a {kind} has no steps")
    return WRITERS[kind](estimator)


def _of_pipeline(pipeline: Any) -> list[Step]:
    return [step for _, part in pipeline.steps for step in steps_of(part)]


def _of_calibrated(calibrated: Any) -> list[Step]:
    (part,) = calibrated.calibrated_classifiers_
    slopes, offsets = ([getattr(c, name) for c in part.calibrators] for name in ("a_", "b_"))
    platt = Step("platt", {"slopes": np.array(slopes), "offsets": np.array(offsets)})
    return [*steps_of(part.estimator), platt]


def _of_scaler(scaler: Any) -> list[Step]:
    return [Step("scale", {"mean": scaler.mean_, "scale": scaler.scale_})]


def _of_linear(machine: Any) -> list[Step]:
    return [_linear_step(machine.coef_.T, machine.intercept_)]


def _of_regression(regression: Any) -> list[Step]:
    return [*_of_linear(regression), Step("softmax", {})]


def _of_net(net: Any) -> list[Step]:
    layers = [_linear_step(*pair) for pair in zip(net.coefs_, net.intercepts_, strict=True)]
    hidden = [step for layer in layers[:-1] for step in (layer, Step("rectify", {}))]
    return [*hidden, layers[-1], Step("softmax", {})]


def _linear_step(weights: np.ndarray, intercepts: np.ndarray) -> Step:
    return Step("linear", {"weights": weights, "intercepts": intercepts})


def _of_nearest_mean(nearest: Any) -> list[Step]:
    return [Step("nearest_mean", {"metric": nearest.metric, "means": nearest.means_})]


def _of_neighbours(nearest: Any) -> list[Step]:
    values = {
        "metric": nearest.metric,
        "num_neighbours": nearest.num_neighbours,
        "vote": nearest.vote,
        "train": nearest.rows_,
        "codes": nearest.codes_,
        "weights": nearest.weights_,
        "num_classes": len(nearest.classes_),
    }
    return [Step("neighbours", values)]


def _of_kernel_svm(machine: Any) -> list[Step]:
    values = {
        "kernel": machine.kernel,
        "gamma": machine.gamma_,
        "vectors": machine.support_vectors_,
        "coefficients": machine.svm_.dual_coef_,
        "intercepts": machine.svm_.intercept_,
        "counts": machine.svm_.n_support_,
    }
    return [Step("kernel_machine", values)]


def _of_boosting(boosting: Any) -> list[Step]:
    """Put the nodes of all trees into one table."""
    trees = [tree.nodes for stage in boosting._predictors for tree in stage]
    starts = np.cumsum([0, *map(len, trees)])[:-1]
    nodes = np.concatenate(trees)
    first = np.repeat(starts, [len(tree) for tree in trees])
    itself, is_leaf = np.arange(len(nodes)), nodes["is_leaf"] != 0
    left, right = (np.where(is_leaf, itself, nodes[side] + first) for side in ("left", "right"))
    values = {
        "baseline": boosting._baseline_prediction.ravel(),
        "roots": starts.reshape(len(boosting._predictors), -1),
        "columns": np.where(is_leaf, 0, nodes["feature_idx"]),
        "thresholds": np.where(is_leaf, 0.0, nodes["num_threshold"]),
        "left": left,
        "right": right,
        "values": nodes["value"],
        "depth": int(nodes["depth"].max()),
    }
    return [Step("trees", values), Step("softmax", {})]


# By class. Of two classes, `LogisticRegression` and `MLPClassifier` have one score, as all steps.
WRITERS: Mapping[str, Callable[[Any], list[Step]]] = {
    "Pipeline": _of_pipeline,
    "CalibratedClassifierCV": _of_calibrated,
    "StandardScaler": _of_scaler,
    "CommonScaler": _of_scaler,
    "LinearSVC": _of_linear,
    "LogisticRegression": _of_regression,
    "SparseSoftmax": _of_regression,
    "TwoLayerNet": _of_net,
    "NearestMean": _of_nearest_mean,
    "NearestNeighbours": _of_neighbours,
    "KernelSVM": _of_kernel_svm,
    "HistGradientBoostingClassifier": _of_boosting,
}
