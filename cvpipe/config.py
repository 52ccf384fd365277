"""The sections of a pipeline file, validated.

People write TOML and programs write JSON; one loader reads both. Every section is
frozen and refuses unknown keys, so a typing mistake is answered before anything heavy
starts. Names of features, classifiers and backbones are checked against their tables by
`cvpipe.stages.plan`, because those tables belong to higher layers.
"""

import hashlib
import json
import math
import os
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.errors import InputError, check_name, nearest_name

PRESETS = ("quick", "standard")
FOLDERS = "folders"
MAX_NAME_LENGTH = 80


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


PlainName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
Side = Annotated[int, Field(ge=1, le=4096)]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]  # empty: not given


def _check_two_sides(size: tuple[int, ...]) -> tuple[int, ...]:
    if len(size) not in (0, 2):
        raise ValueError(f"must be [height, width] in pixels, or empty, but is {list(size)}")
    return size


def _check_setting(value: Any) -> Any:
    """Return a plain value, a list of whole numbers or of words as a tuple."""
    if isinstance(value, list | tuple) and len({type(part) for part in value} - {int, str}) == 0:
        return tuple(value)
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"must be a number, a word, true, false or a list of whole numbers or words: {value!r}"
    )


# A union of types would be answered with one complaint per type.
Setting = Annotated[Any, BeforeValidator(_check_setting)]


class FeatureSection(Section):
    """A hand-crafted feature with settings of its own, for contenders to name.

    Attributes:
        name: How contenders call it: lower-case letters, digits, underscores.
        kind: Which feature it is, as `cvpipe list features` tells, or a backbone.
        image_size: `(height, width)` in pixels that images are brought to first; empty: the
            usual size of its kind.
        settings: Settings by name; what is not named is as usual for its kind.
    """

    name: PlainName
    kind: str
    image_size: tuple[Side, ...] = ()
    settings: dict[str, Setting] = Field(default_factory=dict)

    def __hash__(self) -> int:
        # A table has no hash of its own, and the order of its keys must not matter.
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    _check_image_size = field_validator("image_size")(_check_two_sides)


Pooling = Literal["average", "max", "average_and_max"]
ClassWeights = Literal["none", "balanced"]


class ClassicContender(Section):
    """Hand-crafted features and a classifier.

    Attributes:
        name: How tables and folders call it: lower-case letters, digits, underscores.
        features: Names of features, concatenated in this order; empty for a classifier
            that looks at no image. The name of a backbone stands for its frozen features.
        classifier: Name of the classifier.
        search: How finely hyperparameters are searched by cross-validation in train.
        class_weights: `"balanced"`: images of rare classes count more in fitting, so that all
            classes count the same; `"none"`: every image counts the same.
    """

    name: PlainName
    features: tuple[str, ...] = ()
    classifier: str
    search: Literal["coarse", "fine"] = "fine"
    class_weights: ClassWeights = "none"


