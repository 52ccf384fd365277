import dataclasses
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvpipe import cache
from cvpipe.data import pixels as module
from cvpipe.data.images import DEFAULT_RULE, DecodeRule, read_image, resize_image
from cvpipe.data.pixels import (
    choose_storage,
    decoded_pixels,
    describe_storage,
    free_memory_bytes,
    image_space,
    num_pixel_bytes,
)
from cvpipe.errors import InputError

SIZE = (12, 16)
IMAGE_BYTES = 12 * 16 * 3


# The choice.


@pytest.mark.parametrize(
    ("budget", "available", "storage"),
    [
        (20 * IMAGE_BYTES, 40 * IMAGE_BYTES, "memory"),
        (20 * IMAGE_BYTES, 40 * IMAGE_BYTES - 1, "mapped"),
        (20 * IMAGE_BYTES, 0, "mapped"),
        (20 * IMAGE_BYTES - 1, 10**12, "files"),
        (0, 10**12, "files"),
    ],
)
def test_choice_at_its_bounds(budget, available, storage):
    assert choose_storage(10, SIZE, budget, available) == storage


def test_choice_for_real_sizes():
    """3,000 images of 256 x 256 need .59 GB; the cache has 5 GB, the machine 8."""
    assert choose_storage(3_000, (256, 256), 5 * 10**9, 8 * 10**9) == "memory"
    assert choose_storage(12_000, (256, 256), 5 * 10**9, 8 * 10**9) == "mapped"
    assert choose_storage(13_000, (256, 256), 5 * 10**9, 8 * 10**9) == "files"


@given(st.integers(1, 10**6), st.integers(1, 10**12), st.integers(0, 10**12), st.integers(2, 100))
def test_more_room_never_makes_it_slower(num_images, budget, available, factor):
    order = ["files", "mapped", "memory"]
    before = order.index(choose_storage(num_images, (64, 48), budget, available))
    for more in ((factor * budget, available), (budget, factor * available)):
        assert order.index(choose_storage(num_images, (64, 48), *more)) >= before
    assert choose_storage(num_images, (48, 64), budget, available) == order[before]


def test_bytes_are_those_of_an_array():
    assert num_pixel_bytes(5, (7, 11)) == np.zeros((5, 7, 11, 3), np.uint8).nbytes


@pytest.mark.parametrize(
    ("storage", "num_images", "told"),
    [
        ("memory", 1, "1 image decoded once at 300x200 pixels, in memory (0 MB)"),
        (
            "mapped",
            12_000,
            "12,000 images decoded once at 300x200 pixels, mapped from the cache on disk "
            "(2,160 MB)",
        ),
        (
            "files",
            40_000,
            "40,000 images decoded anew whenever they are read; at 300x200 pixels (7,200 MB) they "
            "would fill more than half of the cache",
        ),
    ],
)
def test_the_choice_is_said(storage, num_images, told):
    assert describe_storage(storage, num_images, (300, 200)) == told


# Free memory.


def write_meminfo(folder):
    path = folder / "meminfo"
    path.write_text("MemTotal:   900 kB\nMemFree:   100 kB\nMemAvailable:     500 kB\n")
    return path


def write_limit(folder, limit, used):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("max", 10, 500 * 1024),
        (300_000, 100_000, 200_000),
        (10**9, 100_000, 500 * 1024),
        (300_000, 300_001, 0),
    ],
)
def test_free_memory_of_linux_and_of_a_container(tmp_path, limit, used, free):
    meminfo = write_meminfo(tmp_path)
    assert free_memory_bytes(meminfo, tmp_path / "none") == 500 * 1024
    assert free_memory_bytes(meminfo, write_limit(tmp_path, limit, used)) == free


