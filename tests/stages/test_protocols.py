"""Folds, the careless split, subgroups and risks: whole runs without a network, in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe import frames
from cvpipe.classifiers.search import fit_classifier, predictor_of
from cvpipe.config import validate_config
from cvpipe.errors import InputError
from cvpipe.evaluation.folds import corrected_mean
from cvpipe.evaluation.intervals import difference_interval
from cvpipe.evaluation.scoring import score_predictions
from cvpipe.files import write_table
from cvpipe.frames import predicted_labels
from cvpipe.runs import Run, read_ledger
from cvpipe.stages import contenders, evaluate, protocols
from cvpipe.stages.calibration import load_calibration
from cvpipe.stages.evaluate import candidates, careful_protocols, fingerprint_of, run_evaluation
from cvpipe.stages.features import files_of, fixed_describer, setup_of
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.report import count_openings, rebuild_report
from cvpipe.stages.risks import find_risks, find_warnings
from cvpipe.stages.split import divide
from cvpipe.stages.summary import accuracy_table

PIPELINE = """
threads = 2

[data]
root = "images"
labels = "labels.csv"

[split]
protocol = "{protocol}"
num_folds = 3

[[contender]]
name = "shortcut"
features = ["file_facts"]
classifier = "gradient_boosting"

[[contender]]
name = "majority"
classifier = "majority"

[[contender]]
name = "pixels_knn"
features = ["raw_pixels"]
classifier = "nearest_neighbours"
search = "coarse"

[[contender]]
name = "hog_rbf"
features = ["hog"]
classifier = "rbf_svm"
search = "coarse"

[evaluate]
resamples = 200
subgroups = {subgroups}
"""
CONTENDERS = ["shortcut", "majority", "pixels_knn", "hog_rbf"]


def make_run(folder: Path, images: list[tuple[np.ndarray, dict]], protocol="holdout", **options):
    """Write images with the columns of their rows, and run the pipeline on them."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for number, (pixels, columns) in enumerate(images):
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png", compress_level=0)
        rows.append({"path": f"{number:03}.png", **columns})
    pd.DataFrame(rows).to_csv(folder / "images" / "labels.csv", index=False)
    subgroups = [name for name in rows[0] if name not in ("path", "label", "group")]
    text = PIPELINE.format(protocol=protocol, subgroups=json.dumps(subgroups))
    (folder / "pipeline.toml").write_text(text)
    return cvpipe.run(folder / "pipeline.toml", runs_path=folder / "runs", **options)


