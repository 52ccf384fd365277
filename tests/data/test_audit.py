import io
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image

from cvpipe.data.audit import (
    FACT_COLUMNS,
    FINDING_COLUMNS,
    MIN_GROUPS_PER_CLASS,
    Audit,
    audit_images,
    class_findings,
    cluster_findings,
    findings_table,
    group_identical,
    hash_file,
    identical_images,
    repeated_rows,
    unlabelled_rows,
    wrong_suffixes,
)
from cvpipe.data.duplicates import Clusters, Recut
from cvpipe.data.manifest import scan_images

THREADS = [1, 2, 8]


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode(image: Image.Image, file_format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def write(root, files: dict) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encode(content, "PNG"))


@pytest.fixture
def root(tmp_path):
    """Two classes, `0` and `NA`, with six sound images each."""
    for number in range(6):
        for place, label in enumerate(["0", "NA"]):
            write(tmp_path, {f"{label}/{number}.png": noise(number * 2 + place)})
    return tmp_path


def audit_of(root, labels="folders", threads=2, drop_unreadable=False, **options) -> Audit:
    return audit_images(scan_images(root, labels), root, threads, drop_unreadable, **options)


def findings_of(audit: Audit) -> list[tuple]:
    return list(audit.findings.itertuples(index=False, name=None))


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=str)


def test_sound_images(root):
    audit = audit_of(root)
    assert list(audit.findings) == FINDING_COLUMNS
    assert findings_of(audit) == []
    assert audit.errors.empty
    pd.testing.assert_frame_equal(audit.rows, scan_images(root, "folders"))
    assert list(audit.facts) == FACT_COLUMNS
    assert audit.facts["image_id"].tolist() == audit.rows["image_id"].tolist()
    first = audit.facts.iloc[0]
    assert (first["width"], first["height"], first["format"], first["mode"]) == (
        12,
        9,
        "PNG",
        "RGB",
    )
    assert first["sha256"] == hash_file(root / "0/0.png")
    assert first["file_bytes"] == (root / "0/0.png").stat().st_size


# One kind of finding at a time: which image, how bad, why.

PHOTO = Image.fromarray(skimage.data.chelsea()).resize((60, 40))


@pytest.mark.parametrize(
    ("name", "content", "finding", "reason"),
    [
        ("0/cut.jpg", encode(PHOTO, "JPEG")[:-200], "unreadable", "decoding fails: image file is"),
        ("0/cut.png", encode(PHOTO, "PNG")[:-200], "unreadable", "decoding fails: "),
        ("0/empty.jpg", b"", "empty_file", "the file is empty"),
        ("0/text.jpg", b"hello", "not_an_image", "its content is none of BMP, GIF, JPEG, PNG, "),
        ("0/float.tif", encode(Image.new("F", (2, 2)), "TIFF"), "unreadable", "decoding fails: im"),
    ],
)
@pytest.mark.parametrize("drop_unreadable", [False, True])
def test_unreadable_images(root, name, content, finding, reason, drop_unreadable):
    write(root, {name: content})
    audit = audit_of(root, drop_unreadable=drop_unreadable)
    [(image_id, kind, severity, told)] = findings_of(audit)
    assert (image_id, kind) == (name, finding)
    assert told.startswith(reason)
    assert name not in audit.facts["image_id"].tolist()
    if drop_unreadable:
        assert severity == "warning"
        assert told.endswith("; left out")
        assert len(audit.rows) == 12
        assert audit.errors.empty
    else:
        assert severity == "error"
        assert "left out" not in told
        assert len(audit.rows) == 13
        assert len(audit.errors) == 1


