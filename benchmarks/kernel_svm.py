"""Fit and predict with `KernelSVM` and with scikit-learn, in turns.

On HOG rows of the packaged digits (1,764 numbers each), one thread, as in a search. For the
Gaussian kernel, beside `SVC`, it prints how many times faster ours is, and the largest difference
of a score. Then the kernels for histograms, on all pairs of HOG rows and of made-up bags of words:
chi-squared beside scikit-learn's `additive_chi2_kernel`, intersection beside SciPy's city-block
distance (`min(x, y) = (x + y - |x - y|) / 2`):

    cvpipe fetch digits && python benchmarks/kernel_svm.py
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import additive_chi2_kernel
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from cvpipe.classifiers.kernel_svm import KernelSVM, chi2_distances, intersections
from cvpipe.data.images import DecodeRule
from cvpipe.data.manifest import scan_images
from cvpipe.data.threads import load_batches
from cvpipe.features.hog import HistogramOfOrientedGradients

ROOT = Path(__file__).parent.parent / "data" / "raw" / "digits"
TURNS = 3
NUM_TRAIN, NUM_TEST = 2_000, 500
# Of the histograms: the peers take minutes for all.
NUM_ROWS, NUM_WORDS = 1_000, 5_000


def seconds_of(function: Callable[..., object], *arguments: object) -> float:
    """Measure the processor time of one call."""
    started = time.process_time()
    function(*arguments)
    return time.process_time() - started


def common_by_distance(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Compute the histogram intersection from SciPy's L1 distance."""
    sums = rows.sum(axis=1)[:, None] + others.sum(axis=1)
    return (sums - cdist(rows, others, "cityblock")) / 2


def compare_gaussian(features: np.ndarray, targets: np.ndarray) -> None:
    """Print the ratios for the Gaussian kernel."""
    train, new = features[:NUM_TRAIN].astype(np.float64), features[NUM_TRAIN:]
    for c in (1.0, 25.0):
        theirs, ours = SVC(C=c, cache_size=500), KernelSVM(C=c)
        times = [
            (
                seconds_of(theirs.fit, train, targets[:NUM_TRAIN]),
                seconds_of(ours.fit, train, targets[:NUM_TRAIN]),
                seconds_of(theirs.decision_function, new),
                seconds_of(ours.decision_function, new),
            )
            for _ in range(TURNS)
        ]
        fit_theirs, fit_ours, predict_theirs, predict_ours = np.median(times, axis=0)
        apart = np.abs(theirs.decision_function(new) - ours.decision_function(new)).max()
        print(
            f"C={c:g}: fit {fit_theirs / fit_ours:.1f} x, predict "
            f"{predict_theirs / predict_ours:.1f} x; scores at most {apart:.1e} apart"
        )


def compare_histograms(name: str, rows: np.ndarray) -> None:
    """Print seconds and ratios for all pairs of rows."""
    rows = rows[:NUM_ROWS].astype(np.float64)
    for kernel, ours, theirs in (
        ("chi-squared", chi2_distances, additive_chi2_kernel),
        ("intersection", intersections, common_by_distance),
    ):
        times = [
            (seconds_of(theirs, rows, rows), seconds_of(ours, rows, rows)) for _ in range(TURNS)
        ]
        seconds_theirs, seconds_ours = np.median(times, axis=0)
        found = ours(rows, rows)
        apart = np.abs(np.abs(theirs(rows, rows)) - found).max() / found.max()
        print(
            f"{kernel}, {name}, {rows.shape[0]:,} x {rows.shape[1]:,}: {seconds_ours:.2f} s, "
            f"{seconds_theirs / seconds_ours:.1f} x; at most {apart:.1e} of the largest apart"
        )


def main() -> None:
    """Measure in turns, so that a busy machine slows both sides."""
    rows = scan_images(ROOT, "folders").sample(NUM_TRAIN + NUM_TEST, random_state=0)
    paths = [ROOT / image_id for image_id in rows["image_id"]]
    images = np.concatenate(list(load_batches(paths, (128, 128), DecodeRule(), 64, 2)))
    features = HistogramOfOrientedGradients(cell_pixels=16).fit_transform(images)
    targets = rows["label"].astype(int).to_numpy()
    rng = np.random.default_rng(0)
    words = rng.poisson(1.0, (NUM_ROWS, NUM_WORDS)) * (rng.random((NUM_ROWS, NUM_WORDS)) < 0.47)
    with threadpool_limits(1):
        compare_gaussian(features, targets)
        compare_histograms("HOG", features)
        compare_histograms(f"bags of words ({(words > 0).mean():.0%} not zero)", words)


if __name__ == "__main__":
    main()
