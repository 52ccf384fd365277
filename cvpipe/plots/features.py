"""Pictures of what features and linear classifiers hold, as `uint8` arrays.

They are pictures, not figures: each can stand beside the photo that it belongs to.
"""

import numpy as np

from cvpipe.errors import InputError

PAPER = 255  # grey level of the gaps between tiles
ZERO = 128  # grey level of a weight of zero
LARGEST = 127  # how far the largest weight is from it


def hog_glyphs(strengths: np.ndarray, cell_pixels: int = 16, signed: bool = False) -> np.ndarray:
    """Draw the edges of each cell of a HOG as a star of strokes.

    A stroke lies along the edges that were counted: perpendicular to their gradients. The
    stronger the edges, the brighter; where strokes cross, the brighter one is seen.

    Args:
        strengths: Array of shape `(cells_down, cells_across, orientations)`, not negative: how
            strong the gradients of each direction are. Direction `k` of `n` has its centre at
            `(k + 0.5) * 180 / n` degrees, from the right towards the bottom.
        cell_pixels: Side of a drawn cell.
        signed: Whether the directions go around 360 degrees instead: those that are opposite
            have strokes at the same place.

    Returns:
        `uint8` array of shape `(cells_down * cell_pixels, cells_across * cell_pixels)`: black is
        no edge, the strongest edge is the brightest; all black where there is no edge at all.

    Raises:
        InputError: The strengths are no such array.

    References:
        Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005,
        figure 6. CS231n 2017, lecture 3.
    """
    if strengths.ndim != 3 or not np.isfinite(strengths).all() or (strengths < 0).any():
        raise InputError(
            "glyphs are drawn from strengths of shape (cells_down, cells_across, orientations), "
            f"finite and not negative, but these are of shape {strengths.shape}; take them from "
            "cell_strengths of a fitted HOG."
        )
    down, across, orientations = strengths.shape
    strokes = _strokes(orientations, cell_pixels, 2 * np.pi if signed else np.pi)
    cells = np.zeros((down, cell_pixels, across, cell_pixels))
    for direction, stroke in enumerate(strokes):
        drawn = strengths[:, None, :, None, direction] * stroke[:, None, :]
        np.maximum(cells, drawn, out=cells)
    picture = cells.reshape(down * cell_pixels, across * cell_pixels)
    return np.rint(255 * picture / max(picture.max(), np.finfo(float).tiny)).astype(np.uint8)


def _strokes(orientations: int, cell_pixels: int, turn: float) -> np.ndarray:
    """Draw the edge of each gradient direction: `float64 (orientations, side, side)` in [0, 1]."""
    place = np.arange(cell_pixels) - (cell_pixels - 1) / 2
    down, across = place[:, None], place[None, :]
    angle = (np.arange(orientations) + 0.5)[:, None, None] * turn / orientations
    # Along its gradient an edge is as wide as a pixel, at right angles as long as the cell.
    from_edge = np.abs(across * np.cos(angle) + down * np.sin(angle))
    inside = np.hypot(down, across) <= cell_pixels / 2
    return np.clip(1 - from_edge, 0, 1) * inside


def tile_sheet(tiles: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """Lay tiles out in rows on one sheet, such as the words of a codebook.

    Args:
        tiles: `uint8` RGB of shape `(k, height, width, 3)`, at least one.
        columns: Tiles per row, from the left; the last row may have fewer.
        gap: White pixels between tiles.

    Returns:
        `uint8` RGB picture.

    Raises:
        InputError: The tiles are no such array, or there is no column.
    """
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8 or not tiles.size:
        raise InputError(
            f"a sheet needs uint8 tiles of shape (k, height, width, 3), at least one, but got "
            f"{tiles.dtype} of shape {tiles.shape}."
        )
    if columns < 1:
        raise InputError(f"a sheet of {columns} columns has no room for tiles; give at least 1.")
    number, height, width, _ = tiles.shape
    columns = min(columns, number)
    rows = -(-number // columns)
    sheet = np.full((rows, height + gap, columns, width + gap, 3), PAPER, dtype=np.uint8)
    for place, tile in enumerate(tiles):
        sheet[place // columns, :height, place % columns, :width] = tile
    picture = sheet.reshape(rows * (height + gap), columns * (width + gap), 3)
    return picture[: picture.shape[0] - gap, : picture.shape[1] - gap]


def class_templates(kernel: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Show the weights of a linear classifier on pixels as one image per class.

    A value above the middle grey speaks for the class where the pixel is bright, one below it
    where the pixel is dark; in colour, by channel. Each image has its own scale: its largest
    weight, in either direction, is as far from grey as can be.

    Args:
        kernel: Weights of shape `(num_values, num_classes)`, the values in the order of raw
            pixels: row by row, pixel by pixel, red, green, blue, or one grey value each. A single
            column is a classifier of two classes that speaks for the second one.
        image_size: `(height, width)` in pixels.

    Returns:
        `uint8` RGB of shape `(num_classes, height, width, 3)`; of a single column its negative
        and itself. A weight of zero is 128, the largest 1 or 255.

    Raises:
        InputError: There are not as many weights as pixels, or channels.

    References:
        CS231n 2017, lecture 2 (the rows of W of a linear classifier of CIFAR-10 as images).
    """
    height, width = image_size
    channels = len(kernel) // (height * width)
    if kernel.ndim != 2 or channels not in (1, 3) or len(kernel) != height * width * channels:
        raise InputError(
            f"templates of {height}x{width} pixels need {height * width} weights per class, or "
            f"{3 * height * width} in colour, but the weights are of shape {kernel.shape}."
        )
    weights = kernel.astype(np.float64).T
    if len(weights) == 1:
        weights = np.concatenate([-weights, weights])
    largest = np.abs(weights).max(axis=1, keepdims=True)
    levels = ZERO + LARGEST * weights / np.where(largest > 0, largest, 1)
    templates = np.rint(levels).astype(np.uint8).reshape(-1, height, width, channels)
    return np.repeat(templates, 3 // channels, axis=3)
