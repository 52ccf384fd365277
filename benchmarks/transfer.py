"""Transfer learning the usual way in Keras and ours, in turns: same weights, images and machine.

    cvpipe fetch solar_cells
    python benchmarks/transfer.py frozen     a head on a frozen network, every cost counted
    python benchmarks/transfer.py partial    an epoch of fine-tuning behind a freeze point
    python benchmarks/transfer.py full       an epoch of fine-tuning everything
    python benchmarks/transfer.py accuracy   both recipes to the end: accuracy over time

The usual way is that of keras.io/guides/transfer_learning: a nested base that is called with
`training=False`, global pooling, dropout and a dense layer, `fit` on a `tf.data` pipeline that
decodes and resizes files once and caches the images; then `base.trainable = True` and Adam at 1e-5.
The weights are those of EfficientNet-Lite0, 2,000 images train and 624 test. Costs of opening,
tracing and compiling count where a whole training is timed; an epoch is timed after a first one.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported: it halves its speed
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvpipe.classifiers.search import fit_classifier, linear_head, predictor_of
from cvpipe.contender_sections import TrainingSection
from cvpipe.data.images import DecodeRule
from cvpipe.data.manifest import scan_images
from cvpipe.frames import class_names_of, targets_of
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.features import build_embed, build_frozen_embed
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import import_keras, import_tensorflow, set_threads
from cvpipe.models.heads import attach_linear_head, head_weights, initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.training import train
from cvpipe.models.transfer import (
    attach_trainable_head,
    freeze_point,
    learning_groups,
    part_network,
    unfreeze,
)
from cvpipe.sections import AugmentSection
from cvpipe.stages.features import ImageFiles
from cvpipe.stages.networks import BoundaryFeed
from cvpipe.stages.views import ViewMaker, to_half

ROOT = Path(__file__).parent.parent / "data" / "raw" / "solar_cells"
NUM_TRAIN = 2_000
THREADS = 2
BATCH_SIZE = 32
SPEC = BackboneSpec("efficientnet_lite0")
RESAMPLES = 10_000


class Data(NamedTuple):
    """Image files with their targets."""

    files: ImageFiles
    targets: np.ndarray


class Side(NamedTuple):
    """What one side took, and which test images it got right."""

    seconds: float
    right: np.ndarray


def load_data() -> tuple[Data, Data]:
    """List the images, in one random order."""
    rows = scan_images(ROOT, "labels.csv").sample(frac=1.0, random_state=0)
    targets = targets_of(rows["label"], class_names_of(rows["label"]))
    ids = rows["image_id"].tolist()
    parts = slice(NUM_TRAIN), slice(NUM_TRAIN, None)
    train_part, test_part = (
        Data(ImageFiles(ROOT, ids[part], ids[part]), targets[part]) for part in parts
    )
    return train_part, test_part


def main() -> None:
    """Run the part that is asked for and print its ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("frozen", "partial", "full", "accuracy"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--runtimes", nargs="+", default=["tensorflow", "openvino"])
    arguments = parser.parse_args()
    set_threads(THREADS)
    parts: dict[str, Callable[[Any], None]] = {
        "frozen": compare_frozen,
        "partial": compare_partial,
        "full": compare_full,
        "accuracy": compare_accuracy,
    }
    parts[arguments.part](arguments)


# --- the usual way ----------------------------------------------------------------------


def keras_network(trainable: bool = False) -> tuple[Any, Any]:
    """Build the network of the guide; returns it and its base."""
    keras = import_keras()
    base = build_backbone(SPEC)
    base.trainable = trainable
    inputs = keras.Input((*SPEC.size, 3), dtype="uint8")
    x = base(inputs, training=False)
    x = keras.layers.Dropout(0.2, seed=0)(x)
    return keras.Model(inputs, keras.layers.Dense(2)(x)), base


def keras_batches(data: Data, shuffled: bool) -> Any:
    """Read files as the guide does."""
    tf = import_tensorflow()
    paths = [str(path) for path in data.files.paths]
    batches = tf.data.Dataset.from_tensor_slices((paths, data.targets))

    def load(path: Any, target: Any) -> Any:
        image = tf.io.decode_png(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(image, SPEC.size)), tf.uint8), target

    batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE).cache()
    if shuffled:
        batches = batches.shuffle(len(paths), seed=0)
    return batches.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def compile_network(network: Any, rate: float) -> None:
    """Compile as the guide does."""
    keras = import_keras()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)


