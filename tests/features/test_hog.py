import itertools
import tracemalloc

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.feature import hog as skimage_hog
from sklearn.exceptions import NotFittedError

from cvpipe.errors import InputError
from cvpipe.features import hog as hog_module
from cvpipe.features.hog import (
    BLOCK_NORMS,
    HistogramOfOrientedGradients,
    count_votes,
    find_bins,
    find_gradients,
    find_strengths,
    look_up_bins,
    normalise_blocks,
    share_halves,
    split_channels,
)


def grey(rows) -> np.ndarray:
    """Turn rows of grey values into a batch of one RGB image."""
    return np.repeat(np.asarray(rows, np.uint8)[None, :, :, None], 3, axis=3)


def describe(images, **options) -> np.ndarray:
    return HistogramOfOrientedGradients(**options).fit_transform(images)


def photo(name: str, size: tuple[int, int] = (128, 128)) -> np.ndarray:
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize(size[::-1])
    return np.asarray(image)[None]


def noise(*shape: int, top: int = 255, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top + 1, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("image_size", "options", "expected"),
    [
        ((128, 128), {"cell_pixels": 16}, 7 * 7 * 4 * 9),
        ((128, 64), {}, 3780),  # the number in the paper
        ((32, 48), {}, 3 * 5 * 4 * 9),
        ((48, 32), {"orientations": 6, "soft": True}, 5 * 3 * 4 * 6),
        ((31, 40), {"block_cells": 3}, 1 * 3 * 9 * 9),  # 3 cells and 7 pixels of a fourth
        ((16, 16), {}, 4 * 9),
        ((5, 7), {"cell_pixels": 1, "block_cells": 1}, 5 * 7 * 9),
    ],
)
def test_size(image_size, options, expected):
    hog = HistogramOfOrientedGradients(**options)
    rows = hog.fit_transform(noise(3, *image_size))
    assert hog.n_features_out_ == expected
    assert rows.shape == (3, expected)
    assert rows.dtype == np.float32
    assert 0 <= rows.min() < rows.max() <= 1


# By hand. One block of 2 x 2 cells of 8 pixels with 9 bins of 20 degrees.

ABOVE_BELOW = np.vstack([np.zeros((8, 16)), np.full((8, 16), 200)])


def test_an_edge_between_above_and_below():
    # It points to 90 degrees, in the middle of bin 4, and all four cells see as much of it. Four
    # equal numbers of a vector of length 1 are 1/2, clipped or not.
    [row] = describe(grey(ABOVE_BELOW))
    expected = np.zeros((4, 9))
    expected[:, 4] = 0.5
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=1e-6)


def test_an_edge_between_left_and_right():
    # It points to 0 degrees, where bin 0 begins; from bright to dark to 180, which is the same.
    for image in (ABOVE_BELOW.T, 200 - ABOVE_BELOW.T):
        [row] = describe(grey(image))
        expected = np.zeros((4, 9))
        expected[:, 0] = 0.5
        np.testing.assert_allclose(row.reshape(4, 9), expected, atol=1e-6)


@pytest.mark.parametrize(("turn", "bin_number"), [(1, 2), (-1, 6)])
def test_a_diagonal_ramp(turn, bin_number):
    # Brightness rises by 4 with the row, and rises or falls by 4 with the column: 45 degrees are
    # in bin 2 (40 to 60), 135 in bin 6 (120 to 140). A cell has one corner of the image, where
    # there is no difference, and along each of two borders 7 pixels with one difference of 8.
    rows, columns = np.mgrid[:16, :16]
    [row] = describe(grey(100 + 4 * rows + turn * 4 * columns), block_norm="l1")
    strengths = np.zeros(9)
    strengths[bin_number] = 49 * np.hypot(8, 8)
    strengths[[0, 4]] = 7 * 8
    expected = np.tile(strengths / (4 * strengths.sum()), (4, 1))
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=1e-6)


