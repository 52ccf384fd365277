"""Train the networks of contenders: fine-tuned ones from the freeze boundary, others on images.

A part of such a contender holds `model.keras`, `history.csv`, `checks.json` and, until it is
done, `checkpoint/training-<number>.npz`, from which an interrupted training goes on.
"""

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.cache import MappedRows, cache_root, max_bytes
from cvpipe.classifiers.search import FittedClassifier, linear_head
from cvpipe.contender_sections import NetworkContender, TrainingSection
from cvpipe.data.images import decode_rule
from cvpipe.data.loading import Loader
from cvpipe.data.normalise import PixelStatistics, measure_pixels
from cvpipe.data.pixels import choose_source, decoded_pixels
from cvpipe.data.splits import assign_splits, nested_subset
from cvpipe.errors import InputError
from cvpipe.files import atomic_path, write_json, write_table
from cvpipe.models.backbones import (
    BACKBONES,
    BackboneSpec,
    build_backbone,
    weights_fingerprint,
)
from cvpipe.models.checks import Check, as_dicts
from cvpipe.models.features import BATCH_SIZE, build_embed, build_frozen_embed
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import has_gpu, set_threads
from cvpipe.models.heads import attach_linear_head, head_weights, initial_head
from cvpipe.models.losses import balanced_order, balanced_weights, build_loss, log_priors
from cvpipe.models.merging import share_trunk
from cvpipe.models.self_checks import check_after, check_before
from cvpipe.models.training import EpochFacts, State, train, try_rates
from cvpipe.models.transfer import (
    attach_trainable_head,
    freeze_point,
    learning_groups,
    part_network,
    unfreeze,
)
from cvpipe.stages.features import (
    Describer,
    ImageFiles,
    files_of,
    load_embed,
    network_space,
    setup_of,
)
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import backbone_spec, probe_feature
from cvpipe.stages.views import ViewMaker, axes_of, boundary_activations, view_features

CHECKPOINT = Path("checkpoint/training.npz")
STOPPING_FRACTION = 1 / 7  # of a fold's train rows
NUM_CHECKED = 64  # images that the checks look at
Inputs = np.ndarray | MappedRows


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network that was trained.

    Attributes:
        model: From `uint8` images to probabilities.
        state: How it was trained.
        checks: What it noticed about itself.
        head: How the linear head was fitted that it started with; empty from scratch.
        rates: Learning rates that were tried before, and the loss at each.
    """

    model: Any
    state: State
    checks: list[tuple[str, Check]]
    head: FittedClassifier | None
    rates: tuple[np.ndarray, np.ndarray] | None = None


class BoundaryFeed:
    """Batches of cached activations; epoch e sees view e, over and over through the views."""

    def __init__(
        self,
        views: Sequence[Inputs],
        targets: np.ndarray,
        batch_size: int,
        order: Callable[[int], np.ndarray],
    ) -> None:
        self.views = views
        self.targets = targets
        self.batch_size = batch_size
        self.order = order

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.targets) // self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the activations and targets of an epoch's batches."""
        rows, order = self.views[number % len(self.views)], self.order(number)
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            yield np.stack([rows[position] for position in some.tolist()]), self.targets[some]


class LoaderFeed:
    """Batches of images, loaded and augmented anew in every epoch."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.loader.batches_per_epoch

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the images and targets of an epoch's batches."""
        for batch in self.loader.batches(number + 1, first_epoch=number):
            yield batch.images, batch.targets


