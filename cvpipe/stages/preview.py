"""Write a page that shows what augmentation does to images; nothing is audited or fitted."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cvpipe.config import Config
from cvpipe.data.manifest import scan_images
from cvpipe.files import write_text
from cvpipe.report.contact_sheet import ContactSheet
from cvpipe.report.preview_page import render_preview_page
from cvpipe.stages.audit import LINE_WIDTH, check_given_split, leave_out
from cvpipe.stages.contact_sheet import collect_sheet
from cvpipe.stages.plan import make_plan
from cvpipe.stages.recipes import uses_augmentation

NUM_IMAGES, NUM_VIEWS = 6, 7


@dataclass(frozen=True)
class Preview:
    """A contact sheet that was written.

    Attributes:
        path: The page.
        config: Where the settings come from.
        sheet: What the page shows.
    """

    path: Path
    config: Config
    sheet: ContactSheet


def preview(
    target: Path,
    settings: Sequence[str] = (),
    data: Path | None = None,
    out: Path | None = None,
    num_images: int = NUM_IMAGES,
    num_views: int = NUM_VIEWS,
) -> Preview:
    """Write a page with augmented views of some images, as training would draw them.

    Args:
        target: A pipeline file, a folder of class folders, or a table of images.
        settings: Changes of the form `section.key=value`.
        data: Folder of the images, if it is not where the pipeline file says.
        out: Where to write; `<name>-preview.html` in the current folder if `None`.
        num_images: How many images are shown.
        num_views: How many views of each.

    Raises:
        InputError: Something is unknown or missing, or an image cannot be read.
    """
    plan = make_plan(target, settings, data)
    rows = training_rows(plan.root, plan.config)
    sheet = collect_sheet(rows, plan.root, plan.config, num_images, num_views)
    path = out or Path(f"{plan.config.name}-preview.html")
    write_text(path, render_preview_page(plan.root.resolve().name, sheet))
    return Preview(path, plan.config, sheet)


def training_rows(root: Path, config: Config) -> pd.DataFrame:
    """List the images of which some are shown: of a given split, only those of train.

    Any other split is made after the audit, so all images are listed.
    """
    rows = scan_images(root, config.data.labels, config.data.label_column)
    rows = leave_out(rows, config.data.exclude)
    check_given_split(config, rows)
    return rows[rows["split"] == "train"] if config.split.protocol == "given" else rows


def describe_preview(done: Preview) -> list[str]:
    """Write for the terminal what a preview shows, in lines."""
    sheet = done.sheet
    settings = ", ".join(f"{name} = {value}" for name, value in sheet.settings)
    preset = [f"preset {sheet.preset}: {sheet.reason}"] if sheet.preset else []
    lines = [*preset, f"settings: {settings or 'all off'}", sheet.usage, *sheet.notes]
    return [wrapped for line in lines for wrapped in textwrap.wrap(line, LINE_WIDTH)]


def preview_as_dict(done: Preview) -> dict[str, Any]:
    """Say what a preview shows, without the pictures, in JSON's types."""
    return {
        "page": str(done.path),
        "preset": done.sheet.preset,
        "settings": done.config.augment.model_dump(),
        "used_by": [c.name for c in done.config.contender if uses_augmentation(c)],
        "notes": list(done.sheet.notes),
        "images": [
            {
                "image_id": row.image_id,
                "label": row.label,
                "views": [cell.caption for cell in row.cells[1:]],
            }
            for row in done.sheet.rows
        ],
    }
