"""What a contender of the config consists of, by name: before anything heavy is loaded."""

from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import Config
from cvpipe.contender_sections import (
    AnyNetwork,
    ClassicContender,
    Contender,
    EnsembleContender,
    ImportedContender,
    NetworkContender,
    SingleContender,
)
from cvpipe.errors import InputError
from cvpipe.features.table import FEATURES, Feature, FileFeature, make_feature
from cvpipe.inference.crops import SINGLE
from cvpipe.models.backbones import BACKBONES, NO_WEIGHTS, PRETRAINED, BackboneSpec
from cvpipe.models.deep_features import DeepFeature, make_deep_feature
from cvpipe.models.transfer import WHOLE_NETWORK

MAJORITY = "majority"  # the classifier that needs no features
SOFTMAX = "softmax"  # the classifier of a linear probe
STARTING_HEAD = "softmax_common_scale"  # and that of the head with which fine-tuning starts

AnyFeature = Feature | FileFeature | DeepFeature


def known_features(config: Config) -> dict[str, AnyFeature]:
    """Map all features that contenders of a config can read, backbones among them.

    Raises:
        InputError: A feature of the config has a taken name, or settings that do not exist.
    """
    known: dict[str, AnyFeature] = dict(FEATURES)
    known |= {name: DeepFeature(BackboneSpec(name)) for name in PRETRAINED}
    for section in config.feature:
        if section.name in (*FEATURES, *BACKBONES):
            raise InputError(
                f"a [[feature]] is called {section.name!r}, but that name is taken; "
                "choose another one."
            )
        size = section.image_size
        if section.kind in BACKBONES:
            known[section.name] = make_deep_feature(section.kind, size, section.settings)
        else:
            known[section.name] = make_feature(
                section.kind, (size[0], size[1]) if size else None, section.settings
            )
    for contender in config.contender:
        if isinstance(contender, NetworkContender):
            known[probe_name(contender)] = probe_feature(contender)
    return known


def backbone_spec(contender: NetworkContender) -> BackboneSpec:
    """Say which backbone a contender is built on."""
    weights = NO_WEIGHTS if contender.recipe == "from_scratch" else contender.weights
    return BackboneSpec(contender.backbone, weights, contender.weights_sha256, contender.image_size)


def probe_feature(contender: NetworkContender) -> DeepFeature:
    """Say what a contender's linear classifier reads; of a trained one, the one it starts with."""
    return DeepFeature(backbone_spec(contender), contender.layers, contender.pooling)


def probe_name(contender: NetworkContender) -> str:
    """Name that feature: as the backbone, or by the contender where it has settings of its own."""
    plain = DeepFeature(BackboneSpec(contender.backbone))
    own = f"{contender.backbone} of {contender.name}"
    return contender.backbone if probe_feature(contender) == plain else own


def feature_names(contender: Contender) -> tuple[str, ...]:
    """Name the features and backbones whose rows a contender's classifier reads.

    A network that is trained or imported reads images, and an ensemble what its members say.
    """
    if isinstance(contender, EnsembleContender | ImportedContender):
        return ()
    if isinstance(contender, NetworkContender):
        return () if is_trained(contender) else (probe_name(contender),)
    return contender.features


def names_to_learn(contender: Contender) -> tuple[str, ...]:
    """Name the features that are computed for a contender before it is fitted.

    A pretrained network starts with a linear head, which is fitted on its frozen features.
    """
    if isinstance(contender, NetworkContender) and contender.recipe == "fine_tune":
        return (probe_name(contender),)
    return feature_names(contender)


def is_trained(contender: Contender) -> bool:
    """Tell whether a contender trains a network, rather than a classifier on features."""
    return isinstance(contender, NetworkContender) and contender.recipe != "linear_probe"


def is_whole_network(contender: Contender) -> bool:
    """Tell whether what is stored of a contender reads images itself: trained here or elsewhere."""
    return is_trained(contender) or isinstance(contender, ImportedContender)


