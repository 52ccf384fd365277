"""Graphs of networks: asked for their calls, and pieces of them put together to new ones."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.models.framework import import_keras
from cvpipe.models.keras_files import NOISE

if TYPE_CHECKING:
    import keras


def replay(
    network: "keras.Model",
    tensor: Any,
    name_of: Callable[[str], str],
    values: Sequence[np.ndarray] | None = None,
) -> Any:
    """Put what a network computes behind a tensor; what acts in training alone is left out.

    `clone_model` cannot: what it makes from a tensor within a graph begins with an input of its
    own.

    Args:
        network: A functional model with one input and one output.
        tensor: Takes the place of the input.
        name_of: Gives the name that a layer has in the new graph. A layer whose name changes is
            copied, because a graph has no two layers of one name; the others are shared.
        values: Of all variables of the network, for the copies; its own if not given.
    """
    copies: dict[int, Any] = {}

    def copy(layer: Any) -> Any:
        name = name_of(layer.name)
        if id(layer) not in copies:
            config = {**layer.get_config(), "name": name}
            is_shared = name == layer.name
            copies[id(layer)] = layer if is_shared else layer.__class__.from_config(config)
        return copies[id(layer)]

    def call(layer: Any, *arguments: Any, **settings: Any) -> Any:
        return arguments[0] if _is_noise(layer) else layer(*arguments, **settings)

    computed = network._run_through_graph([tensor], operation_fn=copy, call_fn=call)
    given = [v.numpy() for v in network.variables] if values is None else values
    value_of = {id(v): value for v, value in zip(network.variables, given, strict=True)}
    for layer in network.layers:
        twin = copies.get(id(layer), layer)
        if twin is layer or _is_noise(layer):
            continue
        for new, old in zip(twin.variables, layer.variables, strict=True):
            new.assign(value_of[id(old)])
        finalize(twin)
    (output,) = import_keras().tree.flatten(computed)
    return output


def finalize(layer: "keras.Layer") -> None:
    """Let normalisations compute with the values of their variables, of which they keep copies."""
    for part in layer._flatten_layers():
        if isinstance(part, import_keras().layers.Normalization):
            part.finalize_state()


def named(tensor: Any, name: str) -> Any:
    """Name the operation that gives a tensor.

    Keras numbers operations through a process, and so would give one the name that another has in
    a network that was loaded.
    """
    tensor._keras_history.operation.name = name
    return tensor


def input_like(model: "keras.Model") -> Any:
    """Make an input like that of a network."""
    (given,) = model.inputs
    return import_keras().Input(given.shape[1:], dtype=given.dtype, name=given.name)


def calls_of(network: "keras.Model") -> dict[str, Any]:
    """Find the layers that a network calls once.

    A layer itself remembers the calls of all networks that it is part of.

    Returns:
        Name of the layer to the node of the graph that calls it.
    """
    nodes = nodes_of(network)
    times = Counter(node.operation.name for node in nodes)
    return {n.operation.name: n for n in nodes if times[n.operation.name] == 1}


def nodes_of(network: "keras.Model") -> list[Any]:
    """List the nodes of a network's own graph, which are calls of its layers."""
    nodes = [node for level in network._nodes_by_depth.values() for node in level]
    return [node for node in nodes if not node.is_input]


def _is_noise(layer: Any) -> bool:
    return type(layer).__name__ in NOISE
