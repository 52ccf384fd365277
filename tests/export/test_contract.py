"""One contract for every format and precision: a file is the network, whatever wrote it."""

import subprocess
import sys

import numpy as np
import pytest
import skimage.data

from cvpipe.errors import InputError
from cvpipe.export.files import bytes_of, hash_of
from cvpipe.export.formats import (
    FORMATS,
    PRECISIONS,
    check_format,
    file_name,
    label_of,
    list_exports,
    parse_label,
)
from cvpipe.export.operations import forbidden_in, operations_in
from cvpipe.export.running import open_file
from cvpipe.export.writing import write_file
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.heads import attach_linear_head
from cvpipe.models.merging import merge_networks, views_inside

SIZE = (28, 36)  # higher than wide would hide swapped sides as little
LABELS = list(list_exports())
# Of a probability; whole numbers of 8 bits are bounded only so far that something would be wrong.
LARGEST = {"float32": 1e-5, "float16": 1e-2, "dynamic": 0.15, "int8": 0.2}


def photos(number, size=SIZE):
    """Cut parts out of real photos."""
    rng = np.random.default_rng(0)
    sources = [getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket")]
    parts = []
    for position in range(number):
        photo = sources[position % 3][::4, ::4]
        top = rng.integers(0, photo.shape[0] - size[0])
        left = rng.integers(0, photo.shape[1] - size[1])
        parts.append(photo[top : top + size[0], left : left + size[1]])
    return np.stack(parts)


def small(num_classes, seed=0, name="small"):
    """A network with normalisations whose statistics are not the initial ones."""
    keras = import_keras()
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    images = keras.Input((*SIZE, 3), dtype="uint8", name="images")
    x = layers.Normalization(mean=[110.0, 100.0, 90.0], variance=[3000.0, 2500.0, 2000.0])(
        keras.ops.cast(images, "float32")
    )
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2)(x)))
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3)(layers.Flatten()(layers.MaxPooling2D()(x)))
    model = keras.Model(images, layers.Dense(16, name="features")(x), name=name)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(0, 0.3, size))
            layer.moving_variance.assign(rng.uniform(0.5, 2, size))
            layer.gamma.assign(rng.uniform(0.5, 1.5, size))
    kernel = rng.normal(0, 0.5, (16, num_classes)).astype(np.float32)
    return attach_linear_head(model, kernel, np.zeros(num_classes, np.float32), name)


def merged():
    return merge_networks([small(3), small(3, 1)], [0.7, 0.3], "geometric_mean", "merged")


def viewed():
    (height, width), margin = SIZE, 4
    return views_inside(
        small(2), (height + margin, width + margin), [(0, 0), (margin, margin)], True, "logits"
    )


MODELS = {"two": lambda: small(2), "forty": lambda: small(40), "merged": merged, "viewed": viewed}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module", params=LABELS)
def label(request):
    return request.param


@pytest.fixture(scope="module")
def images(model):
    return photos(33, model.input_shape[1:3])


@pytest.fixture(scope="module")
def file(model, label, images, tmp_path_factory):
    name, precision = parse_label(label)
    path = tmp_path_factory.mktemp("files") / file_name(name, precision)
    write_file(model, path, name, precision, images)
    return path


@pytest.fixture(scope="module")
def predict(file, label):
    return open_file(file, parse_label(label)[0], 2)


def test_a_file_is_the_network(model, label, images, predict):
    expected = model.predict_on_batch(images)
    found = predict(images)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=LARGEST[parse_label(label)[1]])
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=2e-3)
    # So that the classes are told apart, and a wrong order would be seen.
    assert np.ptp(expected, axis=0).max() > 2 * LARGEST["float16"]
    assert np.abs(found[:, ::-1] - expected).max() > LARGEST[parse_label(label)[1]]


def test_any_number_of_images_in_any_order(images, predict):
    whole = predict(images)
    np.testing.assert_allclose(predict(images[:1]), whole[:1], atol=1e-6)
    np.testing.assert_allclose(predict(images[5:7][::-1]), whole[5:7][::-1], atol=1e-6)
    np.testing.assert_allclose(predict(images), whole, atol=1e-6)


def test_colours_have_their_places(images, predict):
    assert np.abs(predict(images[..., ::-1]) - predict(images)).max() > 0.01


def test_nothing_is_in_a_file_that_would_not_run_in_an_app(file, label):
    name, _ = parse_label(label)
    operations = operations_in(file, name)
    assert len(operations) == len(set(operations)) >= 5
    assert forbidden_in(operations, name) == ()


def test_small_files_are_small(file, label, model, images, tmp_path):
    name, precision = parse_label(label)
    assert bytes_of(file) > 0
    if precision != "float32":
        whole = tmp_path / file_name(name)
        write_file(model, whole, name, "float32", images)
        # Of networks as small as these the graph is most of a file.
        assert bytes_of(file) < bytes_of(whole) - 2000


# Refusals.


def test_mixed_precision_is_refused(tmp_path):
    keras = import_keras()
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    half = keras.layers.Flatten(dtype="float16")(keras.ops.cast(images, "float16"))
    dense = keras.layers.Dense(2, activation="softmax", dtype="mixed_float16", name="half")
    model = keras.Model(images, dense(half), name="mixed")
    with pytest.raises(InputError, match=r"'mixed' does not compute in float32 \("):
        write_file(model, tmp_path / "model.tflite", "litert", "float32", photos(1, (8, 8)))
    assert not list(tmp_path.iterdir())


