import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.config import preset_config, validate_config
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError
from cvpipe.evaluation.planning import expect
from cvpipe.runs import Run
from cvpipe.sections import SplitSection
from cvpipe.stages import split as split_stage
from cvpipe.stages.audit import scan_and_hash
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.split import (
    check_folds,
    check_split,
    check_split_columns,
    describe_split,
    divide,
    fold_column,
    keep_together,
    rows_of_split,
    run_split,
    times_of,
)

LABELS = ["0", "NA", "poppy"]


def make_job(tmp_path, **changes):
    raw = {**preset_config("a", "photos", "folders", "quick"), **changes}
    return Job(validate_config(raw), tmp_path, Run(tmp_path / "run"), Nobody())


def rows_of(num_per_class=20, images_per_group=1):
    """Make the rows of audited images, sorted by `image_id`."""
    rows = [
        (f"{label}/{n:02}.jpg", label, f"{label}-{n // images_per_group}", f"sha {label}{n}", "x")
        for label in LABELS
        for n in range(num_per_class)
    ]
    columns = ["image_id", "label", "group", "sha256", "camera"]
    return pd.DataFrame(rows, columns=columns, dtype=str)


def manifest_of(*rows):
    """Make a manifest of (label, group, split)."""
    table = pd.DataFrame(rows, columns=["label", "group", "split"], dtype=str)
    return table.assign(image_id=[f"{n}.jpg" for n in range(len(rows))])


