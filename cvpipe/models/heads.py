"""Classifiers on top of a backbone, as Keras layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras

LOGITS_LAYER = "head"
PROBABILITIES_LAYER = "probabilities"
CALIBRATION_LAYER = "calibration"


def attach_linear_head(
    backbone: "keras.Model", kernel: np.ndarray, bias: np.ndarray, name: str
) -> "keras.Model":
    """Put a fitted linear classifier with a softmax on a backbone.

    Args:
        backbone: Model from `uint8` images to features.
        kernel: `float32` array of shape `(num_features, num_classes)`.
        bias: `float32` array of shape `(num_classes,)`.
        name: Name of the model.

    Returns:
        Model from `uint8` images `(n, height, width, 3)` to probabilities
        `(n, num_classes)`. It is one flat graph: no model is nested in it.
    """
    keras = import_keras()
    head = keras.layers.Dense(kernel.shape[1], name=LOGITS_LAYER)
    softmax = keras.layers.Softmax(name=PROBABILITIES_LAYER)
    model = keras.Model(backbone.input, softmax(head(backbone.output)), name=name)
    head.set_weights([kernel, bias])
    return model


def initial_head(num_features: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a linear head whose guesses are all but equal: normal weights of 0.001.

    Returns:
        As `head_weights`; the vector is zero.
    """
    rng = np.random.default_rng([seed, num_features, num_classes])
    kernel = rng.normal(0.0, 0.001, (num_features, num_classes)).astype(np.float32)
    return kernel, np.zeros(num_classes, dtype=np.float32)


def scale_logits(
    model: "keras.Model", slopes: Sequence[float], offsets: Sequence[float]
) -> "keras.Model":
    """Build a calibration `softmax(slopes * log_softmax(logits) + offsets)` into a network.

    With one slope for all classes the softmax ignores the difference between logits and their
    log softmax, so the logits are multiplied by it. (Not the weights of the last layer: their
    rounding adds up over a thousand features, to 1.2e-6 in a probability of the digits.)
    Otherwise a second, diagonal layer is put behind the log softmax.

    Args:
        model: Of `attach_linear_head`; the result shares its layers.
        slopes: One per class.
        offsets: One per class.

    Returns:
        Model from the same images to calibrated probabilities.
    """
    keras = import_keras()
    logits = model.get_layer(LOGITS_LAYER).output
    softmax = keras.layers.Softmax(name=PROBABILITIES_LAYER)
    if len(set(slopes)) == 1 and not any(offsets):
        scaled = keras.layers.Rescaling(slopes[0], name=CALIBRATION_LAYER)(logits)
        return keras.Model(model.input, softmax(scaled), name=model.name)
    logs = keras.layers.Activation("log_softmax", name="log_probabilities")(logits)
    scaling = keras.layers.Dense(len(slopes), name=CALIBRATION_LAYER)
    calibrated = keras.Model(model.input, softmax(scaling(logs)), name=model.name)
    scaling.set_weights([np.diag(slopes), np.asarray(offsets)])
    return calibrated


def ends_with_linear_head(model: "keras.Model") -> bool:
    """Tell whether a model's probabilities are the softmax of the logits of a single head.

    Those of merged networks (`cvpipe.models.merging`) are means, whatever layers stand before.
    """
    if LOGITS_LAYER not in [layer.name for layer in model.layers]:
        return False
    last = model.get_layer(PROBABILITIES_LAYER)
    return last.input is model.get_layer(LOGITS_LAYER).output


def head_of(model: "keras.Model") -> "keras.Model":
    """Return the part of a model behind the backbone: from features to probabilities.

    It shares the layers of `model`, so cached features give what the whole model gives.
    """
    keras = import_keras()
    head, softmax = model.get_layer(LOGITS_LAYER), model.get_layer(PROBABILITIES_LAYER)
    features = keras.Input((head.kernel.shape[0],), name="features")
    return keras.Model(features, softmax(head(features)), name="head_alone")


def backbone_of(model: "keras.Model") -> "keras.Model":
    """Return the part of a model before the head: from images to features.

    It shares the layers of `model`.
    """
    return import_keras().Model(model.input, model.get_layer(LOGITS_LAYER).input)


def head_weights(model: "keras.Model") -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix and the vector that make logits of features.

    Returns:
        `float32` arrays of shape `(num_features, num_classes)` and `(num_classes,)`.
    """
    kernel, bias = model.get_layer(LOGITS_LAYER).get_weights()
    return kernel, bias
