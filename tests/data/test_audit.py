import io
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image

from cvpipe.data.audit import (
    FACT_COLUMNS,
    MIN_GROUPS_PER_CLASS,
    Audit,
    audit_images,
    class_findings,
    cluster_findings,
    collection_findings,
    file_findings,
    group_clusters,
    group_patients,
    hash_file,
    identical_images,
    missing_in_split,
    repeated_rows,
    same_pixels,
    single_patient,
    split_leaks,
    unlabelled_rows,
)
from cvpipe.data.dicom import apply_window
from cvpipe.data.duplicates import NO_PAIRS, Clusters, Recut
from cvpipe.data.findings import FINDING_COLUMNS, KINDS, Finding
from cvpipe.data.images import DecodeRule, decode_image, hash_pixels, inspect_image
from cvpipe.data.manifest import scan_images
from cvpipe.data.thumbnails import grey_thumbnail
from tests.data.odd_files import dicom_of

THREADS = [1, 3, 8]


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 24, 3), dtype=np.uint8)
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


# What holds of all files together has tests of its own.
ABOUT_ALL = ["mixed_sizes", "mixed_channels"]


def findings_of(audit: Audit) -> list[tuple]:
    table = audit.findings[~audit.findings["finding"].isin(ABOUT_ALL)]
    assert table["action"].tolist() == [KINDS[kind].action for kind in table["finding"]]
    return list(table.drop(columns="action").itertuples(index=False, name=None))


def told(findings: list[Finding]) -> list[tuple]:
    return [(f.image_id, f.kind, f.severity, f.reason) for f in findings]


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
        24,
        18,
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
        ("0/cut.jpg", encode(PHOTO, "JPEG")[:-200], "truncated", "the file ends early: "),
        ("0/cut.png", encode(PHOTO, "PNG")[:-200], "truncated", "the file ends early: "),
        ("0/empty.jpg", b"", "empty_file", "the file is empty"),
        ("0/text.jpg", b"hello", "not_an_image", "its content is none of "),
        (
            "0/float.tif",
            encode(Image.new("F", (2, 2)), "TIFF"),
            "unreadable",
            "images of floating-point",
        ),
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
        (
            "0/folder.png",
            "unreadable",
            severity,
            f"the file cannot be opened: it is not a regular file{end}",
        ),
    ]
    assert len(audit.rows) == (12 if drop_unreadable else 16)


def test_a_file_that_may_not_be_read(root, monkeypatch):
    # A link to itself cannot be opened by anyone, not even by the superuser.
    (root / "0" / "loop.png").symlink_to("loop.png")
    [(image_id, finding, severity, reason)] = findings_of(audit_of(root))
    assert (image_id, finding, severity) == ("0/loop.png", "unreadable", "error")
    assert reason.startswith("the file cannot be opened: Too many levels of symbolic links")


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "0" / "pipe.png")
    (root / "0" / "device.png").symlink_to("/dev/zero")
    reason = ("unreadable", "error", "the file cannot be opened: it is not a regular file")
    names = ["0/device.png", "0/pipe.png"]
    assert findings_of(audit_of(root)) == [(name, *reason) for name in names]
    assert [hash_file(root / name) for name in names] == ["", ""]


def test_wrong_suffix(root):
    write(root, {"0/six.jpg": noise(100), "0/seven.jpeg": encode(noise(101), "JPEG")})
    write(root, {"0/eight.tif": encode(noise(102), "TIFF"), "0/nine.gif": encode(PHOTO, "WEBP")})
    audit = audit_of(root)
    assert findings_of(audit) == [
        ("0/nine.gif", "wrong_suffix", "warning", "the name says GIF, but the content is WEBP"),
        ("0/six.jpg", "wrong_suffix", "warning", "the name says JPEG, but the content is PNG"),
    ]
    assert len(audit.rows) == 16


def facts_of(image_id="a.png", **changes) -> pd.DataFrame:
    plain = {
        "image_id": image_id, "width": 64, "height": 48, "format": "PNG", "mode": "RGB",
        "num_pages": 1, "turned": False, "transparent": False, "largest_value": 0, "patient": "",
        "range_used": 1.0, "low": 0.0, "high": 0.0,
        "brightness": 0.5, "contrast": 0.2, "constant": False,
    }  # fmt: skip
    return pd.DataFrame([{**plain, **changes}])


