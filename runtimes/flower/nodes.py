"""Nodes of a federation: which node is which client, and which of them were started anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from flwr.app import Message, RecordDict

from ...core.errors import ConfigError, RunStopped
from .check import check_content
from .malformed import Malformed, reading
from .private import nodes_of
from .private_exchange import Envelope, Mail
from .private_objects import wait_until
from .wire import pack_identity, unpack_identity, unpack_version

log = logging.getLogger(__name__)

POLL_SECONDS = 0.05
RETURN_SECONDS = 5.0  # time for a client which is not there to come back, before a round begins without it
QUERY_SECONDS = 3600.0  # time for a node to say which client it is; it answers at once, or after what it is at
MAX_QUERY_BYTES = 4096
IMPOSTOR, FORGED = "node", ("signature", "replay", "sealed")  # reasons of refusals: ours, and those of `signing`


class Nodes:
    """The clients of a run and their nodes. Each node is asked once which client it is, by its partition-id.

    A SuperNode without a key of its own is another node whenever it is started; one with a key is the same. bound: the
    client that a node's key is of: a node that says it is another is refused, and so is a second node of one client.
    refused: told, in a line, of each.
    """

    def __init__(
        self,
        grid: Any,
        mail: Mail,
        clients: int,
        bound: Callable[[int], int | None] | None = None,
        refused: Callable[[str], None] = log.warning,
    ):
        self.of: dict[int, int] = {}  # {client: node}
        self._grid, self._mail, self._clients = grid, mail, clients
        self._bound, self._refused = bound, refused
        self._started: dict[int, str] = {}  # {node: when it was started}, for all that were ever online
        self._online: set[int] = set()
        self._asked: dict[str, int] = {}  # {message: node} of queries not yet answered
        self._known: set[int] = set()
        # Whether all clients appeared: before, two nodes of one client are a mistake; later on, one replaced the other.
        self._is_settled = False

    def wait(self, count: int, seconds: float) -> None:
        """Return once `count` clients have appeared.

        Errors: RunStopped when fewer appear in time; ConfigError when two nodes say they are one client.
        """
        deadline = time.monotonic() + seconds
        while True:
            self.refresh()
            if len(self.of) >= count:
                self._is_settled = True
                return
            if time.monotonic() >= deadline:
                raise RunStopped(
                    f"{len(self.of)} of {count} clients appeared in {seconds:g} seconds ({len(self._known)} nodes); "
                    "start the missing SuperNodes"
                )
            time.sleep(POLL_SECONDS)

    def gather(self, cohort: Collection[int]) -> set[int]:
        """Look who is there; give members of the cohort that are not there a moment to come back.

        Returns: see `refresh`.
        """
        deadline = time.monotonic() + RETURN_SECONDS
        moved = self.refresh()
        while not self._are_online(cohort) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            moved |= self.refresh()
        return moved

    def refresh(self) -> set[int]:
        """Look again who is there. Return the clients whose node was started since the last look, or is another one."""
        before, now = self._started, nodes_of(self._grid)
        self._started, self._online = before | now, set(now)
        fresh = sorted(set(now) - self._known)
        query = [Message(RecordDict(), node, "query", ttl=QUERY_SECONDS) for node in fresh]
        for node, identifier in zip(fresh, self._mail.push(query), strict=True):
            if identifier:
                self._asked[identifier] = node
                self._known.add(node)
        restarted = {node for node in now if node in before and now[node] != before[node]}
        moved = {client for client, node in self.of.items() if node in restarted}
        for envelope in self._mail.look(list(self._asked)):
            moved |= self._answer(self._asked.pop(envelope.reply_to), envelope)
        return moved

    def _check_version(self, node: int, reply: Message) -> None:
        """Raise Malformed for a node whose Umbel is of another series than the server's."""
        theirs, ours = unpack_version(reply.content), unpack_version(pack_identity(0))
        said = f"it runs Umbel {theirs[0]}.{theirs[1]}, and the server {ours[0]}.{ours[1]}"
        if _series(theirs) != _series(ours):
            raise Malformed("version", f"{said}; install the same version on both")
        if theirs != ours:
            log.warning("node %d: %s; install the same version on both", node, said)

    def _are_online(self, cohort: Collection[int]) -> bool:
        return all(self.of.get(client) in self._online for client in cohort)

    def _answer(self, node: int, envelope: Envelope) -> set[int]:
        """Put down which client a node is; return that client, if it had another node before."""
        try:
            reply = envelope.open(MAX_QUERY_BYTES, wait_until(time.monotonic() + RETURN_SECONDS))
            if (failure := check_content(reply, -1)) is not None:
                raise Malformed(failure.reason, failure.detail)
            with reading(f"node {node}'s reply"):
                client = unpack_identity(reply.content)
                self._check_version(node, reply)
            if self._bound is not None and client != (own := self._bound(node)):
                raise Malformed(IMPOSTOR, f"it says that it is client {client}, and its key is client {own}'s")
            if not 0 <= client < self._clients:
                raise Malformed("schema", f"expected partition-id={client} in [0, {self._clients})")
        except Malformed as malformed:
            tell = self._refused if malformed.reason in (IMPOSTOR, *FORGED) else log.warning
            tell(f"node {node} is left out: {malformed}")
            if malformed.reason in ("timeout", "unreachable"):  # not its own words: it is asked again when it is back
                self._known.discard(node)
            return set()
        other = self.of.get(client)
        if self._bound is not None and other not in (None, node) and other in self._online:
            self._refused(f"node {node} is left out: client {client} is node {other} already, and that is connected")
            return set()
        if other not in (None, node) and not self._is_settled:
            raise ConfigError(f"nodes {other} and {node} both have partition-id={client}; give each SuperNode its own")
        self.of[client] = node
        return set() if other in (None, node) else {client}


def _series(version: tuple[int, int]) -> tuple[int, ...]:
    """Return what two versions that work together share: before 1.0 a minor one may change anything (semver.org, 4)."""
    return version[:1] if version[0] else version
