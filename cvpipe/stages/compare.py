"""The contenders of one run, or of runs that share a test split, in one table.

Nothing is fitted or predicted here: all figures come from the predictions that the runs have
stored. Contenders are compared image by image, so the runs must have scored the same images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from cvpipe.config import config_hash
from cvpipe.contender_sections import Contender, EnsembleContender
from cvpipe.data.splits import merge_groups
from cvpipe.errors import InputError, check_name
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import read_json, write_table
from cvpipe.plots.numbers import (
    SPACE,
    format_bytes,
    format_metric,
    format_p_value,
    format_rate,
    format_seconds,
)
from cvpipe.report.compare_page import CONTENDER_COLUMNS, REFERENCE, ContenderComparison
from cvpipe.report.wording import openings_sentence
from cvpipe.runs import Run, open_run, read_ledger
from cvpipe.stages.evaluate import fingerprint_of
from cvpipe.stages.job import Nobody, Watcher
from cvpipe.stages.recipes import is_baseline
from cvpipe.stages.summary import aligned, with_interval

FIGURES_OF_CONTENDER = ("accuracy", "log_loss", "ece")
Named = Mapping[str, tuple[Run, Contender]]


def compare_runs(
    paths: Sequence[Path], reference: str = "", watcher: Watcher | None = None
) -> ContenderComparison:
    """Compare all contenders of finished runs on the test images that the runs share.

    All figures are computed from the stored predictions with the seed and the resamples of the
    first run, so that intervals of different runs are made in the same way. For a single run they
    are those of its report.

    Args:
        paths: Run folders; one that is given twice counts once.
        reference: The contender all others are compared with, as the table names it; by default
            the one that the first run chose on val.
        watcher: Who is told how far it is.

    Raises:
        InputError: A folder is no finished run or lacks a table, two folders bear the same name,
            the runs have different test splits or classes, or the reference is unknown.
    """
    runs = open_runs(paths)
    tests = {run.path.name: rows_of_test(run) for run in runs}
    check_same_test(tests)
    check_same_classes(runs)
    contenders = name_contenders(runs)
    chosen = chosen_of(runs[0], contenders)
    reference = check_name("contender", reference or chosen, contenders)
    ids = match_images(tests)
    groupings = groupings_of(tests, ids)
    groups = join_groupings(groupings)
    tables = predictions_of_all(contenders, ids)
    config = runs[0].config()
    seed, resamples = config.seed, config.evaluate.resamples
    metrics = [
        score_predictions(tables[name], groups, seed, resamples).assign(contender=name)
        for name in (watcher or Nobody()).track(tables, len(tables), "contenders")
    ]
    comparison = compare_predictions(reference, tables, groups, seed, resamples)
    facts = facts_of(contenders)
    return ContenderComparison(
        runs=list(tests),
        reference=reference,
        is_chosen=reference == chosen,
        baselines=frozenset(name for name, (_, c) in contenders.items() if is_baseline(c)),
        table=contender_table(pd.concat(metrics), comparison, reference, facts),
        num_images=len(groups),
        num_groups=groups.nunique(),
        test_openings=count_configs(
            runs,
            [
                fingerprint_of(tests[runs[0].path.name]),
                *(fingerprint_of(r.manifest()) for r in runs),
            ],
        ),
        notes=notes_on(runs, groupings.nunique().tolist(), groups.nunique()),
    )


def write_contenders(run: Run) -> None:
    """Store the table of a run's own contenders, from its tables of metrics and comparisons."""
    contenders = name_contenders([run])
    metrics = run.metrics().query("protocol == 'holdout' and split == 'test'")
    comparison = run.comparison().query("protocol == 'holdout'")
    chosen = chosen_of(run, contenders)
    table = contender_table(metrics, comparison, chosen, facts_of(contenders))
    write_table(run.contenders_path, table)


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Open finished runs, each once.

    Raises:
        InputError: A folder is no finished run, was made by a cvpipe that stored less, or bears
            the name of another.
    """
    opened: list[Run] = []
    for run in map(open_run, paths):
        if run.path.resolve() not in [known.path.resolve() for known in opened]:
            opened.append(run)
    for run in opened:
        if not run.is_finished:
            raise InputError(
                f"the run {str(run.path)!r} is not finished, so it cannot be compared; finish it "
                "with the command that started it, which goes on where it stopped."
            )
        needed = (run.manifest_path, run.classes_path, run.choice_path)
        lacking = [path.name for path in needed if not path.exists()]
        if lacking:
            raise InputError(
                f"the run {str(run.path)!r} lacks {lacking}; it was made by an older cvpipe or is "
                f"incomplete. Make it anew with: cvpipe run {run.config_path} --again"
            )
    names = Counter(run.path.name for run in opened)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(
            f"{names[twice[0]]} of the folders are called {twice[0]!r}, but runs are told apart by "
            "the names of their folders; rename all but one."
        )
    return opened


def rows_of_test(run: Run) -> pd.DataFrame:
    """Load the manifest rows of a run's test split.

    Raises:
        InputError: The manifest does not say what is needed to match images of several runs.
    """
    manifest = run.manifest()
    lacking = [name for name in ("sha256", "split") if name not in manifest]
    if lacking:
        raise InputError(
            f"the manifest of {str(run.path)!r} lacks the columns {lacking}; it was made by an "
            f"older cvpipe. Make it anew with: cvpipe run {run.config_path} --again"
        )
    return manifest[manifest["split"] == "test"].reset_index(drop=True)


def check_same_test(tests: Mapping[str, pd.DataFrame]) -> None:
    """Check that all runs have scored the same images and labels.

    Args:
        tests: By the name of the run the rows of its test split.

    Raises:
        InputError: They have not; the message names the runs that differ from the first.
    """
    (first, expected), *others = tests.items()
    known = Counter(zip(expected["sha256"], expected["label"], strict=True))
    differing = [
        f"{name!r} has {len(test)}, and shares "
        f"{(known & Counter(zip(test['sha256'], test['label'], strict=True))).total()} of them"
        for name, test in others
        if fingerprint_of(test) != fingerprint_of(expected)
    ]
    if differing:
        raise InputError(
            f"these runs do not share a test split: {first!r} has {len(expected)} test images; "
            f"{'; '.join(differing)}. Contenders are compared image by image: make the runs on "
            "the same images and labels, with the same section [split] and the same seed."
        )


def check_same_classes(runs: Sequence[Run]) -> None:
    """Check that the probabilities of all runs are about the same classes in the same order.

    Raises:
        InputError: They are not.
    """
    first, expected = runs[0].path.name, runs[0].class_names()
    for run in runs[1:]:
        if run.class_names() != expected:
            raise InputError(
                f"{first!r} has the classes {expected}, but {run.path.name!r} has "
                f"{run.class_names()}; compare runs of the same classes."
            )


def name_contenders(runs: Sequence[Run]) -> dict[str, tuple[Run, Contender]]:
    """Name each contender by itself, or `run/name` where several runs have one of that name."""
    pairs = [(run, contender) for run in runs for contender in run.config().contender]
    counts = Counter(contender.name for _, contender in pairs)
    return {
        c.name if counts[c.name] == 1 else f"{run.path.name}/{c.name}": (run, c) for run, c in pairs
    }


def chosen_of(run: Run, contenders: Named) -> str:
    """Name what a run has chosen on val, as `name_contenders` names it."""
    chosen = str(read_json(run.choice_path)["chosen"])
    return next(k for k, (own, c) in contenders.items() if own is run and c.name == chosen)


def match_images(tests: Mapping[str, pd.DataFrame]) -> dict[str, pd.Series]:
    """Map the `image_id` of every run to that of the first, by content and label.

    The same files may lie in another folder, under other names. Copies of one file have the same
    content and are paired in the order of their names: whatever is predicted for one holds for
    the other.

    Args:
        tests: By the name of the run the rows of its test split, all of one fingerprint.
    """
    keys = ["sha256", "label", "image_id"]
    ordered = {name: test.sort_values(keys)["image_id"].to_numpy() for name, test in tests.items()}
    first = next(iter(ordered.values()))
    return {name: pd.Series(first, index=own) for name, own in ordered.items()}


def groupings_of(tests: Mapping[str, pd.DataFrame], ids: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Set the groups of the test images side by side, one column per run."""
    return pd.DataFrame(
        {
            name: test.set_index(test["image_id"].map(ids[name]))["group"]
            for name, test in tests.items()
        }
    )


