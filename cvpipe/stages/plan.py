"""From what a person typed to a checked config: before anything heavy starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cvpipe.classifiers.table import CLASSIFIERS, SEARCHES, count_search_fits
from cvpipe.config import (
    FOLDERS,
    PRESETS,
    Config,
    NetworkContender,
    load_config,
    name_of,
    preset_config,
    validate_config,
)
from cvpipe.data.manifest import has_given_split
from cvpipe.data.sources import DATASETS
from cvpipe.errors import InputError, check_name
from cvpipe.features.table import FEATURES, Feature, FileFeature
from cvpipe.models.backbones import BACKBONES
from cvpipe.stages.recipes import MAJORITY, classifier_of, feature_names, known_features

# Seconds on two cores of a current laptop, generously rounded: a person wants to know
# whether to wait or to fetch a coffee.
START_SECONDS = 25.0
SECONDS_PER_IMAGE = 0.009  # decode three times, hash, evaluate
SECONDS_PER_IMAGE_FEATURE = 0.002
SECONDS_PER_IMAGE_BACKBONE = 0.018  # once for the features, once for the check of the export
SECONDS_PER_IMAGE_FIT = 0.0001


@dataclass(frozen=True)
class Plan:
    """What is to be run on which images.

    Attributes:
        config: The checked config.
        root: Folder of the images.
    """

    config: Config
    root: Path


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
    return Plan(config, root)


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
    """Return a config in which every feature, classifier and backbone is known.

    Raises:
        InputError: A name is unknown, or parts of a contender do not fit together.
    """
    features = known_features(config)
    known = (*features, *BACKBONES)
    for section in config.feature:
        feature = features[section.name]
        if isinstance(feature, Feature):  # those that have a name already are known to be possible
            feature.build().check_settings(feature.image_size)
    for contender in config.contender:
        if isinstance(contender, NetworkContender):
            check_name("backbone", contender.backbone, BACKBONES)
            continue
        check_name("classifier", contender.classifier, CLASSIFIERS)
        for name in contender.features:
            check_name("feature", name, known)
        if not contender.features and contender.classifier != MAJORITY:
            raise InputError(
                f"contender {contender.name!r} has the classifier {contender.classifier!r} but "
                f"no features; choose some of {sorted(known)}."
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
    return config


def estimate_seconds(config: Config, num_images: int) -> float:
    """Estimate how long a run takes on two cores when nothing is cached yet.

    Args:
        config: What is to be run.
        num_images: Number of images.
    """
    names = {name for contender in config.contender for name in feature_names(contender)}
    num_backbones = sum(name in BACKBONES for name in names)
    per_image = SECONDS_PER_IMAGE + num_backbones * SECONDS_PER_IMAGE_BACKBONE
    per_image += (len(names) - num_backbones) * SECONDS_PER_IMAGE_FEATURE
    for contender in config.contender:
        classifier = CLASSIFIERS[classifier_of(contender)]
        last = 1 + SEARCHES[contender.search] * classifier.calibrate
        search = count_search_fits(classifier, contender.search) + last
        fits = (1 + num_fold_fits(config)) * search + last * config.split.careless
        per_image += fits * SECONDS_PER_IMAGE_FIT
    return START_SECONDS + num_images * per_image


def num_fold_fits(config: Config) -> int:
    """Count how often k-fold fits each contender: once per fold, in each repeat."""
    split = config.split
    return split.num_folds * split.num_repeats if split.protocol == "kfold" else 0


def in_words(seconds: float) -> str:
    """Write a rough duration: `about 40 seconds`, `about 3 minutes`."""
    if seconds < 90:
        return f"about {max(10, round(seconds, -1)):.0f} seconds"
    return f"about {round(seconds / 60):.0f} minutes"
