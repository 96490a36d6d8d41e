"""The sum of a cohort's updates, in one fixed shape: whoever adds up which part of it, the bits are the same.

    places      0 … 7   8 … 15   16 … 23   24 … 31   32 … 36
    runs           └──┬──┘           └────┬────┘          │
    pairs             └─────────┬─────────┘               │
    the rest                    └──────────┬──────────────┘

A client's place is the number of clients that arrived before it, and one that failed keeps its place. So any aligned
run of LEAF·2ᵏ clients can be added up anywhere, and pushed as one sum. The rounding error is that of a tree's depth,
not of a cohort's length; the price is one accumulator for each level.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .bases import Aggregator
from .types import ClientUpdate, Total
from .validation import require

LEAF = 8  # updates that are added one after another


def room_for(places: int) -> int:
    """Return the length of the smallest aligned run that has so many places: LEAF·2ᵏ."""
    return int(LEAF * 2 ** max(0, math.ceil(math.log2(places / LEAF))))


def summed_rows(rows: Any) -> Any:
    """Return the sum of rows as a Tree adds up as many updates. rows: an array whose length is LEAF·2ᵏ.

    Zeros stand for places that failed, or are not there. Any kind of array will do that adds element by element.
    """
    total = rows[::LEAF]
    for place in range(1, LEAF):
        total = total + rows[place::LEAF]
    while len(total) > 1:
        total = total[::2] + total[1::2]
    return total[0]


class Run(NamedTuple):
    """The sum of clients that are neighbours."""

    width: int  # number of places that it stands for
    sum: Any  # the aggregator's accumulator; None where every client of the run failed


class Tree:
    """A sum that is being formed: runs of LEAF updates, then aligned pairs, left before right.

    Guarantees: equal bits for every division of the same places into aligned runs. An empty side of a pair changes no
    bit of the other. Accumulators that were pushed must not be used again.
    Memory: log₂(n/LEAF) + 2 accumulators for n places.
    """

    def __init__(self, aggregator: Aggregator, size: int):
        """Begin an empty sum. size: length of delta as it leaves a client."""
        self._aggregator, self._size = aggregator, size
        self._runs: list[Run] = []  # runs that are full, of falling widths
        self._places = 0
        self._open: Any = None  # the sum of the run that is not full yet
        self._width = 0  # number of places in the open run
        self._is_ended = False

    def add(self, update: ClientUpdate | None) -> None:
        """Add the update at the next place; None for a client that failed."""
        self._check_open()
        if update is not None:
            accumulator = self._aggregator.zero(self._size) if self._open is None else self._open
            self._open = self._aggregator.add(accumulator, update)
        self._places += 1
        self._width += 1
        if self._width == LEAF:
            full, self._open, self._width = self._open, None, 0
            self._push(Run(LEAF, full))

    def add_run(self, accumulator: Any, width: int) -> None:
        """Add the next `width` places at once, as another tree's `accumulator` has them. None: all of them failed.

        Errors: ConfigError for a run that is not aligned, or follows one that was not full.
        """
        self._check_open()
        room = room_for(width)
        is_aligned = not self._width and self._places % room == 0
        require(is_aligned, f"a run of {width} clients cannot begin at place {self._places} of a cohort")
        self._places += width
        self._is_ended = width < room
        if self._is_ended:
            self._runs.append(Run(width, accumulator))  # paired with the others at the end
        else:
            self._push(Run(width, accumulator))

    def accumulator(self) -> Any:
        """Return the aggregator's accumulator of all places; None where none has an update.

        Nothing can be added after.
        """
        self._is_ended = True
        total = self._open
        for run in reversed(self._runs):
            total = self._merged(run.sum, total)
        self._runs, self._open = [Run(self._places, total)], None
        return total

    def total(self) -> Total:
        """Return the total that the aggregator makes of all places."""
        accumulator = self.accumulator()
        return self._aggregator.total(self._aggregator.zero(self._size) if accumulator is None else accumulator)

    def _check_open(self) -> None:
        require(not self._is_ended, "nothing can follow a run that is not full: it has to be the last of its cohort")

    def _push(self, run: Run) -> None:
        """Add a full run, and pair it with its neighbours of the same width."""
        while self._runs and self._runs[-1].width == run.width:
            left = self._runs.pop()
            run = Run(left.width + run.width, self._merged(left.sum, run.sum))
        self._runs.append(run)

    def _merged(self, left: Any, right: Any) -> Any:
        if left is None or right is None:
            return right if left is None else left
        return self._aggregator.merge(left, right)
