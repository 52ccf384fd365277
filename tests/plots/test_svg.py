import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from cvpipe.plots.charts import plot_confusion_matrix
from cvpipe.plots.svg import build_axes, build_panels, figure_to_svg

NASTY = ["<b>&\"'", "$\\frac$", ' style="x" id="y"', "日本", "NA"]


def draw(names=("a", "b"), description="what it shows"):
    figure, ax = build_axes(4, 4)
    plot_confusion_matrix(np.eye(len(names), dtype=int), names, ax)
    return figure_to_svg(figure, description)


def test_equal_input_gives_equal_bytes():
    assert draw() == draw()


def test_svg_is_well_formed_and_described():
    root = ET.fromstring(draw(description='5 < 6 & "so"'))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == '5 < 6 & "so"'


def test_names_are_drawn_as_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = ET.fromstring(draw(NASTY))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in NASTY:
        assert texts.count(name) == 2, name


def test_no_date_metadata_style_or_foreign_font():
    text = draw()
    for word in ("<metadata", "<?xml", "<!DOCTYPE", "<style", "style=", "DejaVu", "<image"):
        assert word not in text
    assert set(re.findall(r'font-family="([^"]*)"', text)) == {"sans-serif"}


def test_two_figures_share_no_identifier():
    ids = [set(re.findall(r' id="([^"]*)"', draw(description=d))) for d in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r"#([\w.-]+)\)", draw(description="one")))
    assert used == ids[0]


def test_the_font_shorthand_of_older_matplotlib_is_understood():
    from cvpipe.plots.svg import _tidy

    old = (
        "<svg viewBox='0'><text style=\"font: 700 9px 'DejaVu Sans', sans-serif; "
        'fill: #fff">a</text>'
        "<text style=\"font: 9px 'DejaVu Sans', sans-serif\">b</text></svg>"
    )
    bold, normal = ET.fromstring(_tidy(old, "d"))
    font = {"font-size": "9px", "font-family": "sans-serif"}
    assert bold.attrib == {"fill": "#fff", "font-weight": "700", **font}
    assert normal.attrib == font


def test_global_settings_are_left_alone():
    before = dict(mpl.rcParams)
    draw()
    assert dict(mpl.rcParams) == before


def test_panels_stand_side_by_side():
    figure, panels = build_panels(6.0, 2.0, 3)
    assert panels == figure.axes
    assert len(panels) == 3
    boxes = [ax.get_position() for ax in panels]
    assert boxes[0].x1 < boxes[1].x0 < boxes[1].x1 < boxes[2].x0
    assert len({box.y0 for box in boxes}) == 1
    assert tuple(figure.get_size_inches()) == (6.0, 2.0)


@pytest.mark.parametrize("size", [(5.0, 1.5), (2.0, 3.0)])
def test_axes_belong_to_a_figure_of_the_given_size(size):
    figure, ax = build_axes(*size)
    assert ax.figure is figure
    assert tuple(figure.get_size_inches()) == size
