"""What a SuperLink reads and keeps is bounded: of strangers, of nodes, of replies, of runs that have ended."""

import asyncio
import hashlib
import http.client
import json
import os
import re
import sqlite3
import ssl
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushTaskOutputRequest
from flwr.supercore.constant import (
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity

from superlinks import NodeKey, called
from umbel.core.errors import ConfigError
from umbel.deploy import kits
from umbel.deploy.kits import OperatorKit, ServerKit
from umbel.deploy.parties import _superlink
from umbel.runtimes.flower.compat import (
    OBJECT_PATH,
    OUTPUT_PATH,
    REPLY_PATH,
    TASK_TOKEN_HEADER,
    PushObjectResponse,
    state_of,
    superlink_app,
)
from umbel.runtimes.flower.link import bounds, quota
from umbel.runtimes.flower.link.bounds import AT_ONCE, FLEET_BYTES, MIB, STRANGER_BYTES, Bounded
from umbel.runtimes.flower.link.quota import Quota, prepare
from umbel.runtimes.flower.link.superlink import layered
from umbel.runtimes.flower.processes import free_ports
from umbel.runtimes.flower.secured import Operator

OBJECT_BYTES = FLEET_BYTES[OBJECT_PATH]


class App:
    """An application that notes the bodies it is handed, and answers once it is let."""

    def __init__(self):
        self.bodies, self.working, self.most_working, self.go = [], 0, 0, asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        self.working += 1
        self.most_working = max(self.most_working, self.working)
        await self.go.wait()
        self.working -= 1
        await send({"type": "http.response.start", "status": 200})


def post(app, path, size, who="nobody", piece=16 << 10):
    """A request under way: (its task, what it was answered, how much of it was read)."""
    sent, read = [], [0]

    async def receive():
        part = min(piece, size - read[0])
        read[0] += part
        return {"type": "http.request", "body": b"x" * part, "more_body": read[0] < size}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(b"name", who.encode())]}
    return asyncio.create_task(app(scope, receive, send)), sent, read


@pytest.mark.parametrize(
    ("who", "path", "size", "status"),
    [
        ("nobody", OBJECT_PATH, STRANGER_BYTES, 200),  # whoever it is of, Flower looks
        ("nobody", OBJECT_PATH, STRANGER_BYTES + 1, 413),
        ("nobody", "/v1/control/start-run", 40 * MIB, 413),
        ("nobody", "/v1/runtime/push-messages", 40 * MIB, 413),
        ("north", OBJECT_PATH, OBJECT_BYTES, 200),
        ("north", OBJECT_PATH, OBJECT_BYTES + 1, 413),
        ("north", "/v1/fleet/pull-messages", STRANGER_BYTES + 1, 413),
        ("north", "/v1/fleet/anything", 40 * MIB, 413),
    ],
)
def test_no_more_is_read_than_a_sender_may_send(who, path, size, status):
    async def story():
        app = App()
        app.go.set()
        bounded = Bounded(app, lambda path, headers: headers["name"] if headers["name"] != "nobody" else None)
        call, sent, read = post(bounded, path, size, who)
        await call
        assert sent[0]["status"] == status
        assert app.bodies == ([b"x" * size] if status == 200 else [])
        most = bounds.most_bytes(path) if who == "north" else STRANGER_BYTES
        assert read[0] <= most + (16 << 10)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        (OBJECT_PATH, OBJECT_BYTES, 200),
        (OBJECT_PATH, OBJECT_BYTES + 1, 413),
        ("/v1/fleet/pull-messages", STRANGER_BYTES + 1, 413),
        ("/v1/control/start-run", bounds.CONTROL_BYTES + 1, 413),
    ],
)
def test_a_superlink_on_loopback_reads_no_more_than_a_request_needs(path, size, status):
    """Everybody on the machine is let in there; nobody makes it hold 400 MB."""

    async def story():
        app = App()
        app.go.set()
        call, sent, read = post(layered(app, None), path, size, piece=MIB)
        await call
        assert sent[0]["status"] == status
        assert read[0] <= bounds.most_bytes(path) + 2 * MIB

    asyncio.run(story())


def test_a_sender_has_few_large_requests_in_memory_and_delays_nobody_else():
    async def story():
        app = App()
        bounded = Bounded(app, lambda path, headers: headers["name"])
        calls = [post(bounded, OBJECT_PATH, MIB, "north") for _ in range(3 * AT_ONCE)]
        await asyncio.sleep(0.2)
        assert len(app.bodies) == AT_ONCE
        assert sum(read[0] > STRANGER_BYTES + (16 << 10) for _, _, read in calls) == AT_ONCE
        other = post(bounded, OBJECT_PATH, MIB, "south")
        await asyncio.sleep(0.1)
        assert len(app.bodies) == AT_ONCE + 1
        app.go.set()
        await asyncio.gather(other[0], *(call for call, _, _ in calls))
        assert app.most_working == AT_ONCE + 1
        assert all(sent[0]["status"] == 200 for _, sent, _ in calls)

    asyncio.run(story())


