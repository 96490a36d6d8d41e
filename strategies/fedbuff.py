"""Asynchronous training with a buffer.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022: Federated Learning with Buffered Asynchronous Aggregation.
https://arxiv.org/abs/2106.06639
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import AsynchronousStrategy, Strategy
from ..core.types import ClientUpdate, Mean, State, Vector
from ..core.validation import require_count, require_methods
from .fedavg import FedAvg
from .server_half import require_server_half
from .staleness import Polynomial, Staleness


@dataclass(frozen=True)
class FedBuff(AsynchronousStrategy):
    """Buffered asynchronous averaging: as soon as K updates are in, w ← server(w, 1/K Σ s(τ_k) Δ_k).

    The experiment's sampler says how many clients are at work at any time; whoever is done makes room for another.

    The mean is weighted by the clients' numbers of examples unless weighting="uniform", which is the paper's.

    Parameters
    ----------
    buffer
        K. With as many clients at work, and none slower than another, this is the server's own algorithm.
    server
        What is done with the mean; FedAvg(server_lr=η_g) is the paper's.
    staleness
        The function s; the paper's is 1/√(1 + τ). The mean's divisor does not shrink with it: stale updates count less.
    max_staleness
        Older updates are thrown away; it bounds what a checkpoint holds to as many params, and one more.

    Raises
    ------
    IncompatibleError
        For a server that brings a rule for clients, or is asynchronous itself.
    """

    buffer: int = 10
    server: Strategy = FedAvg()  # noqa: RUF009  frozen, without state
    staleness: Staleness = Polynomial(0.5)  # noqa: RUF009
    max_staleness: int | None = None

    def __post_init__(self) -> None:
        require_count("buffer", self.buffer)
        if self.max_staleness is not None:
            require_count("max_staleness", self.max_staleness, at_least=0)
        require_methods("staleness", self.staleness, ("worth",), "Polynomial(0.5)")
        require_server_half(self, self.server)

    def init(self, params: Vector) -> State:
        """Return the server's state."""
        return self.server.init(params)

    def broadcast(self, state: State) -> Vector:
        """Return what the server sends."""
        return self.server.broadcast(state)

    def receive(self, update: ClientUpdate, staleness: int, base: Vector, params: Vector) -> ClientUpdate:
        """Turn the update into s(τ) Δ, with the weight it had."""
        worth = self.staleness.worth(staleness)
        return update if worth == 1.0 else update._replace(delta=update.delta * worth, extra=update.extra * worth)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take the server's step."""
        return self.server.update(state, params, mean)