def test_split_is_stored_and_read_back(tmp_path):
    job, rows = make_job(tmp_path, split={"val_fraction": 0.3, "test_fraction": 0.1}), rows_of()
    run_split(job, rows)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == LABELS
    manifest = job.run.manifest()
    assert list(manifest) == [*rows, "split", "careless"]
    pd.testing.assert_frame_equal(manifest[list(rows)], rows)
    counts = manifest.groupby(["label", "split"]).size()
    for label in LABELS:
        assert counts[label].to_dict() == {"train": 12, "val": 6, "test": 2}
    parts = [rows_of_split(job, name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [36, 18, 6]
    for part, name in zip(parts, ("train", "val", "test"), strict=True):
        assert set(part["split"]) == {name}
        assert part.index.tolist() == list(range(len(part)))
        assert part["image_id"].is_monotonic_increasing
    assert sorted(pd.concat(parts)["image_id"]) == rows["image_id"].tolist()
    assert "split" in job.run.timings()


def test_groups_stay_together(tmp_path):
    job = make_job(tmp_path)
    run_split(job, rows_of(images_per_group=2))
    assert (job.run.manifest().groupby("group")["split"].nunique() == 1).all()


def test_seed_decides(tmp_path):
    splits = []
    for number, seed in enumerate((0, 0, 1)):
        job = make_job(tmp_path / str(number), seed=seed)
        run_split(job, rows_of())
        splits.append(job.run.manifest()["split"].tolist())
    assert splits[0] == splits[1] != splits[2]


def test_class_order_is_that_of_the_targets(tmp_path, monkeypatch):
    seen = []

    def spy(targets, groups, fractions, key):
        seen.append((targets.tolist(), fractions))
        return assign_splits(targets, groups, fractions, key)

    monkeypatch.setattr(split_stage, "assign_splits", spy)
    rows = rows_of().iloc[::-1]
    rows = rows.sort_values("image_id").reset_index(drop=True)
    run_split(make_job(tmp_path, split={"val_fraction": 0.25, "test_fraction": 0.25}), rows)
    targets, fractions = seen[0]
    assert targets == [LABELS.index(label) for label in rows["label"]]
    assert fractions == {"train": 0.5, "val": 0.25, "test": 0.25}


def test_nothing_is_stored_when_a_class_is_missing_from_a_split(tmp_path):
    job, rows = make_job(tmp_path), rows_of(images_per_group=10)  # two groups for three splits
    with pytest.raises(InputError, match="no image of class '0' came into"):
        run_split(job, rows)
    assert not job.run.manifest_path.exists()
    assert not job.run.classes_path.exists()


@pytest.mark.parametrize("missing", ["train", "val", "test"])
def test_class_missing_from_a_split(missing):
    present = [s for s in ("train", "val", "test") if s != missing]
    manifest = manifest_of(
        *[("a", f"a{n}", s) for n, s in enumerate(("train", "train", "val", "test"))],
        *[("NA", f"n{s}", s) for s in present],
        ("NA", f"n{present[0]}", present[0]),
    )
    with pytest.raises(InputError) as caught:
        check_split(manifest)
    assert str(caught.value) == (
        f"no image of class 'NA' came into {missing}: it has 3 image(s) in 2 group(s), and a "
        "group is never cut. Add images of 'NA', or change split.val_fraction and "
        "split.test_fraction."
    )


def test_split_without_any_image():
    with pytest.raises(InputError, match="no image of class 'a' came into test"):
        check_split(manifest_of(("a", "1", "train"), ("a", "2", "val")))


def test_a_class_of_which_train_has_one_group():
    """Its groups of 40, 2, 2, 2 and 2 images are enough in number, but not everywhere in train."""
    rows = [("NA", f"n{n}", split) for n, split in enumerate(["val", "val", "test", "test"])]
    rows += [("a", f"a{n}", split) for n, split in enumerate(["train", "train", "val", "test"])]
    with pytest.raises(InputError) as caught:
        check_split(manifest_of(*[("NA", "n", "train")] * 40, *rows))
    assert str(caught.value) == (
        "train has all its 40 image(s) of class 'NA' in 1 group, which is never cut, and 2 groups "
        "are needed to choose hyperparameters. Add images of other groups, or lower "
        "split.val_fraction and split.test_fraction."
    )
    check_split(manifest_of(*[("NA", "n", "train")] * 40, ("NA", "n9", "train"), *rows))


def test_cut_group_is_a_defect():
    rows = [("a", "0", "train"), ("a", "1", "train"), ("a", "2", "val"), ("a", "3", "test")]
    manifest = manifest_of(*rows)
    assert check_split(manifest) is manifest
    check_split(manifest_of(*rows, ("a", "1", "train")))
    with pytest.raises(RuntimeError, match="the split cut a group"):
        check_split(manifest_of(*rows, ("a", "1", "test")))


# Every division of the images.


def divided(rows, seed=0, **section):
    class_names = sorted(set(rows["label"]))
    targets = np.array([class_names.index(label) for label in rows["label"]])
    return divide(rows, targets, SplitSection(**section), seed)


def counts_of(manifest, division):
    """Count the images of each class in each part: `{"0": {"train": 12, …}, …}`."""
    return pd.crosstab(manifest[division], manifest["label"]).to_dict()


@pytest.mark.parametrize(
    ("section", "columns"),
    [
        ({}, ["split", "careless"]),
        ({"careless": False}, ["split"]),
        ({"protocol": "kfold"}, ["split", "careless", "fold"]),
        ({"protocol": "kfold", "careless": False}, ["split", "fold"]),
    ],
)
def test_columns_are_those_that_the_config_asks_for(section, columns):
    rows = rows_of()
    before = rows.copy()
    manifest = divided(rows, **section)
    assert list(manifest) == [*before, *columns]
    pd.testing.assert_frame_equal(manifest[list(before)], before)
    pd.testing.assert_frame_equal(rows, before)  # what is given is not changed


def test_no_division_changes_another():
    rows = rows_of(images_per_group=2)
    whole = divided(rows, protocol="kfold", careless=True)
    for protocol, careless in product(("holdout", "kfold"), (False, True)):
        manifest = divided(rows, protocol=protocol, careless=careless)
        pd.testing.assert_frame_equal(manifest, whole[list(manifest)])
    # The folds may change, what is drawn for the holdout may not.
    other_folds = divided(rows, protocol="kfold", num_folds=3)
    pd.testing.assert_frame_equal(other_folds.drop(columns="fold"), whole.drop(columns="fold"))


def test_every_division_has_a_stream_of_its_own():
    # Every image a group: both splits are drawn in the same way, but not with the same numbers.
    rows = rows_of()
    manifest = divided(rows.assign(group=rows["image_id"]))
    assert manifest["split"].tolist() != manifest["careless"].tolist()


def test_another_seed_gives_other_divisions():
    rows = rows_of(images_per_group=2)
    manifests = [divided(rows, seed, protocol="kfold") for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(manifests[0], manifests[1])
    for division in ("split", "careless", "fold"):
        assert manifests[0][division].tolist() != manifests[2][division].tolist()


def test_the_careless_split_cuts_groups_and_is_stratified():
    rows = rows_of(images_per_group=4)
    manifest = divided(rows, val_fraction=0.4, test_fraction=0.2)
    parts_per_group = manifest.groupby("group")["careless"].nunique()
    assert (parts_per_group > 1).sum() >= 8  # of 15 groups of 4 images
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    expected = {"train": 8, "val": 8, "test": 4}
    assert counts_of(manifest, "careless") == dict.fromkeys(LABELS, expected)


def test_class_missing_from_the_careless_split(monkeypatch):
    """Three images are enough, so this takes a division that is not ours."""

    def careless_test_without_a_class(targets, groups, fractions, key):
        split = assign_splits(targets, groups, fractions, key)
        if key == "0 careless":
            split[(targets == 1) & (split == "test")] = "val"
        return split

    monkeypatch.setattr(split_stage, "assign_splits", careless_test_without_a_class)
    with pytest.raises(InputError) as caught:
        divided(rows_of())
    assert str(caught.value) == (
        "no image of class 'NA' came into test of the careless split: it has 20 image(s). Add "
        "images of 'NA', or change split.val_fraction and split.test_fraction, or do without it: "
        "split.careless = false."
    )


# Columns whose values are never parted.


def by_site(num_sites=8, **columns):
    """Three classes, each at every site, in groups of two images."""
    rows = rows_of(num_per_class=3 * num_sites, images_per_group=1)
    sites = [f"site {number % num_sites}" for number in range(len(rows))]
    return rows.assign(site=sites, **columns)


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
def test_values_are_never_parted(protocol):
    rows = by_site()
    manifest = divided(rows, protocol=protocol, by=("site",), num_folds=3)
    divisions = ["split", "fold"] if protocol == "kfold" else ["split"]
    for division in divisions:
        assert (manifest.groupby("site")[division].nunique() == 1).all()
    assert manifest["group"].tolist() == [f"site={site}" for site in rows["site"]]
    # A careless person looks neither at groups nor at sites.
    assert (manifest.groupby("site")["careless"].nunique() > 1).all()
    assert (divided(rows).groupby("site")["split"].nunique() > 1).all()


def test_values_and_groups_are_joined():
    """Group 5 was seen at sites a and b, and device 2 photographed at b and c."""
    rows = pd.DataFrame(
        {
            "image_id": list("123456"),
            "group": ["5", "5", "6", "7", "8", "9"],
            "site": list("abbccd"),
            "device": ["1", "1", "2", "2", "3", "4"],
        }
    )
    joined = keep_together(rows, ("site", "device"))
    assert joined["group"].tolist() == ["device=1"] * 5 + ["device=4"]
    assert keep_together(rows, ()) is rows
    assert keep_together(rows, ("site",))["group"].tolist() == ["site=a"] * 3 + [
        "site=c",
        "site=c",
        "site=d",
    ]


def test_blanks_around_a_value_do_not_part_it():
    rows = by_site()
    rows["site"] += np.where(np.arange(len(rows)) % 5 < 2, " ", "")
    rows["site"] = np.where(np.arange(len(rows)) % 7 < 2, " ", "") + rows["site"]
    manifest = divided(rows, by=("site",))
    assert (manifest.groupby(rows["site"].str.strip())["split"].nunique() == 1).all()
    assert set(manifest["group"]) == {f"site=site {number}" for number in range(8)}
    pd.testing.assert_series_equal(manifest["site"], rows["site"])  # as it was given


def test_val_of_a_given_split_keeps_values_together():
    rows = by_site()
    rows["split"] = np.where(rows["site"] == "site 0", "test", "train")
    manifest = divided(rows, protocol="given", by=("site",))
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert (manifest.groupby("site")["split"].nunique() == 1).all()


def test_an_image_without_a_value():
    rows = by_site()
    rows.loc[[4, 7], "site"] = ["", " "]
    for use in (divided, lambda rows, by: check_split_columns(SplitSection(by=by), rows)):
        with pytest.raises(InputError) as caught:
            use(rows, by=("site",))
        assert str(caught.value) == (
            "split.by keeps the values of 'site' together, but 2 image(s) have none, first "
            "'0/04.jpg'; fill in the column, leave them out with data.exclude, or take 'site' out "
            "of split.by."
        )


def test_too_few_values():
    rows = by_site(num_sites=4)
    divided(rows, by=("site",))  # one for each part, and two for train
    rows.loc[rows["label"] == "NA", "site"] = np.tile(["site 0", "site 1", "site 2"], 4)
    with pytest.raises(InputError) as caught:
        divided(rows, by=("site",))
    assert str(caught.value) == (
        "split.by keeps the values of ['site'] together, and 4 of them that share no group are "
        "needed for each class, but the classes have {'0': 4, 'NA': 3, 'poppy': 4}; take a column "
        "out of split.by, or add images of other values."
    )


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"by": ("camra",)}, "by"),
        ({"protocol": "temporal", "time_column": "camra"}, "time_column"),
    ],
)
def test_a_column_that_the_table_lacks(section, key, tmp_path):
    with pytest.raises(InputError) as caught:
        run_split(make_job(tmp_path, split=section), rows_of())
    assert str(caught.value) == (
        f"split.{key} names the column 'camra', but the table of images has the columns "
        "['group', 'camera']; did you mean 'camera'?"
    )


