"""What lies beside an exported model: its description for people, and the parity check."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cvpipe import frames
from cvpipe.errors import InputError
from cvpipe.export.examples import RESAMPLING, examples_of
from cvpipe.export.formats import FORMATS, KERAS, LITERT, NATIVE, ONNX, parse_label

BUNDLE_VERSION = 2
# How far a probability may be from the measured one. A softmax computed twice in batches of
# different sizes differs by some 1e-7. Means of members and views are wider apart, because the
# tables hold them in float64, and a file calibrates them in float32 by way of their logarithms.
EXACT_TOLERANCE = 1e-5
# The same of other formats by precision. Where weights are whole numbers of 8 bits, probabilities
# move by more than any such bound, and it is the accuracy that must not be lost.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}
RUNTIME_NAME = "predict.py"
RUNTIME_SENTENCE = """`python {program} new.jpg` reads and resizes image files as in the \
measurement, and predicts, where there is neither cvpipe nor TensorFlow: it needs {packages}. \
(DICOM needs cvpipe.)

"""
RESIZING = """## Resizing as in the measurement

Browsers and phones resize by filters of their own, with which probabilities can be far from the
measured ones. This is the filter of the measurement, to the same bits, for photos that are upright.

"""


def tolerance_of(label: str) -> float:
    """Say how far a probability of a file may be from the measured one.

    Args:
        label: Format and precision, see `cvpipe.export.formats.parse_label`.

    Returns:
        The largest difference that passes; 1 where any does that is a number.
    """
    name, precision = parse_label(label)
    return EXACT_TOLERANCE if name in (KERAS, NATIVE) else TOLERANCES.get(precision, 1.0)


def compare_probabilities(
    measured: np.ndarray, exported: np.ndarray, tolerance: float
) -> dict[str, Any]:
    """Compare an exported model's probabilities with the measured ones.

    Args:
        measured: Array of shape `(n, num_classes)` that the run's metrics rest on.
        exported: What the exported file gives for the same images.
        tolerance: Largest allowed difference of any probability.

    Returns:
        `num_images`, `largest_difference`, `same_class_fraction`, `tolerance`,
        `are_probabilities` (of all exported rows), `passed`. A NaN in either array does not pass.

    Raises:
        InputError: The shapes differ, or there is nothing to compare.
    """
    if measured.shape != exported.shape or not measured.size:
        raise InputError(
            f"cannot compare probabilities of shape {measured.shape} with {exported.shape}; "
            "predict the same images with the same classes."
        )
    difference = float(np.abs(measured - exported).max())
    same = measured.argmax(axis=1) == exported.argmax(axis=1)
    are_probabilities = bool(frames.are_probabilities(exported).all())
    return {
        "num_images": len(measured),
        "largest_difference": difference if np.isfinite(difference) else None,
        "same_class_fraction": float(same.mean()),
        "tolerance": tolerance,
        "are_probabilities": are_probabilities,
        "passed": bool(difference <= tolerance) and are_probabilities,
    }


def bundle_readme(facts: Mapping[str, Any]) -> str:
    """Write a bundle's README: what the model is, how to call it, what it is worth.

    Args:
        facts: The content of `bundle.json`.
    """
    sizes = " and of ".join(f"{height} x {width}" for height, width in image_sizes(facts))
    is_calibrated = facts.get("calibration", {}).get("method", "none") != "none"
    inside = "preprocessing and calibration are" if is_calibrated else "the preprocessing is"
    seen = members_sentence(facts.get("ensemble", {})) + view_sentence(facts.get("view", {}))
    accuracy = next(m for m in facts["test_metrics"] if m["metric"] == "accuracy")
    names = ", ".join(f"`{name}`" for name in facts["class_names"])
    files = facts["files"]
    listed = ", ".join(f"`{file}`" for file in files.values())
    holds = f"{listed} {'take' if len(files) > 1 else 'takes'}" if files else "Its files take"
    return f"""# {facts["contender"]} from the run {facts["run"]}

Classes, in the order of the probabilities: {names}.

On {accuracy["n"]} test images it named {accuracy["value"]:.1%} correctly (95 % interval \
{accuracy["low"]:.1%} to {accuracy["high"]:.1%}). {facts["limits"]}

{holds} `uint8` RGB images of {sizes} pixels (height x width) and \
{"gives" if len(files) == 1 else "give"} probabilities; {inside} inside. {seen}Resize with \
Pillow's bilinear filter \
(`fit = "{facts["input"]["fit"]}"`), as in the measurement.

