import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
import pydicom
import pytest

from cvpipe import runs
from cvpipe.config import config_hash, preset_config, validate_config
from cvpipe.errors import InputError
from cvpipe.files import write_json, write_table, write_text
from cvpipe.frames import make_predictions
from cvpipe.runs import (
    LEDGER_NAME,
    Run,
    count_test_openings,
    manifest_fingerprint,
    open_run,
    read_ledger,
    record_test_opening,
    run_name,
    stored_root,
)
from cvpipe.stages.job import Job, Nobody

MINIMAL = {
    "name": "a",
    "data": {"root": "x"},
    "contender": [{"name": "m", "classifier": "majority"}],
}


def config_of(**changes):
    return validate_config({**preset_config("größe 1", "photos", "folders", "quick"), **changes})


def make_run(path, config=None):
    write_json(path / "config.json", (config or config_of()).model_dump(mode="json"))
    return Run(path)


# Every file of a run by the name that the documentation gives it.
PATHS = {
    "members_path": "members.csv",
    "config_path": "config.json",
    "provenance_path": "provenance.json",
    "findings_path": "audit.csv",
    "images_path": "images.csv",
    "duplicates_path": "duplicates.csv",
    "calibration_path": "calibration.csv",
    "unlike_path": "unlike.csv",
    "neighbours_path": "neighbours.csv",
    "manifest_path": "manifest.csv",
    "classes_path": "classes.json",
    "choice_path": "choice.json",
    "metrics_path": "metrics.csv",
    "comparison_path": "comparison.csv",
    "contenders_path": "contenders.csv",
    "careless_path": "careless.csv",
    "subgroups_path": "subgroups.csv",
    "suspects_path": "suspects.csv",
    "repeats_path": "repeats.csv",
    "folds_path": "folds.csv",
    "expectation_path": "expectation.json",
    "audit_page_path": "audit.html",
    "views_path": "views.csv",
    "view_speeds_path": "view_speeds.json",
    "timings_path": "timings.json",
    "speeds_path": "speeds.json",
    "report_path": "report.html",
    "export_path": "export",
    "operating_points_path": "operating_points.csv",
    "abstention_path": "abstention.csv",
    "conformal_path": "conformal.csv",
    "learning_curve_path": "learning_curve.csv",
    "forecast_path": "forecast.csv",
}


def test_paths():
    run = Run(Path("runs/a"))
    properties = {n for n, v in vars(Run).items() if isinstance(v, property)} - {"is_finished"}
    assert {name: getattr(run, name).as_posix() for name in properties} == {
        name: f"runs/a/{file_name}" for name, file_name in PATHS.items()
    }
    assert run.part_path("svm").as_posix() == "runs/a/contenders/svm/holdout"
    assert run.decisions_path("svm").as_posix() == "runs/a/contenders/svm/holdout/decisions.json"
    rounded = run.rounded_fold_path("svm", "r0-f1", "onnx-int8").as_posix()
    assert rounded == "runs/a/contenders/svm/r0-f1/rounded-onnx-int8.csv"
    assert run.part_path("svm", "r0-f1").as_posix() == "runs/a/contenders/svm/r0-f1"
    table = run.predictions_path("svm", "val").as_posix()
    assert table == "runs/a/contenders/svm/predictions/holdout-val.csv"
    # The number of the repeat is part of the name, so that more repeats can come.
    assert run.predictions_path("svm", "test", "kfold").name == "kfold-test-r0.csv"
    assert run.predictions_path("svm", "test", "careless").name == "careless-test.csv"


def rows_of(image_ids, labels, sha256s, **columns):
    return pd.DataFrame({"image_id": image_ids, "label": labels, "sha256": sha256s, **columns})


IDS, LABELS, HASHES = ["a.jpg", "b.jpg", "c.jpg"], ["x", "y", "x"], ["1", "2", "3"]


