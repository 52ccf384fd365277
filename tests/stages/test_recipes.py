import pytest

from cvpipe.config import STANDARD_CONTENDERS, validate_config
from cvpipe.stages.recipes import (
    backbones_of,
    classifier_of,
    feature_names,
    is_baseline,
    is_majority,
    is_shortcut,
)


def contender_of(values):
    raw = {"name": "a", "data": {"root": "x"}, "contender": [{"name": "c", **values}]}
    return validate_config(raw).contender[0]


NETWORK = {"backbone": "efficientnet_lite0", "recipe": "linear_probe"}
# A contender; what it reads; which of that are backbones; its classifier.
RECIPES = [
    (NETWORK, ["efficientnet_lite0"], ["efficientnet_lite0"], "softmax"),
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
    contender = contender_of(values)
    assert list(feature_names(contender)) == names
    assert backbones_of(contender) == backbones
    assert classifier_of(contender) == classifier


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
