import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.inference.crops import (
    VIEWS,
    average_logits,
    average_views,
    cut_batch,
    cut_views,
    num_views,
    size_to_crop_from,
    slice_views,
)

NUM_VIEWS = {"centre": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}


def some_images(num_images, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num_images, height, width, 3), dtype=np.uint8)


def plain_crop(image, top, left, crop_size, is_mirrored):
    """Fetch a crop pixel by pixel."""
    height, width = crop_size
    crop = np.empty((height, width, 3), dtype=np.uint8)
    for row, column in itertools.product(range(height), range(width)):
        from_column = width - 1 - column if is_mirrored else column
        crop[row, column] = image[top + row, left + from_column]
    return crop


def plain_views(image, crop_size, kind):
    bottom, right = image.shape[0] - crop_size[0], image.shape[1] - crop_size[1]
    centre = [(int(bottom / 2), int(right / 2))]
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    origins = centre if kind in ("centre", "flip") else corners + centre
    mirrors = [False, True] if kind in ("flip", "ten_crop") else [False]
    return [plain_crop(image, *o, crop_size, m) for m in mirrors for o in origins]


@pytest.mark.parametrize("kind", NUM_VIEWS)
@pytest.mark.parametrize(
    ("image_size", "crop_size"),
    [
        ((9, 6), (4, 3)),  # higher than wide, both margins odd
        ((8, 8), (5, 4)),
        ((7, 11), (7, 5)),  # as high as the image
        ((5, 6), (5, 6)),  # as large as the image
        ((4, 7), (1, 1)),
    ],
)
def test_every_pixel_is_that_of_a_plain_loop(kind, image_size, crop_size):
    images = some_images(3, *image_size)
    batch = cut_batch(images, crop_size, kind)
    assert batch.shape == (3, NUM_VIEWS[kind], *crop_size, 3)
    assert batch.dtype == np.uint8
    for image, of_image in zip(images, batch, strict=True):
        np.testing.assert_array_equal(of_image, plain_views(image, crop_size, kind))
        np.testing.assert_array_equal(cut_views(image, crop_size, kind), of_image)


def test_the_order_of_ten_crops_by_hand():
    # 0 1 2 3
    # 4 5 6 7
    image = np.arange(8).reshape(2, 4, 1)
    crops = cut_views(image, (1, 2), "ten_crop").reshape(10, 2).tolist()
    five = [[0, 1], [2, 3], [4, 5], [6, 7], [1, 2]]
    assert crops == five + [crop[::-1] for crop in five]


def test_an_odd_margin_moves_the_centre_up_and_left_and_the_mirror_is_that_of_the_crop():
    image = np.arange(12).reshape(3, 4, 1)
    centre, mirror = cut_views(image, (2, 3), "flip")
    assert centre.squeeze().tolist() == [[0, 1, 2], [4, 5, 6]]
    assert mirror.squeeze().tolist() == [[2, 1, 0], [6, 5, 4]]


@pytest.mark.parametrize("kind", NUM_VIEWS)
def test_slices_are_no_copies(kind):
    images = some_images(2, 9, 6)
    views = slice_views(images, (4, 3), kind)
    assert [view.shape for view in views] == [(2, 4, 3, 3)] * NUM_VIEWS[kind]
    assert all(np.shares_memory(view, images) for view in views)
    np.testing.assert_array_equal(np.stack(views, axis=1), cut_batch(images, (4, 3), kind))


def test_cutting_leaves_the_images_as_they_were():
    images = some_images(2, 9, 6)
    before = images.copy()
    cut_batch(images, (4, 3), "ten_crop")[:] = 0
    np.testing.assert_array_equal(images, before)


def test_the_number_of_views():
    assert {kind: num_views(kind) for kind in VIEWS} == NUM_VIEWS


@pytest.mark.parametrize(
    "call", [num_views, lambda kind: slice_views(some_images(1, 4, 4), (2, 2), kind)]
)
def test_unknown_views(call):
    with pytest.raises(InputError, match=r"unknown view 'ten_crops'; did you mean 'ten_crop'\?"):
        call("ten_crops")


@pytest.mark.parametrize("crop_size", [(5, 3), (3, 7), (0, 3), (3, 0), (-1, 3)])
def test_crops_that_cannot_be_cut(crop_size):
    with pytest.raises(InputError) as error:
        cut_views(some_images(1, 4, 6)[0], crop_size, "centre")
    assert str(error.value).startswith(
        f"cannot cut crops of {crop_size} pixels out of images of (4, 6); lower the crop size"
    )


def test_the_message_names_a_size_that_is_large_enough():
    with pytest.raises(InputError, match=r"load images of for example \(256, 128\)\.$"):
        cut_batch(some_images(1, 200, 200), (224, 112), "ten_crop")


