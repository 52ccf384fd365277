import json
import re
import zipfile

import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.normalisation import NORMALISATION_LAYER, NORMALISATIONS, normalise

SIZE = (6, 9)
KINDS = ["mean_image", "channel_mean", "channel_mean_std"]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def statistics():
    rng = np.random.default_rng(1)
    return {
        "mean_image": rng.uniform(0, 255, (*SIZE, 3)),
        "channel_mean": np.array([123.68, 116.78, 103.94]),
        "channel_std": np.array([58.393, 1.12, 57.375]),
    }


def reference(images, kind, statistics):
    """Subtract and divide in float64."""
    if kind == "mean_image":
        return images - statistics["mean_image"]
    centred = images - statistics["channel_mean"]
    return centred / statistics["channel_std"] if kind == "channel_mean_std" else centred


def build(kind, statistics, size=SIZE):
    keras = import_keras()
    inputs = keras.Input((*size, 3), dtype="uint8", name="images")
    return keras.Model(inputs, normalise(inputs, kind, statistics))


def build_classifier(kind, statistics):
    keras = import_keras()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((*SIZE, 3), dtype="uint8", name="images")
    x = keras.layers.Conv2D(4, 3, activation="relu")(normalise(inputs, kind, statistics))
    # Grey levels are large: unscaled, every probability would be 0 or 1 and show no difference.
    x = keras.layers.Rescaling(0.02)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_numpy(kind, images, statistics):
    model = build(kind, statistics)
    found = model.predict_on_batch(images)
    assert (model.inputs[0].dtype, found.dtype) == ("uint8", np.float32)
    expected = reference(images, kind, statistics)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


def test_a_backbone_gets_the_images_as_they_are(images):
    inputs = import_keras().Input((*SIZE, 3), dtype="uint8")
    assert normalise(inputs, "backbone", {}) is inputs


def test_a_constant_channel_is_centred_and_not_divided(images, statistics):
    of_constant = {"channel_mean": np.array([7.0, 0, 0]), "channel_std": np.array([0.0, 2, 4])}
    found = build("channel_mean_std", of_constant).predict_on_batch(images)
    np.testing.assert_allclose(found, (images - [7.0, 0, 0]) / [1, 2, 4], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_loaded_it_gives_the_same_bits(kind, images, statistics, tmp_path):
    keras = import_keras()
    model = build_classifier(kind, statistics)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    expected = model.predict_on_batch(images)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images do differ
    np.testing.assert_array_equal(loaded.predict_on_batch(images), expected)
    # The other weights are the same in a network without statistics, so it is these that are kept.
    zeros = {name: np.zeros_like(array) for name, array in statistics.items()}
    without = build_classifier(kind, zeros).predict_on_batch(images)
    assert np.abs(without - expected).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_has_layers_of_keras_alone_and_no_number_in_its_settings(
    kind, statistics, tmp_path
):
    build_classifier(kind, statistics).save(tmp_path / "model.keras")
    config = zipfile.ZipFile(tmp_path / "model.keras").read("config.json")
    (layer,) = [
        layer
        for layer in json.loads(config)["config"]["layers"]
        if layer["name"] == NORMALISATION_LAYER
    ]
    assert layer["class_name"] == "Normalization"
    assert (layer["config"]["mean"], layer["config"]["variance"]) == (None, None)
    assert b"cvpipe" not in config
    assert set(re.findall(rb'"registered_name": ([^,}]*)', config)) == {b"null", b'"Functional"'}


def test_weights_alone_restore_it(images, statistics, tmp_path):
    model = build("mean_image", statistics)
    model.save_weights(tmp_path / "all.weights.h5")
    zeros = {"mean_image": np.zeros((*SIZE, 3))}
    other = build("mean_image", zeros)
    other.load_weights(tmp_path / "all.weights.h5")
    np.testing.assert_array_equal(other.predict_on_batch(images), model.predict_on_batch(images))


def test_training_leaves_it_alone(images, statistics):
    model = build_classifier("channel_mean_std", statistics)
    model.trainable = True  # as when a whole network is fine-tuned
    layer = model.get_layer(NORMALISATION_LAYER)
    before = [*layer.get_weights(), layer.call(images[:1]).numpy()]
    assert not layer.trainable_variables
    head = model.get_weights()[-2]
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(images, np.arange(5) % 3, verbose=0)
    assert not np.array_equal(model.get_weights()[-2], head)
    for one, other in zip(
        before, [*layer.get_weights(), layer.call(images[:1]).numpy()], strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_it_stays_in_float32_under_mixed_precision(images, statistics):
    keras = import_keras()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        found = build("mean_image", statistics).predict_on_batch(images)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_allclose(found, images - statistics["mean_image"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("kind", ["mean_image", "channel_mean_std"])
def test_an_export_to_litert_cannot_lose_it(kind, images, statistics, tmp_path):
    model = build_classifier(kind, statistics)
    path = tmp_path / "model.tflite"
    model.export(path, format="litert", verbose=False)
    interpreter = import_tensorflow().lite.Interpreter(str(path))
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(source["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], images)
    interpreter.invoke()
    assert source["dtype"] == np.uint8
    np.testing.assert_allclose(
        interpreter.get_tensor(target["index"]), model.predict_on_batch(images), atol=1e-5
    )


def test_unknown_kind(statistics):
    with pytest.raises(InputError, match=r"unknown normalisation 'mean_images'; did you mean"):
        build("mean_images", statistics)
    assert list(NORMALISATIONS) == [*KINDS, "backbone"]


def test_statistics_of_another_size(statistics):
    message = r"mean_image has shape \(6, 9, 3\), but the network's images need \(9, 6, 3\); meas"
    with pytest.raises(InputError, match=message):
        build("mean_image", statistics, size=(9, 6))


@pytest.mark.parametrize("name", ["channel_mean", "channel_std"])
def test_statistics_of_another_shape(name, statistics):
    grey = {**statistics, name: np.array(1.0)}
    with pytest.raises(InputError, match=rf"{name} has shape \(\), but the .* need \(3,\)"):
        build("channel_mean_std", grey)
