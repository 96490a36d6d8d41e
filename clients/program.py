"""A client's whole round as one compiled call around Keras's own `train_step`.

    assign the broadcast ─► reset optimizer, metrics, seeds ─► loop train_step ─► delta, metric sums

The loop takes full batches of a fixed shape, then each epoch's last, smaller batch in its true shape: nothing is
padded where the model could see it, so BatchNorm, custom losses and custom steps are what Keras would compute. Only
the array of row numbers is padded, to a bucket, so that XLA compiles once and not once per client.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

from ..core.examples import Examples, map_arrays
from ..core.phases import Course, Trains
from ..core.spec import ModelSpec
from ..core.types import Vector, Weighted
from .building import batch_of
from .dispatch import FlatCall
from .measures import metric_sums, named_sums
from .mirrored import Mirrored
from .split import Halves


class ModelState:
    """A model's variables, sorted by what happens to them in a client's round, and a step of training."""

    def __init__(self, model: keras.Model, spec: ModelSpec, parts: Halves | Mirrored | None = None):
        """parts: of a model that trains in several places; they have optimizers and a step of their own."""
        self.model, self.spec = model, spec
        self.optimizers = [model.optimizer] if parts is None else parts.optimizers
        self.train_step = model.train_step if parts is None else parts.train_step
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if parts is None and hasattr(optimizer, "looking_back"):  # it needs each batch's gradient at two places
            self.train_step = optimizer.looking_back(model)
        pairs = list(zip((model if parts is None else parts).weights, spec.variables, strict=True))
        self.shared = [weight for weight, variable in pairs if variable.offset is not None]
        self.personal = [weight for weight, variable in pairs if variable.offset is None]
        self.seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
        metrics = [variable for metric in model.metrics for variable in metric.variables]
        own = [variable for optimizer in self.optimizers for variable in optimizer.variables]
        own += [] if parts is None else parts.counters
        self._optimizer = [(variable, _initial(variable)) for variable in own]
        self._metrics = [(variable, _initial(variable)) for variable in metrics]
        everything = {id(one): one.value for one in [*model.variables, *own, *metrics]}
        self.variables = list(everything.values())  # in an order that all builds of the model share
        self.has_own_schedule = isinstance(
            getattr(model.optimizer, "_learning_rate", None), keras.optimizers.schedules.LearningRateSchedule
        )

    def begin(
        self, params: tf.Tensor, personal: Sequence[tf.Tensor], learning_rate: tf.Tensor, seeds: tf.Tensor
    ) -> None:
        """Everything a client starts from; nothing of the client before it is left."""
        self.load(params, personal)
        self.reset_metrics()
        self.reset_optimizer(learning_rate)
        for position, variable in enumerate(self.seeds):
            variable.assign(tf.cast(seeds[position], variable.dtype))

    def reset_metrics(self) -> None:
        """As if nothing had been measured."""
        _reset(self._metrics)

    def reset_optimizer(self, learning_rate: tf.Tensor) -> None:
        """As compiled, but for the rate; the optimizer's own schedule begins again."""
        _reset(self._optimizer)
        if not self.has_own_schedule:
            for optimizer in self.optimizers:
                optimizer.learning_rate.assign(learning_rate)

    def load(self, params: tf.Tensor, personal: Sequence[tf.Tensor]) -> None:
        """Assign the vector, and the variables that stay at home."""
        for weight, variable in zip(self.shared, self.spec.shared, strict=True):
            part = tf.slice(params, [variable.offset], [variable.size])
            weight.assign(tf.cast(tf.reshape(part, variable.shape), weight.dtype))
        for weight, value in zip(self.personal, personal, strict=True):
            weight.assign(value)

    def delta(self, params: tf.Tensor) -> tf.Tensor:
        """local − global: float32, shape (d,)."""
        parts = [tf.reshape(tf.cast(tf.convert_to_tensor(weight), tf.float32), [-1]) for weight in self.shared]
        return tf.concat(parts, 0) - params

    @contextlib.contextmanager
    def corrected(self, proximal: float, params: tf.Tensor, offset: tf.Tensor | None) -> Iterator[None]:
        """Inside, every step takes gradient + proximal·(w − params) + offset in place of the gradient.

        params, offset: shape (d,); offset None for nothing. The optimizer's `apply` is where every custom `train_step`
        ends as well; statistics and personal variables are not corrected.
        """
        optimizer = self.optimizers[0]
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a loss scale is divided out before
        places = {id(one): v for one, v in zip(self.shared, self.spec.shared, strict=True)}
        apply = optimizer.apply

        def correct(gradient: Any, weight: keras.Variable) -> Any:
            place = places.get(id(weight))
            if gradient is None or place is None:
                return gradient
            gradient = tf.convert_to_tensor(gradient)  # embeddings give sparse ones
            if proximal:
                start = tf.reshape(tf.slice(params, [place.offset], [place.size]), place.shape)
                drift = tf.convert_to_tensor(weight.value) - tf.cast(start, gradient.dtype)
                gradient += tf.cast(proximal, gradient.dtype) * drift
            if offset is not None:
                own = tf.reshape(tf.slice(offset, [place.offset], [place.size]), place.shape)
                gradient += tf.cast(own, gradient.dtype)
            return gradient

        def corrected_apply(gradients: Any, trainable_variables: Any = None) -> Any:
            weights = optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
            return apply([correct(g, w) for g, w in zip(gradients, weights, strict=True)], trainable_variables)

        optimizer.apply = corrected_apply
        try:
            yield
        finally:
            del optimizer.apply

    @contextlib.contextmanager
    def only(self, trains: Trains) -> Iterator[None]:
        """Inside, a step changes no weights but those named; compiled, gradients of the others are not even computed.

        Goes inside `corrected`. Statistics move all the same.
        """
        if trains == "all":
            yield
            return
        optimizer = self.optimizers[0]
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        kept = {id(weight) for weight in (self.shared if trains == "shared" else self.personal)}
        before, apply = vars(optimizer).get("apply"), optimizer.apply

        def filtered_apply(gradients: Any, trainable_variables: Any = None) -> Any:
            weights = optimizer._trainable_variables if trainable_variables is None else list(trainable_variables)
            pairs = [(g, w) for g, w in zip(gradients, weights, strict=True) if id(w) in kept]
            return apply([gradient for gradient, _ in pairs], [weight for _, weight in pairs])

        optimizer.apply = filtered_apply
        try:
            yield
        finally:
            if before is None:
                del optimizer.apply
            else:
                optimizer.apply = before

    def personal_specs(self) -> list[tf.TensorSpec]:
        """Shapes and types of the variables that stay at home."""
        return [tf.TensorSpec(weight.shape, weight.dtype) for weight in self.personal]


