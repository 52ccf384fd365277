"""Measure hand-crafted features beside their peers: CPU time, in turns in one process, one thread.

    python benchmarks/features.py                         all but accuracy, some minutes
    python benchmarks/features.py hog dense               parts of it
    python benchmarks/features.py --accuracy digits       what a bag of words loses by our
                                                          descriptors, on data/raw/digits

On crops of photos that scikit-image ships. Each round runs ours and then its peers, so that a busy
machine slows all of them. *Best*: least time of the peer over the least of ours; *median*: of the
rounds' ratios. What is asked is met if both reach it.

- `hog`: beside scikit-image (equal numbers) and OpenCV's `HOGDescriptor` (of another definition).
  Grey: the peers get images that are grey already, ours makes them so.
- `histogram`: 8 x 8 x 8 bins of hue, saturation and value beside `np.histogramdd` (equal numbers):
  counting pixels that both got converted, and all from RGB to shares.
- `dense`: descriptors every 8 pixels beside OpenCV's SIFT at the same points, upright, with windows
  of the same cells, from RGB; ours take square roots as well.
- `bag`: learn 256 words from 200 images and count those of each image, hard and over the whole
  image, beside the naive pipeline: SIFT of each image on the same grid, scikit-learn's KMeans on
  all, predict for each image, `np.histogram`. Also beside the same with only as many rounds of
  k-means as ours has, and beside our own usual settings: shares of words, and a pyramid.
- `codebook`: the words alone, from the same descriptors, beside KMeans and faiss, with the mean
  squared distance of other descriptors to their word; and looking words up, image by image.
- `memory`: what learning the words adds to a fresh process.

`--accuracy`: usual bags of words of either descriptor and a linear SVM (C = 1), each image by what
was learned without its fold; three times, with other folds and words. Is a loss of more than a
point ruled out?

faiss is no dependency of cvpipe: `pip install faiss-cpu`, or it is left out. Linux only.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported: it halves its speed
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import importlib
import itertools
import multiprocessing
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pandas as pd
import skimage.data
from skimage.feature import hog
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cvpipe.classifiers.search import group_folds
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.data.images import DecodeRule
from cvpipe.data.manifest import scan_images
from cvpipe.data.threads import load_batches
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.features.bag_of_words import BagOfWords
from cvpipe.features.codebook import (
    BLOCK_IMAGES,
    CLUSTERING_ROUNDS,
    assign_words,
    learn_codebook,
    sample_rows,
    soft_assign,
)
from cvpipe.features.colour_histogram import ColourHistogram, convert_colours, count_levels
from cvpipe.features.dense_descriptors import (
    DESCRIPTOR_LENGTH,
    dense_descriptors,
    descriptor_places,
)
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.features.spatial_pyramid import pool
from cvpipe.frames import class_names_of, make_predictions, predicted_labels, targets_of
from cvpipe.opencv import import_cv2

cv2 = import_cv2()

PHOTOS = ("astronaut", "cat", "coffee", "immunohistochemistry", "rocket")
STEP = 8
CELLS = (4, 8, 12)
BAG = BagOfWords()  # with its usual settings
BAG_PIXELS = 128
# How many times as fast as its first peer a feature has to be.
ASKED = {"hog": 15, "histogram": 12, "dense": 20, "bag": 5}
# Side of the images, and where the labels are.
DATASETS = {"digits": (56, "folders"), "solar_cells": (128, "labels.csv")}
RAW = Path(__file__).parent.parent / "data" / "raw"
NUM_FOLDS = 5
NUM_REPEATS = 3
MARGIN = 0.01  # as for the folds of a run

Describe = Callable[[np.ndarray], np.ndarray]


class Scale(NamedTuple):
    """How much is measured.

    Args:
        num_images: By the side of the images.
        num_rounds: Turns of a case.
        bag_images: That words are learned from.
        num_words: So many.
        slow_rounds: Turns where words are learned.
        memory_images: Numbers of images.
    """

    num_images: dict[int, int]
    num_rounds: int
    bag_images: int
    num_words: int
    slow_rounds: int
    memory_images: tuple[int, ...]


FULL = Scale({64: 200, 128: 100, 224: 40}, 9, 200, BAG.num_words, 2, (200, 400, 2_000))
QUICK = Scale({64: 4}, 2, 4, 8, 1, (8,))


class Case(NamedTuple):
    """Ours and its peers at the same work.

    Args:
        name: What is done.
        side: Of the images, in pixels.
        num_images: How many a call takes.
        ours: Does it.
        peers: Do it, by name.
        asked: How many times as fast as the first peer ours has to be.
        note: Says, in a sentence, how far the results agree.
        is_slow: Whether fewer rounds have to do.
    """

    name: str
    side: int
    num_images: int
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    asked: float | None = None
    note: Callable[[], str] | None = None
    is_slow: bool = False


# Time


def take_turns(functions: Sequence[Callable[[], object]], num_rounds: int) -> np.ndarray:
    """Measure CPU seconds, those of all threads: one row per round, one column per function."""
    seconds = np.empty((num_rounds, len(functions)))
    for turn in range(num_rounds):
        for number, function in enumerate(functions):
            started = time.process_time()
            function()
            seconds[turn, number] = time.process_time() - started
    return seconds


def best_and_median(seconds: np.ndarray) -> np.ndarray:
    """Compute how many times as long as the first column each other one took, `(others, 2)`."""
    best = seconds.min(axis=0)
    medians = np.median(seconds / seconds[:, :1], axis=0)
    return np.column_stack([best / best[0], medians])[1:]


def table_rows(case: Case, seconds: np.ndarray) -> Iterator[str]:
    """Write the row of each peer in Markdown."""
    per_image = seconds.min(axis=0) / case.num_images * 1e6
    ratios = best_and_median(seconds)
    for number, (peer, (best, median)) in enumerate(zip(case.peers, ratios, strict=True)):
        asked = case.asked if number == 0 else None
        verdict = "" if asked is None else "yes" if min(best, median) >= asked else "**no**"
        cells = (
            *(case.name, f"{case.side}", peer),
            *(f"{per_image[0]:,.0f}", f"{per_image[number + 1]:,.0f}"),
            *(f"{best:.1f}", f"{median:.1f}", "" if asked is None else f"{asked:g}", verdict),
        )
        yield f"| {' | '.join(cells)} |"


def print_table(cases: Iterable[Case], scale: Scale) -> None:
    """Measure cases; print a row per peer, then the notes."""
    notes = []
    print("| | pixels | peer | ours | peer's | best | median | asked | met |")
    print("|---|---:|---|---:|---:|---:|---:|---:|---|")
    for case in cases:
        num_rounds = scale.slow_rounds if case.is_slow else scale.num_rounds
        seconds = take_turns([case.ours, *case.peers.values()], num_rounds)
        print("\n".join(table_rows(case, seconds)), flush=True)
        if case.note:
            notes.append(case.note())
    print("\nCPU microseconds per image, the least of all rounds.\n")
    print("\n".join(f"- {note}" for note in notes), flush=True)


# What is compared


def crop_photos(side: int, num_images: int, seed: int = 0) -> np.ndarray:
    """Cut squares of random size and place out of photos and shrink them.

    Returns:
        `uint8` array of shape `(num_images, side, side, 3)`, RGB.
    """
    photos = [getattr(skimage.data, name)() for name in PHOTOS]
    rng = np.random.default_rng(seed)
    images = np.empty((num_images, side, side, 3), dtype=np.uint8)
    for number in range(num_images):
        photo = photos[number % len(photos)]
        part = rng.integers(side, min(photo.shape[:2]) + 1)
        top, left = rng.integers(0, np.subtract(photo.shape[:2], part) + 1)
        square = photo[top : top + part, left : left + part]
        images[number] = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    return images


def each(function: Callable[[np.ndarray], object], images: np.ndarray) -> list:
    """Call a function for each image."""
    return [function(image) for image in images]


def to_grey(image: np.ndarray) -> np.ndarray:
    """Convert RGB to grey levels as our features do."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def agreement(title: str, ours: Callable[[], object], theirs: Callable[[], object]) -> str:
    """Say how far two results are apart."""
    apart = np.abs(np.subtract(ours(), theirs())).max()
    return f"{title}: numbers at most {apart:.1e} apart."


