"""Write files as Keras 2 writes them, and what it says of some images; run in its own process.

    python tests/keras2_files.py FOLDER

Each network `NAME` becomes `NAME.h5` and `NAME.keras`; `NAME.npy` has its outputs for `IMAGES` cut
to its size and scaled to -1 to 1.
"""

import os
import sys
from pathlib import Path

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def images() -> np.ndarray:
    """Some images of noise, from dark to light: `uint8 (5, 96, 96, 3)`."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 96, 96, 3))
    return (noise * np.linspace(0.2, 1, 5)[:, None, None, None]).astype(np.uint8)


def draw_weights(model, random: np.random.Generator) -> None:
    # As they are drawn at the start, averages of 0 would hide numbers that were mixed up, and
    # small filters what the image was.
    for weight in model.weights:
        if "variance" in weight.name:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
        elif "kernel" in weight.name:
            fan_in = np.prod(weight.shape[: 2 if "depthwise" in weight.name else -1])
            weight.assign(random.normal(0, np.sqrt(1.5 / fan_in), weight.shape))
        elif weight.dtype.is_floating:
            weight.assign_add(random.normal(0, 0.2, weight.shape))


def write_all(folder: Path) -> None:
    import tf_keras

    layers, random = tf_keras.layers, np.random.default_rng(1)

    def teachable():
        """As Teachable Machine makes it: sequences in a sequence, a network in the first."""
        backbone = tf_keras.applications.MobileNetV2(
            input_shape=(96, 96, 3), alpha=0.35, include_top=False, weights=None
        )
        pooled = tf_keras.Sequential([backbone, layers.GlobalAveragePooling2D()])
        dense = layers.Dense(100, activation="relu", input_shape=(1280,))
        head = [dense, layers.Dense(3, activation="softmax", use_bias=False)]
        return tf_keras.Sequential([pooled, tf_keras.Sequential(head)])

    def many_layers():
        inputs = x = layers.Input((32, 40, 3))
        x = layers.BatchNormalization(axis=[3])(layers.Conv2D(8, 3, padding="same")(x))
        x = layers.Conv2DTranspose(8, 3)(layers.SeparableConv2D(8, 3)(layers.ReLU(6.0)(x)))
        x = layers.PReLU(shared_axes=[1, 2])(layers.LeakyReLU(0.1)(x))
        y = layers.Conv2D(8, 1, name="block/conv", kernel_regularizer="l2")(x)
        x = layers.SpatialDropout2D(0.1)(layers.Add()([x, y]))
        x = layers.MaxPooling2D()(layers.UpSampling2D(2, interpolation="bilinear")(x))
        x = layers.GlobalMaxPooling2D()(layers.Concatenate()([x, y]))
        x = layers.Dense(4, activation="gelu")(layers.LayerNormalization()(x))
        return tf_keras.Model(inputs, layers.Softmax()(layers.Dense(3)(x)))

    def one_unit():
        """As in tutorials: augmentation and scaling inside, a sigmoid at the end."""
        return tf_keras.Sequential(
            [
                layers.RandomFlip("horizontal", input_shape=(24, 32, 3)),
                *(layers.RandomRotation(0.1), layers.Rescaling(1 / 2, offset=0.5)),
                *(layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dropout(0.5)),
                layers.Dense(1, activation="sigmoid"),
            ]
        )

    def pooled_softmax():
        """Ends in a softmax that stands behind no dense layer."""
        return tf_keras.Sequential(
            [
                layers.Conv2D(3, 3, input_shape=(24, 32, 3)),
                *(layers.GlobalAveragePooling2D(), layers.Activation("softmax")),
            ]
        )

    for make in (teachable, many_layers, one_unit, pooled_softmax):
        model = make()
        draw_weights(model, random)
        height, width = model.input_shape[1:3]
        scaled = images()[:, :height, :width].astype(np.float32) / 127.5 - 1
        np.save(folder / f"{make.__name__}.npy", model.predict(scaled, verbose=0))
        for ending in ("h5", "keras"):
            model.save(folder / f"{make.__name__}.{ending}")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
