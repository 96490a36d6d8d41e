"""Bulyan.

El Mhamdi, Guerraoui, Rouault 2018: The Hidden Vulnerability of Distributed Learning in Byzantium.
https://arxiv.org/abs/1802.07927
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.traits import Trait
from ...core.types import Vector
from ...core.validation import require_count
from .krum import krum_order
from .robust import RobustAggregator, gram, sorted_columns, squared_distances


@dataclass(frozen=True)
class Bulyan(RobustAggregator):
    """Bulyan: Krum chooses θ = n − 2f updates, whose coordinates are then averaged around their median.

    Krum chooses them one after another; of these, each coordinate has the mean of the θ − 2f nearest to their median.

    Parameters
    ----------
    byzantine
        f, how many clients of a cohort may attack. A cohort has at least 4f + 3. Each client has one vote, whatever
        weight it reports. Time: n²·d for the distances, which are found once.
    """

    byzantine: int

    hides: ClassVar[Trait] = Trait.PLAIN_SUM | Trait.WHOLE_UPDATE

    def __post_init__(self) -> None:
        require_count("byzantine", self.byzantine, at_least=0)

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 4f + 3."""
        return 4 * self.byzantine + 3

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return the mean around the median of the chosen."""
        chosen = self._choose(squared_distances(gram(vectors)))
        near = len(chosen) - 2 * self.byzantine
        middle = slice((len(chosen) - 1) // 2, len(chosen) // 2 + 1)
        centre = np.empty(len(vectors[0]), np.float32)
        for block, columns in sorted_columns([vectors[i] for i in chosen]):
            median = columns[:, middle].mean(axis=1, keepdims=True)
            # The nearest to the median are neighbours in a sorted row. The window moves on while the number it would
            # gain is nearer than the one it would lose: true up to some shift, then never again.
            gains, losses = columns[:, near:] - median, median - columns[:, : 2 * self.byzantine]
            first = (gains < losses).sum(axis=1, keepdims=True)
            centre[block] = np.take_along_axis(columns, first + np.arange(near), axis=1).mean(axis=1)
        return centre

    def _choose(self, distances: np.ndarray) -> list[int]:
        """Choose θ clients, ascending: each the one that Krum picks among those not yet chosen."""
        left = np.arange(len(distances))
        chosen = []
        for _ in range(len(distances) - 2 * self.byzantine):
            best = krum_order(distances, self.byzantine, left)[0]
            chosen.append(int(best))
            left = left[left != best]
        return sorted(chosen)
