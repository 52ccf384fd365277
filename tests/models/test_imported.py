"""Networks of other programs: what they say stays the same, and what they may not do is refused."""

import io
import json
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from cvpipe.errors import InputError
from cvpipe.models.features import build_embed
from cvpipe.models.framework import import_keras
from cvpipe.models.heads import ends_with_linear_head
from cvpipe.models.imported import (
    SCALINGS,
    check_probabilities,
    describe_scaling,
    find_file,
    import_network,
    load_foreign,
    order_of,
    read_labels,
    scales_itself,
)
from cvpipe.models.keras_files import read_description
from tests.keras2_files import images

NAMES = ("teachable", "many_layers", "one_unit", "pooled_softmax")
SCALING = "minus_one_to_one"


def probabilities_of(path):
    """What Keras 2 said, as one column per class."""
    rows = np.load(path.with_suffix(".npy"))
    return np.hstack([1 - rows, rows]) if rows.shape[1] == 1 else rows


def ask(model):
    height, width = model.input_shape[1:3]
    return build_embed(model)(images()[:, :height, :width])


def import_in_order(path, scaling=SCALING, num_classes=3):
    return import_network(path, list(range(num_classes)), scaling, "net")


def refused(path, num_classes=3):
    with pytest.raises(InputError) as caught:
        import_in_order(path, num_classes=num_classes)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(path, copy, change):
    """Copy a file, its description changed by a function."""
    shutil.copy(path, copy)
    with h5py.File(copy, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        text = json.dumps(change(model) or model)
        del file.attrs["model_config"]
        file.attrs["model_config"] = text
    return copy


def saved(folder, *layers, shape=(24, 32, 3), name="own.keras"):
    """Save a network of Keras 3."""
    keras = import_keras()
    path = folder / name
    keras.Sequential([keras.Input(shape), *layers]).save(path)
    return path


# --- the same probabilities ---------------------------------------------------------------


@pytest.mark.parametrize("ending", ["h5", "keras"])
@pytest.mark.parametrize("name", NAMES)
def test_what_keras_2_said_stays(keras2_files, tmp_path, name, ending):
    path = keras2_files / f"{name}.{ending}"
    expected = probabilities_of(path)
    order = list(range(expected.shape[1]))
    order = [*order[1:], order[0]]  # each class comes to stand elsewhere
    model = import_network(path, order, SCALING, "net")
    found = ask(model)
    assert np.ptp(expected, axis=0).max() > 1e-3  # or any constant would do
    np.testing.assert_allclose(found, expected[:, order], atol=1e-5)
    assert (model.input_shape[3], model.inputs[0].dtype) == (3, "uint8")
    assert ends_with_linear_head(model) == (name != "pooled_softmax")
    # What is stored opens without any class of cvpipe, and has no network inside a network.
    model.save(tmp_path / "model.keras")
    keras = import_keras()
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(ask(again), found)
    modules = {type(layer).__module__.split(".")[0] for layer in again.layers}
    assert modules == {"keras"}
    assert not any(isinstance(layer, keras.Model) for layer in again.layers)


def test_as_a_converter_of_teachable_machine_writes_it(keras2_files, tmp_path):
    """Without layers that state an input, and without modules."""

    def change(value):
        if isinstance(value, dict):
            for key in ("module", "registered_name", "build_config"):
                value.pop(key, None)
            layers = value.get("layers")
            is_sequence = layers and "input_layers" not in value
            if is_sequence and layers[0]["class_name"] == "InputLayer":
                value["layers"] = layers[1:]
            value = {key: change(part) for key, part in value.items()}
        return [change(part) for part in value] if isinstance(value, list) else value

    path = changed(keras2_files / "teachable.h5", tmp_path / "keras_model.h5", change)
    expected = probabilities_of(keras2_files / "teachable.h5")
    np.testing.assert_allclose(ask(import_in_order(path)), expected, atol=1e-5)


def test_scaling_matters(keras2_files):
    path = keras2_files / "many_layers.h5"
    said = {scaling: ask(import_in_order(path, scaling)) for scaling in SCALINGS}
    for one, other in (("none", "zero_to_one"), ("zero_to_one", SCALING), ("none", SCALING)):
        assert np.abs(said[one] - said[other]).max() > 1e-3
    # By hand, on the network as it was loaded.
    pixels = images()[:, :32, :40].astype(np.float32)
    source = load_foreign(path)
    for scaling, scaled in {"none": pixels, "zero_to_one": pixels / 255}.items():
        np.testing.assert_allclose(said[scaling], source.predict(scaled, verbose=0), atol=1e-5)


def test_a_network_that_scales_itself_is_noticed(keras2_files):
    assert scales_itself(import_in_order(keras2_files / "one_unit.h5", num_classes=2))
    assert not scales_itself(import_in_order(keras2_files / "many_layers.h5"))


def test_every_scaling_is_told_in_words():
    assert len({describe_scaling(scaling) for scaling in SCALINGS}) == len(SCALINGS)


def test_a_sigmoid_that_stands_alone_and_a_reserved_name(tmp_path):
    layers = import_keras().layers
    path = saved(
        tmp_path,
        layers.Conv2D(1, 3, name="head"),
        layers.GlobalAveragePooling2D(name="probabilities"),
        layers.Activation("sigmoid", name="scaling"),
    )
    source = load_foreign(path)
    pixels = images()[:, :24, :32]
    second = source.predict(pixels.astype(np.float32), verbose=0)
    model = import_network(path, [1, 0], "none", "net")
    np.testing.assert_allclose(ask(model), np.hstack([second, 1 - second]), atol=1e-6)
    assert not ends_with_linear_head(model)


def test_operations_between_layers_of_keras_3(tmp_path):
    keras = import_keras()
    inputs = keras.Input((24, 32, 3))
    one = keras.layers.Conv2D(3, 3, name="a")(inputs / 127.5 - 1.0)
    shared = keras.layers.Dense(3, activation="softmax", name="shared")
    pool = keras.layers.GlobalAveragePooling2D()
    mean = (shared(pool(one)) + shared(pool(keras.ops.relu(one)))) / 2.0
    keras.Model(inputs, mean).save(tmp_path / "m.keras")
    expected = load_foreign(tmp_path / "m.keras").predict(images()[:, :24, :32], verbose=0)
    found = ask(import_network(tmp_path / "m.keras", [2, 0, 1], "none", "net"))
    np.testing.assert_allclose(found, expected[:, [2, 0, 1]], atol=1e-5)


def test_half_precision_becomes_float32(keras2_files, tmp_path):
    def change(value):
        if isinstance(value, dict):
            if value.get("dtype") == "float32":
                policy = {"class_name": "Policy", "config": {"name": "mixed_float16"}}
                value["dtype"] = policy
            return {key: change(part) for key, part in value.items()}
        return [change(part) for part in value] if isinstance(value, list) else value

    path = changed(keras2_files / "pooled_softmax.h5", tmp_path / "half.h5", change)
    expected = probabilities_of(keras2_files / "pooled_softmax.h5")
    np.testing.assert_allclose(ask(import_in_order(path)), expected, atol=1e-5)


# --- nothing is executed ------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_code_in_a_file_is_refused_and_not_executed(tmp_path, ending):
    keras, marker = import_keras(), tmp_path / "executed"

    layers = keras.layers
    code = f"lambda x: (__import__('pathlib').Path({str(marker)!r}).touch(), x)[1]"
    path = saved(
        tmp_path,
        layers.Lambda(eval(code), output_shape=(24, 32, 3), name="evil"),
        *(layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")),
        name=f"evil.{ending}",
    )
    marker.unlink(missing_ok=True)
    keras.saving.load_model(path, compile=False, safe_mode=False)(np.zeros((1, 24, 32, 3)))
    assert marker.exists()  # who trusts the file executes it
    marker.unlink()
    message = refused(path)
    assert "code of its own (" in message
    assert "'evil'" in message
    assert "never executes" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_name": "MyLayer"}, "a layer of its own or of an unknown kind ('MyLayer')"),
        ({"module": "os"}, "a layer of its own or of an unknown kind ('Conv2D')"),
        ({"module": "keras_own.layers"}, "a layer of its own or of an unknown kind ('Conv2D')"),
        ({"class_name": "TFOpLambda"}, "a bare TensorFlow operation (TFOpLambda)"),
        ({"class_name": "TFSMLayer"}, "a layer of its own or of an unknown kind ('TFSMLayer')"),
        (
            {"class_name": "get_file", "module": "keras.src.utils"},
            "a layer of its own or of an unknown kind ('get_file')",
        ),
    ],
)
def test_layers_that_are_not_of_keras(keras2_files, tmp_path, change, message):
    def edit(model):
        layer = next(x for x in model["config"]["layers"] if x["class_name"] == "Conv2D")
        layer |= change

    path = changed(keras2_files / "pooled_softmax.h5", tmp_path / "own.h5", edit)
    assert message in refused(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"data_format": "channels_first"}, "data_format = 'channels_first'"),
        ({"activation": "hard_sigmoid"}, "the activation 'hard_sigmoid', which Keras 2 and 3"),
        ({"activation": "swish_of_mine"}, "Keras cannot load the model"),
        (
            {
                "activation": {
                    **{"module": "builtins", "class_name": "function", "config": "mine"},
                    "registered_name": "function",
                }
            },
            "a function or object of its own (mine)",
        ),
        (
            {"kernel_initializer": {"module": "mine", "class_name": "Init", "config": {}}},
            "a function or object of its own (Init)",
        ),
        ({"filters": 4}, "Keras cannot load the model"),
    ],
)
def test_settings_that_are_refused(keras2_files, tmp_path, config, message):
    def edit(model):
        layer = next(x for x in model["config"]["layers"] if x["class_name"] == "Conv2D")
        layer["config"] |= config

    path = changed(keras2_files / "pooled_softmax.h5", tmp_path / "own.h5", edit)
    assert message in refused(path)