# Each deserves its own finding and all that follow, the gravest first.
REMARKS = [
    ("wrong_suffix", {"format": "GIF"}, "the name says PNG, but the content is GIF"),
    ("tiny_image", {"width": 15}, "it has only 48 x 15 pixels (height x width)"),
    (
        "extreme_aspect",
        {"width": 241},
        "it has 48 x 241 pixels (height x width): one side is 5.0 times the other",
    ),
    (
        "constant_image",
        {"constant": True, "brightness": 0.2},
        "every pixel has the same colour, of the grey value 51",
    ),
    ("first_page", {"num_pages": 2}, "the first of 2 pages or frames is used"),
    (
        "turned_upright",
        {"turned": True},
        "turned as its EXIF orientation says; upright it has 48 x 64 pixels (height x width)",
    ),
    ("transparency", {"transparent": True}, "its see-through pixels are laid over white"),
    ("converted", {"mode": "CMYK"}, "its colour mode CMYK is converted to RGB"),
    ("sixteen_bit", {"largest_value": 4095}, "16 bits per value, the largest 4,095"),
]


@pytest.mark.parametrize(("kind", "changes", "reason"), REMARKS)
def test_each_remark_about_a_file(kind, changes, reason):
    (finding,) = file_findings(facts_of(**changes))
    assert finding == Finding("a.png", kind, reason, KINDS[kind].severity)


def test_of_several_remarks_about_a_file_the_gravest_is_told():
    for number, (kind, *_) in enumerate(REMARKS):
        changes = {}
        for _, later, _ in REMARKS[number:]:
            changes = {**later, **changes}
        (finding,) = file_findings(facts_of(**changes))
        assert finding.kind == kind


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 16, "height": 16},
        {"width": 240, "height": 48},
        {"contrast": 0.0},
        *[{"mode": mode} for mode in ("L", "I;16", "I;16B", "MONOCHROME2")],
        {"format": "JPEG", "image_id": "a.JPG"},
    ],
)
def test_usual_files_are_not_remarked(changes):
    assert file_findings(facts_of(**changes)) == []


def test_a_name_without_a_known_suffix():
    facts = pd.concat([facts_of("a.dat"), facts_of("b", format="JPEG"), facts_of("c.PNG")])
    assert [(f.image_id, f.reason) for f in file_findings(facts)] == [
        ("a.dat", "the name says nothing, but the content is PNG"),
        ("b", "the name says nothing, but the content is JPEG"),
    ]


def test_files_that_are_read_in_a_special_way(root):
    half = noise(50).convert("RGBA")
    half.putalpha(128)
    pages = io.BytesIO()
    noise(51).save(pages, "TIFF", save_all=True, append_images=[noise(52)])
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    PHOTO.save(turned, "JPEG", exif=exif)
    write(
        root,
        {
            "0/alpha.png": half,
            "0/cmyk.jpg": encode(PHOTO.convert("CMYK"), "JPEG"),
            "0/flat.png": Image.new("RGB", (20, 20), (9, 9, 9)),
            "0/long.png": PHOTO.resize((200, 20)),
            "0/pages.tif": pages.getvalue(),
            "0/small.png": PHOTO.resize((10, 20)),
            "0/turned.jpg": turned.getvalue(),
            "0/values.png": Image.fromarray(np.full((20, 20), 60_000, np.uint16)),
        },
    )
    assert {f[0]: f[1] for f in findings_of(audit_of(root)) if f[0]} == {
        "0/alpha.png": "transparency",
        "0/cmyk.jpg": "converted",
        "0/flat.png": "constant_image",
        "0/long.png": "extreme_aspect",
        "0/pages.tif": "first_page",
        "0/small.png": "tiny_image",
        "0/turned.jpg": "turned_upright",
        "0/values.png": "constant_image",  # graver than its 16 bits
    }


