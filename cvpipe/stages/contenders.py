"""Fit contenders on train, store them, and let them predict.

A contender's part holds `model.skops` or `model.keras` and `fit.json`; a stored model
reads features, so predicting a split costs no second pass through a network. Of a fold the
predictions are kept instead of the model: they are what a fold is for.
"""

import functools
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.search import (
    SCORE_COLUMNS,
    FittedClassifier,
    fit_at,
    fit_classifier,
    linear_head,
    predictor_of,
)
from cvpipe.config import Config
from cvpipe.contender_sections import (
    Contender,
    EnsembleContender,
    FittedContender,
    ImportedContender,
    NetworkContender,
    SingleContender,
)
from cvpipe.files import atomic_path, read_json, write_json, write_table
from cvpipe.inference.crops import SINGLE, average_over_views
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras, set_threads
from cvpipe.models.heads import attach_linear_head, head_of
from cvpipe.models.imported import check_probabilities
from cvpipe.models.runtimes import TENSORFLOW
from cvpipe.runs import Run
from cvpipe.stages.calibration import (
    calibrate,
    calibrate_table,
    load_calibration,
    store_calibrated,
)
from cvpipe.stages.choosing import fix_view
from cvpipe.stages.ensembles import (
    MODEL_NAME,
    combine,
    fit_on_members,
    load_ensemble,
    store_ensemble,
)
from cvpipe.stages.features import (
    Describer,
    Setup,
    files_of,
    learn_describer,
    load_deep,
    load_describer,
    network_describer,
    setup_of,
    store_describer,
    under,
)
from cvpipe.stages.imported import import_model
from cvpipe.stages.job import Job
from cvpipe.stages.networks import (
    CHECKPOINT,
    TrainedNetwork,
    divide_for_stopping,
    drop_checkpoint,
    fit_network,
    further_views,
    store_trained,
)
from cvpipe.stages.recipes import (
    STARTING_HEAD,
    becomes_network,
    classifier_of,
    feature_names,
    is_trained,
    is_whole_network,
    names_to_learn,
    probe_feature,
    views_of,
)
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.stored_models import load_estimator, store_estimator

Predictor = Callable[[np.ndarray], np.ndarray]
NUM_TRIED = 32  # images on which an imported network is tried
EPOCHS = "epochs"  # what is chosen for a network beside the settings of its head


@dataclass(frozen=True, eq=False)
class Fit:
    """A contender that has seen its training images.

    Attributes:
        describer: How it reads images.
        predict: Function from what it reads to probabilities.
        fitted: How its settings were found.
        setup: How it reads images where it is measured.
        trained: Its network, if it is one that was trained.
        imported: Its network, if another program trained it.
    """

    describer: Describer
    predict: Predictor
    fitted: FittedClassifier
    setup: Setup
    trained: TrainedNetwork | None = None
    imported: Any = None

    @property
    def network(self) -> Any:
        """The network that reads images and says probabilities; `None` where there is none."""
        return self.trained.model if self.trained else self.imported


def fit_contender(
    job: Job, contender: Contender, train: pd.DataFrame, stopping: pd.DataFrame
) -> None:
    """Fit a contender on the rows of train and store it.

    Args:
        job: The run.
        contender: What to fit.
        train: Manifest rows of train, and nothing else, with `sha256`.
        stopping: Half A of val, by which the training of a network is stopped; nothing else
            is told of it.
    """
    if isinstance(contender, EnsembleContender):
        fit_ensemble_contender(job, contender, train)
        return
    if isinstance(contender, ImportedContender):
        adopt_imported(job, contender, train)
        return
    # Whoever comes first would pay for all who share features.
    features_of(job, learn_on(job, contender, train), train)
    started = time.perf_counter()
    part = job.run.part_path(contender.name)
    fit = fit_rows(job, contender, train, stopping, part / CHECKPOINT, checked=True)
    seconds = time.perf_counter() - started
    model_name = store_model(job, contender, fit, part)
    store_fit(part, fit.fitted, {"model": model_name, "fit_seconds": round(seconds, 3)})
    drop_checkpoint(part)


