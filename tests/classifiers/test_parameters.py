import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.classifiers.parameters import (
    Parameter,
    edge_warnings,
    first_grid,
    second_grid,
    simplest_first,
)
from cvpipe.classifiers.table import CLASSIFIERS, SEARCHES, Classifier, count_search_fits

C = Parameter("C", (0.1, 1.0, 10.0))
DECAY = Parameter("decay", (100.0, 10.0, 1.0))
VOTE = Parameter("vote", ("majority", "distance"))
K = Parameter("k", (1, 3, 9), fine=(1, 2, 4, 8, 16), ends=(1, float("inf")), counts_rows=True)
RATIO = Parameter("ratio", (0.5, 0.1), fine=(0.5, 0.1), ends=(0.1, 0.5))


def test_the_first_grid_has_every_combination():
    assert first_grid([C], fine=False, num_rows=1) == [{"C": 0.1}, {"C": 1.0}, {"C": 10.0}]
    assert first_grid([C], fine=True, num_rows=1) == first_grid([C], fine=False, num_rows=1)
    assert first_grid([DECAY, VOTE], fine=False, num_rows=1) == [
        {"decay": 100.0, "vote": "majority"},
        {"decay": 100.0, "vote": "distance"},
        {"decay": 10.0, "vote": "majority"},
        {"decay": 10.0, "vote": "distance"},
        {"decay": 1.0, "vote": "majority"},
        {"decay": 1.0, "vote": "distance"},
    ]


def test_more_neighbours_than_rows_are_left_out():
    assert first_grid([K], fine=False, num_rows=9) == [{"k": 1}, {"k": 3}, {"k": 9}]
    assert first_grid([K], fine=False, num_rows=8) == [{"k": 1}, {"k": 3}]
    assert first_grid([K], fine=True, num_rows=4) == [{"k": 1}, {"k": 2}, {"k": 4}]
    assert len(first_grid([C], fine=True, num_rows=0)) == 3  # not a number of rows


def test_the_second_grid_is_half_a_step_to_either_side():
    # 3.16 is the square root of 10.
    assert second_grid([C], {"C": 1.0}) == [{"C": 0.316}, {"C": 3.16}]
    assert second_grid([C], {"C": 10.0}) == [{"C": 3.16}, {"C": 31.6}]  # also beyond the end
    assert second_grid([DECAY], {"decay": 10.0}) == [{"decay": 31.6}, {"decay": 3.16}]
    factor = Parameter("factor", (1 / 16, 1 / 4, 1.0, 4.0))
    assert second_grid([factor], {"factor": 1.0}) == [{"factor": 0.5}, {"factor": 2.0}]
    # Words, and numbers that were all tried at once, stay.
    best = {"C": 1.0, "vote": "distance", "k": 4, "ratio": 0.5}
    around = second_grid([C, VOTE, K, RATIO], best)
    assert around == [{**best, "C": 0.316}, {**best, "C": 3.16}]
    assert second_grid([VOTE, K], {"vote": "distance", "k": 4}) == []


def test_two_numbers_are_refined_together():
    around = second_grid([C, DECAY], {"C": 1.0, "decay": 10.0})
    assert len(around) == 8
    assert {"C": 0.316, "decay": 31.6} in around
    assert {"C": 1.0, "decay": 10.0} not in around


def test_the_simplest_comes_first():
    assert [C.rank(value) for value in (0.1, 3.0)] == [0.1, 3.0]
    assert DECAY.rank(100.0) < DECAY.rank(31.6) < DECAY.rank(1.0)
    assert VOTE.rank("majority") < VOTE.rank("distance")
    parameters = [DECAY, C, VOTE]
    ordered = [
        {"decay": 10.0, "C": 1.0, "vote": "majority"},
        {"decay": 10.0, "C": 1.0, "vote": "distance"},
        {"decay": 10.0, "C": 3.0, "vote": "majority"},
        {"decay": 1.0, "C": 0.1, "vote": "majority"},
    ]
    shuffled = [ordered[number] for number in (3, 1, 0, 2)]
    assert sorted(shuffled, key=lambda s: simplest_first(parameters, s)) == ordered


