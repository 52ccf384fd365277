"""Let runs score one another's test images: which score tells another data set best?

Each run is asked with all scores of `cvpipe.inference.unlike`, and with the Mahalanobis distances
that were considered beside them, for the test images of the other runs. Then one class, or one
value of a column, at a time is left out of training and taken for what is unlike it, which is
harder. Prints the tables of `docs/unlike.md`:

    cvpipe run pipelines/solar_cells.toml && cvpipe run pipelines/brain_mri.toml && ...
    python benchmarks/unlike.py runs/solar_cells-* runs/brain_mri-* runs/digits-*
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.covariance import ledoit_wolf
from threadpoolctl import threadpool_limits

from cvpipe import frames
from cvpipe.classifiers.search import fit_at, linear_head, predictor_of
from cvpipe.contender_sections import NetworkContender
from cvpipe.evaluation.detection import area_with_interval, share_with_interval
from cvpipe.inference.unlike import (
    bound_of,
    neighbour_distance,
    score_images,
    unit_rows,
)
from cvpipe.runs import Run, data_root, open_run
from cvpipe.stages.contenders import features_of, stored_describer
from cvpipe.stages.evaluate import rows_for_fitting
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.summary import markdown, with_interval
from cvpipe.stages.unlike import area_text

RANKS = (1, 10, 50)
MIN_TRAIN = 50
SOFTMAX_C = 0.01
Score = Callable[[np.ndarray], np.ndarray]


def squared_distances(features: np.ndarray, means: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis distance to the nearest mean; `factor @ factor.T` is the precision."""
    white = features @ factor
    return np.min([((white - mean @ factor) ** 2).sum(axis=1) for mean in means], axis=0)


def precision_factor(centred: np.ndarray) -> np.ndarray:
    """Factor of the precision matrix, from a covariance shrunk by the rule of Ledoit and Wolf."""
    covariance, _ = ledoit_wolf(centred, assume_centered=True)
    return np.linalg.cholesky(np.linalg.inv(covariance))


def mahalanobis(train: np.ndarray, targets: np.ndarray) -> dict[str, Score]:
    """Distances of Lee et al. (2018) and, relative, of Ren et al. (2021), on unit rows."""
    rows = unit_rows(train).astype(np.float64)
    means = np.stack([rows[targets == target].mean(axis=0) for target in np.unique(targets)])
    position = np.unique(targets, return_inverse=True)[1]
    factor = precision_factor(rows - means[position])
    overall = rows.mean(axis=0, keepdims=True)
    overall_factor = precision_factor(rows - overall)

    def distance(features: np.ndarray) -> np.ndarray:
        return squared_distances(unit_rows(features), means, factor)

    def relative(features: np.ndarray) -> np.ndarray:
        background = squared_distances(unit_rows(features), overall, overall_factor)
        return distance(features) - background

    return {"Mahalanobis": distance, "relative Mahalanobis": relative}


def neighbours(train: np.ndarray, rank: int) -> Score:
    """The distance to a neighbour of another rank than the package's."""
    rows = unit_rows(train)
    return lambda features: neighbour_distance(features, rows, rank)


class Measured:
    """A run: its rows, and the features of its backbone."""

    def __init__(self, run: Run, data: Path | None) -> None:
        self.name = run.config().name
        self.contender = next(c for c in run.config().contender if isinstance(c, NetworkContender))
        self.job = Job(run.config(), data_root(run, data and data / self.name), run, Nobody())
        self.manifest = run.manifest()

    def rows(self, split: str) -> pd.DataFrame:
        """Manifest rows of a split."""
        return self.manifest[self.manifest["split"] == split].reset_index(drop=True)

    def features(self, rows: pd.DataFrame) -> np.ndarray:
        """Features of manifest rows, from the cache where they are there."""
        return features_of(self.job, stored_describer(self.job.run, self.contender), rows)

    def scores(self, train: pd.DataFrame) -> dict[str, Score]:
        """Fit a linear probe on rows, and every score on its features."""
        features, labels = self.features(train), train["label"]
        targets = frames.targets_of(labels, frames.class_names_of(labels))
        groups = train["group"].tolist()
        probe = fit_at("softmax", {"C": SOFTMAX_C}, features, targets, groups, "standard", 0, 1)
        kernel, bias = linear_head(probe, len(set(labels)))
        parts = {"kernel": kernel, "bias": bias, "train_rows": unit_rows(features)}
        predict = predictor_of(probe)

        def own(name: str) -> Score:
            return lambda rows: score_images(parts, predict(rows), rows)[name]

        return {
            **{name: own(name) for name in ("probability", "energy", "distance")},
            **{f"distance, neighbour {rank}": neighbours(features, rank) for rank in RANKS},
            **mahalanobis(features, targets),
        }


