"""Averages of the way that an optimizer took, left in the weights at the end of a client's round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from ..keras.slots import inner_optimizers, is_averaging


def finish(optimizers: Sequence[Any]) -> None:
    """Leave in the weights what `fit` leaves at its end; where no step was taken nothing changes."""
    for optimizer in optimizers:
        for inner in inner_optimizers(optimizer) if is_averaging(optimizer) else ():
            tf.cond(inner.iterations.value > 0, lambda inner=inner: _finalized(inner), lambda: tf.constant(0))


def _finalized(optimizer: Any) -> tf.Tensor:
    optimizer.finalize_variable_values(optimizer._trainable_variables)
    return tf.constant(0)