class Task(NamedTuple):
    """One client's round, besides the broadcast and the data."""

    personal: Sequence[Any]  # values of the variables that stay at home
    order: np.ndarray  # rows of the data per epoch, shape (epochs, bucket), of which the first `examples` count
    examples: int
    learning_rate: float
    seeds: np.ndarray  # of the model's own generators, shape (generators, 2)
    offset: Vector  # added to every gradient: shape (d,), or empty for nothing


WHOLE = Course()  # all variables, as Local says
Program = TypeVar("Program", "TrainProgram", "EvaluateProgram")


class TrainProgram:
    """Trains one client per call. Not thread-safe: a program owns its model."""

    def __init__(
        self,
        state: ModelState,
        data: Examples,
        epochs: int | None,
        batch_size: int | None,
        xla: bool,
        course: Course = WHOLE,
        has_offset: bool = False,
        examples: int | None = None,
    ):
        """epochs: that Local says, of every client; None: as many as make up the rows of its order.

        course: what is trained. Its proximal term, and has_offset: how gradients are corrected; see
        ModelState.corrected.

        examples: of every client that the program is for. With XLA all of the training is then one compiled program,
        since even the last batch's shape is known; otherwise only the full batches are.
        """
        self.state, self.epochs, self.batch_size, self.examples = state, epochs, batch_size, examples
        self.course, self.has_offset = course, has_offset
        self.metric_names: list[str] = []
        # One for each part: a compiled function is traced once, with what that part freezes.
        self._full_batches = [
            tf.function(self._loop_full_batches, jit_compile=True, autograph=False) if xla else self._loop_full_batches
            for _ in course.parts
        ]
        # Assigning the broadcast stays outside: XLA runs what has several beginnings on the one thread that it shares
        # out operations to, and with it everything after, so that workers would wait for one another.
        self._is_whole = xla and examples is not None
        self._call = FlatCall.trace(
            self._round,
            [
                tf.TensorSpec([state.spec.size], tf.float32),
                data_specs(data),
                state.personal_specs(),
                tf.TensorSpec([None if epochs is None else course.passes(epochs), None], tf.int32),
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([len(state.seeds), 2], tf.int64),
                tf.TensorSpec([state.spec.size if has_offset else 0], tf.float32),
            ],
        )

    def __call__(
        self, params: tf.Tensor, data: Examples, task: Task
    ) -> tuple[np.ndarray, list[np.ndarray], dict[str, Weighted]]:
        """One client's round.

        params: the broadcast, shape (d,). data: resident, or this client's alone. Returns delta (shape (d,)), the
        personal values after, and metric sums.
        """
        delta, after, sums = self._call(params, batch_of(data), *task)
        return host(delta), [value.numpy() for value in after], named_sums(self.metric_names, sums)

    def over(self, state: ModelState) -> TrainProgram | None:
        """This program over another model's variables, None if it cannot be: see FlatCall.rebound."""
        return moved(self, state)

    def _round(self, params, data, personal, order, count, learning_rate, seeds, offset):
        self.state.begin(params, personal, learning_rate, seeds)
        if not self._is_whole:
            return self._corrected(params, data, order, count, learning_rate, offset)

        def with_known_count(params, data, order, learning_rate, offset):
            return self._corrected(params, data, order, tf.constant(self.examples), learning_rate, offset)

        compiled = tf.function(with_known_count, jit_compile=True, autograph=False)
        return compiled(params, data, order, learning_rate, offset)

    def _corrected(self, params, data, order, count, learning_rate, offset):
        if not (self.course.proximal or self.has_offset):
            return self._train(params, data, order, count, learning_rate)
        with self.state.corrected(*self.course.correction(params, offset if self.has_offset else None)):
            return self._train(params, data, order, count, learning_rate)

    def _train(self, params, data, order, count, learning_rate):
        all_epochs = tf.shape(order)[0] if self.epochs is None else self.course.passes(self.epochs)
        usual = all_epochs - self.course.passes(0) if self.epochs is None else self.epochs
        first = 0
        for part, (epochs, trains) in enumerate(self.course.parts):
            if part:
                self.state.reset_optimizer(learning_rate)
            last = first + (usual if epochs is None else epochs)
            with self.state.only(trains):
                self._epochs(part, data, order, count, first, last)
            first = last
        self.metric_names, sums = metric_sums(self.state.model, count * all_epochs)
        return self.state.delta(params), [tf.convert_to_tensor(weight) for weight in self.state.personal], sums

    def _epochs(self, part: int, data, order, count, first, last) -> None:
        """That part of the course: the order's rows from first, up to last."""
        full = count // self.batch_size if self.batch_size else tf.constant(0)
        done = full * (self.batch_size or 0)

        def epoch(number: tf.Tensor) -> tuple[tf.Tensor]:
            rows = order[number]
            with tf.control_dependencies([self._full_batches[part](data, rows, full)] if self.batch_size else []):
                tf.cond(count > done, lambda: self._step(data, rows[done:count]), lambda: tf.constant(0))
            return (number + 1,)

        if isinstance(last, int) and last - first == 1:
            epoch(tf.constant(first))
        else:
            start = tf.convert_to_tensor(first)
            tf.while_loop(lambda number: number < last, epoch, (start,), parallel_iterations=1)

    def _loop_full_batches(self, data, rows: tf.Tensor, full: tf.Tensor) -> tf.Tensor:
        """`full` batches of exactly batch_size examples; returns how many were done."""

        def batch(number: tf.Tensor) -> tuple[tf.Tensor]:
            self._step(data, tf.slice(rows, [number * self.batch_size], [self.batch_size]))
            return (number + 1,)

        return tf.while_loop(lambda number: number < full, batch, (tf.constant(0),), parallel_iterations=1)[0]

    def _step(self, data, rows: tf.Tensor) -> tf.Tensor:
        self.state.train_step(gather(data, rows))
        return tf.constant(0)


