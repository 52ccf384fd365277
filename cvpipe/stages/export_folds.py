"""What 8 bits lose over the folds, where test has too few images to show it.

A file in 8 bits does not give the measured probabilities, so it must be shown to be as often right.
Where the images of test cannot show it, all images may: the network of each fold is rounded in the
way of the one that is handed on, and predicts its fold.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.contender_sections import Contender, EnsembleContender, SingleContender
from cvpipe.data.images import decode_rule
from cvpipe.data.threads import load_batches
from cvpipe.errors import GateError
from cvpipe.evaluation.intervals import wilson_interval
from cvpipe.export.bundle import EXACT_TOLERANCE
from cvpipe.export.formats import INT8, file_name, parse_label
from cvpipe.export.running import open_file
from cvpipe.export.writing import write_file
from cvpipe.files import atomic_path, write_table
from cvpipe.models.framework import set_threads
from cvpipe.report.content import NO_WORSE_MARGINS
from cvpipe.stages.bundle_facts import size_to_load
from cvpipe.stages.contenders import fit_rows, load_network, predict_rows, tabulate
from cvpipe.stages.job import Job
from cvpipe.stages.networks import CHECKPOINT, drop_checkpoint
from cvpipe.stages.one_network import in_own_view, network_of_fit, representative_images
from cvpipe.stages.protocols import part_of_fold
from cvpipe.stages.recipes import members_of
from cvpipe.stages.split import fold_column
from cvpipe.stages.verify import (
    BY_ACCURACY,
    IMAGES_AT_A_TIME,
    REPEAT,
    check_images,
    loses_too_much,
)


def can_ask_folds(job: Job, contender: Contender, label: str, result: Mapping[str, Any]) -> bool:
    """Tell whether the folds could show what test could not: that 8 bits lose next to nothing.

    Args:
        job: The run.
        contender: Whose file was checked.
        label: What the file is.
        result: What `cvpipe.stages.verify.check_file` found.
    """
    kept = result.get("accuracy", {})
    return (
        parse_label(label)[1] in BY_ACCURACY
        and kept.get("no_worse") == "not shown"
        and all(found["are_probabilities"] for found in result["splits"].values())
        and not loses_too_much(kept["difference"])
        and not isinstance(contender, EnsembleContender)
        and job.run.predictions_path(contender.name, "test", "kfold", REPEAT).exists()
        and could_be_seen(job.run.manifest()["group"].nunique())
    )


def could_be_seen(num_groups: int) -> bool:
    """Tell whether so many groups of images leave no room for a loss that is too large."""
    return wilson_interval(0, num_groups)[1] <= NO_WORSE_MARGINS["kfold"]


def predict_rounded_folds(job: Job, contender: Contender, label: str) -> None:
    """Let the network of each fold predict it as a file of a format; store one table each.

    Networks of folds are not kept by a run, so they are fitted again, once for all formats.

    Raises:
        GateError: A network that was fitted again is another one than was measured.
    """
    (single,) = members_of(job.config, contender)
    manifest = job.run.manifest()
    check_images(job.run, job.root, manifest["image_id"].tolist())
    column = fold_column(REPEAT)
    folds = sorted(manifest[column].unique())
    for number, fold in enumerate(folds, start=1):
        job.watcher.say(
            f"  test has too few images to show what {label} loses: fold {number} of {len(folds)}"
        )
        others, rows = (
            manifest[choose].reset_index(drop=True)
            for choose in (manifest[column] != fold, manifest[column] == fold)
        )
        part = part_of_fold(REPEAT, fold)
        model = network_of_fold(job, single, others, rows, part)
        table = predict_as_file(job, single, model, label, others, rows)
        write_table(job.run.rounded_fold_path(contender.name, part, label), table)


def network_of_fold(
    job: Job, contender: SingleContender, others: pd.DataFrame, rows: pd.DataFrame, part: str
) -> Any:
    """Fit a contender as it was fitted for a fold, or load it if that was done before.

    Args:
        job: The run.
        contender: What to fit.
        others: Manifest rows of the other folds.
        rows: Those of the fold.
        part: Name of the part of the fold.

    Raises:
        GateError: The fit does not say of the fold what was measured.
    """
    folder = job.run.part_path(contender.name, part)
    path = folder / "model.keras"
    if not path.exists():
        fit = fit_rows(job, contender, others, checkpoint=folder / CHECKPOINT)
        again = predict_rows(job, fit, rows, job.run.view(contender.name))
        measured = frames.read_predictions(job.run.fold_predictions_path(contender.name, part))
        pair = (frames.probabilities_of(table) for table in (again, measured))
        apart = float(np.abs(np.subtract(*pair)).max())
        if not apart <= EXACT_TOLERANCE:
            raise GateError(
                f"contender {contender.name!r}, fitted again for the part {part!r}, differs from "
                f"what was measured by up to {apart:.2g}, so it cannot be said what rounding "
                "loses; machines and versions other than the run's may fit otherwise: make the "
                "run anew with --again."
            )
        with atomic_path(path) as partial:
            network_of_fit(job, contender, fit).save(partial)
        drop_checkpoint(folder)
    return load_network(path)


def predict_as_file(
    job: Job,
    contender: SingleContender,
    model: Any,
    label: str,
    train: pd.DataFrame,
    rows: pd.DataFrame,
) -> pd.DataFrame:
    """Write a network as a file of a format, and predict rows with that file.

    As everywhere over folds, nothing is calibrated.
    """
    name, precision = parse_label(label)
    config, size = job.config, size_to_load(job.run, job.config, contender)
    set_threads(config.threads)
    model = in_own_view(job.run, config, contender.name, model)
    images = np.empty((0, *size, 3), np.uint8)
    if precision == INT8:
        images = representative_images(job, contender, train)
    rule = decode_rule(config.images, config.data)
    paths = [job.root / image_id for image_id in rows["image_id"]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file_name(name, precision)
        write_file(model, path, name, precision, images)
        predict = open_file(path, name, config.threads)
        batches = load_batches(paths, size, rule, IMAGES_AT_A_TIME, config.threads)
        probabilities = np.concatenate([predict(batch) for batch in batches])
    bad = ~frames.are_probabilities(probabilities)
    if bad.any():
        raise GateError(
            f"a network of the folds of {contender.name!r}, written as {label!r}, gives "
            f"{probabilities[bad][0].tolist()} for an image, which are no probabilities; choose "
            "another format."
        )
    return tabulate(job, rows, probabilities)
