"""The page of an audit: which findings, pairs, clusters and pictures it shows."""

import base64
import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image

import cvpipe.stages.audit_page as audit_page
from cvpipe.config import validate_config
from cvpipe.data.audit import Audit
from cvpipe.data.duplicates import Pairs, connect
from cvpipe.data.findings import KINDS, findings_table, make_finding
from cvpipe.errors import GateError
from cvpipe.runs import Run
from cvpipe.stages.audit import audit_rows, run_audit, scan_and_hash
from cvpipe.stages.audit_page import (
    MAX_CLUSTER_IMAGES,
    MAX_CLUSTERS,
    MAX_ENTRIES,
    collect_audit,
    finding_entries,
    load_pictures,
    pairs_of,
    partners_of,
    summarise_clusters,
    suspect_entries,
    write_audit_page,
)
from cvpipe.stages.job import Job, Nobody
from tests.report.test_report import Page

HOSTILE = "<script>alert(1)<"  # a folder's name cannot hold the closing tag's slash


def config_of(root, **images):
    return validate_config(
        {
            "name": "audit",
            "data": {"root": str(root)},
            "images": images,
            "contender": [{"name": "a", "classifier": "majority"}],
        }
    )


def audit_of(labels, same=None, pairs=(), findings=(), clusters=None, **columns):
    """An audit of images that need no files; `same` names the first with the same pixels."""
    ids = list(labels)
    same = same or {}
    rows = pd.DataFrame({"image_id": ids, "label": labels.values(), "group": ids, **columns})
    facts = pd.DataFrame(
        {
            "image_id": ids,
            "same_as": [same.get(i, i) for i in ids],
            "height": 9, "width": 9, "format": "PNG", "mode": "RGB",
        }
    )  # fmt: skip
    facts["cluster"] = clusters or ids
    near = pd.DataFrame(pairs, columns=["image_id", "other", "how"])
    return Audit(rows, facts, findings_table(findings), pd.DataFrame(), near)


def clusters_of(labels, pairs):
    """Describe the clusters that pairs make."""
    place = {image_id: row for row, image_id in enumerate(labels)}
    ends = np.array([(place[one], place[other]) for one, other, _ in pairs]).reshape(-1, 2)
    numbers = connect(len(labels), Pairs(*ends.T, np.zeros(len(ends))), 0)
    cluster = {image_id: str(number) for image_id, number in zip(labels, numbers, strict=True)}
    table = pd.DataFrame(pairs, columns=["image_id", "other", "how"])
    return summarise_clusters(cluster, table, labels)


def tuples(pairs):
    return list(pairs[["image_id", "other", "how"]].itertuples(index=False, name=None))


