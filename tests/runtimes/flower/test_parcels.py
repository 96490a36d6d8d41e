"""Messages that bring their objects with them: between processes of ours in one call each way, and not with others."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.object_store import NoObjectInStoreError
from google.protobuf.message import DecodeError

from superlinks import SERVER, SuperLink
from umbel.runtimes.flower import parcels
from umbel.runtimes.flower.compat import ANSWERS_PATH, PROTOBUF_MEDIA_TYPE, PUSH_PATH, TASK_TOKEN_HEADER
from umbel.runtimes.flower.link.superlink import layered
from umbel.runtimes.flower.mail import SuperLinkMail
from umbel.runtimes.flower.node.contexts import Contexts
from umbel.runtimes.flower.node.fleet import VERSION, FleetApi
from umbel.runtimes.flower.node.inbox import Mailbox
from umbel.runtimes.flower.node.outbox import Outbox
from umbel.runtimes.flower.node.presence import Presence
from umbel.runtimes.flower.node.proof import Proof
from umbel.runtimes.flower.node.service import Service
from umbel.runtimes.flower.objects import array_record, raw_array, wait_until
from umbel.runtimes.flower.parcels import HOLD, OBJECT, PARCEL_BYTES, carried, fitting, load, note, noted, object_ids

LIMIT_SECONDS = 30
SMALL, LARGE = 1000, 2_000_000  # numbers of float32: one chunk, and two


def ours(app):
    """The layers of a SuperLink of Umbel's."""
    return layered(app, None)


def content(size):
    numbers = np.arange(size, dtype=np.float32)
    return RecordDict({"vectors": array_record({"delta": packed(numbers)}), "order": ConfigRecord({"round": 3})})


def packed(numbers):
    return raw_array("float32", numbers.shape, "raw", numbers.data.cast("B"))


class Worker:
    """A node that is online, and answers with what it was sent."""

    def __init__(self, link):
        self._stop, self._key = threading.Event(), Proof(ec.generate_private_key(ec.SECP384R1()))
        link.register(self._key)
        self._calls = FleetApi(link.http(), self._key, None, self._stop)
        self.number = Presence(self._calls, self._key.public, None, vouched=True).come()

    def work(self, size, count):
        """Answer so many messages of that size."""
        seen = []

        def app(message, context):
            seen.append(bytes(message.content["vectors"]["delta"].data))
            if len(seen) == count:
                self._stop.set()
            return Message(content(size), reply_to=message)

        limit = threading.Timer(LIMIT_SECONDS, self._stop.set)
        limit.daemon = True
        limit.start()
        contexts = Contexts(self._calls, self.number, {"partition-id": 1, "num-partitions": 2})
        inbox, outbox = Mailbox(self._calls, self.number, self._stop), Outbox(self._calls, self.number)
        Service(self.number, inbox, outbox, contexts, app, self._stop).serve()
        limit.cancel()
        assert seen == [np.arange(size, dtype=np.float32).tobytes()] * count


def answered(link, size, count=2):
    """Let a node answer so many messages; return these, and the calls that it made for them."""
    node = Worker(link)
    sent = [RecordDict({**content(size), "number": ConfigRecord({"n": number})}) for number in range(count)]
    messages = [link.send(node.number, one) for one in sent]
    link.calls.clear()
    node.work(size, count)
    return messages, [name for name in link.calls if name not in ("get-run", "get-fab")]


def test_a_small_message_and_its_objects_travel_in_one_call_each_way():
    link = SuperLink(ours)
    messages, calls = answered(link, SMALL)
    assert calls == ["pull-messages", "push-messages"] * 2
    for message in messages:
        reply, stored = link.reply_to(message)
        assert (reply.has_error(), bool(stored)) == (False, True)
    with pytest.raises(NoObjectInStoreError):  # the next question said that it had come
        link.state.object_store.get_object_tree(messages[0])


def test_a_large_one_travels_in_pieces_and_its_heads_in_the_parcel():
    _, calls = answered(SuperLink(ours), LARGE, count=1)
    pieces = 2
    assert calls == [
        "pull-messages",
        *["pull-object"] * pieces,
        "confirm-message-received",
        "push-messages",
        *["push-object"] * pieces,
    ]


