"""Measure our loader beside its peers: same images, same operations, interleaved in random order.

    python benchmarks/loader.py              images per second, and the ratios that are asked
    python benchmarks/loader.py memory       resident memory over many epochs, of ours alone

Beside each sample stands a control in pure C, a hash computed in one and in two threads: a sample
is clean if two threads are 1.7 to 2.3 times as fast and if other processes used at most .15 core
while it was taken. Unclean samples are taken again, at most 3 times. Figures are the best clean
sample and the median of the clean ones; `*` marks those for which no sample was clean.

PyTorch is no dependency of cvpipe: `pip install torch`, or its rows are left out. Linux only.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # before NumPy is imported: it halves its speed
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import argparse
import contextlib
import gc
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from loader_ours import OURS
from loader_peers import NATIVE, PEERS, Batches, Contender

SIZE = (224, 224)
TRIES = 4  # of a sample until it is clean
MIN_CONTROL = 1.7
MAX_CONTROL = 2.3  # above it, the single thread was held up
MAX_OTHERS = 0.15
POINTS = 10

ALBUMENTATIONS, FUSED = "cvpipe, albumentations, {}", "cvpipe, fused, {}"
CACHED, SCALED = "cvpipe, decoded cache, {}", "cvpipe, scaled decoding, {}"


class Photos(NamedTuple):
    """A kind of made photos.

    How many, of which `(height, width)`; the times that an epoch has each, because with few of them
    it would end in a small batch too often; and the noise (standard deviation in grey levels) that
    makes the files as large as a camera's.
    """

    count: int
    size: tuple[int, int]
    repeats: int
    noise: float


PHOTOS = {"small": Photos(1024, (375, 500), 1, 3.5), "large": Photos(48, (1500, 2000), 4, 5)}
QUICK = {"small": PHOTOS["small"]._replace(count=32), "large": PHOTOS["large"]._replace(count=4)}


class Claim(NamedTuple):
    """What is asked: a contender's speed over another's, each in so many threads."""

    images: str
    ours: tuple[str, int]
    theirs: tuple[str, int]
    asked: float


def claims() -> list[Claim]:
    """List what is asked; `uint8` where the output is open."""
    f32, u8 = "float32", "uint8"
    cache, area = "tf.data cache(), float32", "threads, full decoding, area resize, uint8"
    over_native = [(ALBUMENTATIONS, f32, 1.2), (ALBUMENTATIONS, u8, 1.5), (FUSED, f32, 1.5)]
    over_native += [(FUSED, u8, 2.0)]
    plain = ALBUMENTATIONS.format(f32)
    pairs = [(f"{plain}, through Keras", "PyDataset", 2.0), (plain, "DataLoader", 1.4)]
    alone = [(ALBUMENTATIONS, 1.55), (FUSED, 1.8)]
    large = [(area, 2.3)]
    large += [(name, 1.0) for name, peer in PEERS.items() if "large" in peer.images]
    return [
        *(Claim("small", (o.format(d), 2), (NATIVE, 2), ask) for o, d, ask in over_native),
        *(
            Claim("small", (ours, 2), (f"{peer} + albumentations, {f32}", 2), ask)
            for ours, peer, ask in pairs
        ),
        *(Claim("small", (o.format(u8), 2), (o.format(u8), 1), ask) for o, ask in alone),
        Claim("small", (CACHED.format(u8), 2), (cache, 2), 6.0),
        Claim("small", (CACHED.format(f32), 2), (cache, 2), 2.5),
        # Beside each peer ours of the same type.
        *(
            Claim("large", (SCALED.format(name.rsplit(" ")[-1]), 2), (name, 2), a)
            for name, a in large
        ),
    ]


# Images


def real_photos() -> list[np.ndarray]:
    """Load the colour photos that scikit-image and scikit-learn ship."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "cat", "coffee", "rocket", "retina", "immunohistochemistry")
    photos = [getattr(skimage.data, name)() for name in (*names, "hubble_deep_field")]
    return [*photos, *load_sample_images().images]


def write_photos(folder: Path, photos: Photos) -> list[str]:
    """Make JPEGs (quality 90, 4:2:0) of parts of real photos: flipped, lit anew, with noise."""
    rng = np.random.default_rng(0)
    originals = real_photos()
    folder.mkdir()
    paths = []
    for number in range(photos.count):
        original = originals[number % len(originals)]
        height, width = photos.size if number % 2 else photos.size[::-1]
        scale = rng.uniform(0.6, 1) * min(np.divide(original.shape[:2], (height, width)))
        part = np.array([height * scale, width * scale], int)
        top, left = rng.integers(0, np.subtract(original.shape[:2], part) + 1)
        image = original[top : top + part[0], left : left + part[1]]
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        image = image[:, :: rng.choice([-1, 1])] * rng.uniform(0.8, 1.2)
        image += photos.noise * rng.standard_normal(image.shape, np.float32)
        paths.append(str(folder / f"{number:03}.jpg"))
        cv2.imwrite(paths[-1], np.clip(image, 0, 255).astype(np.uint8), [1, 90])  # 1: quality
    return paths