def test_fingerprint_does_not_depend_on_the_order_of_rows_and_columns():
    rows = rows_of(IDS, LABELS, HASHES, group=["1", "1", "2"])
    expected = manifest_fingerprint(rows)
    assert re.fullmatch("[0-9a-f]{64}", expected)
    assert manifest_fingerprint(rows[::-1]) == expected
    assert manifest_fingerprint(rows[["group", "sha256", "image_id", "label"]]) == expected
    # Turning one column alone gives other images.
    turned = rows_of(IDS, LABELS, HASHES[::-1], group=["1", "1", "2"])
    assert manifest_fingerprint(turned) != expected


def test_fingerprint_depends_on_every_field_and_on_where_fields_end():
    tables = [
        rows_of(IDS, LABELS, HASHES),
        rows_of(["a.jpg", "b.jpg", "d.jpg"], LABELS, HASHES),
        rows_of(IDS, ["x", "y", "y"], HASHES),
        rows_of(IDS, LABELS, ["1", "2", "4"]),
        rows_of(IDS[:2], LABELS[:2], HASHES[:2]),
        rows_of(IDS, LABELS, HASHES, group=["1", "1", "2"]),
        rows_of(IDS, LABELS, HASHES, group=["1", "2", "2"]),
        rows_of(IDS, LABELS, HASHES, camera=["1", "2", "2"]),
        rows_of(["a"], ["b,c"], ["d"]),
        rows_of(["a,b"], ["c"], ["d"]),
        rows_of(['a", "b'], ["c"], ["d"]),
        rows_of(["a"], ["b"], ["c"]),
        rows_of(["a"], ["bc"], [""]),
        rows_of(["ab"], [""], ["c"]),
        rows_of(["a\nb"], ["c"], ["d"]),
        rows_of(["a"], ["b\nc"], ["d"]),
        rows_of(["ä"], ["b"], ["c"]),
        rows_of(["\\u00e4"], ["b"], ["c"]),
        rows_of([], [], []),
    ]
    assert len({manifest_fingerprint(rows) for rows in tables}) == len(tables)


def test_run_name():
    config = config_of(seed=1)
    names = [
        run_name(config, "f" * 64),
        run_name(config_of(seed=2), "f" * 64),
        run_name(config, "e" * 64),
    ]
    assert all(re.fullmatch("größe 1-[0-9a-f]{6}", name) for name in names)
    assert len(set(names)) == 3
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"root": "/x"})})
    assert run_name(elsewhere, "f" * 64) == names[0]


def test_tables_and_lists_come_back(tmp_path):
    run = make_run(tmp_path / "a")
    assert run.config() == config_of()
    write_json(run.classes_path, ["NA", "0"])
    assert run.class_names() == ["NA", "0"]
    manifest = pd.DataFrame(
        {"image_id": ["a", "b"], "label": ["NA", "0"], "group": ["1", "01"]}, dtype=str
    )
    write_table(run.manifest_path, manifest)
    pd.testing.assert_frame_equal(run.manifest(), manifest)
    assert not run.is_finished
    write_text(run.report_path, "")
    assert run.is_finished


def test_metrics_with_missing_values_come_back(tmp_path):
    run = Run(tmp_path)
    table = pd.DataFrame(
        {
            "protocol": "holdout",
            "repeat": [0, 1, 0],
            "contender": ["a", "b", "c"],
            "label": ["", "NA", "0"],
            "value": [0.1 + 0.2, math.nan, 5e-324],
            "low": [math.nan, math.nan, 1e-17],
            "high": [1.0, math.inf, 1 / 3],
            "n": [3, 2, 1],
        }
    )
    write_table(run.metrics_path, table)
    read = run.metrics()
    for name in ("value", "low", "high"):
        assert read[name].dtype == np.float64
        np.testing.assert_array_equal(read[name], table[name])
    for name in ("repeat", "n"):
        assert read[name].dtype == "Int64"
        assert read[name].tolist() == table[name].tolist()
    assert read["label"].tolist() == ["", "NA", "0"]
    assert list(read) == list(table)


