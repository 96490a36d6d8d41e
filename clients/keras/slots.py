"""The beginning and the end of a client's round for an optimizer: values that follow from the weights, and averages.

An optimizer begins anew on the round's weights, and ends as `fit` ends it: with `finalize_variable_values`, which puts
the average of the way in place of its end (`use_ema=True`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from ...core.errors import ConfigError
from .joining import is_from_keras

Pair = tuple[keras.Variable, keras.Variable]


try:
    SEVERAL: tuple[Any, ...] = (keras.optimizers.MultiOptimizer,)
    # Optimizers of Keras whose variables begin as the weights do; those of others are tried.
    BEGIN_AS_WEIGHTS: tuple[Any, ...] = (keras.optimizers.ScheduleFreeAdamW,)
except AttributeError:  # a version of Keras before them
    SEVERAL = BEGIN_AS_WEIGHTS = ()


def inner_optimizers(optimizer: Any) -> list[Any]:
    """Return the optimizers that take the steps, where one scales losses or hands variables out to several."""
    if hasattr(optimizer, "inner_optimizer"):
        return inner_optimizers(optimizer.inner_optimizer)
    if isinstance(optimizer, SEVERAL):
        return [inner for one in optimizer.optimizers if one.built for inner in inner_optimizers(one)]
    return [optimizer]


def sets_own_rate(optimizer: Any) -> bool:
    """Return whether no single rate can be given to an optimizer: it has a schedule, a function, or several rates."""
    rate = optimizer._learning_rate if isinstance(optimizer, keras.optimizers.Optimizer) else None
    if hasattr(optimizer, "inner_optimizer"):
        return sets_own_rate(optimizer.inner_optimizer)
    return (
        isinstance(optimizer, SEVERAL)
        or isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        or callable(rate)
    )


def is_averaging(optimizer: Any) -> bool:
    """Return whether the end of its way is not what an optimizer leaves."""
    return any(
        inner.use_ema or not is_from_keras(type(inner).finalize_variable_values)
        for inner in inner_optimizers(optimizer)
    )


def copies_of(optimizers: Sequence[Any]) -> list[Pair]:
    """Find variables of optimizers that begin as copies of weights, each with its weight.

    Errors: ConfigError for one that begins as something else that follows from the weights.
    """
    return [
        pair
        for optimizer in optimizers
        for inner in inner_optimizers(optimizer)
        if isinstance(inner, BEGIN_AS_WEIGHTS) or not is_from_keras(type(inner).build)
        for pair in _tried(inner)
    ]


def _tried(optimizer: Any) -> Iterator[Pair]:
    """Build another like optimizer on other weights, and see which of its variables follow."""
    weights = list(optimizer._trainable_variables)
    values = [keras.ops.convert_to_numpy(weight) for weight in weights]
    others = [value + np.arange(1, value.size + 1, dtype=value.dtype).reshape(value.shape) for value in values]
    try:
        other = type(optimizer).from_config(optimizer.get_config())
        for weight, value in zip(weights, others, strict=True):
            weight.assign(value)
        other.build(weights)
    except Exception:  # without a configuration nothing is known
        return
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)
    for slot, moved in zip(optimizer.variables, other.variables, strict=True):
        begins, follows = (keras.ops.convert_to_numpy(one) for one in (slot, moved))
        if begins.dtype == follows.dtype and np.array_equal(begins, follows, equal_nan=begins.dtype.kind == "f"):
            continue
        copied = [one for one, value in zip(weights, others, strict=True) if np.array_equal(follows, value)]
        if len(copied) != 1:
            raise ConfigError(
                f"{type(optimizer).__name__} keeps {slot.path!r}, which begins as something that follows from the "
                "weights and is no copy of one; make it in the first step, where iterations is 0"
            )
        yield slot, copied[0]
