"""Measure the pixels of the training images: what a network subtracts, and how colours vary.

Batches of images flow in, one after another; their statistics flow out. Only whole numbers are
added up, so the result is the same to the last bit whatever the size and order of the batches.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cvpipe.errors import InputError
from cvpipe.files import atomic_path


@dataclass(frozen=True, eq=False)
class PixelStatistics:
    """Means and spreads over all pixels of a set of images; all `float64`, in grey levels.

    The principal axes of colour are the directions, in the space of red, green and blue, along
    which the colours of pixels vary most, second most and least. The colour jitter of AlexNet
    moves all pixels of an image by `colour_axes @ (alpha * colour_std)`, with three numbers
    `alpha` drawn from a normal distribution. Departure: the paper multiplies by the eigenvalue,
    a variance, so that its shifts depend on the unit of the pixels. Here it is the standard
    deviation: `alpha` is a share of what the images themselves vary by. For the paper's shifts
    of pixels in [0, 1], put `colour_std**2 / 255` in its place.

    Attributes:
        num_images: How many images were measured.
        mean_image: Mean of each value over the images, shape `(height, width, 3)`.
        channel_mean: Mean of red, green and blue over all pixels of all images, shape `(3,)`.
        channel_std: Their population standard deviations, exactly 0 for a constant channel.
        colour_axes: Orthonormal columns, shape `(3, 3)`, the one of the largest spread first. The
            first component of a column that is at least half as large as its largest one is
            positive.
        colour_std: Population standard deviation of the pixels along each axis, shape `(3,)`.

    References:
        Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional
        Neural Networks", NeurIPS 2012, sections 2 (mean image) and 4.1 (colour jitter).
    """

    num_images: int
    mean_image: np.ndarray
    channel_mean: np.ndarray
    channel_std: np.ndarray
    colour_axes: np.ndarray
    colour_std: np.ndarray


def measure_pixels(batches: Iterable[np.ndarray]) -> PixelStatistics:
    """Measure images of one size in a single pass; only one batch is held at a time.

    Args:
        batches: `uint8` arrays of shape `(n, height, width, 3)`. Pass train images alone: what is
            fitted on val or test makes their figures too good.

    Raises:
        InputError: There is no image, or a batch has another dtype or shape than this.
    """
    # 10^6 images of 512 x 512 fit: a position sums up to 255 * 10^6 < 2^28, a product of channels
    # to 255^2 * 512^2 * 10^6 < 2^54, and 64-bit integers hold 2^63.
    num_images, products = 0, np.zeros((3, 3), dtype=np.int64)
    sums: np.ndarray | None = None
    for batch in batches:
        if sums is None:
            sums = np.zeros(batch.shape[1:], dtype=np.int64)
        _check_batch(batch, sums.shape)
        num_images += len(batch)
        sums += batch.sum(axis=0, dtype=np.int64)
        for image in batch:
            products += _channel_products(image)
    if sums is None or num_images == 0:
        raise InputError("there are no images to measure; pass at least one training image.")
    return _statistics(num_images, sums, products)


def _check_batch(batch: np.ndarray, first_shape: tuple[int, ...]) -> None:
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[-1] != 3:
        raise InputError(
            "pixels are measured in uint8 batches of shape (n, height, width, 3), but one is "
            f"{batch.dtype} of shape {batch.shape}; decode the images to uint8 RGB."
        )
    if batch.shape[1:] != first_shape:
        raise InputError(
            f"the first images have {first_shape[:2]} pixels and later ones {batch.shape[1:3]}; "
            "resize all of them to one size."
        )


def _channel_products(image: np.ndarray) -> np.ndarray:
    """Sum the product of each two channels over the pixels; exact, `int64 (3, 3)`."""
    # Floats multiply several times faster than integers, and are exact while sums stay below
    # 2^53: up to 2^53 / 255^2 = 10^11 pixels in one image.
    channels = [image[..., c].ravel().astype(np.float64) for c in range(3)]
    return np.array([[one @ other for other in channels] for one in channels]).astype(np.int64)


def _statistics(num_images: int, sums: np.ndarray, products: np.ndarray) -> PixelStatistics:
    """Turn the sums per position and the sums of products of channels into statistics."""
    num_pixels = num_images * sums.shape[0] * sums.shape[1]
    channel_sums = sums.sum(axis=(0, 1))
    # Python's whole numbers have no bound and their quotient is rounded once, so that the variance
    # of a large and almost constant set is not lost in the difference of two large numbers.
    exact = channel_sums.astype(object)
    numerators = num_pixels * products.astype(object) - np.outer(exact, exact)
    covariance = (numerators / num_pixels**2).astype(np.float64)
    variances, axes = np.linalg.eigh(covariance)
    return PixelStatistics(
        num_images=num_images,
        mean_image=sums / num_images,
        channel_mean=channel_sums / num_pixels,
        channel_std=np.sqrt(covariance.diagonal()),
        colour_axes=_with_fixed_signs(axes[:, ::-1]),
        colour_std=np.sqrt(np.maximum(variances[::-1], 0.0)),  # rounding may leave -1e-13
    )


def _with_fixed_signs(axes: np.ndarray) -> np.ndarray:
    """Choose one of the two directions of each axis.

    Half of the largest component is asked for, because equal components, as in (1, -1, 0), differ
    by rounding, and "the largest is positive" would be decided by that.
    """
    sizes = np.abs(axes)
    decisive = (sizes >= sizes.max(axis=0) / 2).argmax(axis=0)
    return axes * np.sign(axes[decisive, [0, 1, 2]])


def write_statistics(path: Path, statistics: PixelStatistics) -> None:
    """Write statistics as an `.npz` file; equal statistics give equal bytes."""
    with atomic_path(path) as partial:
        np.savez(partial, **asdict(statistics))


def read_statistics(path: Path) -> PixelStatistics:
    """Read what `write_statistics` wrote, to the last bit."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    return PixelStatistics(num_images=int(arrays.pop("num_images")), **arrays)
