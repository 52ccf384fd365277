"""Classifiers as arrays: the probabilities of NumPy alone against those of scikit-learn."""

import io

import numpy as np
import pytest

from cvpipe.classifiers.neighbours import METRICS, VOTES, NearestNeighbours
from cvpipe.classifiers.search import fit_classifier, predictor_of
from cvpipe.classifiers.steps import apply_steps
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.classifiers.to_steps import steps_of

# What is computed in float32, because the rows are: a sum in another order is another one.
ROUNDING = dict.fromkeys(("softmax", "softmax_common_scale", "two_layer_net"), 1e-6)
NAMES = sorted(set(CLASSIFIERS) - {"majority"})


def rows_for(num_classes, num_rows=90, seed=0):
    """Make rows like histograms, of classes that overlap, with a zero row and rows twice."""
    rng = np.random.default_rng(seed)
    targets = np.arange(num_rows) % num_classes
    rows = rng.gamma(1.0, size=(num_rows, 12)) + 0.7 * np.eye(12)[targets]
    rows[rows < 0.4] = 0.0
    rows[5] = 0.0
    rows[7] = rows[6]
    return rows.astype(np.float32), targets.astype(np.int32)


def fitted(name, num_classes):
    rows, targets = rows_for(num_classes)
    groups = [str(number) for number in range(len(rows))]
    found = fit_classifier(name, rows, targets, groups, search="coarse", seed=0, threads=1)
    return found.estimator


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_steps_give_the_probabilities_of_the_estimator(name, num_classes):
    estimator = fitted(name, num_classes)
    rows = np.concatenate([rows_for(num_classes, 60, seed=1)[0], rows_for(num_classes)[0]])

    expected = predictor_of(estimator)(rows)
    found = apply_steps(steps_of(estimator), rows)

    assert found.shape == expected.shape == (len(rows), num_classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING.get(name, 1e-12))
    assert len(np.unique(expected.round(3), axis=0)) > 1  # they say something


@pytest.mark.parametrize("vote", VOTES)
@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_at_equal_distances_and_weights_of_votes(metric, vote):
    rows, targets = rows_for(3)
    weights = np.random.default_rng(3).uniform(0.5, 2.0, len(rows))
    nearest = NearestNeighbours(metric, 6, vote).fit(rows, targets, weights)
    asked = np.concatenate([rows, rows_for(3, 60, seed=1)[0]])

    np.testing.assert_allclose(
        apply_steps(steps_of(nearest), asked), nearest.predict_proba(asked), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("metric", METRICS)
def test_ties_fall_alike(metric):
    """Which of two rows is nearer hangs on the order of a sum, if their numbers are the same."""
    rng = np.random.default_rng(4)
    rows = rng.gamma(1.0, size=(100, 64)).astype(np.float32)
    turned = rows[:, rng.permutation(64)] if metric == "l1" else rows[:, ::-1]
    train = np.concatenate([rows, turned])
    nearest = NearestNeighbours(metric).fit(train, np.repeat([0, 1], 100))
    asked = (rows + turned) / 2
    if metric == "l1":  # equally far from all numbers
        asked = np.linspace(0, 3, 100)[:, None] * np.ones(64)

    found = apply_steps(steps_of(nearest), asked)

    np.testing.assert_array_equal(found, nearest.predict_proba(asked))
    assert 0 < found[:, 0].mean() < 1


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_arrays_numbers_and_words(name):
    for step in steps_of(fitted(name, 3)):
        for value in step.values.values():
            assert isinstance(value, np.ndarray | int | float | str), step
            if isinstance(value, np.ndarray):
                np.save(io.BytesIO(), value, allow_pickle=False)


def test_an_estimator_without_steps_is_refused():
    with pytest.raises(TypeError, match="DummyClassifier has no steps"):
        steps_of(fitted("majority", 2))