def hog_cases(scale: Scale) -> Iterator[Case]:
    """HOG, grey and colour."""
    for side, num_images in scale.num_images.items():
        images = crop_photos(side, num_images)
        opencv = cv2.HOGDescriptor((side, side), (16, 16), (8, 8), (8, 8), 9)
        for colour in ("grey", "colour"):
            is_grey = colour == "grey"
            inputs = each(to_grey, images) if is_grey else images
            settings = {"cells_per_block": (2, 2), "channel_axis": None if is_grey else -1}
            name = f"HOG, {colour}"
            features = HistogramOfOrientedGradients(colour=colour).fit(images)
            ours = partial(features.transform, images)
            theirs = partial(each, partial(hog, **settings), inputs)
            peers = {"scikit-image": theirs, "OpenCV": partial(each, opencv.compute, inputs)}
            note = partial(agreement, f"{name}, {side} pixels", ours, theirs)
            yield Case(name, side, num_images, ours, peers, asked=ASKED["hog"], note=note)


def count_by_numpy(pixels: np.ndarray) -> np.ndarray:
    """Count the pixels of an image in 8 x 8 x 8 bins by `np.histogramdd`."""
    return np.histogramdd(pixels.reshape(-1, 3), bins=(8, 8, 8), range=[(0, 256)] * 3)[0].ravel()


