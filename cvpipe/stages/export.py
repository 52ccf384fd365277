"""Hand a network to an app: one folder with the file, what it is, and a proof of parity."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cvpipe.config import Config, Contender, EnsembleContender, NetworkContender
from cvpipe.data.images import DECODE_RULE, decode_rule
from cvpipe.errors import GateError
from cvpipe.export.bundle import (
    BUNDLE_VERSION,
    KERAS_TOLERANCE,
    MERGED_TOLERANCE,
    bundle_readme,
)
from cvpipe.files import atomic_path, read_json, write_json, write_text
from cvpipe.inference.calibration import FLOOR, Scaling
from cvpipe.inference.crops import SINGLE, crop_origins, num_views, sizes_to_load
from cvpipe.inference.ensembling import Ensemble
from cvpipe.models.backbones import describe_weights
from cvpipe.models.framework import set_threads
from cvpipe.models.heads import ends_with_linear_head, scale_logits
from cvpipe.models.merging import METHODS as MERGED_METHODS
from cvpipe.models.merging import STACKING, merge_networks, scale_probabilities, views_inside
from cvpipe.runs import Run, read_source
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import load_network
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.evaluate import best_on_val
from cvpipe.stages.job import Job
from cvpipe.stages.recipes import backbone_spec, members_of

INSIDE = "inside the model"
PLAIN = ("none", "ema", "soup")  # ways of averaging after which a network is one like any other


def contender_to_export(job: Job) -> str:
    """Name the contender that is exported.

    Returns:
        The chosen contender if it can become one network, otherwise the best on val of those that
        can; `""` when none can.
    """
    able = [c.name for c in job.config.contender if is_one_network(job.run, job.config, c)]
    chosen = str(read_json(job.run.choice_path)["chosen"])
    if chosen in able or not able:
        return chosen if chosen in able else ""
    return str(best_on_val(job, able)["chosen"])


def is_one_network(run: Run, config: Config, contender: Contender) -> bool:
    """Tell whether a contender can be handed on as one network.

    An ensemble can if all of its members are networks that read images of one size, and its way to
    combine them is a sum.
    """
    if not isinstance(contender, EnsembleContender):
        return isinstance(contender, NetworkContender)
    members = members_of(config, contender)
    networks = [member for member in members if isinstance(member, NetworkContender)]
    sizes = {size_to_load(run, member) for member in networks}
    if len(networks) < len(members) or len(sizes) > 1:
        return False
    ensemble = load_ensemble(run, contender.name)
    return ensemble.method in MERGED_METHODS and sum(ensemble.weights) > 0


def size_to_load(run: Run, contender: NetworkContender) -> tuple[int, int]:
    """Say to which size images are brought for a network, in its view."""
    return sizes_to_load(run.view(contender.name), backbone_spec(contender).size)[0]


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
    """Write a contender as one network, with its members, views and calibration inside."""
    config = run.config()
    contender = next(c for c in config.contender if c.name == name)
    stored = run.part_path(name) / "model.keras"
    if stored.exists() and run.view(name) == SINGLE and not scaling_of(run, name):
        shutil.copyfile(stored, path)
        return
    set_threads(config.threads)
    build_calibrated_network(run, config, contender).save(path)


def build_calibrated_network(run: Run, config: Config, contender: Contender) -> Any:
    """Build a contender as one network, see `is_one_network`."""
    name = contender.name
    if isinstance(contender, EnsembleContender):
        members = members_of(config, contender)
        networks = [build_calibrated_network(run, config, member) for member in members]
        model = merge_members(networks, load_ensemble(run, name), name)
    else:
        model = load_network(run.part_path(name) / "model.keras")
        if run.view(name) != SINGLE:
            crop_size = (model.input_shape[1], model.input_shape[2])
            (image_size,) = sizes_to_load(run.view(name), crop_size)
            origins, mirrored = crop_origins(run.view(name), crop_size)
            mean_of = config.evaluate.view_mean
            model = views_inside(model, image_size, origins, mirrored, mean_of)
    scaling = scaling_of(run, name)
    if not scaling:
        return model
    if ends_with_linear_head(model):
        return scale_logits(model, scaling.slopes, scaling.offsets)
    return scale_probabilities(model, scaling.slopes, scaling.offsets, scaling.floor)


def merge_members(networks: Sequence[Any], ensemble: Ensemble, name: str) -> Any:
    """Merge the networks of the members of an ensemble into one."""
    method, total = ensemble.method, 1.0
    if method != STACKING:
        total = sum(ensemble.weights)  # 1, but for the rounding of what was stored
    weights = [weight / total for weight in ensemble.weights]
    intercepts = ensemble.intercepts
    return merge_networks(networks, weights, method, name, intercepts=intercepts, floor=FLOOR)


def scaling_of(run: Run, name: str) -> Scaling | None:
    """Load a contender's calibration; `None` where it changes nothing."""
    calibration = load_calibration(run, name)
    if not isinstance(calibration, Scaling) or calibration.changes_nothing:
        return None
    return calibration


