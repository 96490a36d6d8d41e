"""Agnostic federated learning: the clients, or domains, that lose most have the largest say.

Mohri, Sivek, Suresh 2019: Agnostic Federated Learning, https://arxiv.org/abs/1902.00146; with cohorts, the projected
step of Deng, Kamani, Mahdavi 2020: Distributionally Robust Federated Averaging, https://arxiv.org/abs/2102.12660
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from ..core.bases import Reweighting
from ..core.errors import ConfigError
from ..core.types import State
from ..core.validation import require, require_real


class Mixture(NamedTuple):
    """State of Agnostic, which the server keeps: the mixture of domains."""

    first: np.ndarray  # λ before the first round: float64, shape (domains,), sum 1
    shares: np.ndarray  # λ now: float64, shape (domains,), sum 1


@dataclass(frozen=True, eq=False)
class Agnostic(Reweighting):
    """The model for the worst mixture of domains: min over w, max over λ on the simplex, of Σ λ_d·F_d(w).

    As `reweighting`: w's step is the strategy's, with each client's weight times λ_d/p_d, p_d its domain's share of all
    weight at first. Then λ climbs along the losses that the cohort reported. With step 0 nothing is reweighted, bit for
    bit. It works with any strategy, and any aggregator that counts weights: Median and Krum give every client one vote.

    method: how λ climbs. "projected": λ ← Π(λ + step·v), Π to the nearest point of the simplex, after both papers;
    "multiplicative": λ_d ← λ_d·exp(step·v_d) over their sum, which leaves no domain without any say. v_d is domain d's
    mean loss times domains/domains heard, 0 if it was not heard: what v would be with everyone heard, on average. A
    client's loss is the mean over its training in the round; the papers' is that of the params it received.
    least: of its share at first, that a domain keeps. Above 0 no cohort is without any weight.
    domains: each client's domain, integers ≥ 0, shape (clients,); None: each client is one.

    Parameters
    ----------
    step
        ≥ 0, in units of 1/loss. Memory: two numbers per domain.
    """

    step: float = 0.01
    method: Literal["projected", "multiplicative"] = "projected"
    least: float = 0.01
    domains: np.ndarray | Sequence[int] | None = field(default=None)

    def __post_init__(self) -> None:
        require_real("step", self.step, at_least=0)
        require_real("least", self.least, above=0, at_most=1)
        methods = ("projected", "multiplicative")
        require(self.method in methods, f"expected method={self.method!r} to be one of {', '.join(methods)}")
        if self.domains is not None:
            domains = np.array(self.domains)
            is_valid = domains.ndim == 1 and domains.size and domains.dtype.kind in "iu" and domains.min() >= 0
            require(bool(is_valid), "expected domains to be one integer ≥ 0 for each client")
            domains.flags.writeable = False
            object.__setattr__(self, "domains", domains)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Agnostic):
            return NotImplemented
        mine, others = self._settings(), other._settings()
        return mine == others and np.array_equal(self.domains, other.domains)  # type: ignore[arg-type]

    def __hash__(self) -> int:
        return hash(self._settings())

    def init(self, sizes: np.ndarray) -> State:
        """Begin with λ = p. Errors: ConfigError for domains of another number of clients."""
        own = self._domains(len(sizes))
        first = np.bincount(own, weights=sizes, minlength=int(own.max()) + 1)
        first = first / first.sum()
        return Mixture(first, first.copy())

    def factors(self, state: Mixture, clients: Sequence[int]) -> np.ndarray:
        """Return λ_d/p_d of each client's domain, and no less than `least`."""
        numbers = np.asarray(clients, np.int64)
        places = numbers if self.domains is None else np.asarray(self.domains)[numbers]
        first = state.first[places]
        ratio = np.divide(state.shares[places], first, out=np.ones(len(places)), where=first > 0)
        return ratio + self.least * (1 - ratio)  # exactly 1 where the ratio is

    def heard(self, state: Mixture, losses: Mapping[int, float]) -> Mixture:
        """Move λ by one step. Losses that are not finite are left out."""
        finite = {client: loss for client, loss in losses.items() if np.isfinite(loss)}
        if not self.step or not finite:
            return state
        places = self._domains(None)[list(finite)] if self.domains is not None else np.array(list(finite))
        count, domains = len(state.shares), np.count_nonzero(state.first)
        sums = np.bincount(places, weights=list(finite.values()), minlength=count)
        heard = np.bincount(places, minlength=count)
        climb = np.divide(sums, heard, out=np.zeros(count), where=heard > 0) * (domains / np.count_nonzero(heard))
        if self.method == "projected":
            return state._replace(shares=projected(state.shares + self.step * climb))
        exponents = self.step * climb
        grown = state.shares * np.exp(exponents - exponents.max())
        return state._replace(shares=grown / grown.sum())

    def _settings(self) -> tuple:
        return self.step, self.method, self.least

    def _domains(self, clients: int | None) -> np.ndarray:
        """Return each client's domain. clients: how many there must be, None for any."""
        if self.domains is None:
            return np.arange(clients or 0)
        if clients is not None and len(self.domains) != clients:
            raise ConfigError(f"expected domains of {clients} clients, got {len(self.domains)}")
        return np.asarray(self.domains)


def projected(vector: np.ndarray) -> np.ndarray:
    """Return the nearest point, in L2, with numbers ≥ 0 that sum to 1.

    Source: Held, Wolfe, Crowder 1974; Duchi et al. 2008, https://doi.org/10.1145/1390156.1390191, figure 1.
    """
    falling = np.sort(vector)[::-1]
    excess = np.cumsum(falling) - 1
    kept = np.flatnonzero(falling * np.arange(1, len(vector) + 1) > excess)[-1]
    return np.maximum(vector - excess[kept] / (kept + 1), 0)
