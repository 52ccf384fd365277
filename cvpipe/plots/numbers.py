"""How figures are written for people: the one place where digits are chosen.

Every function takes a plain number and returns text. Spaces before a unit do not break,
the minus sign is the typographic one, and a figure that does not exist is a dash.
"""

import math
from typing import NamedTuple

import pandas as pd

SPACE = "\u00a0"
NOTHING = "\u2013"


class Metric(NamedTuple):
    """How one metric is written.

    Attributes:
        title: Name in running text.
        is_share: Written in percent, its differences in percentage points.
        higher_is_better: Direction.
    """

    title: str
    is_share: bool
    higher_is_better: bool


METRICS = {
    "accuracy": Metric("accuracy", True, True),
    "balanced_accuracy": Metric("balanced accuracy", True, True),
    "macro_f1": Metric("macro F1", True, True),
    "top_3": Metric("top-3 accuracy", True, True),
    "top_5": Metric("top-5 accuracy", True, True),
    "matthews": Metric("Matthews correlation", False, True),
    "kappa": Metric("Cohen's kappa", False, True),
    "roc_auc": Metric("ROC AUC", False, True),
    "pr_auc": Metric("PR AUC", False, True),
    "log_loss": Metric("log loss", False, False),
    "brier": Metric("Brier score", False, False),
    "ece": Metric("calibration error", False, False),
    "cost": Metric("mean cost", False, False),
    "precision": Metric("precision", True, True),
    "recall": Metric("recall", True, True),
    "f1": Metric("F1", True, True),
    "specificity": Metric("specificity", True, True),
}


def metric_title(metric: str) -> str:
    """Name a metric in running text, also one that is not among `METRICS`."""
    return METRICS[metric].title if metric in METRICS else metric.replace("_", " ")


def is_share(metric: str) -> bool:
    """Tell whether a metric is written in percent."""
    return metric in METRICS and METRICS[metric].is_share


def format_percent(share: float, decimals: int = 1) -> str:
    """Write a share in [0, 1] in percent, never rounding a flaw away.

    Args:
        share: The share; NaN gives a dash.
        decimals: Digits behind the point.

    Example:
        >>> format_percent(0.9833).replace(SPACE, " "), format_percent(0.9998).replace(SPACE, " ")
        ('98.3 %', '> 99.9 %')
    """
    if math.isnan(share):
        return NOTHING
    text = f"{100 * share:.{decimals}f}"
    step = 10.0**-decimals
    if float(text) == 100 and share < 1:
        text = f">{SPACE}{100 - step:.{decimals}f}"
    elif float(text) == 0 and share > 0:
        text = f"<{SPACE}{step:.{decimals}f}"
    return f"{text}{SPACE}%"


def format_metric(metric: str, value: float) -> str:
    """Write the value of a metric: percent for shares, three decimals otherwise."""
    if is_share(metric):
        return format_percent(value)
    return NOTHING if math.isnan(value) else _minus(f"{value:.3f}")


def format_interval(metric: str, low: float, high: float) -> str:
    """Write an interval without its unit; nothing when there is none.

    Example:
        >>> format_interval("accuracy", 0.97, 0.991).replace(SPACE, " ")
        '97.0 to 99.1'
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"{_bare(metric, low)}{SPACE}to{SPACE}{_bare(metric, high)}"


def format_difference(metric: str, difference: float) -> str:
    """Write a difference of two values of a metric, shares in percentage points."""
    unit = f"{SPACE}points" if is_share(metric) else ""
    return NOTHING if math.isnan(difference) else _bare(metric, difference) + unit


def format_p_value(p_value: float) -> str:
    """Write a p-value with its sign of relation: `= 0.034`, `< 0.001`."""
    if math.isnan(p_value):
        return NOTHING
    if p_value < 0.001:
        return f"<{SPACE}0.001"
    return f"={SPACE}{p_value:.3f}" if p_value < 0.1 else f"={SPACE}{p_value:.2f}"


def format_count(count: float | None) -> str:
    """Write a count with thousands parted by commas; a dash when nothing was counted."""
    return NOTHING if count is None or pd.isna(count) else f"{int(count):,}"


def format_seconds(seconds: float) -> str:
    """Write a duration in the unit a person would choose.

    Example:
        >>> [format_seconds(s).replace(SPACE, " ") for s in (0.004, 2.34, 95, 3700)]
        ['< 0.1 s', '2.3 s', '1 min 35 s', '1 h 2 min']
    """
    if math.isnan(seconds):
        return NOTHING
    if seconds < 0.05:
        return f"<{SPACE}0.1{SPACE}s"
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{SPACE}h {minutes}{SPACE}min"


def format_rate(per_second: float) -> str:
    """Write a speed with two significant digits, whole from 10 up."""
    if math.isnan(per_second):
        return NOTHING
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def format_bytes(size: float | None) -> str:
    """Write the size of a file in the decimal unit a person would choose.

    Example:
        >>> [format_bytes(s).replace(SPACE, " ") for s in (999, 1000, 26261, 13_800_000)]
        ['999 B', '1.0 kB', '26 kB', '14 MB']
    """
    if size is None or pd.isna(size):
        return NOTHING
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if number < 999.5:  # what would be written as 1,000 takes the next unit
            break
        number, unit = number / 1000, larger
    digits = 1 if number < 9.95 and unit != "B" else 0
    return f"{number:,.{digits}f}{SPACE}{unit}"


def format_tiny(value: float) -> str:
    """Write a very small number, such as a rounding difference: `3.1e-07`."""
    return NOTHING if math.isnan(value) else f"{value:.1e}"


def shorten(name: str, length: int = 26) -> str:
    """Cut the middle out of a name that would not fit beside a figure.

    Example:
        >>> shorten("a_very_long_class_name", 11)
        'a_ver…_name'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}\u2026{name[-tail:]}"


def _bare(metric: str, value: float) -> str:
    return _minus(f"{100 * value:.1f}" if is_share(metric) else f"{value:.3f}")


def _minus(text: str) -> str:
    # "-0.0" is zero; its sign would be noise.
    return text.lstrip("-") if not float(text) else text.replace("-", "\u2212")
