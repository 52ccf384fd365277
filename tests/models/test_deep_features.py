import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.deep_features import DeepFeature, make_deep_feature
from cvpipe.models.framework import import_keras

NAME = "efficientnet_lite0"
SIZE = (64, 96)
# Features are computed with normalisations folded, which rounds otherwise.
ROUNDING = {"rtol": 0, "atol": 1e-4}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def outputs(images):
    """What two blocks put out, and the features, all by a network of their own."""
    keras = import_keras()
    model = build_backbone(BackboneSpec(NAME, image_size=SIZE))
    points = BACKBONES[NAME].freeze_points
    names = ("block_10", "block_14", "features")
    probe = keras.Model(model.input, [model.get_layer(points[name]).output for name in names])
    return {n: o.numpy() for n, o in zip(names, probe(images, training=False), strict=True)}


def feature_of(layers, pooling="average"):
    return make_deep_feature(NAME, SIZE, {"layers": layers, "pooling": pooling})


def test_rows_are_pooled_outputs_side_by_side(images, outputs):
    feature = feature_of(("block_10", "block_14"), "average_and_max")
    rows = feature.build()(images, training=False).numpy()
    blocks = [outputs["block_10"], outputs["block_14"]]
    expected = np.hstack([f(block) for block in blocks for f in (average, largest)])
    assert rows.shape == (3, 2 * (112 + 192))
    np.testing.assert_allclose(rows, expected, **ROUNDING)


def average(block):
    return block.mean(axis=(1, 2))


def largest(block):
    return block.max(axis=(1, 2))


@pytest.mark.parametrize(("pooling", "function"), [("average", average), ("max", largest)])
def test_one_pooling_of_one_layer(pooling, function, images, outputs):
    rows = feature_of(("block_10",), pooling).build()(images, training=False).numpy()
    np.testing.assert_allclose(rows, function(outputs["block_10"]), **ROUNDING)


def test_the_features_are_a_vector_already(images, outputs):
    rows = feature_of(("block_10", "features"), "max").build()(images, training=False).numpy()
    np.testing.assert_allclose(rows[:, 112:], outputs["features"], **ROUNDING)


def test_the_usual_feature_is_the_backbone_itself(images):
    plain = DeepFeature(BackboneSpec(NAME, image_size=SIZE))
    assert plain.build().output_shape == (None, 1280)
    assert plain.build().layers[-1].name == "features"


def test_a_stored_network_on_pooled_layers_gives_the_same(images, tmp_path):
    keras = import_keras()
    model = feature_of(("block_10", "block_14"), "average_and_max").build()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_identities_differ_where_rows_do():
    features = [
        DeepFeature(BackboneSpec(NAME)),
        DeepFeature(BackboneSpec("efficientnet_lite2")),
        DeepFeature(BackboneSpec(NAME, image_size=SIZE)),
        feature_of(("block_10",)),
        feature_of(("block_11",)),
        feature_of(("block_10",), "max"),
        feature_of(("block_10", "block_11")),
        feature_of(("block_11", "block_10")),
    ]
    assert len({feature.identity for feature in features}) == len(features)
    # That of runs made before backbones had settings.
    assert features[0].identity == BACKBONES[NAME].weights.sha256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": ("block_10",)}, "did you mean 'layers'?"),
        ({"layers": "block_10"}, "layers of a feature of 'efficientnet_lite0' must be such as"),
        ({"layers": ("block_1",)}, "unknown freeze point 'block_1'"),
        ({"layers": ("block_10", "block_10")}, "each once, but are ['block_10', 'block_10']"),
        ({"layers": ()}, "must name at least one freeze point"),
        ({"pooling": "mean"}, "unknown pooling 'mean'"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(InputError) as caught:
        make_deep_feature(NAME, SIZE, settings)
    assert message in str(caught.value)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(InputError, match="images of 20x300 pixels are too small for"):
        make_deep_feature(NAME, (20, 300), {})
    with pytest.raises(InputError, match="'lenet5' has no pretrained weights"):
        make_deep_feature("lenet5", (), {})
