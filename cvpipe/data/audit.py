"""Decode every file once and say what is wrong with the data, before anything is fitted.

A finding is a row: `image_id` (empty when it concerns a class), `finding` (its kind),
`severity` and `reason`. An *error* stops a run, a *warning* does not, a *note* is only
told. Nothing is left out unless the caller asks for it, and then it is still told.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe.data.duplicates import HASH_WORDS, Clusters, find_clusters, perceptual_hash
from cvpipe.data.images import SUFFIX_FORMATS, ImageFacts, UnreadableImageError, inspect_image
from cvpipe.data.loading import ordered_map
from cvpipe.data.splits import merge_groups
from cvpipe.frames import SPLITS

FINDING_COLUMNS = ["image_id", "finding", "severity", "reason"]
FACT_COLUMNS = ["image_id", *ImageFacts.__dataclass_fields__]
# Train, val and test each need an image, and cross-validation inside train three more.
MIN_GROUPS_PER_CLASS = 5
# From here on near-duplicates change what a figure means, and the report says so at its top.
NOTEWORTHY_FRACTION = 0.05

Finding = tuple[str, str, str, str]


@dataclass(frozen=True)
class Audit:
    """What the audit of a set of images says.

    Attributes:
        rows: The images that can be used: `image_id`, `label`, `group`, further columns;
            identical images and near-duplicates share a group.
        facts: One row per image that could be decoded: `image_id` and `ImageFacts`.
        findings: The findings, errors first.
        duplicates: Clusters of near-duplicates against the threshold, see
            `cvpipe.data.duplicates.threshold_table`.
    """

    rows: pd.DataFrame
    facts: pd.DataFrame
    findings: pd.DataFrame
    duplicates: pd.DataFrame

    @property
    def errors(self) -> pd.DataFrame:
        """The findings that stop a run."""
        return self.findings[self.findings["severity"] == "error"]


def hash_file(path: Path) -> str:
    """Hash a file's bytes; `""` when it cannot be read, which is for the audit to tell."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def audit_images(
    rows: pd.DataFrame,
    root: Path,
    threads: int,
    drop_unreadable: bool,
    progress: Callable[[Iterable[str], int], Iterable[str]] = lambda items, _: items,
) -> Audit:
    """Decode every image once and collect the findings.

    Args:
        rows: As `cvpipe.data.manifest.scan_images` returns them.
        root: Folder of the images.
        threads: Number of worker threads.
        drop_unreadable: Leave out images that are missing or cannot be decoded.
        progress: Wraps the iterable of keys, given their number, to show a progress bar.

    Returns:
        Usable rows, facts and findings; the same for any number of threads. A row that is not
        among the usable ones is named in a finding.
    """
    findings = repeated_rows(rows) + unlabelled_rows(rows)
    rows = rows.drop_duplicates("image_id").reset_index(drop=True)
    image_ids = rows["image_id"].tolist()
    results = ordered_map(lambda key: _inspect(root / key), image_ids, threads)
    facts, hashes, unreadable = [], {}, []
    for image_id, result in zip(progress(image_ids, len(image_ids)), results, strict=True):
        if isinstance(result, UnreadableImageError):
            unreadable.append((image_id, result.finding, "error", result.reason))
        else:
            image_facts, hashes[image_id] = result
            facts.append({"image_id": image_id, **asdict(image_facts)})
    all_labels = set(rows["label"])
    if drop_unreadable:
        unreadable = [(i, f, "warning", f"{reason}; left out") for i, f, _, reason in unreadable]
        rows = rows[~rows["image_id"].isin([finding[0] for finding in unreadable])]
    facts_table = pd.DataFrame(facts, columns=FACT_COLUMNS)
    findings += unreadable + wrong_suffixes(facts_table) + identical_images(rows, facts_table)
    clusters = near_duplicates(rows, hashes)
    findings += cluster_findings(clusters, facts_table)
    rows = group_identical(rows, facts_table)
    rows = group_clusters(rows, dict(zip(hashes, clusters.cluster, strict=True)))
    findings += empty_classes(all_labels - set(rows["label"])) + class_findings(rows)
    return Audit(rows, facts_table, findings_table(findings), clusters.table)


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """Put findings into a table, errors first, then warnings, then notes."""
    table = pd.DataFrame(findings, columns=FINDING_COLUMNS, dtype=str)
    rank = table["severity"].map({"error": 0, "warning": 1, "note": 2})
    order = (
        table.assign(rank=rank).sort_values(["rank", "finding", "image_id"], kind="stable").index
    )
    return table.loc[order].reset_index(drop=True)


