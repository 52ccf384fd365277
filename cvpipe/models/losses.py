"""What training minimises: a loss on logits, and how much each class counts in it.

Unequal classes are met in one of three ways: `balanced_weights` lets images of rare classes
weigh more, `balanced_order` shows them more often, and `log_priors` shifts the logits.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras

LossKind = Literal["cross_entropy", "focal"]
LOSSES: tuple[str, ...] = get_args(LossKind)
# A class that no training image shows counts as half an image: its logarithm must be finite.
COUNT_OF_UNSEEN = 0.5
# Below this distance from 1 a probability has no digits left in float32.
SMALLEST_MISS = 1e-7


def build_loss(
    kind: LossKind,
    num_classes: int,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    logit_offsets: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
) -> "Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]":
    """Build the loss of a batch, to be called eagerly or inside a `tf.function`.

    The loss of an image is its cross entropy, `-sum(label * log(probability))` over the classes.
    For `"focal"` each term is multiplied by `(1 - probability) ** focal_gamma`, so that images
    that are already right count less; `focal_gamma = 0` is the cross entropy.

    The loss of a batch is `sum(weight * loss) / n` over its images. The sum is divided by the
    number of images and not by the sum of their weights: a batch that happens to hold frequent
    classes only would otherwise count as much as any other. With `balanced_weights`, whose mean
    over the training images is 1, its size is that of the loss without weights.

    Args:
        kind: One of `LOSSES`.
        num_classes: At least 2.
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1).
        focal_gamma: At least 0; only `"focal"` uses it.
        logit_offsets: Added to the logits before the softmax, shape `(num_classes,)`: see
            `log_priors`. A trained network predicts without them.
        class_weights: At least 0, shape `(num_classes,)`: see `balanced_weights`. An image
            weighs what its label weighs before smoothing; a mixed label weighs the mean of its
            classes, each by its share.

    Returns:
        Function of targets and logits. Targets are integers of shape `(n,)`, or labels of shape
        `(n, num_classes)` whose rows sum to 1, as mixed images have them; logits are of shape
        `(n, num_classes)`. The result is a `float32` scalar, computed in `float32` also when
        logits have fewer bits.

    Raises:
        InputError: The kind is unknown, a number is out of range, or an array has another shape
            than `(num_classes,)`, numbers that are not finite, or negative weights.

    References:
        Label smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer
        Vision", CVPR 2016, section 7. Focal loss: Lin et al., "Focal Loss for Dense Object
        Detection", ICCV 2017, eq. 4, without its class weight and, where they had a sigmoid,
        with a softmax. Offsets: Menon et al., "Long-tail Learning via Logit Adjustment", ICLR
        2021, eq. 10. Cross entropy: CS231n 2017, lecture 3.
    """
    _check_numbers(kind, num_classes, label_smoothing, focal_gamma)
    offsets = _check_per_class("logit_offsets", logit_offsets, num_classes, lowest=-np.inf)
    weights = _check_per_class("class_weights", class_weights, num_classes, lowest=0.0)
    ops = import_keras().ops

    def loss(targets: "keras.KerasTensor", logits: "keras.KerasTensor") -> "keras.KerasTensor":
        logits = ops.cast(logits, "float32")
        if len(targets.shape) == 1:
            labels = ops.one_hot(targets, num_classes, dtype="float32")
        else:
            labels = ops.cast(targets, "float32")
        log_probabilities = ops.log_softmax(logits if offsets is None else logits + offsets)
        terms = -log_probabilities
        if kind == "focal":
            # The root of an exact 0 would have an infinite slope, for a gamma below 1.
            misses = ops.maximum(-ops.expm1(log_probabilities), SMALLEST_MISS)
            terms = ops.power(misses, focal_gamma) * terms
        smoothed = (1 - label_smoothing) * labels + label_smoothing / num_classes
        losses = ops.sum(smoothed * terms, axis=-1)
        return ops.mean(losses if weights is None else losses * ops.sum(labels * weights, axis=-1))

    return loss


def balanced_weights(targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Weigh classes so that each of them counts as much in the loss as any other.

    A class weighs `n / (num_present * count)`, where `num_present` is the number of classes that
    have images. The mean weight over these images is 1.

    Args:
        targets: Of the training images: integers of shape `(n,)`, in [0, num_classes).
        num_classes: How many weights to make.

    Returns:
        `float64` array of shape `(num_classes,)`; 0 for a class without images.

    Raises:
        InputError: There are no targets, or one is no class.

    Example:
        >>> balanced_weights(np.array([0, 0, 0, 2]), 3).round(3).tolist()
        [0.667, 0.0, 2.0]

    References:
        King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001,
        section 4.2, for two classes.
    """
    counts = _count_images(targets, num_classes)
    present = counts > 0
    weights = np.zeros(num_classes)
    weights[present] = len(targets) / (present.sum() * counts[present])
    return weights


