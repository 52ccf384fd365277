"""How the contenders see the images: what that section of the report shows, as values.

Pictures are `uint8` RGB arrays. Every text may come from file names and class names and is treated
as untrusted by the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.plots.numbers import format_metric, metric_title
from cvpipe.plots.search import better_of, plot_search, setting_in_words
from cvpipe.plots.svg import build_axes, figure_to_svg

# The description of a figure names no more settings than this, the best ones.
MAX_DESCRIBED = 12


@dataclass(frozen=True)
class Captioned:
    """A picture and the words below it."""

    picture: np.ndarray
    caption: str


@dataclass(frozen=True)
class NeighbourRow:
    """The nearest training images of an image in one space.

    Attributes:
        space: Words for what is compared, such as `"raw pixels"`.
        strip: The neighbours side by side, as `cvpipe.plots.neighbours` frames them.
        labels: Their classes, the nearest first.
        right: Whether each has the class of the image.
    """

    space: str
    strip: np.ndarray
    labels: Sequence[str]
    right: Sequence[bool]

    @property
    def num_right(self) -> int:
        """How many have the class of the image."""
        return sum(self.right)


@dataclass(frozen=True)
class Neighbours:
    """A test image with its nearest training images in several spaces."""

    image_id: str
    label: str
    picture: np.ndarray
    rows: Sequence[NeighbourRow]


@dataclass(frozen=True)
class EqualDistances:
    """An image and unlike versions of it, all at one distance.

    Attributes:
        contenders: Names of those that compare images by this distance.
        image_size: `(height, width)` at which they do.
        distance: L2, in grey levels of 0 to 255 over all values.
        pictures: The image, then its versions, in their size.
    """

    contenders: Sequence[str]
    image_size: tuple[int, int]
    distance: float
    pictures: Sequence[Captioned]


@dataclass(frozen=True)
class Glyphs:
    """Images beside the edges that a HOG keeps of them.

    Attributes:
        feature: What the HOG is.
        contenders: Names of those that read it.
        pairs: Label, image and glyphs, of one image per class.
        num_classes: How many classes there are; there may be fewer pairs.
    """

    feature: str
    contenders: Sequence[str]
    pairs: Sequence[tuple[str, np.ndarray, np.ndarray]]
    num_classes: int


@dataclass(frozen=True)
class Codebook:
    """The words that a feature has learned.

    Attributes:
        feature: What the feature is.
        contenders: Names of those that read it.
        sheet: The words as tiles, or patches that are nearest to them.
        num_words: How many there are.
        num_shown: How many of them are on the sheet.
        per_word: How many patches side by side stand for a word; 0 where words are shown.
    """

    feature: str
    contenders: Sequence[str]
    sheet: np.ndarray
    num_words: int
    num_shown: int
    per_word: int = 0


@dataclass(frozen=True)
class Templates:
    """The weights of a linear classifier on pixels, as images.

    Attributes:
        contender: Whose they are.
        templates: One per class, with its label.
        num_classes: How many classes there are; there may be fewer templates.
    """

    contender: str
    templates: Sequence[Captioned]
    num_classes: int


@dataclass(frozen=True)
class Search:
    """What cross-validation inside train said of the settings of a contender.

    Attributes:
        contender: Whose settings.
        table: One row per setting: its hyperparameters, and `mean` and `std` of the score over
            the folds, in the unit of the metric.
        chosen: The chosen value of each hyperparameter.
        metric: What the score is.
        num_folds: Number of folds.
    """

    contender: str
    table: pd.DataFrame
    chosen: Mapping[str, Any]
    metric: str
    num_folds: int


@dataclass(frozen=True)
class Understanding:
    """All that the section shows; a part that no contender of the run calls for is empty."""

    neighbours: Sequence[Neighbours] = ()
    equal_distances: EqualDistances | None = None
    glyphs: Glyphs | None = None
    codebooks: Sequence[Codebook] = ()
    templates: Sequence[Templates] = ()
    searches: Sequence[Search] = ()

    def __bool__(self) -> bool:
        """Tell whether there is anything to show."""
        return any(bool(part) for part in vars(self).values())


def search_figure(search: Search) -> str:
    """Draw the search of a contender's settings as SVG."""
    room_for_legend = (0.0, 0.7, 1.2)[min(len(search.chosen) - 1, 2)]
    figure, axes = build_axes(3.4, 2.4 + room_for_legend)
    plot_search(search.table, search.chosen, search.metric, axes)
    return figure_to_svg(figure, describe_search(search))


def describe_search(search: Search) -> str:
    """Say what the figure of a search shows, for readers who do not see it."""
    rows = search.table.sort_values("mean", ascending=better_of(search.metric) == "lower")
    parts = [
        f"{setting_in_words({name: row[name] for name in search.chosen})}: "
        f"{format_metric(search.metric, row['mean'])}, "
        f"standard deviation {format_metric(search.metric, row['std'])}"
        for row in rows.head(MAX_DESCRIBED).to_dict("records")
    ]
    return (
        f"Cross-validation of {search.contender}, {metric_title(search.metric)} of "
        f"{len(parts)} of {len(rows)} settings, the best first: {'; '.join(parts)}. Chosen: "
        f"{setting_in_words(search.chosen)}"
    )
