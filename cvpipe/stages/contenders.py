"""Fit contenders on train, store them, and let them predict.

A contender's part holds `model.skops` or `model.keras` and `fit.json`; a stored model
reads features, so predicting a split costs no second pass through a network.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers import fit_classifier, linear_head
from cvpipe.config import Contender, NetworkContender
from cvpipe.errors import InputError
from cvpipe.files import atomic_path, read_json, write_json, write_table
from cvpipe.models.backbones import build_backbone
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras, set_threads
from cvpipe.models.heads import attach_linear_head, head_of
from cvpipe.stages.features import describe_images
from cvpipe.stages.job import Job

# What may be in a stored scikit-learn model beside the types that skops itself trusts.
TRUSTED_TYPES = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
]
Predictor = Callable[[np.ndarray], np.ndarray]


def fit_contender(job: Job, contender: Contender, train: pd.DataFrame) -> None:
    """Fit a contender on the rows of train and store it.

    Args:
        job: The run.
        contender: What to fit.
        train: Manifest rows of train, and nothing else, with `sha256`.
    """
    class_names = job.run.class_names()
    targets = frames.targets_of(train["label"], class_names)
    features = features_of(job, contender, train)
    started = time.perf_counter()
    fitted = fit_classifier(
        "softmax" if isinstance(contender, NetworkContender) else contender.classifier,
        features,
        targets,
        train["group"].tolist(),
        contender.search,
        job.config.seed,
        job.config.threads,
    )
    seconds = time.perf_counter() - started
    part = job.run.part_path(contender.name)
    if isinstance(contender, NetworkContender):
        model_name = "model.keras"
        head = linear_head(fitted.estimator, len(class_names))
        store_network(part / model_name, contender, *head, job.config.threads)
    else:
        model_name = "model.skops"
        store_estimator(part / model_name, fitted.estimator)
    write_table(part / "search.csv", fitted.search)
    # Last: what has a fit.json is fitted.
    write_json(
        part / "fit.json",
        {
            "model": model_name,
            "chosen": fitted.chosen,
            "num_values": len(fitted.search),
            "num_folds": int(fitted.search["folds"].max()) if len(fitted.search) else 0,
            "fit_seconds": round(seconds, 3),
            "warnings": fitted.warnings,
        },
    )


def features_of(job: Job, contender: Contender, rows: pd.DataFrame) -> np.ndarray:
    """Compute or recall the features of manifest rows that carry their `sha256`."""
    return describe_images(
        contender,
        job.root,
        rows["image_id"].tolist(),
        rows["sha256"].tolist(),
        job.config.images.fit,
        job.config.threads,
        job.watcher,
    )


def predict_split(job: Job, contender: Contender, rows: pd.DataFrame, split: str) -> None:
    """Store a contender's predictions for the rows of a split."""
    features = features_of(job, contender, rows)
    predict = load_predictor(job.run.part_path(contender.name), job.config.threads)
    table = frames.make_predictions(
        rows["image_id"].tolist(), rows["label"].tolist(), predict(features), job.run.class_names()
    )
    write_table(job.run.predictions_path(contender.name, split), table)


def load_predictor(part: Path, threads: int) -> Predictor:
    """Load a stored contender as a function from features to probabilities."""
    model_name = read_json(part / "fit.json")["model"]
    if model_name == "model.skops":
        return load_estimator(part / model_name).predict_proba
    set_threads(threads)
    return build_embed(head_of(load_network(part / model_name)))


def store_estimator(path: Path, estimator: Any) -> None:
    """Store a fitted scikit-learn estimator without pickle."""
    from skops.io import dump

    with atomic_path(path) as partial:
        dump(estimator, partial)


def load_estimator(path: Path) -> Any:
    """Load a stored estimator; types that are not on the list are refused, not executed.

    Raises:
        InputError: The file holds something else.
    """
    from skops.io import load
    from skops.io.exceptions import UntrustedTypesFoundException

    try:
        return load(path, trusted=TRUSTED_TYPES)
    except UntrustedTypesFoundException as error:
        raise InputError(
            f"{str(path)!r} was not written by cvpipe and is not loaded: {error}"
        ) from None


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
    return {name: f"{value:g} ({how})" for name, value in fit["chosen"].items()}
