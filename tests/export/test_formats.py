import importlib.util
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from cvpipe.errors import InputError
from cvpipe.export.formats import (
    FORMATS,
    PRECISIONS,
    check_format,
    file_name,
    label_of,
    parse_label,
)
from tests.export.networks import LABELS

HAVE_FLOAT32_ALONE = ("keras", "saved_model", "native")
FUNCTIONS = (check_format, file_name, label_of)


def test_what_there_is():
    assert list(FORMATS) == ["keras", "saved_model", "litert", "onnx", "openvino", "native"]
    for name, entry in FORMATS.items():
        assert entry.precisions[0] == "float32"
        assert set(entry.precisions) <= set(PRECISIONS)
        assert (entry.precisions == ("float32",)) == (name in HAVE_FLOAT32_ALONE)
        assert bool(entry.packages) == bool(entry.extra)
        assert "\n" not in entry.description


def test_the_extras_install_the_packages():
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for entry in FORMATS.values():
        if entry.extra:
            (line,) = re.findall(rf"^{entry.extra} = \[.*$", pyproject, flags=re.MULTILINE)
            assert all(f'"{package}>=' in line for package in entry.packages)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("keras", "model.keras"),
        ("saved_model", "saved_model"),
        ("litert", "model.tflite"),
        ("litert-float16", "model_float16.tflite"),
        ("litert-dynamic", "model_dynamic.tflite"),
        ("onnx-int8", "model_int8.onnx"),
        ("openvino", "openvino/model.xml"),
        ("openvino-float16", "openvino_float16/model.xml"),
    ],
)
def test_names_of_files(label, name):
    assert file_name(*parse_label(label)) == name


def test_no_file_takes_the_place_of_another():
    names = [PurePosixPath(file_name(*parse_label(label))) for label in LABELS]
    assert len({name.parts[0] for name in names}) == len(names)
    # A format of several files has a folder of its own.
    assert {name.parts[0] for name in names if len(name.parts) > 1} == {
        "openvino",
        "openvino_float16",
    }


def test_labels_are_read_as_they_are_written():
    pairs = [(name, p) for name, entry in FORMATS.items() for p in entry.precisions]
    assert [parse_label(label_of(*pair)) for pair in pairs] == pairs
    assert [label_of(*pair) for pair in pairs] == [*LABELS, "native"]
    assert len(set(LABELS)) == len(LABELS)
    assert all(re.fullmatch(r"[a-z0-9_]+(-[a-z0-9]+)?", label) for label in LABELS)


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("litert-int9", "did you mean 'litert-int8'?"),
        ("litert_int8", "did you mean 'litert-int8'?"),
        ("litert-float32", "did you mean"),
        ("keras-int8", "did you mean"),
        ("coreml", "choose one of ["),
        ("", "choose one of"),
    ],
)
def test_unknown_labels(label, hint):
    message = f"unknown format of an export {label!r}; {hint}"
    with pytest.raises(InputError, match=re.escape(message)):
        parse_label(label)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_names(function):
    with pytest.raises(InputError, match="unknown format 'tflite'; did you mean 'litert'"):
        function("tflite", "float32")
    with pytest.raises(InputError, match=r"unknown precision 'float61'; did you mean 'float16'\?"):
        function("litert", "float61")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("name", "precision", "own", "others"),
    [
        ("keras", "int8", ["float32"], ["litert", "onnx"]),
        ("saved_model", "float16", ["float32"], ["litert", "onnx", "openvino"]),
        ("openvino", "dynamic", ["float32", "float16"], ["litert", "onnx"]),
    ],
)
def test_a_precision_that_a_format_has_not(function, name, precision, own, others):
    message = (
        f"the format {name!r} has no precision {precision!r}; choose one of {own}, or a format "
        f"that has it: {others}."
    )
    with pytest.raises(InputError, match=re.escape(message)):
        function(name, precision)


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [
        ("litert", "ai-edge-litert", "litert"),
        ("onnx", "onnxruntime and tf2onnx", "onnxruntime"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_missing_packages(name, packages, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    message = (
        f"the format {name!r} needs {packages}, which is not installed; install it with: "
        f'python -m pip install "cvpipe[{extra}]"'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        check_format(name)
    # A typo is told before what to install.
    with pytest.raises(InputError, match="unknown precision"):
        check_format(name, "int9")
    assert check_format("keras") == "keras"
    assert file_name(name)
    assert label_of(name) == name


def test_checking_imports_nothing():
    modules = [module for entry in FORMATS.values() for module in entry.packages.values()]
    code = (
        "import sys; from cvpipe.errors import InputError; from cvpipe.export import formats\n"
        "for name in formats.FORMATS:\n"
        "    try: formats.check_format(name)\n"
        "    except InputError: pass\n"
        f"print({{*{modules}, 'keras', 'tensorflow', 'cv2', 'numpy'}} & set(sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (answer.stdout, answer.stderr) == ("set()\n", "")
