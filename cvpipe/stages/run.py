"""The main job: audit, split, contenders, evaluate, export, report."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from threadpoolctl import threadpool_limits

from cvpipe.cache import cache_root, max_bytes, trim
from cvpipe.config import Config
from cvpipe.errors import InputError, nearest_name
from cvpipe.evaluation.costs import cost_matrix
from cvpipe.files import write_json
from cvpipe.frames import class_names_of
from cvpipe.models.backbones import weights_fingerprint
from cvpipe.models.framework import list_devices, set_threads
from cvpipe.runs import (
    Run,
    manifest_fingerprint,
    provenance,
    read_source,
    run_name,
    stored_root,
)
from cvpipe.stages.audit import run_audit, scan_and_hash
from cvpipe.stages.contact_sheet import changes_images, usage_sentence
from cvpipe.stages.contenders import fit_contender, predict_split
from cvpipe.stages.decide import positive_class
from cvpipe.stages.evaluate import run_evaluation
from cvpipe.stages.export import require_parity, run_export
from cvpipe.stages.halves import rows_for_stopping
from cvpipe.stages.imported import (
    check_labels,
    import_models,
    imported_contenders,
    stored_paths,
)
from cvpipe.stages.job import Job, Nobody, Watcher
from cvpipe.stages.learning_curve import run_learning_curve
from cvpipe.stages.plan import Plan, estimate_seconds, in_words, make_plan
from cvpipe.stages.recipes import (
    backbones_of,
    is_whole_network,
    members_first,
    uses_augmentation,
)
from cvpipe.stages.report import run_report
from cvpipe.stages.split import rows_of_split, run_split
from cvpipe.stages.suspects import run_suspects
from cvpipe.stages.understanding import run_neighbours
from cvpipe.stages.unlike import fit_unlike, measure_unlike
from cvpipe.stages.view_figures import describe_crops


def run(
    target: str | Path,
    settings: Sequence[str] = (),
    data: str | Path | None = None,
    preset: str = "standard",
    runs_path: str | Path = "runs",
    again: bool = False,
    watcher: Watcher | None = None,
) -> Run:
    """Compare all contenders of a pipeline, or of a preset, on a folder of images.

    What is complete already is kept, so an interrupted run goes on where it stopped and
    a finished one is returned at once.

    Args:
        target: A pipeline file, a folder of class folders, or a table of images.
        settings: Changes of the form `section.key=value`.
        data: Folder of the images, if it is not where the pipeline file says.
        preset: For a folder or a table: `"quick"` or `"standard"`.
        runs_path: Folder in which run folders are made.
        again: Make a new run even though a finished one exists.
        watcher: Who is told what happens.

    Returns:
        The finished run.

    Raises:
        InputError: The run could not start.
        GateError: The audit found errors, or the exported file is not what was measured.
    """
    watcher = watcher or Nobody()
    max_bytes()  # a bad bound is answered now rather than after the work
    plan = make_plan(Path(target), settings, Path(data) if data else None, preset)
    rows = check_subgroups(plan.config, scan_and_hash(plan.root, plan.config))
    check_classes_of_costs(plan.config, rows["label"])
    check_labels(plan.config, plan.base, class_names_of(rows["label"]))
    positive_class(plan.config.evaluate, class_names_of(rows["label"]))  # raises if it is unknown
    job = make_job(plan, rows, Path(runs_path), again, watcher)
    if "split" in rows and plan.config.split.protocol != "given":
        watcher.say(
            "the split that the images come with is not used (split.protocol is "
            f"{plan.config.split.protocol!r})"
        )
    if changes_images(plan.config.augment) and not any(
        uses_augmentation(contender) for contender in plan.config.contender
    ):
        watcher.say(f"[augment] has no effect. {usage_sentence(plan.config.contender)}")
    if job.run.is_finished:
        watcher.say(f"finished before; the report is {job.run.report_path}")
    else:
        seconds = estimate_seconds(plan.config, len(rows))
        watcher.say(
            f"{len(rows):,} images, {len(plan.config.contender)} contenders: {in_words(seconds)} "
            f"on two cores -> {job.run.path}"
        )
        licence = read_source(plan.root).get("licence")
        if licence:
            watcher.say(f"licence of the images: {licence}")
        if describe_crops(plan.config):
            watcher.say(f"evaluate.views: {describe_crops(plan.config)}")
        if weights_of(plan.config) or any(map(is_whole_network, plan.config.contender)):
            set_threads(plan.config.threads)  # fails now rather than after minutes
        with threadpool_limits(plan.config.threads):
            run_stages(job, rows)
    require_parity(job)
    return job.run


def check_subgroups(config: Config, rows: pd.DataFrame) -> pd.DataFrame:
    """Return scanned rows that have the columns which `evaluate.subgroups` names.

    Raises:
        InputError: A column is missing.
    """
    columns = [name for name in rows if name not in ("image_id", "sha256", "split")]
    for name in config.evaluate.subgroups:
        if name not in columns:
            raise InputError(
                f"evaluate.subgroups names the column {name!r}, but the table of images has the "
                f"columns {columns}; {nearest_name(name, columns)}"
            )
    return rows


def check_classes_of_costs(config: Config, labels: pd.Series) -> None:
    """Check that `evaluate.costs` speaks of the classes that the images have.

    Labels are known before anything is decoded, and the audit stops at a class that it
    empties, so they are the classes that are scored.

    Raises:
        InputError: It names another class, or makes every mistake free.
    """
    if config.evaluate.costs:
        cost_matrix(config.evaluate.costs, class_names_of(labels))


def make_job(plan: Plan, rows: pd.DataFrame, runs_path: Path, again: bool, watcher: Watcher) -> Job:
    """Find or make the run folder of a plan and store its config and provenance."""
    fingerprint = manifest_fingerprint(rows)
    run = Run(runs_path / run_name(plan.config, fingerprint))
    if again:
        run = next_run(run)
    if not run.config_path.exists():
        data = plan.config.data.model_copy(update={"root": stored_root(plan.root, run.path)})
        config = stored_paths(plan.config, plan.base, run.path)
        config = config.model_copy(update={"data": data})
        weights = weights_of(config)
        computes = weights or any(map(is_whole_network, config.contender))
        devices = list_devices() if computes else []
        write_json(run.provenance_path, provenance(config, fingerprint, weights, devices))
        write_json(run.config_path, config.model_dump(mode="json"))
    return Job(plan.config, plan.root, run, watcher, plan.base)


def next_run(run: Run) -> Run:
    """Name a further run of the same config: the first unfinished or unused number."""
    number, candidate = 1, run
    while candidate.is_finished:
        number += 1
        candidate = Run(run.path.with_name(f"{run.path.name}-{number}"))
    return candidate


def weights_of(config: Config) -> dict[str, str]:
    """Map each backbone and imported network in use to the sha256 of its weights."""
    specs = [spec for contender in config.contender for spec in backbones_of(config, contender)]
    files = {Path(c.model).name: c.model_sha256 for c in imported_contenders(config)}
    return {spec.described: weights_fingerprint(spec) for spec in specs} | files


def run_stages(job: Job, rows: pd.DataFrame) -> None:
    """Do what is not done yet, in order."""
    if not job.run.manifest_path.exists():
        import_models(job, class_names_of(rows["label"]))
        run_split(job, run_audit(job, rows))
    train, val = rows_of_split(job, "train"), rows_of_split(job, "val")
    for contender in members_first(job.config):
        if not (job.run.part_path(contender.name) / "fit.json").exists():
            with job.timed(f"fit {contender.name}", f"fit: {contender.name}"):
                fit_contender(job, contender, train, val[rows_for_stopping(val)])
        if not job.run.predictions_path(contender.name, "val").exists():
            predict_split(job, contender, val, "val")
    fit_unlike(job)  # its bounds are frozen before the test split is opened
    run_evaluation(job)
    run_learning_curve(job)
    measure_unlike(job)
    run_suspects(job)
    run_neighbours(job)
    run_export(job)
    run_report(job)
    trim(cache_root(), max_bytes())
