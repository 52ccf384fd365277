"""What is inside exported files, and what must not be."""

import re
import zipfile

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.export.formats import NETWORK_FORMATS, parse_label
from cvpipe.export.operations import forbidden_in, operations_in
from cvpipe.export.writing import write_file
from cvpipe.models.framework import import_keras, import_tensorflow
from tests.export.networks import BUILDERS, installed, network

# What a LeNet-5 with a linear head consists of, in the words of each format.
LENET = {
    "keras": {"BatchNormalization", "Conv2D", "Dense", "Flatten", "InputLayer",
              "MaxPooling2D", "Normalization", "ReLU", "Softmax"},
    "saved_model": {"Cast", "Conv2D", "MatMul", "MaxPool", "Relu", "Rsqrt", "Softmax", "Sub",
                    "Placeholder", "ReadVariableOp", "RestoreV2", "StatefulPartitionedCall"},
    "litert": {"CAST", "CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "MUL", "SOFTMAX", "SUB"},
    "onnx": {f"ai.onnx::{kind}" for kind in ("Cast", "Conv", "MatMul", "MaxPool", "Mul", "Relu",
                                             "Softmax", "Sub")},
    "openvino": {"Const", "Convolution", "MatMul", "MaxPool", "Parameter", "ReLU", "Result",
                 "SoftMax", "Subtract"},
}  # fmt: skip
# What rounding adds. Narrow weights in ONNX are widened by what is there already; rounded while
# it computes, LiteRT has its head as a product and a sum, which it does not round.
ROUNDING = {
    "litert-float16": {"DEQUANTIZE"},
    "litert-dynamic": {"ADD", "EXPAND_DIMS", "SUM"},
    "litert-int8": {"DEQUANTIZE", "QUANTIZE"},
    "onnx-float16": set(),
    "onnx-dynamic": set(),
    "onnx-int8": {"ai.onnx::DequantizeLinear", "ai.onnx::QuantizeLinear", "ai.onnx::Gemm"},
    "openvino-float16": {"Convert"},
}


# Clean files


@pytest.mark.parametrize("label", installed())
@pytest.mark.parametrize("kind", BUILDERS)
def test_what_is_written_is_clean(kind, label, written):
    name, _ = parse_label(label)
    operations = operations_in(written(kind, label), name)
    assert operations == tuple(sorted(set(operations)))
    assert forbidden_in(operations, name) == ()


@pytest.mark.parametrize("label", installed())
def test_all_operations_of_a_network_are_found(label, written):
    name, _ = parse_label(label)
    found = set(operations_in(written("lenet", label), name))
    vanishing = {"ai.onnx::Relu"} if label == "onnx-int8" else set()  # in ranges of rounding
    assert (LENET[name] - vanishing) | ROUNDING.get(label, set()) <= found
    if name == "keras":
        assert found == LENET[name]
    whole = set(operations_in(written("lenet", name), name))
    assert found - whole == ROUNDING.get(label, set()) - whole


def test_merged_networks_and_views_are_found(written):
    found = operations_in(written("merged", "keras"), "keras")
    assert {"GetItem", "Log", "Maximum", "Reshape", "Stack"} <= set(found)


# Planted ones


def convert(function, *shape, select=False, custom=False):
    """Convert a function of one float32 tensor to LiteRT."""
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec(shape, tensorflow.float32)
    concrete = tensorflow.function(function, input_signature=[spec]).get_concrete_function()
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions([concrete])
    sets = tensorflow.lite.OpsSet
    converter.target_spec.supported_ops = [
        sets.TFLITE_BUILTINS,
        *([sets.SELECT_TF_OPS] if select else []),
    ]
    converter.allow_custom_ops = custom
    return converter.convert()


def plant_noise(x):
    return x + import_tensorflow().random.uniform((2, 3))


def plant_inverse(x):
    return import_tensorflow().linalg.inv(x[:, :2])


@pytest.mark.parametrize(
    ("function", "settings", "expected"),
    [
        (plant_inverse, {"select": True}, "FlexMatrixInverse"),
        (plant_inverse, {"custom": True}, "custom::MatrixInverse"),
        (plant_noise, {}, "RANDOM_UNIFORM"),
    ],
)
def test_planted_in_litert(function, settings, expected, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(function, 2, 3, **settings))
    assert forbidden_in(operations_in(path, "litert"), "litert") == (expected,)


def save(function, path, *shape):
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec(shape, tensorflow.float32)
    module = tensorflow.Module()
    module.serve = tensorflow.function(function, input_signature=[spec])
    tensorflow.saved_model.save(module, str(path), signatures={"serving_default": module.serve})


def plant_python(x):
    """In a branch, whose graph is kept in the library of functions."""
    tensorflow = import_tensorflow()
    return tensorflow.cond(
        tensorflow.reduce_sum(x) > 0,
        lambda: tensorflow.ensure_shape(tensorflow.numpy_function(np.sin, [x], x.dtype), x.shape),
        lambda: x,
    )


def plant_stateless(x):
    return x + import_tensorflow().random.stateless_uniform((2, 3), seed=(1, 2))


def plant_file(x):
    tensorflow = import_tensorflow()
    content = tensorflow.io.read_file("/etc/hostname")
    return x + tensorflow.cast(tensorflow.strings.length(content), x.dtype)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plant_noise, {"RandomUniform"}),
        (plant_stateless, {"StatelessRandomUniformV2"}),
        (plant_python, {"PyFunc"}),
        (plant_file, {"ReadFile"}),
    ],
)
def test_planted_in_a_saved_model(function, expected, tmp_path):
    save(function, tmp_path / "saved_model", 2, 3)
    found = forbidden_in(operations_in(tmp_path / "saved_model", "saved_model"), "saved_model")
    assert expected <= set(found)
    # What makes seeds for it may be named along with it, and nothing else.
    assert all(re.search("Random|PyFunc|ReadFile", operation) for operation in found)


