"""Ensembles of contenders: whole runs without a network, made tables, and what is refused."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe import frames
from cvpipe.config import validate_config
from cvpipe.contender_sections import EnsembleContender
from cvpipe.data.splits import first_half
from cvpipe.errors import InputError, TooLittleToLearnError
from cvpipe.files import read_json, write_json, write_table
from cvpipe.inference.ensembling import Ensemble, fit_ensemble
from cvpipe.report.content import MEMBER_COLUMNS
from cvpipe.runs import Run
from cvpipe.stages import contenders
from cvpipe.stages.compare import model_bytes
from cvpipe.stages.ensembles import (
    combine,
    fit_on_members,
    load_ensemble,
    mean_with_others,
    measure_members,
    out_of_fold,
    stack,
    store_ensemble,
)
from cvpipe.stages.halves import rows_for_choosing
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.plan import check_names
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.unlike import score_files

CLASSES = ["0", "NA", "poppy"]
# By the name of the contender: what it reads, and its classifier.
SINGLE = {
    "pixels": ("raw_pixels", "nearest_neighbours"),
    "hog_svm": ("hog", "linear_svm"),
    "colours": ("colour_histogram", "softmax"),
}
# By the name of the ensemble: how it combines, and its members, not in the order of the file.
ENSEMBLES = {
    "average": ("mean", ("colours", "pixels")),
    "logits": ("geometric_mean", ("pixels", "hog_svm", "colours")),
    "votes": ("vote", ("colours", "hog_svm", "pixels")),
    "fitted": ("weighted", ("hog_svm", "pixels", "colours")),
    "picked": ("greedy", ("colours", "pixels", "hog_svm")),
    "stacked": ("stacking", ("pixels", "colours", "hog_svm")),
}
FITTED_ON_VAL = ("fitted", "picked")
SMALL = {
    name: (method, ("colours", "pixels"))
    for name, method in (("fitted", "weighted"), ("picked", "greedy"), ("stacked", "stacking"))
}
FLOOR = 1e-7  # of probabilities whose logarithm is taken
PIPELINE = """
threads = 2

[data]
root = "images"
labels = "labels.csv"

[split]
protocol = "{protocol}"
num_folds = 3
val_fraction = 0.5
test_fraction = 0.2
careless = {careless}

