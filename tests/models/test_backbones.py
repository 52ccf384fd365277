import copy
import dataclasses
import math
import subprocess
import sys

import h5py
import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from cvpipe.errors import InputError
from cvpipe.models.applications import APPLICATIONS
from cvpipe.models.backbones import (
    BACKBONES,
    FEATURES_POINT,
    BackboneSpec,
    build_backbone,
    check_backbone,
    describe_weights,
    weights_fingerprint,
    weights_path,
)
from cvpipe.models.efficientnet_lite import (
    LITE0,
    apply_efficientnet_lite,
    lite_variables,
    load_lite,
)
from cvpipe.models.framework import import_keras
from cvpipe.models.weights import find_weights, read_torch_checkpoint, sha256_of_file

LITE = ["efficientnet_lite0", "efficientnet_lite2"]
FAST = [*LITE, "lenet5", "small_vgg", "cifar_resnet", "mobilenet_v2"]
# One of each way to prepare images and to store weights.
SLOW = [
    "resnet50",
    "vgg16",
    "xception",
    "efficientnet_b0",
    "mobilenet_v3_small",
    "densenet121",
    "mobilenet",
]
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
STATISTICS = {"channel_mean": np.array([120.0, 110, 100]), "channel_std": np.array([60.0, 50, 40])}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
# What each network was trained on, written down a second time on purpose. Where a name is
# missing, the function `preprocess_input` of its module in keras.applications says it.
PREPROCESSING = {
    **dict.fromkeys(LITE, lambda image: (image - 127) / 128),
    **dict.fromkeys(
        ["lenet5", "small_vgg", "cifar_resnet"],
        lambda image: (image - STATISTICS["channel_mean"]) / STATISTICS["channel_std"],
    ),
    "mobilenet_v3_small": lambda image: image / 127.5 - 1,
    "efficientnet_b0": lambda image: (image / 255 - MEAN) / STD,
}


def spec_of(name, **facts):
    weights = "package" if BACKBONES[name].weights else "none"
    return BackboneSpec(name, **{"weights": weights, **facts})


def build(name, **facts):
    return build_backbone(spec_of(name, **facts), statistics=STATISTICS)


def draw_images(size, count=3):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def compute(model, images):
    """Layer by layer, which spares compiling the network."""
    return np.asarray(model(images, training=False))


