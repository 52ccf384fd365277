import re
from dataclasses import replace

import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.report.content import CURVE_COLUMNS, FORECAST_COLUMNS
from cvpipe.report.learning_curve import curve_sections, forecast_sentence, further_sentence
from cvpipe.report.page import render_report
from tests.report.test_report import build_content

CURVE = pd.DataFrame(
    [
        ("probe", 0.25, 100, "0", 0.80, 0.76, 0.84, 400),
        ("probe", 0.25, 102, "1", 0.82, 0.78, 0.86, 400),
        ("probe", 0.25, 101, "mean", 0.81, 0.77, 0.85, 400),
        ("probe", 0.5, 200, "mean", 0.88, 0.85, 0.91, 400),
        ("probe", 1.0, 1400, "mean", 0.929, 0.90, 0.95, 400),
    ],
    columns=CURVE_COLUMNS,
)


def forecast(gain=0.012, low=-0.001, high=0.027, name="probe"):
    rows = [
        (name, 0.5, 700, 0.91, 0.88, 0.94, -0.019, -0.03, 0.0, "fitted"),
        (name, 1.0, 1400, 0.93, 0.9, 0.95, 0.001, -0.01, 0.01, "fitted"),
        (name, 2.0, 2800, 0.941, 0.928, 0.956, gain, low, high, "forecast"),
        (name, 4.0, 5600, 0.95, 0.93, 0.97, 0.021, 0.001, 0.04, "extrapolated"),
    ]
    return pd.DataFrame(rows, columns=FORECAST_COLUMNS)


def plain(text):
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("gain", "low", "high", "verdict"),
    [
        (0.012, -0.001, 0.027, "whether more images would help is not settled"),
        (0.012, 0.0, 0.027, "whether more images would help is not settled"),
        (0.012, 0.001, 0.027, "more images would probably help"),
        (0.008, 0.001, 0.027, "more images would probably help, but little"),
        (0.005, 0.001, 0.009, "more images of the same kind would hardly change it"),
        (-0.002, -0.01, 0.009, "more images of the same kind would hardly change it"),
    ],
)
def test_the_sentence_weighs_the_interval_of_the_gain_and_its_size(gain, low, high, verdict):
    text = plain(forecast_sentence("probe", 0.929, forecast(gain, low, high)))
    assert text.endswith(f"): {verdict}.")


def test_the_sentences_in_full():
    assert plain(forecast_sentence("probe", 0.929, forecast())) == (
        "With twice the training images the accuracy of probe, 92.9 % now, is expected at 94.1 % "
        "(95 % interval 92.8 to 95.6): whether more images would help is not settled."
    )
    assert plain(further_sentence(forecast())) == (
        "That is 1.2 points (\u22120.1 to 2.7) above what was measured; in trials this interval "
        "held in five of six cases only, and where the measured accuracy lies off the curve, part "
        "of the difference is chance. With four times as many images it would be 95.0 % (93.0 to "
        "97.0), but nothing that was measured supports a figure so far ahead."
    )


def test_a_section_has_the_means_and_what_lies_ahead():
    (section,) = curve_sections(CURVE, forecast())
    rows = [tuple(map(plain, row)) for row in section.rows]
    assert rows == [
        ("measured", "101", "81.0 %", "77.0 to 85.0"),
        ("measured", "200", "88.0 %", "85.0 to 91.0"),
        ("measured", "1,400", "92.9 %", "90.0 to 95.0"),
        ("forecast for twice the images", "2,800", "94.1 %", "92.8 to 95.6"),
        ("extrapolated to four times", "5,600", "95.0 %", "93.0 to 97.0"),
    ]
    assert section.figure.startswith("<svg ")
    assert "forecast for twice the images with 2,800 94.1" in plain(section.figure)


def test_sections_stand_in_the_order_of_the_table():
    other = CURVE.assign(contender="hog")
    sections = curve_sections(pd.concat([CURVE, other]), forecast(name="hog"))
    assert [section.contender for section in sections] == ["probe", "hog"]
    assert sections[0].text == (
        "There is no forecast for probe: train is so small that only 3 numbers of training images "
        "could be measured, and a curve needs three."
    )
    assert sections[1].text.startswith("With twice")
    (alone,) = curve_sections(CURVE[CURVE["share"] == 1], forecast()[:0])
    assert "only 1 number of training images could be measured" in alone.text


def test_the_page_has_the_section_and_does_without():
    content = build_content()
    page = render_report(replace(content, learning_curve=CURVE, forecast=forecast()))
    assert '<a href="#more">' in page
    section = plain(re.search(r'<section id="more">.*?</section>', page, re.DOTALL).group())
    assert "With twice the training images" in section
    assert section.count("<svg ") == 1
    assert "&lt;svg" not in section
    assert 'id="more"' not in render_report(content)


def test_names_are_escaped():
    name = "<b>"
    content = replace(
        build_content(),
        learning_curve=CURVE.assign(contender=name),
        forecast=forecast(name=name),
    )
    page = render_report(content)
    section = re.search(r'<section id="more">.*?</section>', page, re.DOTALL).group()
    assert name not in section


@pytest.mark.parametrize("name", ["learning_curve", "forecast"])
def test_a_table_without_its_columns_is_refused(name):
    with pytest.raises(InputError, match=rf"the {name.replace('_', ' ')} table of a report lacks"):
        render_report(replace(build_content(), **{name: pd.DataFrame({"contender": []})}))
