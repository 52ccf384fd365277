"""Metadata shortcuts: can the label be named without a look at the pixels?

Classes that were collected in different places often differ in size, format or compression,
or by a column of the table such as the device. A classifier can then name the place instead of
what the images show. Each fact alone, and all facts of the file together, is given to a small
decision tree, whose accuracy on groups that it has not seen is compared with the share of the
most frequent class.
"""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pandas as pd

from cvpipe.data.findings import Finding, make_finding
from cvpipe.data.splits import assign_splits
from cvpipe.evaluation.intervals import (
    CONFIDENCE,
    NUM_RESAMPLES,
    bootstrap,
    percentile_interval,
)
from cvpipe.frames import class_names_of, targets_of

# A fact is far above the class frequencies when, at the lower end of the interval, it takes away
# at least this share of their mistakes.
FAR_ABOVE_FRACTION = 0.1
NUM_FOLDS = 5
# Enough for ten classes, each at a value of its own; too few to learn single images by heart.
MAX_LEAVES = 16
MIN_LEAF_IMAGES = 5
# A text column of more values than that is taken for names of images.
MAX_TEXT_VALUES = 50
ALL_FACTS = "all facts of the file together"
# What cvpipe itself writes into a table of images.
OWN_COLUMNS = ("image_id", "label", "group", "sha256", "split", "split_given", "careless", "fold")


def shortcut_findings(
    rows: pd.DataFrame, facts: pd.DataFrame, columns: Sequence[str], seed: int
) -> list[Finding]:
    """Find the facts that name the class of images far better than class frequencies do.

    With several facts one of them is above by chance more often. So the interval of each gain is
    widened in the way of Bonferroni, for the number of facts tried: all of them together hold in
    95 % of sets of images.

    Args:
        rows: Audited rows with `image_id`, `label`, `group` and `columns`.
        facts: Facts of the files by `image_id`: `width`, `height`, `file_bytes`, `format` and
            `mode`. Images without facts are left out.
        columns: Columns of `rows` to try; see `columns_to_try`.
        seed: Of the folds and of the resampling.

    Returns:
        At most one finding for each fact, and one for all facts of the file together, the most
        accurate first; none where the groups are too few to leave some out.
    """
    rows = rows[rows["image_id"].isin(facts["image_id"])]
    if rows["label"].nunique() < 2 or rows["group"].nunique() < NUM_FOLDS:
        return []
    clues = clues_of(rows, facts.set_index("image_id").loc[rows["image_id"]], columns)
    if not clues:
        return []
    targets = targets_of(rows["label"], class_names_of(rows["label"]))
    groups = rows["group"].to_numpy()
    fractions = {str(fold): 1.0 / NUM_FOLDS for fold in range(NUM_FOLDS)}
    folds = assign_splits(targets, groups.tolist(), fractions, f"shortcuts {seed}")
    if len(np.unique(folds)) < 2:  # classes of one group each may all fall into the same fold
        return []
    names = list(clues)
    named = [name_unseen(clues[name], targets, folds) for name in names]
    most_frequent = np.full_like(targets, np.bincount(targets).argmax())
    correct = (np.column_stack([*named, most_frequent]) == targets[:, None]).astype(np.float64)

    def accuracies(weights: np.ndarray) -> np.ndarray:
        return weights.astype(np.float64) @ correct / weights.sum(axis=1, keepdims=True)

    reached = accuracies(np.ones((1, len(rows))))[0]
    resampled = bootstrap(accuracies, groups, NUM_RESAMPLES, np.random.default_rng(seed))
    majority = reached[-1]
    findings = []
    for number in np.argsort(-reached[:-1], kind="stable"):
        gain = reached[number] - majority
        low, _ = percentile_interval(resampled[:, number] - resampled[:, -1])
        if gain - widening(len(names)) * (gain - low) >= FAR_ABOVE_FRACTION * (1.0 - majority):
            ends = percentile_interval(resampled[:, number])
            reason = describe_shortcut(names[number], reached[number], ends, majority)
            findings.append(make_finding("metadata_shortcut", reason))
    return findings


