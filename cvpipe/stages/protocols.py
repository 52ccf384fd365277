"""The same contenders under other divisions of the images: a careless split, and folds.

Both use images of the test split, so they come after test was opened, and nothing is chosen
by them. Their divisions were fixed with the split, before anything was fitted.
"""

from collections.abc import Sequence

import pandas as pd

from cvpipe import frames
from cvpipe.cache import cache_root, max_bytes, trim
from cvpipe.contender_sections import EnsembleContender, ImportedContender, SingleContender
from cvpipe.files import write_table
from cvpipe.stages.calibration import calibrate_table, load_calibration
from cvpipe.stages.contenders import fit_rows, predict_by_refit, predict_rows, store_fit
from cvpipe.stages.ensembles import combine, load_ensemble, pieces_of
from cvpipe.stages.job import Job
from cvpipe.stages.networks import CHECKPOINT, drop_checkpoint, store_history
from cvpipe.stages.recipes import members_first, views_of
from cvpipe.stages.split import fold_column


def run_careless(job: Job) -> None:
    """Fit and score every contender on a plain random split, as a careless person would.

    Near-duplicates and groups are parted.
    """
    manifest = job.run.manifest()
    alone = manifest.assign(group=manifest["image_id"])
    train = alone[alone["careless"] == "train"].reset_index(drop=True)
    test = alone[alone["careless"] == "test"].reset_index(drop=True)
    with job.timed("careless", "careless split: what a plain random split would have claimed"):
        for contender in members_first(job.config):
            path = job.run.predictions_path(contender.name, "test", "careless")
            if path.exists():
                continue
            if isinstance(contender, EnsembleContender):
                write_table(path, combine_careless(job, contender))
            else:
                write_table(path, predict_by_refit(job, contender, train, test))


def combine_careless(job: Job, contender: EnsembleContender) -> pd.DataFrame:
    """Combine what the members of an ensemble say, with the weights found for the holdout."""
    tables = [job.run.predictions("test", name, "careless") for name in contender.members]
    combined = combine(load_ensemble(job.run, contender.name), tables)
    return calibrate_table(combined, load_calibration(job.run, contender.name))


def run_folds(job: Job) -> None:
    """Let every contender predict each fold after a fit on all others; store one table each.

    What was imported is fitted nowhere, so the very same network predicts all folds.

    The folds of every repeat are another division of the same images. Their probabilities are
    not calibrated: that takes images which no model of the table was fitted on.
    """
    manifest = job.run.manifest()
    num_folds, num_repeats = job.config.split.num_folds, job.config.split.num_repeats
    for repeat in range(num_repeats):
        folds = sorted(manifest[fold_column(repeat)].unique())
        which = f" (repeat {repeat + 1} of {num_repeats})" if num_repeats > 1 else ""
        for contender in members_first(job.config):
            path = job.run.predictions_path(contender.name, "test", "kfold", repeat)
            if path.exists():
                continue
            if isinstance(contender, EnsembleContender):
                write_table(path, combine_folds(job, contender, repeat))
            else:
                fits = f"{num_folds} fits"
                if isinstance(contender, ImportedContender):
                    fits = f"the same network in {num_folds} folds"
                title = f"folds: {contender.name}, {fits}{which}"
                with job.timed(f"folds {contender.name}", title):
                    for fold in folds:
                        predict_fold(job, contender, manifest, repeat, fold)
                    pool_folds(job, contender, repeat, folds)
                trim(cache_root(), max_bytes())  # what is learned anew leaves rows at every fold


def combine_folds(job: Job, contender: EnsembleContender, repeat: int) -> pd.DataFrame:
    """Combine what the members of an ensemble say of each fold; store one table each, and pool."""
    tables = []
    for fold, piece in pieces_of(job, contender, "kfold", repeat).items():
        table = combine(*piece)
        path = job.run.fold_predictions_path(contender.name, part_of_fold(repeat, fold))
        write_table(path, table)
        tables.append(table)
    pooled = pd.concat(tables).sort_values("image_id", ignore_index=True)
    return frames.check_predictions(pooled)


def predict_fold(
    job: Job, contender: SingleContender, manifest: pd.DataFrame, repeat: int, fold: str
) -> None:
    """Predict one fold, hyperparameters searched and fitted on the others; kept once done.

    One fit predicts it in all views.
    """
    name, part_name = contender.name, part_of_fold(repeat, fold)
    part = job.run.part_path(name, part_name)
    if (part / "fit.json").exists():
        return
    held_out = manifest[fold_column(repeat)] == fold
    others = manifest[~held_out].reset_index(drop=True)
    fit = fit_rows(job, contender, others, checkpoint=part / CHECKPOINT)
    rows = manifest[held_out].reset_index(drop=True)
    seen = {view: predict_rows(job, fit, rows, view) for view in views_of(job.config, contender)}
    # As everywhere: the contender's own view again under a name without one.
    tables = {**(seen if len(seen) > 1 else {}), "": seen[job.run.view(name)]}
    for view, table in tables.items():
        write_table(job.run.fold_predictions_path(name, part_name, view), table)
    if fit.trained:
        store_history(part, fit.trained)
    store_fit(part, fit.fitted, {})
    drop_checkpoint(part)


def pool_folds(job: Job, contender: SingleContender, repeat: int, folds: Sequence[str]) -> None:
    """Store one table of the folds for each view, that of the contender's own view last."""
    name, views = contender.name, views_of(job.config, contender)
    for view in [*(views if len(views) > 1 else ()), ""]:
        tables = [
            frames.read_predictions(
                job.run.fold_predictions_path(name, part_of_fold(repeat, fold), view)
            )
            for fold in folds
        ]
        pooled = pd.concat(tables).sort_values("image_id", ignore_index=True)
        path = job.run.predictions_path(name, "test", "kfold", repeat, view)
        write_table(path, frames.check_predictions(pooled))


def part_of_fold(repeat: int, fold: str) -> str:
    """Name the part of a fold of a repeat."""
    return f"r{repeat}-f{fold}"
