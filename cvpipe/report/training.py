"""How the networks were trained: curves, checks and the search of a learning rate, in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from cvpipe.plots.learning_rate import plot_rate_test
from cvpipe.plots.numbers import NOTHING, format_count, format_metric, format_percent
from cvpipe.plots.search import value_in_words
from cvpipe.plots.svg import build_axes, figure_to_svg
from cvpipe.plots.training import PANELS, plot_training

HISTORY_COLUMNS = (
    *("epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy"),
)
METRICS = {"loss": "log_loss", "accuracy": "accuracy"}  # whose digits the figures take
# Of each check, what it is about, and what its value is.
CHECKS = {
    "initial_loss": (
        "loss of an untrained head",
        "mean loss; one that only guesses has the logarithm of the number of classes",
    ),
    "weight_decay": (
        "weight decay reaches the weights",
        "what a step without a gradient takes away, as a multiple of what it should",
    ),
    "overfit": ("a handful of images learned by heart", "loss of these images in the end"),
    "shuffled_labels": (
        "nothing to learn from shuffled labels",
        "accuracy on images that were not learned from",
    ),
    "gradient": ("gradient as by finite differences", "largest relative error"),
    "update_ratios": (
        "length of a training step",
        "change of the weights relative to their size, median over the layers",
    ),
    "dead_relus": (
        "units that never respond",
        "share of ReLUs that are zero for every image, mean over the layers",
    ),
    "activations": (
        "signal kept from layer to layer",
        "spread of the layer that is furthest off, as a multiple of the first layer's",
    ),
    "loss_curve": ("shape of the training loss", "last loss as a fraction of the first"),
    "gap": (
        "gap between training and validation accuracy",
        "accuracy on training minus on validation images",
    ),
}


@dataclass(frozen=True)
class CheckResult:
    """What a check of a network found.

    Attributes:
        when: `"before"` or `"after"` training.
        name: What was checked, as an identifier; one of `CHECKS`, or another.
        passed: Whether the value is as expected.
        value: What was found; NaN where there is no number.
        expected: What it should be, in words.
        advice: What to do when it failed.
    """

    when: str
    name: str
    passed: bool
    value: float
    expected: str
    advice: str


@dataclass(frozen=True)
class RateTest:
    """A test of learning rates: the loss while the rate was raised from step to step.

    Attributes:
        rates: Learning rate of each step, above 0, rising.
        losses: As many losses.
        smoothed: As many smoothed losses.
        suggestion: The suggested rate; NaN where none can be suggested.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    suggestion: float


@dataclass(frozen=True)
class Training:
    """How the network of a contender was trained.

    Attributes:
        contender: Name of the contender.
        history: One row per epoch, `HISTORY_COLUMNS`; the columns of val are NaN where there were
            no images to stop by.
        kept: The epoch whose weights were kept.
        checks: What the network was put to; may be empty.
        rate_test: `None` where there was none.
    """

    contender: str
    history: pd.DataFrame
    kept: int
    checks: Sequence[CheckResult] = ()
    rate_test: RateTest | None = None


@dataclass(frozen=True)
class TrainingSection:
    """What the section about one contender shows.

    Attributes:
        contender: Name of the contender.
        text: How long it was trained, and which epoch was kept.
        loss_figure: SVG; the loss of each epoch, to stand beside the accuracy.
        accuracy_figure: SVG; the accuracy of each epoch.
        epochs: Whether the epoch was kept, and its figures as text: number, learning rate, loss
            and accuracy on training images, and on validation images.
        checks_text: How many checks passed, and which failed; `""` without checks.
        checks: What was checked, when and what the value is, whether it passed, the value, what
            was expected and what to do; that is `""` where nothing is.
        rate_text: What the test of learning rates says; `""` without one.
        rate_figure: SVG; `""` where there is nothing to draw.
    """

    contender: str
    text: str
    loss_figure: str
    accuracy_figure: str
    epochs: list[tuple[bool, list[str]]]
    checks_text: str
    checks: list[tuple[str, str, bool, str, str, str]]
    rate_text: str
    rate_figure: str

    @property
    def has_failed(self) -> bool:
        """Tell whether any check failed."""
        return not all(passed for _, _, passed, _, _, _ in self.checks)


def training_section(training: Training) -> TrainingSection:
    """Write the section about the training of one contender."""
    test = training.rate_test
    loss_figure, accuracy_figure = _training_figures(training)
    return TrainingSection(
        contender=training.contender,
        text=training_sentence(training),
        loss_figure=loss_figure,
        accuracy_figure=accuracy_figure,
        epochs=[
            (row["epoch"] == training.kept, _epoch_in_words(row))
            for row in training.history.to_dict("records")
        ],
        checks_text=checks_sentence(training.checks),
        checks=[_check_in_words(check) for check in training.checks],
        rate_text=rate_sentence(test) if test else "",
        rate_figure=_rate_figure(training.contender, test) if test else "",
    )


