"""Divide the audited images of a run: train, val and test; carelessly; into folds."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.data.splits import assign_splits, merge_groups
from cvpipe.errors import InputError, nearest_name
from cvpipe.evaluation.planning import Expectation, expect, in_words, warning_of
from cvpipe.files import write_json, write_table
from cvpipe.sections import SplitSection
from cvpipe.stages.job import Job

# Where the split that came with the images is kept when it is not the one in use, or not wholly.
SPLIT_GIVEN = "split_given"
# Choosing hyperparameters inside train takes two groups of each class, one to fit and one to score.
MIN_TRAIN_GROUPS = 2


def run_split(job: Job, rows: pd.DataFrame) -> None:
    """Give every audited row its place in every division; store class order and manifest.

    All divisions are fixed here, before anything is fitted. What test figures can be expected to
    tell is said and stored, too.

    Raises:
        InputError: A part of a division has too little of a class, or see `check_split_columns`.
    """
    section = job.config.split
    with job.timed("split", f"split: {describe_split(section, _lacks_val(section, rows))}"):
        check_split_columns(section, rows)
        class_names = frames.class_names_of(rows["label"])
        targets = frames.targets_of(rows["label"], class_names)
        manifest = divide(rows, targets, section, job.config.seed)
        expectations = expect_figures(manifest)
        for name, expectation in expectations.items():
            job.watcher.say(f"  {in_words(name, expectation)}")
            if warning_of(name, expectation):
                job.watcher.say(f"  warning: {warning_of(name, expectation)}")
        write_json(job.run.expectation_path, {k: vars(v) for k, v in expectations.items()})
        write_json(job.run.classes_path, class_names)
        write_table(job.run.manifest_path, manifest)


def describe_split(section: SplitSection, val_is_drawn: bool) -> str:
    """Say in words how the images are divided; it follows on "they are divided".

    Args:
        section: How to divide.
        val_is_drawn: Whether the images come with a split that has no val.
    """
    same = [f"images of the same {name!r}" for name in section.by]
    together = ["groups", "near-duplicates", *same]
    kept = f"with {', '.join(together[:-1])} and {together[-1]} kept together"
    if section.protocol == "given":
        drawn = f", val taken from train at random by class, {kept}" if val_is_drawn else ""
        return f"as they came{drawn}"
    if section.protocol == "temporal":
        return (
            f"in the order of {section.time_column!r}, train before val before test, {kept} where "
            "their newest image belongs"
        )
    return f"at random by class, {kept}"


def _lacks_val(section: SplitSection, rows: pd.DataFrame) -> bool:
    return section.protocol == "given" and "val" not in set(rows["split"])


def expect_figures(manifest: pd.DataFrame) -> dict[str, Expectation]:
    """Say how sure test figures will be: of the test split, and of the folds if there are any."""
    scored = {"test": manifest[manifest["split"] == "test"]}
    if "fold" in manifest:
        scored["folds"] = manifest
    return {name: expect(rows["group"].value_counts().tolist()) for name, rows in scored.items()}


def check_split_columns(section: SplitSection, rows: pd.DataFrame) -> None:
    """Check that the table of images has the columns that the split needs, and a use for them.

    Raises:
        InputError: A column is missing, or see `values_of` and `times_of`.
    """
    own = [name for name in rows if name not in ("image_id", "label", "sha256", "split")]
    wanted = [("by", name) for name in section.by]
    if section.protocol == "temporal":
        wanted.append(("time_column", section.time_column))
    for key, name in wanted:
        if name not in own:
            raise InputError(
                f"split.{key} names the column {name!r}, but the table of images has the columns "
                f"{own}; {nearest_name(name, own)}"
            )
    for name in section.by:
        values_of(rows, name)
    if section.protocol == "temporal":
        times_of(rows, section.time_column)


def values_of(rows: pd.DataFrame, column: str) -> pd.Series:
    """Read the value of each image that is never parted; "A " is "A".

    Raises:
        InputError: An image has no value; it could belong to any.
    """
    values = rows[column].str.strip()
    without = rows.loc[values == "", "image_id"]
    if len(without):
        raise InputError(
            f"split.by keeps the values of {column!r} together, but {len(without)} image(s) have "
            f"none, first {without.iloc[0]!r}; fill in the column, leave them out with "
            f"data.exclude, or take {column!r} out of split.by."
        )
    return values


def keep_together(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Join the groups of images that share a value in one of the columns.

    The joined group is named after its value (`site=A`), so that further images of the value
    do not rename it.

    Args:
        rows: With `image_id`, `group` and the columns.
        columns: Columns whose values are never parted.

    Raises:
        InputError: See `values_of`.
    """
    for name in columns:
        values = [f"{name}={value}" for value in values_of(rows, name)]
        rows = rows.assign(group=merge_groups(values, rows["group"].tolist()))
    return rows


