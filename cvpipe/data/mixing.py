"""Blend the images of a batch with one another, and their labels with them."""

import math

import numpy as np

from cvpipe.data.augment import uniform_draws
from cvpipe.opencv import import_cv2
from cvpipe.sections import AugmentSection


def mix_batch(
    images: np.ndarray, targets: np.ndarray, settings: AugmentSection, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Blend each image of a batch with a partner from the same batch.

    One strength and one set of partners are drawn for a batch. Where both are asked for, each
    batch is treated by one of them, by the toss of a coin.

    Args:
        images: `uint8` array of shape `(n, height, width, 3)`.
        targets: `float32` array of shape `(n, num_classes)`, rows summing to 1.
        settings: `mixup` and `cutmix`.
        key: What the draw depends on.

    Returns:
        Arrays of the same shapes and dtypes; blended pixels are rounded.

    References:
        Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018; Yun et al.,
        "CutMix", ICCV 2019, whose share is that of the pixels which were really pasted.
    """
    coin, *start = uniform_draws(key)
    if not settings.mixup and not settings.cutmix:
        return images, targets
    rng = np.random.default_rng([int(value * 2**32) for value in start[:4]])
    partners = rng.permutation(len(images))
    paste = bool(settings.cutmix) and (not settings.mixup or coin < 0.5)
    strength = settings.cutmix if paste else settings.mixup
    share = float(rng.beta(strength, strength))  # of each image itself
    if paste:
        images, share = _paste(images, partners, share, rng)
    else:
        images = _blend(images, images[partners], share)
    own = np.float32(share)
    return images, own * targets + (np.float32(1) - own) * targets[partners]


def _blend(images: np.ndarray, others: np.ndarray, share: float) -> np.ndarray:
    flat = (len(images), -1)
    mixed = import_cv2().addWeighted(
        images.reshape(flat), share, others.reshape(flat), 1 - share, 0.0
    )
    return mixed.reshape(images.shape)


def _paste(
    images: np.ndarray, partners: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    height, width = images.shape[1:3]
    side = math.sqrt(1 - share)
    spans = []
    for length in (height, width):
        half = side * length / 2
        centre = rng.uniform(0, length)
        spans.append(slice(max(0, round(centre - half)), min(length, round(centre + half))))
    mixed = images.copy()
    mixed[:, spans[0], spans[1]] = images[partners][:, spans[0], spans[1]]
    pasted = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    return mixed, 1 - pasted / (height * width)
