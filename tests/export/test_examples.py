"""What READMEs of bundles tell people who write apps."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from cvpipe.data.images import resize_image
from cvpipe.export.bundle import resizing_of
from cvpipe.export.examples import RESAMPLING, examples_of

FACTS = {"class_names": ["a", "b"], "input": {"image_size": [6, 4], "fit": "stretch"}}
NODE = """
const { channels, height, width, to, pixels } = JSON.parse(require("fs").readFileSync(0));
const wide = resample(pixels, channels, height, width, to[1]);
console.log(JSON.stringify([...resample(wide, 3, to[1], height, to[0])]));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js, which runs JavaScript")
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("size", "to"),
    [
        ((37, 51), (6, 4)),
        ((9, 20), (24, 31)),
        ((6, 4), (6, 4)),
        ((1, 1), (3, 5)),
        ((400, 301), (7, 224)),
    ],
)
def test_javascript_resizes_as_the_measurement(size, to, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    pixels[0] = 255  # where sums are largest
    job = {
        "channels": channels,
        "height": size[0],
        "width": size[1],
        "to": to,
        "pixels": pixels.ravel().tolist(),
    }
    code = RESAMPLING["javascript"] + NODE
    answer = subprocess.run(
        ["node", "-e", code], input=json.dumps(job), capture_output=True, text=True, check=True
    )
    found = np.reshape(json.loads(answer.stdout), (*to, 3))
    np.testing.assert_array_equal(found, resize_image(pixels[..., :3], to, "stretch"))


def test_each_language_that_resizes_has_the_function_once():
    files = {"keras": "m.keras", "litert": "m.tflite", "litert-int8": "i.tflite", "onnx": "m.onnx"}
    told = resizing_of({**FACTS, "files": files})
    for language, code in RESAMPLING.items():
        assert told.count(code) == 1
        label = "onnx" if language == "javascript" else "litert"
        example = examples_of(label, files[label], FACTS)[language]
        assert example.count("resample(") == 2
        assert {"kotlin": "fun resample(", "swift": "func resample("}.get(
            language, "function resample("
        ) in code


def test_no_function_where_no_example_resizes():
    assert resizing_of({**FACTS, "files": {"keras": "m.keras"}}) == ""
    padded = {**FACTS, "input": {"image_size": [6, 4], "fit": "pad"}, "files": {"onnx": "m.onnx"}}
    assert resizing_of(padded) == ""
