import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.features import BATCH_SIZE, build_embed
from cvpipe.models.framework import import_keras


@pytest.fixture(scope="module")
def model():
    return build_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def embed(model):
    return build_embed(model)


@pytest.fixture(scope="module")
def images():
    shape = (BATCH_SIZE + 3, 224, 224, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def features(embed, images):
    return embed(images)


def test_same_as_keras(model, images, features):
    assert features.shape == (len(images), 1280)
    assert features.dtype == np.float32
    expected = model.predict_on_batch(images[-4:])
    np.testing.assert_allclose(features[-4:], expected, rtol=0, atol=1e-5)


def test_neighbours_and_positions_do_not_change_a_bit(embed, images, features):
    reversed_features = embed(images[::-1])
    np.testing.assert_array_equal(reversed_features[::-1], features)
    np.testing.assert_array_equal(embed(images[5:6])[0], features[5])
    np.testing.assert_array_equal(embed(images[20:27]), features[20:27])


@pytest.mark.parametrize("side", [32, 96])
def test_every_position_gives_the_same_bits(side):
    """Processors without AVX-512 compute the last images of 32 otherwise."""
    embed = build_embed(build_backbone(BackboneSpec("efficientnet_lite0", image_size=(side, side))))
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    rows = embed(np.repeat(image, BATCH_SIZE, axis=0))
    np.testing.assert_array_equal(rows, rows[:1].repeat(BATCH_SIZE, axis=0))


def counting_model():
    """A small model that notices the size of the batch it is called with."""
    keras = import_keras()
    inputs = keras.Input((2, 3, 3), dtype="uint8")
    outputs = keras.layers.Lambda(
        lambda x: (
            keras.ops.cast(keras.ops.sum(x, (1, 2, 3)), "float32")[:, None]
            + 1000.0 * keras.ops.shape(x)[0]
        ),
        output_shape=(1,),
    )(inputs)
    return keras.Model(inputs, outputs, name="counting")


@pytest.mark.parametrize("num_images", [0, 1, 3, 4, 5, 8])
def test_every_batch_is_full(num_images):
    images = np.zeros((num_images, 2, 3, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(num_images)
    rows = build_embed(counting_model(), batch_size=4)(images)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[4000.0 + number] for number in range(num_images)]


def test_later_weights_are_seen():
    keras = import_keras()
    inputs = keras.Input((2, 2, 3), dtype="uint8")
    dense = keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)
    model = keras.Model(inputs, dense(keras.layers.Rescaling(1.0)(keras.layers.Flatten()(inputs))))
    embed, images = build_embed(model), np.ones((1, 2, 2, 3), np.uint8)
    assert embed(images).tolist() == [[0.0]]
    dense.set_weights([np.ones((12, 1))])
    assert embed(images).tolist() == [[12.0]]


@pytest.mark.parametrize(
    ("shape", "dtype", "given"),
    [
        ((1, 3, 2, 3), "uint8", r"uint8 of shape \(1, 3, 2, 3\)"),
        ((2, 3, 3), "uint8", r"uint8 of shape \(2, 3, 3\)"),
        ((1, 2, 3, 3), "float32", r"float32 of shape \(1, 2, 3, 3\)"),
    ],
)
def test_other_images_are_refused(shape, dtype, given):
    message = rf"'counting' takes uint8 images of shape \(n, 2, 3, 3\), but got {given}; resize"
    with pytest.raises(InputError, match=message):
        build_embed(counting_model(), batch_size=4)(np.zeros(shape, dtype))