@given(st.integers(1, 2000))
def test_the_size_to_crop_from_is_eight_sevenths_rounded_up(side):
    height, width = size_to_crop_from((side, side + 1))
    assert 7 * (height - 1) < 8 * side <= 7 * height
    assert 7 * (width - 1) < 8 * (side + 1) <= 7 * width
    assert size_to_crop_from((224, 299)) == (256, 342)


def random_probabilities(num_rows, num_classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), num_rows)


@pytest.mark.parametrize("average", [average_views, average_logits])
@pytest.mark.parametrize("kind", NUM_VIEWS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_means_are_those_of_a_plain_loop(average, kind, dtype):
    num_views = NUM_VIEWS[kind]
    rows = random_probabilities(3 * num_views, 4).astype(dtype)
    expected = []
    for start in range(0, len(rows), num_views):
        of_image = rows[start : start + num_views].astype(np.longdouble)
        if average is average_views:
            expected.append(sum(of_image) / num_views)
        else:
            product = np.prod(np.maximum(of_image, 1e-7), axis=0) ** (1 / num_views)
            expected.append(product / product.sum())
    found = average(rows, kind)
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float64), rtol=1e-10)
    assert (found.shape, found.dtype) == ((3, 4), np.float64)
    np.testing.assert_array_equal(average(rows.reshape(3, num_views, 4), kind), found)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_the_two_means_by_hand():
    # Arithmetic: 0.7. Geometric: sqrt(0.9 * 0.5) to sqrt(0.1 * 0.5), which is 3 to 1.
    views = np.array([[0.9, 0.1], [0.5, 0.5]])
    np.testing.assert_allclose(average_views(views, "flip"), [[0.7, 0.3]])
    np.testing.assert_allclose(average_logits(views, "flip"), [[0.75, 0.25]])


def test_one_view_overrules_another_only_among_logits():
    views = np.array([[1.0, 0.0], [0.2, 0.8]])
    np.testing.assert_allclose(average_views(views, "flip"), [[0.6, 0.4]])
    # sqrt(1 * 0.2) to sqrt(1e-7 * 0.8)
    ratio = np.sqrt(0.2 / 0.8e-7)
    np.testing.assert_allclose(average_logits(views, "flip")[0, 0], ratio / (ratio + 1))
    floored = average_logits(views, "flip", floor=0.05)  # sqrt(0.2) to sqrt(0.04)
    np.testing.assert_allclose(floored[0, 0], 5**0.5 / (5**0.5 + 1))


@given(st.integers(0, 4), st.integers(1, 6), st.randoms())
def test_the_order_of_views_does_not_matter_and_that_of_images_does(
    num_images, num_classes, random
):
    rows = random_probabilities(num_images * 5, num_classes).reshape(-1, 5, num_classes)
    order = random.sample(range(5), 5)
    found = average_views(rows[:, order], "five_crop")
    assert found.shape == (num_images, num_classes)
    np.testing.assert_allclose(found, average_views(rows, "five_crop"), atol=1e-15)
    np.testing.assert_array_equal(
        average_views(rows[::-1], "five_crop")[::-1], average_views(rows, "five_crop")
    )


def test_from_images_to_averages_views_stay_with_their_image():
    # A classifier that sees nothing but how bright the crop is.
    images = np.stack([np.full((6, 6, 3), value, np.uint8) for value in (0, 51, 255)])
    crops = cut_batch(images, (4, 4), "ten_crop").reshape(-1, 4, 4, 3)
    bright = crops.mean(axis=(1, 2, 3)) / 255
    averaged = average_views(np.stack([bright, 1 - bright], axis=1), "ten_crop")
    np.testing.assert_allclose(averaged[:, 0], [0, 0.2, 1])


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (5,), (1, 1, 5, 3)])
@pytest.mark.parametrize("average", [average_views, average_logits])
def test_rows_that_are_not_whole_images(shape, average):
    with pytest.raises(InputError) as error:
        average(np.full(shape, 1 / 3), "five_crop")
    assert str(error.value) == (
        f"'five_crop' has 5 views of each image, but the probabilities have shape {shape}; "
        "pass (n, 5, num_classes) or (n * 5, num_classes)."
    )


@pytest.mark.parametrize(("bad", "total"), [([2.0, 3.0], "5.000"), ([np.nan, 1.0], "nan")])
@pytest.mark.parametrize("average", [average_views, average_logits])
def test_logits_are_refused(bad, total, average):
    rows = np.array([[0.5, 0.5], [0.5, 0.5], bad, [0.5, 0.5]])
    with pytest.raises(InputError, match=f"those of view 2 sum to {total}; pass probabilities, no"):
        average(rows, "flip")
