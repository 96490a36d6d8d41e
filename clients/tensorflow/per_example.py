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
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ...core.errors import ClientError
from ...core.examples import Examples
from ...core.parts.private import PerExamplePrivacy
from ..draws import Draws, PrivateTask, width_for
from ..engine import Trained
from ..keras.building import batch_of
from . import compat
from .calls import FlatCall, Twins
from .clipped import Rule, ghost_sum, looped_sum, penalised, penalty_gradients, sound_sum
from .ghost import can_ghost
from .program import gather, host
from .state import ModelState, words_for

NOISE_BYTES = 8 << 20  # size of the noise for one call: with less, calls would take as long as a small model's steps


class PrivateProgram:
    """A program that trains one client per call. Threads may share it: each has twins of its own."""

    def __init__(
        self,
        state: ModelState,
        specs: tuple,
        privacy: PerExamplePrivacy,
        xla: bool,
        has_offset: bool,
        proximal: float,
    ):
        """Trace the program for examples of the shapes in specs, as data_specs gives them.

        proximal, has_offset: how gradients are corrected after the noise; see ModelState.corrected.
        """
        self.state, self.clip_norm, self.xla = state, privacy.clip_norm, xla
        self.proximal, self.has_offset = proximal, has_offset
        self.sizes = [math.prod(variable.shape) for variable in state.trained]
        self.size = sum(self.sizes)  # length of a step's noise
        self.clipped_sum = ghost_sum if can_ghost(state.model) else looped_sum
        self._loop = compat.graph_function(self._steps, xla=True) if xla else self._steps
        vector, scalar = tf.TensorSpec([state.spec.size], tf.float32), tf.TensorSpec([], tf.float32)
        offset = tf.TensorSpec([state.spec.size if has_offset else 0], tf.float32)
        rows, sizes = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
        noise = tf.TensorSpec([None, self.size], tf.float32)
        settings = [scalar, tf.TensorSpec([], tf.float64), offset]
        steps = [vector, specs, rows, sizes, noise, tf.TensorSpec([], tf.int32), *settings]
        self._step_of = state.trace(self._corrected, steps)
        seeds = tf.TensorSpec([len(self._step_of.generators), 2], tf.int64)
        begin = [tf.TensorSpec([2], tf.bool), state.personal_specs(), seeds, scalar]
        self._call = FlatCall.trace(self._part, [*begin, *steps])

    def __call__(
        self, twins: Twins, params: tf.Tensor, data: Examples, task: PrivateTask, batch_size: int | None
    ) -> Trained:
        """Play one client's round, over twins; without metrics."""
        part = self._steps_in_a_call(len(task.draws.sizes))
        rows, sizes = self._shaped(task.draws, part, batch_size)
        begin = task.personal, words_for(task.key, len(self._step_of.generators)), task.learning_rate
        settings = task.expected_batch, task.grid, task.offset
        for start, count, noise in self._noise_ahead(task, part):
            here = slice(start, start + part)
            ends = np.array([start == 0, start + count >= len(task.draws.sizes)])
            delta, after = self._call(
                twins, ends, *begin, params, batch_of(data), rows[here], sizes[here], noise, count, *settings
            )
        return Trained(host(delta), [value.numpy() for value in after], {})

    def _noise_ahead(self, task: PrivateTask, part: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield first step, number of steps and noise of each call, drawn while the call before computes."""
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

    @property
    def graph(self) -> Any:
        """The graph that was traced."""
        return self._call.concrete.graph

    def _steps_in_a_call(self, steps: int) -> int:
        """Return so many steps that their noise takes NOISE_BYTES, or all."""
        # XLA compiles for every number: a power of two, filled up with steps that are not done.
        all_of_them = 1 << (steps - 1).bit_length() if self.xla and steps else max(steps, 1)
        return min(max(1, NOISE_BYTES // (4 * self.size)), all_of_them)

    def _shaped(self, draws: Draws, part: int, batch_size: int | None) -> Draws:
        """Return the draws; for XLA padded to whole calls, and to one of few widths."""
        if not self.xla:
            return draws
        steps, largest = draws.rows.shape
        short = -steps % part
        rows = np.pad(draws.rows, ((0, short), (0, width_for(largest, batch_size) - largest)), "edge")
        return Draws(rows, np.pad(draws.sizes, (0, short)))

    def _part(
        self, ends, personal, seeds, learning_rate, params, data, rows, sizes, noise, count, expected, grid, offset
    ):
        def begin() -> tf.Tensor:
            self.state.begin(self._step_of, params, personal, learning_rate, seeds)
            return tf.constant(0)

        def finish() -> tf.Tensor:
            self.state.finish_optimizer()
            return tf.constant(0)

        with tf.control_dependencies([tf.cond(ends[0], begin, lambda: tf.constant(0))]):
            done = self._step_of.call.inside(params, data, rows, sizes, noise, count, expected, grid, offset)
        with tf.control_dependencies([done]):
            if self.state.is_averaging:
                tf.cond(ends[1], finish, lambda: tf.constant(0))
            return self.state.delta(params), [tf.convert_to_tensor(weight) for weight in self.state.personal]

    def _corrected(self, params, data, rows, sizes, noise, count, expected, grid, offset) -> tf.Tensor:
        with self.state.corrected(self.proximal, params, offset if self.has_offset else None):
            return self._loop(data, rows, sizes, noise, count, expected, grid)

    def _noise_of(self, noise: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
        """Return a step's noise for each variable that is trained."""
        starts = [0, *itertools.accumulate(self.sizes)]
        return [tf.slice(noise, [step, start], [1, size]) for start, size in zip(starts, self.sizes, strict=False)]

    def _steps(self, data, rows, sizes, noise, count, expected, grid) -> tf.Tensor:
        """Take `count` steps; return how many were done."""

        def step(number: tf.Tensor) -> tuple[tf.Tensor]:
            # An empty batch has one row, which does not count: not every kernel takes arrays of no examples.
            width = tf.shape(rows)[1] if self.xla else tf.maximum(sizes[number], 1)
            picked = rows[number] if self.xla else rows[number, :width]
            rule = Rule(tf.range(width) < sizes[number], self.clip_norm, expected, grid)
            private_step(self.state, gather(data, picked), rule, self._noise_of(noise, number), self.clipped_sum)
            return (number + 1,)

        return tf.while_loop(lambda number: number < count, step, (tf.constant(0),), parallel_iterations=1)[0]


def private_step(
    state: ModelState,
    batch: tuple,
    rule: Rule,
    noise: Sequence[tf.Tensor],
    clipped_sum: Callable[..., list[tf.Tensor]],
) -> None:
    """Take one step of DP-SGD. noise: for each variable that is trained, over the same divisor as the sum."""
    model = state.model
    sums = dict(zip(map(id, model.trainable_variables), clipped_sum(model, batch, rule), strict=True))
    own = dict(zip(map(id, penalised(model)), penalty_gradients(model), strict=True))
    gradients = []
    for variable, part in zip(state.trained, noise, strict=True):
        gradient = released(sums[id(variable)], tf.reshape(part, variable.shape), rule.grid)
        gradient = gradient + own[id(variable)] if id(variable) in own else gradient
        gradients.append(tf.cast(gradient, variable.dtype))
    model.optimizer.apply(gradients, state.trained)


def released(mean: tf.Tensor, noise: tf.Tensor, grid: tf.Tensor | float) -> tf.Tensor:
    """mean + noise: float32, added in float64 and rounded once, to multiples of grid.

    A float32 sum would be exact where the two nearly cancel, and a multiple of the noise's own spacing: its low bits
    would tell whether a coordinate is the one guessed (Mironov 2012).
    """
    step = tf.convert_to_tensor(grid, tf.float64)
    exact = tf.cast(mean, tf.float64) + tf.cast(noise, tf.float64)
    return tf.cast(tf.round(exact / step) * step, tf.float32)


def train_privately_eagerly(
    state: ModelState,
    params: tf.Tensor,
    data: Examples,
    task: PrivateTask,
    clip_norm: float,
    proximal: float,
    where: dict[str, int] | None = None,
) -> Trained:
    """Compute what PrivateProgram computes, to rounding: step by step, and example by example through the model.

    where: client and round, for the ClientError that an example raises which the model cannot take; None: it adds
    nothing.
    """
    clipped_sum = sound_sum if where is None else looped_sum
    state.begin_eagerly(params, task.personal, task.learning_rate, task.key)
    offset = tf.constant(task.offset) if len(task.offset) else None
    sizes = [math.prod(variable.shape) for variable in state.trained]

    noise = np.empty(sum(sizes), np.float32)
    for batch, (rows, count) in enumerate(zip(*task.draws, strict=True)):
        width = max(count, 1)
        examples = gather(batch_of(data), tf.constant(rows[:width]))
        grid = tf.constant(task.grid, tf.float64)
        rule = Rule(tf.range(width) < count, clip_norm, tf.constant(task.expected_batch), grid)
        task.noise(noise)
        try:
            with state.corrected(proximal, params, offset):
                private_step(state, examples, rule, tf.split(noise, sizes), clipped_sum)
        except Exception as error:
            raise ClientError(f"{type(error).__name__}: {error}", batch=batch, **(where or {})) from error
    state.finish_optimizer()
    kept = [keras.ops.convert_to_numpy(weight) for weight in state.personal]
    return Trained(state.delta(params).numpy(), kept, {})
