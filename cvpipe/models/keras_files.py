"""Networks in the files of other programs: what a Keras file says that it holds.

A file is text that says which layers there are, and numbers. The text is read and checked before
Keras builds anything of it, without importing Keras: only layers of Keras itself are allowed, so
nothing in a file is executed. Then it is rewritten where Keras 2 says the same thing in other words
than Keras 3.
"""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cvpipe.errors import InputError

HDF5_ENDINGS = (".h5", ".hdf5")
ZIP_ENDING = ".keras"
MAX_BYTES = 2 * 1024**3  # as of other weights files
NETWORKS = ("Sequential", "Functional", "Model")
# fmt: off
# What acts in training alone; a network that is only asked does without.
NOISE = frozenset(
    {"ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
     "RandomBrightness", "RandomContrast", "RandomFlip", "RandomRotation", "RandomTranslation",
     "RandomZoom", "SpatialDropout1D", "SpatialDropout2D"}
)
LAYERS = frozenset(
    {"Activation", "Add", "Attention", "Average", "AveragePooling1D", "AveragePooling2D",
     "BatchNormalization", "CenterCrop", "Concatenate", "Conv1D", "Conv2D", "Conv2DTranspose",
     "Cropping2D", "Dense", "DepthwiseConv2D", "Dot", "ELU", "Flatten", "GlobalAveragePooling1D",
     "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "GroupNormalization",
     "Identity", "InputLayer", "LayerNormalization", "LeakyReLU", "MaxPooling1D", "MaxPooling2D",
     "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "Normalization", "PReLU", "Permute",
     "ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "SeparableConv1D",
     "SeparableConv2D", "Softmax", "Subtract", "UnitNormalization", "UpSampling2D",
     "ZeroPadding2D"}
)
# fmt: on
# How Keras 2 writes a calculation between layers, such as `x / 127.5`.
BARE_OPERATIONS = ("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer")
# Keras 2 writes `groups` for these too, where it can only be 1, and Keras 3 does not know the key.
WITHOUT_GROUPS = ("DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D", "Conv2DTranspose")
# Of these it writes settings of a kernel that they do not have.
WITHOUT_KERNEL = ("DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D")
LAYER_MODULES = ("keras", "tf_keras")
OPERATION_MODULES = ("keras.ops", "keras.src.ops")
# What stands inside the description of a layer, and is no layer.
PLAIN_MODULES = (
    *("keras.initializers", "keras.src.initializers", "keras.dtype_policies"),
    *("keras.src.dtype_policies", "tf_keras.initializers", "tf_keras.src.initializers"),
)
# How Keras 3 writes it; Keras 2 has had several names for it.
FUNCTIONAL = {
    **{"module": "keras.src.models.functional", "class_name": "Functional"},
    "registered_name": "Functional",
}
PLAIN_OBJECTS = ("__keras_tensor__", "__tensor__", "__tuple__", "DTypePolicy", "Policy")
ADVICE = (
    "save the model anew with layers of Keras alone, in Python: model.save('model.keras'), and "
    "give that file."
)


class Description(NamedTuple):
    """What a Keras file says that it holds.

    Attributes:
        model: The network as JSON: `class_name` and `config`.
        keras_version: That wrote it; `""` where that is not said.
    """

    model: dict[str, Any]
    keras_version: str


def read_description(path: Path) -> Description:
    """Read what a Keras file says that it holds, and refuse what is not allowed.

    Args:
        path: An HDF5 file (`.h5`, `.hdf5`) of Keras 2 or 3, or a `.keras` file.

    Raises:
        InputError: It is of another kind, damaged or too large, holds weights alone, or layers
            that are not Keras's own or hold code.
    """
    ending = path.suffix.lower()
    if ending not in (*HDF5_ENDINGS, ZIP_ENDING):
        raise InputError(
            f"{str(path)!r} is not a Keras file by its name; give a file that ends in .h5 or "
            ".keras (Teachable Machine: Export Model, Tensorflow, Keras)."
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{str(path)!r} has {path.stat().st_size / 1e9:.1f} GB, and at most "
            f"{MAX_BYTES / 1e9:.1f} GB are read; give a smaller network."
        )
    read = _read_zip if ending == ZIP_ENDING else _read_hdf5
    text, keras_version = read(path)
    try:
        model = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the description of the network in {str(path)!r} is damaged ({error}); get a fresh "
            "copy of the file."
        ) from None
    if not _is_layer(model):
        raise InputError(
            f"{str(path)!r} does not describe a network of Keras (class_name and config); {ADVICE}"
        )
    description = Description(model, keras_version)
    check_parts(path, description)
    return description


def check_parts(path: Path, description: Description) -> None:
    """Refuse a network that is made of anything but layers of Keras.

    Raises:
        InputError: See the message.
    """
    if description.model["class_name"] not in NETWORKS:
        raise InputError(
            f"{str(path)!r} holds a {description.model['class_name']!r}, which is a class of its "
            f"own; expected is a model of {list(NETWORKS)}; {ADVICE}"
        )
    for part in _objects_in(description.model):
        fault = _fault_of(part, description.keras_version)
        if fault:
            name = part["config"].get("name") if isinstance(part.get("config"), dict) else None
            where = f" in the layer {name!r}" if name else ""
            raise InputError(f"{str(path)!r} is not loaded: it has {fault}{where}; {ADVICE}")


