"""The ServerApp: the run of an experiment over the grid, its events told to whoever submitted it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...core.errors import ConfigError
from ...core.experiment import Experiment
from ...core.reading.loading import load_experiment, source_digest
from ...core.system.printable import printable
from ...server.events import Event, Notice, Started, history_of, told, watched
from ...server.loop import play
from ...server.monitoring import relayed
from .events import packed, packed_error
from .identity import KIT_VARIABLE, identity_of_this_process
from .line import Ticket, turn
from .link.grid import push_event
from .runtime import FlowerRuntime

if TYPE_CHECKING:  # SQLAlchemy is imported where there is a store
    from ...server.store import Store

# The store's URL may hold a password. A run's configuration is sent to every client; this process's environment is not.
STORE_VARIABLE = "UMBEL_STORE"

MOST_REFUSALS = 1000  # the most refusals that a run puts on record
LONGEST_SUBJECT = 500  # the most characters that the audit log takes

app = ServerApp()
log = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run's configuration names.

    Keys: experiment (name or path), overrides (JSON list of key=value), clients (to wait for; 0: all that the roster
    lists), quorum (0: all of them), timeout_seconds, over_selection, join_seconds, compile, resume (a run's id, or ""),
    digest and source (of the submitter's experiment and its file, or ""). The store's URL is read from the variable
    UMBEL_STORE.
    """
    config = context.run_config
    try:
        experiment = named_experiment(config)
        runtime = FlowerRuntime(
            grid,
            clients=int(config["clients"]) or None,
            quorum=int(config["quorum"]) or None,
            timeout_seconds=float(config["timeout_seconds"]),
            over_selection=float(config["over_selection"]),
            join_seconds=float(config["join_seconds"]),
            compile=str(config["compile"]),  # type: ignore[arg-type]
            identity=identity_of_this_process(),
            refused=(refusals := Refusals()),
        )
        resume = str(config["resume"]) or None
        try:
            with interrupted_by_signals(), opened_store() as refusals.store, relayed() as monitors:
                if refusals.store is not None and resume is not None:
                    refusals.store.check_free(resume)  # before it waits in line for the run that it would repeat
                with turn(_line(), experiment.name, lambda text: push_event(grid, *packed(Notice(text)))) as ticket:
                    events = told(
                        play(experiment, runtime, store=refusals.store, resume=resume),
                        lambda event: push_event(grid, *packed(_noted(event, ticket, experiment))),
                    )
                    history_of(watched(events, monitors))
        finally:
            runtime.close()
    except Exception as error:
        push_event(grid, *packed_error(error))
        raise  # Flower must not list this run as completed


def _line() -> Path | None:
    """Return where runs of this federation wait in line; None for a federation of one run."""
    kit = os.environ.get(KIT_VARIABLE)
    return Path(kit, "state", "line") if kit else None


def _noted(event: Event, ticket: Ticket | None, experiment: Experiment) -> Event:
    """Return the event; a run that has begun is called by its name from then on."""
    if isinstance(event, Started) and event.run is not None and ticket is not None:
        ticket.name(f"run {event.run} of {experiment.name}")
    return event


def named_experiment(config: Mapping[str, Any]) -> Experiment:
    """Load the experiment that a run's configuration names, as it is on the server.

    Errors: ConfigError where there is none, and where it is not the submitter's.
    """
    try:
        experiment = load_experiment(str(config["experiment"]), json.loads(str(config["overrides"])))
    except ConfigError as error:
        raise ConfigError(f"the server cannot load the experiment: {error}") from error
    mine, theirs = source_digest(str(config["experiment"])), str(config["source"])
    if theirs and mine != theirs:
        raise ConfigError(
            f"the server's copy of {config['experiment']} differs from the operator's ({mine[:12]} there, "
            f"{theirs[:12]} where the run was submitted); copy the same file into the folder experiments of every kit"
        )
    submitted = str(config["digest"])
    if submitted and submitted != experiment.digest:
        raise ConfigError(
            f"experiment {experiment.name!r} is {submitted[:12]} where the run was submitted, and "
            f"{experiment.digest[:12]} at the server; copy the same file into the folder experiments of every kit"
        )
    return experiment


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Pause the run inside before Flower's signals end this process: SIGTERM; SIGINT for a run that was stopped."""
    received: list[int] = []

    def interrupt(number: int, frame: object) -> NoReturn:
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if signal.SIGTERM in received:
            os._exit(0)  # all is said; Flower's own way out would wait for a SuperLink that was asked to end, too
        if received:
            signal.raise_signal(received[0])


@contextlib.contextmanager
def opened_store() -> Iterator[Store | None]:
    """Open the store that this process's environment names; None where it names none."""
    url = os.environ.get(STORE_VARIABLE)
    if not url:
        yield None
        return
    from ...server.store import Store

    with Store.open(url) as store:
        yield store


class Refusals:
    """A record of whom a run refused, and who refused it: in the log, and in the store's audit log. Once each."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self._known: set[tuple[str, str]] = set()

    def __call__(self, action: str, about: str) -> None:
        """Take note. Whoever is refused in every round fills no log, nor does one who is refused in ever new words."""
        if (action, about) in self._known or len(self._known) >= MOST_REFUSALS:
            return
        self._known.add((action, about))
        log.warning("%s: %s", action, about)
        if self.store is not None:
            self.store.audit.append("server", action, printable(about, LONGEST_SUBJECT))
