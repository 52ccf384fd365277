"""Fit contenders on train, store them, and let them predict.

A contender's part holds `model.skops` or `model.keras` and `fit.json`; a stored model
reads features, so predicting a split costs no second pass through a network. Of a fold the
predictions are kept instead of the model: they are what a fold is for.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.search import (
    FittedClassifier,
    fit_at,
    fit_classifier,
    linear_head,
    predictor_of,
)
from cvpipe.config import Contender, NetworkContender
from cvpipe.files import atomic_path, read_json, write_json, write_table
from cvpipe.models.backbones import build_backbone
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras, set_threads
from cvpipe.models.heads import attach_linear_head, head_of
from cvpipe.runs import Run
from cvpipe.stages.calibration import (
    calibrate,
    calibrate_table,
    load_calibration,
    store_calibrated,
)
from cvpipe.stages.features import (
    Describer,
    files_of,
    learn_describer,
    load_describer,
    setup_of,
    store_describer,
)
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import classifier_of
from cvpipe.stages.stored_models import load_estimator, store_estimator

Predictor = Callable[[np.ndarray], np.ndarray]


def fit_contender(job: Job, contender: Contender, train: pd.DataFrame) -> None:
    """Fit a contender on the rows of train and store it.

    Args:
        job: The run.
        contender: What to fit.
        train: Manifest rows of train, and nothing else, with `sha256`.
    """
    # Whoever comes first would pay for all who share features.
    features_of(job, learn_on(job, contender, train), train)
    started = time.perf_counter()
    describer, fitted = fit_rows(job, contender, train)
    seconds = time.perf_counter() - started
    part = job.run.part_path(contender.name)
    store_describer(part, describer, setup_of(job.config))
    if isinstance(contender, NetworkContender):
        model_name = "model.keras"
        head = linear_head(fitted.estimator, len(job.run.class_names()))
        store_network(part / model_name, contender, *head, job.config.threads)
    else:
        model_name = "model.skops"
        store_estimator(part / model_name, fitted.estimator)
    store_fit(part, fitted, {"model": model_name, "fit_seconds": round(seconds, 3)})


def learn_on(job: Job, contender: Contender, rows: pd.DataFrame) -> Describer:
    """Learn from manifest rows what a contender's features need."""
    return learn_describer(contender, setup_of(job.config), files_of(job.root, rows), job.watcher)


def fit_rows(
    job: Job, contender: Contender, rows: pd.DataFrame
) -> tuple[Describer, FittedClassifier]:
    """Learn features, search a contender's hyperparameters and fit it, all on manifest rows."""
    describer = learn_on(job, contender, rows)
    arguments = fitting_arguments(job, contender, rows, describer)
    return describer, fit_classifier(classifier_of(contender), **arguments)


def refit_rows(
    job: Job, contender: Contender, rows: pd.DataFrame, chosen: Mapping[str, Any]
) -> tuple[Describer, Predictor]:
    """Fit a contender on manifest rows with hyperparameters that are known already."""
    describer = learn_on(job, contender, rows)
    arguments = fitting_arguments(job, contender, rows, describer)
    return describer, predictor_of(fit_at(classifier_of(contender), chosen, **arguments))


def predict_by_refit(
    job: Job, contender: Contender, train: pd.DataFrame, test: pd.DataFrame
) -> pd.DataFrame:
    """Predict manifest rows by a fit on others, with what was found for the holdout.

    Hyperparameters and calibration are those of the contender's own fit: finding them once more
    would cost much and show little.
    """
    chosen = read_json(job.run.part_path(contender.name) / "fit.json")["chosen"]
    table = predict_rows(job, *refit_rows(job, contender, train, chosen), test)
    return calibrate_table(table, load_calibration(job.run, contender.name))


def fitting_arguments(
    job: Job, contender: Contender, rows: pd.DataFrame, describer: Describer
) -> dict[str, Any]:
    """Collect what a fit on manifest rows is given beside the name of the classifier."""
    return {
        "features": features_of(job, describer, rows),
        "targets": frames.targets_of(rows["label"], job.run.class_names()),
        "groups": rows["group"].tolist(),
        "search": contender.search,
        "seed": job.config.seed,
        "threads": job.config.threads,
        "class_weights": contender.class_weights,
    }


def store_fit(part: Path, fitted: FittedClassifier, facts: dict[str, Any]) -> None:
    """Store how a contender was fitted; what has a `fit.json` is complete, so it comes last."""
    write_table(part / "search.csv", fitted.search)
    write_json(
        part / "fit.json",
        {
            **facts,
            "chosen": fitted.chosen,
            "num_values": len(fitted.search),
            "num_folds": int(fitted.search["folds"].max()) if len(fitted.search) else 0,
            "warnings": fitted.warnings,
        },
    )


def features_of(job: Job, describer: Describer, rows: pd.DataFrame) -> np.ndarray:
    """Compute or recall the features of manifest rows that carry their `sha256`."""
    return describer.describe(files_of(job.root, rows), job.watcher)


def stored_describer(run: Run, contender: Contender) -> Describer:
    """Load what the stored model of a contender reads images with."""
    return load_describer(contender, setup_of(run.config()), run.part_path(contender.name))


def predict_split(job: Job, contender: Contender, rows: pd.DataFrame, split: str) -> None:
    """Store a contender's predictions for the rows of a split, as they are and calibrated.

    Predictions of val come first: they are what the calibration is fitted on.
    """
    name = contender.name
    if not job.run.uncalibrated_path(name, split).exists():
        predict = load_predictor(job.run.part_path(name), job.config.threads)
        table = predict_rows(job, stored_describer(job.run, contender), predict, rows)
        write_table(job.run.uncalibrated_path(name, split), table)
    if split == "val" and not job.run.fitted_calibration_path(name).exists():
        calibrate(job, name, rows)
    store_calibrated(job, name, split)


def predict_rows(
    job: Job, describer: Describer, predict: Predictor, rows: pd.DataFrame
) -> pd.DataFrame:
    """Make the predictions table of manifest rows."""
    return frames.make_predictions(
        rows["image_id"].tolist(),
        rows["label"].tolist(),
        predict(features_of(job, describer, rows)),
        job.run.class_names(),
    )


def load_predictor(part: Path, threads: int) -> Predictor:
    """Load a stored contender as a function from features to probabilities."""
    model_name = read_json(part / "fit.json")["model"]
    if model_name == "model.skops":
        return predictor_of(load_estimator(part / model_name))
    set_threads(threads)
    return build_embed(head_of(load_network(part / model_name)))


def store_network(
    path: Path, contender: NetworkContender, kernel: np.ndarray, bias: np.ndarray, threads: int
) -> None:
    """Store a backbone with a linear head as one Keras file."""
    set_threads(threads)
    backbone = build_backbone(contender.backbone)
    with atomic_path(path) as partial:
        attach_linear_head(backbone, kernel, bias, contender.name).save(partial)


def load_network(path: Path) -> Any:
    """Load a Keras file; code in it is refused, not executed."""
    return import_keras().saving.load_model(path, compile=False, safe_mode=True)


def describe_search(fit: dict[str, Any]) -> dict[str, str]:
    """Say in words which hyperparameters were chosen and how."""
    how = f"best of {fit['num_values']} by {fit['num_folds']}-fold cross-validation inside train"
    values = {
        name: value if isinstance(value, str) else f"{value:g}"
        for name, value in fit["chosen"].items()
    }
    return {name: f"{value} ({how})" for name, value in values.items()}
