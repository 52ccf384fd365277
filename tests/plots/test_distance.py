import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.plots.distance import (
    DISTORTIONS,
    TOLERANCE,
    equal_distance_versions,
    l2_distance,
)

NAMES = [distortion.name for distortion in DISTORTIONS]
CHANGES = {distortion.name: distortion.apply for distortion in DISTORTIONS}


def noise(height=32, width=32, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def smooth(height=24, width=40):
    down, across = np.mgrid[0:height, 0:width]
    channels = (4 * down + across, 200 - 3 * down, 90 + 2 * across)
    return np.stack([np.clip(c, 0, 255) for c in channels], axis=2).astype(np.uint8)


def test_the_distance_is_euclidean_over_all_values():
    first = np.zeros((1, 2, 3), dtype=np.uint8)
    second = first.copy()
    second[0, 0, 0], second[0, 1, 2] = 3, 4
    assert l2_distance(first, second) == l2_distance(second, first) == 5
    assert l2_distance(first, np.full_like(first, 255)) == pytest.approx(255 * 6**0.5)


@pytest.mark.parametrize("image", [noise(), smooth(), smooth(40, 24), smooth(17, 9)])
@pytest.mark.parametrize("distance", [None, 200.0])
def test_all_versions_are_at_one_distance(image, distance):
    before = image.copy()
    versions = equal_distance_versions(image, distance)
    assert [version.name for version in versions] == NAMES
    target = distance or versions[0].distance
    for version in versions:
        assert version.picture.shape == image.shape
        assert version.picture.dtype == np.uint8
        assert version.distance == l2_distance(image, version.picture)
        assert version.distance == pytest.approx(target, rel=2 * TOLERANCE)
        if distance:
            assert abs(version.distance - target) <= TOLERANCE * target
    pictures = {version.picture.tobytes() for version in versions}
    assert len(pictures) == len(NAMES)
    np.testing.assert_array_equal(image, before)


@given(st.integers(6, 20), st.integers(6, 20), st.integers(0, 2**32 - 1), st.floats(100.0, 900.0))
@settings(max_examples=20, deadline=None)
def test_what_is_returned_is_within_the_tolerance(height, width, seed, distance):
    image = noise(height, width, seed)
    versions = equal_distance_versions(image, distance)
    assert versions
    for version in versions:
        assert abs(l2_distance(image, version.picture) - distance) <= TOLERANCE * distance


def test_equal_images_give_equal_versions_whatever_their_memory():
    image = noise()
    first = equal_distance_versions(image)
    wide = np.zeros((32, 64, 3), dtype=np.uint8)
    wide[:, ::2] = image
    for one, other in zip(first, equal_distance_versions(wide[:, ::2]), strict=True):
        np.testing.assert_array_equal(one.picture, other.picture)


@pytest.mark.parametrize(
    ("colour", "missing"),
    [
        ((0, 0, 0), {"shifted", "darker"}),
        ((255, 255, 255), {"shifted"}),
        ((100, 100, 100), {"shifted"}),
        ((0, 0, 255), {"shifted", "tinted"}),
    ],
)
def test_what_cannot_change_an_image_is_left_out(colour, missing):
    image = np.full((20, 24, 3), colour, dtype=np.uint8)
    assert {version.name for version in equal_distance_versions(image)} == set(NAMES) - missing


def test_what_cannot_reach_the_distance_is_left_out():
    image = np.full((20, 24, 3), 100, dtype=np.uint8)
    farthest = 100 * image.size**0.5  # black
    names = [version.name for version in equal_distance_versions(image, 1.02 * farthest)]
    assert "darker" not in names
    assert "a box over it" in names


def test_a_single_pixel_has_versions():
    versions = equal_distance_versions(np.full((1, 1, 3), 100, dtype=np.uint8))
    assert versions
    assert all(version.picture.shape == (1, 1, 3) for version in versions)


@pytest.mark.parametrize("name", NAMES)
def test_no_strength_changes_nothing(name):
    for image in (noise().astype(float), smooth(17, 9).astype(float)):
        np.testing.assert_array_equal(CHANGES[name](image, 0.0), image)


def test_a_shift_moves_to_the_right_and_down_and_draws_the_border_out():
    image = smooth(8, 10).astype(float)
    moved = CHANGES["shifted"](image, 0.5)  # half of half the shorter side: 2 pixels
    np.testing.assert_array_equal(moved[2:, 2:], image[:-2, :-2])
    np.testing.assert_array_equal(moved[:3, :3], np.broadcast_to(image[0, 0], (3, 3, 3)))
    between = CHANGES["shifted"](image, 0.125)  # half a pixel
    expected = (image[1:, 1:] + image[:-1, 1:] + image[1:, :-1] + image[:-1, :-1]) / 4
    np.testing.assert_allclose(between[1:, 1:], expected)


@pytest.mark.parametrize(("value", "colour"), [(200, 0), (20, 255)])
def test_a_box_is_black_or_on_dark_images_white(value, colour):
    image = np.full((8, 6, 3), float(value))
    boxed = CHANGES["a box over it"](image, 0.5)  # 4 of 8 lines, 3 of 6 columns
    expected = image.copy()
    expected[2:6, 2:4] = colour
    for column in (1, 4):  # half covered
        expected[2:6, column] = (value + colour) / 2
    np.testing.assert_allclose(boxed, expected)
    assert (CHANGES["a box over it"](image, 1.0) == colour).all()


def test_a_box_grows_from_nothing_on_odd_sides():
    image = np.full((5, 5, 3), 200.0)
    shares = [1 - CHANGES["a box over it"](image, s).sum() / image.sum() for s in (0, 0.02, 0.5, 1)]
    np.testing.assert_allclose(shares, [0, 0.02**2, 0.25, 1], atol=1e-12)


def test_tint_and_darkness():
    image = np.full((1, 1, 3), 100.0)
    assert CHANGES["tinted"](image, 0.2).ravel().tolist() == [49, 74.5, 151]
    assert CHANGES["darker"](image, 0.25).ravel().tolist() == [75, 75, 75]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(image):
    message = f"not of {image.dtype} of shape {image.shape}; decode it as RGB first."
    with pytest.raises(InputError, match=re.escape(message)):
        equal_distance_versions(image)


@pytest.mark.parametrize("distance", [0.0, -3.0, float("nan")])
def test_a_distance_must_be_above_zero(distance):
    message = f"the distance of the versions is {distance!r}; give one above 0, or none."
    with pytest.raises(InputError, match=re.escape(message)):
        equal_distance_versions(noise(), distance)
