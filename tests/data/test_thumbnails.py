import numpy as np
import pytest
import skimage.data
from PIL import Image

from cvpipe.data.thumbnails import grey_thumbnail


def plain_thumbnail(image, num_pixels):
    """Pillow's own grey, and its Lanczos filter without blocks averaged before."""
    size = (num_pixels, num_pixels)
    grey = Image.fromarray(image).convert("L")
    return np.asarray(grey.resize(size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize(
    ("colour", "grey"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)]
)
def test_grey_is_luma(colour, grey):
    thumbnail = grey_thumbnail(np.full((3, 5, 3), colour, np.uint8))
    assert thumbnail.shape == (64, 64)
    assert thumbnail.dtype == np.uint8
    assert (thumbnail == grey).all()


@pytest.mark.parametrize("num_pixels", [64, 128])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
def test_the_faster_way_is_within_one_grey_level(name, num_pixels):
    photo = getattr(skimage.data, name)()
    expected = plain_thumbnail(photo, num_pixels).astype(int)
    difference = np.abs(grey_thumbnail(photo, num_pixels) - expected)
    assert difference.mean() < 1
    assert difference.max() < 32


def test_a_small_image_is_not_averaged_before():
    image = np.random.default_rng(0).integers(0, 256, (90, 40, 1), np.uint8).repeat(3, axis=2)
    assert np.array_equal(grey_thumbnail(image), plain_thumbnail(image, 64))


def test_aspect_is_ignored_and_rows_stay_rows():
    image = np.zeros((200, 10, 3), np.uint8)
    image[100:] = 255
    thumbnail = grey_thumbnail(image)
    assert (thumbnail[:28] == 0).all()
    assert (thumbnail[36:] == 255).all()
