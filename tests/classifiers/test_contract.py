"""What holds for every classifier of the table."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score
from threadpoolctl import threadpool_limits

from cvpipe.classifiers.search import fit_at, group_folds, predictor_of
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.stages.stored_models import load_estimator, store_estimator
from tests.classifiers.examples import blobs, fit, histograms, pairs, singles

NAMES = list(CLASSIFIERS)
# Probabilities of a row that do not depend on its company, bit for bit.
ON_THEIR_OWN = [
    "majority",
    "nearest_neighbours",
    "nearest_neighbours_l1",
    "nearest_neighbours_cosine",
    "nearest_mean",
    "chi2_svm",
    "intersection_svm",
    "gradient_boosting",
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Predict in one thread: on busy cores, threads that wait for each other take long."""
    import sklearn.ensemble  # noqa: F401 (only libraries that are loaded can be limited)

    with threadpool_limits(1):
        yield


def usual(name) -> dict:
    """Name a setting from the middle of what is searched."""
    return {p.name: p.coarse[len(p.coarse) // 2] for p in CLASSIFIERS[name].parameters}


def fit_usual(name, features, targets, groups=None, threads=1, **options):
    """Fit without a search, which takes most of the time."""
    groups = singles(targets) if groups is None else groups
    arguments = features, targets, groups, "coarse", 0, threads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fit_at(name, usual(name), *arguments, **options)


def check_probabilities(estimator, features, classes):
    """Check shape, range, sums and agreement with the answers."""
    shares = predictor_of(estimator)(features)
    assert shares.shape == (len(features), len(classes))
    assert np.isfinite(shares).all()
    assert (shares >= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-6)
    answers = estimator.predict(features)
    np.testing.assert_array_equal(np.asarray(classes)[shares.argmax(axis=1)], answers)
    return shares


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_probabilities(name, num_classes):
    features, targets = blobs(num_classes=num_classes, per_class=20, distance=4.0)
    features = (features - features.min()).astype(np.float32)
    shares = check_probabilities(fit_usual(name, features, targets), features, range(num_classes))
    if name != "majority":
        assert (shares.argmax(axis=1) == targets).mean() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_a_held_out_part_lacks(name):
    targets = np.array([2, 0, 1, 1, 0, 1, 0, 2, 2] * 2)
    groups = list("abcdefgfe" * 2)
    folds = group_folds(targets, groups, 3, seed=0)
    assert min(len(set(targets[rest])) for _, rest in folds) < 3
    features = np.random.default_rng(0).uniform(size=(18, 2)) + targets[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # scikit-learn's calibration says that a class was missing, and goes on.
        warnings.filterwarnings("ignore", message="Number of classes in training fold")
        fitted = fit(name, features, targets, groups)
    assert np.isfinite(fitted.search["mean"].to_numpy(dtype=float)).all()
    check_probabilities(fitted.estimator, features, range(3))


@pytest.mark.parametrize("name", NAMES)
def test_threads_and_repetition_do_not_change_a_bit(name):
    features, targets = histograms(per_class=14)
    reference, *others = (fit(name, features, targets, threads=threads) for threads in (1, 2))
    expected = reference.estimator.predict_proba(features)
    for other in others:
        pd.testing.assert_frame_equal(other.search, reference.search, check_exact=True)
        assert (other.chosen, other.warnings) == (reference.chosen, reference.warnings)
        np.testing.assert_array_equal(other.estimator.predict_proba(features), expected)
    again = [fit_usual(name, features, targets, threads=threads) for threads in (1, 2, 2, 2)]
    first, *rest = (estimator.predict_proba(features) for estimator in again)
    for shares in rest:
        np.testing.assert_array_equal(shares, first)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_stored_classifier_gives_the_same_bits(name, num_classes, tmp_path):
    features, targets = histograms(num_classes=num_classes)
    estimator = fit_usual(name, features.astype(np.float32), targets)
    store_estimator(tmp_path / "model.skops", estimator)
    loaded = load_estimator(tmp_path / "model.skops")
    new = histograms(seed=1)[0].astype(np.float32)
    np.testing.assert_array_equal(loaded.predict_proba(new), estimator.predict_proba(new))


@pytest.mark.parametrize("name", ON_THEIR_OWN)
def test_company_does_not_change_a_bit(name):
    features, targets = histograms(per_class=50, num_bins=40)
    estimator = fit_usual(name, features.astype(np.float32), targets)
    new = histograms(per_class=50, num_bins=40, seed=1)[0].astype(np.float32)
    whole = estimator.predict_proba(new)
    for size in (1, 7):
        parts = [estimator.predict_proba(new[i : i + size]) for i in range(0, 60, size)]
        np.testing.assert_array_equal(np.concatenate(parts)[:60], whole[:60])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ON_THEIR_OWN])
def test_company_changes_the_last_digits_at_most(name):
    features, targets = histograms()
    estimator = fit_usual(name, features, targets)
    whole = estimator.predict_proba(features)
    alone = np.concatenate([estimator.predict_proba(row[None]) for row in features])
    np.testing.assert_allclose(alone, whole, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_column(name):
    targets = np.repeat([0, 1], 15)
    features = np.linspace(1, 2, 30)[:, None] + targets[:, None]
    shares = check_probabilities(fit_usual(name, features, targets), features, [0, 1])
    # Of one column only the sign has an angle.
    if name not in ("majority", "nearest_neighbours_cosine"):
        assert (shares.argmax(axis=1) == targets).mean() > 0.9


@pytest.mark.parametrize("value", [0.0, 7.0])
@pytest.mark.parametrize("name", NAMES)
def test_columns_that_are_constant(name, value):
    targets = np.repeat([0, 1], [10, 20])
    features = np.full((30, 3), value)
    check_probabilities(fit_usual(name, features, targets), features, [0, 1])
    informed = np.hstack([features, np.stack([targets * 5.0 + 1, np.ones(30)], axis=1)])
    shares = check_probabilities(fit_usual(name, informed, targets), informed, [0, 1])
    if name != "majority":
        assert (shares.argmax(axis=1) == targets).all()


@pytest.mark.parametrize("name", NAMES)
def test_balanced_weights_raise_the_recall_of_a_rare_class(name):
    rng = np.random.default_rng(0)
    targets = np.repeat([0, 1], [180, 20])
    draw = lambda: rng.normal(size=(200, 2)) + 1.2 * targets[:, None] + 5  # noqa: E731
    features, new = draw(), draw()
    if name.endswith("cosine"):  # which sees directions only
        features, new = features - 5, new - 5
    shares = [
        fit_usual(name, features, targets, class_weights=weights).predict_proba(new)
        for weights in ("none", "balanced")
    ]
    plain, balanced = (recall_score(targets, own.argmax(axis=1)) for own in shares)
    if name == "majority":
        np.testing.assert_array_equal(*shares)
        assert shares[1][0].tolist() == [0.9, 0.1]
    else:
        assert balanced > plain + (0.04 if name == "gradient_boosting" else 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_balanced_weights_of_equal_classes_change_nothing(name):
    features, targets = histograms(per_class=12)
    plain, balanced = (
        fit_usual(name, features, targets, pairs(targets), class_weights=weights)
        for weights in ("none", "balanced")
    )
    np.testing.assert_allclose(
        balanced.predict_proba(features), plain.predict_proba(features), atol=1e-4
    )
