"""The two halves of val: A fixes the choice, B fits what comes after training."""

import numpy as np
import pandas as pd

from cvpipe.data.splits import first_half

# Below this, half of val is too small to choose on.
MIN_VAL_FOR_HALVES = 200
MIN_GROUPS_OF_HALF = 20


def rows_for_choosing(val: pd.DataFrame) -> np.ndarray:
    """Mark the rows of val that the choice is made on: half A, or all where halves are too small.

    Returns:
        `bool` array of shape `(n,)`.
    """
    first = first_half(val["group"].tolist())
    for half in (first, ~first):
        rows = val[half]
        whole = rows["label"].nunique() == val["label"].nunique()
        if (
            len(val) < MIN_VAL_FOR_HALVES
            or rows["group"].nunique() < MIN_GROUPS_OF_HALF
            or not whole
        ):
            return np.ones(len(val), dtype=bool)
    return first


def rows_for_stopping(val: pd.DataFrame) -> np.ndarray:
    """Mark the rows of val by which the training of a network is stopped: half A, however small.

    All of them where that half is empty.

    Returns:
        `bool` array of shape `(n,)`.
    """
    first = first_half(val["group"].tolist())
    return first if first.any() else np.ones(len(val), dtype=bool)


def rows_for_fitting(val: pd.DataFrame) -> np.ndarray:
    """Mark the rows of val for what is fitted after training: half B, or all of a small val.

    Returns:
        `bool` array of shape `(n,)`.
    """
    choosing = rows_for_choosing(val)
    return choosing if choosing.all() else ~choosing
