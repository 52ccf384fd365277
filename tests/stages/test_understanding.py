"""What a run stores and shows of how its contenders see the images."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe.config import validate_config
from cvpipe.data.images import read_image, resize_image
from cvpipe.features.bag_of_words import BagOfWords, example_patches
from cvpipe.files import read_json, write_json, write_table
from cvpipe.models.backbones import BACKBONES
from cvpipe.plots.distance import TOLERANCE, l2_distance
from cvpipe.runs import Run
from cvpipe.stages import understanding as stage
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import rebuild_report
from cvpipe.stages.stored_models import load_estimator

SIZE = (12, 16)
PIPELINE = """
threads = 2
seed = 3
[data]
root = "images"
[split]
careless = false
[evaluate]
resamples = 100
learning_curve = false

[[feature]]
name = "pixels"
kind = "raw_pixels"
image_size = [12, 16]
[[feature]]
name = "edges"
kind = "hog"
image_size = [24, 32]
settings = {cell_pixels = 6}
[[feature]]
name = "words"
kind = "kmeans_features"
image_size = [12, 16]
settings = {num_words = 5, patch_pixels = 4, stride_pixels = 2, num_samples = 500}

[[contender]]
name = "knn"
features = ["pixels"]
classifier = "nearest_neighbours"
search = "coarse"
[[contender]]
name = "softmax"
features = ["pixels"]
classifier = "softmax"
search = "coarse"
[[contender]]
name = "svm"
features = ["pixels"]
classifier = "linear_svm"
search = "coarse"
[[contender]]
name = "both"
features = ["pixels", "edges"]
classifier = "linear_svm"
search = "coarse"
[[contender]]
name = "words"
features = ["words"]
classifier = "nearest_mean"
search = "coarse"
"""
CLASSES = ["<b>", "NA", "cat"]


def write_images(root):
    """Write images of three classes that differ in colour and in the direction of an edge."""
    rng = np.random.default_rng(0)
    for code, label in enumerate(CLASSES):
        (root / label).mkdir(parents=True)
        for number in range(14):
            image = rng.integers(0, 60, (48, 64, 3))
            image[..., code] += 120
            turned = image[:24] if code else image[:, :32]
            turned += 60
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{number:02}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that lacks its pages alone, and its folder of images; not to be changed."""
    folder = tmp_path_factory.mktemp("understanding")
    write_images(folder / "images")
    (folder / "p.toml").write_text(PIPELINE)
    with pytest.MonkeyPatch.context() as patch:
        # Drawing their figures takes longer than all the rest.
        patch.setattr("cvpipe.stages.run.run_report", lambda _: None)
        patch.setattr("cvpipe.stages.audit.write_audit_page", lambda *_: None)
        run = cvpipe.run(folder / "p.toml", runs_path=folder / "runs")
    return run, folder / "images"


@pytest.fixture
def copied(made, tmp_path):
    """The same, to be changed."""
    run, root = made
    shutil.copytree(run.path, tmp_path / "runs" / run.path.name)
    return Run(tmp_path / "runs" / run.path.name), root


@pytest.fixture(scope="module")
def shown(made):
    run, root = made
    return stage.collect_understanding(run, root, run.manifest())


def train_of(run):
    manifest = run.manifest()
    return manifest[manifest["split"] == "train"].reset_index(drop=True)


def pixels_of(root, image_ids, size=SIZE):
    return np.stack([resize_image(read_image(root / name), size, "stretch") for name in image_ids])


def test_stored_neighbours_are_those_of_plain_loops(made):
    run, root = made
    table, train = run.neighbours(), train_of(run)
    assert tuple(table) == stage.NEIGHBOUR_COLUMNS
    pixels = table[table["space"] == "pixels"]
    rows = pixels_of(root, train["image_id"]) / np.float32(255)
    for image_id, found in pixels.groupby("image_id"):
        (query,) = pixels_of(root, [image_id]) / np.float32(255)
        distances = [
            (np.sqrt(((row.astype(float) - query.astype(float)) ** 2).sum()), number)
            for number, row in enumerate(rows)
        ]
        nearest = sorted(distances)[: stage.NUM_NEIGHBOURS]
        assert found["rank"].tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_allclose(found["distance"], [d for d, _ in nearest], rtol=1e-12)
        expected = train.iloc[[number for _, number in nearest]]
        assert found["train_image_id"].tolist() == expected["image_id"].tolist()
        assert found["train_label"].tolist() == expected["label"].tolist()


def test_looked_up_are_test_images_of_all_classes_in_turn(made):
    run, _ = made
    table, manifest = run.neighbours(), run.manifest().set_index("image_id")
    looked_up = table.drop_duplicates("image_id")
    assert set(manifest.loc[looked_up["image_id"], "split"]) == {"test"}
    assert set(manifest.loc[table["train_image_id"], "split"]) == {"train"}
    assert looked_up["label"].tolist() == CLASSES * 2
    assert looked_up["label"].tolist() == manifest.loc[looked_up["image_id"], "label"].tolist()
    assert table["space"].unique().tolist() == ["pixels", "edges"]
    assert len(table) == 2 * 6 * stage.NUM_NEIGHBOURS


