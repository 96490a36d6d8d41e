"""A SuperLink keeps no more than it may, and gives back what nobody needs.

Flower keeps whatever a registered node uploads, and what no run fetched, for good. Here a reply has a most, and a run
that ends leaves nothing behind in the database, whose file shrinks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ....core.errors import ConfigError
from ..compat import (
    OBJECT_PATH,
    OUTPUT_PATH,
    PROTOBUF_MEDIA_TYPE,
    REPLY_PATH,
    PushMessagesRequest,
    PushObjectRequest,
    PushObjectResponse,
    Status,
    let_session_go,
)
from .asgi import App, Receive, Scope, Send, answered, ask, body_of, parsed
from .bounds import MIB

REPLY_VARIABLE = "UMBEL_REPLY_BYTES"
REPLY_BYTES = 2 << 30  # most bytes of one reply in the database, where REPLY_VARIABLE does not say otherwise
PATHS = (REPLY_PATH, OBJECT_PATH, OUTPUT_PATH)

STORED = """
WITH RECURSIVE tree(id) AS (
    SELECT root_object_id FROM object_push_session_roots WHERE session_id = :session
    UNION SELECT child_id FROM object_children JOIN tree ON parent_id = id
)
SELECT COALESCE(SUM(LENGTH(content)), 0) AS bytes FROM objects WHERE object_id IN (SELECT id FROM tree)
"""
ROOTS = "SELECT root_object_id FROM object_push_session_roots WHERE session_id = :session"
HOLDING = "SELECT DISTINCT run_id FROM run_objects"
CUT = "PRAGMA wal_checkpoint(TRUNCATE)"

MANY = b'{"detail": "expected one reply, with the objects that it consists of"}'
FOREIGN = b'{"detail": "expected a reply to consist of its own objects"}'
SESSIONLESS = b'{"detail": "expected an object of a reply that was announced"}'

log = logging.getLogger(__name__)


class Quota:
    """A SuperLink's ASGI application, in which a reply has a most, and a run that ended leaves nothing.

    Each message has one reply, which is what it says it is, and so a node holds as many replies in the database as it
    was sent messages. What is larger than that is let go whole, and the server waits for it as for one that never came.
    state: gives the SuperLink's state, which is in a database.
    """

    def __init__(self, app: App, state: Callable[[], Any], reply_bytes: int):
        self._app, self._state, self._most = app, state, reply_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path not in PATHS:
            return await self._app(scope, receive, send)
        body = await body_of(receive)
        if path != OUTPUT_PATH and (complaint := _complaint(path, body)):
            return await answered(400, complaint).give(send)
        answer = await ask(self._app, scope, body)
        if path == OBJECT_PATH and answer.is_taken and PushObjectResponse.FromString(answer.body).stored:
            if await asyncio.to_thread(self._is_beyond, PushObjectRequest.FromString(body)):
                answer = answered(200, PushObjectResponse(stored=False).SerializeToString(), PROTOBUF_MEDIA_TYPE)
        elif path == OUTPUT_PATH and answer.is_taken:
            await asyncio.to_thread(self._clean)
        await answer.give(send)

    def _is_beyond(self, request: PushObjectRequest) -> bool:
        """Return whether a reply has become too large; then nothing of it is kept any more."""
        state, session = self._state(), request.session_id
        (stored,) = state.query(STORED, {"session": session})
        if stored["bytes"] <= self._most:
            return False
        log.warning("node %d: its reply is larger than %d bytes; it is let go", request.node.node_id, self._most)
        let_session_go(state, session, [row["root_object_id"] for row in state.query(ROOTS, {"session": session})])
        return True

    def _clean(self) -> None:
        """Let go of what nobody fetched of runs that have ended, and cut it off the file."""
        state = self._state()
        holding = [int(row["run_id"]) % (1 << 64) for row in state.query(HOLDING)]  # kept as signed numbers
        for run, status in state.get_run_status(set(holding)).items():
            if status.status == Status.FINISHED:
                state.cleanup_run(run)
        state.query(CUT)


def _complaint(path: str, body: bytes) -> bytes | None:
    """Say what is wrong with a request that hands in replies, or a piece of one; None where nothing is."""
    if path == OBJECT_PATH:
        piece = parsed(PushObjectRequest, body)
        # Of nodes older than Flower 1.30, whose upload is in no account.
        return SESSIONLESS if piece is not None and not piece.session_id else None
    request = parsed(PushMessagesRequest, body)
    if request is None:  # Flower says so
        return None
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return MANY
    # Flower takes a second tree for a message that it knows, and a third.
    is_own = request.messages_list[0].metadata.message_id == request.message_object_trees[0].object_id
    return None if is_own else FOREIGN


def reply_bytes() -> int:
    """Return the most bytes of one reply in the database. Errors: ConfigError for a variable that is no such number."""
    said = os.environ.get(REPLY_VARIABLE, str(REPLY_BYTES))
    if not said.isdecimal() or int(said) < MIB:
        raise ConfigError(f"expected {REPLY_VARIABLE}={said!r} to be a number of bytes, at least {MIB}")
    return int(said)


def prepare(database: Path) -> None:
    """Make a SuperLink's database, which nothing has open, one whose file shrinks; shrink it to what it holds."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = FULL")  # counts from the next VACUUM, and for good
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("VACUUM")
