import math

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.dense_descriptors import (
    count_places,
    dense_descriptors,
    descriptor_places,
    grid_patches,
    patch_starts,
)


def grey(rows) -> np.ndarray:
    """Turn rows of grey values into a batch of one RGB image."""
    return np.repeat(np.asarray(rows, np.uint8)[None, :, :, None], 3, axis=3)


def photo(name: str, size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize(size[::-1])
    return np.asarray(image)


def random_images(number: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, height, width, 3), dtype=np.uint8)


# By hand. Patches of 4 x 4 cells of 4 pixels, directions from right over down to left and up. The
# centres of cells are 2, 6, 10 and 14; a pixel weighs 4, 3, 2, 1 at 0.5, 1.5, 2.5, 3.5 from one.

ROW_WEIGHTS = np.array([17, 20, 20, 17])  # of whole rows; of the outer windows, 1 + 2 are cut off


def cells_of(image: np.ndarray, root: bool = False) -> np.ndarray:
    [row] = dense_descriptors(image, 8, (4,), root)[0]
    return row.reshape(4, 4, 8)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(("turns", "direction"), [(0, 0), (3, 2), (2, 4), (1, 6)])
def test_an_edge_from_dark_to_bright(turns, direction, root):
    # The edge between columns 7 and 8 is seen by the pixels on both sides of it, which weigh
    # 3 + 2 in the cells next to it: 4 x 2 values that are cut off to be equal.
    image = np.rot90(np.repeat([[0] * 8 + [200] * 8], 16, axis=0), turns)
    expected = np.zeros((4, 4, 8))
    expected[:, 1:3, 0] = 8**-0.5
    expected = np.rot90(expected, turns)
    expected = np.roll(expected, direction, axis=2)
    np.testing.assert_allclose(cells_of(grey(image), root), expected, atol=1e-6)


def test_a_slope_is_split_between_its_two_nearest_directions():
    # (5, 2) = 3 (1, 0) + 2 (1, 1), of lengths 3 and 2 sqrt(2), in all 16 cells; the step leaves
    # a single patch, away from the rim, where one part is missing.
    rows, columns = np.mgrid[:24, :24]
    [[row]] = dense_descriptors(grey(5 * columns + 2 * rows), 20, (4,), root=False)
    expected = np.zeros((16, 8))
    expected[:, :2] = np.array([3, math.sqrt(8)]) / math.sqrt(16 * 17)
    np.testing.assert_allclose(row.reshape(16, 8), expected, atol=1e-6)


def test_a_pixel_at_the_rim_has_no_gradient_across_it():
    image = np.zeros((16, 16))
    image[:, 0] = 200  # of columns 0 and 1, only 1 has neighbours on both sides
    expected = np.zeros((4, 4, 8))
    expected[:, 0, 4] = 0.5  # brighter to the left
    np.testing.assert_allclose(cells_of(grey(image)), expected, atol=1e-6)


@pytest.mark.parametrize("root", [False, True])
def test_large_values_are_cut_off(root):
    # A step of 200 and one of 50, seen by two columns of cells each.
    values = np.outer(ROW_WEIGHTS, [4, 4, 1, 1])
    values = np.minimum(values / np.linalg.norm(values), 0.2)
    assert (values == 0.2).sum() == 8
    values = np.sqrt(values / values.sum()) if root else values / np.linalg.norm(values)
    expected = np.zeros((4, 4, 8))
    expected[..., 0] = values
    image = np.repeat([[0] * 4 + [200] * 8 + [250] * 4], 16, axis=0)
    np.testing.assert_allclose(cells_of(grey(image), root), expected, atol=1e-6)


@pytest.mark.parametrize(("step", "is_flat"), [(1, True), (2, False)])
def test_flat_patches_have_zeros(step, is_flat):
    # An edge of s grey levels gives two columns of 5 s times the weights of rows, so a vector of
    # length 262 s; that of a flat patch is shorter than the 20 x 20 of a window.
    assert 5 * math.sqrt(2) * np.linalg.norm(ROW_WEIGHTS) == pytest.approx(262.5, abs=0.1)
    image = np.repeat([[100] * 8 + [100 + step] * 8], 16, axis=0)
    [row] = dense_descriptors(grey(image), 8, (4,))[0]
    assert (not row.any()) == is_flat


