"""Nodes that wait at the SuperLink for the next message, before a SuperLink that is a list."""

import asyncio

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, PullObjectRequest, PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse, PushAppMessagesRequest

from umbel.runtimes.flower.compat import (
    ANSWERS_PATH,
    FETCH_PATH,
    OBJECT_PATH,
    PULL_PATH,
    PUSH_PATH,
    REPLY_PATH,
    RUN_FETCH_PATH,
    RUN_OBJECT_PATH,
)
from umbel.runtimes.flower.link import waiting
from umbel.runtimes.flower.link.waiting import HOLDS_HEADER, Waiting
from umbel.runtimes.flower.parcels import HOLD, note

QUESTION = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()
OTHER = PullMessagesRequest(node=Node(node_id=8)).SerializeToString()
PUSHED = PushAppMessagesRequest(messages_list=[Message(metadata=Metadata(dst_node_id=7))]).SerializeToString()


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


def test_a_message_is_handed_to_its_node_as_soon_as_it_is_pushed():
    """Whoever it is not for goes on waiting, and costs nothing."""
    link = SuperLink()

    async def story(app):
        mine, other = Call(app, PULL_PATH), Call(app, PULL_PATH, OTHER)
        await asyncio.sleep(0.1)
        assert mine.sent == other.sent == []
        await Call(app, PUSH_PATH, PUSHED).task
        await mine.task
        assert (mine.messages, other.sent) == (1, [])
        other.task.cancel()

    assert play(story, link) < 0.8
    assert link.questions == [QUESTION, OTHER, QUESTION]


class Store:
    """A SuperLink that has an object once it was pushed, and a reply once it was; other paths are not called."""

    def __init__(self):
        self.calls, self.has = [], set()

    async def __call__(self, scope, receive, send):
        body, path = (await receive())["body"], scope["path"]
        self.calls.append(path.rpartition("/")[2])
        answer = b""
        if path in (RUN_FETCH_PATH, FETCH_PATH):
            is_there = PullObjectRequest.FromString(body).object_id in self.has
            answer = PullObjectResponse(object_found=True, object_available=is_there).SerializeToString()
        elif path == ANSWERS_PATH:
            found = [one for one in PullAppMessagesRequest.FromString(body).message_ids if one in self.has]
            answer = PullAppMessagesResponse(messages_list=[Message()] * len(found)).SerializeToString()
        elif path == REPLY_PATH:
            self.has |= {one.metadata.reply_to_message_id for one in PushMessagesRequest.FromString(body).messages_list}
        else:
            self.has.add(PushObjectRequest.FromString(body).object_id)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": answer})


def held(request, seconds):
    note(request, HOLD, seconds)
    return request.SerializeToString()


OBJECT = PullObjectRequest(object_id="a" * 64)
ANSWERS = PullAppMessagesRequest(message_ids=["a" * 64, "b" * 64])
REPLY = PushMessagesRequest(messages_list=[Message(metadata=Metadata(reply_to_message_id="a" * 64))])


@pytest.mark.parametrize(
    ("path", "question", "pushed_to", "pushed"),
    [
        (FETCH_PATH, OBJECT, RUN_OBJECT_PATH, PushObjectRequest(object_id="a" * 64)),
        (RUN_FETCH_PATH, OBJECT, OBJECT_PATH, PushObjectRequest(object_id="a" * 64)),
        (ANSWERS_PATH, ANSWERS, REPLY_PATH, REPLY),
    ],
    ids=["a node's piece", "a run's piece", "a reply"],
)
def test_who_says_for_how_long_waits_for_a_piece_and_for_a_reply(path, question, pushed_to, pushed):
    """And no longer than he said; whoever does not say is answered at once."""
    link = Store()
    kind = type(question)

    async def story(app):
        await Call(app, path, question.SerializeToString()).task
        await Call(app, path, held(kind.FromString(question.SerializeToString()), b"0.1")).task
        assert len(link.calls) == 2
        call = Call(app, path, held(kind.FromString(question.SerializeToString()), b"30"))
        await asyncio.sleep(0.1)
        assert call.sent == []
        await Call(app, OBJECT_PATH, PushObjectRequest(object_id="c" * 64).SerializeToString()).task
        assert (call.sent, len(link.calls)) == ([], 4)  # what nobody waits for wakes nobody
        await Call(app, pushed_to, pushed.SerializeToString()).task
        await call.task
        assert len(link.calls) == 6

    assert play(story, link) < 0.9


def test_what_is_there_is_handed_out_at_once():
    async def story(app):
        await Call(app, PUSH_PATH, PUSHED).task
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
        await Call(app, PUSH_PATH, PUSHED).task
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
        await Call(app, PUSH_PATH, PUSHED).task
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
