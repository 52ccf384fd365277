"""The figures of the report: values in, marks on given axes out.

Each `plot_*` function draws on the axes it is handed and returns them; it opens no
window and touches no global state. Names that come from data are drawn as they are:
a `$` in a class name does not start a formula.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.plots.numbers import (
    METRICS,
    format_count,
    format_interval,
    format_metric,
    format_percent,
    is_share,
    metric_title,
    shorten,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE = "#1c2733", "#5d6b78", "#dde2e7"
CHOSEN, OTHER, MISTAKE = "#0f6a80", "#8b97a3", "#c0562f"
SPLIT_COLOURS = {"train": "#0f6a80", "val": "#7fb3c1", "test": "#e0a458"}
# Up to here a cell has room for a share below its count.
MAX_CLASSES_WITH_SHARES = 8
# Beyond this a count would be too small to read, and the shading alone is shown.
MAX_CLASSES_WITH_COUNTS = 32


def plot_metric_dots(
    metrics: pd.DataFrame, metric: str, order: Sequence[str], chosen: str, ax: "Axes"
) -> "Axes":
    """Draw one dot with its 95 % interval per contender, the chosen one highlighted.

    A dotted line carries the chosen contender's value down to the others. Rows without
    an interval (`low` or `high` missing) get a dot alone.

    Args:
        metrics: Rows of a metrics table: one protocol, one split, one view per contender.
        metric: Which metric to draw; rows of single classes are left out.
        order: Contenders from top to bottom.
        chosen: The highlighted one.
        ax: Where to draw.

    Raises:
        InputError: A contender does not have exactly one row.
    """
    rows = metrics[(metrics["metric"] == metric) & (metrics["label"] == "")]
    counts = rows["contender"].value_counts()
    for name in order:
        if counts.get(name, 0) != 1:
            raise InputError(
                f"contender {name!r} has {counts.get(name, 0)} rows of {metric!r}, but a dot "
                "needs exactly one; pass the rows of one protocol, split and view."
            )
    rows = rows.set_index("contender").loc[list(order)]
    heights = np.arange(len(rows))
    colours = [CHOSEN if name == chosen else OTHER for name in order]
    value, low, high = (rows[column].to_numpy(dtype=float) for column in ("value", "low", "high"))

    ax.hlines(heights, low, high, colors=colours, linewidth=2.5, capstyle="round")
    ax.scatter(value, heights, s=52, c=colours, edgecolors="white", linewidths=1.2, zorder=3)
    if chosen in order:
        ax.axvline(value[list(order).index(chosen)], color=CHOSEN, linewidth=1, linestyle=":")
    for height, name in enumerate(order):
        interval = format_interval(metric, low[height], high[height])
        ax.annotate(
            format_metric(metric, value[height]) + (f"  ({interval})" if interval else ""),
            (1.02, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=INK,
            fontweight="bold" if name == chosen else "normal",
        )
    _name_rows(order, ax)
    for name, text in zip(order, ax.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name == chosen else "normal")
    better = "" if metric not in METRICS else ", higher is better"
    if better and not METRICS[metric].higher_is_better:
        better = ", lower is better"
    ax.set_xlabel(f"{metric_title(metric)}{better}", fontsize=9, color=MUTED)
    ax.xaxis.set_major_formatter(
        lambda at, _: f"{100 * at:.4g}\u00a0%" if is_share(metric) else f"{at:.4g}"
    )
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="x", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], ax: "Axes") -> "Axes":
    """Draw counts and row shares, rows true and columns predicted.

    The shade is the share of the row, so that a rare class is as visible as a frequent
    one; right answers are blue, mistakes are orange. Shares are also written when there
    are few classes. A count of zero stays empty.

    Args:
        matrix: Counts of shape `(num_classes, num_classes)`, `matrix[true, predicted]`.
        class_names: Class order of both axes.
        ax: Where to draw.

    Raises:
        InputError: The matrix does not fit the class names.
    """
    num_classes = len(class_names)
    if np.shape(matrix) != (num_classes, num_classes):
        raise InputError(
            f"a confusion matrix of {num_classes} classes must have the shape "
            f"{(num_classes, num_classes)}, not {np.shape(matrix)}."
        )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shade = _blend(shares, np.eye(num_classes, dtype=bool))
    gap = 2 if num_classes <= 12 else 1
    ax.pcolormesh(np.arange(num_classes), np.arange(num_classes), shade, ec="white", lw=gap)
    ax.set_aspect("equal")
    with_shares = num_classes <= MAX_CLASSES_WITH_SHARES
    for true, predicted in np.argwhere(matrix > 0):
        if num_classes > MAX_CLASSES_WITH_COUNTS:
            break
        share = shares[true, predicted]
        # Two texts of one line each: a text of two lines is placed by its left edge, which
        # is off centre in any font but Matplotlib's own.
        lines = [(format_count(matrix[true, predicted]), 0, 8)]
        if with_shares:
            lines = [(lines[0][0], 6, 11), (format_percent(share, 0), -9, 8)]
        for text, lift, size in lines:
            ax.annotate(
                text,
                (predicted, true),
                xytext=(0, lift),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if share > 0.4 else INK,
            )
    _name_rows(class_names, ax)
    names = [shorten(name) for name in class_names]
    # Upright names only while they surely fit side by side.
    upright = num_classes <= 4 and max(map(len, names)) <= 8
    rotation, side = (0.0, "center") if upright else (40.0, "left")
    ax.xaxis.tick_top()
    ax.set_xticks(range(num_classes), names, fontsize=9, parse_math=False)
    for label in ax.get_xticklabels():
        label.set(rotation=rotation, ha=side, rotation_mode="anchor")
    ax.xaxis.set_label_position("top")
    ax.tick_params(length=0)
    ax.set_xlabel("predicted", fontsize=9, color=MUTED)
    ax.set_ylabel("true", fontsize=9, color=MUTED)
    return ax


def plot_class_counts(counts: pd.DataFrame, ax: "Axes") -> "Axes":
    """Draw one bar per class, parted by split, with the class total at its end.

    Args:
        counts: Number of images, indexed by label, one column per split.
        ax: Where to draw.
    """
    heights = np.arange(len(counts))
    left = np.zeros(len(counts))
    for split in counts.columns:
        width = counts[split].to_numpy(dtype=float)
        colour = SPLIT_COLOURS.get(split, OTHER)
        ax.barh(heights, width, 0.62, left=left, color=colour, label=str(split))
        left += width
    for height, total in enumerate(left):
        ax.annotate(
            format_count(int(total)),
            (total, height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
        )
    _name_rows([str(label) for label in counts.index], ax)
    ax.set_xticks([])
    ax.margins(x=0.12)
    ax.set_xlim(left=0)
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=len(counts.columns),
        frameon=False,
        fontsize=9,
        handlelength=1,
        borderaxespad=0.2,
    )
    return ax


def _name_rows(names: Sequence[str], ax: "Axes") -> None:
    """Name the rows from top to bottom and take the frame away."""
    ax.set_yticks(
        range(len(names)), [shorten(name) for name in names], fontsize=9, parse_math=False
    )
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)


def _blend(shares: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Shade from near white to the colour of right answers or of mistakes."""
    from matplotlib.colors import to_rgb

    full = np.where(right[..., None], to_rgb(CHOSEN), to_rgb(MISTAKE))
    paper = np.array(to_rgb("#f4f6f8"))
    # The square root lifts small shares: one mistake in a hundred must be seen.
    return paper + np.sqrt(shares)[..., None] * (full - paper)
