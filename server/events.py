"""A run as a stream of events, the same for a simulation and for a fleet; and watchers as a function over it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..core.experiment import Experiment
from ..core.protocols import Watcher
from ..core.runtime import Runtime
from ..core.types import ClientValues, Failure, RoundRecord
from .each_client import ClientWatcher
from .history import History


@dataclass(frozen=True, eq=False)
class Notice:
    """Event: something to know of how the run is played, such as which run is before it. It may come at any time."""

    text: str  # one line


@dataclass(frozen=True, eq=False)
class Started:
    """Event: the run is there, before its first round."""

    experiment: Experiment | None  # None: another process has loaded it
    runtime: Runtime | None  # None: another process plays the rounds
    run: str | None  # id of the run in the store; None without one
    records: tuple[RoundRecord, ...]  # records of the rounds that a resumed run has already


@dataclass(frozen=True, eq=False)
class RoundDone:
    """Event: a round is committed, and nothing of it is lost, or done again."""

    record: RoundRecord
    failures: Sequence[Failure]  # the clients that were left out; nobody under a plan whose cohort is secret
    clients: ClientValues | None = None  # what each client measured, where the round had an evaluation that shows it


@dataclass(frozen=True, eq=False)
class Finished:
    """Event: the run has ended well. It is the last event."""

    final: Mapping[str, Any]  # see History.final
    history: History | None  # None: it is in the store of the process that played the run


Event = Notice | Started | RoundDone | Finished
Events = Generator[Event, None, None]


@runtime_checkable
class StopWatcher(Watcher, Protocol):
    """A Watcher that also hears of a run that ends before its end: by an error, or because it was paused."""

    def on_stop(self, error: BaseException) -> None:
        """Hear what ended the run: KeyboardInterrupt or GeneratorExit where it was paused."""


@runtime_checkable
class AttentiveWatcher(Watcher, Protocol):
    """A Watcher that also hears what there is to know of how a run is played."""

    def on_notice(self, text: str) -> None:
        """Hear it, in a line."""


def told(events: Events, tell: Callable[[Event], None]) -> Events:
    """Yield the same events, each once tell has taken it.

    What tell or the consumer raises, or that the consumer leaves, ends the run where the event was told: the run notes
    it as it would an error of its own.
    """
    with contextlib.closing(events):
        for event in events:
            try:
                tell(event)
                yield event
            except BaseException as error:
                events.throw(error)
                raise


def watched(events: Events, watchers: Sequence[Watcher]) -> Events:
    """Yield the same events, each once all watchers have seen it. Errors of theirs: see `told`."""

    def tell(event: Event) -> None:
        for watcher in watchers:
            show(event, watcher)

    try:
        yield from told(events, tell)
    except BaseException as error:
        for watcher in watchers:
            if isinstance(watcher, StopWatcher):
                watcher.on_stop(error)
        raise


def show(event: Event, watcher: Watcher) -> None:
    """Call the method of watcher that is for this event."""
    match event:
        case Notice(text):
            if isinstance(watcher, AttentiveWatcher):
                watcher.on_notice(text)
        case Started(experiment, runtime, run, records):
            watcher.on_start(experiment, runtime, run, records)
        case RoundDone(record, failures, clients):
            watcher.on_round(record, failures)
            if clients is not None and isinstance(watcher, ClientWatcher):
                watcher.on_clients(clients)
        case Finished(_, history):
            watcher.on_end(history)


def history_of(events: Events) -> History:
    """Consume a run's events, and return its history."""
    history = None
    with contextlib.closing(events):
        for event in events:
            if isinstance(event, Finished):
                history = event.history
    assert history is not None
    return history
