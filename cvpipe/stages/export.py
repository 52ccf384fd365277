"""Hand a contender to an app: one folder with files, what they are, and a proof of parity."""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cvpipe.config import Config
from cvpipe.contender_sections import Contender
from cvpipe.errors import GateError, InputError, check_name
from cvpipe.export.bundle import RUNTIME_NAME, bundle_readme, has_runtime
from cvpipe.export.files import hash_of
from cvpipe.export.formats import NATIVE, check_format, file_name, parse_label
from cvpipe.export.writing import write_file
from cvpipe.files import atomic_path, read_json, write_json, write_text
from cvpipe.inference.crops import SINGLE
from cvpipe.models.framework import set_threads
from cvpipe.runs import Run, data_root
from cvpipe.stages.bundle_facts import describe_bundle
from cvpipe.stages.evaluate import best_on_val
from cvpipe.stages.export_folds import can_ask_folds, predict_rounded_folds
from cvpipe.stages.job import Job, Nobody, Watcher
from cvpipe.stages.native import obstacle_to_native, write_native
from cvpipe.stages.one_network import (
    build_calibrated_network,
    obstacle_to_one_network,
    representative_images,
    scaling_of,
)
from cvpipe.stages.runtime_text import kinds_in, runtime_text
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.verify import (
    check_in_fresh_process,
    judge,
    read_facts,
    read_parity,
    record,
    wrong_hash,
)

LARGE_BYTES = 100_000_000


def contender_to_export(job: Job) -> str:
    """Name the contender that is exported.

    Returns:
        The chosen contender if it can be written in one of the formats of the config, otherwise
        the best on val of those that can; `""` when none can.
    """
    able = [c.name for c in job.config.contender if formats_of(job, c)]
    chosen = str(read_json(job.run.choice_path)["chosen"])
    if chosen in able or not able:
        return chosen if chosen in able else ""
    return str(best_on_val(job, able)["chosen"])


def formats_of(job: Job, contender: Contender) -> list[str]:
    """List the formats of the config in which a contender can be written."""
    return [
        label
        for label in job.config.export.formats
        if not obstacle_to(job.run, job.config, contender, label)
    ]


def obstacle_to(run: Run, config: Config, contender: Contender, label: str) -> str:
    """Say why a contender cannot be written in a format; `""` where it can."""
    if parse_label(label)[0] == NATIVE:
        return obstacle_to_native(config, contender)
    return obstacle_to_one_network(run, config, contender)


def run_export(job: Job) -> None:
    """Export a contender in the formats of the config; what was done already is kept.

    Raises:
        GateError: A check could not be made. One that was made and failed is stored, and
            `require_parity` says so at the end of the run.
    """
    name = contender_to_export(job)
    if not name:
        return
    bundle = job.run.export_path / name
    contender = job.config.contender_called(name)
    for label in formats_of(job, contender):
        with job.timed("export", f"export: {name} as {label}, checked in a fresh process"):
            if not is_settled(bundle, label):
                export_file(job, name, label)


def is_settled(bundle: Path, label: str) -> bool:
    """Tell whether a file was exported, or was made and did not pass."""
    checked = read_parity(bundle)["formats"].get(label)
    return bool(checked) and (not checked["passed"] or label in read_facts(bundle)["files"])


def export_contender(
    run: Run, name: str, label: str, data: Path | None = None, watcher: Watcher | None = None
) -> tuple[Path, dict[str, Any]]:
    """Export a contender of a finished run in one more format.

    Args:
        run: The run.
        name: Of the contender; `""`: the one that the run exports.
        label: Format and precision, see `cvpipe.export.formats.parse_label`.
        data: Folder of the images, if it is not where the run says.
        watcher: Who is told what happens.

    Returns:
        The bundle, and what `cvpipe.stages.verify.check_file` found.

    Raises:
        InputError: There is no such contender, it cannot be written in the format, the format is
            unknown or misses a package, or the images are missing.
        GateError: The check could not be made.
    """
    check_format(*parse_label(label))
    job = Job(run.config(), data_root(run, data), run, watcher or Nobody())
    contenders = {contender.name: contender for contender in job.config.contender}
    name = name or contender_to_export(job)
    if not name:
        raise InputError(
            f"none of the contenders {list(contenders)} can become one file of the formats "
            f"{list(job.config.export.formats)}; name one with --contender, or predict with the "
            "run itself: cvpipe predict RUN IMAGE"
        )
    contender = contenders[check_name("contender", name, contenders)]
    obstacle = obstacle_to(job.run, job.config, contender, label)
    if obstacle:
        raise InputError(
            f"contender {name!r} cannot become {label}: {obstacle}; export another contender, or "
            f"predict with the run itself: cvpipe predict {job.run.path} IMAGE --contender {name}"
        )
    return run.export_path / name, export_file(job, name, label)


