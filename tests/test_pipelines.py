"""The pipelines on their real data: fetched from the package index, run whole."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

import cvpipe
from benchmarks.exports import table_of
from cvpipe.export.formats import list_exports
from cvpipe.runs import Run
from cvpipe.stages.job import Nobody
from cvpipe.stages.risks import find_risks
from cvpipe.stages.verify import BY_ACCURACY
from tests.conftest import run_cvpipe

PIPELINES = Path(__file__).parent.parent / "pipelines"


def claimed_results(name: str) -> dict[str, tuple[float, float]]:
    """Read the accuracies in the header of a pipeline file: on test, and on the careless split."""
    header = (PIPELINES / f"{name}.toml").read_text(encoding="utf-8").split("\n\n")[0]
    line = r"^#   (\w+) +([\d.]+)% \([^)]*\) +([\d.]+)% \([^)]*\)"
    return {
        contender: (float(test) / 100, float(careless) / 100)
        for contender, test, careless in re.findall(line, header, re.MULTILINE)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_mri", "digits", "solar_cells"])
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
    measured = rows.pivot_table(index="contender", columns="protocol", values="value")
    claimed = claimed_results(name)
    assert set(claimed) == set(measured.index)
    for contender, (test, careless) in claimed.items():
        # Another processor rounds differently; more than an image or two would be a defect.
        assert measured.loc[contender, "holdout"] == pytest.approx(test, abs=0.005)
        assert measured.loc[contender, "careless"] == pytest.approx(careless, abs=0.005)
    headlines = [risk.headline for risk in find_risks(run)]
    assert ("The file gives the label away." in headlines) == (name == "brain_mri")
    assert ("A plain random split would flatter." in headlines) == (name == "brain_mri")
    # A scan of brain_mri, its neighbours, and their mirror images.
    largest = run.duplicates().set_index("threshold").loc[24, "largest"]
    assert largest == pytest.approx({"brain_mri": 43, "digits": 3, "solar_cells": 6}[name], abs=1)
    (parity,) = run.export_path.glob("*/parity.json")
    assert json.loads(parity.read_text())["passed"] is True


@pytest.mark.slow
def test_digits_are_exported_in_every_format(tmp_path, monkeypatch):
    """Part of the table of docs/export.md: snapshots in one network, and a classic contender."""
    fetched = run_cvpipe("fetch", "digits", cwd=tmp_path)
    assert fetched.returncode == 0, fetched.stderr
    config = tomllib.loads((PIPELINES / "export_digits.toml").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)  # where a run keeps the path of its images
    config["data"]["root"] = "data/raw/digits"
    kept = [c for c in config["contender"] if c["name"] in ("snapshots", "hog_rbf")]
    kept[0]["training"]["epochs"] = 6
    (tmp_path / "digits.json").write_text(json.dumps(config | {"contender": kept}))
    run = cvpipe.run(tmp_path / "digits.json", runs_path=tmp_path / "runs", watcher=Nobody())
    table = table_of(run).set_index("format")
    assert list(table.index) == list(list_exports())
    assert table.loc["native", "snapshots"] == ""
    assert re.fullmatch(r"\d\.\de-\d\d; [\d.]+ MB", table.loc["native", "hog_rbf"])
    assert (table["hog_rbf"].drop("native") == "").all()
    networks = table["snapshots"].drop("native")
    exact = networks[[not label.endswith(BY_ACCURACY) for label in networks.index]]
    for cell in exact:
        assert re.fullmatch(r"\d\.\de-\d\d; [\d.]+ MB", cell), cell
    for cell in networks.drop(exact.index):
        assert re.fullmatch(
            r"(\*refused:\* )?[-+][\d.]+ \([-+][\d.]+ to [-+][\d.]+\); [\d.]+ MB", cell
        )
