import functools
import math

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.checks import (
    check_activations,
    check_dead_relus,
    check_gradient,
    check_initial_loss,
    check_overfit,
    check_shuffled_labels,
    check_update_ratios,
)
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.probes import (
    _pick_handful,
    activation_statistics,
    dead_relu_shares,
    gradient_error,
    initial_loss,
    kernels_of,
    overfit_handful,
    shuffled_labels_accuracy,
    update_ratios,
)

NUM_CLASSES = 3
SIZE = (6, 5)


def cross_entropy(targets, logits):
    tf = import_tensorflow()
    labels = tf.cast(targets, "int32")  # Keras's `fit` makes them float32
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses)


def softmax_reference(targets, logits):
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(targets)), targets].mean()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(12, *SIZE, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def targets():
    return np.array([0, 0, 0, 0, 1, 1, 2, 0, 1, 2, 2, 1], np.int32)


@pytest.fixture
def model():
    """Everything that could go wrong: a normalisation, running averages, dropout, an operation."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((*SIZE, 2))
    normalisation = keras.layers.Normalization(name="normalisation", trainable=False)
    normalisation.build((None, *SIZE, 2))
    normalisation.set_weights([np.array([0.5, -0.25]), np.array([4.0, 0.25]), np.array(0)])
    normalisation.finalize_state()
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(normalisation(inputs))
    batch = keras.layers.BatchNormalization(name="batch")
    x = keras.layers.ReLU(name="relu")(batch(x) * 1.5)
    batch.set_weights([np.full(8, value) for value in (0.9, 0.05, 0.1, 1.2)])
    x = keras.layers.Dropout(0.9)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(NUM_CLASSES, name="head")(x))


def build_dense(num_inputs=4, units=16, num_layers=1, **options):
    """Build a small dense network of ReLUs whose hidden layers are called `hidden_1` and so on."""
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((num_inputs,))
    for number in range(1, num_layers + 1):
        x = keras.layers.Dense(units, activation="relu", name=f"hidden_{number}", **options)(x)
    head = keras.layers.Dense(NUM_CLASSES, name="head", **options)
    return keras.Model(inputs, head(x))


def far_apart(rng, num_images=120, num_classes=3):
    """Draw images of classes that nothing could confuse."""
    targets = np.resize(np.arange(num_classes, dtype=np.int32), num_images)
    centres = 8 * np.eye(num_classes, 4)
    return (centres[targets] + rng.normal(size=(num_images, 4))).astype(np.float32), targets


def bits(model):
    return [np.array(variable.numpy()).tobytes() for variable in model.variables]


def test_initial_loss_equals_numpy(model, images, targets):
    logits = model.predict_on_batch(images)
    found = initial_loss(model, cross_entropy, images, targets)
    assert found == pytest.approx(softmax_reference(targets, logits), rel=1e-5)


def test_last_weights_that_are_far_too_large_show_in_the_initial_loss(images, targets):
    model = build_dense(SIZE[0] * SIZE[1] * 2)
    flat = images.reshape(12, -1)
    head = model.get_layer("head")
    kernel, bias = head.get_weights()
    head.set_weights([kernel * 0.01, bias])
    found = initial_loss(model, cross_entropy, flat, targets)
    assert found == pytest.approx(math.log(3), abs=0.05)
    assert check_initial_loss(found, NUM_CLASSES).passed
    head.set_weights([kernel * 30, bias])
    found = initial_loss(model, cross_entropy, flat, targets)
    assert not check_initial_loss(found, NUM_CLASSES).passed


def test_the_handful_has_two_of_a_class_and_first_one_of_each():
    of_three = _pick_handful(np.array([0, 0, 0, 0, 1, 1, 2]))
    assert of_three.tolist() == [0, 4, 6, 1, 5]
    of_seven = _pick_handful(np.repeat(np.arange(7), 3))
    assert of_seven.tolist() == [0, 3, 6, 9, 12, 15, 18, 1, 4, 7]


def test_a_handful_is_learned_by_heart_in_spite_of_dropout(model, images, targets):
    found = overfit_handful(model, cross_entropy, images, targets)
    assert check_overfit(*found).passed, found


@pytest.mark.parametrize("broken", ["learning rate", "weights", "same images"])
def test_what_cannot_learn_does_not_overfit(broken, model, images, targets):
    rate = 0.0 if broken == "learning rate" else 3e-3
    if broken == "weights":
        model = build_dense(60, kernel_initializer="zeros")
        images = images.reshape(12, -1)
    if broken == "same images":
        images = np.zeros_like(images)
    found = overfit_handful(model, cross_entropy, images, targets, learning_rate=rate)
    assert not check_overfit(*found).passed


def test_overfitting_measures_the_trained_network_on_the_handful(images, targets):
    model = build_dense(60)
    flat = images.reshape(12, -1)
    loss, accuracy = overfit_handful(model, cross_entropy, flat, targets, steps=0)
    handful = [0, 4, 6, 1, 5, 9]
    logits = model.predict_on_batch(flat[handful])
    assert loss == pytest.approx(softmax_reference(targets[handful], logits), rel=1e-5)
    assert accuracy == np.mean(logits.argmax(axis=1) == targets[handful])


def test_every_probe_leaves_the_network_as_it_was(model, images, targets):
    before, logits = bits(model), model.predict_on_batch(images)
    trainable = [layer.trainable for layer in model.layers]
    rng = np.random.default_rng(0)
    overfit_handful(model, cross_entropy, images, targets, steps=3)
    shuffled_labels_accuracy(model, cross_entropy, images, targets, rng, num_train=8, steps=3)
    gradient_error(model, cross_entropy, images[:2], targets[:2], rng, num_entries=3)
    dead_relu_shares(model, images)
    activation_statistics(model, images)
    assert bits(model) == before
    assert [layer.trainable for layer in model.layers] == trainable
    np.testing.assert_array_equal(model.predict_on_batch(images), logits)


def test_a_training_that_fails_leaves_the_network_as_it_was(model, images, targets):
    before, calls = bits(model), []

    def fail_after_training(targets, logits):
        calls.append(1)
        if len(calls) > 1:  # the first call builds the graph of the training
            raise RuntimeError
        return cross_entropy(targets, logits)

    with pytest.raises(RuntimeError):
        overfit_handful(model, fail_after_training, images, targets, steps=3)
    assert bits(model) == before


@pytest.mark.parametrize("seed", [0, 4])
def test_shuffled_labels_teach_nothing_even_where_classes_are_far_apart(seed):
    """With these seeds the network is by luck right too often in one round."""
    rng = np.random.default_rng(seed)
    images, targets = far_apart(rng, num_images=160, num_classes=2)
    found = shuffled_labels_accuracy(
        build_dense(), cross_entropy, images, targets, rng, steps=60, learning_rate=0.03
    )
    assert check_shuffled_labels(*found).passed, found
    assert found[0] == pytest.approx(0.5, abs=0.1)


def test_labels_are_shuffled_and_rotated_among_the_classes_there_are():
    images, targets = far_apart(np.random.default_rng(0))
    targets[targets == 1] = 2  # class 1 of the network's three has no image
    rounds = []

    def remember(targets, logits):
        rounds.append(targets)
        return cross_entropy(targets, logits)

    model = build_dense(num_layers=0)
    rng = np.random.default_rng(1)
    shuffled_labels_accuracy(model, remember, images, targets, rng, num_train=30, steps=1)
    trained = np.random.default_rng(1).permutation(120)[:30]
    one, other = rounds
    np.testing.assert_array_equal(np.sort(one), np.sort(targets[trained]))
    assert not np.array_equal(one, targets[trained])
    np.testing.assert_array_equal(other, 2 - one)


def test_the_others_are_scored_with_their_true_labels_and_chance_is_the_largest_class():
    rng = np.random.default_rng(0)
    images, targets = far_apart(rng)
    targets[:60] = 0  # of 120 images 80 are of class 0
    model = build_dense()
    found = shuffled_labels_accuracy(
        model, cross_entropy, images, targets, np.random.default_rng(5), num_train=40, steps=0
    )
    scored = np.random.default_rng(5).permutation(120)[40:]
    accuracy = np.mean(model.predict_on_batch(images[scored]).argmax(axis=1) == targets[scored])
    assert found == (pytest.approx(accuracy), np.mean(targets[scored] == 0), 80)


def test_a_network_that_saw_the_labels_before_fails_on_shuffled_ones():
    rng = np.random.default_rng(0)
    images, targets = far_apart(rng)
    model = build_dense(num_layers=0)
    centres = np.stack([images[targets == label].mean(axis=0) for label in range(3)], axis=1)
    model.get_layer("head").set_weights([centres, np.zeros(3)])
    found = shuffled_labels_accuracy(model, cross_entropy, images, targets, rng, steps=3)
    assert not check_shuffled_labels(*found).passed


def test_a_loss_that_looks_up_the_true_labels_fails_on_shuffled_ones():
    rng = np.random.default_rng(0)
    images, targets = far_apart(rng)
    true_targets = targets[np.random.default_rng(7).permutation(len(targets))[:32]]

    def ignore_the_given(_, logits):
        return cross_entropy(true_targets, logits)

    found = shuffled_labels_accuracy(
        build_dense(),
        ignore_the_given,
        images,
        targets,
        np.random.default_rng(7),
        steps=60,
        learning_rate=0.03,
    )
    assert found[0] > 0.9
    assert not check_shuffled_labels(*found).passed


@functools.cache
def scaling_layer():
    keras, tf = import_keras(), import_tensorflow()

    class Scaling(keras.layers.Layer):
        """Multiplies by 2 and claims a slope."""

        def __init__(self, slope, **options):
            super().__init__(**options)
            self.slope = slope

        def get_config(self):
            return {**super().get_config(), "slope": self.slope}

        def call(self, x):
            @tf.custom_gradient
            def double(x):
                return 2 * x, lambda upstream: self.slope * upstream

            return double(x)

    return Scaling


@pytest.mark.parametrize(("slope", "right"), [(2.0, True), (2.05, False), (1.0, False), (0, False)])
def test_a_wrong_slope_is_found_and_a_right_one_passes(slope, right, images, targets):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((60,))
    x = keras.layers.Dense(8, activation="relu")(inputs)
    x = scaling_layer()(slope)(x)
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(x))
    rng = np.random.default_rng(0)
    error, kinks = gradient_error(
        model, cross_entropy, images[:3].reshape(3, -1), targets[4:7], rng
    )
    check = check_gradient(error, kinks)
    assert (check.passed, kinks < 5) == (right, True)
    if right:
        assert error < 1e-4  # float64 leaves a wide margin
    else:
        assert error == pytest.approx(abs(slope - 2) / 2, rel=0.05)


@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_of_a_whole_network_passes(seed, model, images, targets):
    rng = np.random.default_rng(seed)
    error, kinks = gradient_error(model, cross_entropy, images[3:6], targets[3:6], rng, 30)
    assert error < 1e-3
    assert kinks < 5


def test_the_gradient_is_taken_where_the_network_stands(model, images, targets):
    """Of the copy in float64 the loss must be that of the network, normalisation included."""
    seen = []

    def remember(targets, logits):
        seen.append(logits)
        return import_tensorflow().reduce_mean(logits[:, 0] * 0) + cross_entropy(targets, logits)

    tf = import_tensorflow()
    tf.config.run_functions_eagerly(True)
    try:
        gradient_error(model, remember, images[:2], targets[:2], np.random.default_rng(0), 1)
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen[0].dtype == tf.float64
    np.testing.assert_allclose(seen[0], model(images[:2]), rtol=1e-4, atol=1e-5)


def test_entries_at_a_kink_are_left_out_and_counted():
    keras = import_keras()
    inputs = keras.Input((2,))
    dense = keras.layers.Dense(2, activation="relu")
    model = keras.Model(inputs, dense(inputs))
    dense.set_weights([np.eye(2), np.zeros(2)])
    images = np.array([[0.0, 1.0]], np.float32)  # the first ReLU stands on its kink
    targets = np.array([1], np.int32)

    def of_bias(bias):
        dense.bias.assign(bias)
        rng = np.random.default_rng(0)
        return gradient_error(model, cross_entropy, images, targets, rng, num_entries=40)

    error, kinks = of_bias([0.0, 0.0])
    assert 0 < kinks < 40
    assert error < 1e-6
    assert of_bias([0.5, 0.0])[1] == 0
    # Without two one-sided differences the kink would be taken for a wrong gradient.
    dense.kernel.trainable = False
    dense.bias.assign([0.0, -1.0])
    error, kinks = gradient_error(
        model, cross_entropy, images, targets, np.random.default_rng(0), num_entries=10
    )
    assert (math.isnan(error), kinks) == (True, 10)
    assert not check_gradient(error, kinks).passed


def test_a_loss_that_is_not_finite_fails_the_gradient_check(images, targets):
    def undefined(targets, logits):
        return cross_entropy(targets, logits) * math.nan

    flat = images[:2].reshape(2, -1)
    found = gradient_error(build_dense(60), undefined, flat, targets[:2], np.random.default_rng(0))
    assert (math.isnan(found[0]), found[1]) == (True, 0)
    assert not check_gradient(*found).passed


def test_biases_of_minus_hundred_kill_relus(images):
    model = build_dense(60, units=4, num_layers=2)
    flat = images.reshape(12, -1)
    kernel, _ = model.get_layer("hidden_1").get_weights()
    model.get_layer("hidden_1").set_weights([kernel, np.array([9.0, 9.0, 9.0, -100.0])])
    shares = dead_relu_shares(model, flat)
    assert list(shares) == ["hidden_1", "hidden_2"]
    assert shares["hidden_1"] == 0.25
    model.get_layer("hidden_1").set_weights([kernel, np.full(4, -100.0)])
    shares = dead_relu_shares(model, flat)
    assert shares["hidden_1"] == 1.0
    check = check_dead_relus(shares)
    assert not check.passed
    assert "hidden_1" in check.advice


def test_a_channel_is_one_unit_and_every_image_counts():
    keras = import_keras()
    inputs = keras.Input((1, 70, 1))
    conv = keras.layers.Conv2D(3, 1, name="conv")
    x = keras.layers.Activation("relu", name="named")(conv(inputs))
    leaky = keras.layers.ReLU(negative_slope=0.1, name="leaky")(x)
    capped = keras.layers.ReLU(max_value=6, name="capped")(leaky)
    swish = keras.layers.Activation("swish", name="swish")(capped)
    model = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(swish))
    conv.set_weights([np.array([1.0, -1.0, 0.0]).reshape(1, 1, 1, 3), np.array([0.0, 0.0, -1.0])])
    images = np.zeros((40, 1, 70, 1), np.float32)
    images[0, 0, 3] = 1  # wakes channel 0 in the first batch, at one place of one image
    images[39, 0, 69] = -1  # and channel 1 in the last
    third = pytest.approx(1 / 3)
    assert dead_relu_shares(model, images) == {"named": third, "capped": third}
    assert dead_relu_shares(model, images[:39])["named"] == pytest.approx(2 / 3)


def test_activation_statistics_equal_numpy(model):
    images = np.random.default_rng(3).normal(5, 2, (70, *SIZE, 2)).astype(np.float32)
    means, stds = activation_statistics(model, images)
    assert list(means) == list(stds) == ["conv", "head"]
    keras = import_keras()
    probe = keras.Model(model.input, [model.get_layer(name).output for name in means])
    for name, output in zip(means, probe.predict(images, verbose=0), strict=True):
        assert means[name] == pytest.approx(output.mean(dtype=np.float64), rel=1e-4)
        assert stds[name] == pytest.approx(output.std(dtype=np.float64), rel=1e-4)


@pytest.mark.parametrize(
    ("std", "words"), [(0.01, "collapse in head"), (20.0, "explode in head"), (1e30, "explode")]
)
def test_a_deep_network_of_badly_scaled_weights_collapses_or_explodes(std, words, images):
    keras = import_keras()
    initial = keras.initializers.RandomNormal(stddev=std, seed=1)
    model = build_dense(60, 30, num_layers=3, kernel_initializer=initial)
    check = check_activations(*activation_statistics(model, images.reshape(12, -1)))
    assert not check.passed
    assert words in check.advice


def test_he_initialisation_keeps_the_activations(images):
    initial = import_keras().initializers.HeNormal(seed=1)
    model = build_dense(60, 30, num_layers=6, kernel_initializer=initial)
    check = check_activations(*activation_statistics(model, images.reshape(12, -1)))
    assert check.passed


def test_update_ratios_worked_out_by_hand():
    before = [np.array([[3.0, 4.0]], np.float32), np.ones((2, 2), np.float32)]
    after = [np.array([[3.0, 4.05]], np.float32), np.ones((2, 2), np.float32)]
    ratios = update_ratios(before, after, ["one", "two"])
    assert ratios == {"one": pytest.approx(0.01, rel=1e-4), "two": 0.0}
    zeros = np.zeros(2)
    assert math.isinf(update_ratios([zeros], [zeros + 1], ["x"])["x"])
    assert math.isnan(update_ratios([zeros], [zeros], ["x"])["x"])


@pytest.mark.parametrize(("learning_rate", "passed"), [(0.02, True), (1e-6, False), (99.0, False)])
def test_the_learning_rate_shows_in_the_update_ratios(learning_rate, passed, images, targets):
    model = build_dense(60)
    model.compile(import_keras().optimizers.SGD(learning_rate), cross_entropy, run_eagerly=True)
    before = kernels_of(model)
    model.train_on_batch(images.reshape(12, -1), targets)
    after = kernels_of(model)
    assert list(before) == list(after) == ["hidden_1/kernel", "head/kernel"]
    ratios = update_ratios([*before.values()], [*after.values()], [*before])
    assert check_update_ratios(ratios).passed == passed


@pytest.mark.parametrize(
    ("before", "after", "names"),
    [
        ([np.ones(2)], [np.ones(3)], ["x"]),
        ([np.ones(2)], [], ["x"]),
        ([np.ones(2)], [np.ones(2)], []),
    ],
)
def test_kernels_that_do_not_belong_together(before, after, names):
    with pytest.raises(InputError, match="cannot be compared; give the same kernels"):
        update_ratios(before, after, names)


def test_bad_input(model, images, targets):
    with pytest.raises(InputError, match="there are 12 inputs and 11 targets; give one target"):
        initial_loss(model, cross_entropy, images, targets[:11])
    with pytest.raises(InputError, match="there are 0 inputs and 0 targets"):
        overfit_handful(model, cross_entropy, images[:0], targets[:0])
    keras = import_keras()
    headless = keras.Model(model.input, model.get_layer("relu").output)
    with pytest.raises(InputError, match=r"shape \(None, 4, 3, 8\), not \(n, num_classes\)"):
        initial_loss(headless, cross_entropy, images, targets)
    for num_train in (0, 12):
        with pytest.raises(InputError, match="must leave some of the 12 images to score"):
            shuffled_labels_accuracy(
                model, cross_entropy, images, targets, np.random.default_rng(), num_train
            )


def test_nothing_to_train(model, images, targets):
    model.trainable = False
    before = bits(model)
    with pytest.raises(InputError, match="every layer is frozen, so nothing can be learned"):
        overfit_handful(model, cross_entropy, images, targets)
    with pytest.raises(InputError, match="every layer is frozen"):
        gradient_error(model, cross_entropy, images, targets, np.random.default_rng(0))
    assert bits(model) == before


def test_a_loss_that_rounds_is_refused(model, images, targets):
    loss = import_keras().losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(InputError, match="loss of float64 logits has type float32, too coarse"):
        gradient_error(model, loss, images, targets, np.random.default_rng(0))


def test_nested_models_are_refused_where_layers_are_looked_into(model, images):
    keras = import_keras()
    inputs = keras.Input((*SIZE, 2))
    nested = keras.Model(inputs, model(inputs))
    with pytest.raises(InputError, match=r"the models \['functional\w*'\] are nested in the mod"):
        dead_relu_shares(nested, images)


def test_the_gradient_of_a_nested_model_passes(model, images, targets):
    keras = import_keras()
    inputs = keras.Input((*SIZE, 2))
    nested = keras.Model(inputs, model(inputs))
    rng = np.random.default_rng(0)
    error, _ = gradient_error(nested, cross_entropy, images[:2], targets[:2], rng)
    assert error < 1e-3
