"""Half precision in training; what comes out of it is float32."""

import numpy as np
import pytest

from cvpipe.contender_sections import TrainingSection
from cvpipe.models import mixed_precision
from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.heads import initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.mixed_precision import LossScale, half_precision_twin
from cvpipe.models.training import DivergedError, Group, train
from cvpipe.models.transfer import attach_trainable_head, part_network, unfreeze
from tests.models.test_training import ArrayFeed, make_data, make_network, weights_of

LITE0 = BackboneSpec("efficientnet_lite0", image_size=(64, 64))


@pytest.fixture(scope="module")
def whole():
    return attach_trainable_head(
        build_backbone(LITE0), *initial_head(1280, 3, 0), dropout=0.2, seed=0
    )


def test_all_but_grey_levels_and_the_head_is_computed_in_half_precision(whole):
    twin = half_precision_twin(whole)
    kinds = {layer.name: layer.compute_dtype for layer in twin.layers if layer.weights}
    assert kinds.pop("head") == "float32"
    assert set(kinds.values()) == {"float16"}
    scaling = [layer for layer in twin.layers if isinstance(layer, import_keras().layers.Rescaling)]
    assert scaling
    assert all(layer.compute_dtype == "float32" for layer in scaling)
    assert {variable.dtype for variable in twin.weights} == {"float32"}


def test_a_twin_gives_what_the_network_gives_as_far_as_16_bits_tell(whole):
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    exact = whole(images, training=False).numpy()
    rounded = half_precision_twin(whole)(images, training=False).numpy()
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.02 * np.abs(exact).max())


def test_a_twin_has_weights_of_its_own_and_learns_what_the_network_learns(whole):
    _, tail = part_network(LITE0, whole, "block_15")
    learning = {layer.name for layer in unfreeze(tail, norms=False)}
    twin = half_precision_twin(tail)
    assert {v.path for v in twin.trainable_variables} == {v.path for v in tail.trainable_variables}
    assert {layer.name for layer in twin.layers if layer.trainable_weights} == learning
    before = weights_of(tail)
    twin.get_layer("head").bias.assign([1.0, 2.0, 3.0])
    assert all(np.array_equal(a, b) for a, b in zip(before, weights_of(tail), strict=True))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lenet5", 28),  # computes with copies of the statistics of its images
        ("cifar_resnet", 32),
        ("efficientnet_b0", 64),  # the same
        ("mobilenet_v3_small", 64),  # has plain operations between its layers
        pytest.param("resnet50", 64, marks=pytest.mark.slow),  # and in its preprocessing
        pytest.param("convnext_tiny", 64, marks=pytest.mark.slow),  # has networks in it
        pytest.param("nasnet_mobile", 224, marks=pytest.mark.slow),
    ],
)
def test_networks_of_all_kinds_have_twins(name, size):
    statistics = {"channel_mean": np.float32([120, 90, 60]), "channel_std": np.float32([9, 7, 5])}
    facts = {} if BACKBONES[name].preprocessing else {"statistics": statistics}
    spec = BackboneSpec(name, weights="none", image_size=(size, size))
    backbone = build_backbone(spec, seed=0, **facts)
    head = initial_head(backbone.output_shape[-1], 3, seed=0)
    network = attach_trainable_head(backbone, 1000 * head[0], head[1], dropout=0.2, seed=0)
    images = np.random.default_rng(0).integers(60, 120, (4, size, size, 3), dtype=np.uint8)
    exact = network(images, training=False).numpy()
    rounded = half_precision_twin(network)(images, training=False).numpy()
    assert np.abs(exact).max() > 0
    np.testing.assert_allclose(exact, rounded, atol=0.03 * np.abs(exact).max())


def step_of(scale, variable):
    """Make a step of plain gradient descent, whose gradient is what it is given."""
    tensorflow = import_tensorflow()

    @tensorflow.function
    def step(gradient):
        scale.apply([gradient * scale.scale], lambda gradients: variable.assign_sub(gradients[0]))

    return step


def test_the_scale_is_undone_and_an_overflow_leaves_the_step_out():
    scale, variable = LossScale(), import_tensorflow().Variable([1.0, 2.0])
    step = step_of(scale, variable)
    step(np.float32([0.25, 0.5]))
    np.testing.assert_array_equal(variable.numpy(), [0.75, 1.5])
    for wrong in (np.inf, np.nan):
        step(np.float32([0.25, wrong]))
    np.testing.assert_array_equal(variable.numpy(), [0.75, 1.5])
    assert scale.scale.numpy() == 2.0**13
    assert scale.good_steps.numpy() == 0