def fit_keras_frozen(train_part: Data, test_part: Data, epochs: Sequence[int]) -> dict[int, Side]:
    """Fit a head by `fit`, and see after so many epochs what it took and gives."""
    started = time.perf_counter()
    network, _ = keras_network()
    compile_network(network, 1e-3)
    train_batches = keras_batches(train_part, shuffled=True)
    sides: dict[int, Side] = {}
    spent, done = time.perf_counter() - started, 0
    for wanted in sorted(epochs):
        # Each is told as if it were the only one, so what it is scored by is compiled anew.
        network.predict_function = None
        started = time.perf_counter()
        network.fit(train_batches, initial_epoch=done, epochs=wanted, verbose=0)
        spent, done = spent + time.perf_counter() - started, wanted
        started = time.perf_counter()
        logits = network.predict(keras_batches(test_part, shuffled=False), verbose=0)
        scoring = time.perf_counter() - started
        sides[wanted] = Side(spent + scoring, logits.argmax(axis=1) == test_part.targets)
    return sides


# --- ours -------------------------------------------------------------------------------


def views_of(data: Data, view: int) -> Iterator[np.ndarray]:
    """Load a view of each image; view 0 is the image as it is."""
    augment = AugmentSection(horizontal_flip=0.5, vertical_flip=0.5, brightness=0.1, contrast=0.1)
    return ViewMaker(SPEC.size, DecodeRule(), augment, 0, THREADS).batches(data.files, view)


def fit_ours_frozen(train_part: Data, test_part: Data, runtime: str, views: int) -> Side:
    """Compute features once per view, and fit a head by cross-validation."""
    started = time.perf_counter()
    embed = build_frozen_embed(fold_norms(build_backbone(SPEC)), runtime, "float32", THREADS)
    rows = [embed(batch) for view in range(views) for batch in views_of(train_part, view)]
    groups = list(train_part.files.image_ids) * views
    targets = np.tile(train_part.targets, views)
    fitted = fit_classifier("softmax", np.concatenate(rows), targets, groups, "coarse", 0, THREADS)
    test_rows = np.concatenate([embed(batch) for batch in views_of(test_part, 0)])
    answers = predictor_of(fitted.estimator)(test_rows).argmax(axis=1)
    return Side(time.perf_counter() - started, answers == test_part.targets)


def compare_frozen(arguments: Any) -> None:
    """Time a head on a frozen network, from files to answers."""
    train_part, test_part = load_data()
    ours: dict[str, Callable[[], Side]] = {}
    for runtime in arguments.runtimes:
        ours[runtime] = lambda r=runtime: fit_ours_frozen(train_part, test_part, r, 1)
        ours[f"{runtime}, 4 views"] = lambda r=runtime: fit_ours_frozen(train_part, test_part, r, 4)
    for number in range(arguments.rounds):
        sides = {name: side() for name, side in ours.items()}
        for epochs, theirs in fit_keras_frozen(train_part, test_part, arguments.epochs).items():
            for name, side in sides.items():
                print(
                    f"round {number + 1}: fit over {epochs} epochs {theirs.seconds:.1f} s, "
                    f"{name} {side.seconds:.1f} s: {theirs.seconds / side.seconds:.2f} x; "
                    f"{difference_in_words(theirs.right, side.right)}",
                    flush=True,
                )


