"""Nodes are given up late, and let in again early.

Flower gives a node up that was silent for a minute: a SuperLink that comes back after an outage of that length finds
every node offline, and a round goes on without them. And it activates no node that is online, since its key would be
in use twice: one whose process died is refused until it was given up. Here an outage may last for minutes; and a node
that was silent for half a minute may be started anew, since its process would have been heard.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from ..compat import ACTIVATE_PATH, HEARTBEAT_PATH, ActivateNodeRequest, SendNodeHeartbeatRequest
from .asgi import App, Receive, Scope, Send, ask, body_of, parsed

RESTART_SECONDS = 30.0  # silence after which a node may be started anew: its process has ended, or it would be heard
PATIENCE_SECONDS = 240.0  # silence after which a node or a run's process is given up
INTERVAL_SECONDS = PATIENCE_SECONDS / 2  # what a node is taken to have promised: Flower waits for two of these
PRECONDITION_FAILED = 412


class Patience:
    """A SuperLink's ASGI application, to which every node promises a sign of life every INTERVAL_SECONDS.

    Nodes send theirs more often, so that one or two may be lost. state: gives the SuperLink's state, when it is there.
    """

    def __init__(self, app: App, state: Callable[[], Any]):
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; see the ASGI specification."""
        path = scope.get("path")
        if path not in (ACTIVATE_PATH, HEARTBEAT_PATH):
            return await self._app(scope, receive, send)
        kind = ActivateNodeRequest if path == ACTIVATE_PATH else SendNodeHeartbeatRequest
        body = await body_of(receive)
        if (request := parsed(kind, body)) is None:
            return await (await ask(self._app, scope, body)).give(send)
        request.heartbeat_interval = max(request.heartbeat_interval, INTERVAL_SECONDS)
        body = request.SerializeToString()
        answer = await ask(self._app, scope, body)
        # Flower has let the caller in: it refuses whoever cannot prove his key with another status.
        is_refused = path == ACTIVATE_PATH and answer.status == PRECONDITION_FAILED
        if is_refused and await asyncio.to_thread(self._give_up, request.public_key):
            answer = await ask(self._app, scope, body)
        await answer.give(send)

    def _give_up(self, key: bytes) -> bool:
        """Take a node for offline that is silent though it is online; whether it was."""
        state = self._state()
        node = state.get_node_id_by_public_key(key)
        if node is None:
            return False
        latest = time.time() + PATIENCE_SECONDS - RESTART_SECONDS
        online = state.get_node_info(node_ids=[node], statuses=["online"])
        return any(one.online_until < latest for one in online) and bool(state.deactivate_node(node))
