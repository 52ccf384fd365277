"""The page of a preview, and the section of a report: what they show, and that all is escaped."""

import base64
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from cvpipe.report.contact_sheet import Cell, ContactSheet, SheetRow
from cvpipe.report.page import image_data_uri, render_report
from cvpipe.report.preview_page import render_preview_page
from tests.report.test_report import NASTY_CLASS, NASTY_ID, Page, build_content

PICTURE = image_data_uri(np.zeros((8, 8, 3), dtype=np.uint8))
NASTY_NOTE = "<i>note</i> & more"


def build_sheet(**changes):
    rows = [
        SheetRow(NASTY_ID, NASTY_CLASS, [Cell(PICTURE, "in evaluation"), Cell(PICTURE, '"<b>')]),
        SheetRow("b.jpg", "", [Cell(PICTURE, "in evaluation"), Cell(PICTURE, "mirrored")]),
    ]
    values = {
        "settings": [("hue", "0.1"), ("<u>", "<s>")],
        "preset": "natural",
        "reason": "photos <of> things",
        "usage": "No contender <b>uses</b> them.",
        "notes": [NASTY_NOTE],
        "rows": rows,
        "mixed": [Cell(PICTURE, f"62 % {NASTY_CLASS}")],
    }
    return ContactSheet(**(values | changes))


@pytest.fixture(params=["preview", "report"])
def render(request):
    if request.param == "preview":
        return lambda sheet: render_preview_page("<b>&pets", sheet)
    return lambda sheet: render_report(build_content(augmentation=sheet))


def test_everything_is_shown_and_escaped(render):
    text = render(build_sheet())
    page = Page(text)
    assert not {"script", "i", "u", "s"} & page.tags
    for shown in (
        f"{NASTY_CLASS} {NASTY_ID}",
        "no label b.jpg",
        "No contender <b>uses</b> them. Evaluation always shows an image as it is.",
        "The settings are those of the preset natural (photos <of> things).",
        NASTY_NOTE,
        "A batch of the first views, mixed",
        f"62 % {NASTY_CLASS}",
        '"<b>',
    ):
        assert shown in page.text
    assert page.row("hue")[1].strip("|") == "0.1"
    assert page.row("<u>")[1].strip("|") == "<s>"
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert {"in evaluation", '"<b>', "mirrored", f"62 % {NASTY_CLASS}"} <= set(alts)
    assert text.count(PICTURE) == 5


def test_what_is_not_there_leaves_no_trace(render):
    page = Page(render(build_sheet(preset="", reason="", settings=[], notes=[], mixed=[])))
    assert "preset" not in page.text
    assert "What is changed" not in page.text
    assert "mixed" not in page.text


def test_the_preview_loads_and_runs_nothing():
    text = render_preview_page("<b>&pets", build_sheet())
    page = Page(text)
    assert "<b>&pets" in page.text
    assert page.headings == ["What training changes", "Views"]
    addresses = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [v for tag, name, v in page.attributes if tag == "meta" and "default-src" in v]
    assert policy.startswith("default-src 'none'")
    assert digest in policy
    assert text == render_preview_page("<b>&pets", build_sheet())


def test_a_report_without_augmentation_says_nothing_of_it():
    page = Page(render_report(build_content()))
    assert "Augmented views" not in page.headings
    assert not [value for _, name, value in page.attributes if value in ("#views", "views")]
    page = Page(render_report(build_content(augmentation=build_sheet())))
    assert page.headings.index("Augmented views") == page.headings.index("Data") + 1
    assert ("a", "href", "#views") in page.attributes
    assert ("section", "id", "views") in page.attributes


def test_pictures_are_shrunk_to_what_is_asked_for():
    def size(*arguments):
        data = base64.b64decode(image_data_uri(*arguments).split(",")[1])
        return Image.open(io.BytesIO(data)).size

    image = np.zeros((224, 224, 3), dtype=np.uint8)
    assert size(image) == (160, 160)
    assert size(image, (224, 224)) == (224, 224)
    assert size(image, (112, 112)) == (112, 112)
