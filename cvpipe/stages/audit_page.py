"""Write what an audit found as a page with the pictures."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe.config import Config
from cvpipe.data.audit import Audit
from cvpipe.data.findings import KINDS, SEVERITIES
from cvpipe.data.images import decode_rule
from cvpipe.data.threads import ordered_map
from cvpipe.files import write_text
from cvpipe.frames import SPLITS
from cvpipe.report.audit_page import (
    AuditContent,
    ClusterSummary,
    Entry,
    KindSummary,
    render_audit_page,
)
from cvpipe.report.page import image_data_uri
from cvpipe.stages.report import thumbnail

MAX_ENTRIES = 24  # images of one kind of finding; half as many pairs
MAX_CLUSTERS = 12
MAX_CLUSTER_IMAGES = 8
MAX_PICTURES = 200
MAX_PICTURE_BYTES = 3_000_000
# Kinds of findings about two images, and the pairs that they may be about; empty: any.
PAIRED_KINDS = {
    "label_conflict": "identical",
    "identical_images": "identical",
    "near_duplicate_labels": "",
    "split_leak": "",
}


def write_audit_page(
    path: Path, audit: Audit, root: Path, config: Config, suspects: pd.DataFrame | None = None
) -> None:
    """Write the page of an audit.

    Args:
        path: Where to.
        audit: What was found.
        root: Folder of the images.
        config: Says how files become pixels, and the number of threads.
        suspects: Label suspects, see `cvpipe.evaluation.label_suspects.find_suspects`.
    """
    write_text(path, render_audit_page(collect_audit(audit, root, config, suspects)))


def collect_audit(
    audit: Audit, root: Path, config: Config, suspects: pd.DataFrame | None = None
) -> AuditContent:
    """Collect everything that the page of an audit shows.

    Args:
        audit: What was found.
        root: Folder of the images.
        config: Says how files become pixels, and the number of threads.
        suspects: See `write_audit_page`.
    """
    labels = dict(zip(audit.rows["image_id"], audit.rows["label"], strict=True))
    pairs = pairs_of(audit)
    cluster = dict(zip(audit.facts["image_id"], audit.facts["cluster"], strict=True))
    clusters = summarise_clusters(cluster, pairs, labels)
    shown = clusters[:MAX_CLUSTERS]
    doubtful = [] if suspects is None else suspect_entries(suspects.head(MAX_ENTRIES))
    kinds = []
    for (severity, name), rows in audit.findings.groupby(["severity", "finding"], sort=False):
        # Those that have a section of their own are not shown twice.
        hidden = name == "label_suspect" and doubtful
        entries = [] if hidden else finding_entries(rows, labels, partners_of(name, pairs, audit))
        meaning, action = KINDS[name].meaning, KINDS[name].action
        kinds.append(KindSummary(name, severity, meaning, action, len(rows), entries))
    rows = audit.rows if "split" in audit.rows else audit.rows.assign(split="images")
    counts = pd.crosstab(rows["label"], rows["split"])
    grave = [kind.entries for kind in kinds if kind.severity != "info"]
    infos = [kind.entries for kind in kinds if kind.severity == "info"]
    # In the order of the page: where there is no room for all pictures, the last go without.
    in_order = chain(*grave, (cluster.entry for cluster in shown), doubtful, *infos)
    places = [image_id for entry in in_order for image_id, _ in entry.images]
    found = audit.findings["severity"].value_counts()
    return AuditContent(
        title=root.resolve().name,
        counts=counts.reindex(columns=[s for s in (*SPLITS, "images") if s in counts]),
        severities={severity: int(found.get(severity, 0)) for severity in SEVERITIES},
        kinds=kinds,
        num_clusters=len(clusters),
        num_mixed=sum(len(cluster.labels) > 1 for cluster in clusters),
        clusters=shown,
        num_suspects=0 if suspects is None else len(suspects),
        suspects=doubtful,
        facts=audit.facts,
        pictures=load_pictures(places, set(audit.facts["image_id"]), root, config),
    )


def pairs_of(audit: Audit) -> pd.DataFrame:
    """List the images that show the same: identical ones and near-duplicates.

    Returns:
        Table with the columns `image_id`, `other` and `how`; every image after the first of
        several identical ones is paired with the first.
    """
    identical = audit.facts[["image_id"]].assign(other=audit.facts["same_as"], how="identical")
    identical = identical[identical["image_id"] != identical["other"]]
    near = audit.pairs
    known = set(zip(identical["image_id"], identical["other"], strict=True))
    is_new = [
        (one, other) not in known and (other, one) not in known
        for one, other in zip(near["image_id"], near["other"], strict=True)
    ]
    usable = set(audit.rows["image_id"])
    pairs = pd.concat([identical, near[np.array(is_new, dtype=bool)]], ignore_index=True)
    return pairs[pairs["image_id"].isin(usable) & pairs["other"].isin(usable)]


def partners_of(kind: str, pairs: pd.DataFrame, audit: Audit) -> dict[str, str]:
    """Say beside which other image each image is shown in findings of a kind.

    Of several, one of another label is taken, then one of another split.

    Args:
        kind: A key of `KINDS`; empty unless it is among `PAIRED_KINDS`.
        pairs: See `pairs_of`.
        audit: Has the labels and splits.
    """
    if kind not in PAIRED_KINDS:
        return {}
    pairs = pairs[pairs["how"] == PAIRED_KINDS[kind]] if PAIRED_KINDS[kind] else pairs
    turned = pairs.rename(columns={"image_id": "other", "other": "image_id"})
    both = pd.concat([pairs, turned], ignore_index=True)
    rows = audit.rows.drop_duplicates("image_id").set_index("image_id")
    for column in ("label", "split"):
        if column in rows:
            one, other = both["image_id"].map(rows[column]), both["other"].map(rows[column])
            both[f"same_{column}"] = one == other
    order = [name for name in ("same_label", "same_split", "other") if name in both]
    best = both.sort_values(order, kind="stable").drop_duplicates("image_id")
    return dict(zip(best["image_id"], best["other"], strict=True))


def finding_entries(
    findings: pd.DataFrame, labels: dict[str, str], partners: dict[str, str]
) -> list[Entry]:
    """Choose the findings of one kind that are shown, and the image beside each."""
    entries: list[Entry] = []
    for row in findings.itertuples():
        names = [row.image_id] if row.image_id else []
        names += [partners[name] for name in names if name in partners]
        entry = Entry(tuple((name, labels.get(name, "")) for name in names), row.reason)
        if sum(max(1, len(e.images)) for e in (*entries, entry)) > MAX_ENTRIES:
            break
        entries.append(entry)
    return entries


def suspect_entries(suspects: pd.DataFrame) -> list[Entry]:
    """Say of each suspect what its label is and what others suggest."""
    return [
        Entry(
            ((row.image_id, row.label),),
            f"suggested: {row.suggested} ({row.suggested_probability:.0%}); "
            f"its label has {row.label_probability:.0%}",
        )
        for row in suspects.itertuples()
    ]


def summarise_clusters(
    cluster: dict[str, str], pairs: pd.DataFrame, labels: dict[str, str]
) -> list[ClusterSummary]:
    """Describe the clusters of several images: those of several labels first, then the largest.

    Args:
        cluster: Name of each image's cluster.
        pairs: See `pairs_of`; both images of a pair are in one cluster.
        labels: Label of each image that is used.
    """
    members: dict[str, list[str]] = {}
    for image_id in sorted(labels.keys() & cluster.keys()):
        members.setdefault(cluster[image_id], []).append(image_id)
    ways: dict[str, Counter[str]] = {name: Counter() for name in members}
    disputed = set()
    for row in pairs.itertuples():
        ways[cluster[row.image_id]][row.how] += 1
        if labels[row.image_id] != labels[row.other]:
            disputed |= {row.image_id, row.other}
    summaries = []
    for name, image_ids in members.items():
        if len(image_ids) == 1:
            continue
        # Every label is seen even where not all images are shown, and who disagrees with whom.
        firsts = {labels[image_id]: image_id for image_id in reversed(image_ids)}
        told = disputed.intersection(image_ids) or firsts.values()
        first = sorted(image_ids, key=lambda i: (i not in told, i))[:MAX_CLUSTER_IMAGES]
        counted = dict(Counter(labels[image_id] for image_id in image_ids).most_common())
        entry = Entry(tuple((image_id, labels[image_id]) for image_id in first))
        summaries.append(ClusterSummary(len(image_ids), counted, dict(ways[name]), entry))
    return sorted(summaries, key=lambda s: (len(s.labels) == 1, -s.count))


def load_pictures(
    places: Sequence[str], decoded: Iterable[str], root: Path, config: Config
) -> dict[str, str]:
    """Make the pictures for the places of a page, from the first on, as long as there is room.

    Args:
        places: The `image_id` of each place, in order; an image may have several.
        decoded: The images that could be decoded; all others stay without a picture.
        root: Folder of the images.
        config: Says how files become pixels.

    Returns:
        `data:` addresses by `image_id`: in all places together at most `MAX_PICTURES` and
        `MAX_PICTURE_BYTES`.
    """
    rule = decode_rule(config.images, config.data)
    known = set(decoded)
    num_places = Counter(image_id for image_id in places if image_id in known)

    def load(image_id: str) -> str:
        return image_data_uri(thumbnail(root / image_id, rule))

    pictures: dict[str, str] = {}
    room, room_bytes = MAX_PICTURES, MAX_PICTURE_BYTES
    loaded = ordered_map(load, num_places, config.threads)
    for (image_id, number), picture in zip(num_places.items(), loaded, strict=True):
        room -= number
        room_bytes -= number * len(picture)
        if room < 0 or room_bytes < 0:
            break
        pictures[image_id] = picture
    return pictures
