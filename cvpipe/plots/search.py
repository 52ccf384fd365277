"""The figure of a search: what cross-validation inside train says of each setting tried."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from cvpipe.plots.charts import CHOSEN, INK, LINE, MISTAKE, MUTED, OTHER, SPLIT_COLOURS
from cvpipe.plots.numbers import METRICS, format_count, is_share, metric_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One for each value of the further hyperparameters; markers tell them apart without colour.
SERIES = (
    *((CHOSEN, "o"), (SPLIT_COLOURS["test"], "s"), (MISTAKE, "^")),
    *((OTHER, "D"), (SPLIT_COLOURS["val"], "v"), (INK, "P")),
)
# As shares of the length of the axis.
DODGE = 0.015  # between the same setting of two series, so that their spreads do not cover
TICK_GAP = 0.13  # between two ticks


def plot_search(search: pd.DataFrame, chosen: Mapping[str, Any], metric: str, ax: "Axes") -> "Axes":
    """Draw the score of cross-validation against a hyperparameter, with its spread over the folds.

    The first hyperparameter runs along the axis, on a logarithmic scale where all its values are
    above zero. There is a line for each combination of the others, that of the chosen setting
    first, then the best ones, up to `len(SERIES)`. A ring marks the chosen setting.

    Args:
        search: One row per setting: its hyperparameters, and `mean` and `std` of the score over
            the folds, in the unit of the metric.
        chosen: The chosen value of each hyperparameter, that of the axis first.
        metric: What the score is.
        ax: Where to draw.

    References:
        CS231n 2017, lecture 2 (accuracy of five folds against k).
    """
    along, *further = chosen
    places = _places(search[along])
    taken = np.all([search[name] == value for name, value in chosen.items()], axis=0)
    lines = _lines(search, further, metric, taken)[: len(SERIES)]
    for number, (style, line) in enumerate(zip(SERIES, lines, strict=False)):
        rows = line[np.argsort(places[line], kind="stable")]
        at = places[rows] + DODGE * (number - (len(lines) - 1) / 2)
        points = search.iloc[rows].assign(at=at, is_chosen=taken[rows])
        _draw_line(points, style, _label(search.iloc[rows[0]][further]), ax)
        if is_numeric_dtype(search[along]):
            ax.plot(at, points["mean"].to_numpy(dtype=float), color=style[0], linewidth=1)
    _write_axes(along, _ticks(search[along], places), metric, ax)
    if further:
        _write_legend(further, ax)
    return ax


def _label(values: pd.Series) -> str:
    """Name a line by what its settings share; a single value stands below its name."""
    named = {str(name): value for name, value in values.items()}
    return setting_in_words(named) if len(named) > 1 else "".join(map(value_in_words, values))


def setting_in_words(values: Mapping[str, Any]) -> str:
    """Write hyperparameters as people do.

    Example:
        >>> setting_in_words({"C": 0.01, "metric": "l1"})
        'C 0.01, metric l1'
    """
    return ", ".join(f"{name} {value_in_words(value)}" for name, value in values.items())


def value_in_words(value: Any, digits: int = 6) -> str:
    """Write the value of a hyperparameter; numbers with at most so many significant digits.

    Example:
        >>> [value_in_words(value, 3) for value in (0.00707, 1 / 3, 5.0, 1000.0, "l1")]
        ['0.00707', '0.333', '5', '1,000', 'l1']
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return str(value)
    text = f"{value:.{digits}g}"
    return format_count(float(text)) if 1000 <= value < 1e6 else text


def better_of(metric: str) -> str:
    """Tell in which direction a metric gets better."""
    return "higher" if metric not in METRICS or METRICS[metric].higher_is_better else "lower"


def _places(values: pd.Series) -> np.ndarray:
    """Say where settings lie on the axis, from 0 to 1: `float64 (n,)`."""
    if is_numeric_dtype(values):
        scaled = values.to_numpy(dtype=float)
        scaled = np.log(scaled) if (scaled > 0).all() else scaled
    else:
        scaled = pd.factorize(values)[0].astype(float)
    return (scaled - scaled.min()) / max(np.ptp(scaled), np.finfo(float).tiny)


