"""Reading tensors out of the weights files of other programs.

Every reader returns numbers only. Layers and functions stored in a file are never built: of a
`.keras` file only the HDF5 part with its numbers is opened, graphs in ONNX's and TensorFlow's
formats are searched for constants. Packages that hold such a file are read as archives; nothing
in them is installed, imported or written to the disk.
"""

import contextlib
import gzip
import io
import math
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_tensorflow

ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz")
# The largest network of keras.applications has 1.4 GB of weights.
MAX_BYTES = 2 * 1024**3
_KERAS_WEIGHTS_MEMBER = "model.weights.h5"


def is_archive(path: Path) -> bool:
    """Whether a path is that of a package or archive, by the end of its name."""
    return path.name.lower().endswith(ARCHIVES)


@contextlib.contextmanager
def open_member(path: Path, suffix: str) -> Iterator[BinaryIO]:
    """Open the one file of an archive whose name ends with `suffix`, in memory.

    Args:
        path: A wheel, zip or gzipped tar file.
        suffix: End of the member's path inside.

    Raises:
        InputError: It is damaged, there is no such member, or it is larger than `MAX_BYTES`.
    """
    read = _read_zip_member if zipfile.is_zipfile(path) else _read_tar_member
    try:
        content = read(path, suffix)
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
        raise InputError(
            f"cannot read the archive {path}: {error}; get a fresh copy of the file."
        ) from error
    if content is None:
        raise InputError(
            f"the archive {path} has no file whose name ends with {suffix!r}; give the package "
            "that the documentation names, or the weights file itself."
        )
    with io.BytesIO(content) as file:
        yield file


def _read_zip_member(path: Path | BinaryIO, suffix: str) -> bytes | None:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(suffix)]
        if not members:
            return None
        with archive.open(members[0]) as member:
            return _read_bounded(member, members[0].file_size)


def _read_tar_member(path: Path, suffix: str) -> bytes | None:
    # As a stream, so that a member is only ever read where it stands, and no header is read that
    # would fill the memory.
    with gzip.open(path) as content:
        stream: Any = _Bounded(content)
        return _find_in_tar(stream, suffix)


def _find_in_tar(stream: Any, suffix: str) -> bytes | None:
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        total = 0
        for info in archive:
            total += _check_size(info.size)
            _check_size(total)
            wanted = info.isfile() and info.name.endswith(suffix)  # not a link to something else
            member = archive.extractfile(info) if wanted else None
            if member:
                return _read_bounded(member, info.size)
    return None


ARCHIVE_OVERHEAD = 1_000_000  # bytes of headers and padding


class _Bounded:
    """A file of which not much more than `MAX_BYTES` can be read."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.num_bytes = 0

    def read(self, num_bytes: int) -> bytes:
        """Read so many bytes, or what is left."""
        self.num_bytes += num_bytes
        _check_size(self.num_bytes - ARCHIVE_OVERHEAD)
        return self.file.read(num_bytes)


def _check_size(num_bytes: int) -> int:
    if num_bytes > MAX_BYTES:
        raise InputError(f"{num_bytes:,} bytes are too many for weights; at most {MAX_BYTES:,}.")
    return num_bytes


def _read_bounded(file: Any, num_bytes: int) -> bytes:
    """Read as many bytes as the archive's directory says, and not one more."""
    return file.read(_check_size(num_bytes))


# --- Keras: .h5, .weights.h5, .keras ------------------------------------------------------


class KerasWeights(NamedTuple):
    """The tensors of a Keras file; their numbers are read from the open file when asked for.

    Attributes:
        by_layer: Legacy files: each layer's name with its tensors, in the order of layers.
        by_path: Files of Keras 3: each tensor's path, such as `layers/conv2d_1/vars/0`.
    """

    by_layer: list[tuple[str, list[Any]]]
    by_path: dict[str, Any]


@contextlib.contextmanager
def open_keras_weights(file: BinaryIO) -> Iterator[KerasWeights]:
    """Open the tensors of a `.h5`, `.weights.h5` or `.keras` file.

    Raises:
        InputError: It is of another kind, or damaged.
    """
    import h5py

    try:
        if zipfile.is_zipfile(file):
            file = io.BytesIO(_read_zip_member(file, _KERAS_WEIGHTS_MEMBER) or b"")
        with h5py.File(file, "r") as hdf5:
            yield _list_tensors(hdf5)
    except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"the file of Keras weights is damaged or of another kind ({error}); expected is a "
            "file from model.save_weights or model.save of Keras."
        ) from error


def _list_tensors(hdf5: Any) -> KerasWeights:
    datasets = _own_datasets(hdf5)
    root = hdf5.get("model_weights", hdf5)
    by_layer = []
    for layer in _names(root, "layer_names"):
        group = root[layer]
        paths = [f"{group.name}/{name}".lstrip("/") for name in _names(group, "weight_names")]
        by_layer.append((layer, [datasets[path] for path in paths]))
    return KerasWeights([(name, tensors) for name, tensors in by_layer if tensors], datasets)


