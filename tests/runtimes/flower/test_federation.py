"""A real SuperLink and three real clients on loopback: one federation for the whole file, started once."""

import os
from pathlib import Path

import pytest

from umbel import ConfigError, RunStopped, Simulation, UmbelError, run
from umbel.core.reading.loading import load_experiment
from umbel.runtimes.flower.events import packed_error, unpacked
from umbel.runtimes.flower.local import LocalFederation, fit_to
from umbel.runtimes.flower.processes import Processes
from umbel.server import Finished, RoundDone, Started

pytestmark = pytest.mark.deployment

CLIENTS = 3


def flower_processes() -> list[int]:
    """Living processes below this one's session of work that belong to Flower, by their environment."""
    mark = f"UMBEL_TEST_OWNER={os.getpid()}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark in (entry / "environ").read_bytes().split(b"\0")
            is_alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if is_ours and is_alive and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The experiment's file: FedAvg on handwritten digits, with Dropout, so that seeds matter too."""
    path = tmp_path_factory.mktemp("experiment") / "digits.py"
    path.write_text(
        """
from umbel import Experiment, FedAvg, FixedCohort, Local
from umbel.data import Digits, Dirichlet, Partitioned


def build_model():
    import keras

    layers = [keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(), loss, metrics=["accuracy"])
    return model


experiment = Experiment(
    name="digits",
    model=build_model,
    population=Partitioned(Digits("train"), by=Dirichlet(alpha=1.0), clients=100),
    strategy=FedAvg(),
    sampler=FixedCohort(20),
    local=Local(epochs=1, batch_size=16, learning_rate=0.2),
    rounds=2,
    test=Digits("test"),
)
"""
    )
    return path


@pytest.fixture(scope="module")
def federation(path):
    """Three clients, and the check that nothing of them is left afterwards."""
    os.environ["UMBEL_TEST_OWNER"] = str(os.getpid())
    try:
        with LocalFederation(CLIENTS, memory=path.parent / "clients") as federation:
            assert len(flower_processes()) == 2 + CLIENTS
            yield federation
        assert flower_processes() == []
    finally:
        del os.environ["UMBEL_TEST_OWNER"]


@pytest.fixture(scope="module")
def fitted(path):
    """The overrides that turn a hundred clients into three."""
    return fit_to(load_experiment(str(path)), CLIENTS)


def test_flower_equals_simulation(federation, path, fitted):
    """Over processes and HTTP, the weights are the simulation's bit for bit, and so is every metric."""
    simulated = run(load_experiment(str(path), fitted), Simulation(workers=2, compile="graph"))
    events = list(federation.submit(str(path), fitted))
    assert [type(event) for event in events] == [Started, RoundDone, RoundDone, Finished]
    assert events[-1].final["params_sha256"] == simulated.params_sha256
    records = [event.record for event in events if isinstance(event, RoundDone)]
    assert [record.metrics for record in records] == [record.metrics for record in simulated.rounds]
    assert [(record.clients, record.failures) for record in records] == [(CLIENTS, 0)] * 2
    vector = 4 * simulated.spec.size
    for record in records:
        assert CLIENTS * vector < record.bytes_up < CLIENTS * (vector + 4096)
        assert CLIENTS * vector < record.bytes_down < CLIENTS * (vector + 4096)


@pytest.mark.parametrize(
    "parts",
    [
        "strategy=IFCA(2)",
        "sampler=PowerOfChoice(2, candidates=3), reweighting=Agnostic(0.2), rounds=3",
        "sampler=Oort(2), rounds=3",
    ],
)
def test_what_looks_at_losses_and_models_of_single_clients(federation, path, parts):
    """None of it asks where clients are: samplers that learn, weights that climb, a model for each kind of client."""
    changed = path.with_name(f"{parts.partition('=')[2].partition('(')[0].lower()}.py")
    changed.write_text(
        path.read_text()
        + "from dataclasses import replace\nfrom umbel import IFCA, Agnostic, Oort, PowerOfChoice\n"
        + f"experiment = replace(experiment, {parts})\n"
    )
    overrides = fit_to(load_experiment(str(changed)), CLIENTS)
    simulated = run(load_experiment(str(changed), overrides), Simulation(workers=2, compile="graph"))
    *rounds, final = federation.submit(str(changed), overrides)
    assert final.final["params_sha256"] == simulated.params_sha256
    records = [event.record for event in rounds if isinstance(event, RoundDone)]
    assert [record.metrics for record in records] == [record.metrics for record in simulated.rounds]


