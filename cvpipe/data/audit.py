"""Decode every file and say what is wrong with the data, before anything is fitted.

Rows of images flow in; the usable rows, facts about every file, and findings flow out. Each file
is decoded once, and those that look alike once more, to compare them closely. The kinds
of findings, how grave each is and what to do about it are in `cvpipe.data.findings`. Nothing is
left out unless the caller asks for it, and then it is still told.
"""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cvpipe.data.copies import FINE_PIXELS, near_duplicates
from cvpipe.data.duplicates import Clusters
from cvpipe.data.findings import Finding, findings_table, make_finding
from cvpipe.data.images import (
    DEFAULT_RULE,
    SUFFIX_FORMATS,
    DecodeRule,
    ImageFacts,
    UnreadableImageError,
    hash_pixels,
    inspect_image,
    read_image,
)
from cvpipe.data.quality import (
    QUALITY_COLUMNS,
    is_constant,
    measure_quality,
    quality_outliers,
)
from cvpipe.data.splits import merge_groups
from cvpipe.data.threads import ordered_map
from cvpipe.data.thumbnails import THUMBNAIL_PIXELS, grey_thumbnail
from cvpipe.files import open_regular
from cvpipe.frames import SPLITS

FACT_COLUMNS = [
    "image_id",
    *ImageFacts.__dataclass_fields__,
    "constant",
    *QUALITY_COLUMNS,
    "same_as",
    "cluster",
]
# Images that a thread takes at once: its results are small, and small images decode fast.
CHUNK = 16
# Pictures of 128x128 pixels that are kept for a while: 64 MB.
FINE_KEPT = 4_096
# Train, val and test each need an image, and cross-validation inside train three more.
MIN_GROUPS_PER_CLASS = 5
# From here on near-duplicates change what a figure means, and the report says so at its top.
NOTEWORTHY_FRACTION = 0.05
# A shorter side is that of an icon; the smallest images of usual data sets have 28 pixels.
MIN_SIDE_PIXELS = 16
MAX_ASPECT = 5
MAX_IMBALANCE = 10
# Colour modes as stored, by Pillow's names and DICOM's: those that a person takes for granted,
# and those of one grey value per pixel.
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
PLAIN_MODES = ("L", "RGB", "MONOCHROME2", *SIXTEEN_BIT_MODES)
GREY_MODES = ("1", "L", "LA", "La", "MONOCHROME1", "MONOCHROME2", *SIXTEEN_BIT_MODES)


@dataclass(frozen=True)
class Audit:
    """What the audit of a set of images says.

    Attributes:
        rows: The images that can be used: `image_id`, `label`, `group`, further columns;
            images of one patient, identical images and near-duplicates share a group.
        facts: One row per image that could be decoded: `image_id`, `ImageFacts`, `constant` (one
            colour all over), `QUALITY_COLUMNS`, `same_as`: the first image with exactly the
            same pixels, and `cluster`: the smallest `image_id` of those that show the same. No
            split parts a cluster.
        findings: The findings, errors first.
        duplicates: Clusters of near-duplicates against the threshold, see
            `cvpipe.data.duplicates.threshold_table`.
        pairs: Near-duplicates inside one cluster: `image_id`, `other`, `how` (`"copy"`,
            `"mirrored"` or `"cropped"`). They hold a cluster together, unless it is a part of a
            larger one that was cut again.
    """

    rows: pd.DataFrame
    facts: pd.DataFrame
    findings: pd.DataFrame
    duplicates: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def errors(self) -> pd.DataFrame:
        """The findings that stop a run."""
        return self.findings[self.findings["severity"] == "error"]


