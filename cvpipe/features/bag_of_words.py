"""Bag of visual words: an image as how often each word of a learned vocabulary occurs in it."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cvpipe.errors import InputError
from cvpipe.features.base import ImageSize, ImageTransformer, check_choice, check_number
from cvpipe.features.codebook import (
    BLOCK_IMAGES,
    MAX_SAMPLES,
    MAX_WORDS,
    assign_words,
    learn_codebook,
    sample_rows,
    share_out,
    soft_assign,
)
from cvpipe.features.dense_descriptors import (
    CELLS_PER_SIDE,
    check_patch_grid,
    dense_descriptors,
    grid_patches,
    patch_places,
)
from cvpipe.features.spatial_pyramid import MAX_LEVELS, pool
from cvpipe.numerics import one_thread
from cvpipe.opencv import import_cv2

PATCH_NOISE = 10.0  # variance added to that of a patch, of grey levels from 0 to 255


class BagOfWords(ImageTransformer):
    """Describe an image by how often each visual word occurs in it, and roughly where.

    `fit` draws descriptors of small patches from its images and finds `num_words` clusters
    among them; their centres are the words. An image is then described on a grid, each
    descriptor is replaced by the word nearest to it (or shared out between the nearest), and
    the words are counted over the whole image, its quarters, and so on.

    Memory: `fit` holds the sample three times, `12 * num_samples * length` bytes (154 MB for
    100,000 SIFT descriptors, whose length is 128), and beside it the descriptors of 8 images.
    Describing holds the descriptors of 8 images. Neither depends on the number of images.

    Args:
        descriptor: `"sift"` for gradient histograms (`dense_descriptors`); `"patches"`
            for the pixels of random patches themselves, as in the lecture, freed of
            brightness and contrast (`normalise_patches`).
        num_words: Number of words.
        step_pixels: Distance of neighbouring descriptors of an image in pixels.
        cell_pixels: Sides of the cells of SIFT descriptors in pixels, a grid for each; a patch is
            4 cells wide.
        patch_pixels: Side of a patch in pixels, for `"patches"`.
        assignment: `"hard"` for the nearest word; `"soft"` for shares of the nearest words
            (`soft_assign`).
        levels: Levels of the spatial pyramid; 1 counts over the whole image only.
        weighting: `"none"`; `"square_root"` of each share, which keeps frequent words from drowning
            the others; or `"tf_idf"`: a word counts less the more of the train images have it.
        norm: `"l1"` or `"l2"`: which length of a row is 1.
        num_samples: Number of descriptors that the words are learned from.
        random_state: Seed of the sample and of k-means.

    Attributes:
        words_: `float32` array of shape `(num_words, length)`.
        idf_: `float32` array of shape `(num_words,)`, with tf-idf only: log of the number of
            images over the number of those with the word (1 at least).

    References:
        Csurka et al., "Visual Categorization with Bags of Keypoints", ECCV workshop 2004.
        Lazebnik, Schmid and Ponce, "Beyond Bags of Features", CVPR 2006. Sivic and Zisserman,
        "Video Google", ICCV 2003, section 4 (tf-idf). CS231n 2017, lecture 3 (random
        patches; it names neither their size nor the number of words).
    """

    title = "a bag of visual words"
    learns = True

    def __init__(
        self,
        descriptor: str = "sift",
        num_words: int = 256,
        step_pixels: int = 4,
        cell_pixels: tuple[int, ...] = (4,),
        patch_pixels: int = 8,
        assignment: str = "soft",
        levels: int = 3,
        weighting: str = "square_root",
        norm: str = "l2",
        num_samples: int = 100_000,
        random_state: int = 0,
    ) -> None:
        self.descriptor = descriptor
        self.num_words = num_words
        self.step_pixels = step_pixels
        self.cell_pixels = cell_pixels
        self.patch_pixels = patch_pixels
        self.assignment = assignment
        self.levels = levels
        self.weighting = weighting
        self.norm = norm
        self.num_samples = num_samples
        self.random_state = random_state

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, also against the size of the images, without fitting.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_choice(self.title, "descriptor", self.descriptor, ("sift", "patches"))
        check_choice(self.title, "assignment", self.assignment, ("hard", "soft"))
        check_choice(self.title, "weighting", self.weighting, ("none", "square_root", "tf_idf"))
        check_choice(self.title, "norm", self.norm, ("l1", "l2"))
        check_number(self.title, "levels", self.levels, 1, MAX_LEVELS)
        check_number(self.title, "num_words", self.num_words, 2, MAX_WORDS)
        check_number(self.title, "num_samples", self.num_samples, self.num_words, MAX_SAMPLES)
        check_number(self.title, "step_pixels", self.step_pixels, 1, min(image_size))
        check_number(self.title, "patch_pixels", self.patch_pixels, 2, min(image_size))
        if self.descriptor == "sift":
            check_patch_grid(self.title, image_size, self.step_pixels, self.cell_pixels)

    def word_tiles(self) -> np.ndarray:
        """Show the words of patches as pictures.

        A word is a mean patch without brightness and contrast; it is shown around mid-grey with as
        much contrast as 8 bits allow.

        Returns:
            `uint8` array of shape `(num_words, patch_pixels, patch_pixels, 3)`, RGB.

        Raises:
            InputError: The words are not of patches.
        """
        if self.descriptor != "patches":
            raise InputError(
                f"words of {self.descriptor!r} descriptors are no pictures; show the patches that "
                "are nearest to them with cvpipe.features.bag_of_words.example_patches."
            )
        strongest = np.abs(self.words_).max(axis=1, keepdims=True)
        scaled = self.words_ / np.where(strongest > 0, strongest, 1)
        side = self.patch_pixels
        return np.rint(127.5 + 127.5 * scaled).astype(np.uint8).reshape(-1, side, side, 3)

    def descriptors(self, images: np.ndarray) -> np.ndarray:
        """Describe all patches of images; `fit` is not needed.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.

        Returns:
            `float32` array of shape `(n, num_points, length)`, in the order of `patches`.
        """
        if self.descriptor == "patches":
            return dense_patches(images, self.step_pixels, self.patch_pixels)
        return dense_descriptors(images, self.step_pixels, self.cell_pixels)

    def patches(self, image_size: ImageSize) -> np.ndarray:
        """Locate the patches that stand in an image, see `grid_patches`."""
        sides = [CELLS_PER_SIDE * cell for cell in self.cell_pixels]
        if self.descriptor == "patches":
            sides = [self.patch_pixels]
        return grid_patches(image_size, self.step_pixels, sides)

    def _learn(self, images: np.ndarray) -> None:
        if self.descriptor == "patches":
            sample = random_patches(images, self.patch_pixels, self.num_samples, self.random_state)
        else:
            sample = sample_rows(self.descriptors, images, self.num_samples, self.random_state)
        self.words_ = learn_codebook(sample, self.num_words, self.random_state)
        if self.weighting == "tf_idf":
            num_images = np.zeros(self.num_words, dtype=np.int64)
            with one_thread():
                for row in self._pooled(images, levels=1):
                    num_images += row > 0
            self.idf_ = np.log(len(images) / np.maximum(num_images, 1)).astype(np.float32)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        with one_thread():
            rows = np.stack(list(self._pooled(images, self.levels)))
        if self.weighting == "square_root":
            rows = np.sqrt(rows)
        elif self.weighting == "tf_idf":
            rows *= np.tile(self.idf_, rows.shape[1] // self.num_words)
        lengths = rows.sum(axis=1) if self.norm == "l1" else np.sqrt(np.vecdot(rows, rows))
        # A row is zero if all its words are in every train image, so that tf-idf drops them.
        return rows / np.where(lengths > 0, lengths, 1)[:, None]

    def _pooled(self, images: np.ndarray, levels: int) -> Iterator[np.ndarray]:
        """Count the words of one image after the other."""
        image_size = (images.shape[1], images.shape[2])
        places = patch_places(self.patches(image_size), image_size)
        assign = assign_words if self.assignment == "hard" else soft_assign
        for block in _blocks(images):
            for descriptors in self.descriptors(block):
                words = assign(descriptors, self.words_)
                yield pool(words, places, levels, self.num_words)


def example_patches(bag: BagOfWords, images: np.ndarray, per_word: int = 8) -> np.ndarray:
    """Cut out the patches of images that are nearest to each word.

    Args:
        bag: Fitted on images of the same size.
        images: `uint8` array of shape `(n, height, width, 3)`, RGB, at least one.
        per_word: Patches for each word.

    Returns:
        `uint8` array of shape `(num_words, per_word, side, side, 3)`: patches whose nearest word
        it is, the nearest first, all brought to the side of the largest; black where there are
        fewer.
    """
    cv2 = import_cv2()
    patches = bag.patches((images.shape[1], images.shape[2]))
    side = int(patches[:, 2].max())
    examples = np.zeros((len(bag.words_), per_word, side, side, 3), dtype=np.uint8)
    for word, rank, image, point in _nearest(bag, images, per_word).tolist():
        top, left, own_side = patches[point]
        patch = images[image, top : top + own_side, left : left + own_side]
        cv2.resize(
            np.ascontiguousarray(patch),
            (side, side),
            dst=examples[word, rank],
            interpolation=cv2.INTER_NEAREST,
        )
    return examples


def _nearest(bag: BagOfWords, images: np.ndarray, per_word: int) -> np.ndarray:
    """Find the patches nearest to each word: `int` rows of word, rank, image and point."""
    # Of the images so far: word, squared distance, image and point of the nearest patches.
    kept: np.ndarray = np.empty((4, 0))
    number = 0
    for block in _blocks(images):
        for descriptors in bag.descriptors(block):
            words = assign_words(descriptors, bag.words_)
            distances = np.square(descriptors - bag.words_[words]).sum(axis=1)
            points = np.arange(len(words))
            found = np.stack([words, distances, np.full(len(words), number), points])
            kept = np.hstack([kept, found])
            kept = kept[:, np.lexsort(kept[1::-1])]
            ranks = np.arange(kept.shape[1]) - np.searchsorted(kept[0], kept[0])
            kept, ranks = kept[:, ranks < per_word], ranks[ranks < per_word]
            number += 1
    words, _, numbers, points = kept
    return np.stack([words, ranks, numbers, points], axis=1).astype(np.intp)


def _blocks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a batch into blocks whose descriptors are held at a time."""
    for start in range(0, len(images), BLOCK_IMAGES):
        yield images[start : start + BLOCK_IMAGES]


