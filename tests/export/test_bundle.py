import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import ExifTags, Image

from cvpipe.data.images import read_image, resize_image
from cvpipe.errors import InputError
from cvpipe.export.bundle import EXACT_TOLERANCE, bundle_readme, compare_probabilities

CLASS_NAMES = ["0", "NA", "größe <b> & 100 %", "{brace}", "back\\slash"]


def facts_of(fit="stretch", image_size=(6, 4)):
    """Make the facts of a bundle; higher than wide, so that swapped sides are seen."""
    return {
        "run": "photos-abc123",
        "contender": "linear_probe",
        "files": {"keras": "model.keras"},
        "class_names": CLASS_NAMES,
        "input": {"image_size": list(image_size), "fit": fit},
        "test_metrics": [
            {"metric": "log_loss", "value": 9.0, "low": 9.0, "high": 9.0, "n": 9},
            {"metric": "accuracy", "value": 0.975, "low": 0.9592, "high": 0.9848, "n": 600},
        ],
        "licences": {"weights": "Apache-2.0; trained by Google", "data": "not stated"},
        "limits": "The figures hold for images from the same source.",
    }


def python_of(readme):
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def test_comparison_by_hand():
    measured = np.array([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0], [0.6, 0.4]])
    exported = np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0], [0.7, 0.3]])
    assert compare_probabilities(measured, exported, 0.4) == {
        "num_images": 4,
        "largest_difference": 0.5,
        "same_class_fraction": 0.75,
        "tolerance": 0.4,
        "are_probabilities": True,
        "passed": False,
    }
    assert compare_probabilities(measured, measured, 0.0)["passed"] is True


@pytest.mark.parametrize(("tolerance", "passed"), [(0.25, True), (np.nextafter(0.25, 0), False)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_exactly_the_tolerance_passes(tolerance, passed, sign):
    measured = np.array([[0.5, 0.5]])
    exported = measured + sign * np.array([[0.25, -0.25]])
    found = compare_probabilities(measured, exported, tolerance)
    assert found["passed"] is passed
    assert found["largest_difference"] == 0.25


def test_dtypes_may_differ():
    measured = np.array([[0.1, 0.9]])
    found = compare_probabilities(measured, measured.astype(np.float32), EXACT_TOLERANCE)
    assert found["passed"] is True
    assert 0 < found["largest_difference"] < 1e-7


@pytest.mark.parametrize("row", [[-0.1, 1.1], [0.5, 0.6], [np.nan, 1.0]])
def test_what_is_no_probability_does_not_pass(row):
    measured = np.array([[0.5, 0.5], [0.2, 0.8]])
    found = compare_probabilities(measured, np.array([[0.5, 0.5], row]), 1.0)
    assert (found["passed"], found["are_probabilities"]) == (False, False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_does_not_pass(value):
    good, bad = np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.5, 0.5], [value, 0.5]])
    for measured, exported in ((good, bad), (bad, good), (bad, bad)):
        with np.errstate(invalid="ignore"):
            found = compare_probabilities(measured, exported, 1.0)
        assert found["passed"] is False
        assert found["largest_difference"] is None
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("measured", "exported"),
    [((3, 2), (2, 2)), ((3, 2), (3, 3)), ((1, 2), (3, 2)), ((3, 2), (6,)), ((0, 2), (0, 2))],
)
def test_shapes_that_cannot_be_compared(measured, exported):
    with pytest.raises(InputError) as caught:
        compare_probabilities(np.zeros(measured), np.zeros(exported), 1.0)
    assert str(caught.value) == (
        f"cannot compare probabilities of shape {measured} with {exported}; predict the same "
        "images with the same classes."
    )


def test_result_can_be_stored():
    found = compare_probabilities(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32), 1e-6)
    assert json.loads(json.dumps(found)) == found


def test_readme_says_what_the_model_is_worth():
    readme = bundle_readme(facts_of())
    assert readme.startswith("# linear_probe from the run photos-abc123\n")
    assert "On 600 test images it named 97.5% correctly (95 % interval 95.9% to 98.5%)." in readme
    assert "The figures hold for images from the same source." in readme
    assert "images of 6 x 4 pixels (height x width)" in readme
    assert '(`fit = "stretch"`)' in readme
    assert "Licence of the pretrained weights: Apache-2.0; trained by Google." in readme
    assert "Licence of the training images:\nnot stated." in readme
    assert "cvpipe predict . new.jpg" in readme


def test_readme_has_class_names_as_they_are_and_in_order():
    readme = bundle_readme(facts_of())
    assert "`0`, `NA`, `größe <b> & 100 %`, `{brace}`, `back\\slash`." in readme
    assert not re.search(r"\\n|&\w+;|\{\{|\}\}", readme)


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(9, 20), (20, 9), (6, 4), (1, 1)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_readme_code_gives_the_model_what_was_measured(
    fit, size, orientation, tmp_path, monkeypatch
):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", exif=exif)
    (tmp_path / "new.jpg").write_bytes(file.getvalue())
    seen = []

    class Model:
        def predict(self, batch):
            seen.append(batch)
            return np.array([[0.25, 0.75]])

    def load_model(path):
        assert path == "model.keras"
        return Model()

    keras = types.SimpleNamespace(saving=types.SimpleNamespace(load_model=load_model))
    monkeypatch.setitem(sys.modules, "keras", keras)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(python_of(bundle_readme(facts_of(fit))), "README.md", "exec"), names)
    assert names["probabilities"].tolist() == [0.25, 0.75]
    expected = resize_image(read_image(tmp_path / "new.jpg"), (6, 4), fit)
    assert seen[0].shape == (1, 6, 4, 3)
    assert seen[0].dtype == np.uint8
    np.testing.assert_array_equal(seen[0][0], expected)


@pytest.mark.parametrize(("method", "is_inside"), [("temperature", True), ("none", False)])
def test_readme_says_whether_the_calibration_is_inside(method, is_inside):
    readme = bundle_readme({**facts_of(), "calibration": {"method": method}})
    assert ("calibration are inside" in readme) is is_inside
    assert ("the preprocessing is inside" in readme) is not is_inside
