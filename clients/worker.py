"""A worker: one model on one device, built once; it does one client's work at a time, in every runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..core.errors import ClientError
from ..core.examples import Examples, map_arrays
from ..core.experiment import Experiment, is_correction
from ..core.phases import Course, course_of, own_course
from ..core.protocols import Codec, Population
from ..core.random import Key, derive
from ..core.spec import ModelSpec
from ..core.split import is_split
from ..core.types import NOTHING, Broadcast, ClientUpdate, CodedUpdate, Failure, Vector, Weighted
from .building import build_model, describe_model
from .checks import check_rates, check_rule
from .debug import train_eagerly
from .dispatch import Library
from .mirrored import Mirrored, check_replicas
from .per_example import PrivateProgram, check_model, private_task, train_privately_eagerly
from .personal import chosen, train_own
from .program import EvaluateProgram, ModelState, Task, TrainProgram
from .split import Halves

EVALUATION_BATCH = 512
SHORT = 1 << 16  # rows: 256 KiB of numbers, which cost less to copy than another shape to compile


class Worker:
    """Owns a model. Threads must not share one."""

    def __init__(
        self,
        experiment: Experiment,
        device: str = "CPU:0",
        xla: bool = False,
        debug: bool = False,
        library: Library | None = None,
        is_live: bool = False,
        replicas: Sequence[str] = (),
    ):
        """Build experiment's model on device.

        xla: compile full batches with XLA. debug: run eagerly, batch by batch, so that errors name their batch.
        is_live: this is a real device, whose noise must not follow from a key that the server knows.
        library: where workers of the same experiment share what they trace.
        replicas: devices among which each client's batches are divided, `device` the first; fewer than two: not.
        Errors: ConfigError for a model that is not compiled or does not fit the clients' examples.
        """
        self.experiment, self.device, self.xla, self.debug, self.is_live = experiment, device, xla, debug, is_live
        sample, key = sample_of(experiment.population), derive(experiment.seed, "model")
        with tf.device(device):
            self.model = build_model(experiment.model, sample, key)
            self.spec = ModelSpec.of(self.model, experiment.personal)
            cut = experiment.strategy.cut if is_split(experiment.strategy) else None  # type: ignore[attr-defined]
            self.halves = None if cut is None else Halves(self.model, self.spec, cut)
            self.state = self.training = ModelState(self.model, self.spec, self.halves)
            if len(replicas) > 1:
                check_replicas(experiment)
                copies = Mirrored(self.model, experiment.model, sample.take(slice(0, 1)), key, replicas)
                self.training, library = ModelState(self.model, self.spec, copies), None  # such traces are not shared
            if experiment.local.per_example is not None:
                check_model(self.model, sample.take(slice(0, 1)))
        check_rates(experiment, self.state)
        if experiment.client_rule is not None:
            check_rule(experiment.client_rule, self.state)
        self._initial_params: Vector | None = self.spec.flatten(self.model.get_weights())
        self.initial_memory = [keras.ops.convert_to_numpy(weight) for weight in self.state.personal]
        self.default_rate = math.nan if self.state.has_own_schedule else float(self.model.optimizer.learning_rate)
        # With XLA or not, with an offset or not, for how many examples where all clients hold as many; course; batch.
        self._train: dict[tuple[bool, bool, int | None, Course, int | None], TrainProgram] = {}
        self._private: dict[tuple[bool, bool], PrivateProgram] = {}
        self._evaluate: dict[Any, EvaluateProgram] = {}
        self._library = library or Library()
        self._measured: tuple[Population, tuple[int, int]] | None = None
        self._sent: tuple[Vector, tf.Tensor] | None = None

    @property
    def initial_params(self) -> Vector:
        """The model's own initial weights, drawn from the experiment's seed."""
        if self._initial_params is None:
            experiment = self.experiment
            with tf.device(self.device):
                sample, key = sample_of(experiment.population), derive(experiment.seed, "model")
                model = build_model(experiment.model, sample, key)
            self._initial_params = self.spec.flatten(model.get_weights())
        return self._initial_params

    def forget_initial_params(self) -> None:
        """Keep them no longer: as much memory as the model. Whoever asks for them again waits for another model."""
        self._initial_params = None

    def describe(self) -> dict[str, str]:
        """What identifies the model: a digest of its variables, and one of its architecture and settings."""
        return {"model.variables": self.spec.digest[:16], "model.config": describe_model(self.model)}

    def train(
        self, broadcast: Broadcast, client: int, key: Key, data: Examples, rows: np.ndarray, memory: list | None = None
    ) -> tuple[Any, list[np.ndarray]]:
        """A client's round: train, then transforms, then the codec.

        data: arrays or tensors on this device; rows: the client's own rows of them. memory: what the client kept from
        its last round, None at first. Returns what leaves the client: a ClientUpdate, with a codec a CodedUpdate,
        of a model that is cut a SplitUpdate, or the Failure why nothing does; and what the client keeps.
        """
        memory = self.initial_memory if memory is None else memory
        personal, remembered, residual = self._split(memory)
        broadcast, member = chosen(self, broadcast, (data, rows), memory)
        rule, own = self.experiment.client_rule, own_course(self.experiment)
        offset = rule.offset(broadcast, remembered) if is_correction(rule) else None
        epochs = int(self.experiment.local.epochs_of(np.array([client]), broadcast.round, self.experiment.seed)[0])
        course = course_of(self.experiment)
        task = self.task(broadcast, key, rows, course.passes(epochs), personal, offset)
        delta, kept, metrics = self.run(broadcast, client, data, task, key, course)
        # One pass: NaN and infinity reach the sum. Not a dot product, whose BLAS threads would crowd out the workers'.
        if not np.isfinite(delta.sum()):
            return Failure(client, "non_finite", f"its update is not finite{self._told(metrics)}"), memory
        extra = NOTHING
        if is_correction(rule):
            trained, steps = delta, self.experiment.local.steps(len(rows), epochs)
            delta, extra, remembered = rule.finish(broadcast, remembered, delta, steps, task.learning_rate)
            delta = with_statistics(delta, trained, self.spec)
        if own is not None:
            remembered = train_own(self, own, broadcast, client, key, (data, rows), epochs, remembered)
            if not np.isfinite(remembered.sum()):
                return Failure(client, "non_finite", "its own model is not finite; lower the learning rate"), memory
        weight = float(len(rows)) if self.experiment.weighting == "examples" else 1.0
        update = ClientUpdate(delta, extra, weight, {**metrics, **member})
        if self.halves is not None:
            return self.halves.sent(update), kept
        try:
            sent, residual = self._encoded(broadcast, update, residual, key)
        except ClientError as error:  # what the rule made of it is not finite: the round goes on without this client
            return Failure(client, "non_finite", str(error)), memory
        return sent, joined(kept, remembered, residual)

    def task(
        self,
        broadcast: Broadcast,
        key: Key,
        rows: np.ndarray,
        epochs: int,
        personal: list[np.ndarray],
        offset: Vector | None,
    ) -> Task:
        """A client's training as the programs take it; all its random numbers come from key. epochs: of all phases."""
        local = self.experiment.local
        order = epoch_orders(rows, epochs, key.derive("shuffle") if local.shuffle else None)
        seeds = key.derive("layers").words(2 * len(self.state.seeds)).reshape(-1, 2)
        rate = self.default_rate if broadcast.learning_rate is None else broadcast.learning_rate
        return Task(personal, order, len(rows), rate, seeds, NOTHING if offset is None else offset)

    def run(
        self, broadcast: Broadcast, client: int, data: Examples, task: Task, key: Key, course: Course
    ) -> tuple[Vector, list[np.ndarray], dict[str, Weighted]]:
        """Train from broadcast.params: delta, the personal variables after, metric sums."""
        try:
            with tf.device(self.device):
                if self.experiment.local.per_example is not None:
                    return *self._run_privately(broadcast, client, data, task, key), {}
                if self.debug:
                    batch_size = self.experiment.local.batch_size
                    return train_eagerly(self.training, broadcast, client, data, task, batch_size, course)
                program = self._train_program(data, len(task.offset) > 0, task.examples, course)
                padded, order = self._padded(data, task.order)
                return program(self._on_device(broadcast.params), padded, task._replace(order=order))
        except tf.errors.OpError as error:
            raise ClientError(first_line(error), round=broadcast.round, client=client) from error

    def _encoded(
        self, broadcast: Broadcast, update: ClientUpdate, residual: Vector | None, key: Key
    ) -> tuple[ClientUpdate | CodedUpdate, Vector | None]:
        """What leaves the client of an update, and what the codec's next one has to make up for."""
        own_key = Key.fresh() if self.is_live else key.derive("transforms")
        update = self.experiment.transforms.encode(broadcast.transforms, update, own_key)
        if self.experiment.codec is None:
            return update, None
        return coded(self.experiment.codec, update, residual, key.derive("codec"))

    def _run_privately(
        self, broadcast: Broadcast, client: int, data: Examples, task: Task, key: Key
    ) -> tuple[Vector, list[np.ndarray]]:
        """As run, by DP-SGD; without metrics, which would be releases that nothing covers."""
        local, has_offset = self.experiment.local, len(task.offset) > 0
        privacy = local.per_example
        assert privacy is not None
        # Neither batches nor noise of a real device may follow from a key that the server knows.
        own_key = Key.fresh() if self.is_live else key.derive("per example")
        private, params = private_task(task, privacy, local, own_key), self._on_device(broadcast.params)
        if self.debug:
            where = {"round": broadcast.round, "client": client}
            return train_privately_eagerly(self.state, params, data, private, privacy.clip_norm, self._proximal, where)
        kind = self.xla, has_offset
        if kind not in self._private:
            self._private[kind] = self._library.take(
                ("private", self.device, *kind),
                self.state,
                lambda: PrivateProgram(self.state, data, privacy, *kind, self._proximal),
            )
        padded, _ = self._padded(data, task.order)
        return self._private[kind](params, padded, private, local.batch_size)

    def evaluate(
        self, params: Vector, data: Examples, rows: np.ndarray, memory: list | None = None
    ) -> dict[str, Weighted]:
        """Metric sums over rows of data, with the given vector and what the client keeps at home."""
        with tf.device(self.device):
            signature = str(map_arrays(lambda array: (array.dtype, array.shape[1:]), tuple(data)))
            if signature not in self._evaluate:
                self._evaluate[signature] = self._library.take(
                    ("evaluate", self.device, signature),
                    self.state,
                    lambda: EvaluateProgram(self.state, data, EVALUATION_BATCH),
                )
            personal = self.at_home(memory)
            return self._evaluate[signature](self._on_device(params), personal, data, rows.astype(np.int32))

    def put(self, examples: Examples) -> Examples:
        """examples as tensors on this worker's device."""
        with tf.device(self.device):
            return Examples(*(map_arrays(tf.convert_to_tensor, part) for part in examples))

    def use_xla(self, xla: bool) -> None:
        """Compile full batches with XLA, or not, from the next call on."""
        self.xla = xla

    def at_home(self, memory: list[np.ndarray] | None) -> list[np.ndarray]:
        """Of what a client keeps, None at first: its personal variables."""
        return self._split(self.initial_memory if memory is None else memory)[0]

    def remembered(self, memory: list[np.ndarray] | None) -> Vector | None:
        """Of what a client keeps, None at first: the vector of its rule."""
        return None if memory is None else self._split(memory)[1]

    @property
    def _proximal(self) -> float:
        rule = self.experiment.client_rule
        return 0.0 if rule is None else rule.proximal

    def _told(self, metrics: dict[str, Weighted]) -> str:
        """A failing client's loss, for its message: not where nobody is to learn what a single client reports."""
        if self.experiment.plan is not None or self.experiment.aggregation is not None:
            return ""
        return f" (training loss {metrics.get('loss', Weighted(math.nan, 1.0)).mean():.4g})"

    def _split(self, memory: list[np.ndarray]) -> tuple[list[np.ndarray], Vector | None, Vector | None]:
        """What a client keeps: its personal variables, then the vector its rule remembers, then what the codec left
        out; either None at first."""
        count = len(self.initial_memory)
        remembered = memory[count] if len(memory) > count and len(memory[count]) else None
        return memory[:count], remembered, memory[count + 1] if len(memory) > count + 1 else None

    def _train_program(self, data: Examples, has_offset: bool, examples: int, course: Course) -> TrainProgram:
        local = self.experiment.local
        epochs = local.epochs if isinstance(local.epochs, int) else None
        known = examples if self.xla and epochs and self._extremes == (examples, examples) else None  # all hold as many
        batch = local.batch_size
        if self.xla and batch is not None:
            batch = min(batch, self._extremes[1] + 1)  # XLA makes room for full batches even where none ever comes
        kind = self.xla, has_offset, known, course, batch
        if kind not in self._train:
            self._train[kind] = self._library.take(
                ("train", self.device, *kind),
                self.state,
                lambda: TrainProgram(self.training, data, epochs, batch, self.xla, course, has_offset, known),
            )
        return self._train[kind]

    @property
    def _extremes(self) -> tuple[int, int]:
        """The numbers of examples of the smallest and of the largest client."""
        population = self.experiment.population
        if self._measured is None or self._measured[0] is not population:  # a worker may be given another experiment
            sizes = population.sizes()
            self._measured = population, (int(sizes.min()), int(sizes.max()))
        return self._measured[1]

    def _padded(self, data: Examples, order: np.ndarray) -> tuple[Examples, np.ndarray]:
        """Order, and streamed data, padded for XLA, which compiles per shape: rows to the largest client's, data to a
        bucket."""
        if not self.xla:
            return data, order
        count, longest = order.shape[1], self._extremes[1]
        if self.experiment.population.resident() is None:
            padded = map_arrays(lambda array: pad(array, bucket(count), axis=0), tuple(data))
            return Examples(*padded), pad(order, bucket(count), axis=1)
        return data, pad(order, longest if longest <= SHORT else bucket(count), axis=1)

    def _on_device(self, params: Vector) -> tf.Tensor:
        """params as a tensor; copied once per broadcast, not once per client."""
        if self._sent is None or self._sent[0] is not params:
            self._sent = params, tf.constant(params, tf.float32)
        return self._sent[1]


