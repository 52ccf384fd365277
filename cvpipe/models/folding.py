"""Networks that no longer learn, with fewer operations that give the same.

What a normalisation does once its averages stand still, the convolution before it can do itself:
its filters are multiplied and it gets a bias. Keras computes the two one after the other, and with
them TensorFlow takes up to twice as long (`benchmarks/folding.py`). Converters to other formats
fold by themselves, but then what is measured by TensorFlow and what they write differ by more than
rounding in another order.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.models.framework import import_keras
from cvpipe.models.graphs import calls_of, finalize, nodes_of

if TYPE_CHECKING:
    import keras


def fold_norms(network: "keras.Model") -> "keras.Model":
    """Write normalisations into the convolutions before them, wherever `norms_to_fold` finds any.

    Args:
        network: A functional model; it stays as it is.

    Returns:
        A network that gives the same but for rounding, with layers of its own under the same
        names. The layers of folded normalisations do nothing any more, and can still be found.
    """
    folded, keras = norms_to_fold(network, frozen_only=False), import_keras()
    norms = {norm.name for norm in folded.values()}

    def copy(layer: Any) -> Any:
        if layer.name in norms:
            return keras.layers.Identity(name=layer.name)
        bias = {"use_bias": True} if layer.name in folded else {}
        return layer.__class__.from_config({**layer.get_config(), **bias})

    def call(layer: Any, *arguments: Any, **settings: Any) -> Any:
        return layer(arguments[0]) if layer.name in norms else layer(*arguments, **settings)

    twin = keras.models.clone_model(network, clone_function=copy, call_function=call)
    for layer in network.layers:
        if layer.name in norms or not layer.weights:
            continue
        own = twin.get_layer(layer.name)
        is_folded = layer.name in folded
        own.set_weights(
            folded_weights(layer, folded[layer.name]) if is_folded else layer.get_weights()
        )
        finalize(own)
    return twin


def folded_weights(
    convolution: "keras.Layer", norm: "keras.Layer"
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the filters and the bias of a convolution that also normalises."""
    kernel, *bias = (values.astype(np.float64) for values in convolution.get_weights())
    mean, variance = (
        values.numpy().astype(np.float64) for values in (norm.moving_mean, norm.moving_variance)
    )
    slope = 1.0 / np.sqrt(variance + norm.epsilon)
    slope = slope * norm.gamma.numpy() if norm.scale else slope
    offset = norm.beta.numpy() if norm.center else 0.0
    # A depthwise kernel is (rows, columns, channels, multiplier), and gives channels times it.
    is_depthwise = isinstance(convolution, import_keras().layers.DepthwiseConv2D)
    shape = kernel.shape[2:] if is_depthwise else (1, kernel.shape[3])
    return kernel * slope.reshape(shape), ((bias[0] if bias else 0.0) - mean) * slope + offset


def norms_to_fold(network: "keras.Model", *, frozen_only: bool = True) -> dict[str, "keras.Layer"]:
    """Find normalisations of what a convolution gives, and nobody else reads.

    Of convolutions as `is_plain` describes them; others keep their normalisations.

    Args:
        network: A functional model.
        frozen_only: Whether those that still learn are left out.

    Returns:
        Name of the convolution to the normalisation.
    """
    layers = import_keras().layers
    calls = calls_of(network)
    read = Counter(id(tensor) for node in nodes_of(network) for tensor in node.input_tensors)
    read.update(id(tensor) for tensor in network.outputs)
    givers = {
        id(node.output_tensors[0]): name
        for name, node in calls.items()
        if type(node.operation) in (layers.Conv2D, layers.DepthwiseConv2D) and is_plain(node)
    }
    return {
        givers[id(node.input_tensors[0])]: node.operation
        for node in calls.values()
        if type(node.operation) is layers.BatchNormalization
        and _is_linear(node.operation)
        and not (frozen_only and node.operation.trainable)
        and read[id(node.input_tensors[0])] == 1
        and id(node.input_tensors[0]) in givers
    }


def _is_linear(norm: Any) -> bool:
    """Tell whether a normalisation is a product and a sum for each channel, once it is frozen."""
    return not getattr(norm, "renorm", False) and norm.axis in (-1, 3)


def is_plain(node: Any) -> bool:
    """Tell whether a convolution has no activation of its own, and sizes that are known."""
    layer = node.operation
    return (
        layer.activation is import_keras().activations.linear
        and layer.data_format == "channels_last"
        and set(layer.dilation_rate) == {1}
        and len(set(layer.strides)) == 1
        and layer.padding in ("same", "valid")
        and None not in node.input_tensors[0].shape[1:]
    )
