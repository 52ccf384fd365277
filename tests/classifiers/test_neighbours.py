import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from cvpipe.classifiers import neighbours
from cvpipe.classifiers.neighbours import (
    METRICS,
    NearestNeighbours,
    find_neighbours,
    prepare_rows,
    share_votes,
)
from cvpipe.errors import InputError

# On a line: the class of a point follows from its neighbours, counted by hand.
LINE = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
LINE_TARGETS = np.array([0, 0, 1, 1, 1, 2])


def distance(metric, x, y) -> float:
    """Compute a distance by its definition, in Python's own numbers."""
    x, y = [float(a) for a in x], [float(b) for b in y]
    if metric == "l1":
        return sum(abs(a - b) for a, b in zip(x, y, strict=True))
    if metric == "l2":
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5
    lengths = [sum(a * a for a in v) ** 0.5 for v in (x, y)]
    if 0 in lengths:
        return float(lengths[0] != lengths[1])
    cosine = sum(a * b for a, b in zip(x, y, strict=True)) / lengths[0] / lengths[1]
    return 1 - cosine


def slow_shares(metric, train, targets, row, k, vote, weights=None):
    """Let the neighbours of one row vote, by plain loops."""
    distances = [distance(metric, row, other) for other in train]
    # Almost equal counts as equal: sums in another order differ in the last digits.
    ranked = sorted(range(len(train)), key=lambda n: (round(distances[n], 9), n))[:k]
    votes = dict.fromkeys(sorted(set(targets)), 0.0)
    touching = [n for n in ranked if round(distances[n], 9) == 0]
    for n in touching if vote == "distance" and touching else ranked:
        worth = 1.0 if vote == "majority" or touching else 1.0 / distances[n]
        votes[targets[n]] += worth * (1.0 if weights is None else weights[n])
    most = max(votes.values())
    winner = next(targets[n] for n in ranked if votes[targets[n]] >= most * (1 - 1e-9))
    total = sum(votes.values())
    return [share / total for share in votes.values()], winner


@pytest.mark.parametrize(
    ("k", "point", "votes"),
    [
        (1, 1.9, [0, 1, 0]),
        (3, 1.9, [2 / 3, 1 / 3, 0]),  # 0, 1 and 2
        (3, 11.5, [0, 2 / 3, 1 / 3]),  # 10, 11 and 12
        (5, 5.9, [2 / 5, 3 / 5, 0]),  # all but 12
        (5, 6.1, [1 / 5, 3 / 5, 1 / 5]),  # all but 0
        (99, 6.1, [2 / 6, 3 / 6, 1 / 6]),  # all
    ],
)
@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_votes_count_the_same(metric, k, point, votes):
    machine = NearestNeighbours(metric, k).fit(LINE, LINE_TARGETS)
    np.testing.assert_allclose(machine.predict_proba([[point]]), [votes], rtol=1e-12)


def test_votes_weighted_by_distance():
    machine = NearestNeighbours("l2", 3, "distance").fit(LINE, LINE_TARGETS)
    # Distances 2, 1 and 1 from 0, 1... of the point 2: the one at distance zero decides alone.
    np.testing.assert_array_equal(machine.predict_proba([[2.0]]), [[0, 1, 0]])
    # Of 4: 2 (distance 2), 1 (3) and 0 (4).
    total = 1 / 2 + 1 / 3 + 1 / 4
    np.testing.assert_allclose(
        machine.predict_proba([[4.0]]), [[(1 / 3 + 1 / 4) / total, 1 / 2 / total, 0]]
    )


@pytest.mark.parametrize(("metric", "expected"), [("l1", 1), ("l2", 0), ("cosine", 2)])
def test_the_metric_decides(metric, expected):
    # From (1, 1): L1 4, 3 and 8; L2 sqrt(8), 3 and sqrt(32); only the last has its direction.
    train = np.array([[3.0, 3.1], [1.0, 4.0], [5.0, 5.0]])
    machine = NearestNeighbours(metric).fit(train, [0, 1, 2])
    assert machine.predict([[1.0, 1.0]]).tolist() == [expected]


# Ties.


def test_of_rows_at_equal_distance_the_earlier_one_is_taken():
    train, targets = np.array([[1.0], [-1.0], [1.0], [3.0]]), [2, 1, 0, 0]
    for metric in ("l1", "l2"):
        _, nearest = find_neighbours(metric, train, np.zeros((1, 1)), 3)
        assert nearest.tolist() == [[0, 1, 2]]
        assert NearestNeighbours(metric).fit(train, targets).predict([[0.0]]).tolist() == [2]


