"""A whole run that is told what mistakes cost, without a network, in this process."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import cvpipe
from cvpipe.errors import InputError
from cvpipe.files import read_json, write_table
from cvpipe.report.page import MORE_METRICS
from cvpipe.runs import Run
from cvpipe.stages.report import rebuild_report

PIPELINE = """
threads = 2

[data]
root = "images"

[split]
protocol = "kfold"
num_folds = 2

[[contender]]
name = "majority"
classifier = "majority"

[[contender]]
name = "pixels_knn"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"

[[contender]]
name = "colour_softmax"
features = ["colour_histogram"]
classifier = "softmax"
search = "coarse"

[evaluate]
select_by = "cost"
resamples = 200

[evaluate.costs]
NA = {0 = 20}
0 = {poppy = 0.5, NA = 2}
"""
COSTS = {("NA", "0"): 20, ("0", "poppy"): 0.5, ("0", "NA"): 2}
CONTENDERS = ["majority", "pixels_knn", "colour_softmax"]
MARGIN = "Mean cost per image: NA called 0 costs 20; 0 called poppy costs 0.5; 0 called NA costs 2;"


def write_images(folder):
    """Noise whose brightness tells the class, but not surely."""
    rng = np.random.default_rng(0)
    for brightness, label in enumerate(("0", "NA", "poppy")):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(40):
            level = 100 + 25 * brightness + 25 * rng.normal()
            pixels = np.clip(level + rng.normal(0, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{number:02}.png")
    (folder / "pipeline.toml").write_text(PIPELINE)
    return folder


@pytest.fixture(scope="module")
def costly(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("costly"))
    return cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs")


def mean_cost(predictions):
    costs = []
    for row in predictions.to_dict("records"):
        named = max(("0", "NA", "poppy"), key=lambda name: row[f"p_{name}"])
        other = 0 if named == row["label"] else 1
        costs.append(COSTS.get((row["label"], named), other))
    return sum(costs) / len(costs)


def test_every_contender_has_its_mean_cost_under_every_protocol(costly):
    rows = costly.metrics().query("metric == 'cost'")
    assert len(rows) == 4 * len(CONTENDERS)
    for row in rows.itertuples():
        predictions = costly.predictions(row.split, row.contender, row.protocol)
        assert row.value == pytest.approx(mean_cost(predictions)), row
        assert row.n == len(predictions)
        assert row.split == "val" or row.low <= row.value <= row.high
    assert rows["value"].nunique() > 4
    assert rows["value"].max() > 1


def test_the_choice_is_the_cheapest_on_val(costly):
    costs = {name: mean_cost(costly.predictions("val", name)) for name in CONTENDERS[1:]}
    choice = read_json(costly.choice_path)
    assert choice["chosen"] == min(costs, key=lambda name: costs[name])
    assert choice["select_by"] == "cost"
    assert choice["because"].startswith("it has the lowest mean cost of 2 candidates on 24 of")


def test_costs_are_compared_and_reported(costly):
    chosen = read_json(costly.choice_path)["chosen"]
    compared = costly.comparison().query("metric == 'cost'")
    assert len(compared) == 2 * (len(CONTENDERS) - 1)
    for row in compared.itertuples():
        one, other = (
            mean_cost(costly.predictions("test", name, row.protocol))
            for name in (row.contender, chosen)
        )
        assert row.difference == pytest.approx(one - other)
    page = costly.report_path.read_text(encoding="utf-8")
    assert MARGIN in page
    assert '<th scope="col" class="number">mean cost</th>' in page
    assert "More k-fold figures: PR AUC, Matthews correlation, Cohen&#39;s kappa" in page
    assert '<th scope="col" class="number">specificity</th>' in page


def test_other_costs_are_another_run_and_equal_ones_the_same(costly, tmp_path):
    pipeline = costly.path.parent.parent / "pipeline.toml"
    said = []

    class Listener:
        def say(self, text):
            said.append(text)

    again = cvpipe.run(pipeline, runs_path=costly.path.parent, watcher=Listener())
    assert again.path == costly.path
    assert said == [f"finished before; the report is {costly.report_path}"]
    with pytest.raises(KeyboardInterrupt):
        cvpipe.run(
            pipeline, ["evaluate.costs={NA={0=21}}"],
            runs_path=tmp_path, watcher=Interrupter(),
        )  # fmt: skip
    (other,) = tmp_path.iterdir()
    assert other.name != costly.path.name
    assert Run(other).config().evaluate.costs == {"NA": {"0": 21}}


class Interrupter:
    def say(self, text):
        raise KeyboardInterrupt


def test_a_run_from_before_these_figures_is_still_reported(costly, tmp_path):
    folder = tmp_path / "runs" / costly.path.name
    shutil.copytree(costly.path, folder)
    old = Run(folder)
    metrics, comparison = old.metrics(), old.comparison()
    is_new = metrics["metric"].isin({*MORE_METRICS, "cost", "specificity"})
    write_table(old.metrics_path, metrics[~is_new])
    write_table(old.comparison_path, comparison[comparison["metric"] != "cost"])
    raw = read_json(old.config_path)
    raw["evaluate"] = {"select_by": "log_loss", "resamples": 200, "subgroups": []}
    old.config_path.write_text(json.dumps(raw))
    rebuild_report(old, costly.path.parent.parent / "images")
    page = old.report_path.read_text(encoding="utf-8")
    for words in (">mean cost<", "Mean cost", "More test figures", "specificity"):
        assert words not in page
    assert '<th scope="col" class="number">recall</th>' in page


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (
            '{NA = {popy = 2}}',
            "evaluate.costs names the class 'popy', but the images have the classes "
            "['0', 'NA', 'poppy']; did you mean 'poppy'?",
        ),
        (
            "{0 = {NA = 0, poppy = 0}, NA = {0 = 0, poppy = 0}, poppy = {0 = 0, NA = 0}}",
            "the costs of all mistakes are 0, so there is nothing to measure; give one mistake a "
            "cost above 0, or leave evaluate.costs out.",
        ),
    ],
)  # fmt: skip
def test_costs_that_do_not_fit_stop_a_run_before_it_begins(costly, tmp_path, costs, message):
    with pytest.raises(InputError) as caught:
        cvpipe.run(
            costly.path.parent.parent / "pipeline.toml", [f"evaluate.costs={costs}"],
            runs_path=tmp_path,
        )  # fmt: skip
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())
