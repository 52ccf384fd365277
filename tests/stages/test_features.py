import dataclasses
import hashlib
import re

import numpy as np
import pytest
from PIL import Image

from cvpipe import cache as cache_module
from cvpipe.classifiers.search import fit_at
from cvpipe.config import validate_config
from cvpipe.data import pixels as pixels_module
from cvpipe.data import threads as threads_module
from cvpipe.data.images import DEFAULT_RULE, DecodeRule, bundle_rule, read_image, resize_image
from cvpipe.errors import InputError
from cvpipe.features.file_facts import describe_files
from cvpipe.features.hog import HistogramOfOrientedGradients
from cvpipe.features.table import FEATURES, KINDS, Feature, FeatureKind, FileFeature
from cvpipe.files import read_json, write_json
from cvpipe.models.backbones import BACKBONES, PRETRAINED, BackboneSpec, build_backbone
from cvpipe.models.deep_features import DeepFeature
from cvpipe.models.features import build_embed
from cvpipe.models.folding import fold_norms
from cvpipe.runs import Run
from cvpipe.stages import features as stage
from cvpipe.stages.features import (
    Describer,
    ImageFiles,
    Setup,
    build_descriptor,
    fixed_describer,
    from_images,
    learn_describer,
    setup_of,
    store_describer,
    under,
)
from cvpipe.stages.job import Nobody
from cvpipe.stages.predict import load, load_contender
from cvpipe.stages.stored_models import store_estimator
from tests.data.odd_files import dicom_of

SIZES = [(70, 40), (40, 90), (128, 128), (31, 33), (200, 150)]


class Counting:
    """A feature of three numbers that counts how many images it has described."""

    n_features_out_ = 3

    def __init__(self):
        self.num_images = 0

    def fit(self, images):
        return self

    def transform(self, images):
        assert images.dtype == np.uint8
        self.num_images += len(images)
        height, width = images.shape[1:3]
        first = images[:, 0, 0, 0].astype(np.float32)
        return np.stack([first, first * 0 + height, first * 0 + width], axis=1)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CVPIPE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def counting(monkeypatch):
    """A second feature besides HOG, with another image size, higher than wide."""
    feature = Counting()
    monkeypatch.setattr(FeatureKind, "load", lambda kind: kind_classes(kind, feature))
    monkeypatch.setitem(KINDS, "counting", FeatureKind("three numbers", ("x", "X"), (6, 4)))
    monkeypatch.setitem(FEATURES, "counting", Feature("counting", (6, 4)))
    return feature


load_class = FeatureKind.load


def kind_classes(kind, counting):
    return (lambda: counting) if kind.title == "three numbers" else load_class(kind)


