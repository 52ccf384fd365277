"""The section of the report on views."""

import dataclasses

import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.report.content import VIEW_COLUMNS
from cvpipe.report.page import render_report
from cvpipe.report.views import view_rows, view_sentence
from cvpipe.report.wording import crops_warning
from tests.report.test_report import NASTY_CLASS, Page, build_content, metric_rows, rows_of

nan = float("nan")
SAME = "cannot be told apart"
CAPTION = "Views on the test images."
BECAUSE = "it has the lowest log loss of 2 views on 50 of the 100 validation images"


def view_row(contender, view, chosen, verdict="", protocol="holdout", difference=nan):
    passes = {"single": 1, "flip": 2}[view]
    ends = (nan, nan, nan) if view == "single" else (difference - 0.01, difference + 0.02, 0.034)
    accuracy = 0.9 if view == "single" else 0.9 + difference
    start = (protocol, contender, view, chosen, passes, 12.5 * passes, 0.93 * passes)
    figures = (accuracy, accuracy - 0.05, accuracy + 0.04, 0.25, 0.2, 0.3)
    return (*start, *figures, difference, *ends, verdict, 600)


def build_viewed(chosen="flip", verdict=SAME, difference=0.012, **changes):
    rows = [
        view_row("hog", "single", True),
        view_row("hog", "flip", False, SAME, difference=-0.004),
        view_row("probe", "single", chosen == "single"),
        view_row("probe", "flip", chosen == "flip", verdict, difference=difference),
    ]
    content = build_content()
    contenders = [
        dataclasses.replace(c, view=chosen if c.name == "probe" else "single")
        for c in content.contenders
    ]
    return dataclasses.replace(
        content,
        **{
            "contenders": contenders,
            "views": pd.DataFrame(rows, columns=VIEW_COLUMNS),
            "view_reasons": {"hog": "of chance", "probe": BECAUSE},
            **changes,
        },
    )


def sentence(**changes):
    return view_sentence(build_viewed(**changes)).replace("\u00a0", " ")


def test_the_chosen_view_is_told_with_what_it_brings_and_costs():
    begin = f"probe sees an image in the view flip, chosen on the validation images: {BECAUSE}. "
    assert sentence() == begin + (
        "On the test images it names 91.2 % correctly, which cannot be told apart from the 90.0 % "
        "of a single view (difference 1.2 points, 0.2 to 3.2). It takes 2 passes and 1.9 times as "
        "long."
    )
    assert sentence(verdict="better") == begin + (
        "On the test images it names 91.2 % correctly, which is better than the 90.0 % of a single "
        "view (difference 1.2 points, 0.2 to 3.2). It takes 2 passes and 1.9 times as long."
    )
    assert "which is worse than the 90.0 %" in sentence(verdict="worse", difference=-0.02)


def test_of_a_single_view_that_was_chosen_there_is_no_more_to_tell():
    assert sentence(chosen="single") == (
        f"probe sees an image in the view single, chosen on the validation images: {BECAUSE}."
    )


def test_a_chosen_contender_that_looks_at_no_pixel():
    views = build_viewed().views
    assert sentence(views=views[views["contender"] == "hog"]) == ""


def test_rows_are_in_the_order_of_the_page_and_folds_have_a_table_of_their_own():
    content = build_viewed()
    folds = content.views.assign(protocol="kfold")
    tables = view_rows(
        dataclasses.replace(content, views=pd.concat([content.views, folds])), ["probe", "hog"]
    )
    assert list(tables) == ["holdout", "kfold"]
    for rows in tables.values():
        keys = [(row["contender"], row["view"]) for row in rows]
        assert keys == [(name, view) for name in ("probe", "hog") for view in ("single", "flip")]


def test_the_section_has_figures_differences_and_costs():
    text = render_report(build_viewed(views_warning="Take care."))
    assert rows_of(text, CAPTION) == [
        [
            *("contender", "view", "passes", "ms per image", "times a single view", "accuracy"),
            *("log loss", "difference", "verdict", "p", "images"),
        ],
        [
            *("probe", "single", "1", "12", "0.93", "90.0 %|85.0 to 94.0", "0.250|0.200 to 0.300"),
            *("–", "", "–", "600"),  # noqa: RUF001
        ],
        [
            *("probe", "flip|chosen", "2", "25", "1.9", "91.2 %|86.2 to 95.2"),
            *("0.250|0.200 to 0.300", "1.2 points|0.2 to 3.2", SAME, "0.034", "600"),
        ],
        [
            *("hog", "single|chosen", "1", "12", "0.93", "90.0 %|85.0 to 94.0"),
            *("0.250|0.200 to 0.300", "–", "", "–", "600"),  # noqa: RUF001
        ],
        [
            *("hog", "flip", "2", "25", "1.9", "89.6 %|84.6 to 93.6", "0.250|0.200 to 0.300"),
            *("−0.4 points|−1.4 to 1.6", SAME, "0.034", "600"),  # noqa: RUF001
        ],
    ]
    page = Page(text)
    assert "probe sees an image in the view flip" in page.text
    assert "Take care." in page.text
    assert 'href="#test-views"' in text


def test_without_views_nothing_is_said_of_them():
    text = render_report(build_content())
    assert "test-views" not in text
    assert "Test-time views" not in text


def test_reasons_are_escaped():
    text = render_report(build_viewed(view_reasons={"probe": NASTY_CLASS}))
    assert "<script" not in text


def test_views_without_a_column_are_refused():
    views = build_viewed().views.drop(columns="passes")
    with pytest.raises(InputError, match=r"the views table of a report lacks .* \['passes'\]"):
        render_report(build_viewed(views=views))


def test_the_headline_is_that_of_the_own_view():
    """`metric_rows` of the content have 97.7 % for probe in the view flip."""
    assert metric_rows("probe", 0.977, view="flip")[0][6:8] == ("", 0.977)
    assert "names 97.7 % correctly" in Page(render_report(build_viewed())).text


def test_the_warning_of_crops_speaks_of_one_or_several():
    assert crops_warning(["centre"]).startswith("centre looks at crops: each leaves out a part")
    assert crops_warning(["centre", "ten_crop"]).startswith("centre and ten_crop look at crops: ")
