import numpy as np
import pytest

from cvpipe.models.framework import import_keras
from cvpipe.models.initial_weights import draw_initial_weights, seed_noise


def build():
    keras = import_keras()
    images = keras.Input((9, 9, 8))
    nested = keras.Sequential([keras.layers.Conv2D(64, 1, name="inner")], name="nested")
    x = keras.layers.SeparableConv2D(128, 3, name="separable")(images)
    x = keras.layers.DepthwiseConv2D(5, depth_multiplier=1, name="depthwise")(x)
    x = keras.layers.Dropout(0.5, name="dropout")(nested(x))
    return keras.Model(images, keras.layers.Dense(100, name="dense")(x))


def kernels(model):
    separable = model.get_layer("separable")
    return {
        "pointwise": separable.pointwise_kernel.numpy(),
        "depthwise": model.get_layer("depthwise").kernel.numpy(),
        "inner": model.get_layer("nested").get_layer("inner").kernel.numpy(),
        "dense": model.get_layer("dense").kernel.numpy(),
        "separable depthwise": separable.depthwise_kernel.numpy(),
    }


@pytest.mark.parametrize(
    ("kernel", "fan_in", "tolerance"),
    [
        ("pointwise", 8, 0.1),
        ("depthwise", 25, 0.1),
        ("inner", 128, 0.1),
        ("dense", 64, 0.1),
        ("separable depthwise", 9, 0.3),
    ],
)
def test_the_scale_is_that_of_he(kernel, fan_in, tolerance):
    model = build()
    draw_initial_weights(model, seed=0)
    assert kernels(model)[kernel].std() == pytest.approx(np.sqrt(2 / fan_in), rel=tolerance)


def test_every_kernel_comes_from_the_seed_alone():
    import_keras().utils.set_random_seed(1)
    one = build()
    draw_initial_weights(one, seed=3)
    import_keras().utils.set_random_seed(2)
    same, other = build(), build()
    draw_initial_weights(same, seed=3)
    draw_initial_weights(other, seed=4)
    for name, values in kernels(one).items():
        np.testing.assert_array_equal(values, kernels(same)[name])
        assert (values != kernels(other)[name]).all()
    # Kernels of one shape differ: each has draws of its own.
    flat = [values.ravel()[:64] for values in kernels(one).values()]
    assert len({tuple(np.sign(values)) for values in flat}) == len(flat)


def test_noise_comes_from_the_seed_alone():
    images = np.ones((2, 9, 9, 8), np.float32)

    def outputs(seed):
        model = build()
        draw_initial_weights(model, seed=0)
        seed_noise(model, seed)
        return np.asarray(model(images, training=True))

    np.testing.assert_array_equal(outputs(5), outputs(5))
    assert (outputs(5) != outputs(6)).any()
