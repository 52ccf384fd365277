import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvpipe import cache
from cvpipe.cache import CHUNK_ROWS, cached_rows, mapped_rows, space_folder, trim
from cvpipe.errors import InputError
from tests.test_cache import DAMAGE, names

SPACE = {"pixels": "p"}
SHAPE = (4, 2, 3)
UINT8 = np.dtype(np.uint8)


def row_of(key):
    digest = hashlib.sha256(key.encode()).digest()[:24]
    return np.frombuffer(digest, np.uint8).reshape(SHAPE)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "MAPPED_BYTES", 0)


class Asked:
    """Rows of keys, and the keys that had to be computed for them, call by call."""

    def __init__(self, keys, root):
        self.keys = list(keys)
        self.calls = []
        self.rows = mapped_rows(SPACE, self.keys, self.compute, SHAPE, UINT8, root)

    def compute(self, positions):
        assert all(type(position) is int for position in positions)
        self.calls.append([self.keys[position] for position in positions])
        return np.stack([row_of(key) for key in self.calls[-1]])

    @property
    def computed(self):
        return [key for call in self.calls for key in call]

    def check(self):
        assert len(self.rows) == len(self.keys)
        for position in np.random.default_rng(0).permutation(len(self.keys)):
            np.testing.assert_array_equal(self.rows[position], row_of(self.keys[position]))
        return self


def test_cold_warm_and_half_filled_give_the_same_rows(tmp_path):
    keys = names(0, 600)
    assert Asked(keys[100:400], tmp_path).check().computed == keys[100:400]
    half = Asked(keys, tmp_path).check()
    assert half.computed == keys[:100] + keys[400:]
    assert [len(call) for call in half.calls] == [CHUNK_ROWS, 300 - CHUNK_ROWS]
    assert Asked(keys[::-1], tmp_path).check().calls == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=5))
def test_each_key_is_computed_once_whoever_asks(tmp_path_factory, orders):
    root = tmp_path_factory.mktemp("cache")
    asked = [Asked(keys, root).check() for keys in orders]
    computed = [key for one in asked for key in one.computed]
    assert sorted(computed) == sorted({key for keys in orders for key in keys})


def test_rows_are_read_only_views_into_the_mapping(tmp_path):
    Asked(["a", "b", "a"], tmp_path)
    rows = Asked(["a", "b", "a"], tmp_path).rows
    assert type(rows[0]) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        rows[0][:] = 0
    assert np.shares_memory(rows[0], rows[0])
    assert np.shares_memory(rows[0], rows[2])  # equal keys share a row
    assert not np.shares_memory(rows[0], rows[1])


def test_positions(tmp_path):
    asked = Asked(["a", "b", "c"], tmp_path)
    np.testing.assert_array_equal(asked.rows[-1], row_of("c"))
    np.testing.assert_array_equal(asked.rows[np.int64(1)], row_of("b"))
    assert [row.tolist() for row in asked.rows] == [row_of(key).tolist() for key in "abc"]
    for position in (3, -4):
        with pytest.raises(IndexError):
            asked.rows[position]


@pytest.mark.parametrize("keys", [[], ["a"], ["b", "a", "b"]])
def test_rows_in_memory_are_the_same(tmp_path, keys):
    rows = Asked(keys, tmp_path).rows.to_memory()
    assert rows.dtype == np.uint8
    assert rows.shape == (len(keys), *SHAPE)
    assert rows.tolist() == [row_of(key).tolist() for key in keys]
    rows[:] = 0
    Asked(keys, tmp_path).check()


def test_mapped_rows_and_cached_rows_share_what_is_stored(tmp_path):
    stored = np.arange(8, dtype=np.float32).reshape(2, 4)
    written = cached_rows(SPACE, ["a", "b"], lambda _: stored, 4, tmp_path)
    mapped = mapped_rows(SPACE, ["b", "a"], pytest.fail, (4,), np.dtype(np.float32), tmp_path)
    np.testing.assert_array_equal(mapped.to_memory(), written[::-1])


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_chunk_is_computed_again(tmp_path, damage):
    Asked(["a", "b", "c"], tmp_path)
    [index] = space_folder(SPACE, tmp_path).glob("*-index.json")
    DAMAGE[damage](index.with_name(index.name.replace("-index.json", ".npy")), index)
    assert Asked(["c", "a", "b"], tmp_path).check().computed == ["c", "a", "b"]
    assert Asked(["c", "a", "b"], tmp_path).check().calls == []