def _own_datasets(hdf5: Any) -> dict[str, Any]:
    """List the datasets whose numbers are in the file itself, by path."""
    found = {}

    def visit(name: str, item: Any) -> None:  # links are not visited: they may lead elsewhere
        if hasattr(item, "shape") and not item.external and not item.is_virtual:
            found[name] = item

    hdf5.visititems(visit)
    return found


def _names(group: Any, attribute: str) -> list[str]:
    """Read a list of names; long ones are kept in numbered pieces."""
    pieces, number = [attribute], 0
    while f"{attribute}{number}" in group.attrs:
        pieces.append(f"{attribute}{number}")
        number += 1
    names = [name for piece in pieces for name in group.attrs.get(piece, ())]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


# --- TensorFlow 1: frozen graphs ----------------------------------------------------------


def read_frozen_graph(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the constants of a frozen graph of TensorFlow 1; nothing of it is run.

    Raises:
        InputError: It is of another kind, or damaged.
    """
    tensorflow = import_tensorflow()
    from google.protobuf.message import DecodeError

    graph = tensorflow.compat.v1.GraphDef()
    try:
        graph.ParseFromString(file.read(MAX_BYTES))
        tensors = {
            node.name: node.attr["value"].tensor
            for node in graph.node
            if node.op == "Const" and node.attr["value"].tensor.dtype != _TF_STRING
        }
        for tensor in tensors.values():  # a shape can claim more than the file holds
            _check_size(math.prod(dim.size for dim in tensor.tensor_shape.dim))
        return {name: tensorflow.make_ndarray(tensor) for name, tensor in tensors.items()}
    except (DecodeError, TypeError, ValueError, MemoryError) as error:
        raise InputError(
            f"the file is not a frozen graph of TensorFlow, or damaged ({error}); get a fresh "
            "copy of the file."
        ) from error


_TF_STRING = 7  # DT_STRING of types.proto


# --- ONNX ---------------------------------------------------------------------------------

# Numbers of fields, from the public schema onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 4, 8, 9
_ONNX_FLOAT = 1


def read_onnx_initializers(file: BinaryIO) -> dict[str, np.ndarray]:
    """Read the `float32` tensors stored in an ONNX model, without the package `onnx`.

    Tensors of other types, and tensors in files beside the model, are left out.

    Raises:
        InputError: It is of another kind, or damaged.

    References:
        Protocol Buffers documentation, "Encoding"; ONNX, onnx.proto (ModelProto, TensorProto).
    """
    content = memoryview(file.read(MAX_BYTES))
    try:
        tensors = [
            _onnx_tensor(tensor)
            for graph in _fields(content).get(_MODEL_GRAPH, [])
            for tensor in _fields(graph).get(_GRAPH_INITIALIZER, [])
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the file is not an ONNX model, or damaged ({error}); get a fresh copy of the file."
        ) from error
    return dict(tensor for tensor in tensors if tensor)


def _onnx_tensor(message: memoryview) -> tuple[str, np.ndarray] | None:
    fields = _fields(message)
    raw = fields.get(_TENSOR_RAW) or fields.get(_TENSOR_FLOATS)
    if fields.get(_TENSOR_TYPE) != [_ONNX_FLOAT] or not raw:
        return None
    dims: list[int] = []
    for value in fields.get(_TENSOR_DIMS, []):  # one by one, or packed
        dims.extend([value] if isinstance(value, int) else _varints(value))
    numbers = np.frombuffer(b"".join(raw), "<f4")
    return bytes(fields[_TENSOR_NAME][0]).decode(), numbers.reshape(dims)


def _fields(message: memoryview) -> Mapping[int, list[Any]]:
    """Part a message of Protocol Buffers into the values of each field, undecoded."""
    fields: dict[int, list[Any]] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        value: Any
        if wire_type == 0:
            value, position = _varint(message, position)
        else:
            length, position = _length(message, position, wire_type)
            value = message[position : position + length]
            position += length
            if position > len(message):
                raise ValueError("it ends within a field")
        fields.setdefault(number, []).append(value)
    return fields


def _length(message: memoryview, position: int, wire_type: int) -> tuple[int, int]:
    """Say how many bytes a field has, and where they start."""
    if wire_type == 2:
        return _varint(message, position)
    fixed = {1: 8, 5: 4}
    if wire_type not in fixed:
        raise ValueError(f"unknown wire type {wire_type}")
    return fixed[wire_type], position


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read an integer of seven bits a byte, lowest first; return it and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer of more than ten bytes")


def _varints(message: memoryview) -> list[int]:
    values, position = [], 0
    while position < len(message):
        value, position = _varint(message, position)
        values.append(value)
    return values
