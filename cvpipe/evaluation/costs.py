"""What mistakes cost, as a matrix in class order.

Names from the pipeline file flow in, and a matrix flows out by which predictions are scored.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from cvpipe.errors import InputError, nearest_name


def cost_matrix(costs: Mapping[str, Mapping[str, float]], class_names: Sequence[str]) -> np.ndarray:
    """Write the costs of mistakes as a matrix; what is not named costs 1.

    Args:
        costs: True class to predicted class to cost.
        class_names: Class order.

    Returns:
        `float64 (num_classes, num_classes)`: rows true, columns predicted, 0 on the diagonal.

    Raises:
        InputError: A class is unknown, or see `check_costs`.

    Example:
        >>> cost_matrix({"tumour": {"healthy": 20}}, ["healthy", "tumour"]).tolist()
        [[0.0, 1.0], [20.0, 0.0]]
    """
    # The same letters may be stored in two ways: a folder unpacked elsewhere, a name typed here.
    places = {unicodedata.normalize("NFC", name): at for at, name in enumerate(class_names)}

    def place(name: str) -> int:
        at = places.get(unicodedata.normalize("NFC", name))
        if at is None:
            raise InputError(
                f"evaluate.costs names the class {name!r}, but the images have the classes "
                f"{list(class_names)}; {nearest_name(name, class_names)}"
            )
        return at

    matrix = 1.0 - np.eye(len(class_names))
    for true, row in costs.items():
        at = place(true)
        for predicted, value in row.items():
            matrix[at, place(predicted)] = value
    return check_costs(matrix, len(class_names))


def check_costs(costs: np.ndarray, num_classes: int) -> np.ndarray:
    """Return costs that are 0 for right answers and not negative, but not 0 for all mistakes.

    A right answer costs nothing so that the mean cost has a zero to be compared with. Where
    right answers do cost something, subtract it from the row of the class.

    Raises:
        InputError: The costs are otherwise, or not of shape `(num_classes, num_classes)`.
    """
    if costs.shape != (num_classes, num_classes):
        raise InputError(
            f"costs of shape {costs.shape} do not fit {num_classes} classes; pass one row per "
            "true class and one column per predicted class, in class order."
        )
    if not ((costs >= 0) & np.isfinite(costs)).all() or costs.diagonal().any():
        raise InputError(
            f"costs must be finite, not negative, and 0 for right answers, but are "
            f"{costs.tolist()}; subtract what a right answer costs from the row of its class."
        )
    if not costs.any():
        raise InputError(
            "the costs of all mistakes are 0, so there is nothing to measure; give one mistake "
            "a cost above 0, or leave evaluate.costs out."
        )
    return costs