def test_a_secure_sum_on_this_machine(federation, path, fitted):
    """The parent makes up roster and identities; the rest is the protocol, between processes that share no secret."""
    hidden = path.with_name("hidden.py")
    hidden.write_text(
        path.read_text()
        + "from dataclasses import replace\nfrom umbel.privacy import SecureSum\n"
        + "experiment = replace(experiment, weighting='uniform', secure_aggregation=SecureSum(2.0))\n"
    )
    simulated = run(load_experiment(str(hidden), fitted), Simulation(workers=1, compile="graph"))
    events = list(federation.submit(str(hidden), fitted))
    records = [event.record for event in events if isinstance(event, RoundDone)]
    assert [(record.clients, record.failures) for record in records] == [(CLIENTS, 0)] * 2
    for mine, theirs in zip(records, simulated.rounds, strict=True):
        assert mine.metrics["test_loss"] == pytest.approx(theirs.metrics["test_loss"], abs=1e-3)
        assert mine.metrics["train_loss"] == pytest.approx(theirs.metrics["train_loss"], abs=1e-3)
        assert mine.metrics["train_saturated"] == 0
    assert events[-1].final["privacy"] == {"aggregation": "protocol"}


def test_an_error_at_the_server_is_raised_here(federation, path, fitted):
    """As the class it was there; and Flower does not list the run as completed."""
    with pytest.raises(ConfigError, match="cannot resume run 'r1' without a store"):
        list(federation.submit(str(path), fitted, resume="r1"))


def test_an_edited_file_is_read_anew_by_a_warm_client(federation, path, fitted):
    """Clients outlive a run: the next one may be of the same file with another model."""
    before = path.read_text()
    try:
        path.write_text(before.replace("Dense(32,", "Dense(16,"))
        simulated = run(load_experiment(str(path), fitted), Simulation(workers=1, compile="graph"))
        events = list(federation.submit(str(path), fitted))
    finally:
        path.write_text(before)
    assert events[-1].final["params_sha256"] == simulated.params_sha256


def test_what_dies_again_and_again_is_given_up(tmp_path, monkeypatch):
    """A process that is started again has so many lives."""
    monkeypatch.setattr("umbel.runtimes.flower.processes.MAX_DEATHS", 2)
    with Processes(tmp_path) as processes:
        processes.start("client 0", ["node", "--no-such-option"], restart=True)
        with pytest.raises(UmbelError, match=r"client 0 ended with status 2(?s:.*)are required: server"):
            processes.wait_until(lambda: False, 120, "it does not answer")
    assert (tmp_path / "client-0.log").read_text().count("usage: umbel-node") == 3


def test_a_dead_process_ends_the_run_and_says_why(tmp_path):
    """A process that cannot start is named, with what it said, at once."""
    with Processes(tmp_path) as processes:
        processes.start("SuperLink", ["link", "--port", "1", "--no-such-option"])
        with pytest.raises(UmbelError, match=r"SuperLink ended with status 2(?s:.*)--no-such-option"):
            processes.wait_until(lambda: False, 60, "it does not answer")


def test_clients_are_fitted_to_what_is_there(path):
    """Fewer clients cut the cohort too; as many change nothing; what cannot be divided is refused."""
    experiment = load_experiment(str(path))
    assert fit_to(experiment, 3) == ["population.clients=3", "sampler.size=3"]
    assert fit_to(experiment, 50) == ["population.clients=50"]
    assert fit_to(experiment, 100) == []
    fixed = path.with_name("fixed.py")
    fixed.write_text(
        path.read_text()
        + "from dataclasses import replace\nfrom umbel.data import PerClient\n"
        + "part = experiment.population.examples(0)\n"
        + "experiment = replace(experiment, population=PerClient([part, part]), sampler=FixedCohort(2))\n"
    )
    assert fit_to(load_experiment(str(fixed)), 2) == []
    with pytest.raises(ConfigError, match=r"cannot divide .* among 3 clients"):
        fit_to(load_experiment(str(fixed)), 3)


def test_run_stopped_is_of_its_own_exit_status():
    """What the command line exits with survives the way from the ServerApp."""
    with pytest.raises(RunStopped, match=r"^round 3: 0 valid updates$") as caught:
        list(unpacked([packed_error(RunStopped("round 3: 0 valid updates"))]))
    assert caught.value.exit_status == 3
    with pytest.raises(UmbelError, match=r"^ZeroDivisionError: division$") as caught:
        list(unpacked([packed_error(ZeroDivisionError("division"))]))
    assert type(caught.value) is UmbelError
