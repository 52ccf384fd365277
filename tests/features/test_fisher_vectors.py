import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.dense_descriptors import dense_descriptors, descriptor_places
from cvpipe.features.fisher_vectors import (
    FisherVectors,
    fisher_gradient,
    normalise_gradient,
    principal_axes,
)

SMALL = {
    "num_gaussians": 4,
    "num_dimensions": 6,
    "step_pixels": 6,
    "cell_pixels": (3,),
    "num_samples": 300,
}

# So many that matrix products are shared out between threads, if there are more than one.
LARGE = {
    "num_gaussians": 33,
    "num_dimensions": 63,
    "step_pixels": 2,
    "cell_pixels": (3,),
    "num_samples": 3_000,
}


def photos(height: int = 35, width: int = 29) -> np.ndarray:
    """Cut nine pictures out of a photo, higher than wide and odd-sized."""
    photo = skimage.data.chelsea()
    corners = [(30 * row + 40, 50 * column + 60) for row in range(3) for column in range(3)]
    return np.stack([photo[top : top + height, left : left + width] for top, left in corners])


def mixture(num_gaussians: int = 3, dimensions: int = 2, seed: int = 0, apart: float = 3.0):
    """Make weights, means and variances; the Gaussians lie about `apart` deviations apart."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, num_gaussians)
    means = rng.normal(0, apart, (num_gaussians, dimensions))
    variances = rng.uniform(0.5, 1.5, (num_gaussians, dimensions))
    return weights / weights.sum(), means, variances


def draw(parameters, num_points: int, rng) -> np.ndarray:
    """Draw points from a mixture."""
    weights, means, variances = parameters
    numbers = rng.choice(len(weights), num_points, p=weights)
    noise = rng.normal(size=(num_points, means.shape[1]))
    return (means[numbers] + noise * np.sqrt(variances[numbers])).astype(np.float32)


# The gradient.


def test_one_gaussian_by_hand():
    # Points 1 and 3 deviations below and above the mean: their mean is 1 above it, and their
    # squared distance from it is 5, 4 more than expected; over the root of 2.
    points = np.array([[8], [16]], np.float32)
    gradient = fisher_gradient(points, np.ones(1), np.array([[10.0]]), np.array([[4.0]]))
    np.testing.assert_allclose(gradient, [[[1]], [[4 / 2**0.5]]], rtol=1e-6)


def test_far_gaussians_by_hand():
    # The first point is of the first Gaussian and the second of the second, a deviation away
    # in one dimension; each gets half of it, over the root of its weight.
    weights, means = np.array([0.2, 0.8]), np.array([[0.0, 0.0], [90.0, 0.0]])
    points = np.array([[0, -1], [92, 0]], np.float32)
    by_mean, by_deviation = fisher_gradient(points, weights, means, np.array([[1, 1], [4, 1.0]]))
    half = 0.5 / np.sqrt(weights)
    np.testing.assert_allclose(by_mean, [[0, -half[0]], [half[1], 0]], atol=1e-4)
    # (1 - 1, 0 - 1) or (0 - 1, 1 - 1) over the root of 2.
    expected = [[-half[0] / 2**0.5, 0], [0, -half[1] / 2**0.5]]
    np.testing.assert_allclose(by_deviation, expected, atol=1e-3)


def slow_gradient(points, weights, means, variances) -> np.ndarray:
    """Equations 15, 17 and 18 of Sanchez et al., point by point and value by value."""
    gradient = np.zeros((2, *means.shape))
    for point in points.astype(float):
        densities = [
            weight * multivariate_normal.pdf(point, mean, np.diag(variance))
            for weight, mean, variance in zip(weights, means, variances, strict=True)
        ]
        for k, density in enumerate(densities):
            posterior = density / sum(densities)
            for d, value in enumerate(point):
                deviations = (value - means[k, d]) / variances[k, d] ** 0.5
                gradient[0, k, d] += posterior * deviations / weights[k] ** 0.5
                wider = (deviations**2 - 1) / 2**0.5
                gradient[1, k, d] += posterior * wider / weights[k] ** 0.5
    return gradient / len(points)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(0, 1000))
def test_equal_to_the_formulas_of_the_paper(num_gaussians, dimensions, num_points, seed):
    parameters = mixture(num_gaussians, dimensions, seed, apart=1.0)
    points = np.random.default_rng(seed).normal(0, 2, (num_points, dimensions)).astype(np.float32)
    gradient = fisher_gradient(points, *parameters)
    np.testing.assert_allclose(gradient, slow_gradient(points, *parameters), rtol=1e-3, atol=1e-4)


def test_it_is_the_derivative_of_the_likelihood():
    weights, means, variances = mixture(3, 2, apart=1.0)
    points = draw(mixture(2, 2, seed=9), 40, np.random.default_rng(1))

    def log_likelihood(means, deviations) -> float:
        logs = [
            np.log(weight) + multivariate_normal.logpdf(points, mean, np.diag(deviation**2))
            for weight, mean, deviation in zip(weights, means, deviations, strict=True)
        ]
        return logsumexp(logs, axis=0).mean()

    deviations = np.sqrt(variances)
    gradient = fisher_gradient(points, weights, means, variances)
    for k, d in np.ndindex(means.shape):
        step = np.zeros_like(means)
        step[k, d] = 1e-5
        by_mean = log_likelihood(means + step, deviations) - log_likelihood(
            means - step, deviations
        )
        by_deviation = log_likelihood(means, deviations + step) - log_likelihood(
            means, deviations - step
        )
        # The information of a Gaussian about its mean is 1 / s^2, about its deviation 2 / s^2.
        unit = deviations[k, d] / weights[k] ** 0.5
        np.testing.assert_allclose(gradient[0, k, d], unit * by_mean / 2e-5, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            gradient[1, k, d], unit / 2**0.5 * by_deviation / 2e-5, rtol=1e-3, atol=1e-5
        )


def test_samples_of_the_mixture_itself_move_nothing():
    # In units of its own spread: over many draws each value has the mean 0 and, times the root of
    # the number of points, the variance 1.
    parameters = mixture(3, 2, apart=30.0)
    rng = np.random.default_rng(0)
    draws = np.array([fisher_gradient(draw(parameters, 400, rng), *parameters) for _ in range(500)])
    scaled = 400**0.5 * draws
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=5 / 500**0.5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=0.2)
    assert 0.95 < scaled.std() < 1.05


@given(st.permutations(range(6)), st.permutations(range(3)))
def test_orders_do_not_matter(point_order, gaussian_order):
    weights, means, variances = mixture(3, 2, apart=1.0)
    points = draw((weights, means, variances), 6, np.random.default_rng(2))
    gradient = fisher_gradient(points, weights, means, variances)
    reordered = fisher_gradient(
        points[point_order],
        weights[gaussian_order],
        means[gaussian_order],
        variances[gaussian_order],
    )
    np.testing.assert_allclose(reordered, gradient[:, gaussian_order], rtol=1e-4, atol=1e-5)


def test_a_point_far_from_all_gaussians():
    points = np.array([[1e3, 1e3], [0, 0]], np.float32)
    gradient = fisher_gradient(points, *mixture(3, 2))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max(axis=(0, 2)) > 100).sum() == 1  # only the nearest moves


def test_a_gaussian_of_next_to_no_weight():
    weights, means, variances = mixture(2, 2)
    gradient = fisher_gradient(
        draw((weights, means, variances), 50, np.random.default_rng(0)),
        np.array([1 - 1e-12, 1e-12]), means, variances,
    )  # fmt: skip
    assert np.isfinite(gradient).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9))
def test_normalised(values):
    gradient = np.array(values)
    row = normalise_gradient(gradient)
    if not gradient.any():
        np.testing.assert_array_equal(row, 0)
        return
    np.testing.assert_allclose(np.linalg.norm(row), 1)
    squared = np.sign(row) * row**2
    np.testing.assert_allclose(squared, gradient / np.abs(gradient).sum(), atol=1e-9)


# What is learned.


def test_principal_axes_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(400, 7)) @ rng.normal(size=(7, 7)) + 3).astype(np.float32)
    pca = PCA(4, svd_solver="full").fit(rows)
    centre, axes = principal_axes(rows, 4)
    np.testing.assert_allclose(centre, pca.mean_, rtol=1e-5)
    signs = np.sign((axes * pca.components_.T).sum(axis=0))
    np.testing.assert_allclose(axes * signs, pca.components_.T, atol=1e-3)
    assert (axes[np.abs(axes).argmax(axis=0), range(4)] > 0).all()


@pytest.mark.parametrize(("places", "dimensions"), [(True, 8), (False, 6)])
def test_learned_arrays(places, dimensions):
    images = photos()
    feature = FisherVectors(**SMALL, places=places).fit(images)
    expected = {
        "centre_": ((128,), np.float32),
        "axes_": ((128, 6), np.float32),
        "weights_": ((4,), np.float64),
        "means_": ((4, dimensions), np.float64),
        "variances_": ((4, dimensions), np.float64),
    }
    for name, (shape, dtype) in expected.items():
        assert getattr(feature, name).shape == shape
        assert getattr(feature, name).dtype == dtype
    learned = {name for name in vars(feature) if name.endswith("_")}
    assert learned == {*expected, "image_size_", "n_features_out_"}
    np.testing.assert_allclose(feature.weights_.sum(), 1, rtol=1e-5)
    assert feature.n_features_out_ == 2 * 4 * dimensions
    assert feature.transform(images[:2]).shape == (2, 2 * 4 * dimensions)


def test_the_mixture_fits_the_descriptors():
    """With all descriptors as sample, the means' gradient of all together is zero."""
    images = photos()
    feature = FisherVectors(**{**SMALL, "num_samples": 10_000, "places": False}).fit(images)
    descriptors = dense_descriptors(images, 6, (3,)).reshape(-1, 128)
    points = (descriptors - feature.centre_) @ feature.axes_
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-5)
    learned = (feature.weights_, feature.means_, feature.variances_)
    together = fisher_gradient(points, *learned)
    alone = [fisher_gradient(part, *learned) for part in np.split(points, len(images))]
    assert np.abs(together[0]).max() < 0.03
    assert np.abs(alone).max() > 0.5
    np.testing.assert_allclose(np.mean(alone, axis=0), together, atol=1e-4)


