# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import html
import re

import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.report import page as report_page
from cvpipe.report.content import MEMBER_COLUMNS
from cvpipe.report.page import build_figures, render_report
from tests.report.test_report import Page, build_content, build_full

NAN = float("nan")
NASTY = "<b>'\"&"
# The worth of one protocol is not that of the other.
TABLE = [
    ("holdout", "both", "hog", 0.25, 0.125, 0.5, 0.0625, 0.01, 0.2, "helps", 600),
    ("holdout", "both", "probe", 0.75, 0.125, 0.5, -0.01234, -0.02, 0.01, "cannot be told", 600),
    ("holdout", "all", "probe", 1.0, 0.0, -0.25, -0.5, -0.75, -0.25, "harms", 600),
    ("holdout", "all", "hog", 0.0, 0.9999, NAN, 0.0, 0.0, 0.0, "cannot be told", 600),
    ("kfold", "both", "hog", 0.375, 0.25, 0.0, 0.875, 0.5, 0.99, "helps", 2624),
    ("kfold", "both", "probe", 0.625, 0.25, 0.0, 0.75, 0.25, 0.8, "helps", 2624),
]
MEMBERS = pd.DataFrame(TABLE, columns=MEMBER_COLUMNS)


@pytest.fixture(autouse=True, scope="module")
def figures_are_drawn_once():
    drawn = {}

    def build_once(content, order):
        key = bool(content.careless.empty)
        if key not in drawn:
            drawn[key] = build_figures(content, order)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page, "build_figures", build_once)
        yield


def section_of(content):
    page = render_report(content)
    Page(page)  # is balanced
    (section,) = re.findall(r'<section id="ensembles">.*?</section>', page, re.DOTALL)
    return section


def plain(markup):
    """The text of markup, with | where there are tags between words."""
    text = html.unescape(re.sub(r"(<[^>]+>)+", "|", markup))
    return re.sub(r"\s+", " ", text).strip("|")


def tables_of(section):
    """The rows of each table, by its caption; the parts of a cell are joined by |."""
    found = {}
    for table in re.findall(r"<table>.*?</table>", section, re.DOTALL):
        (caption,) = re.findall(r"<caption>(.*?)</caption>", table, re.DOTALL)
        rows = re.findall(r"<tr>.*?</tr>", table.split("<tbody>")[1], re.DOTALL)
        found[plain(caption)] = [
            [plain(cell) for cell in re.findall(r"<t[dh].*?/t[dh]>", row)] for row in rows
        ]
    return found


def test_without_ensembles_there_is_no_section():
    page = render_report(build_content())
    assert 'id="ensembles"' not in page
    assert "#ensembles" not in page
    assert "Ensembles" not in page


def test_the_page_has_the_section_and_a_link_to_it():
    page = Page(render_report(build_content(members=MEMBERS)))
    assert page.headings.count("Ensembles") == 1
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert links == [f"#{section}" for section in sections]
    assert "ensembles" in sections
    # Behind the split and before the training, as in the links.
    full = Page(render_report(build_full(members=MEMBERS)))
    assert full.headings.index("Ensembles") == full.headings.index("What the split does") + 1
    assert full.headings.index("Ensembles") == full.headings.index("Data") - 1


def test_a_table_for_each_ensemble_in_the_order_of_the_run():
    tables = tables_of(section_of(build_content(members=MEMBERS)))
    assert [caption.split(",")[0] for caption in tables] == ["Members of both", "Members of all"]
    assert tables == {
        "Members of both, on the test images; 95 % intervals in small print.": [
            ["hog", "25.0 %", "12.5 %", "0.500", "0.062|0.010 to 0.200", "helps"],
            ["probe", "75.0 %", "12.5 %", "0.500", "−0.012|−0.020 to 0.010", "cannot be told"],
        ],
        "Members of all, on the test images; 95 % intervals in small print.": [
            ["probe", "100.0 %", "0.0 %", "−0.250", "−0.500|−0.750 to −0.250", "harms"],
            ["hog", "0.0 %", "> 99.9 %", "–", "0.000|0.000 to 0.000", "cannot be told"],
        ],
    }


def test_with_folds_the_figures_are_theirs():
    """They speak of all images."""
    section = section_of(build_full(members=MEMBERS))
    assert tables_of(section) == {
        "Members of both, each image scored in its fold; 95 % intervals in small print.": [
            # In this page `hog` is a yardstick.
            ["hog|yardstick", "37.5 %", "25.0 %", "0.000", "0.875|0.500 to 0.990", "helps"],
            ["probe", "62.5 %", "25.0 %", "0.000", "0.750|0.250 to 0.800", "helps"],
        ]
    }
    assert "on the test images" not in section


def test_without_folds_their_figures_are_not_shown():
    assert "0.875" not in section_of(build_content(members=MEMBERS))
    page = render_report(build_content(members=MEMBERS[MEMBERS["protocol"] == "kfold"]))
    assert 'id="ensembles"' not in page


def test_what_is_not_known_is_a_dash():
    row = ("holdout", "both", "hog", NAN, NAN, NAN, NAN, NAN, NAN, "cannot be told", 600)
    section = section_of(build_content(members=pd.DataFrame([row], columns=MEMBER_COLUMNS)))
    assert list(tables_of(section).values()) == [[["hog", *["–"] * 4, "cannot be told"]]]
    assert "nan" not in section.lower()


def test_names_are_escaped():
    row = ("holdout", NASTY, NASTY + "1", 1.0, 0.5, 0.5, 0.1, 0.1, 0.1, NASTY + "2", 600)
    page = render_report(build_content(members=pd.DataFrame([row], columns=MEMBER_COLUMNS)))
    assert NASTY not in page
    section = section_of(build_content(members=pd.DataFrame([row], columns=MEMBER_COLUMNS)))
    assert section.count("&lt;b&gt;") == 3
    ((caption, rows),) = tables_of(section).items()
    assert caption.startswith(f"Members of {NASTY}, on the test images")
    assert (rows[0][0], rows[0][-1]) == (NASTY + "1", NASTY + "2")


def test_the_head_has_as_many_cells_as_the_rows():
    section = section_of(build_content(members=MEMBERS))
    heads = re.findall(r"<thead>(.*?)</thead>", section, re.DOTALL)
    assert [re.findall(r"<th [^>]*>(.*?)</th>", head) for head in heads] == [
        ["member", "weight", "other class", "mistakes go together", "worth", "verdict"]
    ] * 2
    assert all(len(row) == 6 for rows in tables_of(section).values() for row in rows)


def test_equal_contents_give_equal_bytes():
    pages = [render_report(build_content(members=MEMBERS.copy())) for _ in range(2)]
    assert pages[0] == pages[1]


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(InputError, match="members"):
        render_report(build_content(members=MEMBERS.drop(columns="worth")))
