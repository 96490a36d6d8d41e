"""What a builder draws follows from the experiment's seed, and what it reads is read again by the next run."""

import os
import random

import keras
import numpy as np
import pytest

from engines import SOONEST, tf
from federations import CLASSES, FEATURES, dense, federation
from umbel import Simulation, run


def play(model, simulation=None, **changes):
    settings = {"rounds": 1, "test": None} | changes
    return run(federation(model=model, **settings), simulation or Simulation(workers=1, compile=SOONEST))


def drawing():
    """Draw weights from NumPy, from TensorFlow and from Python, none of them seeded."""
    model = dense()
    kernel = tf.random.normal([FEATURES, 8]) + np.random.normal(size=8) + random.random()
    model.layers[0].set_weights([kernel, np.zeros(8)])
    return model


def seeded_itself():
    keras.utils.set_random_seed(5)
    model = dense()
    model.layers[0].set_weights([tf.random.normal([FEATURES, 8]), np.random.normal(size=8)])
    return model


def test_what_a_builder_draws_follows_from_the_experiments_seed():
    before = np.random.get_state()[1].copy()
    first, again, other = (play(drawing, seed=seed).params_sha256 for seed in (1, 1, 2))
    assert first == again != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_a_builder_that_seeds_itself_draws_as_it_does_by_hand():
    simulation = Simulation(workers=1, compile=SOONEST)
    play(seeded_itself, simulation)
    np.testing.assert_allclose(
        simulation.initial_params(), np.concatenate([weight.ravel() for weight in seeded_itself().get_weights()])
    )


class Noisy(keras.layers.Layer):
    def call(self, x):
        return x + np.random.normal(size=FEATURES).astype(np.float32)


def noisy():
    model = keras.Sequential([keras.Input((FEATURES,)), Noisy(), keras.layers.Dense(CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_numbers_that_numpy_draws_in_a_step_are_the_same_in_every_run_and_named(caplog):
    hashes = {play(noisy, Simulation(workers, compile=SOONEST)).params_sha256 for workers in (1, 2)}
    assert len(hashes) == 1
    assert "draws numbers from np.random" in caplog.text
    caplog.clear()
    play(dense)
    assert "np.random" not in caplog.text


@pytest.mark.parametrize("what", ["the environment", "a policy"])
def test_what_a_builder_reads_elsewhere_is_read_again_by_the_next_run(what, monkeypatch):
    def model():
        units = int(os.environ["UNITS"])
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(units), keras.layers.Dense(CLASSES)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    simulation = Simulation(workers=1, compile=SOONEST)
    monkeypatch.setenv("UNITS", "4")
    first = play(model, simulation)
    team = simulation._team
    assert play(model, simulation).params_sha256 == first.params_sha256
    assert simulation._team is team
    if what == "the environment":
        monkeypatch.setenv("UNITS", "5")
        assert len(play(model, simulation).params) > len(first.params)
        return
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert play(model, simulation).params_sha256 != first.params_sha256
    finally:
        keras.config.set_dtype_policy(before)


class Penalised(keras.Model):
    """A model whose loss looks at the gradient by its inputs, which have to be tensors for that."""

    def __init__(self):
        super().__init__()
        self.layer = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.layer(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(self(x))
        return super().compute_loss(x, y, y_pred, sample_weight) + tf.reduce_mean(tape.gradient(total, x) ** 2)


def test_a_loss_that_needs_tensors_has_them_wherever_it_is_tried():
    def model():
        model = Penalised()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    assert np.isfinite(play(model).params).all()
