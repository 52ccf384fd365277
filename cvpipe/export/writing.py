"""Write a network to files that other programs open.

Every format but Keras's own is made of one SavedModel, so that none depends on how Keras exports
to it: Keras's export to OpenVINO computes EfficientNets two to three times slower, and that to
ONNX can leave out what a layer computes with beside its weights.

Rounding activations to 8 bits stops where the logits begin. Rounded to 256 steps, no probability
could be above 0.996 or between 0 and 0.004, and the logarithms that merged and calibrated networks
take of them would be far off; a head in `float32` costs next to nothing. (LiteRT's `"dynamic"` has
no say in it, so there the head is written as a product and a sum, which are not rounded.)
"""

import importlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.export.formats import (
    DYNAMIC,
    FLOAT16,
    FLOAT32,
    INPUT_NAME,
    INT8,
    KERAS,
    LITERT,
    ONNX,
    OPENVINO,
    OUTPUT_NAME,
    SAVED_MODEL,
    check_format,
    file_name,
)
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.merging import is_head
from cvpipe.models.runtimes import SIGNATURE, closed_stderr, import_openvino

if TYPE_CHECKING:
    import keras

# Smaller arrays save little, and among them are numbers that 16 bits cannot hold, such as the
# smallest probability whose logarithm is taken. LiteRT draws the same line.
SMALLEST_ROUNDED = 1024
LARGEST_EXACT_HEAD = 500_000  # numbers; a product holds as many for each image
LARGEST_INT8 = 127
# Operations of LiteRT and ONNX that make probabilities, and that make logits.
SOFTMAX = ("SOFTMAX", "LOG_SOFTMAX", "Softmax", "LogSoftmax")
LINEAR = ("FULLY_CONNECTED", "CONV_2D", "Gemm", "MatMul", "Conv")
# What ONNX Runtime computes in integers. All of a network's body: rounded back and forth between
# convolutions, EfficientNet-Lite0 would be four times as far off, and slower than in float32.
INTEGER_OPERATIONS = (
    *("Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool", "AveragePool"),
    *("Relu", "Clip"),  # they vanish in the range of the rounding before them
)
# How the converters name operations of a network that a format lacks.
LACKING = re.compile(r"'tf\.(\w+)' op|No Op registered for (\w+)|rule found for operations: (.+)")


class Step(NamedTuple):
    """An operation of a graph: its kind, and the tensors that it reads and makes."""

    kind: str
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def write_file(
    model: "keras.Model",
    path: Path,
    name: str,
    precision: str = FLOAT32,
    images: np.ndarray | None = None,
) -> None:
    """Write a network to a file, or a folder, of a format.

    Args:
        model: From `uint8` images `(n, height, width, 3)` to probabilities `(n, num_classes)`,
            computed in float32.
        path: Where to; nothing may be there yet. Ends as `file_name` of the format does. Folders
            above it are made.
        name: A key of `cvpipe.export.formats.FORMATS`.
        precision: One that the format has.
        images: Representative images, as the model takes them, on which the ranges of activations
            are measured for `"int8"`; some hundred are enough. Other precisions need none.

    Raises:
        InputError: As `check_format` raises; the path is taken or ends differently; the model
            takes or gives something else, computes in another precision, or has operations that
            the format lacks; or the images are missing or do not fit.
    """
    check_format(name, precision)
    _check_path(path, Path(file_name(name, precision)).suffix)
    _check_interface(model)
    _check_float32(model)
    rows = _check_images(images, model) if precision == INT8 else np.empty(0, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == KERAS:
        model.save(path)
    elif name == SAVED_MODEL:
        _write_saved_model(model, path)
    else:
        # On Windows a file that is still mapped into memory cannot be deleted.
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            closed_stderr(),
            warnings.catch_warnings(action="ignore"),  # of what the converters themselves use
        ):
            saved_model = Path(folder) / SAVED_MODEL
            if (name, precision) == (LITERT, DYNAMIC):
                model = _with_exact_head(model)
            _write_saved_model(model, saved_model)
            CONVERTERS[name](saved_model, path, precision, rows)


def _check_path(path: Path, suffix: str) -> None:
    if path.exists():
        raise InputError(f"{str(path)!r} is there already; choose another path, or delete it.")
    if suffix and path.suffix != suffix:
        raise InputError(f"{str(path)!r} must end with {suffix!r}; choose another path.")


