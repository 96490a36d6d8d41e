"""Split rounds: clients hold a model's first half, and train it with the server, which holds the second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..core.parts.algorithms import SplitStrategy
from ..core.random import Key
from ..core.runtime import WAIT, Assignment
from ..core.types import Broadcast, ClientUpdate, Failure, Total


class Turns:
    """Work of a split round: side by side or in turn, as the strategy says. A client that fails moves nothing.

    Parameters
    ----------
    on_client
        Which numbers lie with clients: bool, shape (d,).
    """

    def __init__(
        self, strategy: SplitStrategy, broadcast: Broadcast, cohort: Sequence[int], key: Key, on_client: np.ndarray
    ):
        self._strategy, self._broadcast, self._key, self._on_client = strategy, broadcast, key, on_client
        self._clients = strategy.turns(cohort, key.derive("turns"))
        self._moved = np.zeros_like(broadcast.params)  # Σ delta of the clients so far

    def __iter__(self) -> Iterator[Assignment | None]:
        for client in self._clients:
            broadcast = self._broadcast
            if self._strategy.in_turn:
                yield WAIT
                params = self._strategy.handed_on(broadcast.params, self._moved, self._on_client)
                broadcast = broadcast._replace(params=params)
            yield Assignment(broadcast, client, self._key)

    def counts_as(self, client: int, update: ClientUpdate | Failure) -> ClientUpdate | Failure:
        """Return what arrived, as it is; the next in turn begins after it."""
        if isinstance(update, ClientUpdate):
            self._moved = self._moved + update.delta
        return update

    def closed(self, total: Total) -> Total:
        """Return the round's total. total: that of the updates."""
        return self._strategy.closed(total, self._moved, self._on_client)