def test_groups_that_keras_3_cannot_have(keras2_files, tmp_path):
    def edit(model):
        layer = next(x for x in model["config"]["layers"] if x["class_name"] == "SeparableConv2D")
        layer["config"]["groups"] = 2

    path = changed(keras2_files / "many_layers.h5", tmp_path / "own.h5", edit)
    assert "groups = 2" in refused(path)


def test_penalties_of_its_own_play_no_part(keras2_files, tmp_path):
    def edit(model):
        layer = next(x for x in model["config"]["layers"] if x["class_name"] == "Conv2D")
        layer["config"]["kernel_regularizer"] = {"class_name": "MyPenalty", "config": {}}

    path = changed(keras2_files / "pooled_softmax.h5", tmp_path / "own.h5", edit)
    expected = probabilities_of(keras2_files / "pooled_softmax.h5")
    np.testing.assert_allclose(ask(import_in_order(path)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["link", "numbers"])
def test_numbers_in_other_files_are_not_looked_up(keras2_files, tmp_path, kind):
    path = tmp_path / "links.h5"
    shutil.copy(keras2_files / "pooled_softmax.h5", path)
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    with h5py.File(path, "r+") as file:
        group = next(iter(file["model_weights"].values()))
        if kind == "link":
            group["more"] = h5py.ExternalLink(str(keras2_files / "teachable.h5"), "/model_weights")
        else:
            group.create_dataset("more", (10,), "f4", external=[(str(secret), 0, 40)])
    assert "lies in another file or place" in refused(path)


# --- files that are none ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.h5", b"", "is not an HDF5 file"),
        ("a.h5", b"no HDF5 at all" * 100, "is not an HDF5 file"),
        ("a.keras", b"no archive", "is not a .keras file"),
        ("a.pb", b"", "is not a Keras file by its name"),
        ("a.tflite", b"", "give a file that ends in .h5 or .keras"),
    ],
)
def test_files_of_another_kind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refused(tmp_path / name)


