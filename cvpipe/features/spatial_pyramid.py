"""Where in the image words occur, roughly: counts over ever finer divisions of it."""

import numpy as np

from cvpipe.errors import InputError

MAX_LEVELS = 6  # 1,365 cells; more are finer than any grid of descriptors


def pyramid_cells(levels: int) -> np.ndarray:
    """List the cells of a pyramid in the order in which `pool` lays them out.

    Level 0 is the whole image; each further level halves height and width of every cell.

    Args:
        levels: Number of levels, 1 to 6; 3 have 1, 4 and 16 cells.

    Returns:
        `int64` array of shape `(num_cells, 3)`: level, row and column of each cell, level by level
        and row by row.

    Raises:
        InputError: The number of levels is not possible.

    Example:
        >>> pyramid_cells(2).tolist()
        [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise InputError(
            f"a spatial pyramid of {levels!r} levels was asked for; choose 1 to {MAX_LEVELS}."
        )
    return np.array(
        [
            (level, row, column)
            for level in range(levels)
            for row in range(2**level)
            for column in range(2**level)
        ]
    )


def level_weights(levels: int) -> np.ndarray:
    """Weigh the levels of a pyramid so that finding a word in a smaller cell counts more.

    With the finest level L, level 0 has the weight 1 / 2^L and level l has 1 / 2^(L - l + 1);
    together 1.

    Returns:
        `float32` array of shape `(levels,)`.

    References:
        Lazebnik, Schmid and Ponce, "Beyond Bags of Features", CVPR 2006, equation 3.

    Example:
        >>> level_weights(3).tolist()
        [0.25, 0.25, 0.5]
    """
    finest = levels - 1
    exponents = np.maximum(np.arange(levels), 1) - 1 - finest
    return np.ldexp(np.float32(1), exponents)


def pool(
    words: np.ndarray, places: np.ndarray, levels: int, num_words: int, weighted: bool = True
) -> np.ndarray:
    """Find the share of each word in each cell of a pyramid over one image.

    Each descriptor counts in exactly one cell of each level; one on a border counts below or to
    the right of it. Shares are of all descriptors of the image, so that those of a level sum
    to 1 (times its weight), however many descriptors its cells have.

    Args:
        words: Either `int` array of shape `(num_points,)`, the word of each descriptor, or
            `float32` array of shape `(num_points, num_words)`, the share of each word in it. At
            least one descriptor.
        places: Array of shape `(num_points, 2)`: row and column as shares of height and width,
            in [0, 1].
        levels: Number of levels, see `pyramid_cells`.
        num_words: Number of words.
        weighted: Whether levels have the weights of `level_weights` or 1 each.

    Returns:
        `float32` array of shape `(num_cells * num_words,)`, cell by cell in the order of
        `pyramid_cells`.

    Raises:
        InputError: The number of levels is not possible.

    Example:
        >>> places = np.array([[0.1, 0.1], [0.1, 0.9], [0.2, 0.9], [0.9, 0.9]])
        >>> pool(np.array([0, 1, 1, 0]), places, 2, 2, weighted=False).reshape(-1, 2).tolist()
        [[0.5, 0.5], [0.25, 0.0], [0.0, 0.5], [0.0, 0.0], [0.25, 0.0]]

    References:
        Lazebnik, Schmid and Ponce, "Beyond Bags of Features", CVPR 2006, section 3. They compare
        pyramids by the intersection of histograms; here any classifier may follow.
    """
    pyramid_cells(levels)
    side = 2 ** (levels - 1)
    rows, columns = np.minimum((places * side).astype(np.intp), side - 1).T
    finest = rows * side + columns
    if words.ndim == 1:
        sums = np.bincount(finest * num_words + words, minlength=side**2 * num_words)
    else:
        members = finest == np.arange(side**2)[:, None]
        sums = members.astype(np.float32) @ words
    level_sums = [sums.reshape(side, side, num_words)]
    for _ in range(levels - 1):
        # Four cells make one of the level above.
        half = len(level_sums[-1]) // 2
        level_sums.append(level_sums[-1].reshape(half, 2, half, 2, num_words).sum(axis=(1, 3)))
    weights = level_weights(levels) if weighted else np.ones(levels)
    shares = [
        weight * level.ravel() / len(words)
        for weight, level in zip(weights, reversed(level_sums), strict=True)
    ]
    return np.concatenate(shares).astype(np.float32)