def foreign_table(measured: list[Measured], num_images: int) -> Iterator[tuple[str, ...]]:
    """One row per run and score: test images flagged; of each other run flagged, and the area."""
    for ours in measured:
        scores, val, test = ours.scores(ours.rows("train")), ours.rows("val"), ours.rows("test")
        val_features = ours.features(val[rows_for_fitting(val)])
        test_features, groups = ours.features(test), test["group"].to_numpy()
        for name, score in scores.items():
            bound, known = bound_of(score(val_features)), score(test_features)
            cells = [with_interval(*share_with_interval(known > bound, groups, 0))]
            for theirs in (other for other in measured if other is not ours):
                rows = theirs.rows("test")
                rows = rows.sample(min(num_images, len(rows)), random_state=0)
                foreign = score(theirs.features(rows))
                area = area_with_interval(known, foreign, groups, 0)
                share = f"{(foreign > bound).mean():.1%}"
                cells.append(f"{theirs.name} {share}, {area_text(*area)}")
            yield (ours.name, name, *cells)


def left_out_table(measured: list[Measured], column: str) -> Iterator[tuple[str, str, str, float]]:
    """One row per run, value that is left out and score: the area under the ROC curve."""
    for ours in (m for m in measured if column in m.manifest):
        train, test = ours.rows("train"), ours.rows("test")
        for value in sorted(train[column].unique()):
            known, foreign = test[test[column] != value], test[test[column] == value]
            rest = train[train[column] != value]
            if rest["label"].nunique() < 2 or len(rest) < MIN_TRAIN or foreign.empty:
                continue
            features = [ours.features(rows) for rows in (known, foreign)]
            for name, score in ours.scores(rest).items():
                here, there = (score(rows) for rows in features)
                groups = known["group"].to_numpy()
                area, _, _ = area_with_interval(here, there, groups, 0, num_resamples=1)
                yield (ours.name, f"{column} {value}", name, area)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs with a linear probe")
    parser.add_argument("--images", type=int, default=400, help="of each other run, at most")
    parser.add_argument("--data", type=Path, help="folder of the data sets, if elsewhere now")
    parser.add_argument("--left-out", nargs="*", default=["label", "type"], help="columns")
    arguments = parser.parse_args()
    measured = [Measured(open_run(path), arguments.data) for path in arguments.runs]
    with threadpool_limits(1):
        rows = list(foreign_table(measured, arguments.images))
        others = [f"others {number}" for number in range(1, len(measured))]
        columns = ["run", "score", "own test images flagged", *others]
        print("\n".join(markdown(pd.DataFrame(rows, columns=columns))), flush=True)
        areas = [row for column in arguments.left_out for row in left_out_table(measured, column)]
    if areas:
        table = pd.DataFrame(areas, columns=["run", "left out", "score", "area"])
        wide = table.pivot_table(index="score", columns=["run", "left out"], values="area")
        wide.columns = [" ".join(column) for column in wide.columns]
        wide["mean"] = wide.mean(axis=1)
        print("\n" + "\n".join(markdown(wide.round(3).astype(str).reset_index())))


if __name__ == "__main__":
    main()
