"""Train a network: one compiled step in a loop of our own, so that resuming is exact.

All that the next step depends on is stored at the end of every epoch: variables of the network and
of its optimisers, the history, the best weights so far. What an epoch is fed depends on its number
alone. So a run that was killed goes on from the last epoch's end to the same result, bit for bit.
"""

import contextlib
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from cvpipe.contender_sections import TrainingSection
from cvpipe.errors import InputError
from cvpipe.files import atomic_path
from cvpipe.models.checks import ABORT_WINDOW, must_abort
from cvpipe.models.fast_steps import fast_twin
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.mixed_precision import LossScale, half_precision_twin
from cvpipe.models.probes import is_kernel, kernels_of, restored, update_ratios
from cvpipe.models.rate_range import diverged, rates_to_try
from cvpipe.models.schedules import (
    best_epoch,
    plateau_factor,
    rate_factor,
    snapshot_epochs,
    stops_early,
)
from cvpipe.models.twins import copy_variables

if TYPE_CHECKING:
    import keras

Loss = Callable[[Any, Any], Any]
DECAY_OF_CHECK = 0.01  # share of its size by which a kernel is to shrink when that is tested
UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile)


class Feed(Protocol):
    """What a network is trained on."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the inputs and targets of an epoch's batches; the same whenever it is asked for."""


class Group(NamedTuple):
    """Layers that learn at the same rate.

    Attributes:
        layers: Of the network; only their trainable variables change.
        factor: What the learning rate is multiplied by for them.
    """

    layers: Sequence["keras.Layer"]
    factor: float

    def in_network(self, network: "keras.Model") -> "Group":
        """Find the layers of the same names in a twin of their network."""
        return Group([network.get_layer(layer.name) for layer in self.layers], self.factor)


