# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import base64
import dataclasses
import hashlib
import html
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cvpipe.errors import InputError
from cvpipe.frames import make_predictions
from cvpipe.report.content import (
    COMPARISON_COLUMNS,
    METRIC_COLUMNS,
    SEVERITIES,
    ContenderSummary,
    DataSummary,
    Mistake,
    ParityResult,
    ReportContent,
    check_content,
)
from cvpipe.report.page import (
    contender_order,
    count_confusions,
    count_findings,
    image_data_uri,
    metric_table,
    render_report,
)

NASTY_CLASS = "<script>alert(1)</script>"
NASTY_ID = """a "quoted" 'name' & <b>.jpg"""
HEADINGS = [
    "Answer",
    "What these figures say and do not say",
    "Contenders compared",
    "Data",
    "Mistakes",
    "Model file",
    "Time taken",
    "Repeat it",
]
VOID = {"meta", "img", "br", "link", "input", "hr"}
FINDING_COLUMNS = ["image_id", "finding", "severity", "reason"]
VERDICT_SAME = "cannot be told apart"
nan = float("nan")


def picture(value, height=20, width=30):
    return np.full((height, width, 3), value, dtype=np.uint8)


def metric_rows(contender, accuracy, split="test", protocol="holdout", view="single"):
    low, high = (accuracy - 0.05, accuracy + 0.01) if split == "test" else (nan, nan)
    start = (protocol, 0, contender, split, view)
    return [
        (*start, "accuracy", "", accuracy, low, high, 600),
        (*start, "log_loss", "", 1 - accuracy, nan, nan, 600),
        (*start, "precision", "dog", accuracy - 0.3, low - 0.3, high - 0.3, 310),
        (*start, "recall", "dog", accuracy - 0.2, low - 0.2, high - 0.2, 300),
    ]


def build_content(class_names=("cat", "dog"), **changes):
    """A small but complete content; `changes` replace whole fields."""
    names = list(class_names)
    rows = [
        *metric_rows("probe", 0.983),
        *metric_rows("probe", 0.991, split="val"),
        *metric_rows("probe", 0.999, protocol="careless"),
        *metric_rows("probe", 0.977, view="flip"),
        *metric_rows("hog", 0.918),
        *metric_rows("tuned", 0.985),
    ]
    comparison = [
        ("hog", "probe", "accuracy", -0.065, -0.089, -0.041, 1e-5, 2e-5, "worse", 2, 41, 600),
        ("tuned", "probe", "accuracy", 0.002, -0.011, 0.015, 0.4, 0.8, VERDICT_SAME, 5, 4, 600),
    ]
    images = ["a.jpg", "b.jpg", "c.jpg", NASTY_ID]
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    predictions = make_predictions(
        images, [names[0], names[0], names[1], names[1]], probabilities, names
    )
    counts = pd.DataFrame({"train": [5, 6], "val": [1, 2], "test": [2, 2]}, index=names)
    findings = [(NASTY_ID, "unreadable", "error", "the file ends early")]
    content = ReportContent(
        run_name="pets-3f9a1c",
        created="2026-11-22T14:28:24+00:00",
        chosen="probe",
        chosen_because="it has the lowest log loss on 100 validation images",
        class_names=names,
        data=DataSummary(
            title="Pets",
            root_name="pets",
            licence="CC BY 4.0",
            citation="Doe, Pets, 2020",
            num_images=18,
            counts=counts,
            findings=pd.DataFrame(findings, columns=FINDING_COLUMNS),
            samples={names[0]: [picture(10), picture(90)], names[1]: [picture(200)]},
        ),
        contenders=[
            ContenderSummary("hog", "HOG and SVM.", "single", {"C": "0.3, by CV"}, 95.0, 210.0),
            ContenderSummary("tuned", "A tuned network.", "single", {}, 7322.0, nan),
            ContenderSummary("probe", "A linear probe.", "single", {}, 2.34, 38.0),
        ],
        metrics=pd.DataFrame(rows, columns=METRIC_COLUMNS),
        comparison=pd.DataFrame(comparison, columns=COMPARISON_COLUMNS),
        predictions={"probe": predictions, "hog": predictions},
        mistakes=[Mistake(NASTY_ID, names[0], names[1], 0.8, picture(50))],
        timings=[("audit", 4.0), ("fit", 57.0)],
        test_openings=1,
        warnings=["Two images were left out."],
        repeat_commands=["cvpipe run pipelines/pets.toml"],
        versions={"cvpipe": "0.1.0"},
        parity=[ParityResult("litert", "val", 123, 3.1e-7, 1e-5, True)],
        exported="probe",
    )
    return dataclasses.replace(content, **changes)


