"""The numbers that a contender's classifier sees, computed once per image and kept.

A hand-crafted feature, a frozen backbone and the facts of a file are the same thing here:
paths of images go in, one row per image comes out, and the row depends on nothing but the
bytes of its file.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.cache import cache_root, cached_rows
from cvpipe.config import Contender
from cvpipe.data.images import DecodeRule
from cvpipe.data.pixels import image_space
from cvpipe.data.threads import load_batches
from cvpipe.features.table import FEATURES, Feature
from cvpipe.formats import reader_versions
from cvpipe.models.backbones import BACKBONES, build_backbone, weights_fingerprint
from cvpipe.models.features import BATCH_SIZE, build_embed
from cvpipe.models.framework import list_devices, set_threads
from cvpipe.opencv import check_builds, installed_builds
from cvpipe.stages.job import Watcher
from cvpipe.stages.recipes import feature_names

Describe = Callable[[Sequence[Path]], np.ndarray]


@dataclass(frozen=True)
class Descriptor:
    """One way to turn image files into rows.

    Attributes:
        title: For progress bars.
        row_size: Length of a row.
        space: What decides a row besides the file's bytes; see `cvpipe.cache`.
        prepare: Makes the function from paths to `float32` rows. Called only when something
            has to be computed, because it may load a network.
    """

    title: str
    row_size: int
    space: dict[str, Any]
    prepare: Callable[[], Describe]


def descriptors_of(contender: Contender, rule: DecodeRule, threads: int) -> list[Descriptor]:
    """List the descriptors whose rows, side by side, are a contender's features."""
    return [build_descriptor(name, rule, threads) for name in feature_names(contender)]


def build_descriptor(name: str, rule: DecodeRule, threads: int) -> Descriptor:
    """Describe images by a feature or by the frozen features of a backbone."""
    if name in BACKBONES:
        return _backbone_descriptor(name, rule, threads)
    feature = FEATURES[name]
    if isinstance(feature, Feature):
        return _image_descriptor(name, feature, rule, threads)
    space = {"feature": feature.identity, **reader_versions()}
    return Descriptor(name, feature.row_size, space, feature.build)


def _image_descriptor(name: str, feature: Feature, rule: DecodeRule, threads: int) -> Descriptor:
    blank = np.zeros((1, *feature.image_size, 3), dtype=np.uint8)
    transformer = feature.build().fit(blank)
    space = {
        "feature": feature.identity,
        "opencv": next(iter(check_builds(installed_builds()).values())),
        **image_space(feature.image_size, rule),
    }
    row_size = transformer.transform(blank).shape[1]
    describe = from_images(transformer.transform, feature.image_size, rule, threads)
    return Descriptor(name, row_size, space, lambda: describe)


def _backbone_descriptor(name: str, rule: DecodeRule, threads: int) -> Descriptor:
    backbone = BACKBONES[name]
    space = {
        "backbone": name,
        "weights": weights_fingerprint(name),
        "layer": "features",
        "runtime": f"tensorflow {metadata.version('tensorflow')}",
        "precision": "float32",
        "batch_size": BATCH_SIZE,
        # What decides the last bits:
        "threads": threads,
        "devices": list_devices(),
        **image_space(backbone.image_size, rule),
    }

    def prepare() -> Describe:
        return from_images(load_embed(name, threads), backbone.image_size, rule, threads)

    return Descriptor(name, backbone.num_features, space, prepare)


def from_images(
    function: Callable[[np.ndarray], np.ndarray],
    image_size: tuple[int, int],
    rule: DecodeRule,
    threads: int,
) -> Describe:
    """Make a function of `uint8` images of one size into a function of paths."""

    def describe(paths: Sequence[Path]) -> np.ndarray:
        batches = load_batches(paths, image_size, rule, BATCH_SIZE, threads)
        return np.concatenate([function(batch) for batch in batches])

    return describe


@functools.lru_cache(maxsize=1)  # train, val and test ask one after the other
def load_embed(name: str, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Load a backbone as a function from `uint8` images to features."""
    set_threads(threads)
    return build_embed(build_backbone(name))


def describe_images(
    contender: Contender,
    root: Path,
    image_ids: Sequence[str],
    sha256s: Sequence[str],
    rule: DecodeRule,
    threads: int,
    watcher: Watcher,
) -> np.ndarray:
    """Compute or recall the features of images.

    Args:
        contender: Whose features.
        root: Folder of the images.
        image_ids: Paths relative to `root`.
        sha256s: Hash of each file's bytes.
        rule: How a file becomes pixels.
        threads: Threads that load images, and that compute.
        watcher: Who is shown the progress.

    Returns:
        `float32` array of shape `(n, num_features)`; of shape `(n, 1)` and all zero for a
        contender that looks at no image.
    """
    paths = [root / image_id for image_id in image_ids]
    blocks = []
    for descriptor in descriptors_of(contender, rule, threads):
        track = functools.partial(watcher.track, title=descriptor.title)
        compute = _rows_at(paths, functools.cache(descriptor.prepare))
        blocks.append(
            cached_rows(
                descriptor.space, sha256s, compute, descriptor.row_size, cache_root(), track
            )
        )
    return join_blocks(blocks, len(image_ids))


def _rows_at(
    paths: Sequence[Path], prepare: Callable[[], Describe]
) -> Callable[[list[int]], np.ndarray]:
    """Make the function that computes the rows which are not stored."""
    return lambda positions: prepare()([paths[position] for position in positions])


def join_blocks(blocks: Sequence[np.ndarray], num_images: int) -> np.ndarray:
    """Put the rows of several descriptors side by side; one column of zeros if there are none."""
    return np.hstack(blocks) if blocks else np.zeros((num_images, 1), dtype=np.float32)
