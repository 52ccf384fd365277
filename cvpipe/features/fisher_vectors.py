"""Fisher vectors: an image as how its local descriptors would move a mixture of Gaussians."""

from collections.abc import Iterator

import numpy as np

from cvpipe.errors import TooLittleToLearnError
from cvpipe.features.base import ImageSize, ImageTransformer, check_number
from cvpipe.features.codebook import BLOCK_IMAGES, MAX_SAMPLES, sample_rows
from cvpipe.features.dense_descriptors import (
    DESCRIPTOR_LENGTH,
    check_patch_grid,
    dense_descriptors,
    descriptor_places,
)
from cvpipe.numerics import one_thread

# Of the mean variance of all dimensions, what no Gaussian's variance is below. A Gaussian that
# shrinks to a few equal descriptors would otherwise outweigh all others.
LEAST_VARIANCE = 1e-3
MAX_GAUSSIANS = 1_000


class FisherVectors(ImageTransformer):
    """Describe an image by how its local descriptors differ from those of the train images.

    `fit` draws SIFT-like descriptors from its images, keeps their `num_dimensions` principal
    components and fits a mixture of `num_gaussians` Gaussians with diagonal covariances. The
    row of an image is the gradient of its descriptors' mean log likelihood
    with respect to the Gaussians' means and standard deviations, in units of
    the gradient's own spread (the square root of the Fisher information): on which side of a
    Gaussian's centre the descriptors lie, and whether they lie wider. The signed square root is
    taken of each value, and the row gets the length 1.

    Descriptors of flat patches are left out; an image that has no others gets a row of
    zeros. Departures from the paper: no gradient with respect to the weights, which it finds to add
    little; the gradient is of the mean instead of the sum, which a length of 1 makes the same.

    Memory: `fit` holds the sampled descriptors, their components and what the mixture computes of
    them: 160 MB for 100,000 descriptors. Describing holds the descriptors of 8 images. Neither
    depends on the number of images.

    Args:
        num_gaussians: Number of Gaussians.
        num_dimensions: Principal components of the descriptors, at most 128.
        places: Whether row and column of each descriptor are two more dimensions, so that Gaussians
            are of parts of the image; instead of a spatial pyramid, at a fraction of its length.
        step_pixels: Distance of neighbouring descriptors in pixels, see `dense_descriptors`.
        cell_pixels: Sides of the descriptors' cells in pixels, a grid for each; a patch is 4 cells
            wide.
        num_samples: Number of descriptors that are learned from.
        random_state: Seed of the sample and of the mixture.

    Attributes:
        centre_: `float32` array of shape `(128,)`, the mean descriptor.
        axes_: `float32` array of shape `(128, num_dimensions)`, the principal axes.
        weights_: `float64` array of shape `(num_gaussians,)` with the sum 1.
        means_: `float64` array of shape `(num_gaussians, dimensions)`, where `dimensions`
            is `num_dimensions`, or 2 more with `places`.
        variances_: `float64` array of the same shape.

    References:
        Sanchez, Perronnin, Mensink and Verbeek, "Image Classification with the Fisher Vector:
        Theory and Practice", IJCV 105, 2013, sections 2 and 3. Perronnin, Sanchez and Mensink,
        "Improving the Fisher Kernel for Large-Scale Image Classification", ECCV 2010
        (square root and length). Sanchez, Perronnin and de Campos, "Modeling the Spatial Layout of
        Images Beyond Spatial Pyramids", Pattern Recognition Letters 33, 2012 (places).
    """

    title = "a Fisher vector"
    learns = True

    def __init__(
        self,
        num_gaussians: int = 32,
        num_dimensions: int = 64,
        places: bool = True,
        step_pixels: int = 8,
        cell_pixels: tuple[int, ...] = (4, 8),
        num_samples: int = 100_000,
        random_state: int = 0,
    ) -> None:
        self.num_gaussians = num_gaussians
        self.num_dimensions = num_dimensions
        self.places = places
        self.step_pixels = step_pixels
        self.cell_pixels = cell_pixels
        self.num_samples = num_samples
        self.random_state = random_state

    def check_settings(self, image_size: ImageSize) -> None:
        """Check the settings, also against the size of the images, without fitting.

        Raises:
            InputError: A setting is not possible, or not with such images.
        """
        check_number(self.title, "num_gaussians", self.num_gaussians, 2, MAX_GAUSSIANS)
        check_number(self.title, "num_dimensions", self.num_dimensions, 1, DESCRIPTOR_LENGTH)
        check_number(self.title, "num_samples", self.num_samples, self.num_gaussians, MAX_SAMPLES)
        check_patch_grid(self.title, image_size, self.step_pixels, self.cell_pixels)

    def _learn(self, images: np.ndarray) -> None:
        from sklearn.mixture import GaussianMixture

        samples = sample_rows(self._placed_descriptors, images, self.num_samples, self.random_state)
        samples = samples[_has_contrast(samples)]
        if len(samples) < self.num_gaussians:
            raise TooLittleToLearnError(
                f"{self.num_gaussians} Gaussians cannot be learned from {len(samples)} "
                "descriptors of patches with contrast; lower num_gaussians or step_pixels, raise "
                "num_samples or give more images."
            )
        with one_thread():
            descriptors = samples[:, :DESCRIPTOR_LENGTH]
            self.centre_, self.axes_ = principal_axes(descriptors, self.num_dimensions)
            points = self._project(samples)
            floor = LEAST_VARIANCE * float(points.var(axis=0).mean())
            mixture = GaussianMixture(
                self.num_gaussians,
                covariance_type="diag",
                # Added to each variance, hence also a floor.
                reg_covar=floor or 1.0,
                random_state=self.random_state,
            ).fit(points)
        self.weights_ = mixture.weights_.astype(np.float64)
        self.means_ = mixture.means_.astype(np.float64)
        self.variances_ = mixture.covariances_.astype(np.float64)

    def _describe(self, images: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(images), 2 * self.means_.size), dtype=np.float32)
        with one_thread():
            for number, descriptors in enumerate(self._placed_by_image(images)):
                kept = descriptors[_has_contrast(descriptors)]
                if len(kept):
                    points = self._project(kept)
                    gradient = fisher_gradient(points, self.weights_, self.means_, self.variances_)
                    rows[number] = normalise_gradient(gradient)
        return rows

    def _placed_by_image(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Describe patches of one image after the other."""
        for start in range(0, len(images), BLOCK_IMAGES):
            yield from self._placed_descriptors(images[start : start + BLOCK_IMAGES])

    def _placed_descriptors(self, images: np.ndarray) -> np.ndarray:
        """Describe patches of images; with `places` row and column are two more values."""
        descriptors = dense_descriptors(images, self.step_pixels, self.cell_pixels)
        if not self.places:
            return descriptors
        image_size = (images.shape[1], images.shape[2])
        places = descriptor_places(image_size, self.step_pixels, self.cell_pixels) - np.float32(0.5)
        repeated = np.broadcast_to(places, (len(images), *places.shape))
        return np.concatenate([descriptors, repeated], axis=2)

    def _project(self, descriptors: np.ndarray) -> np.ndarray:
        """Reduce descriptors to principal components; places stay."""
        points = (descriptors[:, :DESCRIPTOR_LENGTH] - self.centre_) @ self.axes_
        return np.hstack([points, descriptors[:, DESCRIPTOR_LENGTH:]])


def principal_axes(rows: np.ndarray, num_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the directions in which rows differ most.

    Args:
        rows: `float32` array of shape `(num_rows, length)`.
        num_axes: Number of directions, at most `length`.

    Returns:
        `float32` arrays: the mean, `(length,)`, and the principal axes as columns,
        `(length, num_axes)`, that of the largest variance first, each with its largest value
        positive.
    """
    centre = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = rows - centre
    _, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = axes[:, ::-1][:, :num_axes]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    return centre, (axes * np.sign(largest)).astype(np.float32)


def fisher_gradient(
    points: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """Differentiate the mean log likelihood of points under a mixture of Gaussians.

    In units of the square root of the Fisher information, which is taken to be diagonal: w / s^2
    for a mean and 2 w / s^2 for a standard deviation s of a Gaussian with the weight w.

    Args:
        points: `float32` array of shape `(num_points, dimensions)`, at least one point. The last
            bits depend on the number of points.
        weights: Array of shape `(num_gaussians,)`.
        means: Array of shape `(num_gaussians, dimensions)`.
        variances: Array of the same shape: the diagonals of the covariances.

    Returns:
        `float64` array of shape `(2, num_gaussians, dimensions)`: with respect to the means, and to
        the standard deviations.

    References:
        Sanchez, Perronnin, Mensink and Verbeek, IJCV 105, 2013, equations 17 and 18 and
        appendix A.

    Example:
        >>> points = np.array([[3.0], [5.0]], np.float32)  # 1 and 2 deviations above the mean
        >>> fisher_gradient(points, np.ones(1), np.ones((1, 1)), np.full((1, 1), 4.0)).round(3)
        array([[[1.5  ]],
        <BLANKLINE>
               [[1.061]]])
    """
    # A log density is a linear function of squares, values and 1, and all that the gradients need
    # are weighted sums of the same: two matrix products do nearly all of the work.
    ones = np.ones((len(points), 1), dtype=np.float32)
    terms = np.hstack([np.square(points), points, ones])
    posteriors = _posteriors(terms, weights, means, variances)
    moments = (posteriors.T @ terms).astype(np.float64) / len(points)
    squares, values, shares = np.split(moments, [means.shape[1], 2 * means.shape[1]], axis=1)
    by_mean = (values - means * shares) / np.sqrt(variances)
    spread = squares - 2 * means * values + np.square(means) * shares
    by_deviation = (spread / variances - shares) / np.sqrt(2)
    return np.stack([by_mean, by_deviation]) / np.sqrt(weights)[:, None]


def normalise_gradient(gradient: np.ndarray) -> np.ndarray:
    """Take the signed square root of each value, and make the whole have the length 1.

    Args:
        gradient: Array of any shape.

    Returns:
        Array of the same values in one row; zeros stay zeros.

    Example:
        >>> normalise_gradient(np.array([[9.0, 0.0], [-16.0, 0.0]]))
        array([ 0.6,  0. , -0.8,  0. ])
    """
    row = np.copysign(np.sqrt(np.abs(gradient)), gradient).ravel()
    length = np.linalg.norm(row)
    return row / length if length else row


def _posteriors(
    terms: np.ndarray, weights: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """Compute how probably each point is from each Gaussian: `(num_points, num_gaussians)`."""
    constants = np.log(weights) - 0.5 * (np.log(variances) + np.square(means) / variances).sum(
        axis=1
    )
    coefficients = np.hstack([-0.5 / variances, means / variances, constants[:, None]])
    logs = terms @ coefficients.astype(np.float32).T
    logs -= logs.max(axis=1, keepdims=True)
    posteriors = np.exp(logs, out=logs)
    posteriors /= posteriors.sum(axis=1, keepdims=True)
    return posteriors


def _has_contrast(descriptors: np.ndarray) -> np.ndarray:
    """Tell which descriptors are not of flat patches, whose values are all 0."""
    return np.any(descriptors[:, :DESCRIPTOR_LENGTH], axis=1)
