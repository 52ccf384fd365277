"""What another training set would have given: figures of a recipe from its folds.

The pooled figures of k-fold and their intervals are about these images and these fits. How far
the figure of a *recipe* can be trusted also depends on the training sets, and that shows in how
the folds differ from one another. The folds share most of their training images, so they differ
less than independent training sets would: the variance is corrected for it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from cvpipe.errors import InputError, check_name
from cvpipe.evaluation.comparison import holm_adjust, verdict_of
from cvpipe.evaluation.intervals import CONFIDENCE
from cvpipe.evaluation.metrics import METRICS
from cvpipe.frames import (
    check_predictions,
    match_rows,
    predicted_class_names,
    probabilities_of,
    targets_of,
)

FOLD_METRICS = ("accuracy", "log_loss")
COLUMNS = [
    "contender",
    "metric",
    "mean",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "p_value",
    "p_adjusted",
    "verdict",
    "num_fits",
]


class FoldMean(NamedTuple):
    """A mean over folds.

    Attributes:
        mean: The mean.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Of the test that the expected value is 0, two-sided.
    """

    mean: float
    low: float
    high: float
    p_value: float


def corrected_mean(
    values: Sequence[float] | np.ndarray, test_to_train: float, least_spread: float = 0.0
) -> FoldMean:
    """Mean of a figure over folds, with the corrected resampled t-test.

    Ordinary t-tests take the folds for independent. The variance of the mean is instead
    (1 / J + test_to_train) times the sample variance of the J values.

    Args:
        values: The figure of each fold, of all repeats, `(J,)` with J of at least 2.
        test_to_train: Number of test images of a fold over that of its training images.
        least_spread: Standard deviation of the values below which they are not believed, for
            figures that come in steps.

    Returns:
        With J - 1 degrees of freedom. Values that do not vary have a p-value of 0, or of 1 if
        they are 0.

    Raises:
        InputError: There are fewer than two values, or `test_to_train` is not positive.

    Example:
        >>> found = corrected_mean([0.02, 0.05, 0.03, 0.06, 0.04], 0.25)
        >>> round(found.low, 3), round(found.high, 3), round(found.p_value, 3)
        (0.011, 0.069, 0.02)

    References:
        Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003,
        section 3; for repeated k-fold Bouckaert and Frank, "Evaluating the Replicability of
        Significance Tests for Comparing Learning Algorithms", PAKDD 2004, section 3.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        raise InputError(f"{len(values)} folds show no spread; pass the figures of at least 2.")
    if not test_to_train > 0:
        raise InputError(
            f"test_to_train is {test_to_train}; pass the number of test images of a fold divided "
            "by that of its training images."
        )
    mean = float(values.mean())
    spread = max(float(values.std(ddof=1)), least_spread)
    error = math.sqrt(1 / len(values) + test_to_train) * spread
    freedom = len(values) - 1
    margin = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    if error > 0:
        p_value = float(2 * student.sf(abs(mean) / error, freedom))
    else:
        p_value = 0.0 if mean else 1.0
    return FoldMean(mean, mean - margin, mean + margin, p_value)


def compare_folds(chosen: str, fold_tables: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Figures of each recipe, and their differences to the chosen contender's recipe.

    Each fold counts the same, whatever its size. The accuracy of a fold comes in steps of one
    image, so equal folds do not show that there is no spread: it is taken for at least that of
    rounding to whole images, a step over the root of 12. Groups that differ in size make the folds
    differ, too, and thereby count as spread.

    Args:
        chosen: The contender all others are compared with.
        fold_tables: Predictions of each contender for each fold, of all repeats; the folds in
            the same order for all.

    Returns:
        One row per contender and metric of `FOLD_METRICS`, columns `COLUMNS`: the `mean` over the
        folds with its 95 % interval; `difference`, contender minus chosen, with its own; the
        p-value, after Holm's correction over all contenders, too; the verdict; the number of fits.
        The chosen one has no difference.

    Raises:
        InputError: The chosen contender is not among the tables, the contenders do not have the
            same folds, there are fewer than two, a fold holds all images, or a table breaks its
            contract or has an unknown label.
    """
    check_name("contender", chosen, fold_tables)
    reference = [check_predictions(table) for table in fold_tables[chosen]]
    sizes = np.array([len(table) for table in reference])
    num_images = len({image_id for table in reference for image_id in table["image_id"]})
    if not 0 < sizes.min(initial=num_images) <= sizes.max(initial=0) < num_images:
        raise InputError(
            f"the folds of {chosen!r} have {sizes.tolist()} of {num_images} images; each needs "
            "images of its own, and images to train on."
        )
    test_to_train = float(np.mean(sizes / (num_images - sizes)))
    step = {"accuracy": float(np.mean(1 / sizes)) / math.sqrt(12), "log_loss": 0.0}
    theirs = _fold_values(chosen, fold_tables[chosen], reference)
    rows = []
    for name, tables in fold_tables.items():
        ours = _fold_values(name, tables, reference)
        for metric in FOLD_METRICS:
            mean, change = (
                corrected_mean(values, test_to_train, step[metric])
                for values in (ours[metric], ours[metric] - theirs[metric])
            )
            upper = METRICS[metric].upper
            interval = max(mean.low, 0.0), min(mean.high, upper)
            interval_of_change = max(change.low, -upper), min(change.high, upper)
            figures = (mean.mean, *interval, change.mean, *interval_of_change, change.p_value)
            rows.append((name, metric, *figures, len(sizes)))
    columns = [column for column in COLUMNS if column not in ("p_adjusted", "verdict")]
    table = pd.DataFrame(rows, columns=columns)
    others = table["contender"] != chosen
    table.loc[~others, ["difference", "difference_low", "difference_high", "p_value"]] = np.nan
    compared = table[others].groupby("metric")["p_value"]
    table["p_adjusted"] = compared.transform(holm_adjust)
    verdicts = table[["metric", "difference", "p_adjusted"]].itertuples(index=False)
    table["verdict"] = [
        verdict_of(*row) if other else "" for row, other in zip(verdicts, others, strict=True)
    ]
    return table[COLUMNS]


def _fold_values(
    name: str, tables: Sequence[pd.DataFrame], reference: Sequence[pd.DataFrame]
) -> dict[str, np.ndarray]:
    """Each metric of each fold, `(J,)`, after a check that the folds are those of the reference."""
    if len(tables) != len(reference):
        raise InputError(
            f"{name!r} has predictions of {len(tables)} folds, expected {len(reference)}; let "
            "every contender predict the same folds."
        )
    values = []
    for table, expected in zip(tables, reference, strict=True):
        rows = match_rows(expected, check_predictions(table))
        targets = targets_of(rows["label"], predicted_class_names(rows))
        probabilities = probabilities_of(rows)
        values.append(
            [float(METRICS[metric].function(targets, probabilities)) for metric in FOLD_METRICS]
        )
    return dict(zip(FOLD_METRICS, np.array(values).T, strict=True))
