"""Run a frozen network over images so that each image's row never depends on the others.

Rows are computed in batches of one fixed size, the last one padded to full size. An image then
gives the same bits at every position, with any neighbours and in several processes. That is what
lets a cache be filled in any order. The size matters: on a processor without AVX-512 TensorFlow
2.21 gave the last images of 30 or 32 other last bits, and those of 24, 36 or 48 the same
(EfficientNet-Lite0, MobileNetV2 and ResNet-50, of 32 to 224 pixels).
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_tensorflow
from cvpipe.models.runtimes import TENSORFLOW, build_run, check_agreement

if TYPE_CHECKING:
    import keras

BATCH_SIZE = 24


def build_embed(
    model: "keras.Model", batch_size: int = BATCH_SIZE
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a network's inference into a function of image arrays.

    Args:
        model: A model with one input, `uint8` images, and one output per image. Weights
            that change later are seen by the function.
        batch_size: Images computed at a time; part of what a result depends on.

    Returns:
        A function from images of shape `(n, height, width, 3)`, any n, to an array of
        shape `(n, *output shape)` in the model's output dtype. It raises `InputError`
        for images of another shape or dtype than the model takes.
    """
    tensorflow = import_tensorflow()
    batch_shape = (batch_size, *model.input_shape[1:])

    # XLA is off on purpose: on CPUs it runs depthwise convolutions many times slower.
    @tensorflow.function(
        input_signature=[tensorflow.TensorSpec(batch_shape, model.inputs[0].dtype)],
        jit_compile=False,
    )
    def compute(batch: object) -> object:
        return model(batch, training=False)

    return in_batches(model, lambda batch: compute(batch).numpy(), batch_size)


def build_frozen_embed(
    model: "keras.Model", runtime: str, precision: str, threads: int, batch_size: int = BATCH_SIZE
) -> Callable[[np.ndarray], np.ndarray]:
    """Make the function of `build_embed` of a network that no longer changes, by any runtime.

    The first batch that it is given is computed by TensorFlow as well, and the two are compared.

    Args:
        model: See `build_embed`.
        runtime: A key of `cvpipe.models.runtimes.RUNTIMES`.
        precision: `"float32"` or `"bfloat16"`.
        threads: Threads that it computes with.
        batch_size: See `build_embed`.

    Raises:
        InputError: The runtime is not installed; or, raised by the function, it does not agree
            with TensorFlow.
    """
    reference = build_embed(model, batch_size)
    if (runtime, precision) == (TENSORFLOW, "float32"):
        return reference
    run = build_run(model, runtime, precision, batch_size, threads)
    agreed = threading.Event()

    def compute(batch: np.ndarray) -> np.ndarray:
        if not agreed.is_set():
            check_agreement(run, reference, batch, runtime, precision)
            agreed.set()
        return run(batch)

    return in_batches(model, compute, batch_size)


def in_batches(
    model: "keras.Model", compute: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function of batches of one size into one of any number of images."""
    image_shape, dtype = tuple(model.input_shape[1:]), np.dtype(model.inputs[0].dtype)
    sizes = ", ".join(str(size) for size in image_shape)

    def embed(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != image_shape or images.dtype != dtype:
            raise InputError(
                f"{model.name!r} takes {dtype} images of shape (n, {sizes}), but got "
                f"{images.dtype} of shape {images.shape}; resize them and keep them {dtype}."
            )
        rows = np.empty((len(images), *model.output_shape[1:]), model.outputs[0].dtype)
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            padding = np.zeros((batch_size - len(part), *image_shape), dtype)
            computed = compute(np.concatenate([part, padding]))
            rows[start : start + batch_size] = computed[: len(part)]
        return rows

    return embed
