import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.losses import (
    balanced_order,
    balanced_weights,
    build_loss,
    log_priors,
)

NUM_CLASSES = 4
TARGETS = np.array([0, 1, 3, 3, 1, 0, 3], dtype=np.int32)  # no image of class 2
MANY_TARGETS = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).normal(0, 3, (len(TARGETS), NUM_CLASSES)).astype(np.float32)


@pytest.fixture(scope="module")
def mixed():
    """Labels as mixed images have them: two classes share each."""
    shares = np.random.default_rng(1).uniform(size=(len(TARGETS), 1))
    labels = shares * one_hot(TARGETS) + (1 - shares) * one_hot(TARGETS[::-1])
    return labels.astype(np.float32)


def one_hot(targets):
    return np.eye(NUM_CLASSES)[targets]


def reference(labels, logits, smoothing=0.0, gamma=0.0, offsets=0.0, weights=None):
    """A plain loop over images and classes, in float64."""
    total = 0.0
    for label, row in zip(labels.astype(float), np.asarray(logits, dtype=float), strict=True):
        logs = log_softmax(row + offsets)
        weight = 1.0 if weights is None else float(label @ weights)
        for share, log in zip(label, logs, strict=True):
            smoothed = (1 - smoothing) * share + smoothing / len(label)
            total -= weight * smoothed * (1 - math.exp(log)) ** gamma * log
    return total / len(labels)


def test_cross_entropy_by_hand():
    loss = build_loss("cross_entropy", 3)
    # Probabilities 1/2, 1/4, 1/4 and 1/3 each.
    logits = np.log(np.array([[2.0, 1, 1], [5, 5, 5]], dtype=np.float32))
    found = loss(np.array([1, 2], dtype=np.int32), logits)
    assert (found.shape, found.dtype) == ((), np.float32)
    assert float(found) == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_focal_by_hand():
    # The image's class has the probability 1/4, so its cross entropy counts (3/4)².
    loss = build_loss("focal", 2, focal_gamma=2.0)
    found = loss(np.array([0]), np.log(np.array([[1.0, 3.0]], dtype=np.float32)))
    assert float(found) == pytest.approx(9 / 16 * math.log(4))


SETTINGS = [
    {},
    {"smoothing": 0.1},
    {"gamma": 2.0},
    {"gamma": 0.5, "smoothing": 0.2},
    {"offsets": np.array([0.3, -2.0, 1.0, 0.0])},
    {"weights": np.array([0.5, 3.0, 0.0, 1.0])},
    {
        "gamma": 1.5,
        "smoothing": 0.3,
        "offsets": np.array([-1.0, 0.0, 2.0, 0.5]),
        "weights": np.array([2.0, 0.1, 7.0, 1.0]),
    },
]


