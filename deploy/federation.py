"""All parties of a folder of kits, as processes on this machine; and who is connected, wherever they are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import ConfigError, UmbelError
from ..privacy.keys.kit import KitFile
from ..runtimes.flower.secured import Node, Operator
from . import certificates
from .authority import NEXT, stage_of
from .kits import OperatorKit, ServerKit
from .parties import require_free
from .supervisor import process_of

UP_SECONDS = 180.0  # time for every client to be connected
STOP_SECONDS = 30.0
POLL_SECONDS = 0.2
TAIL_LINES = 15
# Uncached byte code would treble the time that importing TensorFlow takes; parties cannot share a monitor's address.
NOT_INHERITED = ("PYTHONDONTWRITEBYTECODE", "UMBEL_MONITOR")


class Party(NamedTuple):
    """A kit of the folder that is run by a process of its own."""

    name: str  # "server", or the client's name
    kit: Path
    words: tuple[str, ...]  # words of the command that starts it

    @property
    def state(self) -> Path:
        """Folder in which the party's process keeps what it writes."""
        return self.kit / "state"

    @property
    def log(self) -> Path:
        """File of what the party's process says, where `up` started it."""
        return self.state / "log"


def parties(folder: Path) -> list[Party]:
    """List the server of a folder of kits, and its clients, by number. Errors: ConfigError for one without kits."""
    if not (folder / "operator" / KitFile.OPERATOR_SETTINGS).is_file():
        raise ConfigError(f"{folder} is no folder of kits; make one: umbel deploy init {folder}")
    server, operator = ServerKit.load(folder / "server"), OperatorKit.load(folder / "operator")
    found = [Party("server", folder / "server", ("server", "start", str(folder / "server")))]
    for name in operator.members:
        kit = folder / "clients" / name
        words = ("client", "start", str(kit), "--address", f"127.0.0.1:{server.port}")
        found.append(Party(name, kit, words))
    return found


def up(folder: Path, say: Callable[[str], None]) -> None:
    """Start every party that does not run yet, in the background, and wait until every client is connected.

    Errors: ConfigError, UmbelError when one cannot start, with the end of its log; what was started is then ended.
    """
    found, operator = parties(folder), OperatorKit.load(folder / "operator")
    started: list[tuple[Party, subprocess.Popen]] = []
    before: set[tuple[str, str]] = set()  # what the server took for online, though its process has ended
    try:
        for party in found:
            if process_of(party.state) is None:
                if party.name == "server":  # else its clients would find whoever has the port
                    require_free(ServerKit.load(party.kit).port)
                before |= {one for one in _online(operator) if one[0] == party.name}
                started.append((party, _start(party)))
                say(f"{party.name}: started, log in {party.log}")
            if party.name == "server":
                _wait(lambda: nodes(operator) is not None, started)
        _wait(lambda: {name for name, _ in _online(operator) - before} >= set(operator.members), started)
    except BaseException:
        stop(folder, only=[party.name for party, _ in started])
        raise


def stop(folder: Path, only: list[str] | None = None) -> list[str]:
    """End the parties of a folder that run on this machine; return who was ended, in this order.

    The server is first, so that no round ends for want of clients that were stopped. Those that do not follow within 30
    seconds are killed.
    """
    found = [party for party in parties(folder) if only is None or party.name in only]
    running = [(party, process) for party in found if (process := process_of(party.state)) is not None]
    deadline = time.monotonic() + STOP_SECONDS
    _end([one for one in running if one[0].name == "server"], deadline)
    _end([one for one in running if one[0].name != "server"], deadline)
    return [party.name for party, _ in running]


