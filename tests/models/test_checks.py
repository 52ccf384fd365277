import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.models.checks import (
    CURVE_ADVICE,
    GOOD_CURVES,
    NOTHING_TO_DO,
    Check,
    as_dicts,
    check_activations,
    check_dead_relus,
    check_gradient,
    check_initial_loss,
    check_overfit,
    check_shuffled_labels,
    check_update_ratios,
    check_weight_decay,
    curve_shape,
    diagnose_curve,
    diagnose_gap,
    must_abort,
)

ANY_NUMBER = st.floats(0, 1e300) | st.sampled_from([math.nan, math.inf])
EPOCHS = np.arange(12)
CURVES = {
    "good": 0.4 + 1.9 * np.exp(-EPOCHS / 3),
    "fitted": 2.3 * np.exp(-EPOCHS),
    "exploding": np.array([2.3, 2.5, 4.0, 7.0, 90.0]),
    "rising": 2.3 + 0.1 * EPOCHS,
    "too slow": 2.3 - 0.06 * EPOCHS,
    "flat start": np.concatenate([np.full(6, 2.3), 2.3 * 0.7 ** np.arange(1, 7)]),
    "high plateau": 1.6 + 0.7 * np.exp(-2.0 * EPOCHS),
    "too short to tell": np.array([2.3, 1.5, 1.2]),
}


def test_a_check_that_passes_asks_for_nothing():
    check = check_initial_loss(2.3, 10)
    assert check == Check("initial_loss", True, 2.3, "2.30 ± 0.50", NOTHING_TO_DO)


def test_checks_become_json_without_nan():
    rows = as_dicts([check_weight_decay(2, 1), check_overfit(np.float32(math.nan), 1)])
    assert rows[1]["passed"] is False  # and not NumPy's
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert [row["value"] for row in rows] == [2.0, None]
    assert [row["passed"] for row in rows] == [False, False]
    assert list(rows[1]) == ["name", "passed", "value", "expected", "advice"]
    assert as_dicts([]) == []


@given(ANY_NUMBER, ANY_NUMBER, ANY_NUMBER)
def test_every_check_is_ready_for_json_whatever_it_is_given(one, two, three):
    layers = {"a": one, "b": two, "c": three}
    found = [
        check_initial_loss(one, 7),
        check_weight_decay(one, 1e-4),
        check_overfit(one, 1.0),
        check_gradient(one),
        check_update_ratios(layers),
        check_dead_relus(layers),
        check_activations(layers, {"a": two, "b": three, "c": one}),
        diagnose_curve([one, two, three, one, two]),
        diagnose_gap(0.5, 0.25, 4),
        check_shuffled_labels(0.5, 0.25, 4),
    ]
    json.dumps(as_dicts(found), allow_nan=False)
    for check in found:
        assert type(check.passed) is bool
        assert type(check.value) is float
        assert not math.isinf(check.value)
        assert check.advice.endswith(".")
        assert check.advice.count(". ") == 0  # one sentence
        if not check.passed:
            assert check.advice != NOTHING_TO_DO


@pytest.mark.parametrize(
    ("loss", "num_classes", "passed"),
    [
        (math.log(10), 10, True),
        (math.log(10) + 0.49, 10, True),
        (math.log(10) + 0.51, 10, False),
        (math.log(10) - 0.51, 10, False),
        (math.log(1000) * 1.19, 1000, True),  # 1.31 above: a fifth, where that is more than 0.5
        (math.log(1000) * 1.21, 1000, False),
        (0.1, 2, False),
        (math.nan, 10, False),
        (math.inf, 10, False),
    ],
)
def test_the_initial_loss_must_be_that_of_a_guess(loss, num_classes, passed):
    assert check_initial_loss(loss, num_classes).passed == passed


def test_logits_of_unit_variance_are_still_a_guess():
    """The reason for 0.5: the loss of Gaussian logits is the logarithm plus half the variance."""
    logits = np.random.default_rng(0).normal(size=(20_000, 50))
    loss = np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[:, 0])
    assert loss == pytest.approx(math.log(50) + 0.5, abs=0.03)


def test_the_advice_on_the_initial_loss_knows_the_direction():
    assert "smaller" in check_initial_loss(9.0, 10).advice
    assert "knows the labels" in check_initial_loss(0.5, 10).advice


def test_weight_decay_must_shrink_the_weights_by_what_was_asked_for():
    assert check_weight_decay(0.00105, 0.001).passed
    assert check_weight_decay(0.00105, 0.001).value == pytest.approx(1.05)
    for shrinkage in (0.0, 0.0008, 0.0012, math.nan):
        assert not check_weight_decay(shrinkage, 0.001).passed


@pytest.mark.parametrize(
    ("loss", "accuracy", "passed"),
    [(0.049, 1.0, True), (0.05, 1.0, False), (0.01, 0.9, False), (math.nan, 1.0, False)],
)
def test_a_handful_must_be_learned_by_heart(loss, accuracy, passed):
    assert check_overfit(loss, accuracy).passed == passed


