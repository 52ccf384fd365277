"""EfficientNet-Lite as Keras networks, and the names of their weights in the checkpoints.

The Lite variants drop squeeze-and-excitation and use ReLU6, so that they stay accurate
when quantized and run on phones. The networks take `uint8` images and scale them
themselves. Layers are named by place: `stem_*`, `block_01_*` and so on, `last_*`,
`features` and, with the ImageNet head, `imagenet`.

Departures from the original: no stochastic depth and no dropout before the head; both
act in training only.

References:
    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
    Networks", ICML 2019, table 1 (blocks).
    Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog,
    2020 (the Lite changes, and stem and last stages that do not grow with the network).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras


class _Stage(NamedTuple):
    num_blocks: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


class LiteVariant(NamedTuple):
    """What sets one EfficientNet-Lite apart from the others."""

    name: str
    stages: tuple[_Stage, ...]


STEM_FILTERS = 32
LAST_FILTERS = 1280


def _variant(name: str, num_blocks: Sequence[int], filters: Sequence[int]) -> LiteVariant:
    """Fill in what all variants share: kernel sizes, strides and expansions."""
    shared = zip((3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6), strict=True)
    stages = zip(num_blocks, shared, filters, strict=True)
    return LiteVariant(name, tuple(_Stage(blocks, *rest, out) for blocks, rest, out in stages))


LITE0 = _variant("efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320))
LITE2 = _variant("efficientnet_lite2", (1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352))


def apply_efficientnet_lite(
    variant: LiteVariant, images: "keras.KerasTensor", include_head: bool
) -> "keras.KerasTensor":
    """Put a network with untrained weights behind the input of a model.

    Args:
        variant: Which one.
        images: `uint8`, shape `(n, height, width, 3)`.
        include_head: Whether the 1000-class ImageNet head follows the features.

    Returns:
        Features of shape `(n, 1280)`, or probabilities of shape `(n, 1000)`.
    """
    keras = import_keras()
    # (x - 127) / 128, exact in float32 because 128 is a power of two.
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128, name="rescaling")(images)
    x = _conv(x, "stem", STEM_FILTERS, kernel_size=3, strides=2)
    for name, stage, strides in _blocks(variant):
        x = _block(x, name, stage, strides)
    x = _conv(x, "last", LAST_FILTERS, kernel_size=1)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.layers.Dense(1000, activation="softmax", name="imagenet")(x) if include_head else x


def _blocks(variant: LiteVariant) -> list[tuple[str, _Stage, int]]:
    """List name, stage and strides of all blocks."""
    stages = [(stage, repeat) for stage in variant.stages for repeat in range(stage.num_blocks)]
    return [
        (f"block_{number:02d}", stage, stage.strides if repeat == 0 else 1)
        for number, (stage, repeat) in enumerate(stages, start=1)
    ]


def lite_freeze_points(variant: LiteVariant) -> dict[str, str]:
    """Map the places at which a network can be parted to the layers that end there.

    Example:
        >>> points = lite_freeze_points(LITE0)
        >>> points["block_01"], points["block_03"], list(points)[-2:]
        ('block_01_project_norm', 'block_03_add', ['block_16', 'last'])
    """
    points, channels = {"stem": "stem_relu6"}, STEM_FILTERS
    for name, stage, strides in _blocks(variant):
        adds = strides == 1 and channels == stage.filters
        points[name] = f"{name}_add" if adds else f"{name}_project_norm"
        channels = stage.filters
    return {**points, "last": "last_relu6"}


def _block(x: Any, name: str, stage: _Stage, strides: int) -> Any:
    """Inverted bottleneck: expand, filter each channel, project; add the input if it fits."""
    keras = import_keras()
    inputs, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = _conv(x, f"{name}_expand", channels * stage.expansion, kernel_size=1)
    x = keras.layers.DepthwiseConv2D(
        stage.kernel_size,
        strides,
        padding="same",
        use_bias=False,
        name=f"{name}_depthwise_conv",
    )(x)
    x = _norm_relu6(x, f"{name}_depthwise")
    x = _conv(x, f"{name}_project", stage.filters, kernel_size=1, relu6=False)
    if strides == 1 and channels == stage.filters:
        x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return x


def _conv(
    x: Any, name: str, filters: int, *, kernel_size: int, strides: int = 1, relu6: bool = True
) -> Any:
    keras = import_keras()
    # "same" pads more below and right when the stride is 2, as in the original; a
    # symmetric padding layer would shift every feature map.
    x = keras.layers.Conv2D(
        filters, kernel_size, strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return _norm_relu6(x, name, relu6)


def _norm_relu6(x: Any, name: str, relu6: bool = True) -> Any:
    keras = import_keras()
    x = keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_norm")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x) if relu6 else x


def load_lite(
    variant: LiteVariant, model: "keras.Model", checkpoint: dict[str, np.ndarray]
) -> None:
    """Put a checkpoint's weights into a network of `apply_efficientnet_lite`.

    Args:
        variant: Which network it is.
        model: The network; changed in place.
        checkpoint: Tensors by name, from `read_torch_checkpoint`. Those of the head are
            not needed, and not used, by a network without one.

    Raises:
        InputError: Checkpoint and network do not fit tensor by tensor.
    """
    variables = lite_variables(variant, checkpoint)
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    without_arrays = sorted(layers.keys() - variables.keys())
    without_layer = sorted(variables.keys() - layers.keys() - {"imagenet"})
    if without_arrays or without_layer:
        raise InputError(
            f"the checkpoint does not fit the network {model.name!r}: layers without weights "
            f"{without_arrays}, weights without a layer {without_layer}; build the network "
            "with build_backbone."
        )
    for name, layer in layers.items():
        given = [array.shape for array in variables[name]]
        expected = [tuple(weight.shape) for weight in layer.weights]
        if given != expected:
            raise InputError(
                f"the checkpoint does not fit layer {name!r}: it has shapes {given}, "
                f"expected {expected}; use the checkpoint of {variant.name}."
            )
        layer.set_weights(variables[name])


def lite_variables(
    variant: LiteVariant, checkpoint: dict[str, np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """Rename and transpose a checkpoint's tensors to what Keras layers expect.

    Args:
        variant: The network that the checkpoint is of.
        checkpoint: Tensors by name; convolution kernels as (output, input, height, width).

    Returns:
        For each layer's name its arrays in Keras's order: a kernel as (height, width,
        input, output) (depthwise: (height, width, channel, 1)); gamma, beta, mean and
        variance of a BatchNormalization layer; kernel and bias of the head.

    Raises:
        InputError: A tensor is missing, or one is left over (PyTorch's batch counters,
            `num_batches_tracked`, apart).
    """
    names = _tensor_names(variant)
    wanted = {tensor for tensors in names.values() for tensor in tensors}
    given = {name for name in checkpoint if not name.endswith(".num_batches_tracked")}
    if wanted != given:
        raise InputError(
            f"this is not the checkpoint of {variant.name}: missing tensors "
            f"{sorted(wanted - given)[:3]}, unknown tensors {sorted(given - wanted)[:3]}; "
            "use the file named in BACKBONES."
        )
    return {
        layer: [_to_keras(tensor, checkpoint[tensor]) for tensor in tensors]
        for layer, tensors in names.items()
    }


def _tensor_names(variant: LiteVariant) -> dict[str, list[str]]:
    """Name the checkpoint's tensors for each layer, in the order Keras keeps them."""
    # (our prefix, the checkpoint's convolution, the checkpoint's BatchNormalization)
    triples = [("stem", "_conv_stem", "_bn0"), ("last", "_conv_head", "_bn1")]
    for index, (ours, stage, _) in enumerate(_blocks(variant)):
        theirs = f"_blocks.{index}"
        if stage.expansion > 1:
            triples.append((f"{ours}_expand", f"{theirs}._expand_conv", f"{theirs}._bn0"))
        triples.append((f"{ours}_depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"))
        triples.append((f"{ours}_project", f"{theirs}._project_conv", f"{theirs}._bn2"))
    names = {"imagenet": ["_fc.weight", "_fc.bias"]}
    for ours, conv, norm in triples:
        names[f"{ours}_conv"] = [f"{conv}.weight"]
        statistics = ("weight", "bias", "running_mean", "running_var")
        names[f"{ours}_norm"] = [f"{norm}.{statistic}" for statistic in statistics]
    return names


def _to_keras(name: str, tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 4:
        depthwise = name.endswith("_depthwise_conv.weight")
        return tensor.transpose(2, 3, 0, 1) if depthwise else tensor.transpose(2, 3, 1, 0)
    return tensor.T
