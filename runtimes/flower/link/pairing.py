"""A node, and the process that plays a run, joined for the steps of a training across a model's cut.

A step of split learning is a message each way for every batch: too many to be asked for, stored and confirmed. Each of
the two keeps one WebSocket open to the SuperLink, and here what one sends goes to the other, frame by frame: nothing is
stored, no more than a frame of each is held, and who is slower sets the pace. Both prove who they are as with any call,
before anything of theirs is read: the node by its key, the player by its run's token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..compat import FLEET_PATH, RUNTIME_PATH, TASK_TOKEN_HEADER, Status
from .asgi import App, Receive, Scope, Send, headers_of
from .senders import proven_key

log = logging.getLogger(__name__)

NODE_PATH, PLAYER_PATH = FLEET_PATH + "umbel-steps", RUNTIME_PATH + "umbel-steps"
CROSSING_HEADER = "umbel-crossing"  # a node's: run-session; a player's: node-session
CROSSING = re.compile(r"([0-9]{1,20})-([0-9a-f]{32})")
FRAME_BYTES = 256 << 10  # most bytes of a frame
HOLD_SECONDS = 3.0  # time for the player to come, once a node is there
MOST_OVER = 4096  # number of sessions that are remembered to be over
# Codes of a WebSocket that is closed by us; the reason says more.
REFUSED, NOBODY, OVER = 4400, 4404, 4410
AGAIN = 1012  # the code of a connection that may be made anew
NUMBER = (1 << 64) - 1  # numbers of runs and nodes are kept as signed ones


class MeetingPoint(NamedTuple):
    """A client's training in a round: where a node and a player meet."""

    run: int
    node: int
    session: str


class End:
    """One side's connection, which hands what it receives to the other side's."""

    def __init__(self, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self._partner: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._limit: asyncio.Timeout | None = None

    @property
    def is_joined(self) -> bool:
        """Return whether the other side is there."""
        return self._partner.done()

    def join(self, partner: End) -> None:
        """Hand everything to partner from now on, for as long as it takes."""
        self._partner.set_result(partner)
        if self._limit is not None:
            self._limit.reschedule(None)

    async def pump(self, patience: float | None) -> tuple[int, str]:
        """Hand on what comes until this side is gone; return its code and reason.

        patience: time in seconds for the other side to come. Errors: TimeoutError.
        """
        async with asyncio.timeout(None if self.is_joined else patience) as self._limit:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    return int(message.get("code") or AGAIN), str(message.get("reason") or "")
                if not message.get("bytes"):
                    await self.close(REFUSED, "expected a frame of bytes")
                    return AGAIN, ""
                partner = await asyncio.shield(self._partner)
                with contextlib.suppress(OSError):  # it is gone, which its own side finds
                    await partner._send({"type": "websocket.send", "bytes": message["bytes"]})

    async def close(self, code: int, reason: str = "") -> None:
        """Close this side's connection."""
        with contextlib.suppress(OSError, RuntimeError):  # it is closed
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def close_partner(self, code: int, reason: str) -> None:
        """Close the other side's, if it is there. Codes that are not ours say that it may come again."""
        if self.is_joined:
            await self._partner.result().close(*((code, reason) if code in (REFUSED, OVER) else (AGAIN, "")))


class Pairing:
    """A SuperLink's ASGI application, which joins the WebSockets of nodes and players, and takes no others.

    state: gives the SuperLink's state, when it is there. Whoever comes twice takes the place of his first connection: a
    node whose network was cut is back before the SuperLink has noticed.
    """

    def __init__(self, app: App, state: Callable[[], Any], hold_seconds: float = HOLD_SECONDS):
        self._app, self._state, self._hold = app, state, hold_seconds
        self._ends: dict[tuple[MeetingPoint, bool], End] = {}  # {(place, whether it is the player's): end}
        self._held: dict[int, End] = {}  # {node: its end that nobody has joined}: one for each
        self._over: OrderedDict[MeetingPoint, None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection; see the ASGI specification."""
        if scope["type"] != "websocket":
            return await self._app(scope, receive, send)
        await receive()
        is_player = scope["path"] == PLAYER_PATH
        place = await asyncio.to_thread(self._proven, scope["path"], headers_of(scope))
        if place is None:  # answered with 403
            return await send({"type": "websocket.close"})
        await send({"type": "websocket.accept"})
        end = End(receive, send)
        if not is_player and (place in self._over or await asyncio.to_thread(self._is_over, place.run)):
            return await end.close(OVER, "the round has ended")
        await self._enter(place, is_player, end)
        code, reason = AGAIN, ""
        try:
            code, reason = await end.pump(None if is_player else self._hold)
        except TimeoutError:
            await end.close(NOBODY)
        finally:
            self._leave(place, is_player, end, code)
            await end.close_partner(code, reason)

    async def _enter(self, place: MeetingPoint, is_player: bool, end: End) -> None:
        before = self._ends.get((place, is_player))
        if not is_player:  # nor does a node wait at two places
            before = before or self._held.pop(place.node, None)
        self._ends[place, is_player] = end
        if before is not None:
            await before.close_partner(AGAIN, "")
            await before.close(AGAIN)
        other = self._ends.get((place, not is_player))
        if other is not None and not other.is_joined and not end.is_joined:
            end.join(other)
            other.join(end)
            self._held.pop(place.node, None)
        elif not is_player:
            self._held[place.node] = end

    def _leave(self, place: MeetingPoint, is_player: bool, end: End, code: int) -> None:
        if self._ends.get((place, is_player)) is end:
            del self._ends[place, is_player]
        if self._held.get(place.node) is end:
            del self._held[place.node]
        if is_player and code == OVER:
            self._over[place] = None
            if len(self._over) > MOST_OVER:
                self._over.popitem(last=False)

    def _proven(self, path: str, headers: Mapping[str, str]) -> MeetingPoint | None:
        """Return where a caller may come; None for nowhere. It looks into a database."""
        said = CROSSING.fullmatch(headers.get(CROSSING_HEADER, ""))
        if said is None:
            return None
        number, session = int(said[1]) & NUMBER, said[2]
        if path == NODE_PATH:
            key = proven_key(headers)
            node = None if key is None else self._state().get_node_id_by_public_key(key)
            return None if node is None else MeetingPoint(number, node & NUMBER, session)
        token = headers.get(TASK_TOKEN_HEADER)
        task = self._state().get_task_by_token(token) if path == PLAYER_PATH and token else None
        return None if task is None else MeetingPoint(task.run_id & NUMBER, number, session)

    def _is_over(self, run: int) -> bool:
        """Return whether a run is not being played any more."""
        found = self._state().get_run_status({run}).get(run)
        return found is None or found.status == Status.FINISHED
