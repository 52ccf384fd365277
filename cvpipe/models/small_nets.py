"""Small convolutional networks to be trained from scratch, for when transfer does not fit.

They start behind the normalisation of the images, which is fitted on the training images. The
defaults are those of CS231n 2017, lectures 6 and 9: He's initialisation, batch normalisation
between each convolution and its ReLU, filters of 3x3, average pooling in place of large dense
layers. Layers are named by place, as in `cvpipe.models.efficientnet_lite`.
"""

from typing import TYPE_CHECKING, Any

from cvpipe.models.framework import import_keras

if TYPE_CHECKING:
    import keras

VGG_FILTERS = (32, 64, 128)
RESNET_FILTERS = (16, 32, 64)
RESNET_BLOCKS = 3  # in each of three stages: 20 layers with weights

LENET_POINTS = {"conv_1": "pool_1", "conv_2": "pool_2"}
VGG_POINTS = {f"block_{number}": f"block_{number}_pool" for number in (1, 2, 3)}
RESNET_POINTS = {"stem": "stem_relu"} | {
    f"block_{number:02d}": f"block_{number:02d}_relu"
    for number in range(1, len(RESNET_FILTERS) * RESNET_BLOCKS + 1)
}


def apply_lenet5(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Put LeNet-5 behind normalised images of at least 12 pixels a side.

    Departures from the original: batch normalisation and ReLU in place of scaled tanh, max
    pooling in place of trained averages, every map of the second layer sees all of the first,
    padding, so that digits of 28 pixels need no border, and four times as many maps: the
    original's six and sixteen were what a computer of 1998 could pay for.

    Returns:
        Features of shape `(n, 84)`.

    References:
        LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document
        recognition", Proceedings of the IEEE, 1998, section II.B.
    """
    keras = import_keras()
    x = images
    for number, filters in enumerate((24, 64), start=1):
        x = _conv(x, f"conv_{number}", filters, kernel_size=5)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for number, units in enumerate((120, 84), start=1):
        name = f"dense_{number}"
        x = keras.layers.Dense(units, use_bias=False, name=name)(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        x = keras.layers.ReLU(name="features" if number == 2 else f"{name}_relu")(x)
    return x


def apply_small_vgg(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Put a VGG-style network behind normalised images of at least 8 pixels a side.

    Three blocks of two 3x3 convolutions and a pooling; the number of filters doubles where the
    side halves.

    Returns:
        Features of shape `(n, 128)`: averages over the last maps.

    References:
        Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
        recognition", ICLR 2015, section 2; CS231n 2017, lecture 9 (average pooling at the end).
    """
    keras = import_keras()
    x = images
    for number, filters in enumerate(VGG_FILTERS, start=1):
        for conv in (1, 2):
            x = _conv(x, f"block_{number}_conv_{conv}", filters, kernel_size=3)
        x = keras.layers.MaxPooling2D(2, name=f"block_{number}_pool")(x)
    return keras.layers.GlobalAveragePooling2D(name="features")(x)


def apply_cifar_resnet(images: "keras.KerasTensor") -> "keras.KerasTensor":
    """Put a residual network of 20 layers behind normalised images of at least 8 pixels a side.

    Returns:
        Features of shape `(n, 64)`: averages over the last maps.

    References:
        He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016,
        section 4.2. Departure: where the shape changes, the input is projected by a 1x1
        convolution (their option B) instead of being padded with zeros.
    """
    keras = import_keras()
    x = _conv(images, "stem", RESNET_FILTERS[0], kernel_size=3)
    number = 0
    for stage, filters in enumerate(RESNET_FILTERS):
        for repeat in range(RESNET_BLOCKS):
            number += 1
            strides = 2 if stage > 0 and repeat == 0 else 1
            x = _residual_block(x, f"block_{number:02d}", filters, strides)
    return keras.layers.GlobalAveragePooling2D(name="features")(x)


def _residual_block(x: Any, name: str, filters: int, strides: int) -> Any:
    keras = import_keras()
    inputs = x
    x = _conv(x, f"{name}_conv_1", filters, kernel_size=3, strides=strides)
    x = _conv(x, f"{name}_conv_2", filters, kernel_size=3, relu=False)
    if inputs.shape[-1] != filters:
        inputs = _conv(inputs, f"{name}_skip", filters, kernel_size=1, strides=strides, relu=False)
    x = keras.layers.Add(name=f"{name}_add")([inputs, x])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _conv(
    x: Any, name: str, filters: int, *, kernel_size: int, strides: int = 1, relu: bool = True
) -> Any:
    keras = import_keras()
    # No bias: the normalisation behind it has one.
    x = keras.layers.Conv2D(
        filters, kernel_size, strides, padding="same", use_bias=False, name=name
    )(x)
    # Averages over some ten batches: small sets have few in an epoch.
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x
