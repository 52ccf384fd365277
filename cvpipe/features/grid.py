"""A grid of cells over an image: where things are, roughly."""

import itertools

import numpy as np

from cvpipe.features.base import ImageSize, check_choice

Cell = tuple[slice, slice]


def check_grid(title: str, grid: int, image_size: ImageSize) -> None:
    """Check that every cell of a grid gets at least one pixel.

    Args:
        title: How messages call the feature.
        grid: Cells per side.
        image_size: `(height, width)` of what is divided, in pixels.

    Raises:
        InputError: The grid is not a whole number of cells, or there are more cells than pixels.
    """
    check_choice(title, "grid", grid, range(1, min(image_size) + 1))


def cell_borders(num_pixels: int, num_cells: int) -> np.ndarray:
    """Divide a side into cells that differ by one pixel at most.

    Args:
        num_pixels: Length of the side.
        num_cells: Number of cells, at most as many as pixels.

    Returns:
        `int64` array of shape `(num_cells + 1,)`: cell `i` has the pixels from `borders[i]` up to
        and without `borders[i + 1]`, so each pixel lies in exactly one cell. A border is where
        exact division would put it, rounded; a half is rounded up.

    Example:
        >>> cell_borders(10, 4)
        array([ 0,  3,  5,  8, 10])
    """
    return (2 * num_pixels * np.arange(num_cells + 1) + num_cells) // (2 * num_cells)


def grid_cells(image_size: ImageSize, grid: int) -> list[Cell]:
    """List the cells of a grid, row by row from the top, each from the left.

    Args:
        image_size: `(height, width)` in pixels.
        grid: Cells per side; see `check_grid`.

    Returns:
        `grid ** 2` pairs of slices; `image[cell]` is the part of the image in a cell.
    """
    rows, columns = (
        [slice(*pair) for pair in itertools.pairwise(cell_borders(side, grid).tolist())]
        for side in image_size
    )
    return [(row, column) for row in rows for column in columns]
