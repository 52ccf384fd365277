"""Look at a set of images and write an editable pipeline file, with a reason beside each choice."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cvpipe.config import Config, name_of, validate_config
from cvpipe.data.audit import Audit
from cvpipe.data.images import DecodeRule
from cvpipe.data.threads import load_batches
from cvpipe.errors import InputError
from cvpipe.files import write_text
from cvpipe.models.features import BATCH_SIZE
from cvpipe.sections import FOLDERS, SplitSection
from cvpipe.stages.audit import audit_rows, scan_and_hash
from cvpipe.stages.choices import choose, white_level
from cvpipe.stages.fingerprint import (
    IMAGE_SIZE,
    Fingerprint,
    counted,
    measure_similarity,
    sample_ids,
    share_of_grey,
    take_fingerprint,
)
from cvpipe.stages.job import Nobody, Watcher
from cvpipe.stages.pipeline_file import Block, pipeline_text, raw_config
from cvpipe.stages.plan import estimate_seconds, in_words, make_plan


@dataclass(frozen=True)
class Initialised:
    """What `init` found and wrote.

    Attributes:
        path: The pipeline file.
        fingerprint: The images in numbers.
        audit: What is wrong with them.
    """

    path: Path
    fingerprint: Fingerprint
    audit: Audit


def init(
    target: Path,
    threads: int,
    out: Path | None = None,
    force: bool = False,
    network: bool = True,
    watcher: Watcher | None = None,
) -> Initialised:
    """Write a pipeline file for a set of images.

    Errors of the audit do not stop it; they are written at the top of the file, because they
    will stop the run.

    Args:
        target: A folder of class folders, or a table of images.
        threads: Threads that decode and compute; written into the file.
        out: Where to write; `<name of the folder>.toml` in the current folder if `None`.
        force: Replace a file that exists.
        network: Compare the images with ImageNet, which loads TensorFlow.
        watcher: Who is told what happens.

    Raises:
        InputError: The target is of another kind or has no image that can be decoded, or the
            file exists or cannot be one.
    """
    watcher = watcher or Nobody()
    if target.suffix.lower() in (".toml", ".json"):
        raise InputError(
            f"{str(target)!r} is a pipeline file already; give a folder of class folders or a "
            "table of images (.csv, .tsv)."
        )
    # With the given split the scan would refuse one that lacks test.
    plan = make_plan(target, [f"threads={threads}", "split.protocol=holdout"])
    out = check_out(out or Path(f"{name_of(plan.root.resolve().name)}.toml"), force)
    rows = scan_and_hash(plan.root, plan.config)
    config = plan.config
    if "split" in rows and {"train", "test"} <= set(rows["split"]):
        config = config.model_copy(update={"split": SplitSection(protocol="given")})
    tables = sorted(path.name for path in plan.root.glob("*.[ct]sv"))
    if config.data.labels == FOLDERS and tables:
        watcher.say(
            f"beside the class folders lies {tables[0]!r}; if it is a table of the images, its "
            f"columns are used by: cvpipe init {shlex.quote(str(plan.root / tables[0]))}"
        )
    watcher.say(f"audit: decoding {len(rows):,} images")
    audit = audit_rows(rows, plan.root, config, watcher)
    groups_given = bool((rows["group"] != rows["image_id"]).any())
    fingerprint = look_at(audit, plan.root, config, groups_given, network, watcher)
    blocks = choose(
        fingerprint, root_in_file(plan.root, out), config.data.labels, config.split, threads
    )
    write_text(out, pipeline_text(blocks, header_of(out, blocks, fingerprint, audit.errors)))
    return Initialised(out, fingerprint, audit)


def check_out(out: Path, force: bool) -> Path:
    """Return a path to which a pipeline file may be written.

    Raises:
        InputError: The suffix is another, a folder is in the way, or a file that may not be
            replaced.
    """
    if out.suffix.lower() != ".toml":
        raise InputError(
            f"the pipeline file is to be called {str(out)!r}; its name must end with .toml."
        )
    if out.is_dir():
        raise InputError(f"{str(out)!r} is a folder; give the name of a new file with --out.")
    if out.exists() and not force:
        raise InputError(
            f"there is a file {str(out)!r} already; give another name with --out, or replace it "
            "with --force."
        )
    return out


def look_at(
    audit: Audit,
    root: Path,
    config: Config,
    groups_given: bool,
    network: bool,
    watcher: Watcher,
) -> Fingerprint:
    """Take the fingerprint of audited images.

    Raises:
        InputError: None of them can be decoded.
    """
    readable = audit.rows[audit.rows["image_id"].isin(audit.facts["image_id"])]
    if readable.empty:
        raise InputError(
            f"none of the {len(audit.rows):,} image(s) in {str(root)!r} can be decoded; see what "
            "is wrong with: cvpipe audit"
        )
    paths = [root / image_id for image_id in sample_ids(readable)]
    # As the written file will have them decoded, or the network would see black.
    rule = DecodeRule(white_level=white_level(int(audit.facts["largest_value"].max())))
    batches = load_batches(paths, IMAGE_SIZE, rule, BATCH_SIZE, config.threads)
    sample = np.concatenate(list(batches))
    similarity = None
    if network:
        watcher.say(f"comparing {len(sample)} images with ImageNet")
        try:
            similarity = measure_similarity(sample, config.threads)
        except (InputError, ImportError) as error:
            watcher.say(f"  left out: {error}")
    return take_fingerprint(
        audit.rows, audit.facts, groups_given, share_of_grey(sample), similarity
    )


def root_in_file(root: Path, out: Path) -> str:
    """Write the folder of the images as a pipeline file at `out` has to name it."""
    folder = out.parent.absolute()
    if root.absolute().is_relative_to(folder):  # keeps the name of a link
        return root.absolute().relative_to(folder).as_posix()
    return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()


def header_of(
    out: Path, blocks: list[Block], fingerprint: Fingerprint, errors: pd.DataFrame
) -> list[str]:
    """Say at the top of a pipeline file how to run it, and what will stop the run."""
    config = validate_config({"name": name_of(out.stem), **raw_config(blocks)})
    seconds = estimate_seconds(config, fingerprint.num_images)
    lines = [
        "Written by cvpipe init from a look at the images; change whatever you know better.",
        f"Command: cvpipe run {shlex.quote(out.name)}",
        f"Runtime: {in_words(seconds)} on two cores, nothing cached",
    ]
    if len(errors):
        lines.append(
            f"The audit found errors, which stop a run: {counted(errors['finding'].value_counts())}"
            ". See them with cvpipe audit, and mend them first."
        )
    return lines