def with_data(content, **changes):
    return dataclasses.replace(content, data=dataclasses.replace(content.data, **changes))


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.headings, self.tags = [], [], [], set()
        self.words, self.tables = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.tables.append([])
        if tag in ("td", "th"):
            self.tables[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open[-1:] == ["h2"]:
            self.headings[-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1] += data + "|"

    @property
    def text(self):
        return " ".join("".join(self.words).replace("\u00a0", " ").split())

    def row(self, name, nth=0):
        """The cells of the nth table row that starts with this name, parts joined by |."""
        rows = [row for row in self.tables if row and row[0].strip("|\n") == name]
        return [cell.replace("\u00a0", " ").strip("|\n") for cell in rows[nth]]


@pytest.fixture(scope="module")
def page():
    return Page(render_report(build_content()))


def test_equal_content_gives_equal_bytes():
    assert render_report(build_content()) == render_report(build_content())


def test_page_is_balanced_and_has_its_sections(page):
    assert page.headings == HEADINGS
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href":
            assert value.removeprefix("#") in ids


def test_nothing_is_loaded_from_elsewhere():
    text = render_report(build_content())
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "form", "base"}
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:image/")), (tag, name, value[:80])
        assert not name.startswith("on")
        assert name != "style", tag  # the policy below would block it
    for address in re.findall(r"url\(([^)]*)\)", text):
        assert address.startswith("#")
    assert "@import" not in text


def test_policy_allows_this_style_and_nothing_else():
    text = render_report(build_content())
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert dict(part.strip().split(" ", 1) for part in policy.split(";")) == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.count("<style") == 1


def test_names_from_data_are_escaped_everywhere():
    nasty = build_content(class_names=("cat", NASTY_CLASS))
    nasty = dataclasses.replace(
        nasty,
        run_name=NASTY_CLASS,
        chosen_because=NASTY_CLASS,
        warnings=[NASTY_CLASS],
        repeat_commands=[NASTY_CLASS],
        versions={NASTY_CLASS: NASTY_CLASS},
        timings=[(NASTY_CLASS, 1.0)],
    )
    nasty = with_data(
        nasty, title=NASTY_CLASS, root_name=NASTY_CLASS, licence=NASTY_CLASS, citation=NASTY_CLASS
    )
    text = render_report(nasty)
    page = Page(text)
    assert "<script" not in text
    assert "<b>.jpg" not in text
    assert NASTY_CLASS in page.text  # and still readable
    assert NASTY_ID in page.text
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert f"cat taken for {NASTY_CLASS}" in alternatives


def test_answer_in_words(page):
    assert (
        "probe was chosen on the validation images. On 600 test images it names 98.3 % correctly "
        "(95 % interval 93.3 to 99.3)." in page.text
    )
    assert "hog is worse by 6.5 points (4.1 to 8.9, p < 0.001)." in page.text
    assert (
        "tuned cannot be told apart from it: difference 0.2 points (−1.1 to 1.5, p = 0.80)."
        in page.text
    )
    assert "The choice stands" not in page.text
    assert page.text.index("probe was chosen") < page.text.index("What these figures say")


def compare(*row):
    return pd.DataFrame([row], columns=COMPARISON_COLUMNS)


