"""The coordinate-wise median and trimmed mean.

Yin, Chen, Ramchandran, Bartlett 2018: Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates.
https://arxiv.org/abs/1803.01498
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...core.traits import Trait
from ...core.types import Vector
from ...core.validation import require, require_real
from .robust import RobustAggregator, sorted_columns


@dataclass(frozen=True)
class Median(RobustAggregator):
    """The median, in each coordinate, of what the clients sent; the mean of the middle two for an even number.

    Each client has one vote, whatever weight it reports. Guarantees: with fewer than half of the clients attacking,
    every coordinate lies between two honest ones. Equal sets of updates give equal bits, in any order.
    """

    hides: ClassVar[Trait] = Trait.PLAIN_SUM | Trait.WHOLE_UPDATE

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 1."""
        return 1

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return the median of each coordinate."""
        middle = slice((len(vectors) - 1) // 2, len(vectors) // 2 + 1)
        centre = np.empty(len(vectors[0]), np.float32)
        for block, columns in sorted_columns(vectors):
            centre[block] = columns[:, middle].mean(axis=1)
        return centre


@dataclass(frozen=True)
class TrimmedMean(RobustAggregator):
    """The mean, in each coordinate, of what is left without the ⌊trim·n⌋ smallest and as many largest.

    Parameters
    ----------
    trim
        β in [0, 1/2), at least the fraction of clients that attack. With 0 it is FedAvg under weighting="uniform": each
        client has one vote, since a weight is what a client claims. Guarantees: with at most ⌊trim·n⌋ attackers, every
        coordinate lies between two honest ones. Equal sets of updates give equal bits, in any order.
    """

    trim: float

    hides: ClassVar[Trait] = Trait.PLAIN_SUM | Trait.WHOLE_UPDATE

    def __post_init__(self) -> None:
        require_real("trim", self.trim, at_least=0)
        require(self.trim < 0.5, f"expected trim={self.trim!r} < 0.5: it is cut off at both ends")

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs: 1."""
        return 1

    def centre(self, vectors: Sequence[Vector], weights: np.ndarray) -> Vector:
        """Return the trimmed mean of each coordinate."""
        # 0.29·100 is 28.999…96 in floating point, and one attacker too few would be cut off.
        cut = min(int(self.trim * len(vectors) + 1e-9), (len(vectors) - 1) // 2)
        centre = np.empty(len(vectors[0]), np.float32)
        for block, columns in sorted_columns(vectors):
            centre[block] = columns[:, cut : len(vectors) - cut].mean(axis=1, dtype=np.float64)
        return centre
