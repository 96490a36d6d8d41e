"""A client's process as a node, at an unmodified SuperLink of Flower's, in this process; and when its calls fail."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import NOOP_FLWR_AID
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.supercore.object_store import NoObjectInStoreError

from superlinks import SuperLink
from umbel.runtimes.flower.link.waiting import HOLDS_HEADER
from umbel.runtimes.flower.node import heart, inbox, presence, proof
from umbel.runtimes.flower.node.contexts import Contexts
from umbel.runtimes.flower.node.fleet import RETRY_SECONDS, FleetApi, Leaving, NotLetIn, is_final
from umbel.runtimes.flower.node.heart import Heart
from umbel.runtimes.flower.node.inbox import LONGEST_POLL_SECONDS, Mailbox
from umbel.runtimes.flower.node.outbox import Outbox
from umbel.runtimes.flower.node.presence import Presence, hold
from umbel.runtimes.flower.node.proof import Proof, make_key
from umbel.runtimes.flower.node.service import RAISED, Service
from umbel.runtimes.flower.objects import array_record, raw_array

LIMIT_SECONDS = 30
SIZE = 2_000_000  # of float32: two chunks


class Clock(threading.Event):
    """Time that passes only when somebody waits; set after so many seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.now, self.end, self.waits = 0.0, seconds, []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        self.now += timeout
        if self.now >= self.end:
            self.set()
        return self.is_set()

    monotonic = time = lambda self: self.now


@pytest.fixture
def link():
    return SuperLink()


@pytest.fixture
def key():
    return Proof(ec.generate_private_key(ec.SECP384R1()))


def api(link, key, stop=None):
    return FleetApi(link.http(), key, None, stop or threading.Event())


def service(link, key, app, stop):
    """A node that is online, and what it does."""
    calls = api(link, key, stop)
    node = Presence(calls, key.public, None, vouched=True).come()
    contexts = Contexts(calls, node, {"partition-id": 1, "num-partitions": 2})
    limit = threading.Timer(LIMIT_SECONDS, stop.set)  # a test that fails ends, too
    limit.daemon = True
    limit.start()
    return node, Service(node, Mailbox(calls, node, stop), Outbox(calls, node), contexts, app, stop)


def content(value=1.0):
    array = raw_array("float32", (SIZE,), "raw", np.full(SIZE, value, np.float32).data.cast("B"))
    return RecordDict({"vectors": array_record({"delta": array}), "order": ConfigRecord({"round": 3})})


def test_a_message_is_answered_by_an_unmodified_superlink(link, key):
    """It arrives whole, with the run's configuration and the node's, and so does the reply; nothing of it is kept."""
    link.register(key)
    stop, seen = threading.Event(), []

    def app(message, context):
        vector = np.frombuffer(message.content["vectors"]["delta"].data, np.float32)
        seen.append((message.metadata.message_type, dict(context.run_config), dict(context.node_config), vector.copy()))
        if len(seen) == 2:
            stop.set()
        return Message(content(2.0 * float(vector[0])), reply_to=message)

    node, work = service(link, key, app, stop)
    sent = [link.send(node, content(value)) for value in (1.0, 3.0)]
    work.serve()
    assert [kind for kind, *_ in seen] == ["train", "train"]
    assert [vector[0] for *_, vector in seen] == [1.0, 3.0]
    assert (seen[0][1]["experiment"], seen[0][1]["clients"]) == ("digits_fedavg", 7)  # what the run overrides counts
    assert seen[0][2] == {"partition-id": 1, "num-partitions": 2}
    for message in sent:
        reply, stored = link.reply_to(message)
        assert (reply.has_error(), reply.metadata.src_node_id, bool(stored)) == (False, node, True)
        with pytest.raises(NoObjectInStoreError):
            link.state.object_store.get_object_tree(message)


def test_code_that_raises_is_an_error_in_reply_and_the_next_message_is_answered(link, key):
    link.register(key)
    stop, calls = threading.Event(), []

    def app(message, context):
        calls.append(message)
        if len(calls) == 1:
            raise ZeroDivisionError("by design")
        stop.set()
        return Message(RecordDict(), reply_to=message)

    node, work = service(link, key, app, stop)
    sent = [link.send(node, RecordDict()) for _ in range(2)]
    work.serve()
    replies = [link.reply_to(message)[0] for message in sent]
    assert [reply.has_error() for reply in replies] == [True, False]
    assert (replies[0].error.code, replies[0].error.reason) == (RAISED, "ZeroDivisionError: by design")