@pytest.fixture
def images(tmp_path):
    """Images of several sizes with their keys; the last one has the bytes of the first."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos ü"
    root.mkdir()
    for number, (height, width) in enumerate(SIZES):
        darkest = 1 + 50 * number  # so that no two images look alike when small
        pixels = rng.integers(darkest, darkest + 50, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "9.png").write_bytes((root / "0.png").read_bytes())
    image_ids = sorted(path.name for path in root.iterdir())
    return root, image_ids, [hashlib.sha256((root / n).read_bytes()).hexdigest() for n in image_ids]


def read_and_resize(path):
    return resize_image(read_image(path), (6, 4), "stretch")


def setup_with(rule=DEFAULT_RULE, threads=2):
    features = {**FEATURES, **{name: DeepFeature(BackboneSpec(name)) for name in PRETRAINED}}
    return Setup(features, rule, threads, seed=0)


def describe(names, images, rule=DEFAULT_RULE, threads=2, watcher=None):
    """Describe images by features that learn nothing, named by one word."""
    describer = fixed_describer(names.split(), setup_with(rule, threads))
    return describer.describe(ImageFiles(*images), watcher or Nobody())


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_rows_are_those_of_a_direct_computation(images, fit):
    root, image_ids, _ = images
    prepared = np.stack([resize_image(read_image(root / n), (128, 128), fit) for n in image_ids])
    expected = HistogramOfOrientedGradients(cell_pixels=16, soft=True).fit_transform(prepared)
    for _ in ("cold", "warm"):
        rows = describe("hog", images, DecodeRule(fit))
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected)


def test_features_stand_side_by_side_in_the_order_of_the_config(images, counting):
    hog = describe("hog", images)
    other = describe("counting", images)
    assert other[:, 1:].tolist() == [[6.0, 4.0]] * len(SIZES) + [[6.0, 4.0]]
    assert len(set(other[:, 0])) > 1
    for order, expected in {"hog counting": [hog, other], "counting hog": [other, hog]}.items():
        np.testing.assert_array_equal(describe(order, images), np.hstack(expected))


def test_rows_follow_the_order_of_the_images(images, counting):
    rows = describe("counting", images)
    root, image_ids, sha256s = images
    turned = describe("counting", (root, image_ids[::-1], sha256s[::-1]))
    np.testing.assert_array_equal(turned, rows[::-1])


@pytest.mark.parametrize("already", [[], [0], [2, 4], [1, 2, 3]])
def test_half_filled_cache_and_any_order_give_the_same_rows(images, counting, already):
    root, image_ids, sha256s = images
    first_values = [float(read_and_resize(root / name)[0, 0, 0]) for name in image_ids]
    assert len(set(first_values)) == len(SIZES)
    for order in (already, [3, 0, 5, 2, 1, 4]):
        if order:
            part = (root, [image_ids[n] for n in order], [sha256s[n] for n in order])
            rows = describe("counting", part)
            assert rows[:, 0].tolist() == [first_values[n] for n in order]


def test_descriptor_is_prepared_once_and_only_when_something_is_missing(images, monkeypatch):
    num_prepared = 0

    def prepare():
        nonlocal num_prepared
        num_prepared += 1
        return lambda paths: np.ones((len(paths), 1), np.float32)

    descriptor = stage.Descriptor("ones", 1, {"ones": 1}, prepare)
    monkeypatch.setattr(cache_module, "CHUNK_ROWS", 2)
    for _ in range(2):
        rows = Describer((descriptor,)).describe(ImageFiles(*images), Nobody())
        assert rows.tolist() == [[1.0]] * (len(SIZES) + 1)
        assert num_prepared == 1


def test_contender_that_looks_at_no_image(images):
    rows = describe("", images)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[0.0]] * (len(SIZES) + 1)


def test_second_call_computes_nothing(images, counting, monkeypatch):
    first = describe("counting", images)
    assert counting.num_images == len(SIZES)  # equal files are described once
    monkeypatch.setattr(stage, "load_sizes", lambda *_: pytest.fail("images are read again"))
    np.testing.assert_array_equal(describe("counting", images), first)
    # The number of threads does not decide the rows of a hand-crafted feature.
    np.testing.assert_array_equal(describe("counting", images, threads=1), first)
    assert counting.num_images == len(SIZES)


def test_everything_that_decides_a_row_is_in_its_key(images, counting, monkeypatch):
    def is_computed_anew():
        before = counting.num_images
        describe("counting", images, rule)
        return counting.num_images > before

    rule = DecodeRule()
    assert is_computed_anew()
    assert not is_computed_anew()
    for change in ({"fit": "pad"}, {"white_level": 4095}, {"dicom_window": (40.0, 400.0)}):
        rule = dataclasses.replace(rule, **change)
        assert is_computed_anew()
    # What only decides whether an image is decoded at all is not asked.
    rule = dataclasses.replace(rule, max_pixels=10**9)
    assert not is_computed_anew()
    monkeypatch.setattr(pixels_module, "DECODE_RULE", "another")
    assert is_computed_anew()
    monkeypatch.setitem(FEATURES, "counting", Feature("counting", (4, 6)))
    assert is_computed_anew()
    for change in ({"version": 2}, {"settings": {"cell_pixels": 8}}):
        monkeypatch.setitem(KINDS, "counting", dataclasses.replace(KINDS["counting"], **change))
        monkeypatch.setattr(FeatureKind, "load", lambda _: lambda **__: counting)
        assert is_computed_anew()
    versions = {"pillow": "1", "opencv": "4.1", "pydicom": "3", "pylibjpeg-openjpeg": "2"}
    monkeypatch.setattr(pixels_module, "reader_versions", versions.copy)
    monkeypatch.setattr(stage, "installed_builds", lambda: {"headless": versions["opencv"]})
    assert is_computed_anew()
    for package in versions:
        versions[package] = "4.2"
        assert is_computed_anew()
        assert not is_computed_anew()
    changed = (images[0], images[1], ["0" * 64, *images[2][1:]])
    before = counting.num_images
    describe("counting", changed, rule)
    assert counting.num_images == before + 1


def test_watcher_is_shown_each_feature(images, counting):
    seen = []

    class Watcher(Nobody):
        def track(self, items, total, title):
            seen.append((title, total))
            return items

    for _ in range(2):
        describe("hog counting", images, watcher=Watcher())
    assert seen == [("hog", 1), ("counting", 1), ("hog", 0), ("counting", 0)]


def test_hog_is_described_without_an_image(monkeypatch):
    monkeypatch.setattr(stage, "load_sizes", lambda *_: pytest.fail("images are read"))
    descriptor = build_descriptor("hog", setup_with(DecodeRule("pad")))
    assert descriptor.name == "hog"
    assert descriptor.row_size == 7 * 7 * 4 * 9
    assert descriptor.space["feature"] == FEATURES["hog"].identity
    assert descriptor.space["image_size"] == (128, 128)
    assert descriptor.space["fit"] == "pad"


def test_backbone_is_described_without_loading_it(monkeypatch):
    monkeypatch.setattr(stage, "load_deep", lambda *_: pytest.fail("the network is loaded"))
    descriptor = build_descriptor("efficientnet_lite0", setup_with(DecodeRule("crop"), 3))
    backbone = BACKBONES["efficientnet_lite0"]
    assert descriptor.row_size == backbone.num_features
    assert descriptor.space["image_size"] == backbone.image_size
    assert descriptor.space["fit"] == "crop"
    assert descriptor.space["weights"] == stage.weights_fingerprint("efficientnet_lite0")
    assert descriptor.space["backbone"] == "efficientnet_lite0"
    # What is known to decide the last bits of a network.
    assert descriptor.space["threads"] == 3
    assert descriptor.space["batch_size"] == stage.BATCH_SIZE
    assert descriptor.space["runtime"].startswith("tensorflow ")
    assert descriptor.space["precision"] == "float32"


@pytest.mark.parametrize("name", [n for n, f in FEATURES.items() if not f.learns])
def test_every_feature_is_computed_through_its_descriptor(name, images):
    root, image_ids, _ = images
    descriptor = build_descriptor(name, setup_with())
    rows = descriptor.prepare()([root / image_id for image_id in image_ids])
    assert rows.shape == (len(image_ids), descriptor.row_size)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(describe(name, images), rows)


# Facts of files.


def test_facts_of_files_are_read_through_the_cache(images, monkeypatch):
    root, image_ids, sha256s = images
    expected = describe_files([root / image_id for image_id in image_ids])
    assert expected[:, :2].tolist() == [[w, h] for h, w in [*SIZES, SIZES[0]]]
    num_read = 0

    def counting_describe(paths):
        nonlocal num_read
        num_read += len(paths)
        return describe_files(paths)

    facts = dataclasses.replace(FEATURES["file_facts"], build=lambda: counting_describe)
    monkeypatch.setitem(FEATURES, "file_facts", facts)
    monkeypatch.setattr(stage, "load_sizes", lambda *_: pytest.fail("pixels are decoded"))
    for _ in ("cold", "warm"):
        rows = describe("file_facts", images)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected)
        assert num_read == len(SIZES)  # equal files are read once, and none a second time
    # Nothing of how pixels are prepared decides the facts, so nothing is read again.
    describe("file_facts", images, DecodeRule("crop"), threads=1)
    assert num_read == len(SIZES)
    other = (root, image_ids, ["0" * 64, *sha256s[1:]])
    np.testing.assert_array_equal(describe("file_facts", other), expected)
    assert num_read == len(SIZES) + 1


def test_what_decides_the_facts_is_in_their_key(images, monkeypatch):
    def is_computed_anew():
        before = len(calls)
        describe("facts", images)
        return len(calls) > before

    calls = []

    def describe_paths(paths):
        calls.append(paths)
        return np.zeros((len(paths), 2), np.float32)

    feature = FileFeature("facts", 2, lambda: describe_paths, identity="facts-1")
    monkeypatch.setitem(FEATURES, "facts", feature)
    assert is_computed_anew()
    assert not is_computed_anew()
    other = dataclasses.replace(feature, identity="facts-2")
    monkeypatch.setitem(FEATURES, "facts", other)
    assert is_computed_anew()
    monkeypatch.setattr(stage.metadata, "version", lambda _: "1")  # Pillow reads the headers
    assert is_computed_anew()


# The frozen features of a network beside others.


@pytest.fixture
def tiny_network(monkeypatch):
    """The backbone's function replaced by one that takes the first pixel."""

    def embed(batch):
        assert batch.shape[1:] == (*BACKBONES["efficientnet_lite0"].image_size, 3)
        return np.repeat(batch[:, 0, 0, :1].astype(np.float32), 1280, axis=1)

    loaded = []
    monkeypatch.setattr(
        stage, "load_embed", lambda *arguments: (loaded.append(arguments), embed)[1]
    )
    return loaded