class TrainingSection(Section):
    """How a network is trained, in a contender that trains one.

    Attributes:
        epochs: At most so many times is every image seen.
        batch_size: Images per step.
        optimizer: Rule of a step; `"nesterov"` is momentum that looks ahead.
        learning_rate: Its largest value.
        backbone_rate: Factor of the learning rate for what was pretrained; the head learns at
            the full rate.
        schedule: How the rate falls: `"constant"`; to zero along a `"cosine"`; a tenth at half
            and again at three quarters of the epochs (`"step"`); a tenth when val no longer
            improves (`"plateau"`); several cosines one after the other (`"cyclic"`).
        cycles: Number of cosines of `"cyclic"`.
        warmup_epochs: The rate rises from zero over so many epochs.
        momentum: Of `"sgd"` and `"nesterov"`.
        weight_decay: Share of the learning rate by which kernels are pulled to zero in a step.
        dropout: Share of the features that is left out before the head, in training.
        label_smoothing: Share of the target that is spread evenly over all classes.
        loss: `"focal"` counts images less that are right already.
        focal_gamma: How much less; 0 is cross-entropy.
        logit_adjustment: Strength by which frequent classes are held back in training.
        sampling: `"balanced"`: every class is seen equally often.
        early_stopping: Keep the epoch that is best on half A of val; of a fold's images, one in
            seven is set aside for that. Otherwise the last epoch is kept, no image is set aside,
            and val is only looked at for the history.
        mixed_precision: Compute in half precision where that is harmless, which graphics
            processors do faster, and other ones slower. What is stored is `float32`, and so is
            `rate_test`.
        rate_test: Before training, raise the learning rate step by step until the loss explodes;
            the report shows the curve and suggests a rate. Nothing is trained by it.
        patience: With early stopping, training ends when so many epochs in a row bring nothing.
        averaging: What becomes of several networks, `members` of them, that share the epochs.
            `"snapshots"`: one training, and the mean of what its network said at the ends of the
            last cycles. `"restarts"`: the mean of as many trainings with other random draws.
            `"folds"`: of trainings that leave out another part of train each. `"soup"`: one
            network with the mean weights of such restarts. `"ema"`: one training, whose weights
            are averaged along the way. `"none"`: one network as it was trained.
        members: Of all but `"none"` and `"ema"`: how many networks.
        ema_decay: Of `"ema"`: what the average keeps of itself in a step, so that it looks back
            over about 1 / (1 - ema_decay) steps.
    """

    epochs: int = Field(default=30, ge=1, le=10_000)
    batch_size: int = Field(default=32, ge=2, le=4096)
    optimizer: Literal["sgd", "nesterov", "rmsprop", "adam", "adamw"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0.0, le=10.0)
    backbone_rate: float = Field(default=0.1, gt=0.0, le=1.0)
    schedule: Literal["constant", "cosine", "step", "plateau", "cyclic"] = "cosine"
    cycles: int = Field(default=1, ge=1, le=100)
    warmup_epochs: float = Field(default=1.0, ge=0.0, le=100.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=1e-4, ge=0.0, le=1.0)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: float = Field(default=2.0, ge=0.0, le=10.0)
    logit_adjustment: float = Field(default=0.0, ge=0.0, le=4.0)
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    early_stopping: bool = True
    mixed_precision: bool = False
    rate_test: bool = False
    patience: int = Field(default=10, ge=1, le=10_000)
    averaging: Literal["none", "snapshots", "restarts", "folds", "soup", "ema"] = "none"
    members: int = Field(default=5, ge=2, le=100)
    ema_decay: float = Field(default=0.99, gt=0.0, lt=1.0)

    @property
    def num_trainings(self) -> int:
        """How many trainings share the epochs."""
        return self.members if self.averaging in ("restarts", "folds", "soup") else 1

    @model_validator(mode="after")
    def _use_what_is_set(self) -> "TrainingSection":
        uses = {
            "momentum": ("optimizer", self.optimizer in ("sgd", "nesterov")),
            "focal_gamma": ("loss", self.loss == "focal"),
            "patience": ("early_stopping", self.early_stopping),
            "members": ("averaging", self.averaging not in ("none", "ema")),
            "ema_decay": ("averaging", self.averaging == "ema"),
        }
        for key, (other, used) in uses.items():
            if not used and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} has no effect where {other} is {getattr(self, other)!r}; leave one of "
                    "them out"
                )
        return self

    @model_validator(mode="after")
    def _have_cycles_to_run(self) -> "TrainingSection":
        if self.cycles > 1 and self.schedule != "cyclic":
            raise ValueError(
                f"cycles is {self.cycles}, which is for schedule = 'cyclic', but the schedule is "
                f"{self.schedule!r}"
            )
        if self.epochs % self.cycles:
            raise ValueError(
                f"every cycle has as many epochs, but {self.epochs} epochs cannot be divided into "
                f"{self.cycles} cycles"
            )
        return self

    @model_validator(mode="after")
    def _have_members_to_average(self) -> "TrainingSection":
        if self.averaging == "snapshots" and self.cycles < self.members:
            raise ValueError(
                f"averaging = 'snapshots' takes the last {self.members} cycles, but there are "
                f"{self.cycles}; set schedule = 'cyclic' and cycles = {self.members}, or fewer "
                "members"
            )
        if self.epochs % (self.num_trainings * self.cycles):
            raise ValueError(
                f"{self.epochs} epochs are shared by {self.num_trainings} trainings of "
                f"{self.cycles} cycles each, which does not come out even; choose a multiple"
            )
        if self.averaging not in ("none", "ema") and self.early_stopping:
            raise ValueError(
                f"averaging = {self.averaging!r} uses all of the epochs; set early_stopping = false"
            )
        return self


