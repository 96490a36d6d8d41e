"""A client's whole round as one compiled call around Keras's own `train_step`.

    put back what a step assigns ─► assign the broadcast, seeds ─► loop train_step ─► delta, the metrics' states

The loop takes full batches of a fixed shape, then each epoch's last, smaller batch in its true shape: nothing is
padded where the model could see it, so BatchNorm, custom losses and custom steps are what Keras would compute. Only
the array of row numbers is padded, to a bucket, so that XLA compiles once and not once per client.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import tensorflow as tf

from ...core.examples import Examples, map_arrays
from ...core.parts.phases import Course
from ...core.random import Key
from ...core.types import MetricState, Weighted
from ..engine import Trained, TrainTask
from ..keras.building import batch_of
from . import compat
from .calls import FlatCall, Twins
from .state import ModelState, words_for

WHOLE = Course()  # all variables, as Local says


class TrainProgram:
    """A program that trains one client per call. Threads may share it: each has twins of its own."""

    def __init__(
        self,
        state: ModelState,
        specs: tuple,
        epochs: int | None,
        batch_size: int | None,
        xla: bool,
        course: Course = WHOLE,
        has_offset: bool = False,
        examples: int | None = None,
        is_partial: bool = False,
    ):
        """Trace the program. specs: shapes and types of the examples, as data_specs gives them.

        epochs: that Local says, of every client; None: as many as make up the rows of its order.

        is_partial: whether the last of them may end before the examples do; see Task.last.

        course: what is trained. Its proximal term, and has_offset: how gradients are corrected; see
        ModelState.corrected.

        examples: of every client that the program is for. With XLA all of the training is then one compiled program,
        since even the last batch's shape is known; otherwise only the full batches are.
        """
        self.state, self.epochs, self.batch_size, self.examples = state, epochs, batch_size, examples
        self.course, self.has_offset, self.is_partial = course, has_offset, is_partial
        # One for each part: a compiled function is traced once, with what that part freezes.
        self._full_batches = [
            compat.graph_function(self._loop_full_batches, xla=True) if xla else self._loop_full_batches
            for _ in course.parts
        ]
        # Assigning the broadcast stays outside: XLA runs what has several beginnings on the one thread that it shares
        # out operations to, and with it everything after, so that workers would wait for one another.
        self._is_whole = xla and examples is not None
        with state.meter.tracing("train"):
            self._step_of = state.trace(self._steps, self._signature(specs), self._is_whole)
        state.check_moved(self._step_of)
        seeds = tf.TensorSpec([len(self._step_of.generators), 2], tf.int64)
        self._call = FlatCall.trace(self._round, [state.personal_specs(), seeds, *self._signature(specs)])

    def _signature(self, specs: tuple) -> list:
        """Return the shapes and types of what `_steps` takes. specs: those of the examples."""
        state, passes = self.state, None if self.epochs is None else self.course.passes(self.epochs)
        return [
            tf.TensorSpec([state.spec.size], tf.float32),
            specs,
            tf.TensorSpec([passes, None], tf.int32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([state.spec.size if self.has_offset else 0], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]

    def __call__(self, twins: Twins, params: tf.Tensor, task: TrainTask) -> Trained:
        """Train one client, over twins. params: the task's, as a tensor."""
        seeds = words_for(task.key, len(self._step_of.generators))
        settings = task.order, task.examples, task.learning_rate, task.offset, task.last
        delta, after, measured, counters = self._call(
            twins, task.personal, seeds, params, batch_of(task.data), *settings
        )
        visited = task.examples * len(task.order) - (task.examples - task.last if self.is_partial else 0)
        states = self.state.meter.states("train", measured, visited)
        personal, counted = ([value.numpy() for value in values] for values in (after, counters))
        return Trained(host(delta), personal, states, self.state.traffic(counted))

    @property
    def graph(self) -> Any:
        """The graph that was traced."""
        return self._call.concrete.graph

    def _round(self, personal, seeds, params, data, order, count, learning_rate, offset, last):
        self.state.begin(self._step_of, params, personal, learning_rate, seeds)
        return self._step_of.call.inside(params, data, order, count, learning_rate, offset, last)

    def _steps(self, params, data, order, count, learning_rate, offset, last):
        if self._is_whole:
            count = last = tf.constant(self.examples)
        return self._corrected(params, data, order, count, learning_rate, offset, last)

    def _corrected(self, params, data, order, count, learning_rate, offset, last):
        if not (self.course.proximal or self.has_offset):
            return self._train(params, data, order, count, learning_rate, last)
        with self.state.corrected(*self.course.correction(params, offset if self.has_offset else None)):
            return self._train(params, data, order, count, learning_rate, last)

    def _train(self, params, data, order, count, learning_rate, last):
        all_epochs = tf.shape(order)[0] if self.epochs is None else self.course.passes(self.epochs)
        usual = all_epochs - self.course.passes(0) if self.epochs is None else self.epochs
        first = 0
        for part, (epochs, trains) in enumerate(self.course.parts):
            if part:
                self.state.reset_optimizer(learning_rate)
            end = first + (usual if epochs is None else epochs)
            is_partial = self.is_partial and epochs is None
            with self.state.only(trains):
                self._epochs(part, data, order, count, first, end, last if is_partial else None)
            self.state.finish_optimizer()
            first = end
        measured = self.state.meter.read("train")
        after, counters = (
            [tf.convert_to_tensor(variable) for variable in variables]
            for variables in (self.state.personal, self.state.counters)
        )
        return self.state.delta(params), after, measured, counters

    def _epochs(self, part: int, data, order, count, first, end, last) -> None:
        """Train one part of the course: the order's rows from first, up to end.

        last: number of examples in the last of them; None: all.
        """

        def epoch(number: tf.Tensor) -> tuple[tf.Tensor]:
            rows, seen = order[number], count if last is None else tf.where(number < end - 1, count, last)
            full = seen // self.batch_size if self.batch_size else tf.constant(0)
            done = full * (self.batch_size or 0)
            with tf.control_dependencies([self._full_batches[part](data, rows, full)] if self.batch_size else []):
                tf.cond(seen > done, lambda: self._step(data, rows[done:seen]), lambda: tf.constant(0))
            return (number + 1,)

        if isinstance(end, int) and end - first == 1:
            epoch(tf.constant(first))
        else:
            start = tf.convert_to_tensor(first)
            tf.while_loop(lambda number: number < end, epoch, (start,), parallel_iterations=1)

    def _loop_full_batches(self, data, rows: tf.Tensor, full: tf.Tensor) -> tf.Tensor:
        """Train `full` batches of exactly batch_size examples; return how many were done."""

        def batch(number: tf.Tensor) -> tuple[tf.Tensor]:
            self._step(data, tf.slice(rows, [number * self.batch_size], [self.batch_size]))
            return (number + 1,)

        return tf.while_loop(lambda number: number < full, batch, (tf.constant(0),), parallel_iterations=1)[0]

    def _step(self, data, rows: tf.Tensor) -> tf.Tensor:
        logs = self.state.train_step(gather(data, rows))
        self.state.meter.track("train", logs, tf.shape(rows)[0])
        return tf.constant(0)


