"""Turn probabilities into decisions: fit thresholds on val, freeze them, score them on test.

Three kinds for every contender that looks at the images: the operating point of a goal that the
config names, thresholds of confidence below which an image is not answered, and sets of classes
that hold the true one at a chosen level.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.config import Config
from cvpipe.errors import InputError, nearest_name
from cvpipe.evaluation.costs import cost_matrix
from cvpipe.evaluation.means import mean_with_interval
from cvpipe.evaluation.scoring import groups_of, sort_labelled
from cvpipe.files import read_json, write_json, write_table
from cvpipe.frames import predicted_class_names, probabilities_of, targets_of
from cvpipe.inference.abstention import (
    area_under_risk_coverage,
    confidence,
    risk_coverage,
    threshold_for_coverage,
)
from cvpipe.inference.conformal import (
    fit_class_thresholds,
    fit_set_threshold,
    images_needed,
    prediction_sets,
)
from cvpipe.inference.thresholds import (
    decide_by_cost,
    threshold_for_sensitivity,
    threshold_for_specificity,
    threshold_for_youden,
)
from cvpipe.report.decisions import (
    ABSTENTION_COLUMNS,
    CONFORMAL_COLUMNS,
    OPERATING_COLUMNS,
    Decisions,
)
from cvpipe.runs import Run
from cvpipe.sections import EvaluateSection
from cvpipe.stages.calibration import table_for_fitting
from cvpipe.stages.halves import rows_for_choosing
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import is_baseline
from cvpipe.stages.split import rows_of_split

# Shares of the images that are to be answered.
ANSWERED_SHARES = (0.95, 0.9, 0.8, 0.7, 0.5)


def deciders(config: Config) -> list[str]:
    """Name the contenders that may decide: those that look at the images."""
    return [contender.name for contender in config.contender if not is_baseline(contender)]


def positive_class(evaluate: EvaluateSection, class_names: Sequence[str]) -> str:
    """Name the class that `evaluate.positive` means; `""` where it names none.

    Raises:
        InputError: The images have no such class.
    """

    def composed(name: str) -> str:
        # The same letters may be stored in two ways: a folder unpacked elsewhere, a name typed.
        return unicodedata.normalize("NFC", name)

    wanted = composed(evaluate.positive)
    found = [name for name in class_names if composed(name) == wanted]
    if wanted and not found:
        raise InputError(
            f"evaluate.positive is {evaluate.positive!r}, but the images have the classes "
            f"{list(class_names)}; {nearest_name(evaluate.positive, class_names)}"
        )
    return found[0] if wanted else ""


def fix_decisions(job: Job) -> None:
    """Fit what every contender decides by on half B of val and store it; what is stored stands.

    A small val is used whole, and then it also made the choice.
    """
    val = rows_of_split(job, "val")
    also_made_the_choice = bool(rows_for_choosing(val).all())
    for name in deciders(job.config):
        path = job.run.decisions_path(name)
        if not path.exists():
            rows = table_for_fitting(job, name, val)
            fitted_on = {"num_images": len(rows), "also_made_the_choice": also_made_the_choice}
            write_json(path, {"fitted_on": fitted_on, **fit_decisions(rows, job.config.evaluate)})


def fit_decisions(val: pd.DataFrame, evaluate: EvaluateSection) -> dict[str, Any]:
    """Fit thresholds on predictions.

    Args:
        val: A predictions table of images of all classes.
        evaluate: The goal and the level.

    Returns:
        `operating_point` (empty without a goal), `abstention` and `prediction_sets`; all that
        JSON can hold.
    """
    class_names = predicted_class_names(val)
    probabilities, targets = probabilities_of(val), targets_of(val["label"], class_names)
    level = evaluate.conformal_level
    of_truth = probabilities[np.arange(len(val)), targets]
    by_class = fit_class_thresholds(probabilities, targets, level)
    confidences = confidence(probabilities)
    return {
        "operating_point": fit_operating_point(probabilities, targets, class_names, evaluate),
        "abstention": [
            {"asked_share": share, "threshold": threshold_for_coverage(confidences, share)}
            for share in ANSWERED_SHARES
        ],
        "prediction_sets": {
            "level": level,
            "images_needed": images_needed(level),
            "num_images": {name: int((targets == at).sum()) for at, name in enumerate(class_names)},
            "marginal": fit_set_threshold(of_truth, level),
            "by_class": dict(zip(class_names, by_class.tolist(), strict=True)),
        },
    }


def fit_operating_point(
    probabilities: np.ndarray,
    targets: np.ndarray,
    class_names: Sequence[str],
    evaluate: EvaluateSection,
) -> dict[str, Any]:
    """Find the rule that reaches the goal of the config; empty where it has none."""
    if not evaluate.goal:
        return {}
    if evaluate.goal == "cost":
        return {"goal": "cost", "costs": cost_matrix(evaluate.costs, class_names).tolist()}
    positive = positive_class(evaluate, class_names)
    place = list(class_names).index(positive)
    scores, is_positive = probabilities[:, place], targets == place
    point = {"goal": evaluate.goal, "positive": positive}
    if evaluate.goal == "youden":
        return {**point, "threshold": threshold_for_youden(scores, is_positive)}
    find = {
        "sensitivity": threshold_for_sensitivity,
        "specificity": threshold_for_specificity,
    }[evaluate.goal]
    threshold = find(scores, is_positive, evaluate.at_least)
    return {**point, "at_least": evaluate.at_least, "threshold": threshold}


def run_decide(job: Job, groups: pd.Series) -> None:
    """Score the frozen thresholds on test; what is stored is kept.

    Args:
        job: A run whose test split is open.
        groups: The group of each image, `image_id` as its index.
    """
    if job.config.evaluate.goal and not job.run.operating_points_path.exists():
        write_table(job.run.operating_points_path, score_operating_points(job, groups))
    if not job.run.abstention_path.exists():
        write_table(job.run.abstention_path, score_abstention(job, groups))
    if not job.run.conformal_path.exists():
        write_table(job.run.conformal_path, score_conformal(job, groups))


def score_operating_points(job: Job, groups: pd.Series) -> pd.DataFrame:
    """Measure what each contender's operating point does on test.

    A goal is `"shown"` to be met when the whole interval reaches it, `"missed"` when none of it
    does, and otherwise `"not shown"`.

    Returns:
        Columns `OPERATING_COLUMNS`: of a threshold the five figures of a test for the positive
        class, of costs accuracy and mean cost.
    """
    table = []
    for name, test, frozen in tested(job):
        point = frozen["operating_point"]
        goal, at_least = point["goal"], point.get("at_least", np.nan)
        keys = (name, goal, point.get("positive", ""), point.get("threshold", np.nan))
        of_images = groups_of(test["image_id"], groups)
        for figure, (values, counted, largest) in figures_of_point(test, point).items():
            value, low, high = mean_with_interval(
                values[counted],
                of_images[counted],
                job.config.seed,
                job.config.evaluate.resamples,
                largest,
            )
            met = goal_met(low, high, at_least) if figure == goal else ""
            table.append((*keys, figure, value, low, high, int(counted.sum()), met))
    return pd.DataFrame(table, columns=list(OPERATING_COLUMNS))


def figures_of_point(
    test: pd.DataFrame, point: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Say for each figure what every image counts, which images count, and the most one can."""
    class_names = predicted_class_names(test)
    probabilities, targets = probabilities_of(test), targets_of(test["label"], class_names)
    everything = np.ones(len(test), dtype=bool)
    if point["goal"] == "cost":
        costs = np.array(point["costs"])
        decided = decide_by_cost(probabilities, costs)
        return {
            "accuracy": (decided == targets, everything, 1.0),
            "cost": (costs[targets, decided], everything, float(costs.max())),
        }
    place = class_names.index(point["positive"])
    is_positive = targets == place
    called = probabilities[:, place] >= point["threshold"]
    counted = {
        "sensitivity": is_positive,
        "specificity": ~is_positive,
        "precision": called,
        "npv": ~called,
        "accuracy": everything,
    }
    # All five ask how many calls are right; they differ in the images that they look at.
    return {figure: (called == is_positive, images, 1.0) for figure, images in counted.items()}


