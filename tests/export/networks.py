"""Networks to be exported, photos for them, and a place where each file is written once."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cvpipe.classifiers.search import fit_classifier
from cvpipe.classifiers.to_steps import steps_of
from cvpipe.errors import InputError
from cvpipe.export.formats import NETWORK_FORMATS, check_format, label_of, parse_label
from cvpipe.inference.calibration import NETWORK_FLOOR
from cvpipe.inference.crops import crop_origins, sizes_to_load
from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import attach_linear_head, backbone_of
from cvpipe.models.merging import GEOMETRIC_MEAN, merge_networks, scale_probabilities, views_inside
from cvpipe.models.step_layers import attach_classifier

LABELS = [label_of(name, p) for name, entry in NETWORK_FORMATS.items() for p in entry.precisions]
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
STATISTICS = {"channel_mean": np.float32([120, 105, 95]), "channel_std": np.float32([60, 58, 62])}
PATCH = 100  # pixels of a photo that an image shows


def installed(labels=LABELS):
    """Labels as parameters; those that need what is missing are skipped and say so."""
    return [pytest.param(text, marks=_skip_mark(text)) for text in labels]


def _skip_mark(text):
    try:
        check_format(*parse_label(text))
    except InputError as error:
        return pytest.mark.skip(reason=str(error))
    return ()


@functools.cache
def photo(number):
    return getattr(skimage.data, PHOTOS[number % len(PHOTOS)])()


def take_photos(size, num_classes, count, seed):
    """Show places in photos, each time from a little elsewhere and in another light.

    Returns:
        `uint8` images `(count, *size, 3)` and the number of the place that each shows.
    """
    places, rng = np.random.default_rng(num_classes), np.random.default_rng(seed)
    corners = places.uniform(0.1, 0.9, (num_classes, 2))
    images, labels = [], np.arange(count) % num_classes
    for place in labels:
        whole = photo(place)
        room = np.array(whole.shape[:2]) - PATCH
        top, left = np.clip(corners[place] * room + rng.uniform(-15, 15, 2), 0, room).astype(int)
        patch = Image.fromarray(whole[top : top + PATCH, left : left + PATCH])
        seen = np.asarray(patch.resize(size[::-1])) * rng.uniform(0.8, 1.2)
        images.append(seen.clip(0, 255).astype(np.uint8))
    return np.stack(images), labels


def build_network(backbone, size, num_classes, seed=0, sureness=1.0):
    """Build a network that tells places in photos apart, some better than others.

    The body of a network from scratch is drawn, with averages that are not 0 and 1; the head is
    fitted, because a drawn one would listen to what rounding changes as much as to what it sees.
    """
    keras = import_keras()
    pretrained = bool(BACKBONES[backbone].preprocessing)
    facts = {} if pretrained else {"statistics": STATISTICS}
    weights = "package" if pretrained else "none"
    body = build_backbone(BackboneSpec(backbone, weights, image_size=size), seed=seed, **facts)
    rng = np.random.default_rng(seed)
    for layer in body.layers:
        layer.trainable = not pretrained
        if isinstance(layer, keras.layers.BatchNormalization) and not pretrained:
            num = layer.gamma.shape
            drawn = rng.uniform(0.5, 1.5, num), rng.normal(0, 0.3, num), rng.normal(0, 0.3, num)
            layer.set_weights([*drawn, rng.uniform(0.5, 2.0, num)])
    images, labels = take_photos(size, num_classes, max(5 * num_classes, 60), seed)
    features = compute(body, images).astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = std + 0.3 * std.max()  # no feature is stretched out of proportion
    scaled = (features - mean) / std
    targets = np.eye(num_classes)[labels] - 1 / num_classes
    # Ridge regression, as many dimensions as there are images.
    dual = np.linalg.solve(scaled @ scaled.T + 30 * np.eye(len(scaled)), targets)
    kernel = 6 * sureness * scaled.T @ dual / std[:, None]
    bias = -mean @ kernel
    name = f"{backbone}_{seed}"
    return attach_linear_head(body, kernel.astype(np.float32), bias.astype(np.float32), name)


def compute(model, images):
    """What Keras itself gives, a few images at a time."""
    rows = [model(images[i : i + 32], training=False) for i in range(0, len(images), 32)]
    return np.concatenate([np.asarray(row) for row in rows])


def build_lenet():
    return build_network("lenet5", (20, 14), 2, sureness=0.3)


def build_vgg():
    return build_network("small_vgg", (16, 20), 40, sureness=2.0)


def build_merged():
    """Networks that see views, in a geometric mean that is calibrated; one is very sure."""
    size = (14, 12)
    networks = [build_network("lenet5", size, 3), build_network("lenet5", size, 3, 1, 12)]
    merged = merge_networks(networks, [0.4, 0.6], GEOMETRIC_MEAN, "merged")
    (image_size,) = sizes_to_load("five_crop", size)
    views = views_inside(merged, image_size, *crop_origins("five_crop", size))
    return scale_probabilities(views, (0.16, 0.24, 0.2), (0.3, -0.2, 0.1), NETWORK_FLOOR)


def build_machine(num_classes=3):
    """A support vector machine on the features of a network, which has steps unlike any layer."""
    size = (20, 14)
    body = backbone_of(build_network("lenet5", size, num_classes, 2))
    images, labels = take_photos(size, num_classes, max(60, 10 * num_classes), 2)
    groups = [str(number) for number in range(len(images))]
    rows, targets = compute(body, images), labels.astype(np.int32)
    found = fit_classifier("rbf_svm", rows, targets, groups, search="coarse", seed=0, threads=1)
    return attach_classifier(body, steps_of(found.estimator), "machine")


BUILDERS: dict[str, Callable[[], Any]] = {
    "lenet": build_lenet,
    "vgg": build_vgg,
    "merged": build_merged,
    "machine": build_machine,
}


@functools.cache
def network(kind):
    return BUILDERS[kind]()


@functools.cache
def images_for(kind, count=33, seed=9):
    """Photos that a network was not fitted to."""
    model = network(kind)
    return take_photos(model.input_shape[1:3], model.output_shape[1], count, seed)[0]
