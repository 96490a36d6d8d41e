"""Signed messages: what was signed passes unchanged, sealed or not; what else was done to it is refused, by name."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from umbel import ClientError
from umbel.core.types import ClientUpdate, Weighted
from umbel.deploy import kits
from umbel.privacy.keys.identities import Identity
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.mail import Envelope
from umbel.runtimes.flower.objects import wait_until
from umbel.runtimes.flower.signing import SignedApp, SignedMail, digest_of
from umbel.runtimes.flower.wire import Malformed

CLIENTS = ("north", "south")
UPDATE = ClientUpdate(np.array([0.1, -0.0, 3e38], np.float32), np.zeros(0, np.float32), 5.0, {"loss": Weighted(0.3, 5)})


class Party(SimpleNamespace):
    """A federation's identities: server, clients by number."""


def federation(folder, seal=False):
    kits.make(folder, "127.0.0.1", None, CLIENTS, seal=seal)
    clients = [Identity.load(folder / "clients" / name) for name in CLIENTS]
    return Party(server=Identity.load(folder / "server"), clients=clients)


@pytest.fixture(scope="module", params=[False, True], ids=["signed", "sealed"])
def party(request, tmp_path_factory):
    return federation(tmp_path_factory.mktemp("kits") / "fed", request.param)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """The same names and numbers, other keys."""
    return federation(tmp_path_factory.mktemp("kits") / "fed")


class Link:
    """Mail to nodes 10 and 11, north's and south's by their keys, and 12 that is in no roster. No client answers by
    itself: `answer` makes it, and may change what it is sent and what it says."""

    def __init__(self, party, names=("north", "south", "west")):
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 7
        self.names, self.refused, self.replies, self.messages = names, [], {}, {}
        self.apps = [SignedApp(self.work, identity) for identity in party.clients]
        self.mail = SignedMail(self, party.server, self, self.refused.append)

    def get_nodes(self):
        return [SimpleNamespace(node_id=10 + place, name=name) for place, name in enumerate(self.names)]

    def push(self, messages):
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(len(self.messages))
            self.messages[str(len(self.messages))] = message
        return [message.metadata.message_id for message in messages]

    def look(self, identifiers, seconds=0.0):
        found = [(one, self.replies.pop(one)) for one in identifiers if one in self.replies]
        return [Envelope(one, None, lambda most, wait, reply=reply: reply) for one, reply in found]

    def was_cut(self):
        return False

    def work(self, message, context):
        """What a client does: it says how it understood the message, and sends an update."""
        self.understood = dict(message.content)
        return Message(wire.pack_update(message.content["order"]["round"], UPDATE), reply_to=message)

    def send(self, round=3, node=10):
        (identifier,) = self.mail.push([Message(order(round), node, "train", ttl=60.0)])
        return identifier

    def answer(self, identifier, client=0, sent=lambda content: content, said=lambda content: content):
        message = self.messages[identifier]
        message.content = sent(RecordDict(dict(message.content)))
        reply = self.apps[client](message, Context(7, 10, {}, RecordDict(), {}))
        reply.content = said(reply.content)
        self.replies[identifier] = reply
        return reply.content

    def receive(self, identifier):
        (envelope,) = self.mail.look([identifier])
        return envelope.open(1 << 20, wait_until(time.monotonic() + 1))


def order(round):
    about = ConfigRecord({"round": round, "key": b"\x00\xff", "rate": 0.1, "names": ["a", "b"], "is": True, "no": b""})
    return RecordDict({"order": about, "metrics": MetricRecord({"loss": [0.5, 2.0], "n": 3})})


def plain(content):
    """A content's values, by record and name."""
    return {name: {key: content[name][key] for key in content[name]} for name in content}