class EvaluateProgram:
    """Evaluates examples with Keras's own `test_step`; one call per chunk of rows."""

    def __init__(self, state: ModelState, data: Examples, batch_size: int):
        self.state, self.batch_size = state, batch_size
        self.metric_names: list[str] = []
        self._call = FlatCall.trace(
            self._evaluate,
            [
                tf.TensorSpec([state.spec.size], tf.float32),
                state.personal_specs(),
                data_specs(data),
                tf.TensorSpec([None], tf.int32),
            ],
        )

    def __call__(self, params: tf.Tensor, personal: list, data: Examples, rows: np.ndarray) -> dict[str, Weighted]:
        """Metric sums over the rows of data."""
        return named_sums(self.metric_names, self._call(params, personal, batch_of(data), rows))

    def over(self, state: ModelState) -> EvaluateProgram | None:
        """This program over another model's variables, None if it cannot be: see FlatCall.rebound."""
        return moved(self, state)

    def _evaluate(self, params, personal, data, rows):
        self.state.load(params, personal)
        self.state.reset_metrics()
        count = tf.shape(rows)[0]

        def batch(start: tf.Tensor) -> tuple[tf.Tensor]:
            self.state.model.test_step(gather(data, rows[start : tf.minimum(start + self.batch_size, count)]))
            return (start + self.batch_size,)

        tf.while_loop(lambda start: start < count, batch, (tf.constant(0),), parallel_iterations=1)
        self.metric_names, sums = metric_sums(self.state.model, count)
        return sums


