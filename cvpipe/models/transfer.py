"""Freeze, part and unfreeze a network.

What lies before the freeze point (the trunk) never changes, so it is run once per image and view
and its outputs are kept; what lies behind it (the tail) is trained on those.

BatchNormalization stays frozen everywhere in a pretrained network, its averages and its scales:
the averages of a few small batches are worse than those of a million images, and the backward
pass costs a third without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import check_name
from cvpipe.models.backbones import BACKBONES, FEATURES_POINT, BackboneSpec
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import LOGITS_LAYER
from cvpipe.models.training import Group

if TYPE_CHECKING:
    import keras

WHOLE_NETWORK = "none"  # nothing is frozen
# Words for freeze points, as shares of all of them: of EfficientNet-Lite0 blocks 11 and 15.
FREEZE_WORDS = {"middle": 0.65, "last_block": 0.85}
DROPOUT_LAYER = "dropout"


def freeze_point(spec: BackboneSpec, freeze: str) -> str:
    """Resolve what a person calls the place up to which a network is frozen.

    Args:
        spec: The network.
        freeze: `"none"`, a key of `FREEZE_WORDS`, or a freeze point of the backbone.

    Returns:
        A freeze point of the backbone; `""` where nothing is frozen.

    Raises:
        InputError: There is no such place.

    Example:
        >>> freeze_point(BackboneSpec("efficientnet_lite0"), "middle")
        'block_11'
    """
    points = list(BACKBONES[spec.name].freeze_points)
    if freeze == WHOLE_NETWORK:
        return ""
    if freeze in FREEZE_WORDS:
        inner = [point for point in points if point != FEATURES_POINT]
        return inner[int(FREEZE_WORDS[freeze] * len(inner))]
    check_name("freeze point", freeze, [WHOLE_NETWORK, *FREEZE_WORDS, *points])
    return freeze


def attach_trainable_head(
    backbone: "keras.Model",
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    dropout: float,
    seed: int,
) -> "keras.Model":
    """Put dropout and a linear layer on a backbone.

    Args:
        backbone: Model from `uint8` images to features; its layers are shared.
        kernel: Initial weights, `float32 (num_features, num_classes)`.
        bias: `float32 (num_classes,)`.
        dropout: Share of the features that is left out in each training step.
        seed: Of what dropout leaves out.

    Returns:
        Model from images to logits.
    """
    keras = import_keras()
    features = backbone.output
    if dropout:
        features = keras.layers.Dropout(dropout, seed=seed, name=DROPOUT_LAYER)(features)
    head = keras.layers.Dense(kernel.shape[1], name=LOGITS_LAYER)
    model = keras.Model(backbone.input, head(features), name=backbone.name)
    head.set_weights([kernel, bias])
    return model


def part_network(
    spec: BackboneSpec, model: "keras.Model", point: str
) -> tuple["keras.Model", "keras.Model"]:
    """Part a network at a freeze point.

    Args:
        spec: The backbone that the network starts with.
        model: From images to whatever.
        point: One of the backbone's freeze points.

    Returns:
        The trunk, from images to activations, and the tail, from those to the model's output.
        They share the layers of the model.
    """
    keras = import_keras()
    boundary = model.get_layer(BACKBONES[spec.name].freeze_points[point]).output
    return keras.Model(model.input, boundary), keras.Model(boundary, model.output)


def unfreeze(network: "keras.Model", *, norms: bool) -> list["keras.Layer"]:
    """Let the layers of a network learn.

    Args:
        network: The tail of a pretrained network, or a whole one.
        norms: Whether BatchNormalization learns, too: where a network starts from scratch.

    Returns:
        The layers that learn, from input to output.
    """
    keras = import_keras()
    never = (keras.layers.Normalization,)
    frozen = never if norms else (*never, keras.layers.BatchNormalization)
    layers = [layer for layer in network.layers if layer.weights and not isinstance(layer, frozen)]
    for layer in layers:
        layer.trainable = True
    return layers


def learning_groups(layers: Sequence["keras.Layer"], backbone_rate: float) -> list[Group]:
    """Let the head learn at the full rate, and what was pretrained at a share of it.

    Args:
        layers: Of `unfreeze`, in order.
        backbone_rate: Factor for layers next to the head; 1: all learn at one rate.

    Returns:
        Two groups, or one.
    """
    head = [layer for layer in layers if layer.name == LOGITS_LAYER]
    others = [layer for layer in layers if layer.name != LOGITS_LAYER]
    if not others or backbone_rate == 1:
        return [Group(layers, 1.0)]
    return [Group(others, backbone_rate), Group(head, 1.0)]
