"""Curves of what runs measured, over their seeds; and experiments whose names form a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..core.reading.directions import Mode
from ..core.validation import require
from ..server.history import History


class Grid(NamedTuple):
    """Grid of experiments called "group/variant", each group with each variant, in the order given."""

    groups: tuple[str, ...]
    variants: tuple[str, ...]

    def name(self, group: str, variant: str) -> str:
        """Return the name of the experiment of a group and a variant."""
        return f"{group}/{variant}"


class Curve(NamedTuple):
    """A metric over one experiment's seeds: arrays of shape (measurements,)."""

    far: np.ndarray  # horizontal axis: rounds, seconds or bytes so far
    mean: np.ndarray  # mean over the seeds
    low: np.ndarray  # least of all seeds
    high: np.ndarray  # largest of all seeds


class Metric(NamedTuple):
    """One metric of several experiments, to be drawn."""

    name: str
    curves: Mapping[str, Curve]  # curve of each experiment, by name
    grid: Grid | None  # grid that the experiments' names form; None where they form none
    mode: Mode | None  # direction of the metric: it is to fall ("min") or to rise ("max"); None: nobody knows


def grid_of(names: Iterable[str]) -> Grid | None:
    """Return the grid of these names, divided at their first slash; None where they form none of at least 2 × 2."""
    pairs = [tuple(name.split("/", 1)) for name in names]
    if any(len(pair) != 2 for pair in pairs):
        return None
    groups, variants = (tuple(dict.fromkeys(part)) for part in zip(*pairs, strict=True)) if pairs else ((), ())
    is_full = len(groups) > 1 and len(variants) > 1 and len(pairs) == len(groups) * len(variants)
    return Grid(groups, variants) if is_full else None


def curve_of(histories: Sequence[History], metric: str, over: str) -> Curve:
    """Compute the curve of a metric, where all seeds measured it."""
    shortest = min(len(history.rounds) for history in histories)
    values = np.array([history.curve(metric)[:shortest] for history in histories])
    far = np.array([axis(history, over)[:shortest] for history in histories]).mean(0)
    shown = np.isfinite(values).all(0) & np.isfinite(far)
    values = values[:, shown]
    return Curve(far[shown], values.mean(0), values.min(0), values.max(0))


def is_measured(history: History, metric: str) -> bool:
    """Return whether a round has a value for metric."""
    return any(record.to_json().get(metric) is not None for record in history.rounds)


def measured(history: History, metric: str) -> np.ndarray:
    """Return the metric in the rounds that measured it: NaN and infinities too, as a run that diverged has them.

    Errors: ConfigError when none did.
    """
    found = [value for record in history.rounds if (value := record.to_json().get(metric)) is not None]
    if not found:
        history.curve(metric)  # says what there is
    require(len(found) > 0, f"no round of {history.experiment} measured {metric!r}")
    return np.array(found, float)


def best_of(values: np.ndarray, mode: Mode) -> float:
    """Return the best of a run's values; NaN only where all are."""
    return float((np.fmin if mode == "min" else np.fmax).reduce(values))


def axis(history: History, over: str) -> np.ndarray:
    """Return progress of a run after each round: rounds, or seconds or bytes so far; NaN where that is not known."""
    known = ("round", "seconds", "virtual_seconds", "bytes")
    require(over in known, f"expected over={over!r} in {', '.join(known)}")
    if over == "round":
        return history.column("round")
    if over == "virtual_seconds":
        return np.array([record.metrics.get("virtual_seconds", np.nan) for record in history.rounds])
    columns = ("seconds",) if over == "seconds" else ("bytes_up", "bytes_down")
    return np.sum([np.cumsum(history.column(name)) for name in columns], axis=0)


def position(history: History, number: int) -> int:
    """Find the place of a round among the history's."""
    return next(place for place, record in enumerate(history.rounds) if record.round == number)