def hash_file(path: Path) -> str:
    """Hash a file's bytes; `""` when it cannot be read, which is for the audit to tell."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def audit_images(
    rows: pd.DataFrame,
    root: Path,
    threads: int,
    drop_unreadable: bool,
    rule: DecodeRule = DEFAULT_RULE,
    patient_groups: bool = True,
    progress: Callable[[Iterable[str], int], Iterable[str]] = lambda items, _: items,
) -> Audit:
    """Decode every image and collect the findings.

    Args:
        rows: As `cvpipe.data.manifest.scan_images` returns them.
        root: Folder of the images.
        threads: Number of worker threads.
        drop_unreadable: Leave out images that are missing or cannot be decoded.
        rule: How a file becomes pixels.
        patient_groups: Keep images of one patient id together.
        progress: Wraps the iterable of keys, given their number, to show a progress bar.

    Returns:
        Usable rows, facts and findings; the same for any number of threads. A row that is not
        among the usable ones is named in a finding.
    """
    findings = repeated_rows(rows) + unlabelled_rows(rows)
    rows = rows.drop_duplicates("image_id").reset_index(drop=True)
    image_ids = rows["image_id"].tolist()
    results = ordered_map(lambda key: _inspect(root / key, rule), image_ids, threads, CHUNK)
    decoded, pictures, unreadable = [], [], []
    for image_id, result in zip(progress(image_ids, len(image_ids)), results, strict=True):
        if isinstance(result, UnreadableImageError):
            unreadable.append(make_finding(result.finding, result.reason, image_id))
        else:
            known, thumbnail = result
            decoded.append({"image_id": image_id, **known})
            pictures.append(thumbnail)
    all_labels = set(rows["label"])
    if drop_unreadable:
        unreadable = [
            finding._replace(severity="warning", reason=f"{finding.reason}; left out")
            for finding in unreadable
        ]
        rows = rows[~rows["image_id"].isin([finding.image_id for finding in unreadable])]
    facts = pd.DataFrame(decoded, columns=FACT_COLUMNS)
    thumbnails = stack_thumbnails(pictures)
    del pictures  # as large again
    facts[QUALITY_COLUMNS] = measure_quality(thumbnails)

    @functools.lru_cache(maxsize=FINE_KEPT)  # an image is often compared with several others
    def fine_thumbnail(key: str) -> np.ndarray:
        return grey_thumbnail(read_image(root / key, rule), FINE_PIXELS)

    def pixel_hash(key: str) -> str:
        return hash_pixels(read_image(root / key, rule))

    facts["same_as"] = same_pixels(
        facts, thumbnails, lambda keys: ordered_map(pixel_hash, keys, threads, CHUNK)
    )
    findings += unreadable + file_findings(facts) + identical_images(rows, facts)
    findings += quality_outliers(facts) + collection_findings(facts, rule.white_level)
    labels = dict(zip(rows["image_id"], rows["label"], strict=True))
    clusters, pairs = near_duplicates(
        facts["image_id"].tolist(),
        [labels[image_id] for image_id in facts["image_id"]],
        thumbnails,
        facts[["height", "width"]].to_numpy(dtype=np.int64),
        lambda keys: stack_thumbnails(
            ordered_map(fine_thumbnail, keys, threads, CHUNK), FINE_PIXELS
        ),
    )
    # Pixels without structure have no near-duplicates, but they have copies.
    facts["cluster"] = merge_groups(clusters.cluster, facts["same_as"].tolist())
    cluster = dict(zip(facts["image_id"], facts["cluster"], strict=True))
    inside = pairs["image_id"].map(cluster) == pairs["other"].map(cluster)
    pairs = pairs[inside].reset_index(drop=True)
    findings += cluster_findings(clusters, pairs, facts)
    if patient_groups:
        findings += single_patient(facts)
        rows = group_patients(rows, facts)
    rows = group_clusters(rows, cluster)
    findings += empty_classes(all_labels - set(rows["label"])) + class_findings(rows)
    return Audit(rows, facts, findings_table(findings), clusters.table, pairs)


def _inspect(
    path: Path, rule: DecodeRule
) -> tuple[dict[str, Any], np.ndarray] | UnreadableImageError:
    try:
        with open_regular(path) as file:
            pixels, facts = inspect_image(file.read(), rule)
        thumbnail = grey_thumbnail(pixels)
        # A picture of more than one grey value, as most are, needs no closer look.
        constant = thumbnail.min() == thumbnail.max() and is_constant(pixels)
        return {**vars(facts), "constant": constant}, thumbnail
    except UnreadableImageError as error:
        return error
    except FileNotFoundError:
        return UnreadableImageError("missing_file", "there is no such file")
    except OSError as error:
        return UnreadableImageError("unreadable", f"the file cannot be opened: {error.strerror}")


def same_pixels(
    facts: pd.DataFrame,
    thumbnails: np.ndarray,
    load_hashes: Callable[[Iterable[str]], Iterable[str]],
) -> pd.Series:
    """Say of each image which is the first one with exactly the same pixels.

    Only images of one size and one thumbnail can be the same. Where the bytes of such files
    differ, their pixels are hashed, for which they are decoded again: to hash all that are
    decoded takes a fifth of the time of decoding them, and few are asked for.

    Args:
        facts: `image_id`, `height`, `width` and `sha256` of each file.
        thumbnails: `uint8` array of shape `(n, 64, 64)`.
        load_hashes: Makes hashes of the pixels of some images.

    Returns:
        An `image_id` for each row, its own if no image before it is the same.
    """
    shown = [hashlib.sha256(thumbnail).hexdigest() for thumbnail in thumbnails]
    alike = facts.assign(shown=shown).groupby(["height", "width", "shown"])["sha256"]
    asked = alike.transform("nunique") > 1
    # Files of the same bytes are asked for together or not at all, so one column serves both.
    content = facts["sha256"].copy()
    content[asked] = list(load_hashes(facts.loc[asked, "image_id"]))
    return facts.groupby(content)["image_id"].transform("first")


def stack_thumbnails(
    thumbnails: Iterable[np.ndarray], num_pixels: int = THUMBNAIL_PIXELS
) -> np.ndarray:
    """Stack square thumbnails into one array, which may be empty."""
    empty = np.empty((0, num_pixels, num_pixels), dtype=np.uint8)
    return np.concatenate([empty, *(picture[None] for picture in thumbnails)])


def repeated_rows(rows: pd.DataFrame) -> list[Finding]:
    """Find images that a table lists more than once."""
    findings = []
    for image_id, labels in rows[rows["image_id"].duplicated(keep=False)].groupby("image_id")[
        "label"
    ]:
        names = sorted(set(labels))
        if len(names) > 1:
            reason = f"listed under {len(names)} labels: {', '.join(map(repr, names))}"
            findings.append(make_finding("label_conflict", reason, str(image_id)))
        else:
            reason = f"listed {len(labels)} times"
            findings.append(make_finding("repeated_row", reason, str(image_id)))
    return findings


def unlabelled_rows(rows: pd.DataFrame) -> list[Finding]:
    """Find rows without a label."""
    empty = rows.loc[rows["label"].str.strip() == "", "image_id"]
    return [make_finding("missing_label", "its label is empty", image_id) for image_id in empty]


def file_findings(facts: pd.DataFrame) -> list[Finding]:
    """Say of each file the gravest of what can be said of it alone; all of them are usable."""
    findings = []
    for row in facts.itertuples():
        for kind, reason in _remarks(row):
            findings.append(make_finding(kind, reason, str(row.image_id)))
            break
    return findings


def _remarks(row: Any) -> Iterator[tuple[str, str]]:
    """List what can be said of a file: kind and reason, the gravest first."""
    named = SUFFIX_FORMATS.get(Path(row.image_id).suffix.lower())
    size = f"{row.height} x {row.width} pixels (height x width)"
    short, long = sorted((row.height, row.width))
    if row.format != named:
        yield (
            "wrong_suffix",
            f"the name says {named or 'nothing'}, but the content is {row.format}",
        )
    if short < MIN_SIDE_PIXELS:
        yield "tiny_image", f"it has only {size}"
    if long > MAX_ASPECT * short:
        yield "extreme_aspect", f"it has {size}: one side is {long / short:.1f} times the other"
    if row.constant:
        grey = round(row.brightness * 255)
        yield "constant_image", f"every pixel has the same colour, of the grey value {grey}"
    if row.num_pages > 1:
        yield "first_page", f"the first of {row.num_pages} pages or frames is used"
    if row.turned:
        yield "turned_upright", f"turned as its EXIF orientation says; upright it has {size}"
    if row.transparent:
        yield "transparency", "its see-through pixels are laid over white"
    if row.mode not in PLAIN_MODES:
        yield "converted", f"its colour mode {row.mode} is converted to RGB"
    if row.largest_value:
        yield "sixteen_bit", f"16 bits per value, the largest {row.largest_value:,}"


def collection_findings(facts: pd.DataFrame, white_level: int) -> list[Finding]:
    """Say what holds of all files together: sizes, channels, and too few levels of grey.

    Args:
        facts: Facts of the files that could be decoded.
        white_level: The value of 16-bit images that becomes 255.
    """
    findings = []
    sizes = Counter(zip(facts["height"], facts["width"], strict=True))
    if len(sizes) > 1:
        (height, width), num_usual = max(sizes.items(), key=lambda item: (item[1], item[0]))
        low, high = ("{} x {}".format(*f(sizes, key=np.prod)) for f in (min, max))
        reason = (
            f"{len(sizes):,} sizes (height x width) from {low} to {high}; the most frequent, "
            f"{height} x {width}, has {num_usual:,} of {len(facts):,} images"
        )
        findings.append(make_finding("mixed_sizes", reason))
    num_grey = int(facts["mode"].isin(GREY_MODES).sum())
    if 0 < num_grey < len(facts):
        reason = f"{num_grey:,} images are stored in grey and {len(facts) - num_grey:,} in colour"
        findings.append(make_finding("mixed_channels", reason))
    sixteen_bit = facts.loc[facts["largest_value"] > 0, "largest_value"]
    if len(sixteen_bit) and sixteen_bit.max() < white_level / 2:
        largest = int(sixteen_bit.max())
        whole_bits = max(255, 2 ** largest.bit_length() - 1)
        reason = (
            f"the largest value of {len(sixteen_bit):,} 16-bit image(s) is {largest:,}, but "
            f"{white_level:,} is shown as white, so all are dark; set images.white_level = "
            f"{whole_bits}"
        )
        findings.append(make_finding("dark_sixteen_bit", reason))
    whole_range = facts[facts["low"] < facts["high"]]
    used = whole_range["range_used"].median()
    if used < 0.5:  # not if there are none
        low, high = whole_range["low"].min(), whole_range["high"].max()
        reason = (
            f"{len(whole_range):,} DICOM image(s) have no window, and half of them use no more "
            f"than {used:.1%} of the range that is shown, so few grey levels are left; set "
            f"images.dicom_window = [{(low + high + 1) / 2:g}, {high - low + 1:g}], which shows "
            f"{low:g} to {high:g}, in the files that have a window as well"
        )
        findings.append(make_finding("flat_dicom", reason))
    return findings


def _single_patient(facts: pd.DataFrame) -> bool:
    """Tell whether all patient ids are one, as an anonymiser writes it, and most images bear it."""
    patients = facts.loc[facts["patient"] != "", "patient"]
    return len(patients) > max(1, len(facts) / 2) and patients.nunique() == 1


def single_patient(facts: pd.DataFrame) -> list[Finding]:
    """Say when the patient ids tell no patients apart."""
    if not _single_patient(facts):
        return []
    num_files = int((facts["patient"] != "").sum())
    reason = f"{num_files:,} DICOM files bear the same patient id, which is not used for groups"
    return [make_finding("one_patient", reason)]


def group_patients(rows: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Join the groups of images of one patient, unless it is the same id everywhere."""
    if _single_patient(facts):
        return rows
    known = facts[facts["patient"] != ""]
    # The mark keeps a patient apart from an image that happens to bear the same name.
    patients = {
        row.image_id: f"patient {row.patient}"
        for row in known[["image_id", "patient"]].itertuples()
    }
    return group_clusters(rows, patients)