def test_little_contrast_is_not_one_colour(root):
    """What is lost in a grey thumbnail: equal brightness, sparse dots, faint noise."""
    colours = np.zeros((40, 40, 3), np.uint8)
    colours[:, :20], colours[:, 20:] = (255, 0, 0), (0, 130, 0)  # both have the grey value 76
    dots = np.zeros((900, 900, 3), np.uint8)
    dots[450, 450] = 9
    noisy = np.full((400, 400, 3), 128, np.uint8)
    noisy[::7, ::5] += 1
    pictures = {"colours": colours, "dots": dots, "noisy": noisy, "plain": colours[:, :20]}
    write(root, {f"0/{name}.png": Image.fromarray(p) for name, p in pictures.items()})
    audit = audit_of(root)
    told = audit.findings.query("finding == 'constant_image'")["image_id"].tolist()
    assert told == ["0/plain.png"]
    facts = audit.facts.set_index("image_id")
    assert (facts.loc[[f"0/{name}.png" for name in pictures], "contrast"] == 0).all()


# All files together.


def test_sizes_and_channels_are_told_once_with_counts():
    one, other = facts_of(), facts_of(width=640, height=480, mode="L")
    facts = pd.concat([one, one, one, other], ignore_index=True)
    assert told(collection_findings(facts, 65_535)) == [
        (
            "",
            "mixed_sizes",
            "info",
            "2 sizes (height x width) from 48 x 64 to 480 x 640; the most frequent, 48 x 64, has "
            "3 of 4 images",
        ),
        ("", "mixed_channels", "info", "1 images are stored in grey and 3 in colour"),
    ]
    for uniform in (one, other):
        assert collection_findings(pd.concat([uniform, uniform]), 65_535) == []


@pytest.mark.parametrize(
    ("largest", "white_level", "level_to_set"),
    [(4000, 65_535, 4095), (4096, 65_535, 8191), (32_767, 65_535, 32_767), (90, 4095, 255)],
)
def test_dark_sixteen_bit_images_are_told_with_the_level_to_set(largest, white_level, level_to_set):
    values = [12, largest, 0]
    facts = pd.concat([facts_of(largest_value=value) for value in values])
    assert told(collection_findings(facts, white_level)) == [
        (
            "",
            "dark_sixteen_bit",
            "warning",
            f"the largest value of 2 16-bit image(s) is {largest:,}, but {white_level:,} is shown "
            f"as white, so all are dark; set images.white_level = {level_to_set}",
        )
    ]


def test_sixteen_bit_images_that_reach_half_of_white_are_not_dark():
    one, other = facts_of(largest_value=32_768), facts_of(largest_value=100)
    assert collection_findings(pd.concat([one, other]), 65_535) == []
    assert collection_findings(facts_of(largest_value=0), 65_535) == []


def test_dicom_files_that_use_little_of_their_range_are_told_with_a_window_to_set():
    used = [(0.03, -100.0, 2000.0), (0.499, 0.0, 2100.0), (0.9, 10.0, 500.0)]
    flat = [facts_of(range_used=share, low=low, high=high) for share, low, high in used]
    # Files with a window do not count.
    facts = pd.concat([*flat, facts_of(), facts_of(), facts_of()])
    [(image_id, kind, severity, reason)] = told(collection_findings(facts, 65_535))
    assert (image_id, kind, severity) == ("", "flat_dicom", "warning")
    assert reason == (
        "3 DICOM image(s) have no window, and half of them use no more than 49.9% of the range "
        "that is shown, so few grey levels are left; set images.dicom_window = [1000.5, 2201], "
        "which shows -100 to 2100, in the files that have a window as well"
    )
    # That window is what it says.
    shares = apply_window(np.array([-101, -100, 1000, 2100, 2101]), 1000.5, 2201)
    assert shares.tolist() == [0, 0, 0.5, 1, 1]
    half = facts_of(range_used=0.5, low=0.0, high=9.0)
    assert collection_findings(pd.concat([half, flat[0], half]), 65_535) == []


def test_flat_dicom_files_are_found(root):
    values = np.random.default_rng(0).integers(0, 4096, (20, 20), dtype=np.uint16)
    write(root, {"0/flat.dcm": dicom_of(values, PatientID=None)})
    [reason] = audit_of(root).findings.set_index("finding").loc[["flat_dicom"], "reason"]
    low, high = values.min(), values.max()
    window = ((low + high + 1) / 2, high - low + 1)
    assert f"set images.dicom_window = [{window[0]:g}, {window[1]:g}]" in reason
    audit = audit_of(root, rule=DecodeRule(dicom_window=window))
    assert "flat_dicom" not in set(audit.findings["finding"])
    assert (
        np.ptp(decode_image((root / "0/flat.dcm").read_bytes(), DecodeRule(dicom_window=window)))
        == 255
    )


