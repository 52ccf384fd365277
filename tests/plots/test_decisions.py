import numpy as np
import pandas as pd

from cvpipe.plots.decisions import plot_risk_coverage
from cvpipe.plots.svg import build_axes

ROWS = pd.DataFrame(
    {
        "answered_share": [1.0, 0.5, 0.0],
        "accuracy": [0.75, 1.0, np.nan],
        "accuracy_low": [0.6, 0.4, np.nan],
        "accuracy_high": [0.8, 1.0, np.nan],
    }
)


def test_steps_and_dots_stand_where_the_tables_say():
    axes = build_axes(4, 3)[1]
    coverage, risk = np.array([0.25, 0.5, 1.0]), np.array([0.2, 0.0, 0.25])
    assert plot_risk_coverage(coverage, risk, ROWS, axes) is axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 0.25, 0.5, 1])
    np.testing.assert_array_equal(line.get_ydata(), [0.2, 0.2, 0, 0.25])
    assert line.get_drawstyle() in ("steps", "steps-pre")
    bars, dots = axes.collections
    np.testing.assert_allclose(dots.get_offsets(), [[1, 0.25], [0.5, 0]])
    ends = [sorted(np.asarray(segment)[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.2, 0.4], [0.0, 0.6]])
    assert axes.get_ylim()[1] > 0.6


def test_a_classifier_without_mistakes_still_has_an_axis():
    axes = build_axes(4, 3)[1]
    rows = ROWS.assign(accuracy=np.nan, accuracy_low=np.nan, accuracy_high=np.nan)
    plot_risk_coverage(np.array([1.0]), np.array([0.0]), rows, axes)
    assert axes.get_ylim() == (0, 0.05)
