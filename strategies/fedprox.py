"""FedProx: clients are held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020: Federated Optimization in Heterogeneous Networks, Algorithm 2.
https://arxiv.org/abs/1812.06127
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.types import NOTHING, Mean, State, Vector
from ..core.validation import require_real
from .fedavg import FedAvg
from .server_rate import Rate, require_rate


@dataclass(frozen=True)
class Proximal:
    """Clients minimise F_k(w) + μ/2·‖w − w_t‖²: FedProx's client half alone, for `rule=`, with any strategy.

    mu: μ ≥ 0; at 0 clients train as they do without it, bit for bit.
    """

    mu: float = 0.01

    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("mu", self.mu, at_least=0)

    @property
    def proximal(self) -> float:
        """μ."""
        return self.mu


@dataclass(frozen=True)
class FedProx:
    """FedAvg over clients that minimise F_k(w) + μ/2·‖w − w_t‖². FedAvg when mu is 0, bit for bit.

    The paper draws the cohort in proportion to n_k and takes a plain mean; as in FedAvg, `sampler` and `weighting`
    decide here. Any optimizer of the clients will do; with η their learning rate, keep η·μ well below 1.

    mu: μ ≥ 0; the paper tries 0.001 to 1. server_lr: a number or a schedule over rounds.
    """

    mu: float = 0.01
    server_lr: Rate = 1.0

    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("mu", self.mu, at_least=0)
        require_rate("server_lr", self.server_lr)

    @property
    def proximal(self) -> float:
        """μ."""
        return self.mu

    def init(self, params: Vector) -> State:
        """FedAvg's."""
        return FedAvg(self.server_lr).init(params)

    def broadcast(self, state: State) -> Vector:
        """Nothing besides params."""
        return NOTHING

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """FedAvg's."""
        return FedAvg(self.server_lr).update(state, params, mean)
