import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe.config import SplitSection, preset_config, validate_config
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError
from cvpipe.runs import Run
from cvpipe.stages import split as split_stage
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.split import check_folds, check_split, divide, rows_of_split, run_split

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

    def spy(targets, groups, fractions, rng):
        seen.append((targets.tolist(), fractions))
        return assign_splits(targets, groups, fractions, rng)

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
        *[("a", f"a{s}", s) for s in ("train", "val", "test")],
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


def test_cut_group_is_a_defect():
    rows = [("a", "1", "train"), ("a", "2", "val"), ("a", "3", "test")]
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


# Three images of class `NA`, each in another group, whose companions draw the parts apart.
SCARCE = pd.DataFrame(
    {
        "image_id": [f"{number}.jpg" for number in range(9)],
        "label": ["NA"] * 3 + ["0"] * 6,
        "group": list("423340202"),
    }
)


def test_class_missing_from_the_careless_split():
    assert set(divided(SCARCE, careless=False)["split"]) == {"train", "val", "test"}
    with pytest.raises(InputError) as caught:
        divided(SCARCE)
    assert str(caught.value) == (
        "no image of class 'NA' came into test of the careless split: it has 3 image(s). Add "
        "images of 'NA', or change split.val_fraction and split.test_fraction, or do without it: "
        "split.careless = false."
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
        if "lower split.num_folds" in str(error):  # the groups are few: see the tests below
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
    ],
)
def test_every_division_is_checked(division, message, monkeypatch):
    rows = rows_of(images_per_group=2)

    def all_into_the_first(targets, groups, fractions, rng):
        alone = groups == rows["image_id"].tolist()
        drawn = "fold" if "train" not in fractions else "careless" if alone else "split"
        if drawn == division:
            return np.full(len(targets), next(iter(fractions)), dtype=object)
        return assign_splits(targets, groups, fractions, rng)

    monkeypatch.setattr(split_stage, "assign_splits", all_into_the_first)
    with pytest.raises(InputError, match=message):
        divided(rows, protocol="kfold")
