"""Held-out data: a part of each client's examples, or some of the clients. Views; no example is copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..core.bases import Population
from ..core.examples import Examples
from ..core.random import derive
from ..core.reading.adapted import adapted
from ..core.validation import require, require_count, require_real
from .allocation import grouped
from .populations import require_client
from .values import fields_only, once


def split_clients(population: Population, validation: float = 0.2, seed: int = 0) -> tuple[ClientPart, ClientPart]:
    """Hold out a random part of each client's examples: return (train, validation), with the same clients in both.

    validation: the fraction held out, rounded to the nearest whole number, at least one; but a client always keeps one
    example to train on, so that a client with a single example has none held out.
    """
    division = Holdout(population, validation, seed)
    return ClientPart(division, 0), ClientPart(division, 1)


def kfold_within(population: Population, folds: int, seed: int = 0) -> Iterator[tuple[ClientPart, ClientPart]]:
    """Yield (train, validation) for each of `folds`: every example is held out in exactly one of them.

    A client's examples are spread evenly over the folds, so that one with fewer than `folds` has none held out in some.
    Errors, when first used: ConfigError for a client with a single example.
    """
    division = Folds(population, folds, seed)
    return ((ClientPart(division, fold, inverted=True), ClientPart(division, fold)) for fold in range(folds))


def kfold_clients(population: Population, folds: int, seed: int = 0) -> Iterator[tuple[SomeClients, SomeClients]]:
    """Yield (train, validation) for each of `folds`: every client is held out in exactly one of them.

    The two populations have different clients, each numbered from 0. Errors, when first used: ConfigError for more
    folds than clients.
    """
    division = ClientFolds(population, folds, seed)
    return ((SomeClients(division, fold, inverted=True), SomeClients(division, fold)) for fold in range(folds))


@dataclass(frozen=True)
class Holdout:
    """A division of each client's examples: part 1 is a random fraction of them, part 0 the rest."""

    population: Population
    validation: float
    seed: int

    def __post_init__(self) -> None:
        require_real("validation", self.validation, above=0)
        require(self.validation < 1, f"expected validation={self.validation} < 1")
        require_count("seed", self.seed, at_least=0)

    __getstate__ = fields_only

    @once
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (offsets int64, parts uint8): client k's examples are parts[offsets[k]:offsets[k + 1]], in order."""
        sizes = self.population.sizes()
        held_out = np.minimum(np.maximum(np.rint(self.validation * sizes), 1), sizes - 1)
        places = _shuffled_places(sizes, derive(self.seed, "holdout").generator())
        return _offsets(sizes), (places < np.repeat(held_out, sizes)).astype(np.uint8)


@dataclass(frozen=True)
class Folds:
    """A division of each client's examples, at random and evenly, in `folds` parts."""

    population: Population
    folds: int
    seed: int

    def __post_init__(self) -> None:
        require_count("folds", self.folds, at_least=2)
        require_count("seed", self.seed, at_least=0)

    __getstate__ = fields_only

    @once
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (offsets int64, parts): client k's examples are parts[offsets[k]:offsets[k + 1]], in order."""
        sizes = self.population.sizes()
        single = np.flatnonzero(sizes < 2)
        require(
            not len(single),
            f"expected two examples per client; {len(single)} have one (client {single[:1].sum()}): leave them out",
        )
        generator = derive(self.seed, "folds").generator()
        places = _shuffled_places(sizes, generator)
        # Each client starts at a fold of its own; else small clients would all be held out in the first folds.
        starts = np.repeat(generator.integers(self.folds, size=len(sizes)), sizes)
        return _offsets(sizes), ((places + starts) % self.folds).astype(np.min_scalar_type(self.folds))


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _shuffled_places(sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return, for every client, the numbers 0 … size − 1 in random order; one client after another."""
    owners = np.repeat(np.arange(len(sizes)), sizes)
    shuffled = generator.permutation(len(owners))
    by_client = shuffled[grouped(owners[shuffled])]
    places = np.empty(len(owners), np.int64)
    places[by_client] = np.arange(len(owners)) - np.repeat(_offsets(sizes)[:-1], sizes)
    return places


@dataclass(frozen=True)
class ClientPart(Population):
    """The same clients with one part of their examples, or with all but that part."""

    division: Holdout | Folds
    part: int
    inverted: bool = False

    __getstate__ = fields_only

    @property
    def made_from(self) -> Population:
        """The undivided population."""
        population: Population = adapted(self.division.population, Population)
        return population

    @property
    def part_of(self) -> Holdout | Folds:
        """The division that this population is a part of."""
        return self.division

    def __len__(self) -> int:
        return len(self.division.population)

    @once
    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        offsets, _ = self.division.parts()
        running = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._chosen(slice(None)))])
        return np.diff(running[offsets])

    def examples(self, client: int) -> Examples:
        """Return this client's examples in the part."""
        population = self.division.population
        if population.resident() is not None:
            return population.resident().take(self.indices(client))  # type: ignore[union-attr]
        return population.examples(client).take(np.flatnonzero(self._chosen_of(client)))

    def resident(self) -> Examples | None:
        """Return the undivided population's resident data set."""
        return self.division.population.resident()

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()` in the part."""
        return self.division.population.indices(client)[self._chosen_of(client)]

    def _chosen_of(self, client: int) -> np.ndarray:
        offsets, _ = self.division.parts()
        require_client(client, len(self))
        return self._chosen(slice(offsets[client], offsets[client + 1]))

    def _chosen(self, where: slice) -> np.ndarray:
        return (self.division.parts()[1][where] == self.part) != self.inverted


@dataclass(frozen=True)
class ClientFolds:
    """A division of the clients, at random and evenly, in `folds` parts."""

    population: Population
    folds: int
    seed: int

    def __post_init__(self) -> None:
        require_count("folds", self.folds, at_least=2)
        require_count("seed", self.seed, at_least=0)

    __getstate__ = fields_only

    @once
    def parts(self) -> np.ndarray:
        """Return the fold of each client, shape (clients,)."""
        clients = len(self.population)
        require(self.folds <= clients, f"expected folds={self.folds} ≤ {clients} clients")
        return derive(self.seed, "client folds").generator().permutation(clients) % self.folds


@dataclass(frozen=True)
class SomeClients(Population):
    """The clients of one fold, or all but those, ascending and renumbered from 0."""

    division: ClientFolds
    fold: int
    inverted: bool = False

    __getstate__ = fields_only

    @property
    def made_from(self) -> Population:
        """The undivided population."""
        population: Population = adapted(self.division.population, Population)
        return population

    @property
    def part_of(self) -> ClientFolds:
        """The division that this population is a part of."""
        return self.division

    @property
    def is_some_clients(self) -> bool:
        """True: its clients are some of the undivided population's."""
        return True

    @once
    def members(self) -> np.ndarray:
        """Return the undivided population's number of each client."""
        return np.flatnonzero((self.division.parts() == self.fold) != self.inverted)

    def __len__(self) -> int:
        return len(self.members())

    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""
        return self.division.population.sizes()[self.members()]

    def examples(self, client: int) -> Examples:
        """Return this client's own examples."""
        return self.division.population.examples(self._member(client))

    def resident(self) -> Examples | None:
        """Return the undivided population's resident data set."""
        return self.division.population.resident()

    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()`."""
        return self.division.population.indices(self._member(client))

    def _member(self, client: int) -> int:
        require_client(client, len(self))
        return int(self.members()[client])
