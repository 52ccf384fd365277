"""scikit-learn models on disk, stored and loaded without pickle."""

from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.features.table import KINDS
from cvpipe.files import atomic_path

# What may be in a stored scikit-learn model beside the types that skops itself trusts.
TRUSTED_TYPES = [
    "cvpipe.classifiers.common_scaler.CommonScaler",
    "cvpipe.classifiers.kernel_svm.KernelSVM",
    "cvpipe.classifiers.nearest_mean.NearestMean",
    "cvpipe.classifiers.neighbours.NearestNeighbours",
    "cvpipe.classifiers.sparse_softmax.SparseSoftmax",
    "cvpipe.classifiers.two_layer_net.TwoLayerNet",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    *(f"cvpipe.features.{'.'.join(kind.transformer)}" for kind in KINDS.values() if kind.learns),
]


def store_estimator(path: Path, estimator: Any) -> None:
    """Store a fitted scikit-learn estimator without pickle."""
    from skops.io import dump

    with atomic_path(path) as partial:
        dump(estimator, partial)


def load_estimator(path: Path) -> Any:
    """Load a stored estimator; types that are not on the list are refused, not executed.

    Raises:
        InputError: The file holds something else.
    """
    from skops.io import load
    from skops.io.exceptions import UntrustedTypesFoundException

    if not path.exists():
        raise InputError(f"the model {str(path)!r} is missing; make its run anew.")
    try:
        estimator = load(path, trusted=TRUSTED_TYPES)
    except UntrustedTypesFoundException as error:
        raise _foreign(path, str(error)) from None
    for part in parts_of(estimator):
        if not all(is_sound_tree(t.nodes, part.n_features_in_) for t in trees_of(part)):
            raise _foreign(path, "a decision tree in it leads nowhere.")
        if not has_sound_vectors(part):
            raise _foreign(path, "a support vector of it is none of its rows.")
    return estimator


def _foreign(path: Path, reason: str) -> InputError:
    return InputError(f"{str(path)!r} was not written by cvpipe and is not loaded: {reason}")


def parts_of(estimator: Any) -> list[Any]:
    """List an estimator and all that it is made of: steps, parts, what is calibrated."""
    inner = [step for _, step in getattr(estimator, "steps", [])]
    inner += getattr(estimator, "calibrated_classifiers_", [])
    inner += getattr(estimator, "estimators_", [])
    if hasattr(estimator, "estimator"):
        inner.append(estimator.estimator)
    return [estimator, *(part for one in inner for part in parts_of(one))]


def has_sound_vectors(estimator: Any) -> bool:
    """Tell whether a kernel machine looks up only rows that it has: its solver checks nothing.

    A machine of scikit-learn's own is not one that cvpipe stores by itself.
    """
    from sklearn.svm import SVC

    from cvpipe.classifiers.kernel_svm import KernelSVM

    if not isinstance(estimator, KernelSVM):
        return not isinstance(estimator, SVC)
    machine = getattr(estimator, "svm_", None)
    if machine is None:  # what is calibrated keeps an unfitted one
        return True
    support, counts = machine.support_, machine._n_support  # by class
    num_classes = len(estimator.classes_)
    num_pairs = num_classes * (num_classes - 1) // 2
    return bool(
        np.all((support >= 0) & (support < estimator.num_rows_))
        and np.array_equal(support, estimator.support_)
        and counts.shape == (num_classes,)
        and np.all(counts >= 0)
        and counts.sum() == len(support)
        and machine._dual_coef_.shape == (num_classes - 1, len(support))
        and machine._intercept_.shape == (num_pairs,)
    )


def trees_of(estimator: Any) -> list[Any]:
    """List the decision trees of a gradient boosting; none of anything else."""
    return [tree for stage in getattr(estimator, "_predictors", []) for tree in stage]


def is_sound_tree(nodes: np.ndarray, num_features: int) -> bool:
    """Tell whether every path through a tree ends inside it: walking one checks nothing.

    Args:
        nodes: The structured array of scikit-learn's `TreePredictor`; children stand behind
            their parents.
        num_features: Length of the rows that it reads.
    """
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    children = np.stack([nodes["left"][inner], nodes["right"][inner]]).astype(np.int64)
    inside = (children > inner) & (children < len(nodes))
    column = nodes["feature_idx"][inner].astype(np.int64)
    numeric = (nodes["is_categorical"][inner] == 0) & (column >= 0) & (column < num_features)
    return len(nodes) > 0 and bool(inside.all() and numeric.all())
