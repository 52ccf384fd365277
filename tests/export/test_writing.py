"""One contract for all formats and precisions: a file is the network that it was made of."""

import re
from pathlib import Path

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.export import writing
from cvpipe.export.formats import FORMATS, file_name, parse_label
from cvpipe.export.running import open_file
from cvpipe.export.writing import Step, write_file
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.twins import twin_of
from tests.export.networks import (
    BUILDERS,
    LABELS,
    build_machine,
    build_network,
    compute,
    images_for,
    installed,
    network,
    take_photos,
)
from tests.models.test_runtimes import run_python

# How far a probability may be off: the worst of all, and on average.
LIMITS = {
    "float32": (1e-5, 2e-6),
    "float16": (1e-2, 3e-3),
    "dynamic": (0.06, 0.01),
    "int8": (0.12, 0.015),
}
# Nothing is rounded in vain: at least one probability is off by this.
ROUNDED = {"float32": 0, "float16": 1e-6, "dynamic": 1e-4, "int8": 1e-3}
# Share of the bytes in float32. Of the smallest networks the rest of the file has its share, too.
SIZES = {"float32": (1, 1), "float16": (0.45, 0.65), "dynamic": (0.2, 0.4), "int8": (0.2, 0.45)}


def files_of(path):
    folder = path.parent if path.suffix == ".xml" else path
    return [part for part in [folder, *folder.rglob("*")] if part.is_file()]


def check_probabilities(found, expected, precision):
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    assert np.isfinite(found).all()
    largest, average = LIMITS[precision]
    difference = np.abs(found - expected)
    assert difference.max() <= largest
    assert difference.mean() <= average
    assert difference.max() >= ROUNDED[precision]
    # However coarse the weights: what is behind the logits is not rounded.
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=2e-6)
    # Another order of classes would be seen.
    assert np.abs(found[:, ::-1] - expected).max() > 2 * largest


# Files


@pytest.mark.parametrize("label", installed())
@pytest.mark.parametrize("kind", BUILDERS)
def test_a_file_gives_what_the_network_gives(kind, label, written):
    images, (name, precision) = images_for(kind), parse_label(label)
    expected = compute(network(kind), images)
    assert np.ptp(expected, axis=0).max() > 0.5  # the images do differ
    found = open_file(written(kind, label), name, threads=2)(images)
    check_probabilities(found, expected, precision)


@pytest.mark.parametrize("label", installed(label for label in LABELS if label.endswith("float16")))
def test_duels_of_many_classes_are_won_as_before_in_16_bits(label, tmp_path):
    """A class has one vote more or less; rows that are not about 0 would lose too much."""
    model, (name, precision) = build_machine(10), parse_label(label)
    path = tmp_path / file_name(name, precision)
    write_file(model, path, name, precision, None)
    images, _ = take_photos(model.input_shape[1:3], 10, 200, 9)
    expected = compute(model, images)
    found = open_file(path, name, threads=2)(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2)
    assert len(np.unique(expected.argmax(axis=1))) > 5


@pytest.mark.parametrize("label", installed(label for label in LABELS if "-" in label))
def test_rounded_files_are_smaller(label, written):
    name, precision = parse_label(label)
    whole, rounded = (
        sum(part.stat().st_size for part in files_of(written("lenet", text)))
        for text in (name, label)
    )
    smallest, largest = SIZES[precision]
    assert smallest <= rounded / whole <= largest


@pytest.mark.parametrize(
    "label", installed(["litert-int8", "litert-dynamic", "onnx-int8", "onnx-dynamic"])
)
@pytest.mark.parametrize(
    ("kind", "names"), [("vgg", ["head"]), ("merged", ["head_member_1", "head_member_2"])]
)
def test_heads_are_not_rounded(kind, names, label, written):
    content = written(kind, label).read_bytes()
    for name in names:
        kernel = network(kind).get_layer(name).kernel.numpy()
        assert any(array.tobytes() in content for array in (kernel, kernel.T))


