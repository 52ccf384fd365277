# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from cvpipe.errors import InputError
from cvpipe.plots.charts import (
    CHOSEN,
    MUTED,
    OTHER,
    SPLIT_COLOURS,
    plot_class_counts,
    plot_confusion_matrix,
    plot_duplicate_thresholds,
    plot_metric_dots,
    plot_protocol_gap,
)
from cvpipe.plots.svg import build_axes, build_panels


@pytest.fixture
def ax():
    return build_axes(4, 3)[1]


def metric_rows(*rows):
    return pd.DataFrame(rows, columns=["contender", "metric", "label", "value", "low", "high"])


METRICS = metric_rows(
    ("a", "accuracy", "", 0.9, 0.85, 0.94),
    ("b", "accuracy", "", 0.7, 0.6, 0.79),
    ("c", "accuracy", "", 0.8, np.nan, np.nan),
    ("a", "accuracy", "cat", 0.1, 0.0, 0.2),
    ("a", "log_loss", "", 0.3, 0.2, 0.4),
)


def test_dots_and_intervals_stand_where_the_table_says(ax):
    assert plot_metric_dots(METRICS, "accuracy", ["b", "c", "a"], "a", ax) is ax
    intervals, dots = ax.collections
    np.testing.assert_array_equal(dots.get_offsets(), [[0.7, 0], [0.8, 1], [0.9, 2]])
    segments = [np.asarray(segment) for segment in intervals.get_segments()]
    np.testing.assert_array_equal(segments[0], [[0.6, 0], [0.79, 0]])
    np.testing.assert_array_equal(segments[-1], [[0.85, 2], [0.94, 2]])
    assert {s[0, 1] for s in segments if s.size} == {0, 2}  # c has no interval
    assert [to_hex(colour) for colour in dots.get_facecolor()] == [OTHER, OTHER, CHOSEN]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "c", "a"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row is on top
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0.9, 0.9]


def test_values_are_written_beside_the_dots(ax):
    plot_metric_dots(METRICS, "accuracy", ["a", "c"], "a", ax)
    texts = [text.get_text().replace("\u00a0", " ") for text in ax.texts]
    assert texts == ["90.0 %  (85.0 to 94.0)", "80.0 %"]
    assert [text.get_fontweight() for text in ax.texts] == ["bold", "normal"]
    assert [text.get_fontweight() for text in ax.get_yticklabels()] == ["bold", "normal"]


@pytest.mark.parametrize(
    ("metric", "label", "tick"),
    [
        ("accuracy", "accuracy, higher is better", "50 %"),
        ("log_loss", "log loss, lower is better", "0.5"),
    ],
)
def test_axis_names_the_direction_and_the_unit(ax, metric, label, tick):
    plot_metric_dots(METRICS, metric, ["a"], "a", ax)
    assert ax.get_xlabel() == label
    assert ax.xaxis.get_major_formatter()(0.5, 0).replace("\u00a0", " ") == tick


@pytest.mark.parametrize("order", [["a", "z"], ["a", "b"]])
def test_a_dot_needs_exactly_one_row(ax, order):
    twice = pd.concat([METRICS, METRICS[METRICS["contender"] == "b"]])
    with pytest.raises(InputError, match=r"contender '[bz]' has [02] rows of 'accuracy'"):
        plot_metric_dots(twice, "accuracy", order, "a", ax)


def test_yardsticks_are_hollow_and_muted(ax):
    plot_metric_dots(METRICS, "accuracy", ["a", "b"], "a", ax, {"b"})
    dots = ax.collections[1]
    assert [to_hex(colour) for colour in dots.get_facecolor()] == [CHOSEN, "#ffffff"]
    assert [to_hex(colour) for colour in dots.get_edgecolor()] == ["#ffffff", OTHER]
    assert [text.get_color() == MUTED for text in ax.texts] == [False, True]
    assert [text.get_color() == MUTED for text in ax.get_yticklabels()] == [False, True]


GAPS = pd.DataFrame(
    [("a", 0.9, 0.96, 0.06), ("b", 0.7, 0.69, -0.01)],
    columns=["contender", "holdout", "careless", "difference"],
)
GAP_METRICS = pd.concat(
    [
        METRICS[METRICS["contender"] != "c"].assign(protocol="holdout"),
        metric_rows(
            ("a", "accuracy", "", 0.96, 0.92, 0.98), ("b", "accuracy", "", 0.69, 0.6, 0.8)
        ).assign(protocol="careless"),
    ]
)


def test_a_gap_joins_two_dots_with_their_intervals(ax):
    assert plot_protocol_gap(GAPS, GAP_METRICS, ["b", "a"], "a", ax) is ax
    bars, *pairs = ax.collections
    assert [np.asarray(bar).tolist() for bar in bars.get_segments()] == [
        [[0.7, 0], [0.69, 0]],
        [[0.9, 1], [0.96, 1]],
    ]
    expected = {
        CHOSEN: ([0.7, 0.9], [(0.6, 0.79), (0.85, 0.94)], -1),
        SPLIT_COLOURS["test"]: ([0.69, 0.96], [(0.6, 0.8), (0.92, 0.98)], 1),
    }
    for (colour, (values, intervals, side)), lines, dots in zip(
        expected.items(), pairs[::2], pairs[1::2], strict=True
    ):
        assert to_hex(lines.get_colors()[0]) == to_hex(dots.get_facecolor()[0]) == colour
        np.testing.assert_array_equal(dots.get_offsets(), np.c_[values, [0, 1]])
        segments = np.array(lines.get_segments())
        np.testing.assert_array_equal(segments[:, :, 0], intervals)
        assert (np.sign(segments[:, :, 1] - [[0], [1]]) == side).all()
    texts = [text.get_text().replace("\u00a0", " ") for text in ax.texts]
    assert texts == ["70.0 % → 69.0 % (−1.0 points)", "90.0 % → 96.0 % (6.0 points)"]
    assert [text.get_fontweight() for text in ax.texts] == ["normal", "bold"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "groups kept together",
        "careless split",
    ]
    assert ax.xaxis.get_major_formatter()(0.5, 0) == "50\u00a0%"


