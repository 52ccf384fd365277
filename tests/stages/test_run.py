"""The whole line, on real photos with a real network, through the command line."""

import importlib
import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvpipe
from cvpipe import frames
from cvpipe.contender_sections import NetworkContender
from cvpipe.data.findings import findings_table, make_finding
from cvpipe.evaluation.label_suspects import SUSPECT_COLUMNS
from cvpipe.evaluation.metrics import accuracy
from cvpipe.export.files import hash_of
from cvpipe.files import write_json, write_table
from cvpipe.runs import Run, open_run, read_ledger
from cvpipe.stages.halves import rows_for_stopping
from cvpipe.stages.job import Job, Nobody
from cvpipe.stages.risks import find_warnings
from tests.conftest import CLASS_PHOTOS, IMAGES_PER_CLASS, run_cvpipe

CONTENDERS = ["majority", "shortcut", "hog_svm", "linear_probe"]
NUM_IMAGES = len(CLASS_PHOTOS) * IMAGES_PER_CLASS


def test_what_a_person_reads(finished):
    assert finished.returncode == 0, finished.stderr
    assert "48 images, 4 contenders: about" in finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[-1] == f"report: {finished.run.relative_to(finished.cwd)}/report.html"
    assert lines[1].split() == ["contender", "test", "careless", "split", "verdict"]
    assert [line.split()[0] for line in lines[2:6]] == CONTENDERS
    assert sum("chosen on val" in line for line in lines) == 1


def test_nothing_half_written_or_absolute_remains(run, photos):
    files = [p for p in run.path.rglob("*") if p.is_file()]
    assert not [p for p in files if "partial" in p.name]
    texts = [p for p in files if p.suffix in (".json", ".csv", ".html", ".md")]
    assert len(texts) > 10
    secret = str(photos.parent)
    assert not [p for p in texts if secret in p.read_text(encoding="utf-8")]


