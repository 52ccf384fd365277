"""The program that lies beside an exported model and predicts without cvpipe.

`build_runtime` writes it as one Python file, of this module and of the functions that read images
for the measurement, so that it sees of every file the pixels that were measured. It needs NumPy,
Pillow, and LiteRT or ONNX Runtime; for a native file OpenCV in their place.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvpipe.config import usable_cores
from cvpipe.errors import InputError
from cvpipe.export.bundle import BUNDLE_VERSION, image_sizes
from cvpipe.export.single_file import gather
from cvpipe.files import open_regular
from cvpipe.models.runtimes import closed_stderr

BATCH_SIZE = 32  # images that are in memory at a time
# What a `bundle.json` says about its images, besides their size.
MAX_SIZES, MAX_SIDE = 50, 10_000
INPUT_TYPES = {"fit": str, "white_level": int, "max_pixels": int, "dicom_window": list}

Predict = Callable[..., np.ndarray]

# Stands in the place of the function that decodes DICOM, whose module needs pydicom.
DICOM_REFUSED = '''
def _decode_dicom(data: bytes, rule: DecodeRule) -> Picture:
    """Refuse what only cvpipe itself reads."""
    del data, rule
    reason = "DICOM needs cvpipe itself; install it with: python -m pip install 'cvpipe[dicom]'"
    raise UnreadableImageError("unreadable", reason)
'''
DOCSTRING = """Predict with the exported model beside this file, without cvpipe and TensorFlow.

    python -m pip install {packages}
    python predict.py IMAGE...

From Python, in this folder:

    import predict
    classifier = predict.load(".")
    classifier.class_names, classifier.predict_proba(["new.jpg"])

Images become pixels by the rule {decode_rule!r} of cvpipe.data.images, whose text this is.
"""
TAIL = """
PROGRAM = Program({functions}, {runtimes}())
load = PROGRAM.load
main = PROGRAM.main


if __name__ == "__main__":
    raise SystemExit(main())