def test_rows_of_another_shape_or_type_are_not_taken(tmp_path):
    Asked(["a"], tmp_path)
    blank = np.zeros((1, 2, 4, 3), np.uint8)
    rows = mapped_rows(SPACE, ["a"], lambda _: blank, (2, 4, 3), UINT8, tmp_path)
    assert rows.to_memory().tolist() == blank.tolist()
    signed = np.zeros((1, *SHAPE), np.int8)
    rows = mapped_rows(SPACE, ["a"], lambda _: signed, SHAPE, signed.dtype, tmp_path)
    assert rows.to_memory().tolist() == signed.tolist()
    with pytest.raises(
        ValueError,
        match=r"must return uint8 of shape \(1, 4, 2, 3\), .* int8 of shape \(1, 4, 2, 3\)",
    ):
        mapped_rows(SPACE, ["z"], lambda _: signed, SHAPE, UINT8, tmp_path)


# Other processes, and little room.


def test_what_is_mapped_stays_valid_when_the_cache_is_trimmed(tmp_path):
    asked = Asked(["a", "b"], tmp_path)
    view = asked.rows[0]
    assert trim(tmp_path, 0) == 0
    np.testing.assert_array_equal(view, row_of("a"))
    asked.check()
    assert asked.computed == ["a", "b"]


def test_a_row_whose_chunk_is_gone_is_computed_when_it_is_read(tmp_path):
    asked = Asked(["a", "b"], tmp_path)
    trim(tmp_path, 0)
    asked.calls.clear()
    row = asked.rows[-1]
    np.testing.assert_array_equal(row, row_of("b"))
    assert asked.calls == [["b"]]
    assert not row.flags.writeable
    asked.check()


def test_the_space_is_removed_while_it_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_ROWS", 2)
    keys = names(0, 6)

    def compute(positions):
        if 2 in positions:
            shutil.rmtree(space_folder(SPACE, tmp_path))
        return np.stack([row_of(keys[position]) for position in positions])

    rows = mapped_rows(SPACE, keys, compute, SHAPE, UINT8, tmp_path)
    assert rows.to_memory().tolist() == [row_of(key).tolist() for key in keys]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError("24 requested and 7 written"), "24 requested and 7 written"),  # NumPy's own
    ],
)
def test_a_full_disk_is_told(tmp_path, monkeypatch, error, told):
    def fill_disk(*_, **__):
        raise error

    monkeypatch.setattr(cache.np, "save", fill_disk)
    with pytest.raises(InputError) as caught:
        Asked(["a"], tmp_path)
    assert str(caught.value) == (
        f"cannot write the cache {str(tmp_path)!r} ({told}); name another folder in the "
        "environment variable CVPIPE_CACHE_DIR."
    )


def test_threads_read_while_the_cache_is_trimmed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK_ROWS", 4)
    asked = Asked(names(0, 100), tmp_path)
    order = np.random.default_rng(0).integers(0, 100, 4000)

    def is_right(number):
        if number == 50:
            trim(tmp_path, 0)
        position = order[number]
        return np.array_equal(asked.rows[position], row_of(asked.keys[position]))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(is_right, range(len(order))))


def test_two_chunks_at_most_are_in_memory(tmp_path):
    shape, num_chunks = (64, 64, 3), 8
    chunk_bytes = CHUNK_ROWS * 64 * 64 * 3
    keys = names(0, num_chunks * CHUNK_ROWS)

    def compute(positions):
        return np.zeros((len(positions), *shape), np.uint8)

    # Keys and places need far less than half a chunk.
    for most in (2.5 * chunk_bytes, 0.5 * chunk_bytes):  # cold, warm
        tracemalloc.start()
        try:
            rows = mapped_rows(SPACE, keys, compute, shape, UINT8, tmp_path)
            assert not any(row.any() for row in rows)
            assert tracemalloc.get_traced_memory()[1] < most
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("mapped_bytes", "sizes"), [(24 * 300, [300, 100]), (24, [256, 144])])
def test_small_rows_come_in_large_chunks(tmp_path, monkeypatch, mapped_bytes, sizes):
    monkeypatch.setattr(cache, "MAPPED_BYTES", mapped_bytes)
    calls = Asked(names(0, 400), tmp_path).check().calls
    assert [len(call) for call in calls] == sizes


MANY_CHUNKS = """
import resource, sys
from pathlib import Path
from cvpipe import cache
from tests.test_mapped_rows import Asked, names
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
cache.CHUNK_ROWS, cache.MAPPED_BYTES = 1, 0
root = Path(sys.argv[1])
Asked(names(0, 400), root).check()
warm = Asked(names(0, 400), root).check()
warm.rows.to_memory()
assert warm.calls == [], warm.calls
"""


def test_more_chunks_than_file_descriptors(tmp_path):
    subprocess.run(
        [sys.executable, "-c", MANY_CHUNKS, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert len(list(space_folder(SPACE, tmp_path).glob("*.npy"))) == 400
