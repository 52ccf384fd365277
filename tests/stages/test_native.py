"""Native files: classic contenders as arrays, with a program that needs little to read them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.cli import main
from cvpipe.config import Config
from cvpipe.data.images import DecodeRule
from cvpipe.data.threads import load_sizes
from cvpipe.errors import InputError
from cvpipe.export.formats import file_name
from cvpipe.features.table import KINDS
from cvpipe.files import read_json, write_json
from cvpipe.runs import Run
from cvpipe.stages import native
from cvpipe.stages.export import export_contender
from cvpipe.stages.job import Nobody
from cvpipe.stages.native import (
    TRANSFORMERS,
    obstacle_to_native,
    open_native,
    pack,
    unpack,
    write_native,
)
from cvpipe.stages.runtime_text import import_program, runtime_text
from cvpipe.stages.verify import check_file, verify_bundle
from tests.conftest import fresh_processes

PIPELINE = """
name = "a"
threads = 2
[data]
root = "photos"
[split]
careless = false
[evaluate]
resamples = 100
learning_curve = false
views = ["single", "flip"]
[[feature]]
name = "words"
kind = "bag_of_words"
image_size = [64, 64]
settings = {num_words = 16, weighting = "tf_idf"}
[[feature]]
name = "patches"
kind = "kmeans_features"
settings = {num_words = 16}
[[feature]]
name = "fisher"
kind = "fisher_vectors"
image_size = [64, 64]
settings = {num_gaussians = 2, num_dimensions = 8}
[[contender]]
name = "learned"
features = ["words", "patches", "fisher"]
classifier = "gradient_boosting"
[[contender]]
name = "fixed"
features = ["hog", "local_binary_patterns", "texture_energy"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "pixels"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "colours"
features = ["colour_histogram"]
classifier = "chi2_svm"
search = "coarse"
[[contender]]
name = "facts"
features = ["file_facts"]
classifier = "softmax"
[[contender]]
name = "all"
members = ["learned", "fixed", "pixels", "colours"]
combine = "geometric_mean"
"""
NAMES = ["learned", "fixed", "pixels", "colours", "all"]
# All of cvpipe's dependencies but NumPy, OpenCV and Pillow, as far as they could be of use.
NOT_THERE = ("cvpipe", "tensorflow", "keras", "sklearn", "scipy", "skops", "pandas", "pydantic")
WITHOUT = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*NOT_THERE, "threadpoolctl", "simplejpeg", "matplotlib")!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def photos(odd_photos):
    """The classes are called `0`, `NA` and `<b>`."""
    return odd_photos


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("native")
    (folder / "photos").symlink_to(photos)
    (folder / "a.toml").write_text(PIPELINE)
    with fresh_processes():
        return cvpipe.run(folder / "a.toml", runs_path=folder / "runs", watcher=Nobody())


@pytest.fixture(scope="module")
def exported(finished, photos, tmp_path_factory):
    """A run whose contenders were all exported."""
    run = Run(shutil.copytree(finished.path, tmp_path_factory.mktemp("all") / finished.path.name))
    for name in NAMES:
        _, found = export_contender(run, name, "native", photos)
        assert found["passed"], (name, found)
    return run


def bundle_of(run, name):
    return run.export_path / name


def test_the_chosen_contender_is_exported_where_it_is_no_network(finished):
    chosen = read_json(finished.choice_path)["chosen"]
    (bundle,) = finished.export_path.iterdir()
    assert bundle.name == chosen in NAMES
    assert read_json(bundle / "parity.json")["passed"] is True
    assert read_json(bundle / "bundle.json")["files"] == {"native": "model.npz"}
    assert "What an app has of each file" in finished.report_path.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_native_file_gives_the_measured_probabilities(name, exported, photos):
    table = exported.predictions("test", name)
    paths = [photos / image_id for image_id in table["image_id"]]
    bundle = bundle_of(exported, name)
    for place in (bundle, bundle / "model.npz"):
        given = frames.probabilities_of(cvpipe.load(place).predict_proba(paths))
        np.testing.assert_allclose(given, frames.probabilities_of(table), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_program_in_the_bundle_needs_numpy_opencv_and_pillow_alone(
    name, exported, photos, tmp_path
):
    table = exported.predictions("test", name)
    bundle = shutil.copytree(bundle_of(exported, name), tmp_path / "bundle")
    paths = [str(photos / image_id) for image_id in table["image_id"]]
    answer = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT, str(bundle / "predict.py"), *paths, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    records = json.loads(answer.stdout)
    assert [record["image"] for record in records] == paths
    class_names = exported.class_names()
    given = np.array([[r["probabilities"][label] for label in class_names] for r in records])
    np.testing.assert_allclose(given, frames.probabilities_of(table), rtol=0, atol=1e-6)


def test_a_bundle_says_what_is_in_it(exported):
    facts = read_json(bundle_of(exported, "all") / "bundle.json")
    assert facts["class_names"] == ["0", "<b>", "NA"]
    assert facts["input"]["image_sizes"] == [[64, 64], [32, 32], [128, 128]]
    kinds = {feature["kind"] for feature in facts["features"].values()}
    assert kinds == set(KINDS)
    assert facts["licences"]["weights"] == "none are inside"
    readme = (bundle_of(exported, "all") / "README.md").read_text()
    assert "of 64 x 64 and of 32 x 32 and of 128 x 128 pixels" in readme
    assert "`learned`, `fixed`, `pixels`, `colours`" in readme
    assert "OpenCV 4" in readme
    program = (bundle_of(exported, "pixels") / "predict.py").read_text()
    assert "class RawPixels" in program
    assert "class BagOfWords" not in program  # nothing that is not needed


def test_every_kind_of_feature_can_be_exported():
    assert {kind: entry.transformer[1] for kind, entry in KINDS.items()} == {
        kind: transformer.__name__ for kind, transformer in TRANSFORMERS.items()
    }
    for kind in KINDS:
        compile(runtime_text((kind,)), kind, "exec")


# What cannot be


def contenders_of(*tables):
    return Config.model_validate_json(
        json.dumps({"name": "a", "data": {"root": "."}, "contender": tables})
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"name": "a", "features": ["file_facts"], "classifier": "softmax"}, "looks at no pixel"),
        ({"name": "a", "features": [], "classifier": "majority"}, "looks at no pixel"),
        (
            {"name": "a", "features": ["hog", "file_facts"], "classifier": "softmax"},
            "its feature 'file_facts' reads the file and not the image",
        ),
        (
            {"name": "a", "features": ["hog", "efficientnet_lite0"], "classifier": "softmax"},
            "its feature 'efficientnet_lite0' is computed by a network",
        ),
        ({"name": "a", "backbone": "efficientnet_lite0", "recipe": "linear_probe"}, "is a network"),
        ({"name": "a", "features": ["hog"], "classifier": "softmax"}, ""),
    ],
)
def test_obstacles(table, words):
    config = contenders_of(table)
    found = obstacle_to_native(config, config.contender[0])
    assert words in found
    assert bool(words) == bool(found)


def test_an_ensemble_names_the_member_that_is_in_the_way():
    hog = {"name": "h", "features": ["hog"], "classifier": "softmax"}
    net = {"name": "n", "backbone": "efficientnet_lite0", "recipe": "linear_probe"}
    config = contenders_of(hog, net, {"name": "both", "members": ["h", "n"]})
    assert obstacle_to_native(config, config.contender[2]).startswith(
        "its member 'n': it is a network"
    )


def test_the_command_line_says_what_is_possible(exported, photos, capsys):
    options = ["--data", str(photos)]
    assert (
        main(["export", str(exported.path), "--contender", "facts", "--format", "native", *options])
        == 2
    )
    assert "cannot become native: it looks at no pixel" in capsys.readouterr().err
    assert (
        main(["export", str(exported.path), "--contender", "fixed", "--format", "litert", *options])
        == 2
    )
    assert "no layer of a network (there is the format native" in capsys.readouterr().err
    assert main(["verify", str(bundle_of(exported, "pixels")), *options]) == 0
    assert "native: passed" in capsys.readouterr().out


# What is broken on purpose


def read_native(path):
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(str(arrays.pop("description"))), arrays


def write_changed(path, facts, arrays):
    np.savez(path, description=np.array(json.dumps(facts)), **arrays)
    return path


def turn_a_number(facts, arrays):
    key = max(arrays, key=lambda name: arrays[name].size)
    arrays[key] = arrays[key].copy()
    arrays[key].flat[arrays[key].size // 2] += 3


def forget_a_scale(facts, arrays):
    facts["members"][0]["scales"] = []


def change_a_setting(facts, arrays):
    facts["members"][0]["features"][0]["settings"]["square_root"] = True


def drop_the_calibration(facts, arrays):
    facts["members"][0]["calibration"] = {}


def see_another_view(facts, arrays):
    facts["members"][0]["view"] = "flip" if facts["members"][0]["view"] == "single" else "single"


def swap_classes(facts, arrays):
    weights = facts["members"][0]["steps"][1]["values"]["weights"]["$array"]
    arrays[weights] = arrays[weights][:, ::-1]


@pytest.mark.parametrize(
    "change",
    [
        turn_a_number,
        forget_a_scale,
        change_a_setting,
        drop_the_calibration,
        see_another_view,
        swap_classes,
    ],
)
def test_the_gate_refuses_what_was_changed(change, exported, photos, tmp_path):
    bundle = bundle_of(exported, "fixed")
    facts, arrays = read_native(bundle / "model.npz")
    same = write_changed(tmp_path / "same.npz", facts, arrays)
    assert check_file(bundle, "native", same, photos)["passed"]
    change(facts, arrays)
    other = write_changed(tmp_path / "other.npz", facts, arrays)
    found = check_file(bundle, "native", other, photos)
    assert not found["passed"]
    assert "its probabilities differ by up to" in found["reason"]


def test_another_file_in_a_bundle_is_refused(exported, photos, tmp_path):
    run = Run(shutil.copytree(exported.path, tmp_path / exported.path.name))
    bundle = bundle_of(run, "pixels")
    shutil.copyfile(bundle_of(run, "colours") / "model.npz", bundle / "model.npz")
    with pytest.raises(InputError, match="is not the file that was exported"):
        cvpipe.load(bundle)
    assert "its hash differs" in verify_bundle(bundle, photos)["formats"]["native"]["reason"]


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_files(content, exported, tmp_path):
    whole = (bundle_of(exported, "pixels") / "model.npz").read_bytes()
    path = tmp_path / "model.npz"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match=r"is no native file, or is damaged .*export it again"):
        open_native(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts.update(native_version=2), "a native file of version 2, not 1"),
        (lambda facts: facts.pop("members"), "is no native file, or is damaged"),
        (lambda facts: facts["members"][0]["features"][0].update(kind="hogg"), "is damaged"),
        (lambda facts: facts["members"][0].update(view="sideways"), "sideways"),
        (
            lambda facts: facts["members"][0]["features"][0]["learned"].update(transform=1),
            "a feature does not learn 'transform'",
        ),
        (
            lambda facts: facts["members"][0]["features"][0]["learned"].update(__class__=1),
            "a feature does not learn '__class__'",
        ),
    ],
)
def test_descriptions_that_make_no_sense(change, words, exported, tmp_path):
    facts, arrays = read_native(bundle_of(exported, "fixed") / "model.npz")
    change(facts)
    with pytest.raises(InputError, match=words):
        open_native(write_changed(tmp_path / "model.npz", facts, arrays))


def test_what_only_shows_when_it_computes(exported, tmp_path):
    facts, arrays = read_native(bundle_of(exported, "pixels") / "model.npz")
    facts["members"][0]["steps"][0]["name"] = "dream"
    predict = open_native(write_changed(tmp_path / "model.npz", facts, arrays))
    with pytest.raises(InputError, match="cannot be computed with"):
        predict(np.zeros((1, 32, 32, 3), np.uint8))


def test_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "model.npz", description=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="allow_pickle"):
        open_native(tmp_path / "model.npz")


def test_images_of_another_size_or_kind_are_refused(exported):
    predict = open_native(bundle_of(exported, "pixels") / "model.npz")
    good = np.zeros((2, 32, 32, 3), np.uint8)
    assert predict(good).shape == (2, len(exported.class_names()))
    for bad in [(good[:, :16],), (good.astype(np.float32),), (good, good), ()]:
        with pytest.raises(InputError, match=r"takes uint8 RGB images of the sizes \[\(32, 32\)\]"):
            predict(*bad)


# Arrays beside JSON


def test_what_is_packed_is_unpacked():
    rng = np.random.default_rng(0)
    value = {
        "exact": rng.normal(size=(3, 2)),
        "short": rng.normal(size=5).astype(np.float32).astype(np.float64),
        "codes": np.array([1, 2**40]),
        "few": [np.arange(3), {"none": np.zeros(0)}],
        "number": np.float64(0.1),
        "words": ["a", True, 3],
    }
    arrays = {}
    text = json.dumps(pack(value, arrays))
    found = unpack(json.loads(text), arrays)
    np.testing.assert_array_equal(found["exact"], value["exact"])
    np.testing.assert_array_equal(found["short"], value["short"])
    np.testing.assert_array_equal(found["codes"], value["codes"])
    np.testing.assert_array_equal(found["few"][0], [0, 1, 2])
    assert found["number"] == 0.1
    assert found["words"] == value["words"]
    kinds = [array.dtype for array in arrays.values()]
    assert kinds == [np.float64, np.float32, np.int64, np.int32, np.float32]


def test_the_same_run_gives_the_same_bytes(exported, photos, tmp_path):
    run = Run(shutil.copytree(exported.path, tmp_path / exported.path.name))
    first = (bundle_of(run, "all") / file_name("native")).read_bytes()
    shutil.rmtree(bundle_of(run, "all"))
    export_contender(run, "all", "native", photos)
    assert (bundle_of(run, "all") / "model.npz").read_bytes() == first


def test_scores_of_a_native_file_equal_those_of_the_run(exported, photos, tmp_path):
    out = tmp_path / "table.csv"
    command = ["evaluate", str(bundle_of(exported, "colours")), "--data", str(photos)]
    assert main([*command, "--allow-leak", "--out", str(out)]) == 0
    table = pd.read_csv(out, keep_default_na=False, dtype={"label": str}).set_index("image_id")
    expected = exported.predictions("test", "colours").set_index("image_id")
    columns = [name for name in expected if name.startswith("p_")]
    np.testing.assert_allclose(
        table.loc[expected.index, columns], expected[columns], rtol=0, atol=1e-6
    )


def test_curves_of_a_calibration_are_in_the_file_too(finished, photos, tmp_path):
    run = Run(shutil.copytree(finished.path, tmp_path / finished.path.name))
    path = run.fitted_calibration_path("pixels")
    num_classes = len(run.class_names())
    curves = {"inputs": [[0.0, 0.4, 1.0]] * num_classes, "outputs": [[0.1, 0.7, 0.8]] * num_classes}
    write_json(path, {"method": "isotonic", "num_images": 9, **curves})
    contender = next(c for c in run.config().contender if c.name == "pixels")
    write_native(run, run.config(), contender, tmp_path / "model.npz")
    paths = [photos / image_id for image_id in run.predictions("test", "pixels")["image_id"]]
    (images,) = next(iter(load_sizes(paths, [(32, 32)], DecodeRule(), len(paths), 1)))
    given = open_native(tmp_path / "model.npz")(images)
    expected = cvpipe.load(run.path, "pixels").predict_proba(paths)
    np.testing.assert_allclose(given, frames.probabilities_of(expected), rtol=0, atol=1e-9)
    assert ((given > 0.05) & (given < 0.9)).all()


def test_a_missing_opencv_says_what_to_install(exported, photos, tmp_path):
    bundle = shutil.copytree(bundle_of(exported, "fixed"), tmp_path / "bundle")
    path = str(photos / exported.predictions("test", "fixed")["image_id"].iloc[0])
    without = WITHOUT.replace("('cvpipe',", "('cvpipe', 'cv2',")
    assert without != WITHOUT
    answer = subprocess.run(
        [sys.executable, "-I", "-c", without, str(bundle / "predict.py"), path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: 'model.npz' needs OpenCV (No module named 'cv2'); inst")


def test_flipped_bytes_are_errors_that_say_so(exported, tmp_path):
    whole = bytearray((bundle_of(exported, "fixed") / "model.npz").read_bytes())
    path, rng = tmp_path / "model.npz", np.random.default_rng(0)
    images = np.zeros((1, 128, 128, 3), np.uint8)
    refused = 0
    for place in rng.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            open_native(path)(images)
        except InputError:
            refused += 1
    assert refused > 50  # the rest are dates and the like


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda member: member["features"][0]["settings"].update(orientations=10**8), "between 1"),
        (
            lambda member: member["features"][1]["settings"].update(num_points=10**7),
            "choose one of",
        ),
    ],
)
def test_settings_that_would_take_for_ever_are_refused(change, words, exported, tmp_path):
    facts, arrays = read_native(bundle_of(exported, "fixed") / "model.npz")
    change(facts["members"][0])
    with pytest.raises(InputError, match=words):
        open_native(write_changed(tmp_path / "model.npz", facts, arrays))


def test_trees_and_votes_that_would_take_for_ever(exported, tmp_path):
    facts, arrays = read_native(bundle_of(exported, "learned") / "model.npz")
    sizes = read_json(bundle_of(exported, "learned") / "bundle.json")["input"]["image_sizes"]
    images = [np.zeros((1, *size, 3), np.uint8) for size in sizes]
    expected = open_native(bundle_of(exported, "learned") / "model.npz")(*images)
    facts["members"][0]["steps"][0]["values"]["depth"] = 10**12
    deep = open_native(write_changed(tmp_path / "deep.npz", facts, arrays))
    np.testing.assert_array_equal(deep(*images), expected)

    facts, arrays = read_native(bundle_of(exported, "pixels") / "model.npz")
    image = np.zeros((1, 32, 32, 3), np.uint8)
    for name, value in [("num_classes", 10**9), ("metric", "bogus"), ("vote", "bogus")]:
        changed = json.loads(json.dumps(facts))
        changed["members"][0]["steps"][0]["values"][name] = value
        predict = open_native(write_changed(tmp_path / "model.npz", changed, arrays))
        with pytest.raises(InputError):
            predict(image)


def test_a_file_that_would_fill_the_memory_is_not_unpacked(exported, tmp_path, monkeypatch):
    path = bundle_of(exported, "pixels") / "model.npz"
    monkeypatch.setattr(native, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"it holds [\d,]+ bytes, more than 1,000"):
        open_native(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_sizes": 3}, "'image_sizes' is 3, not a list"),
        ({"image_sizes": [[32, 30_000]]}, "not a height and a width of 1 to 10,000"),
        ({"image_sizes": [[32, 32]] * 60}, "not a list of at most 50 sizes"),
    ],
)
def test_sizes_that_make_no_sense(changes, words, exported, photos, tmp_path):
    bundle = shutil.copytree(bundle_of(exported, "pixels"), tmp_path / "bundle")
    facts = read_json(bundle / "bundle.json")
    facts["input"] |= changes
    write_json(bundle / "bundle.json", facts)
    with pytest.raises(InputError, match=words):
        cvpipe.load(bundle)
    path = str(photos / exported.predictions("test", "pixels")["image_id"].iloc[0])
    assert import_program(("raw_pixels",)).main(["--bundle", str(bundle), path]) == 2


def test_a_feature_of_another_version_is_not_computed_in_silence(exported, tmp_path):
    bundle = shutil.copytree(bundle_of(exported, "pixels"), tmp_path / "bundle")
    facts = read_json(bundle / "bundle.json")
    facts["features"]["raw_pixels"]["version"] += 1
    write_json(bundle / "bundle.json", facts)
    with pytest.raises(InputError, match=r"'raw_pixels' as version 2 of it .* use the predict.py"):
        cvpipe.load(bundle)
