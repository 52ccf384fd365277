"""What all features of images have in common: the checks around describing a batch."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from cvpipe.errors import InputError

ImageSize = tuple[int, int]
COLOURS = ("grey", "colour")  # what features take of an image


class ImageTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Base of the features: a scikit-learn transformer from `uint8` images to `float32` rows.

    A subclass says what is special about it in `check_settings`, `_learn` and `_describe`. The
    row of an image is the same, bit for bit, whatever images it is described together with.

    Attributes:
        title: How messages call the feature.
        learns: Whether `fit` learns from the images. If not, a row depends on the settings
            and its image alone, and may be kept for good.
        image_size_: `(height, width)` of the images that `fit` saw.
        n_features_out_: Length of a row.
    """

    title: ClassVar[str] = "this feature"
    learns: ClassVar[bool] = False

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, also against the size of the images, without fitting.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """

    def fit(self, images: np.ndarray, y: object = None) -> "ImageTransformer":  # noqa: ARG002
        """Learn what has to be learned; for most features nothing but the image size.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB, at least one image.
            y: Ignored.

        Raises:
            InputError: The images are no such array, or the settings are not possible.
        """
        self._check_images(images)
        if not len(images):
            raise InputError(f"{self.title} cannot be fitted on no image; give at least one.")
        image_size = (int(images.shape[1]), int(images.shape[2]))
        self.check_settings(image_size)
        self.image_size_ = image_size
        self._learn(images)
        self.n_features_out_ = int(self._describe(images[:1]).shape[1])
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Describe images.

        Args:
            images: `uint8` array of shape `(n, height, width, 3)`, RGB, of the size that `fit`
                saw; n may be 0.

        Returns:
            `float32` array of shape `(n, n_features_out_)`.

        Raises:
            InputError: The images are no such array, or have another size.
        """
        self.check_fitted()
        self._check_images(images)
        if images.shape[1:3] != self.image_size_:
            raise InputError(
                f"{self.title} was fitted on images of size {self.image_size_}, but these are "
                f"{images.shape[1:3]}; resize them."
            )
        if not len(images):
            return np.empty((0, self.n_features_out_), dtype=np.float32)
        return self._describe(images)

    def check_fitted(self) -> None:
        """Check that `fit` was called.

        Raises:
            sklearn.exceptions.NotFittedError: It was not.
        """
        check_is_fitted(self, "n_features_out_")

    @property
    def _n_features_out(self) -> int:
        return self.n_features_out_  # scikit-learn's own name for it

    def _learn(self, images: np.ndarray) -> None:
        """Learn from checked images, in attributes that end in an underscore."""

    def _describe(self, images: np.ndarray) -> np.ndarray:
        """Describe at least one checked image: `float32` rows."""
        raise NotImplementedError

    def _check_images(self, images: np.ndarray) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise InputError(
                f"{self.title} describes uint8 images of shape (n, height, width, 3), but got "
                f"{images.dtype} of shape {images.shape}; decode them with cvpipe.data.images."
            )


def check_number(
    title: str, setting: str, value: float, low: float, high: float = float("inf")
) -> None:
    """Check that a setting lies in its range.

    Raises:
        InputError: It does not.
    """
    if not low <= value <= high:
        wanted = f"between {low} and {high}" if high < float("inf") else f"at least {low}"
        raise InputError(f"{setting} of {title} is {value!r}, but must be {wanted}.")


def check_choice(title: str, setting: str, value: object, choices: Sequence[object]) -> None:
    """Check that a setting is one of its choices.

    Raises:
        InputError: It is not.
    """
    if value not in choices:
        raise InputError(f"{setting} of {title} is {value!r}; choose one of {list(choices)}.")
