"""Native files: contenders of hand-crafted features and classic classifiers, as arrays.

Such a contender is no network, so no format of networks holds it. Its native file is one `.npz`:
what its features learned, the steps of its classifier, and how the answers for views and of members
are put together. What opens it is gathered from here for the program in a bundle, which needs NumPy
and OpenCV and neither scikit-learn nor SciPy.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cvpipe.classifiers.steps import Step, apply_steps
from cvpipe.classifiers.to_steps import steps_of
from cvpipe.config import Config
from cvpipe.contender_sections import ClassicContender, Contender, EnsembleContender
from cvpipe.errors import InputError
from cvpipe.export.formats import NATIVE
from cvpipe.export.runtime import Runtime
from cvpipe.features.bag_of_words import BagOfWords
from cvpipe.features.base import ImageTransformer
from cvpipe.features.colour_histogram import ColourHistogram
from cvpipe.features.fisher_vectors import FisherVectors
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.features.kmeans_features import KMeansFeatures
from cvpipe.features.local_binary_patterns import LocalBinaryPatterns
from cvpipe.features.raw_pixels import RawPixels
from cvpipe.features.table import Feature, FileFeature
from cvpipe.features.texture import TextureEnergy
from cvpipe.inference.calibration import calibration_from_dict, calibration_to_dict
from cvpipe.inference.crops import (
    average_over_views,
    cut_batch,
    join_views,
    num_views,
    sizes_to_load,
)
from cvpipe.inference.ensembling import ensemble_from_dict
from cvpipe.numerics import one_thread
from cvpipe.opencv import PACKAGE, import_cv2
from cvpipe.runs import Run
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.contenders import load_estimator, stored_describer
from cvpipe.stages.ensembles import load_ensemble
from cvpipe.stages.features import Descriptor, setup_of
from cvpipe.stages.recipes import (
    becomes_network,
    is_baseline,
    known_features,
    members_of,
    obstacle_to_layers,
)

NATIVE_VERSION = 1
DESCRIPTION = "description"  # the JSON text beside the arrays
ARRAY = "$array"  # what stands in it for one of them
MAX_BYTES = 4_000_000_000  # of all arrays; some kilobytes can be unpacked to any number of zeros
# By kind of feature: named here rather than looked up, so that they can be gathered.
TRANSFORMERS: Mapping[str, type[ImageTransformer]] = {
    "raw_pixels": RawPixels,
    "colour_histogram": ColourHistogram,
    "hog": HistogramOfOrientedGradients,
    "local_binary_patterns": LocalBinaryPatterns,
    "texture_energy": TextureEnergy,
    "bag_of_words": BagOfWords,
    "kmeans_features": KMeansFeatures,
    "fisher_vectors": FisherVectors,
}

Size = tuple[int, int]


class NativeFeature(NamedTuple):
    """A feature that is ready to describe images.

    Attributes:
        image_size: `(height, width)` of a view in pixels.
        transform: Function from `uint8` views to rows.
    """

    image_size: Size
    transform: Callable[[np.ndarray], np.ndarray]


class NativeMember(NamedTuple):
    """A contender that reads images.

    Attributes:
        features: Their rows stand side by side, view by view.
        scales: See `join_views`.
        view: How it sees an image.
        classify: Function from rows to probabilities, calibrated.
    """

    features: Sequence[NativeFeature]
    scales: Sequence[float]
    view: str
    classify: Callable[[np.ndarray], np.ndarray]

    def predict(self, images: Mapping[Size, np.ndarray]) -> np.ndarray:
        """Classify images that were brought to all sizes needed."""
        blocks = []
        for feature in self.features:
            sizes = sizes_to_load(self.view, feature.image_size)
            views = cut_batch([images[size] for size in sizes], feature.image_size, self.view)
            rows = feature.transform(views)
            blocks.append(rows.reshape(-1, num_views(self.view), rows.shape[1]))
        return self.classify(join_views(blocks, self.scales))


def obstacle_to_native(config: Config, contender: Contender) -> str:
    """Say why a contender cannot be handed on as arrays; `""` where it can."""
    if isinstance(contender, EnsembleContender):
        members = members_of(config, contender)
        obstacles = {member.name: obstacle_to_native(config, member) for member in members}
        named = [f"its member {name!r}: {why}" for name, why in obstacles.items() if why]
        return named[0] if named else ""
    if not isinstance(contender, ClassicContender) or becomes_network(config, contender):
        return "it is a network; choose a format of networks, such as keras or litert"
    if is_baseline(contender):
        return "it looks at no pixel"
    known = known_features(config)
    for name in contender.features:
        if isinstance(known[name], FileFeature):
            return f"its feature {name!r} reads the file and not the image"
        if not isinstance(known[name], Feature):
            return (
                f"its feature {name!r} is computed by a network, and "
                f"{obstacle_to_layers(config, contender)}"
            )
    return ""


def features_of_native(config: Config, contender: Contender) -> dict[str, Feature]:
    """List the features that a contender reads, by name; see `obstacle_to_native`."""
    known, members = known_features(config), members_of(config, contender)
    named = {name: known[name] for member in members for name in _classic(member).features}
    return {name: feature for name, feature in named.items() if isinstance(feature, Feature)}


def sizes_of_native(run: Run, config: Config, contender: Contender) -> list[Size]:
    """List the sizes to which images are brought for a contender; see `obstacle_to_native`."""
    if isinstance(contender, EnsembleContender):
        members = members_of(config, contender)
        found = [size for member in members for size in sizes_of_native(run, config, member)]
        return list(dict.fromkeys(found))
    known = known_features(config)
    features = [known[name] for name in _classic(contender).features]
    sizes = [feature.image_size for feature in features if isinstance(feature, Feature)]
    view = run.view(contender.name)
    return list(dict.fromkeys(size for one in sizes for size in sizes_to_load(view, one)))


def write_native(run: Run, config: Config, contender: Contender, path: Path) -> None:
    """Write a contender as arrays; see `obstacle_to_native`."""
    facts: dict[str, Any] = {"native_version": NATIVE_VERSION, "ensemble": {}, "calibration": {}}
    if isinstance(contender, EnsembleContender):
        facts["ensemble"] = load_ensemble(run, contender.name).to_dict()
        facts["calibration"] = _calibration_of(run, contender.name)
    members = [_classic(member) for member in members_of(config, contender)]
    facts["members"] = [_describe_member(run, config, member) for member in members]
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(pack(facts, arrays))
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, allow_pickle=False, **{DESCRIPTION: np.array(text)})


def native_runtimes() -> dict[str, Runtime]:
    """Say what opens native files, for the program in a bundle."""
    return {NATIVE: Runtime("OpenCV", PACKAGE, ".npz", open_native)}


def _classic(contender: Contender) -> ClassicContender:
    if not isinstance(contender, ClassicContender):
        raise TypeError(f"{contender.name!r} is no classic contender")
    return contender


def _describe_member(run: Run, config: Config, contender: ClassicContender) -> dict[str, Any]:
    name = contender.name
    describer = stored_describer(run, contender, run.view(name))
    known = setup_of(config).features
    estimator = load_estimator(run.part_path(name) / "model.skops")
    return {
        "features": [_describe_feature(known[d.name], d) for d in describer.descriptors],
        "scales": describer.scales,
        "view": run.view(name),
        "mean_of": config.evaluate.view_mean,
        "steps": [{"name": step.name, "values": step.values} for step in steps_of(estimator)],
        "calibration": _calibration_of(run, name),
    }


def _describe_feature(feature: Any, descriptor: Descriptor) -> dict[str, Any]:
    learned = {} if descriptor.learned is None else vars(descriptor.learned)
    return {
        "kind": feature.kind,
        "image_size": feature.image_size,
        "settings": feature.settings,
        "row_size": descriptor.row_size // descriptor.num_views,
        "learned": {
            name: value
            for name, value in learned.items()
            if name.endswith("_") and isinstance(value, np.ndarray)
        },
    }


def _calibration_of(run: Run, name: str) -> dict[str, Any]:
    calibration = load_calibration(run, name)
    return {} if calibration is None else calibration_to_dict(calibration)


def pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Write a value for JSON; arrays in it are put aside.

    Args:
        value: Of dictionaries, lists, numbers, words and arrays.
        arrays: Takes the arrays, under names that stand in the result.

    Example:
        >>> arrays = {}
        >>> pack({"a": np.arange(2.0), "b": (np.float64(0.5), "x")}, arrays)
        {'a': {'$array': 'array_0'}, 'b': [0.5, 'x']}
        >>> arrays["array_0"].dtype  # no bit is lost
        dtype('float32')
    """
    if isinstance(value, Mapping):
        return {name: pack(inner, arrays) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [pack(inner, arrays) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    name = f"array_{len(arrays)}"
    arrays[name] = _shortened(value)
    return {ARRAY: name}


def _shortened(values: np.ndarray) -> np.ndarray:
    """Halve what was widened and still holds numbers of half the bits."""
    shorter = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}
    with np.errstate(over="ignore"):
        short = values.astype(shorter.get(values.dtype, values.dtype))
    return short if np.array_equal(short, values) else values


def unpack(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Read what `pack` wrote."""
    if isinstance(value, dict):
        if set(value) == {ARRAY}:
            return arrays[value[ARRAY]]
        return {name: unpack(inner, arrays) for name, inner in value.items()}
    if isinstance(value, list):
        return [unpack(inner, arrays) for inner in value]
    return value


def open_native(path: Path, threads: int = 1) -> Callable[..., np.ndarray]:
    """Open a native file.

    Args:
        path: Of `write_native`.
        threads: Not used: features and classifiers compute in one.

    Returns:
        A function from `uint8` images, one array of shape `(n, height, width, 3)` for each size
        of `sizes_of_native`, to probabilities of shape `(n, num_classes)`, `float64`. It raises
        `InputError` for images of other sizes.

    Raises:
        InputError: The file is damaged, or not one of this version.
    """
    del threads
    import_cv2()  # if it is missing, that is said before an image is read
    try:
        with np.load(path, allow_pickle=False) as stored:
            num_bytes = sum(entry.file_size for entry in stored.zip.infolist())
            if num_bytes > MAX_BYTES:
                raise ValueError(f"it holds {num_bytes:,} bytes, more than {MAX_BYTES:,}")
            facts = unpack(json.loads(str(stored[DESCRIPTION])), stored)
        version = facts["native_version"]
        if version != NATIVE_VERSION:
            raise InputError(
                f"{str(path)!r} is a native file of version {version!r}, not {NATIVE_VERSION}; "
                "use the program beside it, or export it again."
            )
        members = [_read_member(member) for member in facts["members"]]
        combine = ensemble_from_dict(facts["ensemble"]).apply if facts["ensemble"] else None
        calibrate = _calibrator(facts["calibration"])
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise whatever zip, JSON and NumPy can
        raise InputError(
            f"{str(path)!r} is no native file, or is damaged ({error}); export it again."
        ) from error
    sizes = [size for member in members for size in _sizes_for(member)]
    sizes = list(dict.fromkeys(sizes))

    def predict(*batches: np.ndarray) -> np.ndarray:
        given = [(batch.dtype, batch.shape[1:]) for batch in batches]
        if given != [(np.dtype(np.uint8), (*size, 3)) for size in sizes]:
            raise InputError(
                f"{path.name!r} takes uint8 RGB images of the sizes {sizes} (height, width), but "
                f"got {[f'{dtype} {shape}' for dtype, shape in given]}; does it belong to this "
                "bundle.json?"
            )
        images = dict(zip(sizes, batches, strict=True))
        try:
            with one_thread():
                answers = [member.predict(images) for member in members]
                answer = answers[0] if combine is None else combine(np.stack(answers))
                return calibrate(answer)
        except InputError:
            raise
        except Exception as error:  # and one that was made by somebody else, OpenCV's errors too
            raise InputError(
                f"{str(path)!r} cannot be computed with ({error}); export it again."
            ) from error

    return predict


def _sizes_for(member: NativeMember) -> list[Size]:
    sizes = [feature.image_size for feature in member.features]
    return [size for one in sizes for size in sizes_to_load(member.view, one)]


def _read_member(facts: Mapping[str, Any]) -> NativeMember:
    view, mean_of = facts["view"], facts["mean_of"]
    steps = [Step(step["name"], step["values"]) for step in facts["steps"]]
    predict = average_over_views(lambda rows: apply_steps(steps, rows), view, mean_of)
    calibrate = _calibrator(facts["calibration"])
    return NativeMember(
        [_read_feature(feature) for feature in facts["features"]],
        facts["scales"],
        view,
        lambda rows: calibrate(predict(rows)),
    )


def _read_feature(facts: Mapping[str, Any]) -> NativeFeature:
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts["settings"].items()
    }
    transformer = TRANSFORMERS[facts["kind"]](**settings)
    height, width = facts["image_size"]
    transformer.check_settings((height, width))
    transformer.image_size_ = (height, width)
    transformer.n_features_out_ = facts["row_size"]
    for name, value in facts["learned"].items():
        if name.startswith("_") or not name.endswith("_"):
            raise ValueError(f"a feature does not learn {name!r}")
        setattr(transformer, name, value)
    return NativeFeature((height, width), transformer.transform)


def _calibrator(facts: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    return calibration_from_dict(facts).apply if facts else _as_it_is


def _as_it_is(probabilities: np.ndarray) -> np.ndarray:
    return probabilities
