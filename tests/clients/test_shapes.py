"""Examples of shapes and types that models take in `fit`: of any length, in batches of one size, as float64."""

import keras
import numpy as np
import pytest

from engines import SOONEST
from federations import CLASSES, FEATURES, blobs, dense, federation
from umbel import AllClients, ConfigError, Local, Simulation, data, run

LOSS = {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}


def recurrent():
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(9, 4),
            keras.layers.SimpleRNN(4),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.compile("adam", **LOSS)
    return model


def sequences(lengths):
    generator = np.random.default_rng(0)
    return [(generator.integers(1, 9, (6, length)), generator.integers(0, CLASSES, 6)) for length in lengths]


def play(clients, **changes):
    """Everybody takes part, in the order given, with the model's own rate."""
    local = Local(epochs=1, batch_size=changes.pop("batch_size", 3), shuffle=False)
    population = clients if hasattr(clients, "sizes") else data.PerClient(clients)
    settings = {"population": population, "sampler": AllClients(), "local": local, "rounds": 1, "test": None}
    compile = changes.pop("compile", SOONEST)
    return run(federation(**(settings | changes)), Simulation(workers=1, compile=compile))


def test_clients_may_hold_sequences_of_different_lengths():
    clients = sequences([4, 7])
    together = play(clients, model=recurrent, test=sequences([6])[0]).params
    alone = [play([client], model=recurrent).params for client in clients]
    np.testing.assert_allclose(together, np.mean(alone, 0), rtol=1e-5, atol=1e-6)


def test_a_length_that_the_model_does_not_take_is_refused():
    x, y = blobs(12)
    with pytest.raises(ConfigError, match=r"does not take examples of x: float32\[5\]"):
        play([(x, y), (x[:, 1:], y)])


def in_batches_of_four():
    inputs = keras.Input(batch_shape=(4, FEATURES))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(keras.ops.reshape(inputs, (4, FEATURES))))
    model.compile("sgd", **LOSS)
    return model


def declared_four():
    model = keras.Sequential([keras.Input(batch_shape=(4, FEATURES)), keras.layers.Dense(CLASSES)])
    model.compile("sgd", **LOSS)
    return model


def test_a_model_of_one_batch_size_trains_on_full_batches_and_says_what_is_left(caplog):
    x, y = blobs(22)
    left_out = play([(x[:10], y[:10]), (x[10:], y[10:])], model=in_batches_of_four, batch_size=4, test=(x[:8], y[:8]))
    assert "last 2 of 22 examples" in caplog.text
    full = play([(x[:8], y[:8]), (x[10:], y[10:])], model=in_batches_of_four, batch_size=4, test=(x[:8], y[:8]))
    np.testing.assert_array_equal(left_out.params, full.params)
    assert left_out.rounds[0].metrics["test_loss"] == full.rounds[0].metrics["test_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8}, r"batches of 4 alone, got batch_size=8"),
        ({"rows": 3, "batch_size": 4}, r"client 0 holds 3 examples"),
        ({"batch_size": 4, "test": blobs(9)}, r"9 examples are no multiple"),
    ],
)
def test_what_such_a_model_cannot_take_is_refused(changes, message):
    x, y = blobs(changes.pop("rows", 8))
    with pytest.raises(ConfigError, match=message):
        play([(x, y)], model=in_batches_of_four, **changes)


def test_a_declared_batch_size_that_nothing_needs_binds_nobody():
    x, y = blobs(11)
    play([(x, y)], model=declared_four, batch_size=5, test=(x, y))


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_floats_are_cast_as_fit_casts_them(kind):
    """pandas gives float64: a custom loss that subtracts one type from another would fail."""

    def loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    def build_model():
        model = dense()
        model.compile("sgd", loss, metrics=["mae"])
        return model

    x = blobs(12)[0].astype(kind)
    y = x[:, :CLASSES]
    changes = {"model": build_model, "test": (x, y)}
    wide = play([(x, y)], **changes)
    changes["test"] = (x.astype("float32"), y.astype("float32"))
    assert play([changes["test"]], **changes).params_sha256 == wide.params_sha256


def test_clients_may_hold_numbers_of_different_widths():
    """A file of one client is read as float64 and int64, another's as float32 and int32: the numbers are the same."""
    x, y = blobs(12)
    wide = x.astype(np.float64), y.astype(np.int64)
    narrow = x.astype(np.float32), y.astype(np.int32)
    np.testing.assert_array_equal(play([narrow, wide]).params, play([narrow, narrow]).params)


@pytest.mark.parametrize(("kind", "reason"), [("complex64", "inputs are real"), ("U2", "x is text")])
def test_what_keras_would_lose_of_the_inputs_is_refused(kind, reason):
    x, y = blobs(12)
    with pytest.raises(ConfigError, match=reason):
        play([(x.astype(kind), y)])


def test_that_labels_are_missing_is_said():
    x, _ = blobs(12)
    with pytest.raises(ConfigError, match="the examples have no y"):
        play([(x,)])