# The machine


def descendants(pid: str, parents: dict[str, str]) -> set[str]:
    """Find a process and all that it started, directly or not."""
    own = {pid}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return own


def cpu_seconds() -> tuple[float, float]:
    """Read the CPU time of the whole machine and that of this process and its workers."""
    fields = np.array(Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9], float)
    parents, times = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            stat = path.read_text().rpartition(")")[2].split()
            # Its own times and those of its children that have ended.
            parents[path.parent.name], times[path.parent.name] = stat[1], sum(map(int, stat[11:15]))
    own = sum(times[pid] for pid in descendants(str(os.getpid()), parents))
    busy = fields.sum() - fields[3:5].sum()  # all but idle and waiting for a disk
    per_second = os.sysconf("SC_CLK_TCK")
    return busy / per_second, own / per_second


def control(data: bytes = bytes(100_000_000)) -> tuple[float, float]:
    """Measure how many times as fast two threads are as one where nothing holds them up.

    Returns:
        The ratio, and the pace of one thread in MB/s: it shows when the whole machine slows down.
    """

    def seconds(num_threads: int) -> float:
        threads = [
            threading.Thread(target=hashlib.sha256, args=(data,)) for _ in range(num_threads)
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started

    alone = seconds(1)
    return 2 * alone / seconds(2), len(data) / 1e6 / alone


def resident_megabytes() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# Speed


def draw(batches: Batches, seconds: float) -> tuple[int, float]:
    """Take batches, at least one, for some seconds; count their images and the seconds."""
    num_images, elapsed, started = 0, 0.0, time.perf_counter()
    while elapsed < seconds:
        num_images += len(next(batches))
        elapsed = time.perf_counter() - started
    return num_images, elapsed


def wait_until_idle() -> None:
    """Give what the last loader left behind time to end: its threads would slow the next one."""
    for _ in range(30):
        before = cpu_seconds()
        time.sleep(0.2)
        if (cpu_seconds()[1] - before[1]) / 0.2 < 0.1:
            return


def take_sample(
    contender: Contender, paths: list[str], num_threads: int, seconds: float
) -> dict[str, float | bool]:
    """Let a loader run for some seconds once it runs steadily; nothing uses its batches."""
    wait_until_idle()
    ratio, pace = control()
    with contextlib.closing(contender.batches(paths, SIZE, num_threads)) as batches:
        next(batches)
        draw(batches, seconds / 2)  # queues fill, and tf.data finds its own settings
        before = cpu_seconds()
        num_images, elapsed = draw(batches, seconds)
        busy, own = np.subtract(cpu_seconds(), before) / elapsed
    gc.collect()
    return {
        "speed": num_images / elapsed,
        "cores": own,
        "control": ratio,
        "pace": pace,
        "others": busy - own,
        "clean": bool(MIN_CONTROL <= ratio <= MAX_CONTROL and busy - own <= MAX_OTHERS),
    }


def measure_speed(
    contenders: dict[str, Contender],
    paths: dict[str, list[str]],
    num_rounds: int,
    seconds: float,
    num_tries: int,
    on_sample: Callable[[dict], None],
) -> None:
    """Take samples of all contenders in turns, each turn in another order."""
    rng = np.random.default_rng(0)
    turns = [
        (name, images, num_threads)
        for name, contender in contenders.items()
        for images in contender.images
        for num_threads in (1, 2)
    ]
    missing: set[str] = set()
    for turn in range(num_rounds):
        for position in rng.permutation(len(turns)):
            name, images, num_threads = turns[position]
            for attempt in range(0 if name in missing else num_tries):
                try:
                    sample = take_sample(contenders[name], paths[images], num_threads, seconds)
                except ModuleNotFoundError as error:
                    print(f"{name}: left out, {error}", flush=True)
                    missing.add(name)
                    break
                keys = {"contender": name, "images": images, "threads": num_threads}
                on_sample({**keys, "round": turn, "attempt": attempt, **sample})
                if sample["clean"]:
                    break


def summarise(samples: pd.DataFrame) -> pd.DataFrame:
    """Find the best and the median speed of each contender, of clean samples where there are any.

    Args:
        samples: One row per sample.

    Returns:
        Columns `best`, `median` and `clean`, indexed by images, contender and threads.
    """
    keys = ["images", "contender", "threads"]
    any_clean = samples.groupby(keys)["clean"].transform("any")
    counted = samples[samples["clean"] | ~any_clean].groupby(keys, sort=False)
    return counted.agg(best=("speed", "max"), median=("speed", "median"), clean=("clean", "all"))


def print_speeds(summary: pd.DataFrame) -> None:
    """Print a table for each kind of images, and ratios to native tf.data."""
    for images, table in summary.groupby("images", sort=False):
        print(f"\nImages/s, {images}: best (median)\n")
        print("| contender | 1 thread | 2 threads | x tf.data, 1 thread | 2 threads |")
        print("|---|---:|---:|---:|---:|")
        for name in table.index.unique("contender"):
            cells, ratios = [], []
            for num_threads in (1, 2):
                row = summary.loc[images, name, num_threads]
                mark = "" if row["clean"] else "*"
                cells.append(f"{row['best']:,.0f}{mark} ({row['median']:,.0f})")
                native = summary["best"].get((images, NATIVE, num_threads), np.nan)
                ratios.append(f"{row['best'] / native:.2f}")
            print(f"| {' | '.join([name, *cells, *ratios])} |")


def print_claims(summary: pd.DataFrame) -> None:
    """Print each ratio that is asked beside the measured one."""
    print()
    for claim in claims():
        ours, theirs = (claim.images, *claim.ours), (claim.images, *claim.theirs)
        pair = f"{claim.images}: {claim.ours[0]} / {claim.theirs[0]}"
        if claim.ours[0] == claim.theirs[0]:
            pair = f"{claim.images}: {claim.ours[0]}, 2 threads / 1"
        measured = "is not measured"
        if {ours, theirs} <= set(summary.index):
            rows = summary.loc[[ours, theirs]]
            best, median = rows[["best", "median"]].iloc[0] / rows[["best", "median"]].iloc[1]
            mark = "" if rows["clean"].all() else "*"
            measured = f"measured {best:.2f}{mark} (medians {median:.2f})"
        print(f"{pair}: asked {claim.asked:g}, {measured}")


# Memory


def memory_points(contender: Contender, paths: list[str], num_images: int) -> Iterator[str]:
    """Read the memory at ten points on the way through so many images."""
    seen = 0
    with contextlib.closing(contender.batches(paths, SIZE, 2)) as batches:
        for point in range(1, POINTS + 1):
            while seen < num_images * point / POINTS:
                seen += len(next(batches))
            yield f"{seen:,}: {resident_megabytes():,.0f} MB"


def many_links(folder: Path, paths: list[str], count: int) -> list[str]:
    """Make so many files of few, each under its own name."""
    folder.mkdir()
    links = [folder / f"{number:06}.jpg" for number in range(count)]
    for number, link in enumerate(links):
        link.symlink_to(paths[number % len(paths)])
    return [str(link) for link in links]


def measure_memory(
    contenders: dict[str, Contender], paths: list[str], folder: Path, share: float
) -> None:
    """Print the memory over 50 epochs of few files and over one of many."""
    for num_files, num_epochs in ((3_000, 50), (100_000, 1)):
        links = many_links(folder / f"{num_files} files", paths, int(num_files * share))
        for name, contender in contenders.items():
            print(f"\n{name}: {len(links):,} files, {num_epochs} epochs", flush=True)
            for point in memory_points(contender, links, len(links) * num_epochs):
                print(f"  {point}", flush=True)


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", nargs="?", choices=("speed", "memory"), default="speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="length of a sample")
    parser.add_argument("--only", nargs="+", help="parts of contenders' names")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    parser.add_argument("--json", type=Path, help="file for all samples")
    return parser.parse_args()


