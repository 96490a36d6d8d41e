"""DP-SGD inside a client, for blocks of clients: each example's gradient by `vmap(grad)`, clipped on its own.

    draws (on the host) ─► sum of clipped gradients ─► + noise (on the host, float64) ─► correction ─► optimizer

Batches, noise and what they are divided by are those of `clients/draws.py`, as on TensorFlow. JAX computes in float32;
so the noise is added on the host, where it is drawn. A batch is filled up to one of few widths, and what fills it up is
taken out of the sum. Source: Abadi et al. 2016, https://arxiv.org/abs/1607.00133
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from ...core.examples import map_arrays
from ..draws import ROUNDING, PrivateTask, release, width_for
from ..keras.one_by_one import batch_loss, penalised
from .blocks import Block
from .variables import ModelVariables, State

CHUNK_BYTES = 64 << 20  # size of the single gradients that a client has at the same time


def room_for(task: PrivateTask, batch_size: int | None) -> int:
    """Return the number of rows that each of a client's batches is filled up to."""
    return width_for(int(task.draws.sizes.max(initial=0)), batch_size)


def chunk_for(size: int, room: int) -> int:
    """Return how many examples' gradients, of `size` numbers each, a client computes at once, for batches of `room`."""
    return max(1, min(room, CHUNK_BYTES // (4 * size)))


class PrivateSteps:
    """The parts of a step of DP-SGD, as functions of one client's state."""

    def __init__(self, variables: ModelVariables, clip_norm: float):
        """Take a model's variables. clip_norm: largest norm of an example's gradient."""
        self.variables, self.clip_norm, self.model = variables, clip_norm, variables.model
        moving = {id(weight) for weight, _ in variables.shared} | {id(weight) for weight in variables.personal}
        self.trainable = list(self.model.trainable_variables)
        self.trained = [variable for variable in self.trainable if id(variable) in moving]
        self.size = sum(math.prod(variable.shape) for variable in self.trained)

    def clipped_sum(
        self,
        is_resident: bool,
        state: State,
        still: State,
        data: Any,
        rows: Any,
        counted: Any,
        first: Any,
        divisor: Any,
    ) -> Any:
        """Return the sum of clipped gradients over divisor, of the variables that are trained: float32.

        counted: which rows are in the sum. first: place in the batch of the first row, which its random numbers follow.
        """
        batch = map_arrays(lambda array: array[rows], data) if is_resident else data
        *groups, _ = self.variables.grouped(state, still)
        known = [
            pair for group in zip(self.variables.groups, groups, strict=False) for pair in zip(*group, strict=True)
        ]

        def clipped(example: Any, place: Any, is_counted: Any) -> Any:
            alone = map_arrays(lambda array: array[None], example)
            gradients = jax.grad(functools.partial(self._loss, alone, place, known))(groups[0])
            gradients = [gradient.astype(jnp.float32) for gradient in gradients]
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))
            factor = jnp.minimum(1.0, self.clip_norm * (1 - ROUNDING) / norm) / divisor
            # An example without a finite gradient adds nothing: a failure would tell that it is there.
            is_added = is_counted & jnp.isfinite(norm)
            own = [one for one, variable in zip(gradients, self.trainable, strict=True) if self._is_trained(variable)]
            return [jnp.where(is_added, one * factor, 0.0).ravel() for one in own]

        added = jax.vmap(clipped)(batch, first + jnp.arange(rows.shape[0]), counted)
        return jnp.concatenate([one.sum(0) for one in added])

    def take_step(
        self, proximal: float, state: State, still: State, mean: Any, count: Any, towards: Any, offset: Any
    ) -> State:
        """Return the state after a step along a noisy mean. count: number of examples in the batch."""
        *values, trackers = self.variables.grouped(state, still)
        trained, others, optimizer, metrics = values
        own = dict(zip(map(id, penalised(self.model)), self._penalty_gradients(trained), strict=True))
        gradients: list[Any] = []
        start = 0
        for variable in self.trainable:
            if not self._is_trained(variable):
                gradients.append(None)
                continue
            end = start + math.prod(variable.shape)
            gradient = mean[start:end].reshape(variable.shape)
            gradient = gradient + own[id(variable)] if id(variable) in own else gradient
            gradients.append(gradient.astype(variable.dtype))
            start = end
        with self.variables.corrected(proximal, towards, offset, "all"):
            trained, optimizer = self.model.optimizer.stateless_apply(optimizer, gradients, trained)
        after = self.variables.kept(state, [trained, others, optimizer, metrics, trackers])
        for number in self._seeds:  # the generators have moved on by a batch
            after[number] = after[number] + self._moved(jnp.maximum(count, 1), after[number])
        return after

    @property
    def _seeds(self) -> list[int]:
        return [self.variables.numbers[id(variable)] for variable in self.variables.seeds]

    def _is_trained(self, variable: keras.Variable) -> bool:
        return any(variable is one for one in self.trained)

    def _moved(self, by: Any, seed: Any) -> Any:
        return jnp.stack([by, jnp.zeros_like(by)]).astype(seed.dtype)

    def _loss(self, example: Any, place: Any, known: Sequence[tuple], values: Sequence[Any]) -> Any:
        """Return an example's loss, without the weights' regularizers. place: in its batch."""
        seeds = {id(variable) for variable in self.variables.seeds}
        mapping = [
            (variable, value + self._moved(place, value) if id(variable) in seeds else value)
            for variable, value in known
        ]
        mapping += zip(self.trainable, values, strict=True)
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
            return (batch_loss(self.model, example) - self._penalty(values)).astype(jnp.float32)

    def _penalty(self, values: Sequence[Any]) -> Any:
        """Return the regularizers' part of the loss: it depends on no example, and needs neither clip nor noise."""
        named = {id(variable) for variable in penalised(self.model)}
        pairs = zip(self.trainable, values, strict=True)
        return sum(variable.regularizer(value) for variable, value in pairs if id(variable) in named)

    def _penalty_gradients(self, values: Sequence[Any]) -> list[Any]:
        named = {id(variable) for variable in penalised(self.model)}
        if not named:
            return []
        gradients = jax.grad(self._penalty)(list(values))
        pairs = zip(self.trainable, gradients, strict=True)
        return [gradient.astype(jnp.float32) for variable, gradient in pairs if id(variable) in named]


