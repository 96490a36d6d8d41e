"""Signs of life, from a thread of their own: neither work nor a transfer keeps them back."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
from collections.abc import Callable

# httpx: what a call fails with whose server is away.
import httpx

from .fleet import FleetApi, NotLetIn, Rejected, RunOver
from .presence import BEAT_SECONDS

log = logging.getLogger(__name__)

SHARE = (0.6, 0.75)  # when the next sign is due, as a share of the time within which it must be there
AGAIN_SECONDS = 1.0  # time after one that did not arrive
LEAVE_SECONDS = 10.0  # time for a sign that is on its way


class Heart:
    """The heart of a node that is online. refused: called, once, by its thread, when the node is let in no longer."""

    def __init__(self, fleet: FleetApi, node: int, refused: Callable[[NotLetIn], None]):
        self._fleet, self._node, self._refused = fleet, node, refused
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="umbel-heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating: a sign that comes after the goodbye would take the node back."""
        self._stop.set()
        self._thread.join(LEAVE_SECONDS)

    def _live(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            try:
                wait = BEAT_SECONDS * random.uniform(*SHARE) if self._beat() else AGAIN_SECONDS
            except NotLetIn as refused:
                self._refused(refused)
                return

    def _beat(self) -> bool:
        """Send a sign; return whether it arrived. Errors: NotLetIn."""
        with contextlib.suppress(Rejected, RunOver, httpx.HTTPError):
            if not self._fleet.beat(self._node, BEAT_SECONDS):
                raise NotLetIn(f"the server at {self._fleet.server} does not know this node any more")
            return True
        return False
