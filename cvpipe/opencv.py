"""OpenCV, checked before it is used.

The builds `opencv-python`, `opencv-python-headless` and their contrib variants install
the same folder and overwrite each other's files, and no version but 4 is verified. What comes of
either shows far from its cause, so both are looked for before the first import.
"""

import functools
from importlib import metadata
from types import ModuleType

from cvpipe.errors import InputError

BUILDS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
PACKAGE = "'opencv-python-headless>=4.10,<5'"
INSTALL = f"python -m pip install {PACKAGE}"


def installed_builds() -> dict[str, str]:
    """Map each installed build of OpenCV to its version."""
    found = {}
    for name in BUILDS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_builds(builds: dict[str, str]) -> dict[str, str]:
    """Return the installed builds if there is exactly one and it is a 4.x.

    Raises:
        InputError: There is no build, more than one, or one of another major version.
    """
    listed = ", ".join(f"{name} {version}" for name, version in builds.items())
    if not builds:
        raise InputError(f"OpenCV is not installed; install it with: {INSTALL}")
    remedy = f"python -m pip uninstall -y {' '.join(builds)} && {INSTALL}"
    if len(builds) > 1:
        raise InputError(
            f"{len(builds)} builds of OpenCV are installed ({listed}) and overwrite each "
            f"other's files; keep one: {remedy}"
        )
    if not next(iter(builds.values())).startswith("4."):
        raise InputError(
            f"OpenCV 4 is needed, but {listed} is installed, with which nothing is verified: "
            f"{remedy}"
        )
    return builds


@functools.cache  # looking for installed builds takes longer than making an image grey
def import_cv2() -> ModuleType:
    """Import OpenCV with its own threads switched off.

    The callers run in threads of their own; two thread pools on the same cores make
    each other slower.

    Raises:
        InputError: See `check_builds`.
    """
    check_builds(installed_builds())
    import cv2

    cv2.setNumThreads(0)
    return cv2
