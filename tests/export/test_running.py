"""Exported files as an app opens them."""

import importlib.util
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.export import running
from cvpipe.export.formats import NETWORK_FORMATS, parse_label
from cvpipe.export.running import open_file
from tests.export.networks import BUILDERS, compute, images_for, installed, network
from tests.models.test_runtimes import run_python

WITHOUT_TENSORFLOW = ("litert", "litert-int8", "onnx", "onnx-int8", "openvino")
# One of each program; those that round on the way have paths of their own.
LABELS = ("keras", "saved_model", "litert", "litert-dynamic", "litert-int8", "onnx", "onnx-int8",
          "openvino")  # fmt: skip
LIMITS = {"float32": 1e-5, "dynamic": 0.06, "int8": 0.13}  # how far a probability may be off


@pytest.fixture(scope="module", params=installed(LABELS))
def label(request):
    return request.param


@pytest.fixture(params=BUILDERS)
def kind(request):
    return request.param


def opened(written, kind, label, threads=2):
    return open_file(written(kind, label), parse_label(label)[0], threads)


# Computing


def test_any_number_of_images_in_any_order(written, kind, label):
    run, images = opened(written, kind, label), images_for(kind)
    whole = run(images)
    for rows in ([0], [1, 0], [*range(33)], [32], [5, 5], [*range(32, -1, -1)]):
        found = run(images[rows])
        assert (found.dtype, found.shape) == (np.float32, whole[rows].shape)
        np.testing.assert_allclose(found, whole[rows], rtol=0, atol=2e-6)


def test_colours_have_their_places(written, kind, label):
    images, precision = images_for(kind), parse_label(label)[1]
    swapped = images[..., ::-1]  # not contiguous, as a view of what OpenCV reads
    run, expected = opened(written, kind, label), compute(network(kind), swapped)
    limit = LIMITS[precision]
    assert np.abs(run(swapped) - run(images)).max() > 2 * limit
    np.testing.assert_allclose(run(swapped), expected, rtol=0, atol=limit)


def test_sides_have_their_places(written, label):
    """Images are mirrored, and turned by 180 degrees: of the same shape, but others."""
    run, images = opened(written, "lenet", label), images_for("lenet")
    limit = LIMITS[parse_label(label)[1]]
    for other in (images[:, :, ::-1], images[:, ::-1]):
        found = run(other)
        assert np.abs(found - run(images)).max() > 1e-3
        np.testing.assert_allclose(found, compute(network("lenet"), other), rtol=0, atol=limit)


def test_rows_are_arrays_of_their_own_and_images_stay_as_they_are(written, label):
    run, images = opened(written, "lenet", label), images_for("lenet").copy()
    kept_images, first = images.copy(), run(images)
    kept = first.copy()
    assert not np.array_equal(run(255 - images), kept)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # a caller may write into them
    np.testing.assert_array_equal(run(images), kept)
    np.testing.assert_array_equal(images, kept_images)


def test_threads_may_share_it(written, label):
    run = opened(written, "lenet", label)
    batches = [images_for("lenet")[:number] for number in (1, 2, 3, 33)] * 4
    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, rows in zip(pool.map(run, batches), expected, strict=True):
            np.testing.assert_array_equal(found, rows)


def test_several_are_open_at_once(written, label):
    kinds = list(BUILDERS)
    runs = [opened(written, kind, label, threads=1) for kind in kinds]
    expected = [compute(network(kind), images_for(kind)[:3]) for kind in kinds]
    for _ in range(2):
        for run, kind, rows in zip(runs, kinds, expected, strict=True):
            np.testing.assert_allclose(run(images_for(kind)[:3]), rows, rtol=0, atol=0.15)


@pytest.mark.parametrize("next_size", [1, 33])
def test_too_large_a_batch_leaves_it_usable(next_size, written, monkeypatch):
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    allocate, calls = interpreters.Interpreter.allocate_tensors, []

    def fail_once(self):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        allocate(self)

    monkeypatch.setattr(interpreters.Interpreter, "allocate_tensors", fail_once)
    run, images = opened(written, "lenet", "litert"), images_for("lenet")
    with pytest.raises(RuntimeError, match="no memory"):
        run(images)
    expected = compute(network("lenet"), images)
    np.testing.assert_allclose(run(images[:next_size]), expected[:next_size], atol=1e-5)


