"""A node that asks for messages is answered when there is one. Not public in Flower; see `compat`.

Flower's SuperNodes ask every few seconds, ours twenty times a second, and each question is a signature to check and a
look into a database: three idle clients kept a third of a processor busy. Here an answer that there is nothing waits
for the next message that any run sends, some seconds at most. A message is there at once; idle nodes ask rarely.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from .compat import PULL_PATH, PUSH_PATH, PullMessagesResponse

HOLD_SECONDS = 10.0  # longest time that a question waits: a third of what Flower's clients wait for an answer
STARTUP_FAILURE = 3  # uvicorn's own exit status
STEP_SECONDS = 1.0  # time between two looks whether the server is ending


class Answer(NamedTuple):
    """Messages that an ASGI application sent, in order."""

    sent: list[dict[str, Any]]

    @property
    def is_taken(self) -> bool:
        """Whether the question was one that the application answers."""
        return bool(self.sent) and self.sent[0]["status"] < 300

    @property
    def is_empty(self) -> bool:
        """Whether it says that there is no message."""
        body = b"".join(part.get("body", b"") for part in self.sent[1:])
        return self.is_taken and not PullMessagesResponse.FromString(body).messages_list


class Waiting:
    """A SuperLink's ASGI application, whose nodes wait for what they ask for.

    Only whoever Flower has answered waits: not one whose signature it refuses. One that is gone by then is handed
    nothing. is_ending: whether the server wants to end, for which nobody waits.
    """

    def __init__(self, app: Any, is_ending: Callable[[], bool] = lambda: False):
        self._app, self._is_ending = app, is_ending
        self._pushes, self._pushed = 0, asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        body = await _body_of(receive)
        before = self._pushes
        answer = await self._ask(scope, body)
        if answer.is_empty:
            if not await self._wait(before, receive):
                return
            if self._pushes != before and (again := await self._ask(scope, body)).is_taken:
                answer = again
        for message in answer.sent:
            await send(message)

    async def _ask(self, scope: Any, body: bytes) -> Answer:
        """Return the application's answer to a request of this body, as of now."""
        requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        requests.put_nowait({"type": "http.request", "body": body, "more_body": False})
        sent: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            sent.append(message)

        own = dict(scope)  # a copy, since applications write into it
        if "state" in scope:
            own["state"] = dict(scope["state"])
        await self._app(own, requests.get, keep)
        return Answer(sent)

    async def _wait(self, before: int, receive: Any) -> bool:
        """Wait until more was pushed than before, the time is up, or the server ends.

        False once nobody is there to hear.
        """
        loop = asyncio.get_running_loop()
        until, gone = loop.time() + HOLD_SECONDS, loop.create_task(receive())
        try:
            while self._pushes == before and not gone.done() and not self._is_ending() and loop.time() < until:
                pushed = loop.create_task(self._pushed.wait())
                await asyncio.wait({gone, pushed}, timeout=STEP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                pushed.cancel()
            return not gone.done()
        finally:
            gone.cancel()


async def _body_of(receive: Any) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):  # nor has a request that was broken off
            return bytes(body)


def serve(app: Any, around: Callable[[Any], Any] = lambda app: app, **options: Any) -> None:
    """Run `uvicorn.run` of one process, whose nodes wait for what they ask for. around: an application around that."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(around(Waiting(app, lambda: server.should_exit)), **options))
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)
