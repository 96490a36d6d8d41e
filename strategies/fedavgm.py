"""Federated averaging with server momentum.

Hsu, Qi, Brown 2019: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.
https://arxiv.org/abs/1909.06335
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.parts.algorithms import Strategy
from ..core.types import Mean, State, Vector
from ..core.validation import require, require_real
from .server_rate import Rate, rate_at, require_rate


class Momentum(NamedTuple):
    """State of FedAvgM on the server."""

    rounds: int  # number of rounds done so far
    v: Vector  # Σ momentum^age · mean delta, shape (d,)


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """v ← β·v + Δ; w ← w + η_s·v, Δ the mean delta. FedAvg when momentum is 0.

    A constant Δ moves w by up to η_s/(1 − β) times as much as FedAvg does; the paper lowers server_lr as β grows.

    Parameters
    ----------
    server_lr
        η_s, a number or a schedule over rounds.
    momentum
        β, in [0, 1).
    """

    server_lr: Rate = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        require_rate("server_lr", self.server_lr)
        require_real("momentum", self.momentum, at_least=0)
        require(self.momentum < 1, f"expected momentum={self.momentum!r} < 1")

    def init(self, params: Vector) -> State:
        """Begin without momentum."""
        return Momentum(0, np.zeros_like(params))

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step along the accumulated deltas."""
        rounds = state.rounds + 1
        v = self.momentum * state.v
        v += mean.delta
        return Momentum(rounds, v), params + rate_at(self.server_lr, rounds) * v
