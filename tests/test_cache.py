import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cvpipe import cache
from cvpipe.cache import CHUNK_ROWS, cache_root, cached_rows, max_bytes, space_folder, trim
from cvpipe.errors import InputError
from cvpipe.files import read_json

SPACE = {"feature": "f", "image_size": (2, 3)}
ROW_SIZE = 4


def row_of(key):
    """A row that depends on the key alone, with values that use every bit."""
    digest = hashlib.sha256(key.encode()).digest()[: 2 * ROW_SIZE]
    return np.frombuffer(digest, "<u2").astype(np.float32) / np.float32(3)


def rows_of(keys):
    return np.stack([row_of(key) for key in keys])


def names(start, stop):
    return [f"key {number}" for number in range(start, stop)]


class Recorder:
    """A `compute` that remembers what it was asked for."""

    def __init__(self, keys):
        self.keys = keys
        self.calls = []

    def __call__(self, positions):
        assert all(type(position) is int for position in positions)
        self.calls.append(positions)
        return rows_of([self.keys[position] for position in positions])

    @property
    def computed(self):
        return [self.keys[position] for call in self.calls for position in call]


def ask(keys, root, space=SPACE):
    recorder = Recorder(keys)
    rows = cached_rows(space, keys, recorder, ROW_SIZE, root)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, rows_of(keys) if keys else np.empty((0, ROW_SIZE)))
    return recorder


def test_cold_warm_and_half_filled_give_the_same_rows(tmp_path):
    keys = names(0, 600)
    assert ask(keys[100:400], tmp_path / "half").computed == keys[100:400]
    half = ask(keys, tmp_path / "half")
    assert half.computed == keys[:100] + keys[400:]
    cold = ask(keys, tmp_path / "cold")
    assert cold.computed == keys
    for root in ("half", "cold"):
        assert ask(keys[::-1], tmp_path / root).calls == []
        assert ask(keys[7:9], tmp_path / root).calls == []


def test_each_missing_key_is_computed_once_in_bounded_chunks(tmp_path):
    keys = names(0, CHUNK_ROWS + 3) * 2 + names(0, 1)
    calls = ask(keys, tmp_path).calls
    assert [len(call) for call in calls] == [CHUNK_ROWS, 3]
    assert calls[0] == list(range(CHUNK_ROWS))
    assert calls[1] == [CHUNK_ROWS, CHUNK_ROWS + 1, CHUNK_ROWS + 2]


def test_duplicates(tmp_path):
    assert ask(["b", "a", "b", "a", "b"], tmp_path).calls == [[0, 1]]
    assert ask(["c", "b", "c", "b"], tmp_path).calls == [[0]]
    assert ask(["b", "b"], tmp_path).calls == []


@pytest.mark.parametrize("num_keys", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1])
def test_numbers_of_keys_around_a_chunk(tmp_path, num_keys):
    keys = names(0, num_keys)
    assert ask(keys, tmp_path).computed == keys
    assert ask(keys, tmp_path).calls == []
    assert (tmp_path / space_folder(SPACE, tmp_path).name).exists() == (num_keys > 0)


def test_progress_is_shown_per_chunk_to_compute(tmp_path):
    seen = []

    def track(items, total):
        seen.append((list(items), total))
        return seen[-1][0]

    keys = names(0, 2 * CHUNK_ROWS + 1)
    for _ in range(2):
        cached_rows(SPACE, keys, Recorder(keys), ROW_SIZE, tmp_path, track)
    assert seen == [([0, CHUNK_ROWS, 2 * CHUNK_ROWS], 3), ([], 0)]


def test_every_part_of_a_space_counts(tmp_path, monkeypatch):
    spaces = [
        {"feature": "f", "size": 1},
        {"feature": "f", "size": 2},
        {"feature": "g", "size": 1},
        {"feature": "f"},
        {"feature": "f", "size": "1"},
    ]
    for space in spaces:
        assert ask(["a"], tmp_path, space).computed == ["a"]
    assert ask(["a"], tmp_path, dict(reversed(spaces[0].items()))).calls == []
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    assert ask(["a"], tmp_path, spaces[0]).computed == ["a"]
    folders = [p for p in tmp_path.iterdir() if p.is_dir()]
    assert len(folders) == 6
    assert read_json(space_folder(spaces[0], tmp_path) / "space.json") == {
        "feature": "f", "size": 1, "version": cache.VERSION,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("computed", "given"),
    [
        (np.zeros((2, ROW_SIZE)), r"float64 of shape \(2, 4\)"),
        (np.zeros((2, ROW_SIZE), np.float16), r"float16 of shape \(2, 4\)"),
        (np.zeros((1, ROW_SIZE), np.float32), r"float32 of shape \(1, 4\)"),
        (np.zeros((2, 1), np.float32), r"float32 of shape \(2, 1\)"),
        (np.zeros(ROW_SIZE, np.float32), r"float32 of shape \(4,\)"),
    ],
)
def test_compute_that_breaks_its_contract_is_a_defect(tmp_path, computed, given):
    with pytest.raises(
        ValueError, match=r"must return float32 of shape \(2, 4\), .* " + given
    ) as e:
        cached_rows(SPACE, ["a", "b"], lambda _: computed, ROW_SIZE, tmp_path)
    assert not isinstance(e.value, InputError)
    assert ask(["a", "b"], tmp_path).computed == ["a", "b"]


