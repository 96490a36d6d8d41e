"""What a message consists of: Flower's own objects, under its ids, and in no more memory than a model takes."""

import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from umbel.runtimes.flower.mail import SuperLinkMail
from umbel.runtimes.flower.objects import CHUNK_BYTES, Chunk, ObjectReader, Upload, array_record, raw_array

MODEL = 8 * CHUNK_BYTES


def content(size=MODEL):
    array = raw_array("uint8", (size,), "raw", body(size))
    return RecordDict({"vectors": array_record({"delta": array})})


def body(size):
    return np.random.default_rng(0).integers(0, 256, size, np.uint8).data


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_objects_are_flowers_own(size):
    """Byte for byte: whoever reads them need not know who wrote them."""
    plain = Array("uint8", (size,), "raw", bytes(body(size)))
    theirs = get_all_nested_objects(RecordDict({"vectors": ArrayRecord({"delta": plain})}))
    ours = get_all_nested_objects(content(size))
    assert {name: part.deflate() for name, part in ours.items()} == {name: p.deflate() for name, p in theirs.items()}
    assert all(get_object_id(part.deflate()) == name for name, part in ours.items())


@pytest.mark.parametrize(
    "part",
    [Chunk(memoryview(b"\x00\x01" * 300)), Chunk(memoryview(b"")), ArrayChunk(memoryview(b"abc"))],
    ids=["many", "none", "other"],
)
def test_an_upload_is_protobufs_own_request(part):
    about = PushObjectRequest(node=Node(node_id=3), run_id=2**60, session_id="s", object_id=part.object_id)
    read = PushObjectRequest.FromString(Upload(about, part).SerializeToString(deterministic=True))
    about.object_content = part.deflate()
    assert read == about
    assert Upload(about, part).object_content == about.object_content


class Link:
    """A SuperLink's Runtime API that forgets what it is sent, and has what it was given."""

    def __init__(self, objects=()):
        self.objects, self.sizes = dict(objects), []  # of what was pushed, by several threads

    def PushMessages(self, request):
        names = [part.object_id for tree in request.message_object_trees for part in iterate_object_tree(tree)]
        return PushAppMessagesResponse(message_ids=["one"], objects_to_push=names)

    def PushObject(self, request):
        self.sizes.append(len(request.SerializeToString(deterministic=True)))
        return PushObjectResponse(stored=True)

    def get(self, identifier):
        return PullObjectResponse(object_content=self.objects[identifier]).object_content


def peak_of(call):
    """What call returns, and the bytes that it took at most."""
    tracemalloc.start()
    try:
        found = call()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_model_is_sent_in_a_fraction_of_its_own_memory():
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    link, node = Link(), Node(node_id=1)
    mail = SuperLinkMail(SimpleNamespace(client=link, node=node, run=1, outages=threading.Event()))
    message = Message(content(), 7, "train", ttl=60)
    _, peak = peak_of(lambda: mail.push([message]))
    assert sum(link.sizes) > MODEL
    assert peak < 0.5 * MODEL


def test_a_model_is_received_in_its_own_memory_and_a_fraction():
    record = content()
    link = Link((name, part.deflate()) for name, part in get_all_nested_objects(record).items())
    received, peak = peak_of(lambda: ObjectReader(link.get).read(get_object_tree(record)))
    assert bytes(received["vectors"]["delta"].data) == bytes(record["vectors"]["delta"].data)
    assert MODEL < peak < 1.5 * MODEL
