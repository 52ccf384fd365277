"""What a network is put to before and after it is trained; see `cvpipe.models.checks`.

Each test costs at most some dozens of steps on a handful of images. None changes the network.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.contender_sections import TrainingSection
from cvpipe.models.checks import (
    Check,
    check_activations,
    check_dead_relus,
    check_gradient,
    check_initial_loss,
    check_overfit,
    check_shuffled_labels,
    check_update_ratios,
    check_weight_decay,
    diagnose_curve,
    diagnose_gap,
)
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import LOGITS_LAYER, initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.probes import (
    activation_statistics,
    dead_relu_shares,
    gradient_error,
    initial_loss,
    nested_models,
    overfit_handful,
    shuffled_labels_accuracy,
)
from cvpipe.models.training import Group, State, decay_of_a_step

if TYPE_CHECKING:
    import keras

NUM_SHUFFLED = 16  # images that learn wrong labels
SHUFFLED_STEPS = 15
HANDFUL_STEPS = 200
PRETRAINED_RATE, SCRATCH_RATE = 3e-4, 3e-3  # of Adam
NUM_GRADIENT_IMAGES, NUM_ENTRIES = 2, 10
# A gradient is checked in double precision; of a larger network that takes too long.
MAX_GRADIENT_WEIGHTS = 1_000_000


def check_before(
    network: "keras.Model",
    groups: Sequence[Group],
    settings: TrainingSection,
    inputs: np.ndarray,
    targets: np.ndarray,
    seed: int,
    pretrained: bool,
) -> list[Check]:
    """Test a network that is about to be trained, on some of its training images.

    A head that was fitted to these images knows their labels; the tests are made with one that
    knows nothing.

    Args:
        network: From inputs to logits; what is to be trained is trainable.
        groups: Its layers as they are to learn.
        settings: How it is to be trained.
        inputs: As the network is fed, shape `(n, ...)`.
        targets: `int32 (n,)`.
        seed: Of what is drawn.
        pretrained: Whether its layers were trained before, so that large steps would break them.
    """
    rate = PRETRAINED_RATE if pretrained else SCRATCH_RATE
    num_classes = network.output_shape[-1]
    loss = build_loss("cross_entropy", num_classes)
    inputs = inputs.astype(network.inputs[0].dtype)
    with ignorant_head(network, seed):
        start = initial_loss(network, loss, inputs, targets)
        checks = [
            check_initial_loss(start, num_classes),
            check_overfit(*overfit_handful(network, loss, inputs, targets, HANDFUL_STEPS, rate)),
        ]
        if settings.weight_decay:
            checks.append(check_weight_decay(*decay_of_a_step(network, groups, settings)))
        if len(inputs) > 2 * NUM_SHUFFLED:
            rng = np.random.default_rng(seed)
            figures = shuffled_labels_accuracy(
                network, loss, inputs, targets, rng, NUM_SHUFFLED, SHUFFLED_STEPS, rate
            )
            checks.append(check_shuffled_labels(*figures))
        if network.count_params() <= MAX_GRADIENT_WEIGHTS:
            few = slice(NUM_GRADIENT_IMAGES)
            rng = np.random.default_rng([seed, 1])
            error = gradient_error(
                network, exact_cross_entropy, inputs[few], targets[few], rng, NUM_ENTRIES
            )
            checks.append(check_gradient(*error))
    return checks


@contextlib.contextmanager
def ignorant_head(network: "keras.Model", seed: int) -> Iterator[None]:
    """Give a network a head whose guesses are all but equal, for the length of a block."""
    head = network.get_layer(LOGITS_LAYER)
    fitted = head.get_weights()
    num_features, num_classes = fitted[0].shape
    head.set_weights(initial_head(num_features, num_classes, seed))
    try:
        yield
    finally:
        head.set_weights(fitted)


def exact_cross_entropy(targets: Any, logits: Any) -> Any:
    """Compute the mean cross-entropy in the precision of the logits."""
    ops = import_keras().ops
    labels = ops.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
    return -ops.mean(ops.sum(labels * ops.log_softmax(logits, axis=-1), axis=-1))


def check_after(
    model: "keras.Model", images: np.ndarray, state: State, num_val: int
) -> list[Check]:
    """Judge a network that was trained, and how its training went.

    Args:
        model: The whole network, from images to logits: of a part, Keras cannot show the layers.
            Nor can it of networks with networks in them, as ConvNeXt; those are not looked into.
        images: Some training images, `uint8 (n, height, width, 3)`.
        state: The training's.
        num_val: How many images its validation figures are of; 0: there are none.
    """
    checks = [check_update_ratios(state.update_ratios)]
    if not nested_models(model):
        checks += [
            check_dead_relus(dead_relu_shares(model, images)),
            check_activations(*activation_statistics(model, images)),
        ]
    checks += [
        diagnose_curve([row.train_loss for row in state.history]),
    ]
    if num_val:
        last = state.history[-1]
        checks.append(diagnose_gap(last.train_accuracy, last.val_accuracy, num_val))
    return checks
