"""The outputs of a network as a feature beside the hand-crafted ones."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np

from cvpipe.features.base import ImageTransformer


class DeepFeatures(ImageTransformer):
    """Describe an image by what a frozen network says about it.

    The network comes as a function, so nothing here knows which framework runs it, and it stands
    wherever a hand-crafted feature can: in a scikit-learn pipeline, or joined to others in a
    `FeatureUnion`. (A pipeline file names the backbone itself among the features.)

    Args:
        embed: Function from `uint8` images of shape `(n, height, width, 3)` to `float32` rows, as
            `cvpipe.models.features.build_embed` makes it.

    References:
        Donahue et al., "DeCAF: A Deep Convolutional Activation Feature for Generic Visual
        Recognition", ICML 2014.
    """

    title: ClassVar[str] = "a deep feature"

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray]) -> None:
        self.embed = embed

    def _describe(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(self.embed(images), dtype=np.float32)
