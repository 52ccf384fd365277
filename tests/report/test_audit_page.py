# ruff: noqa: RUF001  (typographic signs are what the page must show)
import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from cvpipe.plots.charts import plot_histogram
from cvpipe.plots.svg import build_axes
from cvpipe.report.audit_page import (
    MAX_SIZES,
    AuditContent,
    ClusterSummary,
    Entry,
    KindSummary,
    build_figures,
    render_audit_page,
)
from cvpipe.report.page import image_data_uri, render_report
from tests.report.test_report import NASTY_CLASS, NASTY_ID, Page
from tests.report.test_report import build_content as build_report

PICTURE = image_data_uri(np.full((8, 9, 3), 120, dtype=np.uint8))
OTHER = image_data_uri(np.full((8, 9, 3), 40, dtype=np.uint8))


def facts_of(sizes, **columns):
    height, width = zip(*sizes, strict=True) if sizes else ((), ())
    table = {"height": height, "width": width, "format": "PNG", "mode": "RGB"}
    return pd.DataFrame({**table, **columns}, index=range(len(sizes)))


def build_content(**changes):
    """A small but complete content; `changes` replace whole fields."""
    conflict = Entry((("a.png", "cat"), ("b.png", "dog")), "the same bytes as 'a.png'")
    cut = Entry((("cut.jpg", "cat"),), "the file ends early")
    split = Entry((), "40 of 80 images have a near-duplicate")
    kinds = [
        KindSummary("label_conflict", "error", "two labels", "decide", 7, [conflict]),
        KindSummary("truncated", "error", "it ends early", "mend the file", 1, [cut]),
        KindSummary("near_duplicates", "warning", "many are alike", "look", 1, [split]),
        KindSummary("dark", "info", "far darker", "look at it", 1, [Entry((("b.png", "dog"),))]),
    ]
    shown = Entry((("a.png", "cat"), ("b.png", "dog")))
    content = AuditContent(
        title="pets",
        counts=pd.DataFrame({"images": [1200, 34]}, index=["cat", "dog"]),
        severities={"error": 8, "warning": 1, "info": 1},
        kinds=kinds,
        num_clusters=30,
        num_mixed=1,
        clusters=[
            ClusterSummary(11, {"dog": 10, "cat": 1}, {"copy": 6, "mirrored": 4}, shown),
            ClusterSummary(2, {"cat": 2}, {"identical": 1}, shown),
        ],
        num_suspects=25,
        suspects=[Entry((("a.png", "cat"),), "suggested: dog (95%); its label has 2%")],
        facts=facts_of([(20, 30)] * 5 + [(1200, 40)], brightness=0.5, sharpness=1.25),
        pictures={"a.png": PICTURE, "b.png": OTHER},
    )
    return dataclasses.replace(content, **changes)


@pytest.fixture(scope="module")
def text():
    return render_audit_page(build_content())


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def attributes(page, tag, name):
    return [value for t, n, value in page.attributes if (t, n) == (tag, name)]


def test_equal_content_gives_equal_bytes(text):
    assert render_audit_page(build_content()) == text


def test_sections_in_the_order_of_gravity(page):
    assert page.headings == [
        "Errors and warnings",
        "Copies and near-duplicates",
        "Label suspects",
        "To know",
        "Classes and files",
    ]
    ids = attributes(page, "section", "id")
    links = attributes(page, "a", "href")
    assert links[:5] == [f"#{name}" for name in ids]
    assert set(links[5:]) == {"#clusters"}


def test_nothing_is_loaded_from_elsewhere(text, page):
    assert not page.tags & {"script", "link", "iframe", "object", "form", "base"}
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, name, value[:80])
        assert not name.startswith("on")
        assert name != "style", tag
    assert "@import" not in text
    assert "default-src 'none'; img-src data:" in text
    others = set(re.findall(r"\w+://[^\s\"'<]+", text))
    assert all(other.startswith("http://www.w3.org/") for other in others)  # names of SVG


def test_head_counts(page):
    assert (
        "Images1,234in 2 classes; 6 could be read Errors8each stops a run "
        "Warnings1they can change what a figure means Infos1worth knowing" in page.text
    )


def test_each_kind_says_what_it_means_and_what_to_do(page):
    assert "error label_conflict 7 Two labels. What to do: decide." in page.text
    assert "error truncated 1 It ends early. What to do: mend the file." in page.text
    assert "warning near_duplicates 1 Many are alike. What to do: look. See them" in page.text
    assert "info dark 1 Far darker. What to do: look at it." in page.text
    assert "… and 6 more." in page.text  # conflicts
    assert page.text.index("label_conflict") < page.text.index("near_duplicates")


def test_a_pair_stands_side_by_side_with_what_is_said_of_it(text):
    pair = re.search(r'<li class="pair">(.*?)</li>', text, re.DOTALL)[1]
    assert re.findall(r'src="([^"]*)"', pair) == [PICTURE, OTHER]
    assert re.findall(r'class="id">([^<]*)<', pair) == ["a.png", "b.png"]
    assert re.findall(r"<b>([^<]*)</b>", pair) == ["cat", "dog"]
    assert "<p>the same bytes as &#39;a.png&#39;</p>" in pair


def test_what_has_no_picture_is_named_in_words(page):
    assert "cut.jpg no picture the file ends early" in page.text
    assert "40 of 80 images have a near-duplicate" in page.text
    assert "no picture 40 of 80" not in page.text  # it is about no single image
    assert "" not in attributes(page, "img", "src")


def test_a_pair_of_which_one_has_no_picture_is_named_in_words():
    page = Page(render_audit_page(build_content(pictures={"a.png": PICTURE}, clusters=[])))
    assert "a.png and b.png no picture the same bytes as 'a.png'" in page.text