@pytest.mark.parametrize("vote", ["majority", "distance"])
def test_of_equally_many_votes_the_nearest_voter_wins(vote):
    # Two votes each for 0 (at 2 and 3), 1 (at 1 and 4) and, with k = 4, nobody else.
    train, targets = np.array([[2.0], [-3.0], [1.0], [-4.0]]), np.array([0, 0, 1, 1])
    machine = NearestNeighbours(num_neighbours=4).fit(train, targets)
    shares = machine.predict_proba([[0.0]])
    assert shares[0, 1] > shares[0, 0]
    np.testing.assert_allclose(shares, [[0.5, 0.5]], atol=1e-9)
    assert shares.sum() == pytest.approx(1, abs=1e-15)
    assert machine.predict([[0.0]]).tolist() == [1]
    # Mirrored, the other one wins.
    assert machine.predict([[-0.6]]).tolist() == [1]
    assert machine.predict([[1.6]]).tolist() == [0]
    # Two classes of equal weight 1/2 + 1/6 = 1/3 + 1/3 by distance.
    train, targets = np.array([[3.0], [-3.0], [2.0], [-6.0]]), np.array([0, 0, 1, 1])
    machine = NearestNeighbours("l1", 4, vote).fit(train, targets)
    assert machine.predict([[0.0]]).tolist() == [1]


def test_rows_of_one_direction_tie():
    directions = np.random.default_rng(0).integers(-99, 99, (50, 6)).astype(float)
    lengths = np.random.default_rng(1).integers(1, 1000, (4, 50, 1))
    train = np.concatenate([length * directions for length in lengths])
    _, nearest = find_neighbours("cosine", train, directions, 4)
    assert nearest.tolist() == [[row, row + 50, row + 100, row + 150] for row in range(50)]


def test_an_even_k_of_two_follows_the_nearest():
    rng = np.random.default_rng(0)
    train, targets = rng.normal(size=(60, 3)), rng.integers(0, 4, 60)
    new = rng.normal(size=(200, 3))
    one, two = (
        NearestNeighbours(num_neighbours=k).fit(train, targets).predict(new) for k in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_a_lead_that_is_no_tie_is_left_alone():
    codes = np.array([[1, 0, 0]])
    shares = share_votes("majority", np.ones((1, 3)), codes, np.array([[1.0, 0.51, 0.5]]), 2)
    assert shares.argmax() == 0
    np.testing.assert_allclose(shares, [[1.01 / 2.01, 1 / 2.01]], rtol=1e-15)


# Against loops, and scikit-learn.

integers = st.integers(-2, 2)


@st.composite
def problems(draw):
    """Up to 12 rows of few different numbers: many ties, rows of zeros, equal rows."""
    width = draw(st.integers(1, 3))
    row = st.lists(integers, min_size=width, max_size=width)
    train = draw(st.lists(row, min_size=1, max_size=12))
    targets = draw(st.lists(st.integers(0, 2), min_size=len(train), max_size=len(train)))
    return np.array(train, dtype=float), np.array(targets), np.array([draw(row)], dtype=float)


@settings(max_examples=150, deadline=None)
@given(
    problems(), st.sampled_from(METRICS), st.integers(1, 13), st.sampled_from(neighbours.VOTES),
)  # fmt: skip
def test_against_plain_loops(problem, metric, k, vote):
    train, targets, row = problem
    machine = NearestNeighbours(metric, k, vote).fit(train, targets)
    shares, winner = slow_shares(metric, train, targets, row[0], k, vote)
    if (
        metric != "cosine"
    ):  # where the last digits of equal angles differ, order is a matter of luck
        np.testing.assert_allclose(machine.predict_proba(row), [shares], atol=1e-8)
        assert machine.predict(row).tolist() == [winner]
    assert machine.predict_proba(row).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("vote", neighbours.VOTES)
def test_against_plain_loops_where_nothing_ties(metric, vote):
    rng = np.random.default_rng(0)
    train, targets = rng.normal(size=(70, 5)).astype(np.float32), rng.integers(0, 3, 70)
    new, weights = rng.normal(size=(9, 5)).astype(np.float32), rng.uniform(0.5, 2, 70)
    machine = NearestNeighbours(metric, 11, vote).fit(train, targets, weights)
    expected = [slow_shares(metric, train, targets, r, 11, vote, weights)[0] for r in new]
    np.testing.assert_allclose(machine.predict_proba(new), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("metric", "theirs"), [("l1", "manhattan"), ("l2", "euclidean"), ("cosine", "cosine")]
)
@pytest.mark.parametrize(("vote", "weights"), [("majority", "uniform"), ("distance", "distance")])
def test_against_scikit_learn(metric, theirs, vote, weights):
    rng = np.random.default_rng(1)
    train, targets = rng.normal(size=(300, 20)), rng.integers(0, 5, 300)
    new = rng.normal(size=(100, 20))
    reference = KNeighborsClassifier(7, metric=theirs, weights=weights).fit(train, targets)
    machine = NearestNeighbours(metric, 7, vote).fit(train, targets)
    np.testing.assert_allclose(machine.predict_proba(new), reference.predict_proba(new), atol=1e-8)


def test_angles_against_scikit_learn():
    rng = np.random.default_rng(0)
    train, new = rng.normal(size=(30, 4)), rng.normal(size=(10, 4))
    train[3], new[2] = 0.0, 0.0
    distances, nearest = find_neighbours("cosine", train, new, 30)
    expected = cosine_distances(new, train)
    expected[2, 3] = 0.0  # scikit-learn gives 1; a row of zeros is nearest to its like here
    np.testing.assert_allclose(distances, np.take_along_axis(expected, nearest, axis=1), atol=1e-15)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert nearest[2].tolist() == [3, *(n for n in range(30) if n != 3)]  # all others at 1


def test_lengths_change_no_angle():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 4))
    huge = rows * np.geomspace(1e-200, 1e200, 20)[:, None]
    np.testing.assert_allclose(prepare_rows("cosine", huge), prepare_rows("cosine", rows))
    np.testing.assert_allclose((prepare_rows("cosine", huge) ** 2).sum(axis=1), 1.0)


