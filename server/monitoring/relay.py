"""Relay from the process that plays a run to the one that outlives it and is asked for metrics, by local datagrams.

A run never waits for its monitor, and never fails because of it: what cannot be delivered at once is dropped.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

from ...core import errors
from ...core.types import Failure, RoundRecord
from .metrics import OTHER
from .monitor import EXAMPLES, MEASURES, REASONS, Monitor

log = logging.getLogger(__name__)

RELAY_VARIABLE = "UMBEL_MONITOR_SOCKET"  # path of the socket, for processes below the one that listens
MAX_BYTES = 65536  # most bytes of a datagram; what is sent has a bounded size, however many clients failed
SHOWN = frozenset(f"{examples}_{measure}" for examples in EXAMPLES for measure in MEASURES)


@contextlib.contextmanager
def relayed() -> Iterator[list[Relay]]:
    """Yield what to add to a run's watchers, with the run inside the block: nothing where no monitor listens."""
    path = os.environ.get(RELAY_VARIABLE)
    if not path:
        yield []
        return
    with Relay(path) as relay:
        yield [relay]


class Relay:
    """A Watcher that passes on what a Monitor counts. As a `with` block around a run, also what ended it otherwise."""

    def __init__(self, path: str):
        self._path, self._started = path, False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def on_start(self, experiment: Any, runtime: Any, run: str | None, records: Sequence[RoundRecord]) -> None:
        """Pass on that a run begins, or goes on."""
        self._started = True
        hides = experiment.secure_aggregation is not None
        flat = {"rounds": experiment.rounds, "clients": len(experiment.population), "hides": hides}
        self._send("start", flat | {"done": [_flat(record) for record in records[-1:]], "count": len(records)})

    def on_round(self, record: RoundRecord, failures: Sequence[Failure]) -> None:
        """Pass on that a round is committed."""
        reasons = Counter(failure.reason if failure.reason in REASONS else OTHER for failure in failures)
        self._send("round", {"record": _flat(record), "reasons": dict(reasons)})

    def on_end(self, history: Any) -> None:
        """Pass on that the run has finished."""
        self._send("end", {})

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and self._started:
            is_paused = isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt)
            self._send("error", {"kind": "KeyboardInterrupt" if is_paused else type(error).__name__})
        self._socket.close()

    def _send(self, name: str, content: dict[str, Any]) -> None:
        try:
            self._socket.sendto(json.dumps({"event": name, **content}).encode(), self._path)
        except OSError as error:
            log.debug("the monitor did not take an event: %s", error)


class Inbox:
    """Takes what relays send, for a Monitor, in a `with` block; processes started inside find it."""

    def __init__(self, monitor: Monitor):
        self._monitor = monitor

    def __enter__(self) -> Inbox:
        # A folder of its own: the path of a socket has at most 107 bytes, and only this user may write to it.
        self._folder = tempfile.TemporaryDirectory(prefix="umbel-monitor-")
        path = str(Path(self._folder.name) / "events")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._before = os.environ.get(RELAY_VARIABLE)
        os.environ[RELAY_VARIABLE] = path
        self._thread = threading.Thread(target=self._listen, name="umbel-monitor-events", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        path = os.environ.pop(RELAY_VARIABLE)
        if self._before is not None:
            os.environ[RELAY_VARIABLE] = self._before
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", path)  # wakes the thread, which ends
        self._thread.join(timeout=5)
        self._socket.close()
        self._folder.cleanup()

    def _listen(self) -> None:
        while content := self._socket.recv(MAX_BYTES):
            try:
                self._take(json.loads(content))
            except Exception:  # a process of another version, perhaps; the monitor outlives it
                log.warning("the monitor did not understand an event", exc_info=True)

    def _take(self, event: dict[str, Any]) -> None:
        monitor = self._monitor
        match event["event"]:
            case "start":
                aggregation = True if event["hides"] else None
                experiment = SimpleNamespace(
                    rounds=event["rounds"], population=range(event["clients"]), secure_aggregation=aggregation
                )
                last = [RoundRecord.of(record) for record in event["done"]]
                monitor.on_start(experiment, None, None, last * event["count"])
            case "round":
                reasons = event["reasons"].items()
                failures = [Failure(-1, reason, "") for reason, count in reasons for _ in range(count)]
                monitor.on_round(RoundRecord.of(event["record"]), failures)
            case "end":
                monitor.on_end(None)
            case "error":
                kind: type[BaseException] = KeyboardInterrupt
                if event["kind"] != "KeyboardInterrupt":
                    kind = errors.error_named(event["kind"]) or Exception
                monitor.on_error(kind())


def _flat(record: RoundRecord) -> dict[str, Any]:
    """Return the record as a dict, without metrics that nobody counts: there may be thousands."""
    return record._asdict() | {"metrics": {name: value for name, value in record.numbers.items() if name in SHOWN}}
