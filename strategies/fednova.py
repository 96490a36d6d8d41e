"""FedNova: clients that take different numbers of steps count alike.

Wang, Liu, Liang, Joshi, Poor 2020: Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization, equation 8 and section 4. https://arxiv.org/abs/2007.07481
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.parts.algorithms import Correction, Strategy
from ..core.types import NOTHING, Broadcast, Mean, State, Vector
from ..core.validation import fields_of, require, require_real
from .server_rate import Rate, rate_at, require_rate


class SlowMomentum(NamedTuple):
    """State of FedNova on the server."""

    rounds: int  # number of rounds done so far
    v: Vector  # Σ server_momentum^age · step, shape (d,); empty without momentum


@dataclass(frozen=True)
class FedNova(Strategy, Correction):
    """x ← x + τ_eff·Σ p_i·Δ_i/‖a_i‖₁ with τ_eff = Σ p_i·‖a_i‖₁; FedAvg, to rounding, when all steps are alike.

    a_i holds how often each of a client's gradients enters its Δ_i = −η·G_i·a_i: all 1 for SGD, whose ‖a_i‖₁ is the
    number of steps; more with momentum, less with a proximal term. Each client sends Δ_i/‖a_i‖₁ and ‖a_i‖₁. So a
    client with more steps (more examples, more epochs) no longer pulls x to its own optimum: for small η, x tends to
    that of Σ p_i·F_i, p_i its weight.

    ‖a_i‖₁, often the largest number of an update, counts in its norm: clipping leaves little of the delta beside it.
    Statistics (BatchNorm) are no sums of gradients: clients send their deltas as they are.

    Parameters
    ----------
    momentum
        β of the clients' SGD, in [0, 1); the model's optimizer must have the same, without Nesterov's variant.
    mu
        A proximal term μ/2·‖x − x_t‖² in the clients' losses.
    server_lr
        A number or a schedule over rounds.
    server_momentum
        β in v ← β·v + step, x ← x + server_lr·v; the paper's slow momentum.
    """

    momentum: float = 0.0
    mu: float = 0.0
    server_lr: Rate = 1.0
    server_momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, value in fields_of(self, "momentum", "server_momentum").items():
            require_real(name, value, at_least=0)
            require(value < 1, f"expected {name}={value!r} < 1")
        require_real("mu", self.mu, at_least=0)
        require_rate("server_lr", self.server_lr)

    @property
    def proximal(self) -> float:
        """Strength μ of the pull towards the global model."""
        return self.mu

    @property
    def sgd_momentum(self) -> float:
        """Momentum of the clients' optimizer."""
        return self.momentum

    def extra_size(self, size: int) -> int:
        """Return 1, the length of ‖a_i‖₁."""
        return 1

    def finish(
        self, broadcast: Broadcast, memory: Vector | None, delta: Vector, steps: int, learning_rate: float
    ) -> tuple[Vector, Vector, Vector | None]:
        """Return Δ_i/‖a_i‖₁ and ‖a_i‖₁; a client without a step sends zeros."""
        norm = normaliser(steps, self.momentum, learning_rate * self.mu)
        scaled = delta * np.float32(1 / norm) if norm else delta
        return scaled, np.full(1, norm, np.float32), None

    def init(self, params: Vector) -> State:
        """Begin without momentum."""
        return SlowMomentum(0, np.zeros_like(params) if self.server_momentum else NOTHING)

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take a step of τ_eff along the mean normalised delta."""
        rounds = state.rounds + 1
        step = mean.extra[0] * mean.delta
        if self.server_momentum:
            step += self.server_momentum * state.v
        v = step if self.server_momentum else NOTHING
        return SlowMomentum(rounds, v), params + rate_at(self.server_lr, rounds) * step


def normaliser(steps: int, momentum: float, shrinkage: float) -> float:
    """Compute ‖a_i‖₁: how far, in units of η, `steps` steps along gradients of 1 lead.

    shrinkage: η·μ. Without momentum (1 − (1 − ημ)^τ)/(ημ), or τ for μ = 0; with it the paper's (section 4) for μ = 0.
    """
    if not momentum and not shrinkage:
        return float(steps)
    travelled = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - shrinkage * travelled
        travelled += velocity
    return travelled