def test_a_superlink_of_flowers_own_is_asked_for_each_object_and_sent_each():
    link = SuperLink()
    (message,), calls = answered(link, SMALL, count=1)
    objects = 7  # a message, its records, three in number, an array and its piece, and the number
    assert calls == [
        "pull-messages",
        *["pull-object"] * objects,
        "confirm-message-received",
        "push-messages",
        *["push-object"] * (objects - 1),
    ]
    reply, stored = link.reply_to(message)
    assert (reply.has_error(), bool(stored)) == (False, True)


class Run:
    """The Runtime API of a SuperLink, as the client of a run's process."""

    def __init__(self, link):
        self.link, self.http = link, link.http()

    def PushMessages(self, request):
        return PushAppMessagesResponse.FromString(self._called(PUSH_PATH, request))

    def PullMessages(self, request):
        return PullAppMessagesResponse.FromString(self._called(ANSWERS_PATH, request))

    def _called(self, path, request):
        headers = {"content-type": PROTOBUF_MEDIA_TYPE, TASK_TOKEN_HEADER: self.link.token, **VERSION}
        reply = self.http.post(path, content=request.SerializeToString(deterministic=True), headers=headers)
        assert reply.status_code == 200, reply.text
        return reply.content

    @property
    def mail(self):
        about = {"node": Node(node_id=SERVER), "run": self.link.run, "outages": threading.Event()}
        return SuperLinkMail(SimpleNamespace(client=self, **about))


def test_a_run_sends_and_reads_in_one_call_each():
    """And the SuperLink keeps a reply until the run has read it, and says so with its next question."""
    link = SuperLink(ours)
    run, node = Run(link), Worker(link)
    link.calls.clear()
    (identifier,) = run.mail.push([link.message(content(SMALL), node.number)])
    assert link.calls == ["push-messages"]
    node.work(SMALL, 1)
    link.calls.clear()
    mail = run.mail
    (envelope,) = mail.look([identifier], 1.0)
    reply = envelope.open(4 * SMALL, wait_until(time.monotonic()))
    assert bytes(reply.content["vectors"]["delta"].data) == np.arange(SMALL, dtype=np.float32).tobytes()
    kept = link.state.object_store.get_object_tree(reply.object_id)
    assert kept.object_id == reply.object_id
    (another,) = mail.push([link.message(content(SMALL), node.number)])
    assert mail.look([another], 0.0) == []
    assert link.calls == ["pull-messages", "push-messages", "pull-messages"]
    with pytest.raises(NoObjectInStoreError):
        link.state.object_store.get_object_tree(reply.object_id)


def test_what_does_not_fit_a_parcel_stays_behind_the_smallest_go():
    sizes = {"a": 10, "b": PARCEL_BYTES, "c": 20, "d": PARCEL_BYTES - 30}
    assert fitting(sizes) == ["a", "c", "d"]


def test_heads_come_before_pieces_and_each_once():
    piece = ObjectTree(object_id="piece")
    arrays = [ObjectTree(object_id=name, children=[piece]) for name in ("a", "b")]
    tree = ObjectTree(object_id="message", children=[ObjectTree(object_id="record", children=arrays)])
    assert list(object_ids([tree, tree])) == ["message", "record", "a", "b", "piece"]


def test_a_field_of_ours_is_passed_over_by_who_does_not_know_it():
    """And is there for who does, beside whatever else a sender may put there."""
    request = PullMessagesRequest(node=Node(node_id=7))
    load(request, {"ab" * 32: b"content", "cd" * 32: b""})
    note(request, HOLD, b"2")
    request.MergeFromString(parcels.varint(OBJECT << 3) + b"\x05")  # a number, where an object is expected
    note(request, OBJECT, b"too short")
    back = PullMessagesRequest.FromString(request.SerializeToString(deterministic=True))
    assert (back.node.node_id, carried(back), noted(back, HOLD)) == (7, {"ab" * 32: b"content"}, [b"2"])
    with pytest.raises(DecodeError):
        PullMessagesResponse.FromString(b"\xff")