@pytest.fixture(scope="module", params=ALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


@pytest.fixture(scope="module")
def checkpoint():
    return read_torch_checkpoint(find_weights(BACKBONES["efficientnet_lite0"].weights))


@pytest.fixture
def images(name):
    return draw_images(BACKBONES[name].image_size, count=2)


# --- the contract of every backbone -----------------------------------------------------


def test_the_table_says_what_the_network_is(name, model):
    backbone = BACKBONES[name]
    assert model.input_shape == (None, *backbone.image_size, 3)
    assert model.inputs[0].dtype == "uint8"
    assert model.output_shape == (None, backbone.num_features)
    assert model.count_params() == backbone.num_parameters
    assert multiply_adds(model) == backbone.multiply_adds


def multiply_adds(model):
    """Output positions times the weights that each of them sees."""
    keras = import_keras()
    convolutions = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    total = 0
    for layer in model.layers:
        kernels = []
        if isinstance(layer, keras.layers.SeparableConv2D):
            kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
        elif isinstance(layer, convolutions):
            kernels = [layer.kernel]
        for kernel in kernels:
            total += math.prod(layer.output.shape[1:3]) * math.prod(kernel.shape)
    return total


def test_preprocessing_is_inside_the_graph(name, model):
    keras = import_keras()
    height, width = BACKBONES[name].image_size
    # Every grey level in every channel.
    values = np.resize(np.arange(256, dtype=np.uint8), (1, height, width, 3))
    layer = BACKBONES[name].preprocessing or "normalisation"
    prepared = keras.Model(model.input, model.get_layer(layer).output)
    expected = preprocess(name, values.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(compute(prepared, values), expected, rtol=1e-6, atol=1e-5)
    assert np.ptp(expected) > 1


def preprocess(name, values):
    if name in PREPROCESSING:
        return PREPROCESSING[name](values)
    network = getattr(import_keras().applications, APPLICATIONS[name].attribute)
    return sys.modules[network.__module__].preprocess_input(values)


def test_save_and_load(model, images, tmp_path):
    keras = import_keras()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(compute(loaded, images), compute(model, images))


def test_images_give_different_finite_features(model, images):
    features = compute(model, images)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert (features[0] != features[1]).any()


def test_everything_is_frozen(model):
    assert model.trainable_weights == []
    assert all(layer.trainable is False for layer in model.layers)


def test_freeze_points_part_the_network(name, model, images):
    keras = import_keras()
    points = BACKBONES[name].freeze_points
    order = [layer.name for layer in model.layers]
    assert len(points) >= 3
    places = [order.index(layer) for layer in points.values()]
    assert places == sorted(set(places))
    assert list(points)[-1] == order[-1] == FEATURES_POINT
    tensors = {point: model.get_layer(layer).output for point, layer in points.items()}
    values = keras.Model(model.input, tensors)(images, training=False)
    whole = np.asarray(values.pop(FEATURES_POINT))
    for number, (point, value) in enumerate(values.items()):
        # Keras refuses when a path to the output goes round the point.
        tail = keras.Model(tensors[point], model.output)
        if number % 3 == 0:  # computing takes a second each
            difference = np.abs(compute(tail, value) - whole).max()
            assert difference <= 1e-5 * np.abs(whole).max(), point


def test_other_sizes(name):
    side = BACKBONES[name].min_side
    model = build(name, weights="none", image_size=(side, side + 16))
    features = compute(model, draw_images((side, side + 16)))
    assert features.shape[1] == BACKBONES[name].num_features or name == "lenet5"
    assert np.isfinite(features).all()
    with pytest.raises(InputError, match=rf"images of {side + 16}x{side - 1} .* too small for"):
        check_backbone(spec_of(name, image_size=(side + 16, side - 1)))


def test_initial_weights_depend_on_the_seed_alone():
    """And not on what was built before: layers that Keras numbers get their names anew."""
    one, other = build("mobilenet_v2", weights="none"), build("mobilenet_v2", weights="none")
    assert [x.name for x in one.layers] == [x.name for x in other.layers]
    for x, y in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    one, other = (
        build_backbone(spec_of("lenet5"), seed=seed, statistics=STATISTICS) for seed in (0, 1)
    )
    assert (
        one.get_layer("conv_1").kernel.numpy() != other.get_layer("conv_1").kernel.numpy()
    ).all()


@pytest.mark.parametrize(
    ("name", "unfreeze"),
    [("efficientnet_lite0", True), ("cifar_resnet", True), ("cifar_resnet", False)],
)
def test_fitting_a_head_leaves_the_backbone(name, unfreeze):
    """BatchNormalization keeps its statistics even when other layers are unfrozen."""
    keras = import_keras()
    trained, images = build(name), draw_images(BACKBONES[name].image_size)
    norms = [x for x in trained.layers if isinstance(x, keras.layers.BatchNormalization)]
    convolutions = [x for x in trained.layers if isinstance(x, keras.layers.Conv2D)]
    convolutions[-1].trainable = unfreeze
    before = [array.copy() for layer in norms for array in layer.get_weights()]
    kernel = convolutions[-1].get_weights()[0]

    inputs = keras.Input(trained.input_shape[1:], dtype="uint8")
    head = keras.layers.Dense(2, activation="softmax")
    network = keras.Model(inputs, head(trained(inputs)))
    network.compile("sgd", "sparse_categorical_crossentropy")
    untrained_head = network.layers[-1].get_weights()[0]
    network.fit(images, np.array([0, 1, 1]), epochs=1, verbose=0)

    after = [array for layer in norms for array in layer.get_weights()]
    assert len(after) == 4 * len(norms) > 0
    assert all((x == y).all() for x, y in zip(before, after, strict=True))
    assert (head.get_weights()[0] != untrained_head).any()
    assert (convolutions[-1].get_weights()[0] != kernel).any() == unfreeze


def test_fingerprints():
    for name in LITE:
        assert weights_fingerprint(name) == BACKBONES[name].weights.sha256
        assert len(weights_fingerprint(name)) == 64
    assert weights_fingerprint(BackboneSpec("vgg16", "none")) == "none"
    assert weights_fingerprint(BackboneSpec("vgg16", "a.h5", "ab" * 32)) == "ab" * 32


def test_unknown_names():
    message = "unknown backbone 'efficientnet_lite'; did you mean 'efficientnet_lite2'?"
    for function in (build_backbone, weights_fingerprint):
        with pytest.raises(InputError) as caught:
            function("efficientnet_lite")
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (BackboneSpec("vgg16"), "no package holds weights of 'vgg16'; choose weights = 'keras' fo"),
        (BackboneSpec("lenet5"), "'lenet5' has no pretrained weights"),
        (BackboneSpec("efficientnet_lite0", "keras"), "Keras publishes no weights of 'efficientn"),
        (BackboneSpec("vgg16", "missing.h5"), "there is no weights file 'missing.h5'"),
    ],
)
def test_weights_that_there_are_not(spec, message):
    with pytest.raises(InputError, match=message):
        build_backbone(spec)


