"""Networks that are trained: fine-tuned from cached activations, from scratch, and killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import cvpipe
from cvpipe import frames
from cvpipe.cache import cache_root
from cvpipe.config import validate_config
from cvpipe.data.augment import draw_view, view_key
from cvpipe.data.images import decode_rule
from cvpipe.errors import InputError
from cvpipe.export.formats import file_name
from cvpipe.export.running import open_file
from cvpipe.export.writing import write_file
from cvpipe.files import read_json, write_json
from cvpipe.models.features import build_embed
from cvpipe.models.folding import norms_to_fold
from cvpipe.models.framework import import_keras
from cvpipe.runs import Run, open_run
from cvpipe.stages import networks
from cvpipe.stages.contenders import (
    fit_contender,
    fit_rows,
    fitting_arguments,
    learn_on,
    predict_rows,
    predict_split,
    refit_rows,
)
from cvpipe.stages.features import ImageFiles, files_of
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.views import ViewMaker, to_half
from tests.conftest import run_cvpipe

SIZE = [64, 64]
AUGMENT = {"horizontal_flip": 0.5, "crop": "resized", "brightness": 0.2}
TRAINING = {"epochs": 3, "batch_size": 8, "warmup_epochs": 0.5}
FINE_TUNED = {
    "name": "fine_tuned",
    "backbone": "efficientnet_lite0",
    "recipe": "fine_tune",
    "image_size": SIZE,
    "freeze": "last_block",
    "views": 2,
    "search": "coarse",
    "training": TRAINING,
}
FROM_SCRATCH = {
    "name": "from_scratch",
    "backbone": "lenet5",
    "recipe": "from_scratch",
    "image_size": [28, 28],
    "training": {**TRAINING, "epochs": 4},
}
MIXED = {
    **FROM_SCRATCH,
    "name": "mixed",
    "training": {**TRAINING, "mixed_precision": True},
}
WHOLE = {**FINE_TUNED, "name": "whole", "freeze": "none", "views": 1}
PROBE = {
    "name": "probe",
    "backbone": "efficientnet_lite0",
    "recipe": "linear_probe",
    "image_size": SIZE,
    "layers": ["block_10", "block_14"],
    "pooling": "average_and_max",
    "views": 2,
    "search": "coarse",
}


def config_of(photos, *contenders, **sections):
    values = {
        "name": "photos",
        "data": {"root": str(photos)},
        "augment": AUGMENT,
        "contender": contenders,
        "threads": 2,
        **sections,
    }
    return validate_config(values)


def job_of(run, photos, path, *contenders):
    """A job on the rows of the finished run, with contenders of its own."""
    config = config_of(photos, *contenders)
    job = Job(config, photos, Run(path), Nobody())
    write_json(job.run.config_path, config.model_dump(mode="json"))
    write_json(job.run.classes_path, run.class_names())
    return job


@pytest.fixture(scope="module")
def rows(run):
    manifest = run.manifest()
    return {
        split: manifest[manifest["split"] == split].reset_index(drop=True)
        for split in ("train", "val", "test")
    }


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_CACHE_DIR", str(tmp_path / "cache"))


# --- views ------------------------------------------------------------------------------


@pytest.fixture
def maker(photos):
    config = config_of(photos, FINE_TUNED)
    rule = decode_rule(config.images, config.data)
    return ViewMaker((40, 56), rule, config.augment, config.seed, threads=2)


def test_view_0_is_the_image_and_others_are_drawn_as_in_training(maker, photos, rows):
    files = files_of(photos, rows["train"])
    plain, first, second = (np.concatenate(list(maker.batches(files, view))) for view in range(3))
    assert plain.shape == (len(files.image_ids), 40, 56, 3)
    assert not np.array_equal(plain, first)
    assert not np.array_equal(first, second)
    image_id = files.image_ids[3]
    drawn = draw_view(maker.augment, view_key(0, 2, image_id), (100, 100), (40, 56), "stretch")
    again = draw_view(maker.augment, view_key(0, 2, image_id), (100, 100), (40, 56), "stretch")
    assert drawn == again
    assert maker.key("abc", image_id, 2) != maker.key("abc", image_id, 1)
    assert maker.key("abc", image_id, 0) == "abc"


def test_a_view_does_not_depend_on_its_company(maker, photos, rows):
    files = files_of(photos, rows["train"])
    together = np.concatenate(list(maker.batches(files, 1)))
    for position in (0, len(files.image_ids) - 1):
        (alone,) = maker.batches(files.take([position]), 1)
        np.testing.assert_array_equal(alone[0], together[position])


def test_settings_of_augmentation_are_part_of_the_key(maker, photos):
    other = config_of(photos, FINE_TUNED, augment={"horizontal_flip": 0.4}).augment
    changed = ViewMaker(maker.image_size, maker.rule, other, 0, 2)
    assert maker.space(1) != changed.space(1)
    assert maker.space(0) == changed.space(0)


def test_numbers_too_large_for_half_precision_are_refused():
    np.testing.assert_array_equal(to_half(np.float32([1.0, -6.0])), np.float16([1.0, -6.0]))
    with pytest.raises(InputError, match=r"reach 7e\+04, more than half precision holds"):
        to_half(np.float32([1.0, -7e4]))


# --- fitting ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "contender",
    [FINE_TUNED, FROM_SCRATCH, MIXED, pytest.param(WHOLE, marks=pytest.mark.slow)],
    ids=lambda c: c["name"],
)
def test_what_is_stored_gives_what_was_measured(contender, run, photos, rows, tmp_path):
    """In the run, by `cvpipe.load`-ed models, and by Keras alone on pixels."""
    job = job_of(run, photos, tmp_path / "run", contender)
    (section,) = job.config.contender
    val = rows["val"]
    fit = fit_rows(job, section, rows["train"], val)
    table = predict_rows(job, fit, val)
    part = tmp_path / "part"
    networks.store_trained(part, fit.trained)
    model = import_keras().models.load_model(part / "model.keras", safe_mode=True)
    size = tuple(contender["image_size"])
    rule = decode_rule(job.config.images, job.config.data)
    maker = ViewMaker(size, rule, job.config.augment, 0, 2)
    pixels = np.concatenate(list(maker.batches(files_of(photos, val), 0)))
    probabilities = frames.probabilities_of(table)
    np.testing.assert_allclose(model.predict_on_batch(pixels), probabilities, atol=1e-5)
    for name in ("litert", "onnx"):
        write_file(model, tmp_path / file_name(name), name, "float32", pixels[:0])
        exported = open_file(tmp_path / file_name(name), name, 2)
        np.testing.assert_allclose(exported(pixels), probabilities, atol=2e-5)
    assert not any("dropout" in layer.name for layer in model.layers)
    assert not norms_to_fold(model, frozen_only=False)  # its convolutions normalise themselves
    history = pd.read_csv(part / "history.csv")
    assert list(history["epoch"]) == list(range(1, contender["training"]["epochs"] + 1))
    assert np.isfinite(history.to_numpy()).all()
    best = int(history["val_loss"].idxmin()) + 1
    assert fit.fitted.chosen["epochs"] == best


def test_predictions_of_val_have_the_loss_that_was_seen_in_training(run, photos, rows, tmp_path):
    """Half precision at the boundary changes it by little, and the best epoch is the kept one."""
    job = job_of(run, photos, tmp_path / "run", FINE_TUNED)
    fit = fit_rows(job, job.config.contender[0], rows["train"], rows["val"])
    table = predict_rows(job, fit, rows["val"])
    targets = frames.targets_of(table["label"], run.class_names())
    probabilities = frames.probabilities_of(table)[np.arange(len(targets)), targets]
    seen = min(row.val_loss for row in fit.trained.state.history)
    assert -np.log(probabilities).mean() == pytest.approx(seen, abs=2e-3)


def test_a_refit_takes_as_many_epochs_and_nothing_to_stop_by(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", FINE_TUNED)
    section = job.config.contender[0]
    fit = refit_rows(job, section, rows["train"], {"C": 0.1, "epochs": 2})
    assert [row.epoch for row in fit.trained.state.history] == [1, 2]
    assert fit.fitted.chosen == {"C": 0.1, "epochs": 2}
    assert all(np.isnan(row.val_loss) for row in fit.trained.state.history)


def test_a_fold_keeps_some_groups_to_stop_by(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", FINE_TUNED)
    fitted, stopping = networks.divide_for_stopping(job, rows["train"])
    assert len(fitted) + len(stopping) == len(rows["train"])
    assert not set(fitted["group"]) & set(stopping["group"])
    assert set(fitted["label"]) == set(rows["train"]["label"])
    assert 0.05 < len(stopping) / len(rows["train"]) < 0.3


def test_views_of_a_linear_probe_are_further_rows_of_their_groups(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", PROBE, {**PROBE, "name": "plain", "views": 1})
    viewed, plain = job.config.contender
    train = rows["train"]
    arguments, alone = (
        fitting_arguments(job, one, train, learn_on(job, one, train)) for one in (viewed, plain)
    )
    n = len(train)
    assert arguments["features"].shape == (2 * n, 2 * (112 + 192))
    np.testing.assert_array_equal(arguments["features"][:n], alone["features"])
    assert not np.array_equal(arguments["features"][n:], alone["features"])
    assert arguments["groups"] == alone["groups"] * 2
    np.testing.assert_array_equal(arguments["targets"][n:], alone["targets"])


def test_a_stored_run_folder_holds_all_of_a_training(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", FROM_SCRATCH)
    (section,) = job.config.contender
    fit_contender(job, section, rows["train"], rows["val"])
    part = job.run.part_path("from_scratch")
    names = {str(p.relative_to(part)) for p in part.rglob("*") if p.is_file()}
    assert names == {"model.keras", "history.csv", "checks.json", "search.csv", "fit.json"}
    checks = read_json(part / "checks.json")
    before = [check["name"] for check in checks if check["when"] == "before"]
    after = [check["name"] for check in checks if check["when"] == "after"]
    assert {"initial_loss", "weight_decay", "overfit", "gradient"} <= set(before)
    assert {"update_ratios", "dead_relus", "activations"} <= set(after)
    fit = read_json(part / "fit.json")
    failed = [check["name"] for check in checks if not check["passed"]]
    assert [warning.split(":")[0] for warning in fit["warnings"]] == failed


def test_balanced_sampling_and_weights_reach_the_training(run, photos, rows, tmp_path, monkeypatch):
    orders = []
    original = networks.balanced_order
    monkeypatch.setattr(
        networks, "balanced_order", lambda *a: orders.append(original(*a)) or orders[-1]
    )
    training = {**FROM_SCRATCH["training"], "epochs": 2, "sampling": "balanced"}
    job = job_of(run, photos, tmp_path / "run", {**FROM_SCRATCH, "training": training})
    few = rows["train"][rows["train"]["label"] != "0"]
    one = rows["train"][rows["train"]["label"] == "0"].head(2)
    unequal = pd.concat([few, one]).sort_values("image_id", ignore_index=True)
    fit_rows(job, job.config.contender[0], unequal, rows["val"])
    targets = frames.targets_of(unequal["label"], run.class_names())
    counts = np.bincount(targets[orders[-1]])
    assert counts.max() - counts.min() <= 1
    assert np.bincount(targets).min() == 2


def test_a_freeze_point_that_would_fill_the_cache_is_refused(
    run, photos, rows, tmp_path, monkeypatch
):
    monkeypatch.setenv("CVPIPE_CACHE_BYTES", "100000")
    job = job_of(run, photos, tmp_path / "run", {**FINE_TUNED, "freeze": "block_01"})
    with pytest.raises(InputError, match=r"at 'block_01' would take 0\.\d GB, more than the cache"):
        fit_rows(job, job.config.contender[0], rows["train"], rows["val"])


def test_a_rare_class_is_not_halved_to_stop_by(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", FINE_TUNED)
    many = pd.concat([rows["train"]] * 8, ignore_index=True)
    many["group"] = [
        f"{row}" if label != "NA" else f"NA {row % 2}" for row, label in enumerate(many["label"])
    ]
    fitted, stopping = networks.divide_for_stopping(job, many)
    assert 0.05 < len(stopping) / len(many) < 0.2
    assert "NA" in set(fitted["label"])
    assert len(fitted[fitted["label"] == "NA"]) == (many["label"] == "NA").sum()


@pytest.mark.parametrize("contender", [PROBE, FINE_TUNED], ids=lambda c: c["name"])
def test_a_fast_runtime_fits_and_tensorflow_measures(contender, run, photos, rows, tmp_path):
    """So that the exported file gives the measured numbers to the last digits."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    config = config_of(photos, contender, runtime="openvino")
    job = Job(config, photos, Run(tmp_path / "run"), Nobody())
    write_json(job.run.config_path, config.model_dump(mode="json"))
    write_json(job.run.classes_path, run.class_names())
    (section,) = config.contender
    fit_contender(job, section, rows["train"], rows["val"])
    predict_split(job, section, rows["val"], "val")
    part = job.run.part_path(section.name)
    model = import_keras().models.load_model(part / "model.keras", safe_mode=True)
    rule = decode_rule(config.images, config.data)
    maker = ViewMaker((64, 64), rule, config.augment, 0, 2)
    pixels = np.concatenate(list(maker.batches(files_of(photos, rows["val"]), 0)))
    table = frames.read_predictions(job.run.uncalibrated_path(section.name, "val"))
    expected = frames.probabilities_of(table)
    np.testing.assert_allclose(build_embed(model)(pixels), expected, atol=1e-6)


