"""Envelopes: an update sealed to a recipient's key and signed by its sender.

    header ‖ signature (64) ‖ content key under HPKE (80; post-quantum 1,168) ‖ the body in frames (16 bytes per MiB)

HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM; or the X25519 and ML-KEM-768 hybrid) seals a fresh content key to the
recipient with the header as its info; `frames` seal the body under it. HPKE's base mode authenticates nobody, so the
sender signs (Ed25519) the header, the sealed key and the tag of every frame. Without the content key nobody can find
another body with those tags, so the signature covers the body, and a stolen one fits no other run, round or node. It
costs 40 µs, not the 12 ms that Ed25519 takes to hash 6.6 MB. The recipient could itself make another body with these
tags: an envelope proves its sender to its recipient, and to nobody else.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke

from ...core.errors import UmbelError
from ...core.validation import require, require_count
from . import frames
from .errors import MalformedMessage, Misbehaviour
from .files import HYBRID, X25519, KeyFile, PublicKey
from .frames import FRAME_BYTES, KEY_BYTES, TAG_BYTES, Buffer, SealBroken
from .roster import SIGNATURE_BYTES, Roster, is_signed
from .wire import Reader, Writer

LABEL = b"umbel envelope 1"
NONCE_BYTES = 16
MAX_BODY_BYTES = 1 << 40
SUITES = (X25519, HYBRID)  # the header has the number of a suite, its place here
_HPKE = {
    name: hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    for name, kem in ((X25519, hpke.KEM.X25519), (HYBRID, hpke.KEM.MLKEM768_X25519))
}
# The encapsulated secret, then the content key and its tag.
_SEALED_KEY_BYTES = {X25519: 32 + KEY_BYTES + TAG_BYTES, HYBRID: 1120 + KEY_BYTES + TAG_BYTES}


class EnvelopeRefused(UmbelError):
    """An envelope that is not accepted. `reason` is a short code; `node` the sender it names, where that was read."""

    def __init__(self, reason: str, message: str, node: int | None = None):
        self.reason, self.node = reason, node
        super().__init__(message)


class Binding(NamedTuple):
    """Purpose of an envelope; it opens for nothing else."""

    run: str  # name of the run, at most 255 bytes of UTF-8
    round: int
    node: int  # number of the sender in the roster
    # Text that the recipient chose for this attempt at the round, if any, at most 255 bytes: with it, envelopes of an
    # attempt before a restart, which no guard remembers, are refused.
    challenge: str = ""


class _Header(NamedTuple):
    suite: int
    binding: Binding
    nonce: bytes
    expires: int
    recipient: bytes  # SHA-256 of the recipient's public key
    size: int  # length of the body in bytes

    def encode(self) -> bytes:
        run, round, node, challenge = self.binding
        writer = Writer().raw(LABEL).number(self.suite, 1).text(run).number(round, 8).number(node, 8).text(challenge)
        return writer.raw(self.nonce).number(self.expires, 8).raw(self.recipient).number(self.size, 8).bytes()

    @staticmethod
    def read(reader: Reader) -> _Header:
        if reader.take(len(LABEL)) != LABEL:
            raise MalformedMessage("malformed", "not an envelope of this version of Umbel")
        suite = reader.number(1)
        if suite >= len(SUITES):
            raise MalformedMessage("malformed", f"an envelope of suite {suite}, of which this Umbel knows nothing")
        binding = Binding(reader.text(), reader.number(8), reader.number(8), reader.text())
        return _Header(suite, binding, reader.take(NONCE_BYTES), reader.number(8), reader.take(32), reader.number(8))


@dataclass
class ReplayGuard:
    """Remembers the envelopes that were opened, until they expire: each opens once.

    `most` bounds those remembered of one node, and so the memory: a node that sends more within their lifetime is
    refused. It is for one thread, and for one process: a new one remembers nothing, see `Binding.challenge`.
    """

    most: int = 64
    _seen: dict[int, dict[bytes, int]] = field(default_factory=dict, repr=False)

    def check(self, node: int, nonce: bytes, now: float) -> None:
        """Raise EnvelopeRefused for a nonce that is remembered, and for one too many."""
        seen = {known: until for known, until in self._seen.get(node, {}).items() if until > now}
        self._seen[node] = seen
        if nonce in seen:
            raise EnvelopeRefused("replayed", f"node {node} sent an envelope that was opened before", node)
        if len(seen) >= self.most:
            raise EnvelopeRefused("too_many", f"node {node} sent more than {self.most} envelopes at a time", node)

    def remember(self, node: int, nonce: bytes, expires: int) -> None:
        """Refuse this nonce from now on."""
        self._seen.setdefault(node, {})[nonce] = expires


def seal(
    body: Buffer, recipient: PublicKey, sender: KeyFile, binding: Binding, *, lifetime_seconds: int = 3600
) -> memoryview:
    """Seal the body in an envelope, for the holder of the recipient's private key and this run, round and node alone.

    body: contiguous bytes of any size. Errors: ConfigError for a sender's key that is of another kind or has expired,
    for a recipient's key that cannot be sealed to, and for a binding out of bounds.
    """
    signer, now = sender.check("node").signing, int(time.time())
    key, view, target = frames.fresh_key(), frames.flat(body), recipient.sealing
    _check_binding(binding, lifetime_seconds)
    suite = SUITES.index(recipient.algorithm)
    nonce, fingerprint = os.urandom(NONCE_BYTES), hashlib.sha256(recipient.raw).digest()
    header = _Header(suite, binding, nonce, now + lifetime_seconds, fingerprint, len(view)).encode()
    sealed_key = _HPKE[recipient.algorithm].encrypt(key, target, info=header)
    start = len(header) + SIGNATURE_BYTES + len(sealed_key)
    envelope = frames.new_buffer(start + frames.sealed_size(len(view)))
    frames.seal_into(key, view, envelope[start:], LABEL)
    envelope[: len(header)] = header
    envelope[start - len(sealed_key) : start] = sealed_key
    envelope[len(header) : len(header) + SIGNATURE_BYTES] = signer.sign(_signed(header, sealed_key, envelope[start:]))
    return envelope.toreadonly()


def unseal(
    envelope: Buffer,
    expected: Binding,
    recipient: KeyFile,
    roster: Roster,
    guard: ReplayGuard,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    now: float | None = None,
) -> memoryview:
    """Open the envelope of the node that is expected, a member of the roster, once; return its body.

    Nothing is decrypted before the signature has been verified, and an envelope is remembered only once it was opened.
    Errors: EnvelopeRefused (malformed, too_large, wrong_run, wrong_round, wrong_node, wrong_challenge, wrong_recipient,
    not_in_roster, expired, bad_signature, replayed, too_many, does_not_open); ConfigError for a recipient's key that is
    of another kind or has expired.
    """
    recipient.check("recipient", now)
    moment, public = time.time() if now is None else now, recipient.public
    view = frames.flat(envelope)
    header, signature, sealed_key, body = _parts(view, expected, public, max_body_bytes)
    node = header.binding.node
    try:
        member = roster.member(node, int(moment))
    except Misbehaviour as error:
        raise EnvelopeRefused(error.reason, str(error), node) from None
    encoded = bytes(view[: len(view) - len(body) - len(sealed_key) - SIGNATURE_BYTES])
    if not is_signed(member.key, signature, _signed(encoded, sealed_key, body)):
        raise EnvelopeRefused("bad_signature", f"node {node} did not sign the envelope that bears its number", node)
    if moment >= header.expires:
        raise EnvelopeRefused("expired", f"node {node} sent an envelope that has expired; check both clocks", node)
    guard.check(node, header.nonce, moment)
    try:
        key = _HPKE[public.algorithm].decrypt(sealed_key, recipient.opening, info=encoded)
        content = frames.unseal(key, body, LABEL)
    except (InvalidTag, SealBroken):
        raise EnvelopeRefused("does_not_open", f"the envelope of node {node} does not open", node) from None
    # Only now: a body damaged on its way has the right signature, and the whole one, sent again, must open.
    guard.remember(node, header.nonce, header.expires)
    return content


def _parts(
    envelope: memoryview, expected: Binding, recipient: PublicKey, max_body_bytes: int
) -> tuple[_Header, bytes, bytes, memoryview]:
    """Return an envelope's header, signature, sealed key and body. Errors: EnvelopeRefused for what is not expected."""
    reader = Reader(envelope)
    try:
        header = _Header.read(reader)
        _check_header(header, expected, recipient, max_body_bytes)
        signature, sealed_key = reader.take(SIGNATURE_BYTES), reader.take(_SEALED_KEY_BYTES[recipient.algorithm])
        body = reader.view(frames.sealed_size(header.size))
        reader.finish()
    except MalformedMessage as error:
        raise EnvelopeRefused("malformed", str(error)) from None
    return header, signature, sealed_key, body


