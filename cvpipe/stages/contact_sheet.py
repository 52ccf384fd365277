"""Make a contact sheet: what augmentation does to some images, as training would draw it."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.config import Config
from cvpipe.contender_sections import Contender
from cvpipe.data.augment import View, view_key
from cvpipe.data.images import decode_rule, read_image, resize_image
from cvpipe.data.loading import Loader
from cvpipe.data.mixing import mix_batch
from cvpipe.data.normalise import measure_pixels
from cvpipe.data.pixels import ImageFiles
from cvpipe.data.threads import ordered_map
from cvpipe.data.view_words import describe_view
from cvpipe.errors import InputError
from cvpipe.frames import class_names_of, targets_of
from cvpipe.report.contact_sheet import Cell, ContactSheet, SheetRow
from cvpipe.report.page import image_data_uri
from cvpipe.runs import Run
from cvpipe.sections import AugmentSection
from cvpipe.stages.fingerprint import sample_ids
from cvpipe.stages.recipes import uses_augmentation

IMAGE_SIZE = (224, 224)
# In a report: fewer and smaller, because its page has much else to show.
REPORT_IMAGES, REPORT_VIEWS, REPORT_PIXELS = 4, 7, 112
# Settings that count with one kind of crop only.
CROP_SETTINGS = {"min_area": "resized", "max_stretch": "resized", "padding": "padded"}


class LoadedImage(NamedTuple):
    """An image before anything is changed.

    Attributes:
        image_id: Its key.
        size: `(height, width)` of the upright image in pixels.
        pixels: As evaluation shows it, `uint8` of shape `(*IMAGE_SIZE, 3)`.
    """

    image_id: str
    size: tuple[int, int]
    pixels: np.ndarray


def report_sheet(run: Run, root: Path, manifest: pd.DataFrame) -> ContactSheet | None:
    """Make the contact sheet of a run's report from its training images.

    Args:
        run: Has the settings.
        root: Folder of the images.
        manifest: All images of the run.

    Returns:
        `None` where nothing is changed.
    """
    config = run.config()
    if not changes_images(config.augment):
        return None
    train = manifest[manifest["split"] == "train"]
    return collect_sheet(train, root, config, REPORT_IMAGES, REPORT_VIEWS, REPORT_PIXELS)


def collect_sheet(
    rows: pd.DataFrame,
    root: Path,
    config: Config,
    num_images: int,
    num_views: int,
    picture_pixels: int = IMAGE_SIZE[0],
) -> ContactSheet:
    """Make a contact sheet of some images.

    Args:
        rows: Images to choose from, with `image_id` and `label`.
        root: Their folder.
        config: Says how they become pixels and are changed, the seed and the number of threads.
        num_images: How many are shown: as many of each class as of every other, always the same.
        num_views: How many views of each; those of the first epochs.
        picture_pixels: Side of the pictures. Views are always made at `IMAGE_SIZE`, because some
            settings are in pixels.

    Raises:
        InputError: An image cannot be read, or none can.
    """
    augment, class_names = config.augment, class_names_of(rows["label"])
    label_of = dict(zip(rows["image_id"], rows["label"], strict=True))
    images = load_images(rows, root, config, num_images)
    if not images:
        raise InputError(
            f"none of the {len(rows):,} image(s) in {str(root)!r} can be decoded; see what is "
            "wrong with: cvpipe audit"
        )
    images.sort(key=lambda image: (label_of[image.image_id], image.image_id))
    labels = [label_of[image.image_id] for image in images]
    targets = targets_of(labels, class_names)
    views = make_views(images, targets, len(class_names), root, config, num_views)

    def cell(pixels: np.ndarray, caption: str) -> Cell:
        return Cell(image_data_uri(pixels, (picture_pixels, picture_pixels)), caption)

    sheet_rows = []
    for image, label, drawn in zip(images, labels, views, strict=True):
        cells = [cell(pixels, describe_view(view, image.size)) for pixels, view in drawn]
        first = cell(image.pixels, "in evaluation")
        sheet_rows.append(SheetRow(image.image_id, label, [first, *cells]))
    firsts = np.stack([drawn[0][0] for drawn in views])
    preset = preset_of(augment)
    return ContactSheet(
        settings=[(name, as_text(value)) for name, value in settings_in_effect(augment).items()],
        preset=preset,
        reason=AUGMENT_PRESETS[preset].reason if preset else "",
        usage=usage_sentence(config.contender),
        notes=notes_on(augment),
        rows=sheet_rows,
        mixed=[
            cell(pixels, describe_shares(shares, class_names))
            for pixels, shares in mix(firsts, targets, len(class_names), augment, config.seed)
        ],
    )


def load_images(
    rows: pd.DataFrame, root: Path, config: Config, num_images: int
) -> list[LoadedImage]:
    """Load images of all classes in turn.

    Raises:
        InputError: One cannot be read, and `data.drop_unreadable` is off.
    """
    rule = decode_rule(config.images, config.data)

    def load(image_id: str) -> LoadedImage | None:
        try:
            image = read_image(root / image_id, rule)
        except InputError as error:
            if config.data.drop_unreadable:
                return None
            raise InputError(
                f"{error} Mend or remove it, or leave out what cannot be read with: "
                "--set data.drop_unreadable=true"
            ) from None
        size = (image.shape[0], image.shape[1])
        return LoadedImage(image_id, size, resize_image(image, IMAGE_SIZE, rule.fit))

    while True:
        ids = sample_ids(rows, num_images)
        images = list(ordered_map(load, ids, config.threads))
        readable = [image for image in images if image is not None]
        if len(readable) == len(ids):
            return readable
        # Others of their classes take the place of those that cannot be read.
        unreadable = set(ids) - {image.image_id for image in readable}
        rows = rows[~rows["image_id"].isin(unreadable)]


def make_views(
    images: Sequence[LoadedImage],
    targets: np.ndarray,
    num_classes: int,
    root: Path,
    config: Config,
    num_views: int,
) -> list[list[tuple[np.ndarray, View]]]:
    """Make the views of the first epochs, image by image, with the loader of training."""
    rule = decode_rule(config.images, config.data)
    ids = [image.image_id for image in images]
    loader = Loader(
        ImageFiles([root / image_id for image_id in ids], rule),
        ids,
        targets,
        IMAGE_SIZE,
        config.augment,
        fit=rule.fit,
        seed=config.seed,
        num_classes=num_classes,
        colour_axes=fit_colour_axes(images),
    )
    places = product(range(len(ids)), range(num_views))
    views = list(ordered_map(lambda place: loader.view(*place), places, config.threads))
    return [views[start : start + num_views] for start in range(0, len(views), num_views)]


def fit_colour_axes(images: Sequence[LoadedImage]) -> np.ndarray:
    """Find the axes along which the colours of the shown images vary; see `draw_view`."""
    statistics = measure_pixels(image.pixels[np.newaxis] for image in images)
    return statistics.colour_axes * statistics.colour_std


def mix(
    images: np.ndarray, targets: np.ndarray, num_classes: int, augment: AugmentSection, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blend images as a batch of training, where the settings ask for it.

    Returns:
        The pixels and the share of each class, of every image; nothing where none are blended.
    """
    if not augment.mixup and not augment.cutmix:
        return []
    one_hot = np.eye(num_classes, dtype=np.float32)[targets]
    mixed, shares = mix_batch(images, one_hot, augment, view_key(seed, 0, "batch 0"))
    return list(zip(mixed, shares, strict=True))


