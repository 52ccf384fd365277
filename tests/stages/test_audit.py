"""The audit stage: what lies around decoding the files."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cvpipe.config import validate_config
from cvpipe.data.findings import KINDS, findings_table, make_finding
from cvpipe.data.manifest import scan_images
from cvpipe.errors import InputError
from cvpipe.stages.audit import (
    LINE_WIDTH,
    MAX_SHOWN,
    audit_rows,
    check_unchanged,
    describe_findings,
    leave_out,
    scan_and_hash,
)
from cvpipe.stages.job import Nobody


def write_noise(root, *names):
    """Write pictures that are all different."""
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


@pytest.fixture
def root(tmp_path):
    """Two classes of eight images each, with a split: four in train, four in test."""
    folder = tmp_path / "data"
    names = [(s, label, n) for s in ("train", "test") for label in ("cat", "dog") for n in range(4)]
    write_noise(folder, *(f"{split}/{label}/{number}.png" for split, label, number in names))
    return folder


def config_of(root, data=None, **sections):
    contender = {"name": "a", "classifier": "majority"}
    return validate_config(
        {
            "name": "audit",
            "data": {"root": str(root), **(data or {})},
            "contender": [contender],
            **sections,
        }
    )


def findings_of(root, data=None, **sections) -> pd.DataFrame:
    config = config_of(root, data, **sections)
    return audit_rows(scan_and_hash(root, config), root, config, Nobody()).findings


def pairs(findings: pd.DataFrame) -> list[tuple]:
    return list(zip(findings["finding"], findings["image_id"], strict=True))


GIVEN = {"protocol": "given"}


def test_a_file_that_changes_between_hashing_and_decoding_stops_the_run():
    """Its first hash would name the run and key the cache."""
    rows = pd.DataFrame({"image_id": ["a", "b"], "sha256": ["1", "2"]})
    facts = pd.DataFrame({"image_id": ["b"], "sha256": ["2"]})  # a could not be decoded
    check_unchanged(rows, facts)
    for first_hash in ("3", ""):
        rows.loc[1, "sha256"] = first_hash
        with pytest.raises(InputError, match="'b' changed while it was being read; run again"):
            check_unchanged(rows, facts)


# Images that the config leaves out.


def test_excluded_images_are_left_out_and_told(root):
    (root / "train/cat/0.png").write_bytes(b"")  # would be an error
    assert pairs(findings_of(root)) == [("empty_file", "train/cat/0.png")]
    findings = findings_of(root, {"exclude": ["train/cat/0.png", "test/dog/3.png"]})
    assert pairs(findings) == [("excluded", "test/dog/3.png"), ("excluded", "train/cat/0.png")]
    assert set(findings["severity"]) == {"info"}
    assert set(findings["reason"]) == {"data.exclude names it"}


def test_excluded_images_are_not_among_the_rows(root):
    rows = scan_and_hash(root, config_of(root, {"exclude": ["train/cat/0.png"]}))
    assert len(rows) == 15
    assert "train/cat/0.png" not in set(rows["image_id"])
    assert rows.index.tolist() == list(range(15))


def test_a_name_that_is_none_of_the_images(root):
    rows = scan_images(root, "folders")
    start = "data.exclude names {!r}, which is none of the 16 images; give paths below their folder"
    for name, end in (
        ("train/cat/0.pgn", ", parted by '/': did you mean 'train/cat/0.png'?"),
        ("x", ", parted by '/': one of them is 'test/cat/0.png'."),
    ):
        with pytest.raises(InputError) as caught:
            leave_out(rows, ["train/cat/1.png", name])
        assert str(caught.value) == start.format(name) + end


@pytest.mark.parametrize("table", [False, True])
def test_a_class_whose_every_image_is_left_out_is_told(root, table):
    write_noise(root, "train/owl/0.png", "train/owl/1.png", "test/owl/2.png")
    names = ["train/owl/0.png", "train/owl/1.png", "test/owl/2.png"]
    data = {"exclude": names, "labels": "folders"}
    if table:
        # What is left out of the table may have had no label at all.
        labels = {"train/cat/0.png": ""}
        data |= table_of(root, kind=lambda path: labels.get(path, path.split("/")[1]))
        data |= {"label_column": "kind", "exclude": [*names, *labels]}
    (row,) = findings_of(root, data).query("severity == 'error'").itertuples()
    assert (row.finding, row.reason) == (
        "empty_class",
        "class 'owl' has no image that can be used",
    )


def test_a_row_listed_twice_is_left_out_twice():
    rows = pd.DataFrame({"image_id": ["a", "a", "b"]})
    assert leave_out(rows, ["a"])["image_id"].tolist() == ["b"]
    assert leave_out(rows, []).equals(rows)
    with pytest.raises(
        InputError, match=r"data\.exclude names every image; keep those that can be"
    ):
        leave_out(rows, ["a", "b"])


# Splits that come with the images.


def test_a_class_that_a_given_split_lacks_is_an_error(root):
    for path in (root / "test" / "dog").iterdir():
        path.rename(root / "train" / "dog" / f"more {path.name}")
    assert "missing_in_split" not in set(findings_of(root)["finding"])
    findings = findings_of(root, split=GIVEN)
    (row,) = findings[findings["finding"] == "missing_in_split"].itertuples()
    assert (row.severity, row.reason) == (
        "error",
        "class 'dog' has no image in test (8 in train, 0 in test)",
    )


def test_identical_images_across_a_given_split_are_an_error(root):
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/0.png").read_bytes())
    assert findings_of(root).query("finding == 'identical_images'")["severity"].tolist() == ["info"]
    for allowed, severity in ((False, "error"), (True, "warning")):
        findings = findings_of(root, split={**GIVEN, "allow_leak": allowed})
        (leak,) = findings[findings["finding"] == "split_leak"].itertuples()
        assert (leak.image_id, leak.severity) == ("test/cat/copy.png", severity)
        assert "belongs together with 'train/cat/0.png' in train" in leak.reason


def table_of(root, **columns):
    """Write a table of the images beside them, with further columns made from their paths."""
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    table = pd.DataFrame({"path": paths})
    table["split"], table["label"] = zip(*(path.split("/")[:2] for path in paths), strict=True)
    for name, value_of in columns.items():
        table[name] = [value_of(path) for path in paths]
    table.to_csv(root / "t.csv", index=False)
    return {"labels": "t.csv"}


def test_values_of_a_column_that_a_given_split_parts_are_a_leak(root):
    shared = {"train/cat/1.png": "site 7", "test/dog/2.png": "site 7"}
    data = table_of(root, site=lambda path: shared.get(path, path))
    assert findings_of(root, data, split=GIVEN).query("finding == 'split_leak'").empty
    for allowed, severity in ((False, "error"), (True, "warning")):
        section = {**GIVEN, "by": ["site"], "allow_leak": allowed}
        findings = findings_of(root, data, split=section)
        (leak,) = findings[findings["finding"] == "split_leak"].itertuples()
        assert (leak.image_id, leak.severity) == ("test/dog/2.png", severity)
        assert leak.reason == (
            "in test, but it belongs together with 'train/cat/1.png' in train (the same group, "
            "the same pixels, a near-duplicate, or the same value of a split.by column)"
        )


@pytest.mark.parametrize(
    "section",
    [
        {"protocol": "given", "by": ["sight"]},
        {"protocol": "holdout", "by": ["site", "sight"]},
        {"protocol": "temporal", "time_column": "sight"},
    ],
)
def test_columns_of_the_split_are_looked_for_before_anything_is_hashed(root, monkeypatch, section):
    data = table_of(root, site=lambda path: path)
    monkeypatch.setattr("cvpipe.stages.audit.hash_file", None)
    key = "time_column" if "time_column" in section else "by"
    with pytest.raises(InputError) as caught:
        findings_of(root, data, split=section)
    assert str(caught.value) == (
        f"split.{key} names the column 'sight', but the table of images has the columns "
        "['site', 'group']; did you mean 'site'?"
    )


# Metadata shortcuts.


def test_a_column_that_gives_the_label_away_is_told(root):
    write_noise(root, *(f"train/{label}/{n}.png" for label in ("cat", "dog") for n in range(24)))
    data = table_of(root, device=lambda path: "A" if "cat" in path else "B", number=len)
    told = findings_of(root, data).query("finding == 'metadata_shortcut'")
    assert told["reason"].tolist() == [
        "column 'device' alone names 100% (100% to 100%) of the images; the most frequent class "
        "is 50% of them"
    ]
    # The label was made from it, so that is no news.
    data["label_column"] = "label_made"
    derived = table_of(root, label_made=lambda path: path.split("/")[1])
    told = findings_of(root, {**data, **derived}).query("finding == 'metadata_shortcut'")
    assert told.empty


# Other files.


def test_files_that_are_not_used_are_told(root):
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/IM0001").write_bytes(bytes(128) + b"DICM")
    (root / "lost.png").write_bytes((root / "train/cat/0.png").read_bytes())
    findings = findings_of(root)
    assert dict(zip(findings["image_id"], findings["reason"], strict=True)) == {
        "train/cat/notes.txt": "its suffix is none that cvpipe reads",
        "train/cat/IM0001": (
            "its content is DICOM, but its name does not say so; let it end in .dcm to use it"
        ),
        "lost.png": "it lies outside the class folders",
    }


# Findings in words.


def test_findings_in_words():
    findings = findings_table(
        [
            make_finding("empty_file", "the file is empty", "a.jpg"),
            make_finding("tiny_class", "class 'x' has 1 image"),
            make_finding("dark", "it is dark", "b.jpg"),
        ]
    )
    text = describe_findings(findings)
    assert text.splitlines() == [
        "  error: empty_file (1): a file of zero bytes",
        "    a.jpg: the file is empty",
        "    What to do: mend or remove the file, name it in data.exclude, or give "
        "--drop-unreadable.",
        "  error: tiny_class (1): a class with too few groups for train, val and test",
        "    class 'x' has 1 image",
        "    What to do: add images of other subjects, or merge the class with another.",
        "  info: dark (1): far darker than the others",
        "    b.jpg: it is dark",
        "    What to do: look at it.",
    ]
    assert describe_findings(findings.iloc[:0]) == ""


def test_many_findings_of_a_kind_take_a_few_lines():
    many = [make_finding("converted", "r", f"{number:04}.png") for number in range(3000)]
    lines = describe_findings(findings_table(many)).splitlines()
    assert lines[0].startswith("  info: converted (3,000): ")
    assert lines[1 : MAX_SHOWN + 1] == [f"    {number:04}.png: r" for number in range(MAX_SHOWN)]
    assert lines[MAX_SHOWN + 1] == f"    ... and {3000 - MAX_SHOWN:,} more"
    assert len(lines) == MAX_SHOWN + 3
    shown = describe_findings(findings_table(many[:MAX_SHOWN]))
    assert "more" not in shown


def test_long_lines_are_wrapped_and_names_stay_whole():
    name = "a-b/" * 40 + "c.png"
    finding = make_finding("near_duplicates", "many words " * 40)
    text = describe_findings(findings_table([finding, make_finding("dark", "r", name)]))
    assert name in text
    assert all(len(line) <= LINE_WIDTH or name in line for line in text.splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_line_of_each_kind_fits(kind):
    text = describe_findings(findings_table([make_finding(kind, "r")]))
    assert all(len(line) <= LINE_WIDTH for line in text.splitlines())


def test_the_same_kind_in_two_severities_is_told_twice():
    findings = [
        make_finding("empty_file", "r; left out", "a", "warning"),
        make_finding("empty_file", "r", "b"),
    ]
    heads = describe_findings(findings_table(findings)).splitlines()[::3]
    assert [head.split(" (")[0] for head in heads] == [
        "  error: empty_file",
        "  warning: empty_file",
    ]


# What it needs.


def test_the_audit_needs_no_tensorflow(root):
    code = (
        "import json, sys\n"
        "from cvpipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps([name for name in ('tensorflow', 'keras') if name in sys.modules]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, "audit", str(root), "--quiet"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = answer.stdout.splitlines()
    assert lines[0] == "16 images (cat 8, dog 8): 0 error(s), 0 warning(s), 0 info(s)"
    assert json.loads(lines[-1]) == []


def test_results_do_not_depend_on_the_number_of_threads(root):
    (root / "train/cat/0.png").write_bytes(b"")
    (root / "test/cat/copy.png").write_bytes((root / "train/cat/1.png").read_bytes())
    one, three = (findings_of(root, threads=threads, split=GIVEN) for threads in (1, 3))
    pd.testing.assert_frame_equal(one, three)
    assert set(one["finding"]) == {
        "empty_file",
        "identical_images",
        "near_duplicates",
        "split_leak",
    }
