"""DP-SGD inside a client: each example's gradient clipped, noise on their sum, batches drawn by Poisson sampling.

    sum of clipped gradients ─► + noise ─► / expected batch ─► gradient correction ─► optimizer

Each step takes every example of the client on its own with probability q = batch_size/n. A batch has the size that it
has: none is cut to a cap, so that the sampling is exactly what accounting prices. Rows and noise are drawn on the host,
some steps at a time, and handed to one compiled loop. Where XLA asks for fixed shapes, batches are padded, and what is
padded is taken out of the sum; the divisor is public and the same for all batches, so that an empty one is no
exception.

Source: Abadi et al. 2016: Deep Learning with Differential Privacy. https://arxiv.org/abs/1607.00133
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from ..core.errors import ClientError, IncompatibleError
from ..core.examples import Examples
from ..core.experiment import Local
from ..core.protocols import PerExamplePrivacy
from ..core.random import Key
from .building import batch_of
from .clipped import Rule, ghost_sum, is_seed, looped_sum, penalised, penalty_gradients
from .dispatch import FlatCall
from .ghost import can_ghost
from .program import ModelState, Task, data_specs, gather, host, moved

NOISE_BYTES = 8 << 20  # for one call: with fewer, calls would take as long as a small model's steps
SIGMAS = 4.0  # of a batch's size, that the first shape compiled by XLA has room for


class Draws(NamedTuple):
    """The batches of a client's round."""

    rows: np.ndarray  # int32, shape (steps, largest batch): of the data; padded with rows of the client's own
    sizes: np.ndarray  # int32, shape (steps,): how many rows of each step count


class PrivateTask(NamedTuple):
    """One client's round, besides the broadcast and the data."""

    personal: list[np.ndarray]  # values of the variables that stay at home
    draws: Draws
    expected_batch: float
    learning_rate: float
    seeds: np.ndarray  # of the model's own generators, shape (generators, 2)
    offset: np.ndarray  # added to every gradient: shape (d,), or empty for nothing
    noise: Callable[[np.ndarray], None]


def draw_batches(rows: np.ndarray, local: Local, key: Key) -> Draws:
    """Every step's Poisson batch of rows."""
    count, steps = len(rows), local.steps(len(rows))
    generator, rate = key.generator(), sampling_rate(local, count)
    sizes = generator.binomial(count, rate, steps) if count else np.zeros(steps, np.int64)
    drawn = np.full((steps, max(int(sizes.max(initial=0)), 1)), rows[0] if count else 0, np.int32)
    for step, size in enumerate(sizes):
        drawn[step, :size] = rows[generator.choice(count, size, replace=False, shuffle=False)]
    return Draws(drawn, sizes.astype(np.int32))


def width_for(largest: int, batch_size: int | None) -> int:
    """The first of a few widths, multiples of 8, that has room for the largest batch."""
    usual = batch_size or 16
    width = multiple_of_8(usual + SIGMAS * math.sqrt(usual))
    while width < largest:
        width = multiple_of_8(1.25 * width)
    return width


def multiple_of_8(number: float) -> int:
    """The smallest that is at least number."""
    return 8 * math.ceil(number / 8)


def sampling_rate(local: Local, examples: int) -> float:
    """Each example's probability of being in a step's batch."""
    return 1.0 if not local.batch_size or local.batch_size >= examples else local.batch_size / examples


def expected_batch(local: Local, examples: int) -> float:
    """The public divisor of every step's sum."""
    return max(sampling_rate(local, examples) * examples, 1.0)


def private_task(task: Task, privacy: PerExamplePrivacy, local: Local, key: Key) -> PrivateTask:
    """A client's round with its batches and noise. key: for these alone."""
    draws = draw_batches(task.order[0], local, key.derive("batches"))
    expected = expected_batch(local, task.examples)
    noise = privacy.noise(key.derive("noise"), expected)
    return PrivateTask(list(task.personal), draws, expected, task.learning_rate, task.seeds, task.offset, noise)


def check_model(model: keras.Model, one: Examples) -> None:
    """Errors: IncompatibleError for a model whose examples have no gradients of their own, or none that we can see."""
    name = type(model).__name__
    if type(model).train_step is not keras.Model.train_step:
        raise IncompatibleError(
            f"{name} has a train_step of its own, in which per_example cannot clip each example's gradient; "
            "override compute_loss in its place"
        )
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        raise IncompatibleError("per_example needs gradients as they are; use mixed_bfloat16 in place of mixed_float16")
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            raise IncompatibleError(
                f"layer {layer.name!r} ({type(layer).__name__}) mixes the examples of a batch, so that none has a "
                "gradient of its own, as per_example needs; use GroupNormalization or LayerNormalization, or freeze it "
                "with trainable=False"
            )
    check_statistics(model, one)