@pytest.fixture
def root(tmp_path):
    """Two classes of six noisy images; one image stands in both, one cannot be read."""
    folder = tmp_path / "pets"
    for number in range(12):
        rng = np.random.default_rng(number)
        path = folder / ("cat", HOSTILE)[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (folder / HOSTILE / "copy.png").write_bytes((folder / "cat" / "00.png").read_bytes())
    (folder / HOSTILE / "cut.png").write_bytes((folder / "cat" / "00.png").read_bytes()[:999])
    return folder


@pytest.fixture
def audited(root):
    config = config_of(root)
    return audit_rows(scan_and_hash(root, config), root, config, Nobody())


# Pairs and clusters.


def test_identical_images_are_paired_with_the_first():
    audit = audit_of(dict.fromkeys("abcde", "cat"), {"d": "b", "e": "b"})
    assert tuples(pairs_of(audit)) == [("d", "b", "identical"), ("e", "b", "identical")]


def test_near_duplicates_join_the_identical_ones_once():
    near = [("a", "b", "copy"), ("b", "a", "copy"), ("a", "c", "mirrored")]
    audit = audit_of(dict.fromkeys("abc", "cat"), {"b": "a"}, near)
    assert tuples(pairs_of(audit)) == [("b", "a", "identical"), ("a", "c", "mirrored")]


def test_pairs_of_images_that_are_not_used_are_left_out():
    audit = audit_of(dict.fromkeys("abc", "cat"), pairs=[("a", "gone", "copy"), ("b", "c", "copy")])
    assert tuples(pairs_of(audit)) == [("b", "c", "copy")]


def test_an_image_is_shown_beside_one_of_another_label_then_of_another_split():
    labels = {"a": "cat", "b": "cat", "c": "dog", "d": "cat", "e": "cat"}
    pairs = [("a", "b", "copy"), ("a", "c", "copy"), ("a", "d", "copy"), ("b", "d", "copy")]
    audit = audit_of(labels, pairs=pairs, split=["train", "train", "train", "test", "test"])
    partners = partners_of("split_leak", pairs_of(audit), audit)
    assert partners == {"a": "c", "b": "d", "c": "a", "d": "a"}


def test_identical_images_are_shown_beside_identical_ones():
    labels = {"a": "cat", "b": "cat", "c": "dog"}
    audit = audit_of(labels, {"b": "a"}, [("a", "c", "copy")])
    pairs = pairs_of(audit)
    assert partners_of("identical_images", pairs, audit) == {"a": "b", "b": "a"}
    assert partners_of("near_duplicate_labels", pairs, audit)["a"] == "c"
    assert partners_of("dark", pairs, audit) == {}


def test_clusters_of_several_labels_come_first_then_the_largest():
    labels = {**dict.fromkeys("abcde", "cat"), "x": "cat", "y": "dog", "p": "dog", "q": "dog"}
    near = [
        ("a", "b", "copy"), ("b", "c", "mirrored"), ("d", "c", "copy"),
        ("x", "y", "cropped"), ("p", "q", "copy"),
    ]  # fmt: skip
    clusters = clusters_of(labels, near)
    assert [c.entry.images for c in clusters] == [
        (("x", "cat"), ("y", "dog")),
        (("a", "cat"), ("b", "cat"), ("c", "cat"), ("d", "cat")),
        (("p", "dog"), ("q", "dog")),
    ]
    assert [c.count for c in clusters] == [2, 4, 2]
    assert clusters[0].labels == {"cat": 1, "dog": 1}
    assert [c.ways for c in clusters] == [{"cropped": 1}, {"copy": 2, "mirrored": 1}, {"copy": 1}]


def test_the_images_that_disagree_are_among_those_shown():
    names = [f"{number:02}" for number in range(20)]
    labels = {**dict.fromkeys(names, "cat"), "19": "dog"}
    near = [(one, other, "copy") for one, other in itertools.pairwise(names)]
    (cluster,) = clusters_of(labels, near)
    assert [name for name, _ in cluster.entry.images][:3] == ["18", "19", "00"]
    assert len(cluster.entry.images) == MAX_CLUSTER_IMAGES
    assert cluster.count == 20
    assert list(cluster.labels.items()) == [("cat", 19), ("dog", 1)]


def test_no_pairs_no_clusters():
    assert clusters_of({"a": "cat"}, []) == []


def test_each_label_of_a_cluster_is_shown_even_without_a_pair_that_disagrees():
    names = [f"{number:02}" for number in range(20)]
    labels = {**dict.fromkeys(names, "cat"), "19": "dog"}
    pairs = pd.DataFrame(columns=["image_id", "other", "how"])
    (cluster,) = summarise_clusters({**dict.fromkeys(names, "00"), "gone": "00"}, pairs, labels)
    assert [name for name, _ in cluster.entry.images][:3] == ["00", "19", "01"]
    assert (cluster.count, cluster.ways) == (20, {})


def test_the_parts_of_a_cluster_that_was_cut_again_are_shown_apart(tmp_path, monkeypatch):
    """A cross-fade between two photos: neighbours are alike, the ends are not."""
    ends = [getattr(skimage.data, name)() for name in ("chelsea", "coffee")]
    ends = [np.asarray(Image.fromarray(end).resize((64, 64)), dtype=float) for end in ends]
    for number, share in enumerate(np.linspace(0, 1, 60)):
        path = tmp_path / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        picture = ends[0] * (1 - share) + ends[1] * share
        Image.fromarray(picture.astype(np.uint8)).save(path)
    config = config_of(tmp_path)
    audit = audit_rows(scan_and_hash(tmp_path, config), tmp_path, config, Nobody())
    assert "cluster_recut" in set(audit.findings["finding"])
    group = dict(zip(audit.rows["image_id"], audit.rows["group"], strict=True))
    assert len(audit.pairs) > 30
    for one, other, _ in tuples(audit.pairs):
        assert group[one] == group[other]
    for name, limit in (("MAX_CLUSTERS", 60), ("MAX_CLUSTER_IMAGES", 60)):
        monkeypatch.setattr(audit_page, name, limit)
    monkeypatch.setattr(audit_page, "load_pictures", lambda *_: {})
    content = collect_audit(audit, tmp_path, config)
    shown = [{name for name, _ in cluster.entry.images} for cluster in content.clusters]
    groups = audit.rows.groupby("group")["image_id"].agg(set)
    assert sorted(map(sorted, shown)) == sorted(sorted(g) for g in groups if len(g) > 1)
    assert len(shown) > 1


# Findings and suspects.


def findings_of(*image_ids):
    return findings_table(make_finding("dark", f"because {i}", i) for i in image_ids)


def test_findings_become_entries():
    one, other = finding_entries(findings_of("a", "b"), {"a": "cat"}, {"a": "c"})
    assert one.images == (("a", "cat"), ("c", ""))
    assert one.note == "because a"
    assert other.images == (("b", ""),)
    (all_of_them,) = finding_entries(findings_of(""), {}, {})
    assert all_of_them.images == ()


def test_findings_of_a_kind_are_limited_by_their_images():
    names = [f"{number:03}" for number in range(100)]
    assert len(finding_entries(findings_of(*names), {}, {})) == MAX_ENTRIES
    pairs = dict.fromkeys(names, "other")
    assert len(finding_entries(findings_of(*names), {}, pairs)) == MAX_ENTRIES // 2
    about_all = pd.concat([findings_of("")] * 100)
    assert len(finding_entries(about_all, {}, {})) == MAX_ENTRIES


def suspects_of(*names):
    return pd.DataFrame(
        {
            "image_id": names, "label": "cat", "suggested": "dog",
            "label_probability": 0.021, "suggested_probability": 0.954, "margin": -0.9,
        }
    )  # fmt: skip


def test_suspects_say_both_labels():
    (entry,) = suspect_entries(suspects_of("a"))
    assert entry.images == (("a", "cat"),)
    assert entry.note == "suggested: dog (95%); its label has 2%"


# What is collected.


def test_suspects_are_shown_once(root, audited):
    name = "cat/02.png"
    more = findings_table([make_finding("label_suspect", "why", name)])
    audit = Audit(**{**vars(audited), "findings": more})
    content = collect_audit(audit, root, config_of(root), suspects_of(name))
    assert (content.num_suspects, [e.images[0][0] for e in content.suspects]) == (1, [name])
    assert [(kind.count, list(kind.entries)) for kind in content.kinds] == [(1, [])]
    for none in (None, suspects_of()):
        content = collect_audit(audit, root, config_of(root), none)
        assert (content.num_suspects, content.suspects) == (0, [])
        assert content.kinds[0].entries[0].images == ((name, "cat"),)
    many = suspects_of(*[name] * 100)
    content = collect_audit(audit, root, config_of(root), many)
    assert (content.num_suspects, len(content.suspects)) == (100, MAX_ENTRIES)


def test_every_kind_of_finding_has_a_place(tmp_path):
    findings = [make_finding(kind, f"why {kind}") for kind in KINDS]
    audit = audit_of({"a": "cat"}, findings=findings)
    write_audit_page(tmp_path / "audit.html", audit, tmp_path, config_of(tmp_path))
    page = Page((tmp_path / "audit.html").read_text("utf-8"))
    for kind, (severity, meaning, action) in KINDS.items():
        assert f"{severity} {kind} 1 {meaning[0].upper()}{meaning[1:]}. What to do: " in page.text
        assert f"What to do: {action}." in page.text
        assert f"why {kind}" in page.text


def test_classes_are_counted_by_split(root):
    labels = {"a": "cat", "b": "cat", "c": "dog"}
    counts = collect_audit(audit_of(labels), root, config_of(root)).counts
    assert counts.to_dict() == {"images": {"cat": 2, "dog": 1}}
    given = audit_of(labels, split=["train", "test", "train"])
    counts = collect_audit(given, root, config_of(root)).counts
    assert list(counts) == ["train", "test"]
    assert counts.to_dict() == {"train": {"cat": 1, "dog": 1}, "test": {"cat": 1, "dog": 0}}


def test_room_for_pictures_is_given_by_gravity(root, monkeypatch):
    findings = [make_finding("dark", "", "a"), make_finding("wrong_suffix", "", "b")]
    audit = audit_of(
        dict.fromkeys("abcde", "cat"),
        pairs=[("c", "d", "copy")],
        clusters=list("abcce"),
        findings=findings,
    )
    seen = []
    monkeypatch.setattr(audit_page, "load_pictures", lambda places, *_: seen.extend(places) or {})
    collect_audit(audit, root, config_of(root), suspects_of("e"))
    assert seen == ["b", "c", "d", "e", "a"]


def test_clusters_are_limited_and_counted(root, audited, monkeypatch):
    labels = {f"{n:03}": ("cat", "dog")[n == 0] for n in range(60)}
    near = [(f"{n:03}", f"{n + 1:03}", "copy") for n in range(0, 60, 2)]
    monkeypatch.setattr(audit_page, "load_pictures", lambda *_: {})
    clusters = [f"{n // 2}" for n in range(60)]
    audit = audit_of(labels, pairs=near, clusters=clusters)
    content = collect_audit(audit, root, config_of(root))
    assert (content.num_clusters, content.num_mixed) == (30, 1)
    assert len(content.clusters) == MAX_CLUSTERS
    assert content.clusters[0].labels == {"cat": 1, "dog": 1}


# Pictures.


def test_pictures_are_read_by_the_rule_of_the_config(tmp_path):
    grey = np.full((300, 200), 2000, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    config = config_of(tmp_path, white_level=4000)
    address = load_pictures(["a.png"], ["a.png"], tmp_path, config)["a.png"]
    data = base64.b64decode(address.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (96, 144)
        assert np.asarray(picture).mean() == pytest.approx(128, abs=1)


def test_an_image_that_could_not_be_decoded_has_no_picture(root):
    names = [f"{HOSTILE}/cut.png", "cat/00.png"]
    assert list(load_pictures(names, ["cat/00.png"], root, config_of(root))) == ["cat/00.png"]


def test_pictures_are_limited_by_their_places(root, monkeypatch):
    names = [f"cat/{number:02}.png" for number in (4, 0, 4, 2)]  # one has two places
    monkeypatch.setattr(audit_page, "MAX_PICTURES", 3)
    pictures = load_pictures(names, names, root, config_of(root))
    assert list(pictures) == ["cat/04.png", "cat/00.png"]
    monkeypatch.setattr(audit_page, "MAX_PICTURES", 9)
    monkeypatch.setattr(audit_page, "MAX_PICTURE_BYTES", 3 * len(pictures["cat/04.png"]) + 2000)
    assert list(load_pictures(names, names, root, config_of(root))) == list(pictures)
    assert len(pictures["cat/04.png"]) > 3000
    monkeypatch.setattr(audit_page, "MAX_PICTURE_BYTES", 1000)
    assert load_pictures(names, names, root, config_of(root)) == {}


# The page of real files.


def test_the_page_of_a_folder(root, audited, tmp_path):
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    for path in (first, second):
        write_audit_page(path, audited, root, config_of(root))
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text("utf-8")
    page = Page(text)
    assert "<script" not in text
    assert HOSTILE in page.text
    assert "Images14in 2 classes; 13 could be read Errors2" in page.text
    pair = re.search(r'<li class="pair">(.*?)</li>', text, re.DOTALL)[1]
    assert len(re.findall(r'src="data:image/jpeg;base64,', pair)) == 2
    assert f"{HOSTILE}/cut.png no picture the file ends early" in page.text
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(address.startswith(("data:image/jpeg;", "#")) for address in addresses)


def test_a_run_that_the_audit_stops_leaves_the_page_and_names_it(root, tmp_path):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    config = config_of(root)
    job = Job(config, root, run, Nobody())
    with pytest.raises(GateError, match=re.escape(f"with the pictures in {run.path}/audit.html.")):
        run_audit(job, scan_and_hash(root, config))
    assert "label_conflict" in run.audit_page_path.read_text("utf-8")
