"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017: Communication-Efficient Learning of Deep Networks from
Decentralized Data. https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import Strategy
from ..core.types import Mean, State, Vector
from ..core.validation import lacking
from .server_rate import Rate, rate_at, require_rate


@dataclass(frozen=True)
class FedAvg(Strategy):
    """w ← w + η_s · Σ (n_k/n) (w_k − w): the weighted mean of the clients' models when server_lr is 1.

    Parameters
    ----------
    server_lr
        η_s, a number or a schedule over rounds.
    """

    server_lr: Rate = 1.0

    def __post_init__(self) -> None:
        require_rate("server_lr", self.server_lr)

    def init(self, params: Vector) -> State:
        """Return no state; the number of rounds done for a schedule."""
        return () if lacking(self.server_lr, ("at",)) else 0

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step along the mean delta."""
        round = 1 if state == () else state + 1
        step = rate_at(self.server_lr, round) * mean.delta
        step += params  # in the step's own memory: with a large model, this is the most that a server holds
        return state if state == () else round, step
