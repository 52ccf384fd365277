import numpy as np
import pandas as pd
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import ndimage

from cvpipe.data import quality
from cvpipe.data.quality import (
    QUALITY_COLUMNS,
    far_below,
    is_constant,
    measure_quality,
    quality_outliers,
)
from cvpipe.data.thumbnails import grey_thumbnail

PHOTOS = ["chelsea", "coffee", "astronaut", "camera", "coins"]


def flat(grey: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), grey, np.uint8)


def photo(name: str) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def quality_of(image: np.ndarray) -> pd.Series:
    return measure_quality(grey_thumbnail(image)[None]).iloc[0]


def altered(image: np.ndarray, factor: float, offset: float = 0) -> np.ndarray:
    return np.clip(image * float(factor) + offset, 0, 255).astype(np.uint8)


def blurred(image: np.ndarray, share: float) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(share * min(picture.size))))


def crops(number: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    images = []
    for index in range(number):
        pixels = np.asarray(photo(PHOTOS[index % len(PHOTOS)]))
        side = rng.integers(150, 250)
        top, left = (rng.integers(length - side) for length in pixels.shape[:2])
        images.append(pixels[top : top + side, left : left + side])
    return images


def table_of(images) -> pd.DataFrame:
    rows = [
        {"image_id": f"{n:03}", "constant": False, **quality_of(i)} for n, i in enumerate(images)
    ]
    return pd.DataFrame(rows)


# One picture.


@pytest.mark.parametrize("grey", [0, 51, 255])
def test_one_colour(grey):
    value = grey / 255
    assert quality_of(flat(grey)).tolist() == [value, value, 0.0, 0.0]


def test_figures_by_hand():
    image = flat(0)
    image[:, :16] = 255  # a quarter is white
    figures = quality_of(image)
    assert (figures.brightness, figures.highlights) == (0.25, 1.0)
    assert figures.contrast == pytest.approx((0.25 * 0.75) ** 0.5, abs=1e-4)
    # Two columns of 64 have a Laplacian of -1 and 1, all others of 0.
    assert figures.sharpness == pytest.approx((2 / 64) / (0.25 * 0.75), abs=1e-4)


def test_highlights_are_what_one_per_cent_exceeds():
    image = flat(100)
    image[0, :40] = 200  # 40 of 4,096 pixels
    assert quality_of(image).highlights == pytest.approx(100 / 255, abs=1e-4)
    image[1, 0] = 200
    assert quality_of(image).highlights == pytest.approx(200 / 255, abs=1e-4)


def test_against_an_independent_reference():
    grey = np.asarray(photo("chelsea").convert("L").resize((64, 64), Image.Resampling.BOX)) / 255
    figures = quality_of(np.asarray(photo("chelsea")))
    assert figures.brightness == pytest.approx(grey.mean(), abs=0.005)
    assert figures.contrast == pytest.approx(grey.std(), abs=0.01)
    assert figures.highlights == pytest.approx(np.percentile(grey, 99), abs=0.01)
    thumbnail = grey_thumbnail(np.asarray(photo("chelsea"))) / 255
    reference = ndimage.laplace(thumbnail).var() / thumbnail.var()
    assert figures.sharpness == pytest.approx(reference, abs=1e-4)


@pytest.mark.parametrize("name", PHOTOS)
def test_sharpness_depends_on_neither_contrast_nor_resolution(name):
    image = np.asarray(photo(name))
    sharpness = quality_of(image).sharpness
    assert quality_of(altered(image, 0.5, 60)).sharpness == pytest.approx(sharpness, rel=0.1)
    double = np.asarray(photo(name).resize([2 * side for side in photo(name).size]))
    assert quality_of(double).sharpness == pytest.approx(sharpness, rel=0.15)
    assert quality_of(blurred(image, 0.02)).sharpness < sharpness / 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (64, 64), (129, 65), (700, 30)])
def test_pictures_of_any_shape(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert grey_thumbnail(image).shape == (64, 64)
    assert grey_thumbnail(image).dtype == np.uint8
    expected = np.asarray(Image.fromarray(image).convert("L")).mean() / 255
    assert quality_of(image).brightness == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (7, 9)])
def test_one_other_value_anywhere_is_not_one_colour(shape):
    image = np.empty((*shape, 3), np.uint8)
    image[:] = (10, 200, 30)
    assert is_constant(image)
    for place in np.ndindex(image.shape) if shape != (1, 1) else ():
        other = image.copy()
        other[place] += 1
        assert not is_constant(other)


def test_the_sharpest_picture_there_is():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    reference = ndimage.laplace(board.astype(float)).var() / board.astype(float).var()
    [sharpness] = measure_quality(board[None])["sharpness"]
    assert sharpness == pytest.approx(reference, abs=1e-4)