def goal_met(low: float, high: float, at_least: float) -> str:
    """Say whether a figure with this interval reaches a goal; `""` where there is no bound."""
    if np.isnan(at_least):
        return ""
    if low >= at_least:
        return "shown"
    return "missed" if high < at_least else "not shown"


def score_abstention(job: Job, groups: pd.Series) -> pd.DataFrame:
    """Measure how many test images each threshold answers, and how many of these rightly.

    Returns:
        Columns `ABSTENTION_COLUMNS`; `n` counts all test images.
    """
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    table = []
    for name, test, frozen in tested(job):
        is_right, confidences = answers_of(test)
        of_images = groups_of(test["image_id"], groups)
        for row in frozen["abstention"]:
            answered = confidences >= row["threshold"]
            share = mean_with_interval(answered, of_images, seed, resamples)
            accuracy = mean_with_interval(is_right[answered], of_images[answered], seed, resamples)
            keys = (name, row["asked_share"], row["threshold"])
            table.append((*keys, *share, *accuracy, int(answered.sum()), len(test)))
    return pd.DataFrame(table, columns=list(ABSTENTION_COLUMNS))


def decide(predictions: pd.DataFrame, point: dict[str, Any]) -> list[str]:
    """Apply a frozen operating point to a predictions table.

    Returns:
        For each image a class: that of the smallest expected cost, or the positive one where its
        probability reaches the threshold. Otherwise the other class, of more than two
        `"not <positive>"`.
    """
    class_names, probabilities = predicted_class_names(predictions), probabilities_of(predictions)
    if point["goal"] == "cost":
        return [class_names[k] for k in decide_by_cost(probabilities, np.array(point["costs"]))]
    positive = point["positive"]
    others = [name for name in class_names if name != positive]
    negative = others[0] if len(others) == 1 else f"not {positive}"
    called = probabilities[:, class_names.index(positive)] >= point["threshold"]
    return [positive if is_positive else negative for is_positive in called]


