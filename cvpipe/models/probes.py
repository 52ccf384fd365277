"""Short experiments with a network, whose numbers `cvpipe.models.checks` judges.

A network here is a functional Keras model from an array to logits `(n, num_classes)`, and a loss
is a function `loss(targets, logits)` that returns the mean as a scalar tensor. Every probe leaves
the network as it was, to the bit, and runs it as at inference: without dropout or augmentation,
and with the running averages of batch normalisation.

Source: CS231n 2017, lectures 3, 6 and 7.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.twins import twin_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Loss = Callable[[np.ndarray, "tf.Tensor"], "tf.Tensor"]

HANDFUL = 10  # images
LEARNED_BY_HEART = 0.01  # loss below which further steps show nothing
PER_CLASS = 2
BATCH_SIZE = 32
PROBED_AT_ONCE = 4
MAX_ROUNDS = 4  # of training on shuffled labels
# Gradients below it count as zero: rounding in float64 makes numeric ones of 1e-9.
GRADIENT_FLOOR = 1e-6
# Half of it is the error that a kink between the two steps can bring into a centred difference.
KINK_TOLERANCE = 1e-2


def initial_loss(
    model: "keras.Model", loss: Loss, inputs: np.ndarray, targets: np.ndarray
) -> float:
    """Measure the loss of a network on one batch.

    Args:
        model: From inputs to logits.
        loss: From targets and logits to a scalar.
        inputs: As `model` takes them, shape `(n, ...)`.
        targets: `int32`, shape `(n,)`.

    Raises:
        InputError: There is no input, not one target for each, or the model gives no logits.
    """
    _check_batch(model, inputs, targets)
    return float(loss(targets, model(inputs, training=False)))


def overfit_handful(
    model: "keras.Model",
    loss: Loss,
    inputs: np.ndarray,
    targets: np.ndarray,
    steps: int = 200,
    learning_rate: float = 3e-3,
) -> tuple[float, float]:
    """Train on a handful of images: at most two of a class and ten in all, the first ones.

    Every step of Adam sees all of them. Nothing regularises. The running averages of batch
    normalisation stand still; where they were never measured, as in a deep network that is new,
    they normalise nothing, and more steps may be needed.

    Args:
        model: From inputs to logits; what is frozen stays frozen.
        loss: From targets and logits to a scalar.
        inputs: As `model` takes them, shape `(n, ...)`.
        targets: `int32`, shape `(n,)`.
        steps: Number of updates.
        learning_rate: Of Adam.

    Returns:
        Loss and accuracy on the handful afterwards, for `checks.check_overfit`.

    Raises:
        InputError: As for `initial_loss`, or nothing in the network can be trained.
    """
    _check_batch(model, inputs, targets)
    handful = _pick_handful(targets)
    inputs, targets = inputs[handful], targets[handful]
    with restored(model):
        _train(model, loss, inputs, targets, steps, learning_rate)
        logits = model(inputs, training=False)
        return float(loss(targets, logits)), _accuracy(logits, targets)


def shuffled_labels_accuracy(
    model: "keras.Model",
    loss: Loss,
    inputs: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    num_train: int = 32,
    steps: int = 200,
    learning_rate: float = 3e-3,
) -> tuple[float, float, int]:
    """Train on shuffled labels of some images and score others with their true labels.

    Images of one class are alike, and so are the guesses for them: where classes are far apart,
    a network may by luck be right on nearly all of them, without any leak. So the labels are
    rotated: in each of up to four rounds, from the same weights, every label is replaced by the
    next class. What was guessed right by luck is then wrong, and over as many rounds as classes
    each guess is right once.

    Args:
        model: From inputs to logits; what is frozen stays frozen.
        loss: From targets and logits to a scalar.
        inputs: As `model` takes them, shape `(n, ...)`.
        targets: `int32`, shape `(n,)`.
        rng: Draws the images to train on and shuffles.
        num_train: Images to train on, all in each step; below `n`. The others are scored.
        steps: Number of updates in each round.
        learning_rate: Of Adam.

    Returns:
        Mean accuracy of the rounds, what a guess reaches at most (the share of the most frequent
        class) and the number of images scored: the arguments of `checks.check_shuffled_labels`.

    Raises:
        InputError: As for `overfit_handful`, or no image is left to train on or to score.
    """
    _check_batch(model, inputs, targets)
    if not 0 < num_train < len(inputs):
        raise InputError(
            f"num_train is {num_train}, but must leave some of the {len(inputs)} images to score; "
            "give more images or train on fewer."
        )
    order = rng.permutation(len(inputs))
    trained, scored = order[:num_train], order[num_train:]
    classes, indices = np.unique(targets, return_inverse=True)
    shuffled = rng.permutation(indices[trained])
    accuracies = []
    for turn in range(min(len(classes), MAX_ROUNDS)):
        rotated = np.roll(classes, -turn)[shuffled]
        with restored(model):
            _train(model, loss, inputs[trained], rotated, steps, learning_rate)
            accuracies.append(_accuracy(_logits(model, inputs[scored]), targets[scored]))
    chance = np.unique(targets[scored], return_counts=True)[1].max() / len(scored)
    return float(np.mean(accuracies)), float(chance), len(scored)


def gradient_error(
    model: "keras.Model",
    loss: Loss,
    inputs: np.ndarray,
    targets: np.ndarray,
    rng: np.random.Generator,
    num_entries: int = 20,
    step: float = 1e-5,
) -> tuple[float, int]:
    """Compare TensorFlow's gradient with centred differences of the loss.

    Both are computed by a copy of the network in `float64`: in `float32` the loss is rounded to
    1e-7, too coarse for a small step. A large step, and every image, brings more kinks of ReLUs
    between the two points; so few images should be given. An entry whose two one-sided
    differences disagree is taken to be at a kink and left out.

    Args:
        model: From inputs to logits. Its own layers must take a `dtype` from their configuration.
        loss: From targets and logits to a scalar, of the type of the logits.
        inputs: As `model` takes them, shape `(n, ...)`; two or three are enough.
        targets: `int32`, shape `(n,)`.
        rng: Draws the entries: the trainable variables take turns, so small ones count, too.
        num_entries: How many are compared.
        step: As a fraction of the root mean square of the variable.

    Returns:
        The largest `|a - n| / max(|a|, |n|, 1e-6)`, NaN if all entries were left out, and how
        many were left out: the arguments of `checks.check_gradient`.

    Raises:
        InputError: As for `overfit_handful`, or the loss rounds to another type than `float64`.

    References:
        CS231n 2017, lecture 3, and its course notes on gradient checks.
    """
    _check_batch(model, inputs, targets)
    _check_trainable(model)
    tensorflow = import_tensorflow()
    double = twin_of(model, lambda _: "float64")
    variables = double.trainable_variables

    @tensorflow.function
    def value() -> "tf.Tensor":
        return loss(targets, double(inputs, training=False))

    with tensorflow.GradientTape() as tape:
        total = value()
    if total.dtype != tensorflow.float64:
        raise InputError(
            f"the loss of float64 logits has type {total.dtype.name}, too coarse for numeric "
            "gradients; let the loss compute in the type of its logits."
        )
    gradients = tape.gradient(total, variables, unconnected_gradients="zero")
    errors = []
    for turn in np.resize(rng.permutation(len(variables)), num_entries):
        analytic = tensorflow.convert_to_tensor(gradients[turn]).numpy().ravel()
        entry = rng.integers(analytic.size)
        below, above = _one_sided_differences(value, variables[turn], entry, step)
        if not _relative_error(below, above) > KINK_TOLERANCE:  # NaN is an error, not a kink
            errors.append(_relative_error(analytic[entry], (below + above) / 2))
    return float(np.max(errors)) if errors else float("nan"), num_entries - len(errors)


def dead_relu_shares(model: "keras.Model", inputs: np.ndarray) -> dict[str, float]:
    """Measure which part of each ReLU's units is zero for all inputs.

    A unit of a convolution is a channel: it is dead when it is zero at every place of every
    image, for all its places share their weights.

    Args:
        model: Flat functional model; each layer is called once.
        inputs: As `model` takes them, shape `(n, ...)`. The more, the fewer seem dead.

    Returns:
        Share by name of the layer, in the order of the network: of layers that are a ReLU and of
        layers that have one as their activation.

    Raises:
        InputError: A model is nested in the model.
    """
    alive: dict[str, Any] = {}
    for name, output in _layer_outputs(model, inputs, _is_relu):
        active = np.any(output != 0, axis=tuple(range(output.ndim - 1)))
        alive[name] = alive.get(name, False) | active
    return {name: float(np.mean(~units)) for name, units in alive.items()}


def activation_statistics(
    model: "keras.Model", inputs: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Measure mean and standard deviation of what each layer with a kernel puts out.

    Args:
        model: Flat functional model; each layer is called once.
        inputs: As `model` takes them, shape `(n, ...)`.

    Returns:
        Means and standard deviations over all inputs, places and channels, by name of the layer,
        in the order of the network: of dense layers and convolutions, after their activation.

    Raises:
        InputError: A model is nested in the model.
    """
    # Number of values, mean, and sum of the squared deviations from it.
    moments: dict[str, tuple[int, float, float]] = {}
    for name, output in _layer_outputs(model, inputs, _has_kernel):
        moments[name] = _add_values(moments.get(name, (0, 0.0, 0.0)), output.astype(np.float64))
    means = {name: float(mean) for name, (_, mean, _) in moments.items()}
    stds = {name: float(np.sqrt(sq / size)) for name, (size, _, sq) in moments.items()}
    return means, stds