def moved(program: Program, state: ModelState) -> Program | None:
    """A copy of program, without tracing, over the variables of state."""
    call = program._call.rebound(program.state.variables, state.variables)
    if call is None:
        return None
    other = copy.copy(program)
    other.state, other._call = state, call
    return other


def gather(data: tuple, rows: tf.Tensor) -> tuple:
    """The batch at `rows` of (x,), (x, y) or (x, y, sample_weight)."""
    return map_arrays(lambda array: tf.gather(array, rows), data)


def data_specs(data: Examples) -> tuple:
    """Signature of examples with any number of them."""
    return map_arrays(lambda array: tf.TensorSpec([None, *array.shape[1:]], tf.as_dtype(array.dtype)), batch_of(data))


def host(tensor: tf.Tensor) -> np.ndarray:
    """The tensor as an array; without a copy where it lies in the processor's memory."""
    return np.frombuffer(memoryview(tensor), np.float32) if "CPU" in tensor.device else tensor.numpy()


def _reset(variables: Sequence[tuple[keras.Variable, np.ndarray | None]]) -> None:
    """Assign each variable what it began with."""
    for variable, initial in variables:
        # Zeros by an op: as a constant, Adam's moments would sit in the graph.
        variable.assign(tf.zeros(variable.shape, variable.dtype) if initial is None else initial)


def _initial(variable: keras.Variable) -> np.ndarray | None:
    """The variable's value now, or None for zeros."""
    value = keras.ops.convert_to_numpy(variable)
    return value if value.any() else None
