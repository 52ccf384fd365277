import ast
import csv
import doctest
import functools
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from cvpipe.data.images import (
    DECODE_RULE,
    DecodeRule,
    Fit,
    bundle_rule,
    read_image,
    resize_image,
)
from cvpipe.errors import InputError
from cvpipe.export import runtime
from cvpipe.export.bundle import BUNDLE_VERSION
from cvpipe.export.runtime import (
    BATCH_SIZE,
    DICOM_REFUSED,
    Classifier,
    Program,
    Runtime,
    build_runtime,
    network_runtimes,
    open_litert,
    open_onnx,
    path_inside,
    read_bundle,
)
from cvpipe.formats import is_dicom
from cvpipe.models.framework import import_tensorflow
from tests.data.odd_files import broken_files, encode, odd_files, photos

# Pillow warns of damaged metadata, which some of these files have on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

FITS = get_args(Fit)
SIZE = (6, 4)  # height, width; unequal, so that swapped sides are seen
CLASS_NAMES = ["0", "NA", "<b>", 'größe, "\n']
MODULES = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}
FILES = {"litert": "model.tflite", "onnx": "model.onnx", "keras": "model.keras"}
SEEDS = {"litert": 1, "onnx": 2}  # the files differ, so that it is seen which one was used
NOT_THERE = {"cvpipe", "tensorflow", "keras", "pydantic", "pandas", "sklearn", "cv2", "pydicom"}
# Runs a file as Python itself would, where some packages cannot be imported.
WITHOUT = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
assert not {blocked!r} & set(sys.modules)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert"
)
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("tf2onnx") is None,
    reason="needs onnxruntime and tf2onnx",
)
EACH = [
    pytest.param("litert", marks=needs_litert, id="litert"),
    pytest.param("onnx", marks=needs_onnx, id="onnx"),
]
OPENERS = {"litert": open_litert, "onnx": open_onnx}
RUNTIMES = network_runtimes()


def build_text():
    without = {"cvpipe.data.images._decode_dicom": DICOM_REFUSED}
    functions = (read_image, resize_image, bundle_rule, network_runtimes)
    return build_runtime(*functions, DECODE_RULE, "ai-edge-litert", without)


def bundle_facts(**changes):
    stated = {
        "image_size": list(SIZE),
        "decode_rule": DECODE_RULE,
        "fit": "stretch",
        "white_level": 65_535,
        "dicom_window": [],
        "max_pixels": 200_000_000,
    }
    facts = {"bundle_version": BUNDLE_VERSION, "files": FILES, "class_names": CLASS_NAMES}
    return {**facts, "input": stated, **changes}


def write_bundle(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(bundle_facts(**changes), ensure_ascii=False)
    (folder / "bundle.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    return folder


def weights_of(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(SIZE[0] * SIZE[1] * 3, len(CLASS_NAMES))).astype(np.float32)


def expected_of(images, seed):
    """What a model must give, computed without any of the runtimes."""
    logits = images.reshape(len(images), -1) / 255 @ weights_of(seed).astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def write_model(path, seed):
    """Write a network that sees every pixel, colour and class for itself."""
    tensorflow = import_tensorflow()
    spec = tensorflow.TensorSpec((None, *SIZE, 3), "uint8", name="images")
    module = tensorflow.Module()
    module.weights = tensorflow.Variable(weights_of(seed))

    @tensorflow.function(input_signature=[spec])
    def network(images):
        rows = tensorflow.reshape(tensorflow.cast(images, "float32") / 255, (-1, SIZE[0] * 12))
        return tensorflow.nn.softmax(rows @ module.weights)

    if path.suffix == ".onnx":
        model, _ = importlib.import_module("tf2onnx.convert").from_function(network, [spec])
        path.write_bytes(model.SerializeToString())
    else:
        concrete = [network.get_concrete_function()]
        converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(concrete, module)
        path.write_bytes(converter.convert())


@pytest.fixture(scope="module")
def text():
    return build_text()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a file for each runtime that is installed."""
    folder = tmp_path_factory.mktemp("models")
    for name, module in MODULES.items():
        if importlib.util.find_spec(module):
            write_model(folder / FILES[name], SEEDS[name])
    return folder


@pytest.fixture(scope="module")
def bundle(text, models, tmp_path_factory):
    """A whole bundle; not to be changed."""
    folder = write_bundle(tmp_path_factory.mktemp("exported") / "größe 1")
    (folder / "predict.py").write_text(text, encoding="utf-8")
    for path in models.iterdir():
        os.link(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Some photos, under names that a table could take for something else."""
    folder = tmp_path_factory.mktemp("shots")
    names = ["a, b.png", "größe.jpg", "NA"]
    for name, photo in zip(names, photos(), strict=False):
        photo.save(folder / name, "JPEG" if name.endswith("jpg") else "PNG")
    return [str(folder / name) for name in names]


@pytest.fixture(scope="module")
def pixels(shots):
    return np.stack([resize_image(read_image(Path(path)), SIZE, "stretch") for path in shots])


def run_alone(file, *arguments, also=(), cwd=None):
    """Run a file where neither cvpipe nor what else it needs can be imported."""
    code = WITHOUT.format(blocked=NOT_THERE | set(also))
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(file), *map(str, arguments)],
        capture_output=True, check=False, cwd=cwd or Path(file).parent, encoding="utf-8",
    )  # fmt: skip


