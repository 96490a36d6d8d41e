"""A block: clients who take their steps side by side, each batch in its true size.

for each pass:   full batches 1, 2, … of whoever has as many, then each size of last batch, of whoever has that one

A *stride* is one or several full batches on end, taken in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ...core.examples import Examples, leaves, map_arrays
from ..keras.building import as_keras, batch_of
from .variables import State

# step(state, data, rows, which clients are active, number of batches); data: what all share, or the batch of each
StepOf = Callable[[State, Any, np.ndarray, np.ndarray, int], State]
STRIDE = 16  # full batches in a stride: one program, however many of them are taken


class Batch(NamedTuple):
    """A batch of each of a block's clients, all of one size."""

    passes: np.ndarray  # pass of each client that its batch is from: shape (width,)
    starts: np.ndarray  # place in that pass of its first example
    size: int
    active: np.ndarray  # which clients take it: bool


class Block:
    """The orders in which a block's clients visit their examples, filled up to the block's width by clients of none."""

    def __init__(self, data: Sequence[Examples], orders: Sequence[np.ndarray], examples: Sequence[int], width: int):
        """Take the clients of a block. data: the same object for all where it lies on the device.

        orders: each int32, shape (passes, at least `examples`).
        """
        self.is_resident = not isinstance(next(leaves(data[0].x)), np.ndarray)
        own = [as_keras(one) for one in (data[:1] if self.is_resident else data)]
        self._batches = [batch_of(one if one.count else blank_row(one)) for one in own]
        self.examples, self.passes = (np.zeros(width, np.int64) for _ in range(2))
        self.examples[: len(examples)] = examples
        self.passes[: len(orders)] = [len(order) for order in orders]
        longest = max(int(self.examples.max()), 1)
        self._rows = np.zeros((width, max(int(self.passes.max()), 1), longest), np.int32)
        for place, (order, count) in enumerate(zip(orders, examples, strict=True)):
            self._rows[place, : len(order), :count] = order[:, :count]

    def take(self, state: State, batches: Iterable[Batch], step: StepOf, full: int | None = None) -> State:
        """Let the clients take batches, one after another; return their states.

        full: number of examples in a full batch, of which several on end are one stride; None: none are.
        """
        clients, (_, passes, longest) = np.arange(len(self.examples))[:, None], self._rows.shape
        for stride in strides(batches, full if self.is_resident else None):
            size, is_full = stride[0].size, self.is_resident and stride[0].size == full
            shape = len(clients), STRIDE if is_full else 1
            rows, active = np.zeros((*shape, size), np.int32), np.zeros(shape, bool)
            for number, batch in enumerate(stride):
                places = np.minimum(batch.starts[:, None] + np.arange(size), longest - 1)
                rows[:, number] = self._rows[clients, np.minimum(batch.passes, passes - 1)[:, None], places]
                active[:, number] = batch.active
            state = step(state, self.data_at(rows), rows, active, len(stride))
        return state

    def data_at(self, rows: np.ndarray) -> Any:
        """Return what all share, where it lies on the device; else each client's own batch, one behind the other.

        rows: of any shape, clients first.
        """
        if self.is_resident:
            return self._batches[0]
        own = [rows_of(batch, at) for batch, at in zip(self._batches, rows, strict=False)]
        own += own[:1] * (len(rows) - len(own))
        return jax.tree.map(lambda *parts: np.stack(parts), *own)


def strides(batches: Iterable[Batch], full: int | None) -> Iterator[list[Batch]]:
    """Yield batches in strides: full ones on end, at most STRIDE of them; any other alone."""
    stride: list[Batch] = []
    for batch in batches:
        if stride and (batch.size != full or len(stride) == STRIDE):
            yield stride
            stride = []
        stride.append(batch)
        if batch.size != full:
            yield stride
            stride = []
    if stride:
        yield stride


def blank_row(data: Examples) -> Examples:
    """Return one row of zeros for a client that holds none: its place in the block is filled, and never counts."""
    return Examples(*(map_arrays(lambda array: np.zeros((1, *array.shape[1:]), array.dtype), part) for part in data))


def rows_of(batch: tuple, rows: np.ndarray) -> tuple:
    """Return rows of (x,), (x, y) or (x, y, sample_weight)."""
    picked: tuple = map_arrays(lambda array: array[rows], batch)
    return picked


def whole(rest: int) -> Sequence[int]:
    """Leave a last batch as it is."""
    return (rest,)


def powers(rest: int) -> Sequence[int]:
    """Divide what is left into powers of two, so that few sizes are compiled: where batches make no difference."""
    return [1 << bit for bit in range(rest.bit_length() - 1, -1, -1) if rest >> bit & 1]


def batches_of(
    first: np.ndarray,
    passes: np.ndarray,
    examples: np.ndarray,
    last: np.ndarray,
    batch: int | None,
    pieces: Callable[[int], Sequence[int]] = whole,
) -> Iterator[Batch]:
    """Yield the batches of some passes of a block's clients; all arrays of shape (width,).

    first, passes: the first pass, and how many. last: number of examples in the last of them. batch: number of examples
    in a full one; None: all. pieces: divides what is left.
    """
    for step in range(int(passes.max(initial=0))):
        seen = np.where(step < passes, np.where(step == passes - 1, last, examples), 0)
        full = seen // batch if batch else np.zeros_like(seen)
        for number in range(int(full.max(initial=0))):
            yield Batch(first + step, np.full_like(seen, number * (batch or 0)), batch or 0, number < full)
        starts = full * (batch or 0)
        rest = seen - starts
        for size in np.unique(rest[rest > 0]).tolist():
            begin = 0
            for piece in pieces(size):
                yield Batch(first + step, starts + begin, piece, rest == size)
                begin += piece