def test_the_white_level_of_the_rule_decides_what_is_dark(root):
    values = np.random.default_rng(0).integers(0, 4096, (20, 20), dtype=np.uint16)
    write(root, {"0/camera.png": Image.fromarray(values)})
    assert "dark_sixteen_bit" in set(audit_of(root).findings["finding"])
    audit = audit_of(root, rule=DecodeRule(white_level=4095))
    assert "dark_sixteen_bit" not in set(audit.findings["finding"])


def test_the_rule_limits_the_pixels(root):
    audit = audit_of(root, rule=DecodeRule(max_pixels=18 * 24 - 1))
    assert set(audit.errors["finding"]) == {"too_many_pixels"}
    assert audit_of(root, rule=DecodeRule(max_pixels=18 * 24)).errors.empty


# Patients.


def patient_facts(**patients) -> pd.DataFrame:
    return frame(image_id=list(patients), patient=list(patients.values()))


def test_images_of_a_patient_share_a_group():
    rows = frame(image_id=list("abcde"), group=["A", "b", "A", "d", "e"])
    facts = patient_facts(a="1", b="1", c="2", d="2", e="")
    assert group_patients(rows, facts)["group"].tolist() == ["A", "A", "A", "A", "e"]
    assert single_patient(facts) == []


def test_one_patient_id_everywhere_is_told_and_makes_no_group():
    rows = frame(image_id=list("abc"), group=list("abc"))
    facts = patient_facts(a="1", b="1", c="")
    assert group_patients(rows, facts)["group"].tolist() == list("abc")
    reason = "2 DICOM files bear the same patient id, which is not used for groups"
    assert told(single_patient(facts)) == [("", "one_patient", "warning", reason)]


def test_a_few_images_of_one_patient_among_others_are_a_group():
    rows = frame(image_id=list("abcd"), group=list("abcd"))
    facts = patient_facts(a="1", b="1", c="", d="")
    assert group_patients(rows, facts)["group"].tolist() == ["a", "a", "c", "d"]
    assert single_patient(facts) == []
    assert single_patient(patient_facts(a="1")) == []
    assert single_patient(patient_facts()) == []


@pytest.mark.parametrize("patient_groups", [True, False])
def test_patients_are_kept_together_if_asked_for(root, monkeypatch, patient_groups):
    def read(data, rule):
        pixels, facts = inspect_image(data, rule)
        return pixels, replace(facts, patient=facts.sha256[0])

    monkeypatch.setattr("cvpipe.data.audit.inspect_image", read)
    audit = audit_of(root, patient_groups=patient_groups)
    patients = audit.facts.set_index("image_id").loc[audit.rows["image_id"], "patient"]
    num_groups = patients.nunique() if patient_groups else len(audit.rows)
    assert audit.rows["group"].nunique() == num_groups < 13


# Given splits.


def test_what_a_given_split_parts_is_named():
    rows = frame(
        image_id=list("abcdef"),
        group=["g", "g", "g", "h", "h", "i"],
        split=["test", "train", "val", "val", "test", "test"],
    )
    end = (
        "(the same group, the same pixels, a near-duplicate, or the same value of a split.by "
        "column)"
    )
    for severity in ("error", "warning"):
        assert told(split_leaks(rows, severity)) == [
            (
                "a",
                "split_leak",
                severity,
                f"in test, but it belongs together with 'b' in train {end}",
            ),
            (
                "c",
                "split_leak",
                severity,
                f"in val, but it belongs together with 'b' in train {end}",
            ),
            (
                "e",
                "split_leak",
                severity,
                f"in test, but it belongs together with 'd' in val {end}",
            ),
        ]


def test_a_class_that_a_part_lacks_is_named():
    rows = frame(label=list("xxyyyz"), split=["train", "test", "train", "train", "test", "test"])
    reason = "class 'z' has no image in train (0 in train, 1 in test)"
    assert told(missing_in_split(rows)) == [("", "missing_in_split", "error", reason)]
    rows.loc[0, "split"] = "val"  # once there is a val, every class is needed in it
    assert [f.reason for f in missing_in_split(rows)] == [
        "class 'x' has no image in train (0 in train, 1 in val, 1 in test)",
        "class 'y' has no image in val (2 in train, 0 in val, 1 in test)",
        "class 'z' has no image in train (0 in train, 0 in val, 1 in test)",
        "class 'z' has no image in val (0 in train, 0 in val, 1 in test)",
    ]


