"""Roster of who may take part: long-term Ed25519 keys, listed and signed offline, pinned by every client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ...core.errors import ConfigError
from ...core.validation import require
from .errors import MalformedMessage, Misbehaviour
from .wire import Reader, Writer

SIGNATURE_BYTES = 64
_LABEL = b"umbel roster 1"


class Member(NamedTuple):
    """One node of the roster."""

    node: int  # number of the node: 64 bits, as Flower numbers nodes
    key: bytes  # Ed25519 public key, 32 bytes
    owner: str  # name of the owner, for people to read
    expires: int  # time from which the node is refused, in seconds since 1970


@dataclass(frozen=True)
class Roster:
    """Members by ascending node. Errors: ConfigError for two of one node, or one key for two nodes."""

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        nodes = [member.node for member in self.members]
        require(nodes == sorted(set(nodes)), "a roster's nodes must be distinct and ascending")
        require(len({member.key for member in self.members}) == len(nodes), "two nodes of a roster share a key")
        for member in self.members:
            require(len(member.key) == 32, f"the key of node {member.node} has {len(member.key)} bytes, not 32")

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all members."""
        return hashlib.sha256(_LABEL + self._encode()).digest()

    def signed(self, authority: Ed25519PrivateKey) -> bytes:
        """Return the roster as bytes, with the authority's signature: what is handed to every node."""
        body = self._encode()
        return authority.sign(_LABEL + body) + body

    @staticmethod
    def open(data: bytes, authority_key: bytes) -> Roster:
        """Read the roster that `signed` wrote. Errors: ConfigError when this public key's authority did not sign it."""
        if not is_signed(authority_key, data[:SIGNATURE_BYTES], _LABEL + data[SIGNATURE_BYTES:]):
            raise ConfigError("the roster is not signed by the pinned authority")
        reader = Reader(data[SIGNATURE_BYTES:])
        try:
            count = reader.number(4)
            members = [Member(reader.number(8), reader.take(32), reader.text(), reader.number(8)) for _ in range(count)]
            reader.finish()
        except MalformedMessage as error:
            raise ConfigError(f"the roster does not read back: {error}") from error
        return Roster(tuple(members))

    def member(self, node: int, now: int) -> Member:
        """Return the node's entry. Errors: Misbehaviour when it is not in the roster, or expired by `now`."""
        member = self._by_node.get(node)
        if member is None:
            raise Misbehaviour("not_in_roster", f"client {node} is not in the roster", node)
        if now >= member.expires:
            raise Misbehaviour("expired", f"the roster's entry of client {node} has expired; sign a new roster", node)
        return member

    @cached_property
    def _by_node(self) -> dict[int, Member]:
        return {member.node: member for member in self.members}

    def _encode(self) -> bytes:
        writer = Writer().number(len(self.members), 4)
        for member in self.members:
            writer.number(member.node, 8).raw(member.key).text(member.owner).number(member.expires, 8)
        return writer.bytes()


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether signature is that of the Ed25519 public key on message."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


# For what all of a cohort are sent alike: where they share a process, each signature is checked once. Short messages
# only, since it keeps them.
is_signed_as_before = lru_cache(maxsize=1 << 15)(is_signed)
