import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cvpipe import frames
from cvpipe.cli import main
from cvpipe.contender_sections import NetworkContender
from cvpipe.errors import InputError
from cvpipe.files import read_json, write_json
from cvpipe.inference.unlike import bound_of, neighbour_distance
from cvpipe.report.content import UNLIKE_COLUMNS
from cvpipe.runs import Run
from cvpipe.stages import unlike
from cvpipe.stages.bundle_facts import describe_unlike
from cvpipe.stages.halves import rows_for_fitting
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.predict import load
from cvpipe.stages.report import collect_content
from cvpipe.stages.run import run as make_run
from cvpipe.stages.split import rows_of_split
from cvpipe.stages.unlike import (
    Flags,
    compare_with_folder,
    describe_flags,
    find_unlike,
    fit_unlike,
    list_images,
    load_parts,
    measure_unlike,
    read_scores,
    score_rows,
    watched_contenders,
    watched_name,
)
from cvpipe.stages.unlike import test_scores_path as scores_path


@pytest.fixture
def job(run, photos):
    return Job(run.config(), photos, run, Nobody())


@pytest.fixture(scope="module")
def network(run):
    return next(c.name for c in run.config().contender if isinstance(c, NetworkContender))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Eight pictures of noise in folders of any depth, and what is no picture."""
    root = tmp_path_factory.mktemp("others")
    rng = np.random.default_rng(0)
    for number in range(8):
        folder = root / ("a b" if number % 2 else "ä/deep")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "broken.jpg").write_text("no picture")
    (root / "notes.txt").write_text("x")
    (root / ".hidden.png").write_text("x")
    (root / ".cache").mkdir()
    shutil.copy(root / "a b" / "1.png", root / ".cache" / "1.png")
    return root


def copy_of(run, path):
    shutil.copytree(run.path, path)
    return Run(path)


def test_a_run_stores_scores_of_the_chosen_and_the_exported_contender(run, job, network):
    names = [contender.name for contender in watched_contenders(job)]
    assert names == [c.name for c in run.config().contender if c.name in names]
    assert set(names) == {read_json(run.choice_path)["chosen"], network}
    table = run.unlike()
    assert list(table) == list(UNLIKE_COLUMNS)
    assert table.groupby("contender", sort=False)["score"].agg(list)[network] == [
        *("probability", "energy", "distance")
    ]
    assert table["contender"].unique().tolist() == names
    assert (table["n"] == (run.manifest()["split"] == "test").sum()).all()
    assert (table["low"] <= table["flagged_fraction"]).all()
    assert (table["flagged_fraction"] <= table["high"]).all()


def test_bounds_are_those_of_the_half_of_val_that_nothing_was_chosen_on(run, job, network):
    val = rows_of_split(job, "val")
    val = val[rows_for_fitting(val)]
    stored = read_json(run.part_path(network) / "unlike.json")
    assert stored["num_images"] == len(val)
    predictions = run.predictions("val", network).set_index("image_id").loc[val["image_id"]]
    largest = frames.probabilities_of(predictions.reset_index()).max(axis=1)
    assert stored["bounds"]["probability"] == bound_of(1 - largest)


def test_flagged_shares_are_those_of_the_stored_scores(run, network):
    scores, bounds = read_scores(scores_path(run, network)), run.unlike_bounds(network)
    shares = run.unlike().set_index(["contender", "score"])["flagged_fraction"]
    for score, bound in bounds.items():
        assert shares[network, score] == (scores[score] > bound).mean()


def test_scores_are_matched_by_image_id(run, job, network):
    contender = next(c for c in run.config().contender if c.name == network)
    test = rows_of_split(job, "test")
    scores = read_scores(scores_path(run, network)).set_index("image_id")
    turned = run.predictions("test", network).iloc[::-1]
    again = score_rows(job, contender, test, load_parts(run, network), turned)
    for name, values in again.items():
        assert np.allclose(values, scores.loc[test["image_id"], name], rtol=0, atol=1e-6)


def test_only_train_and_val_decide_what_is_stored(run, photos, network, tmp_path, monkeypatch):
    """With other test rows, every byte that is fitted is equal; and test is not opened."""
    copy = copy_of(run, tmp_path / run.path.name)
    before = {n: (copy.part_path(network) / n).read_bytes() for n in ("unlike.npz", "unlike.json")}
    for name in before:
        (copy.part_path(network) / name).unlink()
    manifest = copy.manifest()
    manifest.loc[manifest["split"] == "test", "sha256"] = "poison"
    monkeypatch.setattr(Run, "manifest", lambda _: manifest)
    for path in copy.path.glob("contenders/*/predictions/holdout-test.csv"):
        path.unlink()
    fit_unlike(Job(copy.config(), photos, copy, Nobody()))
    for name, content in before.items():
        assert (copy.part_path(network) / name).read_bytes() == content


def test_what_is_stored_is_kept(run, photos, network, tmp_path):
    copy = copy_of(run, tmp_path / run.path.name)
    job = Job(copy.config(), photos, copy, Nobody())
    write_json(unlike.bounds_path(copy, network), {"bounds": {"probability": 9.0}})
    copy.unlike_path.write_text("kept")
    fit_unlike(job)
    measure_unlike(job)
    assert copy.unlike_bounds(network) == {"probability": 9.0}
    assert copy.unlike_path.read_text() == "kept"


def test_noise_is_told_from_photos_by_distance(run, network, others):
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    result = compare_with_folder(run, others, network)
    assert result.contender == network
    assert result.num_images == 8
    ((image, reason),) = result.unreadable
    assert image == "broken.jpg"
    assert "broken.jpg" in reason
    row = result.table.set_index("score").loc["distance"]
    assert row["area"] > 0.95
    assert row["folder"] > row["test"]
    assert row["test"] == run.unlike().query("score == 'distance'")["flagged_fraction"].iloc[0]
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_the_runs_own_test_images_are_scored_as_in_the_run(run, photos, network, tmp_path):
    scores = read_scores(scores_path(run, network))
    for image_id in scores["image_id"]:
        (tmp_path / image_id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / image_id, tmp_path / image_id)
    table = compare_with_folder(run, tmp_path, network).table
    assert (table["test"] == table["folder"]).all()
    # Of other blocks a sum may have other last bits, so an image need not tie with itself.
    assert (table["area"] - 0.5).abs().max() < 0.1

    paths = [photos / image_id for image_id in scores["image_id"]]
    flags = find_unlike(run.path, network, load(run.path, network).predict_proba(paths))
    assert flags.score == "distance"
    assert np.allclose(flags.values, scores["distance"], atol=1e-6)
    assert flags.bound == run.unlike_bounds(network)["distance"]


def test_a_bundle_holds_the_bound_of_the_probability(run, job, network, others):
    bundle = run.export_path / network
    stated = read_json(bundle / "bundle.json")["unlike"]
    assert {"unlike": stated} == describe_unlike(job, network)
    assert stated["bound"] == run.unlike_bounds(network)["probability"]
    predictions = load(bundle).predict_proba([others / "a b" / "1.png"])
    flags = find_unlike(bundle, "", predictions)
    largest = frames.probabilities_of(predictions).max(axis=1)
    assert (flags.score, flags.bound) == ("probability", stated["bound"])
    assert flags.values.tolist() == (1 - largest).tolist()


def test_runs_and_bundles_of_before_say_nothing(run, photos, network, tmp_path):
    old = copy_of(run, tmp_path / run.path.name)
    for path in [old.unlike_path, *old.path.glob("contenders/*/holdout/unlike*")]:
        path.unlink()
    bundle = old.export_path / network / "bundle.json"
    write_json(bundle, {k: v for k, v in read_json(bundle).items() if k != "unlike"})
    predictions = old.predictions("test", network)
    assert find_unlike(old.path, "", predictions) is None
    assert find_unlike(bundle.parent, "", predictions) is None
    assert describe_unlike(Job(old.config(), photos, old, Nobody()), network) == {}
    assert collect_content(old, photos).unlike.empty
    with pytest.raises(InputError, match=r"has no scores of .* has those of \[\].*--again"):
        compare_with_folder(old, photos)


def test_without_the_large_arrays_the_probability_is_asked(run, network, tmp_path):
    copy = copy_of(run, tmp_path / run.path.name)
    (copy.part_path(network) / "unlike.npz").unlink()
    flags = find_unlike(copy.path, network, copy.predictions("test", network))
    assert (flags.score, flags.bound) == ("probability", run.unlike_bounds(network)["probability"])


def test_new_images_are_scored_by_calibrated_probabilities(run, photos, network, tmp_path):
    """The bound is one of calibrated probabilities, so all of them must be."""
    copy = copy_of(run, tmp_path / run.path.name)
    facts = read_json(copy.fitted_calibration_path(network))
    write_json(copy.fitted_calibration_path(network), {**facts, "slopes": [0.1] * 3})
    before, after = (compare_with_folder(r, photos, network).table for r in (run, copy))
    flagged = [table.set_index("score").loc["probability", "folder"] for table in (before, after)]
    assert flagged[0] < 0.5
    assert flagged[1] == 1  # flattened to about one third each


def test_a_contender_that_looks_at_no_pixel_has_no_scores(run, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    alone = tmp_path / "p.toml"
    alone.write_text(
        '[data]\nroot = "photos"\n[split]\ncareless = false\n'
        '[[contender]]\nname = "m"\nclassifier = "majority"\n'
    )
    made = make_run(alone, runs_path=tmp_path / "runs")
    assert made.unlike().empty
    assert list(made.unlike()) == list(UNLIKE_COLUMNS)
    with pytest.raises(InputError, match="has no scores of 'm'"):
        compare_with_folder(made, folder)


def test_hand_crafted_features_have_the_probability_alone(run, job):
    hog = SimpleNamespace(name="hog", features=("hog",), classifier="softmax")
    assert unlike.fit_parts(job, hog) == {}
    mixed = SimpleNamespace(name="x", features=("hog", "efficientnet_lite0"), classifier="softmax")
    assert unlike.fit_parts(job, mixed) == {}


def test_errors_say_what_to_do(run, tmp_path, others):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere.*give a folder of images"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no image was found in"):
        list_images(tmp_path)
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(InputError, match=r"none of the 1 images in .* can be read; the first"):
        compare_with_folder(run, tmp_path)
    with pytest.raises(InputError, match="unknown contender 'nobody'"):
        watched_name(run, "nobody")
    unfinished = copy_of(run, tmp_path / "photos-1")
    unfinished.report_path.unlink()
    with pytest.raises(InputError, match="is not finished; finish it with: cvpipe run"):
        watched_name(unfinished, "")


def test_images_are_listed_at_any_depth_without_hidden_ones(others):
    listed = list_images(others)
    assert listed == sorted(listed)
    assert len(listed) == 9
    assert {Path(image).parent.as_posix() for image in listed} == {".", "a b", "ä/deep"}


def test_flags_name_ten_images_at_most():
    flags = Flags("distance", 0.25, np.array([0.25, 0.26, 0.1]))
    assert flags.is_unlike.tolist() == [False, True, False]
    told = "1 of 3 images are unlike the training images (distance above 0.25): b.jpg"
    assert describe_flags(flags, ["a.jpg", "b.jpg", "c.jpg"]) == told
    many = Flags("distance", 0.0, np.ones(11))
    assert describe_flags(many, [f"{n}.jpg" for n in range(11)]).endswith("8.jpg, 9.jpg, ...")


def test_the_command_prints_a_table_or_json(run, network, others, capsys):
    assert main(["unlike", str(run.path), str(others), "--contender", network, "--quiet"]) == 0
    answer = capsys.readouterr()
    assert "8 images in the folder, 1 left out" in answer.out
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == [
        *("score", "probability", "energy", "distance", "area:")
    ]
    assert "1.000 (0.676 to 1.000)" in answer.out
    assert answer.err.startswith("left out: cannot read the image")
    assert main(["unlike", str(run.path), str(others), "--contender", network, "--json"]) == 0
    answer = capsys.readouterr()
    printed = json.loads(answer.out)
    assert printed["images"] == 8
    assert printed["unreadable"][0]["image"] == "broken.jpg"
    assert [row["score"] for row in printed["scores"]] == ["probability", "energy", "distance"]


def test_predict_names_unlike_images_on_standard_error(run, network, others, capsys, tmp_path):
    copy = copy_of(run, tmp_path / run.path.name)
    write_json(unlike.bounds_path(copy, network), {"bounds": {"distance": 0.01}})
    picture = str(others / "a b" / "1.png")
    assert main(["predict", str(copy.path), picture, "--contender", network]) == 0
    answer = capsys.readouterr()
    assert answer.out.splitlines()[0] == "image,predicted,p_0,p_NA,p_poppy"
    assert "1 of 1 images are unlike the training images (distance above" in answer.err


def test_distance_is_to_the_rows_of_train(run, job, network):
    parts = load_parts(run, network)
    assert parts["train_rows"].shape == ((run.manifest()["split"] == "train").sum(), 1280)
    assert parts["train_rows"].dtype == np.float32
    assert neighbour_distance(parts["train_rows"], parts["train_rows"], 1).max() < 1e-6
    assert pd.Series(parts["kernel"].shape).tolist() == [1280, 3]
