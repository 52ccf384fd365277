"""Deliver shuffled and augmented batches of training images, made by threads ahead of time."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cvpipe.data.augment import View, apply_view, draw_view, view_key
from cvpipe.data.images import Fit, UnreadableImageError
from cvpipe.data.jpeg import choose_reduction, reduce_box
from cvpipe.data.mixing import mix_batch
from cvpipe.data.pixels import ImageSource
from cvpipe.data.threads import ordered_map
from cvpipe.errors import InputError
from cvpipe.sections import AugmentSection


class Batch(NamedTuple):
    """Some training images.

    Attributes:
        images: `(n, height, width, 3)`, `uint8` or `float32` in [0, 255].
        targets: `int32 (n,)`; where images are mixed `float32 (n, num_classes)`.
        positions: Row of each image in the manifest that the loader was given; `int64 (n,)`.
    """

    images: np.ndarray
    targets: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class LoaderReport:
    """What a loader delivered, and how long it kept whoever took the batches waiting.

    With `fit` that is the thread by which Keras fetches ahead, so the model itself waited less.
    """

    num_images: int
    seconds: float
    waited_seconds: float

    @property
    def waited_fraction(self) -> float:
        """Share of the time in which the consumer, such as a model in training, waited."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        speed = self.num_images / self.seconds if self.seconds else 0.0
        return (
            f"{self.num_images:,} images in {self.seconds:.1f} s ({speed:,.0f} per second); "
            f"the model waited {self.waited_fraction:.0%} of the time"
        )


