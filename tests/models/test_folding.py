"""Normalisations that are part of the convolutions before them."""

import numpy as np
import pytest

from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.deep_features import DeepFeature
from cvpipe.models.folding import fold_norms, folded_weights, norms_to_fold
from cvpipe.models.framework import import_keras
from cvpipe.models.transfer import part_network, unfreeze

STATISTICS = {"channel_mean": np.float32([120, 105, 95]), "channel_std": np.float32([60, 58, 62])}
# Normalisations of a network of each kind: all, and those that do not follow a convolution alone,
# but a sum, a pooling, a dense layer, or a convolution in two steps.
NORMS = {
    "lenet5": (4, 2),
    "small_vgg": (6, 0),
    "cifar_resnet": (21, 0),
    "efficientnet_lite0": (49, 0),
    "mobilenet_v2": (52, 0),
    "mobilenet_v3_small": (34, 0),
    "efficientnet_v2_b0": (59, 0),
    "resnet50": (53, 0),
    "resnet50_v2": (49, 17),
    "densenet121": (121, 62),
}


def norms_of(network):
    norms = import_keras().layers.BatchNormalization
    return [layer for layer in network.layers if isinstance(layer, norms)]


def draw_averages(network, seed=0):
    """Give normalisations averages and scales as training leaves them, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    for norm in norms_of(network):
        size = norm.moving_mean.shape
        if norm.scale:
            norm.gamma.assign(rng.uniform(0.5, 1.5, size))
        if norm.center:
            norm.beta.assign(rng.normal(0, 0.3, size))
        norm.moving_mean.assign(rng.normal(0, 0.3, size))
        norm.moving_variance.assign(rng.uniform(0.5, 2.0, size))


def assert_same(folded, network):
    shape = (3, *network.input_shape[1:])
    images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    expected = np.asarray(network(images, training=False))
    found = np.asarray(folded(images, training=False))
    assert expected.std() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def build(name):
    side = max(BACKBONES[name].min_side, 32)
    facts = {} if BACKBONES[name].preprocessing else {"statistics": STATISTICS}
    return build_backbone(BackboneSpec(name, "none", image_size=(side, side)), seed=0, **facts)


@pytest.mark.parametrize("name", NORMS)
def test_a_backbone_gives_the_same(name):
    network = build(name)
    draw_averages(network)
    before = [weights.copy() for weights in network.get_weights()]

    folded = fold_norms(network)

    assert (len(norms_of(network)), len(norms_of(folded))) == NORMS[name]
    assert_same(folded, network)
    # Nothing is shared: what one learns or is given, the other does not see.
    folded.set_weights([np.zeros_like(weights) for weights in folded.get_weights()])
    for weights, old in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, old)
    assert [layer.name for layer in folded.layers] == [layer.name for layer in network.layers]


def test_what_is_stored_is_the_same_and_there_is_nothing_more_to_fold(tmp_path):
    network = build("small_vgg")
    draw_averages(network)
    folded = fold_norms(network)
    folded.save(tmp_path / "model.keras")
    loaded = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    images = np.random.default_rng(1).integers(0, 256, (2, *network.input_shape[1:]), np.uint8)
    np.testing.assert_array_equal(loaded(images), folded(images))
    np.testing.assert_array_equal(fold_norms(folded)(images), folded(images))


def test_by_hand():
    """A filter of 1 x 1: (3 x + 1 - 2) / sqrt(3.99 + 0.01) * 4 + 5 = 6 x + 3."""
    layers = import_keras().layers
    convolution, norm = layers.Conv2D(1, 1), layers.BatchNormalization(epsilon=0.01)
    convolution.build((None, 4, 4, 1))
    norm.build((None, 4, 4, 1))
    convolution.set_weights([np.full((1, 1, 1, 1), 3.0), np.array([1.0])])
    norm.set_weights([np.array([4.0]), np.array([5.0]), np.array([2.0]), np.array([3.99])])
    kernel, bias = folded_weights(convolution, norm)
    np.testing.assert_allclose(kernel, np.full((1, 1, 1, 1), 6.0), rtol=1e-7)
    np.testing.assert_allclose(bias, [3.0], rtol=1e-6)


def network_of(make):
    keras = import_keras()
    images = keras.Input((6, 6, 2), dtype="uint8")
    floats = keras.layers.Rescaling(1 / 64)(images)
    network = keras.Model(images, make(keras.layers, floats))
    draw_averages(network)
    return network


def depthwise_with_a_multiplier(layers, x):
    x = layers.DepthwiseConv2D(3, depth_multiplier=3, padding="same")(x)
    return layers.BatchNormalization(scale=False)(x)


def without_an_offset(layers, x):
    return layers.BatchNormalization(center=False)(layers.Conv2D(4, 3, strides=2)(x))


def with_an_activation_between(layers, x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))


def read_twice(layers, x):
    x = layers.Conv2D(4, 3)(x)
    return layers.Add()([x, layers.BatchNormalization()(x)])


def called_twice(layers, x):
    convolution, norm = layers.Conv2D(2, 3, padding="same"), layers.BatchNormalization()
    return norm(convolution(norm(convolution(x))))


def along_rows(layers, x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (depthwise_with_a_multiplier, 0),
        (without_an_offset, 0),
        (with_an_activation_between, 1),
        (read_twice, 1),
        (called_twice, 1),
        (along_rows, 1),
    ],
)
def test_what_can_be_folded(make, left):
    network = network_of(make)
    folded = fold_norms(network)
    assert len(norms_of(folded)) == left
    assert_same(folded, network)


def test_normalisations_that_learn_are_folded_too():
    """A network from scratch, once it is trained; the twin for training steps leaves them."""
    network = build("lenet5")
    unfreeze(network, norms=True)
    assert all(norm.trainable for norm in norms_of(network))
    assert not norms_to_fold(network)
    assert len(norms_of(fold_norms(network))) == 2


def test_features_are_those_of_a_folded_backbone():
    spec = BackboneSpec("efficientnet_lite0", image_size=(32, 32))
    feature = DeepFeature(spec, ("block_05", "features"), "average_and_max")
    assert not norms_of(feature.build())
    plain = DeepFeature(spec).build()
    assert_same(plain, build_backbone(spec))


def test_a_trunk_ends_where_it_ended():
    spec = BackboneSpec("efficientnet_lite0", image_size=(32, 32))
    trunk, _ = part_network(spec, build_backbone(spec), "block_05")
    folded = fold_norms(trunk)
    assert norms_of(trunk)
    assert not norms_of(folded)
    assert folded.output_shape == trunk.output_shape
    assert_same(folded, trunk)
