"""Find labels that are probably wrong, from predictions for images that the model had not seen.

Confident learning: an image counts as confidently of a class when its probability reaches the
average that images labelled with the class reach. An image that is confidently of another class
than its label is a suspect. The averages make up for a model that is too sure or not sure enough
of a class, which a fixed bound could not.

References:
    Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
    Journal of Artificial Intelligence Research 70, 2021, section 3.
"""

import numpy as np
import pandas as pd

from cvpipe.frames import (
    check_predictions,
    predicted_class_names,
    probabilities_of,
    targets_of,
)

SUSPECT_COLUMNS = [
    "image_id",
    "label",
    "suggested",
    "label_probability",
    "suggested_probability",
    "margin",
]
NOBODY = -1
# The sum of equal numbers can come out above their multiple.
ROUNDING = 1e-6


def confident_targets(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Say of which class each image confidently is.

    Args:
        targets: Given labels as `int` array of shape `(n,)`, each in [0, num_classes).
        probabilities: Out-of-fold probabilities of shape `(n, num_classes)`.

    Returns:
        `int` array of shape `(n,)`: the most probable of the classes whose threshold (the mean
        probability of the class over the images that bear it as label) the image reaches; -1
        where it reaches none. A class that no image is labelled with is never reached. Counted
        by given and confident class, these are the confident joint of the paper.

    Example:
        >>> probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]])
        >>> confident_targets(np.array([0, 0, 1, 1]), probabilities).tolist()
        [0, -1, 1, 0]
    """
    own = targets[:, None] == np.arange(probabilities.shape[1])
    sums = np.where(own, probabilities, 0.0).sum(axis=0)
    # A probability of zero is no confidence, even where it is the average of a class.
    reached = (probabilities * own.sum(axis=0) >= sums - ROUNDING) & (probabilities > 0.0)
    reached &= own.any(axis=0)
    best = np.where(reached, probabilities, -1.0).argmax(axis=1)
    return np.where(reached.any(axis=1), best, NOBODY)


def find_suspects(predictions: pd.DataFrame) -> pd.DataFrame:
    """List the images whose label is probably wrong, the most suspicious first.

    A suspect is confidently of another class than its label (off the diagonal of the paper's
    confident joint). We also ask that its label is not its most probable class: otherwise a rare
    class with a low threshold would claim images that the model itself gives to their label.

    Suspects are ranked by the probability of their own label (the paper's self-confidence). The
    margin that the paper offers beside it orders two classes in the same way. Of ten classes
    (`digits`, features of a network, labels wrong at random) it put fewer planted errors among
    the first 20: 9 to 14 against 11 to 16.

    Args:
        predictions: A predictions table with the given labels, predicted out of fold: by a model
            that had not seen the image. The model's own train images agree with any label.

    Returns:
        Table with the columns `SUSPECT_COLUMNS`: the given and the suggested class name, the
        probability of each, and `margin`: that of the label minus the largest other one.

    Raises:
        InputError: See `check_predictions`; or a label is not among the classes.

    Example:
        >>> predictions = pd.DataFrame({
        ...     "image_id": list("abcd"), "label": ["cat", "cat", "dog", "dog"],
        ...     "p_cat": [0.9, 0.7, 0.2, 0.9], "p_dog": [0.1, 0.3, 0.8, 0.1],
        ... })
        >>> find_suspects(predictions)[["image_id", "label", "suggested"]].to_numpy().tolist()
        [['d', 'dog', 'cat']]
    """
    class_names = predicted_class_names(check_predictions(predictions))
    probabilities = probabilities_of(predictions)
    targets = targets_of(predictions["label"], class_names)
    suggested = confident_targets(targets, probabilities)
    rows = np.arange(len(targets))
    of_label = probabilities[rows, targets]
    others = probabilities.copy()
    others[rows, targets] = -1.0
    margin = of_label - others.max(axis=1)
    table = pd.DataFrame(
        {
            "image_id": predictions["image_id"].to_numpy(),
            "label": predictions["label"].to_numpy(),
            "suggested": np.array(class_names, dtype=object)[suggested],
            "label_probability": of_label,
            "suggested_probability": probabilities[rows, suggested],
            "margin": margin,
        }
    )
    suspects = table[(suggested != NOBODY) & (suggested != targets) & (margin < 0.0)]
    return suspects.sort_values(
        ["label_probability", "margin", "image_id"], ignore_index=True, kind="stable"
    )[SUSPECT_COLUMNS]