def test_planted_in_openvino(tmp_path):
    pytest.importorskip("openvino")
    from cvpipe.models.runtimes import import_openvino

    openvino = import_openvino()
    save(plant_noise, tmp_path / "saved_model", 2, 3)
    path = tmp_path / "model.xml"
    openvino.save_model(openvino.Core().read_model(tmp_path / "saved_model"), path)
    assert forbidden_in(operations_in(path, "openvino"), "openvino") == ("RandomUniform",)
    text = path.read_text()
    path.write_text(re.sub(r'type="RandomUniform" version="opset\d+"',
                           'type="Mine" version="extension"', text))  # fmt: skip
    assert forbidden_in(operations_in(path, "openvino"), "openvino") == ("extension::Mine",)


def onnx_model(path, *nodes, functions=()):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph(nodes, "graph", [], [])
    path.write_bytes(onnx.helper.make_model(graph, functions=functions).SerializeToString())
    return path


def test_planted_in_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    node, path = onnx.helper.make_node, tmp_path / "model.onnx"
    relu, random = node("Relu", ["x"], ["y"]), node("RandomUniformLike", ["x"], ["y"])
    outer = node("Mine", ["x"], ["y"], domain="com.example")
    gelu = node("Gelu", ["x"], ["y"], domain="com.microsoft")
    dropout = node("Dropout", ["x", "", "training"], ["y"])

    def branch(*nodes):
        return onnx.helper.make_graph(nodes, "branch", [], [])

    def found_in(*nodes, **facts):
        return forbidden_in(operations_in(onnx_model(path, *nodes, **facts), "onnx"), "onnx")

    assert found_in(relu) == ()
    assert found_in(relu, random) == ("ai.onnx::RandomUniformLike",)
    assert found_in(relu, outer) == ("com.example::Mine",)
    assert found_in(relu, gelu) == ("com.microsoft::Gelu",)
    assert found_in(dropout) == ("ai.onnx::Dropout",)
    # In branches of branches, and in functions that the file defines.
    inner = node("If", ["c"], ["y"], then_branch=branch(random), else_branch=branch(relu))
    nested = node("If", ["c"], ["y"], then_branch=branch(relu), else_branch=branch(inner))
    assert found_in(nested) == ("ai.onnx::RandomUniformLike",)
    function = onnx.helper.make_function(
        "mine", "noisy", ["x"], ["y"], [node("Bernoulli", ["x"], ["y"])],
        [onnx.helper.make_opsetid("", 15)],
    )  # fmt: skip
    assert found_in(relu, functions=[function]) == ("ai.onnx::Bernoulli",)