def test_exception_in_compute_keeps_the_chunks_before_it(tmp_path):
    keys = names(0, CHUNK_ROWS + 1)

    def compute(positions):
        if positions[0] > 0:
            raise KeyboardInterrupt
        return rows_of([keys[position] for position in positions])

    with pytest.raises(KeyboardInterrupt):
        cached_rows(SPACE, keys, compute, ROW_SIZE, tmp_path)
    assert ask(keys, tmp_path).computed == keys[CHUNK_ROWS:]


FILL = """
import os, sys
from pathlib import Path
from cvpipe import cache
from tests.test_cache import ask, names
root, start, stop, kill = Path(sys.argv[1]), *map(int, sys.argv[2:5])
if kill:
    write_text = cache.write_text
    def die(path, text):
        if kill == 2:  # after the second file instead of before it
            write_text(path, text)
        os._exit(9)
    cache.write_text = die
cache.CHUNK_ROWS = 5
ask(names(start, stop), root)
"""


def fill(root, start, stop, kill=0):
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", FILL, str(root), str(start), str(stop), str(kill)]
    return subprocess.Popen(command, cwd=folder)


def test_kill_between_the_two_files_of_a_chunk(tmp_path):
    assert fill(tmp_path, 0, 20, kill=1).wait() == 9
    folder = space_folder(SPACE, tmp_path)
    assert len(list(folder.glob("*.npy"))) == 1
    assert not list(folder.glob("*-index.json"))
    assert ask(names(0, 20), tmp_path).computed == names(0, 20)


def test_kill_after_a_chunk_keeps_it(tmp_path):
    assert fill(tmp_path, 0, 20, kill=2).wait() == 9
    assert ask(names(0, 20), tmp_path).computed == names(5, 20)


def test_two_processes_fill_a_space_while_a_third_trims_it(tmp_path):
    processes = [fill(tmp_path, 0, 1500), fill(tmp_path, 700, 2200)]
    num_trims = 0
    while any(process.poll() is None for process in processes):
        num_trims += trim(tmp_path, 0) == 0
    assert [process.returncode for process in processes] == [0, 0]
    assert num_trims > 0


def test_two_processes_fill_a_space(tmp_path):
    processes = [fill(tmp_path, 0, 400), fill(tmp_path, 200, 600)]
    assert [process.wait() for process in processes] == [0, 0]
    assert ask(names(0, 600), tmp_path).calls == []


def overwrite(path, content):
    path.write_bytes(content)


