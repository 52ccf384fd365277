"""The sections of a pipeline file besides its contenders, validated.

Every section is frozen and refuses unknown keys, so a typing mistake is answered before anything
heavy starts.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.errors import check_name

FOLDERS = "folders"


class Section(BaseModel):
    """Base of all sections: frozen, strictly typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    # Keys that a file may have besides the fields, in whose place they are put.
    shorthands: ClassVar[tuple[str, ...]] = ()


def _refuse_repeated(names: tuple[str, ...]) -> tuple[str, ...]:
    repeated = [name for name, number in Counter(names).items() if number > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is named more than once; name it once")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_refuse_repeated)]


class DataSection(Section):
    """Where the images are and where their labels stand.

    Attributes:
        root: Folder of the images; relative paths start at the pipeline file.
        labels: `"folders"`: the name of the folder directly below `root` is the label;
            otherwise the name of a `.csv` or `.tsv` file in `root` with the columns
            `path` and `label`, optionally `group`, and any others.
        label_column: For a table: the column that holds the label.
        drop_unreadable: Leave images out that cannot be decoded, instead of stopping.
            They stay in the audit's findings.
        exclude: Images to leave out, by their path below `root`; they stay in the findings.
        max_pixels: Images of more pixels are not decoded: a small file can claim to be so
            large that it fills the memory.
        patient_groups: Keep DICOM images of one patient id together.
    """

    root: str
    labels: str = FOLDERS
    label_column: str = "label"
    drop_unreadable: bool = False
    exclude: Names = ()
    max_pixels: int = Field(default=200_000_000, ge=1)
    patient_groups: bool = True

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: str) -> str:
        plain_name = Path(value).name == value
        if value != FOLDERS and not (plain_name and value.lower().endswith((".csv", ".tsv"))):
            raise ValueError(
                f"must be {FOLDERS!r} or the name of a .csv or .tsv file in data.root, "
                f"but is {value!r}"
            )
        return value


class SplitSection(Section):
    """How images are kept away from training.

    Attributes:
        protocol: `"holdout"`: train, val and test. `"kfold"`: the same, and then the images
            are divided once more into folds, and every contender is fitted as many times, each
            time without one fold, so that every image is scored once. `"given"`: the split
            that the images come with; a val that is missing is taken from train.
            `"temporal"`: the oldest images are train, the newest test.
        val_fraction: Share of val; of a given split without val, the share of its train.
        test_fraction: Share of test; the rest is train.
        num_folds: Number of folds of `"kfold"`.
        num_repeats: How often `"kfold"` divides the images into folds anew.
        by: Columns of the table of images whose values are never parted, such as site or
            device: test then shows how contenders do on values that they have not seen.
        time_column: The column that `"temporal"` sorts by: ISO dates, or numbers.
        allow_leak: Go on although a given split parts a group or near-duplicates.
        careless: Whether the contenders are also fitted and scored on a plain random split,
            which parts groups and near-duplicates, to show what it would have claimed.
    """

    protocol: Literal["holdout", "kfold", "given", "temporal"] = "holdout"
    val_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)
    num_folds: int = Field(default=5, ge=2, le=20)
    num_repeats: int = Field(default=1, ge=1, le=20)
    by: Names = ()
    time_column: str = ""
    allow_leak: bool = False
    careless: bool = True

    @model_validator(mode="after")
    def _leave_some_for_train(self) -> "SplitSection":
        if self.val_fraction + self.test_fraction > 0.9 + 1e-9:  # 0.34 + 0.56 is a hair above
            raise ValueError(
                "val_fraction + test_fraction must leave at least 0.1 for train, but they "
                f"are {self.val_fraction} + {self.test_fraction}"
            )
        return self

    @model_validator(mode="after")
    def _fit_together(self) -> "SplitSection":
        if (self.protocol == "temporal") != bool(self.time_column):
            raise ValueError(
                "time_column and protocol = 'temporal' go together, but the protocol is "
                f"{self.protocol!r} and time_column is {self.time_column!r}"
            )
        if self.num_repeats > 1 and self.protocol != "kfold":
            raise ValueError(
                f"num_repeats is {self.num_repeats}, which is for protocol = 'kfold', but the "
                f"protocol is {self.protocol!r}"
            )
        return self


