"""Copies of a network that compute in another precision."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cvpipe.models.framework import import_keras
from cvpipe.models.graphs import finalize

if TYPE_CHECKING:
    import keras


def twin_of(network: "keras.Model", dtype_of: Callable[[Any], str]) -> "keras.Model":
    """Copy a network into one with variables of its own, of the same values.

    Args:
        network: A functional model.
        dtype_of: Gives what a layer of the copy computes in: a number type, or a policy of Keras
            such as `"mixed_float16"`.

    Returns:
        A model of layers with the same names.
    """
    keras = import_keras()

    def copy(layer: Any) -> Any:
        # A plain operation, as `x * 2`, computes in the type of its arguments.
        dtype = {"dtype": dtype_of(layer)} if isinstance(layer, keras.Layer) else {}
        return layer.__class__.from_config({**layer.get_config(), **dtype})

    twin = keras.models.clone_model(network, clone_function=copy, recursive=True)
    for variable, original in zip(twin.variables, network.variables, strict=True):
        variable.trainable = original.trainable
    copy_variables(network, twin)
    return twin


def copy_variables(source: "keras.Model", target: "keras.Model") -> None:
    """Give a network the variables of its twin, states of random generators among them.

    Of a network that is its own twin nothing happens.
    """
    if source is target:
        return
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old.numpy())
    finalize(target)
