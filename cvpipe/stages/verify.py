"""Compare exported files with the model that was measured, on the real val and test images.

Each file is used as an app would use it: opened from the disk by its own runtime, on images that
are decoded and resized by what `bundle.json` says, in a process of its own. No code path by which
the run computed its tables is gone through again.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.config import Config
from cvpipe.contender_sections import ClassicContender
from cvpipe.data.audit import hash_file
from cvpipe.data.images import bundle_rule
from cvpipe.data.threads import load_sizes
from cvpipe.errors import GateError, InputError, check_name
from cvpipe.evaluation.comparison import compare_predictions
from cvpipe.evaluation.intervals import wilson_interval
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.export.bundle import (
    BUNDLE_VERSION,
    TOLERANCES,
    compare_probabilities,
    image_sizes,
    tolerance_of,
)
from cvpipe.export.files import bytes_of, hash_of
from cvpipe.export.formats import KERAS, NATIVE, SAVED_MODEL, file_name, parse_label
from cvpipe.export.operations import forbidden_in, operations_in
from cvpipe.files import read_json, write_json
from cvpipe.models.framework import set_threads
from cvpipe.report.content import NO_WORSE_MARGINS
from cvpipe.runs import Run, data_root, open_run
from cvpipe.stages.bundle_facts import describe_bundle
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.predict import open_exported
from cvpipe.stages.protocols import part_of_fold
from cvpipe.stages.recipes import members_of
from cvpipe.stages.runtime_text import import_program, kinds_in
from cvpipe.stages.split import fold_column

IMAGES_AT_A_TIME = 32
REPEAT = 0  # of the divisions into folds; one shows what rounding loses
SPLITS = ("val", "test")
NOT_COMPARED = ("run", "licences", "files", "sha256")
STATUS = Path("/proc/self/status")
BATCH_SIZES = (1, 32)
NUM_ROUNDS = 5
# What says that nothing is lost where probabilities are not the same.
BY_ACCURACY = ("dynamic", "int8")


def verify_bundle(bundle: Path, data: Path | None = None) -> dict[str, Any]:
    """Check every file of a bundle, each in a process of its own, and store what was found.

    Args:
        bundle: Folder `runs/<run>/export/<contender>`.
        data: Folder of the images, if it is not where the run says.

    Returns:
        What was written to `parity.json`: `passed`, and for each file what `check_file` gives.

    Raises:
        InputError: The bundle or its run is incomplete, or the images are missing.
        GateError: A check could not be made.
    """
    facts, run = read_facts(bundle), run_of(bundle)
    root, name = data_root(run, data), bundle.resolve().name
    for split in SPLITS:  # now rather than in each process
        check_images(run, root, run.predictions(split, name)["image_id"].tolist())
    if not facts["files"]:
        raise InputError(
            f"{str(bundle)!r} holds no model file, none has passed the check; export one with: "
            f"cvpipe export {bundle.parent.parent} --contender {name} --format FORMAT, see "
            "cvpipe list exports"
        )
    formats = {
        label: check_in_fresh_process(bundle, label, file_in(bundle, facts, label), root)
        for label in facts["files"]
    }
    store_parity(bundle, formats)  # what was refused and is not there is forgotten
    return read_parity(bundle)


def read_facts(bundle: Path) -> dict[str, Any]:
    """Load the `bundle.json` of a bundle.

    Raises:
        InputError: The folder is no bundle, or one of another version.
    """
    path = bundle / "bundle.json"
    if not path.exists():
        raise InputError(
            f"{str(bundle)!r} is not a bundle (it has no bundle.json); give a folder such as "
            "runs/<run>/export/<contender>."
        )
    facts = read_json(path)
    if facts.get("bundle_version") != BUNDLE_VERSION:
        raise InputError(
            f"{str(bundle)!r} is a bundle of version {facts.get('bundle_version')}, and version "
            f"{BUNDLE_VERSION} was expected; make it anew with: cvpipe run --again"
        )
    return facts


def file_in(bundle: Path, facts: Mapping[str, Any], label: str) -> Path:
    """Find a file of a bundle.

    Raises:
        InputError: It has none of that label, or says that it lies elsewhere.
    """
    name = facts["files"][check_name("format", label, facts["files"])]
    if name != file_name(*parse_label(label)):  # what stands in a file is not trusted
        raise InputError(
            f"the bundle.json of {str(bundle)!r} names {name!r} as its file in the format "
            f"{label!r}, but that is {file_name(*parse_label(label))!r}; export it again."
        )
    return bundle / name


def run_of(bundle: Path) -> Run:
    """Open the run that a bundle lies in.

    Raises:
        InputError: It lies in none, or the run has no contender of the bundle's name.
    """
    path = bundle.resolve()
    run = open_run(path.parent.parent)
    check_name("contender", path.name, [c.name for c in run.config().contender])
    return run


def read_parity(bundle: Path) -> dict[str, Any]:
    """Load what was found out about the files of a bundle."""
    path = bundle / "parity.json"
    return read_json(path) if path.exists() else {"passed": False, "formats": {}}


def record(bundle: Path, label: str, result: Mapping[str, Any]) -> None:
    """Store what was found out about a file."""
    store_parity(bundle, {**read_parity(bundle)["formats"], label: result})


def store_parity(bundle: Path, formats: Mapping[str, Any]) -> None:
    """Store what was found out about all files that were made."""
    passed = all(result["passed"] for result in formats.values())
    write_json(bundle / "parity.json", {"passed": passed, "formats": formats})


def check_in_fresh_process(bundle: Path, label: str, file: Path, root: Path) -> dict[str, Any]:
    """Run `check_file` in a new process.

    Raises:
        GateError: The process ended without an answer.
    """
    # -P: no file in the user's working directory may stand in for a library.
    command = [sys.executable, "-P", "-m", "cvpipe", "verify", str(bundle)]
    options = ["--data", str(root), "--format", label, "--file", str(file), "--json"]
    answer = subprocess.run(  # noqa: S603
        [*command, *options], capture_output=True, text=True, check=False
    )
    if answer.returncode not in (0, 1) or not answer.stdout.strip():
        raise GateError(
            f"the exported file {str(file)!r} could not be checked (cvpipe verify ended with code "
            f"{answer.returncode}):\n{answer.stderr.strip()}"
        )
    return json.loads(answer.stdout)


def check_file(bundle: Path, label: str, file: Path, data: Path | None = None) -> dict[str, Any]:
    """Check one file of a bundle.

    Args:
        bundle: The bundle.
        label: What the file is, see `cvpipe.export.formats.parse_label`.
        file: The file, which need not be listed in the bundle yet.
        data: See `verify_bundle`.

    Returns:
        See `judge`. A file that is not what it says is not opened, and nothing more is told of it.

    Raises:
        InputError: The images are missing or others.
    """
    facts, run = read_facts(bundle), run_of(bundle)
    root = data_root(run, data)
    job = Job(run.config(), root, run, Nobody())
    format_name, _ = parse_label(label)
    reasons = [
        *wrong_facts(facts, describe_bundle(job, bundle.resolve().name)),
        *wrong_hash(bundle, facts, label, file),
    ]
    if not reasons and format_name != NATIVE:  # which has no operations but those of cvpipe
        reasons = [
            f"it contains {operation}, which does not run everywhere or gives random numbers"
            for operation in forbidden_in(operations_in(file, format_name), format_name)
        ]
    if reasons:  # nothing is read or computed of a file that is not what it says
        return {"passed": False, "reason": "; ".join(reasons), "splits": {}}
    name = bundle.resolve().name
    return judge(job, name, label, compare_on_images(job, name, facts, label, file))


def judge(job: Job, name: str, label: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Say whether a file is what was measured.

    Args:
        job: The run.
        name: Of the contender.
        label: What the file is.
        result: What `compare_on_images` found of it.

    Returns:
        The same, with `passed`; `reason`, empty if it passed; `note`, what it passed by if not by
        test alone; and where the folds were asked, what they say.
    """
    _, precision = parse_label(label)
    reasons = [
        f"its probabilities differ by up to {found['largest_difference']:.2g} on {split}, and "
        f"{found['tolerance']:g} is allowed"
        if found["are_probabilities"]
        else f"its rows on {split} are no probabilities: not all are numbers from 0 that sum to 1"
        for split, found in result["splits"].items()
        if not found["passed"]
    ]
    kept, note = result["accuracy"], ""
    if not reasons and precision in BY_ACCURACY and kept["no_worse"] != "shown":
        told = [describe_loss("test images", kept)]
        over_folds = compare_folds(job, name, label)
        if over_folds:
            result = {**result, "folds": over_folds}
            told.append(describe_loss("images of folds", over_folds))
            told.append(f"the worst fold differs by {100 * over_folds['worst']:+.1f} points")
        if over_folds.get("no_worse") == "shown" and not (
            loses_too_much(kept["difference"]) or loses_too_much(over_folds["worst"])
        ):
            note = "; ".join(told)
        else:
            reasons += told
    judged = {"passed": not reasons, "reason": "; ".join(reasons), "note": note}
    return {**judged, **{key: value for key, value in result.items() if key not in judged}}


