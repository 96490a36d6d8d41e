"""Ditto: beside the model that all train, each client trains one of its own, held near it.

Li, Hu, Beirami, Smith 2021: Ditto: Fair and Robust Federated Learning Through Personalization, Algorithm 1.
https://arxiv.org/abs/2012.04221
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core.parts.algorithms import Strategy
from ..core.reading.old_words import taking
from ..core.types import OwnModel
from ..core.validation import require_count, require_real
from .fedavg import FedAvg
from .server_half import ClientHalf, require_server_half


@taking(server_lr="server.server_lr")
@dataclass(frozen=True)
class Ditto(ClientHalf):
    """FedAvg for w; and in each of its rounds a client steps on v_k along ∇F_k(v_k) + λ·(v_k − w_t).

    w is what it would be without: FedAvg's, bit for bit. v_k, d numbers, is the client's memory and never leaves it; it
    begins as the w_t of the client's first round. Federated evaluation has both: validation_… is of w,
    validation_personal_… of v_k, or of w for clients that have not taken part yet. λ = 0 is local training alone; as λ
    grows, v_k tends to w. With η the clients' learning rate, keep η·λ well below 1.

    With another server: `Ditto(server=FedAdam())`; its client half alone: `strategy=FedAdam(), rule=Ditto()`. A round
    costs a client as many passes again as v_k has epochs.

    Parameters
    ----------
    lam
        λ ≥ 0; the paper tries 0.05 to 2.
    epochs
        For v_k; None: as many as for w.
    server
        What is done with the mean.
    """

    lam: float = 0.1
    epochs: int | None = None
    server: Strategy = FedAvg()  # noqa: RUF009  frozen, without state

    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_real("lam", self.lam, at_least=0)
        if self.epochs is not None:
            require_count("epochs", self.epochs)
        require_server_half(self, self.server)

    @property
    def own(self) -> OwnModel:
        """The second model v_k of each client."""
        return OwnModel(self.epochs, self.lam)
