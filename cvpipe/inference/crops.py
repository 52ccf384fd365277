"""Evaluation views: several crops of an image, whose predictions are averaged.

Images flow in that were decoded and resized once, somewhat larger than the network takes them;
crops of the network's size flow out, and the mean of their probabilities. Views of one image are
always in the order of `VIEWS` and stand together.
"""

import math

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.inference.calibration import FLOOR

# Each kind with the places it cuts from, and whether mirrored copies of them all follow.
CORNERS_AND_CENTRE = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
VIEWS: dict[str, tuple[tuple[str, ...], bool]] = {
    "centre": (("centre",), False),
    "flip": (("centre",), True),
    "five_crop": (CORNERS_AND_CENTRE, False),
    "ten_crop": (CORNERS_AND_CENTRE, True),
}
# As a predictions table asks. A softmax in float32 sums to 1 within some 1e-6; logits do not.
SUM_TOLERANCE = 1e-4


def num_views(kind: str) -> int:
    """Count the views of an image.

    Raises:
        InputError: The kind is not in `VIEWS`.
    """
    places, is_mirrored = VIEWS[check_name("view", kind, VIEWS)]
    return len(places) * (2 if is_mirrored else 1)


def size_to_crop_from(crop_size: tuple[int, int]) -> tuple[int, int]:
    """Recommend the size to which images are resized before they are cropped.

    Args:
        crop_size: `(height, width)` that the network takes.

    Returns:
        `(height, width)`, 8/7 of it rounded up: 256 pixels for the usual 224.

    Example:
        >>> size_to_crop_from((224, 112))
        (256, 128)

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, sections 2 and 4.1: crops of 224 from 256 pixels.
    """
    height, width = crop_size
    return math.ceil(height * 8 / 7), math.ceil(width * 8 / 7)


def slice_views(images: np.ndarray, crop_size: tuple[int, int], kind: str) -> list[np.ndarray]:
    """Cut the views of one image, or of many of one size, without copying a pixel.

    The centre lies half a pixel further to the top or left where the margin is odd. A mirrored view
    is the mirror image of the crop, left to right.

    Args:
        images: Array of shape `(..., height, width, channels)`.
        crop_size: `(height, width)` in pixels, at most the images' own.
        kind: A key of `VIEWS`: `"centre"`; `"flip"`, the centre and its mirror image;
            `"five_crop"`, top left, top right, bottom left, bottom right and centre; `"ten_crop"`,
            these five and then their mirror images in the same order.

    Returns:
        Views into `images`, each of shape `(..., *crop_size, channels)`.

    Raises:
        InputError: The kind is unknown, or a crop would be empty or larger than the image.

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, section 4.1 (ten crops).
    """
    places, is_mirrored = VIEWS[check_name("view", kind, VIEWS)]
    image_size, (height, width) = images.shape[-3:-1], crop_size
    if not (1 <= height <= image_size[0] and 1 <= width <= image_size[1]):
        raise InputError(
            f"cannot cut crops of {tuple(crop_size)} pixels out of images of {image_size}; lower "
            f"the crop size, or load images of for example {size_to_crop_from(crop_size)}."
        )
    bottom, right = image_size[0] - height, image_size[1] - width
    origins = {
        "top_left": (0, 0),
        "top_right": (0, right),
        "bottom_left": (bottom, 0),
        "bottom_right": (bottom, right),
        "centre": (bottom // 2, right // 2),
    }
    crops = []
    for place in places:
        top, left = origins[place]
        crops.append(images[..., top : top + height, left : left + width, :])
    return [*crops, *(crop[..., ::-1, :] for crop in crops)] if is_mirrored else crops


def cut_views(image: np.ndarray, crop_size: tuple[int, int], kind: str) -> np.ndarray:
    """Cut the views of one image, as one array.

    Args:
        image: Array of shape `(height, width, channels)`.
        crop_size: See `slice_views`.
        kind: See there.

    Returns:
        Array of shape `(num_views, *crop_size, channels)`.

    Raises:
        InputError: See `slice_views`.

    Example:
        >>> image = np.arange(6).reshape(2, 3, 1)  # 0 1 2 over 3 4 5
        >>> cut_views(image, (1, 1), "five_crop").ravel().tolist()
        [0, 2, 3, 5, 1]
        >>> cut_views(image, (1, 2), "flip").ravel().tolist()
        [0, 1, 1, 0]
    """
    return np.stack(slice_views(image, crop_size, kind))


def cut_batch(images: np.ndarray, crop_size: tuple[int, int], kind: str) -> np.ndarray:
    """Cut the views of many images; those of an image stand together.

    Args:
        images: Array of shape `(n, height, width, channels)`.
        crop_size: See `slice_views`.
        kind: See there.

    Returns:
        Array of shape `(n, num_views, *crop_size, channels)`. Its `reshape(-1, *crop_size,
        channels)` is what a network takes, and `average_views` takes what the network gives.

    Raises:
        InputError: See `slice_views`.
    """
    return np.stack(slice_views(images, crop_size, kind), axis=1)


def average_views(probabilities: np.ndarray, kind: str) -> np.ndarray:
    """Average the probabilities of the views of each image.

    This is the usual way, and what the ten crops of AlexNet were averaged by. One view that is
    badly off cannot overrule the others, as it can when logits are averaged.

    Args:
        probabilities: One row per view, shape `(n, num_views, num_classes)` or `(n * num_views,
            num_classes)`, the views of an image together; rows sum to 1.
        kind: The views, a key of `VIEWS`.

    Returns:
        `float64` array of shape `(n, num_classes)`; rows sum to 1.

    Raises:
        InputError: The rows are not whole images, or they do not sum to 1.

    Example:
        >>> average_views(np.array([[0.75, 0.25], [0.25, 0.75], [1, 0], [0, 1]]), "flip").tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    return _by_image(probabilities, kind).mean(axis=1)


def average_logits(probabilities: np.ndarray, kind: str, floor: float = FLOOR) -> np.ndarray:
    """Average the logits of the views of each image: their probabilities' geometric mean.

    Logarithms of probabilities are logits but for one number per row, which the softmax ignores.
    It is surer than `average_views` where the views agree, and a view that rules a class out rules
    it out for all.

    Args:
        probabilities: See `average_views`.
        kind: See there.
        floor: Smaller probabilities are taken as this: 0 has no logarithm.

    Returns:
        `float64` array of shape `(n, num_classes)`; rows sum to 1.

    Raises:
        InputError: See `average_views`.
    """
    logs = np.log(np.maximum(_by_image(probabilities, kind), floor)).mean(axis=1)
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _by_image(probabilities: np.ndarray, kind: str) -> np.ndarray:
    """Bring rows into `float64 (n, num_views, num_classes)`."""
    views, shape = num_views(kind), probabilities.shape
    is_whole = shape[1] == views if len(shape) == 3 else len(shape) == 2 and shape[0] % views == 0
    if not is_whole:
        raise InputError(
            f"{kind!r} has {views} views of each image, but the probabilities have shape {shape}; "
            f"pass (n, {views}, num_classes) or (n * {views}, num_classes)."
        )
    # `not (a <= b)` instead of `a > b`, so that a NaN counts as bad.
    sums = probabilities.sum(axis=-1, dtype=np.float64).ravel()
    bad = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
    if len(bad):
        raise InputError(
            f"the probabilities of each view must sum to 1, but those of view {bad[0]} sum to "
            f"{sums[bad[0]]:.3f}; pass probabilities, not logits."
        )
    return probabilities.astype(np.float64).reshape(-1, views, shape[-1])
