"""What ten crops of each image, and five snapshots of a network, cost beside one of them.

    pip install "cvpipe[openvino]" && python benchmarks/ensembles.py ten_crop
    python benchmarks/ensembles.py snapshots

EfficientNet-Lite0 at 224 pixels. Every round takes all sides in another order. Figures are the best
round, the median one, and the median of the processors' time; a ratio is of bests, then the median
of the rounds' ratios, by the clock and by the processors' time.

*ten_crop*: files of 500 x 375 pixels, parts of real photos, from the file to the probabilities.
Ours decodes a file once, brings it to 256 pixels and computes full batches of crops; threads load
the next images meanwhile. One view is the same at 224 pixels. The naive way decodes a file once as
well, and calls `model.predict` for every crop.

*snapshots*: one model whose members share all that is frozen, on batches of images that are in
memory, beside one network. What is asked follows from the share of the multiply-adds that lie
behind the freeze point.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import skimage.data
from sklearn.datasets import load_sample_images

from cvpipe.data.images import DEFAULT_RULE, read_image, resize_image
from cvpipe.data.threads import load_batches
from cvpipe.errors import InputError
from cvpipe.inference.crops import cut_batch, num_views, size_to_crop_from, slice_views
from cvpipe.models.backbones import BackboneSpec, build_backbone
from cvpipe.models.features import BATCH_SIZE, build_embed, build_frozen_embed
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import import_keras, set_threads
from cvpipe.models.heads import attach_linear_head
from cvpipe.models.merging import share_trunk
from cvpipe.models.transfer import attach_trainable_head, part_network

SPEC = BackboneSpec("efficientnet_lite0")
HEAD = np.random.default_rng(0).normal(0, 0.05, (1280, 10)).astype(np.float32), np.zeros(10)
THREADS = 2
KIND = "ten_crop"
FILE_SIZE = (375, 500)  # height, width
PHOTOS = ("astronaut", "cat", "coffee", "rocket")
NUM_MEMBERS = 5
MARGIN = 1.15  # on what the multiply-adds say

Embed = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    """Run the part that is asked for and print its ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("ten_crop", "snapshots"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=64, help="images in a sample")
    parser.add_argument("--naive-images", type=int, default=4, help="the same, of the naive way")
    parser.add_argument("--points", nargs="+", default=["features", "block_15", "block_11"])
    arguments = parser.parse_args()
    set_threads(THREADS)
    {"ten_crop": compare_crops, "snapshots": compare_snapshots}[arguments.part](arguments)


class Times(NamedTuple):
    """Seconds per image of each round: on the clock, and of processors."""

    clock: np.ndarray
    processors: np.ndarray


def measure(
    sides: dict[str, Callable[[], object]], counts: dict[str, int], num_rounds: int
) -> dict[str, Times]:
    """Take all sides in turns, each round in another order; `counts` are of images."""
    rng = np.random.default_rng(0)
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name in rng.permutation(list(sides)):
            started = time.perf_counter(), time.process_time()
            sides[name]()
            ended = time.perf_counter(), time.process_time()
            rounds[name].append((ended[0] - started[0], ended[1] - started[1]))
    times = {name: Times(*np.transpose(rounds[name]) / counts[name]) for name in sides}
    for name, (clock, processors) in times.items():
        figures = [clock.min(), np.median(clock), np.median(processors)]
        print(f"  {name}: {' / '.join(f'{1000 * figure:.1f}' for figure in figures)} ms per image")
    return times


def ratio(longer: Times, shorter: Times) -> str:
    """Say how many times as long a side takes: best, median, and median of processor time."""
    best = longer.clock.min() / shorter.clock.min()
    medians = [np.median(a / b) for a, b in zip(longer, shorter, strict=True)]
    return " / ".join(f"{figure:.2f}" for figure in (best, *medians))


# --- ten crops --------------------------------------------------------------------------


def write_photos(folder: Path, num_images: int) -> list[Path]:
    """Write parts of real photos as JPEG files."""
    rng = np.random.default_rng(0)
    photos = [getattr(skimage.data, name)() for name in PHOTOS] + load_sample_images().images
    paths = []
    for number in range(num_images):
        photo = photos[number % len(photos)]
        most = min(photo.shape[0] / FILE_SIZE[0], photo.shape[1] / FILE_SIZE[1])
        size = (np.array(FILE_SIZE) * most * rng.uniform(0.6, 1)).astype(int)
        top, left = rng.integers(0, np.subtract(photo.shape[:2], size) + 1)
        part = photo[top : top + size[0], left : left + size[1], ::-1]  # OpenCV writes BGR
        paths.append(folder / f"{number:04}.jpg")
        cv2.imwrite(str(paths[-1]), cv2.resize(part, FILE_SIZE[::-1]))
    return paths


def one_view(paths: Sequence[Path], embed: Embed) -> np.ndarray:
    """Classify files as they are, in full batches."""
    batches = load_batches(paths, SPEC.size, DEFAULT_RULE, BATCH_SIZE, THREADS)
    return np.concatenate([embed(batch) for batch in batches])


