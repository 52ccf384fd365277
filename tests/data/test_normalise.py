import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.data import normalise
from cvpipe.data.normalise import measure_pixels, read_statistics, write_statistics
from cvpipe.errors import InputError

FIELDS = ["mean_image", "channel_mean", "channel_std", "colour_axes", "colour_std"]


def same_bits(one, other) -> bool:
    return one.num_images == other.num_images and all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in FIELDS
    )


def images_like_photos(num_images=7, height=5, width=4, seed=0) -> np.ndarray:
    """Channels that vary together, as those of photos do, each about a mean of its own."""
    rng = np.random.default_rng(seed)
    light = rng.normal(0, 50, (num_images, height, width, 1))
    own = rng.normal(0, [9, 14, 20], (num_images, height, width, 3))
    return np.clip(light + own + [150, 110, 70], 0, 255).astype(np.uint8)


def test_by_hand():
    # Two images of 1 x 2 pixels.
    images = np.array([[[[0, 10, 7], [4, 10, 7]]], [[[2, 10, 7], [255, 10, 7]]]], dtype=np.uint8)
    found = measure_pixels([images])
    assert found.num_images == 2
    assert found.mean_image.tolist() == [[[1, 10, 7], [129.5, 10, 7]]]
    assert found.channel_mean.tolist() == [65.25, 10, 7]
    # Squares: 0, 16, 4 and 65025; the variance is 65045 / 4 - 65.25^2.
    assert found.channel_std.tolist() == [np.sqrt(16261.25 - 4257.5625), 0, 0]
    # All of it along red.
    assert found.colour_axes[:, 0].tolist() == [1, 0, 0]
    assert found.colour_std.tolist() == [found.channel_std[0], 0, 0]


def test_it_agrees_with_numpy_in_long_doubles():
    images = images_like_photos()
    found = measure_pixels([images])
    exact = images.astype(np.longdouble)
    pixels = exact.reshape(-1, 3)
    np.testing.assert_allclose(found.mean_image, exact.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.channel_mean, pixels.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(found.channel_std, pixels.std(axis=0), rtol=1e-15)
    # The spread of the pixels that are projected on the axes, and no axis leans on another.
    axes = found.colour_axes
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-14)
    projected = (pixels - pixels.mean(axis=0)) @ axes
    np.testing.assert_allclose(projected.std(axis=0), found.colour_std, rtol=1e-12)
    correlations = np.corrcoef(projected.T.astype(np.float64))
    np.testing.assert_allclose(correlations, np.eye(3), atol=1e-12)
    assert (np.diff(found.colour_std) < 0).all()
    assert all(getattr(found, name).dtype == np.float64 for name in FIELDS)


