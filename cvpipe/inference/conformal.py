"""Sets of classes that hold the true one at a chosen level: split conformal prediction.

Probabilities of calibration images with known labels flow in; the smallest probability with
which a class enters the set flows out. That of a class counts as its score, so the sets are the
smallest on average among all that keep the level ("least ambiguous"). The level holds on average
over calibration and new images that are exchangeable: of the same kind and independent. Several
images of one patient are not, and other hospitals or cameras are not of the same kind.

MAPIE and crepes find the same thresholds. They wrap estimators or keep the calibration data; what
is needed here is a quantile on one side and a comparison on the other, which an app can repeat
without any library.
"""

import math

import numpy as np

from cvpipe.errors import InputError


def images_needed(level: float) -> int:
    """Count the calibration images below which no set can keep the level but the full one.

    Args:
        level: Share of images whose set is to hold the true class, in (0, 1).

    Raises:
        InputError: The level is out of range.

    Example:
        >>> [images_needed(level) for level in (0.5, 0.9, 0.95)]
        [1, 9, 19]
    """
    _check_level(level)
    return math.ceil(level / (1 - level) - 1e-9)  # but for rounding: 0.9 / 0.1 is a hair above 9


def fit_set_threshold(true_probabilities: np.ndarray, level: float) -> float:
    """Find the smallest probability with which a class is to be in the set.

    It is the k-th largest probability that calibration images give their true class, for k =
    ceil((n + 1) level): with 1 - p as score the finite-sample quantile of the scores. A new
    image's set then holds its true class with a probability of at least `level` and, without
    ties, at most `level + 1 / (n + 1)`.

    Args:
        true_probabilities: Probability of its true class per calibration image, `float (n,)`.
        level: Share of images whose set is to hold the true class, in (0, 1).

    Returns:
        The threshold; 0, so that every class is in the set, when there are fewer than
        `images_needed(level)` images.

    Raises:
        InputError: The level is out of range.

    Example:
        >>> fit_set_threshold(np.array([0.9, 0.8, 0.4, 0.7]), 0.5)
        0.7

    References:
        Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, section
        4.1; Sadinle, Lei and Wasserman, "Least Ambiguous Set-Valued Classifiers with Bounded
        Error Levels", Journal of the American Statistical Association 114, 2019.
    """
    _check_level(level)
    rank = math.ceil((len(true_probabilities) + 1) * level - 1e-9)  # 100 * 0.55 is above 55
    if rank > len(true_probabilities):
        return 0.0
    return float(np.sort(true_probabilities)[-rank])


def fit_class_thresholds(
    probabilities: np.ndarray, targets: np.ndarray, level: float
) -> np.ndarray:
    """Find the threshold of each class on its own images, so that each class keeps the level.

    One threshold for all keeps the level on average, at the cost of difficult classes.

    Args:
        probabilities: Of calibration images, `float (n, num_classes)`.
        targets: Positions of their true classes, `int (n,)`.
        level: See `fit_set_threshold`.

    Returns:
        `float (num_classes,)`; 0 for a class with too few images, which then is in every set.

    Raises:
        InputError: The level is out of range.

    References:
        Sadinle, Lei and Wasserman, as above (class-specific coverage).
    """
    return np.array(
        [
            fit_set_threshold(probabilities[targets == target, target], level)
            for target in range(probabilities.shape[1])
        ]
    )


def prediction_sets(probabilities: np.ndarray, thresholds: float | np.ndarray) -> np.ndarray:
    """Say which classes are in the set of each image.

    The most probable class always is: an empty set would tell nobody anything. That can only
    raise the coverage.

    Args:
        probabilities: `float (n, num_classes)`.
        thresholds: One for all classes or one per class, `float (num_classes,)`.

    Returns:
        `bool (n, num_classes)`.
    """
    sets = probabilities >= thresholds
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level {level} is not between 0 and 1; pass 0.9 for 90 %.")