class Loader:
    """Deliver shuffled, augmented batches of training images from threads.

    What a batch holds depends on the seed, its epoch, its number and the images, and on nothing
    else: not on the number of threads, not on what was delivered before. Whole batches are made
    by one thread each, because handing over single images costs as much as augmenting them.
    """

    def __init__(
        self,
        source: ImageSource,
        image_ids: Sequence[str],
        targets: np.ndarray,
        image_size: tuple[int, int],
        augment: AugmentSection,
        *,
        fit: Fit = "stretch",
        batch_size: int = 32,
        seed: int = 0,
        threads: int = 2,
        dtype: Literal["uint8", "float32"] = "uint8",
        scaled_decoding: bool = True,
        shuffle: bool = True,
        order: Callable[[int], np.ndarray] | None = None,
        num_classes: int = 0,
        colour_axes: np.ndarray | None = None,
    ) -> None:
        """Prepare to load; nothing is read before batches are asked for.

        Args:
            source: Where the images are.
            image_ids: Their keys, unique, in the order of the source.
            targets: `int32 (n,)`.
            image_size: `(height, width)` of what is delivered.
            augment: How images are changed.
            fit: How evaluation brings an image to its size.
            batch_size: Images per batch; the last one of an epoch may be smaller.
            seed: Start of every random draw.
            threads: Number of worker threads; 0: the work is done when a batch is asked for.
            dtype: `"float32"` costs four times the memory and a fifth of the speed; a model
                that takes `uint8` does the same conversion.
            scaled_decoding: Decode large JPEG files at a half, a quarter or an eighth where a crop
                has more pixels than are wanted. Never used for evaluation.
            shuffle: A new order in each epoch; otherwise always that of the source.
            order: Gives the positions of the images of an epoch, where neither is wanted: as many
                as there are images, of which some may come more than once.
            num_classes: Needed where images are mixed.
            colour_axes: See `cvpipe.data.augment.draw_view`.

        Raises:
            InputError: The numbers of keys and targets differ, there is no image, a key is not
                unique, or the settings need something that is missing.
        """
        check_loader(image_ids, targets, image_size, augment, num_classes, colour_axes)
        self.source = source
        self.image_ids = image_ids
        self.targets = np.asarray(targets, dtype=np.int32)
        self.image_size = image_size
        self.augment = augment
        self.fit = fit
        self.batch_size = batch_size
        self.seed = seed
        self.threads = threads
        self.dtype = np.dtype(dtype)
        self.scaled_decoding = scaled_decoding
        self.shuffle = shuffle
        self.given_order = order
        self.num_classes = num_classes
        self.colour_axes = colour_axes
        self.report = LoaderReport(0, 0.0, 0.0)

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches, the last and perhaps smaller one included."""
        return math.ceil(len(self.image_ids) / self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the positions of the images in the order of an epoch, each exactly once.

        Unless another order was given.
        """
        if self.given_order is not None:
            return self.given_order(epoch)
        if not self.shuffle:
            return np.arange(len(self.image_ids))
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.image_ids))

    def batches(
        self, epochs: int, first_epoch: int = 0, first_batch: int = 0
    ) -> Generator[Batch, None, None]:
        """Deliver the batches of several epochs without a pause between them.

        To go on after an interruption, name the epoch and the batch that come next: the same
        batches follow as if nothing had happened. Close the generator, or let it go, to stop early.

        Args:
            epochs: Number of the epoch at which to stop, counted from 0; it is not delivered.
            first_epoch: The first one that is.
            first_batch: Number of the first batch in it.

        Raises:
            InputError: An image cannot be read; the message names it.
        """
        tasks = (
            (epoch, number, order[number * self.batch_size : (number + 1) * self.batch_size])
            for epoch in range(first_epoch, epochs)
            for order in [self.order(epoch)]
            for number in range(first_batch if epoch == first_epoch else 0, self.batches_per_epoch)
        )
        with contextlib.closing(ordered_map(self._make_batch, tasks, self.threads)) as results:
            self.report = LoaderReport(0, 0.0, 0.0)
            start = asked = time.perf_counter()
            waited, num_images = 0.0, 0
            for batch in results:
                now = time.perf_counter()
                waited += now - asked
                num_images += len(batch.images)
                self.report = LoaderReport(num_images, now - start, waited)
                yield batch
                asked = time.perf_counter()

    def view(self, position: int, epoch: int) -> tuple[np.ndarray, View]:
        """Make the view of one image in an epoch, and say what was drawn for it."""
        out = np.empty((*self.image_size, 3), dtype=np.uint8)
        return out, self._make_view(position, epoch, out)

    def _make_batch(self, task: tuple[int, int, np.ndarray]) -> Batch:
        epoch, number, positions = task
        images = np.empty((len(positions), *self.image_size, 3), dtype=np.uint8)
        for position, out in zip(positions.tolist(), images, strict=True):
            self._make_view(position, epoch, out)
        targets = self.targets[positions]
        if self.augment.mixup or self.augment.cutmix:
            targets = np.eye(self.num_classes, dtype=np.float32)[targets]
            key = view_key(self.seed, epoch, f"batch {number}")
            images, targets = mix_batch(images, targets, self.augment, key)
        return Batch(images.astype(self.dtype, copy=False), targets, positions)

    def _make_view(self, position: int, epoch: int, out: np.ndarray) -> View:
        key = self.image_ids[position]
        try:
            opened = self.source.open(position)
            view = draw_view(
                self.augment,
                view_key(self.seed, epoch, key),
                opened.size,
                self.image_size,
                self.fit,
                self.colour_axes,
            )
            reduction = choose_reduction(view.box, self.image_size) if self.scaled_decoding else 1
            pixels = opened.decode(reduction)
            seen = view._replace(box=reduce_box(view.box, opened.size, pixels.shape))
            apply_view(pixels, seen, self.image_size, self.fit, self.augment.fused, out)
        except UnreadableImageError as error:
            raise InputError(f"cannot read the image {key!r}: {error.reason}.") from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot read the image {key!r}: {reason}.") from None
        except Exception as error:
            error.add_note(f"while loading the image {key!r}")
            raise
        return view


def check_loader(
    image_ids: Sequence[str],
    targets: np.ndarray,
    image_size: tuple[int, int],
    augment: AugmentSection,
    num_classes: int,
    colour_axes: np.ndarray | None,
) -> None:
    """Refuse what cannot be loaded.

    Raises:
        InputError: See `Loader`.
    """
    if len(image_ids) != len(targets) or not len(image_ids):
        raise InputError(
            f"a loader needs images and one target for each, but got {len(image_ids)} images and "
            f"{len(targets)} targets."
        )
    key, times = Counter(image_ids).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"each image needs a key of its own, because views are drawn by it, but {key!r} is "
            f"there {times} times; name every image once."
        )
    mixed = bool(augment.mixup or augment.cutmix)
    if mixed and not (np.min(targets) >= 0 and np.max(targets) < num_classes):
        raise InputError(
            "augment.mixup and augment.cutmix blend labels, so targets must be in "
            f"[0, num_classes), but they are in [{np.min(targets)}, {np.max(targets)}] and "
            f"num_classes is {num_classes}; pass the number of classes."
        )
    if augment.quarter_turns and image_size[0] != image_size[1]:
        raise InputError(
            f"augment.quarter_turns needs images as high as wide, but the size is {image_size}; "
            "choose a square one, or switch quarter_turns off."
        )
    if augment.colour_pca and colour_axes is None:
        raise InputError(
            "augment.colour_pca needs the axes on which the colours of the training images vary, "
            "but none are given; pass colour_axes."
        )
