"""Umbel's log for machines and for people: one line an event, with the run, round and client that it is about.

What clients send may end up in a message. So whatever is written is printable: no line break that would forge a second
event, no escape sequence that a terminal would obey.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any, Literal

from ...core.system.printable import printable
from ...core.types import Failure, RoundRecord

LOGGER = "umbel"
MAX_TRACE = 20_000  # most characters of one traceback
FIELDS = ("run", "round", "client")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; run, round, client where known; error for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        found: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        found |= _fields(record)
        if record.exc_info and record.exc_info[0]:
            found["error"] = "".join(traceback.format_exception(*record.exc_info))[-MAX_TRACE:]
        return json.dumps(found, ensure_ascii=True, allow_nan=False)


class PlainFormatter(logging.Formatter):
    """Formatter for people: time LEVEL message (run …, round …, client …); a traceback below it, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        fields = ", ".join(f"{name} {value}" for name, value in _fields(record).items())
        line = f"{_moment(record)} {record.levelname:<7} {printable(record.getMessage())}"
        line += f" ({fields})" if fields else ""
        if record.exc_info and record.exc_info[0]:
            trace = "".join(traceback.format_exception(*record.exc_info))[-MAX_TRACE:]
            line += "".join(f"\n    {printable(part)}" for part in trace.splitlines())
        return line


class RoundFilter(logging.Filter):
    """A Watcher that logs a run, and a filter that tells every other event which run and round it belongs to.

    At info: a line per run and per round. At warning: one per client that was left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._log = logging.getLogger(f"{LOGGER}.run")
        self._run: str | None = None
        self._round: int | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what the record does not say itself; keep every record."""
        for name, value in (("run", self._run), ("round", self._round)):
            if value is not None and not hasattr(record, name):
                setattr(record, name, value)
        return True

    def on_start(self, experiment: Any, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """Log that a run begins, or goes on."""
        self._run, self._round = run, len(records) + 1
        done, planned = len(records), experiment.rounds
        what = f"goes on after round {done}" if done else "begins"
        self._log.info("%s %s: %d rounds", experiment.name, what, planned, extra={"round": done})

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Log that a round is committed, and each client that was left out of it."""
        for failure in failures:
            extra = {"client": failure.client, "round": record.round}
            self._log.warning("left out (%s): %s", failure.reason, failure.detail, extra=extra)
        said = "%d clients, %d left out, %.3f s"
        seconds = record.seconds + (record.eval_seconds or 0.0)
        self._log.info(said, record.clients, record.failures, seconds, extra={"round": record.round})
        self._round = record.round + 1

    def on_end(self, history: Any) -> None:
        """Log that the run has ended well."""
        last = len(history.rounds)
        reason = f": {history.stopped_early}" if history.stopped_early else ""
        self._log.info("%s finished%s", history.experiment, reason, extra={"round": last})
        self._run = self._round = None

    def __enter__(self) -> RoundFilter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Log what ended a run otherwise; its text is the error's own, without a traceback."""
        if error is not None:
            is_paused = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
            level = logging.WARNING if is_paused else logging.ERROR
            self._log.log(level, "ended by %s: %s", type(error).__name__, error)
        self._run = self._round = None


def configure_logs(
    form: Literal["json", "plain"], stream: IO[str], context: RoundFilter | None = None, level: int = logging.INFO
) -> logging.Handler:
    """Write the log of Umbel's own loggers to stream.

    Returns the handler, which `logging.getLogger("umbel")` now has. context: tells events the run and round. Called
    again, it takes the place of what it made before.
    """
    handler = _OwnHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    if context is not None:
        handler.addFilter(context)
    logger = logging.getLogger(LOGGER)
    for old in [one for one in logger.handlers if isinstance(one, _OwnHandler)]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


class _OwnHandler(logging.StreamHandler):
    """Handler that `configure_logs` made."""


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: getattr(record, name, None) for name in FIELDS}
    return {
        name: value if isinstance(value, int) and not isinstance(value, bool) else printable(str(value), 200)
        for name, value in found.items()
        if value is not None
    }
