"""The benchmark of loaders: what is clean, its ratios, and that all peers do the same work."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))  # as when a script there runs

import loader  # noqa: E402
import loader_peers  # noqa: E402

AREA = "threads, full decoding, area resize, uint8"


def run_benchmark(*arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / "loader.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_it_says_what_it_measures():
    answer = run_benchmark("--help")
    assert "memory" in answer
    assert "--only" in answer


def test_speed_prints_a_row_for_each_contender_and_the_asked_ratios(tmp_path):
    answer = run_benchmark("--quick", "--only", "area resize", "--json", tmp_path / "s.json")
    samples = json.loads((tmp_path / "s.json").read_text())
    turns = {(sample["images"], sample["threads"]) for sample in samples}
    assert turns == {("small", 1), ("small", 2), ("large", 1), ("large", 2)}
    assert all(sample["speed"] > 0 for sample in samples)
    figure = r"[\d,]+\*? \([\d,]+\)"
    assert len(re.findall(rf"^\| {AREA} \| {figure} \| {figure} \|", answer, re.M)) == 2
    asked = re.findall(r"asked ([\d.]+), is not measured$", answer, re.M)
    assert asked[:11] == ["1.2", "1.5", "1.5", "2", "2", "1.4", "1.55", "1.8", "6", "2.5", "2.3"]
    assert set(asked[11:]) == {"1"}


def test_memory_is_read_at_ten_points():
    answer = run_benchmark("memory", "--quick", "--only", "area resize")
    assert f"\n{AREA}: 6 files, 50 epochs\n" in answer
    assert f"\n{AREA}: 200 files, 1 epochs\n" in answer
    points = re.findall(r"^  ([\d,]+): [\d,]+ MB$", answer, re.M)
    assert [int(point) for point in points[:10]] == [32, *range(64, 301, 32), 320]
    assert len(points) == 20


def test_an_unknown_contender_is_an_error():
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_benchmark("--only", "tensorfow")
    assert "no contender is left" in caught.value.stderr


def test_descendants():
    parents = {"2": "1", "3": "2", "4": "3", "5": "1", "6": "5", "1": "0"}
    assert loader.descendants("2", parents) == {"2", "3", "4"}
    assert loader.descendants("6", parents) == {"6"}


def test_own_cpu_time_counts_this_process_and_its_children():
    busy = "import time\nwhile time.process_time() < .5: pass"
    before = np.array(loader.cpu_seconds())
    worker = subprocess.Popen([sys.executable, "-S", "-c", busy])
    used = -time.process_time()
    while used + time.process_time() < 0.3:
        pass
    worker.wait()
    machine, own = loader.cpu_seconds() - before
    assert 0.75 <= own <= 1.2
    assert machine >= own - 0.1


def test_control_compares_the_same_work(monkeypatch):
    """With a clock that two threads move twice as far, they are no faster."""
    clock = iter([0, 1, 1, 3])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    assert loader.control(bytes(2_000_000)) == (1.0, 2.0)
    clock = iter([0, 1, 1, 2])
    assert loader.control(bytes(3_000_000)) == (2.0, 3.0)


def test_resident_memory():
    before = loader.resident_megabytes()
    ballast = np.ones(50 * 2**20, np.uint8)
    assert 45 < loader.resident_megabytes() - before < 60
    assert len(ballast)


def test_draw_counts_images_until_the_time_is_over(monkeypatch):
    clock = iter([10.0, 11.0, 12.5, 14.0])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    batches = iter([[0] * 32, [0] * 16, [0] * 32])
    assert loader.draw(batches, 2.0) == (48, 2.5)
    assert len(next(batches)) == 32


@pytest.mark.parametrize(
    ("control", "others", "clean"),
    [
        (1.7, 0.15, True),
        (2.3, 0.0, True),
        (1.69, 0.0, False),
        (2.31, 0.0, False),
        (2.0, 0.16, False),
    ],
)
def test_a_sample_is_clean_on_a_machine_of_our_own(monkeypatch, control, others, clean):
    times = iter([(0.0, 0.0), (2.0 + 2 * others, 2.0)])
    monkeypatch.setattr(loader, "wait_until_idle", lambda: None)
    monkeypatch.setattr(loader, "control", lambda: (control, 1500.0))
    monkeypatch.setattr(loader, "cpu_seconds", lambda: next(times))
    monkeypatch.setattr(loader, "draw", lambda batches, seconds: (64, 2.0))
    batches = loader.Contender(lambda paths, size, num_threads: (b for b in [[0]]))
    sample = loader.take_sample(batches, ["a"], 2, 2.0)
    assert sample["speed"] == 32
    assert sample["cores"] == 1
    assert sample["pace"] == 1500
    assert sample["others"] == pytest.approx(others)
    assert sample["clean"] is clean


def test_an_unclean_sample_is_taken_again_and_what_is_missing_is_left_out(monkeypatch, capsys):
    def take(contender, paths, num_threads, seconds):
        if contender.images == ("large",):
            raise ModuleNotFoundError("No module named 'torch'")
        return {"clean": num_threads == 2}

    monkeypatch.setattr(loader, "take_sample", take)
    contenders = {"a": loader.Contender(None, ("small",)), "b": loader.Contender(None, ("large",))}
    samples = []
    loader.measure_speed(contenders, {"small": [], "large": []}, 2, 1.0, 3, samples.append)
    counts = pd.DataFrame(samples).groupby(["round", "threads"]).size()
    assert counts.tolist() == [3, 1, 3, 1]
    assert capsys.readouterr().out == "b: left out, No module named 'torch'\n"


def test_ratios_by_hand(capsys):
    """Clean samples count alone; a contender without any is marked."""
    ours, native = loader.FUSED.format("float32"), loader.NATIVE
    rows = [
        (ours, 2, 300.0, True), (ours, 2, 200.0, True), (ours, 2, 900.0, False),
        (native, 2, 100.0, False), (native, 2, 80.0, False),
        (ours, 1, 150.0, True), (native, 1, 50.0, True),
    ]  # fmt: skip
    samples = pd.DataFrame(rows, columns=["contender", "threads", "speed", "clean"])
    summary = loader.summarise(samples.assign(images="small"))
    assert summary.loc["small", ours, 2].tolist() == [300, 250, True]
    assert summary.loc["small", native, 2].tolist() == [100, 90, False]
    loader.print_speeds(summary)
    loader.print_claims(summary)
    answer = capsys.readouterr().out
    assert f"| {ours} | 150 (150) | 300 (250) | 3.00 | 3.00 |" in answer
    assert f"| {native} | 50 (50) | 100* (90) | 1.00 | 1.00 |" in answer
    assert f"small: {ours} / {native}: asked 1.5, measured 3.00* (medians 2.78)\n" in answer


def test_claims_name_peers_that_are_there():
    for claim in loader.claims():
        name = claim.theirs[0]
        assert name.startswith("cvpipe") or claim.images in loader.PEERS[name].images


def test_photos_are_of_the_asked_kind(tmp_path):
    photos = loader.PHOTOS["small"]._replace(count=20)
    paths = loader.write_photos(tmp_path / "photos", photos)
    images = [cv2.imread(path) for path in paths]
    assert [image.shape[:2] for image in images[:2]] == [(500, 375), (375, 500)]
    assert len({image.tobytes() for image in images}) == 20
    assert 40_000 < np.mean([os.path.getsize(path) for path in paths]) < 65_000  # noqa: PTH202


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """64 dark or bright images with a tint that grow brighter to the right by 60 grey levels."""
    folder = tmp_path_factory.mktemp("ramps")
    ramp = np.linspace(-30, 30, 160) + np.zeros((120, 1))
    for number in range(64):
        image = ramp[..., None] + (60, 180)[number % 2] + np.array([-15, 0, 15])  # red
        cv2.imwrite(str(folder / f"{number}.jpg"), image.clip(0, 255).astype(np.uint8))
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", loader_peers.PEERS)
def test_peers_shuffle_cut_mirror_and_colour(name, ramps):
    batches = loader_peers.PEERS[name].batches(ramps, (48, 64), 2)
    try:
        epoch = np.concatenate([np.asarray(next(batches)) for _ in range(2)])
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    finally:
        batches.close()
    assert epoch.shape == (64, 48, 64, 3)
    assert str(epoch.dtype) == name.rpartition(", ")[2]
    in_shares = epoch.max() <= 1  # TensorFlow's own functions ask for them
    views = epoch.astype(float) * (255 if in_shares else 1)
    assert 200 < views.max() <= 255
    means = views.mean(axis=(1, 2, 3))
    bright = means > 115
    assert bright.sum() == 32  # every image once
    in_order = [int(Path(path).stem) % 2 == 1 for path in ramps]
    assert bright.tolist() != in_order
    rise = (views[:, :, -8:] - views[:, :, :8]).mean(axis=(1, 2, 3))
    assert 12 < (rise > 0).sum() < 52
    assert means[bright].std() > 8  # a brightness of .8 to 1.2: 21
    full = 60 * (64 - 8) / 64
    extent = np.abs(rise) / means * np.where(bright, 180, 60) / full
    assert extent.min() < 0.75  # the contrast alone makes at least .8 of it
    tint = (views[..., 0] - views[..., 2]).mean(axis=(1, 2)) / means
    if "ImageDataGenerator" not in name:
        assert tint[bright].max() > 1.2 * tint[bright].min() > 0