def check_statistics(model: keras.Model, one: Examples) -> None:
    """Errors: IncompatibleError for a layer that keeps statistics of what it sees, which no noise would cover."""
    kept = [variable for variable in model.non_trainable_variables if not is_seed(variable)]
    with keras.StatelessScope() as scope:
        model(one.x, training=True)
    for variable in kept:
        if scope.get_current_value(variable) is not None:
            raise IncompatibleError(
                f"training changes {variable.path}, a statistic of the examples that per_example's noise does not "
                "cover; leave its layer out, or freeze it with trainable=False"
            )


class PrivateProgram:
    """Trains one client per call. Not thread-safe: a program owns its model."""

    def __init__(
        self,
        state: ModelState,
        data: Examples,
        privacy: PerExamplePrivacy,
        xla: bool,
        has_offset: bool,
        proximal: float,
    ):
        """proximal, has_offset: how gradients are corrected after the noise; see ModelState.corrected."""
        self.state, self.clip_norm, self.xla = state, privacy.clip_norm, xla
        self.proximal, self.has_offset = proximal, has_offset
        self.sizes = [math.prod(variable.shape) for variable in state.model.trainable_variables]
        self.size = sum(self.sizes)  # of a step's noise
        self.clipped_sum = ghost_sum if can_ghost(state.model) else looped_sum
        self._loop = tf.function(self._steps, jit_compile=True, autograph=False) if xla else self._steps
        self._call = FlatCall.trace(
            self._part,
            [
                tf.TensorSpec([], tf.bool),
                tf.TensorSpec([state.spec.size], tf.float32),
                data_specs(data),
                state.personal_specs(),
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([None], tf.int32),
                tf.TensorSpec([None, self.size], tf.float32),
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([], tf.float32),
                tf.TensorSpec([len(state.seeds), 2], tf.int64),
                tf.TensorSpec([state.spec.size if has_offset else 0], tf.float32),
            ],
        )

    def __call__(
        self, params: tf.Tensor, data: Examples, task: PrivateTask, batch_size: int | None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """One client's round: delta (shape (d,)), and the personal values after."""
        part = self._steps_in_a_call(len(task.draws.sizes))
        rows, sizes = self._shaped(task.draws, part, batch_size)
        settings = task.expected_batch, task.learning_rate, task.seeds, task.offset
        for start, count, noise in self._noise_ahead(task, part):
            here = slice(start, start + part)
            delta, after = self._call(
                start == 0, params, batch_of(data), task.personal, rows[here], sizes[here], noise, count, *settings
            )
        return host(delta), [value.numpy() for value in after]

    def _noise_ahead(self, task: PrivateTask, part: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """The first step, the number of steps and the noise of each call, drawn while the call before computes."""
        steps = len(task.draws.sizes)
        parts = [(start, min(part, steps - start)) for start in range(0, max(steps, 1), part)]

        def draw(count: int) -> np.ndarray:
            noise = np.empty((part if self.xla else count, self.size), np.float32)
            for step in noise[:count]:  # one draw for each, so that what is drawn does not depend on `part`
                task.noise(step)
            noise[count:] = 0
            return noise

        if len(parts) == 1:
            yield *parts[0], draw(parts[0][1])
            return
        with ThreadPoolExecutor(1) as aside:
            drawing = aside.submit(draw, parts[0][1])
            for number, (start, count) in enumerate(parts):
                noise = drawing.result()
                if number + 1 < len(parts):
                    drawing = aside.submit(draw, parts[number + 1][1])
                yield start, count, noise

    def over(self, state: ModelState) -> PrivateProgram | None:
        """This program over another model's variables, None if it cannot be: see FlatCall.rebound."""
        return moved(self, state)  # type: ignore[type-var]

    def _steps_in_a_call(self, steps: int) -> int:
        """So many that their noise takes NOISE_BYTES, or all."""
        # XLA compiles for every number: a power of two, filled up with steps that are not done.
        all_of_them = 1 << (steps - 1).bit_length() if self.xla and steps else max(steps, 1)
        return min(max(1, NOISE_BYTES // (4 * self.size)), all_of_them)

    def _shaped(self, draws: Draws, part: int, batch_size: int | None) -> Draws:
        """The draws; for XLA padded to whole calls, and to one of few widths."""
        if not self.xla:
            return draws
        steps, largest = draws.rows.shape
        short = -steps % part
        rows = np.pad(draws.rows, ((0, short), (0, width_for(largest, batch_size) - largest)), "edge")
        return Draws(rows, np.pad(draws.sizes, (0, short)))

    def _part(
        self, is_first, params, data, personal, rows, sizes, noise, count, expected, learning_rate, seeds, offset
    ):
        def begin() -> tf.Tensor:
            self.state.begin(params, personal, learning_rate, seeds)
            return tf.constant(0)

        with tf.control_dependencies([tf.cond(is_first, begin, lambda: tf.constant(0))]):
            shift = offset if self.has_offset else None
            with self.state.corrected(self.proximal, params, shift):
                done = self._loop(data, rows, sizes, noise, count, expected)
        with tf.control_dependencies([done]):
            return self.state.delta(params), [tf.convert_to_tensor(weight) for weight in self.state.personal]

    def _noise_of(self, noise: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
        """A step's noise for each trainable variable."""
        starts = [0, *itertools.accumulate(self.sizes)]
        return [tf.slice(noise, [step, start], [1, size]) for start, size in zip(starts, self.sizes, strict=False)]

    def _steps(self, data, rows, sizes, noise, count, expected) -> tf.Tensor:
        """`count` steps; returns how many were done."""

        def step(number: tf.Tensor) -> tuple[tf.Tensor]:
            # An empty batch has one row, which does not count: not every kernel takes arrays of no examples.
            width = tf.shape(rows)[1] if self.xla else tf.maximum(sizes[number], 1)
            picked = rows[number] if self.xla else rows[number, :width]
            rule = Rule(tf.range(width) < sizes[number], self.clip_norm, expected)
            private_step(self.state.model, gather(data, picked), rule, self._noise_of(noise, number), self.clipped_sum)
            return (number + 1,)

        return tf.while_loop(lambda number: number < count, step, (tf.constant(0),), parallel_iterations=1)[0]


def private_step(
    model: keras.Model,
    batch: tuple,
    rule: Rule,
    noise: Sequence[tf.Tensor],
    clipped_sum: Callable[..., list[tf.Tensor]],
) -> None:
    """One step of DP-SGD. noise: for each trainable variable, over the same divisor as the sum."""
    variables = model.trainable_variables
    own = dict(zip(map(id, penalised(model)), penalty_gradients(model), strict=True))
    gradients = []
    for variable, mean, part in zip(variables, clipped_sum(model, batch, rule), noise, strict=True):
        gradient = mean + tf.reshape(part, variable.shape)
        gradient = gradient + own[id(variable)] if id(variable) in own else gradient
        gradients.append(tf.cast(gradient, variable.dtype))
    model.optimizer.apply(gradients, variables)


def train_privately_eagerly(
    state: ModelState,
    params: tf.Tensor,
    data: Examples,
    task: PrivateTask,
    clip_norm: float,
    proximal: float,
    where: dict[str, int],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """What PrivateProgram computes, to rounding: step by step, and example by example through the model.

    Errors: ClientError naming `where` (client and round) and the batch.
    """
    seeds = tf.constant(task.seeds, tf.int64, shape=(len(state.seeds), 2))
    state.begin(params, task.personal, task.learning_rate, seeds)
    offset = tf.constant(task.offset) if len(task.offset) else None
    sizes = [math.prod(variable.shape) for variable in state.model.trainable_variables]

    noise = np.empty(sum(sizes), np.float32)
    for batch, (rows, count) in enumerate(zip(*task.draws, strict=True)):
        width = max(count, 1)
        examples = gather(batch_of(data), tf.constant(rows[:width]))
        rule = Rule(tf.range(width) < count, clip_norm, tf.constant(task.expected_batch))
        task.noise(noise)
        try:
            with state.corrected(proximal, params, offset):
                private_step(state.model, examples, rule, tf.split(noise, sizes), looped_sum)
        except Exception as error:
            raise ClientError(f"{type(error).__name__}: {error}", batch=batch, **where) from error
    kept = [keras.ops.convert_to_numpy(weight) for weight in state.personal]
    return state.delta(params).numpy(), kept