def test_equal_descriptors_do_not_make_a_gaussian_without_width():
    # One image many times over, so that each descriptor occurs 30 times.
    images = np.repeat(photos()[:1], 30, axis=0)
    feature = FisherVectors(**{**SMALL, "num_gaussians": 8, "places": False}).fit(images)
    descriptors = dense_descriptors(images[:1], 6, (3,))[0]
    spread = ((descriptors - feature.centre_) @ feature.axes_).var(axis=0).mean()
    assert feature.variances_.min() > 0.9e-3 * spread
    assert np.isfinite(feature.transform(images[:1])).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_a_single_kind_of_descriptor():
    # An even slope looks the same everywhere: there is nothing to tell apart.
    image = np.repeat(np.arange(0, 200, 4, dtype=np.uint8)[:, None, None], 50, axis=1)
    image = np.repeat(image, 3, axis=2)[None]
    inner = {**SMALL, "step_pixels": 50, "cell_pixels": (3, 3, 3, 3)}
    feature = FisherVectors(**{**inner, "places": False}).fit(image)
    assert np.isfinite(feature.transform(image)).all()
    np.testing.assert_allclose(feature.variances_, 1, atol=1e-3)


def test_the_same_fit_has_the_same_bits():
    images = photos(70, 61)
    state = np.random.get_state()[1].copy()
    fits = []
    for num_threads in (1, 2):
        with threadpool_limits(num_threads):
            fits.append(FisherVectors(**LARGE).fit(images))
            fits.append(FisherVectors(**LARGE).fit(np.repeat(images, 2, axis=2)[:, :, ::2]))
    for name in ("centre_", "axes_", "weights_", "means_", "variances_"):
        for other in fits[1:]:
            np.testing.assert_array_equal(getattr(fits[0], name), getattr(other, name))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    other = FisherVectors(**LARGE, random_state=1).fit(images)
    assert np.abs(other.means_ - fits[0].means_).max() > 0.01