def export_file(job: Job, name: str, label: str) -> dict[str, Any]:
    """Write one file of a bundle, check it, and keep it only if it passes.

    One that is there already is checked again.
    """
    bundle = job.run.export_path / name
    if not (bundle / "bundle.json").exists():
        describe(bundle, describe_bundle(job, name) | {"files": {}, "sha256": {}})
    facts = read_facts(bundle)
    file = file_name(*parse_label(label))
    if label in facts["files"] and not wrong_hash(bundle, facts, label, bundle / file):
        result = check_in_fresh_process(bundle, label, bundle / file, job.root)
        record(bundle, label, result)
        return result
    contender = job.config.contender_called(name)
    first, *inside = PurePosixPath(file).parts  # of several files there is a folder
    with contextlib.suppress(_NotPassedError), atomic_path(bundle / first) as partial:
        written = partial.joinpath(*inside)
        write_model(job, name, label, written)
        result = check_in_fresh_process(bundle, label, written, job.root)
        if can_ask_folds(job, contender, label, result):
            predict_rounded_folds(job, contender, label)
            result = judge(job, name, label, result)
        if not result["passed"]:
            raise _NotPassedError
        if (bundle / first).is_dir():  # of an export that was interrupted before it was listed
            shutil.rmtree(bundle / first)
    record(bundle, label, result)
    if result["passed"]:
        listed = {"files": {label: file}, "sha256": {label: hash_of(bundle / file)}}
        facts = read_facts(bundle)  # another export may have come in between
        describe(bundle, facts | {key: facts[key] | new for key, new in listed.items()})
    if result.get("bytes", 0) > LARGE_BYTES:
        job.watcher.say(f"  {file} has {result['bytes'] / 1e6:,.0f} MB, much for an app")
    return result


class _NotPassedError(Exception):
    """A file that is thrown away."""


def describe(bundle: Path, facts: Mapping[str, Any]) -> None:
    """Write the description of a bundle, for programs and for people, and what opens its files."""
    write_text(bundle / "README.md", bundle_readme(facts))
    if has_runtime(facts["files"]):
        write_text(bundle / RUNTIME_NAME, runtime_text(kinds_in(facts)))
    write_json(bundle / "bundle.json", facts)


def write_model(job: Job, name: str, label: str, path: Path) -> None:
    """Write a contender as a file of one format."""
    format_name, precision = parse_label(label)
    contender = job.config.contender_called(name)
    stored = job.run.part_path(name) / "model.keras"
    plain = job.run.view(name) == SINGLE and not scaling_of(job.run, name)
    if format_name == "keras" and stored.exists() and plain:
        shutil.copyfile(stored, path)
        return
    if format_name == NATIVE:
        write_native(job.run, job.config, contender, path)
        return
    set_threads(job.config.threads)
    model = build_calibrated_network(job.run, job.config, contender)
    images = np.empty((0, *model.input_shape[1:]), np.uint8)
    if precision == "int8":
        images = representative_images(job, contender, rows_of_split(job, "train"))
    write_file(model, path, format_name, precision, images)


def require_parity(job: Job) -> None:
    """Check that what a run was to export has passed its check.

    Raises:
        GateError: A file does not give the measured numbers, and was not kept.
    """
    for path in sorted(job.run.export_path.glob("*/parity.json")):
        for label, result in read_json(path)["formats"].items():
            if label in job.config.export.formats and not result["passed"]:
                raise GateError(
                    f"the model exported as {label} is not what was measured and was not kept: "
                    f"{result['reason']}. Details: {path}"
                )
