"""The two losses of linear classifiers, as the lectures define them."""

import numpy as np


def hinge_loss(scores: np.ndarray, targets: np.ndarray, margin: float = 1.0) -> np.ndarray:
    """Compute the multiclass hinge loss: the sum of `max(0, s_j - s_y + margin)` over `j != y`.

    Args:
        scores: Array of shape `(n, num_classes)`.
        targets: `int` array of shape `(n,)`: the true classes `y`.
        margin: By how much the score of the true class should be above all others.

    Returns:
        Array of shape `(n,)`, from 0. With scores that are all equal it is
        `margin * (num_classes - 1)`.

    References:
        Lecture 3 (loss functions). Weston and Watkins, "Support Vector Machines for Multi-Class
        Pattern Recognition", ESANN 1999.

    Example:
        >>> hinge_loss(np.array([[3.0, 1.0, 2.5]]), np.array([0]))
        array([0.5])
    """
    rows = np.arange(len(scores))
    margins = np.maximum(scores - scores[rows, targets][:, None] + margin, 0.0)
    margins[rows, targets] = 0.0
    return margins.sum(axis=1)


def softmax_loss(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Compute the cross-entropy: minus the logarithm of the true class's softmax probability.

    Args:
        scores: Array of shape `(n, num_classes)`.
        targets: `int` array of shape `(n,)`.

    Returns:
        Array of shape `(n,)`, from 0. With scores that are all equal it is `log(num_classes)`.

    References:
        Lecture 3 (softmax classifier).

    Example:
        >>> softmax_loss(np.zeros((1, 4)), np.array([2])).round(4)
        array([1.3863])
    """
    # Nothing overflows once the largest score is 0, and the probabilities are the same.
    shifted = scores - scores.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(scores)), targets]
    return np.log(np.exp(shifted).sum(axis=1)) - own