def _check_interface(model: "keras.Model") -> None:
    """Check that a model takes images and gives one row per image."""
    taken = [(tuple(tensor.shape), tensor.dtype) for tensor in model.inputs]
    given = [tuple(tensor.shape) for tensor in model.outputs]
    images_alone = len(taken) == 1 and _is_images(*taken[0])
    if not images_alone or len(given) != 1 or len(given[0]) != 2:
        raise InputError(
            f"{model.name!r} takes {taken} and gives {given}, but only a network from uint8 images "
            "(n, height, width, 3) of one size to probabilities (n, num_classes) can be written; "
            "pass such a network."
        )


def _is_images(shape: Sequence[int | None], dtype: str) -> bool:
    if len(shape) != 4 or dtype != "uint8":
        return False
    batch, height, width, channels = shape
    return batch is None and None not in (height, width) and channels == 3


def _check_float32(model: "keras.Model") -> None:
    """Check that nothing is computed in another floating-point type than `float32`.

    Converters would carry such a type into the file, or lose it, each in its own way.
    """
    tree = import_keras().tree
    computed = {layer.name: layer.compute_dtype for layer in model._flatten_layers()}
    for operation in model.operations:  # plain ones have no type of their own
        for tensor in tree.flatten(operation.output):
            computed.setdefault(operation.name, tensor.dtype)
    others = {n: dtype for n, dtype in computed.items() if "float" in dtype and dtype != FLOAT32}
    if others:
        first, dtype = next(iter(others.items()))
        raise InputError(
            f"{model.name!r} does not compute in float32 ({len(others)} layers, first {first!r} in "
            f"{dtype}); write the network that is stored, or a copy of it by "
            "cvpipe.models.twins.twin_of(network, lambda layer: 'float32')."
        )


def _check_images(images: np.ndarray | None, model: "keras.Model") -> np.ndarray:
    """Return representative images if the model takes them."""
    wanted = tuple(model.input_shape[1:])
    given = "none" if images is None else f"{images.dtype} of shape {images.shape}"
    if images is None or images.dtype != np.uint8 or images.shape[1:] != wanted or not len(images):
        raise InputError(
            f"{INT8!r} needs representative images, as uint8 of shape {('n', *wanted)}, but got "
            f"{given}; pass some of those that the network was trained on."
        )
    return images


def _with_exact_head(model: "keras.Model") -> "keras.Model":
    """Write the head of a network as a product and a sum, not as a layer whose weights are rounded.

    A head that was fitted to standardised features has weights of very different sizes, for
    features that are as different. In 8 bits the small of either are lost: of three linear probes
    one lost 16 points of accuracy, the others 40 and more.
    """
    keras = import_keras()

    def call(layer: Any, *arguments: Any, **settings: Any) -> Any:
        if not is_head(layer.name):
            return layer(*arguments, **settings)
        kernel, bias = layer.get_weights()
        if kernel.size > LARGEST_EXACT_HEAD:
            return layer(*arguments, **settings)
        products = keras.ops.expand_dims(arguments[0], 1) * kernel.T[None]
        return keras.ops.sum(products, axis=2) + bias

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _write_saved_model(model: "keras.Model", folder: Path) -> None:
    """Write a network for batches of any size."""
    tensorflow = import_tensorflow()
    shape = (None, *model.input_shape[1:])
    spec = tensorflow.TensorSpec(shape, model.inputs[0].dtype, name=INPUT_NAME)

    @tensorflow.function(input_signature=[spec], jit_compile=False)
    def serve(images: Any) -> dict[str, Any]:
        return {OUTPUT_NAME: tensorflow.cast(model(images, training=False), tensorflow.float32)}

    module = tensorflow.Module()
    module.weights = [variable.value for variable in model.variables]  # what hangs on it is stored
    tensorflow.saved_model.save(module, str(folder), signatures={SIGNATURE: serve})


def _explain(error: Exception, name: str) -> None:
    """Raise an `InputError` if what went wrong is that a format lacks operations."""
    found = LACKING.search(str(error))
    if found:
        lacking = next(filter(None, found.groups()))
        raise InputError(
            f"the format {name!r} lacks operations of this network ({lacking}); export it in "
            "another format."
        ) from error


