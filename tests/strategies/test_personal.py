"""Personal models: FedRep's heads, Ditto's own models, and what fine-tuning would make of the global one."""

import dataclasses
import functools

import numpy as np
import pytest

from engines import SOONEST
from federations import blobs, dense, dropped_and_normalised, federation
from interruptions import CRASH_POINTS, Killed, kill_at
from quadratics import EPOCHS, RATE, ROWS, Quadratics, close
from umbel import (
    AllClients,
    ConfigError,
    Cosine,
    Devices,
    FedAdam,
    FedAvg,
    FedBuff,
    FixedCohort,
    IncompatibleError,
    Local,
    PerExample,
    Simulation,
    data,
    run,
)
from umbel.core.parts.epochs import Epochs
from umbel.core.parts.phases import FineTune
from umbel.core.types import Phase
from umbel.server.store import Store
from umbel.strategies import Ditto, FedRep

HEAD = ("dense_1",)
LAM = 0.7
ONE_RATE = Local(epochs=EPOCHS, batch_size=ROWS, learning_rate=RATE, shuffle=False)


def held_out():
    """(population, validation): a third of each client's examples are held out."""
    whole = data.Partitioned(data.Arrays(*blobs(240)), by=data.Dirichlet(0.3), clients=8)
    return data.split_clients(whole, validation=0.3)


def heads(simulation, clients=8):
    return [simulation._memory.read(client) for client in range(clients)]


# FedRep


def frozen_head():
    model = dense()
    model.layers[-1].trainable = False
    return model


def frozen_body():
    """With a number that is shared, and changes nothing: of a model that is all frozen or personal nothing would be."""
    import keras

    class Idle(keras.layers.Layer):
        def build(self, shape):
            self.number = self.add_weight(shape=(), initializer="zeros")

        def call(self, x):
            return x + 0.0 * self.number

    first, last = dense().layers
    first.trainable = False
    model = keras.Sequential([keras.Input((6,)), first, Idle(), last])
    model.compile(keras.optimizers.SGD(0.1), dense().loss, metrics=["accuracy"])
    return model


