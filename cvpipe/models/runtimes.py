"""Run a frozen network through the fastest runtime that is installed, behind one function.

Keras defines and trains a network; to only compute it, other programs are several times as fast
on a CPU. Each gets the same file, a SavedModel written for batches of one fixed size, so that none
depends on how Keras exports to it. (Keras's own export to OpenVINO computes EfficientNets two to
three times slower than OpenVINO does from a SavedModel.)

The table is plain data, and asking whether a runtime is installed imports none of them.
"""

import contextlib
import importlib
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.errors import InputError, check_installed, check_name
from cvpipe.models.framework import import_tensorflow

if TYPE_CHECKING:
    import keras

TENSORFLOW = "tensorflow"
SIGNATURE = "serving_default"
INPUT = "images"
# How far the outputs may be from TensorFlow's, in shares of its largest output.
AGREEMENT_LIMITS = {"float32": 1e-3, "bfloat16": 5e-2}

Compute = Callable[[np.ndarray], list[np.ndarray]]


@dataclass(frozen=True)
class Runtime:
    """A program that computes networks.

    Args:
        description: One line for people.
        packages: Module by distribution: what has to be installed. The first is the runtime.
        extra: The extra of cvpipe that installs them; empty if cvpipe needs them anyway.
        has_bfloat16: Whether it can compute in bfloat16 where the processor can.
        load: Opens a SavedModel; called with its folder, the names of its outputs, threads and
            precision.
    """

    description: str
    packages: Mapping[str, str]
    extra: str
    has_bfloat16: bool
    load: Callable[[str, Sequence[str], int, str], Compute]


def check_runtime(name: str, precision: str = "float32") -> str:
    """Return the name of a runtime if it is installed and has the precision.

    Nothing is imported, so that a pipeline file is checked at once.

    Args:
        name: A key of `RUNTIMES`.
        precision: A key of `AGREEMENT_LIMITS`.

    Raises:
        InputError: The runtime or precision is unknown, a package is missing, or the runtime
            does not have the precision.
    """
    runtime = RUNTIMES[check_name("runtime", name, RUNTIMES)]
    check_name("precision", precision, AGREEMENT_LIMITS)
    if precision == "bfloat16" and not runtime.has_bfloat16:
        able = [other for other, entry in RUNTIMES.items() if entry.has_bfloat16]
        raise InputError(
            f"the runtime {name!r} does not compute in bfloat16; choose precision 'float32', or "
            f"a runtime that does: {able}."
        )
    check_installed(f"the runtime {name!r}", runtime.packages, runtime.extra)
    return name


def runtime_identity(name: str) -> str:
    """Name a runtime and the versions that its results depend on, for cache keys.

    Args:
        name: A key of `RUNTIMES`, installed.

    Returns:
        Such as `"openvino 2026.4.1"`; with what converts networks for it, if that is a package
        of its own: `"onnxruntime 1.32.0, tf2onnx 1.17.0"`.

    Raises:
        InputError: As `check_runtime` raises.
    """
    runtime = RUNTIMES[check_runtime(name)]
    first, *others = map(metadata.version, runtime.packages)
    converters = zip(list(runtime.packages)[1:], others, strict=True)
    return ", ".join([f"{name} {first}", *(f"{package} {v}" for package, v in converters)])


