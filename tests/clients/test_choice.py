"""XLA or a graph follows from the model and the settings, and a long run takes the same code path as a short one."""

import re
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import AllClients, Local, Simulation, data, run
from umbel.server.store import Store

LONG = 200_000
X, Y = blobs(48)
PARTS = [(X[client::4], Y[client::4]) for client in range(4)]


@dataclass(frozen=True)
class AfterTwoRounds:
    """Ends a long run when it has shown how it begins."""

    def decide(self, records):
        return "enough" if len(records) >= 2 else None

    def best_round(self, records):
        return None


def long_run(**changes):
    settings = {"sampler": AllClients(), "test": None, "rounds": LONG, "callbacks": (AfterTwoRounds(),)}
    return federation(**(settings | changes))


@pytest.mark.parametrize(
    "population",
    [data.PerClient(PARTS), data.Generated(4, lambda client: PARTS[client], 12), data.Partitioned((X, Y), clients=4)],
    ids=["one by one", "generated", "divided"],
)
def test_a_long_run_begins_as_a_short_one_does(population):
    simulations = [Simulation(workers=1), Simulation(workers=1)]
    short, long = (
        run(long_run(population=population, rounds=rounds), simulation)
        for rounds, simulation in zip((2, LONG), simulations, strict=True)
    )
    assert [simulation.describe()["compile"] for simulation in simulations] == ["graph", "xla"]
    np.testing.assert_allclose(long.params, short.params, rtol=2e-4, atol=2e-6)


def with_numpy():
    class Clipped(keras.layers.Layer):
        def call(self, x):
            clipped = tf.numpy_function(lambda values: np.clip(values, -3, 3), [x], tf.float32)
            return tf.ensure_shape(clipped, [None, FEATURES])

        def compute_output_shape(self, shape):
            return shape

    model = keras.Sequential([keras.Input((FEATURES,)), Clipped(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def convolutional():
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            layers.Reshape((FEATURES, 1)),
            layers.Conv1D(2, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def of_words():
    layers = keras.layers
    words = layers.TextVectorization(9, output_sequence_length=2, vocabulary=["good", "bad", "film"])
    model = keras.Sequential(
        [keras.Input((), dtype="string"), words, layers.Embedding(9, 2), layers.Flatten(), layers.Dense(3)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize(
    ("model", "x", "reason"),
    [
        (with_numpy, X, "PyFunc"),
        (convolutional, X, "slow at .*Conv"),
        (lambda: dense(dropout=0.5), X, "slow at StatelessRandom"),
        (of_words, np.array(["good film", "bad film"] * 24), "text"),
    ],
    ids=["numpy", "convolution", "dropout", "text"],
)
def test_what_xla_cannot_take_or_is_slow_at_runs_as_a_graph(model, x, reason):
    simulation = Simulation(workers=1)
    history = run(long_run(model=model, population=data.Partitioned((x, Y), clients=4)), simulation)
    described = simulation.describe()
    assert described["compile"] == "graph"
    assert re.search(reason, described["compile.reason"])
    assert np.isfinite(history.params).all()


def test_xla_that_was_asked_for_and_cannot_be_is_said(caplog):
    run(long_run(model=with_numpy, population=data.Partitioned((X, Y), clients=4)), Simulation(1, compile="xla"))
    assert [record.message for record in caplog.records if "PyFunc" in record.message]


def test_a_resumed_run_keeps_choice_and_reason(tmp_path):
    url = f"sqlite:///{tmp_path}/runs.db"
    experiment = long_run(population=data.Partitioned((X, Y), clients=4))
    first = run(experiment, Simulation(workers=1), store=url)
    with Store.open(url) as store:
        before = store.load_run(first.run).choices
    simulation = Simulation(workers=1)
    run(long_run(population=experiment.population, rounds=3), simulation, store=url, resume=first.run)
    assert {name: simulation.describe()[name] for name in ("compile", "compile.reason")} == {
        name: before[name] for name in ("compile", "compile.reason")
    }
    assert before["compile"] == "xla"


def test_a_model_that_runs_eagerly_does_and_says_so(caplog):
    def loss(y_true, y_pred):
        float(y_pred.numpy().sum())
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)

    def build_model(eager=True):
        model = dense()
        model.compile(model.optimizer, loss if eager else model.loss, metrics=["accuracy"], run_eagerly=eager)
        return model

    def play(model):
        changes = {"population": data.Partitioned((X, Y), clients=4), "test": (X, Y), "rounds": 1}
        return run(long_run(model=model, **changes), Simulation(workers=2))

    eager, compiled = play(build_model), play(lambda: build_model(eager=False))
    np.testing.assert_allclose(eager.params, compiled.params, rtol=2e-4, atol=2e-6)
    assert eager.rounds[0].metrics == pytest.approx(compiled.rounds[0].metrics, rel=1e-4)
    assert len([record for record in caplog.records if "run_eagerly" in record.message]) == 1


def test_a_batch_larger_than_every_client_is_all_of_it_at_once():
    """Two XLA programs for clients of different sizes, neither of which has a full batch."""
    population = data.PerClient([(X[:10], Y[:10]), (X[10:], Y[10:])])

    def play(batch_size, compile):
        local = Local(epochs=2, batch_size=batch_size, learning_rate=0.1)
        return run(long_run(population=population, local=local), Simulation(1, compile)).params

    whole = play(None, "graph")
    np.testing.assert_allclose(play(512, "xla"), whole, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(play(20, "xla"), play(20, "graph"), rtol=2e-4, atol=2e-6)