# Identical images, repeated rows, missing labels.


def test_identical_bytes_and_pixels_stay_together(root):
    write(root, {"0/same.png": noise(4), "0/same.bmp": encode(noise(4), "BMP")})
    audit = audit_of(root)
    # noise(4) is 0/2.png; the first one by name is the one that the others repeat.
    assert [f for f in findings_of(audit) if f[0]] == [
        (
            "0/same.bmp",
            "identical_images",
            "info",
            "the same pixels as '0/2.png'",
        ),
        (
            "0/same.png",
            "identical_images",
            "info",
            "the same bytes as '0/2.png'",
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


def test_pixels_are_compared_only_where_they_can_be_the_same(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    nearly = pixels.copy()
    nearly[70, 70, 2] ^= 1
    same, other = Image.fromarray(pixels), Image.fromarray(nearly)
    write(tmp_path, {"1.png": same, "2.bmp": encode(same, "BMP"), "3.png": other, "4.png": same})
    write(tmp_path, {"5.png": noise(0), "6.png": noise(0), "7.png": noise(1)})
    names = sorted(path.name for path in tmp_path.iterdir())
    pictures = [decode_image((tmp_path / name).read_bytes()) for name in names]
    thumbnails = np.stack([grey_thumbnail(picture) for picture in pictures])
    assert len(np.unique(thumbnails[:4], axis=0)) == 1
    facts = frame(
        image_id=names,
        height=[picture.shape[0] for picture in pictures],
        width=[picture.shape[1] for picture in pictures],
        sha256=[hash_file(tmp_path / name) for name in names],
    )
    asked = []

    def load_hashes(image_ids):
        asked.extend(image_ids)
        return [hash_pixels(pictures[names.index(image_id)]) for image_id in image_ids]

    found = same_pixels(facts, thumbnails, load_hashes)
    assert found.tolist() == ["1.png", "1.png", "3.png", "1.png", "5.png", "5.png", "7.png"]
    assert asked == names[:4]  # the bytes of 5 and 6 say it, and those of 7 look otherwise
    none = same_pixels(facts[:0], thumbnails[:0], load_hashes)
    assert none.tolist() == []


def test_a_left_out_image_is_no_twin():
    facts = frame(image_id=["a", "b"], same_as=["a", "a"], sha256=["1", "1"])
    assert identical_images(frame(image_id=["b"], label=["0"]), facts) == []


def test_groups_are_joined_through_identical_images():
    # 4 and 5 cannot be decoded, which does not make them identical.
    rows = frame(image_id=list("12345"), label=["x"] * 5, group=["A", "B", "B", "C", "D"])
    joined = group_clusters(rows, {"1": "p", "2": "p", "3": "q"})
    assert joined["group"].tolist() == ["A", "A", "A", "C", "D"]
    assert rows["group"].tolist() == ["A", "B", "B", "C", "D"]  # the argument stays as it was


def test_repeated_rows(root):
    lines = [f"{label}/{number}.png,{label}" for label in ("0", "NA") for number in range(6)]
    repeated = ["0/0.png,0", "./0/0.png,0", "0/1.png,NA", "0/1.png,poppy"]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines, *repeated]))
    audit = audit_of(root, "labels.csv")
    assert findings_of(audit) == [
        ("0/1.png", "label_conflict", "error", "listed under 3 labels: '0', 'NA', 'poppy'"),
        ("0/0.png", "repeated_row", "error", "listed 3 times"),
    ]
    assert audit.rows["image_id"].tolist() == [line.split(",")[0] for line in lines]


def test_repeated_rows_name_each_image_once():
    rows = frame(image_id=["a", "b", "a", "c", "c"], label=["x", "x", "x", "x", "y"])
    assert told(repeated_rows(rows)) == [
        ("a", "repeated_row", "error", "listed 2 times"),
        ("c", "label_conflict", "error", "listed under 2 labels: 'x', 'y'"),
    ]