def test_a_gap_needs_both_protocols(ax):
    alone = GAP_METRICS[GAP_METRICS["protocol"] == "holdout"]
    with pytest.raises(InputError, match="contender 'a' has 0 rows of 'accuracy'"):
        plot_protocol_gap(GAPS, alone, ["a", "b"], "a", ax)


DUPLICATES = pd.DataFrame(
    {"threshold": [0, 24, 64], "clusters": [2, 9, 4], "largest": [2, 3, 1500], "mixed": [0, 0, 0]}
)


def test_duplicates_are_drawn_against_the_threshold():
    panels = build_panels(8, 2, 3)[1]
    assert plot_duplicate_thresholds(DUPLICATES, 24.0, panels) is panels
    titles = [
        "clusters, single images counted",
        "images in the largest cluster",
        "clusters with mixed labels",
    ]
    assert [ax.get_title(loc="left") for ax in panels] == titles
    for ax, column in zip(panels, ["clusters", "largest", "mixed"], strict=True):
        curve, line = ax.lines
        np.testing.assert_array_equal(curve.get_xydata(), DUPLICATES[["threshold", column]])
        assert list(line.get_xdata()) == [24, 24]
        assert line.get_linestyle() == ":"
        assert ax.get_ylim()[0] == 0
        assert ax.get_ylim()[1] > max(1, DUPLICATES[column].max())
        assert ax.get_xlabel() == "threshold"
        assert all(tick == int(tick) for tick in ax.get_yticks())
    assert panels[1].yaxis.get_major_formatter()(1500, 0) == "1,500"


def test_without_a_threshold_no_line_is_drawn():
    panels = build_panels(8, 2, 3)[1]
    plot_duplicate_thresholds(DUPLICATES, np.nan, panels)
    assert [len(ax.lines) for ax in panels] == [1, 1, 1]


def confusion_texts(ax):
    return {(*text.xy, text.get_text().replace("\u00a0", " ")) for text in ax.texts}


def test_confusion_matrix_writes_counts_and_row_shares(ax):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 1998]])
    assert plot_confusion_matrix(matrix, ["a", "b", "c"], ax) is ax
    assert confusion_texts(ax) == {  # (predicted, true, text)
        *((0, 0, "3"), (0, 0, "75 %"), (1, 0, "1"), (1, 0, "25 %")),
        *((0, 2, "2"), (0, 2, "< 1 %"), (2, 2, "1,998"), (2, 2, "> 99 %")),
    }
    colours = ax.collections[0].get_array()
    np.testing.assert_allclose(colours[2, 2], to_rgb(CHOSEN), atol=0.01)  # right: blue
    assert colours[0, 1, 0] > colours[0, 1, 2]  # a mistake: reddish
    assert colours[0, 0, 0] < colours[0, 0, 2]
    # Row 1 has no image; its cells are as pale as any other empty cell.
    np.testing.assert_array_equal(colours[1], np.broadcast_to(colours[0, 2], (3, 3)))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


@pytest.mark.parametrize(("num_classes", "num_texts"), [(8, 16), (9, 9), (20, 20), (33, 0)])
def test_confusion_matrix_writes_less_when_there_are_many_classes(ax, num_classes, num_texts):
    names = [f"class {i:02d}" for i in range(num_classes)]
    plot_confusion_matrix(7 * np.eye(num_classes, dtype=int), names, ax)
    assert len(ax.texts) == num_texts
    assert [text.get_text() for text in ax.get_xticklabels()] == names
    assert {(text.get_rotation(), text.get_ha()) for text in ax.get_xticklabels()} == {
        (40.0, "left")
    }


def test_few_short_names_stand_upright(ax):
    plot_confusion_matrix(np.eye(2), ["no", "yes"], ax)
    assert {(text.get_rotation(), text.get_ha()) for text in ax.get_xticklabels()} == {
        (0.0, "center")
    }


def test_confusion_matrix_must_fit_the_classes(ax):
    with pytest.raises(
        InputError, match=r"of 2 classes must have the shape \(2, 2\), not \(3, 3\)"
    ):
        plot_confusion_matrix(np.eye(3), ["a", "b"], ax)


def test_class_counts_are_stacked_by_split(ax):
    counts = pd.DataFrame({"train": [10, 4], "test": [5, 1200]}, index=["x", "y"])
    assert plot_class_counts(counts, ax) is ax
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 10), (0, 4), (10, 5), (4, 1200)]
    assert [text.get_text() for text in ax.texts] == ["15", "1,204"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "test"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["x", "y"]
    assert len({bar.get_facecolor() for bar in ax.patches}) == 2
