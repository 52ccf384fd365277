"""Files of every format: kept when they are what was measured, and only then."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.cli import main
from cvpipe.errors import GateError, InputError
from cvpipe.export.bundle import TOLERANCES, compare_probabilities, tolerance_of
from cvpipe.export.files import bytes_of, hash_of
from cvpipe.export.formats import NETWORK_FORMATS, file_name, label_of, parse_label
from cvpipe.files import read_json, write_json
from cvpipe.runs import Run
from cvpipe.sections import ExportSection
from cvpipe.stages import export
from cvpipe.stages.export import export_contender, is_settled, require_parity
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import exported_contender, exported_file
from cvpipe.stages.verify import (
    check_file,
    describe_check,
    judge,
    read_facts,
    read_parity,
    record,
    verify_bundle,
    wrong_facts,
)
from tests.conftest import fresh_processes

LENET = 'backbone = "lenet5"\nrecipe = "from_scratch"\nimage_size = [28, 35]\n'
TRAINING = "epochs = 6, batch_size = 8, warmup_epochs = 0.25, early_stopping = false"
PIPELINE = f"""
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
[export]
formats = ["keras", "onnx"]
[[contender]]
name = "small"
{LENET}training = {{{TRAINING}}}
[[contender]]
name = "pixels"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "both"
members = ["small", "pixels"]
"""
EXACT = [
    label_of(name, precision)
    for name, entry in NETWORK_FORMATS.items()
    for precision in entry.precisions
    if precision in TOLERANCES
]


@pytest.fixture(scope="module")
def photos(odd_photos):
    """The classes are called `0`, `NA` and `<b>`."""
    return odd_photos


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "photos").symlink_to(photos)
    (folder / "a.toml").write_text(PIPELINE)
    with fresh_processes():
        return cvpipe.run(folder / "a.toml", runs_path=folder / "runs", watcher=Nobody())


@pytest.fixture
def copy(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / finished.path.name))


@pytest.fixture(scope="module")
def exported(finished, photos, tmp_path_factory):
    """A run whose network was exported in all formats in which it can be exact."""
    run = Run(shutil.copytree(finished.path, tmp_path_factory.mktemp("all") / finished.path.name))
    with fresh_processes():  # whose memory is told of
        for label in EXACT:
            _, found = export_contender(run, "small", label, photos)
            assert found["passed"], (label, found)
    return run


def bundle_of(run, name="small"):
    return run.export_path / name


def test_the_pipeline_exports_what_it_names(finished):
    facts = read_json(bundle_of(finished) / "bundle.json")
    assert facts["files"] == {"keras": "model.keras", "onnx": "model.onnx"}
    parity = read_json(bundle_of(finished) / "parity.json")
    assert parity["passed"] is True
    assert list(parity["formats"]) == ["keras", "onnx"]
    page = finished.report_path.read_text()
    assert "What an app has of each file" in page


@pytest.mark.parametrize("label", EXACT)
def test_every_file_gives_the_measured_probabilities(label, exported, photos):
    bundle = bundle_of(exported)
    table = exported.predictions("test", "small")
    paths = [photos / image_id for image_id in table["image_id"]]
    expected = frames.probabilities_of(table)
    given = frames.probabilities_of(cvpipe.load(bundle, file=label).predict_proba(paths))
    np.testing.assert_allclose(given, expected, atol=tolerance_of(label))
    part = read_facts(bundle)["files"][label]
    of_file = frames.probabilities_of(cvpipe.load(bundle / part).predict_proba(paths[:3]))
    np.testing.assert_allclose(of_file, given[:3], atol=1e-6)


def test_what_is_told_of_a_file_is_what_it_is(exported):
    bundle = bundle_of(exported)
    facts, parity = read_facts(bundle), read_parity(bundle)
    assert set(facts["files"]) == set(facts["sha256"]) == set(parity["formats"]) == set(EXACT)
    readme = (bundle / "README.md").read_text()
    table = exported.predictions("test", "small")
    right = (frames.predicted_labels(table) == table["label"]).mean()
    for label, name in facts["files"].items():
        assert name == file_name(*parse_label(label))
        assert facts["sha256"][label] == hash_of(bundle / name)
        found = parity["formats"][label]
        assert found["bytes"] == bytes_of(bundle / name) > 10_000, label
        # TensorFlow alone takes more than an app that has none of it.
        has_tensorflow = label in ("keras", "saved_model")
        assert 50e6 < found["bytes_before_opening"] < found["peak_bytes"] < 2e9
        assert (found["peak_bytes"] > 450e6) == has_tensorflow, (label, found["peak_bytes"])
        assert all(value > 0 for value in found["milliseconds_per_image"].values())
        assert found["accuracy"]["value"] == pytest.approx(right)
        assert found["accuracy"]["difference"] == 0
        assert f"## {name}\n" in readme
        for split in ("val", "test"):
            assert found["splits"][split]["same_class_fraction"] == 1
            assert found["splits"][split]["num_images"] == len(exported.predictions(split, "small"))
    sizes = {label: found["bytes"] for label, found in parity["formats"].items()}
    assert sizes["litert-float16"] < 0.6 * sizes["litert"]
    names = {path.name for path in bundle.iterdir()}
    assert not [name for name in names if "partial" in name]


def test_a_bundle_predicts_where_there_is_neither_cvpipe_nor_tensorflow(exported, photos, tmp_path):
    bundle = shutil.copytree(bundle_of(exported), tmp_path / "moved")
    table = exported.predictions("test", "small")
    paths = [str(photos / image_id) for image_id in table["image_id"]]
    code = (
        "import runpy, sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.split('.')[0] in ('cvpipe', 'tensorflow', 'keras', 'cv2', 'pandas'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        f"sys.argv = [{str(bundle / 'predict.py')!r}, '--json', *{paths!r}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(answer.stdout)
    given = [[row["probabilities"][name] for name in exported.class_names()] for row in rows]
    np.testing.assert_allclose(given, frames.probabilities_of(table), atol=1e-4)
    assert "`python predict.py new.jpg` reads" in (bundle / "README.md").read_text()


def test_whole_numbers_are_refused_where_too_few_images_can_show_that_nothing_is_lost(
    copy, photos, capsys
):
    bundle, found = export_contender(copy, "small", "litert-int8", photos)
    assert not found["passed"]
    assert "it is not shown that at most 2 points of accuracy are lost" in found["reason"]
    num_groups = found["accuracy"]["num_groups"]
    assert found["accuracy"]["unseen"] == pytest.approx(1.96**2 / (num_groups + 1.96**2), abs=1e-4)
    assert f"among {num_groups} groups of images a loss of" in found["reason"]
    assert not (bundle / "model_int8.tflite").exists()
    assert not [path for path in bundle.iterdir() if "int8" in path.name]
    assert "litert-int8" not in read_facts(bundle)["files"]
    assert read_parity(bundle)["passed"] is False
    assert verify_bundle(bundle, photos)["passed"] is True  # of what is there
    record(bundle, "litert-int8", found)
    assert is_settled(bundle, "litert-int8")
    require_parity(Job(copy.config(), photos, copy, Nobody()))  # nobody had asked for it there
    asked = copy.config().model_copy(update={"export": ExportSection(formats=("litert-int8",))})
    with pytest.raises(GateError, match="exported as litert-int8 is not what was measured"):
        require_parity(Job(asked, photos, copy, Nobody()))
    options = ["--contender", "small", "--format", "litert", "--precision", "dynamic"]
    assert main(["export", str(copy.path), *options, "--data", str(photos)]) == 1
    assert "litert-dynamic: NOT PASSED" in capsys.readouterr().out


def channels_turned(model):
    keras = export_keras()
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    return keras.Model(images, model(images[..., ::-1]), name=model.name)


def classes_turned(model):
    keras = export_keras()
    return keras.Model(model.input, model.output[:, ::-1], name=model.name)


def one_weight_changed(model):
    twin = export_keras().models.clone_model(model)
    twin.set_weights(model.get_weights())
    kernel = next(v for v in twin.trainable_variables if "kernel" in v.path)
    values = kernel.numpy()
    values.flat[np.abs(values).argmax()] *= 1.5
    kernel.assign(values)
    return twin


def other_temperature(model):
    keras = export_keras()
    logs = keras.ops.log(model.output) * 1.01
    return keras.Model(model.input, keras.ops.softmax(logs), name=model.name)


def no_numbers(model):
    keras = export_keras()
    return keras.Model(model.input, keras.ops.log(model.output - 2), name=model.name)


def no_probabilities(model):
    keras = export_keras()
    return keras.Model(model.input, model.output * 0.6, name=model.name)


def export_keras():
    from cvpipe.models.framework import import_keras

    return import_keras()


@pytest.mark.parametrize("label", ["litert", "litert-dynamic"])
@pytest.mark.parametrize("broken", [no_numbers, no_probabilities])
def test_what_is_no_probability_is_not_kept(broken, label, copy, photos, monkeypatch):
    write_file = export.write_file
    monkeypatch.setattr(export, "write_file", lambda model, *a: write_file(broken(model), *a))
    bundle, found = export_contender(copy, "small", label, photos)
    assert not found["passed"]
    told = "no probabilities: not all are numbers from 0 that sum to 1"
    assert found["reason"] == f"its rows on val are {told}; its rows on test are {told}"
    assert describe_check(label, found)[0].startswith(f"{label}: NOT PASSED, ")
    assert exported_file(label, json.loads(json.dumps(found))).passed is False
    assert not list(bundle.glob("*.tflite"))


@pytest.mark.parametrize("label", ["keras", "litert-float16", "litert-int8"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_rows_of_one_split_that_are_no_probabilities_are_enough(label, split):
    rows = np.array([[0.25, 0.75], [0.5, 0.5]])
    splits = {name: compare_probabilities(rows, rows, 1.0) for name in ("val", "test")}
    splits[split] = compare_probabilities(rows, np.where(rows > 0.5, np.nan, rows), 1.0)
    accuracy = {"no_worse": "shown"}
    found = judge(None, "small", label, {"splits": splits, "accuracy": accuracy})
    assert not found["passed"]
    assert found["reason"].startswith(f"its rows on {split} are no probabilities")


@pytest.mark.parametrize(
    "broken", [channels_turned, classes_turned, one_weight_changed, other_temperature]
)
def test_a_file_that_is_not_what_was_measured_is_not_kept(broken, copy, photos, monkeypatch):
    def write_broken(model, *arguments):
        write_file(broken(model), *arguments)

    write_file = export.write_file
    monkeypatch.setattr(export, "write_file", write_broken)
    bundle, found = export_contender(copy, "small", "litert", photos)
    assert not found["passed"]
    assert "its probabilities differ by up to 0." in found["reason"]
    assert not list(bundle.glob("*.tflite"))
    assert "litert" not in read_facts(bundle)["files"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", ["NA", "0", "poppy"]),
        ("input", {"image_size": [35, 28]}),
        ("input", {"fit": "pad"}),
        ("input", {"white_level": 4095}),
        ("calibration", {"slopes": [9.0, 9.0, 9.0]}),
        ("test_metrics", []),
        ("contender", "other"),
        ("decisions", {"operating_point": {"goal": "youden"}}),
        ("no_such_key", 1),
    ],
)
def test_a_description_that_was_changed_is_noticed(key, value, copy, photos):
    bundle = bundle_of(copy)
    facts = read_facts(bundle)
    facts[key] = {**facts[key], **value} if isinstance(value, dict) else value
    write_json(bundle / "bundle.json", facts)
    found = check_file(bundle, "onnx", bundle / "model.onnx", photos)
    assert not found["passed"]
    assert repr(key) in found["reason"]


def test_a_file_that_was_changed_is_noticed_and_not_used(copy, photos):
    bundle = bundle_of(copy)
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    parity = verify_bundle(bundle, photos)
    assert parity["passed"] is False
    assert parity["formats"]["keras"]["passed"] is True
    assert "'model.onnx' is not the file that was exported" in parity["formats"]["onnx"]["reason"]
    with pytest.raises(InputError, match="is not the file that was exported"):
        cvpipe.load(bundle, file="onnx")
    assert cvpipe.load(bundle).name == "small"
    (bundle / "model.onnx").write_bytes(content[:1000])  # not even a graph any more
    assert verify_bundle(bundle, photos)["formats"]["onnx"]["passed"] is False
    (bundle / "model.onnx").unlink()
    assert "is missing" in verify_bundle(bundle, photos)["formats"]["onnx"]["reason"]
    assert export_contender(copy, "small", "onnx", photos)[1]["passed"]  # made anew
    assert verify_bundle(bundle, photos)["passed"]


def test_paths_in_a_description_do_not_lead_out_of_the_bundle(copy, photos):
    bundle = bundle_of(copy)
    facts = read_facts(bundle)
    shutil.move(bundle / "model.onnx", copy.path / "model.onnx")
    write_json(bundle / "bundle.json", facts | {"files": {"onnx": "../../model.onnx"}})
    with pytest.raises(InputError, match="does not lie in the bundle"):
        cvpipe.load(bundle, file="onnx")
    with pytest.raises(InputError, match=r"names '../../model.onnx' as its file in the format"):
        verify_bundle(bundle, photos)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pixels", r"its feature 'raw_pixels' is no layer of a network"),
        ("both", r"its members \['pixels'\] are no networks"),
        ("other", "unknown contender 'other'"),
    ],
)
def test_what_cannot_become_one_file_says_which_step_is_in_the_way(name, words, copy, photos):
    with pytest.raises(InputError, match=words):
        export_contender(copy, name, "onnx", photos)
    assert not bundle_of(copy, name).exists()


def test_bad_requests(copy, tmp_path, capsys):
    assert main(["export", str(copy.path), "--format", "tflite"]) == 2
    assert "unknown format 'tflite'" in capsys.readouterr().err
    assert main(["export", str(copy.path), "--format", "keras", "--precision", "int8"]) == 2
    assert "has no precision 'int8'" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--format", "keras"]) == 2
    copy.report_path.unlink()
    assert main(["export", str(copy.path), "--format", "keras"]) == 2
    assert "is not finished" in capsys.readouterr().err
    with pytest.raises(InputError, match="unknown format 'litert-int8'"):
        cvpipe.load(bundle_of(copy), file="litert-int8")
    with pytest.raises(InputError, match="is not a bundle; leave the format 'onnx' out"):
        cvpipe.load(copy.path, file="onnx")
    with pytest.raises(InputError, match="has the format 'onnx', not 'keras'; leave that out"):
        cvpipe.load(bundle_of(copy) / "model.onnx", file="keras")
    with pytest.raises(InputError, match="holds 'small', not 'pixels'; give the"):
        cvpipe.load(bundle_of(copy), contender="pixels")


def test_an_export_that_was_there_is_checked_again(copy, photos):
    bundle = bundle_of(copy)
    (bundle / "parity.json").unlink()
    before = (bundle / "model.onnx").stat().st_mtime_ns
    _, found = export_contender(copy, "small", "onnx", photos)
    assert found["passed"]
    assert (bundle / "model.onnx").stat().st_mtime_ns == before
    assert list(read_parity(bundle)["formats"]) == ["onnx"]


def test_a_second_contender_that_fails_changes_nothing_of_the_first(copy):
    empty = {**read_facts(bundle_of(copy)), "files": {}, "sha256": {}}
    bundle_of(copy, "a_first").mkdir()
    write_json(bundle_of(copy, "a_first") / "bundle.json", empty)
    assert exported_contender(copy) == "small"


def test_wrong_facts_are_told_one_by_one():
    facts = {"files": {"keras": "model.keras"}, "a": 1, "b": [1, 2]}
    assert wrong_facts(facts, {"a": 1, "b": (1, 2)}) == []
    assert wrong_facts(facts, {"a": 2, "c": None, "b": [1, 2]}) == [
        "bundle.json says 1 of 'a', and the run 2"
    ]


def test_the_command_line_tells_what_was_found(copy, photos, capsys):
    options = ["--contender", "small", "--format", "litert", "--data", str(photos)]
    assert main(["export", str(copy.path), *options, "--quiet"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("litert: passed\n  val: largest difference ")
    assert f"bundle: {bundle_of(copy)}\n" in told
    assert main(["export", str(copy.path), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    image = photos / copy.predictions("test", "small")["image_id"][0]
    assert main(["predict", str(bundle_of(copy)), str(image), "--format", "litert"]) == 0
    by_litert = capsys.readouterr().out.splitlines()
    assert main(["predict", str(bundle_of(copy) / "model.tflite"), str(image)]) == 0
    assert capsys.readouterr().out.splitlines() == by_litert
    assert main(["predict", str(bundle_of(copy)), str(image)]) == 0
    by_keras = capsys.readouterr().out.splitlines()
    assert by_litert[0] == by_keras[0]
    assert by_litert[1].split(",")[:2] == by_keras[1].split(",")[:2]
    assert main(["list", "exports"]) == 0
    listed = capsys.readouterr().out
    assert "litert-int8: " in listed
