"""Compiled steps over a block of clients: one step of each, in one call.

A stride of full batches is one loop of XLA's, but for models with convolutions, which are ten times slower in it on a
CPU: these are looped over from Python. A client that is done, or whose next batch has another size, keeps its state.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.examples import leaves, map_arrays
from ...core.types import Trains
from ..keras.building import BUILDING
from .debug import check_loss
from .lanes import Lanes
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

    def __init__(self, variables: ModelVariables, lanes: Lanes, is_debugged: bool, loops: bool):
        """Make nothing yet. lanes: those that programs are called on.

        is_debugged: compute as it comes, for blocks of one client, and check each step's loss. loops: whether a stride
        of batches is a loop of XLA's.
        """
        self.variables, self.lanes, self.is_debugged, self.loops = variables, lanes, is_debugged, loops
        self._made: dict[Hashable, Callable[..., Any]] = {}
        self._called: set[Hashable] = set()
        self._compiling = threading.Lock()
        self.traces: list[Hashable] = []  # the program of each trace

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
        """Return the states after a stride. arguments: data, rows, which are active, how many batches, vector, offsets.

        is_resident: whether all rows are of the same data; otherwise data are the batches.
        """
        towards = 0 if kind.is_anchored or not is_one else None
        axes = (0, None, None if is_resident else 0, 0, 0, None, towards, 0 if kind.has_offset else None)
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
        """Return the states after a stride is evaluated. arguments: data, rows, which are active, how many batches."""
        axes, step = (0, None, None if is_resident else 0, 0, 0, None), functools.partial(self._test, is_resident)
        key = "test", width, is_resident
        return self._call(key, step, axes, width, (state, self.variables.still, *arguments), donate=True)

    def _train(
        self, kind: StepKind, is_resident: bool, state, still, data, rows, active, count, towards, offset
    ) -> State:
        variables = self.variables

        def step(state: State, batch: tuple, examples: int) -> State:
            with variables.meter.tracing("train"), variables.corrected(kind.proximal, towards, offset, kind.trains):
                logs, after = variables.train_step(state, still, batch, examples)
            if self.is_debugged:
                check_loss(logs)
            return after

        return self._strode(step, is_resident, state, data, rows, active, count)

    def _test(self, is_resident: bool, state, still, data, rows, active, count) -> State:
        def step(state: State, batch: tuple, examples: int) -> State:
            with self.variables.meter.tracing("test"):
                return self.variables.test_step(state, still, batch, examples)

        return self._strode(step, is_resident, state, data, rows, active, count)

    def _strode(self, step: Callable[..., State], is_resident: bool, state, data, rows, active, count) -> State:
        """Return the state after the first `count` batches of a stride."""

        def at(number: Any, state: State) -> State:
            batch = map_arrays(lambda array: array[rows[number]] if is_resident else array[number], data)
            return where(active[number], step(state, batch, rows.shape[1]), state)

        return jax.lax.fori_loop(0, count, at, state) if self.loops else at(0, state)

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
        arguments = self.lanes.here(tuple(arguments))
        shapes = tuple((array.shape, array.dtype) for array in (*leaves(arguments[2]), arguments[3])) if donate else ()
        size = key, shapes, self.lanes.place
        if size in self._called:
            return self._made[key](*arguments)
        with self._compiling:  # one lane compiles, the others wait for what it makes
            if key not in self._made:
                traced = self._traced(key, function)
                over = jax.vmap(traced, axes, axis_size=width) if width > 1 else alone(traced, axes)
                self._made[key] = over if self.is_debugged else jax.jit(over, donate_argnums=(0,) if donate else ())
            result = self._made[key](*arguments)
            self._called.add(size)
            return result

    def _traced(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that holds the lock of building, and is noted, whenever it is traced.

        Keras keeps losses on its layers meanwhile: two traces at once would mix them. The lock is taken inside, since
        JAX alone knows when it traces; who held it outside would wait for another's trace of the same program.
        """

        def locked(*arguments: Any) -> Any:
            with BUILDING:
                self.traces.append(key)
                return function(*arguments)

        return locked


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
