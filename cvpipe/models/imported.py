"""Networks that other programs trained, made into one that cvpipe measures and exports.

What comes out takes `uint8` RGB images and gives probabilities in the order of the run's classes:
the scaling of pixels and the order of outputs lie inside, so neither can be lost. It is one flat
graph of plain Keras 3 layers, whatever was nested in what.
"""

import contextlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cvpipe.errors import InputError
from cvpipe.files import open_regular
from cvpipe.frames import SUM_TOLERANCE
from cvpipe.models.folding import fold_norms
from cvpipe.models.framework import import_keras, import_tensorflow
from cvpipe.models.graphs import finalize
from cvpipe.models.heads import CALIBRATION_LAYER, LOGITS_LAYER, PROBABILITIES_LAYER
from cvpipe.models.keras_files import NOISE, read_description, write_plain_copy
from cvpipe.models.weights import WEIGHTS_FOLDER

if TYPE_CHECKING:
    import keras

# How grey levels become what a network takes: factor and offset.
SCALINGS = {
    "none": (1.0, 0.0),
    "zero_to_one": (1 / 255, 0.0),
    "minus_one_to_one": (1 / 127.5, -1.0),
}
SCALING_LAYER = "scaling"
MAX_SIDE = 4096
MAX_LABELS_BYTES = 1_000_000
MAX_REASON_LENGTH = 300
# What Keras raises where a description and numbers make no network.
LOADING_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ImportError, RuntimeError, OSError),
    *(ArithmeticError, AssertionError, MemoryError),
)


