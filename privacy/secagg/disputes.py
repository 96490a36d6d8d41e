"""Disputes about shares that do not open: who is left out of a sum for them, so that nobody ends it for all.

Who is right cannot be seen: a dealer may seal nonsense, and a receiver may say so of good shares. Of each pair in
dispute one has to go, since the masks that they share do not cancel. Honest clients never dispute one another's shares,
so that all disputes are with clients that lie, and leaving out those with the most leaves out about as many as lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Disputes:
    """A session's disputes. vectors: of receivers who dispute, which are in no sum before it is settled who goes."""

    vectors: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    left_out: set[int] = field(default_factory=set)
    _refused: dict[int, frozenset[int]] = field(default_factory=dict)  # receiver: dealers whose shares did not open

    def add(self, receiver: int, dealers: Sequence[int], vector: np.ndarray) -> None:
        """Note a receiver's masked vector, without the masks shared with dealers."""
        self._refused[receiver] = frozenset(dealers)
        self.vectors[receiver] = vector.copy()

    def accepts(self, receiver: int, dealer: int) -> bool:
        """Return whether receiver holds the shares of dealer, and has added the mask that it shares with it."""
        return dealer not in self._refused.get(receiver, ())

    def settle(self, summed: Collection[int]) -> None:
        """Leave out one of each pair: who is in most disputes first; of two alike, who can be left out still.

        summed: whose vectors are in the sum already.
        """
        pairs = {(receiver, dealer) for receiver, dealers in self._refused.items() for dealer in dealers}
        while pairs:
            counts = Counter(node for pair in pairs for node in pair)
            most = max(counts.values())
            alike = [node for node in counts if counts[node] == most]
            worst = min(alike, key=lambda node: (node in summed, node in self.vectors, node))
            self.left_out.add(worst)
            pairs = {pair for pair in pairs if worst not in pair}