# Time.


def timed(times, groups=None, labels=None):
    ids = [f"{number:02}.jpg" for number in range(len(times))]
    return pd.DataFrame(
        {
            "image_id": ids,
            "label": labels or ["a"] * len(ids),
            "group": groups or ids,
            "taken": [str(time) for time in times],
        }
    )


def divided_by_time(rows, **section):
    manifest = divided(rows, protocol="temporal", time_column="taken", **section)
    return manifest["split"].tolist()


def test_the_newest_images_are_test():
    times = [9, 0, 8, 1, 7, 2, 6, 3, 5, 4]
    expected = ["train" if time < 6 else "val" if time < 8 else "test" for time in times]
    assert divided_by_time(timed(times)) == expected
    # As text, 10 would come before 2.
    ten = [100 * time for time in times]
    assert divided_by_time(timed(ten)) == expected
    days = [f"2024-02-{25 + t}" if t < 5 else f"2024-03-0{t}T10:00:00" for t in times]
    assert divided_by_time(timed(days)) == expected
    # The seed has no say.
    assert (
        divided(timed(times), 5, protocol="temporal", time_column="taken")["split"].tolist()
        == expected
    )


def test_a_group_goes_where_its_newest_image_belongs():
    groups = ["g" if time in (1, 6) else "h" if time in (0, 9) else str(time) for time in range(10)]
    split = divided_by_time(timed(range(10), groups))
    assert split == ["test", "val", *["train"] * 4, "val", "val", "test", "test"]


