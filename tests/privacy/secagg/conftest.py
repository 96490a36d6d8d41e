"""A small cohort with everything it needs, and a driver through which tests tamper with messages."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from umbel.privacy.secagg import (
    Client,
    FixedPoint,
    Member,
    Outcome,
    Roster,
    RoundLog,
    SecAggAbort,
    Server,
    Stage,
    Terms,
)

NOW = 1_700_000_000
STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONSISTENCY, Stage.UNMASK)
Tamper = Callable[[Stage, int, bytes], bytes]


class Entropy:
    """The same bytes every time."""

    def __init__(self, *path: object):
        self.path, self.calls = repr(path).encode(), 0

    def __call__(self, size: int) -> bytes:
        self.calls += 1
        return hashlib.shake_256(self.path + self.calls.to_bytes(4, "big")).digest(size)


class Parties:
    """A cohort of clients with random ring elements, in one round."""

    def __init__(self, count: int = 7, length: int = 33, **terms: object):
        self.nodes = [11 * place + 5 for place in range(count)]
        entropy = Entropy("identity")
        self.identities = {node: Ed25519PrivateKey.from_private_bytes(entropy(32)) for node in self.nodes}
        members = (Member(node, self.key(node), f"site {node}", NOW + 60) for node in self.nodes)
        base = Terms(Roster(tuple(members)), FixedPoint(1.0, clients=4096), length, model=bytes(range(32)))
        self.terms = dataclasses.replace(base, **terms)
        size, dtype = self.terms.ring_length, self.terms.encoding.dtype
        self.values = {
            node: np.frombuffer(Entropy("values", node)(size * dtype.itemsize), dtype) for node in self.nodes
        }
        self.logs = {node: RoundLog() for node in self.nodes}
        self.stops: dict[int, tuple[str, object]] = {}
        self.replies: dict[tuple[Stage, int], bytes] = {}
        self.sent: dict[tuple[Stage, int], bytes] = {}

    def key(self, node: int) -> bytes:
        return self.identities[node].public_key().public_bytes_raw()

    def sum_of(self, nodes) -> np.ndarray:
        return np.sum([self.values[node] for node in nodes], axis=0, dtype=self.terms.encoding.dtype)

    def client(self, node: int, **terms: object) -> Client:
        own = dataclasses.replace(self.terms, **terms)
        entropy = Entropy("client", node)
        return Client(node, self.identities[node], own, self.values[node], NOW, self.logs[node], entropy)

    def server(self, round: int = 1, attempt: int = 1) -> Server:
        return Server(self.terms, self.nodes, "run", round, attempt, NOW)

    def enter(self, **terms: object) -> None:
        """Fresh clients, one for each node."""
        self.clients = {node: self.client(node, **terms) for node in self.nodes}

    def play(
        self, server: Server, to: Tamper | None = None, back: Tamper | None = None, drop: dict | None = None
    ) -> Outcome:
        """All stages; `to` alters what a client gets, `back` what it replies. Clients that stop are in `stops`."""
        gone: set[int] = set()
        for stage in STAGES:
            gone |= set((drop or {}).get(stage, ()))
            for node, message in server.advance().items():
                if node in gone:
                    continue
                message = to(stage, node, message) if to else message
                self.sent[stage, node] = message
                try:
                    reply = self.clients[node].answer(message)
                except SecAggAbort as error:
                    self.stops[node] = (error.reason, error.culprit)
                    continue
                self.replies[stage, node] = reply = back(stage, node, reply) if back else reply
                server.receive(node, reply)
        return server.finish()

    @property
    def revealed(self) -> list[int]:
        """Whose shares left."""
        return [node for stage, node in self.replies if stage is Stage.UNMASK]


@pytest.fixture
def parties() -> Callable[..., Parties]:
    """Builds a cohort whose clients are ready."""

    def build(count: int = 7, length: int = 33, **terms: object) -> Parties:
        made = Parties(count, length, **terms)
        made.enter()
        return made

    return build