# How images are described.


def half_flat() -> np.ndarray:
    """Make an image of which the left part is flat."""
    image = photos()[0].copy()
    image[:, :18] = 90
    return image


@pytest.mark.parametrize("places", [True, False])
def test_equal_to_slow_steps(places):
    images = np.concatenate([photos()[:3], half_flat()[None]])
    feature = FisherVectors(**{**SMALL, "cell_pixels": (2, 4)}, places=places).fit(images)
    rows = feature.transform(images)
    assert rows.dtype == np.float32
    num_flat = 0
    for image, row in zip(images, rows, strict=True):
        points = []
        descriptors = dense_descriptors(image[None], 6, (2, 4))[0]
        for descriptor, place in zip(
            descriptors, descriptor_places((35, 29), 6, (2, 4)), strict=True
        ):
            if not descriptor.any():
                num_flat += 1
                continue
            point = (descriptor - feature.centre_) @ feature.axes_
            points.append([*point, *(place - 0.5)] if places else point)
        expected = slow_gradient(
            np.array(points, np.float32), feature.weights_, feature.means_, feature.variances_
        ).ravel()
        # Compared as they were before the square root, which blows up what is near 0.
        expected /= np.abs(expected).sum()
        np.testing.assert_allclose(np.sign(row) * row**2, expected, rtol=1e-2, atol=1e-4)
    assert num_flat > 3