def test_many_pictures_are_measured_as_one_by_one(monkeypatch):
    thumbnails = np.stack([grey_thumbnail(image) for image in crops(7)])
    alone = pd.concat([measure_quality(thumbnail[None]) for thumbnail in thumbnails])
    monkeypatch.setattr(quality, "BLOCK_ROWS", 3)
    together = measure_quality(thumbnails)
    pd.testing.assert_frame_equal(together, alone.reset_index(drop=True))
    assert measure_quality(thumbnails[:0]).shape == (0, 4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (63, 65), (200, 150), (1000, 17)])
def test_one_colour_has_one_grey_value(shape):
    # The audit asks for the colours of a picture only if its thumbnail has one grey value.
    for colour in np.random.default_rng(0).integers(0, 256, (40, 3), dtype=np.uint8):
        thumbnail = grey_thumbnail(np.broadcast_to(colour, (*shape, 3)).copy())
        assert thumbnail.min() == thumbnail.max()


# Outliers.


def test_far_below_by_hand():
    # The logarithms of the others are -log 2, 0 or log 2 from the median: the median absolute
    # deviation is log 2, and 3.5 of it over .6745 is a factor of 2 ** 5.19 = 36.5.
    others = [0.5, 1, 2] * 10
    assert not far_below(np.array([*others, 1 / 36])).any()
    found = far_below(np.array([*others, 1 / 37]))
    assert np.flatnonzero(found).tolist() == [30]


def test_far_below_is_at_most_half_the_median():
    same = [1.0] * 30  # no deviation at all
    assert np.flatnonzero(far_below(np.array([*same, 0.51, 0.5]))).tolist() == [31]
    assert not far_below(np.array([*same, 100.0])).any()


def test_values_far_above_hide_nothing_below():
    low = np.geomspace(0.5, 1, 30)
    found = far_below(np.array([*low, *np.geomspace(1, 100, 30), 0.1]))
    assert np.flatnonzero(found).tolist() == [60]


def test_few_images_have_no_outliers():
    assert far_below(np.array([1.0] * 19 + [0.0])).any()  # 20 are enough
    assert not far_below(np.array([1.0] * 18 + [0.0])).any()
    assert far_below(np.empty(0)).tolist() == []


@given(st.lists(st.floats(0.001, 1), min_size=20, max_size=60), st.floats(0.5, 2), st.randoms())
def test_scale_and_order_do_not_matter(values, scale, random):
    values = np.array(values)
    found = far_below(values)
    order = list(range(len(values)))
    random.shuffle(order)
    assert far_below(values[order]).tolist() == found[order].tolist()
    assert found.sum() <= len(values) / 2  # never the usual ones
    if found.any():
        assert values[found].max() < values[~found].min()


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("blurred", lambda image: blurred(image, 0.03)),
        ("dark", lambda image: altered(image, 0.3)),
        ("bright", lambda image: altered(image, 3, 100)),
    ],
)
def test_planted_outliers_are_found(kind, plant):
    images = crops(200)
    planted = range(0, 200, 21)  # of every photo
    for number in planted:
        images[number] = plant(images[number])
    found = quality_outliers(table_of(images))
    names = {finding.image_id for finding in found if finding.kind == kind}
    assert names >= {f"{number:03}" for number in planted}
    # Hardly any other is called an outlier of this kind.
    assert len(names) <= 10 + 4


def test_ordinary_photos_are_left_alone():
    assert len(quality_outliers(table_of(crops(200, seed=1)))) <= 6


def test_the_reason_has_the_figure_and_the_median():
    usual = dict(zip(QUALITY_COLUMNS, (0.5, 0.9, 0.2, 0.4), strict=True))
    rows = [{"image_id": str(n), "constant": n == 6, **usual} for n in range(30)]
    rows[3].update(highlights=0.1)
    rows[4].update(brightness=0.9)
    rows[5].update(sharpness=0.05)
    rows[6].update(contrast=0, highlights=0, sharpness=0)  # told as one colour
    rows[7].update(contrast=0, highlights=0.02, sharpness=0)  # nothing to be sharp or not
    end = ", while the median of all images is"
    found = quality_outliers(pd.DataFrame(rows))
    assert [(f.image_id, f.kind, f.severity, f.reason) for f in found] == [
        ("3", "dark", "info", f"its lightest parts reach 0.100{end} 0.900"),
        ("7", "dark", "info", f"its lightest parts reach 0.020{end} 0.900"),
        ("4", "bright", "info", f"its mean distance from white is 0.100{end} 0.500"),
        ("5", "blurred", "info", f"its sharpness is 0.050{end} 0.400"),
    ]