def interface_of_litert(path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["images"], "outputs": ["probabilities"]}
    }
    runner = interpreter.get_signature_runner("serving_default")
    (source,), (target,) = runner.get_input_details().values(), runner.get_output_details().values()
    assert (source["dtype"], target["dtype"]) == (np.uint8, np.float32)
    shapes = {d["index"]: d["shape_signature"].tolist() for d in interpreter.get_tensor_details()}
    return shapes[source["index"]], target["shape"].tolist()[1:]


def interface_of_onnx(path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 15)]
    assert not model.metadata_props
    (source,), (target,) = model.graph.input, model.graph.output
    assert (source.name, target.name) == ("images", "probabilities")
    kinds = source.type.tensor_type.elem_type, target.type.tensor_type.elem_type
    assert kinds == (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (source, target)
    ]
    assert shapes[1][0] == "n"
    return [-1 if length == "n" else length for length in shapes[0]], shapes[1][1:]


def interface_of_openvino(path):
    from cvpipe.models.runtimes import import_openvino

    model = import_openvino().Core().read_model(path)
    (source,), (target,) = model.inputs, model.outputs
    assert (source.get_names(), target.get_names()) == ({"images"}, {"probabilities"})
    types = [port.get_element_type().get_type_name() for port in (source, target)]
    assert types == ["u8", "f32"]
    shapes = [
        [-1 if length.is_dynamic else length.get_length() for length in list(port.partial_shape)]
        for port in (source, target)
    ]
    return shapes[0], shapes[1][1:]


def interface_of_saved_model(path):
    tensorflow = import_tensorflow()
    signatures = tensorflow.saved_model.load(str(path)).signatures
    assert list(signatures) == ["serving_default"]
    serve = signatures["serving_default"]
    ((name, source),) = serve.structured_input_signature[1].items()
    ((other, target),) = serve.structured_outputs.items()
    assert (name, other) == ("images", "probabilities")
    assert (source.dtype, target.dtype) == (tensorflow.uint8, tensorflow.float32)
    assert target.shape[0] is None
    return [length or -1 for length in source.shape], target.shape.as_list()[1:]


def interface_of_keras(path):
    model = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    assert ([t.name for t in model.inputs], model.inputs[0].dtype) == (["images"], "uint8")
    assert model.outputs[0].dtype == "float32"
    return [length or -1 for length in model.input_shape], list(model.output_shape[1:])


INTERFACES = {
    "keras": interface_of_keras,
    "saved_model": interface_of_saved_model,
    "litert": interface_of_litert,
    "onnx": interface_of_onnx,
    "openvino": interface_of_openvino,
}


@pytest.mark.parametrize("label", installed())
def test_names_types_and_a_free_number_of_images(label, written):
    name, _ = parse_label(label)
    assert INTERFACES[name](written("lenet", label)) == ([-1, 20, 14, 3], [2])


WRITE_AGAIN = """
import sys
import numpy as np
from pathlib import Path
from cvpipe.export.formats import file_name, parse_label
from cvpipe.export.running import open_file
from cvpipe.export.writing import write_file
from cvpipe.models.framework import import_keras

stored, images, folder, *labels = sys.argv[1:]
model = import_keras().saving.load_model(stored, compile=False, safe_mode=True)
for label in labels:
    name, precision = parse_label(label)
    path = Path(folder) / file_name(name, precision)
    write_file(model, path, name, precision, np.load(images))
    open_file(path, name, threads=1)
"""


def test_written_again_files_compute_the_same_bits_and_nothing_is_said(written, tmp_path):
    """By another process, of the stored network, in another order."""
    labels = [label for label in reversed(LABELS) if not _is_skipped(label)]
    np.save(tmp_path / "images.npy", images_for("lenet", 60, seed=5))
    paths = written("lenet", "keras"), tmp_path / "images.npy", tmp_path / "größe eins"
    answer = run_python(WRITE_AGAIN, *map(str, paths), *labels)
    assert (answer.stdout, answer.stderr) == ("", "")
    images = images_for("lenet")
    for label in labels:
        name, precision = parse_label(label)
        paths = tmp_path / "größe eins" / file_name(name, precision), written("lenet", label)
        first, second = (open_file(path, name, threads=2)(images) for path in paths)
        np.testing.assert_array_equal(first, second, err_msg=label)


