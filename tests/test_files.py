import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cvpipe.files import atomic_path, read_json, write_json, write_table, write_text


def run_python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "ü")
    assert (tmp_path / "a" / "b" / "c.txt").read_text(encoding="utf-8") == "ü"
    assert names_in(tmp_path / "a" / "b") == ["c.txt"]


def test_target_appears_only_at_the_end(tmp_path):
    target = tmp_path / "model.keras"
    with atomic_path(target) as partial:
        assert partial.suffix == ".keras"  # Keras chooses the format by it
        assert partial.parent == target.parent
        assert ".partial" in partial.suffixes
        partial.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("is_folder", [False, True])
def test_exception_leaves_the_old_content(tmp_path, error, is_folder):
    target = tmp_path / "target"
    write_text(target / "inside" if is_folder else target, "old")

    def write_half():
        with atomic_path(target) as partial:
            if is_folder:
                partial.mkdir()
                (partial / "inside").write_text("new")
            else:
                partial.write_text("new")
            raise error

    with pytest.raises(error):
        write_half()
    assert (target / "inside" if is_folder else target).read_text() == "old"
    assert names_in(tmp_path) == ["target"]


def test_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass
    assert names_in(tmp_path) == []


def test_folder_appears_whole(tmp_path):
    with atomic_path(tmp_path / "bundle") as partial:
        partial.mkdir()
        write_text(partial / "a.txt", "a")
        assert not (tmp_path / "bundle").exists()
    assert names_in(tmp_path / "bundle") == ["a.txt"]
    assert names_in(tmp_path) == ["bundle"]


def test_complete_folder_is_not_replaced(tmp_path):
    write_text(tmp_path / "bundle" / "a.txt", "old")
    with pytest.raises(OSError, match="not empty"), atomic_path(tmp_path / "bundle") as partial:
        write_text(partial / "b.txt", "new")
    assert names_in(tmp_path / "bundle") == ["a.txt"]
    assert names_in(tmp_path) == ["bundle"]


def test_kill_leaves_no_target_and_does_not_hinder_the_next(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from cvpipe.files import atomic_path\n"
        # Processes in containers have the same number again and again.
        "os.getpid = lambda: 1\n"
        "with atomic_path(Path(sys.argv[1])) as partial:\n"
        "    partial.mkdir()\n"
        "    (partial / 'a.txt').write_text('half')\n"
        "    if sys.argv[2] == 'kill': os._exit(9)\n"
    )
    target = tmp_path / "bundle"
    assert run_python(code, target, "kill").wait() == 9
    assert not target.exists()
    assert run_python(code, target, "go on").wait() == 0
    assert names_in(target) == ["a.txt"]


def test_two_processes_write_the_same_target(tmp_path):
    code = (
        "import sys; from pathlib import Path; from cvpipe.files import write_text\n"
        "for _ in range(150): write_text(Path(sys.argv[1]), sys.argv[2] * 100_000)\n"
    )
    target = tmp_path / "a.txt"
    processes = [run_python(code, target, letter) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in processes):
        if target.exists():
            text = target.read_text()
            seen.add((len(text), len(set(text))))
    assert [process.returncode for process in processes] == [0, 0]
    assert seen == {(100_000, 1)}
    assert names_in(tmp_path) == ["a.txt"]


def test_json(tmp_path):
    path = tmp_path / "a.json"
    value = {"b": [1, 0.1, None, True], "a": "größe \n <b>"}
    write_json(path, value)
    assert read_json(path) == value
    assert list(read_json(path)) == ["b", "a"]
    text = path.read_text(encoding="utf-8")
    assert "größe" in text
    assert text.endswith("}\n")


def test_json_takes_only_what_it_can_store(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": Path("x")})
    assert names_in(tmp_path) == []


def test_table_is_written_whole_or_not_at_all(tmp_path):
    class Unprintable:
        def __str__(self):
            raise RuntimeError("in the middle")

    path = tmp_path / "t.csv"
    write_table(path, pd.DataFrame({"a": ["old"]}))
    with pytest.raises(RuntimeError, match="in the middle"):
        write_table(path, pd.DataFrame({"a": ["x" * 10_000, Unprintable()]}))
    assert path.read_text() == "a\nold\n"
    assert names_in(tmp_path) == ["t.csv"]


def test_table_keeps_every_bit(tmp_path):
    path = tmp_path / "t.csv"
    values = [0.1 + 0.2, math.pi * 1e-300, 5e-324, 1e22, -0.0, 1 / 3, math.nan]
    write_table(path, pd.DataFrame({"a": values, "b": ["x"] * 7}))
    text = path.read_bytes().decode()
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "a,b"  # no index
    read = [float(line.split(",")[0] or "nan") for line in lines[1:]]
    np.testing.assert_array_equal(np.array(read).view(np.int64), np.array(values).view(np.int64))
