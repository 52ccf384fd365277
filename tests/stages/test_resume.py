"""Runs that are killed, repeated, or fed with poisoned val and test images."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cvpipe import frames
from cvpipe.config import preset_config, validate_config
from cvpipe.contender_sections import ClassicContender
from cvpipe.files import read_json, write_json
from cvpipe.runs import Run, read_ledger
from cvpipe.stages.contenders import fit_contender, load_predictor, stored_describer
from cvpipe.stages.features import files_of
from cvpipe.stages.job import Job, Nobody
from tests.conftest import run_cvpipe

ARGUMENTS = ["photos", "--preset", "quick", "--set", "threads=2", "--set", "evaluate.resamples=200"]


def predictions_files(run_path: Path) -> dict[str, bytes]:
    files = sorted(run_path.glob("contenders/*/predictions/*.csv"))
    # What a killed process was writing lies there still, under a name that nothing reads.
    files = [path for path in files if ".partial" not in path.name]
    return {str(p.relative_to(run_path)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_a_second_run_gives_identical_predictions(run, finished, tmp_path):
    """From an empty cache, in another place, with other loader threads at work."""
    (tmp_path / "photos").symlink_to(finished.cwd / "photos")
    answer = run_cvpipe("run", *ARGUMENTS, cwd=tmp_path, CVPIPE_CACHE_DIR=str(tmp_path / "cache"))
    assert answer.returncode == 0, answer.stderr
    again = next((tmp_path / "runs").glob("photos-*"))
    assert again.name == run.path.name
    # val and test with and without calibration, and the careless test, of four contenders
    assert len(predictions_files(again)) == 4 * 5
    assert predictions_files(again) == predictions_files(run.path)
    assert (again / "metrics.csv").read_bytes() == run.metrics_path.read_bytes()


# One file of every stage, in the order in which they appear.
MILESTONES = [
    "config.json",  # killed while it hashes and decodes
    "manifest.csv",
    "contenders/shortcut/holdout/fit.json",
    "contenders/hog_svm/holdout/calibration.json",  # before its predictions are calibrated
    "contenders/hog_svm/predictions/holdout-val.csv",  # while the network computes features
    "choice.json",
    "contenders/majority/predictions/holdout-test.csv",  # with the test split half scored
    "contenders/hog_svm/r0-f0/fit.json",  # between two folds
    "contenders/shortcut/predictions/careless-test.csv",
    "metrics.csv",
    "export/linear_probe/bundle.json",  # before the export was checked
    "speeds.json",
]


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(photos, tmp_path):
    arguments = [*ARGUMENTS, "--set", "split.protocol=kfold", "--set", "split.num_folds=2"]
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photos").symlink_to(photos)
    for milestone in MILESTONES:
        kill_at(milestone, arguments, tmp_path / "killed")
    runs = []
    for name in ("killed", "undisturbed"):
        cache = str(tmp_path / name / "cache")
        answer = run_cvpipe("run", *arguments, cwd=tmp_path / name, CVPIPE_CACHE_DIR=cache)
        assert answer.returncode == 0, answer.stderr
        runs.append(next((tmp_path / name / "runs").glob("photos-*")))
        assert len(read_ledger(runs[-1].parent)) == 2  # the test split, and all images in folds
    killed, undisturbed = runs
    assert killed.name == undisturbed.name
    # val and test with and without calibration, folds, careless
    assert len(predictions_files(killed)) == 4 * 6
    assert predictions_files(killed) == predictions_files(undisturbed)
    tables = ("metrics", "comparison", "careless", "calibration", "manifest")
    for name in (f"{table}.csv" for table in tables):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()


def kill_at(milestone: str, arguments: list[str], cwd: Path) -> None:
    """Start the run and kill it, without a chance to tidy up, once a file is there."""
    environment = {**os.environ, "CVPIPE_CACHE_DIR": str(cwd / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cvpipe", "run", *arguments], cwd=cwd, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((cwd / "runs").glob(f"*/{milestone}")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (half,) = (cwd / "runs").glob("photos-*")
    assert (half / milestone).exists()
    assert not (half / "report.html").exists()


@pytest.mark.parametrize("contender_index", [0, 1, 2])
def test_poisoned_val_and_test_rows_change_nothing_that_is_fitted(
    photos, tmp_path, contender_index
):
    """Every val and test image and label is replaced; the fitted contender must not notice."""
    config = validate_config(preset_config("photos", "photos", "folders", "quick"), ["threads=1"])
    contender = config.contender[contender_index]
    assert isinstance(contender, ClassicContender)
    train_ids = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    val_ids = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    fitted = []
    for poisoned in (False, True):
        root = tmp_path / f"root-{poisoned}"
        shutil.copytree(photos, root)
        if poisoned:
            for path in root.rglob("*.png"):  # the PNG images play val and test here
                path.write_bytes(b"poison")
        job = Job(config, root, Run(tmp_path / f"run-{poisoned}"), Nobody())
        write_json(job.run.config_path, config.model_dump(mode="json"))
        write_json(job.run.classes_path, ["0", "NA", "poppy"])
        train = frames.read_text_table(_table(tmp_path, train_ids, root))
        # Only the training of a network is told of val, to be stopped by it.
        stopping = frames.read_text_table(_table(tmp_path, val_ids, root))
        fit_contender(job, contender, train, stopping)
        predict = load_predictor(job.run, contender)
        describer = stored_describer(job.run, contender)
        features = describer.describe(files_of(root, train), Nobody())
        fit = read_json(job.run.part_path(contender.name) / "fit.json")
        fitted.append((predict(features), fit["chosen"]))
    assert np.array_equal(fitted[0][0], fitted[1][0])
    assert fitted[0][1] == fitted[1][1]


def _table(folder: Path, image_ids: list[str], root: Path) -> Path:
    from cvpipe.data.audit import hash_file

    path = folder / "train.csv"
    lines = ["image_id,label,group,sha256"]
    lines += [f"{i},{i.split('/')[0]},{i},{hash_file(root / i)}" for i in image_ids]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