def find_file(given: str, base: Path, what: str) -> Path:
    """Find a file that a pipeline names.

    Args:
        given: A path from the folder of the pipeline file, from the current folder, or in the
            folder that the environment variable `CVPIPE_WEIGHTS_DIR` names.
        base: Folder of the pipeline file.
        what: What it is, for the message.

    Raises:
        InputError: There is no such file.
    """
    folder = os.environ.get(WEIGHTS_FOLDER)
    candidates = [base / given, Path(given), *([Path(folder) / given] if folder else [])]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise InputError(
            f"there is no {what} {given!r} (looked for as {str(candidates[0])!r}); correct the "
            f"path, which starts at the pipeline file, or set {WEIGHTS_FOLDER} to the folder that "
            "holds it."
        )
    return path


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the names of a network's outputs, in their order.

    Teachable Machine writes `0 cat` and `1 dog`: if every line starts with its own number and a
    space, these are taken off. Empty lines do not count.

    Args:
        path: A text file, one name per line.

    Raises:
        InputError: It cannot be read, has fewer than two names, or a name twice.
    """
    try:
        with open_regular(path) as file:
            text = file.read(MAX_LABELS_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the labels {str(path)!r}: {error}; give a text file (UTF-8) with one "
            "class per line."
        ) from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [line.split(maxsplit=1) for line in names]
    if all(len(p) == 2 and p[0] == str(number) for number, p in enumerate(numbered)):
        names = [part[1] for part in numbered]
    if len(names) < 2:
        raise InputError(
            f"the labels {str(path)!r} name {len(names)} classes, and at least 2 were expected, "
            "one per line; give the labels.txt that belongs to the model."
        )
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise InputError(
            f"the labels {str(path)!r} name {repeated!r} more than once; give each output of the "
            "model a name of its own."
        )
    return tuple(names)


def order_of(labels: Sequence[str], class_names: Sequence[str], path: Path) -> list[int]:
    """Say which output of a network belongs to each class.

    Args:
        labels: Names of the outputs, in their order.
        class_names: Classes of the images.
        path: File of the labels, for the message.

    Returns:
        For each class the position of its name among the labels.

    Raises:
        InputError: They do not name the same classes.

    Example:
        >>> order_of(["dog", "cat"], ["cat", "dog"], Path("labels.txt"))
        [1, 0]
    """
    known = [_composed(label) for label in labels]
    wanted = [_composed(name) for name in class_names]
    missing = [name for name in class_names if _composed(name) not in known]
    extra = [label for label in labels if _composed(label) not in wanted]
    if missing or extra:
        told = []
        if missing:
            told.append(f"lack the classes {missing} of the images")
        if extra:
            told.append(f"have {extra}, which no image has")
        raise InputError(
            f"the labels {str(path)!r} {' and '.join(told)}; a model can be measured on images of "
            "the classes that it knows: name the folders or labels of the images as the lines of "
            "that file, or correct the file."
        )
    return [known.index(name) for name in wanted]


def _composed(name: str) -> str:
    # The same letters may be stored in two ways: a folder unpacked elsewhere, a name typed.
    return unicodedata.normalize("NFC", name)


def import_network(path: Path, order: Sequence[int], scaling: str, name: str) -> "keras.Model":
    """Make a network of a Keras file into one from `uint8` images to probabilities of classes.

    Where it ends in a softmax of a dense layer, or in the sigmoid of a single unit, the order of
    the classes is that of the columns of this layer's weights. Otherwise a last layer reorders.

    Args:
        path: A `.h5` or `.keras` file; see `cvpipe.models.keras_files.read_description`.
        order: For each class the position of its output; see `order_of`. A single output is the
            probability of position 1, as Keras has it for two classes.
        scaling: A key of `SCALINGS`: what the network expects pixels to be.
        name: Name of the model.

    Raises:
        InputError: It cannot be loaded, holds code, or is no classifier of images with as many
            outputs as there are classes.
    """
    source = load_foreign(path)
    height, width = _check_input(path, source)
    _check_output(path, source, len(order))
    keras = import_keras()
    images = keras.Input((height, width, 3), dtype="uint8", name="images")
    factor, offset = SCALINGS[scaling]
    scaled = keras.layers.Rescaling(factor, offset, name=SCALING_LAYER)(images)
    with _told_of(path):
        flat = _Flattening()
        output = flat.run(source, scaled)
        flat.copy_weights()
    probabilities = _reorder(path, output, order)
    return fold_norms(keras.Model(images, probabilities, name=name))


def load_foreign(path: Path) -> "keras.Model":
    """Load a Keras file of another program; nothing in it is executed.

    Raises:
        InputError: It is not allowed, or Keras cannot read it.
    """
    description = read_description(path)
    keras = import_keras()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"model{path.suffix.lower()}"
        write_plain_copy(path, description, copy)
        with _told_of(path):
            return keras.saving.load_model(copy, compile=False, safe_mode=True)


def scales_itself(model: "keras.Model") -> bool:
    """Tell whether an imported network starts by scaling its input, so that pixels go in as are."""
    keras = import_keras()
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    return isinstance(layers[1], keras.layers.Rescaling | keras.layers.Normalization)


def check_probabilities(rows: np.ndarray, path: Path) -> np.ndarray:
    """Return what a network said of some images if these are probabilities.

    Args:
        rows: Shape `(n, num_classes)`.
        path: File of the network, for the message.

    Raises:
        InputError: A row does not sum to 1, or has a negative number or none.
    """
    sums = rows.sum(axis=1, dtype=np.float64)
    # `not (a <= b)` instead of `a > b`, so that a NaN counts as bad.
    bad = ~((np.abs(sums - 1) <= SUM_TOLERANCE) & (rows.min(axis=1) >= 0))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        values = ", ".join(f"{value:.4g}" for value in rows[row, :6])
        raise InputError(
            f"the model {str(path)!r} gives no probabilities: of {int(bad.sum())} of {len(rows)} "
            f"images the outputs do not sum to 1 or are negative, the first are {values} with the "
            f"sum {sums[row]:.4g}; it may end in logits, or judge each class by itself. Give a "
            "model that ends in a softmax."
        )
    return rows


class _Flattening:
    """Copies of the layers of a network, called one after the other on another tensor.

    Layers inside nested networks come to stand beside the others, under names of their own.
    """

    def __init__(self) -> None:
        self.copies: dict[int, tuple[Any, Any]] = {}
        # Those that cvpipe looks for.
        self.names = {"images", SCALING_LAYER, LOGITS_LAYER, PROBABILITIES_LAYER, CALIBRATION_LAYER}

    def run(self, network: Any, tensor: Any) -> Any:
        """Put what a network computes behind a tensor."""
        keras = import_keras()
        if isinstance(network, keras.Sequential):
            for layer in network.layers:
                tensor = self.call(layer, tensor)
            return tensor
        computed = network._run_through_graph(
            keras.tree.flatten(tensor), operation_fn=lambda layer: layer, call_fn=self.call
        )
        flat = keras.tree.flatten(computed)
        return flat[0] if len(flat) == 1 else computed

    def call(self, layer: Any, *arguments: Any, **settings: Any) -> Any:
        """Call the copy of a layer, or the layers of a nested network."""
        keras = import_keras()
        if isinstance(layer, keras.Model):
            return self.run(layer, arguments[0])
        if type(layer).__name__ in (*NOISE, "Identity"):
            return arguments[0]
        # What is only asked is never in training, whatever it was called with.
        kept = {key: value for key, value in settings.items() if key not in ("training", "mask")}
        return self.copy(layer)(*arguments, **kept)

    def copy(self, layer: Any) -> Any:
        """Give the copy of a layer; it is shared where the layer was."""
        if id(layer) not in self.copies:
            config = {**layer.get_config(), "name": self.free_name(layer.name)}
            self.copies[id(layer)] = (layer, type(layer).from_config(config))
        return self.copies[id(layer)][1]

    def free_name(self, wanted: str) -> str:
        """Give a name that no other layer has."""
        name, number = wanted, 1
        while name in self.names:
            number += 1
            name = f"{wanted}_{number}"
        self.names.add(name)
        return name

    def copy_weights(self) -> None:
        """Give all copies, which are built by now, the weights of their layers."""
        keras = import_keras()
        for layer, copy in self.copies.values():
            if isinstance(layer, keras.Layer) and layer.weights:
                copy.set_weights(layer.get_weights())
                finalize(copy)


def _reorder(path: Path, output: Any, order: Sequence[int]) -> Any:
    """Put classes into their order, at the end of a network; see `import_network`."""
    keras = import_keras()
    layers = keras.layers
    last = output._keras_history.operation
    activation = _activation_of(last)
    head = last
    if activation and not isinstance(last, layers.Dense):
        head = last.input._keras_history.operation
    is_dense = isinstance(head, layers.Dense) and len(head.input.shape) == 2
    is_plain = is_dense and (head is last or _activation_of(head) == "linear")
    columns = list(order)
    if is_plain and (output.shape[-1], activation) in ((1, "sigmoid"), (len(order), "softmax")):
        kernel = np.asarray(head.kernel)
        bias = np.asarray(head.bias) if head.use_bias else np.zeros(kernel.shape[1], np.float32)
        if kernel.shape[1] == 1:  # a sigmoid is a softmax against a logit of 0
            kernel, bias = np.pad(kernel, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        linear = layers.Dense(len(order), name=LOGITS_LAYER)
        logits = linear(head.input)
        linear.set_weights([kernel[:, columns], bias[columns]])
        return layers.Softmax(name=PROBABILITIES_LAYER)(logits)
    _refuse_other_ends(path, last, activation, output.shape[-1])
    if output.shape[-1] == 1:
        kernel, bias = np.array([[-1.0, 1.0]]), np.array([1.0, 0.0])
    else:
        kernel, bias = np.eye(len(order)), np.zeros(len(order))
    linear = layers.Dense(len(order), name=PROBABILITIES_LAYER)
    probabilities = linear(output)
    linear.set_weights([kernel[:, columns], bias[columns]])
    return probabilities


def _activation_of(layer: Any) -> str:
    """Name the activation that a layer ends with; `""` of what has none."""
    layers = import_keras().layers
    if isinstance(layer, layers.Softmax):
        return "softmax" if layer.axis == -1 else "softmax of another axis"
    activation = getattr(layer, "activation", None)
    return str(getattr(activation, "__name__", "")) if activation is not None else ""


def _refuse_other_ends(path: Path, last: Any, activation: str, num_outputs: int) -> None:
    """Refuse a network that ends in a layer of which it is known to give no probabilities.

    Other ends, such as the mean of several softmaxes, are judged by what they say of images.
    """
    expected = "sigmoid" if num_outputs == 1 else "softmax"
    if not activation or activation == expected:
        return
    what = f"in the layer {last.name!r} with the activation {activation!r}"
    if activation == "sigmoid":
        raise InputError(
            f"the model {str(path)!r} ends {what} of {num_outputs} units, which judge each class "
            "by itself, so they are no probabilities of classes that exclude each other; give a "
            "model that ends in a softmax."
        )
    raise InputError(
        f"the model {str(path)!r} ends {what}, which gives no probabilities; expected is a "
        f"{expected}. Put one behind it, in Python: "
        "keras.Sequential([model, keras.layers.Softmax()]).save('model.keras')"
    )


def _check_input(path: Path, model: "keras.Model") -> tuple[int, int]:
    shapes = [tuple(tensor.shape) for tensor in model.inputs or []]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] != 3:
        raise InputError(
            f"the model {str(path)!r} takes inputs of the shapes {shapes}, but expected is one of "
            "(None, height, width, 3), RGB images; give a classifier of colour images."
        )
    height, width = shapes[0][1:3]
    if not (height and width and max(height, width) <= MAX_SIDE):
        raise InputError(
            f"the model {str(path)!r} takes images of {height}x{width} pixels, but expected are "
            f"fixed sides of at most {MAX_SIDE}; save it with a fixed input shape."
        )
    return height, width


def _check_output(path: Path, model: "keras.Model", num_classes: int) -> None:
    shapes = [tuple(tensor.shape) for tensor in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise InputError(
            f"the model {str(path)!r} gives outputs of the shapes {shapes}, but expected is one of "
            "(None, number of classes); give a classifier."
        )
    found = shapes[0][1]
    if found != num_classes and (found, num_classes) != (1, 2):
        raise InputError(
            f"the model {str(path)!r} has {found} outputs, but its labels name {num_classes} "
            "classes; give the labels file that belongs to the model."
        )


@contextlib.contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Say what Keras says where it cannot make a network of a file."""
    errors = (*LOADING_ERRORS, import_tensorflow().errors.OpError)
    try:
        yield
    except InputError:
        raise
    except errors as error:
        # Keras wraps what went wrong in what it was doing.
        cause = str(error).rsplit("Exception encountered: ", maxsplit=1)[-1]
        plain = re.sub(r"\x1b\[[0-9;]*m", "", cause)  # without colours
        reason = " ".join(plain.split()).rstrip(".") or type(error).__name__
        if len(reason) > MAX_REASON_LENGTH:
            reason = f"{reason[:MAX_REASON_LENGTH]} ..."
        raise InputError(
            f"Keras cannot load the model {str(path)!r}: {reason}; load it where it was trained, "
            "save it with layers of Keras alone, in Python: model.save('model.keras'), and give "
            "that file."
        ) from error


def describe_scaling(scaling: str) -> str:
    """Say in words what becomes of pixels.

    Example:
        >>> describe_scaling("minus_one_to_one")
        'pixels scaled to -1 to 1'
    """
    words: Mapping[str, str] = {
        "none": "pixels as they are, 0 to 255",
        "zero_to_one": "pixels scaled to 0 to 1",
        "minus_one_to_one": "pixels scaled to -1 to 1",
    }
    return words[scaling]