def test_better_on_test_is_said_and_not_called_the_choice():
    row = ("tuned", "probe", "accuracy", 0.02, 0.01, 0.03, 0.01, 0.02, "better", 9, 1, 600)
    page = Page(render_report(build_content(comparison=compare(*row))))
    assert "tuned is better by 2.0 points (1.0 to 3.0, p = 0.020)." in page.text
    assert "The choice stands although another contender did better on test" in page.text
    assert page.text.count("probe was chosen") == 1


def test_a_larger_loss_is_worse():
    row = ("hog", "probe", "log_loss", 0.12, 0.05, 0.19, 0.01, 0.012, "worse", 0, 0, 600)
    page = Page(render_report(build_content(comparison=compare(*row))))
    assert "hog is worse by 0.120 in log loss (0.050 to 0.190, p = 0.012)." in page.text


def test_a_negative_difference_that_settles_nothing_keeps_its_sign():
    row = ("hog", "probe", "accuracy", -0.01, -0.03, 0.01, 0.3, 0.3, VERDICT_SAME, 1, 7, 600)
    page = Page(render_report(build_content(comparison=compare(*row))))
    assert "apart from it: difference −1.0 points (−3.0 to 1.0, p = 0.30)." in page.text


def test_images_are_counted_for_accuracy_alone():
    start = ("hog", "probe", "macro_f1", -0.02, -0.03, -0.01, 0.01, 0.02, "worse")
    page = Page(render_report(build_content(comparison=compare(*start, pd.NA, pd.NA, 600))))
    assert page.row("hog", 1)[5:] == ["–", "–", "600"]


def test_rows_of_the_chosen_contender_are_marked():
    text = render_report(build_content())
    marked = re.findall(r'<tr class="chosen">\s*<th scope="row">([^<]*)<', text)
    assert marked
    assert set(marked) == {"probe"}
    assert '<tr>\n<th scope="row">hog<' in text


def test_tables_show_the_numbers(page):
    assert page.row("probe") == ["probe", "98.3 %|93.3 to 99.3", "0.017", "600"]
    assert page.row("hog") == ["hog", "91.8 %|86.8 to 92.8", "0.082", "600"]
    paired = ["hog", "worse", "accuracy", "−6.5 points|−8.9 to −4.1", "< 0.001", "2", "41", "600"]
    assert page.row("hog", 1) == paired
    assert page.row("tuned", 1)[4] == "0.80"
    assert page.row("hog", 2) == ["hog", "HOG and SVM.|C| 0.3, by CV", "1 min 35 s", "210"]
    assert page.row("tuned", 2) == ["tuned", "A tuned network.", "2 h 2 min", "–"]
    # val: marked, without an interval
    assert page.row("probe", 2) == ["probe", "99.1 %", "0.009", "600"]
    assert "Validation figures (used for choosing)" in page.text
    further = ["probe", "holdout", "0", "test", "flip", "97.7 %|92.7 to 98.7", "0.023", "600"]
    assert further in [page.row("probe", n) for n in (3, 4)]
    of_dog = ["dog", "68.3 %|63.3 to 69.3", "78.3 %|73.3 to 79.3", "300"]  # 310 were called dog
    assert page.row("dog", 1) == of_dog
    assert page.row("cat")[:4] == ["cat", "5", "1", "2"]
    assert page.row("litert") == ["litert", "passed", "val", "123", "3.1e-07", "1.0e-05"]
    assert page.row("fit") == ["fit", "57.0 s"]
    assert page.row("together") == ["together", "1 min 1 s"]


def test_cautions_stand_on_the_page(page):
    for words in (
        "does not cover another hospital, site, camera or year",
        "used for choosing",
        "Nothing here is clinical evidence",
        "not that the two are equal",
        "it has the lowest log loss on 100 validation images",
        "A careless random split, one that lets related images stand on both sides, would have "
        "claimed 99.9 %",
        "This test split has been opened once",
        "Two images were left out.",
        "CC BY 4.0",
        "Doe, Pets, 2020",
        "cvpipe run pipelines/pets.toml",
        "2026-11-22 14:28 UTC",
    ):
        assert words in page.text, words


