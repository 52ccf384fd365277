# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import base64
import dataclasses
import functools
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
    CARELESS_COLUMNS,
    COMPARISON_COLUMNS,
    DUPLICATE_COLUMNS,
    FOLD_COLUMNS,
    METRIC_COLUMNS,
    SEVERITIES,
    SUBGROUP_COLUMNS,
    UNLIKE_COLUMNS,
    ContenderSummary,
    DataSummary,
    Mistake,
    ParityResult,
    ReportContent,
    Risk,
    check_content,
    headline_metrics,
)
from cvpipe.report.page import (
    confusion_size,
    contender_order,
    count_confusions,
    count_findings,
    image_data_uri,
    metric_table,
    render_report,
    subgroup_tables,
)
from cvpipe.report.wording import careless_sentence, costs_sentence, unlike_sentence

SITES = [
    *(("holdout", "north", 0.9, 50), ("holdout", "east", 0.7, 30), ("holdout", "", 0.8, 20)),
    *(("kfold", "north", 0.95, 200), ("kfold", "east", 0.6, 120)),
]
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


def compare_row(
    contender,
    difference,
    low,
    high,
    p_value,
    verdict,
    only_contender=0,
    only_reference=0,
    metric="accuracy",
    protocol="holdout",
    reference="probe",
    n=600,
    detectable=nan,
    no_worse=None,
):
    start = (protocol, contender, reference, metric, difference, low, high, p_value / 2, p_value)
    shown = "shown" if low >= -0.02 else "not shown"
    no_worse = no_worse or (shown if metric == "accuracy" else "")
    return (*start, verdict, only_contender, only_reference, n, detectable, no_worse)