@pytest.mark.parametrize("drop_unreadable", [False, True])
def test_missing_files(root, drop_unreadable):
    lines = [f"{label}/{number}.png,{label}" for label in ("0", "NA") for number in range(6)]
    (root / "0" / "folder.png").mkdir()
    table = ["path,label", *lines, "0/gone.png,0", "gone/1.png,0", "0/0.png/1.png,0"]
    (root / "labels.csv").write_text("\n".join([*table, "0/folder.png,0"]))
    audit = audit_of(root, "labels.csv", drop_unreadable=drop_unreadable)
    end = "; left out" if drop_unreadable else ""
    severity = "warning" if drop_unreadable else "error"
    assert findings_of(audit) == [
        ("0/gone.png", "missing_file", severity, f"there is no such file{end}"),
        ("gone/1.png", "missing_file", severity, f"there is no such file{end}"),
        (
            "0/0.png/1.png",
            "unreadable",
            severity,
            f"the file cannot be opened: Not a directory{end}",
        ),
        ("0/folder.png", "unreadable", severity, f"the file cannot be opened: Is a directory{end}"),
    ]
    assert len(audit.rows) == (12 if drop_unreadable else 16)


def test_a_file_that_may_not_be_read(root, monkeypatch):
    # A link to itself cannot be opened by anyone, not even by the superuser.
    (root / "0" / "loop.png").symlink_to("loop.png")
    [(image_id, finding, severity, reason)] = findings_of(audit_of(root))
    assert (image_id, finding, severity) == ("0/loop.png", "unreadable", "error")
    assert reason.startswith("the file cannot be opened: Too many levels of symbolic links")


def test_wrong_suffix(root):
    write(root, {"0/six.jpg": noise(100), "0/seven.jpeg": encode(noise(101), "JPEG")})
    write(root, {"0/eight.tif": encode(noise(102), "TIFF"), "0/nine.gif": encode(PHOTO, "WEBP")})
    audit = audit_of(root)
    assert findings_of(audit) == [
        ("0/nine.gif", "wrong_suffix", "warning", "the name says GIF, but the content is WEBP"),
        ("0/six.jpg", "wrong_suffix", "warning", "the name says JPEG, but the content is PNG"),
    ]
    assert len(audit.rows) == 16


def test_a_name_without_a_known_suffix():
    facts = frame(image_id=["a.dat", "b", "c.PNG"], format=["PNG", "JPEG", "PNG"])
    assert wrong_suffixes(facts) == [
        ("a.dat", "wrong_suffix", "warning", "the name says nothing, but the content is PNG"),
        ("b", "wrong_suffix", "warning", "the name says nothing, but the content is JPEG"),
    ]


def test_identical_bytes_and_pixels_stay_together(root):
    write(root, {"0/same.png": noise(4), "0/same.bmp": encode(noise(4), "BMP")})
    audit = audit_of(root)
    # noise(4) is 0/2.png; the first one by name is the one that the others repeat.
    assert [f for f in findings_of(audit) if f[0]] == [
        (
            "0/same.bmp",
            "identical_images",
            "warning",
            "the same pixels as '0/2.png'; both belong in one split",
        ),
        (
            "0/same.png",
            "identical_images",
            "warning",
            "the same bytes as '0/2.png'; both belong in one split",
        ),
    ]
    group = dict(zip(audit.rows["image_id"], audit.rows["group"], strict=True))
    assert group["0/same.bmp"] == group["0/same.png"] == group["0/2.png"] == "0/2.png"
    assert len(set(group.values())) == 12


def test_identical_images_under_two_labels_are_an_error(root):
    write(root, {"NA/same.png": noise(4), "NA/same.bmp": encode(noise(4), "BMP")})
    expected = "the same {} as '0/2.png', but labelled 'NA' instead of '0'"
    assert [f for f in findings_of(audit_of(root)) if f[0]] == [
        ("NA/same.bmp", "label_conflict", "error", expected.format("pixels")),
        ("NA/same.png", "label_conflict", "error", expected.format("bytes")),
    ]


def test_a_left_out_image_is_no_twin():
    facts = frame(image_id=["a", "b"], pixels_sha256=["p", "p"], sha256=["1", "1"])
    assert identical_images(frame(image_id=["b"], label=["0"]), facts) == []


def test_groups_are_joined_through_identical_images():
    # 4 and 5 cannot be decoded, which does not make them identical.
    rows = frame(image_id=list("12345"), label=["x"] * 5, group=["A", "B", "B", "C", "D"])
    facts = frame(image_id=["1", "2", "3"], pixels_sha256=["p", "p", "q"])
    joined = group_identical(rows, facts)
    assert joined["group"].tolist() == ["A", "A", "A", "C", "D"]
    assert rows["group"].tolist() == ["A", "B", "B", "C", "D"]  # the argument stays as it was