def kernels_of(model: "keras.Model") -> dict[str, np.ndarray]:
    """Copy the trainable kernels of a network: the weights of dense layers and convolutions.

    Returns:
        Arrays by path, as `"conv/kernel"`.
    """
    return {
        variable.path: np.array(variable.numpy())
        for variable in model.trainable_variables
        if is_kernel(variable)
    }


def update_ratios(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], names: Sequence[str]
) -> dict[str, float]:
    """Measure how far each kernel moved, relative to its size.

    Args:
        before: Kernels before an update.
        after: The same kernels after it.
        names: One for each.

    Returns:
        `norm(after - before) / norm(before)` by name; not finite for a kernel of zeros.

    Raises:
        InputError: The three differ in length, or a kernel in shape.

    References:
        CS231n 2017, lecture 6.
    """
    shapes = [[np.shape(kernel) for kernel in kernels] for kernels in (before, after)]
    if shapes[0] != shapes[1] or len(before) != len(names):
        raise InputError(
            f"kernels of the shapes {shapes[0]} and {shapes[1]} with {len(names)} names cannot be "
            "compared; give the same kernels before and after, and one name for each."
        )
    ratios = {}
    for name, old, new in zip(names, before, after, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios[name] = float(_norm(np.subtract(new, old, dtype=np.float64)) / _norm(old))
    return ratios


def _check_batch(model: "keras.Model", inputs: np.ndarray, targets: np.ndarray) -> None:
    if not len(inputs) or len(inputs) != len(targets):
        raise InputError(
            f"there are {len(inputs)} inputs and {len(targets)} targets; give one target for each "
            "input, and at least one."
        )
    if len(model.output_shape) != 2:
        raise InputError(
            f"the model's output has the shape {model.output_shape}, not (n, num_classes); give "
            "the model from inputs to logits."
        )


def _check_trainable(model: "keras.Model") -> None:
    if not model.trainable_variables:
        raise InputError("every layer is frozen, so nothing can be learned; unfreeze the head.")


def _pick_handful(targets: np.ndarray) -> np.ndarray:
    """Return the indices of the first image of every class, then of the second, ten at most."""
    ranks = np.array([np.sum(targets[:i] == target) for i, target in enumerate(targets)])
    order = np.argsort(ranks, kind="stable")
    return order[ranks[order] < PER_CLASS][:HANDFUL]


@contextlib.contextmanager
def restored(model: "keras.Model") -> Iterator[None]:
    """Put all variables back at the end.

    A clone would have to be told what each layer keeps beside its variables: `Normalization`
    computes with copies of them.
    """
    saved = [np.array(variable.numpy()) for variable in model.variables]
    try:
        yield
    finally:
        for variable, array in zip(model.variables, saved, strict=True):
            variable.assign(array)


def _train(
    model: "keras.Model",
    loss: Loss,
    inputs: np.ndarray,
    targets: np.ndarray,
    steps: int,
    learning_rate: float,
) -> None:
    """Let Adam take steps on one batch, with every source of randomness off."""
    _check_trainable(model)
    keras, tensorflow = import_keras(), import_tensorflow()
    variables = model.trainable_variables
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)  # its variables cannot be made inside the graph

    @tensorflow.function
    def update() -> Any:
        with tensorflow.GradientTape() as tape:
            total = loss(targets, model(inputs, training=False))
        gradients = tape.gradient(total, variables, unconnected_gradients="zero")
        optimizer.apply(gradients, variables)
        return total

    for _ in range(steps):
        if float(update()) < LEARNED_BY_HEART:
            return


