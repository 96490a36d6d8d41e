"""Hidden sums and plans between real processes, from kits: TLS, node authentication, a signed roster."""

import os
import re
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from deployments import children, wait_for
from optional import needs_tenseal
from umbel import Simulation, run
from umbel.core.reading.loading import load_experiment
from umbel.deploy import federation, kits
from umbel.deploy.kits import OperatorKit
from umbel.deploy.provision import provision
from umbel.deploy.supervisor import process_of
from umbel.runtimes.flower.processes import free_ports
from umbel.runtimes.flower.remote import RemoteFederation
from umbel.server import RoundDone
from umbel.server.store import Store

pytestmark = pytest.mark.deployment

CLIENTS = ("north", "south", "west", "east")
EXPERIMENTS = """
import numpy as np
from dataclasses import replace
from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import PerClient
from umbel.privacy import DistributedPlan, Homomorphic, SecureSum, grid_limit


def build_model():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def blobs(count, seed):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 3, count).astype(np.int32)
    return (np.eye(6, dtype=np.float32)[y] + generator.normal(size=(count, 6))).astype(np.float32), y


def clients(*sizes):
    return PerClient([blobs(size, seed) for seed, size in enumerate(sizes)])


limit = grid_limit(16.0)
numbers = dict(epsilon=1e4, delta=1e-2, rounds=4, population=4, clip_norm=1.0, noise_multiplier=1.0)
plain = Experiment(
    name="hidden", model=build_model, population=clients(40, 60, 50, 30), strategy=FedAvg(), sampler=FixedCohort(4),
    local=Local(epochs=2, batch_size=10, learning_rate=0.1), rounds=1, test=blobs(64, 9),
)
secure = replace(plain, weighting="uniform", secure_aggregation=SecureSum(2.0))
experiments = {
    "secure": secure,
    # One client is long at work, so that others can be killed meanwhile.
    "long": replace(secure, population=clients(4000, 20, 20, 20), local=Local(epochs=25, batch_size=4)),
    "distributed": replace(
        plain,
        sampler=None,
        weighting=None,
        plan=DistributedPlan(**numbers, cohort=4, survivors_floor=3, limit=limit),
        secure_aggregation=SecureSum(limit=limit, metrics=(), minimum_clients=3),
    ),
    "encrypted": replace(secure, secure_aggregation=Homomorphic(2.0, clients=4)),
}
"""


@pytest.fixture(scope="module")
def folder():
    """A short name: sockets lie below it."""
    path = Path(tempfile.mkdtemp(prefix="umbel-hidden-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def fed(folder):
    """Four clients, a process each; ended afterwards."""
    fed = folder / "fed"
    kits.make(fed, "127.0.0.1", None, CLIENTS, free_ports(1)[0])
    for kit in (fed / "server", *(fed / "clients" / name for name in CLIENTS)):
        (kit / "experiments/hidden.py").write_text(EXPERIMENTS)
    (folder / "hidden.py").write_text(EXPERIMENTS)
    federation.up(fed, lambda text: None)
    yield fed
    federation.stop(fed)


@pytest.fixture(scope="module")
def submit(fed, folder):
    """Plays one of the experiments: its events, one by one."""
    kit = OperatorKit.load(fed / "operator")

    def submit(name):
        with RemoteFederation(kit.address, kit.authority.read_bytes(), kit.token, len(CLIENTS)) as remote:
            yield from remote.submit(f"hidden.py:{name}")

    return submit


def records_of(events):
    return [event.record for event in events if isinstance(event, RoundDone)]


def failures_of(events):
    return [[one[:2] for one in event.failures] for event in events if isinstance(event, RoundDone)]


def params_of(fed, events):
    """The run's last params, from the server's store."""
    with Store.open(OperatorKit.load(fed / "operator").store) as store:
        return store.models.get("hidden", events[-1].final["model_version"])[1]


def simulated(folder, name):
    return run(load_experiment(f"{folder / 'hidden.py'}:{name}"), Simulation(workers=1, compile="graph"))


def test_a_secure_sum_is_the_simulations_but_for_fresh_rounding(fed, folder, submit):
    """Each number of the mean within a step of the grid; and the server's process has seen no update."""
    events, expected = list(submit("secure")), simulated(folder, "secure")
    assert [(one.clients, one.failures) for one in records_of(events)] == [(4, 0)]
    step = load_experiment(f"{folder / 'hidden.py'}:secure").secure_aggregation.encoding(4).step
    assert np.abs(params_of(fed, events) - expected.params).max() <= 1.01 * step
    assert records_of(events)[0].metrics["train_loss"] == pytest.approx(
        expected.rounds[0].metrics["train_loss"], abs=1e-3
    )
    assert events[-1].final["privacy"] == {"aggregation": "protocol"}
    noted = [(fed / "clients" / name / "state" / "memory").glob("secure-sums-*.json") for name in CLIENTS]
    assert [len(list(one)) for one in noted] == [1, 1, 1, 1]


def test_distributed_noise_is_paid_for_and_fresh(folder, submit):
    events, expected = list(submit("distributed")), simulated(folder, "distributed")
    assert [(one.clients, one.failures) for one in records_of(events)] == [(4, 0)]
    assert [one.epsilon for one in records_of(events)] == [one.epsilon for one in expected.rounds]
    assert events[-1].final["params_sha256"] != expected.params_sha256
    assert events[-1].final["privacy"]["noise"] == "operating system"


@needs_tenseal
def test_an_encrypted_sum_is_under_keys_that_the_operator_makes(fed, folder, submit):
    """The secret one is in the clients' kits alone."""
    aggregation = load_experiment(f"{folder / 'hidden.py'}:encrypted").secure_aggregation
    made = provision(fed, aggregation)
    assert {path.name for path in made} == {"homomorphic.key", "homomorphic.pub"}
    assert [path.parent.name for path in made if path.name == "homomorphic.pub"] == ["server"]
    assert provision(fed, aggregation) == []
    events, expected = list(submit("encrypted")), simulated(folder, "encrypted")
    assert [(one.clients, one.failures) for one in records_of(events)] == [(4, 0)]
    step = aggregation.limit / aggregation.parameters.levels
    assert np.abs(params_of(fed, events) - expected.params).max() <= 1.01 * step


def node_of(fed, name):
    """The id of a client's process."""
    running = children(process_of(fed / "clients" / name / "state"))
    return next(process for line, process in running.items() if "flower.node" in line)


def kill_once_trained(fed, name):
    """In the background: SIGKILL this client's process as soon as it has answered a message to train."""
    log, victim = fed / "clients" / name / "state" / "log", node_of(fed, name)
    past = len(log.read_text())

    def watch():
        wait_for(lambda: re.search(r" train: in ", log.read_text()[past:]), 90, every=0.02)
        os.kill(victim, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def test_a_client_that_is_killed_between_stages_is_left_out(fed, submit):
    """What it had trained was in its memory alone. Of four clients three are enough; that with two nothing is revealed
    is tested over a grid, in tests/runtimes/flower/test_secure.py."""
    kill_once_trained(fed, "south")
    events = list(submit("long"))
    assert failures_of(events) == [[(1, "no_session")]]
    assert [one.clients for one in records_of(events)] == [3]