def build(smoothing=0.0, gamma=None, offsets=None, weights=None):
    return build_loss(
        "cross_entropy" if gamma is None else "focal",
        NUM_CLASSES,
        label_smoothing=smoothing,
        focal_gamma=2.0 if gamma is None else gamma,
        logit_offsets=offsets,
        class_weights=weights,
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_it_equals_a_plain_loop(settings, logits, mixed):
    loss = build(**settings)
    expected = reference(one_hot(TARGETS), logits, **settings)
    assert float(loss(TARGETS, logits)) == pytest.approx(expected, rel=1e-5)
    expected = reference(mixed, logits, **settings)
    assert float(loss(mixed, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", SETTINGS)
def test_whole_labels_and_targets_give_the_same(settings, logits):
    loss = build(**settings)
    found = float(loss(one_hot(TARGETS).astype(np.float32), logits))
    assert found == pytest.approx(float(loss(TARGETS, logits)), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_it_equals_the_losses_of_keras(smoothing, logits, mixed):
    losses = import_keras().losses
    cross_entropy = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    found = build(smoothing=smoothing)(mixed, logits)
    assert float(found) == pytest.approx(float(cross_entropy(mixed, logits)), rel=1e-5)
    focal = losses.CategoricalFocalCrossentropy(
        alpha=1.0, gamma=2.0, from_logits=True, label_smoothing=smoothing
    )
    found = build(smoothing=smoothing, gamma=2.0)(mixed, logits)
    assert float(found) == pytest.approx(float(focal(mixed, logits)), rel=1e-4)


def test_focal_without_gamma_is_cross_entropy(logits, mixed):
    found = float(build(gamma=0.0, smoothing=0.1)(mixed, logits))
    assert found == pytest.approx(float(build(smoothing=0.1)(mixed, logits)), rel=1e-6)


def test_gamma_and_only_of_focal_counts(logits):
    focal = [float(build(gamma=gamma)(TARGETS, logits)) for gamma in (0.0, 1.0, 2.0)]
    assert focal[0] > focal[1] > focal[2]
    other = build_loss("cross_entropy", NUM_CLASSES, focal_gamma=5.0)
    assert float(other(TARGETS, logits)) == pytest.approx(focal[0], rel=1e-6)


def test_the_sum_of_weighted_losses_is_divided_by_the_number_of_images(logits):
    weights = np.array([3.0, 1.0, 1.0, 1.0])
    one = build()(TARGETS[:1], logits[:1])  # class 0 alone
    found = build(weights=weights)(TARGETS[:1], logits[:1])
    assert float(found) == pytest.approx(3 * float(one), rel=1e-6)


def test_it_is_traced_once_for_batches_of_any_size(logits):
    tf = import_tensorflow()
    loss = build(**SETTINGS[-1])
    traced = tf.function(
        loss,
        input_signature=[
            tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, NUM_CLASSES), tf.float32)
        ],
    )  # fmt: skip
    for size in (len(TARGETS), 1):
        found = traced(TARGETS[:size], logits[:size])
        expected = reference(one_hot(TARGETS[:size]), logits[:size], **SETTINGS[-1])
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_logits_of_sixteen_bits_are_summed_in_thirty_two(logits):
    tf = import_tensorflow()
    short = tf.cast(logits, tf.bfloat16)
    found = build(**SETTINGS[-1])(TARGETS, short)
    assert found.dtype == tf.float32
    expected = reference(one_hot(TARGETS), tf.cast(short, tf.float32).numpy(), **SETTINGS[-1])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def gradient(loss, targets, logits):
    tf = import_tensorflow()
    variable = tf.Variable(logits)
    with tf.GradientTape() as tape:
        value = loss(targets, variable)
    return tape.gradient(value, variable).numpy()


def test_gradient_of_cross_entropy_is_probability_less_label(logits, mixed):
    found = gradient(build(smoothing=0.1), mixed, logits)
    labels = 0.9 * mixed + 0.1 / NUM_CLASSES
    expected = (np.exp(log_softmax(logits, axis=1)) - labels) / len(labels)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_equals_differences(settings, logits, mixed):
    found = gradient(build(**settings), mixed, logits)
    step = 1e-5
    for place in [(0, 0), (2, 3), (6, 1)]:
        moved = np.zeros(logits.shape)
        moved[place] = step
        ahead, behind = (reference(mixed, logits + sign * moved, **settings) for sign in (1, -1))
        assert found[place] == pytest.approx((ahead - behind) / (2 * step), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("target", [0, 1])
def test_certain_logits_give_finite_losses_and_gradients(gamma, target):
    logits = np.array([[300.0, -300.0, 0, 0]], dtype=np.float32)
    loss = build(gamma=gamma, smoothing=0.0)
    targets = np.array([target])
    assert float(loss(targets, logits)) == pytest.approx([0, 600][target], abs=1e-6)
    found = gradient(loss, targets, logits)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, [[target, -target, 0, 0]], atol=1e-6)


def test_offsets_teach_a_network_without_them_equal_frequencies():
    # Of one kind of image 9 in 10 are of class 0. With offsets the best logits are equal: an
    # image says nothing about its class. Without, they repeat the frequencies.
    targets = np.array([0] * 9 + [1])
    zeros = np.zeros((10, 2), dtype=np.float32)
    adjusted = build_loss("cross_entropy", 2, logit_offsets=log_priors(targets, 2))
    plain = build_loss("cross_entropy", 2)
    np.testing.assert_allclose(gradient(adjusted, targets, zeros).sum(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(gradient(plain, targets, zeros).sum(axis=0), [-0.4, 0.4], atol=1e-6)


def test_an_unknown_loss():
    with pytest.raises(InputError, match="unknown loss 'focl'; did you mean 'focal'"):
        build_loss("focl", 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, not 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be .* below 1, not 1.0; 0.1 is usual"),
        ({"label_smoothing": -0.1}, "label_smoothing must be at least 0 .* not -0.1"),
        ({"label_smoothing": math.nan}, "label_smoothing must be at least 0 .* not nan"),
        ({"focal_gamma": -1.0}, "focal_gamma must be at least 0 and finite, not -1.0"),
        ({"focal_gamma": math.nan}, "focal_gamma must be at least 0 and finite, not nan"),
        ({"logit_offsets": np.zeros(3)}, r"logit_offsets has shape \(3,\), .* need \(2,\); give"),
        ({"class_weights": np.ones((2, 1))}, r"class_weights has shape \(2, 1\), .* need \(2,\)"),
        ({"logit_offsets": np.array([0, -np.inf])}, r"logit_offsets must be finite, but is \[0.0"),
        ({"class_weights": np.array([1, -1])}, r"class_weights must be finite and at least 0, but"),
        ({"class_weights": np.array([1, np.nan])}, "class_weights must be finite and at least 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(InputError, match=message):
        build_loss("focal", **{"num_classes": 2, **settings})


def test_offsets_may_be_negative_and_weights_zero(logits):
    loss = build(offsets=np.full(NUM_CLASSES, -2.0), weights=np.zeros(NUM_CLASSES))
    assert float(loss(TARGETS, logits)) == 0


def test_balanced_weights_by_hand():
    # 7 images, 3 classes of which have some: 2, 2 and 3.
    found = balanced_weights(TARGETS, NUM_CLASSES)
    np.testing.assert_allclose(found, [7 / 6, 7 / 6, 0, 7 / 9])


@given(MANY_TARGETS)
def test_balanced_weights_equal_those_of_scikit_learn_and_have_the_mean_one(targets):
    found = balanced_weights(targets, 6)
    present = np.unique(targets)
    expected = compute_class_weight("balanced", classes=present, y=targets)
    np.testing.assert_allclose(found[present], expected)
    assert not np.delete(found, present).any()
    assert found[targets].mean() == pytest.approx(1)


def test_log_priors_by_hand():
    shares = np.array([2, 2, 0.5, 3]) / 7.5
    np.testing.assert_allclose(log_priors(TARGETS, NUM_CLASSES), np.log(shares))
    np.testing.assert_allclose(log_priors(TARGETS, NUM_CLASSES, 0.5), np.log(shares) / 2)
    assert not log_priors(TARGETS, NUM_CLASSES, tau=0).any()


@pytest.mark.parametrize("tau", [-1.0, math.inf, math.nan])
def test_tau_out_of_range(tau):
    with pytest.raises(InputError, match=f"tau must be at least 0 and finite, not {tau}"):
        log_priors(TARGETS, NUM_CLASSES, tau)


@pytest.mark.parametrize("function", [balanced_weights, log_priors])
def test_targets_that_are_no_classes(function):
    with pytest.raises(InputError, match=r"targets reach from 0 to 3, but 3 .* from 0 to 2"):
        function(TARGETS, 3)
    with pytest.raises(InputError, match="targets reach from -1 to 2, but 4 classes"):
        function(TARGETS - 1, 4)
    with pytest.raises(InputError, match="there are no targets to count"):
        function(TARGETS[:0], 3)


@given(MANY_TARGETS, st.integers(0, 99))
def test_balanced_order_shows_classes_and_their_images_equally_often(targets, seed):
    order = balanced_order(targets, np.random.default_rng(seed))
    assert order.shape == targets.shape
    times = np.bincount(order, minlength=len(targets))
    shown = [times[targets == target] for target in np.unique(targets)]
    assert np.ptp([of_class.sum() for of_class in shown]) <= 1
    assert max(np.ptp(of_class) for of_class in shown) <= 1


def test_balanced_order_by_hand():
    targets = np.array([7, 7, 7, 7, 7, 7, 2, 2])  # 4 of each: half of the first, the others twice
    times = np.bincount(balanced_order(targets, np.random.default_rng(0)), minlength=8)
    assert sorted(times[:6]) == [0, 0, 1, 1, 1, 1]
    assert times[6:].tolist() == [2, 2]


def test_balanced_order_is_random_in_every_respect_and_repeatable():
    targets = np.array([0] * 5 + [1] * 2)
    orders = [balanced_order(targets, np.random.default_rng(seed)) for seed in range(60)]
    np.testing.assert_array_equal(orders[3], balanced_order(targets, np.random.default_rng(3)))
    shown = np.array([targets[order] for order in orders])
    assert set(shown.sum(axis=1)) == {3, 4}  # either class may get the odd image
    assert {tuple(shown[:, place]).count(1) > 10 for place in range(7)} == {True}
    assert (np.diff(shown, axis=1) != 0).sum(axis=1).max() > 3  # not one class behind the other
    times = np.array([np.bincount(order, minlength=7) for order in orders])
    assert (times.min(axis=0)[:5] == 0).all()  # any image may be left out
    assert (times.max(axis=0)[:5] == 1).all()
    assert (times.min(axis=0)[5:] == 1).all()
    assert (times.max(axis=0)[5:] == 2).all()


def test_balanced_order_of_equal_classes_is_a_permutation():
    targets = np.array([0, 1, 2] * 5)
    order = balanced_order(targets, np.random.default_rng(0))
    assert sorted(order) == list(range(15))
    assert order.tolist() != list(range(15))


def test_balanced_order_of_nothing():
    with pytest.raises(InputError, match="there are no targets to count"):
        balanced_order(np.array([], dtype=int), np.random.default_rng(0))
