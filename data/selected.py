"""Selected: some of a population's clients, by number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.bases import Population
from ..core.examples import Examples
from ..core.reading.adapted import adapted
from ..core.validation import require
from .populations import require_client
from .values import hash_fields, same_fields


@dataclass(frozen=True, eq=False, repr=False)
class Selected(Population):
    """The clients of `population` that are listed, in that order and renumbered from 0. A view.

    Two populations of the same clients, for training and validation say, stay so under the same list. Errors:
    ConfigError for no clients, one that is not there, or one listed twice.
    """

    population: Population
    clients: np.ndarray

    __eq__ = same_fields
    __hash__ = hash_fields

    def __post_init__(self) -> None:
        clients = np.array(self.clients, np.int64)
        require(clients.ndim == 1 and len(clients) > 0, f"expected clients by number, got shape {clients.shape}")
        for client in (int(clients.min()), int(clients.max())):
            require_client(client, len(self.population))
        require(len(np.unique(clients)) == len(clients), "expected clients that differ, got one twice")
        clients.flags.writeable = False
        object.__setattr__(self, "clients", clients)

    @property
    def made_from(self) -> Population:
        """The population that this one is a view of."""
        population: Population = adapted(self.population, Population)
        return population

    def __repr__(self) -> str:
        return f"Selected({self.population!r}, {len(self.clients)} clients)"

    def __len__(self) -> int:
        return len(self.clients)

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.population.sizes()[self.clients]

    def examples(self, client: int) -> Examples:
        """Return this client's own examples."""
        return self.population.examples(self._number(client))

    def resident(self) -> Examples | None:
        """Return the resident data set of the whole population."""
        return self.population.resident()

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()`."""
        return self.population.indices(self._number(client))

    def _number(self, client: int) -> int:
        require_client(client, len(self))
        return int(self.clients[client])
