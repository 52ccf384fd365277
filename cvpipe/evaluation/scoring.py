"""From one predictions table to a table of metrics with intervals.

Images are matched to their groups by `image_id` and sorted by it before anything is drawn,
so the order of the rows changes nothing.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.evaluation.intervals import (
    NUM_RESAMPLES,
    ROUNDING,
    absolute_sum_interval,
    bootstrap,
    bounded_interval,
    clustered_wilson_interval,
    effective_groups,
    percentile_interval,
)
from cvpipe.evaluation.metrics import (
    CLASS_METRICS,
    TOP_KS,
    calibration_gaps,
    is_among_top,
    is_correct,
    metrics_for,
)
from cvpipe.frames import (
    check_predictions,
    predicted_class_names,
    predicted_labels,
    probabilities_of,
    targets_of,
)

COLUMNS = ["metric", "label", "value", "low", "high", "n"]


def score_predictions(
    predictions: pd.DataFrame,
    groups_by_image_id: Mapping[str, str] | pd.Series,
    seed: int,
    num_resamples: int = NUM_RESAMPLES,
    costs: np.ndarray | None = None,
) -> pd.DataFrame:
    """Compute all metrics with 95 % intervals.

    Accuracy (also among the k most probable classes), precision, recall and specificity are
    proportions: they have Wilson's interval, for fewer images than there are when some share a
    group, see `clustered_wilson_interval`. The calibration error has an interval of its own,
    see `absolute_sum_interval`. Everything else has Wilson's interval for as many images as the
    clustered bootstrap says, see `bounded_interval`; for what is a mean over classes, or
    corrected for their frequencies, the groups of the rarest class are counted.

    A constant answer has the percentile interval of the bootstrap: whatever the images, its
    figures depend on their mix alone, and that the bootstrap does see, even where it says that
    there is no spread.

    Args:
        predictions: A predictions table, all labels known.
        groups_by_image_id: The group of each image; it may know further images.
        seed: Seed of the resamples.
        num_resamples: Number of bootstrap resamples.
        costs: What each mistake costs, see `cost_matrix`; without it there is no mean cost.

    Returns:
        One row per metric of `metrics_for` (label `""`), then each of `CLASS_METRICS` for each
        class in class order. Columns `metric, label, value, low, high, n`; `n` is the number
        of images counted: all, those of the class (recall, F1), those given it (precision), or
        those of other classes (specificity). What cannot be computed is NaN.

    Raises:
        InputError: The table breaks its contract or is empty, a label is missing or unknown,
            an image has no group, there is not one resample, or the costs are no cost matrix.
    """
    rows = sort_labelled(predictions)
    class_names = predicted_class_names(rows)
    targets = targets_of(rows["label"], class_names)
    probabilities = probabilities_of(rows)
    groups = groups_of(rows["image_id"], groups_by_image_id)
    metrics = metrics_for(len(class_names), costs)

    def statistics(weights: np.ndarray) -> np.ndarray:
        arguments = (targets, probabilities, weights)
        overall = [metric.function(*arguments) for metric in metrics.values()]
        by_class = [metric.function(*arguments) for metric in CLASS_METRICS.values()]
        gaps = calibration_gaps(*arguments)
        return np.concatenate([np.stack(overall, axis=-1), *by_class, gaps], axis=-1)

    keys = [(name, "") for name in metrics]
    keys += [(name, label) for name in CLASS_METRICS for label in class_names]
    values = statistics(np.ones(len(rows)))
    resampled = bootstrap(statistics, groups, num_resamples, np.random.default_rng(seed))
    first_gap = len(keys)
    successes = _successes(targets, probabilities, class_names)
    rarest_class = _groups_of_rarest_class(targets, groups)
    is_constant = len(np.unique(groups)) > 1 and bool((probabilities == probabilities[0]).all())
    table = []
    for (name, label), value, column in zip(
        keys, values[:first_gap].tolist(), resampled.T[:first_gap], strict=True
    ):
        metric = (metrics | CLASS_METRICS)[name]
        images = _images_behind(name, label, rows)
        evidence = rarest_class if metric.over_classes else groups[images]
        if metric.is_proportion:
            interval = clustered_wilson_interval(successes[name, label][images], groups[images])
        elif is_constant and np.isfinite(column).any():
            interval = percentile_interval(column)
        elif name == "ece" and np.ptp(column) > ROUNDING:
            interval = absolute_sum_interval(values[first_gap:], resampled[:, first_gap:])
        else:
            interval = bounded_interval(value, column, evidence, (metric.lower, metric.upper))
        low, high = min(interval[0], value), max(interval[1], value)
        table.append((name, label, value, low, high, int(images.sum())))
    return pd.DataFrame(table, columns=COLUMNS)


def sort_labelled(predictions: pd.DataFrame) -> pd.DataFrame:
    """Check a predictions table for scoring and sort it by `image_id`.

    Raises:
        InputError: The table breaks its contract, is empty, or has an image without a label.
    """
    check_predictions(predictions)
    if predictions.empty:
        raise InputError("these predictions have no rows; score at least one labelled image.")
    unlabelled = predictions["image_id"][predictions["label"].fillna("") == ""]
    if len(unlabelled):
        raise InputError(
            f"{len(unlabelled)} of {len(predictions)} images have no label, first "
            f"{unlabelled.iloc[0]!r}; only labelled images can be scored, leave out the others."
        )
    return predictions.sort_values("image_id", ignore_index=True)


def groups_of(
    image_ids: pd.Series, groups_by_image_id: Mapping[str, str] | pd.Series
) -> np.ndarray:
    """Look up the group of each image.

    Args:
        image_ids: Keys, in the order wanted.
        groups_by_image_id: A mapping, or a Series with `image_id` as its index.

    Returns:
        Integers `(n,)`, equal where the groups are. They are numbered by first appearance, so
        that renaming the groups changes no draw.

    Raises:
        InputError: An image has no group, or two.
    """
    if isinstance(groups_by_image_id, pd.Series):
        known = groups_by_image_id.astype(object)
    else:
        known = pd.Series(dict(groups_by_image_id), dtype=object)
    repeated = known.index[known.index.duplicated()]
    if len(repeated):
        raise InputError(
            f"the groups list {repeated[0]!r} more than once; give each image one group."
        )
    groups = known.reindex(image_ids)
    lacking = groups.index[groups.fillna("") == ""]
    if len(lacking):
        raise InputError(
            f"{len(lacking)} of {len(image_ids)} images have no group, first {lacking[0]!r}; "
            "pass groups keyed by image_id, an image on its own has its image_id as group."
        )
    return pd.factorize(groups)[0]


def _images_behind(name: str, label: str, rows: pd.DataFrame) -> np.ndarray:
    """Say which images a metric counts, `bool (n,)`."""
    if name not in CLASS_METRICS:
        return np.full(len(rows), True)
    if name == "precision":
        return predicted_labels(rows) == label
    is_of_class = rows["label"].to_numpy() == label
    return ~is_of_class if name == "specificity" else is_of_class


def _successes(
    targets: np.ndarray, probabilities: np.ndarray, class_names: list[str]
) -> dict[tuple[str, str], np.ndarray]:
    """Say of which images the proportions are true, `bool (n,)`, by metric and class."""
    correct = is_correct(targets, probabilities)
    predicted = probabilities.argmax(axis=1)
    successes = {("accuracy", ""): correct}
    successes |= {(f"top_{k}", ""): is_among_top(targets, probabilities, k) for k in TOP_KS}
    for target, label in enumerate(class_names):
        successes |= {("precision", label): correct, ("recall", label): correct}
        successes["specificity", label] = predicted != target
    return successes


def _groups_of_rarest_class(targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Groups of the images of the class whose groups are worth the fewest; it has one at least."""
    of_classes = [groups[targets == target] for target in np.unique(targets)]
    return min(of_classes, key=effective_groups)
