"""Open exported files as an app would: with the program of each format, and nothing else.

TensorFlow is imported for its own two formats alone. The openers for LiteRT and ONNX use nothing of
cvpipe, so that their source text can stand in a file of its own.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from cvpipe.errors import InputError
from cvpipe.export.formats import KERAS, LITERT, ONNX, OPENVINO, SAVED_MODEL, check_opens
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.runtimes import closed_stderr, import_openvino

Compute = Callable[[np.ndarray], np.ndarray]


def open_file(path: Path, name: str, threads: int) -> Compute:
    """Open an exported network.

    Args:
        path: Of `cvpipe.export.writing.write_file`.
        name: The format, a key of `cvpipe.export.formats.FORMATS`.
        threads: Threads that it computes with. TensorFlow, which computes `"keras"` and
            `"saved_model"`, has one number for the whole process instead, that of
            `cvpipe.models.framework.set_threads`.

    Returns:
        A function from `uint8` images of shape `(n, height, width, 3)`, any n of at least 1, to
        `float32` probabilities of shape `(n, num_classes)`. Threads may share it: it computes one
        batch at a time. It raises `InputError` for images of another shape or dtype.

    Raises:
        InputError: The format is unknown, its packages are missing, or there is no such file.
    """
    check_opens(name)
    if not path.exists():
        raise InputError(f"there is no file {str(path)!r}; give the path of an exported model.")
    with closed_stderr():
        image_shape, compute = OPENERS[name](str(path), threads)
    lock = threading.Lock()

    def run(images: np.ndarray) -> np.ndarray:
        check_images(images, image_shape)
        with lock:
            return compute(images)

    return run


def check_images(images: np.ndarray, image_shape: tuple[int, ...]) -> None:
    """Check a batch of images.

    Args:
        images: What was given.
        image_shape: `(height, width, 3)` of the images that a file takes.

    Raises:
        InputError: They are no `uint8` images of that shape, or there is none.
    """
    if images.dtype != np.uint8 or images.shape[1:] != image_shape or not len(images):
        height, width, channels = image_shape
        raise InputError(
            f"the file takes at least one image, as uint8 of shape (n, {height}, {width}, "
            f"{channels}), but got {images.dtype} of shape {images.shape}; resize images to "
            f"{height} x {width} pixels (height x width), in RGB."
        )


def open_litert(path: str, threads: int) -> tuple[tuple[int, ...], Compute]:
    """Open a LiteRT file; returns the shape of an image, and what computes a batch."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    # Asked for here and not kept: while the runner lives, the interpreter refuses to compute.
    runner = interpreter.get_signature_runner("serving_default")
    source, target = runner.get_input_details()["images"], runner.get_output_details()
    source_index, target_index = source["index"], target["probabilities"]["index"]
    image_shape = tuple(map(int, source["shape"][1:]))
    del runner
    num_images = 1

    def compute(images: np.ndarray) -> np.ndarray:
        nonlocal num_images
        if len(images) != num_images:
            num_images = 0  # of no size, should there not be memory enough
            interpreter.resize_tensor_input(source_index, images.shape, strict=True)
            interpreter.allocate_tensors()
            num_images = len(images)
        interpreter.set_tensor(source_index, images)
        interpreter.invoke()
        return interpreter.get_tensor(target_index)

    return image_shape, compute


def open_onnx(path: str, threads: int) -> tuple[tuple[int, ...], Compute]:
    """Open an ONNX file; returns the shape of an image, and what computes a batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()

    def compute(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"images": images})[0]

    return tuple(source.shape[1:]), compute


def _open_openvino(path: str, threads: int) -> tuple[tuple[int, ...], Compute]:
    core = import_openvino().Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Said explicitly: on processors with bfloat16 that is its default.
        "INFERENCE_PRECISION_HINT": "f32",
        # Bound to the first cores, two processes would share them and leave the others idle.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    source, target = compiled.input("images"), compiled.output("probabilities")
    image_shape = tuple(length.get_length() for length in list(source.partial_shape)[1:])

    def compute(images: np.ndarray) -> np.ndarray:
        return request.infer({source: images}, share_inputs=True)[target]

    return image_shape, compute


def _open_saved_model(path: str, threads: int) -> tuple[tuple[int, ...], Compute]:
    del threads  # the process has one number
    tensorflow = import_tensorflow()
    loaded = tensorflow.saved_model.load(path)
    (spec,) = loaded.signatures["serving_default"].structured_input_signature[1].values()

    def compute(images: np.ndarray) -> np.ndarray:
        # Through `loaded`, which alone keeps the weights in memory.
        computed = loaded.signatures["serving_default"](images=tensorflow.constant(images))
        return computed["probabilities"].numpy()

    return tuple(spec.shape[1:]), compute


def _open_keras(path: str, threads: int) -> tuple[tuple[int, ...], Compute]:
    del threads  # the process has one number
    model = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec(model.input_shape, model.inputs[0].dtype)

    # XLA is off on purpose: on CPUs it runs depthwise convolutions many times slower.
    @tensorflow.function(input_signature=[spec], jit_compile=False)
    def compute_graph(images: object) -> object:
        return model(images, training=False)

    return tuple(model.input_shape[1:]), lambda images: compute_graph(images).numpy()


OPENERS: Mapping[str, Callable[[str, int], tuple[tuple[int, ...], Compute]]] = {
    KERAS: _open_keras,
    SAVED_MODEL: _open_saved_model,
    LITERT: open_litert,
    ONNX: open_onnx,
    OPENVINO: _open_openvino,
}