class EvaluateProgram:
    """A program that evaluates examples with Keras's own `test_step`; one call per chunk of rows."""

    def __init__(self, state: ModelState, specs: tuple, batch_size: int):
        """Trace the program for examples of the shapes in specs, as data_specs gives them."""
        self.state, self.batch_size = state, batch_size
        vector, rows = tf.TensorSpec([state.spec.size], tf.float32), tf.TensorSpec([None], tf.int32)
        with state.meter.tracing("test"):
            self._step_of = state.trace(self._steps, [specs, rows])
        seeds = tf.TensorSpec([len(self._step_of.generators), 2], tf.int64)
        self._call = FlatCall.trace(self._evaluate, [vector, state.personal_specs(), seeds, specs, rows])

    def __call__(
        self, twins: Twins, params: tf.Tensor, personal: list, data: Examples, rows: np.ndarray, key: Key
    ) -> dict[str, Weighted | MetricState]:
        """Return the metrics' states over the rows of data. key: key that the model's random numbers follow from."""
        seeds = words_for(key, len(self._step_of.generators))
        measured = self._call(twins, params, personal, seeds, batch_of(data), rows)
        return self.state.meter.states("test", measured, len(rows))

    def _evaluate(self, params, personal, seeds, data, rows):
        self.state.begin(self._step_of, params, personal, None, seeds)
        return self._step_of.call.inside(data, rows)

    def _steps(self, data, rows):
        count = tf.shape(rows)[0]

        def batch(start: tf.Tensor) -> tuple[tf.Tensor]:
            own = rows[start : tf.minimum(start + self.batch_size, count)]
            logs = self.state.model.test_step(gather(data, own))
            self.state.meter.track("test", logs, tf.shape(own)[0])
            return (start + self.batch_size,)

        tf.while_loop(lambda start: start < count, batch, (tf.constant(0),), parallel_iterations=1)
        return self.state.meter.read("test")


def gather(data: tuple, rows: tf.Tensor) -> tuple:
    """Return the batch at `rows` of (x,), (x, y) or (x, y, sample_weight)."""
    return map_arrays(lambda array: tf.gather(array, rows), data)


def data_specs(data: Examples) -> tuple:
    """Return the signature of examples with any number of them."""
    return map_arrays(lambda array: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype)), batch_of(data))


def form_of(arrays: Any) -> Hashable:
    """Return what `data_specs` says of examples, as a value that is quick to make and to look up."""
    if arrays is None:
        return None
    if isinstance(arrays, dict):
        return tuple((name, form_of(value)) for name, value in arrays.items())
    if isinstance(arrays, (list, tuple)):
        return type(arrays), *map(form_of, arrays)
    return tuple(arrays.shape)[1:], arrays.dtype


def widened(one: tuple, other: tuple) -> tuple:
    """Return the signature that takes what either takes: no length for an axis in which they differ."""
    return tf.nest.map_structure(
        lambda a, b: (
            a if a.shape == b.shape else tf.TensorSpec(a.shape.most_specific_compatible_shape(b.shape), a.dtype)
        ),
        one,
        other,
    )


def host(tensor: tf.Tensor) -> np.ndarray:
    """Return the tensor as an array; without a copy where it lies in the processor's memory."""
    return np.frombuffer(memoryview(tensor), np.float32) if "CPU" in tensor.device else tensor.numpy()
