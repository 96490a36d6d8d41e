"""Graph of who masks with whom, and how many shares give a secret back.

Up to 64 clients everyone masks with everyone (Bonawitz et al. 2017, https://doi.org/10.1145/3133956.3133982); above,
each with k others on a Harary graph (Bell et al. 2020, https://eprint.iacr.org/2020/704). There the server must be
semi-malicious at worst: the session's hash orders the ring, and a server that controls clients could draw their keys
again until it likes the order.

What corrupt clients can do beside such a server, and what (k, t) has to make unlikely:

- *Read one update.* Each honest holder of a client's shares reveals one of its two secrets, a corrupt one both. Both
  come to light where 2t − k − 1 of the k neighbours are corrupt.
- *Cut the ring in two*, and read two sums. Between the parts lie two stretches of k/2 clients that are corrupt or said
  to have dropped out; an honest client beside one stops where more than k + 1 − t of its holders have. So in each of
  the two at least t − 1 − k/2 are corrupt.
- *End the session*, as clients that drop out do: where fewer than t holders of a secret are left.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from ...core.errors import ConfigError

COMPLETE_UP_TO = 64
CORRUPT, DROPPING = 0.05, 0.05  # shares of a cohort above COMPLETE_UP_TO: on the server's side; lost on the way
SECURITY_BITS, CORRECTNESS_BITS = 40, 20  # −log₂ of the chance, a session, that the first do harm, the second end it
# (clients up to, k, t). Each row keeps what is said above for every cohort size that it serves; `tests` compute it.
HARARY = ((100, 16, 12), (300, 44, 33), (1_000, 56, 41), (10_000, 68, 50))


@dataclass(frozen=True)
class Topology:
    """Numbers of a graph: clients, the degree of each, and the threshold among a client and its neighbours."""

    clients: int
    degree: int
    threshold: int

    @staticmethod
    def of(clients: int) -> Topology:
        """Return the smallest topology that is safe for so many clients.

        Errors: ConfigError for fewer than 3 or more than 10,000.
        """
        if clients < 3:
            raise ConfigError(f"expected clients={clients} ≥ 3: the sum of two tells each the other's update")
        if clients <= COMPLETE_UP_TO:
            return Topology(clients, clients - 1, quorum(clients))
        for most, degree, threshold in HARARY:
            if clients <= most:
                return Topology(clients, degree, threshold)
        raise ConfigError(f"expected clients={clients} ≤ {HARARY[-1][0]}; split the cohort")

    @property
    def corrupt_neighbours(self) -> int:
        """Largest number of a client's neighbours that may side with the server while its update stays hidden."""
        return 2 * self.threshold - self.degree - 2

    @property
    def is_complete(self) -> bool:
        """Return whether everyone masks with everyone."""
        return self.degree == self.clients - 1

    def is_at_least(self, floor: Topology) -> bool:
        """Return whether this is no weaker than floor, for as many clients.

        It has as many neighbours with at least the threshold, or everyone masks with everyone. More neighbours alone
        would be weaker: with them, fewer of a threshold are honest.
        """
        if self.clients != floor.clients or not self.threshold <= self.degree + 1:
            return False
        if self.is_complete:
            return self.threshold >= quorum(self.clients)
        return self.degree == floor.degree and self.threshold >= floor.threshold


def quorum(clients: int) -> int:
    """Compute ⌈2n/3⌉: as many must survive of n clients, so that one third may collude with the server."""
    return math.ceil(2 * clients / 3)


class Graph:
    """Neighbours of each of 0…clients−1, the same for all who know the seed, which is the session's hash."""

    def __init__(self, topology: Topology, seed: bytes):
        self.topology = topology
        # Nobody chooses who sits beside whom: the ring's order is a hash of the session.
        keys = [hashlib.sha256(b"umbel graph" + seed + index.to_bytes(4, "big")) for index in range(topology.clients)]
        self._order = sorted(range(topology.clients), key=lambda index: keys[index].digest())
        self._rank = {index: rank for rank, index in enumerate(self._order)}

    def neighbours(self, index: int) -> list[int]:
        """Return the neighbours of index, ascending, without itself.

        They are symmetric: each is a neighbour of its neighbours.
        """
        if self.topology.is_complete:
            return [other for other in range(self.topology.clients) if other != index]
        rank, half = self._rank[index], self.topology.degree // 2
        reach = [step for step in range(-half, half + 1) if step]
        return sorted(self._order[(rank + step) % self.topology.clients] for step in reach)
