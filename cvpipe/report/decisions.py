"""What a contender may decide, in words, one figure and one table.

The frozen thresholds and the tables of what they do on test flow in; the caller has read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.plots.decisions import plot_risk_coverage
from cvpipe.plots.numbers import (
    SPACE,
    format_count,
    format_interval,
    format_metric,
    format_percent,
)
from cvpipe.plots.svg import build_axes, figure_to_svg

OPERATING_COLUMNS = (
    *("contender", "goal", "positive", "threshold", "figure"),
    *("value", "low", "high", "n", "goal_met"),
)
ABSTENTION_COLUMNS = (
    *("contender", "asked_share", "threshold", "answered_share", "answered_low", "answered_high"),
    *("accuracy", "accuracy_low", "accuracy_high", "num_answered", "n"),
)
CONFORMAL_COLUMNS = (
    *("contender", "method", "level", "label", "coverage", "low", "high"),
    *("mean_set_size", "single_share", "n"),
)
METHODS = {"marginal": "one threshold", "by_class": "one per class"}
FIGURES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "npv": "negative predictive value",
    "accuracy": "accuracy",
    "cost": "mean cost",
}
MET = {
    "shown": "the whole interval reaches the goal, so that it is met is shown",
    "not shown": "the interval lies on both sides of the goal, so that it is met is not shown",
    "missed": "the whole interval lies below the goal, so it is missed",
}
MAX_CLASSES = 12


@dataclass(frozen=True)
class Decisions:
    """What was frozen for a contender, and what it does on test.

    Attributes:
        frozen: The content of its `decisions.json`.
        operating_points: Its rows, `OPERATING_COLUMNS`; empty without a goal.
        abstention: Its rows, `ABSTENTION_COLUMNS`.
        conformal: Its rows, `CONFORMAL_COLUMNS`; label `""` for all images.
        coverage: Shares of test images answered, rising to 1, `(k,)`.
        risk: Share of mistakes among them, `(k,)`.
        area: Area under the risk against the coverage.
    """

    frozen: dict[str, Any]
    operating_points: pd.DataFrame
    abstention: pd.DataFrame
    conformal: pd.DataFrame
    coverage: np.ndarray
    risk: np.ndarray
    area: float


@dataclass(frozen=True)
class DecisionSection:
    """The section of the page.

    Attributes:
        fitted: On what the thresholds were fitted.
        point: The operating point and what it does; `""` without a goal.
        curve: What the figure shows.
        sets: What prediction sets are.
        sets_caption: What the table shows.
        methods: Titles of its groups of columns.
        rows: Per line its images, per method coverage, interval, mean size and share of sets
            with one class, and the number of images.
    """

    fitted: str
    point: str
    curve: str
    sets: str
    sets_caption: str
    methods: list[str]
    rows: list[tuple[str, list[tuple[str, str, str, str]], str]]


def decision_section(decisions: Decisions, plainly: Mapping[str, float]) -> DecisionSection:
    """Write the section of what was frozen.

    Args:
        decisions: What was frozen, and what it does on test.
        plainly: Test figures of naming the most probable class, by metric.
    """
    fitted_on = decisions.frozen["fitted_on"]
    fitted = (
        f"All thresholds were fitted on {format_count(fitted_on['num_images'])} validation images "
        "and frozen before the test was opened; the figures here are those of the test images, "
        f"with 95{SPACE}% intervals in brackets or small print."
    )
    if fitted_on["also_made_the_choice"]:
        fitted += (
            " There are too few validation images (or groups, or images of a class) to halve them, "
            "so the same ones also made the choice."
        )
    classes = decisions.conformal["label"].nunique() - 1
    return DecisionSection(
        fitted=fitted,
        point=point_sentence(
            decisions.frozen["operating_point"], decisions.operating_points, plainly
        ),
        curve=curve_caption(decisions),
        sets=sets_sentence(decisions.frozen["prediction_sets"]),
        sets_caption="Prediction sets on the test images: how often they hold the true class, "
        "how many classes they have on average, and how many have one only."
        + (
            f" The {MAX_CLASSES} of {classes} classes that the first covers worst; all in "
            "conformal.csv."
            if classes > MAX_CLASSES
            else ""
        ),
        methods=list(METHODS.values()),
        rows=set_rows(decisions.conformal),
    )


def point_sentence(point: dict[str, Any], rows: pd.DataFrame, plainly: Mapping[str, float]) -> str:
    """Say what the operating point is, and what it does on the test images.

    Args:
        point: The frozen operating point; empty without a goal.
        rows: Its figures, `OPERATING_COLUMNS`.
        plainly: Test figures of naming the most probable class, by metric.
    """
    if not point:
        return ""
    figures = [f"{FIGURES[row['figure']]} {_with_interval(row)}" for row in rows.to_dict("records")]
    text = f"{rule_sentence(point)} On the test images: {', '.join(figures)}."
    if point["goal"] == "cost":
        accuracy, cost = (format_metric(name, plainly[name]) for name in ("accuracy", "cost"))
        text += f" By naming the most probable class: accuracy {accuracy}, mean cost {cost}."
    verdicts = [met for met in rows["goal_met"] if met]
    if verdicts:
        text += (
            f" The goal is a {point['goal']} of at least {_percent(point['at_least'])}: "
            f"{MET[verdicts[0]]}."
        )
    if point["goal"] != "cost":
        text += (
            " Precision and negative predictive value hold where the class is as frequent as in "
            "these images."
        )
    return text


def rule_sentence(point: dict[str, Any]) -> str:
    """Say how to decide at an operating point."""
    if point["goal"] == "cost":
        return "Decide for the class with the smallest expected cost."
    name, threshold = point["positive"], point["threshold"]
    rule = f"Call an image {name} when its probability of {name} is at least {threshold:.6g}"
    if threshold > 1:
        rule = f"Call no image {name}"
    elif threshold == 0:
        rule = f"Call every image {name}"
    why = {
        "sensitivity": "the highest threshold that reached the goal on the validation images",
        "specificity": "the lowest threshold that reached the goal on the validation images",
        "youden": "the threshold with the largest sum of sensitivity and specificity on the "
        "validation images",
    }
    return f"{rule}: {why[point['goal']]}."


def curve_caption(decisions: Decisions) -> str:
    """Say what the curve of risk against coverage shows, with an example."""
    text = (
        "The share of mistakes among the test images that are answered, the surest first. Dots "
        "are thresholds of the largest probability that were frozen on the validation images. "
        f"The area under the curve is {decisions.area:.3f}; 0 is perfect."
    )
    rows = decisions.abstention.to_dict("records")
    for row in [row for row in rows if row["asked_share"] == 0.8 and row["num_answered"]]:
        answered = format_interval("accuracy", row["answered_low"], row["answered_high"])
        accuracy = format_interval("accuracy", row["accuracy_low"], row["accuracy_high"])
        text += (
            f" The threshold {row['threshold']:.6g}, meant to answer 80{SPACE}%, answers "
            f"{format_percent(row['answered_share'])} ({answered}) and names "
            f"{format_percent(row['accuracy'])} ({accuracy}) of them correctly; answering all, "
            f"it is {format_percent(1 - decisions.risk[-1])}."
        )
    return text


def sets_sentence(fitted: dict[str, Any]) -> str:
    """Say what the sets promise, and for which classes they had too few images."""
    level, needed = _percent(fitted["level"]), fitted["images_needed"]
    text = (
        "Instead of one class, a set of all that may well be the true one: a set of one class is "
        "an answer, a larger one a question for a person. Of new images of the same kind, each "
        f"independent of the others, at least {level} are expected to have their true class in "
        "the set: with one threshold over all images, with one per class in each class."
    )
    few = [name for name, number in fitted["num_images"].items() if number < needed]
    if sum(fitted["num_images"].values()) < needed:
        text += f" That takes {needed} validation images, so here every set has all classes."
    elif few:
        names = ", ".join(few[:MAX_CLASSES]) + (" and others" if len(few) > MAX_CLASSES else "")
        text += (
            f" One per class takes {needed} validation images of each class; there were fewer of "
            f"{names}, so every such set includes {'it' if len(few) == 1 else 'them'}."
        )
    return text


def set_rows(
    conformal: pd.DataFrame,
) -> list[tuple[str, list[tuple[str, str, str, str]], str]]:
    """Arrange the sets by their images: all, then each class, or those that are covered worst."""
    first = conformal[(conformal["method"] == "marginal") & (conformal["label"] != "")]
    labels = first["label"].tolist()
    if len(labels) > MAX_CLASSES:
        labels = first.sort_values("coverage", kind="stable")["label"].head(MAX_CLASSES).tolist()
    lines = []
    for label in ["", *labels]:
        rows = conformal[conformal["label"] == label].set_index("method").loc[list(METHODS)]
        cells = [
            (
                format_percent(row["coverage"]),
                format_interval("accuracy", row["low"], row["high"]),
                f"{row['mean_set_size']:.2f}",
                format_percent(row["single_share"]),
            )
            for row in rows.to_dict("records")
        ]
        lines.append((label or "all", cells, format_count(rows["n"].iloc[0])))
    return lines


def risk_coverage_figure(decisions: Decisions) -> str:
    """Draw the curve of risk against coverage as SVG."""
    figure, axes = build_axes(5.4, 3.0)
    plot_risk_coverage(decisions.coverage, decisions.risk, decisions.abstention, axes)
    parts = [
        f"{format_percent(row['answered_share'])} answered, "
        f"{format_percent(1 - row['accuracy'])} of them wrong"
        for row in decisions.abstention.to_dict("records")
    ]
    return figure_to_svg(figure, "Mistakes among the answered images: " + "; ".join(parts))


def _percent(asked: float) -> str:
    """Write a share that somebody asked for with the digits that it was given."""
    return f"{100 * asked:.6g}{SPACE}%"


def _with_interval(row: dict[str, Any]) -> str:
    metric = "cost" if row["figure"] == "cost" else "accuracy"  # all others are shares
    interval = format_interval(metric, row["low"], row["high"])
    value = format_metric(metric, row["value"])
    return f"{value} ({interval})" if interval else value