def build_run(
    model: "keras.Model",
    runtime: str,
    precision: str = "float32",
    batch_size: int = 32,
    threads: int = 2,
) -> Callable[[np.ndarray], Any]:
    """Freeze a network as it is now, and open it in a runtime.

    Args:
        model: A model with one input. Weights that change later are not seen.
        runtime: A key of `RUNTIMES`.
        precision: `"float32"`, or `"bfloat16"`: 8 bits of mantissa, twice as fast on processors
            with instructions for it.
        batch_size: Images in each batch; part of what a result depends on.
        threads: Threads that it computes with. TensorFlow has one number for the whole process
            instead, that of `cvpipe.models.framework.set_threads`.

    Returns:
        A function from exactly `batch_size` images, in shape and dtype what the model takes, to
        its output as a `float32` array of shape `(batch_size, *output shape)`; to a list of
        them if the model has several outputs. Threads may share it: it computes one batch at a
        time. It raises `InputError` for images of another shape or dtype.

    Raises:
        InputError: As `check_runtime` raises, or this processor has no bfloat16.
    """
    check_runtime(runtime, precision)
    batch_shape = (batch_size, *model.input_shape[1:])
    dtype = np.dtype(model.inputs[0].dtype)
    outputs = [f"output_{number}" for number in range(len(model.outputs))]
    # On Windows a file that is still mapped into memory cannot be deleted.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _write_saved_model(model, batch_size, folder)
        compute = RUNTIMES[runtime].load(folder, outputs, threads, precision)
    lock, name = threading.Lock(), model.name  # not the model: its weights may leave memory

    def run(images: np.ndarray) -> Any:
        if images.shape != batch_shape or images.dtype != dtype:
            raise InputError(
                f"{name!r} takes batches of {dtype} of shape {batch_shape}, but got "
                f"{images.dtype} of shape {images.shape}; fill the last batch up with zeros."
            )
        with lock:
            arrays = compute(images)
        return arrays[0] if len(arrays) == 1 else arrays

    return run


def agreement(
    run: Callable[[np.ndarray], Any], reference: Callable[[np.ndarray], Any], images: np.ndarray
) -> float:
    """Measure how far one computation of a network is from another.

    Args:
        run: Of `build_run`.
        reference: The same from what is trusted, such as the runtime `"tensorflow"`.
        images: What both take. Photos: noise drives a network out of the range it was made for.

    Returns:
        The largest absolute difference of an output, divided by that output's largest absolute
        value in the reference; of several outputs the worst. 0 is perfect; infinity or not a
        number if shapes differ or something is not finite.
    """
    found, expected = (_as_list(function(images)) for function in (run, reference))
    if [array.shape for array in found] != [array.shape for array in expected]:
        return math.inf
    pairs = zip(found, expected, strict=True)
    return float(np.max([_relative_difference(*pair) for pair in pairs]))


def check_agreement(
    run: Callable[[np.ndarray], Any],
    reference: Callable[[np.ndarray], Any],
    images: np.ndarray,
    runtime: str,
    precision: str = "float32",
) -> float:
    """Return the `agreement` if it is within `AGREEMENT_LIMITS`.

    Args:
        run: Of `build_run`, with this runtime and precision.
        reference: The same from TensorFlow.
        images: What both take.
        runtime: For the message.
        precision: A key of `AGREEMENT_LIMITS`.

    Raises:
        InputError: The outputs differ by more.
    """
    difference, limit = agreement(run, reference, images), AGREEMENT_LIMITS[precision]
    if not difference <= limit:  # so that not a number is refused, too
        remedy = "runtime 'tensorflow'" if precision == "float32" else "precision 'float32'"
        raise InputError(
            f"computed by {runtime!r} in {precision}, the network's outputs differ from "
            f"TensorFlow's by {difference:.1e} of the largest, and {limit:.0e} is allowed; "
            f"choose {remedy} for it."
        )
    return difference


def _as_list(outputs: Any) -> list[np.ndarray]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.abs(found - expected).max()
    scale = np.abs(expected).max()
    if scale == 0:
        return math.inf if difference else 0.0
    return difference / scale


def _write_saved_model(model: "keras.Model", batch_size: int, folder: str) -> None:
    """Write a network with `float32` outputs `output_0`, `output_1`, ... for full batches."""
    tensorflow = import_tensorflow()
    shape = (batch_size, *model.input_shape[1:])
    spec = tensorflow.TensorSpec(shape, model.inputs[0].dtype, name=INPUT)

    @tensorflow.function(input_signature=[spec], jit_compile=False)
    def serve(images: Any) -> dict[str, Any]:
        outputs = tensorflow.nest.flatten(model(images, training=False))
        return {
            f"output_{number}": tensorflow.cast(output, tensorflow.float32)
            for number, output in enumerate(outputs)
        }

    module = tensorflow.Module()
    module.weights = [variable.value for variable in model.variables]  # what hangs on it is stored
    tensorflow.saved_model.save(module, folder, signatures={SIGNATURE: serve})


