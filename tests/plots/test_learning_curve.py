import numpy as np
import pandas as pd

from cvpipe.plots.learning_curve import plot_learning_curve
from cvpipe.plots.svg import build_axes

CURVE = pd.DataFrame(
    {
        "num_train": [98, 102, 100, 200, 400],
        "draw": ["0", "1", "mean", "mean", "mean"],
        "accuracy": [0.79, 0.81, 0.8, 0.85, 0.9],
        "low": [0.7, 0.7, 0.75, 0.8, 0.86],
        "high": [0.9, 0.9, 0.85, 0.9, 0.94],
    }
)
SIZES = [100, 200, 400, 476, 566, 673, 800, 951, 1131, 1345, 1600]
FORECAST = pd.DataFrame(
    {
        "num_train": SIZES,
        "accuracy": np.linspace(0.8, 0.95, 11),
        "low": np.linspace(0.75, 0.9, 11),
        "high": np.linspace(0.85, 1.0, 11),
        "kind": ["fitted"] * 3 + ["forecast"] * 4 + ["extrapolated"] * 4,
    }
)


def drawn(forecast):
    _, axes = build_axes(6, 3)
    return plot_learning_curve(CURVE, forecast, axes)


def test_line_parts_join_and_the_last_is_dotted():
    axes = drawn(FORECAST)
    lines = [line.get_xdata().tolist() for line in axes.lines]
    assert lines == [SIZES[:3], SIZES[2:7], SIZES[6:]]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", ":"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), FORECAST["accuracy"][2:7])


def test_bands_intervals_and_dots():
    axes = drawn(FORECAST)
    bands = [c for c in axes.collections if type(c).__name__ == "FillBetweenPolyCollection"]
    extents = [band.get_paths()[0].get_extents() for band in bands]
    assert [(e.x0, e.x1) for e in extents] == [(400, 800), (800, 1600)]
    assert (extents[1].y0, extents[1].y1) == (FORECAST["low"][6], 1.0)
    mean, single = (c for c in axes.collections if type(c).__name__ == "PathCollection")
    assert single.get_offsets().tolist() == [[98, 0.79], [102, 0.81]]
    assert mean.get_offsets().tolist() == [[100, 0.8], [200, 0.85], [400, 0.9]]
    (bars,) = (c for c in axes.collections if type(c).__name__ == "LineCollection")
    assert bars.get_segments()[0].tolist() == [[100, 0.75], [100, 0.85]]


def test_axes():
    axes = drawn(FORECAST)
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == [100, 200, 400, 800, 1600]
    assert axes.get_ylim()[1] <= 1.005
    assert axes.xaxis.get_major_formatter()(1600, 0) == "1,600"
    assert axes.yaxis.get_major_formatter()(0.85, 0) == "85\u00a0%"


def test_without_a_forecast_there_are_dots_alone():
    axes = drawn(FORECAST[:0])
    assert not axes.lines
    assert axes.get_xticks().tolist() == [100, 200, 400]
