"""Intervals hold the truth, and verdicts are rarely false, as `docs/statistics.md` says."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import (
    MIN_COVERAGE,
    NUM_PERMUTATIONS,
    TABLES,
    Cell,
    Coverage,
    cells,
    coverage_of_accuracy,
    describe,
    draw_answers,
    false_verdicts,
    table_of_verdicts,
)
from cvpipe.evaluation import comparison
from cvpipe.evaluation.metrics import accuracy, ece

DOCUMENT = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
MAX_FALSE = 0.06


def rows_below(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its head."""
    section = re.split(rf"^#+ {re.escape(heading)}\n", DOCUMENT, flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, flags=re.MULTILINE)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[1:]]


@pytest.mark.slow  # twenty seconds for all cells
@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: "-".join(map(str, cell)))
def test_the_interval_of_the_accuracy_holds_the_truth(cell):
    found = coverage_of_accuracy(cell, 2000, seed=0)
    assert found.share >= MIN_COVERAGE
    committed = {tuple(row[:3]): row[3:] for row in rows_below("Coverage of the accuracy")}
    assert committed[tuple(map(str, cell))] == [f"{found.share:.3f}", f"{found.width:.3f}"]


@pytest.mark.slow  # two minutes
def test_the_whole_procedure_rarely_calls_an_equal_better(monkeypatch):
    monkeypatch.setattr(comparison, "NUM_PERMUTATIONS", NUM_PERMUTATIONS)
    found = [false_verdicts(1000, correlated, seed=0) for correlated in (False, True)]
    for name in ("better: accuracy", "better: any metric"):
        assert np.mean([shares[name] for shares in found]) <= MAX_FALSE, name


def test_the_documents_list_the_cells_that_fail():
    """Those of the other metrics: the bold cells of the table, and no others."""
    rows = rows_below("Coverage of other metrics")
    assert [tuple(row[:3]) for row in rows] == [tuple(map(str, cell)) for cell in cells()]
    for row in rows:
        for figure in row[3:]:
            share, width = (float(part.strip("()")) for part in figure.strip("*").split())
            assert figure == describe(Coverage(share, width))


@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_what_is_drawn_is_what_is_said(correlation):
    rng = np.random.default_rng(0)
    targets, probabilities, groups = draw_answers(Cell(200_000, 0.9, correlation), rng)
    assert accuracy(targets, probabilities) == pytest.approx(0.9, abs=0.005)
    assert ece(targets, probabilities) < 0.01
    assert targets.mean() == pytest.approx(0.3, abs=0.01)
    sizes = np.bincount(groups)
    right = (probabilities.argmax(axis=1) == targets) - 0.9
    if correlation == 0:
        assert (sizes == 1).all()
        return
    assert set(sizes[:-1]) == set(range(1, 9))
    # The correlation of two different images of one group, from sums of products.
    products = np.bincount(groups, weights=right) ** 2 - np.bincount(groups, weights=right**2)
    covariance = products.sum() / (sizes * (sizes - 1)).sum()
    assert covariance / 0.09 == pytest.approx(correlation, abs=0.03)


def test_every_table_can_be_printed(monkeypatch):
    monkeypatch.setattr(comparison, "NUM_PERMUTATIONS", comparison.NUM_PERMUTATIONS)
    monkeypatch.setattr(coverage, "NUM_RESAMPLES", 30)  # of which the figures are not asked here
    lengths = {name: len(make_lines(1, 0)) for name, (make_lines, _) in TABLES.items()}
    assert lengths == {"accuracy": 20, "verdicts": 6, "metrics": 20}
    assert table_of_verdicts(1, 0)[2].startswith("| better: accuracy | ")
