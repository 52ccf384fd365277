import io
import struct
import tarfile
import zipfile

import h5py
import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models import weight_files
from cvpipe.models.framework import import_tensorflow
from cvpipe.models.weight_files import (
    is_archive,
    open_keras_weights,
    open_member,
    read_frozen_graph,
    read_onnx_initializers,
)

# --- archives ---------------------------------------------------------------------------


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


ARCHIVES = {"a.whl": write_zip, "a.zip": write_zip, "a.tar.gz": write_tar, "a.tgz": write_tar}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_member_is_found_by_the_end_of_its_name(name, tmp_path):
    path = tmp_path / name
    ARCHIVES[name](path, {"p/setup.py": b"raise", "p/files/net.pb": b"weights", "x.pb": b"other"})
    assert is_archive(path)
    with open_member(path, "files/net.pb") as file:
        assert file.read() == b"weights"
    with pytest.raises(InputError, match=r"has no file whose name ends with '/net.onnx'; give"):
        open_member(path, "/net.onnx").__enter__()
    assert list(tmp_path.iterdir()) == [path]  # nothing is unpacked


@pytest.mark.parametrize("name", ARCHIVES)
def test_sizes_are_bounded(name, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_BYTES", 100)
    path = tmp_path / name
    ARCHIVES[name](path, {"net.pb": bytes(100)})
    with open_member(path, "net.pb") as file:
        assert len(file.read()) == 100
    ARCHIVES[name](path, {"net.pb": bytes(101)})
    with pytest.raises(InputError, match="101 bytes are too many for weights; at most 100"):
        open_member(path, "net.pb").__enter__()


def test_a_tar_file_is_bounded_before_the_member_is_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "MAX_BYTES", 100)
    write_tar(tmp_path / "a.tar.gz", {"big": bytes(60), "bigger": bytes(60), "net.pb": b"x"})
    with pytest.raises(InputError, match="120 bytes are too many"):
        open_member(tmp_path / "a.tar.gz", "net.pb").__enter__()


def test_a_long_name_in_a_tar_file_fills_no_memory(tmp_path, monkeypatch):
    """Such names are read before the size of any member is known."""
    monkeypatch.setattr(weight_files, "MAX_BYTES", 100)
    write_tar(tmp_path / "a.tar.gz", {"long/" * 400_000 + "net.pb": b"x"})
    with pytest.raises(InputError, match="bytes are too many"):
        open_member(tmp_path / "a.tar.gz", "net.pb").__enter__()


def test_a_graph_whose_shape_claims_more_than_there_is_is_refused(tmp_path):
    graph = import_tensorflow().compat.v1.GraphDef()
    node = graph.node.add(name="a", op="Const")
    tensor = node.attr["value"].tensor
    tensor.dtype = 1
    tensor.float_val.append(1.0)
    tensor.tensor_shape.dim.add(size=10**14)
    with pytest.raises(InputError, match="bytes are too many"):
        weight_files.read_frozen_graph(io.BytesIO(graph.SerializeToString()))


@pytest.mark.parametrize("name", ARCHIVES)
def test_damaged_archives(name, tmp_path):
    path = tmp_path / name
    content = np.random.default_rng(0).bytes(5000)
    ARCHIVES[name](path, {"net.pb": content})
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"cannot read the archive|has no file"):
            open_member(path, "net.pb").__enter__()


