"""Client learning rates that change with the rounds: pure functions of the rounds before, so resuming is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.bases import Schedule
from ..core.reading.directions import Directions, Mode, mode_of, require_mode
from ..core.types import RoundRecord
from ..core.validation import require_count, require_methods, require_real
from .watched import measured


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate in every round."""

    rate: float

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return rate, whatever the round."""
        return self.rate


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Step decay: rate · factor^⌊(round − 1) / every⌋."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_count("every", self.every)
        require_real("factor", self.factor, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, 1 for the first."""
        return self.rate * self.factor ** ((round - 1) // self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """Exponential decay: rate · factor^(round − 1)."""

    rate: float
    factor: float = 0.99

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_real("factor", self.factor, above=0)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, 1 for the first."""
        return self.rate * self.factor ** (round - 1)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Cosine decay from rate in round 1 to floor in round `rounds`, along half a cosine; floor after.

    Loshchilov & Hutter 2017.
    """

    rate: float
    rounds: int
    floor: float = 0.0

    def __post_init__(self) -> None:
        require_real("rate", self.rate, above=0)
        require_count("rounds", self.rounds)
        require_real("floor", self.floor, at_least=0, at_most=self.rate)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, 1 for the first."""
        progress = min(1.0, (round - 1) / max(1, self.rounds - 1))
        return self.floor + (self.rate - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmUp(Schedule):
    """Linear warm-up from 1/rounds of `then`'s rate in round 1 to the whole of it in round `rounds`.

    From then on it is `then` as it is.
    """

    rounds: int
    then: Schedule

    def __post_init__(self) -> None:
        require_count("rounds", self.rounds)
        require_methods("then", self.then, ("at",), "Constant(0.1)")

    @property
    def watched_metric(self) -> str | None:
        """Name of the metric that `then` waits for, or None."""
        return self.then.watched_metric if isinstance(self.then, Schedule) else None

    def check_direction(self, directions: Directions) -> None:
        """Check that `then` can tell which way its metric is to go. Errors: those of `then`."""
        if isinstance(self.then, Schedule):
            self.then.check_direction(directions)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, 1 for the first."""
        return self.then.at(round, records) * min(1.0, round / self.rounds)


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Schedule that multiplies the rate by factor whenever metric has not improved for `patience` rounds.

    The rate never falls below floor.

    Rounds without it are passed over. mode: "min" for a metric that is to fall, "max" for one that is to rise; None: as
    is known for Keras's own metrics and for losses.
    """

    rate: float
    metric: str = "test_loss"
    factor: float = 0.5
    patience: int = 5
    min_delta: float = 1e-4
    floor: float = 0.0
    mode: Mode | None = None

    @property
    def watched_metric(self) -> str:
        """Name of the metric that it watches."""
        return self.metric

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where neither mode nor directions tell."""
        mode_of(self.metric, directions, self.mode, repr(self))

    def __post_init__(self) -> None:
        require_mode(self.mode)
        require_real("rate", self.rate, above=0)
        require_real("factor", self.factor, above=0, at_most=1)
        require_count("patience", self.patience)
        require_real("min_delta", self.min_delta, at_least=0)
        require_real("floor", self.floor, at_least=0, at_most=self.rate)

    def at(self, round: int, records: Sequence[RoundRecord]) -> float:
        """Return the rate in `round`, from the records of the rounds before."""
        rate, best, waited = self.rate, math.inf, 0
        for _, value in measured(self.metric, records, self.mode):
            waited = 0 if value < best - self.min_delta else waited + 1
            best = min(best, value)
            if waited >= self.patience:
                rate, waited = max(self.floor, rate * self.factor), 0
        return rate
