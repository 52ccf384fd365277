"""A folder goes in, a pipeline file comes out: valid, commented, and right for the images."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cvpipe.config import load_config
from cvpipe.errors import InputError
from cvpipe.runs import open_run
from cvpipe.stages import init as init_module
from cvpipe.stages.fingerprint import Similarity
from cvpipe.stages.init import init, root_in_file
from tests.conftest import run_cvpipe
from tests.stages.test_choices import one_line, uncommented_keys


def write_set(root: Path, counts: dict[str, int], size=(32, 32), mode="RGB", top=256) -> Path:
    """Write images of coarse noise, none of which resembles another; `size` is (width, height)."""
    rng = np.random.default_rng(0)
    for label, number in counts.items():
        (root / label).mkdir(parents=True)
        for index in range(number):
            if mode == "I;16":
                pixels = rng.integers(0, top, (8, 8), dtype=np.uint16).repeat(4, 0).repeat(4, 1)
                image = Image.fromarray(pixels)
            else:
                pixels = rng.integers(0, top, (8, 8, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
            image.save(root / label / f"{index}.png")
    return root


class Listener:
    """A watcher that remembers what it was told."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    def track(self, items, total, title):
        return items


@pytest.fixture(scope="module")
def initialised(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("init") / "größe 1.toml"
    return init(photos, threads=2, out=out)


def test_real_photos_round_trip(initialised, photos):
    config = load_config(initialised.path)
    assert config.name == "größe_1"
    assert (initialised.path.parent / config.data.root).samefile(photos)
    assert config.threads == 2
    assert (config.split.protocol, config.split.num_folds) == ("kfold", 5)
    assert len(config.contender) == 8
    assert config.evaluate.select_by == "log_loss"
    text = initialised.path.read_text(encoding="utf-8")
    assert uncommented_keys(text) == []
    assert "# Command: cvpipe run 'größe 1.toml'\n" in text
    assert "'0' 16, 'NA' 16, 'poppy' 16" in text
    assert max(len(line) for line in text.splitlines() if "root" not in line) <= 100


def test_real_photos_are_measured(initialised):
    f = initialised.fingerprint
    assert f.class_images == {"0": 16, "NA": 16, "poppy": 16}
    assert f.formats == {"JPEG": 36, "PNG": 12}
    assert f.small_fraction == 1.0
    assert f.grey_fraction < 0.2
    assert f.similarity.num_images == 48
    assert f.similarity.verdict == "in between"  # close crops of photos
    assert f.test_images == 10
    assert initialised.audit.errors.empty


@pytest.mark.slow
def test_the_file_runs(initialised, photos):
    answer = run_cvpipe(
        "run", initialised.path.name, "--set", "split.protocol=holdout", "--set",
        "split.careless=false", "--set", "evaluate.resamples=100", cwd=initialised.path.parent,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    run = open_run(next((initialised.path.parent / "runs").glob("größe_1-*")))
    assert len(run.manifest()) == 48


def test_odd_names_survive(tmp_path):
    name = 'Größe "eins" \\ zwei\x7f'
    root = write_set(tmp_path / name, {"0": 6, "NA": 6, "po\nppy": 6})
    out = tmp_path / "deeper" / "my 'file'.toml"
    out.parent.mkdir()
    init(root, threads=2, out=out, network=False)
    config = load_config(out)
    assert config.data.root == f"../{name}"
    assert config.name == "my__file_"
    text = out.read_text(encoding="utf-8")
    assert "'0' 6, 'NA' 6, 'po\\nppy' 6" in text
    assert uncommented_keys(text) == []


def test_the_file_is_called_like_the_folder_and_lies_in_the_current_one(tmp_path, monkeypatch):
    root = write_set(tmp_path / "Größe 10", {"a": 6, "b": 6})
    monkeypatch.chdir(tmp_path)
    result = init(Path("Größe 10"), threads=1, network=False)
    assert result.path == Path("Größe_10.toml")
    assert load_config(result.path).data.root == root.name
    assert result.fingerprint.similarity is None


def test_a_file_is_not_overwritten_unless_asked_for(tmp_path):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6})
    out = tmp_path / "x.toml"
    out.write_text("mine")
    message = re.escape(f"there is a file {str(out)!r} already; give another name with --out, or")
    with pytest.raises(InputError, match=f"{message} replace it with --force"):
        init(root, threads=1, out=out, network=False)
    assert out.read_text() == "mine"
    init(root, threads=1, out=out, network=False, force=True)
    assert load_config(out).data.root == "set"


def test_what_cannot_be_a_pipeline_file(tmp_path):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6})
    with pytest.raises(InputError, match=r"called '.*x.json'; its name must end with .toml"):
        init(root, threads=1, out=tmp_path / "x.json", network=False)
    (tmp_path / "f.toml").mkdir()
    with pytest.raises(InputError, match=r"f.toml' is a folder; give the name of a new file"):
        init(root, threads=1, out=tmp_path / "f.toml", network=False)
    with pytest.raises(InputError, match=r"'a.TOML' is a pipeline file already; give a folder"):
        init(Path("a.TOML"), threads=1)
    with pytest.raises(InputError, match="there is no folder 'nowhere'"):
        init(Path("nowhere"), threads=1)


