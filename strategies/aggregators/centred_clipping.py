"""Centred clipping.

Karimireddy, He, Jaggi 2021: Learning from History for Byzantine Robust Optimization. https://arxiv.org/abs/2012.10333
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.types import Vector
from ...core.validation import require_count, require_real
from .robust import RobustAggregator, combination, distances_from, gram


@dataclass(frozen=True)
class CentredClipping(RobustAggregator):
    """v ← v + (1/n)·Σ (Δ_k − v)·min(1, clip_radius/‖Δ_k − v‖), `iterations` times from v = 0.

    The paper starts from the aggregate of the round before. An aggregator keeps nothing between rounds, and needs not:
    deltas are measured from the params, the sum of all aggregates so far, and 0 is where the round before ended.

    Parameters
    ----------
    clip_radius
        τ, in the unit of a delta's norm: about how far honest deltas lie from their mean. Guarantees: in an iteration,
        an attacker pulls v by at most clip_radius/n. Each client has one vote, whatever weight it reports.
    """

    clip_radius: float
    iterations: int = 3

    def __post_init__(self) -> None:
        require_real("clip_radius", self.clip_radius, above=0)
        require_count("iterations", self.iterations)

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 1."""
        return 1

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return v, kept as coefficients of the updates until the last step: each iteration costs n², not n·d."""
        products = gram(vectors)
        coefficients = np.zeros(len(vectors))
        for _ in range(self.iterations):
            distances = np.maximum(distances_from(coefficients, products), self.clip_radius)
            pull = self.clip_radius / distances / len(vectors)
            coefficients = coefficients * (1 - pull.sum()) + pull
        return combination(vectors, coefficients)