# --- several networks -------------------------------------------------------------------

AVERAGED = {"epochs": 4, "batch_size": 8, "warmup_epochs": 0.5, "early_stopping": False}
CYCLES = {"averaging": "snapshots", "schedule": "cyclic", "cycles": 4, "members": 2}
AVERAGINGS = [
    {**AVERAGED, **CYCLES, "warmup_epochs": 0.25},
    *({**AVERAGED, "averaging": name, "members": 2} for name in ("restarts", "folds", "soup")),
    {**AVERAGED, "averaging": "ema", "ema_decay": 0.5},
]


def probabilities_of(job, rows, model):
    """What a network says of manifest rows, computed by the function that knows no cache."""
    rule = decode_rule(job.config.images, job.config.data)
    maker = ViewMaker(tuple(model.input_shape[1:3]), rule, job.config.augment, 0, 2)
    return build_embed(model)(np.concatenate(list(maker.batches(files_of(job.root, rows), 0))))


@pytest.mark.parametrize(
    ("contender", "training"),
    [
        *((FINE_TUNED, training) for training in AVERAGINGS),
        # One way with members of their own, and one of a single network. (The mean of unrelated
        # weights means nothing and is refused.)
        *((FROM_SCRATCH, t) for t in AVERAGINGS if t["averaging"] in ("snapshots", "ema")),
    ],
    ids=lambda values: values.get("name") or values["averaging"],
)
def test_an_averaged_contender_is_one_file_that_says_what_was_measured(
    contender, training, run, photos, rows, tmp_path
):
    job = job_of(run, photos, tmp_path / "run", {**contender, "training": training})
    (section,) = job.config.contender
    fit = fit_rows(job, section, rows["train"], rows["val"], checked=True)
    networks.store_trained(tmp_path / "part", fit.trained)
    stored = import_keras().models.load_model(tmp_path / "part/model.keras", safe_mode=True)
    table = predict_rows(job, fit, rows["val"])
    measured = frames.probabilities_of(table)
    np.testing.assert_allclose(probabilities_of(job, rows["val"], stored), measured, atol=1e-6)
    history = pd.read_csv(tmp_path / "part/history.csv")
    assert list(history["epoch"]) == [1, 2, 3, 4]  # the budget, however many trainings share it
    assert fit.fitted.chosen["epochs"] == 4
    again = refit_rows(job, section, rows["train"], fit.fitted.chosen)
    np.testing.assert_array_equal(
        frames.probabilities_of(predict_rows(job, again, rows["val"])), measured
    )


