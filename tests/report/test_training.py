import html
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.models import checks as judgements
from cvpipe.report import page as report_page
from cvpipe.report.page import build_figures, render_report
from cvpipe.report.training import (
    CHECKS,
    HISTORY_COLUMNS,
    CheckResult,
    RateTest,
    Training,
    checks_sentence,
    rate_sentence,
    title_of,
    training_section,
    training_sentence,
)
from tests.report.test_report import Page, build_content

NAN = float("nan")
NASTY = "<b>'\"&"
HISTORY = pd.DataFrame(
    [
        (1, 0.001, 0.9, 0.6, 0.8, 0.65),
        (2, 0.00025, 0.5, 0.8, 0.4, 0.851),
        (3, 0.0, 0.2, 0.95, 0.6, 0.8),
    ],
    columns=HISTORY_COLUMNS,
)
PASSED = CheckResult("before", "initial_loss", True, 0.6953908, "0.69 ± 0.50", "Nothing to do.")
FAILED = CheckResult("after", "gap", False, 0.0517193, "at most 0.050", "Add images.")
TRAINING = Training("tuned", HISTORY, 2, [PASSED, FAILED])
RATES = np.geomspace(1e-6, 10, 8)
TEST = RateTest(RATES, np.linspace(2, 1, 8), np.linspace(2, 1.5, 8), 0.0123)


@pytest.fixture(autouse=True, scope="module")
def other_figures_are_drawn_once():
    drawn = {}

    def build_once(content, order):
        if content.chosen not in drawn:
            drawn[content.chosen] = build_figures(content, order)
        return drawn[content.chosen]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_page, "build_figures", build_once)
        yield


def page_of(*trainings, **changes):
    return render_report(build_content(training=list(trainings), **changes))


def section_of(*trainings):
    (section,) = re.findall(r'<section id="training">.*?</section>', page_of(*trainings), re.DOTALL)
    return section


def plain(text):
    return re.sub(r"\s+", " ", text.replace("\u00a0", " "))


def words_of(section):
    text = re.sub(r"<svg.*?</svg>", "", section, flags=re.DOTALL)
    return plain(html.unescape(re.sub(r"<[^>]+>", "", text)))


def table_rows(section, caption):
    (table,) = (t for t in re.findall(r"<table>.*?</table>", section, re.DOTALL) if caption in t)
    return [
        [html.unescape(re.sub("<[^>]+>", "|", cell)) for cell in re.findall(r"<t[dh].*?/t[dh]>", r)]
        for r in re.findall(r"<tr.*?</tr>", table.split("<tbody>")[1], re.DOTALL)
    ]


def test_the_page_has_the_section_and_does_without():
    page = page_of(TRAINING)
    assert ("a", "href", "#training") in Page(page).attributes
    assert "Training" in Page(page).headings
    assert section_of(TRAINING).count("<svg ") == 2
    assert "&lt;svg" not in section_of(TRAINING)
    without = render_report(build_content())
    assert 'id="training"' not in without
    assert "#training" not in without


def test_equal_contents_give_equal_bytes_and_identifiers_are_not_repeated():
    both = TRAINING, replace(TRAINING, contender="hog", rate_test=TEST)
    assert page_of(*both) == page_of(*both)
    identifiers = re.findall(r' id="([^"]*)"', page_of(*both))
    assert len(identifiers) == len(set(identifiers))


def test_contenders_stand_in_the_order_of_the_page():
    parts = [replace(TRAINING, contender=name) for name in ("hog", "probe", "tuned")]
    headings = re.findall(r"<h3>(.*?)</h3>", section_of(*parts))
    assert headings == ["probe", "tuned", "hog"]  # the chosen one, then by test accuracy


def test_names_and_texts_from_data_are_escaped():
    content = build_content()
    contenders = [replace(c, name=NASTY) if c.name == "probe" else c for c in content.contenders]
    metrics = content.metrics.replace({"contender": {"probe": NASTY}})
    checks = [CheckResult(NASTY, NASTY, False, 1.0, NASTY, NASTY)]
    page = page_of(
        Training(NASTY, HISTORY, 2, checks, TEST),
        chosen=NASTY,
        contenders=contenders,
        metrics=metrics,
        predictions={NASTY: content.predictions["probe"]},
    )
    Page(page)
    (section,) = re.findall(r'<section id="training">.*?</section>', page, re.DOTALL)
    assert "<b>" not in section
    assert words_of(section).count(NASTY) >= 6


def test_the_kept_epoch_is_marked_in_figures_table_and_text():
    section = section_of(TRAINING)
    assert section.count(">epoch 2 kept<") == 2
    rows = table_rows(section, "epoch by epoch")
    cells = [[plain(cell).strip("|") for cell in row] for row in rows]
    assert cells == [
        ["1", "0.001", "0.900", "60.0 %", "0.800", "65.0 %"],
        ["2 (kept)", "0.00025", "0.500", "80.0 %", "0.400", "85.1 %"],
        ["3", "0", "0.200", "95.0 %", "0.600", "80.0 %"],
    ]
    assert len(re.findall(r'<tr class="chosen"><th scope="row">2 \(kept\)', section)) == 1
    assert "Loss of tuned on training and on validation images by epoch: " in section
    assert "epoch 1 0.900 and 0.800; epoch 2 0.500 and 0.400; epoch 3 0.200" in section
    assert "epoch 2 80.0 % and 85.1 %" in plain(section)


