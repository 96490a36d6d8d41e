"""Asynchronous training, one model at a time.

Xie, Koyejo, Gupta 2019: Asynchronous Federated Optimization. https://arxiv.org/abs/1903.03934
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.parts.algorithms import AsynchronousStrategy
from ..core.types import ClientUpdate, Mean, State, Vector
from ..core.validation import require_count, require_methods, require_real
from .staleness import Polynomial, Staleness


@dataclass(frozen=True)
class FedAsync(AsynchronousStrategy):
    """Asynchronous averaging: w ← (1 − α s(τ)) w + α s(τ) w_k for each model w_k as it arrives.

    The experiment's sampler says how many clients are at work at any time. The paper's proximal term is a rule for
    clients.

    Parameters
    ----------
    mixing
        α in (0, 1].
    staleness
        The function s, with τ = 0 for a model of the round it began in, where the paper counts 1.
    max_staleness
        Older models are thrown away; it bounds what a checkpoint holds to as many params, and one more.
    """

    mixing: float = 0.6
    staleness: Staleness = Polynomial(0.5)  # noqa: RUF009  frozen, without state
    max_staleness: int | None = None

    buffer: ClassVar[int] = 1
    mixes_models: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("mixing", self.mixing, above=0, at_most=1)
        if self.max_staleness is not None:
            require_count("max_staleness", self.max_staleness, at_least=0)
        require_methods("staleness", self.staleness, ("worth",), "Polynomial(0.5)")

    def init(self, params: Vector) -> State:
        """Return no state."""
        return ()

    def receive(self, update: ClientUpdate, staleness: int, base: Vector, params: Vector) -> ClientUpdate:
        """Turn the update into s(τ) (w_k − w), where w_k = base + Δ."""
        return update._replace(delta=self.staleness.worth(staleness) * (update.delta + (base - params)))

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """Take a step of α towards the model."""
        return state, params + self.mixing * mean.delta
