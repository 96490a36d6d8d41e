"""How an update becomes one vector of bounded numbers, and a sum of such vectors a Total again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import ClientError, ConfigError
from ..core.types import ClientUpdate, Shape, Total, Vector, Weighted
from ..core.validation import require, require_real

SATURATED = "saturated"  # the metric that says what share of the clients' numbers lay outside the limits


@dataclass(frozen=True)
class Layout:
    """delta ‖ extra ‖ one mean per metric ‖ the share of saturated numbers, where there are metrics; all in ±limit.

    limit: the largest magnitude kept of a number in delta and extra; measure it, since what lies outside is moved to
    it. metric_limit: the same for metric means, which are scaled to ±limit. What was moved is counted: the last
    coordinate carries its share of the client's numbers, in the open of the sum alone.
    """

    shape: Shape
    metrics: tuple[str, ...]
    limit: float
    metric_limit: float

    def __post_init__(self) -> None:
        require_real("limit", self.limit, above=0)
        require_real("metric_limit", self.metric_limit, above=0)
        names = self.metrics
        require(isinstance(names, tuple), f"expected metrics={names!r} to be a tuple of names, such as ('loss',)")
        require(len(set(names)) == len(names), f"expected the names in metrics={names!r} to be distinct")
        require(SATURATED not in names, f"metrics={names!r} has {SATURATED!r}, which is added by itself")

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.shape.delta + self.shape.extra + (len(self.metrics) + 1 if self.metrics else 0)

    def pack(self, update: ClientUpdate) -> Vector:
        """The update as one vector, float32, shape (size,), every number in ±limit. It may be update.delta itself.

        Errors: ConfigError for a delta or extra of another length, or a metric that the model does not report;
        ClientError for a number that is not finite. An update of weight 0 may have metrics without a mean.
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
        if self.metrics:
            means, moved = self._bounded(self._means(update))
            vector[-len(means) - 1 : -1] = means
            vector[-1] = self._largest * (saturated + moved) / (self.size - 1)
        return vector

    def unpack(self, vector: np.ndarray, weight: float, clients: int) -> Total:
        """The Total of a sum of packed vectors.

        vector: Σ weight·packed over `clients` clients, float64, shape (size,). weight: Σ weight. Each metric comes back
        as Weighted(Σ weight·mean, Σ weight), and with them "saturated", the share of numbers that were moved.
        """
        require(vector.shape == (self.size,), f"expected a sum of shape ({self.size},), got {vector.shape}")
        middle, end = self.shape.delta, self.shape.delta + self.shape.extra
        metrics = {}
        if self.metrics:
            scales = [self.metric_limit / self.limit] * len(self.metrics) + [1 / self.limit]
            for name, value, scale in zip((*self.metrics, SATURATED), vector[end:], scales, strict=True):
                metrics[name] = Weighted(float(value) * scale, float(weight))
        delta, extra = vector[:middle].astype(np.float32), vector[middle:end].astype(np.float32)
        return Total(delta, extra, float(weight), clients, metrics)

    @property
    def _largest(self) -> np.float32:
        """limit as float32, rounded towards zero where it has to be rounded."""
        nearest = np.float32(self.limit)
        return np.nextafter(nearest, np.float32(0)) if float(nearest) > self.limit else nearest

    def _means(self, update: ClientUpdate) -> Vector:
        """Each metric's mean, scaled from ±metric_limit to ±limit."""
        for name in self.metrics:
            if name not in update.metrics:
                known = ", ".join(sorted(update.metrics))
                rest = f"it reports: {known}" if known else "under a privacy plan clients report none; use metrics=()"
                raise ConfigError(f"metrics has {name!r}, which the model does not report; {rest}")
        # Not NaN: what weighs nothing has to add exactly nothing.
        means = [update.metrics[name].mean() if update.weight else 0.0 for name in self.metrics]
        bound = 2 * self.metric_limit  # float32 could overflow for a limit near its largest number; infinity stays
        kept = [min(max(mean, -bound), bound) if np.isfinite(mean) else mean for mean in means]
        return np.array([mean * (self.limit / self.metric_limit) for mean in kept], np.float32)

    def _bounded(self, part: Vector) -> tuple[Vector, int]:
        """part with its numbers moved into ±limit, and how many were; part itself when none was."""
        lowest, highest = part.min(initial=0), part.max(initial=0)  # NaN and infinity reach them
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise ClientError("an update to encode has numbers that are not finite; check the learning rate")
        largest = self._largest
        if -largest <= lowest and highest <= largest:
            return part, 0
        return np.clip(part, -largest, largest), int(np.count_nonzero(np.abs(part) > largest))
