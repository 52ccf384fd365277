import json
import os
import subprocess
import sys

import pytest

from cvpipe.errors import InputError
from cvpipe.models import framework
from cvpipe.models.framework import import_keras, import_tensorflow, set_threads

HOSTILE_SETTINGS = {
    "floatx": "float16",
    "epsilon": 1e-7,
    "backend": "jax",
    "image_data_format": "channels_first",
}

FRESH_PROCESS = """
import os, sys
from cvpipe.errors import InputError
from cvpipe.models.framework import import_keras, import_tensorflow, set_threads

assert not {"keras", "tensorflow"} & set(sys.modules)
keras = import_keras()
assert keras.config.backend() == "tensorflow", keras.config.backend()
assert keras.config.floatx() == "float32"
assert keras.config.image_data_format() == "channels_last"
assert keras.layers.Dense(1).compute_dtype == "float32"
assert os.environ["KERAS_BACKEND"] == "tensorflow"
assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"

set_threads(1)
set_threads(2)  # nothing is computed yet: the number may still change
tensorflow = import_tensorflow()
assert tensorflow.config.threading.get_intra_op_parallelism_threads() == 2
assert tensorflow.config.threading.get_inter_op_parallelism_threads() == 2
tensorflow.constant(1) + 1
set_threads(2)
try:
    set_threads(3)
except InputError as error:
    print(error)
"""


def test_fresh_process(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps(HOSTILE_SETTINGS))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_CPP")}
    environment |= {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.strip() == (
        "cannot set 3 threads: TensorFlow already computes with 2 threads; use that "
        "number (threads = 2 in the pipeline), set it before the first computation, or start a "
        "new process."
    )


def test_threads_below_one_are_refused():
    with pytest.raises(InputError, match=r"num_threads must be at least 1, not 0\."):
        set_threads(0)


def test_another_backend_is_refused(monkeypatch):
    keras = import_keras()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(InputError, match=r"backend 'jax'.*needs 'tensorflow'; set KERAS_BACKEND"):
        import_keras()
    with pytest.raises(InputError, match="backend 'jax'"):
        import_tensorflow()


def test_settings_are_restored_on_every_call():
    keras = import_keras()
    keras.config.set_floatx("float16")
    keras.config.set_image_data_format("channels_first")
    import_keras()
    assert keras.config.floatx() == "float32"
    assert keras.config.image_data_format() == "channels_last"


@pytest.fixture
def no_log_level(monkeypatch):
    # Set and deleted, so that the variable's absence, too, is restored afterwards.
    monkeypatch.setenv(framework.LOG_LEVEL, "0")
    monkeypatch.delenv(framework.LOG_LEVEL)


def test_start_up_notes_are_dropped(no_log_level, capfd):
    with framework._quiet_import():
        os.write(2, b"note")
    os.write(2, b"later")
    assert capfd.readouterr().err == "later"
    assert os.environ[framework.LOG_LEVEL] == "3"


def test_a_failed_import_shows_its_notes(no_log_level, capfd):
    def fail():
        os.write(2, b"missing library")
        raise ImportError

    with pytest.raises(ImportError), framework._quiet_import():
        fail()
    assert capfd.readouterr().err == "missing library"


def test_a_log_level_of_the_user_is_respected(monkeypatch, capfd):
    monkeypatch.setenv(framework.LOG_LEVEL, "0")
    with framework._quiet_import():
        os.write(2, b"note")
    assert capfd.readouterr().err == "note"
    assert os.environ[framework.LOG_LEVEL] == "0"