def ten_crops(paths: Sequence[Path], embed: Embed) -> np.ndarray:
    """Classify files by ten crops of each; the crops of all images of a batch fill batches."""
    size = size_to_crop_from(SPEC.size)
    rows = []
    for batch in load_batches(paths, size, DEFAULT_RULE, BATCH_SIZE, THREADS):
        crops = cut_batch([batch], SPEC.size, KIND).reshape(-1, *SPEC.size, 3)
        rows.append(embed(crops).reshape(len(batch), num_views(KIND), -1).mean(axis=1))
    return np.concatenate(rows)


def ten_crops_one_by_one(paths: Sequence[Path], model: Any) -> np.ndarray:
    """Classify files by ten crops of each, crop after crop."""
    size = size_to_crop_from(SPEC.size)
    rows = []
    for path in paths:
        image = resize_image(read_image(path, DEFAULT_RULE), size, DEFAULT_RULE.fit)
        crops = slice_views([image], SPEC.size, KIND)
        rows.append(np.mean([model.predict(c[np.newaxis], verbose=0)[0] for c in crops], axis=0))
    return np.stack(rows)


def compare_crops(arguments: Any) -> None:
    """Time one view, ten crops of ours and ten crops one by one."""
    model = attach_linear_head(build_backbone(SPEC), *HEAD, name="photos")
    folded = fold_norms(model)  # as every contender's network is; the naive way has Keras's own
    embeds = {"TensorFlow": build_embed(folded, BATCH_SIZE)}
    try:
        embeds["OpenVINO"] = build_frozen_embed(folded, "openvino", "float32", THREADS, BATCH_SIZE)
    except InputError as error:
        print(f"without OpenVINO: {error}")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), arguments.images)
        few = paths[: arguments.naive_images]
        naive = "ten crops one by one, model.predict"
        sides: dict[str, Callable[[], object]] = {naive: lambda: ten_crops_one_by_one(few, model)}
        for name, embed in embeds.items():
            sides[f"one view, {name}"] = lambda embed=embed: one_view(paths, embed)
            sides[f"ten crops, {name}"] = lambda embed=embed: ten_crops(paths, embed)
        expected = ten_crops_one_by_one(few, model)  # and traces
        for name, embed in embeds.items():
            embed(np.zeros((1, *SPEC.size, 3), np.uint8))
            off = np.abs(ten_crops(few, embed) - expected).max()
            print(f"{name}: largest difference from the naive way {off:.1e}")
        counts = {side: len(few if side == naive else paths) for side in sides}
        seconds = measure(sides, counts, arguments.rounds)
    asked = {"TensorFlow": 9, "OpenVINO": 18}
    for name in embeds:
        ours, one = seconds[f"ten crops, {name}"], seconds[f"one view, {name}"]
        print(f"{name}, ten crops against one view: {ratio(ours, one)} (at most 9.5 is asked)")
        print(f"{name}, naive to ours: {ratio(seconds[naive], ours)} ({asked[name]} is asked)")


# --- snapshots --------------------------------------------------------------------------


def compare_snapshots(arguments: Any) -> None:
    """Time models of five members that share a trunk, and one network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.images, *SPEC.size, 3)).astype(np.uint8)
    network = fold_norms(attach_linear_head(build_backbone(SPEC), *HEAD, name="one"))
    embeds = {"one network": build_embed(network, BATCH_SIZE)}
    shares = {}
    for point in arguments.points:
        model = attach_trainable_head(build_backbone(SPEC), *HEAD, dropout=0.2, seed=0)
        trunk, tail = part_network(SPEC, model, point)
        shares[point] = multiply_adds(tail) / multiply_adds(model)
        weights = [[variable.numpy() for variable in tail.variables]] * NUM_MEMBERS
        ensemble = fold_norms(share_trunk(trunk, tail, weights, f"behind_{point}"))
        embeds[point] = build_embed(ensemble, BATCH_SIZE)
    for name, embed in embeds.items():  # traces it
        off = np.abs(embed(images[:BATCH_SIZE]) - embeds["one network"](images[:BATCH_SIZE])).max()
        print(f"{name}: largest difference from one network {off:.1e}")
    sides = {name: lambda embed=embed: embed(images) for name, embed in embeds.items()}
    seconds = measure(sides, dict.fromkeys(sides, len(images)), arguments.rounds)
    for point, share in shares.items():
        most = MARGIN * (1 + (NUM_MEMBERS - 1) * share)
        print(
            f"{NUM_MEMBERS} members behind {point}, {share:.1%} of the multiply-adds: "
            f"{ratio(seconds[point], seconds['one network'])} (at most {most:.2f} is asked)"
        )


def multiply_adds(network: Any) -> int:
    """Count the multiplications of convolutions and dense layers for one image."""
    layers = import_keras().layers
    counted = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    return sum(
        math.prod(layer.output.shape[1:3] if layer.kernel.ndim == 4 else ())
        * math.prod(layer.kernel.shape)
        for layer in network.layers
        if isinstance(layer, counted)
    )


if __name__ == "__main__":
    main()
