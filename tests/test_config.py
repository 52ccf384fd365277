import copy
import json
import os
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cvpipe.augment_presets import AUGMENT_PRESETS
from cvpipe.config import (
    PRESETS,
    QUICK_CONTENDERS,
    config_hash,
    load_config,
    name_of,
    preset_config,
    usable_cores,
    validate_config,
)
from cvpipe.contender_sections import TrainingSection
from cvpipe.errors import InputError
from cvpipe.sections import AugmentSection

PIPELINE = """
# A whole pipeline file, every key given.
name = "größe 1"
seed = 7
threads = 3
runtime = "onnxruntime"
precision = "bfloat16"

[data]
root = "../photos"
labels = "table.csv"
label_column = "diagnosis"
drop_unreadable = true
exclude = ["0/broken one.jpg"]
max_pixels = 5000000
patient_groups = false

[split]
protocol = "kfold"
num_folds = 4
num_repeats = 2
by = ["site"]
careless = false
val_fraction = 0.25
test_fraction = 0.125

[images]
fit = "pad"
white_level = 4095
dicom_window = [40.0, 80.0]

[augment]
preset = "none"

[[feature]]
name = "hog_fine"
kind = "hog"
image_size = [64, 96]
settings = {cell_pixels = 8, soft = true, norm = "l2", scales = [4, 6], epsilon = 0.5, on = ["a"]}

[[contender]]
name = "hog_svm"
features = ["hog", "colour"]
classifier = "linear_svm"
search = "coarse"
class_weights = "balanced"

[[contender]]
name = "probe"
backbone = "efficientnet_lite0"
recipe = "linear_probe"
layers = ["block_08", "features"]
pooling = "max"
views = 4

[[contender]]
name = "tuned"
backbone = "efficientnet_lite2"
weights = "lite2.pth"
weights_sha256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
image_size = [96, 128]
recipe = "fine_tune"
freeze = "block_08"
views = 3
search = "coarse"
class_weights = "none"

[contender.training]
epochs = 20
batch_size = 16
optimizer = "sgd"
learning_rate = 0.01
backbone_rate = 0.2
schedule = "cyclic"
cycles = 2
warmup_epochs = 0.5
momentum = 0.8
weight_decay = 0.001
dropout = 0.1
label_smoothing = 0.1
loss = "focal"
focal_gamma = 1.5
logit_adjustment = 0.0
sampling = "shuffled"
patience = 5
early_stopping = true
rate_test = true
averaging = "ema"
ema_decay = 0.9

[[contender]]
name = "together"
members = ["hog_svm", "probe"]
combine = "weighted"

[[contender]]
name = "teachable"
model = "converted/keras_model.h5"
labels = "converted/labels.txt"
scaling = "none"

[evaluate]
select_by = "macro_f1"
resamples = 200
subgroups = ["camera", "site"]
goal = "sensitivity"
positive = "tumour"
at_least = 0.95
conformal_level = 0.8
learning_curve = false
views = ["single", "flip"]

[evaluate.costs]
tumour = {healthy = 20, NA = 2.5}

[export]
formats = ["keras"]
"""
# Another valid value for every field of a config but those that do not count.
OTHER_VALUES = {
    "name": "other",
    "seed": 8,
    "threads": 4,
    "runtime": "tensorflow",
    "precision": "float32",
    "data.labels": "folders",
    "data.label_column": "label",
    "data.drop_unreadable": False,
    "data.exclude": ["0/other.jpg"],
    "data.max_pixels": 5_000_001,
    "data.patient_groups": True,
    "split.num_folds": 3,
    "split.num_repeats": 3,
    "split.by": ["device"],
    "split.allow_leak": True,
    "split.careless": True,
    "split.val_fraction": 0.26,
    "split.test_fraction": 0.126,
    "images.fit": "crop",
    "images.white_level": 4096,
    "images.dicom_window": [],
    "feature.0.name": "other",
    "feature.0.kind": "colour_histogram",
    "feature.0.image_size": [],
    "feature.0.settings.cell_pixels": 9,
    "feature.0.settings.soft": False,
    "feature.0.settings.norm": "l1",
    "feature.0.settings.scales": [4],
    "feature.0.settings.epsilon": 0.25,
    "feature.0.settings.on": ["a", "b"],
    "contender.0.class_weights": "none",
    "contender.1.class_weights": "balanced",
    "augment.crop": "padded",
    "augment.min_area": 0.7,
    "augment.max_stretch": 1.2,
    "augment.padding": 0.2,
    "augment.horizontal_flip": 0.25,
    "augment.vertical_flip": 0.25,
    "augment.quarter_turns": True,
    "augment.rotation_degrees": 3,
    "augment.shift": 0.1,
    "augment.zoom": 0.1,
    "augment.shear_degrees": 3,
    "augment.brightness": 0.3,
    "augment.contrast": 0.3,
    "augment.saturation": 0.3,
    "augment.hue": 0.1,
    "augment.colour_pca": 0.1,
    "augment.blur_pixels": 1,
    "augment.noise_levels": 2,
    "augment.erasing": 0.3,
    "augment.mixup": 0.2,
    "augment.cutmix": 1,
    "augment.fused": False,
    "contender.0.features": ["colour", "hog"],
    "contender.0.classifier": "softmax",
    "contender.0.search": "fine",
    "contender.1.backbone": "another",
    "contender.1.weights": "keras",
    "contender.1.image_size": [96, 96],
    "contender.1.layers": ["block_11", "features"],
    "contender.1.pooling": "average_and_max",
    "contender.1.views": 5,
    "contender.1.search": "coarse",
    "contender.2.name": "tuned2",
    "contender.2.backbone": "another",
    "contender.2.weights": "other.pth",
    "contender.2.weights_sha256": "0" * 64,
    "contender.2.image_size": [],
    "contender.2.freeze": "last_block",
    "contender.2.views": 1,
    "contender.2.search": "fine",
    "contender.2.class_weights": "balanced",
    "contender.2.training.epochs": 22,
    "contender.2.training.batch_size": 17,
    "contender.2.training.optimizer": "nesterov",
    "contender.2.training.learning_rate": 0.02,
    "contender.2.training.backbone_rate": 1.0,
    "contender.2.training.cycles": 4,
    "contender.2.training.warmup_epochs": 0.0,
    "contender.2.training.momentum": 0.9,
    "contender.2.training.weight_decay": 0.0,
    "contender.2.training.dropout": 0.0,
    "contender.2.training.label_smoothing": 0.0,
    "contender.2.training.focal_gamma": 2.0,
    "contender.2.training.logit_adjustment": 0.5,
    "contender.2.training.sampling": "balanced",
    "contender.2.training.patience": 6,
    "contender.2.training.mixed_precision": True,
    "contender.2.training.rate_test": False,
    "contender.2.training.ema_decay": 0.99,
    "contender.3.name": "together2",
    "contender.3.members": ["probe", "hog_svm"],
    "contender.3.combine": "vote",
    "contender.4.name": "teachable2",
    "contender.4.scaling": "zero_to_one",
    "contender.4.model_sha256": "0" * 64,
    "contender.4.labels_sha256": "1" * 64,
    "evaluate.select_by": "accuracy",
    "evaluate.resamples": 201,
    "evaluate.calibration": "vector",
    "evaluate.subgroups": ["site", "camera"],
    "evaluate.learning_curve": True,
    "evaluate.costs.tumour.healthy": 21,
    "evaluate.costs.tumour.NA": 0,
    "evaluate.goal": "specificity",
    "evaluate.positive": "NA",
    "evaluate.at_least": 0.96,
    "evaluate.conformal_level": 0.85,
    "evaluate.views": ["single", "ten_crop"],
    "evaluate.view_mean": "logits",
}
# What lies there counts, by its own checksum, and not where it lies.
PLACES = {"data.root", "contender.4.model", "contender.4.labels"}
# These have a single value today.
ONE_VALUE = {"export.formats"}
# These cannot be changed alone.
CHANGED_TOGETHER = {
    "split.protocol",
    "split.time_column",
    "contender.0.name",
    "contender.1.name",
    "contender.1.recipe",
    "contender.1.weights_sha256",
    "contender.2.recipe",
    "contender.2.training.schedule",
    "contender.2.training.loss",
    "contender.2.training.early_stopping",
    "contender.2.training.averaging",
    "contender.2.training.members",
}
# These have no effect on the recipe of their contender, and cannot be changed at all.
WITHOUT_EFFECT = {
    "contender.1.freeze",
    *(f"contender.1.training.{name}" for name in TrainingSection.model_fields),
    "contender.2.layers",
    "contender.2.pooling",
}


