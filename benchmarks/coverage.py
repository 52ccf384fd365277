"""Do the intervals and the verdicts hold what they promise? Draw test sets whose truth is known.

Coverage: how often the 95 % intervals of `score_predictions` hold the true figure. Verdicts: how
often the whole procedure (choose on val, compare on test, correct) calls one of eight equally good
contenders better or worse than another. It prints the tables of `docs/statistics.md`:

    python benchmarks/coverage.py
"""

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from cvpipe.evaluation import comparison
from cvpipe.evaluation.comparison import choose, compare_predictions
from cvpipe.evaluation.intervals import clustered_wilson_interval
from cvpipe.evaluation.metrics import METRICS
from cvpipe.evaluation.scoring import score_predictions

NUMBERS_OF_IMAGES = (100, 600)
ACCURACIES = (0.7, 0.9, 0.98)
# Within-group correlation of being right; at 0 every image is its own group.
CORRELATIONS = (0.0, 0.3, 0.6)
LARGEST_GROUP = 8
LABELS = np.array(["a", "b"], dtype=object)
SHARE_OF_SECOND_CLASS = 0.3
METRIC_NAMES = ("balanced_accuracy", "macro_f1", "log_loss", "roc_auc", "ece")
NUM_RESAMPLES = 300
# Of 95 % intervals; what is below is marked.
MIN_COVERAGE = 0.93
NUM_CONTENDERS = 8
NUM_COMPARED = 300
# Far fewer than in a run, but with p-values of k / 140 the strictest level of Holm, .05 / 7, is
# met exactly; between two possible p-values the test would be stricter than it is in a run.
NUM_PERMUTATIONS = 139


class Cell(NamedTuple):
    """One kind of test set.

    Args:
        num_images: Number of images.
        accuracy: True share of images that are classified right.
        correlation: How alike images of a group are in being right.
    """

    num_images: int
    accuracy: float
    correlation: float


class Coverage(NamedTuple):
    """How the intervals of a cell did.

    Args:
        share: Of the draws, those whose interval holds the truth.
        width: Mean width of the intervals.
    """

    share: float
    width: float


def cells() -> Iterator[Cell]:
    """List all cells, in the order of the tables."""
    for num_images in NUMBERS_OF_IMAGES:
        for accuracy in ACCURACIES:
            for correlation in CORRELATIONS:
                yield Cell(num_images, accuracy, correlation)