def divide_for_stopping(job: Job, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Set some groups of a fold's train rows aside to stop by: a seventh of each class.

    Of classes with few groups less, or none.
    """
    targets = frames.targets_of(rows["label"], job.run.class_names())
    key = f"{job.config.seed} stopping"
    stopping = nested_subset(targets, rows["group"].tolist(), STOPPING_FRACTION, key)
    return rows[~stopping].reset_index(drop=True), rows[stopping].reset_index(drop=True)


def fit_network(
    job: Job,
    contender: NetworkContender,
    rows: pd.DataFrame,
    head: FittedClassifier | None,
    stopping: pd.DataFrame | None,
    last_epoch: int | None = None,
    checkpoint: Path | None = None,
    checked: bool = False,
) -> TrainedNetwork:
    """Train the network of a contender, or the several that its answer is the mean of.

    Args:
        job: The run.
        contender: Whose network.
        rows: Manifest rows to train on, with `sha256`.
        head: The linear head that a pretrained network starts with, fitted on its features.
        stopping: Rows by whose loss the best epoch is found; without any the last one is kept.
        last_epoch: Stop after so many epochs.
        checkpoint: File to go on from.
        checked: Whether the network is put to the tests of `cvpipe.models.self_checks`, which
            take about as long as some epochs.
    """
    set_threads(job.config.threads)
    settings = contender.training
    number = settings.num_trainings
    parts = [rows] * number
    if settings.averaging == "folds":
        parts = leave_parts_out(rows, job.run.class_names(), number, job.config.seed)
    checks: list[tuple[str, Check]] = []
    rates, states = None, []
    for index, part in enumerate(parts):
        last = train_once(
            job,
            contender,
            part,
            head,
            stopping,
            index,
            last_epoch=last_epoch // number if last_epoch else None,
            checkpoint=checkpoint and checkpoint.with_stem(f"{checkpoint.stem}-{index}"),
            checked=checked and not index,
        )
        states.append(last.state)
        checks, rates = checks or last.checks, rates or last.rates
    model = finish(contender, last, states)
    return TrainedNetwork(model, join_states(states), checks, head, rates)


@dataclass(frozen=True, eq=False)
class Training:
    """One training of a network.

    Attributes:
        backbone: From images to features.
        model: From images to logits, as it was left; it shares the layers of the backbone.
        trunk: Its frozen part, from images to activations; `None` where nothing is frozen.
        tail: What was trained, from these to logits.
        state: How.
        checks: What it noticed about itself.
        rates: Learning rates that were tried before, and the loss at each.
    """

    backbone: Any
    model: Any
    trunk: Any
    tail: Any
    state: State
    checks: list[tuple[str, Check]]
    rates: tuple[np.ndarray, np.ndarray] | None


def train_once(
    job: Job,
    contender: NetworkContender,
    rows: pd.DataFrame,
    head: FittedClassifier | None,
    stopping: pd.DataFrame | None,
    number: int,
    *,
    last_epoch: int | None,
    checkpoint: Path | None,
    checked: bool,
) -> Training:
    """Train a network once.

    Args:
        job: See `fit_network`.
        contender: See there.
        rows: See there.
        head: See there.
        stopping: See there.
        number: Of the training; others start from the same pretrained weights, and draw what is
            random anew, but for the views that are kept of each image.
        last_epoch: See there.
        checkpoint: See there.
        checked: See there.
    """
    spec, settings = backbone_spec(contender), one_training(contender.training)
    class_names, seed = job.run.class_names(), seed_of(job.config.seed, number)
    targets = frames.targets_of(rows["label"], class_names)
    files = files_of(job.root, rows)
    maker = make_views(job, spec, files)
    backbone, model = initial_network(job, contender, maker, files, targets, head, seed)
    initial = head_weights(model)
    point = freeze_point(spec, contender.freeze) if contender.recipe == "fine_tune" else ""
    prepare = Preparation(job, contender, spec, maker, model, point)
    feed = prepare.feed(files, targets, seed)
    network = prepare.tail
    layers = unfreeze(network, norms=contender.recipe == "from_scratch")
    groups = learning_groups(layers, settings.backbone_rate if head else 1.0)
    loss = training_loss(contender, targets, len(class_names))
    validate = None
    if stopping is not None and len(stopping):
        stop_targets = frames.targets_of(stopping["label"], class_names)
        inputs = prepare.plain(files_of(job.root, stopping))
        validate = validation(network, inputs, stop_targets)
    checks: list[tuple[str, Check]] = []
    positions = sample_positions(targets, seed)
    if checked:
        inputs = prepare.plain(files.take(positions))
        sample = np.stack([inputs[n] for n in range(len(positions))]), targets[positions]
        found = check_before(network, groups, settings, *sample, seed, head is not None)
        checks += [("before", check) for check in found]
    if checked and settings.mixed_precision and not has_gpu():
        job.watcher.say(
            f"  {contender.name} has training.mixed_precision, which makes training slower without "
            "a graphics processor; leave it out on this machine"
        )
    rates = None
    if checked and settings.rate_test:
        rates = try_rates(network, groups, loss, feed, settings)
    several = contender.training.num_trainings
    which = f"{number + 1} of {several}, " if several > 1 else ""
    state = train(
        network,
        groups,
        loss,
        feed,
        settings,
        validate=validate,
        last_epoch=last_epoch,
        checkpoint=checkpoint,
        fingerprint=fingerprint_of(job, contender, maker, rows, stopping, seed, *initial),
        progress=lambda text: job.watcher.say(f"  {which}{text}"),
    )
    if checked:
        images = np.concatenate(list(maker.batches(files.take(positions), 0)))
        num_val = len(stopping) if stopping is not None else 0
        checks += [("after", c) for c in check_after(model, images, state, num_val)]
    return Training(backbone, model, prepare.trunk, network, state, checks, rates)


def one_training(settings: TrainingSection) -> TrainingSection:
    """Give one of several trainings its share of the epochs."""
    return settings.model_copy(update={"epochs": settings.epochs // settings.num_trainings})


def seed_of(seed: int, number: int) -> int:
    """Derive the seed of a training; the first one has the seed itself."""
    return int(np.random.default_rng([seed, number]).integers(2**31)) if number else seed


def leave_parts_out(
    rows: pd.DataFrame, class_names: Sequence[str], number: int, seed: int
) -> list[pd.DataFrame]:
    """Divide rows into parts of whole groups; give, for each of them, all rows of the others."""
    targets = frames.targets_of(rows["label"], class_names)
    fractions = {str(part): 1 / number for part in range(number)}
    part = assign_splits(targets, rows["group"].tolist(), fractions, f"{seed} members")
    return [rows[part != name].reset_index(drop=True) for name in fractions]


def finish(contender: NetworkContender, last: Training, states: Sequence[State]) -> Any:
    """Make the network that a contender answers with: from images to probabilities.

    Args:
        contender: Whose.
        last: The last training, whose layers hold its weights.
        states: Of all trainings.
    """
    averaging, members = contender.training.averaging, contender.training.members
    weights = [state.best for state in states]
    if averaging == "snapshots":
        weights = states[0].snapshots[-members:]
    if averaging == "soup":
        for variable, values in zip(last.tail.variables, zip(*weights, strict=True), strict=True):
            variable.assign(np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype))
    if averaging in ("none", "ema", "soup"):
        whole = attach_linear_head(last.backbone, *head_weights(last.model), contender.name)
    else:
        whole = share_trunk(last.trunk, last.tail, weights, contender.name)
    return fold_norms(whole)


def join_states(states: Sequence[State]) -> State:
    """Tell of several trainings, one after the other, as of one."""
    history: list[EpochFacts] = []
    for state in states:
        history += [row._replace(epoch=len(history) + row.epoch) for row in state.history]
    return replace(
        states[0],
        history=history,
        step_losses=[loss for state in states for loss in state.step_losses],
        kept=sum(state.kept for state in states),
    )


def initial_network(
    job: Job,
    contender: NetworkContender,
    maker: ViewMaker,
    files: ImageFiles,
    targets: np.ndarray,
    head: FittedClassifier | None,
    seed: int,
) -> tuple[Any, Any]:
    """Build the network that a training starts from; the seed is that of the training.

    Returns:
        The backbone, and the model from images to logits that shares its layers.
    """
    spec = backbone_spec(contender)
    settings, num_classes = contender.training, len(job.run.class_names())
    if head:
        backbone = build_backbone(spec)
        kernel, bias = linear_head(head.estimator, num_classes)
        if settings.logit_adjustment:  # which is added in training, and was not in this fit
            bias = bias - log_priors(targets, num_classes, settings.logit_adjustment)
    else:
        facts = {} if BACKBONES[spec.name].preprocessing else pixel_facts(maker, files)
        backbone = build_backbone(spec, seed=seed, statistics=facts)
        kernel, bias = initial_head(backbone.output_shape[-1], num_classes, seed)
    model = attach_trainable_head(
        backbone, kernel, bias, dropout=settings.dropout, seed=seed % 2**31
    )
    return backbone, model


class Preparation:
    """How images become what a network in training is fed.

    Attributes:
        tail: The part that is trained, from what it is fed to logits.
    """

    def __init__(
        self,
        job: Job,
        contender: NetworkContender,
        spec: BackboneSpec,
        maker: ViewMaker,
        model: Any,
        point: str,
    ) -> None:
        self.job = job
        self.contender = contender
        self.spec = spec
        self.maker = maker
        self.point = point
        self.trunk: Any = None
        self.tail = model
        if point:
            self.trunk, self.tail = part_network(spec, model, point)

    def feed(self, files: ImageFiles, targets: np.ndarray, seed: int) -> BoundaryFeed | LoaderFeed:
        """Make what the network is trained on, in an order that the seed decides."""
        settings = self.contender.training
        order = functools.partial(epoch_order, targets, settings.sampling, seed)
        if self.point:
            self.check_room(len(targets))
            views = [self.activations(files, view) for view in range(self.contender.views)]
            return BoundaryFeed(views, targets, settings.batch_size, order)
        source, said = choose_source(
            files.paths,
            files.sha256s,
            self.maker.image_size,
            self.maker.augment,
            self.maker.rule,
            self.maker.threads,
            cache_root(),
            functools.partial(self.job.watcher.track, title="decode"),
        )
        self.job.watcher.say(f"  {said}")
        return LoaderFeed(
            Loader(
                source,
                files.image_ids,
                targets,
                self.maker.image_size,
                self.maker.augment,
                fit=self.maker.rule.fit,
                batch_size=settings.batch_size,
                seed=seed,
                threads=self.maker.threads,
                num_classes=len(self.job.run.class_names()),
                colour_axes=self.maker.colour_axes,
                order=order,
            )
        )

    def check_room(self, num_images: int) -> None:
        """Refuse a freeze point whose activations would fill the cache.

        Raises:
            InputError: They would.
        """
        shape, views = self.trunk.output_shape[1:], self.contender.views
        needed = num_images * views * math.prod(shape) * 2  # bytes of half precision
        if needed > max_bytes():
            raise InputError(
                f"the activations of contender {self.contender.name!r} at {self.point!r} would "
                f"take {needed / 1e9:.1f} GB, more than the cache's bound of "
                f"{max_bytes() / 1e9:.1f} GB; freeze up to a later place, keep fewer views, or "
                "raise the environment variable CVPIPE_CACHE_BYTES."
            )

    @functools.cached_property
    def run_trunk(self) -> Callable[[np.ndarray], np.ndarray]:
        """Function from images to activations at the freeze point."""
        setup = setup_of(self.job.config)
        return build_frozen_embed(
            fold_norms(self.trunk), setup.runtime, setup.precision, setup.threads
        )

    def plain(self, files: ImageFiles) -> Inputs:
        """Make what the network is evaluated on in training: no image is changed."""
        if self.point:
            return self.activations(files, 0)
        return decoded_pixels(
            files.paths,
            files.sha256s,
            self.maker.image_size,
            self.maker.rule,
            self.maker.threads,
            cache_root(),
            functools.partial(self.job.watcher.track, title="decode"),
        )

    def activations(self, files: ImageFiles, view: int) -> MappedRows:
        """Compute or recall what the frozen part says of a view of each image."""
        space = {
            "backbone": self.spec.name,
            "weights": weights_fingerprint(self.spec),
            "boundary": self.point,
            **network_space(setup_of(self.job.config)),
        }
        return boundary_activations(
            self.maker,
            files,
            view,
            space,
            lambda: self.run_trunk,
            tuple(self.trunk.output_shape[1:]),
            self.job.watcher,
            f"{self.spec.name} up to {self.point}",
        )


def make_views(job: Job, spec: BackboneSpec, files: ImageFiles) -> ViewMaker:
    """Say how views of training images are made for a backbone."""
    config = job.config
    rule = decode_rule(config.images, config.data)
    maker = ViewMaker(spec.size, rule, config.augment, config.seed, config.threads)
    if not config.augment.colour_pca:
        return maker
    return replace(maker, colour_axes=axes_of(statistics_of(maker, files)))


def statistics_of(maker: ViewMaker, files: ImageFiles) -> PixelStatistics:
    """Measure the pixels of the training images as they are."""
    return measure_pixels(maker.batches(files, 0))


def pixel_facts(maker: ViewMaker, files: ImageFiles) -> dict[str, np.ndarray]:
    """Say what a network without preprocessing of its own subtracts and divides by."""
    statistics = statistics_of(maker, files)
    return {"channel_mean": statistics.channel_mean, "channel_std": statistics.channel_std}


def epoch_order(targets: np.ndarray, sampling: str, seed: int, epoch: int) -> np.ndarray:
    """Draw the order of an epoch's images."""
    rng = np.random.default_rng([seed, epoch])
    return balanced_order(targets, rng) if sampling == "balanced" else rng.permutation(len(targets))


def training_loss(
    contender: NetworkContender, targets: np.ndarray, num_classes: int
) -> Callable[[Any, Any], Any]:
    """Build the loss that a contender's network is trained with."""
    settings = contender.training
    adjusted, weighted = settings.logit_adjustment, contender.class_weights == "balanced"
    return build_loss(
        settings.loss,
        num_classes,
        label_smoothing=settings.label_smoothing,
        focal_gamma=settings.focal_gamma,
        logit_offsets=log_priors(targets, num_classes, adjusted) if adjusted else None,
        class_weights=balanced_weights(targets, num_classes) if weighted else None,
    )


def validation(
    network: Any, inputs: Inputs, targets: np.ndarray
) -> Callable[[], tuple[float, float]]:
    """Make the function that scores a network in training: plain cross-entropy and accuracy."""
    compute = build_embed(network)
    dtype = network.inputs[0].dtype

    def validate() -> tuple[float, float]:
        logits = np.concatenate(
            [
                compute(stack_rows(inputs, range(start, min(start + BATCH_SIZE, len(inputs)))))
                for start in range(0, len(inputs), BATCH_SIZE)
            ]
        ).astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
        return float(losses.mean()), float((logits.argmax(axis=1) == targets).mean())

    def stack_rows(rows: Inputs, positions: range) -> np.ndarray:
        return np.stack([rows[position] for position in positions]).astype(dtype)

    return validate


def sample_positions(targets: np.ndarray, seed: int) -> list[int]:
    """Choose some training images for the checks, of all classes in turn."""
    order = balanced_order(targets, np.random.default_rng([seed, len(targets)]))
    return list(dict.fromkeys(order.tolist()))[:NUM_CHECKED]


def fingerprint_of(
    job: Job,
    contender: NetworkContender,
    maker: ViewMaker,
    rows: pd.DataFrame,
    stopping: pd.DataFrame | None,
    seed: int,
    kernel: np.ndarray,
    bias: np.ndarray,
) -> str:
    """Name all that decides a training besides its settings."""
    keys = ["image_id", "label", "sha256"]
    facts = [
        contender.model_dump(mode="json"),
        maker.space(view=1),
        [job.config.seed, seed],
        network_space(setup_of(job.config)),
        weights_fingerprint(backbone_spec(contender)),
        max_bytes(),  # decides whether crops are cut from files or from what is kept of them
        rows[keys].to_numpy().tolist(),
        stopping[keys].to_numpy().tolist() if stopping is not None else [],
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(kernel.tobytes() + bias.tobytes())
    return digest.hexdigest()


def store_trained(part: Path, trained: TrainedNetwork) -> None:
    """Store the network of a contender with how it was trained."""
    with atomic_path(part / "model.keras") as partial:
        trained.model.save(partial)
    store_history(part, trained)


def store_history(part: Path, trained: TrainedNetwork) -> None:
    """Store what happened in each epoch, and what the network noticed about itself."""
    history = pd.DataFrame(trained.state.history, columns=list(EpochFacts._fields))
    write_table(part / "history.csv", history)
    if trained.rates:
        table = pd.DataFrame(dict(zip(("learning_rate", "loss"), trained.rates, strict=True)))
        write_table(part / "rate_test.csv", table)
    whens = [when for when, _ in trained.checks]
    rows = as_dicts([check for _, check in trained.checks])
    write_json(
        part / "checks.json",
        [{"when": when, **row} for when, row in zip(whens, rows, strict=True)],
    )


def drop_checkpoint(part: Path) -> None:
    """Remove what an interrupted training would go on from, once it is not needed any more."""
    shutil.rmtree(part / CHECKPOINT.parent, ignore_errors=True)


def further_views(
    job: Job, contender: NetworkContender, describer: Describer, rows: pd.DataFrame
) -> list[np.ndarray]:
    """Compute or recall the frozen features of further views of training images."""
    feature, files = probe_feature(contender), files_of(job.root, rows)
    (descriptor,) = describer.descriptors
    setup = setup_of(job.config)
    maker = make_views(job, feature.spec, files)
    return [
        view_features(
            maker,
            files,
            view,
            descriptor.space,
            lambda: load_embed(feature, setup.threads, setup.runtime, setup.precision),
            descriptor.row_size,
            job.watcher,
            descriptor.name,
        )
        for view in range(1, contender.views)
    ]
