"""One self-contained HTML page with the pictures of what an audit found.

Values flow in, an `AuditContent`; the text of a page flows out, which loads nothing and runs
nothing. Every text may come from file names, so everything is escaped. Equal content gives equal
bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cvpipe.plots.charts import plot_class_counts, plot_histogram
from cvpipe.plots.svg import build_axes, build_panels, figure_to_svg
from cvpipe.report.content import SEVERITIES
from cvpipe.report.page import render_page, trusted

MAX_SIZES = 10
# What is drawn of the facts, where they have it.
MEASURES = {
    "brightness": "brightness, from black (0) to white (1)",
    "sharpness": "sharpness",
}


@dataclass(frozen=True)
class Entry:
    """One or several images that are shown side by side, and what is said of them.

    Attributes:
        images: Their `image_id` and label; the label is `""` where it is not known.
        note: What is said of them; empty when there is nothing to add.
    """

    images: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class KindSummary:
    """What was found of one kind.

    Attributes:
        name: A key of `cvpipe.data.findings.KINDS`.
        severity: One of `SEVERITIES`.
        meaning: What is the case.
        action: What a person should do.
        count: How many findings there are.
        entries: Some of them.
    """

    name: str
    severity: str
    meaning: str
    action: str
    count: int
    entries: Sequence[Entry]


@dataclass(frozen=True)
class ClusterSummary:
    """Some of the images of a cluster of copies and near-duplicates.

    Attributes:
        count: How many images it has.
        labels: Images per label, the most frequent first.
        ways: Pairs per way in which they were found alike, such as `identical` or `mirrored`.
        entry: Some of its images.
    """

    count: int
    labels: Mapping[str, int]
    ways: Mapping[str, int]
    entry: Entry


@dataclass(frozen=True)
class AuditContent:
    """Everything on the page.

    Attributes:
        title: Name of the folder of the images.
        counts: Images per class, indexed by label, one column per split, or `images` alone.
        severities: Findings per severity.
        kinds: What was found, the gravest first.
        num_clusters: How many clusters of copies and near-duplicates there are.
        num_mixed: How many of them have more than one label.
        clusters: Some of them.
        num_suspects: How many labels are doubtful.
        suspects: Some of their images, the most suspicious first.
        facts: One row per image that could be decoded: `height`, `width`, `format`, `mode` and,
            where they were measured, `MEASURES`.
        pictures: By `image_id` the address of its picture as `data:`. An image without one is
            named in words.
    """

    title: str
    counts: pd.DataFrame
    severities: Mapping[str, int]
    kinds: Sequence[KindSummary]
    num_clusters: int
    num_mixed: int
    clusters: Sequence[ClusterSummary]
    num_suspects: int
    suspects: Sequence[Entry]
    facts: pd.DataFrame
    pictures: Mapping[str, str]

    def pictured(self, entries: Sequence[Entry]) -> list[Entry]:
        """Select the entries with a picture of each image."""
        return [
            entry
            for entry in entries
            if entry.images and all(image_id in self.pictures for image_id, _ in entry.images)
        ]

    def told(self, entries: Sequence[Entry]) -> list[Entry]:
        """Select the entries that are told in words: all others."""
        pictured = self.pictured(entries)
        return [entry for entry in entries if entry not in pictured]


def render_audit_page(content: AuditContent) -> str:
    """Write the page of an audit."""
    facts = content.facts
    sizes = facts.groupby(["height", "width"]).size().sort_values(ascending=False, kind="stable")
    formats = facts.groupby(["format", "mode"]).size().sort_values(ascending=False, kind="stable")
    return render_page(
        "audit.html.j2",
        content=content,
        num_images=int(content.counts.to_numpy().sum()),
        severities=SEVERITIES,
        figures={name: trusted(svg) for name, svg in build_figures(content).items()},
        sizes=list(sizes.items())[:MAX_SIZES],
        num_sizes=len(sizes),
        formats=list(formats.items()),
    )


def build_figures(content: AuditContent) -> dict[str, str]:
    """Draw every figure of the page as SVG.

    Returns:
        `counts` when there is a class, and `measures` when anything of `MEASURES` was measured.
    """
    svgs = {}
    if len(content.counts):
        figure, axes = build_axes(5.4, 0.6 + 0.28 * len(content.counts))
        plot_class_counts(content.counts, axes)
        totals = "; ".join(f"{k} {v}" for k, v in content.counts.sum(axis=1).items())
        svgs["counts"] = figure_to_svg(figure, f"Images per class: {totals}")
    measured = [name for name in MEASURES if name in content.facts and len(content.facts)]
    if measured:
        figure, panels = build_panels(4.0 * len(measured), 2.1, len(measured))
        for name, axes in zip(measured, panels, strict=True):
            plot_histogram(content.facts[name].to_numpy(dtype=float), MEASURES[name], axes)
        medians = "; ".join(f"{name} {content.facts[name].median():.3f}" for name in measured)
        svgs["measures"] = figure_to_svg(figure, f"Distributions, with the medians: {medians}")
    return svgs