def train_members(job, section, parts, stopping, head):
    """Train each member by itself."""
    return [
        networks.train_once(
            *(job, section, part, head, stopping, number),
            last_epoch=None,
            checkpoint=None,
            checked=False,
        )
        for number, part in enumerate(parts)
    ]


@pytest.mark.parametrize("averaging", ["restarts", "folds"])
def test_several_trainings_say_the_mean_of_what_each_says(averaging, run, photos, rows, tmp_path):
    training = {**AVERAGED, "averaging": averaging, "members": 2}
    job = job_of(run, photos, tmp_path / "run", {**FROM_SCRATCH, "training": training})
    (section,) = job.config.contender
    model = networks.fit_network(job, section, rows["train"], None, None).model
    parts = [rows["train"]] * 2
    if averaging == "folds":
        parts = networks.leave_parts_out(rows["train"], run.class_names(), 2, 0)
    said = []
    for member in train_members(job, section, parts, None, None):
        logits = probabilities_of(job, rows["val"], member.model)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        said.append(powers / powers.sum(axis=1, keepdims=True))
    assert np.abs(said[0] - said[1]).max() > 1e-3
    mean = probabilities_of(job, rows["val"], model)
    np.testing.assert_allclose(mean, np.mean(said, axis=0), atol=1e-6)


