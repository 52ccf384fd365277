"""Why the distance between pixels is no likeness: unlike changes of an image, equally far from it.

Distances are Euclidean (L2), over all values of an image, in grey levels of 0 to 255.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cvpipe.errors import InputError

# How far a version may lie from the distance that was asked for, as a share of it.
TOLERANCE = 0.005
HALVINGS = 40


class Version(NamedTuple):
    """A changed image.

    Attributes:
        name: What was done to it, such as `"shifted"`.
        picture: `uint8` RGB of the image's shape.
        distance: How far it is from the image, as it is after rounding.
    """

    name: str
    picture: np.ndarray
    distance: float


class Distortion(NamedTuple):
    """A way to change an image, more and more.

    Attributes:
        name: What people call it.
        apply: Makes from an image, as `float64` of shape `(height, width, 3)`, and a strength
            from 0 (nothing) to 1 (as much as can be) an image of that shape.
        usual: A strength that everybody sees and that leaves no doubt what the image shows.
    """

    name: str
    apply: Callable[[np.ndarray, float], np.ndarray]
    usual: float


def equal_distance_versions(image: np.ndarray, distance: float | None = None) -> list[Version]:
    """Change an image in several ways, each as strongly as makes the distance to it the same.

    The strength of each change is found by halving an interval. Values are rounded up or down
    at places that are drawn once, not all at the same strength, so that the distance grows in
    steps that are small beside `TOLERANCE` unless an image has very few pixels.

    Args:
        image: `uint8` RGB of shape `(height, width, 3)`.
        distance: What the distances are to be; by default what every change reaches that is
            strong enough to be seen and that leaves no doubt what the image shows.

    Returns:
        The versions, their distances within `TOLERANCE`. What cannot reach the distance is left
        out, such as a shift of an image of a single colour.

    Raises:
        InputError: The image is no such array, or the distance is not above zero.

    References:
        CS231n 2017, lecture 2 (an image, shifted, boxed out and tinted, all at one distance).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"versions are made of a uint8 image of shape (height, width, 3), not of "
            f"{image.dtype} of shape {image.shape}; decode it as RGB first."
        )
    if distance is not None and not distance > 0:
        raise InputError(
            f"the distance of the versions is {distance!r}; give one above 0, or none."
        )
    target = _common_distance(image) if distance is None else distance
    versions = [_tune(distortion, image, target) for distortion in DISTORTIONS]
    return [v for v in versions if abs(v.distance - target) <= TOLERANCE * target]


def l2_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Measure the Euclidean distance of two images over all their values, in grey levels."""
    difference = first.astype(np.float64) - second.astype(np.float64)
    return float(np.sqrt(np.square(difference).sum()))


def _common_distance(image: np.ndarray) -> float:
    """Find the least distance of the usual changes, leaving out what changes nothing."""
    versions = [_change(distortion, image, distortion.usual) for distortion in DISTORTIONS]
    return min(version.distance for version in versions if version.distance > 0)


def _tune(distortion: Distortion, image: np.ndarray, target: float) -> Version:
    """Change an image so strongly that it is as near to the wanted distance as can be."""
    usual = _change(distortion, image, distortion.usual)
    # Of a shift that is large the distance may fall again, so the small interval comes first.
    low, high = 0.0, distortion.usual if usual.distance >= target else 1.0
    nearest = usual
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        version = _change(distortion, image, middle)
        if abs(version.distance - target) < abs(nearest.distance - target):
            nearest = version
        low, high = (middle, high) if version.distance < target else (low, middle)
    return nearest


def _change(distortion: Distortion, image: np.ndarray, strength: float) -> Version:
    values = np.clip(distortion.apply(image.astype(np.float64), strength), 0, 255)
    # Rounding to the nearest would move all pixels of a smooth area at the same strength.
    thresholds = np.random.default_rng(0).random(image.shape)
    picture = np.floor(values + thresholds).astype(np.uint8)
    return Version(distortion.name, picture, l2_distance(image, picture))


def _shift(image: np.ndarray, strength: float) -> np.ndarray:
    """Move an image to the right and down by at most half its shorter side, its border drawn out.

    Between whole pixels it is a weighted mean of both.
    """
    pixels = strength * min(image.shape[:2]) / 2
    whole, part = int(pixels), pixels % 1
    for axis in (0, 1):
        places = np.arange(image.shape[axis]) - whole
        near, far = (np.maximum(place, 0) for place in (places, places - 1))
        image = (1 - part) * image.take(near, axis) + part * image.take(far, axis)
    return image


def _box(image: np.ndarray, strength: float) -> np.ndarray:
    """Cover the centre by a box, at full strength everything: black, or white on dark images."""
    rows, columns = (_covered(length, strength) for length in image.shape[:2])
    colour = 0 if image.mean() >= 128 else 255
    return image + np.multiply.outer(rows, columns)[..., None] * (colour - image)


def _covered(length: int, share: float) -> np.ndarray:
    """Tell how much of each pixel of a line the middle part of it covers: `float64 (length,)`."""
    half = share * length / 2
    from_centre = np.abs(np.arange(length) - (length - 1) / 2)
    return np.clip(half + 0.5 - from_centre, 0, min(1.0, 2 * half))


def _tint(image: np.ndarray, strength: float) -> np.ndarray:
    return image + 255 * strength * np.array([-1.0, -0.5, 1.0])


def _add_noise(image: np.ndarray, strength: float) -> np.ndarray:
    return image + 255 * strength * np.random.default_rng(1).standard_normal(image.shape)


def _darken(image: np.ndarray, strength: float) -> np.ndarray:
    return (1 - strength) * image


DISTORTIONS = (
    Distortion("shifted", _shift, 1 / 8),
    Distortion("a box over it", _box, 0.5),
    Distortion("tinted", _tint, 0.3),
    Distortion("noise", _add_noise, 0.2),
    Distortion("darker", _darken, 0.6),
)