def test_the_sentence_on_a_training():
    assert plain(training_sentence(TRAINING)) == (
        "tuned was trained for 3 epochs. Epoch 2 was kept, after which the loss on the validation "
        "images was lowest, 0.400, with 85.1 % of them named correctly."
    )
    last = Training("tuned", HISTORY.head(2), 2)
    assert training_sentence(last).endswith(" It was the last one, so more epochs may help.")
    single = plain(training_sentence(Training("tuned", HISTORY.head(1), 1)))
    assert single.startswith("tuned was trained for 1 epoch. Epoch 1 was kept")
    assert single.endswith("named correctly.")


def test_without_validation_images_the_last_epoch_was_kept():
    training = Training("tuned", HISTORY.assign(val_loss=NAN, val_accuracy=NAN), 3)
    assert plain(training_sentence(training)) == (
        "tuned was trained for 3 epochs. There were no validation images to stop by, so the last "
        "epoch was kept; in it 95.0 % of the training images were named correctly."
    )
    section = section_of(training)
    assert "validation</text>" not in section
    assert plain(table_rows(section, "epoch by epoch")[0][-1]).strip("|") == "\u2013"


def test_a_failed_check_has_its_advice_and_a_passed_one_has_none():
    section = section_of(TRAINING)
    passed, failed = table_rows(section, "blank")
    assert passed[0].startswith("|loss of an untrained head|")
    assert "before training: mean loss" in passed[0]
    assert [cell.strip("|") for cell in passed[1:]] == ["passed", "0.695", "0.69 ± 0.50", ""]
    assert failed[0].startswith("|gap between training and validation accuracy|")
    assert "after training: accuracy on training minus" in failed[0]
    assert [cell.strip("|") for cell in failed[1:]] == [
        *("failed", "0.0517", "at most 0.050", "Add images."),
    ]
    assert "Nothing to do." not in section
    assert 'class="verdict failed">failed<' in section
    assert "<details open><summary>The checks one by one" in section
    assert "What a blank and a reference sample are to an instrument" in words_of(section)


def test_checks_that_all_passed_stand_behind_a_click_without_advice():
    section = section_of(replace(TRAINING, checks=[PASSED, PASSED]))
    assert "All 2 checks passed." in words_of(section)
    assert "<details><summary>The checks one by one" in section
    assert "what to do" not in section


def test_without_checks_nothing_is_said_of_any():
    section = section_of(replace(TRAINING, checks=[]))
    assert "check" not in words_of(section)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.000165772, "0.000166"),
        (5977.42, "5,980"),
        (0.5, "0.5"),
        (-0.0123456, "\u22120.0123"),
        (1.0804e-5, "1.08e-5"),
        (np.float64(-2.0), "\u22122"),
        (NAN, "\u2013"),
    ],
)
def test_values_of_any_size_have_three_digits(value, text):
    section = training_section(replace(TRAINING, checks=[replace(PASSED, value=value)]))
    assert section.checks[0][3] == text


def test_the_sentence_on_checks():
    assert checks_sentence([]) == ""
    assert checks_sentence([PASSED]) == "The check passed."
    assert checks_sentence([PASSED] * 3) == "All 3 checks passed."
    overfit = replace(FAILED, name="overfit")
    assert checks_sentence([PASSED, overfit, FAILED]) == (
        "1 of 3 checks passed. Failed: a handful of images learned by heart; gap between training "
        "and validation accuracy."
    )


def test_every_check_of_a_network_is_named_in_words():
    layers = {"dense": 0.1}
    made = [
        judgements.check_initial_loss(0.7, 2),
        judgements.check_weight_decay(1.0, 1.0),
        judgements.check_overfit(0.01, 1.0),
        judgements.check_shuffled_labels(0.5, 0.5, 20),
        judgements.check_gradient(1e-5),
        judgements.check_update_ratios(layers),
        judgements.check_dead_relus(layers),
        judgements.check_activations(layers, layers),
        judgements.diagnose_curve([0.9, 0.5]),
        judgements.diagnose_gap(0.9, 0.9, 100),
    ]
    assert [check.name for check in made] == list(CHECKS)
    assert title_of("a_new_check") == "a new check"
    unknown = training_section(replace(TRAINING, checks=[replace(PASSED, name="a_new_check")]))
    assert unknown.checks[0][:2] == ("a new check", "before training")


def test_a_rate_test_is_drawn_with_its_suggestion():
    section = section_of(replace(TRAINING, rate_test=TEST))
    assert section.count("<svg ") == 3
    assert ">suggested: 0.012<" in section
    assert rate_sentence(TEST) == (
        "In a test the learning rate was raised from step to step, from 1e-6 to 10. The loss fell "
        "most steeply at 0.012, the rate that is suggested."
    )
    assert rate_sentence(TEST) in words_of(section)
    assert "learning rate was raised" not in section_of(TRAINING)


def test_a_rate_test_without_a_suggestion_says_so():
    test = replace(TEST, suggestion=NAN)
    assert rate_sentence(test).endswith(
        "The loss never fell below its first value, so no rate is suggested."
    )
    section = section_of(replace(TRAINING, rate_test=test))
    assert section.count("<svg ") == 3
    assert "suggested:" not in section


@pytest.mark.parametrize("length", [0, 3])
def test_a_rate_test_without_a_finite_loss_has_no_figure(length):
    losses = np.full(length, NAN)
    section = section_of(replace(TRAINING, rate_test=RateTest(RATES[:length], losses, losses, NAN)))
    assert section.count("<svg ") == 2
    assert "no loss was a finite number" in words_of(section)


def test_a_history_without_its_columns_is_refused():
    training = replace(TRAINING, history=HISTORY.drop(columns="val_loss"))
    with pytest.raises(InputError, match=r"the history table of a report lacks .*val_loss"):
        page_of(training)
