"""Copies of images as people make them, to be planted among the images of a data set.

A copy is a file's bytes, so that whoever looks for it has to decode it as any other file.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

RAW = Path(__file__).parent.parent / "data" / "raw"
DATASETS = ("brain_mri", "digits", "solar_cells")


def corpus_parser(description: str) -> argparse.ArgumentParser:
    """Make the parser of a script that plants copies in data sets.

    Args:
        description: The script's docstring; its first line is shown.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument(
        "datasets", nargs="*", default=DATASETS, help="folders of images below ROOT"
    )
    parser.add_argument("--root", type=Path, default=RAW, help="where the folders are")
    parser.add_argument("--planted", type=int, default=200, help="copies of each kind")
    return parser


def as_png(image: np.ndarray) -> bytes:
    """Encode an image without loss."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def as_jpeg(image: np.ndarray) -> bytes:
    """Encode an image as JPEG of quality 75."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def resize(image: np.ndarray, factor: float) -> np.ndarray:
    """Resample an image (bicubic) to a share of its height and width."""
    height, width = image.shape[:2]
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def brighten(image: np.ndarray) -> np.ndarray:
    """Multiply the values by 1.2; what exceeds white is cut off."""
    return np.clip(image * 1.2, 0, 255).astype(np.uint8)


def crop(image: np.ndarray, top: float, left: float) -> np.ndarray:
    """Cut away 5 % of the height and of the width; 0 keeps the start, 1 the end."""
    height, width = image.shape[:2]
    kept_height, kept_width = round(height * 0.95), round(width * 0.95)
    first_row, first_column = (
        round((height - kept_height) * top),
        round((width - kept_width) * left),
    )
    return image[first_row : first_row + kept_height, first_column : first_column + kept_width]


def mirror(image: np.ndarray) -> np.ndarray:
    """Exchange left and right."""
    return image[:, ::-1]


# Each makes of an image `(height, width, 3)` the bytes of a file.
COPIES: dict[str, Callable[[np.ndarray], bytes]] = {
    "re-encoded": as_jpeg,
    "resized to 75 %": lambda image: as_png(resize(image, 0.75)),
    "resized to 50 %": lambda image: as_png(resize(image, 0.5)),
    "brightened": lambda image: as_png(brighten(image)),
    "cropped, centre": lambda image: as_png(crop(image, 0.5, 0.5)),
    "cropped, corner": lambda image: as_png(crop(image, 1.0, 0.0)),
    "mirrored": lambda image: as_png(mirror(image)),
    "mirrored, re-encoded": lambda image: as_jpeg(mirror(image)),
}
