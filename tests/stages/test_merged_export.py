"""Averaged networks and ensembles of networks, handed on as one file each."""

import shutil

import numpy as np
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.export.bundle import EXACT_TOLERANCE
from cvpipe.files import read_json, write_json
from cvpipe.inference.calibration import FLOOR
from cvpipe.inference.ensembling import Ensemble
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import ends_with_linear_head
from cvpipe.runs import Run
from cvpipe.stages.bundle_facts import describe_bundle, networks_in
from cvpipe.stages.contenders import load_network
from cvpipe.stages.export import (
    contender_to_export,
    export_contender,
    obstacle_to,
)
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.one_network import merge_members, obstacle_to_one_network

LENET = 'backbone = "lenet5"\nrecipe = "from_scratch"\nimage_size = [28, 35]\n'
TRAINING = "epochs = 4, batch_size = 16, warmup_epochs = 0.25, early_stopping = false"
NETWORKS = {
    "plain": "",
    "again": ', averaging = "restarts", members = 2',
    "cyclic": ', averaging = "snapshots", schedule = "cyclic", cycles = 4, members = 3',
    "moving": ', averaging = "ema"',
}
ENSEMBLES = {
    "mean": '["plain", "again", "cyclic"]',
    "geometric_mean": '["plain", "cyclic"]',
    "weighted": '["plain", "moving"]',
    "greedy": '["plain", "again"]',
}
PIPELINE = "\n".join(
    [
        'name = "a"\nthreads = 2\n[data]\nroot = "photos"\n[split]\ncareless = false',
        "[evaluate]\nresamples = 100\nlearning_curve = false",
        'views = ["single", "flip"]\nview_mean = "logits"',
        *(
            f'[[contender]]\nname = "{name}"\n{LENET}training = {{{TRAINING}{averaging}}}'
            for name, averaging in NETWORKS.items()
        ),
        f'[[contender]]\nname = "square"\n{LENET}training = {{{TRAINING}}}'.replace("35", "28"),
        '[[contender]]\nname = "pixels"\nfeatures = ["raw_pixels"]\n'
        'classifier = "nearest_neighbours"\nsearch = "coarse"',
        *(
            f'[[contender]]\nname = "e_{method}"\nmembers = {members}\ncombine = "{method}"'
            for method, members in ENSEMBLES.items()
        ),
        '[[contender]]\nname = "ballot"\nmembers = ["plain", "again"]\ncombine = "vote"',
        '[[contender]]\nname = "two_sizes"\nmembers = ["plain", "square"]',
        '[[contender]]\nname = "with_pixels"\nmembers = ["plain", "pixels"]',
    ]
)
ABLE = [*NETWORKS, "square", *(f"e_{method}" for method in ENSEMBLES)]


