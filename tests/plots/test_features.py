import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.plots.features import class_templates, hog_glyphs, tile_sheet


def one_direction(direction, orientations=4, strength=1.0):
    strengths = np.zeros((1, 1, orientations))
    strengths[0, 0, direction] = strength
    return strengths


def angle_of(picture):
    """Measure along which direction a picture's brightness lies, in degrees from the right down."""
    down, across = np.indices(picture.shape) - (len(picture) - 1) / 2
    weight = picture.astype(float)
    moments = [(weight * a * b).sum() for a, b in ((across, across), (down, down), (across, down))]
    return np.degrees(0.5 * np.arctan2(2 * moments[2], moments[0] - moments[1])) % 180


@pytest.mark.parametrize("orientations", [2, 4, 9, 12])
@pytest.mark.parametrize("cell_pixels", [15, 16])
def test_a_stroke_lies_at_right_angles_to_its_gradient(orientations, cell_pixels):
    for direction in range(orientations):
        gradient = (direction + 0.5) * 180 / orientations
        picture = hog_glyphs(one_direction(direction, orientations), cell_pixels)
        difference = (angle_of(picture) - gradient) % 180
        assert difference == pytest.approx(90, abs=1.5)


def test_signed_directions_go_around_twice_as_far():
    for direction in range(8):
        picture = hog_glyphs(one_direction(direction, 8), 15, signed=True)
        other = hog_glyphs(one_direction(direction % 4, 4), 15)
        np.testing.assert_array_equal(picture, other)


def test_glyphs_follow_the_edges_of_a_photo():
    # A bright triangle: to the lower left of its slope the image is dark, so the gradients point
    # to the upper right, and the edge itself falls from the upper left to the lower right.
    from cvpipe.features.hog import HistogramOfOrientedGradients

    down, across = np.mgrid[0:64, 0:64]
    image = np.repeat((200 * (across > down))[..., None], 3, axis=2).astype(np.uint8)
    hog = HistogramOfOrientedGradients().fit(image[None])
    (strengths,) = hog.cell_strengths(hog.transform(image[None]))
    picture = hog_glyphs(strengths, 15)
    middle = picture[45:60, 45:60]
    assert angle_of(middle) == pytest.approx(45, abs=12)  # bins are 20 degrees wide
    assert not picture[:15, 45:].any()


def test_a_diagonal_gradient_gives_the_other_diagonal():
    # Bin 0 of 2 has its centre at 45 degrees, towards the lower right; its edge climbs.
    picture = hog_glyphs(one_direction(0, 2), 5)
    assert (np.fliplr(picture).diagonal()[1:4] == 255).all()
    assert not picture[0, 0]
    assert not picture[4, 4]
    assert not picture[1, 1]


def test_cells_stand_where_they_belong_and_do_not_touch():
    strengths = np.zeros((2, 3, 9))
    strengths[1, 2, 4] = 0.3
    picture = hog_glyphs(strengths, 8)
    assert picture.shape == (16, 24)
    assert picture.dtype == np.uint8
    assert picture[8:, 16:].max() > 0
    picture[8:, 16:] = 0
    assert not picture.any()


def test_brightness_follows_strength_and_the_brighter_stroke_wins():
    strengths = np.concatenate([one_direction(1), one_direction(1, strength=0.5)], axis=1)
    picture = hog_glyphs(strengths, 9).astype(int)
    np.testing.assert_allclose(picture[:, 9:], picture[:, :9] / 2, atol=1)
    both = one_direction(0) + one_direction(2, strength=0.5)
    alone = [hog_glyphs(one_direction(0), 9), hog_glyphs(one_direction(2), 9) / 2]
    np.testing.assert_allclose(hog_glyphs(both, 9), np.maximum(*alone), atol=1)


def test_without_edges_all_is_black():
    assert not hog_glyphs(np.zeros((2, 2, 9)), 8).any()


def test_float32_is_taken_and_left_as_it_is():
    strengths = np.random.default_rng(0).random((3, 4, 9)).astype(np.float32)
    before = strengths.copy()
    picture = hog_glyphs(strengths)
    assert picture.shape == (48, 64)
    assert picture.max() > 240
    np.testing.assert_array_equal(strengths, before)


