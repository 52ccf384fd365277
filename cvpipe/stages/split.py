"""Divide the audited images of a run: train, val and test; carelessly; into folds."""

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.config import SplitSection
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError
from cvpipe.files import write_json, write_table
from cvpipe.stages.job import Job

# Where the split that came with the images is kept when it is not the one in use.
SPLIT_GIVEN = "split_given"


def run_split(job: Job, rows: pd.DataFrame) -> None:
    """Give every audited row its place in every division; store class order and manifest.

    All divisions are fixed here, before anything is fitted.

    Raises:
        InputError: A class is missing from a part of a division.
    """
    how = "stratified by class, groups kept together"
    if job.config.split.protocol == "given":
        complete = "val" in set(rows["split"])
        how = "as given with the images" + ("" if complete else ", val taken from train")
    with job.timed("split", f"split: {how}"):
        class_names = frames.class_names_of(rows["label"])
        manifest = divide(
            rows, frames.targets_of(rows["label"], class_names), job.config.split, job.config.seed
        )
        write_json(job.run.classes_path, class_names)
        write_table(job.run.manifest_path, manifest)


def divide(
    rows: pd.DataFrame, targets: np.ndarray, section: SplitSection, seed: int
) -> pd.DataFrame:
    """Add the columns `split` and, as the config says, `careless` and `fold`.

    Args:
        rows: Audited rows with `label` and `group`.
        targets: `int` array of shape `(n,)`.
        section: How to divide.
        seed: Of the divisions; each has a stream of its own, so that asking for one more
            changes none of the others.

    Raises:
        InputError: A class is missing from a part of a division.
    """
    groups = rows["group"].tolist()
    rng = np.random.default_rng(seed)
    if section.protocol == "given":
        split = complete_split(rows, targets, section.val_fraction, rng)
        manifest = rows.assign(split=split)
        _check_given_classes(manifest)
        fractions = {name: float((split == name).mean()) for name in frames.SPLITS}
    else:
        rows = rows.rename(columns={"split": SPLIT_GIVEN})
        fractions = {
            "train": 1.0 - section.val_fraction - section.test_fraction,
            "val": section.val_fraction,
            "test": section.test_fraction,
        }
        split = assign_splits(targets, groups, fractions, rng)
        manifest = check_split(rows.assign(split=split))
    if section.careless:
        alone = rows["image_id"].tolist()
        rng = np.random.default_rng([seed, 1])
        manifest["careless"] = assign_splits(targets, alone, fractions, rng)
        _check_classes(manifest, "careless")
    if section.protocol == "kfold":
        folds = {str(fold): 1.0 / section.num_folds for fold in range(section.num_folds)}
        rng = np.random.default_rng([seed, 2])
        manifest["fold"] = assign_splits(targets, groups, folds, rng)
        check_folds(manifest, section.num_folds)
    return manifest


def complete_split(
    rows: pd.DataFrame, targets: np.ndarray, val_fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Take a given split as it is; a val that is missing is taken from train, whole groups.

    Args:
        rows: Audited rows with `group` and `split`.
        targets: `int` array of shape `(n,)`.
        val_fraction: Share of the train images that become val.
        rng: Source of the random order.
    """
    split = rows["split"].to_numpy(dtype=object, copy=True)
    if "val" not in split:
        train = split == "train"
        fractions = {"train": 1.0 - val_fraction, "val": val_fraction}
        groups = rows["group"].to_numpy()[train].tolist()
        split[train] = assign_splits(targets[train], groups, fractions, rng)
    return split


def check_folds(manifest: pd.DataFrame, num_folds: int) -> pd.DataFrame:
    """Return a manifest with as many folds as asked for, each of which can be left out.

    Args:
        manifest: With `label`, `group` and `fold`.
        num_folds: Number of folds asked for.

    Raises:
        InputError: A fold is empty, or the folds but one have fewer than two groups of a class,
            which the search of hyperparameters needs.
        RuntimeError: A group is cut.
    """
    instead = "lower split.num_folds, or use split.protocol = 'holdout'."
    found = manifest["fold"].nunique()
    if found < num_folds:
        raise InputError(
            f"only {found} of {num_folds} folds got an image: there are "
            f"{manifest['group'].nunique()} group(s), and a group is never cut. Add images, "
            + instead
        )
    folds = manifest["fold"].unique()
    for label, rows in manifest.groupby("label"):
        fewest = min(rows.loc[rows["fold"] != fold, "group"].nunique() for fold in folds)
        if fewest < 2:
            raise InputError(
                f"without one of the {num_folds} folds class {label!r} has {fewest} group(s) left, "
                f"and 2 are needed: it has {len(rows)} image(s) in {rows['group'].nunique()} "
                f"group(s), and a group is never cut. Add images of {label!r}, " + instead
            )
    _check_whole_groups(manifest, "fold")
    return manifest


def check_split(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest in which every class is in every split and no group is cut.

    Raises:
        InputError: A class is missing from a split.
        RuntimeError: A group is cut.
    """
    _check_classes(manifest, "split")
    _check_whole_groups(manifest, "split")
    return manifest


def _check_given_classes(manifest: pd.DataFrame) -> None:
    for label, rows in manifest.groupby("label"):
        missing = [split for split in frames.SPLITS if split not in set(rows["split"])]
        if missing:
            raise InputError(
                f"the split that the images come with has no image of class {label!r} in "
                f"{missing[0]}; put some there, or use split.protocol = 'holdout'."
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
