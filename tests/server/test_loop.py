"""A run and its store: resuming gives the bits of the uninterrupted run, whatever the round remembers."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest

from federations import dense, dropped_and_normalised, federation
from umbel import (
    AllClients,
    ConfigError,
    EarlyStopping,
    ExponentialDecay,
    FedAvg,
    KeepBest,
    Local,
    PoissonCohort,
    ReduceOnPlateau,
    RunStopped,
    Simulation,
    StopAt,
    StoreError,
    WarmUp,
    cross_validate,
    data,
    run,
)
from umbel.core.types import NOTHING
from umbel.server.store import Store


class Velocity(NamedTuple):
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class HeavyBall:
    """Server momentum: a strategy whose state matters."""

    beta: float = 0.9

    def init(self, params):
        return Velocity(np.zeros_like(params))

    def broadcast(self, state):
        return NOTHING

    def update(self, state, params, mean):
        velocity = self.beta * state.value + mean.delta
        return Velocity(velocity), params + velocity


def stateful():
    """Server momentum, personal statistics, Dropout, and a rate that depends on the history."""
    return federation(
        model=dropped_and_normalised,
        strategy=HeavyBall(),
        personal=("batch_normalization",),
        local=Local(epochs=1, batch_size=5, learning_rate=ReduceOnPlateau(0.1, patience=1, min_delta=1.0)),
        rounds=5,
    )


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'runs.db'}"


class Interrupted(Exception):
    pass


class InterruptAfter:
    """A watcher that fails like a killed notebook."""

    def __init__(self, round):
        self.round = round

    def on_start(self, experiment, runtime, run, records):
        self.run = run

    def on_round(self, record, failures):
        if record.round == self.round:
            raise Interrupted

    def on_end(self, history):
        pass


@pytest.fixture(scope="module")
def uninterrupted():
    return run(stateful(), Simulation(workers=2))


@pytest.mark.parametrize("round", [1, 3])
def test_resumed_run_equals_uninterrupted_run(url, round, uninterrupted):
    watcher = InterruptAfter(round)
    with pytest.raises(Interrupted):
        run(stateful(), Simulation(workers=2), store=url, watchers=[watcher])
    resumed = run(stateful(), Simulation(workers=1), store=url, resume=watcher.run)
    assert resumed.params_sha256 == uninterrupted.params_sha256
    assert [record.metrics for record in resumed.rounds] == [record.metrics for record in uninterrupted.rounds]
    assert resumed.run == watcher.run


def test_the_simulation_that_was_interrupted_resumes_the_run(url):
    """Eagerly it trains the model itself, at other rates since: it is the same model all the same."""
    watcher, simulation = InterruptAfter(4), Simulation(debug=True)
    with pytest.raises(Interrupted):
        run(stateful(), simulation, store=url, watchers=[watcher])
    assert len(run(stateful(), simulation, store=url, resume=watcher.run).rounds) == 5


def test_a_store_changes_nothing(url, uninterrupted):
    history = run(stateful(), Simulation(workers=2), store=url)
    assert history.params_sha256 == uninterrupted.params_sha256
    with Store.open(url) as store:
        (summary,) = store.runs()
        assert (summary.run, summary.state, summary.rounds_done) == (history.run, "finished", 5)
        _, params = store.models.get("small", history.model_version)
        np.testing.assert_array_equal(params, history.params)
        assert store.check() == []


def test_a_finished_run_goes_on_with_more_rounds(url):
    first = run(federation(rounds=2), Simulation(workers=1), store=url)
    longer = run(federation(rounds=4), Simulation(workers=1), store=url, resume=first.run)
    assert longer.params_sha256 == run(federation(rounds=4), Simulation(workers=1)).params_sha256
    assert [record.round for record in longer.rounds] == [1, 2, 3, 4]


def wider():
    import keras

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


wider.__qualname__ = dense.__qualname__  # the same name: only the model itself tells


def test_resumed_with_nothing_left_to_do_a_run_makes_no_other_version(url):
    begun = run(federation(), Simulation(workers=1), store=url)
    again = run(federation(), Simulation(workers=1), store=url, resume=begun.run)
    more = run(federation(rounds=4), Simulation(workers=1), store=url, resume=begun.run)
    assert (begun.model_version, again.model_version, more.model_version) == (1, 1, 2)
    with Store.open(url) as store:
        assert [model.run for model in store.models.list("small")] == [begun.run] * 2


def own_metric():
    import keras

    class Margin(keras.metrics.Mean):
        def update_state(self, y_true, y_pred, sample_weight=None):
            return super().update_state(keras.ops.max(y_pred, -1), sample_weight)

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[Margin(name="margin"), "sparse_categorical_crossentropy"])
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"callbacks": (StopAt("test_acuracy", 0.9),)}, "did you mean 'test_accuracy'"),
        ({"callbacks": (EarlyStopping(),), "test": None, "validation": federation().population}, "is not measured"),
        ({"callbacks": (KeepBest("train_f1"),)}, "is not measured"),
        ({"local": Local(learning_rate=ReduceOnPlateau(0.1, metric="loss"))}, r"is not measured: .*Known: "),
        ({"local": Local(learning_rate=WarmUp(2, ReduceOnPlateau(0.1, "virtual_seconds")))}, "is not measured"),
        ({"callbacks": (KeepBest("test_margin"),), "model": own_metric}, 'say mode="min" or mode="max"'),
    ],
)
def test_waiting_for_what_is_not_measured_or_not_known_to_rise_is_said_before_a_run_begins(url, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(federation(**changes), Simulation(workers=1), store=url)
    with Store.open(url) as store:
        assert store.runs() == []


def test_directions_are_kept_with_the_run(url):
    callbacks = (KeepBest("test_margin", mode="max"), StopAt("validation_sparse_categorical_crossentropy_p10", 0.0))
    experiment = federation(model=own_metric, callbacks=callbacks, validation=federation().population)
    history = run(experiment, Simulation(workers=1), store=url)
    assert history.directions == {"loss": "min", "margin": None, "sparse_categorical_crossentropy": "min"}
    with Store.open(url) as store:
        stored = store.load_run(history.run)
    assert stored.records == list(history.rounds)
    assert history.rounds_to(np.inf, "test_sparse_categorical_crossentropy") == 1
    assert history.rounds_to(np.inf, "test_margin", mode="max") is None
    with pytest.raises(ConfigError, match=r"a target of 0\.5 needs to know whether 'test_margin' is to fall"):
        history.rounds_to(0.5, "test_margin")
    best = int(np.argmax(history.column("test_margin"))) + 1
    until = dataclasses.replace(experiment, rounds=best, callbacks=())
    assert history.params_sha256 == run(until, Simulation(workers=1)).params_sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed was 1, is now 4"),
        ({"strategy": FedAvg(0.5)}, "strategy.server_lr was 1.0, is now 0.5"),
        ({"model": wider}, r"model\.(config|variables) was"),
    ],
)
def test_a_changed_experiment_is_not_resumed(url, changes, message):
    first = run(federation(rounds=1), Simulation(workers=1), store=url)
    with pytest.raises(ConfigError, match=message):
        run(federation(rounds=2, **changes), Simulation(workers=1), store=url, resume=first.run)
    with Store.open(url) as store:
        assert len(store.load_run(first.run).records) == 1


def test_unknown_run_and_missing_store(url):
    with pytest.raises(ConfigError, match="without a store"):
        run(federation(), Simulation(workers=1), resume="x")
    with pytest.raises(StoreError):
        run(federation(), Simulation(workers=1), store=url, resume="nobody")


def test_a_stopped_run_says_why_and_keeps_its_rounds(url):
    with pytest.raises(RunStopped, match="expected at least 6"):
        run(federation(sampler=PoissonCohort(0.3), min_clients=6), Simulation(workers=1), store=url)
    with Store.open(url) as store:
        (summary,) = store.runs()
        stored = store.load_run(summary.run)
    assert (summary.state, summary.rounds_done) == ("stopped", 0)
    assert "expected at least 6" in stored.reason


@pytest.mark.parametrize("with_store", [True, False])
def test_best_round_is_what_the_run_ends_with(url, with_store):
    """A rate that explodes after some rounds makes the last round worse than the best."""
    local = Local(learning_rate=ExponentialDecay(0.2, factor=4.0), batch_size=5)
    experiment = federation(local=local, rounds=4, callbacks=(KeepBest("test_loss"),))
    history = run(experiment, Simulation(workers=1), store=url if with_store else None)
    best = int(np.argmin(history.column("test_loss"))) + 1
    assert best < 4
    until = run(dataclasses.replace(experiment, rounds=best, callbacks=()), Simulation(workers=1))
    assert history.params_sha256 == until.params_sha256


def test_callbacks_end_a_run_early():
    history = run(federation(rounds=50, callbacks=(StopAt("test_accuracy", 0.5),)), Simulation(workers=1))
    assert len(history.rounds) < 50
    assert "test_accuracy reached" in history.stopped_early
    history = run(
        federation(rounds=50, callbacks=(EarlyStopping("train_loss", 1, min_delta=10.0),)), Simulation(workers=1)
    )
    assert len(history.rounds) == 2


@pytest.mark.parametrize("runtime", ["simulation", Simulation])
def test_what_is_no_runtime_is_refused(runtime):
    with pytest.raises(ConfigError, match=r"Simulation\("):
        run(federation(), runtime)


def test_a_number_of_folds_is_no_folds():
    with pytest.raises(ConfigError, match="kfold_within"):
        cross_validate(federation(), Simulation(workers=1), 5)


def test_evaluation_does_not_change_training():
    often = run(federation(sampler=AllClients()), Simulation(workers=2))
    never = run(federation(sampler=AllClients(), test=None), Simulation(workers=2))
    seldom = run(federation(sampler=AllClients(), evaluate_every=2), Simulation(workers=2))
    assert often.params_sha256 == never.params_sha256 == seldom.params_sha256
    assert [record.eval_seconds is None for record in seldom.rounds] == [True, False, False]
    assert never.rounds[0].to_json()["test_accuracy"] is None


def test_history_in_other_forms(tmp_path):
    history = run(federation(), Simulation(workers=1))
    frame = history.to_frame()
    assert list(frame.index) == [1, 2, 3]
    assert history._repr_html_().count("<tr") == 2 + len(frame)  # the titles, and the index's own
    assert repr(history).startswith("History('small': 3 rounds, ")
    assert len(repr(history)) < 300
    assert frame["test_accuracy"].iloc[-1] == history.rounds[-1].metrics["test_accuracy"]
    history.plot(str(tmp_path / "run.png"))
    assert (tmp_path / "run.png").stat().st_size > 5000
    assert history.rounds_to(0.0) == 1
    with pytest.raises(ConfigError, match=r"no round has 'accuracy'; did you mean .*test_accuracy"):
        history.column("accuracy")


def test_tensorboard_reads_what_was_written(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    history = run(federation(), Simulation(workers=1))
    history.to_tensorboard(str(tmp_path))
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    written = {event.step: event.tensor_proto.float_val[0] for event in events.Tensors("test/accuracy")}
    assert written == pytest.approx({record.round: record.metrics["test_accuracy"] for record in history.rounds})
    assert len(events.Tensors("run/seconds")) == 3


def test_a_run_is_not_resumed_when_the_classes_in_its_files_changed(tmp_path):
    """The number of each class follows from all classes that files hold: another one would shift those after it."""
    x, names = np.ones((2, 6), np.float32), ("dog", "owl")

    def experiment(rounds):
        clients = [data.NpzFile(tmp_path / "a.npz"), data.NpzFile(tmp_path / "b.npz")]
        return federation(population=data.PerClient(clients), sampler=AllClients(), test=None, rounds=rounds)

    for file in "ab":
        np.savez(tmp_path / f"{file}.npz", x=x, y=np.array(names))
    simulation = Simulation(workers=1)
    with Store.open(f"sqlite:///{tmp_path}/umbel.db") as store:
        began = run(experiment(1), simulation, store=store)
        np.savez(tmp_path / "b.npz", x=x, y=np.array(["ant", "owl"]))
        with pytest.raises(
            ConfigError, match=r'classes was \["dog", "owl"\], is now \["ant", "dog", "owl"\]; restore t'
        ):
            run(experiment(2), simulation, store=store, resume=began.run)
