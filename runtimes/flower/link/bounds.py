"""Bounds on what a SuperLink reads, kept before it is read.

Flower reads a request whole before it looks who sends it. Here more than 64 KiB is read only of who has shown a key or
a token, and no more than that kind of request needs.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from typing import Any

from ..compat import CHUNK_BYTES, FLEET_PATH, OBJECT_PATH, REPLY_PATH, RUNTIME_PATH
from .asgi import Answer, App, Receive, Scope, Send, answered, headers_of
from .senders import Headers

log = logging.getLogger(__name__)

MIB = 1 << 20
STRANGER_BYTES = 64 << 10  # most bytes of a request whose sender has shown nothing
FLEET_BYTES = {REPLY_PATH: 2 * MIB, OBJECT_PATH: CHUNK_BYTES + MIB}
RUNTIME_BYTES = 256 * MIB  # most bytes of a request of a run's own process: messages for all nodes, at once
CONTROL_BYTES = 16 * MIB  # most bytes of a request of the operator: an app is 10 MiB at most
AT_ONCE = 4  # number of one sender's requests above STRANGER_BYTES that are worked on at a time; Flower's nodes send 2


class TooMuch(Exception):
    """A request holds more than its sender may send."""


class Bounded:
    """A SuperLink's ASGI application, which is handed no request that is larger than it may be.

    who: the sender that a request's headers prove, None for nobody: (path, headers) → a name. It may look into a
    database. A sender's large requests wait for one another, unread, so that it never holds more than AT_ONCE.
    """

    def __init__(self, app: App, who: Callable[[str, Headers], str | None]):
        self._app, self._who = app, who
        # A sender's, for as long as one of its requests is being worked on.
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        incoming = Incoming(receive)
        try:
            if await incoming.read(STRANGER_BYTES):
                return await self._app(scope, incoming.replay, send)
            path, headers = scope["path"], headers_of(scope)
            sender = await asyncio.to_thread(self._who, path, headers)
            if sender is None:
                raise TooMuch
            turn = self._turns.setdefault(sender, asyncio.Semaphore(AT_ONCE))
            async with turn:
                if declared(scope) > most_bytes(path) or not await incoming.read(most_bytes(path)):
                    raise TooMuch
                return await self._app(scope, incoming.replay, send)
        except TooMuch:
            log.warning("a request to %s was refused: it is larger than its sender may send", scope["path"])
            await _refusal().give(send)


class Incoming:
    """A request's body as it comes, and its replay for an application."""

    def __init__(self, receive: Receive):
        self._receive, self._body = receive, bytearray()
        self._is_whole = self._is_replayed = False

    async def read(self, most: int) -> bool:
        """Read on until the body is there (True), or longer than `most` (False)."""
        while not self._is_whole and len(self._body) <= most:
            message = await self._receive()
            self._body += message.get("body", b"")
            self._is_whole = not message.get("more_body", False)  # nor has a request that was broken off
        return len(self._body) <= most

    async def replay(self) -> Any:
        """Return the body, in one piece; afterwards whatever else comes."""
        if self._is_replayed:
            return await self._receive()
        self._is_replayed, body = True, bytes(self._body)
        self._body = bytearray()
        return {"type": "http.request", "body": body, "more_body": False}


def most_bytes(path: str) -> int:
    """Return the largest body of a request to a path, of who may send it at all."""
    if path.startswith(FLEET_PATH):
        return FLEET_BYTES.get(path, STRANGER_BYTES)
    return RUNTIME_BYTES if path.startswith(RUNTIME_PATH) else CONTROL_BYTES


def declared(scope: Scope) -> int:
    """Return the length that a request says it has; 0 where it does not say."""
    said = headers_of(scope).get("content-length", "")
    return int(said) if said.isdecimal() else 0


def _refusal() -> Answer:
    """Return the answer that a request is too large, after which no more of it is heard."""
    start, body = answered(413, b'{"detail": "the request is larger than its sender may send"}').sent
    return Answer([{**start, "headers": [*start["headers"], (b"connection", b"close")]}, body])
