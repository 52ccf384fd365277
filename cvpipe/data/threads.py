"""Load many images in threads, in order, with a bounded look-ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from cvpipe.data.images import DecodeRule, read_image, resize_image

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, chunk: int = 1
) -> Generator[Result, None, None]:
    """Apply a function to items in threads; results come in the order of the items.

    At most `threads + 2` chunks are under way or waiting, so memory stays bounded however
    slow the consumer is. An exception of the function is raised at its chunk's turn.

    Args:
        function: Called in a worker thread.
        items: Its arguments.
        threads: Number of worker threads; 0: none, an item is done when it is asked for.
        chunk: Items that a thread takes at once; handing one over costs it about .1 ms.
    """

    def apply(some: tuple[Item, ...]) -> list[Result]:
        return [function(item) for item in some]

    if threads == 0:
        yield from map(function, items)
        return
    pending: deque[Future[list[Result]]] = deque()
    items = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        try:
            while some := tuple(islice(items, chunk)):
                pending.append(pool.submit(apply, some))
                if len(pending) >= threads + 2:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def load_batches(
    paths: Sequence[Path],
    image_size: tuple[int, int],
    rule: DecodeRule,
    batch_size: int,
    threads: int,
) -> Iterator[np.ndarray]:
    """Load images in batches, in the order of the paths; the last batch may be smaller.

    Args:
        paths: Image files.
        image_size: `(height, width)` in pixels.
        rule: How a file becomes pixels.
        batch_size: Images per batch.
        threads: Number of worker threads; the result does not depend on it.

    Yields:
        `uint8` arrays of shape `(n, height, width, 3)` with `n <= batch_size`.

    Raises:
        InputError: An image cannot be read; the message names it.
    """
    for (batch,) in load_sizes(paths, [image_size], rule, batch_size, threads):
        yield batch


def load_sizes(
    paths: Sequence[Path],
    image_sizes: Sequence[tuple[int, int]],
    rule: DecodeRule,
    batch_size: int,
    threads: int,
) -> Iterator[list[np.ndarray]]:
    """Load images in batches as `load_batches` does, in several sizes from one decode.

    Args:
        paths: Image files.
        image_sizes: Of each `(height, width)` in pixels.
        rule: How a file becomes pixels.
        batch_size: Images per batch.
        threads: Number of worker threads; the result does not depend on it.

    Yields:
        One array for each size, as `load_batches` gives it.

    Raises:
        InputError: An image cannot be read; the message names it.
    """

    def load(batch: Sequence[Path]) -> list[np.ndarray]:
        images = (read_image(path, rule) for path in batch)
        resized = [[resize_image(image, s, rule.fit) for s in image_sizes] for image in images]
        return [np.stack(of_size) for of_size in zip(*resized, strict=True)]

    starts = range(0, len(paths), batch_size)
    yield from ordered_map(load, (paths[s : s + batch_size] for s in starts), threads)
