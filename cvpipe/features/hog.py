"""Histogram of oriented gradients."""

import functools
import itertools
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from cvpipe.errors import InputError
from cvpipe.features.base import COLOURS, ImageSize, ImageTransformer, check_choice, check_number
from cvpipe.opencv import import_cv2

BLOCK_NORMS = ("l1", "l1-sqrt", "l2", "l2-hys")
MAX_ORIENTATIONS = 180

# A few images are described at a time: many small arrays cost calls, large ones leave the cache.
PIXELS_AT_ONCE = 2**16

# The difference of two 8-bit levels is one of 511, so the bins of all 511 x 511 gradients fit
# into a table.
NUM_DIFFERENCES = 511
NO_GRADIENT = 255 * NUM_DIFFERENCES + 255  # place in the table

ROOTS = np.sqrt(np.arange(256.0))

# Keep blocks without gradients from being divided by zero; and the bound of "l2-hys".
EPSILON = 1e-5
CLIP = 0.2


class HistogramOfOrientedGradients(ImageTransformer):
    """Describe an image by the directions of its edges, cell by cell.

    A pixel's gradient is the difference of its neighbours below and above, and right and left; at
    the border of the image the difference across it is 0. Directions are counted in square cells,
    weighted by strength. Cells form square blocks that overlap by all but one cell; a block is
    normalised, which makes light and contrast matter little. What is left of an image below and to
    the right of the last whole cell is not counted.

    With `soft` and `signed` off the numbers are those of scikit-image's `hog` (to 1e-6), which
    counts a gradient in one bin of one cell and does without the paper's smoother weights. With
    `soft` a gradient counts in neighbouring bins and cells too, so that a small shift or turn
    changes the row little. The paper interpolates between bins and cells at each gradient and
    pixel; here at the middle of each half bin and half cell, so a half gives three quarters to
    its own and one quarter to the neighbour that it touches (past the outer cells it is lost).
    The paper's Gaussian window over a block is left out.

    Args:
        orientations: Number of bins of directions, up to 180.
        cell_pixels: Side of a cell in pixels; with `soft` the middle line of an odd one counts to
            its first half.
        block_cells: Side of a block in cells; the image must hold at least one block.
        block_norm: How the numbers `v` of a block are normalised, with a small `e`:

            - `"l1"`: `v / (sum(v) + e)`.
            - `"l1-sqrt"`: the square root of that.
            - `"l2"`: `v / sqrt(sum(v ** 2) + e ** 2)`.
            - `"l2-hys"`: as `"l2"`, clipped at 0.2, then as `"l2"` again.
        square_root: Whether to take the square root of each channel first, which makes edges in
            the dark count more.
        colour: `"colour"` takes at each pixel the channel with the strongest gradient (of equally
            strong ones the first of red, green, blue); `"grey"` takes the grey image, 0.299 red +
            0.587 green + 0.114 blue rounded to whole levels, as OpenCV does.
        soft: Whether a gradient also counts in neighbouring bins and cells.
        signed: Whether directions go around 360 degrees, so that an edge from dark to bright
            differs from one from bright to dark, instead of 180.

    References:
        Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005,
        section 6. CS231n 2017, lecture 3.
    """

    title: ClassVar[str] = "HOG"

    def __init__(
        self,
        orientations: int = 9,
        cell_pixels: int = 8,
        block_cells: int = 2,
        block_norm: str = "l2-hys",
        square_root: bool = False,
        colour: str = "colour",
        soft: bool = False,
        signed: bool = False,
    ) -> None:
        self.orientations = orientations
        self.cell_pixels = cell_pixels
        self.block_cells = block_cells
        self.block_norm = block_norm
        self.square_root = square_root
        self.colour = colour
        self.soft = soft
        self.signed = signed

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, and that a block fits into the image.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_number(self.title, "orientations", self.orientations, 1, MAX_ORIENTATIONS)
        check_number(self.title, "cell_pixels", self.cell_pixels, 1)
        check_number(self.title, "block_cells", self.block_cells, 1)
        check_choice(self.title, "block_norm", self.block_norm, BLOCK_NORMS)
        check_choice(self.title, "colour", self.colour, COLOURS)
        block_pixels = self.block_cells * self.cell_pixels
        if min(image_size) < block_pixels:
            raise InputError(
                f"{self.title} needs images of at least {block_pixels} pixels per side for a block "
                f"of {self.block_cells} x {self.block_cells} cells of {self.cell_pixels} pixels, "
                f"but they are {image_size}; choose a larger image size, smaller cells or blocks."
            )

    def cell_strengths(self, rows: np.ndarray) -> np.ndarray:
        """Recover how strong each direction is in each cell, for a picture of what HOG sees.

        Args:
            rows: What `transform` returned for n images.

        Returns:
            `float32` array of shape `(n, cells_down, cells_across, orientations)`: the mean over
            the blocks that contain a cell, each normalised in its own way. Bin `i` of unsigned
            directions has those from `i` to `i + 1` times `180 / orientations` degrees (360 when
            signed), where 0 is brighter to the right, 90 brighter below; an edge itself runs
            across the direction.

        Raises:
            InputError: The rows have another length than `transform` gives.
        """
        self.check_fitted()
        if rows.ndim != 2 or rows.shape[1] != self.n_features_out_:
            raise InputError(
                f"rows of {self.title} must be of shape (n, {self.n_features_out_}), but are of "
                f"shape {rows.shape}; pass what transform returned."
            )
        down, across = (side // self.cell_pixels for side in self.image_size_)
        block = self.block_cells
        blocks = rows.reshape(
            (len(rows), down - block + 1, across - block + 1, block, block, self.orientations)
        )
        sums = np.zeros((len(rows), down, across, self.orientations), dtype=np.float32)
        num_blocks = np.zeros((down, across, 1), dtype=np.float32)
        for row, column in itertools.product(range(block), repeat=2):
            covered = np.s_[row : row + down - block + 1, column : column + across - block + 1]
            sums[:, *covered] += blocks[:, :, :, row, column]
            num_blocks[covered] += 1
        return sums / num_blocks

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Block by block, row by row from the top; in a block cell by cell in the same order; in a
        cell by direction: values in [0, 1]. Beyond the rows it takes up to 90 bytes for each pixel
        of 65,536 (or of one image if it has more) and a few times the rows of these images.
        """
        at_once = max(1, PIXELS_AT_ONCE // (images.shape[1] * images.shape[2]))
        down, across = (
            side // self.cell_pixels - self.block_cells + 1 for side in images.shape[1:3]
        )
        row_size = down * across * self.block_cells**2 * self.orientations
        rows = np.empty((len(images), row_size), dtype=np.float32)
        for start in range(0, len(images), at_once):
            few = np.s_[start : start + at_once]
            rows[few] = self._describe_few(images[few])
        return rows

    def _describe_few(self, images: np.ndarray) -> np.ndarray:
        channels = split_channels(images, self.colour)
        if self.square_root:
            gradients = find_gradients(ROOTS.take(channel) for channel in channels)
            sort = find_bins
        else:
            gradients = find_gradients(channel.astype(np.int16) for channel in channels)
            sort = look_up_bins
        down, right, strengths = gradients
        parts = 2 if self.soft else 1
        num_bins = parts * self.orientations
        bins = sort(down, right, num_bins, self.signed)
        cells = count_votes(bins, strengths, num_bins, self.cell_pixels, parts)
        if self.soft:
            cells = share_halves(share_halves(cells, axis=1), axis=2)
            cells = share_halves(cells, axis=3, circular=True)
        cells /= np.float32(self.cell_pixels**2)
        blocks = normalise_blocks(cells, self.block_cells, self.block_norm)
        return blocks.reshape(len(images), -1)


def split_channels(images: np.ndarray, colour: str) -> list[np.ndarray]:
    """Split images into the channels whose gradients are compared.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`, RGB.
        colour: One of `COLOURS`.

    Returns:
        One or three contiguous `uint8` arrays of shape `(n, height, width)`; one also when the
        three are equal, which changes no row and saves time.
    """
    num_images, height, width = images.shape[:3]
    if colour == "grey":
        cv2 = import_cv2()
        stacked = np.ascontiguousarray(images).reshape(num_images * height, width, 3)
        grey = cv2.cvtColor(stacked, cv2.COLOR_RGB2GRAY)
        return [grey.reshape(num_images, height, width)]
    channels = [np.ascontiguousarray(images[..., channel]) for channel in range(3)]
    alike = all(np.array_equal(channels[0], channel) for channel in channels[1:])
    return channels[:1] if alike else channels


def find_slopes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take differences across each pixel.

    Args:
        values: Contiguous array of shape `(n, height, width)` of a type with a sign.

    Returns:
        Below minus above and right minus left, of the same shape and type; 0 where one of the two
        is outside the image.

    Example:
        >>> down, right = find_slopes(np.array([[[1, 2, 4], [3, 3, 3], [9, 9, 9]]]))
        >>> down[0, 1], right[0, 0]
        (array([8, 7, 5]), array([0, 3, 0]))
    """
    down, right = np.zeros_like(values), np.zeros_like(values)
    np.subtract(values[:, 2:], values[:, :-2], out=down[:, 1:-1])
    # Along one long line, because short ones are slow; what reaches around a border is cleared.
    line = values.ravel()
    np.subtract(line[2:], line[:-2], out=right.ravel()[1:-1])
    right[:, :, [0, -1]] = 0
    return down, right


def find_bins(down: np.ndarray, right: np.ndarray, num_bins: int, signed: bool) -> np.ndarray:
    """Sort gradients by direction.

    Args:
        down: Differences from above to below.
        right: Differences from left to right, of the same shape.
        num_bins: Number of equally wide bins. A direction on the border of two bins belongs to
            the upper one.
        signed: Whether the bins divide 360 degrees instead of 180.

    Returns:
        `int32` array of the same shape.

    Example:
        >>> find_bins(np.array([0, 1, 1, 0, -1]), np.array([1, 0, -1, -1, -1]), 4, signed=False)
        array([0, 2, 3, 0, 1], dtype=int32)
    """
    circle = 360 if signed else 180
    angles = np.rad2deg(np.arctan2(down, right, dtype=np.float64))
    angles += circle * (angles < 0)
    angles[angles == circle] = 0
    bins = np.zeros(angles.shape, dtype=np.int32)
    # For few bins a pass for each border is several times faster than a search for each angle.
    for number in range(1, num_bins):
        bins += angles >= circle / num_bins * number
    return bins


@functools.lru_cache(maxsize=8)
def tabulate_bins(num_bins: int, signed: bool) -> np.ndarray:
    """Sort each gradient that 8-bit levels can have, once and for all.

    Returns:
        Array of length `511 * 511`, as small as holds the bins (261 kB for up to 255); that of
        `down` and `right` is at `NO_GRADIENT + 511 * down + right`.
    """
    differences = np.arange(-255, 256)
    bins = find_bins(differences[:, None], differences, num_bins, signed).ravel()
    bins = bins.astype(np.min_scalar_type(num_bins))
    bins.setflags(write=False)
    return bins


def look_up_bins(down: np.ndarray, right: np.ndarray, num_bins: int, signed: bool) -> np.ndarray:
    """Do as `find_bins` for differences of 8-bit levels, `int16`, many times faster."""
    places = down.astype(np.int32)
    places *= NUM_DIFFERENCES
    places += right
    places += NO_GRADIENT
    return tabulate_bins(num_bins, signed).take(places)


def find_strengths(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Compute the lengths of gradients.

    Args:
        down: `int16` (differences of 8-bit levels) or `float64` array.
        right: Array of the same shape and type.

    Returns:
        `float32` or `float64` array. Squares of whole numbers are exact, so equally strong ones
        are equal; others are rounded as in scikit-image, and so is which of two is stronger.
    """
    if down.dtype == np.float64:
        return np.hypot(right, down)
    squares = down.astype(np.float32) ** 2
    squares += right.astype(np.float32) ** 2
    return np.sqrt(squares, out=squares)


def find_gradients(channels: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the gradient of each pixel, in its strongest channel.

    Args:
        channels: Contiguous arrays of shape `(n, height, width)`, all `int16` or all `float64`. Of
            equally strong channels the first counts.

    Returns:
        Differences downwards and to the right, and strengths, of the same shape.
    """
    cv2 = import_cv2()
    strongest: list[np.ndarray] = []
    for channel in channels:
        down, right = find_slopes(channel)
        gradient = [down, right, find_strengths(down, right)]
        # OpenCV takes two axes, and is several times faster here than NumPy's `where`.
        gradient = [part.reshape(len(channel), -1) for part in gradient]
        if strongest:
            stronger = cv2.compare(gradient[2], strongest[2], cv2.CMP_GT)
            for part, kept in zip(gradient, strongest, strict=True):
                cv2.copyTo(part, stronger, kept)
        else:
            strongest = gradient
    down, right, strengths = (part.reshape(channel.shape) for part in strongest)
    return down, right, strengths


def count_votes(
    bins: np.ndarray, strengths: np.ndarray, num_bins: int, cell_pixels: int, parts: int = 1
) -> np.ndarray:
    """Sum the strengths of each bin in each cell.

    Args:
        bins: Array of whole numbers of shape `(n, height, width)`.
        strengths: Array of the same shape.
        num_bins: Number of bins.
        cell_pixels: Side of a cell; what is left of the image after the last one is not counted.
        parts: Parts into which the side of a cell is divided.

    Returns:
        `float32` array of shape `(n, parts * cells_down, parts * cells_across, num_bins)`.
    """
    num_images, height, width = bins.shape
    down, across = height // cell_pixels, width // cell_pixels
    rows, columns = parts * down, parts * across
    top = parts * np.arange(down * cell_pixels, dtype=np.int32) // cell_pixels
    left = parts * np.arange(across * cell_pixels, dtype=np.int32) // cell_pixels
    counted = np.s_[:, : len(top), : len(left)]
    # All images in one call: each bin of each cell of each image has a place of its own.
    places = bins[counted] + (top[:, None] * columns + left) * num_bins
    size = rows * columns * num_bins
    places += np.arange(num_images, dtype=np.int32)[:, None, None] * size
    counts = np.bincount(places.ravel(), strengths[counted].ravel(), num_images * size)
    return counts.astype(np.float32).reshape(num_images, rows, columns, num_bins)


def share_halves(halves: np.ndarray, axis: int, circular: bool = False) -> np.ndarray:
    """Put halves together, each giving a quarter to the neighbour that it touches.

    Args:
        halves: `float32` array with an even number of halves along the axis.
        axis: Axis.
        circular: Whether the last is a neighbour of the first; otherwise the outer quarters are
            lost.

    Returns:
        `float32` array, half as long along the axis.

    Example:
        >>> share_halves(np.float32([4, 0, 0, 8, 0, 0]), axis=0)
        array([3., 6., 2.], dtype=float32)
        >>> share_halves(np.float32([4, 0, 0, 8, 0, 0]), axis=0, circular=True)
        array([3., 6., 3.], dtype=float32)
    """
    halves = np.ascontiguousarray(np.moveaxis(halves, axis, 0))
    first, second = halves[0::2], halves[1::2]
    shared = np.float32(0.75) * (first + second)
    shared[1:] += np.float32(0.25) * second[:-1]
    shared[:-1] += np.float32(0.25) * first[1:]
    if circular:
        shared[0] += np.float32(0.25) * second[-1]
        shared[-1] += np.float32(0.25) * first[0]
    return np.moveaxis(shared, 0, axis)


def normalise_blocks(cells: np.ndarray, block_cells: int, block_norm: str) -> np.ndarray:
    """Arrange cells in overlapping blocks and normalise each block.

    Args:
        cells: `float32` array of shape `(n, cells_down, cells_across, orientations)`, at least 0.
        block_cells: Side of a block in cells.
        block_norm: One of `BLOCK_NORMS`.

    Returns:
        `float32` array of shape `(n, blocks_down, blocks_across, block_cells, block_cells *
        orientations)`, values in [0, 1].
    """
    num_images, down, across, orientations = cells.shape
    lines = np.ascontiguousarray(cells).reshape(num_images, down, across * orientations)
    window = (block_cells, block_cells * orientations)
    windows = np.lib.stride_tricks.sliding_window_view(lines, window, axis=(1, 2))
    blocks = windows[:, :, ::orientations].copy()
    rows = blocks.reshape(-1, window[0] * window[1])
    # In place, and with sums of einsum, which do not depend on the number of rows.
    if block_norm in ("l1", "l1-sqrt"):
        rows /= (np.einsum("ij->i", rows) + np.float32(EPSILON))[:, None]
    else:
        _make_unit_length(rows)
    if block_norm == "l1-sqrt":
        np.sqrt(rows, out=rows)
    if block_norm == "l2-hys":
        np.minimum(rows, np.float32(CLIP), out=rows)
        _make_unit_length(rows)
    return blocks


def _make_unit_length(rows: np.ndarray) -> None:
    rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows) + np.float32(EPSILON**2))[:, None]
