import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier

from cvpipe.errors import InputError
from cvpipe.features.raw_pixels import RawPixels, to_unit_length

ALL_SETTINGS = [
    {"colour": colour, "normalise": normalise}
    for colour in ("colour", "grey")
    for normalise in ("none", "unit")
]


def noise(num_images: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)


def test_values_and_their_order():
    images = np.array([[[[0, 51, 102]], [[153, 204, 255]]]], np.uint8)  # 2 high, 1 wide
    rows = RawPixels().fit_transform(images)
    np.testing.assert_allclose(rows, [[0, 0.2, 0.4, 0.6, 0.8, 1]], rtol=1e-6)
    assert rows.dtype == np.float32


def test_every_pixel_has_its_place():
    images = noise(3, 5, 4)
    raw_pixels = RawPixels().fit(images)
    rows = raw_pixels.transform(images)
    assert rows.shape == (3, 60)
    assert raw_pixels.n_features_out_ == 60
    for number, row, column, channel in np.ndindex(images.shape):
        # The quotient in float32 exactly: rows that were kept stay valid.
        expected = np.float32(images[number, row, column, channel]) / np.float32(255)
        assert rows[number, (row * 4 + column) * 3 + channel] == expected


def test_nothing_is_lost_and_the_images_stay_as_they_were():
    images = noise(2, 16, 16)
    before = images.copy()
    rows = RawPixels().fit_transform(images)
    assert 0 <= rows.min() < rows.max() <= 1
    np.testing.assert_array_equal(np.rint(rows * 255).reshape(images.shape), before)
    np.testing.assert_array_equal(images, before)


def test_distances_are_those_of_the_pixels():
    images = noise(6, 8, 4)
    rows = RawPixels().fit_transform(images)
    # float first: differences of uint8 would wrap around
    pixels = images.astype(float)
    for one, other in np.ndindex(6, 6):
        expected = ((pixels[one] - pixels[other]) ** 2).sum() ** 0.5 / 255
        assert np.linalg.norm(rows[one] - rows[other]) == pytest.approx(expected, rel=1e-5)
    nearest = KNeighborsClassifier(1).fit(rows, range(6))
    slightly_darker = (images * 0.9).astype(np.uint8)
    assert nearest.predict(RawPixels().fit_transform(slightly_darker)).tolist() == [*range(6)]


def test_grey():
    images = noise(2, 5, 4)
    rows = RawPixels(colour="grey").fit_transform(images)
    assert rows.shape == (2, 20)
    luma = images @ [0.299, 0.587, 0.114]  # of ITU-R BT.601
    np.testing.assert_allclose(rows * 255, luma.reshape(2, 20), atol=0.51)
    np.testing.assert_array_equal(
        np.rint(rows[1] * 255), cv2.cvtColor(images[1], cv2.COLOR_RGB2GRAY).ravel()
    )


# By hand: 0, 0, 0, 4 have mean 1 and differ from it by -1, -1, -1, 3, of length sqrt(12).


def test_unit_length_by_hand():
    expected = np.array([-1, -1, -1, 3]) / 12**0.5
    unit = to_unit_length(np.array([0, 0, 0, 4], np.uint8))
    np.testing.assert_allclose(unit, expected, rtol=1e-6)
    # The same for all that have the same shape, at any brightness and contrast.
    for same in ([250, 250, 250, 254], [9, 9, 9, 90]):
        np.testing.assert_allclose(to_unit_length(np.array(same, np.uint8)), expected, rtol=1e-6)
    image = np.array([0, 0, 0, 4], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
    rows = RawPixels(colour="grey", normalise="unit").fit_transform(image)
    np.testing.assert_allclose(rows, [expected], rtol=1e-6)


def test_colours_are_normalised_together():
    images = noise(3, 6, 4)
    images[:, :, :, 0] //= 4  # so that means per channel would differ
    rows = RawPixels(normalise="unit").fit_transform(images)
    values = images.reshape(3, -1).astype(float)
    centred = values - values.mean(axis=1, keepdims=True)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected, atol=1e-7)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300))