def _logits(model: "keras.Model", inputs: np.ndarray) -> np.ndarray:
    return np.concatenate([model(batch, training=False).numpy() for batch in _batches(inputs)])


def _batches(inputs: np.ndarray, size: int = BATCH_SIZE) -> Iterator[np.ndarray]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def _accuracy(logits: "np.ndarray | tf.Tensor", targets: np.ndarray) -> float:
    return float(np.mean(np.argmax(logits, axis=1) == targets))


def _one_sided_differences(
    value: Callable[[], "tf.Tensor"], variable: "keras.Variable", entry: int, step: float
) -> tuple[float, float]:
    """Return the slopes of the loss below and above an entry, which is put back."""
    original = np.array(variable.numpy())
    width = step * (np.sqrt(np.mean(original**2)) or 1.0)
    losses = []
    for shift in (-width, 0.0, width):
        shifted = original.copy()
        shifted.flat[entry] += shift
        variable.assign(shifted)
        losses.append(float(value()))
    variable.assign(original)
    return (losses[1] - losses[0]) / width, (losses[2] - losses[1]) / width


def _relative_error(one: float, other: float) -> float:
    return abs(one - other) / max(abs(one), abs(other), GRADIENT_FLOOR)


def _norm(array: np.ndarray) -> np.floating:
    return np.sqrt(np.sum(np.square(array, dtype=np.float64)))