def log_priors(targets: np.ndarray, num_classes: int, tau: float = 1.0) -> np.ndarray:
    """Make the offsets of logits that keep a network from preferring frequent classes.

    Added in training only, they take over the part of the logits that says how frequent a class
    is; what the network is left to learn fits classes of equal frequency.

    Args:
        targets: Of the training images: integers of shape `(n,)`, in [0, num_classes).
        num_classes: How many offsets to make.
        tau: Strength: 0 for none, 1 for the frequencies as they are.

    Returns:
        `float64` array of shape `(num_classes,)`: `tau` times the natural logarithm of each
        class's share. A class without images counts as half an image.

    Raises:
        InputError: There are no targets, one is no class, or `tau` is negative or not finite.

    Example:
        >>> np.exp(log_priors(np.array([0, 0, 0, 1]), 2)).round(3).tolist()
        [0.75, 0.25]

    References:
        Menon et al., "Long-tail Learning via Logit Adjustment", ICLR 2021, eq. 10.
    """
    if not 0 <= tau < np.inf:
        raise InputError(f"tau must be at least 0 and finite, not {tau}; 1 is usual.")
    counts = np.maximum(_count_images(targets, num_classes), COUNT_OF_UNSEEN)
    return tau * np.log(counts / counts.sum())


def balanced_order(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the images of one epoch so that each class is seen equally often.

    The source draws each image on its own, so that its counts are equal on average. Here they
    are equal in each epoch, and no image is repeated while another of its class is missing.

    Args:
        targets: Of the training images: integers of shape `(n,)`.
        rng: Decides which images are repeated or left out, which classes get one image more, and
            the order.

    Returns:
        Positions in `targets`, `int64`, shape `(n,)`, in random order. The classes that have
        images appear equally often, and so do the images of a class, up to a difference of one.

    Raises:
        InputError: There are no targets.

    References:
        Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR
        2020, section 3, class-balanced sampling.
    """
    num_images = len(targets)
    classes = rng.permutation(np.unique(_check_some(targets)))
    each, rest = divmod(num_images, len(classes))
    drawn = [
        # `np.resize` goes through the shuffled images again and again until it has enough.
        np.resize(rng.permutation(np.flatnonzero(targets == target)), each + (number < rest))
        for number, target in enumerate(classes)
    ]
    return rng.permutation(np.concatenate(drawn))


def _count_images(targets: np.ndarray, num_classes: int) -> np.ndarray:
    lowest, highest = _check_some(targets).min(), targets.max()
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"targets reach from {lowest} to {highest}, but {num_classes} classes are numbered "
            f"from 0 to {num_classes - 1}; pass the targets and the number of the same classes."
        )
    return np.bincount(targets, minlength=num_classes)


def _check_some(targets: np.ndarray) -> np.ndarray:
    if not len(targets):
        raise InputError("there are no targets to count; pass those of the training images.")
    return targets


def _check_numbers(kind: str, num_classes: int, label_smoothing: float, focal_gamma: float) -> None:
    check_name("loss", kind, LOSSES)
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, not {num_classes}.")
    if not 0 <= label_smoothing < 1:
        raise InputError(
            f"label_smoothing must be at least 0 and below 1, not {label_smoothing}; 0.1 is usual."
        )
    if not 0 <= focal_gamma < np.inf:
        raise InputError(
            f"focal_gamma must be at least 0 and finite, not {focal_gamma}; 2 is usual."
        )


def _check_per_class(
    name: str, values: np.ndarray | None, num_classes: int, lowest: float
) -> np.ndarray | None:
    """Return the values in the format that the loss computes in."""
    if values is None:
        return None
    if np.shape(values) != (num_classes,):
        raise InputError(
            f"{name} has shape {np.shape(values)}, but {num_classes} classes need "
            f"{(num_classes,)}; give one number per class."
        )
    array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all() or array.min() < lowest:
        wanted = "finite" if np.isinf(lowest) else f"finite and at least {lowest:g}"
        raise InputError(f"{name} must be {wanted}, but is {array.tolist()}; correct them.")
    return array