class ImagesSection(Section):
    """How an image is brought to the size that a contender sees.

    Attributes:
        fit: `"stretch"` changes the aspect ratio and keeps everything; `"pad"` keeps
            both and adds black borders; `"crop"` keeps the ratio and cuts the longer
            side around the centre, which can cut a finding away.
        white_level: The value of 16-bit images that becomes 255; 4095 for cameras of 12 bits.
        dicom_window: Centre and width of the grey values of DICOM images that are shown, in
            their own unit; empty: the first window of each file.
    """

    fit: Literal["stretch", "pad", "crop"] = "stretch"
    white_level: int = Field(default=65_535, ge=255, le=65_535)
    dicom_window: tuple[float, ...] = ()

    @field_validator("dicom_window")
    @classmethod
    def _check_window(cls, window: tuple[float, ...]) -> tuple[float, ...]:
        finite = all(math.isfinite(value) for value in window)
        if window and (len(window) != 2 or not finite or window[1] < 1):
            raise ValueError(
                f"must be [centre, width], both finite, with a width of at least 1, or empty, "
                f"but is {list(window)}"
            )
        return window


Share = Annotated[float, Field(ge=0.0, le=1.0)]


class AugmentSection(Section):
    """How training images are changed from epoch to epoch; evaluation never sees a change.

    A file may name a `preset` (`cvpipe.augment_presets`) and change some of its settings; what is
    stored are the plain settings. All at their defaults: every image as it is. The order in which
    they are applied is that of `cvpipe.data.augment.View`.

    Attributes:
        crop: `"resized"`: a random part of the image, brought to the full size. `"padded"`: the
            image shifted, its border filled with its mirror image. `"none"`: the whole image.
        min_area: Of a resized crop, the smallest share of the image's area.
        max_stretch: Of a resized crop, the largest change of the aspect ratio that evaluation
            shows, as a factor in either direction; `min_area` wins where both cannot be kept, as
            in a panorama that is cropped for evaluation.
        padding: Of a padded crop, the largest shift, as a share of the side.
        horizontal_flip: Probability of exchanging left and right.
        vertical_flip: Probability of exchanging top and bottom.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees; with a flip of .5 all eight symmetries.
        rotation_degrees: Largest turn in either direction.
        shift: Largest shift in both directions, as a share of the side.
        zoom: Largest change of size in either direction, as a share.
        shear_degrees: Largest slant in either direction.
        brightness: Factors are drawn from [1 - brightness, 1 + brightness].
        contrast: The same for the distance from the mean grey value.
        saturation: The same for the distance from grey.
        hue: Largest turn of the colour circle in either direction, in turns.
        colour_pca: Standard deviation of a colour jitter along the axes on which the colours of
            the training images vary, as a share of how much they vary; see
            `cvpipe.data.normalise.PixelStatistics` for how AlexNet's is measured.
        blur_pixels: Largest standard deviation of a Gaussian blur.
        noise_levels: Largest standard deviation of Gaussian noise in each channel, in grey levels.
        erasing: Probability of covering a random rectangle by grey noise.
        mixup: Parameter of the beta distribution by which pairs of images are blended, with
            their labels; 0: never.
        cutmix: The same for a rectangle that is pasted from another image.
        fused: Compute brightness, contrast and saturation as one matrix, clipped once; false:
            one after the other by albumentations, clipped thrice.
    """

    shorthands: ClassVar[tuple[str, ...]] = ("preset",)

    crop: Literal["none", "resized", "padded"] = "none"
    min_area: float = Field(default=0.5, gt=0.0, le=1.0)
    max_stretch: float = Field(default=4 / 3, ge=1.0, le=10.0)
    padding: float = Field(default=0.125, gt=0.0, lt=1.0)
    horizontal_flip: Share = 0.0
    vertical_flip: Share = 0.0
    quarter_turns: bool = False
    rotation_degrees: float = Field(default=0.0, ge=0.0, le=180.0)
    shift: float = Field(default=0.0, ge=0.0, lt=1.0)
    zoom: float = Field(default=0.0, ge=0.0, lt=1.0)
    shear_degrees: float = Field(default=0.0, ge=0.0, le=45.0)
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: float = Field(default=0.0, ge=0.0, le=0.5)
    colour_pca: float = Field(default=0.0, ge=0.0, le=10.0)
    blur_pixels: float = Field(default=0.0, ge=0.0, le=50.0)
    noise_levels: float = Field(default=0.0, ge=0.0, le=255.0)
    erasing: Share = 0.0
    mixup: float = Field(default=0.0, ge=0.0, le=100.0)
    cutmix: float = Field(default=0.0, ge=0.0, le=100.0)
    fused: bool = True

    @model_validator(mode="before")
    @classmethod
    def _spell_out_the_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "preset" not in values:
            return values
        given = dict(values)
        name = check_name("preset", str(given.pop("preset")), AUGMENT_PRESETS)
        return {**AUGMENT_PRESETS[name].settings, **given}


DEFAULT_AT_LEAST = 0.9
# In units of an ordinary mistake.
Cost = Annotated[float, Field(ge=0.0, le=1e6, allow_inf_nan=False)]