def divide(
    rows: pd.DataFrame, targets: np.ndarray, section: SplitSection, seed: int
) -> pd.DataFrame:
    """Add the columns `split` and, as the config says, `careless` and one per repeat of folds.

    Args:
        rows: Audited rows with `label` and `group`, and the columns that the section names.
        targets: `int` array of shape `(n,)`.
        section: How to divide.
        seed: Of the divisions; each has a key of its own, so that asking for one more changes
            none of the others.

    Returns:
        The rows, whose groups are joined over the columns of `section.by`. The split that they
        came with stands in `SPLIT_GIVEN` if it is not the one in use, or had no val.

    Raises:
        InputError: A part of a division has too little of a class; or see `values_of` and
            `times_of`.
    """
    alone = rows["image_id"].tolist()
    rows = keep_together(rows, section.by)
    groups = rows["group"].tolist()
    fractions = {
        "train": 1.0 - section.val_fraction - section.test_fraction,
        "val": section.val_fraction,
        "test": section.test_fraction,
    }
    if section.protocol == "given":
        split = complete_split(rows, targets, section.val_fraction, seed)
        if _lacks_val(section, rows):
            rows = rows.assign(**{SPLIT_GIVEN: rows["split"]})
            _check_enough_for_val(rows)
        manifest = rows.assign(split=split)
        _check_given_classes(manifest)
        fractions = {name: float((split == name).mean()) for name in frames.SPLITS}
    else:
        rows = rows.rename(columns={"split": SPLIT_GIVEN})
        if section.protocol == "temporal":
            split = split_by_time(times_of(rows, section.time_column), groups, fractions)
        else:
            _check_enough_values(rows, section.by, len(fractions))
            split = assign_splits(targets, groups, fractions, f"{seed} split")
        manifest = check_split(rows.assign(split=split))
    if section.careless:
        manifest["careless"] = assign_splits(targets, alone, fractions, f"{seed} careless")
        _check_classes(manifest, "careless")
    if section.protocol == "kfold":
        folds = {str(fold): 1.0 / section.num_folds for fold in range(section.num_folds)}
        for repeat in range(section.num_repeats):
            column = fold_column(repeat)
            manifest[column] = assign_splits(targets, groups, folds, f"{seed} {column}")
            check_folds(manifest, section.num_folds, column)
    return manifest


def fold_column(repeat: int) -> str:
    """Name the manifest's column of a repeat: `fold`, then `fold_r1`, `fold_r2` and so on."""
    return f"fold_r{repeat}" if repeat else "fold"


def complete_split(
    rows: pd.DataFrame, targets: np.ndarray, val_fraction: float, seed: int
) -> np.ndarray:
    """Take a given split as it is; a val that is missing is taken from train, whole groups.

    Args:
        rows: Audited rows with `group` and `split`.
        targets: `int` array of shape `(n,)`.
        val_fraction: Share of the train images that become val.
        seed: Of the division.
    """
    split = rows["split"].to_numpy(dtype=object, copy=True)
    if "val" not in split:
        train = split == "train"
        fractions = {"train": 1.0 - val_fraction, "val": val_fraction}
        groups = rows["group"].to_numpy()[train].tolist()
        split[train] = assign_splits(targets[train], groups, fractions, f"{seed} split")
    return split