def test_the_first_of_several_trainings_is_the_one_of_a_contender_with_its_epochs(
    run, photos, rows, tmp_path
):
    """Whoever turns averaging on keeps what was known of the first member."""
    several = {**AVERAGED, "averaging": "restarts", "members": 2}
    alone = {**AVERAGED, "epochs": 2}
    models = []
    for training in (several, alone):
        job = job_of(run, photos, tmp_path / "run", {**FROM_SCRATCH, "training": training})
        (section,) = job.config.contender
        models.append(train_members(job, section, [rows["train"]], None, None)[0].model)
    for one, other in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_snapshots_share_the_frozen_part_and_the_last_of_them_count(run, photos, rows, tmp_path):
    job = job_of(run, photos, tmp_path / "run", {**FINE_TUNED, "training": AVERAGINGS[0]})
    (section,) = job.config.contender
    fit = fit_rows(job, section, rows["train"], rows["val"])
    model, snapshots = fit.trained.model, fit.trained.state.snapshots
    kernels = [v for v in model.weights if v.path.startswith("head") and "kernel" in v.path]
    assert len(snapshots) == 4
    assert len(kernels) == 2
    (alone,) = train_members(job, section, [rows["train"]], None, fit.trained.head)
    index = [variable.path for variable in alone.tail.variables].index("head/kernel")
    for kernel, snapshot in zip(kernels, snapshots[-2:], strict=True):
        np.testing.assert_array_equal(kernel.numpy(), snapshot[index])
    trunk = sum(np.prod(v.shape) for v in model.weights if "_member_" not in v.path)
    tails = sum(np.prod(v.shape) for v in model.weights if "_member_" in v.path)
    assert trunk > tails / 2 > 0


