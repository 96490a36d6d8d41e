"""The geometric median: robust federated aggregation (RFA).

Pillutla, Kakade, Harchaoui 2022: Robust Aggregation for Federated Learning. https://arxiv.org/abs/1912.13445
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.types import Vector
from ...core.validation import require_count, require_real
from .robust import RobustAggregator, combination, distances_from, gram, squared_distances


@dataclass(frozen=True)
class GeometricMedian(RobustAggregator):
    """The v that minimises Σ α_k·‖v − Δ_k‖, α_k the clients' weights, by the smoothed Weiszfeld algorithm.

    Time: n²·d, whatever the number of iterations: v is a combination of the updates, so that their inner products do.

    Parameters
    ----------
    smoothing
        ν, the distance below which an update counts as being at v.
    iterations
        At most; the algorithm ends when v no longer moves. Guarantees: with attackers of less than half of the weight,
        v stays within a bounded distance of the honest updates. A weight is what a client claims: use
        weighting="uniform" against clients that lie about it.
    """

    smoothing: float = 1e-6
    iterations: int = 100

    def __post_init__(self) -> None:
        require_real("smoothing", self.smoothing, above=0)
        require_count("iterations", self.iterations)

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 1."""
        return 1

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return v, the geometric median of the vectors."""
        products = gram(vectors)
        # Not from the mean, as in the paper: a far-off update would take many iterations to shake off.
        nearness = np.median(np.sqrt(squared_distances(products)), axis=1)
        share = self._share(weights, nearness)
        for _ in range(self.iterations):
            before = share
            share = self._share(weights, distances_from(share, products))
            if np.abs(share - before).max() < 1e-9:
                break
        return combination(vectors, share)

    def _share(self, weights: np.ndarray, distances: np.ndarray) -> np.ndarray:
        """Return each update's share of v, given how far from it they are: they sum to 1."""
        pull = weights / np.maximum(self.smoothing, distances)
        return pull / pull.sum()
