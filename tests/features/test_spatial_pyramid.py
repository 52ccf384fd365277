import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.features.spatial_pyramid import MAX_LEVELS, level_weights, pool, pyramid_cells


def slow_pool(words, places, levels, num_words, weighted) -> np.ndarray:
    """Count descriptor by descriptor; `words` as words or as shares."""
    cells = []
    for level in range(levels):
        side = 2**level
        weight = 1 / 2 ** max(levels - level, 1) if level else 1 / 2 ** (levels - 1)
        counts = np.zeros((side, side, num_words))
        for word, (row, column) in zip(words, places, strict=True):
            y, x = min(int(row * side), side - 1), min(int(column * side), side - 1)
            shares = np.eye(num_words)[word] if np.ndim(word) == 0 else word
            counts[y, x] += shares / len(words)
        cells.append(counts.ravel() * (weight if weighted else 1))
    return np.concatenate(cells)


# Each descriptor at one of a few places, many of them on borders between cells.
PLACES = st.sampled_from([0, 0.1, 0.25, 0.3, 0.5, 0.51, 0.75, 0.9, 0.999, 1])
DESCRIPTORS = st.lists(st.tuples(st.integers(0, 4), PLACES, PLACES), min_size=1, max_size=30)


@given(DESCRIPTORS, st.integers(1, 4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_equal_to_plain_loops(descriptors, levels, weighted):
    words = np.array([word for word, _, _ in descriptors])
    places = np.array([place for _, *place in descriptors], np.float32)
    row = pool(words, places, levels, 5, weighted)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, slow_pool(words, places, levels, 5, weighted), atol=1e-7)


@given(DESCRIPTORS, st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_shares_are_pooled_as_words_are(descriptors, levels, weighted, seed):
    shares = np.random.default_rng(seed).dirichlet(np.ones(5), len(descriptors))
    shares = shares.astype(np.float32)
    places = np.array([place for _, *place in descriptors], np.float32)
    row = pool(shares, places, levels, 5, weighted)
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, slow_pool(shares, places, levels, 5, weighted), atol=1e-6)
    words = np.array([word for word, _, _ in descriptors])
    whole = np.eye(5, dtype=np.float32)[words]
    expected = pool(words, places, levels, 5, weighted)
    np.testing.assert_allclose(pool(whole, places, levels, 5, weighted), expected, atol=1e-7)


@given(DESCRIPTORS, st.integers(1, MAX_LEVELS))
@settings(max_examples=30, deadline=None)
def test_every_descriptor_is_in_one_cell_of_each_level(descriptors, levels):
    words = np.array([word for word, _, _ in descriptors])
    places = np.array([place for _, *place in descriptors], np.float32)
    cells = pyramid_cells(levels)
    row = pool(words, places, levels, 5, weighted=False).reshape(len(cells), 5)
    by_word = np.bincount(words, minlength=5) / len(words)
    for level in range(levels):
        np.testing.assert_allclose(row[cells[:, 0] == level].sum(axis=0), by_word, atol=1e-6)


def test_by_hand():
    # Two words, three levels: one descriptor at the top left, three at the bottom right.
    places = np.array([[0.1, 0.2], [0.9, 0.9], [0.9, 0.95], [0.6, 0.9]])
    row = pool(np.array([1, 0, 1, 0]), places, 3, 2).reshape(21, 2)
    expected = np.zeros((21, 2))
    expected[0] = [0.5 / 4, 0.5 / 4]
    expected[1], expected[4] = [0, 0.25 / 4], [0.5 / 4, 0.25 / 4]
    expected[5], expected[20], expected[16] = [0, 0.25 / 2], [0.25 / 2, 0.25 / 2], [0.25 / 2, 0]
    np.testing.assert_allclose(row, expected, atol=1e-7)
    assert pyramid_cells(3)[16].tolist() == [2, 2, 3]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(1, [1]), (2, [1 / 2, 1 / 2]), (4, [1 / 8, 1 / 8, 1 / 4, 1 / 2])],
)
def test_weights_of_levels(levels, expected):
    weights = level_weights(levels)
    assert weights.tolist() == expected
    assert weights.dtype == np.float32


def test_all_weights_together_are_one():
    words, places = np.array([0, 1, 1]), np.array([[0, 0], [0.3, 0.7], [1, 1]])
    for levels in range(1, MAX_LEVELS + 1):
        assert pool(words, places, levels, 2).sum() == pytest.approx(1)
        assert pool(words, places, levels, 2, weighted=False).sum() == pytest.approx(levels)


def test_cells():
    assert pyramid_cells(1).tolist() == [[0, 0, 0]]
    for levels in range(1, MAX_LEVELS + 1):
        cells = pyramid_cells(levels)
        assert len(cells) == sum(4**level for level in range(levels))
        assert len(np.unique(cells, axis=0)) == len(cells)
        assert cells.tolist() == sorted(cells.tolist())


@pytest.mark.parametrize("levels", [0, -1, 7])
def test_levels_out_of_range(levels):
    message = rf"^a spatial pyramid of {levels} levels was asked for; choose 1 to 6\.$"
    with pytest.raises(InputError, match=message):
        pyramid_cells(levels)
    with pytest.raises(InputError, match=message):
        pool(np.array([0]), np.array([[0.5, 0.5]]), levels, 1)
