import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.kmeans_features import (
    KMeansFeatures,
    cell_shares,
    learn_whitening,
    squared_distances,
)

SMALL = {"num_words": 7, "patch_pixels": 3, "num_samples": 400}


def photos(height: int = 20, width: int = 15) -> np.ndarray:
    """Cut nine pictures out of a photo, higher than wide and odd-sized."""
    photo = skimage.data.chelsea()
    corners = [(30 * row + 40, 50 * column + 60) for row in range(3) for column in range(3)]
    return np.stack([photo[top : top + height, left : left + width] for top, left in corners])


def grey(rows) -> np.ndarray:
    """Turn rows of grey values into a batch of one RGB image."""
    return np.repeat(np.asarray(rows, np.uint8)[None, :, :, None], 3, axis=3)


def with_words(words, images, mean=0.0, **options) -> np.ndarray:
    """Describe images by words that are given instead of learned, without whitening."""
    words = np.asarray(words, np.float32)
    feature = KMeansFeatures(num_words=len(words), num_samples=len(words), **options).fit(images)
    feature.mean_ = np.full(words.shape[1], mean, np.float32)
    feature.whitening_ = np.eye(words.shape[1], dtype=np.float32)
    feature.words_ = words
    return feature.transform(images)


# By hand.


def test_a_patch_says_how_much_nearer_than_the_average_a_word_is():
    # Mean 10 and variance 100: the values are -10 or 10 over the root of 4 (100 + 10).
    value = 10 / 440**0.5
    patch = np.array([-value, -value, value, value])
    # Distances 0, 2 value and 4 value; their mean is 2 value.
    rows = with_words([patch, 0 * patch, -patch], grey([[0, 0], [20, 20]]), patch_pixels=2, grid=1)
    np.testing.assert_allclose(rows, [[2 * value, 0, 0]], atol=1e-3)


def test_the_mean_patch_is_subtracted():
    rows = with_words(
        [[0] * 4, [0.5] * 4], grey([[9, 9], [9, 9]]), mean=-0.5, patch_pixels=2, grid=1
    )
    # The flat patch is 0.5 in all places: at the distances 1 and 0.
    np.testing.assert_allclose(rows, [[0, 0.5]], atol=1e-3)


def test_cells_lie_row_by_row():
    # Dark to bright from left to right stands at the upper right only.
    image = np.full((4, 4), 50)
    image[:2, 3] = 250
    [row] = with_words(
        [[-0.5, 0.5, -0.5, 0.5], [0] * 4], grey(image), patch_pixels=2, stride_pixels=2,
        assignment="hard",
    )  # fmt: skip
    np.testing.assert_array_equal(row.reshape(4, 2), [[0, 1], [1, 0], [0, 1], [0, 1]])


def test_distances_by_hand():
    patches = np.array([[0, 0], [3, 4]], np.float32)
    words = np.array([[3, 4], [0, 4], [0, 0]], np.float32)
    expected = [[25, 16, 0], [0, 9, 25]]
    np.testing.assert_array_equal(squared_distances(patches, words), expected)


@given(st.integers(0, 2**32 - 1))
def test_distances_are_never_negative(seed):
    patches = np.random.default_rng(seed).normal(0, 9, (5, 12)).astype(np.float32)
    distances = squared_distances(patches, patches)
    assert distances.min() >= 0
    expected = np.square(patches[:, None] - patches).sum(axis=2)
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-2)


# A slow reference.


def slow_shares(place: int, num_places: int, num_cells: int, interpolate: bool) -> list[float]:
    """Share a place out between the cells along an axis."""
    shares = [0.0] * num_cells
    middle = (place + 0.5) * num_cells / num_places - 0.5
    if not interpolate:
        # A border between cells is rounded to whole places.
        borders = [int(num_places * cell / num_cells + 0.5) for cell in range(num_cells + 1)]
        [cell] = [c for c in range(num_cells) if borders[c] <= place < borders[c + 1]]
        shares[cell] = 1.0
    elif middle <= 0:
        shares[0] = 1.0
    elif middle >= num_cells - 1:
        shares[-1] = 1.0
    else:
        shares[int(middle)] = 1 - middle % 1
        shares[int(middle) + 1] = middle % 1
    return shares