def test_images_of_the_same_time_stay_together():
    # Middles of the years: 0.25, 0.6, 0.7 and 0.9 of the images.
    years = [2020] * 10 + [2021] * 4 + [2022] * 2 + [2023] * 4
    split = divided_by_time(timed(years), val_fraction=0.3, careless=False)
    assert split == ["train"] * 10 + ["val"] * 6 + ["test"] * 4


def test_times_with_and_without_a_zone():
    rows = timed(["2024-01-01T12:00+02:00", "2024-01-01T11:00", "2024-01-01T10:30Z"])
    assert np.argsort(times_of(rows, "taken")).tolist() == [0, 2, 1]
    assert times_of(timed(["1.5", "-2", "1e3"]), "taken").tolist() == [1.5, -2.0, 1000.0]


@pytest.mark.parametrize(
    ("times", "bad"),
    [
        (["2024-01-01", "yesterday", "2024-01-02"], 1),
        (["2024-01-01", "2024-01-02", ""], 2),
        (["1", "2", "2024-01-02"], 2),
        (["2024-01-01", "2024-01-02", "1"], 2),
        (["1", "nan", "2"], 1),
        (["1", "2", "inf"], 2),
        (["2024-13-01", "2024-01-01", "2024-01-02"], 0),
    ],
)
def test_a_time_that_cannot_be_read(times, bad):
    section = SplitSection(protocol="temporal", time_column="taken")
    with pytest.raises(InputError) as caught:
        check_split_columns(section, timed(times))
    assert str(caught.value) == (
        f"image '{bad:02}.jpg' has {times[bad]!r} in the column 'taken'; split.protocol = "
        "'temporal' expects an ISO date or time there, such as 2024-05-31 or 2024-05-31T10:00, or "
        "a number, of one kind in all rows. Mend the table, or leave the image out with "
        "data.exclude."
    )
    with pytest.raises(InputError) as again:
        divided_by_time(timed(times))
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"by": ["site"]}, r"but 1 image\(s\) have none, first '1.png'"),
        ({"protocol": "temporal", "time_column": "taken"}, "'1.png' has 'sometime' in the column"),
    ],
)
def test_columns_are_read_before_any_image_is(tmp_path, split, message):
    """The files are no images, and still the message is about the table."""
    rows = [(f"{number}.png", "ab"[number % 2], "s", "2024-05-31") for number in range(4)]
    table = pd.DataFrame(rows, columns=["path", "label", "site", "taken"])
    table.loc[1, ["site", "taken"]] = [" ", "sometime"]
    table.to_csv(tmp_path / "t.csv", index=False)
    for name in table["path"]:
        (tmp_path / name).write_bytes(b"")
    raw = preset_config("a", str(tmp_path), "t.csv", "quick")
    scan_and_hash(tmp_path, validate_config(raw))
    with pytest.raises(InputError, match=message):
        scan_and_hash(tmp_path, validate_config({**raw, "split": split}))