"""


class Runtime(NamedTuple):
    """A program that computes exported models.

    Attributes:
        title: What people call it.
        package: What `pip` installs.
        suffix: Of its files.
        open: Opens a file for a number of threads; raises `ImportError` where the package is
            missing.
    """

    title: str
    package: str
    suffix: str
    open: Callable[[Path, int], Predict]


@dataclass(frozen=True)
class Classifier:
    """An exported model that reads image files.

    Attributes:
        class_names: Class order of the probabilities.
        read: Gives an image file's pixels as the model sees them, `uint8 (height, width, 3)` for
            each of the sizes that it takes.
        predict: Gives the probabilities of such images, a batch for each size.
    """

    class_names: list[str]
    read: Callable[[Path], list[np.ndarray]]
    predict: Predict

    def predict_proba(self, paths: Sequence[str | Path]) -> np.ndarray:
        """Classify image files.

        Args:
            paths: Image files, at least one.

        Returns:
            Probabilities, `(n, num_classes)`, in the order of the paths.

        Raises:
            InputError: No list of paths is given, a file cannot be read, or the model does not
                fit its description.
        """
        if isinstance(paths, str | Path) or not len(paths):
            raise InputError(f"cannot predict {paths!r}; give a list of at least one image file.")
        rows = []
        for start in range(0, len(paths), BATCH_SIZE):
            read = [self.read(Path(path)) for path in paths[start : start + BATCH_SIZE]]
            batches = [np.stack(images) for images in zip(*read, strict=True)]
            rows.append(self._check(self.predict(*batches), len(read)))
        return np.concatenate(rows)

    def _check(self, probabilities: np.ndarray, num_images: int) -> np.ndarray:
        expected = (num_images, len(self.class_names))
        if probabilities.shape != expected or not np.isfinite(probabilities).all():
            raise InputError(
                f"the model gives an array of shape {probabilities.shape} for {num_images} "
                f"image(s), but finite numbers of shape {expected} were expected; does the model "
                "file belong to this bundle.json?"
            )
        return probabilities


@dataclass(frozen=True)
class Program:
    """What the file in a bundle does.

    Attributes:
        read_image: Decodes an image file by a rule.
        resize_image: Brings an image to a size, in one of several ways.
        bundle_rule: Reads the rule out of a `bundle.json`; it has at least a `fit`.
        runtimes: What opens model files, by the name of their format.
    """

    read_image: Callable[[Path, Any], np.ndarray]
    resize_image: Callable[[np.ndarray, tuple[int, int], Any], np.ndarray]
    bundle_rule: Callable[[Mapping[str, Any]], Any]
    runtimes: Mapping[str, Runtime]

    def load(self, bundle: str | Path, model: str = "", threads: int = 0) -> Classifier:
        """Load the model of a bundle.

        Args:
            bundle: The folder.
            model: Name of a model file in it; empty: the first one whose runtime is installed.
            threads: Threads that the model computes with; 0: all cores.

        Raises:
            InputError: The folder is no bundle, or no runtime for its model files is installed.
        """
        if threads < 0:
            raise InputError(f"the number of threads must be at least 1, not {threads}.")
        folder = Path(bundle)
        facts = read_bundle(folder)
        rule = self.bundle_rule(facts)
        sizes = image_sizes(facts)

        def read(path: Path) -> list[np.ndarray]:
            image = self.read_image(path, rule)
            return [self.resize_image(image, size, rule.fit) for size in sizes]

        files = files_of(model, self.runtimes) if model else facts["files"]
        predict = open_model(folder, files, threads or usable_cores(), self.runtimes)
        return Classifier(facts["class_names"], read, predict)

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Predict image files as the command line asks for.

        Args:
            arguments: Those after the program's name; `None`: those of the process.

        Returns:
            The exit code: 2 where the bundle, an image or a runtime is missing or unusable.
        """
        options = parse_arguments(arguments)
        try:
            classifier = self.load(options.bundle, options.model, options.threads)
            probabilities = classifier.predict_proba(options.images)
        except InputError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        write = as_json if options.json else as_csv
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Whatever the terminal's encoding is; file names may hold bytes that are no text.
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        sys.stdout.write(write(options.images, classifier.class_names, probabilities))
        return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; an error ends the process with code 2, as `argparse` does it."""
    parser = argparse.ArgumentParser(
        description="Print class probabilities of image files, as CSV or JSON.",
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--bundle",
        metavar="DIR",
        default=Path(__file__).parent,
        help="folder of the exported model; where this file is, if none is given",
    )
    parser.add_argument(
        "--model",
        metavar="FILE",
        default="",
        help="a model file of that folder; the first one whose runtime is installed",
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="all cores, if not")
    parser.add_argument("--json", action="store_true", help="print JSON instead of CSV")
    return parser.parse_args(arguments)


def as_csv(images: Sequence[str], class_names: Sequence[str], probabilities: np.ndarray) -> str:
    r"""Write predictions as CSV: `image,predicted,p_<class>,...`.

    Probabilities have as many digits as tell one `float32` from another.

    Example:
        >>> as_csv(["a.jpg"], ["0", "NA"], np.array([[0.25, 0.75]], np.float32))
        'image,predicted,p_0,p_NA\na.jpg,NA,0.25,0.75\n'
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["image", "predicted", *(f"p_{name}" for name in class_names)])
    for image, row in zip(images, probabilities, strict=True):
        writer.writerow([image, class_names[row.argmax()], *map(_number, row)])
    return file.getvalue()


def as_json(images: Sequence[str], class_names: Sequence[str], probabilities: np.ndarray) -> str:
    """Write predictions as a JSON list of `image`, `predicted` and `probabilities` by class."""
    records = [
        {
            "image": image,
            "predicted": class_names[row.argmax()],
            "probabilities": dict(zip(class_names, map(_number, row), strict=True)),
        }
        for image, row in zip(images, probabilities, strict=True)
    ]
    return json.dumps(records, indent=2) + "\n"


def _number(probability: np.floating) -> float:
    """Turn a number, which may be a `float32`, into the shortest decimal one that stands for it."""
    return float(str(probability))