def test_networks_of_keras_have_no_head_here():
    with pytest.raises(InputError, match=r"MobileNetV2 is built without its ImageNet head"):
        build_backbone(spec_of("mobilenet_v2"), include_head=True)


@pytest.mark.parametrize("name", LITE)
def test_damaged_weights_are_never_replaced_by_random_ones(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / BACKBONES[name].weights.file_name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged or another version"):
        build_backbone(name)


def test_the_table_loads_without_keras():
    code = (
        "import sys, cvpipe.models.backbones as b; b.BACKBONES\n"
        "heavy = {'keras', 'tensorflow', 'scipy', 'sklearn', 'cv2', 'PIL', 'h5py'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_classifier_of_keras_is_in_the_table():
    applications = import_keras().applications
    theirs = {name for name in dir(applications) if name[0].isupper()}
    assert {application.attribute for application in APPLICATIONS.values()} == theirs


# --- the weights that Keras publishes ---------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("efficientnet_b0", "vgg16", "convnext_tiny")
    ],
)
def test_weights_of_keras_give_what_keras_gives(name, tmp_path, monkeypatch):
    """A file of random weights in place of the published one, which Keras loads as well."""
    keras = import_keras()
    application = APPLICATIONS[name]
    network = getattr(keras.applications, application.attribute)
    size = (64, 80)
    facts = {"include_top": False, "pooling": "avg", "input_shape": (*size, 3)}
    path = tmp_path / application.keras_file.file_name
    write_published_file(shake(network(weights=None, **facts)), path)

    asked = []

    def get_file(fname, origin, file_hash=None, **_):
        asked.append((fname, origin, file_hash or ""))
        return str(path)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    reference = network(weights="imagenet", **facts)
    file = application.keras_file
    assert asked == [(file.file_name, file.url, file.checksum)]

    backbone = BACKBONES[name]
    unchecked = dataclasses.replace(backbone.keras_weights, checksum="")
    monkeypatch.setitem(BACKBONES, name, dataclasses.replace(backbone, keras_weights=unchecked))
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(tmp_path))
    spec = BackboneSpec(name, "keras", image_size=size)
    images = draw_images(size) // np.array([1, 3, 9], np.uint8).reshape(3, 1, 1, 1)  # ever darker
    expected = compute(reference, preprocess_as_keras(network, images))
    difference = np.abs(compute(build_backbone(spec), images) - expected).max()
    # Random networks blow up the rounding of their inputs; what tells images apart is far more.
    assert difference <= 1e-3 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 3e-2 * np.abs(expected).max()
    assert weights_path(spec) == path
    assert weights_fingerprint(spec) == sha256_of_file(path)
    assert describe_weights(spec).endswith(f"; published by Keras, {file.url}")