# The text


def test_it_imports_only_what_a_fresh_environment_has(text):
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {getattr(n, "module", None) or n.names[0].name for n in nodes}
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"numpy", "PIL", "ai_edge_litert", "onnxruntime"}
    assert compile(text, "predict.py", "exec")
    assert len(text.splitlines()) < 1200


def test_it_is_readable(text, tmp_path):
    assert text.startswith("# Generated from the source text of cvpipe ")
    assert f"by the rule {DECODE_RULE!r} of cvpipe.data.images" in text
    (tmp_path / "predict.py").write_text(text, encoding="utf-8")
    for command in (["check", "--select", "E,F,I,W,B,UP"], ["format", "--check"]):
        answer = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "100",
             "--target-version", "py311", str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stdout


def import_text(text, monkeypatch):
    module = types.ModuleType("predict_alone")
    module.__file__ = "predict.py"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, "predict.py", "exec"), module.__dict__)
    return module


def test_its_examples_hold(text, monkeypatch):
    results = doctest.testmod(import_text(text, monkeypatch))
    assert results.failed == 0
    assert results.attempted >= 8


def test_its_docstring_is_true(text, bundle, shots, tmp_path):
    """The lines for Python, executed in the folder."""
    lines = ast.get_docstring(ast.parse(text)).split("From Python, in this folder:\n\n")[1]
    lines = lines.partition("\n\nImages become")[0].replace("new.jpg", shots[0])
    *code, last = [line.strip() for line in lines.splitlines()]
    script = tmp_path / "script.py"
    code = [f"import sys; sys.path.insert(0, {str(bundle)!r})", *code]
    script.write_text("\n".join([*code, f"print(repr(({last})))"]), encoding="utf-8")
    answer = run_alone(script, cwd=bundle)
    assert answer.returncode == 0, answer.stderr
    assert repr(CLASS_NAMES) in answer.stdout
    assert "dtype=float32" in answer.stdout


# Pixels

READ_ALL = """
import json, runpy, sys
from pathlib import Path
program, folder, target = sys.argv[1:]
space = runpy.run_path(program)
predict = space["PROGRAM"]
import numpy as np
found, refused = {}, {}
for number, path in enumerate(sorted(Path(folder).iterdir())):
    for fit in ("stretch", "pad", "crop"):
        for level in (65535, 4095):
            stated = {"fit": fit, "white_level": level, "max_pixels": 10**7}
            rule = predict.bundle_rule({"input": stated})
            try:
                image = predict.read_image(path, rule)
            except space["InputError"] as error:
                refused[path.name] = str(error)
                continue
            found[f"{number} {fit} {level} whole"] = image
            for size in ((6, 4), (50, 90)):
                found[f"{number} {fit} {level} {size}"] = predict.resize_image(image, size, fit)
np.savez(target, **found)
Path(target + ".json").write_text(json.dumps(refused))
assert not {"cvpipe", "tensorflow", "keras", "pydantic", "pandas", "pydicom"} & set(sys.modules)
"""


