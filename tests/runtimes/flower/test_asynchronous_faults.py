"""Asynchronous rounds with real processes, of which nodes, the server and the SuperLink die: nothing counts twice."""

import contextlib
import os
import signal

import numpy as np
import pytest

from deployments import children
from umbel import UmbelError
from umbel.benchmarks import asynchronous
from umbel.core.reading.loading import load_experiment
from umbel.core.types import ServerState
from umbel.runtimes.flower.local import LocalFederation
from umbel.server import RoundDone
from umbel.server.asynchronous import first_state
from umbel.server.store import Store
from umbel.studies.replay import replay_run

pytestmark = pytest.mark.deployment

CLIENTS, ROUNDS = 3, 24

EXPERIMENT = """
import numpy as np
from umbel import AllClients, Experiment, Local
from umbel.data import Arrays, LogNormal, Partitioned
from umbel.strategies import FedAdam, FedBuff


def build_model():
    import keras

    layers = [keras.Input((16,)), keras.layers.Dense(32, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


generator = np.random.default_rng(0)
y = generator.integers(0, 3, 900).astype(np.int32)
x = (np.eye(16, dtype=np.float32)[y] + generator.normal(size=(900, 16))).astype(np.float32)
experiment = Experiment(
    name="buffered",
    model=build_model,
    population=Partitioned(Arrays(x, y), by=LogNormal(sigma=1.0), clients=3),
    strategy=FedBuff(2, FedAdam(0.05)),
    personal=("batch_normalization",),  # what clients keep at home
    sampler=AllClients(),
    local=Local(epochs=40, batch_size=4, learning_rate=0.02),
    rounds=24,
)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("asynchronous") / "buffered.py"
    path.write_text(EXPERIMENT)
    return path


class Dead(Exception):
    """The server is dead, and whoever submitted the run gives it up."""


def federate(path):
    return LocalFederation(CLIENTS, store=f"sqlite:///{path.parent}/runs.db", memory=path.parent / "clients")


def kill(federation, name):
    os.kill(federation._processes._running[name].pid, signal.SIGKILL)


def kill_server(federation):
    """Kill the process that plays the rounds."""
    (server,) = [
        process
        for words, process in children(federation._processes._running["SuperExec"].pid).items()
        if "link.play" in words
    ]
    os.kill(server, signal.SIGKILL)
    raise Dead  # the SuperLink would notice by itself, after some minutes


def last_state(stored_in, experiment):
    def like(spec):
        params = np.zeros(spec.size, np.float32)
        return ServerState(0, params, first_state(experiment.resolved, params), experiment.transforms.init(spec), {})

    return stored_in.load_run("latest", like=like)


def test_whatever_dies_nothing_is_lost_or_counted_twice(path):
    """Clients die at work, then the server, then the SuperLink; a new federation goes on each time. All that
    was given out has landed once, failed, or is at work at the end; the simulation has the bits, in that order."""

    def play(federation, deaths, resume=None):
        with contextlib.closing(federation.submit(str(path), resume=resume)) as events:
            for event in events:
                if isinstance(event, RoundDone):
                    deaths.get(event.record.round, lambda: None)()

    with federate(path) as federation:
        deaths = {
            3: lambda: kill(federation, "client 1"),
            6: lambda: kill(federation, "client 2"),
            9: lambda: kill_server(federation),
        }
        with pytest.raises(Dead):
            play(federation, deaths)
        with pytest.raises(UmbelError):
            play(federation, {14: lambda: kill(federation, "SuperLink")}, resume="latest")
    with federate(path) as federation:
        play(federation, {18: lambda: kill(federation, "client 0")}, resume="latest")
    experiment = load_experiment(str(path))
    with Store.open(f"sqlite:///{path.parent}/runs.db") as store:
        stored = last_state(store, experiment)
        landed = [landing.number for record in stored.records for landing in record.landings]
        at_work = stored.server_state.strategy.flights[:, 1].astype(int).tolist()
        assert len(stored.records) == ROUNDS
        assert [record.clients for record in stored.records] == [2] * ROUNDS
        assert len({*landed, *at_work}) == len(landed) + len(at_work)
        failed = sum(record.failures for record in stored.records)
        assert len(landed) + len(at_work) + failed == stored.server_state.strategy.begun
        assert failed == 0
        assert replay_run(experiment, store, "latest", workers=1).landings == 2 * ROUNDS


def test_one_slow_node_does_not_slow_the_others():
    """Time to accuracy, one node ten times slower than the others: three times sooner than synchronous rounds."""
    found = asynchronous.compare(asynchronous.TARGET)
    assert found["synchronous"][0] >= asynchronous.GOAL * found["asynchronous"][0], found
