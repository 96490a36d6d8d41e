"""FedProx: clients are held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020: Federated Optimization in Heterogeneous Networks, Algorithm 2.
https://arxiv.org/abs/1812.06127
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.parts.algorithms import ClientRule, Strategy
from ..core.reading.old_words import taking
from ..core.validation import require_real
from .fedavg import FedAvg
from .server_half import ClientHalf, require_server_half


@dataclass(frozen=True)
class Proximal(ClientRule):
    """Clients minimise F_k(w) + μ/2·‖w − w_t‖²: FedProx's client half alone, for `rule=`, with any strategy.

    Parameters
    ----------
    mu
        μ ≥ 0; at 0 clients train as they do without it, bit for bit.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        require_real("mu", self.mu, at_least=0)

    @property
    def proximal(self) -> float:
        """Strength μ of the pull towards the global model."""
        return self.mu


@taking(server_lr="server.server_lr")
@dataclass(frozen=True)
class FedProx(ClientHalf):
    """FedAvg over clients that minimise F_k(w) + μ/2·‖w − w_t‖². The server's own algorithm when mu is 0, bit for bit.

    The paper draws the cohort in proportion to n_k and takes a plain mean; as in FedAvg, `sampler` and `weighting`
    decide here. Any optimizer of the clients will do; with η their learning rate, keep η·μ well below 1.

    Parameters
    ----------
    mu
        μ ≥ 0; the paper tries 0.001 to 1.
    server
        What is done with the mean.
    """

    mu: float = 0.01
    server: Strategy = FedAvg()  # noqa: RUF009  frozen, without state

    def __post_init__(self) -> None:
        require_real("mu", self.mu, at_least=0)
        require_server_half(self, self.server)

    @property
    def proximal(self) -> float:
        """Strength μ of the pull towards the global model."""
        return self.mu
