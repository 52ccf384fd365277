"""Normalisation as the first layer of a network, so that no export can lose it.

It is Keras's own `Normalization` layer, so a stored model opens without cvpipe. The numbers are
weights of it, not settings: a mean image would make 150,000 numbers of text.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras

NORMALISATION_LAYER = "normalisation"
# Each kind with the name of what is subtracted, and of what is then divided by.
NORMALISATIONS = {
    "mean_image": ("mean_image", ""),
    "channel_mean": ("channel_mean", ""),
    "channel_mean_std": ("channel_mean", "channel_std"),
    "backbone": ("", ""),  # a pretrained backbone scales images itself
}


def normalise(
    images: "keras.KerasTensor", kind: str, statistics: Mapping[str, np.ndarray]
) -> "keras.KerasTensor":
    """Put the normalisation behind the input of a network.

    `"mean_image"` subtracts the mean at each place, `"channel_mean"` that of each channel,
    `"channel_mean_std"` also divides by the channel's standard deviation. A channel that was
    constant, with a standard deviation of 0, is only centred. `"backbone"` changes nothing.

    The layer is never trained. Its weights are kept by `.keras` files, `save_weights` and
    `load_weights`; `set_weights` of a whole model does not reach the numbers that Keras computes
    with.

    Args:
        images: Input of a model: `uint8`, shape `(n, height, width, 3)`.
        kind: A key of `NORMALISATIONS`.
        statistics: In grey levels, of the training images only: `mean_image` of shape `(height,
            width, 3)`, `channel_mean` and `channel_std` of shape `(3,)`. What the kind does not
            need may be missing.

    Returns:
        `float32` images; for `"backbone"` the `images` that were given.

    Raises:
        InputError: The kind is unknown, or a statistic has another shape than the images need.

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, section 2 (mean image). Simonyan and Zisserman, "Very
        Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, section 2.1
        (channel means).
    """
    check_name("normalisation", kind, NORMALISATIONS)
    if kind == "backbone":
        return images
    mean_name, std_name = NORMALISATIONS[kind]
    shape = tuple(images.shape[1:]) if mean_name == "mean_image" else (3,)
    mean = _check_shape(mean_name, statistics, shape)
    std = _check_shape(std_name, statistics, shape) if std_name else np.ones(shape)
    std = np.where(std > 0, std, 1.0)
    keras = import_keras()
    layer = keras.layers.Normalization(
        axis=(1, 2, 3) if len(shape) == 3 else -1,
        # Under a policy of mixed precision, too: 16 bits would round grey levels.
        dtype="float32",
        trainable=False,
        name=NORMALISATION_LAYER,
    )
    layer.build(images.shape)
    layer.set_weights([mean, std**2, np.array(0)])
    layer.finalize_state()  # Keras computes with copies of the weights, made here
    return layer(images)


def _check_shape(
    name: str, statistics: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    array = statistics[name]
    if array.shape != shape:
        raise InputError(
            f"{name} has shape {array.shape}, but the network's images need {shape}; measure the "
            "training images at the size that the network takes."
        )
    return array
