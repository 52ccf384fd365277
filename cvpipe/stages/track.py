"""Copy what a run found into the files of an experiment tracker.

A run folder says everything already; this is for people who look at all their work in TensorBoard
or MLflow. Files are written to a folder of this machine, and nothing is sent anywhere. (Whoever
imports MLflow before decides whether it reports its own use.)
"""

import importlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cvpipe.errors import InputError, check_installed, check_name
from cvpipe.files import atomic_path
from cvpipe.models.framework import import_tensorflow
from cvpipe.runs import Run
from cvpipe.stages.training_report import read_numbers

HISTORY = "history.csv"


class Tracked(NamedTuple):
    """What a tracker is told of a contender.

    Attributes:
        contender: Its name.
        settings: Its section of the pipeline file, with a dot between the names of sections.
        curves: A row per epoch of each of its trainings, by the name of the training: `holdout`,
            or `r0-f3` for fold 3 of repeat 0. Empty for contenders that are not trained so.
        figures: What was measured in the end, by protocol, split, view and metric; of repeats
            the mean.
    """

    contender: str
    settings: dict[str, Any]
    curves: dict[str, pd.DataFrame]
    figures: dict[str, float]


class Tracker(NamedTuple):
    """An entry of `TRACKERS`.

    Attributes:
        write: Writes a run's contenders into a folder and says where they are.
        packages: What has to be installed, with the module that each package has.
    """

    write: Callable[[str, list[Tracked], Path], Path]
    packages: Mapping[str, str]


def track(run: Run, tracker: str, folder: Path) -> Path:
    """Copy the training curves, settings and final metrics of a run.

    Args:
        run: A finished one.
        tracker: A key of `TRACKERS`.
        folder: Where the tracker keeps its files; made if it is not there.

    Returns:
        Where they are.

    Raises:
        InputError: The tracker is unknown or not installed, the run is not finished, it lies in
            that folder itself, or it was copied there before.
    """
    entry = TRACKERS[check_name("tracker", tracker, TRACKERS)]
    check_installed(f"the tracker {tracker!r}", entry.packages, extra=tracker)
    if not run.is_finished:
        raise InputError(
            f"the run {str(run.path)!r} is not finished; finish it with: cvpipe run "
            f"{run.config_path}"
        )
    if folder.resolve() == run.path.resolve().parent:
        raise InputError(
            f"{str(folder)!r} is where the run itself lies; choose another folder for the copy."
        )
    import_tensorflow()  # which both import if it is there, with notes to the terminal
    return entry.write(run.path.name, list(tracked_contenders(run)), folder)


def tracked_contenders(run: Run) -> Iterator[Tracked]:
    """Collect what a run folder says of each contender."""
    metrics = run.metrics()
    overall = metrics[metrics["label"] == ""]
    for contender in run.config().contender:
        histories = sorted(run.part_path(contender.name).parent.glob(f"*/{HISTORY}"))
        rows = overall[overall["contender"] == contender.name]
        view = rows["view"].where(rows["view"] != "single", "")
        tags = (rows["protocol"] + "/" + rows["split"] + "/" + view).str.rstrip("/")
        figures = rows["value"].groupby(tags + "/" + rows["metric"]).mean().dropna()
        yield Tracked(
            contender.name,
            flattened(contender.model_dump(mode="json")),
            {path.parent.name: read_numbers(path) for path in histories},
            figures.to_dict(),
        )


def flattened(section: Mapping[str, Any]) -> dict[str, Any]:
    """Name the settings of sections inside a section by a dot.

    Example:
        >>> flattened({"name": "a", "training": {"epochs": 3}})
        {'name': 'a', 'training.epochs': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in flattened(value).items()}
        else:
            flat[key] = value
    return flat


def points_of(history: pd.DataFrame) -> Iterator[tuple[str, int, float]]:
    """Give the points of all curves: name, epoch and value; there is none without a value."""
    for column in history.columns.drop("epoch"):
        for epoch, value in zip(history["epoch"], history[column], strict=True):
            if pd.notna(value):
                yield column, int(epoch), float(value)


def write_tensorboard(name: str, contenders: list[Tracked], folder: Path) -> Path:
    """Write event files: a folder per contender, and in it one per training."""
    writer_of = importlib.import_module("tensorboard.summary").Writer
    place = folder / name
    if place.exists():
        raise InputError(f"{str(place)!r} is there already; remove it to copy the run anew.")
    with atomic_path(place) as partial:
        for tracked in contenders:
            home = partial / tracked.contender
            points = {
                home / part: list(points_of(history)) for part, history in tracked.curves.items()
            }
            points[home] = [(tag, 0, value) for tag, value in tracked.figures.items()]
            for path, shown in points.items():
                writer = writer_of(str(path))
                for tag, step, value in shown:
                    writer.add_scalar(tag, value, step)
                writer.close()
    return place


def write_mlflow(name: str, contenders: list[Tracked], folder: Path) -> Path:
    """Write an MLflow run per contender into an experiment that is called like the run."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    mlflow, sqlalchemy = map(importlib.import_module, ("mlflow", "sqlalchemy"))
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "mlflow.db"
    address = sqlalchemy.URL.create("sqlite", database=str(place.resolve())).render_as_string()
    client = mlflow.MlflowClient(tracking_uri=address)
    there = client.get_experiment_by_name(name)
    if there is not None:
        state, remedy = "there already", "delete it there"
        if there.lifecycle_stage == "deleted":  # MLflow keeps its name until it is cleaned up
            state, remedy = "deleted, but not gone", f"mlflow gc --backend-store-uri {address}"
        raise InputError(
            f"the experiment {name!r} is {state}, in {str(place)!r}; to copy the run anew choose "
            f"another folder, or: {remedy}."
        )
    # It gets its name when it is whole.
    artifacts = (folder.resolve() / "artifacts").as_uri()
    experiment = client.create_experiment(f"{name} incomplete {uuid.uuid4().hex[:8]}", artifacts)
    for tracked in contenders:
        _log_contender(client, experiment, tracked)
    client.rename_experiment(experiment, name)
    return place


def _log_contender(client: Any, experiment: str, tracked: Tracked) -> None:
    entities = importlib.import_module("mlflow.entities")
    started = client.create_run(experiment, run_name=tracked.contender).info
    points = [
        (f"{part}/{column}", value, epoch)
        for part, history in tracked.curves.items()
        for column, epoch, value in points_of(history)
    ]
    points += [(tag, value, 0) for tag, value in tracked.figures.items()]
    metrics = [entities.Metric(key, v, started.start_time, step) for key, v, step in points]
    settings = [entities.Param(key, str(value)) for key, value in tracked.settings.items()]
    for start in range(0, len(settings), 100):  # as many as MLflow takes at once
        client.log_batch(started.run_id, params=settings[start : start + 100])
    for start in range(0, len(metrics), 1000):
        client.log_batch(started.run_id, metrics=metrics[start : start + 1000])
    client.set_terminated(started.run_id)


TRACKERS = {
    "tensorboard": Tracker(write_tensorboard, {"tensorboard": "tensorboard"}),
    "mlflow": Tracker(
        write_mlflow,
        {"mlflow-skinny": "mlflow", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    ),
}
