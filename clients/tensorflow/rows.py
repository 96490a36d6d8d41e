"""A metric's result() for many clients' states at a time, in one compiled call."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ...core.types import MetricState
from ..keras.meter import Unit
from ..keras.reported import leaves_of
from . import compat


class CompiledRows:
    """A metric's result() for many states, one after another in a graph."""

    def __init__(self, unit: Unit, example: MetricState):
        self._unit = unit
        result = unit.value_of(tf.constant(example.numbers))
        self._leaves = [(path, tuple(leaf.shape)) for path, leaf in leaves_of(result)]
        signature = [tf.TensorSpec([None, len(example.numbers)], tf.float64)]
        self._call = compat.graph_function(self._all, signature=signature)

    def __call__(self, numbers: np.ndarray) -> dict[tuple[str, ...], np.ndarray]:
        """Return what lies in the result, by its keys: float64, shape (states, …).

        numbers: float64, shape (states, n).
        """
        try:
            flat = self._call(tf.constant(numbers)).numpy()
        except tf.errors.OpError as error:
            raise ValueError(str(error)) from error
        results, start = {}, 0
        for path, shape in self._leaves:
            end = start + int(np.prod(shape))
            results[path] = flat[:, start:end].reshape(len(flat), *shape)
            start = end
        return results

    def _all(self, numbers: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(self._one, numbers, fn_output_signature=tf.float64)

    def _one(self, numbers: tf.Tensor) -> tf.Tensor:
        leaves = [leaf for _, leaf in leaves_of(self._unit.value_of(numbers))]
        return tf.concat([tf.reshape(tf.cast(leaf, tf.float64), [-1]) for leaf in leaves], 0)