def loses_too_much(difference: float) -> bool:
    """Tell whether a single network lost more accuracy than may be lost, by chance or not."""
    # Exactly the margin is allowed, and .98 - 1.0 is a hair below -.02. A NaN counts as too much.
    return not difference >= -NO_WORSE_MARGINS["holdout"] - 1e-9


def describe_loss(images: str, kept: Mapping[str, Any]) -> str:
    """Say what accuracy was lost, and whether it is shown to be little enough."""
    is_shown = "is shown" if kept["no_worse"] == "shown" else "is not shown"
    return (
        f"on {kept['n']} {images} it {is_shown} that at most {100 * kept['margin']:g} points of "
        f"accuracy are lost (the difference is {100 * kept['difference']:+.1f}, "
        f"{100 * kept['low']:+.1f} to {100 * kept['high']:+.1f} points; among "
        f"{kept['num_groups']} groups of images a loss of {100 * kept['unseen']:.1f} could go "
        "unseen)"
    )


def compare_folds(job: Job, name: str, label: str) -> dict[str, Any]:
    """Say what the networks of the folds lost as files of a format; empty where none were made.

    `worst` is the difference of accuracy of the fold that lost most: rounding may ruin one network
    of five, and the one that is handed on is a sixth.
    """
    manifest, tables, column = job.run.manifest(), [], fold_column(REPEAT)
    for fold in sorted(manifest[column].unique()) if column in manifest else []:
        path = job.run.rounded_fold_path(name, part_of_fold(REPEAT, fold), label)
        if not path.exists():
            return {}
        tables.append(frames.read_predictions(path))
    if not tables:
        return {}
    measured = job.run.predictions("test", name, "kfold")
    differences = [
        share_right(table) - share_right(measured[measured["image_id"].isin(table["image_id"])])
        for table in tables
    ]
    rounded = pd.concat(tables).sort_values("image_id", ignore_index=True)
    return {**compare_tables(job, measured, rounded, "kfold"), "worst": min(differences)}


