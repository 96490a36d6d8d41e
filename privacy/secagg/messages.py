"""The ten messages of a session, as bytes. Two for each stage: the server's, then the client's.

    Advertise    Offer ─►      ◄─ Advert
    Share        Roll ─►       ◄─ Shares
    Mask         Delivery ─►   ◄─ Masked, or Disputed where a peer's shares do not open; with points of `dealing`
    Consistency  Survivors ─►  ◄─ Consent
    Unmask       Consents ─►   ◄─ Reveal

Every message opens with 40 bytes: "UMSA", version, kind, two zeros, and the 32 bytes it is bound to (zeros for an
Offer; the offer's digest for Advert and Roll; the session's digest from then on). Who sent a client's message, the
transport knows: nodes authenticate there. Lists ascend by node, so that each message has one form.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from ..keys.errors import MalformedMessage
from ..keys.wire import Reader, Writer
from .shamir import SHARE_BYTES, from_bytes, to_bytes

MAGIC = b"UMSA"
VERSION = 3  # since 2 survivors reveal masks shared with who dropped out; since 3 dealings are checked before that
HEADER_BYTES = 40
SIGNATURE_BYTES = 64
SEALED_BYTES = 3 * SHARE_BYTES + 16  # three shares and AES-GCM's tag
UNBOUND = bytes(32)


class Kind(IntEnum):
    """Kinds of messages."""

    OFFER = 1
    ADVERT = 2
    ROLL = 3
    SHARES = 4
    DELIVERY = 5
    MASKED = 6
    SURVIVORS = 7
    CONSENT = 8
    CONSENTS = 9
    REVEAL = 10
    DISPUTED = 11


class Offer(NamedTuple):
    """The server's terms for one attempt at one round."""

    run: str
    round: int
    attempt: int  # number of the attempt, from 1; a round abandoned may be tried again
    length: int  # length of the masked vector, in ring elements
    ring_bits: int
    encoding: bytes  # FixedPoint.digest
    roster: bytes  # Roster.digest
    model: bytes  # SHA-256 of the params broadcast

    def encode(self) -> bytes:
        """Encode as bytes."""
        writer = _opened(Kind.OFFER, UNBOUND).text(self.run).number(self.round, 4).number(self.attempt, 4)
        writer.number(self.length, 8).number(self.ring_bits, 1)
        return writer.raw(self.encoding).raw(self.roster).raw(self.model).bytes()

    @staticmethod
    def decode(data: bytes) -> Offer:
        """Invert `encode`."""
        reader = _body(data, Kind.OFFER, UNBOUND)
        run, (round, attempt, length, ring_bits) = reader.text(), map(reader.number, (4, 4, 8, 1))
        offer = Offer(run, round, attempt, length, ring_bits, *map(reader.take, (32, 32, 32)))
        reader.finish()
        return offer

    @property
    def digest(self) -> bytes:
        """Digest that adverts are bound to: SHA-256 of protocol, version and all terms."""
        return hashlib.sha256(b"umbel secagg offer" + self.encode()).digest()


class Advert(NamedTuple):
    """A client's fresh keys for one session."""

    node: int
    mask_key: bytes  # X25519 public key that pairwise masks come from
    share_key: bytes  # X25519 public key that shares are sealed to
    commitment: bytes  # SHA-256 commitment to the seed of the self-mask
    signature: bytes  # Ed25519, by the node's key in the roster

    def signed_bytes(self, offer: bytes) -> bytes:
        """Return the bytes that the signature covers. offer: the digest of the offer answered."""
        node = self.node.to_bytes(8, "little")
        return b"umbel secagg advert" + offer + node + self.mask_key + self.share_key + self.commitment

    def write(self, writer: Writer) -> None:
        """Append the advert to a message."""
        writer.number(self.node, 8).raw(self.mask_key).raw(self.share_key).raw(self.commitment).raw(self.signature)

    @staticmethod
    def read(reader: Reader) -> Advert:
        """Invert `write`."""
        return Advert(reader.number(8), *map(reader.take, (32, 32, 32, SIGNATURE_BYTES)))

    def encode(self, offer: bytes) -> bytes:
        """Encode as a message bound to an offer's digest."""
        writer = _opened(Kind.ADVERT, offer)
        self.write(writer)
        return writer.bytes()

    @staticmethod
    def decode(data: bytes, offer: bytes) -> Advert:
        """Invert `encode`."""
        reader = _body(data, Kind.ADVERT, offer)
        advert = Advert.read(reader)
        reader.finish()
        return advert


