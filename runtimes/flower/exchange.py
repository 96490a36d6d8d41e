"""One exchange: messages to clients, and their replies, until all are in or each one's time is up."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from flwr.app import Message, RecordDict

from ...core.errors import UmbelError
from ...core.types import Failure
from .mail import Envelope, Mail, Superseded
from .malformed import Malformed
from .nodes import Nodes
from .objects import content_bytes, wait_until

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # longest time that one look waits for a reply
NODES_SECONDS = 1.0  # time between two looks at who was started again
STALLED_SECONDS = 5.0  # time without another object of a reply, before anybody else's is read instead
TTL_MARGIN_SECONDS = 5.0  # time that a message outlives the wait for its reply: who is late is late, not "unavailable"
AWAY_SECONDS = 15.0  # time for a node which has gone to come back
GONE, CRASHED = 5, 8  # Flower's codes for a node that has left, and for a client whose process died


class Late:
    """Messages whose round is over. What still arrives for them is refused, unread."""

    def __init__(self, mail: Mail):
        self._mail, self._open = mail, dict[str, tuple[int, str]]()
        self.refused = 0  # number of replies refused so far

    def add(self, identifier: str, client: int, label: str) -> None:
        """Count a reply to this message as late from now on."""
        self._open[identifier] = client, label

    def refuse(self) -> None:
        """Refuse what has arrived since."""
        for identifier in self._mail.refuse(list(self._open)):
            client, label = self._open.pop(identifier)
            self.refused += 1
            log.warning("client %d: its reply was refused: %s is closed", client, label)


class Asked(NamedTuple):
    """A message that a client was sent, and what is expected in reply."""

    content: RecordDict
    max_bytes: int  # the most bytes of the reply's arrays
    label: str  # what it is for, in words
    until: float  # time at which nobody waits for the reply any longer


class Exchange:
    """Messages that were sent, and replies that have arrived. A `with` block: what is still out when it ends is late.

    kind: "train" or "evaluate". seconds: for each reply. beside: another exchange over the same mail, under way at the
    same time. More may be sent while replies are out. A client that is started again, or whose process dies, is sent
    its message once more, while the time lasts; all are after the SuperLink was gone, and so is who was uploading then,
    should the upload not go on. The first whole reply counts.
    """

    def __init__(
        self, mail: Mail, nodes: Nodes, late: Late, kind: str, seconds: float, *, beside: Exchange | None = None
    ):
        self._mail, self._nodes, self._late, self._kind = mail, nodes, late, kind
        self._seconds, self._beside = seconds, beside
        self._out: dict[int, Asked] = {}  # by client, in the order in which they were asked
        self._waiting: dict[str, int] = {}  # {message: client}
        self._arrived: dict[int, Envelope | Failure] = {}  # arrived and not read yet
        self._read: dict[int, Message | Failure] = {}  # read and not yielded yet: one at most
        self._reading: int | None = None
        self._doubtful: dict[int, float] = {}  # who may have stopped uploading, and when
        self._away: dict[int, tuple[float, Envelope]] = {}  # {client that is away: (until when, what then)}
        self._again: set[int] = set()  # clients that were sent their message twice
        self._was_cut, self._moved = False, set[int]()  # what another exchange was told first
        self._next_look = 0.0
        self._lock = threading.Lock()  # a reply is read by several threads, which look around while they wait

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        for identifier, client in self._waiting.items():
            self._late.add(identifier, client, self._out[client].label)
        for reply in self._arrived.values():  # a round may have enough of them
            if not isinstance(reply, Failure):
                reply.drop()
        self._arrived.clear()

    @property
    def is_out(self) -> bool:
        """Return whether a reply is still to come."""
        return bool(self._out)

    def ask(self, contents: Mapping[int, RecordDict], max_bytes: int, label: str) -> None:
        """Send more messages, by client; to nobody whose reply is still to come.

        max_bytes: the most that a reply's arrays may have. label: what they are for, in words.
        """
        self._late.refuse()
        if not self._out:  # who is not there has a moment to come back, where that keeps nobody else waiting
            self._tell_beside(False, self._nodes.gather(contents))
            self._next_look = time.monotonic() + NODES_SECONDS
        until = time.monotonic() + self._seconds
        for client, content in contents.items():
            self._out[client] = Asked(content, max_bytes, label, until)
            self._again.discard(client)
            self._doubtful.pop(client, None)
        self._send(list(contents))

    def replies(self, in_order: bool = True) -> Iterator[tuple[int, Message | Failure]]:
        """Yield every reply that is still to come. See `reply`."""
        while self._out:
            yield self.reply(in_order)

    def reply(self, in_order: bool = True) -> tuple[int, Message | Failure]:
        """Return the next (client, reply), in the order in which they were asked, or else as they arrive.

        A reply is a Message, with content or Flower's error, or a Failure: "timeout", "unreachable", or what is wrong
        with its form. Only one is in memory at a time.
        """
        while True:
            wanted = list(self._out)[: 1 if in_order else None]
            client = next((client for client in wanted if client in self._arrived), None)
            if client is not None:
                if self._take(client, in_order):
                    del self._out[client]
                    return client, self._read.pop(client)
                if not in_order:  # whoever is waited for comes last
                    self._out[client] = self._out.pop(client)
                continue
            moment = time.monotonic()
            overdue = [client for client, asked in self._out.items() if asked.until <= moment]
            until = min(asked.until for asked in self._out.values())
            self._look(0.0 if overdue else min(LOOK_SECONDS, until - moment))
            if overdue:
                self._give_up_away(moment)
                self._arrived |= {client: self._timeout(client) for client in overdue if client not in self._arrived}

    def _send(self, clients: Collection[int]) -> None:
        there = [client for client in clients if client in self._nodes.of]
        identifiers = dict(zip(there, self._mail.push([self._message(client) for client in there]), strict=True))
        for client in clients:
            if identifiers.get(client):
                self._waiting[identifiers[client]] = client
            elif not self._is_open(client):
                self._arrived[client] = Failure(client, "unreachable", "its node is not connected")

    def _message(self, client: int) -> Message:
        asked = self._out[client]
        ttl = max(1.0, asked.until - time.monotonic()) + TTL_MARGIN_SECONDS
        return Message(asked.content, self._nodes.of[client], self._kind, ttl=ttl)

    def _is_open(self, client: int) -> bool:
        """Return whether a reply of this client is on its way, or there."""
        return client in self._waiting.values() or client in self._away or self._is_there(client)

    def _is_there(self, client: int) -> bool:
        """Return whether a client has at least begun to upload a reply."""
        return client in self._arrived or client == self._reading

    def _look(self, seconds: float = 0.0) -> None:
        """Take note of what has arrived, and of who was started again; wait up to `seconds` where nothing has."""
        asked = [one for one, client in self._waiting.items() if client not in self._arrived]
        for envelope in self._mail.look(asked, seconds):
            if (client := self._waiting.pop(envelope.reply_to, None)) is None:
                envelope.drop()  # another try's reply, after the one that counts
                continue
            if envelope.error is not None and self._is_open(client):
                continue  # another try is on its way
            code = None if envelope.error is None or not self._may_repeat(client) else envelope.error.code
            if code == CRASHED:
                self._repeat([client], "its process died")
            elif code == GONE:
                self._away[client] = min(time.monotonic() + AWAY_SECONDS, self._out[client].until), envelope
            else:
                self._arrived[client] = envelope
        was_cut = self._mail.was_cut()
        self._tell_beside(was_cut, ())
        if (was_cut or self._was_cut) and (out := self._affected(set(self._out))):
            log.warning("the SuperLink was gone; clients %s are asked once more", out)
            self._send(out)
        self._was_cut = False
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + NODES_SECONDS
            self._send_to_moved(self._nodes.refresh())
            self._give_up_away(time.monotonic())

    def _send_to_moved(self, clients: Collection[int]) -> None:
        """Ask those again of whom nothing has arrived, and whose node was started again."""
        self._tell_beside(False, clients)
        moved = [client for client in self._affected({*clients, *self._moved}) if self._may_repeat(client)]
        self._moved = set()
        for client in moved:
            self._forget(client)
        self._repeat(moved, "its node was started again")

    def _tell_beside(self, was_cut: bool, moved: Collection[int]) -> None:
        """Pass on what is told once: that the SuperLink was gone, and whose node was started again."""
        if self._beside is not None:
            self._beside._was_cut |= was_cut
            self._beside._moved.update(moved)

    def _give_up_away(self, moment: float) -> None:
        """Wait no longer for those whose node should have been back by then."""
        for client in [client for client, (until, _) in self._away.items() if until <= moment]:
            self._arrived[client] = self._away.pop(client)[1]

    def _affected(self, clients: set[int]) -> list[int]:
        """Return the clients of whom nothing has arrived yet. Uploads of others may have ended: that is noted."""
        self._doubtful |= {client: time.monotonic() for client in clients if self._is_there(client)}
        waiting = dict.fromkeys([*self._waiting.values(), *self._away])
        return [client for client in waiting if client in clients and not self._is_there(client)]

    def _forget(self, client: int) -> None:
        """Wait no longer for an answer to what this client was sent so far."""
        self._away.pop(client, None)
        for identifier in [one for one, of in self._waiting.items() if of == client]:
            del self._waiting[identifier]
            self._late.add(identifier, client, self._out[client].label)

    def _may_repeat(self, client: int) -> bool:
        return client not in self._again and time.monotonic() < self._out[client].until

    def _repeat(self, clients: list[int], reason: str) -> None:
        self._again.update(clients)
        for client in clients:
            log.warning("%s: client %d is asked once more: %s", self._out[client].label, client, reason)
        if clients:
            self._send(clients)

    def _take(self, client: int, in_order: bool) -> bool:
        """Read a reply that has arrived. False where it is not whole, and another one is better or on its way."""
        envelope = self._arrived.pop(client)
        if isinstance(envelope, Failure):
            self._read[client] = envelope
            self._forget(client)
            return True
        self._reading = client
        try:
            self._read[client] = envelope.open(self._out[client].max_bytes, partial(self._wait, client, in_order))
        except Superseded:
            if self._arrived.setdefault(client, envelope) is not envelope:
                envelope.drop()
            return False
        except Malformed as malformed:
            if malformed.reason == "timeout" and client in self._waiting.values():
                return False
            self._read[client] = Failure(client, malformed.reason, malformed.detail)
        except (ConnectionError, UmbelError):
            raise  # of the SuperLink's, not of what the client sent
        except Exception as error:
            log.warning("%s: client %d's reply cannot be read", self._out[client].label, client, exc_info=True)
            self._read[client] = Failure(client, "schema", f"its reply cannot be read: {type(error).__name__}")
        finally:
            self._reading = None
        self._forget(client)
        return True

    def _wait(self, client: int, in_order: bool, seconds: float) -> None:
        """Wait for more of the reply that is being read, which has not grown for so many seconds.

        Errors: Malformed at the deadline; Superseded for another try's reply, and, in any order, for another client's.
        """
        wait_until(self._out[client].until)(seconds)
        with self._lock:
            if client not in self._arrived:
                self._look()
            doubted = self._doubtful.get(client, math.inf)
            if min(seconds, time.monotonic() - doubted) >= STALLED_SECONDS:
                del self._doubtful[client]
                log.warning("%s: client %d is asked once more: its upload has ended", self._out[client].label, client)
                self._send([client])
            others = self._arrived if not in_order and seconds >= STALLED_SECONDS else ()
            if client in self._arrived or others:
                raise Superseded

    def _timeout(self, client: int) -> Failure:
        return Failure(client, "timeout", f"no reply within {self._seconds:g} seconds")


def bytes_received(reply: Message | Failure) -> int:
    """Count the bytes of a reply's content."""
    return 0 if isinstance(reply, Failure) or not reply.has_content() else content_bytes(reply.content)


def bytes_sent(contents: Mapping[int, RecordDict]) -> int:
    """Count the bytes of a cohort's messages: what they share is measured once, and counted for every client."""
    measured: dict[int, int] = {}
    records = [record for content in contents.values() for record in content.values()]
    for record in records:
        if id(record) not in measured:
            measured[id(record)] = content_bytes(record)
    return sum(measured[id(record)] for record in records)
