"""Contenders of one run and of several, without a network, in this process."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

import cvpipe
from cvpipe import frames
from cvpipe.cli import main
from cvpipe.errors import InputError
from cvpipe.files import read_json, write_json, write_table
from cvpipe.report.compare_page import CONTENDER_COLUMNS
from cvpipe.runs import Run, record_test_opening
from cvpipe.stages.compare import (
    as_values,
    compare_runs,
    count_configs,
    describe_comparison,
    join_groupings,
    match_images,
    write_contenders,
)

HEAD = """
threads = {threads}
seed = {seed}
[data]
root = "images"
[split]
careless = false
test_fraction = 0.4
[evaluate]
resamples = {resamples}
"""
CONTENDERS = {
    "majority": 'classifier = "majority"',
    "pixels_knn": 'features = ["raw_pixels"]\nclassifier = "nearest_neighbours"',
    "colour_softmax": 'features = ["colour_histogram"]\nclassifier = "softmax"',
    "small_knn": 'features = ["colour_histogram"]\nclassifier = "nearest_neighbours"',
}
DOCS = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")


def write_images(folder):
    """Noise whose brightness tells the class, but not surely."""
    rng = np.random.default_rng(0)
    for brightness, label in enumerate(("0", "NA", "poppy")):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(40):
            level = 100 + 20 * brightness + 25 * rng.normal()
            pixels = np.clip(level + rng.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{number:02}.png")


def make_run(folder, name, contenders, seed=0, resamples=100, threads=2):
    text = HEAD.format(seed=seed, resamples=resamples, threads=threads)
    for contender in contenders:
        search = "" if contender == "majority" else '\nsearch = "coarse"'
        text += f'[[contender]]\nname = "{contender}"\n{CONTENDERS[contender]}{search}\n'
    (folder / f"{name}.toml").write_text(text)
    return cvpipe.run(folder / f"{name}.toml", runs_path=folder / "runs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """`a` and `b` share a test split, `c` has another one."""
    folder = tmp_path_factory.mktemp("compare")
    write_images(folder)
    return {
        "a": make_run(folder, "a", ["majority", "pixels_knn", "colour_softmax"]),
        "b": make_run(folder, "b", ["pixels_knn", "small_knn"], resamples=200, threads=1),
        "c": make_run(folder, "c", ["majority", "colour_softmax"], seed=1),
    }


@pytest.fixture
def copy(tmp_path):
    """Copies a run, so that it can be damaged, to a place without a ledger."""

    def copy_run(run, name=None):
        return Run(shutil.copytree(run.path, tmp_path / "moved" / (name or run.path.name)))

    return copy_run


def chosen_of(run):
    return read_json(run.choice_path)["chosen"]


def right(run, contender):
    table = run.predictions("test", contender)
    return frames.predicted_labels(table) == table["label"].to_numpy()


def own_groups(run):
    manifest = run.manifest()
    return (manifest["group"] == manifest["image_id"]).all()


def test_a_run_compares_as_its_report_does(runs):
    """Bit for bit: what the run stored, and what is computed from its predictions."""
    run = runs["a"]
    comparison = compare_runs([run.path])
    pd.testing.assert_frame_equal(
        comparison.table, run.contenders(), check_exact=True, check_dtype=False
    )
    assert comparison.reference == chosen_of(run)
    assert comparison.is_chosen
    assert comparison.notes == []
    assert comparison.num_images == len(run.predictions("test", "majority"))
    assert comparison.baselines == {"majority"}
    metrics = run.metrics().query("split == 'test' and label == ''").set_index("contender")
    for row in comparison.table.to_dict("records"):
        for metric in ("accuracy", "log_loss", "ece"):
            stored = metrics[metrics["metric"] == metric].loc[row["contender"]]
            assert row[metric] == stored["value"]
            assert (row[f"{metric}_low"], row[f"{metric}_high"]) == (stored["low"], stored["high"])
        assert row["accuracy"] == pytest.approx(right(run, row["contender"]).mean())
        part = run.part_path(row["contender"])
        assert row["fit_seconds"] == read_json(part / "fit.json")["fit_seconds"]
        assert row["model_bytes"] == (part / "model.skops").stat().st_size
        speed = read_json(run.speeds_path)[row["contender"]]
        assert row["milliseconds_per_image"] * speed == pytest.approx(1000)


def test_contenders_of_two_runs_are_compared_image_by_image(runs):
    a, b = runs["a"], runs["b"]
    comparison = compare_runs([a.path, b.path])
    table = comparison.table.set_index("contender")
    own = {
        "majority": (a, "majority"),
        f"{a.path.name}/pixels_knn": (a, "pixels_knn"),
        "colour_softmax": (a, "colour_softmax"),
        f"{b.path.name}/pixels_knn": (b, "pixels_knn"),
        "small_knn": (b, "small_knn"),
    }
    assert table.index.tolist() == list(own)
    assert table["run"].tolist() == [run.path.name for run, _ in own.values()]
    reference = comparison.reference
    assert own[reference] == (a, chosen_of(a))
    assert own_groups(a)  # so McNemar's test decides
    theirs = right(*own[reference])
    others = [name for name in own if name != reference]
    p_values = []
    for name in others:
        ours = right(*own[name])
        assert table.loc[name, "difference"] == pytest.approx(ours.mean() - theirs.mean())
        assert table.loc[name, "difference_low"] <= table.loc[name, "difference"]
        counts = (ours & ~theirs).sum(), (theirs & ~ours).sum()
        p_values.append(binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1.0)
    adjusted = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(table.loc[others, "p_adjusted"], adjusted)
    for name, p in zip(others, adjusted, strict=True):
        apart = "better" if table.loc[name, "difference"] > 0 else "worse"
        assert table.loc[name, "verdict"] == (apart if p <= 0.05 else "cannot be told apart")
    assert table.loc[reference, "verdict"] == "reference"
    assert table.loc[reference, ["difference", "p_adjusted"]].isna().all()
    assert comparison.test_openings == 2
    assert comparison.notes == [
        "The figures are computed anew from the stored predictions of all runs, with the seed (0) "
        f"and the 100 resamples of {a.path.name}, so they can differ a little from those of a "
        "report.",
        "The runs used 2, 1 threads, so their times do not compare.",
    ]


def test_the_first_run_gives_the_reference_unless_one_is_named(runs):
    a, b = runs["a"], runs["b"]
    first = compare_runs([b.path, a.path])
    assert first.table.set_index("contender").loc[first.reference, "run"] == b.path.name
    named = compare_runs([a.path, b.path], "small_knn")
    assert named.reference == "small_knn"
    assert not named.is_chosen
    assert f"reference: {first.reference}, chosen on val in {b.path.name}" in describe_comparison(
        first
    )
    assert "reference: small_knn" in describe_comparison(named)
    with pytest.raises(
        InputError, match=r"unknown contender 'pixels_knn'; did you mean '[ab]-.*/pixels"
    ):
        compare_runs([a.path, b.path], "pixels_knn")


def test_a_run_that_is_given_twice_counts_once(runs, monkeypatch):
    monkeypatch.chdir(runs["a"].path)
    once = compare_runs([runs["a"].path])
    again = compare_runs([Path(), runs["a"].path, runs["a"].path / "."])
    pd.testing.assert_frame_equal(once.table, again.table)
    both = compare_runs([runs["a"].path, runs["b"].path, runs["a"].path])
    assert both.runs == [runs["a"].path.name, runs["b"].path.name]


def test_runs_of_different_test_splits_are_refused(runs):
    a, b, c = (runs[name] for name in "abc")
    first, other = (
        set(map(tuple, m[m["split"] == "test"][["sha256", "label"]].to_numpy().tolist()))
        for m in (a.manifest(), c.manifest())
    )
    assert 0 < len(first & other) < len(first)
    words = (
        f"these runs do not share a test split: '{a.path.name}' has {len(first)} test images; "
        f"'{c.path.name}' has {len(other)}, and shares {len(first & other)} of them. Contenders"
    )
    with pytest.raises(InputError, match=re.escape(words)):
        compare_runs([a.path, b.path, c.path])


def test_runs_of_different_classes_are_refused(runs, copy):
    other = copy(runs["b"])
    write_json(other.classes_path, ["NA", "0", "poppy"])
    with pytest.raises(
        InputError, match=r"has the classes \['0', 'NA', 'poppy'\], but '.*' has \['N"
    ):
        compare_runs([runs["a"].path, other.path])


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("report.html", "is not finished, so it cannot be compared; finish it with the command"),
        ("choice.json", r"lacks \['choice.json'\]; it was made by an older cvpipe or is incompl"),
        ("config.json", "is not a run folder"),
        ("contenders/majority/predictions/holdout-test.csv", "has no predictions majority/holdo"),
    ],
)
def test_a_run_that_lacks_what_is_needed_is_refused(runs, copy, missing, words):
    run = copy(runs["a"])
    (run.path / missing).unlink()
    with pytest.raises(InputError, match=words):
        compare_runs([run.path])


def test_a_manifest_without_hashes_is_refused(runs, copy):
    run = copy(runs["a"])
    write_table(run.manifest_path, run.manifest().drop(columns="sha256"))
    with pytest.raises(
        InputError, match=r"lacks the columns \['sha256'\]; .* anew with: cvpipe run"
    ):
        compare_runs([run.path])


def test_two_folders_of_one_name_are_refused(runs, copy):
    run = copy(runs["a"])
    with pytest.raises(
        InputError, match=r"2 of the folders are called '.*', but runs are told apart"
    ):
        compare_runs([runs["a"].path, run.path])


def test_what_an_older_run_did_not_store_is_missing(runs, copy):
    run = copy(runs["a"])
    run.speeds_path.unlink()
    run.metrics_path.unlink()
    run.contenders_path.unlink()
    (run.part_path("majority") / "fit.json").unlink()
    (run.part_path("majority") / "model.skops").unlink()
    comparison = compare_runs([run.path])
    table = comparison.table.set_index("contender")
    assert table["milliseconds_per_image"].isna().all()
    assert table.loc["majority", ["fit_seconds", "model_bytes"]].isna().all()
    assert as_values(comparison)["contenders"][0]["model_bytes"] is None
    lines = describe_comparison(comparison)
    assert lines[3].split()[-3:] == ["\u2013"] * 3
    old = runs["a"].contenders().set_index("contender")
    np.testing.assert_array_equal(table["log_loss_high"], old["log_loss_high"])


def test_images_are_matched_by_content_wherever_they_lie(runs, copy):
    a, moved = runs["a"], copy(runs["b"])
    manifest = moved.manifest()
    # Under the new names the images stand in another order.
    order = np.random.default_rng(0).permutation(len(manifest))
    names = pd.Series([f"x/{p:03}.png" for p in order], index=manifest["image_id"])
    write_table(
        moved.manifest_path,
        manifest.assign(
            image_id=manifest["image_id"].map(names), group=manifest["group"].map(names)
        ).sort_values("image_id"),
    )
    for contender in ("pixels_knn", "small_knn"):
        table = moved.predictions("test", contender)
        table["image_id"] = table["image_id"].map(names)
        write_table(moved.predictions_path(contender, "test"), table.sort_values("image_id"))
    expected = compare_runs([a.path, runs["b"].path]).table
    found = compare_runs([a.path, moved.path]).table
    pd.testing.assert_frame_equal(found, expected)


def test_copies_of_one_file_are_paired():
    first = pd.DataFrame({"image_id": ["a", "b", "c"], "label": "x", "sha256": ["2", "1", "1"]})
    other = pd.DataFrame({"image_id": ["p", "q", "r"], "label": "x", "sha256": ["1", "2", "1"]})
    ids = match_images({"one": first, "two": other})
    assert ids["one"].to_dict() == {"a": "a", "b": "b", "c": "c"}
    assert ids["two"].to_dict() == {"p": "b", "q": "a", "r": "c"}


def test_groups_of_several_runs_are_joined_through_their_images():
    groupings = pd.DataFrame(
        {"one": ["g", "g", "h", "i", "j"], "two": ["u", "v", "v", "w", "x"]}, index=list("abcde")
    )
    joined = join_groupings(groupings)
    assert joined.index.tolist() == list("abcde")
    assert pd.factorize(joined)[0].tolist() == [0, 0, 0, 1, 2]
    assert join_groupings(groupings[["one"]]).tolist() == ["g", "g", "h", "i", "j"]


def test_the_coarser_groups_count_and_are_told(runs, copy):
    a, b = runs["a"], copy(runs["b"])
    manifest = b.manifest()
    test = manifest["split"] == "test"
    write_table(
        b.manifest_path, manifest.assign(group=manifest["group"].where(~test, manifest["label"]))
    )
    comparison = compare_runs([a.path, b.path])
    assert comparison.num_groups == 3
    assert comparison.notes[1] == (
        f"The runs group these test images in different ways ({comparison.num_images}, 3 groups); "
        "groups that share an image are joined, which leaves 3."
    )
    fine = compare_runs([a.path, runs["b"].path])
    assert fine.num_groups == fine.num_images
    widths = [
        (t["accuracy_high"] - t["accuracy_low"])[1:].sum() for t in (comparison.table, fine.table)
    ]
    assert widths[0] != widths[1]
    assert (comparison.table["accuracy"] == fine.table["accuracy"]).all()


def test_configs_that_scored_the_test_split_are_counted_once_each(runs, copy):
    a, b, c = (runs[name] for name in "abc")
    assert compare_runs([a.path]).test_openings == 2  # b has seen these images, too
    assert compare_runs([c.path]).test_openings == 1
    moved = copy(a)
    assert compare_runs([moved.path]).test_openings == 1
    # The ledger beside `b` knows `a` by its name.
    assert compare_runs([b.path, moved.path]).test_openings == 2
    renamed = copy(a, "renamed")
    assert compare_runs([b.path, renamed.path]).test_openings == 2
    record_test_opening(moved.path.parent, moved, "another split")
    assert count_configs([moved], ["a third split"]) == 1


def test_a_run_with_one_contender_has_a_table(runs, copy):
    run = copy(runs["a"])
    config = read_json(run.config_path)
    config["contender"] = [c for c in config["contender"] if c["name"] == chosen_of(run)]
    write_json(run.config_path, config)
    table = compare_runs([run.path]).table
    assert table["verdict"].tolist() == ["reference"]
    assert list(table) == list(CONTENDER_COLUMNS)


def test_the_stored_table_is_about_the_holdout_and_the_chosen(runs, copy):
    run = copy(runs["a"])
    metrics, comparison = run.metrics(), run.comparison()
    write_table(run.metrics_path, pd.concat([metrics, metrics.assign(protocol="kfold", value=0.1)]))
    other = comparison.assign(reference="majority", difference=0.1)
    folds = comparison.assign(protocol="kfold", difference=0.2)
    write_table(run.comparison_path, pd.concat([comparison, other, folds]))
    expected = run.contenders()
    run.contenders_path.unlink()
    write_contenders(run)
    pd.testing.assert_frame_equal(run.contenders(), expected)


def call(capsys, *arguments):
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def test_what_a_person_reads(runs, capsys):
    a, b = runs["a"], runs["b"]
    code, out, err = call(capsys, "compare", a.path, b.path)
    lines = out.replace("\u00a0", " ").splitlines()
    assert (code, err) == (0, "")
    n = compare_runs([a.path]).num_images
    assert lines[0] == (
        f"accuracy on {n} test images in {n} groups, with 95 % intervals; differences in points"
    )
    titles = "contender run accuracy difference p verdict log loss ECE fitting ms/image file"
    assert lines[2].split() == titles.split()
    assert [line.split()[:2] for line in lines[3:8]] == [
        *([name, a.path.name] for name in ("majority", "pixels_knn", "colour_softmax")),
        *([name, b.path.name] for name in ("pixels_knn", "small_knn")),
    ]
    assert lines[8].startswith("This test split has been scored by 2 configs. Every further look")
    assert lines[-1] == "The runs used 2, 1 threads, so their times do not compare."
    (reference,) = (line for line in lines[3:8] if "reference" in line)
    assert reference.split()[1] == a.path.name
    alone = call(capsys, "compare", a.path)[1].splitlines()
    assert alone[2].split()[:2] == ["contender", "accuracy"]
    row = compare_runs([a.path], "colour_softmax").table.iloc[0]
    told = call(capsys, "compare", a.path, "--reference", "colour_softmax")[1]
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    assert f"{100 * row['difference']:+.1f} ({low:+.1f} to {high:+.1f})" in told


def test_tables_and_pages_are_written(runs, capsys, tmp_path):
    a, b = runs["a"], runs["b"]
    csv, html = tmp_path / "new folder" / "t.csv", tmp_path / "p.html"
    arguments = ("compare", a.path, b.path, "--csv", csv, "--html", html)
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert out.splitlines()[-2:] == [f"table: {csv}", f"page: {html}"]
    comparison = compare_runs([a.path, b.path])
    written = frames.read_text_table(csv)
    assert list(written) == list(CONTENDER_COLUMNS)
    assert written["contender"].tolist() == comparison.table["contender"].tolist()
    assert written["log_loss"].map(float).tolist() == comparison.table["log_loss"].tolist()
    page = html.read_text(encoding="utf-8")
    assert "Accuracy against time" in page
    assert "has been scored by 2 configs" in page
    code, out, _ = call(capsys, *arguments, "--json")
    values = json.loads(out)
    assert values == as_values(comparison)
    assert values["contenders"][0]["run"] == a.path.name
    assert [row["difference"] for row in values["contenders"]].count(None) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--csv", "t.txt"], "the table is to be called 't.txt'; its name must end with .csv."),
        (
            ["--html", "t.csv"],
            "the page is to be called 't.csv'; its name must end with .html or .htm.",
        ),
        (["--csv", "f.csv"], "'f.csv' is a folder; give the name of a file with --csv."),
        (["--html", "f.html"], "'f.html' is a folder; give the name of a file with --html."),
        (["--reference", "hgo"], "unknown contender 'hgo'; choose one of ['colour_softmax', "),
    ],
)
def test_what_cannot_be_done_is_said(runs, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("f.csv", "f.html"):
        (tmp_path / name).mkdir()
    code, out, err = call(capsys, "compare", runs["a"].path, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {words}")


def test_the_document_names_every_column():
    rows = re.findall(r"^\| (`.*?) \|", DOCS, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(CONTENDER_COLUMNS)


def test_the_report_shows_what_a_contender_costs(runs):
    text = runs["a"].report_path.read_text(encoding="utf-8")
    assert "Accuracy against time" in text
    size = (runs["a"].part_path("majority") / "model.skops").stat().st_size
    assert f"{size / 1000:.1f}\u00a0kB" in text
