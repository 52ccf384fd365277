"""The pages on features say what the code does, and show what it draws."""

import importlib.util
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cvpipe.classifiers.kernel_svm import check_sign
from cvpipe.classifiers.table import CLASSIFIERS
from cvpipe.config import validate_config
from cvpipe.data.pixels import num_pixel_bytes
from cvpipe.errors import InputError
from cvpipe.features.file_facts import FILE_FACTS_COLUMNS
from cvpipe.features.table import FEATURES, KINDS, Feature, make_feature
from cvpipe.models.backbones import BACKBONES
from cvpipe.stages.features import MAX_LEARNING_BYTES
from cvpipe.stages.plan import check_names
from tests.test_docs import code_blocks, targets_of_makefile

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
OVERVIEW = DOCS / "features.md"
PAGES = {path.stem: path for path in sorted((DOCS / "features").glob("*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
TEXTS["features"] = OVERVIEW.read_text(encoding="utf-8")
SHOWN = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
MAX_PICTURE_BYTES, MAX_BYTES = 60 * 1024, 600 * 1024
# Fonts and codecs of another version may move an edge of a letter by a pixel.
MAX_MEAN_DIFFERENCE, MAX_DIFFERENT_SHARE = 2.0, 0.02


def load_script():
    spec = importlib.util.spec_from_file_location("docs_pictures", DOCS / "pictures.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture(scope="module")
def script():
    return load_script()


def rows_below(text: str, heading: str, number: int = 0) -> list[list[str]]:
    """Read the cells of a table; those above are counted from 0."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    lines = tables[number].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def value_of(cell: str):
    """Read a value as TOML, a list as the tuple that it becomes."""
    value = tomllib.loads(f"value = {cell.strip('`')}")["value"]
    return tuple(value) if isinstance(value, list) else value


def described(feature: Feature) -> np.ndarray:
    """Describe crops of a photo, after learning from few samples."""
    settings = feature.settings
    if "num_samples" in settings:
        settings["num_samples"] = 1_000
    size = feature.image_size
    photo = skimage.data.chelsea()
    images = np.stack([photo[top:, top:][: size[0], : size[1]] for top in (0, 40, 80)])
    return make_feature(feature.kind, size, settings).build().fit_transform(images)


@pytest.fixture(scope="module")
def rows_of():
    found = {}

    def describe(feature):
        if feature not in found:
            found[feature] = described(feature)
        return found[feature]

    return describe


def test_there_is_a_page_for_every_kind():
    assert set(PAGES) == {*KINDS, "deep_features", "file_facts"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_stands_with_its_usual_value(kind):
    rows = rows_below(TEXTS[kind], "Settings")
    usual = {name.strip("`"): value_of(value) for name, value, *_ in rows}
    assert usual == dict(KINDS[kind].settings)
    assert list(usual) == list(KINDS[kind].settings)
    assert all(what for *_, what in rows)
    height, width = KINDS[kind].image_size
    assert f"\nUsual size: {height}x{width} pixels." in TEXTS[kind]


# What else has to be set for a setting to matter.
ALONGSIDE = {("bag_of_words", "patch_pixels"): {"descriptor": "patches"}}


def complaint(kind: str, name: str, value: object) -> str:
    feature = make_feature(kind, settings={**ALONGSIDE.get((kind, name), {}), name: value})
    try:
        feature.build().check_settings(feature.image_size)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_possible_is_so_and_nothing_beyond(kind):
    for cell, usual, possible, _ in rows_below(TEXTS[kind], "Settings"):
        name, value = cell.strip("`"), value_of(usual)
        bounds = re.match(r"(\d+) to (\d+)|at least (\d+)", possible)
        if isinstance(value, bool):
            assert possible == "`true`, `false`"
        elif isinstance(value, str):
            listed = re.findall(r'"([^"]*)"', possible)
            assert str(listed) in complaint(kind, name, "no such word")
            assert not any(complaint(kind, name, word) for word in listed)
        elif bounds:
            low, high, alone = bounds.groups()
            assert not complaint(kind, name, int(low or alone))
            assert complaint(kind, name, int(low or alone) - 1)
            assert not high or not complaint(kind, name, int(high))
            assert not high or complaint(kind, name, int(high) + 1)
        elif possible.startswith("at least `"):
            least = KINDS[kind].settings[possible.removeprefix("at least ").strip("`")]
            assert not complaint(kind, name, least)
            assert complaint(kind, name, least - 1)
        elif isinstance(value, tuple):
            low, high = map(int, re.search(r"(\d+) to (\d+)", possible).groups())
            assert not complaint(kind, name, (low, high))
            assert complaint(kind, name, (low - 1,))
            assert complaint(kind, name, (high + 1,))
        else:
            listed = [int(number) for number in re.findall(r"\d+", possible)]
            assert str(listed) in complaint(kind, name, 3).replace("(", "[").replace(")", "]")


def test_the_overview_lists_the_kinds(rows_of):
    rows = rows_below(TEXTS["features"], "The kinds")
    links = [re.fullmatch(r"\[`(\w+)`\]\(features/(\w+)\.md\)", row[0]).groups() for row in rows]
    assert links == [(kind, kind) for kind in KINDS]
    for kind, (_, sees, learns, size) in zip(KINDS, rows, strict=True):
        assert sees
        assert learns == ("yes" if KINDS[kind].learns else "no")
        assert size == f"{rows_of(make_feature(kind)).shape[1]:,}"


def test_the_overview_lists_the_features_that_have_a_name(rows_of):
    features = {name: f for name, f in FEATURES.items() if isinstance(f, Feature)}
    rows = rows_below(TEXTS["features"], "Naming features")
    assert [row[0].strip("`") for row in rows] == list(features)
    for (_, kind, changed, size), feature in zip(rows, features.values(), strict=True):
        assert kind == f"`{feature.kind}`"
        settings = tomllib.loads("\n".join(re.findall(r"`(.*?)`", changed)))
        assert settings == dict(feature.changed)
        assert size == f"{rows_of(feature).shape[1]:,}"


def test_the_overview_suggests_classifiers_that_can_read_the_rows(rows_of):
    rows = rows_below(TEXTS["features"], "Which classifier")
    assert [row[0].strip("`") for row in rows] == list(KINDS)
    for kind, (_, numbers, classifiers) in zip(KINDS, rows, strict=True):
        values = rows_of(make_feature(kind))
        assert (values.min() < 0) == (numbers == "signed")
        for name in re.findall(r"`(\w+)`", classifiers):
            assert name in CLASSIFIERS
            if name in ("chi2_svm", "intersection_svm"):
                check_sign(name.removesuffix("_svm"), values)
    tiny = rows_of(make_feature("raw_pixels", settings={"normalise": "unit"}))
    with pytest.raises(InputError, match="egative"):
        check_sign("chi2", tiny)


def test_the_overview_says_how_many_images_are_learned_from():
    held = re.findall(r"([\d,]+) (?:images )?of (\d+)x(\d+)", TEXTS["features"])
    assert len(held) == 2
    for number, height, width in held:
        most = MAX_LEARNING_BYTES // num_pixel_bytes(1, (int(height), int(width)))
        assert number == f"{most:,}"
    assert f"At most {MAX_LEARNING_BYTES // 10**6} MB" in TEXTS["features"]


def test_the_pages_without_settings_say_how_long_a_row_is():
    assert f"has {len(FILE_FACTS_COLUMNS)} numbers" in TEXTS["file_facts"]
    packaged = {name: backbone for name, backbone in BACKBONES.items() if backbone.weights}
    for name, backbone in packaged.items():
        assert f"{backbone.num_features:,} numbers for `{name}`" in " ".join(
            TEXTS["deep_features"].split()
        )


@pytest.mark.parametrize("name", TEXTS)
def test_the_pipeline_examples_are_valid(name):
    blocks = code_blocks(TEXTS[name], "toml")
    assert blocks
    for block in blocks:
        config = check_names(
            validate_config({"name": "x", "data": {"root": "."}} | tomllib.loads(block))
        )
        read = {feature for contender in config.contender for feature in contender.features}
        assert {section.name for section in config.feature} <= read
        if name in KINDS:
            assert [section.kind for section in config.feature] == [name]


@pytest.fixture(scope="module")
def loaded(photos) -> dict:
    """What the first example of the overview leaves behind."""
    first, _ = code_blocks(TEXTS["features"], "python")
    variables: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos.parent)
        exec(first, variables)
    return variables


@pytest.mark.parametrize("name", ["features", *KINDS])
def test_the_python_example_runs(name, loaded):
    block = code_blocks(TEXTS[name], "python")[-1]
    variables = dict(loaded)
    exec(block, variables)
    claimed = re.search(r"\(n, (\d+)\)", block)
    if claimed:
        assert variables["rows"].shape == (len(loaded["images"]), int(claimed[1]))


@pytest.mark.parametrize(
    "name", ["file_facts", pytest.param("deep_features", marks=pytest.mark.slow)]
)
def test_the_python_example_with_loading_runs(name, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (block,) = code_blocks(TEXTS[name], "python")
    variables: dict = {}
    exec(block, variables)
    assert variables["rows"].shape[0] == len(variables["paths"])


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    folder = PAGES[name].parent if name in PAGES else DOCS
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", TEXTS[name]):
        path = folder / target
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_every_picture_is_shown_by_a_page_that_credits_its_photos(script):
    shown = {}
    for page, text in TEXTS.items():
        words = " ".join(text.split())
        for description, target in SHOWN.findall(text):
            assert description
            name = Path(target).name
            shown[name] = page
            for photo in script.PICTURES[name].photos:
                assert script.CREDITS[photo] in words, (page, photo)
    assert set(shown) == set(script.PICTURES)


def test_the_pictures_are_there_and_small(script):
    sizes = {path.name: path.stat().st_size for path in script.FOLDER.iterdir()}
    assert set(sizes) == set(script.PICTURES)
    assert max(sizes.values()) <= MAX_PICTURE_BYTES
    assert sum(sizes.values()) <= MAX_BYTES


def compare_with_kept(script, name: str, folder: Path) -> np.ndarray:
    """Make a picture anew: `int (height, width, 3)`, how far each value is from the kept one."""
    made, kept = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (script.write(name, folder), script.FOLDER / name)
    )
    assert made.shape == kept.shape
    return np.abs(made - kept)


def assert_alike(difference: np.ndarray):
    assert difference.mean() <= MAX_MEAN_DIFFERENCE
    assert (difference.max(axis=2) > 64).mean() <= MAX_DIFFERENT_SHARE


def test_a_picture_made_anew_is_the_one_that_is_kept(script, tmp_path):
    assert_alike(compare_with_kept(script, "hog_glyphs.png", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", load_script().PICTURES)
def test_all_pictures_made_anew_are_those_that_are_kept(name, tmp_path):
    script = load_script()  # afresh, so that no photo is remembered
    used, load_photo = set(), script.whole_photo

    def record(photo):
        used.add(photo)
        return load_photo(photo)

    script.whole_photo = record
    difference = compare_with_kept(script, name, tmp_path)
    if not script.PICTURES[name].learned:
        assert_alike(difference)
    assert used == set(script.PICTURES[name].photos)


def test_there_is_a_command_for_the_pictures():
    assert "docs" in targets_of_makefile()
    assert "docs/pictures.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