def fit_ensemble_contender(job: Job, contender: EnsembleContender, train: pd.DataFrame) -> None:
    """Fit an ensemble to what its members, which are fitted, say; store it.

    The time of its members counts as its own.
    """
    started = time.perf_counter()
    refit = functools.partial(predict_by_refit, job)
    ensemble = fit_on_members(job, contender, train, rows_of_split(job, "val"), refit)
    seconds = time.perf_counter() - started
    for name in contender.members:
        seconds += read_json(job.run.part_path(name) / "fit.json")["fit_seconds"]
    part = job.run.part_path(contender.name)
    store_ensemble(part, ensemble)
    facts = {"model": MODEL_NAME, "fit_seconds": round(seconds, 3)}
    store_fit(part, nothing_fitted(), facts)


def adopt_imported(job: Job, contender: ImportedContender, train: pd.DataFrame) -> None:
    """Take a network of another program as a fitted contender, if it gives probabilities.

    Raises:
        InputError: It cannot be imported, or gives none on images of train.
    """
    warnings = import_model(job, contender)
    part = job.run.part_path(contender.name)
    fit = imported_fit(job, contender)
    some = train.iloc[np.linspace(0, len(train) - 1, min(NUM_TRIED, len(train))).astype(int)]
    rows = fit.predict(features_of(job, fit.describer, some.reset_index(drop=True)))
    check_probabilities(rows, Path(contender.model))
    size = list(fit.network.input_shape[1:3])
    fitted = replace(nothing_fitted(), warnings=warnings)
    store_fit(part, fitted, {"model": "model.keras", "fit_seconds": 0.0, "image_size": size})


def nothing_fitted() -> FittedClassifier:
    """Say that a contender has no settings that were found by fitting."""
    return FittedClassifier(None, {}, pd.DataFrame(columns=SCORE_COLUMNS))


def store_model(job: Job, contender: SingleContender, fit: Fit, part: Path) -> str:
    """Store the model of a fitted contender, with all that it reads images with.

    Returns:
        Name of the model's file.
    """
    if fit.trained:
        store_trained(part, fit.trained)
        return "model.keras"
    store_describer(part, fit.describer, setup_of(job.config))
    if isinstance(contender, NetworkContender):
        head = linear_head(fit.fitted.estimator, len(job.run.class_names()))
        store_network(part / "model.keras", contender, *head, job.config.threads)
        return "model.keras"
    store_estimator(part / "model.skops", fit.fitted.estimator)
    return "model.skops"


def learn_on(job: Job, contender: SingleContender, rows: pd.DataFrame) -> Describer:
    """Learn from manifest rows what a contender's features need."""
    return learn_describer(
        names_to_learn(contender), setup_of(job.config), files_of(job.root, rows), job.watcher
    )


def fit_rows(
    job: Job,
    contender: SingleContender,
    rows: pd.DataFrame,
    stopping: pd.DataFrame | None = None,
    checkpoint: Path | None = None,
    checked: bool = False,
) -> Fit:
    """Learn features, search a contender's hyperparameters and fit it, all on manifest rows.

    Args:
        job: The run.
        contender: What to fit.
        rows: What to fit it on.
        stopping: Other rows, by which the training of a network is stopped; where there are none
            it keeps some of its own for that.
        checkpoint: File from which such a training goes on.
        checked: Whether such a network is tested before and after.
    """
    if isinstance(contender, ImportedContender):
        return imported_fit(job, contender)
    describer = learn_on(job, contender, rows)
    if not isinstance(contender, NetworkContender) or not is_trained(contender):
        arguments = fitting_arguments(job, contender, rows, describer)
        fitted = fit_classifier(classifier_of(contender), **arguments)
        return measured_fit(job, contender, describer, fitted)
    if stopping is None and contender.training.early_stopping:
        rows, stopping = divide_for_stopping(job, rows)
    arguments = fitting_arguments(job, contender, rows, describer)
    head = fit_classifier(STARTING_HEAD, **arguments) if describer.descriptors else None
    trained = fit_network(job, contender, rows, head, stopping, None, checkpoint, checked)
    return trained_fit(job, trained)


def refit_rows(
    job: Job, contender: SingleContender, rows: pd.DataFrame, chosen: Mapping[str, Any]
) -> Fit:
    """Fit a contender on manifest rows with hyperparameters that are known already."""
    if isinstance(contender, ImportedContender):
        return imported_fit(job, contender)
    describer = learn_on(job, contender, rows)
    arguments = fitting_arguments(job, contender, rows, describer)
    if not isinstance(contender, NetworkContender) or not is_trained(contender):
        estimator = fit_at(classifier_of(contender), chosen, **arguments)
        found = FittedClassifier(estimator, dict(chosen), pd.DataFrame(columns=SCORE_COLUMNS))
        return measured_fit(job, contender, describer, found)
    of_head = {name: value for name, value in chosen.items() if name != EPOCHS}
    head = None
    if describer.descriptors:
        estimator = fit_at(STARTING_HEAD, of_head, **arguments)
        head = FittedClassifier(estimator, of_head, pd.DataFrame(columns=SCORE_COLUMNS))
    return trained_fit(job, fit_network(job, contender, rows, head, None, chosen[EPOCHS]))