class NetworkContender(Section):
    """A network and the recipe that adapts it.

    Attributes:
        name: As in `ClassicContender`.
        backbone: Name of the network.
        weights: Where its weights come from: `"package"`, the data package that has them;
            `"keras"`, those of keras.applications; or a file, from the current folder or from
            that of the environment variable CVPIPE_WEIGHTS_DIR.
        weights_sha256: Checksum of that file.
        image_size: `(height, width)` in pixels that images are brought to; empty: the usual
            size of the backbone.
        recipe: `"linear_probe"`: a softmax classifier on the frozen features. `"fine_tune"`: the
            same, and then what lies behind a freeze point learns. `"from_scratch"`: the whole
            network, with no weights to start from.
        layers: Of `"linear_probe"`: freeze points whose outputs, pooled, are the features.
        pooling: How those are pooled over the places of an image.
        freeze: Of `"fine_tune"`: what stays as it is: all up to a freeze point of the backbone,
            named or as `"middle"` or `"last_block"`, or `"none"` of it.
        views: Of a network that is frozen up to somewhere: how many views of each training image
            are kept, the image as it is among them; the others are drawn by `[augment]`.
        search: As in `ClassicContender`, for the linear classifier.
        class_weights: As in `ClassicContender`.
        training: How the network is trained.
    """

    name: PlainName
    backbone: str
    weights: str = "package"
    weights_sha256: Sha256 = ""
    image_size: tuple[Side, ...] = ()
    recipe: Literal["linear_probe", "fine_tune", "from_scratch"]
    layers: Annotated[Names, Field(min_length=1)] = ("features",)
    pooling: Pooling = "average"
    freeze: str = "middle"
    views: int = Field(default=1, ge=1, le=100)
    search: Literal["coarse", "fine"] = "fine"
    class_weights: ClassWeights = "none"
    training: TrainingSection = TrainingSection()

    _check_image_size = field_validator("image_size")(_check_two_sides)

    @model_validator(mode="after")
    def _say_nothing_without_effect(self) -> "NetworkContender":
        only = {
            "linear_probe": ("layers", "pooling", "views", "search"),
            "fine_tune": ("freeze", "views", "search", "training"),
            "from_scratch": ("training",),
        }
        for key in ("layers", "pooling", "freeze", "views", "search", "training"):
            usual = type(self).model_fields[key].default
            if key not in only[self.recipe] and getattr(self, key) != usual:
                raise ValueError(
                    f"{key} has no effect on the recipe {self.recipe!r}; leave it out, or choose "
                    f"another recipe"
                )
        if self.pooling != "average" and self.layers == ("features",):
            raise ValueError(
                "pooling has no effect on the features, which are pooled already; name other layers"
            )
        if self.weights_sha256 and self.weights in ("package", "keras", "none"):
            raise ValueError(
                f"weights_sha256 is for a file, but weights is {self.weights!r}; leave it out"
            )
        if self.recipe == "from_scratch" and self.training.averaging == "soup":
            raise ValueError(
                "training.averaging is 'soup', but the mean of the weights of networks means "
                "something only where they start from the same ones, and the recipe is "
                "'from_scratch'; choose 'restarts'"
            )
        if self.recipe == "from_scratch" and self.training.backbone_rate != 0.1:
            raise ValueError(
                "training.backbone_rate has no effect on the recipe 'from_scratch', in which all "
                "layers learn at one rate; leave it out"
            )
        remedies = {
            "class_weights": self.class_weights != "none",
            "training.sampling": self.training.sampling != "shuffled",
            "training.logit_adjustment": self.training.logit_adjustment > 0,
        }
        if sum(remedies.values()) > 1:
            chosen = [key for key, used in remedies.items() if used]
            raise ValueError(
                f"{' and '.join(chosen)} are remedies for the same thing, and together overshoot; "
                "choose one of them"
            )
        if self.recipe == "from_scratch" and self.weights not in ("package", "none"):
            raise ValueError(
                f"weights is {self.weights!r}, but the recipe 'from_scratch' starts from none; "
                "leave it out, or choose 'fine_tune'"
            )
        return self