class Roll(NamedTuple):
    """Everyone who takes part, and the graph's numbers."""

    degree: int
    threshold: int
    adverts: tuple[Advert, ...]

    def encode(self, offer: bytes) -> bytes:
        """Encode as a message bound to an offer's digest."""
        writer = _opened(Kind.ROLL, offer).number(self.degree, 4).number(self.threshold, 4)
        _write_list(writer, self.adverts)
        return writer.bytes()

    @staticmethod
    @lru_cache(maxsize=4)  # everyone is sent the same one
    def decode(data: bytes, offer: bytes) -> Roll:
        """Invert `encode`."""
        reader = _body(data, Kind.ROLL, offer)
        degree, threshold = reader.number(4), reader.number(4)
        adverts = tuple(Advert.read(reader) for _ in range(reader.number(4)))
        _finish_list(reader, [advert.node for advert in adverts])
        return Roll(degree, threshold, adverts)


class Sealed(NamedTuple):
    """The three shares from one client for another, encrypted, and signed by the first."""

    node: int  # receiver in Shares, sender in a Delivery
    ciphertext: bytes
    dealing: bytes  # `dealing_of` all that the sender sealed, for whomever
    signature: bytes

    def write(self, writer: Writer) -> None:
        """Append the shares to a message."""
        writer.number(self.node, 8).raw(self.ciphertext).raw(self.dealing).raw(self.signature)

    @staticmethod
    def read(reader: Reader) -> Sealed:
        """Invert `write`."""
        return Sealed(reader.number(8), *map(reader.take, (SEALED_BYTES, 32, SIGNATURE_BYTES)))


class Consent(NamedTuple):
    """A client's signature on the list of survivors."""

    node: int
    signature: bytes

    def write(self, writer: Writer) -> None:
        """Append the signature to a message."""
        writer.number(self.node, 8).raw(self.signature)

    @staticmethod
    def read(reader: Reader) -> Consent:
        """Invert `write`."""
        return Consent(reader.number(8), reader.take(SIGNATURE_BYTES))


class Share(NamedTuple):
    """One revealed share: of the node's self-mask seed where it survived, else of its mask key.

    Of its own seed, which is revealed anyway, a survivor sends the whole in place of a share. In MASKED the value is a
    `dealing.point`.
    """

    node: int
    value: int

    def __repr__(self) -> str:
        return f"Share(node={self.node}, value=hidden)"

    def write(self, writer: Writer) -> None:
        """Append the share to a message."""
        writer.number(self.node, 8).raw(to_bytes(self.value))

    @staticmethod
    def read(reader: Reader) -> Share:
        """Invert `write`."""
        node, value = reader.number(8), from_bytes(reader.take(SHARE_BYTES))
        if value is None:
            raise MalformedMessage("malformed", f"the share of client {node}'s secret is no field element")
        return Share(node, value)


class Item(Protocol):
    """Entry of a list in a message."""

    @property
    def node(self) -> int: ...
    def write(self, writer: Writer) -> None: ...


class Pair(NamedTuple):
    """Stream seed of the mask that its sender shares with node, which dropped out."""

    node: int
    seed: bytes  # stream seed of the mask, 32 bytes

    def __repr__(self) -> str:
        return f"Pair(node={self.node}, seed=hidden)"

    def write(self, writer: Writer) -> None:
        """Append the seed to a message."""
        writer.number(self.node, 8).raw(self.seed)

    @staticmethod
    def read(reader: Reader) -> Pair:
        """Invert `write`."""
        return Pair(reader.number(8), reader.take(32))