def test_a_backbone_among_the_features(images, tiny_network):
    hog = describe("hog", images)
    deep = describe("efficientnet_lite0", images)
    assert deep.shape == (len(SIZES) + 1, 1280)
    assert len(np.unique(deep)) == len(SIZES)
    rows = describe("hog efficientnet_lite0", images)
    np.testing.assert_array_equal(rows, np.hstack([hog, deep]))
    turned = describe("efficientnet_lite0 hog", images)
    np.testing.assert_array_equal(turned, np.hstack([deep, hog]))
    # The network that is a contender and the one among features share their rows.
    feature = DeepFeature(BackboneSpec("efficientnet_lite0"))
    assert tiny_network == [(feature, 2, "tensorflow", "float32")]


# Several views of an image.

# What is cut from images of a feature that takes 6 x 4 pixels, by hand: the size that is loaded,
# and where a view begins in it. 6 * 8 / 7 = 6.9, 4 * 8 / 7 = 4.6; 6 * 9 / 7 = 7.7, 4 * 9 / 7 = 5.1.
WHOLE = ((6, 4), (0, 0))
CENTRE = ((7, 5), (0, 0))
CROPS = [((7, 5), (0, 0)), ((7, 5), (0, 1)), ((7, 5), (1, 0)), ((7, 5), (1, 1)), CENTRE]
PLACES = {
    "single": [WHOLE],
    "flip": [WHOLE],
    "centre": [CENTRE],
    "five_crop": CROPS,
    "ten_crop": CROPS,
    "multi_scale": [WHOLE, CENTRE, ((8, 6), (1, 1))],
}


