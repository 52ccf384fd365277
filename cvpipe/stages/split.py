"""Divide the audited images of a run into train, val and test."""

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError
from cvpipe.files import write_json, write_table
from cvpipe.stages.job import Job


def run_split(job: Job, rows: pd.DataFrame) -> None:
    """Give every audited row a split; store class order and manifest.

    Raises:
        InputError: A class is missing from a split.
    """
    with job.timed("split", "split: stratified by class, groups kept together"):
        section = job.config.split
        fractions = {
            "train": 1.0 - section.val_fraction - section.test_fraction,
            "val": section.val_fraction,
            "test": section.test_fraction,
        }
        class_names = frames.class_names_of(rows["label"])
        targets = frames.targets_of(rows["label"], class_names)
        rng = np.random.default_rng(job.config.seed)
        manifest = rows.assign(split=assign_splits(targets, rows["group"].tolist(), fractions, rng))
        check_split(manifest)
        write_json(job.run.classes_path, class_names)
        write_table(job.run.manifest_path, manifest)


def check_split(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest in which every class is in every split and no group is cut.

    Raises:
        InputError: A class is missing from a split.
        RuntimeError: A group is cut.
    """
    counts = pd.crosstab(manifest["label"], manifest["split"]).reindex(
        columns=list(frames.SPLITS), fill_value=0
    )
    for label, row in counts.iterrows():
        for split, count in row.items():
            if count == 0:
                of_class = manifest[manifest["label"] == label]
                raise InputError(
                    f"no image of class {label!r} came into {split}: it has {len(of_class)} "
                    f"image(s) in {of_class['group'].nunique()} group(s), and a group is never "
                    f"cut. Add images of {label!r}, or change split.val_fraction and "
                    "split.test_fraction."
                )
    if (manifest.groupby("group")["split"].nunique() > 1).any():
        raise RuntimeError("the split cut a group")  # cannot happen; a leak must never pass
    return manifest


def rows_of_split(job: Job, split: str) -> pd.DataFrame:
    """Load the manifest rows of a split."""
    manifest = job.run.manifest()
    return manifest[manifest["split"] == split].reset_index(drop=True)