def test_the_axes_are_those_of_a_singular_value_decomposition():
    images = images_like_photos()
    found = measure_pixels([images])
    pixels = images.reshape(-1, 3).astype(np.float64)
    _, singular, axes = np.linalg.svd(pixels - pixels.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.colour_std, singular / np.sqrt(len(pixels)), rtol=1e-10)
    cosines = (found.colour_axes * axes.T).sum(axis=0)
    np.testing.assert_allclose(np.abs(cosines), 1, rtol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_bit_depends_on_the_size_or_order_of_batches(data):
    num_images = data.draw(st.integers(1, 8))
    images = images_like_photos(num_images, 3, 2, seed=data.draw(st.integers(0, 99)))
    whole = measure_pixels([images])
    order = data.draw(st.permutations(range(num_images)))
    cuts = sorted(data.draw(st.lists(st.integers(0, num_images), max_size=4)))  # empty ones, too
    batches = np.split(images[np.array(order)], cuts)
    assert same_bits(measure_pixels(iter(batches)), whole)


def test_a_million_large_images_overflow_nothing():
    # Half of 10^6 images of 512 x 512 are black, half white; only their sums are made.
    num_images, half = 10**6, 500_000
    sums = np.full((512, 512, 3), 255 * half, dtype=np.int64)
    products = np.full((3, 3), 255**2 * 512**2 * half, dtype=np.int64)
    found = normalise._statistics(num_images, sums, products)
    assert (found.mean_image == 127.5).all()
    assert found.channel_mean.tolist() == [127.5] * 3
    assert found.channel_std.tolist() == [127.5] * 3
    np.testing.assert_allclose(found.colour_axes[:, 0], [3**-0.5] * 3)
    np.testing.assert_allclose(found.colour_std, [127.5 * 3**0.5, 0, 0], atol=1e-5)
    # All white is the largest sum there can be.
    white = normalise._statistics(num_images, 2 * sums, 2 * products)
    assert white.channel_mean.tolist() == [255] * 3
    assert white.channel_std.tolist() == [0] * 3


def test_a_lone_odd_pixel_in_a_large_set_is_not_lost():
    # One value of 254 among 2.6 * 10^11 of 255: the difference of the means of squares is far
    # below the last digit of either.
    num_images, num_pixels = 10**6, 10**6 * 512**2
    sums = np.full((512, 512, 3), 255 * num_images, dtype=np.int64)
    sums[3, 4] -= 1
    products = np.full((3, 3), num_pixels * 255**2 - 255**2 + 254**2, dtype=np.int64)
    found = normalise._statistics(num_images, sums, products)
    share = 1 / num_pixels
    np.testing.assert_allclose(found.channel_std, np.sqrt(share * (1 - share)), rtol=1e-15)


def test_the_largest_image_sums_exactly():
    # 255^2 * 700^2 is beyond 32 bits and beyond the exact whole numbers of float32.
    white = np.full((700, 700, 3), 255, dtype=np.uint8)
    white[0, 0] = [254, 255, 255]
    products = normalise._channel_products(white)
    assert products.dtype == np.int64
    assert products[1, 2] == 255**2 * 700**2
    assert products[0, 0] == 255**2 * 700**2 - 255**2 + 254**2
    assert products[0, 1] == products[1, 0] == 255**2 * 700**2 - 255


@pytest.mark.parametrize(
    ("axis", "fixed"),
    [
        ([-0.6, -0.6, -0.5], [0.6, 0.6, 0.5]),
        ([-0.70711, 0.70710, 0.001], [0.70711, -0.70710, -0.001]),
        ([-0.70710, 0.70711, 0.001], [0.70710, -0.70711, -0.001]),  # whichever is the larger
        ([1e-9, -0.8, 0.6], [-1e-9, 0.8, -0.6]),  # a component of almost 0 decides nothing
        ([0.0, 0.0, -1.0], [0.0, 0.0, 1.0]),
    ],
)
def test_the_direction_of_an_axis_is_fixed(axis, fixed):
    axes = np.array([axis, axis, axis]).T * [1, -1, 1]
    np.testing.assert_array_equal(normalise._with_fixed_signs(axes), np.array([fixed] * 3).T)


def test_grey_images_vary_along_grey_alone():
    grey = np.repeat(images_like_photos()[..., :1], 3, axis=3)
    found = measure_pixels([grey])
    np.testing.assert_allclose(found.colour_axes[:, 0], [3**-0.5] * 3)
    np.testing.assert_allclose(found.colour_std[1:], 0, atol=1e-5)
    assert np.isfinite(found.colour_axes).all()


def test_stored_and_read_to_the_last_bit(tmp_path):
    found = measure_pixels([images_like_photos()])
    paths = [tmp_path / "one" / "pixels.npz", tmp_path / "other.npz"]
    for path in paths:
        write_statistics(path, found)
    assert same_bits(read_statistics(paths[0]), found)
    assert type(read_statistics(paths[0]).num_images) is int
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in paths}) == 1


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 4, 4, 3), np.uint8)]])
def test_no_images(batches):
    with pytest.raises(InputError, match=r"no images to measure; pass at least one training im"):
        measure_pixels(batches)


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((2, 4, 5, 3)),
        np.zeros((2, 4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.uint8),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_batches_that_are_not_images(batch, is_first):
    good = np.zeros((1, 4, 5, 3), np.uint8)
    with pytest.raises(InputError) as error:
        measure_pixels([batch] if is_first else [good, batch])
    assert str(error.value) == (
        "pixels are measured in uint8 batches of shape (n, height, width, 3), but one is "
        f"{batch.dtype} of shape {batch.shape}; decode the images to uint8 RGB."
    )


def test_images_of_two_sizes():
    batches = [np.zeros((1, 4, 5, 3), np.uint8), np.zeros((1, 5, 4, 3), np.uint8)]
    with pytest.raises(InputError, match=r"have \(4, 5\) pixels and later ones \(5, 4\); resize"):
        measure_pixels(batches)