@pytest.fixture
def link(tmp_path):
    """A SuperLink with a file of its own, a node and a run; it has a quota of 2 MiB a reply."""
    database = tmp_path / "superlink.db"
    prepare(database)
    flower = superlink_app("127.0.0.1", 1, str(database))
    state, key = state_of(flower), NodeKey()
    node = state.create_node(NOOP_FLWR_AID, "", key.public, 30.0)
    assert state.activate_node(node, 30.0)
    run = state.create_run(None, None, "a hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    task = state.get_run_info(run_ids=[run])[0].primary_task_id
    token = state.claim_task(task)
    state.activate_task(task)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run, task, SUPERLINK_NODE_ID
    app = Quota(flower, lambda: state, 2 * MIB)
    return SimpleNamespace(app=app, state=state, key=key, node=node, run=run, token=token, database=database)


def order(link):
    """A message for the node, in the database."""
    message = Message(RecordDict({"a": ConfigRecord({"round": 1})}), link.node, "train", ttl=60.0)
    message.metadata.__dict__["_message_id"] = message.object_id
    session = link.state.start_session(link.run)
    assert link.state.store_message_and_object_tree(message, get_object_tree(message), session)[0]
    assert [one.metadata.message_id for one in link.state.get_message_ins(link.node, limit=1)] == [message.object_id]
    return message


def answer(link, message, sizes, identifier=None):
    """Upload a reply of records of so many bytes; which of them were stored."""
    content = RecordDict({str(size): ConfigRecord({"bytes": os.urandom(size)}) for size in sizes})
    TaskIdentity.node_id = link.node
    reply = Message(content, reply_to=message)
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    reply.metadata.__dict__["_message_id"] = identifier or reply.object_id
    about, node = message_to_proto(reply), Node(node_id=link.node)
    request = PushMessagesRequest(
        node=node, messages_list=[about], message_object_trees=[get_object_tree(reply)], clientapp_runtime_list=[0.0]
    )
    announced = called(link.app, REPLY_PATH, request, link.key.proof)
    if not announced.is_taken:
        return json.loads(announced.body)["detail"]
    session, stored = PushMessagesResponse.FromString(announced.body).session_id, []
    for name, part in get_all_nested_objects(reply).items():
        about = {"node": node, "run_id": link.run, "object_id": name, "object_content": part.deflate()}
        pushed = called(link.app, OBJECT_PATH, PushObjectRequest(session_id=session, **about), link.key.proof)
        stored.append(PushObjectResponse.FromString(pushed.body).stored)
    return stored


def test_a_reply_beyond_the_quota_is_let_go_whole(link):
    before = len(link.state.object_store)
    stored = answer(link, order(link), [700_000, 700_001, 700_002, 700_003])
    assert not all(stored)
    assert stored.count(True) <= 3
    assert len(link.state.object_store) <= before + 3  # the order's own objects; nothing of the reply
    assert all(answer(link, order(link), [700_000, 700_001]))


def test_a_message_has_one_reply_which_is_what_it_says(link):
    """Flower takes another tree of objects with each call for a message that it knows."""
    message = order(link)
    assert answer(link, message, [10], identifier="0" * 64) == "expected a reply to consist of its own objects"


def test_an_object_of_no_reply_is_not_kept(link):
    """Of nodes older than Flower 1.30: it would be in no account."""
    before = len(link.state.object_store)
    pushed = PushObjectRequest(node=Node(node_id=link.node), run_id=link.run, object_id="0" * 64, object_content=b"a")
    assert called(link.app, OBJECT_PATH, pushed, link.key.proof).status == 400
    assert len(link.state.object_store) == before


def test_nobody_lets_go_of_anothers_reply(link):
    """A stranger who knows an upload's name cannot make it too large: Flower refuses him first."""
    message = order(link)
    content = RecordDict({"a": ConfigRecord({"bytes": os.urandom(MIB)})})
    stored = answer(link, message, [MIB])
    assert all(stored)
    kept = len(link.state.object_store)
    (session,) = {row["session_id"] for row in link.state.query("SELECT session_id FROM object_push_session_roots")}
    about = {"node": Node(node_id=link.node), "run_id": link.run, "session_id": session, "object_id": content.object_id}
    pushed = PushObjectRequest(object_content=bytes(4 * MIB), **about)
    assert called(link.app, OBJECT_PATH, pushed, NodeKey().proof).status == 401
    assert len(link.state.object_store) == kept


def test_a_run_that_ended_leaves_nothing_and_the_file_shrinks(link):
    def size():
        link.state.query("PRAGMA wal_checkpoint(TRUNCATE)")
        return link.database.stat().st_size

    before = size()
    for _ in range(4):
        assert all(answer(link, order(link), [900_000, 900_001]))
    assert size() > before + 7_000_000
    done = PushTaskOutputRequest(sub_status="completed")
    assert called(link.app, OUTPUT_PATH, done, {TASK_TOKEN_HEADER: link.token}).is_taken
    assert len(link.state.object_store) == 0
    assert size() < before + 200_000


def test_a_database_of_before_is_shrunk_when_the_superlink_begins(tmp_path):
    place = tmp_path / "old.db"
    with sqlite3.connect(place) as connection:
        connection.execute("CREATE TABLE a (content BLOB)")
        connection.executemany("INSERT INTO a VALUES (?)", [(bytes(100_000),)] * 20)
        connection.commit()
        connection.execute("DELETE FROM a WHERE rowid > 1")
        connection.commit()
    connection.close()
    assert place.stat().st_size > 2_000_000
    prepare(place)
    assert place.stat().st_size < 150_000


@pytest.mark.parametrize("said", ["0", "many", "-1", "1e9"])
def test_a_quota_that_is_none_is_refused(monkeypatch, said):
    monkeypatch.setenv(quota.REPLY_VARIABLE, said)
    with pytest.raises(ConfigError, match=re.escape(f"{quota.REPLY_VARIABLE}='{said}'")):
        quota.reply_bytes()


@pytest.fixture
def superlink(tmp_path):
    """A SuperLink of its own, with TLS and the operator's token: (its process, its kit, its operator)."""
    kits.make(tmp_path / "fed", "127.0.0.1", None, ["north"], free_ports(1)[0])
    kit, operator = ServerKit.load(tmp_path / "fed/server"), OperatorKit.load(tmp_path / "fed/operator")
    (kit.folder / "state").mkdir(exist_ok=True)
    variables = {"UMBEL_CONTROL_TOKENS": hashlib.sha256(operator.token.encode()).hexdigest()}
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            _superlink(kit), env={**os.environ, **variables, "FLWR_HOME": str(tmp_path)}, stdout=log, stderr=log
        )
    try:
        yield process, kit, operator
    finally:
        process.terminate()
        process.wait(20)