def test_the_bound_of_guessing_worked_out_by_hand():
    # Of 10 coins P(10 heads) = 1/1024 < 0.001 and P(9 or more) = 11/1024 > 0.001: 9 may happen.
    assert check_shuffled_labels(0.9, 0.5, 10).passed
    assert not check_shuffled_labels(1.0, 0.5, 10).passed
    # Of 9 coins P(9 heads) = 1/512, so even that may happen.
    assert check_shuffled_labels(1.0, 0.5, 9).passed


def test_more_images_allow_less_above_chance():
    assert check_shuffled_labels(0.2, 0.1, 50).passed
    assert not check_shuffled_labels(0.2, 0.1, 500).passed
    assert check_shuffled_labels(0.0, 0.1, 500).passed  # worse than chance is no leak


def test_guesses_rarely_look_like_a_leak():
    right = np.random.default_rng(0).binomial(200, 0.3, 20_000)
    values, counts = np.unique(right, return_counts=True)
    fails = [not check_shuffled_labels(value / 200, 0.3, 200).passed for value in values]
    assert 0 < np.dot(fails, counts) < 2 * 20


def test_gradients_must_agree():
    assert check_gradient(0.0099).passed
    for error in (0.01, 1.0, math.nan):
        assert not check_gradient(error).passed
    assert "fewer images" in check_gradient(math.nan, num_kinks=20).advice
    assert "Correct the gradient" in check_gradient(0.5, num_kinks=20).advice


@pytest.mark.parametrize(
    ("ratio", "passed", "words"),
    [
        (1e-5, True, NOTHING_TO_DO),
        (1e-1, True, NOTHING_TO_DO),
        (0.9e-5, False, "Raise the learning rate, or see why no gradient reaches b (9.0e-06)"),
        (0.11, False, "Lower the learning rate: a step moves b by 1.1e-01"),
        (0.0, False, "no gradient reaches b"),
        (math.inf, False, "moves b by inf"),
        (math.nan, False, "moves b by nan"),
    ],
)
def test_update_ratios_name_the_layer_that_is_furthest_off(ratio, passed, words):
    check = check_update_ratios({"a": 1e-3, "b": ratio, "c": 2e-3})
    assert check.passed == passed
    assert words in check.advice


def test_the_value_of_update_ratios_is_their_median():
    assert check_update_ratios({"a": 1e-3, "b": 0.5, "c": 2e-3}).value == 2e-3


@pytest.mark.parametrize(
    ("shares", "passed"),
    [
        ([0.1, 0.2, 0.15], True),
        ([0.4, 0.0, 0.0], True),
        ([0.41, 0.0, 0.0], False),
        ([0.19, 0.19, 0.19], True),
        ([0.21, 0.21, 0.21], False),
        ([math.nan, 0.0, 0.0], False),
        ([], True),
    ],
)
def test_dead_relus(shares, passed):
    check = check_dead_relus({f"relu_{number}": share for number, share in enumerate(shares)})
    assert check.passed == passed
    if shares and not passed:
        assert "relu_0" in check.advice


@pytest.mark.parametrize(
    ("stds", "passed", "value", "words"),
    [
        ([2.0, 2e-3, 2.0], True, 1e-3, NOTHING_TO_DO),
        ([2.0, 1.0, 1.9e-3], False, 0.95e-3, "collapse in c"),
        ([2.0, 2e3, 1.0], True, 1e3, NOTHING_TO_DO),
        ([2.0, 2.1e3, 1.0], False, 1.05e3, "explode in b"),
        ([2.0, math.inf, 1.0], False, math.nan, "explode in b"),
        ([0.0, 1.0, 1.0], False, 0.0, "collapse in a"),
        ([1.0, 0.0, 1.0], False, 0.0, "collapse in b"),
    ],
)
def test_activations_must_keep_their_spread(stds, passed, value, words):
    layers = dict(zip("abc", stds, strict=True))
    check = check_activations(dict.fromkeys("abc", 0.0), layers)
    assert check.passed == passed
    assert check.value == pytest.approx(value, nan_ok=True)
    assert words in check.advice


def test_a_mean_that_is_not_finite_is_an_explosion():
    check = check_activations({"a": 0.0, "b": math.nan}, {"a": 1.0, "b": 1.0})
    assert not check.passed
    assert "explode in b" in check.advice


@pytest.mark.parametrize("shape", CURVES)
def test_the_shapes_of_the_lecture(shape):
    assert curve_shape(CURVES[shape]) == shape
    check = diagnose_curve(list(CURVES[shape]))
    assert check.passed == (shape in GOOD_CURVES)
    assert check.advice == CURVE_ADVICE[shape]
    assert check.value == pytest.approx(CURVES[shape][-1] / CURVES[shape][0])


def test_every_shape_has_an_example():
    assert CURVES.keys() == CURVE_ADVICE.keys()
    assert GOOD_CURVES == ("good", "fitted", "too short to tell")


@pytest.mark.parametrize("shape", CURVES)
@pytest.mark.parametrize("seed", range(5))
def test_a_little_noise_does_not_change_the_shape(shape, seed):
    noise = np.random.default_rng(seed).normal(0, 0.01, len(CURVES[shape]))
    assert curve_shape(CURVES[shape] * (1 + noise)) == shape


