"""Client learning rates that change with the rounds: pure functions of the rounds before, so resuming is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.protocols import Schedule
from ..core.types import RoundRecord
from ..core.validation import require, require_count, require_real


@dataclass(frozen=True)
class Constant:
    """The same rate in every round."""

    rate: float

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """rate."""
        return self.rate


@dataclass(frozen=True)
class StepDecay:
    """rate · factor^⌊(round − 1) / every⌋."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_count("every", self.every)
        require_real("factor", self.factor, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """The rate in `round`, 1 for the first."""
        return self.rate * self.factor ** ((round - 1) // self.every)


@dataclass(frozen=True)
class ExponentialDecay:
    """rate · factor^(round − 1)."""

    rate: float
    factor: float = 0.99

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_real("factor", self.factor, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """The rate in `round`, 1 for the first."""
        return self.rate * self.factor ** (round - 1)


@dataclass(frozen=True)
class Cosine:
    """From rate in round 1 to floor in round `rounds` along half a cosine; floor after. Loshchilov & Hutter 2017."""

    rate: float
    rounds: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_count("rounds", self.rounds)
        require_real("floor", self.floor, at_least=0, at_most=self.rate)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """The rate in `round`, 1 for the first."""
        progress = min(1.0, (round - 1) / max(1, self.rounds - 1))
        return self.floor + (self.rate - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmUp:
    """Linear from 1/rounds of `then`'s rate in round 1 to the whole of it in round `rounds`; then `then` as it is."""

    rounds: int
    then: Schedule

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        require(hasattr(self.then, "at"), f"expected then={self.then!r} to be a schedule")

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """The rate in `round`, 1 for the first."""
        return self.then.at(round, records) * min(1.0, round / self.rounds)


@dataclass(frozen=True)
class ReduceOnPlateau:
    """Multiply the rate by factor whenever metric has not improved for `patience` rounds, down to floor.

    metric: smaller is better for a name that ends in "loss", larger for any other. Rounds without it are passed over.
    """

    rate: float
    metric: str = "test_loss"
    factor: float = 0.5
    patience: int = 5
    min_delta: float = 1e-4
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_real("factor", self.factor, above=0, at_most=1)
        require_count("patience", self.patience)
        require_real("min_delta", self.min_delta, at_least=0)
        require_real("floor", self.floor, at_least=0, at_most=self.rate)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """The rate in `round`, from the records of the rounds before."""
        rate, best, waited = self.rate, math.inf, 0
        sign = 1.0 if self.metric.endswith("loss") else -1.0
        for record in records:
            if record.metrics.get(self.metric) is None:
                continue
            value = sign * record.metrics[self.metric]
            waited = 0 if value < best - self.min_delta else waited + 1
            best = min(best, value)
            if waited >= self.patience:
                rate, waited = max(self.floor, rate * self.factor), 0
        return rate
