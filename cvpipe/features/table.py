"""The features by name: plain data, loaded without OpenCV or scikit-learn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Feature:
    """A way to describe an image by numbers.

    Attributes:
        title: What people call it.
        image_size: `(height, width)` in pixels that images are brought to first.
        build: Makes the scikit-learn transformer.
        identity: What distinguishes its rows from those of other settings; part of the
            cache key, so it changes whenever the numbers do.
    """

    title: str
    image_size: tuple[int, int]
    build: Callable[[], Any]
    identity: str


def _build_hog() -> Any:
    from cvpipe.features.hog import HistogramOfOrientedGradients

    return HistogramOfOrientedGradients(cell_pixels=16)


FEATURES = {
    "hog": Feature(
        title="histogram of oriented gradients",
        image_size=(128, 128),
        build=_build_hog,
        identity="hog-1: 128x128, cell 16, 9 orientations",
    ),
}
