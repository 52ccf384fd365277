"""One self-contained HTML page from a `ReportContent`.

Style, figures and pictures are inside the page; it loads nothing, runs nothing, and a
content policy in its head forbids both. Equal content gives equal bytes.
"""

import base64
import functools
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cvpipe.errors import InputError
from cvpipe.frames import predicted_labels, targets_of
from cvpipe.plots import numbers
from cvpipe.plots.charts import (
    plot_class_counts,
    plot_confusion_matrix,
    plot_duplicate_thresholds,
    plot_metric_dots,
    plot_protocol_gap,
)
from cvpipe.plots.svg import build_axes, build_panels, figure_to_svg
from cvpipe.report.calibration import (
    calibration_rows,
    calibration_sentence,
    reliability_figure,
)
from cvpipe.report.content import (
    COMPARED_PROTOCOLS,
    NO_WORSE_MARGINS,
    SEVERITIES,
    ReportContent,
    check_content,
    headline_metrics,
    in_headline,
    overall_accuracies,
)
from cvpipe.report.cost_figure import cost_figure
from cvpipe.report.decisions import DecisionSection, decision_section, risk_coverage_figure
from cvpipe.report.learning_curve import curve_sections
from cvpipe.report.training import TrainingSection, training_section
from cvpipe.report.understanding import search_figure
from cvpipe.report.views import view_rows, view_sentence
from cvpipe.report.wording import (
    careless_sentence,
    comparison_outcomes,
    costs_sentence,
    folds_sentence,
    openings_sentence,
    unlike_sentence,
)

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

# What a reader needs to judge a contender; costs only where the config names them.
OVERALL_METRICS = (
    *("accuracy", "cost", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss", "brier", "ece"),
)
# Behind a click: mostly other views of the same, for who is used to them.
MORE_METRICS = ("top_3", "top_5", "pr_auc", "matthews", "kappa")
CLASS_METRICS = ("precision", "recall", "f1", "specificity")
# Of these, the images counted are not those of the class.
COUNTED_ELSEWHERE = ("precision", "specificity")
# The hero figure shows accuracy; these tell what accuracy hides: rare classes, confidence.
FURTHER_FIGURES = ("balanced_accuracy", "log_loss")
MAX_FINDINGS = 20
MAX_SUBGROUPS = 12
MAX_OPEN_LOOKUPS = 4  # further images with their neighbours stand behind a click
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


@dataclass(frozen=True)
class SubgroupTable:
    """How well the chosen contender does on the parts of the images, the worst first.

    Attributes:
        protocol: One of `COMPARED_PROTOCOLS`.
        column: What parts the images.
        num_subgroups: How many parts there are; the table may show fewer.
        table: One line per part.
    """

    protocol: str
    column: str
    num_subgroups: int
    table: MetricTable


def render_report(content: ReportContent) -> str:
    """Write the report page.

    Raises:
        InputError: The parts do not fit together; see `check_content`. Or an image is not
            `uint8` RGB.
    """
    check_content(content)
    order = contender_order(content)
    comparisons = chosen_comparisons(content, order)
    figures = {name: trusted(svg) for name, svg in build_figures(content, order).items()}
    return render_page(
        "page.html.j2",
        content=content,
        created=_date(content.created),
        figures=figures,
        further_figures=[name for name in FURTHER_FIGURES if name in figures],
        order=order,
        contenders={contender.name: contender for contender in content.contenders},
        headline=_headline(content),
        outcomes=comparison_outcomes(comparisons["kfold" if content.folds else "holdout"]),
        comparisons=comparisons,
        baselines=baseline_names(content),
        folds_text=_folds_text(content),
        careless=in_order(content.careless, order).to_dict("records"),
        careless_text="" if content.careless.empty else careless_sentence(content.careless),
        subgroups=subgroup_tables(content),
        costs_text=costs_sentence(content.costs, len(content.class_names)) if content.costs else "",
        openings=openings_sentence(content.test_openings),
        calibration=calibration_rows(content, order),
        calibration_text=calibration_sentence(content),
        decided=_decided(content),
        margins=NO_WORSE_MARGINS,
        recipes=in_order(content.recipes, order).to_dict("records"),
        unlike_text=unlike_sentence(content.unlike, content.chosen),
        tables=build_tables(content, order),
        interval=numbers.format_interval,
        findings=_sorted_findings(content.data.findings),
        kinds=count_findings(content.data.findings),
        max_findings=MAX_FINDINGS,
        curves=[
            replace(section, figure=trusted(section.figure))
            for section in curve_sections(content.learning_curve, content.forecast)
        ],
        searches=[
            (search.contender, search.num_folds, trusted(search_figure(search)))
            for search in content.understanding.searches
        ],
        open_lookups=MAX_OPEN_LOOKUPS,
        trainings=_trainings(content, order),
        ensembles=_ensembles(content),
        views=view_rows(content, order),
        views_text=view_sentence(content),
    )


def render_page(template: str, **values: Any) -> str:
    """Fill a template of this package, with the style of every page inside it.

    Args:
        template: Its file name.
        values: What it refers to; everything that is not `trusted` is escaped.
    """
    style = trusted(files("cvpipe.report").joinpath("page.css").read_text("utf-8"))
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(style=style, style_hash=style_hash, **values)


@functools.cache  # it keeps the templates compiled, which takes a sixth of a second for each
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

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
        value=lambda value, metric: numbers.format_metric(metric, value),
        bytes=numbers.format_bytes,
        difference=lambda value, metric: numbers.format_difference(metric, value),
        p_value=lambda value: numbers.format_p_value(value).removeprefix(f"={numbers.SPACE}"),
        metric_title=numbers.metric_title,
        image=image_data_uri,
    )
    return environment