def describe_shares(shares: np.ndarray, class_names: Sequence[str]) -> str:
    """Say of which classes a blended image consists.

    Example:
        >>> describe_shares(np.array([0.62, 0.0, 0.38]), ["cat", "dog", "fox"])
        '62 % cat, 38 % fox'
    """
    named = zip(shares.tolist(), class_names, strict=True)
    return ", ".join(f"{100 * share:.0f} % {name}" for share, name in named if share > 0)


def settings_in_effect(augment: AugmentSection) -> dict[str, Any]:
    """Select the settings that change images, and `fused` where it is off beside them."""
    defaults = AugmentSection().model_dump()
    chosen = {
        name: value
        for name, value in augment.model_dump().items()
        if (
            augment.crop == CROP_SETTINGS[name]
            if name in CROP_SETTINGS
            else value != defaults[name]
        )
    }
    return chosen if chosen.keys() - {"fused"} else {}


def changes_images(augment: AugmentSection) -> bool:
    """Tell whether these settings change any image."""
    return bool(settings_in_effect(augment))


def preset_of(augment: AugmentSection) -> str:
    """Name the preset that settings are equal to; `""` where there is none.

    Example:
        >>> preset_of(AugmentSection()), preset_of(AugmentSection(hue=0.2))
        ('none', '')
    """
    return next(
        (
            name
            for name in AUGMENT_PRESETS
            if AugmentSection(**AUGMENT_PRESETS[name].settings) == augment
        ),
        "",
    )


def as_text(value: Any) -> str:
    """Write the value of a setting as a person would: `1.33`, `true`, `resized`."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def usage_sentence(contenders: Sequence[Contender]) -> str:
    """Say which contenders train on augmented views."""
    users = [contender.name for contender in contenders if uses_augmentation(contender)]
    if not users:
        return "No contender trains on augmented views: each looks at every image once, as it is."
    return f"Trained on augmented views: {', '.join(users)}; no other contender sees one."


def notes_on(augment: AugmentSection) -> list[str]:
    """Say what a contact sheet cannot show as training would have it."""
    notes = []
    if not changes_images(augment):
        notes.append(
            "Every setting is off, so all views are equal; try --set augment.preset=natural."
        )
    if augment.colour_pca:
        notes.append(
            "The colour axes of colour_pca are fitted on the images shown here; for training on "
            "all training images."
        )
    if augment.mixup or augment.cutmix:
        notes.append(
            "Training blends the images of a batch; the last row is one made of the images here."
        )
    return notes