def test_int8_needs_images(tmp_path):
    with pytest.raises(InputError, match="'int8' needs representative images"):
        write_file(small(2), tmp_path / "a.tflite", "litert", "int8", photos(1)[:0])


@pytest.mark.parametrize(
    ("name", "precision", "words"),
    [
        ("tflite", "float32", "unknown format 'tflite'"),
        ("keras", "int9", "unknown precision 'int9'"),
        ("keras", "int8", r"has no precision 'int8'; choose one of \['float32'\], or a format"),
    ],
)
def test_unknown_formats(name, precision, words):
    for function in (check_format, file_name, label_of):
        with pytest.raises(InputError, match=words):
            function(name, precision)


def test_labels_are_read_as_they_are_written():
    pairs = [(name, p) for name, entry in FORMATS.items() for p in entry.precisions]
    assert [parse_label(label_of(*pair)) for pair in pairs] == pairs
    names = [file_name(*pair) for pair in pairs]
    assert len(set(names)) == len(names)
    assert set(PRECISIONS) == {precision for _, precision in pairs}
    with pytest.raises(InputError, match="unknown format of an export 'litert_int8'"):
        parse_label("litert_int8")


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(FORMATS, "keras", FORMATS["keras"].__class__(
        "x", {"no-such-package": "no_such_module"}, "nothing", ("float32",), "x{}"
    ))  # fmt: skip
    with pytest.raises(InputError, match=r"cvpipe\[nothing\]"):
        check_format("keras")


def test_files_are_opened_without_the_frameworks(tmp_path):
    """LiteRT, ONNX Runtime and OpenVINO are all that an app needs."""
    model, images = small(2), photos(1)
    np.save(tmp_path / "images.npy", images)
    files = {name: file_name(name) for name in ("litert", "onnx", "openvino")}
    for name, file in files.items():
        write_file(model, tmp_path / file, name, "float32", images)
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from cvpipe.export.running import open_file\n"
        "images = np.load('images.npy')\n"
        f"for name, file in {files}.items():\n"
        "    print(open_file(Path(file), name, 1)(images)[0, 0])\n"
        "print([m for m in ('tensorflow', 'keras', 'openvino_telemetry') if sys.modules.get(m)])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    *found, loaded = answer.stdout.splitlines()
    expected = model.predict_on_batch(images)[0, 0]
    np.testing.assert_allclose([float(text) for text in found], expected, atol=1e-5)
    assert loaded == "[]"


# Operations that must not be there.


def test_random_numbers_are_found(tmp_path):
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec((None, 2), "float32")
    function = tensorflow.function(
        lambda x: x + tensorflow.random.uniform(tensorflow.shape(x)), input_signature=[spec]
    )
    module = tensorflow.Module()
    tensorflow.saved_model.save(module, tmp_path / "saved", signatures=function)
    operations = operations_in(tmp_path / "saved", "saved_model")
    assert forbidden_in(operations, "saved_model") == ("RandomUniform",)


def test_operations_that_are_borrowed_from_tensorflow_are_found(tmp_path):
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec((2, 2), "float32")
    function = tensorflow.function(tensorflow.linalg.inv, input_signature=[spec])
    concrete = function.get_concrete_function()
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.target_spec.supported_ops = [
        tensorflow.lite.OpsSet.TFLITE_BUILTINS,
        tensorflow.lite.OpsSet.SELECT_TF_OPS,
    ]
    (tmp_path / "flex.tflite").write_bytes(converter.convert())
    operations = operations_in(tmp_path / "flex.tflite", "litert")
    assert forbidden_in(operations, "litert") == ("FlexMatrixInverse",)


@pytest.mark.parametrize(
    ("name", "operation", "is_forbidden"),
    [
        ("keras", "Lambda", True),
        ("keras", "Dropout(training=True)", True),
        ("keras", "Dropout", False),
        ("litert", "custom::mine", True),
        ("litert", "RANDOM_UNIFORM", True),
        ("litert", "CUSTOM_NOT", False),
        ("onnx", "my.domain::Conv", True),
        ("onnx", "ai.onnx::Conv", False),
        ("onnx", "ai.onnx::Bernoulli", True),
        ("openvino", "RandomUniform", True),
        ("openvino", "extension::Mine", True),
        ("saved_model", "EagerPyFunc", True),
        ("saved_model", "Conv2D", False),
    ],
)
def test_what_is_forbidden(name, operation, is_forbidden):
    assert (forbidden_in((operation,), name) == (operation,)) is is_forbidden


def test_an_openvino_file_with_entities_is_not_read(tmp_path):
    (tmp_path / "model.xml").write_text(
        '<!DOCTYPE a [<!ENTITY b "c">]><net><layer type="&b;"/></net>'
    )
    with pytest.raises(InputError, match="is no file of the format"):
        operations_in(tmp_path / "model.xml", "openvino")


# Hashes.


def test_hashes_of_files_and_folders(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_of(tmp_path / "a").startswith("ba7816bf8f01cfea")  # as FIPS 180-2 has it
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_bytes(b"abc")
        (tmp_path / name / "y").write_bytes(b"12345")
    assert hash_of(tmp_path / "one") == hash_of(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == 8
    (tmp_path / "two" / "y").rename(tmp_path / "two" / "z")
    assert hash_of(tmp_path / "one") != hash_of(tmp_path / "two")
    (tmp_path / "one" / "y").write_bytes(b"12346")
    assert hash_of(tmp_path / "one") != hash_of(tmp_path / "two")