def sixteen_bits():
    return np.asarray(next(photos()).convert("L")).astype(np.uint16) * 16


def many_files():
    """Files of every kind that an image can be, sound and broken."""
    files = {name: data for name, (data, _) in broken_files(photos()).items()}
    files |= {name: data for name, (data, _) in odd_files(photos()).items()}
    photo = next(photos())
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[274] = turn
        files[f"turn {turn}.jpg"] = encode(photo, "JPEG", exif=exif)
        files[f"turn {turn}.png"] = encode(photo, "PNG", exif=exif)
        files[f"turn {turn}.tif"] = encode(photo, "TIFF", exif=exif)
    see_through = photo.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(photo.size))
    files |= {
        "grey.jpg": encode(photo.convert("L"), "JPEG"),
        "grey.png": encode(photo.convert("L"), "PNG"),
        "bits.png": encode(photo.convert("1"), "PNG"),
        "colour.bmp": encode(photo, "BMP"),
        "colour.webp": encode(photo, "WEBP"),
        "palette.gif": encode(photo.quantize(32), "GIF"),
        "palette.png": encode(photo.quantize(32), "PNG"),
        "four inks.tif": encode(photo.convert("CMYK"), "TIFF"),
        "lab.tif": encode(photo.convert("LAB"), "TIFF"),
        "alpha.tif": encode(see_through, "TIFF"),
        "white is zero.tif": encode(Image.fromarray(sixteen_bits()), "TIFF", tiffinfo={262: 0}),
        "wide.png": encode(photo.resize((90, 7)), "PNG"),
        "long.png": encode(photo.resize((1, 300)), "PNG"),
        "empty.png": b"",
        "large.png": encode(Image.new("L", (4000, 2501)), "PNG"),
        "cut.jpeg": encode(photo, "JPEG")[:-200],
    }
    return files


@pytest.fixture(scope="module")
def read_alone(bundle, tmp_path_factory):
    """The folder of `many_files`, and what the program makes of them, read by a new process."""
    folder = tmp_path_factory.mktemp("many")
    for name, data in many_files().items():
        (folder / name).write_bytes(data)
    script = tmp_path_factory.mktemp("script") / "read.py"
    script.write_text(READ_ALL, encoding="utf-8")
    target = script.with_name("read.npz")
    answer = run_alone(script, bundle / "predict.py", folder, target)
    assert answer.returncode == 0, answer.stderr
    with np.load(target) as found:
        arrays = dict(found)
    return folder, arrays, json.loads(Path(f"{target}.json").read_text())


def test_pixels_are_those_of_cvpipe_to_the_last_bit(read_alone):
    folder, arrays, refused = read_alone
    seen = set()
    for number, path in enumerate(sorted(folder.iterdir())):
        for fit in FITS:
            for level in (65_535, 4095):
                key = f"{number} {fit} {level}"
                rule = DecodeRule(fit=fit, white_level=level, max_pixels=10**7)
                if path.name in refused:
                    assert f"{key} whole" not in arrays
                    continue
                image = read_image(path, rule)
                expected = {"whole": image}
                for size in ((6, 4), (50, 90)):
                    expected[str(size)] = resize_image(image, size, fit)
                for name, array in expected.items():
                    found = arrays[f"{key} {name}"]
                    assert found.dtype == np.uint8
                    np.testing.assert_array_equal(found, array, path.name)
                    seen.add(f"{key} {name}")
    assert seen == set(arrays)
    assert len(seen) > 50 * 3 * 2 * 3


def test_files_are_refused_with_the_words_of_cvpipe(read_alone):
    folder, _, refused = read_alone
    expected = {}
    for path in sorted(folder.iterdir()):
        if is_dicom(path.read_bytes()):
            expected[path.name] = (
                f"cannot read the image {str(path)!r}: DICOM needs cvpipe itself; install it with: "
                "python -m pip install 'cvpipe[dicom]'."
            )
            continue
        try:
            read_image(path, DecodeRule(max_pixels=10**7))
        except InputError as error:
            expected[path.name] = str(error)
    assert refused == expected
    for name in ("empty.png", "cut.jpeg", "cut.tif", "bomb.png", "large.png", "negative.dcm"):
        assert name in refused
    assert sum("the file ends early" in message for message in refused.values()) >= 9