def test_repeated_rows(root):
    lines = [f"{label}/{number}.png,{label}" for label in ("0", "NA") for number in range(6)]
    repeated = ["0/0.png,0", "./0/0.png,0", "0/1.png,NA", "0/1.png,poppy"]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines, *repeated]))
    audit = audit_of(root, "labels.csv")
    assert findings_of(audit) == [
        ("0/1.png", "label_conflict", "error", "listed under 3 labels: '0', 'NA', 'poppy'"),
        ("0/0.png", "repeated_row", "error", "listed 3 times; keep one row"),
    ]
    assert audit.rows["image_id"].tolist() == [line.split(",")[0] for line in lines]


def test_repeated_rows_name_each_image_once():
    rows = frame(image_id=["a", "b", "a", "c", "c"], label=["x", "x", "x", "x", "y"])
    assert repeated_rows(rows) == [
        ("a", "repeated_row", "error", "listed 2 times; keep one row"),
        ("c", "label_conflict", "error", "listed under 2 labels: 'x', 'y'"),
    ]


def test_rows_without_a_label():
    rows = frame(image_id=["a", "b", "c"], label=["", "x", " \t"])
    reason = ("missing_label", "error", "its label is empty")
    assert unlabelled_rows(rows) == [("a", *reason), ("c", *reason)]


# Classes.


def test_a_single_class(root):
    rows = scan_images(root, "folders")
    audit = audit_images(rows[rows["label"] == "NA"], root, 1, False)
    assert findings_of(audit) == [
        ("", "single_class", "error", "at least two classes are needed; found: 'NA'")
    ]


def test_a_class_of_one_image(root):
    write(root, {"poppy/1.png": noise(100)})
    assert findings_of(audit_of(root)) == [
        (
            "",
            "tiny_class",
            "error",
            "class 'poppy' has 1 image(s) in 1 group(s); at least 5 groups are needed to fill "
            "train, val and test",
        )
    ]


def test_identical_images_count_once_for_a_class(root):
    # Six files, but only four different pictures.
    write(root, {f"poppy/{n}.png": noise(100 + max(n, 2)) for n in range(6)})
    errors = audit_of(root).errors
    assert errors["reason"].tolist() == [
        "class 'poppy' has 6 image(s) in 4 group(s); at least 5 groups are needed to fill train, "
        "val and test"
    ]


def test_the_smallest_class_that_is_large_enough():
    def rows(num_groups):
        groups = [f"g{number}" for number in range(num_groups)]
        return frame(
            label=["a"] * num_groups + ["b"] * 9, group=groups + [f"h{n}" for n in range(9)]
        )

    assert class_findings(rows(MIN_GROUPS_PER_CLASS)) == []
    assert [f[1] for f in class_findings(rows(MIN_GROUPS_PER_CLASS - 1))] == ["tiny_class"]


def test_nothing_readable(tmp_path):
    write(tmp_path, {"a/1.png": b"", "b/1.png": b""})
    audit = audit_of(tmp_path, drop_unreadable=True)
    assert audit.rows.empty
    assert list(audit.facts) == FACT_COLUMNS
    assert findings_of(audit) == [
        ("", "empty_class", "error", "class 'a' has no image that can be used"),
        ("", "empty_class", "error", "class 'b' has no image that can be used"),
        ("", "single_class", "error", "at least two classes are needed; found: none"),
        ("a/1.png", "empty_file", "warning", "the file is empty; left out"),
        ("b/1.png", "empty_file", "warning", "the file is empty; left out"),
    ]


def test_a_class_that_is_left_out_as_a_whole(root):
    write(root, {f"poppy/{number}.png": b"" for number in range(6)})
    audit = audit_of(root, drop_unreadable=True)
    # Each of its images is told, and that a class must not vanish this way.
    assert Counter(audit.findings["finding"]) == {"empty_file": 6, "empty_class": 1}
    assert set(audit.rows["label"]) == {"0", "NA"}


