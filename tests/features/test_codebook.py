import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from cvpipe.errors import InputError
from cvpipe.features.codebook import (
    assign_words,
    learn_codebook,
    sample_rows,
    share_out,
    soft_assign,
)


def random_rows(number: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((number, length), dtype=np.float32)


# Sharing out and sampling.


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 99))
def test_samples_are_shared_out_evenly(num_samples, num_images, seed):
    shares = share_out(num_samples, num_images, seed)
    assert len(shares) == num_images
    assert shares.sum() == num_samples
    assert shares.max() - shares.min() <= 1
    np.testing.assert_array_equal(share_out(num_samples, num_images, seed), shares)


def test_chance_decides_which_images_give_more():
    larger = np.mean([share_out(13, 10, seed) for seed in range(300)], axis=0)
    np.testing.assert_allclose(larger, 1.3, atol=0.12)


class Describer:
    """Describe image i, an array with the number i, by rows (i, 0), (i, 1), ..."""

    def __init__(self, num_points: int) -> None:
        self.num_points = num_points
        self.calls: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls.append(len(images))
        rows = [[(image, point) for point in range(self.num_points)] for image in images]
        return np.array(rows, np.float32)


def test_rows_are_sampled_from_all_images_evenly():
    sample = sample_rows(Describer(10), np.arange(20), 50, random_state=3)
    assert sample.shape == (50, 2)
    assert sample.dtype == np.float32
    counts = np.bincount(sample[:, 0].astype(int), minlength=20)
    np.testing.assert_array_equal(counts, share_out(50, 20, 3))
    assert len(np.unique(sample, axis=0)) == 50
    assert sample.tolist() == sorted(sample.tolist())


def test_all_points_have_the_same_chance():
    points = [sample_rows(Describer(5), np.arange(7), 14, seed)[:, 1] for seed in range(200)]
    shares = np.bincount(np.concatenate(points).astype(int), minlength=5) / (200 * 14)
    np.testing.assert_allclose(shares, 0.2, atol=0.03)


