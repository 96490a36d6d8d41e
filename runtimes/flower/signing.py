"""Messages that are signed, in both directions, whatever they are about: one layer around the mail and the ClientApp.

The server signs what it sends; a client does nothing that it did not sign. A client signs its reply, together with the
nonce of the message that it answers. Both signatures cover the content, the run, the round, the kind of message, the
client, the federation and the nonce, so that nothing signed counts for anything else, or twice. Flower itself signs a
node's clock alone. Where the federation asks for it, replies are sealed before they are signed: the SuperLink, and what
it keeps of them on its disk, then hold nothing that can be read.

The signature travels as one more record of the content, "signature"; a sealed content as one array, "sealed".
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from ...core import serial
from ...core.errors import ClientError, UmbelError
from .identity import PartyIdentity
from .link.grid import names_of
from .mail import Envelope, Mail
from .malformed import Malformed, reading
from .objects import Wait, array_record, raw_array

SIGNATURE, SEALED = "signature", "sealed"  # names of records
NONCE_BYTES = 16
SEALING_BYTES = 1 << 16  # bytes that sealing may add to an array, with all else that a reply says
SKEW_SECONDS = 300.0  # allowed difference between two clocks: as much as Flower's own signatures allow
MOST_REMEMBERED = 1 << 16  # the most nonces, of messages that have not expired, that a client remembers
KINDS = (ArrayRecord, MetricRecord, ConfigRecord)

App = Callable[[Message, Context], Message]


class Stamp(NamedTuple):
    """All that a signature is about, besides the content."""

    run: int  # Flower's number of the run
    kind: str  # kind of the message: "train", "evaluate", "query", …
    round: int  # number of the round; 0 for what belongs to none
    client: int
    nonce: bytes  # the message's nonce, which its reply repeats
    expires: int  # when the message expires: seconds since 1970

    def statement(self, label: bytes, federation: bytes, digest: bytes) -> bytes:
        """Return the bytes that are signed: each field has one place, or its length before it."""
        kind = self.kind.encode()
        numbers = struct.pack("<QQQQH", self.run, self.round, self.client, self.expires, len(kind))
        return b"umbel message 1 " + label + hashlib.sha256(federation).digest() + numbers + kind + self.nonce + digest


ORDER, REPLY = b"to a client ", b"to the server"


class SignedMail:
    """Mail of the server whose messages are signed, and whose replies are refused unless the client signed them.

    A node is known by the name that its key is registered under at the SuperLink; the roster says which client that is.
    A node that is in no roster is sent nothing.
    """

    def __init__(self, mail: Mail, identity: PartyIdentity, grid: Any, refused: Callable[[str], None]):
        self._mail, self._identity, self._grid, self._refused = mail, identity, grid, refused
        self._clients: dict[int, int | None] = {}  # {node: client}
        self._sent: dict[str, Stamp] = {}

    def client_of(self, node: int) -> int | None:
        """Return the client whose key a node has proved to hold; None for one that is not in the roster."""
        if node not in self._clients:
            names = names_of(self._grid)
            found = {one: self._identity.client_of(name) for one, name in names.items()}
            for one in sorted(found.keys() - self._clients.keys()):
                if found[one] is None:
                    self._refused(f"node {one} is left out: {names[one]!r} is not in the roster")
            self._clients |= found
        return self._clients.get(node)

    def push(self, messages: Sequence[Message]) -> list[str]:
        """Push messages as the mail itself does; each is signed for its client."""
        digests: dict[int, bytes] = {}  # digests of records that messages share
        known = [message for message in messages if self.client_of(message.metadata.dst_node_id) is not None]
        stamps = [self._sign(message, digests) for message in known]
        identifiers = dict(zip(map(id, known), self._mail.push(known), strict=True))
        for message, stamp in zip(known, stamps, strict=True):
            if identifiers[id(message)]:
                self._sent[identifiers[id(message)]] = stamp
        return [identifiers.get(id(message), "") for message in messages]

    def look(self, identifiers: Collection[str], seconds: float = 0.0) -> list[Envelope]:
        """Look for replies as the mail itself does; what is opened has passed."""
        return [self._checked(envelope) for envelope in self._mail.look(identifiers, seconds)]

    def refuse(self, identifiers: Collection[str]) -> list[str]:
        """Refuse replies as the mail itself does."""
        refused = self._mail.refuse(identifiers)
        for identifier in refused:
            self._sent.pop(identifier, None)
        return refused

    def was_cut(self) -> bool:
        """Return whether the mail itself was cut."""
        return self._mail.was_cut()

    def _sign(self, message: Message, digests: dict[int, bytes]) -> Stamp:
        about, content = message.metadata, message.content
        client = self.client_of(about.dst_node_id)
        assert client is not None
        expires = int(time.time() + about.ttl + SKEW_SECONDS)
        stamp = Stamp(about.run_id, about.message_type, round_of(content), client, os.urandom(NONCE_BYTES), expires)
        message.content = signed(content, ORDER, stamp, self._identity, digests)
        return stamp

    def _checked(self, envelope: Envelope) -> Envelope:
        stamp = self._sent.pop(envelope.reply_to, None)
        if envelope.error is not None:
            return envelope

        def open_it(max_bytes: int, wait: Wait) -> Message:
            reply = envelope.open(max_bytes + SEALING_BYTES * self._identity.seals, wait)
            if stamp is None:
                raise Malformed("replay", "it answers nothing that was sent, or was answered before")
            if reply.has_content():
                reply.content = opened(reply.content, REPLY, stamp, self._identity)
            return reply

        return envelope._replace(open=open_it)


class SignedApp:
    """A client's app that works for its server alone, and signs what it replies."""

    def __init__(self, app: App, identity: PartyIdentity):
        self._app, self._identity = app, identity
        self._seen: dict[bytes, int] = {}  # nonces, until they expire

    def __call__(self, message: Message, context: Context) -> Message:
        """Return the app's reply to a message.

        Errors: ClientError for a message that is not the server's, or not for now.
        """
        stamp, content = self._verified(message)
        message.content = content
        reply = self._app(message, context)
        if reply.has_content():
            reply.content = self._ready(reply.content, stamp)
        return reply

    def _verified(self, message: Message) -> tuple[Stamp, RecordDict]:
        """Return what the server signed for this client, to be done now, once. Errors: ClientError."""
        about, now = message.metadata, time.time()
        try:
            said, _ = _stamp(message.content)
            expected = said._replace(run=about.run_id, kind=about.message_type, client=_number(self._identity))
            content = opened(message.content, ORDER, expected, self._identity)
        except Malformed as malformed:
            raise ClientError(f"the message is refused: {malformed}") from malformed
        if now >= said.expires:
            raise ClientError("the message is refused: it has expired; set this host's clock, or the server's")
        self._seen = {nonce: until for nonce, until in self._seen.items() if until > now}
        if said.nonce in self._seen or len(self._seen) >= MOST_REMEMBERED:
            raise ClientError("the message is refused: it came before")
        self._seen[said.nonce] = said.expires
        return expected, content

    def _ready(self, content: RecordDict, stamp: Stamp) -> RecordDict:
        if self._identity.seals:
            body = serial.dumps({name: _plain(content[name]) for name in sorted(content)})
            sealed = self._identity.seal(body, str(stamp.run), stamp.round, stamp.nonce.hex())
            array = raw_array("uint8", (len(sealed),), SEALED, memoryview(sealed))
            content = RecordDict({SEALED: array_record({SEALED: array})})
        return signed(content, REPLY, stamp, self._identity)


