"""The figures of the report: values in, marks on given axes out.

Each `plot_*` function draws on the axes it is handed and returns them; it opens no
window and touches no global state. Names that come from data are drawn as they are:
a `$` in a class name does not start a formula.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.plots.numbers import (
    METRICS,
    format_count,
    format_difference,
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
# What the columns of the table of near-duplicates are called above their panels.
DUPLICATE_PANELS = {
    "clusters": "clusters, single images counted",
    "largest": "images in the largest cluster",
    "mixed": "clusters with mixed labels",
}
SPLIT_COLOURS = {"train": "#0f6a80", "val": "#7fb3c1", "test": "#e0a458"}
HISTOGRAM_BINS = 40
# Up to here a cell has room for a share below its count.
MAX_CLASSES_WITH_SHARES = 8
# Beyond this a count would be too small to read, and the shading alone is shown.
MAX_CLASSES_WITH_COUNTS = 32


def plot_metric_dots(
    metrics: pd.DataFrame,
    metric: str,
    order: Sequence[str],
    chosen: str,
    ax: "Axes",
    baselines: Collection[str] = (),
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
        baselines: Contenders that are yardsticks only; their dots are hollow.

    Raises:
        InputError: A contender does not have exactly one row.
    """
    rows = _one_row_each(metrics, metric, order)
    heights = np.arange(len(rows))
    colours = [CHOSEN if name == chosen else OTHER for name in order]
    fills = [
        "white" if name in baselines else CHOSEN if name == chosen else OTHER for name in order
    ]
    edges = [OTHER if name in baselines else "white" for name in order]
    value, low, high = (rows[column].to_numpy(dtype=float) for column in ("value", "low", "high"))

    ax.hlines(heights, low, high, colors=colours, linewidth=2.5, capstyle="round")
    ax.scatter(value, heights, s=52, c=fills, edgecolors=edges, linewidths=1.2, zorder=3)
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
            color=MUTED if name in baselines else INK,
            fontweight="bold" if name == chosen else "normal",
        )
    _name_rows(order, ax, chosen)
    for name, text in zip(order, ax.get_yticklabels(), strict=True):
        text.set_color(MUTED if name in baselines else INK)
    better = "" if metric not in METRICS else ", higher is better"
    if better and not METRICS[metric].higher_is_better:
        better = ", lower is better"
    ax.set_xlabel(f"{metric_title(metric)}{better}", fontsize=9, color=MUTED)
    _scale_values(metric, ax)
    return ax


