"""Real photos in class folders, a cache of the test's own, and one finished run for all to read."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from cvpipe.models.framework import set_threads
from cvpipe.runs import Run, open_run

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("cvpipe", deadline=None)
settings.load_profile("cvpipe")

# Names that careless table reading turns into numbers or missing values.
CLASS_PHOTOS = {"0": "chelsea", "NA": "coffee", "poppy": "rocket"}
IMAGES_PER_CLASS = 16
TESTS = Path(__file__).parent
PATCH = pytest.MonkeyPatch()
COMPUTING = ("models", "stages")  # folders whose tests compute with TensorFlow


# The files that take longest. Workers take files in this order, and one that came last would keep
# its worker busy while the others are done.
LONGEST = ("test_pipelines.py", "test_networks.py", "test_merged_export.py", "test_backbones.py")


def pytest_collection_modifyitems(items):
    """Bring the longest files to the front; the order is otherwise kept."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture(scope="session", autouse=True)
def _two_threads(request):
    """TensorFlow takes the number before its first computation, whichever test that is in.

    Only where a test computes with it in its own process: importing it takes seconds.
    """
    if any(
        TESTS / name in item.path.parents for item in request.session.items for name in COMPUTING
    ):
        set_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test and no fixture reads or fills the user's cache; tests of one worker share one."""
    root = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CVPIPE_CACHE_DIR", os.environ.get("CVPIPE_TEST_CACHE_DIR", str(root)))
        yield


def write_photos(root: Path, seed: int = 0) -> Path:
    """Write crops of three real photos into class folders; sizes and formats vary."""
    import skimage.data

    rng = np.random.default_rng(seed)
    for label, photo_name in CLASS_PHOTOS.items():
        photo = getattr(skimage.data, photo_name)()
        folder = root / label / "größe eins"
        folder.mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            height, width = rng.integers(80, 160, size=2)
            top = rng.integers(0, photo.shape[0] - height)
            left = rng.integers(0, photo.shape[1] - width)
            crop = Image.fromarray(photo[top : top + height, left : left + width])
            # Equal file names in different class folders, on purpose.
            crop.save(folder / f"photo {number:02}.{'png' if number % 4 == 0 else 'jpg'}")
    return root


def run_cvpipe(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line in a new process, as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "cvpipe", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture(scope="session", autouse=True)
def _in_this_process(request):
    """Check exported files without a process of their own, each of which imports for seconds.

    Runs in a process of their own, and what is done within `fresh_processes`, check as users do.
    """
    if any(TESTS / "stages" in item.path.parents for item in request.session.items):
        check_in_this_process()
    yield
    PATCH.undo()


def check_in_this_process():
    from cvpipe.stages import export, verify

    for module in (export, verify):
        PATCH.setattr(module, "check_in_fresh_process", verify.check_file)


@contextmanager
def fresh_processes():
    """Let exported files be checked in processes of their own."""
    PATCH.undo()
    try:
        yield
    finally:
        check_in_this_process()


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """A folder of class folders with real photos; not to be changed."""
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="session")
def odd_photos(tmp_path_factory) -> Path:
    """The same photos; the name of one class is HTML."""
    folder = write_photos(tmp_path_factory.mktemp("data") / "photos")
    (folder / "poppy").rename(folder / "<b>")
    return folder


@pytest.fixture(scope="session")
def keras2_files(tmp_path_factory) -> Path:
    """A folder of files that Keras 2 wrote, and what it says of some images; not to be changed."""
    folder = tmp_path_factory.mktemp("keras2")
    # In a process of its own: two versions of Keras in one would share TensorFlow's settings.
    script = TESTS / "keras2_files.py"
    subprocess.run([sys.executable, script, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def finished(photos, tmp_path_factory) -> subprocess.CompletedProcess:
    """`cvpipe run photos --preset quick`, finished; `.run` is its folder."""
    cwd = tmp_path_factory.mktemp("work")
    (cwd / "photos").symlink_to(photos)
    answer = run_cvpipe(
        "run", "photos", "--preset", "quick", "--set", "threads=2", "--set",
        "evaluate.resamples=200", cwd=cwd,
        CVPIPE_CACHE_DIR=str(tmp_path_factory.getbasetemp() / "cache"),
    )  # fmt: skip
    answer.cwd = cwd
    answer.run = next(iter((cwd / "runs").glob("photos-*")), None)
    return answer


@pytest.fixture(scope="session")
def run(finished) -> Run:
    """The finished run; not to be changed."""
    assert finished.returncode == 0, finished.stderr
    return open_run(finished.run)
