"""Accuracy against time: is a better contender worth its time?"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.plots.charts import CHOSEN, INK, LINE, MUTED, OTHER
from cvpipe.plots.numbers import format_rate, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NAME_LENGTH = 36
# A line of 9-point text with air around it, and the room below the axes for ticks and title.
LINE_INCHES, MARGIN_INCHES = 0.19, 0.8


def cost_plot_size(names: Sequence[str]) -> tuple[float, float]:
    """Choose width and height in inches so that every name has a line of its own."""
    longest = max(len(shorten(name, MAX_NAME_LENGTH)) for name in names)
    return 3.5 + 0.08 * longest, max(3.4, MARGIN_INCHES + LINE_INCHES * len(names))


def plot_accuracy_against_cost(
    points: pd.DataFrame, chosen: str, ax: "Axes", baselines: Collection[str] = ()
) -> "Axes":
    """Draw one dot per contender: its time per image to the right, its accuracy upwards.

    The names stand in one column at the right, in the order of the accuracies and at least a
    line apart, so no two overlap. A faint line leads from each dot level to the edge and from
    there to its name; because the order is kept, these lines do not cross.

    Args:
        points: Columns `contender`, `accuracy`, `accuracy_low`, `accuracy_high` (shares in
            [0, 1]) and `milliseconds_per_image`, above 0.
        chosen: The highlighted contender.
        ax: Where to draw; `cost_plot_size` says how large its figure must be.
        baselines: Contenders that are yardsticks only; their dots are hollow.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    # Of equals the slower one is named above; the chosen dot is drawn last, upon all others.
    points = points.sort_values(["accuracy", "milliseconds_per_image"], kind="stable")
    points = points.sort_values("contender", key=lambda name: name == chosen, kind="stable")
    names = points["contender"].tolist()
    times = points["milliseconds_per_image"].to_numpy(dtype=float)
    columns = ("accuracy", "accuracy_low", "accuracy_high")
    value, low, high = (points[column].to_numpy(dtype=float) for column in columns)
    colours = [CHOSEN if name == chosen else OTHER for name in names]
    fills = [
        "white" if name in baselines else colour
        for name, colour in zip(names, colours, strict=True)
    ]
    edges = [OTHER if name in baselines else "white" for name in names]

    ax.set_xscale("log")
    ax.set_xlim(times.min() / 1.6, times.max() * 1.6)
    bottom, top = np.nanmin([value, low]), np.nanmax([value, high])
    room = max(0.05 * (top - bottom), 0.01)
    ax.set_ylim(bottom - room, top + room)
    ax.vlines(times, low, high, colors=colours, linewidth=2)
    ax.scatter(times, value, s=52, c=fills, edgecolors=edges, linewidths=1.2, zorder=3)

    levels = (value - (bottom - room)) / (top - bottom + 2 * room)
    height = ax.figure.bbox.height / ax.figure.dpi  # in inches
    lines = spread(levels, LINE_INCHES / (height - MARGIN_INCHES))
    ax.hlines(value, times, ax.get_xlim()[1], colors=LINE, linewidth=0.8, zorder=0)
    for name, time, level, line in zip(names, times, levels, lines, strict=True):
        ax.plot(
            [1, 1.05],
            [level, line],
            color=LINE,
            linewidth=0.8,
            transform=ax.transAxes,
            clip_on=False,
        )
        ax.text(
            1.065,
            line,
            f"{shorten(name, MAX_NAME_LENGTH)}  {format_rate(time)}\u00a0ms",
            va="center",
            fontsize=9,
            color=MUTED if name in baselines else INK,
            fontweight="bold" if name == chosen else "normal",
            parse_math=False,
            transform=ax.transAxes,
        )
    ax.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if np.ptp(np.log10(times)) < 1.5 else (1,))
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
    # The axis has room above a perfect contender, but there is no 101 %.
    ax.yaxis.set_major_formatter(
        lambda at, _: f"{100 * at:.4g}\u00a0%" if -1e-9 < at < 1 + 1e-9 else ""
    )
    ax.locator_params(axis="y", nbins=5)
    ax.set_xlabel("milliseconds per image, lower is better", fontsize=9, color=MUTED)
    ax.set_ylabel("accuracy, higher is better", fontsize=9, color=MUTED)
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.spines[["left", "bottom"]].set(visible=True, color=LINE)
    ax.set_axisbelow(True)
    return ax


def spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Move positions apart, by as little as possible, and keep their order.

    Args:
        positions: `(n,)`, in [0, 1].
        gap: Smallest distance wanted; less where [0, 1] has no room for it.

    Returns:
        Positions in [0, 1], in the order given, with the least sum of squared moves.

    Example:
        >>> spread(np.array([0.5, 0.1, 0.5]), 0.2).round(3).tolist()
        [0.4, 0.1, 0.6]

    References:
        Barlow, Bartholomew, Bremner and Brunk, "Statistical Inference under Order
        Restrictions", 1972, chapter 1: less the steps, this is an isotonic regression.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(positions, kind="stable")
    steps = min(gap, 1 / max(len(positions) - 1, 1)) * np.arange(len(positions))
    fitted = isotonic_regression(positions[order] - steps).x
    placed = np.empty(len(positions))
    placed[order] = np.clip(fitted, 0, 1 - steps[-1]) + steps
    return placed
