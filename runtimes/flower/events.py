"""A run's events on their way from the ServerApp to whoever submitted it.

Each is a name and one JSON object: "notice" {text}, "start" {run, records}, "round" {record, failures}, "final"
(History.final), and "error" {kind, message} for a run that failed, which Flower then lists as failed too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from ...core.errors import UmbelError, error_named
from ...core.types import Failure, RoundRecord
from ...server.events import Event, Finished, Notice, RoundDone, Started

Message = tuple[str, dict[str, Any]]
ERROR = "error"


def packed(event: Event) -> Message:
    """Pack the event as it travels. What single clients measured stays at the server, and so does the model."""
    match event:
        case Notice(text):
            return "notice", {"text": text}
        case Started(_, _, run, records):
            return "start", {"run": run, "records": [record._asdict() for record in records]}
        case RoundDone(record, failures, _):
            return "round", {"record": record._asdict(), "failures": [list(one) for one in failures]}
        case Finished(final, _):
            return "final", dict(final)


def packed_error(error: Exception) -> Message:
    """Pack an error that ended a run, as it travels."""
    kind = type(error).__name__
    return ERROR, {"kind": kind, "message": str(error) if isinstance(error, UmbelError) else f"{kind}: {error}"}


def unpacked(messages: Iterable[Message]) -> Iterator[Event]:
    """Yield the events that messages hold, each round once: around an outage one is pushed twice.

    Errors: the one that ended the run, of the class it had at the server.
    """
    last = 0
    for name, content in messages:
        if name == "notice":
            yield Notice(content["text"])
        elif name == "start":
            records = tuple(RoundRecord.of(record) for record in content["records"])
            yield Started(None, None, content["run"], records)
        elif name == "round":
            record = RoundRecord.of(content["record"])
            if record.round > last:
                last = record.round
                yield RoundDone(record, [Failure(*failure) for failure in content["failures"]])
        elif name == "final":
            yield Finished(content, None)
        elif name == ERROR:
            raise_error(content)


def raise_error(content: dict[str, str]) -> NoReturn:
    """Raise the error that ended a run, of the class it had at the server."""
    raise (error_named(content["kind"]) or UmbelError)(content["message"])
