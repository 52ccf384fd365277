"""Learning-rate schedules and stopping, as functions of where training is and what it measured.

None of them keeps a state, so a resumed training goes on exactly as one that never stopped.
"""

import bisect
import math
from collections.abc import Sequence

from cvpipe.errors import InputError, check_name

SCHEDULES = ("constant", "cosine", "step", "plateau", "cyclic")
# Shares of the epochs after which the schedule "step" divides the rate by 10.
DROPS = (1 / 2, 3 / 4)


def rate_factor(
    schedule: str, epoch: float, epochs: int, warmup_epochs: float = 0.0, cycles: int = 1
) -> float:
    """Tell what the learning rate is multiplied by in one step.

    `"constant"` stays at 1. `"cosine"` falls from 1 to 0 along half a cosine, without restarts.
    `"cyclic"` does so `cycles` times, from 1 again each time. `"step"` is 1, after half of the
    epochs 1/10 and after three quarters 1/100. `"plateau"` is 1: what it falls by depends on
    losses, see `plateau_factor`.

    The place of a step is its END: with `n` steps per epoch the first is at `1 / n`, and the
    last at `epochs`. So the first step of a warm-up moves the weights, and a drop acts from the
    first step behind it; the last step of a half cosine has the factor 0, as in the source.

    The warm-up rises linearly from 0 and multiplies the schedule. The first half cosine starts
    where the warm-up ends, so that it starts from the full rate.

    Args:
        schedule: One of `SCHEDULES`.
        epoch: Where the step ends, in epochs: above 0, up to `epochs`.
        epochs: Epochs of the whole training.
        warmup_epochs: Length of the warm-up, in epochs; 0 for none.
        cycles: Half cosines of `"cyclic"`; they end where `snapshot_epochs` says.

    Returns:
        Factor in [0, 1].

    Raises:
        InputError: The schedule is unknown, the step is outside of the training, the cycles do
            not fit into the epochs, or the warm-up is negative or as long as the training or the
            first cycle.

    Example:
        >>> [round(rate_factor("cyclic", epoch, 4, cycles=2), 3) for epoch in (0.5, 1, 2, 2.5)]
        [0.854, 0.5, 0.0, 0.854]

    References:
        Warm-up: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2. Cosine:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
        eq. 5. Step: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
        section 4.2. Cyclic: Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR
        2017, eq. 2, which counts steps from 0 and lets the last cycle be shorter.
    """
    check_name("schedule", schedule, SCHEDULES)
    ends = snapshot_epochs(epochs, cycles if schedule == "cyclic" else 1)
    if not 0 < epoch <= epochs:
        raise InputError(
            f"a step cannot end at epoch {epoch} of {epochs}; give the end of the step, which is "
            f"above 0 and at most {epochs}."
        )
    if not 0 <= warmup_epochs < ends[0]:
        raise InputError(
            f"warmup_epochs must be at least 0 and below {ends[0]}, where the training or its "
            f"first cycle ends, not {warmup_epochs}; shorten the warm-up or train longer."
        )
    warmup = min(1.0, epoch / warmup_epochs) if warmup_epochs else 1.0
    if schedule in ("cosine", "cyclic"):
        return warmup * _half_cosine(epoch, (warmup_epochs, *ends))
    if schedule == "step":
        return warmup / 10 ** sum(epoch > share * epochs for share in DROPS)
    return warmup


