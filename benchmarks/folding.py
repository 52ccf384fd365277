"""Frozen networks as Keras computes them and with normalisations folded, in turns.

    python benchmarks/folding.py

The same function of TensorFlow around both, the same images in batches of 32. Only ratios mean
anything. Weights are drawn, but for the networks of the data package: time does not depend on them.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import time

import numpy as np

from cvpipe.models.backbones import BACKBONES, BackboneSpec, build_backbone
from cvpipe.models.features import BATCH_SIZE, build_embed
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import set_threads

THREADS = 2
NAMES = ("efficientnet_lite0", "efficientnet_lite2", "mobilenet_v2", "resnet50", "densenet121")


def main() -> None:
    """Print a row of a table for each network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--names", nargs="+", default=NAMES)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    set_threads(THREADS)
    print("| network | times as fast: best | median | largest difference |")
    print("|---|---:|---:|---:|")
    for name in arguments.names:
        print(compare(name, arguments.rounds), flush=True)


def compare(name: str, rounds: int) -> str:
    """Time both sides of a network in turns."""
    weights = "package" if BACKBONES[name].weights else "none"
    network = build_backbone(BackboneSpec(name, weights))
    sides = [build_embed(network), build_embed(fold_norms(network))]
    shape = (BATCH_SIZE, *network.input_shape[1:])
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    plain, folded = (side(images) for side in sides)  # prepares them
    difference = np.abs(plain - folded).max() / np.abs(plain).max()
    seconds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for side, taken in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            side(images)
            taken.append(time.perf_counter() - started)
    best, median = (how(seconds[0]) / how(seconds[1]) for how in (min, np.median))
    return f"| {name} | {best:.2f} | {median:.2f} | {difference:.1e} |"


if __name__ == "__main__":
    main()
