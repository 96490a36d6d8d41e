"""Layout of an update as one vector of bounded numbers, and a Total made of a sum of such vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import ClientError
from ..core.types import ClientUpdate, Shape, Total, Vector, Weighted
from ..core.validation import require
from .secagg.encoding import require_limit
from .states import SATURATED, States


@dataclass(frozen=True)
class Layout:
    """Layout of a vector: delta ‖ extra ‖ does it count ‖ share of saturated numbers; in ±limit.

    Parameters
    ----------
    limit
        The largest magnitude kept of a number in delta and extra; measure it, since what lies outside is moved to it.
        What was moved is counted: the last coordinate carries its share of the client's numbers, in the open of the sum
        alone. There is none without metrics.
    counts
        Whether a coordinate says if the update counts, limit for one of weight 1 and 0 for one of weight 0. It is for
        sums in which all weigh 1; where weights travel, a weight of 0 says so itself.
    states
        The metrics, whose states travel beside the vector; see `states`.
    """

    shape: Shape
    limit: float
    counts: bool = False
    states: States = ()

    def __post_init__(self) -> None:
        require_limit("limit", self.limit)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.shape.delta + self.shape.extra + self.counts + self._tells_saturated

    @property
    def _tells_saturated(self) -> bool:
        """Return whether the last coordinate says what share of the numbers was moved."""
        return bool(self.states)

    def pack(self, update: ClientUpdate) -> Vector:
        """Pack the update into one vector, float32, shape (size,), every number in ±limit.

        It may be update.delta itself. Errors: ConfigError for a delta or extra of another length; ClientError for a
        number that is not finite.
        """
        lengths = Shape(len(update.delta), len(update.extra))
        require(lengths == self.shape, f"expected an update of {self.shape}, got {lengths}")
        if lengths.delta == self.size:
            return self._bounded(update.delta)[0]
        vector = np.empty(self.size, np.float32)
        saturated = 0
        for start, part in ((0, update.delta), (lengths.delta, update.extra)):
            vector[start : start + len(part)], moved = self._bounded(part)
            saturated += moved
        if self.counts:
            vector[sum(lengths)] = self._largest if update.weight else 0
        if self._tells_saturated:
            vector[-1] = self._largest * saturated / max(sum(lengths), 1)
        return vector

    def unpack(self, vector: np.ndarray, weight: float, clients: int) -> Total:
        """Return the Total of a sum of packed vectors.

        vector: Σ weight·packed over `clients` clients, float64, shape (size,). weight: Σ weight, where it travels; the
        vector itself says how many count. Where metrics travel, "saturated" is the share of numbers that were moved.
        """
        require(vector.shape == (self.size,), f"expected a sum of shape ({self.size},), got {vector.shape}")
        middle, end = self.shape.delta, self.shape.delta + self.shape.extra
        metrics = {}
        if self.counts:
            weight = round(float(vector[end]) / self.limit)
        if self._tells_saturated:
            metrics[SATURATED] = Weighted(float(vector[-1]) * (1 / self.limit), float(weight))
        delta, extra = vector[:middle].astype(np.float32), vector[middle:end].astype(np.float32)
        return Total(delta, extra, float(weight), clients, metrics)

    @property
    def _largest(self) -> np.float32:
        """Limit as float32, rounded towards zero where it has to be rounded."""
        nearest = np.float32(self.limit)
        return np.nextafter(nearest, np.float32(0)) if float(nearest) > self.limit else nearest

    def _bounded(self, part: Vector) -> tuple[Vector, int]:
        """Move a part's numbers into ±limit and count those that moved; it is part itself when none did."""
        lowest, highest = part.min(initial=0), part.max(initial=0)  # NaN and infinity reach them
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise ClientError("an update to encode has numbers that are not finite; check the learning rate")
        largest = self._largest
        if -largest <= lowest and highest <= largest:
            return part, 0
        return np.clip(part, -largest, largest), int(np.count_nonzero(np.abs(part) > largest))