def test_what_was_signed_arrives_as_it_was(party):
    link = Link(party)
    identifiers = [link.send(round, node) for round, node in ((1, 10), (1, 11), (2, 10))]
    for identifier, client, round in zip(identifiers, (0, 1, 0), (1, 1, 2), strict=True):
        link.answer(identifier, client)
        assert plain(link.understood) == plain(order(round))
        reply = wire.unpack_update(link.receive(identifier).content)
        assert (reply.round, reply.update.weight, reply.update.metrics) == (round, UPDATE.weight, UPDATE.metrics)
        assert reply.update.delta.tobytes() == UPDATE.delta.tobytes()
    assert link.refused == ["node 12 is left out: 'west' is not in the roster"]


def test_what_is_sealed_cannot_be_read_on_its_way(party):
    link = Link(party)
    content = link.answer(link.send())
    seen = b"".join(bytes(array.data) for array in content[next(iter(content))].values())
    assert (UPDATE.delta.tobytes() in seen) is not party.server.seals
    assert set(content) == (
        {"sealed", "signature"} if party.server.seals else {"vectors", "update", "metrics", "signature"}
    )


def test_a_node_in_no_roster_is_sent_nothing(party):
    link = Link(party)
    assert link.send(node=12) == ""
    assert not link.messages


def change(record, name, value):
    def changed(content):
        content[record][name] = value
        return content

    return changed


def drop(name):
    return lambda content: RecordDict({key: record for key, record in content.items() if key != name})


def bit(content):
    """One bit of the first array's bytes."""
    record = next(iter(content.values()))
    name = next(iter(record))
    body = bytearray(record[name].data)
    body[len(body) // 2] ^= 1
    array = record[name]
    array.__dict__["data"] = bytes(body)
    record[name] = array
    return content


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (bit, "signature"),
        (lambda content: {**content, "more": ConfigRecord({"a": 1})}, "signature"),
        (drop("signature"), "signature"),
        (change("signature", "signature", bytes(64)), "signature"),
        (change("signature", "client", 1), "signature"),
        (change("signature", "client", -1), "signature"),
        (change("signature", "nonce", bytes(16)), "replay"),
        (change("signature", "nonce", b"short"), "signature"),
        (change("signature", "round", 4), "round"),
        (change("signature", "expires", 4), None),  # the server knows better
    ],
)
def test_a_reply_that_was_changed_is_refused(party, said, reason):
    link = Link(party)
    identifier = link.send()
    link.answer(identifier, said=lambda content: RecordDict(dict(said(content))))
    if reason is None:
        assert link.receive(identifier).has_content()
        return
    with pytest.raises(Malformed) as refused:
        link.receive(identifier)
    assert refused.value.reason == reason


def test_a_reply_counts_once_for_its_own_message_and_client(party, stranger):
    link = Link(party)
    first, again, later, other = link.send(3), link.send(3), link.send(4), link.send(3, node=11)
    genuine = link.answer(first)
    for identifier, reason in ((again, "replay"), (later, "round"), (other, "signature")):
        link.replies[identifier] = Message(RecordDict(dict(genuine)), reply_to=link.messages[identifier])
        with pytest.raises(Malformed) as refused:
            link.receive(identifier)
        assert refused.value.reason == reason
    assert link.receive(first).has_content()
    # South answers north's message with its own key; a stranger with a key that he has from another federation.
    for key in (party.clients[1].key, stranger.clients[0].key):
        forger = dataclasses.replace(party.clients[0], key=key)
        link.apps[0] = SignedApp(link.work, forger)
        identifier = link.send(5)
        link.answer(identifier)
        with pytest.raises(Malformed, match="it was not signed as it is") as refused:
            link.receive(identifier)
        assert refused.value.reason == "signature"


