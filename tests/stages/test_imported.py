"""A network of another program as a contender: measured, compared and exported like the others."""

import shutil

import h5py
import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.data.images import decode_rule, read_image, resize_image
from cvpipe.errors import InputError
from cvpipe.files import read_json
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras
from cvpipe.models.imported import import_network
from cvpipe.stages.compare import compare_runs
from cvpipe.stages.contenders import adopt_imported, load_network
from cvpipe.stages.export import export_contender
from cvpipe.stages.features import network_fingerprint
from cvpipe.stages.imported import check_labels, imported_contenders, pin_imports, trained_elsewhere
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.learning_curve import contenders_of_curve
from cvpipe.stages.plan import estimate_seconds, make_plan
from cvpipe.stages.recipes import is_baseline
from cvpipe.stages.risks import find_risks

CLASS_NAMES = ["0", "NA", "poppy"]
PIPELINE = """
threads = 2

[data]
root = "../photos"

[[contender]]
name = "imported"
model = "models/net.h5"
labels = "models/labels.txt"

[[contender]]
name = "scaled_otherwise"
model = "models/net.h5"
labels = "models/labels.txt"
scaling = "zero_to_one"

[[contender]]
name = "colour_softmax"
features = ["colour_histogram"]
classifier = "softmax"
search = "coarse"

[[contender]]
name = "both"
members = ["imported", "scaled_otherwise"]
combine = "stacking"

[split]
protocol = "kfold"
num_folds = 2

[evaluate]
resamples = 200
views = ["single", "flip"]

[export]
formats = ["native"]
"""


def write_pipeline(folder, photos, keras2_files):
    (folder / "photos").symlink_to(photos)
    (folder / "own" / "models").mkdir(parents=True)
    shutil.copy(keras2_files / "many_layers.h5", folder / "own" / "models" / "net.h5")
    labels = folder / "own" / "models" / "labels.txt"
    labels.write_text("0 poppy\n1 0\n2 NA\n", encoding="utf-8")
    path = folder / "own" / "pipeline.toml"
    path.write_text(PIPELINE, encoding="utf-8")
    return path


@pytest.fixture
def pipeline(tmp_path, photos, keras2_files):
    return write_pipeline(tmp_path, photos, keras2_files)


@pytest.fixture(scope="module")
def imported_run(tmp_path_factory, photos, keras2_files):
    """A whole run with the network, twice, beside a classic contender; not to be changed."""
    folder = tmp_path_factory.mktemp("imported")
    path = write_pipeline(folder, photos, keras2_files)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    yield cvpipe.run(path, runs_path=folder / "runs")
    patch.undo()


def message_of(pipeline, **changes):
    with pytest.raises(InputError) as caught:
        cvpipe.run(pipeline, runs_path=pipeline.parent / "runs", **changes)
    assert not (pipeline.parent / "runs").exists()  # said before a run is made
    return str(caught.value)


def labels_of(pipeline):
    return pipeline.parent / "models" / "labels.txt"


# --- a whole run --------------------------------------------------------------------------


def test_predictions_are_those_of_the_network(imported_run, photos, keras2_files):
    """By hand: decode, resize, scale, ask, put into the order of the classes."""
    run = imported_run
    table = frames.read_predictions(run.uncalibrated_path("imported", "test", "single"))
    config = run.config()
    rule = decode_rule(config.images, config.data)
    images = [
        resize_image(read_image(photos / image_id, rule), (32, 40), "stretch")
        for image_id in table["image_id"]
    ]
    network = import_network(keras2_files / "many_layers.h5", [0, 1, 2], "minus_one_to_one", "n")
    rows = build_embed(network)(np.stack(images))
    by_hand = rows[:, [1, 2, 0]]  # the labels are poppy, 0, NA
    np.testing.assert_allclose(frames.probabilities_of(table), by_hand, atol=1e-5)
    assert np.abs(frames.probabilities_of(table) - rows).max() > 1e-3
    assert frames.predicted_class_names(table) == CLASS_NAMES