def test_comparison_with_missing_values_comes_back(tmp_path):
    run = Run(tmp_path)
    table = pd.DataFrame(
        {
            "contender": ["a", "a"],
            "reference": ["NA", "NA"],
            "metric": ["accuracy", "log_loss"],
            "difference": [-0.475, 0.1 + 0.2],
            "low": [-0.5, math.nan],
            "high": [-0.4, math.nan],
            "p_value": [7.677355054988239e-76, 0.0001],
            "p_adjusted": [1e-75, 0.0002],
            "verdict": ["worse", "worse"],
            "only_contender_right": pd.array([8, None], dtype="Int64"),
            "only_reference_right": pd.array([293, None], dtype="Int64"),
            "n": [600, 600],
            "detectable": [0.1 + 0.2, math.nan],
            "no_worse": ["shown", ""],
        }
    )
    write_table(run.comparison_path, table)
    read = run.comparison()
    assert list(read) == list(table)
    assert read["no_worse"].tolist() == ["shown", ""]
    for name in ("difference", "low", "high", "p_value", "p_adjusted", "detectable"):
        assert read[name].dtype == np.float64
        np.testing.assert_array_equal(read[name], table[name])
    for name in ("only_contender_right", "only_reference_right"):
        assert read[name].dtype == "Int64"
        assert read[name].isna().tolist() == [False, True]
        assert read[name][0] == table[name][0]
    assert read["n"].tolist() == [600, 600]
    assert read["reference"].tolist() == ["NA", "NA"]


def test_comparison_from_before_later_columns(tmp_path):
    write_text(tmp_path / "comparison.csv", "contender,difference,n\na,0.5,6\n")
    read = Run(tmp_path).comparison()
    assert read["detectable"].isna().all()
    assert read["no_worse"].tolist() == [""]


def test_table_of_the_recipes_comes_back(tmp_path):
    run = Run(tmp_path)
    numbers = ("mean", "low", "high", "difference", "difference_low", "difference_high")
    table = pd.DataFrame({"contender": ["NA", "0"], "metric": ["accuracy"] * 2})
    for name in (*numbers, "p_value", "p_adjusted"):
        table[name] = [0.1 + 0.2, math.nan]
    table = table.assign(verdict=["worse", ""], num_fits=[10, 10])
    write_table(run.folds_path, table)
    read = run.folds()
    assert read["num_fits"].tolist() == [10, 10]
    pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)


def test_comparison_of_one_contender_is_empty(tmp_path):
    write_text(tmp_path / "comparison.csv", "contender,difference,only_contender_right,n\n")
    assert Run(tmp_path).comparison().empty


def test_careless_claims_come_back(tmp_path):
    table = pd.DataFrame(
        {
            "contender": ["0", "NA"],
            "holdout": [0.1 + 0.2, math.nan],
            "careless": [0.95, 1.0],
            "difference": [0.65, math.nan],
            "low": [1e-17, math.nan],
            "high": [0.7, 1.0],
        }
    )
    write_table(Run(tmp_path).careless_path, table)
    pd.testing.assert_frame_equal(Run(tmp_path).careless(), table, check_exact=True)


def test_subgroups_come_back(tmp_path):
    table = pd.DataFrame(
        {
            "column": ["camera", "camera"],
            "subgroup": ["NA", "007"],
            "value": [0.1 + 0.2, math.nan],
            "low": [0.25, math.nan],
            "high": [0.5, math.nan],
            "n": pd.array([12, 0], dtype="Int64"),
        }
    )
    write_table(Run(tmp_path).subgroups_path, table)
    pd.testing.assert_frame_equal(Run(tmp_path).subgroups(), table, check_exact=True)


def test_duplicates_come_back(tmp_path):
    columns = ["threshold", "clusters", "largest", "mixed"]
    table = pd.DataFrame([[0, 3, 2, 0], [4, 5, 40, 1]], columns=columns, dtype="Int64")
    write_table(Run(tmp_path).duplicates_path, table)
    pd.testing.assert_frame_equal(Run(tmp_path).duplicates(), table, check_exact=True)


@pytest.mark.parametrize("row", ["half,1", "0.5,half", "0.5,0.5"])
def test_number_that_is_none_is_not_passed_on(tmp_path, row):
    write_text(tmp_path / "metrics.csv", f"value,n\n{row}\n")
    with pytest.raises((ValueError, TypeError), match=r"half|cannot safely cast"):
        Run(tmp_path).metrics()


