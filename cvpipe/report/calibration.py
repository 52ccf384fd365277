"""The section of the report on whether probabilities mean what they say."""

from cvpipe.plots.charts import plot_reliability
from cvpipe.plots.numbers import format_interval, format_metric
from cvpipe.plots.svg import build_panels, figure_to_svg
from cvpipe.report.content import ReportContent

# The Brier score tells the same; it stands in calibration.csv.
SHOWN = ("ece", "log_loss")
# Nearer to 1 than this, and a reader would look for a change that is not there.
NEAR_ONE = 0.05


def calibration_rows(content: ReportContent, order: list[str]) -> list[dict]:
    """Arrange the figures before and after as one line per contender, in the report's order."""
    table = content.calibration
    if table.empty:
        return []
    by_name = {name: rows.set_index("metric") for name, rows in table.groupby("contender")}
    lines = []
    for name in (name for name in order if name in by_name):
        rows = by_name[name]
        figures = {
            metric: [_value(metric, row, when) for when in ("before", "after")]
            for metric, row in rows.loc[list(SHOWN)].iterrows()
        }
        first = rows.iloc[0]
        line = {"contender": name, "method": first["method"], "figures": figures}
        verdict = rows.loc["log_loss", "verdict"]
        lines.append({**line, "temperature": first["temperature"], "verdict": verdict})
    return lines


def calibration_sentence(content: ReportContent) -> str:
    """Say what the calibration did to the probabilities of the chosen contender."""
    rows = content.calibration
    rows = rows[rows["contender"] == content.chosen].set_index("metric")
    if rows.empty:
        return f"The probabilities of {content.chosen} are as it gives them."
    ece, loss = rows.loc["ece"], rows.loc["log_loss"]
    before, after = (_value("ece", ece, when) for when in ("before", "after"))
    verdict = loss["verdict"]
    changed = "is not told apart from before" if verdict.startswith("cannot") else f"is {verdict}"
    return (
        f"{content.chosen}{_was_too_sure(loss['temperature'])}. Its calibration error on the test "
        f"images was {before[0]} ({before[1]}) before calibration and is {after[0]} "
        f"({after[1]}) with it; its log loss {changed}."
    )


def reliability_figure(content: ReportContent) -> str:
    """Draw accuracy against confidence of the chosen contender, before and after; SVG."""
    tables = content.reliability
    figure, panels = build_panels(3.4 * len(tables), 3.4, len(tables))
    parts = []
    for axes, (when, bins) in zip(panels, tables.items(), strict=True):
        plot_reliability(bins, f"{when} calibration", axes)
        told = [f"{row.confidence:.2f}: {row.accuracy:.2f}" for row in bins.itertuples()]
        parts.append(f"{when} calibration " + ", ".join(told))
    description = f"Accuracy of {content.chosen} at each confidence, "
    return figure_to_svg(figure, description + "; ".join(parts))


def _was_too_sure(temperature: float) -> str:
    """Say what a temperature means; nothing for other calibrations."""
    if not temperature > 0:  # NaN
        return " was calibrated class by class"
    if abs(temperature - 1) < NEAR_ONE:
        return f" was about as sure as it should be: its temperature is {temperature:.2f}"
    was = "too sure of itself" if temperature > 1 else "not sure enough"
    return f" was {was} on the validation images: its temperature is {temperature:.2f}"


def _value(metric: str, row: dict, when: str) -> tuple[str, str]:
    """Write a figure and its interval."""
    interval = format_interval(metric, row[f"{when}_low"], row[f"{when}_high"])
    return format_metric(metric, row[when]), interval
