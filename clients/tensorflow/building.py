"""TensorFlow's part in building a model: variables that are created lazily, and the batches that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ConfigError, UmbelError
from ...core.examples import Examples, map_arrays
from ..keras.building import batch_of, declared_batch, reason, shapes
from . import compat
from .roles import moved_by


def create_variables(model: keras.Model, batch: Examples) -> frozenset[int]:
    """Create what Keras creates lazily, from the shapes of a batch. Nothing is computed, so that nothing moves.

    A model that runs eagerly has to compute: in one training step, after which what it assigned is put back. Returns
    the places in `model.weights` of the variables that a training step assigns.
    """
    if not model.run_eagerly:
        # As tensors: NumPy's text has a type of its own for every length.
        compat.symbolic_build(model, map_arrays(tf.convert_to_tensor, batch_of(batch)))
    elif not model.built:  # its code may be such that no graph can hold it
        model(batch.x)
    model.optimizer.build(model.trainable_variables)
    moved = moved_by(model, model.train_step, batch_of(batch))
    model.reset_metrics()
    return moved


@contextmanager
def explained(examples: Examples, does_not: str = "take examples") -> Iterator[None]:
    """Raise ConfigError, with Keras's reason, for what goes wrong inside while a step on such examples is traced."""
    try:
        yield
    except (UmbelError, tf.errors.OpError):
        raise
    except Exception as error:
        raise ConfigError(f"the model does not {does_not} of {shapes(examples)}: {reason(error)}") from error


def fixed_batch(model: keras.Model, sample: Examples) -> int | None:
    """Return the only batch size that the model takes; None where it takes any.

    It is the declared one, where the model refuses another.
    """
    declared = declared_batch(model)
    if declared is None:
        return None
    other = sample.take(np.zeros(declared + 1, np.intp)).x
    specs = map_arrays(lambda array: tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)), other)
    try:
        compat.graph_function(lambda x: model(x, training=True)).get_concrete_function(specs)
    except Exception:
        return declared
    return None


def takes_any_length(model: keras.Model, specs: tuple) -> bool:
    """Return whether inputs have no length where specs of examples have none; True for a subclassed model."""
    pairs = zip(getattr(model, "inputs", None) or (), tf.nest.flatten(specs[0]), strict=False)
    return not any(
        length is None and declared is not None
        for expected, spec in pairs
        for declared, length in zip(tuple(expected.shape)[1:], tuple(spec.shape)[1:], strict=False)
    )