def test_seconds_add_up_in_one_file(tmp_path):
    run = Run(tmp_path)
    assert run.timings() == {}
    assert run.speeds() == {}
    run.record_seconds("audit", 1.2345)
    run.record_seconds("split", 2.0)
    assert run.timings() == {"audit": 1.23, "split": 2.0}
    # A stage that was interrupted and resumed has taken both times.
    run.record_seconds("audit", 3.0)
    assert run.timings() == {"audit": 4.23, "split": 2.0}
    write_json(run.speeds_path, {"a": 3.5})
    assert run.speeds() == {"a": 3.5}


def test_an_interrupted_stage_has_taken_its_time(tmp_path):
    job = Job(validate_config(MINIMAL), tmp_path, Run(tmp_path), Nobody())

    def interrupted():
        with job.timed("audit", "audit"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(job.run.timings()) == {"audit"}


def test_predictions(tmp_path):
    run = make_run(tmp_path / "a")
    table = make_predictions(["a.jpg"], ["0"], np.array([[0.25, 0.75]]), ["0", "NA"])
    write_table(run.predictions_path("svm", "val"), table)
    pd.testing.assert_frame_equal(run.predictions("val", "svm"), table)
    # What a kill left behind is not listed.
    write_text(run.predictions_path("svm", "test").with_suffix(".123abc.partial.csv"), "")
    with pytest.raises(InputError) as caught:
        run.predictions("test", "svm")
    assert str(caught.value) == (
        f"{run.path} has no predictions svm/holdout-test (it has ['svm/holdout-val']); "
        f"make them with: cvpipe run {run.config_path}"
    )


def test_predictions_of_each_protocol_stand_apart(tmp_path):
    run = make_run(tmp_path / "a")
    tables = {
        protocol: make_predictions(["a.jpg"], ["0"], np.array([[p, 1 - p]]), ["0", "NA"])
        for protocol, p in (("holdout", 0.25), ("kfold", 0.5), ("careless", 0.75))
    }
    for protocol, table in tables.items():
        write_table(run.predictions_path("svm", "test", protocol), table)
    for protocol, table in tables.items():
        pd.testing.assert_frame_equal(run.predictions("test", "svm", protocol), table)
    pd.testing.assert_frame_equal(run.predictions("test", "svm"), tables["holdout"])
    run.predictions_path("svm", "test", "kfold").unlink()
    with pytest.raises(InputError) as caught:
        run.predictions("test", "svm", "kfold")
    assert str(caught.value) == (
        f"{run.path} has no predictions svm/kfold-test-r0 (it has ['svm/careless-test', "
        f"'svm/holdout-test']); make them with: cvpipe run {run.config_path}"
    )


def test_open_run(tmp_path):
    run = make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "c").mkdir()
    assert open_run(tmp_path / "a") == run
    with pytest.raises(InputError) as caught:
        open_run(tmp_path / "c")
    assert str(caught.value) == (
        f"{str(tmp_path / 'c')!r} is not a run folder (it has no config.json); the run folders "
        f"beside it are {[str(tmp_path / 'a'), str(tmp_path / 'b')]}."
    )
    with pytest.raises(InputError, match=r"beside it are \[\]"):
        open_run(tmp_path / "nowhere" / "x")


def test_data_root(tmp_path):
    config = config_of(data={"root": "../../photos"})
    run = make_run(tmp_path / "runs" / "a", config)
    with pytest.raises(InputError, match=r"are not at .*; give their folder with --data DIR"):
        runs.data_root(run, None)
    with pytest.raises(InputError, match="are not at 'nowhere'"):
        runs.data_root(run, Path("nowhere"))
    (tmp_path / "photos").mkdir()
    assert runs.data_root(run, None).resolve() == tmp_path / "photos"
    assert runs.data_root(run, tmp_path) == tmp_path