def plot_protocol_gap(
    gaps: pd.DataFrame, metrics: pd.DataFrame, order: Sequence[str], chosen: str, ax: "Axes"
) -> "Axes":
    """Draw per contender its accuracy on a split that keeps groups together and on a careless one.

    A bar joins the two dots. Their intervals are thin lines above and below it, so that
    they can be told apart where they overlap.

    Args:
        gaps: Columns `contender`, `holdout`, `careless` (shares in [0, 1]) and `difference`
            (careless minus holdout), one row per contender.
        metrics: Rows of a metrics table of the protocols `holdout` and `careless`, one test
            accuracy each per contender; their `low` and `high` are drawn.
        order: Contenders from top to bottom.
        chosen: The highlighted one.
        ax: Where to draw.

    Raises:
        InputError: A contender does not have exactly one row in a protocol.
    """
    gaps = gaps.set_index("contender").loc[list(order)]
    heights = np.arange(len(gaps))
    ax.hlines(heights, gaps["holdout"], gaps["careless"], colors=LINE, linewidth=5)
    # The first dot is larger, so that it still shows where the second lies upon it.
    for protocol, colour, title, size, shift in (
        ("holdout", CHOSEN, "groups kept together", 80, -0.24),
        ("careless", SPLIT_COLOURS["test"], "careless split", 36, 0.24),
    ):
        rows = _one_row_each(metrics[metrics["protocol"] == protocol], "accuracy", order)
        ax.hlines(heights + shift, rows["low"], rows["high"], colors=colour, linewidth=1.2)
        ax.scatter(gaps[protocol], heights, s=size, color=colour, label=title, zorder=3)
    for height, (name, row) in enumerate(gaps.iterrows()):
        ax.annotate(
            f"{format_percent(row['holdout'])} \u2192 {format_percent(row['careless'])}"
            f" ({format_difference('accuracy', row['difference'])})",
            (1.02, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=INK,
            fontweight="bold" if name == chosen else "normal",
        )
    _name_rows(order, ax, chosen)
    _scale_values("accuracy", ax)
    _put_legend_above(ax)
    return ax


def plot_duplicate_thresholds(
    duplicates: pd.DataFrame, threshold: float, axes: Sequence["Axes"]
) -> Sequence["Axes"]:
    """Draw how clusters of near-duplicates grow with the distance that still counts as near.

    Args:
        duplicates: Columns `threshold`, `clusters`, `largest`, `mixed`, sorted by threshold.
        threshold: The one in use, drawn as a dotted line; none is drawn for NaN.
        axes: Three panels: number of clusters, images in the largest one, and clusters
            with more than one label.
    """
    from matplotlib.ticker import MaxNLocator

    for ax, (column, title) in zip(axes, DUPLICATE_PANELS.items(), strict=True):
        ax.plot(duplicates["threshold"], duplicates[column], color=CHOSEN, marker="o", ms=3)
        if not np.isnan(threshold):
            ax.axvline(threshold, color=INK, linewidth=1, linestyle=":")
        ax.set_title(title, fontsize=9, color=INK, loc="left")
        ax.set_xlabel("threshold", fontsize=9, color=MUTED)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_formatter(lambda at, _: format_count(at))
        # Room above a column of zeros, so that it lies on the floor and not in mid-air.
        ax.set_ylim(0, 1.08 * max(1, duplicates[column].max()))
        ax.tick_params(colors=INK, labelsize=9, length=0)
        ax.spines[:].set_visible(False)
        ax.grid(axis="y", color=LINE, linewidth=0.8)
        ax.set_axisbelow(True)
    return axes


def plot_reliability(bins: pd.DataFrame, title: str, ax: "Axes") -> "Axes":
    """Draw how often a classifier is right when it is this sure.

    Where dots lie below the diagonal it is too sure of itself. Their area grows with their
    number of images.

    Args:
        bins: Columns `confidence`, `accuracy`, `low`, `high` (shares in [0, 1]) and `n`.
        title: Stands above.
        ax: Where to draw.
    """
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    ax.vlines(bins["confidence"], bins["low"], bins["high"], colors=OTHER, linewidth=1.2)
    areas = 12 + 140 * bins["n"] / bins["n"].sum()
    ax.scatter(bins["confidence"], bins["accuracy"], s=areas, color=CHOSEN, zorder=3)
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    ax.set_xlabel("highest probability", fontsize=9, color=MUTED)
    ax.set_ylabel("named correctly", fontsize=9, color=MUTED)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda at, _: format_percent(at, 0))
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.grid(color=LINE, linewidth=0.8)
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
    _put_legend_above(ax)
    return ax


def plot_histogram(values: np.ndarray, title: str, ax: "Axes") -> "Axes":
    """Draw how many images have which value.

    Args:
        values: One number per image.
        title: What was measured.
        ax: Where to draw.
    """
    from matplotlib.ticker import MaxNLocator

    ax.hist(values, bins=HISTOGRAM_BINS, color=CHOSEN)
    ax.set_xlabel(title, fontsize=9, color=MUTED)
    ax.set_ylabel("images", fontsize=9, color=MUTED)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_formatter(lambda at, _: format_count(at))
    ax.tick_params(colors=INK, labelsize=9, length=0)
    ax.spines[:].set_visible(False)
    ax.grid(axis="y", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _one_row_each(metrics: pd.DataFrame, metric: str, order: Sequence[str]) -> pd.DataFrame:
    """Select the one row of each contender over all classes, in this order."""
    rows = metrics[(metrics["metric"] == metric) & (metrics["label"] == "")]
    counts = rows["contender"].value_counts()
    for name in order:
        if counts.get(name, 0) != 1:
            raise InputError(
                f"contender {name!r} has {counts.get(name, 0)} rows of {metric!r}, but a dot "
                "needs exactly one; pass the rows of one protocol, split and view."
            )
    return rows.set_index("contender").loc[list(order)]


def _scale_values(metric: str, ax: "Axes") -> None:
    """Write the axis of a metric in its unit, with a faint grid."""
    ax.xaxis.set_major_formatter(
        lambda at, _: f"{100 * at:.4g}\u00a0%" if is_share(metric) else f"{at:.4g}"
    )
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="x", color=LINE, linewidth=0.8)
    ax.set_axisbelow(True)


def _put_legend_above(ax: "Axes") -> None:
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=9,
        handlelength=1,
        borderaxespad=0.2,
    )


def _name_rows(names: Sequence[str], ax: "Axes", bold: str = "") -> None:
    """Name the rows from top to bottom, one of them in bold, and take the frame away."""
    ax.set_yticks(
        range(len(names)), [shorten(name) for name in names], fontsize=9, parse_math=False
    )
    for name, text in zip(names, ax.get_yticklabels(), strict=True):
        text.set_fontweight("bold" if name == bold else "normal")
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
