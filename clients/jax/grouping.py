"""Blocks of tasks whose steps are the same program over the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...core.examples import Examples, leaves
from ..engine import EvaluateTask, TrainTask


def visited_of(task: TrainTask) -> int:
    """Return the number of examples that a training visits, those of all passes together."""
    return task.examples * len(task.order) - (task.examples - task.last)


def blocks_of(tasks: Sequence[Any], width: int, alike: Callable[[Any], Any]) -> Iterator[list[int]]:
    """Yield the places of tasks in blocks of at most width, which share what `alike` returns, and where their data lie.

    Those that have as many batches come together, so that few wait for others.
    """
    groups: dict[Any, list[int]] = {}
    identities = {id(task.data): identity_of(task.data) for task in tasks}
    for place, task in enumerate(tasks):
        groups.setdefault((alike(task), identities[id(task.data)]), []).append(place)
    for places in groups.values():
        ordered = sorted(places, key=lambda place: len_of(tasks[place])) if len(places) > width else places
        for start in range(0, len(ordered), width):
            yield ordered[start : start + width]


def alike(task: TrainTask) -> Any:
    """Return what trainings in one block have in common besides the data."""
    return task.course, len(task.offset)


def nothing_alike(task: EvaluateTask) -> Any:
    """Return nothing: evaluations in one block have no more than the data in common."""


def identity_of(data: Examples) -> Any:
    """Return the identity of data on the device; for a client's own their shapes and types."""
    if not isinstance(next(leaves(data.x)), np.ndarray):
        return tuple(id(one) for one in leaves(tuple(data)))
    return tuple((array.shape[1:], str(array.dtype)) for array in leaves(tuple(data)))


def len_of(task: TrainTask | EvaluateTask) -> int:
    """Return the number of examples of a task."""
    return task.examples if isinstance(task, TrainTask) else len(task.rows)


def filled(values: Sequence[Any], width: int) -> np.ndarray:
    """Stack values, the first again for each client that is not there."""
    return np.stack([*values, *[values[0]] * (width - len(values))])
