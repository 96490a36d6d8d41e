"""Bounds on what a SuperLink takes in, kept before it is read, and given back. Not public in Flower; see `compat`.

Flower reads a request whole before it looks who sends it, keeps whatever a registered node uploads, and keeps what no
run fetched, for good. Here more than 64 KiB is read only of who has shown a key or a token, and no more than that kind
of request needs; a reply has a most; and a run that ends leaves nothing behind in the database, whose file shrinks.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import logging
import os
import sqlite3
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError
from .compat import (
    CHUNK_BYTES,
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLEET_PATH,
    OBJECT_PATH,
    REPLY_PATH,
    RUNTIME_PATH,
    SYSTEM_TIME_TOLERANCE,
    TASK_TOKEN_HEADER,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    PushObjectResponse,
    Status,
    bytes_to_public_key,
    databases,
    fleet_handlers,
    now,
    runtime_handlers,
    verify_signature,
)

log = logging.getLogger(__name__)

MIB = 1 << 20
STRANGER_BYTES = 64 << 10  # most bytes of a request whose sender has shown nothing
FLEET_BYTES = {REPLY_PATH: 2 * MIB, OBJECT_PATH: CHUNK_BYTES + MIB}
RUNTIME_BYTES = 256 * MIB  # most bytes of a request of a run's own process: messages for all nodes, at once
CONTROL_BYTES = 16 * MIB  # most bytes of a request of the operator: an app is 10 MiB at most
AT_ONCE = 4  # number of one sender's requests above STRANGER_BYTES that are worked on at a time; Flower's nodes send 2
REPLY_VARIABLE = "UMBEL_REPLY_BYTES"
REPLY_BYTES = 2 << 30  # most bytes of one reply in the database, where REPLY_VARIABLE does not say otherwise

Headers = Mapping[str, str]


class TooMuch(Exception):
    """A request holds more than its sender may send."""


class Bounded:
    """A SuperLink's ASGI application, which is handed no request that is larger than it may be.

    who: the sender that a request's headers prove, None for nobody: (path, headers) → a name. It may look into a
    database. A sender's large requests wait for one another, unread, so that it never holds more than AT_ONCE.
    """

    def __init__(self, app: Any, who: Callable[[str, Headers], str | None]):
        self._app, self._who = app, who
        # A sender's, for as long as one of its requests is being worked on.
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
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
            await refuse(send)


class Incoming:
    """A request's body as it comes, and its replay for an application."""

    def __init__(self, receive: Any):
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


def headers_of(scope: Any) -> dict[str, str]:
    """Return a request's headers, of which the last of a name counts."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def declared(scope: Any) -> int:
    """Return the length that a request says it has; 0 where it does not say."""
    said = headers_of(scope).get("content-length", "")
    return int(said) if said.isdecimal() else 0


async def refuse(send: Any) -> None:
    """Answer that a request is too large, and hear no more of it."""
    body = b'{"detail": "the request is larger than its sender may send"}'
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": [*head, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def senders(state: Callable[[], Any], lets_in: Callable[[bytes], bool]) -> Callable[[str, Headers], str | None]:
    """Make a function that says who a request's headers prove, as Flower proves it.

    state: gives the SuperLink's state, when it is there. lets_in: whether a bearer token is the operator's.
    """

    def who(path: str, headers: Headers) -> str | None:
        if path.startswith(FLEET_PATH):
            key = proven_key(headers)
            return None if key is None or state().get_node_id_by_public_key(key) is None else key.hex()
        if path.startswith(RUNTIME_PATH):
            token = headers.get(TASK_TOKEN_HEADER)
            return token if token and state().get_task_by_token(token) is not None else None
        token = headers.get("authorization", "").removeprefix("Bearer ")
        return "the operator" if lets_in(token.encode()) else None

    return who


def proven_key(headers: Headers) -> bytes | None:
    """Return the public key whose holder signed a request's time, if that is about now; None for no such proof."""
    try:
        key = base64.b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = base64.b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        moment = headers[TIMESTAMP_HEADER]
        age = (now() - datetime.datetime.fromisoformat(moment)).total_seconds()
        is_recent = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        is_signed = verify_signature(bytes_to_public_key(key), moment.encode("ascii"), signature)
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error):
        return None
    return key if is_recent and is_signed else None


