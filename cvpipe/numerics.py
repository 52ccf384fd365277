"""Small things that every kind of computation needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the numerical libraries compute in one thread.

    With more, the last digits of a sum may change; and the callers run in threads of their own,
    where two pools on the same cores make each other slower.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


def softmax(scores: np.ndarray) -> np.ndarray:
    """Turn the scores of classes, `(n, num_classes)`, into probabilities.

    Example:
        >>> softmax(np.log([[1.0, 3.0]])).round(3).tolist()
        [[0.25, 0.75]]
    """
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
