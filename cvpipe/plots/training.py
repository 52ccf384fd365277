"""The figure of a training: loss and accuracy, epoch by epoch, and which epoch was kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.plots.charts import CHOSEN, INK, LINE, MUTED
from cvpipe.plots.numbers import SPACE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = ("loss", "accuracy")
# The validation images decide, so theirs is the stronger line; dashes tell without colour.
LINES = {"train": ("training", MUTED, "--", 1.2), "val": ("validation", CHOSEN, "-", 1.8)}
MAX_DOTTED = 30  # epochs; of more, dots would run into one another


def plot_training(history: pd.DataFrame, kept: int, panels: "Sequence[Axes]") -> "Sequence[Axes]":
    """Draw the loss and the accuracy of each epoch on training and on validation images.

    A dotted line marks the epoch that was kept, and a ring its value on the validation images, or
    on the training images where there are no others. What is not finite is not drawn.

    Args:
        history: One row per epoch: `epoch`, and `train_loss`, `val_loss`, `train_accuracy` and
            `val_accuracy`; those of val are NaN where there were no such images.
        kept: One of the epochs.
        panels: Where to draw: the loss, then the accuracy.

    References:
        CS231n 2017, lecture 7 (monitoring a training).
    """
    epochs = history["epoch"].to_numpy(dtype=float)
    for quantity, ax in zip(PANELS, panels, strict=True):
        ax.axvline(kept, color=INK, linewidth=1, linestyle=":", zorder=1)
        for part, (label, colour, style, width) in LINES.items():
            values = history[f"{part}_{quantity}"].to_numpy(dtype=float)
            values = np.where(np.isfinite(values), values, np.nan)
            if np.isnan(values).all():
                continue
            ax.plot(
                epochs, values, color=colour, linestyle=style, linewidth=width, label=label,
                marker="o" if len(epochs) <= MAX_DOTTED else "", markersize=4, zorder=3,
            )  # fmt: skip
            decisive = part, values[epochs == kept]
        if ax.lines[1:]:
            _ring(kept, *decisive, ax)
            ax.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=2.4)
        _write_axes(quantity, epochs, kept, ax)
    panels[1].yaxis.set_major_formatter(lambda at, _: f"{100 * at:.4g}{SPACE}%")
    panels[1].set_ylim(top=min(panels[1].get_ylim()[1], 1.02))
    return panels


def _ring(kept: int, part: str, value: np.ndarray, ax: "Axes") -> None:
    ax.scatter(
        [kept], value, s=70, facecolors="none", edgecolors=LINES[part][1], linewidths=1.6, zorder=4
    )


def _write_axes(quantity: str, epochs: np.ndarray, kept: int, ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.annotate(
        f"epoch {kept} kept", (kept, 1.02), xycoords=("data", "axes fraction"),
        ha="center", va="bottom", fontsize=9, color=INK,
    )  # fmt: skip
    # There is no epoch 0, so the axis does not reach it.
    ax.set_xlim(
        epochs[0] - min(0.9, 0.3 + 0.02 * len(epochs)), epochs[-1] + 0.3 + 0.02 * len(epochs)
    )
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    ax.locator_params(axis="y", nbins=5)
    ax.set_xlabel("epoch", fontsize=9, color=MUTED)
    ax.set_ylabel(quantity, fontsize=9, color=MUTED)
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