def told(parameter, tried, best, num_rows=100):
    name = parameter.name
    settings = [{name: value} for value in tried]
    return edge_warnings([parameter], settings, {name: best}, num_rows)


def test_the_edge_of_what_was_tried_is_told():
    assert told(C, [0.1, 1.0, 10.0], 1.0) == []
    assert told(C, [0.1, 0.316, 1.0], 0.1) == [
        "the best C is the smallest that was tried (0.1); a better one may lie outside the range"
    ]
    assert told(C, [0.1, 1.0, 10.0, 31.6], 31.6) == [
        "the best C is the largest that was tried (31.6); a better one may lie outside the range"
    ]
    assert told(DECAY, [100.0, 10.0], 100.0) == [
        "the best decay is the largest that was tried (100); a better one may lie outside the range"
    ]


def test_a_natural_end_is_not_told():
    assert told(K, [1, 3, 9], 1) == []
    assert told(K, [1, 3, 9], 9, num_rows=9) == []
    assert "largest" in told(K, [1, 3, 9], 9, num_rows=10)[0]
    assert told(RATIO, [0.5, 0.1], 0.5) == told(RATIO, [0.5, 0.1], 0.1) == []
    assert told(VOTE, ["majority", "distance"], "majority") == []
    assert told(C, [1.0], 1.0) == []  # there was no choice


def test_each_number_is_told_for_itself():
    tried = [{"C": c, "decay": d} for c in (1.0, 10.0, 100.0) for d in (10.0, 1.0, 0.1)]
    messages = edge_warnings([C, DECAY], tried, {"C": 1.0, "decay": 10.0}, 100)
    assert [message.split()[2] for message in messages] == ["C", "decay"]


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(CLASSIFIERS)), st.integers(0, 1000))
def test_what_a_fine_search_adds_was_not_tried_before(name, number):
    parameters = CLASSIFIERS[name].parameters
    first = first_grid(parameters, fine=True, num_rows=1000)
    best = first[number % len(first)]
    second = second_grid(parameters, best)
    assert all(setting not in first for setting in second)
    names = [parameter.name for parameter in parameters]
    assert all(list(setting) == names for setting in first + second)


# The table.


def test_the_range_of_every_number_is_wide_or_ends_by_nature():
    for name, classifier in CLASSIFIERS.items():
        for parameter in classifier.parameters:
            if isinstance(parameter.coarse[0], str):
                continue
            values = sorted(parameter.coarse)
            steps = [high / low for low, high in pairwise(values)]
            assert max(steps) < 1.001 * min(steps), name  # even in the logarithm
            ends_by_nature = parameter.ends == (values[0], values[-1]) or parameter.counts_rows
            assert ends_by_nature or values[-1] / values[0] >= 60, name


def test_fits_are_counted():
    def count(search, *parameters, swept=()):
        return count_search_fits(Classifier("", dict, parameters, swept=swept), search)

    assert [count(search, C) for search in ("coarse", "fine")] == [3 * 3, (3 + 2) * 5]
    assert count("coarse", C, DECAY) == 9 * 3
    assert count("fine", C, DECAY) == (9 + 8) * 5
    # With a finer C the best decay is fitted once more, beside the two around it.
    assert count("fine", C, DECAY, swept=("C",)) == (3 + 3) * 5
    assert count("fine", K, VOTE, swept=("k", "vote")) == 5
    assert count("fine") == 0
    assert SEARCHES == {"coarse": 3, "fine": 5}


@pytest.mark.parametrize("search", SEARCHES)
def test_fits_of_the_table_are_affordable(search):
    for name, classifier in CLASSIFIERS.items():
        assert count_search_fits(classifier, search) <= {"coarse": 24, "fine": 60}[search], name


def test_titles_differ():
    assert len({classifier.title for classifier in CLASSIFIERS.values()}) == len(CLASSIFIERS)


def test_the_table_loads_nothing_heavy():
    code = (
        "import sys, cvpipe.classifiers.table; "
        "print({'numpy', 'pandas', 'sklearn', 'scipy', 'tensorflow'} & set(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "set()"
