"""The sum of a cohort's deltas, on the device: the additions of `core/tree.py`, in its order, over whole blocks.

What a client's delta is multiplied by is a program of its own: a compiler that saw product and sum together would round
once where the host rounds twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ...core.tree import room_for, summed_rows
from ..engine import Summed, TrainTask
from ..keras.columns import joined, summed_up
from ..keras.meter import Meter
from .eager import fetched
from .grouping import len_of, visited_of
from .lanes import Lanes


@jax.jit
def weighed(deltas: Any, weights: Any) -> tuple[Any, Any]:
    """Return weight·delta of each client, zeros for one that is not finite, and which are. deltas: shape (clients, d).

    No product is −0: the sum of one delta would be −0 where a Tree, which begins at 0, has 0.
    """
    is_finite = jnp.isfinite(deltas.sum(1))
    products = deltas * weights[:, None]
    return jnp.where(is_finite[:, None] & (products != 0), products, 0), is_finite


@jax.jit
def _summed_in_order(blocks: Sequence[Any]) -> Any:
    rows = jnp.concatenate(blocks)
    return summed_rows(jnp.pad(rows, ((0, room_for(len(rows)) - len(rows)), (0, 0))))


@jax.jit
def _summed(blocks: Sequence[Any], order: Any) -> Any:
    nothing = jnp.zeros((1, blocks[0].shape[1]), blocks[0].dtype)
    return summed_rows(jnp.concatenate([*blocks, nothing])[order])


def summed(blocks: Sequence[Any], places: Sequence[int]) -> np.ndarray:
    """Return the sum of what `weighed` returned of several blocks.

    places: which client of the cohort each of their rows is, block by block; whoever fills a block up is none, −1.
    """
    numbers = np.asarray(places)
    clients = int((numbers >= 0).sum())
    if np.array_equal(numbers, np.arange(len(numbers))):
        return np.array(_summed_in_order(blocks))
    order = np.full(room_for(clients), len(numbers), np.int32)  # the row behind the last: of zeros
    order[numbers[numbers >= 0]] = np.flatnonzero(numbers >= 0)
    return np.array(_summed(blocks, order))


class Trainer(Protocol):
    """The engine, as far as a sum needs it."""

    block: int
    meter: Meter
    lanes: Lanes

    def trained_blocks(
        self, tasks: Sequence[TrainTask], finish: Callable[[list[int], Any], Any]
    ) -> list[tuple[list[int], Any]]:
        """Train clients, blocks side by side; return the places of each block's, and what finish makes of it."""


class BlockSums:
    """The sums of an engine's blocks."""

    def __init__(self, engine: Trainer):
        self._engine = engine

    def total(self, tasks: Sequence[TrainTask], weights: np.ndarray) -> Summed:
        """Train clients, and add up. See `Summing.total`."""
        engine = self._engine

        def weigh(places: list[int], found: Any) -> tuple[Any, ...]:
            deltas, _, read = found
            own = np.zeros(engine.block, np.float32)
            own[: len(places)] = weights[places]
            return *weighed(deltas, own), *read

        blocks = engine.trained_blocks(tasks, weigh)
        filled_up = [[*places, *[-1] * (engine.block - len(places))] for places, _ in blocks]
        places = list(itertools.chain(*filled_up))
        columns = zip(*(fetched(found[1:]) for _, found in blocks), strict=True)
        counted, *arrays = (in_order(parts, places) for parts in columns)
        delta = summed(engine.lanes.gathered([found[0] for _, found in blocks]), places)
        visited, examples = (np.array([count(task) for task in tasks]) for count in (visited_of, len_of))
        measured, losses = summed_up(engine.meter, "train", arrays, visited, examples)
        metrics = {name: joined(column, counted) for name, column in measured.items()} if counted.any() else {}
        return Summed(delta, metrics, losses, counted)


def in_order(parts: Sequence[np.ndarray], places: Sequence[int]) -> np.ndarray:
    """Return rows of several blocks in the order of the cohort, without those that fill blocks up."""
    numbers, rows = np.asarray(places), np.concatenate(parts)
    return rows[np.argsort(numbers, kind="stable")[(numbers < 0).sum() :]]
