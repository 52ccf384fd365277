"""How many mistakes are left when only the surest images are answered."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.plots.charts import CHOSEN, INK, LINE, MUTED
from cvpipe.plots.numbers import format_percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_risk_coverage(
    coverage: np.ndarray, risk: np.ndarray, abstention: pd.DataFrame, ax: "Axes"
) -> "Axes":
    """Draw the risk against the coverage as steps, and the frozen thresholds as dots.

    Args:
        coverage: Shares of images answered, rising to 1, `(k,)`.
        risk: Share of mistakes among them, `(k,)`.
        abstention: One row per threshold: `answered_share`, and `accuracy` among the answered
            with `accuracy_low` and `accuracy_high`. Where nothing is answered there is no dot.
        ax: Where to draw.
    """
    # From one image to the next the risk is that of all images answered so far.
    ax.step(np.append(0.0, coverage), np.append(risk[0], risk), color=CHOSEN, linewidth=1.5)
    dots = abstention.dropna(subset=["accuracy"])
    ax.vlines(
        dots["answered_share"],
        1 - dots["accuracy_high"],
        1 - dots["accuracy_low"],
        colors=INK,
        linewidth=1.2,
    )
    ax.scatter(dots["answered_share"], 1 - dots["accuracy"], s=36, color=INK, zorder=3)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda at, _: format_percent(max(at, 0.0), 0))
    ax.set_xlabel("images answered", fontsize=9, color=MUTED)
    ax.set_ylabel("mistakes among them", fontsize=9, color=MUTED)
    ax.set_xlim(0, 1.02)
    ax.set_ylim(0, max(0.05, 1.1 * np.nanmax([*risk, *(1 - dots["accuracy_low"])])))
    ax.locator_params(axis="y", nbins=5)
    ax.tick_params(colors=INK, labelsize=9, length=0, pad=6)
    ax.spines[:].set_visible(False)
    ax.grid(color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax
