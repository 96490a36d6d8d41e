"""Which of Flower's failed calls are made again, and for how long; when whoever is silent is given up."""

import contextlib
import inspect
import threading
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import httpx
import pytest
from flwr.common.constant import NOOP_FLWR_AID
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.linkstate import in_memory_linkstate, sql_linkstate
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.retry import make_simple_http_retry_invoker

from superlinks import NodeKey, called
from umbel import UmbelError
from umbel.runtimes.flower.calls import RETRY_SECONDS, make_patient
from umbel.runtimes.flower.compat import (
    ACTIVATE_PATH,
    HEARTBEAT_PATH,
    let_tasks_last,
    state_of,
    superlink_app,
    task_states,
)
from umbel.runtimes.flower.link import patience
from umbel.runtimes.flower.link.patience import PATIENCE_SECONDS, RESTART_SECONDS
from umbel.runtimes.flower.link.superlink import layered
from umbel.runtimes.flower.secured import Operator, RunInfo

BEAT_SECONDS = 30.0  # longest time between two signs of life of Flower's nodes


def status(code):
    request = httpx.Request("POST", "https://127.0.0.1/v1/fleet/pull-messages")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code, request=request))


TRANSIENT = [
    httpx.ConnectError("[Errno 111] Connection refused"),
    httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"),
    httpx.ReadError("[Errno 104] Connection reset by peer"),
    httpx.ReadError("[SSL] record layer failure (_ssl.c:2580)"),
    httpx.ConnectTimeout("_ssl.c:989: The handshake operation timed out"),
    httpx.RemoteProtocolError("Server disconnected without sending a response; TLS connection closed"),
    *map(status, (429, 502, 503, 504)),
]
FINAL = [
    httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired"),
    httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"),
    *map(status, (400, 404, 413, 500)),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_a_server_that_is_gone_or_busy_is_called_again(error):
    """Soon after it has come back; what it did not do because it was gone is noted."""
    outages, failures = threading.Event(), [error, error]

    def call():
        if failures:
            raise failures.pop()
        return "done"

    began = time.monotonic()
    assert make_patient(make_simple_http_retry_invoker(), outages.set).invoke(call) == "done"
    assert time.monotonic() - began < 2 * RETRY_SECONDS + 0.5
    assert outages.is_set() is isinstance(error, httpx.TransportError)


@pytest.mark.parametrize("error", FINAL, ids=str)
def test_what_will_not_change_is_said_at_once(error):
    calls = []

    def call():
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        make_patient(make_simple_http_retry_invoker()).invoke(call)
    assert len(calls) == 1


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.now = 1e9

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """What Flower's states, changed to be patient, go by; they are as before afterwards."""
    clock = Clock()
    for tasks in task_states():
        monkeypatch.setattr(tasks, "HEARTBEAT_DEFAULT_INTERVAL", tasks.HEARTBEAT_DEFAULT_INTERVAL)
    for module in (*task_states(), in_memory_linkstate, sql_linkstate):
        monkeypatch.setattr(module, "now", lambda: datetime.fromtimestamp(clock.now, UTC))
    monkeypatch.setattr(patience, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.fixture(params=["sql", "in_memory"])
def superlink(clock, request, tmp_path):
    """A SuperLink that is patient with nodes, and knows what it knows in its file or in memory."""
    flower = superlink_app("127.0.0.1", 1, str(tmp_path / "state.db") if request.param == "sql" else None)
    return layered(flower, None), state_of(flower)


@pytest.fixture
def state(superlink):
    return superlink[1]


KEY = NodeKey()


def activated(app):
    """Return whether a node with the key is let in, as Flower's own asks for it."""
    request = ActivateNodeRequest(public_key=KEY.public, heartbeat_interval=BEAT_SECONDS)
    return called(app, ACTIVATE_PATH, request, KEY.proof).is_taken


def joined(app, state):
    node = state.create_node(NOOP_FLWR_AID, "", KEY.public, BEAT_SECONDS)
    assert activated(app)
    return node


def statuses(state):
    return [node.status for node in state.get_node_info()]


@pytest.mark.parametrize("away", [60.0, 120.0, PATIENCE_SECONDS - BEAT_SECONDS])
def test_nodes_and_tasks_outlive_an_outage_of_minutes(clock, superlink, away):
    """Nobody was heard for so long, whoever's fault it was: all go on as if nothing had happened."""
    let_tasks_last(PATIENCE_SECONDS)
    app, state = superlink
    node = joined(app, state)
    began = state.get_node_info()[0].last_activated_at
    run = state.create_run(None, None, "a hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    state.claim_task(task)
    state.activate_task(task)
    clock.sleep(away)
    assert statuses(state) == ["online"]
    beat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=BEAT_SECONDS)
    assert called(app, HEARTBEAT_PATH, beat, KEY.proof).is_taken
    assert state.acknowledge_task_heartbeat(task)
    assert state.get_node_info()[0].last_activated_at == began  # it is not asked once more
    clock.sleep(PATIENCE_SECONDS + 1)
    assert statuses(state) == ["offline"]
    assert not state.acknowledge_task_heartbeat(task)


def test_a_node_that_was_silent_can_be_started_anew_before_it_is_given_up(clock, superlink):
    """One that is heard cannot: its key is in use."""
    app, state = superlink
    joined(app, state)
    clock.sleep(RESTART_SECONDS - 1)
    assert not activated(app)
    clock.sleep(2)
    assert activated(app)
    assert statuses(state) == ["online"]


def test_nobody_is_started_anew_without_his_key(clock, superlink):
    app, state = superlink
    joined(app, state)
    clock.sleep(RESTART_SECONDS + 1)
    request = ActivateNodeRequest(public_key=KEY.public, heartbeat_interval=BEAT_SECONDS)
    assert called(app, ACTIVATE_PATH, request, NodeKey().proof).status == 401
    assert statuses(state) == ["online"]


def test_flower_still_gives_a_tasks_process_half_a_minute(clock, state):
    """What `let_tasks_last` patches; once Flower takes a parameter for it, the patch can go."""
    run = state.create_run(None, None, "a hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    assert list(inspect.signature(state.claim_task).parameters) == ["task_id"]
    token = state.claim_task(task)
    clock.sleep(29)
    assert state.get_task_by_token(token) is not None
    clock.sleep(2)
    assert state.get_task_by_token(token) is None


@pytest.mark.parametrize("away", [60.0, 600.0])
def test_calls_wait_for_a_server_that_is_away(away):
    """Flower's clients, ours among them, at any length; and are back within a second."""
    clock = Clock()
    back = clock.now + away

    def call():
        if clock.now < back:
            raise TRANSIENT[0]
        return "done"

    invoker = make_simple_http_retry_invoker()
    invoker.wait_function = clock.sleep  # what it waits with, and so what ours does
    assert make_patient(invoker).invoke(call) == "done"
    assert clock.now <= back + RETRY_SECONDS


@pytest.mark.parametrize("statuses", [["finished"], ["running"]])
def test_a_run_that_ends_while_it_is_ended_keeps_no_server_from_starting(monkeypatch, statuses):
    """The SuperLink refuses to stop it; that is an error for one that still runs."""
    operator, seen = Operator.__new__(Operator), [["running"], statuses]

    def refuse(method, request):
        assert method == "StopRun"
        raise UmbelError("412")

    monkeypatch.setattr(operator, "runs", lambda: [RunInfo(1, status, "") for status in seen.pop(0)], raising=False)
    monkeypatch.setattr(operator, "call", refuse, raising=False)
    with contextlib.nullcontext() if statuses == ["finished"] else pytest.raises(UmbelError):
        operator.end_orphans()
    assert seen == []
