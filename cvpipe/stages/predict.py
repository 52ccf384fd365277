"""Class probabilities for new image files, from a run or from an exported bundle."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.config import usable_cores
from cvpipe.contender_sections import AnyNetwork, EnsembleContender
from cvpipe.data.images import bundle_rule, decode_rule
from cvpipe.data.threads import load_sizes
from cvpipe.errors import InputError, check_name
from cvpipe.export.bundle import RUNTIME_NAME, image_sizes
from cvpipe.export.files import hash_of
from cvpipe.export.formats import KERAS, NATIVE, parse_label
from cvpipe.export.running import open_file
from cvpipe.export.runtime import input_problem
from cvpipe.features.table import KINDS
from cvpipe.files import read_json
from cvpipe.inference.calibration import Calibration
from cvpipe.inference.crops import average_over_views
from cvpipe.inference.ensembling import Ensemble
from cvpipe.models.features import BATCH_SIZE, build_embed
from cvpipe.runs import Run, open_run
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import (
    as_they_are,
    load_network,
    load_predictor,
    stored_describer,
)
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.features import Describe, from_images
from cvpipe.stages.native import open_native


@dataclass(frozen=True)
class ImageClassifier:
    """A fitted contender that reads image files.

    Attributes:
        name: The contender.
        class_names: Class order of the probabilities.
        describe: Function from paths to rows.
        classify: Function from rows to probabilities.
        operating_point: The frozen rule to decide by, see `decide`; empty where there is none.
        costs: What mistakes cost, see `cvpipe.evaluation.costs.cost_matrix`; empty where nobody
            said.
    """

    name: str
    class_names: list[str]
    describe: Describe
    classify: Callable[[np.ndarray], np.ndarray]
    operating_point: dict[str, Any] = field(default_factory=dict)
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def predict_proba(self, paths: Sequence[str | Path]) -> pd.DataFrame:
        """Classify image files.

        Args:
            paths: Image files, at least one.

        Returns:
            A predictions table keyed by path, with empty labels.

        Raises:
            InputError: No path is given, one is given twice, or a file cannot be read.
        """
        if not paths:
            raise InputError("no image was given; give the path of at least one image file.")
        files = [Path(path) for path in paths]
        probabilities = self.classify(self.describe(files))
        return frames.make_predictions(
            [str(path) for path in paths], [""] * len(files), probabilities, self.class_names
        )


def load(path: str | Path, contender: str = "", file: str = "") -> ImageClassifier:
    """Load a classifier from a run folder or an exported bundle.

    Args:
        path: The folder; or a model file in a bundle.
        contender: For a run: which contender; the chosen one where none is named.
        file: For a bundle: format and precision of one of its files, such as `"litert-int8"`; the
            Keras file, or else the first, where none is named.

    Raises:
        InputError: The folder is neither, is incomplete, has no such contender or file, or the
            file is not the one that was exported.
    """
    folder = Path(path)
    bundle = bundle_of(folder)
    if bundle:
        return _load_bundle(bundle, label_of_file(bundle, folder, file), contender)
    if file:
        raise InputError(f"{str(folder)!r} is not a bundle; leave the format {file!r} out.")
    run = open_run(folder)
    if not run.choice_path.exists():
        raise InputError(
            f"the run {str(folder)!r} is not finished; finish it with: cvpipe run {run.config_path}"
        )
    return load_contender(run, contender or read_json(run.choice_path)["chosen"])


def bundle_of(path: Path) -> Path | None:
    """Find the bundle that a path is or lies in; `None` where it is none."""
    near = [path, *path.parents[:2]]  # some formats have a folder of their own
    return next((folder for folder in near if (folder / "bundle.json").exists()), None)


def label_of_file(bundle: Path, path: Path, asked: str) -> str:
    """Say which file of a bundle is meant: format and precision; `""` where any is.

    Raises:
        InputError: The path is no file of the bundle, or another format than is asked for.
    """
    if path == bundle:
        return asked
    labels = {name: label for label, name in read_json(bundle / "bundle.json")["files"].items()}
    label = labels[check_name("file", path.relative_to(bundle).as_posix(), labels)]
    if asked not in ("", label):
        raise InputError(f"{str(path)!r} has the format {label!r}, not {asked!r}; leave that out.")
    return label


def load_contender(run: Run, name: str, view: str = "") -> ImageClassifier:
    """Load a fitted contender of a run.

    Args:
        run: The run.
        name: Of the contender.
        view: One of those that the run asked for; `""`: its own one.
    """
    config = run.config()
    contenders = {contender.name: contender for contender in config.contender}
    contender = contenders[check_name("contender", name, contenders)]
    part = run.part_path(name)
    calibration = load_calibration(run, name, view)
    seen, mean_of = view or run.view(name), config.evaluate.view_mean
    decisions = run.decisions_path(name)
    point = read_json(decisions)["operating_point"] if decisions.exists() else {}
    if isinstance(contender, EnsembleContender):
        members = [load_contender(run, member) for member in contender.members]
        return ImageClassifier(
            name,
            run.class_names(),
            lambda paths: np.hstack([m.classify(m.describe(paths)) for m in members]),
            calibrated(functools.partial(combine_rows, load_ensemble(run, name)), calibration),
            point,
            config.evaluate.costs,
        )
    if isinstance(contender, AnyNetwork):
        # The whole network as it is stored: what an export is made of.
        model = load_network(part / "model.keras")
        size = tuple(model.input_shape[1:3])
        rule = decode_rule(config.images, config.data)
        return ImageClassifier(
            name,
            run.class_names(),
            from_images(build_embed(model), size, rule, config.threads, seen),
            calibrated(average_over_views(as_they_are, seen, mean_of), calibration),
            point,
            config.evaluate.costs,
        )
    return ImageClassifier(
        name,
        run.class_names(),
        stored_describer(run, contender, seen).prepare(),
        calibrated(average_over_views(load_predictor(run, contender), seen, mean_of), calibration),
        point,
        config.evaluate.costs,
    )


def combine_rows(ensemble: Ensemble, rows: np.ndarray) -> np.ndarray:
    """Combine the probabilities of the members, which stand side by side in each row."""
    members = rows.reshape(len(rows), len(ensemble.weights), -1).swapaxes(0, 1)
    return ensemble.apply(members)


def calibrated(
    predict: Callable[[np.ndarray], np.ndarray], calibration: Calibration | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Put a calibration behind a function that gives probabilities."""
    if calibration is None:
        return predict
    return lambda rows: calibration.apply(predict(rows))