def test_rows_have_the_length_one_or_no_contrast():
    images = photos()
    images[3] = 77
    feature = FisherVectors(**SMALL).fit(images)
    lengths = np.linalg.norm(feature.transform(images), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0, 1, 1, 1, 1, 1], rtol=1e-5)


def test_only_places_tell_where_something_is():
    # Moved by whole steps, and seen by the same patches.
    here, there = np.full((2, 60, 60, 3), 90, np.uint8)
    here[12:24, 12:24] = there[30:42, 30:42] = photos(12, 12)[0]
    images = np.concatenate([np.stack([here, there]), photos(60, 60)])
    for places in (True, False):
        first, second = FisherVectors(**SMALL, places=places).fit(images).transform(images[:2])
        assert (np.abs(first - second).max() > 0.1) == places
        assert (np.abs(first - second).max() < 1e-3) != places


@pytest.mark.parametrize("places", [True, False])
def test_a_row_has_the_same_bits_in_any_company(places):
    images = np.concatenate([photos(40, 37), photos(80, 74)[:, ::2, ::2]])
    feature = FisherVectors(**{**SMALL, "step_pixels": 2}, places=places).fit(images)
    rows = feature.transform(images)
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(feature.transform(image[None])[0], row)
    order = np.array([17, 3, 8, 0, 3, 11, 2, 1, 9, 5])
    np.testing.assert_array_equal(feature.transform(images[order]), rows[order])
    mirrored = images[:, :, ::-1]
    np.testing.assert_array_equal(feature.transform(mirrored), feature.transform(mirrored.copy()))


def test_a_row_has_the_same_bits_with_any_number_of_threads():
    images = photos(150, 131)[:3]
    feature = FisherVectors(**LARGE).fit(images)
    rows = []
    for num_threads in (1, 2):
        with threadpool_limits(num_threads):
            rows.append(feature.transform(images))
    np.testing.assert_array_equal(*rows)


# Edges.


def test_one_image_of_one_patch():
    image = photos(12, 12)[:1]
    options = {"num_gaussians": 2, "cell_pixels": (3, 2, 1)}
    row = FisherVectors(**{**SMALL, **options}).fit_transform(image)
    assert row.shape == (1, 2 * 2 * 8)
    np.testing.assert_allclose(np.linalg.norm(row), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_gaussians": 1},
            r"^num_gaussians of a Fisher vector is 1, but must be between 2 and 1000\.$",
        ),
        ({"num_dimensions": 0}, r"num_dimensions .* is 0, but must be between 1 and 128\.$"),
        ({"num_dimensions": 129}, r"num_dimensions .* is 129, but must be between 1 and 128\.$"),
        ({"num_samples": 3}, r"num_samples of .* is 3, but must be between 4 and 1000000\.$"),
        ({"step_pixels": 0}, r"step_pixels of a Fisher vector is 0, but must be between 1 and "),
        ({"cell_pixels": ()}, r"cell_pixels of a Fisher vector is \(\), but must list"),
        ({"cell_pixels": (9,)}, r"a Fisher vector with cells of 9 pixels needs images of at least"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(InputError, match=message):
        FisherVectors(**{**SMALL, **options}).fit(photos())


@pytest.mark.parametrize(("images", "number"), [(photos() * 0, 0), (photos(14, 14)[:3], 3)])
def test_too_few_descriptors(images, number):
    message = (
        rf"^4 Gaussians cannot be learned from {number} descriptors of patches with contrast; "
        r"lower num_gaussians or step_pixels, raise num_samples or give more images\.$"
    )
    with pytest.raises(InputError, match=message):
        FisherVectors(**SMALL).fit(images)