def plain_pixels(path, view, fit):
    """Fetch the pixels of every view, one after the other."""
    views = []
    for size, (top, left) in PLACES[view]:
        image = resize_image(read_image(path), size, fit)
        views.append(image[top : top + 6, left : left + 4])
    if view in ("flip", "ten_crop"):
        views += [np.flip(cut, axis=1) for cut in views]
    return np.stack(views)


@pytest.fixture
def pixels(monkeypatch):
    """A feature that is the pixels of an image, and the number of images it was shown."""
    feature = Pixels()
    monkeypatch.setattr(FeatureKind, "load", lambda kind: kind_classes(kind, feature))
    monkeypatch.setitem(KINDS, "pixels", FeatureKind("three numbers", ("x", "X"), (6, 4)))
    monkeypatch.setitem(FEATURES, "pixels", Feature("pixels", (6, 4)))
    return feature


class Pixels(Counting):
    n_features_out_ = 6 * 4 * 3

    def transform(self, images):
        self.num_images += len(images)
        return images.reshape(len(images), -1).astype(np.float32)


def describe_view(names, images, view, rule=DEFAULT_RULE):
    setup = dataclasses.replace(setup_with(rule), view=view)
    return fixed_describer(names.split(), setup).describe(ImageFiles(*images), Nobody())


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("view", PLACES)
def test_views_are_those_of_a_plain_loop_pixel_for_pixel(view, fit, images, pixels, monkeypatch):
    root, image_ids, _ = images
    decoded = []

    def recording(path, rule):
        decoded.append(path.name)
        return read_image(path, rule)

    monkeypatch.setattr(threads_module, "read_image", recording)
    rows = describe_view("pixels", images, view, DecodeRule(fit))
    assert sorted(decoded) == [f"{number}.png" for number in range(len(SIZES))]  # each file once
    decoded.clear()
    expected = [plain_pixels(root / name, view, fit).ravel() for name in image_ids]
    np.testing.assert_array_equal(rows, np.array(expected, dtype=np.float32))
    np.testing.assert_array_equal(describe_view("pixels", images, view, DecodeRule(fit)), rows)
    assert decoded == []
    assert pixels.num_images == len(SIZES) * len(plain_pixels(root / image_ids[0], view, fit))