def test_a_truncated_file(keras2_files, tmp_path):
    content = (keras2_files / "teachable.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.h5")


def test_weights_alone(keras2_files, tmp_path):
    shutil.copy(keras2_files / "one_unit.h5", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["model_config"]
    assert "it may hold weights alone; save the whole model" in refused(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ("[]", "does not describe a network"),
        ('{"class_name": "Dense", "config": {"name": "a"}}', "which is a class of its own"),
        (
            '{"class_name": "Sequential", "config": {"name": "a", "layers": []}}',
            "Keras cannot load",
        ),
    ],
)
def test_descriptions_that_describe_nothing(keras2_files, tmp_path, text, message):
    shutil.copy(keras2_files / "one_unit.h5", tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = text
    assert message in refused(tmp_path / "a.h5")


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("cvpipe.models.keras_files.MAX_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", b" " * 200_000)
    assert "unpacks to more than" in refused(tmp_path / "a.keras")
    (tmp_path / "b.h5").write_bytes(bytes(200_000))
    assert "at most" in refused(tmp_path / "b.h5")


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "is not a .keras file" in refused(tmp_path / "a.keras")


def test_reading_a_description_needs_no_keras(keras2_files):
    assert read_description(keras2_files / "teachable.h5").keras_version.startswith("2.")
    assert read_description(keras2_files / "teachable.keras").model["class_name"] == "Sequential"


# --- networks that classify no images ------------------------------------------------------


def test_shapes_that_are_refused(tmp_path):
    layers = import_keras().layers
    dense = [layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    grey = saved(tmp_path, layers.Conv2D(2, 3), *dense, shape=(24, 32, 1), name="grey.keras")
    assert "(None, 24, 32, 1)" in refused(grey)
    free = saved(tmp_path, layers.Conv2D(2, 3), *dense, shape=(None, None, 3), name="free.keras")
    assert "images of NonexNone pixels" in refused(free)
    maps = saved(tmp_path, layers.Conv2D(3, 3, activation="softmax"), name="maps.keras")
    assert "outputs of the shapes [(None, 22, 30, 3)]" in refused(maps)


def test_as_many_outputs_as_labels(keras2_files):
    assert "has 3 outputs, but its labels name 4" in refused(keras2_files / "teachable.h5", 4)
    assert "has 1 outputs, but its labels name 3" in refused(keras2_files / "one_unit.h5", 3)


@pytest.mark.parametrize(
    ("units", "activation", "message"),
    [
        (3, "sigmoid", "judge each class by itself"),
        (3, None, "with the activation 'linear', which gives no probabilities; expected is a soft"),
        (1, None, "expected is a sigmoid"),
        (3, "relu", "with the activation 'relu'"),
    ],
)
def test_ends_that_give_no_probabilities(tmp_path, units, activation, message):
    layers = import_keras().layers
    head = layers.Dense(units, activation=activation)
    path = saved(tmp_path, layers.GlobalAveragePooling2D(), head)
    assert message in refused(path, 3 if units == 3 else 2)


def test_what_is_said_of_images_must_be_probabilities(tmp_path):
    right = np.array([[0.5, 0.5], [1.0, 0.0]], np.float32)
    assert check_probabilities(right, tmp_path) is right
    for row in ([0.5, 0.6], [1.5, -0.5], [np.nan, 1.0]):
        with pytest.raises(InputError, match="1 of 3 images the outputs do not sum to 1"):
            check_probabilities(np.vstack([right, [row]]), tmp_path)


# --- labels -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("0 cat\n1 dog\n", ("cat", "dog")),
        ("cat\ndog", ("cat", "dog")),
        ("\ufeff0 Class 1\r\n1 Class 2\r\n\r\n", ("Class 1", "Class 2")),
        ("0 a\n2 b\n", ("0 a", "2 b")),  # another number: it belongs to the name
        ("0\n1\n2", ("0", "1", "2")),
        ("0 0\n1 NA\n2 poppy", ("0", "NA", "poppy")),
        ("1 a\n0 b", ("1 a", "0 b")),
        ("0 größe\n1 b c", ("größe", "b c")),
    ],
)
def test_labels(tmp_path, text, names):
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / "labels.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "name 0 classes"),
        (b"cat\n", "name 1 classes"),
        (b"0 cat\n1 dog\n2 cat\n", "name 'cat' more than once"),
        (b"caf\xe9\nb", "cannot read the labels"),
    ],
)
def test_labels_that_are_refused(tmp_path, content, message):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_labels_that_are_no_file(tmp_path):
    with pytest.raises(InputError, match="cannot read the labels"):
        read_labels(tmp_path)


