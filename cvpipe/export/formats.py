"""The files that a contender can be exported to: formats, precisions, names and labels.

Plain data, and checks that import none of the packages, so that a mistake in a pipeline file is
answered at once. Whatever the format and the precision, the file of a network takes `uint8` images
of shape `(n, height, width, 3)` for any n under the name `images`, and gives `float32`
probabilities of shape `(n, num_classes)` under the name `probabilities`. What precisions differ in
lies between:

- `"float32"`: nothing is rounded; the file is the network.
- `"float16"`: the weights are kept in 16 bits, and what computes them decides: processors widen
  them and compute in float32, graphics chips may compute in 16 bits.
- `"dynamic"`: the large weights are kept in 8 bits, with a scale for each output channel.
  Activations stay in float32, or are rounded to 8 bits on the fly, each image by its own range.
- `"int8"`: weights and activations are kept in 8 bits, activations by ranges that were measured
  on representative images. The network's head and what follows it stay in float32.

The native format is of what is no network, see `cvpipe.stages.native`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cvpipe.errors import InputError, check_installed, check_name

FLOAT32, FLOAT16, DYNAMIC, INT8 = "float32", "float16", "dynamic", "int8"
PRECISIONS = (FLOAT32, FLOAT16, DYNAMIC, INT8)
KERAS, SAVED_MODEL, LITERT, ONNX, OPENVINO = "keras", "saved_model", "litert", "onnx", "openvino"
NATIVE = "native"  # of what is no network
INPUT_NAME = "images"
OUTPUT_NAME = "probabilities"


@dataclass(frozen=True)
class Format:
    """A kind of file that holds a model.

    Attributes:
        description: One line for people.
        packages: Module by distribution: what writing and checking it needs beyond what cvpipe
            needs anyway. The first opens it, if there is any.
        extra: The extra of cvpipe that installs them; empty if there are none.
        precisions: Those of `PRECISIONS` that it can be written in.
        file_name: What a program opens, relative to the folder of the export; `{}` takes a mark of
            the precision. A format of several files has a folder of its own.
    """

    description: str
    packages: Mapping[str, str]
    extra: str
    precisions: tuple[str, ...]
    file_name: str


FORMATS = {
    KERAS: Format(
        description="Keras: the network as it was trained, to go on with in Python",
        packages={},
        extra="",
        precisions=(FLOAT32,),
        file_name="model{}.keras",
    ),
    SAVED_MODEL: Format(
        description="SavedModel: a folder for TensorFlow and its servers",
        packages={},
        extra="",
        precisions=(FLOAT32,),
        file_name="saved_model{}",
    ),
    LITERT: Format(
        description="LiteRT (TensorFlow Lite): phones, small computers and browsers",
        packages={"ai-edge-litert": "ai_edge_litert"},
        extra="litert",
        precisions=PRECISIONS,
        file_name="model{}.tflite",
    ),
    ONNX: Format(
        description="ONNX: the exchange format, opened by programs in most languages",
        packages={"onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx"},
        extra="onnxruntime",
        precisions=PRECISIONS,
        file_name="model{}.onnx",
    ),
    OPENVINO: Format(
        description="OpenVINO: x86 and ARM processors; two files in a folder of their own",
        packages={"openvino": "openvino"},
        extra="openvino",
        precisions=(FLOAT32, FLOAT16),
        file_name="openvino{}/model.xml",
    ),
    NATIVE: Format(
        description="Native: hand-crafted features and a classifier, arrays for NumPy and OpenCV",
        packages={},
        extra="",
        precisions=(FLOAT32,),
        file_name="model{}.npz",
    ),
}
NETWORK_FORMATS = {name: entry for name, entry in FORMATS.items() if name != NATIVE}


def check_format(name: str, precision: str = FLOAT32) -> str:
    """Return the name of a format if it is installed and has the precision.

    Nothing is imported.

    Args:
        name: A key of `FORMATS`.
        precision: One of `PRECISIONS`.

    Raises:
        InputError: The format or precision is unknown, the format does not have the precision, or
            a package is missing.
    """
    entry = _format_with(name, precision)
    check_installed(f"the format {name!r}", entry.packages, entry.extra)
    return name


def check_opens(name: str) -> str:
    """Return the name of a format of networks if its files can be opened.

    That takes less than to write them.

    Raises:
        InputError: The format is unknown, or the package that opens it is missing.
    """
    entry = NETWORK_FORMATS[check_name("format", name, NETWORK_FORMATS)]
    first = dict(list(entry.packages.items())[:1])
    check_installed(f"the format {name!r}", first, entry.extra)
    return name


def file_name(name: str, precision: str = FLOAT32) -> str:
    """Name the file, or the folder, that an export in a format is written to.

    Args:
        name: A key of `FORMATS`.
        precision: One that the format has.

    Returns:
        A path with `/`, relative to the folder of the export.

    Raises:
        InputError: There is no such format, or not in this precision.

    Example:
        >>> file_name("litert"), file_name("litert", "int8"), file_name("openvino", "float16")
        ('model.tflite', 'model_int8.tflite', 'openvino_float16/model.xml')
    """
    mark = "" if precision == FLOAT32 else f"_{precision}"
    return _format_with(name, precision).file_name.format(mark)


def label_of(name: str, precision: str = FLOAT32) -> str:
    """Name a format in a precision, for settings and tables.

    Args:
        name: A key of `FORMATS`.
        precision: One that the format has.

    Raises:
        InputError: There is no such format, or not in this precision.

    Example:
        >>> label_of("litert"), label_of("litert", "int8")
        ('litert', 'litert-int8')
    """
    _format_with(name, precision)
    return name if precision == FLOAT32 else f"{name}-{precision}"


def parse_label(text: str) -> tuple[str, str]:
    """Read what `label_of` gives.

    Returns:
        The format and the precision.

    Raises:
        InputError: There is no such label; the message has the nearest one.

    Example:
        >>> parse_label("litert-int8")
        ('litert', 'int8')
    """
    pairs = [(name, precision) for name, entry in FORMATS.items() for precision in entry.precisions]
    known = {label_of(*pair): pair for pair in pairs}
    return known[check_name("format of an export", text, known)]


def list_exports() -> dict[str, str]:
    """Say of each label what it stands for.

    Example:
        >>> list_exports()["litert-float16"]
        'LiteRT (TensorFlow Lite): phones, small computers and browsers; float16'
    """
    return {
        label_of(name, precision): f"{entry.description}; {precision}"
        for name, entry in FORMATS.items()
        for precision in entry.precisions
    }


def _format_with(name: str, precision: str) -> Format:
    """Look a format up that has a precision."""
    entry = FORMATS[check_name("format", name, FORMATS)]
    check_name("precision", precision, PRECISIONS)
    if precision not in entry.precisions:
        raise InputError(
            f"the format {name!r} has no precision {precision!r}; choose one of "
            f"{list(entry.precisions)}, or a format that has it: "
            f"{[other for other, one in FORMATS.items() if precision in one.precisions]}."
        )
    return entry
