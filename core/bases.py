"""The parts of an experiment: one abstract base for each field of Experiment. Their leaves lie in other folders.

A base says what a part must do, and what it may say besides, with what holds if it says nothing. A plain class of the
user's own with the right methods does as well: it is adapted once, when an experiment is resolved
(core/reading/adapted.py).
Strategies and rules are in core/parts/algorithms.py, plans and hidden sums in core/parts/private.py.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .examples import Examples
from .protocols import Source
from .random import Key
from .reading.directions import Directions
from .reading.old_words import take_flags
from .spec import ModelSpec
from .traits import Trait
from .types import (
    ClientUpdate,
    Knowledge,
    RoundRecord,
    State,
    Total,
    Vector,
)


class Part(abc.ABC):  # noqa: B024  each subclass declares its own abstract members
    """A part of an experiment, with what it needs of the others and what it takes from them."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        take_flags(cls)

    @property
    def needs(self) -> Trait:
        """Traits that no other part may hide."""
        return Trait.NONE

    @property
    def hides(self) -> Trait:
        """Traits that no other part may need."""
        return Trait.NONE


class UpdateTransform(Part):
    """Privacy and linear compression: done by the client, undone once on the server."""

    @property
    def needs(self) -> Trait:
        """One sum of all updates, each a difference of whole models."""
        return TRANSFORM_NEEDS

    @property
    def pools_statistics(self) -> bool:
        """Return whether it works on the mean of whole updates as trained: then it is first in a chain, and once."""
        return False

    @property
    def adds_noise(self) -> bool:
        """Return whether it adds noise, which a plan has to account for."""
        return False

    @abc.abstractmethod
    def init(self, spec: ModelSpec) -> State:
        """Return the state before the first round."""

    @abc.abstractmethod
    def encode(self, state: State, update: ClientUpdate, key: Key) -> ClientUpdate:
        """Transform one client's update, on the client."""

    @abc.abstractmethod
    def decode(self, state: State, total: Total, key: Key) -> tuple[State, Total]:
        """Undo `encode` on the sum, once, on the server.

        Return the next round's state, and the sum as it was before `encode`.
        """


TRANSFORM_NEEDS = Trait.ONE_SUM | Trait.DELTAS | Trait.WHOLE_MODEL


class Codec(Part):
    """Lossy encoding of a client's delta in fewer bytes: the last thing a client does, undone first on the server.

    A payload is as long as any other for as many numbers. Decoding trusts nothing.
    """

    @property
    def error_feedback(self) -> bool:
        """Return whether the client keeps what was lost, and adds it to its next delta."""
        return False

    @property
    @abc.abstractmethod
    def shrinks(self) -> bool:
        """Return whether ‖decode(encode(v))‖ ≤ ‖v‖ for every v, float32's rounding included."""

    @property
    def needs(self) -> Trait:
        """Synchronous rounds, and whole models."""
        return Trait.COHORTS | Trait.WHOLE_MODEL

    @property
    def hides(self) -> Trait:
        """Updates that can be summed as they are sent; a bound on their norm, unless it shrinks and forgets."""
        bound = Trait.NONE if self.shrinks and not self.error_feedback else Trait.NORM_BOUND
        return Trait.SUMMABLE | Trait.WHOLE_UPDATE | bound

    @abc.abstractmethod
    def payload_bytes(self, size: int) -> int:
        """Return the length in bytes of the payload for a vector of `size` numbers."""

    @abc.abstractmethod
    def encode(self, vector: Vector, key: Key) -> bytes:
        """Encode a vector as a payload.

        key: source of the encoding's randomness, which need not be secret. Errors: ClientError where a number is not
        finite.
        """

    @abc.abstractmethod
    def decode(self, payload: bytes, size: int) -> Vector:
        """Decode a payload: finite, float32, shape (size,).

        Errors: ClientError for what is no payload of `size` numbers.
        """


class Aggregator(Part):
    """A way of adding a round's updates up to a Total."""

    @property
    def hides(self) -> Trait:
        """The plain sum; and means over whole updates where it takes each number on its own."""
        return Trait.PLAIN_SUM

    @property
    def min_clients(self) -> int:
        """Least number of updates that a round needs."""
        return 1

    @abc.abstractmethod
    def zero(self, size: int) -> Any:
        """Return the accumulator of no update. size: length of delta as it leaves a client."""

    @abc.abstractmethod
    def add(self, accumulator: Any, update: ClientUpdate) -> Any:
        """Return the accumulator with one update more; may reuse its memory."""

    @abc.abstractmethod
    def merge(self, one: Any, other: Any) -> Any:
        """Return the accumulator of the updates of both."""

    @abc.abstractmethod
    def total(self, accumulator: Any) -> Total:
        """Return what the updates in the accumulator add up to."""


Sizes = Callable[[], np.ndarray]


