"""The one place where TensorFlow and Keras are imported.

Importing them takes seconds, so it happens on first use: every other module of
`cvpipe.models` calls `import_keras` or `import_tensorflow` inside its functions. What
has to be settled before the first import is settled here: Keras's backend, the number
format, the axis order and how much TensorFlow writes to the terminal.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType

from cvpipe.errors import InputError

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def import_keras() -> ModuleType:
    """Import Keras on TensorFlow, in float32 and with the channels last.

    The network's layout must not depend on the user's `keras.json`, so both are set on
    every call. TensorFlow's notes to the terminal are dropped unless the environment
    variable `TF_CPP_MIN_LOG_LEVEL` is set.

    Returns:
        The module `keras`.

    Raises:
        InputError: Keras was already imported with another backend.
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"
        with _quiet_import():
            import keras
    else:
        import keras
    backend = keras.config.backend()
    if backend != "tensorflow":
        raise InputError(
            f"Keras is already imported with the backend {backend!r}, but cvpipe needs "
            "'tensorflow'; set KERAS_BACKEND=tensorflow before keras is first imported."
        )
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    return keras


def import_tensorflow() -> ModuleType:
    """Import TensorFlow under the settings of `import_keras`."""
    import_keras()
    import tensorflow

    # It warns of repeated tracing when several networks are compiled, each of them once.
    tensorflow.get_logger().setLevel("ERROR")
    # Ten bits of mantissa are not float32, and parity with other runtimes would be lost.
    tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    return tensorflow


def list_devices() -> list[str]:
    """List what TensorFlow computes on: `CPU:0`, `GPU:0`."""
    devices = import_tensorflow().config.list_physical_devices()
    return [device.name.removeprefix("/physical_device:") for device in devices]


def has_gpu() -> bool:
    """Tell whether TensorFlow computes on a graphics processor."""
    return any(device.startswith("GPU") for device in list_devices())


def set_threads(num_threads: int) -> None:
    """Fix how many threads TensorFlow computes with.

    The number changes the order of summation and with it the last bits of results, so
    it belongs to the configuration. TensorFlow accepts it only until the first
    computation; later calls with the same number do nothing.

    Args:
        num_threads: Threads inside one operation, and operations at a time; at least 1.

    Raises:
        InputError: The number is below 1, or TensorFlow already computes with another.
    """
    if num_threads < 1:
        raise InputError(f"num_threads must be at least 1, not {num_threads}.")
    threading = import_tensorflow().config.threading
    try:
        threading.set_intra_op_parallelism_threads(num_threads)
        threading.set_inter_op_parallelism_threads(num_threads)
    except RuntimeError as error:
        current = threading.get_intra_op_parallelism_threads() or "all"
        raise InputError(
            f"cannot set {num_threads} threads: TensorFlow already computes with {current} "
            f"threads; use that number (threads = {current} in the pipeline), set it before the "
            "first computation, or start a new process."
        ) from error


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep TensorFlow's start-up notes off the terminal, unless the import fails.

    Its shared libraries write them before they read any log level, and past
    `sys.stderr`, so the file descriptor itself is set aside for the import.
    """
    if LOG_LEVEL in os.environ:
        yield
        return
    os.environ[LOG_LEVEL] = "3"
    with tempfile.TemporaryFile() as notes:
        stderr = os.dup(2)
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(stderr, notes.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