def test_every_figure_is_described(page):
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    labels = [label.replace("\u00a0", " ") for label in labels]
    assert labels[0] == (
        "Test accuracy with 95 % interval: probe 98.3 % (93.3 to 99.3); "
        "tuned 98.5 % (93.5 to 99.5); hog 91.8 % (86.8 to 92.8)"
    )
    assert "Images per class: cat 8; dog 10" in labels
    assert (
        "Confusion matrix of probe: 3 of 4 test images on the diagonal of right answers." in labels
    )
    assert len(labels) == len([name for _, name, value in page.attributes if value == "img"])
    assert "" not in [
        value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")
    ]


def test_further_looks_at_the_test_split_are_a_caution():
    page = Page(render_report(build_content(test_openings=3)))
    assert "This test split has been scored by 3 configs." in page.text
    assert "Test split opened3×figures a little too good" in page.text


def test_optional_parts_may_be_missing():
    content = build_content()
    lone = dataclasses.replace(
        with_data(
            content,
            findings=content.data.findings.iloc[:0],
            samples={},
            licence="",
            citation="",
        ),
        contenders=content.contenders[2:],
        comparison=content.comparison.iloc[:0],
        metrics=content.metrics[
            (content.metrics["split"] == "test")
            & (content.metrics["contender"] == "probe")
            & (content.metrics["metric"] == "accuracy")
            & (content.metrics["protocol"] == "holdout")
            & (content.metrics["view"] == "single")
        ],
        mistakes=[],
        warnings=[],
        parity=[],
        exported="",
    )
    page = Page(render_report(lone))
    assert page.headings == HEADINGS
    for words in (
        "It was the only contender",
        "None. Every image could be read",
        "probe named every test image as it is labelled",
        "No model file was exported",
        "not known; find out before you share",
        "not given",
        "none" + "not exported",
    ):
        assert words in page.text, words
    for words in ("Read this first", "careless", "Validation figures (", "Further figures"):
        assert words not in page.text, words


@pytest.mark.parametrize(
    ("parity", "words"),
    [
        ([], "It has not been compared with the trained model."),
        ([("onnx", False), ("litert", True)], "In the format onnx it does not answer as the model"),
        ([("onnx", True)], "On real images it answers as the model that was measured."),
    ],
)
def test_model_file_says_how_far_it_can_be_trusted(parity, words):
    results = [ParityResult(name, "test", 9, 0.1, 1e-5, passed) for name, passed in parity]
    assert words in Page(render_report(build_content(parity=results))).text


def test_an_exported_file_that_is_not_the_chosen_contender_says_so(page):
    words = "because the chosen probe is not a network"
    assert words in Page(render_report(build_content(exported="tuned"))).text
    assert words not in page.text


@pytest.mark.parametrize(("number", "shown"), [(20, 20), (27, 20)])
def test_long_findings_are_cut_and_counted(number, shown):
    rows = [(f"i{n:02d}.jpg", "odd", "note", "r") for n in range(number - 2)]
    rows.append(("twin.jpg", "near_duplicate", "warning", "r"))
    rows.append(("last.jpg", "unreadable", "error", "r"))
    content = with_data(build_content(), findings=pd.DataFrame(rows, columns=FINDING_COLUMNS))
    page = Page(render_report(content))
    listed = [row[2].strip("|") for row in page.tables if row[0].strip("|") in SEVERITIES]
    assert listed[:2] == ["last.jpg", "twin.jpg"]  # the gravest first
    assert listed[2:] == [f"i{n:02d}.jpg" for n in range(shown - 2)]
    assert f"{number - 2} × odd" in page.text
    if number > shown:
        assert "The first 20 of 27 findings" in page.text
        assert "all in audit.csv" in page.text