def megabytes(process, figure="VmHWM"):
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(rf"{figure}:\s+(\d+)", status).group(1)) / 1024


def upload(kit, operator, path, size, **headers):
    """Send so many bytes, or as many as are taken; the status, None where the connection was cut."""
    context = ssl.create_default_context(cafile=str(operator.authority))
    to = http.client.HTTPSConnection("127.0.0.1", kit.port, timeout=20, context=context)
    to.putrequest("POST", path)
    for name, value in {"Content-Type": "application/protobuf", "Content-Length": str(size), **headers}.items():
        to.putheader(name, value)
    to.endheaders()
    piece, left = bytes(MIB), size
    try:
        while left > 0:
            to.send(piece[:left])
            left -= len(piece)
    except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
        pass
    try:
        return to.getresponse().status
    except (http.client.HTTPException, OSError):
        return None
    finally:
        to.close()


@pytest.mark.deployment
def test_a_superlink_reads_no_body_of_a_stranger_and_none_of_a_nodes_that_is_too_large(superlink):
    """The whole of it, before it looked who sent it, took it to a gigabyte."""
    process, kit, operator = superlink
    deadline = time.monotonic() + 60
    while True:
        try:
            assert upload(kit, operator, "/v1/fleet/pull-messages", 0) == 401
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
    before, key = megabytes(process), NodeKey()
    proof = key.proof
    for path in ("/v1/fleet/pull-messages", OBJECT_PATH, "/v1/control/start-run", "/v1/runtime/push-object"):
        headers = proof if "fleet" in path else {"Authorization": "Bearer another"}
        assert upload(kit, operator, path, 64 * MIB, **headers) in (413, None)
    bearer = {"Authorization": f"Bearer {operator.token}"}
    assert upload(kit, operator, "/v1/control/start-run", 64 * MIB, **bearer) in (413, None)
    assert upload(kit, operator, OBJECT_PATH, OBJECT_BYTES, **proof) in (413, None)
    with Operator(operator.address, operator.authority.read_bytes(), operator.token) as control:
        control.register("north", key.public)
    assert upload(kit, operator, OBJECT_PATH, OBJECT_BYTES, **proof) == 400  # read, and no object
    assert upload(kit, operator, OBJECT_PATH, 64 * MIB, **proof) in (413, None)
    assert upload(kit, operator, "/v1/fleet/pull-messages", MIB, **proof) in (413, None)
    assert megabytes(process) - before < 50
    assert upload(kit, operator, "/v1/fleet/pull-messages", 0) == 401  # it still answers
