import re

import pytest

from cvpipe.data.findings import (
    FINDING_COLUMNS,
    KINDS,
    SEVERITIES,
    Finding,
    findings_in,
    findings_table,
    make_finding,
)


def test_a_finding_has_the_severity_of_its_kind_unless_told_otherwise():
    assert make_finding("dark", "r", "a.png") == Finding("a.png", "dark", "r", "info")
    assert make_finding("empty_class", "r") == Finding("", "empty_class", "r", "error")
    assert make_finding("split_leak", "r", "a", "warning").severity == "warning"


def test_an_unknown_kind_is_a_defect():
    with pytest.raises(KeyError, match="drak"):
        make_finding("drak", "r")


def test_findings_are_sorted_by_how_grave_they_are():
    findings = [
        make_finding("dark", "1", "c"),
        make_finding("wrong_suffix", "2", "b"),
        make_finding("wrong_suffix", "3", "a"),
        make_finding("imbalance", "4"),
        make_finding("unreadable", "5", "d"),
    ]
    table = findings_table(findings)
    assert list(table) == FINDING_COLUMNS
    assert table["reason"].tolist() == ["5", "4", "3", "2", "1"]
    assert table["severity"].tolist() == ["error", "warning", "warning", "warning", "info"]
    assert table["action"].tolist() == [KINDS[kind].action for kind in table["finding"]]
    assert table.index.tolist() == [0, 1, 2, 3, 4]
    assert list(findings_table([])) == FINDING_COLUMNS


def test_a_table_gives_its_findings_back():
    findings = [make_finding("split_leak", "r", "a", "warning"), make_finding("dark", "s", "b")]
    assert findings_in(findings_table(findings)) == findings
    assert findings_in(findings_table([])) == []


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_complete(name):
    kind = KINDS[name]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert kind.severity in SEVERITIES
    for text in (kind.meaning, kind.action):
        assert text
        assert not text.endswith(".")
        assert "|" not in text  # would end a cell of the table in the docs
