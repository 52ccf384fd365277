import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.feature import hog as skimage_hog
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from cvpipe.errors import InputError
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.features.table import FEATURES


def grey(rows) -> np.ndarray:
    """Turn rows of grey values into a batch of one RGB image."""
    return np.repeat(np.asarray(rows, np.uint8)[None, :, :, None], 3, axis=3)


def describe(images, **options) -> np.ndarray:
    return HistogramOfOrientedGradients(**options).fit_transform(images)


def photo(name: str, size: int = 128) -> np.ndarray:
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((size, size))
    return np.asarray(image)[None]


@pytest.mark.parametrize(
    ("image_size", "cell_pixels", "orientations", "expected"),
    [
        ((128, 128), 16, 9, 7 * 7 * 4 * 9),
        ((128, 64), 8, 9, 3780),  # the number in the paper
        ((32, 48), 8, 9, 3 * 5 * 4 * 9),
        ((48, 32), 8, 6, 5 * 3 * 4 * 6),
        ((16, 16), 8, 9, 4 * 9),
    ],
)
def test_size(image_size, cell_pixels, orientations, expected):
    images = np.random.default_rng(0).integers(0, 256, (3, *image_size, 3), dtype=np.uint8)
    hog = HistogramOfOrientedGradients(cell_pixels, orientations).fit(images)
    rows = hog.transform(images)
    assert hog.n_features_out_ == expected
    assert rows.shape == (3, expected)
    assert rows.dtype == np.float32
    assert 0 <= rows.min() < rows.max() <= 1


# One block of 2 x 2 cells with 9 bins of 20 degrees, whose centres are 10, 30, ... 170.


def test_an_edge_between_above_and_below_fills_one_bin():
    # Its gradient points to 90 degrees, the centre of bin 4, and all four cells see as much
    # of it. Four equal values of a vector of length 1 are 1/2 (less a small number that keeps
    # flat blocks from being divided by zero).
    above, below = np.zeros((8, 16)), np.full((8, 16), 200)
    [row] = describe(grey(np.vstack([above, below])), cell_pixels=8)
    expected = np.zeros((4, 9))
    expected[:, 4] = 0.5
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=2e-3)


def test_an_edge_between_left_and_right_fills_two_bins():
    # 0 degrees is half-way between the centres of bins 8 and 0: eight equal values.
    left, right = np.zeros((16, 8)), np.full((16, 8), 200)
    [row] = describe(grey(np.hstack([left, right])), cell_pixels=8)
    expected = np.zeros((4, 9))
    expected[:, [0, 8]] = 8**-0.5
    np.testing.assert_allclose(row.reshape(4, 9), expected, atol=2e-3)


@pytest.mark.parametrize(("turn", "bin_number"), [(1, 6), (-1, 2)])
def test_a_diagonal_ramp(turn, bin_number):
    # Brightness falls or rises with the column and rises with the row. 45 degrees lie between
    # the centres of bins 1 (30) and 2 (50), 135 between 6 (130) and 7 (150): the nearer wins.
    rows, columns = np.mgrid[:16, :16]
    [row] = describe(grey(120 + 4 * rows - turn * 4 * columns), cell_pixels=8)
    by_bin = row.reshape(4, 9).sum(axis=0)
    assert by_bin.argmax() == bin_number
    other = {6: 7, 2: 1}[bin_number]
    assert by_bin[other] > 0.2 * by_bin[bin_number]
    np.testing.assert_allclose(np.delete(by_bin, [bin_number, other]), 0, atol=0.12)


def test_the_channel_with_the_strongest_gradient_counts():
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[:, 8:, :, 0] = 200  # strong, to 90 degrees
    images[:, :, 8:, 1] = 20  # weak, to 0 degrees
    weak = describe(images, cell_pixels=8).reshape(4, 9)[:, [0, 8]]
    images[..., 1] = 0
    np.testing.assert_allclose(describe(images, cell_pixels=8).reshape(4, 9)[:, 4], 0.5, atol=2e-3)
    assert 0 < weak.max() < 0.2


def test_a_flat_image_has_no_directions():
    assert not describe(grey(np.full((32, 32), 77)), cell_pixels=8).any()


def test_brightness_and_contrast_do_not_matter():
    image = photo("chelsea") // 4 + 10  # far away from 0 and 255
    rows = describe(image)
    np.testing.assert_array_equal(describe(image + 100), rows)
    np.testing.assert_allclose(describe(image * 3), rows, atol=0.02)
    assert np.corrcoef(describe(image * 3), rows)[0, 1] > 0.999
    # Not because nothing matters:
    assert np.abs(describe(image[:, ::-1]) - rows).max() > 0.1