def join_groupings(groupings: pd.DataFrame) -> pd.Series:
    """Join groups of different runs that share an image, directly or through others.

    What any run holds to belong together does, so no interval becomes narrower than in the run
    that knows the most near-duplicates.
    """
    columns = [groupings[name].tolist() for name in groupings]
    return pd.Series(reduce(merge_groups, columns), index=groupings.index)


def predictions_of_all(contenders: Named, ids: Mapping[str, pd.Series]) -> dict[str, pd.DataFrame]:
    """Load the test predictions of all contenders, keyed by the first run's `image_id`."""
    tables = {}
    for name, (run, contender) in contenders.items():
        table = run.predictions("test", contender.name)
        tables[name] = table.assign(image_id=table["image_id"].map(ids[run.path.name]))
    return tables


def contender_table(
    metrics: pd.DataFrame, comparison: pd.DataFrame, reference: str, facts: pd.DataFrame
) -> pd.DataFrame:
    """Join figures, differences and costs into one row per contender.

    Args:
        metrics: Columns `contender, metric, label, value, low, high`: test figures of one view.
        comparison: Rows of `compare_predictions`; those with another reference are left out.
        reference: The contender all others are compared with.
        facts: Columns `run, fit_seconds, milliseconds_per_image, model_bytes`, one row per
            contender, which is the index.

    Returns:
        Columns `CONTENDER_COLUMNS`, in the order of `facts`.
    """
    table = facts
    overall = metrics[metrics["label"] == ""].set_index("contender")
    for metric in FIGURES_OF_CONTENDER:
        figures = overall.loc[overall["metric"] == metric, ["value", "low", "high"]]
        table = table.join(figures.set_axis([metric, f"{metric}_low", f"{metric}_high"], axis=1))
    wanted = (comparison["metric"] == "accuracy") & (comparison["reference"] == reference)
    compared = comparison[wanted].set_index("contender")
    bounds = {"low": "difference_low", "high": "difference_high"}
    columns = ["difference", "low", "high", "p_adjusted", "verdict"]
    table = table.join(compared[columns].rename(columns=bounds))
    table.loc[reference, "verdict"] = REFERENCE
    return table.rename_axis("contender").reset_index()[list(CONTENDER_COLUMNS)]


