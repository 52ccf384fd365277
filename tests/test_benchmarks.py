"""Each benchmark runs at a tiny size and prints its figures; the real ones take minutes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.data

import cvpipe
from benchmarks.planted import COPIES, as_png, brighten, crop, mirror, resize

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run_benchmark(name, *arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    ).stdout


@pytest.fixture
def root(tmp_path):
    """A data set of 16 different parts of a photo."""
    (tmp_path / "photo").mkdir()
    photo = skimage.data.immunohistochemistry()
    for number in range(16):
        top, left = 128 * np.array(divmod(number, 4))
        part = photo[top : top + 128, left : left + 128]
        (tmp_path / "photo" / f"{number:02}.png").write_bytes(as_png(part))
    return tmp_path


@pytest.mark.parametrize("name", ["near_duplicates.py", "audit.py"])
def test_a_benchmark_says_what_it_is(name):
    answer = run_benchmark(name, "--help")
    assert "--planted" in answer
    assert "datasets" in answer


def test_near_duplicates_prints_a_row_for_each_kind_of_copy(root):
    answer = run_benchmark("near_duplicates.py", "photo", "--root", root, "--planted", 4)
    rows = [re.split(r" *\| *", line)[1:-1] for line in answer.splitlines() if line[:2] == "| "]
    assert rows[1] == ["clusters without copies", "16", "", "16", ""]
    table = {kind: figures for kind, *figures in rows[2:]}
    assert list(table) == list(COPIES)
    assert table["re-encoded"] == ["1.000", "0", "1.000", "0"]
    assert table["mirrored"] == ["0.000", "0", "1.000", "0"]


def test_audit_prints_costs_and_recall(root):
    answer = run_benchmark("audit.py", "photo", "--root", root, "--planted", 2, "--hashes", 200)
    assert re.search(r"^200 perturbed hashes.*: \d+ CPU seconds.* MB before\)$", answer, re.M)
    assert re.search(r"^photo: 16 files decoded in [\d.]+ CPU seconds$", answer, re.M)
    assert re.search(r"^  cvpipe: [\d.]+ CPU seconds, [\d.]+ x decoding$", answer, re.M)
    for kind in COPIES:
        assert re.search(rf"^    {kind}: [\d.]+$", answer, re.M)
    assert "    mirrored: 1.000\n" in answer
    assert "    joins of originals: 0\n" in answer
    assert "CleanVision" in answer


def test_copies_by_hand():
    image = np.arange(40 * 20, dtype=np.uint16).reshape(40, 20, 1).repeat(3, axis=2) % 256
    image = image.astype(np.uint8)
    assert crop(image, 0, 1).shape == (38, 19, 3)
    assert np.array_equal(crop(image, 0, 1), image[:38, 1:])
    assert np.array_equal(crop(image, 1, 0), image[2:, :19])
    assert np.array_equal(mirror(image)[:, 0], image[:, 19])
    assert resize(image, 0.75).shape == (30, 15, 3)
    assert brighten(np.array([0, 10, 212, 213, 255], np.uint8)).tolist() == [0, 12, 254, 255, 255]


def test_learning_curve_prints_a_row_for_each_contender(tmp_path):
    """On a run of noise, in which twice the images change little."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(80):
        pixels = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        (tmp_path / "images" / f"{number}.png").write_bytes(as_png(pixels))
        rows.append((f"{number}.png", "ab"[number % 2]))
    table = pd.DataFrame(rows, columns=["path", "label"])
    table.to_csv(tmp_path / "images" / "labels.csv", index=False)
    (tmp_path / "noise.toml").write_text(
        '[data]\nroot = "images"\nlabels = "labels.csv"\n[evaluate]\nresamples = 100\n'
        '[[contender]]\nname = "knn"\nfeatures = ["raw_pixels"]\n'
        'classifier = "nearest_neighbours"\n'
    )
    run = cvpipe.run(tmp_path / "noise.toml", runs_path=tmp_path / "runs")
    answer = run_benchmark(
        "learning_curve.py", run.path, "--data", tmp_path / "images", "--contenders", "knn",
        "--turns", 2,
    )  # fmt: skip
    rows = [re.split(r" *\| *", line)[1:-1] for line in answer.splitlines()]
    assert len(rows[0]) == len(rows[2]) == 11
    assert rows[2][:2] == ["knn", "2"]
    figures = [float(cell) for cell in rows[2][2:]]
    assert all(0 <= figure <= 100 for figure in figures)
    assert figures[5] > 10  # the half width on 16 test images


@pytest.mark.slow  # half a minute: EfficientNet-Lite0
def test_ensembles_prints_ratios():
    sizes = ["--rounds", 1, "--images", 4, "--naive-images", 1]
    answer = run_benchmark("ensembles.py", "ten_crop", *sizes)
    (off,) = re.findall(r"^TensorFlow: largest difference from the naive way (\S+)$", answer, re.M)
    assert float(off) < 1e-5
    ratio = r"[\d.]+ / [\d.]+ / [\d.]+"
    assert re.search(rf"^TensorFlow, ten crops against one view: {ratio} \(at most 9", answer, re.M)
    answer = run_benchmark("ensembles.py", "snapshots", *sizes[:4], "--points", "block_15")
    (off,) = re.findall(r"^block_15: largest difference from one network (\S+)$", answer, re.M)
    assert float(off) < 1e-5
