"""`docs/decisions.md` says what the code does."""

import re
import tomllib
from pathlib import Path

from cvpipe.inference.conformal import images_needed
from cvpipe.inference.thresholds import EVERYTHING, NOTHING, RESOLUTION
from cvpipe.report.decisions import ABSTENTION_COLUMNS, CONFORMAL_COLUMNS, OPERATING_COLUMNS
from cvpipe.sections import DEFAULT_AT_LEAST, EvaluateSection
from cvpipe.stages.decide import ANSWERED_SHARES
from cvpipe.stages.halves import MIN_VAL_FOR_HALVES

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
WORDS = " ".join(DOCUMENT.split())


def test_the_example_is_valid():
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    section = EvaluateSection.model_validate(tomllib.loads(block)["evaluate"], strict=False)
    assert (section.goal, section.positive, section.at_least) == ("sensitivity", "tumour", 0.95)


def test_goals_and_columns_are_listed():
    goals = EvaluateSection.model_fields["goal"].annotation.__args__
    assert re.findall(r'^\| `"(\w+)"`', DOCUMENT, re.MULTILINE) == [goal for goal in goals if goal]
    operating = DOCUMENT.split("| column | |")[1].split("\n\n")[0]
    for column in OPERATING_COLUMNS:
        assert f"`{column}`" in operating
    assert {"answered_share", "accuracy"} <= set(ABSTENTION_COLUMNS)
    assert "coverage" in CONFORMAL_COLUMNS


def test_numbers_are_those_of_the_code():
    *first, last = (f"{100 * share:g}" for share in ANSWERED_SHARES)
    assert f"{', '.join(first)} and {last} % of the images" in WORDS
    assert f"fewer than {MIN_VAL_FOR_HALVES} images" in WORDS
    assert f"differ by more than {RESOLUTION:.6f}," in WORDS
    assert f"{EVERYTHING:g} calls everything positive, {NOTHING:g} nothing" in WORDS
    assert f"`at_least` is {DEFAULT_AT_LEAST} if not given" in WORDS
    assert f"`conformal_level` ({EvaluateSection().conformal_level} if not given)" in WORDS
    assert f"{images_needed(0.9)} for 0.9, {images_needed(0.95)} for 0.95" in WORDS
