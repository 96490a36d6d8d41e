"""The metric that callbacks and schedules read from a run's records, and whether it got better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..core.bases import Callback, Schedule
from ..core.errors import ConfigError
from ..core.parts.algorithms import AsynchronousStrategy, ClusteredStrategy
from ..core.parts.clusters import CLUSTER
from ..core.parts.phases import PERSONAL
from ..core.reading.directions import Measures, Mode, mode_of
from ..core.recipe import Recipe, own_course
from ..core.types import RoundRecord
from ..core.validation import suggest
from .clock import METRIC

PERCENTILES = (10, 50, 90)  # percentiles over clients, of what they measure on validation examples


def measured(metric: str, records: Sequence[RoundRecord], mode: Mode | None = None) -> list[tuple[int, float]]:
    """List (round, value) wherever metric was measured, signed so that smaller is better.

    Errors: ConfigError where a value is there and nobody knows which way it is to go.
    """
    found = [(record.round, record.numbers[metric]) for record in records if metric in record.numbers]
    if not found:
        return []
    sign = 1.0 if mode_of(metric, records[-1].directions, mode, "a callback or schedule") == "min" else -1.0
    return [(round, sign * value) for round, value in found]


def best_round(metric: str, records: Sequence[RoundRecord], mode: Mode | None = None) -> int | None:
    """Return the first round with the best value; None when it was never measured. NaN is worse than any number."""
    values = [(math.inf if math.isnan(value) else value, round) for round, value in measured(metric, records, mode)]
    return min(values)[1] if values else None


def check_watched(experiment: Recipe, measures: Measures, is_live: bool) -> None:
    """Check, before round 1, that callbacks and schedules wait for metrics that are measured.

    Errors: ConfigError for one that waits for what nothing measures, or cannot tell which way it is to go.

    A model with steps of its own may measure more than is seen: `check_measured` asks again after an evaluation.
    """
    for part, metric in watching(experiment):
        check_metric(experiment, measures, is_live, metric, f"{part!r} waits for {metric!r}, which")
        part.check_direction(measures.directions)


def check_metric(
    experiment: Recipe, measures: Measures, is_live: bool, metric: str, subject: str | None = None
) -> None:
    """Raise ConfigError for a metric that no record will have, as far as that is known before round 1.

    subject: what the error's sentence is about; None: a round.
    """
    measurable = set(_measurable(experiment, measures, is_live)) | set(RoundRecord._fields)
    if metric not in measurable and (measures.is_complete or not _has_examples(experiment, metric)):
        names = measurable - set(RoundRecord._fields)
        said = f"no round has {metric!r}; " if subject is None else f"{subject} is not measured: "
        raise ConfigError(said + suggest(metric, names))


def check_measured(experiment: Recipe, record: RoundRecord) -> None:
    """Raise ConfigError where what ends a run, or sets its learning rate, waits for a metric that nothing measures.

    record: that of a round that was evaluated. What clients measure is passed over: they may all have failed.
    """
    for part, metric in watching(experiment):
        if metric not in record.numbers and not metric.startswith("train_"):
            known = suggest(metric, record.numbers)
            raise ConfigError(f"{part!r} waits for {metric!r}, which is not measured: {known}")


def watching(experiment: Recipe) -> Iterator[tuple[Callback | Schedule, str]]:
    """Yield the callbacks and schedules that wait for a metric, each with that metric."""
    rate = experiment.local.learning_rate
    parts: list[Callback | Schedule] = [*experiment.callbacks]
    parts += [rate] if isinstance(rate, Schedule) else []
    for part in parts:
        if part.watched_metric is not None:
            yield part, part.watched_metric


def shows_percentiles(experiment: Recipe) -> bool:
    """Return whether records show percentiles over clients: each is what a single client, or two, measured."""
    return experiment.plan is None and experiment.secure_aggregation is None


def _measurable(experiment: Recipe, measures: Measures, is_live: bool) -> Iterator[str]:
    """Yield the metrics that records of the experiment's rounds have."""
    names, strategy = measures.directions, experiment.strategy
    clusters = range(strategy.clusters) if isinstance(strategy, ClusteredStrategy) else ()
    if experiment.test is not None:
        yield from (f"test_{name}" for name in names)
        yield from (f"test_{CLUSTER}{number}_{name}" for number in clusters for name in names)
    if experiment.validation is not None:
        has_own = experiment.fine_tune is not None or own_course(experiment) is not None
        for name in [*names, *(PERSONAL + name for name in names if has_own)]:
            yield f"validation_{name}"
            if shows_percentiles(experiment):
                yield from (f"validation_{name}_p{percent}" for percent in PERCENTILES)
    if experiment.plan is None:
        hides = experiment.secure_aggregation
        yield from (f"train_{name}" for name in names if hides is None or name in hides.metrics)
        yield from (f"train_{CLUSTER}{number}" for number in clusters)
    if experiment.devices is not None and not is_live:
        yield METRIC
    if isinstance(strategy, AsynchronousStrategy):
        yield "staleness"


def _has_examples(experiment: Recipe, metric: str) -> bool:
    """Return whether there are examples on which a metric of this name could be measured."""
    group = metric.partition("_")[0]
    is_there = {
        "train": experiment.plan is None and experiment.secure_aggregation is None,
        "test": experiment.test is not None,
        "validation": experiment.validation is not None,
    }
    return is_there.get(group, False)
