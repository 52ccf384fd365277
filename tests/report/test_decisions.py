# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import dataclasses

import numpy as np
import pandas as pd
import pytest

from cvpipe.report.decisions import (
    ABSTENTION_COLUMNS,
    CONFORMAL_COLUMNS,
    MAX_CLASSES,
    OPERATING_COLUMNS,
    Decisions,
    decision_section,
    risk_coverage_figure,
    rule_sentence,
)
from cvpipe.report.page import render_report
from tests.report.test_report import build_content

NASTY = "<b>NA</b>"
nan = float("nan")

# Figures of naming the most probable class.
PLAINLY = {"accuracy": 0.85, "cost": 1.5}


def set_table(labels):
    table = []
    for method in ("marginal", "by_class"):
        for place, label in enumerate(["", *labels]):
            coverage = 0.9 - 0.01 * place + (0.05 if method == "by_class" else 0)
            row = (coverage, coverage - 0.1, coverage + 0.04, 1.2 + place, 0.75, 50 + place)
            table.append(("probe", method, 0.9, label, *row))
    return pd.DataFrame(table, columns=CONFORMAL_COLUMNS)


def build_decisions(point=None, goal_met="not shown", labels=("dog", NASTY), counts=(30, 5)):
    point = (
        {"goal": "sensitivity", "positive": NASTY, "at_least": 0.95, "threshold": 0.3125}
        if (point is None)
        else point
    )
    keys = ("probe", point.get("goal", ""), point.get("positive", ""), point.get("threshold", nan))
    figures = [
        ("sensitivity", 0.92, 0.85, 0.96, 60, goal_met),
        ("npv", 0.5, 0.4, 0.6, 9, ""),
        ("precision", nan, nan, nan, 0, ""),
    ]
    if point.get("goal") == "cost":
        figures = [("accuracy", 0.8, 0.7, 0.9, 60, ""), ("cost", 1.25, 0.5, 2.0, 60, "")]
    points = [(*keys, *row) for row in figures] if point else []
    abstention = [
        ("probe", 0.8, 0.625, 0.75, 0.7, 0.8, 0.96, 0.9, 0.99, 75, 100),
        ("probe", 0.5, 0.9, 0.0, 0.0, 0.04, nan, nan, nan, 0, 100),
    ]
    return Decisions(
        frozen={
            "fitted_on": {"num_images": 1200, "also_made_the_choice": False},
            "operating_point": point,
            "prediction_sets": {
                "level": 0.9,
                "images_needed": 9,
                "num_images": dict(zip(labels, counts, strict=True)),
            },
        },
        operating_points=pd.DataFrame(points, columns=OPERATING_COLUMNS),
        abstention=pd.DataFrame(abstention, columns=ABSTENTION_COLUMNS),
        conformal=set_table(labels),
        coverage=np.array([0.5, 1.0]),
        risk=np.array([0.0, 0.125]),
        area=0.0625,
    )


def plain(text):
    return text.replace("\u00a0", " ")


def test_the_section_in_words():
    section = decision_section(build_decisions(), PLAINLY)
    assert plain(section.fitted) == (
        "All thresholds were fitted on 1,200 validation images and frozen before the test was "
        "opened; the figures here are those of the test images, with 95 % intervals in brackets "
        "or small print."
    )
    assert plain(section.point) == (
        f"Call an image {NASTY} when its probability of {NASTY} is at least 0.3125: the highest "
        "threshold that reached the goal on the validation images. On the test images: "
        "sensitivity 92.0 % (85.0 to 96.0), negative predictive value 50.0 % (40.0 to 60.0), "
        "precision –. The goal is a sensitivity of at least 95 %: the interval lies on both "
        "sides of the goal, so that it is met is not shown. Precision and negative predictive "
        "value hold where the class is as frequent as in these images."
    )
    assert plain(section.curve).endswith(
        "The area under the curve is 0.062; 0 is perfect. The threshold 0.625, meant to answer "
        "80 %, answers 75.0 % (70.0 to 80.0) and names 96.0 % (90.0 to 99.0) of them correctly; "
        "answering all, it is 87.5 %."
    )
    assert plain(section.sets).endswith(
        "at least 90 % are expected to have their true class in the set: with one threshold over "
        "all images, with one per class in each class. One per class takes 9 validation images of "
        f"each class; there were fewer of {NASTY}, so every such set includes it."
    )