def training_sentence(training: Training) -> str:
    """Say how long a network was trained, and which epoch was kept."""
    number = len(training.history)
    kept = training.history.set_index("epoch").loc[training.kept]
    start = f"{training.contender} was trained for {_epochs(number)}."
    if not np.isfinite(training.history["val_loss"]).any():
        return (
            f"{start} There were no validation images to stop by, so the last epoch was kept; in "
            f"it {format_percent(kept['train_accuracy'])} of the training images were named "
            "correctly."
        )
    if kept["val_loss"] > training.history["val_loss"].min():
        return (
            f"{start} The last epoch was kept, as was asked for; after it the loss on the "
            f"validation images was {format_metric('log_loss', kept['val_loss'])}, with "
            f"{format_percent(kept['val_accuracy'])} of them named correctly."
        )
    was_last = " It was the last one, so more epochs may help." * (training.kept == number > 1)
    return (
        f"{start} Epoch {training.kept} was kept, after which the loss on the validation images "
        f"was lowest, {format_metric('log_loss', kept['val_loss'])}, with "
        f"{format_percent(kept['val_accuracy'])} of them named correctly.{was_last}"
    )


def checks_sentence(checks: Sequence[CheckResult]) -> str:
    """Say how many checks passed, and name those that failed; `""` without checks."""
    failed = [title_of(check.name) for check in checks if not check.passed]
    if not checks:
        return ""
    if not failed:
        return f"All {len(checks)} checks passed." if len(checks) > 1 else "The check passed."
    return f"{len(checks) - len(failed)} of {len(checks)} checks passed. Failed: " + (
        "; ".join(failed) + "."
    )


def rate_sentence(test: RateTest) -> str:
    """Say what a test of learning rates suggests."""
    if not np.isfinite(test.losses).any():
        return (
            "In a test of learning rates no loss was a finite number, so there is nothing to draw; "
            "start it at a lower rate."
        )
    low, high = (_number(test.rates[end]) for end in (0, -1))
    start = f"In a test the learning rate was raised from step to step, from {low} to {high}."
    if math.isnan(test.suggestion):
        return f"{start} The loss never fell below its first value, so no rate is suggested."
    suggestion = value_in_words(test.suggestion, 2)
    return f"{start} The loss fell most steeply at {suggestion}, the rate that is suggested."


def title_of(check: str) -> str:
    """Name a check in words, also one that is not among `CHECKS`."""
    return CHECKS[check][0] if check in CHECKS else check.replace("_", " ")


def _check_in_words(check: CheckResult) -> tuple[str, str, bool, str, str, str]:
    small_print = f"{check.when} training"
    if check.name in CHECKS:
        small_print += f": {CHECKS[check.name][1]}"
    advice = "" if check.passed else check.advice
    found = _number(check.value)
    return title_of(check.name), small_print, check.passed, found, check.expected, advice


def _epoch_in_words(row: dict) -> list[str]:
    figures = [
        text
        for part in ("train", "val")
        for text in (
            format_metric("log_loss", row[f"{part}_loss"]),
            format_percent(row[f"{part}_accuracy"]),
        )
    ]
    return [format_count(row["epoch"]), _number(row["learning_rate"]), *figures]


def _number(value: float) -> str:
    """Write a number of any size with three significant digits."""
    if math.isnan(value):
        return NOTHING
    text = value_in_words(abs(value), 3).replace("e-0", "e-")
    return f"\u2212{text}" if value < 0 else text


def _epochs(number: int) -> str:
    return f"{format_count(number)} epoch{'s' * (number != 1)}"


def _training_figures(training: Training) -> list[str]:
    """Draw loss and accuracy as two pictures, so that one can stand below the other on a phone."""
    drawn = [build_axes(4.4, 2.8) for _ in PANELS]
    plot_training(training.history, training.kept, [axes for _, axes in drawn])
    return [
        figure_to_svg(figure, _describe(training, quantity))
        for (figure, _), quantity in zip(drawn, PANELS, strict=True)
    ]


def _describe(training: Training, quantity: str) -> str:
    """Say what a panel shows, for readers who do not see it."""
    write = partial(format_metric, METRICS[quantity])
    by_epoch = training.history.set_index("epoch")
    epochs = list(dict.fromkeys((int(by_epoch.index[0]), training.kept, int(by_epoch.index[-1]))))
    parts = [
        f"epoch {epoch} {write(by_epoch.at[epoch, f'train_{quantity}'])} and "
        f"{write(by_epoch.at[epoch, f'val_{quantity}'])}"
        for epoch in epochs
    ]
    return (
        f"{quantity.capitalize()} of {training.contender} on training and on validation images by "
        f"epoch: {'; '.join(parts)}. Epoch {training.kept} was kept"
    )


def _rate_figure(name: str, test: RateTest) -> str:
    if not np.isfinite(test.losses).any():
        return ""
    figure, axes = build_axes(5.0, 2.7)
    plot_rate_test(axes, test.rates, test.losses, test.suggestion, test.smoothed)
    description = f"Loss of {name} against the learning rate. {rate_sentence(test)}"
    return figure_to_svg(figure, description)
