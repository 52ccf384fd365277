"""Fix the choice on val, open the test split once, score and compare all contenders.

All protocols are scored here: the holdout, the folds, and the careless split.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.config import Config
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.folds import compare_folds
from cvpipe.evaluation.intervals import difference_interval
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_json, write_table
from cvpipe.frames import read_predictions
from cvpipe.report.content import CARELESS_COLUMNS, NO_WORSE_MARGINS, SUBGROUP_COLUMNS
from cvpipe.runs import record_test_opening
from cvpipe.stages.calibration import measure_calibration, table_for_choosing
from cvpipe.stages.choosing import choose_on_val, costs_of
from cvpipe.stages.contenders import predict_split
from cvpipe.stages.decide import fix_decisions, run_decide
from cvpipe.stages.ensembles import run_members
from cvpipe.stages.job import Job
from cvpipe.stages.protocols import run_careless, run_folds
from cvpipe.stages.recipes import is_baseline, is_majority, is_shortcut, members_first
from cvpipe.stages.split import fold_column, rows_of_split


def fix_choice(job: Job) -> str:
    """Choose a contender on val and store the choice; once stored it stands.

    The choice uses half A of val; half B is kept for what is fitted after the choice.
    A small val is used whole. What looks at no pixel is a yardstick and not to be chosen,
    unless there is nothing else.

    Returns:
        Name of the chosen contender.
    """
    if job.run.choice_path.exists():
        return str(read_json(job.run.choice_path)["chosen"])
    facts = best_on_val(job, candidates(job.config))
    write_json(job.run.choice_path, facts)
    return str(facts["chosen"])


def best_on_val(job: Job, names: Sequence[str]) -> dict[str, Any]:
    """Choose the best of some contenders on half A of val; see `choose_on_val`."""
    val = rows_of_split(job, "val")
    tables = {name: table_for_choosing(job, name, val) for name in names}
    return choose_on_val(job, tables, "candidates")


def candidates(config: Config) -> list[str]:
    """Name the contenders that may be chosen: those that look at the images, if there are any."""
    looking = [c.name for c in config.contender if not is_baseline(c)]
    return looking or [c.name for c in config.contender]


def open_test(job: Job) -> None:
    """Let every contender predict the test split; the ledger is written first.

    Folds score every image, so with them all images are in the ledger, too.
    """
    test = rows_of_split(job, "test")
    for scored in [test, *([job.run.manifest()] if job.config.split.protocol == "kfold" else [])]:
        record_test_opening(job.run.path.parent, job.run, fingerprint_of(scored))
    for contender in members_first(job.config):
        if not job.run.predictions_path(contender.name, "test").exists():
            predict_split(job, contender, test, "test")


def fingerprint_of(test: pd.DataFrame) -> str:
    """Name a test split, or all images, by pixels and labels, wherever they lie."""
    rows = sorted(zip(test["sha256"], test["label"], strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def predictions_of(
    job: Job, split: str, protocol: str = "holdout", repeat: int = 0
) -> dict[str, pd.DataFrame]:
    """Load the predictions of all contenders for a split, in the config's order."""
    return {
        c.name: job.run.predictions(split, c.name, protocol, repeat) for c in job.config.contender
    }


def careful_protocols(config: Config) -> list[str]:
    """Name the divisions that keep groups together."""
    return ["holdout", "kfold"] if config.split.protocol == "kfold" else ["holdout"]


def score(job: Job, groups: pd.Series) -> pd.DataFrame:
    """Compute the metrics of all contenders, each in its own view, under all protocols.

    Val figures have no interval: val was used for choosing. Nor have further repeats of the
    folds, of which only the spread is told. Intervals of the careless split know of the groups,
    too: only its division is careless.
    """
    seed, resamples, costs = job.config.seed, job.config.evaluate.resamples, costs_of(job)
    tables = []
    tested = [*careful_protocols(job.config), *(["careless"] if job.config.split.careless else [])]
    further = [("kfold", "test", repeat) for repeat in range(1, job.config.split.num_repeats)]
    once = [("holdout", "val", 0), *((protocol, "test", 0) for protocol in tested)]
    for protocol, split, repeat in [*once, *further]:
        for name, predictions in predictions_of(job, split, protocol, repeat).items():
            values_only = split == "val" or repeat > 0
            drawn = 1 if values_only else resamples
            table = score_predictions(predictions, groups, seed, drawn, costs)
            if values_only:
                table[["low", "high"]] = np.nan
            keys = {"protocol": protocol, "repeat": repeat, "contender": name}
            tables.append(table.assign(**keys, split=split, view=job.run.view(name)))
    columns = ["protocol", "repeat", "contender", "split", "view"]
    joined = pd.concat(tables, ignore_index=True)
    return joined[columns + [name for name in joined if name not in columns]]


