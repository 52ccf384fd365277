"""The answer of a run in words: who is better, worse, or cannot be told apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cvpipe.plots.numbers import (
    SPACE,
    format_count,
    format_difference,
    format_interval,
    format_p_value,
    format_percent,
    is_share,
    metric_title,
)

MAX_COSTS = 12


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
        Outcome(
            str(row["contender"]),
            str(row["verdict"]),
            _outcome_text(row, metric) + _other_verdicts(comparison, row),
        )
        for row in rows.to_dict("records")
    ]


def _other_verdicts(comparison: pd.DataFrame, shown: dict) -> str:
    """Name the metrics by which a contender is better or worse although it is not by this one."""
    rows = comparison[
        (comparison["contender"] == shown["contender"])
        & ~comparison["verdict"].isin([shown["verdict"], "cannot be told apart"])
    ]
    texts = [
        f"{verdict} by {listed([metric_title(metric) for metric in metrics])}"
        for verdict, metrics in rows.groupby("verdict", sort=False)["metric"]
    ]
    return f"; it is {' and '.join(texts)}" if texts else ""


def listed(names: Sequence[str]) -> str:
    """Write names as people do.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


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
    text = f"{begin} {size} ({format_interval(metric, low, high)}, {p_value})"
    if same and not math.isnan(row["detectable"]):
        least = format_difference(metric, float(row["detectable"])) + unit
        text += f"; a difference of at least {least} could have been shown"
    return text


def folds_sentence(
    folds: int, chosen: str, accuracy: pd.Series, of_repeats: Sequence[float] = ()
) -> str:
    """Say what k-fold found for the recipe of the chosen contender.

    Args:
        folds: Number of folds.
        chosen: The chosen contender.
        accuracy: Its row of the metrics, with `value`, `low`, `high` and `n`.
        of_repeats: Its accuracy in each division into folds, this one first.
    """
    repeats = ""
    if len(of_repeats) > 1:
        least, most = (format_percent(ends(of_repeats)) for ends in (min, max))
        repeats = (
            f" This is the first of {len(of_repeats)} divisions into folds, which give {least} to "
            f"{most}."
        )
    interval = format_interval("accuracy", accuracy["low"], accuracy["high"])
    return (
        f"Over {folds} folds, with every one of the {format_count(accuracy['n'])} images scored "
        f"once by a model that had not seen its group, the recipe of {chosen} names "
        f"{format_percent(accuracy['value'])} correctly"
        + (f" (95{SPACE}% interval {interval})." if interval else ".")
        + repeats
    )


def careless_sentence(careless: pd.DataFrame) -> str:
    """Say how far a careless split would have misled a reader of these figures.

    Args:
        careless: At least one row of `contender` and `difference` with `low` and `high`.
    """
    largest = careless.sort_values("difference", kind="stable").iloc[-1]
    interval = format_interval("accuracy", largest["low"], largest["high"])
    size = format_difference("accuracy", largest["difference"])
    above, total = int((careless["low"] > 0).sum()), len(careless)
    sentence = (
        f"The largest difference here is that of {largest['contender']}: {size}"
        + (f" ({interval})" if interval else "")
        + f". Of {total} difference{'s' * (total > 1)}, {above or 'none'} "
        f"{'have' if above > 1 else 'has'} an interval above zero"
    )
    harmless = ": that the careless split did harm is not shown for these images."
    return sentence + ("." if above else harmless)


def costs_sentence(costs: dict[str, dict[str, float]], num_classes: int) -> str:
    """Say what the mean cost counts.

    Args:
        costs: True class to predicted class to cost, at least one.
        num_classes: Number of classes.
    """
    named = [
        f"{true} called {predicted} costs {value:.12g}"
        for true, row in costs.items()
        for predicted, value in row.items()
        if predicted != true
    ]
    shown = named[:MAX_COSTS]
    if len(named) > MAX_COSTS:
        shown.append(f"{len(named) - MAX_COSTS} more mistakes cost what config.json says")
    if len(named) < num_classes * (num_classes - 1):
        shown.append(f"every {'other ' if named else ''}mistake costs 1")
    return f"Mean cost per image: {'; '.join(shown)}; a right answer costs nothing."


def unlike_sentence(unlike: pd.DataFrame, contender: str) -> str:
    """Say how many test images are called unlike the training images.

    Args:
        unlike: Shares of flagged images by `contender` and `score`.
        contender: The chosen contender.

    Returns:
        `""` when nothing was measured for it.
    """
    rows = unlike[(unlike["contender"] == contender) & (unlike["images"] == "test")]
    if rows.empty:
        return ""
    shares = [
        f"{format_percent(row['flagged_fraction'])} by {row['score']} "
        f"(95{SPACE}% interval {format_interval('accuracy', row['low'], row['high'])})"
        for row in rows.to_dict("records")
    ]
    return (
        f"Of the {format_count(rows['n'].iloc[0])} test images these are called unlike the "
        f"training images: {'; '.join(shares)}. About 5{SPACE}% are expected: a share far above "
        "says that the test images differ from those of training. An answer for an image of "
        "another kind means nothing, however sure it looks"
        + (
            ", and the probability often does not show it: do not rely on this score alone."
            if set(rows["score"]) == {"probability"}
            else "."
        )
    )


def crops_warning(views: Sequence[str]) -> str:
    """Warn of what is lost where an image is cropped.

    Args:
        views: Views that are, or have, crops; at least one.
    """
    return (
        f"{listed(views)} {'look' if len(views) > 1 else 'looks'} at crops: each leaves out a part "
        "of the border, about an eighth of the height and width or more, so a finding that lies "
        "there can be cut away. Where a small finding anywhere matters, as in medical images, "
        "prefer views that cut nothing."
    )


def openings_sentence(test_openings: int) -> str:
    """Say how often this test split has been looked at and what that means."""
    if test_openings == 1:
        return "This test split has been scored by one config, after everything had been chosen."
    return (
        f"This test split has been scored by {test_openings} configs. Every further look makes "
        "its figures a little too good; confirm the result on images nobody has scored yet."
    )
