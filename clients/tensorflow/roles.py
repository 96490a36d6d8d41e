"""The variables of a model that training moves: read off what its traced step assigns, also under a condition.

Neither names say it, nor values that a step happened to change: a target network that is copied every hundredth step is
moved, a BatchNorm whose layer has `trainable=False` is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ConfigError
from ...core.examples import map_arrays
from ...core.frozen import Base
from ...core.spec import NATIVE, ModelSpec
from . import compat
from .calls import Start


def try_step(model: keras.Model, step: Callable[[tuple], Any], batch: tuple) -> None:
    """Trace a step, or run it where the model only runs eagerly; nothing that it moves stays moved."""
    if model.run_eagerly:
        with put_back():
            step(_tensors(batch))
    else:
        _traced(step, batch)


def moved_by(model: keras.Model, step: Callable[[tuple], Any], batch: tuple) -> frozenset[int]:
    """Return the places in `model.weights` of what a step assigns, whatever it does with this batch.

    The step is tried as `try_step` tries it.
    """
    if model.run_eagerly:
        return _moved_eagerly(model, step, batch)
    return _assigned(model, _traced(step, batch))


def _traced(step: Callable[[tuple], Any], batch: tuple) -> Any:
    def traced(batch: tuple) -> tf.Tensor:
        step(batch)
        return tf.constant(0)

    specs = map_arrays(lambda array: tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)), batch)
    return compat.graph_function(traced).get_concrete_function(specs)


def _tensors(batch: tuple) -> tuple:
    """Return the batch as Keras hands it to a step."""
    return map_arrays(tf.convert_to_tensor, batch)


def _assigned(model: keras.Model, concrete: Any) -> frozenset[int]:
    handles = compat.assigned(concrete)
    return frozenset(place for place, weight in enumerate(model.weights) if id(weight.value.handle) in handles)


def _moved_eagerly(model: keras.Model, step: Callable[[tuple], Any], batch: tuple) -> frozenset[int]:
    """Return what the step assigned; and, where it can be traced, whatever it may assign."""
    with put_back() as start:
        before = {id(weight): weight.numpy() for weight in model.weights}
        step(_tensors(batch))
        moved = {
            place
            for place, weight in enumerate(model.weights)
            if start.knows(weight.value.handle) or (id(weight) in before and not is_same(before[id(weight)], weight))
        }
    try:
        return frozenset(moved | _assigned(model, _traced(step, batch)))
    except Exception:  # code that no graph can hold: what it assigns later, and not now, is refused then
        return frozenset(moved)


@contextmanager
def put_back(variables: Iterable[keras.Variable] = ()) -> Iterator[Start]:
    """Run code eagerly inside; what it assigns is put back after, whatever happens.

    variables: put back in any case: what a tf.function assigns is not seen.
    """
    start = Start()
    start.note(variable.value.handle for variable in variables)
    try:
        with start.watched():
            yield start
    finally:
        start.put_everything_back()


def base_of(model: keras.Model, spec: ModelSpec) -> Base:
    """Return the values of a model's frozen variables; those that lie in the processor's memory are not copied.

    A variable that is assigned all the same takes new memory for it.
    """
    pairs = zip(model.weights, spec.variables, strict=True)
    return Base(tuple(_held(weight) for weight, variable in pairs if variable.is_frozen))


def _held(weight: keras.Variable) -> np.ndarray:
    tensor = weight.value.read_value()
    dtype = np.dtype(tensor.dtype.as_numpy_dtype)
    if "CPU" not in tensor.device or not tensor.shape.num_elements() or dtype.name not in NATIVE:
        return np.asarray(tensor.numpy())
    return np.frombuffer(memoryview(tensor), dtype).reshape(tensor.shape)


def check_still_frozen(weights: Sequence[keras.Variable], spec: ModelSpec, base: Base) -> None:
    """Raise ConfigError where a step that ran eagerly has changed what none before it had.

    The change would be lost.
    """
    arrays = iter(base.arrays)
    for weight, variable in zip(weights, spec.variables, strict=True):
        if variable.is_frozen and not is_same(next(arrays), weight):
            raise ConfigError(
                f"training changed {variable.path!r}, which the first step had left alone, so it counts as frozen: "
                "a step that runs eagerly shows no more than what it does. Drop run_eagerly=True, or assign the "
                "variable in every step"
            )


def unmoved(spec: ModelSpec) -> list[str]:
    """Write a sentence for each variable that is trainable, and that training never assigns."""
    return [
        f"{variable.path} is trainable, but no gradient reaches it: it counts as frozen"
        for variable in spec.frozen
        if variable.trainable
    ]


def is_same(array: np.ndarray, weight: keras.Variable) -> bool:
    """Return whether a variable holds exactly the bits of an array."""
    return array.tobytes() == weight.numpy().tobytes()
