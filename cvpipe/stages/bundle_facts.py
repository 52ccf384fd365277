"""What an app, and whoever is responsible for it, must know about an exported model."""

from dataclasses import asdict
from typing import Any

from cvpipe.config import Config
from cvpipe.contender_sections import (
    ClassicContender,
    Contender,
    EnsembleContender,
    ImportedContender,
    NetworkContender,
    SingleContender,
)
from cvpipe.data.images import DECODE_RULE, decode_rule
from cvpipe.export.bundle import BUNDLE_VERSION
from cvpipe.features.table import KINDS
from cvpipe.files import read_json
from cvpipe.inference.crops import SINGLE, num_views, sizes_to_load
from cvpipe.models.backbones import describe_weights
from cvpipe.runs import Run, read_source
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.imported import HONEST_NOTE, describe_origin, imported_size
from cvpipe.stages.job import Job
from cvpipe.stages.native import features_of_native, sizes_of_native
from cvpipe.stages.recipes import (
    backbone_spec,
    backbones_of,
    becomes_network,
    deep_features_of,
    members_of,
)

INSIDE = "inside the model"


def describe_bundle(job: Job, name: str) -> dict[str, Any]:
    """Collect what an app, and whoever is responsible for it, must know about a model."""
    contender = job.config.contender_called(name)
    networks = networks_in(job.config, contender)
    weights = [source for one in networks for source in describe_sources(job.config, one)]
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
        "class_names": job.run.class_names(),
        "input": {
            "dtype": "uint8",
            "colour": "RGB",
            **describe_sizes(job.run, job.config, contender),
            "decode_rule": DECODE_RULE,
            **asdict(decode_rule(job.config.images, job.config.data)),
            "preprocessing": INSIDE,
        },
        **describe_features(job.config, contender),
        **describe_parts(job.run, job.config, contender),
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
        "protocol": describe_protocol(job.config, contender),
        "data_fingerprint": read_json(job.run.provenance_path)["data_fingerprint"],
        "licences": {
            "weights": "; ".join(dict.fromkeys(weights)) or "none are inside",
            "data": source.get("licence", "not stated"),
        },
        "limits": "The figures hold for images from the same source. Nothing is known about "
        "other cameras, sites or populations; not a medical device.",
    }


def describe_protocol(config: Config, contender: Contender) -> str:
    """Say on which images the figures of a model were measured."""
    if any(isinstance(n, ImportedContender) for n in networks_in(config, contender)):
        return (
            "holdout: this very model, on images it was not chosen on here; it was trained "
            f"elsewhere, so {HONEST_NOTE}"
        )
    return "holdout: this very model, on images it was never fitted to or chosen on"


def describe_sources(config: Config, network: SingleContender) -> list[str]:
    """Say under which licences the weights of a network are, and where they come from."""
    if isinstance(network, ImportedContender):
        return [describe_origin(network)]
    if isinstance(network, NetworkContender):
        return [describe_weights(backbone_spec(network))]
    return [describe_weights(spec) for spec in backbones_of(config, network)]


def networks_in(config: Config, contender: Contender) -> list[SingleContender]:
    """List the networks that a contender consists of; none where it consists of something else.

    See `cvpipe.stages.recipes.becomes_network`.

    Raises:
        TypeError: It consists of both.
    """
    parts = members_of(config, contender)
    networks = [part for part in parts if becomes_network(config, part)]
    if 0 < len(networks) < len(parts):
        raise TypeError(f"{contender.name!r} is a network in part only")
    return networks


def describe_sizes(run: Run, config: Config, contender: Contender) -> dict[str, Any]:
    """Say to which size images are brought for a network, or to which ones for other contenders."""
    networks = networks_in(config, contender)
    if networks:
        return {"image_size": list(size_to_load(run, config, networks[0]))}
    return {"image_sizes": [list(size) for size in sizes_of_native(run, config, contender)]}


def describe_features(config: Config, contender: Contender) -> dict[str, Any]:
    """Say what hand-crafted features a contender reads; nothing of a network."""
    if networks_in(config, contender):
        return {}
    features = features_of_native(config, contender)
    return {
        "features": {
            name: {"version": KINDS[feature.kind].version, **asdict(feature)}
            for name, feature in features.items()
        }
    }


def describe_parts(run: Run, config: Config, contender: Contender) -> dict[str, Any]:
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
    if view == SINGLE:
        return {}
    seen: dict[str, Any] = {"kind": view, "passes": num_views(view)}
    if becomes_network(config, contender):  # others may have several
        seen |= {"crop_size": list(network_size(run, config, contender))}
    seen |= {"mean_of": config.evaluate.view_mean}
    return {"view": {**seen, "where": INSIDE}}


def describe_calibration(run: Run, name: str) -> dict[str, Any]:
    """Say how a contender's probabilities were calibrated."""
    facts = read_json(run.fitted_calibration_path(name))
    curves = {key: facts[key] for key in ("slopes", "offsets", "inputs", "outputs") if key in facts}
    return {
        "method": facts["method"],
        **curves,
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


def network_size(run: Run, config: Config, contender: SingleContender) -> tuple[int, int]:
    """Say which size, `(height, width)`, the images have that a network takes."""
    if isinstance(contender, ImportedContender):
        return imported_size(run, contender.name)
    if isinstance(contender, ClassicContender):
        return deep_features_of(config, contender)[0].image_size
    return backbone_spec(contender).size


def size_to_load(run: Run, config: Config, contender: SingleContender) -> tuple[int, int]:
    """Say to which size images are brought for a network, in its view."""
    return sizes_to_load(run.view(contender.name), network_size(run, config, contender))[0]
