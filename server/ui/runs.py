"""Runs as the page shows them: plain values that JSON can hold."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...core.errors import ConfigError, StoreError
from ...core.reading.directions import NO_DIRECTIONS, direction_of
from ...core.reading.loading import experiment_names, load_experiment
from ...core.reading.overrides import override, settings_of
from ...core.types import RoundRecord, Value, scalars
from ..progress import GROUPS
from ..store import RunDetails, RunOverview, RunTotals, Store
from .plain import number, plain

FIELDS = ("clients", "failures", "seconds", "eval_seconds", "bytes_up", "bytes_down", "epsilon")  # a round's fields
Columns = Mapping[str, Any]


def every(store: Store) -> list[dict[str, Any]]:
    """List all runs, newest first, without what takes reading their rounds."""
    return [_row(overview) for overview in store.views.overviews()]


def some(store: Store, only: Collection[str]) -> list[dict[str, Any]]:
    """List some runs, newest first, with their totals."""
    totals = store.views.totals(only)
    return [_row(overview) | _sums(totals.get(overview.run)) for overview in store.views.overviews(only)]


def totals(store: Store) -> dict[str, dict[str, Any]]:
    """Sum up the rounds of each run, by run."""
    marks = list(store.views.marks())
    found = store.views.totals(marks)
    return {run: _sums(found.get(run)) for run in marks}


def details(store: Store, run: str) -> dict[str, Any]:
    """Return a run with its settings, its rounds, and what was made of it."""
    found = store.views.details(run)
    return shown(found, store.views.rounds(found.overview.run), _models(store, found.overview))


def shown(found: RunDetails, records: Sequence[RoundRecord], models: Sequence[int]) -> dict[str, Any]:
    """Return a run as the page, and a report, show it. models: the versions that it has left."""
    shipped = shipped_settings(found.overview.experiment)
    return {
        "run": _row(found.overview) | _sums(found.totals),
        "rounds": columns(records),
        "directions": _directions(records),
        "settings": settings(found, shipped),
        "is_shipped": shipped is not None,
        "choices": [[name, text] for name, text in sorted(found.choices.items())],
        "budget": budget(found),
        "command": command(found),
        "models": list(models),
    }


def columns(records: Sequence[RoundRecord]) -> Columns:
    """Turn rounds into columns: a list for every field and every metric, null where a round did not measure it.

    A metric whose value is a vector has a column for each component.
    """
    flat = [record._asdict() for record in records]
    rows = [record.numbers for record in records]
    fields = {name: [number(row[name]) for row in flat] for name in FIELDS}
    metrics = {name: [number(row.get(name)) for row in rows] for name in _names(records)}
    return {"round": [record.round for record in records], **fields, "metrics": metrics}


def settings(found: RunDetails, shipped: Mapping[str, str] | None) -> list[dict[str, str | None]]:
    """List every setting of a run, and what the shipped experiment of that name has in its place, if there is one."""
    names = sorted({*found.description, *(shipped or {})}, key=_order)
    theirs = shipped or {}
    return [{"path": name, "value": found.description.get(name), "shipped": theirs.get(name)} for name in names]


@lru_cache(64)
def shipped_settings(name: str) -> Mapping[str, str] | None:
    """Return the settings of one of Umbel's own experiments; None for another."""
    if name not in experiment_names():
        return None
    try:
        return load_experiment(name).describe()
    except ConfigError:  # several experiments in one file, or data that is not here
        return None


def budget(found: RunDetails) -> dict[str, Any] | None:
    """Return what a run's privacy plan allows; None for a run without one.

    A calibrated plan's noise is such that its number of rounds costs its epsilon: at about that round a run ends,
    whatever was planned for it. Of a plan with a noise of the user's own the round is not known here.
    """
    described = found.description
    if described.get("plan", "None") == "None":
        return None
    numbers = {name: _read(described.get(f"plan.{name}")) for name in ("epsilon", "delta", "rounds")}
    if described.get("plan.noise_multiplier", "None") != "None":
        numbers["rounds"] = None
    return numbers | {"kind": described["plan"], "noise": found.choices.get("noise")}


def command(found: RunDetails) -> str | None:
    """Return the command that repeats a run; None where settings of a shipped experiment do not lead to the run's.

    So it is for an experiment in a file of the user's own, also one that has the name of a shipped one.
    """
    overview = found.overview
    if shipped_settings(overview.experiment) is None:
        return None
    shipped = load_experiment(overview.experiment)
    words = settings_of(shipped, found.description)
    if override(shipped, words).describe() != dict(found.description):
        return None
    words.append(f"rounds={overview.rounds_planned}")
    return shlex.join(["umbel", "run", overview.experiment, *(part for word in words for part in ("--set", word))])


def _row(overview: RunOverview) -> dict[str, Any]:
    values = {name: plain(value) for name, value in overview._asdict().items() if name != "metrics"}
    return values | _measured(overview.metrics) | {"seed": str(overview.seed)}


def _sums(totals: RunTotals | None) -> dict[str, Any]:
    if totals is None:
        return {"seconds": 0.0, "bytes": None, "failures": 0}
    sums = {"seconds": number(totals.seconds), "bytes": totals.bytes, "failures": totals.failures}
    return sums | {name: value for name, value in _measured(totals.metrics).items() if value is not None}


def _measured(values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the accuracy and the loss among metrics: of the test examples where these were measured."""
    metrics = scalars(values)
    found: dict[str, Any] = {}
    for measure in ("accuracy", "loss"):
        names = (f"{group}_{measure}" for group in GROUPS)
        name = next((name for name in names if name in metrics), None)
        found |= {measure: None if name is None else number(metrics[name]), f"{measure}_of": name}
    return found


def _models(store: Store, overview: RunOverview) -> list[int]:
    """List the versions that a run has left; none where their chain does not verify, which the page of models says."""
    try:
        versions = store.models.list(overview.experiment)
    except StoreError:
        return []
    return [version.version for version in versions if version.run == overview.run]


def _names(records: Sequence[RoundRecord]) -> list[str]:
    """List the metrics that any round has, in order of appearance."""
    return list(dict.fromkeys(name for record in records for name in record.numbers))


def _directions(records: Sequence[RoundRecord]) -> dict[str, str | None]:
    """Return the direction of each metric: to fall ("min") or to rise ("max"); None where nobody knows."""
    directions = records[-1].directions if records else NO_DIRECTIONS
    return {name: direction_of(name, directions) for name in _names(records)}


def _order(path: str) -> tuple[int, str]:
    """Return the key by which settings are sorted: what is asked for first comes first."""
    first = ("name", "model", "population", "strategy", "sampler", "local", "plan")
    head = path.split(".")[0]
    return (first.index(head) if head in first else len(first), path)


def _read(text: str | None) -> float | None:
    """Read a number of a description; None for what is none."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
