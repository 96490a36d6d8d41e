"""Random numbers of TensorFlow in a traced step follow from the seeder, and have their distribution."""

import numpy as np
import pytest
import tensorflow as tf

from umbel.clients.tensorflow import compat
from umbel.clients.tensorflow.randomness import STATELESS, Seeder, seeded_by

COUNT = 4000
# Each with the mean and the deviation that it must have.
DRAWS = {
    "normal": (lambda: tf.random.normal([COUNT], 1.0, 2.0), 1.0, 2.0),
    "truncated": (lambda: tf.random.truncated_normal([COUNT]), 0.0, 0.8796),
    "uniform": (lambda: tf.random.uniform([COUNT], 2.0, 4.0, seed=3), 3.0, 2 / np.sqrt(12)),
    "integers": (lambda: tf.random.uniform([COUNT], 0, 10, tf.int32), 4.5, np.sqrt(99 / 12)),
    "categorical": (lambda: tf.random.categorical(tf.math.log([[0.25, 0.75]]), COUNT)[0], 0.75, np.sqrt(3 / 16)),
    "shuffled": (lambda: tf.random.shuffle(tf.range(COUNT)) / COUNT, 0.5, 1 / np.sqrt(12)),
    "gamma": (lambda: tf.random.gamma([COUNT], [4.0])[:, 0], 4.0, 2.0),
    "poisson": (lambda: tf.random.poisson([COUNT], [4.0])[:, 0], 4.0, 2.0),
    "dropout": (lambda: tf.nn.dropout(tf.ones([COUNT]), 0.5), 1.0, 1.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_follow_from_the_state_and_have_their_distribution(name):
    draw, mean, deviation = DRAWS[name]
    seeder = Seeder()
    with seeded_by(seeder):
        traced = tf.function(lambda: (draw(), draw()), autograph=False).get_concrete_function()
    assert not list(compat.stateful_operations(traced.graph))
    first, second = traced()
    assert not np.array_equal(first, second)
    seeder.state.assign([0, 0])
    np.testing.assert_array_equal(traced()[0], first)
    seeder.state.assign([1, 0])
    assert not np.array_equal(traced()[0], first)
    error = 5 * deviation / np.sqrt(COUNT)
    assert np.mean(first) == pytest.approx(mean, abs=error)
    assert np.std(first) == pytest.approx(deviation, abs=3 * error)


def test_elsewhere_nothing_is_replaced():
    with seeded_by(Seeder()):
        pass
    drawn = tf.function(lambda: tf.random.normal([3]), autograph=False).get_concrete_function()
    assert [operation.type for operation in compat.stateful_operations(drawn.graph)] == ["RandomStandardNormal"]


def test_every_replacement_is_of_a_function_that_is_there():
    from tensorflow.python.ops import gen_random_ops

    assert all(callable(getattr(gen_random_ops, name)) for name in STATELESS)
