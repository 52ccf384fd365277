"""Compute the features of an ImageNet network in every runtime that is installed, in turns.

    pip install "cvpipe[litert,openvino,onnxruntime]" && python benchmarks/runtimes.py

EfficientNet-Lite0 on parts of real photos, in batches and image by image. `model.predict` is called
once for each batch, as a service would; the base of batches is the TensorFlow function that cvpipe
computes features with, the base of single images `model.predict`. Every round takes all sides in
another order. Figures are the best and the median round; a ratio is of bests, then of medians.
"""

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np
import skimage.data

from cvpipe.errors import InputError
from cvpipe.models.backbones import build_backbone
from cvpipe.models.features import build_embed
from cvpipe.models.framework import set_threads
from cvpipe.models.runtimes import RUNTIMES, agreement, build_run, runtime_identity

if TYPE_CHECKING:
    import keras

KERAS, TENSORFLOW = "Keras model.predict", "TensorFlow function"
# What each batch size is measured against.
BASES = {32: TENSORFLOW, 1: KERAS}
NUM_IMAGES = 32
PHOTOS = ("astronaut", "cat", "coffee", "rocket", "retina", "immunohistochemistry")

Side = Callable[[np.ndarray], np.ndarray]


def photo_parts(size: tuple[int, int]) -> np.ndarray:
    """Cut squares of half to all of the height out of real photos."""
    rng = np.random.default_rng(0)
    photos = [getattr(skimage.data, name)() for name in PHOTOS]
    parts = np.empty((NUM_IMAGES, *size, 3), np.uint8)
    for number in range(NUM_IMAGES):
        photo = photos[number % len(photos)]
        side = int(min(photo.shape[:2]) * rng.uniform(0.5, 1))
        top, left = rng.integers(0, np.subtract(photo.shape[:2], side) + 1)
        part = photo[top : top + side, left : left + side]
        parts[number] = cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA)
    return parts


def build_sides(model: "keras.Model", batch_size: int, threads: int) -> dict[str, Side]:
    """Open the network in all that is there; say what is not, and how long each took to open."""
    builders: dict[str, Callable[[], Side]] = {
        KERAS: lambda: lambda images: model.predict(images, batch_size=batch_size, verbose=0),
        TENSORFLOW: lambda: build_embed(model, batch_size),
    }
    for name, runtime in RUNTIMES.items():
        for precision in ("float32", "bfloat16") if runtime.has_bfloat16 else ("float32",):
            builders[f"{name}, {precision}"] = lambda name=name, precision=precision: build_run(
                model, name, precision, batch_size, threads
            )
    sides = {}
    for name, build in builders.items():
        started = time.perf_counter()
        try:
            sides[name] = build()
        except InputError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        # TensorFlow traces at the first call.
        sides[name](np.zeros((batch_size, *model.input_shape[1:]), np.uint8))
        print(f"{name}: ready in {time.perf_counter() - started:.1f} s", flush=True)
    return sides


def speed(side: Side, batches: list[np.ndarray], seconds: float) -> float:
    """Take batches for some seconds, the first one untimed; give images per second."""
    side(batches[0])
    num_images, elapsed, started = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        batch = batches[num_images % len(batches)]
        side(batch)
        num_images += len(batch)
        elapsed = time.perf_counter() - started
    return num_images / elapsed


def measure(
    sides: dict[str, Side], batches: list[np.ndarray], num_rounds: int, seconds: float
) -> dict[str, np.ndarray]:
    """Measure all sides in turns, each round in another order."""
    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name in rng.permutation(list(sides)):
            speeds[name].append(speed(sides[name], batches, seconds))
    return {name: np.array(rounds) for name, rounds in speeds.items()}


def print_table(
    speeds: dict[str, np.ndarray], base: str, sides: dict[str, Side], batch: np.ndarray
) -> None:
    """Print a row for each side: images per second, ratios, and how far its features are off."""
    print(f"| | images/s, best | median | x {base}, best | median | agreement |")
    print("|---|---|---|---|---|---|")
    for name, rounds in speeds.items():
        figures = rounds.max(), np.median(rounds)
        ratios = figures[0] / speeds[base].max(), figures[1] / np.median(speeds[base])
        off = agreement(sides[name], sides[TENSORFLOW], batch)
        cells = [*(f"{f:.1f}" for f in figures), *(f"{r:.2f}" for r in ratios), f"{off:.1e}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print a table for batches and one for single images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2, help="length of a sample")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    set_threads(options.threads)
    model = build_backbone("efficientnet_lite0")
    images = photo_parts(model.input_shape[1:3])
    for batch_size, base in BASES.items():
        print(f"\nbatches of {batch_size}, {options.threads} threads")
        sides = build_sides(model, batch_size, options.threads)
        batches = np.split(images, NUM_IMAGES // batch_size)
        speeds = measure(sides, batches, options.rounds, options.seconds)
        print_table(speeds, base, sides, batches[0])
    print()
    for name in RUNTIMES:
        try:
            print(runtime_identity(name))
        except InputError as error:
            print(error)


if __name__ == "__main__":
    main()
