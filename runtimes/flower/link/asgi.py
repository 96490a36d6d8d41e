"""Requests that are read whole, asked again and answered, by the layers around a SuperLink."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Answer(NamedTuple):
    """Messages that an ASGI application sent in answer to a request, in order."""

    sent: list[dict[str, Any]]

    @property
    def status(self) -> int:
        """The HTTP status; 500 where nothing was answered."""
        return int(self.sent[0]["status"]) if self.sent else 500

    @property
    def is_taken(self) -> bool:
        """Return whether the application did what it was asked, and so let the caller in."""
        return self.status < 300

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(part.get("body", b"") for part in self.sent[1:])

    async def give(self, send: Send) -> None:
        """Send it on."""
        for message in self.sent:
            await send(message)


async def body_of(receive: Receive) -> bytes:
    """Read the whole body of a request; it is bounded before it comes here (see `bounds`)."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):  # nor has a request that was broken off
            return b"".join(parts)


async def ask(app: App, scope: Scope, body: bytes) -> Answer:
    """Return an application's answer to a request with this body, as of now."""
    requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    requests.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[dict[str, Any]] = []

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    own = dict(scope)  # a copy, since applications write into it
    if "state" in scope:
        own["state"] = dict(scope["state"])
    await app(own, requests.get, keep)
    return Answer(sent)


def answered(status: int, body: bytes, media_type: str = "application/json") -> Answer:
    """Make an answer of our own."""
    head = [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    return Answer(
        [
            {"type": "http.response.start", "status": status, "headers": head},
            {"type": "http.response.body", "body": body},
        ]
    )


def parsed(kind: Any, body: bytes) -> Any:
    """Return a protobuf message of a kind; None for bytes that are none, about which Flower says the rest."""
    try:
        return kind.FromString(body)
    except DecodeError:
        return None


def headers_of(scope: Scope) -> dict[str, str]:
    """Return a request's headers, of which the last of a name counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
