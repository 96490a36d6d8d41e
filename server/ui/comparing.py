"""Several runs beside one another: what differs in their settings, and what each took to get somewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import ConfigError
from ..store import Store
from . import runs

MOST = 12  # most runs at once: nobody tells more lines apart


def compare(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """Return the runs with their rounds, and the settings in which they differ.

    Errors: ConfigError for more than 12; StoreError for an unknown one.
    """
    _check_number(names)
    found = [runs.details(store, name) for name in dict.fromkeys(names)]
    return {
        "runs": [{part: one[part] for part in ("run", "rounds", "directions", "budget")} for one in found],
        "differences": differences([_flat(one) for one in found]),
    }


def differences(settings: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """List the settings that are not the same in all, and what each has; null where one has no such setting."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = ({"path": name, "values": [one.get(name) for one in settings]} for name in names)
    return [row for row in rows if len(set(row["values"])) > 1]


def reached(columns: runs.Columns, metric: str, target: float, mode: str) -> dict[str, Any] | None:
    """Find the first round in which metric was at least target, or for mode "min" at most it, and what that took.

    None where it never was. bytes is None where a round did not measure them.
    """
    values = [float("nan") if value is None else float(value) for value in columns["metrics"].get(metric, ())]
    is_met = (value <= target if mode == "min" else value >= target for value in values)
    place = next((place for place, met in enumerate(is_met) if met), None)
    if place is None:
        return None
    seconds = _summed(columns, place, "seconds", "eval_seconds")
    sent = [columns[name][: place + 1] for name in ("bytes_up", "bytes_down")]
    is_measured = all(count is not None for column in sent for count in column)
    total = sum(count for column in sent for count in column) if is_measured else None
    return {"round": columns["round"][place], "seconds": seconds, "bytes": total}


def targets(store: Store, names: Sequence[str], metric: str, target: float, mode: str) -> list[dict[str, Any] | None]:
    """Return what each run took to reach the target; see `reached`. Errors: those of `compare`."""
    _check_number(names)
    return [reached(runs.columns(store.views.rounds(name)), metric, target, mode) for name in names]


def _check_number(names: Sequence[str]) -> None:
    if len(names) > MOST:
        raise ConfigError(f"expected at most {MOST} runs to compare, got {len(names)}; choose some of them")


def _summed(columns: runs.Columns, place: int, *names: str) -> float:
    """Sum some columns up to a round, what was not measured counted as nothing."""
    return sum(float(columns[name][row] or 0.0) for row in range(place + 1) for name in names)


def _flat(one: Mapping[str, Any]) -> dict[str, str]:
    described = {row["path"]: row["value"] for row in one["settings"] if row["value"] is not None}
    return described | {"rounds": str(one["run"]["rounds_planned"])}