def test_every_view_has_rows_of_its_own_and_single_those_of_before(images, pixels):
    spaces = {
        view: build_descriptor("pixels", dataclasses.replace(setup_with(), view=view)).space
        for view in PLACES
    }
    assert len({cache_module.space_folder(space, images[0]) for space in spaces.values()}) == len(
        PLACES
    )
    assert "view" not in spaces["single"]
    assert set(spaces["single"]) == {
        *("feature", "opencv", "numpy", "scipy", "scikit-learn"),
        *pixels_module.image_space((6, 4), DEFAULT_RULE),
    }


@pytest.mark.parametrize("view", PLACES)
def test_features_stand_side_by_side_in_each_view(view, images, pixels):
    """The facts of a file are the same in all of them."""
    alone = describe_view("pixels", images, view).reshape(len(images[1]), -1, 72)
    facts = describe("file_facts", images)
    for names, order in {"pixels file_facts": 1, "file_facts pixels": -1}.items():
        rows = describe_view(names, images, view).reshape(len(images[1]), alone.shape[1], -1)
        for number in range(alone.shape[1]):
            expected = np.hstack([alone[:, number], facts][::order])
            np.testing.assert_array_equal(rows[:, number], expected)


@pytest.mark.parametrize("view", PLACES)
def test_scales_are_those_of_the_fit(view, images, pixels):
    files = ImageFiles(*images)
    fitted = learn_describer(["pixels", "hog"], setup_with(), files, Nobody())
    seen = under(fitted, dataclasses.replace(setup_with(), view=view))
    assert seen.scales == fitted.scales
    rows = seen.describe(files, Nobody()).reshape(len(images[1]), -1, 72 + 1764)
    plain = describe_view("pixels hog", images, view).reshape(rows.shape)
    scales = np.repeat(np.float32(fitted.scales), [72, 1764])
    np.testing.assert_array_equal(rows, plain * scales)
    # As a stored contender reads new files, past the cache.
    paths = files.paths
    np.testing.assert_array_equal(seen.prepare()(paths).reshape(rows.shape), rows)


