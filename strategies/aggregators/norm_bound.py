"""Norm bounding.

Sun, Kairouz, Suresh, McMahan 2019: Can You Really Backdoor Federated Learning? https://arxiv.org/abs/1911.07963
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.aggregators import BLOCK, WeightedSum
from ...core.bases import Aggregator
from ...core.traits import Trait
from ...core.types import ClientUpdate, Total, Vector
from ...core.validation import require_real

SUM = WeightedSum()


@dataclass(frozen=True)
class NormBound(Aggregator):
    """FedAvg's sum of updates that the server scales down to an L2 norm of at most max_norm; extra on its own.

    An aggregator and not a transform: a transform is the client's own work, and an attacker leaves it out. It needs to
    see each update, but keeps none. Memory: d.

    Parameters
    ----------
    max_norm
        In the unit of a delta's norm. Guarantees: an attacker moves the mean by at most its share of the weight times
        max_norm. A weight is what a client claims: use weighting="uniform" against clients that lie about it.
    """

    max_norm: float

    needs: ClassVar[Trait] = Trait.EACH_UPDATE

    def __post_init__(self) -> None:
        require_real("max_norm", self.max_norm, above=0)

    def zero(self, size: int) -> Total:
        """Return the empty sum over vectors of `size` numbers."""
        return SUM.zero(size)

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Add one bounded update in, in place: the accumulator passed in must not be used again."""
        return SUM.add(
            accumulator, update._replace(delta=self._bounded(update.delta), extra=self._bounded(update.extra))
        )

    def merge(self, one: Total, other: Total) -> Total:
        """Add two sums, in place in `one`."""
        return SUM.merge(one, other)

    def total(self, accumulator: Total) -> Total:
        """Return the accumulator itself: it is the total."""
        return accumulator

    def _bounded(self, vector: Vector) -> Vector:
        norm = l2_norm(vector)
        return vector if norm <= self.max_norm else np.float32(self.max_norm / norm) * vector


def l2_norm(vector: Vector) -> float:
    """Return the L2 norm, in float64: squares of what an attacker sends may not fit float32."""
    blocks = (vector[start : start + BLOCK].astype(np.float64) for start in range(0, len(vector), BLOCK))
    return math.sqrt(sum(float(np.square(block, out=block).sum()) for block in blocks))
