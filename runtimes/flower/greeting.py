"""The first words of both ends of a channel of steps: each then knows the other, and nobody between them reads on.

    server, in its signed message    session, a key of this session's
    client, once it is connected     attempt, a key of this connection's, its signature over all of it
    both                             AES-256-GCM under keys that only these two can derive; a number for every message

In a federation without kits nobody signs anything, and steps travel as they are.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...core.serial import dumps
from .identity import PartyIdentity
from .malformed import Malformed
from .steps import SLACK_BYTES, Channel, read_tree

KEY_BYTES, TAG_BYTES = 32, 16
NAME_LENGTH = 32  # characters of the names of sessions and attempts


class Invitation(NamedTuple):
    """The part of the server's message that is about a session."""

    session: str
    key: bytes  # the session's public key; empty in a federation that signs nothing


class SealedChannel(Channel):
    """A channel whose messages are encrypted, each under its number."""

    def __init__(self, channel: Channel, sends: bytes, receives: bytes):
        self._channel, self._sends, self._receives = channel, AESGCM(sends), AESGCM(receives)
        self._sent = self._received = 0

    def send(self, message: bytes) -> None:
        """Send a message."""
        self._sent += 1
        self._channel.send(self._sends.encrypt(struct.pack("<IQ", 0, self._sent), message, None))

    def receive(self, most: int) -> bytes:
        """Wait for a message. Errors: Malformed for one that is not the other end's next."""
        self._received += 1
        sealed = self._channel.receive(most + TAG_BYTES)
        try:
            return self._receives.decrypt(struct.pack("<IQ", 0, self._received), sealed, None)
        except (InvalidTag, ValueError) as error:
            raise Malformed("sealed", "a step was changed on its way, or is another's") from error

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection."""
        self._channel.close(code, reason)


def greet(channel: Channel, invitation: Invitation, attempt: str, identity: PartyIdentity | None) -> Channel:
    """Begin as the client; return the channel that steps go over. Errors: Malformed, and the channel's."""
    if identity is None:
        channel.send(dumps((attempt,)))
        return channel
    own = X25519PrivateKey.generate()
    public = own.public_key().public_bytes_raw()
    said = statement(identity, invitation, attempt, public)
    channel.send(dumps((attempt, _array(public), _array(identity.sign(said)))))
    up, down = keys(own, invitation.key, said)
    return SealedChannel(channel, up, down)


def greeted(
    channel: Channel, session: str, own: X25519PrivateKey, client: int, identity: PartyIdentity | None
) -> tuple[str, Channel]:
    """Begin as the server; return the client's attempt, and the channel that steps come over.

    own: the session's key. Errors: Malformed for anybody else than the client, and the channel's.
    """
    match read_tree(channel.receive(SLACK_BYTES)):
        case (str(attempt),) if identity is None and len(attempt) == NAME_LENGTH:
            return attempt, channel
        case (str(attempt), np.ndarray() as key, np.ndarray() as signature) if (
            identity is not None and len(attempt) == NAME_LENGTH and key.dtype == signature.dtype == np.uint8
        ):
            public = key.tobytes()
            said = statement(identity, invitation_of(session, own, identity), attempt, public)
            objection = identity.objection(client, said, signature.tobytes())
            if objection is not None:
                raise Malformed("signature", objection)
            up, down = keys(own, public, said)
            return attempt, SealedChannel(channel, down, up)
    raise Malformed("signature", "expected the first word of a client's steps")


def invitation_of(session: str, own: X25519PrivateKey, identity: PartyIdentity | None) -> Invitation:
    """Return what a message says of a session."""
    return Invitation(session, b"" if identity is None else own.public_key().public_bytes_raw())


def statement(identity: PartyIdentity, invitation: Invitation, attempt: str, public: bytes) -> bytes:
    """Return the bytes that the client signs: every part has one length."""
    federation = hashlib.sha256(identity.federation).digest()
    return b"umbel steps 1 " + federation + invitation.session.encode() + attempt.encode() + invitation.key + public


def keys(own: X25519PrivateKey, other: bytes, said: bytes) -> tuple[bytes, bytes]:
    """Derive the keys of messages to the server and to the client. Errors: Malformed for what is no key."""
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise Malformed("signature", "expected a key to begin with") from error
    both = HKDF(hashes.SHA256(), 2 * KEY_BYTES, None, said).derive(shared)
    return both[:KEY_BYTES], both[KEY_BYTES:]


def _array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
