"""Measure what the audit costs and finds, beside CleanVision on the same images.

CPU seconds of one thread (other work on the machine hardly moves them): decoding every file once,
the whole audit, and CleanVision's duplicate, light, blur and size checks. Then copies are planted
among the images, of 200 others for each kind, and the share is counted that a tool puts into one
set with their originals, and how many joins of originals its sets make. First of all, the search
among 100,000 perturbed hashes:

    cvpipe fetch digits && python benchmarks/audit.py digits

CleanVision is no dependency of cvpipe: `pip install cleanvision==0.3.7`, or only ours is measured.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is imported

import importlib
import itertools
import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from planted import COPIES, corpus_parser

from cvpipe.data.audit import audit_images
from cvpipe.data.duplicates import spanning_forest
from cvpipe.data.images import decode_image, read_image
from cvpipe.data.manifest import is_image_name

TURNS = 5
CHECKS = ("exact_duplicates", "near_duplicates", "dark", "light", "blurry", "odd_size")
MAX_DISTANCE = 64
JPEG_START = b"\xff\xd8"


def cpu_seconds(function: Callable[[], object]) -> float:
    """Measure one call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def decode_all(root: Path, image_ids: Iterable[str]) -> None:
    """Decode every file once, and nothing else."""
    for image_id in image_ids:
        decode_image((root / image_id).read_bytes())


def our_sets(root: Path, image_ids: list[str]) -> list[set[str]]:
    """Find sets of near-duplicates by the audit."""
    rows = pd.DataFrame({"image_id": image_ids, "label": "", "group": image_ids})
    rows["label"] = ["x", "y"] * (len(rows) // 2) + ["x"] * (len(rows) % 2)
    groups = audit_images(rows, root, 1, drop_unreadable=False).rows.groupby("group")["image_id"]
    return [set(members) for _, members in groups if len(members) > 1]


def has_cleanvision() -> bool:
    """Say whether CleanVision and what it needs can be imported."""
    try:
        importlib.import_module("cleanvision")
    except ImportError:
        return False
    return True


def their_sets(root: Path, image_ids: list[str]) -> list[set[str]]:
    """Find sets of near-duplicates by CleanVision, with its other cheap checks."""
    from cleanvision import Imagelab

    lab = Imagelab(filepaths=[str(root / image_id) for image_id in image_ids], verbose=False)
    lab.find_issues({check: {} for check in CHECKS}, n_jobs=1, verbose=False)
    return [
        {Path(path).relative_to(root).as_posix() for path in members}
        for kind in ("exact_duplicates", "near_duplicates")
        for members in lab.info[kind]["sets"]
    ]


def plant(
    root: Path, image_ids: list[str], folder: Path, num_planted: int
) -> dict[str, list[tuple[str, str]]]:
    """Write copies of each kind, of other images each; return pairs of original and copy."""
    shuffled = iter(np.random.default_rng(0).permutation(image_ids).tolist())
    planted: dict[str, list[tuple[str, str]]] = {kind: [] for kind in COPIES}
    for number, (kind, make) in enumerate(COPIES.items()):
        place = folder / f"planted {number}"
        place.mkdir()
        for row, image_id in enumerate(itertools.islice(shuffled, num_planted)):
            data = make(read_image(root / image_id))
            name = f"{row:04}.{'jpg' if data.startswith(JPEG_START) else 'png'}"
            (place / name).write_bytes(data)
            planted[kind].append((image_id, f"{place.name}/{name}"))
    return planted


def recall(sets: list[set[str]], pairs: list[tuple[str, str]]) -> float:
    """Share of pairs of an original and its copy that stand in one set."""
    places: dict[str, set[int]] = {}
    for number, members in enumerate(sets):
        for name in members:
            places.setdefault(name, set()).add(number)
    return float(np.mean([bool(places.get(a, set()) & places.get(b, set())) for a, b in pairs]))


def perturbed_hashes(num_rows: int, family: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Draw random hashes in families that differ in up to 30 coarse and 120 fine bits.

    Returns:
        Hashes, and those of the mirrored images: unrelated ones.
    """
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (num_rows // family, 20), dtype=np.uint64)
    hashes = np.repeat(words, family, axis=0)
    for row in hashes:
        bits = np.unpackbits(row.view(np.uint8))
        bits[rng.choice(256, rng.integers(0, 31), replace=False)] ^= 1
        bits[256 + rng.choice(1024, rng.integers(0, 121), replace=False)] ^= 1
        row[:] = np.packbits(bits).view(np.uint64)
    hashes = hashes[rng.permutation(len(hashes))]
    return hashes, rng.integers(0, 2**64, hashes.shape, dtype=np.uint64)


def peak_megabytes() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_search(num_hashes: int) -> None:
    """Print what the search among many hashes costs."""
    hashes, mirrored = perturbed_hashes(num_hashes)
    before, wall = peak_megabytes(), time.perf_counter()
    cpu = cpu_seconds(lambda: spanning_forest(hashes, MAX_DISTANCE, mirrored=mirrored))
    wall = time.perf_counter() - wall
    print(
        f"{len(hashes):,} perturbed hashes and their mirrored ones: {cpu:.0f} CPU seconds, "
        f"{wall:.0f} wall seconds, at most {peak_megabytes():,.0f} MB ({before:,.0f} MB before)"
    )


def measure_audit(root: Path, num_planted: int, with_theirs: bool) -> None:
    """Print what the audit of a folder costs and finds."""
    image_ids = sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*") if is_image_name(path.name)
    )
    tools = {"cvpipe": our_sets} | ({"CleanVision": their_sets} if with_theirs else {})
    decoding = []
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for _ in range(TURNS):  # in turns, so that a busy machine slows all
        decoding.append(cpu_seconds(lambda: decode_all(root, image_ids)))
        for name, tool in tools.items():
            seconds[name].append(cpu_seconds(lambda tool=tool: tool(root, image_ids)))
    usual = np.median(decoding)
    print(f"\n{root.name}: {len(image_ids):,} files decoded in {usual:.1f} CPU seconds")
    for name, times in seconds.items():
        ratio = np.median(np.divide(times, decoding))
        print(f"  {name}: {np.median(times):.1f} CPU seconds, {ratio:.2f} x decoding", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for child in root.iterdir():
            (folder / child.name).symlink_to(child.resolve())
        planted = plant(root, image_ids, folder, num_planted)
        originals = set(image_ids)
        copies = [copy for pairs in planted.values() for _, copy in pairs]
        for tool, search in tools.items():
            sets = search(folder, image_ids + copies)
            print(f"  {tool}: recall")
            for kind, pairs in planted.items():
                print(f"    {kind}: {recall(sets, pairs):.3f}")
            joins = sum(max(0, len(members & originals) - 1) for members in sets)
            print(f"    joins of originals: {joins:,}", flush=True)


def main() -> None:
    """Measure the data sets, then the search among many hashes."""
    parser = corpus_parser(__doc__)
    parser.add_argument("--hashes", type=int, default=100_000, help="rows of the hash search")
    arguments = parser.parse_args()
    measure_search(arguments.hashes)
    with_theirs = has_cleanvision()
    if not with_theirs:
        print("CleanVision is not installed (pip install cleanvision==0.3.7): ours alone")
    for name in arguments.datasets:
        measure_audit((arguments.root / name).resolve(), arguments.planted, with_theirs)


if __name__ == "__main__":
    main()