class ImportedContender(Section):
    """A network that another program trained; nothing of it is fitted here.

    Its figures are honest only if it was never trained on these images, which nobody but who
    trained it can know.

    Attributes:
        name: As in `ClassicContender`.
        model: A Keras file: `.h5` of Keras 2, as Teachable Machine writes it, or `.keras`. Paths
            start at the pipeline file; otherwise it is looked for from the current folder, and in
            that of the environment variable CVPIPE_WEIGHTS_DIR.
        labels: Text file with the names of its outputs, one per line, in their order; found in the
            same way.
        scaling: What becomes of the levels of a pixel before the network sees them: `"none"`: 0 to
            255, `"zero_to_one"`: divided by 255; `"minus_one_to_one"`: divided by 127.5, less 1.
        model_sha256: Checksum of the model; where the file does not say it, it is filled in, so
            that another model makes another run.
        labels_sha256: The same of the labels.
    """

    name: PlainName
    model: str
    labels: str
    scaling: Literal["none", "zero_to_one", "minus_one_to_one"] = "minus_one_to_one"
    model_sha256: Sha256 = ""
    labels_sha256: Sha256 = ""


class EnsembleContender(Section):
    """Several other contenders, whose probabilities are combined into one answer.

    Attributes:
        name: As in `ClassicContender`.
        members: Names of other contenders, none of them an ensemble.
        combine: `"mean"` of the probabilities; `"geometric_mean"`, which is the mean of the
            logits; `"weighted"`: a mean with weights fitted on half B of val; `"greedy"`: one
            whose members are picked there one by one; `"vote"`: what most members name;
            `"stacking"`: a classifier on what the members say of images of train that they were
            not fitted on. Of a small val nothing is fitted, and all members weigh the same.
    """

    name: PlainName
    members: Annotated[Names, Field(min_length=2)]
    combine: Literal["mean", "geometric_mean", "weighted", "vote", "greedy", "stacking"] = "mean"


# One that is fitted here, and one that looks at images itself.
FittedContender = ClassicContender | NetworkContender
# One that is a whole network, wherever it was trained.
AnyNetwork = NetworkContender | ImportedContender
SingleContender = FittedContender | ImportedContender

# What only sections of a kind have.
_TELLING_KEYS = {
    "network": {"backbone", "recipe"},
    "imported": {"model", "labels", "scaling"},
    "ensemble": {"members", "combine"},
}
CONTENDER_KINDS: dict[str, type[Section]] = {
    "classic": ClassicContender,
    "network": NetworkContender,
    "imported": ImportedContender,
    "ensemble": EnsembleContender,
}


def _contender_kind(values: Any) -> str:
    if isinstance(values, Mapping):
        kinds = (kind for kind, keys in _TELLING_KEYS.items() if keys & values.keys())
        return next(kinds, "classic")
    kinds = (kind for kind, section in CONTENDER_KINDS.items() if type(values) is section)
    return next(kinds, "classic")


Contender = Annotated[
    Annotated[ClassicContender, Tag("classic")]
    | Annotated[NetworkContender, Tag("network")]
    | Annotated[ImportedContender, Tag("imported")]
    | Annotated[EnsembleContender, Tag("ensemble")],
    Discriminator(_contender_kind),
]


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


