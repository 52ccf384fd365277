"""`docs/metrics.md` lists the metrics as the code has them."""

import re
import tomllib
from pathlib import Path

import numpy as np

from cvpipe.evaluation.costs import cost_matrix
from cvpipe.evaluation.metrics import CLASS_METRICS, metrics_for
from cvpipe.sections import EvaluateSection

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
COSTS = 1 - np.eye(6)


def rows_below(heading: str) -> list[list[str]]:
    section = DOCUMENT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_metric_is_listed_with_its_range_and_direction():
    metrics = metrics_for(6, COSTS)
    rows = rows_below("Over all classes")
    assert [row[0].strip("`") for row in rows] == list(metrics)
    for name, _, extent, best in rows:
        metric = metrics[name.strip("`")]
        lower, upper = extent.split(" to ")
        assert float(lower) == metric.lower
        assert upper == ("the largest cost" if name == "`cost`" else f"{metric.upper:.3g}")
        assert float(best) == (metric.upper if metric.higher_is_better else metric.lower)


def test_every_metric_of_a_class_is_listed():
    assert [row[0].strip("`") for row in rows_below("For each class")] == list(CLASS_METRICS)


def test_those_with_the_interval_of_a_proportion_are_listed():
    (listed,) = re.findall(r"Shares of images \((.*?)\)", DOCUMENT, re.DOTALL)
    metrics = metrics_for(6, COSTS) | CLASS_METRICS
    proportions = [name for name, metric in metrics.items() if metric.is_proportion]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(proportions)


def test_the_costs_are_a_valid_example_that_means_what_it_says():
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    section = EvaluateSection.model_validate(tomllib.loads(block)["evaluate"], strict=False)
    matrix = cost_matrix(section.costs, ["cyst", "healthy", "tumour"])
    assert matrix.tolist() == [[0, 1, 0.5], [1, 0, 1], [5, 20, 0]]
