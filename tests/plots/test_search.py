import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from cvpipe.plots.search import (
    SERIES,
    better_of,
    plot_search,
    setting_in_words,
    value_in_words,
)
from cvpipe.plots.svg import build_axes, figure_to_svg

ONE = pd.DataFrame(
    {
        "k": [9.0, 1.0, 3.0],
        "mean": [0.8, 0.7, 0.9],
        "std": [0.02, 0.05, 0.01],
        "folds": 5,
    }
)
TWO = pd.DataFrame(
    [
        (c, metric, mean, 0.01)
        for metric, means in (("l1", (0.5, 0.6)), ("l2", (0.9, 0.4)))
        for c, mean in zip((1.0, 100.0), means, strict=True)
    ],
    columns=["C", "metric", "mean", "std"],
)


def drawn(search, chosen, metric="accuracy"):
    _, axes = build_axes(4, 3)
    return plot_search(search, chosen, metric, axes)


def dots(axes):
    """The dots of each series, and the rings, as lists of places."""
    found = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    series = [c for c in found if len(c.get_facecolors())]
    rings = [c for c in found if not len(c.get_facecolors())]
    return [c.get_offsets().tolist() for c in series], [c.get_offsets().tolist() for c in rings]


def test_dots_rise_along_a_logarithmic_axis_and_a_ring_marks_the_chosen():
    axes = drawn(ONE, {"k": 3.0})
    ((points,), (ring,)) = dots(axes)
    np.testing.assert_allclose(points, [[0, 0.7], [0.5, 0.9], [1, 0.8]], atol=1e-12)
    np.testing.assert_allclose(ring, [[0.5, 0.9]])
    ticks = dict(
        zip(axes.get_xticks(), [t.get_text() for t in axes.get_xticklabels()], strict=True)
    )
    assert {round(place, 6): text for place, text in ticks.items()} == {0: "1", 0.5: "3", 1: "9"}
    assert axes.get_xlabel() == "k"
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_ydata(), [0.7, 0.9, 0.8])


def test_bars_are_a_standard_deviation_to_either_side():
    (bars,) = (
        c for c in drawn(ONE, {"k": 3.0}).collections if type(c).__name__ == "LineCollection"
    )
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, [[0.65, 0.75], [0.89, 0.91], [0.78, 0.82]])


def test_an_axis_with_a_zero_is_linear():
    search = ONE.assign(k=[0.0, 1.0, 0.5]).rename(columns={"k": "l1_ratio"})
    ((points,), _) = dots(drawn(search, {"l1_ratio": 0.5}))
    assert [x for x, _ in points] == [0, 0.5, 1]


