import json

import pandas as pd
import pytest

from cvpipe.config import preset_config, validate_config
from cvpipe.data.splits import assign_splits
from cvpipe.errors import InputError
from cvpipe.runs import Run
from cvpipe.stages import split as split_stage
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.split import check_split, rows_of_split, run_split

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
    pd.testing.assert_frame_equal(manifest.drop(columns="split"), rows)
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
    with pytest.raises(RuntimeError, match="cut a group"):
        check_split(manifest_of(*rows, ("a", "1", "test")))