def test_the_channel_with_the_strongest_gradient_counts():
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, 8:, :, 0] = 200  # strong, to 90 degrees
    images[:, :, 8:, 1] = 20  # weak, to 0 degrees
    [row] = describe(images, block_norm="l1")
    # A cell has 8 pixels at the strong edge; at the weak one 8 too, but one of them is the same.
    expected = np.zeros((4, 9))
    expected[:, 4] = 8 * 200 / (4 * (8 * 200 + 7 * 20))
    expected[:, 0] = 7 * 20 / (4 * (8 * 200 + 7 * 20))
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_of_equally_strong_channels_the_first_counts(dtype):
    to_right, to_below = np.zeros((2, 1, 3, 3), dtype)
    to_right[0, 1, 2] = to_below[0, 2, 1] = 100
    weaker = to_right // 2
    for channels, expected in (
        ([to_right, to_below, weaker], (0, 100, 100)),
        ([weaker, to_below, to_right], (100, 0, 100)),
        ([to_below, weaker, to_right], (100, 0, 100)),
        ([weaker, to_right, to_below], (0, 100, 100)),
        ([weaker], (0, 50, 50)),
    ):
        assert tuple(part[0, 1, 1] for part in find_gradients(channels)) == expected


def test_a_flat_image_has_no_directions():
    for options in itertools.product((False, True), repeat=2):
        flat = np.full((2, 32, 32, 3), (77, 0, 255), np.uint8)
        assert not describe(flat, soft=options[0], square_root=options[1]).any()


EIGHT = np.array([(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)])


