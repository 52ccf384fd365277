import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from cvpipe.errors import InputError
from cvpipe.inference import unlike
from cvpipe.inference.unlike import (
    bound_of,
    energy,
    improbability,
    neighbour_distance,
    score_images,
    unit_rows,
)


def test_improbability_by_hand():
    probabilities = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    assert improbability(probabilities).tolist() == [0.25, 0.0, 0.5]


def test_energy_by_hand_and_as_scipy_has_it():
    # log(e^0 + e^0) = log 2; two logits of log 3 and log 5 sum to 8.
    assert energy(np.array([[0.0, 0.0]]))[0] == pytest.approx(-math.log(2))
    assert energy(np.log([[3.0, 5.0]]))[0] == pytest.approx(-math.log(8))
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32) * 30
    assert np.allclose(energy(logits), -logsumexp(logits.astype(float), axis=1), rtol=1e-12)


def test_energy_of_large_logits_does_not_overflow():
    assert energy(np.array([[1e4, 1e4], [-1e4, -1e4]])) == pytest.approx(
        [-1e4 - math.log(2), 1e4 - math.log(2)]
    )


def test_energy_keeps_the_digits_of_float32_logits():
    logits = np.array([[20.0, 0.0]], dtype=np.float32)
    assert energy(logits)[0] + 20 == pytest.approx(-math.log1p(math.exp(-20)), rel=1e-5)


def test_unit_rows_have_length_one_and_zeros_stay():
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert rows.dtype == np.float32
    assert np.allclose(rows, [[0.6, 0.8], [0.0, 0.0]])
    # Squares of these would overflow in float32.
    assert np.allclose(unit_rows(np.array([[3e30, 4e30]], dtype=np.float32)), [[0.6, 0.8]])


def test_distance_by_hand():
    train = unit_rows(np.array([[1.0, 0.0], [0.0, 2.0], [-5.0, 0.0]]))
    asked = np.array([[7.0, 0.0]])  # cosines 1, 0 and -1: its length does not count
    for rank, expected in ((1, 0.0), (2, 1.0), (3, 2.0), (9, 2.0)):
        assert neighbour_distance(asked, train, rank).tolist() == pytest.approx([expected])


def test_distance_orders_as_scikit_learns_euclidean_neighbours():
    rng = np.random.default_rng(0)
    train, asked = rng.normal(size=(60, 8)) + 1, rng.normal(size=(40, 8))
    rows = unit_rows(train)
    found = NearestNeighbors(n_neighbors=5).fit(rows).kneighbors(unit_rows(asked))[0][:, 4]
    ours = neighbour_distance(asked.astype(np.float32), rows)
    assert ours.dtype == np.float64
    assert np.allclose(ours, found**2 / 2, atol=1e-6)


def test_distance_does_not_depend_on_the_blocks(monkeypatch):
    rng = np.random.default_rng(1)
    train, asked = unit_rows(rng.normal(size=(30, 6))), rng.normal(size=(17, 6))
    whole = neighbour_distance(asked, train)
    monkeypatch.setattr(unlike, "BLOCK_VALUES", 90)  # three images at a time, then two
    assert np.allclose(neighbour_distance(asked, train), whole, atol=1e-6)
    monkeypatch.setattr(unlike, "BLOCK_VALUES", 1)
    assert np.allclose(neighbour_distance(asked, train), whole, atol=1e-6)


def test_a_training_image_itself_is_at_distance_zero_not_below():
    train = np.random.default_rng(2).normal(size=(20, 1280)).astype(np.float32)
    distances = neighbour_distance(train, unit_rows(train), 1)
    assert (distances >= 0).all()
    assert distances.max() < 1e-6


@pytest.mark.parametrize(
    ("features", "train", "rank"),
    [((3, 4), (5, 6), 1), ((3, 4), (0, 4), 1), ((3, 4), (5, 4), 0)],
)
def test_distance_refuses_what_cannot_be_ranked(features, train, rank):
    with pytest.raises(InputError, match=r"cannot rank .* rows of one length"):
        neighbour_distance(np.ones(features), np.ones(train), rank)


def test_scores_are_those_that_the_parts_allow():
    probabilities = np.array([[0.9, 0.1]])
    features = np.array([[1.0, 2.0]], dtype=np.float32)
    assert list(score_images({}, probabilities, features)) == ["probability"]
    kernel = np.array([[0.0, 1.0], [0.0, 1.0]])
    parts = {
        "kernel": kernel,
        "bias": np.array([0.0, -3.0]),
        "train_rows": unit_rows(np.array([[2.0, 4.0]])),
    }
    scores = score_images(parts, probabilities, features)
    assert list(scores) == list(unlike.SCORES)
    assert scores["probability"] == pytest.approx([0.1])
    assert scores["energy"] == pytest.approx([-math.log(2)])  # logits 0 and 1 + 2 - 3
    assert scores["distance"] == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("num_scores", "rank"), [(1, 1), (18, 18), (19, 19), (20, 20), (38, 38), (39, 38), (99, 95)]
)
def test_bound_by_hand(num_scores, rank):
    """Rank ceil(.95 (n + 1)): of 39 the 38th, of 19 the 19th; below that the largest."""
    scores = np.random.default_rng(num_scores).permutation(np.arange(1.0, num_scores + 1))
    assert bound_of(scores) == rank


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_at_most_the_promised_share_of_the_fitted_images_is_above(scores, share):
    bound = bound_of(np.array(scores), share)
    assert bound in scores
    assert np.mean(np.array(scores) > bound) <= share + 1e-9


def test_a_further_image_is_flagged_as_often_as_promised():
    """Of 199 and one more, ranks are uniform: above the 190th with probability 10 of 200."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20_000, 200))
    bounds = np.sort(draws[:, :199], axis=1)[:, 189]
    assert bound_of(draws[0, :199]) == bounds[0]
    assert np.mean(draws[:, 199] > bounds) == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("share", [0.0, 1.0, float("nan")])
def test_bound_refuses_a_share_outside(share):
    with pytest.raises(InputError, match=r"is not between 0 and 1; pass 0\.05"):
        bound_of(np.ones(3), share)


@pytest.mark.parametrize(
    ("scores", "told"), [([], "0, of which 0"), ([1, np.nan], "2, of which 1")]
)
def test_bound_refuses_scores_that_are_none(scores, told):
    with pytest.raises(InputError, match=f"but got {told} are finite"):
        bound_of(np.array(scores, dtype=float))