STORED = """
WITH RECURSIVE tree(id) AS (
    SELECT root_object_id FROM object_push_session_roots WHERE session_id = :session
    UNION SELECT child_id FROM object_children JOIN tree ON parent_id = id
)
SELECT COALESCE(SUM(LENGTH(content)), 0) AS bytes FROM objects WHERE object_id IN (SELECT id FROM tree)
"""
ROOTS = "SELECT root_object_id FROM object_push_session_roots WHERE session_id = :session"
HOLDING = "SELECT DISTINCT run_id FROM run_objects"


class Quota:
    """Flower's handlers of the SuperLink, around which a reply has a most, and a run that ended leaves nothing.

    Each message has one reply, which is what it says it is, and so a node holds as many replies in the database as it
    was sent messages. What is larger than that is let go whole, and the server waits for it as for one that never came.
    """

    def __init__(self, fleet: Any, runtime: Any, reply_bytes: int):
        self._push, self._push_object, self._output = fleet.push_messages, fleet.push_object, runtime.push_task_output
        self._most = reply_bytes

    def push_messages(self, request: Any, state: Any) -> Any:
        """Same as in Flower, for one reply with its own objects."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise ValueError("expected one reply, with the objects that it consists of")
        # Flower takes a second tree for a message that it knows, and a third.
        if request.messages_list[0].metadata.message_id != request.message_object_trees[0].object_id:
            raise ValueError("expected a reply to consist of its own objects")
        return self._push(request=request, state=state)

    def push_object(self, request: Any, state: Any) -> Any:
        """Same as in Flower, unless its reply becomes too large: then nothing of that is kept."""
        session = request.session_id
        if not session:  # of nodes older than Flower 1.30, whose upload is in no account
            return PushObjectResponse(stored=False)
        (stored,) = state.query(STORED, {"session": session})
        if stored["bytes"] + len(request.object_content) <= self._most:
            return self._push_object(request=request, state=state)
        log.warning("node %d: its reply is larger than %d bytes; it is let go", request.node.node_id, self._most)
        roots = [row["root_object_id"] for row in state.query(ROOTS, {"session": session})]
        for root in roots:
            state.object_store.delete(root)
        state._cleanup_push_session(session, cleanup_messages=True)
        return PushObjectResponse(stored=False)

    def push_task_output(self, request: Any, state: Any, task: Any) -> Any:
        """Same as in Flower; then what nobody fetched of runs that have ended is let go."""
        answer = self._output(request, state, task)
        holding = [int(row["run_id"]) % (1 << 64) for row in state.query(HOLDING)]  # kept as signed numbers
        for run, status in state.get_run_status(set(holding)).items():
            if status.status == Status.FINISHED:
                state.cleanup_run(run)
        return answer


def keep_within_bounds() -> None:
    """Let the SuperLink of this process keep replies of a most, and nothing of a run that ended, from now on.

    Errors: ConfigError for a REPLY_VARIABLE that is no number of bytes.
    """
    fleet: Any = fleet_handlers()
    runtime: Any = runtime_handlers()
    quota = Quota(fleet, runtime, reply_bytes())
    fleet.push_messages = quota.push_messages
    fleet.push_object = quota.push_object
    runtime.push_task_output = quota.push_task_output
    # First of all: a database is made with it, or without. What is deleted is cut off the file at the next checkpoint.
    mixin: Any = databases()  # whose pragmas are a tuple of fixed length
    mixin.SQLITE_PRAGMAS = (
        ("auto_vacuum", "FULL"),
        *mixin.SQLITE_PRAGMAS,
        ("journal_size_limit", str(64 * MIB)),
    )


def reply_bytes() -> int:
    """Return the most bytes of one reply in the database. Errors: ConfigError for a variable that is no such number."""
    said = os.environ.get(REPLY_VARIABLE, str(REPLY_BYTES))
    if not said.isdecimal() or int(said) < MIB:
        raise ConfigError(f"expected {REPLY_VARIABLE}={said!r} to be a number of bytes, at least {MIB}")
    return int(said)


def give_back(database: Path) -> None:
    """Shrink a SuperLink's database, which nothing has open, to what it holds; none that is not there."""
    if database.is_file():
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA auto_vacuum = FULL")
            connection.execute("VACUUM")
