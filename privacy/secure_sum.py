"""Secure aggregation as a value of an Experiment: the server learns the cohort's sum, and no client's update.

    Experiment(..., weighting="uniform", aggregation=SecureSum(limit=0.5))

The protocol, and the papers behind it, are in `secagg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.errors import RunStopped
from ..core.protocols import AggregationSession
from ..core.random import Key
from ..core.sums import Meeting
from ..core.types import ClientUpdate, Failure, Shape, Total
from ..core.validation import require_count
from .credentials import provision
from .encoder import Encoder, encoded_or_failure
from .layout import Layout
from .remote import SecureClient, SecureServer
from .secagg import BelowThreshold, Client, FixedPoint, Member, Roster, RoundLog, Server, Terms, Topology
from .secagg.graph import quorum
from .secagg.messages import client_bytes
from .secagg.session import MINIMUM_CLIENTS


@dataclass(frozen=True)
class SecureSum:
    """Clients send masked vectors, and the masks cancel in the sum: the server learns that and nothing else.

    limit: the largest magnitude kept of a number in an update; what lies outside is moved to it, and the round's
    "saturated" metric says how much that was.
    metrics: what the clients report in the sum, each as its mean; metric_limit: the largest magnitude of a mean.
    max_weight: the largest weight of a client. 1: every client weighs 1 (weighting="uniform"). Above: weights are
    numbers of examples, and their sum is all that the server learns of them.
    ring_bits: 32 or 64; by default 32 where every client weighs 1, which is enough for 4096 clients, else 64.
    minimum_clients: with fewer left, at least 3, no sum is formed. Two thirds of a cohort must be left in any case.

    Errors: ConfigError for a value out of bounds, and for a cohort that could overflow the ring.
    """

    limit: float
    metrics: tuple[str, ...] = ("loss",)
    metric_limit: float = 10.0
    max_weight: int = 1
    ring_bits: int | None = None
    minimum_clients: int = MINIMUM_CLIENTS

    def __post_init__(self) -> None:
        require_count("minimum_clients", self.minimum_clients, at_least=MINIMUM_CLIENTS)
        self.encoding(self.minimum_clients)
        self.layout(Shape(1, 0))

    def encoding(self, clients: int) -> FixedPoint:
        """How numbers become integers, for a sum of at most so many clients."""
        return FixedPoint(self.limit, clients, self.max_weight, self.ring_bits or (32 if self.max_weight == 1 else 64))

    @property
    def step(self) -> float:
        """How far rounding may move a number."""
        return self.encoding(self.minimum_clients).step

    def layout(self, shape: Shape) -> Layout:
        """What the vector summed is made of."""
        return Layout(shape, self.metrics, self.limit, self.metric_limit)

    def session(self, shape: Shape, cohort: Sequence[int], round: int, key: Key, is_real: bool) -> AggregationSession:
        """A round's session, in one process. is_real: every stage of the protocol; else its arithmetic alone.

        Errors: RunStopped for a cohort of fewer than minimum_clients.
        """
        self._check_cohort(cohort, round)
        kind = ProtocolSession if is_real else ArithmeticSession
        return kind(Encoder(self.layout(shape), self.encoding(len(cohort))), cohort, round, self.minimum_clients)

    def server(self, meeting: Meeting, cohort: Sequence[int], kit: Path) -> SecureServer:
        """The server's half among real devices. kit: has the signed roster of those who may take part.

        Errors: RunStopped for a cohort of fewer than minimum_clients; ConfigError for a kit without a roster.
        """
        self._check_cohort(cohort, meeting.round)
        return SecureServer(self._encoder(meeting), self.minimum_clients, meeting, cohort, kit)

    def client(self, meeting: Meeting, client: int, kit: Path, home: Path) -> SecureClient:
        """A client's half among real devices. kit: has the roster, and the identity that it lists of this client.

        home: where the client notes what it took part in. Errors: ConfigError for a kit without them, and for a cohort
        whose sum could overflow.
        """
        return SecureClient(self._encoder(meeting), self.minimum_clients, meeting, client, kit, home)

    def provision(self, server: Path, clients: Mapping[int, Path]) -> None:
        """Identities and a signed roster, where kits have none; the key that signed it is not kept."""
        provision(server, clients)

    def _encoder(self, meeting: Meeting) -> Encoder:
        return Encoder(self.layout(meeting.shape), self.encoding(meeting.cohort))

    def _check_cohort(self, cohort: Sequence[int], round: int) -> None:
        """Errors: RunStopped for a cohort of fewer than minimum_clients."""
        if len(cohort) < self.minimum_clients:
            raise RunStopped(
                f"round {round}: a cohort of {len(cohort)}; a secure sum is formed of at least {self.minimum_clients}"
            )


class ArithmeticSession:
    """The sum by addition in the ring: what the protocol gives, for simulations in which nobody is to be kept out."""

    def __init__(self, encoder: Encoder, cohort: Sequence[int], round: int, minimum_clients: int):
        self._encoder, self._round = encoder, round
        self._sum = np.zeros(encoder.encoding.ring_length(encoder.layout.size), encoder.encoding.dtype)
        self._added = 0
        self._least = max(quorum(len(cohort)), minimum_clients)
        before, self._masked_bytes, self._after = client_bytes(Topology.of(len(cohort)).degree, self._sum.nbytes)
        self.bytes_up = len(cohort) * before  # as many as the protocol sends

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> np.ndarray | Failure:
        """The update in the ring; a Failure for one that is not finite."""
        return encoded_or_failure(self._encoder, client, update, key)

    def add(self, client: int, contribution: np.ndarray) -> None:
        """Add to the one accumulator."""
        self._sum += contribution
        self._added += 1
        self.bytes_up += self._masked_bytes

    def total(self) -> Total:
        """The sum. Errors: RunStopped where the protocol would reveal none."""
        if self._added < self._least:
            raise RunStopped(
                f"round {self._round}: {self._added} clients sent their masked vectors; "
                f"at least {self._least} are needed"
            )
        self.bytes_up += self._added * self._after
        return self._encoder.decode(self._sum, self._added)


class ProtocolSession:
    """The sum by the protocol, all its parties in this process: every key, mask, signature and check is real.

    Keys are agreed on when the session begins, before anyone trains. Identities are made up for the session: in one
    process there is nobody to hold long-term keys. A client of the cohort that is never added has dropped out after
    sharing its secrets, and its masks are taken out of the sum.
    """

    def __init__(self, encoder: Encoder, cohort: Sequence[int], round: int, minimum_clients: int):
        self.bytes_up = 0
        self._encoder, self._round = encoder, round
        identities = {node: Ed25519PrivateKey.generate() for node in sorted(cohort)}
        members = (Member(node, key.public_key().public_bytes_raw(), "", 1) for node, key in identities.items())
        # Nobody could hold other params here, so that there is no digest of them to agree on.
        terms = Terms(Roster(tuple(members)), encoder.encoding, encoder.layout.size, bytes(32), minimum_clients)
        self._clients = {node: Client(node, key, terms, None, 0, RoundLog()) for node, key in identities.items()}
        self._server = Server(terms, cohort, "simulation", round, attempt=1, now=0)
        self._exchange()  # Advertise
        self._exchange()  # Share
        self._deliveries = self._server.advance()

    def contribute(self, client: int, update: ClientUpdate, key: Key) -> bytes | Failure:
        """The client's masked vector; a Failure for an update that is not finite. May run on any thread."""
        values = encoded_or_failure(self._encoder, client, update, key)
        if isinstance(values, Failure):
            return values
        self._clients[client].provide(values)
        return self._clients[client].answer(self._deliveries[client])

    def add(self, client: int, contribution: bytes) -> None:
        """The server adds the masked vector to its one accumulator."""
        self._receive(client, contribution)

    def total(self) -> Total:
        """The sum, unmasked. Errors: RunStopped when too few clients are left."""
        try:
            self._exchange()  # Consistency
            self._exchange()  # Unmask
            outcome = self._server.finish()
        except BelowThreshold as error:
            raise RunStopped(f"round {self._round}: {error}") from error
        return self._encoder.decode(outcome.total, len(outcome.survivors))

    def _exchange(self) -> None:
        """A stage in which everyone asked answers at once."""
        for node, message in self._server.advance().items():
            self._receive(node, self._clients[node].answer(message))

    def _receive(self, node: int, reply: bytes) -> None:
        self.bytes_up += len(reply)
        self._server.receive(node, reply)
