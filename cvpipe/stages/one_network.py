"""A contender as one network, from `uint8` images to the probabilities that were measured."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.classifiers.to_steps import steps_of
from cvpipe.config import Config
from cvpipe.contender_sections import (
    ClassicContender,
    Contender,
    EnsembleContender,
    SingleContender,
)
from cvpipe.data.images import decode_rule
from cvpipe.data.threads import load_batches
from cvpipe.inference.calibration import FLOOR, Scaling
from cvpipe.inference.crops import SINGLE, crop_origins, sizes_to_load
from cvpipe.inference.ensembling import Ensemble
from cvpipe.models.framework import set_threads
from cvpipe.models.heads import ends_with_linear_head, scale_logits
from cvpipe.models.merging import METHODS as MERGED_METHODS
from cvpipe.models.merging import STACKING, merge_networks, scale_probabilities, views_inside
from cvpipe.models.step_layers import attach_classifier, join_backbones
from cvpipe.runs import Run
from cvpipe.stages.bundle_facts import networks_in, size_to_load
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import Fit, load_network, stored_describer
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.job import Job
from cvpipe.stages.native import obstacle_to_native
from cvpipe.stages.recipes import (
    becomes_network,
    deep_features_of,
    members_of,
    obstacle_to_layers,
)
from cvpipe.stages.stored_models import load_estimator
from cvpipe.stages.verify import check_images

NUM_REPRESENTATIVE = 128


def obstacle_to_one_network(run: Run, config: Config, contender: Contender) -> str:
    """Say why a contender cannot be handed on as one network; `""` where it can.

    An ensemble can if all of its members can, read images of one size, and its way to combine them
    is a sum.
    """
    if isinstance(contender, ClassicContender) and not becomes_network(config, contender):
        has_native = not obstacle_to_native(config, contender)
        told = " (there is the format native for it)" if has_native else ""
        return obstacle_to_layers(config, contender) + told
    members = members_of(config, contender)
    for view in (run.view(member.name) for member in members if becomes_network(config, member)):
        if len(sizes_to_load(view, (1, 1))) > 1:
            return f"its view {view!r} needs images of several sizes"
    if not isinstance(contender, EnsembleContender):
        return ""
    classic = [m.name for m in members if not becomes_network(config, m)]
    if classic:
        return f"its members {classic} are no networks (if none is, there is the format native)"
    sizes = {size_to_load(run, config, member) for member in members}
    if len(sizes) > 1:
        return f"its members read images of different sizes: {sorted(sizes)}"
    ensemble = load_ensemble(run, contender.name)
    if ensemble.method not in MERGED_METHODS or not sum(ensemble.weights) > 0:
        return f"its members are combined by {ensemble.method!r}, which is no sum"
    return ""


def build_calibrated_network(run: Run, config: Config, contender: Contender) -> Any:
    """Build a contender as one network, see `obstacle_to_one_network`."""
    name = contender.name
    if isinstance(contender, EnsembleContender):
        members = members_of(config, contender)
        networks = [build_calibrated_network(run, config, member) for member in members]
        model = merge_members(networks, load_ensemble(run, name), name)
    else:
        model = in_own_view(run, config, name, load_single(run, config, contender))
    scaling = scaling_of(run, name)
    if not scaling:
        return model
    if ends_with_linear_head(model):
        return scale_logits(model, scaling.slopes, scaling.offsets)
    return scale_probabilities(model, scaling.slopes, scaling.offsets, scaling.floor)


def load_single(run: Run, config: Config, contender: SingleContender) -> Any:
    """Load a contender as a network of single views; a classic one is put together."""
    part = run.part_path(contender.name)
    if not isinstance(contender, ClassicContender):
        return load_network(part / "model.keras")
    scales = stored_describer(run, contender).scales
    return classifier_network(config, contender, load_estimator(part / "model.skops"), scales)


def network_of_fit(job: Job, contender: SingleContender, fit: Fit) -> Any:
    """Build a contender that was just fitted as a network of single views."""
    if fit.network is not None:
        return fit.network
    return classifier_network(job.config, contender, fit.fitted.estimator, fit.describer.scales)


def classifier_network(
    config: Config, contender: SingleContender, estimator: Any, scales: Sequence[float]
) -> Any:
    """Put the classifier of a contender behind the backbones whose features it reads."""
    set_threads(config.threads)
    # Not those that are kept in memory, on which the classifiers would pile up.
    backbones = [feature.build() for feature in deep_features_of(config, contender)]
    return attach_classifier(join_backbones(backbones, scales), steps_of(estimator), contender.name)


def in_own_view(run: Run, config: Config, name: str, model: Any) -> Any:
    """Let the network of a contender see images in the contender's view of them."""
    if run.view(name) == SINGLE:
        return model
    crop_size = (model.input_shape[1], model.input_shape[2])
    (image_size,) = sizes_to_load(run.view(name), crop_size)
    origins, mirrored = crop_origins(run.view(name), crop_size)
    return views_inside(model, image_size, origins, mirrored, config.evaluate.view_mean)


def merge_members(networks: Sequence[Any], ensemble: Ensemble, name: str) -> Any:
    """Merge the networks of the members of an ensemble into one."""
    method, total = ensemble.method, 1.0
    if method != STACKING:
        total = sum(ensemble.weights)  # 1, but for the rounding of what was stored
    weights = [weight / total for weight in ensemble.weights]
    intercepts = ensemble.intercepts
    return merge_networks(networks, weights, method, name, intercepts=intercepts, floor=FLOOR)


def scaling_of(run: Run, name: str) -> Scaling | None:
    """Load a calibration that a network can have inside; `None` where there is none to be had.

    That is without a calibration, and with one that changes nothing. `Config` refuses isotonic
    curves for networks, and `obstacle_to_layers` for classifiers that become some.
    """
    calibration = load_calibration(run, name)
    if not isinstance(calibration, Scaling) or calibration.changes_nothing:
        return None
    return calibration


def representative_images(job: Job, contender: Contender, train: pd.DataFrame) -> np.ndarray:
    """Load images of train, of all classes in turn, from which ranges of activations are taken.

    Args:
        job: The run.
        contender: See `obstacle_to_one_network`.
        train: Manifest rows that it was fitted on.
    """
    labels = train.groupby("label").cumcount()
    chosen = train.iloc[np.argsort(labels, kind="stable")[:NUM_REPRESENTATIVE]]
    config = job.config
    size = size_to_load(job.run, config, networks_in(config, contender)[0])
    check_images(job.run, job.root, chosen["image_id"].tolist())
    paths = [job.root / image_id for image_id in chosen["image_id"]]
    rule = decode_rule(config.images, config.data)
    return np.concatenate(list(load_batches(paths, size, rule, 32, config.threads)))
