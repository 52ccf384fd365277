"""The figure of a learning curve: what was measured, the law through it, and what lies ahead."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.plots.charts import CHOSEN, INK, LINE, MUTED, OTHER, SPLIT_COLOURS
from cvpipe.plots.numbers import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AHEAD = SPLIT_COLOURS["test"]


def plot_learning_curve(curve: pd.DataFrame, forecast: pd.DataFrame, ax: "Axes") -> "Axes":
    """Draw accuracy against the number of training images, on a logarithmic axis.

    Small grey dots are single fits, large ones their means with intervals. The line is the
    fitted law; beyond the present it is a forecast with a band, paler and dotted where it is
    extrapolated.

    Args:
        curve: Rows of one contender: `num_train`, `draw` (`"mean"` for the large dots),
            `accuracy`, `low`, `high`.
        forecast: Rows of the same contender, rising: `num_train`, `accuracy`, `low`, `high`,
            `kind`; without rows nothing but dots is drawn.
        ax: Where to draw.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    is_mean = curve["draw"] == "mean"
    single, mean = curve[~is_mean], curve[is_mean]
    for kind, colour, style, alpha in (
        ("fitted", CHOSEN, "-", 0.0),
        ("forecast", AHEAD, "-", 0.3),
        ("extrapolated", AHEAD, ":", 0.12),
    ):
        positions = np.flatnonzero(forecast["kind"] == kind)
        if not len(positions):
            continue
        # Each part starts where the one before ends, so that the line has no gaps.
        rows = forecast.iloc[max(positions[0] - 1, 0) : positions[-1] + 1]
        sizes, value, low, high = (
            rows[name].to_numpy(dtype=float) for name in ("num_train", "accuracy", "low", "high")
        )
        ax.plot(sizes, value, color=colour, linestyle=style, linewidth=1.6)
        if alpha:
            ax.fill_between(sizes, low, high, color=AHEAD, alpha=alpha, linewidth=0)
    sizes = mean["num_train"].to_numpy(dtype=float)
    ax.vlines(sizes, mean["low"], mean["high"], colors=CHOSEN, linewidth=2, zorder=3)
    ax.scatter(
        sizes, mean["accuracy"], s=52, color=CHOSEN, edgecolors="white", linewidths=1.2, zorder=4
    )
    ax.scatter(
        single["num_train"].to_numpy(dtype=float), single["accuracy"],
        s=20, color=OTHER, edgecolors="white", linewidths=0.6, zorder=3.5,
    )  # fmt: skip
    ax.set_xscale("log")
    shown = [*sizes, *forecast["num_train"].astype(float)[forecast["kind"] != "fitted"].iloc[3::4]]
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda at, _: format_count(round(at)))
    ax.yaxis.set_major_formatter(lambda at, _: f"{100 * at:.4g}\u00a0%")
    ax.set_xlabel("training images", fontsize=9, color=MUTED)
    ax.set_ylabel("test accuracy", fontsize=9, color=MUTED)
    ax.locator_params(axis="y", nbins=5)
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))
    return ax