def times_of(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Read when each image was taken: numbers in every row, or ISO dates and times.

    A time without a zone is taken as UTC.

    Returns:
        `float64` array of shape `(n,)`; later is larger.

    Raises:
        InputError: A time cannot be read.
    """
    for read in (_number, _timestamp):
        times = [read(text) for text in rows[column]]
        if not any(map(math.isnan, times)):
            return np.array(times)
    # As dates, unless most of them are numbers.
    numbers = [_number(text) for text in rows[column]]
    times = numbers if sum(map(math.isnan, numbers)) < sum(map(math.isnan, times)) else times
    worst = int(np.flatnonzero(np.isnan(times))[0])
    raise InputError(
        f"image {rows['image_id'].iloc[worst]!r} has {rows[column].iloc[worst]!r} in the column "
        f"{column!r}; split.protocol = 'temporal' expects an ISO date or time there, such as "
        "2024-05-31 or 2024-05-31T10:00, or a number, of one kind in all rows. Mend the table, or "
        "leave the image out with data.exclude."
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _timestamp(text: str) -> float:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return math.nan
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def split_by_time(
    times: np.ndarray, groups: Sequence[str], fractions: dict[str, float]
) -> np.ndarray:
    """Cut the images in the order of their times; a group goes where its newest image belongs.

    Images of the same time go together, where the middle of them falls, but for those whose
    group has a newer image.

    Args:
        times: `(n,)`.
        groups: Group of each image.
        fractions: Share of each split in the order of time; they sum to 1.

    Returns:
        Array of split names of shape `(n,)`.

    Example:
        >>> shares = {"train": 0.5, "val": 0.25, "test": 0.25}
        >>> split_by_time(np.array([4.0, 1.0, 2.0, 3.0]), list("abcd"), shares).tolist()
        ['test', 'train', 'train', 'val']
    """
    newest = pd.Series(times).groupby(list(groups)).transform("max").to_numpy()
    moments, counts = np.unique(times, return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / len(times)
    ends = np.cumsum(list(fractions.values()))
    parts = np.searchsorted(ends[:-1], middles, side="right")
    return np.array(list(fractions), dtype=object)[parts[np.searchsorted(moments, newest)]]


def check_folds(manifest: pd.DataFrame, num_folds: int, column: str = "fold") -> pd.DataFrame:
    """Return a manifest with as many folds as asked for, each of which can be left out.

    Args:
        manifest: With `label`, `group` and the folds.
        num_folds: Number of folds asked for.
        column: Where the folds stand.

    Raises:
        InputError: A fold is empty, or the folds but one have fewer than two groups of a class,
            which the search of hyperparameters needs.
        RuntimeError: A group is cut.
    """
    instead = "lower split.num_folds, or use split.protocol = 'holdout'."
    found = manifest[column].nunique()
    if found < num_folds:
        raise InputError(
            f"only {found} of {num_folds} folds got an image: there are "
            f"{manifest['group'].nunique()} group(s), and a group is never cut. Add images, "
            + instead
        )
    folds = manifest[column].unique()
    for label, rows in manifest.groupby("label"):
        fewest = min(rows.loc[rows[column] != fold, "group"].nunique() for fold in folds)
        if fewest < MIN_TRAIN_GROUPS:
            raise InputError(
                f"without one of the {num_folds} folds class {label!r} has {fewest} group(s) left, "
                f"and {MIN_TRAIN_GROUPS} are needed: it has {len(rows)} image(s) in "
                f"{rows['group'].nunique()} group(s), and a group is never cut. Add images of "
                f"{label!r}, {instead}"
            )
    _check_whole_groups(manifest, column)
    return manifest


def check_split(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest in which every class is in every split, and no group is cut.

    Raises:
        InputError: A class is missing from a split, or train has a single group of it.
        RuntimeError: A group is cut.
    """
    _check_classes(manifest, "split")
    _check_train_groups(
        manifest,
        "Add images of other groups, or lower split.val_fraction and split.test_fraction.",
    )
    _check_whole_groups(manifest, "split")
    return manifest


def _check_enough_values(rows: pd.DataFrame, by: Sequence[str], num_parts: int) -> None:
    """Check that enough values, joined where they share groups, hold each class.

    Raises:
        InputError: A class has fewer of them than one for each part and a second for train.
    """
    values = rows.groupby("label")["group"].nunique()
    needed = num_parts - 1 + MIN_TRAIN_GROUPS
    if by and values.min() < needed:
        raise InputError(
            f"split.by keeps the values of {list(by)} together, and {needed} of them that share "
            f"no group are needed for each class, but the classes have {values.to_dict()}; take a "
            "column out of split.by, or add images of other values."
        )


def _check_enough_for_val(rows: pd.DataFrame) -> None:
    """Check that the given train has enough groups of each class to take val from it.

    Raises:
        InputError: A class has too few.
    """
    needed = MIN_TRAIN_GROUPS + 1
    for label, of_class in rows.groupby("label"):
        groups = of_class.loc[of_class["split"] == "train", "group"].nunique()
        if groups < needed:
            raise InputError(
                "the split that the images come with has no val, which is therefore taken from "
                f"train, but train has {groups} group(s) of class {label!r}, and {needed} are "
                f"needed: a group is never cut. Put more images of {label!r} into train, or use "
                "split.protocol = 'holdout'."
            )


def _check_train_groups(manifest: pd.DataFrame, what_to_do: str) -> None:
    train = manifest[manifest["split"] == "train"]
    for label, rows in train.groupby("label"):
        groups = rows["group"].nunique()
        if groups < MIN_TRAIN_GROUPS:
            raise InputError(
                f"train has all its {len(rows)} image(s) of class {label!r} in {groups} group, "
                f"which is never cut, and {MIN_TRAIN_GROUPS} groups are needed to choose "
                f"hyperparameters. {what_to_do}"
            )


def _check_given_classes(manifest: pd.DataFrame) -> None:
    for label, rows in manifest.groupby("label"):
        missing = [split for split in frames.SPLITS if split not in set(rows["split"])]
        if missing:
            raise InputError(
                f"the split that the images come with has no image of class {label!r} in "
                f"{missing[0]}; put some there, or use split.protocol = 'holdout'."
            )
    _check_train_groups(
        manifest, "Put images of other groups there, or use split.protocol = 'holdout'."
    )


def _check_classes(manifest: pd.DataFrame, division: str) -> None:
    for label, rows in manifest.groupby("label"):
        missing = [split for split in frames.SPLITS if split not in set(rows[division])]
        if missing:
            where, why, otherwise = (
                (" of the careless split", "", ", or do without it: split.careless = false")
                if division == "careless"
                else ("", f" in {rows['group'].nunique()} group(s), and a group is never cut", "")
            )
            raise InputError(
                f"no image of class {label!r} came into {missing[0]}{where}: it has {len(rows)} "
                f"image(s){why}. Add images of {label!r}, or change split.val_fraction and "
                f"split.test_fraction{otherwise}."
            )


def _check_whole_groups(manifest: pd.DataFrame, division: str) -> None:
    if (manifest.groupby("group")[division].nunique() > 1).any():
        raise RuntimeError(f"the {division} cut a group")  # cannot happen; no leak may pass


def rows_of_split(job: Job, split: str) -> pd.DataFrame:
    """Load the manifest rows of a split."""
    manifest = job.run.manifest()
    return manifest[manifest["split"] == split].reset_index(drop=True)