def _refuse_namesakes(what: str, parts: Sequence[Any]) -> None:
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are called {name!r}; give each its own name")


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Config(Section):
    """A whole pipeline file.

    Attributes:
        name: What run folders are called; made of the file's stem where the file does not say.
        feature: Features with settings of their own, beside those that have a name already.
        contender: The contenders to compare, in the order of the tables.
        seed: Start of every random draw.
        runtime: What computes the frozen parts of networks, as `cvpipe list runtimes` tells. Those
            besides TensorFlow are extras; before one is used, it is compared with TensorFlow.
        precision: `"bfloat16"` is faster on processors that have it, and its features differ by
            some per cent.
        threads: Threads of the numerical libraries and of the image loader. Part of the
            config because the last bits of a sum depend on it; all usable cores where the
            file does not say.
    """

    name: Annotated[str, Field(pattern=r"^\w([\w .-]*[\w-])?$", max_length=MAX_NAME_LENGTH)]
    data: DataSection
    split: SplitSection = SplitSection()
    images: ImagesSection = ImagesSection()
    augment: AugmentSection = AugmentSection()
    feature: tuple[FeatureSection, ...] = ()
    contender: tuple[Contender, ...]
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    runtime: str = "tensorflow"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**32)
    threads: int = Field(default_factory=usable_cores, ge=1, le=1024)

    @field_validator("contender")
    @classmethod
    def _check_contenders(cls, contenders: tuple[Contender, ...]) -> tuple[Contender, ...]:
        if not contenders:
            raise ValueError("a pipeline needs at least one [[contender]]")
        _refuse_namesakes("contenders", contenders)
        return contenders

    @field_validator("feature")
    @classmethod
    def _check_features(cls, features: tuple[FeatureSection, ...]) -> tuple[FeatureSection, ...]:
        _refuse_namesakes("features", features)
        return features

    @model_validator(mode="after")
    def _have_the_members(self) -> "Config":
        others = [c.name for c in self.contender if not isinstance(c, EnsembleContender)]
        for contender in self.contender:
            if isinstance(contender, EnsembleContender):
                for name in contender.members:
                    if name in others:
                        continue
                    known = name in [c.name for c in self.contender]
                    why = "an ensemble itself" if known else "no contender"
                    raise ValueError(
                        f"the ensemble {contender.name!r} names the member {name!r}, which is "
                        f"{why}; {nearest_name(name, others)}"
                    )
        return self

    @model_validator(mode="after")
    def _can_be_exported(self) -> "Config":
        kinds = (NetworkContender, ImportedContender)
        networks = [c.name for c in self.contender if isinstance(c, kinds)]
        if networks and self.evaluate.calibration == "isotonic":
            raise ValueError(
                "evaluate.calibration is 'isotonic', but its curves cannot be built into the "
                f"exported file of a network ({networks[0]!r}); choose 'temperature' or 'vector', "
                "or leave the networks out"
            )
        return self


def name_of(text: str) -> str:
    """Make the name of a config out of the name of a file or folder.

    Example:
        >>> name_of("Größe 10 m² (1).")
        'Größe_10_m___1_'
    """
    # Not `isalnum`: it takes a superscript for a letter, the pattern of names does not.
    kept = (c if c.isalpha() or c.isdecimal() or c in "_.-" else "_" for c in text)
    return "".join(kept).lstrip(".-")[:MAX_NAME_LENGTH].rstrip(".") or "images"


# The whole first table, from what looks at no pixel to a network.
STANDARD_CONTENDERS: tuple[dict[str, Any], ...] = (
    {"name": "majority", "classifier": "majority"},
    {"name": "shortcut", "features": ["file_facts"], "classifier": "gradient_boosting"},
    {"name": "pixels_knn", "features": ["raw_pixels"], "classifier": "nearest_neighbours"},
    {"name": "colour_softmax", "features": ["colour_histogram"], "classifier": "softmax"},
    {"name": "hog_svm", "features": ["hog"], "classifier": "linear_svm"},
    {"name": "hog_rbf", "features": ["hog"], "classifier": "rbf_svm"},
    {"name": "lite0_rbf", "features": ["efficientnet_lite0"], "classifier": "rbf_svm"},
    {"name": "linear_probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"},
)
QUICK_CONTENDERS = ("majority", "shortcut", "hog_svm", "linear_probe")


def preset_config(name: str, root: str, labels: str, preset: str) -> dict[str, Any]:
    """Write the raw config for a folder that has no pipeline file.

    Args:
        name: What run folders are called.
        root: Folder of the images.
        labels: As in `DataSection`.
        preset: One of `PRESETS`: `"quick"` has fewer contenders and searches their
            hyperparameters coarsely.
    """
    contenders = list(STANDARD_CONTENDERS)
    if preset == "quick":
        quick = [c for c in contenders if c["name"] in QUICK_CONTENDERS]
        contenders = [{**contender, "search": "coarse"} for contender in quick]
    return {"name": name, "data": {"root": root, "labels": labels}, "contender": contenders}


