import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from cvpipe.errors import InputError
from cvpipe.inference.calibration import (
    METHODS,
    NETWORK_FLOOR,
    Isotonic,
    Scaling,
    average_temperatures,
    calibration_from_dict,
    calibration_to_dict,
    fit_calibration,
)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def draw(n, num_classes, sharpness, seed=0, spread=2.0):
    """Answers `sharpness` times too sure, and labels drawn from the honest ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, num_classes))
    honest = softmax(logits)
    targets = (honest.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return softmax(sharpness * logits), targets, honest


def log_loss(probabilities, targets):
    return -np.log(probabilities[np.arange(len(targets)), targets]).sum()


@pytest.mark.parametrize("num_classes", [2, 10])
@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found_within_5_percent(num_classes, sharpness):
    for seed in range(10):
        probabilities, targets, honest = draw(5000, num_classes, sharpness, seed)
        calibration = fit_calibration("temperature", probabilities, targets)
        assert calibration.temperature == pytest.approx(sharpness, rel=0.05)
        np.testing.assert_allclose(calibration.apply(probabilities), honest, atol=0.03)


def test_a_temperature_by_hand():
    """exp(log p / 2) = sqrt(p), made to sum to 1 again."""
    halved = Scaling((0.5, 0.5), (0.0, 0.0)).apply(np.array([[0.8, 0.2], [0.5, 0.5]]))
    np.testing.assert_allclose(halved, [[2 / 3, 1 / 3], [0.5, 0.5]])


def test_offsets_by_hand():
    shifted = Scaling((1.0, 1.0), (0.0, np.log(3.0))).apply(np.array([[0.75, 0.25]]))
    np.testing.assert_allclose(shifted, [[0.5, 0.5]])


def test_isotonic_by_hand():
    curve = Isotonic(((0.2, 0.6), (0.4, 0.8)), ((0.1, 0.5), (0.3, 0.9)))
    # Class 0: below the range, and between the points; class 1: above, and between.
    np.testing.assert_allclose(
        curve.apply(np.array([[0.1, 0.9], [0.4, 0.6]])),
        [[0.1 / 1.0, 0.9 / 1.0], [0.3 / 0.9, 0.6 / 0.9]],
    )


def test_the_temperature_has_the_smallest_penalised_loss():
    probabilities, targets, _ = draw(60, 3, 3.0)

    def loss(slope):
        return log_loss(softmax(np.log(probabilities) * slope), targets) + (slope - 1) ** 2 / 2

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9})
    found = fit_calibration("temperature", probabilities, targets, NETWORK_FLOOR)
    assert found.slopes[0] == pytest.approx(best.x, abs=1e-5)


def test_vector_scaling_has_the_smallest_penalised_loss():
    probabilities, targets, _ = draw(80, 3, 2.0)
    start = np.array([1.0, 1, 1, 0, 0, 0])

    def loss(values):
        fitted = softmax(np.log(probabilities) * values[:3] + values[3:])
        return log_loss(fitted, targets) + ((values - start) ** 2).sum() / 2

    best = minimize(loss, start, method="Nelder-Mead", options={"maxfev": 20_000, "fatol": 1e-12})
    found = fit_calibration("vector", probabilities, targets)
    np.testing.assert_allclose([*found.slopes, *found.offsets], best.x, atol=2e-3)
    assert np.isnan(found.temperature)


def test_vector_scaling_mends_a_classifier_that_favours_a_class():
    probabilities, targets, honest = draw(5000, 3, 1.0)
    tilted = probabilities * [1, 4, 1]
    tilted /= tilted.sum(axis=1, keepdims=True)
    mended = fit_calibration("vector", tilted, targets).apply(tilted)
    assert np.abs(mended - honest).max() < 0.06
    unmended = fit_calibration("temperature", tilted, targets).apply(tilted)
    assert np.abs(unmended - honest).max() > 0.2


def test_isotonic_regression_mends_what_no_temperature_can():
    probabilities, targets, honest = draw(20_000, 2, 1.0)
    bent = np.stack([probabilities[:, 0] ** 3, 1 - probabilities[:, 0] ** 3], axis=1)
    mended = fit_calibration("isotonic", bent, targets).apply(bent)
    assert np.abs(mended - honest).mean() < 0.02
    unmended = fit_calibration("temperature", bent, targets).apply(bent)
    assert np.abs(unmended - honest).mean() > 0.1


def test_isotonic_regression_never_says_never():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.8]])
    calibration = fit_calibration("isotonic", probabilities, np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(
        calibration.apply(np.array([[1.0, 0.0], [0.0, 1.0]])), [[5 / 6, 1 / 6], [1 / 6, 5 / 6]]
    )


@pytest.mark.parametrize("method", METHODS)
def test_few_images_all_named_correctly_do_not_make_it_certain(method):
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    fitted = fit_calibration(method, probabilities, np.array([0, 1, 2])).apply(probabilities)
    assert fitted.max() < 0.95
    assert (fitted.argmax(axis=1) == [0, 1, 2]).all()


def test_worse_than_chance_is_flattened_and_never_turned_around():
    probabilities, targets, _ = draw(500, 2, 1.0)
    fitted = fit_calibration("temperature", probabilities, 1 - targets)
    assert fitted.slopes == (0.05, 0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [0, 5])
def test_what_says_nothing_is_left_alone(method, n):
    constant = np.tile([0.7, 0.3], (n, 1))
    calibration = fit_calibration(method, constant, np.zeros(n, dtype=int))
    assert calibration == Scaling((1.0, 1.0), (0.0, 0.0))
    assert calibration.changes_nothing
    values = np.array([[0.3, 0.7]])
    assert calibration.apply(values) is values  # to the bit


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(list(METHODS)),
    seed=st.integers(0, 10_000),
    n=st.integers(2, 40),
    num_classes=st.integers(2, 5),
)
def test_calibrated_rows_are_probabilities(method, seed, n, num_classes):
    probabilities, targets, _ = draw(n, num_classes, 5.0, seed, spread=20.0)  # some underflow to 0
    floor = NETWORK_FLOOR
    calibration = fit_calibration(method, probabilities, targets, floor)
    fitted = calibration.apply(probabilities)
    assert fitted.min() >= 0
    np.testing.assert_allclose(fitted.sum(axis=1), 1.0)
    if method == "temperature":
        chosen = np.take_along_axis(fitted, probabilities.argmax(axis=1)[:, None], axis=1)
        assert (chosen[:, 0] == fitted.max(axis=1)).all()
    # It never does worse than leaving everything alone, on what it was fitted on.
    if method in ("temperature", "vector"):
        before = log_loss(np.maximum(probabilities, floor), targets)
        assert log_loss(np.maximum(fitted, floor), targets) <= before + 1e-6
    there_and_back = calibration_from_dict(json.loads(json.dumps(calibration_to_dict(calibration))))
    assert there_and_back == calibration


def test_zeros_of_a_classifier_that_counts_neighbours_do_not_break_it():
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    fitted = fit_calibration("temperature", probabilities, np.array([0, 1, 1, 0]))
    assert np.isfinite(fitted.apply(probabilities)).all()
    assert fitted.temperature > 5  # wrong with certainty, once in three


def test_what_lies_below_the_floor_is_taken_as_the_floor():
    halved = Scaling((0.5, 0.5), (0.0, 0.0), floor=0.04)
    expected = [[1 / 1.2, 0.2 / 1.2]]
    np.testing.assert_allclose(halved.apply(np.array([[1.0, 0.0]])), expected)
    # So a floor that is too high loses what a network knows of improbable classes.
    least = Scaling((0.5, 0.5), (0.0, 0.0), floor=NETWORK_FLOOR)
    np.testing.assert_allclose(least.apply(np.array([[1.0, 1e-20]]))[0, 1], 1e-10)


def test_temperatures_are_averaged_by_their_logarithms():
    halves = [Scaling((0.25,) * 3, (0.0,) * 3), Scaling((1.0,) * 3, (0.0,) * 3)]
    assert average_temperatures(halves) == Scaling((0.5,) * 3, (0.0,) * 3)


def test_errors():
    with pytest.raises(InputError, match="unknown calibration 'platt'"):
        fit_calibration("platt", np.ones((1, 1)), np.zeros(1))
    with pytest.raises(InputError, match="3 rows of probabilities and 2 targets"):
        fit_calibration("temperature", np.full((3, 2), 0.5), np.zeros(2, dtype=int))