def _from_logits_on(steps: Sequence[Step]) -> Iterator[int]:
    """Number the steps of a graph that make logits, or lie between them and the result.

    Args:
        steps: In the order in which they are computed.
    """
    behind: set[Any] = set()
    for step in steps:
        if step.kind in SOFTMAX or not behind.isdisjoint(step.inputs):
            behind.update(step.outputs)
    towards = {tensor for step in steps if step.kind in SOFTMAX for tensor in step.inputs}
    for number in reversed(range(len(steps))):
        step = steps[number]
        if not behind.isdisjoint(step.outputs):
            yield number
        elif not towards.isdisjoint(step.outputs):
            yield number
            if step.kind not in LINEAR:  # such as a bias or a calibration behind the head
                towards.update(step.inputs)


# LiteRT


def _write_litert(saved_model: Path, path: Path, precision: str, images: np.ndarray) -> None:
    tensorflow = import_tensorflow()
    lite = tensorflow.lite
    converter = lite.TFLiteConverter.from_saved_model(str(saved_model))
    # Its own operations only: those borrowed from TensorFlow need a library that apps lack.
    converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS]
    if precision != FLOAT32:
        converter.optimizations = [lite.Optimize.DEFAULT]
    if precision == FLOAT16:
        converter.target_spec.supported_types = [tensorflow.float16]
    if precision == INT8:
        converter.representative_dataset = lambda: ({INPUT_NAME: row[None]} for row in images)
        # The converter rounds all or nothing, so its two steps, measuring and rounding, are called
        # one by one, as `tensorflow.lite.experimental.QuantizationDebugger` does.
        converter._experimental_calibrate_only = True
    convert = importlib.import_module("tensorflow.lite.python.convert")
    try:
        content = converter.convert()
    except convert.ConverterError as error:
        _explain(error, LITERT)
        raise
    if precision == INT8:
        names = _tensors_from_logits_on(content)
        content = convert.mlir_quantize(content, denylisted_nodes=names)
    path.write_bytes(content)


