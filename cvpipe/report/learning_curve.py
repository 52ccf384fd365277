"""Would more images help? The learning curve of a run as a sentence, a figure and rows."""

from dataclasses import dataclass

import pandas as pd

from cvpipe.plots.learning_curve import plot_learning_curve
from cvpipe.plots.numbers import (
    SPACE,
    format_count,
    format_difference,
    format_interval,
    format_percent,
)
from cvpipe.plots.svg import build_axes, figure_to_svg

# A gain below this is small whatever its interval says: labelling as many images again is dear.
SMALL_GAIN = 0.01


@dataclass(frozen=True)
class CurveSection:
    """What the section about one contender shows.

    Attributes:
        contender: Name of the contender.
        text: The answer.
        further: What is less sure; `""` without a forecast.
        figure: SVG; the measured points, and the forecast if there is one.
        rows: Title, images, accuracy and interval, each as text, of every size.
    """

    contender: str
    text: str
    further: str
    figure: str
    rows: list[tuple[str, str, str, str]]


def curve_sections(curve: pd.DataFrame, forecast: pd.DataFrame) -> list[CurveSection]:
    """Write one section per contender that has a learning curve, in the order of the table.

    Args:
        curve: `CURVE_COLUMNS`.
        forecast: `FORECAST_COLUMNS`.
    """
    return [
        _section(str(name), rows, forecast[forecast["contender"] == name])
        for name, rows in curve.groupby("contender", sort=False)
    ]


def _section(name: str, curve: pd.DataFrame, forecast: pd.DataFrame) -> CurveSection:
    measured = curve[curve["draw"] == "mean"].sort_values("num_train")
    doubled, fourfold = (forecast[forecast["multiple"] == multiple] for multiple in (2, 4))
    rows = [("measured", row) for row in measured.to_dict("records")]
    rows += [("forecast for twice the images", row) for row in doubled.to_dict("records")]
    rows += [("extrapolated to four times", row) for row in fourfold.to_dict("records")]
    cells = [
        (
            title,
            format_count(row["num_train"]),
            format_percent(row["accuracy"]),
            format_interval("accuracy", row["low"], row["high"]),
        )
        for title, row in rows
    ]
    figure, axes = build_axes(6.4, 3.0)
    plot_learning_curve(curve, forecast, axes)
    parts = [
        f"{title} with {images} {value} ({interval})" for title, images, value, interval in cells
    ]
    description = f"Test accuracy of {name} by number of training images: {'; '.join(parts)}"
    if len(doubled):
        now = float(measured["accuracy"].iloc[-1])
        text, further = forecast_sentence(name, now, forecast), further_sentence(forecast)
    else:
        text, further = too_few_sentence(name, measured), ""
    return CurveSection(name, text, further, figure_to_svg(figure, description), cells)


def forecast_sentence(name: str, now: float, forecast: pd.DataFrame) -> str:
    """Say what twice as many training images can be expected to bring.

    Args:
        name: Name of the contender.
        now: Its accuracy with all training images.
        forecast: Its rows, among them that of twice the present number.
    """
    row = forecast.set_index("multiple").loc[2.0]
    return (
        f"With twice the training images the accuracy of {name}, {format_percent(now)} now, is "
        f"expected at {format_percent(row['accuracy'])} (95{SPACE}% interval "
        f"{format_interval('accuracy', row['low'], row['high'])}): {_verdict(row)}."
    )


def further_sentence(forecast: pd.DataFrame) -> str:
    """Say how sure the gain is, and what lies further ahead.

    Args:
        forecast: Rows of a contender, among them those of twice and four times the present number.
    """
    rows = forecast.set_index("multiple")
    row, far = rows.loc[2.0], rows.loc[4.0]
    return (
        f"That is {format_difference('accuracy', row['gain'])} "
        f"({format_interval('accuracy', row['gain_low'], row['gain_high'])}) above what was "
        "measured; in trials this interval held in five of six cases only, and where the measured "
        "accuracy lies off the curve, part of the difference is chance. With four times as many "
        f"images it would be {format_percent(far['accuracy'])} "
        f"({format_interval('accuracy', far['low'], far['high'])}), but nothing that was measured "
        "supports a figure so far ahead."
    )


def too_few_sentence(name: str, measured: pd.DataFrame) -> str:
    """Say why there is no forecast.

    Args:
        name: Name of the contender.
        measured: One row per number of training images that could be measured.
    """
    return (
        f"There is no forecast for {name}: train is so small that only {len(measured)} "
        f"number{'s' * (len(measured) > 1)} of training images could be measured, and a curve "
        "needs three."
    )


def _verdict(row: pd.Series) -> str:
    gain, low, high = (float(row[name]) for name in ("gain", "gain_low", "gain_high"))
    if high < SMALL_GAIN:
        return "more images of the same kind would hardly change it"
    if low <= 0:
        return "whether more images would help is not settled"
    if gain < SMALL_GAIN:
        return "more images would probably help, but little"
    return "more images would probably help"
