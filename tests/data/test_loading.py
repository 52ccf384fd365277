import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from cvpipe.data import loading, pixels
from cvpipe.data.augment import UNCHANGED, apply_view, draw_view, view_key
from cvpipe.data.images import DecodeRule, read_image, resize_image
from cvpipe.data.loading import Loader, LoaderReport
from cvpipe.data.pixels import DecodedImages, ImageFiles, choose_source
from cvpipe.errors import InputError
from cvpipe.sections import AugmentSection

RULE = DecodeRule()
NATURAL = AugmentSection.model_validate({"preset": "natural"})
NUM_IMAGES = 23
SIZE = (24, 32)


@pytest.fixture(autouse=True)
def _no_worker_is_left_over():
    before = set(threading.enumerate())
    yield
    gc.collect()
    until = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    photo = skimage.data.coffee()
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        height, width = rng.integers(40, 200, size=2)
        crop = photo[number * 3 : number * 3 + height, number * 7 : number * 7 + width]
        Image.fromarray(crop).save(root / f"{number:02}.{'png' if number % 3 == 0 else 'jpg'}")
    return sorted(root.iterdir())


def build(paths, source=None, augment=NATURAL, **changes):
    ids = [path.name for path in paths]
    settings = {"batch_size": 5, "num_classes": 3, "threads": 2, **changes}
    size = settings.pop("image_size", SIZE)
    targets = np.arange(len(paths)) % 3
    return Loader(source or ImageFiles(paths, RULE), ids, targets, size, augment, **settings)


def everything(loader, epochs=2, **start):
    return [
        (batch.images.tobytes(), batch.targets.tobytes(), batch.positions.tolist())
        for batch in loader.batches(epochs, **start)
    ]


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_batches_are_the_same_for_any_number_of_threads(paths, mixup):
    augment = NATURAL.model_copy(update={"mixup": mixup, "noise_levels": 5.0, "erasing": 0.5})
    expected = everything(build(paths, augment=augment, threads=0))
    for threads in (1, 2, 8):
        assert everything(build(paths, augment=augment, threads=threads)) == expected
    assert len(expected) == 2 * 5


def test_batches_are_the_same_in_another_process(paths, tmp_path):
    script = (
        "import hashlib, sys; from pathlib import Path; from tests.data.test_loading import *;"
        "paths = sorted(Path(sys.argv[1]).iterdir());"
        "print(hashlib.sha256(repr(everything(build(paths))).encode()).hexdigest())"
    )
    import hashlib

    here = hashlib.sha256(repr(everything(build(paths))).encode()).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths[0].parent)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        check=True,
    )
    assert done.stdout.strip() == here