def slow_hog(image: np.ndarray, cell: int, bins: int) -> np.ndarray:
    """Describe a grey image by the steps in the docstring, block by block."""
    grey_values = np.pad(image.astype(float), 1, mode="reflect")
    down = grey_values[2:, 1:-1] - grey_values[:-2, 1:-1]
    right = grey_values[1:-1, 2:] - grey_values[1:-1, :-2]
    strength, angle = np.hypot(down, right), np.arctan2(down, right) % np.pi
    position = angle * bins / np.pi - 0.5  # of the direction among the centres of the bins
    centres = np.arange(-1, bins + 1)
    share = np.clip(1 - np.abs(position[..., None] - centres), 0, None)
    share[..., 1] += share[..., -1]  # 180 degrees are 0 degrees
    share[..., -2] += share[..., 0]
    votes = strength[..., None] * share[..., 1:-1]

    pixel = np.arange(2 * cell)
    bell = np.exp(-((pixel - cell) ** 2) / (2 * (cell / 2) ** 2))
    near = np.clip(1 - np.abs((pixel + 0.5) / cell - 0.5 - np.arange(2)[:, None]), 0, None) * bell
    blocks = []
    for left in range(0, image.shape[1] - cell, cell):
        for top in range(0, image.shape[0] - cell, cell):
            window = votes[top : top + 2 * cell, left : left + 2 * cell]
            block = np.einsum("ay,bx,yxo->bao", near, near, window).ravel()
            block = np.minimum(block / (np.linalg.norm(block) + 0.1 * block.size), 0.2)
            blocks.append(block / (np.linalg.norm(block) + 1e-3))
    return np.concatenate(blocks)


@pytest.mark.parametrize(("cell_pixels", "orientations"), [(8, 9), (16, 6)])
def test_equal_to_a_slow_reference(cell_pixels, orientations):
    image = skimage.data.camera()[100:164, 200:296]
    [row] = describe(grey(image), cell_pixels=cell_pixels, orientations=orientations)
    np.testing.assert_allclose(row, slow_hog(image, cell_pixels, orientations), atol=2e-3)


@pytest.mark.parametrize("name", ["camera", "chelsea", "coffee", "rocket"])
def test_close_to_scikit_image(name):
    """Not equal: OpenCV shares a gradient between cells and bins and weighs it in its block.

    scikit-image counts each gradient in one bin of one cell, all alike.
    """
    [image] = photo(name)
    expected = skimage_hog(
        image,
        orientations=9,
        pixels_per_cell=(16, 16),
        cells_per_block=(2, 2),
        block_norm="L2-Hys",
        channel_axis=2,
        feature_vector=False,
    )
    [row] = describe(image[None], cell_pixels=16)
    # OpenCV goes down the columns of blocks, and of cells in a block.
    blocks = row.reshape(7, 7, 2, 2, 9).transpose(1, 0, 3, 2, 4)
    assert np.corrcoef(blocks.ravel(), expected.ravel())[0, 1] > 0.8
    # And no other order of blocks or cells does as well.
    for wrong in (row.reshape(expected.shape), blocks.transpose(0, 1, 3, 2, 4), blocks[..., ::-1]):
        assert np.corrcoef(wrong.ravel(), expected.ravel())[0, 1] < 0.7


def test_rows_do_not_depend_on_their_neighbours():
    images = np.concatenate([photo(name) for name in ("camera", "chelsea", "coffee")])
    together = describe(images)
    for image, row in zip(images, together, strict=True):
        np.testing.assert_array_equal(describe(image[None])[0], row)
    # A view, such as a mirrored one, is read as what it shows.
    mirrored = images[:, :, ::-1]
    np.testing.assert_array_equal(describe(mirrored), describe(mirrored.copy()))


def test_no_images():
    hog = HistogramOfOrientedGradients().fit(photo("camera"))
    assert hog.transform(np.zeros((0, 128, 128, 3), np.uint8)).shape == (0, hog.n_features_out_)


def test_scikit_learn_conventions():
    hog = HistogramOfOrientedGradients(cell_pixels=4, orientations=7)
    assert hog.get_params() == {"cell_pixels": 4, "orientations": 7}
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert hog.fit(images, [1]) is hog
    copy = clone(hog)
    assert copy.get_params() == hog.get_params()
    with pytest.raises(NotFittedError):
        copy.transform(images)


@pytest.mark.parametrize("image_size", [(20, 32), (32, 20), (8, 32), (32, 8)])
def test_sizes_that_do_not_fit_the_cells(image_size):
    message = (
        r"^HOG needs images whose sides are multiples of its cell of 8 pixels and at least 16, "
        rf"but they are \({image_size[0]}, {image_size[1]}\); choose another image size\.$"
    )
    with pytest.raises(InputError, match=message):
        HistogramOfOrientedGradients(8).fit(np.zeros((1, *image_size, 3), np.uint8))


def test_another_size_than_fitted():
    hog = HistogramOfOrientedGradients(8).fit(np.zeros((1, 32, 16, 3), np.uint8))
    message = r"fitted on images of size \(32, 16\), but these are \(16, 32\); resize them\.$"
    with pytest.raises(InputError, match=message):
        hog.transform(np.zeros((1, 16, 32, 3), np.uint8))


# The table.


def test_the_identity_of_hog_says_what_is_built():
    hog, (height, width) = FEATURES["hog"].build(), FEATURES["hog"].image_size
    assert FEATURES["hog"].identity == (
        f"hog-1: {height}x{width}, cell {hog.cell_pixels}, {hog.orientations} orientations"
    )
    assert (height, width, hog.cell_pixels, hog.orientations) == (128, 128, 16, 9)


def test_the_table_loads_nothing_heavy():
    code = (
        "import sys, cvpipe.features.table, cvpipe.classifiers, cvpipe.opencv; "
        "print({'cv2', 'sklearn', 'tensorflow', 'keras'} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"