@pytest.mark.parametrize("view", PLACES)
def test_views_of_a_network_and_what_it_learned(view, images, tiny_network):
    """Rows of 1,280 equal numbers: the first pixel of each view."""
    root, image_ids, _ = images
    rows = describe_view("efficientnet_lite0", images, view)
    number = len(plain_pixels(root / image_ids[0], view, "stretch"))
    assert rows.shape == (len(image_ids), number * 1280)
    first = rows.reshape(len(image_ids), number, 1280)[..., 0]
    whole = resize_image(read_image(root / image_ids[1]), (224, 224), "stretch")
    if view in ("single", "flip", "multi_scale"):
        assert first[1, 0] == whole[0, 0, 0]
    if view == "flip":
        assert first[1, 1] == whole[0, -1, 0]
    if view == "ten_crop":
        large = resize_image(read_image(root / image_ids[1]), (256, 256), "stretch")[..., 0]
        corners = [large[0, 0], large[0, 32], large[32, 0], large[32, 32], large[16, 16]]
        mirrored = [large[0, 223], large[0, 255], large[32, 223], large[32, 255], large[16, 239]]
        assert first[1].tolist() == [*corners, *mirrored]


@pytest.mark.parametrize(("view", "sizes"), [("ten_crop", [20, 20, 20]), ("flip", [4, 4, 4])])
def test_views_fill_batches_of_a_network(view, sizes, images, monkeypatch):
    root, image_ids, _ = images
    monkeypatch.setattr(stage, "BATCH_SIZE", 4)
    seen = []

    def first_values(batch):
        seen.append(len(batch))
        return batch[:, 0, 0, :1].astype(np.float32)

    from_images(first_values, (6, 4), DEFAULT_RULE, 2, view)([root / i for i in image_ids])
    assert seen == sizes


def test_paths_are_loaded_in_order_and_in_batches(images, monkeypatch):
    root, image_ids, _ = images
    monkeypatch.setattr(stage, "BATCH_SIZE", 4)
    seen = []

    def first_values(batch):
        seen.append(len(batch))
        return batch[:, 0, 0, :1].astype(np.float32)

    paths = [root / image_id for image_id in image_ids]
    rows = from_images(first_values, (6, 4), DEFAULT_RULE, 2)(paths)
    assert seen == [4, 2]
    assert rows[:, 0].tolist() == [float(read_and_resize(path)[0, 0, 0]) for path in paths]


# A stored contender reads new files as those of train were read.


def store_contender(path, images, *features, rule=DEFAULT_RULE):
    """Store a run with one fitted contender; return its features and estimator, too."""
    values = {"name": "c", "features": list(features), "classifier": "nearest_neighbours"}
    config = validate_config(
        {
            "name": "a",
            "data": {"root": "x"},
            "images": {
                "fit": rule.fit,
                "white_level": rule.white_level,
                "dicom_window": rule.dicom_window,
            },
            "contender": [values],
            "threads": 2,
        }
    )
    run = Run(path)
    write_json(run.config_path, config.model_dump(mode="json"))
    write_json(run.classes_path, ["0", "NA"])
    describer = learn_describer(features, setup_of(config), ImageFiles(*images), Nobody())
    store_describer(run.part_path("c"), describer, setup_of(config))
    rows = describer.describe(ImageFiles(*images), Nobody())
    targets = np.arange(len(rows)) % 2
    estimator = fit_at(
        "nearest_neighbours", {"k": 3.0}, rows, targets, images[1], "fine", 0, threads=1
    )
    part = run.part_path("c")
    store_estimator(part / "model.skops", estimator)
    write_json(part / "fit.json", {"model": "model.skops"})
    write_json(run.choice_path, {"chosen": "c"})
    return run, rows, estimator


