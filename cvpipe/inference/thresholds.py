"""Where to cut a score, and which class costs least: from probabilities to decisions.

Probabilities flow in; thresholds or positions of classes flow out. A score *reaches* a threshold
when it is at least as large. A threshold lies halfway between neighbouring scores of the images
that it is fitted on, so no rounding moves one of them across.
"""

import numpy as np

from cvpipe.errors import InputError

# Neighbouring scores nearer than this count as equal. An exported file may differ by half of it
# from the model that was measured, and is to decide alike.
RESOLUTION = 2e-6
EVERYTHING, NOTHING = 0.0, 2.0  # thresholds that every probability reaches, and none


def threshold_for_sensitivity(
    scores: np.ndarray, is_positive: np.ndarray, at_least: float
) -> float:
    """Find the highest threshold that still finds a given share of the positive images.

    Among all thresholds that do, it calls the fewest other images positive. The share holds on
    the images given. Of others it is missed rather more often than kept (see
    `docs/decisions.md`), so it must be measured there, or asked for with room to spare.

    Args:
        scores: Probability of the positive class per image, `float (n,)`.
        is_positive: Which images are of the positive class, `bool (n,)`.
        at_least: Share of them that must reach the threshold, in (0, 1].

    Raises:
        InputError: All images or none are positive, or the share is out of range.

    Example:
        >>> scores = np.array([0.125, 0.25, 0.5, 0.75])
        >>> threshold_for_sensitivity(scores, np.array([False, True, False, True]), 1.0)
        0.1875
    """
    check_share("the sensitivity", at_least)
    thresholds, hits, _ = _count_at_thresholds(scores, is_positive)
    # A quotient is rounded like the decimal number it is compared with; a product is not.
    return float(thresholds[hits / hits[0] >= at_least].max())


def threshold_for_specificity(
    scores: np.ndarray, is_positive: np.ndarray, at_least: float
) -> float:
    """Find the lowest threshold that a given share of the other images stays below.

    Among all thresholds that they do, it finds the most positive images.

    Args:
        scores: As in `threshold_for_sensitivity`.
        is_positive: As there.
        at_least: Share of the images of other classes that must stay below, in (0, 1].

    Raises:
        InputError: As there.
    """
    check_share("the specificity", at_least)
    thresholds, _, false_alarms = _count_at_thresholds(scores, is_positive)
    others = false_alarms[0]
    return float(thresholds[(others - false_alarms) / others >= at_least].min())


def threshold_for_youden(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Find the threshold with the largest sensitivity + specificity - 1.

    Of several that are equal it is the lowest, which misses the fewest positive images.

    Args:
        scores: As in `threshold_for_sensitivity`.
        is_positive: As there.

    Raises:
        InputError: All images or none are positive.

    References:
        Youden, "Index for rating diagnostic tests", Cancer 3, 1950.
    """
    thresholds, hits, false_alarms = _count_at_thresholds(scores, is_positive)
    # In whole numbers, so that equal indices are equal to the last bit.
    return float(thresholds[np.argmax(hits * false_alarms[0] - false_alarms * hits[0])])


def decide_by_cost(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Choose for each image the class whose expected cost is smallest.

    Nothing is fitted: it is as good as the probabilities are calibrated. With equal costs it is
    the most probable class.

    Args:
        probabilities: `float (n, num_classes)`; rows sum to 1.
        costs: `float (num_classes, num_classes)`: rows true, columns decided.

    Returns:
        Positions of the classes, `int (n,)`; the first in class order on a tie.

    Raises:
        InputError: The shapes do not fit.

    Example:
        >>> decide_by_cost(np.array([[0.9, 0.1], [0.99, 0.01]]), np.array([[0, 1], [20, 0]]))
        array([1, 0])

    References:
        Elkan, "The Foundations of Cost-Sensitive Learning", IJCAI 2001, section 1.
    """
    num_classes = probabilities.shape[1]
    if costs.shape != (num_classes, num_classes):
        raise InputError(
            f"costs of shape {costs.shape} do not fit probabilities of {num_classes} classes; "
            "pass one row per true class and one column per decided class, in class order."
        )
    return (probabilities @ costs).argmin(axis=1)


def possible_thresholds(scores: np.ndarray) -> np.ndarray:
    """List every threshold that parts the scores in another way, from the lowest up.

    Args:
        scores: Probabilities, `float (n,)`.

    Returns:
        `EVERYTHING`, the points halfway between neighbours that are further apart than
        `RESOLUTION`, and `NOTHING`.
    """
    distinct = np.unique(scores)
    halfway = (distinct[:-1] + distinct[1:]) / 2
    return np.concatenate([[EVERYTHING], halfway[np.diff(distinct) > RESOLUTION], [NOTHING]])


def count_reaching(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Count for each threshold the scores that reach it, `int` of the shape of `thresholds`."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def check_share(name: str, share: float) -> float:
    """Return a share in (0, 1].

    Raises:
        InputError: It is not one.
    """
    if not 0 < share <= 1:
        raise InputError(f"{name} asked for is {share}; pass a share above 0 and at most 1.")
    return share


def _count_at_thresholds(
    scores: np.ndarray, is_positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the thresholds, and how many positive and other images reach each; first all do."""
    num_positives = int(is_positive.sum())
    if not 0 < num_positives < len(scores):
        raise InputError(
            f"{num_positives} of {len(scores)} images are of the positive class; a threshold "
            "needs images of it and of other classes."
        )
    thresholds = possible_thresholds(scores)
    hits = count_reaching(scores[is_positive], thresholds)
    return thresholds, hits, count_reaching(scores[~is_positive], thresholds)