# Without anything else

ALONE = """
import sys
import numpy as np
from pathlib import Path
from cvpipe.export.formats import parse_label
from cvpipe.export.operations import forbidden_in, operations_in
from cvpipe.export.running import open_file

images, *pairs = sys.argv[1:]
for label, path in zip(pairs[::2], pairs[1::2], strict=True):
    name, _ = parse_label(label)
    assert not forbidden_in(operations_in(Path(path), name), name)
    print(open_file(Path(path), name, threads=2)(np.load(images)).tobytes().hex())
print({"tensorflow", "keras", "tf2onnx", "cv2"} & set(sys.modules))
"""


def test_other_formats_are_opened_and_looked_into_without_tensorflow(written, tmp_path):
    labels = [p.values[0] for p in installed(WITHOUT_TENSORFLOW) if not p.marks]
    images = images_for("merged")
    np.save(tmp_path / "images.npy", images)
    pairs = [text for label in labels for text in (label, str(written("merged", label)))]
    answer = run_python(ALONE, str(tmp_path / "images.npy"), *pairs)
    *found, modules = answer.stdout.splitlines()
    expected = [opened(written, "merged", label)(images).tobytes().hex() for label in labels]
    assert found == expected
    assert modules == "set()"
    assert answer.stderr == ""


@pytest.mark.parametrize("name", [p.values[0] for p in installed(["litert", "onnx"])])
def test_two_openers_need_nothing_of_cvpipe(name, written):
    """Their text is copied into files that run without it."""
    opener, images = running.OPENERS[name], images_for("lenet")
    namespace = {"np": np, "Compute": Callable[[np.ndarray], np.ndarray]}
    exec(inspect.getsource(opener), namespace)
    image_shape, run = namespace[opener.__name__](str(written("lenet", name)), 1)
    assert image_shape == (20, 14, 3)
    assert all(type(length) is int for length in image_shape)
    np.testing.assert_array_equal(run(images), opened(written, "lenet", name, 1)(images))


# Refusals


@pytest.mark.parametrize(
    ("shape", "dtype", "given"),
    [
        ((2, 14, 20, 3), "uint8", "uint8 of shape (2, 14, 20, 3)"),
        ((2, 20, 14, 3), "float32", "float32 of shape (2, 20, 14, 3)"),
        ((20, 14, 3), "uint8", "uint8 of shape (20, 14, 3)"),
        ((2, 20, 14, 1), "uint8", "uint8 of shape (2, 20, 14, 1)"),
        ((0, 20, 14, 3), "uint8", "uint8 of shape (0, 20, 14, 3)"),
        ((), "uint8", "uint8 of shape ()"),
    ],
)
def test_other_images_are_refused(written, label, shape, dtype, given):
    run = opened(written, "lenet", label)
    message = (
        f"the file takes at least one image, as uint8 of shape (n, 20, 14, 3), but got {given}; "
        "resize images to 20 x 14 pixels (height x width), in RGB."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        run(np.zeros(shape, dtype))


@pytest.mark.parametrize("name", [p.values[0] for p in installed(NETWORK_FORMATS)])
def test_missing_files(name, tmp_path):
    with pytest.raises(InputError, match=r"there is no file '.*nothing'; give the path of an exp"):
        open_file(tmp_path / "nothing", name, 1)


def test_unknown_formats_and_missing_packages(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="unknown format 'onxn'; did you mean 'onnx'"):
        open_file(tmp_path, "onxn", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=r'needs ai-edge-litert, .* install "cvpipe\[litert\]"'):
        open_file(tmp_path, "litert", 1)


def test_a_keras_file_with_code_inside_is_not_opened(tmp_path):
    from cvpipe.models.framework import import_keras

    keras = import_keras()
    images = keras.Input((4, 4, 3), dtype="uint8", name="images")
    outputs = keras.layers.Lambda(lambda x: x[:, 0, 0])(images)
    keras.Model(images, outputs).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="lambda"):
        open_file(tmp_path / "model.keras", "keras", 1)
