import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.stages import shortcuts
from cvpipe.stages.shortcuts import (
    clues_of,
    columns_to_try,
    encode,
    name_unseen,
    shortcut_findings,
)

LABELS = np.array(["NA", "poppy"] * 200)


def images(labels=LABELS, groups=None, seed=0, **facts):
    """Rows and facts of files that say nothing of the label, but for `facts`."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    image_ids = [f"größe {number:04}.jpg" for number in range(n)]
    rows = pd.DataFrame({"image_id": image_ids, "label": labels})
    rows["group"] = image_ids if groups is None else groups
    table = {
        "image_id": image_ids,
        "width": rng.integers(200, 300, n),
        "height": rng.integers(200, 300, n),
        "file_bytes": rng.integers(10_000, 20_000, n),
        "format": rng.choice(["JPEG", "PNG"], n),
        "mode": "RGB",
    }
    return rows, pd.DataFrame(table | facts)


def test_facts_that_say_nothing_are_not_found():
    for seed in range(5):
        assert shortcut_findings(*images(seed=seed), [], 0) == []


def test_a_width_that_gives_the_label_away():
    width = np.where(LABELS == "NA", 640, 800)
    wrong = np.arange(400) % 10 < 2  # one image of each class in ten
    width = np.where(wrong, 1440 - width, width)
    findings = shortcut_findings(*images(width=width), [], 0)
    reasons = [finding.reason for finding in findings]
    # 320 of 400; a normal interval is .8 ± 1.96 · .02.
    assert reasons[0].startswith("width alone names 80% (76% to 84%) of the images; the most")
    assert reasons[0].endswith("frequent class is 50% of them")
    assert any(reason.startswith("all facts of the file together names") for reason in reasons)
    assert not any(reason.startswith(("height", "format", "file size")) for reason in reasons)
    shares = [float(reason.split("names ")[1].split("%")[0]) for reason in reasons]
    assert shares == sorted(shares, reverse=True)
    assert {(f.kind, f.severity, f.image_id) for f in findings} == {
        ("metadata_shortcut", "warning", "")
    }


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"format": np.where(LABELS == "NA", "PNG", "JPEG")}, "format alone"),
        ({"mode": np.where(LABELS == "NA", "L", "RGB")}, "colour mode alone"),
        ({"height": np.where(LABELS == "NA", 640, 800)}, "height alone"),
        ({"file_bytes": np.where(LABELS == "NA", 640, 800)}, "file size alone"),
    ],
)
def test_each_fact_is_tried(facts, name):
    reasons = [finding.reason for finding in shortcut_findings(*images(**facts), [], 0)]
    assert any(reason.startswith(f"{name} names 100%") for reason in reasons)


def test_ratios_are_tried_where_neither_part_gives_the_label_away():
    rng = np.random.default_rng(0)
    height = rng.integers(100, 1000, 400)
    wide = LABELS == "NA"
    facts = {"height": height, "width": np.where(wide, 2, 1) * height, "file_bytes": 1}
    names = [f.reason.split(" names")[0] for f in shortcut_findings(*images(**facts), [], 0)]
    assert "aspect ratio alone" in names
    facts = {"height": height, "width": 100, "file_bytes": np.where(wide, 20, 10) * height}
    names = [f.reason.split(" names")[0] for f in shortcut_findings(*images(**facts), [], 0)]
    assert "bytes per pixel alone" in names


def test_a_column_of_the_table():
    rows, facts = images()
    sites = np.where(rows["label"] == "NA", "", "Köln")
    rows = rows.assign(site=sites, noise=np.arange(400).astype(str), width="1")
    assert columns_to_try(rows) == ["site", "noise", "width"]
    assert columns_to_try(rows, ["site"]) == ["noise", "width"]
    findings = shortcut_findings(rows, facts, columns_to_try(rows), 0)
    assert [f.reason.split(" names")[0] for f in findings] == ["column 'site' alone"]
    assert shortcut_findings(rows, facts, columns_to_try(rows, ["site"]), 0) == []


def test_columns_of_cvpipe_are_not_tried():
    assert columns_to_try(pd.DataFrame(columns=[*shortcuts.OWN_COLUMNS, "device"])) == ["device"]


def test_what_only_a_known_group_gives_away_is_no_shortcut():
    groups = np.repeat(np.arange(40), 10)
    labels = np.array(["NA", "poppy"])[np.random.default_rng(0).permutation(40) % 2][groups]
    width = 200 + np.random.default_rng(1).permutation(40)[groups]
    alone = images(labels, width=width)
    assert shortcut_findings(*alone, [], 0)
    assert shortcut_findings(*images(labels, groups.astype(str), width=width), [], 0) == []


def test_groups_widen_the_interval():
    # Ten devices: the width names the label of seven; few groups are weak evidence.
    groups = np.repeat(np.arange(10), 40)
    labels = np.array(["NA", "poppy"])[groups % 2][: len(groups)]
    width = np.where((groups % 2 == 0) ^ (groups >= 7), 200, 300)
    assert shortcut_findings(*images(labels, width=width), [], 0)
    assert shortcut_findings(*images(labels, groups.astype(str), width=width), [], 0) == []


def test_a_gain_must_take_away_a_tenth_of_the_mistakes():
    # 4,000 images, so that chance is small: 3 in 100 above a majority of one half, then 10.
    labels = np.array(["NA", "poppy"] * 2000)
    rng = np.random.default_rng(0)
    for share, expected in ((0.53, False), (0.6, True)):
        told = rng.random(4000) < share
        mode = np.where((labels == "NA") == told, "L", "RGB")
        assert bool(shortcut_findings(*images(labels, mode=mode), [], 0)) == expected


def test_the_interval_is_wider_for_more_facts(monkeypatch):
    told = np.random.default_rng(3).random(400) < 0.7
    rows, facts = images(mode=np.where((LABELS == "NA") == told, "L", "RGB"))
    widths = []
    monkeypatch.setattr(shortcuts, "widening", lambda number: widths.append(number) or 1.0)
    names = [f.reason.split(" names")[0] for f in shortcut_findings(rows, facts, [], 0)]
    assert "colour mode alone" in names
    assert set(widths) == {8}  # seven facts and all of them together
    monkeypatch.setattr(shortcuts, "widening", lambda _: 10.0)
    assert shortcut_findings(rows, facts, [], 0) == []


def test_few_images_give_no_finding():
    mode = np.array(["L", "RGB"] * 2)
    assert shortcut_findings(*images(LABELS[:4], mode=mode), [], 0) == []
    assert shortcut_findings(*images(np.full(50, "NA")), [], 0) == []
    rows, facts = images(LABELS[:50], width=1, height=1, file_bytes=1, format="PNG")
    assert shortcut_findings(rows, facts, [], 0) == []
    assert shortcut_findings(rows, facts[:0], [], 0) == []


def test_groups_too_few_to_leave_some_out_give_no_finding():
    # One group per class: each lies in the middle of its class, and all of them in one fold.
    facts = {"width": np.arange(5)}
    assert shortcut_findings(*images(np.array(list("abcde")), **facts), [], 0) == []


def test_images_without_facts_are_left_out():
    width = np.where(LABELS == "NA", 640, 800)
    rows, facts = images(width=width)
    # Half of the files could not be decoded, and the facts come in another order.
    facts = facts[:200].sample(frac=1, random_state=0)
    findings = shortcut_findings(rows, facts, [], 0)
    assert any("width alone names 100%" in finding.reason for finding in findings)


def test_same_seed_same_findings():
    case = images(mode=np.where(np.arange(400) % 3, LABELS, "L"))
    assert shortcut_findings(*case, [], 1) == shortcut_findings(*case, [], 1)


def test_clues_leave_out_what_never_varies():
    rows, facts = images(height=10, width=10)
    rows = rows.assign(device="", site=["a", "b"] * 200)
    assert list(clues_of(rows, facts, ["device", "site"])) == [
        "file size alone",
        "bytes per pixel alone",
        "format alone",
        "all facts of the file together",
        "column 'site' alone",
    ]
    facts = facts.assign(file_bytes=5)
    assert list(clues_of(rows, facts, [])) == ["format alone"]


def test_encode_by_hand():
    assert encode(pd.Series(["10", "", "9", "1e999", "10"])).tolist() == [
        [1.0], [-1.0], [0.0], [2.0], [1.0]
    ]  # fmt: skip
    assert encode(pd.Series([7, 5, 7])).tolist() == [[1.0], [0.0], [1.0]]
    assert encode(pd.Series(["b", "", "b"])).tolist() == [[0, 1], [1, 0], [0, 1]]
    fifty = pd.Series([f"site {number}" for number in range(50)])
    assert encode(fifty).shape == (50, 50)
    assert encode(pd.concat([fifty, pd.Series(["one more"])])).shape == (51, 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=30))
def test_encoded_numbers_keep_their_order(numbers):
    ranks = encode(pd.Series(numbers))[:, 0]
    assert np.isfinite(ranks).all()
    for one, rank in zip(numbers, ranks, strict=True):
        assert rank == len({other for other in numbers if other < one})


def test_a_tree_never_sees_the_images_that_it_names():
    # The clue is the image itself; every other image has the other class of its neighbour.
    targets = np.arange(100) % 2
    folds = np.where(np.arange(100) < 50, "0", "1")
    clue = np.arange(100.0)[:, None]
    swapped = targets.copy()
    swapped[:50] = 1 - swapped[:50]
    first, second = name_unseen(clue, targets, folds), name_unseen(clue, swapped, folds)
    # Other targets in fold 0 change what is said of fold 1 alone.
    assert np.array_equal(first[:50], second[:50])
