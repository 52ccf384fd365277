"""The answer of a run in words: who is better, worse, or cannot be told apart."""

from dataclasses import dataclass

import pandas as pd

from cvpipe.plots.numbers import (
    SPACE,
    format_difference,
    format_interval,
    format_p_value,
    is_share,
    metric_title,
)


@dataclass(frozen=True)
class Outcome:
    """How one contender fared against the chosen one; reads on after its name."""

    contender: str
    verdict: str
    text: str


def comparison_outcomes(comparison: pd.DataFrame) -> list[Outcome]:
    """Say in words how each contender compares with the chosen one.

    Accuracy is what a reader grasps at once, so it is used when it was compared,
    otherwise the first metric of the table.

    Args:
        comparison: Differences are contender minus reference.
    """
    if comparison.empty:
        return []
    metrics = comparison["metric"].to_list()
    metric = "accuracy" if "accuracy" in metrics else metrics[0]
    rows = comparison[comparison["metric"] == metric]
    return [
        Outcome(str(row["contender"]), str(row["verdict"]), _outcome_text(row, metric))
        for row in rows.to_dict("records")
    ]


def _outcome_text(row: dict, metric: str) -> str:
    difference, low, high = (float(row[name]) for name in ("difference", "low", "high"))
    p_value = f"p{SPACE}{format_p_value(float(row['p_adjusted']))}"
    unit = "" if is_share(metric) else f" in {metric_title(metric)}"
    same = row["verdict"] == "cannot be told apart"
    if difference < 0 and not same:
        # "worse by 6.5 (4.1 to 8.9)": the verdict already says which way.
        difference, low, high = -difference, -high, -low
    begin = "cannot be told apart from it: difference" if same else f"is {row['verdict']} by"
    size = format_difference(metric, difference) + unit
    return f"{begin} {size} ({format_interval(metric, low, high)}, {p_value})"


def openings_sentence(test_openings: int) -> str:
    """Say how often this test split has been looked at and what that means."""
    if test_openings == 1:
        return "This test split has been opened once, after everything had been chosen."
    return (
        f"This test split has been scored by {test_openings} configs. Every further look makes "
        "its figures a little too good; confirm the result on images nobody has scored yet."
    )