def read_bundle(folder: Path) -> dict[str, Any]:
    """Read the description of an exported model.

    Args:
        folder: The bundle.

    Raises:
        InputError: There is none, or it lacks what is needed here.
    """
    path = folder / "bundle.json"
    try:
        with open_regular(path) as file:
            facts = json.loads(file.read())
    except OSError as error:
        raise InputError(
            f"cannot read {str(path)!r}: {error.strerror}; name the folder of an exported model."
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{str(path)!r} is not JSON; export the model again.") from None
    reason = bundle_problem(facts)
    if reason:
        raise InputError(
            f"{str(path)!r} does not describe an exported model that can be used here: {reason}; "
            "export the model again."
        )
    return facts


def bundle_problem(facts: Any) -> str:
    """Say why the content of a `bundle.json` cannot be used; `""` where it can."""
    if not isinstance(facts, dict):
        return "it is no object"
    version = facts.get("bundle_version", BUNDLE_VERSION)
    if version != BUNDLE_VERSION:
        return f"its version is {version!r}, not {BUNDLE_VERSION}"
    if not isinstance(facts.get("files"), dict):
        return "'files' is no object"
    names = facts.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "'class_names' is no list of texts"
    if not names or len(set(names)) < len(names):
        return "'class_names' is empty, or has a name twice"
    stated = facts.get("input")
    if isinstance(stated, dict) and "image_sizes" in stated and "native" not in facts["files"]:
        return "'image_sizes' are for native files alone"
    return input_problem(stated)


def input_problem(stated: Any) -> str:
    """Say why the `input` of a `bundle.json` cannot be used; `""` where it can.

    Example:
        >>> input_problem({"image_size": [224, 0]})
        "'image_size' is [224, 0], not a height and a width of 1 to 10,000"
    """
    if not isinstance(stated, dict):
        return "'input' is no object"
    name = "image_sizes" if "image_sizes" in stated else "image_size"
    sizes = stated.get(name) if name == "image_sizes" else [stated.get(name)]
    if not isinstance(sizes, list) or not 1 <= len(sizes) <= MAX_SIZES:
        return f"{name!r} is {sizes!r}, not a list of at most {MAX_SIZES} sizes"
    for size in sizes:
        if not isinstance(size, list) or [type(side) for side in size] != [int, int]:
            return f"{name!r} is {size!r}, not a height and a width"
        if not 1 <= min(size) <= max(size) <= MAX_SIDE:
            return f"{name!r} is {size!r}, not a height and a width of 1 to {MAX_SIDE:,}"
    for name, kind in INPUT_TYPES.items():
        if name in stated and type(stated[name]) is not kind:
            return f"{name!r} is {stated[name]!r}, not of the type {kind.__name__}"
    return ""


def files_of(model: str, runtimes: Mapping[str, Runtime]) -> dict[str, str]:
    """Describe a model file as the `files` of a `bundle.json` do.

    Raises:
        InputError: No runtime is known for it.

    Example:
        >>> files_of("model.onnx", network_runtimes())
        {'onnx': 'model.onnx'}
    """
    found = {key: model for key, runtime in runtimes.items() if model.endswith(runtime.suffix)}
    if not found:
        known = " or ".join(runtime.suffix for runtime in runtimes.values())
        raise InputError(f"the model file {model!r} does not end in {known}; choose one that does.")
    return found


def open_model(
    folder: Path, files: Mapping[str, Any], threads: int, runtimes: Mapping[str, Runtime]
) -> Predict:
    """Open the first model file that is there and whose runtime is installed.

    Args:
        folder: The bundle.
        files: See `candidates_of`.
        threads: Threads to compute with; at least 1.
        runtimes: See `Program`.

    Raises:
        InputError: There is no such file, it lies outside the bundle, it is damaged, or no
            runtime is installed.
    """
    missing = []
    candidates = candidates_of(files, runtimes)
    for key, name in candidates:
        path = path_inside(folder, name)
        if not path.is_file():
            continue
        try:
            with closed_stderr():  # LiteRT tells of its start
                return runtimes[key].open(path, threads)
        except ImportError as error:
            missing.append((key, f"{path.name!r} needs {runtimes[key].title} ({error})"))
    if not missing:
        listed = [name for _, name in candidates]
        known = " or ".join(f"*{runtime.suffix}" for runtime in runtimes.values())
        raise InputError(
            f"of the model files {listed} none is in the folder {str(folder)!r}; it needs one of "
            f"the kind {known}, so export the model as such."
        )
    packages = dict.fromkeys(runtimes[key].package for key, _ in missing)
    raise InputError(
        f"{' and '.join(reason for _, reason in missing)}; install it with: python -m pip install "
        f"{' or: python -m pip install '.join(packages)}"
    )


def candidates_of(
    files: Mapping[str, Any], runtimes: Mapping[str, Runtime]
) -> list[tuple[str, Any]]:
    """List the model files that can be opened here, those without rounded weights first.

    Args:
        files: The `files` of a `bundle.json`: by format, or format and precision, the name.
        runtimes: See `Program`.

    Returns:
        Runtime and name of each, in the order in which they are tried.

    Example:
        >>> files = {"keras": "a.keras", "litert-int8": "b.tflite", "onnx": "c.onnx"}
        >>> candidates_of(files, network_runtimes())
        [('onnx', 'c.onnx'), ('litert', 'b.tflite')]
    """
    exact = [label for label in runtimes if label in files]
    others = [label for label in files if label not in exact]
    found = [(label.partition("-")[0], files[label]) for label in [*exact, *others]]
    return [(key, name) for key, name in found if key in runtimes]


def path_inside(folder: Path, name: Any) -> Path:
    """Find a file of a bundle, whose description may come from a stranger.

    Args:
        folder: The bundle.
        name: What its description calls the file.

    Returns:
        The path with links resolved; there may be nothing.

    Raises:
        InputError: It lies outside the folder, or is no path at all.
    """
    root = folder.resolve()
    try:
        path = (root / name).resolve()
        is_inside = path.is_relative_to(root)
        path.is_file()
    except (OSError, RuntimeError, TypeError, ValueError):
        is_inside = False
    if not is_inside:
        raise InputError(
            f"the model file {name!r} does not lie in the folder {str(folder)!r}; model files "
            "are only read from there."
        )
    return path


def open_litert(path: Path, threads: int) -> Predict:
    """Open a `.tflite` file.

    Args:
        path: A network that takes `uint8 (n, height, width, 3)` and gives probabilities.
        threads: Threads that it computes with.

    Returns:
        A function from any number of images, at least one, to `float32 (n, num_classes)`.

    Raises:
        ImportError: LiteRT is not installed.
        InputError: The file is damaged; the function raises it for images that it does not take.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
        interpreter.allocate_tensors()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"LiteRT cannot open {str(path)!r}: {error}; export it again.") from None
    source = interpreter.get_input_details()[0]["index"]
    target = interpreter.get_output_details()[0]["index"]

    def predict(images: np.ndarray) -> np.ndarray:
        rows = []
        try:
            for image in images:
                interpreter.set_tensor(source, image[None])
                interpreter.invoke()
                rows.append(interpreter.get_tensor(target)[0])
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path.name!r} does not take {images.dtype} images of shape {images.shape[1:]}: "
                f"{error}; does it belong to this bundle.json?"
            ) from None
        return np.stack(rows)

    return predict


def open_onnx(path: Path, threads: int) -> Predict:
    """Open an `.onnx` file; see `open_litert`."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    damage = (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except damage as error:
        raise InputError(
            f"ONNX Runtime cannot open {str(path)!r}: {error}; export it again."
        ) from None
    source = session.get_inputs()[0].name

    def predict(images: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {source: images})[0]
        except damage as error:
            raise InputError(
                f"{path.name!r} does not take {images.dtype} images of shape {images.shape[1:]}: "
                f"{error}; does it belong to this bundle.json?"
            ) from None

    return predict


def network_runtimes() -> dict[str, Runtime]:
    """Say what opens networks, by format; the first one that can be used is."""
    return {
        "litert": Runtime("LiteRT", "ai-edge-litert", ".tflite", open_litert),
        "onnx": Runtime("ONNX Runtime", "onnxruntime", ".onnx", open_onnx),
    }


def build_runtime(
    read_image: Callable,
    resize_image: Callable,
    bundle_rule: Callable,
    runtimes: Callable[[], Mapping[str, Runtime]],
    decode_rule: str,
    packages: str,
    without: Mapping[str, str] = {},
) -> str:
    """Write the program for a bundle as one Python file.

    Args:
        read_image: See `Program`; a function of the package, as all of these.
        resize_image: See `Program`.
        bundle_rule: See `Program`.
        runtimes: Makes the `runtimes` of `Program`.
        decode_rule: Name of the rule that they follow, for the reader.
        packages: What it needs, as `pip` takes it, for the reader.
        without: See `cvpipe.export.single_file.gather`; for `DICOM_REFUSED`.

    Returns:
        The text; it does not depend on the bundle.

    Raises:
        InputError: The functions need something that cannot be copied.
    """
    functions = (read_image, resize_image, bundle_rule)
    return gather(
        [*functions, runtimes, Program],
        without=without,
        docstring=DOCSTRING.format(decode_rule=decode_rule, packages=packages),
        tail=TAIL.format(
            functions=", ".join(function.__name__ for function in functions),
            runtimes=runtimes.__name__,
        ),
    )