# All findings together.


def messy_rows(root, rng) -> pd.DataFrame:
    """List random files, many of them bad, some of them several times."""
    kinds = {
        "sound.png": lambda: noise(rng.integers(8)),  # few enough for twins
        "sound.bmp": lambda: encode(noise(rng.integers(8)), "BMP"),
        "wrong.jpg": lambda: noise(rng.integers(8)),
        "empty.png": lambda: b"",
        "text.gif": lambda: b"hello",
        "cut.png": lambda: encode(noise(1), "PNG")[:-40],
    }
    names = [f"{number}-{rng.choice(list(kinds))}" for number in range(30)]
    write(root, {name: kinds[name.split("-")[1]]() for name in names})
    listed = rng.choice([*names, "gone.png"], size=40).tolist()
    labels = rng.choice(["0", "NA", "poppy", ""], size=40, p=[0.4, 0.3, 0.2, 0.1])
    lines = [f"{name},{label}" for name, label in zip(listed, labels, strict=True)]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]))
    return scan_images(root, "labels.csv")


@pytest.mark.parametrize("seed", range(5))
def test_no_row_is_dropped_silently(tmp_path, seed):
    rows = messy_rows(tmp_path, np.random.default_rng(seed))
    counts = Counter(rows["image_id"])
    for drop_unreadable in (False, True):
        audit = audit_images(rows, tmp_path, 2, drop_unreadable)
        usable, findings = set(audit.rows["image_id"]), audit.findings
        told = findings.groupby("finding")["image_id"].agg(set).to_dict()
        unreadable = {
            image_id
            for kind in ("missing_file", "empty_file", "not_an_image", "unreadable")
            for image_id in told.get(kind, ())
        }
        assert len(audit.rows) == len(usable)
        assert usable == set(counts) - (unreadable if drop_unreadable else set())
        # What could be decoded has facts, what could not has a finding.
        assert set(audit.facts["image_id"]) == set(counts) - unreadable
        listed_twice = {image_id for image_id, count in counts.items() if count > 1}
        assert listed_twice <= told.get("repeated_row", set()) | told["label_conflict"]
        assert set(rows.loc[rows["label"] == "", "image_id"]) == told["missing_label"]


@pytest.mark.parametrize("threads", THREADS)
def test_the_number_of_threads_does_not_matter(tmp_path, threads):
    rows = messy_rows(tmp_path, np.random.default_rng(0))
    reference, other = (audit_images(rows, tmp_path, count, True) for count in (3, threads))
    for name in ("rows", "facts", "findings"):
        pd.testing.assert_frame_equal(getattr(other, name), getattr(reference, name))


def test_the_argument_stays_as_it_was(tmp_path):
    rows = messy_rows(tmp_path, np.random.default_rng(0))
    before = rows.copy()
    audit_images(rows, tmp_path, 2, True)
    pd.testing.assert_frame_equal(rows, before)


def test_progress_sees_every_image_once(root):
    seen = []

    def progress(items, total):
        for item in items:
            seen.append((item, total))
            yield item

    audit = audit_of(root, progress=progress)
    assert seen == [(image_id, 12) for image_id in audit.rows["image_id"]]


def test_findings_are_sorted_by_how_bad_they_are():
    findings = [
        ("c", "z", "note", "1"),
        ("b", "k", "warning", "2"),
        ("a", "k", "warning", "3"),
        ("a", "j", "warning", "4"),
        ("d", "x", "error", "5"),
    ]
    table = findings_table(findings)
    assert list(table) == FINDING_COLUMNS
    assert table["reason"].tolist() == ["5", "4", "3", "2", "1"]
    assert table.index.tolist() == [0, 1, 2, 3, 4]
    assert list(findings_table([])) == FINDING_COLUMNS
    assert Audit(table, table, table, table).errors["image_id"].tolist() == ["d"]


def test_hash_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "loop").symlink_to("loop")
    # The first example of the standard that defines the hash (FIPS 180-2, appendix B.1).
    assert hash_file(tmp_path / "a").startswith("ba7816bf8f01cfea")
    for name in ("missing", ".", "a/b", "loop"):
        assert hash_file(tmp_path / name) == ""


