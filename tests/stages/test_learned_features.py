"""Features that learn from train images: from train alone, once, and stored with the model."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.preprocessing import StandardScaler

from cvpipe.config import validate_config
from cvpipe.data.audit import hash_file
from cvpipe.data.images import read_image, resize_image
from cvpipe.errors import InputError
from cvpipe.features.table import KINDS
from cvpipe.files import read_json, write_json
from cvpipe.frames import predicted_labels
from cvpipe.runs import Run, open_run
from cvpipe.stages import features as stage
from cvpipe.stages.contenders import fit_contender, predict_split, stored_describer
from cvpipe.stages.features import (
    ImageFiles,
    files_of,
    fixed_describer,
    learn_describer,
    load_describer,
    setup_of,
    state_fingerprint,
    store_describer,
)
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.predict import load
from cvpipe.stages.recipes import known_features, names_to_learn
from cvpipe.stages.stored_models import store_estimator
from cvpipe.stages.suspects import HANDCRAFTED, source_of
from tests.conftest import run_cvpipe

WORDS = {
    "name": "words",
    "kind": "kmeans_features",
    "image_size": [24, 20],
    "settings": {"num_words": 6, "patch_pixels": 4, "stride_pixels": 2, "num_samples": 1_000},
}
GLANCE = {"name": "glance", "kind": "raw_pixels", "image_size": [4, 5]}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is known of earlier tests."""
    monkeypatch.setenv("CVPIPE_CACHE_DIR", str(tmp_path / "cache"))
    stage._fit.cache_clear()


def config_of(*features, classifier="nearest_neighbours", **values):
    contender = {"name": "c", "features": list(features), "classifier": classifier}
    contender["search"] = "coarse"
    raw = {"name": "a", "data": {"root": "x"}, "contender": [contender], "threads": 2}
    return validate_config({**raw, "feature": [WORDS, GLANCE], **values})