def test_a_class_that_is_not_there_at_all_times():
    labels = ["a", "b"] * 4 + ["a", "a"]
    with pytest.raises(InputError, match="no image of class 'b' came into test: it has 4 image"):
        divided_by_time(timed(range(10), labels=labels))


# What can be expected.


def test_what_can_be_expected_is_said_and_stored(tmp_path):
    said = []

    class Listener(Nobody):
        def say(self, text):
            said.append(text)

    job = make_job(tmp_path, split={"protocol": "kfold", "num_folds": 5})
    job = Job(job.config, job.root, job.run, Listener())
    run_split(job, rows_of(images_per_group=2))
    manifest = job.run.manifest()
    sizes = manifest.loc[manifest["split"] == "test", "group"].value_counts().tolist()
    stored = job.run.expectations()
    assert stored == {"test": vars(expect(sizes)), "folds": vars(expect([2] * 30))}
    assert said[0] == ("split: at random by class, with groups and near-duplicates kept together")
    assert said[1].startswith("  test: 12 images in 6 groups; at 90 % accuracy")
    assert said[2].startswith("  warning: the test images are too few")
    assert said[3].startswith("  folds: 60 images in 30 groups;")
    assert [line.startswith("  warning") for line in said] == [False, False, True, False, True]


def test_a_run_without_stored_expectations(tmp_path):
    assert Run(tmp_path).expectations() == {}


TOGETHER = "with groups, near-duplicates and images of the same 'camera' kept together"


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({}, "at random by class, with groups and near-duplicates kept together"),
        ({"protocol": "kfold", "by": ("camera",)}, f"at random by class, {TOGETHER}"),
        (
            {"protocol": "temporal", "time_column": "taken", "by": ("camera",)},
            "in the order of 'taken', train before val before test, " + TOGETHER + " where their "
            "newest image belongs",
        ),
        ({"protocol": "given", "by": ("camera",)}, "as they came"),
    ],
)
def test_the_split_in_words(section, words):
    assert describe_split(SplitSection(**section), val_is_drawn=False) == words


