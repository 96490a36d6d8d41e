"""Comparison of stored runs: runs that differ in nothing but their seed are runs of one experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..core.errors import ConfigError
from ..core.reading.directions import Mode
from ..server.history import History
from .comparison import Comparison

if TYPE_CHECKING:  # SQLAlchemy is imported when a store is opened
    from ..server.store import Store, StoredRun

SEED = "seed"
PLANNED = "rounds"


class Difference(NamedTuple):
    """Setting that is not the same in all runs."""

    path: str
    values: Mapping[str, str]  # value of each row, by the comparison's names; "–" where there is no such setting


def compare_stored(
    store: Store, runs: Sequence[str], metrics: Sequence[str], modes: Mapping[str, Mode] | None = None
) -> tuple[Comparison, list[Difference]]:
    """Compare runs that a store holds; return the comparison and the settings in which they differ.

    runs: ids, beginnings of them, or "latest". Runs of equal settings and other seeds are seeds of one row. A run
    without a round is noted among those that could not go on. Errors: StoreError for an unknown run; ConfigError for a
    run that is named twice, and for none that has a round.
    """
    found = [store.load_run(run) for run in runs]
    ids = [stored.run for stored in found]
    twice = next((run for run in ids if ids.count(run) > 1), None)
    if twice is not None:
        raise ConfigError(f"run {twice} is named twice; name another")
    groups: dict[tuple[tuple[str, str], ...], list[StoredRun]] = {}
    for stored in found:
        groups.setdefault(tuple(sorted(_settings(stored).items())), []).append(stored)
    names = _names([members[0] for members in groups.values()])
    histories, stopped = {}, {}
    for name, members in zip(names, groups.values(), strict=True):
        histories[name] = [_history(stored) for stored in members if stored.records]
        stopped[name] = [f"run {stored.run}: no round was finished" for stored in members if not stored.records]
    if not any(histories.values()):
        raise ConfigError("none of the runs has a finished round; there is nothing to compare")
    settings = dict(zip(names, map(dict, groups), strict=True))
    return Comparison(histories, stopped, tuple(metrics), dict(modes or {})), _differences(settings)


def _settings(stored: StoredRun) -> dict[str, str]:
    """Return the settings that runs of one row have in common."""
    described = {path: text for path, text in stored.description.items() if path != SEED}
    return described | {PLANNED: str(stored.rounds)}


def _names(firsts: Sequence[StoredRun]) -> list[str]:
    """Name each row: by the experiment's name, with a run's id where several have the same."""
    plain = [stored.name for stored in firsts]
    return [
        name if plain.count(name) == 1 else f"{name} {stored.run}" for name, stored in zip(plain, firsts, strict=True)
    ]


def _history(stored: StoredRun) -> History:
    return History(
        stored.name,
        tuple(stored.records),
        stored.server_state.params,
        stored.spec,
        stored.run,
        stopped_early=stored.reason,
    )


def _differences(settings: Mapping[str, Mapping[str, str]]) -> list[Difference]:
    paths = dict.fromkeys(path for described in settings.values() for path in described)
    rows = [
        Difference(path, {name: described.get(path, "–") for name, described in settings.items()}) for path in paths
    ]
    return [row for row in rows if len(set(row.values.values())) > 1]
