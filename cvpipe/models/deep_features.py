"""What a contender reads of a frozen backbone: the pooled outputs of some of its layers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cvpipe.contender_sections import Pooling
from cvpipe.errors import InputError, check_name
from cvpipe.models.backbones import (
    BACKBONES,
    FEATURES_POINT,
    BackboneSpec,
    build_backbone,
    check_backbone,
    weights_fingerprint,
)
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import import_keras
from cvpipe.models.weights import NO_WEIGHTS

if TYPE_CHECKING:
    import keras

POOLINGS = ("average", "max", "average_and_max")


@dataclass(frozen=True)
class DeepFeature:
    """Layers of a backbone, pooled over the places of an image.

    On images unlike ImageNet's the last layer is often not the best one: it has learned to tell
    the classes of ImageNet apart, and to forget what else an image shows.

    Attributes:
        spec: The backbone.
        layers: Its freeze points whose outputs are read, side by side.
        pooling: `"average"`, `"max"`, or both side by side. What a backbone ends with, the freeze
            point `features`, is a vector already.
    """

    spec: BackboneSpec
    layers: tuple[str, ...] = (FEATURES_POINT,)
    pooling: Pooling = "average"
    learns = False  # from train images: all of it was learned before

    @property
    def image_size(self) -> tuple[int, int]:
        """`(height, width)` in pixels that images are brought to first."""
        return self.spec.size

    @property
    def title(self) -> str:
        """What people call it, with the settings that are its own."""
        plain = DeepFeature(BackboneSpec(self.spec.name))
        title = f"frozen features of {BACKBONES[self.spec.name].description}"
        if self.layers != plain.layers:
            title += f", {self.pooling.replace('_', ' ')} of {' and '.join(self.layers)}"
        if self.image_size != plain.image_size:
            title += f", at {self.image_size[0]}x{self.image_size[1]}"
        return title

    @property
    def described(self) -> str:
        """Its title and what can be set in a `[[feature]]` of its kind."""
        return f"{self.title}; kind {self.spec.name}, settings {{{', '.join(SETTINGS)}}}"

    @property
    def identity(self) -> str:
        """What distinguishes its rows from those of other settings, versions apart."""
        weights = weights_fingerprint(self.spec)
        if self == DeepFeature(BackboneSpec(self.spec.name, self.spec.weights, self.spec.sha256)):
            return weights
        facts = [weights, self.spec.size, self.layers, self.pooling]
        return json.dumps([self.spec.name, *facts])

    def build(self) -> "keras.Model":
        """Build the network from `uint8` images to rows, which never learns."""
        return fold_norms(pool_layers(build_backbone(self.spec), self))


SETTINGS = {
    "layers": (FEATURES_POINT,),
    "pooling": "average",
    "weights": "package",
    "weights_sha256": "",
}


def make_deep_feature(
    name: str, image_size: tuple[int, ...], settings: Mapping[str, Any]
) -> DeepFeature:
    """Make the feature of a `[[feature]]` section whose kind is a backbone.

    Raises:
        InputError: A setting is unknown or has an impossible value.
    """
    for key, value in settings.items():
        check_name(f"setting of the feature of {name!r}", key, SETTINGS)
        words = all(type(part) is str for part in value) if type(value) is tuple else True
        if type(value) is not type(SETTINGS[key]) or not words:
            raise InputError(
                f"{key} of a feature of {name!r} must be such as {SETTINGS[key]!r}, but is "
                f"{value!r}."
            )
    given = {**SETTINGS, **settings}
    spec = BackboneSpec(name, given["weights"], given["weights_sha256"], image_size)
    return check_deep_feature(DeepFeature(spec, given["layers"], given["pooling"]))


def check_deep_feature(feature: DeepFeature) -> DeepFeature:
    """Return a feature that can be built, as far as can be told without looking at files.

    Raises:
        InputError: It cannot.
    """
    check_backbone(feature.spec)
    if feature.spec.weights == NO_WEIGHTS:
        raise InputError(
            f"weights is 'none', but features of {feature.spec.name!r} without its weights say "
            "nothing; leave weights out, or train it with recipe = 'from_scratch'."
        )
    check_name("pooling", feature.pooling, POOLINGS)
    if not feature.layers or len(set(feature.layers)) < len(feature.layers):
        raise InputError(
            f"layers must name at least one freeze point of {feature.spec.name!r}, each once, but "
            f"are {list(feature.layers)}."
        )
    for layer in feature.layers:
        check_name("freeze point", layer, BACKBONES[feature.spec.name].freeze_points)
    return feature


def pool_layers(model: "keras.Model", feature: DeepFeature) -> "keras.Model":
    """Let a backbone give the pooled outputs of some layers; it shares their weights."""
    keras = import_keras()
    if feature.layers == (FEATURES_POINT,):
        return model
    points, rows = BACKBONES[feature.spec.name].freeze_points, []
    for layer in feature.layers:
        output = model.get_layer(points[layer]).output
        if len(output.shape) == 2:
            rows.append(output)
            continue
        if feature.pooling in ("average", "average_and_max"):
            rows.append(keras.layers.GlobalAveragePooling2D(name=f"{layer}_average")(output))
        if feature.pooling in ("max", "average_and_max"):
            rows.append(keras.layers.GlobalMaxPooling2D(name=f"{layer}_max")(output))
    joined = rows[0] if len(rows) == 1 else keras.layers.Concatenate(name="joined")(rows)
    return keras.Model(model.input, joined, name=model.name)