{runtime_sentence(files)}\
{"".join(usage_of(label, file, facts) for label, file in files.items())}\
{resizing_of(facts)}\
With cvpipe installed, `cvpipe predict . new.jpg` also handles transparency, 16-bit images and
DICOM as in the measurement; the `input` of `bundle.json` has the rule. `parity.json` has
the proof that each file is as good as what was measured; inside its run, `cvpipe verify` repeats
it.

{decisions_paragraph(facts.get("decisions", {}))}\
Licence of the pretrained weights: {facts["licences"]["weights"]}. Licence of the training images:
{facts["licences"]["data"].rstrip(".")}.
"""


def has_runtime(files: Iterable[str]) -> bool:
    """Tell whether a bundle has a file that `predict.py` can open; `files` are labels."""
    return any(parse_label(label)[0] in (LITERT, ONNX, NATIVE) for label in files)


def runtime_sentence(files: Iterable[str]) -> str:
    """Say in a README what `predict.py` is for; `""` where there is none; `files` are labels."""
    packages = "NumPy, Pillow, and `ai-edge-litert` or `onnxruntime`"
    if NATIVE in files:
        packages = "NumPy 2, Pillow and OpenCV 4"
    told = RUNTIME_SENTENCE.format(program=RUNTIME_NAME, packages=packages)
    return told if has_runtime(files) else ""


def image_sizes(facts: Mapping[str, Any]) -> list[tuple[int, int]]:
    """List the sizes, `(height, width)`, of the images that the model of a bundle takes.

    Args:
        facts: The content of `bundle.json`. What is no network may need several sizes.
    """
    stated = facts["input"]
    found = stated["image_sizes"] if "image_sizes" in stated else [stated["image_size"]]
    return [(height, width) for height, width in found]


def usage_of(label: str, file: str, facts: Mapping[str, Any]) -> str:
    """Write the section of a README about one file.

    Args:
        label: Format and precision, see `cvpipe.export.formats.parse_label`.
        file: Its path in the bundle.
        facts: The content of `bundle.json`.
    """
    name, precision = parse_label(label)
    examples = examples_of(label, file, facts)
    blocks = [f"```{language}\n{code}```" for language, code in examples.items()]
    blocks.insert(0, f"{FORMATS[name].description}; {precision}.")
    return "\n\n".join([f"## {file}", *blocks, ""]) + "\n"


def resizing_of(facts: Mapping[str, Any]) -> str:
    """Write the section of a README about resizing in apps; `""` where no example needs it."""
    listed = facts["files"].items()
    languages = dict.fromkeys(
        language for label, file in listed for language in examples_of(label, file, facts)
    )
    blocks = [
        f"```{language}\n{RESAMPLING[language]}```\n\n"
        for language in languages
        if language in RESAMPLING
    ]
    return "".join([RESIZING, *blocks]) if blocks else ""


def members_sentence(ensemble: Mapping[str, Any]) -> str:
    """Say in a README that a file holds several contenders; `""` where it does not.

    Args:
        ensemble: The `ensemble` of `bundle.json`.
    """
    if not ensemble:
        return ""
    names = ", ".join(f"`{name}`" for name in ensemble["weights"])
    return f"It is an ensemble ({ensemble['method']}) of {names}, all inside. "


def view_sentence(view: Mapping[str, Any]) -> str:
    """Say in a README that a model looks at several views; `""` where it does not.

    Args:
        view: The `view` of `bundle.json`.
    """
    if not view:
        return ""
    height, width = view.get("crop_size", (0, 0))
    size = f" of {height} x {width} pixels" if height else ""
    return (
        f"It looks at {view['passes']} view(s){size} (`{view['kind']}`), which it makes itself, "
        "and gives their mean. "
    )


def decisions_paragraph(decisions: Mapping[str, Any]) -> str:
    """Say in a README how to use the frozen thresholds and sets; `""` where there are none.

    Args:
        decisions: The `decisions` of `bundle.json`.
    """
    if not decisions:
        return ""
    sets, point = decisions["prediction_sets"], decisions["operating_point"]
    rule = ""
    if point.get("goal") == "cost":
        rule = (
            "Decide for the class with the smallest expected cost: "
            "`(probabilities @ costs).argmin()` with the `costs` of its `operating_point`. "
        )
    elif point:
        rule = (
            f"Call an image `{point['positive']}` when its probability is at least "
            f"{point['threshold']:.6g} (goal: {point['goal']}; 0 means every image, 2 none). "
        )
    return f"""`decisions` of `bundle.json` has thresholds that were fitted on validation images \
and frozen before the test. {rule}To answer only when sure, leave an image to a person when its \
largest probability is below a `threshold` of `abstention`. For a set that holds the true class \
in {100 * sets["level"]:g} % of new images of the same kind, take the most probable class and \
every class whose probability is at least `marginal` of `prediction_sets`; the thresholds of \
`by_class` keep that for the images of each class.

"""
