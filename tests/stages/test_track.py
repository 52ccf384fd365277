"""What TensorBoard and MLflow read of a run that was copied for them."""

import shutil

import numpy as np
import pandas as pd
import pytest

from cvpipe.errors import InputError
from cvpipe.files import write_table
from cvpipe.models.training import EpochFacts
from cvpipe.runs import Run
from cvpipe.stages import track as tracking
from cvpipe.stages.track import track
from tests.conftest import run_cvpipe

NAN = float("nan")
HISTORY = [
    EpochFacts(1, 0.001, 0.9, 0.6, NAN, NAN, 1e-3),
    EpochFacts(2, 0.0005, 0.1 + 0.2, 0.8, NAN, NAN, 2e-3),
]
CURVES = {"learning_rate", "train_loss", "train_accuracy", "update_ratio"}


@pytest.fixture
def tracked(run, tmp_path):
    """A finished run, one contender of which was trained by epochs, in the holdout and a fold."""
    copy = Run(tmp_path / run.path.name)
    shutil.copytree(run.path, copy.path)
    name = copy.config().contender[0].name
    for part in ("holdout", "r0-f3"):
        path = copy.part_path(name, part) / "history.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, pd.DataFrame(HISTORY, columns=list(EpochFacts._fields)))
    return copy, name


def accuracy_of(run, contender):
    rows = run.metrics().query(
        "protocol == 'holdout' and split == 'test' and metric == 'accuracy' and label == ''"
    )
    return rows.set_index("contender")["value"][contender]


def test_tensorboard_shows_curves_and_figures(tracked, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    run, name = tracked
    place = track(run, "tensorboard", tmp_path / "boards")
    assert place == tmp_path / "boards" / run.path.name
    assert {path.name for path in place.iterdir()} == {c.name for c in run.config().contender}

    def scalars(folder):
        # Only what lies in the folder itself: the accumulator does not look further down.
        accumulator = EventAccumulator(str(folder))
        accumulator.Reload()
        return {
            tag: [(p.step, float(make_ndarray(p.tensor_proto))) for p in accumulator.Tensors(tag)]
            for tag in accumulator.Tags()["tensors"]
        }

    for part in ("holdout", "r0-f3"):
        curves = scalars(place / name / part)
        assert set(curves) == CURVES  # there was no validation, so no such curve
        steps, values = zip(*curves["train_loss"], strict=True)
        assert steps == (1, 2)
        np.testing.assert_array_equal(values, np.float32([0.9, 0.3]))
    for contender in run.config().contender:
        ((step, value),) = scalars(place / contender.name)["holdout/test/accuracy"]
        assert step == 0
        assert value == np.float32(accuracy_of(run, contender.name))


def test_mlflow_shows_settings_curves_and_figures(tracked, tmp_path):
    run, name = tracked
    folder = tmp_path / "a%20b ü?"  # none of it may be taken for a part of an address
    place = track(run, "mlflow", folder)
    assert place == folder / "mlflow.db"
    assert place.stat().st_size > 0
    client = client_of(place)
    experiment = client.get_experiment_by_name(run.path.name)
    copies = {copy.info.run_name: copy for copy in client.search_runs([experiment.experiment_id])}
    assert set(copies) == {c.name for c in run.config().contender}
    assert {copy.info.status for copy in copies.values()} == {"FINISHED"}
    for contender, copy in copies.items():
        assert copy.data.metrics["holdout/test/accuracy"] == accuracy_of(run, contender)
        assert copy.data.params["name"] == contender
    probe = run.config().contender[-1]
    assert copies[probe.name].data.params["training.learning_rate"] == "0.001"
    points = client.get_metric_history(copies[name].info.run_id, "r0-f3/train_loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.9), (2, 0.1 + 0.2)]
    assert "holdout/val_loss" not in copies[name].data.metrics


def client_of(place):
    import mlflow
    from sqlalchemy import URL

    address = URL.create("sqlite", database=str(place)).render_as_string()
    return mlflow.MlflowClient(tracking_uri=address)


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_a_run_is_not_copied_twice(tracked, tracker, tmp_path):
    run, _ = tracked
    track(run, tracker, tmp_path / "there")
    with pytest.raises(InputError, match="to copy the run anew"):
        track(run, tracker, tmp_path / "there")


def test_what_mlflow_has_deleted_but_kept_is_told_of(tracked, tmp_path):
    run, _ = tracked
    client = client_of(track(run, "mlflow", tmp_path / "there"))
    client.delete_experiment(client.get_experiment_by_name(run.path.name).experiment_id)
    with pytest.raises(InputError, match=r"not gone.*mlflow gc"):
        track(run, "mlflow", tmp_path / "there")


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow"])
def test_half_a_copy_is_not_taken_for_a_whole_one(tracked, tracker, tmp_path, monkeypatch):
    run, _ = tracked
    usual = tracking.tracked_contenders

    def breaking(of_run):
        first, second, *_ = usual(of_run)
        yield first
        yield second._replace(figures={"accuracy": "no number"})

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "tracked_contenders", breaking)
        with pytest.raises(Exception, match="no number"):
            track(run, tracker, tmp_path / "there")
    track(run, tracker, tmp_path / "there")


def test_figures_of_repeats_are_averaged_and_views_kept_apart(tracked):
    run, name = tracked
    rows = [
        ("kfold", repeat, name, "test", view, "accuracy", "", value)
        for repeat, view, value in [(0, "single", 0.5), (1, "single", 0.7), (0, "flip", 0.9)]
    ]
    columns = ["protocol", "repeat", "contender", "split", "view", "metric", "label", "value"]
    table = pd.DataFrame(rows, columns=columns).assign(low=0.0, high=1.0, n=10)
    write_table(run.metrics_path, table)
    (told,) = (t for t in tracking.tracked_contenders(run) if t.contender == name)
    assert told.figures == {
        "kfold/test/accuracy": pytest.approx(0.6),
        "kfold/test/flip/accuracy": 0.9,
    }


def test_what_cannot_be_tracked_is_refused(tracked, tmp_path, monkeypatch):
    run, _ = tracked
    with pytest.raises(InputError, match="'tensorboard'"):
        track(run, "tensorbord", tmp_path / "there")
    with monkeypatch.context() as patch:
        patch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
        for tracker in tracking.TRACKERS:
            with pytest.raises(InputError, match=rf'pip install "cvpipe\[{tracker}\]"'):
                track(run, tracker, tmp_path / "there")
    with pytest.raises(InputError, match="where the run itself lies"):
        track(run, "tensorboard", run.path.parent)
    run.report_path.unlink()
    with pytest.raises(InputError, match="not finished"):
        track(run, "tensorboard", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_the_command_says_where_the_copy_is(tracked, tmp_path, monkeypatch):
    run, _ = tracked
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)  # set by an import in this process
    answer = run_cvpipe("track", str(run.path), "boards", "--to", "tensorboard", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == f"tensorboard: boards/{run.path.name}"
    assert answer.stderr == ""  # TensorFlow, which TensorBoard imports, is talkative
    again = run_cvpipe("track", str(run.path), "boards", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
