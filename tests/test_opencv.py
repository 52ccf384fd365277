import re
from importlib import metadata

import pytest

from cvpipe import opencv
from cvpipe.errors import InputError
from cvpipe.opencv import check_builds, import_cv2, installed_builds

INSTALL = "python -m pip install 'opencv-python-headless>=4.10,<5'"
HEADLESS, FULL = "opencv-python-headless", "opencv-python"


@pytest.fixture(autouse=True)
def _first_import():
    """Let each test import OpenCV as if for the first time."""
    import_cv2.cache_clear()


@pytest.mark.parametrize("name", opencv.BUILDS)
def test_one_good_build(name):
    assert check_builds({name: "4.14.0.94"}) == {name: "4.14.0.94"}


@pytest.mark.parametrize(
    ("builds", "message"),
    [
        ({}, f"OpenCV is not installed; install it with: {INSTALL}"),
        (
            {FULL: "4.11.0.86", HEADLESS: "4.14.0.94"},
            "2 builds of OpenCV are installed (opencv-python 4.11.0.86, opencv-python-headless "
            "4.14.0.94) and overwrite each other's files; keep one: python -m pip uninstall -y "
            f"opencv-python opencv-python-headless && {INSTALL}",
        ),
        (
            {HEADLESS: "5.0.0.1"},
            "OpenCV 4 is needed, but opencv-python-headless 5.0.0.1 is installed, with which "
            f"nothing is verified: python -m pip uninstall -y opencv-python-headless && {INSTALL}",
        ),
        (
            {FULL: "3.4.18"},
            "OpenCV 4 is needed, but opencv-python 3.4.18 is installed, with which nothing is "
            f"verified: python -m pip uninstall -y opencv-python && {INSTALL}",
        ),
        ({FULL: "40.1"}, "OpenCV 4 is needed, but opencv-python 40.1 is installed"),
    ],
    ids=["none", "two", "version 5", "version 3", "version 40"],
)
def test_other_builds_are_refused(builds, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        check_builds(builds)


def test_installed_builds_are_found_by_name(monkeypatch):
    versions = {HEADLESS: "4.14.0.94", "opencv-contrib-python": "4.9", "numpy": "2.0"}

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    assert installed_builds() == {HEADLESS: "4.14.0.94", "opencv-contrib-python": "4.9"}


def test_builds_are_checked_before_the_import(monkeypatch):
    monkeypatch.setattr(opencv, "installed_builds", dict)
    with pytest.raises(InputError, match="OpenCV is not installed"):
        import_cv2()


def test_opencv_runs_without_threads_of_its_own():
    import cv2

    cv2.setNumThreads(2)
    assert import_cv2() is cv2
    assert cv2.getNumThreads() == 1  # OpenCV counts the caller's own