def _ticks(values: pd.Series, places: np.ndarray) -> dict[float, str]:
    """Choose what is written at which places: what was tried, round values first."""
    names = {float(p): value_in_words(v, 3) for p, v in zip(places, values, strict=True)}
    ticks: dict[float, str] = {}
    for place in sorted(names, key=lambda place: (len(names[place]), place)):
        if all(abs(place - other) >= TICK_GAP for other in ticks):
            ticks[place] = names[place]
    return ticks


def _lines(
    search: pd.DataFrame, further: Sequence[str], metric: str, taken: np.ndarray
) -> list[np.ndarray]:
    """Part the rows by the further hyperparameters: the chosen line, then the best one."""
    if not further:
        return [np.arange(len(search))]
    groups = search.groupby(list(further), sort=False, dropna=False)
    numbers, means = groups.ngroup().to_numpy(), groups["mean"]
    higher = better_of(metric) == "higher"
    best = (means.max() if higher else means.min()).to_numpy()
    best_first = np.argsort(-best if higher else best, kind="stable")
    # Among many that are equally good the chosen one must not be missing.
    order = sorted(best_first, key=lambda number: number not in numbers[taken])
    return [np.flatnonzero(numbers == number) for number in order]


def _draw_line(points: pd.DataFrame, style: tuple[str, str], label: str, ax: "Axes") -> None:
    """Draw settings that lie on one line as dots with their spread; ring the chosen one."""
    colour, marker = style
    at, mean, std = (points[name].to_numpy(dtype=float) for name in ("at", "mean", "std"))
    ax.vlines(at, mean - std, mean + std, colors=colour, linewidth=1.6)
    ax.scatter(
        at, mean, s=30, color=colour, marker=marker, edgecolors="white", linewidths=0.8,
        zorder=3, label=label,
    )  # fmt: skip
    ringed = points["is_chosen"].to_numpy(dtype=bool)
    ax.scatter(
        at[ringed], mean[ringed], s=120, facecolors="none", edgecolors=INK, linewidths=1.6,
        zorder=4, clip_on=False,
    )  # fmt: skip


def _write_legend(further: Sequence[str], ax: "Axes") -> None:
    alone = len(further) == 1
    legend = ax.legend(
        loc="upper left", bbox_to_anchor=(0, -0.2), ncols=3 if alone else 1,
        title=further[0] if alone else None, alignment="left", title_fontsize=9, fontsize=8,
        frameon=False, handletextpad=0.2, columnspacing=1,
    )  # fmt: skip
    for text in (legend.get_title(), *legend.get_texts()):
        text.set(parse_math=False, color=INK)


def _write_axes(along: str, ticks: Mapping[float, str], metric: str, ax: "Axes") -> None:
    ax.set_xticks(list(ticks), list(ticks.values()), parse_math=False)
    ax.set_xlim(-0.09, 1.09)
    ax.yaxis.set_major_formatter(
        lambda at, _: f"{100 * at:.4g}\u00a0%" if is_share(metric) else f"{at:.4g}"
    )
    ax.locator_params(axis="y", nbins=5)
    _cut_off_the_impossible(metric, ax)
    ax.set_xlabel(along, fontsize=9, color=MUTED, parse_math=False)
    title = f"{metric_title(metric)}, {better_of(metric)} is better"
    ax.set_title(title, fontsize=9, color=MUTED, loc="left")
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)


def _cut_off_the_impossible(metric: str, ax: "Axes") -> None:
    """Let the axis end a little beyond what the metric can be, whatever the spreads reach."""
    bottom, top = ax.get_ylim()
    if better_of(metric) == "lower" or is_share(metric):
        bottom = max(bottom, -0.04 * (top - max(bottom, 0.0)))
    if is_share(metric):
        top = min(top, 1 + 0.04 * (1 - bottom))
    ax.set_ylim(bottom, top)
