"""Make the probabilities of contenders mean what they say, and measure what that changed.

A calibration is fitted on half B of val and the choice is made on half A, so neither flatters
the other. A small val has no half to spare: there a temperature is fitted on each half, the
choice sees every half calibrated by the other, and what is delivered is their average.
"""

from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.config import Config
from cvpipe.data.splits import first_half
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_json, write_table
from cvpipe.inference.calibration import (
    FLOOR,
    NETWORK_FLOOR,
    Calibration,
    Scaling,
    average_temperatures,
    calibration_from_dict,
    calibration_to_dict,
    fit_calibration,
)
from cvpipe.report.content import CALIBRATION_COLUMNS
from cvpipe.runs import Run
from cvpipe.stages.halves import rows_for_choosing, rows_for_fitting
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import becomes_network

MEASURED = ("ece", "log_loss", "brier")
# The one that is compared: it is the loss that a calibration makes small.
COMPARED = "log_loss"


def calibrate(job: Job, contender: str, val: pd.DataFrame, view: str = "") -> None:
    """Fit a contender's calibration on half B of val, and store it.

    Args:
        job: The run.
        contender: Its name; its uncalibrated predictions of val are stored.
        val: Manifest rows of val, and nothing else.
        view: Of which tables, see `Run.predictions_path`.
    """
    raw = read_uncalibrated(job.run, contender, "val", val, view)
    asked, floor = job.config.evaluate.calibration, floor_of(job.config, contender)
    method = asked
    choosing = rows_for_choosing(val)
    halves: list[Scaling] = []
    if choosing.all():
        # Too few images for more than one number, and to set half of them aside.
        method = "none" if asked == "none" else "temperature"
        halves = [_fit(method, raw[half], floor) for half in both_halves(val)]
        calibration: Calibration = average_temperatures(halves)
    else:
        calibration = _fit(method, raw[~choosing], floor)
    facts = {
        "asked": asked,
        "method": method,
        "num_images": len(val) if halves else int((~choosing).sum()),
        **calibration_to_dict(calibration),
        "halves": [calibration_to_dict(half) for half in halves],
    }
    write_json(job.run.fitted_calibration_path(contender, view), facts)


def floor_of(config: Config, name: str) -> float:
    """Say from where on a contender's probabilities are too small to mean what they say."""
    contender = config.contender_called(name)
    return NETWORK_FLOOR if becomes_network(config, contender) else FLOOR


def both_halves(val: pd.DataFrame, again: bool = False) -> list[np.ndarray]:
    """Mark the halves of rows of val, see `first_half`; both are the whole if one were empty."""
    first = first_half(val["group"].tolist(), again)
    return [first, ~first] if 0 < first.sum() < len(first) else [np.full(len(first), True)] * 2


def load_calibration(run: Run, contender: str, view: str = "") -> Calibration | None:
    """Load a contender's calibration; `None` in runs of before there were any."""
    path = run.fitted_calibration_path(contender, view)
    return calibration_from_dict(read_json(path)) if path.exists() else None


def store_calibrated(job: Job, contender: str, split: str, view: str = "") -> None:
    """Write the calibrated predictions of a split from the uncalibrated ones."""
    raw = frames.read_predictions(job.run.uncalibrated_path(contender, split, view))
    calibrated = calibrate_table(raw, load_calibration(job.run, contender, view))
    write_table(job.run.predictions_path(contender, split, view=view), calibrated)


def calibrate_table(raw: pd.DataFrame, calibration: Calibration | None) -> pd.DataFrame:
    """Calibrate a predictions table."""
    if calibration is None:
        return raw
    return frames.with_probabilities(raw, calibration.apply(frames.probabilities_of(raw)))


