"""The pixels themselves."""

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cvpipe.errors import InputError


class RawPixels(TransformerMixin, BaseEstimator):
    """Describe an image by its pixels, one after the other.

    The simplest feature there is: two images are alike when they are alike pixel by pixel,
    so a shift, a mirroring or another light makes them differ. What a better feature or a
    network adds shows in the distance from here. The lecture compares the distances L1 and
    L2 of pixels in 0 to 255; here they are in 0 to 1, which changes no order of neighbours.

    References:
        CS231n 2017, lecture 2 (nearest neighbours on the pixels of CIFAR-10).
    """

    def fit(self, images: np.ndarray, y: object = None) -> "RawPixels":  # noqa: ARG002
        """Learn nothing but the image size.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.
            y: Ignored.
        """
        height, width = images.shape[1:3]
        self.image_size_ = (height, width)
        self.n_features_out_ = height * width * 3
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB.

        Returns:
            `float32` array of shape `(n, n_features_out_)`, values in [0, 1]; row by row of
            the image from the top, pixel by pixel from the left, red, green, blue.

        Raises:
            InputError: The images have another size than those seen by `fit`.
        """
        check_is_fitted(self)
        if images.shape[1:3] != self.image_size_:
            raise InputError(
                f"raw pixels were fitted on images of size {self.image_size_}, but these are "
                f"{images.shape[1:3]}; resize them."
            )
        return images.reshape(len(images), self.n_features_out_) / np.float32(255)
