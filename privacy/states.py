"""Metrics' states in a hidden sum: integers of 64 bits, outside the clients' weights, so that counts come out exactly.

A number is a multiple of 2⁻¹² there. Integers are such; others are rounded, so that a sum over n clients is off by at
most n·2⁻¹³. Nothing saturates: a client with a number of 2⁵¹/n or more adds nothing to the sum.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from ..core.errors import ClientError, ConfigError
from ..core.types import ClientUpdate, Join, Metrics, MetricState, Weighted
from ..core.validation import require
from .secagg.encoding import require_limit

GRID = 2.0**12
SATURATED = "saturated"  # the metric that says what share of the clients' numbers lay outside the limits
LARGEST = 2.0**51  # bound on a sum, so that it stays within 64 bits on the grid

Runs = tuple[tuple[Join, int], ...]  # how the numbers of a state join, as in MetricState; () for a sum and a weight
States = tuple[tuple[str, Runs], ...]


def states_to_sum(names: Sequence[str], joins: Mapping[str, Runs] | None) -> States:
    """Return the named metrics with how their states join. joins: of all that the model measures; None: nothing.

    Errors: ConfigError for a metric that the model does not report, and for a state that is no sum.
    """
    if joins is None:
        return ()
    for name in names:
        if name not in joins:
            raise ConfigError(f"metrics has {name!r}, which the model does not report; {reported(joins)}")
        check_sum(name, joins[name])
    return tuple((name, joins[name]) for name in names)


def check_names(names: object) -> None:
    """Raise ConfigError unless these are names of metrics, each once."""
    require(isinstance(names, tuple), f"expected metrics={names!r} to be a tuple of names, such as ('loss',)")
    assert isinstance(names, tuple)
    require(len(set(names)) == len(names), f"expected the names in metrics={names!r} to be distinct")
    require(SATURATED not in names, f"metrics={names!r} has {SATURATED!r}, which is added by itself")


def warn_of_limit(part: object, metric_limit: float | None) -> None:
    """Warn where a limit is given that has no effect any more. Errors: ConfigError for one that never was a limit."""
    if metric_limit is None:
        return
    require_limit("metric_limit", metric_limit)
    message = f"metric_limit={metric_limit!r} of {type(part).__name__} has no effect any more: leave it out"
    warnings.warn(message, DeprecationWarning, stacklevel=4)


def check_sum(name: str, runs: Runs) -> None:
    """Raise ConfigError for a metric whose state is a maximum or a minimum, which no sum tells."""
    others = [join for join, _ in runs if join != "sum"]
    if others:
        raise ConfigError(
            f"metrics has {name!r}, whose state is a {others[0]}imum, and no sum; leave it out of metrics"
        )


def reported(names: Mapping[str, object]) -> str:
    """Say what can be named in `metrics`, for messages."""
    known = ", ".join(sorted(names))
    return f"it reports: {known}" if known else "under a privacy plan clients report none; use metrics=()"


def length(states: States) -> int:
    """Return the number of numbers in states."""
    return sum(sum(count for _, count in runs) or 2 for _, runs in states)


def integers_of(update: ClientUpdate, states: States, clients: int) -> np.ndarray:
    """Return the numbers of an update's states as multiples of the grid: int64, shape (length(states),).

    clients: the most that are summed. An update of weight 0 adds zeros. Errors: ConfigError for a metric that is not
    there; ClientError for a number that is not finite, or too large for the sum.
    """
    if not update.weight:
        return np.zeros(length(states), np.int64)
    parts = [_numbers(name, update.metrics) for name, _ in states]
    numbers = np.concatenate([*parts, np.zeros(0)])
    largest = np.abs(numbers).max(initial=0)
    if not largest < LARGEST / clients:  # NaN, too
        raise ClientError(f"a metric's state has {largest:g}, and a hidden sum takes numbers below 2⁵¹/{clients}")
    return np.rint(numbers * GRID).astype(np.int64)


def summed_states(integers: np.ndarray, states: States) -> dict[str, Weighted | MetricState]:
    """Return the states that sums of such integers stand for."""
    metrics: dict[str, Weighted | MetricState] = {}
    start = 0
    for name, runs in states:
        end = start + (sum(count for _, count in runs) or 2)
        numbers = integers[start:end] / GRID
        metrics[name] = MetricState(numbers, runs) if runs else Weighted(*numbers.tolist())
        start = end
    return metrics


def _numbers(name: str, metrics: Metrics) -> np.ndarray:
    if name not in metrics:
        raise ConfigError(f"metrics has {name!r}, which the model does not report; {reported(metrics)}")
    state = metrics[name]
    return np.array([state.sum, state.count], np.float64) if isinstance(state, Weighted) else state.numbers