def test_mean_zero_and_length_one(values):
    unit = to_unit_length(np.array(values, np.uint8))
    assert unit.dtype == np.float32
    assert abs(unit.astype(float).mean()) < 1e-7
    length = float(np.linalg.norm(unit.astype(float)))
    assert length == (pytest.approx(1, abs=1e-6) if len(set(values)) > 1 else 0)


def test_distance_of_unit_rows_is_their_correlation():
    rows = RawPixels(normalise="unit").fit_transform(noise(2, 8, 8))
    correlation = np.corrcoef(*noise(2, 8, 8).reshape(2, -1))[0, 1]
    assert ((rows[0] - rows[1]) ** 2).sum() == pytest.approx(2 - 2 * correlation, rel=1e-5)


@pytest.mark.parametrize("level", [0, 1, 127, 255])
@pytest.mark.parametrize("colour", ["colour", "grey"])
def test_an_even_image_becomes_zeros(level, colour):
    images = np.full((2, 7, 5, 3), level, np.uint8)
    rows = RawPixels(colour=colour, normalise="unit").fit_transform(images)
    assert not rows.any()


def test_a_large_image_does_not_overflow():
    values = np.zeros(1024 * 1024 * 3, np.uint8)
    values[::2] = 255
    unit = to_unit_length(values)
    np.testing.assert_allclose(unit[:2] * len(values) ** 0.5, [1, -1], rtol=1e-6)


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_rows_do_not_depend_on_their_neighbours(settings):
    images = noise(3, 8, 4)
    raw_pixels = RawPixels(**settings).fit(images)
    together = raw_pixels.transform(images)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(raw_pixels.transform(image[None])[0], row)
    # A view, such as a mirrored one, is read as what it shows.
    for view in (images[:, :, ::-1], images[..., ::-1], images[::-1], images[:, ::-1]):
        rows = raw_pixels.transform(view)
        np.testing.assert_array_equal(rows, raw_pixels.transform(view.copy()))


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_no_images(settings):
    raw_pixels = RawPixels(**settings).fit(noise(1, 4, 2))
    rows = raw_pixels.transform(noise(0, 4, 2))
    assert rows.shape == (0, 8 if settings["colour"] == "grey" else 24)
    assert rows.dtype == np.float32


def test_one_pixel():
    image = np.array([51, 102, 153], np.uint8).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(RawPixels().fit_transform(image), [[0.2, 0.4, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(
        RawPixels(normalise="unit").fit_transform(image), [[-(0.5**0.5), 0, 0.5**0.5]], rtol=1e-6
    )
    assert not RawPixels(colour="grey", normalise="unit").fit_transform(image).any()


def test_scikit_learn_conventions():
    raw_pixels = RawPixels()
    assert raw_pixels.get_params() == {"colour": "colour", "normalise": "none"}
    assert raw_pixels.fit(noise(1, 4, 2), [1]) is raw_pixels
    assert not raw_pixels.learns
    with pytest.raises(NotFittedError):
        clone(raw_pixels).transform(noise(1, 4, 2))


def test_another_size_than_fitted():
    raw_pixels = RawPixels().fit(noise(1, 32, 16))
    message = (
        r"^the raw-pixel feature was fitted on images of size \(32, 16\), but these are "
        r"\(16, 32\); resize them\.$"
    )
    with pytest.raises(InputError, match=message):
        raw_pixels.transform(noise(1, 16, 32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"colour": "rgb"},
            r"^colour of the raw-pixel feature is 'rgb'; choose one of \['grey', 'colour'\]\.$",
        ),
        (
            {"normalise": True},
            r"^normalise of the raw-pixel feature is True; choose one of \['none', 'unit'\]\.$",
        ),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(InputError, match=message):
        RawPixels(**settings).fit(noise(1, 4, 2))
