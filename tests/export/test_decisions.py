import re

import numpy as np

from cvpipe.export.bundle import bundle_readme, decisions_paragraph
from tests.export.test_bundle import facts_of

SETS = {"level": 0.975, "marginal": 0.125, "by_class": {"NA": 0.25}}


def decisions_of(point):
    return {"operating_point": point, "abstention": [], "prediction_sets": SETS}


def test_readme_without_decisions_has_no_word_of_them():
    assert decisions_paragraph({}) == ""
    readme = bundle_readme(facts_of())
    assert "decisions" not in readme
    assert "repeats\nit.\n\nLicence of the pretrained weights" in readme


def test_readme_says_how_to_use_thresholds_and_sets():
    point = {"goal": "sensitivity", "positive": "NA", "at_least": 0.9, "threshold": 0.31234567}
    readme = bundle_readme({**facts_of(), "decisions": decisions_of(point)})
    assert "Call an image `NA` when its probability is at least 0.312346 (goal: sensiti" in readme
    assert "the true class in 97.5 % of new images" in readme
    assert "fitted on validation images and frozen before the test. Call an image" in readme
    assert "for the images of each class.\n\nLicence of the pretrained weights" in readme
    assert not re.search(r"\\n|\{\{|\}\}", readme)


def test_readme_without_a_goal_and_with_costs():
    assert "frozen before the test. To answer only" in decisions_paragraph(decisions_of({}))
    point = {"goal": "cost", "costs": [[0, 1], [9, 0]]}
    text = decisions_paragraph(decisions_of(point))
    code = re.search(r"`(\(probabilities @ costs\)\.argmin\(\))`", text)[1]
    # What stands there is the rule: the first class would cost 0.2 * 9, the second 0.8 * 1.
    names = {"probabilities": np.array([0.8, 0.2]), "costs": np.array(point["costs"])}
    assert eval(code, names) == 1
