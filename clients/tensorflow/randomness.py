"""TensorFlow's random numbers as a function of a key: in a traced step `tf.random.*` draws from a seeded variable.

`tf.random.normal` and its kind keep a state in the runtime, which no seed resets and no two workers share in the same
order. While a step is traced, each is replaced by its stateless form, whose seed is a variable like any other: it is
assigned from the client's key, and counts the draws.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from ...core.random import Key
from . import compat

STATE = "seed_generator_state"  # Keras's name for the states of its own generators: both are seeded alike


class Seeder:
    """The seeds of one model's draws: a word of the client's key, and another that counts."""

    def __init__(self) -> None:
        self.state = tf.Variable([0, 0], dtype=tf.int64, trainable=False, name=STATE)

    def next(self) -> tf.Tensor:
        """Return a seed that no other draw has: int64, shape (2,)."""
        seed = tf.identity(self.state.value())
        self.state.assign_add([0, 1])
        return seed

    @property
    def is_overruled(self) -> bool:
        """Return whether draws follow from a seed of the user's own all the same."""
        return False


class _Tracing(threading.local):
    seeder: Seeder | None = None


_tracing = _Tracing()
_lock = threading.Lock()


@contextlib.contextmanager
def seeded_by(seeder: Seeder) -> Iterator[None]:
    """Let what this thread traces inside draw from seeder where it would draw from the runtime's state."""
    with _lock:
        for name, stateless in STATELESS.items():
            compat.replace_random(name, functools.partial(_either, stateless))
    before = _tracing.seeder
    _tracing.seeder = seeder
    try:
        yield
    finally:
        _tracing.seeder = before


@contextlib.contextmanager
def seeded(key: Key) -> Iterator[None]:
    """Let `tf.random.*` follow from key inside, where this thread runs eagerly.

    Code that calls `tf.random.set_seed` inside draws what follows from its own seed.
    """
    seeder = _BuildersSeeder()
    seeder.state.assign(key.words(2))
    with seeded_by(seeder):
        yield


class _BuildersSeeder(Seeder):
    """The seeds of what a model's builder draws."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = compat.eager_generator()

    @property
    def is_overruled(self) -> bool:
        """Return whether TensorFlow has been seeded since this was made."""
        return compat.eager_generator() is not self._generator


def _either(stateless: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that calls original, or where a step is traced its stateless form."""

    def draw(*arguments: Any, **settings: Any) -> Any:
        seeder = _tracing.seeder
        if seeder is None or seeder.is_overruled:
            return original(*arguments, **settings)
        # A seed of the user's own is replaced as well: its state would run on from one client to the next.
        for name in ("seed", "seed2", "name"):
            settings.pop(name, None)
        return stateless(seeder.next(), *arguments, **settings)

    return draw


def normal(seed: tf.Tensor, shape: Any, dtype: Any) -> tf.Tensor:
    """Stand in for RandomStandardNormal."""
    return tf.random.stateless_normal(shape, seed, dtype=dtype)


def truncated_normal(seed: tf.Tensor, shape: Any, dtype: Any) -> tf.Tensor:
    """Stand in for TruncatedNormal."""
    return tf.random.stateless_truncated_normal(shape, seed, dtype=dtype)


def uniform(seed: tf.Tensor, shape: Any, dtype: Any) -> tf.Tensor:
    """Stand in for RandomUniform."""
    return tf.random.stateless_uniform(shape, seed, dtype=dtype)


def uniform_integers(seed: tf.Tensor, shape: Any, minval: Any, maxval: Any) -> tf.Tensor:
    """Stand in for RandomUniformInt."""
    low = tf.convert_to_tensor(minval)
    return tf.random.stateless_uniform(shape, seed, low, maxval, low.dtype)


def categories(seed: tf.Tensor, logits: Any, num_samples: Any, output_dtype: Any = tf.int64) -> tf.Tensor:
    """Stand in for Multinomial. XLA takes seeds of 32 bits alone."""
    return tf.random.stateless_categorical(logits, num_samples, tf.cast(seed, tf.int32), output_dtype)


def shuffled(seed: tf.Tensor, value: Any) -> tf.Tensor:
    """Stand in for RandomShuffle."""
    value = tf.convert_to_tensor(value)
    return tf.gather(value, tf.argsort(tf.random.stateless_uniform([tf.shape(value)[0]], seed)))


def gamma(seed: tf.Tensor, shape: Any, alpha: Any) -> tf.Tensor:
    """Stand in for RandomGamma."""
    alpha = tf.convert_to_tensor(alpha)
    whole = tf.concat([tf.cast(shape, tf.int32), tf.shape(alpha)], 0)
    return tf.random.stateless_gamma(whole, seed, alpha, dtype=alpha.dtype)


def poisson(seed: tf.Tensor, shape: Any, rate: Any, dtype: Any = tf.int64) -> tf.Tensor:
    """Stand in for RandomPoissonV2."""
    rate = tf.convert_to_tensor(rate)
    whole = tf.concat([tf.cast(shape, tf.int32), tf.shape(rate)], 0)
    return tf.random.stateless_poisson(whole, seed, rate, dtype)


STATELESS: dict[str, Callable[..., tf.Tensor]] = {
    "random_standard_normal": normal,
    "truncated_normal": truncated_normal,
    "random_uniform": uniform,
    "random_uniform_int": uniform_integers,
    "multinomial": categories,
    "random_shuffle": shuffled,
    "random_gamma": gamma,
    "random_poisson_v2": poisson,
}