# Rounding, company and memory.


def test_rows_that_nearly_agree_are_told_apart():
    # Far from zero, a matrix product alone cannot tell these distances from one another.
    rng = np.random.default_rng(0)
    train, new = (1e4 + 1e-3 * rng.normal(size=(n, 3)) for n in (200, 20))
    rough, _ = neighbours._rough_distances("l2", train, new)
    exact = np.sqrt(((new[:, None] - train) ** 2).sum(axis=2))
    believed, truth = (np.sort(d.argsort(axis=1)[:, :5], axis=1) for d in (rough, exact))
    assert (believed != truth).any()
    distances, nearest = find_neighbours("l2", train, new, 5)
    np.testing.assert_array_equal(nearest, exact.argsort(axis=1)[:, :5])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :5], rtol=1e-15)


def test_a_row_that_was_learned_is_at_distance_zero():
    rng = np.random.default_rng(0)
    train = rng.normal(size=(50, 300)).astype(np.float32) + 100
    for metric in METRICS:
        distances, nearest = find_neighbours(metric, train, train, 2)
        assert (nearest[:, 0] == np.arange(50)).all()
        assert (distances[:, 0] == 0).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_company_threads_and_layout_do_not_change_a_bit(metric, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    train = rng.normal(size=(500, 67)).astype(dtype)
    train[250:300] = train[:50]  # equal rows tie
    targets = rng.integers(0, 3, 500)
    new = np.concatenate([rng.normal(size=(40, 67)).astype(dtype), train[40:60]])
    machine = NearestNeighbours(metric, 9, "distance").fit(train, targets)
    expected = machine.predict_proba(new)
    for size in (1, 7):
        parts = [machine.predict_proba(new[i : i + size]) for i in range(0, len(new), size)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    np.testing.assert_array_equal(machine.predict_proba(new[::-1])[::-1], expected)
    np.testing.assert_array_equal(machine.predict_proba(np.asfortranarray(new)), expected)
    with threadpool_limits(2):
        np.testing.assert_array_equal(machine.predict_proba(new), expected)
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", 1500)  # three rows at a time
    monkeypatch.setattr(neighbours, "PIECE_ROWS", 64)
    np.testing.assert_array_equal(machine.predict_proba(new), expected)


def test_distances_are_held_in_blocks(monkeypatch):
    seen = []
    original = neighbours._rough_distances

    def spy(metric, train, block):
        seen.append(len(block) * len(train))
        return original(metric, train, block)

    monkeypatch.setattr(neighbours, "_rough_distances", spy)
    monkeypatch.setattr(neighbours, "BLOCK_NUMBERS", 1000)
    find_neighbours("l2", np.zeros((90, 2)), np.zeros((35, 2)), 1)
    assert len(seen) == 4
    assert max(seen) <= 1000


def test_rows_are_kept_as_they_came():
    rows = np.random.default_rng(0).normal(size=(5, 2))
    for dtype in (np.float32, np.float64):
        assert NearestNeighbours().fit(rows.astype(dtype), [0, 1] * 2 + [0]).rows_.dtype == dtype


# Weights and settings.


def test_weights_of_rows_count_in_the_vote():
    weights = np.array([1, 1, 1, 1, 1, 4.0])
    machine = NearestNeighbours(num_neighbours=3).fit(LINE, LINE_TARGETS, weights)
    np.testing.assert_allclose(machine.predict_proba([[11.5]]), [[0, 2 / 6, 4 / 6]])


def test_a_row_without_weight_is_no_neighbour():
    weights = np.array([1, 1, 0, 1, 1, 1.0])
    machine = NearestNeighbours().fit(LINE, LINE_TARGETS, weights)
    np.testing.assert_array_equal(machine.predict_proba([[2.1]]), [[1, 0, 0]])
    assert machine.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l3"}, "unknown metric 'l3'; choose one of ['cosine', 'l1', 'l2']."),
        ({"vote": "best"}, "unknown vote 'best'; choose one of ['distance', 'majority']."),
        ({"num_neighbours": 0}, "num_neighbours is 0, but must be at least 1."),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(InputError) as caught:
        NearestNeighbours(**options).fit(LINE, LINE_TARGETS)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("metric", METRICS)
def test_constant_columns_and_rows_of_zeros(metric):
    machine = NearestNeighbours(metric, 3, "distance").fit(np.zeros((6, 2)), LINE_TARGETS)
    np.testing.assert_allclose(machine.predict_proba(np.zeros((1, 2))), [[2 / 3, 1 / 3, 0]])
    assert np.isfinite(machine.predict_proba([[3.0, -1.0]])).all()
