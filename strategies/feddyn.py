"""FedDyn: each client's loss is regularised so that its optimum moves to that of all.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021: Federated Learning Based on Dynamic Regularization,
Algorithm 1. https://arxiv.org/abs/2111.04263
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from ..core.parts.algorithms import Correction, Strategy
from ..core.types import NOTHING, Broadcast, Mean, State, Vector
from ..core.validation import require_real


class Drift(NamedTuple):
    """State of FedDyn on the server."""

    h: Vector  # the paper's h/α: −Σ over rounds of participation·mean delta, shape (d,)


@dataclass(frozen=True)
class FedDyn(Strategy, Correction):
    """Clients minimise L_k(θ) − ⟨λ_k, θ⟩ + α/2·‖θ − θ_t‖²; λ_k is client k's gradient where it stopped last time.

    On the client:  λ_k ← λ_k − α·(θ_k − θ_t)
    On the server:  h ← h − α·participation·mean(θ_k − θ_t),  θ ← mean(θ_k) − h/α

    A client keeps λ_k, d numbers, and sends nothing but its delta. α makes the clients' problems; given their answers
    the server's step is the same for every α. So as α → 0 clients do what FedAvg's do, and the server goes further
    than the mean: by the way of all rounds so far.

    The paper's mean is plain: `weighting="uniform"`. With "examples" the loss is that weighted by n_k/n, participation
    is the cohort's share of all examples, and h is the weighted mean of all λ_k.

    Parameters
    ----------
    alpha
        α > 0, in units of the loss's curvature; the paper tries 0.001 to 0.1.
    """

    alpha: float = 0.01

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("alpha", self.alpha, above=0)

    @property
    def proximal(self) -> float:
        """Strength α of the pull towards the global model."""
        return self.alpha

    def offset(self, broadcast: Broadcast, memory: Vector | None) -> Vector:
        """Return −λ_k. memory: λ_k."""
        return np.zeros_like(broadcast.params) if memory is None else -memory

    def finish(
        self, broadcast: Broadcast, memory: Vector | None, delta: Vector, steps: int, learning_rate: float
    ) -> tuple[Vector, Vector, Vector | None]:
        """Return delta as it is; λ_k, the gradient at the optimum of the client's problem, is kept."""
        gradient = delta * np.float32(-self.alpha)
        if memory is not None:
            gradient += memory
        return delta, NOTHING, gradient

    def init(self, params: Vector) -> State:
        """Begin with h = 0."""
        return Drift(np.zeros_like(params))

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Move the mean of the clients' models on by −h/α."""
        h = state.h - np.float32(mean.participation) * mean.delta
        return Drift(h), params + mean.delta - h
