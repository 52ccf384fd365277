"""From what a person typed to a checked config: before anything heavy starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvpipe.classifiers.table import CLASSIFIERS, SEARCHES, count_search_fits
from cvpipe.config import PRESETS, Config, load_config, name_of, preset_config, validate_config
from cvpipe.contender_sections import (
    ClassicContender,
    EnsembleContender,
    ImportedContender,
    NetworkContender,
    SingleContender,
)
from cvpipe.data.manifest import has_given_split
from cvpipe.data.sources import DATASETS
from cvpipe.errors import InputError, check_name
from cvpipe.export.formats import check_format, parse_label
from cvpipe.features.table import FEATURES, Feature, FileFeature
from cvpipe.inference.crops import VIEWS, num_views
from cvpipe.models.backbones import BACKBONES, check_backbone
from cvpipe.models.deep_features import DeepFeature, check_deep_feature
from cvpipe.models.runtimes import check_runtime
from cvpipe.models.transfer import WHOLE_NETWORK, freeze_point
from cvpipe.sections import FOLDERS
from cvpipe.stages.contact_sheet import changes_images
from cvpipe.stages.ensembles import NUM_STACKING_FOLDS, STACKING
from cvpipe.stages.imported import pin_imports
from cvpipe.stages.recipes import (
    MAJORITY,
    AnyFeature,
    backbone_spec,
    classifier_of,
    is_baseline,
    is_trained,
    known_features,
    members_of,
    names_to_learn,
    probe_feature,
    trains_on_images,
    uses_augmentation,
)

# Seconds on two cores of a current laptop, generously rounded: a person wants to know
# whether to wait or to fetch a coffee.
START_SECONDS = 25.0
SECONDS_PER_IMAGE = 0.009  # decode three times, hash, evaluate
SECONDS_PER_IMAGE_FEATURE = 0.002
SECONDS_PER_IMAGE_BACKBONE = 0.018  # once for the features, once for the check of the export
SECONDS_PER_IMAGE_FIT = 0.0001
MULTIPLY_ADDS_PER_SECOND = 4e10  # of a convolutional network in training, not of its best layer


@dataclass(frozen=True)
class Plan:
    """What is to be run on which images.

    Attributes:
        config: The checked config.
        root: Folder of the images.
        base: Folder at which other paths of the config start: that of the pipeline file.
    """

    config: Config
    root: Path
    base: Path = Path()


def make_plan(
    target: Path,
    settings: Sequence[str] = (),
    data: Path | None = None,
    preset: str = "standard",
) -> Plan:
    """Understand what is to be run.

    Args:
        target: A pipeline file, a folder of class folders, or a table of images.
        settings: Changes of the form `section.key=value`.
        data: Folder of the images, if it is not where the pipeline file says.
        preset: For a folder or a table: one of `cvpipe.config.PRESETS`.

    Raises:
        InputError: Something is unknown, missing or of the wrong kind.
    """
    check_name("preset", preset, PRESETS)
    suffix = target.suffix.lower()
    if suffix in (".toml", ".json"):
        if preset != PRESETS[-1]:
            raise InputError("--preset is for a folder or a table; a pipeline file says it itself.")
        config = load_config(target, settings)
        root = data or target.parent / config.data.root
    elif suffix in (".csv", ".tsv"):
        if data is not None and data.resolve() != target.parent.resolve():
            raise InputError(
                f"the paths in a table start at its own folder, {str(target.parent)!r}, but --data "
                f"gives {str(data)!r}; put the table into the folder of the images."
            )
        config = _preset(target.parent, target.name, settings, preset)
        root = Path(config.data.root)
    elif target.is_dir():
        config = _preset(target, FOLDERS, settings, preset, data)
        root = data or Path(config.data.root)
    else:
        raise InputError(
            f"there is no folder {str(target)!r}; give a pipeline file (.toml), a folder of "
            "class folders, or a table of images (.csv, .tsv)."
        )
    check_names(config)
    if not root.is_dir():
        raise InputError(_missing_root(root))
    base = target.parent if suffix in (".toml", ".json") else Path()
    return Plan(pin_imports(config, base), root, base)


def _preset(
    root: Path, labels: str, settings: Sequence[str], preset: str, data: Path | None = None
) -> Config:
    raw = preset_config(name_of(root.resolve().name), str(root), labels, preset)
    # The settings may name another table than the target, or another folder.
    told = validate_config(raw, settings).data
    if has_given_split(data or Path(told.root), told.labels):
        raw["split"] = {"protocol": "given"}
    return validate_config(raw, settings)


def _missing_root(root: Path) -> str:
    message = f"there is no folder {str(root)!r} with images; "
    if root.name in DATASETS:
        return message + f"fetch it with: cvpipe fetch {root.name}"
    return message + "correct data.root in the pipeline file or give the folder with --data DIR."


def check_names(config: Config) -> Config:
    """Return a config in which every feature, classifier, backbone and view is known.

    Raises:
        InputError: A name is unknown, or parts of a contender do not fit together.
    """
    # Of contenders' own networks others know nothing.
    features = {n: f for n, f in known_features(config).items() if " of " not in n}
    check_runtime(config.runtime, config.precision)
    check_views(config.evaluate.views)
    for label in config.export.formats:
        check_format(*parse_label(label))
    for section in config.feature:
        feature = features[section.name]
        if isinstance(feature, Feature):  # those that have a name already are known to be possible
            feature.build().check_settings(feature.image_size)
    for contender in config.contender:
        if isinstance(contender, NetworkContender):
            check_network(config, contender)
        elif isinstance(contender, EnsembleContender):
            check_members(config, contender)
        elif isinstance(contender, ClassicContender):
            check_classic(contender, features)
    return config


def check_classic(contender: ClassicContender, features: Mapping[str, AnyFeature]) -> None:
    """Refuse features and a classifier that do not exist, or do not fit together.

    Raises:
        InputError: See the message.
    """
    check_name("classifier", contender.classifier, CLASSIFIERS)
    for name in contender.features:
        feature = features[check_name("feature", name, features)]
        if isinstance(feature, DeepFeature):
            check_deep_feature(feature)
    if not contender.features and contender.classifier != MAJORITY:
        raise InputError(
            f"contender {contender.name!r} has the classifier {contender.classifier!r} but "
            f"no features; choose some of {sorted(features)}."
        )
    parts = {name: features[name] for name in contender.features if name in features}
    signed = [n for n, part in parts.items() if isinstance(part, Feature) and part.is_signed]
    if signed and CLASSIFIERS[contender.classifier].non_negative:
        raise InputError(
            f"contender {contender.name!r} gives {signed[0]!r}, which has negative numbers, to "
            f"{contender.classifier!r}, which is for histograms; choose 'rbf_svm' or "
            "'linear_svm'."
        )
    files = [name for name in contender.features if isinstance(FEATURES.get(name), FileFeature)]
    if files and not CLASSIFIERS[contender.classifier].any_scale:
        fitting = sorted(name for name, c in CLASSIFIERS.items() if c.any_scale)
        raise InputError(
            f"contender {contender.name!r} gives {files[0]!r} to {contender.classifier!r}, for "
            f"which its largest numbers, the bytes of the file, would decide alone; choose one "
            f"of {fitting}."
        )


def check_members(config: Config, ensemble: EnsembleContender) -> None:
    """Refuse an ensemble with a member that looks at no pixel: it would learn to guess from files.

    Raises:
        InputError: There is such a member.
    """
    for member in members_of(config, ensemble):
        if is_baseline(member):
            raise InputError(
                f"the ensemble {ensemble.name!r} has the member {member.name!r}, which looks at no "
                "pixel: it is a yardstick for the others; leave it out."
            )


def check_views(views: Sequence[str]) -> None:
    """Check that all views are known.

    Raises:
        InputError: One is not.
    """
    for view in views:
        check_name("view", view, VIEWS)


def check_network(config: Config, contender: NetworkContender) -> None:
    """Refuse a network that cannot be built, or training that cannot be done as it is described.

    Raises:
        InputError: See the message.
    """
    augment, training, name = config.augment, contender.training, contender.name
    if contender.recipe == "from_scratch":
        spec = check_backbone(backbone_spec(contender))
    else:
        spec = check_deep_feature(probe_feature(contender)).spec
    if contender.recipe == "fine_tune":
        freeze_point(spec, contender.freeze)
    if contender.views > 1 and not changes_images(augment):
        raise InputError(
            f"contender {name!r} has {contender.views} views of each image, but [augment] changes "
            "nothing, so they would all be equal; choose an augment.preset, or views = 1."
        )
    if contender.views > 1 and trains_on_images(contender):
        raise InputError(
            f"contender {name!r} sees new views of its images in every epoch, so views = "
            f"{contender.views} has no effect; leave it out, or freeze a part of the network."
        )
    if contender.views > training.epochs and is_trained(contender):
        raise InputError(
            f"contender {name!r} keeps {contender.views} views of each image, but trains for "
            f"{training.epochs} epochs, each of which sees one; choose fewer views or more "
            "training.epochs."
        )
    if contender.views > 1 and (augment.mixup or augment.cutmix):
        raise InputError(
            f"contender {name!r} reads views one by one, so [augment] cannot blend images for it "
            "(mixup, cutmix); leave them out, or fine-tune with freeze = 'none'."
        )
    if uses_augmentation(contender) and augment.quarter_turns and spec.size[0] != spec.size[1]:
        raise InputError(
            f"augment.quarter_turns needs images as high as wide, but those of contender {name!r} "
            f"are {spec.size[0]}x{spec.size[1]}; choose a square image_size."
        )
    epochs = training.epochs // (training.cycles * training.num_trainings)
    if is_trained(contender) and training.warmup_epochs >= epochs:
        raise InputError(
            f"contender {name!r} warms up over {training.warmup_epochs:g} of {epochs} epochs; "
            "choose fewer training.warmup_epochs, "
            "or more training.epochs."
        )


def estimate_seconds(config: Config, num_images: int) -> float:
    """Estimate how long a run takes on two cores when nothing is cached yet.

    Args:
        config: What is to be run.
        num_images: Number of images.
    """
    known = known_features(config)
    names = {name for contender in config.contender for name in names_to_learn(contender)}
    num_backbones = sum(isinstance(known[name], DeepFeature) for name in names)
    described = num_backbones * SECONDS_PER_IMAGE_BACKBONE
    described += (len(names) - num_backbones) * SECONDS_PER_IMAGE_FEATURE
    per_image = SECONDS_PER_IMAGE + described * (1 + further_passes(config))
    for contender in config.contender:
        if isinstance(contender, NetworkContender) and is_trained(contender):
            per_image += training_seconds(config, contender)
            continue
        if isinstance(contender, ImportedContender):  # nothing is fitted, in no fold either
            per_image += SECONDS_PER_IMAGE_BACKBONE * (1 + further_passes(config))
            continue
        if isinstance(contender, EnsembleContender):
            continue
        classifier = CLASSIFIERS[classifier_of(contender)]
        last = 1 + SEARCHES[contender.search] * classifier.calibrate
        search = count_search_fits(classifier, contender.search) + last
        whole = 1 + num_fold_fits(config) + num_stacking_fits(config, contender)
        fits = whole * search + last * config.split.careless
        per_image += fits * SECONDS_PER_IMAGE_FIT
    return START_SECONDS + num_images * per_image


def further_passes(config: Config) -> float:
    """Count the passes that views take besides the one of every image, per image.

    Train is seen in a single view only, unless folds make it test.
    """
    passes = sum(map(num_views, config.evaluate.views)) - 1
    share = config.split.val_fraction + config.split.test_fraction
    return passes * (1.0 if config.split.protocol == "kfold" else share)


def training_seconds(config: Config, contender: NetworkContender) -> float:
    """Estimate how long a contender's network trains, per image, with all its fits."""
    spec = backbone_spec(contender)
    backbone = BACKBONES[spec.name]
    usual, size = backbone.image_size, spec.size
    multiply_adds = backbone.multiply_adds * size[0] * size[1] / (usual[0] * usual[1])
    # Forward and backward; behind a freeze point, roughly by how many layers lie there.
    share = 1.0
    if contender.recipe == "fine_tune" and contender.freeze != WHOLE_NETWORK:
        points = list(backbone.freeze_points)
        share = 1 - points.index(freeze_point(spec, contender.freeze)) / len(points)
    steps = contender.training.epochs * 3 * share
    once = contender.views * multiply_adds / MULTIPLY_ADDS_PER_SECOND
    stacking = num_stacking_fits(config, contender)
    fits = 1 + num_fold_fits(config) + stacking + config.split.careless
    return once + fits * steps * multiply_adds / MULTIPLY_ADDS_PER_SECOND


def num_fold_fits(config: Config) -> int:
    """Count how often k-fold fits each contender: once per fold, in each repeat."""
    split = config.split
    return split.num_folds * split.num_repeats if split.protocol == "kfold" else 0


def num_stacking_fits(config: Config, contender: SingleContender) -> int:
    """Count how often a contender is fitted to parts of train, because an ensemble stacks it."""
    stacks = any(
        isinstance(ensemble, EnsembleContender)
        and ensemble.combine == STACKING
        and contender.name in ensemble.members
        for ensemble in config.contender
    )
    return NUM_STACKING_FOLDS * stacks


def in_words(seconds: float) -> str:
    """Write a rough duration: `about 40 seconds`, `about 3 minutes`."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    return f"about {round(seconds / 60):.0f} minutes"
