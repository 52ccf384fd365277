"""A twin of a network that trains faster computes what the network computes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cvpipe.contender_sections import TrainingSection
from cvpipe.models import fast_steps, training
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.fast_steps import (
    fast_twin,
    filter_gradient,
    folded_convolution,
    padding_of,
)
from cvpipe.models.folding import norms_to_fold
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.graphs import calls_of
from cvpipe.models.heads import initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.training import compile_step
from cvpipe.models.transfer import attach_trainable_head, learning_groups, part_network, unfreeze

LITE0 = BackboneSpec("efficientnet_lite0", image_size=(96, 96))


def whole_network(spec=LITE0, dropout=0.2):
    backbone = build_backbone(spec)
    shape = backbone.output_shape[-1], 3
    return attach_trainable_head(backbone, *initial_head(*shape, seed=0), dropout=dropout, seed=0)


def gradients_of(network, variables, inputs, targets):
    tensorflow, loss = import_tensorflow(), build_loss("cross_entropy", 3)
    with tensorflow.GradientTape() as tape:
        value = loss(targets, network(inputs, training=False))
    return [g.numpy() for g in tape.gradient(value, [v.value for v in variables])]


def assert_close(one, other, share=2e-4):
    """Differences are small beside the largest number; a sum of thousands is rounded."""
    np.testing.assert_allclose(one, other, atol=share * max(np.abs(other).max(), 1e-12), rtol=0)


# --- the gradient of a depthwise filter -------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(4, 9)),
    st.tuples(st.integers(1, 7), st.integers(4, 7)),
    st.integers(1, 3),
    st.sampled_from(["SAME", "VALID"]),
    st.integers(1, 2),
)
def test_a_filter_gradient_in_parts_is_right(size, kernel, stride, padding, multiplier):
    assume(kernel[1] <= size[1])
    assume(padding == "SAME" or kernel[0] <= size[0])
    tensorflow, rng = import_tensorflow(), np.random.default_rng(0)
    images = rng.normal(size=(2, *size, 3)).astype(np.float32)
    weights = tensorflow.constant(rng.normal(size=(*kernel, 3, multiplier)), tensorflow.float32)
    strides = [1, stride, stride, 1]
    with tensorflow.GradientTape() as tape:
        tape.watch(weights)
        answer = tensorflow.nn.depthwise_conv2d(images, weights, strides, padding)
        above = rng.normal(size=answer.shape).astype(np.float32)
        value = tensorflow.reduce_sum(answer * above)
    expected = tape.gradient(value, weights).numpy()
    mine = filter_gradient(
        tensorflow.constant(images), tensorflow.constant(above), weights.shape, stride, padding
    )
    assert_close(mine.numpy(), expected, 1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (14, 5, 1, (2, 2)),
        (14, 5, 2, (1, 2)),
        (7, 3, 1, (1, 1)),
        (9, 1, 3, (0, 0)),
        (8, 4, 1, (1, 2)),
    ],
)
def test_zeros_around_an_image_by_hand(size, kernel, stride, expected):
    assert padding_of(size, kernel, stride, "SAME") == expected
    assert padding_of(size, kernel, stride, "VALID") == (0, 0)


# --- the twin ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "point", "size"),
    [
        ("efficientnet_lite0", "", 96),
        ("efficientnet_lite0", "block_05", 96),
        ("efficientnet_lite0", "block_15", 96),
        ("mobilenet", "", 64),
        ("mobilenet_v2", "", 64),
        ("efficientnet_b0", "", 64),
        pytest.param("densenet121", "", 64, marks=pytest.mark.slow),
        pytest.param("resnet50", "", 64, marks=pytest.mark.slow),
        pytest.param("nasnet_mobile", "", 224, marks=pytest.mark.slow),
    ],
)
def test_a_twin_gives_the_same_answers_and_gradients(name, point, size):
    own = name == "efficientnet_lite0"
    spec = BackboneSpec(name, weights="package" if own else "none", image_size=(size, size))
    network = whole_network(spec)
    rng = np.random.default_rng(0)
    for layer in network.layers:  # those of a new network normalise nothing
        if isinstance(layer, import_keras().layers.BatchNormalization):
            layer.trainable = False
            if not own:
                mean, variance = layer.moving_mean, layer.moving_variance
                mean.assign(rng.normal(0, 0.1, mean.shape))
                variance.assign(rng.uniform(0.5, 2.0, variance.shape))
    inputs = rng.integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    if point:
        trunk, network = part_network(spec, network, point)
        inputs = trunk(inputs).numpy()
    targets = np.array([0, 1, 2, 0], dtype=np.int32)
    unfreeze(network, norms=False)
    twin = fast_twin(network)
    assert norms_to_fold(network)
    assert_close(twin(inputs).numpy(), network(inputs).numpy())
    variables = network.trainable_variables
    expected = gradients_of(network, variables, inputs, targets)
    largest = max(np.linalg.norm(gradient) for gradient in expected)
    found = gradients_of(twin, variables, inputs, targets)
    for mine, theirs, variable in zip(found, expected, variables, strict=True):
        # Where rounding moves an activation across the kink of a ReLU, its gradient jumps.
        allowed = 0.02 * max(np.linalg.norm(theirs), 1e-5 * largest)
        assert np.linalg.norm(mine - theirs) <= allowed, variable.path


def test_all_normalisations_of_lite0_are_folded_and_wide_filters_found():
    network = whole_network()
    assert len(norms_to_fold(network)) == 49
    calls = calls_of(network).values()
    slow = [node.operation for node in calls if fast_steps.has_slow_gradient(node)]
    assert {layer.kernel_size for layer in slow} <= {(5, 5)}
    assert bool(slow) == (fast_steps.platform.machine() in fast_steps.X86)


def test_a_step_through_the_twin_changes_the_network_and_no_normalisation():
    network = whole_network()
    layers = unfreeze(network, norms=False)
    groups = learning_groups(layers, 0.1)
    options = TrainingSection()
    optimizers = [training.build_optimizer(options, group) for group in groups]
    step = compile_step(network, groups, optimizers, build_loss("cross_entropy", 3))
    before = {v.path: v.numpy() for v in network.variables}
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    step(images, np.array([0, 1, 2, 0], dtype=np.int32))
    moved = {v.path for v in network.variables if not np.array_equal(before[v.path], v.numpy())}
    learning = {v.path for v in network.trainable_variables}
    states = {v.path for v in network.variables if "seed" in v.path}
    assert moved - states == learning
    assert states <= moved  # dropout of the twin is the network's


def test_steps_go_through_the_twin(monkeypatch):
    """A patched twin guesses all classes alike, so that the loss of a step is known."""
    keras = import_keras()

    def ignorant(network):
        zeros = keras.layers.Lambda(lambda logits: 0 * logits)(network.output)
        return keras.Model(network.input, zeros)

    monkeypatch.setattr(training, "fast_twin", ignorant)
    network = whole_network()
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    network.get_layer("head").set_weights([np.ones((1280, 3)), np.array([9.0, 0.0, 0.0])])
    step = compile_step(network, [], [], build_loss("cross_entropy", 3))
    loss, _ = step(images, np.array([1, 2, 1, 2], dtype=np.int32))
    assert float(loss) == pytest.approx(np.log(3), abs=1e-6)


def test_a_step_in_training_gives_the_gradients_of_the_network_in_training():
    """With dropout of the same draw, and a batch whose size is not known beforehand."""
    tensorflow = import_tensorflow()
    network = whole_network(dropout=0.5)
    unfreeze(network, norms=False)
    twin = fast_twin(network)
    loss, variables = build_loss("cross_entropy", 3), network.trainable_variables
    (seed,) = (v for v in network.variables if "seed" in v.path)
    state = seed.numpy()

    def compiled(model):
        any_batch = tensorflow.TensorSpec((None, 96, 96, 3), tensorflow.uint8)
        any_targets = tensorflow.TensorSpec((None,), tensorflow.int32)

        @tensorflow.function(input_signature=(any_batch, any_targets))
        def gradients(images, targets):
            with tensorflow.GradientTape() as tape:
                value = loss(targets, model(images, training=True))
            return tape.gradient(value, [v.value for v in variables])

        return gradients

    images = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    targets = np.array([0, 1, 2], dtype=np.int32)
    found = []
    for model in (twin, network):
        seed.assign(state)
        found.append([g.numpy() for g in compiled(model)(images, targets)])
    largest = max(np.linalg.norm(gradient) for gradient in found[1])
    for mine, theirs in zip(*found, strict=True):
        allowed = 0.02 * max(np.linalg.norm(theirs), 1e-5 * largest)
        assert np.linalg.norm(mine - theirs) <= allowed


def small_network(**options):
    """Two convolutions, one of which is read twice; both are normalised."""
    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, name="alone", **options)(inputs)
    x = layers.BatchNormalization(name="norm_alone")(x)
    shared = layers.Conv2D(4, 3, padding="same", name="shared")(x)
    normed = layers.BatchNormalization(name="norm_shared")(shared)
    x = layers.Add()([shared, normed])
    x = layers.GlobalAveragePooling2D()(x)
    network = keras.Model(inputs, layers.Dense(3, name="head")(x))
    for name in ("norm_alone", "norm_shared"):
        network.get_layer(name).trainable = False
    return network


def test_what_others_read_is_not_folded():
    assert {n: m.name for n, m in norms_to_fold(small_network()).items()} == {"alone": "norm_alone"}


def odd_network(kind):
    """Graphs in which a convolution and a normalisation do not belong to each other alone."""
    keras = import_keras()
    layers = keras.layers
    inputs = keras.Input((12, 12, 12))
    one, two = (layers.Conv2D(12, 3, padding="same", name=name) for name in ("one", "two"))
    axis = 1 if kind == "another axis" else -1
    norm = layers.BatchNormalization(axis=axis, name="norm", trainable=False)
    if kind == "a norm of two convolutions":
        x = layers.Add()([norm(one(inputs)), norm(two(inputs))])
    elif kind == "a convolution called twice":
        x = norm(one(one(inputs)))
    else:
        x = norm(one(inputs))
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    "kind", ["a norm of two convolutions", "a convolution called twice", "another axis"]
)
def test_what_does_not_belong_to_each_other_alone_is_left_alone(kind):
    network, rng = odd_network(kind), np.random.default_rng(0)
    for variable in network.variables:
        variable.assign(rng.uniform(0.5, 2.0, variable.shape))
    images = rng.normal(size=(2, 12, 12, 12)).astype(np.float32)
    assert norms_to_fold(network) == {}
    assert_close(fast_twin(network)(images).numpy(), network(images).numpy())


def test_an_output_is_not_folded_in_a_part_of_a_network():
    keras = import_keras()
    network = small_network()
    middle = network.get_layer("alone").output
    part = keras.Model(keras.Model(network.input, network.outputs).input, [middle, network.output])
    assert norms_to_fold(part) == {}
    tail = keras.Model(network.get_layer("norm_alone").output, network.output)
    assert norms_to_fold(tail) == {}


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"dilation_rate": 2}])
def test_other_convolutions_are_left_alone(options):
    assert norms_to_fold(small_network(**options)) == {}


def test_a_normalisation_that_learns_is_left_alone():
    network = small_network()
    network.get_layer("norm_alone").trainable = True
    assert norms_to_fold(network) == {}
    assert fast_twin(network) is network


@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2D"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", [{}, {"scale": False}, {"center": False}, None])
def test_a_folded_convolution_by_its_two_layers(kind, bias, norm):
    keras, rng = import_keras(), np.random.default_rng(0)
    make = getattr(keras.layers, kind)
    size = {"filters": 4} if kind == "Conv2D" else {"depth_multiplier": 2}
    layer = make(kernel_size=5, strides=2, padding="same", use_bias=bias, **size)
    inputs = keras.Input((11, 9, 3))
    expected = convolved = layer(inputs)
    second = None
    if norm is not None:
        second = keras.layers.BatchNormalization(epsilon=0.01, trainable=False, **norm)
        expected = second(convolved)
    for part in [layer, *([second] if second else [])]:
        part.set_weights([rng.uniform(0.5, 2.0, v.shape) for v in part.weights])
    images = rng.normal(size=(3, 11, 9, 3)).astype(np.float32)
    reference = keras.Model(inputs, expected)(images).numpy()
    assert_close(folded_convolution(layer, second, True)(images).numpy(), reference, 1e-5)


def test_graphics_processors_need_none_of_this(monkeypatch):
    monkeypatch.setattr(fast_steps, "has_gpu", lambda: True)
    network = whole_network()
    assert fast_twin(network) is network
