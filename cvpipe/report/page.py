"""One self-contained HTML page from a `ReportContent`.

Style, figures and pictures are inside the page; it loads nothing, runs nothing, and a
content policy in its head forbids both. Equal content gives equal bytes.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.frames import predicted_labels, targets_of
from cvpipe.plots import numbers
from cvpipe.plots.charts import plot_class_counts, plot_confusion_matrix, plot_metric_dots
from cvpipe.plots.svg import build_axes, figure_to_svg
from cvpipe.report.content import (
    SEVERITIES,
    ReportContent,
    check_content,
    headline_metrics,
    in_headline,
)
from cvpipe.report.wording import comparison_outcomes, openings_sentence

OVERALL_METRICS = (
    *("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "brier", "ece"),
)
CLASS_METRICS = ("precision", "recall", "f1")
# The hero figure shows accuracy; these tell what accuracy hides: rare classes, confidence.
FURTHER_FIGURES = ("balanced_accuracy", "log_loss")
MAX_FINDINGS = 20
THUMBNAIL_PIXELS = (320, 160)  # width and height at most


@dataclass(frozen=True)
class MetricTable:
    """Metric rows as they are printed.

    Attributes:
        keys: Titles of the leading columns.
        metrics: Titles of the metric columns.
        rows: Per line its keys, its number of images, and `(value, interval)` per metric.
    """

    keys: list[str]
    metrics: list[str]
    rows: list[tuple[list[str], str, list[tuple[str, str]]]]


def render_report(content: ReportContent) -> str:
    """Write the report page.

    Raises:
        InputError: The parts do not fit together; see `check_content`. Or an image is not
            `uint8` RGB.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    check_content(content)
    # Trusted: written by us. Everything else in the page is escaped.
    style = Markup(files("cvpipe.report").joinpath("page.css").read_text("utf-8"))  # noqa: S704
    environment = Environment(
        loader=PackageLoader("cvpipe.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        percent=numbers.format_percent,
        count=numbers.format_count,
        seconds=numbers.format_seconds,
        rate=numbers.format_rate,
        tiny=numbers.format_tiny,
        difference=lambda value, metric: numbers.format_difference(metric, value),
        p_value=lambda value: numbers.format_p_value(value).removeprefix(f"={numbers.SPACE}"),
        metric_title=numbers.metric_title,
        image=image_data_uri,
    )
    order = contender_order(content)
    figures = {name: Markup(svg) for name, svg in build_figures(content, order).items()}  # noqa: S704
    return environment.get_template("page.html.j2").render(
        content=content,
        created=_date(content.created),
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        figures=figures,
        further_figures=[name for name in FURTHER_FIGURES if name in figures],
        order=order,
        contenders={contender.name: contender for contender in content.contenders},
        headline=_headline(content),
        outcomes=comparison_outcomes(content.comparison),
        openings=openings_sentence(content.test_openings),
        tables=build_tables(content, order),
        interval=numbers.format_interval,
        findings=_sorted_findings(content.data.findings),
        kinds=count_findings(content.data.findings),
        max_findings=MAX_FINDINGS,
    )


def contender_order(content: ReportContent) -> list[str]:
    """List the chosen contender first, then the others by falling test accuracy.

    The chosen one leads even when another did better on test: best on test is not chosen.
    """
    test = headline_metrics(content, "test")
    rows = test[(test["metric"] == "accuracy") & (test["label"] == "")]
    accuracy = rows.set_index("contender")["value"]
    names = [contender.name for contender in content.contenders]
    return sorted(names, key=lambda name: (name != content.chosen, -accuracy[name]))


def count_confusions(predictions: pd.DataFrame, class_names: Sequence[str]) -> np.ndarray:
    """Count the images of each true class (row) that were called each class (column)."""
    true = targets_of(predictions["label"], class_names)
    predicted = targets_of(list(predicted_labels(predictions)), class_names)
    matrix = np.zeros((len(class_names), len(class_names)), dtype=int)
    np.add.at(matrix, (true, predicted), 1)
    return matrix


def image_data_uri(image: np.ndarray) -> str:
    """Write a picture into a `data:` address, made smaller when it is large.

    Args:
        image: `uint8` RGB of shape `(height, width, 3)`.

    Raises:
        InputError: The array is not such an image.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(
            f"a picture in the report must be uint8 of shape (height, width, 3), not "
            f"{image.dtype} of shape {image.shape}; load it as RGB first."
        )
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail(THUMBNAIL_PIXELS, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def build_figures(content: ReportContent, order: list[str]) -> dict[str, str]:
    """Draw every figure of the page as SVG.

    Returns:
        `counts`, one entry per metric that was measured for all contenders, and
        `confusion/<contender>` per contender with predictions.
    """
    svgs = {"counts": _counts_figure(content.data.counts)}
    test = headline_metrics(content, "test")
    for metric in ("accuracy", *FURTHER_FIGURES):
        rows = test[(test["metric"] == metric) & (test["label"] == "")]
        if set(order) <= set(rows["contender"]):
            figure, axes = build_axes(5.0, 0.7 + 0.4 * len(order))
            plot_metric_dots(rows, metric, order, content.chosen, axes)
            svgs[metric] = figure_to_svg(figure, _dots_description(rows, metric, order))
    for name in order:
        if name in content.predictions:
            matrix = count_confusions(content.predictions[name], content.class_names)
            side = 1.6 + max(0.74 * min(len(matrix), 4), 0.36 * len(matrix))
            figure, axes = build_axes(side + 0.4, side)
            plot_confusion_matrix(matrix, content.class_names, axes)
            svgs[f"confusion/{name}"] = figure_to_svg(
                figure,
                f"Confusion matrix of {name}: {np.trace(matrix)} of {matrix.sum()} test images "
                "on the diagonal of right answers.",
            )
    return svgs


def build_tables(content: ReportContent, order: list[str]) -> dict[str, MetricTable]:
    """Arrange the metrics as the tables of the page.

    Returns:
        `test` and `val` of the headline, `classes` of the chosen contender, and `further`
        with all other rows: cross-validation, other views, the careless split.
    """
    test, val = (headline_metrics(content, split) for split in ("test", "val"))
    headline = in_headline(content, "test") | in_headline(content, "val")
    further = content.metrics[~headline & (content.metrics["label"] == "")]
    per_class = test[(test["contender"] == content.chosen) & (test["label"] != "")]
    rank = {name: position for position, name in enumerate(order)}

    def arrange(rows: pd.DataFrame, keys: list[str], metrics: Sequence[str]) -> MetricTable:
        ranked = rows.sort_values("contender", key=lambda names: names.map(rank), kind="stable")
        return metric_table(ranked, keys, metrics)

    return {
        "test": arrange(test[test["label"] == ""], ["contender"], OVERALL_METRICS),
        "val": arrange(val[val["label"] == ""], ["contender"], OVERALL_METRICS),
        "classes": metric_table(per_class, ["label"], CLASS_METRICS),
        "further": arrange(
            further,
            ["contender", "protocol", "repeat", "split", "view"],
            OVERALL_METRICS,
        ),
    }


def metric_table(rows: pd.DataFrame, keys: list[str], metrics: Sequence[str]) -> MetricTable:
    """Turn tidy rows into one line per key with one column per metric that occurs."""
    present = [metric for metric in metrics if metric in set(rows["metric"])]
    lines = []
    for key, group in rows.groupby(keys, sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        cells = [
            (
                numbers.format_metric(metric, by_metric[metric]["value"]),
                numbers.format_interval(
                    metric, by_metric[metric]["low"], by_metric[metric]["high"]
                ),
            )
            if metric in by_metric
            else (numbers.NOTHING, "")
            for metric in present
        ]
        # The images of precision are those called so, not those that are so.
        count = numbers.format_count(group.loc[group["metric"] != "precision", "n"].max())
        lines.append(([str(part) for part in key], count, cells))
    return MetricTable(keys, [numbers.metric_title(metric) for metric in present], lines)


def _headline(content: ReportContent) -> dict[str, str]:
    """Write the accuracy of the chosen contender, and what a careless split would claim."""

    def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
        of_chosen = (rows["contender"] == content.chosen) & (rows["split"] == "test")
        return rows[of_chosen & (rows["metric"] == "accuracy") & (rows["label"] == "")]

    row = accuracies(headline_metrics(content, "test")).iloc[0]
    careless = accuracies(content.metrics[content.metrics["protocol"] == "careless"])["value"]
    return {
        "accuracy": numbers.format_percent(row["value"]),
        "interval": numbers.format_interval("accuracy", row["low"], row["high"]),
        "n": numbers.format_count(row["n"]),
        "careless": numbers.format_percent(careless.mean()) if len(careless) else "",
    }


def _counts_figure(counts: pd.DataFrame) -> str:
    figure, axes = build_axes(5.4, 0.6 + 0.28 * len(counts))
    plot_class_counts(counts, axes)
    largest = counts.sum(axis=1)
    description = "Images per class: " + "; ".join(f"{k} {v}" for k, v in largest.items())
    return figure_to_svg(figure, description)


def _dots_description(rows: pd.DataFrame, metric: str, order: list[str]) -> str:
    by_name = rows.set_index("contender").loc[order]
    parts = []
    for name, row in zip(order, by_name.to_dict("records"), strict=True):
        interval = numbers.format_interval(metric, row["low"], row["high"])
        value = numbers.format_metric(metric, row["value"])
        parts.append(f"{name} {value} ({interval})" if interval else f"{name} {value}")
    return f"Test {numbers.metric_title(metric)} with 95 % interval: " + "; ".join(parts)


def count_findings(findings: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Count the findings of each kind: `(severity, finding, count)`, the gravest first."""
    counts = Counter(zip(findings["severity"], findings["finding"], strict=True))
    kinds = [(severity, finding, count) for (severity, finding), count in counts.items()]
    return sorted(kinds, key=lambda kind: (SEVERITIES.index(kind[0]), -kind[2], kind[1]))


def _sorted_findings(findings: pd.DataFrame) -> list[dict]:
    """List the gravest findings first, otherwise in the order given."""
    rank = {severity: position for position, severity in enumerate(SEVERITIES)}
    ranked = findings.sort_values("severity", key=lambda s: s.map(rank), kind="stable")
    return ranked.to_dict("records")


def _date(created: str) -> str:
    moment = datetime.fromisoformat(created)
    moment = moment.astimezone(UTC) if moment.tzinfo else moment
    return f"{moment:%Y-%m-%d %H:%M} UTC"
