"""The TensorFlow engine: compiled programs over a model that a team shares, with variables of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ...core.errors import ClientError, ConfigError
from ...core.examples import Examples, leaves, map_arrays
from ...core.experiment import Experiment
from ...core.reading.directions import Measures
from ...core.recipe import Recipe
from ...core.types import (
    ClientMetrics,
    Join,
    Metrics,
    Value,
    Vector,
)
from ..draws import private_task
from ..engine import EvaluateTask, Measured, StepName, Summing, Trained, TrainTask
from ..keras.agreed import Agreement
from ..keras.building import as_keras, check_labels
from ..keras.directions import measures_of
from ..keras.per_client import gathered
from .calls import Twins
from .debug import evaluate_eagerly, first_line, train_eagerly
from .per_example import train_privately_eagerly
from .prototype import Prototype
from .split import Crossing, RemoteHalf

SHORT = 1 << 16  # number of rows, 256 KiB of numbers, that cost less to copy than another shape to compile


class TensorFlowEngine:
    """Owner of variables of a model that its team shares. Threads must not share an engine."""

    width = 1
    summing: Summing | None = None

    def __init__(
        self,
        experiment: Experiment | Recipe,
        device: str = "CPU:0",
        xla: bool = False,
        debug: bool = False,
        prototype: Prototype | None = None,
        is_live: bool = False,
        replicas: Sequence[str] = (),
        agreement: Agreement | None = None,
        remote: RemoteHalf | None = None,
    ):
        """Make an engine on device, for experiment's clients.

        xla: compile full batches with XLA. debug: run eagerly, batch by batch, so that errors name their batch.
        prototype: the model, where engines on the same device share one; None: it is built.
        is_live: this is a real device, whose noise must not follow from a key that the server knows.
        replicas: devices among which each client's batches are divided, `device` the first; fewer than two: not.
        agreement: how metrics travel, as another engine of this experiment found; None: find it.
        remote: of a model that is cut, the server's half, where that is another machine; this is the client's then, and
        its vector that of its half alone.
        Errors: ConfigError for a model that is not compiled or does not fit the clients' examples.
        """
        self.experiment = recipe = experiment.resolved
        self.device = device
        self.xla = xla
        self.is_live = is_live
        self.prototype = shared = prototype or Prototype(
            recipe, device, debug, replicas, is_live, agreement, remote=remote
        )
        self._remote = remote
        self._aside: Prototype | None = None  # another build, for examples that a compiled step refuses
        self.twins = Twins(shared.is_exclusive)
        self.model, self.meter, self.state, self.halves = shared.model, shared.meter, shared.state, shared.halves
        self.spec, self.base = shared.spec, shared.base
        self.on_client = None if shared.halves is None else shared.halves.on_client
        self.initial_memory, self.default_rate = shared.initial_memory, shared.default_rate
        self.fixed_batch, self.evaluation_batch = shared.fixed_batch, shared.evaluation_batch
        self.is_debugged = shared.is_eager and not is_live
        self._sent: tuple[Vector, tf.Tensor] | None = None

    @property
    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        return self.prototype.initial_params

    def forget_initial_params(self) -> None:
        """Hold the initial weights no longer than they are asked for: as much memory as the model."""
        self.prototype.forget_initial_params()

    def describe(self) -> dict[str, str]:
        """Return what identifies the model: a digest of its variables, and one of its architecture and settings."""
        return self.prototype.description

    def is_current(self, experiment: Recipe) -> bool:
        """Return whether experiment's builder still makes the model that this engine was built with."""
        return self.prototype.is_current(experiment)

    def measures(self) -> Measures:
        """Return the metrics that the model measures, and which way they are to go."""
        with tf.device(self.device):
            return measures_of(self.model)

    def train(self, tasks: Sequence[TrainTask]) -> list[Trained]:
        """Train clients, one after another. Errors: ClientError for what TensorFlow cannot compute of the examples."""
        return [self._train(task) for task in tasks]

    def evaluate(self, tasks: Sequence[EvaluateTask]) -> list[Measured]:
        """Return the metrics' states over the rows of each task."""
        return [self._evaluate(task) for task in tasks]

    def _train(self, task: TrainTask) -> Trained:
        task = task._replace(data=as_keras(task.data))
        prototype, has_offset = self.prototype, len(task.offset) > 0
        self._look_at(task.data, round=task.round, client=task.client)
        try:
            with tf.device(self.device):
                if task.draws is not None:
                    return self._train_privately(task)
                if prototype.is_eager:
                    trained = train_eagerly(prototype.training, task, self.experiment.local.batch_size)
                    prototype.check_still_frozen()
                else:
                    recipe, examples = self.experiment, task.examples
                    program = prototype.train_program(recipe, task.data, has_offset, examples, task.course, self.xla)
                    trained = program(self.twins, self._on_device(task.params), self._padded(task))
                if self._remote is not None:  # the server measures
                    return trained._replace(metrics={})
                return trained._replace(metrics=self.meter.with_loss("train", trained.metrics, task.examples))
        except tf.errors.OpError as error:
            if self._remote is not None and self._remote.failure is not None:
                raise self._remote.failure from error
            raise ClientError(first_line(error), round=task.round, client=task.client) from error

    def _train_privately(self, task: TrainTask) -> Trained:
        """Same as train, by DP-SGD; without metrics, which would be releases that nothing covers."""
        local, prototype = self.experiment.local, self.prototype
        privacy = local.per_example
        assert privacy is not None
        private, params = private_task(task, privacy, local), self._on_device(task.params)
        if prototype.is_eager:
            where = {"round": task.round, "client": task.client} if self.is_debugged else None
            return train_privately_eagerly(
                self.state, params, task.data, private, privacy.clip_norm, self._proximal, where
            )
        program = prototype.private_program(self.experiment, task.data, len(task.offset) > 0, self.xla)
        data = self._padded(task).data
        try:
            return program(self.twins, params, data, private, local.batch_size)
        except tf.errors.OpError:
            # An example that the model cannot take adds nothing, as one without a finite gradient; the others count.
            again = private_task(task, privacy, local)
            state = self._apart().state
            return train_privately_eagerly(state, params, task.data, again, privacy.clip_norm, self._proximal)

    def _apart(self) -> Prototype:
        """Return a build of the model for this engine alone: the team's is never written."""
        if self._aside is None:
            agreement, base = self.meter.agreement, self.prototype.base
            self._aside = Prototype(
                self.experiment, self.device, True, is_live=self.is_live, agreement=agreement, base=base
            )
        return self._aside

    def _evaluate(self, task: EvaluateTask) -> Measured:
        prototype, batch = self.prototype, self.prototype.evaluation_batch
        data, personal, rows = as_keras(task.data), list(task.personal), task.rows
        self._look_at(data)
        with tf.device(self.device):
            params = self._on_device(task.params)
            if prototype.is_eager:
                metrics = evaluate_eagerly(self.state, params, personal, data, rows, batch, task.key)
            else:
                program = prototype.evaluate_program(data)
                metrics = program(self.twins, params, personal, data, rows.astype(np.int32), task.key)
            return self.meter.with_loss("test", metrics, len(rows))

    def _look_at(self, data: Examples, **where: int) -> None:
        """Raise ClientError for labels that are no class, and numbers without a row: XLA would go on without a word.

        Not where single examples are hidden: one that does not fit leaves the others as they are.
        """
        if self.experiment.local.per_example is None and (fault := self.prototype.fault_of_client(data)) is not None:
            raise ClientError(fault, **where)

    def check(self, examples: Examples, kind: str) -> None:
        """Raise ConfigError for examples that cannot be evaluated, before a round is spent. kind: what they are for."""
        if not examples.count:
            return
        try:
            check_labels(self.model, examples)
        except ConfigError as error:
            raise ConfigError(f"{kind}: {error}") from error
        self.prototype.check_held_out(as_keras(examples), kind)
        self.prototype.check_lookups(as_keras(examples), kind)

    def gathered(self, clients: Iterable[tuple[int, Metrics]]) -> ClientMetrics:
        """Return the sum of what clients' evaluations measured, and each one's own values."""
        with tf.device(self.device):
            return gathered(clients, self.prototype.table)

    def results(self, step: StepName, metrics: Metrics) -> dict[str, Value]:
        """Return the values of joined states of "train" or "test", by the names that Keras logs them under."""
        with tf.device(self.device):
            return self.meter.results(step, metrics)

    def terms(self) -> str:
        """Return the terms on which the model's metrics travel, as text."""
        return self.meter.terms.to_json()

    def joins(self, step: StepName) -> Mapping[str, tuple[tuple[Join, int], ...]]:
        """Return how the numbers of each metric's state join, by what it travels under; () for a mean."""
        return self.meter.joins(step)

    def put(self, examples: Examples) -> Examples:
        """Return examples as tensors on this worker's device."""
        with tf.device(self.device):
            return Examples(*(map_arrays(tf.convert_to_tensor, part) for part in as_keras(examples)))

    def cross_by(self, crossing: Crossing) -> None:
        """Let the steps of a cut model's first half cross so, from the next training on."""
        assert self._remote is not None
        self._remote.crossing, self._remote.failure = crossing, None

    def use_xla(self, xla: bool) -> None:
        """Compile full batches with XLA, or not, from the next call on."""
        self.xla = xla

    @property
    def _proximal(self) -> float:
        rule = self.experiment.rule
        return 0.0 if rule is None else rule.proximal

    def _padded(self, task: TrainTask) -> TrainTask:
        """Pad the order, and streamed data, for XLA, which compiles per shape.

        Rows are padded to the largest client's, data to a bucket.
        """
        if not self.xla:
            return task
        data, order, count = task.data, task.order, task.order.shape[1]
        _, longest = self.prototype.extremes(self.experiment.population)
        # A slice of a full batch is compiled even where none is taken: there has to be room for it.
        room = max(bucket(count), min(self.experiment.local.batch_size or 1, longest))
        if isinstance(next(leaves(data.x)), np.ndarray):  # this client's alone
            padded = map_arrays(lambda array: pad(array, bucket(len(array)), axis=0), tuple(data))
            return task._replace(data=Examples(*padded), order=pad(order, room, axis=1))
        return task._replace(order=pad(order, longest if longest <= SHORT else room, axis=1))

    def _on_device(self, params: Vector) -> tf.Tensor:
        """Return params as a tensor; copied once per broadcast, not once per client."""
        if self._sent is None or self._sent[0] is not params:
            self._sent = params, tf.constant(params, tf.float32)
        return self._sent[1]


def bucket(count: int) -> int:
    """Return the smallest of 16, 24, 32, 48, 64, 96, … that is at least count: few shapes, at most a third padding."""
    size = 16
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad(array: Any, length: int, axis: int) -> np.ndarray:
    """Append zeros to array along axis, up to length."""
    shape = list(array.shape)
    shape[axis] = length
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded
