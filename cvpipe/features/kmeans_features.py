"""Features that k-means learns from small patches of the train images."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cvpipe.features.bag_of_words import normalise_patches, random_patches
from cvpipe.features.base import COLOURS, ImageSize, ImageTransformer, check_choice, check_number
from cvpipe.features.codebook import MAX_SAMPLES, MAX_WORDS, learn_codebook
from cvpipe.features.grid import cell_borders, check_grid
from cvpipe.numerics import one_thread
from cvpipe.opencv import import_cv2

WHITENING_NOISE = 0.1  # added to the variances of patches whose values vary by about 1
# Patches whose distances to all words are held at a time: with 400 words they take 0.8 MB,
# which fits into a core's own cache.
BLOCK_PATCHES = 512


class KMeansFeatures(ImageTransformer):
    """Describe an image by how near its patches are to words that k-means has learned.

    `fit` cuts random patches out of its images, frees each of its brightness and contrast,
    whitens them together, so that neighbouring pixels are no longer alike, and finds
    `num_words` centres among them: the words. An image is then cut into patches everywhere. A
    patch at the distances z from the words says max(0, mean(z) - z[k]) of word k, so nothing of
    those that are farther than the average. A row has, cell by cell of a grid over the image,
    the mean of what its patches say.

    Departures from the paper: means instead of sums, so that the size of a cell does not matter;
    k-means on small batches (`learn_codebook`); `interpolate` and `square_root` are ours. Columns
    have large means, of which differences between images are a small part. So the paper
    standardises them for its linear classifier; a Gaussian kernel must be narrower than usual.

    Memory: `fit` holds the sampled patches thrice, `12 * num_samples * num_values` bytes (43 MB for
    100,000 grey patches of 6 x 6 pixels), and one byte for each grey pixel of its images.
    Describing holds the distances of 512 patches, or of one line of them, to the words.

    Args:
        patch_pixels: Side of a patch in pixels.
        num_words: Number of words.
        stride_pixels: Distance of neighbouring patches of an image in pixels.
        grid: Cells along each side of the image; 2 makes the paper's quadrants.
        interpolate: Whether a patch counts in the nearest cells, up to four, in shares that fall
            linearly with the distance from their centres, as in HOG; otherwise it counts in
            the one that it lies in. Of use from `grid=3` on.
        colour: `"grey"` for patches of grey levels; `"colour"` for patches of all channels,
            which cost more and of grey images say the same.
        assignment: `"triangle"` as above; `"hard"` for 1 at the nearest word and 0 at
            the others, so that a cell has the shares of the words.
        square_root: Whether to take the square root of each mean.
        num_samples: Number of patches that the words are learned from.
        random_state: Seed of the sample and of k-means.

    Attributes:
        mean_: `float32` array of shape `(num_values,)`, the mean patch as
            `normalise_patches` leaves it; `num_values` is `patch_pixels ** 2` times the
            number of channels, in the order row, column, channel.
        whitening_: `float32` array of shape `(num_values, num_values)`, symmetric.
        words_: `float32` array of shape `(num_words, num_values)`, whitened patches.

    References:
        Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
        Learning", AISTATS 2011, sections 3 and 4.
    """

    title = "a k-means feature"
    learns = True

    def __init__(
        self,
        patch_pixels: int = 6,
        num_words: int = 400,
        stride_pixels: int = 1,
        grid: int = 2,
        interpolate: bool = False,
        colour: str = "grey",
        assignment: str = "triangle",
        square_root: bool = False,
        num_samples: int = 100_000,
        random_state: int = 0,
    ) -> None:
        self.patch_pixels = patch_pixels
        self.num_words = num_words
        self.stride_pixels = stride_pixels
        self.grid = grid
        self.interpolate = interpolate
        self.colour = colour
        self.assignment = assignment
        self.square_root = square_root
        self.num_samples = num_samples
        self.random_state = random_state

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, also against the size of the images, without fitting.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_choice(self.title, "colour", self.colour, COLOURS)
        check_choice(self.title, "assignment", self.assignment, ("triangle", "hard"))
        check_number(self.title, "patch_pixels", self.patch_pixels, 2, min(image_size))
        check_number(self.title, "stride_pixels", self.stride_pixels, 1)
        check_grid(self.title, self.grid, self._count_places(image_size))
        check_number(self.title, "num_words", self.num_words, 2, MAX_WORDS)
        check_number(self.title, "num_samples", self.num_samples, self.num_words, MAX_SAMPLES)

    def word_tiles(self) -> np.ndarray:
        """Show the words as pictures.

        The whitening is undone, so that a tile shows the mean of the patches nearest to its word,
        without brightness and contrast: around mid-grey, with as much contrast as 8 bits allow.

        Returns:
            `uint8` array of shape `(num_words, patch_pixels, patch_pixels, 3)`, RGB.
        """
        # Its noise gives the whitening an inverse, whatever the patches.
        patches = np.linalg.solve(self.whitening_.astype(np.float64), self.words_.T).T + self.mean_
        strongest = np.abs(patches).max(axis=1, keepdims=True)
        scaled = patches / np.where(strongest > 0, strongest, 1)
        tiles = np.rint(127.5 + 127.5 * scaled).astype(np.uint8)
        tiles = tiles.reshape(len(tiles), self.patch_pixels, self.patch_pixels, -1)
        return np.repeat(tiles, 3 // tiles.shape[3], axis=3)

    def _learn(self, images: np.ndarray) -> None:
        values = images if self.colour == "colour" else np.stack([_grey(image) for image in images])
        patches = random_patches(values, self.patch_pixels, self.num_samples, self.random_state)
        with one_thread():
            self.mean_, self.whitening_ = learn_whitening(patches)
            patches -= self.mean_
            patches = patches @ self.whitening_
        self.words_ = learn_codebook(patches, self.num_words, self.random_state)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        num_lines, line_length = self._count_places((images.shape[1], images.shape[2]))
        shares = np.kron(
            cell_shares(num_lines, self.grid, self.interpolate),
            cell_shares(line_length, self.grid, self.interpolate),
        )
        block_lines = max(1, BLOCK_PATCHES // line_length)
        means = np.zeros((len(images), len(shares), len(self.words_)), dtype=np.float32)
        with one_thread():
            for image, cells in zip(images, means, strict=True):
                windows = self._windows(image)
                # What a block is depends on settings and size alone, and so do the last bits.
                for line in range(0, num_lines, block_lines):
                    block = windows[line : line + block_lines]
                    patches = normalise_patches(block.reshape(-1, *block.shape[2:]))
                    places = slice(line * line_length, (line + block_lines) * line_length)
                    cells[:] += shares[:, places] @ self._activate(patches)
        if self.square_root:
            np.sqrt(means, out=means)
        return means.reshape(len(images), -1)

    def _count_places(self, image_size: ImageSize) -> ImageSize:
        """Count the lines of patches in an image and the patches of a line."""
        rows, columns = (
            (length - self.patch_pixels) // self.stride_pixels + 1 for length in image_size
        )
        return rows, columns

    def _windows(self, image: np.ndarray) -> np.ndarray:
        """View all patches of an image: `(line, place, row, column and channel)`."""
        values = image if self.colour == "colour" else _grey(image)
        height, _, num_channels = values.shape
        side, stride = self.patch_pixels, self.stride_pixels
        # Pixels and channels as one axis: patches are copied by longer runs.
        lines = np.ascontiguousarray(values).reshape(height, -1)
        windows = sliding_window_view(lines, (side, side * num_channels))
        return windows[::stride, :: stride * num_channels]

    def _activate(self, patches: np.ndarray) -> np.ndarray:
        """Compute what normalised patches say of each word."""
        distances = squared_distances((patches - self.mean_) @ self.whitening_, self.words_)
        num_words = len(self.words_)
        if self.assignment == "hard":
            nearest = distances.argmin(axis=1)
            return (nearest[:, None] == np.arange(num_words)).astype(np.float32)
        np.sqrt(distances, out=distances)
        # As a product, which is several times faster than a sum along rows.
        average = distances @ np.full((num_words, 1), 1 / num_words, dtype=np.float32)
        activations = np.subtract(average, distances, out=distances)
        return np.maximum(activations, 0, out=activations)


def squared_distances(patches: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Compute the squared Euclidean distance of each patch from each word.

    Args:
        patches: `float32` array of shape `(num_patches, num_values)`.
        words: `float32` array of shape `(num_words, num_values)`.

    Returns:
        `float32` array of shape `(num_patches, num_words)`, not negative.

    Example:
        >>> squared_distances(np.eye(2, dtype=np.float32), np.array([[4, 3]], np.float32))
        array([[18.],
               [20.]], dtype=float32)
    """
    # |p|^2 - 2 p w + |w|^2 as one product, because each pass over the distances costs about a
    # third of what it does.
    ones = np.ones((len(patches), 1), dtype=np.float32)
    left = np.hstack([patches, np.vecdot(patches, patches)[:, None], ones])
    right = np.hstack([-2 * words, np.ones_like(words[:, :1]), np.vecdot(words, words)[:, None]])
    distances = left @ right.T
    return np.abs(distances, out=distances)  # rounding can leave less than 0 at a word itself


def learn_whitening(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Learn how to whiten patches: `(patches - mean) @ whitening` is nearly uncorrelated.

    Of all whitenings it is the one that leaves patches most similar to themselves (ZCA).

    Args:
        patches: `float32` array of shape `(num_samples, num_values)`, see `normalise_patches`.

    Returns:
        `float32` arrays: the mean, `(num_values,)`, and the symmetric whitening matrix,
        `(num_values, num_values)`. A direction with the variance v is divided by the square root of
        v + 0.1 / `num_values`, so one in which patches hardly differ is not blown up.

    References:
        Bell and Sejnowski, "The 'Independent Components' of Natural Scenes are Edge Filters",
        Vision Research 37, 1997. Coates and Ng, "Learning Feature Representations with K-means",
        in Neural Networks: Tricks of the Trade, 2012, section 2 (0.1, where values have
        a variance of 1; those of `normalise_patches` have 1 / `num_values`).
    """
    num_samples, num_values = patches.shape
    mean = patches.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = patches - mean
    variances, axes = np.linalg.eigh((centred.T @ centred / num_samples).astype(np.float64))
    scales = 1 / np.sqrt(np.maximum(variances, 0) + WHITENING_NOISE / num_values)
    return mean, (axes * scales @ axes.T).astype(np.float32)


def cell_shares(num_places: int, num_cells: int, interpolate: bool) -> np.ndarray:
    """Say how much each place along an axis counts in each cell.

    Args:
        num_places: Number of places.
        num_cells: Number of cells, at most that of the places.
        interpolate: Whether a place counts in the two nearest cells, in shares that fall
            linearly with the distance from their centres, or only in the cell that it is in.

    Returns:
        `float32` array of shape `(num_cells, num_places)`, rows with the sum 1.

    Example:
        >>> cell_shares(4, 2, interpolate=False)
        array([[0.5, 0.5, 0. , 0. ],
               [0. , 0. , 0.5, 0.5]], dtype=float32)
        >>> 8 * cell_shares(4, 2, interpolate=True)  # of the second place 3/4 and 1/4
        array([[4., 3., 1., 0.],
               [0., 1., 3., 4.]], dtype=float32)
    """
    cells = np.arange(num_cells)
    if interpolate:
        # In cells from the centre of the first; outside the centres of the outer cells nothing
        # is left to share.
        positions = (np.arange(num_places) + 0.5) * num_cells / num_places - 0.5
        positions = np.clip(positions, 0, num_cells - 1)
    else:
        positions = np.repeat(cells, np.diff(cell_borders(num_places, num_cells)))
    shares = np.maximum(1 - np.abs(positions - cells[:, None]), 0)
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def _grey(image: np.ndarray) -> np.ndarray:
    """Turn an RGB image to grey levels: `uint8` of shape `(height, width, 1)`."""
    cv2 = import_cv2()
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