@pytest.fixture(scope="module")
def merged(photos, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("merged")
    (folder / "photos").symlink_to(photos)
    (folder / "a.toml").write_text(PIPELINE)
    return cvpipe.run(folder / "a.toml", runs_path=folder / "runs", watcher=Nobody())


@pytest.fixture
def job(merged, photos) -> Job:
    return Job(merged.config(), photos, merged, Nobody())


def contender_of(run, name):
    return next(c for c in run.config().contender if c.name == name)


def test_what_can_be_one_network(merged):
    config = merged.config()
    able = [c for c in config.contender if not obstacle_to_one_network(merged, config, c)]
    assert [c.name for c in able] == ABLE
    native = [c.name for c in config.contender if not obstacle_to(merged, config, c, "native")]
    assert native == ["pixels"]
    assert not set(native) & set(ABLE)


@pytest.mark.parametrize("name", ABLE)
def test_one_file_gives_the_measured_probabilities(name, merged, photos, tmp_path):
    """From the file, by Keras as an app calls it, and by `cvpipe.load` on files."""
    folder = tmp_path / merged.path.name
    copy = Run(shutil.copytree(merged.path, folder, ignore=lambda *_: ["export"]))
    bundle, found = export_contender(copy, name, "keras", photos)
    assert found["passed"], found
    assert found["splits"]["test"]["tolerance"] == EXACT_TOLERANCE
    table = merged.predictions("test", name)
    paths = [photos / image_id for image_id in table["image_id"]]
    loaded = cvpipe.load(bundle).predict_proba(paths)
    np.testing.assert_allclose(
        frames.probabilities_of(loaded), frames.probabilities_of(table), atol=EXACT_TOLERANCE
    )
    by_run = cvpipe.load(merged.path, contender=name).predict_proba(paths)
    np.testing.assert_allclose(
        frames.probabilities_of(by_run), frames.probabilities_of(table), atol=1e-6
    )


def test_the_views_and_the_calibration_are_inside(merged):
    """Otherwise the test above would not have tried them."""
    views = {name: merged.view(name) for name in NETWORKS}
    assert "flip" in views.values()
    slopes = [read_json(merged.fitted_calibration_path(n))["slopes"][0] for n in ABLE]
    assert any(abs(slope - 1) > 0.01 for slope in slopes)


@pytest.mark.parametrize(
    "ensemble",
    [
        Ensemble("mean", (0.5, 0.5)),
        Ensemble("weighted", (0.9, 0.1)),
        Ensemble("greedy", (0.0, 1.0)),
        Ensemble("geometric_mean", (0.5, 0.5)),
        Ensemble("stacking", (1.4, 0.9), (0.3, -0.5, 0.2)),
        Ensemble("stacking", (0.0, 0.4), (0.0, 0.0, 0.0)),
    ],
    ids=str,
)
def test_merged_members_do_the_arithmetic_of_the_tables(ensemble, merged, tmp_path):
    models = [load_network(merged.part_path(n) / "model.keras") for n in ("plain", "cyclic")]
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 35, 3), np.uint8)
    members = np.stack([build_embed(model)(images) for model in models])
    members /= members.sum(axis=2, keepdims=True)
    model = merge_members(models, ensemble, "together")
    model.save(tmp_path / "model.keras")
    expected = ensemble.apply(members)
    np.testing.assert_allclose(build_embed(model)(images), expected, atol=2e-6)
    stored = load_network(tmp_path / "model.keras")
    np.testing.assert_array_equal(build_embed(stored)(images), build_embed(model)(images))
    assert expected.min() > FLOOR


def test_of_ensembles_that_cannot_be_exported_the_best_network_is(merged, photos, tmp_path):
    copy = Run(shutil.copytree(merged.path, tmp_path / "run"))
    job = Job(copy.config(), photos, copy, Nobody())
    for chosen in ("ballot", "two_sizes", "with_pixels"):
        write_json(copy.choice_path, {**read_json(copy.choice_path), "chosen": chosen})
        assert contender_to_export(job) in [*ABLE, "pixels"]
    for chosen in [*ABLE, "pixels"]:
        write_json(copy.choice_path, {**read_json(copy.choice_path), "chosen": chosen})
        assert contender_to_export(job) == chosen


def test_a_bundle_says_what_is_inside(merged, job):
    facts = describe_bundle(job, "e_mean")
    ensemble = facts["ensemble"]
    assert list(ensemble["weights"]) == ["plain", "again", "cyclic"]
    assert ensemble["views"] == {n: merged.view(n) for n in ensemble["weights"]}
    assert (ensemble["method"], ensemble["where"]) == ("mean", "inside the model")
    assert facts["input"]["image_size"] == [28, 35]
    assert "ensemble" not in describe_bundle(job, "plain")
    with pytest.raises(TypeError, match="'with_pixels' is a network in part only"):
        networks_in(job.config, contender_of(merged, "with_pixels"))


def test_a_mean_of_networks_does_not_count_as_a_linear_head(merged):
    """Scaling the logits of one member would drop the others without a word."""
    heads = {
        name: ends_with_linear_head(load_network(merged.part_path(name) / "model.keras"))
        for name in NETWORKS
    }
    assert heads == {"plain": True, "again": False, "cyclic": False, "moving": True}
    keras = import_keras()
    inputs = keras.Input((3,))
    assert not ends_with_linear_head(keras.Model(inputs, keras.layers.Softmax()(inputs)))