@pytest.mark.parametrize("block_bytes", [1, 8 * 576 * 5 + 1, 10**9])
@pytest.mark.parametrize("num_train", [3, 17])
def test_blocks_change_nothing_and_ties_go_to_the_first(made, monkeypatch, block_bytes, num_train):
    run, root = made
    job = Job(run.config(), root, run, Nobody())
    train = train_of(run).head(num_train)
    # Every image twice: equal distances everywhere.
    train = pd.concat([train, train], ignore_index=True)
    train["image_id"] = train["image_id"].astype(str)
    descriptor = stage.build_descriptor("pixels", stage.setup_of(run.config()))
    queries = pixels_of(root, train["image_id"].head(2)).reshape(2, -1) / np.float32(255)
    monkeypatch.setattr(stage, "BLOCK_BYTES", block_bytes)
    positions, distances = stage.nearest_rows(job, descriptor, train, queries)
    number = min(stage.NUM_NEIGHBOURS, 2 * num_train)
    assert positions.shape == distances.shape == (2, number)
    assert (distances[:, :2] == 0).all()
    assert positions[:, :2].tolist() == [[0, num_train], [1, num_train + 1]]
    assert (np.diff(distances, axis=1) >= 0).all()
    pairs = positions[:, 2:4]
    assert (pairs[:, 1] - pairs[:, 0] == num_train).all()


def test_what_is_stored_is_kept_and_nothing_is_computed_again(copied, monkeypatch):
    run, root = copied
    before = run.neighbours_path.read_bytes()
    monkeypatch.setattr(stage, "nearest_rows", None)
    stage.run_neighbours(Job(run.config(), root, run, Nobody()))
    assert run.neighbours_path.read_bytes() == before


def config_of(*contenders, **values):
    raw = {"name": "a", "data": {"root": "x"}, "threads": 2, "contender": list(contenders)}
    return validate_config({**raw, **values})


def classic(name, *features, classifier="linear_svm"):
    return {"name": name, "features": list(features), "classifier": classifier}


def test_spaces_are_the_first_of_each_kind_in_one_order():
    backbone = next(iter(BACKBONES))
    probe = {"name": "probe", "backbone": backbone, "recipe": "linear_probe"}
    other = {"name": "tiny", "kind": "raw_pixels", "image_size": [4, 4]}
    config = config_of(
        probe,
        classic("a", "colour_histogram"),
        classic("b", "hog", "tiny"),
        classic("c", "raw_pixels"),
        feature=[other],
    )
    assert stage.neighbour_spaces(config) == ["tiny", "hog", backbone]
    assert stage.neighbour_spaces(config_of(classic("a", "colour_histogram"))) == []
    assert stage.neighbour_spaces(config_of(classic("a", backbone))) == [backbone]


def test_without_such_contenders_nothing_is_stored(tmp_path):
    config = config_of(classic("a", "colour_histogram"))
    stage.run_neighbours(Job(config, tmp_path, Run(tmp_path), Nobody()))
    assert not list(tmp_path.iterdir())


def test_neighbour_grids_show_table_and_pictures(made, shown):
    run, root = made
    table = run.neighbours()
    assert [grid.image_id for grid in shown.neighbours] == table["image_id"].unique().tolist()
    for grid in shown.neighbours:
        assert [row.space for row in grid.rows] == ["pixels", "HOG"]
        (expected,) = pixels_of(root, [grid.image_id], (64, 64))
        np.testing.assert_array_equal(grid.picture, expected)
        for row, space in zip(grid.rows, ("pixels", "edges"), strict=True):
            found = table[(table["image_id"] == grid.image_id) & (table["space"] == space)]
            assert list(row.labels) == found["train_label"].tolist()
            assert list(row.right) == (found["train_label"] == grid.label).tolist()
            assert row.num_right == sum(found["train_label"] == grid.label)
            first = pixels_of(root, found["train_image_id"].head(1), (64, 64))[0]
            np.testing.assert_array_equal(row.strip[20:67, 20:67], first[17:64, 17:64])


def test_spaces_in_words(made):
    known = stage.known_features(made[0].config())
    words = [stage.space_in_words(name, known) for name in ("pixels", "edges", "any_backbone")]
    assert words == ["pixels", "HOG", "features of any_backbone"]