DAMAGE = {
    "rows are gone": lambda rows, index: rows.unlink(),
    "rows are empty": lambda rows, index: overwrite(rows, b""),
    "rows end in the header": lambda rows, index: overwrite(rows, rows.read_bytes()[:40]),
    "rows end early": lambda rows, index: overwrite(rows, rows.read_bytes()[:-4]),
    "rows are zeros": lambda rows, index: overwrite(rows, bytes(300)),
    "rows are something else": lambda rows, index: overwrite(rows, b"<html>" * 50),
    "rows cannot be opened": lambda rows, index: (rows.unlink(), rows.mkdir()),
    "too few rows": lambda rows, index: np.save(rows, np.zeros((2, ROW_SIZE), np.float32)),
    "too many rows": lambda rows, index: np.save(rows, np.zeros((4, ROW_SIZE), np.float32)),
    "short rows": lambda rows, index: np.save(rows, np.zeros((3, 1), np.float32)),
    "other dtype": lambda rows, index: np.save(rows, np.zeros((3, ROW_SIZE), np.float64)),
    "objects": lambda rows, index: np.save(rows, np.array([[None] * ROW_SIZE] * 3)),
    "index is empty": lambda rows, index: overwrite(index, b""),
    "index ends early": lambda rows, index: overwrite(index, index.read_bytes()[:-3]),
    "index is no text": lambda rows, index: overwrite(index, b"\xff\xfe\xfd"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_chunk_is_computed_again(tmp_path, damage):
    ask(["a", "b", "c"], tmp_path)
    ask(["d"], tmp_path)
    folder = space_folder(SPACE, tmp_path)
    index = next(p for p in folder.glob("*-index.json") if len(read_json(p)) == 3)
    rows = index.with_name(index.name.replace("-index.json", ".npy"))
    DAMAGE[damage](rows, index)
    assert ask(["d", "c", "a", "b"], tmp_path).computed == ["c", "a", "b"]
    assert ask(["d", "c", "a", "b"], tmp_path).calls == []


def test_chunks_without_a_wanted_key_are_not_loaded(tmp_path, monkeypatch):
    ask(["a"], tmp_path)
    monkeypatch.setattr(cache.np, "load", lambda *_, **__: pytest.fail("a chunk is loaded"))
    assert ask(["b"], tmp_path).computed == ["b"]


def test_a_space_does_not_hold_what_pickle_would_execute(tmp_path):
    ask(["a"], tmp_path)
    folder = space_folder(SPACE, tmp_path)
    assert {p.suffix for p in folder.iterdir()} == {".npy", ".json"}
    index = next(folder.glob("*-index.json"))
    assert json.loads(index.read_text()) == ["a"]


def fill_space(root, number, last_used):
    """Make a space with one row, last used at a given time."""
    space = {"number": number}
    ask([f"key {number}"], root, space)
    folder = space_folder(space, root)
    for path in folder.iterdir():
        os.utime(path, (last_used, last_used))
    return folder


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_trim_removes_what_was_not_used_for_longest(tmp_path):
    folders = [fill_space(tmp_path, n, used) for n, used in enumerate([3000, 1000, 2000])]
    sizes = [size_of(folder) for folder in folders]
    assert trim(tmp_path, sum(sizes)) == sum(sizes)
    assert all(folder.exists() for folder in folders)
    # A byte too much, so one goes: the one used at 1000.
    assert trim(tmp_path, sum(sizes) - 1) == sizes[0] + sizes[2]
    assert [folder.exists() for folder in folders] == [True, False, True]
    assert trim(tmp_path, sizes[0]) == sizes[0]
    assert [folder.exists() for folder in folders] == [True, False, False]
    assert trim(tmp_path, 0) == 0
    assert list(tmp_path.iterdir()) == []
    assert trim(tmp_path / "nowhere", 0) == 0


def test_trim_goes_by_time_alone(tmp_path):
    times = [5000, 2000, 7000, 1000, 8000, 3000, 6000, 4000]
    folders = {fill_space(tmp_path, n, used): used for n, used in enumerate(times)}
    while folders:
        oldest = min(folders, key=folders.get)
        trim(tmp_path, sum(map(size_of, folders)) - 1)
        del folders[oldest]
        assert set(tmp_path.iterdir()) == set(folders)


def test_cache_of_others_can_be_read(tmp_path, monkeypatch):
    ask(["a"], tmp_path)

    def refuse(path):
        raise PermissionError

    monkeypatch.setattr(cache.os, "utime", refuse)
    assert ask(["a"], tmp_path).calls == []


def test_reading_is_using(tmp_path):
    folders = [fill_space(tmp_path, n, used) for n, used in enumerate([1000, 2000])]
    assert ask(["key 0"], tmp_path, {"number": 0}).calls == []
    trim(tmp_path, max(map(size_of, folders)))
    assert [folder.exists() for folder in folders] == [True, False]


def test_trim_touches_nothing_but_spaces(tmp_path):
    """Somebody may name a folder that holds other things, too."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(bytes(1000))
    (tmp_path / "a.txt").write_text("x")
    fill_space(tmp_path, 0, 1000)
    assert trim(tmp_path, 0) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "photos"]
    assert (tmp_path / "photos" / "a.jpg").exists()


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.setenv("CVPIPE_CACHE_DIR", "/c")
    assert cache_root() == Path("/c")
    monkeypatch.setenv("CVPIPE_CACHE_DIR", "")
    assert cache_root() == Path("/x/cvpipe")
    monkeypatch.delenv("CVPIPE_CACHE_DIR")
    assert cache_root() == Path("/x/cvpipe")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == tmp_path / ".cache" / "cvpipe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == tmp_path / ".cache" / "cvpipe"


def test_max_bytes(monkeypatch):
    monkeypatch.delenv("CVPIPE_CACHE_BYTES", raising=False)
    assert max_bytes() == 5_000_000_000
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", "")
    assert max_bytes() == 5_000_000_000
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", "0")
    assert max_bytes() == 0
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", "123")
    assert max_bytes() == 123


@pytest.mark.parametrize("text", ["5 GB", "-1", "1e9", "²", " ", "1.5"])
def test_max_bytes_error(monkeypatch, text):
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", text)
    with pytest.raises(InputError) as caught:
        max_bytes()
    assert str(caught.value) == (
        "the environment variable CVPIPE_CACHE_BYTES must be a whole number of bytes, but is "
        f"{text!r}; unset it or write for example 5000000000."
    )


def test_an_empty_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="an empty key"):
        cache.cached_rows({}, ["a", ""], lambda _: None, 1, tmp_path)


def test_cache_that_cannot_be_written(tmp_path):
    root = tmp_path / "file"
    root.write_text("x")
    with pytest.raises(InputError) as caught:
        ask(["a"], root)
    assert str(caught.value) == (
        f"cannot write the cache {str(root)!r} (Not a directory); name another folder in the "
        "environment variable CVPIPE_CACHE_DIR."
    )