def test_a_soup_has_the_mean_weights(run, photos, rows, tmp_path):
    training = AVERAGINGS[3]
    assert training["averaging"] == "soup"
    job = job_of(run, photos, tmp_path / "run", {**FINE_TUNED, "training": training})
    (section,) = job.config.contender
    fit = fit_rows(job, section, rows["train"], rows["val"])
    members = train_members(job, section, [rows["train"]] * 2, None, fit.trained.head)
    kernels = [member.model.get_layer("head").kernel.numpy() for member in members]
    assert not np.array_equal(*kernels)
    stirred = fit.trained.model.get_layer("head").kernel.numpy()
    np.testing.assert_allclose(stirred, np.mean(kernels, axis=0), atol=1e-7)


def test_folds_leave_whole_groups_out_and_each_of_them_once(run, rows):
    train = rows["train"].assign(group=[f"g{n // 3}" for n in range(len(rows["train"]))])
    parts = networks.leave_parts_out(train, run.class_names(), 3, seed=1)
    left_out = [set(train["image_id"]) - set(part["image_id"]) for part in parts]
    assert sorted(name for part in left_out for name in part) == sorted(train["image_id"])
    for part, missing in zip(parts, left_out, strict=True):
        assert not set(part["group"]) & set(train[train["image_id"].isin(missing)]["group"])