def test_the_order_of_labels(tmp_path):
    assert order_of(["b", "c", "a"], ["a", "b", "c"], tmp_path) == [2, 0, 1]
    # The same letter, composed and not.
    assert order_of(["gr\u00f6\u00dfe", "b"], ["b", "gro\u0308\u00dfe"], tmp_path) == [1, 0]
    with pytest.raises(InputError) as caught:
        order_of(["cat", "bird"], ["cat", "dog"], tmp_path / "labels.txt")
    message = str(caught.value)
    assert "lack the classes ['dog'] of the images and have ['bird'], which no image has" in message
    with pytest.raises(InputError, match=r"have \['bird'\], which no image has; a model"):
        order_of(["cat", "bird", "dog"], ["cat", "dog"], tmp_path)


def test_where_files_are_looked_for(tmp_path, monkeypatch):
    for folder in ("base", "here", "weights"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match=r"there is no model 'm.h5' \(looked for as "):
        find_file("m.h5", tmp_path / "base", "model")
    (tmp_path / "weights" / "m.h5").touch()
    monkeypatch.setenv("CVPIPE_WEIGHTS_DIR", str(tmp_path / "weights"))
    assert find_file("m.h5", tmp_path / "base", "model") == tmp_path / "weights" / "m.h5"
    (tmp_path / "base" / "m.h5").touch()
    assert find_file("m.h5", tmp_path / "base", "model") == tmp_path / "base" / "m.h5"


def test_the_inner_numbers_of_an_archive_are_checked(tmp_path):
    layers = import_keras().layers
    path = saved(tmp_path, layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    numbers = io.BytesIO(members["model.weights.h5"])
    with h5py.File(numbers, "r+") as file:
        file["more"] = h5py.ExternalLink("/etc/hostname", "/")
    members["model.weights.h5"] = numbers.getvalue()
    with zipfile.ZipFile(tmp_path / "links.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "lies in another file or place" in refused(tmp_path / "links.keras")
