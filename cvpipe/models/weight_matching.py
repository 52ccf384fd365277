"""Putting the tensors of a weights file into a network: all of them, or none.

A file fits when each variable of the network has one tensor of its shape and no tensor is left
over. Everything is compared before the first variable changes.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.weight_files import KerasWeights

if TYPE_CHECKING:
    import keras


class Match(NamedTuple):
    """A variable of a network, and the tensor that is to fill it.

    Attributes:
        tensor: The tensor's name in its file.
        variable: The variable.
        value: Anything with a shape that NumPy can make an array of.
    """

    tensor: str
    variable: "keras.Variable"
    value: Any


def assign(model: "keras.Model", matches: Sequence[Match]) -> None:
    """Fill the variables of a network, after all shapes were compared.

    Raises:
        InputError: A tensor has another shape than its variable.
    """
    for match in matches:
        found, expected = tuple(match.value.shape), tuple(match.variable.shape)
        if found != expected:
            raise _misfit(
                model, f"tensor {match.tensor!r} has shape {found}, but {expected} is expected"
            )
    for match in matches:
        match.variable.assign(np.asarray(match.value))
    keras = import_keras()
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights, made here


def match_keras(model: "keras.Model", weights: KerasWeights) -> list[Match]:
    """Match the tensors of a file that Keras wrote, as Keras itself does.

    Names are not compared, because Keras numbers layers anew in every process: legacy files are
    matched by the order of layers, files of Keras 3 by kind and number of each layer. Of a saved
    model in which the network is one layer, that layer is taken.

    Raises:
        InputError: A tensor is missing or left over.
    """
    if weights.by_layer:
        return _match_by_order(model, weights.by_layer)
    return _match_by_path(model, weights.by_path)


def _match_by_order(model: "keras.Model", by_layer: Sequence[tuple[str, list]]) -> list[Match]:
    matches = []
    layers = [layer for layer in model.layers if layer.weights]
    for layer, theirs in itertools.zip_longest(layers, by_layer):
        if layer is None:
            raise _misfit(model, f"tensor {theirs[1][0].name!r} is left over")
        name, tensors = theirs or ("", [])
        if len(tensors) != len(layer.weights):
            raise _misfit(
                model,
                f"layer {layer.name!r} needs {len(layer.weights)} tensors, but its counterpart "
                f"{name!r} has {len(tensors)}",
            )
        pairs = zip(layer.weights, tensors, strict=True)
        matches += [Match(tensor.name.lstrip("/"), variable, tensor) for variable, tensor in pairs]
    return matches


def _match_by_path(model: "keras.Model", by_path: Mapping[str, Any]) -> list[Match]:
    variables = variable_paths(model)
    prefix = _find_network(variables, by_path)
    inside = f"{prefix}layers/"
    tensors = {
        path.removeprefix(prefix): tensor
        for path, tensor in by_path.items()
        if path.startswith(inside)
    }
    _compare_names(model, variables, tensors)
    return [Match(path, variable, tensors[path]) for path, variable in variables.items()]


def _find_network(variables: Mapping[str, Any], by_path: Mapping[str, Any]) -> str:
    """Say where in a file the network is: at the top, or below one of the layers there."""
    nested = re.compile("(layers/[^/]+/)layers/")
    below = dict.fromkeys(match[1] for match in map(nested.match, by_path) if match)
    return max(("", *below), key=lambda prefix: sum(prefix + path in by_path for path in variables))


def variable_paths(model: "keras.Model", prefix: str = "") -> dict[str, "keras.Variable"]:
    """Map the paths under which a Keras 3 file keeps a network's variables to them.

    Layers go by their kind and a number, counted in the order of `model.layers`.
    """
    keras = import_keras()
    paths: dict[str, Any] = {}
    counts = Counter[str]()
    for layer in model.layers:
        kind = snake_case(type(layer).__name__)
        place = f"{prefix}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else "")
        counts[kind] += 1
        if isinstance(layer, keras.Model):
            paths |= variable_paths(layer, f"{place}/")
        else:
            paths |= {f"{place}/vars/{i}": variable for i, variable in enumerate(layer.weights)}
    return paths


def snake_case(name: str) -> str:
    """Name a class as Keras does when it makes up names of layers.

    Example:
        >>> snake_case("BatchNormalization"), snake_case("SeparableConv2D")
        ('batch_normalization', 'separable_conv2d')
    """
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def match_plain_onnx(model: "keras.Model", tensors: Mapping[str, np.ndarray]) -> list[Match]:
    """Match the convolutions, each with a bias, of an ONNX model that tf2onnx wrote.

    A tensor belongs to the layer whose name is part of its path. Dense layers behind the
    network, of whoever trained them, are left alone.

    Raises:
        InputError: A layer has not just kernel and bias there, or a kernel is left over.
    """
    matches, used = [], set()
    for layer in model.layers:
        if not layer.weights:
            continue
        place = re.compile(rf"(^|/){re.escape(layer.name)}(_\d+)?/")
        names = sorted((n for n in tensors if place.search(n)), key=lambda n: tensors[n].size)
        if len(names) != 2 or tensors[names[1]].ndim != 4:
            raise _misfit(model, f"layer {layer.name!r} needs a kernel and a bias, found {names}")
        bias, kernel = names
        # From (output, input, height, width).
        matches.append(Match(kernel, layer.kernel, tensors[kernel].transpose(2, 3, 1, 0)))
        matches.append(Match(bias, layer.bias, tensors[bias].squeeze()))
        used |= set(names)
    left_over = [name for name, tensor in tensors.items() if tensor.ndim == 4 and name not in used]
    if left_over:
        raise _misfit(model, f"tensor {left_over[0]!r} is left over")
    return matches


def match_mobilenet_graph(model: "keras.Model", tensors: Mapping[str, np.ndarray]) -> list[Match]:
    """Match the constants of Google's MobileNet v1, as TF-slim named them.

    Its head of 1001 classes is left alone, and so is anything behind it.

    Raises:
        InputError: A tensor is missing or left over.
    """
    wanted = {
        name: variable
        for layer in model.layers
        if layer.weights
        for name, variable in zip(_slim_names(layer.name), layer.weights, strict=True)
    }
    # Scalars are constants of the computation, not weights.
    trunk = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("MobilenetV1/")
        and not name.startswith("MobilenetV1/Logits/")
        and tensor.ndim > 0
        and tensor.dtype == np.float32
    }
    _compare_names(model, wanted, trunk)
    return [Match(name, variable, trunk[name]) for name, variable in wanted.items()]


def _slim_names(layer: str) -> list[str]:
    """Name TF-slim's variables of a layer of keras.applications.MobileNet.

    Example:
        >>> _slim_names("conv_dw_3")
        ['MobilenetV1/Conv2d_3_depthwise/depthwise_weights']
    """
    number = layer.removesuffix("_bn").rsplit("_", 1)[-1]
    depthwise = layer.startswith("conv_dw")
    kind = "_depthwise" if depthwise else "_pointwise"
    block = "Conv2d_0" if layer.startswith("conv1") else f"Conv2d_{number}{kind}"
    if layer.endswith("_bn"):
        names = [f"BatchNorm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")]
    else:
        names = ["depthwise_weights" if depthwise else "weights"]
    return [f"MobilenetV1/{block}/{name}" for name in names]


def _compare_names(
    model: "keras.Model", wanted: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    missing = next((name for name in wanted if name not in given), None)
    if missing:
        raise _misfit(model, f"tensor {missing!r} is missing")
    left_over = next((name for name in given if name not in wanted), None)
    if left_over:
        raise _misfit(model, f"tensor {left_over!r} is left over")


def _misfit(model: "keras.Model", what: str) -> InputError:
    return InputError(
        f"the weights file does not fit {model.name!r}: {what}; give a file of this very network, "
        "saved without its ImageNet head (Keras: include_top=False)."
    )
