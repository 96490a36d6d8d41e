"""Who takes part in a round. Each sampler costs O(cohort), however many clients there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import RunStopped
from .random import Key
from .validation import plain_numbers, require_count, require_real

Sizes = Callable[[], np.ndarray]


@dataclass(frozen=True)
class AllClients:
    """Every client, every round."""

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """All clients, ascending."""
        return sorted(clients)


@dataclass(frozen=True)
class FixedCohort:
    """`size` clients, uniformly, without replacement. Errors: RunStopped when there are fewer."""

    size: int

    def __post_init__(self) -> None:
        plain_numbers(self)
        require_count("size", self.size)

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """`size` distinct clients, ascending."""
        enough(self.size, clients)
        return _members(clients, key.generator().choice(len(clients), self.size, replace=False))


@dataclass(frozen=True)
class PoissonCohort:
    """Each client on its own with probability `rate`: the sampling that differential privacy accounts for.

    The cohort's size varies, and may be 0.
    """

    rate: float

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0, at_most=1)

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """A binomial number of distinct clients, ascending: independent coin flips, without flipping each coin."""
        generator = key.generator()
        count = generator.binomial(len(clients), self.rate)
        return _members(clients, generator.choice(len(clients), count, replace=False))


@dataclass(frozen=True)
class WeightedCohort:
    """`size` distinct clients, drawn one after another in proportion to their numbers of examples.

    Pair it with weighting="uniform": counting the examples again would favour large clients twice.
    """

    size: int

    def __post_init__(self) -> None:
        plain_numbers(self)
        require_count("size", self.size)

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """`size` distinct clients, ascending."""
        enough(self.size, clients)
        examples = sizes()[np.asarray(clients)].astype(np.float64)
        probabilities = examples / examples.sum()
        return _members(clients, key.generator().choice(len(clients), self.size, replace=False, p=probabilities))


def enough(size: int, clients: Sequence[int]) -> None:
    if size > len(clients):
        raise RunStopped(f"expected size={size} ≤ {len(clients)} clients; lower sampler.size or add clients")


def _members(clients: Sequence[int], positions: np.ndarray) -> list[int]:
    return sorted(int(clients[position]) for position in positions)
