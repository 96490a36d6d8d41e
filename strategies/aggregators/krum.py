"""Krum and Multi-Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer 2017: Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent.
https://arxiv.org/abs/1703.02757
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.types import Vector
from ...core.validation import require_count
from .robust import RobustAggregator, combination, gram, squared_distances


@dataclass(frozen=True)
class Krum(RobustAggregator):
    """The one update whose n − f − 2 nearest others are nearest, by the sum of squared distances.

    Parameters
    ----------
    byzantine
        f, how many clients of a cohort may attack. A cohort has at least 2f + 3. Each client has one vote, whatever
        weight it reports. Of equal scores the update with the smaller median distance wins. Time: n²·d.
    """

    byzantine: int

    def __post_init__(self) -> None:
        require_count("byzantine", self.byzantine, at_least=0)

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 2f + 3."""
        return 2 * self.byzantine + 3

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return the update with the lowest score."""
        return vectors[krum_order(squared_distances(gram(vectors)), self.byzantine)[0]]


@dataclass(frozen=True)
class MultiKrum(RobustAggregator):
    """The plain mean of the `keep` updates with the lowest scores of Krum.

    Parameters
    ----------
    byzantine
        f, how many clients of a cohort may attack. A cohort has at least 2f + 3.
    keep
        None for n − f; a cohort has at least as many. The mean is not weighted: a weight is what a client claims.
    """

    byzantine: int
    keep: int | None = None

    def __post_init__(self) -> None:
        require_count("byzantine", self.byzantine, at_least=0)
        if self.keep is not None:
            require_count("keep", self.keep)

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 2f + 3, or keep where that is more."""
        return max(2 * self.byzantine + 3, self.keep or 0)

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return the mean of the updates with the lowest scores."""
        keep = len(vectors) - self.byzantine if self.keep is None else self.keep
        chosen = np.sort(krum_order(squared_distances(gram(vectors)), self.byzantine)[:keep])
        return combination([vectors[i] for i in chosen], np.full(keep, 1 / keep))


def krum_order(distances: np.ndarray, byzantine: int, among: np.ndarray | None = None) -> np.ndarray:
    """Order clients by the sum of their n − f − 2 smallest squared distances to others (at least one), ascending.

    among: the clients that count, ascending; None for all. Integers, shape (n,).
    """
    among = np.arange(len(distances)) if among is None else among
    nearest = max(1, len(among) - byzantine - 2)
    scores = np.sort(distances[np.ix_(among, among)], axis=1)[:, 1 : nearest + 1].sum(axis=1)  # column 0 is its own
    # Two that are each other's nearest have equal scores where one neighbour counts: who came first must not decide.
    return among[np.lexsort((np.median(distances, axis=1)[among], scores))]
