"""Rounds of a fixed length, in which late updates count for less instead of not at all.

Between synchronous rounds with a deadline (Bonawitz et al. 2019, https://arxiv.org/abs/1902.01046) and FedBuff, whose
mean this is.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import AsynchronousStrategy, Strategy
from ..core.types import ClientUpdate, Mean, State, Vector
from ..core.validation import require_real
from .fedavg import FedAvg
from .fedbuff import FedBuff
from .staleness import Polynomial, Staleness


@dataclass(frozen=True)
class SemiSynchronous(AsynchronousStrategy):
    """Rounds of round_seconds on the virtual clock, in which late updates count for less.

    When a round begins, clients begin until the sampler's number of them is at work, the late among them. It ends after
    round_seconds, or when all are in: w ← server(w, 1/n Σ s(τ_k) Δ_k) over the n that came.

    Parameters
    ----------
    round_seconds
        A round in which nothing arrives goes on for another such time. With nobody late this is the server's own
        algorithm.
    server, staleness, max_staleness
        As for FedBuff.
    """

    round_seconds: float = 60.0
    server: Strategy = FedAvg()  # noqa: RUF009  frozen, without state
    staleness: Staleness = Polynomial(0.5)  # noqa: RUF009
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        require_real("round_seconds", self.round_seconds, above=0)
        self._buffered()

    def init(self, params: Vector) -> State:
        """Return the server's state."""
        return self.server.init(params)

    def broadcast(self, state: State) -> Vector:
        """Return what the server sends."""
        return self.server.broadcast(state)

    def receive(self, update: ClientUpdate, staleness: int, base: Vector, params: Vector) -> ClientUpdate:
        """Turn the update into s(τ) Δ, with the weight it had."""
        return self._buffered().receive(update, staleness, base, params)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take the server's step."""
        return self.server.update(state, params, mean)

    def _buffered(self) -> FedBuff:
        return FedBuff(1, self.server, self.staleness, self.max_staleness)