def raw_pipeline():
    return tomllib.loads(PIPELINE)


def minimal(**changes):
    contender = {"name": "majority", "classifier": "majority"}
    return {"name": "a", "data": {"root": "x"}, "contender": [contender], **changes}


def tuned(**training):
    return {"name": "t", "backbone": "b", "recipe": "fine_tune", "training": training}


def changed(raw, key, value):
    """Return a deep copy with the value at `section.0.key` replaced."""
    raw = copy.deepcopy(raw)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    target = raw
    for part in parents:
        target = target[part]
    target[last] = value
    return raw


def keys_of(value, prefix=""):
    """List the dotted keys of all leaves; a tuple of texts is a leaf."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        pairs = list(enumerate(value))
    else:
        return [prefix]
    return [k for key, v in pairs for k in keys_of(v, f"{prefix}.{key}" if prefix else str(key))]


def message_of(raw, settings=()):
    with pytest.raises(InputError) as caught:
        validate_config(raw, settings)
    return str(caught.value)


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(v) for v in value] if isinstance(value, list) else value


def test_toml_and_resolved_json_are_equal(tmp_path):
    (tmp_path / "a.toml").write_text(PIPELINE, encoding="utf-8")
    config = load_config(tmp_path / "a.toml")
    for name in ("b.json", "c.JSON"):
        (tmp_path / name).write_text(json.dumps(config.model_dump(mode="json")))
        again = load_config(tmp_path / name)
        assert again == config
        assert hash(again) == hash(config)
        assert config_hash(again) == config_hash(config)
    assert config.contender[0].features == ("hog", "colour")
    assert config.contender[1].search == "fine"
    assert config.contender[1].layers == ("block_08", "features")
    tuned = config.contender[2]
    assert (tuned.weights, tuned.image_size, tuned.freeze) == ("lite2.pth", (96, 128), "block_08")
    assert (tuned.training.schedule, tuned.training.cycles) == ("cyclic", 2)
    assert tuned.training.learning_rate == 0.01
    assert (config.runtime, config.precision) == ("onnxruntime", "bfloat16")
    assert (config.name, config.seed, config.threads) == ("größe 1", 7, 3)
    assert (config.data.root, config.data.labels) == ("../photos", "table.csv")
    assert config.data.label_column == "diagnosis"
    assert (config.split.protocol, config.split.num_folds) == ("kfold", 4)
    assert (config.split.num_repeats, config.split.by) == (2, ("site",))
    assert config.data.exclude == ("0/broken one.jpg",)
    assert (config.data.max_pixels, config.data.patient_groups) == (5_000_000, False)
    assert (config.images.white_level, config.images.dicom_window) == (4095, (40.0, 80.0))
    assert config.split.careless is False
    assert config.evaluate.select_by == "macro_f1"
    assert config.evaluate.subgroups == ("camera", "site")
    assert config.evaluate.views == ("single", "flip")
    assert config.evaluate.costs == {"tumour": {"healthy": 20, "NA": 2.5}}


def test_defaults():
    config = validate_config(minimal())
    assert config.model_dump(mode="json") == {
        "name": "a",
        "data": {
            "root": "x",
            "labels": "folders",
            "label_column": "label",
            "drop_unreadable": False,
            "exclude": [],
            "max_pixels": 200_000_000,
            "patient_groups": True,
        },
        "split": {
            "protocol": "holdout",
            "val_fraction": 0.2,
            "test_fraction": 0.2,
            "num_folds": 5,
            "num_repeats": 1,
            "by": [],
            "time_column": "",
            "allow_leak": False,
            "careless": True,
        },
        "images": {"fit": "stretch", "white_level": 65_535, "dicom_window": []},
        "augment": {
            **{"crop": "none", "min_area": 0.5, "max_stretch": 4 / 3, "padding": 0.125},
            **{"horizontal_flip": 0.0, "vertical_flip": 0.0, "quarter_turns": False},
            **{"rotation_degrees": 0.0, "shift": 0.0, "zoom": 0.0, "shear_degrees": 0.0},
            **{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
            **{"colour_pca": 0.0, "blur_pixels": 0.0, "noise_levels": 0.0, "erasing": 0.0},
            **{"mixup": 0.0, "cutmix": 0.0, "fused": True},
        },
        "feature": [],
        "contender": [
            {
                **{"name": "majority", "features": [], "classifier": "majority"},
                **{"search": "fine", "class_weights": "none"},
            }
        ],
        "evaluate": {
            **{"select_by": "log_loss", "resamples": 1000, "subgroups": [], "costs": {}},
            "calibration": "temperature",
            **{"goal": "", "positive": "", "at_least": 0.9, "conformal_level": 0.9},
            **{"learning_curve": True, "views": ["single"], "view_mean": "probabilities"},
        },
        "export": {"formats": ["keras", "native"]},
        "runtime": "tensorflow",
        "precision": "float32",
        "seed": 0,
        "threads": usable_cores(),
    }


@pytest.mark.parametrize("recipe", ["linear_probe", "fine_tune", "from_scratch"])
def test_defaults_of_a_network(recipe):
    network = {"name": "n", "backbone": "b", "recipe": recipe}
    (contender,) = validate_config(minimal(contender=[network])).contender
    assert contender.model_dump(mode="json") == {
        **{"name": "n", "backbone": "b", "weights": "package", "weights_sha256": ""},
        **{"image_size": [], "recipe": recipe, "layers": ["features"], "pooling": "average"},
        **{"freeze": "middle", "views": 1, "search": "fine", "class_weights": "none"},
        "training": {
            **{"epochs": 30, "batch_size": 32, "optimizer": "adamw", "learning_rate": 1e-3},
            **{"backbone_rate": 0.1, "schedule": "cosine", "cycles": 1, "warmup_epochs": 1.0},
            **{"momentum": 0.9, "weight_decay": 1e-4, "dropout": 0.2, "label_smoothing": 0.0},
            **{"loss": "cross_entropy", "focal_gamma": 2.0, "logit_adjustment": 0.0},
            **{"sampling": "shuffled", "patience": 10, "early_stopping": True, "rate_test": False},
            **{"mixed_precision": False, "averaging": "none", "members": 5, "ema_decay": 0.99},
        },
    }


def test_defaults_of_an_imported_network():
    imported = {"name": "i", "model": "m.h5", "labels": "l.txt"}
    (contender,) = validate_config(minimal(contender=[imported])).contender
    assert contender.model_dump(mode="json") == {
        **{"name": "i", "model": "m.h5", "labels": "l.txt", "scaling": "minus_one_to_one"},
        **{"model_sha256": "", "labels_sha256": ""},
    }


def test_usable_cores(monkeypatch):
    assert usable_cores() >= 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_other_values_cover_every_field():
    resolved = validate_config(raw_pipeline()).model_dump(mode="json")
    known = {*OTHER_VALUES, *ONE_VALUE, *CHANGED_TOGETHER, *WITHOUT_EFFECT, *PLACES}
    assert known == set(keys_of(resolved))


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_hash_depends_on(key):
    raw = raw_pipeline()
    other = validate_config(changed(raw, key, OTHER_VALUES[key]))
    assert config_hash(other) != config_hash(validate_config(raw))


def test_hash_depends_on_the_protocol_and_the_column_of_time():
    sections = [
        {"protocol": "holdout"},
        {"protocol": "kfold"},
        {"protocol": "given"},
        {"protocol": "temporal", "time_column": "taken"},
        {"protocol": "temporal", "time_column": "stored"},
    ]
    hashes = {config_hash(validate_config(minimal(threads=1, split=s))) for s in sections}
    assert len(hashes) == 5


def test_hash_depends_on_the_recipe():
    network = {"name": "n", "backbone": "b", "views": 2}
    hashes = {
        config_hash(validate_config(minimal(threads=1, contender=[{**network, **values}])))
        for values in (
            {"recipe": "linear_probe"},
            {"recipe": "fine_tune"},
            {"recipe": "from_scratch", "views": 1},
        )
    }
    assert len(hashes) == 3


def test_hash_depends_on_how_a_network_is_trained():
    trainings = [
        {},
        *({"schedule": schedule} for schedule in ("constant", "step", "plateau", "cyclic")),
        {"loss": "focal"},
        {"early_stopping": False},
    ]
    hashes = {
        config_hash(validate_config(minimal(threads=1, contender=[tuned(**training)])))
        for training in trainings
    }
    assert len(hashes) == len(trainings)


def test_hash_depends_on_the_contenders_order_and_number():
    raw = raw_pipeline()
    hashes = {
        config_hash(validate_config({**raw, "contender": contenders}))
        for contenders in (raw["contender"], raw["contender"][::-1], raw["contender"][:1])
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("key", sorted(PLACES))
def test_hash_does_not_depend_on_places(key):
    raw = raw_pipeline()
    other = validate_config(changed(raw, key, "elsewhere"))
    assert config_hash(other) == config_hash(validate_config(raw))


def test_hash_does_not_depend_on_root_or_key_order():
    raw = raw_pipeline()
    expected = config_hash(validate_config(raw))
    assert len(expected) == 64
    assert config_hash(validate_config(changed(raw, "data.root", "/elsewhere"))) == expected
    turned = reversed_keys(raw)
    assert list(turned) != list(raw)
    assert config_hash(validate_config(turned)) == expected
    assert hash(validate_config(turned)) == hash(validate_config(raw))


def test_frozen():
    config = validate_config(minimal())
    for section, key in ((config, "seed"), (config.data, "root"), (config.contender[0], "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


def test_given_values_are_not_changed():
    raw = minimal()
    before = copy.deepcopy(raw)
    validate_config(raw, ["data.root=y", "split.val_fraction=0.3"])
    assert raw == before


CLASSIC_KEYS = "choose one of ['class_weights', 'classifier', 'features', 'name', 'search']."
NETWORK_KEYS = (
    "choose one of ['backbone', 'class_weights', 'freeze', 'image_size', 'layers', 'name', "
    "'pooling', 'recipe', 'search', 'training', 'views', 'weights', 'weights_sha256']."
)
TOP_KEYS = (
    "choose one of ['augment', 'contender', 'data', 'evaluate', 'export', 'feature', 'images', "
    "'name', 'precision', 'runtime', 'seed', 'split', 'threads']."
)
PROBE = {"name": "p", "backbone": "b", "recipe": "linear_probe"}
IMPORTED = {"name": "i", "model": "m.h5", "labels": "l.txt"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        # unknown keys, at each level, with the nearest name
        (minimal(sed=1), "unknown key 'sed'; did you mean 'seed'?"),
        (minimal(splits={}), "unknown key 'splits'; did you mean 'split'?"),
        (minimal(zzz=1), f"unknown key 'zzz'; {TOP_KEYS}"),
        (minimal(network=1), f"unknown key 'network'; {TOP_KEYS}"),
        (minimal(data={"root": "x", "label": "y"}), "unknown key 'data.label'; did you mean"),
        (minimal(split={"valfraction": 0.1}), "unknown key 'split.valfraction'; did you mean"),
        (minimal(images={"fitt": "pad"}), "unknown key 'images.fitt'; did you mean 'fit'?"),
        (minimal(evaluate={"resample": 200}), "'evaluate.resample'; did you mean 'resamples'?"),
        (minimal(export={"format": []}), "unknown key 'export.format'; did you mean 'formats'?"),
        (
            minimal(contender=[PROBE, {"name": "a", "classifier": "m", "clasifier": "m"}]),
            "unknown key 'contender.2.clasifier'; did you mean 'classifier'?",
        ),
        (
            minimal(contender=[{"name": "a", "model": "m.h5", "lables": "l.txt"}]),
            "unknown key 'contender.1.lables'; did you mean 'labels'?",
        ),
        (
            minimal(contender=[{"name": "a", "model": "m.h5"}]),
            "'contender.1.labels' is missing",
        ),
        (
            minimal(contender=[{**IMPORTED, "scaling": "imagenet"}]),
            "contender.1.scaling: input should be 'none', 'zero_to_one' or 'minus_one_to_one'",
        ),
        (minimal(contender=[{**IMPORTED, "model_sha256": "abc"}]), "contender.1.model_sha256:"),
        (
            minimal(contender=[IMPORTED], evaluate={"calibration": "isotonic"}),
            "cannot be built into the exported file of a network ('i')",
        ),
        (
            minimal(contender=[{"name": "a", "classifier": "m", "zzz": 1}]),
            f"unknown key 'contender.1.zzz'; {CLASSIC_KEYS}",
        ),
        (
            minimal(contender=[{"name": "a", "classifier": "m", "network": 1}]),
            f"unknown key 'contender.1.network'; {CLASSIC_KEYS}",
        ),
        (minimal(contender=[{**PROBE, "zzz": 1}]), f"'contender.1.zzz'; {NETWORK_KEYS}"),
        (minimal(contender=[{**PROBE, "recip": 1}]), "'contender.1.recip'; did you mean 'recipe'?"),
        (
            minimal(contender=[tuned(epoch=1)]),
            "unknown key 'contender.1.training.epoch'; did you mean 'epochs'?",
        ),
        # missing keys
        ({"name": "a", "contender": minimal()["contender"]}, "'data' is missing"),
        ({"name": "a", "data": {"root": "x"}}, "'contender' is missing"),
        ({"data": {"root": "x"}, "contender": minimal()["contender"]}, "'name' is missing"),
        (minimal(data={}), "'data.root' is missing"),
        (minimal(contender=[{"name": "a"}]), "'contender.1.classifier' is missing"),
        (minimal(contender=[{"classifier": "a"}]), "'contender.1.name' is missing"),
        (minimal(contender=[{"name": "a", "backbone": "b"}]), "'contender.1.recipe' is missing"),
        (minimal(contender=[PROBE, {"name": "a", "recipe": "b"}]), "'contender.2.backbone' is mis"),
        # wrong types: nothing is converted
        (minimal(seed="7"), "seed: input should be a valid integer, but is '7'"),
        (minimal(seed=True), "seed: input should be a valid integer, but is True"),
        (minimal(seed=1.0), "seed: input should be a valid integer, but is 1.0"),
        (minimal(name=7), "name: input should be a valid string, but is 7"),
        (minimal(data=3), "data: input should be an object, but is 3"),
        (minimal(data={"root": 3}), "data.root: input should be a valid string, but is 3"),
        (
            minimal(data={"root": "x", "drop_unreadable": 1}),
            "data.drop_unreadable: input should be a valid boolean, but is 1",
        ),
        (minimal(split={"val_fraction": "0.2"}), "split.val_fraction: input should be a valid num"),
        (
            minimal(split={"num_folds": 5.0}),
            "split.num_folds: input should be a valid integer, but",
        ),
        (minimal(split={"careless": 0}), "split.careless: input should be a valid boolean, but is"),
        (
            minimal(data={"root": "x", "label_column": 3}),
            "data.label_column: input should be a valid string, but is 3",
        ),
        (
            minimal(evaluate={"subgroups": ["a", "b", "a"]}),
            "evaluate.subgroups: 'a' is named more than once; name it once",
        ),
        (
            minimal(evaluate={"subgroups": "camera"}),
            "evaluate.subgroups: input should be a valid array, but is 'camera'",
        ),
        (
            minimal(evaluate={"costs": [["a", "b", 2]]}),
            "evaluate.costs: input should be an object, but is [['a', 'b', 2]]",
        ),
        (
            minimal(evaluate={"costs": {"a": 2}}),
            "evaluate.costs.a: input should be an object, but is 2",
        ),
        (
            minimal(evaluate={"costs": {"a": {"b": "2"}}}),
            "evaluate.costs.a.b: input should be a valid number, but is '2'",
        ),
        (
            minimal(evaluate={"costs": {"a": {"b": -2}}}),
            "evaluate.costs.a.b: input should be greater than or equal to 0, but is -2",
        ),
        *(
            (
                minimal(evaluate={"costs": {"a": {"b": float(value)}}}),
                f"evaluate.costs.a.b: input should be a finite number, but is {value}",
            )
            for value in ("inf", "nan")
        ),
        (
            minimal(evaluate={"costs": {"a": {"a": 0.5, "b": 2}}}),
            "evaluate.costs: a right answer costs nothing, but 'a' for 'a' costs 0.5; subtract it "
            "from what the mistakes on that class cost",
        ),
        (
            minimal(evaluate={"select_by": "cost"}),
            "evaluate: select_by is 'cost', but costs are not given; say what mistakes cost, as "
            "in costs = {sick = {healthy = 20}}, or choose by 'log_loss'",
        ),
        (minimal(evaluate={"resamples": 200.0}), "evaluate.resamples: input should be a valid int"),
        (minimal(contender={"name": "a"}), "contender: input should be a valid array, but is {"),
        (minimal(contender=["a"]), "contender.1: input should be an object, but is 'a'"),
        (
            minimal(contender=[{"name": "a", "classifier": "m", "features": "hog"}]),
            "contender.1.features: input should be a valid array, but is 'hog'",
        ),
        (
            minimal(contender=[{"name": "a", "classifier": "m", "features": ["hog", 3]}]),
            "contender.1.features.2: input should be a valid string, but is 3",
        ),
        # out of range
        (minimal(seed=-1), "seed: input should be greater than or equal to 0, but is -1"),
        (minimal(seed=2**32), "seed: input should be less than 4294967296, but is 4294967296"),
        (minimal(seed=10**30), "seed: input should be less than 4294967296, but is 1000"),
        (minimal(threads=0), "threads: input should be greater than or equal to 1, but is 0"),
        (minimal(threads=1025), "threads: input should be less than or equal to 1024"),
        (minimal(split={"val_fraction": 0.0}), "split.val_fraction: input should be greater than"),
        (minimal(split={"test_fraction": 1.0}), "split.test_fraction: input should be less than 1"),
        (minimal(split={"val_fraction": float("nan")}), "split.val_fraction: input should be"),
        (
            minimal(split={"val_fraction": 0.5, "test_fraction": 0.41}),
            "split: val_fraction + test_fraction must leave at least 0.1 for train, but they are "
            "0.5 + 0.41",
        ),
        (
            minimal(split={"num_folds": 1}),
            "split.num_folds: input should be greater than or equal to 2, but is 1",
        ),
        (
            minimal(split={"num_folds": 21}),
            "split.num_folds: input should be less than or equal to 20, but is 21",
        ),
        (minimal(evaluate={"resamples": 99}), "evaluate.resamples: input should be greater than"),
        (minimal(evaluate={"resamples": 100_001}), "resamples: input should be less than or equ"),
        # one of several words
        (
            minimal(images={"fit": "zoom"}),
            "images.fit: input should be 'stretch', 'pad' or 'crop', but is 'zoom'",
        ),
        (
            minimal(split={"protocol": "careless"}),
            "split.protocol: input should be 'holdout', 'kfold', 'given' or 'temporal', but is "
            "'careless'",
        ),
        # what goes together
        (
            minimal(split={"protocol": "temporal"}),
            "split: time_column and protocol = 'temporal' go together, but the protocol is "
            "'temporal' and time_column is ''",
        ),
        (
            minimal(split={"time_column": "taken"}),
            "but the protocol is 'holdout' and time_column is 'taken'",
        ),
        (
            minimal(split={"num_repeats": 3}),
            "split: num_repeats is 3, which is for protocol = 'kfold', but the protocol is 'hold",
        ),
        (
            minimal(split={"protocol": "kfold", "num_repeats": 21}),
            "split.num_repeats: input should be less than or equal to 20, but is 21",
        ),
        (
            minimal(split={"protocol": "kfold", "num_repeats": 0}),
            "split.num_repeats: input should be greater than or equal to 1, but is 0",
        ),
        (
            minimal(split={"by": ["site", "device", "site"]}),
            "split.by: 'site' is named more than once; name it once",
        ),
        (
            minimal(data={"root": ".", "exclude": ["a/1.png", "b/1.png", "b/1.png"]}),
            "data.exclude: 'b/1.png' is named more than once; name it once",
        ),
        (
            minimal(images={"white_level": 254}),
            "images.white_level: input should be greater than or equal to 255, but is 254",
        ),
        (
            minimal(images={"white_level": 65_536}),
            "images.white_level: input should be less than or equal to 65535, but is 65536",
        ),
        (
            minimal(images={"dicom_window": [40.0]}),
            "images.dicom_window: must be [centre, width], both finite, with a width of at least "
            "1, or empty, but is [40.0]",
        ),
        (
            minimal(images={"dicom_window": [40.0, 0.5]}),
            "images.dicom_window: must be [centre, width], both finite, with a width of at least "
            "1, or empty, but is [40.0, 0.5]",
        ),
        (
            minimal(images={"dicom_window": [float("nan"), 400.0]}),
            "images.dicom_window: must be [centre, width], both finite, with a width of at least "
            "1, or empty, but is [nan, 400.0]",
        ),
        (
            minimal(images={"dicom_window": [40.0, float("inf")]}),
            "images.dicom_window: must be [centre, width], both finite, with a width of at least "
            "1, or empty, but is [40.0, inf]",
        ),
        (
            minimal(data={"root": "x", "max_pixels": 0}),
            "data.max_pixels: input should be greater than or equal to 1, but is 0",
        ),
        (minimal(evaluate={"select_by": "auc"}), "evaluate.select_by: input should be 'log_loss',"),
        (minimal(export={"formats": []}), "export.formats: tuple should have at least 1 item"),
        (
            minimal(contender=[{**PROBE, "recipe": "magic"}]),
            "contender.1.recipe: input should be 'linear_probe', 'fine_tune' or 'from_scratch', "
            "but is 'magic'",
        ),
        (minimal(contender=[{**PROBE, "search": "x"}]), "contender.1.search: input should be 'coa"),
        (
            minimal(data={"root": "x", "labels": "table.xlsx"}),
            "data.labels: must be 'folders' or the name of a .csv or .tsv file in data.root, but "
            "is 'table.xlsx'",
        ),
        # contenders
        (minimal(contender=[]), "contender: a pipeline needs at least one [[contender]]"),
        (
            minimal(contender=[PROBE, {"name": "p", "classifier": "m"}]),
            "contender: two contenders are called 'p'; give each its own name",
        ),
        (
            minimal(contender=[{**PROBE, "class_weights": "x"}]),
            "contender.1.class_weights: input should be 'none' or 'balanced', but is 'x'",
        ),
        # networks
        (minimal(precision="float16"), "precision: input should be 'float32' or 'bfloat16', but"),
        (
            minimal(contender=[{**PROBE, "image_size": [64]}]),
            "contender.1.image_size: must be [height, width] in pixels, or empty, but is [64]",
        ),
        (
            minimal(contender=[{**PROBE, "weights_sha256": "abc"}]),
            "contender.1.weights_sha256: string should match",
        ),
        (minimal(contender=[{**PROBE, "layers": []}]), "contender.1.layers: value should have at"),
        (
            minimal(contender=[{**PROBE, "layers": ["a", "a"]}]),
            "contender.1.layers: 'a' is named more than once; name it once",
        ),
        (
            minimal(contender=[{**PROBE, "pooling": "mean"}]),
            "contender.1.pooling: input should be 'average', 'max' or 'average_and_max', but is",
        ),
        (minimal(contender=[{**PROBE, "views": 0}]), "contender.1.views: input should be greater"),
        (
            minimal(contender=[{**PROBE, "recipe": "from_scratch", "weights": "keras"}]),
            "contender.1: weights is 'keras', but the recipe 'from_scratch' starts from none; "
            "leave it out, or choose 'fine_tune'",
        ),
        (
            minimal(contender=[{**PROBE, "pooling": "max"}]),
            "contender.1: pooling has no effect on the features, which are pooled already; name",
        ),
        (
            minimal(contender=[{**PROBE, "weights_sha256": "0" * 64}]),
            "contender.1: weights_sha256 is for a file, but weights is 'package'; leave it out",
        ),
        (
            minimal(contender=[{**tuned(backbone_rate=0.2), "recipe": "from_scratch"}]),
            "contender.1: training.backbone_rate has no effect on the recipe 'from_scratch'",
        ),
        (
            minimal(contender=[{**tuned(sampling="balanced"), "class_weights": "balanced"}]),
            "contender.1: class_weights and training.sampling are remedies for the same thing, and",
        ),
        (
            minimal(contender=[tuned(sampling="balanced", logit_adjustment=1.0)]),
            "training.sampling and training.logit_adjustment are remedies for the same thing",
        ),
        (
            minimal(contender=[tuned(batch_size=1)]),
            "contender.1.training.batch_size: input should be greater than or equal to 2, but is 1",
        ),
        (
            minimal(contender=[tuned(learning_rate=0)]),
            "contender.1.training.learning_rate: input should be greater than 0, but is 0",
        ),
        (
            minimal(contender=[tuned(dropout=1.0)]),
            "contender.1.training.dropout: input should be less than 1, but is 1.0",
        ),
        (
            minimal(contender=[tuned(optimizer="lion")]),
            "contender.1.training.optimizer: input should be 'sgd', 'nesterov', 'rmsprop', 'adam'",
        ),
        (
            minimal(contender=[tuned(momentum=0.5)]),
            "contender.1.training: momentum has no effect where optimizer is 'adamw'; leave one of",
        ),
        (
            minimal(contender=[tuned(focal_gamma=1.0)]),
            "contender.1.training: focal_gamma has no effect where loss is 'cross_entropy'; leave",
        ),
        (
            minimal(contender=[tuned(patience=3, early_stopping=False)]),
            "contender.1.training: patience has no effect where early_stopping is False; leave one",
        ),
        (
            minimal(contender=[tuned(cycles=3)]),
            "contender.1.training: cycles is 3, which is for schedule = 'cyclic', but the schedule "
            "is 'cosine'",
        ),
        (
            minimal(contender=[tuned(cycles=4, schedule="cyclic")]),
            "contender.1.training: every cycle has as many epochs, but 30 epochs cannot be divided "
            "into 4 cycles",
        ),
        (
            minimal(contender=[tuned(members=3)]),
            "contender.1.training: members has no effect where averaging is 'none'; leave one of",
        ),
        (
            minimal(contender=[tuned(averaging="soup", ema_decay=0.5, early_stopping=False)]),
            "contender.1.training: ema_decay has no effect where averaging is 'soup'; leave one of",
        ),
        (
            minimal(contender=[tuned(averaging="restarts")]),
            "contender.1.training: averaging = 'restarts' uses all of the epochs; set "
            "early_stopping = false",
        ),
        (
            minimal(contender=[tuned(averaging="folds", members=4, early_stopping=False)]),
            "contender.1.training: 30 epochs are shared by 4 trainings of 1 cycles each, which "
            "does not come out even; choose a multiple",
        ),
        (
            minimal(contender=[tuned(averaging="snapshots", early_stopping=False)]),
            "contender.1.training: averaging = 'snapshots' takes the last 5 cycles, but there are "
            "1; set schedule = 'cyclic' and cycles = 5, or fewer members",
        ),
        (
            minimal(
                contender=[
                    {
                        **{"name": "s", "backbone": "b", "recipe": "from_scratch"},
                        "training": {"averaging": "soup", "early_stopping": False},
                    }
                ]
            ),
            "contender.1: training.averaging is 'soup', but the mean of the weights of networks",
        ),
        # features
        (
            minimal(feature=[{"name": "a", "kind": "hog", "size": 1}]),
            "unknown key 'feature.1.size'; choose one of ['image_size', 'kind', 'name', 'settin",
        ),
        (minimal(feature=[{"name": "a"}]), "'feature.1.kind' is missing"),
        (
            minimal(feature=[{"name": "a", "kind": "hog"}, {"name": "a", "kind": "hog"}]),
            "feature: two features are called 'a'; give each its own name",
        ),
        (
            minimal(feature=[{"name": "a", "kind": "hog", "image_size": [64]}]),
            "feature.1.image_size: must be [height, width] in pixels, or empty, but is [64]",
        ),
        (
            minimal(feature=[{"name": "a", "kind": "hog", "image_size": [64, 0]}]),
            "feature.1.image_size.2: input should be greater than or equal to 1, but is 0",
        ),
        (
            minimal(feature=[{"name": "a", "kind": "hog", "settings": {"b": [1.5]}}]),
            "feature.1.settings.b: must be a number, a word, true, false or a list of whole numb",
        ),
    ],
)
def test_messages(raw, message):
    assert message in message_of(raw)


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("linear_probe", "freeze", "none"),
        ("linear_probe", "training", {"epochs": 3}),
        ("fine_tune", "layers", ["block_08"]),
        ("fine_tune", "pooling", "max"),
        ("from_scratch", "layers", ["block_08"]),
        ("from_scratch", "pooling", "max"),
        ("from_scratch", "freeze", "none"),
        ("from_scratch", "views", 2),
        ("from_scratch", "search", "coarse"),
    ],
)
def test_what_has_no_effect_on_a_recipe_is_refused(recipe, key, value):
    message = f"contender.1: {key} has no effect on the recipe {recipe!r}; leave it out, or choose"
    network = {**PROBE, "recipe": recipe}
    assert message in message_of(minimal(contender=[{**network, key: value}]))
    validate_config(minimal(contender=[network]))


def test_messages_of_our_own_stand_alone():
    assert message_of(minimal(contender=[])) == (
        "contender: a pipeline needs at least one [[contender]]"
    )


def test_all_problems_are_told_at_once():
    assert message_of(minimal(sed=1, threads=0)) == (
        "threads: input should be greater than or equal to 1, but is 0; "
        "unknown key 'sed'; did you mean 'seed'?"
    )


def test_limits_are_included():
    for low, high in ((0.34, 0.56), (0.45, 0.45), (0.8, 0.1)):
        validate_config(minimal(split={"val_fraction": low, "test_fraction": high}))
    for key, values in {"seed": (0, 2**32 - 1), "threads": (1, 1024)}.items():
        for value in values:
            assert getattr(validate_config(minimal(**{key: value})), key) == value
    for value in (100, 100_000):
        validate_config(minimal(evaluate={"resamples": value}))
    for value in (2, 20):
        validate_config(minimal(split={"num_folds": value}))


BAD_NAMES = ["..", ".", "", "a/b", "/a", "../a", ".a", "-a", "a.", "a ", " a", "a\n", "a\\b", "a\0"]


@pytest.mark.parametrize("name", [*BAD_NAMES, " ", "a:b", "x" * 81])
def test_run_names_that_could_escape_a_folder(name):
    assert message_of(minimal(name=name)).startswith("name: string should ")


@pytest.mark.parametrize("name", ["a", "_a", "9", "größe 1", "a..b", "v1.2-rc", "a-", "x" * 80])
def test_run_names_that_are_fine(name):
    assert validate_config(minimal(name=name)).name == name


@pytest.mark.parametrize(
    "name", [*BAD_NAMES, "A", "9a", "_a", "ä", "aä", "aB", "a-b", "a.b", "a b", "x" * 41]
)
def test_contender_names_that_could_escape_a_folder(name):
    message = message_of(minimal(contender=[{"name": name, "classifier": "m"}]))
    assert message.startswith("contender.1.name: string should ")
    assert message_of(minimal(contender=[{**PROBE, "name": name}])) == message


def test_contender_names_that_are_fine():
    for name in ("a", "hog_svm_2", "x" * 40):
        validate_config(minimal(contender=[{"name": name, "classifier": "m"}]))


@pytest.mark.parametrize("labels", ["a.csv", "a b.TSV", "größe.csv"])
def test_label_tables_that_are_fine(labels):
    assert validate_config(minimal(data={"root": "x", "labels": labels})).data.labels == labels


@pytest.mark.parametrize(
    "labels", ["../a.csv", "/a.csv", "b/a.csv", "a.csv/", "", "csv", "Folders"]
)
def test_label_tables_outside_the_root(labels):
    assert "data.labels: must be 'folders'" in message_of(
        minimal(data={"root": "x", "labels": labels})
    )


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=100))
def test_every_file_name_makes_a_valid_name(text):
    name = name_of(text)
    assert validate_config(minimal(name=name)).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("brain_mri", "brain_mri"),
        ("my photos (2)", "my_photos__2_"),
        ("10 m²", "10_m_"),
        ("...", "images"),
        ("", "images"),
        (".hidden.", "hidden"),
        ("x" * 79 + ".y", "x" * 79),
        ("प्रयोग", "प_रय_ग"),
    ],
)
def test_name_of(text, name):
    assert name_of(text) == name


# Both end with the network; every yardstick that looks at no pixel is in both.
PRESET_NAMES = {
    "quick": ["majority", "shortcut", "hog_svm", "linear_probe"],
    "standard": [
        "majority",
        "shortcut",
        "pixels_knn",
        "colour_softmax",
        "hog_svm",
        "hog_rbf",
        "lite0_rbf",
        "linear_probe",
    ],
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("labels", ["folders", "table.csv"])
def test_presets_are_valid(preset, labels):
    config = validate_config(preset_config("photos", "some/photos", labels, preset))
    assert (config.name, config.data.root, config.data.labels) == ("photos", "some/photos", labels)
    assert [c.name for c in config.contender] == PRESET_NAMES[preset]
    search = {"quick": "coarse", "standard": "fine"}[preset]
    assert {c.search for c in config.contender} == {search}


def test_the_quick_contenders_are_those_of_the_standard_preset_searched_coarsely():
    assert list(QUICK_CONTENDERS) == PRESET_NAMES["quick"]
    quick, standard = (
        {
            contender.name: contender.model_dump(exclude={"search"})
            for contender in validate_config(preset_config("a", "x", "folders", preset)).contender
        }
        for preset in ("quick", "standard")
    )
    assert quick == {name: standard[name] for name in quick}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed=7", 7),
        (" seed = 7", 7),
        ("threads=1", 1),
        ("name=other", "other"),
        ('name="7"', "7"),
        ("name=a=b", None),
        ("split.val_fraction=0.3", 0.3),
        ("split.test_fraction=1e-1", 0.1),
        ("images.fit=pad", "pad"),
        ('images.fit="pad"', "pad"),
        ("data.drop_unreadable=true", True),
        ("data.label_column=diagnosis", "diagnosis"),
        ("split.protocol=kfold", "kfold"),
        ("split.num_folds=10", 10),
        ("split.careless=false", False),
        ('evaluate.subgroups=["camera"]', ("camera",)),
        ("data.root=/a/b c", "/a/b c"),
        ("data.root=a=b", "a=b"),
        ("data.root=", ""),
        ("evaluate.resamples=1_000", 1000),
        ('export.formats=["keras"]', ("keras",)),
        ('evaluate.costs={sick = {"well off" = 20.5}}', {"sick": {"well off": 20.5}}),
    ],
)
def test_settings(setting, value):
    if value is None:
        assert "name: string should match" in message_of(minimal(), [setting])
        return
    found = validate_config(minimal(), [setting])
    for part in setting.partition("=")[0].strip().split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_contenders_may_be_chosen_by_their_cost_where_costs_are_given():
    costs = {"sick": {"healthy": 20, "sick": 0}}
    config = validate_config(minimal(evaluate={"select_by": "cost", "costs": costs}))
    assert config.evaluate.select_by == "cost"
    other = validate_config(minimal(evaluate={"select_by": "cost", "costs": {"sick": {"flu": 1}}}))
    assert config != other
    assert hash(config) != hash(other)


def test_settings_keep_the_rest_of_a_section_and_the_last_one_counts():
    raw = minimal(split={"val_fraction": 0.1, "test_fraction": 0.3})
    config = validate_config(raw, ["split.val_fraction=0.2", "split.val_fraction=0.15"])
    assert (config.split.val_fraction, config.split.test_fraction) == (0.15, 0.3)
    whole = validate_config(raw, ["split={val_fraction=0.4}"])
    assert (whole.split.val_fraction, whole.split.test_fraction) == (0.4, 0.2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "cannot understand the setting 'seed'; write section.key=value, for example "),
        ("", "cannot understand the setting ''"),
        ("=3", "cannot understand the setting '=3'"),
        ("split.=3", "cannot understand the setting 'split.=3'"),
        (".seed=3", "cannot understand the setting '.seed=3'"),
        ("contender.0.name=x", "cannot understand the setting 'contender.0.name=x'"),
        ("seed=3\nthreads=1", "cannot understand the setting"),
        (
            "contender.name=x",
            "'contender' is a list; change it in the pipeline file, not by 'contender.name=x'.",
        ),
        (
            "name.x=3",
            "'name' is a single value; change it in the pipeline file, not by 'name.x=3'.",
        ),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'?"),
        ("splitt.val_fraction=0.3", "unknown key 'splitt'; did you mean 'split'?"),
        ("split.val=0.3", "unknown key 'split.val'; "),
        ('seed="7"', "seed: input should be a valid integer, but is '7'"),
        ("seed=seven", "seed: input should be a valid integer, but is 'seven'"),
        ("seed.x=3", "seed: input should be a valid integer, but is {'x': 3}"),
        ("images.fit=zoom", "images.fit: input should be 'stretch', 'pad' or 'crop'"),
        ("data=3", "data: input should be an object, but is 3"),
    ],
)
def test_setting_errors(setting, message):
    assert message in message_of(minimal(), [setting])


def file_message(path, settings=()):
    with pytest.raises(InputError) as caught:
        load_config(path, settings)
    return str(caught.value)


def test_name_comes_from_the_file(tmp_path):
    raw = minimal()
    del raw["name"]
    (tmp_path / "brain (2).json").write_text(json.dumps(raw))
    assert load_config(tmp_path / "brain (2).json").name == "brain__2_"
    (tmp_path / "a.json").write_text(json.dumps(minimal(name="given")))
    assert load_config(tmp_path / "a.json").name == "given"
    assert load_config(tmp_path / "a.json", ["name=set"]).name == "set"


def test_toml_date_is_text(tmp_path):
    (tmp_path / "a.toml").write_text(PIPELINE.replace("seed = 7", "seed = 1979-05-27"))
    assert "seed: input should be a valid integer, but is '1979-05-27'" in file_message(
        tmp_path / "a.toml"
    )


def test_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "a.toml").write_text(PIPELINE, encoding="utf-8-sig")
    assert load_config(tmp_path / "a.toml").name == "größe 1"


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(PIPELINE.replace("seed", "sed"))
    assert file_message(path) == f"{path}: unknown key 'sed'; did you mean 'seed'?"


def test_syntax_errors_name_the_line(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('seed = 1\n[data]\nroot = "x\n')
    message = file_message(path)
    assert message.startswith(f"{path} cannot be parsed: ")
    assert "line 3" in message
    (tmp_path / "a.json").write_text('{\n"seed": }')
    message = file_message(tmp_path / "a.json")
    assert "a.json cannot be parsed: " in message
    assert "line 2" in message
    (tmp_path / "a.json").write_text("[1]")
    assert file_message(tmp_path / "a.json").endswith(
        "a.json must hold sections, but holds a list."
    )


def test_missing_file(tmp_path):
    path = tmp_path / "brain_mri.toml"
    path.write_text(PIPELINE)
    missing = tmp_path / "brain_mir.toml"
    assert file_message(missing) == (
        f"there is no pipeline file {str(missing)!r}; did you mean {str(path)!r}?"
    )
    missing = tmp_path / "nowhere" / "a.toml"
    assert file_message(missing) == (
        f"there is no pipeline file {str(missing)!r}; there is none to choose from."
    )


def test_unreadable_file(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    assert "cannot read the pipeline file" in file_message(tmp_path / "folder.toml")
    (tmp_path / "latin.toml").write_bytes('name = "größe"'.encode("latin-1"))
    assert "cannot read the pipeline file" in file_message(tmp_path / "latin.toml")


def test_shipped_pipelines_are_valid(request):
    paths = sorted((request.config.rootpath / "pipelines").glob("*.toml"))
    assert paths
    for path in paths:
        assert load_config(path).name == path.stem


@pytest.mark.parametrize("arguments", [["--help"], ["run", "a.toml"], ["run", "b.toml"]])
def test_config_errors_are_answered_before_anything_heavy_is_imported(tmp_path, arguments):
    (tmp_path / "a.toml").write_text("sed = 1")
    code = (
        "import sys\n"
        "from cvpipe.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = ['numpy', 'pandas', 'scipy', 'sklearn', 'cv2', 'PIL', 'tensorflow', 'keras']\n"
        "print('imported', [name for name in heavy if name in sys.modules], code)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    expected_code = 0 if arguments == ["--help"] else 2
    assert answer.stdout.endswith(f"imported [] {expected_code}\n"), answer.stderr


def test_a_class_that_looks_like_a_date_or_a_number_can_be_named():
    goal = ["evaluate.goal=sensitivity"]
    dated = validate_config(minimal(), [*goal, "evaluate.positive=2020-01-01"])
    assert dated.evaluate.positive == "2020-01-01"
    assert validate_config(minimal(), [*goal, 'evaluate.positive="0"']).evaluate.positive == "0"
    with pytest.raises(InputError, match=r"valid string, but is 0; write it in quotes: '\"0\"'"):
        validate_config(minimal(), [*goal, "evaluate.positive=0"])


def test_a_preset_is_stored_as_plain_settings():
    named = validate_config(minimal(augment={"preset": "xray_mri", "hue": 0.1}))
    settings = {**AUGMENT_PRESETS["xray_mri"].settings, "hue": 0.1}
    spelt_out = validate_config(minimal(augment=settings))
    assert named == spelt_out
    assert config_hash(named) == config_hash(spelt_out)
    assert "preset" not in named.model_dump()["augment"]
    assert validate_config(named.model_dump(mode="json")) == named
    assert validate_config(minimal(), ["augment.preset=xray_mri", "augment.hue=0.1"]) == named


def test_a_setting_beside_a_preset_wins():
    config = validate_config(minimal(augment={"preset": "natural", "horizontal_flip": 0}))
    assert config.augment.horizontal_flip == 0
    assert config.augment.crop == "resized"


@pytest.mark.parametrize("name", AUGMENT_PRESETS)
def test_presets_are_valid_and_say_why(name):
    preset = AUGMENT_PRESETS[name]
    section = AugmentSection.model_validate({"preset": name})
    assert section.model_dump(include=set(preset.settings)) == preset.settings
    assert len(preset.reason) > 20 or name == "none"


def test_presets_keep_what_their_domain_needs():
    sections = {name: AugmentSection.model_validate({"preset": name}) for name in AUGMENT_PRESETS}
    assert sections["none"] == AugmentSection()
    scans = sections["xray_mri"]
    assert (scans.hue, scans.saturation, scans.vertical_flip, scans.quarter_turns) == (
        0,
        0,
        0,
        False,
    )
    digits = sections["digits"]
    assert (digits.horizontal_flip, digits.vertical_flip, digits.quarter_turns) == (0, 0, False)
    cells = sections["microscopy"]
    assert cells.quarter_turns
    assert cells.horizontal_flip == 0.5


def test_a_preset_that_is_set_replaces_the_section():
    stored = validate_config(minimal(augment={"preset": "microscopy", "hue": 0.3})).model_dump()
    settings = {**AUGMENT_PRESETS["xray_mri"].settings, "blur_pixels": 1.0}
    for order in (1, -1):
        given = ["augment.preset=xray_mri", "augment.blur_pixels=1"][::order]
        assert validate_config(stored, given).augment == AugmentSection(**settings)