def test_another_scaling_is_not_recalled_from_the_cache_of_the_first(imported_run):
    tables = [
        frames.probabilities_of(imported_run.predictions("test", name))
        for name in ("imported", "scaled_otherwise")
    ]
    assert np.abs(tables[0] - tables[1]).max() > 1e-3
    networks = [
        load_network(imported_run.part_path(name) / "model.keras")
        for name in ("imported", "scaled_otherwise")
    ]
    assert network_fingerprint(networks[0]) != network_fingerprint(networks[1])
    for one, other in zip(*(n.variables for n in networks), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_network_has_one_fingerprint_however_often_it_is_loaded(tmp_path):
    """Layers of noise draw another state each time."""
    keras = import_keras()
    layers = [keras.Input((8, 8, 3)), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    network = keras.Sequential(layers)
    network.save(tmp_path / "model.keras")
    loaded = [load_network(tmp_path / "model.keras") for _ in range(2)]
    prints = {network_fingerprint(one) for one in loaded}
    assert len(prints) == 1
    loaded[0].layers[-1].bias.assign([0.0, 1e-6])
    assert network_fingerprint(loaded[0]) not in prints


def test_figures_have_intervals_and_are_compared(imported_run):
    metrics = imported_run.metrics()
    own = metrics[(metrics["contender"] == "imported") & (metrics["label"] == "")]
    assert set(own["protocol"]) == {"holdout", "kfold", "careless"}
    accuracy = own[(own["metric"] == "accuracy") & (own["split"] == "test")]
    assert (accuracy["low"] < accuracy["high"]).all()
    compared = compare_runs([imported_run.path]).table.set_index("contender")
    assert set(compared.index) == {"imported", "scaled_otherwise", "colour_softmax", "both"}
    assert compared.loc["imported", "fit_seconds"] == 0
    assert compared.loc["imported", "model_bytes"] > 0


def test_every_protocol_asks_the_same_network(imported_run):
    """Nothing is fitted in a fold, and the careless split has the predictions of the holdout."""
    run = imported_run
    folds = run.predictions("test", "imported", "kfold").set_index("image_id")
    raw = frames.read_predictions(run.uncalibrated_path("imported", "test")).set_index("image_id")
    columns = [name for name in raw if name.startswith("p_")]
    np.testing.assert_array_equal(folds.loc[raw.index, columns], raw[columns])
    careless = run.predictions("test", "imported", "careless").set_index("image_id")
    calibrated = pd.concat([run.predictions(split, "imported") for split in ("val", "test")])
    shared = careless.index.intersection(calibrated["image_id"])
    assert len(shared)
    expected = calibrated.set_index("image_id").loc[shared, columns]
    np.testing.assert_array_equal(careless.loc[shared, columns], expected)


def test_there_is_no_learning_curve_of_it(imported_run):
    job = Job(imported_run.config(), imported_run.path, imported_run, Nobody())
    assert "imported" not in [contender.name for contender in contenders_of_curve(job)]
    assert not imported_run.part_path("imported", "curve").exists()


def test_the_report_says_what_it_is_and_what_cannot_be_known(imported_run):
    page = imported_run.report_path.read_text(encoding="utf-8")
    assert "network of the file net.h5, trained elsewhere; images of 32x40" in page
    assert "What was trained elsewhere may know these images." in page
    assert "cvpipe cannot know that" in page
    (risk,) = [r for r in find_risks(imported_run) if "trained elsewhere" in r.headline]
    assert "imported and scaled_otherwise were imported" in risk.text


def test_what_is_stored_is_one_network(imported_run):
    fit = read_json(imported_run.part_path("imported") / "fit.json")
    assert fit["image_size"] == [32, 40]
    assert (fit["model"], fit["chosen"], fit["fit_seconds"]) == ("model.keras", {}, 0.0)
    stored = imported_run.config().contender[0]
    assert stored.model == "../../own/models/net.h5"  # no path of this machine
    weights = read_json(imported_run.provenance_path)["weights"]
    assert weights == {"net.h5": stored.model_sha256}


def test_a_run_can_be_run_again_from_its_own_config(imported_run):
    assert cvpipe.run(imported_run.config_path, runs_path=imported_run.path.parent) == imported_run


def test_prediction_of_files(imported_run, photos):
    table = imported_run.predictions("test", "imported")
    classifier = cvpipe.load(imported_run.path, contender="imported")
    found = classifier.predict_proba([photos / image_id for image_id in table["image_id"]])
    np.testing.assert_allclose(
        frames.probabilities_of(found), frames.probabilities_of(table), atol=1e-5
    )


@pytest.mark.parametrize("label", ["keras", "litert"])
def test_exports_pass_their_check(imported_run, photos, label):
    bundle, result = export_contender(imported_run, "imported", label, photos)
    assert result["passed"], result["reason"]
    facts = read_json(bundle / "bundle.json")
    assert facts["input"]["image_size"] == [32, 40]
    assert facts["class_names"] == CLASS_NAMES
    assert "cvpipe cannot know that" in facts["protocol"]
    assert facts["licences"]["weights"].startswith("not stated; imported from net.h5 with the SHA")


def test_an_ensemble_of_imported_networks_is_one_file(imported_run, photos):
    _, result = export_contender(imported_run, "both", "keras", photos)
    assert result["passed"], result["reason"]


def test_it_is_no_arrays(imported_run, photos):
    with pytest.raises(InputError, match="it is a network; choose a format of networks"):
        export_contender(imported_run, "imported", "native", photos)


# --- what is refused, and when ------------------------------------------------------------


def test_missing_files(pipeline):
    labels_of(pipeline).unlink()
    assert "there is no labels 'models/labels.txt'" in message_of(pipeline)
    (pipeline.parent / "models" / "net.h5").unlink()
    assert "there is no model 'models/net.h5'" in message_of(pipeline)


def test_labels_of_other_classes(pipeline):
    labels_of(pipeline).write_text("0 poppy\n1 0\n2 dog\n", encoding="utf-8")
    message = message_of(pipeline)
    assert "lack the classes ['NA'] of the images and have ['dog'], which no image has" in message


def test_a_file_that_holds_weights_alone(pipeline):
    with h5py.File(pipeline.parent / "models" / "net.h5", "r+") as file:
        del file.attrs["model_config"]
    assert "it may hold weights alone" in message_of(pipeline)


@pytest.mark.parametrize("key", ["model_sha256", "labels_sha256"])
def test_another_file_than_the_pipeline_states(pipeline, key):
    text = pipeline.read_text(encoding="utf-8")
    stated = text.replace('name = "imported"', f'name = "imported"\n{key} = "{"0" * 64}"')
    pipeline.write_text(stated, encoding="utf-8")
    assert f"but {key} is 000" in message_of(pipeline)


def test_another_model_or_other_labels_make_another_run(pipeline):
    plans = [make_plan(pipeline)]
    labels_of(pipeline).write_text("0 poppy\n1 NA\n2 0\n", encoding="utf-8")
    plans.append(make_plan(pipeline))
    with h5py.File(pipeline.parent / "models" / "net.h5", "r+") as file:
        file.attrs["more"] = 1
    plans.append(make_plan(pipeline))
    assert len({cvpipe.config.config_hash(plan.config) for plan in plans}) == 3


def test_a_file_that_changes_while_the_run_goes_on(pipeline, tmp_path):
    from cvpipe.runs import Run
    from cvpipe.stages.imported import import_model

    plan = make_plan(pipeline)
    job = Job(plan.config, plan.root, Run(tmp_path / "run"), Nobody(), plan.base)
    labels_of(pipeline).write_text("0 poppy\n1 NA\n2 0\n", encoding="utf-8")
    with pytest.raises(InputError, match="was changed since the run was started"):
        import_model(job, plan.config.contender[0], CLASS_NAMES)


def test_outputs_that_are_no_probabilities_are_told_by_real_images(
    imported_run, photos, pipeline, tmp_path
):
    """A mean of two softmaxes is fine, their sum is not: only images can tell."""
    from cvpipe.files import write_json
    from cvpipe.runs import Run

    keras = import_keras()
    inputs = keras.Input((8, 8, 3))
    parts = [
        keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs))
        for _ in range(2)
    ]
    train = imported_run.manifest().query("split == 'train'").reset_index(drop=True)
    for layer, fails in ((keras.layers.Average(), False), (keras.layers.Add(), True)):
        keras.Model(inputs, layer(parts)).save(pipeline.parent / "models" / "net.h5")
        plan = make_plan(pipeline)
        run = Run(tmp_path / f"run {fails}")
        write_json(run.classes_path, CLASS_NAMES)
        job = Job(plan.config, photos, run, Nobody(), plan.base)
        if fails:
            with pytest.raises(InputError, match="gives no probabilities: of 30 of 30 "):
                adopt_imported(job, plan.config.contender[0], train)
        else:
            adopt_imported(job, plan.config.contender[0], train)
        assert (run.part_path("imported") / "fit.json").exists() != fails


