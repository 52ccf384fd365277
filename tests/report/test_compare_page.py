# ruff: noqa: RUF001  (typographic signs are what the pages must show)
"""The page that compares contenders of one run or of several."""

import dataclasses

import pandas as pd
import pytest

from cvpipe.report.compare_page import (
    CONTENDER_COLUMNS,
    ContenderComparison,
    render_compare_page,
)
from cvpipe.report.cost_figure import cost_figure
from tests.report.test_report import Page

nan = float("nan")
NASTY_RUN = "<script>a & b"


def row(name, run, accuracy, difference, p, verdict, seconds, ms, size):
    figures = (accuracy, accuracy - 0.05, accuracy + 0.02)
    gap = (difference, difference - 0.03, difference + 0.03)
    return (
        name,
        run,
        *figures,
        *gap,
        p,
        verdict,
        0.25,
        0.2,
        0.3,
        0.04,
        0.0,
        0.06,
        seconds,
        ms,
        size,
    )


def table_of(*rows):
    return pd.DataFrame(rows, columns=list(CONTENDER_COLUMNS)).astype({"model_bytes": "Int64"})


ONE = ContenderComparison(
    runs=["pets-3f9a1c"],
    reference="probe",
    is_chosen=True,
    baselines=frozenset({"majority"}),
    table=table_of(
        row("majority", "pets-3f9a1c", 0.5, -0.4, 0.0002, "worse", 0.1, 0.09, 5279),
        row("probe", "pets-3f9a1c", 0.9, nan, nan, "reference", 2.0, 14.6, 14_204_959),
        row("hog", "pets-3f9a1c", 0.88, -0.02, 0.3876, "cannot be told apart", nan, nan, None),
    ),
    num_images=1600,
    num_groups=214,
    test_openings=1,
    notes=[],
)
TWO = dataclasses.replace(
    ONE,
    runs=["pets-3f9a1c", NASTY_RUN],
    reference=f"{NASTY_RUN}/hog",
    is_chosen=False,
    baselines=frozenset(),
    table=table_of(
        row("pets-3f9a1c/hog", "pets-3f9a1c", 0.95, 0.05, 0.01, "better", 0.1, 2.0, 10),
        row(f"{NASTY_RUN}/hog", NASTY_RUN, 0.9, nan, nan, "reference", 2.0, 3.0, 10),
    ),
    test_openings=3,
    notes=["Groups differ."],
)


def test_the_table_shows_figures_costs_and_verdicts():
    page = Page(render_compare_page(ONE))
    assert page.row("probe") == [
        *("probe", "90.0 %|85.0 to 92.0", "", "reference"),
        *("0.250|0.200 to 0.300", "0.040|0.000 to 0.060", "2.0 s", "15", "14 MB"),
    ]
    assert page.row("majority|yardstick")[1:4] == [
        *("50.0 %|45.0 to 52.0", "−40.0|−43.0 to −37.0", "worse|p < 0.001"),
    ]
    hog = page.row("hog")
    assert hog[2:4] == ["−2.0|−5.0 to 1.0", "cannot be told apart|p = 0.39"]
    assert hog[6:] == ["–", "–", "–"]  # an older run did not store them
    head = [row for row in page.tables if row and row[0] == "contender|"]
    assert all(len(row) == len(head[0]) for row in page.tables)


def test_it_says_what_the_reference_is_and_how_often_test_was_scored():
    text = Page(render_compare_page(ONE)).text
    assert "On the same 1,600 test images 3 contenders. The reference is probe, chosen" in text
    assert "This test split has been scored by one config" in text
    assert "Read this first" not in text
    assert text.count("Hollow dots are yardsticks") == 1
    text = Page(render_compare_page(TWO)).text
    assert f"2 contenders of 2 runs. The reference is {NASTY_RUN}/hog. Read this first" in text
    assert text.count("has been scored by 3 configs") == 1
    assert "Groups differ." in text
    assert "Hollow dots" not in text


def test_the_run_stands_below_the_name_where_there_are_several():
    page = Page(render_compare_page(TWO))
    assert [cells[0] for cells in page.tables[1:]] == ["hog|pets-3f9a1c|", f"hog|{NASTY_RUN}|"]


def test_the_page_loads_nothing_and_escapes_names():
    text = render_compare_page(TWO)
    page = Page(text)
    assert NASTY_RUN not in text
    assert not page.tags & {"script", "link", "iframe", "img"}
    assert not [name for _, name, _ in page.attributes if name in ("style", "src")]
    assert text == render_compare_page(TWO)


def test_the_figure_has_whoever_was_timed():
    svg = cost_figure(ONE.table, "probe", {"majority"}).replace("\u00a0", " ")
    label = (
        "Test accuracy against time per image: majority 50.0 % at 0.09 ms; probe 90.0 % at 15 ms"
    )
    assert f'aria-label="{label}"' in svg
    assert cost_figure(ONE.table[1:], "probe", set()) == ""
    assert "Accuracy against time" not in render_compare_page(
        dataclasses.replace(ONE, table=ONE.table.assign(milliseconds_per_image=nan))
    )


@pytest.mark.parametrize(("name", "own"), [("probe", "probe"), ("r-1/probe", "probe")])
def test_a_row_has_the_name_that_its_run_knows(name, own):
    assert ONE.own_name({"contender": name, "run": "r-1"}) == own