def _load_tensorflow(folder: str, outputs: Sequence[str], threads: int, precision: str) -> Compute:
    del threads, precision  # the process has one number of threads; float32 is all there is
    tensorflow = import_tensorflow()
    loaded = tensorflow.saved_model.load(folder)

    def compute(images: np.ndarray) -> list[np.ndarray]:
        # Through `loaded`, which alone keeps the weights in memory.
        computed = loaded.signatures[SIGNATURE](**{INPUT: tensorflow.constant(images)})
        return [computed[name].numpy() for name in outputs]

    return compute


def _load_litert(folder: str, outputs: Sequence[str], threads: int, precision: str) -> Compute:
    del precision
    tensorflow = import_tensorflow()
    converter = tensorflow.lite.TFLiteConverter.from_saved_model(folder)
    # Its own operations only: those borrowed from TensorFlow need a library that it lacks.
    converter.target_spec.supported_ops = [tensorflow.lite.OpsSet.TFLITE_BUILTINS]
    litert = importlib.import_module("ai_edge_litert.interpreter")
    content = converter.convert()
    with closed_stderr():
        interpreter = litert.Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    # Asked for here and not kept: while the runner lives, the interpreter refuses to compute.
    runner = interpreter.get_signature_runner(SIGNATURE)
    source = runner.get_input_details()[INPUT]["index"]
    targets = [runner.get_output_details()[name]["index"] for name in outputs]
    del runner

    def compute(images: np.ndarray) -> list[np.ndarray]:
        interpreter.set_tensor(source, images)
        interpreter.invoke()
        return [interpreter.get_tensor(target) for target in targets]

    return compute


def _load_openvino(folder: str, outputs: Sequence[str], threads: int, precision: str) -> Compute:
    core = import_openvino().Core()
    if precision == "bfloat16":
        _check_bfloat16(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Said explicitly: on processors with bfloat16 that is its default.
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        # Bound to the first cores, two processes would share them and leave the others idle.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(folder), "CPU", settings)
    request = compiled.create_infer_request()
    targets = [compiled.output(name) for name in outputs]

    def compute(images: np.ndarray) -> list[np.ndarray]:
        computed = request.infer({INPUT: images}, share_inputs=True)
        return [computed[target] for target in targets]

    return compute


def _load_onnxruntime(folder: str, outputs: Sequence[str], threads: int, precision: str) -> Compute:
    del precision
    tensorflow = import_tensorflow()
    loaded = tensorflow.saved_model.load(folder)
    serve = loaded.signatures[SIGNATURE]
    (spec,) = serve.structured_input_signature[1].values()
    function = tensorflow.function(lambda images: serve(**{INPUT: images}), jit_compile=False)
    tf2onnx = importlib.import_module("tf2onnx.convert")
    network, _ = tf2onnx.from_function(function, [spec])
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(
        network.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(outputs, {INPUT: images})


def import_openvino() -> ModuleType:
    """Import OpenVINO, but not the package with which it reports every import to its maker.

    It asks nobody before it does; it goes without when that package cannot be imported.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _check_bfloat16(capabilities: Sequence[str]) -> None:
    # OpenVINO would imitate it, at less than half of the speed of float32.
    if "BF16" not in capabilities:
        raise InputError(
            "this processor has no instructions for bfloat16, so it would be slower than "
            "float32; choose precision 'float32'."
        )


@contextlib.contextmanager
def closed_stderr() -> Iterator[None]:
    """Drop what LiteRT says about its start, past `sys.stderr`; its errors are exceptions."""
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


RUNTIMES = {
    "tensorflow": Runtime(
        description="TensorFlow: what networks are trained with, always there",
        packages={"tensorflow": "tensorflow"},
        extra="",
        has_bfloat16=False,
        load=_load_tensorflow,
    ),
    "litert": Runtime(
        description="LiteRT (TensorFlow Lite) with XNNPACK: made for phones",
        packages={"ai-edge-litert": "ai_edge_litert"},
        extra="litert",
        has_bfloat16=False,
        load=_load_litert,
    ),
    "openvino": Runtime(
        description="OpenVINO: made for x86 and ARM processors",
        packages={"openvino": "openvino"},
        extra="openvino",
        has_bfloat16=True,
        load=_load_openvino,
    ),
    "onnxruntime": Runtime(
        description="ONNX Runtime: opens networks of many frameworks",
        packages={"onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"},
        extra="onnxruntime",
        has_bfloat16=False,
        load=_load_onnxruntime,
    ),
}
