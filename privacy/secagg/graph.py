"""Who masks with whom, and how many shares give a secret back.

Up to 64 clients everyone masks with everyone (Bonawitz et al. 2017, https://doi.org/10.1145/3133956.3133982); above,
each with k others on a Harary graph (Bell et al. 2020, https://eprint.iacr.org/2020/704). There the server must be
semi-malicious at worst: the session's hash orders the ring, and a server that controls clients could draw their keys
again until it likes the order.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from ...core.errors import ConfigError

COMPLETE_UP_TO = 64
# (clients up to, k, t): 40 bits of security, 20 of correctness, with 5 % corrupt and 5 % dropping, under a
# semi-malicious server. A row serves all smaller cohorts too, where as many neighbours are the more.
HARARY = ((100, 16, 11), (1_000, 52, 37), (10_000, 62, 44))


@dataclass(frozen=True)
class Topology:
    """A graph's numbers: clients, the degree of each, and the threshold among a client and its neighbours."""

    clients: int
    degree: int
    threshold: int

    @staticmethod
    def of(clients: int) -> Topology:
        """The least that is safe for so many clients. Errors: ConfigError for fewer than 3 or more than 10,000."""
        if clients < 3:
            raise ConfigError(f"expected clients={clients} ≥ 3: the sum of two tells each the other's update")
        if clients <= COMPLETE_UP_TO:
            return Topology(clients, clients - 1, quorum(clients))
        for most, degree, threshold in HARARY:
            if clients <= most:
                return Topology(clients, degree, threshold)
        raise ConfigError(f"expected clients={clients} ≤ {HARARY[-1][0]}; split the cohort")

    @property
    def is_complete(self) -> bool:
        """Whether everyone masks with everyone."""
        return self.degree == self.clients - 1

    def is_at_least(self, floor: Topology) -> bool:
        """Whether this is a possible graph and no weaker than floor, for as many clients."""
        fits = self.is_complete or (self.degree % 2 == 0 and self.degree < self.clients - 1)
        enough = self.degree >= floor.degree and self.threshold >= floor.threshold
        # 2t > holders: no two sets of answers can give both secrets of one client.
        return fits and enough and self.threshold <= self.degree + 1 < 2 * self.threshold


def quorum(clients: int) -> int:
    """⌈2n/3⌉: as many must survive of n clients, so that one third may collude with the server."""
    return math.ceil(2 * clients / 3)


class Graph:
    """Neighbours of each of 0…clients−1, the same for all who know the seed; seed: the session's hash."""

    def __init__(self, topology: Topology, seed: bytes):
        self.topology = topology
        # Nobody chooses who sits beside whom: the ring's order is a hash of the session.
        keys = [hashlib.sha256(b"umbel graph" + seed + index.to_bytes(4, "big")) for index in range(topology.clients)]
        self._order = sorted(range(topology.clients), key=lambda index: keys[index].digest())
        self._rank = {index: rank for rank, index in enumerate(self._order)}

    def neighbours(self, index: int) -> list[int]:
        """Ascending, without index itself. Symmetric: each is a neighbour of its neighbours."""
        if self.topology.is_complete:
            return [other for other in range(self.topology.clients) if other != index]
        rank, half = self._rank[index], self.topology.degree // 2
        reach = [step for step in range(-half, half + 1) if step]
        return sorted(self._order[(rank + step) % self.topology.clients] for step in reach)
