"""Samplers that learn: they choose clients by what these reported before, or by how fast their devices are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..bases import LearningSampler, Sampler, Sizes
from ..random import Key
from ..reading.adapted import adapted
from ..types import Knowledge
from ..validation import fields_of, require, require_count, require_real
from .sampling import FixedCohort, WeightedCohort, enough


@dataclass(frozen=True)
class PowerOfChoice(LearningSampler):
    """Power of choice: of `candidates` clients, drawn in proportion to their examples, the `size` of largest loss.

    Cho, Wang, Joshi 2020, https://arxiv.org/abs/2010.01243: the variant rpow-d, whose loss is the one a client reported
    when it last took part, and infinite before. candidates: d ≥ size; with d = size this is WeightedCohort(size). Pair
    it with weighting="uniform", as they do. Errors: RunStopped with fewer clients than size.
    """

    size: int
    candidates: int

    needs_losses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("size", self.size)
        require_count("candidates", self.candidates, at_least=self.size)

    @property
    def cohort_size(self) -> int:
        """Number of clients in a cohort: `size`."""
        return self.size

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw a cohort as if no client had been heard."""
        return WeightedCohort(self.size).sample(clients, sizes, key)

    def choose(self, clients: Sequence[int], sizes: Sizes, key: Key, knowledge: Knowledge) -> list[int]:
        """Choose `size` distinct clients, ascending."""
        enough(self.size, clients)
        drawn = np.array(WeightedCohort(min(self.candidates, len(clients))).sample(clients, sizes, key))
        drawn = key.derive("ties").generator().permutation(drawn)
        losses = knowledge.losses[drawn]
        order = np.argsort(np.where(np.isnan(losses), -np.inf, -losses), kind="stable")
        return sorted(drawn[order[: self.size]].tolist())


@dataclass(frozen=True)
class Oort(LearningSampler):
    """A cohort of clients that taught most when last heard, and of some that were never heard.

    Slow clients count less; clients that were last heard long ago count more. Lai, Zhu, Madhyastha, Chowdhury 2021,
    https://arxiv.org/abs/2010.06081, Algorithm 1, but for one thing: a client's utility is its number of examples times
    its mean loss, for want of the mean square, which clients do not report.

    Parameters
    ----------
    size
        K, the number of clients in a cohort.
    exploration
        The share of clients never heard, at first; it falls by `decay` per round, down to least_exploration.
    preferred_seconds
        T, on the virtual clock; who takes t > T counts (T/t)^penalty. None: speed does not matter.

    Raises
    ------
    RunStopped
        With fewer clients than size.
    """

    size: int
    exploration: float = 0.9
    decay: float = 0.98
    least_exploration: float = 0.2
    preferred_seconds: float | None = None
    penalty: float = 2.0

    needs_losses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("size", self.size)
        for name, share in fields_of(self, "exploration", "decay", "least_exploration").items():
            require_real(name, share, at_least=0, at_most=1)
        require_real("penalty", self.penalty, at_least=0)
        if self.preferred_seconds is not None:
            require_real("preferred_seconds", self.preferred_seconds, above=0)

    @property
    def cohort_size(self) -> int:
        """Number of clients in a cohort: `size`."""
        return self.size

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw a cohort as if no client had been heard."""
        return FixedCohort(self.size).sample(clients, sizes, key)

    def choose(self, clients: Sequence[int], sizes: Sizes, key: Key, knowledge: Knowledge) -> list[int]:
        """Choose `size` distinct clients, ascending."""
        enough(self.size, clients)
        numbers = np.asarray(clients)
        heard, new = numbers[knowledge.heard[numbers] > 0], numbers[knowledge.heard[numbers] == 0]
        share = max(self.exploration * self.decay ** (knowledge.round - 1), self.least_exploration)
        explored = min(max(round(share * self.size), self.size - len(heard)), len(new))
        own = key.generator()
        # The untried that are fast are tried first: a slow one would cost a round to learn about.
        speeds = 1 / np.maximum(knowledge.seconds[new], 1e-9)
        tried = own.choice(new, explored, replace=False, p=speeds / speeds.sum()) if explored else new[:0]
        proven = self._proven(heard, self.size - explored, sizes(), knowledge, own)
        return sorted([*tried.tolist(), *proven.tolist()])

    def _proven(
        self, heard: np.ndarray, count: int, sizes: np.ndarray, knowledge: Knowledge, generator: np.random.Generator
    ) -> np.ndarray:
        """Draw `count` of those heard, in proportion to their utility, among those near the best `count`."""
        if not count:
            return heard[:0]
        utility = sizes[heard] * np.nan_to_num(knowledge.losses[heard].astype(np.float64), nan=0.0, posinf=0.0)
        utility = np.clip(utility, 1e-9, np.quantile(utility, 0.95) + 1e-9)  # one outlier must not take every round
        utility = utility + np.sqrt(0.1 * math.log(knowledge.round) / knowledge.heard[heard])
        if self.preferred_seconds is not None:
            lateness = np.maximum(knowledge.seconds[heard] / self.preferred_seconds, 1)
            utility = utility / lateness**self.penalty
        near = utility >= 0.95 * np.sort(utility)[-count]
        return generator.choice(heard[near], count, replace=False, p=utility[near] / utility[near].sum())


@dataclass(frozen=True)
class InTime(LearningSampler):
    """The choice of `sampler` among the clients whose devices should be done within `seconds` of the virtual clock.

    Nishio, Yonetani 2019, https://arxiv.org/abs/1804.08333, where clients say how long they would take. The slow never
    take part: what only they know is not learned. Without devices everyone is in time.
    """

    seconds: float
    sampler: Sampler

    needs_losses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_real("seconds", self.seconds, above=0)
        inner = adapted(self.sampler, LearningSampler, Sampler)
        require(not isinstance(inner, LearningSampler), f"expected sampler={inner!r} to be one that does not learn")

    @property
    def cohort_size(self) -> int:
        """Number of clients that the sampler chooses, as a guess where all are in time; 1 where that varies."""
        return adapted(self.sampler, Sampler).cohort_size or 1

    @property
    def most_clients(self) -> int | None:
        """Upper bound on the clients that the sampler chooses, or None if unbounded."""
        return adapted(self.sampler, Sampler).most_clients

    def sample(self, clients: Sequence[int], sizes: Sizes, key: Key) -> list[int]:
        """Draw a cohort as if everyone were in time."""
        return self.sampler.sample(clients, sizes, key)

    def choose(self, clients: Sequence[int], sizes: Sizes, key: Key, knowledge: Knowledge) -> list[int]:
        """Let the sampler choose among the clients that should be in time."""
        numbers = np.asarray(clients, np.int64)
        return self.sampler.sample(numbers[knowledge.seconds[numbers] <= self.seconds].tolist(), sizes, key)