def test_source(tmp_path):
    assert runs.read_source(tmp_path) == {}
    facts = {"name": "n", "licence": "MIT", "citation": "c"}
    write_json(tmp_path / "SOURCE.json", facts)
    assert runs.read_source(tmp_path) == facts
    for foreign in ({"licence": "MIT"}, ["a"]):  # somebody's own file of that name
        write_json(tmp_path / "SOURCE.json", foreign)
        assert runs.read_source(tmp_path) == {}


def test_stored_root_inside_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    run_path = Path("runs/a")
    for root in (Path("photos"), tmp_path / "photos", Path("elsewhere/../photos")):
        stored = stored_root(root, run_path)
        assert stored == "../../photos"
        assert (run_path / stored).samefile("photos")
        assert stored_root(root, run_path.resolve()) == stored
    assert stored_root(Path(), run_path) == "../.."


def test_stored_root_outside_the_working_directory(tmp_path, monkeypatch):
    here, photos = tmp_path / "here", tmp_path / "private" / "photos"
    here.mkdir()
    photos.mkdir(parents=True)
    monkeypatch.chdir(here)
    assert stored_root(photos, Path("runs/a")) == "photos"
    assert stored_root(Path("../private/photos"), Path("runs/a")) == "photos"
    # A run outside would need the way down to here.
    (here / "photos").mkdir()
    assert stored_root(Path("photos"), tmp_path / "runs" / "a") == "photos"


def test_stored_root_through_links(tmp_path, monkeypatch):
    here, other = tmp_path / "here", tmp_path / "private"
    (here / "photos").mkdir(parents=True)
    (other / "images").mkdir(parents=True)
    (other / "runs").mkdir()
    monkeypatch.chdir(here)
    Path("linked").symlink_to(other / "images")
    assert stored_root(Path("linked"), Path("runs/a")) == "../../linked"
    # From a run folder behind a link, `..` does not lead back here.
    Path("runs").symlink_to(other / "runs")
    assert stored_root(Path("photos"), Path("runs/a")) == "photos"