def _inspect(path: Path) -> tuple[ImageFacts, np.ndarray] | UnreadableImageError:
    try:
        pixels, facts = inspect_image(path.read_bytes())
        return facts, perceptual_hash(pixels)
    except UnreadableImageError as error:
        return error
    except FileNotFoundError:
        return UnreadableImageError("missing_file", "there is no such file")
    except OSError as error:
        return UnreadableImageError("unreadable", f"the file cannot be opened: {error.strerror}")


def repeated_rows(rows: pd.DataFrame) -> list[Finding]:
    """Find images that a table lists more than once."""
    findings = []
    for image_id, labels in rows[rows["image_id"].duplicated(keep=False)].groupby("image_id")[
        "label"
    ]:
        names = sorted(set(labels))
        if len(names) > 1:
            reason = f"listed under {len(names)} labels: {', '.join(map(repr, names))}"
            findings.append((str(image_id), "label_conflict", "error", reason))
        else:
            reason = f"listed {len(labels)} times; keep one row"
            findings.append((str(image_id), "repeated_row", "error", reason))
    return findings


def unlabelled_rows(rows: pd.DataFrame) -> list[Finding]:
    """Find rows without a label."""
    empty = rows.loc[rows["label"].str.strip() == "", "image_id"]
    return [(i, "missing_label", "error", "its label is empty") for i in empty]


def wrong_suffixes(facts: pd.DataFrame) -> list[Finding]:
    """Find files whose content is another format than their name says; they are usable."""
    findings = []
    for row in facts.itertuples():
        named = SUFFIX_FORMATS.get(Path(str(row.image_id)).suffix.lower())
        if row.format != named:
            reason = f"the name says {named or 'nothing'}, but the content is {row.format}"
            findings.append((str(row.image_id), "wrong_suffix", "warning", reason))
    return findings


