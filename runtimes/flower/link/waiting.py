"""A node that asks for messages is answered when there is one.

Flower's SuperNodes ask every few seconds, ours twenty times a second, and each question is a signature to check and a
look into a database: three idle clients kept a third of a processor busy. Here an answer that there is nothing waits
for the next message that any run sends, some seconds at most. A message is there at once; idle nodes ask rarely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..compat import PULL_PATH, PUSH_PATH, PullMessagesResponse
from .asgi import Answer, App, Receive, Scope, Send, ask, body_of

HOLD_SECONDS = 10.0  # longest time that a question waits: a third of what Flower's clients wait for an answer
STEP_SECONDS = 1.0  # time between two looks whether the server is ending
HOLDS_HEADER = "umbel-holds"  # header by which an answer says for how many seconds questions are held


class Waiting:
    """A SuperLink's ASGI application, whose nodes wait for what they ask for.

    Only whoever Flower has answered waits: not one whose signature it refuses. One that is gone by then is handed
    nothing. is_ending: whether the server wants to end, for which nobody waits.
    """

    def __init__(self, app: App, is_ending: Callable[[], bool] = lambda: False):
        self._app, self._is_ending = app, is_ending
        self._pushes, self._pushed = 0, asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path == PULL_PATH:
            await self._answer(scope, receive, send)
            return
        await self._app(scope, receive, send)
        if path == PUSH_PATH:
            self._pushes += 1
            self._pushed.set()
            self._pushed = asyncio.Event()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await body_of(receive)
        before = self._pushes
        answer = await ask(self._app, scope, body)
        if _is_empty(answer):
            if not await self._wait(before, receive):
                return
            if self._pushes != before and (again := await ask(self._app, scope, body)).is_taken:
                answer = again
        start, *rest = answer.sent
        holds = HOLDS_HEADER.encode(), f"{HOLD_SECONDS:g}".encode()
        await Answer([{**start, "headers": [*start.get("headers", ()), holds]}, *rest]).give(send)

    async def _wait(self, before: int, receive: Receive) -> bool:
        """Wait until more was pushed than before, the time is up, or the server ends.

        False once nobody is there to hear.
        """
        loop = asyncio.get_running_loop()
        until, gone = loop.time() + HOLD_SECONDS, asyncio.ensure_future(receive())
        try:
            while self._pushes == before and not gone.done() and not self._is_ending() and loop.time() < until:
                pushed = loop.create_task(self._pushed.wait())
                await asyncio.wait({gone, pushed}, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                pushed.cancel()
            return not gone.done()
        finally:
            gone.cancel()


def _is_empty(answer: Answer) -> bool:
    """Return whether the application says that there is no message."""
    return answer.is_taken and not PullMessagesResponse.FromString(answer.body).messages_list
