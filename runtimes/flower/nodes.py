"""Nodes of a federation: which node is which client, and which of them were started anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flwr.app import Message, RecordDict

from ...core.errors import ConfigError, RunStopped
from .check import check_content
from .link.grid import nodes_of
from .mail import Envelope, Mail
from .malformed import Malformed, reading
from .objects import wait_until
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
    refused: told, in a line, of each. names: of the clients that there are, by number, where that is known.
    """

    def __init__(
        self,
        grid: Any,
        mail: Mail,
        clients: int,
        bound: Callable[[int], int | None] | None = None,
        refused: Callable[[str], None] = log.warning,
        names: Mapping[int, str] | None = None,
    ):
        self.of: dict[int, int] = {}  # {client: node}, of those that may be there
        self.away: dict[int, int] = {}  # the same, of those that have left, and were given a moment to come back
        self._left: dict[int, float] = {}  # when a client that is not there was missed
        self._unsaid: set[int] = set()  # clients that moved, of whom nobody was told yet
        self._names = names or {}
        self._grid, self._mail, self._clients = grid, mail, clients
        self._bound, self._refused = bound, refused
        self._started: dict[int, str] = {}  # {node: when it was started}, for all that were ever online
        self._online: set[int] = set()
        self._asked: dict[str, int] = {}  # {message: node} of queries not yet answered
        self._known: set[int] = set()
        # Whether all clients appeared: before, two nodes of one client are a mistake; later on, one replaced the other.
        self._is_settled = False

    def wait(self, count: int, seconds: float, quorum: int | None = None) -> None:
        """Return once `count` clients have appeared; with a quorum, as many as that and all whose nodes are connected.

        Errors: RunStopped when fewer appear in time; ConfigError when two nodes say they are one client.
        """
        began = time.monotonic()
        while True:
            self.refresh()
            waited = time.monotonic() - began
            is_silent = any(node in self._online for node in self._asked.values())
            is_patient = waited >= seconds or (waited >= RETURN_SECONDS and not is_silent)
            if len(self.of) >= count or (quorum is not None and len(self.of) >= quorum and is_patient):
                self._is_settled = True
                if missing := self._missing():
                    log.warning("the run goes on without %s, until they are back", missing)
                return
            if waited >= seconds:
                needed = count if quorum is None else quorum
                raise RunStopped(
                    f"{len(self.of)} of {count} clients appeared in {seconds:g} seconds ({len(self._known)} nodes), "
                    f"and {needed} are needed; start the missing: {self._missing()}"
                )
            time.sleep(POLL_SECONDS)

    def gather(self, cohort: Collection[int]) -> set[int]:
        """Look who is there; give members of the cohort that have just left a moment to come back.

        Returns: see `refresh`.
        """
        moved = self.refresh()
        while self._may_return(cohort):
            time.sleep(POLL_SECONDS)
            moved |= self.refresh()
        for client in [one for one in cohort if one in self.of and one in self._left]:
            self.away[client] = self.of.pop(client)
            log.warning("client %s is away; the run goes on without it, until it is back", self._named(client))
        return moved

    def look(self) -> None:
        """Look who is there, between two exchanges: what has moved meanwhile, the next `refresh` says."""
        self._unsaid |= self.refresh()

    def refresh(self) -> set[int]:
        """Look again who is there. Return the clients whose node was started since the last look, or is another one."""
        before, now = self._started, nodes_of(self._grid)
        self._started, self._online = before | now, set(now)
        self._note_absence()
        fresh = sorted(set(now) - self._known)
        query = [Message(RecordDict(), node, "query", ttl=QUERY_SECONDS) for node in fresh]
        for node, identifier in zip(fresh, self._mail.push(query), strict=True):
            if identifier:
                self._asked[identifier] = node
                self._known.add(node)
        restarted = {node for node in now if node in before and now[node] != before[node]}
        moved = {client for client, node in self.of.items() if node in restarted} | self._unsaid
        self._unsaid = set()
        for envelope in self._mail.look(list(self._asked)):
            moved |= self._answer(self._asked.pop(envelope.reply_to), envelope)
        return moved

    def _note_absence(self) -> None:
        """Note who has left, and since when; who is back is one of the clients again."""
        for client in [client for client, node in self.away.items() if node in self._online]:
            self.of[client] = self.away.pop(client)
            log.warning("client %s is back", self._named(client))
        for client, node in self.of.items():
            if node in self._online:
                self._left.pop(client, None)
            else:
                self._left.setdefault(client, time.monotonic())

    def _may_return(self, cohort: Collection[int]) -> bool:
        """Return whether a member of the cohort has left so recently that it is waited for."""
        since = time.monotonic() - RETURN_SECONDS
        return any(client in self.of and self._left.get(client, since) > since for client in cohort)

    def _missing(self) -> str:
        """Name the clients that have not appeared, and say what is known of each."""
        silent = {
            None if self._bound is None else self._bound(node) for node in set(self._asked.values()) & self._online
        }
        return ", ".join(
            f"{self._named(client)} ({'connected, at other work' if client in silent else 'not connected'})"
            for client in sorted(set(self._names or range(self._clients)) - set(self.of))
        )

    def _named(self, client: int) -> str:
        name = self._names.get(client)
        return str(client) if name is None else f"{client}, {name}"

    def _check_version(self, node: int, reply: Message) -> None:
        """Raise Malformed for a node whose Umbel is of another series than the server's."""
        theirs, ours = unpack_version(reply.content), unpack_version(pack_identity(0))
        said = f"it runs Umbel {theirs[0]}.{theirs[1]}, and the server {ours[0]}.{ours[1]}"
        if _series(theirs) != _series(ours):
            raise Malformed("version", f"{said}; install the same version on both")
        if theirs != ours:
            log.warning("node %d: %s; install the same version on both", node, said)

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
        self.away.pop(client, None)
        self._left.pop(client, None)
        return set() if other in (None, node) else {client}


def _series(version: tuple[int, int]) -> tuple[int, ...]:
    """Return what two versions that work together share: before 1.0 a minor one may change anything (semver.org, 4)."""
    return version[:1] if version[0] else version
