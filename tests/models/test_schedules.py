import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.schedules import (
    SCHEDULES,
    best_epoch,
    plateau_factor,
    rate_factor,
    snapshot_epochs,
    stops_early,
)

NAN, INF = math.nan, math.inf
# The callbacks of Keras take a first loss for the lowest even when it is no number.
LOSSES = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, NAN]), max_size=25).map(
    lambda losses: [0.35, *losses]
)


def factors(schedule, epochs, steps_per_epoch, **settings):
    ends = [step / steps_per_epoch for step in range(1, epochs * steps_per_epoch + 1)]
    return [rate_factor(schedule, end, epochs, **settings) for end in ends]


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_constant_and_plateau_stay_at_one(schedule):
    assert factors(schedule, 3, 4) == [1.0] * 12


def test_step_is_divided_by_ten_behind_half_and_three_quarters():
    # He et al. drop after 32k and 48k of 64k steps: step 32k itself has the old rate.
    assert factors("step", 2, 4) == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    assert factors("step", 1, 2) == [1, 0.01]  # the second step ends behind both


def test_cosine_equals_the_one_of_keras():
    decay = import_keras().optimizers.schedules.CosineDecay(1.0, decay_steps=35)
    expected = [float(decay(step)) for step in range(1, 36)]
    found = factors("cosine", 7, 5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[-1] == 0


def test_cosine_by_hand():
    assert rate_factor("cosine", 1, 3) == pytest.approx(0.75)  # (1 + cos 60°) / 2
    assert rate_factor("cosine", 2, 3) == pytest.approx(0.25)


def test_cyclic_restarts_as_in_the_paper():
    # Equation 2 of the snapshot paper, whose step t starts where ours, t - 1, ends.
    steps, cycles, per_epoch = 60, 3, 5
    length = math.ceil(steps / cycles)
    paper = [(math.cos(math.pi * ((t - 1) % length) / length) + 1) / 2 for t in range(1, steps + 1)]
    found = factors("cyclic", steps // per_epoch, per_epoch, cycles=cycles)
    inside = [number for number in range(1, steps) if number % length]
    np.testing.assert_allclose([found[n - 1] for n in inside], [paper[n] for n in inside])
    assert [found[n - 1] for n in (20, 40, 60)] == [0, 0, 0]


def test_cycles_that_do_not_part_the_epochs_equally_still_end_at_zero():
    found = factors("cyclic", 10, 3, cycles=4)
    zeros = [position for position, factor in enumerate(found, 1) if factor == 0]
    assert zeros == [6, 15, 21, 30] == [3 * end for end in snapshot_epochs(10, 4)]
    restarts = [found[zero] for zero in zeros[:-1]]
    assert min(restarts) > 0.9


def test_one_cycle_is_the_cosine():
    found = factors("cyclic", 5, 4, cycles=1, warmup_epochs=1.5)
    assert found == factors("cosine", 5, 4, warmup_epochs=1.5)


def test_cycles_do_not_concern_other_schedules():
    assert factors("cosine", 4, 2, cycles=2) == factors("cosine", 4, 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_from_above_zero_to_the_full_rate(schedule):
    found = factors(schedule, 8, 4, warmup_epochs=2, cycles=2)
    np.testing.assert_allclose(found[:8], np.arange(1, 9) / 8)
    assert 0.9 < found[8] <= 1


def test_cosine_falls_from_the_end_of_the_warmup():
    without = factors("cosine", 6, 4)
    assert factors("cosine", 8, 4, warmup_epochs=2)[8:] == pytest.approx(without)


def test_warmup_shortens_the_first_cycle_only():
    found = factors("cyclic", 8, 4, warmup_epochs=2, cycles=2)
    assert found[8:16] == pytest.approx(factors("cosine", 2, 4))
    assert found[16:] == pytest.approx(factors("cosine", 4, 4))


def test_a_warmup_longer_than_half_meets_the_drop():
    assert rate_factor("step", 3, 4, warmup_epochs=3.5) == pytest.approx(3 / 3.5 / 10)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 12),
    st.integers(1, 7),
    st.integers(1, 12),
    st.floats(0, 0.99),
)
def test_factors_are_shares_and_never_rise_but_for_warmup_and_restarts(
    schedule, epochs, steps, cycles, share
):
    cycles = min(cycles, epochs)
    first_end = snapshot_epochs(epochs, cycles)[0]
    warmup = share * first_end
    found = np.array(factors(schedule, epochs, steps, warmup_epochs=warmup, cycles=cycles))
    assert ((found >= 0) & (found <= 1)).all()
    ends = np.arange(1, epochs * steps + 1) / steps
    restarts = {"cyclic": snapshot_epochs(epochs, cycles), "cosine": (epochs,)}.get(schedule, ())
    assert (found == 0).tolist() == np.isin(ends, restarts).tolist()
    befores = ends[:-1][np.diff(found) > 1e-12]
    assert all(before < warmup or before in restarts for before in befores)


def test_unknown_schedule():
    with pytest.raises(InputError, match=r"unknown schedule 'cosin'; did you mean 'cosine'\?"):
        rate_factor("cosin", 1, 2)


@pytest.mark.parametrize("epoch", [0, -1, 4.1, NAN])
def test_a_step_outside_of_the_training(epoch):
    with pytest.raises(InputError, match=rf"cannot end at epoch {epoch} of 4; give the end"):
        rate_factor("constant", epoch, 4)


@pytest.mark.parametrize(
    ("warmup", "cycles", "end"), [(-1, 1, 4), (4, 1, 4), (2, 2, 2), (NAN, 1, 4)]
)
def test_a_warmup_that_does_not_fit(warmup, cycles, end):
    message = rf"warmup_epochs must be at least 0 and below {end}, .* not {warmup}; shorten"
    with pytest.raises(InputError, match=message):
        rate_factor("cyclic", 1, 4, warmup, cycles)


def test_snapshot_epochs_by_hand():
    assert snapshot_epochs(12, 3) == (4, 8, 12)
    assert snapshot_epochs(7, 3) == (2, 4, 7)
    assert snapshot_epochs(3, 3) == (1, 2, 3)
    assert snapshot_epochs(5, 1) == (5,)


@given(st.integers(1, 60), st.integers(1, 60))
def test_cycles_have_nearly_equal_lengths(epochs, cycles):
    if cycles > epochs:
        with pytest.raises(InputError, match=f"{epochs} epochs cannot be parted into {cycles} "):
            snapshot_epochs(epochs, cycles)
        return
    ends = snapshot_epochs(epochs, cycles)
    lengths = np.diff((0, *ends))
    assert (len(ends), ends[-1]) == (cycles, epochs)
    assert set(lengths) <= {epochs // cycles, -(-epochs // cycles)}


def test_no_epochs_and_no_cycles():
    with pytest.raises(InputError, match="epochs must be at least 1, not 0"):
        snapshot_epochs(0, 1)
    with pytest.raises(InputError, match="4 epochs cannot be parted into 0 cycles; choose from 1"):
        snapshot_epochs(4, 0)


def test_plateau_drops_and_counts_again():
    losses = [0.9, 0.5, 0.6, 0.5, 0.7, 0.6, 0.4, 0.5, 0.4]
    found = [plateau_factor(losses[:end], patience=2) for end in range(len(losses) + 1)]
    expected = [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]
    np.testing.assert_allclose(found, expected)


def test_plateau_with_losses_that_are_no_numbers():
    assert plateau_factor([NAN, NAN], patience=2) == 0.1
    assert plateau_factor([NAN, 0.5, NAN, -INF, 0.4], patience=3) == 1


@given(LOSSES, st.integers(1, 4))
def test_plateau_equals_the_callback_of_keras(losses, patience):
    keras = import_keras()
    model = keras.Sequential()
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    callback = keras.callbacks.ReduceLROnPlateau(
        factor=0.5, patience=patience, min_delta=0, mode="min"
    )
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
    expected = float(model.optimizer.learning_rate.numpy())
    assert plateau_factor(losses, patience, factor=0.5) == expected


@given(LOSSES, st.integers(1, 4))
def test_early_stopping_equals_the_callback_of_keras(losses, patience):
    # The callback never stops after its first epoch, so it is asked from the second on.
    keras = import_keras()
    model = keras.Sequential()
    callback = keras.callbacks.EarlyStopping(patience=patience, mode="min")
    callback.set_model(model)
    model.stop_training = False
    callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        callback.on_epoch_end(epoch, {"val_loss": loss})
        if epoch:
            assert stops_early(losses[: epoch + 1], patience) == model.stop_training
        if model.stop_training:
            break


def test_early_stopping_by_hand():
    losses = [0.9, 0.5, 0.5, 0.6, 0.4]
    found = [stops_early(losses[:end], 2) for end in range(len(losses) + 1)]
    assert found == [False, False, False, False, True, False]
    assert stops_early([NAN], 1)
    assert not stops_early([], 1)
    assert not stops_early([NAN, 0.5, NAN], 2)


def test_best_epoch_is_the_first_of_equals_and_a_number():
    assert best_epoch([0.5, 0.3, 0.4, 0.3]) == 1
    assert best_epoch([NAN, INF, -INF, 2.0, NAN]) == 3


@pytest.mark.parametrize("losses", [[], [NAN, INF]])
def test_no_epoch_is_the_best(losses):
    with pytest.raises(InputError, match=f"none of {len(losses)} validation losses .* train with"):
        best_epoch(losses)


@pytest.mark.parametrize("function", [plateau_factor, stops_early])
def test_patience_out_of_range(function):
    with pytest.raises(InputError, match="patience must be at least 1 epoch, not 0"):
        function([0.5], 0)


@pytest.mark.parametrize("factor", [0, 1, 10, NAN])
def test_factor_out_of_range(factor):
    with pytest.raises(InputError, match=f"factor must be between 0 and 1, not {factor}"):
        plateau_factor([0.5], factor=factor)
