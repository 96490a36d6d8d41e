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
from ..core.spec import ModelSpec
from ..core.types import Vector, Weighted
from .building import batch_of
from .dispatch import FlatCall


class ModelState:
    """A model's variables, sorted by what happens to them in a client's round."""

    def __init__(self, model: keras.Model, spec: ModelSpec):
        self.model, self.spec = model, spec
        pairs = list(zip(model.weights, spec.variables, strict=True))
        self.shared = [weight for weight, variable in pairs if variable.offset is not None]
        self.personal = [weight for weight, variable in pairs if variable.offset is None]
        self.seeds = [variable for variable in model.variables if variable.name == "seed_generator_state"]
        metrics = [variable for metric in model.metrics for variable in metric.variables]
        self._optimizer = [(variable, _initial(variable)) for variable in model.optimizer.variables]
        self._metrics = [(variable, _initial(variable)) for variable in metrics]
        everything = {id(one): one.value for one in [*model.variables, *model.optimizer.variables, *metrics]}
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
        _reset(self._optimizer)
        if not self.has_own_schedule:
            self.model.optimizer.learning_rate.assign(learning_rate)
        for position, variable in enumerate(self.seeds):
            variable.assign(tf.cast(seeds[position], variable.dtype))

    def reset_metrics(self) -> None:
        """As if nothing had been measured."""
        _reset(self._metrics)

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
        optimizer = self.model.optimizer
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


Program = TypeVar("Program", "TrainProgram", "EvaluateProgram")


class TrainProgram:
    """Trains one client per call. Not thread-safe: a program owns its model."""

    def __init__(
        self,
        state: ModelState,
        data: Examples,
        epochs: int,
        batch_size: int | None,
        xla: bool,
        proximal: float = 0.0,
        has_offset: bool = False,
        examples: int | None = None,
    ):
        """proximal, has_offset: how gradients are corrected; see ModelState.corrected.

        examples: of every client that the program is for. With XLA the whole round is then one compiled program, since
        even the last batch's shape is known; otherwise only the full batches are.
        """
        self.state, self.epochs, self.batch_size, self.examples = state, epochs, batch_size, examples
        self.proximal, self.has_offset = proximal, has_offset
        self.metric_names: list[str] = []
        self._full_batches = (
            tf.function(self._loop_full_batches, jit_compile=True, autograph=False) if xla else self._loop_full_batches
        )
        self._call = FlatCall.trace(
            self._whole_round if xla and examples is not None else self._round,
            [
                tf.TensorSpec([state.spec.size], tf.float32),
                data_specs(data),
                state.personal_specs(),
                tf.TensorSpec([epochs, None], tf.int32),
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

    def _whole_round(self, params, data, personal, order, count, learning_rate, seeds, offset):
        def with_known_count(*tensors):
            return self._round(*tensors[:4], tf.constant(self.examples), *tensors[4:])

        compiled = tf.function(with_known_count, jit_compile=True, autograph=False)
        return compiled(params, data, personal, order, learning_rate, seeds, offset)

    def _round(self, params, data, personal, order, count, learning_rate, seeds, offset):
        self.state.begin(params, personal, learning_rate, seeds)
        if not (self.proximal or self.has_offset):
            return self._train(params, data, order, count)
        with self.state.corrected(self.proximal, params, offset if self.has_offset else None):
            return self._train(params, data, order, count)

    def _train(self, params, data, order, count):
        full = count // self.batch_size if self.batch_size else tf.constant(0)
        done = full * (self.batch_size or 0)

        def epoch(number: tf.Tensor) -> tuple[tf.Tensor]:
            rows = order[number]
            with tf.control_dependencies([self._full_batches(data, rows, full)] if self.batch_size else []):
                tf.cond(count > done, lambda: self._step(data, rows[done:count]), lambda: tf.constant(0))
            return (number + 1,)

        if self.epochs == 1:
            epoch(tf.constant(0))
        else:
            tf.while_loop(lambda number: number < self.epochs, epoch, (tf.constant(0),), parallel_iterations=1)
        self.metric_names, sums = metric_sums(self.state.model, count * self.epochs)
        return self.state.delta(params), [tf.convert_to_tensor(weight) for weight in self.state.personal], sums

    def _loop_full_batches(self, data, rows: tf.Tensor, full: tf.Tensor) -> tf.Tensor:
        """`full` batches of exactly batch_size examples; returns how many were done."""

        def batch(number: tf.Tensor) -> tuple[tf.Tensor]:
            self._step(data, tf.slice(rows, [number * self.batch_size], [self.batch_size]))
            return (number + 1,)

        return tf.while_loop(lambda number: number < full, batch, (tf.constant(0),), parallel_iterations=1)[0]

    def _step(self, data, rows: tf.Tensor) -> tf.Tensor:
        self.state.model.train_step(gather(data, rows))
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


def metric_sums(model: keras.Model, examples: tf.Tensor) -> tuple[list[str], tf.Tensor]:
    """Names and (sum, count) pairs, shape (names, 2), of all that the model measured since its metrics were reset.

    A mean (loss, accuracy) gives its own sum and count. Another metric (AUC) has no sum over clients: its value is
    weighted by the number of examples.
    """
    means = {metric.name: metric for metric in walk_metrics(model.metrics) if isinstance(metric, keras.metrics.Mean)}
    names, sums = [], []
    for name, value in sorted(flat_results(model.get_metrics_result())):
        count = tf.cast(examples, tf.float32)
        if name in means and name != "loss":
            count = tf.cast(tf.convert_to_tensor(means[name].count), tf.float32)
        names.append(name)
        sums.append(tf.stack([tf.cast(value, tf.float32) * count, count]))
    return names, tf.stack(sums) if sums else tf.zeros([0, 2])


def flat_results(results: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Metric results without nesting: {"a": {"b": 1}} is ("a_b", 1)."""
    for name, value in results.items():
        if isinstance(value, dict):
            yield from flat_results(value, f"{prefix}{name}_")
        else:
            yield prefix + name, value


def walk_metrics(metrics: Sequence[Any]) -> Iterator[Any]:
    """Every metric, containers opened."""
    for metric in metrics:
        inner = getattr(metric, "metrics", None)
        if inner:
            yield from walk_metrics(inner)
        else:
            yield metric


def named_sums(names: Sequence[str], sums: tf.Tensor) -> dict[str, Weighted]:
    """Metric sums by name."""
    return {
        name: Weighted(float(total), float(count)) for name, (total, count) in zip(names, sums.numpy(), strict=True)
    }


def _reset(variables: Sequence[tuple[keras.Variable, np.ndarray | None]]) -> None:
    """Assign each variable what it began with."""
    for variable, initial in variables:
        # Zeros by an op: as a constant, Adam's moments would sit in the graph.
        variable.assign(tf.zeros(variable.shape, variable.dtype) if initial is None else initial)


def _initial(variable: keras.Variable) -> np.ndarray | None:
    """The variable's value now, or None for zeros."""
    value = keras.ops.convert_to_numpy(variable)
    return value if value.any() else None