def facts_of(contenders: Named) -> pd.DataFrame:
    """Tell the run of each contender and what it costs; what was not stored is missing."""
    rows = []
    for run, contender in contenders.values():
        path = run.part_path(contender.name) / "fit.json"
        fit = read_json(path) if path.exists() else {}
        per_second = run.speeds().get(contender.name, 0.0)
        milliseconds = 1000 / per_second if per_second > 0 else float("nan")
        seconds = fit.get("fit_seconds", float("nan"))
        rows.append((run.path.name, seconds, milliseconds, model_bytes(run, contender.name)))
    columns = ["run", "fit_seconds", "milliseconds_per_image", "model_bytes"]
    table = pd.DataFrame(rows, columns=columns, index=list(contenders))
    return table.astype({"model_bytes": "Int64"})


def model_bytes(run: Run, contender: str) -> int | None:
    """Return the size of a contender's stored model; nothing when it is not there.

    That of an ensemble is the size of its members.
    """
    found = next((c for c in run.config().contender if c.name == contender), None)
    if isinstance(found, EnsembleContender):
        return sum(model_bytes(run, member) or 0 for member in found.members) or None
    part = run.part_path(contender)
    sizes = [path.stat().st_size for path in part.glob("model.*") if ".partial" not in path.name]
    return sum(sizes) if sizes else None


