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
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.evaluation.costs import check_costs

# The spacing of float32 numbers just below 1 is 6e-8: a float32 softmax cannot say "nearly
# sure" more finely, yet it can say exactly 0. One certain mistake then costs 16.1, not infinity.
PROBABILITY_FLOOR = 1e-7
NUM_CALIBRATION_BINS = 15
# Numbers of most probable classes among which the true one is sought.
TOP_KS = (3, 5)


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


def matthews(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Correlation of the predicted with the true class, in [-1, 1]; 0 is chance.

    With two classes it is Matthews' coefficient, with more Gorodkin's, which cannot reach -1.
    A constant answer has 0 (the formula says 0 / 0): it varies with nothing, and 0 is what the
    coefficient tends to. NaN if all images have one class: then nothing can be told apart.

    References:
        Matthews, "Comparison of the predicted and observed secondary structure of T4 phage
        lysozyme", Biochimica et Biophysica Acta 405, 1975; Gorodkin, "Comparing two
        K-category assignments by a K-category correlation coefficient", Computational
        Biology and Chemistry 28, 2004, equation 8; for the limit, Chicco and Jurman, "The
        advantages of the Matthews correlation coefficient (MCC) over F1 score and accuracy
        in binary classification evaluation", BMC Genomics 21, 2020, methods.
    """
    true, given, both = _class_shares(targets, probabilities, weights)
    covariance = both.sum(axis=-1) - (true * given).sum(axis=-1)
    variance, given_variance = 1 - (true**2).sum(axis=-1), 1 - (given**2).sum(axis=-1)
    # Rounding can leave a variance a hair below 0.
    scale = np.sqrt(np.clip(variance, 0, None) * np.clip(given_variance, 0, None))
    coefficient = np.where((given > 0).sum(axis=-1) > 1, _ratio(covariance, scale), 0.0)
    return np.where((true > 0).sum(axis=-1) > 1, np.clip(coefficient, -1, 1), np.nan)


def kappa(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Cohen's kappa of the predicted and the true class, in [-1, 1]; 0 is chance.

    The accuracy above that of answers dealt out at random in the numbers in which the classes
    were predicted, as a share of the most it could be above. Unweighted: all mistakes are
    equally bad. NaN if all images have one class: then nothing can be told apart.

    References:
        Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological
        Measurement 20, 1960.
    """
    true, given, both = _class_shares(targets, probabilities, weights)
    by_chance = (true * given).sum(axis=-1)
    has_two_classes = (true > 0).sum(axis=-1) > 1
    agreement = _ratio(both.sum(axis=-1) - by_chance, np.where(has_two_classes, 1 - by_chance, 0.0))
    return np.clip(agreement, -1, 1)  # but for rounding


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
    classes = [1] if num_classes == 2 else range(num_classes)  # the other one's area is equal
    return _mean_over_classes(_area_of_class, classes, targets, probabilities, weights)


def pr_auc(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Area under the curve of precision against recall, as average precision.

    The precision at each threshold, weighted by the recall gained there: steps, no straight
    lines between the points, which would promise too much. Equal scores are one threshold.
    The mean of one class against the rest over the classes that some, but not all, images
    have, also of two classes: the areas of two classes differ, and none of them is called the
    positive one. NaN if there is none. Chance is a class's share of the images.

    References:
        Davis and Goadrich, "The Relationship Between Precision-Recall and ROC Curves", ICML
        2006, section 4 (no straight lines); Manning, Raghavan and Schütze, "Introduction to
        Information Retrieval", 2008, section 8.4 (average precision).
    """
    weights = _check_weights(targets, probabilities, weights)
    classes = range(probabilities.shape[1])
    return _mean_over_classes(_average_precision, classes, targets, probabilities, weights)


def top_k(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None, *, k: int
) -> np.ndarray:
    """Share of images whose true class is among the `k` most probable ones.

    On a tie the first classes are the more probable ones, as for the predicted class, so
    `k = 1` is the accuracy.
    """
    weights = _check_weights(targets, probabilities, weights)
    return _weighted_mean(is_among_top(targets, probabilities, k), weights)


def cost(
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    costs: np.ndarray,
) -> np.ndarray:
    """Mean cost of the predicted classes.

    Args:
        targets: See the head of this module.
        probabilities: The same; the predicted class is the most probable one, whatever it
            may cost.
        weights: The same.
        costs: `(num_classes, num_classes)`, see `cvpipe.evaluation.costs.cost_matrix`.

    References:
        Elkan, "The Foundations of Cost-Sensitive Learning", IJCAI 2001, section 1.
    """
    weights = _check_weights(targets, probabilities, weights)
    return _weighted_mean(costs[targets, probabilities.argmax(axis=1)], weights)


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


def specificity(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """For each class, the share of the images of other classes that are not given it.

    NaN if there are no such images.
    """
    counts = _class_counts(targets, probabilities, weights)
    true, given, both = (counts[..., row, :] for row in range(3))
    others = true.sum(axis=-1, keepdims=True) - true
    return _ratio(others - (given - both), others)


class Metric(NamedTuple):
    """A metric and what there is to know about it.

    Args:
        function: Maps targets, probabilities and weights to values.
        higher_is_better: Whether a larger value is a better one.
        title: Name for tables and figures.
        upper: Largest possible value.
        over_classes: Whether it is a mean over classes, or corrected for their frequencies,
            so that the rarest class limits how well it is known; otherwise a mean over images.
        is_proportion: Whether it is the share of images of which something is true.
        lower: Smallest possible value.
    """

    function: Callable[..., np.ndarray]
    higher_is_better: bool
    title: str
    upper: float
    over_classes: bool
    is_proportion: bool = False
    lower: float = 0.0


# What every predictions table has; see also `metrics_for`.
METRICS = {
    "accuracy": Metric(accuracy, True, "Accuracy", 1.0, False, is_proportion=True),
    "balanced_accuracy": Metric(balanced_accuracy, True, "Balanced accuracy", 1.0, True),
    "macro_f1": Metric(macro_f1, True, "Macro F1", 1.0, True),
    "matthews": Metric(matthews, True, "Matthews correlation", 1.0, True, lower=-1.0),
    "kappa": Metric(kappa, True, "Cohen's kappa", 1.0, True, lower=-1.0),
    "log_loss": Metric(log_loss, False, "Log loss", -math.log(PROBABILITY_FLOOR), False),
    "roc_auc": Metric(roc_auc, True, "ROC-AUC", 1.0, True),
    "pr_auc": Metric(pr_auc, True, "PR-AUC", 1.0, True),
    "brier": Metric(brier, False, "Brier score", 2.0, False),
    "ece": Metric(ece, False, "Expected calibration error", 1.0, False),
}
# One value per class instead of one value.
CLASS_METRICS = {
    "precision": Metric(precision, True, "Precision", 1.0, False, is_proportion=True),
    "recall": Metric(recall, True, "Recall", 1.0, False, is_proportion=True),
    "f1": Metric(f1, True, "F1", 1.0, False),
    "specificity": Metric(specificity, True, "Specificity", 1.0, False, is_proportion=True),
}


def metrics_for(num_classes: int, costs: np.ndarray | None = None) -> dict[str, Metric]:
    """List the metrics over all classes of a predictions table.

    `METRICS`, then `top_3` and `top_5` where there are more classes than that (otherwise no
    answer could miss), then `cost` where costs are given.

    Args:
        num_classes: Number of classes.
        costs: See `cost_matrix`.

    Raises:
        InputError: `costs` is not such a matrix.
    """
    metrics = dict(METRICS)
    for k in TOP_KS:
        if num_classes > k:
            function = partial(top_k, k=k)
            metrics[f"top_{k}"] = Metric(
                function, True, f"Top-{k} accuracy", 1.0, False, is_proportion=True
            )
    if costs is not None:
        largest = float(check_costs(costs, num_classes).max())
        metrics["cost"] = Metric(partial(cost, costs=costs), False, "Mean cost", largest, False)
    return metrics


def is_correct(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Say for each image whether its most probable class is the true one, `bool (n,)`."""
    return probabilities.argmax(axis=1) == targets


def is_among_top(targets: np.ndarray, probabilities: np.ndarray, k: int) -> np.ndarray:
    """Say for each image whether the true class is among the `k` most probable, `bool (n,)`."""
    of_true = probabilities[np.arange(len(targets)), targets][:, None]
    is_earlier = np.arange(probabilities.shape[1]) < targets[:, None]
    ahead = (probabilities > of_true) | ((probabilities == of_true) & is_earlier)
    return ahead.sum(axis=1) < k


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
    gaps = np.zeros((len(targets), NUM_CALIBRATION_BINS))
    bins = calibration_bins(confidences)
    gaps[np.arange(len(targets)), bins] = confidences - is_correct(targets, probabilities)
    return _ratio(weights @ gaps, np.expand_dims(weights.sum(axis=-1), -1))


def calibration_bins(confidences: np.ndarray) -> np.ndarray:
    """Say in which of the 15 bins of equal width each confidence lies, `int (n,)` from 0."""
    inner_edges = np.arange(1, NUM_CALIBRATION_BINS) / NUM_CALIBRATION_BINS
    return np.searchsorted(inner_edges, confidences, side="left")


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


def _class_shares(
    targets: np.ndarray, probabilities: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of the images that have a class, are given it, both; each `(..., num_classes)`."""
    counts = _class_counts(targets, probabilities, weights)
    total = counts[..., :1, :].sum(axis=-1, keepdims=True)
    shares = _ratio(counts, np.broadcast_to(total, counts.shape))
    return shares[..., 0, :], shares[..., 1, :], shares[..., 2, :]


def _mean_over_classes(
    area: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    classes: Sequence[int],
    targets: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """Mean of an area of one class against the rest, where it is defined."""
    # Image first: what is gathered and summed are then whole rows, which is several times faster.
    by_image = np.ascontiguousarray(weights.T)
    areas = np.stack(
        [area(targets == index, probabilities[:, index], by_image) for index in classes], axis=-1
    )
    return _mean_where(np.isfinite(areas), areas)


def _area_of_class(positive: np.ndarray, scores: np.ndarray, by_image: np.ndarray) -> np.ndarray:
    """ROC area of one class; weights `(n, ...)`, result `(...)`."""
    order = np.argsort(scores)
    first = np.searchsorted(scores[order], scores[positive], side="left")
    last = np.searchsorted(scores[order], scores[positive], side="right")
    below, up_to = np.split(_sums_before(np.concatenate([first, last]), by_image[order]), 2)
    positive_weights = by_image[positive]
    num_positive = positive_weights.sum(axis=0)
    # This counts all images, ties one half. Among themselves the positives beat half of each other.
    wins = (positive_weights * (below + up_to)).sum(axis=0) / 2 - num_positive**2 / 2
    return _ratio(wins, num_positive * (by_image.sum(axis=0) - num_positive))


def _average_precision(
    positive: np.ndarray, scores: np.ndarray, by_image: np.ndarray
) -> np.ndarray:
    """Average precision of one class; NaN without positives or without negatives."""
    order = np.argsort(-scores)
    descending = order[positive[order]]
    thresholds = -scores[descending]
    # Weights of the images, and of the positives, that score at least as high as each positive.
    found = _sums_before(np.searchsorted(-scores[order], thresholds, side="right"), by_image[order])
    right = _sums_before(
        np.searchsorted(thresholds, thresholds, side="right"), by_image[descending]
    )
    num_positive = by_image[positive].sum(axis=0)
    precisions = np.divide(right, found, out=np.zeros_like(right), where=found > 0)
    gained = (by_image[descending] * precisions).sum(axis=0)
    has_negatives = by_image[~positive].any(axis=0)
    return _ratio(gained, np.where(has_negatives, num_positive, 0.0))


def _sums_before(positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sums of all rows before each position, `(len(positions), ...)`.

    Rows between two neighbouring positions are summed first, so that only as many sums are
    accumulated as are asked for.
    """
    edges = np.unique(np.append(positions, 0))
    edges = edges[edges < len(rows)]
    sums = np.cumsum(np.add.reduceat(rows, edges, axis=0), axis=0)
    sums = np.concatenate([np.zeros((1, *rows.shape[1:])), sums])
    return sums[np.searchsorted(edges, positions)]


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
