"""Session that all parties agree on, and how each checks it for itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...core.validation import require, require_count
from ..keys.errors import SERVER, BelowThreshold, Misbehaviour
from ..keys.roster import Roster, is_signed_as_before
from .encoding import FixedPoint
from .graph import Graph, Topology, quorum
from .messages import Advert, Offer, Roll

MINIMUM_CLIENTS = 3  # fewest clients of a sum: that of two tells each the other's update


class Stage(IntEnum):
    """Stages of a session: what a party does next."""

    ADVERTISE = 0
    SHARE = 1
    MASK = 2
    CONSISTENCY = 3
    UNMASK = 4
    DONE = 5
    ABANDONED = 6


@dataclass(frozen=True)
class Terms:
    """Terms that a party insists on. Each brings its own: the server's words are compared with it, never taken.

    Parameters
    ----------
    length
        Numbers in the vector, without the weight's coordinate.
    model
        SHA-256 of the params that this party holds.
    minimum_clients
        Fewer are refused, as takers of part and as survivors; below 3 a sum is no secret.
    least_roll
        Fewer are refused as takers of part, by what the experiment's sampler implies: whoever chooses a small roll
        needs few others on its side to read an update.
    """

    roster: Roster
    encoding: FixedPoint
    length: int
    model: bytes
    minimum_clients: int = MINIMUM_CLIENTS
    least_roll: int = 0

    def __post_init__(self) -> None:
        require_count("length", self.length)
        require_count("least_roll", self.least_roll, at_least=0)
        require_count("minimum_clients", self.minimum_clients, at_least=MINIMUM_CLIENTS)
        require(len(self.model) == 32, f"expected model to be a SHA-256 of 32 bytes, got {len(self.model)}")

    @property
    def ring_length(self) -> int:
        """Length of the masked vector, in ring elements."""
        return self.encoding.ring_length(self.length)

    @property
    def fewest(self) -> int:
        """Least number of clients that have to take part."""
        return max(self.minimum_clients, self.least_roll)

    def offer(self, run: str, round: int, attempt: int) -> Offer:
        """Offer these terms, for one attempt at one round."""
        encoding = self.encoding
        return Offer(
            run, round, attempt, self.ring_length, encoding.ring_bits, encoding.digest, self.roster.digest, self.model
        )

    def check_offer(self, offer: Offer) -> None:
        """Raise Misbehaviour by the server for terms that are not these."""
        own = self.offer(offer.run, offer.round, offer.attempt)
        named = {"roster": "other_roster", "model": "other_model"}
        for field, mine, theirs in zip(Offer._fields, own, offer, strict=True):
            if mine != theirs:
                reason = named.get(field, "other_parameters")
                raise Misbehaviour(reason, f"the server's offer has another {field} than this client", SERVER)

    def check_advert(self, advert: Advert, offer: bytes, now: int) -> None:
        """Raise Misbehaviour, its culprit the node, for an advert not signed by a current member for this offer.

        offer: the offer's digest.
        """
        member = self.roster.member(advert.node, now)
        if not is_signed_as_before(member.key, advert.signature, advert.signed_bytes(offer)):
            raise Misbehaviour("wrong_signature", f"client {advert.node}'s advert is not signed by it", advert.node)

    def quorum(self, clients: int) -> int:
        """Return how many of so many clients must survive every stage."""
        return max(quorum(clients), self.minimum_clients)


@dataclass(frozen=True)
class Session:
    """A roll that was checked: who takes part, who holds whose shares, and the hash that binds every later message."""

    offer: Offer
    roll: Roll

    @staticmethod
    @lru_cache(maxsize=4)  # equal terms and rolls make equal sessions: in one process once for all of a cohort
    def establish(terms: Terms, offer: Offer, roll: Roll) -> Session:
        """Return the session of a roll whose adverts were checked one by one. Errors: Misbehaviour by the server."""
        clients = len(roll.adverts)
        most = terms.encoding.clients
        if clients < terms.fewest:
            raise BelowThreshold(f"{clients} clients take part; at least {terms.fewest} are needed")
        if clients > most:
            raise Misbehaviour("too_many_clients", f"{clients} clients could overflow a ring sized for {most}", SERVER)
        if not Topology(clients, roll.degree, roll.threshold).is_at_least(Topology.of(clients)):
            raise Misbehaviour(
                "lowered_threshold",
                f"degree {roll.degree} with threshold {roll.threshold} is unsafe for {clients} clients",
                SERVER,
            )
        keys = {key for advert in roll.adverts for key in (advert.mask_key, advert.share_key)}
        if len(keys) != 2 * clients:
            raise Misbehaviour("repeated_key", "two adverts share a key", SERVER)
        return Session(offer, roll)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256(protocol ‖ run ‖ round ‖ attempt ‖ parameters ‖ roster ‖ model ‖ sorted adverts)."""
        return hashlib.sha256(b"umbel secagg session" + self.roll.encode(self.offer.digest)).digest()

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """All clients, ascending."""
        return tuple(advert.node for advert in self.roll.adverts)

    @cached_property
    def adverts(self) -> dict[int, Advert]:
        """All adverts, by node."""
        return {advert.node: advert for advert in self.roll.adverts}

    @cached_property
    def points(self) -> dict[int, int]:
        """Point of each client's shares: its place in the roll, from 1."""
        return {node: place for place, node in enumerate(self.nodes, 1)}

    @cached_property
    def graph(self) -> Graph:
        """Graph over places in the roll, from 0."""
        return Graph(Topology(len(self.nodes), self.roll.degree, self.roll.threshold), self.digest)

    def neighbours(self, node: int) -> list[int]:
        """Return the clients that node masks with, ascending."""
        return [self.nodes[index] for index in self.graph.neighbours(self.points[node] - 1)]

    def holders(self, node: int) -> list[int]:
        """Return the clients that hold shares of node's secrets: its neighbours and itself, ascending."""
        return sorted([*self.neighbours(node), node])

    def survivors_text(self, flags: list[bool]) -> bytes:
        """Return the text that a client signs to agree that exactly these survived."""
        return b"umbel secagg survivors" + self.digest + np.packbits(flags, bitorder="little").tobytes()

    def sealed_text(self, sender: int, receiver: int, dealing: bytes, ciphertext: bytes) -> bytes:
        """Return the text that a client signs about the shares it sends. dealing: digest of all of them."""
        return b"umbel secagg shares" + self.route(sender, receiver) + dealing + ciphertext

    def route(self, sender: int, receiver: int) -> bytes:
        """Join session, sender and receiver: the associated data of sealed shares."""
        return self.digest + sender.to_bytes(8, "little") + receiver.to_bytes(8, "little")


