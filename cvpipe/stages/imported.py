"""Contenders that another program trained: finding their files, checking them, taking them in.

Files and labels are checked before any image is decoded and before Keras is loaded. Then the
network is rebuilt once and stored in the run; from there on it is like one that was trained here.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from cvpipe.config import Config
from cvpipe.contender_sections import Contender, EnsembleContender, ImportedContender
from cvpipe.errors import InputError
from cvpipe.files import atomic_path, read_json, write_json
from cvpipe.models.framework import set_threads
from cvpipe.models.imported import (
    describe_scaling,
    find_file,
    import_network,
    order_of,
    read_labels,
    scales_itself,
)
from cvpipe.models.keras_files import read_description
from cvpipe.models.weights import sha256_of_file
from cvpipe.runs import Run
from cvpipe.stages.job import Job

HONEST_NOTE = (
    "its figures are honest only if it was never trained on these images, and cvpipe cannot know "
    "that"
)


def imported_contenders(config: Config) -> list[ImportedContender]:
    """List the contenders that another program trained."""
    return [c for c in config.contender if isinstance(c, ImportedContender)]


def trained_elsewhere(config: Config) -> list[str]:
    """Name the imported contenders, and the ensembles that have one as a member."""
    names = [contender.name for contender in imported_contenders(config)]
    ensembles = [c for c in config.contender if isinstance(c, EnsembleContender)]
    return [*names, *(e.name for e in ensembles if set(e.members) & set(names))]


def find_model(contender: ImportedContender, base: Path) -> tuple[Path, Path]:
    """Find the files of an imported contender.

    Args:
        contender: Whose.
        base: Folder of the pipeline file.

    Returns:
        The model and the labels.

    Raises:
        InputError: One is missing.
    """
    return find_file(contender.model, base, "model"), find_file(contender.labels, base, "labels")


def pin_imports(config: Config, base: Path) -> Config:
    """Write the checksums of the files of imported contenders into a config.

    Args:
        config: May state them; then they are compared.
        base: Folder of the pipeline file.

    Raises:
        InputError: A file is missing, another one than the config states, or cannot be imported, as
            far as can be told without images and without Keras.
    """
    pinned: list[Contender] = []
    for contender in config.contender:
        if not isinstance(contender, ImportedContender):
            pinned.append(contender)
            continue
        model, labels = find_model(contender, base)
        read_labels(labels)
        read_description(model)
        sums = {"model_sha256": sha256_of_file(model), "labels_sha256": sha256_of_file(labels)}
        for key, found in sums.items():
            stated = getattr(contender, key)
            if stated not in ("", found):
                path = model if key == "model_sha256" else labels
                raise InputError(
                    f"the file {str(path)!r} of the contender {contender.name!r} has the SHA-256 "
                    f"{found}, but {key} is {stated}; give the file that was meant, or correct or "
                    f"leave out {key}."
                )
        pinned.append(contender.model_copy(update=sums))
    return config.model_copy(update={"contender": tuple(pinned)})


def check_labels(config: Config, base: Path, class_names: Sequence[str]) -> None:
    """Check that imported contenders know the classes of the images, and no others.

    Raises:
        InputError: One does not.
    """
    for contender in imported_contenders(config):
        labels = find_model(contender, base)[1]
        order_of(read_labels(labels), class_names, labels)


def stored_paths(config: Config, base: Path, run_path: Path) -> Config:
    """Write where the files of imported contenders are, for a run's config.

    As of the folder of the images: relative to the run where both lie inside the working directory,
    so that the config can be run again as it stands; otherwise as the names of the files alone.
    """
    stored: list[Contender] = []
    for contender in config.contender:
        if isinstance(contender, ImportedContender):
            model, labels = (_stored_path(path, run_path) for path in find_model(contender, base))
            stored.append(contender.model_copy(update={"model": model, "labels": labels}))
        else:
            stored.append(contender)
    return config.model_copy(update={"contender": tuple(stored)})


def _stored_path(path: Path, run_path: Path) -> str:
    file, run_path = Path(os.path.abspath(path)), run_path.resolve()  # noqa: PTH100 (keeps links)
    if file.is_relative_to(Path.cwd()) and run_path.is_relative_to(Path.cwd()):
        return Path(os.path.relpath(file, run_path)).as_posix()
    return file.name


def import_models(job: Job, class_names: Sequence[str]) -> None:
    """Take in all imported networks of a run; done before images are decoded, for their errors."""
    for contender in imported_contenders(job.config):
        path = job.run.part_path(contender.name) / "model.keras"
        if not path.exists():
            with job.timed(f"import {contender.name}", f"import: {contender.name}"):
                import_model(job, contender, class_names)


def import_model(
    job: Job, contender: ImportedContender, class_names: Sequence[str] = ()
) -> list[str]:
    """Rebuild the network of an imported contender and store it; what is stored is kept.

    Args:
        job: The run.
        contender: What to import.
        class_names: Classes of the images; those that the run has stored if not given.

    Returns:
        What a reader of its figures should know.

    Raises:
        InputError: It is no classifier of these classes, or cannot be loaded.
    """
    part = job.run.part_path(contender.name)
    if not (part / "model.keras").exists():
        path, labels = find_model(contender, job.base)
        for file, stated in ((path, contender.model_sha256), (labels, contender.labels_sha256)):
            if stated and sha256_of_file(file) != stated:
                raise InputError(
                    f"{str(file)!r} was changed since the run was started; start it again."
                )
        order = order_of(read_labels(labels), class_names or job.run.class_names(), labels)
        set_threads(job.config.threads)
        model = import_network(path, order, contender.scaling, contender.name)
        warnings = []
        if contender.scaling != "none" and scales_itself(model):
            warnings.append(
                f"the model scales pixels itself, and gets {describe_scaling(contender.scaling)} "
                "before that; if it was trained on pixels from 0 to 255, set scaling = 'none'"
            )
        write_json(part / "import.json", {"warnings": warnings})
        with atomic_path(part / "model.keras") as partial:
            model.save(partial)
    return read_json(part / "import.json")["warnings"]


def imported_size(run: Run, name: str) -> tuple[int, int]:
    """Read the size, `(height, width)`, of the images that an imported network takes."""
    height, width = read_json(run.part_path(name) / "fit.json")["image_size"]
    return height, width


def describe_imported(run: Run, contender: ImportedContender) -> str:
    """Say what an imported network is."""
    height, width = imported_size(run, contender.name)
    return (
        f"network of the file {Path(contender.model).name}, trained elsewhere; images of "
        f"{height}x{width}, {describe_scaling(contender.scaling)}"
    )


def describe_origin(contender: ImportedContender) -> str:
    """Say where the weights of an imported network come from."""
    file = Path(contender.model).name
    return f"not stated; imported from {file} with the SHA-256 {contender.model_sha256}"