def difference_in_words(theirs: np.ndarray, ours: np.ndarray) -> str:
    """Say how much more often ours is right, with the interval of a paired bootstrap."""
    gains = ours.astype(float) - theirs.astype(float)
    rng = np.random.default_rng(0)
    draws = [rng.choice(gains, len(gains)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return (
        f"accuracy {theirs.mean():.3f} and {ours.mean():.3f}, {gains.mean():+.3f} "
        f"({low:+.3f} to {high:+.3f})"
    )


# --- epochs of fine-tuning --------------------------------------------------------------


def own_tail(point: str) -> tuple[Any, Any, Any, list[Any]]:
    """Build our network with a head; returns it, its trunk, its tail and what learns."""
    model = attach_trainable_head(
        build_backbone(SPEC), *initial_head(1280, 2, 0), dropout=0.2, seed=0
    )
    trunk, tail = part_network(SPEC, model, point) if point else (None, model)
    return model, trunk, tail, unfreeze(tail, norms=False)


class ImagesFeed:
    """Batches of images, loaded in every epoch."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.data.targets) // BATCH_SIZE)

    def epoch(self, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the images and targets of the batches."""
        batches = views_of(self.data, number)
        for start, images in zip(
            range(0, len(self.data.targets), BATCH_SIZE), batches, strict=True
        ):
            yield images, self.data.targets[start : start + BATCH_SIZE]


def epoch_of_ours(tail: Any, layers: list[Any], feed: Any) -> float:
    """Time our second epoch."""
    settings = TrainingSection(
        epochs=2, warmup_epochs=0.0, learning_rate=1e-5, schedule="constant", backbone_rate=1.0
    )
    ends: list[float] = []
    train(
        tail,
        learning_groups(layers, 1.0),
        build_loss("cross_entropy", 2),
        feed,
        settings,
        progress=lambda _: ends.append(time.perf_counter()),
    )
    return ends[1] - ends[0]


def epoch_of_keras(network: Any, data: Data) -> float:
    """Time the second epoch of `fit`."""
    compile_network(network, 1e-5)
    batches = keras_batches(data, shuffled=True)
    network.fit(batches, epochs=1, verbose=0)
    started = time.perf_counter()
    network.fit(batches, epochs=1, verbose=0)
    return time.perf_counter() - started


def compare_partial(arguments: Any) -> None:
    """Time an epoch behind a freeze point: on cached activations, and through the whole network.

    On both sides BatchNormalization is frozen, so it is the cache alone that makes the difference.
    """
    data, _ = load_data()
    for word in ("middle", "last_block"):
        point = freeze_point(SPEC, word)
        _, trunk, tail, layers = own_tail(point)
        started = time.perf_counter()
        embed = build_embed(fold_norms(trunk))
        rows = np.concatenate([to_half(embed(batch)) for batch in views_of(data, 0)])
        once = time.perf_counter() - started
        feed = BoundaryFeed(
            [rows],
            data.targets,
            BATCH_SIZE,
            lambda e: np.random.default_rng(e).permutation(len(data.targets)),
        )
        for number in range(arguments.rounds):
            ours = epoch_of_ours(tail, layers, feed)
            network, base = keras_network()
            learning = {layer.name for layer in layers}
            base.trainable = True
            for layer in base.layers:
                layer.trainable = layer.name in learning
            theirs = epoch_of_keras(network, data)
            print(
                f"round {number + 1}: an epoch behind {point}: fit {theirs:.1f} s, ours {ours:.1f} "
                f"s: {theirs / ours:.2f} x (the cache took {once:.1f} s, once)",
                flush=True,
            )


def compare_full(arguments: Any) -> None:
    """Time an epoch of fine-tuning everything; the guide lets BatchNormalization train."""
    data, _ = load_data()
    for number in range(arguments.rounds):
        _, _, tail, layers = own_tail("")
        ours = epoch_of_ours(tail, layers, ImagesFeed(data))
        network, base = keras_network()
        base.trainable = True
        theirs = epoch_of_keras(network, data)
        for layer in base.layers:
            if "norm" in layer.name:
                layer.trainable = False
        frozen = epoch_of_keras(network, data)
        print(
            f"round {number + 1}: an epoch of everything: fit {theirs:.1f} s, with frozen "
            f"normalisations {frozen:.1f} s, ours {ours:.1f} s: {theirs / ours:.2f} x, "
            f"{frozen / ours:.2f} x",
            flush=True,
        )


# --- accuracy over time -----------------------------------------------------------------


def compare_accuracy(arguments: Any) -> None:
    """Follow test accuracy over time: the guide's two stages, and our fine-tuning."""
    train_part, test_part = load_data()
    for side in (follow_keras, follow_ours):
        for seconds, right in side(train_part, test_part, max(arguments.epochs)):
            print(f"{side.__name__} {seconds:7.1f} s: accuracy {right.mean():.4f}", flush=True)


def follow_keras(
    train_part: Data, test_part: Data, epochs: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Train a head and then everything, as the guide does; scoring is not timed."""
    spent, started = 0.0, time.perf_counter()
    network, base = keras_network()
    train_batches, test_batches = (
        keras_batches(train_part, shuffled=True),
        keras_batches(test_part, shuffled=False),
    )
    for epoch in range(epochs):
        if epoch in (0, epochs // 2):
            base.trainable = epoch > 0
            compile_network(network, 1e-5 if epoch else 1e-3)
        network.fit(train_batches, epochs=1, verbose=0)
        spent += time.perf_counter() - started
        answers = network.predict(test_batches, verbose=0).argmax(axis=1)
        yield spent, answers == test_part.targets
        started = time.perf_counter()


def follow_ours(
    train_part: Data, test_part: Data, epochs: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Fit a head on features, then fine-tune from cached activations of four views."""
    started = time.perf_counter()
    backbone = build_backbone(SPEC)
    embed = build_embed(fold_norms(backbone))
    rows = np.concatenate([embed(batch) for batch in views_of(train_part, 0)])
    groups = list(train_part.files.image_ids)
    fitted = fit_classifier(
        "softmax_common_scale", rows, train_part.targets, groups, "coarse", 0, THREADS
    )
    spent = time.perf_counter() - started
    test_images = np.concatenate(list(views_of(test_part, 0)))
    answers = predictor_of(fitted.estimator)(embed(test_images)).argmax(axis=1)
    yield spent, answers == test_part.targets
    started = time.perf_counter()
    head = linear_head(fitted.estimator, 2)
    model = attach_trainable_head(backbone, *head, dropout=0.2, seed=0)
    trunk, tail = part_network(SPEC, model, freeze_point(SPEC, "middle"))
    layers = unfreeze(tail, norms=False)
    run_trunk = build_embed(fold_norms(trunk))
    views = [
        np.concatenate([to_half(run_trunk(batch)) for batch in views_of(train_part, view)])
        for view in range(4)
    ]
    feed = BoundaryFeed(
        views,
        train_part.targets,
        BATCH_SIZE,
        lambda e: np.random.default_rng(e).permutation(len(train_part.targets)),
    )
    spent += time.perf_counter() - started
    ends: list[tuple[float, np.ndarray]] = []
    clock = [time.perf_counter()]

    def score(_: str) -> None:
        nonlocal spent
        spent += time.perf_counter() - clock[0]
        whole = fold_norms(attach_linear_head(backbone, *head_weights(model), "scored"))
        ends.append((spent, build_embed(whole)(test_images).argmax(axis=1) == test_part.targets))
        clock[0] = time.perf_counter()

    settings = TrainingSection(epochs=epochs)
    groups_of_layers = learning_groups(layers, settings.backbone_rate)
    train(tail, groups_of_layers, build_loss("cross_entropy", 2), feed, settings, progress=score)
    yield from ends


if __name__ == "__main__":
    main()
