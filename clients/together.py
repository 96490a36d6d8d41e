"""Clients of whom nobody sees more than the sum: their rounds in columns, in place of one after another.

    assignments ─► keys, orders, tasks ─► engine: train, weigh, add up ─► one arrival: a Subtotal

It is what `clients/round.py` comes to where a client sends its delta as it is and keeps nothing: the same tasks, and
the same additions in the same order (`core/tree.py`), so that not a bit differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..core.aggregators import WeightedSum
from ..core.examples import Examples
from ..core.parts.algorithms import ClusteredStrategy, Correction, SplitStrategy
from ..core.parts.chain import flattened
from ..core.parts.discretion import is_discreet
from ..core.recipe import course_of, own_course
from ..core.runtime import Arrival, Assignment, Subtotal, bytes_of
from ..core.summation import Summation
from ..core.types import NOTHING, Total
from .engine import Engine, Summed, TrainTask
from .round import non_finite
from .tasks import train_task

Held = tuple[Examples, np.ndarray]  # arrays where the engine computes, and a client's rows of them


def is_summed(engine: Engine, summation: Summation) -> bool:
    """Return whether nothing looks at a client's delta or keeps anything of it, and the engine adds deltas up."""
    recipe = engine.experiment
    if engine.summing is None or engine.initial_memory or is_discreet(recipe) or recipe.plan is not None:
        return False
    if isinstance(recipe.rule, Correction) or isinstance(recipe.strategy, (SplitStrategy, ClusteredStrategy)):
        return False
    if own_course(recipe) is not None or any(flattened(recipe.transforms)) or recipe.codec is not None:
        return False
    is_plain = type(summation.aggregator) is WeightedSum and summation.aggregation is None
    return is_plain and summation.subtotals and summation.in_order


def have_one_start(assignments: Sequence[Assignment]) -> bool:
    """Return whether assignments are of one round and one cohort, which what is summed together has to be."""
    first = assignments[0]
    return all(one.broadcast is first.broadcast and one.key is first.key for one in assignments)


def play_summed(engine: Engine, assignments: Sequence[Assignment], held: Sequence[Held], losses: bool) -> Arrival:
    """Train clients side by side and add their deltas up. They have one start; held: what each holds.

    losses: whether each client's loss is asked for.
    """
    assert engine.summing is not None
    clients, broadcast = [one.client for one in assignments], assignments[0].broadcast
    tasks = tasks_of(engine, assignments, held)
    is_weighed = engine.experiment.weighting == "examples"
    weights = np.array([task.examples if is_weighed else 1 for task in tasks], float)
    summed = engine.summing.total(tasks, weights)
    failures = [
        non_finite(engine, clients[place], loss_at(summed, place)) for place in np.flatnonzero(~summed.counted).tolist()
    ]
    told = dict(zip(clients, summed.losses.tolist(), strict=True)) if losses and summed.losses is not None else {}
    failed = {failure.client for failure in failures}
    total = total_of(summed, weights)
    up = (len(tasks) - len(failures)) * 4 * engine.spec.size
    content = Subtotal(total, {client: loss for client, loss in told.items() if client not in failed}, failures)
    return Arrival(tuple(clients), content, {}, up, len(tasks) * bytes_of(broadcast))


def tasks_of(engine: Engine, assignments: Sequence[Assignment], held: Sequence[Held]) -> list[TrainTask]:
    """Return the training of each client: that which `client_round` asks for."""
    recipe, broadcast, course = engine.experiment, assignments[0].broadcast, course_of(engine.experiment)
    clients = np.array([one.client for one in assignments])
    sizes = np.array([len(rows) for _, rows in held])
    if engine.fixed_batch is not None:
        sizes = sizes // engine.fixed_batch * engine.fixed_batch
    epochs = recipe.local.epochs_of(clients, broadcast.round, recipe.seed)
    begun, last = recipe.local.passes_of(sizes, epochs)
    key = assignments[0].key
    return [
        train_task(
            engine, broadcast, client, key.derive("client", client), data, rows, [], course, count, None, examples
        )
        for client, (data, rows), count, examples in zip(
            clients.tolist(), held, course.passes(begun).tolist(), last.tolist(), strict=True
        )
    ]


def loss_at(summed: Summed, place: int) -> float | None:
    """Return the training loss of one client; None where there is none."""
    return None if summed.losses is None else float(summed.losses[place])


def total_of(summed: Summed, weights: np.ndarray) -> Total | None:
    """Return the accumulator of a sum; None where no client counts. weights: of all clients."""
    counted = int(summed.counted.sum())
    if not counted:
        return None
    weight = math.fsum(weights[summed.counted])
    return Total(summed.delta, NOTHING, weight, counted, summed.metrics)
