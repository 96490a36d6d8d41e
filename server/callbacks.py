"""Callbacks that may end a run early. Each decides from the records alone, so a resumed run decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.bases import Callback
from ..core.reading.directions import Directions, Mode, mode_of, require_mode
from ..core.types import RoundRecord
from ..core.validation import require_count, require_real
from .watched import best_round, measured


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """Callback that ends the run when metric has not improved by min_delta for `patience` evaluations.

    Parameters
    ----------
    restore_best
        The run's final params are those of its best round; without a store they are kept in memory.
    mode
        "min" for a metric that is to fall, "max" for one that is to rise; None: as is known for Keras's own metrics and
        for losses. For another metric a run asks for it before its first round.
    """

    metric: str = "test_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = False
    mode: Mode | None = None

    def __post_init__(self) -> None:
        require_mode(self.mode)
        require_count("patience", self.patience)
        require_real("min_delta", self.min_delta, at_least=0)

    @property
    def watched_metric(self) -> str:
        """Name of the metric that it watches."""
        return self.metric

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where neither mode nor directions tell."""
        mode_of(self.metric, directions, self.mode, repr(self))

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """Return a sentence that ends the run, or None."""
        values = measured(self.metric, records, self.mode)
        best, waited = math.inf, 0
        for _, value in values:
            improved = value < best - self.min_delta
            best, waited = (value, 0) if improved else (best, waited + 1)
        if waited < self.patience:
            return None
        return f"{self.metric} has not improved for {waited} evaluations"

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """Return the round to restore, or None for the last."""
        return best_round(self.metric, records, self.mode) if self.restore_best else None


@dataclass(frozen=True)
class StopAt(Callback):
    """Callback that ends the run as soon as metric reaches target.

    Target is reached at most at it where the metric is to fall, at least at it where it is to rise. mode: see
    EarlyStopping.
    """

    metric: str
    target: float
    mode: Mode | None = None

    def __post_init__(self) -> None:
        require_mode(self.mode)
        require_real("target", self.target)

    @property
    def watched_metric(self) -> str:
        """Name of the metric that it watches."""
        return self.metric

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where neither mode nor directions tell."""
        mode_of(self.metric, directions, self.mode, repr(self))

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """Return a sentence that ends the run, or None."""
        value = records[-1].numbers.get(self.metric) if records else None
        if value is None:
            return None
        falls = mode_of(self.metric, records[-1].directions, self.mode, repr(self)) == "min"
        is_reached = value <= self.target if falls else value >= self.target
        return f"{self.metric} reached {value:.4f}" if is_reached else None

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """Return None: the run ends with its last round."""
        return None


@dataclass(frozen=True)
class KeepBest(Callback):
    """Callback that makes the params of the round with the best metric the run's final ones.

    Parameters
    ----------
    mode
        See EarlyStopping.
    """

    metric: str = "test_loss"
    mode: Mode | None = None

    def __post_init__(self) -> None:
        require_mode(self.mode)

    @property
    def watched_metric(self) -> str:
        """Name of the metric that it watches."""
        return self.metric

    def check_direction(self, directions: Directions) -> None:
        """Raise ConfigError where neither mode nor directions tell."""
        mode_of(self.metric, directions, self.mode, repr(self))

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """Return None: it never ends a run."""
        return None

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """Return the best round so far; the first of equals."""
        return best_round(self.metric, records, self.mode)
