"""Hand a network to an app: one folder with the file, what it is, and a proof of parity."""

import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvpipe.config import NetworkContender
from cvpipe.data.images import DECODE_RULE, decode_rule
from cvpipe.errors import GateError
from cvpipe.export.bundle import BUNDLE_VERSION, bundle_readme
from cvpipe.files import atomic_path, read_json, write_json, write_text
from cvpipe.inference.calibration import Scaling
from cvpipe.inference.crops import SINGLE, crop_origins, num_views, sizes_to_load
from cvpipe.models.backbones import describe_weights
from cvpipe.models.framework import set_threads
from cvpipe.models.heads import scale_logits
from cvpipe.runs import Run, read_source
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import load_network
from cvpipe.stages.evaluate import best_on_val
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import backbone_spec


def contender_to_export(job: Job) -> str:
    """Name the network that is exported.

    Returns:
        The chosen contender if it is a network, otherwise the best network on val;
        `""` when no contender is a network.
    """
    networks = [c.name for c in job.config.contender if isinstance(c, NetworkContender)]
    chosen = str(read_json(job.run.choice_path)["chosen"])
    if chosen in networks or not networks:
        return chosen if chosen in networks else ""
    return str(best_on_val(job, networks)["chosen"])


def run_export(job: Job) -> None:
    """Write the bundle and check it in a fresh process; what is stored already is kept.

    Raises:
        GateError: The check could not be made. A check that was made and failed is
            stored, and `require_parity` says so at the end of the run.
    """
    name = contender_to_export(job)
    if not name:
        return
    bundle = job.run.export_path / name
    with job.timed("export", f"export: {name} as a Keras file, checked in a fresh process"):
        if not bundle.exists():
            write_bundle(job, name, bundle)
        if not (bundle / "parity.json").exists():
            verify_in_fresh_process(bundle, job.root)


def write_bundle(job: Job, name: str, bundle: Path) -> None:
    """Write model file, description and README of a bundle, whole or not at all."""
    with atomic_path(bundle) as partial:
        partial.mkdir()
        store_calibrated_network(job.run, name, partial / "model.keras")
        facts = describe_bundle(job, name)
        write_json(partial / "bundle.json", facts)
        write_text(partial / "README.md", bundle_readme(facts))


def store_calibrated_network(run: Run, name: str, path: Path) -> None:
    """Write a contender's network with its views and its calibration inside."""
    stored, calibration = run.part_path(name) / "model.keras", load_calibration(run, name)
    scaling = calibration if isinstance(calibration, Scaling) else None
    if scaling is not None and scaling.changes_nothing:
        scaling = None
    view = run.view(name)
    if view == SINGLE and scaling is None:
        shutil.copyfile(stored, path)
        return
    set_threads(run.config().threads)
    model = load_network(stored)
    if view != SINGLE:
        model = see_views(model, view, scaling)
    elif scaling is not None:
        model = scale_logits(model, scaling.slopes, scaling.offsets)
    model.save(path)


def see_views(model: Any, view: str, scaling: Scaling | None) -> Any:
    """Build a view into a network, and behind the mean of its probabilities their calibration."""
    from cvpipe.models.merging import scale_probabilities, views_inside

    crop_size = (model.input_shape[1], model.input_shape[2])
    (image_size,) = sizes_to_load(view, crop_size)
    viewing = views_inside(model, image_size, *crop_origins(view, crop_size))
    if scaling is None:
        return viewing
    return scale_probabilities(viewing, scaling.slopes, scaling.offsets, scaling.floor)


