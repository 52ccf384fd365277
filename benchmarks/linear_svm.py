"""Fit linear support vector machines on shortened rows and on the rows as they are, in turns.

A search shortens rows that are much longer than there are rows, once for all its fits, by
`cvpipe.classifiers.search.shorten_rows`. On fine HOG rows (8,100 numbers) of the packaged solar
cells, one thread:

    cvpipe fetch solar_cells && python benchmarks/linear_svm.py
"""

import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from cvpipe.classifiers import search
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.data.images import DecodeRule
from cvpipe.data.manifest import scan_images
from cvpipe.data.threads import load_batches
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.frames import class_names_of, targets_of

ROOT = Path(__file__).parent.parent / "data" / "raw" / "solar_cells"
NUM_TRAIN = 1_344  # four of five folds of the 1,680 images that such a search gets
NUM_TEST = 336
TURNS = 2
COSTS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


def fit_all(name: str, rows: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Fit at every C; give the processor seconds, and what is predicted for the other rows."""
    started = time.process_time()
    machines = [
        CLASSIFIERS[name].build(C=c).fit(rows[:NUM_TRAIN], targets[:NUM_TRAIN]) for c in COSTS
    ]
    seconds = time.process_time() - started
    return seconds, np.stack([machine.predict(rows[NUM_TRAIN:]) for machine in machines])


def main() -> None:
    """Print the ratios."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # the hinge stops after so many passes
    listed = scan_images(ROOT, "labels.csv").sample(NUM_TRAIN + NUM_TEST, random_state=0)
    targets = targets_of(listed["label"], class_names_of(listed["label"]))
    paths = [ROOT / image_id for image_id in listed["image_id"]]
    images = np.concatenate(list(load_batches(paths, (128, 128), DecodeRule(), 64, 1)))
    rows = HistogramOfOrientedGradients(soft=True).fit_transform(images)
    with threadpool_limits(1):
        started = time.process_time()
        short = search.shorten_rows(rows)
        print(f"shortening {rows.shape} to {short.shape}: {time.process_time() - started:.1f} s")
        for name in ("linear_svm", "linear_svm_hinge"):
            for _ in range(TURNS):
                theirs, expected = fit_all(name, rows, targets)
                ours, answers = fit_all(name, short, targets)
                print(
                    f"{name}, six C: {theirs:.1f} s and {ours:.1f} s, {theirs / ours:.1f} x; "
                    f"answers that differ: {(answers != expected).mean():.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
