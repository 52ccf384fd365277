"""Run a frozen network over images so that each image's row never depends on the others.

Rows are computed in batches of one fixed size, the last one padded to full size. An
image then gave the same bits at every position, with any neighbours and in several
processes (measured with TensorFlow 2.21 on one model of CPU); a batch of one image was
seen to differ in the last bits. That is what lets a cache be filled in any order.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_tensorflow

if TYPE_CHECKING:
    import keras

BATCH_SIZE = 32


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
    image_shape, dtype = tuple(model.input_shape[1:]), np.dtype(model.inputs[0].dtype)
    batch_shape = (batch_size, *image_shape)

    # XLA is off on purpose: on CPUs it runs depthwise convolutions many times slower.
    @tensorflow.function(
        input_signature=[tensorflow.TensorSpec(batch_shape, dtype)], jit_compile=False
    )
    def compute(batch: object) -> object:
        return model(batch, training=False)

    def embed(images: np.ndarray) -> np.ndarray:
        sizes = [str(size) for size in image_shape]
        if images.shape[1:] != image_shape or images.dtype != dtype:
            raise InputError(
                f"{model.name!r} takes {dtype} images of shape (n, {', '.join(sizes)}), but got "
                f"{images.dtype} of shape {images.shape}; resize them and keep them {dtype}."
            )
        rows = np.empty((len(images), *model.output_shape[1:]), model.outputs[0].dtype)
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            padding = np.zeros((batch_size - len(part), *image_shape), dtype)
            computed = compute(np.concatenate([part, padding])).numpy()
            rows[start : start + batch_size] = computed[: len(part)]
        return rows

    return embed
