"""Federated averaging.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017: Communication-Efficient Learning of Deep Networks from
Decentralized Data. https://arxiv.org/abs/1602.05629
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.types import NOTHING, Mean, State, Vector
from ..core.validation import require_real


@dataclass(frozen=True)
class FedAvg:
    """w ← w + η_s · Σ (n_k/n) (w_k − w): the weighted mean of the clients' models when server_lr is 1."""

    server_lr: float = 1.0

    def __post_init__(self) -> None:
        require_real("server_lr", self.server_lr, above=0)

    def init(self, params: Vector) -> State:
        """No state."""
        return ()

    def broadcast(self, state: State) -> Vector:
        """Nothing besides params."""
        return NOTHING

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """One step along the mean delta."""
        return state, params + self.server_lr * mean.delta