def test_several_trainings_go_on_from_where_they_were_stopped(
    run, photos, rows, tmp_path, monkeypatch
):
    training = {**AVERAGED, "averaging": "restarts", "members": 2}
    job = job_of(run, photos, tmp_path / "run", {**FROM_SCRATCH, "training": training})
    (section,) = job.config.contender
    undisturbed = networks.fit_network(job, section, rows["train"], None, None)
    original, calls = networks.train, []

    def interrupted(*arguments, **options):
        calls.append(options["checkpoint"])
        if len(calls) == 2:
            options["progress"] = stop
        return original(*arguments, **options)

    def stop(text):
        raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint/training.npz"
    monkeypatch.setattr(networks, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        networks.fit_network(job, section, rows["train"], None, None, checkpoint=checkpoint)
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == [
        "training-0.npz",
        "training-1.npz",
    ]
    monkeypatch.setattr(networks, "train", original)
    resumed = networks.fit_network(job, section, rows["train"], None, None, checkpoint=checkpoint)
    assert str(resumed.state.history) == str(undisturbed.state.history)
    for one, other in zip(resumed.model.weights, undisturbed.model.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


# --- determinism ------------------------------------------------------------------------


@pytest.mark.parametrize("contender", [FINE_TUNED, FROM_SCRATCH], ids=lambda c: c["name"])
def test_cold_warm_and_half_filled_caches_give_identical_bits(
    contender, run, photos, rows, tmp_path, fresh_cache, monkeypatch
):
    trunks, build = [], networks.build_frozen_embed
    monkeypatch.setattr(
        networks, "build_frozen_embed", lambda trunk, *a: trunks.append(trunk) or build(trunk, *a)
    )
    tables = []
    for state in ("cold", "warm", "half filled"):
        if state == "half filled":
            halve_cache()
        job = job_of(run, photos, tmp_path / f"run {state}", contender)
        fit = fit_rows(job, job.config.contender[0], rows["train"], rows["val"])
        tables.append(predict_rows(job, fit, rows["test"]))
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)
    is_cached = contender is FINE_TUNED
    assert bool(trunks) == is_cached
    assert not any(norms_to_fold(trunk, frozen_only=False) for trunk in trunks)


def halve_cache():
    """Remove every second chunk, and some rows of the others by giving them other keys."""
    indices = sorted(cache_root().glob("*/*-index.json"))
    assert indices
    for number, path in enumerate(indices):
        if number % 2:
            path.unlink()
        else:
            keys = json.loads(path.read_text())
            path.write_text(json.dumps([f"other {k}" if n % 2 else k for n, k in enumerate(keys)]))


def test_val_beyond_what_training_stops_by_and_test_are_never_looked_at(
    run, photos, rows, tmp_path, fresh_cache
):
    """Their files are spoilt on disk before anything is fitted."""
    stopping = rows["val"].iloc[::2].reset_index(drop=True)
    bytes_of = {}
    for poisoned in (False, True):
        root = tmp_path / f"photos {poisoned}"
        shutil.copytree(photos, root)
        if poisoned:
            for image_id in [*rows["val"]["image_id"].iloc[1::2], *rows["test"]["image_id"]]:
                (root / image_id).write_bytes(b"poison")
        job = job_of(run, root, tmp_path / f"run {poisoned}", FROM_SCRATCH)
        fit = fit_rows(job, job.config.contender[0], rows["train"], stopping)
        bytes_of[poisoned] = [v.numpy().tobytes() for v in fit.trained.model.variables]
    assert bytes_of[True] == bytes_of[False]


# --- whole runs -------------------------------------------------------------------------


def pipeline(photos, *contenders):
    values = config_of(photos, *contenders).model_dump(mode="json")
    values["evaluate"] |= {"learning_curve": False, "resamples": 200}
    return values


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_prediction(photos, tmp_path):
    values = pipeline(photos, FINE_TUNED, FROM_SCRATCH)
    values["split"] |= {"protocol": "kfold", "num_folds": 2}
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "photos.json", values)
    rng, kills = random.Random(0), 0
    for _ in range(10):
        kills += kill_after(rng.uniform(4, 25), tmp_path / "killed")
    assert kills >= 5
    predictions = {}
    for name in ("killed", "undisturbed"):
        cache = str(tmp_path / name / "cache")
        answer = run_cvpipe("run", "photos.json", cwd=tmp_path / name, CVPIPE_CACHE_DIR=cache)
        assert answer.returncode == 0, answer.stderr
        run_path = next((tmp_path / name / "runs").glob("photos-*"))
        files = sorted(run_path.glob("contenders/*/predictions/*.csv"))
        predictions[name] = {
            str(p.relative_to(run_path)): p.read_bytes() for p in files if ".partial" not in p.name
        }
        assert not list(run_path.rglob("checkpoint"))
    assert predictions["killed"] == predictions["undisturbed"]
    assert len(predictions["killed"]) == 2 * 6
    check_run_of_networks(open_run(run_path), photos)


def kill_after(seconds, cwd):
    """Start the run and kill it; returns whether it was still at work."""
    import os

    process = subprocess.Popen(
        [sys.executable, "-m", "cvpipe", "run", "photos.json"],
        cwd=cwd,
        env={**os.environ, "CVPIPE_CACHE_DIR": str(cwd / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return running


def check_run_of_networks(run, photos):
    """The exported file is what was measured, and a loaded run predicts files."""
    (parity,) = [read_json(path) for path in run.export_path.glob("*/parity.json")]
    assert parity["passed"]
    table = run.predictions("test", "from_scratch")
    paths = [photos / image_id for image_id in table["image_id"][:3]]
    loaded = cvpipe.load(run.path, contender="from_scratch").predict_proba(paths)
    np.testing.assert_allclose(
        frames.probabilities_of(loaded), frames.probabilities_of(table)[:3], atol=1e-5
    )
    page = run.report_path.read_text()
    assert "trained from scratch on images of 28x28" in page
    assert "frozen up to block_15, fine-tuned behind it, on 2 views of each image" in page


def test_files_are_taken_by_position(tmp_path):
    files = ImageFiles(tmp_path, ["a", "b", "c"], ["1", "2", "3"])
    some = files.take([2, 0])
    assert (some.image_ids, some.sha256s) == (["c", "a"], ["3", "1"])
