"""Look at the operations inside an exported file, and find those that an app cannot rely on.

Files are read, never computed: their tables of operations tell what would run. Some operations
need more than the program that opens the file has, some run code or reach for files, and some draw
random numbers; in a file that is only to tell what it sees there may be none of them.
"""

import importlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat

from cvpipe.errors import InputError, check_name
from cvpipe.export.formats import (
    FORMATS,
    KERAS,
    LITERT,
    ONNX,
    OPENVINO,
    SAVED_MODEL,
    check_format,
)
from cvpipe.models.framework import import_tensorflow

CUSTOM = "custom::"
STABLEHLO_CUSTOM = "STABLEHLO_CUSTOM_CALL"
ONNX_DOMAIN = "ai.onnx"
IN_TRAINING = "(training=True)"
LITERT_MARK = slice(4, 8), b"TFL3"
# What a Keras configuration holds besides layers and operations.
KERAS_DATA = ("keras.initializers", "keras.regularizers", "keras.constraints")
KERAS_POLICY = ("keras", "DTypePolicy")

# Draw random numbers, in the names of any format. Compared without underscores and capitals.
RANDOM = re.compile(
    r"random|multinomial|bernoulli|truncatednormal|rngskip|rngread|rngbit|nondeterministic"
    r"|stateful(uniform|standardnormal)|stochasticcast|candidatesampler|sampledistorted|sobolsample"
    r"|shuffle(?!channels)|fractional(avg|max)pool"
)
# Of TensorFlow: run Python, reach for files or the terminal, or read the clock.
OUTSIDE = re.compile(
    r"PyFunc|^(Read|Write)File$|MatchingFiles|Reader|FromTextFile|^Print|^Timestamp$|Summary"
)
# Of Keras: run what the file brings, or a program that it names.
KERAS_CODE = re.compile(r"^(Lambda|__lambda__|TFSMLayer|TorchModuleWrapper|JaxLayer|FlaxLayer)$|>")


def operations_in(path: Path, name: str) -> tuple[str, ...]:
    """List the operations of an exported file.

    Args:
        path: Of `cvpipe.export.writing.write_file`.
        name: The format, a key of `cvpipe.export.formats.FORMATS`.

    Returns:
        Distinct names, sorted. LiteRT: as in its schema (`"CONV_2D"`), operations borrowed from
        TensorFlow by their code (`"FlexErf"`), others behind `"custom::"`. ONNX: with their domain
        (`"ai.onnx::Conv"`). OpenVINO: types; outside of its own sets of operations with the name
        of the set (`"extension::Mine"`). SavedModel: as TensorFlow names them (`"Conv2D"`), those
        that load weights among them. Keras: classes of layers and operations; of others than
        Keras with where they come from (`"package>Mine"`), and with `"(training=True)"` where one
        is always called as in training.

    Raises:
        InputError: The format is unknown, its packages are missing, or there is no file of this
            format.
    """
    check_format(name)
    if not path.exists():
        raise InputError(f"there is no file {str(path)!r}; give the path of an exported model.")
    return tuple(sorted(set(READERS[name](path))))