class EpochFacts(NamedTuple):
    """One row of the history.

    Attributes:
        epoch: Counted from 1.
        learning_rate: That of the epoch's last step, before any group's factor.
        train_loss: Mean over the steps, while the network was changing.
        train_accuracy: The same.
        val_loss: At the end; NaN where there is nothing to stop by.
        val_accuracy: The same.
        update_ratio: Median over the kernels of how much the last step changed them, relative
            to their size.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    update_ratio: float


@dataclass
class State:
    """Where a training stands, beside the variables of network and optimisers.

    Attributes:
        history: A row per epoch.
        step_losses: Loss of every step.
        update_ratios: By how much a step changed each kernel, relative to its size: in the
            middle of the first epoch at the full learning rate, or of the last one before it.
        kept: The epoch whose weights are kept, counted from 1.
        best: All variables of the network at its end.
        snapshots: The same at the end of each cycle.
    """

    history: list[EpochFacts] = field(default_factory=list)
    step_losses: list[float] = field(default_factory=list)
    update_ratios: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    best: list[np.ndarray] = field(default_factory=list)
    snapshots: list[list[np.ndarray]] = field(default_factory=list)


class DivergedError(InputError):
    """The loss exploded, so there is nothing to go on with."""


def train(
    network: "keras.Model",
    groups: Sequence[Group],
    loss: Loss,
    feed: Feed,
    settings: TrainingSection,
    *,
    validate: Callable[[], tuple[float, float]] | None = None,
    last_epoch: int | None = None,
    checkpoint: Path | None = None,
    fingerprint: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> State:
    """Train a network in place, and leave it with the best weights that it had.

    Args:
        network: From inputs to logits. Layers that are not trainable stay as they are, their
            statistics included.
        groups: Layers with the factors of their learning rates.
        loss: Mean loss of a batch, of targets and logits.
        feed: What it is trained on.
        settings: How.
        validate: Gives loss and accuracy of images that are not trained on. With early stopping
            the network's best epoch is the one with the smallest such loss; without, or without
            such images, the last one is kept.
        last_epoch: Stop after so many epochs of the schedule; all of them if not given.
        checkpoint: File to go on from, and to write after every epoch.
        fingerprint: What else decides the result, such as the images; a checkpoint of
            another one is not gone on from.
        progress: Told of every epoch.

    Returns:
        The history, the best weights and the snapshots.

    Raises:
        DivergedError: The loss is not finite, or far above where it started.
    """
    learner, scale = network, None
    if settings.mixed_precision:
        learner, scale = half_precision_twin(network), LossScale()
        groups = [group.in_network(learner) for group in groups]
    optimizers = [build_optimizer(settings, group) for group in groups]
    step = compile_step(learner, groups, optimizers, loss, scale)
    wanted = last_epoch or settings.epochs
    key = json.dumps([fingerprint, wanted, settings.model_dump(mode="json")], sort_keys=True)
    variables = [*network.variables, *(v for o in optimizers for v in o.variables)]
    variables += scale.variables if scale else []
    state = State()
    if checkpoint:
        state = _restore(checkpoint, key, variables, len(network.variables)) or state
    copy_variables(network, learner)
    stopping = validate is not None and settings.early_stopping
    cycle_ends = snapshot_epochs(settings.epochs, settings.cycles)
    for number in range(len(state.history), wanted):
        if stopping and stops_early([row.val_loss for row in state.history], settings.patience):
            break
        row = _run_epoch(learner, groups, optimizers, step, feed, settings, number, state)
        with averaged(learner, groups, optimizers, settings):
            copy_variables(learner, network)
            if validate:
                val_loss, val_accuracy = validate()
                row = row._replace(val_loss=val_loss, val_accuracy=val_accuracy)
            weights = [variable.numpy() for variable in network.variables]
        copy_variables(learner, network)  # what the next epoch, or a resumed training, starts from
        state.history.append(row)
        if not stopping or best_epoch([past.val_loss for past in state.history]) == number:
            state.best, state.kept = weights, number + 1
        if settings.schedule == "cyclic" and number + 1 in cycle_ends:
            state.snapshots.append(weights)
        if checkpoint:
            _store(checkpoint, key, variables, state)
        progress(describe_epoch(row, wanted))
    for variable, value in zip(network.variables, state.best, strict=True):
        variable.assign(value)
    return state


@contextlib.contextmanager
def averaged(
    network: "keras.Model",
    groups: Sequence[Group],
    optimizers: Sequence[Any],
    settings: TrainingSection,
) -> Iterator[None]:
    """Give a network the averages of its weights for the length of a block, where there are any.

    References:
        Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, with
        exponential weights.
    """
    if settings.averaging != "ema":
        yield
        return
    with restored(network):
        for optimizer, group in zip(optimizers, groups, strict=True):
            optimizer.finalize_variable_values(variables_of(group))
        yield


def try_rates(
    network: "keras.Model",
    groups: Sequence[Group],
    loss: Loss,
    feed: Feed,
    settings: TrainingSection,
) -> tuple[np.ndarray, np.ndarray]:
    """Raise the learning rate at every step until the loss explodes; the network stays as it was.

    Returns:
        The rates that were tried, and the loss before the step at each: for
        `cvpipe.models.rate_range.suggest_rate`.

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3.
    """
    optimizers = [build_optimizer(settings, group) for group in groups]
    step = compile_step(network, groups, optimizers, loss)
    batches = (batch for epoch in itertools.count() for batch in feed.epoch(epoch))
    rates, losses = rates_to_try(), []
    with restored(network):
        for rate, (inputs, targets) in zip(rates, batches, strict=False):
            for optimizer, group in zip(optimizers, groups, strict=True):
                optimizer.learning_rate.assign(rate * group.factor)
            losses.append(float(step(inputs, targets)[0]))
            if diverged(losses):
                break
    return rates[: len(losses)], np.array(losses)


def decay_of_a_step(
    network: "keras.Model", groups: Sequence[Group], settings: TrainingSection
) -> tuple[float, float]:
    """Measure what a step without a gradient does to the kernels; the network stays as it was.

    Returns:
        By which share of their size they shrank, and learning rate times weight decay.
    """
    rate = min(1.0, DECAY_OF_CHECK / settings.weight_decay)
    with restored(network):
        before = kernels_of(network)
        for group in groups:
            optimizer = build_optimizer(settings, group)
            optimizer.learning_rate.assign(rate)
            variables = variables_of(group)
            optimizer.apply([np.zeros(v.shape, np.float32) for v in variables], variables)
        after = kernels_of(network)
    ratios = update_ratios([*before.values()], [*after.values()], [*before])
    return float(np.nanmedian([*ratios.values()])), rate * settings.weight_decay


def describe_epoch(row: EpochFacts, epochs: int) -> str:
    """Write an epoch as a line for the terminal."""
    text = f"epoch {row.epoch} of {epochs}: loss {row.train_loss:.3f}"
    return text if np.isnan(row.val_loss) else f"{text}, on val {row.val_loss:.3f}"


def build_optimizer(settings: TrainingSection, group: Group) -> Any:
    """Make the optimiser of a group of layers, built for its variables.

    Weight decay is decoupled from the gradient (Loshchilov and Hutter, "Decoupled weight decay
    regularization", ICLR 2019) and touches kernels alone: biases and the scales of normalisations
    are few, and pulling them to zero does harm.
    """
    optimizers = import_keras().optimizers
    rate, decay = settings.learning_rate, settings.weight_decay or None
    momentum = settings.momentum
    average = {"use_ema": settings.averaging == "ema", "ema_momentum": settings.ema_decay}
    common: dict[str, Any] = {"weight_decay": decay, **average}
    makers: dict[str, Callable[[], Any]] = {
        "sgd": lambda: optimizers.SGD(rate, momentum=momentum, **common),
        "nesterov": lambda: optimizers.SGD(rate, momentum=momentum, nesterov=True, **common),
        "rmsprop": lambda: optimizers.RMSprop(rate, **common),
        "adam": lambda: optimizers.Adam(rate, **common),
        "adamw": lambda: optimizers.AdamW(
            rate, **{**common, "weight_decay": settings.weight_decay}
        ),
    }
    optimizer = makers[settings.optimizer]()
    variables = variables_of(group)
    if decay:
        spared = [variable for variable in variables if not is_kernel(variable)]
        optimizer.exclude_from_weight_decay(var_list=spared)
    optimizer.build(variables)
    return optimizer


def variables_of(group: Group) -> list[Any]:
    """List the trainable variables of a group of layers."""
    return [variable for layer in group.layers for variable in layer.trainable_variables]


def compile_step(
    network: "keras.Model",
    groups: Sequence[Group],
    optimizers: Sequence[Any],
    loss: Loss,
    scale: LossScale | None = None,
) -> Callable[[np.ndarray, np.ndarray], Any]:
    """Compile one step: forward, backward, update.

    On processors it goes through `cvpipe.models.fast_steps`, and the layers of the network remember
    that they were called there.

    Args:
        network: From inputs to logits.
        groups: Its layers that learn.
        optimizers: One for each group.
        loss: Mean loss of a batch, of targets and logits.
        scale: Of the loss, where the network computes in half precision.

    Returns:
        Function from inputs and targets to the loss and the number of hits. The loss is NaN when
        the scale has failed.
    """
    tensorflow, keras = import_tensorflow(), import_keras()
    per_group = [variables_of(group) for group in groups]
    trained = [variable for variables in per_group for variable in variables]
    forward = network if scale else fast_twin(network)

    def update(gradients: list[Any]) -> None:
        start = 0
        for optimizer, variables in zip(optimizers, per_group, strict=True):
            optimizer.apply(gradients[start : start + len(variables)], variables)
            start += len(variables)

    # XLA is off on purpose: on CPUs it runs depthwise convolutions many times slower.
    @tensorflow.function(jit_compile=False, reduce_retracing=True)
    def step(inputs: Any, targets: Any) -> Any:
        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in trained])
            # Cached activations are stored in half precision.
            logits = forward(keras.ops.cast(inputs, network.inputs[0].dtype), training=True)
            value = loss(targets, logits)
            scaled = scale.scaled(value) if scale else value
        gradients = tape.gradient(scaled, [variable.value for variable in trained])
        if scale:
            scale.apply(gradients, update)
            value = tensorflow.where(scale.scale < 1, float("nan"), value)
        else:
            update(gradients)
        true = keras.ops.argmax(targets, axis=-1) if len(targets.shape) > 1 else targets
        hits = keras.ops.cast(keras.ops.argmax(logits, axis=-1), "int32") == keras.ops.cast(
            true, "int32"
        )
        return value, keras.ops.sum(keras.ops.cast(hits, "float32"))

    return step


def _run_epoch(
    network: "keras.Model",
    groups: Sequence[Group],
    optimizers: Sequence[Any],
    step: Callable[[np.ndarray, np.ndarray], Any],
    feed: Feed,
    settings: TrainingSection,
    number: int,
    state: State,
) -> EpochFacts:
    """Train one epoch; the validation figures are left open."""
    steps, drop = feed.steps_per_epoch, plateau_drop(settings, state.history)
    losses, hits, num_images, rate = [], 0.0, 0, 0.0
    ratios: dict[str, float] = {}
    for index, (inputs, targets) in enumerate(feed.epoch(number)):
        end = number + (index + 1) / steps
        factor = rate_factor(
            settings.schedule, end, settings.epochs, settings.warmup_epochs, settings.cycles
        )
        rate = settings.learning_rate * drop * factor
        for optimizer, group in zip(optimizers, groups, strict=True):
            optimizer.learning_rate.assign(rate * group.factor)
        # Not the last step, whose rate can be zero; and another one where this is left out.
        measured = index >= steps // 2 and not any(ratios.values())
        before = kernels_of(network) if measured else {}
        value, hit = step(inputs, targets)
        if measured:
            after = kernels_of(network)
            ratios = update_ratios([*before.values()], [*after.values()], [*before])
        losses.append(float(value))
        hits, num_images = hits + float(hit), num_images + len(inputs)
        state.step_losses.append(losses[-1])
        check_step(state.step_losses, settings, network.output_shape[-1])
    if number <= int(settings.warmup_epochs):
        state.update_ratios = ratios
    return EpochFacts(
        epoch=number + 1,
        learning_rate=rate,
        train_loss=float(np.mean(losses)),
        train_accuracy=hits / num_images,
        val_loss=float("nan"),
        val_accuracy=float("nan"),
        update_ratio=float(np.median([*ratios.values()])),
    )


def plateau_drop(settings: TrainingSection, history: Sequence[EpochFacts]) -> float:
    """Compute by what the schedule `"plateau"` has lowered the rate so far; 1 for all others.

    It watches the loss in training: a fit with nothing to stop by must see the same rates.
    """
    if settings.schedule != "plateau":
        return 1.0
    return plateau_factor([row.train_loss for row in history])


def check_step(losses: Sequence[float], settings: TrainingSection, num_classes: int) -> None:
    """Stop a training that explodes.

    Args:
        losses: Of all steps so far.
        settings: Named in the message.
        num_classes: A converged head starts far below the loss of a guess, and may rise to it.

    Raises:
        DivergedError: The loss is not finite, or far above where it started.
    """
    first = max(float(np.mean(losses[:ABORT_WINDOW])), math.log(num_classes))
    reason = must_abort(losses[-ABORT_WINDOW:], first)
    if reason:
        remedy = ", or leave out training.mixed_precision" if settings.mixed_precision else ""
        raise DivergedError(
            f"training was stopped at step {len(losses)}: {reason}; lower training.learning_rate, "
            f"which is {settings.learning_rate:g}, for example to {settings.learning_rate / 10:g}"
            f"{remedy}."
        )


def _store(path: Path, key: str, variables: Sequence[Any], state: State) -> None:
    arrays = {f"variable_{n}": v.numpy() for n, v in enumerate(variables)}
    arrays |= {f"best_{n}": array for n, array in enumerate(state.best)}
    for index, snapshot in enumerate(state.snapshots):
        arrays |= {f"snapshot_{index}_{n}": array for n, array in enumerate(snapshot)}
    arrays["step_losses"] = np.array(state.step_losses)
    facts: dict[str, Any] = {
        "key": key,
        "history": state.history,
        "snapshots": len(state.snapshots),
    }
    facts |= {"update_ratios": state.update_ratios, "kept": state.kept}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)


def _restore(path: Path, key: str, variables: Sequence[Any], count: int) -> State | None:
    """Put a checkpoint's numbers into the variables; None if there is none for this training.

    The first `count` variables are those of the network.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
            facts: Mapping[str, Any] = json.loads(str(arrays.pop("facts")))
    except UNREADABLE:
        return None
    values = [arrays.get(f"variable_{n}") for n in range(len(variables))]
    fits = all(
        value is not None and value.shape == tuple(variable.shape)
        for value, variable in zip(values, variables, strict=True)
    )
    if facts["key"] != key or not fits:
        return None
    for value, variable in zip(values, variables, strict=True):
        variable.assign(value)
    return State(
        history=[EpochFacts(*row) for row in facts["history"]],
        step_losses=arrays["step_losses"].tolist(),
        update_ratios=facts["update_ratios"],
        kept=facts["kept"],
        best=[arrays[f"best_{n}"] for n in range(count)],
        snapshots=[
            [arrays[f"snapshot_{index}_{n}"] for n in range(count)]
            for index in range(facts["snapshots"])
        ],
    )