def open_exported(path: Path, label: str, threads: int) -> Callable[..., np.ndarray]:
    """Open a file of a bundle.

    Args:
        path: The file.
        label: What it is, see `cvpipe.export.formats.parse_label`.
        threads: See `cvpipe.export.running.open_file`.

    Returns:
        A function from a batch of images for each of the bundle's `image_sizes` to probabilities.
    """
    name, _ = parse_label(label)
    return open_native(path) if name == NATIVE else open_file(path, name, threads)


def _load_bundle(folder: Path, label: str, contender: str) -> ImageClassifier:
    bundle = read_json(folder / "bundle.json")
    if contender not in ("", bundle["contender"]):
        raise InputError(
            f"the bundle {str(folder)!r} holds {bundle['contender']!r}, not {contender!r}; give "
            "the run to choose a contender."
        )
    files, hashes = bundle["files"], bundle.get("sha256", {})
    if not files:
        raise InputError(
            f"{str(folder)!r} holds no model file, none has passed its check; see its parity.json."
        )
    label = label or (KERAS if KERAS in files else next(iter(files)))
    path = folder / files[check_name("format", label, files)]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{str(path)!r} does not lie in the bundle; export it again.")
    if label in hashes and hash_of(path) != hashes[label]:
        raise InputError(
            f"{str(path)!r} is not the file that was exported (its hash differs from the one in "
            "bundle.json); copy it anew, or export again."
        )
    threads = usable_cores()
    problem = input_problem(bundle["input"])
    if problem:
        raise InputError(f"the bundle.json of {str(folder)!r} is damaged: {problem}.")
    for feature in bundle.get("features", {}).values():
        kind, version = feature["kind"], feature["version"]
        if kind not in KINDS or KINDS[kind].version != version:
            raise InputError(
                f"{str(path)!r} reads the feature {kind!r} as version {version} of it computes "
                f"it, which this cvpipe does not have; use the {RUNTIME_NAME} beside it, or export "
                "it again."
            )
    sizes, rule = image_sizes(bundle), bundle_rule(bundle)
    if label == KERAS:
        predict = build_embed(load_network(path))
    else:
        predict = open_exported(path, label, threads)
    return ImageClassifier(
        bundle["contender"],
        list(bundle["class_names"]),
        lambda paths: np.concatenate(
            [predict(*batch) for batch in load_sizes(paths, sizes, rule, BATCH_SIZE, threads)]
        ),
        as_they_are,
        bundle.get("decisions", {}).get("operating_point", {}),
        bundle.get("costs", {}),
    )
