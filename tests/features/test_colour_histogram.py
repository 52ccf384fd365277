import colorsys

import cv2
import numpy as np
import pytest
import skimage.data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvpipe.errors import InputError
from cvpipe.features.colour_histogram import ColourHistogram, count_levels

RED, GREEN, BLUE, GREY, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (100, 100, 100),
    (255, 255, 255),
    (0, 0, 0),
)


def describe(images, num_bins=32) -> np.ndarray:
    """Describe images as one histogram per channel: `(n, 3, num_bins)`."""
    rows = ColourHistogram(num_bins).fit_transform(images)
    return rows.reshape(len(images), 3, num_bins)


def picture(*pixels) -> np.ndarray:
    """Make a batch of one image that is one pixel wide."""
    return np.array(pixels, np.uint8)[None, :, None]


def photos() -> np.ndarray:
    """Four pictures, higher than wide: three photos and noise of all colours."""
    cuts = [getattr(skimage.data, name)()[50:146, 80:144] for name in ("chelsea", "coffee")]
    dark = skimage.data.astronaut()[:96, :64] // 3
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    return np.stack([*cuts, dark, noise])


# By hand. With 32 bins of 8 levels, level 255 is in bin 31 and level 100 in bin 12. Hue goes
# round once in 256 levels: red 0, green 85 (bin 10), blue 171 (bin 21).


def filled(**shares) -> np.ndarray:
    """Make the three histograms from the shares in the bins: `hue={0: 1}`."""
    expected = np.zeros((3, 32))
    for channel, name in enumerate(("hue", "saturation", "value")):
        for position, share in shares[name].items():
            expected[channel, position] = share
    return expected


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        ([RED] * 4, filled(hue={0: 1}, saturation={31: 1}, value={31: 1})),
        ([GREY] * 4, filled(hue={}, saturation={0: 1}, value={12: 1})),
        ([WHITE], filled(hue={}, saturation={0: 1}, value={31: 1})),
        ([BLACK], filled(hue={}, saturation={0: 1}, value={0: 1})),
        (
            [RED, GREY],
            filled(hue={0: 0.5}, saturation={0: 0.5, 31: 0.5}, value={12: 0.5, 31: 0.5}),
        ),
        (
            [RED, GREEN, BLUE, BLUE],
            filled(hue={0: 0.25, 10: 0.25, 21: 0.5}, saturation={31: 1}, value={31: 1}),
        ),
        # Half as bright a green is as saturated; a green paled by half is not: (255 - 127) / 255.
        ([(0, 128, 0)], filled(hue={10: 1}, saturation={31: 1}, value={16: 1})),
        ([(127, 255, 127)], filled(hue={10: 128 / 255}, saturation={16: 1}, value={31: 1})),
        # The bins cut the circle of hues at red: a little blue in it leads to the other end.
        ([(255, 0, 6)], filled(hue={31: 1}, saturation={31: 1}, value={31: 1})),
    ],
)
def test_by_hand(pixels, expected):
    np.testing.assert_allclose(describe(picture(*pixels))[0], expected, rtol=1e-6)


def test_the_order_of_the_channels_is_rgb():
    hue = describe(np.concatenate([picture(RED), picture(BLUE)]))[:, 0]
    assert hue.argmax(axis=1).tolist() == [0, 21]


