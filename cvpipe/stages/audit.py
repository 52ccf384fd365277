"""Scan the images, hash them, decode each, and store what was found."""

import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cvpipe.config import Config
from cvpipe.data.audit import (
    Audit,
    audit_images,
    empty_classes,
    hash_file,
    missing_in_split,
    split_leaks,
)
from cvpipe.data.findings import KINDS, Finding, findings_in, findings_table, make_finding
from cvpipe.data.images import decode_rule
from cvpipe.data.manifest import (
    LABEL_GIVEN,
    check_columns,
    class_folders,
    is_dicom_file,
    other_files,
    scan_images,
    stray_images,
)
from cvpipe.errors import GateError, InputError, nearest_name
from cvpipe.files import write_table
from cvpipe.sections import FOLDERS
from cvpipe.stages.audit_page import write_audit_page
from cvpipe.stages.job import Job, Watcher
from cvpipe.stages.shortcuts import columns_to_try, shortcut_findings
from cvpipe.stages.split import check_split_columns, keep_together

MAX_SHOWN = 5
LINE_WIDTH = 100


def scan_and_hash(root: Path, config: Config) -> pd.DataFrame:
    """List the images of a data root with the hash of each file as column `sha256`.

    Images that `data.exclude` names are left out here, before anything depends on them.

    Raises:
        InputError: See `scan_images`, `leave_out`, `check_given_split` and
            `check_split_columns`.
    """
    rows = scan_images(root, config.data.labels, config.data.label_column)
    rows = leave_out(rows, config.data.exclude)
    check_given_split(config, rows)
    check_split_columns(config.split, rows)  # before the images are decoded, which takes long
    with ThreadPoolExecutor(config.threads) as pool:
        return rows.assign(
            sha256=list(pool.map(lambda key: hash_file(root / key), rows["image_id"]))
        )


def leave_out(rows: pd.DataFrame, excluded: Sequence[str]) -> pd.DataFrame:
    """Return scanned rows without the images that a config leaves out.

    Raises:
        InputError: A name is not among the images, or no image remains.
    """
    known = set(rows["image_id"])
    for image_id in excluded:
        if image_id not in known:
            raise InputError(
                f"data.exclude names {image_id!r}, which is none of the {len(known):,} images; "
                f"give paths below their folder, parted by '/': {_nearest(image_id, known)}"
            )
    kept = rows[~rows["image_id"].isin(excluded)].reset_index(drop=True)
    if kept.empty:
        raise InputError("data.exclude names every image; keep those that can be used.")
    return kept


def _nearest(image_id: str, known: set[str]) -> str:
    """Name the nearest image; of thousands, an example is enough where none is near."""
    answer = nearest_name(image_id, known)
    return answer if answer.startswith("did") else f"one of them is {min(known)!r}."


def check_given_split(config: Config, rows: pd.DataFrame) -> None:
    """Check that there is a split if the config wants the given one.

    Raises:
        InputError: There is none, or it lacks train or test.
    """
    if config.split.protocol != "given":
        return
    found = sorted(set(rows["split"])) if "split" in rows else []
    if not {"train", "test"} <= set(found):
        raise InputError(
            "split.protocol is 'given', but the images come with "
            + (f"the splits {found} only" if found else "no split")
            + "; expected folders train/ and test/ (and val/) above the class folders, or a "
            "column 'split' in the table. Or use split.protocol = 'holdout'."
        )


def audit_rows(rows: pd.DataFrame, root: Path, config: Config, watcher: Watcher) -> Audit:
    """Decode every scanned image and collect all findings.

    Raises:
        InputError: See `keep_together`.
    """
    audit = audit_images(
        rows,
        root,
        config.threads,
        config.data.drop_unreadable,
        decode_rule(config.images, config.data),
        config.data.patient_groups,
        lambda items, total: watcher.track(items, total, "decode"),
    )
    further = [
        make_finding("excluded", "data.exclude names it", image_id)
        for image_id in config.data.exclude
    ]
    if config.split.protocol == "given":
        severity = "warning" if config.split.allow_leak else "error"
        together = keep_together(audit.rows, config.split.by)
        further += split_leaks(together, severity) + missing_in_split(audit.rows)
    if config.data.labels == FOLDERS:
        further += unused_files(root)
    further += empty_classes(known_classes(root, config) - set(rows["label"]))
    # Where another column is the label, it may well have been made from the table's own.
    columns = columns_to_try(audit.rows, [LABEL_GIVEN])
    further += shortcut_findings(audit.rows, audit.facts, columns, config.seed)
    return replace(audit, findings=findings_table([*findings_in(audit.findings), *further]))


