"""Samplers, which choose who takes part in a round. Each costs O(cohort), however many clients there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bases import Sampler, Sizes
from ..errors import RunStopped
from ..random import Key
from ..validation import plain_numbers, require_count, require_real


@dataclass(frozen=True)
class AllClients(Sampler):
    """Every client, every round."""

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Choose all clients, ascending."""
        return sorted(clients)


@dataclass(frozen=True)
class FixedCohort(Sampler):
    """A cohort of `size` clients, uniformly, without replacement. Errors: RunStopped when there are fewer."""

    size: int

    def __post_init__(self) -> None:
        plain_numbers(self)
        require_count("size", self.size)

    @property
    def cohort_size(self) -> int:
        """Number of clients in a cohort: `size`."""
        return self.size

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw `size` distinct clients, ascending."""
        enough(self.size, clients)
        return _members(clients, key.generator().choice(len(clients), self.size, replace=False))


@dataclass(frozen=True)
class PoissonCohort(Sampler):
    """A cohort that each client joins on its own with probability `rate`: what differential privacy accounts for.

    The cohort's size varies, and may be 0.
    """

    rate: float

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0, at_most=1)

    def expected_cohort(self, clients: int) -> float:
        """Return rate·clients."""
        return self.rate * clients

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw a binomial number of distinct clients, ascending: independent coin flips, without flipping each coin."""
        generator = key.generator()
        count = generator.binomial(len(clients), self.rate)
        return _members(clients, generator.choice(len(clients), count, replace=False))


@dataclass(frozen=True)
class WeightedCohort(Sampler):
    """A cohort of `size` distinct clients, drawn one after another in proportion to their numbers of examples.

    Pair it with weighting="uniform": counting the examples again would favour large clients twice.
    """

    size: int

    def __post_init__(self) -> None:
        plain_numbers(self)
        require_count("size", self.size)

    @property
    def cohort_size(self) -> int:
        """Number of clients in a cohort: `size`."""
        return self.size

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw `size` distinct clients, ascending."""
        enough(self.size, clients)
        examples = sizes()[np.asarray(clients)].astype(np.float64)
        probabilities = examples / examples.sum()
        return _members(clients, key.generator().choice(len(clients), self.size, replace=False, p=probabilities))


def least_cohort(sampler: Sampler, clients: int) -> int | None:
    """Return the fewest clients that a round's sum may be formed of, by what the sampler implies; None if unknown.

    For a fixed cohort: two thirds of it, as many as have to stay. For a Poisson cohort: 7 standard deviations below the
    expected size, which a round falls short of once in 10¹¹. For clients who ask themselves whether the sum that a
    server proposes is the one that they agreed to. clients: number of clients in the population.
    """
    if isinstance(sampler, PoissonCohort):
        expected = sampler.rate * clients
        return max(0, math.floor(expected - 7 * math.sqrt(expected)))
    size = clients if isinstance(sampler, AllClients) else sampler.most_clients
    return None if size is None else math.ceil(2 * size / 3)


def enough(size: int, clients: Sequence[int]) -> None:
    if size > len(clients):
        raise RunStopped(f"expected size={size} ≤ {len(clients)} clients; lower sampler.size or add clients")


def _members(clients: Sequence[int], positions: np.ndarray) -> list[int]:
    return sorted(int(clients[position]) for position in positions)
