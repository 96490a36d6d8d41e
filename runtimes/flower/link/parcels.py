"""Objects that travel with their message: taken out of the envelope, and put into it. See `..parcels`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from ..compat import (
    ANSWERS_PATH,
    PULL_PATH,
    PUSH_PATH,
    REPLY_PATH,
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    transaction,
)
from ..parcels import PARCEL_BYTES, RECEIVED, TAKES, carried, load, noted, object_ids
from .asgi import Answer, App, Receive, Scope, Send, ask, body_of, parsed

# What a node asks for, and a run; what a run hands in, and a node.
QUESTIONS: dict[str, tuple[Any, Any]] = {
    PULL_PATH: (PullMessagesRequest, PullMessagesResponse),
    ANSWERS_PATH: (PullAppMessagesRequest, PullAppMessagesResponse),
}
DELIVERIES: dict[str, tuple[Any, Any]] = {
    PUSH_PATH: (PushAppMessagesRequest, PushAppMessagesResponse),
    REPLY_PATH: (PushMessagesRequest, PushMessagesResponse),
}


class Parcels:
    """A SuperLink's ASGI application, whose messages bring their small objects with them, for who can take that.

    Flower looks at every envelope first, and says who is let in, and which objects it wants. state: gives the
    SuperLink's state, when it is there.
    """

    def __init__(self, app: App, state: Callable[[], Any]):
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path not in QUESTIONS and path not in DELIVERIES:
            return await self._app(scope, receive, send)
        body = await body_of(receive)
        kind, answers = QUESTIONS.get(path) or DELIVERIES[path]
        request = parsed(kind, body)
        answer = await ask(self._app, scope, body)
        if request is None or not answer.is_taken:
            return await answer.give(send)
        reply = answers.FromString(answer.body)
        if path in DELIVERIES:
            changed = await self._unload(request, reply)
        else:
            changed = await self._fill(request, reply)
        await (_with_body(answer, reply.SerializeToString()) if changed else answer).give(send)

    async def _unload(self, request: Any, reply: Any) -> bool:
        """Store the objects that a parcel brings, as far as they are wanted; return whether there were any."""
        brought = carried(request)
        wanted = {one: brought[one] for one in reply.objects_to_push if one in brought}
        if not wanted:
            return False
        run = request.messages_list[0].metadata.run_id
        stored = await asyncio.to_thread(self._store, run, reply.session_id, wanted)
        left = [one for one in reply.objects_to_push if one not in stored]
        del reply.objects_to_push[:]
        reply.objects_to_push.extend(left)
        return True

    async def _fill(self, request: Any, reply: Any) -> bool:
        """Put small objects to their messages, where they may be; return whether there were any.

        What the question says has been received is kept no longer.
        """
        received = [one.decode("ascii", "replace") for one in noted(request, RECEIVED)]
        wanted = list(object_ids(reply.message_object_trees)) if noted(request, TAKES) else []
        if not received and not wanted:
            return False
        found = await asyncio.to_thread(self._found, received, wanted)
        load(reply, found)
        return bool(found)

    def _store(self, run: int, session: str, objects: dict[str, bytes]) -> set[str]:
        state = self._state()
        with transaction(state):
            return {one for one, content in objects.items() if state.store_object(run, session, one, content)}

    def _found(self, received: Iterable[str], wanted: Iterable[str]) -> dict[str, bytes]:
        """Let go of messages that were received; return what is there of the objects, as far as it fits."""
        state, found, left = self._state(), dict[str, bytes](), PARCEL_BYTES
        with transaction(state):
            for message in received:
                state.object_store.delete(message)
            for identifier in wanted:
                content = state.object_store.get(identifier) or b""  # empty while it is still being uploaded
                left -= len(content)
                if left < 0:
                    break
                if content:
                    found[identifier] = content
        return found


def _with_body(answer: Answer, body: bytes) -> Answer:
    """Return an answer with another body."""
    start = answer.sent[0]
    headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
    headers.append((b"content-length", str(len(body)).encode()))
    return Answer([{**start, "headers": headers}, {"type": "http.response.body", "body": body}])
