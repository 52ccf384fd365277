import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics.pairwise import additive_chi2_kernel, chi2_kernel
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from cvpipe.classifiers import kernel_svm
from cvpipe.classifiers.kernel_svm import (
    BLOCK_ROWS,
    KERNELS,
    KernelSVM,
    chi2_distances,
    intersections,
    sweep_kernel_svm,
)
from cvpipe.errors import InputError
from tests.classifiers.examples import fit, histograms, ring

HISTOGRAM_KERNELS = ["chi2", "intersection"]


def clouds(num_classes: int, per_class: int = 40, seed: int = 0):
    """Draw overlapping clouds, so that some rows are no support vectors and some are wrong."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(num_classes) * 3, per_class)  # not 0, 1, 2
    centres = rng.normal(size=(3 * num_classes, 6))
    features = 1.5 * centres[targets] + rng.normal(size=(len(targets), 6))
    return features.astype(np.float32), targets


# Gaussian.


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_it_is_the_machine_of_scikit_learn(num_classes, c):
    features, targets = clouds(num_classes)
    new, _ = clouds(num_classes, per_class=BLOCK_ROWS // num_classes + 1, seed=1)
    ours = KernelSVM(C=c).fit(features, targets)
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


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_gamma_is_a_multiple_of_the_usual_one(factor):
    features, targets = clouds(3)
    ours = KernelSVM(gamma_factor=factor).fit(features, targets)
    usual = KernelSVM().fit(features, targets).gamma_
    assert ours.gamma_ == pytest.approx(factor * usual)
    theirs = SVC(gamma=ours.gamma_).fit(features.astype(np.float64), targets)
    np.testing.assert_allclose(
        ours.decision_function(features), theirs.decision_function(features), atol=1e-6
    )


def test_kernel_against_a_plain_computation():
    features, targets = ring()
    features = features * [1.0, 5.0]  # columns of different variance: theirs together counts
    new = np.random.default_rng(1).uniform(-1, 30, (20, 2))
    fitted = fit("rbf_svm", features, targets)
    [calibrated] = fitted.estimator.calibrated_classifiers_
    machine = calibrated.estimator
    gamma = fitted.chosen["gamma_factor"] / (2 * np.mean((features - features.mean()) ** 2))
    expected = np.zeros(20)
    for row, point in enumerate(new):
        weights = machine.svm_.dual_coef_[0]
        for vector, weight in zip(machine.support_vectors_, weights, strict=True):
            expected[row] += weight * np.exp(-gamma * ((point - vector) ** 2).sum())
        expected[row] += machine.svm_.intercept_[0]
    np.testing.assert_allclose(machine.decision_function(new), expected, rtol=1e-6, atol=1e-9)
    # The support vectors are rows as they were given, and no weight is above the chosen C.
    np.testing.assert_array_equal(machine.support_vectors_, features[machine.support_])
    assert np.abs(machine.svm_.dual_coef_).max() <= fitted.chosen["C"] * (1 + 1e-9)
    # Platt's sigmoid of the score.
    [sigmoid] = calibrated.calibrators
    probability = 1 / (1 + np.exp(sigmoid.a_ * expected + sigmoid.b_))
    np.testing.assert_allclose(fitted.estimator.predict_proba(new)[:, 1], probability, rtol=1e-6)


def test_rows_that_do_not_vary_are_no_error():
    for kernel in KERNELS:
        for value in (0.0, 3.0):
            machine = KernelSVM(kernel=kernel).fit(np.full((9, 2), value), [0, 1, 1] * 3)
            assert machine.predict(np.full((2, 2), value)).tolist() == [1, 1]
            if kernel != "intersection" or value == 0:
                assert machine.gamma_ == 1.0


def test_rows_of_one_value_get_the_class_frequencies():
    # Their variance is zero, and gamma would be infinite.
    targets = np.repeat([0, 1], [10, 20])
    fitted = fit("rbf_svm", np.full((30, 3), 7.0), targets)
    shown = fitted.estimator.predict_proba(np.full((1, 3), 7.0))
    np.testing.assert_allclose(shown, [[1 / 3, 2 / 3]], atol=0.05)


# Histograms.


def test_pairs_by_hand():
    x, y = np.array([[1.0, 0.0, 4.0, 0.0]]), np.array([[3.0, 2.0, 4.0, 0.0]])
    # (1 - 3)^2 / 4 + (0 - 2)^2 / 2 + 0 + 0 / 0, which counts as 0.
    np.testing.assert_allclose(chi2_distances(x, y), [[3.0]], rtol=1e-6)
    np.testing.assert_allclose(intersections(x, y), [[5.0]], rtol=1e-6)  # 1 + 0 + 4 + 0


@pytest.mark.parametrize("density", [0.1, 0.6, 1.0])
@pytest.mark.parametrize("same", [False, True])
def test_pairs_against_scikit_learn_and_loops(density, same, monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(kernel_svm, "BLOCK_ROWS", 16)
    monkeypatch.setattr(kernel_svm, "TILE_NUMBERS", 700)
    rows = rng.gamma(1.0, 5.0, (70, 90)) * (rng.random((70, 90)) < density)
    rows[3] = 0.0
    others = rows if same else rng.gamma(1.0, 5.0, (31, 90)) * (rng.random((31, 90)) < density)
    chi2 = chi2_distances(rows, others)
    sums = rows.sum(axis=1)[:, None] + others.sum(axis=1)
    assert (np.abs(chi2 + additive_chi2_kernel(rows, others)) <= 2e-6 * sums).all()
    assert (chi2 >= 0).all()
    common = intersections(rows, others)
    expected = np.array([[sum(map(min, x, y)) for y in others] for x in rows])
    assert (np.abs(common - expected) <= 2e-6 * sums).all()
    assert chi2.dtype == common.dtype == np.float32


def test_chi2_kernel_is_that_of_scikit_learn():
    features, targets = histograms()
    new, _ = histograms(seed=1)
    ours = KernelSVM(kernel="chi2", gamma_factor=0.5).fit(features, targets)
    mean = -additive_chi2_kernel(features).mean()
    assert ours.gamma_ == pytest.approx(0.5 / mean, rel=1e-5)
    theirs = SVC(kernel="precomputed").fit(chi2_kernel(features, gamma=ours.gamma_), targets)
    np.testing.assert_allclose(
        ours.decision_function(new),
        theirs.decision_function(chi2_kernel(new, features, gamma=ours.gamma_)),
        atol=1e-3,  # LIBSVM stops that early
    )


def test_intersection_kernel_by_its_definition():
    features, targets = histograms()
    new, _ = histograms(seed=1)
    ours = KernelSVM(kernel="intersection").fit(features, targets)
    scale = features.sum(axis=1).mean()
    theirs = SVC(kernel=lambda a, b: np.minimum(a[:, None], b).sum(axis=2) / scale)
    theirs.fit(features, targets)
    np.testing.assert_allclose(
        ours.decision_function(new), theirs.decision_function(new), atol=1e-4
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_unit_of_the_features_does_not_count(kernel):
    features, targets = histograms()
    scores = [
        KernelSVM(kernel=kernel).fit(unit * features, targets).decision_function(unit * features)
        for unit in (1.0, 1 / 1024, 4096.0)
    ]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-4)


@pytest.mark.parametrize("kernel", HISTOGRAM_KERNELS)
def test_negative_numbers_are_refused(kernel):
    features, targets = histograms()
    bad = features.copy()
    bad[2, 1] = -0.5
    message = (
        f"Negative values in data passed to the {kernel!r} kernel, which is for histograms: the "
        "smallest is -0.5; use the classifier 'rbf_svm', or features that count."
    )
    machine = KernelSVM(kernel=kernel).fit(features, targets)
    for call in (
        lambda: KernelSVM(kernel=kernel).fit(bad, targets),
        lambda: machine.predict(bad),
        lambda: sweep_kernel_svm(kernel, bad),
        lambda: fit(f"{kernel}_svm", bad, targets),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            call()


def test_an_unknown_kernel():
    with pytest.raises(InputError, match=r"unknown kernel 'chi3'; did you mean 'chi2'\?"):
        KernelSVM(kernel="chi3").fit(*histograms())


def test_histograms_are_better_compared_as_histograms():
    # One bin of many counts drowns the rare ones that tell, for all but these kernels.
    rng = np.random.default_rng(0)
    targets = np.arange(240) % 2
    loud = rng.poisson(500, (240, 3))
    rare = rng.poisson(np.where(targets[:, None] == 1, [6.0, 2.0], [2.0, 6.0]))
    features = np.hstack([loud, rare]).astype(float)

    def accuracy(kernel):
        machine = KernelSVM(kernel=kernel).fit(features[:120], targets[:120])
        return machine.score(features[120:], targets[120:])

    assert accuracy("chi2") > 0.9 > accuracy("rbf") + 0.1


# What all have.


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_rows_of_a_block_do_not_depend_on_one_another(kernel):
    features, targets = histograms()
    machine = KernelSVM(kernel=kernel).fit(features, targets)
    whole = machine.decision_function(features)
    parts = [machine.decision_function(features[i : i + 7]) for i in range(0, len(features), 7)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-9, atol=1e-12)
    if kernel in HISTOGRAM_KERNELS:  # where no product of matrices has another shape
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        with threadpool_limits(2):
            np.testing.assert_array_equal(machine.decision_function(features), whole)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_weight_is_a_factor_on_c(kernel):
    features, targets = histograms()
    plain = KernelSVM(C=6.0, kernel=kernel).fit(features, targets)
    weighted = KernelSVM(C=2.0, kernel=kernel).fit(features, targets, np.full(len(targets), 3.0))
    np.testing.assert_allclose(
        weighted.decision_function(features), plain.decision_function(features), atol=1e-9
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_sweep_predicts_as_the_fits_do(kernel, weighted):
    features, targets = histograms(seed=3)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 5, len(targets)) if weighted else None
    order = rng.permutation(len(targets))
    train, held_out = order[:60], order[60:]
    settings = [{"C": c, "gamma_factor": 2.0} for c in (0.01, 0.3, 100.0)]
    if kernel == "intersection":
        settings = [{"C": setting["C"]} for setting in settings]
    predict = sweep_kernel_svm(kernel, features.astype(np.float32))
    found = list(predict(settings, train, held_out, targets, weights))
    for setting, answer in zip(settings, found, strict=True):
        own = None if weights is None else weights[train]
        machine = KernelSVM(kernel=kernel, **setting).fit(features[train], targets[train], own)
        np.testing.assert_array_equal(answer, machine.predict(features[held_out]))
    assert (found[0] != found[-1]).any()


def test_a_copy_has_the_same_settings_and_is_not_fitted():
    features, targets = clouds(2)
    copy = clone(KernelSVM(C=7.0, gamma_factor=3.0).fit(features, targets))
    assert copy.get_params() == {"C": 7.0, "kernel": "rbf", "gamma_factor": 3.0}
    with pytest.raises(NotFittedError):
        copy.predict(features)
