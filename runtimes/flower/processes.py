"""Child processes that end together, with a log each, and say why one of them died."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...core.errors import UmbelError
from .control import without_proxy
from .identity import KIT_VARIABLE

GRACE_SECONDS = 3.0  # time between asking a process to end and ending it
TAIL_LINES = 12
MAX_DEATHS = 5  # most deaths, of those not forgiven, after which one process is started again
FORGIVEN_SECONDS = 60.0  # time for which each death counts
POLL_SECONDS = 0.05

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",  # each of Flower's processes would report to its maker,
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # ask for a newer version,
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # and make an environment anew for every run
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


# What a process inherits must not hold what is not its own: the database's password, another party's keys.
NOTHING_OF_OTHERS = dict.fromkeys(
    ("UMBEL_STORE", "UMBEL_STORE_KEY", "UMBEL_MODEL_KEY", "UMBEL_CONTROL_TOKENS", KIT_VARIABLE), ""
)


class Processes:
    """Flower processes below this one, in a `with` block that ends them all; logs and Flower's files lie in `home`."""

    def __init__(self, home: Path):
        self.home = home
        self._running: dict[str, subprocess.Popen] = {}
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._mourned: set[int] = set()
        self._deaths: dict[str, list[float]] = {}  # when they died, of those that are started again

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], extra: Mapping[str, str] | None = None, restart: bool = False
    ) -> None:
        """Start a process of ours: "link", "link.executor" or "node", and its options. extra: variables for it.

        restart: when it dies, `check` starts it again, at once and then ever later, up to MAX_DEATHS times in a row.
        """
        package, (module, *options) = __name__.rpartition(".")[0], command
        words = [sys.executable, "-m", f"{package}.{module}", str(os.getpid()), *options]
        self._commands[name] = words, environment(self.home, extra or {})
        if restart:
            self._deaths[name] = []
        self._log(name).unlink(missing_ok=True)
        self._launch(name)

    def _launch(self, name: str) -> None:
        words, environment = self._commands[name]
        with open(self._log(name), "ab") as log:
            self._running[name] = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours alone, and what the process starts can be ended with it
            )

    def check(self) -> None:
        """Start again what is to be started again. Raise UmbelError, with the end of its log, when another has died."""
        for name, process in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            died, now = self._deaths.get(name), time.monotonic()
            if died is not None and process.pid not in self._mourned:
                self._mourned.add(process.pid)
                died[:] = [when for when in died if now - when < FORGIVEN_SECONDS] + [now]
            if died is None or len(died) > MAX_DEATHS:
                raise UmbelError(f"{name} ended with status {status}; its log ends:\n{self.log_tail(name)}")
            if now - died[-1] >= len(died) - 1:
                _signal_group(process, signal.SIGKILL)  # what it had started
                self._launch(name)

    def wait_until(self, ready: Callable[[], bool], seconds: float, complaint: str) -> None:
        """Return once ready(). Errors: UmbelError when a process dies first, or after `seconds`."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise UmbelError(
                    f"{complaint} after {seconds:g} seconds\n" + "\n".join(map(self.log_tail, self._running))
                )
            time.sleep(POLL_SECONDS)

    def log_tail(self, name: str) -> str:
        """Return the last lines that a process, and those below it, wrote; without colours and empty log lines."""
        text = re.sub(r"\x1b\[\d*m", "", self._log(name).read_text(errors="replace"))
        return "\n".join(
            [line for line in text.splitlines() if not re.fullmatch(r"(INFO\s*:)?\s*", line)][-TAIL_LINES:]
        )

    def stop(self) -> None:
        """End every process and whatever it started; returns when they are gone."""
        for process in self._running.values():
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._running.values():
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self._running = {}

    def _log(self, name: str) -> Path:
        return self.home / f"{name.lower().replace(' ', '-')}.log"


def environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment, for Flower on this machine alone: its files in home, commands on the path."""
    own = {**os.environ, **SWITCHES, **extra, "FLWR_HOME": str(home)}
    # Uncached byte code would treble the time that importing TensorFlow takes.
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    own["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), own.get("PATH", os.defpath)])
    return without_proxy(own)


def free_ports(count: int) -> list[int]:
    """Find distinct ports of 127.0.0.1 that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def healthy(address: str) -> bool:
    """Return whether a Flower server answers at address."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/health", timeout=2) as reply:
            return reply.status < 300
    except OSError:
        return False


def _signal_group(process: subprocess.Popen, number: int) -> None:
    """Signal a process and all that it started; nothing when none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