@pytest.mark.parametrize("num_bins", [1, 2, 3, 4, 8, 9, 12, 20, 180])
@pytest.mark.parametrize("length", [1, 7, 0.1, 2**0.5])
def test_directions_on_the_border_of_two_bins(num_bins, length):
    # Every 45 degrees from the right by below. In whole numbers, a border belongs to the upper
    # bin, and 180 or 360 degrees are 0.
    down, right = length * EIGHT.T
    eighths = np.arange(8)
    np.testing.assert_array_equal(find_bins(down, right, num_bins, True), eighths * num_bins // 8)
    unsigned = eighths % 4 * num_bins // 4
    np.testing.assert_array_equal(find_bins(down, right, num_bins, False), unsigned)


ALL_DIFFERENCES = np.meshgrid(*[np.arange(-255, 256, dtype=np.int16)] * 2)


@pytest.mark.parametrize(("num_bins", "signed"), [(9, False), (9, True), (255, True), (360, True)])
def test_the_table_has_the_bins_of_all_gradients(num_bins, signed):
    bins = look_up_bins(*ALL_DIFFERENCES, num_bins, signed)
    np.testing.assert_array_equal(bins, find_bins(*ALL_DIFFERENCES, num_bins, signed))
    assert bins.max() == num_bins - 1
    assert bins.itemsize == (1 if num_bins < 256 else 2)


def test_the_strengths_of_all_gradients():
    strengths = find_strengths(*ALL_DIFFERENCES).ravel()
    np.testing.assert_allclose(strengths, np.hypot(*ALL_DIFFERENCES).ravel(), rtol=1e-6)
    # They compare as the whole numbers do.
    squares = (ALL_DIFFERENCES[0].astype(int) ** 2 + ALL_DIFFERENCES[1].astype(int) ** 2).ravel()
    order = np.argsort(squares)
    np.testing.assert_array_equal(np.diff(squares[order]) > 0, np.diff(strengths[order]) > 0)
    assert (np.diff(strengths[order]) >= 0).all()


def test_cells_are_counted_apart():
    # 2 images of 2 x 3 cells of 2 pixels and a border that is left; bin and strength by pixel.
    bins = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype(np.int32) % 3
    strengths = np.arange(2 * 5 * 7).reshape(2, 5, 7).astype(np.float32)
    expected = np.zeros((2, 2, 3, 3))
    for image, row, column in itertools.product(range(2), range(4), range(6)):
        place = (image, row, column)
        expected[image, row // 2, column // 2, bins[place]] += strengths[place]
    np.testing.assert_array_equal(count_votes(bins, strengths, 3, 2), expected)


@pytest.mark.parametrize(
    ("block_norm", "expected"),
    [
        ("l1", [0.3, 0.4, 0.1, 0.2]),
        ("l1-sqrt", np.sqrt([0.3, 0.4, 0.1, 0.2])),
        ("l2", np.array([3, 4, 1, 2]) / 30**0.5),
        # 3, 4 and 2 of 30**0.5 are above 0.2, and 1 is 0.1826.
        ("l2-hys", np.array([0.2, 0.2, 30**-0.5, 0.2]) / (3 * 0.04 + 1 / 30) ** 0.5),
    ],
)
def test_norms_by_hand(block_norm, expected):
    cells = np.float32([3, 4, 1, 2]).reshape(1, 2, 1, 2)
    narrow = normalise_blocks(cells.transpose(0, 2, 1, 3).reshape(1, 1, 1, 4), 1, block_norm)
    np.testing.assert_allclose(narrow.ravel(), expected, atol=1e-5)


def test_the_order_of_blocks_and_cells():
    # 2 x 3 cells with one direction: a block has its cells row by row.
    cells = np.float32([[1, 2, 4], [8, 16, 32]]).reshape(1, 2, 3, 1)
    blocks = normalise_blocks(cells, 2, "l1").reshape(2, 4)
    expected = [np.array([1, 2, 8, 16]) / 27, np.array([2, 4, 16, 32]) / 54]
    np.testing.assert_allclose(blocks, expected, atol=1e-5)


@pytest.mark.parametrize("block_norm", BLOCK_NORMS)
def test_the_small_number_that_keeps_from_dividing_by_zero(block_norm):
    # As large as 1e-5, it halves a sum of 1e-5, and takes 2**0.5 from a length of 1e-5.
    cells = np.float32([[[[1e-5, 0]]]])
    unit = 2**-0.5 if block_norm == "l2" else (0.2 / (0.04 + 1e-10) ** 0.5)
    expected = {"l1": 0.5, "l1-sqrt": 0.5**0.5}.get(block_norm, unit)
    row = normalise_blocks(cells, 1, block_norm).ravel()
    np.testing.assert_allclose(row, [expected, 0], atol=1e-6)


# Agreement with scikit-image, which names norms in capitals and makes no image grey.

CAPITALS = {"l1": "L1", "l1-sqrt": "L1-sqrt", "l2": "L2", "l2-hys": "L2-Hys"}


def by_scikit_image(
    image, orientations=9, cell_pixels=8, block_cells=2, block_norm="l2-hys", **options
) -> np.ndarray:
    is_grey = options.get("colour") == "grey"
    return skimage_hog(
        split_channels(image[None], "grey")[0][0] if is_grey else image,
        orientations=orientations,
        pixels_per_cell=(cell_pixels, cell_pixels),
        cells_per_block=(block_cells, block_cells),
        block_norm=CAPITALS[block_norm],
        transform_sqrt=options.get("square_root", False),
        channel_axis=None if is_grey else -1,
    )


def check_with_scikit_image(images, **options):
    rows = describe(images, **options)
    expected = [by_scikit_image(image, **options) for image in images]
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-6)


IMAGES = {
    "photo": photo("astronaut", (48, 64)),
    "odd photo": photo("coffee", (43, 61)),
    "noise": noise(2, 37, 29),
    "tiny": noise(2, 16, 16),  # a single block
    "constant": np.full((1, 20, 24, 3), 200, np.uint8),
    "grey": grey(noise(24, 31)[..., 0]),
}


@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("block_norm", BLOCK_NORMS)
@pytest.mark.parametrize("square_root", [False, True])
@pytest.mark.parametrize("colour", ["grey", "colour"])
def test_equal_to_scikit_image(images, block_norm, square_root, colour):
    check_with_scikit_image(images, block_norm=block_norm, square_root=square_root, colour=colour)


@settings(max_examples=150, deadline=None)
@given(
    cell_pixels=st.integers(1, 9),
    block_cells=st.integers(1, 3),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    orientations=st.sampled_from([1, 2, 3, 4, 7, 8, 9, 12, 18, 36]),
    block_norm=st.sampled_from(BLOCK_NORMS),
    square_root=st.booleans(),
    colour=st.sampled_from(["grey", "colour"]),
    top=st.sampled_from([1, 2, 4, 30, 255]),  # the darker, the more gradients are on a border
    seed=st.integers(0, 2**32 - 1),
)
def test_equal_to_scikit_image_whatever_the_settings(more, top, seed, **options):
    block_pixels = options["cell_pixels"] * options["block_cells"]
    size = (block_pixels + more[0], block_pixels + more[1])
    check_with_scikit_image(noise(1, *size, top=top, seed=seed), **options)


# Grey.


def test_grey_is_a_rounded_weighted_sum():
    images = noise(3, 40, 50)
    [levels] = split_channels(images, "grey")
    exact = images @ np.array([0.299, 0.587, 0.114])
    assert levels.dtype == np.uint8
    np.testing.assert_array_less(np.abs(levels - exact), 0.51)
    np.testing.assert_array_equal(
        split_channels(grey(images[0, ..., 0]), "grey")[0][0], images[0, ..., 0]
    )


def test_a_grey_image_is_the_same_in_colour():
    images = grey(photo("camera")[0, ..., 0])
    np.testing.assert_array_equal(describe(images, colour="grey"), describe(images))
    assert len(split_channels(images, "colour")) == 1  # which is why it takes less time
    # Also beside an image of colour, where all channels are compared.
    mixed = np.concatenate([images, photo("coffee")])
    assert len(split_channels(mixed, "colour")) == 3
    np.testing.assert_array_equal(describe(mixed)[:1], describe(images))


@pytest.mark.parametrize("different", range(3))
def test_every_channel_is_seen(different):
    images = np.full((1, 16, 16, 3), 50, np.uint8)
    images[0, 8:, :, different] = 90
    np.testing.assert_array_equal(describe(images), describe(grey(50 + ABOVE_BELOW / 5)))


# Soft.


def slow_soft_cells(image, orientations, cell, signed) -> np.ndarray:
    """Share the gradients of a grey image as the docstring says, pixel by pixel."""
    height, width = image.shape
    levels = image.astype(float)
    down, across = height // cell, width // cell
    cells = np.zeros((down, across, orientations))
    circle = 360 if signed else 180
    for row, column in itertools.product(range(down * cell), range(across * cell)):
        dy = levels[row + 1, column] - levels[row - 1, column] if 0 < row < height - 1 else 0.0
        dx = levels[row, column + 1] - levels[row, column - 1] if 0 < column < width - 1 else 0.0
        angle = np.degrees(np.arctan2(dy, dx)) % circle
        shares = []
        for place, is_circle, size in (
            (2 * row // cell / 2, False, down),
            (2 * column // cell / 2, False, across),
            (angle // (circle / orientations / 2) / 2, True, orientations),
        ):
            own = int(place)  # the first half of number 3 is at 3, the second at 3.5
            neighbour = own - 1 if place == own else own + 1
            pair = [(own, 0.75), (neighbour % size if is_circle else neighbour, 0.25)]
            shares.append([(n, share) for n, share in pair if 0 <= n < size])
        for (r, a), (c, b), (o, d) in itertools.product(*shares):
            cells[r, c, o] += a * b * d * np.hypot(dy, dx)
    return cells


@pytest.mark.parametrize(
    ("size", "orientations", "cell", "signed"),
    [((24, 33), 9, 8, False), ((25, 16), 8, 4, True), ((21, 23), 5, 7, True)],
)
def test_soft_equal_to_a_slow_reference(size, orientations, cell, signed):
    image = skimage.data.camera()[100 : 100 + size[0], 200 : 200 + size[1]]
    cells = slow_soft_cells(image, orientations, cell, signed)
    expected = np.stack(
        [
            cells[row : row + 2, column : column + 2]
            for row in range(cells.shape[0] - 1)
            for column in range(cells.shape[1] - 1)
        ]
    )
    expected /= expected.sum(axis=(1, 2, 3), keepdims=True)
    [row] = describe(
        grey(image),
        orientations=orientations,
        cell_pixels=cell,
        block_norm="l1",
        soft=True,
        signed=signed,
    )
    np.testing.assert_allclose(row, expected.ravel(), atol=1e-6)


def test_a_soft_edge_by_hand():
    # 0 degrees are in the first half of bin 0: three quarters there, one in bin 8. The edge is
    # in the halves of the cells that touch, so the cells see as much of it.
    [row] = describe(grey(ABOVE_BELOW.T), soft=True, block_norm="l1")
    expected = np.zeros((4, 9))
    expected[:, 0], expected[:, 8] = 3 / 16, 1 / 16
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=1e-6)


def test_halves_are_shared_along_one_axis():
    halves = np.arange(2 * 4 * 6, dtype=np.float32).reshape(2, 4, 6)
    for axis, circular in itertools.product(range(3), (False, True)):
        shared = share_halves(halves, axis, circular)
        swapped = share_halves(np.moveaxis(halves, axis, 0).copy(), 0, circular)
        np.testing.assert_array_equal(np.moveaxis(shared, axis, 0), swapped)
    # Nothing is lost on a circle; on a line a quarter of the first and of the last half.
    total = halves.sum(axis=2)
    np.testing.assert_allclose(share_halves(halves, 2, circular=True).sum(axis=2), total)
    lost = 0.25 * (halves[:, :, 0] + halves[:, :, -1])
    np.testing.assert_allclose(share_halves(halves, 2).sum(axis=2), total - lost)


@pytest.mark.parametrize("name", ["camera", "coffee", "rocket"])
def test_soft_rows_change_less_when_the_image_moves(name):
    image = photo(name, (80, 80))
    moves = [(image[:, :-2, :-2], image[:, 2:, 2:]), (image[:, :-1], image[:, 1:])]
    for before, after in moves:
        hard = np.linalg.norm(describe(before) - describe(after))
        soft = np.linalg.norm(describe(before, soft=True) - describe(after, soft=True))
        assert soft < 0.8 * hard


# Signed.


def test_a_signed_edge_knows_bright_from_dark():
    options = {"orientations": 18, "signed": True, "block_norm": "l1"}
    for image, bin_number in (
        (ABOVE_BELOW.T, 0),
        (ABOVE_BELOW, 4),  # 90 degrees, in bins of 20
        (ABOVE_BELOW[:, ::-1].T[::-1, ::-1], 9),
        (ABOVE_BELOW[::-1], 13),
    ):
        expected = np.zeros((4, 18))
        expected[:, bin_number] = 0.25
        [row] = describe(grey(image), **options)
        np.testing.assert_allclose(row.reshape(4, 18), expected, atol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_an_inverted_image(soft):
    image = photo("chelsea")
    options = {"orientations": 8, "soft": soft}
    np.testing.assert_allclose(
        describe(255 - image, **options), describe(image, **options), atol=1e-6
    )
    opposite = describe(255 - image, signed=True, **options).reshape(-1, 8)
    expected = np.roll(describe(image, signed=True, **options).reshape(-1, 8), 4, axis=1)
    np.testing.assert_allclose(opposite, expected, atol=1e-6)


@pytest.mark.parametrize("sort", [look_up_bins, find_bins])
def test_unsigned_bins_are_the_signed_ones_folded(sort):
    channels = split_channels(photo("coffee"), "colour")
    down, right, _ = find_gradients([channel.astype(np.int16) for channel in channels])
    signed = sort(down, right, 18, signed=True)
    assert signed.max() == 17
    np.testing.assert_array_equal(signed % 9, sort(down, right, 9, signed=False))


# Rows.


@pytest.mark.parametrize("soft", [False, True])
def test_brightness_and_contrast_do_not_matter(soft):
    image = photo("chelsea") // 4 + 10  # far away from 0 and 255
    rows = describe(image, soft=soft)
    np.testing.assert_array_equal(describe(image + 100, soft=soft), rows)
    np.testing.assert_allclose(describe(image * 3, soft=soft), rows, atol=1e-4)
    # Not because nothing matters:
    assert np.abs(describe(image[:, ::-1], soft=soft) - rows).max() > 0.1
    lighter = describe(image + 100, soft=soft, square_root=True)
    assert np.abs(describe(image, soft=soft, square_root=True) - lighter).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"colour": "grey", "block_norm": "l1"},
        {"soft": True, "signed": True, "orientations": 16, "block_norm": "l2"},
        {"square_root": True, "cell_pixels": 4, "block_norm": "l1-sqrt"},
        {"cell_pixels": 20},  # a single block
        {"cell_pixels": 41, "block_cells": 1, "orientations": 1},  # a single number
    ],
)
def test_rows_do_not_depend_on_their_neighbours(options, monkeypatch):
    names = ("camera", "chelsea", "coffee", "rocket", "astronaut")
    images = np.concatenate([photo(name, (41, 47)) for name in names])
    hog = HistogramOfOrientedGradients(**options).fit(images)
    together = hog.transform(images)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(hog.transform(image[None])[0], row)
    np.testing.assert_array_equal(hog.transform(images[::-1])[::-1], together)
    # Nor on how many are described at a time.
    for pixels in (1, 2 * 41 * 47, 10**9):
        monkeypatch.setattr(hog_module, "PIXELS_AT_ONCE", pixels)
        np.testing.assert_array_equal(hog.transform(images), together)
    # A view is read as what it shows.
    for view in (images[:, :, ::-1], np.asfortranarray(images), images[..., ::-1]):
        np.testing.assert_array_equal(hog.transform(view), hog.transform(view.copy()))
    turned = HistogramOfOrientedGradients(**options).fit(images.transpose(0, 2, 1, 3))
    view = images.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(turned.transform(view), turned.transform(view.copy()))


def test_memory_is_bounded():
    images = noise(64, 128, 128)
    for options in ({}, {"soft": True}, {"square_root": True}, {"soft": True, "cell_pixels": 4}):
        hog = HistogramOfOrientedGradients(**options).fit(images[:1])
        tracemalloc.start()
        rows = hog.transform(images)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < rows.nbytes + 90 * 2**16


def test_no_images():
    hog = HistogramOfOrientedGradients().fit(photo("camera"))
    assert hog.transform(np.zeros((0, 128, 128, 3), np.uint8)).shape == (0, hog.n_features_out_)


# Strengths of cells.


def test_the_strengths_of_a_single_block_are_its_numbers():
    hog = HistogramOfOrientedGradients()
    rows = hog.fit_transform(noise(3, 16, 16))
    np.testing.assert_array_equal(hog.cell_strengths(rows), rows.reshape(3, 2, 2, 9))


def test_strengths_by_hand():
    # 2 x 3 cells of one direction, two blocks; the cells of the middle column are in both.
    hog = HistogramOfOrientedGradients(orientations=1).fit(noise(1, 16, 24))
    row = np.float32([1, 2, 3, 4, 10, 20, 30, 40]) / 40
    expected = np.array([[1, (2 + 10) / 2, 20], [3, (4 + 30) / 2, 40]]) / 40
    np.testing.assert_allclose(hog.cell_strengths(row[None])[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("block_cells", [1, 2, 3])
def test_strengths_are_means_over_the_blocks_of_a_cell(block_cells):
    hog = HistogramOfOrientedGradients(4, 6, block_cells, signed=True)
    rows = hog.fit_transform(noise(2, 27, 33))
    blocks_down, blocks_across = 4 - block_cells + 1, 5 - block_cells + 1
    blocks = rows.reshape(2, blocks_down, blocks_across, block_cells, block_cells, 4)
    strengths = hog.cell_strengths(rows)
    assert strengths.shape == (2, 4, 5, 4)
    assert strengths.dtype == np.float32
    for row, column in itertools.product(range(4), range(5)):
        seen = [
            blocks[:, top, left, row - top, column - left]
            for top, left in itertools.product(range(blocks_down), range(blocks_across))
            if 0 <= row - top < block_cells and 0 <= column - left < block_cells
        ]
        np.testing.assert_allclose(strengths[:, row, column], np.mean(seen, axis=0), atol=1e-6)


@pytest.mark.parametrize("shape", [(36,), (1, 35), (2, 3, 36)])
def test_strengths_of_other_rows(shape):
    hog = HistogramOfOrientedGradients().fit(noise(1, 16, 16))
    with pytest.raises(InputError, match=r"^rows of HOG must be of shape \(n, 36\), but are of "):
        hog.cell_strengths(np.zeros(shape, np.float32))


def test_strengths_need_a_fit():
    with pytest.raises(NotFittedError):
        HistogramOfOrientedGradients().cell_strengths(np.zeros((1, 36), np.float32))


# Settings.


@pytest.mark.parametrize("image_size", [(15, 32), (32, 15)])
def test_images_smaller_than_a_block(image_size):
    message = (
        r"^HOG needs images of at least 16 pixels per side for a block of 2 x 2 cells of 8 pixels, "
        rf"but they are \({image_size[0]}, {image_size[1]}\); choose a larger image size, smaller "
        r"cells or blocks\.$"
    )
    with pytest.raises(InputError, match=message):
        HistogramOfOrientedGradients().fit(noise(1, *image_size))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orientations": 0}, "orientations of HOG is 0, but must be between 1 and 180."),
        ({"orientations": 181}, "orientations of HOG is 181, but must be between 1 and 180."),
        ({"cell_pixels": 0}, "cell_pixels of HOG is 0, but must be at least 1."),
        ({"block_cells": 0}, "block_cells of HOG is 0, but must be at least 1."),
        (
            {"block_norm": "L2"},
            "block_norm of HOG is 'L2'; choose one of ['l1', 'l1-sqrt', 'l2', 'l2-hys'].",
        ),
        ({"colour": "rgb"}, "colour of HOG is 'rgb'; choose one of ['grey', 'colour']."),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(InputError) as caught:
        HistogramOfOrientedGradients(**options).check_settings((128, 128))
    assert str(caught.value) == message


def test_as_many_orientations_as_possible():
    rows = describe(noise(1, 16, 16), orientations=180, soft=True, signed=True)
    assert rows.shape == (1, 4 * 180)
    check_with_scikit_image(noise(1, 16, 16), orientations=180)


def test_another_size_than_fitted():
    hog = HistogramOfOrientedGradients().fit(np.zeros((1, 32, 16, 3), np.uint8))
    message = r"fitted on images of size \(32, 16\), but these are \(16, 32\); resize them\.$"
    with pytest.raises(InputError, match=message):
        hog.transform(np.zeros((1, 16, 32, 3), np.uint8))
