"""Calibration: probabilities that mean what they say.

A classifier that says 90 % should be right nine times in ten. Networks usually are right less
often than they say (Guo et al. 2017). A calibration is a small function from probabilities to
probabilities, fitted on images that the classifier was not fitted on.

Everything here works on probabilities. Their logarithms are the logits but for one number per
image, which a softmax ignores, so a network and a support vector machine are treated alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cvpipe.errors import InputError, check_name
from cvpipe.numerics import softmax

# Of what counts (neighbours, trees), 0 means seen never, not impossible. As in the log loss.
FLOOR = 1e-7
# An exported network scales its logits, and knows no floor. Its softmax in float32 is exact down
# to here; only where logits are more than 87 apart do the two differ, and the parity check sees it.
NETWORK_FLOOR = float(np.finfo(np.float32).tiny)
# Slopes stay positive, so that a temperature never turns the order of the classes around.
SLOPE_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class Scaling:
    """A calibration `softmax(slopes * log(p) + offsets)`.

    Attributes:
        slopes: One per class. All equal: one over the temperature.
        offsets: One per class.
        floor: Smaller probabilities are taken as this: 0 has no logarithm.
    """

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]
    floor: float = FLOOR

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities of shape `(n, num_classes)`."""
        if self.changes_nothing:
            return probabilities
        return softmax(floored_log(probabilities, self.floor) * self.slopes + self.offsets)

    @property
    def changes_nothing(self) -> bool:
        """Whether it gives back what it is given."""
        return set(self.slopes) == {1.0} and set(self.offsets) == {0.0}

    @property
    def temperature(self) -> float:
        """What logits are divided by; NaN where every class has a slope of its own."""
        return 1 / self.slopes[0] if len(set(self.slopes)) == 1 else float("nan")


