"""Would more images help? The contenders of interest on parts of train, scored on test.

This uses the test split, so it comes after test was opened, and nothing is chosen by it.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.search import group_folds
from cvpipe.classifiers.table import SEARCHES
from cvpipe.contender_sections import FittedContender
from cvpipe.data.splits import nested_subset
from cvpipe.errors import InputError, TooLittleToLearnError
from cvpipe.evaluation.learning_curve import (
    MIN_SHARES,
    forecast_accuracy,
    score_curve,
)
from cvpipe.files import read_json, write_table
from cvpipe.report.content import CURVE_COLUMNS, FORECAST_COLUMNS
from cvpipe.stages.contenders import predict_by_refit
from cvpipe.stages.evaluate import accuracies_on_test
from cvpipe.stages.export import contender_to_export
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import is_baseline, is_whole_network
from cvpipe.stages.split import rows_of_split

# A part of train is one of so many; an eighth is as far below train as eight times is above it.
PARTS = (8, 4, 2)
NUM_DRAWS = 3
# Below this a fit says more about which images it got than about their number.
MIN_IMAGES_OF_CLASS = 5
MIN_GROUPS_OF_CLASS = 2  # calibration divides a part into folds


def run_learning_curve(job: Job) -> None:
    """Fit on nested parts of train, score on test, forecast; what is stored is kept."""
    if not job.config.evaluate.learning_curve or job.run.forecast_path.exists():
        return
    with job.timed("learning curve", "learning curve: would more images help?"):
        groups = job.run.manifest().set_index("image_id")["group"]
        seed, resamples = job.config.seed, job.config.evaluate.resamples
        curves, forecasts = [], []
        for contender in contenders_of_curve(job):
            fits, tables = predict_by_parts(job, contender)
            curve = score_curve(fits, tables, groups, seed, resamples)
            # The fit on all of train has the figure that stands elsewhere in the run.
            measured = accuracies_on_test(job.run.metrics(), "holdout").loc[contender.name]
            figures = ["low", "high"]
            curve.loc[curve["share"] == 1, figures] = measured[figures].to_numpy(dtype=float)
            curves.append(curve.assign(contender=contender.name))
            if fits["share"].nunique() >= MIN_SHARES:
                forecast = forecast_accuracy(fits, tables, groups, seed, resamples)
                forecasts.append(forecast.assign(contender=contender.name))
        write_table(job.run.learning_curve_path, _join(curves, CURVE_COLUMNS))
        write_table(job.run.forecast_path, _join(forecasts, FORECAST_COLUMNS))


def contenders_of_curve(job: Job) -> list[FittedContender]:
    """List the chosen contender and the exported one, where they look at the images.

    All contenders would take a fifth of the time of a run. A network that is trained is left
    out, and so are ensembles, which may have one: nine more trainings would take several times as
    long as all the rest. Of an imported network nothing is fitted, so more images bring nothing.
    """
    chosen = str(read_json(job.run.choice_path)["chosen"])
    names = dict.fromkeys([chosen, contender_to_export(job)])
    by_name = {
        c.name: c
        for c in job.config.contender
        if isinstance(c, FittedContender) and not (is_baseline(c) or is_whole_network(c))
    }
    return [by_name[name] for name in names if name in by_name]


def predict_by_parts(
    job: Job, contender: FittedContender
) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """Predict test by fits on parts of train.

    Hyperparameters and calibration are those of the fit on all of it.

    A size is left out when one of its parts is too small.

    Returns:
        The fits (`share`, `draw`, `num_train`), the one on all of train last, and their
        predictions of test.
    """
    train, test = rows_of_split(job, "train"), rows_of_split(job, "test")
    fits, tables = [], []
    for number in PARTS:
        parts = [part_of_train(job, train, number, draw) for draw in range(NUM_DRAWS)]
        if not all(can_be_fitted(job, contender, part) for part in parts):
            continue
        paths = [
            curve_predictions_path(job, contender.name, number, draw) for draw in range(NUM_DRAWS)
        ]
        try:
            for part, path in zip(parts, paths, strict=True):
                if not path.exists():
                    write_table(path, predict_by_refit(job, contender, part, test))
        except TooLittleToLearnError:  # a vocabulary needs more than so few images
            continue
        fits += [(1 / number, str(draw), len(part)) for draw, part in enumerate(parts)]
        tables += [frames.read_predictions(path) for path in paths]
    fits.append((1.0, "0", len(train)))
    tables.append(job.run.predictions("test", contender.name))
    return pd.DataFrame(fits, columns=["share", "draw", "num_train"]), tables


def part_of_train(job: Job, train: pd.DataFrame, number: int, draw: int) -> pd.DataFrame:
    """Take one of `number` parts of train; of one draw the smaller ones lie in the larger ones."""
    targets = frames.targets_of(train["label"], job.run.class_names())
    key = f"{job.config.seed} curve {draw}"
    part = nested_subset(targets, train["group"].tolist(), 1 / number, key)
    return train[part].reset_index(drop=True)


def can_be_fitted(job: Job, contender: FittedContender, part: pd.DataFrame) -> bool:
    """Tell whether a part of train has enough images of every class to fit a contender on."""
    of_class = part.groupby("label")["group"].agg(["size", "nunique"])
    if (
        len(of_class) < len(job.run.class_names())
        or of_class["size"].min() < MIN_IMAGES_OF_CLASS
        or of_class["nunique"].min() < MIN_GROUPS_OF_CLASS
    ):
        return False
    if part.groupby("group")["label"].nunique().max() == 1:
        return True
    # Where groups mix classes, all groups of a rare one can land in the same fold.
    targets = frames.targets_of(part["label"], job.run.class_names())
    try:
        num_folds = SEARCHES[contender.search]
        group_folds(targets, part["group"].tolist(), num_folds, job.config.seed)
    except InputError:
        return False
    return True


def curve_predictions_path(job: Job, contender: str, number: int, draw: int) -> Path:
    """File of the predictions of test by a fit on a part of train: `curve/1of8-d0.csv`."""
    return job.run.part_path(contender, "curve") / f"1of{number}-d{draw}.csv"


def _join(tables: list[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    joined = pd.concat(tables) if tables else pd.DataFrame(columns=list(columns))
    return joined[list(columns)]
