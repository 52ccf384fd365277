"""scikit-learn's own checks of the estimators that are ours."""

import warnings

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from cvpipe.classifiers.kernel_svm import KernelSVM
from cvpipe.classifiers.nearest_mean import NearestMean
from cvpipe.classifiers.neighbours import NearestNeighbours
from cvpipe.classifiers.sparse_softmax import SparseSoftmax

ESTIMATORS = [
    NearestNeighbours(num_neighbours=3),
    NearestNeighbours("l1"),
    NearestNeighbours("cosine", 5, "distance"),
    NearestMean(),
    NearestMean("l1"),
    NearestMean("cosine"),
    KernelSVM(),
    KernelSVM(kernel="chi2"),
    KernelSVM(kernel="intersection"),
    SparseSoftmax(max_iter=300),
    SparseSoftmax(l1_ratio=0.5, max_iter=300),
]
EQUIVALENCE = "check_sample_weight_equivalence_on_dense_data"


def expected_failures(estimator) -> dict[str, str]:
    if isinstance(estimator, NearestNeighbours) and estimator.num_neighbours > 1:
        return {EQUIVALENCE: "a weight makes a vote count more; a repeated row is a neighbour more"}
    if isinstance(estimator, KernelSVM):
        return {EQUIVALENCE: "LIBSVM's solution is not exact, and gamma counts rows, not weights"}
    return {}


@pytest.fixture(autouse=True)
def _quiet():
    """The checks fit problems that have no finite minimum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@parametrize_with_checks(ESTIMATORS, expected_failed_checks=expected_failures)
def test_scikit_learns_checks(estimator, check):
    check(estimator)