def trusted(markup: str) -> "Markup":
    """Mark what this package wrote itself, so that it stands in a page as it is."""
    from markupsafe import Markup

    return Markup(markup)  # noqa: S704 (text from data is escaped before it comes here)


def contender_order(content: ReportContent) -> list[str]:
    """List the chosen contender first, then the others by falling test accuracy.

    The chosen one leads even when another did better on test: best on test is not chosen.
    """
    accuracy = overall_accuracies(content).set_index("contender")["value"]
    names = [contender.name for contender in content.contenders]
    return sorted(names, key=lambda name: (name != content.chosen, -accuracy[name]))


def baseline_names(content: ReportContent) -> set[str]:
    """Name the contenders that are yardsticks only."""
    return {contender.name for contender in content.contenders if contender.is_baseline}


def in_order(table: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Sort the rows of a table by contender, in the order of the report."""
    rank = {name: position for position, name in enumerate(order)}
    return table.sort_values("contender", key=lambda names: names.map(rank), kind="stable")


def chosen_comparisons(content: ReportContent, order: list[str]) -> dict[str, pd.DataFrame]:
    """Select for each protocol the paired comparisons with the chosen contender."""
    rows = content.comparison[content.comparison["reference"] == content.chosen]
    rows = in_order(rows, order)
    return {protocol: rows[rows["protocol"] == protocol] for protocol in COMPARED_PROTOCOLS}


def count_confusions(predictions: pd.DataFrame, class_names: Sequence[str]) -> np.ndarray:
    """Count the images of each true class (row) that were called each class (column)."""
    true = targets_of(predictions["label"], class_names)
    predicted = targets_of(list(predicted_labels(predictions)), class_names)
    matrix = np.zeros((len(class_names), len(class_names)), dtype=int)
    np.add.at(matrix, (true, predicted), 1)
    return matrix


def image_data_uri(
    image: np.ndarray, max_size: tuple[int, int] = THUMBNAIL_PIXELS, lossless: bool = False
) -> str:
    """Write a picture into a `data:` address, made smaller when it is large.

    Args:
        image: `uint8` RGB of shape `(height, width, 3)`.
        max_size: Width and height in pixels, at most.
        lossless: Write PNG instead of JPEG: for pictures of which every pixel counts.

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
    picture.thumbnail(max_size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=85)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def build_figures(content: ReportContent, order: list[str]) -> dict[str, str]:
    """Draw every figure of the page as SVG.

    Returns:
        `counts`, one entry per metric that was measured for all contenders,
        `confusion/<contender>` per contender with predictions, `cost` when the times of two
        contenders were measured, `split` when there was a careless split, `duplicates` when an
        image has a near-duplicate at any threshold, `reliability` when there are bins of it, and
        `risk_coverage` when thresholds were frozen.
    """
    svgs = {"counts": _counts_figure(content.data.counts)}
    baselines = baseline_names(content)
    cost = cost_figure(_cost_points(content, order), content.chosen, baselines)
    if cost:
        svgs["cost"] = cost
    if not content.careless.empty:
        svgs["split"] = _split_figure(content, order)
    if (content.duplicates["largest"] > 1).any():
        svgs["duplicates"] = _duplicates_figure(content)
    if content.reliability:
        svgs["reliability"] = reliability_figure(content)
    if content.decisions:
        svgs["risk_coverage"] = risk_coverage_figure(content.decisions)
    test = headline_metrics(content, "test")
    for metric in ("accuracy", *FURTHER_FIGURES):
        rows = test[(test["metric"] == metric) & (test["label"] == "")]
        if set(order) <= set(rows["contender"]):
            figure, axes = build_axes(5.0, 0.7 + 0.4 * len(order))
            plot_metric_dots(rows, metric, order, content.chosen, axes, baselines)
            description = _dots_description(rows, metric, order, baselines)
            svgs[metric] = figure_to_svg(figure, description)
    for name in order:
        if name in content.predictions:
            matrix = count_confusions(content.predictions[name], content.class_names)
            figure, axes = build_axes(*confusion_size(content.class_names))
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
        `test` and `val` of the headline, `kfold` and `careless` (without rows when they
        were not run), `classes` of the chosen contender, and `further` with all other rows:
        other views, other repeats. `test` and `kfold` have the first metrics only; the others
        are in `test_more` and `kfold_more`, without rows in runs that did not compute them.
    """
    test, val = (headline_metrics(content, split) for split in ("test", "val"))
    shown = {
        "kfold": in_headline(content, "test", "kfold") & bool(content.folds),
        "careless": in_headline(content, "test", "careless") & (len(content.careless) > 0),
    }
    elsewhere = in_headline(content, "test") | in_headline(content, "val")
    elsewhere = elsewhere | shown["kfold"] | shown["careless"]
    overall = content.metrics["label"] == ""
    per_class = test[(test["contender"] == content.chosen) & (test["label"] != "")]

    kfold, careless = (content.metrics[rows & overall] for rows in shown.values())
    everything = (*OVERALL_METRICS, *MORE_METRICS)

    def arrange(
        rows: pd.DataFrame, metrics: Sequence[str], keys: Sequence[str] = ("contender",)
    ) -> MetricTable:
        wanted = rows[(rows["label"] == "") & rows["metric"].isin(metrics)]
        return metric_table(in_order(wanted, order), list(keys), metrics)

    return {
        "test": arrange(test, OVERALL_METRICS),
        "test_more": arrange(test, MORE_METRICS),
        "val": arrange(val, everything),
        "kfold": arrange(kfold, OVERALL_METRICS),
        "kfold_more": arrange(kfold, MORE_METRICS),
        "careless": arrange(careless, everything),
        "classes": metric_table(per_class, ["label"], CLASS_METRICS),
        "further": arrange(
            content.metrics[~elsewhere].assign(repeat=lambda rest: rest["repeat"] + 1),
            everything,
            ("contender", "protocol", "repeat", "split", "view"),
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
        # Those of precision are called so, and those of specificity are not so.
        of_class = ~group["metric"].isin(COUNTED_ELSEWHERE)
        count = numbers.format_count(group.loc[of_class, "n"].max())
        lines.append(([str(part) for part in key], count, cells))
    return MetricTable(keys, [numbers.metric_title(metric) for metric in present], lines)


def confusion_size(class_names: Sequence[str]) -> tuple[float, float]:
    """Choose width and height in inches so that long class names leave the cells their size.

    The names stand at the left of the rows and, slanting to the right, above the columns.
    """
    cells = max(0.74 * min(len(class_names), 4), 0.36 * len(class_names))
    name = 0.075 * max(len(numbers.shorten(name)) for name in class_names)
    return cells + 1.0 + 1.77 * name, cells + 1.0 + 0.65 * name


def subgroup_tables(content: ReportContent) -> list[SubgroupTable]:
    """Arrange the accuracy of the chosen contender on each subgroup, the worst first."""
    rows = content.subgroups
    rows = rows[(rows["contender"] == content.chosen) & (rows["metric"] == "accuracy")]
    rows = rows[rows["protocol"].isin(COMPARED_PROTOCOLS)]
    tables = []
    for (column, protocol), group in rows.groupby(["column", "protocol"], sort=False):
        worst = group.sort_values("value", kind="stable").head(MAX_SUBGROUPS)
        worst = worst.assign(subgroup=worst["subgroup"].replace("", "(not given)"))
        table = replace(metric_table(worst, ["subgroup"], ["accuracy"]), keys=[str(column)])
        tables.append(SubgroupTable(str(protocol), str(column), len(group), table))
    return tables


def _cost_points(content: ReportContent, order: list[str]) -> pd.DataFrame:
    """List test accuracy and time per image of each contender."""
    names = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    points = in_order(overall_accuracies(content), order).rename(columns=names)
    times = {c.name: c.milliseconds_per_image for c in content.contenders}
    return points.assign(milliseconds_per_image=points["contender"].map(times))


def _headline(content: ReportContent) -> dict[str, str]:
    """Write the accuracy of the chosen contender."""
    row = overall_accuracies(content).set_index("contender").loc[content.chosen]
    return {
        "accuracy": numbers.format_percent(row["value"]),
        "interval": numbers.format_interval("accuracy", row["low"], row["high"]),
        "n": numbers.format_count(row["n"]),
    }


def _decided(content: ReportContent) -> DecisionSection | None:
    if content.decisions is None:
        return None
    test = headline_metrics(content, "test")
    rows = test[(test["contender"] == content.chosen) & (test["label"] == "")]
    return decision_section(
        content.decisions, dict(zip(rows["metric"], rows["value"], strict=True))
    )


def _trainings(content: ReportContent, order: list[str]) -> list[TrainingSection]:
    ranked = sorted(content.training, key=lambda training: order.index(training.contender))
    return [
        replace(
            section,
            loss_figure=trusted(section.loss_figure),
            accuracy_figure=trusted(section.accuracy_figure),
            rate_figure=trusted(section.rate_figure),
        )
        for section in map(training_section, ranked)
    ]


def _ensembles(content: ReportContent) -> dict[str, list[dict]]:
    """List the members of each ensemble; on all images, where there were folds."""
    protocol = "kfold" if content.folds else "holdout"
    members = content.members[content.members["protocol"] == protocol]
    return {
        str(name): rows.to_dict("records") for name, rows in members.groupby("ensemble", sort=False)
    }


def _folds_text(content: ReportContent) -> str:
    if not content.folds:
        return ""
    accuracies = overall_accuracies(content, "kfold").set_index("contender")
    rows = content.metrics
    repeats = rows[
        (rows["protocol"] == "kfold")
        & (rows["contender"] == content.chosen)
        & (rows["metric"] == "accuracy")
        & (rows["label"] == "")
    ].sort_values("repeat")["value"]
    accuracy = accuracies.loc[content.chosen]
    return folds_sentence(content.folds, content.chosen, accuracy, repeats.tolist())


def _split_figure(content: ReportContent, order: list[str]) -> str:
    lines = in_order(content.careless, order).to_dict("records")
    names = [line["contender"] for line in lines]
    metrics = pd.concat([overall_accuracies(content, name) for name in ("holdout", "careless")])
    figure, axes = build_axes(7.0, 0.9 + 0.42 * len(names))
    plot_protocol_gap(content.careless, metrics, names, content.chosen, axes)
    parts = [
        f"{line['contender']} {numbers.format_percent(line['holdout'])} and "
        f"{numbers.format_percent(line['careless'])}"
        for line in lines
    ]
    description = "Test accuracy with groups kept together and on a careless split: "
    return figure_to_svg(figure, description + "; ".join(parts))


def _duplicates_figure(content: ReportContent) -> str:
    figure, panels = build_panels(8.0, 1.9, 3)
    plot_duplicate_thresholds(content.duplicates, content.duplicate_threshold, panels)
    parts = [
        f"{row['threshold']:g}: {row['clusters']}, {row['largest']}, {row['mixed']}"
        for row in content.duplicates.to_dict("records")
    ]
    description = "Clusters of near-duplicates, images in the largest and clusters with mixed "
    return figure_to_svg(figure, description + "labels, by threshold: " + "; ".join(parts))


def _counts_figure(counts: pd.DataFrame) -> str:
    figure, axes = build_axes(5.4, 0.6 + 0.28 * len(counts))
    plot_class_counts(counts, axes)
    largest = counts.sum(axis=1)
    description = "Images per class: " + "; ".join(f"{k} {v}" for k, v in largest.items())
    return figure_to_svg(figure, description)


def _dots_description(
    rows: pd.DataFrame, metric: str, order: list[str], baselines: set[str]
) -> str:
    by_name = rows.set_index("contender").loc[order]
    parts = []
    for name, row in zip(order, by_name.to_dict("records"), strict=True):
        interval = numbers.format_interval(metric, row["low"], row["high"])
        title = f"{name} (yardstick)" if name in baselines else name
        value = numbers.format_metric(metric, row["value"])
        parts.append(f"{title} {value} ({interval})" if interval else f"{title} {value}")
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
