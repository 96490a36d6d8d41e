"""Runs of one federation wait in line: a client does one thing at a time, and what two runs ask of it has deadlines.

Each process that plays a run has a ticket, a file that it keeps locked: the system unlocks it whichever way the process
ends. Its turn is when nobody before it is left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...core.system.printable import printable

POLL_SECONDS = 0.2
LONGEST_NAME = 200
PENDING = "."  # first character of a ticket that is not locked yet


class Ticket:
    """A place in line, and what stands in it: the run's name, for those who wait behind."""

    def __init__(self, path: Path, descriptor: int):
        self._path, self._descriptor = path, descriptor

    def name(self, text: str) -> None:
        """Say which run this is."""
        content = printable(text, LONGEST_NAME).encode()
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))

    def before(self) -> list[Path]:
        """List the tickets before this one whose processes live, in their order; put away the others."""
        earlier = sorted(path for path in self._path.parent.glob("[0-9]*") if path.name < self._path.name)
        return [path for path in earlier if _is_kept(path)]


@contextlib.contextmanager
def turn(folder: Path | None, name: str, tell: Callable[[str], None]) -> Iterator[Ticket | None]:
    """Wait for this process's turn, and keep it inside the block.

    folder: of the line; None: there is none, and nobody waits. name: of this run. tell: told what is waited for, in
    words, once whenever that changes.
    """
    if folder is None:
        yield None
        return
    folder.mkdir(exist_ok=True, mode=0o700)
    with _ticket(folder) as ticket:
        ticket.name(name)
        told = ""
        while before := ticket.before():
            said = _described(before)
            if said not in ("", told):
                tell(told := said)
            time.sleep(POLL_SECONDS)
        yield ticket


@contextlib.contextmanager
def _ticket(folder: Path) -> Iterator[Ticket]:
    last = max((int(path.name.partition("-")[0]) for path in folder.glob("[0-9]*-*")), default=0)
    number = f"{max(time.time_ns(), last + 1):020}-{os.getpid()}"  # last in line, whatever became of the clock
    pending, path = folder / f"{PENDING}{number}", folder / number
    descriptor = os.open(pending, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        pending.rename(path)  # locked before anybody sees it
        yield Ticket(path, descriptor)
    finally:
        pending.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_kept(path: Path) -> bool:
    """Say whether the process that has a ticket lives. One that was killed left its ticket behind: it is put away."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    path.unlink(missing_ok=True)
    return False


def _described(before: list[Path]) -> str:
    """Say who is before whom; empty where the first has gone meanwhile."""
    try:
        first = before[0].read_text("utf-8", "replace")
    except OSError:
        return ""
    more = f", and {len(before) - 1} more" if len(before) > 1 else ""
    return f"waiting behind {first or 'another run'}{more}; a federation plays one run at a time"
