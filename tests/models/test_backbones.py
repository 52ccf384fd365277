import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from cvpipe.errors import InputError
from cvpipe.models.backbones import BACKBONES, build_backbone, weights_fingerprint
from cvpipe.models.efficientnet_lite import (
    build_efficientnet_lite0,
    lite0_variables,
    load_lite0,
)
from cvpipe.models.framework import import_keras
from cvpipe.models.weights import find_weights, read_torch_checkpoint

# What each network was trained on, written down a second time on purpose.
PREPROCESSING = {"efficientnet_lite0": lambda image: (image - 127) / 128}


@pytest.fixture(scope="module", params=sorted(BACKBONES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build_backbone(name)


@pytest.fixture
def trained(name):
    """A backbone of its own for tests that change it."""
    return build_backbone(name)


@pytest.fixture(scope="module")
def checkpoint():
    return read_torch_checkpoint(find_weights(BACKBONES["efficientnet_lite0"].weights))


@pytest.fixture
def images(name):
    shape = (3, *BACKBONES[name].image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


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
    return sum(
        math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        for layer in model.layers
        if isinstance(layer, convolutions)
    )


def test_preprocessing_is_inside_the_graph(name, model):
    keras = import_keras()
    height, width = BACKBONES[name].image_size
    values = np.resize(np.arange(256, dtype=np.uint8), (1, height, width, 3))
    rescaling = keras.Model(model.inputs, model.get_layer("rescaling").output)
    expected = PREPROCESSING[name](values.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(rescaling.predict_on_batch(values), expected)


def test_save_and_load(model, images, tmp_path):
    keras = import_keras()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = model.predict_on_batch(images)
    np.testing.assert_array_equal(loaded.predict_on_batch(images), expected)


def test_images_give_different_finite_features(model, images):
    features = model.predict_on_batch(images)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert (features[0] != features[1]).any()


def test_everything_is_frozen(model):
    assert model.trainable_weights == []
    assert all(layer.trainable is False for layer in model.layers)


@pytest.mark.parametrize("unfreeze", [False, True])
def test_fitting_a_head_leaves_the_backbone(unfreeze, trained, images):
    """BatchNormalization keeps its statistics even when other layers are unfrozen."""
    keras = import_keras()
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


def test_fingerprint(name):
    assert weights_fingerprint(name) == BACKBONES[name].weights.sha256
    assert len(weights_fingerprint(name)) == 64


def test_unknown_names():
    message = "unknown backbone 'efficientnet_lite'; did you mean 'efficientnet_lite0'?"
    for function in (build_backbone, weights_fingerprint):
        with pytest.raises(InputError) as caught:
            function("efficientnet_lite")
        assert str(caught.value) == message


def test_damaged_weights_are_never_replaced_by_random_ones(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / BACKBONES[name].weights.file_name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="is damaged or another version"):
        build_backbone(name)


def test_the_table_loads_without_keras():
    code = (
        "import sys, cvpipe.models.backbones as b; b.BACKBONES\n"
        "heavy = {'keras', 'tensorflow', 'scipy', 'pandas', 'sklearn', 'cv2', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- EfficientNet-Lite0 -----------------------------------------------------------------


def load_photo(name):
    return load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()


def centre_crop(photo):
    image = Image.fromarray(photo)
    scale = 256 / min(image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR
    )
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def with_head():
    return build_backbone("efficientnet_lite0", include_head=True)


@pytest.mark.parametrize(
    ("photo", "classes", "at_least"),
    [
        ("chelsea", {281, 282, 285}, 0.85),  # tabby, tiger cat, Egyptian cat
        ("coffee", {967}, 0.9),  # espresso
        ("rocket", {657}, 0.35),  # missile
        ("flower.jpg", {985}, 0.3),  # daisy
        ("china.jpg", {698}, 0.35),  # palace
    ],
)
def test_names_photos(with_head, photo, classes, at_least):
    probabilities = with_head.predict_on_batch(centre_crop(load_photo(photo))[np.newaxis])[0]
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert probabilities.argmax() in classes
    assert probabilities[list(classes)].sum() > at_least


def test_head_reads_the_features(with_head, checkpoint):
    keras = import_keras()
    image = centre_crop(load_photo("coffee"))[np.newaxis]
    trunk = keras.Model(with_head.inputs, with_head.get_layer("features").output)
    features = trunk.predict_on_batch(image)
    np.testing.assert_array_equal(
        build_backbone("efficientnet_lite0").predict_on_batch(image), features
    )
    logits = features.astype(np.float64) @ checkpoint["_fc.weight"].T + checkpoint["_fc.bias"]
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(with_head.predict_on_batch(image), expected, atol=1e-5)


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
    expected = reference.predict_on_batch((images.astype(np.float32) - 127) / 128)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, rtol=0, atol=1e-5)


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
    variables = lite0_variables(checkpoint)
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
        lite0_variables(changed)
    assert str(caught.value) == (
        f"this is not the checkpoint of EfficientNet-Lite0: missing tensors {removed}, "
        f"unknown tensors {added}; use the file named in BACKBONES."
    )


def test_a_tensor_of_another_shape(checkpoint):
    model = build_efficientnet_lite0(include_head=False)
    changed = checkpoint | {"_bn1.weight": np.ones(1279, np.float32)}
    with pytest.raises(
        InputError, match=r"layer 'last_norm': it has shapes \[\(1279,\), \(1280,\)"
    ):
        load_lite0(model, changed)


def test_another_network(checkpoint):
    keras = import_keras()
    lite0 = build_efficientnet_lite0(include_head=False)
    longer = keras.Model(
        lite0.inputs, keras.layers.Dense(2, name="extra")(lite0.outputs[0]), name="longer"
    )
    with pytest.raises(InputError, match=r"'longer': layers without weights \['extra'\]"):
        load_lite0(longer, checkpoint)
    cut = keras.Model(lite0.inputs, lite0.get_layer("block_16_project_norm").output, name="cut")
    with pytest.raises(InputError, match=r"weights without a layer \['last_conv', 'last_norm'\]"):
        load_lite0(cut, checkpoint)
