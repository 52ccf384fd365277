"""Accuracy against cost: every dot where it belongs, every name legible."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from scipy.optimize import minimize

from cvpipe.plots.charts import CHOSEN, INK, MUTED, OTHER
from cvpipe.plots.cost import cost_plot_size, plot_accuracy_against_cost, spread
from cvpipe.plots.svg import build_axes

POINTS = pd.DataFrame(
    [
        ("majority", 0.5, 0.42, 0.58, 0.09),
        ("probe", 0.98, 0.95, 0.985, 20.0),
        ("chosen", 0.98, 0.96, 0.99, 14.0),
        ("a_$name$", 0.87, 0.82, 0.91, 2.0),
    ],
    columns=["contender", "accuracy", "accuracy_low", "accuracy_high", "milliseconds_per_image"],
)


def name_in(text):
    """Behind the name stands the time."""
    return text.get_text().split("  ")[0]


def draw(points, chosen="chosen", baselines=("majority",)):
    figure, axes = build_axes(*cost_plot_size(points["contender"].tolist()))
    assert plot_accuracy_against_cost(points, chosen, axes, baselines) is axes
    return figure, axes


def test_each_contender_is_a_dot_at_its_time_and_accuracy_with_its_interval():
    axes = draw(POINTS)[1]
    assert axes.get_xscale() == "log"
    intervals, dots, _ = axes.collections
    order = ["majority", "a_$name$", "probe", "chosen"]  # the chosen dot is drawn last
    rows = POINTS.set_index("contender").loc[order]
    np.testing.assert_array_equal(
        dots.get_offsets(), rows[["milliseconds_per_image", "accuracy"]].to_numpy()
    )
    ends = np.array(intervals.get_segments())[:, :, 1]
    np.testing.assert_array_equal(ends, rows[["accuracy_low", "accuracy_high"]].to_numpy())
    fills = [to_hex(colour) for colour in dots.get_facecolors()]
    assert fills == ["#ffffff", OTHER, OTHER, CHOSEN]
    assert to_hex(dots.get_edgecolors()[0]) == OTHER
    assert axes.get_xlim()[0] < 0.09 < 20 < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < 0.42 < 0.99 < axes.get_ylim()[1]
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "50\u00a0%"
    assert [axes.yaxis.get_major_formatter()(at, 0) for at in (-0.01, 1.01)] == ["", ""]
    assert axes.xaxis.get_major_formatter()(0.1, 0) == "0.1"


def test_names_stand_in_the_order_of_the_accuracies_and_the_chosen_one_is_marked():
    texts = sorted(draw(POINTS)[1].texts, key=lambda text: -text.get_position()[1])
    # Of two equals the slower one stands above, unless the other is the chosen one.
    assert [name_in(text) for text in texts] == ["chosen", "probe", "a_$name$", "majority"]
    assert [text.get_fontweight() for text in texts] == ["bold", "normal", "normal", "normal"]
    assert [text.get_color() for text in texts] == [INK, INK, INK, MUTED]
    swapped = draw(POINTS, chosen="majority", baselines=())[1].texts
    levels = {name_in(text): text.get_position()[1] for text in swapped}
    assert levels["probe"] > levels["chosen"]


def test_a_line_leads_from_the_level_of_each_dot_to_its_name():
    axes = draw(POINTS)[1]
    low, high = axes.get_ylim()
    for text, line in zip(axes.texts, axes.lines, strict=True):
        accuracy = POINTS.set_index("contender").loc[name_in(text), "accuracy"]
        begin, end = line.get_ydata()
        assert begin == pytest.approx((accuracy - low) / (high - low))
        assert end == text.get_position()[1]


@pytest.mark.parametrize("num_points", [2, 3, 9, 24])
@pytest.mark.parametrize("width", [0.0, 0.02, 1.0])
def test_no_two_names_overlap_and_all_are_inside_the_figure(num_points, width):
    names = [f"some_run-123456/contender_{number}" for number in range(num_points)]
    rng = np.random.default_rng(num_points)
    # All equal, crowded at the top, and anywhere.
    value = 1 - width * rng.random(num_points)
    milliseconds = 10 ** rng.uniform(-2, 3, num_points)
    points = pd.DataFrame(
        [(n, v, v, v, ms) for n, v, ms in zip(names, value, milliseconds, strict=True)],
        columns=list(POINTS),
    )
    figure, axes = draw(points, names[0], ())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = sorted(
        (text.get_window_extent(canvas.get_renderer()) for text in axes.texts), key=lambda b: b.y0
    )
    for below, above in itertools.pairwise(boxes):
        assert below.y1 <= above.y0
    for box in boxes:
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert box.y1 <= figure.bbox.y1
    assert axes.get_window_extent().width > 100


def test_the_figure_grows_with_the_names_and_cuts_the_longest():
    assert cost_plot_size(["abc"]) == pytest.approx((3.74, 3.4))
    assert cost_plot_size(["x" * 50] * 20) == pytest.approx((3.5 + 0.08 * 36, 0.8 + 0.19 * 20))


def least_moves(positions, gap):
    """The same by a general solver."""
    order = np.argsort(positions, kind="stable")
    sorted_ = positions[order]
    apart = [
        {"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - gap}
        for i in range(len(positions) - 1)
    ]
    begin = np.linspace(0, 1, len(positions))
    found = minimize(
        lambda x: ((x - sorted_) ** 2).sum(),
        begin,
        bounds=[(0, 1)] * len(positions),
        constraints=apart,
        options={"ftol": 1e-12, "maxiter": 500},
    )
    result = np.empty(len(positions))
    result[order] = found.x
    return result


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0.01, 0.16))
def test_positions_are_moved_as_little_as_possible(positions, gap):
    positions = np.array(positions)
    np.testing.assert_allclose(spread(positions, gap), least_moves(positions, gap), atol=1e-4)


def test_positions_without_room_share_what_there_is():
    np.testing.assert_allclose(spread(np.array([0.9, 0.9, 0.9]), 0.7), [0, 0.5, 1])
    assert spread(np.array([0.3]), 5.0).tolist() == [0.3]
    assert spread(np.array([1.0, 1.0]), 0.25).tolist() == [0.75, 1.0]