class Sampler(Part):
    """A way of choosing the clients that take part in a round."""

    @property
    def cohort_size(self) -> int | None:
        """Number of clients that it chooses; None where that varies."""
        return None

    def expected_cohort(self, clients: int) -> float:
        """Return the mean number of clients that it chooses among `clients`."""
        return float(clients if self.cohort_size is None else self.cohort_size)

    @property
    def most_clients(self) -> int | None:
        """Upper bound on the clients that it chooses, or None if unbounded."""
        return self.cohort_size

    @abc.abstractmethod
    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Choose the cohort: distinct members of clients, ascending.

        `sizes()`: examples of every client, by its number.
        """


class LearningSampler(Sampler):
    """A sampler that also knows what clients reported before, and how fast they are."""

    @property
    def needs(self) -> Trait:
        """Cohorts, and each client's loss where it chooses by that."""
        return Trait.COHORTS | (Trait.EACH_LOSS if self.needs_losses else Trait.NONE)

    @property
    def needs_losses(self) -> bool:
        """Return whether it needs the losses that clients reported."""
        return False

    @abc.abstractmethod
    def choose(self, clients: Sequence[int], sizes: Sizes, key: Key, knowledge: Knowledge) -> list[int]:
        """Choose the cohort as `sample` does, by `knowledge` too."""


class Reweighting(Part):
    """A way of changing the clients' say in the mean from round to round, by what they lose. State in, state out."""

    @property
    def needs(self) -> Trait:
        """Each client's loss, in plain rounds."""
        return Trait.EACH_LOSS | Trait.COHORTS | Trait.WHOLE_MODEL

    @abc.abstractmethod
    def init(self, sizes: np.ndarray) -> State:
        """Return the state before the first round. sizes: each client's own weight, shape (clients,)."""

    @abc.abstractmethod
    def factors(self, state: State, clients: Sequence[int]) -> np.ndarray:
        """Return the factors of those clients' weights: ≥ 0, shape (len(clients),)."""

    @abc.abstractmethod
    def heard(self, state: State, losses: Mapping[int, float]) -> State:
        """Return the state after a round. losses: mean training loss of each client whose update was counted."""


class Schedule(abc.ABC):
    """A learning rate that changes with the rounds: a pure function of the rounds before."""

    @property
    def watched_metric(self) -> str | None:
        """The metric that it waits for; None where it waits for none."""
        return None

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where it cannot tell whether its metric is to fall or to rise.

        directions: the known ones.
        """
        return None

    @abc.abstractmethod
    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, 1 for the first, after the rounds in `records`."""


class Callback(abc.ABC):
    """A part of an experiment that may end a run early or choose its best round, from the records alone."""

    @property
    def watched_metric(self) -> str | None:
        """The metric that it waits for; None where it waits for none."""
        return None

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where it cannot tell whether its metric is to fall or to rise.

        directions: the known ones.
        """
        return None

    @abc.abstractmethod
    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """Decide after a committed round: return a sentence that ends the run and says why, or None."""

    @abc.abstractmethod
    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """Return the round whose params the run ends with; None for the last."""


class PopulationEncoding(abc.ABC):
    """Meaning of a population's numbers: the class of each label, the column of each feature.

    Parameters
    ----------
    classes
        Label k is the class classes[k]; empty where labels are numbers of their own.
    columns
        Feature k is the column columns[k]; empty where features have no names.
    """

    classes: tuple[str, ...]
    columns: tuple[str, ...]

    @abc.abstractmethod
    def read(self, source: Source, place: str = "") -> Examples:
        """Load the examples of a source, in the population's numbers. place: where the source is, for messages."""

    @abc.abstractmethod
    def encode(self, examples: Examples, place: str = "the examples") -> Examples:
        """Return the examples, with labels of text as the population's numbers.

        place: what the examples are, for messages.
        """

    @abc.abstractmethod
    def translated(self, population: Population) -> Population:
        """Return another population, such as the validation clients, in this one's numbers."""


class Population(abc.ABC):
    """Clients and their examples, lazily: 10⁶ clients are two arrays (offsets, indices)."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of clients."""

    @abc.abstractmethod
    def sizes(self) -> np.ndarray:
        """Return the examples per client: int64, shape (clients,)."""

    @abc.abstractmethod
    def examples(self, client: int) -> Examples:
        """Return this client's own examples."""

    @abc.abstractmethod
    def resident(self) -> Examples | None:
        """Return the one data set that all clients index into, or None when each client's examples must be streamed."""

    @abc.abstractmethod
    def indices(self, client: int) -> np.ndarray:
        """Return this client's rows of `resident()`; only where there is one."""

    def sample(self) -> Examples:
        """Return examples of one client at least, for whoever needs to know what they look like."""
        return self.examples(0)

    @property
    def made_from(self) -> Population | None:
        """The population that this one is a view of, if any."""
        return None

    def encoding(self) -> PopulationEncoding | None:
        """Return what its numbers mean, so that test and validation are read in the same ones; None where unknown.

        Loads the data that it has to be found in.
        """
        return None if self.made_from is None else self.made_from.encoding()

    @property
    def part_of(self) -> object:
        """The division that this population is a part of; None for one that is undivided."""
        return None if self.made_from is None else self.made_from.part_of

    @property
    def is_some_clients(self) -> bool:
        """Say whether its clients are some of another population's, numbered anew: what those trained is not theirs."""
        return self.made_from is not None and self.made_from.is_some_clients

    @property
    def released(self) -> tuple[Any, ...]:
        """The statistics that inputs are standardised by, the outermost first."""
        return () if self.made_from is None else self.made_from.released

    @property
    def known_clients(self) -> int | None:
        """Number of clients, where it is known without loading anything; else None."""
        return None
