"""Histogram of colours."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cvpipe.errors import InputError
from cvpipe.opencv import import_cv2

NUM_LEVELS = 256  # of an 8-bit channel
BIN_NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # all that divide the levels evenly


class ColourHistogram(TransformerMixin, BaseEstimator):
    """Describe an image by how often each hue, saturation and value occurs in it.

    Where a colour stands does not matter, so the row stays the same when the image is
    mirrored or turned. Each channel has a histogram of its own, side by side. The hue of a
    nearly grey pixel is noise, so a pixel counts there by its saturation; the hues of an
    image thus sum to its mean saturation, and those of a grey image to nothing. Hue is a
    circle that the bins cut at pure red: a red just short of it is in the last bin.

    Swain and Ballard count cells of a three-dimensional colour space instead, which needs
    far more bins, and the lecture counts hues only.

    Args:
        num_bins: Bins per channel; a power of two up to 256, so that all are equally wide.

    References:
        Swain and Ballard, "Color Indexing", International Journal of Computer Vision 7,
        1991. CS231n 2017, lecture 3.
    """

    def __init__(self, num_bins: int = 32) -> None:
        self.num_bins = num_bins

    def fit(self, images: np.ndarray, y: object = None) -> "ColourHistogram":  # noqa: ARG002
        """Learn nothing.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.
            y: Ignored.

        Raises:
            InputError: The bins do not divide the levels of a channel.
        """
        if self.num_bins not in BIN_NUMBERS:
            raise InputError(
                f"a colour histogram needs a number of bins that divides {NUM_LEVELS} levels, "
                f"but num_bins is {self.num_bins}; choose one of {list(BIN_NUMBERS)}."
            )
        self.n_features_out_ = 3 * self.num_bins
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Describe images, of any size.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.

        Returns:
            `float32` array of shape `(n, 3 * num_bins)`, values in [0, 1]: the shares of
            pixels by hue (which sum to the mean saturation), by saturation and by value
            (which sum to 1 each).
        """
        check_is_fitted(self)
        cv2 = import_cv2()
        hsv = np.empty(images.shape, dtype=np.uint8)
        for converted, image in zip(hsv, images, strict=True):
            converted[:] = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        num_images, height, width = images.shape[:3]
        hue, saturation, value = np.moveaxis(hsv.reshape(num_images, height * width, 3), 2, 0)
        counts = [
            # Whole numbers have exact sums, so the order of the pixels changes no last bit.
            count_levels(hue, self.num_bins, weights=saturation) / (NUM_LEVELS - 1),
            count_levels(saturation, self.num_bins),
            count_levels(value, self.num_bins),
        ]
        return (np.hstack(counts) / (height * width)).astype(np.float32)


def count_levels(
    levels: np.ndarray, num_bins: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Count the pixels of each image in bins of equally many levels.

    Args:
        levels: `uint8` array of shape `(n, num_pixels)`.
        num_bins: Number of bins; divides 256.
        weights: What each pixel counts, of the same shape; 1 if not given.

    Returns:
        Array of shape `(n, num_bins)`.

    Example:
        >>> count_levels(np.array([[0, 127, 128], [255, 255, 255]], np.uint8), num_bins=2)
        array([[2, 1],
               [0, 3]])
    """
    num_images = len(levels)
    # One call counts the whole batch, because each image has levels of its own.
    own_levels = levels + NUM_LEVELS * np.arange(num_images)[:, None]
    counts = np.bincount(
        own_levels.ravel(),
        weights=None if weights is None else weights.ravel(),
        minlength=num_images * NUM_LEVELS,
    )
    return counts.reshape(num_images, num_bins, NUM_LEVELS // num_bins).sum(axis=2)
