"""Fix the choice on val, open the test split once, score and compare all contenders."""

import hashlib
import json

import numpy as np
import pandas as pd

from cvpipe.data.splits import first_half
from cvpipe.evaluation.comparison import choose, compare_predictions
from cvpipe.evaluation.metrics import METRICS
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_json, write_table
from cvpipe.runs import record_test_opening
from cvpipe.stages.contenders import predict_split
from cvpipe.stages.job import Job
from cvpipe.stages.split import rows_of_split

# Below this, half of val is too small to choose on, and nothing else is fitted on val yet.
MIN_VAL_FOR_HALVES = 200
MIN_GROUPS_OF_HALF = 20


def fix_choice(job: Job) -> str:
    """Choose a contender on val and store the choice; once stored it stands.

    The choice uses half A of val; half B is kept for what is fitted after the choice.
    A small val is used whole.

    Returns:
        Name of the chosen contender.
    """
    if job.run.choice_path.exists():
        return str(read_json(job.run.choice_path)["chosen"])
    val = rows_of_split(job, "val")
    val = val[rows_for_choosing(val)]
    image_ids = val["image_id"]
    tables = {
        name: table[table["image_id"].isin(image_ids)].reset_index(drop=True)
        for name, table in predictions_of(job, "val").items()
    }
    select_by = job.config.evaluate.select_by
    chosen = choose(tables, select_by)
    better = "highest" if METRICS[select_by].higher_is_better else "lowest"
    because = (
        f"it has the {better} {METRICS[select_by].title.lower()} of {len(tables)} contenders on "
        f"{len(val)} validation images"
    )
    write_json(
        job.run.choice_path,
        {
            "chosen": chosen,
            "because": because,
            "select_by": select_by,
            "num_images": len(val),
        },
    )
    return chosen


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


def open_test(job: Job) -> None:
    """Let every contender predict the test split; the ledger is written first."""
    test = rows_of_split(job, "test")
    record_test_opening(job.run.path.parent, job.run, fingerprint_of(test))
    for contender in job.config.contender:
        if not job.run.predictions_path(contender.name, "test").exists():
            predict_split(job, contender, test, "test")


def fingerprint_of(test: pd.DataFrame) -> str:
    """Name a test split by its images and labels, wherever they lie."""
    rows = sorted(zip(test["sha256"], test["label"], strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def predictions_of(job: Job, split: str) -> dict[str, pd.DataFrame]:
    """Load the predictions of all contenders for a split, in the config's order."""
    return {c.name: job.run.predictions(split, c.name) for c in job.config.contender}


def score(job: Job) -> None:
    """Store the metrics of all contenders on val and test.

    Val figures have no interval: val was used for choosing.
    """
    groups = job.run.manifest().set_index("image_id")["group"]
    tables = []
    for split in ("val", "test"):
        for name, predictions in predictions_of(job, split).items():
            table = score_predictions(
                predictions, groups, job.config.seed, job.config.evaluate.resamples
            )
            if split == "val":
                table[["low", "high"]] = np.nan
            table.insert(0, "view", "single")
            table.insert(0, "split", split)
            table.insert(0, "contender", name)
            table.insert(0, "repeat", 0)
            table.insert(0, "protocol", "holdout")
            tables.append(table)
    write_table(job.run.metrics_path, pd.concat(tables, ignore_index=True))


def compare(job: Job, chosen: str) -> None:
    """Store the paired comparison of all contenders with the chosen one on test."""
    groups = job.run.manifest().set_index("image_id")["group"]
    table = compare_predictions(
        chosen, predictions_of(job, "test"), groups, job.config.seed, job.config.evaluate.resamples
    )
    write_table(job.run.comparison_path, table)


def run_evaluation(job: Job) -> None:
    """Choose, open test, score and compare; what is stored already is kept."""
    chosen = fix_choice(job)
    with job.timed("evaluate", f"evaluate: {chosen} was chosen on val; opening the test split"):
        open_test(job)
        if not job.run.metrics_path.exists():
            score(job)
        if not job.run.comparison_path.exists():
            compare(job, chosen)