def compare(job: Job, chosen: str, groups: pd.Series) -> pd.DataFrame:
    """Compare all contenders with the chosen one on the same test images, under each protocol.

    The contenders that see facts of the file alone are also compared with the class
    frequencies: what they gain is a way to guess the label without looking.
    """
    seed, resamples, costs = job.config.seed, job.config.evaluate.resamples, costs_of(job)
    tables = []
    for protocol in careful_protocols(job.config):
        predictions = predictions_of(job, "test", protocol)
        comparisons = [(chosen, predictions)]
        shortcuts = [c.name for c in job.config.contender if is_shortcut(c)]
        for majority in [c.name for c in job.config.contender if is_majority(c)][:1]:
            if shortcuts and majority != chosen:
                names = (majority, *shortcuts)
                comparisons.append((majority, {name: predictions[name] for name in names}))
        for reference, compared in comparisons:
            margin = NO_WORSE_MARGINS[protocol]
            table = compare_predictions(reference, compared, groups, seed, resamples, costs, margin)
            table.insert(0, "protocol", protocol)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def compare_recipes(job: Job, chosen: str) -> pd.DataFrame:
    """Compare the recipes by how they did on each fold of each repeat."""
    manifest = job.run.manifest()
    parts = [
        f"r{repeat}-f{fold}"
        for repeat in range(job.config.split.num_repeats)
        for fold in sorted(manifest[fold_column(repeat)].unique())
    ]
    tables = {
        c.name: [read_predictions(job.run.fold_predictions_path(c.name, part)) for part in parts]
        for c in job.config.contender
    }
    return compare_folds(chosen, tables)


def accuracies_on_test(metrics: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Select the metric rows of test accuracy under a protocol, indexed by contender.

    Of repeated folds the first repeat, whose images and fits the comparisons are about.
    """
    return metrics[
        (metrics["protocol"] == protocol)
        & (metrics["repeat"] == 0)
        & (metrics["split"] == "test")
        & (metrics["metric"] == "accuracy")
        & (metrics["label"] == "")
    ].set_index("contender")


def spread_of_repeats(metrics: pd.DataFrame) -> pd.DataFrame:
    """Say how far the division into folds alone moves each figure.

    The repeats share all images, so their spread is not the uncertainty of the figure: that is
    its interval. It says how much of a difference between two studies can be their folds.

    Returns:
        One row per contender, metric and class: `contender`, `metric`, `label`, the `mean` and
        the sample `standard_deviation` of the value over the repeats, and `num_repeats`.
    """
    folds = metrics[metrics["protocol"] == "kfold"]
    values = folds.groupby(["contender", "metric", "label"], sort=False)["value"]
    table = values.agg(mean="mean", standard_deviation="std", num_repeats="size")
    return table.reset_index()


def compare_with_careless(metrics: pd.DataFrame) -> pd.DataFrame:
    """Set each contender's test accuracy beside what the careless split claims.

    Returns:
        Columns `contender`, `holdout`, `careless`, `difference` (careless minus holdout), and
        its interval `low`, `high`.
    """
    holdout, careless = (accuracies_on_test(metrics, name) for name in ("holdout", "careless"))
    table = []
    for name, claimed in careless.iterrows():
        measured = holdout.loc[name]
        low, high = difference_interval(
            (claimed["value"], claimed["low"], claimed["high"]),
            (measured["value"], measured["low"], measured["high"]),
        )
        difference = claimed["value"] - measured["value"]
        table.append((name, measured["value"], claimed["value"], difference, low, high))
    return pd.DataFrame(table, columns=list(CARELESS_COLUMNS))


def score_subgroups(job: Job, manifest: pd.DataFrame) -> pd.DataFrame:
    """Compute every contender's accuracy in each subgroup.

    Returns:
        Columns `SUBGROUP_COLUMNS`, the worst subgroup first.
    """
    facts = manifest.set_index("image_id")
    seed, resamples = job.config.seed, job.config.evaluate.resamples
    rows = []
    for protocol in careful_protocols(job.config):
        for name, predictions in predictions_of(job, "test", protocol).items():
            for column in job.config.evaluate.subgroups:
                subgroup = facts.loc[predictions["image_id"], column].to_numpy()
                for value, part in predictions.groupby(subgroup):
                    scored = score_predictions(part, facts["group"], seed, resamples)
                    accuracy = scored[scored["metric"] == "accuracy"].iloc[0]
                    figures = accuracy[["metric", "value", "low", "high", "n"]]
                    rows.append((protocol, name, column, value, *figures))
    return pd.DataFrame(rows, columns=list(SUBGROUP_COLUMNS)).sort_values("value", kind="stable")


def run_evaluation(job: Job) -> None:
    """Choose, open test, try the other divisions, score and compare; what is stored is kept."""
    chosen = fix_choice(job)
    fix_decisions(job)
    with job.timed("test", f"test: {chosen} was chosen on val; opening the test split"):
        open_test(job)
    if job.config.split.protocol == "kfold":
        run_folds(job)
    if job.config.split.careless:
        run_careless(job)
    with job.timed("evaluate", "evaluate: metrics, intervals, paired comparisons"):
        manifest = job.run.manifest()
        groups = manifest.set_index("image_id")["group"]
        if not job.run.metrics_path.exists():
            write_table(job.run.metrics_path, score(job, groups))
        if job.config.split.num_repeats > 1 and not job.run.repeats_path.exists():
            write_table(job.run.repeats_path, spread_of_repeats(job.run.metrics()))
        if not job.run.comparison_path.exists():
            write_table(job.run.comparison_path, compare(job, chosen, groups))
        if not job.run.calibration_path.exists():
            write_table(job.run.calibration_path, measure_calibration(job, groups))
        if job.config.split.protocol == "kfold" and not job.run.folds_path.exists():
            write_table(job.run.folds_path, compare_recipes(job, chosen))
        if not job.run.careless_path.exists():
            write_table(job.run.careless_path, compare_with_careless(job.run.metrics()))
        if not job.run.subgroups_path.exists():
            write_table(job.run.subgroups_path, score_subgroups(job, manifest))
        run_members(job, groups, careful_protocols(job.config))
        run_decide(job, groups)