def test_scaling_twice_is_warned_of(pipeline, keras2_files, tmp_path):
    from cvpipe.runs import Run
    from cvpipe.stages.imported import import_model

    models = pipeline.parent / "models"
    shutil.copy(keras2_files / "one_unit.h5", models / "net.h5")
    labels_of(pipeline).write_text("a\nb\n", encoding="utf-8")
    plan = make_plan(pipeline)
    job = Job(plan.config, plan.root, Run(tmp_path / "run"), Nobody(), plan.base)
    (warning,) = import_model(job, plan.config.contender[0], ["a", "b"])
    assert "set scaling = 'none'" in warning
    assert import_model(job, plan.config.contender[0], ["a", "b"]) == [warning]  # as stored
    plain = plan.config.contender[0].model_copy(update={"name": "x", "scaling": "none"})
    assert import_model(job, plain, ["a", "b"]) == []


# --- the plan -----------------------------------------------------------------------------


def test_what_a_plan_knows(pipeline):
    plan = make_plan(pipeline)
    assert plan.base == pipeline.parent
    names = [contender.name for contender in imported_contenders(plan.config)]
    assert names == ["imported", "scaled_otherwise"]
    assert trained_elsewhere(plan.config) == [*names, "both"]
    assert not any(is_baseline(c) for c in imported_contenders(plan.config))
    again = pin_imports(plan.config, plan.base)
    assert again == plan.config
    check_labels(plan.config, plan.base, ["poppy", "NA", "0"])  # in any order
    alone = plan.config.model_copy(update={"contender": plan.config.contender[2:3]})
    assert estimate_seconds(plan.config, 1000) > estimate_seconds(alone, 1000)


def test_a_plan_loads_no_keras(pipeline):
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from cvpipe.stages.plan import make_plan; "
        f"make_plan(Path({str(pipeline)!r})); "
        "print([m for m in ('tensorflow', 'keras', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