def test_a_link_in_a_tar_file_is_not_followed(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("net.pb")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(InputError, match="has no file"):
        open_member(path, "net.pb").__enter__()


# --- HDF5 -------------------------------------------------------------------------------


def test_legacy_layers_keep_their_order_and_their_names_in_pieces(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names0"] = [b"second", b"none"]
        file.attrs["layer_names1"] = [b"first"]
        for number, layer in enumerate(["second", "none", "first"]):
            group = file.create_group(layer)
            names = [] if layer == "none" else [f"{layer}/b:0", f"{layer}/a:0"]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                group[name] = np.full(2, number)
    with (tmp_path / "w.h5").open("rb") as file, open_keras_weights(file) as weights:
        found = [(layer, [tensor[0] for tensor in tensors]) for layer, tensors in weights.by_layer]
        names = [tensor.name for _, tensors in weights.by_layer for tensor in tensors]
    assert found == [("second", [0, 0]), ("first", [2, 2])]
    assert names[:2] == ["/second/second/b:0", "/second/second/a:0"]


def test_numbers_in_other_files_are_not_read(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(2)
    (tmp_path / "raw").write_bytes(bytes(16))
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layers/own"] = np.ones(2)
        file["layers/linked"] = h5py.ExternalLink("other.h5", "secret")
        file.create_dataset("layers/raw", (2,), "f8", external=[(str(tmp_path / "raw"), 0, 16)])
        layout = h5py.VirtualLayout((2,), "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "secret", (2,))
        file.create_virtual_dataset("layers/virtual", layout)
    with (tmp_path / "w.h5").open("rb") as file, open_keras_weights(file) as weights:
        assert list(weights.by_path) == ["layers/own"]


@pytest.mark.parametrize("content", [b"", b"no such file", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_damaged_hdf5(content):
    with pytest.raises(InputError, match="file of Keras weights is damaged or of another kind"):
        open_keras_weights(io.BytesIO(content)).__enter__()


def test_a_zip_file_without_weights(tmp_path):
    write_zip(tmp_path / "a.keras", {"config.json": b"{}"})
    with (
        (tmp_path / "a.keras").open("rb") as file,
        pytest.raises(InputError, match="damaged or of another kind"),
    ):
        open_keras_weights(file).__enter__()


# --- graphs -----------------------------------------------------------------------------


def test_constants_of_a_frozen_graph():
    tensorflow = import_tensorflow()
    graph = tensorflow.compat.v1.GraphDef()
    arrays = {"a/weights": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(7)}
    for name, array in arrays.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tensorflow.make_tensor_proto(array))
    text = graph.node.add(name="text", op="Const")
    text.attr["value"].tensor.CopyFrom(tensorflow.make_tensor_proto("words"))
    graph.node.add(name="images", op="Placeholder")
    found = read_frozen_graph(io.BytesIO(graph.SerializeToString()))
    assert list(found) == list(arrays)
    np.testing.assert_array_equal(found["a/weights"], arrays["a/weights"])
    with pytest.raises(InputError, match="not a frozen graph of TensorFlow, or damaged"):
        read_frozen_graph(io.BytesIO(graph.SerializeToString()[:-3]))


def varint(value):
    """Seven bits a byte, lowest first, by the documentation of Protocol Buffers."""
    content = b""
    while value > 127:
        content += bytes([value % 128 + 128])
        value //= 128
    return content + bytes([value])


def field(number, content):
    return varint(number * 8 + 2) + varint(len(content)) + content


def onnx_tensor(name, array, packed, raw):
    dims = [varint(size) for size in array.shape]
    content = (
        field(1, b"".join(dims)) if packed else b"".join(varint(1 * 8) + size for size in dims)
    )
    content += varint(2 * 8) + varint({"f": 1, "i": 7}[array.dtype.kind])
    content += field(8, name.encode())
    return content + field(9 if raw else 4, array.astype("<f4").tobytes())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("raw", [False, True])
def test_onnx_initializers_by_hand(packed, raw):
    kernel = np.random.default_rng(0).normal(size=(200, 3, 1, 2)).astype(np.float32)
    shape = np.array([1, 2])
    graph = field(5, onnx_tensor("kernel/ü", kernel, packed, raw))
    graph += field(5, onnx_tensor("shape", shape, packed, raw)) + field(2, b"a name")
    # Fields of other kinds on the way: a version, 64 and 32 bits.
    model = varint(1 * 8) + varint(300) + varint(20 * 8 + 1) + bytes(8) + field(7, graph)
    model += varint(21 * 8 + 5) + struct.pack("<f", 1)
    found = read_onnx_initializers(io.BytesIO(model))
    assert list(found) == ["kernel/ü"]
    np.testing.assert_array_equal(found["kernel/ü"], kernel)


def test_onnx_initializers_as_the_package_onnx_reads_them():
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(3, 2, 5)).astype(np.float32) for name in "abc"}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    tensors[2] = onnx.helper.make_tensor("c", 1, (3, 2, 5), arrays["c"].ravel())
    tensors.append(onnx.numpy_helper.from_array(np.array([1, 2]), "integers"))
    graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
    content = onnx.helper.make_model(graph).SerializeToString()
    found = read_onnx_initializers(io.BytesIO(content))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "content",
    [
        b"\x3a\x05ab",  # a graph of five bytes, of which there are two
        b"\x3b",  # a wire type that there is not
        b"\xff" * 11,  # an integer without an end
        field(7, field(5, onnx_tensor("a", np.ones((2, 2), np.float32), True, True)[:-16])),
        field(7, field(5, varint(16) + b"\x01" + field(9, bytes(4)))),  # no name
    ],
)
def test_damaged_onnx(content):
    with pytest.raises(InputError, match="is not an ONNX model, or damaged"):
        read_onnx_initializers(io.BytesIO(content))