def test_equal_distances_are_of_the_pixels_that_neighbours_are_looked_up_by(made, shown):
    run, root = made
    equal = shown.equal_distances
    assert equal.contenders == ["knn"]
    assert equal.image_size == SIZE
    image, *versions = [part.picture for part in equal.pictures]
    candidates = pixels_of(root, stage.sample_ids(train_of(run), stage.TRIED_FOR_DISTANCE))
    assert any((image == candidate).all() for candidate in candidates)
    assert [part.caption for part in equal.pictures][:2] == ["the image", "shifted"]
    for version in versions:
        assert l2_distance(image, version) == pytest.approx(equal.distance, rel=2 * TOLERANCE)


@pytest.mark.parametrize(
    ("contender", "feature"),
    [
        ({"classifier": "rbf_svm"}, {}),
        ({"classifier": "nearest_neighbours_l1"}, {}),
        ({"classifier": "nearest_neighbours_cosine"}, {}),
        ({"features": ["pixels", "hog"]}, {}),
        ({}, {"settings": {"normalise": "unit"}}),
        ({}, {"settings": {"colour": "grey"}}),
    ],
)
def test_other_distances_than_of_colours_have_no_such_figure(contender, feature, copied):
    run, root = copied
    assert stage.collect_equal_distances(run, root, train_of(run)).contenders == ["knn"]
    config = read_json(run.config_path)
    config["contender"][0].update(contender)
    config["feature"][0].update(feature)
    write_json(run.config_path, config)
    assert stage.collect_equal_distances(run, root, train_of(run)) is None


def test_glyphs_are_of_one_training_image_per_class(made, shown):
    run, root = made
    glyphs = shown.glyphs
    assert glyphs.contenders == ["both"]
    assert "24x32" in glyphs.feature
    assert [label for label, _, _ in glyphs.pairs] == CLASSES
    assert glyphs.num_classes == 3
    train = train_of(run)
    for label, photo, stars in glyphs.pairs:
        of_class = pixels_of(root, train["image_id"][train["label"] == label], (24, 32))
        assert any((photo == candidate).all() for candidate in of_class)
        # 4 x 5 cells of 38 pixels: 192 for the longer side.
        assert stars.shape == (4 * 38, 5 * 38, 3)
        assert stars.max() == 255
        assert (stars == stars[..., :1]).all()


def test_a_codebook_is_what_was_stored_with_the_model(made, shown):
    run, _ = made
    (book,) = shown.codebooks
    assert book.contenders == ["words"]
    assert (book.num_words, book.num_shown, book.per_word) == (5, 5, 0)
    learned = load_estimator(run.part_path("words") / "model.words.skops")
    times = round(stage.TILE_PIXELS / 4)
    for number, tile in enumerate(learned.word_tiles()):
        left = number * (4 * times + 1)
        shown_tile = book.sheet[:, left : left + 4 * times]
        np.testing.assert_array_equal(shown_tile, np.kron(tile, np.ones((times, times, 1))))


def test_words_that_are_no_pictures_are_shown_by_patches():
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    bag = BagOfWords(num_words=6, num_samples=200).fit(images)
    book = stage.exemplify(bag, images, "a bag", ["svm"])
    assert (book.feature, book.contenders, book.num_words) == ("a bag", ["svm"], 6)
    assert book.per_word == stage.PATCHES_PER_WORD
    assert 1 <= book.num_shown <= 6
    one = stage.PATCHES_PER_WORD * (stage.PATCH_PIXELS + 1) - 1
    across = min(book.num_shown, stage.PATCH_COLUMNS)
    assert book.sheet.shape[1] == across * (one + stage.PATCH_GAP) - stage.PATCH_GAP


def test_words_with_few_patches_are_not_shown_where_others_have_more():
    images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), dtype=np.uint8)
    bag = BagOfWords(num_words=12, num_samples=200).fit(images)
    examples = example_patches(bag, images[:1], stage.PATCHES_PER_WORD)
    found = [sum(patch.any() for patch in word) for word in examples]
    assert len(set(found)) > 1
    book = stage.exemplify(bag, images[:1], "a bag", ["svm"])
    assert book.num_shown == found.count(max(found)) < book.num_words == 12


def test_some_are_taken_evenly():
    rows = np.arange(10)
    assert stage.some_of(rows, 4).tolist() == [0, 3, 6, 9]
    assert stage.some_of(rows, 99).tolist() == rows.tolist()
    assert stage.some_of(rows, 1).tolist() == [0]


def test_templates_are_of_contenders_that_read_pixels_alone(made, shown):
    assert [part.contender for part in shown.templates] == ["softmax", "svm"]
    for part in shown.templates:
        assert [template.caption for template in part.templates] == CLASSES
        assert part.num_classes == 3
        for code, template in enumerate(part.templates):
            assert template.picture.shape == (*SIZE, 3)
            # A class is told by its colour.
            assert np.argmax(template.picture.mean(axis=(0, 1))) == code