def answers_of(test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Say which images the most probable class is right for, and how sure it is."""
    probabilities = probabilities_of(test)
    targets = targets_of(test["label"], predicted_class_names(test))
    return probabilities.argmax(axis=1) == targets, confidence(probabilities)


def score_conformal(job: Job, groups: pd.Series) -> pd.DataFrame:
    """Measure how often the sets hold the true class on test, and how large they are.

    Returns:
        Columns `CONFORMAL_COLUMNS`: for each method all images (label `""`) and the images of
        each class.
    """
    table = []
    for name, test, frozen in tested(job):
        fitted = frozen["prediction_sets"]
        class_names = predicted_class_names(test)
        probabilities, targets = probabilities_of(test), targets_of(test["label"], class_names)
        of_images = groups_of(test["image_id"], groups)
        by_class = np.array([fitted["by_class"][label] for label in class_names])
        for method, thresholds in (("marginal", fitted["marginal"]), ("by_class", by_class)):
            sets = prediction_sets(probabilities, thresholds)
            holds, sizes = sets[np.arange(len(test)), targets], sets.sum(axis=1)
            for label in ("", *class_names):
                images = test["label"].to_numpy() == label if label else np.full(len(test), True)
                coverage = mean_with_interval(
                    holds[images],
                    of_images[images],
                    job.config.seed,
                    job.config.evaluate.resamples,
                )
                size, single = sizes[images].mean(), (sizes[images] == 1).mean()
                keys = (name, method, fitted["level"], label)
                table.append((*keys, *coverage, size, single, int(images.sum())))
    return pd.DataFrame(table, columns=list(CONFORMAL_COLUMNS))


def tested(job: Job) -> Iterator[tuple[str, pd.DataFrame, dict[str, Any]]]:
    """Go through the contenders that decide: name, test predictions, frozen thresholds."""
    for name in deciders(job.config):
        test = sort_labelled(job.run.predictions("test", name))
        yield name, test, read_json(job.run.decisions_path(name))


def collect_decisions(run: Run, chosen: str) -> Decisions | None:
    """Read what the report shows of the chosen contender; `None` where nothing was frozen."""
    if not (run.decisions_path(chosen).exists() and run.conformal_path.exists()):
        return None
    is_right, confidences = answers_of(run.predictions("test", chosen))
    coverage, risk = risk_coverage(confidences, is_right)
    tables = (run.operating_points(), run.abstention(), run.conformal())
    points, abstention, conformal = (table[table["contender"] == chosen] for table in tables)
    return Decisions(
        frozen=read_json(run.decisions_path(chosen)),
        operating_points=points,
        abstention=abstention,
        conformal=conformal,
        coverage=coverage,
        risk=risk,
        area=area_under_risk_coverage(coverage, risk),
    )