def widening(num_facts: int) -> float:
    """Factor that widens a 95 % interval so that those of several facts hold together.

    Example:
        >>> [round(widening(num_facts), 2) for num_facts in (1, 8)]
        [1.0, 1.4]
    """
    tail = (1.0 - CONFIDENCE) / 2
    normal = NormalDist()
    return normal.inv_cdf(tail / num_facts) / normal.inv_cdf(tail)


def describe_shortcut(
    name: str, accuracy: float, ends: tuple[float, float], majority: float
) -> str:
    """Say how well a fact names the class of images.

    Example:
        >>> describe_shortcut("width alone", 0.82, (0.8, 0.84), 0.5)
        'width alone names 82% (80% to 84%) of the images; the most frequent class is 50% of them'
    """
    return (
        f"{name} names {accuracy:.0%} ({ends[0]:.0%} to {ends[1]:.0%}) of the images; the most "
        f"frequent class is {majority:.0%} of them"
    )


def columns_to_try(rows: pd.DataFrame, columns_to_skip: Sequence[str] = ()) -> list[str]:
    """List the columns that a table of images has beyond those of cvpipe.

    Args:
        rows: The table.
        columns_to_skip: Columns of which it is known that they go with the label, such as
            one that it was derived from.
    """
    return [name for name in rows if name not in (*OWN_COLUMNS, *columns_to_skip)]


def clues_of(
    rows: pd.DataFrame, facts: pd.DataFrame, columns: Sequence[str]
) -> dict[str, np.ndarray]:
    """Turn each fact into numbers for a tree; what is the same for all images is left out.

    Args:
        rows: As in `shortcut_findings`.
        facts: As in `shortcut_findings`, in the order of `rows`.
        columns: As in `shortcut_findings`.

    Returns:
        By the words of a finding, arrays of shape `(n, num_columns)`.
    """
    width, height, file_bytes = facts["width"], facts["height"], facts["file_bytes"]
    of_file = {
        "width": width,
        "height": height,
        "aspect ratio": width / height,
        "file size": file_bytes,
        "bytes per pixel": file_bytes / (width * height),
        "format": facts["format"],
        "colour mode": facts["mode"],
    }
    encoded = {f"{name} alone": encode(values) for name, values in of_file.items()}
    varying = {name: block for name, block in encoded.items() if np.ptp(block, axis=0).any()}
    if len(varying) > 1:
        varying[ALL_FACTS] = np.hstack(list(varying.values()))
    of_table = {f"column {name!r} alone": encode(rows[name]) for name in columns}
    return varying | {n: b for n, b in of_table.items() if b.size and np.ptp(b, axis=0).any()}


def encode(values: pd.Series) -> np.ndarray:
    """Turn the values of a fact into columns of numbers.

    Args:
        values: Numbers, or text; an empty text is a missing value.

    Returns:
        Array of shape `(n, num_columns)`. Numbers become their rank, a missing one -1: a tree
        asks for nothing but the order, and ranks are finite whatever stands in a table. Texts
        become one column of 0 and 1 per value; none if there are more than `MAX_TEXT_VALUES`.
    """
    numbers = pd.to_numeric(values, errors="coerce")
    if (numbers.notna() | (values == "")).all():
        return (numbers.rank(method="dense").fillna(0.0) - 1.0).to_numpy()[:, None]
    if values.nunique() > MAX_TEXT_VALUES:
        return np.empty((len(values), 0))
    return pd.get_dummies(values).to_numpy(dtype=np.float64)


def name_unseen(clue: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Name the class of every image by a tree that was fitted on the other folds.

    Args:
        clue: Array of shape `(n, num_columns)`.
        targets: `int` array of shape `(n,)`.
        folds: Fold of each image, of which there are at least two.

    Returns:
        Predicted targets, `int` array of shape `(n,)`.
    """
    from sklearn.tree import DecisionTreeClassifier

    predicted = np.empty_like(targets)
    for fold in np.unique(folds):
        held_out = folds == fold
        tree = DecisionTreeClassifier(
            max_leaf_nodes=MAX_LEAVES, min_samples_leaf=MIN_LEAF_IMAGES, random_state=0
        )
        tree.fit(clue[~held_out], targets[~held_out])
        predicted[held_out] = tree.predict(clue[held_out])
    return predicted