def shares_by_numpy(image: np.ndarray) -> np.ndarray:
    """Compute the shares of colours by `np.histogramdd`."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    return (count_by_numpy(pixels) / pixels[..., 0].size).astype(np.float32)


def histogram_cases(scale: Scale) -> Iterator[Case]:
    """Joint colour histogram: counting alone, and end to end."""
    name, peer = "colour histogram", "np.histogramdd"
    for side, num_images in scale.num_images.items():
        images = crop_photos(side, num_images)
        pixels = each(partial(convert_colours, space="hsv"), images)
        count = partial(count_levels, num_bins=dict.fromkeys(range(3), 8))
        features = ColourHistogram(num_bins=8, joint=True).fit(images)
        pairs = {
            "counting": (partial(each, count, pixels), partial(each, count_by_numpy, pixels)),
            "end to end": (
                partial(features.transform, images),
                partial(each, shares_by_numpy, images),
            ),
        }
        for what, (ours, theirs) in pairs.items():
            title = f"{name}, {what}"
            note = partial(agreement, f"{title}, {side} pixels", ours, theirs)
            asked = ASKED["histogram"]
            yield Case(title, side, num_images, ours, {peer: theirs}, asked=asked, note=note)


def grid_keypoints(side: int, step_pixels: int, cell_pixels: tuple[int, ...]) -> list:
    """Put OpenCV's keypoints where our descriptors are, with windows of the same size.

    OpenCV makes a cell 1.5 times the keypoint's size wide.
    """
    return [
        cv2.KeyPoint(float(column) - 0.5, float(row) - 0.5, cell / 1.5, 0)
        for cell in cell_pixels
        for row, column in descriptor_places((side, side), step_pixels, (cell,)) * side
    ]


def dense_sift(images: np.ndarray, keypoints: list) -> list[np.ndarray]:
    """Describe each image by OpenCV: `(points, 128)`, whole numbers of 0 to 255."""
    sift = cv2.SIFT_create()
    return each(lambda image: sift.compute(to_grey(image), keypoints)[1], images)


def dense_cases(scale: Scale) -> Iterator[Case]:
    """Descriptors on a grid, of several sizes."""
    for side, num_images in scale.num_images.items():
        images = crop_photos(side, num_images)
        for cell in CELLS:
            keypoints = grid_keypoints(side, STEP, (cell,))
            name = f"{len(keypoints)} dense descriptors, cells of {cell}"
            ours = partial(dense_descriptors, images, STEP, (cell,))
            peers = {"OpenCV SIFT": partial(dense_sift, images, keypoints)}
            yield Case(name, side, num_images, ours, peers, asked=ASKED["dense"])


def naive_bag(images: np.ndarray, num_words: int, max_iter: int = 300) -> np.ndarray:
    """Learn words and count them with what is at hand, image by image: `(n, num_words)`."""
    keypoints = grid_keypoints(images.shape[1], BAG.step_pixels, BAG.cell_pixels)
    descriptors = dense_sift(images, keypoints)
    words = KMeans(num_words, max_iter=max_iter, random_state=0).fit(np.concatenate(descriptors))
    borders = np.arange(num_words + 1)
    return np.stack([np.histogram(words.predict(rows), borders)[0] for rows in descriptors])


def bag_cases(scale: Scale) -> Iterator[Case]:
    """Bag of words end to end."""
    images = crop_photos(BAG_PIXELS, scale.bag_images)
    usual = BagOfWords(num_words=scale.num_words)
    plain = BagOfWords(
        num_words=scale.num_words, assignment="hard", levels=1, weighting="none", norm="l1"
    )
    naive = partial(naive_bag, images, scale.num_words)
    peers = {
        "naive pipeline": naive,
        f"naive, {CLUSTERING_ROUNDS} rounds": partial(naive, max_iter=CLUSTERING_ROUNDS),
        "ours, usual settings": partial(usual.fit_transform, images),
    }
    ours = partial(plain.fit_transform, images)
    asked = ASKED["bag"]
    yield Case("bag of words", BAG_PIXELS, len(images), ours, peers, asked=asked, is_slow=True)


def quantisation_error(descriptors: np.ndarray, words: np.ndarray) -> float:
    """Mean squared distance of descriptors to their nearest words."""
    distances = descriptors - words[assign_words(descriptors, words)]
    return float(np.vecdot(distances, distances).mean())


def faiss_codebook(
    faiss: ModuleType, samples: np.ndarray, num_words: int, **settings: int
) -> np.ndarray:
    """Learn words by faiss in one thread; beyond the settings it is left as it is."""
    faiss.omp_set_num_threads(1)
    clusters = faiss.Kmeans(samples.shape[1], num_words, seed=0, **settings)
    clusters.train(samples)
    return clusters.centroids


def import_faiss() -> ModuleType | None:
    """Import faiss if it is installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def learners(samples: np.ndarray, num_words: int) -> dict[str, Callable[[], np.ndarray]]:
    """List what learns words from descriptors, ours first."""
    rounds = CLUSTERING_ROUNDS

    def by_sklearn(max_iter: int = 300) -> np.ndarray:
        return KMeans(num_words, max_iter=max_iter, random_state=0).fit(samples).cluster_centers_

    found: dict[str, Callable[[], np.ndarray]] = {
        "ours": partial(learn_codebook, samples, num_words, 0),
        "KMeans": by_sklearn,
        f"KMeans, {rounds} rounds": partial(by_sklearn, rounds),
    }
    if faiss := import_faiss():
        by_faiss = partial(faiss_codebook, faiss, samples, num_words)
        settings = {"niter": rounds, "max_points_per_centroid": len(samples)}
        found |= {"faiss": by_faiss, f"faiss, {rounds} rounds, all": partial(by_faiss, **settings)}
    return found


