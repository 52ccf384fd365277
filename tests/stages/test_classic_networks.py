"""Classic contenders on frozen features, handed on as one network each."""

import shutil

import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.classifiers.search import FittedClassifier
from cvpipe.cli import main
from cvpipe.config import Config
from cvpipe.export.bundle import TOLERANCES
from cvpipe.files import read_json, write_json
from cvpipe.models.runtimes import runtime_identity
from cvpipe.runs import Run
from cvpipe.stages.bundle_facts import describe_bundle
from cvpipe.stages.contenders import measured_fit, measuring_setup, stored_describer
from cvpipe.stages.export import contender_to_export, export_contender, obstacle_to
from cvpipe.stages.features import setup_of
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.recipes import becomes_network
from cvpipe.stages.stored_models import load_estimator

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
views = ["single", "flip", "multi_scale"]
[[feature]]
name = "deep"
kind = "efficientnet_lite0"
image_size = [64, 64]
[[feature]]
name = "middle"
kind = "efficientnet_lite0"
image_size = [64, 64]
settings = {layers = ["block_05", "block_10"], pooling = "average_and_max"}
[[feature]]
name = "small"
kind = "efficientnet_lite0"
image_size = [32, 32]
[[contender]]
name = "machine"
features = ["middle"]
classifier = "rbf_svm"
search = "coarse"
[[contender]]
name = "joined"
features = ["deep", "middle"]
classifier = "two_layer_net"
search = "coarse"
[[contender]]
name = "lines"
features = ["deep"]
classifier = "linear_svm"
search = "coarse"
[[contender]]
name = "neighbours"
features = ["deep"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "with_hog"
features = ["deep", "hog"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "two_sizes"
features = ["deep", "small"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "hog"
features = ["hog"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "all"
members = ["machine", "joined", "lines"]
combine = "geometric_mean"
[[contender]]
name = "some"
members = ["machine", "hog"]
"""
ABLE = ["machine", "joined", "lines", "all"]
EXPORTS = [("machine", "litert"), ("joined", "onnx"), *((name, "keras") for name in ABLE)]


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("classic")
    (folder / "photos").symlink_to(photos)
    (folder / "a.toml").write_text(PIPELINE)
    return cvpipe.run(folder / "a.toml", runs_path=folder / "runs", watcher=Nobody())


@pytest.fixture
def copy(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / finished.path.name))


def contender_of(run, name):
    return next(c for c in run.config().contender if c.name == name)


def test_what_can_be_one_network(finished):
    config = finished.config()
    obstacles = {c.name: obstacle_to(finished, config, c, "onnx") for c in config.contender}
    assert [name for name, obstacle in obstacles.items() if not obstacle] == ABLE
    assert obstacles["neighbours"] == (
        "its classifier 'nearest_neighbours' is no layer of a network"
    )
    assert obstacles["with_hog"] == "its feature 'hog' is no layer of a network"
    assert "of different sizes: [(32, 32), (64, 64)]" in obstacles["two_sizes"]
    assert obstacles["hog"].endswith("(there is the format native for it)")
    assert obstacles["some"].startswith("its members ['hog'] are no networks")
    native = [c.name for c in config.contender if not obstacle_to(finished, config, c, "native")]
    assert native == ["hog"]
    told = obstacle_to(finished, config, contender_of(finished, "with_hog"), "native")
    assert told == (
        "its feature 'deep' is computed by a network, and its feature 'hog' is no layer of a "
        "network"
    )


@pytest.mark.parametrize(("name", "label"), EXPORTS)
def test_a_file_gives_the_measured_probabilities(name, label, copy, photos):
    bundle, found = export_contender(copy, name, label, photos)
    assert found["passed"], found
    assert found["splits"]["test"]["tolerance"] == TOLERANCES["float32"] == 1e-4
    assert found["splits"]["test"]["same_class_fraction"] == 1.0
    facts = read_json(bundle / "bundle.json")
    assert facts["licences"]["weights"].startswith("Apache-2.0")
    assert "features" not in facts
    table = copy.predictions("test", name)
    paths = [photos / image_id for image_id in table["image_id"]]
    loaded = cvpipe.load(bundle, file=label).predict_proba(paths)
    np.testing.assert_allclose(
        frames.probabilities_of(loaded), frames.probabilities_of(table), atol=1e-4
    )


def test_views_scales_and_calibration_are_inside(finished):
    """Otherwise the test above would not have tried them."""
    assert "flip" in {finished.view(name) for name in ABLE[:3]}
    slopes = [read_json(finished.fitted_calibration_path(n))["slopes"][0] for n in ABLE]
    assert any(abs(slope - 1) > 0.01 for slope in slopes)
    scales = read_json(finished.part_path("joined") / "features.json")["scales"]
    assert max(scales) > 2 * min(scales)


def test_no_view_of_several_sizes_is_chosen(finished):
    choice = read_json(finished.view_path("machine"))
    assert "'multi_scale' is reported but cannot be chosen for a network" in choice["because"]
    assert finished.view("machine") != "multi_scale"


def test_what_was_altered_does_not_pass(copy, photos):
    """The scale of one of two features."""
    features = copy.part_path("joined") / "features.json"
    facts = read_json(features)
    write_json(features, facts | {"scales": [3.0 * facts["scales"][0], facts["scales"][1]]})
    bundle, found = export_contender(copy, "joined", "saved_model", photos)
    assert not found["passed"]
    assert "its probabilities differ" in found["reason"]
    assert not (bundle / "saved_model").exists()


def test_the_chosen_one_is_exported_by_the_run(finished, copy, photos):
    job = Job(copy.config(), photos, copy, Nobody())
    for name in ABLE:
        write_json(copy.choice_path, {**read_json(copy.choice_path), "chosen": name})
        assert contender_to_export(job) == name
    (bundle,) = finished.export_path.iterdir()
    assert read_json(bundle / "parity.json")["passed"] is True


def test_a_bundle_says_how_it_sees_images(finished, photos):
    job = Job(finished.config(), photos, finished, Nobody())
    name = next(name for name in ABLE[:3] if finished.view(name) == "flip")
    facts = describe_bundle(job, name)
    assert facts["view"]["crop_size"] == facts["input"]["image_size"] == [64, 64]


def test_it_is_measured_by_tensorflow_whatever_the_features_were_computed_by(finished):
    config = Config.model_validate({**finished.config().model_dump(), "runtime": "openvino"})
    runtimes = {c.name: measuring_setup(config, c).runtime for c in config.contender}
    single = [name for name in runtimes if name not in ("all", "some")]
    for name in single:
        is_network = becomes_network(config, contender_of(finished, name))
        assert is_network == (name in ABLE)
        assert runtimes[name] == ("tensorflow" if is_network else "openvino")


def test_fits_are_measured_by_tensorflow_too(finished, photos, monkeypatch):
    """Those of folds, careless split and learning curve, of which nothing is stored."""
    config = Config.model_validate({**finished.config().model_dump(), "runtime": "openvino"})
    job = Job(config, photos, finished, Nobody())
    for name, runtime in (("joined", "tensorflow"), ("neighbours", "openvino")):
        contender = contender_of(finished, name)
        describer = stored_describer(finished, contender)
        fitted = FittedClassifier(
            load_estimator(finished.part_path(name) / "model.skops"), {}, pd.DataFrame()
        )
        fit = measured_fit(job, contender, describer, fitted)
        assert fit.setup.runtime == runtime
        assert fit.describer.scales == describer.scales
        for descriptor in fit.describer.descriptors:
            assert descriptor.space["runtime"] == runtime_identity(runtime)


def test_curves_stand_in_the_way(finished):
    config = finished.config()
    evaluate = config.evaluate.model_copy(update={"calibration": "isotonic"})
    config = config.model_copy(update={"evaluate": evaluate})
    lines = contender_of(finished, "lines")
    told = obstacle_to(finished, config, lines, "keras")
    assert told == "its calibration, isotonic curves, is no layer of a network"
    assert measuring_setup(config, lines) == setup_of(config)


def test_a_view_of_several_sizes_stands_in_the_way(copy):
    """Runs of before could choose it."""
    write_json(
        copy.view_path("lines"), {**read_json(copy.view_path("lines")), "chosen": "multi_scale"}
    )
    for name in ("lines", "all"):
        told = obstacle_to(copy, copy.config(), contender_of(copy, name), "keras")
        assert told == "its view 'multi_scale' needs images of several sizes"


def test_the_step_in_the_way_is_named(finished, photos, capsys):
    told = ["export", str(finished.path), "--contender", "neighbours", "--format", "onnx"]
    assert main([*told, "--data", str(photos)]) == 2
    assert "its classifier 'nearest_neighbours' is no layer of a network" in capsys.readouterr().err
