"""Train in half precision on a graphics processor, and keep the float32 network in step with it.

A twin of the network computes in float16, on copies of the weights in float32, as Micikevicius et
al. propose ("Mixed precision training", ICLR 2018). What is validated, stored and handed on is the
network itself, in float32 from end to end; it takes over the twin's weights after every epoch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.heads import LOGITS_LAYER
from cvpipe.models.twins import twin_of

if TYPE_CHECKING:
    import keras

POLICY = "mixed_float16"
FIRST_SCALE, LARGEST_SCALE = 2.0**15, 2.0**24
STEPS_TO_GROW = 2_000  # in a row without an overflow, before a larger scale is tried


def half_precision_twin(network: "keras.Model") -> "keras.Model":
    """Copy a network into one that computes in half precision and has weights of its own.

    Layers that scale grey levels stay in float32, which 16 bits would round, and so does the head,
    whose logits go into a loss.

    Args:
        network: A functional model with a head; layers keep their names.

    Returns:
        A model of the same layers, with equal variables of `float32`.
    """
    layers = import_keras().layers
    exact = (layers.Rescaling, layers.Normalization)

    def dtype_of(layer: Any) -> str:
        return "float32" if isinstance(layer, exact) or layer.name == LOGITS_LAYER else POLICY

    return twin_of(network, dtype_of)


class LossScale:
    """Keeps small gradients from vanishing in half precision.

    The loss is multiplied by a large number and the gradients are divided by it. After an
    overflow the step is left out and the number halved; it doubles when there was none for long.
    Below 1 it has failed: the gradients themselves are too large, or no numbers.

    Attributes:
        variables: The number, and how many steps in a row went well: what the next step
            depends on.
    """

    def __init__(self) -> None:
        tensorflow = import_tensorflow()
        self.scale = tensorflow.Variable(FIRST_SCALE, trainable=False)
        self.good_steps = tensorflow.Variable(0, trainable=False)
        self.variables = [self.scale, self.good_steps]

    def scaled(self, loss: Any) -> Any:
        """Multiply a loss by the scale."""
        return loss * self.scale

    def apply(self, gradients: Sequence[Any], update: Callable[[list[Any]], None]) -> None:
        """Undo the scale, and update if all gradients are finite; called inside a compiled step.

        Args:
            gradients: Of the scaled loss.
            update: Given the gradients of the loss itself.
        """
        tensorflow = import_tensorflow()
        unscaled = [gradient / self.scale for gradient in gradients]
        finite = tensorflow.reduce_all(
            [tensorflow.reduce_all(tensorflow.math.is_finite(g)) for g in unscaled]
        )

        def go_on() -> None:
            update(unscaled)
            grows = self.good_steps + 1 >= STEPS_TO_GROW
            larger = tensorflow.minimum(self.scale * 2, LARGEST_SCALE)
            self.scale.assign(tensorflow.where(grows, larger, self.scale))
            self.good_steps.assign(tensorflow.where(grows, 0, self.good_steps + 1))

        def fall_back() -> None:
            self.scale.assign(self.scale / 2)
            self.good_steps.assign(0)

        tensorflow.cond(finite, go_on, fall_back)