@dataclass(frozen=True)
class Isotonic:
    """A calibration by one rising curve per class; the rows are made to sum to 1 again.

    Attributes:
        inputs: Per class, rising probabilities.
        outputs: Per class, what they become; between them lie straight lines.
    """

    inputs: tuple[tuple[float, ...], ...]
    outputs: tuple[tuple[float, ...], ...]

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities of shape `(n, num_classes)`."""
        curves = zip(probabilities.T, self.inputs, self.outputs, strict=True)
        values = np.stack([np.interp(column, x, y) for column, x, y in curves], axis=1)
        return values / values.sum(axis=1, keepdims=True)


Calibration = Scaling | Isotonic


def fit_calibration(
    method: str, probabilities: np.ndarray, targets: np.ndarray, floor: float = FLOOR
) -> Calibration:
    """Fit a calibration on images that the classifier was not fitted on.

    *Temperature*: one slope for all classes, which keeps the order of the classes and so every
    predicted class. *Vector*: a slope and an offset for each class. Both have the smallest log
    loss; a penalty of half the squared distance from "change nothing", which weighs about as
    much as a few images, keeps them finite where few images are all named correctly. *Isotonic*:
    for each class against all others the rising curve of least squares; it bends freely, wants
    many images, and its ends are kept `1 / (n + 2)` away from 0 and 1, because no number of
    images shows that something never happens.

    Answers that are the same for all images say nothing that could be calibrated and are left
    alone, and so is everything where there is no image.

    Args:
        method: `"none"`, `"temperature"`, `"vector"` or `"isotonic"`.
        probabilities: `(n, num_classes)`; rows sum to 1.
        targets: Positions of the true classes, `(n,)`.
        floor: See `Scaling`.

    Raises:
        InputError: The method is unknown, or the numbers of rows differ.

    References:
        Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017,
        section 4.2 (temperature and vector scaling). Zadrozny and Elkan, "Transforming
        Classifier Scores into Accurate Multiclass Probability Estimates", KDD 2002 (isotonic
        regression, one class against all others).
    """
    fit = METHODS[check_name("calibration", method, METHODS)]
    if len(probabilities) != len(targets):
        raise InputError(
            f"{len(probabilities)} rows of probabilities and {len(targets)} targets; pass one "
            "target for each row."
        )
    if not len(probabilities) or (probabilities == probabilities[0]).all():
        fit = METHODS["none"]
    return fit(np.asarray(probabilities, dtype=np.float64), targets, floor)


def average_temperatures(calibrations: Sequence[Scaling]) -> Scaling:
    """Average temperatures that were fitted on parts of the images (their geometric mean).

    Args:
        calibrations: Of the method `"temperature"`, for the same classes; at least one.
    """
    slope = float(np.exp(np.mean([np.log(c.slopes[0]) for c in calibrations])))
    num_classes = len(calibrations[0].slopes)
    return Scaling((slope,) * num_classes, (0.0,) * num_classes, calibrations[0].floor)


def calibration_to_dict(calibration: Calibration) -> dict[str, Any]:
    """Write a calibration as lists of numbers, for JSON."""
    return asdict(calibration)


def calibration_from_dict(values: Mapping[str, Any]) -> Calibration:
    """Read what `calibration_to_dict` wrote; further entries are ignored."""
    if "slopes" in values:
        return Scaling(tuple(values["slopes"]), tuple(values["offsets"]), values["floor"])
    inputs, outputs = (tuple(map(tuple, values[name])) for name in ("inputs", "outputs"))
    return Isotonic(inputs, outputs)


def _fit_none(probabilities: np.ndarray, _: np.ndarray, floor: float) -> Scaling:
    num_classes = probabilities.shape[1]
    return Scaling((1.0,) * num_classes, (0.0,) * num_classes, floor)


def _fit_temperature(probabilities: np.ndarray, targets: np.ndarray, floor: float) -> Scaling:
    num_classes = probabilities.shape[1]
    logs, share = floored_log(probabilities, floor), np.ones((1, num_classes))
    (slope,) = _minimise(logs, targets, share, num_offsets=0)
    return Scaling((float(slope),) * num_classes, (0.0,) * num_classes, floor)


def _fit_vector(probabilities: np.ndarray, targets: np.ndarray, floor: float) -> Scaling:
    num_classes = probabilities.shape[1]
    logs, share = floored_log(probabilities, floor), np.eye(num_classes)
    values = _minimise(logs, targets, share, num_offsets=num_classes)
    slopes, offsets = values[:num_classes].tolist(), values[num_classes:].tolist()
    return Scaling(tuple(slopes), tuple(offsets), floor)


def _minimise(
    logs: np.ndarray, targets: np.ndarray, share: np.ndarray, num_offsets: int
) -> np.ndarray:
    """Find slopes and offsets of the smallest penalised log loss, which is strictly convex.

    Args:
        logs: Logarithms of probabilities, `(n, num_classes)`.
        targets: `(n,)`.
        share: `(num_slopes, num_classes)`: which class has which slope.
        num_offsets: Number of classes, or 0 for none.
    """
    from scipy.optimize import minimize

    one_hot = np.eye(logs.shape[1])[targets]
    start = np.concatenate([np.ones(len(share)), np.zeros(num_offsets)])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        slopes, offsets = values[: len(share)], values[len(share) :]
        fitted = softmax(logs * (slopes @ share) + (offsets if num_offsets else 0.0))
        likelihoods = np.maximum((fitted * one_hot).sum(axis=1), NETWORK_FLOOR)
        error = fitted - one_hot
        by_slope = share @ (error * logs).sum(axis=0)
        by_offset = error.sum(axis=0)[:num_offsets]
        away = values - start
        value = -np.log(likelihoods).sum() + away @ away / 2
        return float(value), np.concatenate([by_slope, by_offset]) + away

    bounds = [SLOPE_BOUNDS] * len(share) + [(None, None)] * num_offsets
    options = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 1000}
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(result.x)


def _fit_isotonic(probabilities: np.ndarray, targets: np.ndarray, _: float) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    end = 1 / (len(targets) + 2)
    inputs, outputs = [], []
    for target, column in enumerate(probabilities.T):
        curve = IsotonicRegression(y_min=end, y_max=1 - end)
        curve.fit(column, (targets == target).astype(np.float64))
        inputs.append(tuple(curve.X_thresholds_.tolist()))
        outputs.append(tuple(curve.y_thresholds_.tolist()))
    return Isotonic(tuple(inputs), tuple(outputs))


METHODS: dict[str, Callable[[np.ndarray, np.ndarray, float], Calibration]] = {
    "none": _fit_none,
    "temperature": _fit_temperature,
    "vector": _fit_vector,
    "isotonic": _fit_isotonic,
}


def floored_log(probabilities: np.ndarray, floor: float) -> np.ndarray:
    """Take logarithms of probabilities; smaller ones than the floor count as that."""
    return np.log(np.maximum(probabilities, floor))
