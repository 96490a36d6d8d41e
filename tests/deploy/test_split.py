"""Split learning among real processes over TLS: the simulation's bits, whoever dies in the middle of it."""

import contextlib
import os
import signal
import threading

import pytest

import umbel
from deployments import CLIENTS, children, connection, has_begun, wait_for
from umbel import Simulation, UmbelError
from umbel.core.reading.loading import load_experiment
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.remote import RemoteFederation
from umbel.server import RoundDone

pytestmark = pytest.mark.deployment

SPLIT = """
from umbel import Experiment, FixedCohort, Local
from umbel.data import Arrays, LogNormal, Partitioned
from umbel.strategies import SplitFed
import numpy as np

def build_model():
    import keras
    penalty = keras.regularizers.L2(0.01)
    below = [keras.layers.Dense(12, "relu", kernel_regularizer=penalty), keras.layers.BatchNormalization(name="cut")]
    above = [keras.layers.Dropout(0.2), keras.layers.Dense(16, "relu"), keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((8,)), *below, *above, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model

generator = np.random.default_rng(0)
y = generator.integers(0, 3, 120).astype("int32")
x = (np.eye(8, dtype="float32")[y] + generator.normal(size=(120, 8))).astype("float32")
experiments = {
    name: Experiment(
        name=name, strategy=SplitFed("cut", version), model=build_model,
        population=Partitioned(Arrays(x, y), by=LogNormal(sigma=0.4), clients=3), rounds=4, personal=("cut/beta",),
        sampler=FixedCohort(3), local=Local(epochs=2, batch_size=8, learning_rate=0.05),
    )
    for name, version in {"split1": 1, "split2": 2, "killed": 1}.items()
}
"""
LONG = ["local.epochs=40", "local.batch_size=2"]  # seconds of steps


@pytest.fixture(scope="module")
def fed(running):
    for place in (running.parent, *(running / party / "experiments" for party in PARTIES)):
        (place / "split.py").write_text(SPLIT)
    return running


PARTIES = ("server", *(f"clients/{name}" for name in CLIENTS))


def simulated(fed, name, overrides=()):
    experiment = load_experiment(f"{fed.parent}/split.py:{name}", overrides)
    return umbel.run(experiment, Simulation(workers=1, compile="graph"))


def records_of(events):
    return [event.record for event in events if isinstance(event, RoundDone)]


@pytest.mark.parametrize("version", [1, 2])
def test_over_tls_it_is_the_simulations_bit_for_bit(fed, version):
    """Weights of both halves, metrics, what stays at home, penalties on the client's side, random layers on the
    server's. Of the server's half nothing travels."""
    expected = simulated(fed, f"split{version}")
    with RemoteFederation(*connection(fed)) as remote:
        *events, finished = remote.submit(f"split.py:split{version}")
    records = records_of(events)
    assert finished.final["params_sha256"] == expected.params_sha256
    assert [record.metrics for record in records] == [record.metrics for record in expected.rounds]
    assert [(record.clients, record.failures) for record in records] == [(3, 0)] * 4
    for record, theirs in zip(records, expected.rounds, strict=True):
        assert theirs.bytes_up < record.bytes_up < theirs.bytes_up + 3 * 4096
        assert theirs.bytes_down < record.bytes_down < theirs.bytes_down + 3 * 4096


@pytest.mark.parametrize("version", [1, 2])
def test_whoever_dies_in_the_middle_of_steps_no_step_counts_twice(fed, version):
    """A client's process, then the SuperLink: the round goes on, with all clients and the same bits."""
    expected = simulated(fed, f"split{version}", LONG).params_sha256
    log = fed / "clients/north/state/log"

    def kill(party, words):
        found = [pid for line, pid in children(process_of(fed / party / "state")).items() if words in line]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        assert found

    def kill_in_steps(party, words):
        since = log.stat().st_size
        wait_for(lambda: has_begun(log, since))
        kill(party, words)

    deaths = {1: ("clients/north", "flower.node"), 2: ("server", "flower.link ")}
    with RemoteFederation(*connection(fed)) as remote:
        records = []
        for event in remote.submit(f"split.py:split{version}", LONG):
            if isinstance(event, RoundDone):
                records.append(event.record)
                if event.record.round in deaths:
                    threading.Thread(target=kill_in_steps, args=deaths[event.record.round]).start()
    assert [(record.clients, record.failures) for record in records] == [(3, 0)] * 4
    assert event.final["params_sha256"] == expected


def test_the_server_is_killed_in_the_middle_of_steps_and_goes_on(fed):
    """What was committed stays; the clients give up what nobody waits for, and are there for the rest."""
    expected = simulated(fed, "killed", LONG).params_sha256
    log = fed / "clients/north/state/log"
    with RemoteFederation(*connection(fed)) as remote:
        with contextlib.suppress(UmbelError):
            for event in remote.submit("split.py:killed", LONG):
                if isinstance(event, RoundDone) and event.record.round == 2:
                    since = log.stat().st_size
                    wait_for(lambda since=since: has_begun(log, since))
                    server = children(process_of(fed / "server/state"))
                    executor = next(pid for line, pid in server.items() if "link.executor" in line)
                    (player,) = [pid for line, pid in children(executor).items() if "link.play" in line]
                    os.kill(player, signal.SIGKILL)
        *events, finished = remote.submit("split.py:killed", LONG, resume="latest")
    assert finished.final["params_sha256"] == expected
    assert {(record.clients, record.failures) for record in records_of(events)} == {(3, 0)}
