"""FedAdagrad: Adagrad on the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021: Adaptive Federated Optimization, Algorithm 2.
https://arxiv.org/abs/2003.00295
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import Strategy
from ..core.types import Mean, State, Vector
from .moments import no_moments, require_moments, step
from .server_rate import Rate, rate_at, require_rate


@dataclass(frozen=True)
class FedAdagrad(Strategy):
    """v ← v + Δ²; w ← w + η_s·m / (√v + τ), m ← β1·m + (1 − β1)·Δ, Δ the mean delta.

    Parameters
    ----------
    server_lr
        η_s, a number or a schedule over rounds.
    beta_1
        In [0, 1); 0 for m = Δ.
    tau
        τ > 0: the smaller, the more adaptive.
    """

    server_lr: Rate = 0.1
    beta_1: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        require_rate("server_lr", self.server_lr)
        require_moments(self.tau, beta_1=self.beta_1)

    def init(self, params: Vector) -> State:
        """Begin with both moments 0."""
        return no_moments(params)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step of Algorithm 2."""
        rate = rate_at(self.server_lr, state.rounds + 1)
        return step(state, params, mean.delta, lambda v, squared: v + squared, self.beta_1, rate, self.tau)
