"""The features by name: plain data, loaded without OpenCV, scikit-learn or Pillow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Feature:
    """A way to describe an image by numbers.

    Attributes:
        title: What people call it.
        image_size: `(height, width)` in pixels that images are brought to first.
        build: Makes the scikit-learn transformer.
        identity: What distinguishes its rows from those of other settings; part of the
            cache key, so it changes whenever the numbers do.
    """

    title: str
    image_size: tuple[int, int]
    build: Callable[[], Any]
    identity: str


@dataclass(frozen=True)
class FileFeature:
    """A way to describe an image file by numbers without looking at the pixels.

    Attributes:
        title: What people call it.
        row_size: Length of a row.
        build: Makes the function from the paths of n files to a `float32` array of shape
            `(n, row_size)`. A row depends on nothing but the bytes of its file.
        identity: See `Feature`.
    """

    title: str
    row_size: int
    build: Callable[[], Callable[[Sequence[Path]], Any]]
    identity: str


def _build_raw_pixels() -> Any:
    from cvpipe.features.raw_pixels import RawPixels

    return RawPixels()


def _build_colour_histogram() -> Any:
    from cvpipe.features.colour_histogram import ColourHistogram

    return ColourHistogram(num_bins=32)


def _build_hog() -> Any:
    from cvpipe.features.hog import HistogramOfOrientedGradients

    return HistogramOfOrientedGradients(cell_pixels=16)


def _build_file_facts() -> Callable[[Sequence[Path]], Any]:
    from cvpipe.features.file_facts import describe_files

    return describe_files


FEATURES: dict[str, Feature | FileFeature] = {
    "raw_pixels": Feature(
        title="raw pixels of the image at 32x32",
        image_size=(32, 32),
        build=_build_raw_pixels,
        identity="raw_pixels-1: 32x32",
    ),
    "colour_histogram": Feature(
        title="histogram of hue, saturation and value",
        image_size=(128, 128),
        build=_build_colour_histogram,
        identity="colour_histogram-1: 128x128, 32 bins",
    ),
    "hog": Feature(
        title="histogram of oriented gradients",
        image_size=(128, 128),
        build=_build_hog,
        identity="hog-1: 128x128, cell 16, 9 orientations",
    ),
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
