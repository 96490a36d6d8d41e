"""Fair weighting: q-FedAvg.

Li, Sanjabi, Beirami, Smith 2020: Fair Resource Allocation in Federated Learning, Algorithm 2.
https://arxiv.org/abs/1905.10497
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.aggregators import WeightedSum
from ...core.bases import Aggregator
from ...core.errors import ConfigError
from ...core.traits import Trait
from ...core.types import ClientUpdate, Total, Weighted, loss_of
from ...core.validation import require_real
from .norm_bound import l2_norm

SUM = WeightedSum()
SMALLEST = 1e-10  # least loss that counts, as in Flower: a power of 0 may be infinite


@dataclass(frozen=True)
class QFair(Aggregator):
    """Σ F_k^q·Δ_k over Σ (F_k^q + q·F_k^(q−1)·L·‖Δ_k‖²): clients with a larger loss F_k have a larger say.

    Both sums are weighted as the experiment asks, so that q = 0 equals FedAvg, bit for bit. With FedAvg(server_lr=1)
    it is q-FedAvg, but for F_k: the client's mean loss while it trained, as Flower's clients report it; the paper's is
    the loss of the params that the client received.

    Parameters
    ----------
    q
        ≥ 0; the larger, the more uniform the clients' losses.
    learning_rate
        1/L, of the clients.
    loss
        The name of the metric that holds F_k. Streaming, but it needs each client's loss. Memory: d.

    Raises
    ------
    ConfigError
        For an update without that metric, or with a negative loss.
    """

    q: float
    learning_rate: float
    loss: str = "loss"

    def __post_init__(self) -> None:
        require_real("q", self.q, at_least=0)
        require_real("learning_rate", self.learning_rate, above=0)

    @property
    def needs(self) -> Trait:
        """Each update; and each client's loss unless q is 0."""
        return Trait.EACH_UPDATE | Trait.EACH_LOSS if self.q else Trait.EACH_UPDATE

    def zero(self, size: int) -> Total:
        """Return the empty sum over vectors of `size` numbers."""
        return SUM.zero(size)

    def add(self, accumulator: Total, update: ClientUpdate) -> Total:
        """Add one update in, in place: the accumulator passed in must not be used again."""
        if not self.q:
            return SUM.add(accumulator, update)
        loss = self._loss_of(update)
        scaled = update.weight * loss**self.q
        curvature = self.q * l2_norm(update.delta) ** 2 / self.learning_rate / loss
        total = SUM.add(accumulator, update._replace(weight=scaled))
        return total._replace(weight=total.weight + scaled * curvature)

    def merge(self, one: Total, other: Total) -> Total:
        """Add two sums, in place in `one`."""
        return SUM.merge(one, other)

    def total(self, accumulator: Total) -> Total:
        """Return the accumulator itself: it is the total."""
        return accumulator

    def _loss_of(self, update: ClientUpdate) -> float:
        """Return F_k, the client's loss, at least SMALLEST."""
        metric = update.metrics.get(self.loss)
        loss = (
            loss_of(update.metrics) if self.loss == "loss" else metric.mean() if isinstance(metric, Weighted) else None
        )
        if loss is None:
            means = sorted(name for name, value in update.metrics.items() if isinstance(value, Weighted))
            raise ConfigError(f"{self!r} needs a mean {self.loss!r}; the clients report {means}")
        if not loss >= 0:
            raise ConfigError(f"{self!r} needs losses of at least 0, got {loss:g}")
        return max(loss, SMALLEST)