def test_constant_images():
    assert not dense_descriptors(grey(np.full((20, 24), 77)), 4, (2, 4)).any()
    assert not dense_descriptors(grey(np.full((20, 24), 77)), 4, (2, 4), root=False).any()


# Against plain loops.


def slow_votes(levels: np.ndarray) -> np.ndarray:
    """Solve for the lengths along the two directions that each gradient lies between."""
    levels = levels.astype(int)
    height, width = levels.shape
    votes = np.zeros((height, width, 8))
    for y in range(height):
        for x in range(width):
            right = levels[y, x + 1] - levels[y, x - 1] if 0 < x < width - 1 else 0
            down = levels[y + 1, x] - levels[y - 1, x] if 0 < y < height - 1 else 0
            if right or down:
                sector = int(math.atan2(down, right) % (2 * math.pi) // (math.pi / 4)) % 8
                angles = np.array([sector, sector + 1]) * math.pi / 4
                shares = np.linalg.solve([np.cos(angles), np.sin(angles)], [right, down])
                votes[y, x, [sector, (sector + 1) % 8]] += shares
    return votes


def window(cell: int) -> np.ndarray:
    """Weigh pixels from the centre of one neighbouring cell to that of the other."""
    up = list(range(1, cell + 1))
    return np.array(up + up[::-1] if cell % 2 == 0 else up + up[-2::-1])


def slow_descriptors(levels, step, cells, root) -> np.ndarray:
    rows = []
    for cell in cells:
        weights, reach = np.outer(window(cell), window(cell)), cell // 2
        votes = np.pad(slow_votes(levels), ((reach, reach), (reach, reach), (0, 0)))
        side = 4 * cell
        top, left = ((length - side) % step // 2 for length in levels.shape)
        for y in range(top, levels.shape[0] - side + 1, step):
            for x in range(left, levels.shape[1] - side + 1, step):
                sums = np.zeros((4, 4, 8))
                for row in range(4):
                    for column in range(4):
                        begin = np.array([y + row * cell, x + column * cell])  # - reach + reach
                        end = begin + len(weights)
                        seen = votes[begin[0] : end[0], begin[1] : end[1]]
                        sums[row, column] = np.einsum("yx,yxo->o", weights, seen)
                rows.append(slow_normalise(sums.ravel(), weights.sum(), root))
    return np.array(rows)


def slow_normalise(sums: np.ndarray, weight: float, root: bool) -> np.ndarray:
    length = np.linalg.norm(sums)
    if length < weight:
        return np.zeros(128)
    cut = np.minimum(sums / length, 0.2)
    return np.sqrt(cut / cut.sum()) if root else cut / np.linalg.norm(cut)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize(
    ("image_size", "step", "cells"),
    [
        ((16, 16), 8, (4,)),  # a single patch
        ((41, 30), 8, (4,)),  # higher than wide, odd
        ((33, 45), 7, (2, 4, 6)),  # step and cells without common divisor, and several scales
        ((33, 45), 3, (8, 5)),
        ((40, 40), 6, (4, 8)),  # common divisor 2
        ((25, 23), 1, (5,)),
        ((9, 11), 9, (1, 2)),  # gaps between patches
    ],
)
def test_equal_to_plain_loops(image_size, step, cells, root):
    images = np.stack([photo("camera", image_size), photo("chelsea", image_size)])
    descriptors = dense_descriptors(images, step, cells, root)
    assert descriptors.dtype == np.float32
    for image, rows in zip(images, descriptors, strict=True):
        levels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        expected = slow_descriptors(levels, step, cells, root)
        assert expected.any()
        np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("cell", [14, 15])
def test_the_largest_cells_do_not_overflow(cell):
    # Stripes of two black and two white columns: gradients of 255 right, right, left, left.
    image = np.tile([0, 0, 255, 255], (180, 45))
    rows = dense_descriptors(grey(image), 60, (cell,), root=False)[0, 4]  # away from the rim
    expected = np.zeros((4, 4, 8))
    expected[:, :, [0, 4]] = 2**-0.5 / 4
    np.testing.assert_allclose(rows.reshape(4, 4, 8), expected, rtol=0.02)


# Properties.


@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    step=st.integers(1, 8),
    cells=st.lists(st.integers(1, 2), min_size=1, max_size=2),
    low=st.integers(0, 255),
    root=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_rows_have_length_one_or_zero(height, width, step, cells, low, root, seed):
    levels = np.random.default_rng(seed).integers(low, 256, (2, height, width, 1), dtype=np.uint8)
    descriptors = dense_descriptors(np.repeat(levels, 3, axis=3), step, tuple(cells), root)
    num_places = sum(
        ((height - 4 * cell) // step + 1) * ((width - 4 * cell) // step + 1) for cell in cells
    )
    assert descriptors.shape == (2, num_places, 128)
    assert num_places == count_places((height, width), step, tuple(cells))
    assert 0 <= descriptors.min() <= descriptors.max() <= 1.000001
    lengths = np.linalg.norm(descriptors, axis=2)
    np.testing.assert_allclose(lengths[lengths > 0], 1, rtol=1e-5)


def test_brightness_and_contrast_do_not_matter():
    image = grey(photo("camera", (64, 80))[..., 0] // 4 + 4)
    rows = dense_descriptors(image, 8, (4, 8))
    np.testing.assert_array_equal(dense_descriptors(image + 100, 8, (4, 8)), rows)
    doubled, textured = dense_descriptors(image * 2, 8, (4, 8)), rows.any(axis=2)
    assert textured.mean() > 0.8
    np.testing.assert_allclose(doubled[textured], rows[textured], atol=1e-6)


def test_a_mirrored_image_has_mirrored_descriptors():
    image = photo("coffee", (48, 64))[None]
    rows = dense_descriptors(image, 8, (4,)).reshape(5, 7, 4, 4, 8)
    mirrored = dense_descriptors(image[:, :, ::-1], 8, (4,)).reshape(5, 7, 4, 4, 8)
    right_to_left = [4, 3, 2, 1, 0, 7, 6, 5]
    expected = rows[:, ::-1, :, ::-1, right_to_left]
    np.testing.assert_allclose(mirrored, expected, atol=1e-6)


@pytest.mark.parametrize("cell", [4, 6, 8])
def test_close_to_opencv(cell):
    """Not equal: OpenCV weighs gradients by a Gaussian window and splits them by angle."""
    image = photo("camera", (128, 128))
    places = descriptor_places((128, 128), 8, (cell,)) * 128 - 0.5
    # OpenCV's cells are 1.5 times the size of the keypoint, and its directions turn upwards.
    points = [cv2.KeyPoint(float(x), float(y), cell / 1.5, 0.0) for y, x in places]
    _, theirs = cv2.SIFT_create().compute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), points)
    [ours] = dense_descriptors(image[None], 8, (cell,), root=False)
    cells = ours.reshape(-1, 4, 4, 8)
    upwards = cells[..., [0, 7, 6, 5, 4, 3, 2, 1]]
    assert np.corrcoef(upwards.ravel(), theirs.ravel())[0, 1] > 0.8
    # And no other order of cells or directions does as well.
    for wrong in (cells, upwards[:, ::-1], upwards.transpose(0, 2, 1, 3), np.roll(upwards, 1, -1)):
        assert np.corrcoef(wrong.ravel(), theirs.ravel())[0, 1] < 0.5


def test_a_row_has_the_same_bits_in_any_company():
    images = np.concatenate([random_images(30, 33, 47), photo("rocket", (33, 47))[None]])
    images[3] = 90
    together = dense_descriptors(images, 5, (3, 8))
    for some in ([0], [30], [4, 3, 2, 1, 0, 30, 7], [2] * 100):
        np.testing.assert_array_equal(dense_descriptors(images[some], 5, (3, 8)), together[some])
    for view in (np.asfortranarray(images), images.copy()[:, :, ::-1][:, :, ::-1]):
        np.testing.assert_array_equal(dense_descriptors(view, 5, (3, 8)), together)
    with threadpool_limits(1):
        np.testing.assert_array_equal(dense_descriptors(images, 5, (3, 8)), together)


def test_images_are_processed_in_blocks(monkeypatch):
    images = random_images(7, 24, 32)
    expected = dense_descriptors(images, 4, (2, 4))
    for pixels in (1, 2 * 24 * 32, 3 * 24 * 32):
        monkeypatch.setattr("cvpipe.features.dense_descriptors.BLOCK_PIXELS", pixels)
        np.testing.assert_array_equal(dense_descriptors(images, 4, (2, 4)), expected)


def test_no_images():
    none = np.zeros((0, 40, 48, 3), np.uint8)
    assert dense_descriptors(none, 8, (4, 8)).shape == (0, count_places((40, 48), 8, (4, 8)), 128)


# Places.


def test_places_by_hand():
    # Patches of 16 pixels in 20 x 35: rows 2..18, columns 1..17, 9..25 and 17..33.
    places = descriptor_places((20, 35), 8, (4,))
    expected = [[10 / 20, 9 / 35], [10 / 20, 17 / 35], [10 / 20, 25 / 35]]
    np.testing.assert_allclose(places, expected, rtol=1e-6)
    assert places.dtype == np.float32


def test_places_go_grid_by_grid():
    expected = np.vstack([descriptor_places((50, 40), 6, (cell,)) for cell in (8, 4)])
    np.testing.assert_array_equal(descriptor_places((50, 40), 6, (8, 4)), expected)
    assert len(expected) == count_places((50, 40), 6, (8, 4)) == 4 * 2 + 6 * 5


def test_places_are_where_the_descriptors_look():
    # A single bright pixel is seen by the patches around it and by no other.
    image = np.zeros((40, 56))
    image[13, 37] = 255
    rows = dense_descriptors(grey(image), 4, (2, 3))[0]
    places = np.round(descriptor_places((40, 56), 4, (2, 3)) * (40, 56))
    # Patches look half a cell farther than their four.
    reach = np.repeat([5, 7.5], [count_places((40, 56), 4, (cell,)) for cell in (2, 3)])
    near, far = np.sort(np.abs(places - (13.5, 37.5)), axis=1).T
    # The gradients are those of the four neighbours, one pixel nearer along one axis.
    sees = (far < reach + 1) & (near < reach)
    assert 0 < sees.mean() < 1
    np.testing.assert_array_equal(rows.any(axis=1), sees)


def test_starts_of_patches():
    assert patch_starts(16, 8, 16).tolist() == [0]
    assert patch_starts(23, 8, 16).tolist() == [3]
    assert patch_starts(24, 8, 16).tolist() == [0, 8]
    assert patch_starts(27, 8, 16).tolist() == [1, 9]


def test_patches_lie_inside_the_image():
    patches = grid_patches((31, 46), 5, [8, 31])
    ends = patches[:, :2] + patches[:, 2:]
    assert patches[:, :2].min() == 0
    assert (ends <= (31, 46)).all()
    assert (patches[:, 2] == 8).sum() == 5 * 8
    assert (patches[:, 2] == 31).sum() == 1 * 4


# Errors.


@pytest.mark.parametrize("call", [descriptor_places, count_places])
@pytest.mark.parametrize(
    ("image_size", "step", "cells", "message"),
    [
        ((64, 64), 0, (4,), r"^step_pixels of .* is 0, but must be between 1 and "),
        ((64, 64), 8, (), r"^cell_pixels of .* is \(\), but must list one or more .* 1 and 15\.$"),
        ((64, 64), 8, (4, 0), r"^cell_pixels of .* is \(4, 0\), but must list"),
        ((999, 999), 8, (16,), r"^cell_pixels of .* is \(16,\), but must list"),
        (
            (31, 64),
            8,
            (4, 8),
            r"^a grid of descriptors with cells of 8 pixels needs images of at least \(32, 32\), "
            r"but they are \(31, 64\); lower cell_pixels or choose another image size\.$",
        ),
        ((64, 31), 8, (4, 8), r"but they are \(64, 31\)"),
    ],
)
def test_errors(call, image_size, step, cells, message):
    with pytest.raises(InputError, match=message):
        call(image_size, step, cells)
    with pytest.raises(InputError, match=message):
        dense_descriptors(np.zeros((1, *image_size, 3), np.uint8), step, cells)
