"""The section of the report on views: what it brings to see an image several times, and costs."""

from cvpipe.plots.numbers import format_difference, format_interval, format_percent, format_rate
from cvpipe.report.content import ReportContent


def view_rows(content: ReportContent, order: list[str]) -> dict[str, list[dict]]:
    """Arrange the views of all contenders by protocol, in the order of the report."""
    rank = {name: position for position, name in enumerate(order)}
    rows = content.views.sort_values("contender", key=lambda n: n.map(rank), kind="stable")
    return {str(p): part.to_dict("records") for p, part in rows.groupby("protocol", sort=False)}


def view_sentence(content: ReportContent) -> str:
    """Say how the chosen contender sees an image, what that brings on test and what it costs.

    Returns:
        `""` where it sees it in one way only.
    """
    rows = content.views
    rows = rows[(rows["contender"] == content.chosen) & (rows["protocol"] == "holdout")]
    if rows.empty:
        return ""
    own = rows[rows["chosen"]].iloc[0]
    begin = (
        f"{content.chosen} sees an image in the view {own['view']}, chosen on the validation "
        f"images: {content.view_reasons[content.chosen]}."
    )
    if own["view"] == "single":
        return begin
    single = rows[rows["view"] == "single"].iloc[0]
    ends = format_interval("accuracy", own["difference_low"], own["difference_high"])
    told = (
        f"which cannot be told apart from the {format_percent(single['accuracy'])} of a single view"
        if own["verdict"].startswith("cannot")
        else f"which is {own['verdict']} than the {format_percent(single['accuracy'])} of a single "
        "view"
    )
    return (
        f"{begin} On the test images it names {format_percent(own['accuracy'])} correctly, {told} "
        f"(difference {format_difference('accuracy', own['difference'])}, {ends}). It takes "
        f"{own['passes']} passes and {format_rate(own['relative_cost'])} times as long."
    )
