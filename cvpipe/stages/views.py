"""What a frozen network says of views of training images, computed once and kept.

View 0 of an image is the image as evaluation shows it; the others are drawn as training would in
the epochs 1, 2 and so on, from the seed and the image. Their key in the cache names the settings
and what the draw starts from, which together with the file's bytes decide what is drawn.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from cvpipe.cache import MappedRows, cache_root, cached_rows, mapped_rows
from cvpipe.data.augment import VIEW_RULE, view_key
from cvpipe.data.images import DecodeRule
from cvpipe.data.loading import Loader
from cvpipe.data.normalise import PixelStatistics
from cvpipe.data.pixels import ImageFiles as ImageSource
from cvpipe.data.pixels import image_space
from cvpipe.data.threads import load_batches
from cvpipe.errors import InputError
from cvpipe.models.features import BATCH_SIZE
from cvpipe.opencv import check_builds, installed_builds
from cvpipe.sections import AugmentSection
from cvpipe.stages.features import ImageFiles
from cvpipe.stages.job import Watcher

Embed = Callable[[np.ndarray], np.ndarray]
HALF = np.dtype(np.float16)


@dataclass(frozen=True, eq=False)
class ViewMaker:
    """Makes the pixels of views.

    Attributes:
        image_size: `(height, width)` in pixels.
        rule: How a file becomes pixels.
        augment: How views differ from the image.
        seed: Start of every draw.
        threads: Threads that load images.
        colour_axes: Where colours are varied along the axes of the training images; see
            `cvpipe.data.augment.draw_view`.
    """

    image_size: tuple[int, int]
    rule: DecodeRule
    augment: AugmentSection
    seed: int
    threads: int
    colour_axes: np.ndarray | None = None

    def key(self, sha256: str, image_id: str, view: int) -> str:
        """Name a view of an image by what decides its pixels, within `space`."""
        return f"{sha256} {view_key(self.seed, view, image_id)}" if view else sha256

    def space(self, view: int) -> dict[str, Any]:
        """State what decides the pixels of a view besides the image."""
        space = image_space(self.image_size, self.rule)
        if view:
            space |= view_versions()
            space["augment"] = self.augment.model_dump(mode="json")
            if self.colour_axes is not None:
                space["colour_axes"] = self.colour_axes.tolist()
        return space

    def batches(self, files: ImageFiles, view: int) -> Iterator[np.ndarray]:
        """Give a view of each image, in their order: `uint8 (n, *image_size, 3)`."""
        if not view:
            yield from load_batches(
                files.paths, self.image_size, self.rule, BATCH_SIZE, self.threads
            )
            return
        loader = Loader(
            ImageSource(files.paths, self.rule),
            files.image_ids,
            np.zeros(len(files.image_ids), dtype=np.int32),
            self.image_size,
            self.augment,
            fit=self.rule.fit,
            batch_size=BATCH_SIZE,
            seed=self.seed,
            threads=self.threads,
            shuffle=False,
            colour_axes=self.colour_axes,
        )
        for batch in loader.batches(view + 1, first_epoch=view):
            yield batch.images


def view_versions() -> dict[str, str]:
    """State what else decides how a view is drawn and applied."""
    opencv = next(iter(check_builds(installed_builds()).values()))
    packages = ("albumentations", "albucore", "simplejpeg")
    return {
        "view_rule": VIEW_RULE,
        "opencv": opencv,
        **{package: metadata.version(package) for package in packages},
    }


def axes_of(statistics: PixelStatistics) -> np.ndarray:
    """Scale the axes of colour as views are drawn along them."""
    return statistics.colour_axes * statistics.colour_std


def view_features(
    maker: ViewMaker,
    files: ImageFiles,
    view: int,
    space: dict[str, Any],
    prepare: Callable[[], Embed],
    row_size: int,
    watcher: Watcher,
    title: str,
) -> np.ndarray:
    """Compute or recall the features of a view of each image: `float32 (n, row_size)`."""
    return cached_rows(
        {**space, **maker.space(view)},
        _keys(maker, files, view),
        _compute(maker, files, view, prepare),
        row_size,
        cache_root(),
        functools.partial(watcher.track, title=f"{title}, view {view + 1}"),
    )


def boundary_activations(
    maker: ViewMaker,
    files: ImageFiles,
    view: int,
    space: dict[str, Any],
    prepare: Callable[[], Embed],
    row_shape: tuple[int, ...],
    watcher: Watcher,
    title: str,
) -> MappedRows:
    """Compute or recall the activations at a freeze point, in half precision, mapped from disk."""
    compute = _compute(maker, files, view, prepare)
    return mapped_rows(
        {**space, **maker.space(view), "dtype": str(HALF)},
        _keys(maker, files, view),
        lambda positions: to_half(compute(positions)),
        row_shape,
        HALF,
        cache_root(),
        functools.partial(watcher.track, title=f"{title}, view {view + 1}"),
    )


def _keys(maker: ViewMaker, files: ImageFiles, view: int) -> list[str]:
    pairs = zip(files.sha256s, files.image_ids, strict=True)
    return [maker.key(sha256, image_id, view) for sha256, image_id in pairs]


def _compute(
    maker: ViewMaker, files: ImageFiles, view: int, prepare: Callable[[], Embed]
) -> Callable[[Sequence[int]], np.ndarray]:
    def compute(positions: Sequence[int]) -> np.ndarray:
        some = files.take(positions)
        embed = prepare()
        return np.concatenate([embed(batch) for batch in maker.batches(some, view)])

    return compute


def to_half(rows: np.ndarray) -> np.ndarray:
    """Round activations to half precision: a relative error of at most 2^-11.

    Raises:
        InputError: A number is too large for that.
    """
    with np.errstate(over="ignore"):
        half = rows.astype(HALF)
    if not np.isfinite(half).all():
        raise InputError(
            "activations at the freeze point reach "
            f"{np.abs(rows).max():.3g}, more than half precision holds (65,504); choose another "
            "freeze point, or freeze = 'none'."
        )
    return half
