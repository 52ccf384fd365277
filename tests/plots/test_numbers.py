# ruff: noqa: RUF001  (typographic signs are what the pages must show)
import math

import numpy as np
import pandas as pd
import pytest

from cvpipe.evaluation.metrics import CLASS_METRICS, metrics_for
from cvpipe.plots import numbers
from cvpipe.plots.numbers import SPACE


def plain(text):
    return text.replace(SPACE, " ")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.0 %"),
        (1.0, "100.0 %"),
        (0.9833, "98.3 %"),
        (0.9996, "> 99.9 %"),
        (0.0004, "< 0.1 %"),
        (math.nan, "–"),
    ],
)
def test_percent_never_rounds_a_flaw_away(share, text):
    assert plain(numbers.format_percent(share)) == text


def test_units_follow_the_metric():
    assert plain(numbers.format_metric("macro_f1", 0.5)) == "50.0 %"
    assert plain(numbers.format_metric("log_loss", 0.05)) == "0.050"
    assert numbers.format_metric("log_loss", math.nan) == "–"
    assert plain(numbers.format_interval("accuracy", 0.97, 0.991)) == "97.0 to 99.1"
    assert plain(numbers.format_interval("ece", 0.01, 0.02)) == "0.010 to 0.020"
    assert numbers.format_interval("accuracy", math.nan, 0.99) == ""
    assert numbers.format_interval("accuracy", 0.9, math.nan) == ""


def test_differences_carry_a_typographic_minus_and_zero_has_no_sign():
    assert plain(numbers.format_difference("accuracy", -0.065)) == "−6.5 points"
    assert plain(numbers.format_difference("accuracy", -0.0001)) == "0.0 points"
    assert numbers.format_difference("log_loss", -0.12) == "−0.120"
    assert numbers.format_difference("accuracy", math.nan) == "–"


@pytest.mark.parametrize(
    ("p_value", "text"),
    [(1e-9, "< 0.001"), (0.001, "= 0.001"), (0.0341, "= 0.034"), (0.612, "= 0.61"), (1, "= 1.00")],
)
def test_p_values(p_value, text):
    assert plain(numbers.format_p_value(p_value)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "< 0.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (3599.4, "59 min 59 s"),
        (7322, "2 h 2 min"),
        (math.nan, "–"),
    ],
)
def test_durations_roll_over(seconds, text):
    assert plain(numbers.format_seconds(seconds)) == text


def test_rates_counts_and_tiny_values():
    assert numbers.format_rate(1234.4) == "1,234"
    assert numbers.format_rate(3.14) == "3.1"
    assert numbers.format_rate(math.nan) == "–"
    assert numbers.format_count(1234567) == "1,234,567"
    assert [numbers.format_count(n) for n in (pd.NA, None, math.nan)] == ["–"] * 3
    assert numbers.format_tiny(3.14e-7) == "3.1e-07"
    assert numbers.format_tiny(math.nan) == "–"
    assert numbers.format_p_value(math.nan) == "–"


def test_titles_of_known_and_unknown_metrics():
    assert numbers.metric_title("roc_auc") == "ROC AUC"
    assert numbers.metric_title("top_5") == "top-5 accuracy"
    assert numbers.metric_title("top_7") == "top 7"
    assert not numbers.is_share("top_7")


def test_every_metric_has_a_title_and_the_same_direction():
    for name, metric in (metrics_for(6, 1 - np.eye(6)) | CLASS_METRICS).items():
        written = numbers.METRICS[name]
        assert written.higher_is_better == metric.higher_is_better, name
        # What can leave [0, 1] makes no percentage.
        assert not (written.is_share and (metric.lower < 0 or metric.upper > 1)), name
        assert written.is_share or not metric.is_proportion, name


def test_negative_values_of_a_metric():
    assert plain(numbers.format_metric("kappa", -0.1234)) == "−0.123"
    assert plain(numbers.format_interval("matthews", -0.2, 0.05)) == "−0.200 to 0.050"


def test_shorten_keeps_both_ends_and_the_length():
    assert numbers.shorten("short") == "short"
    assert numbers.shorten("abcdefgh", 5) == "ab…gh"
    assert len(numbers.shorten("x" * 99)) == 26
