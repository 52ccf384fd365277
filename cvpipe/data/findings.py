"""The kinds of findings about a set of images: how grave each is, and what to do about it.

This table is the only place where that is said; `docs/audit.md` shows the same. An *error*
stops a run, a *warning* does not, an *info* is only told.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

SEVERITIES = ("error", "warning", "info")
FINDING_COLUMNS = ["image_id", "finding", "severity", "reason", "action"]


class Kind(NamedTuple):
    """A kind of finding.

    Attributes:
        severity: One of `SEVERITIES`.
        meaning: What is the case.
        action: What a person should do.
    """

    severity: str
    meaning: str
    action: str


class Finding(NamedTuple):
    """Something that a person should know about an image, a class or all images.

    Attributes:
        image_id: The image; empty when it concerns a class or all images.
        kind: A key of `KINDS`.
        reason: Why, in numbers, names and values.
        severity: As in `KINDS`, unless a person decided otherwise.
    """

    image_id: str
    kind: str
    reason: str
    severity: str


LEAVE_OUT = "mend or remove the file, name it in data.exclude, or give --drop-unreadable"

KINDS = {
    # Errors: files that are no picture.
    "missing_file": Kind("error", "a table names a file that does not exist", LEAVE_OUT),
    "empty_file": Kind("error", "a file of zero bytes", LEAVE_OUT),
    "not_an_image": Kind("error", "the content is no format that cvpipe reads", LEAVE_OUT),
    "truncated": Kind("error", "the file ends before the picture does", LEAVE_OUT),
    "unreadable": Kind("error", "the file is damaged, or of a kind that is not read", LEAVE_OUT),
    "too_many_pixels": Kind(
        "error",
        "more pixels than data.max_pixels: decoding it could fill the memory",
        "check the file; if it is what it says, raise data.max_pixels",
    ),
    # Errors: labels and classes.
    "missing_label": Kind("error", "an image without a label", "give it one, or remove its row"),
    "label_conflict": Kind(
        "error",
        "the same picture, or the same file, under two labels",
        "decide which label is right, and remove the other",
    ),
    "repeated_row": Kind("error", "a table lists a file more than once", "keep one row"),
    "empty_class": Kind(
        "error", "a class without any usable image", "add images, or remove the class"
    ),
    "single_class": Kind("error", "fewer than two classes", "add images of another class"),
    "tiny_class": Kind(
        "error",
        "a class with too few groups for train, val and test",
        "add images of other subjects, or merge the class with another",
    ),
    # Errors: splits that come with the images.
    "split_leak": Kind(
        "error",
        "a given split parts a group, a value of split.by, identical pictures or near-duplicates",
        "move the files to one side, use split.protocol = 'holdout', or give --allow-leak, which "
        "the report will say",
    ),
    "missing_in_split": Kind(
        "error",
        "a given split has a part without an image of a class",
        "put images of the class there, or use split.protocol = 'holdout'",
    ),
    # Warnings: what changes the meaning of figures.
    "near_duplicates": Kind(
        "warning",
        "many images are near-duplicates of others",
        "none is needed: each cluster stays in one split",
    ),
    "near_duplicate_labels": Kind(
        "warning", "near-duplicates under two labels", "look at both, and correct the wrong one"
    ),
    "cluster_recut": Kind(
        "warning",
        "look-alikes chain into a cluster so large that it was cut again",
        "give a column 'group' (patient, part, series) to say what belongs together",
    ),
    "metadata_shortcut": Kind(
        "warning",
        "the file or a column of the table gives the label away without a look at the pixels",
        "collect or re-encode the classes in the same way, or split by that column; leave a column "
        "from which the label was made out of the table; the size of compressed files also depends "
        "on what they show",
    ),
    "imbalance": Kind(
        "warning",
        "the largest class has at least ten times the images of the smallest",
        "read balanced accuracy and macro-F1 rather than accuracy; add images of the rare class",
    ),
    "one_patient": Kind(
        "warning",
        "most images are DICOM files, all of one patient id, so it tells no patients apart",
        "give a column 'group', or set data.patient_groups = false",
    ),
    "dark_sixteen_bit": Kind(
        "warning",
        "16-bit images use a small part of their range and become nearly black",
        "set images.white_level to the largest value that the camera gives, such as 4095",
    ),
    "flat_dicom": Kind(
        "warning",
        "DICOM files without a window use a small part of their range and keep few grey levels",
        "set images.dicom_window = [centre, width]; the reason has a proposal",
    ),
    # Warnings: single files.
    "wrong_suffix": Kind(
        "warning", "the content is another format than the name says", "rename the file"
    ),
    "other_file": Kind(
        "warning", "a file whose name is not that of an image; not used", "remove or convert it"
    ),
    "stray_image": Kind(
        "warning", "an image outside the class folders; not used", "move it into a class folder"
    ),
    "tiny_image": Kind(
        "warning", "a side shorter than 16 pixels", "check whether it is a thumbnail by mistake"
    ),
    "extreme_aspect": Kind(
        "warning",
        "one side is more than five times the other",
        "crop it, or set images.fit = 'pad' so that it is not squeezed",
    ),
    "constant_image": Kind("warning", "one colour all over", "check whether the capture failed"),
    # Infos: how a file was read, and what stands out.
    "first_page": Kind(
        "info", "a file of several pages or frames; the first is used", "split it into files"
    ),
    "turned_upright": Kind("info", "turned as the EXIF orientation says", "none is needed"),
    "transparency": Kind("info", "see-through pixels, laid over white", "none is needed"),
    "converted": Kind(
        "info", "another colour mode than grey or RGB, converted by the rule", "none is needed"
    ),
    "sixteen_bit": Kind(
        "info", "16 bits per value, of which images.white_level becomes 255", "none is needed"
    ),
    "mixed_sizes": Kind("info", "images of different sizes", "see images.fit"),
    "mixed_channels": Kind(
        "info", "some images are grey and some are coloured", "check that it is not by class"
    ),
    "identical_images": Kind(
        "info", "the same picture more than once", "none is needed: copies stay in one split"
    ),
    "blurred": Kind("info", "far less sharp than the others", "look at it"),
    "dark": Kind("info", "far darker than the others", "look at it"),
    "bright": Kind("info", "far brighter than the others", "look at it"),
    "label_suspect": Kind(
        "info",
        "other images of all classes suggest another label",
        "let an expert look at it; correct it only for a reason other than this figure",
    ),
    "excluded": Kind("info", "left out because data.exclude names it", "none is needed"),
}


def make_finding(kind: str, reason: str, image_id: str = "", severity: str = "") -> Finding:
    """Make a finding.

    Args:
        kind: A key of `KINDS`.
        reason: Why, in numbers, names and values.
        image_id: The image; left out when it concerns a class or all images.
        severity: Another severity than the kind's own.
    """
    return Finding(image_id, kind, reason, severity or KINDS[kind].severity)


def findings_in(table: pd.DataFrame) -> list[Finding]:
    """List the findings of a table, so that others can be added to them."""
    return [
        Finding(row.image_id, row.finding, row.reason, row.severity) for row in table.itertuples()
    ]


def findings_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """Put findings into a table, the gravest first, with what to do about each.

    Returns:
        Table with the columns `FINDING_COLUMNS`.
    """
    rank = {severity: number for number, severity in enumerate(SEVERITIES)}
    ordered = sorted(findings, key=lambda f: (rank[f.severity], f.kind, f.image_id))
    rows = [(f.image_id, f.kind, f.severity, f.reason, KINDS[f.kind].action) for f in ordered]
    return pd.DataFrame(rows, columns=FINDING_COLUMNS, dtype=str)
