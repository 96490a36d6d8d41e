"""A layer in which whoever asks for what is not there yet is answered when it is.

Flower's SuperNodes ask every few seconds, ours at once again, and each question is a signature to check and a look
into a database: three idle clients kept a third of a processor busy. Here an answer that there is nothing waits for
what was asked for: a node waits for a message to it, a run for a reply to one of its messages, and either for an object
that is still being uploaded. It is there at once, and who waits asks rarely.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..compat import (
    ANSWERS_PATH,
    FETCH_PATH,
    OBJECT_PATH,
    PULL_PATH,
    PUSH_PATH,
    REPLY_PATH,
    RUN_FETCH_PATH,
    RUN_OBJECT_PATH,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushAppMessagesRequest,
    PushMessagesRequest,
    PushObjectRequest,
)
from ..parcels import HOLD, carried, noted
from .asgi import Answer, App, Receive, Scope, Send, ask, body_of, parsed

HOLD_SECONDS = 10.0  # longest time that a question waits: a third of what Flower's clients wait for an answer
MOST_WORDS = 64  # most bytes of an answer that there is nothing
STEP_SECONDS = 1.0  # time between two looks whether the server is ending
HOLDS_HEADER = "umbel-holds"  # header by which an answer says for how many seconds questions are held

Bell = int | str  # what is waited for: a message to the node of this number, or something about the object of this id


class Question(NamedTuple):
    """A kind of question."""

    kind: Any
    answers: Any
    bells: Callable[[Any], Iterable[Bell]]  # what its answer waits for
    is_empty: Callable[[Any], bool]
    is_always_held: bool  # whether it is held for HOLD_SECONDS, or for as long as it says


def _is_without_messages(answer: Any) -> bool:
    return not answer.messages_list


def _is_on_its_way(answer: Any) -> bool:
    return bool(answer.object_found and not answer.object_available)


OBJECTS = Question(PullObjectRequest, PullObjectResponse, lambda ask: [ask.object_id], _is_on_its_way, False)
QUESTIONS = {
    PULL_PATH: Question(
        PullMessagesRequest, PullMessagesResponse, lambda ask: [ask.node.node_id], _is_without_messages, True
    ),
    ANSWERS_PATH: Question(
        PullAppMessagesRequest, PullAppMessagesResponse, lambda ask: ask.message_ids, _is_without_messages, False
    ),
    FETCH_PATH: OBJECTS,
    RUN_FETCH_PATH: OBJECTS,
}
# What is rung for, by what was handed in.
DELIVERIES: dict[str, tuple[Any, Callable[[Any], Iterable[Bell]]]] = {
    PUSH_PATH: (PushAppMessagesRequest, lambda sent: [one.metadata.dst_node_id for one in sent.messages_list]),
    REPLY_PATH: (PushMessagesRequest, lambda sent: [one.metadata.reply_to_message_id for one in sent.messages_list]),
    OBJECT_PATH: (PushObjectRequest, lambda sent: [sent.object_id]),
    RUN_OBJECT_PATH: (PushObjectRequest, lambda sent: [sent.object_id]),
}


class Bells:
    """Bells that are rung for whoever waits at one of several."""

    def __init__(self) -> None:
        self._waiting: dict[Bell, set[asyncio.Event]] = {}

    @contextlib.contextmanager
    def heard(self, bells: Iterable[Bell]) -> Iterator[asyncio.Event]:
        """Give an event that is set when one of the bells is rung, from now on."""
        event, names = asyncio.Event(), set(bells)
        for name in names:
            self._waiting.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    def ring(self, bells: Iterable[Bell]) -> None:
        """Ring bells."""
        for name in bells:
            for event in self._waiting.get(name, ()):
                event.set()


class Waiting:
    """A SuperLink's ASGI application, in which questions wait for what they ask for.

    Only whoever Flower has answered waits: not one whose signature it refuses. One that is gone by then is handed
    nothing. is_ending: whether the server wants to end, for which nobody waits.
    """

    def __init__(self, app: App, is_ending: Callable[[], bool] = lambda: False):
        self._app, self._is_ending = app, is_ending
        self._bells = Bells()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path in QUESTIONS:
            return await self._answer(QUESTIONS[path], scope, receive, send)
        if path not in DELIVERIES:
            return await self._app(scope, receive, send)
        body = await body_of(receive)
        answer = await ask(self._app, scope, body)
        kind, bells = DELIVERIES[path]
        if (sent := parsed(kind, body)) is not None:
            self._bells.ring([*bells(sent), *carried(sent)])
        await answer.give(send)

    async def _answer(self, question: Question, scope: Scope, receive: Receive, send: Send) -> None:
        body = await body_of(receive)
        request = parsed(question.kind, body)
        if request is None:
            return await (await ask(self._app, scope, body)).give(send)
        with self._bells.heard(question.bells(request)) as rung:
            answer, until = await ask(self._app, scope, body), _until(question, request)
            while _is_empty(question, answer) and asyncio.get_running_loop().time() < until:
                if not await self._wait(rung, until, receive):
                    return
                if not rung.is_set():
                    break
                rung.clear()
                again = await ask(self._app, scope, body)
                if not again.is_taken:
                    break
                answer = again
        if question.is_always_held and answer.sent:
            start, *rest = answer.sent
            holds = HOLDS_HEADER.encode(), f"{HOLD_SECONDS:g}".encode()
            answer = Answer([{**start, "headers": [*start.get("headers", ()), holds]}, *rest])
        await answer.give(send)

    async def _wait(self, rung: asyncio.Event, until: float, receive: Receive) -> bool:
        """Wait until the bell is rung, the time is up, or the server ends. False once nobody is there to hear."""
        loop = asyncio.get_running_loop()
        gone, bell = asyncio.ensure_future(receive()), asyncio.ensure_future(rung.wait())
        try:
            while not bell.done() and not gone.done() and not self._is_ending() and (left := until - loop.time()) > 0:
                await asyncio.wait({gone, bell}, timeout=min(left, STEP_SECONDS), return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            gone.cancel()
            bell.cancel()


def _until(question: Question, request: Any) -> float:
    """Return the time of the loop until which a question may wait."""
    now = asyncio.get_running_loop().time()
    if question.is_always_held:
        return now + HOLD_SECONDS
    said = noted(request, HOLD)
    seconds = float(said[-1]) if said and said[-1].replace(b".", b"", 1).isdigit() else 0.0
    return now + min(seconds, HOLD_SECONDS)


def _is_empty(question: Question, answer: Answer) -> bool:
    """Return whether the application says that there is nothing yet; it does so in few words."""
    is_short = len(answer.body) <= MOST_WORDS
    return is_short and answer.is_taken and question.is_empty(question.answers.FromString(answer.body))
