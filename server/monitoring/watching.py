"""Watching a run from outside: its log, its metrics, its health. `umbel run --log json --monitor HOST:PORT`.

`python -m umbel.server.monitoring.watching healthz` (or readyz) asks a server on this machine, for a container's
health check.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

from ...core.errors import UmbelError
from ...core.protocols import Watcher

log = logging.getLogger(__name__)

MONITOR_VARIABLE = "UMBEL_MONITOR"  # HOST:PORT at which `umbel server start` and `umbel client start` serve
LOGGED = "written to the log"

Form = Literal["json", "plain"]


@contextlib.contextmanager
def logged(form: Form | None, stream: IO[str] | None = None) -> Iterator[list[Watcher]]:
    """Write Umbel's log to stream inside the block, and yield watchers that log the run. Form None: nothing.

    stream: None for standard error.

    An error that leaves the block is logged, and raised on; `was_logged` finds out.
    """
    if form is None:
        yield []
        return
    from ..monitoring import RoundFilter, configure_logs

    logger, rounds = logging.getLogger("umbel"), RoundFilter()
    level, handler = logger.level, configure_logs(form, stream or sys.stderr, rounds)
    try:
        with rounds:
            yield [rounds]
    except UmbelError as error:
        error.add_note(LOGGED)
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def was_logged(error: BaseException) -> bool:
    """Say whether `logged` has written this error to the log: a second line in another form would only disturb it."""
    return LOGGED in getattr(error, "__notes__", ())


@contextlib.contextmanager
def monitored(
    address: str | None,
    store: str | None,
    store_key: str | None = None,
    certificates: Mapping[str, Path | str] | None = None,
) -> Iterator[list[Watcher]]:
    """Serve /metrics, /healthz and /readyz at HOST:PORT inside the block, of the runs that the watchers see.

    Address None: nothing is served.

    Ready is who has a store that takes writes, where there is one, and certificates, PEM files by role, that are valid
    for a day more.
    Errors: ConfigError for an address that cannot be listened on.
    """
    if address is None:
        yield []
        return
    from ..monitoring import Exporter, Monitor, certificate_check, database_check

    certificates = certificates or {}
    ready = {} if store is None else {"database": database_check(store, store_key)}
    ready |= {f"certificate_{role}": certificate_check(path) for role, path in certificates.items()}
    with Monitor(certificates) as monitor, Exporter(address, monitor.text, {"loop": monitor.check_loop}, ready) as at:
        log.info("metrics and health at http://%s/metrics, /healthz, /readyz", at.address)
        yield [monitor]


@contextlib.contextmanager
def monitored_party(
    address: str | None,
    certificates: Mapping[str, Path | str],
    store: str | None = None,
    alive: Mapping[str, Callable[[], None]] | None = None,
) -> Iterator[None]:
    """Serve /metrics, /healthz and /readyz at HOST:PORT inside, of the runs that processes below this one play.

    For `umbel server start`, whose store is made if it is not there, and `umbel client start`, which has none. address
    None: the variable UMBEL_MONITOR; without it nothing is served. A run's process takes part by
    `server.monitoring.relayed`. alive: more checks behind /healthz. Errors: ConfigError for an address
    that cannot be listened on.
    """
    address = address or os.environ.get(MONITOR_VARIABLE) or None
    if address is None:
        yield
        return
    from ..monitoring import Exporter, Inbox, Monitor, certificate_check, database_check

    ready = {f"certificate_{role}": certificate_check(path) for role, path in certificates.items()}
    if store is not None:
        ready["database"] = database_check(store, create=True)
    monitor = Monitor(certificates)
    living = {"loop": monitor.check_loop, **(alive or {})}
    with Inbox(monitor), Exporter(address, monitor.text, living, ready) as at:
        log.info("metrics and health at http://%s/metrics, /healthz, /readyz", at.address)
        monitor.warn_of_certificates()
        yield


def holds(page: str, address: str) -> bool:
    """Return whether the monitor at address answers that all is well."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/{page}", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not holds(sys.argv[1], os.environ[MONITOR_VARIABLE]))
