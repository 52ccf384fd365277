"""Compare an exported file with the model that was measured, on the real val and test images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvpipe import frames
from cvpipe.data.audit import hash_file
from cvpipe.data.threads import load_batches
from cvpipe.errors import InputError
from cvpipe.export.bundle import compare_probabilities
from cvpipe.files import read_json, write_json
from cvpipe.models.framework import set_threads
from cvpipe.runs import data_root, open_run
from cvpipe.stages.contenders import load_network
from cvpipe.stages.export import parity_tolerance
from cvpipe.stages.predict import bundle_rule

IMAGES_AT_A_TIME = 256


def verify_bundle(bundle: Path, data: Path | None = None) -> dict[str, Any]:
    """Predict val and test with the exported file and compare with the stored tables.

    The file is used as an app would use it: `predict` on decoded images, not the code
    path by which the run computed its tables.

    Args:
        bundle: Folder `runs/<run>/export/<contender>`.
        data: Folder of the images, if it is not where the run says.

    Returns:
        What was written to `parity.json`: `passed`, and per format and split the largest
        difference.

    Raises:
        InputError: The bundle or its run is incomplete, or the images are missing.
    """
    if not (bundle / "bundle.json").exists():
        raise InputError(
            f"{str(bundle)!r} is not a bundle (it has no bundle.json); give a folder such as "
            "runs/<run>/export/<contender>."
        )
    facts = read_json(bundle / "bundle.json")
    run = open_run(bundle.resolve().parent.parent)
    config = run.config()
    root = data_root(run, data)
    set_threads(config.threads)
    model = load_network(bundle / facts["files"]["keras"])
    size = tuple(facts["input"]["image_size"])
    hashes = run.manifest().set_index("image_id")["sha256"].to_dict()
    tolerance = parity_tolerance(run, facts["contender"])
    splits = {}
    for split in ("val", "test"):
        measured = run.predictions(split, facts["contender"])
        paths = [root / image_id for image_id in measured["image_id"]]
        check_images(measured["image_id"].tolist(), paths, hashes)
        batches = load_batches(paths, size, bundle_rule(facts), IMAGES_AT_A_TIME, config.threads)
        exported = np.concatenate([model.predict(batch, verbose=0) for batch in batches])
        splits[split] = compare_probabilities(
            frames.probabilities_of(measured), exported, tolerance
        )
    passed = all(result["passed"] for result in splits.values())
    parity = {"passed": passed, "formats": {"keras": {"passed": passed, "splits": splits}}}
    write_json(bundle / "parity.json", parity)
    return parity


def check_images(
    image_ids: Sequence[str], paths: Sequence[Path], hashes: Mapping[str, str]
) -> None:
    """Check that the images are those that were measured.

    Raises:
        InputError: A file is missing or another one; a comparison would say nothing.
    """
    for image_id, path in zip(image_ids, paths, strict=True):
        if hash_file(path) != hashes[image_id]:
            raise InputError(
                f"{str(path)!r} is not the image that the run was made with; give the folder of "
                "the same images with --data DIR."
            )
