"""`docs/classifiers.md` lists the classifiers as the code has them."""

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from cvpipe.classifiers.search import SEARCHES, fit_classifier
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import validate_config
from cvpipe.errors import InputError
from cvpipe.stages.plan import check_names

DOCUMENT = (Path(__file__).parent.parent / "docs" / "classifiers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in DOCUMENT.splitlines()
    if line.startswith("| `")
]
WORDS = {
    **{"C": "C", "gamma_factor": "width", "k": "k", "vote": "vote", "metric": "distance"},
    **{"l1_ratio": "share of L1", "weight_decay": "weight decay"},
    **{"learning_rate": "learning rate"},
}


def test_every_classifier_is_listed_with_what_is_searched():
    assert {row[0].strip("`") for row in ROWS} == set(CLASSIFIERS)
    for name, _, searched, _ in ROWS:
        parameters = CLASSIFIERS[name.strip("`")].parameters
        assert searched == ", ".join(WORDS[parameter.name] for parameter in parameters)


def test_the_example_is_valid():
    (block,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    raw = tomllib.loads(block)
    check_names(validate_config({"name": "a", "data": {"root": "x"}, **raw}))


def test_the_number_of_folds_is_that_of_the_code():
    assert f'`search = "fine"` ({SEARCHES["fine"]} folds)' in DOCUMENT
    assert f'`"coarse"` ({SEARCHES["coarse"]} folds)' in DOCUMENT


@pytest.mark.parametrize("name", ["chi2_svm", "intersection_svm"])
def test_negative_numbers_are_refused_where_the_page_says_so(name):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    groups = [str(row) for row in range(40)]
    with pytest.raises(InputError, match="rbf_svm"):
        fit_classifier(name, rows, np.arange(40) % 2, groups, "coarse", 0, 1)
