import itertools

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.inference.crops import (
    VIEWS,
    average_over_views,
    crops_the_image,
    cut_batch,
    num_views,
    size_to_crop_from,
    sizes_to_load,
    slice_views,
)

NUM_VIEWS = {
    "single": 1,
    "flip": 2,
    "centre": 1,
    "five_crop": 5,
    "ten_crop": 10,
    "multi_scale": 3,
}
OF_ONE_SIZE = [kind for kind in NUM_VIEWS if kind != "multi_scale"]


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
    origins = corners + centre if kind in ("five_crop", "ten_crop") else centre
    mirrors = [False, True] if kind in ("flip", "ten_crop") else [False]
    return [plain_crop(image, *o, crop_size, m) for m in mirrors for o in origins]


@pytest.mark.parametrize("kind", OF_ONE_SIZE)
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
    batch = cut_batch([images], crop_size, kind)
    assert batch.shape == (3 * NUM_VIEWS[kind], *crop_size, 3)
    assert batch.dtype == np.uint8
    expected = [view for image in images for view in plain_views(image, crop_size, kind)]
    np.testing.assert_array_equal(batch, expected)


def test_the_whole_image_and_two_centres_are_the_views_of_several_scales():
    sizes = sizes_to_load("multi_scale", (7, 14))
    assert sizes == [(7, 14), (8, 16), (9, 18)]
    images = [some_images(2, *size, seed=size[0]) for size in sizes]
    batch = cut_batch(images, (7, 14), "multi_scale")
    for number in range(2):
        whole, near, nearer = (array[number] for array in images)
        views = batch[3 * number : 3 * number + 3]
        np.testing.assert_array_equal(views[0], whole)
        np.testing.assert_array_equal(views[1], near[0:7, 1:15])
        np.testing.assert_array_equal(views[2], nearer[1:8, 2:16])


def test_the_order_of_ten_crops_by_hand():
    # 0 1 2 3
    # 4 5 6 7
    image = np.arange(8).reshape(1, 2, 4, 1)
    crops = cut_batch([image], (1, 2), "ten_crop").reshape(10, 2).tolist()
    five = [[0, 1], [2, 3], [4, 5], [6, 7], [1, 2]]
    assert crops == five + [crop[::-1] for crop in five]


def test_an_odd_margin_moves_the_centre_up_and_left():
    image = np.arange(12).reshape(1, 3, 4, 1)
    (centre,) = cut_batch([image], (2, 3), "centre")
    assert centre.squeeze().tolist() == [[0, 1, 2], [4, 5, 6]]


def test_the_whole_image_and_its_mirror_image():
    image = np.arange(6).reshape(1, 2, 3, 1)
    whole, mirrored = cut_batch([image], (2, 3), "flip")
    assert whole.squeeze().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mirrored.squeeze().tolist() == [[2, 1, 0], [5, 4, 3]]


@pytest.mark.parametrize("kind", NUM_VIEWS)
def test_slices_are_no_copies(kind):
    loaded = [some_images(2, *size) for size in sizes_to_load(kind, (7, 14))]
    views = slice_views(loaded, (7, 14), kind)
    assert [view.shape for view in views] == [(2, 7, 14, 3)] * NUM_VIEWS[kind]
    assert all(any(np.shares_memory(view, images) for images in loaded) for view in views)
    together = cut_batch(loaded, (7, 14), kind)
    np.testing.assert_array_equal(np.stack(views, axis=1).reshape(together.shape), together)


def test_cutting_leaves_the_images_as_they_were():
    images = some_images(2, 9, 6)
    before = images.copy()
    cut_batch([images], (4, 3), "ten_crop")[:] = 0
    np.testing.assert_array_equal(images, before)


def test_the_number_of_views_and_the_sizes_they_are_cut_from():
    assert {kind: num_views(kind) for kind in VIEWS} == NUM_VIEWS
    loaded = {kind: sizes_to_load(kind, (224, 112)) for kind in VIEWS}
    assert loaded.pop("multi_scale") == [(224, 112), (256, 128), (288, 144)]
    assert loaded.pop("single") == loaded.pop("flip") == [(224, 112)]
    assert set(map(tuple, loaded.values())) == {((256, 128),)}


def test_views_that_cut_something_away():
    cutting = [kind for kind in VIEWS if crops_the_image(kind)]
    assert cutting == ["centre", "five_crop", "ten_crop", "multi_scale"]


@pytest.mark.parametrize(
    "call",
    [
        num_views,
        crops_the_image,
        lambda kind: sizes_to_load(kind, (2, 2)),
        lambda kind: slice_views([some_images(1, 4, 4)], (2, 2), kind),
        lambda kind: average_over_views(abs, kind),
    ],
)
def test_unknown_views(call):
    with pytest.raises(InputError, match=r"unknown view 'ten_crops'; did you mean 'ten_crop'\?"):
        call("ten_crops")


@pytest.mark.parametrize("crop_size", [(5, 3), (3, 7), (0, 3), (3, 0), (-1, 3)])
def test_crops_that_cannot_be_cut(crop_size):
    with pytest.raises(InputError) as error:
        cut_batch([some_images(1, 4, 6)], crop_size, "centre")
    assert str(error.value).startswith(
        f"cannot cut crops of {crop_size} pixels out of images of (4, 6); lower the crop size"
    )


def test_the_message_names_a_size_that_is_large_enough():
    with pytest.raises(InputError, match=r"load images of for example \(256, 128\)\.$"):
        cut_batch([some_images(1, 200, 200)], (224, 112), "ten_crop")


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_sizes_that_are_missing_or_too_many(number):
    images = [some_images(1, 9, 9)] * number
    with pytest.raises(InputError) as error:
        cut_batch(images, (7, 7), "multi_scale")
    assert str(error.value) == (
        f"'multi_scale' is cut from images of 3 size(s), but got {number}; pass a list of one "
        "array for each of [(7, 7), (8, 8), (9, 9)]."
    )


