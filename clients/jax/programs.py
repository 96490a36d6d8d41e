"""Compiled steps over a block of clients: one step of each, in one call.

Steps are looped over from Python: the block already spreads a call over many clients, and XLA's own loops make
convolutions ten times slower on a CPU. A client that is done, or whose next batch has another size, keeps its state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.examples import map_arrays
from ...core.types import Trains
from ..keras.building import BUILDING
from .debug import check_loss
from .private import PrivateSteps
from .variables import ModelVariables, State


class StepKind(NamedTuple):
    """Additions to Keras's own training step; each kind has a program of its own."""

    trains: Trains = "all"
    proximal: float = 0.0
    has_offset: bool = False
    is_anchored: bool = False  # pulled towards a vector of each client's own, in place of where it starts


class Programs:
    """The compiled parts of a block's round, for blocks of one width each."""

    def __init__(self, variables: ModelVariables, is_debugged: bool = False):
        """Make nothing yet. is_debugged: compute as it comes, for blocks of one client, and check each step's loss."""
        self.variables, self.is_debugged = variables, is_debugged
        self._made: dict[Hashable, Callable[..., Any]] = {}
        self._called: set[Hashable] = set()

    def begin(self, width: int, is_training: bool, is_one: bool, *arguments: Any) -> State:
        """Return the states of a block. is_one: whether all start from one vector. arguments: those of `begin`."""
        begin = functools.partial(self.variables.begin, is_training)
        key = "begin", width, is_training, is_one
        return self._call(key, begin, (None if is_one else 0, 0, 0, 0), width, arguments)

    def reset_optimizer(self, width: int, state: State, rate: Any) -> State:
        """Return the states with optimizers as compiled, but for the rates."""
        return self._call(("reset", width), self.variables.reset_optimizer, (0, 0), width, (state, rate))

    def finish(
        self, width: int, step: str, is_one: bool, state: State, params: Any
    ) -> tuple[Any, list[Any], list[Any]]:
        """Return what is left of the states: deltas, personal variables, metrics."""
        finish = functools.partial(self.variables.finish, step)
        return self._call(("finish", width, step, is_one), finish, (0, None if is_one else 0), width, (state, params))

    def train(
        self, width: int, kind: StepKind, is_one: bool, is_resident: bool, state: State, *arguments: Any
    ) -> State:
        """Return the states after one batch. arguments: data, rows, which clients are active, vector, offsets.

        is_resident: whether all rows are of the same data; otherwise data are the batches.
        """
        towards = 0 if kind.is_anchored or not is_one else None
        axes = (0, None, None if is_resident else 0, 0, 0, towards, 0 if kind.has_offset else None)
        key = "train", width, kind, is_one, is_resident
        step = functools.partial(self._train, kind, is_resident)
        return self._call(key, step, axes, width, (state, self.variables.still, *arguments), donate=True)

    def clipped_sum(self, width: int, private: PrivateSteps, is_resident: bool, state: State, *arguments: Any) -> Any:
        """Return the sum of clipped gradients of some of a batch. arguments: those of `PrivateSteps.clipped_sum`."""
        axes = (0, None, None if is_resident else 0, 0, 0, None, 0)
        key = "clipped", width, private.clip_norm, is_resident, arguments[1].shape
        function = functools.partial(private.clipped_sum, is_resident)
        return self._call(key, function, axes, width, (state, self.variables.still, *arguments))

    def private_step(
        self, width: int, private: PrivateSteps, proximal: float, is_one: bool, state: State, *arguments: Any
    ) -> State:
        """Return the states after a step of DP-SGD.

        arguments: means, counts, which clients are active, the vector that they began with, and offsets.
        """
        towards, offset = None if is_one else 0, None if arguments[-1] is None else 0

        def step(state: State, still: State, mean: Any, count: Any, active: Any, params: Any, offset: Any) -> State:
            return where(active, private.take_step(proximal, state, still, mean, count, params, offset), state)

        key = "private", width, private.clip_norm, proximal, is_one, offset
        axes = (0, None, 0, 0, 0, towards, offset)
        return self._call(key, step, axes, width, (state, self.variables.still, *arguments), donate=True)

    def test(self, width: int, is_resident: bool, state: State, *arguments: Any) -> State:
        """Return the states after one batch is evaluated. arguments: data, rows, which clients are active."""
        axes, step = (0, None, None if is_resident else 0, 0, 0), functools.partial(self._test, is_resident)
        key = "test", width, is_resident
        return self._call(key, step, axes, width, (state, self.variables.still, *arguments), donate=True)

    def _train(self, kind: StepKind, is_resident: bool, state, still, data, rows, active, towards, offset) -> State:
        batch = map_arrays(lambda array: array[rows], data) if is_resident else data
        variables = self.variables
        with variables.meter.tracing("train"), variables.corrected(kind.proximal, towards, offset, kind.trains):
            logs, after = variables.train_step(state, still, batch, rows.shape[0])
        if self.is_debugged:
            check_loss(logs)
        return where(active, after, state)

    def _test(self, is_resident: bool, state, still, data, rows, active) -> State:
        batch = map_arrays(lambda array: array[rows], data) if is_resident else data
        with self.variables.meter.tracing("test"):
            after = self.variables.test_step(state, still, batch, rows.shape[0])
        return where(active, after, state)

    def _call(
        self,
        key: Hashable,
        function: Callable[..., Any],
        axes: Sequence[int | None],
        width: int,
        arguments: Sequence[Any],
        donate: bool = False,
    ) -> Any:
        """Call a function over a block; axes: 0 for what each client has of its own, None for what all share."""
        if key not in self._made:
            over = jax.vmap(function, axes, axis_size=width) if width > 1 else alone(function, axes)
            self._made[key] = over if self.is_debugged else jax.jit(over, donate_argnums=(0,) if donate else ())
        size = key, arguments[3].shape if donate else None  # of its rows: each size of batch is traced
        if size in self._called:
            return self._made[key](*arguments)
        with BUILDING:  # Keras keeps losses on its layers while a step is traced: two traces at once would mix them
            result = self._made[key](*arguments)
        self._called.add(size)
        return result


def where(active: Any, after: State, before: State) -> State:
    """Return the new state of a client that took part in this step, the old one of any other."""
    return {number: jnp.where(active, after[number], value) for number, value in before.items()}


def alone(function: Callable[..., Any], axes: Sequence[int | None]) -> Callable[..., Any]:
    """Make of a function one over blocks of a single client, without another axis inside."""

    def over(*arguments: Any) -> Any:
        own = [jax.tree.map(lambda array: array[0], one) if axis == 0 else one
               for one, axis in zip(arguments, axes, strict=True)]  # fmt: skip
        return jax.tree.map(lambda array: jnp.asarray(array)[None], function(*own))

    return over