def forbidden_in(operations: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Pick the operations that an app cannot rely on.

    Args:
        operations: Of `operations_in`.
        name: The format.

    Returns:
        Those that are not part of what every program for the format has, run code or reach for
        files, or whose result is random. Layers of Keras that are random in training alone, such
        as `Dropout`, are none of them unless they are called as in training.

    Raises:
        InputError: The format is unknown.

    Example:
        >>> forbidden_in(("CONV_2D", "FlexErf", "RANDOM_UNIFORM"), "litert")
        ('FlexErf', 'RANDOM_UNIFORM')
    """
    check_name("format", name, FORMATS)
    return tuple(operation for operation in operations if _is_forbidden(operation, name))


def _is_forbidden(operation: str, name: str) -> bool:
    if name == KERAS:
        return operation.endswith(IN_TRAINING) or bool(KERAS_CODE.search(operation))
    if RANDOM.search(operation.replace("_", "").lower()):
        return True
    if name == SAVED_MODEL:
        # A `>` is in the names of operations that libraries of their own bring.
        return ">" in operation or bool(OUTSIDE.search(operation))
    if name == ONNX:
        # Exported networks have no dropout: where there is one, it may be that of training.
        domain, _, kind = operation.partition("::")
        return domain != ONNX_DOMAIN or kind == "Dropout"
    return operation.startswith("Flex") or "::" in operation or operation == STABLEHLO_CUSTOM


def _in_litert(path: Path) -> Iterator[str]:
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    content = path.read_bytes()
    place, mark = LITERT_MARK
    if content[place] != mark:
        raise _unreadable(path, LITERT)
    kinds = {code: kind for kind, code in vars(schema.BuiltinOperator).items() if kind.isupper()}
    network = schema.Model.GetRootAs(content, 0)
    for number in range(network.OperatorCodesLength()):
        entry = network.OperatorCodes(number)
        # Codes above 127 stand in the newer of the two fields only.
        code = max(entry.BuiltinCode(), entry.DeprecatedBuiltinCode())
        if code != schema.BuiltinOperator.CUSTOM:
            yield kinds.get(code, f"{CUSTOM}{code}")
        else:
            custom = (entry.CustomCode() or b"").decode()
            yield custom if custom.startswith("Flex") else f"{CUSTOM}{custom}"


def _in_onnx(path: Path) -> Iterator[str]:
    onnx = importlib.import_module("onnx")
    network = onnx.ModelProto()
    _parse(network, path, path, ONNX)
    graphs = [network.graph, *network.functions]
    while graphs:  # branches and loops hold graphs of their own
        for node in graphs.pop().node:
            yield f"{node.domain or ONNX_DOMAIN}::{node.op_type}"
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs


def _in_openvino(path: Path) -> Iterator[str]:
    """Read the description of the graph, without what XML can refer to or define."""
    found = []

    def collect(tag: str, attributes: dict[str, str]) -> None:
        if tag == "layer":
            version, kind = attributes.get("version", ""), attributes.get("type", "")
            found.append(kind if re.fullmatch(r"opset\d+", version) else f"{version}::{kind}")

    def refuse(*_: object) -> None:
        raise _unreadable(path, OPENVINO)

    parser = expat.ParserCreate()
    parser.StartElementHandler = collect
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise _unreadable(path, OPENVINO) from error
    yield from found


def _in_saved_model(path: Path) -> Iterator[str]:
    import_tensorflow()  # the descriptions of its messages do not come without it
    messages = importlib.import_module("tensorflow.core.protobuf.saved_model_pb2")
    network = messages.SavedModel()
    _parse(network, path / "saved_model.pb", path, SAVED_MODEL)
    for graph in (entry.graph_def for entry in network.meta_graphs):
        functions = [function.node_def for function in graph.library.function]
        for nodes in (graph.node, *functions):
            yield from (node.op for node in nodes)


def _in_keras(path: Path) -> Iterator[str]:
    if not zipfile.is_zipfile(path):
        raise _unreadable(path, KERAS)
    with zipfile.ZipFile(path) as archive:
        if "config.json" not in archive.namelist():
            raise _unreadable(path, KERAS)
        config = json.loads(archive.read("config.json"))
    entries = [config["config"]]
    while entries:
        entry = entries.pop()
        if isinstance(entry, list):
            entries += entry
        elif isinstance(entry, dict):
            entries += entry.values()
            kind = _keras_kind(entry)
            if kind:
                yield kind + IN_TRAINING if _is_called_in_training(entry) else kind


def _keras_kind(entry: Mapping[str, Any]) -> str:
    """Name the class that an entry of a Keras configuration describes; `""` if it is none."""
    kind, module = entry.get("class_name", ""), entry.get("module") or ""
    code = entry.get("value") if len(entry) == 1 else None
    if isinstance(code, list) and code and isinstance(code[0], str):
        return "__lambda__"  # as an activation it is written without its class
    if kind.startswith("__"):
        return kind if kind == "__lambda__" else ""  # the others describe tensors and slices
    if not kind or module == "keras" or module.startswith("keras."):
        return "" if (module, kind) == KERAS_POLICY or module in KERAS_DATA else kind
    registered = entry.get("registered_name") or ""
    return registered if ">" in registered else f"{module}>{kind}"


def _is_called_in_training(entry: Mapping[str, Any]) -> bool:
    calls = (call for call in entry.get("inbound_nodes", []) if isinstance(call, dict))
    return any(call.get("kwargs", {}).get("training") is True for call in calls)


def _parse(message: Any, file: Path, path: Path, name: str) -> None:
    """Read a protobuf message from a file."""
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    if not file.is_file():
        raise _unreadable(path, name)
    try:
        message.ParseFromString(file.read_bytes())
    except decode_error as error:
        raise _unreadable(path, name) from error


def _unreadable(path: Path, name: str) -> InputError:
    return InputError(
        f"{str(path)!r} is no file of the format {name!r}; give the path of an exported model, and "
        "the format that it was exported in."
    )


READERS: Mapping[str, Callable[[Path], Iterator[str]]] = {
    KERAS: _in_keras,
    SAVED_MODEL: _in_saved_model,
    LITERT: _in_litert,
    ONNX: _in_onnx,
    OPENVINO: _in_openvino,
}