def codebook_cases(scale: Scale) -> Iterator[Case]:
    """Learning words from the same descriptors, and looking them up."""
    images, others = (crop_photos(BAG_PIXELS, scale.bag_images, seed) for seed in (0, 1))
    samples, held_out = (
        sample_rows(BAG.descriptors, some, BAG.num_samples, 0) for some in (images, others)
    )
    words: dict[str, np.ndarray] = {}

    def keep(name: str, learn: Callable[[], np.ndarray]) -> None:
        words[name] = learn()

    def note() -> str:
        errors = {name: quantisation_error(held_out, centres) for name, centres in words.items()}
        listed = "; ".join(f"{name} {error:.4f}" for name, error in errors.items())
        missing = (
            ""
            if "faiss" in words
            else " faiss is not installed (pip install faiss-cpu) and left out."
        )
        return f"Mean squared distance of {len(held_out):,} other descriptors: {listed}.{missing}"

    peers = {
        name: partial(keep, name, learn)
        for name, learn in learners(samples, scale.num_words).items()
    }
    title = f"{scale.num_words} words of {len(samples):,} descriptors"
    ours = peers.pop("ours")
    yield Case(title, BAG_PIXELS, len(images), ours, peers, note=note, is_slow=True)

    clusters = KMeans(scale.num_words, max_iter=1, random_state=0).fit(samples)
    look_up = partial(assign_words, words=clusters.cluster_centers_)
    descriptors = list(BAG.descriptors(others[:20]))
    yield Case(
        *("looking words up", BAG_PIXELS, len(descriptors), partial(each, look_up, descriptors)),
        {"KMeans.predict": partial(each, clusters.predict, descriptors)},
    )