def nested_models(model: "keras.Model") -> list[str]:
    """Name the models that are layers of a model; the layers of those cannot be seen."""
    return [layer.name for layer in model.layers if isinstance(layer, import_keras().Model)]


def _layer_outputs(
    model: "keras.Model", inputs: np.ndarray, is_wanted: Callable[["keras.Layer"], bool]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and outputs of the wanted layers, batch by batch."""
    keras = import_keras()
    nested = nested_models(model)
    if nested:
        raise InputError(
            f"the models {nested} are nested in the model, so their layers cannot be seen; "
            "build one flat graph."
        )
    layers = [layer for layer in model.layers if is_wanted(layer)]
    if not layers:
        return
    probe = keras.Model(model.input, [layer.output for layer in layers])
    # Few at a time: all these outputs are in memory together.
    for batch in _batches(inputs, PROBED_AT_ONCE):
        for layer, output in zip(layers, probe(batch, training=False), strict=True):
            yield layer.name, output.numpy()


def _add_values(moments: tuple[int, float, float], values: np.ndarray) -> tuple[int, float, float]:
    """Merge values into a count, a mean and a sum of squared deviations, without cancellation.

    References:
        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances", 1979.
    """
    size, mean, squares = moments
    total = size + values.size
    with np.errstate(invalid="ignore"):  # exploded values are a finding, and become NaN
        step = values.mean() - mean
        squares += values.var() * values.size + step**2 * size * values.size / total
    return total, mean + step * values.size / total, squares


def _is_relu(layer: "keras.Layer") -> bool:
    keras = import_keras()
    if isinstance(layer, keras.layers.ReLU):
        return not layer.negative_slope  # a leaky one cannot die
    relus = (keras.activations.relu, keras.activations.relu6)
    return getattr(layer, "activation", None) in relus


def is_kernel(variable: "keras.Variable") -> bool:
    """Tell whether inputs are multiplied by a variable, which is no bias and no scale then."""
    return variable.name.endswith("kernel")  # also "depthwise_kernel" and "pointwise_kernel"


def _has_kernel(layer: "keras.Layer") -> bool:
    return any(is_kernel(variable) for variable in layer.weights)
