import pytest

from cvpipe.config import STANDARD_CONTENDERS, validate_config
from cvpipe.errors import InputError
from cvpipe.models.backbones import BackboneSpec
from cvpipe.stages.recipes import (
    backbones_of,
    classifier_of,
    feature_names,
    is_baseline,
    is_majority,
    is_shortcut,
    is_trained,
    known_features,
    names_to_learn,
    probe_name,
    trains_on_images,
    uses_augmentation,
)


def config_of(*contenders, **values):
    raw = {"name": "a", "data": {"root": "x"}, "contender": list(contenders)}
    return validate_config({**raw, **values})


def contender_of(values):
    return config_of({"name": "c", **values}).contender[0]


NETWORK = {"backbone": "efficientnet_lite0", "recipe": "linear_probe"}
TUNED = {**NETWORK, "recipe": "fine_tune"}
WHOLE = {**TUNED, "freeze": "none"}
SCRATCH = {"backbone": "cifar_resnet", "recipe": "from_scratch"}
OWN = "efficientnet_lite0 of c"
# A contender; what it reads; which of that are backbones; its classifier.
RECIPES = [
    (NETWORK, ["efficientnet_lite0"], ["efficientnet_lite0"], "softmax"),
    ({**NETWORK, "image_size": [96, 96]}, [OWN], ["efficientnet_lite0"], "softmax"),
    (TUNED, [], ["efficientnet_lite0"], ""),
    (WHOLE, [], ["efficientnet_lite0"], ""),
    (SCRATCH, [], [], ""),
    ({"classifier": "majority"}, [], [], "majority"),
    (
        {"features": ["hog", "efficientnet_lite0", "file_facts"], "classifier": "rbf_svm"},
        ["hog", "efficientnet_lite0", "file_facts"],
        ["efficientnet_lite0"],
        "rbf_svm",
    ),
]


@pytest.mark.parametrize(("values", "names", "backbones", "classifier"), RECIPES)
def test_parts_of_a_contender(values, names, backbones, classifier):
    config = config_of({"name": "c", **values})
    contender = config.contender[0]
    assert list(feature_names(contender)) == names
    assert [spec.name for spec in backbones_of(config, contender)] == backbones
    assert classifier_of(contender) == classifier


def test_a_contender_needs_the_backbone_of_a_feature_of_the_config():
    deep = {"name": "deep", "kind": "efficientnet_lite2", "image_size": [96, 128]}
    contender = {"name": "c", "features": ["hog", "deep"], "classifier": "rbf_svm"}
    config = config_of(contender, feature=[deep])
    assert backbones_of(config, config.contender[0]) == [
        BackboneSpec("efficientnet_lite2", image_size=(96, 128))
    ]


@pytest.mark.parametrize(
    ("values", "learned", "trained", "on_images", "augmented"),
    [
        ({"features": ["hog"], "classifier": "rbf_svm"}, ("hog",), False, False, False),
        ({"classifier": "majority"}, (), False, False, False),
        (NETWORK, ("efficientnet_lite0",), False, False, False),
        ({**NETWORK, "views": 2}, ("efficientnet_lite0",), False, False, True),
        (TUNED, ("efficientnet_lite0",), True, False, False),
        ({**TUNED, "views": 2}, ("efficientnet_lite0",), True, False, True),
        ({**TUNED, "image_size": [96, 96]}, (OWN,), True, False, False),
        (WHOLE, ("efficientnet_lite0",), True, True, True),
        (SCRATCH, (), True, True, True),
    ],
)
def test_who_trains_a_network_and_on_what(values, learned, trained, on_images, augmented):
    contender = contender_of(values)
    assert names_to_learn(contender) == learned
    assert is_trained(contender) == trained
    assert trains_on_images(contender) == on_images
    assert uses_augmentation(contender) == augmented


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "efficientnet_lite0"),
        ({"views": 3, "search": "coarse", "class_weights": "balanced"}, "efficientnet_lite0"),
        ({"layers": ["block_08"], "pooling": "max"}, OWN),
        ({"layers": ["block_08"]}, OWN),
        ({"image_size": [96, 96]}, OWN),
        ({"weights": "mine.pth", "weights_sha256": "0" * 64}, OWN),
        (
            {"recipe": "fine_tune", "freeze": "block_08", "training": {"epochs": 9}},
            "efficientnet_lite0",
        ),
    ],
)
def test_what_is_read_of_a_backbone_has_the_name_of_the_contender_where_it_is_its_own(values, name):
    config = config_of({"name": "c", **NETWORK, **values})
    assert probe_name(config.contender[0]) == name
    feature = known_features(config)[name]
    assert feature.spec.name == "efficientnet_lite0"
    assert (name == OWN) == (feature != known_features(config)["efficientnet_lite0"])


@pytest.mark.parametrize("name", ["hog", "efficientnet_lite0", "cifar_resnet"])
def test_a_feature_of_the_config_needs_a_name_of_its_own(name):
    config = config_of({"name": "c", **NETWORK}, feature=[{"name": name, "kind": "raw_pixels"}])
    with pytest.raises(InputError, match=f"is called '{name}', but that name is taken"):
        known_features(config)


KINDS = (is_baseline, is_shortcut, is_majority)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ({"classifier": "majority"}, {is_baseline, is_majority}),
        ({"features": ["hog"], "classifier": "majority"}, {is_baseline, is_majority}),
        ({"features": ["file_facts"], "classifier": "majority"}, {is_baseline, is_majority}),
        ({"features": ["file_facts"], "classifier": "softmax"}, {is_baseline, is_shortcut}),
        ({"features": ["file_facts", "hog"], "classifier": "softmax"}, set()),
        ({"features": ["efficientnet_lite0"], "classifier": "softmax"}, set()),
        ({"features": ["file_facts", "efficientnet_lite0"], "classifier": "softmax"}, set()),
        ({"features": ["hog"], "classifier": "gradient_boosting"}, set()),
        (NETWORK, set()),
        (TUNED, set()),
        (WHOLE, set()),
        (SCRATCH, set()),
    ],
)
def test_who_looks_at_no_pixel(values, kinds):
    contender = contender_of(values)
    assert {kind for kind in KINDS if kind(contender)} == kinds


def test_yardsticks_of_the_standard_preset():
    contenders = {values["name"]: contender_of(values) for values in STANDARD_CONTENDERS}
    assert [name for name, c in contenders.items() if is_baseline(c)] == ["majority", "shortcut"]
    assert [name for name, c in contenders.items() if is_shortcut(c)] == ["shortcut"]
    assert [name for name, c in contenders.items() if is_majority(c)] == ["majority"]
