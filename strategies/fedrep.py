"""FedRep: a shared representation, and a head of each client's own, trained in turn.

Collins, Hassani, Mokhtari, Shakkottai 2021: Exploiting Shared Representations for Personalized Federated Learning,
Algorithm 1. https://arxiv.org/abs/2102.07078
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import Strategy
from ..core.reading.old_words import taking
from ..core.types import Phase
from ..core.validation import require_count
from .fedavg import FedAvg
from .server_half import ClientHalf, require_server_half


@taking(server_lr="server.server_lr")
@dataclass(frozen=True)
class FedRep(ClientHalf):
    """A client trains its head for head_epochs with the body frozen, then the body as Local says with the head frozen.

    The head is what `personal` names; it stays with the client, and the server averages the bodies like FedAvg. Each
    half begins with the optimizer as it was compiled. With head_epochs=0 heads stay what they were drawn as.

    With another server: `FedRep(server=FedAdam())`; its client half alone: `strategy=FedAdam(), rule=FedRep()`.

    Parameters
    ----------
    head_epochs
        ≥ 0; the paper makes 10, and 1 or 5 for the body.
    server
        What is done with the mean.
    """

    head_epochs: int = 10
    server: Strategy = FedAvg()  # noqa: RUF009  frozen, without state

    def __post_init__(self) -> None:
        require_count("head_epochs", self.head_epochs, at_least=0)
        require_server_half(self, self.server)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The two phases of a client's round: the head, then the body."""
        return Phase(self.head_epochs, "personal"), Phase(None, "shared")
