"""The figure of accuracy against time, for every page that shows contenders."""

from collections.abc import Collection

import pandas as pd

from cvpipe.plots import numbers
from cvpipe.plots.cost import cost_plot_size, plot_accuracy_against_cost
from cvpipe.plots.svg import build_axes, figure_to_svg


def cost_figure(points: pd.DataFrame, chosen: str, baselines: Collection[str]) -> str:
    """Draw accuracy against milliseconds per image as SVG.

    Args:
        points: As for `plot_accuracy_against_cost`; a contender whose time was not measured is
            left out.
        chosen: The highlighted contender.
        baselines: Contenders that are yardsticks only.

    Returns:
        The figure; `""` when fewer than two contenders were measured.
    """
    points = points.dropna(subset=["milliseconds_per_image"])
    if len(points) < 2:
        return ""
    figure, axes = build_axes(*cost_plot_size(points["contender"].tolist()))
    plot_accuracy_against_cost(points, chosen, axes, baselines)
    parts = [
        f"{row['contender']} {numbers.format_percent(row['accuracy'])} at "
        f"{numbers.format_rate(row['milliseconds_per_image'])} ms"
        for row in points.to_dict("records")
    ]
    return figure_to_svg(figure, "Test accuracy against time per image: " + "; ".join(parts))
