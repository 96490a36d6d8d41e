"""FedAdam: Adam on the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021: Adaptive Federated Optimization, Algorithm 2.
https://arxiv.org/abs/2003.00295
Bias correction: Kingma, Ba 2015: Adam: A Method for Stochastic Optimization, the remark before Section 2.1.
https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.parts.algorithms import Strategy
from ..core.types import Mean, State, Vector
from ..core.validation import require
from .moments import no_moments, require_moments, step
from .server_rate import Rate, rate_at, require_rate


@dataclass(frozen=True)
class FedAdam(Strategy):
    """v ← β2·v + (1 − β2)·Δ²; w ← w + η_t·m / (√v + τ), m ← β1·m + (1 − β1)·Δ, Δ the mean delta.

    Parameters
    ----------
    server_lr
        η_s, a number or a schedule over rounds.
    beta_1, beta_2
        In [0, 1).
    tau
        τ > 0: the smaller, the more adaptive.
    bias_correction
        η_t = η_s·√(1 − β2^t)/(1 − β1^t) in round t, 1 for the first, which undoes that m and v begin with 0 (Kingma &
        Ba; Flower does it with t + 1). False: η_t = η_s, Reddi et al.'s Algorithm 2 to the letter.
    """

    server_lr: Rate = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.99
    tau: float = 1e-3
    bias_correction: bool = True

    def __post_init__(self) -> None:
        require_rate("server_lr", self.server_lr)
        require_moments(self.tau, beta_1=self.beta_1, beta_2=self.beta_2)
        correction = self.bias_correction
        require(isinstance(correction, bool), f"expected bias_correction={correction!r} to be True or False")

    def init(self, params: Vector) -> State:
        """Begin with both moments 0."""
        return no_moments(params)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take one step of Algorithm 2."""

        def second_moment(v: np.ndarray, squared: np.ndarray) -> np.ndarray:
            return self.beta_2 * v + (1 - self.beta_2) * squared

        rate = self._corrected_rate(state.rounds + 1)
        return step(state, params, mean.delta, second_moment, self.beta_1, rate, self.tau)

    def _corrected_rate(self, round: int) -> float:
        """Return η_t, the server's rate in `round`, its bias corrected if so asked."""
        rate = rate_at(self.server_lr, round)
        if not self.bias_correction:
            return rate
        return rate * math.sqrt(1 - self.beta_2**round) / (1 - self.beta_1**round)