def _is_skipped(label):
    return any(mark.name == "skip" for mark in installed([label])[0].marks)


@pytest.mark.slow
@pytest.mark.parametrize("label", installed())
def test_a_pretrained_network(label, tmp_path, lite):
    model, calibrating, images, expected = lite
    name, precision = parse_label(label)
    path = tmp_path / file_name(name, precision)
    write_file(model, path, name, precision, calibrating)
    run = open_file(path, name, threads=2)
    found = run(images)
    check_probabilities(found, expected, precision)
    np.testing.assert_allclose(run(images[:1]), found[:1], rtol=0, atol=1e-5)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.fixture(scope="module")
def lite():
    size = (160, 128)
    model = build_network("efficientnet_lite0", size, 5, sureness=0.5)
    images = take_photos(size, 5, 33, seed=9)[0]
    return model, take_photos(size, 5, 60, seed=5)[0], images, compute(model, images)


# Rounding


def test_logits_and_what_follows_by_hand():
    steps = [
        Step("Conv", ["images"], ["a"]),
        Step("Relu", ["a"], ["b"]),
        Step("MatMul", ["b"], ["c"]),  # the head
        Step("Add", ["c", "bias"], ["logits"]),
        Step("Gemm", ["b"], ["d"]),  # another head
        Step("Softmax", ["logits"], ["p"]),
        Step("LogSoftmax", ["d"], ["q"]),
        Step("Mul", ["p", "q"], ["mean"]),
        Step("MatMul", ["mean"], ["calibrated"]),
        Step("Softmax", ["calibrated"], ["probabilities"]),
        Step("Conv", ["b"], ["aside"]),
    ]
    assert sorted(writing._from_logits_on(steps)) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert list(writing._from_logits_on(steps[:4])) == []  # there are no probabilities
    assert list(writing._from_logits_on([])) == []


def test_8_bits_by_hand():
    values = np.float32([[127.0, -1.4, 0.6], [0.0, 0.0, 0.0], [-2.54, 1.27, 0.03]])
    rounded, scales = writing._to_int8(values, axis=0)
    assert (rounded.dtype, scales.dtype) == (np.int8, np.float32)
    assert rounded.tolist() == [[127, -1, 1], [0, 0, 0], [-127, 64, 2]]
    np.testing.assert_allclose(scales, [[1.0], [1.0], [0.02]], rtol=1e-6)
    rounded, scales = writing._to_int8(values, axis=1)
    assert scales.shape == (1, 3)
    np.testing.assert_allclose(rounded * scales, values, atol=0.5)
    assert writing._to_int8(values, axis=None) == ()


def test_16_bits_by_hand():
    (rounded,) = writing._to_float16(np.float32([1.0, 2049.0, -65504.0]))
    assert (rounded.dtype, rounded.tolist()) == (np.float16, [1.0, 2048.0, -65504.0])
    assert writing._to_float16(np.float32([65536.0, 1.0])) == ()