def table_for_choosing(job: Job, contender: str, val: pd.DataFrame, view: str = "") -> pd.DataFrame:
    """Predict the rows of val that the choice is made on, calibrated by other rows.

    Args:
        job: The run.
        contender: Its name.
        val: Manifest rows of val.
        view: Of which tables, see `Run.predictions_path`.
    """
    choosing = rows_for_choosing(val)
    if not choosing.all():
        chosen_ids = val["image_id"][choosing]
        table = job.run.predictions("val", contender, view=view)
        return table[table["image_id"].isin(chosen_ids)].reset_index(drop=True)
    raw = read_uncalibrated(job.run, contender, "val", val, view)
    fitted = read_json(job.run.fitted_calibration_path(contender, view))["halves"]
    first, second = both_halves(val)
    if first.all():
        return calibrate_table(raw, calibration_from_dict(fitted[0]))
    swapped = [(first, fitted[1]), (second, fitted[0])]
    tables = [calibrate_table(raw[half], calibration_from_dict(other)) for half, other in swapped]
    return pd.concat(tables).sort_values("image_id", ignore_index=True)


def table_for_fitting(job: Job, contender: str, val: pd.DataFrame) -> pd.DataFrame:
    """Predict the rows of val that thresholds are fitted on, calibrated.

    They are those that the calibration was fitted on. One temperature cannot learn them by
    heart, but curves can: prediction sets at a level of .9 then held the true class in .85 to
    .87 of test images (isotonic, 100 and 200 images of three classes), in .89 by slopes and
    offsets. So with these each half of the rows is calibrated by what the other half gives.

    Args:
        job: The run.
        contender: Its name.
        val: Manifest rows of val.
    """
    rows = val[rows_for_fitting(val)]
    method = read_json(job.run.fitted_calibration_path(contender))["method"]
    if method in ("none", "temperature"):
        table = job.run.predictions("val", contender)
        return table[table["image_id"].isin(rows["image_id"])].reset_index(drop=True)
    raw = read_uncalibrated(job.run, contender, "val", rows)
    floor = floor_of(job.config, contender)
    one, other = both_halves(rows, again=True)
    if one.all():
        return calibrate_table(raw, _fit(method, raw, floor))
    parts = [
        calibrate_table(raw[half], _fit(method, raw[rest], floor))
        for half, rest in ((one, other), (other, one))
    ]
    return pd.concat(parts).sort_values("image_id", ignore_index=True)


def read_uncalibrated(
    run: Run, contender: str, split: str, rows: pd.DataFrame, view: str = ""
) -> pd.DataFrame:
    """Load the uncalibrated predictions of manifest rows, in their order."""
    table = frames.read_predictions(run.uncalibrated_path(contender, split, view))
    return table.set_index("image_id").loc[rows["image_id"]].reset_index()


def measure_calibration(job: Job, groups: pd.Series) -> pd.DataFrame:
    """Set figures of the test split before calibration beside those after it.

    Returns:
        Columns `CALIBRATION_COLUMNS`, one row per calibrated contender and figure. `verdict`
        says whether the log loss became better or worse; it is `""` for the other figures.
    """
    metrics = job.run.metrics().query("protocol == 'holdout' and split == 'test' and label == ''")
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    rows = []
    for contender in job.config.contender:
        name = contender.name
        facts = read_json(job.run.fitted_calibration_path(name))
        calibration = calibration_from_dict(facts)
        if isinstance(calibration, Scaling) and calibration.changes_nothing:
            continue
        temperature = calibration.temperature if isinstance(calibration, Scaling) else np.nan
        tables = {
            "before": frames.read_predictions(job.run.uncalibrated_path(name, "test")),
            "after": job.run.predictions("test", name),
        }
        compared = compare_predictions("before", tables, groups, seed, resamples)
        verdict = compared.set_index("metric").loc[COMPARED, "verdict"]
        scored = score_predictions(tables["before"], groups, seed, resamples)
        before = scored[scored["label"] == ""].set_index("metric")
        after = metrics[metrics["contender"] == name].set_index("metric")
        for metric in MEASURED:
            figures = [*_with_ends(before.loc[metric]), *_with_ends(after.loc[metric])]
            told = verdict if metric == COMPARED else ""
            method, number = facts["method"], len(tables["after"])
            rows.append((name, method, temperature, metric, *figures, told, number))
    return pd.DataFrame(rows, columns=list(CALIBRATION_COLUMNS))


def _fit(method: str, raw: pd.DataFrame, floor: float) -> Any:
    targets = frames.targets_of(raw["label"], frames.predicted_class_names(raw))
    return fit_calibration(method, frames.probabilities_of(raw), targets, floor)


def _with_ends(row: pd.Series) -> tuple[float, float, float]:
    return row["value"], row["low"], row["high"]