@pytest.mark.parametrize("content", [None, "MemTotal: 900 kB\n"])
def test_free_memory_elsewhere(tmp_path, monkeypatch, content):
    meminfo = tmp_path / "meminfo"
    if content:
        meminfo.write_text(content)
    values = {"SC_PHYS_PAGES": 1001, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(module.os, "sysconf", values.__getitem__)
    assert free_memory_bytes(meminfo, tmp_path) == 1001 * 2048

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(module.os, "sysconf", unknown)
    assert free_memory_bytes(meminfo, tmp_path) == 0
    monkeypatch.delattr(module.os, "sysconf")
    assert free_memory_bytes(meminfo, tmp_path) == 0


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux alone has it")
def test_free_memory_of_this_machine():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory_bytes() <= total


# Decoding.


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_BYTES", 0)


def write_images(root, num_images):
    """Noisy images of different sizes, some higher than wide."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(num_images):
        pixels = rng.integers(0, 256, (20 + number, 40 - number, 3), dtype=np.uint8)
        paths.append(root / f"{number:02} ü.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def hash_files(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def paths(tmp_path):
    return write_images(tmp_path, 20)


@pytest.fixture
def decoded(monkeypatch):
    """Lists every path that is decoded."""
    decoded, load_batches = [], module.load_batches

    def recording(paths, *arguments):
        decoded.extend(paths)
        return load_batches(paths, *arguments)

    monkeypatch.setattr(module, "load_batches", recording)
    return decoded


def reference(paths, rule=DEFAULT_RULE, image_size=SIZE):
    return np.stack([resize_image(read_image(p, rule), image_size, rule.fit) for p in paths])


def decode(paths, root, rule=DEFAULT_RULE, image_size=SIZE, threads=2):
    return decoded_pixels(paths, hash_files(paths), image_size, rule, threads, root)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_pixels_are_those_of_the_rule_wherever_they_are(paths, tmp_path, fit, threads):
    rule = DecodeRule(fit)
    for _ in ("cold", "warm"):
        pixels = decode(paths, tmp_path / "cache", rule, threads=threads)
        assert pixels[3].dtype == np.uint8
        np.testing.assert_array_equal(np.stack(list(pixels)), reference(paths, rule))
        np.testing.assert_array_equal(pixels.to_memory(), reference(paths, rule))


def test_only_what_is_missing_is_decoded(paths, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_ROWS", 7)
    copy = tmp_path / "copy.png"
    copy.write_bytes(paths[4].read_bytes())
    decode(paths[3:9], tmp_path / "cache")
    assert decoded == paths[3:9]
    files = [*paths, copy]
    pixels = decode(files, tmp_path / "cache")
    assert decoded == paths[3:9] + paths[:3] + paths[9:]
    np.testing.assert_array_equal(pixels.to_memory(), reference(files))
    # Reading decodes nothing.
    assert len(decoded) == len(paths)


def test_no_image(tmp_path):
    assert decode([], tmp_path).to_memory().shape == (0, *SIZE, 3)


def test_all_that_decides_pixels_is_in_their_key(paths, tmp_path, decoded, monkeypatch):
    def is_decoded_anew():
        decoded.clear()
        np.testing.assert_array_equal(
            decode(paths[:2], tmp_path / "cache", rule, image_size).to_memory(),
            reference(paths[:2], rule, image_size),
        )
        return len(decoded) == 2

    rule, image_size = DecodeRule(), SIZE
    assert is_decoded_anew()
    assert not is_decoded_anew()
    for change in ({"fit": "pad"}, {"white_level": 4095}, {"dicom_window": (40.0, 400.0)}):
        rule = dataclasses.replace(rule, **change)
        assert is_decoded_anew()
    rule = dataclasses.replace(rule, max_pixels=10**9)
    assert not is_decoded_anew()
    image_size = SIZE[::-1]
    assert is_decoded_anew()
    monkeypatch.setattr(module, "DECODE_RULE", "another")
    assert is_decoded_anew()
    monkeypatch.setattr(module, "reader_versions", lambda: {"pillow": "1"})
    assert is_decoded_anew()
    assert not is_decoded_anew()


def test_features_of_the_same_images_are_another_space(paths, tmp_path, decoded):
    """A feature without a name of its own would be told apart by nothing but this."""
    blank = np.zeros((1, *SIZE, 3), np.uint8)
    space = image_space(SIZE, DEFAULT_RULE)
    keys = hash_files(paths[:1])
    cache.mapped_rows(space, keys, lambda _: blank, (*SIZE, 3), blank.dtype, tmp_path / "cache")
    assert decode(paths[:1], tmp_path / "cache")[0].any()


def test_an_unreadable_image_is_named_and_what_was_decoded_is_kept(
    paths, tmp_path, decoded, monkeypatch
):
    monkeypatch.setattr(cache, "CHUNK_ROWS", 4)
    whole = paths[9].read_bytes()
    paths[9].write_bytes(whole[:100])
    message = f"cannot read the image {str(paths[9])!r}: "
    with pytest.raises(InputError, match=re.escape(message)):
        decode(paths, tmp_path / "cache")
    paths[9].write_bytes(whole)
    decoded.clear()
    pixels = decode(paths, tmp_path / "cache")
    assert decoded == paths[8:]
    np.testing.assert_array_equal(pixels.to_memory(), reference(paths))


def test_an_image_that_is_gone_is_named_when_the_cache_was_trimmed(paths, tmp_path):
    pixels = decode(paths, tmp_path / "cache")
    cache.trim(tmp_path / "cache", 0)
    np.testing.assert_array_equal(pixels[5], reference(paths[5:6])[0])
    paths[5].unlink()
    with pytest.raises(InputError, match=re.escape(f"cannot read the image {str(paths[5])!r}")):
        pixels[5]


def test_progress_is_shown(paths, tmp_path):
    seen = []

    def track(items, total):
        seen.append(total)
        return items

    for _ in range(2):
        decoded_pixels(paths, hash_files(paths), SIZE, DEFAULT_RULE, 1, tmp_path / "cache", track)
    assert seen == [1, 0]


DECODE_AND_HANG = """
import sys, time
from pathlib import Path
from cvpipe import cache
from cvpipe.data import threads
from tests.data.test_pixels import decode
root, read_image, num_read = Path(sys.argv[1]), threads.read_image, 0
def hang(path, rule):
    global num_read
    num_read += 1
    if num_read > 10:
        (root / "hangs").touch()
        time.sleep(60)
    return read_image(path, rule)
threads.read_image = hang
cache.CHUNK_ROWS, cache.MAPPED_BYTES = 4, 0
decode(sorted(root.glob("*.png")), root / "cache", threads=1)
"""


def test_a_kill_loses_nothing_but_the_chunk_under_way(paths, tmp_path, decoded):
    command = [sys.executable, "-c", DECODE_AND_HANG, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    until = time.monotonic() + 60
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    pixels = decode(paths, tmp_path / "cache")
    assert decoded == paths[8:]
    np.testing.assert_array_equal(pixels.to_memory(), reference(paths))