def sample_of(population: Population) -> Examples:
    """One example at least, like those of every client; where they are on devices alone, the population knows."""
    resident = population.resident()
    return resident if resident is not None else getattr(population, "sample", lambda: population.examples(0))()


def with_statistics(delta: Vector, trained: Vector, spec: ModelSpec) -> Vector:
    """What a rule made of a delta, with the statistics in it as they were trained: they are no sums of gradients."""
    if delta is trained or not spec.statistics:
        return delta
    delta = delta.copy()
    for place in spec.statistics:
        delta[place] = trained[place]
    return delta


def joined(personal: list[np.ndarray], remembered: Vector | None, residual: Vector | None) -> list[np.ndarray]:
    """What a client keeps, as `Worker._split` takes it apart."""
    if residual is not None:
        return [*personal, NOTHING if remembered is None else remembered, residual]
    return personal if remembered is None else [*personal, remembered]


def coded(codec: Codec, update: ClientUpdate, residual: Vector | None, key: Key) -> tuple[CodedUpdate, Vector | None]:
    """update as codec sends it, and what the client's next one has to make up for: None without error feedback.

    residual: from the update before. Guarantees, with error feedback: what is decoded, plus the new residual, is
    delta + residual, in each number to rounding. Errors: ClientError where a number is not finite.
    """
    delta, feedback = update.delta, codec.error_feedback
    if feedback and residual is not None:
        if len(residual) != len(delta):
            raise ClientError(f"expected a residual of {len(delta)} numbers, the client kept {len(residual)}")
        delta = delta + residual
    payload = codec.encode(delta, key)
    left = delta - codec.decode(payload, len(delta)) if feedback else None
    if left is not None and not np.isfinite(left.sum()):
        raise ClientError("what the codec left out is not finite; lower the client's learning rate")
    return CodedUpdate(payload, update.extra, update.weight, update.metrics), left


def epoch_orders(rows: np.ndarray, epochs: int, key: Key | None) -> np.ndarray:
    """The order in which rows are visited: int32, shape (epochs, len(rows)); shuffled afresh per epoch given a key."""
    rows = np.asarray(rows, np.int32)
    if key is None:
        return np.tile(rows, (epochs, 1))
    generator = key.generator()
    return np.stack([generator.permutation(rows) for _ in range(epochs)])


def bucket(count: int) -> int:
    """The smallest of 16, 24, 32, 48, 64, 96, … that is at least count: few shapes, at most a third of it padding."""
    size = 16
    while size < count:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def pad(array: Any, length: int, axis: int) -> np.ndarray:
    """array with zeros appended along axis up to length."""
    shape = list(array.shape)
    shape[axis] = length
    padded = np.zeros(shape, array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


def first_line(error: Exception) -> str:
    """What an exception says, in one line; TensorFlow's begin with where in the graph, and what comes last says why."""
    noise = ("Graph execution error", "Detected at node", "File ", "[[", "[Op:", '("', "<stack traces")
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(noise)]
    return telling[0] if telling else type(error).__name__