def test_findings_are_counted_by_kind():
    rows = [("n", "b", "note"), ("n", "a", "error"), ("n", "c", "error"), ("n", "c", "error")]
    table = pd.DataFrame(rows, columns=["image_id", "finding", "severity"])
    assert count_findings(table) == [("error", "c", 2), ("error", "a", 1), ("note", "b", 1)]


def test_the_date_is_shown_in_utc():
    page = Page(render_report(build_content(created="2026-01-01T01:30:00+02:00")))
    assert "2025-12-31 23:30 UTC" in page.text


def test_the_chosen_contender_leads_then_test_accuracy():
    assert contender_order(build_content()) == ["probe", "tuned", "hog"]


def test_confusions_are_counted_by_true_and_predicted_class():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0, 1, 0], [0, 0.4, 0.6]])
    table = make_predictions(list("abcd"), ["x", "x", "y", "y"], probabilities, ["x", "y", "z"])
    assert count_confusions(table, ["x", "y", "z"]).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_metrics_missing_for_one_contender_are_dashes():
    rows = pd.DataFrame(
        [("a", "accuracy", 0.5, 0.4, 0.6, 10), ("b", "log_loss", 0.5, nan, nan, 10)],
        columns=["contender", "metric", "value", "low", "high", "n"],
    )
    table = metric_table(rows, ["contender"], ["log_loss", "accuracy", "ece"])
    assert table.metrics == ["log loss", "accuracy"]
    assert table.rows[0] == (
        ["a"],
        "10",
        [("–", ""), ("50.0\u00a0%", "40.0\u00a0to\u00a060.0")],
    )
    assert table.rows[1][2] == [("0.500", ""), ("–", "")]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 30), (30, 40)), ((1600, 800), (80, 160)), ((500, 2000), (320, 80))],
)
def test_pictures_become_small_jpegs(shape, expected):
    image = picture(0, *shape)
    image[..., 0] = 200
    head, body = image_data_uri(image).split(",")
    assert head == "data:image/jpeg;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(body)))
    assert decoded.size == expected  # (width, height)
    np.testing.assert_allclose(np.asarray(decoded)[5, 5], [200, 0, 0], atol=4)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_pictures_must_be_rgb_bytes(image):
    with pytest.raises(InputError, match=r"must be uint8 of shape \(height, width, 3\), not"):
        image_data_uri(image)


CONTENT = build_content()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (build_content(chosen="x"), "'x' is not among the contenders"),
        (build_content(predictions={}), "'probe' is not among the predictions"),
        (build_content(test_openings=0), "test_openings is 0"),
        (
            build_content(metrics=CONTENT.metrics.drop(columns="low")),
            r"metrics table of a report lacks the columns \['low'\]",
        ),
        (
            build_content(comparison=CONTENT.comparison.drop(columns="verdict")),
            r"comparison table of a report lacks the columns \['verdict'\]",
        ),
        (
            with_data(CONTENT, findings=CONTENT.data.findings.drop(columns="reason")),
            r"findings table of a report lacks the columns \['reason'\]",
        ),
        (
            build_content(comparison=CONTENT.comparison.assign(verdict="equal")),
            "unknown verdict 'equal'",
        ),
        (
            with_data(CONTENT, findings=CONTENT.data.findings.assign(severity="bad")),
            "unknown severity 'bad'",
        ),
        (
            build_content(metrics=CONTENT.metrics[CONTENT.metrics["contender"] != "hog"]),
            "contender 'hog' has 0 test accuracies",
        ),
        (
            build_content(metrics=pd.concat([CONTENT.metrics] * 2, ignore_index=True)),
            "contender 'hog' has 2 test accuracies",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(content, message):
    with pytest.raises(InputError, match=message):
        check_content(content)


def test_row_numbers_of_the_metrics_do_not_matter():
    metrics = CONTENT.metrics.set_axis([0] * len(CONTENT.metrics))
    assert render_report(build_content(metrics=metrics)) == render_report(CONTENT)


def test_a_good_content_passes_unchanged():
    assert check_content(CONTENT) is CONTENT
