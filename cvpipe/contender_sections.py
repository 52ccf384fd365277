"""What a pipeline file can say of a contender and of the features that contenders name.

Names of features, classifiers and backbones are checked against their tables by
`cvpipe.stages.plan`, because those tables belong to higher layers.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from cvpipe.sections import Names, Section

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
