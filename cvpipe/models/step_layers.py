"""Fitted classifiers as layers behind a frozen backbone.

A classifier on frozen features is a network in all but name, if what it does with a row can be
written as layers. Then an app gets it as it gets any other network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras
from cvpipe.models.graphs import input_like, named, replay
from cvpipe.models.heads import LOGITS_LAYER, PROBABILITIES_LAYER

if TYPE_CHECKING:
    import keras

# A name and values, as in `cvpipe.classifiers.steps.Step`, which says what each step does.
Step = tuple[str, Mapping[str, Any]]
SHARES = "shares"  # of sigmoids, which sum to 1: what is left of `platt` when its line is folded


def join_backbones(
    backbones: Sequence["keras.Model"], scales: Sequence[float] = ()
) -> "keras.Model":
    """Put the features of several backbones side by side.

    Args:
        backbones: From `uint8` images of one size to rows. They stay as they are.
        scales: What the rows of each are multiplied by; empty: nothing.

    Returns:
        Model from such images to the joined rows.
    """
    if len(backbones) == 1 and not scales:
        return backbones[0]
    layers = import_keras().layers
    images, rows = input_like(backbones[0]), []
    for number, backbone in enumerate(backbones, start=1):
        features = replay(backbone, images, f"{{}}_backbone_{number}".format)
        scale = float(scales[number - 1]) if scales else 1.0
        rows.append(layers.Rescaling(scale, name=f"scaled_{number}")(features))
    joined = layers.Concatenate(name="side_by_side")(rows) if len(rows) > 1 else rows[0]
    return import_keras().Model(images, joined, name="backbones")


def attach_classifier(backbone: "keras.Model", steps: Sequence[Step], name: str) -> "keras.Model":
    """Put a fitted classifier on a backbone.

    Args:
        backbone: Model from `uint8` images to features; the result shares its layers.
        steps: Of the classifier, by the names and values of `cvpipe.classifiers.steps.STEPS`.
        name: Name of the model.

    Returns:
        Model from the same images to probabilities `(n, num_classes)`, in `float32`. Its last
        layer is `PROBABILITIES_LAYER`.

    Raises:
        InputError: A step is no layer.
    """
    folded = fold_lines(steps)
    others = [kind for kind, _ in folded if kind not in LAYERS]
    if others:  # the last, because a scale is none without a line behind it
        raise InputError(
            f"the classifier of {name!r} has the step {others[-1]!r}, which is no layer; choose "
            "another classifier, such as 'softmax' or 'linear_svm'."
        )
    last_line = max((n for n, (kind, _) in enumerate(folded) if kind == "linear"), default=-1)
    rows = backbone.output
    for number, (kind, values) in enumerate(folded):
        name_of = (lambda _: LOGITS_LAYER) if number == last_line else f"{{}}_{number}".format
        rows = LAYERS[kind](rows, name_of, **values)
    return import_keras().Model(backbone.input, rows, name=name)


def fold_lines(steps: Sequence[Step]) -> list[Step]:
    """Merge scales into the lines behind them, and let two classes have a score each.

    Args:
        steps: See `attach_classifier`.

    Returns:
        Steps that give the same. A `scale` before a `linear` is part of that, and so is the line of
        each `platt`; what that does with its sigmoids is a step `SHARES`, or of two classes
        `softmax`.
    """
    folded: list[Step] = []
    for kind, values in steps:
        before = folded[-1][0] if folded else ""
        if kind == "linear" and before == "scale":
            folded.append(_behind_scale(values, folded.pop()[1]))
        elif kind == "platt":
            slopes, offsets = values["slopes"], values["offsets"]
            line = folded.pop()[1] if before == "linear" else _line(np.eye(len(slopes)), 0.0)[1]
            intercepts = -(line["intercepts"] * slopes + offsets)
            folded.append(_line(line["weights"] * -slopes, intercepts))
            folded.append(("softmax" if len(slopes) == 1 else SHARES, {}))
        else:
            folded.append((kind, values))
    return [
        _both_columns(step, after) for step, after in zip(folded, [*folded[1:], None], strict=True)
    ]


def _line(weights: np.ndarray, intercepts: Any) -> Step:
    return "linear", {"weights": weights, "intercepts": intercepts + np.zeros(weights.shape[1])}


def _behind_scale(line: Mapping[str, Any], scale: Mapping[str, Any]) -> Step:
    weights = line["weights"] / scale["scale"][:, None]
    return _line(weights, line["intercepts"] - scale["mean"] @ weights)


def _both_columns(step: Step, after: Step | None) -> Step:
    """Give the first of two classes a score of 0 where a softmax sees that of the second alone."""
    kind, values = step
    if kind != "linear" or after is None or after[0] != "softmax" or values["weights"].shape[1] > 1:
        return step
    weights, intercepts = values["weights"], values["intercepts"]
    return _line(np.hstack([np.zeros_like(weights), weights]), np.append(0.0, intercepts))


def _dense(rows: Any, name: str, weights: np.ndarray, intercepts: np.ndarray) -> Any:
    layer = import_keras().layers.Dense(weights.shape[1], name=name)
    scores = layer(rows)
    layer.set_weights([weights, intercepts])
    return scores


def _linear(
    rows: Any, name_of: Callable[[str], str], weights: np.ndarray, intercepts: np.ndarray
) -> Any:
    return _dense(rows, name_of("linear"), weights, intercepts)


def _rectify(rows: Any, name_of: Callable[[str], str]) -> Any:
    return import_keras().layers.ReLU(name=name_of("rectify"))(rows)


def _softmax(rows: Any, name_of: Callable[[str], str]) -> Any:  # noqa: ARG001
    return import_keras().layers.Softmax(name=PROBABILITIES_LAYER)(rows)


def _shares(rows: Any, name_of: Callable[[str], str]) -> Any:
    """Divide sigmoids by their sum, by way of their logarithms, `min(x, 0) - log(1 + exp(-|x|))`.

    All sigmoids of an image unlike any other may be too small for a number of 32 bits.
    """
    keras = import_keras()
    layers, ops = keras.layers, keras.ops
    sizes = layers.Rescaling(-1.0, name=name_of("negated"))(named(ops.abs(rows), name_of("abs")))
    small = layers.Activation("exponential", name=name_of("small"))(sizes)
    above = layers.Rescaling(1.0, 1.0, name=name_of("above"))(small)
    below = named(ops.minimum(rows, 0.0), name_of("below"))
    logs = layers.Subtract(name=name_of("logs"))([below, named(ops.log(above), name_of("log"))])
    return layers.Softmax(name=PROBABILITIES_LAYER)(logs)


def _kernel_machine(
    rows: Any,
    name_of: Callable[[str], str],
    kernel: str,
    gamma: float,
    vectors: np.ndarray,
    coefficients: np.ndarray,
    intercepts: np.ndarray,
    counts: np.ndarray,
) -> Any:
    """See the step of this name; squared distances are taken apart into products and lengths.

    All rows are moved by the mean of the support vectors, which changes no distance, and leaves
    small numbers, of which little is lost where they are rounded.
    """
    if kernel != "rbf":
        raise InputError(f"a kernel {kernel!r} is no layer; choose 'rbf'.")
    keras = import_keras()
    vectors = vectors.astype(np.float64)
    centre = vectors.mean(axis=0).astype(np.float32)
    vectors = vectors - centre
    rows = keras.layers.Rescaling(1.0, (-centre).tolist(), name=name_of("centred"))(rows)
    products = _dense(rows, name_of("products"), -2.0 * vectors.T, (vectors**2).sum(axis=1))
    squares = named(keras.ops.square(rows), name_of("squares"))
    lengths = named(keras.ops.sum(squares, axis=1, keepdims=True), name_of("lengths"))
    distances = keras.layers.Add(name=name_of("distances"))([products, lengths])
    scaled = keras.layers.Rescaling(-float(gamma), name=name_of("gamma"))(distances)
    alike = keras.layers.Activation("exponential", name=name_of("alike"))(scaled)
    if len(counts) == 2:
        return _dense(alike, name_of("score"), coefficients.T, intercepts)
    ends = np.cumsum(counts)
    own = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
    duels = [(i, j) for i in range(len(counts)) for j in range(i + 1, len(counts))]
    weights, for_first = np.zeros((len(vectors), len(duels))), np.zeros((len(duels), len(counts)))
    for number, (i, j) in enumerate(duels):
        weights[own[i], number] = coefficients[j - 1, own[i]]
        weights[own[j], number] = coefficients[i, own[j]]
        for_first[number, [i, j]] = 1.0, -1.0
    scores = _dense(alike, name_of("duels"), weights, intercepts)
    sums = _dense(scores, name_of("sums"), for_first, np.zeros(len(counts)))
    is_won = named(keras.ops.greater_equal(scores, 0.0), name_of("is_won"))
    won = named(keras.ops.cast(is_won, "float32"), name_of("won"))
    # A duel that the first does not win, the second wins.
    votes = _dense(won, name_of("votes"), for_first, (for_first < 0).sum(axis=0).astype(float))
    sizes = named(keras.ops.abs(sums), name_of("sizes"))
    thirds = keras.layers.Rescaling(3.0, 3.0, name=name_of("thirds"))(sizes)
    clearly = named(keras.ops.divide(sums, thirds), name_of("clearly"))
    return keras.layers.Add(name=name_of("votes_and_sums"))([votes, clearly])


LAYERS: Mapping[str, Callable[..., Any]] = {
    "linear": _linear,
    "rectify": _rectify,
    "softmax": _softmax,
    SHARES: _shares,
    "kernel_machine": _kernel_machine,
}