def share_right(table: pd.DataFrame) -> float:
    """Compute the accuracy of a predictions table."""
    targets = frames.targets_of(table["label"], frames.predicted_class_names(table))
    return float((frames.probabilities_of(table).argmax(axis=1) == targets).mean())


def describe_check(label: str, result: Mapping[str, Any]) -> list[str]:
    """Write what `check_file` found for a person."""
    lines = [f"{label}: {'passed' if result['passed'] else 'NOT PASSED, ' + result['reason']}"]
    lines += [f"  {result['note']}"] * bool(result.get("note"))
    lines += [
        f"  {split}: largest difference {show(found['largest_difference'])} of "
        f"{found['num_images']} images (allowed {found['tolerance']:g}), the same class for "
        f"{found['same_class_fraction']:.2%}"
        for split, found in result["splits"].items()
    ]
    if result["splits"]:
        accuracy, speeds = result["accuracy"], result["milliseconds_per_image"]
        alone, batch = speeds["1"], speeds[str(BATCH_SIZES[-1])]
        size, memory = result["bytes"] / 1e6, result["peak_bytes"]
        if accuracy["value"] is not None:
            lines.append(
                f"  accuracy on test {accuracy['value']:.1%} ({accuracy['value_low']:.1%} to "
                f"{accuracy['value_high']:.1%}), {100 * accuracy['difference']:+.1f} points "
                f"against the measured one ({100 * accuracy['low']:+.1f} to "
                f"{100 * accuracy['high']:+.1f})"
            )
        lines.append(
            f"  {size:.1f} MB, {alone:.1f} ms for one image, {batch:.1f} ms per image of a batch"
            + (f", at most {memory / 1e6:,.0f} MB of memory" if memory else "")
        )
    return lines