LISTS: dict[Kind, type[Sealed] | type[Consent] | type[Share]] = {
    Kind.SHARES: Sealed,
    Kind.DELIVERY: Sealed,
    Kind.CONSENTS: Consent,
    Kind.REVEAL: Share,
}


def dealing_of(ciphertexts: Mapping[int, bytes]) -> bytes:
    """Hash all that one client sealed, by receiver."""
    hasher = hashlib.sha256(b"umbel secagg dealing")
    for receiver, ciphertext in sorted(ciphertexts.items()):
        hasher.update(receiver.to_bytes(8, "little") + ciphertext)
    return hasher.digest()


def encode_list(kind: Kind, session: bytes, items: Sequence[Item]) -> bytes:
    """Encode a message that is a list; its nodes must ascend."""
    writer = _opened(kind, session)
    _write_list(writer, items)
    return writer.bytes()


def decode_list(kind: Kind, data: bytes, session: bytes) -> list:
    """Invert `encode_list`: items of the class in LISTS, by ascending node."""
    reader = _body(data, kind, session)
    items = [LISTS[kind].read(reader) for _ in range(reader.number(4))]
    _finish_list(reader, [item.node for item in items])
    return items


def encode_reveal(session: bytes, shares: Sequence[Share], pairs: Sequence[Pair]) -> bytes:
    """Encode REVEAL: shares, and where clients dropped out the masks shared with them; both by ascending node."""
    writer = _opened(Kind.REVEAL, session)
    _write_list(writer, shares)
    if pairs:
        _write_list(writer, pairs)
    return writer.bytes()


def decode_reveal(data: bytes, session: bytes) -> tuple[list[Share], list[Pair]]:
    """Invert `encode_reveal`."""
    reader = _body(data, Kind.REVEAL, session)
    shares = [Share.read(reader) for _ in range(reader.number(4))]
    pairs = [] if reader.is_at_end else [Pair.read(reader) for _ in range(reader.number(4))]
    _finish_list(reader, [share.node for share in shares])
    _finish_list(reader, [pair.node for pair in pairs])
    return shares, pairs


def encode_bytes(kind: Kind, session: bytes, body: bytes | memoryview) -> bytes:
    """Encode SURVIVORS or CONSENT: a body whose length the session fixes."""
    return _opened(kind, session).raw(body).bytes()


def decode_bytes(kind: Kind, data: bytes, session: bytes, size: int) -> memoryview:
    """Invert `encode_bytes`; the body is not copied."""
    reader = _body(data, kind, session)
    body = reader.view(size)
    reader.finish()
    return body


def encode_masked(
    session: bytes, body: bytes | memoryview, points: Sequence[Share], disputed: Sequence[int] = ()
) -> bytes:
    """Encode MASKED: a masked vector, then what the client tells of each dealer's shares, by ascending dealer.

    Where the shares of some did not open it is DISPUTED, their names come last, and the vector is without their masks.
    """
    writer = _opened(Kind.DISPUTED if disputed else Kind.MASKED, session).raw(body)
    _write_list(writer, points)
    if disputed:
        writer.number(len(disputed), 4)
        for peer in disputed:
            writer.number(peer, 8)
    return writer.bytes()


def decode_masked(data: bytes, session: bytes, size: int) -> tuple[memoryview, list[Share], list[int]]:
    """Invert `encode_masked`; the vector's bytes are not copied."""
    kind = Kind.MASKED if peek(data)[0] is Kind.MASKED else Kind.DISPUTED
    reader = _body(data, kind, session)
    body = reader.view(size)
    points = [Share.read(reader) for _ in range(reader.number(4))]
    disputed = [] if kind is Kind.MASKED else [reader.number(8) for _ in range(reader.number(4))]
    _finish_list(reader, disputed)
    _finish_list(reader, [point.node for point in points])
    if kind is Kind.DISPUTED and not disputed:
        raise MalformedMessage("malformed", "a dispute with nobody")
    return body, points, disputed


