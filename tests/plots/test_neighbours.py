import re

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.plots.charts import CHOSEN, MISTAKE
from cvpipe.plots.neighbours import BADGE_PIXELS, FRAME_PIXELS, GAP_PIXELS, neighbour_strip

PICTURES = np.random.default_rng(0).integers(0, 255, (3, 20, 24, 3), dtype=np.uint8)
STEP = 24 + 2 * FRAME_PIXELS + GAP_PIXELS


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_neighbours_stand_in_order_in_frames_that_say_which_are_right():
    strip = neighbour_strip(PICTURES, [True, False, True])
    assert strip.shape == (20 + 2 * FRAME_PIXELS, 3 * STEP - GAP_PIXELS, 3)
    for number, colour in enumerate((CHOSEN, MISTAKE, CHOSEN)):
        framed = strip[:, number * STEP : number * STEP + 24 + 2 * FRAME_PIXELS]
        inside = framed[FRAME_PIXELS:-FRAME_PIXELS, FRAME_PIXELS:-FRAME_PIXELS]
        shown = BADGE_PIXELS - FRAME_PIXELS
        np.testing.assert_array_equal(inside[shown:], PICTURES[number, shown:])
        np.testing.assert_array_equal(inside[:, shown:], PICTURES[number, :, shown:])
        rim = np.concatenate([framed[-FRAME_PIXELS:].reshape(-1, 3), framed[BADGE_PIXELS:, 0]])
        assert (rim == rgb(colour)).all()
    assert (strip[:, STEP - GAP_PIXELS : STEP] == 255).all()


def test_marks_differ_in_more_than_colour():
    tick, cross = (
        neighbour_strip(PICTURES[:1], [right])[:BADGE_PIXELS, :BADGE_PIXELS]
        for right in (True, False)
    )
    is_white = [(badge > 230).all(axis=2) for badge in (tick, cross)]
    assert all(15 < white.sum() < 80 for white in is_white)
    assert (is_white[0] != is_white[1]).sum() > 15
    np.testing.assert_array_equal(is_white[1][3:12, 3:12], np.fliplr(is_white[1][3:12, 3:12]))


def test_pictures_are_left_as_they_are():
    before = PICTURES.copy()
    neighbour_strip(PICTURES, np.array([True, False, True]))
    np.testing.assert_array_equal(PICTURES, before)


@pytest.mark.parametrize(
    ("pictures", "right"),
    [
        (PICTURES, [True]),
        (PICTURES[:0], []),
        (np.zeros((1, 10, 40, 3), np.uint8), [True]),
    ],
)
def test_what_does_not_fit_is_refused(pictures, right):
    message = f"got pictures of shape {pictures.shape} for {len(right)} neighbours."
    with pytest.raises(InputError, match=re.escape(message)):
        neighbour_strip(pictures, right)