def draw_groups(num_images: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Put images into groups of 1 to 8, or of one each when there is no correlation, `(n,)`."""
    if correlation == 0:
        return np.arange(num_images)
    sizes = rng.integers(1, LARGEST_GROUP + 1, num_images)
    return np.repeat(np.arange(num_images), sizes)[:num_images]


def draw_correct(cell: Cell, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Say which images are classified right, `bool (n,)`: each group has an accuracy of its own.

    These follow a beta distribution, whose mean is the true accuracy. The size of a group tells
    nothing of its accuracy, so the mean over images is the same.
    """
    if cell.correlation == 0:
        return rng.random(len(groups)) < cell.accuracy
    spread = 1 / cell.correlation - 1
    alpha, beta = cell.accuracy * spread, (1 - cell.accuracy) * spread
    accuracies = rng.beta(alpha, beta, groups[-1] + 1)
    return rng.random(len(groups)) < accuracies[groups]


def draw_answers(cell: Cell, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw targets, probabilities of two classes, and groups; a group has one class.

    The classifier is calibrated: of the images with a confidence of .8, four in five are right.
    Confidences go from .5 to 1, in between they follow a beta distribution. Given that an image
    is right, confidence c counts c-fold, which is a mixture of two beta distributions.
    """
    groups = draw_groups(cell.num_images, cell.correlation, rng)
    n, correct = len(groups), draw_correct(cell, groups, rng)
    targets = (rng.random(n) < SHARE_OF_SECOND_CLASS).astype(np.int32)[groups]
    mean = 2 * cell.accuracy - 1
    more = rng.random(n) < mean / 2 / cell.accuracy
    alpha, beta = 2 * mean + (correct & more), 2 * (1 - mean) + ~correct
    confidences = 0.5 + rng.beta(alpha, beta) / 2
    predicted = np.where(correct, targets, 1 - targets)
    second = np.where(predicted == 1, confidences, 1 - confidences)
    return targets, np.column_stack([1 - second, second]), groups


def as_table(targets: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """Make a predictions table, whose images are named by their number."""
    columns = {f"p_{name}": column for name, column in zip("ab", probabilities.T, strict=True)}
    image_ids = [f"{number:06}" for number in range(len(targets))]
    return pd.DataFrame({"image_id": image_ids, "label": LABELS[targets], **columns})


def groups_by_image_id(groups: np.ndarray) -> dict[str, str]:
    """Name the group of each image, for images named by their number."""
    return {f"{number:06}": str(group) for number, group in enumerate(groups)}


def coverage_of_accuracy(cell: Cell, num_draws: int, seed: int) -> Coverage:
    """Draw test sets, and ask how often the interval of their accuracy holds the truth."""
    rng = np.random.default_rng(seed)
    ends = np.empty((num_draws, 2))
    for draw in range(num_draws):
        groups = draw_groups(cell.num_images, cell.correlation, rng)
        ends[draw] = clustered_wilson_interval(draw_correct(cell, groups, rng), groups)
    return _coverage(ends, cell.accuracy)


def coverage_of_metrics(cell: Cell, num_draws: int, seed: int) -> dict[str, Coverage]:
    """The same for further metrics, whose truth is that of a million independent images.

    They are means over images, or depend on the distribution of single images alone, so the
    groups do not change what is true. The calibration error's truth is 0.
    """
    of_images = Cell(1_000_000, cell.accuracy, 0.0)
    population = draw_answers(of_images, np.random.default_rng(seed))[:2]
    truth = {name: float(METRICS[name].function(*population)) for name in METRIC_NAMES}
    truth["ece"] = 0.0
    rng = np.random.default_rng(seed + 1)
    ends = np.empty((num_draws, len(METRIC_NAMES), 2))
    for draw in range(num_draws):
        targets, probabilities, groups = draw_answers(cell, rng)
        scores = score_predictions(
            as_table(targets, probabilities), groups_by_image_id(groups), draw, NUM_RESAMPLES
        )
        overall = scores[scores["label"] == ""].set_index("metric")
        ends[draw] = overall.loc[list(METRIC_NAMES), ["low", "high"]]
    return {name: _coverage(ends[:, row], truth[name]) for row, name in enumerate(METRIC_NAMES)}


def false_verdicts(num_runs: int, correlated: bool, seed: int) -> dict[str, float]:
    """Choose among equally good contenders on val, compare on test: how often is one called better?

    How hard an image is, all contenders share; images of a group are about equally hard.

    Args:
        num_runs: Number of runs, each with its own val and test of 300 images.
        correlated: Whether there are groups.
        seed: Seed of the draws.

    Returns:
        Share of the runs in which any contender is called "better" or "worse" than the chosen
        one: `better: accuracy`, `better: any metric`, `worse: accuracy`, `worse: any metric`.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros((num_runs, 4))
    for run in range(num_runs):
        val, _ = _draw_contenders(correlated, rng)
        test, groups = _draw_contenders(correlated, rng)
        chosen = choose(val, "log_loss")
        table = compare_predictions(chosen, test, groups_by_image_id(groups), run, 1)
        for column, verdict in enumerate(("better", "worse")):
            metrics = set(table.loc[table["verdict"] == verdict, "metric"])
            found[run, 2 * column :][:2] = "accuracy" in metrics, bool(metrics)
    names = [
        f"{verdict}: {of}" for verdict in ("better", "worse") for of in ("accuracy", "any metric")
    ]
    return dict(zip(names, found.mean(axis=0).tolist(), strict=True))


def _draw_contenders(
    correlated: bool, rng: np.random.Generator
) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """Predictions of the contenders on new images, and the images' groups."""
    groups = draw_groups(NUM_COMPARED, 0.3 if correlated else 0.0, rng)
    targets = (rng.random(NUM_COMPARED) < SHARE_OF_SECOND_CLASS).astype(np.int32)[groups]
    hardness = rng.normal(size=NUM_COMPARED)
    if correlated:
        hardness = 0.6 * hardness + 0.8 * rng.normal(size=NUM_COMPARED)[groups]
    # An image's logit for its true class: 80 % are right, two contenders correlate to .67.
    own = rng.normal(size=(NUM_CONTENDERS, NUM_COMPARED))
    if correlated:
        own = 0.6 * own + 0.8 * rng.normal(size=(NUM_CONTENDERS, NUM_COMPARED))[:, groups]
    logits = 1.5 + 1.4 * hardness + own
    right = 1 / (1 + np.exp(-logits))
    second = np.where(targets == 1, right, 1 - right)
    tables = {
        f"contender {number}": as_table(targets, np.column_stack([1 - row, row]))
        for number, row in enumerate(second)
    }
    return tables, groups


def _coverage(ends: np.ndarray, truth: float) -> Coverage:
    low, high = ends.T
    return Coverage(float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean()))


def table_of_accuracy(num_draws: int, seed: int) -> list[str]:
    """Lines of the table of the accuracy's coverage."""
    lines = ["| images | accuracy | correlation | coverage | mean width |", "|---:" * 5 + "|"]
    for cell in cells():
        share, width = coverage_of_accuracy(cell, num_draws, seed)
        lines.append(f"| {' | '.join(map(str, cell))} | {share:.3f} | {width:.3f} |")
    return lines


def describe(coverage: Coverage) -> str:
    """Write coverage and mean width, in bold where the promise is not kept."""
    figures = f"{coverage.share:.3f} ({coverage.width:.3f})"
    return f"**{figures}**" if coverage.share < MIN_COVERAGE else figures


def table_of_metrics(num_draws: int, seed: int) -> list[str]:
    """Lines of the table of the further metrics: coverage (mean width)."""
    lines = [f"| images | accuracy | correlation | {' | '.join(METRIC_NAMES)} |", "|---:" * 8 + "|"]
    for cell in cells():
        found = coverage_of_metrics(cell, num_draws, seed).values()
        lines.append(f"| {' | '.join([*map(str, cell), *map(describe, found)])} |")
    return lines


def table_of_verdicts(num_runs: int, seed: int) -> list[str]:
    """Lines of the table of false verdicts."""
    comparison.NUM_PERMUTATIONS = NUM_PERMUTATIONS  # p-values are valid with any number
    found = [false_verdicts(num_runs, correlated, seed) for correlated in (False, True)]
    lines = ["| verdict | independent images | groups of 1 to 8 |", "|---|---:|---:|"]
    return lines + [
        f"| {name} | {found[0][name]:.3f} | {found[1][name]:.3f} |" for name in found[0]
    ]


# The lines of each table, and how many draws they are of.
TABLES = {
    "accuracy": (table_of_accuracy, 2000),
    "verdicts": (table_of_verdicts, 2000),
    "metrics": (table_of_metrics, 400),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"{' | '.join(TABLES)}; all by default")
    parser.add_argument("--draws", type=int, help="of each cell, or runs of the procedure")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in options.tables or TABLES:
        make_lines, num_draws = TABLES[name]
        print(
            "\n".join(make_lines(options.draws or num_draws, options.seed)), end="\n\n", flush=True
        )


if __name__ == "__main__":
    main()