def test_errors_are_written_down_and_do_not_stop_it(tmp_path):
    root = write_set(tmp_path / "set", {"a": 8, "b": 3})
    (root / "a" / "broken.png").write_bytes(b"")
    out = tmp_path / "x.toml"
    result = init(root, threads=1, out=out, network=False)
    assert set(result.audit.errors["finding"]) == {"empty_file", "tiny_class"}
    assert result.fingerprint.class_images == {"a": 8, "b": 3}
    header = one_line(out.read_text().split("\n\n")[0])
    assert "The audit found errors, which stop a run: 'empty_file' 1, 'tiny_class' 1." in header
    assert load_config(out).data.drop_unreadable is False


def test_nothing_to_read(tmp_path):
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 2 image\(s\) in '.*set' can be decoded"):
        init(tmp_path / "set", threads=1, out=tmp_path / "x.toml")
    assert not (tmp_path / "x.toml").exists()


@pytest.mark.parametrize("error", [ImportError("no tensorflow"), InputError("no weights")])
def test_without_weights_the_comparison_is_left_out(tmp_path, monkeypatch, error):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6})

    def fail(images, threads):
        raise error

    monkeypatch.setattr(init_module, "measure_similarity", fail)
    listener = Listener()
    result = init(root, threads=1, out=tmp_path / "x.toml", watcher=listener)
    assert f"  left out: {error}" in listener.lines
    assert "ImageNet: not compared." in one_line(result.path.read_text())


def test_the_network_is_not_loaded_when_it_is_not_wanted(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6})
    monkeypatch.setattr(init_module, "measure_similarity", None)
    assert init(root, threads=1, out=tmp_path / "x.toml", network=False).path.exists()


def test_a_table_with_columns_and_a_given_split(tmp_path):
    root = write_set(tmp_path / "set", {"a": 8, "b": 8})
    rows = [
        (f"{label}/{n}.png", label, ("train", "test")[n % 2], ("x", "y")[n // 4], str(n))
        for label in "ab"
        for n in range(8)
    ]
    table = pd.DataFrame(rows, columns=["path", "label", "split", 'si"te', "age"])
    table.to_csv(root / "labels.csv", index=False)
    result = init(root / "labels.csv", threads=1, out=tmp_path / "x.toml", network=False)
    config = load_config(result.path)
    assert (config.data.root, config.data.labels) == ("set", "labels.csv")
    assert (config.split.protocol, config.split.val_fraction) == ("given", 0.2)
    assert config.split.careless
    assert config.evaluate.subgroups == ('si"te', "age")
    text = one_line(result.path.read_text())
    assert "a split: 'train' 8, 'test' 8. Its test: 8 images; at 90 % accuracy" in text
    assert "has no val, so this share of its train becomes val" in text
    assert "Labels stand in a table in data.root: 'a' 8, 'b' 8." in text

    listener = Listener()
    init(root, threads=1, out=tmp_path / "y.toml", network=False, watcher=listener)
    assert "cvpipe init" in listener.lines[0]
    assert str(root / "labels.csv") in listener.lines[0]


def test_a_split_that_leaks_is_written_down_as_an_error(tmp_path):
    root = write_set(tmp_path / "set", {"train/a": 8, "train/b": 8, "test/a": 8, "test/b": 8})
    (root / "test/a/copy.png").write_bytes((root / "train/a/0.png").read_bytes())
    result = init(root, threads=1, out=tmp_path / "x.toml", network=False)
    assert load_config(result.path).split.protocol == "given"
    assert "split_leak" in set(result.audit.errors["finding"])
    assert "'split_leak' 1" in result.path.read_text()


def test_a_split_without_test_is_not_used(tmp_path):
    root = write_set(tmp_path / "set", {"train/a": 8, "train/b": 8, "val/a": 8, "val/b": 8})
    result = init(root, threads=1, out=tmp_path / "x.toml", network=False)
    assert load_config(result.path).split.protocol == "kfold"
    text = one_line(result.path.read_text())
    assert "The images come with a split, but without train or test." in text


def test_sixteen_bits_that_use_less(tmp_path):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6}, mode="I;16", top=3700)
    result = init(root, threads=1, out=tmp_path / "x.toml", network=False)
    assert load_config(result.path).images.white_level == 4095
    assert result.fingerprint.grey_fraction == 1.0
    assert "16-bit images whose values end at 3,6" in result.path.read_text()


def test_the_sample_is_seen_with_the_white_level_of_the_file(tmp_path, monkeypatch):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6}, mode="I;16", top=3700)
    seen = []

    def remember(images, threads):
        seen.append(images)
        return Similarity("similar", 0.1, 0.9, len(images))

    monkeypatch.setattr(init_module, "measure_similarity", remember)
    init(root, threads=1, out=tmp_path / "x.toml")
    assert seen[0].max() > 200  # divided by 257 all would be below 15


def test_long_images_are_padded(tmp_path):
    root = write_set(tmp_path / "set", {"a": 6, "b": 6}, size=(32, 80))
    result = init(root, threads=1, out=tmp_path / "x.toml", network=False)
    assert load_config(result.path).images.fit == "pad"


def test_the_root_is_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "here/images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert root_in_file(Path("here/images"), Path("here/x.toml")) == "images"
    assert root_in_file(Path("here"), Path("here/x.toml")) == "."
    assert root_in_file(Path("elsewhere"), Path("here/x.toml")) == "../elsewhere"
    assert root_in_file(Path("here/link"), Path("here/x.toml")) == "link"
    # ".." behind a link leads to its target's parent.
    assert root_in_file(tmp_path / "here/images", Path("here/link/x.toml")) == "../here/images"
    assert Path("here/link/../here/images").samefile("here/images")