def load_config(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a pipeline file.

    Args:
        path: A `.toml` file, or a `.json` file such as a run's `config.json`.
        settings: Changes of the form `section.key=value`, applied before validation.

    Raises:
        InputError: The file cannot be read or parsed, or says something unknown.
    """
    return validate_config(read_raw_config(path), settings, source=str(path))


def read_raw_config(path: Path) -> dict[str, Any]:
    """Parse a pipeline file without validating it; `name` is filled in from the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a mark at the start
    except FileNotFoundError:
        others = sorted(str(p) for p in path.parent.glob("*.toml"))
        raise InputError(
            f"there is no pipeline file {str(path)!r}; {nearest_name(str(path), others)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the pipeline file {str(path)!r}: {error}.") from None
    try:
        raw = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be parsed: {error}.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold sections, but holds a {type(raw).__name__}.")
    return {"name": name_of(path.stem), **raw}


def validate_config(
    raw: Mapping[str, Any], settings: Sequence[str] = (), source: str = ""
) -> Config:
    """Turn parsed values into a config.

    Args:
        raw: Sections as parsed from a file.
        settings: Changes of the form `section.key=value`.
        source: Where the values come from, for messages.

    Raises:
        InputError: A key is unknown or missing, or a value has the wrong type or range.
    """
    values = json.loads(json.dumps(raw, default=str))  # a private copy, in JSON's types
    # A preset replaces its section, so what is set besides comes after it, in whatever order.
    for setting in sorted(settings, key=lambda text: not text.startswith("augment.preset")):
        _apply_setting(values, setting)
    try:
        # Through JSON, because there a list is the only way to write a tuple, while every
        # other type stays strict: the text "7" is not a seed.
        return Config.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        where = f"{source}: " if source else ""
        problems = "; ".join(_explain(e) for e in error.errors())
        raise InputError(f"{where}{problems}") from None


def _apply_setting(values: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) > 2 or not all(parts) or "\n" in text:
        raise InputError(
            f"cannot understand the setting {setting!r}; write section.key=value, "
            "for example split.test_fraction=0.3."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text: images.fit=pad
    target = values if len(parts) == 1 else values.setdefault(parts[0], {})
    if not isinstance(target, dict):
        kind = "list" if isinstance(target, list) else "single value"
        raise InputError(
            f"{parts[0]!r} is a {kind}; change it in the pipeline file, not by {setting!r}."
        )
    if parts == ["augment", "preset"]:
        target.clear()  # or the settings of a file, and all those of a stored config, would win
    target[parts[-1]] = value


def _explain(error: Any) -> str:
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        known = [*section.model_fields, *section.shorthands]
        return f"unknown key {_dotted(location)!r}; {nearest_name(location[-1], known)}"
    if error["type"] == "missing":
        return f"{_dotted(location)!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, but is {error['input']!r}"
        if error["type"] == "string_type":
            message += f"; write it in quotes: '\"{error['input']}\"'"
    return f"{_dotted(location) or 'top level'}: {message}"


def _dotted(location: Sequence[str | int]) -> str:
    """Write the place of an error as a person would: `contender.2.classifier`."""
    # pydantic puts the kind of a contender behind its number.
    parts = [*location[:2], *location[3:]] if location[:1] == ("contender",) else location
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)


def _section_at(location: Sequence[str | int]) -> type[Section]:
    """Find the section that an error's location points into."""
    if not location:
        return Config
    if location[0] == "contender":
        return TrainingSection if "training" in location else CONTENDER_KINDS[str(location[2])]
    if location[0] == "feature":
        return FeatureSection
    section = Config.model_fields[str(location[0])].annotation
    return section if isinstance(section, type) and issubclass(section, Section) else Config


def config_hash(config: Config) -> str:
    """Name a config by its content.

    `data.root` is left out: the fingerprint of the manifest says which images were used,
    wherever they lie. So are the paths of imported models, of which the checksums say it.

    Returns:
        64 hexadecimal digits; equal for equal configs.
    """
    values = config.model_dump(mode="json")
    del values["data"]["root"]
    for contender in values["contender"]:
        if "model_sha256" in contender:
            del contender["model"], contender["labels"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