def test_an_epoch_shows_every_image_once_in_a_new_order(paths):
    loader = build(paths)
    seen = [batch.positions for batch in loader.batches(3)]
    orders = [np.concatenate(seen[start : start + 5]).tolist() for start in (0, 5, 10)]
    assert all(sorted(order) == list(range(NUM_IMAGES)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [len(positions) for positions in seen[:5]] == [5, 5, 5, 5, 3]
    assert orders[1] == loader.order(1).tolist()
    assert build(paths, seed=1).order(0).tolist() != orders[0]
    assert build(paths, shuffle=False).order(2).tolist() == list(range(NUM_IMAGES))


def test_order_is_uniform():
    """Every image comes to every place about as often: chi-squared over 4,000 orders of 6."""
    loader = Loader(DecodedImages(np.zeros((6, 8, 8, 3), np.uint8)), list("abcdef"), np.zeros(6),
                    (8, 8), AugmentSection())  # fmt: skip
    orders = np.array([loader.order(epoch) for epoch in range(4000)])
    counts = np.array([np.bincount(orders[:, place], minlength=6) for place in range(6)])
    assert ((counts - 4000 / 6) ** 2 / (4000 / 6)).sum() < 52  # 25 degrees of freedom: p .001


@pytest.mark.parametrize(("epoch", "number"), [(0, 0), (0, 3), (1, 0), (1, 4)])
def test_going_on_in_the_middle_of_an_epoch(paths, epoch, number):
    loader = build(paths)
    whole = everything(loader)
    rest = everything(loader, first_epoch=epoch, first_batch=number)
    assert rest == whole[epoch * 5 + number :]


def test_targets_belong_to_images(paths):
    for batch in build(paths, augment=AugmentSection()).batches(1):
        assert batch.targets.dtype == np.int32
        assert batch.targets.tolist() == (batch.positions % 3).tolist()
        for image, position in zip(batch.images, batch.positions, strict=True):
            expected = resize_image(read_image(paths[position]), SIZE, "stretch")
            np.testing.assert_array_equal(image, expected)


def test_views_depend_on_the_image_not_on_its_company(paths):
    few = build(paths[:4])
    for position in range(4):
        pixels_alone, view = few.view(position, epoch=1)
        same, same_view = build(paths).view(position, epoch=1)
        np.testing.assert_array_equal(pixels_alone, same)
        assert view == same_view
    size = read_image(paths[0]).shape[:2]
    key = view_key(0, 1, paths[0].name)
    assert few.view(0, 1)[1] == draw_view(NATURAL, key, size, SIZE, "stretch")
    assert few.view(0, 0)[1] != few.view(0, 1)[1]


def test_a_view_without_reduction_is_applied_to_the_whole_file(paths):
    loader = build(paths, scaled_decoding=False)
    for position in range(NUM_IMAGES):
        seen, view = loader.view(position, 0)
        expected = apply_view(read_image(paths[position]), view, SIZE, "stretch")
        np.testing.assert_array_equal(seen, expected)


def test_scaled_decoding_shows_nearly_the_same(tmp_path):
    photo = cv2.GaussianBlur(cv2.resize(skimage.data.astronaut(), (1024, 768)), (0, 0), 8)
    Image.fromarray(photo).save(tmp_path / "large.jpg", quality=95)
    scaled, full = (
        build([tmp_path / "large.jpg"], image_size=(96, 128), scaled_decoding=way)
        for way in (True, False)
    )
    for epoch in range(10):
        one, other = scaled.view(0, epoch)[0].astype(int), full.view(0, epoch)[0].astype(int)
        # The crop is rounded to whole pixels of the small copy, half a pixel of the result.
        assert np.abs(one - other).mean() < 7
        assert (one != other).any()


def test_float32_holds_the_same_numbers(paths):
    for one, other in zip(
        build(paths).batches(1), build(paths, dtype="float32").batches(1), strict=True
    ):
        assert (one.images.dtype, other.images.dtype) == (np.uint8, np.float32)
        np.testing.assert_array_equal(one.images, other.images)


def test_mixed_targets_are_shares(paths):
    augment = NATURAL.model_copy(update={"cutmix": 1.0})
    for batch in build(paths, augment=augment).batches(1):
        assert batch.targets.shape == (len(batch.positions), 3)
        assert batch.targets.dtype == np.float32
        np.testing.assert_allclose(batch.targets.sum(axis=1), 1, atol=1e-6)


def test_kept_pixels_give_the_same_batches_mapped_and_in_memory(paths, tmp_path, monkeypatch):
    hashes = [path.name for path in paths]
    sources, said = [], []
    for free in (0, 10**12):
        monkeypatch.setattr(pixels, "free_memory_bytes", lambda free=free: free)
        source, text = choose_source(paths, hashes, SIZE, NATURAL, RULE, 2, tmp_path)
        sources.append(source)
        said.append(text)
    mapped, in_memory = (everything(build(paths, source)) for source in sources)
    assert mapped == in_memory
    assert isinstance(sources[1].rows, np.ndarray)
    assert not isinstance(sources[0].rows, np.ndarray)
    assert "memory" in said[1]
    assert "memory" not in said[0]
    assert sources[0].open(0).size == (28, 37)


def test_without_room_files_are_read(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", "1000")
    source, said = choose_source(paths, ["x"] * NUM_IMAGES, SIZE, NATURAL, RULE, 2, tmp_path)
    assert everything(build(paths, source)) == everything(build(paths))
    assert "23 images" in said
    assert not list(tmp_path.iterdir())


def test_without_a_crop_kept_pixels_are_those_of_evaluation(paths, tmp_path):
    source, _ = choose_source(
        paths, [p.name for p in paths], SIZE, AugmentSection(), RULE, 2, tmp_path
    )
    for position in range(NUM_IMAGES):
        seen, view = build(paths, source, augment=AugmentSection()).view(position, 0)
        assert view == UNCHANGED
        np.testing.assert_array_equal(
            seen, resize_image(read_image(paths[position]), SIZE, "stretch")
        )


@pytest.fixture
def damaged(paths, tmp_path):
    """Copies of the images, of which one is cut off; which batch has it follows from the seed."""
    for path in paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / paths[10].name
    broken.write_bytes(broken.read_bytes()[:500])
    return [tmp_path / path.name for path in paths]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_damaged_file_is_named_when_its_batch_comes(damaged, threads):
    loader = build(damaged, threads=threads)
    number = loader.order(0).tolist().index(10) // 5
    batches = loader.batches(1)
    for _ in range(number):
        next(batches)
    with pytest.raises(InputError, match=r"^cannot read the image '10.jpg': the file ends early"):
        next(batches)


def test_a_missing_file_is_named(damaged):
    damaged[10].unlink()
    with pytest.raises(InputError, match=r"^cannot read the image '10.jpg': No such file"):
        everything(build(damaged), epochs=1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_defect_of_ours_names_the_image_it_came_from(paths, threads, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(loading, "apply_view", fail)
    loader = build(paths, threads=threads)
    with pytest.raises(ZeroDivisionError) as info:
        everything(loader)
    first = paths[loader.order(0)[0]].name
    assert info.value.__notes__ == [f"while loading the image {first!r}"]


@pytest.mark.parametrize("close", [True, False])
def test_a_consumer_may_stop_early(paths, close):
    batches = build(paths, threads=4).batches(10_000)
    next(batches)
    if close:
        batches.close()
    else:
        del batches  # what a loop that is left does


INTERRUPTED = """
import signal, sys, threading
from pathlib import Path
from tests.data.test_loading import build
# A shell lets what it starts in the background ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
loader = build(sorted(Path(sys.argv[1]).iterdir()), threads=4)
try:
    for number, batch in enumerate(loader.batches(10**6)):
        if number == 3:
            print("under way", flush=True)
except KeyboardInterrupt:
    workers = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    print("interrupted", workers, flush=True)
    sys.exit(130)
"""


def test_ctrl_c_ends_at_once_and_leaves_no_thread(paths):
    command = [sys.executable, "-c", INTERRUPTED, str(paths[0].parent)]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (said, process.returncode) == ("interrupted []\n", 130), errors


def test_the_report_says_how_long_the_consumer_waited(paths, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loading.time, "perf_counter", lambda: now[0])

    def slow(_, task):
        now[0] += 3  # the consumer waits while a batch is made, because there are no threads
        return make(loader, task)

    loader = build(paths, threads=0)
    make = Loader._make_batch
    monkeypatch.setattr(Loader, "_make_batch", slow)
    for _ in loader.batches(1):
        now[0] += 1
    assert loader.report == LoaderReport(NUM_IMAGES, 5 * 3 + 4 * 1, 5 * 3)
    assert loader.report.waited_fraction == 15 / 19
    assert str(loader.report) == (
        "23 images in 19.0 s (1 per second); the model waited 79% of the time"
    )
    assert LoaderReport(0, 0.0, 0.0).waited_fraction == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"augment": AugmentSection(mixup=0.2), "num_classes": 0},
            "augment.mixup and augment.cutmix blend labels, so targets must be in "
            "[0, num_classes), but they are in [0, 2] and num_classes is 0; pass the number of "
            "classes.",
        ),
        (
            {"augment": AugmentSection(quarter_turns=True)},
            "augment.quarter_turns needs images as high as wide, but the size is (24, 32); choose "
            "a square one, or switch quarter_turns off.",
        ),
        (
            {"augment": AugmentSection(colour_pca=0.1)},
            "augment.colour_pca needs the axes on which the colours of the training images vary, "
            "but none are given; pass colour_axes.",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused(paths, changes, message):
    with pytest.raises(InputError) as info:
        build(paths, **changes)
    assert str(info.value) == message


def test_images_and_targets_must_be_as_many(paths):
    message = "a loader needs images and one target for each, but got 2 images and 3 targets."
    with pytest.raises(InputError) as info:
        Loader(ImageFiles(paths, RULE), ["a", "b"], np.zeros(3), SIZE, NATURAL)
    assert str(info.value) == message
    with pytest.raises(InputError, match="0 images and 0 targets"):
        build([])
    with pytest.raises(InputError) as info:
        build([paths[0], paths[1], paths[0]])
    assert str(info.value) == (
        "each image needs a key of its own, because views are drawn by it, but '00.png' is there 2 "
        "times; name every image once."
    )


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_crops_of_images_that_are_fitted_come_from_files(paths, tmp_path, fit):
    rule = DecodeRule(fit=fit)
    hashes = [path.name for path in paths]
    source, said = choose_source(paths, hashes, SIZE, NATURAL, rule, 2, tmp_path)
    assert isinstance(source, ImageFiles)
    assert said == f"every image is read anew in each epoch, because its fit is {fit!r}"
    whole, _ = choose_source(paths, hashes, SIZE, AugmentSection(), rule, 2, tmp_path)
    assert isinstance(whole, DecodedImages)
