"""One exchange: a message to each client of a cohort, and the replies, until all are in or the time is up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict

from ...core.types import Failure
from .malformed import Malformed
from .nodes import Nodes
from .private_exchange import Envelope, Mail
from .private_objects import content_bytes

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05  # Grid.send_and_receive polls every 3 seconds, longer than many rounds take
NODES_SECONDS = 1.0  # between two looks at who was started again
TTL_MARGIN_SECONDS = 5.0  # a message outlives the wait for its reply, so that who is late is late, not "unavailable"
CRASHED = 8  # Flower's code for a client whose process died


class Late:
    """Messages whose round is over. What still arrives for them is refused, unread."""

    def __init__(self, mail: Mail):
        self._mail, self._open = mail, dict[str, tuple[int, str]]()
        self.refused = 0  # replies, so far

    def add(self, identifier: str, client: int, label: str) -> None:
        """From now on a reply to this message is late."""
        self._open[identifier] = client, label

    def refuse(self) -> None:
        """Refuse what has arrived since."""
        for identifier in self._mail.refuse(list(self._open)):
            client, label = self._open.pop(identifier)
            self.refused += 1
            log.warning("client %d: its reply was refused: %s is closed", client, label)


class Exchange:
    """What was sent, and what has arrived. A `with` block: what is still out when it ends is late.

    kind: "train" or "evaluate". contents: by client. label: what the exchange is for, in words. A client that is
    started again, or whose process dies, is sent its message once more, while the time lasts; all are after the
    SuperLink was gone, and the first reply counts.
    """

    def __init__(
        self,
        mail: Mail,
        nodes: Nodes,
        late: Late,
        kind: str,
        contents: Mapping[int, RecordDict],
        seconds: float,
        max_bytes: int,
        label: str,
    ):
        self._mail, self._nodes, self._late, self._kind, self._contents = mail, nodes, late, kind, contents
        self._seconds, self._max_bytes, self._label = seconds, max_bytes, label
        self._waiting: dict[str, int] = {}  # {message: client}
        self._arrived: dict[int, Envelope | Failure] = {}
        self._again: set[int] = set()  # sent twice

    def __enter__(self) -> Exchange:
        self._late.refuse()
        self._nodes.gather(self._contents)
        self._deadline, self._next_look = time.monotonic() + self._seconds, time.monotonic() + NODES_SECONDS
        self._send(list(self._contents))
        return self

    def __exit__(self, *_: object) -> None:
        for identifier, client in self._waiting.items():
            self._late.add(identifier, client, self._label)

    def replies(self, in_order: bool = True) -> Iterator[tuple[int, Message | Failure]]:
        """(client, reply) for each client, in the order of contents, or else as they arrive.

        A reply is a Message, with content or Flower's error, or a Failure: "timeout", "unreachable", or what is wrong
        with its form. Only one is in memory at a time.
        """
        left = list(self._contents)
        while left:
            ready = [client for client in left if client in self._arrived]
            client = left[0] if in_order else next(iter(ready), left[0])
            if client in self._arrived:
                left.remove(client)
                yield client, self._take(client)
                continue
            if time.monotonic() >= self._deadline:
                self._look()
                late = [client for client in left if client not in self._arrived]
                self._arrived |= {client: self._timeout(client) for client in late}
                continue
            self._look()
            if client not in self._arrived:
                time.sleep(POLL_SECONDS)

    def _send(self, clients: list[int]) -> None:
        ttl = max(1.0, self._deadline - time.monotonic()) + TTL_MARGIN_SECONDS
        there = [client for client in clients if client in self._nodes.of]
        messages = [Message(self._contents[client], self._nodes.of[client], self._kind, ttl=ttl) for client in there]
        identifiers = dict(zip(there, self._mail.push(messages), strict=True))
        for client in clients:
            if identifiers.get(client):
                self._waiting[identifiers[client]] = client
            else:
                self._arrived[client] = Failure(client, "unreachable", "its node is not connected")

    def _look(self) -> None:
        """Take note of what has arrived, and of who was started again."""
        for envelope in self._mail.look(list(self._waiting)):
            if (client := self._waiting.pop(envelope.reply_to, None)) is None:
                continue  # another try's reply, after the one that counts
            if envelope.error is not None and client in self._waiting.values():
                continue  # another try is on its way
            if envelope.error is not None and envelope.error.code == CRASHED and self._may_repeat(client):
                self._repeat([client], "its process died")
            else:
                self._arrived[client] = envelope
                self._forget(client)
        if self._mail.was_cut() and (out := list(dict.fromkeys(self._waiting.values()))):
            log.warning("%s: the SuperLink was gone; clients %s are asked once more", self._label, out)
            self._send(out)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + NODES_SECONDS
            waiting = set(self._waiting.values())
            moved = [client for client in self._nodes.refresh() if client in waiting and self._may_repeat(client)]
            for client in moved:
                self._forget(client)
            self._repeat(moved, "its node was started again")

    def _forget(self, client: int) -> None:
        """What this client was sent so far is not waited for any more."""
        for identifier in [one for one, of in self._waiting.items() if of == client]:
            del self._waiting[identifier]
            self._late.add(identifier, client, self._label)

    def _may_repeat(self, client: int) -> bool:
        return client not in self._again and time.monotonic() < self._deadline

    def _repeat(self, clients: list[int], reason: str) -> None:
        self._again.update(clients)
        for client in clients:
            log.warning("%s: client %d is asked once more: %s", self._label, client, reason)
        if clients:
            self._send(clients)

    def _take(self, client: int) -> Message | Failure:
        """The reply, read now."""
        envelope = self._arrived.pop(client)
        if isinstance(envelope, Failure):
            return envelope
        try:
            return envelope.open(self._max_bytes, self._deadline)
        except Malformed as malformed:
            return Failure(client, malformed.reason, malformed.detail)

    def _timeout(self, client: int) -> Failure:
        return Failure(client, "timeout", f"no reply within {self._seconds:g} seconds")


def bytes_received(reply: Message | Failure) -> int:
    """Bytes of a reply's content."""
    return 0 if isinstance(reply, Failure) or not reply.has_content() else content_bytes(reply.content)


def bytes_sent(contents: Mapping[int, RecordDict]) -> int:
    """Bytes of a cohort's messages: what they share is measured once, and counted for every client."""
    measured: dict[int, int] = {}
    records = [record for content in contents.values() for record in content.values()]
    for record in records:
        if id(record) not in measured:
            measured[id(record)] = content_bytes(record)
    return sum(measured[id(record)] for record in records)