def build_content(class_names=("cat", "dog"), **changes):
    """A small but complete content; `changes` replace whole fields."""
    names = list(class_names)
    rows = [
        *metric_rows("probe", 0.983),
        *metric_rows("probe", 0.991, split="val"),
        *metric_rows("probe", 0.977, view="flip"),
        *metric_rows("hog", 0.918),
        *metric_rows("tuned", 0.985),
    ]
    comparison = [
        compare_row("hog", -0.065, -0.089, -0.041, 2e-5, "worse", 2, 41),
        compare_row("tuned", 0.002, -0.011, 0.015, 0.8, VERDICT_SAME, 5, 4),
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
            ContenderSummary(
                "hog", "HOG and SVM.", "single", {"C": "0.3, by CV"}, 95.0, 210.0, False, 121_132
            ),
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


def build_full(**changes):
    """A content with every optional part: k-fold, careless split, duplicates, subgroups."""
    content = build_content()
    accuracies = {"hog": 0.918, "tuned": 0.985, "probe": 0.983}
    careless = {"hog": 0.973, "tuned": 0.985, "probe": 0.993}
    kfold = {"hog": 0.905, "tuned": 0.955, "probe": 0.965}
    rows = []
    for name in accuracies:
        rows += metric_rows(name, careless[name], protocol="careless")
        rows += [(*row[:-1], 2624) for row in metric_rows(name, kfold[name], protocol="kfold")]
    gaps = [
        ("hog", 0.918, 0.973, 0.055, 0.041, 0.069),
        ("tuned", 0.985, 0.985, 0.0, -0.01, 0.01),
        ("probe", 0.983, 0.993, 0.01, 0.001, 0.019),
    ]
    comparison = [
        compare_row("hog", -0.06, -0.07, -0.05, 1e-9, "worse", 7, 77, protocol="kfold", n=2624),
        compare_row("hog", 0.4, 0.3, 0.5, 1e-9, "better", 88, 8, reference="tuned"),
    ]
    subgroups = [
        *((p, "probe", "site", s, "accuracy", v, v - 0.1, v + 0.05, n) for p, s, v, n in SITES),
        ("holdout", "hog", "site", "east", "accuracy", 0.1, 0.0, 0.2, 30),
        ("holdout", "probe", "site", "east", "log_loss", 0.2, 0.0, 0.2, 30),
        ("careless", "probe", "site", "east", "accuracy", 0.3, 0.0, 0.2, 30),
        ("holdout", "probe", NASTY_CLASS, NASTY_CLASS, "accuracy", 0.5, 0.4, 0.6, 40),
    ]
    full = dataclasses.replace(
        content,
        metrics=pd.concat([content.metrics, pd.DataFrame(rows, columns=METRIC_COLUMNS)]),
        comparison=pd.concat(
            [content.comparison, pd.DataFrame(comparison, columns=COMPARISON_COLUMNS)]
        ),
        contenders=[
            dataclasses.replace(contender, is_baseline=contender.name == "hog")
            for contender in content.contenders
        ],
        risks=[
            Risk("The file gives it away.", "File size alone names 62 %."),
            Risk("A split flatters.", "By 10 points."),
        ],
        folds=5,
        careless=pd.DataFrame(gaps, columns=CARELESS_COLUMNS),
        duplicates=pd.DataFrame(
            [(0, 2, 2, 0), (24, 5, 4, 1), (48, 3, 900, 2)], columns=DUPLICATE_COLUMNS
        ),
        duplicate_threshold=24.0,
        subgroups=pd.DataFrame(subgroups, columns=SUBGROUP_COLUMNS),
    )
    return dataclasses.replace(full, **changes)


@functools.cache
def full_text():
    return render_report(build_full())


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


@pytest.fixture(scope="module")
def full():
    return Page(full_text())


def test_equal_content_gives_equal_bytes():
    assert render_report(build_full()) == full_text()


@pytest.mark.parametrize("name", ["page", "full"])
def test_page_is_balanced_and_has_its_sections(name, request):
    page = request.getfixturevalue(name)
    with_split = [*HEADINGS[:3], "What the split does", *HEADINGS[3:]]
    assert page.headings == (HEADINGS if name == "page" else with_split)
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    sections = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert links == [f"#{section}" for section in sections]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in page.attributes:
        if name == "href":
            assert value.removeprefix("#") in ids


def test_nothing_is_loaded_from_elsewhere():
    text = full_text()
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
        risks=[Risk(NASTY_CLASS, NASTY_CLASS)] * 2,
        subgroups=build_full().subgroups,
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


def compare(*row, **more):
    return pd.DataFrame([compare_row(*row, **more)], columns=COMPARISON_COLUMNS)


def test_better_on_test_is_said_and_not_called_the_choice():
    row = ("tuned", 0.02, 0.01, 0.03, 0.02, "better", 9, 1)
    page = Page(render_report(build_content(comparison=compare(*row))))
    assert "tuned is better by 2.0 points (1.0 to 3.0, p = 0.020)." in page.text
    assert "The choice stands although another contender did better:" in page.text
    assert page.text.count("probe was chosen") == 1


def test_a_larger_loss_is_worse():
    rows = compare("hog", 0.12, 0.05, 0.19, 0.012, "worse", metric="log_loss")
    page = Page(render_report(build_content(comparison=rows)))
    assert "hog is worse by 0.120 in log loss (0.050 to 0.190, p = 0.012)." in page.text


def test_a_negative_difference_that_settles_nothing_keeps_its_sign():
    row = ("hog", -0.01, -0.03, 0.01, 0.3, VERDICT_SAME, 1, 7)
    page = Page(render_report(build_content(comparison=compare(*row))))
    assert "apart from it: difference −1.0 points (−3.0 to 1.0, p = 0.30)." in page.text


def test_images_are_counted_for_accuracy_alone():
    row = ("hog", -0.02, -0.03, -0.01, 0.02, "worse", pd.NA, pd.NA)
    page = Page(render_report(build_content(comparison=compare(*row, metric="macro_f1"))))
    assert page.row("hog", 1)[4:] == ["–", "–", "–", "600"]


def test_what_could_have_been_shown_is_said_where_nothing_was():
    same = ("tuned", 0.002, -0.011, 0.015, 0.8, VERDICT_SAME, 5, 4)
    page = Page(render_report(build_content(comparison=compare(*same, detectable=0.0312))))
    sentence = (
        "cannot be told apart from it: difference 0.2 points (−1.1 to 1.5, p = 0.80); a "
        "difference of at least 3.1 points could have been shown."
    )
    assert sentence in page.text
    assert page.row("tuned", 1)[4:] == ["3.1 points", "shown", "5", "4", "600"]
    loss = ("tuned", 0.01, -0.2, 0.22, 0.8, VERDICT_SAME, pd.NA, pd.NA)
    rows = compare(*loss, metric="log_loss", detectable=0.3)
    page = Page(render_report(build_content(comparison=rows)))
    assert "; a difference of at least 0.300 in log loss could have been shown." in page.text
    worse = ("hog", -0.065, -0.089, -0.041, 2e-5, "worse", 2, 41)
    page = Page(render_report(build_content(comparison=compare(*worse, detectable=0.03))))
    assert "hog is worse by 6.5 points (4.1 to 8.9, p < 0.001)." in page.text


def test_no_worse_names_the_margin_of_its_protocol():
    text = full_text()
    rules_out = "is shown where the interval rules out a loss of more than {}\u00a0points."
    captions = re.findall(r"<caption>Paired comparison.*?</caption>", text, re.DOTALL)
    for caption, size in zip(captions, ("2.0", "1.0"), strict=True):
        assert rules_out.format(size) in caption
    assert "no worse" in rows_of(text, "Paired comparison with probe on the same")[0]
    # Runs from before the column, and other metrics, do not have it.
    row = ("tuned", 0.02, 0.01, 0.03, 0.02, "better", 9, 1)
    for old in (compare(*row).assign(no_worse=""), compare(*row, metric="macro_f1")):
        page = render_report(build_content(comparison=old))
        assert "no worse" not in page.lower()


def recipe_rows():
    return pd.DataFrame(
        [
            ("tuned", "accuracy", 0.95, 0.93, 0.97, -0.01, -0.03, 0.01, 0.2, 0.4, VERDICT_SAME, 10),
            ("probe", "accuracy", 0.96, 0.94, 0.98, nan, nan, nan, nan, nan, "", 10),
            ("hog", "log_loss", 0.4, 0.2, 0.6, 0.3, 0.1, 0.5, 0.001, 0.002, "worse", 10),
        ],
        columns=FOLD_COLUMNS,
    )


def test_the_recipes_have_a_table_of_what_other_training_sets_would_give():
    text = render_report(build_full(recipes=recipe_rows()))
    tuned = ["tuned", "accuracy", "95.0 %|93.0 to 97.0"]
    hog = ["hog|yardstick", "log loss", "0.400|0.200 to 0.600"]
    assert rows_of(text, "Means over 10 fits") == [
        ["contender", "metric", "mean", "difference", "p", "verdict"],
        ["probe", "accuracy", "96.0 %|94.0 to 98.0", "–", "–", ""],
        [*tuned, "−1.0 points|−3.0 to 1.0", "0.40", VERDICT_SAME],
        [*hog, "0.300|0.100 to 0.500", "0.002", "worse"],
    ]
    assert "To choose a recipe for another training set of this size, read the next table" in text
    assert "another training set" not in full_text()


def with_metrics(content, values, label="", protocol="holdout", n=600):
    """Add test figures of all contenders; the intervals reach .05 down and .01 up."""
    rows = [
        (protocol, 0, c.name, "test", "single", name, label, value, value - 0.05, value + 0.01, n)
        for c in content.contenders
        for name, value in values.items()
    ]
    added = pd.DataFrame(rows, columns=METRIC_COLUMNS)
    return dataclasses.replace(content, metrics=pd.concat([content.metrics, added]))


def test_more_figures_stand_behind_a_click():
    more = {"kappa": -0.02, "matthews": 0.9, "pr_auc": 0.95, "top_3": 0.99, "ece": 0.07}
    text = render_report(with_metrics(build_content(), more))
    first = rows_of(text, "Test figures; 95 % intervals in small print")
    assert first[0] == ["contender", "accuracy", "log loss", "calibration error", "images"]
    assert rows_of(text, "More test figures; 95 % intervals in small print")[:2] == [
        [
            *("contender", "top-3 accuracy", "PR AUC", "Matthews correlation", "Cohen's kappa"),
            "images",
        ],
        [
            *("probe", "99.0 %|94.0 to 100.0", "0.950|0.900 to 0.960", "0.900|0.850 to 0.910"),
            *("−0.020|−0.070 to −0.010", "600"),
        ],
    ]
    summary = "top-3 accuracy, PR AUC, Matthews correlation, Cohen's kappa</summary>"
    assert f"More test figures: {summary}" in html.unescape(text)
    folds = render_report(with_metrics(build_full(), more, protocol="kfold", n=2624))
    assert f"More k-fold figures: {summary}" in html.unescape(folds)
    rows = rows_of(folds, "More k-fold figures; 95 % intervals in small print")
    assert rows[1][-2:] == ["−0.020|−0.070 to −0.010", "2,624"]
    assert "More test figures" not in folds
    # Tables that say they hold all of the figures do.
    careless = render_report(with_metrics(build_full(), more, protocol="careless"))
    assert "Cohen's kappa" in rows_of(careless, "Figures of the careless split")[0]


def test_runs_from_before_these_figures_have_no_empty_tables(page, full):
    for text in (page.text, full.text):
        assert "More test figures" not in text
        assert "More k-fold figures" not in text
        assert "Mean cost" not in text
        assert "specificity" not in text


def test_the_images_of_a_class_are_not_those_of_its_specificity():
    content = with_metrics(build_content(), {"specificity": 0.97}, label="dog", n=700)
    rows = rows_of(render_report(content), "Each class on the test images")
    assert rows == [
        ["class", "precision", "recall", "specificity", "images"],
        ["dog", "68.3 %|63.3 to 69.3", "78.3 %|73.3 to 79.3", "97.0 %|92.0 to 98.0", "300"],
    ]


def test_costs_are_shown_and_explained():
    content = with_metrics(build_content(class_names=("cat", NASTY_CLASS)), {"cost": 1.5})
    costs = {"cat": {"cat": 0}, NASTY_CLASS: {"cat": 0.5}}
    text = render_report(dataclasses.replace(content, costs=costs))
    assert rows_of(text, "Test figures; 95")[:2] == [
        ["contender", "accuracy", "mean cost", "log loss", "images"],
        ["probe", "98.3 %|93.3 to 99.3", "1.500|1.450 to 1.510", "0.017", "600"],
    ]
    assert (
        f"Mean cost per image: {NASTY_CLASS} called cat costs 0.5; every other "
        "mistake costs 1; a right answer costs nothing."
    ) in Page(text).text
    assert costs_sentence({"a": {"a": 0}}, 2) == (
        "Mean cost per image: every mistake costs 1; a right answer costs nothing."
    )
    assert costs_sentence({"a": {"b": 1234567.5}, "b": {"a": 1}}, 2) == (
        "Mean cost per image: a called b costs 1234567.5; b called a costs 1; a right answer costs "
        "nothing."
    )
    many = {"a": {f"class {number}": 2.0 for number in range(15)}}
    assert "class 11 costs 2; 3 more mistakes cost what config.json says; every other" in (
        costs_sentence(many, 16)
    )


def test_a_verdict_by_cost_is_told():
    rows = pd.concat(
        [
            compare("hog", -0.01, -0.03, 0.01, 0.3, VERDICT_SAME, 1, 7),
            compare("hog", 0.7, 0.5, 0.9, 0.01, "worse", metric="cost"),
        ]
    )
    page = Page(render_report(build_content(comparison=rows)))
    assert "p = 0.30); it is worse by mean cost." in page.text


def test_rows_of_the_chosen_contender_are_marked():
    text = render_report(build_content())
    marked = re.findall(r'<tr class="chosen">\s*<th scope="row">([^<]*)<', text)
    assert marked
    assert set(marked) == {"probe"}
    assert '<tr>\n<th scope="row">hog<' in text


def test_tables_show_the_numbers(page):
    assert page.row("probe") == ["probe", "98.3 %|93.3 to 99.3", "0.017", "600"]
    assert page.row("hog") == ["hog", "91.8 %|86.8 to 92.8", "0.082", "600"]
    paired = ["hog", "−6.5 points|−8.9 to −4.1", "worse", "< 0.001"]
    paired += ["–", "not shown", "2", "41", "600"]
    assert page.row("hog", 1) == paired
    assert page.row("tuned", 1)[3] == "0.80"
    paired_names = [row[0].strip("|") for row in page.tables if VERDICT_SAME in "".join(row[2:3])]
    assert paired_names == ["tuned"]
    assert page.row("hog", 2) == [
        *("hog", "HOG and SVM.|C| 0.3, by CV", "1 min 35 s", "210", "4.8", "121 kB")
    ]
    assert page.row("tuned", 2) == ["tuned", "A tuned network.", "2 h 2 min", "–", "–", "–"]
    # tuned was not timed
    (cost,) = (value for _, name, value in page.attributes if value.startswith("Test accuracy ag"))
    assert cost.replace("\u00a0", " ") == (
        "Test accuracy against time per image: probe 98.3 % at 26 ms; hog 91.8 % at 4.8 ms"
    )
    # val: marked, without an interval
    assert page.row("probe", 2) == ["probe", "99.1 %", "0.009", "600"]
    assert "Validation figures (used for choosing)" in page.text
    further = ["probe", "holdout", "1", "test", "flip", "97.7 %|92.7 to 98.7", "0.023", "600"]
    assert page.row("probe", 3) == further
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
        "This test split has been scored by one config",
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
    words = "that can be written as one file, because the chosen probe cannot"
    assert words in Page(render_report(build_content(exported="tuned"))).text
    assert words not in page.text


@pytest.mark.parametrize(("number", "shown"), [(20, 20), (27, 20)])
def test_long_findings_are_cut_and_counted(number, shown):
    rows = [(f"i{n:02d}.jpg", "odd", "info", "r") for n in range(number - 2)]
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
    rows = [("n", "b", "info"), ("n", "a", "error"), ("n", "c", "error"), ("n", "c", "error")]
    table = pd.DataFrame(rows, columns=["image_id", "finding", "severity"])
    assert count_findings(table) == [("error", "c", 2), ("error", "a", 1), ("info", "b", 1)]


def test_further_repeats_of_the_folds_are_no_headline():
    content = build_content()
    again = content.metrics.assign(repeat=1, value=0.5)
    repeated = build_content(metrics=pd.concat([content.metrics, again], ignore_index=True))
    for split in ("test", "val"):
        expected = headline_metrics(content, split)
        pd.testing.assert_frame_equal(headline_metrics(repeated, split), expected)
    assert check_content(repeated) is repeated


def test_how_the_images_were_divided_is_told():
    told = "They were divided at random by <class>, with groups kept together."
    page = Page(render_report(build_content(split_story=told)))
    assert f"from pets. {told}" in page.text
    assert "They were divided" not in Page(render_report(build_content())).text


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
FULL = build_full()


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
        *(
            (
                build_content(**{name: getattr(FULL, name).drop(columns=column)}),
                rf"{name} table of a report lacks the columns \['{column}'\]",
            )
            for name, columns in (
                ("careless", CARELESS_COLUMNS),
                ("duplicates", DUPLICATE_COLUMNS),
                ("subgroups", SUBGROUP_COLUMNS),
                ("recipes", FOLD_COLUMNS),
            )
            for column in columns
        ),
        (
            build_content(comparison=CONTENT.comparison.assign(protocol="careless")),
            "unknown protocol of a comparison 'careless'",
        ),
        (build_full(folds=1), r"folds is 1, but a page knows 0 \(no k-fold\) or at least 2"),
        (build_full(folds=-2), "folds is -2"),
        (
            build_content(folds=5),
            r"'probe' has 0 test accuracies in the metrics \(protocol 'kfold', its own view\)",
        ),
        (
            build_content(careless=FULL.careless),
            r"'hog' has 0 test accuracies in the metrics \(protocol 'careless', its own view\)",
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
    assert check_content(FULL) is FULL


def test_the_biggest_risk_stands_between_the_lead_and_the_rest(full):
    parts = ["probe was chosen", "Read this first", "Biggest risk The file gives it away."]
    parts += [
        "File size alone names 62 %.",
        "A split flatters. By 10 points.",
        "Two images were left out.",
        "Over 5 folds",
        "hog is worse by",
    ]
    positions = [full.text.index(part) for part in parts]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("risks", "warnings", "shown"),
    [
        ([], [], (False, False, False)),
        ([], ["Odd."], (True, False, True)),
        ([Risk("Bad.", "Very.")], [], (True, True, False)),
        ([Risk("Bad.", "Very."), Risk("Odd.", "Too.")], [], (True, True, True)),
    ],
)
def test_the_box_holds_what_there_is(risks, warnings, shown):
    text = render_report(build_content(risks=risks, warnings=warnings))
    inside = re.search(r"<aside.*?</aside>", text, re.DOTALL)
    box = inside.group() if inside else ""
    assert ("Read this first" in box, "Biggest risk" in box, "<ul>" in box) == shown


def test_k_fold_is_told_apart_from_the_model_file(full, page):
    words = (
        "Over 5 folds, with every one of the 2,624 images scored once by a model that had not seen "
        "its group, the recipe of probe names 96.5 % correctly (95 % interval 91.5 to 97.5). That "
        "judges the recipe, not one file: the number that belongs to the model file is the 98.3 % "
        "on the test images."
    )
    assert words in full.text
    assert "folds" not in page.text
    elsewhere = Page(render_report(build_full(exported="tuned"))).text
    assert "belongs to the model file is the test figure of tuned." in elsewhere
    nowhere = Page(render_report(build_full(exported=""))).text
    assert "That judges the recipe, not one file. " in nowhere


def rows_of(text, caption):
    """The cells of the table with this caption, headings included."""
    table = next(t for t in re.findall(r"<table.*?</table>", text, re.DOTALL) if caption in t)
    return [
        [cell.replace("\u00a0", " ").strip("|\n") for cell in row] for row in Page(table).tables
    ]


def test_k_fold_has_tables_of_its_own():
    text = full_text()
    assert rows_of(text, "k-fold figures: 5 times") == [
        ["contender", "accuracy", "log loss", "images"],
        ["probe", "96.5 %|91.5 to 97.5", "0.035", "2,624"],
        ["tuned", "95.5 %|90.5 to 96.5", "0.045", "2,624"],
        ["hog|yardstick", "90.5 %|85.5 to 91.5", "0.095", "2,624"],
    ]
    paired = rows_of(text, "Paired comparison with the recipe of probe on all images")[1:]
    start = ["hog|yardstick", "−6.0 points|−7.0 to −5.0", "worse", "< 0.001"]
    assert paired == [[*start, "–", "not shown", "7", "77", "2,624"]]


def test_k_fold_is_read_in_the_own_view_of_a_contender():
    flipped = pd.DataFrame(
        metric_rows("probe", 0.5, protocol="kfold", view="flip"), columns=METRIC_COLUMNS
    )
    contenders = [dataclasses.replace(c, view="flip") for c in FULL.contenders[2:]]
    metrics = pd.concat([FULL.metrics, flipped])
    comparison, careless = CONTENT.comparison.iloc[:0], CONTENT.careless
    content = build_full(
        metrics=metrics, contenders=contenders, comparison=comparison, careless=careless
    )
    text = render_report(content)
    assert "recipe of probe names 50.0\u00a0% correctly" in text
    rows = rows_of(text, "All other figures of this run")
    assert ["kfold", "1", "test", "single", "96.5 %|91.5 to 97.5"] in [row[1:6] for row in rows]


def test_only_comparisons_with_the_chosen_contender_are_shown_in_the_order_of_the_page():
    text = full_text()
    paired = rows_of(text, "Paired comparison with probe on the same test images")[1:]
    assert [(row[0], row[2]) for row in paired] == [
        ("tuned", VERDICT_SAME),
        ("hog|yardstick", "worse"),
    ]
    outcomes = re.search(r'<ul class="outcomes">.*?</ul>', text, re.DOTALL).group()
    assert re.findall(r"<strong>(\w+)<", outcomes) == ["hog"]  # the folds compared it alone
    assert "each image scored in its fold" in text
    assert "The choice stands" not in text  # hog is better than tuned, which was not chosen


def test_several_contenders_without_a_comparison_are_not_called_one():
    page = Page(render_report(build_content(comparison=CONTENT.comparison.iloc[:0])))
    assert "only contender" not in page.text


def test_every_figure_of_the_run_stands_in_one_place():
    text = full_text()
    further = rows_of(text, "All other figures of this run")[1:]
    assert [row[:5] for row in further] == [["probe", "holdout", "1", "test", "flip"]]
    # Without the parts that show them, they must not vanish.
    bare = render_report(build_full(folds=0, careless=CONTENT.careless))
    protocols = [row[1] for row in rows_of(bare, "All other figures of this run")[1:]]
    assert sorted(protocols) == ["careless"] * 3 + ["holdout"] + ["kfold"] * 3


def test_the_careless_split_is_shown_and_explained(full):
    text = full_text()
    assert rows_of(text, "Test accuracy on both splits") == [
        ["contender", "grouped", "careless", "difference"],
        ["probe", "98.3 %", "99.3 %", "1.0 points|0.1 to 1.9"],
        ["tuned", "98.5 %", "98.5 %", "0.0 points|−1.0 to 1.0"],
        ["hog|yardstick", "91.8 %", "97.3 %", "5.5 points|4.1 to 6.9"],
    ]
    assert rows_of(text, "Figures of the careless split")[1] == [
        *("probe", "99.3 %|94.3 to 100.3", "0.007", "600"),
    ]
    for words in (
        "would have been fooled by",
        "no difference means that the careless split did no harm here",
        "The largest difference here is that of hog: 5.5 points (4.1 to 6.9). Of 3 differences, 2 "
        "have an interval above zero.",
    ):
        assert words in full.text, words
    labels = [value for _, name, value in full.attributes if name == "aria-label"]
    label = next(label for label in labels if "groups kept together" in label)
    assert "probe 98.3 % and 99.3 %; tuned 98.5 % and 98.5 %; hog 91.8" in label.replace(
        "\u00a0", " "
    )


@pytest.mark.parametrize(
    ("lows", "words"),
    [
        ([0.01], "Of 1 difference, 1 has an interval above zero."),
        ([0.01, 0.0], "Of 2 differences, 1 has an interval above zero."),
        (
            [-0.1, 0.0],
            "Of 2 differences, none has an interval above zero: that the careless split did harm "
            "is not shown for these images.",
        ),
    ],
)
def test_differences_above_zero_are_counted(lows, words):
    rows = [("x", 0.5, 0.5, 0.02, low, 0.03) for low in lows]
    assert careless_sentence(pd.DataFrame(rows, columns=CARELESS_COLUMNS)).endswith(words)


def test_yardsticks_are_marked_and_explained_once(full, page):
    assert full.text.count("Hollow dots are yardsticks: they look at no pixel") == 1
    assert "yardstick" not in page.text
    text = full_text()
    assert set(re.findall(r'([^>]*)<small class="yardstick">', text)) == {"hog"}
    labels = [value for tag, name, value in full.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels[0].endswith("hog (yardstick) 91.8\u00a0% (86.8\u00a0to\u00a092.8)")
    assert "probe (yardstick)" not in labels[0]


def test_a_class_named_like_a_yardstick_is_not_marked():
    metrics = FULL.metrics.assign(label=FULL.metrics["label"].replace("dog", "hog"))
    rows = rows_of(render_report(build_full(metrics=metrics)), "Each class on the test images")
    assert rows[1][0] == "hog"


def test_near_duplicates_are_drawn_and_described(full):
    labels = [value for _, name, value in full.attributes if name == "aria-label"]
    words = "labels, by threshold: 0: 2, 2, 0; 24: 5, 4, 1; 48: 3, 900, 2"
    assert sum(words in label for label in labels) == 1
    assert "A threshold does not transfer from one data set to another" in full.text
    assert "begin to chain" in full.text


@pytest.mark.parametrize("largest", [[], [1, 1]])
def test_no_near_duplicate_no_figure(largest):
    rows = [(threshold, 0, size, 0) for threshold, size in enumerate(largest)]
    table = pd.DataFrame(rows, columns=DUPLICATE_COLUMNS)
    assert "Near-duplicates</h3>" not in render_report(build_full(duplicates=table))


def test_subgroups_stand_worst_first_per_column_and_protocol():
    text = full_text()
    assert rows_of(text, "By site, on the test images.") == [
        ["site", "accuracy", "images"],
        ["east", "70.0 %|60.0 to 75.0", "30"],
        ["(not given)", "80.0 %|70.0 to 85.0", "20"],
        ["north", "90.0 %|80.0 to 95.0", "50"],
    ]
    over_folds = rows_of(text, "By site, over 5 folds.")[1:]
    assert [row[0] for row in over_folds] == ["east", "north"]
    captions = [(part.column, part.protocol) for part in subgroup_tables(FULL)]
    assert captions == [("site", "holdout"), ("site", "kfold"), (NASTY_CLASS, "holdout")]
    assert "Subgroups</h3>" not in render_report(CONTENT)


@pytest.mark.parametrize(("number", "shown"), [(12, 12), (13, 12)])
def test_many_subgroups_are_cut_and_counted(number, shown):
    rows = [
        ("holdout", "probe", "site", f"s{i:02d}", "accuracy", 1 - i / 100, 0.1, 0.9, 9)
        for i in range(number)
    ]
    table = pd.DataFrame(rows, columns=SUBGROUP_COLUMNS)
    text = render_report(build_content(subgroups=table))
    names = [row[0] for row in rows_of(text, "By site, on the test images")[1:]]
    assert names == [f"s{i:02d}" for i in reversed(range(number))][:shown]
    assert ("; the 12 worst of 13 subgroups." in text) == (number > shown)


def test_the_licence_stands_at_the_foot_when_it_is_known(page):
    assert page.text.endswith("Images: CC BY 4.0")
    assert "Images: " not in Page(render_report(with_data(CONTENT, licence=""))).text


def test_a_matrix_grows_with_its_classes_and_with_the_longest_name():
    width, height = confusion_size(["no", "yes"])
    long_width, long_height = confusion_size(["no", "x" * 20])
    assert (long_width - width, long_height - height) == pytest.approx((2.26, 0.83), abs=0.01)
    assert confusion_size(["x" * 26] * 2) == confusion_size(["x" * 90] * 2)
    assert confusion_size(["no"] * 10)[1] - confusion_size(["no"] * 2)[1] == pytest.approx(2.12)


UNLIKE_ROWS = [
    ("probe", "probability", "test", 0.0625, 0.041, 0.087, 1600),
    ("probe", "distance", "test", 0.04, 0.021, 0.053, 1600),
    ("hog", "probability", "test", 0.9, 0.8, 0.95, 1600),
]


def test_the_share_of_unlike_test_images_is_told_among_the_limits():
    unlike = pd.DataFrame(UNLIKE_ROWS, columns=UNLIKE_COLUMNS)
    sentence = unlike_sentence(unlike, "probe")
    assert "Of the 1,600 test images" in sentence.replace("\u202f", ",").replace("\u2009", ",")
    for share in ("by probability", "by distance"):
        assert share in sentence
    assert "hog" not in sentence
    assert "90" not in sentence
    limits = render_report(build_content(unlike=unlike)).split('id="limits"')[1].split("</section>")
    assert html.unescape(limits[0]).count(sentence) == 1


def test_a_run_without_scores_of_unlike_images_has_no_such_sentence():
    none = pd.DataFrame(columns=list(UNLIKE_COLUMNS))
    assert unlike_sentence(none, "probe") == ""
    assert "Images of another kind" not in render_report(build_content())
    with pytest.raises(InputError, match="unlike table of a report lacks the columns"):
        check_content(build_content(unlike=none.drop(columns="n")))
