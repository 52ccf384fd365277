import numpy as np
import pytest

from cvpipe.models.framework import import_keras
from cvpipe.models.heads import (
    attach_linear_head,
    backbone_of,
    head_of,
    head_weights,
    scale_logits,
)

NUM_FEATURES = 4


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone():
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 7, 3), dtype="uint8")
    values = keras.layers.Rescaling(1 / 255)(inputs)
    values = keras.layers.Conv2D(NUM_FEATURES, 3, activation="relu")(values)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(values), name="tiny")


@pytest.fixture(params=[2, 5])
def head(request):
    rng = np.random.default_rng(request.param)
    kernel = rng.normal(size=(NUM_FEATURES, request.param)) * 5
    return kernel.astype(np.float32), rng.normal(size=request.param).astype(np.float32)


@pytest.fixture
def model(backbone, head):
    return attach_linear_head(backbone, *head, name="my_contender")


def test_probabilities_are_the_softmax_of_the_linear_head(backbone, head, model, images):
    kernel, bias = head
    features = backbone.predict_on_batch(images)
    probabilities = model.predict_on_batch(images)
    assert probabilities.shape == (5, len(bias))
    assert np.ptp(probabilities, axis=0).max() > 1e-3  # the images do differ
    np.testing.assert_allclose(probabilities, softmax(features @ kernel + bias), atol=1e-6)


def test_one_flat_graph_from_uint8(backbone, model):
    keras = import_keras()
    assert model.name == "my_contender"
    assert (model.input_shape, model.inputs[0].dtype) == ((None, 6, 7, 3), "uint8")
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.layers[: len(backbone.layers)] == backbone.layers
    assert [layer.name for layer in model.layers[-2:]] == ["head", "probabilities"]


def test_the_head_alone_gives_what_the_whole_model_gives(backbone, model, images):
    head = head_of(model)
    features = backbone.predict_on_batch(images)
    assert head.input_shape == (None, NUM_FEATURES)
    np.testing.assert_allclose(
        head.predict_on_batch(features), model.predict_on_batch(images), rtol=0, atol=1e-7
    )


def test_the_head_alone_shares_its_layers_and_leaves_the_model_as_it_was(model, images):
    before = model.predict_on_batch(images)
    head = head_of(model)
    assert head.get_layer("head") is model.get_layer("head")
    np.testing.assert_array_equal(model.predict_on_batch(images), before)


def test_a_stored_model_comes_back_bit_for_bit(model, images, tmp_path):
    path = tmp_path / "größe 1.keras"
    model.save(path)
    loaded = import_keras().saving.load_model(path, compile=False, safe_mode=True)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))
    features = np.ones((2, NUM_FEATURES), np.float32)
    np.testing.assert_array_equal(
        head_of(loaded).predict_on_batch(features), head_of(model).predict_on_batch(features)
    )


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_calibration_is_built_into_the_network(backbone, head, images, tmp_path, kind):
    """It gives what the calibration gives for the probabilities of the network alone."""
    num_classes = len(head[1])
    rng = np.random.default_rng(1)
    slopes = (
        np.full(num_classes, 0.4) if kind == "temperature" else rng.uniform(0.3, 2, num_classes)
    )
    offsets = np.zeros(num_classes) if kind == "temperature" else rng.normal(size=num_classes)
    before = attach_linear_head(backbone, *head, name="before").predict_on_batch(images)
    model = scale_logits(
        attach_linear_head(backbone, *head, name="n"), slopes.tolist(), offsets.tolist()
    )
    expected = softmax(np.log(before.astype(np.float64)) * slopes + offsets)
    assert np.abs(expected - before).max() > 0.01
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-6)
    assert model.name == "n"
    model.save(tmp_path / "model.keras")
    again = import_keras().saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(again.predict_on_batch(images), expected, atol=1e-6)
    added = len(model.layers) - len(backbone.layers)
    assert added == (3 if kind == "temperature" else 4)


def test_backbone_and_weights_of_a_model_are_those_it_was_made_of(model, backbone, head, images):
    for found, given in zip(head_weights(model), head, strict=True):
        assert np.array_equal(found, given)
    features = backbone_of(model)(images).numpy()
    assert np.array_equal(features, backbone(images).numpy())
    logits = features @ head[0] + head[1]
    assert np.allclose(softmax(logits), model(images).numpy(), atol=1e-6)