def becomes_network(config: Config, contender: Contender) -> bool:
    """Tell whether a contender that is no ensemble is handed on as one network.

    It is one, or a classifier on frozen features that can be written as layers behind them.
    """
    if isinstance(contender, ClassicContender):
        return not obstacle_to_layers(config, contender)
    return isinstance(contender, AnyNetwork)


def obstacle_to_layers(config: Config, contender: ClassicContender) -> str:
    """Say which step of a classic contender is no layer of a network; `""` where all can be."""
    known = known_features(config)
    if not contender.features:
        return "it looks at no pixel"
    for name in contender.features:
        if not isinstance(known[name], DeepFeature):
            return f"its feature {name!r} is no layer of a network"
    sizes = {feature.image_size for feature in deep_features_of(config, contender)}
    if len(sizes) > 1:
        return f"its features read images of different sizes: {sorted(sizes)}"
    if not CLASSIFIERS[contender.classifier].as_layers:
        return f"its classifier {contender.classifier!r} is no layer of a network"
    if config.evaluate.calibration == "isotonic":
        return "its calibration, isotonic curves, is no layer of a network"
    return ""


def deep_features_of(config: Config, contender: Contender) -> list[DeepFeature]:
    """List the features of frozen backbones that a contender's classifier reads."""
    known = known_features(config)
    features = [known.get(name) for name in feature_names(contender)]
    return [feature for feature in features if isinstance(feature, DeepFeature)]


def backbones_of(config: Config, contender: Contender) -> list[BackboneSpec]:
    """List the backbones that a contender needs, those without weights left out."""
    specs = [feature.spec for feature in deep_features_of(config, contender)]
    if isinstance(contender, NetworkContender) and is_trained(contender):
        specs.append(backbone_spec(contender))
    return [spec for spec in specs if spec.weights != NO_WEIGHTS]


def classifier_of(contender: Contender) -> str:
    """Name the classifier that is fitted on a contender's features; `""` where none is."""
    if isinstance(contender, EnsembleContender | ImportedContender):
        return ""
    if isinstance(contender, NetworkContender):
        return "" if is_trained(contender) else SOFTMAX
    return contender.classifier


def is_majority(contender: Contender) -> bool:
    """Tell whether a contender sees nothing at all."""
    return classifier_of(contender) == MAJORITY


def is_baseline(contender: Contender) -> bool:
    """Tell whether a contender looks at no pixel: a yardstick, not a candidate."""
    if isinstance(contender, EnsembleContender):
        return False
    files_alone = all(isinstance(FEATURES.get(n), FileFeature) for n in feature_names(contender))
    return not is_whole_network(contender) and (is_majority(contender) or files_alone)


def views_of(config: Config, contender: Contender) -> tuple[str, ...]:
    """Name the views in which a contender predicts: one alone where it looks at no pixel.

    An ensemble reads what its members say, each in its own view.
    """
    alone = isinstance(contender, EnsembleContender) or is_baseline(contender)
    return (SINGLE,) if alone else config.evaluate.views


def is_shortcut(contender: Contender) -> bool:
    """Tell whether a contender sees the facts of the file, and no pixel."""
    return is_baseline(contender) and not is_majority(contender)


def uses_augmentation(contender: Contender) -> bool:
    """Tell whether a contender trains on augmented views."""
    if not isinstance(contender, NetworkContender):
        return False
    return contender.views > 1 or trains_on_images(contender)


def trains_on_images(contender: Contender) -> bool:
    """Tell whether a contender trains a whole network, so that every epoch sees other views."""
    if not isinstance(contender, NetworkContender):
        return False
    whole = contender.recipe == "fine_tune" and contender.freeze == WHOLE_NETWORK
    return whole or contender.recipe == "from_scratch"


def members_of(config: Config, contender: Contender) -> list[SingleContender]:
    """List the members of an ensemble, in its order; any other contender consists of itself."""
    if not isinstance(contender, EnsembleContender):
        return [contender]
    by_name = {c.name: c for c in config.contender if not isinstance(c, EnsembleContender)}
    return [by_name[name] for name in contender.members]


def members_first(config: Config) -> list[Contender]:
    """List all contenders in an order in which members come before their ensembles."""
    return sorted(config.contender, key=lambda c: isinstance(c, EnsembleContender))
