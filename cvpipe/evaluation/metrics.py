"""Metrics of probabilities against targets, for one sample or many resamples at once.

Targets are integers of shape `(n,)`, probabilities have shape `(n, num_classes)`. Every
function also takes `weights`, non-negative, of shape `(n,)` or `(num_resamples, n)`: how
often each image counts. The last axis is summed away, so weights of shape `(n,)` (the
default, all ones) give one value and `(num_resamples, n)` give one value per resample;
integer weights give what repeating the rows would. A bootstrap is thereby a few matrix
products instead of a loop.

The predicted class is the most probable one, the first on a tie. What cannot be computed
(the recall of a class without images) is NaN.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cvpipe.errors import InputError

# The spacing of float32 numbers just below 1 is 6e-8: a float32 softmax cannot say "nearly
# sure" more finely, yet it can say exactly 0. One certain mistake then costs 16.1, not infinity.
PROBABILITY_FLOOR = 1e-7
NUM_CALIBRATION_BINS = 15


def accuracy(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Share of images whose most probable class is the true one."""
    weights = _check_weights(targets, probabilities, weights)
    return _weighted_mean(is_correct(targets, probabilities), weights)


def balanced_accuracy(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean recall over the classes that are present in the targets."""
    recalls = recall(targets, probabilities, weights)
    return _mean_where(np.isfinite(recalls), recalls)


def macro_f1(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean F1 over the classes that are present in the targets.

    A class that is predicted but absent from the targets is left out of the mean; the
    mistake still counts, as a miss of the true class.
    """
    return macro_f1_of_counts(_class_counts(targets, probabilities, weights))


def log_loss(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean negative natural logarithm of the true class's probability; see `image_log_losses`."""
    weights = _check_weights(targets, probabilities, weights)
    return _weighted_mean(image_log_losses(targets, probabilities), weights)


def roc_auc(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Area under the receiver operating characteristic.

    The probability that an image of the class gets a higher score than one of another
    class, ties counting one half. Of two classes it is the second one's area; of more,
    the mean of one class against the rest over the classes that some, but not all,
    images have. NaN if there is none.
    """
    weights = _check_weights(targets, probabilities, weights)
    num_classes = probabilities.shape[1]
    classes = [1] if num_classes == 2 else list(range(num_classes))
    areas = np.stack(
        [_area_of_class(targets == index, probabilities[:, index], weights) for index in classes],
        axis=-1,
    )
    return _mean_where(np.isfinite(areas), areas)


def brier(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean squared distance of the probabilities from the one-hot targets, in [0, 2].

    The squares are summed over all classes (Brier's own definition), so with two classes
    it is twice the score of the second class alone.

    References:
        Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly
        Weather Review 78, 1950, equation 2.
    """
    weights = _check_weights(targets, probabilities, weights)
    distances = probabilities - np.eye(probabilities.shape[1])[targets]
    return _weighted_mean((distances**2).sum(axis=1), weights)


def ece(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Expected calibration error of the most probable class, in [0, 1].

    The sum of the absolute `calibration_gaps`. Chance alone makes it positive, so on few
    images a perfectly calibrated classifier has a value well above 0.

    References:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks",
        ICML 2017, equation 3.
    """
    return np.abs(calibration_gaps(targets, probabilities, weights)).sum(axis=-1)


def precision(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """For each class, the share of the images given it that have it; NaN if none is given it.

    Returns:
        Array of shape `(..., num_classes)`, like `recall` and `f1`.
    """
    counts = _class_counts(targets, probabilities, weights)
    return _ratio(counts[..., 2, :], counts[..., 1, :])


def recall(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """For each class, the share of its images that are given it; NaN if it has none."""
    counts = _class_counts(targets, probabilities, weights)
    return _ratio(counts[..., 2, :], counts[..., 0, :])


def f1(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """For each class, the harmonic mean of precision and recall; NaN if it never occurs.

    Computed from the counts, so it is 0, not undefined, when the class has images but is
    never predicted or the other way round.
    """
    return _f1_of_counts(_class_counts(targets, probabilities, weights))


class Metric(NamedTuple):
    """A metric and what there is to know about it.

    Args:
        function: Maps targets, probabilities and weights to values.
        higher_is_better: Whether a larger value is a better one.
        title: Name for tables and figures.
        upper: Largest possible value; the smallest possible one is 0 for all.
        over_classes: Whether it is a mean over classes, so that the rarest class limits
            how well it is known, or a mean over images.
    """

    function: Callable[..., np.ndarray]
    higher_is_better: bool
    title: str
    upper: float
    over_classes: bool


METRICS = {
    "accuracy": Metric(accuracy, True, "Accuracy", 1.0, False),
    "balanced_accuracy": Metric(balanced_accuracy, True, "Balanced accuracy", 1.0, True),
    "macro_f1": Metric(macro_f1, True, "Macro F1", 1.0, True),
    "log_loss": Metric(log_loss, False, "Log loss", -math.log(PROBABILITY_FLOOR), False),
    "roc_auc": Metric(roc_auc, True, "ROC-AUC", 1.0, True),
    "brier": Metric(brier, False, "Brier score", 2.0, False),
    "ece": Metric(ece, False, "Expected calibration error", 1.0, False),
}
# One value per class instead of one value.
CLASS_METRICS = {
    "precision": Metric(precision, True, "Precision", 1.0, False),
    "recall": Metric(recall, True, "Recall", 1.0, False),
    "f1": Metric(f1, True, "F1", 1.0, False),
}


def is_correct(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Say for each image whether its most probable class is the true one, `bool (n,)`."""
    return probabilities.argmax(axis=1) == targets


def image_log_losses(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Negative natural logarithm of each image's true-class probability, `float64 (n,)`.

    Probabilities below `PROBABILITY_FLOOR` (1e-7) are raised to it.
    """
    likelihoods = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    # The upper end: a row may sum to slightly more than 1, and a loss is never negative.
    return -np.log(np.clip(likelihoods, PROBABILITY_FLOOR, 1.0))


def calibration_gaps(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean confidence minus accuracy of each of 15 bins, times the bin's share of images.

    The images are put into bins of equal width by their highest probability; a bin holds its
    upper edge.

    Returns:
        Array of shape `(..., 15)`; positive where the classifier is too sure.
    """
    weights = _check_weights(targets, probabilities, weights)
    confidences = probabilities.max(axis=1)
    inner_edges = np.arange(1, NUM_CALIBRATION_BINS) / NUM_CALIBRATION_BINS
    bins = np.searchsorted(inner_edges, confidences, side="left")
    gaps = np.zeros((len(targets), NUM_CALIBRATION_BINS))
    gaps[np.arange(len(targets)), bins] = confidences - is_correct(targets, probabilities)
    return _ratio(weights @ gaps, np.expand_dims(weights.sum(axis=-1), -1))


def class_terms(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """What each image adds to the counts of each class.

    Returns:
        `float64 (n, 3, num_classes)` of zeros and ones: the image has the class, is given
        the class, both.
    """
    one_hot = np.eye(probabilities.shape[1])
    true, given = one_hot[targets], one_hot[probabilities.argmax(axis=1)]
    return np.stack([true, given, true * given], axis=1)


def macro_f1_of_counts(counts: np.ndarray) -> np.ndarray:
    """Macro F1 from summed `class_terms` of shape `(..., 3, num_classes)`."""
    return _mean_where(counts[..., 0, :] > 0, _f1_of_counts(counts))


def _f1_of_counts(counts: np.ndarray) -> np.ndarray:
    return _ratio(2 * counts[..., 2, :], counts[..., 0, :] + counts[..., 1, :])


def _class_counts(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    weights = _check_weights(targets, probabilities, weights)
    num_images, num_classes = probabilities.shape
    terms = class_terms(targets, probabilities).reshape(num_images, 3 * num_classes)
    return (weights @ terms).reshape(*weights.shape[:-1], 3, num_classes)


def _area_of_class(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area of one class from one sort and one cumulative sum per resample."""
    order = np.argsort(scores)
    no_weight = np.zeros((*weights.shape[:-1], 1))
    cumulative = np.concatenate([no_weight, np.cumsum(weights[..., order], axis=-1)], axis=-1)
    sorted_scores = scores[order]
    first = np.searchsorted(sorted_scores, scores[positive], side="left")
    last = np.searchsorted(sorted_scores, scores[positive], side="right")
    beaten = (cumulative[..., first] + cumulative[..., last]) / 2  # ties count one half
    positive_weights = weights[..., positive]
    num_positive = positive_weights.sum(axis=-1)
    # `beaten` counts all images. Among themselves the positives beat half of each other.
    wins = (positive_weights * beaten).sum(axis=-1) - num_positive**2 / 2
    return _ratio(wins, num_positive * (weights.sum(axis=-1) - num_positive))


def _check_weights(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    if probabilities.ndim != 2 or targets.shape != probabilities.shape[:1]:
        raise InputError(
            f"targets of shape {targets.shape} and probabilities of shape {probabilities.shape} "
            "do not fit; pass (n,) and (n, num_classes)."
        )
    if weights is None:
        return np.ones(len(targets))
    if weights.shape[-1:] != targets.shape:
        raise InputError(
            f"weights of shape {weights.shape} do not fit {len(targets)} images; "
            "pass (n,) or (num_resamples, n)."
        )
    if not (weights >= 0).all():
        raise InputError(
            f"weights must not be negative or NaN, but the smallest is {weights.min()}; "
            "pass how often each image counts."
        )
    return weights.astype(np.float64, copy=False)


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _ratio(weights @ values, weights.sum(axis=-1))


def _mean_where(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of the values under the mask; NaN where it is empty."""
    return _ratio(np.where(mask, values, 0.0).sum(axis=-1), mask.sum(axis=-1))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    undefined = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.asarray(denominator) > 0)
