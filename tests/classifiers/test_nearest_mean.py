import numpy as np
import pytest
from sklearn.neighbors import NearestCentroid

from cvpipe.classifiers.nearest_mean import NearestMean
from cvpipe.errors import InputError
from tests.classifiers.examples import blobs, fit

# Means (1, 0), (5, 0) and (0, 4).
ROWS = np.array([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, -1.0], [0.0, 4.0]])
TARGETS = np.array(["a", "a", "b", "b", "c"])


def test_means_and_margins_by_hand():
    machine = NearestMean().fit(ROWS, TARGETS)
    np.testing.assert_array_equal(machine.means_, [[1, 0], [5, 0], [0, 4]])
    # From (1, 3): 3, 5 and sqrt(2).
    near, middle, far = 2**0.5, 3.0, 5.0
    np.testing.assert_allclose(
        machine.decision_function([[1.0, 3.0]]), [[near - middle, near - far, middle - near]]
    )
    assert machine.predict([[1.0, 3.0], [2.9, 0.0], [3.1, 0.0]]).tolist() == ["c", "a", "b"]


def test_two_classes_have_one_score():
    machine = NearestMean("l1").fit(ROWS[:4], TARGETS[:4])
    # From (2, 2): 1 + 2 and 3 + 2.
    np.testing.assert_allclose(machine.decision_function([[2.0, 2.0]]), [-2.0])
    assert machine.predict([[2.0, 2.0], [3.5, 9.0]]).tolist() == ["a", "b"]


def test_the_cosine_ignores_lengths():
    rows, targets = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 8.0]]), [0, 1, 1]
    machine = NearestMean("cosine").fit(rows, targets)
    np.testing.assert_array_equal(machine.means_, [[1, 0, 0], [0, 1, 0]])
    assert machine.predict([[100.0, 99.0], [1e-3, 2e-3]]).tolist() == [0, 1]
    assert np.isfinite(machine.decision_function([[0.0, 0.0]])).all()


def test_against_scikit_learn():
    rows, targets = blobs(num_classes=5, distance=1.0)
    theirs = NearestCentroid().fit(rows, targets)
    ours = NearestMean().fit(rows, targets)
    np.testing.assert_allclose(ours.means_, theirs.centroids_)
    np.testing.assert_array_equal(ours.predict(rows), theirs.predict(rows))
    assert 0.3 < ours.score(rows, targets) < 0.99


def test_weights_of_rows_count_and_weights_of_classes_do_not():
    weighted = NearestMean().fit(ROWS, TARGETS, [1, 3, 1, 1, 1])
    np.testing.assert_array_equal(weighted.means_, [[1.5, 0], [5, 0], [0, 4]])
    rows, targets = blobs()
    weights = np.array([1.0, 5.0, 0.1])[targets]
    plain, balanced = (NearestMean().fit(rows, targets, own) for own in (None, weights))
    np.testing.assert_allclose(balanced.means_, plain.means_)


def test_an_unknown_metric_and_a_single_class():
    with pytest.raises(InputError, match="unknown metric 'l7'"):
        NearestMean("l7").fit(ROWS, TARGETS)
    with pytest.raises(InputError) as caught:
        NearestMean().fit(ROWS, ["a"] * 5)
    assert str(caught.value) == (
        "the nearest class mean needs at least two classes, but got one class."
    )


def test_the_metric_is_searched():
    # The direction tells, the length does not.
    rng = np.random.default_rng(0)
    targets = np.arange(90) % 3
    rows = (np.eye(3)[targets] + 0.3 * rng.normal(size=(90, 3))) * rng.lognormal(0, 2, (90, 1))
    fitted = fit("nearest_mean", rows, targets)
    assert fitted.search["metric"].tolist() == ["l2", "l1", "cosine"]
    assert (fitted.chosen, fitted.warnings) == ({"metric": "cosine"}, [])


def test_a_scores_sign_says_who_is_nearest():
    rows, targets = blobs(num_classes=4, distance=1.0)
    machine = NearestMean().fit(rows, targets)
    scores = machine.decision_function(rows)
    assert ((scores > 0).sum(axis=1) == 1).all()
    np.testing.assert_array_equal(scores.argmax(axis=1), machine.predict(rows))