@pytest.fixture
def files(tmp_path):
    """Sixteen images of two classes that differ in their texture."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    for number in range(16):
        coarse = rng.integers(0, 256, (6, 5) if number % 2 else (48, 40), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 48), Image.Resampling.NEAREST).save(
            root / f"{number:02}.png"
        )
    ids = sorted(path.name for path in root.iterdir())
    return ImageFiles(root, ids, [hash_file(root / name) for name in ids])


def learn(config, files):
    names = names_to_learn(config.contender[0])
    return learn_describer(names, setup_of(config), files, Nobody())


def part_of(files, rows):
    return ImageFiles(
        files.root, [files.image_ids[row] for row in rows], [files.sha256s[row] for row in rows]
    )


def pixels_of(files, size=(24, 20)):
    return np.stack([resize_image(read_image(path), size, "stretch") for path in files.paths])


def test_rows_are_those_of_a_direct_computation(files):
    config = config_of("words")
    transformer = known_features(config)["words"].build(random_state=0)
    order = np.argsort([stage.hashlib.sha256(f"0 {s}".encode()).hexdigest() for s in files.sha256s])
    images = pixels_of(files)
    expected = transformer.fit(images[order]).transform(images)
    describer = learn(config, files)
    for _ in ("cold", "warm"):
        np.testing.assert_array_equal(describer.describe(files, Nobody()), expected)
    np.testing.assert_array_equal(describer.prepare()(files.paths), expected)


def test_only_the_images_that_are_handed_over_decide_what_is_learned(files):
    config = config_of("words")
    some, others = part_of(files, range(10)), part_of(files, range(10, 16))
    before = state_fingerprint(learn(config, some).descriptors[0].learned)
    for path in others.paths:
        path.write_bytes(b"poison")
    stage._fit.cache_clear()
    assert state_fingerprint(learn(config, some).descriptors[0].learned) == before
    # Their order does not matter, one image less does.
    turned = part_of(some, list(range(9, -1, -1)))
    assert state_fingerprint(learn(config, turned).descriptors[0].learned) == before
    fewer = part_of(files, range(9))
    assert state_fingerprint(learn(config, fewer).descriptors[0].learned) != before


def test_what_differs_in_learning_has_rows_of_its_own(files):
    rows = {}
    for seed in (0, 1):
        for number in (10, 16):
            describer = learn(config_of("words", seed=seed), part_of(files, range(number)))
            rows[seed, number] = describer.describe(files, Nobody())
            space = describer.descriptors[0].space
            assert space["learned"] == state_fingerprint(describer.descriptors[0].learned)
    values = list(rows.values())
    for number, one in enumerate(values):
        for other in values[number + 1 :]:
            assert not np.array_equal(one, other)


def test_contenders_share_what_is_learned(files, monkeypatch):
    one = learn(config_of("words"), files).descriptors[0].learned
    monkeypatch.setattr(stage, "load_batches", lambda *_: pytest.fail("images are read again"))
    assert learn(config_of("words", classifier="softmax"), files).descriptors[0].learned is one


def test_memory_bounds_the_number_of_images(files, monkeypatch):
    seen = []
    kind = known_features(config_of("words"))["words"].build()
    original = type(kind)._learn
    monkeypatch.setattr(
        type(kind),
        "_learn",
        lambda self, images: (seen.append(len(images)), original(self, images)),
    )
    monkeypatch.setattr(stage, "MAX_LEARNING_BYTES", 5 * 24 * 20 * 3 + 1)
    # They are the same ones when images go whose turn would not have come.
    keys = [stage.hashlib.sha256(f"0 {s}".encode()).hexdigest() for s in files.sha256s]
    first = part_of(files, sorted(np.argsort(keys)[:7].tolist()))
    one = learn(config_of("words"), first).descriptors[0].learned
    stage._fit.cache_clear()
    two = learn(config_of("words"), files).descriptors[0].learned
    assert seen == [5, 5]
    assert state_fingerprint(one) == state_fingerprint(two)


def test_stored_and_loaded(files, tmp_path):
    config, part = config_of("glance", "words"), tmp_path / "part"
    describer = learn(config, files)
    store_describer(part, describer, setup_of(config))
    assert sorted(p.name for p in part.iterdir()) == ["features.json", "model.words.skops"]
    loaded = load_describer(("glance", "words"), setup_of(config), part)
    expected = describer.describe(files, Nobody())
    np.testing.assert_array_equal(loaded.prepare()(files.paths), expected)
    np.testing.assert_array_equal(loaded.describe(files, Nobody()), expected)
    spaces = [[d.space for d in one.descriptors] for one in (describer, loaded)]
    assert spaces[0] == spaces[1]


def test_a_model_of_other_features_is_refused(files, tmp_path, monkeypatch):
    config, part = config_of("hog"), tmp_path / "part"
    setup = setup_of(config)
    store_describer(part, learn(config, files), setup)
    assert load_describer(["hog"], setup, part).descriptors[0].name == "hog"
    monkeypatch.setitem(KINDS, "hog", dataclasses.replace(KINDS["hog"], version=2))
    with pytest.raises(InputError, match="as another version of cvpipe computes them"):
        load_describer(["hog"], setup, part)
    monkeypatch.undo()
    (part / "features.json").unlink()
    with pytest.raises(InputError, match="make its run anew with --again"):
        load_describer(["hog"], setup, part)


def test_what_is_no_such_feature_is_refused(files, tmp_path):
    config, part = config_of("words"), tmp_path / "part"
    describer, setup = learn(config, files), setup_of(config)
    store_describer(part, describer, setup)
    others = clone(describer.descriptors[0].learned).set_params(num_words=5)
    for wrong in (StandardScaler().fit([[1.0]]), others):
        store_estimator(part / "model.words.skops", wrong)
        message = f"holds a {type(wrong).__name__} with other settings than k-means features"
        with pytest.raises(InputError, match=message):
            load_describer(["words"], setup, part)


def test_no_feature_outweighs_another_by_its_scale(files):
    config = config_of("glance", "words", "hog")
    rows = learn(config, files).describe(files, Nobody())
    lengths = [
        np.linalg.norm(block, axis=1).mean() for block in np.split(rows, [60, 60 + 4 * 6], axis=1)
    ]
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    # Within a feature nothing changes but the scale.
    alone = fixed_describer(["glance"], setup_of(config)).describe(files, Nobody())
    np.testing.assert_allclose(rows[:, :60] / rows[0, 0], alone / alone[0, 0], rtol=1e-5)
    # A single feature stays as it is, and one that says nothing does not become infinite.
    single = learn(config_of("glance"), files)
    assert single.scales == ()
    np.testing.assert_array_equal(single.describe(files, Nobody()), alone)


def test_a_feature_that_says_nothing_keeps_its_scale(files):
    for path in files.paths:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    black = ImageFiles(files.root, files.image_ids, [f"{n:064}" for n in range(16)])
    describer = learn(config_of("glance", "hog"), black)
    assert describer.scales == (1.0, 1.0)


def test_a_feature_that_learns_is_not_fixed(files):
    with pytest.raises(TypeError, match="'words'"):
        fixed_describer(["words"], setup_of(config_of("words")))


def test_what_is_no_array_cannot_be_told_apart():
    class Odd:
        def __init__(self):
            self.table_ = {"a": 1}

    with pytest.raises(TypeError, match="table_ of a learned feature must be an array"):
        state_fingerprint(Odd())


def test_suspects_are_searched_with_what_learns_nothing():
    assert source_of(config_of("words", "glance")) == ("glance",)
    assert source_of(config_of("words")) == HANDCRAFTED
    # The facts of files are no look at the pixels.
    assert source_of(config_of("words", "file_facts", classifier="softmax")) == HANDCRAFTED


# Names and settings in a pipeline file.


def message_of(**feature):
    with pytest.raises(InputError) as caught:
        known_features(config_of("hog", feature=[{"name": "mine", **feature}]))
    return str(caught.value)


def test_features_of_a_config():
    known = known_features(config_of("words"))
    assert known["glance"].image_size == (4, 5)
    assert known["glance"].title == "raw pixels at 4x5"
    assert known["words"].learns
    assert known["words"].settings["num_words"] == 6
    assert "num_words 6" in known["words"].title
    assert dict(known["words"].changed) == WORDS["settings"]
    # What is as usual need not be said.
    usual = dict(known["hog"].changed)
    same = known_features(
        config_of(
            "hog",
            feature=[{"name": "mine", "kind": "hog", "settings": usual | {"signed": False}}],
        )
    )
    assert same["mine"] == same["hog"]
    assert same["mine"].identity == same["hog"].identity


def test_mistakes_in_a_feature():
    assert message_of(kind="hogg") == "unknown kind of feature 'hogg'; did you mean 'hog'?"
    assert message_of(kind="hog", settings={"cell_pixel": 8}) == (
        "a feature of the kind 'hog' has no setting 'cell_pixel'; did you mean 'cell_pixels'?"
    )
    assert message_of(kind="hog", settings={"cell_pixels": "8"}).endswith("but is '8'.")
    assert message_of(kind="hog", settings={"cell_pixels": True}).startswith(
        "cell_pixels of a feature of the kind 'hog' must be a whole number, such as "
    )
    with pytest.raises(InputError, match="a \\[\\[feature\\]\\] is called 'hog', but that name is"):
        known_features(config_of("hog", feature=[{"name": "hog", "kind": "hog"}]))


# A whole run.


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Run:
    cwd = tmp_path_factory.mktemp("learned")
    (cwd / "photos").symlink_to(photos)
    (cwd / "p.toml").write_text(
        """
        threads = 2
        [data]
        root = "photos"
        [split]
        protocol = "kfold"
        num_folds = 2
        [[feature]]
        name = "words"
        kind = "kmeans_features"
        image_size = [32, 32]
        settings = {num_words = 12, stride_pixels = 2, colour = "colour"}
        [[contender]]
        name = "words_svm"
        features = ["words", "hog"]
        classifier = "linear_svm"
        search = "coarse"
        class_weights = "balanced"
        [evaluate]
        resamples = 100
        """
    )
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    answer = run_cvpipe("run", "p.toml", cwd=cwd, CVPIPE_CACHE_DIR=cache)
    assert answer.returncode == 0, answer.stderr
    return open_run(next((cwd / "runs").glob("p-*")))


def test_a_run_stores_what_was_learned_and_reads_new_images_with_it(run, photos):
    part = run.part_path("words_svm")
    assert (part / "model.words.skops").exists()
    test = run.predictions("test", "words_svm")
    predicted = load(run.path).predict_proba([photos / name for name in test["image_id"]])
    columns = [name for name in test if name.startswith("p_")]
    np.testing.assert_allclose(predicted[columns], test[columns], atol=1e-12)
    assert predicted_labels(test).tolist() == predicted_labels(predicted).tolist()
    # What folds learned is not kept: their predictions are what they are for.
    assert not list(run.path.glob("contenders/*/r0-*/*.skops"))


def test_the_report_names_the_feature(run):
    page = run.report_path.read_text()
    assert "num_words 12" in page
    assert "histogram of oriented gradients" in page


def test_a_poisoned_val_or_test_row_leaves_every_fitted_byte_equal(run, photos, tmp_path):
    """The files of val and test are spoilt on disk before anything is fitted."""
    manifest = run.manifest()
    train, val = (
        manifest[manifest["split"] == split].reset_index(drop=True) for split in ("train", "val")
    )
    stored = {}
    for poisoned in (False, True):
        root = tmp_path / f"root-{poisoned}"
        shutil.copytree(photos, root)
        if poisoned:
            for image_id in manifest.loc[manifest["split"] != "train", "image_id"]:
                (root / image_id).write_bytes(b"poison")
        stage._fit.cache_clear()
        job = Job(run.config(), root, Run(tmp_path / f"run-{poisoned}"), Nobody())
        write_json(job.run.config_path, run.config().model_dump(mode="json"))
        write_json(job.run.classes_path, run.class_names())
        contender = job.config.contender[0]
        fit_contender(job, contender, train, val)
        describer = stored_describer(job.run, contender)
        predict_split(job, contender, train, "train")
        part = job.run.part_path(contender.name)
        stored[poisoned] = (
            [state_fingerprint(d.learned) for d in describer.descriptors if d.learned is not None],
            describer.scales,
            read_json(part / "fit.json")["chosen"],
            (part / "search.csv").read_bytes(),
            job.run.predictions("train", contender.name).to_csv(),
        )
    assert stored[False] == stored[True]
    assert len(stored[True][0]) == 1


def test_a_changed_model_file_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "contenders" / "words_svm" / "holdout" / "model.words.skops").unlink()
    with pytest.raises(InputError, match=r"model\.words\.skops"):
        load(copy)


def test_rows_of_a_manifest_name_files(photos):
    rows = pd.DataFrame({"image_id": ["a/b.png"], "sha256": ["0"], "label": ["x"]})
    assert files_of(photos, rows).paths == [photos / "a/b.png"]
    assert dataclasses.astuple(files_of(photos, rows))[1:] == (["a/b.png"], ["0"])
