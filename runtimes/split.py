"""A round of clients that hold a model's first half, and train it with the server, which holds the second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core.experiment import Experiment
from ..core.faults import crash_point
from ..core.protocols import Memory
from ..core.random import Key
from ..core.types import Broadcast, Failure, RoundResult, SplitUpdate

Train = Callable[[Broadcast, int], tuple[SplitUpdate | Failure, list[np.ndarray]]]


def collect_split(
    experiment: Experiment,
    memory: Memory,
    on_client: np.ndarray,
    broadcast: Broadcast,
    cohort: Sequence[int],
    key: Key,
    train: Train,
    side_by_side: Callable[[Callable[[int], Any], Iterable[int]], Iterator[Any]],
) -> RoundResult:
    """Train the cohort as the strategy says, side by side or in turn; sum its updates in that order.

    on_client: which numbers lie with clients: bool, shape (d,). train: what becomes of a client given a broadcast.
    Bytes are those of the client's half, both ways, and of all that crossed the cut; the server's half stays where it
    is. A client that fails leaves nothing behind on either side.
    """
    strategy: Any = experiment.strategy
    turns, moved = strategy.turns(cohort, key.derive("turns")), np.zeros_like(broadcast.params)
    losses: dict[int, float] | None = {} if getattr(experiment.sampler, "needs_losses", False) else None
    total, failures, up, down = experiment.fold.zero(len(broadcast.params)), [], 0, 0

    def in_turn(client: int) -> tuple[SplitUpdate | Failure, list[np.ndarray]]:
        return train(broadcast._replace(params=strategy.handed_on(broadcast.params, moved, on_client)), client)

    def at_once(client: int) -> tuple[SplitUpdate | Failure, list[np.ndarray]]:
        return train(broadcast, client)

    results = map(in_turn, turns) if strategy.in_turn else side_by_side(at_once, turns)
    for client, (update, kept) in zip(turns, results, strict=True):
        if isinstance(update, Failure):
            failures.append(update)
            continue
        if kept:
            memory.write(client, kept)
        total, moved = experiment.fold.add(total, update), moved + update.delta
        up, down = up + update.bytes_up, down + update.bytes_down
        if losses is not None and "loss" in update.metrics:
            losses[client] = update.metrics["loss"].mean()
        crash_point("mid-training", broadcast.round)
    closed = strategy.closed(experiment.fold.total(total), moved, on_client)
    return RoundResult(closed, failures, up, down, losses)
