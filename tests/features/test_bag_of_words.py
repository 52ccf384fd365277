import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.bag_of_words import (
    BagOfWords,
    dense_patches,
    example_patches,
    normalise_patches,
    random_patches,
)
from cvpipe.features.codebook import assign_words, soft_assign
from cvpipe.features.dense_descriptors import dense_descriptors, descriptor_places

FEW = {
    "num_words": 8,
    "num_samples": 500,
    "step_pixels": 8,
    "cell_pixels": (2, 4),
    "assignment": "hard",
}


def photos(size: tuple[int, int] = (40, 56)) -> np.ndarray:
    """Real photos, the last one constant."""
    names = ("chelsea", "coffee", "rocket", "astronaut", "camera", "cat")
    images = [Image.fromarray(getattr(skimage.data, name)()).convert("RGB") for name in names]
    small = [np.asarray(image.resize(size[::-1])) for image in images]
    return np.stack([*small, np.full((*size, 3), 90, np.uint8)])


def bag(**settings) -> BagOfWords:
    return BagOfWords(**{**FEW, **settings})


# Against plain loops.


def slow_counts(words, places, levels, num_words) -> np.ndarray:
    """Count shares, cell by cell and level by level, with the weights of the pyramid."""
    cells = []
    for level in range(levels):
        weight = 1 / 2 ** (levels - max(level, 1))
        for row in range(2**level):
            for column in range(2**level):
                counts = np.zeros(num_words)
                for word, (y, x) in zip(words, places, strict=True):
                    if int(y * 2**level) == row and int(x * 2**level) == column:
                        counts += np.eye(num_words)[word] if np.ndim(word) == 0 else word
                cells.append(weight * counts / len(words))
    return np.concatenate(cells)


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize(
    ("levels", "weighting", "norm"),
    [(1, "none", "l1"), (2, "square_root", "l2"), (3, "tf_idf", "l2"), (2, "tf_idf", "l1")],
)
def test_equal_to_plain_loops(descriptor, assignment, levels, weighting, norm):
    images = photos()
    transformer = bag(
        descriptor=descriptor,
        assignment=assignment,
        levels=levels,
        weighting=weighting,
        norm=norm,
        patch_pixels=7,
    )
    rows = transformer.fit(images[:4]).transform(images)
    assert rows.shape == (7, 8 * (1, 5, 21)[levels - 1])
    assert rows.dtype == np.float32

    if descriptor == "sift":
        places = descriptor_places((40, 56), 8, (2, 4))
        described = dense_descriptors(images, 8, (2, 4))
    else:
        # Rows 0..7, 8..15, ... 33 pixels remain of 40, 49 of 56: 1 is left over in both.
        starts = [(y, x) for y in range(0, 34, 8) for x in range(0, 50, 8)]
        places = [((y + 3.5) / 40, (x + 3.5) / 56) for y, x in starts]
        described = [
            normalise_patches(np.array([image[y : y + 7, x : x + 7] for y, x in starts]))
            for image in images
        ]
    assign = assign_words if assignment == "hard" else soft_assign
    words = [assign(of_image, transformer.words_) for of_image in described]
    expected = np.array([slow_counts(w, places, levels, 8) for w in words])
    if weighting == "square_root":
        expected = np.sqrt(expected)
    if weighting == "tf_idf":
        whole = [slow_counts(w, places, 1, 8) for w in words[:4]]
        frequencies = np.maximum((np.array(whole) > 0).sum(axis=0), 1)
        np.testing.assert_allclose(transformer.idf_, np.log(4 / frequencies), rtol=1e-6)
        expected = expected * np.tile(np.log(4 / frequencies), expected.shape[1] // 8)
    lengths = np.linalg.norm(expected, ord=int(norm[1]), axis=1, keepdims=True)
    np.testing.assert_allclose(rows, expected / np.where(lengths > 0, lengths, 1), atol=1e-5)


def stripes(period: int, turned: bool) -> np.ndarray:
    image = np.tile((np.arange(48) // period % 2 * 200).astype(np.uint8), (48, 1))
    return np.repeat((image.T if turned else image)[..., None], 3, axis=2)


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
def test_textures_are_told_apart_and_found_again(descriptor):
    upright, lying = stripes(3, turned=False), stripes(3, turned=True)
    images = np.stack([upright, lying] * 3)
    transformer = bag(descriptor=descriptor, num_words=12, cell_pixels=(4,), patch_pixels=8)
    transformer.set_params(levels=1, weighting="none", norm="l1", step_pixels=6)
    rows = transformer.fit(images).transform(images)
    words_of = rows[:2] > 0
    assert not (words_of[0] & words_of[1]).any()
    halves = np.concatenate([upright[:, :24], lying[:, 24:]], axis=1)[None]
    assert (words_of @ transformer.transform(halves)[0]).min() > 0.3
    # The pyramid says where: left cells have words of one, right cells of the other.
    transformer.set_params(levels=2).fit(images)
    quarters = transformer.transform(halves).reshape(5, 12)[1:]
    in_cells = quarters @ words_of.T
    assert (in_cells.argmax(axis=1) == [0, 1, 0, 1]).all()
    assert (in_cells.max(axis=1) > 2 * in_cells.min(axis=1)).all()


def test_tf_idf_drops_what_all_images_have():
    images = photos()
    transformer = bag(weighting="tf_idf", levels=1, num_words=3, assignment="soft")
    rows = transformer.fit(images[:5]).transform(images[:5])
    # Each of three words is among the five nearest of every descriptor.
    np.testing.assert_array_equal(transformer.idf_, 0)
    assert not rows.any()


def test_only_images_for_fit_count():
    images = photos()
    first = bag(weighting="tf_idf").fit(images[:3])
    rows = first.transform(images)
    poisoned = images.copy()
    poisoned[3:] = 255 - poisoned[3:]
    second = bag(weighting="tf_idf").fit(poisoned[:3])
    second.transform(poisoned)
    np.testing.assert_array_equal(second.words_, first.words_)
    np.testing.assert_array_equal(second.idf_, first.idf_)
    np.testing.assert_array_equal(second.transform(images), rows)


# Company, seeds and settings.


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
def test_a_row_has_the_same_bits_in_any_company(descriptor, assignment):
    images = photos((41, 38))  # odd, higher than wide
    transformer = bag(descriptor=descriptor, assignment=assignment, levels=3).fit(images)
    rows = transformer.transform(images)
    for some in ([0], [6, 1], [5, 4, 3, 2, 1, 0, 6], [2] * 20):
        np.testing.assert_array_equal(transformer.transform(images[some]), rows[some])
    np.testing.assert_array_equal(transformer.transform(np.asfortranarray(images)), rows)
    mirrored = images[:, :, ::-1]
    expected = transformer.transform(mirrored.copy())
    np.testing.assert_array_equal(transformer.transform(mirrored), expected)
    for threads in (1, 2):
        with threadpool_limits(threads):
            np.testing.assert_array_equal(transformer.transform(images), rows)
            again = clone(transformer).fit(np.asfortranarray(images))
            np.testing.assert_array_equal(again.words_, transformer.words_)


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
def test_the_seed_decides_the_words(descriptor):
    images = photos()
    words = [bag(descriptor=descriptor, random_state=s).fit(images).words_ for s in (0, 0, 1)]
    np.testing.assert_array_equal(words[0], words[1])
    assert not np.array_equal(words[0], words[2])
    assert words[0].dtype == np.float32
    assert words[0].shape == (8, 128 if descriptor == "sift" else 192)


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
def test_the_seed_decides_the_sample(descriptor):
    images = photos()[:6]
    # As many words as samples: each sample is a word.
    words = [
        bag(descriptor=descriptor, num_samples=8, random_state=seed).fit(images).words_
        for seed in (0, 1)
    ]
    assert sorted(words[0].tolist()) != sorted(words[1].tolist())


def test_learned_state():
    learned = {name for name in vars(bag().fit(photos())) if name.endswith("_")}
    assert learned == {"words_", "image_size_", "n_features_out_"}
    learned = {name for name in vars(bag(weighting="tf_idf").fit(photos())) if name.endswith("_")}
    assert learned == {"words_", "idf_", "image_size_", "n_features_out_"}


def test_a_single_image_of_the_smallest_size():
    image = photos((16, 16))[:1]
    rows = bag(num_words=2, step_pixels=1, levels=1).fit(image).transform(image)
    assert rows.shape == (1, 2)
    assert np.linalg.norm(rows) == pytest.approx(1)


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
@pytest.mark.filterwarnings("error")
def test_constant_images(descriptor):
    images = np.full((3, 40, 40, 3), 128, np.uint8)
    transformer = bag(descriptor=descriptor, levels=1).fit(images)
    assert not transformer.words_.any()
    # All words are equally near, so the first one counts.
    np.testing.assert_array_equal(transformer.transform(images), np.eye(8)[[0, 0, 0]])


# Patches.


def test_normalised_patches_by_hand():
    # Values 0 and 100 alternate: mean 50, variance 2500.
    patch = np.tile(np.array([0, 100], np.uint8), 6).reshape(1, 2, 2, 3)
    [row] = normalise_patches(patch)
    expected = np.tile([-50, 50], 6) / np.sqrt(12 * 2510)
    np.testing.assert_allclose(row, expected, rtol=1e-6)
    assert row.dtype == np.float32


def test_brightness_and_contrast_do_not_matter_but_colour_does():
    patches = np.random.default_rng(0).integers(50, 100, (5, 6, 6, 3), dtype=np.uint8)
    rows = normalise_patches(patches)
    np.testing.assert_allclose(normalise_patches(patches + 100), rows, atol=1e-6)
    np.testing.assert_allclose(normalise_patches(patches * 2), rows, atol=0.01)
    assert (np.linalg.norm(rows, axis=1) < 1).all()
    red = np.zeros((1, 6, 6, 3), np.uint8)
    red[..., 0] = 200
    [row] = normalise_patches(red).reshape(1, 6, 6, 3)
    assert (row[..., 0] > 0).all()
    assert (row[..., 1:] < 0).all()
    assert not normalise_patches(np.full((1, 6, 6, 3), 255, np.uint8)).any()


def test_random_patches_are_patches_of_their_images():
    images = np.random.default_rng(0).integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)
    images = images // 5 + 40 * np.arange(5, dtype=np.uint8)[:, None, None, None]
    rows = random_patches(images, 4, 500, random_state=0)
    assert rows.shape == (500, 48)
    found = []
    for number, image in enumerate(images):
        for top in range(6):
            for left in range(5):
                patch = normalise_patches(image[None, top : top + 4, left : left + 4])
                found += [(number, top, left)] * int((rows == patch).all(axis=1).sum())
    counts = {axis: np.bincount([place[axis] for place in found]) for axis in range(3)}
    assert counts[0].tolist() == [100] * 5  # as many of each image
    assert len(counts[1]) == 6  # every place can be drawn
    assert len(counts[2]) == 5
    assert counts[1].min() > 50
    assert counts[2].min() > 60


def test_dense_patches():
    images = photos((13, 22))[:2]
    rows = dense_patches(images, 4, 6)
    # 3 pixels are left over of 13 - 6, so the first row is 1; none of 22 - 6.
    places = [(top, left) for top in (1, 5) for left in (0, 4, 8, 12, 16)]
    assert rows.shape == (2, 10, 108)
    for image, of_image in zip(images, rows, strict=True):
        patches = np.array([image[top : top + 6, left : left + 6] for top, left in places])
        np.testing.assert_array_equal(of_image, normalise_patches(patches))


# Pictures of words.


def test_tiles_of_words():
    transformer = bag(descriptor="patches", patch_pixels=3, num_words=3).fit(photos())
    words = np.zeros((3, 3, 3, 3), np.float32)
    words[0, 1, 1] = [0.3, -0.3, 0]
    words[1, 0, 0] = 0.01  # as much contrast as there can be
    transformer.words_ = words.reshape(3, 27)
    tiles = transformer.word_tiles()
    assert tiles.dtype == np.uint8
    expected = np.full((3, 3, 3, 3), 128)
    expected[0, 1, 1] = [255, 0, 128]
    expected[1, 0, 0] = 255
    np.testing.assert_array_equal(tiles, expected)


def test_words_of_gradients_are_no_pictures():
    message = (
        r"^words of 'sift' descriptors are no pictures; show the patches that are nearest to them "
        r"with cvpipe\.features\.bag_of_words\.example_patches\.$"
    )
    with pytest.raises(InputError, match=message):
        bag().fit(photos()).word_tiles()


@pytest.mark.parametrize("descriptor", ["sift", "patches"])
def test_examples_of_words(descriptor):
    images = photos()
    transformer = bag(descriptor=descriptor, patch_pixels=8, num_words=6).fit(images)
    examples = example_patches(transformer, images, per_word=5)
    side = 16 if descriptor == "sift" else 8
    assert examples.shape == (6, 5, side, side, 3)
    assert examples.dtype == np.uint8

    found = {word: [] for word in range(6)}
    patches = transformer.patches((40, 56))
    for image, rows in zip(images, transformer.descriptors(images), strict=True):
        for row, (top, left, own) in zip(rows, patches, strict=True):
            distances = np.square(transformer.words_ - row).sum(axis=1)
            patch = image[top : top + own, left : left + own]
            patch = cv2.resize(patch, (side, side), interpolation=cv2.INTER_NEAREST)
            found[int(distances.argmin())].append((float(distances.min()), patch))
    for word, pairs in found.items():
        pairs.sort(key=lambda pair: pair[0])
        expected = [patch for _, patch in pairs[:5]]
        np.testing.assert_array_equal(examples[word, : len(expected)], expected)
        assert not examples[word, len(expected) :].any()


# Errors.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"descriptor": "surf"}, r"^descriptor of a bag of visual words is 'surf'; choose one of"),
        (
            {"assignment": "fuzzy"},
            r"^assignment of .* is 'fuzzy'; choose one of \['hard', 'soft'\]",
        ),
        (
            {"weighting": "log"},
            r"^weighting of .* is 'log'; choose one of \['none', 'square_root',",
        ),
        ({"norm": "l3"}, r"^norm of .* is 'l3'; choose one of \['l1', 'l2'\]\.$"),
        ({"levels": 0}, r"^levels of .* is 0, but must be between 1 and 6\.$"),
        ({"levels": 7}, r"^levels of .* is 7, but must be between 1 and 6\.$"),
        ({"num_words": 1}, r"^num_words of .* is 1, but must be between 2 and 10000\.$"),
        ({"num_samples": 7}, r"^num_samples of .* is 7, but must be between 8 and 1000000\.$"),
        ({"num_samples": 1_000_001}, r"^num_samples of .* but must be between 8 and 1000000\.$"),
        ({"num_words": 10_001}, r"^num_words of .* is 10001, but must be between 2 and 10000\.$"),
        ({"step_pixels": 0}, r"^step_pixels of .* is 0, but must be between 1 and "),
        ({"cell_pixels": (4, 99)}, r"^cell_pixels of a bag of visual words is \(4, 99\), but must"),
        ({"cell_pixels": (4, 11)}, r"^a bag of visual words with cells of 11 pixels needs images"),
        ({"patch_pixels": 41}, r"^patch_pixels of .* is 41, but must be between 2 and 40\.$"),
        ({"descriptor": "patches", "patch_pixels": 1}, r"^patch_pixels of .* is 1, but must be"),
        ({"num_words": 400}, r"^400 visual words cannot be learned from 236 descriptors; lower"),
    ],
)
def test_impossible_settings(settings, message):
    settings = {"num_samples": 500, **settings}
    with pytest.raises(InputError, match=message):
        bag(**settings).fit(photos()[:4])