def measuring_setup(config: Config, contender: Contender) -> Setup:
    """Say how images become rows where a contender is measured.

    A network is measured as its file is handed on: by TensorFlow, whatever computed the features
    that its head was fitted on. So is what becomes one. Every other contender reads what it was
    fitted on.
    """
    setup = setup_of(config)
    return by_tensorflow(setup) if becomes_network(config, contender) else setup


def by_tensorflow(setup: Setup) -> Setup:
    """Let TensorFlow compute what another runtime may compute for fitting."""
    return replace(setup, runtime=TENSORFLOW, precision="float32")


def measured_fit(
    job: Job, contender: Contender, describer: Describer, fitted: FittedClassifier
) -> Fit:
    """Say how a fitted classifier on features is measured; see `measuring_setup`."""
    setup = measuring_setup(job.config, contender)
    return Fit(under(describer, setup), predictor_of(fitted.estimator), fitted, setup)


def trained_fit(job: Job, trained: TrainedNetwork) -> Fit:
    """Say of a trained network what is said of every fitted contender."""
    head = trained.head
    failed = [f"{c.name}: {c.advice}" for _, c in trained.checks if not c.passed]
    fitted = FittedClassifier(
        estimator=None,
        chosen={**(head.chosen if head else {}), EPOCHS: trained.state.kept},
        search=head.search if head else pd.DataFrame(columns=SCORE_COLUMNS),
        warnings=[*(head.warnings if head else []), *failed],
    )
    setup = by_tensorflow(setup_of(job.config))
    return Fit(network_describer(trained.model, setup), as_they_are, fitted, setup, trained)


def imported_fit(job: Job, contender: ImportedContender) -> Fit:
    """Say of a network that was imported what is said of every fitted contender.

    Nothing of it is fitted, so it is the same whatever rows it is asked to be fitted on.
    """
    setup = measuring_setup(job.config, contender)
    set_threads(setup.threads)
    model = load_network(job.run.part_path(contender.name) / "model.keras")
    describer = network_describer(model, setup)
    return Fit(describer, as_they_are, nothing_fitted(), setup, imported=model)


def as_they_are(probabilities: np.ndarray) -> np.ndarray:
    """Return what a whole network gives: probabilities already."""
    return probabilities


def predict_by_refit(
    job: Job, contender: SingleContender, train: pd.DataFrame, test: pd.DataFrame
) -> pd.DataFrame:
    """Predict manifest rows by a fit on others, with what was found for the holdout.

    Hyperparameters, calibration and view are those of the contender's own fit: finding them once
    more would cost much and show little.
    """
    chosen = read_json(job.run.part_path(contender.name) / "fit.json")["chosen"]
    fit = refit_rows(job, contender, train, chosen)
    table = predict_rows(job, fit, test, job.run.view(contender.name))
    return calibrate_table(table, load_calibration(job.run, contender.name))


