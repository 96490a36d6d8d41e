"""Messages for a node: asked for, fetched whole, and confirmed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import Message

from ..compat import message_from_proto
from ..link.waiting import HOLDS_HEADER
from ..objects import WAIT_SECONDS, ObjectReader
from ..parcels import carried, object_ids
from .fleet import FleetApi, Leaving, Rejected

log = logging.getLogger(__name__)

SHORTEST_POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 1.0  # time between two questions: just after a message, idle
POLL_SHARE = 0.05  # that time as a share of how long there was none: a message waits no longer, and an idle node rests


class Letter(NamedTuple):
    """A message that is there, and not yet fetched."""

    about: Any  # Flower's metadata of it
    tree: Any  # Flower's ObjectTree: the ids of what it consists of
    objects: Mapping[str, bytes]  # what came with it, by id
    is_ours: bool  # whether the SuperLink is one of ours, which takes parcels

    @property
    def run(self) -> int:
        """Number of the run that it is of."""
        return int(self.about.run_id)


class Mailbox:
    """The messages for one node, one at a time.

    A SuperLink of ours answers when there is one, and says that it holds the question; any other is asked again and
    again, ever more rarely. stop: set when this process is to end.
    """

    def __init__(self, fleet: FleetApi, node: int, stop: threading.Event):
        self._fleet, self._node, self._stop = fleet, node, stop
        self._received = ""  # id of a message that came whole, until the next question says so

    def next(self) -> Letter:
        """Wait for a message. Errors: those of FleetApi."""
        idle_since = time.monotonic()
        while not self._stop.is_set():
            found, headers = self._fleet.pull(self._node, self._received)
            self._received, is_ours = "", HOLDS_HEADER in headers
            if found.messages_list:
                about = message_from_proto(found.messages_list[0]).metadata
                return Letter(about, found.message_object_trees[0], carried(found), is_ours)
            pause = 0.0 if is_ours else POLL_SHARE * (time.monotonic() - idle_since)
            self._stop.wait(min(max(pause, SHORTEST_POLL_SECONDS), LONGEST_POLL_SECONDS))
        raise Leaving

    def fetch(self, letter: Letter) -> Message:
        """Fetch what did not come with a message, and confirm it. Errors: Rejected, and those of FleetApi."""
        expires = letter.about.created_at + letter.about.ttl

        def wait(seconds: float) -> None:
            """Wait for what the server is still sending, until nobody waits for a reply any more."""
            if time.time() > expires:
                raise Rejected("a message did not arrive whole before it expired")
            if self._stop.wait(WAIT_SECONDS):
                raise Leaving

        def get(identifier: str) -> bytes:
            return letter.objects.get(identifier) or self._fleet.get(self._node, letter.run, identifier)

        message = ObjectReader(get, wait=wait).read(letter.tree)
        if letter.is_ours and set(object_ids([letter.tree])) <= letter.objects.keys():
            self._received = letter.tree.object_id  # small, and kept a little longer
        else:
            self._fleet.confirm(self._node, letter.run, letter.tree.object_id)
        if not isinstance(message, Message):
            raise Rejected(f"the server handed out a {type(message).__name__} in place of a message")
        message.metadata.__dict__["_message_id"] = letter.tree.object_id  # a message does not contain its own
        return message
