"""Run what docs/averaging.md and docs/views.md tell of and write their tables: `make averages`.

What averaging brings at an equal budget of training: each image scored once, in its fold. Every
contender is compared with one run of all epochs (`one_run`) and, in the second table, every view
with the single one. A run that is finished already is only read.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

import cvpipe
from cvpipe.cli import Terminal
from cvpipe.contender_sections import NetworkContender
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.runs import Run
from cvpipe.stages.fetch import fetch
from cvpipe.stages.summary import markdown, with_interval

ROOT = Path(__file__).parent.parent
PAGES = {kind: ROOT / "docs" / f"{kind}.md" for kind in ("averaging", "views")}
NAMES = ("brain_mri", "solar_cells", "digits")
REFERENCE = "one_run"
BLOCK = re.compile(r"(?<=<!-- {} -->\n).*?(?=<!-- /{} -->)", re.DOTALL)


def run_of(pipeline: str) -> Run:
    """Run a pipeline, or read its run."""
    return cvpipe.run(
        ROOT / "pipelines" / f"{pipeline}.toml",
        runs_path=ROOT / "runs",
        watcher=Terminal(quiet=False),
    )


def table_of(run: Run) -> pd.DataFrame:
    """Write what each contender reaches over the folds beside one run, and what it costs."""
    config, metrics = run.config(), run.metrics()
    names = [contender.name for contender in config.contender]
    groups = run.manifest().set_index("image_id")["group"]
    tables = {name: run.predictions("test", name, "kfold") for name in names}
    settings = (config.seed, config.evaluate.resamples)
    compared = compare_predictions(REFERENCE, tables, groups, *settings)
    overall = metrics[(metrics["protocol"] == "kfold") & (metrics["label"] == "")]
    costs = run.contenders().set_index("contender")
    unit = costs.loc[REFERENCE, ["fit_seconds", "milliseconds_per_image", "model_bytes"]]
    rows = []
    for contender in config.contender:
        name = contender.name
        figures = overall[overall["contender"] == name].set_index("metric")
        accuracy, loss = figures.loc["accuracy"], figures.loc["log_loss"]
        cost = costs.loc[name, list(unit.index)] / unit
        rows.append(
            {
                "contender": name,
                "epochs": epochs_of(contender),
                "accuracy": with_interval(*accuracy[["value", "low", "high"]]),
                "difference": difference_of(compared, name, "accuracy", 100, 1),
                "log loss": f"{loss['value']:.3f}",
                "its difference": difference_of(compared, name, "log_loss", 1, 3),
                "fitting": f"{cost['fit_seconds']:.1f}",
                "time per image": f"{cost['milliseconds_per_image']:.1f}",
                "file": f"{cost['model_bytes']:.1f}",
            }
        )
    return pd.DataFrame(rows)


def epochs_of(contender: object) -> str:
    """Write the budget of a network: trainings x epochs."""
    if not isinstance(contender, NetworkContender):
        return ""
    number = contender.training.num_trainings
    return f"{number} x {contender.training.epochs // number}"


def difference_of(compared: pd.DataFrame, name: str, metric: str, unit: int, digits: int) -> str:
    """Write a difference with its interval; bold where the paired test finds one."""
    rows = compared[(compared["contender"] == name) & (compared["metric"] == metric)]
    if rows.empty:
        return ""
    row = rows.iloc[0]
    value, low, high = (f"{unit * row[k]:+.{digits}f}" for k in ("difference", "low", "high"))
    text = f"{value} ({low} to {high})"
    return text if row["verdict"] == "cannot be told apart" else f"**{text}**"


def view_table_of(run: Run) -> pd.DataFrame:
    """Write what each view of each contender reaches over the folds beside the single one."""
    views = run.views()
    rows = views[views["protocol"] == "kfold"].to_dict("records")
    return pd.DataFrame(
        {
            "contender": row["contender"],
            "view": row["view"],
            "passes": str(row["passes"]),
            "time": f"{row['relative_cost']:.1f}",
            "accuracy": with_interval(*(row[f"accuracy{end}"] for end in ("", "_low", "_high"))),
            "difference": "" if row["view"] == "single" else view_difference(row),
            "log loss": f"{row['log_loss']:.3f}",
        }
        for row in rows
    )


def view_difference(row: dict) -> str:
    """Write a difference of accuracies in points."""
    value, low, high = (f"{100 * row[f'difference{end}']:+.1f}" for end in ("", "_low", "_high"))
    text = f"{value} ({low} to {high})"
    return text if row["verdict"] == "cannot be told apart" else f"**{text}**"


def tables(kind: str) -> Iterator[str]:
    """Write the tables of one kind, one for each data set."""
    for name in NAMES:
        run = run_of(f"{kind}_{name}")
        table = {"averaging": table_of, "views": view_table_of}[kind](run)
        yield "\n".join([f"**{name}**, {len(run.manifest()):,} images", "", *markdown(table)])


def main() -> None:
    """Fetch, run, and rewrite the blocks between the marks on the pages."""
    for name in NAMES:
        fetch(name, target_root=ROOT / "data" / "raw")
    for kind, page in PAGES.items():
        block = re.compile(BLOCK.pattern.replace("{}", kind), re.DOTALL)
        written = "\n" + "\n\n".join(tables(kind)) + "\n\n"
        text = block.sub(lambda _, written=written: written, page.read_text("utf-8"))
        page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