def show(difference: float | None) -> str:
    """Write a difference of probabilities, which may not be a number."""
    return "not a number" if difference is None else f"{difference:.2g}"


def wrong_facts(facts: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Say where a `bundle.json` is not what the run says.

    Not compared is what changes with places: the name of the run's folder, and the licence of the
    images, which stands beside them.
    """
    expected = json.loads(json.dumps(expected))
    keys = dict.fromkeys([*expected, *facts])
    return [
        f"bundle.json says {facts.get(key)!r} of {key!r}, and the run {expected.get(key)!r}"
        for key in keys
        if key not in NOT_COMPARED and facts.get(key) != expected.get(key)
    ]


def wrong_hash(bundle: Path, facts: Mapping[str, Any], label: str, file: Path) -> list[str]:
    """Say whether a file is another than was exported; a new one has no hash yet."""
    if label not in facts["files"] or file != file_in(bundle, facts, label):
        return []
    if not file.exists():
        return [f"{file.name!r} is missing"]
    is_other = hash_of(file) != facts["sha256"].get(label)
    return [f"{file.name!r} is not the file that was exported, its hash differs"] * is_other


def compare_on_images(
    job: Job, bundle_name: str, facts: Mapping[str, Any], label: str, file: Path
) -> dict[str, Any]:
    """Predict val and test with a file and compare with the stored tables."""
    before = peak_bytes()
    if parse_label(label)[0] in (KERAS, SAVED_MODEL):
        set_threads(job.config.threads)
    if parse_label(label)[0] == NATIVE:  # by the very program that lies beside it
        predict = import_program(kinds_in(facts)).open_native(file)
    else:
        predict = open_exported(file, label, job.config.threads)
    tables, splits = {}, {}
    for split in SPLITS:
        measured = job.run.predictions(split, bundle_name)
        batches = load_checked(job, facts, measured["image_id"].tolist())
        exported = np.concatenate([predict(*batch) for batch in batches])
        splits[split] = compare_probabilities(
            frames.probabilities_of(measured),
            exported,
            tolerance_for(job.config, bundle_name, label),
        )
        tables[split] = measured, exported
    compared = compare_accuracy(job, *tables["test"])
    some = tables["val"][0]["image_id"].tolist()[:IMAGES_AT_A_TIME]
    (images,) = load_checked(job, facts, some)
    speeds = {str(size): milliseconds_per_image(predict, images, size) for size in BATCH_SIZES}
    return {
        "splits": splits,
        "accuracy": compared,
        "bytes": bytes_of(file),
        "milliseconds_per_image": speeds,
        "peak_bytes": peak_bytes(),
        "bytes_before_opening": before,
    }


def tolerance_for(config: Config, name: str, label: str) -> float:
    """Say how far a probability of a contender's file may be from the measured one.

    Classic classifiers are measured by programs of their own, most of them in float64; as layers
    of a network, also of one member of an ensemble, they are computed in float32.
    """
    contender = config.contender_called(name)
    is_classic = any(isinstance(c, ClassicContender) for c in members_of(config, contender))
    if is_classic and label == KERAS:
        return TOLERANCES["float32"]
    return tolerance_of(label)


def load_checked(job: Job, facts: Mapping[str, Any], image_ids: Sequence[str]) -> Any:
    """Load images by what a bundle says, in batches; others than were measured are refused.

    A batch is a list: one array for each size of the bundle's images.
    """
    check_images(job.run, job.root, image_ids)
    paths = [job.root / image_id for image_id in image_ids]
    rule = bundle_rule(facts)
    return load_sizes(paths, image_sizes(facts), rule, IMAGES_AT_A_TIME, job.config.threads)


def compare_accuracy(job: Job, measured: Any, exported: np.ndarray) -> dict[str, Any]:
    """Score a file on test, and say what it lost; see `compare_tables`."""
    if not frames.are_probabilities(exported).all():
        missing = dict.fromkeys(("value", "value_low", "value_high", "difference", "low", "high"))
        margin = NO_WORSE_MARGINS["holdout"]
        return {**missing, "n": len(exported), "margin": margin, "no_worse": "not shown"}
    return compare_tables(job, measured, frames.with_probabilities(measured, exported), "holdout")


def compare_tables(
    job: Job, measured: pd.DataFrame, table: pd.DataFrame, protocol: str
) -> dict[str, Any]:
    """Score what a file predicted, and say what was lost against the measured predictions.

    `unseen` is the share of groups that may be affected although none of these is: with few groups
    it is not shown that nothing is lost, whatever the interval of the difference.
    """
    margin = NO_WORSE_MARGINS[protocol]
    groups = job.run.manifest().set_index("image_id")["group"]
    settings = (job.config.seed, job.config.evaluate.resamples)
    tables = {"measured": measured, "exported": table}
    rows_of = compare_predictions("measured", tables, groups, *settings, margin=margin)
    lost = rows_of[rows_of["metric"] == "accuracy"].iloc[0]
    num_groups = int(groups[table["image_id"]].nunique())
    scores = score_predictions(table, groups, *settings)
    own = scores[(scores["metric"] == "accuracy") & (scores["label"] == "")].iloc[0]
    return {
        "value": float(own["value"]),
        "value_low": float(own["low"]),
        "value_high": float(own["high"]),
        **{key: float(lost[key]) for key in ("difference", "low", "high")},
        "n": len(table),
        "margin": margin,
        "no_worse": str(lost["no_worse"]),
        "num_groups": num_groups,
        "unseen": float(wilson_interval(0, num_groups)[1]),
    }


def milliseconds_per_image(
    predict: Callable[..., np.ndarray], images: Sequence[np.ndarray], batch_size: int
) -> float:
    """Measure how long a file takes for an image in batches of one size, the median of some."""
    batch = [np.resize(one, (batch_size, *one.shape[1:])) for one in images]
    predict(*batch)  # prepares itself for the size
    seconds = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        predict(*batch)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds)) / batch_size


def peak_bytes() -> int | None:
    """Tell the most memory that this process has held; `None` where the system does not say."""
    if STATUS.exists():  # where `getrusage` also counts the process that started this one
        line = re.search(r"^VmHWM:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
        return 1024 * int(line[1]) if line else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check_images(run: Run, root: Path, image_ids: Sequence[str]) -> None:
    """Check that the images are those that were measured.

    Raises:
        InputError: A file is missing or another one; a comparison would say nothing.
    """
    hashes = run.manifest().set_index("image_id")["sha256"].to_dict()
    for image_id in image_ids:
        if hash_file(root / image_id) != hashes[image_id]:
            raise InputError(
                f"{str(root / image_id)!r} is not the image that the run was made with; give the "
                "folder of the same images with --data DIR."
            )
