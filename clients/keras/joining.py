"""Trials of whether a metric's state adds up: over steps, so that clients can join theirs, and over batches.

    join        update(A), update(B)  against  the states of A and of B, joined: in both orders, by sum, max or min
    by batch    update(A and B)       against  the same

Both replay the arguments that one step gave to `update_state`: no forward pass, whose last bits differ with the
batch's size, and no random numbers of the model. Keras's own metrics are known to add up, and not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from ...core.types import JOINS, Join

TOLERANCE = 1e-4  # share of the largest number that a variable holds in a trial
Call = tuple[tuple, dict]  # arguments of one call of update_state


class Trial(NamedTuple):
    """The numbers in a metric's variables after some of the examples: float64, one array per variable."""

    first: list[np.ndarray]  # after the first part of the examples
    second: list[np.ndarray]  # after the second part
    both: list[np.ndarray]  # after the first part, then the second
    swapped: list[np.ndarray]  # after the second part, then the first
    at_once: list[np.ndarray] | None  # after both parts in one batch; None where nothing can be divided


def is_of_keras(metric: keras.metrics.Metric) -> bool:
    """Return whether all of a metric's code is Keras's own, whose states are sums that start at 0."""
    code = [getattr(type(metric), name) for name in ("update_state", "result", "reset_state")]
    code += [metric._fn] if isinstance(metric, keras.metrics.MeanMetricWrapper) else []
    return all(map(is_from_keras, code))


def is_from_keras(thing: Any) -> bool:
    """Return whether a function, a class, or an object's class is Keras's own."""
    is_code = hasattr(thing, "__qualname__")
    return str(thing.__module__ if is_code else type(thing).__module__).startswith("keras.src.")


def trials_of(
    metric: keras.metrics.Metric, calls: Sequence[Call], count: int, reset: Callable[[], None]
) -> list[Trial]:
    """Try a metric with the arguments of a step of `count` examples; the trials leave it with some state.

    The second has other numbers: where a model predicts zeros, a maximum would pass for a sum.
    """
    trials = []
    for noise in (False, True):
        replayed = [_map(call, partial(_moved, count=count)) for call in calls] if noise else list(calls)
        first, second = (
            [_map(call, partial(_rows, rows=rows, count=count)) for call in replayed] for rows in parts(count)
        )
        orders = (first, second, [*first, *second], [*second, *first], replayed)
        try:
            one, two, both, swapped, at_once = (_state_after(metric, reset, order) for order in orders)
        except Exception:  # other numbers may be none that the metric takes
            if noise:
                continue
            raise
        divides = any(has_rows(array, count) for array in keras.tree.flatten(replayed))
        trials.append(Trial(one, two, both, swapped, at_once if divides else None))
    return trials