@pytest.mark.parametrize(
    "strengths",
    [np.zeros((3, 9)), np.full((1, 1, 9), -0.1), np.full((1, 1, 9), np.nan)],
)
def test_what_are_no_strengths_is_refused(strengths):
    with pytest.raises(InputError, match=re.escape(f"but these are of shape {strengths.shape}")):
        hog_glyphs(strengths)


def tiles_of(number, height=2, width=3):
    return np.random.default_rng(1).integers(0, 255, (number, height, width, 3), dtype=np.uint8)


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 3))
def test_a_sheet_agrees_with_plain_loops(number, columns, gap):
    tiles = tiles_of(number)
    across = min(number, columns)
    down = -(-number // across)
    expected = np.full((down * (2 + gap) - gap, across * (3 + gap) - gap, 3), 255, dtype=np.uint8)
    for place in range(number):
        top, left = place // across * (2 + gap), place % across * (3 + gap)
        for row in range(2):
            for column in range(3):
                expected[top + row, left + column] = tiles[place, row, column]
    np.testing.assert_array_equal(tile_sheet(tiles, columns, gap), expected)


@pytest.mark.parametrize(
    "tiles",
    [
        tiles_of(0),
        tiles_of(2)[..., 0],
        tiles_of(2).astype(float),
        np.zeros((2, 2, 2, 1), np.uint8),
    ],
)
def test_what_are_no_tiles_is_refused(tiles):
    message = f"at least one, but got {tiles.dtype} of shape {tiles.shape}."
    with pytest.raises(InputError, match=re.escape(message)):
        tile_sheet(tiles, 2)


def test_a_sheet_needs_a_column():
    with pytest.raises(InputError, match="a sheet of 0 columns has no room"):
        tile_sheet(tiles_of(2), 0)


def test_templates_have_the_weights_in_the_order_of_pixels():
    # Two classes and a third without weights, 1x2 pixels of three channels.
    kernel = np.array(
        [[1, 0, 0], [-2, 0, 0], [0.5, 4, 0], [2, 0, 0], [0, -1, 0], [-0.5, 0, 0]], dtype=float
    )
    expected = [
        [[[192, 1, 160], [255, 128, 96]]],  # 127 / 2 and 127 / 4, rounded
        [[[128, 128, 255], [128, 96, 128]]],
        [[[128, 128, 128], [128, 128, 128]]],
    ]
    templates = class_templates(kernel, (1, 2))
    assert templates.dtype == np.uint8
    np.testing.assert_array_equal(templates, expected)


@given(st.floats(1e-6, 1e6))
def test_the_scale_of_the_weights_does_not_matter(factor):
    kernel = np.random.default_rng(2).normal(size=(12, 4))
    same = class_templates(kernel * factor, (2, 2)).astype(int)
    np.testing.assert_allclose(same, class_templates(kernel, (2, 2)), atol=1)


def test_a_single_column_gives_its_negative_and_itself():
    kernel = np.random.default_rng(3).normal(size=(12, 1))
    against, favour = class_templates(kernel, (2, 2))
    np.testing.assert_array_equal(favour, class_templates(np.hstack([kernel] * 2), (2, 2))[0])
    np.testing.assert_array_equal(against.astype(int) - 128, 128 - favour.astype(int))


def test_grey_weights_become_grey_pictures():
    kernel = np.array([[1.0, 0.0], [-1.0, 3.0], [0.0, 3.0], [0.5, -3.0]])
    templates = class_templates(kernel, (2, 2))
    assert templates.shape == (2, 2, 2, 3)
    assert (templates == templates[..., :1]).all()
    np.testing.assert_array_equal(templates[1, ..., 0], [[128, 255], [255, 1]])


@pytest.mark.parametrize("shape", [(12,), (11, 2), (8, 2), (24, 2), (0, 2)])
def test_as_many_weights_as_pixels_are_needed(shape):
    message = (
        "templates of 2x2 pixels need 4 weights per class, or 12 in colour, but the weights are "
        f"of shape {shape}."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        class_templates(np.zeros(shape), (2, 2))