def stripes(rng, vertical: bool, size=(64, 64)) -> np.ndarray:
    """Draw noisy stripes: what HOG tells apart at once."""
    phase, period = rng.uniform(0, 6), rng.uniform(6, 14)
    wave = 100 + 80 * np.sin(phase + np.arange(size[vertical]) * 2 * np.pi / period)
    image = np.broadcast_to(wave[None, :] if vertical else wave[:, None], size)
    noisy = image[..., None] + rng.normal(0, 30, (*size, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """Stripes of two directions, half of them from an old camera, in groups of two."""
    rng = np.random.default_rng(0)
    images = [
        (
            stripes(rng, vertical=number % 4 < 2),
            {
                "label": "upright" if number % 4 < 2 else "NA",
                "group": f"object {number // 2}",
                "camera": "old" if number % 3 == 0 else "",
            },
        )
        for number in range(72)
    ]
    return make_run(tmp_path_factory.mktemp("folded"), images, "kfold")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Noise: nothing in a picture tells its label, but its size does."""
    rng = np.random.default_rng(1)
    images = []
    for number in range(120):
        size = (40, 40) if number % 2 else (40, 56)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        images.append((pixels, {"label": "ab"[number % 2]}))
    return make_run(tmp_path_factory.mktemp("planted"), images)


@pytest.fixture(scope="module")
def bursts(tmp_path_factory):
    """Bursts of four photos of one thing, whose label is a coin's: nothing can be learned."""
    rng = np.random.default_rng(2)
    images = []
    for number in range(150):
        thing = rng.integers(0, 256, (6, 6, 3)).repeat(8, axis=0).repeat(8, axis=1)
        for _ in range(4):
            pixels = np.clip(thing + rng.normal(0, 8, thing.shape), 0, 255).astype(np.uint8)
            images.append((pixels, {"label": "ab"[number % 2], "group": f"thing {number}"}))
    return make_run(tmp_path_factory.mktemp("bursts"), images)


def accuracies(run, protocol: str) -> pd.Series:
    rows = run.metrics().query("split == 'test' and metric == 'accuracy' and label == ''")
    return rows[rows["protocol"] == protocol].set_index("contender")["value"]


# Folds.


def test_every_image_is_predicted_once_by_every_contender(folded):
    manifest = folded.manifest()
    for name in CONTENDERS:
        table = folded.predictions("test", name, "kfold")
        assert table["image_id"].tolist() == manifest["image_id"].tolist()
        assert table["label"].tolist() == manifest["label"].tolist()
        stored = folded.path / "contenders" / name / "predictions" / "kfold-test-r0.csv"
        assert stored.exists()


def test_a_fold_is_predicted_by_a_search_and_fit_on_the_others(folded):
    """Done again by hand for one fold: the same bits."""
    config, manifest = folded.config(), folded.manifest()
    contender = config.contender[3]
    root = folded.path.parent.parent / "images"
    describer = fixed_describer(contender.features, setup_of(config))
    features = describer.describe(files_of(root, manifest), Nobody())
    targets = frames.targets_of(manifest["label"], folded.class_names())
    others = (manifest["fold"] != "1").to_numpy()
    assert set(manifest["fold"]) == {"0", "1", "2"}
    fitted = fit_classifier(
        "rbf_svm", features[others], targets[others], manifest["group"][others].tolist(),
        "coarse", config.seed, 2,
    )  # fmt: skip
    expected = predictor_of(fitted.estimator)(features[~others])
    pooled = folded.predictions("test", "hog_rbf", "kfold")
    np.testing.assert_array_equal(frames.probabilities_of(pooled)[~others], expected)
    facts = json.loads((folded.part_path("hog_rbf", "r0-f1") / "fit.json").read_text())
    assert facts["chosen"] == fitted.chosen


def test_folds_keep_groups_together_and_leave_the_split_alone(folded):
    manifest = folded.manifest()
    assert (manifest.groupby("group")["fold"].nunique() == 1).all()
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    # The careless split does part them: that is its point.
    assert (manifest.groupby("group")["careless"].nunique() > 1).any()


def test_fits_of_a_fold_never_see_it(folded, monkeypatch, tmp_path):
    seen = []
    fit_rows = contenders.fit_rows

    def spy(job, contender, rows, **options):
        seen.append((contender.name, set(rows["group"])))
        assert options.keys() == {"checkpoint"}  # and no other rows
        return fit_rows(job, contender, rows, **options)

    monkeypatch.setattr(protocols, "fit_rows", spy)
    job = make_job(folded, tmp_path)
    protocols.run_folds(job)
    manifest = folded.manifest()
    expected = [
        (name, set(manifest.loc[manifest["fold"] != fold, "group"]))
        for name in CONTENDERS
        for fold in "012"
    ]
    assert seen == expected


def make_job(run, folder, contender_names=CONTENDERS):
    """Make a job in another folder with the finished run's manifest and fits."""
    copy = Run(folder / "runs" / run.path.name)
    shutil.copytree(run.path, copy.path)
    for path in copy.path.glob("contenders/*/r0-*"):
        shutil.rmtree(path)
    for path in copy.path.glob("contenders/*/predictions/*-test*.csv"):
        path.unlink()
    return Job(run.config(), run.path.parent.parent / "images", copy, Nobody())


def test_an_interrupted_k_fold_goes_on_with_the_fold_it_had_reached(folded, tmp_path, monkeypatch):
    job = make_job(folded, tmp_path)
    calls = []
    fit_rows = contenders.fit_rows

    def interrupted(job, contender, rows, **options):
        calls.append(contender.name)
        if len(calls) == 8:  # in the second fold of the third contender
            raise KeyboardInterrupt
        return fit_rows(job, contender, rows, **options)

    monkeypatch.setattr(protocols, "fit_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        protocols.run_folds(job)
    assert not job.run.predictions_path("pixels_knn", "test", "kfold").exists()
    protocols.run_folds(job)
    # 12 fits in all, and the interrupted one twice.
    assert len(calls) == 13
    for name in CONTENDERS:
        mine, whole = (r.predictions_path(name, "test", "kfold") for r in (job.run, folded))
        assert mine.read_bytes() == whole.read_bytes()


def test_metrics_and_comparison_of_the_folds(folded):
    groups = folded.manifest().set_index("image_id")["group"]
    metrics = folded.metrics().query("protocol == 'kfold' and contender == 'hog_rbf'")
    expected = score_predictions(folded.predictions("test", "hog_rbf", "kfold"), groups, 0, 200)
    for column in ("value", "low", "high"):
        np.testing.assert_array_equal(metrics[column], expected[column])
    assert (metrics.query("label == ''")["n"] == 72).all()
    chosen = json.loads(folded.choice_path.read_text())["chosen"]
    comparison = folded.comparison().query("protocol == 'kfold'")
    rows = comparison[comparison["reference"] == chosen]
    assert set(rows["contender"]) == set(CONTENDERS) - {chosen}
    assert set(rows["n"]) == {72}
    yardsticks = comparison[comparison["reference"] == "majority"]
    assert set(yardsticks["contender"]) == {"shortcut"}


def test_each_recipe_is_judged_by_its_folds(folded):
    chosen = json.loads(folded.choice_path.read_text())["chosen"]
    table = folded.folds()
    assert set(table["contender"]) == set(CONTENDERS)
    assert (table["num_fits"] == 3).all()
    manifest = folded.manifest().set_index("image_id")
    correct = {}
    for name in CONTENDERS:
        pooled = folded.predictions("test", name, "kfold").set_index("image_id")
        right = predicted_labels(pooled.reset_index()) == pooled["label"].to_numpy()
        by_fold = pd.Series(right, pooled.index).groupby(manifest["fold"])
        correct[name] = by_fold.mean().to_numpy()
        sizes = by_fold.size().to_numpy()
    ratio, step = (sizes / (72 - sizes)).mean(), (1 / sizes).mean() / 12**0.5
    for name in CONTENDERS:
        found = table[(table["contender"] == name) & (table["metric"] == "accuracy")].iloc[0]
        expected = corrected_mean(correct[name], ratio, step)
        assert found["mean"] == pytest.approx(expected.mean)
        assert found["low"] == pytest.approx(max(0, expected.low))
        if name != chosen:
            change = corrected_mean(correct[name] - correct[chosen], ratio, step)
            assert found["difference"] == pytest.approx(change.mean)
            assert found["p_value"] == pytest.approx(change.p_value)
    page = folded.report_path.read_text(encoding="utf-8")
    assert "Means over 3 fits" in page


def test_a_run_from_before_these_tables_is_still_reported(folded, tmp_path):
    run = Run(tmp_path / "runs" / folded.path.name)
    shutil.copytree(folded.path, run.path)
    run.folds_path.unlink()
    comparison = run.comparison()
    write_table(run.comparison_path, comparison.drop(columns=["detectable", "no_worse"]))
    rebuild_report(run, folded.path.parent.parent / "images")
    page = run.report_path.read_text(encoding="utf-8")
    for words in ("Means over", "no worse</th>", "a difference of at least"):
        assert words not in page
    assert "cannot be told apart" in page or "worse by" in page


def test_the_margin_of_no_worse_is_that_of_the_protocol(folded, monkeypatch):
    margins = []

    def compared(*arguments):
        margins.append(arguments[-1])
        return pd.DataFrame()

    monkeypatch.setattr(evaluate, "compare_predictions", compared)
    job = Job(folded.config(), folded.path.parent.parent / "images", folded, Nobody())
    evaluate.compare(job, "hog_rbf", pd.Series())
    assert margins == [0.02, 0.02, 0.01, 0.01]


def test_the_same_numbers_with_and_without_folds(folded, tmp_path):
    """Asking for folds changes nothing about the holdout."""
    again = cvpipe.run(
        folded.path.parent.parent / "pipeline.toml", ["split.protocol=holdout"],
        runs_path=tmp_path,
    )  # fmt: skip
    for name in CONTENDERS:
        for split in ("val", "test"):
            one, other = (r.predictions_path(name, split).read_bytes() for r in (again, folded))
            assert one == other
    assert "fold" not in again.manifest()
    assert set(again.metrics()["protocol"]) == {"holdout", "careless"}


@pytest.fixture
def repeated(folded, tmp_path):
    """A job whose holdout and first folds are those of the finished run, with one more repeat."""
    job = make_job(folded, tmp_path)
    for name in ("metrics", "comparison", "careless", "subgroups", "folds"):
        (job.run.path / f"{name}.csv").unlink()
    raw = job.config.model_dump(mode="json")
    raw["split"]["num_repeats"] = 2
    manifest = folded.manifest()
    targets = (manifest["label"] == "upright").to_numpy().astype(int)
    again = divide(
        manifest[["image_id", "label", "group", "sha256", "camera"]],
        targets,
        validate_config(raw).split,
        job.config.seed,
    )
    pd.testing.assert_frame_equal(again[list(manifest)], manifest)
    write_table(job.run.manifest_path, again)
    return replace(job, config=validate_config(raw))


def test_repeats_of_the_folds(repeated, folded, monkeypatch):
    calls = []
    fit_rows = contenders.fit_rows

    def interrupted(job, contender, rows, **options):
        calls.append((contender.name, set(rows["group"])))
        if len(calls) == 14:  # in the first fold of the second repeat
            raise KeyboardInterrupt
        return fit_rows(job, contender, rows, **options)

    monkeypatch.setattr(protocols, "fit_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(repeated)
    run_evaluation(repeated)
    run, manifest = repeated.run, repeated.run.manifest()
    expected = [
        (name, set(manifest.loc[manifest[column] != fold, "group"]))
        for column in ("fold", "fold_r1")
        for name in CONTENDERS
        for fold in "012"
    ]
    assert calls == [*expected[:14], *expected[13:]]

    metrics = run.metrics()
    # What there was without repeats is as it was.
    first = metrics[metrics["repeat"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, folded.metrics())
    for name in ("comparison", "subgroups", "careless"):
        pd.testing.assert_frame_equal(getattr(run, name)(), getattr(folded, name)())
    groups = manifest.set_index("image_id")["group"]
    further = metrics[metrics["repeat"] == 1]
    assert set(further["protocol"]) == {"kfold"}
    assert set(further["split"]) == {"test"}
    scored = score_predictions(run.predictions("test", "hog_rbf", "kfold", 1), groups, 0, 200)
    mine = further[further["contender"] == "hog_rbf"]
    np.testing.assert_array_equal(mine["value"], scored["value"])
    assert further[["low", "high"]].isna().all(axis=None)  # only their spread is told
    one, other = (run.predictions_path("hog_rbf", "test", "kfold", r) for r in (0, 1))
    assert (one.name, other.name) == ("kfold-test-r0.csv", "kfold-test-r1.csv")
    assert one.read_bytes() != other.read_bytes()
    assert accuracy_table(run)["contender"].tolist() == CONTENDERS

    assert set(run.folds()["num_fits"]) == {6}

    spread = run.repeats()
    assert len(spread) == len(further)
    assert set(spread["num_repeats"]) == {2}
    keys = ["contender", "metric", "label"]
    for row in spread.itertuples():
        matching = (metrics[keys] == [row.contender, row.metric, row.label]).all(axis=1)
        a, b = metrics.loc[matching & (metrics["protocol"] == "kfold"), "value"]
        assert row.mean == pytest.approx((a + b) / 2, nan_ok=True)
        assert row.standard_deviation == pytest.approx(abs(a - b) / 2**0.5, nan_ok=True)
    assert (spread["standard_deviation"] > 0).any()


def test_one_repeat_has_no_spread(folded):
    assert not folded.repeats_path.exists()


# The careless split.


def test_the_careless_split_is_predicted_by_a_fit_on_its_own_train(folded):
    config, manifest = folded.config(), folded.manifest()
    root = folded.path.parent.parent / "images"
    train = manifest[manifest["careless"] == "train"]
    test = manifest[manifest["careless"] == "test"]
    describer = fixed_describer(config.contender[2].features, setup_of(config))
    features = [describer.describe(files_of(root, rows), Nobody()) for rows in (train, test)]
    k = json.loads((folded.part_path("pixels_knn") / "fit.json").read_text())["chosen"]["k"]
    distances = ((features[1][:, None].astype(float) - features[0][None]) ** 2).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : int(k)]
    share = (train["label"].to_numpy()[nearest] == "NA").mean(axis=1)
    predictions = folded.predictions("test", "pixels_knn", "careless")
    assert predictions["image_id"].tolist() == test["image_id"].tolist()
    votes = np.stack([1 - share, share], axis=1)
    calibrated = load_calibration(folded, "pixels_knn").apply(votes)[:, 1]
    np.testing.assert_allclose(predictions["p_NA"], calibrated)


def test_the_table_sets_both_figures_beside_each_other(folded):
    table = folded.careless()
    assert table["contender"].tolist() == CONTENDERS
    assert table.set_index("contender")["holdout"].equals(accuracies(folded, "holdout")[CONTENDERS])
    careless = accuracies(folded, "careless")[CONTENDERS]
    assert table.set_index("contender")["careless"].equals(careless)
    np.testing.assert_allclose(table["difference"], table["careless"] - table["holdout"])
    rows = folded.metrics().query("split == 'test' and metric == 'accuracy' and label == ''")
    rows = rows[rows["contender"] == "pixels_knn"].set_index("protocol")[["value", "low", "high"]]
    low, high = difference_interval(tuple(rows.loc["careless"]), tuple(rows.loc["holdout"]))
    shown = table.set_index("contender").loc["pixels_knn"]
    assert (shown["low"], shown["high"]) == pytest.approx((low, high))


def test_a_careless_split_of_bursts_invents_an_accuracy(bursts):
    """A coin decided the labels, so whatever is far above one half is made by the split."""
    grouped, careless = (accuracies(bursts, p)["hog_rbf"] for p in ("holdout", "careless"))
    assert 0.3 <= grouped <= 0.7
    assert careless > 0.75
    (risk,) = [r for r in find_risks(bursts) if "random split" in r.headline]
    worst = bursts.careless().set_index("contender").loc[["pixels_knn", "hog_rbf"]]
    worst = worst.loc[worst["difference"].idxmax()]
    assert worst["difference"] == pytest.approx(worst["careless"] - worst["holdout"])
    assert worst["low"] > 0.1
    assert worst["low"] < worst["difference"] < worst["high"]
    assert f"{worst.name} would then seem to name {worst['careless']:.1%}" in risk.text
    assert f"instead of {worst['holdout']:.1%}" in risk.text
    page = bursts.report_path.read_text(encoding="utf-8")
    assert risk.headline in page


@pytest.mark.parametrize(
    "section",
    [
        {"by": ["site"]},
        {"protocol": "temporal", "time_column": "taken"},
        {"protocol": "given"},
        {"protocol": "kfold", "by": ["site"]},
    ],
)
def test_time_and_site_may_be_why_a_careless_split_flatters(bursts, section, monkeypatch):
    raw = bursts.config().model_dump(mode="json")
    raw["split"] |= section
    config = validate_config(raw)
    rows = {
        name: getattr(bursts, name)().replace("holdout", careful_protocols(config)[-1])
        for name in ("metrics", "comparison")
    }
    monkeypatch.setattr(type(bursts), "config", lambda run: config)
    for name, table in rows.items():
        monkeypatch.setattr(type(bursts), name, lambda run, table=table: table)
    assert not [risk for risk in find_risks(bursts) if "random split" in risk.headline]


def test_the_careless_split_can_be_left_out(folded, tmp_path):
    run = cvpipe.run(
        folded.path.parent.parent / "pipeline.toml",
        ["split.protocol=holdout", "split.careless=false"],
        runs_path=tmp_path,
    )
    assert run.careless().empty
    assert set(run.metrics()["protocol"]) == {"holdout"}
    assert "careless" not in run.manifest()
    assert "careless split" not in accuracy_table(run)
    assert run.is_finished


# Subgroups.


def test_subgroups_are_scored_on_their_own_images(folded):
    table = folded.subgroups()
    cameras = folded.manifest().set_index("image_id")["camera"]
    assert set(table["subgroup"]) == {"old", ""}
    assert set(table["protocol"]) == {"holdout", "kfold"}
    assert table["value"].is_monotonic_increasing
    for row in table.itertuples():
        predictions = folded.predictions("test", row.contender, row.protocol)
        part = predictions[predictions["image_id"].map(cameras) == row.subgroup]
        correct = frames.predicted_labels(part) == part["label"].to_numpy()
        assert (row.value, row.n) == (pytest.approx(correct.mean()), len(part))
        assert row.low <= row.value <= row.high
    assert len(table) == 2 * 2 * len(CONTENDERS)


def test_a_subgroup_column_that_the_table_lacks_is_refused(folded, tmp_path):
    with pytest.raises(InputError) as caught:
        cvpipe.run(
            folded.path.parent.parent / "pipeline.toml", ['evaluate.subgroups=["camra"]'],
            runs_path=tmp_path,
        )  # fmt: skip
    assert str(caught.value).startswith("evaluate.subgroups names the column 'camra', but the")
    assert "did you mean 'camera'" in str(caught.value)
    assert not list(tmp_path.iterdir())


# What is chosen, and what endangers it.


def test_a_yardstick_is_never_chosen_beside_a_candidate(planted):
    """The shortcut is right every time, and still only tells of a danger."""
    losses = planted.metrics().query("split == 'val' and metric == 'log_loss'")
    assert losses.loc[losses["value"].idxmin(), "contender"] == "shortcut"
    choice = json.loads(planted.choice_path.read_text())
    assert choice["chosen"] in ("pixels_knn", "hog_rbf")
    assert "of 2 candidates" in choice["because"]


def test_yardsticks_alone_can_be_chosen_and_the_page_says_so(planted, tmp_path):
    root = planted.path.parent.parent
    text = (root / "pipeline.toml").read_text().split("[[contender]]")
    (tmp_path / "p.toml").write_text("[[contender]]".join(text[:3]))
    run = cvpipe.run(tmp_path / "p.toml", data=root / "images", runs_path=tmp_path / "runs")
    assert json.loads(run.choice_path.read_text())["chosen"] == "shortcut"
    assert find_risks(run)[0].headline == "No contender looks at the pictures."
    page = run.report_path.read_text(encoding="utf-8")
    assert "look at no pixel;" in page
    assert "cannot be chosen" not in page


def test_new_groups_make_a_new_run(planted, tmp_path):
    import shutil

    root = tmp_path / "work"
    shutil.copytree(planted.path.parent.parent, root)
    table = pd.read_csv(root / "images" / "labels.csv", dtype=str)
    table["group"] = [f"patient {number // 2}" for number in range(len(table))]
    table.to_csv(root / "images" / "labels.csv", index=False)
    run = cvpipe.run(root / "pipeline.toml", runs_path=root / "runs")
    assert run.path.name != planted.path.name
    assert run.manifest()["group"].nunique() == 60


def test_what_there_is_to_choose_from():
    baselines = [
        {"name": "majority", "classifier": "majority"},
        {"name": "files", "features": ["file_facts"], "classifier": "softmax"},
    ]
    hog = {"name": "hog_rbf", "features": ["hog"], "classifier": "rbf_svm"}
    both = {"name": "both", "features": ["file_facts", "hog"], "classifier": "rbf_svm"}
    network = {"name": "probe", "backbone": "efficientnet_lite0", "recipe": "linear_probe"}

    def candidates_of(*contenders):
        config = {"name": "a", "data": {"root": "x"}, "contender": list(contenders)}
        return candidates(validate_config(config))

    assert candidates_of(*baselines, hog, both, network) == ["hog_rbf", "both", "probe"]
    assert candidates_of(*baselines) == ["majority", "files"]


def test_risks_of_labels_that_the_size_gives_away(planted):
    unseen, shortcut = find_risks(planted)
    assert unseen.headline == "The chosen contender is not shown to use the pictures."
    chosen = json.loads(planted.choice_path.read_text())["chosen"]
    assert unseen.text.startswith(f"{chosen} is not shown to be better than shortcut")
    assert shortcut.headline == "The file gives the label away."
    assert "shortcut names 100.0% of the images correctly" in shortcut.text
    assert "class frequencies alone give 50.0%" in shortcut.text


def test_data_without_a_shortcut_have_no_such_risk(folded, bursts):
    assert [r for r in find_risks(folded) + find_risks(bursts) if "file" in r.headline] == []


def test_warnings_are_in_plain_words(folded):
    warnings = find_warnings(folded)
    assert any(text.startswith("hog_rbf: the best C is the ") for text in warnings)


def test_the_summary_has_a_column_for_each_protocol(folded):
    table = accuracy_table(folded)
    assert list(table) == ["contender", "test", "3 folds", "careless split", "verdict"]
    assert table["contender"].tolist() == CONTENDERS
    row = folded.metrics().query(
        "protocol == 'kfold' and contender == 'hog_rbf' and metric == 'accuracy'"
    ).iloc[0]  # fmt: skip
    assert table["3 folds"].iloc[3] == f"{row['value']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
    assert table["verdict"].tolist().count("chosen on val") == 1


def test_one_opening_of_test_for_all_protocols(folded):
    """Folds score every image, so all of them are in the ledger beside the test split."""
    rows = read_ledger(folded.path.parent)
    manifest = folded.manifest()
    scored = [manifest[manifest["split"] == "test"], manifest]
    assert [row["test_fingerprint"] for row in rows] == [fingerprint_of(part) for part in scored]
    assert len({row["config_hash"] for row in rows}) == 1
    # Whoever divides the same images anew into folds and test has looked at them before.
    assert count_openings(folded, manifest.assign(split="test")) == 1
