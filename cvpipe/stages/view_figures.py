"""What it brings to see an image in several views, beside a single one, and what it costs.

Nothing is predicted here: the views were when the test split was opened, or in their folds.
"""

import math
from typing import Any

import pandas as pd

from cvpipe.config import Config
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_table
from cvpipe.inference.crops import SINGLE, crops_the_image, num_views
from cvpipe.report.content import VIEW_COLUMNS
from cvpipe.report.wording import crops_warning
from cvpipe.runs import Run
from cvpipe.stages.evaluate import careful_protocols
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import views_of

SHOWN = ("accuracy", "log_loss")


def viewing_contenders(config: Config) -> dict[str, tuple[str, ...]]:
    """Map the contenders that see an image in several views to these."""
    views = {contender.name: views_of(config, contender) for contender in config.contender}
    return {name: asked for name, asked in views.items() if len(asked) > 1}


def describe_crops(config: Config) -> str:
    """Warn where parts of an image are cut away; `""` where none are."""
    viewing = viewing_contenders(config)
    cropping = [view for view in config.evaluate.views if crops_the_image(view)]
    return crops_warning(cropping) if viewing and cropping else ""


def write_views(job: Job) -> None:
    """Store the figures and costs of all views; nothing where there is a single one."""
    viewing = viewing_contenders(job.config)
    if not viewing:
        return
    tables = [
        compare_views(job, name, views, protocol)
        for protocol in careful_protocols(job.config)
        for name, views in viewing.items()
    ]
    write_table(job.run.views_path, pd.concat(tables, ignore_index=True))


def compare_views(job: Job, name: str, views: tuple[str, ...], protocol: str) -> pd.DataFrame:
    """Set the views of a contender beside its single one, image by image.

    Returns:
        Columns `VIEW_COLUMNS`, one row per view, in the order of the config.
    """
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    groups = job.run.manifest().set_index("image_id")["group"]
    tables = {view: job.run.predictions("test", name, protocol, view=view) for view in views}
    compared = compare_predictions(SINGLE, tables, groups, seed, resamples)
    differences = compared[compared["metric"] == "accuracy"].set_index("contender")
    speeds = job.run.view_speeds()[name]
    milliseconds = {v: 1000 / speed if speed > 0 else math.nan for v, speed in speeds.items()}
    rows: list[dict[str, Any]] = []
    for view, table in tables.items():
        row = {
            "protocol": protocol,
            "contender": name,
            "view": view,
            "chosen": view == job.run.view(name),
            "passes": num_views(view),
            "milliseconds_per_image": milliseconds[view],
            "relative_cost": milliseconds[view] / milliseconds[SINGLE],
            "verdict": "",
            "n": len(table),
        }
        scored = score_predictions(table, groups, seed, resamples)
        overall = scored[scored["label"] == ""].set_index("metric")
        for metric in SHOWN:
            ends = {metric: "value", f"{metric}_low": "low", f"{metric}_high": "high"}
            row |= {key: overall.loc[metric, column] for key, column in ends.items()}
        if view != SINGLE:
            found = differences.loc[view]
            row |= {key: found[key] for key in ("difference", "p_adjusted", "verdict")}
            row |= {f"difference_{end}": found[end] for end in ("low", "high")}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(VIEW_COLUMNS))


def collect_views(run: Run) -> dict[str, Any]:
    """Read what the page tells of views; nothing where there was a single one."""
    if not run.views_path.exists():
        return {}
    names = viewing_contenders(run.config())
    return {
        "views": run.views(),
        "view_reasons": {name: read_json(run.view_path(name))["because"] for name in names},
        "views_warning": describe_crops(run.config()),
    }
