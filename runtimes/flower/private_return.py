"""A SuperNode whose process was killed is let in again at once. Not public in Flower; see `compat`.

A SuperLink activates no node that is online: its key would be in use twice. One that was killed has said no goodbye,
and is online until it was silent for a while (`private_patience`), in which the next process would be refused. Here a
SuperNode keeps its number in a file while it is online, and the file locked while it lives. The next one of the same
kit waits for the lock, and says the goodbye for it. A copy of the kit elsewhere has no such file, and is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any

# httpx: Flower's clients raise its errors.
import httpx

from .compat import ActivateNodeRequest, DeactivateNodeRequest, node_client

FILE = "node"  # file below FLWR_HOME with the number of the node that is online, or was when its process died
WAIT_SECONDS = 15.0  # time for the process before to end: three times what Flower grants itself
POLL_SECONDS = 0.1
MOST_BYTES = 20  # length of a number of 64 bits, in decimal


class Returning:
    """Flower's two calls with which a node comes and goes, around which a file holds its number. file: a descriptor."""

    def __init__(self, fleet: Any, file: int):
        self._activate, self._deactivate, self._file = fleet.ActivateNode, fleet.DeactivateNode, file

    def activate(self, client: Any, request: ActivateNodeRequest) -> Any:
        """Let the node come; before that, leave for whoever died."""
        if left := os.pread(self._file, MOST_BYTES, 0):
            with contextlib.suppress(ValueError, httpx.HTTPStatusError):  # it was given up, or revoked, meanwhile
                self._deactivate(client, DeactivateNodeRequest(node_id=int(left)))
        answer = self._activate(client, request)
        self._keep(str(answer.node_id))
        return answer

    def deactivate(self, client: Any, request: DeactivateNodeRequest) -> Any:
        """Let the node leave."""
        answer = self._deactivate(client, request)
        self._keep("")
        return answer

    def _keep(self, text: str) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)


def return_at_once(home: Path) -> None:
    """Let the SuperNode of this process, which has a key of its own, keep the file in this folder from now on.

    Returns once the process before has ended; one that hangs is left alone, and the SuperLink to judge.
    """
    file = os.open(home / FILE, os.O_RDWR | os.O_CREAT, 0o600)  # open, and so locked, for life
    until = time.monotonic() + WAIT_SECONDS
    while not _lock(file):
        if time.monotonic() > until:
            return
        time.sleep(POLL_SECONDS)
    fleet = node_client()
    returning = Returning(fleet, file)
    # As functions: methods of another object would not be given the client.
    fleet.ActivateNode = lambda client, request: returning.activate(client, request)
    fleet.DeactivateNode = lambda client, request: returning.deactivate(client, request)


def _lock(file: int) -> bool:
    """Whether the file could be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