@pytest.mark.parametrize("shape", ["good", "too slow", "flat start", "high plateau", "rising"])
def test_the_unit_of_the_loss_does_not_change_the_shape(shape):
    assert curve_shape(CURVES[shape] * 10) == shape


@pytest.mark.parametrize(
    ("losses", "shape"),
    [
        ([2.3, math.nan], "exploding"),  # however short
        ([2.3, 7.0], "exploding"),
        ([2.0, 6.0], "too short to tell"),
        ([2.3], "too short to tell"),
        ([2.3, 2.3, 2.3, 2.3], "too slow"),
        ([2.3, 1.4, 1.1, 0.9], "good"),
        ([2.3, 2.29, 2.28, 1.1], "flat start"),
        # Along a straight line, but to less than half of the first: no reason to complain.
        ([2.3, 1.9, 1.5, 1.1, 0.7], "good"),
        # As fast as the high plateau, but to a low one.
        ([2.3, 0.4, 0.35, 0.34, 0.34, 0.33], "good"),
        ([0.04, 0.03, 0.03, 0.04], "fitted"),  # as in a fine-tuning: nothing is left to fall
        # Ahead of a straight line and behind it in turn, as when the learning rate drops late.
        ([2.3, 1.8, 1.8, 1.8, 1.8, 1.8, 1.3, 1.3], "good"),
        # Most of the fall is early, but it goes on.
        (2.3 * (0.6 + 0.4 * np.exp(-np.linspace(0, 3.3, 10))), "good"),
        # Twice as high for one epoch in between is no explosion.
        ([2.3, 1.8, 4.0, 1.0, 0.8], "good"),
    ],
)
def test_short_and_odd_curves(losses, shape):
    assert curve_shape(losses) == shape


@pytest.mark.parametrize(
    ("train", "val", "num_val", "passed", "words"),
    [
        (0.99, 0.80, 1000, False, "Add regularisation, augmentation or images"),
        # Two standard errors of 0.8 in 25 images are 0.16.
        (0.95, 0.80, 25, True, "larger network"),
        (0.97, 0.80, 25, False, "Add regularisation"),
        # In 10,000 they are 0.008: shown, but small.
        (0.84, 0.80, 10_000, True, "Keep this gap"),
        (0.86, 0.80, 10_000, False, "Add regularisation"),
        (0.80, 0.80, 1000, True, "larger network"),
        (0.70, 0.80, 1000, True, "larger network"),
        (1.00, 1.00, 5, True, "larger network"),
    ],
)
def test_the_gap(train, val, num_val, passed, words):
    check = diagnose_gap(train, val, num_val)
    assert check.passed == passed
    assert check.value == pytest.approx(train - val)
    assert words in check.advice


def test_a_training_is_aborted_when_its_latest_ten_steps_cost_three_times_the_first():
    assert must_abort([2.0] * 5 + [6.0] * 10, 2.0) == ""
    reason = must_abort([2.0] * 5 + [6.01] * 10, 2.0)
    assert reason.startswith("the loss rose to 6.01, above 3 times the 2 of the first steps")


def test_one_bad_batch_aborts_nothing():
    assert must_abort([2.0] * 20 + [40.0], 2.0) == ""
    assert must_abort([40.0] + [2.0] * 10, 2.0) == ""
    assert must_abort([40.0] * 9, 2.0) == ""  # too few to average
    assert must_abort([], 2.0) == ""


@pytest.mark.parametrize("losses", [[2.0, math.nan], [math.inf, 2.0], [2.0] * 10 + [-math.inf]])
def test_a_loss_that_is_not_finite_aborts_at_once(losses):
    assert must_abort(losses, 2.0) == "the loss is not finite"
    assert must_abort([2.0], losses[-1] * math.nan) != ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_initial_loss(0.0, 1), "num_classes must be at least 2, not 1; merge"),
        (lambda: check_overfit(0.0, 90), "accuracy must be from 0 to 1, not 90; divide"),
        (lambda: check_shuffled_labels(math.nan, 0.5, 9), "accuracy must be from 0 to 1, not nan"),
        (lambda: check_shuffled_labels(0.5, 5, 9), "chance must be from 0 to 1, not 5"),
        (lambda: check_shuffled_labels(0.5, 0.5, 0), "num_images must be at least 1, not 0; mea"),
        (lambda: check_update_ratios({}), "ratios is empty, but at least one number is needed"),
        (lambda: check_activations({}, {}), "stds is empty"),
        (
            lambda: check_activations({"a": 0.0}, {"b": 1.0}),
            r"means are of the layers \['a'\], but stds of \['b'\]; measure both",
        ),
        (lambda: diagnose_curve([]), "losses is empty"),
        (lambda: diagnose_gap(2, 0.5, 9), "train_accuracy must be from 0 to 1, not 2"),
        (lambda: diagnose_gap(0.5, -1, 9), "val_accuracy must be from 0 to 1, not -1"),
        (lambda: diagnose_gap(0.5, 0.5, 0), "num_val must be at least 1, not 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
