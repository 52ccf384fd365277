"""Compute the training steps of a pretrained network faster, on processors.

Two things cost time there that need not; `benchmarks/fast_steps.py` measures what is gained. Keras
computes a frozen normalisation as a product and a sum of its own; here both are part of the
convolution before it. And oneDNN, which computes convolutions for TensorFlow on x86, has a kernel
for the gradient of a depthwise filter of at most three columns (`jit_dw`); for more it takes one
for whole blocks of channels, as ONEDNN_VERBOSE=1 shows. Here such a gradient is computed three
columns at a time.
"""

import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cvpipe.models.folding import is_plain, norms_to_fold
from cvpipe.models.framework import has_gpu, import_keras, import_tensorflow
from cvpipe.models.graphs import calls_of

if TYPE_CHECKING:
    import keras

MAX_COLUMNS = 3  # of a depthwise filter, for which oneDNN has a kernel of its own
X86 = ("x86_64", "AMD64")


def fast_twin(network: "keras.Model") -> "keras.Model":
    """Build a network that computes the same from the same variables, but faster in training.

    Args:
        network: A functional model. What is frozen in it has to stay so.

    Returns:
        A model that computes with the network's layers and variables, so that what one learns the
        other knows; the network itself where there is nothing to gain. It is for steps alone: it
        cannot be stored.
    """
    if has_gpu():
        return network
    keras = import_keras()
    calls = calls_of(network)
    folded = norms_to_fold(network)
    norms = {norm.name for norm in folded.values()}
    slow = {name for name, node in calls.items() if has_slow_gradient(node)}
    if not folded and not slow:
        return network

    def copy(layer: Any) -> Any:
        if layer.name in folded or layer.name in slow:
            return folded_convolution(layer, folded.get(layer.name), layer.name in slow)
        if layer.name in norms:
            return keras.layers.Lambda(lambda images: images, name=layer.name)
        return layer

    return keras.models.clone_model(network, clone_function=copy)


def has_slow_gradient(node: Any) -> bool:
    """Tell whether the gradient of a filter is to be computed in parts.

    Args:
        node: A call of a layer.
    """
    layer = node.operation
    if type(layer) is not import_keras().layers.DepthwiseConv2D or not is_plain(node):
        return False
    columns, width = layer.kernel_size[1], node.input_tensors[0].shape[2]
    return platform.machine() in X86 and MAX_COLUMNS < columns <= width


def folded_convolution(layer: Any, norm: Any, in_parts: bool) -> Any:
    """Make a layer that computes a convolution and a frozen normalisation of it as one.

    Args:
        layer: A `Conv2D` or `DepthwiseConv2D`.
        norm: The `BatchNormalization` of its output; `None` if there is none.
        in_parts: Whether the gradient of its filter is computed some columns at a time.
    """
    tensorflow, keras = import_tensorflow(), import_keras()
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    convolve = depthwise_convolution(layer, in_parts) if depthwise else layer.convolution_op

    def convolve_and_normalise(images: Any) -> Any:
        kernel = tensorflow.convert_to_tensor(layer.kernel)
        bias = tensorflow.convert_to_tensor(layer.bias) if layer.use_bias else None
        if norm is not None:
            slope, offset = slope_and_offset(norm)
            # Of a depthwise kernel (rows, columns, channels, multiplier).
            shape = kernel.shape[2:] if depthwise else (1, kernel.shape[3])
            kernel = kernel * tensorflow.reshape(slope, shape)
            bias = offset if bias is None else offset + bias * slope
        answer = convolve(images, kernel)
        return answer if bias is None else tensorflow.nn.bias_add(answer, bias)

    return keras.layers.Lambda(convolve_and_normalise, name=layer.name)


def slope_and_offset(norm: "keras.Layer") -> tuple[Any, Any]:
    """Write a frozen normalisation as `slope * x + offset`, each of shape `(channels,)`."""
    tensorflow = import_tensorflow()
    slope = tensorflow.math.rsqrt(norm.moving_variance + norm.epsilon)
    slope = slope * norm.gamma if norm.scale else slope
    offset = -norm.moving_mean * slope
    return slope, offset + norm.beta if norm.center else offset


def depthwise_convolution(layer: "keras.Layer", in_parts: bool) -> Callable[[Any, Any], Any]:
    """Make the convolution of a depthwise layer; see `folded_convolution`."""
    tensorflow = import_tensorflow()
    strides = [1, *layer.strides, 1]
    padding = layer.padding.upper()

    @tensorflow.custom_gradient
    def convolve(images: Any, kernel: Any) -> Any:
        def gradient(above: Any) -> tuple[Any, Any]:
            of_images = tensorflow.raw_ops.DepthwiseConv2dNativeBackpropInput(
                input_sizes=tensorflow.shape(images),
                filter=kernel,
                out_backprop=above,
                strides=strides,
                padding=padding,
            )
            if in_parts:
                return of_images, filter_gradient(images, above, kernel.shape, strides[1], padding)
            return of_images, tensorflow.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=images,
                filter_sizes=tensorflow.shape(kernel),
                out_backprop=above,
                strides=strides,
                padding=padding,
            )

        return tensorflow.nn.depthwise_conv2d(images, kernel, strides, padding), gradient

    return convolve


def filter_gradient(
    images: Any, above: Any, shape: Sequence[int], stride: int, padding: str
) -> Any:
    """Compute the gradient of a depthwise filter, some columns at a time.

    Args:
        images: What was convolved, `(n, height, width, channels)`.
        above: Gradient of what came out.
        shape: Of the filter: rows, columns, channels, multiplier.
        stride: The same in both directions.
        padding: `"SAME"` or `"VALID"`.

    Returns:
        Of the filter's shape.
    """
    tensorflow = import_tensorflow()
    rows, columns, channels, multiplier = shape
    height, width = images.shape[1:3]
    top, bottom = padding_of(height, rows, stride, padding)
    left, _ = padding_of(width, columns, stride, padding)
    parts = []
    for first in range(0, columns, MAX_COLUMNS):
        count = min(MAX_COLUMNS, columns - first)
        # Columns of the images that these columns of the filter meet.
        start = first - left
        end = start + (above.shape[2] - 1) * stride + count
        parts.append(
            tensorflow.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=images[:, :, max(start, 0) : min(end, width)],
                filter_sizes=(rows, count, channels, multiplier),
                out_backprop=above,
                strides=[1, stride, stride, 1],
                padding="EXPLICIT",
                explicit_paddings=[
                    0, 0, top, bottom, max(-start, 0), max(end - width, 0), 0, 0,
                ],
            )
        )  # fmt: skip
    return tensorflow.concat(parts, axis=1)


def padding_of(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int]:
    """Say how many zeros TensorFlow puts before and behind.

    Example:
        >>> padding_of(14, 5, 2, "SAME")
        (1, 2)
    """
    if padding == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
