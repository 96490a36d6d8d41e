"""Fair weighting: q-FedAvg.

Li, Sanjabi, Beirami, Smith 2020: Fair Resource Allocation in Federated Learning, Algorithm 2.
https://arxiv.org/abs/1905.10497
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core.errors import ConfigError
from ...core.folds import WeightedSum
from ...core.types import ClientUpdate, Total
from ...core.validation import require_real
from .norm_bound import l2_norm

SUM = WeightedSum()
SMALLEST = 1e-10  # loss, as in Flower: a power of 0 may be infinite


@dataclass(frozen=True)
class QFair:
    """Σ F_k^q·Δ_k over Σ (F_k^q + q·F_k^(q−1)·L·‖Δ_k‖²): clients with a larger loss F_k have a larger say.

    Both sums are weighted as the experiment asks, so that q = 0 equals FedAvg, bit for bit. With FedAvg(server_lr=1)
    it is q-FedAvg, but for F_k: the client's mean loss while it trained, as Flower's clients report it; the paper's is
    the loss of the params that the client received.

    q: ≥ 0; the larger, the more uniform the clients' losses. learning_rate: 1/L, of the clients.
    loss: the name of the metric that holds F_k. Streaming, but it needs each client's loss. Memory: d.
    Errors: ConfigError for an update without that metric, or with a negative loss.
    """

    q: float
    learning_rate: float
    loss: str = "loss"
    needs_individual_updates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("q", self.q, at_least=0)
        require_real("learning_rate", self.learning_rate, above=0)

    @property
    def min_clients(self) -> int:
        """1."""
        return 1

    def zero(self, size: int) -> Total:
        """The empty sum over vectors of `size` numbers."""
        return SUM.zero(size)

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Fold one update in, in place: the accumulator passed in must not be used again."""
        if not self.q:
            return SUM.add(accumulator, update)
        loss = self._loss_of(update)
        scaled = update.weight * loss**self.q
        curvature = self.q * l2_norm(update.delta) ** 2 / self.learning_rate / loss
        total = SUM.add(accumulator, update._replace(weight=scaled))
        return total._replace(weight=total.weight + scaled * curvature)

    def merge(self, one: Total, other: Total) -> Total:
        """The sum of two sums, in place in `one`."""
        return SUM.merge(one, other)

    def total(self, accumulator: Total) -> Total:
        """The accumulator is the total."""
        return accumulator

    def _loss_of(self, update: ClientUpdate) -> float:
        """F_k."""
        if self.loss not in update.metrics:
            raise ConfigError(f"{self!r} needs a metric {self.loss!r}; the clients report {sorted(update.metrics)}")
        loss = update.metrics[self.loss].mean()
        if not loss >= 0:
            raise ConfigError(f"{self!r} needs losses of at least 0, got {loss:g}")
        return max(loss, SMALLEST)