# Memory


def status_megabytes(entry: str) -> float:
    """Read this process's resident memory: `VmRSS` now, `VmHWM` at most so far (MB = 10^6)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{entry}:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024 / 1e6


def vocabulary_megabytes(num_images: int, num_words: int) -> float:
    """Measure, in a process that did nothing else, what fitting a bag of words adds at most."""
    BagOfWords(num_words=2).fit(crop_photos(BAG_PIXELS, 1))  # imports what it needs
    images = crop_photos(BAG_PIXELS, num_images)
    before = status_megabytes("VmRSS")
    BagOfWords(num_words=num_words).fit(images)
    return status_megabytes("VmHWM") - before


def print_memory(scale: Scale) -> None:
    """Print what the vocabulary of few and of many images takes, beside its bound."""
    points = len(descriptor_places((BAG_PIXELS,) * 2, BAG.step_pixels, BAG.cell_pixels))
    context = multiprocessing.get_context("spawn")
    print("\nMemory that learning the words adds, beside three times the sample:\n")
    for num_images in scale.memory_images:
        num_samples = min(num_images * points, BAG.num_samples)
        with context.Pool(1) as pool_of_one:
            added = pool_of_one.apply(vocabulary_megabytes, (num_images, scale.num_words))
        bound = 3 * 4 * num_samples * DESCRIPTOR_LENGTH / 1e6
        print(
            f"- {num_images:,} images, {num_samples:,} descriptors: {added:.0f} MB "
            f"(three times the sample: {bound:.0f} MB)",
            flush=True,
        )


# Accuracy


def root_sift(images: np.ndarray) -> Describe:
    """Describe all images by OpenCV at once, because each fold asks again.

    Returns:
        Function from numbers of images to their descriptors, normalised as ours: square roots of
        shares.
    """
    keypoints = grid_keypoints(images.shape[1], BAG.step_pixels, BAG.cell_pixels)
    stored = np.empty((len(images), len(keypoints), DESCRIPTOR_LENGTH), dtype=np.uint8)
    for number in range(len(images)):
        stored[number] = dense_sift(images[number : number + 1], keypoints)[0]

    def describe(numbers: np.ndarray) -> np.ndarray:
        values = stored[numbers].astype(np.float32)
        return np.sqrt(values / np.maximum(values.sum(axis=2, keepdims=True), 1))

    return describe


def bags_of_words(
    describe: Describe, num_images: int, words: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Count words as `BagOfWords` does with its usual settings."""
    rows = [
        pool(soft_assign(descriptors, words), places, BAG.levels, len(words))
        for start in range(0, num_images, BLOCK_IMAGES)
        for descriptors in describe(np.arange(start, min(start + BLOCK_IMAGES, num_images)))
    ]
    roots = np.sqrt(np.stack(rows))
    return roots / np.sqrt(np.vecdot(roots, roots))[:, None]


def out_of_fold(
    describe: Describe, places: np.ndarray, targets: np.ndarray, groups: list[str], seed: int
) -> np.ndarray:
    """Predict each image by words and a linear SVM that were learned without its fold.

    Returns:
        `int` array of shape `(n,)`.
    """
    predicted = np.empty_like(targets)
    for train, held_out in group_folds(targets, groups, NUM_FOLDS, seed):
        sample = sample_rows(describe, train, BAG.num_samples, seed)
        words = learn_codebook(sample, min(BAG.num_words, len(sample)), seed)
        rows = bags_of_words(describe, len(targets), words, places)
        machine = CLASSIFIERS["linear_svm"].build(C=1.0).fit(rows[train], targets[train])
        predicted[held_out] = machine.predict(rows[held_out])
    return predicted