def signed(
    content: RecordDict, label: bytes, stamp: Stamp, identity: PartyIdentity, digests: dict[int, bytes] | None = None
) -> RecordDict:
    """Return the content, not copied, and the record of its signature.

    digests: known digests of records, {id: digest}.
    """
    records = {name: record for name, record in content.items() if name != SIGNATURE}
    with reading("what is to be signed"):
        digest = digest_of(records, {} if digests is None else digests)
    statement = stamp.statement(label, identity.federation, digest)
    about: dict[str, Any] = {
        "client": stamp.client,
        "round": stamp.round,
        "nonce": stamp.nonce,
        "expires": stamp.expires,
    }
    return RecordDict({**records, SIGNATURE: ConfigRecord({**about, "signature": identity.sign(statement)})})


def opened(content: RecordDict, label: bytes, expected: Stamp, identity: PartyIdentity) -> RecordDict:
    """Return what was signed, without its signature, if it is what was expected.

    Errors: Malformed: "signature", for none, for another signer's, and for another client; "round" and "replay", for
    what was signed for another round or message; "sealed", for what does not open.
    """
    with reading("a signed message"):
        return _opened(content, label, expected, identity)


def _opened(content: RecordDict, label: bytes, expected: Stamp, identity: PartyIdentity) -> RecordDict:
    """Same as `opened`, where anything may be raised."""
    said, signature = _stamp(content)
    if said.client != expected.client:
        raise Malformed("signature", f"signed for client {said.client}, expected client {expected.client}")
    if said.round != expected.round:
        raise Malformed("round", f"signed for round {said.round}, expected round {expected.round}")
    if said.nonce != expected.nonce:
        raise Malformed("replay", "signed for another message than the one that it answers")
    records = {name: record for name, record in content.items() if name != SIGNATURE}
    signer = None if label == ORDER else expected.client
    statement = expected.statement(label, identity.federation, digest_of(records, {}))
    if (objection := identity.objection(signer, statement, signature)) is not None:
        raise Malformed("signature", objection)
    return _unsealed(records, expected, identity) if label == REPLY and identity.seals else RecordDict(records)