def slow_rows(feature: KMeansFeatures, image: np.ndarray) -> np.ndarray:
    """Describe an image by the steps in the docstring, patch by patch."""
    side, stride, grid = feature.patch_pixels, feature.stride_pixels, feature.grid
    values = image.astype(float)
    if feature.colour == "grey":
        values = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    tops = range(0, image.shape[0] - side + 1, stride)
    lefts = range(0, image.shape[1] - side + 1, stride)
    sums = np.zeros((grid, grid, feature.num_words))
    weights = np.zeros((grid, grid, 1))
    for line, top in enumerate(tops):
        for place, left in enumerate(lefts):
            patch = values[top : top + side, left : left + side].ravel()
            patch = (patch - patch.mean()) / np.sqrt(patch.size * (patch.var() + 10))
            patch = feature.whitening_.astype(float) @ (patch - feature.mean_)
            z = np.array([np.linalg.norm(patch - word) for word in feature.words_])
            says = np.maximum(z.mean() - z, 0)
            if feature.assignment == "hard":
                says = (np.arange(len(z)) == z.argmin()).astype(float)
            for row, down in enumerate(slow_shares(line, len(tops), grid, feature.interpolate)):
                across = slow_shares(place, len(lefts), grid, feature.interpolate)
                for column, right in enumerate(across):
                    sums[row, column] += down * right * says
                    weights[row, column] += down * right
    means = sums / weights
    return (np.sqrt(means) if feature.square_root else means).ravel()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grid": 1},
        {"grid": 5, "interpolate": True},
        {"grid": 3},
        {"grid": 1, "interpolate": True},
        {"colour": "colour", "patch_pixels": 4},
        {"stride_pixels": 2, "grid": 3, "interpolate": True},
        {"stride_pixels": 4, "patch_pixels": 7, "grid": 3},
        {"assignment": "hard", "grid": 4},
        {"square_root": True, "patch_pixels": 2, "num_words": 2},
    ],
)
def test_equal_to_a_slow_reference(options):
    images = photos()[:3]
    feature = KMeansFeatures(**{**SMALL, **options}).fit(images)
    rows = feature.transform(images)
    assert rows.dtype == np.float32
    assert rows.shape == (3, feature.n_features_out_)
    assert feature.n_features_out_ == feature.grid**2 * feature.num_words
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_allclose(row, slow_rows(feature, image), rtol=1e-3, atol=1e-3)


def test_blocks_of_an_image_add_up(monkeypatch):
    images = photos()
    feature = KMeansFeatures(**SMALL, grid=3, interpolate=True).fit(images)
    rows = feature.transform(images)
    for block_patches in (1, 40, 10**6):  # one line, some lines with a rest, all lines
        monkeypatch.setattr("cvpipe.features.kmeans_features.BLOCK_PATCHES", block_patches)
        np.testing.assert_allclose(feature.transform(images), rows, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 40), st.data(), st.booleans())
def test_shares_of_places(num_places, data, interpolate):
    num_cells = data.draw(st.integers(1, num_places))
    shares = cell_shares(num_places, num_cells, interpolate)
    expected = np.transpose(
        [slow_shares(place, num_places, num_cells, interpolate) for place in range(num_places)]
    )
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, expected, atol=1e-5)
    if interpolate:  # both ends are alike
        np.testing.assert_allclose(shares, shares[::-1, ::-1], atol=1e-5)


# What is learned.