def take_private_steps(
    block: Block,
    tasks: Sequence[PrivateTask],
    room: int,
    size: int,
    state: State,
    clipped: Callable[..., Any],
    step: Callable[..., State],
) -> State:
    """Let a block's clients take all their steps; return their states.

    room: rows in a batch. size: length of a step's noise. clipped(state, data, rows, counted, first, divisors): the sum
    of some of a batch. step(state, means, counts, active).
    """
    width, chunk = len(block.examples), chunk_for(size, room)
    padded = chunk * math.ceil(room / chunk)
    divisors = np.ones(width, np.float32)
    divisors[: len(tasks)] = [task.expected_batch for task in tasks]
    noise = np.empty(size, np.float32)
    for number in range(max(len(task.draws.sizes) for task in tasks)):
        active, counts = np.zeros(width, bool), np.zeros(width, np.int32)
        rows = np.zeros((width, padded), np.int32)
        for place, task in enumerate(tasks):
            if number < len(task.draws.sizes):
                active[place], counts[place] = True, task.draws.sizes[number]
                rows[place, : counts[place]] = task.draws.rows[number, : counts[place]]
                rows[place, counts[place] :] = task.draws.rows[number, 0]
        counted = np.arange(padded) < counts[:, None]
        sums = np.zeros((width, size), np.float32)
        for first in range(0, padded, chunk):
            here = slice(first, first + chunk)
            data = block.data_at(rows[:, here])
            sums += np.asarray(clipped(state, data, rows[:, here], counted[:, here], np.int32(first), divisors))
        for place, task in enumerate(tasks):
            if active[place]:
                task.noise(noise)
                sums[place] = release(sums[place], noise, task.grid)
        state = step(state, sums, counts, active)
    return state