def digest_of(records: Mapping[str, Any], digests: dict[int, bytes]) -> bytes:
    """Hash named records (SHA-256): the name and the own digest of each, by name."""
    total = hashlib.sha256()
    for name in sorted(records):
        record = records[name]
        if id(record) not in digests:
            own = hashlib.sha256()
            for part in serial.parts(_plain(record)):
                own.update(part)
            digests[id(record)] = own.digest()
        total.update(hashlib.sha256(name.encode()).digest() + digests[id(record)])
    return total.digest()


def round_of(content: RecordDict) -> int:
    """Return the round that a message is for; 0 for what belongs to none."""
    for record in content.values():
        found = record.get("round") if isinstance(record, ConfigRecord) else None
        if type(found) is int and found >= 0:
            return found
    return 0


def _stamp(content: RecordDict) -> tuple[Stamp, bytes]:
    """Return what a content says that its signature is about, all but run and kind; and the signature.

    Errors: Malformed.
    """
    record = content.get(SIGNATURE)
    if not isinstance(record, ConfigRecord):
        raise Malformed("signature", "it is not signed")
    said: dict[str, Any] = dict(record)
    kinds = {"client": int, "round": int, "expires": int, "nonce": bytes, "signature": bytes}
    if {name: type(value) for name, value in said.items()} != kinds:
        raise Malformed("signature", "its signature does not have the form of this version of Umbel")
    if len(said["nonce"]) != NONCE_BYTES or not all(0 <= said[name] < 1 << 63 for name in kinds if kinds[name] is int):
        raise Malformed("signature", "its signature has values out of bounds")
    return Stamp(0, "", said["round"], said["client"], said["nonce"], said["expires"]), said["signature"]


def _number(identity: PartyIdentity) -> int:
    if identity.number is None:
        raise ClientError("this kit is the server's; a client needs its own")
    return identity.number


def _unsealed(records: Mapping[str, Any], expected: Stamp, identity: PartyIdentity) -> RecordDict:
    record = records.get(SEALED)
    if set(records) != {SEALED} or not isinstance(record, ArrayRecord) or set(record) != {SEALED}:
        raise Malformed("sealed", "it is not sealed, and this federation seals what clients send")
    try:
        run, challenge = str(expected.run), expected.nonce.hex()
        body = identity.unseal(record[SEALED].data, expected.client, run, expected.round, challenge)
        tree = serial.loads(body)
        return RecordDict({str(name): _record(*part) for name, part in tree.items()})
    except (UmbelError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Malformed("sealed", f"what was sealed does not open: {error}") from error


def _plain(record: Any) -> tuple[str, dict[str, Any]]:
    """Return a record as what `serial` writes: its kind, and its values by name, in order."""
    kind = next((kind for kind in KINDS if isinstance(record, kind)), None)
    if kind is None:
        raise Malformed("schema", f"expected records of arrays, metrics or settings, got {type(record).__name__}")
    return kind.__name__, {name: _plain_value(record[name]) for name in sorted(record)}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Array):
        return value.dtype, tuple(value.shape), value.stype, np.frombuffer(value.data, np.uint8)
    return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value


def _record(kind: str, values: Mapping[str, Any]) -> Any:
    """Invert `_plain`. Errors: ValueError and others for what is none."""
    if kind == "ArrayRecord":
        arrays = {
            name: raw_array(dtype, shape, stype, body.data) for name, (dtype, shape, stype, body) in values.items()
        }
        return array_record(arrays)
    known = {"MetricRecord": MetricRecord, "ConfigRecord": ConfigRecord}
    return known[kind]({name: bytes(one) if isinstance(one, np.ndarray) else one for name, one in values.items()})
