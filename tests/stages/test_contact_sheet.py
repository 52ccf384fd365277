"""Contact sheets: which images and views they show, and what they say."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe.stages.contact_sheet as contact_sheet
from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.config import validate_config
from cvpipe.data.images import DecodeRule, read_image, resize_image
from cvpipe.data.loading import Loader
from cvpipe.data.mixing import mix_batch
from cvpipe.data.pixels import ImageFiles
from cvpipe.data.view_words import describe_view
from cvpipe.errors import InputError
from cvpipe.runs import Run
from cvpipe.sections import AugmentSection
from cvpipe.stages.contact_sheet import (
    IMAGE_SIZE,
    LoadedImage,
    as_text,
    changes_images,
    collect_sheet,
    describe_shares,
    fit_colour_axes,
    mix,
    notes_on,
    preset_of,
    report_sheet,
    settings_in_effect,
    usage_sentence,
)
from cvpipe.stages.recipes import uses_augmentation

LABELS = ("cat", "dog", "fox")


@pytest.fixture
def root(tmp_path):
    """Three classes of five images; they are higher than wide, and no two are equal."""
    for label in LABELS:
        for number in range(5):
            seed = LABELS.index(label) * 10 + number
            pixels = np.random.default_rng(seed).integers(0, 256, (6, 4, 3), dtype=np.uint8)
            path = tmp_path / "pets" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((80, 120), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "pets"


def rows_of(root):
    ids = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return pd.DataFrame({"image_id": ids, "label": [image_id.split("/")[0] for image_id in ids]})


def config_of(root, augment=None, **values):
    return validate_config(
        {
            "name": "pets",
            "data": {"root": str(root), **values.pop("data", {})},
            "augment": augment or {},
            "contender": [{"name": "a", "classifier": "majority"}],
            "threads": 2,
            **values,
        }
    )


def decoded(cell):
    data = base64.b64decode(cell.picture.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture).astype(int)


def ids_of(sheet):
    return [row.image_id for row in sheet.rows]


# Which images.


def test_images_are_spread_over_the_classes(root):
    config = config_of(root, {"preset": "natural"})
    for num_images, expected in ((2, 1), (3, 1), (6, 2), (15, 5)):
        sheet = collect_sheet(rows_of(root), root, config, num_images, 1)
        counts = pd.Series([row.label for row in sheet.rows]).value_counts()
        assert len(sheet.rows) == num_images
        assert counts.max() == expected
        assert len(counts) == min(num_images, 3)
        assert ids_of(sheet) == sorted(ids_of(sheet))
        assert all(row.image_id.startswith(f"{row.label}/") for row in sheet.rows)
    assert len(collect_sheet(rows_of(root), root, config, 99, 1).rows) == 15


def test_the_same_images_are_shown_whatever_the_seed_and_the_order(root):
    rows = rows_of(root)
    shown = ids_of(collect_sheet(rows, root, config_of(root), 4, 1))
    turned = rows.iloc[::-1].reset_index(drop=True)
    assert ids_of(collect_sheet(turned, root, config_of(root, seed=5), 4, 1)) == shown


def test_an_image_that_cannot_be_read_is_named_or_passed_over(root):
    rows = rows_of(root)
    first = ids_of(collect_sheet(rows, root, config_of(root), 3, 1))[1]
    (root / first).write_bytes(b"no image")
    with pytest.raises(InputError) as error:
        collect_sheet(rows, root, config_of(root), 3, 1)
    assert str(error.value).startswith(f"cannot read the image '{root / first}': ")
    assert str(error.value).endswith(
        "Mend or remove it, or leave out what cannot be read with: --set data.drop_unreadable=true"
    )
    allowed = config_of(root, data={"drop_unreadable": True})
    sheet = collect_sheet(rows, root, allowed, 3, 1)
    assert [row.label for row in sheet.rows] == list(LABELS)
    assert first not in ids_of(sheet)


def test_only_images_that_cannot_be_read(root):
    for path in root.rglob("*.png"):
        path.write_bytes(b"no image")
    config = config_of(root, data={"drop_unreadable": True})
    message = r"none of the 15 image\(s\) in '.*pets' can be decoded; see what is wrong with"
    with pytest.raises(InputError, match=message):
        collect_sheet(rows_of(root), root, config, 3, 1)


# Which views.


def test_pictures_and_captions_are_those_of_the_loader(root):
    config = config_of(root, {"preset": "natural", "erasing": 0.5}, seed=3)
    sheet = collect_sheet(rows_of(root), root, config, 3, 4)
    paths = [root / image_id for image_id in ids_of(sheet)]
    loader = Loader(
        ImageFiles(paths, DecodeRule()), ids_of(sheet), np.zeros(3), IMAGE_SIZE, config.augment,
        seed=3,
    )  # fmt: skip
    for position, row in enumerate(sheet.rows):
        assert len(row.cells) == 5
        for epoch, cell in enumerate(row.cells[1:]):
            pixels, view = loader.view(position, epoch)
            assert cell.caption == describe_view(view, (120, 80))
            assert decoded(cell).shape == (224, 224, 3)
            assert np.abs(decoded(cell) - pixels).mean() < 12  # JPEG; another view differs by 40
    captions = [cell.caption for row in sheet.rows for cell in row.cells[1:]]
    assert len(set(captions)) == 12


def test_the_first_picture_is_the_image_in_evaluation(root):
    config = config_of(root, {"preset": "microscopy"}, images={"fit": "pad"})
    for row in collect_sheet(rows_of(root), root, config, 2, 1).rows:
        expected = resize_image(read_image(root / row.image_id), IMAGE_SIZE, "pad")
        assert row.cells[0].caption == "in evaluation"
        assert np.abs(decoded(row.cells[0]) - expected).mean() < 5


def test_small_pictures_show_the_same_views(root):
    config = config_of(root, {"blur_pixels": 9.0, "crop": "padded"})
    large = collect_sheet(rows_of(root), root, config, 2, 2)
    small = collect_sheet(rows_of(root), root, config, 2, 2, picture_pixels=112)
    for one, other in zip(large.rows, small.rows, strict=True):
        for big, little in zip(one.cells, other.cells, strict=True):
            assert big.caption == little.caption
            assert decoded(little).shape == (112, 112, 3)
            halved = decoded(big).reshape(112, 2, 112, 2, 3).mean(axis=(1, 3))
            assert np.abs(decoded(little) - halved).mean() < 10


def test_threads_change_nothing(root):
    settings = {"preset": "natural", "mixup": 0.4, "colour_pca": 0.1, "noise_levels": 5.0}
    sheets = [
        collect_sheet(rows_of(root), root, config_of(root, settings, threads=threads), 5, 3)
        for threads in (1, 2, 8, 2)
    ]
    assert all(sheet == sheets[0] for sheet in sheets)


def test_the_seed_changes_the_views(root):
    one, other = (
        collect_sheet(rows_of(root), root, config_of(root, {"preset": "natural"}, seed=seed), 2, 2)
        for seed in (0, 1)
    )
    assert one.rows[0].cells[1].caption != other.rows[0].cells[1].caption


# Mixed batches and colours.


def test_a_mixed_batch_is_that_of_training(root):
    config = config_of(root, {"mixup": 8.0}, seed=4)
    sheet = collect_sheet(rows_of(root), root, config, 3, 2)
    firsts = np.stack([read_image(root / i) for i in ids_of(sheet)])
    firsts = np.stack([resize_image(image, IMAGE_SIZE, "stretch") for image in firsts])
    one_hot = np.eye(3, dtype=np.float32)
    pixels, shares = mix_batch(firsts, one_hot, config.augment, "4/0/batch 0")
    assert len(sheet.mixed) == 3
    for cell, picture, share in zip(sheet.mixed, pixels, shares, strict=True):
        assert cell.caption == describe_shares(share, LABELS)
        assert np.abs(decoded(cell) - picture).mean() < 6
    assert any("," in cell.caption for cell in sheet.mixed)


def test_without_mixing_there_is_no_mixed_batch(root):
    assert collect_sheet(rows_of(root), root, config_of(root), 2, 1).mixed == []
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    assert mix(images, np.array([0, 1]), 2, AugmentSection(hue=0.1), 0) == []
    for name in ("mixup", "cutmix"):
        mixed = mix(images, np.array([0, 1]), 2, AugmentSection(**{name: 1.0}), 0)
        assert [shares.sum() for _, shares in mixed] == pytest.approx([1, 1])


def test_colour_axes_are_as_long_as_the_spread_of_the_colours():
    pixels = np.random.default_rng(0).normal(128, [30, 20, 5], (50, 50, 3)).astype(np.uint8)
    images = [LoadedImage("a", (9, 9), pixels[:25]), LoadedImage("b", (9, 9), pixels[25:])]
    axes = fit_colour_axes(images)
    covariance = np.cov(pixels.reshape(-1, 3).T, bias=True)
    assert axes @ axes.T == pytest.approx(covariance)
    assert np.linalg.norm(axes[:, 0]) > np.linalg.norm(axes[:, 2])


# Words.


def test_shares_are_rounded_and_classes_without_one_left_out():
    assert describe_shares(np.array([0.625, 0.0, 0.375]), LABELS) == "62 % cat, 38 % fox"
    assert describe_shares(np.array([0.0, 1.0, 0.0]), LABELS) == "100 % dog"


def test_settings_in_effect_are_those_that_change_images():
    for kept in ({}, {"fused": False}, {"min_area": 0.3, "padding": 0.2, "max_stretch": 2.0}):
        assert settings_in_effect(AugmentSection(**kept)) == {}
        assert not changes_images(AugmentSection(**kept))
    padded = AugmentSection(crop="padded", min_area=0.3)
    assert settings_in_effect(padded) == {"crop": "padded", "padding": 0.125}
    resized = AugmentSection(crop="resized", padding=0.3)
    assert list(settings_in_effect(resized)) == ["crop", "min_area", "max_stretch"]
    steps = AugmentSection(brightness=0.1, fused=False)
    assert settings_in_effect(steps) == {"brightness": 0.1, "fused": False}
    assert changes_images(steps)


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_a_preset_is_recognised_by_its_settings(root, name):
    augment = AugmentSection.model_validate({"preset": name})
    assert preset_of(augment) == name
    assert preset_of(augment.model_copy(update={"hue": 0.11})) == ""
    sheet = collect_sheet(rows_of(root), root, config_of(root, {"preset": name}), 1, 1)
    assert (sheet.preset, sheet.reason) == (name, AUGMENT_PRESETS[name].reason)
    assert dict(sheet.settings).keys() >= AUGMENT_PRESETS[name].settings.keys()
    own = collect_sheet(rows_of(root), root, config_of(root, {"hue": 0.11}), 1, 1)
    assert (own.preset, own.reason, own.settings) == ("", "", [("hue", "0.11")])


def test_values_are_written_as_people_do():
    values = (True, False, "resized", 4 / 3, 10.0, 0.02)
    assert [as_text(v) for v in values] == ["true", "false", "resized", "1.33", "10", "0.02"]


def test_who_uses_views_is_told_in_one_sentence(root, monkeypatch):
    config = config_of(
        root,
        contender=[
            {"name": "hog", "features": ["hog"], "classifier": "linear_svm"},
            {"name": "probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"},
        ],
    )
    assert [uses_augmentation(contender) for contender in config.contender] == [False, False]
    assert usage_sentence(config.contender) == (
        "No contender trains on augmented views: each looks at every image once, as it is."
    )
    monkeypatch.setattr(contact_sheet, "uses_augmentation", lambda c: c.name == "probe")
    assert usage_sentence(config.contender) == (
        "Trained on augmented views: probe; no other contender sees one."
    )


def test_notes_say_what_is_not_as_in_training():
    assert notes_on(AugmentSection(hue=0.1)) == []
    (off,) = notes_on(AugmentSection())
    assert off.startswith("Every setting is off, so all views are equal;")
    (colour,) = notes_on(AugmentSection(colour_pca=0.1))
    assert "fitted on the images shown here" in colour
    for name in ("mixup", "cutmix"):
        (mixing,) = notes_on(AugmentSection(**{name: 0.2}))
        assert "the last row is one made of the images here" in mixing


# In a report.


class StoredRun(Run):
    def config(self):
        return self.stored


def test_a_report_shows_training_images_alone(root, tmp_path):
    run = StoredRun(tmp_path)
    manifest = rows_of(root).assign(split=["train", "val", "test", "train", "test"] * 3)
    object.__setattr__(run, "stored", config_of(root, {"preset": "natural"}))
    sheet = report_sheet(run, root, manifest)
    split = dict(zip(manifest["image_id"], manifest["split"], strict=True))
    assert {split[image_id] for image_id in ids_of(sheet)} == {"train"}
    assert len(sheet.rows) == 4
    assert {decoded(cell).shape for row in sheet.rows for cell in row.cells} == {(112, 112, 3)}
    assert sum(len(cell.picture) for row in sheet.rows for cell in row.cells) < 400_000
    object.__setattr__(run, "stored", config_of(root, {"min_area": 0.3}))
    assert report_sheet(run, root, manifest) is None