@pytest.mark.parametrize("party", [True], ids=["sealed"], indirect=True)
def test_what_has_to_be_sealed_is_not_taken_in_the_clear(party):
    link, in_clear = Link(party), party.clients[0]
    unsealed = SimpleNamespace(seals=False, number=0, federation=in_clear.federation, sign=in_clear.sign)
    unsealed.objection = in_clear.objection
    link.apps[0] = SignedApp(link.work, unsealed)
    link.answer(identifier := link.send())
    with pytest.raises(Malformed, match="it is not sealed") as refused:
        link.receive(identifier)
    assert refused.value.reason == "sealed"


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (change("order", "rate", 0.2), "not signed by this federation's server"),
        (change("metrics", "n", 4), "not signed by this federation's server"),
        (drop("metrics"), "not signed by this federation's server"),
        (drop("signature"), "it is not signed"),
        (change("signature", "round", 4), "not signed by this federation's server"),
        (change("signature", "expires", 1 << 40), "not signed by this federation's server"),
        (change("signature", "client", 1), "signed for client 1, expected client 0"),
    ],
)
def test_a_client_does_only_what_its_server_signed(party, sent, complaint):
    link = Link(party)
    with pytest.raises(ClientError, match=complaint):
        link.answer(link.send(), sent=sent)
    assert not hasattr(link, "understood")


def test_a_client_does_nothing_twice_nor_too_late_nor_for_another(party, stranger, monkeypatch):
    link = Link(party)
    link.answer(first := link.send())
    signed_for_north = RecordDict(dict(link.messages[first].content))
    with pytest.raises(ClientError, match="it is not signed"):  # the app took the record off
        link.answer(first)
    identifier = link.send()
    kept = RecordDict(dict(link.messages[identifier].content))
    link.answer(identifier)
    with pytest.raises(ClientError, match="it came before"):
        link.answer(identifier, sent=lambda content: kept)
    with pytest.raises(ClientError, match="signed for client 0, expected client 1"):
        link.answer(link.send(node=10), client=1)
    link.apps[0] = SignedApp(link.work, stranger.clients[0])
    with pytest.raises(ClientError, match="not signed by this federation's server"):
        link.answer(link.send())
    link, now = Link(party), time.time()
    identifier = link.send()
    monkeypatch.setattr("umbel.runtimes.flower.signing.time", SimpleNamespace(time=lambda: now + 60 + 301))
    with pytest.raises(ClientError, match="it has expired; set this host's clock"):
        link.answer(identifier)
    assert signed_for_north is not kept


def test_an_error_of_flowers_is_passed_on_for_what_it_is(party):
    """Nobody signs it; it can only say that there is no reply."""
    link = Link(party)
    identifier = link.send()
    reply = Message(Error(8, "died"), reply_to=link.messages[identifier])
    link.replies[identifier] = reply
    link.look = lambda identifiers, seconds: [Envelope(identifier, reply.error, lambda most, wait: reply)]
    (envelope,) = link.mail.look([identifier])
    assert envelope.open(0, wait_until(0.0)).error.code == 8


def test_every_value_has_a_digest_of_its_own():
    """What differs in kind, place or name differs in its digest; what arrives in another order does not."""
    contents = [
        {"a": ConfigRecord({"x": 1, "y": 2})},
        {"a": ConfigRecord({"x": 1.0, "y": 2})},
        {"a": ConfigRecord({"x": True, "y": 2})},
        {"a": ConfigRecord({"x": "1", "y": 2})},
        {"a": ConfigRecord({"x": b"1", "y": 2})},
        {"a": ConfigRecord({"x": 2, "y": 1})},
        {"a": ConfigRecord({"x": [1, 2]})},
        {"a": MetricRecord({"x": 1, "y": 2})},
        {"b": ConfigRecord({"x": 1, "y": 2})},
        {"a": ConfigRecord({"x": 1}), "b": ConfigRecord({"y": 2})},
        {"a": ConfigRecord({"x": 0.0})},
        {"a": ConfigRecord({"x": -0.0})},
        {},
    ]
    assert len({digest_of(content, {}) for content in contents}) == len(contents)
    one = {"a": ConfigRecord({"x": 1, "y": 2}), "b": ConfigRecord({"z": b""})}
    other = {"b": ConfigRecord({"z": b""}), "a": ConfigRecord({"y": 2, "x": 1})}
    assert digest_of(one, {}) == digest_of(other, {})