def test_the_scale_grows_when_all_went_well_for_long(monkeypatch):
    monkeypatch.setattr(mixed_precision, "STEPS_TO_GROW", 3)
    scale, variable = LossScale(), import_tensorflow().Variable([1.0])
    step, scales = step_of(scale, variable), []
    for gradient in (0.0, 0.0, 0.0, 0.0, np.inf, 0.0, 0.0, 0.0):
        step(np.float32([gradient]))
        scales.append(scale.scale.numpy() / 2.0**15)
    assert scales == [1, 1, 2, 2, 1, 1, 1, 2]


def test_a_scale_grows_no_further_than_can_be_halved_again(monkeypatch):
    monkeypatch.setattr(mixed_precision, "STEPS_TO_GROW", 1)
    scale, variable = LossScale(), import_tensorflow().Variable([1.0])
    step = step_of(scale, variable)
    for _ in range(15):
        step(np.float32([0.0]))
    assert scale.scale.numpy() == 2.0**24


def test_gradients_that_always_overflow_stop_the_training():
    network = make_network()
    layers = [layer for layer in network.layers if layer.weights]
    settings = TrainingSection(epochs=4, dropout=0.0, mixed_precision=True)

    def loss(targets, logits):
        """A finite loss with a gradient that is no number."""
        ops = import_keras().ops
        return 1.0 + ops.sum(ops.sqrt(0.0 * logits))

    with pytest.raises(DivergedError, match=r"or leave out training\.mixed_precision"):
        train(network, [Group(layers, 1.0)], loss, ArrayFeed(*make_data()), settings)


def test_a_skipped_step_is_not_measured():
    """The first gradients overflow, so that steps are left out; the ratio is of another one."""
    network = make_network()
    layers = [layer for layer in network.layers if layer.weights]
    settings = TrainingSection(epochs=1, warmup_epochs=0.0, dropout=0.0, mixed_precision=True)
    cross_entropy = build_loss("cross_entropy", 3)

    def loss(targets, logits):
        return 3e3 * cross_entropy(targets, logits)

    feed = ArrayFeed(*make_data(64), batch_size=2)
    state = train(network, [Group(layers, 1.0)], loss, feed, settings)
    assert state.history[0].update_ratio > 0


def test_tiny_gradients_survive_by_the_scale():
    """1e-9 is nothing in half precision; times 2^15 it is something."""
    keras, tensorflow = import_keras(), import_tensorflow()
    inputs = keras.Input((1,))
    layer = keras.layers.Dense(1, use_bias=False, name="hidden")
    network = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, name="head")(layer(inputs)))
    network.set_weights([np.ones((1, 1)), np.ones((1, 1))])
    twin, scale = half_precision_twin(network), LossScale()
    variable = twin.get_layer("hidden").kernel

    def gradient_with(scaled):
        with tensorflow.GradientTape() as tape:
            value = scaled(tensorflow.reduce_sum(twin(np.float32([[1e-4]]))) * 1e-5)
        return float(tape.gradient(value, variable.value)[0, 0])

    assert gradient_with(lambda loss: loss) == 0.0
    assert gradient_with(scale.scaled) / 2.0**15 == pytest.approx(1e-9, rel=0.01)


def fit(mixed_precision, **options):
    network = make_network()
    groups = [Group([layer for layer in network.layers if layer.weights], 1.0)]
    settings = TrainingSection(
        epochs=4, warmup_epochs=0.5, dropout=0.0, mixed_precision=mixed_precision
    )
    loss = build_loss("cross_entropy", 3)
    state = train(network, groups, loss, ArrayFeed(*make_data()), settings, **options)
    return network, state


def test_the_network_itself_learns_nearly_the_same_in_float32():
    seen = []
    exact, of_exact = fit(False)
    mixed, of_mixed = fit(True, progress=seen.append)
    losses = [[row.train_loss for row in state.history] for state in (of_exact, of_mixed)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert {layer.compute_dtype for layer in mixed.layers} == {"float32"}
    for name in ("hidden", "head"):  # a bias that is normalised away has no gradient but noise
        one, other = (n.get_layer(name).kernel.numpy() for n in (exact, mixed))
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(one).max())
    assert len(seen) == 4


def test_validation_sees_the_weights_of_its_epoch():
    network = make_network()
    groups = [Group([layer for layer in network.layers if layer.weights], 1.0)]
    settings = TrainingSection(epochs=3, warmup_epochs=0.0, dropout=0.0, mixed_precision=True)
    seen = []

    def validate():
        seen.append(network.get_layer("head").kernel.numpy())
        return 1.0 / len(seen), 0.5

    loss = build_loss("cross_entropy", 3)
    train(network, groups, loss, ArrayFeed(*make_data()), settings, validate=validate)
    assert len({array.tobytes() for array in seen}) == 3
    np.testing.assert_array_equal(network.get_layer("head").kernel.numpy(), seen[-1])
