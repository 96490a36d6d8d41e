"""A whole session in one process, and the sum it must give."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..keys.errors import BelowThreshold
from ..keys.roster import Member, Roster
from .client import Client, RoundLog
from .encoding import FixedPoint
from .graph import quorum
from .masking import add_to
from .server import Outcome, Server
from .session import MINIMUM_CLIENTS, Stage, Terms

Dropouts = Mapping[Stage, Collection[int]]  # clients that do not reply at a stage, nor later


def play(server: Server, clients: Mapping[int, Client], dropouts: Dropouts | None = None) -> Outcome:
    """Carry messages between a server and its clients. Errors: whatever either raises."""
    gone: set[int] = set()
    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONSISTENCY, Stage.UNMASK):
        gone |= set((dropouts or {}).get(stage, ()))
        for node, message in server.advance().items():
            if node not in gone:
                server.receive(node, clients[node].answer(message))
    return server.finish()


def simulate(
    values: Mapping[int, np.ndarray],
    encoding: FixedPoint,
    dropouts: Dropouts | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Outcome:
    """Sum encoded vectors {node: ring elements} by the full protocol, with keys made up for the occasion.

    Errors: BelowThreshold as in a real session.
    """
    nodes, now = sorted(values), 0
    identities = {node: Ed25519PrivateKey.from_private_bytes(entropy(32)) for node in nodes}
    members = (Member(node, identities[node].public_key().public_bytes_raw(), "", now + 1) for node in nodes)
    length = len(values[nodes[0]]) - encoding.ring_length(0)
    terms = Terms(Roster(tuple(members)), encoding, length, model=bytes(32))
    clients = {node: Client(node, identities[node], terms, values[node], now, RoundLog(), entropy) for node in nodes}
    return play(Server(terms, nodes, "simulation", round=1, attempt=1, now=now), clients, dropouts)


def add(values: Mapping[int, np.ndarray], encoding: FixedPoint, dropouts: Dropouts | None = None) -> Outcome:
    """Sum the same as `simulate` by the arithmetic alone, for simulations at scale, where nobody is to be kept out.

    Errors: BelowThreshold where a quorum is missed. (On the graphs above 64 clients the protocol can also fail because
    one client's neighbours dropped out; that is a matter of 2⁻²⁰ within the graph's design, and not simulated.)
    """
    left, inside, takers = set(values), tuple(sorted(values)), 0
    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.CONSISTENCY, Stage.UNMASK):
        left -= set((dropouts or {}).get(stage, ()))
        takers = len(left) if stage is Stage.ADVERTISE else takers
        inside = tuple(sorted(left)) if stage <= Stage.MASK else inside
        # A sum of two is never formed; once it is one of three, only the threshold counts.
        least = quorum(takers) if stage > Stage.MASK else max(quorum(takers), MINIMUM_CLIENTS)
        if len(left) < least:
            raise BelowThreshold(f"{len(left)} clients at stage {stage.name}; at least {least} are needed")
    total = np.zeros(len(next(iter(values.values()))), encoding.dtype)
    for node in inside:
        add_to(total, values[node], encoding.wide)
    return Outcome(total, inside, ())
