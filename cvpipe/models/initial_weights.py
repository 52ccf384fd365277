"""What a network starts from: drawn weights, and the state of layers that make noise."""

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras


def draw_initial_weights(model: "keras.Model", seed: int) -> None:
    """Draw the kernels of a network that was not trained before, as He et al. advise.

    Normal with a variance of 2 / fan-in, so that a ReLU keeps the scale of what it is given.
    Each kernel is drawn from the seed and the name of its layer, so that it stays the same when
    other layers change, and with every version of Keras.

    Args:
        model: Changed in place; biases and normalisations stay as they are built.
        seed: Start of the draws.

    References:
        He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015, section 2.2;
        CS231n 2017, lecture 6.
    """
    for name, kernel, fan_in in _kernels(model):
        rng = np.random.default_rng(_derive(seed, name, num_bytes=8))
        kernel.assign(rng.normal(0.0, math.sqrt(2 / fan_in), kernel.shape).astype(np.float32))


def _kernels(model: "keras.Model") -> Iterator[tuple[str, "keras.Variable", int]]:
    """List name, variable and fan-in of all kernels, those of nested networks included."""
    keras = import_keras()
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _kernels(layer)
        elif isinstance(layer, keras.layers.SeparableConv2D):
            depthwise, pointwise = layer.depthwise_kernel, layer.pointwise_kernel
            yield f"{layer.name}/depthwise", depthwise, math.prod(depthwise.shape[:2])
            yield f"{layer.name}/pointwise", pointwise, math.prod(pointwise.shape[:-1])
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            yield layer.name, layer.kernel, math.prod(layer.kernel.shape[:2])
        elif getattr(layer, "kernel", None) is not None:
            yield layer.name, layer.kernel, math.prod(layer.kernel.shape[:-1])


def seed_noise(model: "keras.Model", seed: int) -> None:
    """Let the layers that make noise in training, such as dropout, start from a seed.

    Keras starts them from a number that is another one in every process.

    Args:
        model: Changed in place.
        seed: Start of the noise.
    """
    for layer in model.layers:
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            state = [_derive(seed, layer.name, num_bytes=4), 0]
            generator.state.assign(np.array(state, dtype=np.uint32))


def _derive(seed: int, name: str, num_bytes: int) -> int:
    """Turn a seed and the name of a layer into a seed of that layer's own."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:num_bytes], "big")
