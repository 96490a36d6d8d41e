"""A node that comes and goes, and is let in again at once after its process was killed.

A SuperLink activates no node that is online: its key would be in use twice. One that was killed has said no goodbye,
and is online until it was silent for a while (`link/patience.py`), in which the next process would be refused. So a
node keeps its number in a file while it is online, and the file locked while it lives. The next one of the same folder
waits for the lock, and says the goodbye for it. A copy of the kit elsewhere has no such file, and is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

# httpx: what a goodbye fails with that cannot be said.
import httpx

from .fleet import UNKNOWN, FleetApi, NotLetIn, Rejected, RunOver

FILE = "node"  # file with the number of the node that is online, or was when its process died
WAIT_SECONDS = 15.0  # time for the process before to end
POLL_SECONDS = 0.1
MOST_BYTES = 20  # length of a number of 64 bits, in decimal
BEAT_SECONDS = 30.0  # time within which the node says that it is heard again; Flower's own


class Presence:
    """A node's coming and going at a SuperLink.

    public: its key, PEM. file: descriptor of the file that holds its number, see `hold`. vouched: whether the operator
    has registered the key; otherwise it is made known with its first call, where the SuperLink takes such nodes.
    """

    def __init__(self, fleet: FleetApi, public: bytes, file: int | None, vouched: bool):
        self._fleet, self._public, self._file, self._vouched = fleet, public, file, vouched

    def come(self) -> int:
        """Come online; return the node's number. Before that, leave for whoever died. Errors: NotLetIn."""
        if left := self._left():
            with contextlib.suppress(
                Rejected, NotLetIn, RunOver, httpx.HTTPError
            ):  # it was given up, or revoked, meanwhile
                self._fleet.deactivate(left)
        if not self._vouched:
            self._fleet.register(self._public)
        try:
            node = self._fleet.activate(self._public, BEAT_SECONDS)
        except Rejected as rejected:
            raise NotLetIn(f"the server at {self._fleet.server} {UNKNOWN}") from rejected
        self._keep(str(node))
        return node

    def leave(self, node: int) -> None:
        """Go offline, as far as the SuperLink can be told."""
        with contextlib.suppress(Rejected, NotLetIn, RunOver, httpx.HTTPError):
            self._fleet.deactivate(node)
            self._keep("")

    def _left(self) -> int | None:
        text = b"" if self._file is None else os.pread(self._file, MOST_BYTES, 0)
        return int(text) if text.isdigit() else None

    def _keep(self, text: str) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, text.encode(), 0)


def hold(folder: Path) -> int | None:
    """Open and lock a node's file in a folder, for life; return its descriptor.

    It waits for the process before to end. One that hangs is left alone, and the SuperLink to judge: None.
    """
    file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + WAIT_SECONDS
    while not _lock(file):
        if time.monotonic() > until:
            os.close(file)
            return None
        time.sleep(POLL_SECONDS)
    return file


def _lock(file: int) -> bool:
    """Return whether the file could be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
