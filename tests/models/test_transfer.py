import numpy as np
import pytest

from cvpipe.contender_sections import TrainingSection
from cvpipe.errors import InputError
from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import LOGITS_LAYER, attach_linear_head, initial_head
from cvpipe.models.losses import build_loss
from cvpipe.models.training import train
from cvpipe.models.transfer import (
    attach_trainable_head,
    freeze_point,
    learning_groups,
    part_network,
    unfreeze,
)

SPEC = BackboneSpec("efficientnet_lite0", image_size=(64, 96))


class OneBatch:
    """The same batch in every step."""

    steps_per_epoch = 2

    def __init__(self, inputs, targets):
        self.batch = inputs, targets

    def epoch(self, number):
        yield from [self.batch] * 2


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3), dtype=np.uint8)


def whole_network(dropout=0.2):
    backbone = build_backbone(SPEC)
    head = initial_head(1280, 3, seed=0)
    return backbone, attach_trainable_head(backbone, *head, dropout=dropout, seed=1)


@pytest.mark.parametrize(
    ("name", "freeze", "expected"),
    [
        ("efficientnet_lite0", "middle", "block_11"),
        ("efficientnet_lite0", "last_block", "block_15"),
        ("efficientnet_lite0", "features", "features"),
        ("efficientnet_lite0", "none", ""),
        ("efficientnet_lite0", "block_03", "block_03"),
        ("efficientnet_lite2", "middle", "block_14"),
    ],
)
def test_words_for_freeze_points(name, freeze, expected):
    assert freeze_point(BackboneSpec(name), freeze) == expected


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("word", ["middle", "last_block"])
def test_every_backbone_has_the_words(name, word):
    points = list(BACKBONES[name].freeze_points)
    assert freeze_point(BackboneSpec(name), word) in points
    middle, last = (
        points.index(freeze_point(BackboneSpec(name), w)) for w in ("middle", "last_block")
    )
    assert middle <= last < points.index("features")


def test_an_unknown_freeze_point_is_refused():
    with pytest.raises(
        InputError, match=r"unknown freeze point 'block_12a'; did you mean 'block_12"
    ):
        freeze_point(SPEC, "block_12a")


@pytest.mark.parametrize("point", ["block_03", "block_11", "features"])
def test_trunk_and_tail_give_what_the_whole_network_gives(point, images):
    _, model = whole_network()
    trunk, tail = part_network(SPEC, model, point)
    activations = trunk(images, training=False)
    np.testing.assert_array_equal(tail(activations, training=False), model(images, training=False))


@pytest.mark.parametrize("point", ["block_11", "block_15", "features", ""])
def test_exactly_what_lies_behind_the_freeze_point_is_trained(point, images):
    """And all statistics and scales of normalisations stay as they are, to the bit."""
    keras = import_keras()
    backbone, model = whole_network()
    trunk, tail = part_network(SPEC, model, point) if point else (None, model)
    inputs = trunk(images, training=False).numpy() if trunk else images
    layers = unfreeze(tail, norms=False)
    before = {v.path: v.numpy() for v in model.variables}

    settings = TrainingSection(epochs=2, warmup_epochs=0.5, learning_rate=1e-3, dropout=0.0)
    feed = OneBatch(inputs, np.resize(np.arange(3, dtype=np.int32), len(images)))
    groups = learning_groups(layers, settings.backbone_rate)
    train(tail, groups, build_loss("cross_entropy", 3), feed, settings)

    names = [layer.name for layer in model.layers]
    last = BACKBONES[SPEC.name].freeze_points[point] if point else "images"
    planned = {
        variable.path
        for layer in model.layers[names.index(last) + 1 :]
        for variable in layer.weights
        if not isinstance(layer, keras.layers.BatchNormalization)
    }
    moved = {v.path for v in model.variables if not np.array_equal(v.numpy(), before[v.path])}
    noise = {path for path in moved if "seed_generator" in path}
    assert moved - noise == planned
    assert {v.path for v in model.trainable_variables} == planned
    norms = [x for x in backbone.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in norms:
        for variable in layer.variables:
            np.testing.assert_array_equal(variable.numpy(), before[variable.path])
    assert len(norms) == 49


def test_from_scratch_normalisations_learn_as_well():
    keras = import_keras()
    statistics = {"channel_mean": np.full(3, 100.0), "channel_std": np.full(3, 50.0)}
    backbone = build_backbone(BackboneSpec("lenet5", "none"), statistics=statistics)
    model = attach_trainable_head(backbone, *initial_head(84, 3, 0), dropout=0.0, seed=0)
    layers = unfreeze(model, norms=True)
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers)
    # What the images are centred by was measured, and is not to be learned.
    assert not any(isinstance(layer, keras.layers.Normalization) for layer in layers)
    assert learning_groups(layers, 1.0)[0].factor == 1.0
    assert len(learning_groups(layers, 1.0)) == 1


def test_the_head_learns_at_the_full_rate():
    _, model = whole_network()
    _, tail = part_network(SPEC, model, "block_15")
    backbone, head = learning_groups(unfreeze(tail, norms=False), 0.1)
    assert (backbone.factor, head.factor) == (0.1, 1.0)
    assert [layer.name for layer in head.layers] == [LOGITS_LAYER]
    assert LOGITS_LAYER not in [layer.name for layer in backbone.layers]
    _, alone = part_network(SPEC, model, "features")
    (group,) = learning_groups(unfreeze(alone, norms=False), 0.1)
    assert group.factor == 1.0


def test_dropout_acts_in_training_alone_and_not_in_what_is_stored(images):
    backbone, model = whole_network(dropout=0.5)
    quiet = [model(images, training=False).numpy() for _ in range(2)]
    noisy = [model(images, training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    assert not np.array_equal(*noisy)
    kernel, bias = model.get_layer(LOGITS_LAYER).get_weights()
    stored = attach_linear_head(backbone, kernel, bias, "stored")
    assert not any("dropout" in layer.name for layer in stored.layers)
    logits = quiet[0].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(stored(images, training=False), expected, atol=1e-6)


def test_the_same_seed_leaves_out_the_same_features(images):
    outputs = [whole_network(dropout=0.5)[1](images, training=True).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*outputs)
