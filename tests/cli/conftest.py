"""The command as a process, for claims about the process, and in this one, for everything else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from umbel.cli.main import execute

COMMAND = [sys.executable, "-m", "umbel"]
MODEL = """
def build_model():
    import keras
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
EXPERIMENT = """
from umbel import *
from umbel.data import *
experiment = Experiment(
    name="tiny", model=build_model, population=Partitioned(Digits(), clients=10), strategy=FedAvg(),
    sampler=FixedCohort(3), local=Local(epochs=1, batch_size=32), rounds=5, test=Digits("test"),
)
"""
NOISE = """
import os
print("from the file")
os.write(1, b"from a library\\n")
"""


def started(folder, *words, **variables):
    """The command as a process, its two streams as pipes."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *words], cwd=folder, env=environment, **pipes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, of a file that prints: (status, output, errors, folder)."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.py").write_text(NOISE + MODEL + EXPERIMENT)
    process = started(folder, "run", "tiny.py", "--json", "--plot", "out/rounds.png", "--store", "sqlite:///runs.db")
    output, errors = process.communicate(timeout=240)
    return process.returncode, output, errors, folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of the test's own, current, with tiny.py in it and no settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "UMBEL_STORE",
        "UMBEL_STORE_KEY",
        "UMBEL_MODEL_KEY",
        "UMBEL_CRASH_AT",
        "UMBEL_DATA",
        "TF_CPP_MIN_LOG_LEVEL",
    ):
        monkeypatch.delenv(name, raising=False)
    Path("tiny.py").write_text(MODEL + EXPERIMENT)
    return tmp_path


@pytest.fixture
def here(capfd):
    """Run a command line in this process: (exit status, standard output, standard error)."""

    def execute_here(*words):
        capfd.readouterr()
        status = execute(words)
        return status, *capfd.readouterr()

    return execute_here


@pytest.fixture
def start(folder):
    """Start the command as a process in the test's folder; what still runs at the end of the test is killed."""
    processes = []

    def start_here(*words, **variables):
        process = started(folder, *words, **variables)
        processes.append(process)
        return process

    yield start_here
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def finish(start):
    """Run the command as a process to its end: (exit status, standard output, standard error)."""

    def finish_here(*words, **variables):
        process = start(*words, **variables)
        output, errors = process.communicate(timeout=240)
        return process.returncode, output, errors

    return finish_here