def test_manifest_holds_every_image_once(run, photos):
    manifest = run.manifest()
    on_disk = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.*g"))
    assert manifest["image_id"].tolist() == on_disk
    assert set(manifest["label"]) == set(CLASS_PHOTOS)
    assert run.class_names() == ["0", "NA", "poppy"]
    counts = pd.crosstab(manifest["label"], manifest["split"])
    assert counts["test"].tolist() == [3, 3, 3]
    assert counts["val"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_every_contender_predicts_every_image_of_a_split_once(run, contender, split):
    manifest = run.manifest()
    predictions = run.predictions(split, contender)
    rows = manifest[manifest["split"] == split]
    assert predictions["image_id"].tolist() == rows["image_id"].tolist()
    assert predictions["label"].tolist() == rows["label"].tolist()
    assert list(predictions)[2:] == ["p_0", "p_NA", "p_poppy"]


@pytest.mark.parametrize("contender", CONTENDERS)
def test_a_stored_contender_gives_its_table_again_from_the_image_files(run, photos, contender):
    stored = run.predictions("test", contender)
    classifier = cvpipe.load(run.path, contender)
    fresh = classifier.predict_proba([photos / image_id for image_id in stored["image_id"]])
    assert fresh["image_id"].tolist() == [str(photos / i) for i in stored["image_id"]]
    np.testing.assert_allclose(
        frames.probabilities_of(fresh), frames.probabilities_of(stored), atol=1e-6
    )


def test_the_photos_are_told_apart(run):
    """Crops of three photos: a network that works gets nearly all, the majority a third."""
    truth = {
        name: frames.targets_of(run.predictions("test", name)["label"], run.class_names())
        for name in CONTENDERS
    }
    values = {
        name: float(accuracy(truth[name], frames.probabilities_of(run.predictions("test", name))))
        for name in CONTENDERS
    }
    assert values["majority"] == pytest.approx(1 / 3)
    assert values["linear_probe"] >= 8 / 9


def test_metrics_are_those_of_the_stored_predictions(run):
    rows = run.metrics().query("split == 'test' and metric == 'accuracy' and label == ''")
    assert rows["contender"].tolist() == 2 * CONTENDERS
    assert rows["protocol"].tolist() == 4 * ["holdout"] + 4 * ["careless"]
    for row in rows.itertuples():
        table = run.predictions("test", row.contender, row.protocol)
        correct = (frames.predicted_labels(table) == table["label"]).mean()
        assert row.value == pytest.approx(correct)
        assert row.low <= row.value <= row.high
    val = run.metrics().query("split == 'val'")
    assert val["low"].isna().all()
    assert val["high"].isna().all()


def test_the_choice_is_the_lowest_log_loss_on_val(run):
    losses = run.metrics().query("split == 'val' and metric == 'log_loss'")
    best = losses.loc[losses["value"].idxmin(), "contender"]
    assert json.loads(run.choice_path.read_text())["chosen"] == best


def test_comparison_has_every_other_contender(run):
    chosen = json.loads(run.choice_path.read_text())["chosen"]
    table = run.comparison()
    assert set(table["protocol"]) == {"holdout"}
    rows = table[table["reference"] == chosen]
    assert set(rows["contender"]) == set(CONTENDERS) - {chosen}
    # What the facts of the files give away is measured against the class frequencies.
    assert set(table[table["reference"] != chosen]["reference"]) == {"majority"}
    assert set(table[table["reference"] != chosen]["contender"]) == {"shortcut"}


def test_the_test_split_was_opened_once(run):
    rows = read_ledger(run.path.parent)
    assert [row["run"] for row in rows] == [run.path.name]
    assert run.report_path.exists()


def test_export_says_that_it_passed(run):
    parity = json.loads((run.export_path / "linear_probe" / "parity.json").read_text())
    assert parity["passed"] is True
    keras = parity["formats"]["keras"]
    assert keras["passed"] is True
    for split in ("val", "test"):
        assert keras["splits"][split]["num_images"] == 9
        assert keras["splits"][split]["largest_difference"] <= 1e-6


def test_bundle_names_each_figure_of_the_exported_model_once(run):
    """Those of the holdout: the careless split and folds were fitted anew."""
    facts = json.loads((run.export_path / "linear_probe" / "bundle.json").read_text())
    names = [row["metric"] for row in facts["test_metrics"]]
    assert len(names) == len(set(names)) > 5
    rows = run.metrics().query("protocol == 'holdout' and split == 'test' and label == ''")
    rows = rows[rows["contender"] == "linear_probe"].set_index("metric")
    for figure in facts["test_metrics"]:
        assert figure["value"] == rows.loc[figure["metric"], "value"]


def test_bundle_alone_predicts_what_was_measured(run, photos, tmp_path):
    bundle = tmp_path / "moved"
    shutil.copytree(run.export_path / "linear_probe", bundle)
    stored = run.predictions("test", "linear_probe")
    fresh = cvpipe.load(bundle).predict_proba([photos / i for i in stored["image_id"]])
    np.testing.assert_allclose(
        frames.probabilities_of(fresh), frames.probabilities_of(stored), atol=1e-6
    )


def test_exported_file_holds_only_layers_of_keras_itself(run):
    """Nothing of cvpipe is needed to load it, and it holds no code."""
    with zipfile.ZipFile(run.export_path / "linear_probe" / "model.keras") as file:
        config = json.loads(file.read("config.json"))
    modules = {layer["module"] for layer in config["config"]["layers"]}
    assert modules == {"keras.layers"}
    assert config["config"]["layers"][0]["config"]["dtype"] == "uint8"


def test_verify_fails_when_the_file_is_another(run, finished, tmp_path):
    """Exchange two rows of the measured table: the check must notice."""
    copy = finished.cwd / "runs" / "tampered"
    shutil.copytree(run.path, copy)
    try:
        path = copy / "contenders" / "linear_probe" / "predictions" / "holdout-test.csv"
        table = frames.read_predictions(path)
        columns = frames.probability_columns(table)
        table.loc[0, columns] = np.roll(table.loc[0, columns].to_numpy(), 1)
        table.to_csv(path, index=False)
        answer = run_cvpipe("verify", copy / "export" / "linear_probe", cwd=finished.cwd)
        assert answer.returncode == 1, answer.stderr
        assert "keras: NOT PASSED, its probabilities differ by up to 0." in answer.stdout
        assert " on test, and 1e-05 is allowed" in answer.stdout
        assert " on val, and" not in answer.stdout
        again = run_cvpipe("run", copy / "config.json", cwd=finished.cwd)
        assert again.returncode == 0, "the untouched run of the same config is unaffected"
    finally:
        shutil.rmtree(copy)


def test_verify_refuses_other_images_and_keeps_the_proof(run, finished, photos, tmp_path):
    other = tmp_path / "photos"
    shutil.copytree(photos, other)
    changed = other / run.predictions("val", "majority")["image_id"].iloc[0]
    Image.new("RGB", (40, 40)).save(changed)
    proof = run.export_path / "linear_probe" / "parity.json"
    before = proof.read_bytes()
    answer = run_cvpipe("verify", proof.parent, "--data", other, cwd=finished.cwd)
    assert answer.returncode == 2
    assert "is not the image that the run was made with" in answer.stderr
    assert changed.name in answer.stderr
    assert proof.read_bytes() == before


def test_a_finished_run_is_not_made_again(run, finished):
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    settings = ["--set", "threads=2", "--set", "evaluate.resamples=200"]
    for arguments in (["photos", "--preset", "quick", *settings], [run.config_path]):
        answer = run_cvpipe("run", *arguments, cwd=finished.cwd)
        assert answer.returncode == 0, answer.stderr
        assert "finished before" in answer.stderr
        assert str(run.report_path.relative_to(finished.cwd)) in answer.stdout
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_report_can_be_rebuilt_to_the_same_bytes(run, finished):
    before = run.report_path.read_bytes()
    answer = run_cvpipe("report", run.path, cwd=finished.cwd)
    assert answer.returncode == 0, answer.stderr
    assert run.report_path.read_bytes() == before


def test_report_of_a_run_without_the_tables_it_needs_is_refused(run, photos, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(run.path, old)
    (old / "careless.csv").unlink()
    answer = run_cvpipe("report", old, "--data", photos, cwd=tmp_path)
    assert answer.returncode == 2
    assert "was made by an older cvpipe and lacks tables" in answer.stderr


def test_report_of_a_moved_run_works_from_inside_it(run, photos, tmp_path):
    """Away from its ledger and its images, which are named."""
    moved = tmp_path / "moved"
    shutil.copytree(run.path, moved)
    (moved / "report.html").write_text("old")
    answer = run_cvpipe("report", ".", "--data", photos, cwd=moved)
    assert answer.returncode == 0, answer.stderr
    page = (moved / "report.html").read_text(encoding="utf-8")
    assert "moved" in page
    assert "has been scored by one config" in page


def test_predict_prints_a_table(run, finished, tmp_path):
    picture = tmp_path / "new photo.png"
    Image.new("RGB", (50, 70), (200, 30, 30)).save(picture)
    answer = run_cvpipe("predict", run.path, picture, cwd=finished.cwd)
    assert answer.returncode == 0, answer.stderr
    header, row = answer.stdout.splitlines()
    assert header == "image,predicted,p_0,p_NA,p_poppy"
    values = row.split(",")
    assert values[0] == str(picture)
    probabilities = [float(v) for v in values[2:]]
    assert sum(probabilities) == pytest.approx(1)
    assert values[1] == ["0", "NA", "poppy"][int(np.argmax(probabilities))]


def test_predict_refuses_what_is_no_image(run, finished, tmp_path):
    (tmp_path / "notes.jpg").write_text("not a picture")
    answer = run_cvpipe("predict", run.path, tmp_path / "notes.jpg", cwd=finished.cwd)
    assert answer.returncode == 2
    assert "notes.jpg" in answer.stderr
    assert "its content is none of BMP" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_model_file_with_code_in_it_is_refused(run, finished, tmp_path):
    """A Lambda layer holds Python byte code; loading one would execute it."""
    import keras

    keras.config.enable_unsafe_deserialization()
    evil = keras.Sequential([keras.Input((1,)), keras.layers.Lambda(lambda x: x)])
    bundle = tmp_path / "evil"
    shutil.copytree(run.export_path / "linear_probe", bundle)
    evil.save(bundle / "model.keras")
    facts = json.loads((bundle / "bundle.json").read_text())
    facts["sha256"]["keras"] = hash_of(bundle / "model.keras")  # or it would not even be opened
    (bundle / "bundle.json").write_text(json.dumps(facts))
    answer = run_cvpipe("predict", bundle, bundle / "README.md", cwd=finished.cwd)
    assert answer.returncode != 0
    assert "Lambda" in answer.stderr


def test_quiet_prints_the_report_alone(finished):
    arguments = ["--preset", "quick", "--set", "threads=2", "--set", "evaluate.resamples=200"]
    answer = run_cvpipe("run", "photos", *arguments, "--quiet", cwd=finished.cwd)
    assert answer.stderr == ""
    assert answer.stdout.startswith("report: runs/photos-")
    assert len(answer.stdout.splitlines()) == 1


def test_the_stage_hands_only_train_rows_to_fit(run, photos, tmp_path, monkeypatch):
    """The manifest's train rows are all that any contender's fit ever receives."""
    seen = []
    stages = importlib.import_module("cvpipe.stages.run")
    monkeypatch.setattr(
        stages, "fit_contender", lambda job, contender, *rows: seen.append((contender, *rows))
    )
    monkeypatch.setattr(stages, "predict_split", lambda *_: None)
    later = ("fit_unlike", "run_evaluation", "run_learning_curve", "measure_unlike")
    for name in (*later, "run_suspects", "run_export", "run_report"):
        monkeypatch.setattr(stages, name, lambda job: None)
    copy = Run(tmp_path / "runs" / "copy")
    copy.path.mkdir(parents=True)
    for path in (run.manifest_path, run.classes_path, run.config_path):
        shutil.copy(path, copy.path)
    stages.run_stages(Job(run.config(), photos, copy, Nobody()), rows=None)
    assert len(seen) == 4
    manifest = run.manifest()
    train = manifest.loc[manifest["split"] == "train", "image_id"].tolist()
    assert all(rows["image_id"].tolist() == train for _, rows, _ in seen)
    # By half A of val, or what takes its place, the training of a network is stopped.
    val = manifest[manifest["split"] == "val"]
    stopping = val.loc[rows_for_stopping(val), "image_id"].tolist()
    assert all(rows["image_id"].tolist() == stopping for _, _, rows in seen)
    assert [contender for contender, _, _ in seen] == list(run.config().contender)
    assert any(isinstance(c, NetworkContender) for c in run.config().contender)


def test_a_test_split_too_small_for_an_answer_is_warned_of(run, tmp_path):
    """Nine test images: .9 can be anything between .57 and .98."""
    (warning,) = [text for text in find_warnings(run) if "too few" in text]
    assert warning.startswith("The test images are too few to place an accuracy of 90 % to within")
    assert warning.endswith("collect more images of new groups.")
    assert warning in run.report_path.read_text(encoding="utf-8")
    copy = open_run(shutil.copytree(run.path, tmp_path / run.path.name))
    enough = {"test": {**run.expectations()["test"], "half_width_of_groups": 0.05}}
    write_json(copy.expectation_path, enough)
    assert [text for text in find_warnings(copy) if "too few" in text] == []


def test_labels_are_doubted_after_everything_was_measured(run):
    stages = list(run.timings())
    assert stages.index("suspects") > stages.index("test")
    assert list(run.suspects()) == SUSPECT_COLUMNS
    moments = [p.stat().st_mtime_ns for p in (run.metrics_path, run.suspects_path, run.report_path)]
    assert moments == sorted(moments)


def test_doubted_labels_are_told(run, tmp_path):
    copy = open_run(shutil.copytree(run.path, tmp_path / run.path.name))
    suspect = ["a.png", "0", "NA", 0.1, 0.8, -0.7]
    write_table(copy.suspects_path, pd.DataFrame([suspect] * 2, columns=SUSPECT_COLUMNS))
    told = "2 image(s) look as if another label were right; look at them: suspects.csv in the run"
    assert [text for text in find_warnings(copy) if "label" in text] == [f"{told} folder."]


def test_of_many_findings_of_one_kind_the_first_is_told(run, tmp_path):
    copy = open_run(shutil.copytree(run.path, tmp_path / run.path.name))
    findings = [
        make_finding("metadata_shortcut", reason)
        for reason in ("size tells all", "width tells most")
    ]
    write_table(copy.findings_path, findings_table(findings))
    assert find_warnings(copy)[0] == "size tells all (1 more of this kind)."
