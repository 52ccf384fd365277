"""Judgements on a network and its training, from numbers alone: no Keras, nothing runs here.

Each function returns a `Check`, which a report can show and a run can store. The numbers come
from `cvpipe.models.probes` and from the training itself. The thresholds say what is certainly
wrong; they are wide on purpose, since a warning that is often false is soon ignored.

Source: CS231n 2017, lectures 3 (gradient check), 6 (babysitting the learning process) and 7.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binom

from cvpipe.errors import InputError

NOTHING_TO_DO = "Nothing to do."

# Gaussian logits of standard deviation s raise the loss of a guess by s^2 / 2: 0.5 lets s reach 1.
INITIAL_LOSS_TOLERANCE = 0.5
INITIAL_LOSS_FRACTION = 0.2
# The right class gets exp(-0.05) = 95 %: only images that were learned by heart reach it.
DECAY_TOLERANCE = 0.1  # a step of 1e-7 of a kernel is rounded in float32
FITTED_LOSS = 0.05
SHUFFLED_CONFIDENCE = 0.999
# A forgotten factor or term is an error near 1; float32 and a missed kink stay below 0.01.
GRADIENT_TOLERANCE = 1e-2
UPDATE_RATIO = 1e-3
UPDATE_RATIO_RANGE = (1e-5, 1e-1)
DEAD_IN_LAYER = 0.4
DEAD_OVERALL = 0.2
ACTIVATION_RANGE = (1e-3, 1e3)
EXPLODED = 3.0
ABORT_WINDOW = 10  # steps; a single batch may have a loss of three times the first by bad luck
SHORTEST_CURVE = 4  # epochs
LARGE_GAP = 0.05

CURVE_ADVICE = {
    "good": NOTHING_TO_DO,
    "fitted": NOTHING_TO_DO,
    "too short to tell": "Train for at least four epochs before you judge the curve.",
    "exploding": "The loss exploded: lower the learning rate to a tenth.",
    "rising": "The loss ends above its start: lower the learning rate to a tenth.",
    "too slow": "The loss hardly falls, or along a straight line: raise the learning rate, "
    "threefold at a time.",
    "flat start": "The loss stood still and then suddenly fell: initialise the weights better "
    "(He's method for ReLU) or add batch normalisation.",
    "high plateau": "The loss fell fast and then stuck: lower the learning rate, or decay it from "
    "the epoch where the plateau begins.",
}
GOOD_CURVES = ("good", "fitted", "too short to tell")


@dataclasses.dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        name: What was checked, as an identifier.
        passed: Whether the value is as expected.
        value: What was found: a finite number, or NaN where there is none.
        expected: What `value` should be, in words.
        advice: What to do now, in one sentence.
    """

    name: str
    passed: bool
    value: float
    expected: str
    advice: str


