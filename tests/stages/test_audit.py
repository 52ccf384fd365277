"""The audit stage: what lies between scanning the files and decoding them."""

import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.stages.audit import MAX_SHOWN, check_unchanged, describe_findings


def test_a_file_that_changes_between_hashing_and_decoding_stops_the_run():
    """Its first hash would name the run and key the cache."""
    rows = pd.DataFrame({"image_id": ["a", "b"], "sha256": ["1", "2"]})
    facts = pd.DataFrame({"image_id": ["b"], "sha256": ["2"]})  # a could not be decoded
    check_unchanged(rows, facts)
    for first_hash in ("3", ""):
        rows.loc[1, "sha256"] = first_hash
        with pytest.raises(InputError, match="'b' changed while it was being read; run again"):
            check_unchanged(rows, facts)


def test_findings_in_words():
    findings = pd.DataFrame(
        [("a.jpg", "empty_file", "error", "it is empty"), ("", "tiny_class", "error", "too few")],
        columns=["image_id", "finding", "severity", "reason"],
    )
    assert describe_findings(findings).splitlines() == [
        "  error: empty_file: a.jpg: it is empty",
        "  error: tiny_class: too few",
    ]
    many = pd.concat([findings.head(1)] * (MAX_SHOWN + 2))
    assert describe_findings(many).splitlines()[-1] == "  ... and 2 more"
