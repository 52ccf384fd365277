import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier

from cvpipe.errors import InputError
from cvpipe.features.raw_pixels import RawPixels


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
        expected = images[number, row, column, channel] / 255
        assert rows[number, (row * 4 + column) * 3 + channel] == pytest.approx(expected, rel=1e-6)


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


def test_rows_do_not_depend_on_their_neighbours():
    images = noise(3, 8, 4)
    together = RawPixels().fit_transform(images)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(RawPixels().fit_transform(image[None])[0], row)
    # A view, such as a mirrored one, is read as what it shows.
    mirrored = images[:, :, ::-1]
    rows = RawPixels().fit_transform(mirrored)
    np.testing.assert_array_equal(rows, RawPixels().fit_transform(mirrored.copy()))


def test_no_images():
    raw_pixels = RawPixels().fit(noise(1, 4, 2))
    rows = raw_pixels.transform(noise(0, 4, 2))
    assert rows.shape == (0, 24)
    assert rows.dtype == np.float32


def test_scikit_learn_conventions():
    raw_pixels = RawPixels()
    assert raw_pixels.get_params() == {}
    assert raw_pixels.fit(noise(1, 4, 2), [1]) is raw_pixels
    with pytest.raises(NotFittedError):
        clone(raw_pixels).transform(noise(1, 4, 2))


def test_another_size_than_fitted():
    raw_pixels = RawPixels().fit(noise(1, 32, 16))
    message = (
        r"^raw pixels were fitted on images of size \(32, 16\), but these are \(16, 32\); "
        r"resize them\.$"
    )
    with pytest.raises(InputError, match=message):
        raw_pixels.transform(noise(1, 16, 32))
