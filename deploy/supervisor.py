"""Child processes that are started again when they end, ever later, until the party they make up is asked to stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..core.errors import ConfigError, UmbelError

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0  # time between an end and the next beginning
STEADY_SECONDS = 60.0  # a process that lived so long begins with the first wait again
STEP_SECONDS = 0.1
STOP_SECONDS = 15.0  # time between asking children to end and ending them: half of what a service manager grants
TAIL_LINES = 40
LOCK = "lock"

# Lines left out: empty ones of Flower's, and answered requests, of which an idle node makes twenty a second.
NOISE = re.compile(r"^(INFO\s*:)?\s*$|\[uvicorn\.access\].* [23]\d\d$")

Say = Callable[[str], None]
Explain = Callable[[Sequence[str]], str | None]  # the last lines that a process wrote → why it ended, where that shows


class Supervisor:
    """A party's processes, in a `with` block that ends them all. What they write is passed on, line by line, by name.

    Parameters
    ----------
    say
        Takes each line. If this process is killed, its children end themselves.
    """

    def __init__(self, say: Say):
        self._say = say
        self._children: list[_Child] = []

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children:
            child.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.signal(signal.SIGKILL)
            child.wait(None)

    def start(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        explain: Explain | None = None,
    ) -> None:
        """Start a process in a folder. explain: says in words why it ended, from what it wrote."""
        child = _Child(name, words, environment, folder, explain, self._say)
        self._children.append(child)
        child.start()

    def step(self) -> None:
        """Take note of who ended; start those again whose wait is over."""
        for child in self._children:
            child.step()

    def watch(self, stop: threading.Event) -> None:
        """Keep the processes alive until stop is set."""
        while not stop.wait(STEP_SECONDS):
            self.step()

    def wait_until(self, ready: Callable[[], bool], stop: threading.Event, seconds: float, complaint: str) -> bool:
        """Return True once ready(), False once stop is set. Errors: UmbelError after so many seconds."""
        deadline = time.monotonic() + seconds
        while not ready():
            if stop.wait(STEP_SECONDS):
                return False
            self.step()
            if time.monotonic() > deadline:
                raise UmbelError(f"{complaint} after {seconds:g} seconds; it said:\n{self.tail()}")
        return True

    def tail(self) -> str:
        """Return the last lines of all processes."""
        return "\n".join(line for child in self._children for line in child.tail)


class _Child:
    """One process, and the next one in its place."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        explain: Explain | None,
        say: Say,
    ):
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._name, self._words, self._environment, self._folder = name, list(words), dict(environment), folder
        self._explain, self._say = explain, say
        self._wait = FIRST_WAIT_SECONDS
        self._due: float | None = None  # when to start it again; None while it lives

    def start(self) -> None:
        self.tail.clear()
        self._began, self._due = time.monotonic(), None
        self._process = subprocess.Popen(
            self._words,
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is the supervisor's alone, and what the process starts ends with it
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def step(self) -> None:
        now, status = time.monotonic(), self._process.poll()
        if status is None:
            return
        if self._due is None:
            self.signal(signal.SIGKILL)  # what it had started
            self._reader.join(timeout=1.0)
            if now - self._began > STEADY_SECONDS:
                self._wait = FIRST_WAIT_SECONDS
            reason = self._explain(list(self.tail)) if self._explain else None
            why = f": {reason}" if reason else ""
            self._say(f"{self._name} ended with status {status}{why}; started again in {self._wait:g} seconds")
            self._due = now + self._wait
            self._wait = min(2 * self._wait, LONGEST_WAIT_SECONDS)
        if now >= self._due:
            self.start()

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it started; do nothing when none is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def wait(self, seconds: float | None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _read(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            # Without colours and other control characters: a log line may hold what a client chose.
            text = re.sub(r"\x1b\[[\d;]*m|[^\x20-\x7e\xa0-\U0010ffff]", "", raw.decode("utf-8", "replace")).rstrip()
            if text and not NOISE.search(text):
                self.tail.append(text)
                self._say(f"{self._name}: {text}")


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or Ctrl-C sets. On the main thread only."""
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop.set()) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Let no other process run the kit whose state folder this is, inside the block.

    Errors: ConfigError when one does already.
    """
    try:
        state.mkdir(exist_ok=True, mode=0o700)
        descriptor = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{state} cannot be written: {error.strerror}; make it this user's own: chown") from error
    with open(descriptor, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{state.parent} runs already, as process {file.read().strip() or '?'}") from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def process_of(state: Path) -> int | None:
    """Return the process that runs a kit; None when none does.

    A number left behind by one that was killed does not count.
    """
    try:
        with open(state / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found = file.read().strip()
                return int(found) if found.isdecimal() else None
    except OSError:
        return None
    return None
