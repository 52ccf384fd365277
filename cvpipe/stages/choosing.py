"""What is chosen on half A of val before test is opened, and why: by one metric, on one rule."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.config import Config
from cvpipe.contender_sections import Contender
from cvpipe.evaluation.comparison import choose
from cvpipe.evaluation.costs import cost_matrix
from cvpipe.evaluation.metrics import metrics_for
from cvpipe.files import write_json
from cvpipe.inference.crops import SINGLE, num_views, sizes_to_load
from cvpipe.stages.calibration import table_for_choosing
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import becomes_network, views_of
from cvpipe.stages.split import rows_of_split


def costs_of(job: Job) -> np.ndarray | None:
    """Write the costs of mistakes in class order; `None` where the config names none."""
    costs = job.config.evaluate.costs
    return cost_matrix(costs, job.run.class_names()) if costs else None


def choose_on_val(job: Job, tables: Mapping[str, pd.DataFrame], kind: str) -> dict[str, Any]:
    """Choose by `evaluate.select_by` and say why.

    Args:
        job: The run.
        tables: Predictions of half A of val, see `table_for_choosing`, by name; the first of
            several that are equally good is chosen.
        kind: What they are of, for the reason.

    Returns:
        `chosen`, `because`, `select_by` and `num_images`.
    """
    select_by, costs = job.config.evaluate.select_by, costs_of(job)
    chosen = choose(tables, select_by, costs)
    metric = metrics_for(len(job.run.class_names()), costs)[select_by]
    num_images = len(tables[chosen])
    because = (
        f"it has the {'highest' if metric.higher_is_better else 'lowest'} "
        f"{metric.title.lower()} of {len(tables)} {kind} on "
        f"{num_images} of the {len(rows_of_split(job, 'val'))} validation images"
    )
    return {
        "chosen": chosen,
        "because": because,
        "select_by": select_by,
        "num_images": num_images,
    }


def fix_view(job: Job, contender: Contender, val: pd.DataFrame) -> None:
    """Choose a contender's view on val and store the choice; once stored it stands.

    Of views that are equally good the one that takes the fewest passes is chosen.

    Args:
        job: The run.
        contender: Its predictions of val in each view are stored.
        val: Manifest rows of val.
    """
    path = job.run.view_path(contender.name)
    if path.exists():
        return
    asked = views_of(job.config, contender)
    possible = [view for view in asked if can_be_chosen(job.config, contender, view)]
    possible.sort(key=lambda view: (num_views(view), view != SINGLE))
    tables = {view: table_for_choosing(job, contender.name, val, view) for view in possible}
    facts = choose_on_val(job, tables, "views")
    for view in (view for view in asked if view not in possible):
        facts["because"] += (
            f"; {view!r} is reported but cannot be chosen for a network, because it needs images "
            "of several sizes, and an exported file takes one"
        )
    write_json(path, facts)


def can_be_chosen(config: Config, contender: Contender, view: str) -> bool:
    """Tell whether what would be handed on can see an image so: a network takes one size."""
    return not becomes_network(config, contender) or len(sizes_to_load(view, (1, 1))) == 1
