import colorsys

import cv2
import numpy as np
import pytest
import skimage.color
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvpipe.errors import InputError
from cvpipe.features.colour_histogram import (
    SPACES,
    ColourHistogram,
    convert_colours,
    count_levels,
)
from cvpipe.features.grid import grid_cells

RED, GREEN, BLUE, GREY, WHITE, BLACK = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (100, 100, 100),
    (255, 255, 255),
    (0, 0, 0),
)


# Every way to count, with few bins.
ALL_SETTINGS = [
    {"space": space, "joint": joint, "num_bins": 8, "grid": grid, "square_root": square_root}
    for space in SPACES
    for joint in (False, True)
    for grid in (1, 3)
    for square_root in (False, True)
    if not (space == "hue" and joint)
]


def describe(images, num_bins=32) -> np.ndarray:
    """Describe images as one histogram per channel: `(n, 3, num_bins)`."""
    rows = ColourHistogram(num_bins).fit_transform(images)
    return rows.reshape(len(images), 3, num_bins)


def describe_one(image, **settings) -> np.ndarray:
    """Describe one image."""
    return ColourHistogram(**settings).fit_transform(image[None])[0]


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


def slow_histogram(image, num_bins, space="hsv", joint=False, grid=1, square_root=False):
    """Count pixel by pixel what the docstring says."""
    if space != "rgb":
        code = cv2.COLOR_RGB2LAB if space == "lab" else cv2.COLOR_RGB2HSV_FULL
        image = cv2.cvtColor(image.copy(), code)
    height, width = image.shape[:2]
    size = num_bins**3 if joint else num_bins if space == "hue" else 3 * num_bins
    counts = np.zeros((grid, grid, size))
    areas = np.zeros((grid, grid, 1))
    row_borders, column_borders = (
        [(2 * number * side + grid) // (2 * grid) for number in range(1, grid)]
        for side in (height, width)
    )
    for row, column in np.ndindex(height, width):
        pixel = image[row, column].tolist()
        cell = (
            sum(border <= row for border in row_borders),
            sum(border <= column for border in column_borders),
        )
        areas[cell] += 1
        first, second, third = (level * num_bins // 256 for level in pixel)
        if joint:
            counts[cell][(first * num_bins + second) * num_bins + third] += 1
        elif space == "hue":
            counts[cell][first] += pixel[1] > 0
        else:
            counts[cell][first] += pixel[1] / 255 if space == "hsv" else 1
            counts[cell][num_bins + second] += 1
            counts[cell][2 * num_bins + third] += 1
    shares = (counts / areas).ravel()
    return np.sqrt(shares) if square_root else shares


@pytest.mark.parametrize("num_bins", [1, 2, 32, 256])
def test_equal_to_a_slow_reference(num_bins):
    images = photos()
    rows = ColourHistogram(num_bins).fit_transform(images)
    assert rows.shape == (4, 3 * num_bins)
    assert rows.dtype == np.float32
    for image, row in zip(images, rows, strict=True):
        expected = slow_histogram(image, num_bins)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_every_setting_is_equal_to_a_slow_reference(settings):
    for image in photos()[[0, 3], :31, :23]:  # sides that are no multiples of the grid
        row = describe_one(image, **settings)
        np.testing.assert_allclose(row, slow_histogram(image, **settings), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_bins", [1, 16, 32, 256])
def test_the_default_way_of_counting_is_exact(num_bins):
    """Rows that were kept stay valid: each is a quotient of whole numbers, rounded twice."""
    images = photos()
    for image, row in zip(images, ColourHistogram(num_bins).fit_transform(images), strict=True):
        pixels = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL).reshape(-1, 3).astype(np.int64)
        hue, saturation, value = (pixels * num_bins // 256).T
        counts = [
            np.bincount(hue, weights=pixels[:, 1], minlength=num_bins) / 255,
            np.bincount(saturation, minlength=num_bins),
            np.bincount(value, minlength=num_bins),
        ]
        expected = (np.concatenate(counts) / len(pixels)).astype(np.float32)
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("space", ["hsv", "lab", "rgb"])
@pytest.mark.parametrize("num_bins", [1, 8, 16])
def test_joint_histogram_equals_that_of_numpy(space, num_bins):
    images = photos()
    rows = ColourHistogram(num_bins, space=space, joint=True).fit_transform(images)
    for image, row in zip(images, rows, strict=True):
        pixels = convert_colours(image, space).reshape(-1, 3)
        counts, _ = np.histogramdd(pixels, bins=[num_bins] * 3, range=[(0, 256)] * 3)
        np.testing.assert_array_equal(row, (counts.ravel() / len(pixels)).astype(np.float32))


def test_joint_by_hand():
    # With 2 bins per channel, red is at (1, 0, 0), number 4; white at (1, 1, 1), number 7.
    row = describe_one(picture(RED, RED, WHITE, BLACK)[0], num_bins=2, space="rgb", joint=True)
    assert row.tolist() == [0.25, 0, 0, 0, 0.5, 0, 0, 0.25]
    # In HSV pure blue has hue 171, saturation 255, value 255, and black nothing of any.
    row = describe_one(picture(BLUE, BLACK)[0], num_bins=4, space="hsv", joint=True)
    assert {number: row[number] for number in row.nonzero()[0]} == {0: 0.5, 2 * 16 + 15: 0.5}


def test_only_joint_bins_tell_combinations_apart():
    light_red, dark_blue = (255, 128, 128), (0, 0, 128)
    light_blue, dark_red = (128, 128, 255), (128, 0, 0)
    one, other = picture(light_red, dark_blue)[0], picture(light_blue, dark_red)[0]
    for num_bins in (2, 4, 8):
        settings = {"num_bins": num_bins, "space": "hsv"}
        joint = (
            describe_one(one, **settings, joint=True),
            describe_one(other, **settings, joint=True),
        )
        assert np.abs(joint[0] - joint[1]).sum() == 2
        each = describe_one(one, **settings)[num_bins:], describe_one(other, **settings)[num_bins:]
        np.testing.assert_array_equal(*each)


def test_hues_of_the_lecture():
    # One per pixel, however pale, but none for grey, white and black.
    pale_green = (200, 202, 200)
    pixels = picture(RED, pale_green, GREEN, GREY, WHITE, BLACK, BLUE, BLUE)[0]
    row = describe_one(pixels, space="hue")
    expected = np.zeros(32)
    expected[[0, 10, 21]] = 1 / 8, 2 / 8, 2 / 8
    assert row.tolist() == expected.tolist()


def test_lab_is_close_to_that_of_scikit_image():
    """Levels at most one apart, as OpenCV works with 8 bits and interpolates."""
    colours = np.random.default_rng(0).integers(0, 256, (2000, 3), dtype=np.uint8)
    histograms = ColourHistogram(256, space="lab").fit_transform(colours[:, None, None])
    levels = histograms.reshape(2000, 3, 256).argmax(axis=2)
    exact = skimage.color.rgb2lab(colours) * [2.55, 1, 1] + [0, 128, 128]
    assert np.abs(levels - exact).max() <= 1.5


def test_rgb_levels():
    row = describe_one(picture((0, 100, 255))[0], space="rgb", num_bins=256).reshape(3, 256)
    assert row.argmax(axis=1).tolist() == [0, 100, 255]
    assert row.max(axis=1).tolist() == [1, 1, 1]


def test_grid_by_hand():
    # 3 rows: borders 0, 2, 3; 2 columns.
    image = np.array([[RED, GREEN], [RED, BLUE], [BLUE, BLUE]], np.uint8)
    rows = describe_one(image, space="rgb", joint=True, num_bins=2, grid=2).reshape(4, 8)
    red, green, blue = np.eye(8)[[4, 2, 1]]
    np.testing.assert_array_equal(rows, [red, (green + blue) / 2, blue, blue])


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_a_cell_is_described_as_an_image_of_its_own(settings):
    for image in photos()[[1, 3], :50, :33]:
        cells = describe_one(image, **settings).reshape(settings["grid"] ** 2, -1)
        for row, cell in zip(cells, grid_cells((50, 33), settings["grid"]), strict=True):
            alone = describe_one(image[cell], **settings | {"grid": 1})
            np.testing.assert_array_equal(row, alone)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.data())
def test_sums_over_cells(seed, height, width, data):
    grid = data.draw(st.integers(1, min(height, width)))
    settings = data.draw(st.sampled_from(ALL_SETTINGS)) | {"square_root": False}
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cells = describe_one(image, **settings | {"grid": grid}).reshape(grid**2, -1)
    if settings["space"] != "hue" and not (settings["space"] == "hsv" and not settings["joint"]):
        np.testing.assert_allclose(cells.sum(axis=1), 1 if settings["joint"] else 3, rtol=1e-5)
    areas = [image[cell][..., 0].size for cell in grid_cells((height, width), grid)]
    whole = describe_one(image, **settings | {"grid": 1})
    np.testing.assert_allclose(np.average(cells, axis=0, weights=areas), whole, atol=1e-6)


def test_square_roots():
    image = photos()[0]
    for space in ("rgb", "lab"):
        shares = describe_one(image, space=space, num_bins=8, grid=2)
        roots = describe_one(image, space=space, num_bins=8, grid=2, square_root=True)
        np.testing.assert_array_equal(roots, np.sqrt(shares))
        np.testing.assert_allclose(np.linalg.norm(roots.reshape(12, 8), axis=1), 1, rtol=1e-5)


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


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_rows_do_not_depend_on_their_neighbours(settings):
    images = photos()[:, ::2, 1::2]
    histogram = ColourHistogram(**settings).fit(images)
    together = histogram.transform(images)
    assert together.shape == (4, histogram.n_features_out_)
    assert together.dtype == np.float32
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(histogram.transform(image[None])[0], row)
    assert len(np.unique(together, axis=0)) >= 3  # two photos have reddish hues only
    for view in (images[:, ::-1], images[:, :, ::-1], images[..., ::-1], images[::-1]):
        np.testing.assert_array_equal(histogram.transform(view), histogram.transform(view.copy()))


def test_no_images():
    rows = ColourHistogram().fit(photos()).transform(np.zeros((0, 96, 64, 3), np.uint8))
    assert rows.shape == (0, 96)
    assert rows.dtype == np.float32


@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_an_image_of_one_pixel(settings):
    row = describe_one(np.array([[RED]], np.uint8), **settings | {"grid": 1})
    num_histograms = 1 if settings["joint"] or settings["space"] == "hue" else 3
    assert sorted(row)[-num_histograms - 1 :] == [0] + [1] * num_histograms


def test_count_levels():
    levels = np.array([[[0, 9], [63, 9], [64, 200], [255, 9]]], np.uint8)
    assert count_levels(levels, {0: 4}).tolist() == [2, 1, 0, 1]
    assert count_levels(levels, {1: 2}).tolist() == [3, 1]
    assert count_levels(levels, {0: 4, 1: 2}).tolist() == [2, 0, 0, 1, 0, 0, 1, 0]
    mask = np.array([[1, 0, 255, 0]], np.uint8)
    assert count_levels(levels, {0: 4}, mask).tolist() == [1, 1, 0, 0]


def test_scikit_learn_conventions():
    histogram = ColourHistogram(num_bins=8)
    defaults = {
        "num_bins": 32,
        "space": "hsv",
        "joint": False,
        "grid": 1,
        "square_root": False,
    }
    assert histogram.get_params() == defaults | {"num_bins": 8}
    assert ColourHistogram().get_params() == defaults
    assert histogram.fit(picture(RED), [1]) is histogram
    assert histogram.n_features_out_ == 24
    assert not histogram.learns
    copy = clone(histogram)
    assert copy.get_params() == histogram.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(picture(RED))


@pytest.mark.parametrize("num_bins", [-1, 0, 3, 30, 255, 512, 1.5])
def test_bins_of_unequal_width(num_bins):
    message = (
        rf"^num_bins of the colour histogram is {num_bins}; "
        r"choose one of \[1, 2, 4, 8, 16, 32, 64, 128, 256\]\.$"
    )
    with pytest.raises(InputError, match=message):
        ColourHistogram(num_bins).fit(picture(RED))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"joint": True},
            r"^num_bins of the colour histogram \(joint\) is 32; "
            r"choose one of \[1, 2, 4, 8, 16\]\.$",
        ),
        (
            {"space": "hls"},
            r"^space of the colour histogram is 'hls'; "
            r"choose one of \['hsv', 'lab', 'rgb', 'hue'\]\.$",
        ),
        (
            {"space": "hue", "joint": True, "num_bins": 8},
            r"^the colour histogram cannot be joint in the space 'hue', which has one channel; "
            r"set joint to false, or choose another space\.$",
        ),
        ({"grid": 3}, r"^grid of the colour histogram is 3; choose one of \[1, 2\]\.$"),
        ({"grid": 0}, r"^grid of the colour histogram is 0; choose one of \[1, 2\]\.$"),
    ],
)
def test_impossible_settings(settings, message):
    images = np.zeros((1, 2, 5, 3), np.uint8)
    with pytest.raises(InputError, match=message):
        ColourHistogram(**settings).fit(images)


@pytest.mark.parametrize("num_bins", [2**power for power in range(9)])
def test_every_number_of_bins_that_divides_the_levels(num_bins):
    assert describe(picture(WHITE), num_bins)[0, 2].tolist() == [0] * (num_bins - 1) + [1]


@pytest.mark.parametrize("num_bins", [1, 2, 4, 8, 16])
def test_every_number_of_joint_bins(num_bins):
    row = describe_one(picture(WHITE)[0], num_bins=num_bins, space="rgb", joint=True)
    assert row.tolist() == [0] * (num_bins**3 - 1) + [1]