def plateau_factor(val_losses: Sequence[float], patience: int = 5, factor: float = 0.1) -> float:
    """Tell what the learning rate is multiplied by after epochs with these validation losses.

    The history is replayed: whenever the lowest loss is not beaten for `patience` epochs in a
    row, the rate is multiplied by `factor`, and the counting starts again; the lowest loss stays.
    A loss that is not a finite number beats nothing.

    Args:
        val_losses: Validation loss of each epoch so far.
        patience: Epochs without a new lowest loss that are waited for, at least 1.
        factor: What one drop multiplies by, in (0, 1).

    Returns:
        Factor in (0, 1].

    Raises:
        InputError: `patience` or `factor` is out of range.

    Example:
        >>> plateau_factor([0.9, 0.5, 0.6, 0.5], patience=2)
        0.1

    References:
        CS231n 2017, lectures 7 and 9.
    """
    _check_patience(patience)
    if not 0 < factor < 1:
        raise InputError(f"factor must be between 0 and 1, not {factor}; 0.1 divides by 10.")
    drops, waited, best = 0, 0, math.inf
    for loss in val_losses:
        waited += 1
        if _is_lower(loss, best):
            waited, best = 0, loss
        elif waited == patience:
            waited, drops = 0, drops + 1
    return factor**drops


def snapshot_epochs(epochs: int, cycles: int) -> tuple[int, ...]:
    """Tell after which epochs the cycles of the schedule `"cyclic"` end.

    Cycles are of whole epochs, and where these cannot be parted equally, some cycles are one
    epoch longer.

    Args:
        epochs: Epochs of the whole training.
        cycles: From 1 to `epochs`.

    Returns:
        For each cycle the number of epochs trained at its end; the last is `epochs`.

    Raises:
        InputError: There is no epoch or no cycle, or there are more cycles than epochs.

    Example:
        >>> snapshot_epochs(10, 4)
        (2, 5, 7, 10)
    """
    if epochs < 1:
        raise InputError(f"epochs must be at least 1, not {epochs}.")
    if not 1 <= cycles <= epochs:
        raise InputError(
            f"{epochs} epochs cannot be parted into {cycles} cycles; choose from 1 to {epochs} "
            "cycles, or train longer."
        )
    return tuple(number * epochs // cycles for number in range(1, cycles + 1))


def stops_early(val_losses: Sequence[float], patience: int) -> bool:
    """Tell whether training ends: the lowest validation loss is `patience` epochs old.

    Args:
        val_losses: Validation loss of each epoch so far; what is not a finite number is never
            the lowest.
        patience: Epochs without a new lowest loss that are waited for, at least 1.

    Raises:
        InputError: `patience` is below 1.

    References:
        CS231n 2017, lecture 7.
    """
    _check_patience(patience)
    best = _first_lowest(val_losses)  # -1 before there is one, as if it came before all epochs
    return len(val_losses) - 1 - best >= patience


def best_epoch(val_losses: Sequence[float]) -> int:
    """Find the epoch with the lowest validation loss, the first of equals.

    Args:
        val_losses: Validation loss of each epoch; what is not a finite number is never the lowest.

    Returns:
        Position in `val_losses`, counted from 0.

    Raises:
        InputError: No loss is a finite number.
    """
    best = _first_lowest(val_losses)
    if best < 0:
        raise InputError(
            f"none of {len(val_losses)} validation losses is a finite number, so no epoch is the "
            "best; train with a lower learning rate."
        )
    return best


def _half_cosine(epoch: float, ends: tuple[float, ...]) -> float:
    """Fall from 1 to 0 between any two neighbours of `ends`; before the first of them, stay at 1.

    An end belongs to the cycle before it: the step that ends there is that cycle's last.
    """
    number = max(bisect.bisect_left(ends, epoch), 1)
    start, end = ends[number - 1], ends[number]
    progress = max(epoch - start, 0.0) / (end - start)
    return (1 + math.cos(math.pi * progress)) / 2


def _first_lowest(losses: Sequence[float]) -> int:
    lowest, best = -1, math.inf
    for position, loss in enumerate(losses):
        if _is_lower(loss, best):
            lowest, best = position, loss
    return lowest


def _is_lower(loss: float, best: float) -> bool:
    return math.isfinite(loss) and loss < best


def _check_patience(patience: int) -> None:
    if patience < 1:
        raise InputError(f"patience must be at least 1 epoch, not {patience}.")
