"""Runs of one experiment over the settings in which they differ, as a sweep leaves them, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.errors import ConfigError
from ...core.reading.directions import NO_DIRECTIONS, direction_of
from ...core.types import scalars
from ..progress import GROUPS
from ..store import Store
from .plain import number

MOST = 500  # newest runs of an experiment that are drawn
LEAST = 3  # runs that make a sweep
MOST_AXES = 8  # settings that have an axis: the first in which runs differ
WIDE = 20.0  # factor between the ends of an axis from which on it is logarithmic
OUTSIDE = ("name", "seed")  # settings that are no choice

Axis = Mapping[str, Any]
Importance = Callable[[Sequence[Axis], Sequence[Sequence[str]], Sequence[float]], Mapping[str, float]]


def experiments(store: Store) -> list[dict[str, Any]]:
    """List the experiments of which there are runs with different settings, the most often run first."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for _, name, description in store.views.descriptions():
        found.setdefault(name, []).append(description)
    counts = {name: len(ones) for name, ones in found.items() if len(ones) >= LEAST and axes(ones)}
    return [{"name": name, "runs": counts[name]} for name in sorted(counts, key=lambda name: -counts[name])]


def sweep(store: Store, experiment: str, metric: str | None) -> dict[str, Any]:
    """Return the newest runs of an experiment, their settings and what each came to.

    metric: None for the accuracy, or else the loss. Errors: ConfigError where there are not enough runs to compare.
    """
    described = [(run, given) for run, _, given in store.views.descriptions(experiment)][:MOST]
    drawn = axes([given for _, given in described])
    if len(described) < LEAST or not drawn:
        raise ConfigError(f"there are no {LEAST} runs of {experiment!r} with different settings")
    names = [run for run, _ in described]
    overviews = {one.run: one for one in store.views.overviews(names)}
    measured = {run: scalars(totals.metrics) for run, totals in store.views.totals(names).items()}
    metrics = sorted({name for values in measured.values() for name in values}, key=_order)
    metric = metric if metric in metrics else next(iter(metrics), "")
    rows: list[dict[str, Any]] = [
        {
            "run": run,
            "state": overviews[run].state,
            "value": number(measured.get(run, {}).get(metric)),
            "settings": [given.get(axis["path"], "–") for axis in drawn],
        }
        for run, given in described
    ]
    mode = direction_of(metric, _directions(store, names))
    return {"experiment": experiment, "metric": metric, "metrics": metrics, "mode": mode, "axes": drawn, "runs": rows}


def shares(store: Store, experiment: str, metric: str | None, importance: Importance) -> Mapping[str, float]:
    """Return how much each setting mattered, by the runs that have finished. Errors: those of `sweep`."""
    found = sweep(store, experiment, metric)
    whole = [one for one in found["runs"] if one["state"] == "finished" and isinstance(one["value"], float)]
    return importance(found["axes"], [one["settings"] for one in whole], [one["value"] for one in whole])


def axes(descriptions: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return an axis for each setting in which runs differ: a range of numbers, or the values that there are."""
    paths = list(dict.fromkeys(path for one in descriptions for path in one))
    found: list[dict[str, Any]] = []
    for path in paths:
        texts = [one.get(path, "–") for one in descriptions]
        if path in OUTSIDE or len(set(texts)) < 2 or any(path.startswith(f"{other['path']}.") for other in found):
            continue
        found.append(_axis(path, texts))
    return found[:MOST_AXES]


def _axis(path: str, texts: Sequence[str]) -> dict[str, Any]:
    values = [_number(text) for text in texts]
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return {"path": path, "values": sorted(set(texts))}
    low, high = min(numbers), max(numbers)
    return {"path": path, "low": low, "high": high, "log": low > 0 and high / low >= WIDE}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _directions(store: Store, names: Sequence[str]) -> Any:
    """Return the directions of the metrics of the first run that has a round."""
    for run in names:
        if records := store.views.rounds(run):
            return records[-1].directions
    return NO_DIRECTIONS


def _order(metric: str) -> tuple[bool, bool, int, str]:
    """Return the key by which metrics are sorted: accuracies first, of the most telling examples."""
    group, _, measure = metric.partition("_")
    place = GROUPS.index(group) if group in GROUPS else len(GROUPS)
    return (measure != "accuracy", measure != "loss", place, metric)
