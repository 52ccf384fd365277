import functools
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models import runtimes
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras
from cvpipe.models.runtimes import (
    RUNTIMES,
    agreement,
    build_run,
    check_agreement,
    check_runtime,
    runtime_identity,
)

ROOT = Path(__file__).parents[2]
SIZE = (40, 56)
BATCH_SIZE = 4
NATIVE_BFLOAT16 = ["FP32", "BF16"]


def is_installed(name):
    return all(importlib.util.find_spec(module) for module in RUNTIMES[name].packages.values())


def installed(*names):
    """The runtimes as parameters; those that are missing are skipped and say what they need."""
    return [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not is_installed(name), reason=f"needs {' and '.join(RUNTIMES[name].packages)}"
            ),
        )
        for name in names
    ]


def run_python(code, *arguments, **environment):
    # Where a level was set, what TensorFlow says at its start is left alone.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TF_CPP")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, check=True, cwd=ROOT, env={**kept, **environment},
    )  # fmt: skip


def build_model(seed=0):
    """Every kind of layer of a mobile network, with statistics that are not 0 and 1."""
    keras = import_keras()
    layers = keras.layers
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((*SIZE, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, 2, "same")(x)))
    x = layers.DepthwiseConv2D(3, 2, "same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.Conv2D(8, 1)(x)])
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs, name="small")
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shapes = [weight.shape for weight in layer.weights]
            layer.set_weights([rng.uniform(0.5, 2.0, shape) for shape in shapes])
    return model


@functools.cache
def build_small_run(name):
    return build_run(build_model(), name, batch_size=BATCH_SIZE)


