import numpy as np
import pytest
from scipy import stats

from cvpipe.data.mixing import mix_batch
from cvpipe.sections import AugmentSection

NUM_CLASSES = 6


def batch(seed=0, num_images=6):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_images, 20, 30, 3), dtype=np.uint8)
    return images, np.eye(NUM_CLASSES, dtype=np.float32)[np.arange(num_images) % NUM_CLASSES]


def partners_of(targets):
    """Read shares and partners from the targets of a batch with one image per class."""
    shares = np.diag(targets)
    others = targets - np.diag(shares)
    return shares, np.where(others.max(axis=1) > 0, others.argmax(axis=1), np.arange(len(targets)))


def test_nothing_asked_nothing_mixed():
    images, targets = batch()
    same_images, same_targets = mix_batch(images, targets, AugmentSection(), "a")
    assert same_images is images
    assert same_targets is targets


@pytest.mark.parametrize("number", range(5))
def test_mixup_blends_pixels_as_it_blends_labels(number):
    images, targets = batch()
    before = images.copy()
    mixed, soft = mix_batch(images, targets, AugmentSection(mixup=1.0), f"batch {number}")
    shares, partners = partners_of(soft)
    share = shares[partners != np.arange(6)][0]
    assert sorted(partners) == list(range(6))
    expected = share * images + (1 - share) * images[partners].astype(float)
    assert np.abs(mixed - expected).max() <= 0.51
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(images, before)
    assert (mixed.dtype, soft.dtype) == (np.uint8, np.float32)


@pytest.mark.parametrize("number", range(5))
def test_cutmix_pastes_a_rectangle_of_the_share_of_its_label(number):
    images, targets = batch()
    before = images.copy()
    mixed, soft = mix_batch(images, targets, AugmentSection(cutmix=1.0), f"batch {number}")
    shares, partners = partners_of(soft)
    other = np.flatnonzero(partners != np.arange(6))[0]
    pasted = (mixed[other] != images[other]).any(axis=2)
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    box = np.ix_(range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1))
    np.testing.assert_array_equal(mixed[other][box], images[partners[other]][box])
    assert pasted.sum() == pasted[box].sum()
    area = pasted[box].size / pasted.size
    assert abs(1 - shares[other] - area) < 1e-6
    np.testing.assert_array_equal(images, before)


def test_strengths_follow_the_beta_distribution():
    images, targets = batch()
    shares = []
    for number in range(1500):
        _, soft = mix_batch(images, targets, AugmentSection(mixup=0.4), f"{number}")
        own, partners = partners_of(soft)
        moved = partners != np.arange(6)
        if moved.any():
            shares.append(own[moved][0])
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4


def test_a_key_decides_and_a_coin_chooses():
    images, targets = batch()
    both = AugmentSection(mixup=1.0, cutmix=1.0)
    kinds = []
    for number in range(200):
        mixed, soft = mix_batch(images, targets, both, f"{number}")
        again, _ = mix_batch(images, targets, both, f"{number}")
        np.testing.assert_array_equal(mixed, again)
        _, partners = partners_of(soft)
        own = np.array([(mixed[i] == images[i]).mean() for i in range(6) if partners[i] != i])
        theirs = np.array(
            [(mixed[i] == images[partners[i]]).mean() for i in range(6) if partners[i] != i]
        )
        kinds.append(bool(np.all(own + theirs >= 0.99)))  # every pixel is one of the two
    assert 70 < sum(kinds) < 130


def test_a_batch_of_one_stays_as_it_is():
    images, targets = batch(num_images=1)
    for settings in (AugmentSection(mixup=1.0), AugmentSection(cutmix=1.0)):
        mixed, soft = mix_batch(images, targets, settings, "x")
        assert np.abs(mixed.astype(int) - images).max() <= 1
        np.testing.assert_allclose(soft, targets, atol=1e-6)
