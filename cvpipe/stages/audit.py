"""Scan the images, hash them, decode each once, and store what was found."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cvpipe.config import FOLDERS, Config
from cvpipe.data.audit import (
    Audit,
    Finding,
    audit_images,
    empty_classes,
    findings_table,
    hash_file,
    split_leaks,
)
from cvpipe.data.manifest import (
    check_columns,
    class_folders,
    other_files,
    scan_images,
    stray_images,
)
from cvpipe.errors import GateError, InputError
from cvpipe.files import write_table
from cvpipe.stages.job import Job, Watcher

MAX_SHOWN = 40


def scan_and_hash(root: Path, config: Config) -> pd.DataFrame:
    """List the images of a data root with the hash of each file as column `sha256`.

    Raises:
        InputError: See `scan_images` and `check_given_split`.
    """
    rows = scan_images(root, config.data.labels, config.data.label_column)
    check_given_split(config, rows)
    with ThreadPoolExecutor(config.threads) as pool:
        return rows.assign(
            sha256=list(pool.map(lambda key: hash_file(root / key), rows["image_id"]))
        )


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
    """Decode every scanned image once and collect all findings."""
    audit = audit_images(
        rows,
        root,
        config.threads,
        config.data.drop_unreadable,
        lambda items, total: watcher.track(items, total, "decode"),
    )
    further: list[Finding] = []
    if config.split.protocol == "given":
        severity = "warning" if config.split.allow_leak else "error"
        further += split_leaks(audit.rows, severity)
    if config.data.labels == FOLDERS:
        further += unused_files(root, set(rows["label"]))
    combined = [*audit.findings.itertuples(index=False, name=None), *further]
    return replace(audit, findings=findings_table(combined))


def unused_files(root: Path, labels: set[str]) -> list[Finding]:
    """Find what lies in a data root beside the images in class folders."""
    unused = [
        (name, "other_file", "warning", "its suffix is none that cvpipe reads; not used")
        for name in other_files(root)
    ] + [
        (name, "stray_image", "warning", "it lies outside the class folders; not used")
        for name in stray_images(root)
    ]
    # A folder whose every file has another suffix gave no row at all.
    return unused + empty_classes(set(class_folders(root)) - labels)


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
    check_unchanged(rows, audit.facts)
    warnings = audit.findings[audit.findings["severity"] == "warning"]
    if len(warnings):
        counts = ", ".join(f"{n} {kind}" for kind, n in warnings["finding"].value_counts().items())
        job.watcher.say(f"  warnings: {counts} ({job.run.findings_path})")
    if not audit.errors.empty:
        raise GateError(
            f"the audit of {job.root.name!r} found {len(audit.errors)} error(s), so nothing was "
            f"fitted:\n{describe_findings(audit.findings)}\nAll findings are in "
            f"{job.run.findings_path}. Mend the data; unreadable images, but not classes that are "
            "too small, can be left out with --drop-unreadable, and a split that leaks can be run "
            "with --allow-leak, which the report will say."
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
    """Write findings as lines, errors first; long lists are cut and counted."""
    lines = [
        "  " + ": ".join(part for part in (severity, finding, image_id, reason) if part)
        for image_id, finding, severity, reason in findings.head(MAX_SHOWN).to_numpy()
    ]
    if len(findings) > MAX_SHOWN:
        lines.append(f"  ... and {len(findings) - MAX_SHOWN} more")
    return "\n".join(lines)
