"""The weights that Keras publishes for the networks of keras.applications: finding the file.

Files are looked for where a person put them, then where Keras keeps those that it downloaded,
and only then in the network.
"""

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from cvpipe.errors import InputError
from cvpipe.files import atomic_path
from cvpipe.models.weights import WEIGHTS_FOLDER

TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class KerasFile:
    """A weights file that Keras publishes.

    Attributes:
        url: Where it is.
        file_name: What Keras calls it in its own cache.
        checksum: MD5 or SHA-256, as Keras states it; empty where Keras states none.
        licence: Under which licence the weights are.
    """

    url: str
    file_name: str
    checksum: str
    licence: str


def find_keras_weights(file: KerasFile) -> Path:
    """Find a weights file of Keras, or download it into Keras's cache.

    The folder named by the environment variable `CVPIPE_WEIGHTS_DIR` is looked at first, then
    Keras's cache (`KERAS_HOME` or `~/.keras`, below it `models`).

    Raises:
        InputError: It is nowhere and cannot be downloaded, or its content is not the expected.
    """
    folder = os.environ.get(WEIGHTS_FOLDER)
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    cached = home / "models" / file.file_name
    candidates = [*([Path(folder) / file.file_name] if folder else []), cached]
    path = next((path for path in candidates if path.is_file()), None)
    return _check(file, path) if path else _download(file, cached)


def _download(file: KerasFile, target: Path) -> Path:
    try:
        with (
            urllib.request.urlopen(file.url, timeout=TIMEOUT_SECONDS) as response,  # noqa: S310
            atomic_path(target) as partial,
        ):
            with partial.open("wb") as copy:
                shutil.copyfileobj(response, copy)
            _check(file, partial)
    except OSError as error:  # no network, no such file, no room on the disk
        raise InputError(
            f"the weights file {file.file_name} was not found and cannot be downloaded ({error}); "
            f"fetch {file.url} where there is a network, and set {WEIGHTS_FOLDER} to the folder "
            f"that holds it under the name {file.file_name}."
        ) from error
    return target


def _check(file: KerasFile, path: Path) -> Path:
    if file.checksum:
        kind = "sha256" if len(file.checksum) == 64 else "md5"
        with path.open("rb") as content:
            found = hashlib.file_digest(content, kind).hexdigest()
        if found != file.checksum:
            raise InputError(
                f"the weights file {path} is damaged or another version: its {kind} is {found}, "
                f"Keras states {file.checksum}; delete it, and fetch {file.url} again."
            )
    return path