# Near-duplicates.


def photo_root(root):
    """Five different photos a class, and re-encoded copies of some of them."""
    names = ["chelsea", "coffee", "rocket", "astronaut", "camera"]
    names += ["coins", "page", "moon", "retina", "brick"]
    for number, name in enumerate(names):
        photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((200, 150))
        folder = root / ("a" if number < 5 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{name}.png")
    return root


def copy_as_jpeg(root, source, target):
    with Image.open(root / source) as image:
        image.resize((120, 90)).save(root / target, quality=85)


def test_different_photos_are_no_near_duplicates(tmp_path):
    audit = audit_of(photo_root(tmp_path))
    assert audit.findings.empty
    assert audit.rows["group"].tolist() == audit.rows["image_id"].tolist()
    assert audit.duplicates.query("threshold == 24")[["clusters", "largest"]].values.tolist() == [
        [10, 1]
    ]


def test_near_duplicates_share_a_group_and_are_told_once(tmp_path):
    root = photo_root(tmp_path)
    copy_as_jpeg(root, "a/chelsea.png", "a/small.jpg")
    copy_as_jpeg(root, "a/chelsea.png", "a/tiny.jpg")
    audit = audit_of(root)
    groups = dict(zip(audit.rows["image_id"], audit.rows["group"], strict=True))
    assert groups["a/small.jpg"] == groups["a/tiny.jpg"] == groups["a/chelsea.png"]
    assert len(set(groups.values())) == 10
    (finding,) = audit.findings.query("finding == 'near_duplicates'").itertuples()
    assert finding.severity == "warning"
    assert finding.reason.startswith(
        "3 of 12 images (25%) have a near-duplicate; they form 1 cluster(s), the largest of 3"
    )


def test_near_duplicates_with_two_labels_are_a_warning_in_one_group(tmp_path):
    root = photo_root(tmp_path)
    copy_as_jpeg(root, "a/chelsea.png", "b/cat.jpg")
    audit = audit_of(root)
    (finding,) = audit.findings.query("finding == 'near_duplicate_labels'").itertuples()
    assert (finding.image_id, finding.severity) == ("b/cat.jpg", "warning")
    assert "'a/chelsea.png', but labelled 'b' instead of 'a'" in finding.reason
    groups = dict(zip(audit.rows["image_id"], audit.rows["group"], strict=True))
    assert groups["b/cat.jpg"] == groups["a/chelsea.png"]


def test_identical_pixels_with_two_labels_are_told_as_the_error_alone(tmp_path):
    root = photo_root(tmp_path)
    shutil.copy(root / "a" / "chelsea.png", root / "b" / "cat.png")
    kinds = audit_of(root).findings["finding"].tolist()
    assert "label_conflict" in kinds
    assert "near_duplicate_labels" not in kinds


def test_a_given_group_joins_what_its_near_duplicates_join(tmp_path):
    root = photo_root(tmp_path)
    copy_as_jpeg(root, "a/chelsea.png", "a/small.jpg")
    rows = scan_images(root, "folders")
    patients = {"a/chelsea.png": "p1", "a/coffee.png": "p1", "a/small.jpg": "p2"}
    rows["group"] = [patients.get(image_id, image_id) for image_id in rows["image_id"]]
    audited = audit_images(rows, root, 1, drop_unreadable=False).rows
    groups = dict(zip(audited["image_id"], audited["group"], strict=True))
    assert groups["a/small.jpg"] == groups["a/coffee.png"] == "p1"


def test_look_alikes_that_are_cut_again_are_told():
    clusters = Clusters(
        ("x", "y"), pd.DataFrame(), recut=(Recut("x", 40, 3),), mixed=(), threshold=24
    )
    facts = pd.DataFrame({"image_id": ["x", "y"], "pixels_sha256": ["1", "2"]})
    assert cluster_findings(clusters, facts) == [
        (
            "x",
            "cluster_recut",
            "warning",
            "40 look-alikes chain into one cluster; it was cut into 3, so near-duplicates may "
            "stand in different splits",
        )
    ]
