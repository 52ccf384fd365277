"""The figure of a learning-rate range test: where the loss falls, and where it explodes."""

import math
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError
from cvpipe.plots.charts import CHOSEN, INK, LINE, MUTED, OTHER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The explosion leaves the figure at the top; it would press the fall into a flat line.
HIGHEST_SHOWN = 1.5


def plot_rate_test(
    axes: "Axes",
    rates: np.ndarray,
    losses: np.ndarray,
    suggestion: float,
    smoothed: np.ndarray | None = None,
) -> "Axes":
    """Draw the loss of each step against its learning rate, on a logarithmic axis.

    Losses are grey dots, and a line when they are smoothed; a dotted line marks the suggestion.
    What is above 1.5 times the first loss is cut off, and what is not finite is not drawn.

    Args:
        axes: Where to draw.
        rates: Learning rate of each step, above 0, rising.
        losses: As many losses.
        suggestion: The suggested rate; NaN when there is none.
        smoothed: As many smoothed losses; without them there are dots alone.

    Raises:
        InputError: There is no finite loss to draw.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    finite = losses[np.isfinite(losses)]
    if not len(finite):
        raise InputError(
            f"none of the {len(losses)} losses is a finite number, so there is nothing to draw; "
            "start the test at a lower learning rate."
        )
    axes.scatter(rates, losses, s=14, color=OTHER, linewidths=0, zorder=2)
    if smoothed is not None:
        axes.plot(rates, smoothed, color=CHOSEN, linewidth=1.6, zorder=3)
    if not math.isnan(suggestion):
        _mark(axes, suggestion)
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1])
    top = min(finite.max(), HIGHEST_SHOWN * finite[0])
    room = 0.05 * (top - finite.min()) or 0.05
    axes.set_ylim(finite.min() - room, top + room)
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}".replace("e-0", "e-"))
    axes.locator_params(axis="y", nbins=5)
    axes.set_xlabel("learning rate", fontsize=9, color=MUTED)
    axes.set_ylabel("training loss", fontsize=9, color=MUTED)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _mark(axes: "Axes", suggestion: float) -> None:
    """Draw the suggestion from the floor to the top, with its value above the frame."""
    axes.axvline(suggestion, color=CHOSEN, linewidth=1, linestyle=":")
    axes.annotate(
        f"suggested: {suggestion:.2g}",
        (suggestion, 1.02),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        fontsize=9,
        color=INK,
    )