@pytest.mark.parametrize("precision", ["float16", "dynamic"])
def test_only_large_kernels_become_narrow_in_onnx(precision):
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    arrays = {
        "conv": rng.normal(size=(8, 4, 6, 6)),
        "dense": rng.normal(size=(40, 32)),
        "small": rng.normal(size=(31, 33)),  # 1,023 numbers
        "huge": rng.normal(size=(32, 40)) * 1e6,
        "twice": rng.normal(size=(32, 32, 1, 1)),  # a kernel in two different ways
        "count": np.arange(2048),
        "head": rng.normal(size=(40, 32)),
    }
    arrays = {k: a.astype(np.int64 if k == "count" else np.float32) for k, a in arrays.items()}
    kinds = {"conv": "Conv", "dense": "MatMul", "small": "MatMul", "huge": "MatMul",
             "twice": "Conv", "count": "Gather", "head": "MatMul"}  # fmt: skip
    node = onnx.helper.make_node
    nodes = [node(kind, [f"in_{key}", key], [f"out_{key}"]) for key, kind in kinds.items()]
    nodes.append(node("Add", ["out_dense", "twice"], ["out"]))
    nodes.append(node("Softmax", ["out_head"], ["probabilities"]))
    initializers = [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], initializers)
    model = onnx.helper.make_model(graph)
    writing._narrow_weights(model, precision)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    if precision == "float16":
        narrow = {"conv", "dense", "twice", "head"}
        assert all(kept[f"{key}_narrow"].dtype == np.float16 for key in narrow)
    else:
        narrow = {"conv", "dense", "huge"}
        assert kept["conv_scales"].shape == (8, 1, 1, 1)
        assert kept["dense_scales"].shape == (1, 32)
    assert {key for key in arrays if key not in kept} == narrow
    # What widens stands before what uses it, and gives the old name.
    widening = model.graph.node[: -len(nodes)]
    assert {name for step in widening for name in step.output} >= narrow
    assert [step.op_type for step in model.graph.node[-len(nodes) :]] == [n.op_type for n in nodes]
    for key in narrow:
        wide = kept[f"{key}_narrow"].astype(np.float32) * kept.get(f"{key}_scales", np.float32(1))
        largest = np.abs(arrays[key]).max()
        assert 0 < np.abs(wide - arrays[key]).max() < largest / 250


@pytest.mark.parametrize("label", installed(["litert-int8", "onnx-int8"]))
def test_ranges_are_measured_on_the_images(label, tmp_path):
    """With ranges of black images alone, photos are cut off."""
    (name, precision), images = parse_label(label), images_for("lenet")
    path = tmp_path / file_name(name, precision)
    write_file(network("lenet"), path, name, precision, np.zeros_like(images[:4]))
    found = open_file(path, name, threads=2)(images)
    difference = np.abs(found - compute(network("lenet"), images))
    assert difference.max() > LIMITS["int8"][0]


# Refusals


def model_of(shape=(8, 6, 3), dtype="uint8", last=None, **facts):
    layers = import_keras().layers
    images = import_keras().Input(shape, dtype=dtype, name="images", **facts)
    pooled = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 300)(images))
    last = last or layers.Softmax()
    return import_keras().Model(images, last(pooled), name="odd")


@pytest.mark.parametrize(
    ("facts", "given"),
    [
        ({"shape": (8, 6, 1)}, "takes [((None, 8, 6, 1), 'uint8')]"),
        ({"shape": (None, 6, 3)}, "takes [((None, None, 6, 3), 'uint8')]"),
        ({"dtype": "float32"}, "takes [((None, 8, 6, 3), 'float32')]"),
        ({"batch_size": 4}, "takes [((4, 8, 6, 3), 'uint8')]"),
        ({"last": lambda x: [x, x]}, "gives [(None, 3), (None, 3)]"),
        ({"last": lambda x: x[:, None]}, "gives [(None, 1, 3)]"),
    ],
)
def test_other_networks_are_refused(facts, given, tmp_path):
    message = (
        f"'odd' takes .*{re.escape(given.partition(' ')[2])}.*only a network from uint8 images "
        r"\(n, height, width, 3\) of one size to probabilities \(n, num_classes\) can be written"
    )
    with pytest.raises(InputError, match=message):
        write_file(model_of(**facts), tmp_path / "model.keras", "keras")
    assert list(tmp_path.iterdir()) == []


def in_16_bits(layer):
    return "mixed_float16" if layer.name == "conv_1" else "float32"


@pytest.mark.parametrize("label", installed())
def test_half_precision_is_refused(label, tmp_path):
    name, precision = parse_label(label)
    path = tmp_path / file_name(name, precision)
    twin = twin_of(network("lenet"), in_16_bits)
    message = r"'lenet5_0' does not compute in float32 \(1 layers, first 'conv_1' in float16\); wr"
    with pytest.raises(InputError, match=message):
        write_file(twin, path, name, precision, images_for("lenet"))
    assert list(tmp_path.iterdir()) == []


