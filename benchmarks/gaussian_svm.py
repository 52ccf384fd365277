"""Fit and predict with `GaussianSVM` and with scikit-learn's own `SVC`, in turns.

On HOG rows of the packaged digits (1,764 numbers each), one thread, as in a search. Prints how
many times faster ours is, and the largest difference of a score:

    cvpipe fetch digits && python benchmarks/gaussian_svm.py
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from cvpipe.data.images import DecodeRule
from cvpipe.data.manifest import scan_images
from cvpipe.data.threads import load_batches
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.gaussian_svm import GaussianSVM

ROOT = Path(__file__).parent.parent / "data" / "raw" / "digits"
TURNS = 3
NUM_TRAIN, NUM_TEST = 2_000, 500


def seconds_of(function: Callable[..., object], *arguments: np.ndarray) -> float:
    """Measure one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns, so that a busy machine slows both sides."""
    rows = scan_images(ROOT, "folders").sample(NUM_TRAIN + NUM_TEST, random_state=0)
    paths = [ROOT / image_id for image_id in rows["image_id"]]
    images = np.concatenate(list(load_batches(paths, (128, 128), DecodeRule(), 64, 2)))
    features = HistogramOfOrientedGradients(cell_pixels=16).fit_transform(images)
    targets = rows["label"].astype(int).to_numpy()
    train, new = features[:NUM_TRAIN].astype(np.float64), features[NUM_TRAIN:]
    with threadpool_limits(1):
        for c in (1.0, 25.0):
            theirs, ours = SVC(C=c, cache_size=500), GaussianSVM(C=c)
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


if __name__ == "__main__":
    main()
