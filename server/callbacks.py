"""What may end a run early. Each decides from the records alone, so a resumed run decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import ConfigError
from ..core.experiment import Experiment
from ..core.types import RoundRecord
from ..core.validation import require_count, require_real, suggest


@dataclass(frozen=True)
class EarlyStopping:
    """End when metric has not improved by min_delta for `patience` evaluations.

    metric: smaller is better for a name that ends in "loss", larger for any other.
    restore_best: the run's final params are those of its best round; without a store they are kept in memory.
    """

    metric: str = "test_loss"
    patience: int = 10
    min_delta: float = 0.0
    restore_best: bool = False

    def __post_init__(self) -> None:
        require_count("patience", self.patience)
        require_real("min_delta", self.min_delta, at_least=0)

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """A sentence that ends the run, or None."""
        values = measured(self.metric, records)
        best, waited = math.inf, 0
        for _, value in values:
            improved = value < best - self.min_delta
            best, waited = (value, 0) if improved else (best, waited + 1)
        if waited < self.patience:
            return None
        return f"{self.metric} has not improved for {waited} evaluations"

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """The round to restore, None for the last."""
        return best_round(self.metric, records) if self.restore_best else None


@dataclass(frozen=True)
class StopAt:
    """End as soon as metric reaches target: at least it, or at most it for a name that ends in "loss"."""

    metric: str
    target: float

    def __post_init__(self) -> None:
        require_real("target", self.target)

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """A sentence that ends the run, or None."""
        sign = 1.0 if self.metric.endswith("loss") else -1.0
        values = measured(self.metric, records[-1:])
        if values and values[-1][1] <= sign * self.target:
            return f"{self.metric} reached {abs(values[-1][1]):.4f}"
        return None

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """None: the last."""
        return None


@dataclass(frozen=True)
class KeepBest:
    """The run's final params are those of the round with the best metric."""

    metric: str = "test_loss"

    def decide(self, records: Sequence[RoundRecord]) -> str | None:
        """Never ends a run."""
        return None

    def best_round(self, records: Sequence[RoundRecord]) -> int | None:
        """The best round so far; the first of equals."""
        return best_round(self.metric, records)


def check_measured(experiment: Experiment, record: RoundRecord) -> None:
    """Errors: ConfigError where what ends a run, or sets its learning rate, waits for a metric that nothing measures.

    record: of a round that was evaluated. What clients measure is passed over: they may all have failed.
    """
    for part in (*experiment.callbacks, experiment.local.learning_rate):
        metric = getattr(part, "metric", "train_")
        if metric not in record.metrics and not metric.startswith("train_"):
            raise ConfigError(
                f"{part!r} waits for {metric!r}, which is not measured: {suggest(metric, record.metrics)}"
            )


def measured(metric: str, records: Sequence[RoundRecord]) -> list[tuple[int, float]]:
    """(round, value) wherever metric was measured, signed so that smaller is better."""
    sign = 1.0 if metric.endswith("loss") else -1.0
    found = [(record.round, record.metrics.get(metric)) for record in records]
    return [(round, sign * value) for round, value in found if value is not None]


def best_round(metric: str, records: Sequence[RoundRecord]) -> int | None:
    """The first round with the best value; None when it was never measured. NaN is worse than any number."""
    values = [(math.inf if math.isnan(value) else value, round) for round, value in measured(metric, records)]
    return min(values)[1] if values else None