class TestFedRep:
    def test_without_head_epochs_it_is_fedper_with_a_head_that_does_not_learn(self):
        """Bit for bit, with every optimizer state aside."""
        ours = run(federation(strategy=FedRep(head_epochs=0), personal=HEAD), Simulation(1, SOONEST))
        frozen = run(federation(model=frozen_head, personal=HEAD), Simulation(1, SOONEST))
        assert ours.params_sha256 == frozen.params_sha256

    def test_a_round_is_the_head_then_the_body(self):
        """By hand: the head's epochs on a model with a frozen body, then the body's from there."""
        changes = {"personal": HEAD, "sampler": AllClients(), "rounds": 1}
        changes["local"] = Local(epochs=2, batch_size=5, learning_rate=0.1, shuffle=False)
        both, first, second = (Simulation(1, SOONEST) for _ in range(3))
        history = run(federation(strategy=FedRep(head_epochs=2), **changes), both)
        run(federation(model=frozen_body, **changes), first)
        memory = dict(enumerate(heads(first)))
        for (ours, _), (theirs, _) in zip(heads(both), memory.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        body = run(federation(model=frozen_head, **changes), Remembering(second, memory))
        assert history.params_sha256 == body.params_sha256

    @pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
    def test_each_half_begins_with_a_fresh_optimizer(self, optimizer):
        """One step of Adam is ± the rate in every number, were its step count not begun anew it would be larger."""

        def model():
            return dense(optimizer=optimizer, learning_rate=0.01)

        local = Local(epochs=1, batch_size=None, learning_rate=0.01)
        changes = {"model": model, "personal": HEAD, "sampler": FixedCohort(1), "rounds": 1, "local": local}
        simulation = Simulation(1, SOONEST)
        history = run(federation(strategy=FedRep(head_epochs=10), **changes), simulation)
        moved = np.abs(history.params - simulation.initial_params())
        if optimizer == "Adam":
            assert moved.max() <= 0.01 * (1 + 1e-3)
        assert moved.max() > 0

    def test_heads_never_reach_the_server(self):
        population, validation = held_out()
        simulation = Simulation(2, SOONEST)
        changes = {"population": population, "validation": validation, "personal": HEAD, "sampler": AllClients()}
        history = run(federation(strategy=FedRep(2), **changes), simulation)
        size = history.spec.size
        assert len(history.params) == size == 6 * 8 + 8
        assert [record.bytes_up for record in history.rounds] == [8 * 4 * size] * 3
        assert [record.bytes_down for record in history.rounds] == [8 * 4 * size] * 3
        kept = heads(simulation)
        assert len({arrays[0].tobytes() for arrays in kept}) == 8
        assert all([array.shape for array in arrays] == [(8, 3), (3,)] for arrays in kept)

    def test_the_client_half_composes_with_a_server_optimizer(self):
        ours, theirs = (
            run(federation(personal=HEAD, **each), Simulation(1, SOONEST))
            for each in ({"strategy": FedAvg(0.5), "rule": FedRep(1)}, {"strategy": FedRep(1, server=FedAvg(0.5))})
        )
        assert ours.params_sha256 == theirs.params_sha256
        adam = run(federation(personal=HEAD, strategy=FedAdam(), rule=FedRep(1)), Simulation(1, SOONEST))
        assert np.isfinite(adam.params).all()

    def test_clients_may_make_different_numbers_of_epochs(self):
        """The head's are fixed, the body's are Local's: with Epochs(2, 2) drawn, they are the fixed number's bits."""
        fixed, drawn = (
            run(
                federation(
                    strategy=FedRep(3), personal=HEAD, local=Local(epochs=epochs, batch_size=5, learning_rate=0.1)
                ),
                Simulation(1, SOONEST),
            )
            for epochs in (2, Epochs(2, 2))
        )
        assert fixed.params_sha256 == drawn.params_sha256

    def test_refusals(self):
        with pytest.raises(ConfigError, match="head_epochs=-1"):
            FedRep(-1)
        with pytest.raises(ConfigError, match="say what it is, personal="):
            federation(strategy=FedRep())
        statistics = federation(strategy=FedRep(), model=dropped_and_normalised, personal=("moving_mean",))
        with pytest.raises(ConfigError, match="nothing there is trainable"):
            run(statistics, Simulation(1))
        local = Local(per_example=PerExample(clip_norm=1.0, noise_multiplier=1.0))
        with pytest.raises(IncompatibleError, match="needs one training of all variables, which strategy=FedRep"):
            federation(strategy=FedRep(), personal=HEAD, local=local)


class Remembering:
    """A simulation whose clients begin with what they are said to have kept."""

    is_live = False

    def __init__(self, simulation, memory):
        self.simulation, self.memory = simulation, memory

    def __getattr__(self, name):
        return getattr(self.simulation, name)

    def open(self, experiment, memory, choices=None):
        for client, arrays in self.memory.items():
            memory.write(client, arrays)
        return self.simulation.open(experiment, memory, choices)


# Ditto


def ditto_by_hand(clients, w, rounds, lam):
    """Algorithm 1 in float64: w, and every v_k."""
    own = [w] * len(clients)
    for _ in range(rounds):
        fresh = []
        for k, v in enumerate(own):
            for _ in range(clients.steps(k)):
                v = v - RATE * (clients.gradient(k, v) + lam * (v - w))
            fresh.append(v)
        own, w = fresh, w + sum(p * clients.delta(k, w) for k, p in enumerate(clients.weights))
    return w, own


class TestDitto:
    @pytest.mark.parametrize("rounds", [1, 3])
    def test_first_steps_are_the_closed_form(self, rounds):
        clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(1, SOONEST)
        history = run(clients.experiment(strategy=Ditto(LAM), rounds=rounds), simulation)
        w, own = ditto_by_hand(clients, simulation.initial_params().astype(np.float64), rounds, LAM)
        close(history.params, w)
        for found, expected in zip(heads(simulation, 4), own, strict=True):
            close(found[-1], expected)

    def test_fixed_points_run_from_local_optima_to_the_global_model(self):
        """v_k minimises F_k(v) + λ/2·‖v − w‖²: its own optimum at λ = 0, w as λ grows."""
        clients, distances = Quadratics(), []
        for lam in (0.0, 1.0, 8.0):
            simulation = Simulation(1, SOONEST)
            w = run(clients.experiment(strategy=Ditto(lam), rounds=150), simulation).params.astype(np.float64)
            for k, (found,) in enumerate(heads(simulation, 4)):
                close(found, clients.root(lambda v, k=k, w=w, lam=lam: clients.gradient(k, v) + lam * (v - w)))
            distances.append(np.linalg.norm(heads(simulation, 4)[0][0] - w))
        assert distances[0] > distances[1] > distances[2] > 0
        assert distances[2] < distances[0] / 2

    def test_w_is_fedavgs_bit_for_bit(self):
        """Own models come and go beside it, Dropout and BatchNorm included."""
        changes = {"model": dropped_and_normalised}
        fedavg, ditto = (
            run(federation(**changes, **each), Simulation(2, SOONEST)) for each in ({}, {"strategy": Ditto(LAM)})
        )
        assert ditto.params_sha256 == fedavg.params_sha256
        assert [record.bytes_up for record in ditto.rounds] == [record.bytes_up for record in fedavg.rounds]
        assert [record.bytes_down for record in ditto.rounds] == [record.bytes_down for record in fedavg.rounds]

    def test_lambda_zero_is_training_alone(self):
        """A client that never sees a server: FedAvg over that client only, whatever the others do."""
        local = Local(epochs=2, batch_size=5, learning_rate=0.1, shuffle=False)
        experiment, simulation = (
            federation(strategy=Ditto(0.0), local=local, sampler=AllClients()),
            Simulation(2, SOONEST),
        )
        run(experiment, simulation)
        alone = data.PerClient([tuple(experiment.population.examples(3))[:2]])
        history = run(federation(population=alone, local=local, sampler=AllClients()), Simulation(1, SOONEST))
        np.testing.assert_allclose(heads(simulation)[3][-1], history.params, rtol=1e-4, atol=1e-5)

    def test_federated_evaluation_has_both_models(self):
        """validation_personal_… is each client's v_k, evaluated as if it were the global model; before a client has
        taken part it is w."""
        population, validation = held_out()
        parts = {"population": population, "validation": validation}
        experiment = federation(strategy=Ditto(0.0), **parts, sampler=FixedCohort(4), rounds=1)
        simulation = Simulation(2, SOONEST)
        history = run(experiment, simulation)
        kept, expected = heads(simulation), []
        for client in range(8):
            own = history.params if kept[client] is None else kept[client][-1]
            expected.append(simulation.evaluate_clients(own, [client]).per_client["loss"][0])
        found = simulation.evaluate_clients(history.params, range(8)).per_client
        np.testing.assert_allclose(found["personal_loss"], expected, rtol=1e-5)
        assert {client for client in range(8) if kept[client] is None}
        assert "validation_personal_accuracy_p10" in history.rounds[0].metrics
        assert history.rounds[0].metrics["validation_personal_loss"] != history.rounds[0].metrics["validation_loss"]

    def test_personal_models_help_where_clients_differ(self):
        population, validation = held_out()
        experiment = federation(
            population=population, validation=validation, strategy=Ditto(0.1), sampler=AllClients(), rounds=15
        )
        last = run(experiment, Simulation(2, SOONEST)).rounds[-1].metrics
        assert last["validation_personal_accuracy"] > last["validation_accuracy"] + 0.05

    def test_a_model_of_ones_own_that_diverges_is_a_failure_and_nothing_of_it_is_kept(self):
        clients, simulation = Quadratics(), Simulation(1, SOONEST)
        with pytest.raises(Exception, match="its own model is not finite"):
            run(clients.experiment(strategy=Ditto(1e12), local=dataclasses.replace(ONE_RATE, epochs=40)), simulation)
        assert heads(simulation, 4) == [None] * 4

    def test_refusals(self):
        for bad in ({"lam": -1}, {"epochs": 0}, {"server": 0}):
            with pytest.raises(ConfigError, match=next(iter(bad))):
                Ditto(**bad)
        with pytest.raises(IncompatibleError, match="without a second model, which strategy=Ditto"):
            federation(strategy=Ditto(), personal=HEAD)


# What both have in common

VARIANTS = {
    "FedRep": {"strategy": FedRep(2), "personal": HEAD},
    "Ditto": {"strategy": Ditto(LAM)},
}
each_of_them = pytest.mark.parametrize("name", VARIANTS)


def with_dropout():
    return dense(dropout=0.4)


@functools.cache
def variant(name):
    """One that tests share."""
    return federation(model=with_dropout, **VARIANTS[name], test=None)


@functools.cache
def simulation(name, workers):
    """One that has traced the variant, from its second run on."""
    return Simulation(workers, SOONEST)


@pytest.fixture(scope="module")
def reference():
    """Every variant on one worker: the history, and what clients kept."""
    found = {}
    for name in VARIANTS:
        history = run(variant(name), simulation(name, 1))
        found[name] = history, heads(simulation(name, 1))
    return found


def same(one, other):
    """Equal memories of clients, bit for bit."""
    assert [kept is None for kept in one] == [kept is None for kept in other]
    for kept, others in zip(one, other, strict=True):
        for array, another in zip(kept or (), others or (), strict=True):
            np.testing.assert_array_equal(array, another)


@each_of_them
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_give_the_same_bits(name, workers, reference):
    history, kept = reference[name]
    assert run(variant(name), simulation(name, workers)).params_sha256 == history.params_sha256
    same(heads(simulation(name, workers)), kept)


@each_of_them
def test_debug_path_equals_compiled_path(name, reference):
    debugging, (history, kept) = Simulation(debug=True), reference[name]
    slow = run(variant(name), debugging)
    np.testing.assert_allclose(slow.params, history.params, rtol=1e-3, atol=1e-5)
    for record, fast in zip(slow.rounds, history.rounds, strict=True):
        assert record.metrics == pytest.approx(fast.metrics, rel=1e-4)
    for own, other in zip(heads(debugging), kept, strict=True):
        for array, another in zip(own or (), other or (), strict=True):
            np.testing.assert_allclose(array, another, rtol=1e-3, atol=1e-5)


@each_of_them
@pytest.mark.parametrize("rows", [96, 103], ids=["one size", "many sizes"])
def test_xla_equals_graph_to_rounding(name, rows):
    """As one program for clients of one size, and as two where the last batch is apart."""
    by = data.Iid() if rows == 96 else data.LogNormal(0.5)
    population = data.Partitioned(data.Arrays(*blobs(rows)), by=by, clients=8)
    experiment = federation(population=population, **VARIANTS[name], rounds=2)
    graph, xla = (run(experiment, Simulation(1, how)) for how in (SOONEST, "xla"))
    np.testing.assert_allclose(xla.params, graph.params, rtol=1e-3, atol=1e-5)


@each_of_them
@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_and_resumed_it_has_the_bits_of_one_that_was_not(name, point, reference, tmp_path, monkeypatch):
    """What clients keep included, which is in the store."""
    history, kept = reference[name]
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with monkeypatch.context() as patched:
        kill_at(patched, point, 2)
        with pytest.raises(Killed):
            run(variant(name), simulation(name, 2), store=url)
    resumed = run(variant(name), simulation(name, 1), store=url, resume="latest")
    assert resumed.params_sha256 == history.params_sha256
    with Store.open(url) as store:
        memory = store.memory(resumed.run)
        same([memory.read(client) for client in range(8)], kept)


def test_every_phase_takes_its_time_on_a_device():
    """On the virtual clock: FedAvg makes 2 epochs, FedRep(4) 6, Ditto twice as many, Ditto(epochs=1) 3."""
    ways = ({}, {"strategy": FedRep(4)}, {"strategy": Ditto()}, {"strategy": Ditto(epochs=1)})
    devices, found = Devices(examples_per_second=10.0), []
    for changes in ways:
        personal = HEAD if isinstance(changes.get("strategy"), FedRep) else ()
        history = run(federation(devices=devices, personal=personal, **changes, rounds=1, test=None), Simulation(1))
        found.append(history.rounds[0].metrics["virtual_seconds"])
    assert found == pytest.approx([found[0], 3 * found[0], 2 * found[0], 1.5 * found[0]])


@each_of_them
def test_as_a_rule_it_goes_with_asynchronous_rounds(name):
    """A client that is heard later has trained what is its own as well."""
    changes = dict(VARIANTS[name])
    rule, fresh = changes.pop("strategy"), Simulation(1, SOONEST)
    history = run(federation(strategy=FedBuff(2), rule=rule, **changes), fresh)
    assert np.isfinite(history.params).all()
    assert sum(kept is not None for kept in heads(fresh)) > 2


# Fine-tuning


class TestFineTune:
    def test_it_is_the_closed_form_and_changes_nothing(self):
        """After e epochs from w, on each client's own quadratic; w is what it is without."""
        clients, simulation = Quadratics(copies=[1, 2, 1, 3]), Simulation(1, SOONEST)
        changes = {"validation": clients.experiment().population, "local": ONE_RATE}
        plain = run(clients.experiment(**changes), Simulation(1, SOONEST))
        history = run(clients.experiment(fine_tune=FineTune(epochs=EPOCHS), **changes), simulation)
        assert history.params_sha256 == plain.params_sha256
        w, losses = history.params.astype(np.float64), []
        for k, (x, y) in enumerate(clients.examples):
            tuned = w + clients.delta(k, w)
            losses.append(np.mean((x @ tuned - y[:, 0]) ** 2))
        found = simulation.evaluate_clients(history.params, range(4)).per_client
        np.testing.assert_allclose(found["personal_loss"], losses, rtol=1e-4)
        assert history.rounds[-1].metrics["validation_personal_loss"] == pytest.approx(
            float(clients.weights @ losses), rel=1e-4
        )
        assert plain.rounds[-1].metrics == {
            name: value for name, value in history.rounds[-1].metrics.items() if "personal" not in name
        }
        assert heads(simulation, 4) == [None] * 4

    def test_a_rate_of_its_own(self):
        clients, found = Quadratics(), []
        for tune in (FineTune(2), FineTune(2, learning_rate=1e-9)):
            experiment = clients.experiment(fine_tune=tune, validation=clients.experiment().population)
            last = run(experiment, Simulation(1, SOONEST)).rounds[-1].metrics
            found.append(last["validation_loss"] - last["validation_personal_loss"])
        assert found[0] > 0.01
        assert found[1] == pytest.approx(0, abs=1e-5)

    def test_what_is_personal_is_tuned_from_where_it_is(self):
        """With a head at home: tuned at a vanishing rate, each client's model is the one that it has."""
        population, validation = held_out()
        parts = {"population": population, "validation": validation, "personal": HEAD, "sampler": AllClients()}
        experiment = federation(fine_tune=FineTune(1, learning_rate=1e-12), **parts)
        last = run(experiment, Simulation(2, SOONEST)).rounds[-1].metrics
        assert last["validation_personal_loss"] == pytest.approx(last["validation_loss"], rel=1e-5)

    def test_workers_and_debug_agree(self):
        population, validation = held_out()
        parts = {"population": population, "validation": validation, "fine_tune": FineTune(2), "rounds": 1}
        experiment = federation(model=with_dropout, **parts)
        one, two, slow = (
            run(experiment, Simulation(**how)).rounds[-1].metrics
            for how in ({"workers": 1, "compile": SOONEST}, {"workers": 2, "compile": SOONEST}, {"debug": True})
        )
        assert one == two
        assert slow == pytest.approx(one, rel=1e-3)

    def test_refusals(self):
        population, validation = held_out()
        with pytest.raises(ConfigError, match="epochs=0"):
            FineTune(0)
        with pytest.raises(ConfigError, match="give a validation population"):
            federation(fine_tune=FineTune())
        parts = {"population": population, "validation": validation, "fine_tune": FineTune()}
        with pytest.raises(IncompatibleError, match=r"FineTune.* without a second model, which strategy=Ditto"):
            federation(strategy=Ditto(), **parts)
        with pytest.raises(ConfigError, match="needs a learning_rate of its own"):
            federation(local=Local(learning_rate=Cosine(0.1, rounds=3)), **parts)
        train, others = next(data.kfold_clients(federation().population, 4))
        with pytest.raises(IncompatibleError, match="clients with training examples, which validation"):
            federation(population=train, validation=others, fine_tune=FineTune(), sampler=AllClients())


def test_a_phase_is_a_value():
    assert FedRep(3).phases == (Phase(3, "personal"), Phase(None, "shared"))
    assert eval(repr(FineTune(2, 0.1))) == FineTune(2, 0.1)
