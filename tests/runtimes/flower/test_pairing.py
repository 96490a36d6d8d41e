"""Two WebSockets joined by a SuperLink: who is let in, what goes over, who is closed when and why."""

import asyncio
from types import SimpleNamespace

import pytest

from superlinks import NodeKey
from umbel.runtimes.flower.compat import TASK_TOKEN_HEADER
from umbel.runtimes.flower.link.pairing import (
    AGAIN,
    CROSSING_HEADER,
    NOBODY,
    NODE_PATH,
    OVER,
    PLAYER_PATH,
    REFUSED,
    Pairing,
)

RUN, NODE, SESSION = 7, 5, "0a" * 16
NORTH, STRANGER = NodeKey(), NodeKey()


class State:
    """What a SuperLink knows: a node, a run with its token, and whether it is being played."""

    status = "running"

    def get_node_id_by_public_key(self, key):
        return NODE if key == NORTH.public else None

    def get_task_by_token(self, token):
        return SimpleNamespace(run_id=RUN) if token == "token" else None

    def get_run_status(self, runs):
        return {run: SimpleNamespace(status=self.status) for run in runs if run == RUN}


class Socket:
    """A WebSocket as its caller sees it: `said` is what it was answered, in order."""

    def __init__(self, app, path, headers):
        self._events, self.said = asyncio.Queue(), []
        self._events.put_nowait({"type": "websocket.connect"})
        coded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "websocket", "path": path, "headers": coded}
        self.task = asyncio.ensure_future(app(scope, self._events.get, self._hear))

    async def _hear(self, message):
        self.said.append(message)
        if message["type"] == "websocket.close":
            self.leave(message.get("code", 1000), message.get("reason", ""))

    def send(self, content):
        self._events.put_nowait({"type": "websocket.receive", "bytes": content})

    def leave(self, code=1000, reason=""):
        self._events.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})

    @property
    def received(self):
        return [message["bytes"] for message in self.said if message["type"] == "websocket.send"]

    @property
    def is_accepted(self):
        return self.said[:1] == [{"type": "websocket.accept"}]

    @property
    def closed(self):
        return next((message.get("code") for message in self.said if message["type"] == "websocket.close"), None)


def a_node(app, session=SESSION, run=RUN, key=NORTH):
    return Socket(app, NODE_PATH, {**key.proof, CROSSING_HEADER: f"{run}-{session}"})


def a_player(app, session=SESSION, node=NODE, token="token"):
    return Socket(app, PLAYER_PATH, {TASK_TOKEN_HEADER: token, CROSSING_HEADER: f"{node}-{session}"})


async def settled(*sockets, rounds=200):
    for _ in range(rounds):
        await asyncio.sleep(0.001)
        if all(socket.task.done() for socket in sockets):
            return


async def joined(app, count):
    """Wait until as many ends are there, each joined with another."""
    while len(app._ends) < count or not all(end.is_joined for end in app._ends.values()):
        await asyncio.sleep(0.001)


def played(scenario, hold=0.05, state=State):
    """Play a scenario over an application that takes nothing else."""

    async def nothing(scope, receive, send):
        raise AssertionError("it is for nobody else")

    return asyncio.run(scenario(Pairing(nothing, state, hold)))


@pytest.mark.parametrize("node_first", [True, False])
def test_what_one_sends_goes_to_the_other_in_order(node_first):
    async def scenario(app):
        ends = [a_node(app), a_player(app)] if node_first else [a_player(app), a_node(app)]
        for number in range(50):
            for socket in ends:
                socket.send(bytes([number]))
        await settled(*ends, rounds=60)
        return [(socket.is_accepted, socket.received, socket.closed) for socket in ends]

    frames = [bytes([number]) for number in range(50)]
    assert played(scenario, hold=5.0) == [(True, frames, None)] * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda app: a_node(app, key=STRANGER),
        lambda app: Socket(app, NODE_PATH, {CROSSING_HEADER: f"{RUN}-{SESSION}"}),
        lambda app: Socket(app, NODE_PATH, {**NORTH.proof, TASK_TOKEN_HEADER: "token"}),
        lambda app: a_node(app, session="../" + SESSION),
        lambda app: a_player(app, token="another"),
        lambda app: Socket(app, PLAYER_PATH, {**NORTH.proof, CROSSING_HEADER: f"{NODE}-{SESSION}"}),
        lambda app: Socket(app, "/v1/fleet/another", {**NORTH.proof, CROSSING_HEADER: f"{RUN}-{SESSION}"}),
    ],
    ids=["a stranger", "no proof", "no place", "no session", "a wrong token", "a node as a player", "another path"],
)
def test_nobody_else_is_let_in(make):
    """403, before a frame of theirs is looked at."""

    async def scenario(app):
        player, stranger = a_player(app), make(app)
        stranger.send(b"for the player")
        await settled(stranger)
        return player.received, stranger.said

    assert played(scenario) == ([], [{"type": "websocket.close"}])


def test_places_are_kept_apart():
    """By run, node and session: none but the one that was meant is joined."""

    async def scenario(app):
        player = a_player(app)
        others = [a_node(app, session="0b" * 16), a_node(app, run=RUN + 1)]
        for other in others:
            other.send(b"for another")
        await settled(*others)
        return player.received, [other.closed for other in others]

    received, closed = played(scenario)
    assert received == []
    assert set(closed) <= {NOBODY, OVER, AGAIN}


def test_a_node_is_not_kept_waiting_for_nobody():
    async def scenario(app):
        socket = a_node(app)
        socket.send(b"hello")
        await settled(socket)
        return socket.closed, app._ends, app._held

    assert played(scenario) == (NOBODY, {}, {})


@pytest.mark.parametrize(("code", "told"), [(REFUSED, REFUSED), (OVER, OVER), (1000, AGAIN), (1006, AGAIN)])
def test_the_other_is_told_when_one_leaves(code, told):
    """Our own codes pass, with the reason; else it may come again."""

    async def scenario(app):
        player, node = a_player(app), a_node(app)
        await joined(app, 2)
        player.leave(code, "a reason")
        await settled(player, node)
        return node.said[-1]

    said = played(scenario, hold=5.0)
    assert (said["code"], said["reason"]) == (told, "a reason" if told == code else "")


def test_who_comes_again_takes_the_place_of_the_first():
    """A node whose network was cut is back before anybody has noticed; the player comes again, and goes on with it."""

    async def scenario(app):
        player, first = a_player(app), a_node(app)
        await joined(app, 2)
        second = a_node(app)
        await settled(player, first)
        again = a_player(app)
        second.send(b"here I am")
        await joined(app, 2)
        await settled(rounds=20)
        return player.closed, first.closed, second.closed, again.received

    assert played(scenario, hold=5.0) == (AGAIN, AGAIN, None, [b"here I am"])


def test_a_session_that_is_over_is_over():
    async def scenario(app):
        player = a_player(app)
        while not app._ends:
            await asyncio.sleep(0.001)
        player.leave(OVER)
        await settled(player)
        late = a_node(app)
        await settled(late)
        return late.closed

    assert played(scenario, hold=5.0) == OVER


def test_nobody_waits_for_a_run_that_has_ended():
    class Ended(State):
        status = "finished"

    async def scenario(app):
        socket = a_node(app)
        await settled(socket)
        return socket.closed

    assert played(scenario, hold=5.0, state=Ended) == OVER
