import math

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.plots.learning_rate import plot_rate_test
from cvpipe.plots.svg import build_axes, figure_to_svg

RATES = np.geomspace(1e-6, 10, 8)
LOSSES = np.array([2.0, 2.1, 1.9, 1.0, 0.5, 0.8, 2.4, 500.0])


def drawn(losses=LOSSES, suggestion=0.0123, smoothed=None):
    figure, axes = build_axes(6, 3)
    assert plot_rate_test(axes, RATES, losses, suggestion, smoothed) is axes
    return figure, axes


def test_losses_are_dots_at_their_rates():
    _, axes = drawn()
    (dots,) = axes.collections
    np.testing.assert_array_equal(dots.get_offsets(), np.c_[RATES, LOSSES])
    assert axes.get_xscale() == "log"
    assert axes.get_xlim() == (1e-6, 10)


def test_the_suggestion_is_a_dotted_line_with_its_value():
    _, axes = drawn()
    (line,) = axes.lines
    assert (line.get_xdata(), line.get_linestyle()) == ([0.0123, 0.0123], ":")
    (text,) = axes.texts
    assert (text.get_text(), text.xy[0]) == ("suggested: 0.012", 0.0123)


def test_without_a_suggestion_there_is_no_line():
    _, axes = drawn(suggestion=math.nan)
    assert not axes.lines
    assert not axes.texts


def test_smoothed_losses_are_a_line():
    smoothed = LOSSES[::-1]
    _, axes = drawn(suggestion=math.nan, smoothed=smoothed)
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xydata(), np.c_[RATES, smoothed])
    assert line.get_linestyle() == "-"


def test_the_explosion_is_cut_off_and_the_fall_is_not():
    bottom, top = drawn()[1].get_ylim()
    # From 0.5 to 1.5 times the first loss, and a twentieth of that on either side.
    assert (bottom, top) == pytest.approx((0.5 - 0.125, 3.0 + 0.125))
    bottom, top = drawn(LOSSES[[0, 1, 2, 3, 4, 5, 5, 5]])[1].get_ylim()
    assert (bottom, top) == pytest.approx((0.5 - 0.08, 2.1 + 0.08))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_not_drawn(bad):
    losses = np.append(LOSSES[:6], [bad, bad])
    figure, axes = drawn(losses, smoothed=losses)
    assert axes.get_ylim() == pytest.approx((0.5 - 0.08, 2.1 + 0.08))
    assert "nan" not in figure_to_svg(figure, "A test of learning rates").lower()


def test_a_constant_loss_has_room_around_it():
    assert drawn(np.full(8, 2.0))[1].get_ylim() == pytest.approx((1.95, 2.05))


def test_axes():
    figure, axes = drawn()
    figure.canvas.draw()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning rate", "training loss")
    shown = [at for at in axes.get_xticks() if 1e-6 <= at <= 10]
    assert len(shown) >= 3
    np.testing.assert_allclose(np.log10(shown), np.round(np.log10(shown)))  # powers of ten
    assert [axes.xaxis.get_major_formatter()(at, 0) for at in (1e-5, 0.001)] == ["1e-5", "0.001"]


def test_nothing_to_draw():
    with pytest.raises(InputError, match=r"none of the 8 losses is a finite number, .* start"):
        drawn(np.full(8, math.nan))