def test_few_validation_images_are_said():
    decisions = build_decisions(counts=(3, 5))
    decisions.frozen["fitted_on"] = {"num_images": 8, "also_made_the_choice": True}
    section = decision_section(decisions, PLAINLY)
    assert section.fitted.endswith("so the same ones also made the choice.")
    assert plain(section.sets).endswith(
        "That takes 9 validation images, so here every set has all classes."
    )
    assert "includes them." in decision_section(build_decisions(counts=(8, 8)), PLAINLY).sets
    assert section.sets != decision_section(build_decisions(counts=(9, 9)), PLAINLY).sets
    assert decision_section(build_decisions(counts=(9, 9)), PLAINLY).sets.endswith("in each class.")


@pytest.mark.parametrize(
    ("met", "words"),
    [
        ("shown", "the whole interval reaches the goal, so that it is met is shown."),
        ("missed", "the whole interval lies below the goal, so it is missed."),
    ],
)
def test_verdicts(met, words):
    assert words in decision_section(build_decisions(goal_met=met), PLAINLY).point


def test_other_rules():
    assert decision_section(build_decisions({}), PLAINLY).point == ""
    text = plain(decision_section(build_decisions({"goal": "cost", "costs": []}), PLAINLY).point)
    assert text == (
        "Decide for the class with the smallest expected cost. On the test images: accuracy "
        "80.0 % (70.0 to 90.0), mean cost 1.250 (0.500 to 2.000). By naming the most probable "
        "class: accuracy 85.0 %, mean cost 1.500."
    )
    point = {"goal": "youden", "positive": "dog", "threshold": 0.0}
    assert rule_sentence(point) == (
        "Call every image dog: the threshold with the largest sum of sensitivity and specificity "
        "on the validation images."
    )
    point = {"goal": "specificity", "positive": "dog", "threshold": 2.0}
    assert rule_sentence(point).startswith("Call no image dog: the lowest threshold")
    # Three digits would make it 1.
    assert "at least 0.99975:" in rule_sentence({**point, "threshold": 0.99975})


def test_the_table_of_sets():
    section = decision_section(build_decisions(), PLAINLY)
    assert [(label, number) for label, _, number in section.rows] == [
        ("all", "50"),
        ("dog", "51"),
        (NASTY, "52"),
    ]
    cells = [[plain(text) for text in cell] for cell in section.rows[1][1]]
    assert cells == [
        ["89.0 %", "79.0 to 93.0", "2.20", "75.0 %"],
        ["94.0 %", "84.0 to 98.0", "2.20", "75.0 %"],
    ]


def test_of_many_classes_those_that_are_covered_worst():
    labels = [f"c{place:02}" for place in range(MAX_CLASSES + 3)]
    decisions = build_decisions(labels=labels, counts=[2] * len(labels))
    section = decision_section(decisions, PLAINLY)
    assert [row[0] for row in section.rows] == ["all", *labels[:2:-1]]
    assert "The 12 of 15 classes" in section.sets_caption
    assert "c11 and others, so every such set includes them." in section.sets


def test_the_figure_is_told_in_words():
    svg = plain(risk_coverage_figure(build_decisions()))
    assert "75.0 % answered, 4.0 % of them wrong; 0.0 % answered, – of them wrong" in svg


def test_the_page_has_the_section_where_something_was_frozen():
    page = render_report(build_content(decisions=build_decisions()))
    assert '<section id="decisions">' in page
    assert '<a href="#decisions">Decisions</a>' in page
    assert "Call an image &lt;b&gt;NA&lt;/b&gt; when" in page
    assert NASTY not in page
    assert page.count("<svg") == render_report(build_content()).count("<svg") + 1
    assert page.count("<h3>Operating point</h3>") == 1
    without_goal = render_report(build_content(decisions=build_decisions({})))
    assert "<h3>Operating point</h3>" not in without_goal
    assert "<h3>Sets of classes</h3>" in without_goal
    old = render_report(build_content())
    for words in ("What it may decide", "#decisions", "Sets of classes"):
        assert words not in old


def test_missing_intervals_leave_no_small_print():
    decisions = build_decisions()
    conformal = decisions.conformal.assign(low=nan, high=nan, coverage=nan)
    section = decision_section(dataclasses.replace(decisions, conformal=conformal), PLAINLY)
    assert section.rows[0][1][0][:2] == ("–", "")
