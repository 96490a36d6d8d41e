"""Secure aggregation as a value of an Experiment: the server learns the cohort's sum, and no client's update.

    Experiment(..., weighting="uniform", secure_aggregation=SecureSum(limit=0.5))

The protocol, and the papers behind it, are in `secagg`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.errors import RunStopped
from ..core.parts.private import RemoteAggregation
from ..core.sums import ClientSum, Joins, Meeting, ServerSum
from ..core.types import Shape
from ..core.validation import require_count
from .arithmetic import ArithmeticClient, ArithmeticServer
from .encoder import Encoder
from .keys.credentials import identity_in, provision, roster_in
from .layout import Layout
from .remote import SecureClient, SecureServer, kept_log
from .secagg import FixedPoint, Member, Roster, RoundLog, Topology
from .secagg.messages import client_bytes
from .secagg.session import MINIMUM_CLIENTS
from .states import check_names, length, states_to_sum, warn_of_limit

NEVER = 1 << 40  # time when the made-up identity of a client in this process expires: seconds since 1970


@dataclass(frozen=True)
class SecureSum(RemoteAggregation):
    """Clients send masked vectors, and the masks cancel in the sum: the server learns that and nothing else.

    Parameters
    ----------
    limit
        The largest magnitude kept of a number in an update; what lies outside is moved to it, and the round's
        "saturated" metric says how much that was.
    metrics
        What the clients report in the sum, as states (see `states`): their values are those of all the cohort's
        examples, counts exact. So the server learns how many examples the cohort has together, whatever weighting says,
        and all that a metric's state holds, added up: of AUC, how many predictions lie between any two thresholds.
    metric_limit
        Has no effect any more, since states have no limit that has to be guessed.
    max_weight
        The largest weight of a client. 1: every client weighs 1 (weighting="uniform"). Above: weights are numbers of
        examples, and their sum is all that the server learns of them.
    ring_bits
        32 or 64; by default 32 where every client weighs 1, which is enough for 4096 clients, else 64.
    minimum_clients
        The least number, at least 3, with which a sum is formed. Of those who have trained, and agreed on keys, two
        thirds must be left in any case.

    Raises
    ------
    ConfigError
        For a value out of bounds, and for a cohort that could overflow the ring.
    """

    limit: float
    metrics: tuple[str, ...] = ("loss",)
    metric_limit: float | None = None
    max_weight: int = 1
    ring_bits: int | None = None
    minimum_clients: int = MINIMUM_CLIENTS

    def __post_init__(self) -> None:
        require_count("minimum_clients", self.minimum_clients, at_least=MINIMUM_CLIENTS)
        check_names(self.metrics)
        warn_of_limit(self, self.metric_limit)
        self.encoding(self.minimum_clients)
        self.layout(Shape(1, 0))

    def encoding(self, clients: int, wide: int = 0) -> FixedPoint:
        """Return how numbers become integers, for a sum of at most so many clients.

        wide: numbers of metrics' states.
        """
        ring_bits = self.ring_bits or (32 if self.max_weight == 1 else 64)
        return FixedPoint(self.limit, clients, self.max_weight, ring_bits, wide)

    @property
    def step(self) -> float:
        """Largest distance by which rounding may move a number."""
        return self.encoding(self.minimum_clients).step

    @property
    def magnitude_limit(self) -> float:
        """Largest magnitude kept of a number: limit."""
        return self.limit

    @property
    def cohort_bounds(self) -> tuple[int, int | None]:
        """The fewest and the most clients of a sum: minimum_clients, and no upper bound."""
        return self.minimum_clients, None

    def check_joins(self, joins: Joins) -> None:
        """Raise ConfigError for a metric that the model does not report, or whose state is no sum."""
        states_to_sum(self.metrics, joins)

    def layout(self, shape: Shape, joins: Joins | None = None) -> Layout:
        """Return the layout of the vector that is summed. joins: of the metrics that the model measures, by name."""
        states = states_to_sum(self.metrics, joins)
        return Layout(shape, self.limit, counts=self.max_weight == 1, states=states)

    def rehearse(
        self, meeting: Meeting, cohort: Sequence[int], is_real: bool
    ) -> tuple[ServerSum, Callable[[int], ClientSum]]:
        """Make both halves of a round's sum in one process.

        is_real: every stage of the protocol, its identities made up for the round; else its arithmetic alone.

        Errors: RunStopped for a cohort of fewer than minimum_clients.
        """
        self._check_cohort(cohort, meeting.round)
        encoder, meeting = (
            self._encoder(meeting),
            meeting._replace(least=meeting.least or 0),
        )  # nobody lies about it here
        if not is_real:
            return self._arithmetic(encoder, cohort, meeting), partial(ArithmeticClient, encoder.encode_or_nothing)
        identities = {node: Ed25519PrivateKey.generate() for node in sorted(cohort)}
        keys = {node: key.public_key().public_bytes_raw() for node, key in identities.items()}
        roster = Roster(tuple(Member(node, key, "", NEVER) for node, key in keys.items()))

        def half(client: int) -> SecureClient:
            identity = identities[client]
            return SecureClient(encoder, self.minimum_clients, meeting, client, roster, identity, RoundLog())

        return SecureServer(encoder, self.minimum_clients, meeting, cohort, roster), half

    def server(self, meeting: Meeting, cohort: Sequence[int], kit: Path) -> SecureServer:
        """Make the server's half among real devices. kit: has the signed roster of those who may take part.

        Errors: RunStopped for a cohort of fewer than minimum_clients; ConfigError for a kit without a roster.
        """
        self._check_cohort(cohort, meeting.round)
        return SecureServer(self._encoder(meeting), self.minimum_clients, meeting, cohort, roster_in(kit))

    def client(self, meeting: Meeting, client: int, kit: Path, home: Path) -> SecureClient:
        """Make a client's half among real devices. kit: has the roster, and the identity that it lists of this client.

        home: where the client notes what it took part in. Errors: ConfigError for a kit without them, and for a cohort
        whose sum could overflow.
        """
        roster, identity, log = roster_in(kit), identity_in(kit).signing, kept_log(home / f"secure-sums-{client}.json")
        return SecureClient(self._encoder(meeting), self.minimum_clients, meeting, client, roster, identity, log)

    def provision(self, server: Path, clients: Mapping[int, Path]) -> None:
        """Write identities and a signed roster where kits have none; the key that signed it is not kept."""
        provision(server, clients)

    def _encoder(self, meeting: Meeting) -> Encoder:
        layout = self.layout(meeting.shape, meeting.joins)
        return Encoder(layout, self.encoding(meeting.cohort, length(layout.states)))

    def _arithmetic(self, encoder: Encoder, cohort: Sequence[int], meeting: Meeting) -> ArithmeticServer:
        zero = np.zeros(encoder.encoding.ring_length(encoder.layout.size), encoder.encoding.dtype)

        def price(counted: int) -> int:
            return counted * sum(client_bytes(Topology.of(counted).degree, zero.nbytes))

        # Clients train before they agree on keys: whoever fails at it has no masks that others would have to take out.
        least = max(self.minimum_clients, meeting.least or 0)
        wide = encoder.encoding.wide
        return ArithmeticServer(cohort, zero, least, encoder.decode, price, meeting.round, wide)

    def _check_cohort(self, cohort: Sequence[int], round: int) -> None:
        """Raise RunStopped for a cohort of fewer than minimum_clients."""
        if len(cohort) < self.minimum_clients:
            raise RunStopped(
                f"round {round}: a cohort of {len(cohort)}; a secure sum is formed of at least {self.minimum_clients}"
            )