def commitment(offer: bytes, node: int, seed: bytes) -> bytes:
    """Compute the SHA-256 commitment to a self-mask seed. It hides the seed, which has 256 random bits."""
    return hashlib.sha256(b"umbel secagg self mask" + offer + node.to_bytes(8, "little") + seed).digest()


def self_mask(session: Session, seed: bytes) -> bytes:
    """Derive the stream seed of a client's own mask."""
    return _expand(seed, session.digest, b"umbel secagg self mask")


def pair_mask(session: Session, private: X25519PrivateKey, public: bytes, peer: int) -> bytes:
    """Derive the stream seed of the mask of two clients: the same from either side."""
    return _expand(agree(private, public, peer), session.digest, b"umbel secagg pair mask")


def seal_key(session: Session, secret: bytes, route: bytes) -> bytes:
    """Derive the AES key for the one message along a route between two clients.

    secret: what their share keys agree on.
    """
    return _expand(secret, session.digest, b"umbel secagg shares" + route)


def agree(private: X25519PrivateKey, public: bytes, peer: int) -> bytes:
    """Compute the shared secret.

    Errors: Misbehaviour by the peer for a point of low order, which would make it no secret.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise Misbehaviour("weak_key", f"client {peer} advertised a key of low order", peer) from error


def _expand(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    """Derive 32 bytes by HKDF-SHA256."""
    return HKDF(SHA256(), 32, salt, purpose).derive(secret)


def check_key(probe: X25519PrivateKey, public: bytes, peer: int) -> None:
    """Raise Misbehaviour by the peer when its key is a point of low order. probe: any private key."""
    agree(probe, public, peer)