def shake(network):
    """Give every variable numbers of its own, variances and scales positive."""
    rng = np.random.default_rng(0)
    for variable in network.variables:
        kind = variable.path.rsplit("/", 1)[-1]
        if "kernel" in kind:
            depthwise = variable.shape[-1] == 1
            fan_in = math.prod(variable.shape[:2] if depthwise else variable.shape[:-1])
            numbers = rng.normal(0, math.sqrt(2 / fan_in), variable.shape)
        elif kind in ("bias", "beta", "moving_mean"):
            numbers = rng.uniform(-0.02, 0.02, variable.shape)
        else:
            numbers = rng.uniform(0.5, 1.5, variable.shape)
        if kind != "count":
            variable.assign(numbers.astype(np.float32))
    return network


def write_published_file(network, path):
    """Write the layout of the published files: a legacy file of weights alone."""
    whole = path.with_name("whole.h5")
    network.save(whole)
    with h5py.File(whole) as source, h5py.File(path, "w") as target:
        weights = source["model_weights"]
        for name in weights:
            weights.copy(name, target)
        for name, value in weights.attrs.items():
            target.attrs[name] = value
    whole.unlink()


def preprocess_as_keras(network, images):
    return sys.modules[network.__module__].preprocess_input(images.astype(np.float32))


# --- EfficientNet-Lite ------------------------------------------------------------------


def load_photo(name):
    return load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()


def centre_crop(photo, side=224):
    image = Image.fromarray(photo)
    scale = side * 256 / 224 / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


@pytest.fixture(scope="module")
def networks_with_head():
    return {name: build_backbone(name, include_head=True) for name in LITE}


@pytest.fixture(scope="module")
def with_head(networks_with_head):
    return networks_with_head["efficientnet_lite0"]


CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat


@pytest.mark.parametrize(
    ("name", "photo", "classes", "at_least"),
    [
        ("efficientnet_lite0", "chelsea", CATS, 0.85),
        ("efficientnet_lite0", "coffee", {967}, 0.9),  # espresso
        ("efficientnet_lite0", "rocket", {657}, 0.35),  # missile
        ("efficientnet_lite0", "flower.jpg", {985}, 0.3),  # daisy
        ("efficientnet_lite0", "china.jpg", {698}, 0.35),  # palace
        ("efficientnet_lite2", "chelsea", CATS, 0.8),
        ("efficientnet_lite2", "coffee", {967}, 0.85),
        ("efficientnet_lite2", "rocket", {657}, 0.1),
        ("efficientnet_lite2", "china.jpg", {698}, 0.35),
    ],
)
def test_names_photos(networks_with_head, name, photo, classes, at_least):
    network = networks_with_head[name]
    crop = centre_crop(load_photo(photo), network.input_shape[1])
    probabilities = compute(network, crop[np.newaxis])[0]
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert probabilities.argmax() in classes
    assert probabilities[list(classes)].sum() > at_least


def test_head_reads_the_features(with_head, checkpoint):
    keras = import_keras()
    image = centre_crop(load_photo("coffee"))[np.newaxis]
    trunk = keras.Model(with_head.input, with_head.get_layer("features").output)
    features = compute(trunk, image)
    np.testing.assert_array_equal(compute(build_backbone("efficientnet_lite0"), image), features)
    logits = features.astype(np.float64) @ checkpoint["_fc.weight"].T + checkpoint["_fc.bias"]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(compute(with_head, image), expected, atol=1e-5)


def test_same_as_keras_efficientnet_without_squeeze_and_excitation():
    """Keras's own EfficientNet with the Lite changes, fed the same weights in order."""
    keras = import_keras()
    from keras.src.applications import efficientnet

    blocks = copy.deepcopy(efficientnet.DEFAULT_BLOCKS_ARGS)
    for block in blocks:
        block["se_ratio"] = 0
    whole = efficientnet.EfficientNet(
        1.0,
        1.0,
        224,
        activation="relu6",
        blocks_args=blocks,
        weights=None,
        include_top=False,
        pooling="avg",
        name="reference",
    )
    reference = keras.Model(whole.get_layer("stem_conv_pad").input, whole.output)
    model = build_backbone("efficientnet_lite0")
    reference.set_weights(model.get_weights())
    images = np.stack([centre_crop(load_photo(name)) for name in ("chelsea", "china.jpg")])
    expected = compute(reference, (images.astype(np.float32) - 127) / 128)
    np.testing.assert_allclose(compute(model, images), expected, rtol=0, atol=1e-5)


