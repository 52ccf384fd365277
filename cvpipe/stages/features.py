"""The numbers that a contender's classifier sees, computed once per image and kept.

A hand-crafted feature and a frozen backbone are the same thing here: images of a fixed
size go in, one row per image comes out, and the row depends on nothing but the image.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe.cache import cache_root, cached_rows
from cvpipe.config import Contender, NetworkContender
from cvpipe.data.images import DECODE_RULE, Fit
from cvpipe.data.loading import load_batches
from cvpipe.features.table import FEATURES
from cvpipe.models.backbones import BACKBONES, build_backbone, weights_fingerprint
from cvpipe.models.features import BATCH_SIZE, build_embed
from cvpipe.models.framework import list_devices, set_threads
from cvpipe.opencv import check_builds, installed_builds
from cvpipe.stages.job import Watcher


@dataclass(frozen=True)
class Descriptor:
    """One way to turn images of one size into rows.

    Attributes:
        title: For progress bars.
        image_size: `(height, width)` in pixels.
        row_size: Length of a row.
        space: What decides a row besides the image; see `cvpipe.cache`.
        prepare: Makes the function from `uint8` images to `float32` rows. Called only
            when something has to be computed, because it may load a network.
    """

    title: str
    image_size: tuple[int, int]
    row_size: int
    space: dict[str, Any]
    prepare: Callable[[], Callable[[np.ndarray], np.ndarray]]


def descriptors_of(contender: Contender, threads: int) -> list[Descriptor]:
    """List the descriptors whose rows, side by side, are a contender's features."""
    if isinstance(contender, NetworkContender):
        return [backbone_descriptor(contender.backbone, threads)]
    return [feature_descriptor(name) for name in contender.features]


def feature_descriptor(name: str) -> Descriptor:
    """Describe images by a hand-crafted feature."""
    feature = FEATURES[name]
    blank = np.zeros((1, *feature.image_size, 3), dtype=np.uint8)
    transformer = feature.build().fit(blank)
    space = {
        "feature": feature.identity,
        "opencv": next(iter(check_builds(installed_builds()).values())),
    }
    row_size = transformer.transform(blank).shape[1]
    return Descriptor(name, feature.image_size, row_size, space, lambda: transformer.transform)


def backbone_descriptor(name: str, threads: int) -> Descriptor:
    """Describe images by the frozen features of a backbone."""
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
    }

    prepare = functools.partial(load_embed, name, threads)
    return Descriptor(name, backbone.image_size, backbone.num_features, space, prepare)


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
    fit: Fit,
    threads: int,
    watcher: Watcher,
) -> np.ndarray:
    """Compute or recall the features of images.

    Args:
        contender: Whose features.
        root: Folder of the images.
        image_ids: Paths relative to `root`.
        sha256s: Hash of each file's bytes.
        fit: See `cvpipe.config.ImagesSection`.
        threads: Threads that load images, and that compute.
        watcher: Who is shown the progress.

    Returns:
        `float32` array of shape `(n, num_features)`; of shape `(n, 1)` and all zero for a
        contender that looks at no image.
    """
    blocks = []
    for descriptor in descriptors_of(contender, threads):
        space = {
            **descriptor.space,
            "image_size": descriptor.image_size,
            "decode": DECODE_RULE,
            "fit": fit,
            "pillow": metadata.version("pillow"),
        }
        compute = _computation(descriptor, [root / key for key in image_ids], fit, threads)
        track = functools.partial(watcher.track, title=descriptor.title)
        blocks.append(
            cached_rows(space, sha256s, compute, descriptor.row_size, cache_root(), track)
        )
    return join_blocks(blocks, len(image_ids))


def join_blocks(blocks: Sequence[np.ndarray], num_images: int) -> np.ndarray:
    """Put the rows of several descriptors side by side; one column of zeros if there are none."""
    return np.hstack(blocks) if blocks else np.zeros((num_images, 1), dtype=np.float32)


def _computation(
    descriptor: Descriptor, paths: Sequence[Path], fit: Fit, threads: int
) -> Callable[[list[int]], np.ndarray]:
    """Make the function that computes the rows which are not stored."""
    prepare = functools.cache(descriptor.prepare)

    def compute(positions: list[int]) -> np.ndarray:
        wanted = [paths[position] for position in positions]
        batches = load_batches(wanted, descriptor.image_size, fit, BATCH_SIZE, threads)
        function = prepare()
        return np.concatenate([function(batch) for batch in batches])

    return compute