@pytest.mark.parametrize(
    ("argument", "stored"),
    [
        ("/home/me/photos", "photos"),
        ("/home/me/photos/", "photos/"),
        ("/photos", "photos"),
        ("/home/me/a=b/photos", "photos"),
        ("--data=/home/me/photos", "--data=photos"),
        ("--runs=/home/me/my runs", "--runs=my runs"),
        ("data.root=/home/me/photos", "data.root=photos"),
        ('data.root="/home/me/photos"', 'data.root="photos"'),
        ("data.root='/home/me/photos'", "data.root='photos'"),
        ("--set=data.root=/home/me/photos", "--set=data.root=photos"),
        ("pipelines/brain_mri.toml", "pipelines/brain_mri.toml"),
        ("a..b/photos", "a..b/photos"),
        ("../photos", "photos"),
        ("../../home/me/photos", "photos"),
        ("../../home/me/photos/", "photos/"),
        ("pipelines/../../me/photos", "photos"),
        ("./../me/photos", "photos"),
        ("data.root=../../home/me/a=b/photos", "data.root=photos"),
        ('--set=data.root="../../home/me"', '--set=data.root="me"'),
        ("..", ".."),
        (r"C:\Users\me\photos", "photos"),
        (r"C:\Users\me\photos\\", r"photos\\"),
        ("C:/Users/me/photos", "photos"),
        ("C:photos", "photos"),
        (r"--data=d:\me\my photos", "--data=my photos"),
        (r'data.root="C:\\Users\\me"', 'data.root="me"'),
        (r"..\..\me\photos", "photos"),
        (r"\\server\share\me\photos", "photos"),
        ("//server/share/photos", "photos"),
        (r"\me\photos", "photos"),
        ("split.val_fraction=0.3", "split.val_fraction=0.3"),
        ("--quiet", "--quiet"),
        ("", ""),
    ],
)
def test_command_without_folders(argument, stored, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cvpipe", "run", argument])
    told = runs.provenance(config_of(), "f", {}, [])
    assert told["command"] == ["cvpipe", "run", stored]


def test_provenance(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cvpipe", "run", "/home/me/photos"])
    config = config_of(threads=3)
    told = runs.provenance(config, "fingerprint", {"net": "abc"}, ["CPU:0"])
    assert told["config_hash"] == config_hash(config)
    assert (told["data_fingerprint"], told["weights"]) == ("fingerprint", {"net": "abc"})
    assert told["threads"] == 3
    assert told["versions"]["numpy"] == np.__version__
    assert told["versions"]["pandas"] == pd.__version__
    assert told["versions"]["pillow"] == PIL.__version__
    assert told["versions"]["pydicom"] == pydicom.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["started"])
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "/" not in json.dumps(told)


def test_git_state(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs._git_state() == {}
    git("init", "-q")
    assert runs._git_state() == {}  # no commit yet
    Path("a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "HEAD")
    assert runs._git_state() == {"commit": commit, "dirty": False}
    Path("untracked").write_text("1")
    assert runs._git_state() == {"commit": commit, "dirty": False}
    Path("a").write_text("2")
    assert runs._git_state() == {"commit": commit, "dirty": True}
    monkeypatch.setattr(runs.shutil, "which", lambda _: None)
    assert runs._git_state() == {}


def test_ledger(tmp_path):
    assert read_ledger(tmp_path / "runs") == []
    assert count_test_openings(tmp_path / "runs", ["t1"]) == 0
    first = make_run(tmp_path / "runs" / "a", config_of(seed=1))
    again = make_run(tmp_path / "runs" / "a-2", config_of(seed=1))
    other = make_run(tmp_path / "runs" / "b, ü", config_of(seed=2))
    for run, fingerprint in [
        (first, "t1"), (first, "t1"), (other, "t1"), (again, "t1"), (first, "t2"), (first, "t1"),
    ]:  # fmt: skip
        record_test_opening(tmp_path / "runs", run, fingerprint)
    rows = read_ledger(tmp_path / "runs")
    assert [(row["run"], row["test_fingerprint"]) for row in rows] == [
        ("a", "t1"), ("b, ü", "t1"), ("a-2", "t1"), ("a", "t2"),
    ]  # fmt: skip
    assert rows[0]["config_hash"] == config_hash(config_of(seed=1))
    assert rows[0]["opened"].endswith("+00:00")
    # A config counts once, however often it was run.
    assert count_test_openings(tmp_path / "runs", ["t1"]) == 2
    assert count_test_openings(tmp_path / "runs", ["t2"]) == 1
    assert count_test_openings(tmp_path / "runs", ["t3"]) == 0
    lines = (tmp_path / "runs" / LEDGER_NAME).read_text().splitlines()
    assert lines[0] == "test_fingerprint,config_hash,run,opened"
    assert len(lines) == 5


def test_ledger_begun_by_two_at_once(tmp_path):
    header = "test_fingerprint,config_hash,run,opened\n"
    rows = ["t1,c1,a,now\n", "t1,c2,b,now\n"]
    (tmp_path / LEDGER_NAME).write_text(header + rows[0] + header + rows[1])
    assert [row["run"] for row in read_ledger(tmp_path)] == ["a", "b"]
    assert count_test_openings(tmp_path, ["t1"]) == 2


def test_no_opening_is_lost_between_processes(tmp_path):
    """Processes open new ledgers together, over and over: beginning a file is the hard part."""
    num_ledgers, num_processes = 40, 3
    for number in range(num_processes):
        make_run(tmp_path / "configs" / f"r{number}", config_of(seed=number))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cvpipe.runs import Run, record_test_opening\n"
        "root, number, start = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])\n"
        f"for ledger in range({num_ledgers}):\n"
        "    time.sleep(max(0, start + ledger * 0.02 - time.time()))\n"
        "    run = Run(root / 'configs' / f'r{number}')\n"
        "    record_test_opening(root / f'runs{ledger}', run, 't')\n"
    )
    start = time.time() + 2.5
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n), str(start)])
        for n in range(num_processes)
    ]
    assert [process.wait() for process in processes] == [0] * num_processes
    counts = Counter(count_test_openings(tmp_path / f"runs{n}", ["t"]) for n in range(num_ledgers))
    assert counts == {num_processes: num_ledgers}
