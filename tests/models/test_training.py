import copy

import numpy as np
import pytest

from cvpipe.contender_sections import TrainingSection
from cvpipe.models import training
from cvpipe.models.checks import check_update_ratios, check_weight_decay
from cvpipe.models.framework import import_keras
from cvpipe.models.losses import build_loss
from cvpipe.models.rate_range import suggest_rate
from cvpipe.models.training import (
    DivergedError,
    EpochFacts,
    Group,
    build_optimizer,
    decay_of_a_step,
    plateau_drop,
    train,
    try_rates,
    variables_of,
)

CLASSES = 3


def make_network(dropout=0.0, seed=0):
    keras = import_keras()
    rng = np.random.default_rng(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(16, name="hidden")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, seed=seed)(x)
    network = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    for variable in network.trainable_variables:
        if "kernel" in variable.name:
            variable.assign(rng.normal(0, 0.3, variable.shape))
    return network


def make_data(n=90, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.resize(np.arange(CLASSES, dtype=np.int32), n)
    centres = rng.normal(0, 2, (CLASSES, 6))
    return (centres[targets] + rng.normal(0, 1, (n, 6))).astype(np.float32), targets


class ArrayFeed:
    """Batches of an array, in an order of the epoch's number; it can fail at a step."""

    def __init__(self, inputs, targets, batch_size=16, fail_at=None):
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.fail_at, self.given = fail_at, 0

    @property
    def steps_per_epoch(self):
        return -(-len(self.inputs) // self.batch_size)

    def epoch(self, number):
        order = np.random.default_rng([7, number]).permutation(len(self.inputs))
        for start in range(0, len(order), self.batch_size):
            if self.given == self.fail_at:
                raise KeyboardInterrupt
            self.given += 1
            some = order[start : start + self.batch_size]
            yield self.inputs[some], self.targets[some]


def fit(network, settings, feed=None, groups=None, **options):
    feed = feed or ArrayFeed(*make_data())
    groups = groups or [Group([layer for layer in network.layers if layer.weights], 1.0)]
    return train(network, groups, build_loss("cross_entropy", CLASSES), feed, settings, **options)


def weights_of(network):
    return [variable.numpy() for variable in network.variables]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def settings_of(**given):
    return TrainingSection(**{"epochs": 4, "warmup_epochs": 0.5, "dropout": 0.0, **given})


# --- what one step does -----------------------------------------------------------------


def test_one_step_of_momentum_sgd_by_hand():
    keras = import_keras()
    inputs = keras.Input((2,))
    network = keras.Model(inputs, keras.layers.Dense(2, name="head")(inputs))
    kernel = np.array([[0.5, -0.5], [0.25, 0.75]], dtype=np.float32)
    network.get_layer("head").set_weights([kernel, np.zeros(2, np.float32)])
    x = np.array([[1.0, 2.0]], dtype=np.float32)
    settings = settings_of(
        epochs=1, optimizer="sgd", schedule="constant", warmup_epochs=0.0, learning_rate=0.1,
        weight_decay=0.01,
    )  # fmt: skip
    feed = ArrayFeed(x, np.array([1], dtype=np.int32))
    state = train(
        network, [Group(network.layers[1:], 1.0)], build_loss("cross_entropy", 2), feed, settings
    )
    logits = (x @ kernel)[0]  # 1.0 and 1.0
    probabilities = np.exp(logits) / np.exp(logits).sum()
    slope = probabilities - np.array([0, 1])
    decayed = kernel * (1 - 0.1 * 0.01)  # by the learning rate times the decay, kernels alone
    new_kernel, new_bias = network.get_layer("head").get_weights()
    np.testing.assert_allclose(new_kernel, decayed - 0.1 * np.outer(x[0], slope), atol=1e-6)
    np.testing.assert_allclose(new_bias, -0.1 * slope, atol=1e-6)
    assert state.history[0].train_loss == pytest.approx(np.log(2), abs=1e-6)
    moved = np.linalg.norm(new_kernel - kernel) / np.linalg.norm(kernel)
    assert state.history[0].update_ratio == pytest.approx(moved, rel=1e-4)


def test_groups_learn_at_their_own_rates():
    settings = settings_of(
        epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant"
    )
    moved = []
    for factor in (1.0, 0.1):
        network = make_network()
        network.get_layer("norm").trainable = False  # or the second step would differ by more
        hidden, head = network.get_layer("hidden"), network.get_layer("head")
        before = hidden.get_weights()[0], head.get_weights()[0]
        feed = ArrayFeed(*make_data(16), batch_size=16)
        fit(network, settings, feed, [Group([hidden], factor), Group([head], 1.0)])
        moved.append([hidden.get_weights()[0] - before[0], head.get_weights()[0] - before[1]])
    np.testing.assert_allclose(moved[1][0], 0.1 * moved[0][0], atol=1e-7)
    np.testing.assert_array_equal(moved[1][1], moved[0][1])
    assert np.abs(moved[0][0]).max() > 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "rmsprop", "adam", "adamw"])
