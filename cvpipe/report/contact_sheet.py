"""A contact sheet of augmented views, as values: what a page shows of it.

Every text may come from file names and class names and is treated as untrusted by the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A picture, as an address that starts with `data:`, and what is said of it."""

    picture: str
    caption: str


@dataclass(frozen=True)
class SheetRow:
    """The views of one image.

    Attributes:
        image_id: Its key.
        label: Its class; `""` where it is not known.
        cells: The image as evaluation shows it, then its views, epoch by epoch.
    """

    image_id: str
    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class ContactSheet:
    """What training does to images.

    Attributes:
        settings: Name and value of each setting that has an effect.
        preset: Name of the preset that these settings are; `""` where they are none.
        reason: Why one would choose it; `""` without a preset.
        usage: One sentence that says which contenders train on such views.
        notes: Sentences about what else a reader must know.
        rows: One per image.
        mixed: Blended images, with the shares of their classes; empty where none are blended.
    """

    settings: Sequence[tuple[str, str]]
    preset: str
    reason: str
    usage: str
    notes: Sequence[str]
    rows: Sequence[SheetRow]
    mixed: Sequence[Cell]