def as_dicts(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Make checks ready for JSON, which has no NaN: a value that is not finite becomes `None`."""
    rows = [dataclasses.asdict(check) for check in checks]
    return [row if math.isfinite(row["value"]) else {**row, "value": None} for row in rows]


def check_initial_loss(loss: float, num_classes: int) -> Check:
    """Judge the loss before training: that of a guess, the logarithm of the number of classes.

    It may differ by 0.5 or by 20 %, whichever is more. Far above, the logits are large, so the
    network starts out sure and wrong; far below, it knows the labels already.

    Args:
        loss: Mean cross-entropy of the untrained network, in nats, without regularisation.
        num_classes: At least 2.

    Raises:
        InputError: There are fewer than two classes.

    References:
        CS231n 2017, lecture 6.
    """
    if num_classes < 2:
        raise InputError(f"num_classes must be at least 2, not {num_classes}; merge no classes.")
    guess = math.log(num_classes)
    tolerance = max(INITIAL_LOSS_TOLERANCE, INITIAL_LOSS_FRACTION * guess)
    passed = abs(loss - guess) <= tolerance
    if loss < guess:
        advice = "Find out how the untrained network knows the labels: from weights or inputs."
    else:
        advice = "Make the last layer's weights smaller, and the inputs centred and of unit scale."
    return _judge("initial_loss", passed, loss, f"{guess:.2f} ± {tolerance:.2f}", advice)


def check_weight_decay(shrinkage: float, expected: float) -> Check:
    """Judge whether weight decay reaches the weights.

    It acts on the weights and not on the loss, so the lectures' test, that the loss rises with
    regularisation, would see nothing of it.

    Args:
        shrinkage: By which share of their size one step without a gradient shrank the kernels.
        expected: Learning rate times weight decay.

    Returns:
        Its value is the shrinkage, as a multiple of what is expected.

    References:
        CS231n 2017, lecture 6, in place of its check of regularisation.
    """
    ratio = shrinkage / expected
    advice = "Find out why the optimiser leaves the kernels as they are, or shrinks them too much."
    passed = abs(ratio - 1) <= DECAY_TOLERANCE
    return _judge("weight_decay", passed, ratio, f"1 ± {DECAY_TOLERANCE}", advice)


def check_overfit(final_loss: float, accuracy: float) -> Check:
    """Judge whether a handful of images could be learned by heart.

    Args:
        final_loss: Mean cross-entropy on them after training without regularisation, in nats;
            it must be below 0.05.
        accuracy: On the same images; it must be 1.

    References:
        CS231n 2017, lecture 6.
    """
    _check_fraction("accuracy", accuracy)
    advice = (
        "Do not train on more images yet: look for a learning rate that is far off, frozen "
        "layers, weights of zero, or targets that do not belong to their images."
    )
    passed = final_loss < FITTED_LOSS and accuracy == 1
    expected = f"below {FITTED_LOSS} with every image right"
    return _judge("overfit", passed, final_loss, expected, advice)


def check_shuffled_labels(accuracy: float, chance: float, num_images: int) -> Check:
    """Judge a network that was trained on shuffled labels: on new images it can only guess.

    The accuracy must not be above the one-sided 99.9 % bound of a binomial distribution.

    Args:
        accuracy: With the true labels of images that the network was not trained on.
        chance: Accuracy of a guess: the share of the most frequent class among those images.
        num_images: How many they are.

    Raises:
        InputError: A share is outside 0 to 1, or there is no image.
    """
    _check_fraction("accuracy", accuracy)
    _check_fraction("chance", chance)
    _check_count("num_images", num_images)
    bound = int(binom.ppf(SHUFFLED_CONFIDENCE, num_images, chance))
    advice = (
        "Do not trust any accuracy yet: find out how the labels of the scored images reach the "
        "network, by images in both parts, by weights that saw them, or by unshuffled targets."
    )
    # Rounded, since a mean of 0 and 1 in float32 is not exactly a count over num_images.
    passed = round(accuracy * num_images) <= bound
    expected = f"at most {bound / num_images:.3f}, which guessing reaches"
    return _judge("shuffled_labels", passed, accuracy, expected, advice)


def check_gradient(relative_error: float, num_kinks: int = 0) -> Check:
    """Judge a comparison of analytic with numeric gradients.

    The tolerance of 0.01 holds for a network in `float32` as well; in `float64`, as
    `probes.gradient_error` computes, a right gradient is below it by orders of magnitude.

    Args:
        relative_error: Largest `|a - n| / max(|a|, |n|, floor)`; NaN when nothing was compared.
        num_kinks: Entries that were left out because the loss has a kink there.

    References:
        CS231n 2017, lecture 3, and its course notes on gradient checks: above 0.01 the
        gradient is usually wrong.
    """
    if math.isnan(relative_error) and num_kinks:
        advice = "Compare on fewer images or with a smaller step, since every entry was at a kink."
    else:
        advice = "Correct the gradient of the layer or loss that was written by hand."
    passed = relative_error < GRADIENT_TOLERANCE
    return _judge("gradient", passed, relative_error, f"below {GRADIENT_TOLERANCE}", advice)


def check_update_ratios(ratios: Mapping[str, float]) -> Check:
    """Judge how far one step moved the weights of each layer, relative to their size.

    About 1e-3 is right, but the tolerance is wide: every layer must be in 1e-5 to 1e-1.

    Args:
        ratios: Of `probes.update_ratios`, by layer.

    Returns:
        Its value is the median; the advice names the layer that is furthest off.

    Raises:
        InputError: There is no ratio.

    References:
        CS231n 2017, lecture 6.
    """
    _check_not_empty("ratios", ratios)
    lowest, highest = UPDATE_RATIO_RANGE
    worst = max(ratios, key=lambda name: _decades(ratios[name] / UPDATE_RATIO))
    ratio = ratios[worst]
    passed = lowest <= ratio <= highest
    if ratio < lowest:
        advice = f"Raise the learning rate, or see why no gradient reaches {worst} ({ratio:.1e})."
    else:
        advice = f"Lower the learning rate: a step moves {worst} by {ratio:.1e} of its size."
    expected = f"about {UPDATE_RATIO:g}, each layer from {lowest:g} to {highest:g}"
    return _judge("update_ratios", passed, float(np.median([*ratios.values()])), expected, advice)


def check_dead_relus(shares: Mapping[str, float]) -> Check:
    """Judge how many ReLUs are zero for every image, so that no gradient passes them.

    Shares of 10 to 20 % are seen in networks that work.

    Args:
        shares: Of `probes.dead_relu_shares`, by layer; may be empty.

    Returns:
        Its value is the mean over the layers; it passes up to 0.2, with at most 0.4 in each
        layer. Without any ReLU it is NaN and passes.

    References:
        CS231n 2017, lecture 6.
    """
    expected = f"at most {DEAD_OVERALL} on average and {DEAD_IN_LAYER} in each layer"
    if not shares:
        return _judge("dead_relus", True, math.nan, expected, NOTHING_TO_DO)
    mean = float(np.mean([*shares.values()]))
    worst = max(shares, key=lambda name: math.inf if math.isnan(shares[name]) else shares[name])
    advice = (
        f"Lower the learning rate first, then initialise better or use leaky ReLUs: in {worst} "
        f"{shares[worst]:.0%} are dead."
    )
    passed = mean <= DEAD_OVERALL and shares[worst] <= DEAD_IN_LAYER
    return _judge("dead_relus", passed, mean, expected, advice)


def check_activations(means: Mapping[str, float], stds: Mapping[str, float]) -> Check:
    """Judge whether activations keep their spread from the first layer to the last.

    Args:
        means: Of `probes.activation_statistics`, by layer, the first layer first.
        stds: Standard deviations of the same layers in the same order.

    Returns:
        Its value is the spread of the layer that is furthest off, as a multiple of the first
        layer's: collapsed below 1e-3, exploded above 1e3 or where a number is not finite.

    Raises:
        InputError: There is no layer, or the two name different layers.

    References:
        CS231n 2017, lecture 6.
    """
    _check_not_empty("stds", stds)
    if list(means) != list(stds):
        raise InputError(
            f"means are of the layers {list(means)}, but stds of {list(stds)}; measure both in "
            "the same network."
        )
    first = next(iter(stds.values()))
    # A first layer without spread has collapsed, and so has what follows.
    spreads = {
        name: (std / first if first else 0.0) if math.isfinite(means[name]) else math.nan
        for name, std in stds.items()
    }
    worst = max(spreads, key=lambda name: _decades(spreads[name]))
    spread, (lowest, highest) = spreads[worst], ACTIVATION_RANGE
    remedy = "initialise with He's method for ReLU, or add batch normalisation."
    advice = f"Activations {'collapse' if spread < lowest else 'explode'} in {worst}: {remedy}"
    expected = f"{lowest:g} to {highest:g} times the first layer's"
    return _judge("activations", lowest <= spread <= highest, spread, expected, advice)


def diagnose_curve(losses: Sequence[float]) -> Check:
    """Read the shape of a training curve.

    Args:
        losses: Mean training loss of each epoch, positive.

    Returns:
        Its value is the last loss as a fraction of the first. It passes if the shape is good,
        or if the curve is too short to tell (below four epochs) and has not exploded.

    Raises:
        InputError: There is no loss.

    References:
        CS231n 2017, lecture 6.
    """
    shape = curve_shape(losses)
    with np.errstate(all="ignore"):
        ratio = float(np.divide(losses[-1], losses[0]))
    expected = "falling fast, then slower, and well below 1 in the end"
    passed = shape in GOOD_CURVES
    return _build("loss_curve", passed, ratio, expected, CURVE_ADVICE[shape])


def curve_shape(losses: Sequence[float]) -> str:
    """Name the shape of a training curve.

    The shapes are told apart by the progress: the part of the whole fall that an epoch has
    reached. Along a straight line it grows evenly; a good curve is ahead of that, a flat start is
    behind.

    Args:
        losses: Mean training loss of each epoch, positive.

    Returns:
        A key of `CURVE_ADVICE`.

    Raises:
        InputError: There is no loss.
    """
    _check_not_empty("losses", losses)
    curve = np.asarray(losses, np.float64)
    first, last = curve[0], curve[-1]
    if not np.isfinite(curve).all() or curve.max() > EXPLODED * first:
        return "exploding"
    if len(curve) < SHORTEST_CURVE:
        return "too short to tell"
    if last < FITTED_LOSS:
        return "fitted"
    if last > 1.05 * first:
        return "rising"
    if last > 0.9 * first:
        return "too slow"
    return _shape_of_fall((first - curve) / (first - last), remaining=last / first)


def _shape_of_fall(progress: np.ndarray, remaining: float) -> str:
    """Name the shape of a curve that fell by at least a tenth.

    Args:
        progress: From 0 at the first epoch to 1 at the last.
        remaining: The last loss as a fraction of the first. Where less than half remains, neither
            a straight line nor a plateau is a reason to complain.
    """
    third = len(progress) // 3
    if progress[: max(2, third) + 1].max() < 0.1:
        return "flat start"
    if remaining <= 0.5:
        return "good"
    ahead = progress - np.linspace(0, 1, len(progress))
    # The mean is steady under noise, but a curve of steps can be ahead and behind in turn.
    if abs(ahead.mean()) < 0.07 and np.abs(ahead).max() < 0.2:
        return "too slow"
    early = progress[max(1, third) :][:2].mean()
    return "high plateau" if early > 0.9 else "good"


def diagnose_gap(train_accuracy: float, val_accuracy: float, num_val: int) -> Check:
    """Read the gap between the accuracies on training and on validation images.

    It is large above 0.05, if it also exceeds two standard errors of the validation accuracy.
    The gap itself is not to be minimised: a network that overfits a little often has the best
    validation accuracy, which alone counts.

    Args:
        train_accuracy: On the training images.
        val_accuracy: On the validation images.
        num_val: Number of validation images.

    Returns:
        Its value is the gap; it fails only if that is large.

    Raises:
        InputError: An accuracy is outside 0 to 1, or there is no image.

    References:
        CS231n 2017, lectures 6 and 7.
    """
    _check_fraction("train_accuracy", train_accuracy)
    _check_fraction("val_accuracy", val_accuracy)
    _check_count("num_val", num_val)
    gap = train_accuracy - val_accuracy
    noise = 2 * math.sqrt(val_accuracy * (1 - val_accuracy) / num_val)
    limit = max(LARGE_GAP, noise)
    if gap > limit:
        advice = (
            "Add regularisation, augmentation or images, and keep what raises the validation "
            "accuracy, whatever the gap."
        )
    elif gap <= noise:
        advice = "If the accuracy does not suffice, try a larger network or longer training."
    else:
        advice = "Keep this gap, since a little overfitting often gives the best accuracy."
    return _build("gap", gap <= limit, gap, f"at most {limit:.3f}", advice)


def must_abort(losses_per_step: Sequence[float], first: float) -> str:
    """Say why a training is not worth going on with.

    Args:
        losses_per_step: Loss of every step, or of the latest only.
        first: Mean loss of the first ten steps.

    Returns:
        `""`, or the reason: a loss is not finite, or the mean of the last ten is above three
        times `first`. Fewer than ten are not averaged.

    References:
        CS231n 2017, lecture 6, which compares single costs; batches are noisy.
    """
    if not np.isfinite([*losses_per_step, first]).all():
        return "the loss is not finite"
    if len(losses_per_step) < ABORT_WINDOW:
        return ""
    latest = float(np.mean(losses_per_step[-ABORT_WINDOW:]))
    if latest <= EXPLODED * first:
        return ""
    return (
        f"the loss rose to {latest:.3g}, above {EXPLODED:g} times the {first:.3g} of the first "
        "steps"
    )


def _judge(name: str, passed: bool, value: float, expected: str, advice: str) -> Check:
    """Build a check whose advice is for its failure."""
    return _build(name, passed, value, expected, NOTHING_TO_DO if passed else advice)


def _build(name: str, passed: bool, value: float, expected: str, advice: str) -> Check:
    finite = float(value) if math.isfinite(value) else math.nan
    return Check(name, bool(passed), finite, expected, advice)


def _decades(ratio: float) -> float:
    """Return the powers of ten between a ratio and 1; infinite if there is no such number."""
    return abs(math.log10(ratio)) if 0 < ratio < math.inf else math.inf


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} must be from 0 to 1, not {value}; divide by the images.")


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, not {value}; measure on some images.")


def _check_not_empty(name: str, values: Sequence[float] | Mapping[str, float]) -> None:
    if not len(values):
        raise InputError(f"{name} is empty, but at least one number is needed; measure first.")