def test_words_stand_side_by_side_and_are_not_joined():
    search = ONE.assign(k=["l2", "l1", "$cosine$"]).rename(columns={"k": "metric"})
    axes = drawn(search, {"metric": "l1"})
    ((points,), (ring,)) = dots(axes)
    assert points == [[0, 0.8], [0.5, 0.7], [1, 0.9]]
    assert ring == [[0.5, 0.7]]
    assert not axes.lines
    assert [text.get_text() for text in axes.get_xticklabels()] == ["l2", "l1", "$cosine$"]
    root = ET.fromstring(figure_to_svg(axes.figure, "words"))
    assert "$cosine$" in [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_line_for_each_value_of_the_second_the_best_first():
    axes = drawn(TWO, {"C": 1.0, "metric": "l2"})
    series, rings = dots(axes)
    assert [[y for _, y in points] for points in series] == [[0.9, 0.4], [0.5, 0.6]]
    # Moved apart, so that the spreads can be told apart.
    assert series[0][0][0] < 0 < series[1][0][0]
    assert [ring for ring in rings if ring] == [[series[0][0]]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["l2", "l1"]
    assert axes.get_legend().get_title().get_text() == "metric"
    assert [to_hex(line.get_color()) for line in axes.lines] == [c for c, _ in SERIES[:2]]


def test_of_a_loss_the_lowest_line_is_the_best():
    third = TWO.tail(2).assign(metric="cosine", mean=[0.7, 0.8])
    search = pd.concat([third, TWO])
    axes = drawn(search, {"C": 100.0, "metric": "l2"}, "log_loss")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["l2", "l1", "cosine"]  # .4, .5, .7
    assert axes.get_title(loc="left") == "log loss, lower is better"
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "0.5"


def test_of_many_lines_the_best_are_drawn():
    search = pd.DataFrame(
        [(c, number, 0.1 * number, 0.01) for number in range(9) for c in (1.0, 2.0)],
        columns=["C", "gamma", "mean", "std"],
    )
    axes = drawn(search, {"C": 2.0, "gamma": 8})
    assert len(axes.lines) == len(SERIES)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["8", "7", "6", "5", "4", "3"]


def test_the_chosen_line_is_drawn_and_first_among_many_that_are_as_good():
    search = pd.DataFrame(
        [(c, number, 1.0, 0.0) for number in range(9) for c in (1.0, 2.0)],
        columns=["C", "gamma", "mean", "std"],
    )
    series, rings = dots(drawn(search, {"C": 2.0, "gamma": 8}))
    assert len(series) == len(SERIES)
    assert [len(ring) for ring in rings] == [1, 0, 0, 0, 0, 0]
    assert rings[0] == [series[0][1]]


def test_lines_of_several_hyperparameters_are_named_in_full():
    search = TWO.assign(vote=["a", "b", "b", "a"])
    axes = drawn(search, {"C": 1.0, "metric": "l2", "vote": "b"})
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0] == "metric l2, vote b"
    assert len(texts) == 4
    assert axes.get_legend().get_title().get_text() == ""


@pytest.mark.parametrize(
    ("metric", "mean", "std", "low", "high"),
    [
        ("accuracy", [1.0, 0.9], [0.3, 0.3], 0.5, 1.03),
        ("accuracy", [0.0, 0.1], [0.3, 0.3], -0.05, 0.5),
        ("log_loss", [0.1, 2.0], [0.5, 0.5], -0.2, 2.8),
    ],
)
def test_the_axis_ends_near_what_is_possible(metric, mean, std, low, high):
    search = pd.DataFrame({"k": [1, 2], "mean": mean, "std": std})
    bottom, top = drawn(search, {"k": 1}, metric).get_ylim()
    assert low < bottom < min(mean) or bottom < min(mean) - min(std) > 0
    assert max(mean) < top < high


def test_ticks_keep_their_distance_and_prefer_round_values():
    values = [0.001, 0.00707, 0.01, 0.0141, 0.1]
    search = pd.DataFrame({"C": values, "mean": 0.5, "std": 0.1})
    axes = drawn(search, {"C": 0.01})
    assert sorted(text.get_text() for text in axes.get_xticklabels()) == ["0.001", "0.01", "0.1"]


def test_accuracies_are_in_percent():
    axes = drawn(ONE, {"k": 3.0})
    assert axes.get_title(loc="left") == "accuracy, higher is better"
    assert axes.yaxis.get_major_formatter()(0.85, 0) == "85\u00a0%"


def test_a_setting_that_was_not_tried_has_no_ring():
    assert dots(drawn(ONE, {"k": 4.0}))[1] == [[]]


def test_a_single_setting_can_be_drawn():
    ((points,), (ring,)) = dots(drawn(ONE[:1], {"k": 9.0}))
    assert points == ring == [[0, 0.8]]


def test_row_numbers_do_not_matter():
    shuffled = TWO.set_axis([7, 3, 9, 1])
    assert dots(drawn(shuffled, {"C": 1.0, "metric": "l2"})) == dots(
        drawn(TWO, {"C": 1.0, "metric": "l2"})
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.0, "5"), (1e-4, "0.0001"), (0.0707106781, "0.0707107"), ("l1", "l1"), (True, "True"),
     (np.int64(3), "3"), (1000.0, "1,000"), (46400, "46,400"), (-2000, "-2000")],
)  # fmt: skip
def test_values_in_words(value, text):
    assert value_in_words(value) == text


def test_settings_in_words():
    assert setting_in_words({}) == ""
    assert setting_in_words({"k": 5.0, "metric": "l1"}) == "k 5, metric l1"


def test_directions():
    assert better_of("accuracy") == "higher"
    assert better_of("log_loss") == "lower"
    assert better_of("unheard_of") == "higher"