def normalise_patches(patches: np.ndarray) -> np.ndarray:
    """Free patches of their brightness and contrast.

    From a patch's values their mean is subtracted, over all three channels, so that its colour
    remains. Then they are divided by the square root of variance plus 10, so that noise in a flat
    patch stays small, and of their number, so that rows are shorter than 1.

    Args:
        patches: `uint8` array of shape `(m, side, side, 3)`.

    Returns:
        `float32` array of shape `(m, 3 * side ** 2)`.

    References:
        Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature
        Learning", AISTATS 2011, section 3.2.1; the division by the number is ours.
    """
    values = patches.reshape(len(patches), -1).astype(np.float32)
    length = values.shape[1]
    values -= values.mean(axis=1, keepdims=True)
    variances = np.vecdot(values, values) / length
    values /= np.sqrt(length * (variances + PATCH_NOISE))[:, None]
    return values


def dense_patches(images: np.ndarray, step_pixels: int, patch_pixels: int) -> np.ndarray:
    """Cut patches out of images on a grid and normalise them.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`, RGB.
        step_pixels: Distance of neighbouring patches in pixels.
        patch_pixels: Side of a patch in pixels, at most that of the images.

    Returns:
        `float32` array of shape `(n, num_points, 3 * patch_pixels ** 2)`, the points in the order
        of `grid_patches`.
    """
    tops, lefts, _ = grid_patches(images.shape[1:3], step_pixels, [patch_pixels]).T
    windows = _windows(images, patch_pixels)
    return np.stack([normalise_patches(image[tops, lefts]) for image in windows])


def random_patches(
    images: np.ndarray, patch_pixels: int, num_samples: int, random_state: int
) -> np.ndarray:
    """Cut patches out of images at random places and normalise them.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`, RGB, at least one.
        patch_pixels: Side of a patch in pixels, at most that of the images.
        num_samples: How many; as many from each image as can be.
        random_state: Seed.

    Returns:
        `float32` array of shape `(num_samples, 3 * patch_pixels ** 2)`.
    """
    shares = share_out(num_samples, len(images), random_state)
    numbers = np.repeat(np.arange(len(images)), shares)
    windows = _windows(images, patch_pixels)
    rng = np.random.default_rng(random_state)
    tops = rng.integers(windows.shape[1], size=num_samples)
    lefts = rng.integers(windows.shape[2], size=num_samples)
    return normalise_patches(windows[numbers, tops, lefts])


def _windows(images: np.ndarray, side: int) -> np.ndarray:
    """View all patches: `(n, top, left, row, column, channel)`."""
    windows = sliding_window_view(images, (side, side), axis=(1, 2))
    return np.moveaxis(windows, 3, 5)
