import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.svm import SVC

from cvpipe.gaussian_svm import BLOCK_ROWS, GaussianSVM


def clouds(num_classes: int, per_class: int = 40, seed: int = 0):
    """Draw overlapping clouds, so that some rows are no support vectors and some are wrong."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(num_classes) * 3, per_class)  # not 0, 1, 2
    centres = rng.normal(size=(3 * num_classes, 6))
    features = 1.5 * centres[targets] + rng.normal(size=(len(targets), 6))
    return features.astype(np.float32), targets


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_it_is_the_machine_of_scikit_learn(num_classes, c):
    features, targets = clouds(num_classes)
    new, _ = clouds(num_classes, per_class=BLOCK_ROWS // num_classes + 1, seed=1)
    ours = GaussianSVM(C=c).fit(features, targets)
    # In float64: scikit-learn takes the variance of float32 numbers in float32.
    theirs = SVC(C=c).fit(features.astype(np.float64), targets)
    assert len(new) > BLOCK_ROWS
    np.testing.assert_allclose(
        ours.decision_function(new), theirs.decision_function(new), atol=1e-6
    )
    np.testing.assert_array_equal(ours.predict(new), theirs.predict(new))
    np.testing.assert_array_equal(ours.support_, theirs.support_)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    assert 0 < len(ours.support_) <= len(features)


def test_the_rows_of_a_block_do_not_depend_on_one_another():
    features, targets = clouds(3)
    machine = GaussianSVM().fit(features, targets)
    whole = machine.decision_function(features)
    parts = np.concatenate(
        [machine.decision_function(features[i : i + 7]) for i in range(0, 120, 7)]
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)


def test_a_copy_has_the_same_settings_and_is_not_fitted():
    features, targets = clouds(2)
    copy = clone(GaussianSVM(C=7.0).fit(features, targets))
    assert copy.get_params() == {"C": 7.0}
    with pytest.raises((NotFittedError, AttributeError)):
        copy.predict(features)


def test_rows_that_do_not_vary_are_no_error():
    machine = GaussianSVM().fit(np.full((9, 2), 3.0), [0, 1, 1] * 3)
    assert machine.gamma_ == 1.0
    assert machine.predict(np.full((2, 2), 3.0)).tolist() == [1, 1]
