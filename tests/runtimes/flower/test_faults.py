"""What processes die of, with real ones: a SuperLink and three clients, on loopback."""

import os
import re
import signal
import threading
import time

import pytest

from deployments import has_begun, wait_for
from umbel import Simulation, UmbelError, run
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower.local import LocalFederation
from umbel.server import RoundDone, Started

pytestmark = pytest.mark.deployment

CLIENTS = 3
ROUNDS = 5

EXPERIMENT = """
import numpy as np
from umbel import Experiment, FixedCohort, Local
from umbel.data import Arrays, LogNormal, Partitioned
from umbel.strategies.scaffold import Scaffold


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
    name="remembering",
    model=build_model,
    population=Partitioned(Arrays(x, y), by=LogNormal(sigma=0.3), clients=3),
    strategy=Scaffold(),  # clients keep their control variates,
    personal=("batch_normalization",),  # and their normalisation
    weighting="uniform",
    sampler=FixedCohort(3),
    local=Local(epochs=150, batch_size=4, learning_rate=0.02),  # long enough to be killed in
    rounds=5,
)
"""

DYING = """
import contextlib, os, signal, sys
from pathlib import Path

if "umbel.runtimes.flower.node.outbox" in sys.modules:  # in a client
    from umbel.runtimes.flower import parcels
    from umbel.runtimes.flower.node import outbox
    parcels.PARCEL_BYTES = 0  # as a reply that is too large for a parcel: one object after another
    upload = outbox.upload

    def die_between(client, about, objects, rejected):
        first = dict(list(objects.items())[:1])
        with contextlib.suppress(FileExistsError):  # one of them dies, once
            if len(objects) > 3:
                Path(__file__).with_name("died").touch(exist_ok=False)
                upload(client, about, first, rejected)
                os.kill(os.getpid(), signal.SIGKILL)
        upload(client, about, objects, rejected)

    outbox.upload = die_between
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the experiment, the store, and the clients' disks."""
    place = tmp_path_factory.mktemp("faults")
    (place / "remembering.py").write_text(EXPERIMENT)
    return place


def federate(place):
    return LocalFederation(CLIENTS, store=f"sqlite:///{place}/runs.db", memory=place / "clients")


@pytest.fixture(scope="module")
def federation(place):
    with federate(place) as federation:
        yield federation


@pytest.fixture(scope="module")
def simulated(place):
    """The run that nothing happens to."""
    return run(load_experiment(str(place / "remembering.py")), Simulation(workers=1, compile="graph"))


def process(federation, name):
    """The id of a process of the federation's."""
    return federation._processes._running[name].pid


def when_at_work(federation, client, victim, number):
    """In the background: signal a process as soon as the client has a message and trains."""
    log = federation._processes._log(f"client {client}")
    since = log.stat().st_size

    def watch():
        wait_for(lambda: has_begun(log, since), 120, every=0.002)
        time.sleep(0.1)  # into the training
        os.kill(victim, number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    return watcher


def records_of(events):
    return [event.record for event in events if isinstance(event, RoundDone)]


def test_clients_that_are_killed_change_nothing(place, federation, simulated):
    """One dies at work, and is asked again; one dies between two rounds. Each comes back as the node it was; nobody is
    left out of a round, and the weights are those of a run without faults."""
    events, busy, idle = [], process(federation, "client 1"), process(federation, "client 2")
    for event in federation.submit(str(place / "remembering.py")):
        events.append(event)
        if isinstance(event, RoundDone) and event.record.round == 1:
            watcher = when_at_work(federation, 1, busy, signal.SIGKILL)
        if isinstance(event, RoundDone) and event.record.round == 3:
            assert not watcher.is_alive()
            os.kill(idle, signal.SIGKILL)
    assert process(federation, "client 1") != busy
    assert process(federation, "client 2") != idle
    assert [(record.clients, record.failures) for record in records_of(events)] == [(CLIENTS, 0)] * ROUNDS
    assert events[-1].final["params_sha256"] == simulated.params_sha256
    for client in range(CLIENTS):
        said = federation._processes._log(f"client {client}").read_text()
        assert len(set(re.findall(r" node (\d+) of the server", said))) == 1


def test_a_client_killed_while_it_hands_in_its_reply_changes_nothing(place, federation, simulated):
    """The server has a part of the reply, and will never have the rest."""
    (place / "dying.py").write_text(EXPERIMENT + DYING)
    names = [f"client {client}" for client in range(CLIENTS)]
    before = [process(federation, name) for name in names]
    events = list(federation.submit(str(place / "dying.py")))
    assert (place / "died").exists()
    assert sum(process(federation, name) != was for name, was in zip(names, before, strict=True)) == 1
    assert [(record.clients, record.failures) for record in records_of(events)] == [(CLIENTS, 0)] * ROUNDS
    assert events[-1].final["params_sha256"] == simulated.params_sha256


def test_who_is_late_is_left_out_and_comes_back(place, federation):
    """A client is stopped, as by a suspended laptop: the round ends at its deadline. What it sends afterwards counts
    for nothing, and it takes part again."""
    stopped, overrides = process(federation, "client 0"), ["rounds=3", "seed=3"]
    watcher = when_at_work(federation, 0, stopped, signal.SIGSTOP)
    records, failures = [], []
    try:
        for event in federation.submit(str(place / "remembering.py"), overrides, timeout_seconds=12):
            if isinstance(event, RoundDone):
                records.append(event.record)
                failures.append([(client, reason) for client, reason, _ in event.failures])
                os.kill(stopped, signal.SIGCONT)
    finally:
        os.kill(stopped, signal.SIGCONT)
        watcher.join(1)
    assert failures[0] == [(0, "timeout")]
    assert records[0].clients == CLIENTS - 1
    assert records[0].seconds > 12
    assert records[-1].clients == CLIENTS
    assert process(federation, "client 0") == stopped


def test_a_run_is_resumed_after_everything_was_killed(place, federation, simulated):
    """The SuperLink dies while clients train; a new federation, with the store and the clients' disks, goes on."""
    stored = None

    def play_until_killed():
        nonlocal stored
        with federate(place) as doomed:
            for event in doomed.submit(str(place / "remembering.py")):
                stored = event.run if isinstance(event, Started) else stored
                if isinstance(event, RoundDone) and event.record.round == 1:
                    when_at_work(doomed, 2, process(doomed, "SuperLink"), signal.SIGKILL)

    with pytest.raises(UmbelError, match=r"SuperLink|run"):
        play_until_killed()
    events = list(federation.submit(str(place / "remembering.py"), resume=stored))
    assert 1 <= len(events[0].records) < ROUNDS
    assert events[-1].final["params_sha256"] == simulated.params_sha256
    assert events[-1].final["rounds"] == ROUNDS
