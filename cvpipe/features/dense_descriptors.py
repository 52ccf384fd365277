"""Local descriptors on a grid: `uint8` images in, one SIFT-like row per grid point out.

A grid point is the centre of a square patch of 4 x 4 cells. Patches lie wholly inside the image,
`step_pixels` apart along rows and columns, and what is left over is shared out evenly between
opposite rims. With several cell sizes there is a grid for each, one after the other; the points of
a grid go row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cvpipe.errors import InputError
from cvpipe.features.base import ImageSize, check_number
from cvpipe.opencv import import_cv2

NUM_DIRECTIONS = 8
CELLS_PER_SIDE = 4
DESCRIPTOR_LENGTH = CELLS_PER_SIDE**2 * NUM_DIRECTIONS
MAX_CELL_PIXELS = 15  # beyond, a weighted sum of grey levels could overflow 16 bits
LARGEST_SHARE = 0.2  # of a value in the length of its descriptor, before it is cut off
# Length of a patch's vector, over the weight of a cell's window, below which it counts as flat:
# differences between opposite neighbours, in grey levels of 0 to 255.
LEAST_CONTRAST = 1.0
BLOCK_PIXELS = 2**16  # of images at a time: more do not fit into the cache of a core


def dense_descriptors(
    images: np.ndarray, step_pixels: int, cell_pixels: tuple[int, ...], root: bool = True
) -> np.ndarray:
    """Describe the patch around each grid point by the directions of its edges.

    The gradients of the grey image are split between 8 directions, summed in the 4 x 4 cells of
    the patch and normalised: to length 1, cut off at 0.2, and to length 1 again. With `root` the
    last step makes the sum 1 instead and takes square roots, so that a dot product of two
    rows compares them as histograms do (Hellinger). A flat patch has a row of zeros: one whose
    cells have a mean gradient shorter than `LEAST_CONTRAST` grey levels.

    A pixel counts in the nearest cells, with weights that fall linearly from the centre of a cell
    to those of its neighbours, along rows and columns; so a patch looks half a cell farther than
    it is wide. Summing in plain boxes is faster, but was 1 to 2 points of accuracy worse.

    Where this departs from Lowe: there is no Gaussian window over the patch, no scale space and no
    turning upright; and a gradient is split into two vectors along the nearest of the directions,
    which add up to it, instead of sharing out its length by angle.

    Summing is cheapest where the step and the cells have a large common divisor. Beside the result
    it holds 15 to 50 bytes per pixel of a block of images, 190 where there is no common divisor;
    a block has up to 65,536 pixels, or is one image.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`, RGB.
        step_pixels: Distance of neighbouring grid points in pixels.
        cell_pixels: Sides of the square cells in pixels, a grid for each, up to 15.
        root: Whether to take square roots.

    Returns:
        `float32` array of shape `(n, num_points, 128)`, values in [0, 1], rows of length 1 or 0.
        A row goes from cell to cell, row by row; and in a cell from gradients to the right (from
        dark to bright) in steps of 45 degrees to those downwards and on around. The row
        of an image has the same bits in any company.

    Raises:
        InputError: The step or a cell size is not possible, or the images are smaller than a patch.

    References:
        Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 60, 2004,
        section 6. Bosch, Zisserman and Munoz, "Image Classification using Random Forests and
        Ferns", ICCV 2007 (dense, several scales). Vedaldi and Fulkerson, "VLFeat", ACM Multimedia
        2010 (flat window). Arandjelovic and Zisserman, "Three things everyone should
        know to improve object retrieval", CVPR 2012, section 3 (square roots).
    """
    num_images, height, width = images.shape[:3]
    check_patch_grid("a grid of descriptors", (height, width), step_pixels, cell_pixels)
    grids = [_Grid.of((height, width), step_pixels, cell) for cell in cell_pixels]
    ends = np.cumsum([0, *(math.prod(grid.size) for grid in grids)]).tolist()
    descriptors = np.empty((num_images, ends[-1], DESCRIPTOR_LENGTH), dtype=np.float32)
    block_length = max(1, min(num_images, BLOCK_PIXELS // (height * width)))
    margin = max(cell_pixels) // 2 + 1
    parts = np.zeros(
        (NUM_DIRECTIONS, height + 2 * margin, block_length, width + 2 * margin), dtype=np.uint8
    )
    for start in range(0, num_images, block_length):
        block = images[start : start + block_length]
        if len(block) < block_length:
            parts = np.ascontiguousarray(parts[:, :, : len(block)])
        _split_gradients(block, parts, margin)
        for grid, (first, end) in zip(grids, pairwise(ends), strict=True):
            out = descriptors[start : start + len(block), first:end]
            _describe_grid(parts, margin, grid, root, out)
    return descriptors


def descriptor_places(
    image_size: ImageSize, step_pixels: int, cell_pixels: tuple[int, ...]
) -> np.ndarray:
    """Locate the grid points, in the order of the descriptors.

    Args:
        image_size: `(height, width)` in pixels.
        step_pixels: See `dense_descriptors`.
        cell_pixels: See `dense_descriptors`.

    Returns:
        `float32` array of shape `(num_points, 2)`: row and column of the centre of each patch, as
        shares of height and width, in (0, 1).

    Raises:
        InputError: See `dense_descriptors`.

    Example:
        >>> descriptor_places((16, 40), step_pixels=8, cell_pixels=(4,)).tolist()[:3]
        [[0.5, 0.20000000298023224], [0.5, 0.4000000059604645], [0.5, 0.6000000238418579]]
    """
    check_patch_grid("a grid of descriptors", image_size, step_pixels, cell_pixels)
    sides = [CELLS_PER_SIDE * cell for cell in cell_pixels]
    return patch_places(grid_patches(image_size, step_pixels, sides), image_size)


def count_places(image_size: ImageSize, step_pixels: int, cell_pixels: tuple[int, ...]) -> int:
    """Count the grid points of all grids; arguments and errors as in `descriptor_places`.

    Example:
        >>> count_places((224, 224), step_pixels=8, cell_pixels=(4,))
        729
    """
    return len(descriptor_places(image_size, step_pixels, cell_pixels))


def check_patch_grid(
    title: str, image_size: ImageSize, step_pixels: int, cell_pixels: tuple[int, ...]
) -> None:
    """Check that there is at least one patch of each size in an image.

    Args:
        title: How messages call the feature.
        image_size: `(height, width)` in pixels.
        step_pixels: See `dense_descriptors`.
        cell_pixels: See `dense_descriptors`.

    Raises:
        InputError: There is none, or a setting is not possible.
    """
    check_number(title, "step_pixels", step_pixels, 1, min(image_size))
    if not cell_pixels or not all(1 <= cell <= MAX_CELL_PIXELS for cell in cell_pixels):
        raise InputError(
            f"cell_pixels of {title} is {cell_pixels!r}, but must list one or more cell sides "
            f"between 1 and {MAX_CELL_PIXELS}."
        )
    side = CELLS_PER_SIDE * max(cell_pixels)
    if min(image_size) < side:
        raise InputError(
            f"{title} with cells of {max(cell_pixels)} pixels needs images of at least "
            f"{(side, side)}, but they are {tuple(image_size)}; lower cell_pixels or choose "
            "another image size."
        )


def patch_starts(length: int, step_pixels: int, side: int) -> np.ndarray:
    """Find where patches begin along an axis, the rest shared out evenly at both ends.

    Example:
        >>> patch_starts(length=21, step_pixels=8, side=8).tolist()  # up to pixel 2 + 8 + 8 = 18
        [2, 10]
    """
    rest = (length - side) % step_pixels
    return np.arange(rest // 2, length - side + 1, step_pixels)


def grid_patches(image_size: ImageSize, step_pixels: int, sides: Sequence[int]) -> np.ndarray:
    """Locate the patches of one or more grids, grid by grid and row by row.

    Args:
        image_size: `(height, width)` in pixels.
        step_pixels: Distance of neighbouring patches in pixels.
        sides: Side of a patch in pixels, for each grid; at most that of the image.

    Returns:
        `int64` array of shape `(num_patches, 3)`: the first row and column of each patch, and its
        side.

    Example:
        >>> grid_patches((8, 9), step_pixels=4, sides=[4, 8]).tolist()
        [[0, 0, 4], [0, 4, 4], [4, 0, 4], [4, 4, 4], [0, 0, 8]]
    """
    return np.array(
        [
            (top, left, side)
            for side in sides
            for top in patch_starts(image_size[0], step_pixels, side)
            for left in patch_starts(image_size[1], step_pixels, side)
        ]
    )


def patch_places(patches: np.ndarray, image_size: ImageSize) -> np.ndarray:
    """Find the centres of patches, as shares of height and width.

    Args:
        patches: See `grid_patches`.
        image_size: `(height, width)` in pixels.

    Returns:
        `float32` array of shape `(num_patches, 2)`, see `descriptor_places`.
    """
    corners, sides = patches[:, :2], patches[:, 2:]
    return ((corners + sides / 2) / image_size).astype(np.float32)


@dataclass(frozen=True)
class _Grid:
    """Where the cells and patches of one grid lie.

    Patches share cells, so each cell is summed once. There is one every `stride` pixels; counted
    in strides, neighbouring patches are `step` apart and neighbouring cells of a patch `apart`.
    """

    cell_pixels: int
    begin: tuple[int, int]  # first row and column of the first patch
    size: tuple[int, int]  # number of patches along rows and columns
    stride: int
    step: int
    apart: int

    @classmethod
    def of(cls, image_size: ImageSize, step_pixels: int, cell_pixels: int) -> "_Grid":
        side = CELLS_PER_SIDE * cell_pixels
        rows, columns = (patch_starts(length, step_pixels, side) for length in image_size)
        stride = math.gcd(step_pixels, cell_pixels)
        return cls(
            cell_pixels=cell_pixels,
            begin=(int(rows[0]), int(columns[0])),
            size=(len(rows), len(columns)),
            stride=stride,
            step=step_pixels // stride,
            apart=cell_pixels // stride,
        )

    def num_cells(self, axis: int) -> int:
        """Count the cells along an axis."""
        return (self.size[axis] - 1) * self.step + (CELLS_PER_SIDE - 1) * self.apart + 1

    @property
    def window_weight(self) -> int:
        """Sum of the weights along one side of a window."""
        return self.cell_pixels * (self.cell_pixels + 1 - self.cell_pixels % 2)

    def in_patches(self, cell: int, axis: int) -> slice:
        """Find the cells that are number `cell` of their patch along an axis."""
        return _every(cell * self.apart, self.size[axis], self.step)


def _split_gradients(images: np.ndarray, parts: np.ndarray, margin: int) -> None:
    """Split the gradient of each pixel into 4 parts along the axes and 4 along diagonals.

    A gradient is the grey level of one neighbour less that of the opposite one, and 0 where there
    is no such neighbour. The parts are how far it reaches right, down, left and up; in between,
    the smaller one of both sides: the stretch that both run along their diagonal.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`.
        parts: `uint8` array of shape `(8, margin + height + margin, n, margin + width + margin)`
            to write into, with zeros around the images; by increasing angle, so the even ones
            are along the axes.
        margin: At least 1.
    """
    cv2 = import_cv2()
    num_images, height, width = images.shape[:3]
    colours = np.ascontiguousarray(images).reshape(num_images * height, width, 3)
    levels = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY).reshape(num_images, height, width)
    # Images side by side make long rows, which NumPy adds faster than many short ones.
    grey = np.zeros((height, num_images, width + 2 * margin), dtype=np.uint8)
    grey[:, :, margin:-margin] = levels.transpose(1, 0, 2)
    right, down, left, up = parts[::2, margin:-margin]
    _split_sign(grey[2:], grey[:-2], down[1:-1], up[1:-1])
    # All rows as one, for the same reason. The rim has no neighbour on the other side.
    flat_grey, flat_right, flat_left = (array.reshape(-1) for array in (grey, right, left))
    _split_sign(flat_grey[2:], flat_grey[:-2], flat_right[1:-1], flat_left[1:-1])
    for part in (right, left):
        part[:, :, margin - 1 : margin + 1] = part[:, :, -margin - 1 : -margin + 1 or None] = 0
    for direction in range(1, NUM_DIRECTIONS, 2):
        after = (direction + 1) % NUM_DIRECTIONS
        np.minimum(parts[direction - 1], parts[after], out=parts[direction])


def _split_sign(
    ahead: np.ndarray, behind: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> None:
    """Write the positive and the negative part of a difference."""
    larger = np.maximum(ahead, behind)
    np.subtract(larger, behind, out=positive)
    np.subtract(larger, ahead, out=negative)


def _describe_grid(
    parts: np.ndarray, margin: int, grid: _Grid, root: bool, out: np.ndarray
) -> None:
    """Describe the points of one grid from split gradients.

    Args:
        parts: See `_split_gradients`.
        margin: As there.
        grid: The grid.
        root: See `dense_descriptors`.
        out: `float32` array of shape `(n, points, 128)` to write into.
    """
    cells = _sum_cells(parts, margin, grid)
    lengths = _patch_lengths(cells, grid)
    patches = _patches(np.sqrt(cells, out=cells) if root else cells, grid)
    out.reshape(patches.shape)[:] = patches  # a view: axes are only divided

    limits = LARGEST_SHARE * lengths
    np.minimum(out, np.sqrt(limits) if root else limits, out=out)
    cut_lengths = np.sqrt(np.vecdot(out, out))[..., None]
    is_flat = lengths < LEAST_CONTRAST * grid.window_weight**2
    out *= np.divide(1, cut_lengths, out=np.zeros_like(lengths), where=~is_flat)


def _sum_cells(parts: np.ndarray, margin: int, grid: _Grid) -> np.ndarray:
    """Sum the gradients along the 8 directions in the window of each cell.

    Returns:
        `float32` array of shape `(8, cell rows, n, cell columns)`.
    """
    cells = parts
    for axis, dtype in ((0, np.dtype(np.uint16)), (1, np.dtype(np.float32))):
        begin = margin + grid.begin[axis] - grid.cell_pixels // 2
        cells = _sum_windows(cells, 1 + 2 * axis, begin, grid.num_cells(axis), grid, dtype)
    # What runs along a diagonal is taken from the axes on both sides of it.
    axes, diagonals = cells[::2], cells[1::2]
    axes -= diagonals
    axes[1:] -= diagonals[:-1]
    axes[0] -= diagonals[-1]
    diagonals *= np.float32(math.sqrt(2))  # the length of (1, 1)
    return cells


def _sum_windows(
    values: np.ndarray, axis: int, begin: int, count: int, grid: _Grid, dtype: np.dtype
) -> np.ndarray:
    """Sum along an axis in windows whose weights rise from 1 to the cell's pixels and fall again.

    A window has two halves of a cell's pixels each; in its middle, the largest weight occurs twice
    if their number is even. So it is the ramp 1, 2, 3 ... over its first half, and
    over the second half a constant less that ramp.

    Args:
        values: Array of any shape.
        axis: The axis.
        begin: Where the first window begins.
        count: How many windows there are, one every `grid.stride`.
        grid: The grid.
        dtype: Of the sums.

    Returns:
        Array with `count` entries along the axis.
    """
    stride, apart, pixels = grid.stride, grid.apart, grid.cell_pixels
    values = values.swapaxes(0, axis)
    num_strides = count + 2 * apart - 1
    totals: np.ndarray = values[_every(begin + stride - 1, num_strides, stride)].astype(dtype)
    ramps = totals.copy(order="K")
    for row in reversed(range(stride - 1)):
        totals += values[_every(begin + row, num_strides, stride)]
        ramps += totals
    # The same once more, to get from strides to halves of windows.
    half_totals, half_ramps = totals[apart - 1 :], ramps[apart - 1 :]
    for first in reversed(range(apart - 1)):
        part = slice(first, first + count + apart)
        half_ramps = half_ramps + ramps[part]
        half_ramps += stride * half_totals
        half_totals = half_totals + totals[part]
    sums = (pixels + 1 - pixels % 2) * half_totals[apart:]
    sums -= half_ramps[apart:]
    sums += half_ramps[:count]
    return sums.swapaxes(0, axis)


def _patch_lengths(cells: np.ndarray, grid: _Grid) -> np.ndarray:
    """Find the length of each patch's vector, `(n, points, 1)`."""
    squares = np.square(cells).sum(axis=0)
    side = range(CELLS_PER_SIDE)
    squares = sum(squares[grid.in_patches(cell, 0)] for cell in side)
    squares = sum(squares[:, :, grid.in_patches(cell, 1)] for cell in side)
    return np.sqrt(squares.transpose(1, 0, 2)).reshape(cells.shape[2], -1, 1)


def _patches(cells: np.ndarray, grid: _Grid) -> np.ndarray:
    """View `(8, rows, n, columns)` as `(n, grid rows, grid columns, 4, 4, 8)`."""
    cells = np.ascontiguousarray(cells.transpose(2, 1, 3, 0))
    image, row, column, direction = cells.strides
    step, apart = grid.step, grid.apart
    return as_strided(
        cells,
        (len(cells), *grid.size, CELLS_PER_SIDE, CELLS_PER_SIDE, NUM_DIRECTIONS),
        (image, step * row, step * column, apart * row, apart * column, direction),
        writeable=False,
    )


def _every(first: int, count: int, step: int) -> slice:
    """Choose `count` entries, `step` apart."""
    return slice(first, first + (count - 1) * step + 1, step)