def _check_binding(binding: Binding, lifetime_seconds: int) -> None:
    require_count("lifetime_seconds", lifetime_seconds)
    for name, value in (("round", binding.round), ("node", binding.node)):
        require_count(name, value, at_least=0)
        require(value < 1 << 64, f"expected {name}={value} < 2⁶⁴")
    for name, text in (("run", binding.run), ("challenge", binding.challenge)):
        size = len(text.encode())
        require(size <= 255, f"expected {name} of at most 255 bytes, got {size}")


def _check_header(header: _Header, expected: Binding, recipient: PublicKey, max_body_bytes: int) -> None:
    """Refuse an envelope for anything else, before work is spent on it."""
    node = header.binding.node
    for name, value, wanted in zip(Binding._fields, header.binding, expected, strict=True):
        if value != wanted:
            said = f"{value!r}, not {wanted!r}" if name != "challenge" else "another attempt at the round"
            raise EnvelopeRefused(f"wrong_{name}", f"the envelope of node {node} is for {name} {said}", node)
    if header.size > max_body_bytes:
        raise EnvelopeRefused("too_large", f"node {node} sent {header.size:,} bytes; at most {max_body_bytes:,}", node)
    is_same = header.recipient == hashlib.sha256(recipient.raw).digest()
    if not is_same or SUITES[header.suite] != recipient.algorithm:
        raise EnvelopeRefused("wrong_recipient", f"the envelope of node {node} is sealed to another key", node)


def _signed(header: bytes, sealed_key: bytes, body: memoryview) -> bytes:
    """Return the bytes that the sender signs. The header begins with a label of its own and is read in one way only."""
    frame = FRAME_BYTES + TAG_BYTES
    tags = [bytes(body[: start + frame][-TAG_BYTES:]) for start in range(0, len(body), frame)]
    return b"".join([header, sealed_key, *tags])
