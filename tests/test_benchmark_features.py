"""The benchmark of hand-crafted features: its ratios, and that both sides do the same work."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd
import pytest

from cvpipe.features.bag_of_words import BagOfWords
from cvpipe.features.dense_descriptors import count_places, dense_descriptors, descriptor_places

with mock.patch.dict(os.environ):  # a script of its own sets it
    from benchmarks import features

SCRIPT = Path(features.__file__)
POINTS = count_places((128, 128), features.BAG.step_pixels, features.BAG.cell_pixels)
HEADER = ["", "pixels", "peer", "ours", "peer's", "best", "median", "asked", "met"]


def run_benchmark(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


def cells_of(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.fixture(scope="module")
def answer():
    return run_benchmark("--quick")


@pytest.fixture(scope="module")
def rows(answer):
    lines = [cells_of(line) for line in answer.splitlines() if line.startswith("|")]
    assert lines[0] == HEADER
    return pd.DataFrame(lines[2:], columns=HEADER)


def test_each_claim_stands_beside_its_peer(rows):
    names = list(dict.fromkeys(zip(rows[""], rows["peer"], rows["asked"], strict=True)))
    rounds = "10 rounds"
    assert names[:11] == [
        ("HOG, grey", "scikit-image", "15"),
        ("HOG, grey", "OpenCV", ""),
        ("HOG, colour", "scikit-image", "15"),
        ("HOG, colour", "OpenCV", ""),
        ("colour histogram, counting", "np.histogramdd", "12"),
        ("colour histogram, end to end", "np.histogramdd", "12"),
        ("49 dense descriptors, cells of 4", "OpenCV SIFT", "20"),
        ("25 dense descriptors, cells of 8", "OpenCV SIFT", "20"),
        ("9 dense descriptors, cells of 12", "OpenCV SIFT", "20"),
        ("bag of words", "naive pipeline", "5"),
        ("bag of words", f"naive, {rounds}", ""),
    ]
    assert names[11:13] == [
        ("bag of words", "ours, usual settings", ""),
        (f"8 words of {4 * POINTS:,} descriptors", "KMeans", ""),
    ]
    assert names[-1] == ("looking words up", "KMeans.predict", "")


def test_verdicts_follow_from_the_ratios(rows):
    asked = rows[rows["asked"] != ""]
    reached = asked[["best", "median"]].astype(float).min(axis=1)
    clear = (reached - asked["asked"].astype(float)).abs() > 0.05  # cells are rounded
    expected = np.where(reached >= asked["asked"].astype(float), "yes", "**no**")
    assert (asked["met"] == expected)[clear].all()
    assert (rows["met"][rows["asked"] == ""] == "").all()


def test_both_sides_have_the_same_numbers(answer):
    apart = dict(re.findall(r"^- (.*), 64 pixels: numbers at most (\S+) apart\.$", answer, re.M))
    assert float(apart["HOG, grey"]) < 1e-6
    assert float(apart["HOG, colour"]) < 1e-6
    assert float(apart["colour histogram, counting"]) == 0
    assert float(apart["colour histogram, end to end"]) == 0


def test_words_are_about_as_good_as_those_of_others(answer):
    line = re.search(r"^- Mean squared distance of ([\d,]+) other descriptors: (.*)$", answer, re.M)
    assert line[1] == f"{4 * POINTS:,}"
    errors = {name: float(error) for name, error in re.findall(r"([\w ,]+) (0\.\d+)", line[2])}
    assert 0 < errors["ours"] < 1.1 * min(errors.values())


def test_memory_stands_beside_three_times_the_sample(answer):
    found = re.search(r"^- 8 images, ([\d,]+) desc.*: (\d+) MB \(.*: (\d+) MB\)$", answer, re.M)
    assert found[1] == f"{8 * POINTS:,}"
    assert int(found[3]) == round(8 * POINTS * 3 * 4 * 128 / 1e6)
    assert 0 < int(found[2]) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hogs"], r"no part is called \['hogs'\]; choose of \['hog', .*'memory'\]"),
        (["--accuracy", "letters"], "invalid choice: 'letters'"),
        (["--accuracy", "digits"], r"\['digits'\] not in .*; get them by: cvpipe fetch digits"),
    ],
)
def test_parts_and_data_sets_are_checked(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(features, "RAW", tmp_path)
    monkeypatch.setattr(sys, "argv", ["features.py", *arguments])
    with pytest.raises(SystemExit):
        features.main()
    assert re.search(message, capsys.readouterr().err)


# Time


def test_turns_alternate(monkeypatch):
    clock = iter([0.0, 1.0, 1.0, 4.0, 5.0, 7.0, 7.0, 8.0])
    monkeypatch.setattr(features.time, "process_time", lambda: next(clock))
    calls = []
    seconds = features.take_turns([lambda: calls.append("a"), lambda: calls.append("b")], 2)
    assert calls == ["a", "b", "a", "b"]
    assert seconds.tolist() == [[1, 3], [2, 1]]


def test_ratios_by_hand():
    seconds = np.array([[1.0, 10.0, 4.0], [2.0, 24.0, 2.0], [4.0, 28.0, 12.0]])
    # Least times: 10 / 1 and 2 / 1; of the rounds 10, 12, 7 and 4, 1, 3.
    assert features.best_and_median(seconds).tolist() == [[10, 10], [2, 3]]


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [([15.0, 30.0], "yes"), ([14.99, 30.0], "**no**"), ([15.0, 29.0], "**no**")],
)
def test_best_and_median_have_to_reach_what_is_asked(theirs, verdict):
    case = features.Case("x", 64, 1_000, None, {"first": None, "second": None}, asked=15)
    seconds = np.array([[1.0, theirs[0], 3.0], [2.0, theirs[1], 6.0]])
    first, second = map(cells_of, features.table_rows(case, seconds))
    assert first[:5] == ["x", "64", "first", "1,000", f"{1000 * theirs[0]:,.0f}"]
    assert first[7:] == ["15", verdict]
    assert second[2:] == ["second", "1,000", "3,000", "3.0", "3.0", "", ""]


# What is compared


def test_crops_differ_and_are_the_same_each_time():
    images = features.crop_photos(48, 12)
    assert images.shape == (12, 48, 48, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 12
    assert min(image.std() for image in images) > 0
    assert np.array_equal(images, features.crop_photos(48, 12))
    assert not np.array_equal(images, features.crop_photos(48, 12, seed=1))


def test_agreement_is_the_largest_difference():
    told = features.agreement("x", lambda: np.array([[1.0, 2.0]]), lambda: [np.array([1.5, 0.0])])
    assert told == "x: numbers at most 2.0e+00 apart."


@pytest.mark.parametrize(("side", "cell"), [(64, 4), (64, 8), (90, 8)])
def test_opencv_looks_at_the_same_patches(side, cell):
    """Descriptors of either are alike, unless a patch is moved by two cells or of another size."""
    images = features.crop_photos(side, 6)
    ours = dense_descriptors(images, features.STEP, (cell,), root=False)

    def alikeness(keypoints):
        theirs = np.stack(features.dense_sift(images, keypoints)).reshape(*ours.shape[:2], 16, 8)
        theirs = theirs[..., -np.arange(8) % 8].reshape(ours.shape)  # they turn the other way
        return np.mean(np.vecdot(ours, theirs) / np.linalg.norm(theirs, axis=2))

    keypoints = features.grid_keypoints(side, features.STEP, (cell,))
    assert len(keypoints) == count_places((side, side), features.STEP, (cell,))
    assert alikeness(keypoints) > 0.84
    for right, down, factor in ((2, 0, 1), (0, 2, 1), (0, 0, 0.5), (0, 0, 2)):
        others = [
            cv2.KeyPoint(k.pt[0] + right * cell, k.pt[1] + down * cell, k.size * factor, 0)
            for k in keypoints
        ]
        assert alikeness(others) < 0.8


def test_grids_of_several_sizes_stand_one_after_the_other():
    keypoints = features.grid_keypoints(40, 4, (4, 8))
    places = descriptor_places((40, 40), 4, (4, 8)) * 40 - 0.5
    assert np.allclose([keypoint.pt[::-1] for keypoint in keypoints], places)
    sizes = [count_places((40, 40), 4, (cell,)) for cell in (4, 8)]
    assert [k.size for k in keypoints] == pytest.approx(np.repeat([4 / 1.5, 8 / 1.5], sizes))


def test_the_naive_pipeline_counts_each_descriptor_of_each_image_once():
    images = features.crop_photos(40, 5)
    counts = features.naive_bag(images, 6)
    places = count_places((40, 40), features.BAG.step_pixels, features.BAG.cell_pixels)
    assert counts.shape == (5, 6)
    assert counts.sum(axis=1).tolist() == [places] * 5
    assert (counts.sum(axis=0) > 0).all()


def test_quantisation_error_by_hand():
    words = np.array([[0, 0], [4, 0]], np.float32)
    descriptors = np.array([[1, 0], [4, 3], [0, 0]], np.float32)
    assert features.quantisation_error(descriptors, words) == pytest.approx((1 + 9 + 0) / 3)


def test_faiss_is_left_out_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert list(features.learners(np.zeros((9, 2), np.float32), 3)) == [
        *("ours", "KMeans", "KMeans, 10 rounds")
    ]


def test_faiss_runs_in_one_thread_and_once_with_our_rounds_on_all(monkeypatch):
    faiss = mock.Mock()
    faiss.Kmeans.return_value.centroids = "words"
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    samples = np.zeros((9, 2), np.float32)
    found = features.learners(samples, 3)
    assert [found[name]() for name in ("faiss", "faiss, 10 rounds, all")] == ["words", "words"]
    settings = {"niter": 10, "max_points_per_centroid": 9}
    assert faiss.Kmeans.mock_calls[::2] == [
        mock.call(2, 3, seed=0),
        mock.call(2, 3, seed=0, **settings),
    ]
    faiss.omp_set_num_threads.assert_called_with(1)
    faiss.Kmeans.return_value.train.assert_called_with(samples)


def test_resident_memory_now_and_at_most():
    before = features.status_megabytes("VmRSS")
    ballast = np.ones(50_000_000, np.uint8)
    most = features.status_megabytes("VmRSS")
    assert 47 < most - before < 56
    del ballast
    assert features.status_megabytes("VmRSS") < most - 40
    assert features.status_megabytes("VmHWM") > most - 1  # the kernel counts in portions


# Accuracy


def test_bags_are_those_of_the_package():
    """With the same words, though from numbers of images."""
    images = features.crop_photos(48, 11)
    bag = BagOfWords(num_words=7).fit(images)
    grid = (bag.step_pixels, bag.cell_pixels)
    places = descriptor_places((48, 48), *grid)
    rows = features.bags_of_words(
        lambda numbers: dense_descriptors(images[numbers], *grid), 11, bag.words_, places
    )
    assert np.allclose(rows, bag.transform(images), atol=1e-6)


def test_stored_descriptors_are_those_of_opencv():
    images = features.crop_photos(40, 3)
    images[1] = 7  # flat
    keypoints = features.grid_keypoints(40, features.BAG.step_pixels, features.BAG.cell_pixels)
    rows = features.root_sift(images)(np.array([2, 1]))
    expected = features.dense_sift(images, keypoints)[2]
    assert np.array_equal(expected, np.rint(expected))
    assert np.allclose(rows[0] ** 2, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert (rows[1] == 0).all()
    assert rows.dtype == np.float32


def test_a_fold_is_predicted_without_its_images(monkeypatch):
    """Neither words nor the machine see what is held out."""
    targets = np.arange(40) % 2
    groups = [f"{number // 4}" for number in range(40)]
    drawn, fitted = [], []
    monkeypatch.setattr(
        features, "sample_rows", lambda describe, train, *_: drawn.append(set(train)) or [0] * 9
    )
    monkeypatch.setattr(features, "learn_codebook", lambda sample, num_words, seed: "words")
    monkeypatch.setattr(features, "bags_of_words", lambda *_: np.arange(40)[:, None])
    machine = mock.Mock()
    machine.fit.side_effect = lambda rows, labels: fitted.append(rows.ravel()) or machine
    machine.predict.side_effect = lambda rows: rows.ravel() + 100
    monkeypatch.setitem(features.CLASSIFIERS, "linear_svm", mock.Mock(build=lambda **_: machine))
    predicted = features.out_of_fold(None, None, targets, groups, 0)
    assert predicted.tolist() == list(range(100, 140))
    held_out = [set(range(40)) - train for train in drawn]
    assert sorted(number for fold in held_out for number in fold) == list(range(40))
    assert [set(rows) for rows in fitted] == drawn
    for fold in held_out:
        assert all({4 * (n // 4) + k for k in range(4)} <= fold for n in fold)  # groups are whole


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """A data set of upright and level stripes with noise."""
    rng = np.random.default_rng(0)
    wave = 128 + 80 * np.sin(np.arange(40) / 2)
    for number in range(20):
        image = np.broadcast_to(wave[:, None] if number % 2 else wave, (40, 40))
        image = (image + rng.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        path = tmp_path / "stripes" / ("level" if number % 2 else "upright") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
    monkeypatch.setattr(features, "RAW", tmp_path)
    monkeypatch.setattr(features, "DATASETS", {"stripes": (40, "folders")})
    monkeypatch.setattr(features, "BAG", BagOfWords(num_words=8, num_samples=400))


def test_accuracy_of_both_and_the_bound(stripes, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["features.py", "--accuracy", "stripes", "--repeats", "2"])
    features.main()
    assert capsys.readouterr().out == (
        "stripes, 20 images of 40 pixels, 2 x 5 folds: accuracy 100.00%, with OpenCV's descriptors "
        "100.00%; difference +0.00 points (+0.00 to +0.00); no loss of more than 1: shown\n"
    )


def test_harm_is_not_called_harmless(stripes, monkeypatch):
    """Ours is blind here."""
    monkeypatch.setattr(
        features,
        "dense_descriptors",
        lambda images, step, cells: np.zeros((len(images), 49, 128), np.float32),
    )
    rows = features.scan_images(features.RAW / "stripes", "folders")
    images = np.stack([cv2.imread(str(features.RAW / "stripes" / i)) for i in rows["image_id"]])
    row = features.compare_accuracy(images, rows, 1).iloc[0]
    assert row["OpenCV"] == 1
    assert row["ours"] <= 0.5
    assert row["difference"] == row["ours"] - 1
    assert (row["contender"], row["reference"], row["n"]) == ("ours", "OpenCV", 20)
    assert row["no_worse"] == "not shown"