def identical_images(rows: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Find images with exactly the same pixels; under two labels they are an error."""
    merged = rows[["image_id", "label"]].merge(facts, on="image_id")
    findings = []
    repeated = merged[merged["pixels_sha256"].duplicated(keep=False)]
    for _, twins in repeated.groupby("pixels_sha256"):
        first, *others = twins.itertuples()
        for twin in others:
            what = "bytes" if twin.sha256 == first.sha256 else "pixels"
            same = f"the same {what} as {first.image_id!r}"
            if twin.label == first.label:
                reason = f"{same}; both belong in one split"
                findings.append((str(twin.image_id), "identical_images", "warning", reason))
            else:
                reason = f"{same}, but labelled {twin.label!r} instead of {first.label!r}"
                findings.append((str(twin.image_id), "label_conflict", "error", reason))
    return findings


def group_identical(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Join the groups of images with the same pixels, so that no split can part them."""
    pixels = dict(zip(facts["image_id"], facts["pixels_sha256"], strict=True))
    return group_clusters(rows, pixels)


def near_duplicates(rows: pd.DataFrame, hashes: dict[str, np.ndarray]) -> Clusters:
    """Cluster the near-duplicates among the images that could be decoded."""
    labels = dict(zip(rows["image_id"], rows["label"], strict=True))
    stacked = np.stack(list(hashes.values())) if hashes else np.empty((0, HASH_WORDS), np.uint64)
    return find_clusters(list(hashes), [labels[image_id] for image_id in hashes], stacked)


def cluster_findings(clusters: Clusters, facts: pd.DataFrame) -> list[Finding]:
    """Say how many images are near-duplicates of others, and which of them disagree."""
    findings: list[Finding] = []
    sizes = pd.Series(clusters.cluster, dtype=str).value_counts()
    repeated = sizes[sizes > 1]
    if len(repeated):
        num_images = int(repeated.sum())
        share = num_images / len(facts)
        reason = (
            f"{num_images:,} of {len(facts):,} images ({share:.0%}) have a near-duplicate; they "
            f"form {len(repeated):,} cluster(s), the largest of {repeated.max()}, and each cluster "
            "belongs in one split. A plain random split of these images can flatter every figure"
        )
        severity = "warning" if share >= NOTEWORTHY_FRACTION else "note"
        findings.append(("", "near_duplicates", severity, reason))
    pixels = dict(zip(facts["image_id"], facts["pixels_sha256"], strict=True))
    for mixed in clusters.mixed:
        (one, other), (label, other_label) = mixed.image_ids, mixed.labels
        if pixels[one] != pixels[other]:  # identical ones are an error already
            reason = (
                f"a near-duplicate of {one!r}, but labelled {other_label!r} instead of {label!r}; "
                "both belong in one split"
            )
            findings.append((other, "near_duplicate_labels", "warning", reason))
    for recut in clusters.recut:
        reason = (
            f"{recut.num_images} look-alikes chain into one cluster; it was cut into "
            f"{recut.num_parts}, so near-duplicates may stand in different splits"
        )
        findings.append((recut.image_id, "cluster_recut", "warning", reason))
    return findings


def split_leaks(rows: pd.DataFrame, severity: str) -> list[Finding]:
    """Find images whose group stands in another part of a given split as well.

    Args:
        rows: Audited rows with `image_id`, `group` and `split`.
        severity: Of the findings.
    """
    parted = rows[rows.groupby("group")["split"].transform("nunique") > 1]
    findings = []
    for _, members in parted.groupby("group"):
        # What stands in train may stay there, so the others are named.
        home = members.loc[members["split"].map(SPLITS.index).idxmin()]
        for member in members[members["split"] != home["split"]].itertuples():
            reason = (
                f"in {member.split}, but it belongs together with {home['image_id']!r} in "
                f"{home['split']} (the same group, the same pixels, or a near-duplicate)"
            )
            findings.append((str(member.image_id), "split_leak", severity, reason))
    return findings


def group_clusters(rows: pd.DataFrame, clusters: dict[str, str]) -> pd.DataFrame:
    """Join the groups of images of one cluster; an image without one is alone."""
    names = [clusters.get(image_id, image_id) for image_id in rows["image_id"]]
    return rows.assign(group=merge_groups(rows["group"].tolist(), names))


def empty_classes(labels: Iterable[str]) -> list[Finding]:
    """Say of classes without any usable image that they are not to vanish silently."""
    return [
        ("", "empty_class", "error", f"class {label!r} has no image that can be used")
        for label in sorted(labels)
    ]


def class_findings(rows: pd.DataFrame) -> list[Finding]:
    """Find a single class, and classes too small to be split."""
    groups = rows.groupby("label")["group"].nunique()
    images = rows["label"].value_counts()
    findings: list[Finding] = []
    if len(groups) < 2:
        names = ", ".join(repr(name) for name in groups.index) or "none"
        reason = f"at least two classes are needed; found: {names}"
        findings.append(("", "single_class", "error", reason))
    for name, num_groups in groups.items():
        if num_groups < MIN_GROUPS_PER_CLASS:
            reason = (
                f"class {name!r} has {images[name]} image(s) in {num_groups} group(s); at least "
                f"{MIN_GROUPS_PER_CLASS} groups are needed to fill train, val and test"
            )
            findings.append(("", "tiny_class", "error", reason))
    return findings