def test_rows_without_a_label():
    rows = frame(image_id=["a", "b", "c"], label=["", "x", " \t"])
    reason = ("missing_label", "error", "its label is empty")
    assert told(unlabelled_rows(rows)) == [("a", *reason), ("c", *reason)]


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
    def rows(num_groups):  # of class a
        groups = [f"g{number}" for number in range(num_groups)]
        return frame(
            label=["a"] * num_groups + ["b"] * 9, group=groups + [f"h{n}" for n in range(9)]
        )

    assert class_findings(rows(MIN_GROUPS_PER_CLASS)) == []
    assert [f.kind for f in class_findings(rows(MIN_GROUPS_PER_CLASS - 1))] == ["tiny_class"]


def test_an_empty_label_is_no_class():
    labels = ["a"] * 100 + ["b"] * 100 + ["", " "]
    rows = frame(label=labels, group=[str(number) for number in range(202)])
    assert class_findings(rows) == []
    (finding,) = class_findings(rows[rows["label"] != "b"])
    assert finding.reason == "at least two classes are needed; found: 'a'"


def test_classes_of_very_unlike_size():
    def rows(small, large):
        labels = ["a"] * small + ["b"] * large + ["c"] * large
        return frame(label=labels, group=[str(number) for number in range(len(labels))])

    assert class_findings(rows(10, 99)) == []
    reason = "class 'b' has 100 images, and class 'a' has 10"
    assert told(class_findings(rows(10, 100))) == [("", "imbalance", "warning", reason)]


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
        named = findings.groupby("finding")["image_id"].agg(set).to_dict()
        unreadable = {
            image_id
            for kind in ("missing_file", "empty_file", "not_an_image", "truncated", "unreadable")
            for image_id in named.get(kind, ())
        }
        assert len(audit.rows) == len(usable)
        assert usable == set(counts) - (unreadable if drop_unreadable else set())
        # What could be decoded has facts, what could not has a finding.
        assert set(audit.facts["image_id"]) == set(counts) - unreadable
        listed_twice = {image_id for image_id, count in counts.items() if count > 1}
        assert listed_twice <= named.get("repeated_row", set()) | named["label_conflict"]
        assert set(rows.loc[rows["label"] == "", "image_id"]) == named["missing_label"]


@pytest.mark.parametrize("threads", THREADS)
def test_the_number_of_threads_does_not_matter(tmp_path, threads):
    rows = messy_rows(tmp_path, np.random.default_rng(0))
    reference, other = (audit_images(rows, tmp_path, count, True) for count in (2, threads))
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


def test_errors_are_the_findings_that_stop_a_run():
    table = pd.DataFrame({"severity": ["error", "warning", "info"], "image_id": list("abc")})
    assert Audit(table, table, table, table, table).errors["image_id"].tolist() == ["a"]


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
    assert findings_of(audit) == []
    assert audit.rows["group"].tolist() == audit.rows["image_id"].tolist()
    assert audit.duplicates.query("threshold == 24")[["clusters", "largest"]].values.tolist() == [
        [10, 1]
    ]


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_a_handful_of_unlike_photos_has_no_candidates(tmp_path, number):
    """Where nothing resembles anything, every step of the search has empty input."""
    photo_root(tmp_path)
    rows = scan_images(tmp_path, "folders").iloc[:number]
    audit = audit_images(rows, tmp_path, 1, drop_unreadable=False)
    assert list(audit.pairs) == ["image_id", "other", "how"]
    assert audit.pairs.empty
    assert audit.facts["cluster"].tolist() == rows["image_id"].tolist()


def test_copies_without_structure_are_one_cluster(root):
    plain = Image.new("RGB", (20, 20), (9, 9, 9))
    write(root, {"0/one.png": plain, "0/two.bmp": encode(plain, "BMP")})
    audit = audit_of(root)
    cluster = dict(zip(audit.facts["image_id"], audit.facts["cluster"], strict=True))
    assert cluster["0/two.bmp"] == cluster["0/one.png"] == "0/one.png"
    assert len(set(cluster.values())) == 13


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
        ("x", "y"), pd.DataFrame(), (Recut("x", 40, 3),), mixed=(), threshold=24, pairs=NO_PAIRS
    )
    pairs = pd.DataFrame(columns=["image_id", "other", "how", "score"])
    facts = pd.DataFrame({"image_id": ["x", "y"], "same_as": ["x", "y"]})
    assert told(cluster_findings(clusters, pairs, facts)) == [
        (
            "x",
            "cluster_recut",
            "warning",
            "40 look-alikes chain into one cluster; it was cut into 3, so near-duplicates may "
            "stand in different splits",
        )
    ]