def test_another_seed_gives_another_sample():
    samples = [sample_rows(Describer(50), np.arange(9), 90, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


def test_more_samples_than_there_are():
    sample = sample_rows(Describer(3), np.arange(4), 1000, random_state=0)
    assert sample.tolist() == [[image, point] for image in range(4) for point in range(3)]


def test_fewer_samples_than_images():
    describe = Describer(3)
    sample = sample_rows(describe, np.arange(100), 10, random_state=0)
    assert len(np.unique(sample[:, 0])) == 10
    # Images that give no sample are not described, and never many at a time.
    assert sum(describe.calls) == 1 + 10
    assert max(describe.calls) <= 8


# Learning.


def test_separate_clusters_are_found():
    centres = np.array([[0, 0, 9], [5, 5, 0], [-5, 0, 0], [0, -7, 2]], np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, (4, 500, 3))
    samples = (centres[:, None] + noise).reshape(-1, 3).astype(np.float32)
    words = learn_codebook(samples, 4, random_state=0)
    assert words.dtype == np.float32
    found = words[assign_words(centres, words)]
    np.testing.assert_allclose(found, centres, atol=0.05)


def test_the_same_input_gives_the_same_words():
    samples = random_rows(5000, 12)
    words = learn_codebook(samples, 32, random_state=5)
    np.random.seed(99)  # the state of the whole process does not matter
    for threads in (1, 2):
        with threadpool_limits(threads):
            np.testing.assert_array_equal(learn_codebook(samples, 32, random_state=5), words)
    assert not np.array_equal(learn_codebook(samples, 32, random_state=6), words)


def test_the_state_of_the_whole_process_stays():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    learn_codebook(random_rows(50, 3), 4, random_state=0)
    sample_rows(Describer(3), np.arange(4), 5, random_state=0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_words_are_nearly_as_good_as_those_of_full_k_means():
    from sklearn.cluster import KMeans

    samples = random_rows(4000, 8)

    def error(words: np.ndarray) -> float:
        nearest = words[assign_words(samples, words)]
        return float(np.square(samples - nearest).sum(axis=1).mean())

    with threadpool_limits(1):
        full = KMeans(16, n_init=1, random_state=0).fit(samples).cluster_centers_
    ours = learn_codebook(samples, 16, random_state=0)
    assert error(ours) < 1.03 * error(full.astype(np.float32))
    assert error(ours) < 0.8 * error(samples[:16])


def test_as_many_words_as_samples():
    samples = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    words = learn_codebook(samples, 3, random_state=0)
    assert sorted(words.tolist()) == sorted(samples.tolist())


@pytest.mark.filterwarnings("error")
def test_samples_that_are_all_the_same():
    words = learn_codebook(np.full((40, 3), 0.5, np.float32), 4, random_state=0)
    np.testing.assert_array_equal(words, np.full((4, 3), 0.5))


def test_too_few_samples():
    message = (
        r"^4 visual words cannot be learned from 3 descriptors; lower num_words or step_pixels, "
        r"raise num_samples or give more images\.$"
    )
    with pytest.raises(InputError, match=message):
        learn_codebook(random_rows(3, 2), 4, random_state=0)


# Looking up.


def slow_distances(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    return np.array(
        [[sum((float(a) - float(b)) ** 2 for a, b in zip(d, w, strict=True)) for w in words]
         for d in descriptors]
    )  # fmt: skip


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_the_nearest_word(num_points, num_words, length, seed):
    rng = np.random.default_rng(seed)
    descriptors = rng.integers(-3, 4, (num_points, length)).astype(np.float32)
    words = rng.integers(-3, 4, (num_words, length)).astype(np.float32)
    # Whole numbers have exact distances, so ties are ties; the loops take the first as well.
    expected = slow_distances(descriptors, words).argmin(axis=1)
    np.testing.assert_array_equal(assign_words(descriptors, words), expected)


def test_ties_go_to_the_first_word():
    words = np.array([[5, 5], [1, 0], [-1, 0], [1, 0]], np.float32)
    assert assign_words(np.array([[0, 7], [2, 0]], np.float32), words).tolist() == [0, 1]
    assert assign_words(np.array([[0, -7]], np.float32), words).tolist() == [1]


@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 12), st.floats(0, 30),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_soft_assignment(num_points, num_words, num_nearest, sharpness, seed):
    rng = np.random.default_rng(seed)
    descriptors = rng.random((num_points, 4), dtype=np.float32)
    words = rng.random((num_words, 4), dtype=np.float32)
    shares = soft_assign(descriptors, words, num_nearest, sharpness)
    expected = np.zeros((num_points, num_words))
    for row, distances in zip(expected, slow_distances(descriptors, words), strict=True):
        for word in np.argsort(distances)[:num_nearest]:
            row[word] = np.exp(-sharpness * distances[word])
    expected /= expected.sum(axis=1, keepdims=True)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, expected, atol=1e-4)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)


def test_soft_assignment_by_hand():
    words = np.array([[0, 0], [1, 0], [0, 2]], np.float32)  # squared distances 0, 1 and 4
    near, far = 1 / (1 + np.exp(-3)), np.exp(-3) / (1 + np.exp(-3))
    shares = soft_assign(np.zeros((1, 2), np.float32), words, num_nearest=2, sharpness=3)
    np.testing.assert_allclose(shares, [[near, far, 0]], rtol=1e-5)


def test_a_sharp_soft_assignment_is_a_hard_one():
    descriptors, words = random_rows(50, 4), random_rows(9, 4, seed=1)
    shares = soft_assign(descriptors, words, num_nearest=3, sharpness=1e4)
    np.testing.assert_array_equal(shares.argmax(axis=1), assign_words(descriptors, words))
    assert (shares.max(axis=1) > 0.9).mean() > 0.8
    assert np.isfinite(shares).all()


def test_a_descriptor_far_from_all_words_is_still_shared_out():
    shares = soft_assign(np.full((1, 2), 1e3, np.float32), random_rows(6, 2))
    assert np.isfinite(shares).all()
    assert shares.sum() == pytest.approx(1)
