"""Figures as SVG text that can stand inside a page: equal input gives equal bytes."""

import html
import io
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def build_axes(width_inches: float, height_inches: float) -> tuple["Figure", "Axes"]:
    """Make a figure with one set of axes, known to nobody else and owned by the caller."""
    figure, (axes,) = build_panels(width_inches, height_inches, 1)
    return figure, axes


def build_panels(
    width_inches: float, height_inches: float, num_panels: int
) -> tuple["Figure", list["Axes"]]:
    """Make a figure with several axes side by side, from left to right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])


def figure_to_svg(figure: "Figure", description: str) -> str:
    """Write a figure as an `<svg>` element.

    Text stays text, in the reader's own sans-serif font. There is no date, no metadata
    and no random identifier. Identifiers depend on the description, so two figures with
    different descriptions can stand in one page.

    Args:
        figure: What to write.
        description: What the figure says, in words, for readers who do not see it.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with warnings.catch_warnings(), mpl.rc_context():
        # A class name in another script is drawn by the reader's browser, which has the
        # glyphs; Matplotlib only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = description
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    return _tidy(buffer.getvalue(), description)


def _tidy(text: str, description: str) -> str:
    """Leave only what a page needs, and nothing that a strict page policy would block."""
    text = text[text.index("<svg ") :].strip()
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))

    def tidy_tag(tag: re.Match[str]) -> str:
        plain = re.sub(r' style="([^"]*)"', _style_as_attributes, tag.group())
        # Unreferenced identifiers (axes_1, text_3, ...) would repeat in every figure.
        return re.sub(r' id="([^"]*)"', lambda id_: id_.group() if id_[1] in used else "", plain)

    # Only tags are touched, never text: a class may well be named ` id="1"`.
    text = re.sub(r"<[^>]*>", tidy_tag, text)
    label = html.escape(description, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _style_as_attributes(match: re.Match[str]) -> str:
    """Turn `style="fill: none"` into `fill="none"`: attributes need no `unsafe-inline`."""
    pairs = [part.split(":", 1) for part in match.group(1).split(";") if part.strip()]
    properties = {name.strip(): value.strip() for name, value in pairs}
    if "font" in properties:  # Matplotlib before 3.11 writes the shorthand: 700 9px 'DejaVu Sans'
        *weight, size = re.findall(r"\b(\d{3}|[\d.]+px)(?= )", properties.pop("font"))
        properties |= {"font-weight": weight[0]} if weight else {}
        properties |= {"font-size": size, "font-family": ""}
    if "font-family" in properties:
        properties["font-family"] = "sans-serif"
    return "".join(f' {name}="{value}"' for name, value in properties.items())