def known_classes(root: Path, config: Config) -> set[str]:
    """List the classes that a data root has, even if no image of them is to be used."""
    if config.data.labels == FOLDERS:
        # A folder whose every file has another suffix gives no row at all.
        return set(class_folders(root))
    rows = scan_images(root, config.data.labels, config.data.label_column)
    return set(rows["label"]) - {""}


def unused_files(root: Path) -> list[Finding]:
    """Find what lies in a data root beside the images in class folders."""
    suffixes = "its suffix is none that cvpipe reads"
    renamed = "its content is DICOM, but its name does not say so; let it end in .dcm to use it"
    return [
        make_finding("other_file", renamed if is_dicom_file(root / name) else suffixes, name)
        for name in other_files(root)
    ] + [
        make_finding("stray_image", "it lies outside the class folders", name)
        for name in stray_images(root)
    ]


def run_audit(job: Job, rows: pd.DataFrame) -> pd.DataFrame:
    """Audit the images of a run; store the findings and the facts of each file.

    Returns:
        The usable rows, as a manifest without splits.

    Raises:
        GateError: There are errors among the findings.
    """
    with job.timed("audit", f"audit: decoding {len(rows):,} images"):
        audit = audit_rows(rows, job.root, job.config, job.watcher)
        write_table(job.run.images_path, audit.facts)
        write_table(job.run.duplicates_path, audit.duplicates)
        write_table(job.run.findings_path, audit.findings)
        write_audit_page(job.run.audit_page_path, audit, job.root, job.config)
    check_unchanged(rows, audit.facts)
    warnings = audit.findings[audit.findings["severity"] == "warning"]
    if len(warnings):
        counts = ", ".join(f"{n} {kind}" for kind, n in warnings["finding"].value_counts().items())
        job.watcher.say(f"  warnings: {counts} ({job.run.findings_path})")
    if not audit.errors.empty:
        raise GateError(
            f"the audit of {job.root.name!r} found {len(audit.errors)} error(s), so nothing was "
            f"fitted:\n{describe_findings(audit.errors)}\nAll findings are in "
            f"{job.run.findings_path}, with the pictures in {job.run.audit_page_path}."
        )
    return check_columns(audit.rows)


def check_unchanged(rows: pd.DataFrame, facts: pd.DataFrame) -> None:
    """Check that the files that were decoded are those that were hashed before.

    The first hash names the run and keys the cache.

    Raises:
        InputError: A file changed in between.
    """
    hashed = dict(zip(rows["image_id"], rows["sha256"], strict=False))
    for image_id, sha256 in zip(facts["image_id"], facts["sha256"], strict=True):
        if hashed[image_id] != sha256:
            raise InputError(f"{image_id!r} changed while it was being read; run again.")


def describe_findings(findings: pd.DataFrame) -> str:
    """Write findings as lines: kind by kind, errors first, a few examples of each.

    Args:
        findings: See `cvpipe.data.findings.findings_table`.
    """
    lines = []
    for (severity, kind), rows in findings.groupby(["severity", "finding"], sort=False):
        lines += _wrap(f"{severity}: {kind} ({len(rows):,}): {KINDS[kind].meaning}", "  ")
        for row in rows.head(MAX_SHOWN).itertuples():
            lines += _wrap(": ".join(part for part in (row.image_id, row.reason) if part))
        if len(rows) > MAX_SHOWN:
            lines.append(f"    ... and {len(rows) - MAX_SHOWN:,} more")
        lines += _wrap(f"What to do: {KINDS[kind].action}.")
    return "\n".join(lines)


def _wrap(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(
        text,
        LINE_WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,  # the names of files stay whole
        break_on_hyphens=False,
    )
