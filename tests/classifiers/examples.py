"""Small made-up problems that several test files use."""

import numpy as np

from cvpipe.classifiers.search import fit_classifier


def blobs(num_classes=3, per_class=30, distance=2.0, seed=0):
    """Draw normal clouds, one per class, in four dimensions."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    centres = rng.normal(size=(num_classes, 4)) * distance
    return centres[targets] + rng.normal(size=(len(targets), 4)), targets


def histograms(num_classes=3, per_class=30, num_bins=6, seed=0):
    """Draw counts, a third of them zero; the classes overlap."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    means = rng.gamma(1.0, 3.0, (num_classes, num_bins))
    counts = rng.poisson(means[targets]) * (rng.random((len(targets), num_bins)) < 2 / 3)
    return counts.astype(float), targets


def ring(per_class=60, seed=0):
    """Draw a disc and the ring around it: no line parts them."""
    rng = np.random.default_rng(seed)
    targets = np.repeat([0, 1], per_class)
    radius = rng.uniform(0, 1, 2 * per_class) + 2 * targets
    angle = rng.uniform(0, 2 * np.pi, 2 * per_class)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1) + 3, targets


def singles(targets) -> list[str]:
    return [f"image {number}" for number in range(len(targets))]


def pairs(targets) -> list[str]:
    return [f"pair {number // 2}" for number in range(len(targets))]


def fit(name, features, targets, groups=None, search="coarse", seed=0, threads=1, **options):
    groups = singles(targets) if groups is None else groups
    return fit_classifier(name, features, targets, groups, search, seed, threads, **options)