def status(folder: Path) -> dict[str, Any]:
    """Return what a folder of kits, or an operator's kit, says of its federation.

    server: {address, connected, process}; clients: [{name, state, since, process}], state being "online", "offline",
    "registered" for one that never came, "unregistered", or "unknown" without a server, and trusts the SHA-256 of each
    authority that one which is online trusts, null where it does not say; authority: {stage, next}, the stage being
    "steady", or "trusted" or "switched" while one takes another's place (see `authority`), next what to do about it;
    certificates: [{file, sha256, expires, days}]; runs: [{run, status, started}], those that have not finished.
    process: number of the process, on this machine.
    """
    is_whole = (folder / "operator").is_dir()
    operator = OperatorKit.load(folder / "operator" if is_whole else folder)
    found = nodes(operator)
    by_name, trusts = {node.name: node for node in found or []}, {} if found is None else trusts_of(operator)
    stage = stage_of(operator.folder)
    clients = []
    for name in operator.members:
        node = by_name.get(name)
        state = "unknown" if found is None else "unregistered" if node is None else node.status
        process = process_of(folder / "clients" / name / "state") if is_whole else None
        trusted = sorted(trusts.get(name) or ()) or None
        since = node.since if node else ""
        clients.append({"name": name, "state": state, "since": since, "process": process, "trusts": trusted})
    files = [operator.authority, folder / "server" / KitFile.CERTIFICATE] if is_whole else [operator.authority]
    return {
        "server": {
            "address": operator.address,
            "connected": found is not None,
            "process": process_of(folder / "server" / "state") if is_whole else None,
        },
        "clients": clients,
        "authority": {"stage": stage, "next": NEXT[stage]},
        "certificates": [one for path in files for one in _certificates(path)],
        "runs": [] if found is None else [run._asdict() for run in _with(operator, Operator.runs)],
    }


def nodes(operator: OperatorKit) -> list[Node] | None:
    """List every registered node; None where the server does not answer.

    Errors: ConfigError when it refuses the token, or is not the federation's.
    """
    host, port = certificates.host_and_port(operator.address)
    try:
        certificates.probe(host, port, operator.authority)
        return _with(operator, Operator.nodes)
    except ConfigError:
        raise
    except (OSError, UmbelError):
        return None


def trusts_of(operator: OperatorKit) -> dict[str, frozenset[str] | None]:
    """Return {client: SHA-256 of each authority that it trusts} of the clients that are online.

    The value is None for a client that does not say. Errors: those of `Operator`.
    """
    trusts = _with(operator, Operator.trusts)
    return {
        node.name: trusts.get(node.public_key) for node in _with(operator, Operator.nodes) if node.status == "online"
    }


def _with(operator: OperatorKit, question: Callable[[Operator], Any]) -> Any:
    with Operator(operator.address, operator.authority, operator.token) as connection:
        return question(connection)


def _online(operator: OperatorKit) -> set[tuple[str, str]]:
    """Return (name, since when) of each client that the server takes for connected."""
    return {(node.name, node.since) for node in nodes(operator) or [] if node.status == "online"}


def _start(party: Party) -> subprocess.Popen:
    own = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    with open(os.open(party.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "umbel", *party.words],
            env=own,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives this command
        )


def _wait(ready: Callable[[], bool], started: list[tuple[Party, subprocess.Popen]]) -> None:
    """Return once ready(). Errors: UmbelError when a process ends first, or time is up, with the end of its log."""
    deadline = time.monotonic() + UP_SECONDS
    while not ready():
        for party, process in started:
            if process.poll() is not None:
                raise UmbelError(f"{party.name} ended with status {process.returncode}; {_tail(party)}")
        if time.monotonic() > deadline:
            logs = "\n".join(_tail(party) for party, _ in started)
            raise UmbelError(f"not every client was connected after {UP_SECONDS:g} seconds\n{logs}")
        time.sleep(POLL_SECONDS)


def _tail(party: Party) -> str:
    lines = party.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    return f"{party.log} ends:\n" + "\n".join(lines)


def _end(running: list[tuple[Party, int]], deadline: float) -> None:
    """Ask processes to end, and end those that have not by the deadline."""
    for _, process in running:
        _signal(process, signal.SIGTERM)
    for party, process in running:
        while process_of(party.state) == process and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
        if process_of(party.state) == process:
            _signal(process, signal.SIGKILL)


def _signal(process: int, number: int) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise ConfigError(f"process {process} is another user's; end it as that user") from error


def _certificates(path: Path) -> list[dict[str, Any]]:
    found, now = certificates.load_all(path), datetime.now(UTC)
    return [
        {
            "file": str(path),
            "sha256": certificates.fingerprint(one),
            "expires": one.not_valid_after_utc.isoformat(timespec="seconds"),
            "days": round((one.not_valid_after_utc - now).total_seconds() / 86400, 1),
        }
        for one in found
    ]
