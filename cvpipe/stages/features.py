"""The numbers that a contender's classifier sees, computed once per image and kept.

A hand-crafted feature, a frozen backbone and the facts of a file are the same thing here:
paths of images go in, one row per image comes out, and the row depends on nothing but the
bytes of its file, and on what was learned from train images where a feature learns.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.cache import cache_root, cached_rows
from cvpipe.config import Config
from cvpipe.data.images import DecodeRule, decode_rule
from cvpipe.data.pixels import image_space, num_pixel_bytes
from cvpipe.data.threads import load_batches, load_sizes, ordered_map
from cvpipe.errors import InputError
from cvpipe.features.table import KINDS, Feature, FileFeature
from cvpipe.files import read_json, write_json
from cvpipe.formats import reader_versions
from cvpipe.inference.crops import (
    CUT_RULE,
    SINGLE,
    cut_batch,
    join_views,
    num_views,
    sizes_to_load,
)
from cvpipe.models.backbones import BACKBONES, FEATURES_POINT, weights_fingerprint
from cvpipe.models.deep_features import DeepFeature
from cvpipe.models.features import BATCH_SIZE, build_frozen_embed
from cvpipe.models.framework import list_devices, set_threads
from cvpipe.models.runtimes import TENSORFLOW, runtime_identity
from cvpipe.numerics import one_thread
from cvpipe.opencv import check_builds, installed_builds
from cvpipe.stages.job import Watcher
from cvpipe.stages.recipes import AnyFeature, known_features
from cvpipe.stages.stored_models import load_estimator, store_estimator

# What the images that a feature learns from may take in memory; of more images some are drawn.
MAX_LEARNING_BYTES = 400_000_000
LEARNED_KEPT = 64  # learned features in memory, of a megabyte or so each
FEATURES_NAME = "features.json"  # beside a model: what computes the rows that it reads
# Other versions of these may give other last bits.
NUMERICAL_PACKAGES = ("numpy", "scipy", "scikit-learn")

Describe = Callable[[Sequence[Path]], np.ndarray]


@dataclass(frozen=True)
class Setup:
    """What of a config decides how image files become rows.

    Attributes:
        features: Features by name, those of the config among them.
        rule: How a file becomes pixels.
        threads: Threads that load images, and that compute.
        seed: Of what features learn.
        runtime: What computes frozen networks.
        precision: In which they are computed.
        view: How an image is seen, a key of `cvpipe.inference.crops.VIEWS`; fitting knows only
            `"single"`.
    """

    features: Mapping[str, AnyFeature]
    rule: DecodeRule
    threads: int
    seed: int
    runtime: str = TENSORFLOW
    precision: str = "float32"
    view: str = SINGLE


@dataclass(frozen=True)
class ImageFiles:
    """Image files and the hashes by which their rows are kept.

    Attributes:
        root: Folder of the images.
        image_ids: Paths relative to `root`.
        sha256s: Hash of each file's bytes.
    """

    root: Path
    image_ids: Sequence[str]
    sha256s: Sequence[str]

    @property
    def paths(self) -> list[Path]:
        """Paths of the files."""
        return [self.root / image_id for image_id in self.image_ids]

    def take(self, positions: Sequence[int]) -> "ImageFiles":
        """Name some of the files."""
        return ImageFiles(
            self.root,
            [self.image_ids[position] for position in positions],
            [self.sha256s[position] for position in positions],
        )


@dataclass(frozen=True)
class Descriptor:
    """One way to turn image files into rows.

    Attributes:
        name: Of the feature or backbone; the title of progress bars.
        row_size: Length of a row, which holds the rows of all views side by side.
        space: What decides a row besides the file's bytes; see `cvpipe.cache`.
        prepare: Makes the function from paths to `float32` rows. Called only when something
            has to be computed, because it may load a network.
        learned: The fitted transformer of a feature that learns.
        num_views: How many views of an image it looks at; what looks at none has one row for all.
    """

    name: str
    row_size: int
    space: dict[str, Any]
    prepare: Callable[[], Describe]
    learned: Any = None
    num_views: int = 1


@dataclass(frozen=True)
class Describer:
    """All that turns image files into a contender's rows, with what was learned for it.

    Attributes:
        descriptors: Their rows stand side by side, view by view.
        scales: What the rows of each are multiplied by; empty for a single descriptor.
    """

    descriptors: tuple[Descriptor, ...]
    scales: tuple[float, ...] = ()

    def prepare(self) -> Describe:
        """Make the function from paths to rows that looks into no cache."""
        functions = [descriptor.prepare() for descriptor in self.descriptors]
        return lambda paths: self._join([f(paths) for f in functions], len(paths))

    def describe(self, files: ImageFiles, watcher: Watcher) -> np.ndarray:
        """Compute or recall the rows of images.

        Returns:
            `float32` array of shape `(n, num_views * num_features)`; of shape `(n, 1)` and all
            zero where no image is looked at.
        """
        blocks = [recall_rows(descriptor, files, watcher) for descriptor in self.descriptors]
        return self._join(blocks, len(files.image_ids))

    def _join(self, blocks: Sequence[np.ndarray], num_images: int) -> np.ndarray:
        if not blocks:
            return np.zeros((num_images, 1), dtype=np.float32)
        pairs = zip(blocks, self.descriptors, strict=True)
        by_view = [
            block.reshape(num_images, d.num_views, d.row_size // d.num_views) for block, d in pairs
        ]
        return join_views(by_view, self.scales)


def setup_of(config: Config) -> Setup:
    """Say how image files become rows under a config."""
    return Setup(
        features=known_features(config),
        rule=decode_rule(config.images, config.data),
        threads=config.threads,
        seed=config.seed,
        runtime=config.runtime,
        precision=config.precision,
    )


def files_of(root: Path, rows: pd.DataFrame) -> ImageFiles:
    """Name the image files of manifest rows that carry their `sha256`."""
    return ImageFiles(root, rows["image_id"].tolist(), rows["sha256"].tolist())


def learn_describer(
    names: Sequence[str], setup: Setup, files: ImageFiles, watcher: Watcher
) -> Describer:
    """Learn from train images what a contender's features need.

    Where there are several features, the rows of each are brought to a mean length of 1, so that
    none outweighs the others by its scale alone.

    Args:
        names: Of the features.
        setup: How files become rows.
        files: Train images, and nothing else.
        watcher: Who is shown the progress.
    """
    descriptors = tuple(
        _descriptor(name, setup, functools.partial(_learn_from, files, setup)) for name in names
    )
    if len(descriptors) < 2:
        return Describer(descriptors)
    lengths = [
        float(np.linalg.norm(recall_rows(d, files, watcher), axis=1).mean()) for d in descriptors
    ]
    return Describer(descriptors, tuple(1.0 / length if length else 1.0 for length in lengths))


def store_describer(part: Path, describer: Describer, setup: Setup) -> None:
    """Store what a describer is, and what it learned, beside the model that reads its rows.

    Args:
        part: Folder of the model.
        describer: To be stored.
        setup: How files become rows.
    """
    for descriptor in describer.descriptors:
        if descriptor.learned is not None:
            store_estimator(learned_path(part, descriptor.name), descriptor.learned)
    names = [descriptor.name for descriptor in describer.descriptors]
    facts = {"features": identities_of(names, setup), "scales": describer.scales}
    write_json(part / FEATURES_NAME, facts)


def load_describer(names: Sequence[str], setup: Setup, part: Path) -> Describer:
    """Load what a contender's model, stored in a part, reads images with.

    Raises:
        InputError: Something is missing, or was made by other features than those of today.
    """
    if not names:
        return Describer(())
    path = part / FEATURES_NAME
    facts = read_json(path) if path.exists() else {}
    if facts.get("features") != identities_of(names, setup):
        raise InputError(
            f"the model in {str(part)!r} was fitted on features as another version of cvpipe "
            "computes them; use that version, or make its run anew with --again."
        )
    learned = functools.partial(_load_learned, part)
    descriptors = tuple(_descriptor(name, setup, learned) for name in names)
    return Describer(descriptors, tuple(facts["scales"]))


def identities_of(names: Sequence[str], setup: Setup) -> dict[str, str]:
    """Say what computes the rows of features and backbones, by their names."""
    return {name: setup.features[name].identity for name in names}


def _load_learned(part: Path, name: str, feature: Feature) -> Any:
    path = learned_path(part, name)
    learned = load_estimator(path)
    is_kind = type(learned) is KINDS[feature.kind].load()
    if not is_kind or not feature.settings.items() <= learned.get_params().items():
        raise InputError(
            f"{str(path)!r} holds a {type(learned).__name__} with other settings than "
            f"{feature.described}; make its run anew."
        )
    return learned


def fixed_describer(names: Sequence[str], setup: Setup) -> Describer:
    """Describe images by features or backbones that learn nothing, side by side as they are."""
    return Describer(tuple(build_descriptor(name, setup) for name in names))


def under(describer: Describer, setup: Setup) -> Describer:
    """Read images under another setup, such as in another view, with what was learned already.

    Args:
        describer: Of features and backbones.
        setup: How files become rows.
    """
    descriptors = tuple(
        _descriptor(d.name, setup, functools.partial(_known, d.learned))
        for d in describer.descriptors
    )
    return Describer(descriptors, describer.scales)


def _known(learned: Any, name: str, feature: Feature) -> Any:  # noqa: ARG001
    return learned


def build_descriptor(name: str, setup: Setup) -> Descriptor:
    """Describe images by a feature that learns nothing, or by the frozen ones of a backbone."""
    return _descriptor(name, setup, _must_not_learn)


def _must_not_learn(name: str, feature: Feature) -> Any:
    raise TypeError(f"{name!r} ({feature.kind}) learns from train images")


def _descriptor(name: str, setup: Setup, learned: Callable[[str, Feature], Any]) -> Descriptor:
    """Make the descriptor of a name.

    Args:
        name: Of a feature or backbone.
        setup: How files become rows.
        learned: Gives the fitted transformer of a feature that learns.
    """
    feature = setup.features[name]
    if isinstance(feature, DeepFeature):
        return _deep_descriptor(name, feature, setup)
    if isinstance(feature, FileFeature):
        space = {"feature": feature.identity, **reader_versions()}
        return Descriptor(name, feature.row_size, space, feature.build)
    if feature.learns:
        return _image_descriptor(name, feature, setup, learned(name, feature))
    return _image_descriptor(name, feature, setup)


def _image_descriptor(name: str, feature: Feature, setup: Setup, learned: Any = None) -> Descriptor:
    blank = np.zeros((1, *feature.image_size, 3), dtype=np.uint8)
    transformer = feature.build().fit(blank) if learned is None else learned
    space = {
        "feature": feature.identity,
        "opencv": next(iter(check_builds(installed_builds()).values())),
        **{package: metadata.version(package) for package in NUMERICAL_PACKAGES},
        **view_space(feature.image_size, setup),
    }
    if learned is not None:
        space["learned"] = state_fingerprint(learned)
    describe = from_images(
        transformer.transform,
        feature.image_size,
        setup.rule,
        setup.threads,
        setup.view,
        one_thread_each=True,
    )
    views = num_views(setup.view)
    row_size = views * int(transformer.n_features_out_)
    return Descriptor(name, row_size, space, lambda: describe, learned, views)


def view_space(image_size: tuple[int, int], setup: Setup) -> dict[str, Any]:
    """State what decides the pixels of the views of a file, for the key of a cache."""
    space = image_space(image_size, setup.rule)
    if setup.view != SINGLE:
        space |= {"view": setup.view, "cut": CUT_RULE}
    return space


def state_fingerprint(transformer: Any) -> str:
    """Hash all that a fitted transformer has learned: 64 hexadecimal digits."""
    state = hashlib.sha256()
    for name, value in sorted(vars(transformer).items()):
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(f"{name} of a learned feature must be an array, a number or a word")
        state.update(f"{name} {array.dtype} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def _learn_from(files: ImageFiles, setup: Setup, name: str, feature: Feature) -> Any:  # noqa: ARG001
    """Fit a feature on images, or on as many of them as there is memory for."""
    keys = [
        hashlib.sha256(f"{setup.seed} {sha256}".encode()).hexdigest() for sha256 in files.sha256s
    ]
    # By hash, so that neither the order of the rows nor a few new images change much.
    order = sorted(range(len(keys)), key=lambda row: (keys[row], files.image_ids[row]))
    chosen = order[: max(1, MAX_LEARNING_BYTES // num_pixel_bytes(1, feature.image_size))]
    paths, sha256s = files.paths, files.sha256s
    return _fit(
        feature,
        setup.rule,
        setup.threads,
        setup.seed,
        tuple(paths[row] for row in chosen),
        tuple(sha256s[row] for row in chosen),
    )


@functools.lru_cache(maxsize=LEARNED_KEPT)  # contenders share features, and come one by one
def _fit(
    feature: Feature,
    rule: DecodeRule,
    threads: int,
    seed: int,
    paths: tuple[Path, ...],
    sha256s: tuple[str, ...],  # noqa: ARG001 (a file may have changed under its path)
) -> Any:
    images = np.empty((len(paths), *feature.image_size, 3), dtype=np.uint8)
    start = 0
    for batch in load_batches(paths, feature.image_size, rule, BATCH_SIZE, threads):
        images[start : start + len(batch)] = batch
        start += len(batch)
    with one_thread():  # more threads sum in another order
        return feature.build(seed % 2**32).fit(images)


def learned_path(part: Path, name: str) -> Path:
    """File of what a feature learned, beside the model that reads its rows."""
    return part / f"model.{name}.skops"


def _deep_descriptor(name: str, feature: DeepFeature, setup: Setup) -> Descriptor:
    plain = feature.layers == (FEATURES_POINT,)
    space = {
        "backbone": feature.spec.name,
        "weights": weights_fingerprint(feature.spec),
        "layer": FEATURES_POINT if plain else [*feature.layers, feature.pooling],
        **network_space(setup),
        **view_space(feature.image_size, setup),
    }

    def prepare() -> Describe:
        embed = load_embed(feature, setup.threads, setup.runtime, setup.precision)
        return from_images(embed, feature.image_size, setup.rule, setup.threads, setup.view)

    row_size = BACKBONES[feature.spec.name].num_features
    if not plain:
        row_size = load_deep(feature, setup.threads).output_shape[-1]
    views = num_views(setup.view)
    return Descriptor(name, views * row_size, space, prepare, num_views=views)


def network_describer(model: Any, setup: Setup) -> Describer:
    """Describe images by the probabilities that a trained network gives them.

    Args:
        model: Keras model from `uint8` images to probabilities; its weights no longer change.
        setup: How files become rows.
    """
    image_size = (model.input_shape[1], model.input_shape[2])
    space = {
        "network": network_fingerprint(model),
        **network_space(setup),
        **view_space(image_size, setup),
    }

    def prepare() -> Describe:
        embed = build_frozen_embed(model, setup.runtime, setup.precision, setup.threads)
        return from_images(embed, image_size, setup.rule, setup.threads, setup.view)

    views = num_views(setup.view)
    row_size = views * model.output_shape[-1]
    return Describer((Descriptor("network", row_size, space, prepare, num_views=views),))


def network_fingerprint(model: Any) -> str:
    """Hash the weights and the settings of a network's layers: 64 hexadecimal digits.

    Settings, too: imported networks can differ in nothing but how pixels are scaled. Not the states
    of random generators, which every copy has anew and a network that predicts does not need.
    """
    state = hashlib.sha256()
    for layer in model.layers:
        settings = {key: value for key, value in layer.get_config().items() if key != "name"}
        facts = [type(layer).__name__, settings]
        state.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for variable in model.weights:
        state.update(f"{variable.path} {tuple(variable.shape)}\n".encode())
        state.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return state.hexdigest()


def network_space(setup: Setup) -> dict[str, Any]:
    """State what decides the last bits of what a network computes, for the key of a cache."""
    return {
        "norms": "folded",
        "runtime": runtime_identity(setup.runtime),
        "precision": setup.precision,
        "batch_size": BATCH_SIZE,
        "threads": setup.threads,
        "devices": list_devices(),
    }


def from_images(
    function: Callable[[np.ndarray], np.ndarray],
    image_size: tuple[int, int],
    rule: DecodeRule,
    threads: int,
    view: str = SINGLE,
    one_thread_each: bool = False,
) -> Describe:
    """Make a function of `uint8` images of one size into a function of paths.

    Every image is decoded once, however many views of it there are.

    Args:
        function: Describes a batch of images.
        image_size: `(height, width)` in pixels that the function takes.
        rule: How a file becomes pixels.
        threads: Threads that load images.
        view: How an image is seen, a key of `cvpipe.inference.crops.VIEWS`; the rows of its views
            stand side by side.
        one_thread_each: Let as many threads describe a batch each; otherwise one batch at a
            time is described, by a function that has threads of its own.
    """
    sizes, views = sizes_to_load(view, image_size), num_views(view)
    images_per_batch = math.lcm(BATCH_SIZE, views) // views  # so that no batch has to be padded

    def describe_batch(loaded: list[np.ndarray]) -> np.ndarray:
        rows = function(cut_batch(loaded, image_size, view))
        return rows.reshape(len(loaded[0]), -1)

    def describe(paths: Sequence[Path]) -> np.ndarray:
        batches = load_sizes(paths, sizes, rule, images_per_batch, threads)
        if not one_thread_each:
            return np.concatenate([describe_batch(batch) for batch in batches])
        with one_thread():
            return np.concatenate(list(ordered_map(describe_batch, batches, threads)))

    return describe


@functools.lru_cache(maxsize=1)  # train, val and test ask one after the other
def load_embed(
    feature: DeepFeature, threads: int, runtime: str = TENSORFLOW, precision: str = "float32"
) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a backbone into a function from `uint8` images to a feature's rows."""
    return build_frozen_embed(load_deep(feature, threads), runtime, precision, threads)


@functools.lru_cache(maxsize=2)
def load_deep(feature: DeepFeature, threads: int) -> Any:
    """Load a backbone as a model from `uint8` images to a feature's rows."""
    set_threads(threads)
    return feature.build()


def recall_rows(descriptor: Descriptor, files: ImageFiles, watcher: Watcher) -> np.ndarray:
    """Compute or recall the rows of images: `float32 (n, row_size)`."""
    paths, prepare = files.paths, functools.cache(descriptor.prepare)
    return cached_rows(
        descriptor.space,
        files.sha256s,
        lambda positions: prepare()([paths[position] for position in positions]),
        descriptor.row_size,
        cache_root(),
        functools.partial(watcher.track, title=descriptor.name),
    )