def _tensors_from_logits_on(content: bytes) -> list[str]:
    """Name what the operations of a LiteRT file make from the logits on."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    kinds = {code: kind for kind, code in vars(schema.BuiltinOperator).items() if kind.isupper()}
    network = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = network.subgraphs[0]
    # Codes above 127 stand in the newer of the two fields only.
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in network.operatorCodes]
    steps = [
        Step(kinds[codes[step.opcodeIndex]], step.inputs.tolist(), step.outputs.tolist())
        for step in graph.operators
    ]
    made = [tensor for number in _from_logits_on(steps) for tensor in steps[number].outputs]
    return [graph.tensors[tensor].name.decode() for tensor in made]


# ONNX


def _write_onnx(saved_model: Path, path: Path, precision: str, images: np.ndarray) -> None:
    network = _convert_to_onnx(saved_model)
    if precision in (FLOAT16, DYNAMIC):
        _narrow_weights(network, precision)
    elif precision == INT8:
        network = _quantise_onnx(network, images)
    _tidy(network)
    path.write_bytes(network.SerializeToString())


def _convert_to_onnx(saved_model: Path) -> Any:
    tensorflow = import_tensorflow()
    # The one way to it in TensorFlow 2; its guides import it from here, too.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    loaded = tensorflow.saved_model.load(str(saved_model))
    serve = loaded.signatures[SIGNATURE]
    (spec,) = serve.structured_input_signature[1].values()
    # Otherwise what a layer computes with beside its weights, such as the statistics of a
    # normalisation, would become inputs of the file.
    frozen = convert_variables_to_constants_v2(serve)
    function = tensorflow.function(
        lambda images: {OUTPUT_NAME: frozen(**{INPUT_NAME: images})[0]}, jit_compile=False
    )
    network, _ = importlib.import_module("tf2onnx.convert").from_function(function, [spec])
    checker = importlib.import_module("onnx").checker
    try:
        checker.check_model(network)  # the converter keeps operations that it cannot convert
    except checker.ValidationError as error:
        _explain(error, ONNX)
        raise
    return network


def _narrow_weights(network: Any, precision: str) -> None:
    """Keep large weights in fewer bits, and widen them to `float32` in the graph, in place.

    With operations that every program folds when it opens the file, so that it computes as fast as
    in float32. (ONNX Runtime's own way would round the activations of a whole batch by one range,
    and an image's probabilities would depend on its neighbours.)
    """
    onnx = importlib.import_module("onnx")
    graph, widening = network.graph, []
    tail = {name for n in _from_logits_on(_steps_of_onnx(graph)) for name in graph.node[n].input}
    for weights in list(graph.initializer):
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype != np.float32 or values.size < SMALLEST_ROUNDED:
            continue
        axis = None if weights.name in tail else _channels_axis(graph, weights.name, values.ndim)
        arrays = _to_float16(values) if precision == FLOAT16 else _to_int8(values, axis)
        if not arrays:
            continue
        graph.initializer.remove(weights)
        narrow, *scales = (f"{weights.name}_{part}" for part in ("narrow", "scales")[: len(arrays)])
        for key, array in zip((narrow, *scales), arrays, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(array, key))
        wide = f"{weights.name}_wide" if scales else weights.name
        node = onnx.helper.make_node
        widening.append(node("Cast", [narrow], [wide], to=onnx.TensorProto.FLOAT))
        if scales:
            widening.append(node("Mul", [wide, *scales], [weights.name]))
    steps = [*widening, *graph.node]  # a copy, before the list is emptied
    del graph.node[:]
    graph.node.extend(steps)


def _steps_of_onnx(graph: Any) -> list[Step]:
    return [Step(node.op_type, node.input, node.output) for node in graph.node]


def _channels_axis(graph: Any, name: str, num_axes: int) -> int | None:
    """Find the axis of a weight along which the output channels lie; `None` if it is no kernel."""
    kinds = {node.op_type for node in graph.node if name in node.input}
    return {"Conv": 0, "MatMul": num_axes - 1}.get(kinds.pop()) if len(kinds) == 1 else None


def _to_float16(values: np.ndarray) -> tuple[np.ndarray, ...]:
    """Round to 16 bits; nothing if a value is too large for them."""
    if np.abs(values).max() > np.finfo(np.float16).max:
        return ()
    return (values.astype(np.float16),)


def _to_int8(values: np.ndarray, axis: int | None) -> tuple[np.ndarray, ...]:
    """Round to 8 bits, by a scale for each entry of an axis; nothing without an axis.

    Returns:
        `int8` array and `float32` scales, whose product is near the values.
    """
    if axis is None:
        return ()
    others = tuple(other for other in range(values.ndim) if other != axis)
    scales = np.abs(values).max(axis=others, keepdims=True) / LARGEST_INT8
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.rint(values / scales).astype(np.int8), scales


class _OneByOne:
    """Hands images out one at a time, in the way that ONNX Runtime asks for them."""

    def __init__(self, images: np.ndarray) -> None:
        self._rows = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {INPUT_NAME: row[None]}


def _quantise_onnx(network: Any, images: np.ndarray) -> Any:
    """Round a network to 8 bits, but for its head and what follows."""
    onnx = importlib.import_module("onnx")
    quantization = importlib.import_module("onnxruntime.quantization")
    network = _fold(network)
    for number, node in enumerate(network.graph.node):
        node.name = f"{node.op_type}_{number}"  # what is left out below is told by its name
    tail = _from_logits_on(_steps_of_onnx(network.graph))
    # So that it does not recommend what `_fold` has done.
    quantization.quant_utils.add_pre_process_metadata(network)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_static(
            network,
            path,
            _OneByOne(images),
            op_types_to_quantize=list(INTEGER_OPERATIONS),
            nodes_to_exclude=[network.graph.node[number].name for number in tail],
            per_channel=True,
            # Weights of 7 bits: with 8, sums overflow on processors without instructions for them.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


def _fold(network: Any) -> Any:
    """Fold normalisations into the convolutions before them, so that nothing between is rounded."""
    onnx, onnxruntime = map(importlib.import_module, ("onnx", "onnxruntime"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    # With standard operations only; further levels depend on the processor.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            network.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)


def _tidy(network: Any) -> None:
    """Name the free dimension, and drop domains and notes that nothing needs, in place."""
    for value in (*network.graph.input, *network.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    used = {node.domain for node in network.graph.node}
    domains = [opset for opset in network.opset_import if opset.domain in used]
    del network.opset_import[:], network.metadata_props[:]
    network.opset_import.extend(domains)


# OpenVINO


def _write_openvino(saved_model: Path, path: Path, precision: str, images: np.ndarray) -> None:
    del images
    openvino = import_openvino()
    try:
        network = openvino.Core().read_model(saved_model)
    except RuntimeError as error:
        _explain(error, OPENVINO)
        raise
    openvino.save_model(network, path, compress_to_fp16=precision == FLOAT16)


CONVERTERS: Mapping[str, Callable[[Path, Path, str, np.ndarray], None]] = {
    LITERT: _write_litert,
    ONNX: _write_onnx,
    OPENVINO: _write_openvino,
}