def main() -> None:
    """Make the images, then measure."""
    options = read_options()
    # So many decoded images would not fit into memory, which is why they are then read as files.
    only = options.only or (["cvpipe, fused"] if options.mode == "memory" else [""])
    contenders = {
        name: contender
        for name, contender in {**OURS, **PEERS}.items()
        if any(part in name for part in only)
    }
    if not contenders:
        raise SystemExit(
            "no contender is left; name parts of their names: --only tf.data PyDataset"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = {
            images: write_photos(folder / images, photos)
            for images, photos in (QUICK if options.quick else PHOTOS).items()
        }
        for images, paths in made.items():
            size = np.mean([Path(path).stat().st_size for path in paths]) / 1000
            print(f"{len(paths)} {images} images of {size:.0f} kB on average", flush=True)
        if options.mode == "memory":
            measure_memory(contenders, made["small"], folder, 0.002 if options.quick else 1)
            return
        samples: list[dict] = []

        def keep(sample: dict) -> None:
            samples.append(sample)
            if options.json:
                options.json.write_text(json.dumps(samples, indent=1))

        paths = {images: PHOTOS[images].repeats * made[images] for images in made}
        extent = (1, 0.1, 1) if options.quick else (options.rounds, options.seconds, TRIES)
        measure_speed(contenders, paths, *extent, keep)
    if not samples:
        raise SystemExit("nothing was measured: the contenders asked for are not installed")
    table = pd.DataFrame(samples)
    pace = table["pace"].agg(["min", "median", "max"])
    print(f"{table['clean'].sum()} of {len(table)} samples are clean")
    print("pace of the control in MB/s, least, median, most:", *(f"{p:,.0f}" for p in pace))
    summary = summarise(table)
    print_speeds(summary)
    print_claims(summary)


if __name__ == "__main__":
    main()
