"""Umbel's client at Flower's own SuperLink, and Flower's own SuperNode beside it, as both are installed."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from umbel import Simulation, run
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower.control import ControlApi, without_proxy
from umbel.runtimes.flower.local import app_config, pyproject
from umbel.runtimes.flower.processes import SWITCHES, free_ports, healthy
from umbel.runtimes.flower.server import STORE_VARIABLE
from umbel.server.store import Store

pytestmark = pytest.mark.deployment

CLIENTS, SECONDS = 2, 240
EXPERIMENT = """
import numpy as np
from umbel import Experiment, FixedCohort, Local, Scaffold
from umbel.data import Arrays, LogNormal, Partitioned


def build_model():
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


generator = np.random.default_rng(0)
y = generator.integers(0, 3, 60).astype("int32")
x = (np.eye(8, dtype="float32")[y] + generator.normal(size=(60, 8))).astype("float32")
experiment = Experiment(
    name="small", model=build_model, population=Partitioned(Arrays(x, y), by=LogNormal(sigma=0.4), clients=2),
    strategy=Scaffold(), rounds=2, sampler=FixedCohort(2), local=Local(epochs=2, batch_size=8, learning_rate=0.05),
)
"""


@pytest.fixture
def start(tmp_path):
    """Start a process, its output in a file; all are ended afterwards, with what they started."""
    variables = without_proxy({**os.environ, **SWITCHES, "FLWR_HOME": str(tmp_path / "flower")})
    variables["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), variables["PATH"]])
    variables["UMBEL_CLIENT_HOME"] = str(tmp_path / "stock")
    variables[STORE_VARIABLE] = f"sqlite:///{tmp_path}/runs.db"
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    running = []

    def start(name, *words):
        with open(tmp_path / f"{name}.log", "wb") as log:
            process = subprocess.Popen([*words], env=variables, stdout=log, stderr=log, start_new_session=True)
        running.append(process)

    yield start
    for number in (15, 9):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


@pytest.mark.parametrize("theirs", [0, 1], ids=["two of ours", "one of Flower's"])
def test_at_flowers_own_superlink_a_run_has_the_simulations_bits(tmp_path, start, theirs):
    """Nothing of Umbel is in the SuperLink; the run's ServerApp and ClientApp are found where Umbel is installed."""
    path = tmp_path / "small.py"
    path.write_text(EXPERIMENT)
    link, port = free_ports(2)
    address, scripts = f"127.0.0.1:{link}", Path(sys.executable).parent
    start("superlink", str(scripts / "flower-superlink"), "--insecure", "--port", str(link))
    deadline = time.monotonic() + SECONDS
    while not healthy(address):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for client in range(CLIENTS):
        name, place = f"client-{client}", f"partition-id={client} num-partitions={CLIENTS}"
        if client < theirs:
            options = ["--insecure", "--superlink", address, "--port", str(port), "--node-config", place]
            start(name, str(scripts / "flower-supernode"), *options)
            continue
        words = [sys.executable, "-m", "umbel.runtimes.flower.node", str(os.getpid()), address]
        folders = ["--home", str(tmp_path / name / "home"), "--state", str(tmp_path / name / "state")]
        start(name, *words, "--client", str(client), "--clients", str(CLIENTS), *folders)
    control = ControlApi(address)
    try:
        config = app_config(str(path), [], CLIENTS, None, timeout_seconds=SECONDS, join_seconds=SECONDS)
        number = control.start_run(pyproject(config))
        while (status := control.status(number)).status != "finished":
            assert time.monotonic() < deadline + SECONDS
            time.sleep(0.2)
    finally:
        control.close()
    simulated = run(load_experiment(str(path)), Simulation(workers=1, compile="graph"))
    assert status.sub_status == "completed", status
    # Flower's own player of runs has no way back for events; what a run came to is in the store.
    with Store.open(f"sqlite:///{tmp_path}/runs.db", create=False) as store:
        stored = store.load_run("latest")
    assert [(record.clients, record.failures) for record in stored.records] == [(CLIENTS, 0)] * 2
    np.testing.assert_array_equal(stored.server_state.params, simulated.params)