def test_whitened_patches_are_uncorrelated():
    rng = np.random.default_rng(0)
    patches = (rng.normal(size=(5_000, 4)) @ rng.normal(size=(4, 4)) + [3, 0, -1, 2]).astype("f4")
    mean, whitening = learn_whitening(patches)
    np.testing.assert_allclose(mean, patches.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(whitening, whitening.T, atol=1e-6)
    assert np.linalg.eigvalsh(whitening).min() > 0  # no direction is turned round
    whitened = (patches - mean) @ whitening
    # With the variance v in a direction before, v / (v + 0.1 / 4) is left of it.
    variances, axes = np.linalg.eigh(np.cov(patches, rowvar=False, bias=True))
    expected = axes * (variances / (variances + 0.025)) @ axes.T
    np.testing.assert_allclose(np.cov(whitened, rowvar=False, bias=True), expected, atol=1e-4)


def test_patches_that_hardly_differ_are_not_blown_up():
    patches = np.full((50, 9), 0.2, np.float32)
    patches[:, 0] += np.linspace(0, 1e-4, 50, dtype=np.float32)
    _, whitening = learn_whitening(patches)
    np.testing.assert_allclose(whitening, np.eye(9) * (0.1 / 9) ** -0.5, rtol=1e-4, atol=1e-4)


def bars(turn: int, count: int = 6) -> np.ndarray:
    """Make images of stripes, 2 pixels wide, that stand (0) or lie (1), each moved on by one."""
    stripes = [np.tile(np.roll([40, 40, 200, 200] * 4, move), (16, 1)) for move in range(count)]
    return np.concatenate([grey(image.T if turn else image) for image in stripes])


def test_words_are_the_patches_there_are():
    # Stripes have four kinds of patches each, by where they begin.
    images = np.concatenate([bars(0), bars(1)])
    feature = KMeansFeatures(num_words=8, patch_pixels=4, num_samples=2_000).fit(images)
    expected = {
        np.where(tile, 255, 0).astype(np.uint8).tobytes()
        for move in range(4)
        for tile in (
            np.tile(np.roll([0, 0, 1, 1], move), (4, 1)),
            np.tile(np.roll([0, 0, 1, 1], move), (4, 1)).T,
        )
    }
    tiles = feature.word_tiles()
    assert tiles.shape == (8, 4, 4, 3)
    assert tiles.dtype == np.uint8
    for channel in range(3):
        near = np.where(tiles[..., channel] > 127, 255, 0).astype(np.uint8)
        np.testing.assert_allclose(tiles[..., channel].astype(int), near, atol=12)
        assert {tile.tobytes() for tile in near} == expected
    # And the two directions say different things.
    standing, lying = feature.transform(bars(0)), feature.transform(bars(1))
    assert not ((standing > 0.05).any(axis=0) & (lying > 0.05).any(axis=0)).any()


def test_tiles_in_colour():
    # Red beside green everywhere, so that there are two patches: beginning with red or with green.
    images = np.zeros((2, 8, 8, 3), np.uint8)
    images[:, :, ::2, 0] = images[:, :, 1::2, 1] = 200
    feature = KMeansFeatures(num_words=2, patch_pixels=2, num_samples=100, colour="colour")
    tiles = feature.fit(images).word_tiles()
    assert tiles.shape == (2, 2, 2, 3)
    red_first = tiles[tiles[:, 0, 0, 0].argmax()]
    assert (red_first[:, 0, 0] > red_first[:, 0, 1]).all()
    assert (red_first[:, 1, 1] > red_first[:, 1, 0]).all()
    np.testing.assert_allclose(tiles[0].astype(int), tiles[1, :, ::-1], atol=1)


def test_learned_arrays():
    feature = KMeansFeatures(**SMALL, colour="colour").fit(photos())
    shapes = {"mean_": (27,), "whitening_": (27, 27), "words_": (7, 27)}
    for name, shape in shapes.items():
        assert getattr(feature, name).shape == shape
        assert getattr(feature, name).dtype == np.float32
    learned = {name for name in vars(feature) if name.endswith("_")}
    assert learned == {*shapes, "image_size_", "n_features_out_"}


def test_the_same_fit_has_the_same_bits():
    images = photos()
    state = np.random.get_state()[1].copy()
    fits = []
    for num_threads in (1, 2):
        with threadpool_limits(num_threads):
            fits.append(KMeansFeatures(**SMALL).fit(images))
    for name in ("mean_", "whitening_", "words_"):
        np.testing.assert_array_equal(getattr(fits[0], name), getattr(fits[1], name))
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    other = KMeansFeatures(**SMALL, random_state=1).fit(images)
    assert np.abs(other.words_ - fits[0].words_).max() > 0.01
    view = np.repeat(images, 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(KMeansFeatures(**SMALL).fit(view).words_, fits[0].words_)


# How images are described.


@pytest.mark.parametrize(
    "options", [{}, {"colour": "colour"}, {"assignment": "hard"}, {"interpolate": True, "grid": 4}]
)
def test_a_row_has_the_same_bits_in_any_company(options):
    images = photos(29, 31)
    feature = KMeansFeatures(num_words=50, num_samples=500, **options).fit(images)
    rows = feature.transform(images)
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(feature.transform(image[None])[0], row)
    order = np.array([3, 8, 0, 3])
    np.testing.assert_array_equal(feature.transform(images[order]), rows[order])
    np.testing.assert_array_equal(feature.transform(images[::-1]), rows[::-1])
    mirrored = images[:, :, ::-1]
    np.testing.assert_array_equal(feature.transform(mirrored), feature.transform(mirrored.copy()))
    for num_threads in (1, 2):
        with threadpool_limits(num_threads):
            np.testing.assert_array_equal(feature.transform(images), rows)


def test_brightness_and_contrast_hardly_matter():
    images = photos(24, 24) // 4 + 10  # far away from 0 and 255
    image = images[:1]
    feature = KMeansFeatures(**SMALL, colour="colour").fit(images)
    row = feature.transform(image)
    np.testing.assert_allclose(feature.transform(image + 100), row, rtol=1e-5)
    # A number added to the variance keeps noise small; it also keeps contrast from
    # vanishing altogether.
    other = feature.transform(3 * image)
    assert np.corrcoef(other[0], row[0])[0, 1] > 0.99
    assert np.abs(feature.transform(image[:, ::-1]) - row).max() > 0.02


def test_only_colour_sees_colours():
    # In grey the two stripes are alike: 0.299 * 196 and 0.587 * 100 are both 59.
    red_green = np.zeros((1, 8, 8, 3), np.uint8)
    red_green[:, :, ::2, 0], red_green[:, :, 1::2, 1] = 196, 100
    images = np.concatenate([red_green, photos(8, 8)])
    flat = np.full((1, 8, 8, 3), 59, np.uint8)
    feature = KMeansFeatures(**SMALL).fit(images)
    np.testing.assert_array_equal(feature.transform(red_green), feature.transform(flat))
    feature = KMeansFeatures(**SMALL, colour="colour").fit(images)
    assert np.abs(feature.transform(red_green) - feature.transform(flat)).max() > 0.1


def test_hard_cells_have_shares_of_their_patches():
    images = photos()
    feature = KMeansFeatures(**SMALL, assignment="hard", grid=2).fit(images)
    cells = feature.transform(images).reshape(len(images), 2, 2, 7)
    np.testing.assert_allclose(cells.sum(axis=3), 1, rtol=1e-5)
    # 18 lines of 13 patches: cells of 9 lines and 7 or 6 patches.
    for column, num_patches in enumerate((9 * 7, 9 * 6)):
        counts = cells[:, :, column] * num_patches
        np.testing.assert_allclose(counts, np.rint(counts), atol=1e-4)
    # Together they make the whole.
    feature.grid = 1
    whole = feature.transform(images)
    np.testing.assert_allclose((cells * [[[7], [6]]]).sum(axis=(1, 2)) / 26, whole, atol=1e-6)


def test_square_root():
    images = photos()
    feature = KMeansFeatures(**SMALL).fit(images)
    rows = feature.transform(images)
    feature.square_root = True
    np.testing.assert_allclose(feature.transform(images) ** 2, rows, atol=1e-6)


# Edges.


@pytest.mark.parametrize("assignment", ["triangle", "hard"])
def test_images_without_contrast(assignment):
    images = np.full((2, 9, 9, 3), 255, np.uint8)
    feature = KMeansFeatures(**SMALL, assignment=assignment).fit(images)
    rows = feature.transform(images)
    expected = [1, 0, 0, 0, 0, 0, 0] * 4 if assignment == "hard" else [0] * 28
    np.testing.assert_allclose(rows, [expected] * 2, atol=1e-6)
    np.testing.assert_array_equal(feature.word_tiles(), 128)
    assert np.isfinite(feature.transform(photos(9, 9))).all()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 12),
    st.integers(2, 12),
    st.integers(2, 4),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["triangle", "hard"]),
)
def test_small_images(height, width, patch_pixels, stride_pixels, interpolate, assignment):
    patch_pixels = min(patch_pixels, height, width)
    images = np.random.default_rng(height).integers(0, 256, (1, height, width, 3), np.uint8)
    grid = (min(height, width) - patch_pixels) // stride_pixels + 1
    feature = KMeansFeatures(
        num_words=3, num_samples=20, patch_pixels=patch_pixels, stride_pixels=stride_pixels,
        grid=grid, interpolate=interpolate, assignment=assignment,
    )  # fmt: skip
    rows = feature.fit(images).transform(images)
    assert rows.shape == (1, grid * grid * 3)
    assert np.isfinite(rows).all()
    assert rows.min() >= 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"patch_pixels": 1},
            r"patch_pixels of a k-means feature is 1, but must be between 2 and 8",
        ),
        ({"patch_pixels": 9}, r"patch_pixels of .* is 9, but must be between 2 and 8\.$"),
        ({"stride_pixels": 0}, r"stride_pixels of .* is 0, but must be at least 1\.$"),
        ({"num_words": 1}, r"num_words of .* is 1, but must be between 2 and 10000\.$"),
        ({"num_samples": 6}, r"num_samples of .* is 6, but must be between 7 and 1000000\.$"),
        ({"grid": 0}, r"grid of a k-means feature is 0; choose one of \[1, 2, 3, 4, 5, 6\]\.$"),
        ({"grid": 7}, r"grid of .* is 7; choose one of \[1, 2, 3, 4, 5, 6\]\.$"),
        ({"grid": 4, "stride_pixels": 2}, r"grid of .* is 4; choose one of \[1, 2, 3\]\.$"),
        ({"colour": "rgb"}, r"colour of .* is 'rgb'; choose one of \['grey', 'colour'\]\.$"),
        ({"assignment": "soft"}, r"assignment .* 'soft'; choose one of \['triangle', 'hard'\]\.$"),
    ],
)
def test_impossible_settings(options, message):
    feature = KMeansFeatures(**{**SMALL, **options})
    with pytest.raises(InputError, match=message):
        feature.fit(np.zeros((1, 8, 11, 3), np.uint8))


def test_largest_settings_that_are_possible():
    images = photos(8, 11)
    for options in ({"patch_pixels": 8, "grid": 1}, {"grid": 6}, {"grid": 3, "stride_pixels": 2}):
        KMeansFeatures(**{**SMALL, **options}).fit(images)
    KMeansFeatures(**{**SMALL, "num_samples": 7}).fit(images)
