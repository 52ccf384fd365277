"""The pixels themselves."""

from typing import ClassVar

import numpy as np

from cvpipe.features.base import COLOURS, ImageSize, ImageTransformer, check_choice
from cvpipe.opencv import import_cv2

NORMALISATIONS = ("none", "unit")


class RawPixels(ImageTransformer):
    """Describe an image by its pixels, one after the other.

    The simplest feature there is: two images are alike when they are alike pixel by pixel,
    so a shift, a mirroring or another light makes them differ. What a better feature or a
    network adds shows in the distance from here. The lecture compares the distances L1 and
    L2 of pixels in 0 to 255; here they are in 0 to 1, which changes no order of neighbours.

    Images of 32x32 pixels or so, normalised to `"unit"`, are the tiny images of Torralba and
    others: another brightness or contrast of the whole image is no longer seen then, and the L2
    distance of two rows is a measure of their correlation. It needs images that fill the frame in
    the same way; what is where counts for everything, what it looks like in detail for nothing.

    Args:
        colour: `"colour"` for red, green and blue, or `"grey"` for one value a pixel.
        normalise: `"none"`, or `"unit"` for rows of mean zero and length one, over all values of
            the row together.

    References:
        CS231n 2017, lecture 2 (nearest neighbours on the pixels of CIFAR-10). Torralba, Fergus
        and Freeman, "80 Million Tiny Images: A Large Data Set for Nonparametric Object and Scene
        Recognition", IEEE Transactions on Pattern Analysis and Machine Intelligence 30, 2008.
    """

    title: ClassVar[str] = "the raw-pixel feature"

    def __init__(self, colour: str = "colour", normalise: str = "none") -> None:
        self.colour = colour
        self.normalise = normalise

    def check_settings(self, image_size: ImageSize) -> None:  # noqa: ARG002
        """Check the settings; every image size is possible.

        Raises:
            InputError: A setting is not one of its choices.
        """
        check_choice(self.title, "colour", self.colour, COLOURS)
        check_choice(self.title, "normalise", self.normalise, NORMALISATIONS)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Row by row of the image from the top, pixel by pixel from the left, red, green, blue:
        values in [0, 1], or in [-1, 1] if normalised.
        """
        cv2 = import_cv2()
        if self.colour == "grey":
            images = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])
        pixels = images.reshape(len(images), -1)
        if self.normalise == "none":
            return pixels / np.float32(255)
        rows = np.empty(pixels.shape, dtype=np.float32)
        for row, values in zip(rows, pixels, strict=True):
            row[:] = to_unit_length(values)
        return rows


def to_unit_length(pixels: np.ndarray) -> np.ndarray:
    """Shift and scale the values of an image to mean zero and length one.

    Args:
        pixels: `uint8` array of shape `(num_values,)`.

    Returns:
        `float32` array of the same shape, values in [-1, 1]; zeros if all values are equal, as
        such an image has no direction.

    Example:
        >>> to_unit_length(np.array([1, 1, 3, 3], np.uint8))
        array([-0.5, -0.5,  0.5,  0.5], dtype=float32)
    """
    values = pixels.astype(np.int64)
    # In whole numbers, which have exact sums: equal values give nothing but zeros.
    total = int(values.sum())
    centred = len(values) * values - total
    variation = len(values) * int((values**2).sum()) - total**2
    return (centred / max(len(values) * variation, 1) ** 0.5).astype(np.float32)