def identical_images(rows: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Find images with exactly the same pixels; under two labels they are an error."""
    merged = rows[["image_id", "label"]].merge(facts, on="image_id")
    findings = []
    repeated = merged[merged["same_as"].duplicated(keep=False)]
    for _, twins in repeated.groupby("same_as"):
        first, *others = twins.itertuples()
        for twin in others:
            what = "bytes" if twin.sha256 == first.sha256 else "pixels"
            same = f"the same {what} as {first.image_id!r}"
            if twin.label == first.label:
                findings.append(make_finding("identical_images", same, str(twin.image_id)))
            else:
                reason = f"{same}, but labelled {twin.label!r} instead of {first.label!r}"
                findings.append(make_finding("label_conflict", reason, str(twin.image_id)))
    return findings


def cluster_findings(clusters: Clusters, pairs: pd.DataFrame, facts: pd.DataFrame) -> list[Finding]:
    """Say how many images are near-duplicates of others, and which of them disagree."""
    findings: list[Finding] = []
    sizes = pd.Series(clusters.cluster, dtype=str).value_counts()
    repeated = sizes[sizes > 1]
    if len(repeated):
        num_images = int(repeated.sum())
        share = num_images / len(facts)
        reason = (
            f"{num_images:,} of {len(facts):,} images ({share:.0%}) have a near-duplicate; they "
            f"form {len(repeated):,} cluster(s), the largest of {repeated.max()}"
            + "".join(
                f", held together by {count:,} {how} pair(s)"
                for how in ("mirrored", "cropped")
                if (count := int(pairs["how"].eq(how).sum()))
            )
            + ". A plain random split of these images can flatter every figure"
        )
        severity = "warning" if share >= NOTEWORTHY_FRACTION else "info"
        findings.append(make_finding("near_duplicates", reason, severity=severity))
    same_as = dict(zip(facts["image_id"], facts["same_as"], strict=True))
    for mixed in clusters.mixed:
        (one, other), (label, other_label) = mixed.image_ids, mixed.labels
        if same_as[one] != same_as[other]:  # identical ones are an error already
            reason = (
                f"a near-duplicate of {one!r}, but labelled {other_label!r} instead of {label!r}; "
                "both belong in one split"
            )
            findings.append(make_finding("near_duplicate_labels", reason, other))
    for recut in clusters.recut:
        reason = (
            f"{recut.num_images} look-alikes chain into one cluster; it was cut into "
            f"{recut.num_parts}, so near-duplicates may stand in different splits"
        )
        findings.append(make_finding("cluster_recut", reason, recut.image_id))
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
                f"{home['split']} (the same group, the same pixels, a near-duplicate, or the same "
                "value of a split.by column)"
            )
            findings.append(make_finding("split_leak", reason, str(member.image_id), severity))
    return findings


def missing_in_split(rows: pd.DataFrame) -> list[Finding]:
    """Find classes without an image in a part of a given split.

    Args:
        rows: Audited rows with `label` and `split`; a val that is missing altogether is no
            finding, because it is taken from train.
    """
    parts = [split for split in SPLITS if split in set(rows["split"])]
    findings = []
    for label, splits in rows.groupby("label")["split"]:
        counts = ", ".join(f"{splits.eq(split).sum():,} in {split}" for split in parts)
        for missing in (split for split in parts if split not in set(splits)):
            reason = f"class {label!r} has no image in {missing} ({counts})"
            findings.append(make_finding("missing_in_split", reason))
    return findings


def group_clusters(rows: pd.DataFrame, clusters: dict[str, str]) -> pd.DataFrame:
    """Join the groups of images of one cluster; an image without one is alone."""
    names = [clusters.get(image_id, image_id) for image_id in rows["image_id"]]
    return rows.assign(group=merge_groups(rows["group"].tolist(), names))


def empty_classes(labels: Iterable[str]) -> list[Finding]:
    """Say of classes without any usable image that they are not to vanish silently."""
    return [
        make_finding("empty_class", f"class {label!r} has no image that can be used")
        for label in sorted(labels)
    ]


def class_findings(rows: pd.DataFrame) -> list[Finding]:
    """Find a single class, classes too small to be split, and classes of very unlike size.

    Args:
        rows: With `label` and `group`. An empty label, a finding of its own, is no class.
    """
    rows = rows[rows["label"].str.strip() != ""]
    groups = rows.groupby("label")["group"].nunique()
    images = rows["label"].value_counts()
    findings: list[Finding] = []
    if len(groups) < 2:
        names = ", ".join(repr(name) for name in groups.index) or "none"
        reason = f"at least two classes are needed; found: {names}"
        findings.append(make_finding("single_class", reason))
    for name, num_groups in groups.items():
        if num_groups < MIN_GROUPS_PER_CLASS:
            reason = (
                f"class {name!r} has {images[name]} image(s) in {num_groups} group(s); at least "
                f"{MIN_GROUPS_PER_CLASS} groups are needed to fill train, val and test"
            )
            findings.append(make_finding("tiny_class", reason))
    if len(images) > 1 and images.max() >= MAX_IMBALANCE * images.min():
        reason = (
            f"class {images.idxmax()!r} has {images.max():,} images, and class "
            f"{images.idxmin()!r} has {images.min():,}"
        )
        findings.append(make_finding("imbalance", reason))
    return findings
