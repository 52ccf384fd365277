"""Combine the predictions of contenders into those of an ensemble.

An ensemble reads the tables of its members and nothing else: any contenders can be members, in
whatever view each of them was chosen to be used. Its part holds `model.json`, the weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.config import Config
from cvpipe.contender_sections import EnsembleContender, SingleContender
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError, TooLittleToLearnError
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.files import read_json, write_json, write_table
from cvpipe.inference.ensembling import (
    METHODS,
    Ensemble,
    disagreement,
    ensemble_from_dict,
    error_correlation,
    fit_ensemble,
    leave_one_out,
)
from cvpipe.report.content import MEMBER_COLUMNS
from cvpipe.runs import Run
from cvpipe.stages.calibration import table_for_fitting
from cvpipe.stages.halves import rows_for_choosing, rows_for_fitting
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import members_of
from cvpipe.stages.split import fold_column

MODEL_NAME = "model.json"
NUM_STACKING_FOLDS = 5
STACKING = "stacking"
# Predicts manifest rows by a fit of a contender on others.
Refit = Callable[[SingleContender, pd.DataFrame, pd.DataFrame], pd.DataFrame]
Tables = Sequence[pd.DataFrame]
Piece = tuple[Ensemble, Tables]
# Of a member without which the ensemble is worse, and so on.
WORTHS = {"worse": "helps", "better": "harms", "cannot be told apart": "cannot be told"}


def fit_on_members(
    job: Job, contender: EnsembleContender, train: pd.DataFrame, val: pd.DataFrame, refit: Refit
) -> Ensemble:
    """Fit the weights of an ensemble: on half B of val, or for stacking on train.

    Half B is also what the members were calibrated on. Where there are too few images, nothing is
    fitted, and all members weigh the same.

    Args:
        job: The run, in which the members have predicted val.
        contender: The ensemble.
        train: Manifest rows of train.
        val: Manifest rows of val.
        refit: Predicts some rows of train by a fit on others, for stacking.
    """
    members = members_of(job.config, contender)
    method = contender.combine
    if method == STACKING:
        try:
            tables = [out_of_fold(job, member, train, refit) for member in members]
        except TooLittleToLearnError as error:
            job.watcher.say(f"  {contender.name}: all members weigh the same, because {error}")
            return equal_weights(contender)
        return fit_to_tables(method, tables, train, job.config.seed)
    if METHODS[method].is_fitted and rows_for_choosing(val).all():
        job.watcher.say(
            f"  {contender.name}: val has too few images to fit weights, so all members weigh the "
            "same"
        )
        return equal_weights(contender)
    rows = val[rows_for_fitting(val)]
    # Calibrated by other rows where a calibration can learn its own by heart.
    tables = [table_for_fitting(job, name, val) for name in contender.members]
    return fit_to_tables(method, tables, rows, job.config.seed)


def equal_weights(contender: EnsembleContender) -> Ensemble:
    """Make the mean of the members, for which nothing is fitted."""
    return Ensemble("mean", (1 / len(contender.members),) * len(contender.members))


def fit_to_tables(method: str, tables: Tables, rows: pd.DataFrame, seed: int) -> Ensemble:
    """Fit an ensemble to what its members say of manifest rows."""
    tables = [table.set_index("image_id").loc[rows["image_id"]].reset_index() for table in tables]
    class_names = frames.predicted_class_names(tables[0])
    targets = frames.targets_of(rows["label"], class_names)
    return fit_ensemble(method, stack(tables), targets, rows["group"].tolist(), seed)


def out_of_fold(
    job: Job, member: SingleContender, train: pd.DataFrame, refit: Refit
) -> pd.DataFrame:
    """Predict train by fits on other parts of train; kept once done, for further ensembles."""
    path = job.run.predictions_path(member.name, "train", "out-of-fold")
    if not path.exists():
        targets = frames.targets_of(train["label"], job.run.class_names())
        fractions = {str(fold): 1 / NUM_STACKING_FOLDS for fold in range(NUM_STACKING_FOLDS)}
        key = f"{job.config.seed} stacking"
        fold = assign_splits(targets, train["group"].tolist(), fractions, key)
        divided = [(train[fold != name], train[fold == name]) for name in fractions]
        num_classes = train["label"].nunique()
        if any(not len(held) or rest["label"].nunique() < num_classes for rest, held in divided):
            raise TooLittleToLearnError(
                f"train cannot be divided into {NUM_STACKING_FOLDS} parts with every class in the "
                "others."
            )
        job.watcher.say(f"  stacking: {member.name} predicts train, {NUM_STACKING_FOLDS} fits")
        tables = [
            refit(member, rest.reset_index(drop=True), held.reset_index(drop=True))
            for rest, held in divided
        ]
        pooled = pd.concat(tables).sort_values("image_id", ignore_index=True)
        write_table(path, frames.check_predictions(pooled))
    return frames.read_predictions(path)


def combine(ensemble: Ensemble, tables: Tables) -> pd.DataFrame:
    """Make the predictions table of an ensemble from those of its members.

    Raises:
        InputError: They do not speak of the same images, labels and classes.
    """
    return frames.with_probabilities(tables[0], ensemble.apply(stack(tables)))


def stack(tables: Tables) -> np.ndarray:
    """Put the probabilities of members on one another: `(num_members, n, num_classes)`.

    Raises:
        InputError: The tables differ in images, labels or classes.
    """
    first = tables[0]
    for number, table in enumerate(tables[1:], start=2):
        for what in ("image_id", "label"):
            if table[what].tolist() != first[what].tolist():
                raise InputError(
                    f"members of an ensemble must have predicted the same images, but the tables "
                    f"of members 1 and {number} differ in {what!r}; make both in one run."
                )
        if list(table) != list(first):
            raise InputError(
                f"members of an ensemble must know the same classes, but members 1 and {number} "
                f"have the columns {list(first)} and {list(table)}; make both in one run."
            )
    return np.stack([frames.probabilities_of(table) for table in tables])


def pieces_of(
    job: Job, contender: EnsembleContender, protocol: str, repeat: int = 0
) -> dict[str, Piece]:
    """Give each fitted ensemble of a protocol, with the tables that it combines.

    In the holdout there is one. Of the folds there is one for each: what is fitted is fitted on
    the members' predictions of all other folds. No image is predicted by a fit that learned from
    it; but the fits that predict the other folds learned from this one, so its labels reach the
    few numbers of the weights by this detour, as is usual in stacking.

    Args:
        job: The run, in which the members have predicted test.
        contender: The ensemble.
        protocol: `"holdout"` or `"kfold"`.
        repeat: Of k-fold: number of the repeat.

    Returns:
        By the fold's name; of the holdout by `""`.
    """
    tables = [job.run.predictions("test", name, protocol, repeat) for name in contender.members]
    if protocol == "holdout":
        return {"": (load_ensemble(job.run, contender.name), tables)}
    # As in the holdout: where val was too small for weights, the folds do not fit them either.
    method = load_ensemble(job.run, contender.name).method
    manifest = job.run.manifest()
    pieces: dict[str, Piece] = {}
    fold_of = manifest[fold_column(repeat)]
    for fold in sorted(fold_of.unique()):
        others = manifest[fold_of != fold]
        ensemble = fit_to_tables(method, tables, others, job.config.seed)
        image_ids = set(manifest["image_id"][fold_of == fold])
        parts = [t[t["image_id"].isin(image_ids)].reset_index(drop=True) for t in tables]
        pieces[fold] = ensemble, parts
    return pieces


def store_ensemble(part: Path, ensemble: Ensemble) -> None:
    """Store the weights of an ensemble."""
    write_json(part / MODEL_NAME, ensemble.to_dict())


def load_ensemble(run: Run, name: str) -> Ensemble:
    """Load the weights of an ensemble of a run."""
    return ensemble_from_dict(read_json(run.part_path(name) / MODEL_NAME))


def ensembles_of(config: Config) -> list[EnsembleContender]:
    """List the ensembles among the contenders."""
    return [c for c in config.contender if isinstance(c, EnsembleContender)]


def run_members(job: Job, groups: pd.Series, protocols: Sequence[str]) -> None:
    """Store what the members of the ensembles are worth; what is stored is kept."""
    if ensembles_of(job.config) and not job.run.members_path.exists():
        write_table(job.run.members_path, measure_members(job, groups, protocols))


def measure_members(job: Job, groups: pd.Series, protocols: Sequence[str]) -> pd.DataFrame:
    """Say of each member of each ensemble how it differs from the others, and what it is worth.

    The worth of a member is how much larger the log loss is without it, on the same images,
    before the calibration of the ensemble; the others keep their weights.

    Returns:
        Columns `MEMBER_COLUMNS`: `weight` is its mean over the folds, `disagreement` the mean
        share of images on which it names another class than another member, `correlation` the
        mean correlation of its errors with theirs, `worth` as above with its interval.
    """
    tables = [
        members_of_ensemble(job, contender, protocol, groups)
        for protocol in protocols
        for contender in ensembles_of(job.config)
    ]
    return pd.concat(tables) if tables else pd.DataFrame(columns=list(MEMBER_COLUMNS))


def members_of_ensemble(
    job: Job, contender: EnsembleContender, protocol: str, groups: pd.Series
) -> pd.DataFrame:
    """Make the rows of `measure_members` of one ensemble under one protocol."""
    pieces = [*pieces_of(job, contender, protocol).values()]
    tables = {contender.name: pd.concat([combine(*piece) for piece in pieces])}
    names = contender.members
    without = [combine_without(*piece) for piece in pieces]
    tables |= {
        name: pd.concat([tables_of_piece[index] for tables_of_piece in without])
        for index, name in enumerate(names)
    }
    members = np.concatenate([stack(parts) for _, parts in pieces], axis=1)
    labels = tables[contender.name]["label"]
    targets = frames.targets_of(labels, job.run.class_names())
    settings = (job.config.seed, job.config.evaluate.resamples)
    compared = compare_predictions(contender.name, tables, groups, *settings)
    worth = compared[compared["metric"] == "log_loss"].set_index("contender").loc[[*names]]
    weights = np.mean([ensemble.weights for ensemble, _ in pieces], axis=0)
    figures = {
        "protocol": protocol,
        "ensemble": contender.name,
        "member": names,
        "weight": weights / (weights.sum() or 1.0),
        "disagreement": mean_with_others(disagreement(members)),
        "correlation": mean_with_others(error_correlation(members, targets)),
        "worth": worth["difference"].to_numpy(),
        "low": worth["low"].to_numpy(),
        "high": worth["high"].to_numpy(),
        "verdict": [WORTHS[verdict] for verdict in worth["verdict"]],
        "n": len(labels),
    }
    return pd.DataFrame(figures)[list(MEMBER_COLUMNS)]


def combine_without(ensemble: Ensemble, tables: Tables) -> list[pd.DataFrame]:
    """Make the predictions table of an ensemble without each of its members."""
    without = leave_one_out(ensemble, stack(tables))
    return [frames.with_probabilities(tables[0], probabilities) for probabilities in without]


def mean_with_others(pairs: np.ndarray) -> np.ndarray:
    """Average a figure of pairs of members over the others of each; NaN where none is known."""
    others = np.where(np.eye(len(pairs), dtype=bool), np.nan, pairs)
    known = np.isfinite(others)
    sums = np.where(known, others, 0.0).sum(axis=1)
    return np.where(known.any(axis=1), sums / np.maximum(known.sum(axis=1), 1), np.nan)