def test_every_optimizer_learns(optimizer):
    network = make_network()
    state = fit(network, settings_of(epochs=8, optimizer=optimizer, learning_rate=0.01))
    losses = [row.train_loss for row in state.history]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_decay_spares_biases_and_normalisations(optimizer):
    network = make_network()
    group = Group([layer for layer in network.layers if layer.weights], 1.0)
    built = build_optimizer(settings_of(optimizer=optimizer, weight_decay=0.5), group)
    network.get_layer("hidden").bias.assign(np.ones(16))
    before = {v.path: v.numpy() for v in variables_of(group)}
    built.learning_rate.assign(0.1)
    built.apply([np.zeros(v.shape, np.float32) for v in variables_of(group)], variables_of(group))
    for variable in variables_of(group):
        shrunk = before[variable.path] * (1 - 0.1 * 0.5 * ("kernel" in variable.path))
        np.testing.assert_allclose(variable.numpy(), shrunk, atol=1e-6)


def test_what_is_frozen_stays_bit_for_bit():
    network = make_network()
    frozen = network.get_layer("norm")
    frozen.trainable = False
    before = [v.numpy() for v in frozen.variables]
    learning = [layer for layer in network.layers if layer.weights and layer is not frozen]
    fit(network, settings_of(), groups=[Group(learning, 1.0)])
    assert same(before, [v.numpy() for v in frozen.variables])
    assert len(before) == 4


def test_a_normalisation_that_learns_moves_its_averages():
    network = make_network()
    before = network.get_layer("norm").moving_mean.numpy()
    fit(network, settings_of())
    assert not np.array_equal(network.get_layer("norm").moving_mean.numpy(), before)


def test_the_rate_follows_the_schedule():
    state = fit(make_network(), settings_of(epochs=4, warmup_epochs=1.0, learning_rate=0.01))
    rates = [row.learning_rate for row in state.history]
    thirds = [0.5 * (1 + np.cos(np.pi * epoch / 3)) for epoch in (0, 1, 2, 3)]
    np.testing.assert_allclose(rates, [0.01 * factor for factor in thirds], atol=1e-9)


def test_a_plateau_lowers_the_rate_by_the_loss_in_training_alone():
    """So that a fit with nothing to stop by sees the same rates."""
    settings = settings_of(schedule="plateau")
    for val_losses in (range(20, 0, -1), [float("nan")] * 20):
        rows = [EpochFacts(1, 0.1, 1.0, 0.5, float(loss), 0.5, 1e-3) for loss in val_losses]
        # The first loss is the best; five epochs without a better one bring a tenth.
        drops = [plateau_drop(settings, rows[:number]) for number in (0, 5, 6, 10, 11)]
        assert drops == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert plateau_drop(settings_of(schedule="cosine"), rows) == 1


def test_a_plateau_reaches_the_optimiser(monkeypatch):
    monkeypatch.setattr(training, "plateau_factor", lambda losses: 0.5 ** len(losses))
    state = fit(make_network(), settings_of(schedule="plateau", learning_rate=0.01))
    rates = [row.learning_rate for row in state.history]
    np.testing.assert_allclose(rates, [0.01, 0.005, 0.0025, 0.00125])


def test_weight_decay_of_the_trainer_is_what_was_asked_for():
    network = make_network()
    before = weights_of(network)
    groups = [Group([layer for layer in network.layers if layer.weights], 1.0)]
    for optimizer in ("sgd", "nesterov", "rmsprop", "adam", "adamw"):
        found = decay_of_a_step(network, groups, settings_of(optimizer=optimizer))
        assert check_weight_decay(*found).passed
    assert same(weights_of(network), before)


# --- which weights are kept -------------------------------------------------------------


def test_the_best_epoch_on_val_is_kept_and_training_stops():
    seen = []
    network = make_network()
    losses = iter([0.9, 0.5, 0.7, 0.6, 0.8, 0.1])

    def validate():
        seen.append(weights_of(network))
        return next(losses), 0.5

    state = fit(network, settings_of(epochs=6, patience=3), validate=validate)
    assert [row.epoch for row in state.history] == [1, 2, 3, 4, 5]
    assert state.kept == 2
    assert same(weights_of(network), seen[1])
    assert not same(seen[1], seen[4])


