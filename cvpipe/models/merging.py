"""Several networks, or several views of an image, as one network.

What comes out is one flat graph of Keras's own layers and operations: it is stored, exported and
computed like any other network, and knows nothing of what it was made of. Its last layer is always
`PROBABILITIES_LAYER`. What acts in training alone, such as dropout, is left out.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.graphs import input_like, named, replay
from cvpipe.models.heads import CALIBRATION_LAYER, LOGITS_LAYER, PROBABILITIES_LAYER

if TYPE_CHECKING:
    import keras

PROBABILITIES = "probabilities"
GEOMETRIC_MEAN = "geometric_mean"
STACKING = "stacking"
# Ways to merge that are sums. The first three differ in how their weights were found.
METHODS = ("mean", "weighted", "greedy", GEOMETRIC_MEAN, STACKING)
FLOOR = 1e-7  # smaller probabilities have no part in a geometric mean; as in the log loss
WEIGHTS_TOLERANCE = 1e-6


def share_trunk(
    trunk: "keras.Model | None",
    tail: "keras.Model",
    weights: Sequence[Sequence[np.ndarray]],
    name: str,
) -> "keras.Model":
    """Average networks that differ in the weights of their tails alone, at the cost of one trunk.

    Args:
        trunk: From `uint8` images to activations. The result shares its layers. `None` where
            nothing is shared and the tail is the whole network.
        tail: From the activations, or from images, to logits; see
            `cvpipe.models.transfer.part_network`. It stays as it is.
        weights: Of each member the values of all of `tail.variables`, in that order, as
            `cvpipe.models.training.State` keeps them.
        name: Name of the model.

    Returns:
        Model from images to the mean of the members' probabilities. A layer of the tail appears
        in it once for each member, the first member's as `head_member_1`.

    Raises:
        InputError: There is no member, the values of one do not fit the tail, the tail does not
            end with logits, or it takes something else than the trunk gives.
    """
    _check_tail(trunk, tail, weights)
    keras = import_keras()
    images = input_like(tail) if trunk is None else trunk.input
    activations = images if trunk is None else trunk.output
    members = []
    for number, values in enumerate(weights, start=1):
        logits = replay(tail, activations, _name_of_member(number), values)
        softmax = keras.layers.Softmax(name=_name_of_member(number)(PROBABILITIES_LAYER))
        members.append(softmax(logits))
    mean = keras.layers.Average(name=PROBABILITIES_LAYER)(members)
    return keras.Model(images, mean, name=name)


def merge_networks(
    models: Sequence["keras.Model"],
    weights: Sequence[float],
    method: str,
    name: str,
    *,
    intercepts: Sequence[float] = (),
    floor: float = FLOOR,
) -> "keras.Model":
    """Average whole networks.

    Args:
        models: From `uint8` images of one size to probabilities of the same classes. They stay as
            they are.
        weights: One per model, not negative; their sum is 1, but for stacking. Models of weight 0
            are left out.
        method: One of `METHODS`: `"geometric_mean"`, `"stacking"`, which is the softmax of a
            weighted sum of logarithms and intercepts, or an arithmetic mean by any name.
        name: Name of the result.
        intercepts: Of stacking: one per class.
        floor: Smaller probabilities are taken as this where logarithms are summed: 0 has none.

    Returns:
        Model from images to probabilities. A layer `head` of the first model is in it as
        `head_member_1`.

    Raises:
        InputError: The method is no such mean, the models differ in what they take or give, or
            the weights do not fit.
    """
    if method not in METHODS:
        raise InputError(
            f"networks that are merged by {method!r} cannot become one network; choose one of "
            f"{list(METHODS)}, or keep the networks apart."
        )
    _check_alike(models)
    _check_weights(weights, len(models), sum_is_free=method == STACKING)
    by_logs = method in (GEOMETRIC_MEAN, STACKING)
    keras = import_keras()
    images, terms = input_like(models[0]), []
    for number, (model, weight) in enumerate(zip(models, weights, strict=True), start=1):
        if weight == 0:
            continue
        name_of = _name_of_member(number)
        values = replay(model, images, name_of)
        if by_logs:
            values = _floored_log(values, floor, name_of)
        terms.append(keras.layers.Rescaling(float(weight), name=name_of("weight"))(values))
    if by_logs:
        logs = _sum(terms, "log_mean")
        if intercepts:
            logs = keras.layers.Rescaling(1.0, [*map(float, intercepts)], name="intercepts")(logs)
        mean = keras.layers.Softmax(name=PROBABILITIES_LAYER)(logs)
    else:
        mean = _sum(terms, PROBABILITIES_LAYER)
    return keras.Model(images, mean, name=name)


def views_inside(
    model: "keras.Model",
    image_size: tuple[int, int],
    origins: Sequence[tuple[int, int]],
    mirrored: bool,
    mean_of: str = PROBABILITIES,
) -> "keras.Model":
    """Let a network cut views out of each image itself, and average its answers.

    All views of a batch are computed at once, so it takes as much memory as a batch of all of them.

    Args:
        model: From `uint8` crops to probabilities; the result shares its layers.
        image_size: `(height, width)` of the images that the views are cut out of.
        origins: `(top, left)` of each crop in pixels; crops have the size that the model takes.
        mirrored: Whether the mirror images of all crops, left to right, are looked at as well.
        mean_of: `"probabilities"`, or `"logits"`: the normalised geometric mean of probabilities
            of at least `FLOOR`.

    Returns:
        Model from `uint8` images `(n, *image_size, 3)` to the mean of their views' probabilities.

    Raises:
        InputError: There is no crop, or one does not lie inside the image.
    """
    height, width, channels = model.input_shape[1:]
    _check_origins(origins, image_size, (height, width))
    keras = import_keras()
    images = keras.Input(
        (*image_size, channels), dtype=model.inputs[0].dtype, name=model.inputs[0].name
    )
    places = [(images, top, left) for top, left in origins]
    if mirrored:
        mirror = named(keras.ops.flip(images, axis=2), "mirror")
        # A crop's mirror image lies at the mirrored place.
        places += [(mirror, top, image_size[1] - width - left) for top, left in origins]
    crops = [
        named(source[:, top : top + height, left : left + width], f"view_{number}")
        for number, (source, top, left) in enumerate(places, start=1)
    ]
    stacked = named(keras.ops.stack(crops, axis=1), "views")
    batch = named(keras.ops.reshape(stacked, (-1, height, width, channels)), "views_as_batch")
    rows = replay(model, batch, _instead_of_probabilities("view_probabilities"))
    by_image = named(keras.ops.reshape(rows, (-1, len(crops), rows.shape[-1])), "views_by_image")
    pool = keras.layers.GlobalAveragePooling1D
    if mean_of == PROBABILITIES:
        return keras.Model(images, pool(name=PROBABILITIES_LAYER)(by_image), name=model.name)
    logs = pool(name="view_mean")(_floored_log(by_image, FLOOR, "view_{}".format))
    mean = keras.layers.Softmax(name=PROBABILITIES_LAYER)(logs)
    return keras.Model(images, mean, name=model.name)


def scale_probabilities(
    model: "keras.Model", slopes: Sequence[float], offsets: Sequence[float], floor: float
) -> "keras.Model":
    """Build a calibration `softmax(slopes * log(p) + offsets)` behind any network.

    Of a network that has logits `cvpipe.models.heads.scale_logits` makes the shorter graph.

    Args:
        model: From images to probabilities; the result shares its layers.
        slopes: One per class.
        offsets: One per class.
        floor: Smaller probabilities are taken as this.

    Returns:
        Model from the same images to calibrated probabilities.

    Raises:
        InputError: The numbers of slopes, offsets and classes differ.
    """
    num_classes = model.output_shape[-1]
    if (len(slopes), len(offsets)) != (num_classes, num_classes):
        raise InputError(
            f"{model.name!r} has {num_classes} classes, but got {len(slopes)} slopes and "
            f"{len(offsets)} offsets; pass one of each per class."
        )
    keras = import_keras()
    images = input_like(model)
    rows = replay(model, images, _instead_of_probabilities("uncalibrated_probabilities"))
    logs = _floored_log(rows, floor, "calibration_{}".format)
    scaling = keras.layers.Rescaling(
        [float(slope) for slope in slopes],
        [float(offset) for offset in offsets],
        name=CALIBRATION_LAYER,
    )
    softmax = keras.layers.Softmax(name=PROBABILITIES_LAYER)
    return keras.Model(images, softmax(scaling(logs)), name=model.name)


def _sum(terms: Sequence[Any], name: str) -> Any:
    layers = import_keras().layers
    if len(terms) == 1:  # of which Keras makes no sum
        return layers.Identity(name=name)(terms[0])
    return layers.Add(name=name)(terms)


def _floored_log(probabilities: Any, floor: float, name_of: Callable[[str], str]) -> Any:
    """Take logarithms of probabilities, of which those below a floor count as the floor."""
    keras = import_keras()
    floored = named(keras.ops.maximum(probabilities, float(floor)), name_of("floor"))
    return named(keras.ops.log(floored), name_of("log"))


def _name_of_member(number: int) -> Callable[[str], str]:
    return f"{{}}_member_{number}".format


def is_head(name: str) -> bool:
    """Tell whether a layer of this name makes logits, be it of a member of a merged network.

    Example:
        >>> is_head("head"), is_head("head_member_2"), is_head("head_conv")
        (True, True, False)
    """
    return name.partition("_member_")[0] == LOGITS_LAYER


def _instead_of_probabilities(name: str) -> Callable[[str], str]:
    return lambda layer: name if layer == PROBABILITIES_LAYER else layer


def _check_tail(
    trunk: "keras.Model | None", tail: "keras.Model", weights: Sequence[Sequence[np.ndarray]]
) -> None:
    if trunk is not None and trunk.output_shape != tail.input_shape:
        raise InputError(
            f"the trunk gives {trunk.output_shape}, but the tail takes {tail.input_shape}; pass "
            "both parts of one network, parted at one freeze point."
        )
    (last,) = (tensor._keras_history.operation.name for tensor in tail.outputs)
    if last != LOGITS_LAYER:
        raise InputError(
            f"{tail.name!r} ends with the layer {last!r}, but must end with the logits of "
            f"{LOGITS_LAYER!r}; pass the tail without its softmax."
        )
    if not weights:
        raise InputError("there is no member to average; pass the weights of at least one.")
    shapes = [tuple(variable.shape) for variable in tail.variables]
    for number, values in enumerate(weights, start=1):
        given = [np.shape(value) for value in values]
        if given == shapes:
            continue
        pairs = zip(given, shapes, strict=False)
        different = next((pair for pair in pairs if pair[0] != pair[1]), None)
        first = f", the first other one {different[0]} for {different[1]}" if different else ""
        raise InputError(
            f"member {number} has {len(given)} arrays{first}, but {tail.name!r} has {len(shapes)} "
            "variables; pass the values of all of tail.variables, in their order."
        )


def _check_alike(models: Sequence["keras.Model"]) -> None:
    if not models:
        raise InputError("there is no network to merge; pass at least one.")
    for what, shapes, remedy in (
        ("take images", [model.input_shape[1:] for model in models], "trained at one size"),
        ("give rows", [model.output_shape[1:] for model in models], "of the same classes"),
    ):
        if len(set(shapes)) > 1:
            told = ", ".join(
                f"{model.name!r} {shape}" for model, shape in zip(models, shapes, strict=True)
            )
            raise InputError(
                f"networks can be merged where they {what} of one shape, but these are: {told}; "
                f"choose networks {remedy}, or keep them apart."
            )


def _check_weights(weights: Sequence[float], num_models: int, *, sum_is_free: bool) -> None:
    if len(weights) != num_models:
        raise InputError(f"{len(weights)} weights for {num_models} networks; pass one for each.")
    # `not (a <= b)` instead of `a > b`, so that a NaN counts as bad.
    total = sum(weights)
    is_sum = 0 < total < float("inf") if sum_is_free else abs(total - 1) <= WEIGHTS_TOLERANCE
    if not (min(weights) >= 0 and is_sum):
        raise InputError(
            f"weights must not be negative and must sum to 1, but are {list(weights)}; divide "
            "them by their sum."
        )


def _check_origins(
    origins: Sequence[tuple[int, int]], image_size: tuple[int, int], crop_size: tuple[int, int]
) -> None:
    if not origins:
        raise InputError("there is no view to look at; pass the origin of at least one crop.")
    bottom, right = (image - crop for image, crop in zip(image_size, crop_size, strict=True))
    for top, left in origins:
        if not (0 <= top <= bottom and 0 <= left <= right):
            raise InputError(
                f"a crop of {crop_size} pixels at {(top, left)} does not lie inside images of "
                f"{tuple(image_size)}; pass origins inside them, or a larger image size."
            )
