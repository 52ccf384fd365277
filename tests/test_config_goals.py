"""What `evaluate.goal` needs, and what is of no use without it."""

import pytest

from cvpipe.config import validate_config
from cvpipe.errors import InputError

COSTS = {"sick": {"healthy": 20}}


def evaluate(**section):
    contender = {"name": "majority", "classifier": "majority"}
    raw = {"name": "a", "data": {"root": "x"}, "contender": [contender], "evaluate": section}
    return validate_config(raw).evaluate


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"goal": "sensitivity", "positive": "sick", "at_least": 0.97},
        {"goal": "specificity", "positive": "sick", "at_least": 1},
        {"goal": "youden", "positive": "sick"},
        {"goal": "cost", "costs": COSTS},
        {"goal": "youden", "positive": "sick", "costs": COSTS},
        {"conformal_level": 0.99},
    ],
)
def test_what_fits_together(section):
    found = evaluate(**section)
    assert {name: getattr(found, name) for name in section} == section
    again = evaluate(**found.model_dump(mode="json"))  # as a run's config.json is read
    assert again == found
    assert hash(again) == hash(found)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"goal": "youden"},
            "evaluate: goal is 'youden', but positive is not given; name the class that is to be "
            "found, as in positive = 'tumour'",
        ),
        (
            {"positive": "sick"},
            "evaluate: positive is 'sick', which is for goal = 'sensitivity', 'specificity' or "
            "'youden', but the goal is ''",
        ),
        (
            {"positive": "sick", "goal": "cost", "costs": COSTS},
            "evaluate: positive is 'sick', which is for goal = 'sensitivity', 'specificity' or "
            "'youden', but the goal is 'cost'",
        ),
        (
            {"goal": "cost"},
            "evaluate: goal is 'cost', but costs are not given; say what mistakes cost, as in "
            "costs = {sick = {healthy = 20}}",
        ),
        (
            {"goal": "youden", "positive": "sick", "at_least": 0.8},
            "evaluate: at_least is 0.8, which is for goal = 'sensitivity' or 'specificity', but "
            "the goal is 'youden'",
        ),
        (
            {"at_least": 0.8},
            "evaluate: at_least is 0.8, which is for goal = 'sensitivity' or 'specificity', but "
            "the goal is ''",
        ),
        (
            {"goal": "sensitivity", "positive": "sick", "at_least": 0},
            "evaluate.at_least: input should be greater than 0, but is 0",
        ),
        (
            {"goal": "sensitivity", "positive": "sick", "at_least": 1.5},
            "evaluate.at_least: input should be less than or equal to 1, but is 1.5",
        ),
        ({"conformal_level": 1}, "evaluate.conformal_level: input should be less than 1, but is 1"),
        (
            {"conformal_level": 0.0},
            "evaluate.conformal_level: input should be greater than 0, but is 0.0",
        ),
    ],
)
def test_what_does_not(section, message):
    with pytest.raises(InputError) as caught:
        evaluate(**section)
    assert str(caught.value) == message


def test_an_unknown_goal():
    with pytest.raises(InputError, match=r"^evaluate\.goal: input should be '', 'sensitivity'"):
        evaluate(goal="recall", positive="sick")