@pytest.mark.parametrize("name", ["softmax", "svm"])
def test_a_kernel_gives_the_scores_of_the_classifier(made, name):
    run, root = made
    estimator = load_estimator(run.part_path(name) / "model.skops")
    rows = pixels_of(root, run.manifest()["image_id"]).reshape(-1, 12 * 16 * 3) / np.float32(255)
    inner = estimator.calibrated_classifiers_[0].estimator if name == "svm" else estimator
    scores = inner.decision_function(rows)
    ours = rows @ stage.kernel_of(estimator)
    # But for a constant of each class.
    np.testing.assert_allclose(ours - ours[0], scores - scores[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["softmax", "softmax_l1", "softmax_elastic_net", "linear_svm", "linear_svm_hinge"]
)
def test_of_two_classes_there_is_one_column_for_the_second(name):
    from cvpipe.classifiers.search import fit_classifier

    rng = np.random.default_rng(0)
    targets = np.arange(30) % 2
    rows = rng.normal(size=(30, 4)).astype(np.float32)
    rows[:, 2] += 3 * targets
    fitted = fit_classifier(name, rows, targets, [str(n) for n in range(30)], "coarse", 0, 1)
    kernel = stage.kernel_of(fitted.estimator)
    assert kernel.shape == (4, 1)
    assert np.argmax(np.abs(kernel)) == 2
    assert kernel[2, 0] > 0
    probabilities = fitted.estimator.predict_proba(rows)[:, 1]
    np.testing.assert_array_equal(np.argsort(rows @ kernel[:, 0]), np.argsort(probabilities))


def test_searches_are_read_in_the_unit_of_their_metric(made, shown):
    run, _ = made
    searches = {search.contender: search for search in shown.searches}
    assert list(searches) == ["knn", "softmax", "svm", "both", "words"]
    assert searches["knn"].metric == "accuracy"
    assert list(searches["knn"].chosen) == ["k", "vote"]  # the numbers run along the axis
    assert searches["softmax"].metric == "log_loss"
    table, stored = searches["softmax"].table, run.search("softmax")
    np.testing.assert_array_equal(table["mean"], -stored["mean"])
    assert (table["mean"] > 0).all()
    chosen = table[table["C"] == searches["softmax"].chosen["C"]]
    assert chosen["mean"].item() == table["mean"].min()
    assert searches["words"].chosen.keys() == {"metric"}
    assert {search.num_folds for search in shown.searches} == {3}


def test_a_search_of_an_older_run_is_read(copied):
    run, _ = copied
    table = pd.DataFrame({"value": [0.1, 1.0], "mean": [0.5, 0.75], "std": 0.1, "folds": 3})
    write_table(run.search_path("svm"), table)
    fit = read_json(run.part_path("svm") / "fit.json")
    write_json(run.part_path("svm") / "fit.json", {**fit, "chosen": {"C": 1.0}})
    (search,) = [s for s in stage.collect_searches(run) if s.contender == "svm"]
    assert search.table["C"].tolist() == [0.1, 1.0]
    assert dict(search.chosen) == {"C": 1.0}


def test_contenders_without_a_choice_have_no_search(copied):
    run, _ = copied
    run.search_path("knn").unlink()
    write_table(run.search_path("svm"), run.search("svm").head(1))
    write_table(run.search_path("softmax"), run.search("softmax").head(0))
    assert [s.contender for s in stage.collect_searches(run)] == ["both", "words"]


def test_the_page_is_rebuilt_from_table_and_images(copied):
    run, root = copied
    run.report_path.write_text("what marks a finished run")
    run.search_path("svm").unlink()  # one figure less to draw
    rebuild_report(run, root)
    page = run.report_path.read_text("utf-8")
    for title in ("The nearest training images", "Visual words", "What a linear classifier looks"):
        assert title in page
    assert "&lt;b&gt;" in page
    assert "<b>/" not in page


def test_what_older_runs_lack_is_not_shown(copied):
    run, root = copied
    run.neighbours_path.unlink()
    for path in run.path.glob("contenders/*/holdout/model*.skops"):
        path.unlink()
    for path in run.path.glob("contenders/*/holdout/search.csv"):
        path.unlink()
    shown = stage.collect_understanding(run, root, run.manifest())
    assert shown.glyphs
    assert shown.equal_distances
    for part in (shown.neighbours, shown.codebooks, shown.templates, shown.searches):
        assert not part
    assert run.neighbours().empty
    assert tuple(run.neighbours()) == stage.NEIGHBOUR_COLUMNS


def test_a_run_of_other_contenders_shows_nothing(copied):
    run, root = copied
    other = config_of(classic("majority", classifier="majority"))
    write_json(run.config_path, other.model_dump(mode="json"))
    run.neighbours_path.unlink()
    write_json(run.part_path("majority") / "fit.json", {"chosen": {}})
    assert not stage.collect_understanding(run, root, run.manifest())