def parity_tolerance(run: Run, name: str) -> float:
    """Say how far the probabilities of an exported contender may be from the measured ones."""
    contender = next(c for c in run.config().contender if c.name == name)
    plain = isinstance(contender, NetworkContender) and contender.training.averaging in PLAIN
    return KERAS_TOLERANCE if plain and run.view(name) == SINGLE else MERGED_TOLERANCE


def describe_bundle(job: Job, name: str) -> dict[str, Any]:
    """Collect what an app, and whoever is responsible for it, must know about a model."""
    contender = next(c for c in job.config.contender if c.name == name)
    networks = networks_in(job.config, contender)
    specs = [backbone_spec(network) for network in networks]
    metrics = job.run.metrics()
    rows = metrics[
        (metrics["protocol"] == "holdout")  # folds and careless split speak of other models
        & (metrics["contender"] == name)
        & (metrics["split"] == "test")
        & (metrics["label"] == "")
    ]
    source = read_source(job.root)
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
            "image_size": list(size_to_load(job.run, networks[0])),
            "decode_rule": DECODE_RULE,
            **asdict(decode_rule(job.config.images, job.config.data)),
            "preprocessing": INSIDE,
        },
        **describe_parts(job.run, contender),
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
            "weights": "; ".join(dict.fromkeys(describe_weights(spec) for spec in specs)),
            "data": source.get("licence", "not stated"),
        },
        "limits": "The figures hold for images from the same source. Nothing is known about "
        "other cameras, sites or populations; not a medical device.",
    }


def networks_in(config: Config, contender: Contender) -> list[NetworkContender]:
    """List the networks that a contender consists of.

    Raises:
        TypeError: It consists of something else as well.
    """
    parts: list[Contender] = [contender]
    if isinstance(contender, EnsembleContender):
        parts = [*members_of(config, contender)]
    networks = [part for part in parts if isinstance(part, NetworkContender)]
    if len(networks) < len(parts):
        raise TypeError(f"{contender.name!r} is not a network")
    return networks


def describe_parts(run: Run, contender: Contender) -> dict[str, Any]:
    """Say what an ensemble is made of, and how a network sees an image if not as it is."""
    if isinstance(contender, EnsembleContender):
        ensemble = load_ensemble(run, contender.name)
        facts = {
            "weights": dict(zip(contender.members, ensemble.weights, strict=True)),
            "views": {member: run.view(member) for member in contender.members},
        }
        facts |= {"intercepts": list(ensemble.intercepts)}
        return {"ensemble": {"method": ensemble.method, **facts, "where": INSIDE}}
    view = run.view(contender.name)
    if view == SINGLE or not isinstance(contender, NetworkContender):
        return {}
    size = backbone_spec(contender).size
    facts = {"kind": view, "passes": num_views(view), "crop_size": list(size)}
    facts |= {"mean_of": run.config().evaluate.view_mean}
    return {"view": {**facts, "where": INSIDE}}


def describe_calibration(run: Run, name: str) -> dict[str, Any]:
    """Say how a network's probabilities were calibrated."""
    facts = read_json(run.fitted_calibration_path(name))
    return {
        "method": facts["method"],
        "slopes": facts["slopes"],
        "offsets": facts["offsets"],
        "fitted_on": f"{facts['num_images']} validation images",
        "where": INSIDE,
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