def test_plain_operations_in_other_precisions_are_refused(tmp_path):
    ops = import_keras().ops
    for dtype in ("float16", "bfloat16", "float64"):
        odd = model_of(last=lambda x, dtype=dtype: ops.cast(ops.cast(x, dtype), "float32"))
        with pytest.raises(InputError, match=rf"first 'cast\w*' in {dtype}\)"):
            write_file(odd, tmp_path / "model.keras", "keras")


def test_a_copy_in_float32_can_be_written(tmp_path):
    """As the message says."""
    half = twin_of(network("lenet"), in_16_bits)
    write_file(twin_of(half, lambda layer: "float32"), tmp_path / "model.keras", "keras")
    found = open_file(tmp_path / "model.keras", "keras", 1)(images_for("lenet"))
    check_probabilities(found, compute(network("lenet"), images_for("lenet")), "float32")


@pytest.mark.parametrize("label", installed(["litert-int8", "onnx-int8"]))
@pytest.mark.parametrize(
    ("images", "given"),
    [
        (None, "got none; pass"),
        (np.zeros((0, 20, 14, 3), np.uint8), "got uint8 of shape (0, 20, 14, 3)"),
        (np.zeros((2, 14, 20, 3), np.uint8), "got uint8 of shape (2, 14, 20, 3)"),
        (np.zeros((2, 20, 14, 3), np.float32), "got float32 of shape (2, 20, 14, 3)"),
    ],
)
def test_representative_images_that_do_not_fit(label, images, given, tmp_path):
    name, precision = parse_label(label)
    message = (
        "'int8' needs representative images, as uint8 of shape ('n', 20, 14, 3), but "
    ) + given
    with pytest.raises(InputError, match=re.escape(message)):
        write_file(network("lenet"), tmp_path / file_name(name, precision), name, precision, images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", installed())
def test_what_is_there_is_not_written_over(label, tmp_path):
    name, precision = parse_label(label)
    path = tmp_path / file_name(name, precision)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"' is there already; choose another path, or delete it"):
        write_file(network("lenet"), path, name, precision, images_for("lenet"))
    assert path.read_bytes() == b"mine"


def test_other_endings_formats_and_packages(tmp_path, monkeypatch):
    model = network("lenet")
    with pytest.raises(InputError, match=r"model\.onnx' must end with '\.tflite'; choose another"):
        write_file(model, tmp_path / "model.onnx", "litert")
    with pytest.raises(InputError, match="the format 'keras' has no precision 'int8'"):
        write_file(model, tmp_path / "model.keras", "keras", "int8", images_for("lenet"))
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(InputError, match=r'needs openvino, .* install "cvpipe\[openvino\]"'):
        write_file(model, tmp_path / "model.xml", "openvino")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label", "operation", "lacking"),
    [
        # LiteRT's converter could borrow it from TensorFlow, which apps do not have.
        ("litert", "arctan", "Atan"),
        ("litert-int8", "arctan", "Atan"),
        ("onnx", "erfinv", "Erfinv"),
        ("onnx-int8", "erfinv", "Erfinv"),
        ("openvino", "erfinv", "Erfinv"),
    ],
)
def test_operations_that_a_format_lacks(label, operation, lacking, tmp_path):
    keras, (name, precision) = import_keras(), parse_label(label)
    pytest.importorskip(next(iter(FORMATS[name].packages.values())))
    function = getattr(keras.ops, operation)
    odd = model_of(last=lambda x: keras.layers.Softmax()(function(x)))
    path = tmp_path / Path(file_name(name, precision)).name
    message = (
        rf"the format {name!r} lacks operations of this network \({lacking}\); export it in "
        r"another format\."
    )
    with pytest.raises(InputError, match=message):
        write_file(odd, path, name, precision, np.zeros((1, 8, 6, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