def describe_bundle(job: Job, name: str) -> dict[str, Any]:
    """Collect what an app, and whoever is responsible for it, must know about a model."""
    contender = next(c for c in job.config.contender if c.name == name)
    if not isinstance(contender, NetworkContender):
        raise TypeError(f"{name!r} is not a network")
    spec = backbone_spec(contender)
    metrics = job.run.metrics()
    rows = metrics[
        (metrics["protocol"] == "holdout")  # folds and careless split speak of other models
        & (metrics["contender"] == name)
        & (metrics["split"] == "test")
        & (metrics["label"] == "")
    ]
    source, view = read_source(job.root), job.run.view(name)
    return {
        "bundle_version": BUNDLE_VERSION,
        "run": job.run.path.name,
        "contender": name,
        "is_the_chosen_contender": read_json(job.run.choice_path)["chosen"] == name,
        "files": {"keras": "model.keras"},
        "class_names": job.run.class_names(),
        "input": {
            "dtype": "uint8",
            "colour": "RGB",
            "image_size": list(sizes_to_load(view, spec.size)[0]),
            "decode_rule": DECODE_RULE,
            **asdict(decode_rule(job.config.images, job.config.data)),
            "preprocessing": "inside the model",
        },
        **describe_view(view, spec.size),
        "output": "probabilities in the order of class_names",
        "calibration": describe_calibration(job.run, name),
        "test_metrics": [
            {
                "metric": row.metric,
                "value": row.value,
                "low": row.low,
                "high": row.high,
                "n": int(row.n),
            }
            for row in rows.itertuples()
        ],
        **describe_unlike(job, name),
        **({"costs": job.config.evaluate.costs} if job.config.evaluate.costs else {}),
        **decisions_of(job, name),
        "protocol": "holdout: this very model, on images it was never fitted to or chosen on",
        "data_fingerprint": read_json(job.run.provenance_path)["data_fingerprint"],
        "licences": {
            "weights": describe_weights(spec),
            "data": source.get("licence", "not stated"),
        },
        "limits": "The figures hold for images from the same source. Nothing is known about "
        "other cameras, sites or populations; not a medical device.",
    }


def describe_view(view: str, crop_size: tuple[int, int]) -> dict[str, Any]:
    """Say how a network sees an image; nothing where it sees it as it is."""
    if view == SINGLE:
        return {}
    facts = {"kind": view, "passes": num_views(view), "crop_size": list(crop_size)}
    return {"view": {**facts, "where": "inside the model"}}


def describe_calibration(run: Run, name: str) -> dict[str, Any]:
    """Say how a network's probabilities were calibrated."""
    facts = read_json(run.fitted_calibration_path(name))
    return {
        "method": facts["method"],
        "slopes": facts["slopes"],
        "offsets": facts["offsets"],
        "fitted_on": f"{facts['num_images']} validation images",
        "where": "inside the model",
    }


def decisions_of(job: Job, name: str) -> dict[str, Any]:
    """Read the frozen thresholds of a contender; empty in a run that has none."""
    path = job.run.decisions_path(name)
    return {"decisions": read_json(path)} if path.exists() else {}


def describe_unlike(job: Job, name: str) -> dict[str, Any]:
    """Say which answers an app should doubt; nothing where no bound was stored."""
    bounds = job.run.unlike_bounds(name)
    if not bounds:
        return {}
    rows = job.run.unlike()
    on_test = rows[(rows["contender"] == name) & (rows["score"] == "probability")].iloc[0]
    unlike = {
        "score": "probability",
        "meaning": "1 minus the largest probability; above the bound an image may be unlike the "
        "training images",
        "bound": bounds["probability"],
        "flagged_fraction_of_test": on_test["flagged_fraction"],
    }
    return {"unlike": unlike}


def verify_in_fresh_process(bundle: Path, root: Path) -> None:
    """Run `cvpipe verify` on a bundle in a new process, which writes `parity.json`.

    Raises:
        GateError: The process ended without writing it.
    """
    # -P: no file in the user's working directory may stand in for a library.
    command = [sys.executable, "-P", "-m", "cvpipe", "verify", str(bundle), "--data", str(root)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if not (bundle / "parity.json").exists():
        raise GateError(
            f"the exported file could not be checked ({' '.join(command[3:6])} ended with code "
            f"{answer.returncode}):\n{answer.stderr.strip()}"
        )


def require_parity(job: Job) -> None:
    """Check the stored parity of a run's bundles.

    Raises:
        GateError: An exported file does not give the measured numbers.
    """
    for path in sorted(job.run.export_path.glob("*/parity.json")):
        parity = read_json(path)
        if not parity["passed"]:
            raise GateError(
                f"the exported model {str(path.parent)!r} does not give the probabilities that "
                f"were measured; do not use it. Details: {path}"
            )