def build_images():
    return np.random.default_rng(1).integers(0, 256, (BATCH_SIZE, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return build_model()


@pytest.fixture(scope="module")
def images():
    return build_images()


@pytest.fixture(scope="module")
def reference(model, images):
    return model.predict_on_batch(images)


@pytest.fixture(scope="module", params=installed(*RUNTIMES))
def run(request):
    return build_small_run(request.param)


# Computing


def test_every_runtime_agrees_with_keras(run, model, images, reference):
    found = run(images)
    assert (found.dtype, found.shape) == (np.float32, (BATCH_SIZE, 5))
    assert np.ptp(reference, axis=0).min() > 1e-3  # the images do differ
    assert np.abs(found - reference).max() / np.abs(reference).max() < 1e-5
    assert agreement(run, model.predict_on_batch, images) < 1e-5


def test_the_same_batch_gives_the_same_bits_and_an_array_of_its_own(run, images):
    first = run(images)
    kept = first.copy()
    assert not np.array_equal(run(255 - images), kept)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(run(images), kept)


def test_neighbours_and_positions_do_not_change_a_bit(run, images):
    rows = run(images)
    np.testing.assert_array_equal(run(images[::-1])[::-1], rows)
    np.testing.assert_array_equal(run(np.roll(images, 1, axis=0)), np.roll(rows, 1, axis=0))
    alone = np.zeros_like(images)
    alone[2] = images[1]
    np.testing.assert_array_equal(run(alone)[2], rows[1])


def test_threads_may_share_it(run, images):
    batches = [np.roll(images, number, axis=1) for number in range(8)]
    expected = [run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, rows in zip(pool.map(run, batches * 4), expected * 4, strict=True):
            np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize(
    ("shape", "dtype", "given"),
    [
        ((3, *SIZE, 3), "uint8", "uint8 of shape (3, 40, 56, 3)"),
        ((BATCH_SIZE, 56, 40, 3), "uint8", "uint8 of shape (4, 56, 40, 3)"),
        ((BATCH_SIZE, *SIZE, 3), "float32", "float32 of shape (4, 40, 56, 3)"),
    ],
)
def test_other_batches_are_refused(run, shape, dtype, given):
    message = f"'small' takes batches of uint8 of shape (4, 40, 56, 3), but got {given}; fill"
    with pytest.raises(InputError, match=re.escape(message)):
        run(np.zeros(shape, dtype))


def test_tensorflow_gives_the_bits_of_build_embed(model, images):
    found = build_small_run("tensorflow")(images)
    np.testing.assert_array_equal(found, build_embed(model, BATCH_SIZE)(images))


@pytest.fixture
def several():
    """From numbers to twelve outputs; the number of the output is what is added."""
    keras = import_keras()
    inputs = keras.Input((2,))
    scale = keras.layers.Dense(2, kernel_initializer="identity", use_bias=False)
    x = scale(inputs)
    return keras.Model(inputs, [keras.layers.Rescaling(1.0, number)(x) for number in range(12)])


@pytest.mark.parametrize("name", installed(*RUNTIMES))
def test_several_outputs_keep_their_order_and_later_weights_are_not_seen(name, several):
    run = build_run(several, name, batch_size=1, threads=1)
    several.layers[1].set_weights([np.zeros((2, 2))])
    numbers = [[0.5, -3.0]]
    found = run(np.array(numbers, np.float32))
    assert isinstance(found, list)
    assert [array.tolist() for array in found] == [
        [[0.5 + number, -3.0 + number]] for number in range(12)
    ]


FRESH_PROCESS = """
import sys
from cvpipe.models.framework import set_threads
from tests.models.test_runtimes import build_images, build_small_run

set_threads(2)
for name in sys.argv[1:]:
    print(build_small_run(name)(build_images()).tobytes().hex())
"""


def test_another_process_gives_the_same_bits_and_writes_nothing_else(images):
    names = [name for name in RUNTIMES if is_installed(name)]
    expected = [build_small_run(name)(images) for name in names]
    answer = run_python(FRESH_PROCESS, *names)
    assert answer.stdout.split("\n") == [*(array.tobytes().hex() for array in expected), ""]
    assert answer.stderr == ""


def imitates_bfloat16():
    """OpenVINO does with AVX-512 where bfloat16 itself is lacking; with less it takes float32."""
    facts = Path("/proc/cpuinfo")
    return not facts.exists() or "avx512f" in facts.read_text()


@pytest.mark.skipif(not imitates_bfloat16(), reason="without AVX-512 OpenVINO has no bfloat16")
@pytest.mark.parametrize("name", installed("openvino"))
def test_bfloat16_is_near_and_float32_is_not_it(name, model, images, monkeypatch):
    monkeypatch.setattr(runtimes, "_check_bfloat16", lambda capabilities: None)
    half = build_run(model, name, "bfloat16", BATCH_SIZE)
    found = check_agreement(half, model.predict_on_batch, images, name, "bfloat16")
    assert 1e-4 < found < 5e-2
    np.testing.assert_array_equal(half(images[::-1])[::-1], half(images))


def test_bfloat16_needs_a_processor_that_has_it():
    runtimes._check_bfloat16(NATIVE_BFLOAT16)
    with pytest.raises(InputError, match=r"no instructions for bfloat16.* precision 'float32'\."):
        runtimes._check_bfloat16(["FP32", "INT8"])


@pytest.mark.parametrize("name", installed("openvino"))
def test_openvino_reports_to_nobody(name, tmp_path):
    code = (
        "import sys; from cvpipe.models import runtimes; runtimes.import_openvino();"
        "print(sys.modules['openvino_telemetry'], 'openvino_telemetry.main' in sys.modules)"
    )
    answer = run_python(code, HOME=str(tmp_path), CI="")  # in CI it would be silent anyway
    assert (answer.stdout, answer.stderr) == ("None False\n", "")
    assert list(tmp_path.iterdir()) == []


# Agreement


def test_agreement_by_hand():
    expected = [np.array([[1.0, -4.0]]), np.array([[100.0, 0.0]])]
    found = [np.array([[1.0, -3.5]]), np.array([[100.0, 5.0]])]
    images = np.zeros(1)
    assert agreement(lambda _: found, lambda _: expected, images) == 0.5 / 4
    assert agreement(lambda _: found[1], lambda _: expected[1], images) == 5 / 100
    assert agreement(lambda _: expected, lambda _: expected, images) == 0


@pytest.mark.parametrize(
    ("found", "expected", "figure"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 1e-9], [0.0, 0.0], np.inf),
        ([np.nan, 1.0], [1.0, 1.0], np.nan),
        ([np.inf, 1.0], [np.inf, 1.0], np.nan),
        ([1.0], [1.0, 1.0], np.inf),
    ],
)
def test_agreement_of_what_is_not_usual(found, expected, figure):
    arrays = np.array(found), np.array(expected)
    difference = agreement(lambda _: arrays[0], lambda _: arrays[1], np.zeros(1))
    np.testing.assert_equal(difference, figure)
    if figure != 0:
        with pytest.raises(InputError, match="differ from"):
            check_agreement(lambda _: arrays[0], lambda _: arrays[1], np.zeros(1), "litert")


def test_other_weights_do_not_agree(run, images):
    other = build_model(seed=1).predict_on_batch
    message = (
        r"computed by 'litert' in float32, the network's outputs differ from TensorFlow's by "
        r"\d\.\de[+-]\d\d of the largest, and 1e-03 is allowed; choose runtime 'tensorflow' for it"
    )
    with pytest.raises(InputError, match=message):
        check_agreement(run, other, images, "litert")


def test_each_precision_has_its_limit():
    def near(difference):
        return lambda _: np.array([1.0, 2.0 + 2 * difference])

    exact, images = near(0), np.zeros(1)
    assert check_agreement(near(9e-4), exact, images, "openvino") == pytest.approx(9e-4)
    with pytest.raises(InputError, match=r"by 1\.1e-03 of the largest"):
        check_agreement(near(1.1e-3), exact, images, "openvino")
    assert check_agreement(near(0.04), exact, images, "openvino", "bfloat16") < 0.05
    with pytest.raises(InputError, match=r"5e-02 is allowed; choose precision 'float32' for it"):
        check_agreement(near(0.06), exact, images, "openvino", "bfloat16")


# Names and packages


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("litert", "ai-edge-litert"),
        ("openvino", "openvino"),
        ("onnxruntime", "onnxruntime and tf2onnx"),
    ],
)
def test_a_missing_runtime_says_how_to_install_it(name, packages, model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    message = (
        f"the runtime {name!r} needs {packages}, which is not installed; install it with: "
        f'python -m pip install "cvpipe[{name}]"'
    )
    for call in (check_runtime, runtime_identity, lambda name: build_run(model, name)):
        with pytest.raises(InputError, match=re.escape(message)):
            call(name)


def test_only_what_is_missing_is_named(monkeypatch):
    find = {"onnxruntime": "there", "tf2onnx": None}.get
    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(InputError, match="'onnxruntime' needs tf2onnx, which"):
        check_runtime("onnxruntime")


@pytest.mark.parametrize("name", ["tensorflow", "litert", "onnxruntime"])
def test_a_precision_that_a_runtime_lacks(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: "there")
    assert check_runtime(name) == name
    assert check_runtime("openvino", "bfloat16") == "openvino"
    message = rf"{name!r} does not compute in bfloat16; .*'float32', or .*: \['openvino'\]\."
    with pytest.raises(InputError, match=message):
        check_runtime(name, "bfloat16")


def test_unknown_names():
    with pytest.raises(InputError, match="unknown runtime 'openvin'; did you mean 'openvino'"):
        check_runtime("openvin")
    with pytest.raises(InputError, match="unknown precision 'float16'; did you mean"):
        check_runtime("tensorflow", "float16")


def test_identity_has_the_versions_that_matter(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: "there")
    versions = {"ai-edge-litert": "2.3.0", "onnxruntime": "1.32.0", "tf2onnx": "1.17.0"}
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    assert runtime_identity("litert") == "litert 2.3.0"
    assert runtime_identity("onnxruntime") == "onnxruntime 1.32.0, tf2onnx 1.17.0"


def test_checking_imports_no_runtime():
    modules = [module for runtime in RUNTIMES.values() for module in runtime.packages.values()]
    code = (
        "import sys; from cvpipe.errors import InputError; from cvpipe.models import runtimes\n"
        "for name in runtimes.RUNTIMES:\n"
        "    try: runtimes.runtime_identity(name)\n"
        "    except InputError: pass\n"
        f"print({{*{modules}, 'keras'}} & set(sys.modules))"
    )
    assert run_python(code).stdout == "set()\n"