def compare_accuracy(images: np.ndarray, rows: pd.DataFrame, num_repeats: int) -> pd.DataFrame:
    """Compare bags of words of both descriptors on the same images.

    Each repeat divides the images anew and starts k-means anew; the rows of an image are a group
    to the interval.

    Args:
        images: `uint8` array of shape `(n, side, side, 3)`.
        rows: Their `image_id`, `label` and `group`.
        num_repeats: How often.

    Returns:
        The row of `compare_predictions` on accuracy, ours against OpenCV's, with both accuracies.
    """
    grid = (BAG.step_pixels, BAG.cell_pixels)
    places = descriptor_places(images.shape[1:3], *grid)
    describers = {
        "OpenCV": root_sift(images),
        "ours": lambda numbers: dense_descriptors(images[numbers], *grid),
    }
    class_names = class_names_of(rows["label"])
    targets, groups = targets_of(rows["label"], class_names), rows["group"].tolist()
    tables, group_of = {}, {}
    for name, describe in describers.items():
        repeats = []
        for seed in range(num_repeats):
            image_ids = [f"{image_id}#{seed}" for image_id in rows["image_id"]]
            group_of |= dict(zip(image_ids, groups, strict=True))
            predicted = out_of_fold(describe, places, targets, groups, seed)
            certain = np.eye(len(class_names))[predicted]
            repeats.append(make_predictions(image_ids, rows["label"], certain, class_names))
        tables[name] = pd.concat(repeats, ignore_index=True)
    compared = compare_predictions("OpenCV", tables, group_of, 0, margin=MARGIN)
    accuracies = {
        name: np.mean(predicted_labels(table) == table["label"]) for name, table in tables.items()
    }
    return compared[compared["metric"] == "accuracy"].assign(**accuracies)


def print_accuracy(name: str, num_repeats: int) -> None:
    """Print accuracies on a data set, and whether harm is ruled out."""
    side, labels = DATASETS[name]
    root = RAW / name
    rows = scan_images(root, labels)
    paths = [root / image_id for image_id in rows["image_id"]]
    images = np.concatenate(list(load_batches(paths, (side, side), DecodeRule(), 64, 1)))
    row = compare_accuracy(images, rows, num_repeats).iloc[0]
    print(
        f"{name}, {len(rows):,} images of {side} pixels, {num_repeats} x {NUM_FOLDS} folds: "
        f"accuracy {row['ours']:.2%}, with OpenCV's descriptors {row['OpenCV']:.2%}; difference "
        f"{100 * row['difference']:+.2f} points ({100 * row['low']:+.2f} to "
        f"{100 * row['high']:+.2f}); no loss of more than {100 * MARGIN:g}: {row['no_worse']}",
        flush=True,
    )


PARTS = {
    "hog": hog_cases,
    "histogram": histogram_cases,
    "dense": dense_cases,
    "bag": bag_cases,
    "codebook": codebook_cases,
}


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}, memory")
    parser.add_argument("--accuracy", nargs="+", choices=DATASETS, default=[], metavar="NAME")
    parser.add_argument("--repeats", type=int, default=NUM_REPEATS, help="of the folds")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, "memory"}:
        parser.error(f"no part is called {sorted(unknown)}; choose of {[*PARTS, 'memory']}")
    if missing := [name for name in options.accuracy if not (RAW / name).is_dir()]:
        parser.error(f"{missing} not in {RAW}; get them by: cvpipe fetch {' '.join(missing)}")
    return options


def main() -> None:
    """Measure what is asked for."""
    options = read_options()
    scale = QUICK if options.quick else FULL
    parts = options.parts or ([] if options.accuracy else [*PARTS, "memory"])
    with threadpool_limits(1):
        timed = [part for part in parts if part in PARTS]
        if timed:
            print_table(itertools.chain.from_iterable(PARTS[part](scale) for part in timed), scale)
        if "memory" in parts:
            print_memory(scale)
        for name in options.accuracy:
            print_accuracy(name, options.repeats)


if __name__ == "__main__":
    main()
