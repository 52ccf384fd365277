"""The ledger of test openings over twenty edits of a pipeline, in this process."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
import cvpipe.report.audit_page
import cvpipe.report.page
from cvpipe.runs import count_test_openings, read_ledger
from cvpipe.stages.evaluate import fingerprint_of

NUM_EDITS = 20
PIPELINE = """
threads = 1

[data]
root = "images"

[split]
careless = false

[evaluate]
resamples = {resamples}
learning_curve = false

[export]
formats = ["keras"]

[[contender]]
name = "majority"
classifier = "majority"
"""
# Every second edit has another contender, too.
FURTHER = """
[[contender]]
name = "pixels"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty tiny images of noise in two classes."""
    folder = tmp_path_factory.mktemp("edited")
    rng = np.random.default_rng(0)
    for number in range(40):
        path = folder / "images" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def run_edit(folder, number):
    """Edit the pipeline file as a person would, and run it."""
    text = PIPELINE.format(resamples=100 + number // 2) + (FURTHER if number % 2 else "")
    (folder / "pipeline.toml").write_text(text)
    return cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs")


@pytest.fixture(scope="module")
def runs(folder):
    with pytest.MonkeyPatch.context() as patch:
        # Drawing the figures would take half of the time.
        for page in (cvpipe.report.page, cvpipe.report.audit_page):
            patch.setattr(page, "figure_to_svg", lambda figure, description: "<svg></svg>")
        return [run_edit(folder, number) for number in range(NUM_EDITS)]


def test_fingerprint_of_test_is_that_of_all_edits(runs):
    prints = {
        fingerprint_of(rows[rows["split"] == "test"]) for rows in (r.manifest() for r in runs)
    }
    assert len(prints) == 1


def test_twenty_edits_are_twenty_openings(folder, runs):
    assert len({run.path for run in runs}) == NUM_EDITS
    rows = read_ledger(folder / "runs")
    assert [row["run"] for row in rows] == [run.path.name for run in runs]
    (fingerprint,) = {row["test_fingerprint"] for row in rows}
    assert count_test_openings(folder / "runs", [fingerprint]) == NUM_EDITS
    ledger = pd.read_csv(folder / "runs" / "test_openings.csv", dtype=str)
    assert ledger["config_hash"].nunique() == len(ledger) == NUM_EDITS


def test_each_report_says_how_many_there_were_by_then(runs):
    for number, run in enumerate(runs, 1):
        page = run.report_path.read_text(encoding="utf-8")
        once = "This test split has been scored by one config" in page
        assert once == (number == 1)
        assert (f"This test split has been scored by {number} configs." in page) == (number > 1)


def test_running_an_edit_again_is_no_further_opening(folder, runs):
    again = run_edit(folder, NUM_EDITS // 2)
    assert again.path == runs[NUM_EDITS // 2].path
    assert len(read_ledger(folder / "runs")) == NUM_EDITS
    # Not even where its report has to be made anew, which then knows of all the others.
    again.report_path.unlink()
    run_edit(folder, NUM_EDITS // 2)
    assert len(read_ledger(folder / "runs")) == NUM_EDITS
    assert f"scored by {NUM_EDITS} configs." in again.report_path.read_text(encoding="utf-8")
    # Nor where the run is made anew: the config is the same.
    cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs", again=True)
    rows = read_ledger(folder / "runs")
    assert len(rows) == NUM_EDITS + 1
    assert count_test_openings(folder / "runs", [rows[0]["test_fingerprint"]]) == NUM_EDITS