def test_a_run_that_ends_while_its_message_is_worked_on_costs_that_reply_alone(link, key, caplog):
    link.register(key)
    stop = threading.Event()

    def app(message, context):
        link.state.finish_task(link.task, "failed", "stopped")
        stop.set()
        return Message(content(), reply_to=message)

    node, work = service(link, key, app, stop)
    link.send(node, RecordDict())
    with caplog.at_level(logging.INFO):
        work.serve()
    assert "the run is not being played" in caplog.text


def test_who_is_not_let_in_is_told_and_who_is_let_in_no_longer_ends(link, key):
    with pytest.raises(NotLetIn, match="does not let this node in: it does not know its key"):
        service(link, key, None, threading.Event())
    registered = link.register(key)
    node, work = service(link, key, None, threading.Event())
    assert (node, link.statuses()) == (registered, ["online"])
    link.state.delete_node(NOOP_FLWR_AID, node)
    with pytest.raises(NotLetIn, match="does not let this node in"):
        work.serve()


def test_a_superlink_without_an_operator_is_told_the_key_first(link, key, tmp_path):
    """The key lies in the node's folder: started again it is the same node."""
    link.app.state.enable_supernode_auth = False
    nodes = []
    for _ in range(2):
        mine = Proof(make_key(tmp_path / "key"))
        there = Presence(api(link, mine), mine.public, None, vouched=False)
        nodes.append(there.come())
        there.leave(nodes[-1])
    assert nodes[0] == nodes[1]
    assert link.statuses() == ["offline"]


def test_a_node_that_was_killed_comes_back_at_once_and_another_with_its_key_does_not(link, key, tmp_path):
    """What holds a folder's file speaks for who died; a copy of the kit elsewhere does not."""
    link.register(key)
    (tmp_path / "copy").mkdir()

    def process(folder):
        return Presence(api(link, key), key.public, hold(folder), vouched=True)

    first = process(tmp_path)
    node = first.come()
    other = process(tmp_path / "copy")
    with pytest.raises(NotLetIn, match="or another process that has this key is connected"):
        other.come()
    os.close(first._file)  # as its process's death does
    second = process(tmp_path)
    assert (second.come(), link.statuses()) == (node, ["online"])
    second.leave(node)
    assert link.statuses() == ["offline"]
    assert other.come() == node
    with pytest.raises(NotLetIn):
        second.come()
    for one in (second, other):
        os.close(one._file)


def test_a_file_that_a_living_process_holds_is_waited_for_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "WAIT_SECONDS", 0.2)
    file = hold(tmp_path)
    assert (file is not None, hold(tmp_path)) == (True, None)
    os.close(file)
    file = hold(tmp_path)
    assert file is not None
    os.close(file)


@pytest.mark.parametrize("ahead", [60.0, -1000.0])
def test_a_host_whose_clock_is_wrong_is_let_in_and_told(link, key, monkeypatch, caplog, ahead):
    link.register(key)
    http, real = link.http(), time.time
    send = http.send  # Flower's server says no time itself; uvicorn does

    def dated(*words, **options):
        response = send(*words, **options)
        response.headers["date"] = proof.email.utils.formatdate(real(), usegmt=True)
        return response

    monkeypatch.setattr(http, "send", dated)
    monkeypatch.setattr(proof.time, "time", lambda: real() + ahead)
    calls = FleetApi(http, key, None, threading.Event())
    node = calls.activate(key.public, 30.0)
    assert calls.beat(node, 30.0)
    side = "ahead of" if ahead > 0 else "behind"
    (line,) = [line for line in caplog.messages if "clock" in line]
    assert f"{side} the server's; set it" in line
    assert abs(float(line.split()[4]) - abs(ahead)) <= 1


