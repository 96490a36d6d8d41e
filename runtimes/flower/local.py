"""A real federation on this machine: one SuperLink and N clients, as child processes on loopback."""

from __future__ import annotations

import json
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from ...core.errors import UmbelError
from ...core.parts.private import RemoteAggregation
from ...core.reading.loading import load_experiment
from ...core.reading.overrides import fit_to
from ...core.validation import require_count
from ...server.events import Events, Finished
from .control import ControlApi
from .events import Message, unpacked
from .identity import KIT_VARIABLE
from .memory import client_home
from .processes import NOTHING_OF_OTHERS, Processes, free_ports, healthy
from .secure import LOCAL_KIT_VARIABLE
from .server import STORE_VARIABLE

START_SECONDS = 90.0  # time for the SuperLink to answer; it takes one or two, and longer on a machine that is busy
WATCH_SECONDS = 0.2  # time between two looks at whether all processes still live


class LocalFederation:
    """A SuperLink and `clients` nodes, a process each, inside a `with` block, for one run after another.

        with LocalFederation(clients=3) as federation:
            for event in federation.submit("digits_fedavg", ["rounds=2"]):
                ...

    store: URL of the database that runs are kept in; it never leaves the server's processes. memory: folder for what
    clients keep between rounds; by default `client_home()`. replicas: number of devices among which each client's
    batches are divided, as in a simulation. A client whose process dies is started again.
    Leaving the block ends every process, also on Ctrl-C, SIGTERM and errors; if this process is killed, they end
    themselves. Connections are not encrypted, and reach no further than this machine. What clients
    of a hidden sum prove themselves by is made up here, for the federation's life: it keeps nobody on this machine out.
    """

    def __init__(self, clients: int, *, store: str | None = None, memory: Path | str | None = None, replicas: int = 1):
        require_count("clients", clients)
        require_count("replicas", replicas)
        self.clients, self.store, self.replicas = clients, store, replicas
        self.memory = client_home() if memory is None else Path(memory)

    def __enter__(self) -> LocalFederation:
        with ExitStack() as stack:
            stack.enter_context(_sigterm_unwinds())
            home = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="umbel-flower-", ignore_cleanup_errors=True))
            )
            self._processes = stack.enter_context(Processes(home))
            self._start()
            stack.callback(self._control.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def submit(
        self,
        reference: str,
        overrides: Sequence[str] = (),
        *,
        resume: str | None = None,
        timeout_seconds: float = 600.0,
        over_selection: float = 1.0,
        join_seconds: float = 120.0,
        compile: str = "graph",
    ) -> Events:
        """Start a run, and yield its events until it has finished. A caller that leaves ends the run.

        The model stays in the server's store: Finished has no history, and Started no experiment.

        Errors: those of `umbel.run`, raised here as they were there; UmbelError when a process of the federation dies
        or the run fails otherwise, with the end of its log.
        """
        # Children may run in another folder than the one that a path is relative to.
        path = Path(reference).expanduser()
        aggregation = load_experiment(reference, overrides).resolved.secure_aggregation
        if isinstance(aggregation, RemoteAggregation):
            aggregation.provision(
                self._kit("server"), {client: self._kit(f"client-{client}") for client in range(self.clients)}
            )
        config = app_config(
            str(path.resolve()) if path.suffix == ".py" else reference,
            overrides,
            self.clients,
            resume,
            timeout_seconds=timeout_seconds,
            over_selection=over_selection,
            join_seconds=join_seconds,
            compile=compile,
        )
        yield from self._play(pyproject(config))

    def _play(self, app: str) -> Events:
        """Yield the events of a run of app, from its start to its end."""
        run_id = self._control.start_run(app)
        done = False
        try:
            for event in unpacked(self._follow(run_id)):
                yield event
                done = isinstance(event, Finished)
            if not done:
                status = self._control.status(run_id)
                raise UmbelError(
                    f"the run {status.sub_status or status.status}: {status.details or 'no reason given'}\n"
                    + self._processes.log_tail("SuperExec")
                )
        finally:
            if not done:
                self._stop(run_id)

    def _start(self) -> None:
        (link,) = free_ports(1)
        address = f"127.0.0.1:{link}"
        self._processes.start("SuperLink", ["link", "--port", str(link)], NOTHING_OF_OTHERS)
        self._processes.wait_until(lambda: healthy(address), START_SECONDS, "the SuperLink does not answer")
        executor, own = ["link.executor", address], self._variables("server")
        self._processes.start("SuperExec", executor, {STORE_VARIABLE: self.store or ""} | own)
        for client in range(self.clients):
            own, name = NOTHING_OF_OTHERS | self._variables(f"client-{client}"), f"client-{client}"
            place = ["--client", str(client), "--clients", str(self.clients), "--replicas", str(self.replicas)]
            folders = ["--home", str(self.memory / name), "--state", str(self._processes.home / name)]
            self._processes.start(f"client {client}", ["node", address, *place, *folders], own, restart=True)
        self._control = ControlApi(address)

    def _kit(self, party: str) -> Path:
        """Return the folder where a party finds what hidden sums need; for as long as this federation lives."""
        return self._processes.home / "kits" / party

    def _variables(self, party: str) -> dict[str, str]:
        """Return a party's variables: a kit in this process's own environment is another federation's."""
        return {KIT_VARIABLE: "", LOCAL_KIT_VARIABLE: str(self._kit(party))}

    def _follow(self, run_id: int) -> Iterator[Message]:
        """Yield what a run pushes; raise as soon as a process dies instead of waiting for events that cannot come."""
        events: queue.SimpleQueue[Message | Exception | None] = queue.SimpleQueue()

        def read() -> None:
            try:
                for event in self._control.events(run_id):
                    events.put(event)
                events.put(None)
            except Exception as error:  # the connection broke: the process that died says why
                events.put(error)

        threading.Thread(target=read, name="umbel-events", daemon=True).start()
        while True:
            try:
                event = events.get(timeout=WATCH_SECONDS)
            except queue.Empty:
                self._processes.check()
                continue
            if event is None:
                return
            if isinstance(event, Exception):
                time.sleep(WATCH_SECONDS)
                self._processes.check()
                raise UmbelError(f"lost the SuperLink: {type(event).__name__}: {event}") from event
            yield event

    def _stop(self, run_id: int) -> None:
        """End a run that its submitter gave up; a SuperLink that is gone has ended it already."""
        try:
            if self._control.status(run_id).status != "finished":
                self._control.stop_run(run_id)
        except Exception:
            return


def play_local(
    reference: str,
    overrides: Sequence[str] = (),
    *,
    clients: int = 3,
    store: str | None = None,
    resume: str | None = None,
    timeout_seconds: float = 600.0,
) -> Events:
    """Yield the events of a run on a real SuperLink and `clients` nodes on this machine, which end with it.

    reference, overrides: as for `load_experiment`; the population is cut into `clients` clients. Errors: those of
    `umbel.run`; UmbelError when a process dies, with the end of its log.
    """
    require_count("clients", clients)
    overrides = [*overrides, *fit_to(load_experiment(reference, overrides), clients)]
    with LocalFederation(clients, store=store) as federation:
        yield from federation.submit(reference, overrides, resume=resume, timeout_seconds=timeout_seconds)


def app_config(
    reference: str,
    overrides: Sequence[str],
    clients: int,
    resume: str | None,
    *,
    timeout_seconds: float = 600.0,
    over_selection: float = 1.0,
    join_seconds: float = 120.0,
    compile: str = "graph",
    digest: str = "",
    source: str = "",
    quorum: int = 0,
) -> dict[str, Any]:
    """Return a run's configuration, as `server` reads it."""
    return {
        "experiment": reference,
        "overrides": json.dumps(list(overrides)),
        "clients": clients,
        "quorum": quorum,
        "resume": resume or "",
        "timeout_seconds": float(timeout_seconds),
        "over_selection": float(over_selection),
        "join_seconds": float(join_seconds),
        "compile": compile,
        "digest": digest,
        "source": source,
    }


def pyproject(config: dict[str, Any]) -> str:
    """Write the whole app that Flower ships: which installed functions to call, and with what configuration.

    No dependencies: Flower would install them into a fresh environment for every run.
    """
    values = "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in config.items())
    package = __name__.rpartition(".")[0]
    return f"""\
[project]
name = "umbel"
version = "{version("umbel")}"
dependencies = []

[tool.flwr.app]
publisher = "umbel"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
{values}
"""


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM raise SystemExit inside, so that `with` blocks close. Left alone where it is handled already."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