def write_plain_copy(path: Path, description: Description, copy: Path) -> None:
    """Copy a Keras file, its description rewritten so that Keras 3 understands it.

    Args:
        path: The file; it stays as it is.
        description: As it was read.
        copy: Where to write to, of the same ending.

    Raises:
        InputError: The file is damaged, or looks up numbers in other files.
    """
    text = json.dumps(rewritten(description.model))
    if path.suffix.lower() == ZIP_ENDING:
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
            for info in source.infolist():
                content = source.read(info)
                if info.filename.endswith(".h5"):
                    with _open_hdf5(path, io.BytesIO(content)) as file:
                        _refuse_links(path, file)
                target.writestr(info, text if info.filename == "config.json" else content)
        return
    with _open_hdf5(path, path) as file:
        _refuse_links(path, file)
    shutil.copyfile(path, copy)
    with _open_hdf5(path, copy, "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = text.encode()  # as bytes of any length, not as a short text


def rewritten(model: dict[str, Any]) -> dict[str, Any]:
    """Say in the words of Keras 3 what a network is made of.

    Left out is what plays no part in predicting: noise, penalties, constraints, precision, how the
    network was compiled. Names of layers lose the slash, which Keras 3 does not allow.
    """
    model = json.loads(json.dumps(model))  # a private copy
    for key in ("compile_config", "build_config", "registered_name"):
        model.pop(key, None)
    slashed = {name for part in _objects_in(model) if "/" in (name := _name_of(part))}
    for part in _objects_in(model):
        if _is_layer(part):
            _rewrite_layer(part)
    return _renamed(model, slashed)


def _rewrite_layer(layer: dict[str, Any]) -> None:
    class_name, config = layer["class_name"], layer["config"]
    if class_name in NOISE:
        kept = {key: config[key] for key in ("name", "batch_input_shape") if key in config}
        layer |= {"class_name": "Identity", "config": kept, "module": "keras.layers"}
    if class_name in ("Functional", "Model"):
        layer |= FUNCTIONAL
        _unwrap(config)
    elif class_name == "Sequential":
        layer |= {"module": "keras", "registered_name": None}
        _give_an_input(config)
    layer.pop("build_config", None)
    _rewrite_settings(class_name, config)


def _rewrite_settings(class_name: str, config: dict[str, Any]) -> None:
    for key in [key for key in config if key.endswith(("_regularizer", "_constraint"))]:
        config[key] = None
    if class_name in WITHOUT_GROUPS:
        config.pop("groups", None)
    if class_name in WITHOUT_KERNEL:
        for key in [key for key in config if key.startswith("kernel_") and key != "kernel_size"]:
            del config[key]
    if "dtype" in config and class_name in LAYERS:
        config["dtype"] = "float32"
    if class_name == "LeakyReLU" and "alpha" in config:
        config["negative_slope"] = config.pop("alpha")
    axis = config.get("axis")
    if class_name == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
        config["axis"] = axis[0]


def _unwrap(config: dict[str, Any]) -> None:
    """Let a network of one input and one output take and give a tensor, not a list of one."""
    for key in ("input_layers", "output_layers"):
        ends = config.get(key)
        if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
            config[key] = ends[0]


def _give_an_input(config: dict[str, Any]) -> None:
    """Let a sequence start with a layer that says the shape of the input, as in Keras 3.

    In Keras 2 its first layer can say it, whatever that is.
    """
    layers = [layer for layer in config.get("layers", []) if _is_layer(layer)]
    if not layers:
        return
    shape = _input_shape_of(layers[0])
    if shape and layers[0]["class_name"] != "InputLayer":
        stated = {"batch_shape": shape, "dtype": "float32", "name": f"{_name_of(layers[0])}_input"}
        first = {"class_name": "InputLayer", "module": "keras.layers", "config": stated}
        config["layers"] = [first, *layers]
    for layer in layers:
        if layer["class_name"] not in ("InputLayer", *NETWORKS):
            layer["config"].pop("batch_input_shape", None)


def _input_shape_of(layer: dict[str, Any]) -> Any:
    """Read the shape of the input that a layer states, or the first layer inside it."""
    config = layer["config"]
    stated = config.get("batch_input_shape") or config.get("batch_shape")
    inside = [part for part in config.get("layers", []) if _is_layer(part)]
    return stated or (_input_shape_of(inside[0]) if inside else None)


def _renamed(value: Any, slashed: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(part, slashed) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, slashed) for part in value]
    return value.replace("/", "_") if isinstance(value, str) and value in slashed else value


def _name_of(part: dict[str, Any]) -> str:
    config = part.get("config")
    return str(config.get("name", "")) if isinstance(config, dict) else ""


