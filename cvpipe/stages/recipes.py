"""What a contender of the config consists of, by name: before anything heavy is loaded."""

from cvpipe.config import Config, Contender, NetworkContender
from cvpipe.errors import InputError
from cvpipe.features.table import FEATURES, AnyFeature, FileFeature, make_feature
from cvpipe.models.backbones import BACKBONES

MAJORITY = "majority"  # the classifier that needs no features


def known_features(config: Config) -> dict[str, AnyFeature]:
    """Map all features that contenders of a config can name.

    Raises:
        InputError: A feature of the config has a taken name, or settings that do not exist.
    """
    known = dict(FEATURES)
    for section in config.feature:
        if section.name in (*FEATURES, *BACKBONES):
            raise InputError(
                f"a [[feature]] is called {section.name!r}, but that name is taken; "
                "choose another one."
            )
        size = section.image_size
        known[section.name] = make_feature(
            section.kind, (size[0], size[1]) if size else None, section.settings
        )
    return known


def feature_names(contender: Contender) -> tuple[str, ...]:
    """Name the features and backbones that a contender reads."""
    if isinstance(contender, NetworkContender):
        return (contender.backbone,)
    return contender.features


def backbones_of(contender: Contender) -> list[str]:
    """Name the backbones that a contender reads."""
    return [name for name in feature_names(contender) if name in BACKBONES]


def classifier_of(contender: Contender) -> str:
    """Name the classifier that is fitted on a contender's features."""
    return "softmax" if isinstance(contender, NetworkContender) else contender.classifier


def is_majority(contender: Contender) -> bool:
    """Tell whether a contender sees nothing at all."""
    return classifier_of(contender) == MAJORITY


def is_baseline(contender: Contender) -> bool:
    """Tell whether a contender looks at no pixel: a yardstick, not a candidate."""
    files_alone = all(isinstance(FEATURES.get(n), FileFeature) for n in feature_names(contender))
    return is_majority(contender) or files_alone


def is_shortcut(contender: Contender) -> bool:
    """Tell whether a contender sees the facts of the file, and no pixel."""
    return is_baseline(contender) and not is_majority(contender)


def uses_augmentation(contender: Contender) -> bool:  # noqa: ARG001 (the kinds to come differ)
    """Tell whether a contender trains on augmented views.

    None does so far: a frozen network and hand-crafted features look at every image once, as it is.
    """
    return False
