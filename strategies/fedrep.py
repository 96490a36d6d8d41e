"""FedRep: a shared representation, and a head of each client's own, trained in turn.

Collins, Hassani, Mokhtari, Shakkottai 2021: Exploiting Shared Representations for Personalized Federated Learning,
Algorithm 1. https://arxiv.org/abs/2102.07078
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.phases import Phase
from ..core.types import NOTHING, Mean, State, Vector
from ..core.validation import require_count
from .fedavg import FedAvg
from .server_rate import Rate, require_rate


@dataclass(frozen=True)
class FedRep:
    """A client trains its head for head_epochs with the body frozen, then the body as Local says with the head frozen.

    The head is what `personal` names; it stays with the client, and the server averages the bodies like FedAvg. Each
    half begins with the optimizer as it was compiled. With head_epochs=0 heads stay what they were drawn as.

    With another strategy it is its client half alone: `strategy=FedAdam(), rule=FedRep()`.

    head_epochs: ≥ 0; the paper makes 10, and 1 or 5 for the body. server_lr: a number or a schedule over rounds.
    """

    head_epochs: int = 10
    server_lr: Rate = 1.0

    proximal: ClassVar[float] = 0.0
    remembers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_count("head_epochs", self.head_epochs, at_least=0)
        require_rate("server_lr", self.server_lr)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The head, then the body."""
        return Phase(self.head_epochs, "personal"), Phase(None, "shared")

    def init(self, params: Vector) -> State:
        """FedAvg's."""
        return FedAvg(self.server_lr).init(params)

    def broadcast(self, state: State) -> Vector:
        """Nothing besides params."""
        return NOTHING

    def update(self, state: State, params: Vector, mean: Mean) -> tuple[State, Vector]:
        """FedAvg's."""
        return FedAvg(self.server_lr).update(state, params, mean)