class EvaluateSection(Section):
    """How the contenders are judged.

    Attributes:
        select_by: The metric on val that fixes the chosen contender before test is opened;
            `"cost"` where there are costs.
        resamples: Number of bootstrap resamples behind the intervals.
        subgroups: Columns of the table of images; accuracy is also told for each of their
            values, the worst first.
        calibration: How probabilities are made to mean what they say, fitted on half B of val:
            one `"temperature"` for all classes, a slope and an offset for each (`"vector"`),
            a free curve for each (`"isotonic"`), or `"none"`. Of a small val only a
            temperature is fitted.
        costs: What mistakes cost: true class to predicted class to cost, at most a million.
            Those that are not named cost 1, right answers nothing. Empty: costs are not told.
        positive: The class that the operating point is to find; empty without such a goal.
        goal: What the operating point is fitted to on val: a `"sensitivity"` or
            `"specificity"` of at least `at_least`, the largest sum of the two (`"youden"`), or
            the smallest expected `"cost"`. Empty: there is none.
        at_least: The sensitivity or specificity that the goal asks for.
        conformal_level: Share of images whose prediction set is to hold the true class.
        learning_curve: Whether the chosen contender and the exported one are also fitted on parts
            of train, to say what more images would bring.
        views: How contenders see an image when they predict, `"single"` among them: the mean over
            several views of it costs as many passes. Which one a contender has is chosen on val.
        view_mean: What the mean over the views is of: `"probabilities"`, or `"logits"`, which is
            their normalised geometric mean.
    """

    select_by: Literal[
        "log_loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "cost"
    ] = "log_loss"
    resamples: int = Field(default=1000, ge=100, le=100_000)
    subgroups: Names = ()
    calibration: Literal["none", "temperature", "vector", "isotonic"] = "temperature"
    costs: dict[str, dict[str, Cost]] = Field(default_factory=dict)
    positive: str = ""
    goal: Literal["", "sensitivity", "specificity", "youden", "cost"] = ""
    at_least: float = Field(default=DEFAULT_AT_LEAST, gt=0.0, le=1.0)
    conformal_level: float = Field(default=0.9, gt=0.0, lt=1.0)
    learning_curve: bool = True
    views: Names = ("single",)
    view_mean: Literal["probabilities", "logits"] = "probabilities"

    def __hash__(self) -> int:
        # A table has no hash of its own, and the order of its keys must not matter.
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    @field_validator("views")
    @classmethod
    def _compare_with_a_single_view(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if "single" not in views:
            raise ValueError(
                "'single' must be among the views, because the others are compared with it, but "
                f"they are {list(views)}"
            )
        return views

    @field_validator("costs")
    @classmethod
    def _check_right_answers(
        cls, costs: dict[str, dict[str, float]]
    ) -> dict[str, dict[str, float]]:
        for name, row in costs.items():
            if row.get(name):
                raise ValueError(
                    f"a right answer costs nothing, but {name!r} for {name!r} costs {row[name]}; "
                    "subtract it from what the mistakes on that class cost"
                )
        return costs

    @model_validator(mode="after")
    def _have_costs_to_choose_by(self) -> "EvaluateSection":
        if self.select_by == "cost" and not self.costs:
            raise ValueError(
                "select_by is 'cost', but costs are not given; say what mistakes cost, as in "
                "costs = {sick = {healthy = 20}}, or choose by 'log_loss'"
            )
        return self

    @model_validator(mode="after")
    def _have_what_the_goal_needs(self) -> "EvaluateSection":
        about_a_class = self.goal not in ("", "cost")
        if about_a_class and not self.positive:
            raise ValueError(
                f"goal is {self.goal!r}, but positive is not given; name the class that is to be "
                "found, as in positive = 'tumour'"
            )
        if self.positive and not about_a_class:
            raise ValueError(
                f"positive is {self.positive!r}, which is for goal = 'sensitivity', 'specificity' "
                f"or 'youden', but the goal is {self.goal!r}"
            )
        if self.goal == "cost" and not self.costs:
            raise ValueError(
                "goal is 'cost', but costs are not given; say what mistakes cost, as in "
                "costs = {sick = {healthy = 20}}"
            )
        bounded = self.goal in ("sensitivity", "specificity")
        if self.at_least != DEFAULT_AT_LEAST and not bounded:
            raise ValueError(
                f"at_least is {self.at_least}, which is for goal = 'sensitivity' or "
                f"'specificity', but the goal is {self.goal!r}"
            )
        return self


class ExportSection(Section):
    """What is handed to an app.

    Attributes:
        formats: Formats of the exported files, as `cvpipe list exports` names them, at least
            one. `"native"` is for what is no network, all others are for networks.
    """

    formats: Names = Field(default=("keras", "native"), min_length=1)