def test_a_val_that_was_drawn_in_words():
    section = SplitSection(protocol="given", by=("camera",))
    assert describe_split(section, val_is_drawn=True) == (
        f"as they came, val taken from train at random by class, {TOGETHER}"
    )


# A split that the images come with.


def given_split(groups_of_na, **section):
    """Two classes with a split; of class NA the train groups have these sizes."""
    rows = [("a", f"a{number}", "train") for number in range(8)]
    rows += [("NA", f"n{n}", "train") for n, size in enumerate(groups_of_na) for _ in range(size)]
    rows += [("a", "at", "test"), ("NA", "nt", "test")]
    return divided(manifest_of(*rows), protocol="given", careless=False, **section)


def test_the_split_that_was_completed_is_kept_beside_the_one_in_use():
    manifest = given_split([1, 1, 1])
    assert set(manifest["split"]) == {"train", "val", "test"}
    assert manifest["split_given"].eq("test").equals(manifest["split"].eq("test"))
    assert set(manifest["split_given"]) == {"train", "test"}
    complete = divided(manifest.drop(columns="split_given"), protocol="given", careless=False)
    assert "split_given" not in complete


@pytest.mark.parametrize("sizes", [(), (4,), (2, 2)])
def test_a_given_train_too_small_to_take_val_from(sizes):
    with pytest.raises(InputError) as caught:
        given_split(sizes)
    assert str(caught.value) == (
        "the split that the images come with has no val, which is therefore taken from train, but "
        f"train has {len(sizes)} group(s) of class 'NA', and 3 are needed: a group is never cut. "
        "Put more images of 'NA' into train, or use split.protocol = 'holdout'."
    )


def test_a_given_split_with_one_train_group_of_a_class():
    rows = [("a", f"a{n}", s) for n, s in enumerate(["train", "train", "val", "test"])]
    rows += [("NA", f"n{s}", s) for s in ("train", "train", "val", "test")]
    with pytest.raises(InputError) as caught:
        divided(manifest_of(*rows), protocol="given", careless=False)
    assert str(caught.value) == (
        "train has all its 2 image(s) of class 'NA' in 1 group, which is never cut, and 2 groups "
        "are needed to choose hyperparameters. Put images of other groups there, or use "
        "split.protocol = 'holdout'."
    )


# Folds.


@st.composite
def classes_of_groups(draw):
    """Rows of two or three classes, each of at least six groups of up to five images."""
    sizes = st.lists(st.integers(1, 5), min_size=6, max_size=12)
    classes = draw(st.lists(sizes, min_size=2, max_size=3))
    rows = [
        (label, f"{label}-{group}")
        for label, sizes in zip(LABELS, classes, strict=False)
        for group, size in enumerate(sizes)
        for _ in range(size)
    ]
    table = pd.DataFrame(rows, columns=["label", "group"], dtype=str)
    return table.assign(image_id=[f"{number:03}.jpg" for number in range(len(table))])


@settings(max_examples=60, deadline=None)
@given(classes_of_groups(), st.integers(2, 8), st.integers(0, 1000))
def test_folds(rows, num_folds, seed):
    # Large val and test, because a part without a class is refused before the folds are drawn.
    large = {"val_fraction": 0.3, "test_fraction": 0.3}
    try:
        manifest = divided(rows, seed, protocol="kfold", num_folds=num_folds, **large)
    except InputError as error:
        few_groups = ("lower split.num_folds", "are needed to choose hyperparameters")
        if any(words in str(error) for words in few_groups):  # see the tests for them
            return
        raise
    assert manifest["image_id"].tolist() == rows["image_id"].tolist()
    assert manifest["fold"].isin([str(fold) for fold in range(num_folds)]).all()
    assert (manifest.groupby("group")["fold"].nunique() == 1).all()
    for _, of_class in manifest.groupby("label"):
        counts = of_class["fold"].value_counts()
        largest_group = of_class["group"].value_counts().max()
        for fold in range(num_folds):
            goal = len(of_class) / num_folds
            assert abs(counts.get(str(fold), 0) - goal) <= largest_group
            others = of_class[of_class["fold"] != str(fold)]
            assert others["group"].nunique() >= 2


