"""A message whose way to its node was cut is handed out again.

Flower's SuperLink hands a message out once. When its answer is lost on the way, the node asks again, and is told that
there is nothing; the server waits for a reply until the round's deadline. A SuperNode confirms what it has received,
and asks for nothing before that: one that asks without having confirmed did not get what it was handed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..compat import (
    ACTIVATE_PATH,
    CONFIRM_PATH,
    PULL_PATH,
    ActivateNodeResponse,
    ConfirmMessageReceivedRequest,
    PullMessagesRequest,
    PullMessagesResponse,
)
from ..parcels import RECEIVED, noted
from .asgi import Answer, App, Receive, Scope, Send, ask, body_of

MOST_TIMES = 3  # how often one message is handed out: a node that cannot take it is not to ask for ever
FORBIDDEN = 403  # the answer of Flower, to a node that it let in, about a run that has ended
PATHS = (PULL_PATH, CONFIRM_PATH, ACTIVATE_PATH)


class Handed:
    """An answer with a message, as it was given, and how often it was."""

    def __init__(self, answer: Answer):
        self.answer, self.times = answer, 0
        about = PullMessagesResponse.FromString(answer.body).messages_list[0].metadata
        self.message, self._expires = about.message_id, about.created_at + about.ttl

    @property
    def is_over(self) -> bool:
        """Return whether it is handed out no more: its round has ended, or its node cannot take it."""
        return self.times >= MOST_TIMES or self._expires < time.time()


class Delivery:
    """A SuperLink's ASGI application, which keeps what each node was handed and has not confirmed.

    Flower looks at every question first: what is kept goes to whoever it let in. A node that is activated was started
    anew: who plays the run asks it once more, with another message. A node of ours confirms what came whole with its
    next question. forget: lets go of a message, by its id, that is handed out no more though nobody confirmed it.
    """

    def __init__(self, app: App, forget: Callable[[str], None] = lambda message: None):
        self._app, self._forget = app, forget
        self._out: dict[int, deque[Handed]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path not in PATHS:
            return await self._app(scope, receive, send)
        body = await body_of(receive)
        answer = await ask(self._app, scope, body)
        if path == PULL_PATH and answer.is_taken:
            request = PullMessagesRequest.FromString(body)
            for message in noted(request, RECEIVED):
                self._confirmed(request.node.node_id, message.decode("ascii", "replace"))
            answer, over = self._next(request.node.node_id, answer)
            await self._drop(over)
        elif path == ACTIVATE_PATH and answer.is_taken:
            await self._drop(self._out.pop(ActivateNodeResponse.FromString(answer.body).node_id, ()))
        elif path == CONFIRM_PATH and (answer.is_taken or answer.status == FORBIDDEN):
            about = ConfirmMessageReceivedRequest.FromString(body)
            self._confirmed(about.node.node_id, about.message_object_id)
        await answer.give(send)

    def _next(self, node: int, answer: Answer) -> tuple[Answer, list[Handed]]:
        """Return what the node was handed and has not confirmed, or else what there is for it now.

        And what is handed out no more.
        """
        held = self._out.setdefault(node, deque())
        if PullMessagesResponse.FromString(answer.body).messages_list:
            held.append(Handed(answer))
        over = list(itertools.takewhile(lambda one: one.is_over, held))
        for _ in over:
            held.popleft()
        if not held:
            del self._out[node]
            return answer, over
        held[0].times += 1
        return held[0].answer, over

    def _confirmed(self, node: int, message: str) -> None:
        """Hand a message out no more."""
        left = deque(one for one in self._out.get(node, ()) if one.message != message)
        if left:
            self._out[node] = left
        else:
            self._out.pop(node, None)

    async def _drop(self, over: Iterable[Handed]) -> None:
        for one in over:
            await asyncio.to_thread(self._forget, one.message)
