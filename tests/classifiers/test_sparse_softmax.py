import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cvpipe.classifiers.sparse_softmax import SparseSoftmax, _Problem
from tests.classifiers.examples import blobs


def problem(num_classes=3, seed=0, width=12):
    features, targets = blobs(num_classes=num_classes, distance=0.7, seed=seed)
    noise = np.random.default_rng(1).normal(size=(len(features), width))
    return np.hstack([features, noise]), targets


def objective(machine, features, targets, c, l1_ratio, weights=None):
    """Compute what is minimised, by its definition."""
    scores = features @ machine.coef_.T + machine.intercept_
    total = 0.0
    for row, target in enumerate(targets):
        shares = np.exp(scores[row]) / np.exp(scores[row]).sum()
        total -= c * np.log(shares[target]) * (1 if weights is None else weights[row])
    penalty = l1_ratio * np.abs(machine.coef_) + (1 - l1_ratio) / 2 * machine.coef_**2
    return total + penalty.sum()


@pytest.mark.parametrize("l1_ratio", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_it_finds_the_minimum_that_scikit_learn_finds(c, l1_ratio):
    features, targets = problem()
    theirs = LogisticRegression(
        C=c, l1_ratio=l1_ratio, solver="saga", tol=1e-8, max_iter=20_000, random_state=0
    ).fit(features, targets)
    ours = SparseSoftmax(c, l1_ratio, tol=1e-8).fit(features, targets)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-3)
    if ours.coef_.any():  # otherwise theirs stops before the intercepts are right
        np.testing.assert_allclose(
            ours.predict_proba(features), theirs.predict_proba(features), atol=1e-3
        )
    low, reached = (objective(m, features, targets, c, l1_ratio) for m in (ours, theirs))
    assert low <= reached * (1 + 1e-6)
    # The usual tolerance gives up little of it.
    quick = SparseSoftmax(c, l1_ratio).fit(features, targets)
    assert quick.n_iter_ <= ours.n_iter_
    assert objective(quick, features, targets, c, l1_ratio) <= low * (1 + 1e-4)


def test_two_classes_are_those_of_scikit_learn():
    # Two columns share one weight between them, which costs L1 the same.
    features, targets = problem(num_classes=2)
    theirs = LogisticRegression(
        C=1.0, l1_ratio=1, solver="saga", tol=1e-8, max_iter=20_000, random_state=0
    ).fit(features, targets)
    ours = SparseSoftmax(1.0, tol=1e-8).fit(features, targets)
    np.testing.assert_allclose(
        ours.decision_function(features), theirs.decision_function(features), atol=1e-3
    )


def test_l1_makes_zeros_and_l2_does_not():
    features, targets = problem()
    sparse, mixed, dense = (
        (SparseSoftmax(0.1, ratio).fit(features, targets).coef_ == 0).mean()
        for ratio in (1.0, 0.5, 0.0)
    )
    assert sparse > mixed > dense == 0.0
    assert (SparseSoftmax(1e-4).fit(features, targets).coef_ == 0).all()


def test_with_no_weights_the_intercepts_are_the_class_frequencies():
    features, targets = problem()
    targets = np.where(np.arange(len(targets)) < 60, 0, targets)
    machine = SparseSoftmax(1e-5, tol=1e-10).fit(features, targets)
    np.testing.assert_allclose(machine.predict_proba(features[:1]), [[2 / 3, 1 / 3]], atol=1e-6)


def test_weights_count_as_repetition():
    features, targets = problem()
    weights = np.arange(len(targets)) % 4
    weighted = SparseSoftmax(0.1, 0.5, tol=1e-9).fit(features, targets, weights)
    repeated = SparseSoftmax(0.1, 0.5, tol=1e-9).fit(
        np.repeat(features, weights, axis=0), np.repeat(targets, weights)
    )
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_the_gradient_is_that_of_the_smooth_part(seed):
    features, targets = problem(seed=seed, width=2)
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(targets))
    own = _Problem(features, targets, weights, c=0.1, l1_ratio=0.3)
    start = np.random.default_rng(seed).normal(size=(7, 3))

    def height(flat):
        table = flat.reshape(7, 3)
        return own.smooth_part(table, own.scores(table))

    def slopes(flat):
        table = flat.reshape(7, 3)
        return own.gradient(table, own.scores(table)).ravel()

    assert check_grad(height, slopes, start.ravel()) < 1e-5


def test_at_the_minimum_no_slope_is_steeper_than_the_penalty():
    features, targets = problem()
    machine = SparseSoftmax(0.1, 1.0, tol=1e-9).fit(features, targets)
    scores = machine._scores(features)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    slopes = 0.1 * (shares - np.eye(3)[targets]).T @ features
    zero = machine.coef_ == 0
    assert 0 < zero.mean() < 1
    assert np.abs(slopes[zero]).max() <= 1 + 1e-4
    np.testing.assert_allclose(slopes[~zero], -np.sign(machine.coef_[~zero]), atol=1e-3)


def test_columns_of_wildly_different_scale_do_not_break_it():
    features, targets = problem()
    machine = SparseSoftmax(1.0, 0.5, max_iter=50).fit
    with pytest.warns(ConvergenceWarning, match="the minimum was not reached in 50 steps"):
        fitted = machine(features * np.geomspace(1e-6, 1e6, features.shape[1]), targets)
    assert fitted.n_iter_ == 50
    assert np.isfinite(fitted.coef_).all()


def test_probabilities_and_answers_agree():
    features, targets = problem(num_classes=4)
    names = np.array(["w", "x", "y", "z"])
    machine = SparseSoftmax(0.1).fit(features, names[targets])
    shares = machine.predict_proba(features)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-12)
    assert (names[shares.argmax(axis=1)] == machine.predict(features)).all()
    assert machine.decision_function(features).shape == (len(features), 4)
    assert machine.score(features, names[targets]) > 0.5
