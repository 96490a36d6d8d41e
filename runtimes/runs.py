"""Runs of a cohort, each of which comes back as one sum; where the work waits, clients come back one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..clients.together import have_one_start
from ..core.runtime import WAIT, Arrival, Assignment


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