def test_without_val_the_last_epoch_is_kept_and_can_be_named():
    longer, shorter = make_network(), make_network()
    state = fit(longer, settings_of(epochs=4), last_epoch=2)
    assert [row.epoch for row in state.history] == [1, 2]
    # The schedule is that of four epochs all the same.
    assert state.history[1].learning_rate > 0.4 * 1e-3
    state = fit(shorter, settings_of(epochs=2))
    assert state.history[1].learning_rate == 0
    assert not same(weights_of(longer), weights_of(shorter))


def test_snapshots_are_the_ends_of_cycles():
    network = make_network()
    seen = []

    def validate():
        seen.append(weights_of(network))
        return 1.0, 0.5

    settings = settings_of(epochs=6, schedule="cyclic", cycles=3, patience=10)
    state = fit(network, settings, validate=validate)
    assert len(state.snapshots) == 3
    for snapshot, epoch in zip(state.snapshots, (2, 4, 6), strict=True):
        assert same(snapshot, seen[epoch - 1])


def test_a_moving_average_of_the_weights_by_hand():
    """A step of SGD at a time, averaged beside it; val sees the average, the steps do not."""
    plain, averaged = make_network(), make_network()
    common = {"optimizer": "sgd", "schedule": "constant", "warmup_epochs": 0.0, "epochs": 2}
    kernel = plain.get_layer("head").kernel
    history, seen = [], []

    class Watched(ArrayFeed):
        def epoch(self, number):
            for batch in super().epoch(number):
                yield batch
                history.append(kernel.numpy())

    fit(plain, settings_of(**common), Watched(*make_data()))
    expected = history[0]
    for value in history[1:]:
        expected = 0.8 * expected + 0.2 * value

    def validate():
        seen.append(averaged.get_layer("head").kernel.numpy())
        return 1.0, 0.5

    settings = settings_of(**common, averaging="ema", ema_decay=0.8, early_stopping=False)
    state = fit(averaged, settings, validate=validate)
    np.testing.assert_allclose(averaged.get_layer("head").kernel.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(seen[-1], averaged.get_layer("head").kernel.numpy())
    assert same(state.best, weights_of(averaged))
    assert not np.allclose(history[-1], expected, atol=1e-4)


# --- determinism and resuming -----------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_two_trainings_are_equal_to_the_bit(optimizer):
    settings = settings_of(optimizer=optimizer, dropout=0.5)
    networks = [make_network(dropout=0.5) for _ in range(2)]
    states = [fit(network, settings) for network in networks]
    assert same(*map(weights_of, networks))
    assert str(states[0].history) == str(states[1].history)


@pytest.mark.parametrize(
    ("fail_at", "mixed", "averaging"),
    [
        *((0, False, "none"), (3, False, "ema"), (6, False, "none"), (7, True, "none")),
        *((13, False, "ema"), (19, True, "ema"), (23, True, "none")),
    ],
)
def test_a_training_that_was_interrupted_goes_on_to_the_same_bits(
    fail_at, mixed, averaging, tmp_path
):
    settings = settings_of(
        epochs=4,
        dropout=0.5,
        optimizer="adamw",
        schedule="cyclic",
        cycles=2,
        patience=10,
        mixed_precision=mixed,
        averaging=averaging,
    )
    inputs, targets = make_data()
    held_out = make_data(30, seed=1)

    def start(feed):
        network = make_network(dropout=0.5)
        score = build_loss("cross_entropy", CLASSES)

        def validate():
            return float(score(held_out[1], network(held_out[0], training=False))), 0.5

        path = tmp_path / "training.npz"
        return network, fit(network, settings, feed, validate=validate, checkpoint=path)

    undisturbed, expected = start(ArrayFeed(inputs, targets))
    (tmp_path / "training.npz").unlink()
    with pytest.raises(KeyboardInterrupt):
        start(ArrayFeed(inputs, targets, fail_at=fail_at))
    feed = ArrayFeed(inputs, targets)
    resumed, state = start(feed)
    assert feed.given == 24 - fail_at // 6 * 6  # whole epochs are not done again
    assert same(weights_of(resumed), weights_of(undisturbed))
    assert str(state.history) == str(expected.history)
    assert state.step_losses == expected.step_losses
    assert state.update_ratios == expected.update_ratios
    assert all(same(a, b) for a, b in zip(state.snapshots, expected.snapshots, strict=True))


def test_a_finished_training_is_recalled(tmp_path):
    path = tmp_path / "training.npz"
    first = make_network()
    fit(first, settings_of(), checkpoint=path)
    again, feed = make_network(), ArrayFeed(*make_data())
    fit(again, settings_of(), feed, checkpoint=path)
    assert feed.given == 0
    assert same(weights_of(again), weights_of(first))


@pytest.mark.parametrize("change", ["settings", "images", "damaged", "other network"])
def test_a_checkpoint_of_another_training_is_not_gone_on_from(change, tmp_path):
    path = tmp_path / "training.npz"
    fit(make_network(), settings_of(), checkpoint=path, fingerprint="images")
    settings, fingerprint, network = settings_of(), "images", make_network()
    if change == "settings":
        settings = settings_of(learning_rate=0.02)
    elif change == "images":
        fingerprint = "others"
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        keras = import_keras()
        inputs = keras.Input((6,))
        network = keras.Model(inputs, keras.layers.Dense(CLASSES)(inputs))
    fresh = keras_copy(network)
    feed = ArrayFeed(*make_data())
    fit(network, settings, feed, checkpoint=path, fingerprint=fingerprint)
    assert feed.given == 24
    fit(fresh, settings, fingerprint=fingerprint)
    assert same(weights_of(network), weights_of(fresh))


def keras_copy(network):
    copied = import_keras().models.clone_model(network)
    for variable, original in zip(copied.variables, network.variables, strict=True):
        variable.assign(original.numpy())
    return copied


def test_a_checkpoint_holds_nothing_that_executes(tmp_path):
    path = tmp_path / "training.npz"
    fit(make_network(), settings_of(), checkpoint=path)
    with np.load(path, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


# --- what goes wrong --------------------------------------------------------------------


def test_an_exploding_loss_stops_training():
    settings = settings_of(
        optimizer="sgd", learning_rate=10.0, warmup_epochs=0.0, schedule="constant", epochs=40
    )
    network = make_network()
    with pytest.raises(
        DivergedError, match=r"training was stopped at step \d+: the loss .*example to 1\."
    ):
        fit(network, settings)


def test_a_loss_that_is_not_a_number_stops_training():
    inputs, targets = make_data()
    inputs[5] = np.nan
    with pytest.raises(DivergedError, match="the loss is not finite"):
        fit(make_network(), settings_of(), ArrayFeed(inputs, targets))


def test_a_converged_head_may_rise_to_the_loss_of_a_guess():
    settings = settings_of()
    low, guess = [0.01] * 10, [np.log(CLASSES)] * 10
    training.check_step(low + guess, settings, CLASSES)
    with pytest.raises(DivergedError):
        training.check_step(low + [4 * np.log(CLASSES)] * 10, settings, CLASSES)


def test_settings_are_not_changed():
    settings = settings_of()
    before = copy.deepcopy(settings)
    fit(make_network(), settings)
    assert settings == before


# --- trying rates, and stopping early or not --------------------------------------------


def test_rates_are_tried_until_the_loss_explodes_and_nothing_is_trained():
    network = make_network()
    before = weights_of(network)
    settings = settings_of(optimizer="sgd", momentum=0.0, weight_decay=0.0)
    loss = build_loss("cross_entropy", CLASSES)
    groups = [Group([layer for layer in network.layers if layer.weights], 1.0)]
    rates, losses = try_rates(network, groups, loss, ArrayFeed(*make_data()), settings)
    assert same(weights_of(network), before)
    assert len(rates) == len(losses) <= 100
    np.testing.assert_allclose(rates[:2], np.geomspace(1e-6, 10, 100)[:2])
    assert np.min(losses) < 0.7 * losses[0]
    assert 1e-3 < suggest_rate(rates, losses) < 3


def test_without_early_stopping_the_last_epoch_is_kept_and_none_is_left_out():
    network = make_network()
    seen, losses = [], iter([0.1, 0.5, 0.7, 0.6, 0.8, 0.9])

    def validate():
        seen.append(weights_of(network))
        return next(losses), 0.5

    settings = settings_of(epochs=6, early_stopping=False)
    state = fit(network, settings, validate=validate)
    assert [row.val_loss for row in state.history] == [0.1, 0.5, 0.7, 0.6, 0.8, 0.9]
    assert same(weights_of(network), seen[-1])
    assert state.kept == 6


def test_ratios_are_there_although_training_stopped_in_the_warm_up():
    losses = iter([0.1, 0.5, 0.7, 0.6])
    settings = settings_of(epochs=8, warmup_epochs=5.0, patience=2)
    state = fit(make_network(), settings, validate=lambda: (next(losses), 0.5))
    assert len(state.history) == 3
    assert check_update_ratios(state.update_ratios).passed
