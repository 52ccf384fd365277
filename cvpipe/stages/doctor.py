"""Say what works on this machine and what does not."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from cvpipe.cache import cache_root
from cvpipe.config import usable_cores
from cvpipe.errors import InputError
from cvpipe.models.backbones import BACKBONES
from cvpipe.models.framework import list_devices
from cvpipe.models.weights import find_weights
from cvpipe.opencv import check_builds, installed_builds

CHECKED_PACKAGES = ("tensorflow", "keras", "scikit-learn", "skops", "numpy", "pandas", "pillow")


@dataclass(frozen=True)
class Diagnosis:
    """The answer to one question.

    Attributes:
        name: What was looked at.
        ok: Whether it works.
        detail: What was found, or what to do.
    """

    name: str
    ok: bool
    detail: str


def diagnose() -> list[Diagnosis]:
    """Look at everything that a run needs."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} ({sys.executable})"),
        ("cores", lambda: str(usable_cores())),
        *((name, lambda name=name: _version(name)) for name in CHECKED_PACKAGES),
        (
            "opencv",
            lambda: ", ".join(f"{n} {v}" for n, v in check_builds(installed_builds()).items()),
        ),
        ("image formats", _image_formats),
        ("DICOM", _dicom),
        *(
            (f"weights of {name}", lambda file=backbone.weights: find_weights(file).name)
            for name, backbone in BACKBONES.items()
            if backbone.weights
        ),
        ("devices", lambda: ", ".join(list_devices())),
        ("cache", lambda: str(cache_root())),
    ]
    return [_check(name, look) for name, look in checks]


def _check(name: str, look: Callable[[], str]) -> Diagnosis:
    try:
        return Diagnosis(name, True, look())
    except (InputError, ImportError) as error:
        return Diagnosis(name, False, str(error))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        raise InputError(f"not installed; install it with: python -m pip install {name}") from None


def _image_formats() -> str:
    from PIL import features

    names = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF"}
    missing = [title for name, title in names.items() if not features.check(name)]
    if missing:
        raise InputError(
            f"Pillow was built without {', '.join(missing)}; install the wheel: "
            "python -m pip install --force-reinstall --only-binary=:all: pillow"
        )
    return "JPEG, PNG, BMP, GIF, WebP, TIFF"


def _dicom() -> str:
    """Say whether DICOM can be read; an extra that is missing is no failure."""
    try:
        return f"pydicom {metadata.version('pydicom')}"
    except metadata.PackageNotFoundError:
        return "not installed; to read DICOM files: python -m pip install 'cvpipe[dicom]'"