# The command line of the file


def rows_of(output):
    return list(csv.reader(io.StringIO(output, newline="")))


def check_rows(output, shots, pixels, seed):
    header, *rows = rows_of(output)
    assert header == ["image", "predicted", *(f"p_{name}" for name in CLASS_NAMES)]
    assert [row[0] for row in rows] == shots
    expected = expected_of(pixels, seed)
    found = np.array([[float(cell) for cell in row[2:]] for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert [row[1] for row in rows] == [CLASS_NAMES[best] for best in expected.argmax(axis=1)]
    assert len({row[1] for row in rows}) > 1


@pytest.mark.parametrize("name", EACH)
def test_command_line_gives_the_probabilities_of_the_model(name, bundle, shots, pixels, tmp_path):
    others = [module for key, module in MODULES.items() if key != name]
    answer = run_alone(bundle / "predict.py", *shots, also=others, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    check_rows(answer.stdout, shots, pixels, SEEDS[name])


@needs_litert
@needs_onnx
def test_command_line_without_a_blocker(bundle, shots, pixels, tmp_path):
    """As a person calls it; LiteRT comes first, where there is a file for it."""
    command = [sys.executable, "-I", bundle / "predict.py"]
    options = ["--threads", "1", "--bundle", os.path.relpath(bundle, tmp_path)]
    answer = subprocess.run(
        [*command, *options, *shots],
        capture_output=True, check=False, cwd=tmp_path, encoding="utf-8",
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    check_rows(answer.stdout, shots, pixels, SEEDS["litert"])


@needs_onnx
def test_command_line_as_json_with_a_chosen_file(bundle, shots, pixels):
    answer = run_alone(bundle / "predict.py", "--json", "--model", "model.onnx", *shots)
    assert answer.returncode == 0, answer.stderr
    records = json.loads(answer.stdout)
    assert [record["image"] for record in records] == shots
    expected = expected_of(pixels, SEEDS["onnx"])
    for record, row in zip(records, expected, strict=True):
        assert list(record) == ["image", "predicted", "probabilities"]
        assert list(record["probabilities"]) == CLASS_NAMES
        np.testing.assert_allclose(list(record["probabilities"].values()), row, atol=1e-6)
        assert record["predicted"] == CLASS_NAMES[row.argmax()]


def test_command_line_without_a_runtime(bundle, shots):
    answer = run_alone(bundle / "predict.py", shots[0], also=MODULES.values())
    assert answer.returncode == 2
    assert answer.stdout == ""
    installed = [key for key in MODULES if (bundle / FILES[key]).exists()]
    for key in installed:
        assert f"'{FILES[key]}' needs {RUNTIMES[key].title}" in answer.stderr
        assert f"python -m pip install {RUNTIMES[key].package}" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_command_line_with_a_broken_image(bundle, shots, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(many_files()["cut.jpeg"])
    answer = run_alone(bundle / "predict.py", *shots, "cut.jpg", cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: cannot read the image 'cut.jpg': the file ends early")


def test_command_line_with_a_name_that_is_no_text(bundle, shots):
    if sys.platform in ("darwin", "win32"):
        pytest.skip("file names are text there")
    path = Path(shots[0]).with_name(os.fsdecode(b"\xff\xfe.png"))
    path.write_bytes(Path(shots[0]).read_bytes())
    code = WITHOUT.format(blocked=NOT_THERE)
    command = [sys.executable, "-I", "-c", code, str(bundle / "predict.py"), path]
    plain, as_json = (
        subprocess.run([*command, *options], capture_output=True, check=False)
        for options in ([], ["--json"])
    )
    assert (plain.returncode, as_json.returncode) == (0, 0), plain.stderr + as_json.stderr
    assert os.fsencode(path) in plain.stdout
    assert json.loads(as_json.stdout)[0]["image"] == str(path)


# The functions, in this process

PROGRAM = Program(read_image, resize_image, bundle_rule, RUNTIMES)


class Fake:
    """Stands for a model: remembers what it was given, and answers at random."""

    def __init__(self, monkeypatch):
        self.opened, self.runtimes, self.batches, self.answer = [], [], [], None
        for key in RUNTIMES:
            function = functools.partial(self.open, key)
            monkeypatch.setitem(RUNTIMES, key, RUNTIMES[key]._replace(open=function))

    def open(self, key, path, threads):
        self.opened.append((path.name, threads))
        self.runtimes.append(key)
        return self.predict

    def predict(self, images):
        self.batches.append(images)
        if self.answer is not None:
            return self.answer
        rng = np.random.default_rng(int(images.sum()))
        rows = rng.random((len(images), len(CLASS_NAMES)), np.float32)
        return rows / rows.sum(axis=1, keepdims=True)


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """A bundle whose model files are empty."""
    write_bundle(tmp_path / "bundle")
    for name in FILES.values():
        (tmp_path / "bundle" / name).touch()
    return tmp_path / "bundle"


def test_loading_says_what_there_is(folder, fake, shots, pixels):
    classifier = PROGRAM.load(folder, threads=3)
    assert isinstance(classifier, Classifier)
    assert classifier.class_names == CLASS_NAMES
    assert fake.opened == [("model.tflite", 3)]
    found = classifier.predict_proba(shots)
    np.testing.assert_array_equal(fake.batches[0], pixels)
    assert (found.shape, found.dtype) == ((3, 4), np.float32)
    np.testing.assert_array_equal(found, fake.predict(pixels))


def test_all_cores_are_used_where_no_number_is_given(folder, fake, monkeypatch):
    monkeypatch.setattr(runtime, "usable_cores", lambda: 7)
    PROGRAM.load(str(folder))
    PROGRAM.load(folder, threads=1)
    assert [threads for _, threads in fake.opened] == [7, 1]
    with pytest.raises(InputError, match="number of threads must be at least 1, not -1"):
        PROGRAM.load(folder, threads=-1)


@pytest.mark.parametrize("fit", FITS)
def test_images_are_brought_to_the_size_as_the_bundle_says(fit, tmp_path, fake):
    image = Image.fromarray(sixteen_bits())
    image.save(tmp_path / "a.png")
    stated = {"image_size": [9, 5], "fit": fit, "white_level": 4080}
    write_bundle(tmp_path, input=stated)
    (tmp_path / "model.onnx").touch()
    PROGRAM.load(tmp_path).predict_proba([tmp_path / "a.png"])
    whole = read_image(tmp_path / "a.png", DecodeRule(white_level=4080))
    assert whole.max() > 100
    np.testing.assert_array_equal(fake.batches[0], resize_image(whole, (9, 5), fit)[None])


def test_the_limit_of_pixels_is_that_of_the_bundle(tmp_path, fake, shots):
    write_bundle(tmp_path, input={**bundle_facts()["input"], "max_pixels": 99})
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=r"pixels, more than data\.max_pixels = 99"):
        PROGRAM.load(tmp_path).predict_proba(shots)


def test_many_images_are_predicted_in_batches_and_in_order(folder, fake, tmp_path):
    paths = []
    for number in range(2 * BATCH_SIZE + 3):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (3, 3), (number, 0, 0)).save(paths[-1])
    found = PROGRAM.load(folder).predict_proba(paths)
    assert [len(batch) for batch in fake.batches] == [BATCH_SIZE, BATCH_SIZE, 3]
    together = np.concatenate(fake.batches)
    assert together[:, 0, 0, 0].tolist() == list(range(2 * BATCH_SIZE + 3))
    answers = [fake.predict(batch) for batch in fake.batches[:3]]
    np.testing.assert_array_equal(found, np.concatenate(answers))


@pytest.mark.parametrize("paths", [[], (), "a.jpg", Path("a.jpg")])
def test_something_else_than_a_list_of_images(paths, folder, fake):
    with pytest.raises(InputError, match=r"cannot predict .*; give a list of at least one image"):
        PROGRAM.load(folder).predict_proba(paths)


@pytest.mark.parametrize(
    "answer",
    [np.ones((1, 3)), np.ones((2, 4)), np.ones(4), np.array([[0, 0, np.nan, 1]]), np.ones((1, 5))],
)
def test_a_model_that_does_not_fit_its_bundle(answer, folder, fake, shots, capsys):
    fake.answer = answer.astype(np.float32)
    assert PROGRAM.main(["--bundle", str(folder), shots[0]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"error: the model gives an array of shape {answer.shape} for 1 image(s), but finite "
        "numbers of shape (1, 4) were expected; does the model file belong to this bundle.json?\n"
    )


# Which model file


@pytest.mark.parametrize(
    ("present", "model", "opened"),
    [
        (["model.tflite", "model.onnx", "model.keras"], "", "model.tflite"),
        (["model.onnx", "model.keras"], "", "model.onnx"),
        (["model.tflite", "model.onnx"], "model.onnx", "model.onnx"),
        (["model.tflite", "other.onnx"], "other.onnx", "other.onnx"),
        (["model.onnx", "other.tflite"], "other.tflite", "other.tflite"),
    ],
)
def test_choice_of_the_model_file(present, model, opened, tmp_path, fake):
    write_bundle(tmp_path)
    for name in present:
        (tmp_path / name).touch()
    PROGRAM.load(tmp_path, model)
    assert [name for name, _ in fake.opened] == [opened]


@pytest.mark.parametrize(
    ("files", "opened"),
    [
        (["litert-int8", "onnx"], "onnx"),
        (["onnx-int8", "litert-float16", "litert"], "litert"),
        (["keras", "onnx-int8", "litert-int8"], "onnx-int8"),
        (["saved_model", "openvino", "litert-dynamic", "onnx-float16"], "litert-dynamic"),
    ],
)
def test_files_without_rounded_weights_come_first(files, opened, tmp_path, fake):
    write_bundle(tmp_path, files={label: f"{label} file" for label in files})
    for label in files:
        (tmp_path / f"{label} file").touch()
    PROGRAM.load(tmp_path)
    assert [name for name, _ in fake.opened] == [f"{opened} file"]
    assert fake.runtimes == [opened.partition("-")[0]]


def test_a_runtime_that_cannot_be_imported_is_passed_over(folder, fake, monkeypatch):
    def fail(path, threads):
        raise ImportError("no strenum")

    monkeypatch.setitem(RUNTIMES, "litert", RUNTIMES["litert"]._replace(open=fail))
    PROGRAM.load(folder)
    assert [name for name, _ in fake.opened] == ["model.onnx"]
    with pytest.raises(InputError) as caught:
        PROGRAM.load(folder, "model.tflite")
    assert str(caught.value) == (
        "'model.tflite' needs LiteRT (no strenum); install it with: python -m pip install "
        "ai-edge-litert"
    )
    monkeypatch.setitem(RUNTIMES, "onnx", RUNTIMES["onnx"]._replace(open=fail))
    with pytest.raises(InputError) as caught:
        PROGRAM.load(folder)
    assert str(caught.value) == (
        "'model.tflite' needs LiteRT (no strenum) and 'model.onnx' needs ONNX Runtime (no "
        "strenum); install it with: python -m pip install ai-edge-litert or: python -m pip install "
        "onnxruntime"
    )


@pytest.mark.parametrize(
    ("files", "model", "message"),
    [
        (FILES, "", r"of the model files \['model\.tflite', 'model\.onnx'\] none is in the folder"),
        (
            {"keras": "model.keras"},
            "",
            r"of the model files \[\] none .* kind \*\.tflite or \*\.onnx",
        ),
        ({}, "", r"of the model files \[\] none is in the folder"),
        (FILES, "model.onnx", r"of the model files \['model\.onnx'\] none is in the folder"),
        (FILES, "model.keras", r"'model\.keras' does not end in \.tflite or \.onnx; choose one"),
        (FILES, "../model.onnx", r"'\.\./model\.onnx' does not lie in the folder"),
    ],
)
def test_no_model_file(files, model, message, tmp_path, fake):
    write_bundle(tmp_path / "bundle", files=files)
    (tmp_path / "bundle" / "model.keras").touch()
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=message):
        PROGRAM.load(tmp_path / "bundle", model)
    assert not fake.opened


@pytest.mark.parametrize(
    "name",
    [
        "../outside.onnx", "{}/outside.onnx", "inner/../../outside.onnx", "link.onnx", "loop.onnx",
        "folder/outside.onnx", "a\0b", "\ud800", "x" * 5000, "..", "/", "", ".", 3, None, ["a"],
        {}, True,
    ],
)  # fmt: skip
def test_model_files_are_only_read_from_inside_the_bundle(name, tmp_path, fake):
    bundle = write_bundle(tmp_path / "bundle")
    (tmp_path / "outside.onnx").touch()
    (bundle / "link.onnx").symlink_to("../outside.onnx")
    (bundle / "loop.onnx").symlink_to("loop.onnx")
    (bundle / "folder").symlink_to("..")
    if isinstance(name, str):
        name = name.format(tmp_path)
    write_bundle(bundle, files={"onnx": name})
    with pytest.raises(InputError, match=r"does not lie in the folder|none is in the folder"):
        PROGRAM.load(bundle)
    assert not fake.opened
    if isinstance(name, str) and "outside" in name:
        with pytest.raises(InputError, match=r"does not lie in the folder .*; model files are"):
            path_inside(bundle, name)


def test_names_that_stay_inside_are_fine(tmp_path, fake, monkeypatch):
    write_bundle(tmp_path, files={"onnx": "inner/../inner/model.onnx"})
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.onnx").touch()
    monkeypatch.chdir(tmp_path)
    PROGRAM.load(".")
    (tmp_path / "near").symlink_to("inner/model.onnx")
    assert path_inside(Path(), "near") == tmp_path.resolve() / "inner" / "model.onnx"
    assert [name for name, _ in fake.opened] == ["model.onnx"]


# Wrong bundles

STATED = bundle_facts()["input"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bundle_version": 99}, f"its version is 99, not {BUNDLE_VERSION}"),
        ({"bundle_version": None}, f"its version is None, not {BUNDLE_VERSION}"),
        ({"files": None}, "'files' is no object"),
        ({"files": ["model.onnx"]}, "'files' is no object"),
        ({"class_names": "ab"}, "'class_names' is no list of texts"),
        ({"class_names": ["a", 0]}, "'class_names' is no list of texts"),
        ({"class_names": None}, "'class_names' is no list of texts"),
        ({"class_names": []}, "'class_names' is empty, or has a name twice"),
        ({"class_names": ["a", "b", "a"]}, "'class_names' is empty, or has a name twice"),
        ({"input": None}, "'input' is no object"),
        ({"input": {}}, "'image_size' is None, not a height and a width"),
        ({"input": {"image_size": [4]}}, "'image_size' is [4], not a height and a width"),
        ({"input": {"image_size": [4, 0]}}, "'image_size' is [4, 0], not a height"),
        ({"input": {"image_size": [4, 4.0]}}, "'image_size' is [4, 4.0], not a height"),
        ({"input": {"image_size": [True, 4]}}, "'image_size' is [True, 4], not a height"),
        ({"input": {"image_size": [4, 4, 3]}}, "'image_size' is [4, 4, 3], not a height"),
        ({"input": {**STATED, "fit": 1}}, "'fit' is 1, not of the type str"),
        ({"input": {**STATED, "white_level": "1"}}, "'white_level' is '1', not of the type int"),
        ({"input": {**STATED, "max_pixels": None}}, "'max_pixels' is None, not of the type int"),
        ({"input": {**STATED, "dicom_window": 1}}, "'dicom_window' is 1, not of the type list"),
    ],
)
def test_a_bundle_that_does_not_describe_a_model(changes, reason, tmp_path, fake, capsys):
    write_bundle(tmp_path, **changes)
    assert PROGRAM.main(["--bundle", str(tmp_path), "a.jpg"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    path = str(tmp_path / "bundle.json")
    start = f"error: {path!r} does not describe an exported model that can be used here: {reason}"
    assert err.startswith(start)
    assert err.endswith("; export the model again.\n")


def test_an_older_bundle_that_does_not_say_all(tmp_path, fake, shots, pixels):
    facts = {"files": FILES, "class_names": CLASS_NAMES, "input": {"image_size": list(SIZE)}}
    (tmp_path / "bundle.json").write_text(json.dumps(facts))
    (tmp_path / "model.onnx").touch()
    PROGRAM.load(tmp_path).predict_proba(shots)
    np.testing.assert_array_equal(fake.batches[0], pixels)


def test_a_bundle_of_another_rule(tmp_path, fake):
    write_bundle(tmp_path, input={**STATED, "decode_rule": "rgb-1"})
    with pytest.raises(InputError, match="decoded by the rule 'rgb-1', but this version of cvpipe"):
        PROGRAM.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"nonsense"])
def test_a_bundle_that_is_not_json(content, tmp_path):
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(InputError, match=r"bundle\.json' is not JSON; export the model again\."):
        read_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"text"'])
def test_a_bundle_that_is_no_object(content, tmp_path):
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(InputError, match="can be used here: it is no object"):
        read_bundle(tmp_path)


def test_no_bundle(tmp_path, capsys):
    (tmp_path / "sub" / "bundle.json").mkdir(parents=True)
    for folder, reason in (("", "No such file or directory"), ("sub", "it is not a regular file")):
        assert PROGRAM.main(["--bundle", str(tmp_path / folder), "a.jpg"]) == 2
        path = str(tmp_path / folder / "bundle.json")
        assert capsys.readouterr().err == (
            f"error: cannot read {path!r}: {reason}; name the folder of an exported model.\n"
        )


def test_the_default_folder_is_that_of_the_file(monkeypatch):
    options = runtime.parse_arguments(["a.jpg"])
    assert options.bundle == Path(runtime.__file__).parent
    assert (options.images, options.model, options.threads, options.json) == (
        ["a.jpg"],
        "",
        0,
        False,
    )


@pytest.mark.parametrize("arguments", [[], ["--threads", "x", "a.jpg"], ["--jso", "a.jpg"]])
def test_wrong_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        PROGRAM.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_output_keeps_every_bit_and_every_name(folder, fake, shots, capsys):
    fake.answer = np.array([[1e-9, 1 / 3, 0.1, 0.2]] * 3, np.float32)
    assert PROGRAM.main(["--bundle", str(folder), *shots]) == 0
    out = capsys.readouterr().out
    assert "\r" not in out
    assert out.splitlines()[0] == 'image,predicted,p_0,p_NA,p_<b>,"p_größe, ""'
    header, *rows = rows_of(out)
    assert header[2:] == [f"p_{name}" for name in CLASS_NAMES]
    assert [row[:2] for row in rows] == [[shot, "NA"] for shot in shots]
    np.testing.assert_array_equal(np.array([row[2:] for row in rows], np.float32), fake.answer)
    assert rows[0][4:] == ["0.1", "0.2"]
    assert PROGRAM.main(["--bundle", str(folder), "--json", *shots]) == 0
    records = json.loads(capsys.readouterr().out)
    found = [list(record["probabilities"].values()) for record in records]
    np.testing.assert_array_equal(np.array(found, np.float32), fake.answer)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_output_is_the_same_on_every_terminal(encoding, folder, fake, shots, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert PROGRAM.main(["--bundle", str(folder), *shots]) == 0
    sys.stdout.flush()
    assert "p_größe" in written.getvalue().decode("utf-8")


# Opening model files


@pytest.mark.parametrize("name", EACH)
def test_opened_models_take_any_number_of_images(name, models):
    predict = OPENERS[name](models / FILES[name], 1)
    images = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)
    expected = expected_of(images, SEEDS[name])
    for number in (5, 1, 2, 5):
        found = predict(images[:number])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:number], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("shape", [(2, 6, 5, 3), (2, 4, 6, 3), (2, 6, 4, 1)])
def test_images_that_a_model_does_not_take(name, shape, models):
    predict = OPENERS[name](models / FILES[name], 1)
    with pytest.raises(InputError, match=r"does not take uint8 images of shape \(\d, \d, \d\): "):
        predict(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="does not take float32 images"):
        predict(np.zeros((2, *SIZE, 3), np.float32))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("content", [b"", b"no model", bytes(1000), None])
def test_damaged_model_files(name, content, models, tmp_path):
    path = tmp_path / FILES[name]
    path.write_bytes((models / FILES[name]).read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"cannot open '.*model\.\w+': .*; export it again\."):
        OPENERS[name](path, 1)


def test_every_runtime_says_what_it_is():
    assert list(RUNTIMES) == ["litert", "onnx"]  # the order in which they are tried
    for key, entry in RUNTIMES.items():
        assert isinstance(entry, Runtime)
        assert entry.open is OPENERS[key]
        assert FILES[key].endswith(entry.suffix)
