"""What a SuperLink hands out until it is confirmed: around Flower's three handlers, each a function here."""

import time
from types import SimpleNamespace

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ConfirmMessageReceivedResponse, Message, Metadata
from flwr.proto.node_pb2 import Node

from umbel.runtimes.flower.private_delivery import MOST_TIMES, Deliveries


class Fleet:
    """Each node's messages, in order, once each: as Flower hands them out."""

    def __init__(self, ttl=60.0):
        self.queues = {1: ["a", "b"], 2: ["c"]}
        self.ttl = ttl

    def pull_messages(self, request, state, store):
        found = [self.queues[request.node.node_id].pop(0)] if self.queues[request.node.node_id] else []
        about = {"created_at": time.time(), "ttl": self.ttl}
        return PullMessagesResponse(
            messages_list=[Message(metadata=Metadata(message_id=one, **about)) for one in found]
        )

    def confirm_message_received(self, request, state, store):
        return ConfirmMessageReceivedResponse()

    def activate_node(self, request, state):
        return ActivateNodeResponse(node_id=request.node_id)


def pulled(deliveries, node):
    answer = deliveries.pull_messages(request=PullMessagesRequest(node=Node(node_id=node)), state=None, store=None)
    return [one.metadata.message_id for one in answer.messages_list]


def confirm(deliveries, node):
    request = ConfirmMessageReceivedRequest(node=Node(node_id=node))
    assert isinstance(
        deliveries.confirm_message_received(request=request, state=None, store=None), ConfirmMessageReceivedResponse
    )


def test_what_is_not_confirmed_is_handed_out_again_to_its_node_alone():
    deliveries = Deliveries(Fleet())
    assert [pulled(deliveries, node) for node in (1, 2, 1, 2)] == [["a"], ["c"], ["a"], ["c"]]
    confirm(deliveries, 1)
    confirm(deliveries, 2)
    assert [pulled(deliveries, node) for node in (1, 2)] == [["b"], []]


def test_a_message_that_nobody_can_take_makes_way():
    deliveries = Deliveries(Fleet())
    assert [pulled(deliveries, 1) for _ in range(MOST_TIMES + 1)] == [*[["a"]] * MOST_TIMES, ["b"]]


@pytest.mark.parametrize("what", ["expired", "restarted"])
def test_neither_a_closed_round_nor_a_node_that_was_started_anew_gets_an_old_message(what):
    deliveries = Deliveries(Fleet(ttl=-1.0 if what == "expired" else 60.0))
    assert pulled(deliveries, 1) == ["a"]
    if what == "restarted":
        deliveries.activate_node(request=SimpleNamespace(node_id=1), state=None)
    assert pulled(deliveries, 1) == ["b"]