@given(st.integers(1, 2000))
def test_the_size_to_crop_from_is_eight_sevenths_rounded_up(side):
    height, width = size_to_crop_from((side, side + 1))
    assert 7 * (height - 1) < 8 * side <= 7 * height
    assert 7 * (width - 1) < 8 * (side + 1) <= 7 * width
    assert size_to_crop_from((224, 299)) == (256, 342)
    assert size_to_crop_from((side, side + 1), 7) == (side, side + 1)
    assert size_to_crop_from((224, 299), 9) == (288, 385)


def random_probabilities(num_rows, num_classes, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(num_classes, 0.3), num_rows)


def as_they_are(rows):
    return rows


@pytest.mark.parametrize("kind", NUM_VIEWS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_means_are_those_of_a_plain_loop(kind, dtype):
    num_views = NUM_VIEWS[kind]
    rows = random_probabilities(3 * num_views, 4).astype(dtype)
    expected = [
        sum(rows[start : start + num_views].astype(np.longdouble)) / num_views
        for start in range(0, len(rows), num_views)
    ]
    found = average_over_views(as_they_are, kind)(rows.reshape(3, -1))
    np.testing.assert_allclose(found, np.array(expected, dtype=np.float64), rtol=1e-10)
    assert found.shape == (3, 4)
    assert found.dtype == (dtype if kind == "single" else np.float64)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_one_view_that_is_badly_off_does_not_overrule_another():
    views = np.array([[1.0, 0.0, 0.2, 0.8]])
    np.testing.assert_allclose(average_over_views(as_they_are, "flip")(views), [[0.6, 0.4]])


def test_the_mean_of_logits_is_that_of_what_a_softmax_was_made_of():
    logits = np.random.default_rng(0).normal(0, 3, (10, 4, 3))  # views, images, classes
    views = np.concatenate(scipy.special.softmax(logits, axis=2), axis=1)
    found = average_over_views(as_they_are, "ten_crop", "logits")(views)
    np.testing.assert_allclose(found, scipy.special.softmax(logits.mean(axis=0), axis=1))


def test_no_view_makes_a_class_impossible():
    views = np.array([[1.0, 0.0, 0.2, 0.8]])
    found = average_over_views(as_they_are, "flip", "logits")(views)
    ratio = np.sqrt(1e-7 * 0.8 / 0.2)
    np.testing.assert_allclose(found, [[1 / (1 + ratio), ratio / (1 + ratio)]])


def test_an_unknown_mean_is_refused():
    with pytest.raises(InputError, match="unknown mean of views 'median'"):
        average_over_views(as_they_are, "flip", "median")


def test_a_single_view_is_the_function_itself():
    assert average_over_views(as_they_are, "single") is as_they_are


def test_every_view_is_predicted_with_those_of_the_other_images():
    """So a view has the bits that it has alone, and no more memory is taken than by one."""
    seen = []

    def predict(rows):
        assert rows.flags.c_contiguous
        seen.append(rows.tolist())
        return np.hstack([rows / 100, 1 - rows / 100])

    found = average_over_views(predict, "flip")(np.array([[10.0, 30.0], [50.0, 70.0]]))
    assert seen == [[[10.0], [50.0]], [[30.0], [70.0]]]
    np.testing.assert_allclose(found, [[0.2, 0.8], [0.6, 0.4]])


@given(st.integers(0, 4), st.integers(1, 6), st.randoms())
def test_the_order_of_views_does_not_matter_and_that_of_images_does(
    num_images, num_classes, random
):
    rows = random_probabilities(num_images * 5, num_classes).reshape(-1, 5, num_classes)
    order = random.sample(range(5), 5)
    mean = average_over_views(as_they_are, "five_crop")
    plain = mean(rows.reshape(num_images, 5 * num_classes))
    found = mean(rows[:, order].reshape(num_images, 5 * num_classes))
    assert found.shape == (num_images, num_classes)
    np.testing.assert_allclose(found, plain, atol=1e-15)
    turned = mean(rows[::-1].reshape(num_images, 5 * num_classes))
    np.testing.assert_array_equal(turned[::-1], plain)


def test_from_images_to_averages_views_stay_with_their_image():
    # A classifier that sees nothing but how bright the crop is.
    images = np.stack([np.full((6, 6, 3), value, np.uint8) for value in (0, 51, 255)])
    crops = cut_batch([images], (4, 4), "ten_crop")
    bright = crops.mean(axis=(1, 2, 3)) / 255
    mean = average_over_views(lambda rows: np.hstack([rows, 1 - rows]), "ten_crop")
    np.testing.assert_allclose(mean(bright.reshape(3, 10))[:, 0], [0, 0.2, 1])


def test_rows_that_are_not_those_of_all_views():
    with pytest.raises(InputError) as error:
        average_over_views(as_they_are, "five_crop")(np.full((2, 9), 1 / 3))
    assert str(error.value) == (
        "'five_crop' has 5 views of each image, but the rows have 9 numbers; pass the rows of all "
        "views side by side."
    )


@pytest.mark.parametrize(("bad", "total"), [([2.0, 3.0], "5.000"), ([np.nan, 1.0], "nan")])
def test_logits_are_refused(bad, total):
    rows = np.full((4, 4), 0.5)
    rows[2, 2:] = bad
    with pytest.raises(InputError, match=f"those of image 2 sum to {total}; pass probabilities, n"):
        average_over_views(as_they_are, "flip")(rows)