def encode_survivors(session: bytes, flags: Sequence[bool]) -> bytes:
    """Encode SURVIVORS: one bit for each of the session's clients, in their order."""
    return encode_bytes(Kind.SURVIVORS, session, np.packbits(np.array(flags, bool), bitorder="little").tobytes())


def decode_survivors(data: bytes, session: bytes, clients: int) -> list[bool]:
    """Invert `encode_survivors`. Errors: MalformedMessage, too where bits that fill the last byte are set."""
    packed = np.frombuffer(decode_bytes(Kind.SURVIVORS, data, session, (clients + 7) // 8), np.uint8)
    flags = np.unpackbits(packed, bitorder="little").astype(bool)
    if flags[clients:].any():
        raise MalformedMessage("malformed", "a list of survivors names clients that do not exist")
    return flags[:clients].tolist()


def client_bytes(neighbours: int, masked_bytes: int) -> tuple[int, int, int]:
    """Count the bytes that a client sends in a session: before its masked vector, with it, and after it.

    The last number holds where all its neighbours shared their secrets.
    """
    sealed = Sealed(0, bytes(SEALED_BYTES), bytes(32), bytes(SIGNATURE_BYTES))
    advert = Advert(0, bytes(32), bytes(32), bytes(32), bytes(SIGNATURE_BYTES)).encode(UNBOUND)
    shares = encode_list(Kind.SHARES, UNBOUND, [sealed] * neighbours)
    consent = encode_bytes(Kind.CONSENT, UNBOUND, bytes(SIGNATURE_BYTES))
    reveal = encode_list(Kind.REVEAL, UNBOUND, [Share(0, 0)] * (neighbours + 1))
    masked = encode_masked(UNBOUND, b"", [Share(0, 0)] * (neighbours + 1))
    return len(advert) + len(shares), len(masked) + masked_bytes, len(consent) + len(reveal)


def peek(data: bytes) -> tuple[Kind, bytes]:
    """Read a message's kind and what it is bound to, from its header. Errors: MalformedMessage."""
    reader = Reader(data)
    magic, version, kind, zeros, bound = reader.take(4), *map(reader.number, (1, 1, 2)), reader.take(32)
    if magic != MAGIC or zeros or kind not in Kind.__members__.values():
        raise MalformedMessage("malformed", "not a message of secure aggregation: its first bytes are wrong")
    if version != VERSION:
        raise MalformedMessage("version", f"a message of protocol version {version}; this side speaks {VERSION}")
    return Kind(kind), bound


def _opened(kind: Kind, bound: bytes) -> Writer:
    """Return a writer with the header written."""
    return Writer().raw(MAGIC).number(VERSION, 1).number(kind, 1).number(0, 2).raw(bound)


def _body(data: bytes, kind: Kind, bound: bytes) -> Reader:
    """Return a reader behind the header, which must be this one."""
    found, found_bound = peek(data)
    if found is not kind:
        raise MalformedMessage("out_of_order", f"expected {kind.name}, got {found.name}")
    if found_bound != bound:
        raise MalformedMessage("other_session", f"a {kind.name} of another session")
    reader = Reader(data)
    reader.view(HEADER_BYTES)
    return reader


def _write_list(writer: Writer, items: Sequence[Item]) -> None:
    """Append the number of items, then each."""
    writer.number(len(items), 4)
    for item in items:
        item.write(writer)


def _finish_list(reader: Reader, nodes: list[int]) -> None:
    """Refuse bytes left over, and nodes that do not ascend."""
    reader.finish()
    if any(one >= other for one, other in itertools.pairwise(nodes)):
        raise MalformedMessage("malformed", "the clients named in a message are not distinct and ascending")
