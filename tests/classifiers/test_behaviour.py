"""What classifiers can and cannot learn, on problems whose answer is known."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from cvpipe.classifiers.table import CLASSIFIERS
from tests.classifiers.examples import blobs, fit, ring

LINEAR = ["linear_svm", "linear_svm_hinge", "softmax", "softmax_l1", "softmax_elastic_net"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Predict in one thread: on busy cores, threads that wait for each other take long."""
    import sklearn.ensemble  # noqa: F401 (only libraries that are loaded can be limited)

    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("name", LINEAR)
def test_smaller_values_mean_smaller_weights(name):
    features, targets = blobs(num_classes=2, distance=0.7)
    estimators = [
        CLASSIFIERS[name].build(value).fit(features, targets) for value in (1e-3, 0.05, 2.0)
    ]
    sizes = [
        np.linalg.norm(getattr(estimator, "steps", [("", estimator)])[-1][1].coef_)
        for estimator in estimators
    ]
    assert sizes[0] <= 0.5 * sizes[1]
    assert sizes[1] < sizes[2]


def test_majority_is_the_class_frequencies():
    targets = np.array([0, 2, 1, 2, 2, 1, 2, 2])
    fitted = fit("majority", np.zeros((8, 1)), targets, groups=["one"] * 8)
    shown = fitted.estimator.predict_proba(np.array([[5.0], [-1.0]]))
    np.testing.assert_allclose(shown, [[1 / 8, 2 / 8, 5 / 8]] * 2)
    assert (fitted.chosen, len(fitted.search), fitted.warnings) == ({}, 0, [])


# The truth here is a sigmoid of a linear score, which a linear classifier can find; the Gaussian
# kernel is flexible enough to follow noise, too. Votes of a few neighbours claim no calibration.
@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("linear_svm", 0.04),
        ("linear_svm_hinge", 0.04),
        ("softmax", 0.04),
        ("softmax_l1", 0.04),
        ("rbf_svm", 0.08),
        ("two_layer_net", 0.08),
    ],
)
def test_probabilities_are_calibrated(name, bound):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3000, 3))
    truth = 1 / (1 + np.exp(-2 * features[:, 0] + features[:, 1]))
    targets = (rng.random(3000) < truth).astype(np.int32)
    fitted = fit(name, features[:800], targets[:800])
    shown = fitted.estimator.predict_proba(features[800:])[:, 1]
    assert np.abs(shown - truth[800:]).mean() < bound
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (shown >= low) & (shown < low + 0.2)
        assert abs(targets[800:][inside].mean() - shown[inside].mean()) < 0.1


def test_number_of_neighbours_outvotes_wrong_labels():
    # Two far clouds; every fifth label is wrong, so one neighbour is wrong more often than three.
    rng = np.random.default_rng(0)
    cloud = np.repeat([0, 1], 50)
    features = rng.normal(size=(100, 2)) + 20 * cloud[:, None]
    targets = np.where(np.arange(100) % 5 == 0, 1 - cloud, cloud)
    fitted = fit("nearest_neighbours", features, targets, search="fine")
    scores = fitted.search.query("vote == 'majority'").set_index("k")["mean"]
    # Expected: .8 * .8 + .2 * .2 for one neighbour, .8 for a vote that is always right.
    assert scores[1] == pytest.approx(0.68, abs=0.1)
    assert scores[9] == pytest.approx(0.8, abs=0.02)
    assert fitted.chosen["k"] > 1


# What a line cannot part.


BENT = ["rbf_svm", "nearest_neighbours", "nearest_neighbours_l1", "gradient_boosting"]


@pytest.mark.parametrize("name", [*BENT, "two_layer_net", *LINEAR, "nearest_mean"])
def test_a_disc_in_a_ring_is_told_apart(name):
    (features, targets), (new, truth) = ring(seed=0), ring(seed=1)
    accuracy = (fit(name, features, targets).estimator.predict(new) == truth).mean()
    assert accuracy < 0.75 if name in (*LINEAR, "nearest_mean") else accuracy > 0.95


def test_boosting_finds_an_interval():
    # The class is told by whether one of five numbers lies within an interval.
    rng = np.random.default_rng(0)
    features = rng.uniform(size=(400, 5))
    targets = ((features[:, 2] > 0.3) & (features[:, 2] < 0.7)).astype(int)
    boosting, *linear = (
        fit(name, features[:200], targets[:200]).estimator.predict(features[200:])
        for name in ("gradient_boosting", "linear_svm", "softmax")
    )
    assert (boosting == targets[200:]).mean() > 0.95
    assert max((shown == targets[200:]).mean() for shown in linear) < 0.7


def test_boosting_learns_from_every_row_of_few():
    # Leaves of five rows, and no row set aside: 5 rows of the rarer class are enough.
    targets = np.repeat([0, 1], [5, 25])
    fitted = fit("gradient_boosting", targets[:, None] * 1.0, targets)
    assert (fitted.chosen, len(fitted.search), fitted.warnings) == ({}, 0, [])
    assert fitted.estimator.predict([[0.0], [1.0]]).tolist() == [0, 1]
    assert fitted.estimator.n_iter_ == 100  # nothing stops it early