def slow_histogram(image: np.ndarray, num_bins: int) -> np.ndarray:
    """Count pixel by pixel what the docstring says."""
    counts = np.zeros((3, num_bins))
    width = 256 // num_bins
    for pixel in cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL).reshape(-1, 3).tolist():
        hue, saturation, value = pixel
        counts[0, hue // width] += saturation / 255
        counts[1, saturation // width] += 1
        counts[2, value // width] += 1
    return counts / (image.shape[0] * image.shape[1])


@pytest.mark.parametrize("num_bins", [1, 2, 32, 256])
def test_equal_to_a_slow_reference(num_bins):
    images = photos()
    rows = ColourHistogram(num_bins).fit_transform(images)
    assert rows.shape == (4, 3 * num_bins)
    assert rows.dtype == np.float32
    for image, row in zip(images, rows, strict=True):
        expected = slow_histogram(image, num_bins).ravel()
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-9)


def test_close_to_colorsys():
    """Levels at most one apart: an independent reference without OpenCV's 8 bits.

    OpenCV rounds the exact values to whole levels (half a level off) with divisions from a
    table of fixed-point numbers (a little more for hues): 0.61 levels at most over 300,000
    random colours. An error in the order of channels or the range is many levels.
    """
    colours = np.random.default_rng(0).integers(0, 256, (2000, 3))
    histograms = describe(picture(*colours).transpose(1, 0, 2, 3), num_bins=256)
    levels = histograms.argmax(axis=2)
    for colour, level, histogram in zip(colours, levels, histograms, strict=True):
        hue, saturation, value = (256, 255, 255) * np.array(colorsys.rgb_to_hsv(*(colour / 255)))
        assert np.abs(level[1:] - [saturation, value]).max() <= 0.7
        if saturation > 0:
            assert abs((level[0] - hue + 128) % 256 - 128) <= 0.7  # on the circle
        assert histogram[0].sum() == pytest.approx(saturation / 255, abs=0.7 / 255)
        assert np.count_nonzero(histogram, axis=1).tolist() == [saturation > 0, 1, 1]


def test_sums():
    images = photos()
    hue, saturation, value = describe(images).sum(axis=2).T
    np.testing.assert_allclose(saturation, 1, rtol=1e-5)
    np.testing.assert_allclose(value, 1, rtol=1e-5)
    mean_saturation = [
        np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in (image / 255).reshape(-1, 3)])
        for image in images
    ]
    np.testing.assert_allclose(hue, mean_saturation, atol=0.7 / 255)
    assert 0 < hue.min() < hue.max() < 1


def test_the_place_of_a_pixel_does_not_matter():
    images = photos()
    rows = describe(images)
    for same in (images[:, :, ::-1], images[:, ::-1], images.transpose(0, 2, 1, 3)):
        np.testing.assert_array_equal(describe(same), rows)
    shuffled = images.reshape(4, -1, 3).copy()
    np.random.default_rng(1).shuffle(shuffled, axis=1)
    np.testing.assert_array_equal(describe(shuffled.reshape(images.shape)), rows)
    # The size neither: every pixel four times.
    np.testing.assert_array_equal(describe(images.repeat(2, axis=1).repeat(2, axis=2)), rows)
    # Not because nothing matters:
    assert np.abs(describe(255 - images) - rows).max() > 0.1
    assert np.abs(describe(images[..., ::-1]) - rows)[:, 0].max() > 0.1


def test_rows_do_not_depend_on_their_neighbours():
    images = photos()
    together = describe(images)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(describe(image[None])[0], row)
    assert len(np.unique(together, axis=0)) == 4


def test_no_images():
    rows = ColourHistogram().fit(photos()).transform(np.zeros((0, 8, 4, 3), np.uint8))
    assert rows.shape == (0, 96)
    assert rows.dtype == np.float32


def test_count_levels():
    levels = np.array([[0, 63, 64, 255], [127, 128, 128, 192]], np.uint8)
    assert count_levels(levels, 4).tolist() == [[2, 1, 0, 1], [0, 1, 2, 1]]
    weights = np.array([[1, 2, 3, 4], [0, 200, 200, 0]], np.uint8)
    assert count_levels(levels, 4, weights).tolist() == [[3, 3, 0, 4], [0, 0, 400, 0]]


def test_scikit_learn_conventions():
    histogram = ColourHistogram(num_bins=8)
    assert histogram.get_params() == {"num_bins": 8}
    assert ColourHistogram().get_params() == {"num_bins": 32}
    assert histogram.fit(picture(RED), [1]) is histogram
    assert histogram.n_features_out_ == 24
    copy = clone(histogram)
    assert copy.get_params() == histogram.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(picture(RED))


@pytest.mark.parametrize("num_bins", [-1, 0, 3, 30, 255, 512, 1.5])
def test_bins_of_unequal_width(num_bins):
    message = (
        r"^a colour histogram needs a number of bins that divides 256 levels, but num_bins is "
        rf"{num_bins}; choose one of \[1, 2, 4, 8, 16, 32, 64, 128, 256\]\.$"
    )
    with pytest.raises(InputError, match=message):
        ColourHistogram(num_bins).fit(picture(RED))


@pytest.mark.parametrize("num_bins", [2**power for power in range(9)])
def test_every_number_of_bins_that_divides_the_levels(num_bins):
    assert describe(picture(WHITE), num_bins)[0, 2].tolist() == [0] * (num_bins - 1) + [1]