def fitting_arguments(
    job: Job, contender: FittedContender, rows: pd.DataFrame, describer: Describer
) -> dict[str, Any]:
    """Collect what a fit on manifest rows is given beside the name of the classifier.

    Further views of an image stand behind all images, in the image's group.
    """
    features = [features_of(job, describer, rows)]
    if isinstance(contender, NetworkContender) and not is_trained(contender):
        features += further_views(job, contender, describer, rows)
    num_views = len(features)
    return {
        "features": np.concatenate(features) if num_views > 1 else features[0],
        "targets": np.tile(frames.targets_of(rows["label"], job.run.class_names()), num_views),
        "groups": rows["group"].tolist() * num_views,
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


def stored_describer(run: Run, contender: Contender, view: str = SINGLE) -> Describer:
    """Load what the stored model of a contender reads images with, in a view of them."""
    setup = replace(measuring_setup(run.config(), contender), view=view)
    part = run.part_path(contender.name)
    if is_whole_network(contender):
        set_threads(setup.threads)
        return network_describer(load_network(part / "model.keras"), setup)
    return load_describer(feature_names(contender), setup, part)


def predict_split(job: Job, contender: Contender, rows: pd.DataFrame, split: str) -> None:
    """Store a contender's predictions for the rows of a split, as they are and calibrated.

    Predictions of val come first: they are what the calibration is fitted on, and where there are
    several views, what the contender's own one is chosen by.
    """
    views = views_of(job.config, contender)
    if views == (SINGLE,):
        _predict_in_view(job, contender, rows, split)
        return
    for view in views:
        _predict_in_view(job, contender, rows, split, view)
    if split == "val":
        fix_view(job, contender, rows)
    _adopt_chosen_view(job.run, contender.name, split)


def _predict_in_view(
    job: Job, contender: Contender, rows: pd.DataFrame, split: str, view: str = ""
) -> None:
    """Store predictions of the rows of a split in a view; `""`: in the only one there is."""
    name = contender.name
    if not job.run.uncalibrated_path(name, split, view).exists():
        if isinstance(contender, EnsembleContender):
            tables = [job.run.predictions(split, member) for member in contender.members]
            table = combine(load_ensemble(job.run, name), tables)
        else:
            seen = view or SINGLE
            mean_of = job.config.evaluate.view_mean
            predict = average_over_views(load_predictor(job.run, contender), seen, mean_of)
            features = features_of(job, stored_describer(job.run, contender, seen), rows)
            table = tabulate(job, rows, predict(features))
        write_table(job.run.uncalibrated_path(name, split, view), table)
    if split == "val" and not job.run.fitted_calibration_path(name, view).exists():
        calibrate(job, name, rows, view)
    store_calibrated(job, name, split, view)


def _adopt_chosen_view(run: Run, name: str, split: str) -> None:
    """Make what was predicted in the chosen view the contender's own, its tables last."""
    view = run.view(name)
    if split == "val":
        _copy_file(run.fitted_calibration_path(name, view), run.fitted_calibration_path(name))
    _copy_file(run.uncalibrated_path(name, split, view), run.uncalibrated_path(name, split))
    own = run.predictions_path(name, split)
    _copy_file(run.predictions_path(name, split, view=view), own)


def _copy_file(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)


def predict_rows(job: Job, fit: Fit, rows: pd.DataFrame, view: str = SINGLE) -> pd.DataFrame:
    """Make the predictions table of manifest rows, seen in a view."""
    predict = average_over_views(fit.predict, view, job.config.evaluate.view_mean)
    return tabulate(job, rows, predict(features_of(job, describer_in_view(fit, view), rows)))


def describer_in_view(fit: Fit, view: str) -> Describer:
    """Let a fitted contender read images in a view of them."""
    if view == SINGLE:
        return fit.describer
    setup = replace(fit.setup, view=view)
    if fit.network is not None:
        return network_describer(fit.network, setup)
    return under(fit.describer, setup)


def tabulate(job: Job, rows: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """Put the probabilities of manifest rows into a predictions table."""
    return frames.make_predictions(
        rows["image_id"].tolist(), rows["label"].tolist(), probabilities, job.run.class_names()
    )


def load_predictor(run: Run, contender: Contender) -> Predictor:
    """Load a stored contender as a function from what it reads to probabilities."""
    part = run.part_path(contender.name)
    if is_whole_network(contender):
        return as_they_are
    model_name = read_json(part / "fit.json")["model"]
    if model_name == "model.skops":
        return predictor_of(load_estimator(part / model_name))
    set_threads(run.config().threads)
    return build_embed(head_of(load_network(part / model_name)))


def store_network(
    path: Path, contender: NetworkContender, kernel: np.ndarray, bias: np.ndarray, threads: int
) -> None:
    """Store a backbone with a linear head as one Keras file."""
    backbone = load_deep(probe_feature(contender), threads)
    with atomic_path(path) as partial:
        attach_linear_head(backbone, kernel, bias, contender.name).save(partial)


def load_network(path: Path) -> Any:
    """Load a Keras file; code in it is refused, not executed."""
    return import_keras().saving.load_model(path, compile=False, safe_mode=True)


def describe_search(fit: dict[str, Any]) -> dict[str, str]:
    """Say in words which hyperparameters were chosen and how.

    How long a network was trained stands where its training is told of.
    """
    how = f"best of {fit['num_values']} by {fit['num_folds']}-fold cross-validation inside train"
    values = {
        name: value if isinstance(value, str) else f"{value:g}"
        for name, value in fit["chosen"].items()
        if name != EPOCHS
    }
    return {name: f"{value} ({how})" for name, value in values.items()}
