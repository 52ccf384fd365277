"""Evaluation views: an image seen several times, and the mean of what is said of it.

An image is decoded once and resized to one size or to several; crops of the size that a feature
or network takes flow out, and the mean of their probabilities. Views of one image are always in
the order of `VIEWS` and stand together.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.inference.calibration import FLOOR

SINGLE = "single"
# Of the whole image nothing is cut; sizes are counted in sevenths of the side that is cut.
WHOLE, USUAL_MARGIN, WIDE_MARGIN = 7, 8, 9
CENTRE = ("centre",)
CORNERS_AND_CENTRE = ("top_left", "top_right", "bottom_left", "bottom_right", *CENTRE)
# Each kind with the places it cuts from, by the sevenths to which the image is resized before,
# and whether mirrored copies of them all follow.
VIEWS: dict[str, tuple[Mapping[int, tuple[str, ...]], bool]] = {
    SINGLE: ({WHOLE: CENTRE}, False),
    "flip": ({WHOLE: CENTRE}, True),
    "centre": ({USUAL_MARGIN: CENTRE}, False),
    "five_crop": ({USUAL_MARGIN: CORNERS_AND_CENTRE}, False),
    "ten_crop": ({USUAL_MARGIN: CORNERS_AND_CENTRE}, True),
    "multi_scale": ({WHOLE: CENTRE, USUAL_MARGIN: CENTRE, WIDE_MARGIN: CENTRE}, False),
}
CUT_RULE = "views-1"  # part of cache keys; a change of what is cut needs a new name
# As a predictions table asks. A softmax in float32 sums to 1 within some 1e-6; logits do not.
SUM_TOLERANCE = 1e-4
PROBABILITIES = "probabilities"


def num_views(kind: str) -> int:
    """Count the views of an image: so many passes does it take.

    Raises:
        InputError: The kind is not in `VIEWS`.
    """
    places, is_mirrored = _described(kind)
    return sum(map(len, places.values())) * (2 if is_mirrored else 1)


def sizes_to_load(kind: str, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """List the sizes to which an image is resized, from one decode.

    Args:
        kind: A key of `VIEWS`.
        image_size: `(height, width)` that the feature or network takes.

    Raises:
        InputError: The kind is not in `VIEWS`.

    Example:
        >>> sizes_to_load("single", (224, 112)), sizes_to_load("ten_crop", (224, 112))
        ([(224, 112)], [(256, 128)])
        >>> sizes_to_load("multi_scale", (224, 112))
        [(224, 112), (256, 128), (288, 144)]
    """
    places, _ = _described(kind)
    return [size_to_crop_from(image_size, sevenths) for sevenths in places]


def crops_the_image(kind: str) -> bool:
    """Tell whether a view cuts parts of the border away.

    Raises:
        InputError: The kind is not in `VIEWS`.
    """
    return max(_described(kind)[0]) > WHOLE


def size_to_crop_from(crop_size: tuple[int, int], sevenths: int = USUAL_MARGIN) -> tuple[int, int]:
    """Say to which size images are resized before they are cropped.

    Args:
        crop_size: `(height, width)` that is taken.
        sevenths: How large the image is, in sevenths of that.

    Returns:
        `(height, width)`, rounded up: 256 pixels for the usual 224.

    Example:
        >>> size_to_crop_from((224, 112))
        (256, 128)

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, sections 2 and 4.1: crops of 224 from 256 pixels.
    """
    height, width = crop_size
    return -(-height * sevenths // WHOLE), -(-width * sevenths // WHOLE)


def slice_views(
    images: Sequence[np.ndarray], crop_size: tuple[int, int], kind: str
) -> list[np.ndarray]:
    """Cut the views of one image, or of many of one size, without copying a pixel.

    The centre lies half a pixel further to the top or left where the margin is odd. A mirrored view
    is the mirror image of the crop, left to right.

    Args:
        images: The same images once for each size of `sizes_to_load`: arrays of shape
            `(..., height, width, channels)`.
        crop_size: `(height, width)` in pixels, at most the images' own.
        kind: A key of `VIEWS`: `"single"`, the whole image; `"flip"`, it and its mirror image;
            `"centre"`; `"five_crop"`, top left, top right, bottom left, bottom right and centre;
            `"ten_crop"`, these five and then their mirror images in the same order;
            `"multi_scale"`, the whole image and two centres, the smaller cut last.

    Returns:
        Views into `images`, each of shape `(..., *crop_size, channels)`.

    Raises:
        InputError: The kind is unknown, there are more or fewer sizes than it has, or a crop would
            be empty or larger than the image.

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, section 4.1 (ten crops).
    """
    places, is_mirrored = _described(kind)
    if len(images) != len(places):
        raise InputError(
            f"{kind!r} is cut from images of {len(places)} size(s), but got {len(images)}; pass a "
            f"list of one array for each of {sizes_to_load(kind, crop_size)}."
        )
    pairs = zip(images, places.values(), strict=True)
    crops = [_slice(array, place, crop_size) for array, some in pairs for place in some]
    return [*crops, *(crop[..., ::-1, :] for crop in crops)] if is_mirrored else crops


def crop_origins(kind: str, crop_size: tuple[int, int]) -> tuple[list[tuple[int, int]], bool]:
    """Say where a view that needs images of one size is cut from them.

    Args:
        kind: A key of `VIEWS`; none that needs images of several sizes.
        crop_size: `(height, width)` in pixels.

    Returns:
        `(top, left)` of each crop in images of the size `sizes_to_load`, and whether the mirror
        images of all crops follow.

    Example:
        >>> crop_origins("ten_crop", (224, 112))
        ([(0, 0), (0, 16), (32, 0), (32, 16), (16, 8)], True)
    """
    places, is_mirrored = _described(kind)
    ((sevenths, some),) = places.items()
    image_size = size_to_crop_from(crop_size, sevenths)
    return [_origin(place, image_size, crop_size) for place in some], is_mirrored


def _slice(images: np.ndarray, place: str, crop_size: tuple[int, int]) -> np.ndarray:
    height, width = crop_size
    top, left = _origin(place, images.shape[-3:-1], crop_size)
    return images[..., top : top + height, left : left + width, :]


def _origin(place: str, image_size: tuple[int, ...], crop_size: tuple[int, int]) -> tuple[int, int]:
    height, width = crop_size
    if not (1 <= height <= image_size[0] and 1 <= width <= image_size[1]):
        raise InputError(
            f"cannot cut crops of {tuple(crop_size)} pixels out of images of {image_size}; lower "
            f"the crop size, or load images of for example {size_to_crop_from(crop_size)}."
        )
    bottom, right = image_size[0] - height, image_size[1] - width
    return {
        "top_left": (0, 0),
        "top_right": (0, right),
        "bottom_left": (bottom, 0),
        "bottom_right": (bottom, right),
        "centre": (bottom // 2, right // 2),
    }[place]


def cut_batch(images: Sequence[np.ndarray], crop_size: tuple[int, int], kind: str) -> np.ndarray:
    """Cut the views of many images; those of an image stand together.

    Args:
        images: See `slice_views`; arrays of shape `(n, height, width, channels)`.
        crop_size: See there.
        kind: See there.

    Returns:
        Array of shape `(n * num_views, *crop_size, channels)`: what a network takes.

    Raises:
        InputError: See `slice_views`.

    Example:
        >>> images = np.arange(6).reshape(1, 2, 3, 1)  # 0 1 2 over 3 4 5
        >>> cut_batch([images], (1, 1), "five_crop").ravel().tolist()
        [0, 2, 3, 5, 1]
        >>> cut_batch([images], (2, 3), "flip").ravel().tolist()
        [0, 1, 2, 3, 4, 5, 2, 1, 0, 5, 4, 3]
    """
    views = np.stack(slice_views(images, crop_size, kind), axis=1)
    return views.reshape(-1, *views.shape[2:])


def join_views(blocks: Sequence[np.ndarray], scales: Sequence[float] = ()) -> np.ndarray:
    """Put the rows of several features side by side, view by view.

    Args:
        blocks: At least one array of shape `(n, num_views, length)`, each of its own length; one
            of a single view stands in every view.
        scales: What the rows of each are multiplied by; empty: nothing.

    Returns:
        Array of shape `(n, num_views * (length + length + ...))`.

    Example:
        >>> facts, pixels = np.array([[[9]]]), np.array([[[1, 2], [3, 4]]])
        >>> join_views([facts, pixels]).tolist()
        [[9, 1, 2, 9, 3, 4]]
    """
    if scales:
        blocks = [block * np.float32(s) for block, s in zip(blocks, scales, strict=True)]
    views = max(block.shape[1] for block in blocks)
    shapes = [(len(block), views, block.shape[2]) for block in blocks]
    joined = np.concatenate(
        [np.broadcast_to(block, shape) for block, shape in zip(blocks, shapes, strict=True)], axis=2
    )
    return joined.reshape(len(joined), views * joined.shape[2])


def average_over_views(
    predict: Callable[[np.ndarray], np.ndarray], kind: str, mean_of: str = PROBABILITIES
) -> Callable[[np.ndarray], np.ndarray]:
    """Make a function of rows into one of the rows of all views of an image, side by side.

    The mean of probabilities is the usual way, and what the ten crops of AlexNet were averaged by:
    one view that is badly off cannot overrule the others, as it can when logits are averaged. The
    softmax of averaged logits is the normalised geometric mean of the probabilities, so it is
    computed from these, for contenders that have no logits as well.

    Args:
        predict: From rows `(n, row_size)` to probabilities `(n, num_classes)`.
        kind: A key of `VIEWS`.
        mean_of: `"probabilities"` or `"logits"`.

    Returns:
        Function from rows `(n, num_views * row_size)` to probabilities, `float64 (n, num_classes)`.
        It raises `InputError` for rows that cannot be divided, and where what is to be averaged
        are no probabilities. Of `"single"` it is `predict` itself.

    Raises:
        InputError: The kind is not in `VIEWS`, or there is no such mean.

    Example:
        >>> predict = average_over_views(lambda rows: np.hstack([rows, 1 - rows]), "flip")
        >>> predict(np.array([[0.75, 0.25], [1.0, 0.5]])).tolist()
        [[0.5, 0.5], [0.75, 0.25]]
    """
    views, mean = num_views(kind), MEANS[check_name("mean of views", mean_of, MEANS)]
    if kind == SINGLE:
        return predict

    def averaged(rows: np.ndarray) -> np.ndarray:
        if rows.shape[1] % views:
            raise InputError(
                f"{kind!r} has {views} views of each image, but the rows have {rows.shape[1]} "
                "numbers; pass the rows of all views side by side."
            )
        # One view of all images at a time: as much memory as one view takes, and its bits.
        parts = [predict(np.ascontiguousarray(part)) for part in np.split(rows, views, axis=1)]
        return mean(np.stack([_probabilities(part) for part in parts]))

    return averaged


def _mean(views: np.ndarray) -> np.ndarray:
    return views.mean(axis=0)


def _geometric_mean(views: np.ndarray) -> np.ndarray:
    product = np.exp(np.log(np.maximum(views, FLOOR)).mean(axis=0))
    return product / product.sum(axis=1, keepdims=True)


MEANS = {PROBABILITIES: _mean, "logits": _geometric_mean}


def _probabilities(values: np.ndarray) -> np.ndarray:
    """Return what a view gives as `float64`, if its rows sum to 1."""
    sums = values.sum(axis=-1, dtype=np.float64)
    # `not (a <= b)` instead of `a > b`, so that a NaN counts as bad.
    bad = np.flatnonzero(~(np.abs(sums - 1) <= SUM_TOLERANCE))
    if len(bad):
        raise InputError(
            f"the probabilities of each view must sum to 1, but those of image {bad[0]} sum to "
            f"{sums[bad[0]]:.3f}; pass probabilities, not logits."
        )
    return values.astype(np.float64)


def _described(kind: str) -> tuple[Mapping[int, tuple[str, ...]], bool]:
    return VIEWS[check_name("view", kind, VIEWS)]