def parts(count: int) -> tuple[slice, slice]:
    """Divide `count` examples into two parts of different sizes."""
    cut = max(count // 3, 1)
    return slice(0, cut), slice(cut, count)


def joins_of(trials: Sequence[Trial], resets: Sequence[np.ndarray]) -> tuple[Join, ...]:
    """Return how each of a metric's variables joins over steps; () where one does not."""
    joins: list[Join] = []
    for number, reset in enumerate(resets):
        fits = [join for join in JOINS if all(_joins(trial, number, reset, join) for trial in trials)]
        if not fits:
            return ()
        joins.append(fits[0])
    return tuple(joins)


def depends_on_batches(trials: Sequence[Trial], resets: Sequence[np.ndarray], joins: Sequence[Join]) -> bool:
    """Return whether examples in one batch leave another state than the same in two, joined."""
    for trial in trials:
        for number, (reset, join) in enumerate(zip(resets, joins, strict=True)):
            if trial.at_once is None:
                continue
            joined = _joined(trial.first[number], trial.second[number], reset, join)
            if not _is_close(trial.at_once[number], joined, trial.first[number], trial.second[number]):
                return True
    return False


def metrics_by_batch(
    metrics: Sequence[keras.metrics.Metric],
    step: Callable[[tuple], Any],
    batch: tuple,
    count: int,
    resets: Sequence[Callable[[], None]],
) -> list[bool]:
    """Find which means of numbers of whole batches, such as the loss, depend on the batches, by a step on parts.

    What is random has another value each time, which is no evidence.
    """
    if not metrics:
        return []
    divided_batch = [_map(batch, partial(_rows, rows=rows, count=count)) for rows in parts(count)]
    states = []
    for run in ((batch,), (batch,), divided_batch):
        for reset in resets:
            reset()
        for part in run:
            step(part)
        states.append([_numbers(metric) for metric in metrics])
    once, again, divided = states

    def same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
        return all(_is_close(a, b, a, b) for a, b in zip(one, other, strict=True))

    return [same(a, b) and not same(a, c) for a, b, c in zip(once, again, divided, strict=True)]


def _state_after(metric: keras.metrics.Metric, reset: Callable[[], None], calls: Sequence[Call]) -> list[np.ndarray]:
    reset()
    for args, kwargs in calls:
        metric.update_state(*args, **kwargs)
    return _numbers(metric)


def _numbers(metric: keras.metrics.Metric) -> list[np.ndarray]:
    return [np.asarray(keras.ops.convert_to_numpy(variable), np.float64) for variable in metric.variables]


def _joins(trial: Trial, number: int, reset: np.ndarray, join: Join) -> bool:
    """Return whether a variable's states join so, in both orders. What is not finite is no evidence."""
    first, second = trial.first[number], trial.second[number]
    if join == "sum" and not np.isfinite(reset).all():  # nothing can be subtracted from infinity
        return False
    joined = _joined(first, second, reset, join)
    return all(_is_close(state[number], joined, first, second) for state in (trial.both, trial.swapped))


def _joined(first: np.ndarray, second: np.ndarray, reset: np.ndarray, join: Join) -> np.ndarray:
    return first + second - reset if join == "sum" else JOINS[join](first, second)


def _is_close(state: np.ndarray, expected: np.ndarray, *parts: np.ndarray) -> bool:
    """Return whether two states are equal to what float32 rounds, in proportion to the variable's largest number.

    NaN and infinity are left out.
    """
    finite = np.isfinite(state) & np.isfinite(expected)
    for part in parts:
        finite &= np.isfinite(part)
    largest = max((np.abs(part[finite]).max(initial=0) for part in (state, *parts)), default=0)
    return bool((np.abs(state - expected)[finite] <= TOLERANCE * largest).all())


def _moved(array: Any, count: int) -> Any:
    """Return other numbers like those of array: larger ones, or for integers other rows' own."""
    kind = kind_of(array)
    if kind is None:
        return array
    values = np.asarray(array)
    if kind != "float":
        changed = values[::-1] if has_rows(array, count) else values
    elif has_rows(array, count):
        wide = values.astype(np.float64)
        grows = np.linspace(0.05, 0.2, count).reshape(-1, *(1 for _ in wide.shape[1:]))  # so that parts differ
        changed = wide + grows * (1 + np.std(wide)) * np.random.default_rng(0).random(wide.shape)
    else:
        changed = 1.37 * values.astype(np.float64)
    moved = np.ascontiguousarray(changed).astype(values.dtype)
    return _masked(keras.ops.convert_to_tensor(moved), array, lambda mask: mask)


def _rows(array: Any, rows: slice, count: int) -> Any:
    """Return the rows of what has an axis of examples; a number of the whole batch, the later the larger."""
    if not has_rows(array, count):
        is_number = keras.ops.is_tensor(array) and kind_of(array) == "float" and not len(array.shape)
        return array * (1.0 if rows.start == 0 else 1.25) if is_number else array
    return _masked(array[rows], array, lambda mask: mask[rows])


def kind_of(array: Any) -> str | None:
    """Return "float" or "whole" for an array or tensor of such numbers; None for anything else."""
    if not (keras.ops.is_tensor(array) or isinstance(array, np.ndarray)):
        return None
    name = str(np.dtype(array.dtype).name if isinstance(array, np.ndarray) else array.dtype.name)
    if "float" in name:
        return "float"
    return "whole" if name.startswith(("int", "uint", "bool")) else None


def _masked(changed: Any, array: Any, change: Callable[[Any], Any]) -> Any:
    """Return changed, with the mask that Keras keeps beside array."""
    mask = getattr(array, "_keras_mask", None)
    if mask is not None:
        changed._keras_mask = change(mask)
    return changed


def has_rows(array: Any, count: int) -> bool:
    """Return whether array has an axis of `count` examples."""
    shape = getattr(array, "shape", None)
    return shape is not None and len(shape) > 0 and shape[0] == count


def _map(structure: Any, change: Callable[[Any], Any]) -> Any:
    return keras.tree.map_structure(change, structure)
