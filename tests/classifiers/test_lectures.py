"""The numbers worked out in lectures 2 and 3, by the code that is used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import hinge_loss as hinge_loss_of_scikit_learn
from sklearn.metrics import log_loss

from cvpipe.classifiers.losses import hinge_loss, softmax_loss
from cvpipe.classifiers.neighbours import NearestNeighbours, find_neighbours

# Scores of a cat, a car and a frog for the three classes, in this order.
SCORES = np.array([[3.2, 5.1, -1.7], [1.3, 4.9, 2.0], [2.2, 2.5, -3.1]])
TARGETS = np.array([0, 1, 2])

TEST_IMAGE = [[56, 32, 10, 18], [90, 23, 128, 133], [24, 26, 178, 200], [2, 0, 255, 220]]
TRAIN_IMAGE = [[10, 20, 24, 17], [8, 10, 89, 100], [12, 16, 178, 170], [4, 32, 233, 112]]


def test_hinge_losses():
    losses = hinge_loss(SCORES, TARGETS)
    np.testing.assert_allclose(losses, [2.9, 0.0, 12.9], atol=1e-12)
    assert losses.mean() == pytest.approx(5.27, abs=0.005)


def test_softmax_loss_of_the_cat():
    [loss] = softmax_loss(SCORES[:1], TARGETS[:1])
    assert np.exp(-loss) == pytest.approx(0.13, abs=0.005)
    assert loss == pytest.approx(2.04, abs=0.005)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_losses_before_anything_was_learned(num_classes):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 8)) @ np.zeros((8, num_classes))  # all weights zero
    targets = rng.integers(0, num_classes, 50)
    np.testing.assert_allclose(hinge_loss(scores, targets), num_classes - 1)
    np.testing.assert_allclose(softmax_loss(scores, targets), np.log(num_classes))


def test_l1_distance():
    train, test = np.ravel(TRAIN_IMAGE)[None], np.ravel(TEST_IMAGE)[None]
    distances, nearest = find_neighbours("l1", train, test, 1)
    assert distances.tolist() == [[456.0]]
    assert nearest.tolist() == [[0]]


def test_one_neighbour_knows_all_train_images():
    rng = np.random.default_rng(0)
    images, targets = rng.integers(0, 256, (40, 48)), rng.integers(0, 10, 40)
    for metric in ("l1", "l2", "cosine"):
        assert NearestNeighbours(metric).fit(images, targets).score(images, targets) == 1.0


# The losses themselves.


def test_the_margin():
    np.testing.assert_allclose(hinge_loss(SCORES, TARGETS, margin=0.0), [1.9, 0.0, 10.9])
    np.testing.assert_allclose(hinge_loss(SCORES, TARGETS, margin=3.0), [4.9, 0.1, 16.9])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(2, 6), st.integers(0, 1000))
def test_losses_against_loops(num_rows, num_classes, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_rows, num_classes)) * 3
    targets = rng.integers(0, num_classes, num_rows)
    for row, own in enumerate(targets):
        others = [score for name, score in enumerate(scores[row]) if name != own]
        hinge = sum(max(0.0, other - scores[row][own] + 1) for other in others)
        softmax = -np.log(np.exp(scores[row][own]) / sum(np.exp(scores[row])))
        assert hinge_loss(scores, targets)[row] == pytest.approx(hinge)
        assert softmax_loss(scores, targets)[row] == pytest.approx(softmax)


def test_losses_against_scikit_learn():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(30, 2)), np.arange(30) % 2
    difference = scores[:, 1] - scores[:, 0]
    assert hinge_loss(scores, targets).mean() == pytest.approx(
        hinge_loss_of_scikit_learn(targets, difference)
    )
    shares = 1 / (1 + np.exp(-difference))
    assert softmax_loss(scores, targets).mean() == pytest.approx(log_loss(targets, shares))


def test_large_scores_do_not_overflow():
    scores = np.array([[1e4, 0.0], [-1e4, 0.0]])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_allclose(softmax_loss(scores, np.array([0, 0])), [0.0, 1e4])


def test_a_satisfied_margin_is_left_alone_and_the_softmax_never_is():
    jiggled = SCORES + np.array([[0, 0, 0], [0, 0.3, -0.2], [0, 0, 0]])
    assert hinge_loss(jiggled, TARGETS)[1] == hinge_loss(SCORES, TARGETS)[1] == 0.0
    assert softmax_loss(jiggled, TARGETS)[1] < softmax_loss(SCORES, TARGETS)[1]
    assert hinge_loss(2 * SCORES, TARGETS)[1] == 0.0