def count_configs(runs: Sequence[Run], fingerprints: Sequence[str]) -> int:
    """Count the configs that have scored any of these sets of images, those of the runs included.

    A run that was moved away from its ledger, or renamed, is counted by its own config.
    """
    rows = [
        row
        for folder in {run.path.resolve().parent for run in runs}
        for row in read_ledger(folder)
        if row["test_fingerprint"] in fingerprints
    ]
    recorded = {row["run"] for row in rows}
    unrecorded = {config_hash(r.config()) for r in runs if r.path.resolve().name not in recorded}
    return len({row["config_hash"] for row in rows} | unrecorded)


def notes_on(runs: Sequence[Run], group_counts: Sequence[int], num_merged: int) -> list[str]:
    """Say what a reader of a table over several runs must know.

    Args:
        runs: The runs.
        group_counts: In how many groups each run has the test images.
        num_merged: In how many they are when groups that share an image are joined.
    """
    notes = []
    if len(runs) > 1:
        config = runs[0].config()
        notes.append(
            "The figures are computed anew from the stored predictions of all runs, with the seed "
            f"({config.seed}) and the {config.evaluate.resamples:,} resamples of "
            f"{runs[0].path.name}, so they can differ a little from those of a report."
        )
    if set(group_counts) != {num_merged}:
        notes.append(
            "The runs group these test images in different ways "
            f"({', '.join(map(str, group_counts))} groups); groups that share an image are "
            f"joined, which leaves {num_merged}."
        )
    threads = [run.config().threads for run in runs]
    if len(set(threads)) > 1:
        notes.append(
            f"The runs used {', '.join(map(str, threads))} threads, so their times do not compare."
        )
    return notes


def describe_comparison(comparison: ContenderComparison) -> list[str]:
    """Write a comparison as lines of text for the terminal."""
    chosen = f", chosen on val in {comparison.runs[0]}" if comparison.is_chosen else ""
    title = (
        f"accuracy on {comparison.num_images:,} test images in {comparison.num_groups:,} groups, "
        "with 95 % intervals; differences in points"
    )
    return [
        title,
        f"reference: {comparison.reference}{chosen}",
        *(f"  {line}" for line in aligned(text_table(comparison))),
        openings_sentence(comparison.test_openings),
        *comparison.notes,
    ]


def text_table(comparison: ContenderComparison) -> pd.DataFrame:
    """Write the table of a comparison for people: all values text, one column per figure."""
    rows = []
    for row in comparison.table.to_dict("records"):
        difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(
            *(100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
        )
        is_reference = row["contender"] == comparison.reference
        rows.append(
            {
                "contender": comparison.own_name(row),
                **({"run": row["run"]} if comparison.several_runs else {}),
                "accuracy": with_interval(*(row[f"accuracy{e}"] for e in ("", "_low", "_high"))),
                "difference": "" if is_reference else difference,
                "p": ""
                if is_reference
                else format_p_value(row["p_adjusted"]).removeprefix(f"={SPACE}"),
                "verdict": row["verdict"],
                "log loss": format_metric("log_loss", row["log_loss"]),
                "ECE": format_metric("ece", row["ece"]),
                "fitting": format_seconds(row["fit_seconds"]),
                "ms/image": format_rate(row["milliseconds_per_image"]),
                "file": format_bytes(row["model_bytes"]),
            }
        )
    return pd.DataFrame(rows)


def as_values(comparison: ContenderComparison) -> dict[str, Any]:
    """Turn a comparison into what JSON can hold; what is missing is `None`."""
    table = comparison.table.astype(object)
    return {
        "runs": list(comparison.runs),
        "reference": comparison.reference,
        "images": comparison.num_images,
        "groups": comparison.num_groups,
        "test_openings": comparison.test_openings,
        "notes": list(comparison.notes),
        "contenders": table.where(table.notna(), None).to_dict("records"),
    }
