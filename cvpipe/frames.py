"""The two tables that flow between stages: the manifest and the predictions.

A *manifest* has one row per image: `image_id` (POSIX path relative to the data root,
unique, the key everywhere), `label`, `group` (rows that must never be parted by a
split), any further columns as text, later `split`. It is sorted by `image_id`.

A *predictions* table has one row per image: `image_id`, `label` (the true class name,
or `""` when it is not known) and one column `p_<class>` per class, in class order. The
predicted class is not stored: it is the row's largest probability.

Every text column is read back as text, so classes named `"0"`, `"NA"` or `"poppy"`
survive a round trip through a file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe.errors import InputError

SPLITS = ("train", "val", "test")
PROBABILITY_PREFIX = "p_"
# Far above the rounding of a float32 softmax (about 1e-7 per class), far below a mistake.
SUM_TOLERANCE = 1e-4


def read_text_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with every value kept as the text that stands in it."""
    # The line end is named, because a lone carriage return may be part of a file name.
    return pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding="utf-8", lineterminator="\n"
    )


def check_manifest(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest whose columns and keys are as this module promises.

    Raises:
        InputError: A needed column is missing, an `image_id` appears twice, or the
            rows are not sorted by `image_id`.
    """
    missing = [name for name in ("image_id", "label", "group") if name not in manifest]
    if missing:
        raise InputError(f"a manifest needs the columns {missing}; it has {list(manifest)}.")
    repeated = manifest["image_id"][manifest["image_id"].duplicated()]
    if len(repeated):
        raise InputError(
            f"image_id must be unique, but {repeated.iloc[0]!r} appears more than once; "
            "keep one row per image."
        )
    if not manifest["image_id"].is_monotonic_increasing:
        raise InputError("a manifest must be sorted by image_id.")
    return manifest


def class_names_of(labels: Sequence[str] | pd.Series) -> list[str]:
    """List the distinct class names in the order of their targets: sorted as text."""
    return sorted(set(labels))


def targets_of(labels: Sequence[str] | pd.Series, class_names: Sequence[str]) -> np.ndarray:
    """Turn class names into targets.

    Args:
        labels: One class name per image.
        class_names: Class order; the position is the target.

    Returns:
        `int32` array of shape `(n,)`.

    Raises:
        InputError: A label is not among the class names.
    """
    position = {name: index for index, name in enumerate(class_names)}
    unknown = sorted(set(labels) - set(position))
    if unknown:
        raise InputError(f"label {unknown[0]!r} is not one of the classes {list(class_names)}.")
    return np.array([position[label] for label in labels], dtype=np.int32)


def make_predictions(
    image_ids: Sequence[str],
    labels: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
) -> pd.DataFrame:
    """Build a predictions table.

    Args:
        image_ids: One key per row.
        labels: True class names; `""` where they are not known.
        probabilities: Array of shape `(n, num_classes)`; rows sum to 1.
        class_names: Names of the columns of `probabilities`.

    Raises:
        InputError: The numbers of rows differ; or see `check_predictions`.
    """
    if not len(image_ids) == len(labels) == len(probabilities):
        raise InputError(
            f"predictions need as many image_ids, labels and rows of probabilities, but got "
            f"{len(image_ids)}, {len(labels)} and {len(probabilities)}."
        )
    table = pd.DataFrame({"image_id": list(image_ids), "label": list(labels)}, dtype=str)
    columns = [PROBABILITY_PREFIX + name for name in class_names]
    values = pd.DataFrame(np.asarray(probabilities, dtype=np.float64), columns=columns)
    return check_predictions(pd.concat([table, values], axis=1))


def with_probabilities(predictions: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Make the predictions table of the same images with other probabilities.

    Args:
        predictions: A predictions table.
        probabilities: Array of shape `(n, num_classes)`; rows sum to 1.

    Raises:
        InputError: See `make_predictions`.
    """
    return make_predictions(
        predictions["image_id"].tolist(),
        predictions["label"].tolist(),
        probabilities,
        predicted_class_names(predictions),
    )


def check_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return a predictions table that keeps the contract of this module.

    Raises:
        InputError: A column is missing, an image appears twice, a probability is
            negative or not a number, or a row does not sum to 1.
    """
    missing = [name for name in ("image_id", "label") if name not in predictions]
    if missing or not probability_columns(predictions):
        raise InputError(
            "predictions need the columns image_id, label and p_<class> for each class; "
            f"this table has {list(predictions)}."
        )
    repeated = predictions["image_id"][predictions["image_id"].duplicated()]
    if len(repeated):
        raise InputError(
            f"each image must be predicted once, but {repeated.iloc[0]!r} appears more than once."
        )
    probabilities = probabilities_of(predictions)
    bad = ~are_probabilities(probabilities)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"each row of predictions must be non-negative and sum to 1, but image "
            f"{predictions['image_id'].iloc[row]!r} has "
            f"{np.round(probabilities[row], 3).tolist()}, which sums to "
            f"{probabilities[row].sum():.3f}; pass probabilities, not logits."
        )
    return predictions


def are_probabilities(rows: np.ndarray) -> np.ndarray:
    """Tell of each row whether its numbers are non-negative and sum to 1.

    Args:
        rows: Array of shape `(n, num_classes)`.

    Returns:
        Boolean array of shape `(n,)`; False where a number is NaN.
    """
    sums = rows.sum(axis=1, dtype=np.float64)
    return (np.abs(sums - 1.0) <= SUM_TOLERANCE) & (rows >= 0.0).all(axis=1)


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """List the probability columns in class order."""
    return [name for name in predictions.columns if name.startswith(PROBABILITY_PREFIX)]


def predicted_class_names(predictions: pd.DataFrame) -> list[str]:
    """List the class names of a predictions table in class order."""
    return [name.removeprefix(PROBABILITY_PREFIX) for name in probability_columns(predictions)]


def probabilities_of(predictions: pd.DataFrame) -> np.ndarray:
    """Return the probabilities as a `float64` array of shape `(n, num_classes)`."""
    return predictions[probability_columns(predictions)].to_numpy(dtype=np.float64)


def predicted_labels(predictions: pd.DataFrame) -> np.ndarray:
    """Return the most probable class name of each row; the first one on a tie."""
    names = np.array(predicted_class_names(predictions), dtype=object)
    return names[probabilities_of(predictions).argmax(axis=1)]


def match_rows(reference: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Put the rows of `other` into the order of `reference`, matched by `image_id`.

    Raises:
        InputError: The tables do not hold the same images, labels or classes.
    """
    if probability_columns(reference) != probability_columns(other):
        raise InputError(
            "predictions of different classes cannot be matched: "
            f"{predicted_class_names(reference)} and {predicted_class_names(other)}."
        )
    difference = set(reference["image_id"]) ^ set(other["image_id"])
    if difference:
        raise InputError(
            f"the predictions differ in {len(difference)} image(s), first "
            f"{min(difference)!r}; predict the same split with every contender."
        )
    matched = other.set_index("image_id").loc[reference["image_id"]].reset_index()
    if not (matched["label"].to_numpy() == reference["label"].to_numpy()).all():
        raise InputError("the predictions disagree about the true labels of the same images.")
    return matched


def read_manifest(path: Path) -> pd.DataFrame:
    """Read and check a manifest file."""
    return check_manifest(read_text_table(path))


def read_predictions(path: Path) -> pd.DataFrame:
    """Read and check a predictions file; probabilities come back bit for bit."""
    table = read_text_table(path)
    columns = probability_columns(table)
    # Python's float() is correctly rounded; pandas' fast parser is not.
    table[columns] = table[columns].map(float)
    return check_predictions(table)