ODD_LAYERS = ["Dropout(training=True)", "Lambda", "package>Registered", f"{__name__}>Plain",
              "RandomFlip(training=True)", ""]  # fmt: skip


def odd_layers():
    keras = import_keras()

    @keras.saving.register_keras_serializable(package="package")
    class Registered(keras.layers.Layer):
        def call(self, x):
            return x

    class Plain(keras.layers.Layer):
        def call(self, x):
            return x

    layers = keras.layers
    built = [
        lambda x: layers.Dropout(0.5)(x, training=True),
        layers.Lambda(lambda x: x),
        Registered(),
        Plain(),
        layers.RandomFlip(),
        lambda x: layers.GaussianNoise(0.1)(layers.SpatialDropout2D(0.5)(x)),
    ]
    return dict(zip(ODD_LAYERS, built, strict=True))


@pytest.mark.parametrize("operation", ODD_LAYERS)
@pytest.mark.parametrize("nested", [False, True])
def test_planted_in_keras(operation, nested, tmp_path):
    keras = import_keras()
    images, inner = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    outputs = odd_layers()[operation](inner)
    body = keras.Model(inner, outputs)
    model = keras.Model(images, keras.layers.Dense(2)(body(images))) if nested else body
    model.save(tmp_path / "model.keras")
    found = forbidden_in(operations_in(tmp_path / "model.keras", "keras"), "keras")
    expected = {operation} | ({"__lambda__"} if operation == "Lambda" else set())
    assert set(found) == expected - {""}


def own_function(x):
    return x


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize(
    ("activation", "expected"),
    [(lambda x: x, "__lambda__"), (own_function, "builtins>function"), ("gelu", "")],
)
def test_functions_of_ones_own_in_keras(activation, expected, tmp_path):
    keras = import_keras()
    images = keras.Input((4, 4, 3))
    start = keras.initializers.Constant([0.5, 0.5])
    dense = keras.layers.Dense(2, activation=activation, bias_initializer=start)
    keras.Model(images, dense(images)).save(tmp_path / "model.keras")
    found = forbidden_in(operations_in(tmp_path / "model.keras", "keras"), "keras")
    assert set(found) == {expected} - {""}


def test_dropout_of_training_does_not_reach_other_formats(tmp_path):
    """A file is written of what the network does when it is used."""
    keras = import_keras()
    images = keras.Input((8, 6, 3), dtype="uint8", name="images")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(images, keras.layers.Softmax()(x))
    write_file(model, tmp_path / "saved_model", "saved_model")
    operations = operations_in(tmp_path / "saved_model", "saved_model")
    assert forbidden_in(operations, "saved_model") == ()


# Names


@pytest.mark.parametrize(
    ("name", "operations", "expected"),
    [
        ("litert", ("CONV_2D", "RANDOM_STANDARD_NORMAL", "MULTINOMIAL"), (1, 2)),
        ("litert", ("FlexConv2D", "RELU6", "custom::mine", "STABLEHLO_CUSTOM_CALL"), (0, 2, 3)),
        ("litert", ("STABLEHLO_RNG_BIT_GENERATOR", "REVERSE_V2", "UNIQUE"), (0,)),
        ("onnx", ("ai.onnx::Bernoulli", "ai.onnx::Conv", "ai.onnx.ml::Scaler"), (0, 2)),
        ("onnx", ("ai.onnx::RandomNormal", "ai.onnx::LayerNormalization"), (0,)),
        ("openvino", ("Multinomial", "ShuffleChannels", "RandomUniform", "Const"), (0, 2)),
        ("saved_model", ("EagerPyFunc", "PyFuncStateless", "SaveV2", "RestoreV2"), (0, 1)),
        ("saved_model", ("StatefulPartitionedCall", "StatelessIf", "StatelessWhile"), ()),
        ("saved_model", ("ShardedFilename", "MergeV2Checkpoints", "VarHandleOp", "NoOp"), ()),
        ("saved_model", ("TruncatedNormal", "StatefulUniform", "RngSkip", "Pack"), (0, 1, 2)),
        ("saved_model", ("UniformQuantizedDot", "RandomShuffle", "Addons>Mine"), (1, 2)),
        ("saved_model", ("WriteFile", "PrintV2", "Timestamp", "FractionalMaxPool"), (0, 1, 2, 3)),
        ("keras", ("Dropout", "GaussianNoise", "Dense", "a>B"), (3,)),
        ("keras", ("TFSMLayer", "TorchModuleWrapper", "__lambda__"), (0, 1, 2)),
        ("keras", ("BatchNormalization(training=True)", "BatchNormalization"), (0,)),
    ],
)
def test_what_is_forbidden(name, operations, expected):
    assert forbidden_in(operations, name) == tuple(operations[number] for number in expected)


