"""Score a run's contender or an exported file on other labelled images."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cvpipe.data.audit import hash_file
from cvpipe.data.manifest import LABEL_COLUMN, scan_images
from cvpipe.errors import GateError, InputError
from cvpipe.evaluation.costs import cost_matrix
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.runs import Run
from cvpipe.stages.predict import load
from cvpipe.stages.summary import aligned

SEED = 0  # of the resamples behind the intervals


@dataclass(frozen=True)
class Scored:
    """What came of it.

    Attributes:
        name: The contender.
        metrics: See `cvpipe.evaluation.scoring.score_predictions`.
        predictions: A predictions table keyed by `image_id`.
        num_seen: Images that it was fitted to or chosen on.
        missing_classes: Classes that it knows and no image has.
    """

    name: str
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    num_seen: int
    missing_classes: list[str]


def score(
    path: Path,
    root: Path,
    labels: str = "folders",
    label_column: str = LABEL_COLUMN,
    contender: str = "",
    file: str = "",
    *,
    allow_leak: bool = False,
) -> Scored:
    """Score a run or a bundle on labelled images.

    Args:
        path: A run folder, a bundle folder or a file in a bundle.
        root: Folder of the images.
        labels: `"folders"`, or the name of a table in `root`; see `scan_images`.
        label_column: The column of the table that holds the labels.
        contender: For a run: another than the chosen one.
        file: For a bundle: format and precision of one of its files.
        allow_leak: Go on although some images are those that it was fitted to or chosen on.

    Returns:
        All metrics with 95 % intervals. Images that share a `group` count as one draw.

    Raises:
        InputError: Images or labels are missing or cannot be read, a label is none of the
            classes, an image is listed twice, or as `cvpipe.load` raises.
        GateError: It was fitted to some of the images or chosen on them.
    """
    rows = scan_images(root, labels, label_column)
    twice = rows["image_id"][rows["image_id"].duplicated()].tolist()
    if twice:
        raise InputError(f"{twice[0]!r} is listed twice; list each image once.")
    classifier = load(path, contender, file)
    known = set(classifier.class_names)
    unknown = sorted(set(rows["label"]) - known)
    if unknown:
        raise InputError(
            f"{str(path)!r} knows the classes {classifier.class_names}, but the images have the "
            f"label {unknown[0]!r} (of {len(unknown)} unknown ones); rename the labels, or leave "
            "those images out."
        )
    num_seen = count_seen(run_behind(path), (root / name for name in rows["image_id"]))
    if num_seen and not allow_leak:
        raise GateError(
            f"{num_seen} of the {len(rows)} images are among those that the model was fitted to "
            "or chosen on, so its figures would be too good; give other images, or --allow-leak."
        )
    predicted = classifier.predict_proba([root / name for name in rows["image_id"]])
    predicted["image_id"], predicted["label"] = (
        rows["image_id"].to_numpy(),
        rows["label"].to_numpy(),
    )
    groups = rows.set_index("image_id")["group"]
    costs = None
    if classifier.costs:
        costs = cost_matrix(classifier.costs, classifier.class_names)
    return Scored(
        classifier.name,
        score_predictions(predicted, groups, SEED, costs=costs),
        predicted,
        num_seen,
        [name for name in classifier.class_names if name not in set(rows["label"])],
    )


def run_behind(path: Path) -> Run | None:
    """Open the run that a path is, or lies in; `None` for a bundle that was copied elsewhere."""
    folders = [path, *path.resolve().parents[:4]]
    runs = (Run(folder) for folder in folders if (folder / "config.json").exists())
    return next((run for run in runs if run.choice_path.exists()), None)


def count_seen(run: Run | None, paths: Iterable[Path]) -> int:
    """Count the files that a run had in train or val, by their bytes."""
    if run is None:
        return 0
    manifest = run.manifest()
    seen = set(manifest["sha256"][manifest["split"] != "test"])
    return sum(hash_file(path) in seen for path in paths)


def describe_scores(scored: Scored) -> list[str]:
    """Write scores for a person."""
    overall = scored.metrics[scored.metrics["label"] == ""].dropna(subset="value")
    table = pd.DataFrame(
        {
            "metric": overall["metric"],
            "value": [f"{value:.3f}" for value in overall["value"]],
            "95 % interval": [
                f"{low:.3f} to {high:.3f}"
                for low, high in zip(overall["low"], overall["high"], strict=True)
            ],
        }
    )
    lines = [f"{scored.name} on {len(scored.predictions):,} images", *aligned(table)]
    if scored.missing_classes:
        lines.append(f"no image has the class(es) {scored.missing_classes}")
    if scored.num_seen:
        lines.append(
            f"{scored.num_seen:,} of the images are among those that it was fitted to or chosen "
            "on: the figures are too good"
        )
    return lines
