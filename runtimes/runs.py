"""Blocks of work for an engine that takes several clients at once, and runs that come back as one sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ..clients.together import have_one_start
from ..core.runtime import WAIT, Arrival, Assignment

T = TypeVar("T")


def in_blocks(width: int, work: Callable[[Sequence[Any]], Sequence[T]], items: Iterable[Any]) -> Iterator[T]:
    """Yield the results of work over blocks of items, as many as `width`; in the items' order.

    WAIT among the items closes a block.
    """
    block: list[Any] = []
    for item in items:
        block += [] if item is WAIT else [item]
        if block and (item is WAIT or len(block) == width):
            yield from work(block)
            block = []
    if block:
        yield from work(block)


def in_runs(
    work: Iterable[Assignment | None],
    length: int,
    sum_up: Callable[[list[Assignment]], Arrival],
    one_by_one: Callable[[Iterable[Assignment | None]], Iterator[Arrival]],
) -> Iterator[Arrival]:
    """Yield what comes back of work. length: number of clients in a run, LEAF·2ᵏ, so that each is aligned.

    From the first run on that is cut short by WAIT, or has more than one start, the rest is played by one_by_one.
    """
    work, run = iter(work), []
    for assignment in work:
        if assignment is not WAIT:
            run.append(assignment)
            if len(run) < length:
                continue
        if assignment is WAIT or not have_one_start(run):
            yield from one_by_one(run)
            yield from one_by_one(work)
            return
        yield sum_up(run)
        run = []
    if run and have_one_start(run):
        yield sum_up(run)
    else:
        yield from one_by_one(run)
