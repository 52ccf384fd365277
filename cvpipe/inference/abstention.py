"""Answer only when sure enough: how many mistakes are left when how many images are answered.

Probabilities flow in. An image is answered when its *confidence*, the largest probability,
reaches a threshold. *Coverage* is the share of images answered, *risk* the share of mistakes
among them.
"""

import numpy as np

from cvpipe.errors import InputError
from cvpipe.inference.thresholds import check_share, count_reaching, possible_thresholds


def confidence(probabilities: np.ndarray) -> np.ndarray:
    """Return the largest probability of each image, `float (n,)`."""
    return probabilities.max(axis=1)


def threshold_for_coverage(confidences: np.ndarray, share: float) -> float:
    """Find the highest threshold of confidence at which a given share of images is answered.

    Args:
        confidences: One per image, `float (n,)`.
        share: Share of images to be answered, in (0, 1].

    Raises:
        InputError: There are no images, or the share is out of range.

    Example:
        >>> threshold_for_coverage(np.array([0.5, 0.75, 0.875, 1.0]), 0.75)
        0.625
    """
    check_share("the share of answered images", share)
    _check_not_empty(confidences)
    thresholds = possible_thresholds(confidences)
    reached = count_reaching(confidences, thresholds) / len(confidences)
    return float(thresholds[reached >= share].max())


def risk_coverage(confidences: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow the risk while images are answered one after another, the surest first.

    Images of equal confidence are answered together, because no threshold parts them.

    Args:
        confidences: One per image, `float (n,)`.
        is_right: Whether the answer is right, `bool (n,)`.

    Returns:
        Coverage, rising to 1, and the risk at it; both `float (k,)`, one per distinct
        confidence.

    Raises:
        InputError: There are no images.

    References:
        El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification",
        Journal of Machine Learning Research 11, 2010, section 2; Geifman and El-Yaniv,
        "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    """
    _check_not_empty(confidences)
    order = np.argsort(-confidences, kind="stable")
    surest_first = confidences[order]
    last_of_equals = np.append(surest_first[:-1] != surest_first[1:], True)
    answered = np.arange(1, len(order) + 1)[last_of_equals]
    mistakes = np.cumsum(~is_right[order])[last_of_equals]
    return answered / len(order), mistakes / answered


def area_under_risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> float:
    """Average the risk over all images, each taken as the least sure one that is answered.

    0 is perfect. It is at most the share of all mistakes when the sure answers are right more
    often, so it is to be compared between contenders of like accuracy.

    Args:
        coverage: See `risk_coverage`.
        risk: See there.

    References:
        Geifman, Uziel and El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural
        Classifiers", ICLR 2019, section 2.
    """
    return float(np.diff(coverage, prepend=0.0) @ risk)


def _check_not_empty(confidences: np.ndarray) -> None:
    if not len(confidences):
        raise InputError("there are no images to answer; pass at least one confidence.")
