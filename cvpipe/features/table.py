"""The features by name: plain data, loaded without OpenCV, scikit-learn or Pillow."""

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvpipe.errors import InputError, check_name, nearest_name


@dataclass(frozen=True)
class FeatureKind:
    """A way to describe an image by numbers, with settings to choose.

    Attributes:
        title: What people call it.
        transformer: Module below `cvpipe.features` and class of the scikit-learn transformer.
        image_size: `(height, width)` in pixels that images are brought to where nobody says.
        settings: Every setting with its usual value; what decides its type.
        learns: Whether it learns from train images, such as a vocabulary.
        is_signed: Tells of settings whether rows hold negative numbers.
        version: Raised whenever the same settings give other numbers; part of the cache key.
    """

    title: str
    transformer: tuple[str, str]
    image_size: tuple[int, int]
    settings: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False
    is_signed: Callable[[Mapping[str, Any]], bool] = lambda _: False
    version: int = 1

    def load(self) -> Any:
        """Import the transformer's class."""
        module, name = self.transformer
        return getattr(importlib.import_module(f"cvpipe.features.{module}"), name)


@dataclass(frozen=True)
class Feature:
    """A kind of feature at one image size, with all its settings.

    Attributes:
        kind: One of `KINDS`.
        image_size: `(height, width)` in pixels that images are brought to first.
        changed: Settings that differ from the usual ones of the kind.
    """

    kind: str
    image_size: tuple[int, int]
    changed: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings."""
        return {**KINDS[self.kind].settings, **dict(self.changed)}

    @property
    def learns(self) -> bool:
        """Whether it learns from train images."""
        return KINDS[self.kind].learns

    @property
    def is_signed(self) -> bool:
        """Whether rows hold negative numbers, which kernels for histograms cannot read."""
        return KINDS[self.kind].is_signed(self.settings)

    @property
    def title(self) -> str:
        """What people call it, with the settings that are its own."""
        height, width = self.image_size
        own = "".join(f", {name} {_in_words(value)}" for name, value in self.changed)
        return f"{KINDS[self.kind].title} at {height}x{width}{own}"

    @property
    def described(self) -> str:
        """Its title and all that can be set in a `[[feature]]` of its kind, as in TOML."""
        settings = ", ".join(f"{name} = {json.dumps(v)}" for name, v in self.settings.items())
        return f"{self.title}; kind {self.kind}, settings {{{settings}}}"

    @property
    def identity(self) -> str:
        """What distinguishes its rows from those of other settings; part of the cache key."""
        height, width = self.image_size
        settings = json.dumps(self.settings, sort_keys=True)
        return f"{self.kind}-{KINDS[self.kind].version}: {height}x{width}, {settings}"

    def build(self, random_state: int = 0) -> Any:
        """Make the scikit-learn transformer.

        Args:
            random_state: Of a feature that learns.
        """
        kind = KINDS[self.kind]
        seeds = {"random_state": random_state} if kind.learns else {}
        return kind.load()(**self.settings, **seeds)


@dataclass(frozen=True)
class FileFeature:
    """A way to describe an image file by numbers without looking at the pixels.

    Attributes:
        title: What people call it.
        row_size: Length of a row.
        build: Makes the function from the paths of n files to a `float32` array of shape
            `(n, row_size)`. A row depends on nothing but the bytes of its file.
        identity: See `Feature`.
        learns: As in `Feature`.
    """

    title: str
    row_size: int
    build: Callable[[], Callable[[Sequence[Path]], Any]]
    identity: str
    learns: bool = False

    @property
    def described(self) -> str:
        """Its title; there is nothing to set."""
        return self.title


def make_feature(
    kind: str, image_size: tuple[int, int] | None = None, settings: Mapping[str, Any] | None = None
) -> Feature:
    """Make a feature of a kind, its settings checked by name and type.

    Whether their values are possible is left to the transformer: see
    `cvpipe.features.base.ImageTransformer.check_settings`.

    Args:
        kind: One of `KINDS`.
        image_size: `(height, width)` in pixels; the usual one of the kind if not given.
        settings: Settings by name; the usual ones where not given.

    Raises:
        InputError: The kind or a setting is unknown, or a setting is of another type.
    """
    usual = KINDS[check_name("kind of feature", kind, KINDS)]
    changed = {}
    for name, value in (settings or {}).items():
        if name not in usual.settings:
            raise InputError(
                f"a feature of the kind {kind!r} has no setting {name!r}; "
                f"{nearest_name(name, list(usual.settings))}"
            )
        wanted = type(usual.settings[name])
        converted = float(value) if wanted is float and type(value) is int else value
        if type(converted) is not wanted:
            raise InputError(
                f"{name} of a feature of the kind {kind!r} must be {TYPE_WORDS[wanted]}, such as "
                f"{_in_words(usual.settings[name])}, but is {value!r}."
            )
        if converted != usual.settings[name]:
            changed[name] = converted
    return Feature(kind, image_size or usual.image_size, tuple(sorted(changed.items())))


def _in_words(value: Any) -> str:
    """Write a setting as in a pipeline file."""
    return json.dumps(value) if not isinstance(value, str) else value


def _build_file_facts() -> Callable[[Sequence[Path]], Any]:
    from cvpipe.features.file_facts import describe_files

    return describe_files


TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a list of whole numbers",
}

KINDS: dict[str, FeatureKind] = {
    "raw_pixels": FeatureKind(
        "raw pixels",
        ("raw_pixels", "RawPixels"),
        (32, 32),
        {"colour": "colour", "normalise": "none"},
        is_signed=lambda settings: settings["normalise"] == "unit",
    ),
    "colour_histogram": FeatureKind(
        "colour histogram",
        ("colour_histogram", "ColourHistogram"),
        (128, 128),
        {"num_bins": 32, "space": "hsv", "joint": False, "grid": 1, "square_root": False},
    ),
    "hog": FeatureKind(
        "histogram of oriented gradients",
        ("hog", "HistogramOfOrientedGradients"),
        (128, 128),
        {
            "orientations": 9,
            "cell_pixels": 8,
            "block_cells": 2,
            "block_norm": "l2-hys",
            "square_root": False,
            "colour": "colour",
            "soft": False,
            "signed": False,
        },
    ),
    "local_binary_patterns": FeatureKind(
        "local binary patterns",
        ("local_binary_patterns", "LocalBinaryPatterns"),
        (128, 128),
        {
            "num_points": 8,
            "radius": 1,
            "mapping": "uniform",
            "grid": 4,
            "square_root": False,
        },
    ),
    "texture_energy": FeatureKind(
        "texture energy of Gabor filters",
        ("texture", "TextureEnergy"),
        (128, 128),
        {"num_scales": 4, "num_orientations": 6, "grid": 4, "local_contrast": False},
    ),
    "bag_of_words": FeatureKind(
        "bag of visual words",
        ("bag_of_words", "BagOfWords"),
        (128, 128),
        {
            "descriptor": "sift",
            "num_words": 256,
            "step_pixels": 4,
            "cell_pixels": (4,),
            "patch_pixels": 8,
            "assignment": "soft",
            "levels": 3,
            "weighting": "square_root",
            "norm": "l2",
            "num_samples": 100_000,
        },
        learns=True,
    ),
    "kmeans_features": FeatureKind(
        "k-means features of small patches",
        ("kmeans_features", "KMeansFeatures"),
        (32, 32),
        {
            "patch_pixels": 6,
            "num_words": 400,
            "stride_pixels": 1,
            "grid": 2,
            "interpolate": False,
            "colour": "grey",
            "assignment": "triangle",
            "square_root": False,
            "num_samples": 100_000,
        },
        learns=True,
    ),
    "fisher_vectors": FeatureKind(
        "local descriptors as Fisher vectors",
        ("fisher_vectors", "FisherVectors"),
        (128, 128),
        {
            "num_gaussians": 32,
            "num_dimensions": 64,
            "places": True,
            "step_pixels": 8,
            "cell_pixels": (4, 8),
            "num_samples": 100_000,
        },
        learns=True,
        is_signed=lambda _: True,
    ),
}

# What contenders can name without further ado.
FEATURES: dict[str, Feature | FileFeature] = {
    "raw_pixels": make_feature("raw_pixels"),
    "tiny_images": make_feature("raw_pixels", settings={"normalise": "unit"}),
    "colour_histogram": make_feature("colour_histogram"),
    "joint_colour_histogram": make_feature(
        "colour_histogram", settings={"num_bins": 8, "joint": True, "square_root": True}
    ),
    "hog": make_feature("hog", settings={"cell_pixels": 16, "soft": True}),
    "local_binary_patterns": make_feature("local_binary_patterns"),
    "texture_energy": make_feature("texture_energy"),
    "bag_of_words": make_feature("bag_of_words"),
    "bag_of_patches": make_feature("bag_of_words", settings={"descriptor": "patches"}),
    "kmeans_features": make_feature("kmeans_features"),
    "fisher_vectors": make_feature("fisher_vectors"),
    "file_facts": FileFeature(
        title="width, height, channels, format and size of the file",
        row_size=11,
        build=_build_file_facts,
        identity=(
            "file_facts-1: width, height, channels, file_bytes, format_jpeg, format_png, "
            "format_bmp, format_gif, format_webp, format_tiff, format_dicom"
        ),
    ),
}