def _is_layer(value: Any) -> bool:
    """Tell whether a JSON value describes a layer, and not what one is initialised with."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("class_name"), str)
        and isinstance(value.get("config"), dict)
        and "name" in value["config"]
        and value["class_name"] not in PLAIN_OBJECTS
    )


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """List all objects in a description, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            # What a network was compiled with is not built.
            waiting += [part for key, part in value.items() if key != "compile_config"]
        elif isinstance(value, list):
            waiting += value


def _fault_of(part: dict[str, Any], keras_version: str) -> str:
    """Say what is wrong with an object of a description; `""` where nothing is."""
    name, module = str(part["class_name"]), str(part.get("module") or "")
    checks = (_fault_of_layer if _is_layer(part) else _fault_of_plain, _fault_of_settings)
    if name == "Lambda" or name == "__lambda__":
        return f"code of its own ({name}), which cvpipe never executes,"
    if name in BARE_OPERATIONS:
        return (
            f"a bare TensorFlow operation ({name}), such as arithmetic between layers, which "
            "Keras 3 cannot read,"
        )
    return next((fault for check in checks if (fault := check(part, module, keras_version))), "")


def _fault_of_layer(part: dict[str, Any], module: str, keras_version: str) -> str:  # noqa: ARG001
    name = part["class_name"]
    known = name in LAYERS or name in NOISE or name in NETWORKS
    is_operation = _lies_in(module, OPERATION_MODULES)
    if not is_operation and (not known or (module and not _lies_in(module, LAYER_MODULES))):
        return f"a layer of its own or of an unknown kind ({name!r})"
    return ""


def _fault_of_plain(part: dict[str, Any], module: str, keras_version: str) -> str:  # noqa: ARG001
    name = part["class_name"]
    if name in PLAIN_OBJECTS or _lies_in(module, PLAIN_MODULES):
        return ""
    # Without a module Keras 2 looks into its own tables: of what else is dropped when rewritten.
    if not module and isinstance(part.get("config"), dict):
        return ""
    if _lies_in(module, ("keras.regularizers", "keras.src.regularizers", "keras.constraints")):
        return ""
    return f"a function or object of its own ({part.get('config') if name == 'function' else name})"


def _fault_of_settings(part: dict[str, Any], module: str, keras_version: str) -> str:  # noqa: ARG001
    config = part.get("config")
    if not isinstance(config, dict):
        return ""
    if part["class_name"] in WITHOUT_GROUPS and config.get("groups", 1) != 1:
        return f"groups = {config['groups']}, which a {part['class_name']} of Keras 3 cannot have,"
    if config.get("data_format") == "channels_first":
        return "data_format = 'channels_first', but images have their channels last,"
    if keras_version.startswith(("1.", "2.")) and config.get("activation") == "hard_sigmoid":
        return "the activation 'hard_sigmoid', which Keras 2 and 3 compute in different ways,"
    return ""


def _lies_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _read_hdf5(path: Path) -> tuple[str, str]:
    with _open_hdf5(path, path) as file:
        text, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
        has_weights = "model_weights" in file
    if text is None or not has_weights:
        raise InputError(
            f"{str(path)!r} has no description of a network (model_config and model_weights): it "
            "may hold weights alone; save the whole model, in Python: model.save('model.h5')."
        )
    return _decoded(text), _decoded(version)


def _read_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise InputError(
                    f"{str(path)!r} unpacks to more than {MAX_BYTES / 1e9:.1f} GB, which is not "
                    "read; give a smaller network."
                )
            text = archive.read("config.json").decode()
            facts = json.loads(archive.read("metadata.json"))
            archive.getinfo("model.weights.h5")
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise InputError(f"{str(path)!r} is not a .keras file ({error}); {ADVICE}") from None
    return text, str(facts.get("keras_version", "")) if isinstance(facts, dict) else ""


def _decoded(text: Any) -> str:
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)


def _open_hdf5(path: Path, place: Path | io.BytesIO, mode: str = "r") -> Any:
    import h5py

    try:
        return h5py.File(place, mode)
    except OSError as error:
        raise InputError(
            f"{str(path)!r} is not an HDF5 file, or is damaged ({error}); get a fresh copy of the "
            "file."
        ) from None


def _refuse_links(path: Path, file: Any) -> None:
    """Refuse a file whose numbers lie elsewhere: it could name any file of this machine."""
    import h5py

    def visit(name: str, link: Any) -> str | None:
        if not isinstance(link, h5py.HardLink):
            return name
        item = file[name]
        elsewhere = isinstance(item, h5py.Dataset) and (item.external or item.is_virtual)
        return name if elsewhere else None

    found = _first_link(file, visit)
    if found is not None:
        raise InputError(
            f"{str(path)!r} is not loaded: its part {found!r} lies in another file or place; "
            f"{ADVICE}"
        )


def _first_link(file: Any, visit: Callable[[str, Any], str | None]) -> str | None:
    return file.visititems_links(visit)
