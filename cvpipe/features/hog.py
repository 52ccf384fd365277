"""Histogram of oriented gradients."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cvpipe.errors import InputError
from cvpipe.opencv import import_cv2


class HistogramOfOrientedGradients(TransformerMixin, BaseEstimator):
    """Describe an image by the directions of its edges, cell by cell.

    Gradients are taken in the colour channel where they are strongest; unsigned
    directions are counted, weighted by strength, in cells; 2x2 cells form a block,
    normalised by L2-Hys; blocks overlap by one cell. A gradient is shared between the
    nearest cells and bins, and counts less towards the rim of its block. OpenCV's
    `HOGDescriptor` does the work; unlike the paper's 64x128 window, ours is the whole image.

    Args:
        cell_pixels: Side of a square cell; the image's height and width must be
            multiples of it, at least two cells each.
        orientations: Number of direction bins over 180 degrees.

    References:
        Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection",
        CVPR 2005, section 6. CS231n 2017, lecture 3.
    """

    def __init__(self, cell_pixels: int = 8, orientations: int = 9) -> None:
        self.cell_pixels = cell_pixels
        self.orientations = orientations

    def fit(self, images: np.ndarray, y: object = None) -> "HistogramOfOrientedGradients":  # noqa: ARG002
        """Learn nothing but the image size.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.
            y: Ignored.

        Raises:
            InputError: The image size does not fit the cells.
        """
        height, width = images.shape[1:3]
        cell = self.cell_pixels
        if height % cell or width % cell or min(height, width) < 2 * cell:
            raise InputError(
                f"HOG needs images whose sides are multiples of its cell of {cell} pixels and "
                f"at least {2 * cell}, but they are {(height, width)}; choose another image size."
            )
        self.image_size_ = (height, width)
        self.n_features_out_ = (height // cell - 1) * (width // cell - 1) * 4 * self.orientations
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.

        Returns:
            `float32` array of shape `(n, n_features_out_)`, values in [0, 1].

        Raises:
            InputError: The images have another size than those seen by `fit`.
        """
        check_is_fitted(self)
        if images.shape[1:3] != self.image_size_:
            raise InputError(
                f"HOG was fitted on images of size {self.image_size_}, but these are "
                f"{images.shape[1:3]}; resize them."
            )
        cv2 = import_cv2()
        height, width = self.image_size_
        cell = self.cell_pixels
        descriptor = cv2.HOGDescriptor(
            (width, height), (2 * cell, 2 * cell), (cell, cell), (cell, cell), self.orientations
        )
        rows = np.empty((len(images), self.n_features_out_), dtype=np.float32)
        for row, image in zip(rows, images, strict=True):
            row[:] = descriptor.compute(image).ravel()
        return rows