class Answers(httpx.BaseTransport):
    """A server that says one thing after another, and then the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), []

    def handle_request(self, request):
        self.calls.append(request.url.path.rpartition("/")[2])
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(answer)

    def api(self, key, stop):
        return FleetApi(httpx.Client(base_url="http://link:1", transport=self), key, None, stop)


TRANSIENT = [
    httpx.ConnectError("[Errno 111] Connection refused"),
    httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"),
    httpx.ReadError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)"),
    httpx.ReadTimeout("The read operation timed out"),
    httpx.ProxyError("503 Service Unavailable"),
    429,
    502,
    503,
    504,
]


@pytest.mark.parametrize("trouble", TRANSIENT, ids=str)
def test_a_server_that_is_gone_or_busy_is_called_again(key, trouble, caplog):
    """For minutes, if it takes them, at most a second apart, with a line when it went and one when it is back."""
    clock, empty = Clock(1e9), httpx.Response(200, content=PullMessagesResponse().SerializeToString())
    server = Answers(*[trouble] * 100, empty)
    with caplog.at_level(logging.INFO):
        server.api(key, clock).pull(7)
    assert len(server.calls) == 101
    assert clock.now > 60
    assert max(clock.waits) <= RETRY_SECONDS
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("umbel")]
    assert [line.split(": ")[0].split(" after")[0] for line in lines] == [
        "the server at link:1 is away",
        "the server at link:1 is back",
    ]


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: Hostname mismatch"),
        httpx.ConnectError("[SSL: WRONG_VERSION_NUMBER] wrong version number"),
    ],
    ids=str,
)
def test_a_handshake_that_is_refused_is_final(key, error):
    server = Answers(error)
    with pytest.raises(httpx.ConnectError):
        server.api(key, Clock(60)).pull(7)
    assert (len(server.calls), is_final(error)) == (1, True)


def test_who_waits_for_a_server_ends_when_asked_to(key):
    with pytest.raises(Leaving):
        Answers(503).api(key, Clock(5)).pull(7)


@pytest.mark.parametrize(("was_away", "is_stored", "is_taken"), [(1, False, True), (0, False, False), (1, True, True)])
def test_an_object_that_was_stored_and_not_acknowledged_counts_as_taken(key, was_away, is_stored, is_taken):
    """A SuperLink refuses what it has; it also refuses what comes too late, and then the call was made once."""
    answer = httpx.Response(200, content=PushObjectResponse(stored=is_stored).SerializeToString())
    server = Answers(*[TRANSIENT[0]] * was_away, answer)
    assert server.api(key, Clock(60)).put(PushObjectRequest(object_id="one")) is is_taken


def test_a_link_that_holds_questions_is_asked_one_after_another_and_any_other_ever_more_rarely(key, monkeypatch):
    """An idle node costs a SuperLink of Flower's a call a second; just after a message it asks at once."""

    def asked(headers):
        clock = Clock(30.0)
        monkeypatch.setattr(inbox.time, "monotonic", clock.monotonic)
        empty = httpx.Response(200, content=PullMessagesResponse().SerializeToString(), headers=headers)
        with pytest.raises(Leaving):
            Mailbox(Answers(empty).api(key, clock), 7, clock).next()
        return clock.waits

    polled, held = asked({}), asked({HOLDS_HEADER: "10"})
    assert max(held) == min(held) == min(polled) == inbox.SHORTEST_POLL_SECONDS
    assert sum(polled[:50]) < 3
    assert polled[-1] == LONGEST_POLL_SECONDS


def test_a_heart_beats_while_the_node_works_and_says_when_it_is_not_known(link, key, monkeypatch):
    monkeypatch.setattr(heart, "BEAT_SECONDS", 0.1)
    beats = Counter()
    monkeypatch.setattr(FleetApi, "beat", lambda *words: beats.update(["beat"]) or beats["beat"] < 4)
    refused = threading.Event()
    one = Heart(api(link, key), 7, lambda error: refused.set())
    time.sleep(0.05)  # as training does: a call that does not return
    assert refused.wait(5)
    assert beats["beat"] == 4
    one.stop()


def test_a_heart_outlives_a_server_that_is_away(key, monkeypatch):
    monkeypatch.setattr(heart, "AGAIN_SECONDS", 0.01)
    server = Answers(TRANSIENT[0], 502, 500, 403, TRANSIENT[3], 401)
    refused = threading.Event()
    one = Heart(server.api(key, threading.Event()), 7, lambda error: refused.set())
    assert refused.wait(5)
    one.stop()
    assert len(server.calls) == 6


def test_a_node_brings_no_server_with_it():
    """Neither Flower's SuperNode nor what serves: none of it is in a client's process."""
    code = (
        "import sys, umbel.runtimes.flower.node.__main__\n"
        "print(*[n for n in sys.modules if n.split('.')[0] in ('uvicorn', 'sqlalchemy', 'tensorflow')"
        " or n.startswith(('flwr.supernode', 'flwr.superlink.main', 'flwr.superlink.cli'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_process_says_goodbye_when_asked_to_and_when_its_parent_is_gone(tmp_path):
    """It ends within seconds though no server answers."""
    words = ["--client", "0", "--clients", "1", "--home", str(tmp_path), "--state", str(tmp_path / "state")]
    for parent, signal_number in ((os.getpid(), 15), (2**22 - 1, None)):
        command = [sys.executable, "-m", "umbel.runtimes.flower.node", str(parent), "127.0.0.1:9", *words]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        with contextlib.suppress(StopIteration):
            next(line for line in process.stderr if "is away" in line or signal_number is None)
        if signal_number is not None:
            process.send_signal(signal_number)
        process.communicate(timeout=120)
        assert process.returncode == 0
