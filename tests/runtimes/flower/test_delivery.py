"""What a SuperLink hands out until it is confirmed, before a SuperLink that is a list."""

import time

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata
from flwr.proto.node_pb2 import Node

from superlinks import called
from umbel.runtimes.flower.compat import ACTIVATE_PATH, CONFIRM_PATH, PULL_PATH
from umbel.runtimes.flower.link.asgi import answered, body_of
from umbel.runtimes.flower.link.delivery import MOST_TIMES, Delivery
from umbel.runtimes.flower.parcels import RECEIVED, note


class Fleet:
    """Each node's messages, in order, once each: as Flower hands them out, to whoever has a key."""

    def __init__(self, ttl=60.0, confirmed=200):
        self.queues = {1: ["a", "b"], 2: ["c"]}
        self.ttl, self.confirmed = ttl, confirmed

    async def __call__(self, scope, receive, send):
        body = await body_of(receive)
        if dict(scope["headers"])[b"name"] == b"stranger":
            return await answered(401, b"{}").give(send)
        if scope["path"] == PULL_PATH:
            reply = self.pulled(PullMessagesRequest.FromString(body).node.node_id)
            return await answered(200, reply.SerializeToString()).give(send)
        if scope["path"] == ACTIVATE_PATH:
            return await answered(200, ActivateNodeResponse(node_id=1).SerializeToString()).give(send)
        await answered(self.confirmed, b"").give(send)

    def pulled(self, node):
        found = [self.queues[node].pop(0)] if self.queues[node] else []
        about = {"created_at": time.time(), "ttl": self.ttl}
        return PullMessagesResponse(
            messages_list=[Message(metadata=Metadata(message_id=one, **about)) for one in found]
        )


def pulled(delivery, node, name="north"):
    answer = called(delivery, PULL_PATH, PullMessagesRequest(node=Node(node_id=node)), {"name": name})
    if not answer.is_taken:
        return answer.status
    return [one.metadata.message_id for one in PullMessagesResponse.FromString(answer.body).messages_list]


def asked_again(delivery, node, received, name="north"):
    """A question that says what came whole."""
    request = PullMessagesRequest(node=Node(node_id=node))
    note(request, RECEIVED, received.encode())
    answer = called(delivery, PULL_PATH, request, {"name": name})
    return answer.is_taken and [
        one.metadata.message_id for one in PullMessagesResponse.FromString(answer.body).messages_list
    ]


def confirm(delivery, node, message, name="north"):
    request = ConfirmMessageReceivedRequest(node=Node(node_id=node), message_object_id=message)
    called(delivery, CONFIRM_PATH, request, {"name": name})


@pytest.mark.parametrize("confirmed", [200, 403])
def test_what_is_not_confirmed_is_handed_out_again_to_its_node_alone(confirmed):
    """Confirmed is also what is over: Flower says of a run that has ended that it has."""
    delivery = Delivery(Fleet(confirmed=confirmed))
    assert [pulled(delivery, node) for node in (1, 2, 2)] == [["a"], ["c"], ["c"]]
    confirm(delivery, 1, "a")
    confirm(delivery, 2, "c")
    assert [pulled(delivery, node) for node in (1, 2)] == [["b"], []]


def test_what_comes_meanwhile_comes_afterwards():
    delivery = Delivery(Fleet())
    assert [pulled(delivery, 1) for _ in range(2)] == [["a"], ["a"]]
    confirm(delivery, 1, "a")
    assert pulled(delivery, 1) == ["b"]
    confirm(delivery, 1, "b")
    assert pulled(delivery, 1) == []


def test_what_came_whole_is_confirmed_by_the_next_question():
    """By its own node's alone, and only where Flower took the question."""
    delivery = Delivery(Fleet())
    assert [pulled(delivery, node) for node in (1, 2)] == [["a"], ["c"]]
    assert asked_again(delivery, 2, "a") == ["c"]
    assert asked_again(delivery, 1, "a", "stranger") is False
    assert pulled(delivery, 1) == ["a"]
    assert asked_again(delivery, 1, "a") == ["b"]
    assert asked_again(delivery, 1, "b") == []


@pytest.mark.parametrize("what", ["expired", "restarted", "refused too often"])
def test_what_is_handed_out_no_more_is_let_go(what):
    fleet, forgotten = Fleet(), []
    delivery = Delivery(fleet, forgotten.append)
    fleet.ttl = 0.05 if what == "expired" else 60.0
    for _ in range(MOST_TIMES if what == "refused too often" else 1):
        pulled(delivery, 1)
    assert forgotten == []
    time.sleep(0.1 if what == "expired" else 0)
    if what == "restarted":
        called(delivery, ACTIVATE_PATH, ActivateNodeRequest(), {"name": "north"})
    pulled(delivery, 1)
    assert forgotten == ["a"]


def test_a_message_that_nobody_can_take_makes_way():
    delivery = Delivery(Fleet())
    assert [pulled(delivery, 1) for _ in range(MOST_TIMES + 1)] == [*[["a"]] * MOST_TIMES, ["b"]]


def test_nobody_without_the_nodes_key_gets_or_confirms_its_message():
    delivery = Delivery(Fleet())
    assert pulled(delivery, 1) == ["a"]
    assert pulled(delivery, 1, "stranger") == 401
    confirm(delivery, 1, "a", "stranger")
    assert pulled(delivery, 1) == ["a"]


@pytest.mark.parametrize("what", ["expired", "restarted"])
def test_neither_a_closed_round_nor_a_node_that_was_started_anew_gets_an_old_message(what):
    fleet = Fleet()
    delivery = Delivery(fleet)
    if what == "expired":
        fleet.ttl = 0.05
    assert pulled(delivery, 1) == ["a"]
    fleet.ttl = 60.0
    time.sleep(0.1)
    if what == "restarted":
        called(delivery, ACTIVATE_PATH, ActivateNodeRequest(), {"name": "north"})
    assert pulled(delivery, 1) == ["b"]