[evaluate]
resamples = 100
learning_curve = false
"""
SECTION = """
[[contender]]
name = "{}"
features = ["{}"]
classifier = "{}"
search = "coarse"
"""


def draw(rng, label):
    """Draw a picture whose stripes and whose colour tell its class, each of them not surely."""
    target = CLASSES.index(label)
    turn = rng.choice([target, *range(3)], p=[0.4, 0.2, 0.2, 0.2])
    tint = rng.choice([target, *range(3)], p=[0.3, 0.3, 0.2, 0.2])
    y, x = np.mgrid[:24, :24]
    angle = turn * np.pi / 3
    along = x * np.cos(angle) + y * np.sin(angle)
    wave = 40 * np.sin(along * 2 * np.pi / rng.uniform(5, 9) + rng.uniform(0, 6))
    picture = 120 + wave[..., None] + rng.normal(0, 25, (24, 24, 3))
    picture[..., tint] += 25
    return np.clip(picture, 0, 255).astype(np.uint8)


def make_run(folder, num_images, ensembles, singles=tuple(SINGLE), watcher=None, **split):
    """Write images in groups of two, and run a pipeline on them; ensembles stand first in it."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(num_images):
        label = CLASSES[number // 2 % 3]
        path = f"{number:03} größe.png"
        Image.fromarray(draw(rng, label)).save(folder / "images" / path, compress_level=0)
        rows.append((path, label, f"object {number // 2}"))
    table = pd.DataFrame(rows, columns=["path", "label", "group"])
    table.to_csv(folder / "images" / "labels.csv", index=False)
    sections = [
        f'[[contender]]\nname = "{name}"\nmembers = {json.dumps(members)}\ncombine = "{method}"\n'
        for name, (method, members) in ensembles.items()
    ]
    sections += [SECTION.format(name, *SINGLE[name]) for name in singles]
    text = PIPELINE.format(**split) + "\n".join(sections)
    (folder / "pipeline.toml").write_text(text, encoding="utf-8")
    return run_again(folder, folder / "runs", watcher)


def run_again(folder, runs_path, watcher=None):
    return cvpipe.run(folder / "pipeline.toml", runs_path=runs_path, watcher=watcher)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three classic contenders and an ensemble of each kind, which stand first in the file."""
    folder = tmp_path_factory.mktemp("ensembles")
    return make_run(folder, 420, ENSEMBLES, protocol="kfold", careless="true")


class Listener(Nobody):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A val of about 50 images, and no folds; `.lines` is what was said."""
    watcher = Listener()
    folder = tmp_path_factory.mktemp("small")
    split = {"protocol": "holdout", "careless": "false"}
    run = make_run(folder, 96, SMALL, ("pixels", "colours"), watcher, **split)
    return SimpleNamespace(run=run, lines=watcher.lines)


def folder_of(run):
    return run.path.parent.parent


def job_of(run, watcher=None):
    return Job(run.config(), folder_of(run) / "images", run, watcher or Nobody())


def copy_of(run, folder):
    """Copy a run, with the way to its images."""
    copy = Run(folder / "runs" / run.path.name)
    shutil.copytree(run.path, copy.path)
    (folder / "images").symlink_to(folder_of(run) / "images")
    return copy


def contender_of(run, name):
    return next(c for c in run.config().contender if c.name == name)


# The arithmetic once more, in a slow plain way.


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def combined(method, weights, members, intercepts=0.0):
    """Combine probabilities `(num_members, n, num_classes)`."""
    if method in ("geometric_mean", "stacking"):
        logs = [np.log(np.maximum(member, FLOOR)) for member in members]
        logits = sum(w * log for w, log in zip(weights, logs, strict=True))
        return softmax(logits + np.asarray(intercepts))
    if method == "vote":
        votes = np.zeros(members[0].shape)
        for member in members:
            votes[np.arange(len(member)), member.argmax(axis=1)] += 1
        answers = votes + np.mean(members, axis=0)
    else:
        answers = sum(w * p for w, p in zip(weights, members, strict=True))
    # A classifier that computes in single precision gives rows that only nearly sum to 1.
    return answers / answers.sum(axis=1, keepdims=True)


def calibrated(run, name, probabilities):
    facts = read_json(run.fitted_calibration_path(name))
    logits = np.log(np.maximum(probabilities, facts["floor"]))
    return softmax(np.array(facts["slopes"]) * logits + np.array(facts["offsets"]))


def by_image(run, name, split="test", protocol="holdout", repeat=0):
    table = run.predictions(split, name, protocol, repeat).set_index("image_id")
    return table[[f"p_{label}" for label in CLASSES]]


def members_by_image(run, name, split="test", protocol="holdout"):
    return [by_image(run, member, split, protocol) for member in ENSEMBLES[name][1]]


def stored_weights(run, name):
    facts = read_json(run.part_path(name) / "model.json")
    return facts["weights"], facts["intercepts"] or 0.0


def pieces(run, name, protocol):
    """Yield weights, intercepts and the members' rows of each fitted ensemble of a protocol."""
    method, _ = ENSEMBLES[name]
    tables = members_by_image(run, name, "test", protocol)
    if protocol == "holdout":
        yield *stored_weights(run, name), tables
        return
    manifest = run.manifest().set_index("image_id")
    targets = pd.Series([CLASSES.index(label) for label in manifest["label"]], manifest.index)
    for fold in "012":
        others = manifest.index[manifest["fold"] != fold]
        known = np.stack([table.loc[others].to_numpy() for table in tables])
        groups = manifest["group"][others].tolist()
        fitted = fit_ensemble(method, known, targets[others].to_numpy(), groups, 0)
        own = manifest.index[manifest["fold"] == fold]
        yield fitted.weights, fitted.intercepts or 0.0, [table.loc[own] for table in tables]


def expected_table(run, name, protocol):
    method, _ = ENSEMBLES[name]
    parts = []
    for weights, intercepts, tables in pieces(run, name, protocol):
        arrays = [table.to_numpy() for table in tables]
        answers = combined(method, weights, arrays, intercepts)
        parts.append(pd.DataFrame(answers, tables[0].index, tables[0].columns))
    return pd.concat(parts).sort_index()


def assert_equal(table, expected):
    assert table.index.tolist() == expected.index.tolist()
    np.testing.assert_allclose(table.to_numpy(), expected.to_numpy(), rtol=0, atol=1e-12)


# Whole runs.


def test_val_is_large_enough_to_fit_weights_on(run):
    val = rows_of_split(job_of(run), "val")
    assert len(val) >= 200
    assert not rows_for_choosing(val).all()
    assert run.class_names() == CLASSES
    assert [c.name for c in run.config().contender] == [*ENSEMBLES, *SINGLE]


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_table_is_there_and_has_each_image_once(run, name):
    manifest = run.manifest()
    rows = {
        ("val", "holdout"): manifest[manifest["split"] == "val"],
        ("test", "holdout"): manifest[manifest["split"] == "test"],
        ("test", "kfold"): manifest,
        ("test", "careless"): manifest[manifest["careless"] == "test"],
    }
    for (split, protocol), part in rows.items():
        table = run.predictions(split, name, protocol)
        assert table["image_id"].tolist() == part["image_id"].tolist()
        assert table["label"].tolist() == part["label"].tolist()
        assert frames.predicted_class_names(table) == CLASSES
    pooled = run.predictions("test", name, "kfold").set_index("image_id")
    for fold in "012":
        stored = frames.read_predictions(run.part_path(name, f"r0-f{fold}") / "predictions.csv")
        own = manifest["image_id"][manifest["fold"] == fold]
        assert stored["image_id"].tolist() == own.tolist()
        pd.testing.assert_frame_equal(stored.set_index("image_id"), pooled.loc[own])


@pytest.mark.parametrize("name", ENSEMBLES)
@pytest.mark.parametrize("split", ["val", "test"])
def test_holdout_tables_combine_calibrated_ones_and_are_calibrated(run, name, split):
    method, _ = ENSEMBLES[name]
    weights, intercepts = stored_weights(run, name)
    tables = members_by_image(run, name, split)
    raw = combined(method, weights, [table.to_numpy() for table in tables], intercepts)
    expected = pd.DataFrame(raw, tables[0].index)
    before = frames.read_predictions(run.uncalibrated_path(name, split)).set_index("image_id")
    assert_equal(before.drop(columns="label"), expected)
    after = calibrated(run, name, raw)
    assert_equal(by_image(run, name, split), pd.DataFrame(after, expected.index))
    # The calibration does something, so leaving it out would be seen.
    assert np.abs(after - raw).max() > 1e-3


@pytest.mark.parametrize("name", ENSEMBLES)
def test_careless_tables_have_the_weights_and_the_calibration_of_the_holdout(run, name):
    method, _ = ENSEMBLES[name]
    weights, intercepts = stored_weights(run, name)
    tables = members_by_image(run, name, "test", "careless")
    raw = combined(method, weights, [table.to_numpy() for table in tables], intercepts)
    expected = pd.DataFrame(calibrated(run, name, raw), tables[0].index)
    assert_equal(by_image(run, name, "test", "careless"), expected)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_fold_tables_have_weights_that_were_fitted_on_the_other_folds(run, name):
    assert_equal(by_image(run, name, "test", "kfold"), expected_table(run, name, "kfold"))


def test_the_weights_of_folds_differ(run):
    """So that weights fitted on other rows would be seen."""
    for name in (*FITTED_ON_VAL, "stacked"):
        weights = [tuple(piece[0]) for piece in pieces(run, name, "kfold")]
        assert len({*weights, tuple(stored_weights(run, name)[0])}) == 4


def test_weights_that_are_not_fitted_are_equal(run):
    for name in ("average", "logits", "votes"):
        weights, intercepts = stored_weights(run, name)
        assert weights == [1 / len(ENSEMBLES[name][1])] * len(ENSEMBLES[name][1])
        assert intercepts == 0.0
    for name in (*FITTED_ON_VAL, "stacked"):
        weights, _ = stored_weights(run, name)
        assert len(set(weights)) == 3
        assert read_json(run.part_path(name) / "model.json")["method"] == ENSEMBLES[name][0]


@pytest.mark.parametrize("name", FITTED_ON_VAL)
def test_weights_are_fitted_on_half_b_of_val(run, name):
    """Done again by hand."""
    manifest = run.manifest()
    val = manifest[manifest["split"] == "val"]
    half_b = val[~first_half(val["group"].tolist())]
    tables = members_by_image(run, name, "val")
    members = np.stack([table.loc[half_b["image_id"]].to_numpy() for table in tables])
    targets = np.array([CLASSES.index(label) for label in half_b["label"]])
    fitted = fit_ensemble(ENSEMBLES[name][0], members, targets, half_b["group"].tolist(), 0)
    assert list(fitted.weights) == stored_weights(run, name)[0]


def turn_around(path, image_ids):
    """Turn the answers for some images of a stored table around."""
    table = frames.read_predictions(path)
    columns = frames.probability_columns(table)
    rows = table["image_id"].isin(image_ids)
    assert rows.any()
    table.loc[rows, columns] = table.loc[rows, columns[::-1]].to_numpy()
    write_table(path, table)


def refit(run, name):
    """Fit an ensemble of a copy of a run once more, and return the bytes of its weights."""
    shutil.rmtree(run.part_path(name))
    job = job_of(run)
    contenders.fit_contender(
        job, contender_of(run, name), rows_of_split(job, "train"), rows_of_split(job, "val")
    )
    return (run.part_path(name) / "model.json").read_bytes()


def test_a_poisoned_half_a_or_test_changes_no_weight(run, tmp_path):
    stored = {name: (run.part_path(name) / "model.json").read_bytes() for name in ENSEMBLES}
    manifest = run.manifest()
    val = manifest[manifest["split"] == "val"]
    in_half_a = first_half(val["group"].tolist())
    poisoned = copy_of(run, tmp_path / "a")
    for member in SINGLE:
        for path in (poisoned.predictions_path, poisoned.uncalibrated_path):
            turn_around(path(member, "val"), val["image_id"][in_half_a])
        for protocol in ("holdout", "kfold", "careless"):
            path = poisoned.predictions_path(member, "test", protocol)
            turn_around(path, frames.read_predictions(path)["image_id"])
    for name in FITTED_ON_VAL:
        assert refit(poisoned, name) == stored[name]
    spoilt = copy_of(run, tmp_path / "b")
    turn_around(spoilt.predictions_path("pixels", "val"), val["image_id"][~in_half_a])
    for name in FITTED_ON_VAL:
        assert refit(spoilt, name) != stored[name]


def test_of_val_stacking_knows_the_calibration_of_its_members_alone(run, tmp_path):
    """All that members say is calibrated, on train as elsewhere."""
    copy = copy_of(run, tmp_path)
    for member in SINGLE:
        copy.predictions_path(member, "val").unlink()
        copy.uncalibrated_path(member, "val").unlink()
    out_of_folds = copy.predictions_path("pixels", "train", "out-of-fold")
    out_of_folds.unlink()  # so that they are made again
    stored = (run.part_path("stacked") / "model.json").read_bytes()
    assert refit(copy, "stacked") == stored
    path = copy.fitted_calibration_path("pixels")
    facts = read_json(path)
    path.write_text(json.dumps({**facts, "slopes": [slope / 2 for slope in facts["slopes"]]}))
    out_of_folds.unlink()
    assert refit(copy, "stacked") != stored


def test_stacking_is_fitted_on_what_members_say_of_folds_of_train(run):
    train = run.manifest().query("split == 'train'").set_index("image_id")
    tables = []
    for member in ENSEMBLES["stacked"][1]:
        path = run.predictions_path(member, "train", "out-of-fold")
        table = frames.read_predictions(path).set_index("image_id")
        assert table.index.tolist() == train.index.tolist()
        assert table["label"].tolist() == train["label"].tolist()
        tables.append(table.drop(columns="label").to_numpy())
    targets = np.array([CLASSES.index(label) for label in train["label"]])
    fitted = fit_ensemble("stacking", np.stack(tables), targets, train["group"].tolist(), 0)
    weights, intercepts = stored_weights(run, "stacked")
    assert list(fitted.weights) == weights
    assert list(fitted.intercepts) == intercepts


def test_fits_for_stacking_never_see_the_images_that_they_predict(run, tmp_path):
    job = job_of(copy_of(run, tmp_path))
    train = rows_of_split(job, "train")
    calls = []

    def refit(member, known, unknown):
        calls.append((member.name, known, unknown))
        answers = np.full((len(unknown), 3), 1 / 3)
        ids, labels = unknown["image_id"].tolist(), unknown["label"].tolist()
        return frames.make_predictions(ids, labels, answers, CLASSES)

    member = contender_of(run, "hog_svm")
    job.run.predictions_path("hog_svm", "train", "out-of-fold").unlink()
    table = out_of_fold(job, member, train, refit)
    assert [name for name, _, _ in calls] == ["hog_svm"] * 5
    for _, known, unknown in calls:
        assert not set(known["group"]) & set(unknown["group"])
        assert sorted([*known["image_id"], *unknown["image_id"]]) == train["image_id"].tolist()
        assert set(known["label"]) == set(unknown["label"]) == set(CLASSES)
    assert table["image_id"].tolist() == train["image_id"].tolist()
    pd.testing.assert_frame_equal(out_of_fold(job, member, train, refit), table)
    assert len(calls) == 5  # kept


# What members are worth.


def rows_of_ensemble(run, name, protocol):
    table = run.members()
    rows = table[(table["protocol"] == protocol) & (table["ensemble"] == name)]
    return rows.set_index("member")


def test_the_table_of_members(run):
    table = run.members()
    assert list(table) == list(MEMBER_COLUMNS)
    expected = [
        (protocol, name, member)
        for protocol in ("holdout", "kfold")
        for name, (_, members) in ENSEMBLES.items()
        for member in members
    ]
    keys = table[["protocol", "ensemble", "member"]]
    assert list(keys.itertuples(index=False, name=None)) == expected
    sums = table.groupby(["protocol", "ensemble"])["weight"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-12)
    assert set(table["verdict"]) <= {"helps", "harms", "cannot be told"}
    assert (table["low"] <= table["worth"]).all()
    assert (table["worth"] <= table["high"]).all()
    sizes = {"holdout": len(run.predictions("test", "pixels")), "kfold": 420}
    assert (table["n"] == table["protocol"].map(sizes)).all()
    # A verdict speaks for the side on which the whole interval lies.
    assert (table.loc[table["verdict"] == "helps", "worth"] > 0).all()
    assert (table.loc[table["verdict"] == "harms", "worth"] < 0).all()
    assert (table["verdict"] == "helps").any()


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_what_a_member_is_worth_by_hand(run, name, protocol):
    method, members = ENSEMBLES[name]
    labels = run.manifest().set_index("image_id")["label"]
    losses, losses_without, shares = [], [], []
    for weights, intercepts, tables in pieces(run, name, protocol):
        arrays = [table.to_numpy() for table in tables]
        targets = [CLASSES.index(labels[image_id]) for image_id in tables[0].index]

        def loss(*given, targets=targets):
            answers = combined(*given)
            return -np.log(np.maximum(answers[np.arange(len(targets)), targets], FLOOR))

        losses.append(loss(method, weights, arrays, intercepts))
        without = []
        for left_out in range(len(members)):
            rest = [w for at, w in enumerate(weights) if at != left_out]
            rest = [w * sum(weights) / sum(rest) for w in rest]
            others = [p for at, p in enumerate(arrays) if at != left_out]
            without.append(loss(method, rest, others, intercepts))
        losses_without.append(np.stack(without))
        shares.append(weights)
    worth = np.concatenate(losses_without, axis=1).mean(axis=1) - np.concatenate(losses).mean()
    found = rows_of_ensemble(run, name, protocol)
    assert found.index.tolist() == list(members)
    np.testing.assert_allclose(found["worth"], worth, rtol=0, atol=1e-12)
    mean_weights = np.mean(shares, axis=0)
    np.testing.assert_allclose(found["weight"], mean_weights / mean_weights.sum(), atol=1e-12)


@pytest.mark.parametrize("protocol", ["holdout", "kfold"])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_how_members_differ_by_hand(run, name, protocol):
    labels = run.manifest().set_index("image_id")["label"]
    named = {}
    for member in ENSEMBLES[name][1]:
        table = by_image(run, member, "test", protocol)
        named[member] = table.columns[table.to_numpy().argmax(axis=1)].str.removeprefix("p_")
        truth = labels[table.index].to_numpy()
    found = rows_of_ensemble(run, name, protocol)
    for member, own in named.items():
        others = [other for key, other in named.items() if key != member]
        disagreement = np.mean([(own != other).mean() for other in others])
        correlation = np.mean([np.corrcoef(own != truth, other != truth)[0, 1] for other in others])
        assert found.loc[member, "disagreement"] == pytest.approx(disagreement, abs=1e-12)
        assert found.loc[member, "correlation"] == pytest.approx(correlation, abs=1e-12)


# What else a run makes of them.


def test_an_ensemble_costs_what_its_members_cost(run):
    table = run.contenders().set_index("contender")
    assert set(table.index) == {*ENSEMBLES, *SINGLE}
    for name, (_, members) in ENSEMBLES.items():
        row, parts = table.loc[name], table.loc[[*members]]
        assert row["fit_seconds"] >= parts["fit_seconds"].sum() - 0.001 * (len(members) + 1)
        assert row["model_bytes"] == parts["model_bytes"].sum()
        assert row["model_bytes"] == model_bytes(run, name)
        assert row["milliseconds_per_image"] > 0
        assert not math.isnan(row["accuracy"])
    # Every image is predicted by all members.
    slow = table.loc["logits", "milliseconds_per_image"]
    assert slow > table.loc[[*SINGLE], "milliseconds_per_image"].max()
    metrics = run.metrics().query("metric == 'log_loss' and label == ''")
    for name in ENSEMBLES:
        rows = metrics[metrics["contender"] == name]
        assert set(zip(rows["protocol"], rows["split"], strict=True)) == {
            ("holdout", "val"), ("holdout", "test"), ("kfold", "test"), ("careless", "test"),
        }  # fmt: skip
    chosen = read_json(run.choice_path)["chosen"]
    compared = run.comparison().query("reference == @chosen")
    assert set(compared["contender"]) == {*ENSEMBLES, *SINGLE} - {chosen}


def test_the_report_has_a_table_for_each_ensemble(run):
    page = run.report_path.read_text(encoding="utf-8")
    assert '<section id="ensembles">' in page
    for name in ENSEMBLES:
        assert f"Members of {name}, each image scored in its fold" in page
    assert "mean, with weights fitted on val, of hog_svm, pixels and colours" in page
    assert "majority vote of colours, hog_svm and pixels" in page


def test_of_a_run_from_before_this_table_it_has_no_rows(tmp_path):
    table = Run(tmp_path).members()
    assert list(table) == list(MEMBER_COLUMNS)
    assert table.empty


@pytest.mark.parametrize("name", ENSEMBLES)
def test_image_files_are_answered_as_in_the_table(run, name):
    table = run.predictions("test", name)
    images = [folder_of(run) / "images" / image_id for image_id in table["image_id"]]
    answers = cvpipe.load(run.path, contender=name).predict_proba(images)
    assert frames.predicted_class_names(answers) == CLASSES
    np.testing.assert_allclose(
        frames.probabilities_of(answers), frames.probabilities_of(table), rtol=0, atol=1e-7
    )
    one = cvpipe.load(run.path, contender=name).predict_proba(images[:1])
    np.testing.assert_allclose(
        frames.probabilities_of(one), frames.probabilities_of(table)[:1], rtol=0, atol=1e-7
    )


def test_how_unlike_an_image_is_follows_from_the_probabilities(run):
    table = run.predictions("test", "fitted")
    folder, names = folder_of(run) / "images", table["image_id"].tolist()
    scores = score_files(run, contender_of(run, "fitted"), folder, names, Nobody())
    assert list(scores) == ["probability"]
    largest = frames.probabilities_of(table).max(axis=1)
    np.testing.assert_allclose(scores["probability"], 1 - largest, rtol=0, atol=1e-7)


def bytes_of(run):
    files = [path for path in run.path.rglob("*") if path.is_file()]
    return {path.relative_to(run.path).as_posix(): path.read_bytes() for path in files}


def test_running_a_finished_run_changes_no_byte(run):
    before = bytes_of(run)
    again = run_again(folder_of(run), run.path.parent)
    assert again.path == run.path
    assert bytes_of(again) == before


# What tells the time of day, or how long something took.
TIMED = ("timings.json", "report.html", "fit.json")


def test_what_is_missing_is_made_again_with_the_same_bytes(run, tmp_path):
    copy = copy_of(run, tmp_path)
    # All that there was of some ensembles, as if they had been interrupted before anything.
    for name in ("logits", "picked", "stacked"):
        shutil.rmtree(copy.path / "contenders" / name)
    copy.predictions_path("colours", "train", "out-of-fold").unlink()
    # Of others some tables; and weights without a `fit.json`, which are not complete.
    for split in ("val", "test"):
        copy.predictions_path("fitted", split).unlink()
    copy.uncalibrated_path("fitted", "val").unlink()
    copy.predictions_path("votes", "test", "kfold").unlink()
    copy.predictions_path("votes", "test", "careless").unlink()
    (copy.part_path("average") / "fit.json").unlink()
    for path in (copy.members_path, copy.unlike_path, copy.report_path):
        path.unlink()
    again = run_again(folder_of(run), tmp_path / "runs")
    assert again.path == copy.path
    made, before = bytes_of(again), bytes_of(run)
    assert made.keys() == before.keys()
    assert [n for n in made if not n.endswith(TIMED) and made[n] != before[n]] == []


# A small val.


def test_of_a_small_val_nothing_is_fitted_and_it_is_said(small):
    run = small.run
    assert 40 < len(rows_of_split(job_of(run), "val")) < 60
    for name in FITTED_ON_VAL:
        assert load_ensemble(run, name) == Ensemble("mean", (0.5, 0.5))
        expected = f"  {name}: val has too few images to fit weights, so all members weigh the same"
        assert small.lines.count(expected) == 1
    fitted = load_ensemble(run, "stacked")
    assert fitted.method == "stacking"
    assert len(set(fitted.weights)) == 2
    assert not any("stacked: val has too few" in line for line in small.lines)
    assert [line for line in small.lines if "stacking" in line] == [
        "  stacking: colours predicts train, 5 fits",
        "  stacking: pixels predicts train, 5 fits",
    ]


def test_the_tables_and_the_page_of_a_run_without_folds(small):
    run = small.run
    for name in FITTED_ON_VAL:
        tables = [by_image(run, member).to_numpy() for member in ("colours", "pixels")]
        expected = calibrated(run, name, combined("mean", (0.5, 0.5), tables))
        np.testing.assert_allclose(by_image(run, name), expected, rtol=0, atol=1e-12)
    assert set(run.members()["protocol"]) == {"holdout"}
    assert not list(run.path.glob("contenders/*/r0-*"))
    page = run.report_path.read_text(encoding="utf-8")
    assert "Members of stacked, on the test images" in page
    assert "scored in its fold" not in page
    assert "mean of colours and pixels (too few images to fit the weights of" in page
    assert "fitted on val" not in page.partition("What they are")[2].partition("</table>")[0]


# Made tables.


BASE = {"name": "a", "data": {"root": "images"}, "threads": 2, "evaluate": {"resamples": 100}}
PIXELS = {"name": "pixels", "features": ["raw_pixels"], "classifier": "nearest_neighbours"}
COLOURS = {"name": "colours", "features": ["colour_histogram"], "classifier": "softmax"}
MAJORITY = {"name": "majority", "classifier": "majority"}
SHORTCUT = {"name": "shortcut", "features": ["file_facts"], "classifier": "gradient_boosting"}


def make_tables(path, method, num_images, watcher=None):
    """Two members, one of which is better, and rows of val in an order of their own."""
    ensemble = {"name": "both", "members": ["colours", "pixels"], "combine": method}
    config = validate_config({**BASE, "contender": [ensemble, PIXELS, COLOURS]})
    job = Job(config, path, Run(path), watcher or Nobody())
    rng = np.random.default_rng(1)
    names = [f"{number:04}.png" for number in range(num_images)]
    targets = rng.integers(0, 3, num_images)
    val = pd.DataFrame({"image_id": names, "label": [CLASSES[t] for t in targets]})
    val["group"] = [f"object {number // 2}" for number in range(num_images)]
    for member, strength in (("pixels", 0.7), ("colours", 1.5)):
        logits = rng.normal(size=(num_images, 3))
        logits[np.arange(num_images), targets] += strength
        table = frames.make_predictions(names, val["label"].tolist(), softmax(logits), CLASSES)
        write_table(job.run.predictions_path(member, "val"), table)
        write_json(job.run.fitted_calibration_path(member), {"method": "none"})
    return job, val


def refuse(*_):
    raise AssertionError("nothing is to be fitted")


def test_stacking_needs_every_class_in_all_parts_but_one(tmp_path):
    job, val = make_tables(tmp_path, "stacking", 40)
    write_json(job.run.classes_path, CLASSES)
    rare = val[val["label"] == CLASSES[0]].assign(group="one")
    train = pd.concat([rare, val[val["label"] != CLASSES[0]]], ignore_index=True)
    ensemble = fit_on_members(job, job.config.contender[0], train, val, refuse)
    assert ensemble == Ensemble("mean", (0.5, 0.5))


def test_where_stacking_has_too_few_images_all_members_weigh_the_same(tmp_path):
    lines = []

    class Listening(Nobody):
        def say(self, text):
            lines.append(text)

    job, val = make_tables(tmp_path, "stacking", 40, Listening())
    write_json(job.run.classes_path, CLASSES)

    def refit(*_):
        raise TooLittleToLearnError("there is one image.")

    ensemble = fit_on_members(job, job.config.contender[0], val, val, refit)
    assert ensemble == Ensemble("mean", (0.5, 0.5))
    assert lines[-1] == "  both: all members weigh the same, because there is one image."


@pytest.mark.parametrize("method", ["weighted", "greedy"])
def test_rows_are_matched_by_image(tmp_path, method):
    """Of the tables and of the manifest, neither of which tells the order of the other."""
    job, val = make_tables(tmp_path, method, 400)
    ensemble = job.config.contender[0]
    fitted = fit_on_members(job, ensemble, None, val, refuse)
    assert fitted.method == method
    assert fitted.weights[0] > 0.5 > fitted.weights[1] > 0
    shuffled = val.sample(frac=1, random_state=0).reset_index(drop=True)
    again = fit_on_members(job, ensemble, None, shuffled, refuse)
    assert again.weights == pytest.approx(fitted.weights, abs=1e-9)
    path = job.run.predictions_path("colours", "val")
    table = frames.read_predictions(path)
    write_table(path, table.sample(frac=1, random_state=1))
    assert fit_on_members(job, ensemble, None, val, refuse) == fitted


@pytest.mark.parametrize(
    ("method", "num_images", "falls_back"),
    [
        ("weighted", 199, True), ("greedy", 199, True), ("weighted", 200, False),
        ("greedy", 200, False), ("mean", 199, False), ("geometric_mean", 199, False),
        ("vote", 199, False),
    ],
)  # fmt: skip
def test_from_200_images_of_val_on_weights_are_fitted(tmp_path, method, num_images, falls_back):
    watcher = Listener()
    job, val = make_tables(tmp_path, method, num_images, watcher)
    fitted = fit_on_members(job, job.config.contender[0], None, val, refuse)
    assert [line.split(":")[0] for line in watcher.lines] == ["  both"] * falls_back
    assert fitted.method == ("mean" if falls_back else method)
    assert (fitted.weights == (0.5, 0.5)) == (num_images < 200)


def test_a_poisoned_half_of_made_tables(tmp_path):
    weights = {}
    for poisoned in ("", "a", "b"):
        job, val = make_tables(tmp_path / f"in {poisoned}", "weighted", 400)
        in_half_a = first_half(val["group"].tolist())
        if poisoned:
            rows = in_half_a if poisoned == "a" else ~in_half_a
            turn_around(job.run.predictions_path("colours", "val"), val["image_id"][rows])
        weights[poisoned] = fit_on_members(job, job.config.contender[0], None, val, refuse)
    assert weights[""] == weights["a"]
    assert weights[""] != weights["b"]


def table_of(names=("a.png", "b.png"), labels=("0", "NA"), classes=("0", "NA")):
    answers = np.full((len(names), len(classes)), 1 / len(classes))
    return frames.make_predictions(list(names), list(labels), answers, list(classes))


def test_tables_that_do_not_match_are_refused():
    first = table_of()
    with pytest.raises(InputError, match=r"the tables of members 1 and 2 differ in 'image_id'"):
        stack([first, table_of(("a.png", "c.png"))])
    # The same images in another order: rows are never matched by position.
    with pytest.raises(InputError, match=r"the tables of members 1 and 3 differ in 'image_id'"):
        stack([first, first, table_of(("b.png", "a.png"), ("NA", "0"))])
    with pytest.raises(InputError, match=r"the tables of members 1 and 2 differ in 'image_id'"):
        stack([first, table_of(("a.png",), ("0",))])
    with pytest.raises(InputError, match=r"members 1 and 3 differ in 'label'; make both in one"):
        stack([first, first, table_of(labels=("NA", "0"))])
    with pytest.raises(InputError, match=r"must know the same classes, but members 1 and 2 have"):
        stack([first, table_of(classes=("NA", "0"))])
    with pytest.raises(InputError, match=r"'p_NA'\] and .*'p_NA', 'p_poppy'\]; make both"):
        combine(Ensemble("mean", (0.5, 0.5)), [first, table_of(classes=("0", "NA", "poppy"))])
    assert stack([first, first]).shape == (2, 2, 2)


def refusal_of(*others, **ensemble):
    singles = [PIXELS, COLOURS, MAJORITY, SHORTCUT]
    raw = {**BASE, "contender": [*singles, *others, {"name": "both", **ensemble}]}
    with pytest.raises(InputError) as refused:
        check_names(validate_config(raw))
    return str(refused.value)


@pytest.mark.parametrize("baseline", ["majority", "shortcut"])
def test_a_member_that_looks_at_no_pixel_is_refused(baseline):
    assert refusal_of(members=["pixels", baseline]) == (
        f"the ensemble 'both' has the member {baseline!r}, which looks at no pixel: it is a "
        "yardstick for the others; leave it out."
    )


def test_a_member_that_does_not_exist_is_refused():
    assert refusal_of(members=["pixels", "colour"]).endswith(
        "the ensemble 'both' names the member 'colour', which is no contender; did you mean "
        "'colours'?"
    )


@pytest.mark.parametrize("inner", ["average", "both"])
def test_an_ensemble_of_ensembles_is_refused(inner):
    average = {"name": "average", "members": ["pixels", "colours"]}
    text = refusal_of(average, members=["pixels", inner])
    assert f"the ensemble 'both' names the member {inner!r}, which is an ensemble itself; " in text
    assert "average" not in text.partition(";")[2]  # no other ensemble is offered


@pytest.mark.parametrize("members", [[], ["pixels"]])
def test_fewer_than_two_members_are_refused(members):
    text = refusal_of(members=members)
    assert text.startswith("contender.5.members: ")
    assert f"at least 2 items after validation, not {len(members)}, but is {members}" in text


def test_a_member_that_is_named_twice_is_refused():
    assert refusal_of(members=["pixels", "colours", "pixels"]) == (
        "contender.5.members: 'pixels' is named more than once; name it once"
    )


def test_an_unknown_way_to_combine_is_refused():
    text = refusal_of(members=["pixels", "colours"], combine="median")
    assert text.startswith("contender.5.combine: input should be 'mean', 'geometric_mean', ")
    assert text.endswith("but is 'median'")


def test_without_members_there_is_no_ensemble():
    assert refusal_of(combine="vote") == "'contender.5.members' is missing"


@pytest.mark.parametrize(
    ("key", "value"), [("features", ["hog"]), ("classifier", "softmax"), ("search", "fine")]
)
def test_keys_of_other_contenders_are_refused(key, value):
    assert refusal_of(members=["pixels", "colours"], **{key: value}) == (
        f"unknown key 'contender.5.{key}'; choose one of ['combine', 'members', 'name']."
    )


def test_a_network_has_no_members():
    network = {"backbone": "efficientnet_lite0", "recipe": "linear_probe"}
    text = refusal_of(members=["pixels", "colours"], **network)
    assert text.startswith("unknown key 'contender.5.members'; choose one of ['backbone', ")


def test_an_ensemble_is_stored_in_a_config_and_read_again():
    ensemble = {"name": "both", "members": ["pixels", "colours"]}
    config = validate_config({**BASE, "contender": [ensemble, PIXELS, COLOURS]})
    found = config.contender[0]
    assert isinstance(found, EnsembleContender)
    assert (found.members, found.combine) == (("pixels", "colours"), "mean")
    assert validate_config(config.model_dump(mode="json")) == config
    # Members have an order, which is that of the weights.
    turned = {**ensemble, "members": ["colours", "pixels"]}
    assert validate_config({**BASE, "contender": [turned, PIXELS, COLOURS]}) != config


# Figures of pairs.


def test_the_mean_over_other_members():
    nan = math.nan
    pairs = np.array([[0.0, 0.2, 0.6], [0.2, 0.0, 0.1], [0.6, 0.1, 0.0]])
    np.testing.assert_allclose(mean_with_others(pairs), [0.4, 0.15, 0.35])
    # A member's own figure never counts, whatever it is.
    np.testing.assert_allclose(mean_with_others(pairs + np.diag([1, nan, 7])), [0.4, 0.15, 0.35])
    # What is not known is left out; who knows nothing of anyone has nothing.
    pairs = np.array([[1.0, nan, 0.6], [nan, nan, nan], [0.6, nan, 1.0]])
    np.testing.assert_array_equal(mean_with_others(pairs), [0.6, nan, 0.6])
    np.testing.assert_array_equal(mean_with_others(np.array([[1, nan], [nan, nan]])), [nan, nan])
    np.testing.assert_array_equal(mean_with_others(np.array([[1, -0.5], [-0.5, 1]])), [-0.5, -0.5])


def test_a_member_without_mistakes_has_no_correlation(tmp_path):
    """And the table goes through a file with that."""
    job, val = make_tables(tmp_path, "mean", 60)
    sure = np.full((60, 3), 0.1)
    sure[np.arange(60), [CLASSES.index(label) for label in val["label"]]] = 0.8
    ids, labels = val["image_id"].tolist(), val["label"].tolist()
    tables = {
        "pixels": frames.make_predictions(ids, labels, sure, CLASSES),
        "colours": job.run.predictions("val", "colours"),
    }
    for name, table in tables.items():
        write_table(job.run.predictions_path(name, "test"), table)
    store_ensemble(job.run.part_path("both"), Ensemble("mean", (0.5, 0.5)))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    groups = val.set_index("image_id")["group"]
    table = measure_members(job, groups, ["holdout"])
    assert table["member"].tolist() == ["colours", "pixels"]
    assert table["correlation"].isna().all()
    # The one that knows everything helps, the other harms.
    assert table["verdict"].tolist() == ["harms", "helps"]
    write_table(job.run.members_path, table)
    stored = job.run.members()
    assert stored["correlation"].isna().all()
    pd.testing.assert_frame_equal(stored, table.astype({"n": "Int64"}), check_dtype=False)


def test_members_without_any_weight_are_worth_nothing(tmp_path):
    """Stacking ends there when what they say has nothing to do with the class."""
    job, val = make_tables(tmp_path, "stacking", 60)
    for name in ("pixels", "colours"):
        write_table(job.run.predictions_path(name, "test"), job.run.predictions("val", name))
    store_ensemble(job.run.part_path("both"), Ensemble("stacking", (0.0, 0.0), (0.1, 0.0, -0.1)))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    with np.errstate(invalid="ignore"):
        table = measure_members(job, val.set_index("image_id")["group"], ["holdout"])
    assert table[["worth", "low", "high"]].eq(0).all(axis=None)
    assert table["verdict"].tolist() == ["cannot be told"] * 2