def test_clusters_say_their_labels_and_how_they_were_found(page):
    assert (
        "30 clusters of images that show the same, 1 of them with more than one label. A split "
        "that cvpipe makes keeps a cluster together. Shown are 2, those with more than one label "
        "first, then the largest." in page.text
    )
    assert "11 images dog 10, cat 1 · 6 × copy, 4 × mirrored" in page.text
    assert "… and 9 more." in page.text
    assert "… and 0 more" not in page.text
    assert "2 images cat 2 · 1 × identical" in page.text


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (2, "2 clusters of images that show the same, none of them with more than one label. "
            "A split that cvpipe makes keeps a cluster together. Those with more"),
        (1, "1 cluster of images that show the same, none of them with more than one label. "
            "A split that cvpipe makes keeps a cluster together. 11 images"),
    ],
)  # fmt: skip
def test_a_few_clusters(number, words):
    clusters = build_content().clusters[:number]
    content = build_content(num_clusters=number, num_mixed=0, clusters=clusters)
    assert words in Page(render_audit_page(content)).text


def test_a_cluster_without_pictures_is_named():
    page = Page(render_audit_page(build_content(pictures={})))
    assert "a.png no picture b.png no picture … and 9 more." in page.text
    assert "img" not in page.tags


def test_suspects(page):
    assert "25 images whose label the images of other groups speak against" in page.text
    assert "cata.png suggested: dog (95%); its label has 2%" in page.text
    assert "… and 24 more." in page.text


def test_sizes_and_formats(page):
    assert page.row("20 × 30") == ["20 × 30", "5"]
    assert page.row("1,200 × 40") == ["1,200 × 40", "1"]
    assert page.row("PNG") == ["PNG", "RGB", "6"]
    assert "Sizes of the images, upright." in page.text


def test_only_the_most_frequent_sizes_are_listed():
    sizes = [(9, 9)] * 3 + [(1, width) for width in range(1, MAX_SIZES + 3)]
    page = Page(render_audit_page(build_content(facts=facts_of(sizes))))
    assert f"the {MAX_SIZES} most frequent of {MAX_SIZES + 3}." in page.text
    assert page.row("9 × 9") == ["9 × 9", "3"]
    assert len([row for row in page.tables if "×" in row[0] and "width" not in row[0]]) == MAX_SIZES


def test_every_figure_is_described(page):
    labels = attributes(page, "svg", "aria-label")
    assert labels == [
        "Images per class: cat 1200; dog 34",
        "Distributions, with the medians: brightness 0.500; sharpness 1.250",
    ]


def test_figures_need_something_to_draw():
    assert set(build_figures(build_content())) == {"counts", "measures"}
    assert set(build_figures(build_content(facts=facts_of([(2, 2)])))) == {"counts"}
    nothing = build_content(counts=pd.DataFrame({"images": []}), facts=facts_of([]))
    assert build_figures(nothing) == {}
    assert "0 could be read" in Page(render_audit_page(nothing)).text


def test_a_page_without_findings():
    content = build_content(
        kinds=[], clusters=[], suspects=[], num_suspects=0, severities=dict.fromkeys(
            ("error", "warning", "info"), 0
        ),
    )  # fmt: skip
    page = Page(render_audit_page(content))
    assert page.headings == ["Errors and warnings", "Classes and files"]
    assert "None. Every image could be read, and nothing about them was conspicuous." in page.text
    assert attributes(page, "a", "href") == ["#findings", "#files"]
    assert "bad" not in attributes(page, "div", "class")


def test_a_page_with_infos_alone():
    page = Page(render_audit_page(build_content(kinds=build_content().kinds[3:])))
    assert "None that stops a run or changes what its figures mean." in page.text


def test_names_from_data_are_escaped_everywhere():
    entry = Entry(((NASTY_ID, NASTY_CLASS), ("gone" + NASTY_ID, NASTY_CLASS)), NASTY_CLASS)
    pictured = Entry(((NASTY_ID, NASTY_CLASS),), NASTY_CLASS)
    kinds = [
        KindSummary("truncated", "error", NASTY_CLASS, NASTY_CLASS, 2, [entry, pictured]),
    ]
    cluster = ClusterSummary(2, {NASTY_CLASS: 2}, {NASTY_CLASS: 1}, entry)
    text = render_audit_page(
        build_content(
            title=NASTY_CLASS,
            counts=pd.DataFrame({"images": [3]}, index=[NASTY_CLASS]),
            kinds=kinds,
            clusters=[cluster],
            suspects=[entry, pictured],
            facts=facts_of([(2, 2)], format=NASTY_CLASS, mode=NASTY_CLASS),
            pictures={NASTY_ID: PICTURE},
        )
    )
    page = Page(text)
    assert "<script" not in text
    assert "<b>.jpg" not in text
    assert NASTY_CLASS in page.text  # and still readable
    assert NASTY_ID in page.text
    assert NASTY_CLASS in attributes(page, "img", "alt")


def test_a_histogram_counts_every_image():
    values = np.array([0.0, 0.1, 0.1, 0.9])
    axes = plot_histogram(values, "brightness", build_axes(4, 2)[1])
    bars = [(round(bar.get_x(), 3), bar.get_height()) for bar in axes.patches if bar.get_height()]
    assert [height for _, height in bars] == [1, 2, 1]
    assert bars[0][0] == 0.0
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("brightness", "images")


def test_the_report_links_to_the_page_of_the_audit_if_there_is_one():
    linked = Page(render_report(build_report(audit_page="audit.html")))
    assert "audit.html" in attributes(linked, "a", "href")
    alone = Page(render_report(build_report()))
    assert not [link for link in attributes(alone, "a", "href") if not link.startswith("#")]
