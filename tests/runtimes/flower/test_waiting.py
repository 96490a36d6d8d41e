"""Nodes that wait at the SuperLink for the next message, before a SuperLink that is a list."""

import asyncio

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message
from flwr.proto.node_pb2 import Node

from umbel.runtimes.flower.compat import PULL_PATH, PUSH_PATH
from umbel.runtimes.flower.link import waiting
from umbel.runtimes.flower.link.waiting import HOLDS_HEADER, Waiting

QUESTION = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()


class SuperLink:
    """What is asked for is handed out once. statuses: of the answers to come, then 200."""

    def __init__(self, statuses=()):
        self.messages, self.statuses, self.questions = [], list(statuses), []

    async def __call__(self, scope, receive, send):
        request = await receive()
        if scope["path"] == PUSH_PATH:
            self.messages.append(request["body"])
            body = b""
        else:
            self.questions.append(request["body"])
            found = [Message(error=None) for _ in self.messages[:1]]
            del self.messages[:1]
            body = PullMessagesResponse(messages_list=found).SerializeToString()
        await send({"type": "http.response.start", "status": self.statuses.pop(0) if self.statuses else 200})
        await send({"type": "http.response.body", "body": body})


class Call:
    """A request under way, in two pieces, and what was answered."""

    def __init__(self, app, path, body=QUESTION):
        self.incoming, self.sent = asyncio.Queue(), []
        for piece, is_last in ((body[:1], False), (body[1:], True)):
            self.incoming.put_nowait({"type": "http.request", "body": piece, "more_body": not is_last})
        self.task = asyncio.create_task(app({"type": "http", "path": path}, self.incoming.get, self.note))

    async def note(self, message):
        self.sent.append(message)

    @property
    def messages(self):
        return len(PullMessagesResponse.FromString(self.sent[1]["body"]).messages_list)


def play(story, link, **options):
    """Run a story with the application; seconds that it took."""

    async def timed():
        began = asyncio.get_running_loop().time()
        await story(Waiting(link, **options))
        return asyncio.get_running_loop().time() - began

    return asyncio.run(timed())


@pytest.fixture(autouse=True)
def hold(monkeypatch):
    monkeypatch.setattr(waiting, "HOLD_SECONDS", 1.0)
    monkeypatch.setattr(waiting, "STEP_SECONDS", 0.05)


def test_a_message_is_handed_to_all_who_wait_as_soon_as_it_is_pushed():
    link = SuperLink()

    async def story(app):
        calls = [Call(app, PULL_PATH), Call(app, PULL_PATH)]
        await asyncio.sleep(0.1)
        assert not any(call.sent for call in calls)
        await Call(app, PUSH_PATH, b"one").task
        await asyncio.gather(*(call.task for call in calls))
        assert sorted(call.messages for call in calls) == [0, 1]  # who was not meant asks again

    assert play(story, link) < 0.8
    assert link.questions == [QUESTION] * 4


def test_what_is_there_is_handed_out_at_once():
    async def story(app):
        await Call(app, PUSH_PATH, b"one").task
        call = Call(app, PULL_PATH)
        await call.task
        assert call.messages == 1

    assert play(story, SuperLink()) < 0.8


def test_nobody_waits_longer_than_they_may():
    async def story(app):
        call = Call(app, PULL_PATH)
        await call.task
        assert (call.sent[0]["status"], call.messages) == (200, 0)
        assert dict(call.sent[0]["headers"]) == {HOLDS_HEADER.encode(): b"1"}

    link = SuperLink()
    assert 0.9 < play(story, link) < 5
    assert link.questions == [QUESTION]


@pytest.mark.parametrize("statuses", [[401], [500]])
def test_whoever_is_refused_does_not_wait(statuses):
    async def story(app):
        call = Call(app, PULL_PATH)
        await call.task
        assert call.sent[0]["status"] == statuses[0]

    assert play(story, SuperLink(statuses)) < 0.8


def test_a_signature_that_ran_out_meanwhile_is_no_error():
    """The node has its first answer, and asks again with a new one."""
    link = SuperLink()

    async def story(app):
        call = Call(app, PULL_PATH)
        await asyncio.sleep(0.1)
        link.statuses = [200, 401]
        await Call(app, PUSH_PATH, b"one").task
        await call.task
        assert (call.sent[0]["status"], call.messages) == (200, 0)

    play(story, link)
    assert link.questions == [QUESTION] * 2


def test_a_node_that_is_gone_is_handed_nothing():
    link = SuperLink()

    async def story(app):
        call = Call(app, PULL_PATH)
        await asyncio.sleep(0.1)
        call.incoming.put_nowait({"type": "http.disconnect"})
        await call.task
        await Call(app, PUSH_PATH, b"one").task
        assert call.sent == []

    play(story, link)
    assert len(link.messages) == 1


def test_a_server_that_ends_waits_for_nobody():
    ending = []

    async def story(app):
        call = Call(app, PULL_PATH)
        await asyncio.sleep(0.1)
        ending.append(True)
        await call.task
        assert call.sent[0]["status"] == 200

    assert play(story, SuperLink(), is_ending=lambda: bool(ending)) < 0.8
