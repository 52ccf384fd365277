"""Hand batches from a loader to Keras."""

import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Protocol, TypeVar

import numpy as np


class Batch(Protocol):
    """What a batch has to have; see `cvpipe.data.loading.Batch`."""

    @property
    def images(self) -> np.ndarray:
        """The input of the model."""

    @property
    def targets(self) -> np.ndarray:
        """What its loss takes."""


AnyBatch = TypeVar("AnyBatch", bound=Batch)
Pair = tuple[np.ndarray, np.ndarray]


@contextlib.contextmanager
def feed(batches: Generator[AnyBatch, None, None]) -> Iterator[Generator[Pair, None, None]]:
    """Turn batches into the generator that `keras.Model.fit` takes.

    `fit` must be told `steps_per_epoch`: otherwise it starts anew where an epoch ends, and
    `shuffle=False`, or it warns that the order is not its own. It fetches ahead in a thread of its
    own and wraps errors into those of TensorFlow. When the block ends, for whatever reason, nothing
    is fetched any more, the loader's threads are gone, and an error of the loader is raised as it
    was.

    Args:
        batches: Batches of all epochs, as `cvpipe.data.loading.Loader.batches` gives them. The
            order is the loader's: `fit` does not shuffle what a generator yields.

    Example:
        >>> from collections import namedtuple
        >>> Batch = namedtuple("Batch", "images targets")
        >>> with feed(Batch(np.zeros(1), np.ones(1)) for _ in range(2)) as pairs:
        ...     [float(targets[0]) for _, targets in pairs]
        [1.0, 1.0]
    """
    lock = threading.Lock()  # a generator may not be closed while another thread is inside it
    errors: list[BaseException] = []
    closed = False

    def pairs() -> Generator[Pair, None, None]:
        while True:
            with lock:
                if closed:
                    return
                try:
                    batch = next(batches, None)
                except BaseException as error:
                    errors.append(error)
                    raise
            if batch is None:
                return
            yield batch.images, batch.targets

    try:
        yield pairs()
    except Exception:
        if errors:
            raise errors[0] from None
        raise
    finally:
        with lock:
            closed = True
            batches.close()