def test_layer_names(with_head):
    names = [layer.name for layer in with_head.layers]
    prefixes = [f"block_{number:02d}" for number in range(1, 17)]
    assert names[:5] == ["images", "rescaling", "stem_conv", "stem_norm", "stem_relu6"]
    assert list(dict.fromkeys(name[:8] for name in names if name.startswith("block"))) == prefixes
    assert names[-5:] == ["last_conv", "last_norm", "last_relu6", "features", "imagenet"]
    assert with_head.get_layer("last_relu6").output.shape == (None, 7, 7, 1280)
    # Lite keeps the input where the shape stays: the second and later blocks of a stage.
    added = [int(name[6:8]) for name in names if name.endswith("_add")]
    assert added == [3, 5, 7, 8, 10, 11, 13, 14, 15]


def test_batch_norm_as_in_the_original(with_head):
    keras = import_keras()
    norms = [x for x in with_head.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-3, 0.99)}
    assert len(norms) == 49


def test_variables_by_hand(checkpoint):
    variables = lite_variables(LITE0, checkpoint)
    kernel = checkpoint["_blocks.3._expand_conv.weight"]  # (output, input, 1, 1)
    assert variables["block_04_expand_conv"][0].shape == (1, 1, 24, 144)
    assert variables["block_04_expand_conv"][0][0, 0, 3, 5] == kernel[5, 3, 0, 0]
    kernel = checkpoint["_blocks.3._depthwise_conv.weight"]  # (channel, 1, height, width)
    assert variables["block_04_depthwise_conv"][0][1, 2, 7, 0] == kernel[7, 0, 1, 2]
    kernel = checkpoint["_conv_stem.weight"]
    assert variables["stem_conv"][0][0, 2, 1, 31] == kernel[31, 1, 0, 2]
    gamma, beta, mean, variance = variables["last_norm"]
    for array, statistic in zip(
        (gamma, beta, mean, variance),
        ("weight", "bias", "running_mean", "running_var"),
        strict=True,
    ):
        np.testing.assert_array_equal(array, checkpoint[f"_bn1.{statistic}"])
    np.testing.assert_array_equal(variables["imagenet"][0], checkpoint["_fc.weight"].T)


@pytest.mark.parametrize(
    ("removed", "added"),
    [(["_fc.bias"], []), ([], ["_fc.other"]), (["_bn0.bias"], ["_fc.other"])],
)
def test_missing_and_unknown_tensors(checkpoint, removed, added):
    changed = {name: value for name, value in checkpoint.items() if name not in removed}
    changed |= {name: np.zeros(1) for name in added}
    with pytest.raises(InputError) as caught:
        lite_variables(LITE0, changed)
    assert str(caught.value) == (
        f"this is not the checkpoint of efficientnet_lite0: missing tensors {removed}, "
        f"unknown tensors {added}; use the file named in BACKBONES."
    )


def untrained_lite0():
    keras = import_keras()
    images = keras.Input((224, 224, 3), dtype="uint8")
    return keras.Model(images, apply_efficientnet_lite(LITE0, images, include_head=False))


def test_a_tensor_of_another_shape(checkpoint):
    model = untrained_lite0()
    changed = checkpoint | {"_bn1.weight": np.ones(1279, np.float32)}
    with pytest.raises(
        InputError, match=r"layer 'last_norm': it has shapes \[\(1279,\), \(1280,\)"
    ):
        load_lite(LITE0, model, changed)


def test_another_network(checkpoint):
    keras = import_keras()
    lite0 = untrained_lite0()
    longer = keras.Model(
        lite0.inputs, keras.layers.Dense(2, name="extra")(lite0.outputs[0]), name="longer"
    )
    with pytest.raises(InputError, match=r"'longer': layers without weights \['extra'\]"):
        load_lite(LITE0, longer, checkpoint)
    cut = keras.Model(lite0.inputs, lite0.get_layer("block_16_project_norm").output, name="cut")
    with pytest.raises(InputError, match=r"weights without a layer \['last_conv', 'last_norm'\]"):
        load_lite(LITE0, cut, checkpoint)
