"""Trials of a sweep as runs of a store: one that is there already is read, and not played again.

A trial is known by what it is, its experiment's description, and nothing else is written. So a sweep that is begun
again asks for the same trials in the same order, finds those that were played, and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ..core.errors import RunStopped
from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.runtime import Runtime
from ..core.types import RoundRecord
from ..server.events import RoundDone, Started, watched
from ..server.loop import play

if TYPE_CHECKING:  # SQLAlchemy is imported when a store is opened
    from ..server.store import Store


class Trials:
    """Plays trials, or reads them from the store."""

    def __init__(self, runtime: Runtime, store: Store | None):
        self._runtime = runtime
        self._store = store
        self._known = _runs_by_description(store)
        self.run: str | None = None  # id of the run of the last trial that was asked for

    def records(self, experiment: Experiment, watchers: Sequence[Watcher]) -> Iterator[RoundRecord]:
        """Yield the records of a trial's rounds, those that the store has first; the rest is played as it is asked for.

        Whoever stops asking pauses the run. Errors: those of `umbel.run`.
        """
        store, self.run = self._store, None
        identity = _identity(experiment.describe(), experiment.rounds)
        stored = self._known.get(identity)
        done: Sequence[RoundRecord] = ()
        if stored is not None and store is not None:
            self.run, done = stored, store.views.rounds(stored)
            yield from done
            overview = store.views.details(stored).overview
            if overview.state == "stopped":
                raise RunStopped(overview.reason or "it could not go on")
            if overview.state == "finished":
                return
        events = watched(play(experiment, self._runtime, store=store, resume=stored), watchers)
        with closing(events):
            for event in events:
                match event:
                    case Started(_, _, run, _):
                        self.run = run
                        if run is not None:
                            self._known[identity] = run
                    case RoundDone(record):
                        yield record

    def ledger(self) -> Mapping[str, int]:
        """Return the privacy events that the store has on record of the last trial: what it has released."""
        assert self._store is not None
        assert self.run is not None
        return self._store.load_run(self.run).ledger


def _runs_by_description(store: Store | None) -> dict[Any, str]:
    """Return the run of each description; where there are several, the one that came furthest."""
    found: dict[Any, tuple[int, str]] = {}
    for one in () if store is None else store.views.overviews():
        assert store is not None
        identity = _identity(store.views.details(one.run).description, one.rounds_planned)
        if identity not in found or found[identity][0] < one.rounds_done:
            found[identity] = one.rounds_done, one.run
    return {identity: run for identity, (_, run) in found.items()}


def _identity(description: Mapping[str, str], rounds: int) -> Any:
    return rounds, tuple(sorted(description.items()))