def test_random_operations_of_tensorflow():
    """All that TensorFlow has with such names, but for what only counts or scales."""
    names = [name for name in dir(import_tensorflow().raw_ops) if name[0].isupper()]
    random = [n for n in names if re.search("Random|Multinomial|TruncatedNormal|PyFunc", n)]
    assert len(random) > 40
    assert forbidden_in(tuple(random), "saved_model") == tuple(random)
    usual = ["Conv2D", "DepthwiseConv2dNative", "FusedBatchNormV3", "Relu6", "Mean", "Softmax",
             "MatMul", "AddV2", "Rsqrt", "StridedSlice", "ReverseV2", "Pack"]  # fmt: skip
    assert set(usual) <= set(names)
    assert forbidden_in(tuple(usual), "saved_model") == ()


# Refusals


@pytest.mark.parametrize("name", [p.values[0] for p in installed(NETWORK_FORMATS)])
def test_other_files(name, tmp_path):
    message = r"there is no file '.*nothing'; give the path of an exported model\."
    with pytest.raises(InputError, match=message):
        operations_in(tmp_path / "nothing", name)
    path = tmp_path / "other"
    message = (
        rf"other' is no file of the format {name!r}; give the path of an exported model, and the "
        r"format that it was exported in\."
    )
    if name == "saved_model":
        path.mkdir()
        with pytest.raises(InputError, match=message):
            operations_in(path, name)
        (path / "saved_model.pb").write_bytes(b"\xff\xfe no protobuf")
    else:
        path.write_bytes(b"\xff\xfe no model")
    with pytest.raises(InputError, match=message):
        operations_in(path, name)


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="is no file of the format 'keras'"):
        operations_in(tmp_path / "model.keras", "keras")


def test_xml_that_defines_or_refers_to_something(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    layer = '<net><layer id="0" type="{}" version="opset1"/></net>'
    path.write_text(layer.format("Relu"))
    assert operations_in(path, "openvino") == ("Relu",)
    path.write_text(f'<!DOCTYPE net [<!ENTITY a "Relu">]>{layer.format("&a;")}')
    with pytest.raises(InputError, match="is no file of the format 'openvino'"):
        operations_in(path, "openvino")
    path.write_text(f'<!DOCTYPE net SYSTEM "file:///etc/hostname">{layer.format("Relu")}')
    with pytest.raises(InputError, match="is no file of the format 'openvino'"):
        operations_in(path, "openvino")


def test_unknown_formats(tmp_path):
    with pytest.raises(InputError, match="unknown format 'litet'; did you mean 'litert'"):
        operations_in(tmp_path, "litet")
    with pytest.raises(InputError, match="unknown format 'litet'; did you mean 'litert'"):
        forbidden_in((), "litet")


def test_a_file_is_not_computed(tmp_path):
    """Of a file whose weights are gone the operations are still found."""
    write_file(network("lenet"), tmp_path / "saved_model", "saved_model")
    for part in (tmp_path / "saved_model" / "variables").iterdir():
        part.unlink()
    assert "Conv2D" in operations_in(tmp_path / "saved_model", "saved_model")
