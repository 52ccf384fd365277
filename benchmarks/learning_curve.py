"""Does the interval of a forecast hold what is then measured?

Half of train plays the present and all of it the future: a contender is fitted on parts of the
half, in the sizes and draws of a run, and the forecast for twice the images is set beside the
accuracy of a fit on all of train, on the same test images. Each turn divides the images anew.
Hyperparameters are those of a finished run; nothing is searched.

    cvpipe run pipelines/digits.toml && python benchmarks/learning_curve.py runs/digits-*
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.search import fit_at, predictor_of
from cvpipe.data.splits import assign_splits, nested_subset
from cvpipe.evaluation.learning_curve import forecast_accuracy
from cvpipe.files import read_json
from cvpipe.runs import Run, data_root, open_run
from cvpipe.stages.contenders import stored_describer
from cvpipe.stages.features import files_of
from cvpipe.stages.job import Nobody
from cvpipe.stages.learning_curve import NUM_DRAWS, PARTS
from cvpipe.stages.recipes import classifier_of

FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Subject:
    """A contender and all images of its run: `features (n, f)`, `targets (n,)`, and the rest."""

    classifier: str
    search: str
    chosen: dict[str, float]
    features: np.ndarray
    targets: np.ndarray
    manifest: pd.DataFrame
    class_names: list[str]


def read_subject(run: Run, name: str, data: Path | None) -> Subject:
    """Read a contender of a run and describe all images."""
    config, manifest, names = run.config(), run.manifest(), run.class_names()
    contender = config.contender_called(name)
    describer = stored_describer(run, contender)
    features = describer.describe(files_of(data_root(run, data), manifest), Nobody())
    chosen = read_json(run.part_path(name) / "fit.json")["chosen"]
    targets = frames.targets_of(manifest["label"], names)
    classifier = classifier_of(contender)
    return Subject(classifier, contender.search, chosen, features, targets, manifest, names)


def predict(subject: Subject, train: np.ndarray, test: np.ndarray) -> pd.DataFrame:
    """Fit on some positions and predict others."""
    groups = subject.manifest["group"].to_numpy()[train].tolist()
    estimator = fit_at(
        subject.classifier, subject.chosen, subject.features[train], subject.targets[train],
        groups, subject.search, seed=0, threads=1,
    )  # fmt: skip
    rows = subject.manifest.iloc[test]
    probabilities = predictor_of(estimator)(subject.features[test])
    ids, labels = rows["image_id"].tolist(), rows["label"].tolist()
    return frames.make_predictions(ids, labels, probabilities, subject.class_names)


def part_of(subject: Subject, rows: np.ndarray, share: float, key: str) -> np.ndarray:
    """Take a part of some positions."""
    groups = subject.manifest["group"].to_numpy()[rows].tolist()
    return rows[nested_subset(subject.targets[rows], groups, share, key)]


def accuracy_of(table: pd.DataFrame) -> float:
    """Share of right answers."""
    return float((frames.predicted_labels(table) == table["label"].to_numpy()).mean())


def one_turn(subject: Subject, turn: int) -> dict[str, float]:
    """Forecast from half of train, and measure on all of it."""
    groups = subject.manifest["group"]
    split = assign_splits(subject.targets, groups.tolist(), FRACTIONS, f"{turn} back-test")
    train, test = (np.flatnonzero(split == name) for name in ("train", "test"))
    half = part_of(subject, train, 0.5, f"{turn} present")
    fits, tables = [], []
    for number in PARTS:
        for draw in range(NUM_DRAWS):
            rows = part_of(subject, half, 1 / number, f"{turn} curve {draw}")
            fits.append((1 / number, draw, len(rows)))
            tables.append(predict(subject, rows, test))
    fits.append((1.0, 0, len(half)))
    tables.append(predict(subject, half, test))
    frame = pd.DataFrame(fits, columns=["share", "draw", "num_train"])
    by_image_id = pd.Series(groups.to_numpy(), index=subject.manifest["image_id"])
    table = forecast_accuracy(frame, tables, by_image_id, turn).set_index("multiple")
    present, future = accuracy_of(tables[-1]), accuracy_of(predict(subject, train, test))
    row = table.loc[2.0]
    gain = future - present
    return {
        "present": present,
        "forecast": row["accuracy"],
        "measured": future,
        "held": float(row["low"] <= future <= row["high"]),
        "gain held": float(row["gain_low"] <= gain <= row["gain_high"]),
        "half width": (row["high"] - row["low"]) / 2,
        "half width of gain": (row["gain_high"] - row["gain_low"]) / 2,
        "error": row["accuracy"] - future,
        "error of no gain": present - future,
    }


def main() -> None:
    """Print one row per contender."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--contenders", nargs="+", default=["hog_svm"])
    parser.add_argument("--data", type=Path, help="folder of the images")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    run = open_run(options.run)
    print(
        "| contender | turns | present | forecast | measured | interval held | gain's held "
        "| half width | of the gain | error (RMS) | error of no gain (RMS) |"
    )
    print("|---|" + "---:|" * 10)
    for name in options.contenders:
        subject = read_subject(run, name, options.data)
        turns = pd.DataFrame([one_turn(subject, turn) for turn in range(options.turns)])
        errors = [np.sqrt((turns[n] ** 2).mean()) for n in ("error", "error of no gain")]
        means = turns.mean()
        shares = [
            *(means[n] for n in ("present", "forecast", "measured")),
            *(means[n] for n in ("half width", "half width of gain")),
            *errors,
        ]
        texts = [f"{100 * share:.1f}" for share in shares]
        held = [f"{int(turns[n].sum())}" for n in ("held", "gain held")]
        print(
            "| " + " | ".join([name, str(len(turns)), *texts[:3], *held, *texts[3:]]) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
