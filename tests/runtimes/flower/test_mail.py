"""Replies read object by object, from a SuperLink that is a dictionary: bit for bit, and never more than agreed."""

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.task_identity import TaskIdentity

from umbel.core.types import ClientUpdate, Weighted
from umbel.runtimes.flower import wire
from umbel.runtimes.flower.mail import SuperLinkMail
from umbel.runtimes.flower.objects import wait_until

SIZE = 3_000_000  # of float32: three chunks


class Link:
    """A SuperLink's Runtime API that hands back what was pushed to it."""

    def __init__(self):
        self.objects, self.uploads, self.confirmed, self.pending = {}, [], [], set()
        self.messages, self.trees = [], []

    def PushMessages(self, request):
        self.messages, self.trees = list(request.messages_list), list(request.message_object_trees)
        wanted = {part.object_id for tree in self.trees for part in iterate_object_tree(tree)} - set(self.objects)
        return PushAppMessagesResponse(
            message_ids=[one.metadata.message_id for one in self.messages], objects_to_push=wanted
        )

    def PushObject(self, request):
        self.uploads.append(request.object_id)
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request):
        return PullAppMessagesResponse(messages_list=self.messages, message_object_trees=self.trees)

    def PullObject(self, request):
        content = self.objects.get(request.object_id)
        is_here = content is not None and request.object_id not in self.pending
        found = content is not None
        return PullObjectResponse(object_found=found, object_available=is_here, object_content=content or b"")

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def link():
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    return Link()


def mail_of(link):
    return SuperLinkMail(SimpleNamespace(client=link, node=Node(node_id=1), run=1, outages=threading.Event()))


def update(delta):
    return wire.pack_update(4, ClientUpdate(delta, np.ones(3, np.float32), 2.0, {"loss": Weighted(1.0, 2.0)}))


def pushed(link, content):
    """An envelope with content, as if it had come back."""
    mail = mail_of(link)
    mail.push([Message(content, 7, "train", ttl=60)])
    (envelope,) = mail.look(["a message"])
    return envelope


def soon():
    return wait_until(time.monotonic() + 0.2)


@pytest.mark.parametrize("make", [np.zeros, lambda size, dtype: np.arange(size, dtype=dtype)])
def test_a_reply_comes_back_bit_for_bit(link, make):
    delta = make(SIZE, np.float32)
    reply = pushed(link, update(delta)).open(4 * (SIZE + 3), soon())
    back = wire.unpack_update(reply.content)
    assert back.update.delta.tobytes() == delta.tobytes()
    assert (back.round, back.update.weight, back.update.extra.tolist()) == (4, 2.0, [1.0, 1.0, 1.0])
    assert not back.update.delta.flags.writeable
    assert link.confirmed == [link.trees[0].object_id]


def test_what_a_cohort_shares_is_sent_once(link):
    shared = update(np.arange(SIZE, dtype=np.float32))
    own = [RecordDict({**shared, "own": ConfigRecord({"client": client})}) for client in range(3)]
    identifiers = mail_of(link).push([Message(content, 7, "train", ttl=60) for content in own])
    assert len(set(identifiers)) == 3
    assert len(link.uploads) == len(set(link.uploads))
    total = sum(map(len, link.objects.values()))
    assert 4 * SIZE < total < 4 * SIZE + 20_000


def test_what_was_stored_and_not_acknowledged_is_sent_again_with_the_rest(link):
    """A SuperLink takes an object once: asked again by a caller that heard no answer, it says it did not store it."""
    store, numbers = link.PushObject, itertools.count()  # several threads call

    def killed_after_the_second(request):
        store(request)
        return PushObjectResponse(stored=next(numbers) != 1)

    link.PushObject = killed_after_the_second
    mail = mail_of(link)
    assert len(mail.push([Message(update(np.arange(SIZE, dtype=np.float32)), 7, "train", ttl=60)])) == 1
    assert set(link.uploads) == {part.object_id for tree in link.trees for part in iterate_object_tree(tree)}
    assert (mail.was_cut(), mail.was_cut()) == (True, False)


@pytest.mark.parametrize("bytes_short", [1, 4 * SIZE])
def test_no_more_is_read_than_was_agreed(link, bytes_short):
    envelope = pushed(link, update(np.zeros(SIZE, np.float32)))
    with pytest.raises(wire.Malformed, match="more than agreed") as caught:
        envelope.open(4 * (SIZE + 3) - bytes_short, soon())
    assert caught.value.reason == "shape"
    assert link.confirmed  # the SuperLink need not keep it


def test_an_array_has_no_more_bytes_than_it_says(link):
    content = update(np.zeros(SIZE, np.float32))
    array = content["vectors"]["delta"]
    array.shape = (5,)
    with pytest.raises(wire.Malformed, match="more bytes than"):
        pushed(link, content).open(10**9, soon())


def test_a_reply_that_is_never_uploaded_whole_is_late(link):
    envelope = pushed(link, update(np.arange(SIZE, dtype=np.float32)))
    link.pending = {link.uploads[1]}
    with pytest.raises(wire.Malformed, match="not uploaded whole") as caught:
        envelope.open(10**9, soon())
    assert caught.value.reason == "timeout"


@pytest.mark.parametrize("content", [b"", b"\x00", b"Array  2\x00{}", b"Nothing  0\x00", b"\xff\xfe 1\x00a"])
def test_objects_without_form_are_refused(link, content):
    envelope = pushed(link, update(np.zeros(9, np.float32)))
    for identifier in link.objects:
        link.objects[identifier] = content
    with pytest.raises(wire.Malformed) as caught:
        envelope.open(10**9, soon())
    assert caught.value.reason in ("schema", "timeout")