def test_repeats_are_other_folds_of_the_same_images():
    rows = rows_of(images_per_group=2)
    once = divided(rows, protocol="kfold")
    manifest = divided(rows, protocol="kfold", num_repeats=3)
    assert list(manifest) == [*once, "fold_r1", "fold_r2"]
    pd.testing.assert_frame_equal(manifest[list(once)], once)
    columns = [fold_column(repeat) for repeat in range(3)]
    assert columns == ["fold", "fold_r1", "fold_r2"]
    assert len({tuple(manifest[column]) for column in columns}) == 3
    for column in columns:
        assert (manifest.groupby("group")[column].nunique() == 1).all()
        assert counts_of(manifest, column) == {
            label: {str(fold): 4 for fold in range(5)} for label in LABELS
        }


def test_folds_are_even_and_come_back_as_text(tmp_path):
    job = make_job(tmp_path, split={"protocol": "kfold", "num_folds": 10})
    run_split(job, rows_of(images_per_group=2))
    manifest = job.run.manifest()
    assert list(manifest)[-3:] == ["split", "careless", "fold"]
    assert counts_of(manifest, "fold") == {
        label: {str(fold): 2 for fold in range(10)} for label in LABELS
    }


def folds_of(*rows):
    """Make a manifest of (label, group, fold)."""
    return manifest_of(*rows).rename(columns={"split": "fold"})


def test_class_that_is_nearly_gone_without_a_fold():
    others = [("a", "1", "0"), ("a", "2", "1"), ("a", "3", "2")]
    manifest = folds_of(*others, ("NA", "4", "1"), ("NA", "5", "0"), ("NA", "6", "2"))
    assert check_folds(manifest, 3) is manifest
    with pytest.raises(InputError) as caught:
        check_folds(folds_of(*others, ("NA", "4", "1"), ("NA", "5", "1"), ("NA", "6", "2")), 3)
    assert str(caught.value) == (
        "without one of the 3 folds class 'NA' has 1 group(s) left, and 2 are needed: it has 3 "
        "image(s) in 3 group(s), and a group is never cut. Add images of 'NA', lower "
        "split.num_folds, or use split.protocol = 'holdout'."
    )


def test_more_folds_than_groups_can_fill():
    rows = [(label, f"{label}{number}", str(number)) for label in "ab" for number in range(4)]
    with pytest.raises(InputError) as caught:
        check_folds(folds_of(*rows), 5)
    assert str(caught.value) == (
        "only 4 of 5 folds got an image: there are 8 group(s), and a group is never cut. Add "
        "images, lower split.num_folds, or use split.protocol = 'holdout'."
    )


def test_cut_group_of_a_fold_is_a_defect():
    rows = [("a", "1", "0"), ("a", "1", "1"), ("a", "2", "0"), ("a", "3", "1"), ("a", "4", "1")]
    with pytest.raises(RuntimeError, match="the fold cut a group"):
        check_folds(folds_of(*rows, ("a", "5", "0")), 2)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ("split", "came into val:"),
        ("careless", "came into val of the careless split:"),
        ("fold", "of 5 folds got an image:"),
        ("fold_r1", "of 5 folds got an image:"),
    ],
)
def test_every_division_is_checked(division, message, monkeypatch):
    rows = rows_of(images_per_group=2)

    def all_into_the_first(targets, groups, fractions, key):
        if key == f"0 {division}":
            return np.full(len(targets), next(iter(fractions)), dtype=object)
        return assign_splits(targets, groups, fractions, key)

    monkeypatch.setattr(split_stage, "assign_splits", all_into_the_first)
    with pytest.raises(InputError, match=message):
        divided(rows, protocol="kfold", num_repeats=2)