@pytest.mark.parametrize(
    "features", [["file_facts"], ["counting", "file_facts"], ["file_facts", "efficientnet_lite0"]]
)
def test_new_files_are_described_as_in_training(features, tmp_path, images, counting, tiny_network):
    root, image_ids, _ = images
    run, rows, estimator = store_contender(
        tmp_path / "run", images, *features, rule=DecodeRule("crop", 4095)
    )
    classifier = load_contender(run, "c")
    paths = [root / image_id for image_id in image_ids]
    np.testing.assert_array_equal(classifier.describe(paths), rows)
    predictions = load(run.path).predict_proba(paths)
    assert predictions["image_id"].tolist() == [str(path) for path in paths]
    shown = predictions[["p_0", "p_NA"]].to_numpy()
    np.testing.assert_array_equal(shown, estimator.predict_proba(rows))
    assert len(np.unique(shown, axis=0)) > 1


def test_new_files_become_pixels_as_in_training(tmp_path, counting):
    root = tmp_path / "deep"
    root.mkdir()
    for number in range(4):
        Image.fromarray(np.full((5, 7), 500 * number + 300, np.uint16)).save(root / f"{number}.png")
    (root / "4.dcm").write_bytes(dicom_of(np.full((5, 7), 900, np.uint16)))
    names = sorted(path.name for path in root.iterdir())
    images = (root, names, [str(number) * 64 for number in range(5)])
    rule = DecodeRule("stretch", 4095, (1000.0, 2001.0))
    run, rows, _ = store_contender(tmp_path / "run", images, "counting", rule=rule)
    # 300 * 255 / 4095 = 18.7, and so on; (900 - 999.5) / 2000 + 0.5 is 0.45 of white.
    assert rows[:, 0].tolist() == [19, 50, 81, 112, 115]
    paths = [root / name for name in names]
    np.testing.assert_array_equal(load_contender(run, "c").describe(paths), rows)
    # More pixels than are allowed.
    config = run.config()
    few = config.model_copy(update={"data": config.data.model_copy(update={"max_pixels": 34})})
    write_json(run.config_path, few.model_dump(mode="json"))
    with pytest.raises(InputError, match=r"7 x 5 = 35 pixels, more than data\.max_pixels = 34"):
        load_contender(run, "c").describe([root / names[0]])


def test_a_bundle_says_how_files_become_pixels(tmp_path):
    rule = DecodeRule("crop", 4095, (40.0, 400.5), 10**9)
    stated = {"dtype": "uint8", "decode_rule": "rgb-3", **dataclasses.asdict(rule)}
    write_json(tmp_path / "bundle.json", {"input": stated})
    assert bundle_rule(read_json(tmp_path / "bundle.json")) == rule
    # A bundle that was written when there was nothing to choose but `fit`.
    assert bundle_rule({"input": {"fit": "pad"}}) == DecodeRule("pad")


def test_a_bundle_of_another_rule_is_refused():
    message = (
        "the bundle was made for images decoded by the rule 'rgb-99', but this version of cvpipe "
        "has the rule 'rgb-3'; export it again with this version, or use the version that "
        "exported it."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        bundle_rule({"input": {"decode_rule": "rgb-99", "fit": "pad"}})
    with pytest.raises(InputError, match=r"by 'strech', which is none of \['stretch', 'pad'"):
        bundle_rule({"input": {"fit": "strech"}})


def test_network_is_run_once(images, monkeypatch):
    rows = describe("efficientnet_lite0", images)
    assert rows.dtype == np.float32
    root, image_ids, _ = images
    size = BACKBONES["efficientnet_lite0"].image_size
    prepared = np.stack([resize_image(read_image(root / n), size, "stretch") for n in image_ids])
    network = build_backbone("efficientnet_lite0")
    np.testing.assert_array_equal(rows, build_embed(fold_norms(network))(prepared))
    np.testing.assert_allclose(rows, build_embed(network)(prepared), rtol=0, atol=1e-4)
    monkeypatch.setattr(stage, "load_embed", lambda *_: pytest.fail("the network is loaded"))
    monkeypatch.setattr(stage, "load_sizes", lambda *_: pytest.fail("images are read again"))
    np.testing.assert_array_equal(describe("efficientnet_lite0", images), rows)
